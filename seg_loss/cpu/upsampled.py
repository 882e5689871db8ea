"""The CPU kernels of upsampled scores: tiles of `numba_kernels` whose logits are interpolated.

Nodes bound cells as `upsampling` has it, on both axes. A chunk is a band of cell rows; for each of
its cell rows the two node rows around it lie in scratch memory as rows of classes,

    nodes         upper and lower scores, scaled, node j at j + 1, with zeros around
    slopes        the same for their gradient: a row is complete after the cell rows on both sides

and a group of cells is worked through pixel row by pixel row. Its tile holds the pixels by phase:
lane `k * cells + j` is the k-th pixel of the j-th cell. So neighbouring lanes need neighbouring
nodes, and all that a class needs for its interpolation are two vectors for `LANES` cells,

    interpolate   left, right = the nodes, combined vertically
                  row[k] = w0[k] left + w1[k] right                     for each phase k
    gather        left_k += w0[k] g[k]      right_k += w1[k] g[k]       g = row * factor

which is the gradient of the one by the other: in sums of a fixed order, without a scatter. Between
lies `terms_of_tile`, or `tallies_of_tile`. Cells with fewer pixels than phases have ignored ones.

The node row between two bands gets gradient from both: each writes its part to `seams`.
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
    add_up,
    fill,
    inner,
    load_classes,
    load_rows,
    put_own,
    store_rows,
    tallies_of_tile,
    terms_of_tile,
    write_maps,
)
from seg_loss.cpu.simd import (
    LANES,
    at,
    equal,
    filled,
    fma,
    lesser,
    load,
    memory,
    store,
    where,
    widened,
)


class Mesh(NamedTuple):
    """An upsampling as the kernels walk it.

    A tile is at most `tile_cells` by `tile_phases`. `node_stride` and `phase_stride` are the
    elements from one class's nodes, and from one phase's weights, to the next.
    """

    num_rows: int
    num_columns: int
    node_rows: int
    node_columns: int
    num_phases: int
    tile_cells: int
    tile_phases: int
    node_stride: int
    phase_stride: int
    has_unread_nodes: int


(
    NUM_ROWS, NUM_COLUMNS, NODE_ROWS, NODE_COLUMNS, NUM_PHASES, TILE_CELLS, TILE_PHASES,
    NODE_STRIDE, PHASE_STRIDE, HAS_UNREAD_NODES,
) = range(10)  # fmt: skip
# Blocks of scratch memory, each of `num_classes` rows of nodes; then a single row of ones.
_UPPER, _LOWER, _UPPER_SLOPES, _LOWER_SLOPES, NUM_NODE_BLOCKS = range(5)
# Of a group of cells: what its pixels give to the nodes at their corners.
_UPPER_LEFT, _UPPER_RIGHT, _LOWER_LEFT, _LOWER_RIGHT, NUM_CORNERS = range(5)
_SUM_ROWS = 64  # pixel rows that are summed there before they go to the nodes


# -- between nodes and pixels ----------------------------------------------------------------------


@inner
def _load_nodes(scores, image, node_row, mesh, scale, nodes):
    """A row of nodes of all classes, or zeros if there is none."""
    num_classes, stride = scores[NUM_CLASSES], mesh[NODE_STRIDE]
    if 0 <= node_row < mesh[NODE_ROWS]:
        first = node_row * mesh[NODE_COLUMNS]
        load_rows(scores, image, first, mesh[NODE_COLUMNS], scale, at(nodes, 1), stride)
    else:
        fill(nodes, num_classes * stride, 0.0)


@inner
def _read(weight, value, zero, skips):
    """weight * value; 0 for a weight of 0, whatever the value, if it `skips` those."""
    product = weight * value
    if skips:
        return where(equal(weight, zero), zero, product)
    return product


@inner
def _interpolate(
    num_classes, upper, lower, upper_weight, lower_weight, weights, mesh,
    first_cell, cells, first_phase, phases, rows, stride,
):  # fmt: skip
    """The logits of a tile to `rows`. Lanes beyond the last cell are written over in their turn.

    `weights` are two blocks, of left and right nodes, [phases, cells].
    """
    skips = mesh[HAS_UNREAD_NODES]
    block = mesh[NUM_PHASES] * mesh[PHASE_STRIDE]
    zero = filled(rows, 0.0)
    above, below = filled(rows, upper_weight), filled(rows, lower_weight)
    last = (cells - 1) // LANES * LANES
    for c in range(num_classes):
        up = at(upper, c * mesh[NODE_STRIDE] + first_cell)
        low = at(lower, c * mesh[NODE_STRIDE] + first_cell)
        row = at(rows, c * stride)
        # From the last cells to the first: theirs are the surplus lanes that would stay.
        for back in range(0, cells, LANES):
            j = last - back
            if skips:
                left = _read(above, load(up, j), zero, skips)
                left = left + _read(below, load(low, j), zero, skips)
                right = _read(above, load(up, j + 1), zero, skips)
                right = right + _read(below, load(low, j + 1), zero, skips)
            else:
                left = fma(above, load(up, j), below * load(low, j))
                right = fma(above, load(up, j + 1), below * load(low, j + 1))
            for k in range(phases):
                place = (first_phase + k) * mesh[PHASE_STRIDE] + first_cell + j
                from_left, from_right = load(weights, place), load(weights, block + place)
                if skips:
                    x = _read(from_left, left, zero, skips) + _read(from_right, right, zero, skips)
                else:
                    x = fma(from_left, left, from_right * right)
                store(row, k * cells + j, x)


@inner
def _gather(
    num_classes, rows, stride, upper_weight, lower_weight, weights, mesh,
    first_cell, cells, first_phase, phases, corners, corner_stride,
):  # fmt: skip
    """Add a tile's gradient, its rows times the row `FACTOR`, to the corners of its cells."""
    block = mesh[NUM_PHASES] * mesh[PHASE_STRIDE]
    zero = filled(rows, 0.0)
    above, below = filled(rows, upper_weight), filled(rows, lower_weight)
    size = num_classes * corner_stride
    factors = at(rows, (num_classes + FACTOR) * stride)
    lefts, rights = (
        at(rows, (num_classes + LEFT_FACTOR) * stride),
        at(rows, (num_classes + RIGHT_FACTOR) * stride),
    )
    for k in range(phases):
        for j in range(0, cells, LANES):
            place = (first_phase + k) * mesh[PHASE_STRIDE] + first_cell + j
            factor = load(factors, k * cells + j)
            store(lefts, k * cells + j, load(weights, place) * factor)
            store(rights, k * cells + j, load(weights, block + place) * factor)
    for c in range(num_classes):
        row = at(rows, c * stride)
        corner = at(corners, c * corner_stride)
        for j in range(0, cells, LANES):
            left = right = zero
            for k in range(phases):
                e = load(row, k * cells + j)
                left = fma(load(lefts, k * cells + j), e, left)
                right = fma(load(rights, k * cells + j), e, right)
            store(corner, j, fma(above, left, load(corner, j)))
            store(corner, size + j, fma(above, right, load(corner, size + j)))
            store(corner, 2 * size + j, fma(below, left, load(corner, 2 * size + j)))
            store(corner, 3 * size + j, fma(below, right, load(corner, 3 * size + j)))


