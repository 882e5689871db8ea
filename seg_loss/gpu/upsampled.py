"""The GPU kernel of the loss of upsampled scores with its gradient. Called by `triton_backend`.

The logits lie between nodes, the scores, in cells, as `upsampling` has it. A program owns a tile of
node rows and node columns of one image and takes all cells that touch them: one row and one column
of cells more than nodes, whose pixels the neighbours compute as well. So every gradient is summed
by one program, in a fixed order, and nothing is left over between programs.

A block is [parts, cells, classes]. A lane has a cell, and every `PARTS`-th of its pixel rows; all
lanes go through the pixels of a row in step. Of all classes, in registers:

    left, right         the nodes before and behind the cell, combined vertically, for a pixel row
    x = w0 left + w1 right                                          for each of its pixels
    g = the gradient by x, with the formulas of `triton_kernels`
    to_left += w0 g     to_right += w1 g                            the above, transposed

and when a row of pixels is done, what it gives to both goes to the nodes above and below. With a
row of cells the row of nodes above it is done too: a node has its part from the right side of the
cell before it, and from the left side of the cell behind it, which is the next lane's.

Lanes of one warp share the classes of a pixel, so that nothing in the inner loop waits for other
warps. Triton lays blocks out so by itself, the last axis first, as long as no large load has an
opinion: nodes are loaded for all parts at once, in blocks with fewer elements than threads.
"""

# ruff: noqa: N803, N806 - as in `triton_kernels`

import triton
import triton.language as tl

from seg_loss.gpu.kernels import (
    add_exponentials,
    classes_of,
    divisor_of,
    exp,
    finish,
    nll_of,
    number_of,
    scaled,
    slope_of,
    slopes_of,
    sum_of_weights,
    weighted,
    weights_of,
)


@triton.jit
def _combined(
    scores, strides, row, node_rows, above, below, column, is_there, temperature, first_class,
    C: tl.constexpr, BLOCK_C: tl.constexpr, K: tl.constexpr, dtype: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
):  # fmt: skip
    """The nodes of a column for a row of pixels between node rows `row` - 1 and `row`.

    Read anew for every row of pixels, from the first-level cache: held, the four nodes of a cell
    would take a third of all registers.
    """
    c = tl.arange(0, BLOCK_C)
    class_stride, row_stride, column_stride = strides
    at = (row * row_stride + column.to(tl.int64) * column_stride)[:, None]
    at = scores + at + (c.to(tl.int64) * class_stride)[None, :]
    has_upper = is_there & (row > 0)
    has_lower = is_there & (row < node_rows)
    blocks = ()
    for k in tl.static_range(K):
        block = (first_class + k * BLOCK_C).to(tl.int64)
        place = at + block * class_stride
        is_class = (block + c < C)[None, :]
        upper = tl.load(place - row_stride, is_class & has_upper[:, None], 0)
        lower = tl.load(place, is_class & has_lower[:, None], 0)
        upper = scaled(upper, temperature, dtype, HAS_TEMPERATURE)[None]
        lower = scaled(lower, temperature, dtype, HAS_TEMPERATURE)[None]
        blocks += (weighted(above, upper) + weighted(below, lower),)
    return blocks


@triton.jit
def _zeros(shape, dtype: tl.constexpr, K: tl.constexpr):
    blocks = ()
    for _ in tl.static_range(K):
        blocks += (tl.zeros(shape, dtype),)
    return blocks


@triton.jit
def _added(blocks, weight, others, K: tl.constexpr):
    """blocks + weight * others."""
    sums = ()
    for k in tl.static_range(K):
        sums += (blocks[k] + weight * others[k],)
    return sums


