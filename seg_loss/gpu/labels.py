"""The label check on the GPU: the kernel that reads the labels, and what later kernels do with it.

`check_labels_kernel` writes partial counts. Each program of the loss kernel sums them to the
divisor with `load_divisor`. The last program of that kernel sums the partial losses and writes the
report of invalid labels, with `reduce_partials`.
"""

import triton
import triton.language as tl

from seg_loss.gpu.math import (
    float_from_bits,
    load_classes,
)

# Rows of `counts` [NUM_COUNTS, programs]. From INVALID_LABELS on they are also the fields of a
# report: the number of invalid values, the index of the first, and its value (a float's bits).
VALID = tl.constexpr(0)
INVALID_LABELS = tl.constexpr(1)
INVALID_PIXEL_WEIGHTS = tl.constexpr(4)
INVALID_CLASS_WEIGHTS = tl.constexpr(7)
NUM_COUNTS = tl.constexpr(10)
CALL_ID = tl.constexpr(10)  # identifies the call that a report is about; 0 without a report
REPORT_SIZE = 11
NO_INDEX = tl.constexpr(0x7FFFFFFFFFFFFFFF)

# Sources of the divisor: a number from the host, the number of valid pixels (at least 1), the sum
# of their weights (1 instead of 0), both without that floor as in torch, or a number in memory.
CONSTANT, COUNT, WEIGHT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
COUNT_NO_FLOOR, WEIGHT_NO_FLOOR, MEMORY = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)


@triton.jit
def _is_weight(weight):
    return (weight >= 0) & (weight < float("inf"))


@triton.jit
def _first_index(invalid, offset, first):
    return tl.minimum(first, tl.min(tl.where(invalid, offset, NO_INDEX), axis=0))