@inner
def _to_nodes(num_classes, corners, corner_stride, cells, first_cell, upper, lower, stride):
    """Add a group's corners to the nodes they are: cell j has nodes at j and j + 1."""
    size = num_classes * corner_stride
    for c in range(num_classes):
        up, low = at(upper, c * stride + first_cell), at(lower, c * stride + first_cell)
        corner = at(corners, c * corner_stride)
        for j in range(cells):
            up[j] += corner[j]
            low[j] += corner[2 * size + j]
        for j in range(cells):
            up[j + 1] += corner[size + j]
            low[j + 1] += corner[3 * size + j]


@inner
def _by_phase(source, target, starts, first_cell, cells, first_phase, phases, nothing):
    """Values of pixels in their order to lanes by phase; `nothing` where a cell has no pixel."""
    first = starts[first_cell]
    for j in range(cells):
        start = starts[first_cell + j]
        number = starts[first_cell + j + 1] - start
        for k in range(phases):
            phase = first_phase + k
            target[k * cells + j] = source[start - first + phase] if phase < number else nothing
    n = phases * cells
    for i in range(n, n + -n % LANES):
        target[i] = nothing


@inner
def _load_pixels(
    views, ignored, num_classes, image, y, mesh, starts, first_cell, cells,
    pixel_classes, pixel_weights,
):  # fmt: skip
    """Classes and weights, if there are any, of the pixels of some cells in row `y`."""
    labels, weights = at(views, LABELS), at(views, PIXEL_WEIGHT)
    first = starts[first_cell]
    start, n = y * mesh[NUM_COLUMNS] + first, starts[first_cell + cells] - first
    load_classes(labels, ignored, num_classes, image, start, n, pixel_classes)
    if weights[ADDRESS]:
        load_rows(weights, image, start, n, 1.0, pixel_weights, n)


