"""The GPU kernel of the loss of upsampled scores with its gradient.

`backend` launches it. Target pixels lie in intervals between source pixels, as
`seg_loss.upsampling` says. A program owns a tile of source rows and columns of one image. It
processes all intervals that touch them: one interval row and one interval column more than sources,
whose pixels the neighbouring programs compute as well. So each gradient is summed by one program,
in a fixed order, without communication between programs.

A block is [row groups, intervals, classes]. A lane has one interval, and of its target rows every
`ROW_GROUPS`-th. All lanes move through the pixels of a row together. For all classes, in registers:

    left, right         the sources before and behind the interval, interpolated vertically
    x = w0 left + w1 right                                          for each pixel of the row
    g = the gradient in x, by the formulas of `cross_entropy`
    to_left += w0 g     to_right += w1 g                            the transpose of the above

After a row of pixels, to_left and to_right are distributed to the sources above and below. After an
interval row, the source row above it is complete: a source adds the right side of the interval
before it to the left side of the interval behind it, which another lane holds.

The lanes of one warp share the classes of a pixel, so that the inner loop never waits for other
warps. Triton chooses this layout, the last axis first, as long as no large load imposes another
one. Therefore the sources are loaded for all row groups at once, in blocks with fewer elements than
threads.
"""

import triton
import triton.language as tl

from seg_loss.gpu.cross_entropy import add_exponentials, class_gradient, gradient_factors
from seg_loss.gpu.labels import load_divisor, reduce_partials
from seg_loss.gpu.math import (
    exp,
    float_from_bits,
    load_classes,
    load_weights,
    nll_of,
    scale_logits,
    sum_class_weights,
    weighted,
)


@triton.jit
def _interpolate_rows(
    scores,
    strides,
    row,
    source_rows,
    above,
    below,
    column,
    is_there,
    temperature,
    first_class,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    K: tl.constexpr,
    dtype: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
):
    """Returns the sources of a column, interpolated for a row of pixels between two source rows.

    They are loaded again for each row of pixels, from the first-level cache: the four sources of an
    interval would take a third of all registers.
    """
    c = tl.arange(0, BLOCK_C)
    class_stride, row_stride, column_stride = strides
    at = (row * row_stride + column.to(tl.int64) * column_stride)[:, None]
    at = scores + at + (c.to(tl.int64) * class_stride)[None, :]
    has_upper = is_there & (row > 0)
    has_lower = is_there & (row < source_rows)
    blocks = ()
    for k in tl.static_range(K):
        block = (first_class + k * BLOCK_C).to(tl.int64)
        offset = at + block * class_stride
        is_class = (block + c < C)[None, :]
        upper = tl.load(offset - row_stride, is_class & has_upper[:, None], 0)
        lower = tl.load(offset, is_class & has_lower[:, None], 0)
        upper = scale_logits(upper, temperature, dtype, HAS_TEMPERATURE)[None]
        lower = scale_logits(lower, temperature, dtype, HAS_TEMPERATURE)[None]
        blocks += (weighted(above, upper) + weighted(below, lower),)
    return blocks


@triton.jit
def _zero_blocks(shape, dtype: tl.constexpr, K: tl.constexpr):
    blocks = ()
    for _ in tl.static_range(K):
        blocks += (tl.zeros(shape, dtype),)
    return blocks


@triton.jit
def _fma_blocks(blocks, weight, others, K: tl.constexpr):
    """Returns blocks + weight * others."""
    sums = ()
    for k in tl.static_range(K):
        sums += (blocks[k] + weight * others[k],)
    return sums


