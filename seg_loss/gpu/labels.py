"""The GPU kernel of the label check: counts, divisor, and the report of invalid labels.

Programs add what they have counted to one integer, atomically, so that the last of them to finish
knows the sums. It stores the divisor, and a report if a label or weight is invalid. Sums of weights
are stored per program and added by the last one, in the order of the programs.
"""

import triton
import triton.language as tl

from seg_loss.gpu.math import as_int, float_from_bits, let_next_kernel_start

# `counters` are int64, zeros between two calls: the sum of the counts, and of labels and pixel
# weights the number of invalid ones and NO_INDEX less the index of the first. Behind them are the
# weights of each program, as bits of a float64.
_INVALID_LABELS, _INVALID_WEIGHTS = tl.constexpr(1), tl.constexpr(3)
_NUM_COUNTERS = tl.constexpr(16)
# The sum of the counts has three parts: valid pixels, programs that have found something invalid,
# and programs that have finished.
_INVALID = tl.constexpr(1 << 36)
_FINISHED = tl.constexpr(1 << 48)
MAX_PROGRAMS = 1 << 11

# Fields of a report, int64: whether it is written, and of labels, pixel weights and class weights
# the number of invalid values, the index of the first, and its value (a float's bits).
IS_WRITTEN = tl.constexpr(0)
INVALID_LABELS = tl.constexpr(1)
INVALID_PIXEL_WEIGHTS = tl.constexpr(4)
INVALID_CLASS_WEIGHTS = tl.constexpr(7)
REPORT_SIZE = tl.constexpr(16)
NO_INDEX = tl.constexpr(0x7FFFFFFFFFFFFFFF)

# Sources of the divisor: a number from the host, the number of valid pixels, the sum of their
# weights, both 1 instead of 0, and both NaN instead of 0, as in torch: see `_divisor.divisor`.
CONSTANT, COUNT, WEIGHT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
COUNT_NO_FLOOR, WEIGHT_NO_FLOOR = tl.constexpr(3), tl.constexpr(4)


def num_counters(programs: int) -> int:
    """Returns the number of int64 that a label check of this number of programs needs."""
    return int(_NUM_COUNTERS.value) + programs


@triton.jit
def _is_weight(weight):
    return (weight >= 0) & (weight < float("inf"))


@triton.jit
def _load_labels(labels, offset, inside, ignored, C: tl.constexpr):
    """Returns labels, and which of them are valid and ignored; `inside` is None for all."""
    if inside is None:
        label = as_int(tl.load(labels + offset))
    else:
        label = as_int(tl.load(labels + offset, inside, 0))
    valid = (label >= 0) & (label < C)
    is_ignored = label < label
    for k in tl.static_range(len(ignored)):
        is_ignored |= label == ignored[k]
    valid &= ~is_ignored
    if inside is not None:
        valid &= inside
        is_ignored |= ~inside
    return label, valid, is_ignored


@triton.jit
def _check_block(
    labels,
    class_weight,
    pixel_weight,
    offset,
    inside,
    ignored,
    C: tl.constexpr,
    SUMS_WEIGHTS: tl.constexpr,
):
    """Returns, of each label, counts of valid and invalid ones, its weight, and if that is invalid.

    The counts are one integer, that of the invalid ones times 2**16.
    """
    label, valid, is_ignored = _load_labels(labels, offset, inside, ignored, C)
    counts = tl.where(valid, 1, tl.where(is_ignored, 0, 1 << 16))
    weight = tl.zeros(label.shape, tl.float64)
    invalid_weight = tl.zeros(label.shape, tl.int32)
    if pixel_weight is not None or SUMS_WEIGHTS:
        weight += 1
        if pixel_weight is not None:
            weight = tl.load(pixel_weight + offset, valid, 0).to(tl.float64)
            invalid_weight = (valid & ~_is_weight(weight)).to(tl.int32)
        if class_weight is not None and SUMS_WEIGHTS:
            y = tl.where(valid, label.to(tl.int32), 0)
            weight *= tl.load(class_weight + y, valid, 0).to(tl.float64)
        weight = tl.where(valid, weight, 0)
    return counts, weight, invalid_weight


