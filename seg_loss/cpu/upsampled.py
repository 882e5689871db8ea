"""The CPU kernels of upsampled scores: `tiles` whose logits are interpolated.

They process everything that `interval_columns`, which is faster, does not: `evaluate`, float64,
label smoothing, weights of 0, labels smaller than the scores.

Source pixels bound intervals on both axes, as `seg_loss.upsampling` says. A chunk is a block of
interval rows. For each interval row the scores of the two source rows around it are in scratch
memory, as rows of classes:

    upper, lower                     the scores, scaled; source j at j + 1, with zeros around
    upper_gradient, lower_gradient   their gradient; a source row is complete after the interval
                                     rows on both sides

A group of intervals is processed target row by target row. A tile holds its target pixels by phase:
lane `k * intervals + j` is the k-th target pixel of the j-th interval. So neighbouring lanes read
neighbouring sources, and a class needs only two vectors to interpolate `LANES` intervals:

    interpolate   left, right = the sources, combined vertically
                  row[k] = w0[k] left + w1[k] right                     for each phase k
    accumulate    left_k += w0[k] g[k]      right_k += w1[k] g[k]       g = row * factor

The second step is the transpose of the first. It sums in a fixed order and needs no scatter.
Between the two, `terms_of_tile` or `accumulate_tile` runs. An interval with fewer target pixels
than phases is filled with ignored ones.

Two blocks contribute to the gradient of the source row between them. Each writes its part to
`halo_rows`, which are added when all blocks are done.
"""

import numpy as np
from numba import types

from seg_loss.cpu.compiler import inner
from seg_loss.cpu.evaluate import chunk_table
from seg_loss.cpu.records import LANES, NUM_CORNERS, NUM_SOURCE_BLOCKS
from seg_loss.cpu.region import make_region
from seg_loss.cpu.rows import fill, load_classes, load_rows, store_rows
from seg_loss.cpu.simd import (
    at,
    broadcast,
    equal,
    fma,
    load,
    min_int,
    pointer,
    store,
    where,
)
from seg_loss.cpu.tiles import (
    FACTOR,
    LEFT_FACTOR,
    PIXEL_WEIGHTS,
    RIGHT_FACTOR,
    accumulate_tile,
    put_target,
    terms_of_tile,
    write_maps,
)

# Blocks of scratch memory, each of `num_classes` rows of sources, followed by one row of ones.
_UPPER, _LOWER, _UPPER_GRADIENT, _LOWER_GRADIENT = range(NUM_SOURCE_BLOCKS)
# The gradient that the pixels of an interval contribute to the sources at its corners.
_UPPER_LEFT, _UPPER_RIGHT, _LOWER_LEFT, _LOWER_RIGHT = range(NUM_CORNERS)
SUM_ROWS = 64  # target rows summed in the corners before they are added to the sources


# -- between source and target pixels --------------------------------------------------------------


@inner(types.void)
def load_sources(scores, image, source_row, grid, sources):
    """Loads a source row of all classes, or zeros if it does not exist."""
    num_classes, stride = scores.num_classes, grid.source_stride
    if 0 <= source_row < grid.source_rows:
        first = source_row * grid.source_columns
        load_rows(scores, image, first, grid.source_columns, at(sources, 1), stride)
    else:
        fill(sources, num_classes * stride, 0.0)


@inner(lambda weight, value, *others: value)
def weighted(weight, value, zero, skips_zero_weights):
    """Returns weight * value; if `skips_zero_weights`, 0 for a weight of 0 and any value."""
    product = weight * value
    if skips_zero_weights:
        return where(equal(weight, zero), zero, product)
    return product