@inner
def _load_tile(
    num_classes, pixel_classes, pixel_weights, is_weighted, upper, lower,
    upper_weight, lower_weight, starts, weights, mesh,
    first_cell, cells, first_phase, phases, classes, rows, stride,
):  # fmt: skip
    """All that `terms_of_tile` takes: logits, classes, weights (1 unless `is_weighted`)."""
    _by_phase(pixel_classes, classes, starts, first_cell, cells, first_phase, phases, num_classes)
    if is_weighted:
        pixel_row = at(rows, (num_classes + PIXEL_WEIGHTS) * stride)
        _by_phase(pixel_weights, pixel_row, starts, first_cell, cells, first_phase, phases, 1.0)
    _interpolate(
        num_classes, upper, lower, upper_weight, lower_weight, weights, mesh,
        first_cell, cells, first_phase, phases, rows, stride,
    )  # fmt: skip


# -- the loss and its gradient ---------------------------------------------------------------------


@kernel
def upsampled_cross_entropy_chunk(
    buffer, classes, pixel_classes, pixel_weights, node_buffer, corners, views, class_weight,
    ignored, options, stride, mesh, row_starts, row_weights, column_starts, column_weights,
    image, first, last, sums, counts, seams,
):  # fmt: skip
    """Add the terms of cell rows [first, last) of one image; write the gradient if wanted.

    Node rows from `first` to `last` - 2 are written to their places. `seams` [2, C, nodes] gets the
    parts of node rows `first` - 1 and `last` - 1.
    """
    views = memory(views)
    scores, gradient = at(views, LOGITS), at(views, GRADIENT)
    num_classes = scores[NUM_CLASSES]
    options, mesh = memory(options), memory(mesh)
    rows, classes = memory(buffer), memory(classes)
    pixel_classes, pixel_weights = memory(pixel_classes), memory(pixel_weights)
    nodes, corners, seams = memory(node_buffer), memory(corners), memory(seams)
    row_starts, column_starts = memory(row_starts), memory(column_starts)
    row_weights, column_weights = memory(row_weights), memory(column_weights)
    node_stride, node_columns = mesh[NODE_STRIDE], mesh[NODE_COLUMNS]
    block = num_classes * node_stride
    corner_stride = mesh[TILE_CELLS]
    upper, lower = at(nodes, _UPPER * block), at(nodes, _LOWER * block)
    upper_slopes, lower_slopes = at(nodes, _UPPER_SLOPES * block), at(nodes, _LOWER_SLOPES * block)
    ones = at(nodes, NUM_NODE_BLOCKS * block)
    fill(ones, node_stride, 1.0)
    is_weighted = at(views, PIXEL_WEIGHT)[ADDRESS] != 0
    fill(at(rows, (num_classes + PIXEL_WEIGHTS) * stride), stride, 1.0)
    fill(upper_slopes, block, 0.0)
    _load_nodes(scores, image, first - 1, mesh, options[INVERSE_TEMPERATURE], upper)
    total = lost = widened(filled(rows, 0.0))
    for cell_row in range(first, last):
        _load_nodes(scores, image, cell_row, mesh, options[INVERSE_TEMPERATURE], lower)
        fill(lower_slopes, block, 0.0)
        for cell in range(0, node_columns + 1, mesh[TILE_CELLS]):
            cells = lesser(mesh[TILE_CELLS], node_columns + 1 - cell)
            if column_starts[cell] == column_starts[cell + cells]:
                continue  # labels may be smaller, and leave cells without a pixel
            fill(corners, NUM_CORNERS * num_classes * corner_stride, 0.0)
            for y in range(row_starts[cell_row], row_starts[cell_row + 1]):
                above, below = row_weights[y], row_weights[mesh[NUM_ROWS] + y]
                _load_pixels(
                    views, ignored, num_classes, image, y, mesh, column_starts, cell, cells,
                    pixel_classes, pixel_weights,
                )  # fmt: skip
                for phase in range(0, mesh[NUM_PHASES], mesh[TILE_PHASES]):
                    phases = lesser(mesh[TILE_PHASES], mesh[NUM_PHASES] - phase)
                    n = phases * cells
                    _load_tile(
                        num_classes, pixel_classes, pixel_weights, is_weighted, upper, lower,
                        above, below, column_starts, column_weights, mesh,
                        cell, cells, phase, phases, classes, rows, stride,
                    )  # fmt: skip
                    total, lost = terms_of_tile(
                        num_classes, n, classes, class_weight, options, rows, stride,
                        total, lost, counts,
                    )  # fmt: skip
                    if gradient[ADDRESS]:
                        put_own(num_classes, n, classes, rows, stride)
                        _gather(
                            num_classes, rows, stride, above, below, column_weights,
                            mesh, cell, cells, phase, phases, corners, corner_stride,
                        )  # fmt: skip
                # Sums of sums: of many terms one by one, the last bits of each would be lost.
                is_last = y == row_starts[cell_row + 1] - 1
                if gradient[ADDRESS] and (is_last or (y + 1) % _SUM_ROWS == 0):
                    _to_nodes(
                        num_classes, corners, corner_stride, cells, cell,
                        upper_slopes, lower_slopes, node_stride,
                    )  # fmt: skip
                    fill(corners, NUM_CORNERS * num_classes * corner_stride, 0.0)
        if gradient[ADDRESS]:
            if cell_row == first:
                _write_seam(num_classes, upper_slopes, node_stride, node_columns, seams)
            else:
                store_rows(
                    gradient, image, (cell_row - 1) * node_columns, node_columns,
                    at(upper_slopes, 1), ones, node_stride,
                )  # fmt: skip
        upper, lower = lower, upper
        upper_slopes, lower_slopes = lower_slopes, upper_slopes
    if gradient[ADDRESS]:
        seam = at(seams, num_classes * node_columns)
        _write_seam(num_classes, upper_slopes, node_stride, node_columns, seam)
    add_up(total, lost, sums)


