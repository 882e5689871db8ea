"""From strided memory of any dtype to rows of a scratch buffer, and back.

A row holds the pixels of a tile for one class. Rows lie a cache line further apart than a tile is
long, so that planes a power of two apart do not evict each other. Rows are float32, and float64 for
float64 logits.
"""

import numpy as np
from numba import types

from seg_loss.cpu.compiler import inner
from seg_loss.cpu.dtypes import (
    load_float,
    load_integer,
    load_integers,
    load_row,
    store_float,
    store_row,
    transpose_in,
    transpose_out,
)
from seg_loss.cpu.records import ITEMSIZES, LANES
from seg_loss.cpu.simd import (
    at,
    broadcast,
    equal,
    in_range,
    lane,
    min_int,
    narrowed,
    pointer,
    splat,
    store,
    where,
)


@inner(types.UniTuple(types.int64, 2))
def run_at(view, first, count):
    """Returns the offset of pixel `first` and how many of `count` pixels follow it in its row."""
    column = first % view.num_columns
    row = first // view.num_columns
    offset = (
        (row // view.num_rows) * view.slice_stride
        + (row % view.num_rows) * view.row_stride
        + column * view.column_stride
    )
    return offset, min_int(count, view.num_columns - column)


@inner(types.void)
def load_rows(view, image, first, n, rows, stride):
    """Loads pixels [first, first + n): class c to row c; a map has one row."""
    dtype_code, column_stride = view.dtype_code, view.column_stride
    size = ITEMSIZES[dtype_code]
    step = size * column_stride
    done = 0
    while done < n:
        offset, run = run_at(view, first + done, n - done)
        address = view.address + size * (offset + image * view.image_stride)
        whole = run - run % LANES if column_stride == 1 else 0
        for c in range(view.num_classes):
            row = at(rows, c * stride + done)
            load_row(row, address, dtype_code, whole)
            for i in range(whole, run):
                row[i] = load_float(rows, address + i * step, dtype_code)
            address += size * view.class_stride
        done += run


@inner(types.void)
def store_rows(view, image, first, n, rows, factors, stride):
    """Stores rows times `factors` to pixels [first, first + n), the reverse of `load_rows`.

    Whole cache lines are written by stores that bypass the caches, so that memory is not read
    first.
    """
    dtype_code, column_stride = view.dtype_code, view.column_stride
    size = ITEMSIZES[dtype_code]
    step = size * column_stride
    done = 0
    while done < n:
        offset, run = run_at(view, first + done, n - done)
        address = view.address + size * (offset + image * view.image_stride)
        for c in range(view.num_classes):
            row = at(rows, c * stride + done)
            factor = at(factors, done)
            # A tensor at an address that is no multiple of its element size has no aligned vector.
            is_aligned = address % size == 0
            start = min_int(run, (-address % (LANES * size)) // size) if is_aligned else 0
            whole = start + (run - start) // LANES * LANES
            if column_stride != 1:
                start = whole = 0
            for i in range(start):
                store_float(address + i * step, dtype_code, row[i] * factor[i])
            store_row(address, dtype_code, is_aligned, row, factor, start, whole)
            for i in range(whole, run):
                store_float(address + i * step, dtype_code, row[i] * factor[i])
            address += size * view.class_stride
        done += run


@inner(types.void)
def load_classes(job, image, first, n, classes):
    """Loads the classes of pixels [first, first + n): C where ignored, C + 1 where invalid.

    The lanes behind the last pixel count as ignored.
    """
    view, num_classes = job.labels, job.logits.num_classes
    dtype_code, column_stride = view.dtype_code, view.column_stride
    size = ITEMSIZES[dtype_code]
    step = size * column_stride
    ignored, num_ignored = pointer(job.ignored, np.int64), job.num_ignored
    dummy, invalid = splat(np.int64(num_classes)), splat(np.int64(num_classes + 1))
    done = 0
    while done < n:
        offset, run = run_at(view, first + done, n - done)
        address = view.address + size * (offset + image * view.image_stride)
        whole = run - run % LANES if column_stride == 1 else 0
        i = 0
        while i < run:
            is_whole = i < whole
            if is_whole:
                label = load_integers(address + i * size, dtype_code)
            else:
                label = splat(load_integer(address + i * step, dtype_code))
            index = where(in_range(label, num_classes), label, invalid)
            for k in range(num_ignored):
                index = where(equal(label, splat(ignored[k])), dummy, index)
            if is_whole:
                store(classes, done + i, narrowed(index))
                i += LANES
            else:
                classes[done + i] = np.int32(lane(index, 0))
                i += 1
        done += run
    for i in range(n, n + -n % LANES):
        classes[i] = num_classes


@inner(types.void)
def fill(row, n, value):
    """Writes `value` to elements [0, n), rounded up to whole vectors."""
    for i in range(0, n, LANES):
        store(row, i, broadcast(row, value))


@inner(types.void)
def strip_offsets(view, image, first, n, offsets):
    """Writes the offsets of `n` pixels from pixel `first` on, in elements."""
    done = 0
    while done < n:
        offset, run = run_at(view, first + done, n - done)
        for i in range(run):
            offsets[done + i] = image * view.image_stride + offset + i * view.column_stride
        done += run


def make_copies(size, *, classes_adjacent=False):
    """Returns the copies of strips to and from a buffer [C, 16] of the same dtype.

    Args:
        size: bytes of an element, 4 or 2.
        classes_adjacent: whether the classes of a pixel, LANES or more, are adjacent.

    Returns:
        `copy_in` and `copy_out`, functions of (view, image, first, n, offsets, buffer) for `n`
        pixels from `first` on. `copy_in` repeats the last pixel: a lane without a pixel must hold
        numbers that no other strip has left.
    """
    dtype = np.int32 if size == 4 else np.int16

    @inner(types.void)
    def copy_in(view, image, first, n, offsets, buffer):
        strip_offsets(view, image, first, n, offsets)
        for i in range(n, LANES):
            offsets[i] = offsets[n - 1]
        source, target = pointer(view.address, dtype), pointer(buffer, dtype)
        for c in range(view.num_classes):
            for i in range(LANES):
                target[c * LANES + i] = source[offsets[i] + c * view.class_stride]

    @inner(types.void)
    def copy_out(view, image, first, n, offsets, buffer):
        strip_offsets(view, image, first, n, offsets)
        target, source = pointer(view.address, dtype), pointer(buffer, dtype)
        for c in range(view.num_classes):
            for i in range(n):
                target[offsets[i] + c * view.class_stride] = source[c * LANES + i]

    if not classes_adjacent:
        return copy_in, copy_out
    classes_in, classes_out = make_transposes(size)

    @inner(types.void)
    def transpose_strip_in(view, image, first, n, offsets, buffer):
        strip_offsets(view, image, first, n, offsets)
        for i in range(n, LANES):
            offsets[i] = offsets[n - 1]
        classes_in(view, offsets, buffer, size * LANES)

    @inner(types.void)
    def transpose_strip_out(view, image, first, n, offsets, buffer):
        if n < LANES:
            copy_out(view, image, first, n, offsets, buffer)
        else:
            strip_offsets(view, image, first, n, offsets)
            classes_out(buffer, size * LANES, view, offsets)

    return transpose_strip_in, transpose_strip_out


def make_transposes(size):
    """Returns the copies of 16 pixels at `offsets`, whose classes are adjacent, LANES or more.

    They go to vectors, one for each class, that lie `step` bytes apart, and back.
    """

    @inner(types.void)
    def classes_in(view, offsets, target, step):
        for start in range(0, view.num_classes, LANES):
            c = min_int(start, view.num_classes - LANES)  # the last block overlaps another one
            transpose_in(size, view.address + c * size, offsets, target + c * step, step)

    @inner(types.void)
    def classes_out(source, step, view, offsets):
        for start in range(0, view.num_classes, LANES):
            c = min_int(start, view.num_classes - LANES)
            transpose_out(size, source + c * step, step, view.address + c * size, offsets)

    return classes_in, classes_out