@inner(types.void)
def interpolate_tile(
    num_classes,
    upper,
    lower,
    upper_weight,
    lower_weight,
    weights,
    grid,
    first_interval,
    intervals,
    first_phase,
    phases,
    rows,
    stride,
):
    """Writes the logits of a tile to `rows`.

    `weights` are two blocks, of left and right sources, [phases, intervals]. Lanes behind the last
    interval are overwritten by the next phase.
    """
    skips_zero_weights = grid.has_zero_weights
    block = grid.num_phases * grid.phase_stride
    zero = broadcast(rows, 0.0)
    above, below = broadcast(rows, upper_weight), broadcast(rows, lower_weight)
    last = (intervals - 1) // LANES * LANES
    for c in range(num_classes):
        up = at(upper, c * grid.source_stride + first_interval)
        low = at(lower, c * grid.source_stride + first_interval)
        row = at(rows, c * stride)
        # From the last intervals to the first, so that surplus lanes are overwritten.
        for back in range(0, intervals, LANES):
            j = last - back
            if skips_zero_weights:
                left = weighted(above, load(up, j), zero, skips_zero_weights)
                left = left + weighted(below, load(low, j), zero, skips_zero_weights)
                right = weighted(above, load(up, j + 1), zero, skips_zero_weights)
                right = right + weighted(below, load(low, j + 1), zero, skips_zero_weights)
            else:
                left = fma(above, load(up, j), below * load(low, j))
                right = fma(above, load(up, j + 1), below * load(low, j + 1))
            for k in range(phases):
                offset = (first_phase + k) * grid.phase_stride + first_interval + j
                from_left, from_right = load(weights, offset), load(weights, block + offset)
                if skips_zero_weights:
                    x = weighted(from_left, left, zero, skips_zero_weights) + weighted(
                        from_right, right, zero, skips_zero_weights
                    )
                else:
                    x = fma(from_left, left, from_right * right)
                store(row, k * intervals + j, x)


@inner(types.void)
def _accumulate_corners(
    num_classes,
    rows,
    stride,
    upper_weight,
    lower_weight,
    weights,
    grid,
    first_interval,
    intervals,
    first_phase,
    phases,
    corners,
    corner_stride,
):
    """Adds the gradient of a tile, rows times the row `FACTOR`, to the corners of its intervals."""
    block = grid.num_phases * grid.phase_stride
    zero = broadcast(rows, 0.0)
    above, below = broadcast(rows, upper_weight), broadcast(rows, lower_weight)
    size = num_classes * corner_stride
    factors = at(rows, (num_classes + FACTOR) * stride)
    lefts, rights = (
        at(rows, (num_classes + LEFT_FACTOR) * stride),
        at(rows, (num_classes + RIGHT_FACTOR) * stride),
    )
    for k in range(phases):
        for j in range(0, intervals, LANES):
            offset = (first_phase + k) * grid.phase_stride + first_interval + j
            factor = load(factors, k * intervals + j)
            store(lefts, k * intervals + j, load(weights, offset) * factor)
            store(rights, k * intervals + j, load(weights, block + offset) * factor)
    for c in range(num_classes):
        row = at(rows, c * stride)
        corner = at(corners, c * corner_stride)
        for j in range(0, intervals, LANES):
            left = right = zero
            for k in range(phases):
                e = load(row, k * intervals + j)
                left = fma(load(lefts, k * intervals + j), e, left)
                right = fma(load(rights, k * intervals + j), e, right)
            store(corner, j, fma(above, left, load(corner, j)))
            store(corner, size + j, fma(above, right, load(corner, size + j)))
            store(corner, 2 * size + j, fma(below, left, load(corner, 2 * size + j)))
            store(corner, 3 * size + j, fma(below, right, load(corner, 3 * size + j)))


@inner(types.void)
def _add_corners_to_sources(
    num_classes, corners, corner_stride, intervals, first_interval, upper, lower, stride
):
    """Adds the corners of a group to its sources: interval j lies between sources j and j + 1."""
    size = num_classes * corner_stride
    for c in range(num_classes):
        up, low = at(upper, c * stride + first_interval), at(lower, c * stride + first_interval)
        corner = at(corners, c * corner_stride)
        for j in range(intervals):
            up[j] += corner[j]
            low[j] += corner[2 * size + j]
        for j in range(intervals):
            up[j + 1] += corner[size + j]
            low[j + 1] += corner[3 * size + j]


