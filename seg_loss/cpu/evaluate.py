"""The sums, counts and maps of `evaluate`: by columns, or in tiles.

Floats are summed by chunk, in `job.chunk_tables`: the nll by class, then the confidence by bin.
Integers are counted by thread, in the thread's scratch memory: the confusion matrix, then the wrong
and the right pixels of each bin.
"""

import math

import numpy as np
from numba import types

from seg_loss.constants import SATURATED_NLL
from seg_loss.cpu.columns import make_prediction
from seg_loss.cpu.compiler import inner
from seg_loss.cpu.cross_entropy import load_weights, log_of_sum
from seg_loss.cpu.dtypes import load_as
from seg_loss.cpu.exponential import scaled_exp
from seg_loss.cpu.records import ITEMSIZES, LANES, NUM_BINS, NUM_TABLE_COPIES
from seg_loss.cpu.region import add_terms, make_region
from seg_loss.cpu.rows import fill, load_classes, load_rows, make_copies
from seg_loss.cpu.simd import (
    FLOATS,
    address_of,
    at,
    ceiling,
    count_lanes,
    equal,
    is_nan,
    less,
    load,
    mask_and,
    maximum,
    min_int,
    pointer,
    splat,
    store,
    sum_of_lanes,
    times,
    truncated,
    where,
    widened,
)
from seg_loss.cpu.tiles import (
    CONFIDENCE,
    ENTROPY,
    FACTOR,
    MAP,
    PIXEL_WEIGHTS,
    accumulate_tile,
    write_maps,
)

_LOG2_E = math.log2(math.e)


@inner(types.CPointer(types.float64))
def chunk_table(job, image, first):
    """Returns the table of a chunk, filled with zeros."""
    num_classes = job.logits.num_classes
    k = image * job.chunks_per_image + first // job.chunk_units
    table = pointer(job.chunk_tables + 8 * k * (num_classes + NUM_BINS), np.float64)
    for i in range(num_classes + NUM_BINS):
        table[i] = 0.0
    return table


def make_tiles(*, element):
    """Returns the kernel of logits as large as the labels."""
    element = getattr(np, element)

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        num_classes = job.logits.num_classes
        rows, stride = pointer(scratch + job.rows, element), job.row_stride
        classes = pointer(scratch + job.classes, np.int32)
        predicted = pointer(scratch + job.predicted, np.int32)
        offsets = pointer(scratch + job.offsets, np.int64)
        confusion = pointer(scratch + job.tables, np.int64)
        bin_pixels = at(confusion, num_classes * num_classes)
        class_nll = chunk_table(job, image, first)
        pixel_row = at(rows, (num_classes + PIXEL_WEIGHTS) * stride)
        fill(pixel_row, job.tile, 1.0)
        for start in range(first, last, job.tile):
            n = min_int(job.tile, last - start)
            load_classes(job, image, start, n, classes)
            if job.pixel_weight.address:
                load_rows(job.pixel_weight, image, start, n, pixel_row, stride)
            load_rows(job.logits, image, start, n, rows, stride)
            accumulate_tile(
                job,
                n,
                classes,
                predicted,
                rows,
                stride,
                chunk,
                class_nll,
                at(class_nll, num_classes),
                confusion,
                bin_pixels,
            )
            for i in range(n):
                offsets[i] = start + i
            write_maps(job, image, offsets, n, predicted, rows, stride)

    return make_region(process_chunk, element, True)


# Copies of the tables of counts, so that adjacent pixels need not wait for each other's addition.
# A pixel adds to its bin 1 in the upper bits and the confidence, as a multiple of 2**-28, in the
# lower ones: both sums are exact.
_COUNT_SHIFT = 48  # below it the sum of 2**20 confidences, above it a count of 2**15
_CONFIDENCE_UNIT = 2.0**28