@triton.jit
def _first_invalid(labels, pixel_weight, offset, inside, ignored, C: tl.constexpr):
    """Returns the indices of the first invalid label and weight; NO_INDEX if there is none."""
    _, valid, is_ignored = _load_labels(labels, offset, inside, ignored, C)
    first = tl.min(tl.where(valid | is_ignored, NO_INDEX, offset), axis=0)
    first_weight = tl.full((), NO_INDEX, tl.int64)
    if pixel_weight is not None:
        weight = tl.load(pixel_weight + offset, valid, 0).to(tl.float64)
        first_weight = tl.min(tl.where(valid & ~_is_weight(weight), offset, NO_INDEX), axis=0)
    return first, first_weight


@triton.jit
def _count_invalid(counters, index: tl.constexpr, count, first):
    """Adds to the number of invalid values, and keeps the first index."""
    tl.atomic_add(counters + index, count, sem="relaxed")
    tl.atomic_max(counters + index + 1, first ^ NO_INDEX, sem="relaxed")


@triton.jit
def _fence(counters, scope: tl.constexpr):
    """Orders the memory accesses before and after it; an atomic that changes nothing."""
    tl.debug_barrier()
    tl.atomic_add(counters, 0, sem="acq_rel", scope=scope)
    tl.debug_barrier()


@triton.jit
def _take_invalid(counters, index: tl.constexpr):
    """Returns the number of invalid values and the first index, and clears them."""
    count = tl.atomic_xchg(counters + index, 0)
    first = tl.atomic_xchg(counters + index + 1, 0) ^ NO_INDEX
    return count, first


@triton.jit
def _write_invalid(report, field: tl.constexpr, values, count, first):
    """Writes a number of invalid values, and the index and value of the first of `values`."""
    value = tl.load(values + tl.where(count > 0, first, 0), count > 0, 0)
    if values.dtype.element_ty.is_floating():
        bits = value.to(tl.float64).to(tl.int64, bitcast=True)
    else:
        bits = value.to(tl.int64)
    tl.store(report + field, count)
    tl.store(report + field + 1, first)
    tl.store(report + field + 2, bits)