@inner(types.void)
def _arrange_by_phase(
    source, target, starts, first_interval, intervals, first_phase, phases, fill_value
):
    """Copies values from pixel order to lanes by phase; `fill_value` where there is no pixel."""
    first = starts[first_interval]
    for j in range(intervals):
        start = starts[first_interval + j]
        count = starts[first_interval + j + 1] - start
        for k in range(phases):
            phase = first_phase + k
            target[k * intervals + j] = (
                source[start - first + phase] if phase < count else fill_value
            )
    n = phases * intervals
    for i in range(n, n + -n % LANES):
        target[i] = fill_value


@inner(types.void)
def _load_pixels(job, image, y, starts, first_interval, intervals, pixel_classes, pixel_weights):
    """Loads classes, and pixel weights if there are any, of some intervals of target row `y`."""
    first = starts[first_interval]
    start = y * job.grid.num_columns + first
    n = starts[first_interval + intervals] - first
    load_classes(job, image, start, n, pixel_classes)
    if job.pixel_weight.address:
        load_rows(job.pixel_weight, image, start, n, pixel_weights, n)


@inner(types.void)
def _load_tile(
    num_classes,
    pixel_classes,
    pixel_weights,
    is_weighted,
    upper,
    lower,
    upper_weight,
    lower_weight,
    starts,
    weights,
    grid,
    first_interval,
    intervals,
    first_phase,
    phases,
    classes,
    rows,
    stride,
):
    """Prepares a tile for `terms_of_tile`: logits, classes, weights (1 unless `is_weighted`)."""
    _arrange_by_phase(
        pixel_classes, classes, starts, first_interval, intervals, first_phase, phases, num_classes
    )
    if is_weighted:
        pixel_row = at(rows, (num_classes + PIXEL_WEIGHTS) * stride)
        _arrange_by_phase(
            pixel_weights, pixel_row, starts, first_interval, intervals, first_phase, phases, 1.0
        )
    interpolate_tile(
        num_classes,
        upper,
        lower,
        upper_weight,
        lower_weight,
        weights,
        grid,
        first_interval,
        intervals,
        first_phase,
        phases,
        rows,
        stride,
    )


# -- the loss and its gradient ---------------------------------------------------------------------


