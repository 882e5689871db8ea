"""Device functions that interpolate logits of single pixels from scores, as `upsampling` says."""

import triton
import triton.language as tl


@triton.jit
def locate_sources(grid, pixel, inside, rows, columns, strides):
    """Returns the offsets of the sources below and behind pixels, and the weights of all four.

    `grid` holds the intervals of rows, the weights of their two sources, and the same of columns.
    The weights returned are those of the sources above and below, before and behind. `strides` are
    those of class, row and column.
    """
    row_intervals, row_weights, column_intervals, column_weights = grid
    y = pixel // columns
    x = pixel % columns
    row = tl.load(row_intervals + y, inside, 0).to(tl.int64)
    column = tl.load(column_intervals + x, inside, 0).to(tl.int64)
    source_weights = (
        tl.load(row_weights + y, inside, 0)[None, :],
        tl.load(row_weights + rows + y, inside, 0)[None, :],
        tl.load(column_weights + x, inside, 0)[None, :],
        tl.load(column_weights + columns + x, inside, 0)[None, :],
    )
    return row * strides[1] + column * strides[2], source_weights


@triton.jit
def interpolate(scores, at, source_weights, classes, inside, strides, C: tl.constexpr):
    """Returns a block [classes, pixels] of upsampled logits; -inf beyond classes and pixels.

    Sources of weight 0 are not read: they may not exist, and 0 times NaN or infinity is NaN.
    """
    above, below, before, behind = source_weights
    lower_right = scores + classes.to(tl.int64)[:, None] * strides[0] + at[None, :]
    upper_right = lower_right - strides[1]
    is_class = (classes < C)[:, None]
    has_left = is_class & (before != 0)
    has_right = is_class & (behind != 0)
    left = above * tl.load(upper_right - strides[2], has_left & (above != 0), 0)
    left += below * tl.load(lower_right - strides[2], has_left & (below != 0), 0)
    right = above * tl.load(upper_right, has_right & (above != 0), 0)
    right += below * tl.load(lower_right, has_right & (below != 0), 0)
    return tl.where(is_class & inside[None, :], before * left + behind * right, -float("inf"))