@triton.jit(do_not_specialize=["slot", "pixels", "known_divisor", "inverse_temperature"])
def check_labels_kernel(
    labels,
    class_weight,
    pixel_weight,
    counters,
    divisor,
    reports,
    slot,
    pixels,
    known_divisor,
    inverse_temperature,
    ignored,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    DIVISOR: tl.constexpr,
    PADDED_PROGRAMS: tl.constexpr,
    HAS_EARLY_NEXT: tl.constexpr,
    CHECKS_CLASSES: tl.constexpr,
):
    """Reads the labels and weights: counts the valid ones and finds the invalid ones.

    Writes D and 1 / (D temperature) to `divisor`. If anything is invalid, writes to a slot of the
    reports, and in slot 0 that there is a report. `reports` is None if none is wanted.
    """
    if HAS_EARLY_NEXT:
        let_next_kernel_start()
    SUMS_WEIGHTS: tl.constexpr = DIVISOR == WEIGHT or DIVISOR == WEIGHT_NO_FLOOR
    program = tl.program_id(0)
    num_programs = tl.num_programs(0)
    # Whole blocks take no mask, so that a thread loads many labels at once; the last program takes
    # the rest.
    num_blocks = pixels // BLOCK_P
    tail = num_blocks * tl.full((), BLOCK_P, tl.int64)
    lane = tl.arange(0, BLOCK_P)
    counts = tl.zeros((BLOCK_P,), tl.int32)
    weights = tl.zeros((BLOCK_P,), tl.float64)
    invalid_weights = tl.zeros((BLOCK_P,), tl.int32)
    for block in range(program, num_blocks, num_programs):
        offset = block * tl.full((), BLOCK_P, tl.int64) + lane
        more, weight, invalid_weight = _check_block(
            labels, class_weight, pixel_weight, offset, None, ignored, C, SUMS_WEIGHTS
        )
        counts += more
        weights += weight
        invalid_weights += invalid_weight
    if program == num_programs - 1:
        more, weight, invalid_weight = _check_block(
            labels, class_weight, pixel_weight, tail + lane, tail + lane < pixels, ignored, C,
            SUMS_WEIGHTS,
        )  # fmt: skip
        counts += more
        weights += weight
        invalid_weights += invalid_weight

    # One sum over the threads for both counts.
    both = tl.sum((counts & 0xFFFF).to(tl.int64) + ((counts >> 16).to(tl.int64) << 32), axis=0)
    num_invalid = both >> 32
    summand = _FINISHED + (both & 0xFFFFFFFF)
    num_invalid_weights = tl.zeros((), tl.int64)
    if pixel_weight is not None:
        num_invalid_weights = tl.sum(invalid_weights, axis=0).to(tl.int64)
    if num_invalid + num_invalid_weights > 0:
        # The labels are read again for the first index, which the loop above need not keep.
        first, first_weight = _first_invalid(
            labels, pixel_weight, tail + lane, tail + lane < pixels, ignored, C
        )
        if program < num_programs - 1:
            first = tl.full((), NO_INDEX, tl.int64)
            first_weight = tl.full((), NO_INDEX, tl.int64)
        for block in range(program, num_blocks, num_programs):
            offset = block * tl.full((), BLOCK_P, tl.int64) + lane
            index, weight_index = _first_invalid(labels, pixel_weight, offset, None, ignored, C)
            first = tl.minimum(first, index)
            first_weight = tl.minimum(first_weight, weight_index)
        _count_invalid(counters, _INVALID_LABELS, num_invalid, first)
        if pixel_weight is not None:
            _count_invalid(counters, _INVALID_WEIGHTS, num_invalid_weights, first_weight)
        summand += _INVALID
        _fence(counters, "gpu")
    if SUMS_WEIGHTS:
        bits = tl.sum(weights, axis=0).to(tl.int64, bitcast=True)
        tl.store(counters + _NUM_COUNTERS + program, bits)
        _fence(counters, "gpu")

    total = tl.atomic_add(counters, summand, sem="relaxed") + summand
    if (total >> 48) == num_programs:
        tl.store(counters, 0)
        if DIVISOR == CONSTANT:
            D = float_from_bits(known_divisor, tl.float64)
        elif DIVISOR == COUNT or DIVISOR == COUNT_NO_FLOOR:
            D = (total & (_INVALID - 1)).to(tl.float64)
        else:
            _fence(counters, "gpu")
            row = tl.arange(0, PADDED_PROGRAMS)
            of_programs = counters + _NUM_COUNTERS + row
            sums = tl.load(of_programs, row < num_programs, 0, cache_modifier=".cg")
            D = tl.sum(sums.to(tl.float64, bitcast=True), axis=0)
        if DIVISOR == COUNT or DIVISOR == WEIGHT:
            D = tl.where(D > 0, D, 1)
        elif DIVISOR != CONSTANT:
            D = tl.where(D == 0, float("nan"), D)
        tl.store(divisor, D)
        tl.store(divisor + 1, float_from_bits(inverse_temperature, tl.float64) / D)

        num_classes = tl.zeros((), tl.int64)
        first_class = tl.full((), NO_INDEX, tl.int64)
        if class_weight is not None and reports is not None and CHECKS_CLASSES:
            for class_block in range(0, C, BLOCK_P):
                c = (class_block + lane).to(tl.int64)
                weight = tl.load(class_weight + c, c < C, 0).to(tl.float64)
                invalid = ~_is_weight(weight)
                num_classes += tl.sum(invalid.to(tl.int32), axis=0).to(tl.int64)
                index = tl.min(tl.where(invalid, c, NO_INDEX), axis=0)
                first_class = tl.minimum(first_class, index)
        num_invalid_programs = (total & (_FINISHED - 1)) >> 36
        if num_invalid_programs + num_classes > 0:
            _fence(counters, "gpu")
            num_labels, first_label = _take_invalid(counters, _INVALID_LABELS)
            num_weights, first_pixel = _take_invalid(counters, _INVALID_WEIGHTS)
            if reports is not None:
                report = reports + slot.to(tl.int64) * REPORT_SIZE
                _write_invalid(report, INVALID_LABELS, labels, num_labels, first_label)
                if pixel_weight is not None:
                    _write_invalid(
                        report, INVALID_PIXEL_WEIGHTS, pixel_weight, num_weights, first_pixel
                    )
                if class_weight is not None:
                    _write_invalid(
                        report, INVALID_CLASS_WEIGHTS, class_weight, num_classes, first_class
                    )
                # The host polls IS_WRITTEN and must then see all fields.
                _fence(counters, "sys")
                tl.store(report + IS_WRITTEN, 1)
                _fence(counters, "sys")
                tl.store(reports + IS_WRITTEN, 1)