def make_loss(*, element):
    """Returns the kernel of the loss and, if wanted, its gradient.

    A chunk is a block of interval rows [first, last). The gradient of source rows `first` to
    `last` - 2 is written to its place. `halo_rows` [N, blocks, 2, C, sources] receives the parts of
    source rows `first` - 1 and `last` - 1.
    """
    element = getattr(np, element)
    itemsize = np.dtype(element).itemsize

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        grid, scores, gradient = job.grid, job.logits, job.gradient
        num_classes = scores.num_classes
        rows, stride = pointer(scratch + job.rows, element), job.row_stride
        classes = pointer(scratch + job.classes, np.int32)
        pixel_classes = pointer(scratch + grid.pixel_classes, np.int32)
        pixel_weights = pointer(scratch + grid.pixel_weights, element)
        sources = pointer(scratch + grid.sources, element)
        corners = pointer(scratch + grid.corners, element)
        row_starts = pointer(grid.row_starts, np.int64)
        row_weights = pointer(grid.row_weights, np.float64)
        column_starts = pointer(grid.column_starts, np.int64)
        column_weights = pointer(grid.column_weights, element)
        source_stride, source_columns = grid.source_stride, grid.source_columns
        block = num_classes * source_stride
        corner_stride = grid.tile_intervals
        halo_size = num_classes * source_columns
        k = image * job.chunks_per_image + first // job.chunk_units
        halo_rows = pointer(grid.halo_rows + itemsize * k * 2 * halo_size, element)
        upper, lower = at(sources, _UPPER * block), at(sources, _LOWER * block)
        upper_gradient = at(sources, _UPPER_GRADIENT * block)
        lower_gradient = at(sources, _LOWER_GRADIENT * block)
        ones = at(sources, NUM_SOURCE_BLOCKS * block)
        fill(ones, source_stride, 1.0)
        is_weighted = job.pixel_weight.address != 0
        scale = job.grad_output * job.inverse_temperature / job.known_divisor
        fill(at(rows, (num_classes + PIXEL_WEIGHTS) * stride), stride, 1.0)
        fill(upper_gradient, block, 0.0)
        fill(pixel_weights, grid.tile_intervals * grid.num_phases, 1.0)
        load_sources(scores, image, first - 1, grid, upper)
        for interval_row in range(first, last):
            load_sources(scores, image, interval_row, grid, lower)
            fill(lower_gradient, block, 0.0)
            for interval in range(0, source_columns + 1, grid.tile_intervals):
                intervals = min_int(grid.tile_intervals, source_columns + 1 - interval)
                if column_starts[interval] == column_starts[interval + intervals]:
                    continue  # labels smaller than the scores leave intervals without a pixel
                fill(corners, NUM_CORNERS * num_classes * corner_stride, 0.0)
                for y in range(row_starts[interval_row], row_starts[interval_row + 1]):
                    above, below = row_weights[y], row_weights[grid.num_rows + y]
                    _load_pixels(
                        job,
                        image,
                        y,
                        column_starts,
                        interval,
                        intervals,
                        pixel_classes,
                        pixel_weights,
                    )
                    for phase in range(0, grid.num_phases, grid.tile_phases):
                        phases = min_int(grid.tile_phases, grid.num_phases - phase)
                        n = phases * intervals
                        _load_tile(
                            num_classes,
                            pixel_classes,
                            pixel_weights,
                            is_weighted,
                            upper,
                            lower,
                            above,
                            below,
                            column_starts,
                            column_weights,
                            grid,
                            interval,
                            intervals,
                            phase,
                            phases,
                            classes,
                            rows,
                            stride,
                        )
                        terms_of_tile(job, n, classes, scale, rows, stride, chunk)
                        if gradient.address:
                            put_target(num_classes, n, classes, rows, stride)
                            _accumulate_corners(
                                num_classes,
                                rows,
                                stride,
                                above,
                                below,
                                column_weights,
                                grid,
                                interval,
                                intervals,
                                phase,
                                phases,
                                corners,
                                corner_stride,
                            )
                    # Sum in two stages: adding many terms one by one would lose their last bits.
                    is_last = y == row_starts[interval_row + 1] - 1
                    if gradient.address and (is_last or (y + 1) % SUM_ROWS == 0):
                        _add_corners_to_sources(
                            num_classes,
                            corners,
                            corner_stride,
                            intervals,
                            interval,
                            upper_gradient,
                            lower_gradient,
                            source_stride,
                        )
                        fill(corners, NUM_CORNERS * num_classes * corner_stride, 0.0)
            if gradient.address:
                if interval_row == first:
                    write_halo_row(
                        num_classes, upper_gradient, source_stride, source_columns, halo_rows
                    )
                else:
                    start = (interval_row - 1) * source_columns
                    store_rows(
                        gradient,
                        image,
                        start,
                        source_columns,
                        at(upper_gradient, 1),
                        ones,
                        source_stride,
                    )
            upper, lower = lower, upper
            upper_gradient, lower_gradient = lower_gradient, upper_gradient
        if gradient.address:
            halo_row = at(halo_rows, halo_size)
            write_halo_row(num_classes, upper_gradient, source_stride, source_columns, halo_row)

    return make_region(process_chunk, element, True, make_add_halo_rows(element))


def make_add_halo_rows(element):
    """Returns what writes the gradient of the source rows between blocks."""
    itemsize = np.dtype(element).itemsize

    @inner(types.void)
    def add_halo_rows(job, scratch):
        grid, columns = job.grid, job.grid.source_columns
        if not job.gradient.address:
            return
        size = job.logits.num_classes * columns
        # The thread that calls this has processed a block, and so filled its row of ones.
        sources = pointer(scratch + grid.sources, element)
        ones = at(sources, NUM_SOURCE_BLOCKS * job.logits.num_classes * grid.source_stride)
        for image in range(job.num_images):
            for k in range(1, job.chunks_per_image):
                block = 2 * (image * job.chunks_per_image + k)
                before = pointer(grid.halo_rows + itemsize * (block - 1) * size, element)
                behind = pointer(grid.halo_rows + itemsize * block * size, element)
                whole = size - size % LANES
                for i in range(0, whole, LANES):
                    store(before, i, load(before, i) + load(behind, i))
                for i in range(whole, size):
                    before[i] += behind[i]
                row = job.chunk_units * k - 1
                store_rows(job.gradient, image, row * columns, columns, before, ones, columns)

    return add_halo_rows


