"""The softmax and its gradient: by columns, or in tiles.

A column has no target class here, so that `column_in` sums the exponentials of all classes.
"""

import math

import numpy as np
from numba import types

from seg_loss.cpu.columns import make_column, make_gradient_of_softmax
from seg_loss.cpu.compiler import inner
from seg_loss.cpu.exponential import exp
from seg_loss.cpu.records import ITEMSIZES, LANES
from seg_loss.cpu.region import make_region
from seg_loss.cpu.rows import fill, load_rows, make_copies, store_rows
from seg_loss.cpu.simd import (
    at,
    broadcast,
    equal,
    less,
    load,
    maximum,
    min_int,
    pointer,
    splat,
    store,
    where,
)
from seg_loss.cpu.sums import SUM_BLOCK, add_block
from seg_loss.cpu.tiles import FACTOR, PIXEL_WEIGHTS

_LOG2_E = math.log2(math.e)


@inner(types.void)
def _exponentials(job, rows, stride, i, sums):
    """Replaces the rows of a strip by exp((x_c - max) / T) and writes their sum."""
    num_classes = job.logits.num_classes
    inverse_temperature = broadcast(rows, job.inverse_temperature)
    m = load(rows, i)
    for c in range(1, num_classes):
        m = maximum(load(rows, c * stride + i), m)
    zero = broadcast(rows, 0.0)
    high = low = zero
    for first in range(0, num_classes, SUM_BLOCK):
        s = zero
        for c in range(first, min_int(first + SUM_BLOCK, num_classes)):
            e = exp((load(rows, c * stride + i) - m) * inverse_temperature)
            store(rows, c * stride + i, e)
            s = s + e
        high, low = add_block(high, low, s)
    store(sums, i, high + low)


def make_softmax_tiles(*, element):
    """Returns the kernel that writes softmax(logits / temperature) to the view `gradient`."""
    element = getattr(np, element)

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        rows, stride = pointer(scratch + job.rows, element), job.row_stride
        num_classes = job.logits.num_classes
        factor_row = at(rows, (num_classes + FACTOR) * stride)
        one = broadcast(rows, 1.0)
        for start in range(first, last, job.tile):
            n = min_int(job.tile, last - start)
            load_rows(job.logits, image, start, n, rows, stride)
            for i in range(0, n, LANES):
                _exponentials(job, rows, stride, i, factor_row)
                store(factor_row, i, one / load(factor_row, i))
            store_rows(job.gradient, image, start, n, rows, factor_row, stride)

    return make_region(process_chunk, element, False)


def make_gradient_tiles(*, element):
    """Returns the kernel that writes w p (g - sum_c g_c p_c) / temperature to the view `gradient`.

    g is the view `grad_output_view`; p is computed from the logits again. w is the view
    `pixel_weight`, 1 without one. Where w is 0 the result is 0, whatever the logits are.
    """
    element = getattr(np, element)

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        rows, stride = pointer(scratch + job.rows, element), job.row_stride
        grad_output_rows = pointer(scratch + job.extra, element)
        num_classes = job.logits.num_classes
        factor_row = at(rows, (num_classes + FACTOR) * stride)
        pixel_row = at(rows, (num_classes + PIXEL_WEIGHTS) * stride)
        scale, zero = broadcast(rows, job.inverse_temperature), broadcast(rows, 0.0)
        fill(pixel_row, job.tile, 1.0)
        for start in range(first, last, job.tile):
            n = min_int(job.tile, last - start)
            if job.pixel_weight.address:
                load_rows(job.pixel_weight, image, start, n, pixel_row, stride)
            load_rows(job.logits, image, start, n, rows, stride)
            load_rows(job.grad_output_view, image, start, n, grad_output_rows, stride)
            for i in range(0, n, LANES):
                _exponentials(job, rows, stride, i, factor_row)
                s = load(factor_row, i)
                high = low = zero
                for block in range(0, num_classes, SUM_BLOCK):
                    dot = zero
                    for c in range(block, min_int(block + SUM_BLOCK, num_classes)):
                        e = load(rows, c * stride + i)
                        dot = dot + load(grad_output_rows, c * stride + i) * e
                    high, low = add_block(high, low, dot)
                mean = (high + low) / s
                weight = load(pixel_row, i)
                is_zero = equal(weight, zero)
                for c in range(num_classes):
                    e = load(rows, c * stride + i)
                    value = e * (load(grad_output_rows, c * stride + i) - mean)
                    store(rows, c * stride + i, where(is_zero, zero, value))
                store(factor_row, i, where(is_zero, zero, weight * scale / s))
            store_rows(job.gradient, image, start, n, rows, factor_row, stride)

    return make_region(process_chunk, element, False)