@triton.jit
def check_labels_kernel(
    labels,
    class_weight,
    pixel_weight,
    counts,
    weights,
    finished,
    pixels,
    pixels_per_program,
    ignored,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Reads the labels and weights: counts the valid ones and finds the invalid ones.

    Program i writes column i of `counts`, and to `weights[i]` the weights of its valid pixels. The
    first program clears `finished`, in which the programs of the next kernel count themselves.
    """
    program = tl.program_id(0)
    num_programs = tl.num_programs(0)
    start = program.to(tl.int64) * pixels_per_program
    end = tl.minimum(start + pixels_per_program, pixels)
    lane = tl.arange(0, BLOCK_P)
    valid = tl.zeros((BLOCK_P,), tl.int32)
    invalid = tl.zeros((BLOCK_P,), tl.int32)
    first = tl.full((), NO_INDEX, tl.int64)
    weight_sum = tl.zeros((BLOCK_P,), tl.float64)
    invalid_weights = tl.zeros((BLOCK_P,), tl.int32)
    first_weight = tl.full((), NO_INDEX, tl.int64)
    for done in range(0, pixels_per_program, BLOCK_P):
        offset = start + done + lane
        inside = offset < end
        y = load_classes(labels, offset, inside, ignored, C)
        is_valid = y < C
        is_invalid = y > C
        valid += is_valid.to(tl.int32)
        invalid += is_invalid.to(tl.int32)
        first = _first_index(is_invalid, offset, first)
        if class_weight is not None or pixel_weight is not None:
            weight = tl.full((BLOCK_P,), 1, tl.float64)
            if pixel_weight is not None:
                weight = tl.load(pixel_weight + offset, mask=is_valid, other=0).to(tl.float64)
                is_invalid_weight = is_valid & ~_is_weight(weight)
                invalid_weights += is_invalid_weight.to(tl.int32)
                first_weight = _first_index(is_invalid_weight, offset, first_weight)
            if class_weight is not None:
                weight *= tl.load(class_weight + y, mask=is_valid, other=0).to(tl.float64)
            weight_sum += tl.where(is_valid, weight, 0)

    column = counts + program
    tl.store(column + VALID * num_programs, tl.sum(valid.to(tl.int64), axis=0))
    tl.store(column + INVALID_LABELS * num_programs, tl.sum(invalid.to(tl.int64), axis=0))
    tl.store(column + (INVALID_LABELS + 1) * num_programs, first)
    found = first < NO_INDEX
    label = tl.load(labels + tl.where(found, first, 0), mask=found, other=0).to(tl.int64)
    tl.store(column + (INVALID_LABELS + 2) * num_programs, label)
    tl.store(weights + program, tl.sum(weight_sum, axis=0))

    tl.store(
        column + INVALID_PIXEL_WEIGHTS * num_programs, tl.sum(invalid_weights.to(tl.int64), axis=0)
    )
    tl.store(column + (INVALID_PIXEL_WEIGHTS + 1) * num_programs, first_weight)
    bits = tl.zeros((), tl.int64)
    if pixel_weight is not None:
        found = first_weight < NO_INDEX
        value = tl.load(pixel_weight + tl.where(found, first_weight, 0), mask=found, other=0)
        bits = value.to(tl.float64).to(tl.int64, bitcast=True)
    tl.store(column + (INVALID_PIXEL_WEIGHTS + 2) * num_programs, bits)

    invalid_classes = tl.zeros((), tl.int64)
    first = tl.full((), NO_INDEX, tl.int64)
    bits = tl.zeros((), tl.int64)
    if class_weight is not None:
        if program == 0:
            for c in range(0, C, BLOCK_P):
                offset = (c + lane).to(tl.int64)
                weight = tl.load(class_weight + offset, mask=offset < C, other=0)
                is_invalid_weight = ~_is_weight(weight.to(tl.float64))
                invalid_classes += tl.sum(is_invalid_weight.to(tl.int64), axis=0)
                first = _first_index(is_invalid_weight, offset, first)
            found = first < NO_INDEX
            value = tl.load(class_weight + tl.where(found, first, 0), mask=found, other=0)
            bits = value.to(tl.float64).to(tl.int64, bitcast=True)
    tl.store(column + INVALID_CLASS_WEIGHTS * num_programs, invalid_classes)
    tl.store(column + (INVALID_CLASS_WEIGHTS + 1) * num_programs, first)
    tl.store(column + (INVALID_CLASS_WEIGHTS + 2) * num_programs, bits)
    if program == 0:
        tl.store(finished, 0)


@triton.jit
def load_divisor(
    counts, weights, source, num_partials, KIND: tl.constexpr, NUM_PARTIALS: tl.constexpr
):
    """Returns the divisor D, float64, as `_divisor.divisor` does on the host.

    `source` holds the bits of a divisor, or points to one.
    """
    if KIND == CONSTANT:
        return float_from_bits(source, tl.float64)
    elif KIND == MEMORY:
        return tl.load(source)
    else:
        lane = tl.arange(0, NUM_PARTIALS)
        if KIND == COUNT or KIND == COUNT_NO_FLOOR:
            divisor = tl.sum(
                tl.load(counts + VALID * num_partials + lane, lane < num_partials, 0), axis=0
            ).to(tl.float64)
            if KIND == COUNT:
                divisor = tl.maximum(divisor, 1)
        else:
            divisor = tl.sum(tl.load(weights + lane, lane < num_partials, 0), axis=0)
            if KIND == WEIGHT:
                divisor = tl.where(divisor > 0, divisor, 1)
        return divisor


@triton.jit
def _sum_invalid(counts, num_partials, KIND: tl.constexpr, NUM_PARTIALS: tl.constexpr):
    """Returns count, first index and first value of one kind of invalid values."""
    lane = tl.arange(0, NUM_PARTIALS)
    is_there = lane < num_partials
    count = tl.sum(tl.load(counts + KIND * num_partials + lane, is_there, 0), axis=0)
    indices = tl.load(counts + (KIND + 1) * num_partials + lane, is_there, NO_INDEX)
    first = tl.min(indices, axis=0)
    values = tl.load(counts + (KIND + 2) * num_partials + lane, is_there, 0)
    return count, first, tl.sum(tl.where(indices == first, values, 0), axis=0)


@triton.jit
def _write_invalid(report, count, first, value, KIND: tl.constexpr):
    tl.store(report + KIND, count)
    tl.store(report + KIND + 1, first)
    tl.store(report + KIND + 2, value)


@triton.jit
def _write_report(counts, num_partials, report, call_id, finished, NUM_PARTIALS: tl.constexpr):
    """Writes the report if anything is invalid; the call id, which the host polls, comes last."""
    labels, first_label, label = _sum_invalid(counts, num_partials, INVALID_LABELS, NUM_PARTIALS)
    pixels, first_pixel, pixel_weight = _sum_invalid(
        counts, num_partials, INVALID_PIXEL_WEIGHTS, NUM_PARTIALS
    )
    classes, first_class, class_weight = _sum_invalid(
        counts, num_partials, INVALID_CLASS_WEIGHTS, NUM_PARTIALS
    )
    if labels + pixels + classes > 0:
        _write_invalid(report, labels, first_label, label, INVALID_LABELS)
        _write_invalid(report, pixels, first_pixel, pixel_weight, INVALID_PIXEL_WEIGHTS)
        _write_invalid(report, classes, first_class, class_weight, INVALID_CLASS_WEIGHTS)
        # This atomic changes nothing. It orders the stores: the host sees all of the above first.
        tl.debug_barrier()
        tl.atomic_add(finished, 0, sem="acq_rel", scope="sys")
        tl.debug_barrier()
        tl.store(report + CALL_ID, call_id)


@triton.jit
def reduce_partials(
    partial,
    finished,
    loss,
    divisor,
    D,
    counts,
    num_partials,
    report,
    call_id,
    NUM_PARTIALS: tl.constexpr,
):
    """In the program that finishes last, sums the partial losses and writes the report."""
    # All stores of a program come before its increment, and all increments before the last.
    tl.debug_barrier()
    arrived = tl.atomic_add(finished, 1, sem="acq_rel", scope="gpu")
    if arrived == tl.num_programs(0) - 1:
        if loss is not None:
            row = tl.arange(0, 2048)
            sums = tl.zeros((2048,), tl.float64)
            for start in range(0, tl.num_programs(0), 2048):
                sums += tl.load(
                    partial + start + row,
                    start + row < tl.num_programs(0),
                    0,
                    cache_modifier=".cg",
                )
            tl.store(loss, (tl.sum(sums, axis=0) / D).to(loss.dtype.element_ty))
            if divisor is not None:
                tl.store(divisor, D)
        if report is not None:
            _write_report(counts, num_partials, report, call_id, finished, NUM_PARTIALS)
