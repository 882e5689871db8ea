"""The loss and its gradient: one read of the logits, one write of the gradient.

A chunk of pixels is processed in tiles, a tile in strips of 16 pixels:

    labels      become classes, int32, once for a tile; weights of pixels and classes are multiplied
    column_in   exponentials of all classes; see `columns`
    strip       with  s = t + e_y  the nll  ln s - (x_y - m)  of the target class y, its term, and
                factor = weight / (D s)
    column_out  grad_c = e_c factor   and   grad_y = -t factor

A pixel whose sum s is NaN has NaN or infinity among its logits: nll and gradient are NaN, and 0
where the pixel is ignored.

A strip that does not lie in memory as 16 adjacent pixels of each class (a few last pixels,
channels_last, slices of a tensor) is copied to a buffer first, and its gradient from there.
"""

import math

import numpy as np
from numba import types

from seg_loss.cpu.columns import make_column
from seg_loss.cpu.compiler import inner
from seg_loss.cpu.exponential import log1p, scaled_exp
from seg_loss.cpu.records import ITEMSIZES, LANES
from seg_loss.cpu.region import add_terms, make_region
from seg_loss.cpu.rows import (
    fill,
    load_classes,
    load_rows,
    make_copies,
    store_rows,
)
from seg_loss.cpu.simd import (
    FLOATS,
    any_lane,
    at,
    count_lanes,
    equal,
    is_nan,
    less,
    load,
    mask_and,
    min_int,
    pointer,
    splat,
    store,
    sum_of_lanes,
    where,
    widened,
)
from seg_loss.cpu.tiles import FACTOR, MAP, PIXEL_WEIGHTS, put_target, terms_of_tile

_LOG2_E = math.log2(math.e)


@inner(types.void)
def load_weights(job, image, first, n, classes, weights):
    """Loads the pixel weights of a tile, times the weights of their classes; 1 if there are none.

    Ignored and invalid pixels weigh 0 if there are class weights.
    """
    if job.pixel_weight.address:
        load_rows(job.pixel_weight, image, first, n, weights, job.row_stride)
    elif job.class_weight:
        fill(weights, n, 1.0)
    if job.class_weight:
        class_weight = pointer(job.class_weight, np.float64)
        for i in range(n):
            weights[i] = weights[i] * np.float32(class_weight[classes[i]])


@inner(types.void)
def store_terms(job, image, first, n, terms):
    """Writes the terms of a tile to their tensor, which is contiguous and float32."""
    target = pointer(job.terms.address + 4 * (image * job.pixels + first), np.float32)
    for i in range(n):
        target[i] = terms[i]


@inner(FLOATS)
def log_of_sum(t, e_target, distance):
    """Returns ln(t + e), where e = exp(distance) belongs to the target class.

    The largest of all exponentials is 1. It is in t, or else `distance` is 0, so that ln(1 + t) is
    accurate to the last bits also where t is tiny.
    """
    one = splat(np.float32(1))
    return log1p(where(equal(distance, one - one), t, (t + e_target) - one))


