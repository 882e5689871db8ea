"""The maps of `predict`: in tiles, for scores of full size and for upsampled ones.

`best_class` has a faster kernel for the prediction of upsampled scores alone.
"""

import numpy as np
from numba import types

from seg_loss.cpu.compiler import inner
from seg_loss.cpu.region import make_region
from seg_loss.cpu.rows import load_rows
from seg_loss.cpu.simd import at, min_int, pointer
from seg_loss.cpu.tiles import distribution_of_tile, write_maps
from seg_loss.cpu.upsampled import interpolate_tile, load_sources, offsets_by_phase

# Blocks of scratch memory, as in `upsampled`.
_UPPER, _LOWER = range(2)


def make_tiles(*, element):
    """Returns the kernel of scores as large as the maps; a chunk consists of pixels."""
    element = getattr(np, element)

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        rows, stride = pointer(scratch + job.rows, element), job.row_stride
        predicted = pointer(scratch + job.predicted, np.int32)
        offsets = pointer(scratch + job.offsets, np.int64)
        for start in range(first, last, job.tile):
            n = min_int(job.tile, last - start)
            load_rows(job.logits, image, start, n, rows, stride)
            distribution_of_tile(job, n, predicted, rows, stride)
            for i in range(n):
                offsets[i] = start + i
            write_maps(job, image, offsets, n, predicted, rows, stride)

    return make_region(process_chunk, element, False)


def make_upsampled(*, element):
    """Returns the kernel of upsampled scores; a chunk is a block of interval rows."""
    element = getattr(np, element)

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        grid, scores = job.grid, job.logits
        num_classes = scores.num_classes
        rows, stride = pointer(scratch + job.rows, element), job.row_stride
        predicted = pointer(scratch + job.predicted, np.int32)
        offsets = pointer(scratch + job.offsets, np.int64)
        sources = pointer(scratch + grid.sources, element)
        row_starts = pointer(grid.row_starts, np.int64)
        row_weights = pointer(grid.row_weights, np.float64)
        column_starts = pointer(grid.column_starts, np.int64)
        column_weights = pointer(grid.column_weights, element)
        block = num_classes * grid.source_stride
        upper, lower = at(sources, _UPPER * block), at(sources, _LOWER * block)
        load_sources(scores, image, first - 1, grid, upper)
        for interval_row in range(first, last):
            load_sources(scores, image, interval_row, grid, lower)
            for y in range(row_starts[interval_row], row_starts[interval_row + 1]):
                above, below = row_weights[y], row_weights[grid.num_rows + y]
                for interval in range(0, grid.source_columns + 1, grid.tile_intervals):
                    intervals = min_int(grid.tile_intervals, grid.source_columns + 1 - interval)
                    if column_starts[interval] == column_starts[interval + intervals]:
                        continue  # maps smaller than the scores leave intervals without a pixel
                    for phase in range(0, grid.num_phases, grid.tile_phases):
                        phases = min_int(grid.tile_phases, grid.num_phases - phase)
                        n = phases * intervals
                        interpolate_tile(
                            num_classes,
                            upper,
                            lower,
                            above,
                            below,
                            column_weights,
                            grid,
                            interval,
                            intervals,
                            phase,
                            phases,
                            rows,
                            stride,
                        )
                        distribution_of_tile(job, n, predicted, rows, stride)
                        offsets_by_phase(
                            offsets, y, grid, column_starts, interval, intervals, phase, phases
                        )
                        write_maps(job, image, offsets, n, predicted, rows, stride)
            upper, lower = lower, upper

    return make_region(process_chunk, element, False)