@inner(types.void)
def write_halo_row(num_classes, gradient_rows, source_stride, source_columns, halo_row):
    for c in range(num_classes):
        for j in range(source_columns):
            halo_row[c * source_columns + j] = gradient_rows[c * source_stride + j + 1]


# -- the sums and maps of `evaluate` ---------------------------------------------------------------


@inner(types.void)
def offsets_by_phase(offsets, y, grid, starts, first_interval, intervals, first_phase, phases):
    """Writes the offset of each pixel of a tile in the image; -1 where an interval has no pixel."""
    for j in range(intervals):
        start = starts[first_interval + j]
        count = starts[first_interval + j + 1] - start
        for k in range(phases):
            phase = first_phase + k
            offset = y * grid.num_columns + start + phase
            offsets[k * intervals + j] = offset if phase < count else -1


def make_evaluate(*, element):
    """Returns the kernel of `evaluate`; a chunk is a block of interval rows."""
    element = getattr(np, element)

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        grid, scores = job.grid, job.logits
        num_classes = scores.num_classes
        rows, stride = pointer(scratch + job.rows, element), job.row_stride
        classes = pointer(scratch + job.classes, np.int32)
        predicted = pointer(scratch + job.predicted, np.int32)
        offsets = pointer(scratch + job.offsets, np.int64)
        confusion = pointer(scratch + job.tables, np.int64)
        bin_pixels = at(confusion, num_classes * num_classes)
        class_nll = chunk_table(job, image, first)
        pixel_classes = pointer(scratch + grid.pixel_classes, np.int32)
        pixel_weights = pointer(scratch + grid.pixel_weights, element)
        sources = pointer(scratch + grid.sources, element)
        row_starts = pointer(grid.row_starts, np.int64)
        row_weights = pointer(grid.row_weights, np.float64)
        column_starts = pointer(grid.column_starts, np.int64)
        column_weights = pointer(grid.column_weights, element)
        block = num_classes * grid.source_stride
        upper, lower = at(sources, _UPPER * block), at(sources, _LOWER * block)
        is_weighted = job.pixel_weight.address != 0
        fill(at(rows, (num_classes + PIXEL_WEIGHTS) * stride), stride, 1.0)
        fill(pixel_weights, grid.tile_intervals * grid.num_phases, 1.0)
        load_sources(scores, image, first - 1, grid, upper)
        for interval_row in range(first, last):
            load_sources(scores, image, interval_row, grid, lower)
            for y in range(row_starts[interval_row], row_starts[interval_row + 1]):
                above, below = row_weights[y], row_weights[grid.num_rows + y]
                for interval in range(0, grid.source_columns + 1, grid.tile_intervals):
                    intervals = min_int(grid.tile_intervals, grid.source_columns + 1 - interval)
                    if column_starts[interval] == column_starts[interval + intervals]:
                        continue
                    _load_pixels(
                        job,
                        image,
                        y,
                        column_starts,
                        interval,
                        intervals,
                        pixel_classes,
                        pixel_weights,
                    )
                    for phase in range(0, grid.num_phases, grid.tile_phases):
                        phases = min_int(grid.tile_phases, grid.num_phases - phase)
                        n = phases * intervals
                        _load_tile(
                            num_classes,
                            pixel_classes,
                            pixel_weights,
                            is_weighted,
                            upper,
                            lower,
                            above,
                            below,
                            column_starts,
                            column_weights,
                            grid,
                            interval,
                            intervals,
                            phase,
                            phases,
                            classes,
                            rows,
                            stride,
                        )
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
                        offsets_by_phase(
                            offsets, y, grid, column_starts, interval, intervals, phase, phases
                        )
                        write_maps(job, image, offsets, n, predicted, rows, stride)
            upper, lower = lower, upper

    return make_region(process_chunk, element, True)