# A stride known to be 1 would let the loads impose a layout. Sizes known to be multiples of 16
# would cost a compilation without any gain.
@triton.jit(
    do_not_specialize=[
        "image_stride",
        "class_stride",
        "row_stride",
        "column_stride",
        "gradient_image_stride",
        "gradient_class_stride",
        "gradient_row_stride",
        "gradient_column_stride",
        "num_partials",
        "source_rows",
        "source_columns",
        "rows",
        "columns",
        "num_pixels",
        "row_blocks",
        "tiles",
        "block_rows",
    ]
)
def upsampled_cross_entropy_kernel(
    scores,
    image_stride,
    class_stride,
    row_stride,
    column_stride,
    labels,
    class_weight,
    pixel_weight,
    gradient,
    gradient_image_stride,
    gradient_class_stride,
    gradient_row_stride,
    gradient_column_stride,
    grad_planes,
    row_starts,
    row_weights,
    column_starts,
    column_weights,
    counts,
    weights,
    num_partials,
    divisor_source,
    partial,
    finished,
    loss,
    report,
    call_id,
    source_rows,
    source_columns,
    rows,
    columns,
    num_pixels,
    row_blocks,
    tiles,
    block_rows,
    ignored,
    inverse_temperature,
    label_smoothing,
    max_nll,
    C: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    INTERVALS: tl.constexpr,
    ROW_GROUPS: tl.constexpr,
    DIVISOR: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    IS_SMOOTHED: tl.constexpr,
    SKIPS_ZERO_WEIGHTS: tl.constexpr,
):
    """Computes loss and gradient of upsampled scores.

    With `grad_planes`, written by `cross_entropy_kernel`, it computes only the gradient, of `CHUNK`
    classes per program. Programs are ordered by images, blocks of source rows, tiles of source
    columns, chunks. SKIPS_ZERO_WEIGHTS says that some column of pixels gives the weight 0 to a
    source that exists.
    """
    dtype: tl.constexpr = tl.float64 if scores.dtype.element_ty == tl.float64 else tl.float32
    IS_HALF: tl.constexpr = scores.dtype.element_ty.primitive_bitwidth == 16
    K: tl.constexpr = (CHUNK + BLOCK_C - 1) // BLOCK_C
    CHUNKS: tl.constexpr = (C + CHUNK - 1) // CHUNK
    program = tl.program_id(0)
    first_class = (program % CHUNKS) * CHUNK
    tile = program // CHUNKS
    first_column = (tile % tiles) * (INTERVALS - 1)
    row_block = tile // tiles
    first_row = (row_block % row_blocks) * block_rows
    last_row = tl.minimum(first_row + block_rows, source_rows)
    image = (row_block // row_blocks).to(tl.int64)
    scores += image * image_stride
    gradient += image * gradient_image_stride
    strides = (class_stride, row_stride, column_stride)

    interval = tl.arange(0, INTERVALS)
    group = tl.arange(0, ROW_GROUPS)
    c = tl.arange(0, BLOCK_C)[None, None, :]
    column = first_column + interval  # of the interval, and of the source behind it
    is_interval = column <= source_columns
    has_left = (column > 0) & is_interval
    has_right = column < source_columns
    x_start = tl.load(column_starts + column, is_interval, 0)
    x_end = tl.load(column_starts + column + 1, is_interval, 0)
    phases = tl.max(x_end - x_start, axis=0)
    # An interval of two tiles, or of two blocks, counts in the one that has both its sources.
    is_inner_column = (interval < INTERVALS - 1) | (column == source_columns)

    temperature = float_from_bits(inverse_temperature, dtype)
    D = load_divisor(counts, weights, divisor_source, num_partials, DIVISOR, NUM_PARTIALS)
    scale = 1 / D
    if HAS_TEMPERATURE:
        scale *= float_from_bits(inverse_temperature, tl.float64)
    scale = scale.to(dtype)
    class_weight_sum = 1
    if IS_SMOOTHED:
        target_share = 1 - float_from_bits(label_smoothing, dtype)
        uniform_share = float_from_bits(label_smoothing, dtype) / C
        class_weight_sum = sum_class_weights(class_weight, C, BLOCK_C, dtype)

    zeros = tl.zeros((ROW_GROUPS, INTERVALS, BLOCK_C), dtype)
    total = tl.zeros((ROW_GROUPS, INTERVALS, BLOCK_C), tl.float64)
    # The gradient of the sources above, on both sides of the interval, so far.
    to_upper_left = _zero_blocks((ROW_GROUPS, INTERVALS, BLOCK_C), dtype, K)
    to_upper_right = _zero_blocks((ROW_GROUPS, INTERVALS, BLOCK_C), dtype, K)
    for interval_row in range(first_row, last_row + 1):
        row = (
            tl.zeros((INTERVALS,), tl.int64) + interval_row
        )  # of intervals, and of the sources below
        to_lower_left = _zero_blocks((ROW_GROUPS, INTERVALS, BLOCK_C), dtype, K)
        to_lower_right = _zero_blocks((ROW_GROUPS, INTERVALS, BLOCK_C), dtype, K)
        is_counted = is_inner_column & ((row < last_row) | (row == source_rows))
        is_counted = is_counted[None, :, None]
        y_end = tl.load(row_starts + interval_row + 1)
        for y_first in range(tl.load(row_starts + interval_row), y_end, ROW_GROUPS):
            y_pixel = y_first + group
            in_interval = y_pixel < y_end
            above = tl.load(row_weights + y_pixel, in_interval, 0)[:, None, None]
            below = tl.load(row_weights + rows + y_pixel, in_interval, 0)[:, None, None]
            left = _interpolate_rows(
                scores,
                strides,
                row,
                source_rows,
                above,
                below,
                column - 1,
                has_left,
                temperature,
                first_class,
                C,
                BLOCK_C,
                K,
                dtype,
                HAS_TEMPERATURE,
            )
            right = _interpolate_rows(
                scores,
                strides,
                row,
                source_rows,
                above,
                below,
                column,
                has_right,
                temperature,
                first_class,
                C,
                BLOCK_C,
                K,
                dtype,
                HAS_TEMPERATURE,
            )
            first_offset = (image * rows + y_pixel) * columns
            to_left = _zero_blocks((ROW_GROUPS, INTERVALS, BLOCK_C), dtype, K)
            to_right = _zero_blocks((ROW_GROUPS, INTERVALS, BLOCK_C), dtype, K)
            # Collect pixels until each lane that shares an interval has a logarithm to compute.
            for first_phase in range(0, phases, BLOCK_C):
                kept_t = zeros
                kept_d = zeros
                kept_weight = zeros
                kept_smoothing_sum = zeros
                kept_uniform_weight = zeros
                for phase in range(first_phase, tl.minimum(first_phase + BLOCK_C, phases)):
                    x_pixel = x_start + phase
                    in_row = x_pixel < x_end
                    before = tl.load(column_weights + x_pixel, in_row, 0)[None, :, None]
                    behind = tl.load(column_weights + columns + x_pixel, in_row, 0)[None, :, None]
                    offset = first_offset[:, None] + x_pixel[None, :]
                    inside = in_interval[:, None] & in_row[None, :]
                    y = load_classes(labels, offset, inside, ignored, C)
                    valid = y < C
                    target_class = y[:, :, None]
                    is_ignored = target_class >= C
                    logits = ()
                    m = tl.full((ROW_GROUPS, INTERVALS, BLOCK_C), -float("inf"), dtype)
                    target_logit = zeros
                    for k in tl.static_range(K):
                        classes = first_class + c + k * BLOCK_C
                        if SKIPS_ZERO_WEIGHTS:
                            x = weighted(before, left[k]) + weighted(behind, right[k])
                        else:
                            x = before * left[k] + behind * right[k]
                        if k * BLOCK_C + BLOCK_C > CHUNK or C % CHUNK != 0:
                            x = tl.where(classes < C, x, -float("inf"))
                        logits += (x,)
                        if grad_planes is None:
                            m = tl.maximum(m, x)
                            target_logit = tl.where(classes == target_class, x, target_logit)
                    exponentials = ()
                    if grad_planes is None:
                        uniform_weight, of_class = load_weights(
                            class_weight, pixel_weight, offset, y, C, dtype
                        )
                        weight = uniform_weight * of_class
                        if IS_SMOOTHED:
                            weight *= target_share
                            uniform_weight *= uniform_share
                        m = tl.max(m, axis=2)
                        t = zeros
                        smoothing_sum = zeros
                        for k in tl.static_range(K):
                            classes = c + k * BLOCK_C
                            # Each class of an ignored pixel counts as its target, of gradient 0.
                            e, t, smoothing_sum, _ = add_exponentials(
                                logits[k],
                                (classes == target_class) | is_ignored,
                                classes,
                                m[:, :, None],
                                t,
                                smoothing_sum,
                                smoothing_sum,
                                class_weight,
                                C,
                                IS_HALF,
                                IS_SMOOTHED,
                                False,
                            )
                            exponentials += (e,)
                        t = tl.sum(t, axis=2)
                        target_distance = tl.sum(target_logit, axis=2) - m  # the sum keeps NaN
                        target_exp = exp(target_distance, IS_HALF)
                        grad_scale, smoothing_grad, target_grad = gradient_factors(
                            target_exp,
                            t,
                            t + target_exp,
                            weight,
                            uniform_weight,
                            of_class,
                            class_weight_sum,
                            scale,
                            IS_SMOOTHED,
                        )
                        target_grad = tl.where(valid, target_grad, 0)
                        is_kept = (c == phase - first_phase) & ~is_ignored
                        kept_t = tl.where(is_kept, t[:, :, None], kept_t)
                        kept_d = tl.where(is_kept, target_distance[:, :, None], kept_d)
                        kept_weight = tl.where(is_kept, weight[:, :, None], kept_weight)
                        if IS_SMOOTHED:
                            smoothing_sum = tl.sum(smoothing_sum, axis=2)[:, :, None]
                            kept_smoothing_sum = tl.where(
                                is_kept, smoothing_sum, kept_smoothing_sum
                            )
                            kept_uniform_weight = tl.where(
                                is_kept, uniform_weight[:, :, None], kept_uniform_weight
                            )
                    else:
                        plane = grad_planes + offset
                        m = tl.load(plane, valid, 0)
                        plane += num_pixels
                        grad_scale = tl.load(plane, valid, 0)
                        plane += num_pixels
                        target_grad = tl.load(plane, valid, 0)
                        smoothing_grad = grad_scale
                        if IS_SMOOTHED:
                            smoothing_grad = tl.load(plane + num_pixels, valid, 0)
                        for k in tl.static_range(K):
                            exponentials += (exp(logits[k] - m[:, :, None], IS_HALF),)
                    gradients = ()
                    for k in tl.static_range(K):
                        classes = first_class + c + k * BLOCK_C
                        gradients += (
                            class_gradient(
                                exponentials[k],
                                (classes == target_class) | is_ignored,
                                classes,
                                grad_scale[:, :, None],
                                smoothing_grad[:, :, None],
                                target_grad[:, :, None],
                                class_weight,
                                C,
                                IS_SMOOTHED,
                            ),
                        )
                    to_left = _fma_blocks(to_left, before, gradients, K)
                    to_right = _fma_blocks(to_right, behind, gradients, K)
                if grad_planes is None:
                    kept_s = kept_t + exp(kept_d, IS_HALF)
                    log_s, nll = nll_of(kept_d, kept_t, kept_s, float_from_bits(max_nll, dtype))
                    term = kept_weight * nll
                    if IS_SMOOTHED:
                        term += kept_uniform_weight * (
                            class_weight_sum * log_s - kept_smoothing_sum
                        )
                    total += tl.where(is_counted, term, 0).to(tl.float64)
            to_upper_left = _fma_blocks(to_upper_left, above, to_left, K)
            to_upper_right = _fma_blocks(to_upper_right, above, to_right, K)
            to_lower_left = _fma_blocks(to_lower_left, below, to_left, K)
            to_lower_right = _fma_blocks(to_lower_right, below, to_right, K)
        if interval_row > first_row:
            next_interval = ((interval + 1) % INTERVALS)[None, :, None] + tl.zeros(
                (ROW_GROUPS, INTERVALS, BLOCK_C), tl.int32
            )
            is_source = ((interval < INTERVALS - 1) & has_right)[:, None]
            to = (row - 1) * gradient_row_stride + column.to(tl.int64) * gradient_column_stride
            to = gradient + to[:, None]
            for k in tl.static_range(K):
                classes = (first_class + k * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
                g = to_upper_right[k] + tl.gather(to_upper_left[k], next_interval, 1)
                tl.store(
                    to + classes.to(tl.int64) * gradient_class_stride,
                    tl.sum(g, axis=0).to(gradient.dtype.element_ty),
                    is_source & (classes < C),
                )
        to_upper_left = to_lower_left
        to_upper_right = to_lower_right

    if partial is not None:
        total = tl.sum(tl.sum(tl.sum(total, axis=2), axis=1), axis=0)
        tl.store(partial + program, total)
    if finished is not None:
        reduce_partials(
            partial, finished, loss, None, D, counts, num_partials, report, call_id, NUM_PARTIALS
        )
