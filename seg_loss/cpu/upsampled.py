"""The CPU kernels of upsampled scores: tiles of `kernels` whose logits are interpolated.

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
`halo_rows`.
"""

from typing import NamedTuple

from seg_loss.cpu.cache import kernel
from seg_loss.cpu.kernels import (
    ADDRESS,
    FACTOR,
    GRADIENT,
    INVERSE_TEMPERATURE,
    LABELS,
    LEFT_FACTOR,
    LOGITS,
    NUM_CLASSES,
    PIXEL_WEIGHT,
    PIXEL_WEIGHTS,
    RIGHT_FACTOR,
    accumulate_tile,
    add_chunk_sums,
    fill,
    inner,
    load_classes,
    load_rows,
    put_target,
    store_rows,
    terms_of_tile,
    write_maps,
)
from seg_loss.cpu.simd import (
    LANES,
    at,
    broadcast,
    equal,
    fma,
    load,
    memory,
    min_int,
    store,
    where,
    widened,
)


class Grid(NamedTuple):
    """The sizes of an upsampling.

    A tile is at most `tile_intervals` by `tile_phases`. `source_stride` and `phase_stride` are the
    elements from one class's sources, and from one phase's weights, to the next.
    """

    num_rows: int
    num_columns: int
    source_rows: int
    source_columns: int
    num_phases: int
    tile_intervals: int
    tile_phases: int
    source_stride: int
    phase_stride: int
    has_zero_weights: int


(
    NUM_ROWS,
    NUM_COLUMNS,
    SOURCE_ROWS,
    SOURCE_COLUMNS,
    NUM_PHASES,
    TILE_INTERVALS,
    TILE_PHASES,
    SOURCE_STRIDE,
    PHASE_STRIDE,
    HAS_ZERO_WEIGHTS,
) = range(10)
# Blocks of scratch memory, each of `num_classes` rows of sources, followed by one row of ones.
_UPPER, _LOWER, _UPPER_GRADIENT, _LOWER_GRADIENT, NUM_SOURCE_BLOCKS = range(5)
# The gradient that the pixels of an interval contribute to the sources at its corners.
_UPPER_LEFT, _UPPER_RIGHT, _LOWER_LEFT, _LOWER_RIGHT, NUM_CORNERS = range(5)
_SUM_ROWS = 64  # target rows summed in the corners before they are added to the sources


# -- between source and target pixels --------------------------------------------------------------


@inner
def _load_sources(scores, image, source_row, grid, scale, sources):
    """Loads a source row of all classes, or zeros if it does not exist."""
    num_classes, stride = scores[NUM_CLASSES], grid[SOURCE_STRIDE]
    if 0 <= source_row < grid[SOURCE_ROWS]:
        first = source_row * grid[SOURCE_COLUMNS]
        load_rows(scores, image, first, grid[SOURCE_COLUMNS], scale, at(sources, 1), stride)
    else:
        fill(sources, num_classes * stride, 0.0)


@inner
def _weighted(weight, value, zero, skips_zero_weights):
    """Returns weight * value; if `skips_zero_weights`, 0 for a weight of 0 and any value."""
    product = weight * value
    if skips_zero_weights:
        return where(equal(weight, zero), zero, product)
    return product