@inner
def _write_seam(num_classes, slopes, node_stride, node_columns, seam):
    for c in range(num_classes):
        for j in range(node_columns):
            seam[c * node_columns + j] = slopes[c * node_stride + j + 1]


# -- everything else that upsampled scores can tell ------------------------------------------------


@inner
def _places_by_phase(places, y, mesh, starts, first_cell, cells, first_phase, phases):
    """Where a tile's pixels lie in the image; -1 where a cell has no pixel."""
    for j in range(cells):
        start = starts[first_cell + j]
        number = starts[first_cell + j + 1] - start
        for k in range(phases):
            phase = first_phase + k
            place = y * mesh[NUM_COLUMNS] + start + phase
            places[k * cells + j] = place if phase < number else -1


@kernel
def upsampled_evaluate_chunk(
    buffer, classes, pixel_classes, pixel_weights, node_buffer, corners, predicted, places,
    confusion, bin_pixels, views, class_weight, ignored, options, maps,
    stride, mesh, row_starts, row_weights, column_starts, column_weights,
    image, first, last, sums, counts, class_nll, bin_confidence,
):  # fmt: skip
    """`evaluate_chunk` of the upsampled scores: cell rows [first, last) of one image."""
    views = memory(views)
    scores = at(views, LOGITS)
    num_classes = scores[NUM_CLASSES]
    options, mesh, maps = memory(options), memory(mesh), memory(maps)
    rows, classes = memory(buffer), memory(classes)
    pixel_classes, pixel_weights = memory(pixel_classes), memory(pixel_weights)
    nodes, predicted, places = memory(node_buffer), memory(predicted), memory(places)
    row_starts, column_starts = memory(row_starts), memory(column_starts)
    row_weights, column_weights = memory(row_weights), memory(column_weights)
    class_nll, bin_confidence = memory(class_nll), memory(bin_confidence)
    confusion, bin_pixels = memory(confusion), memory(bin_pixels)
    block = num_classes * mesh[NODE_STRIDE]
    upper, lower = at(nodes, _UPPER * block), at(nodes, _LOWER * block)
    pixels = mesh[NUM_ROWS] * mesh[NUM_COLUMNS]
    is_weighted = at(views, PIXEL_WEIGHT)[ADDRESS] != 0
    fill(at(rows, (num_classes + PIXEL_WEIGHTS) * stride), stride, 1.0)
    _load_nodes(scores, image, first - 1, mesh, options[INVERSE_TEMPERATURE], upper)
    total = lost = widened(filled(rows, 0.0))
    for cell_row in range(first, last):
        _load_nodes(scores, image, cell_row, mesh, options[INVERSE_TEMPERATURE], lower)
        for y in range(row_starts[cell_row], row_starts[cell_row + 1]):
            above, below = row_weights[y], row_weights[mesh[NUM_ROWS] + y]
            for cell in range(0, mesh[NODE_COLUMNS] + 1, mesh[TILE_CELLS]):
                cells = lesser(mesh[TILE_CELLS], mesh[NODE_COLUMNS] + 1 - cell)
                if column_starts[cell] == column_starts[cell + cells]:
                    continue
                _load_pixels(
                    views, ignored, num_classes, image, y, mesh, column_starts, cell, cells,
                    pixel_classes, pixel_weights,
                )  # fmt: skip
                for phase in range(0, mesh[NUM_PHASES], mesh[TILE_PHASES]):
                    phases = lesser(mesh[TILE_PHASES], mesh[NUM_PHASES] - phase)
                    n = phases * cells
                    _load_tile(
                        num_classes, pixel_classes, pixel_weights, is_weighted, upper, lower,
                        above, below, column_starts, column_weights, mesh,
                        cell, cells, phase, phases, classes, rows, stride,
                    )  # fmt: skip
                    total, lost = tallies_of_tile(
                        num_classes, n, classes, predicted, class_weight, options, maps,
                        rows, stride, total, lost, counts, class_nll, bin_confidence, confusion,
                        bin_pixels,
                    )  # fmt: skip
                    _places_by_phase(places, y, mesh, column_starts, cell, cells, phase, phases)
                    write_maps(num_classes, maps, image, pixels, places, n, predicted, rows, stride)
        upper, lower = lower, upper
    add_up(total, lost, sums)