def make_columns(*, num_classes, dtype_code, classes_adjacent, has_distributions):
    """Returns the kernel of float32, float16 or bfloat16 logits without label smoothing.

    The parameters are those of `cross_entropy.make_columns`, and whether there are maps of the
    entropy or of the top classes, which take another pass over the column.
    """
    prediction_in = make_prediction(num_classes, dtype_code)
    size = ITEMSIZES[dtype_code]
    copy_in, _ = make_copies(size, classes_adjacent=classes_adjacent)

    @inner(types.UniTuple(FLOATS, 4))
    def find_distribution(job, source, step, top, scale, predicted, stride):
        """Returns sum_c e_c d_c and the TOP largest e_c; writes their classes behind `predicted`.

        d_c = (x_c - top) / T. Where e_c is 0, so is the product, also for a d_c of minus infinity.
        """
        inverse_temperature = splat(np.float32(job.inverse_temperature))
        least = splat(np.float32(-1000.0))
        moment = least - least
        first = second = third = splat(np.float32(-1.0))
        first_class = second_class = third_class = splat(np.int32(0))
        for c in range(job.logits.num_classes):
            distance = load_as(dtype_code, source) - top
            e = scaled_exp(distance, scale)
            moment = moment + e * maximum(distance * inverse_temperature, least)
            here = splat(np.int32(c))
            above_first, above_second = less(first, e), less(second, e)
            above_third = less(third, e)
            third_class = where(above_second, second_class, where(above_third, here, third_class))
            third = where(above_second, second, where(above_third, e, third))
            second_class = where(above_first, first_class, where(above_second, here, second_class))
            second = where(above_first, first, where(above_second, e, second))
            first_class = where(above_first, here, first_class)
            first = where(above_first, e, first)
            source += step
        store(predicted, stride, first_class)
        store(predicted, 2 * stride, second_class)
        store(predicted, 3 * stride, third_class)
        return moment, first, second, third

    @inner(types.void)
    def count_strip(job, cells, classes, bins, nll, confidence, counts, nll_sums, bin_sums):
        """Adds the pixels of a strip to the tables; ignored pixels have a class and a bin too."""
        num_rows = job.logits.num_classes + 1
        for i in range(LANES):
            k = i % NUM_TABLE_COPIES
            counts[k * num_rows * num_rows + cells[i]] += 1
            nll_sums[k * num_rows + classes[i]] += np.float64(nll[i])
            bin_sums[k * (2 * NUM_BINS + 1) + bins[i]] += (1 << _COUNT_SHIFT) + confidence[i]

    @inner(types.void)
    def add_tables(job, counts, nll_sums, bin_sums, class_nll, confusion, bin_pixels):
        """Adds the tables of a chunk to those of the thread and of the chunk, and clears them."""
        num_classes = job.logits.num_classes
        num_rows = num_classes + 1
        bin_confidence = at(class_nll, num_classes)
        mask = (1 << _COUNT_SHIFT) - 1
        for k in range(NUM_TABLE_COPIES):
            for y in range(num_classes):
                class_nll[y] += nll_sums[k * num_rows + y]
                for c in range(num_classes):
                    index = (k * num_rows + y) * num_rows + c
                    confusion[y * num_classes + c] += np.int64(counts[index])
            for b in range(2 * NUM_BINS):
                total = bin_sums[k * (2 * NUM_BINS + 1) + b]
                bin_pixels[b] += total >> _COUNT_SHIFT
                bin_confidence[b // 2] += np.float64(total & mask) / _CONFIDENCE_UNIT
        for i in range(NUM_TABLE_COPIES * num_rows * num_rows):
            counts[i] = 0
        for i in range(NUM_TABLE_COPIES * num_rows):
            nll_sums[i] = 0.0
        for i in range(NUM_TABLE_COPIES * (2 * NUM_BINS + 1)):
            bin_sums[i] = 0

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        num_classes = job.logits.num_classes
        num_rows = num_classes + 1
        rows, stride = pointer(scratch + job.rows, np.float32), job.row_stride
        classes = pointer(scratch + job.classes, np.int32)
        predicted = pointer(scratch + job.predicted, np.int32)
        pixel_offsets = pointer(scratch + job.offsets, np.int64)
        confusion = pointer(scratch + job.tables, np.int64)
        bin_pixels = at(confusion, num_classes * num_classes)
        class_nll = chunk_table(job, image, first)
        offsets = pointer(scratch + job.extra, np.int64)
        buffer = scratch + job.extra + 8 * LANES
        exponentials = pointer(buffer + 4 * LANES * num_classes, np.float32)
        cells = pointer(address_of(at(exponentials, LANES * num_classes)), np.int32)
        bins, confidences = at(cells, LANES), at(cells, 2 * LANES)
        nll_sums = pointer(address_of(at(cells, 3 * LANES)), np.float64)
        bin_sums = pointer(address_of(at(nll_sums, NUM_TABLE_COPIES * num_rows)), np.int64)
        counts = pointer(address_of(at(bin_sums, NUM_TABLE_COPIES * (2 * NUM_BINS + 1))), np.int32)
        # The rows that `write_maps` knows.
        entropy_row = at(rows, (num_classes + ENTROPY) * stride)
        nll_row = at(rows, (num_classes + MAP) * stride)
        confidence_row = at(rows, (num_classes + CONFIDENCE) * stride)
        weights = at(rows, (num_classes + FACTOR) * stride)
        zero, one = splat(np.float32(0)), splat(np.float32(1))
        scale = splat(np.float32(job.inverse_temperature * _LOG2_E))
        inverse_temperature = splat(np.float32(job.inverse_temperature))
        classes_end = splat(np.int32(num_classes))
        saturated_nll = splat(np.float32(SATURATED_NLL))
        logits = job.logits.address + size * image * job.logits.image_stride
        logits_step = size * job.logits.class_stride
        is_dense = job.is_dense != 0
        has_weights = job.pixel_weight.address != 0 or job.class_weight != 0
        has_maps = has_distributions or (
            job.maps.prediction != 0 or job.maps.nll != 0 or job.maps.confidence != 0
        )
        total = widened(zero)
        no_bin = splat(np.int32(2 * NUM_BINS))
        fill(weights, min_int(job.tile, last - first), 1.0)
        for start in range(first, last, job.tile):
            n = min_int(job.tile, last - start)
            load_classes(job, image, start, n, classes)
            if has_weights:
                load_weights(job, image, start, n, classes, weights)
            for i in range(0, n, LANES):
                y = load(classes, i)
                lanes = min_int(LANES, n - i)
                source, source_step = logits + (start + i) * size, logits_step
                if not (is_dense and lanes == LANES):
                    copy_in(job.logits, image, start + i, lanes, offsets, buffer)
                    source, source_step = buffer, size * LANES
                t, distance, top, best = prediction_in(
                    source, source_step, num_classes, y, scale, exponentials
                )
                e_target = scaled_exp(distance, scale)
                s = t + e_target
                valid = less(y, classes_end)
                is_non_finite = is_nan(s)
                chunk.non_finite += count_lanes(mask_and(valid, is_non_finite))
                distance = distance * inverse_temperature
                log_s = log_of_sum(t, e_target, distance)
                nll = where(valid, log_s - distance, zero)
                confidence = one / s
                total = total + widened(where(valid, nll * load(weights, i), zero))
                chunk.saturated += count_lanes(less(saturated_nll, nll))
                store(nll_row, i, nll)
                store(confidence_row, i, confidence)
                store(predicted, i, best)
                if has_distributions:
                    moment, first_e, second_e, third_e = find_distribution(
                        job, source, source_step, top, scale, at(predicted, i), stride
                    )
                    store(entropy_row, i, log_s - moment * confidence)
                    store(rows, i, first_e * confidence)
                    store(rows, stride + i, second_e * confidence)
                    store(rows, 2 * stride + i, third_e * confidence)
                # Ignored pixels count as class C, in bin 30.
                row = where(valid, y, classes_end)
                store(classes, i, row)
                store(cells, 0, times(row, num_rows) + best)
                confidence = where(is_non_finite, zero, confidence)
                bin_index = ceiling(confidence * splat(np.float32(NUM_BINS)))
                is_right = equal(row, best)
                index = (
                    bin_index
                    + bin_index
                    + where(is_right, splat(np.int32(-1)), splat(np.int32(-2)))
                )
                index = where(mask_and(valid, less(zero, confidence)), index, no_bin)
                store(bins, 0, index)
                store(confidences, 0, truncated(confidence * splat(np.float32(_CONFIDENCE_UNIT))))
                count_strip(
                    job,
                    cells,
                    at(classes, i),
                    bins,
                    at(nll_row, i),
                    confidences,
                    counts,
                    nll_sums,
                    bin_sums,
                )
            if has_maps:
                for i in range(n):
                    pixel_offsets[i] = start + i
                write_maps(job, image, pixel_offsets, n, predicted, rows, stride)
        add_terms(chunk, sum_of_lanes(total))
        add_tables(job, counts, nll_sums, bin_sums, class_nll, confusion, bin_pixels)

    return make_region(process_chunk, np.float32, True)