def make_softmax_columns(*, num_classes, dtype_code, bypasses_caches):
    """Returns the same as `make_softmax_tiles`, for the logits of `cross_entropy.make_columns`."""
    column_in, column_out, _ = make_column(num_classes, dtype_code, bypasses_caches)
    size = ITEMSIZES[dtype_code]
    copy_in, copy_out = make_copies(size)

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        num_classes = job.logits.num_classes
        offsets = pointer(scratch + job.extra, np.int64)
        buffer = scratch + job.extra + 8 * LANES
        exponentials = pointer(buffer + 4 * LANES * num_classes, np.float32)
        scale = splat(np.float32(job.inverse_temperature * _LOG2_E))
        one, no_target = splat(np.float32(1)), splat(np.int32(-1))
        for i in range(first, last, LANES):
            lanes = min_int(LANES, last - i)
            source, target = job.logits.address + i * size, job.gradient.address + i * size
            step, target_step = size * job.logits.class_stride, size * job.gradient.class_stride
            is_direct = job.is_dense != 0 and lanes == LANES
            if not is_direct:
                copy_in(job.logits, image, i, lanes, offsets, buffer)
                source = target = buffer
                step = target_step = size * LANES
            s, _, e = column_in(source, step, num_classes, no_target, scale, exponentials)
            column_out(target, target_step, num_classes, no_target, e, one / s, one)
            if not is_direct:
                copy_out(job.gradient, image, i, lanes, offsets, buffer)

    return make_region(process_chunk, np.float32, False)


def make_gradient_columns(*, num_classes, dtype_code, bypasses_caches):
    """Returns the same as `make_gradient_tiles`, for the logits of `cross_entropy.make_columns`."""
    column_in, *_ = make_column(num_classes, dtype_code, bypasses_caches)
    gradient_in, gradient_out = make_gradient_of_softmax(num_classes, dtype_code, bypasses_caches)
    size = ITEMSIZES[dtype_code]
    copy_in, copy_out = make_copies(size)

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        num_classes = job.logits.num_classes
        offsets = pointer(scratch + job.extra, np.int64)
        buffer = scratch + job.extra + 8 * LANES
        grad_buffer = buffer + 4 * LANES * num_classes
        exponentials = pointer(grad_buffer + 4 * LANES * num_classes, np.float32)
        weights = pointer(scratch + job.rows, np.float32)
        scale = splat(np.float32(job.inverse_temperature * _LOG2_E))
        inverse_temperature = splat(np.float32(job.inverse_temperature))
        zero = splat(np.float32(0))
        no_target = splat(np.int32(-1))
        for i in range(first, last, LANES):
            lanes = min_int(LANES, last - i)
            source, target = job.logits.address + i * size, job.gradient.address + i * size
            grad_output = job.grad_output_view.address + i * size
            step, target_step = size * job.logits.class_stride, size * job.gradient.class_stride
            grad_step = size * job.grad_output_view.class_stride
            is_direct = job.is_dense != 0 and lanes == LANES
            if not is_direct:
                copy_in(job.logits, image, i, lanes, offsets, buffer)
                copy_in(job.grad_output_view, image, i, lanes, offsets, grad_buffer)
                source = target = buffer
                grad_output = grad_buffer
                step = target_step = grad_step = size * LANES
            s, _, e = column_in(source, step, num_classes, no_target, scale, exponentials)
            factor = inverse_temperature / s
            is_zero = less(zero, zero)
            if job.pixel_weight.address:
                load_rows(job.pixel_weight, image, i, lanes, weights, LANES)
                weight = load(weights, 0)
                is_zero = equal(weight, zero)
                factor = weight * factor
            mean = gradient_in(grad_output, grad_step, num_classes, e) / s
            gradient_out(
                grad_output, grad_step, target, target_step, num_classes, e, mean, factor, is_zero
            )
            if not is_direct:
                copy_out(job.gradient, image, i, lanes, offsets, buffer)

    return make_region(process_chunk, np.float32, False)