# Were a stride known to be 1, the loads would have an opinion on the layout after all; and for
# sizes known to be multiples of 16 there would be one compilation more, and nothing gained.
@triton.jit(
    do_not_specialize=[
        "image_stride", "class_stride", "row_stride", "column_stride",
        "gradient_image_stride", "gradient_class_stride", "gradient_row_stride",
        "gradient_column_stride", "surveyed", "node_rows", "node_columns", "rows", "columns",
        "num_pixels", "bands", "tiles", "band_rows",
    ]
)  # fmt: skip
def upsampled_cross_entropy_kernel(
    scores, image_stride, class_stride, row_stride, column_stride,
    labels, class_weight, pixel_weight,
    gradient, gradient_image_stride, gradient_class_stride, gradient_row_stride,
    gradient_column_stride, slopes,
    row_starts, row_weights, column_starts, column_weights,
    counts, weights, surveyed, divisor_given,
    partial, finished, loss, report, ticket,
    node_rows, node_columns, rows, columns, num_pixels, bands, tiles, band_rows, ignored,
    inverse_temperature, label_smoothing, max_nll,
    C: tl.constexpr, CHUNK: tl.constexpr, BLOCK_C: tl.constexpr,
    CELLS: tl.constexpr, PARTS: tl.constexpr,
    DIVISOR: tl.constexpr, SURVEYED: tl.constexpr, HAS_TEMPERATURE: tl.constexpr,
    IS_SMOOTHED: tl.constexpr, SKIPS: tl.constexpr,
):  # fmt: skip
    """Loss and gradient; or, with the `slopes` that `cross_entropy_kernel` left, the gradient
    alone, of `CHUNK` classes a program.

    Programs are in the order of images, bands of node rows, tiles of node columns, chunks. `SKIPS`
    says that some column of pixels gives the weight 0 to a node that exists.
    """
    dtype: tl.constexpr = tl.float64 if scores.dtype.element_ty == tl.float64 else tl.float32
    IS_HALF: tl.constexpr = scores.dtype.element_ty.primitive_bitwidth == 16
    K: tl.constexpr = (CHUNK + BLOCK_C - 1) // BLOCK_C
    CHUNKS: tl.constexpr = (C + CHUNK - 1) // CHUNK
    program = tl.program_id(0)
    first_class = (program % CHUNKS) * CHUNK
    tile = program // CHUNKS
    first_column = (tile % tiles) * (CELLS - 1)
    band = tile // tiles
    first_row = (band % bands) * band_rows
    last_row = tl.minimum(first_row + band_rows, node_rows)
    image = (band // bands).to(tl.int64)
    scores += image * image_stride
    gradient += image * gradient_image_stride
    strides = (class_stride, row_stride, column_stride)

    cell = tl.arange(0, CELLS)
    part = tl.arange(0, PARTS)
    c = tl.arange(0, BLOCK_C)[None, None, :]
    column = first_column + cell  # of the cell, and of the node behind it
    is_cell = column <= node_columns
    has_left = (column > 0) & is_cell
    has_right = column < node_columns
    x_start = tl.load(column_starts + column, is_cell, 0)
    x_end = tl.load(column_starts + column + 1, is_cell, 0)
    phases = tl.max(x_end - x_start, axis=0)
    # A cell of two tiles, or of two bands, counts where both nodes are, or where the image ends.
    is_inner_column = (cell < CELLS - 1) | (column == node_columns)

    temperature = number_of(inverse_temperature, dtype)
    D = divisor_of(counts, weights, divisor_given, surveyed, DIVISOR, SURVEYED)
    scale = 1 / D
    if HAS_TEMPERATURE:
        scale *= number_of(inverse_temperature, tl.float64)
    scale = scale.to(dtype)
    all_weights = 1
    if IS_SMOOTHED:
        hard_share = 1 - number_of(label_smoothing, dtype)
        soft_share = number_of(label_smoothing, dtype) / C
        all_weights = sum_of_weights(class_weight, C, BLOCK_C, dtype)

    zeros = tl.zeros((PARTS, CELLS, BLOCK_C), dtype)
    total = tl.zeros((PARTS, CELLS, BLOCK_C), tl.float64)
    # What the pixels so far give to the nodes above, on both sides of their cell.
    to_upper_left = _zeros((PARTS, CELLS, BLOCK_C), dtype, K)
    to_upper_right = _zeros((PARTS, CELLS, BLOCK_C), dtype, K)
    for cell_row in range(first_row, last_row + 1):
        row = tl.zeros((CELLS,), tl.int64) + cell_row  # of cells, and of the nodes below them
        to_lower_left = _zeros((PARTS, CELLS, BLOCK_C), dtype, K)
        to_lower_right = _zeros((PARTS, CELLS, BLOCK_C), dtype, K)
        is_counted = is_inner_column & ((row < last_row) | (row == node_rows))
        is_counted = is_counted[None, :, None]
        y_end = tl.load(row_starts + cell_row + 1)
        for y_first in range(tl.load(row_starts + cell_row), y_end, PARTS):
            y_pixel = y_first + part
            in_cell = y_pixel < y_end
            above = tl.load(row_weights + y_pixel, in_cell, 0)[:, None, None]
            below = tl.load(row_weights + rows + y_pixel, in_cell, 0)[:, None, None]
            left = _combined(
                scores, strides, row, node_rows, above, below, column - 1, has_left,
                temperature, first_class, C, BLOCK_C, K, dtype, HAS_TEMPERATURE,
            )  # fmt: skip
            right = _combined(
                scores, strides, row, node_rows, above, below, column, has_right,
                temperature, first_class, C, BLOCK_C, K, dtype, HAS_TEMPERATURE,
            )  # fmt: skip
            first_place = (image * rows + y_pixel) * columns
            to_left = _zeros((PARTS, CELLS, BLOCK_C), dtype, K)
            to_right = _zeros((PARTS, CELLS, BLOCK_C), dtype, K)
            # Logarithms wait until there is one for each of the lanes that share a cell.
            for first_phase in range(0, phases, BLOCK_C):
                kept_t = zeros
                kept_d = zeros
                kept_weight = zeros
                kept_soft = zeros
                kept_soft_weight = zeros
                for phase in range(first_phase, tl.minimum(first_phase + BLOCK_C, phases)):
                    x_pixel = x_start + phase
                    in_row = x_pixel < x_end
                    before = tl.load(column_weights + x_pixel, in_row, 0)[None, :, None]
                    behind = tl.load(column_weights + columns + x_pixel, in_row, 0)[None, :, None]
                    place = first_place[:, None] + x_pixel[None, :]
                    inside = in_cell[:, None] & in_row[None, :]
                    y = classes_of(labels, place, inside, ignored, C)
                    valid = y < C
                    own_class = y[:, :, None]
                    is_void = own_class >= C
                    logits = ()
                    m = tl.full((PARTS, CELLS, BLOCK_C), -float("inf"), dtype)
                    x_own = zeros
                    for k in tl.static_range(K):
                        classes = first_class + c + k * BLOCK_C
                        if SKIPS:
                            x = weighted(before, left[k]) + weighted(behind, right[k])
                        else:
                            x = before * left[k] + behind * right[k]
                        if k * BLOCK_C + BLOCK_C > CHUNK or C % CHUNK != 0:
                            x = tl.where(classes < C, x, -float("inf"))
                        logits += (x,)
                        if slopes is None:
                            m = tl.maximum(m, x)
                            x_own = tl.where(classes == own_class, x, x_own)
                    exponentials = ()
                    if slopes is None:
                        soft_weight, of_class = weights_of(
                            class_weight, pixel_weight, place, y, C, dtype
                        )  # fmt: skip
                        weight = soft_weight * of_class
                        if IS_SMOOTHED:
                            weight *= hard_share
                            soft_weight *= soft_share
                        m = tl.max(m, axis=2)
                        t = zeros
                        soft = zeros
                        for k in tl.static_range(K):
                            classes = c + k * BLOCK_C
                            # Every class of a void pixel is like its own: its slope is 0.
                            e, t, soft, _ = add_exponentials(
                                logits[k], (classes == own_class) | is_void, classes,
                                m[:, :, None], t, soft, soft, class_weight,
                                C, IS_HALF, IS_SMOOTHED, False,
                            )  # fmt: skip
                            exponentials += (e,)
                        t = tl.sum(t, axis=2)
                        d_own = tl.sum(x_own, axis=2) - m  # a sum with zeros: it passes NaN on
                        e_own = exp(d_own, IS_HALF)
                        rise, fall, own_slope = slopes_of(
                            e_own, t, t + e_own, weight, soft_weight, of_class, all_weights, scale,
                            IS_SMOOTHED,
                        )  # fmt: skip
                        own_slope = tl.where(valid, own_slope, 0)
                        is_kept = (c == phase - first_phase) & ~is_void
                        kept_t = tl.where(is_kept, t[:, :, None], kept_t)
                        kept_d = tl.where(is_kept, d_own[:, :, None], kept_d)
                        kept_weight = tl.where(is_kept, weight[:, :, None], kept_weight)
                        if IS_SMOOTHED:
                            soft = tl.sum(soft, axis=2)[:, :, None]
                            kept_soft = tl.where(is_kept, soft, kept_soft)
                            kept_soft_weight = tl.where(
                                is_kept, soft_weight[:, :, None], kept_soft_weight
                            )
                    else:
                        plane = slopes + place
                        m = tl.load(plane, valid, 0)
                        plane += num_pixels
                        rise = tl.load(plane, valid, 0)
                        plane += num_pixels
                        own_slope = tl.load(plane, valid, 0)
                        fall = rise
                        if IS_SMOOTHED:
                            fall = tl.load(plane + num_pixels, valid, 0)
                        for k in tl.static_range(K):
                            exponentials += (exp(logits[k] - m[:, :, None], IS_HALF),)
                    slopes_of_pixels = ()
                    for k in tl.static_range(K):
                        classes = first_class + c + k * BLOCK_C
                        slopes_of_pixels += (
                            slope_of(
                                exponentials[k], (classes == own_class) | is_void, classes,
                                rise[:, :, None], fall[:, :, None], own_slope[:, :, None],
                                class_weight, C, IS_SMOOTHED,
                            ),
                        )  # fmt: skip
                    to_left = _added(to_left, before, slopes_of_pixels, K)
                    to_right = _added(to_right, behind, slopes_of_pixels, K)
                if slopes is None:
                    kept_s = kept_t + exp(kept_d, IS_HALF)
                    log_s, nll = nll_of(kept_d, kept_t, kept_s, number_of(max_nll, dtype))
                    term = kept_weight * nll
                    if IS_SMOOTHED:
                        term += kept_soft_weight * (all_weights * log_s - kept_soft)
                    total += tl.where(is_counted, term, 0).to(tl.float64)
            to_upper_left = _added(to_upper_left, above, to_left, K)
            to_upper_right = _added(to_upper_right, above, to_right, K)
            to_lower_left = _added(to_lower_left, below, to_left, K)
            to_lower_right = _added(to_lower_right, below, to_right, K)
        if cell_row > first_row:
            next_cell = ((cell + 1) % CELLS)[None, :, None] + tl.zeros(
                (PARTS, CELLS, BLOCK_C), tl.int32
            )
            is_node = ((cell < CELLS - 1) & has_right)[:, None]
            to = (row - 1) * gradient_row_stride + column.to(tl.int64) * gradient_column_stride
            to = gradient + to[:, None]
            for k in tl.static_range(K):
                classes = (first_class + k * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
                g = to_upper_right[k] + tl.gather(to_upper_left[k], next_cell, 1)
                tl.store(
                    to + classes.to(tl.int64) * gradient_class_stride,
                    tl.sum(g, axis=0).to(gradient.dtype.element_ty), is_node & (classes < C),
                )  # fmt: skip
        to_upper_left = to_lower_left
        to_upper_right = to_lower_right

    if partial is not None:
        total = tl.sum(tl.sum(tl.sum(total, axis=2), axis=1), axis=0)
        tl.store(partial + program, total)
    if finished is not None:
        finish(partial, finished, loss, None, D, counts, surveyed, report, ticket, SURVEYED)
