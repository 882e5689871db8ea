"""The softmax and its gradient, in tiles."""

import numpy as np
from numba import types

from seg_loss.cpu.compiler import inner
from seg_loss.cpu.records import LANES
from seg_loss.cpu.region import make_region
from seg_loss.cpu.rows import load_rows, store_rows
from seg_loss.cpu.simd import at, broadcast, exp, load, maximum, min_int, pointer, store
from seg_loss.cpu.tiles import FACTOR


@inner(types.void)
def _exponentials(num_classes, rows, stride, i, sums):
    """Replaces the rows of a strip by exp(x_c - max) and writes their sum."""
    m = load(rows, i)
    for c in range(1, num_classes):
        m = maximum(load(rows, c * stride + i), m)
    s = broadcast(rows, 0.0)
    for c in range(num_classes):
        e = exp(load(rows, c * stride + i) - m)
        store(rows, c * stride + i, e)
        s = s + e
    store(sums, i, s)


def make_softmax(*, element):
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
            load_rows(job.logits, image, start, n, job.inverse_temperature, rows, stride)
            for i in range(0, n, LANES):
                _exponentials(num_classes, rows, stride, i, factor_row)
                store(factor_row, i, one / load(factor_row, i))
            store_rows(job.gradient, image, start, n, rows, factor_row, stride)

    return make_region(process_chunk, element, False)


def make_softmax_gradient(*, element):
    """Returns the kernel that writes p (g - sum_c g_c p_c) / temperature to the view `gradient`.

    g is the view `grad_output_view`; p is computed from the logits again.
    """
    element = getattr(np, element)

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        rows, stride = pointer(scratch + job.rows, element), job.row_stride
        grad_output_rows = pointer(scratch + job.extra, element)
        num_classes = job.logits.num_classes
        factor_row = at(rows, (num_classes + FACTOR) * stride)
        scale = broadcast(rows, job.inverse_temperature)
        for start in range(first, last, job.tile):
            n = min_int(job.tile, last - start)
            load_rows(job.logits, image, start, n, job.inverse_temperature, rows, stride)
            load_rows(job.grad_output_view, image, start, n, 1.0, grad_output_rows, stride)
            for i in range(0, n, LANES):
                _exponentials(num_classes, rows, stride, i, factor_row)
                s = load(factor_row, i)
                dot = broadcast(rows, 0.0)
                for c in range(num_classes):
                    dot = dot + load(grad_output_rows, c * stride + i) * load(rows, c * stride + i)
                mean = dot / s
                for c in range(num_classes):
                    e = load(rows, c * stride + i)
                    store(rows, c * stride + i, e * (load(grad_output_rows, c * stride + i) - mean))
                store(factor_row, i, scale / s)
            store_rows(job.gradient, image, start, n, rows, factor_row, stride)

    return make_region(process_chunk, element, False)