def make_columns(*, num_classes, dtype_code, has_gradient, bypasses_caches, classes_adjacent):
    """Returns the kernel of float32, float16 or bfloat16 logits without label smoothing.

    Args:
        num_classes: the classes if a column fits the registers; None for any number.
        dtype_code: dtype of the logits and of the gradient.
        has_gradient: whether the gradient is written.
        bypasses_caches: whether it lies at whole cache lines.
        classes_adjacent: whether the classes of a pixel, 16 or more, are adjacent in memory.
    """
    column_in, column_out, column_clear = make_column(num_classes, dtype_code, bypasses_caches)
    size = ITEMSIZES[dtype_code]
    copy_in, copy_out = make_copies(size, classes_adjacent=classes_adjacent)

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        classes = pointer(scratch + job.classes, np.int32)
        weights = pointer(scratch + job.rows, np.float32)
        terms = pointer(scratch + job.factors, np.float32)
        offsets = pointer(scratch + job.extra, np.int64)
        buffer = scratch + job.extra + 8 * LANES
        exponentials = pointer(buffer + 4 * LANES * job.logits.num_classes, np.float32)
        zero = splat(np.float32(0))
        scale = splat(np.float32(job.inverse_temperature * _LOG2_E))
        grad_scale = job.grad_output * job.inverse_temperature / job.known_divisor
        gradient_scale = splat(np.float32(grad_scale))
        inverse_temperature = splat(np.float32(job.inverse_temperature))
        max_nll = splat(np.float32(job.max_nll))
        classes_end = splat(np.int32(job.logits.num_classes))
        total = widened(zero)
        logits = job.logits.address + size * image * job.logits.image_stride
        gradient = job.gradient.address + size * image * job.gradient.image_stride
        logits_step = size * job.logits.class_stride
        gradient_step = size * job.gradient.class_stride
        is_dense = job.is_dense != 0
        has_weights = job.pixel_weight.address != 0 or job.class_weight != 0
        fill(weights, min_int(job.tile, last - first), 1.0)
        for start in range(first, last, job.tile):
            n = min_int(job.tile, last - start)
            load_classes(job, image, start, n, classes)
            if has_weights:
                load_weights(job, image, start, n, classes, weights)
            for i in range(0, n, LANES):
                y = load(classes, i)
                is_direct = is_dense and i + LANES <= n
                lanes = min_int(LANES, n - i)
                source, target = logits + (start + i) * size, gradient + (start + i) * size
                source_step, target_step = logits_step, gradient_step
                if not is_direct:
                    copy_in(job.logits, image, start + i, lanes, offsets, buffer)
                    source = target = buffer
                    source_step = target_step = size * LANES
                t, distance, e = column_in(
                    source, source_step, job.logits.num_classes, y, scale, exponentials
                )
                e_target = scaled_exp(distance, scale)
                s = t + e_target
                valid = less(y, classes_end)
                is_non_finite = is_nan(s)
                if any_lane(is_non_finite):
                    # Ignored ones get the gradient 0: 0 times NaN would be NaN.
                    chunk.non_finite += count_lanes(mask_and(valid, is_non_finite))
                    e = column_clear(e, job.logits.num_classes, is_non_finite)
                weight = load(weights, i)
                # The gradient first: it frees the registers of the exponentials.
                if has_gradient:
                    factor = where(valid, weight * (gradient_scale / s), zero)
                    value = where(valid, -(t * factor), zero)
                    column_out(target, target_step, job.logits.num_classes, y, e, factor, value)
                    if not is_direct:
                        copy_out(job.gradient, image, start + i, lanes, offsets, buffer)
                distance = distance * inverse_temperature
                nll = log_of_sum(t, e_target, distance) - distance
                nll = where(less(max_nll, nll), max_nll, nll)
                term = where(valid, nll * weight, zero)
                total = total + widened(term)
                store(terms, i, term)
            if job.terms.address:
                store_terms(job, image, start, n, terms)
        add_terms(chunk, sum_of_lanes(total))

    return make_region(process_chunk, np.float32, True)


def make_tiles(*, element):
    """Returns the kernel of everything: label smoothing, float64, any layout."""
    element = getattr(np, element)

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        num_classes = job.logits.num_classes
        rows, stride = pointer(scratch + job.rows, element), job.row_stride
        classes = pointer(scratch + job.classes, np.int32)
        factor_row = at(rows, (num_classes + FACTOR) * stride)
        pixel_row = at(rows, (num_classes + PIXEL_WEIGHTS) * stride)
        scale = job.grad_output * job.inverse_temperature / job.known_divisor
        fill(pixel_row, job.tile, 1.0)
        for start in range(first, last, job.tile):
            n = min_int(job.tile, last - start)
            load_classes(job, image, start, n, classes)
            if job.pixel_weight.address:
                load_rows(job.pixel_weight, image, start, n, pixel_row, stride)
            load_rows(job.logits, image, start, n, rows, stride)
            terms_of_tile(job, n, classes, scale, rows, stride, chunk)
            if job.gradient.address:
                put_target(num_classes, n, classes, rows, stride)
                store_rows(job.gradient, image, start, n, rows, factor_row, stride)
            if job.terms.address:
                fill(factor_row, n, 1.0)
                map_row = at(rows, (num_classes + MAP) * stride)
                store_rows(job.terms, image, start, n, map_row, factor_row, stride)

    return make_region(process_chunk, element, True)
