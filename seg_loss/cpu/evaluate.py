"""The sums, counts and maps of `evaluate`, in tiles.

Floats are summed by chunk, in `job.chunk_tables`: the nll by class, then the confidence by bin.
Integers are counted by thread, in the thread's scratch memory: the confusion matrix, then the wrong
and the right pixels of each bin.
"""

import numpy as np
from numba import types

from seg_loss.cpu.compiler import inner
from seg_loss.cpu.records import NUM_BINS
from seg_loss.cpu.region import make_region
from seg_loss.cpu.rows import fill, load_classes, load_rows
from seg_loss.cpu.simd import at, min_int, pointer
from seg_loss.cpu.tiles import PIXEL_WEIGHTS, accumulate_tile, write_maps


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
                load_rows(job.pixel_weight, image, start, n, 1.0, pixel_row, stride)
            load_rows(job.logits, image, start, n, job.inverse_temperature, rows, stride)
            accumulate_tile(
                job, n, classes, predicted, rows, stride,  chunk, class_nll,
                at(class_nll, num_classes), confusion, bin_pixels,
            )  # fmt: skip
            for i in range(n):
                offsets[i] = start + i
            write_maps(job, image, offsets, n, predicted, rows, stride)

    return make_region(process_chunk, element, True)