@inner
def _interpolate(
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
    skips_zero_weights = grid[HAS_ZERO_WEIGHTS]
    block = grid[NUM_PHASES] * grid[PHASE_STRIDE]
    zero = broadcast(rows, 0.0)
    above, below = broadcast(rows, upper_weight), broadcast(rows, lower_weight)
    last = (intervals - 1) // LANES * LANES
    for c in range(num_classes):
        up = at(upper, c * grid[SOURCE_STRIDE] + first_interval)
        low = at(lower, c * grid[SOURCE_STRIDE] + first_interval)
        row = at(rows, c * stride)
        # From the last intervals to the first, so that surplus lanes are overwritten.
        for back in range(0, intervals, LANES):
            j = last - back
            if skips_zero_weights:
                left = _weighted(above, load(up, j), zero, skips_zero_weights)
                left = left + _weighted(below, load(low, j), zero, skips_zero_weights)
                right = _weighted(above, load(up, j + 1), zero, skips_zero_weights)
                right = right + _weighted(below, load(low, j + 1), zero, skips_zero_weights)
            else:
                left = fma(above, load(up, j), below * load(low, j))
                right = fma(above, load(up, j + 1), below * load(low, j + 1))
            for k in range(phases):
                offset = (first_phase + k) * grid[PHASE_STRIDE] + first_interval + j
                from_left, from_right = load(weights, offset), load(weights, block + offset)
                if skips_zero_weights:
                    x = _weighted(from_left, left, zero, skips_zero_weights) + _weighted(
                        from_right, right, zero, skips_zero_weights
                    )
                else:
                    x = fma(from_left, left, from_right * right)
                store(row, k * intervals + j, x)


@inner
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
    block = grid[NUM_PHASES] * grid[PHASE_STRIDE]
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
            offset = (first_phase + k) * grid[PHASE_STRIDE] + first_interval + j
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


@inner
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


@inner
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


@inner
def _load_pixels(
    views,
    ignored,
    num_classes,
    image,
    y,
    grid,
    starts,
    first_interval,
    intervals,
    pixel_classes,
    pixel_weights,
):
    """Loads classes, and pixel weights if there are any, of some intervals of target row `y`."""
    labels, weights = at(views, LABELS), at(views, PIXEL_WEIGHT)
    first = starts[first_interval]
    start, n = y * grid[NUM_COLUMNS] + first, starts[first_interval + intervals] - first
    load_classes(labels, ignored, num_classes, image, start, n, pixel_classes)
    if weights[ADDRESS]:
        load_rows(weights, image, start, n, 1.0, pixel_weights, n)


@inner
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
    _interpolate(
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


@kernel
def upsampled_cross_entropy_chunk(
    buffer,
    classes,
    pixel_classes,
    pixel_weights,
    source_buffer,
    corners,
    views,
    class_weight,
    ignored,
    options,
    stride,
    grid,
    row_starts,
    row_weights,
    column_starts,
    column_weights,
    image,
    first,
    last,
    sums,
    counts,
    halo_rows,
):
    """Adds the terms of interval rows [first, last) of one image; writes the gradient if wanted.

    The gradient of source rows `first` to `last` - 2 is written to its place. `halo_rows`
    [2, C, sources] receives the parts of source rows `first` - 1 and `last` - 1.
    """
    views = memory(views)
    scores, gradient = at(views, LOGITS), at(views, GRADIENT)
    num_classes = scores[NUM_CLASSES]
    options, grid = memory(options), memory(grid)
    rows, classes = memory(buffer), memory(classes)
    pixel_classes, pixel_weights = memory(pixel_classes), memory(pixel_weights)
    sources, corners, halo_rows = memory(source_buffer), memory(corners), memory(halo_rows)
    row_starts, column_starts = memory(row_starts), memory(column_starts)
    row_weights, column_weights = memory(row_weights), memory(column_weights)
    source_stride, source_columns = grid[SOURCE_STRIDE], grid[SOURCE_COLUMNS]
    block = num_classes * source_stride
    corner_stride = grid[TILE_INTERVALS]
    upper, lower = at(sources, _UPPER * block), at(sources, _LOWER * block)
    upper_gradient, lower_gradient = (
        at(sources, _UPPER_GRADIENT * block),
        at(sources, _LOWER_GRADIENT * block),
    )
    ones = at(sources, NUM_SOURCE_BLOCKS * block)
    fill(ones, source_stride, 1.0)
    is_weighted = at(views, PIXEL_WEIGHT)[ADDRESS] != 0
    fill(at(rows, (num_classes + PIXEL_WEIGHTS) * stride), stride, 1.0)
    fill(upper_gradient, block, 0.0)
    _load_sources(scores, image, first - 1, grid, options[INVERSE_TEMPERATURE], upper)
    total = compensation = widened(broadcast(rows, 0.0))
    for interval_row in range(first, last):
        _load_sources(scores, image, interval_row, grid, options[INVERSE_TEMPERATURE], lower)
        fill(lower_gradient, block, 0.0)
        for interval in range(0, source_columns + 1, grid[TILE_INTERVALS]):
            intervals = min_int(grid[TILE_INTERVALS], source_columns + 1 - interval)
            if column_starts[interval] == column_starts[interval + intervals]:
                continue  # labels smaller than the scores leave intervals without a pixel
            fill(corners, NUM_CORNERS * num_classes * corner_stride, 0.0)
            for y in range(row_starts[interval_row], row_starts[interval_row + 1]):
                above, below = row_weights[y], row_weights[grid[NUM_ROWS] + y]
                _load_pixels(
                    views,
                    ignored,
                    num_classes,
                    image,
                    y,
                    grid,
                    column_starts,
                    interval,
                    intervals,
                    pixel_classes,
                    pixel_weights,
                )
                for phase in range(0, grid[NUM_PHASES], grid[TILE_PHASES]):
                    phases = min_int(grid[TILE_PHASES], grid[NUM_PHASES] - phase)
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
                    total, compensation = terms_of_tile(
                        num_classes,
                        n,
                        classes,
                        class_weight,
                        options,
                        rows,
                        stride,
                        total,
                        compensation,
                        counts,
                    )
                    if gradient[ADDRESS]:
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
                if gradient[ADDRESS] and (is_last or (y + 1) % _SUM_ROWS == 0):
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
        if gradient[ADDRESS]:
            if interval_row == first:
                _write_halo_row(
                    num_classes, upper_gradient, source_stride, source_columns, halo_rows
                )
            else:
                store_rows(
                    gradient,
                    image,
                    (interval_row - 1) * source_columns,
                    source_columns,
                    at(upper_gradient, 1),
                    ones,
                    source_stride,
                )
        upper, lower = lower, upper
        upper_gradient, lower_gradient = lower_gradient, upper_gradient
    if gradient[ADDRESS]:
        halo_row = at(halo_rows, num_classes * source_columns)
        _write_halo_row(num_classes, upper_gradient, source_stride, source_columns, halo_row)
    add_chunk_sums(total, compensation, sums)


@inner
def _write_halo_row(num_classes, gradient_rows, source_stride, source_columns, halo_row):
    for c in range(num_classes):
        for j in range(source_columns):
            halo_row[c * source_columns + j] = gradient_rows[c * source_stride + j + 1]


# -- the sums and maps of `evaluate` ---------------------------------------------------------------


@inner
def _offsets_by_phase(offsets, y, grid, starts, first_interval, intervals, first_phase, phases):
    """Writes the offset of each pixel of a tile in the image; -1 where an interval has no pixel."""
    for j in range(intervals):
        start = starts[first_interval + j]
        count = starts[first_interval + j + 1] - start
        for k in range(phases):
            phase = first_phase + k
            offset = y * grid[NUM_COLUMNS] + start + phase
            offsets[k * intervals + j] = offset if phase < count else -1


@kernel
def upsampled_evaluate_chunk(
    buffer,
    classes,
    pixel_classes,
    pixel_weights,
    source_buffer,
    corners,
    predicted,
    offsets,
    confusion,
    bin_pixels,
    views,
    class_weight,
    ignored,
    options,
    maps,
    stride,
    grid,
    row_starts,
    row_weights,
    column_starts,
    column_weights,
    image,
    first,
    last,
    sums,
    counts,
    class_nll,
    bin_confidence,
):
    """Like `evaluate_chunk`, for interval rows [first, last) of upsampled scores."""
    views = memory(views)
    scores = at(views, LOGITS)
    num_classes = scores[NUM_CLASSES]
    options, grid, maps = memory(options), memory(grid), memory(maps)
    rows, classes = memory(buffer), memory(classes)
    pixel_classes, pixel_weights = memory(pixel_classes), memory(pixel_weights)
    sources, predicted, offsets = memory(source_buffer), memory(predicted), memory(offsets)
    row_starts, column_starts = memory(row_starts), memory(column_starts)
    row_weights, column_weights = memory(row_weights), memory(column_weights)
    class_nll, bin_confidence = memory(class_nll), memory(bin_confidence)
    confusion, bin_pixels = memory(confusion), memory(bin_pixels)
    block = num_classes * grid[SOURCE_STRIDE]
    upper, lower = at(sources, _UPPER * block), at(sources, _LOWER * block)
    pixels = grid[NUM_ROWS] * grid[NUM_COLUMNS]
    is_weighted = at(views, PIXEL_WEIGHT)[ADDRESS] != 0
    fill(at(rows, (num_classes + PIXEL_WEIGHTS) * stride), stride, 1.0)
    _load_sources(scores, image, first - 1, grid, options[INVERSE_TEMPERATURE], upper)
    total = compensation = widened(broadcast(rows, 0.0))
    for interval_row in range(first, last):
        _load_sources(scores, image, interval_row, grid, options[INVERSE_TEMPERATURE], lower)
        for y in range(row_starts[interval_row], row_starts[interval_row + 1]):
            above, below = row_weights[y], row_weights[grid[NUM_ROWS] + y]
            for interval in range(0, grid[SOURCE_COLUMNS] + 1, grid[TILE_INTERVALS]):
                intervals = min_int(grid[TILE_INTERVALS], grid[SOURCE_COLUMNS] + 1 - interval)
                if column_starts[interval] == column_starts[interval + intervals]:
                    continue
                _load_pixels(
                    views,
                    ignored,
                    num_classes,
                    image,
                    y,
                    grid,
                    column_starts,
                    interval,
                    intervals,
                    pixel_classes,
                    pixel_weights,
                )
                for phase in range(0, grid[NUM_PHASES], grid[TILE_PHASES]):
                    phases = min_int(grid[TILE_PHASES], grid[NUM_PHASES] - phase)
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
                    total, compensation = accumulate_tile(
                        num_classes,
                        n,
                        classes,
                        predicted,
                        class_weight,
                        options,
                        maps,
                        rows,
                        stride,
                        total,
                        compensation,
                        counts,
                        class_nll,
                        bin_confidence,
                        confusion,
                        bin_pixels,
                    )
                    _offsets_by_phase(
                        offsets, y, grid, column_starts, interval, intervals, phase, phases
                    )
                    write_maps(
                        num_classes, maps, image, pixels, offsets, n, predicted, rows, stride
                    )
        upper, lower = lower, upper
    add_chunk_sums(total, compensation, sums)
