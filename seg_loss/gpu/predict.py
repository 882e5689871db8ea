"""The GPU kernels of `predict`: the maps of `evaluate` without labels.

`predict_kernel` holds all classes of a tile in registers, as `evaluate.evaluate_kernel` does.
`predict_by_blocks_kernel` takes one block of classes after another, as `many_classes` does: for
more classes than fit, and for the prediction of upsampled scores alone, whose blocks are not needed
again. Passing None for a map removes it at compile time.

The predicted class takes the place of the target class, so that it stays out of the sum t of the
exponentials, and entropies near 0 keep their digits.
"""

import triton
import triton.language as tl

from seg_loss.gpu.cross_entropy import (
    exponentials_of_blocks,
    load_blocks,
    maximum_of_blocks,
    nats_of,
    nll_of,
    spatial_offsets,
)
from seg_loss.gpu.evaluate import (
    TOP,
    first_class_of_blocks,
    highest_of_blocks,
    moment_of_blocks,
    store_top_class,
)
from seg_loss.gpu.interpolation import interpolate, locate_sources
from seg_loss.gpu.many_classes import find_best_class, load_block
from seg_loss.gpu.math import (
    BLOCKS_PER_SUM,
    add_other_class,
    exponent_of_maximum,
    exponent_scale,
    exponential,
    reciprocal,
)


@triton.jit
def _log_sum(t, m, m_exp, pixel_scale, exponent, unit, inverse_temperature):
    """Returns ln s of the sum s = t + m_exp of all exponentials."""
    m_exponent = tl.fma(m, pixel_scale, -exponent)
    m_nats = nats_of(m_exponent, m, m, unit, inverse_temperature)
    log_s, _ = nll_of(t, m_exp, m_nats, None)
    return log_s


@triton.jit
def predict_kernel(
    scores,
    prediction,
    confidence_map,
    entropy_map,
    top_classes,
    top_probabilities,
    row_intervals,
    row_weights,
    column_intervals,
    column_weights,
    pixels,
    tiles_per_image,
    rows,
    columns,
    image_stride,
    class_stride,
    slice_stride,
    row_stride,
    column_stride,
    inverse_temperature,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    AXES: tl.constexpr,
    HAS_ALL: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Writes the maps; with intervals and weights of rows and columns, of upsampled scores."""
    dtype: tl.constexpr = tl.float64 if scores.dtype.element_ty == tl.float64 else tl.float32
    tile = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    image = (tile // tiles_per_image).to(tl.int64)
    pixel = (tile % tiles_per_image).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < pixels
    scores += image * image_stride
    if row_intervals is None:
        strides = (slice_stride, row_stride, column_stride)
        at = spatial_offsets(pixel, rows, columns, strides, AXES)
        blocks = load_blocks(scores, class_stride, at, inside, c, C, BLOCK_C, HAS_ALL)
    else:
        grid = (row_intervals, row_weights, column_intervals, column_weights)
        strides = (class_stride, row_stride, column_stride)
        at, source_weights = locate_sources(grid, pixel, inside, rows, columns, strides)
        blocks = ()
        for k in tl.static_range((C + BLOCK_C - 1) // BLOCK_C):
            classes = c + k * BLOCK_C
            blocks += (interpolate(scores, at, source_weights, classes, inside, strides, C),)
    m = maximum_of_blocks(blocks)
    predicted = first_class_of_blocks(blocks, m, (), c, C)
    offset = image * pixels + pixel
    if prediction is not None:
        tl.store(prediction + offset, predicted.to(prediction.dtype.element_ty), inside)
    if confidence_map is not None or entropy_map is not None or top_classes is not None:
        scale = exponent_scale(inverse_temperature, dtype)
        pixel_scale, exponent, unit = exponent_of_maximum(m, scale)
        exponentials, t, _ = exponentials_of_blocks(
            blocks, pixel_scale, exponent, unit, predicted, c, None, C, False
        )
        m_exp = exponential(tl.fma(m, pixel_scale, -exponent))
        factor = reciprocal(t + m_exp)
        if confidence_map is not None:
            confidence = (m_exp * factor).to(confidence_map.dtype.element_ty)
            tl.store(confidence_map + offset, confidence, inside)
        if entropy_map is not None:
            log_s = _log_sum(t, m, m_exp, pixel_scale, exponent, unit, inverse_temperature)
            moment = moment_of_blocks(blocks, exponentials, pixel_scale, exponent)
            entropy = log_s - moment * unit * factor
            tl.store(entropy_map + offset, entropy.to(entropy_map.dtype.element_ty), inside)
        if top_classes is not None:
            top_maps = (top_classes, top_probabilities)
            softmax = (pixel_scale, exponent, factor)
            DEPTH: tl.constexpr = C if C < TOP else TOP
            chosen = ()
            for rank in tl.static_range(DEPTH):
                highest = highest_of_blocks(blocks, chosen, c)
                first = first_class_of_blocks(blocks, highest, chosen, c, C)
                chosen += (first,)
                row = (image * DEPTH + rank) * pixels + pixel
                store_top_class(top_maps, row, inside, first, highest, softmax)


@triton.jit
def predict_by_blocks_kernel(
    scores,
    prediction,
    confidence_map,
    entropy_map,
    top_classes,
    top_probabilities,
    row_intervals,
    row_weights,
    column_intervals,
    column_weights,
    pixels,
    tiles_per_image,
    rows,
    columns,
    image_stride,
    class_stride,
    slice_stride,
    row_stride,
    column_stride,
    inverse_temperature,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    AXES: tl.constexpr,
):
    """Writes the maps, as `predict_kernel` does."""
    dtype: tl.constexpr = tl.float64 if scores.dtype.element_ty == tl.float64 else tl.float32
    K: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    image = (tile // tiles_per_image).to(tl.int64)
    pixel = (tile % tiles_per_image).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < pixels
    offset = image * pixels + pixel
    scores += image * image_stride
    if row_intervals is None:
        at = spatial_offsets(pixel, rows, columns, (slice_stride, row_stride, column_stride), AXES)
        source_weights = ()
    else:
        grid = (row_intervals, row_weights, column_intervals, column_weights)
        strides = (class_stride, row_stride, column_stride)
        at, source_weights = locate_sources(grid, pixel, inside, rows, columns, strides)
    strides = (class_stride, row_stride, column_stride)
    m, predicted = find_best_class(
        scores, at, source_weights, (), inside, strides, dtype, C, BLOCK_C, BLOCK_P
    )
    if prediction is not None:
        tl.store(prediction + offset, predicted.to(prediction.dtype.element_ty), inside)
    if confidence_map is not None or entropy_map is not None or top_classes is not None:
        scale = exponent_scale(inverse_temperature, dtype)
        pixel_scale, exponent, unit = exponent_of_maximum(m, scale)
        t = tl.zeros((BLOCK_P,), dtype)
        moment = tl.zeros((BLOCK_P,), dtype)
        for first in range(0, K, BLOCKS_PER_SUM):
            partial_t = tl.zeros((BLOCK_C, BLOCK_P), dtype)
            partial_moment = tl.zeros((BLOCK_C, BLOCK_P), dtype)
            for k in range(first, tl.minimum(first + BLOCKS_PER_SUM, K)):
                classes = c + k * BLOCK_C
                x = load_block(scores, at, source_weights, classes, inside, strides, dtype, C)
                p = tl.fma(x, pixel_scale[None, :], -exponent[None, :])
                e = exponential(p)
                partial_t = add_other_class(partial_t, e, classes[:, None], predicted[None, :])
                if entropy_map is not None:
                    p = tl.maximum(p, -2000.0, propagate_nan=tl.PropagateNan.ALL)
                    partial_moment += e * p
            t += tl.sum(partial_t, axis=0)
            if entropy_map is not None:
                moment += tl.sum(partial_moment, axis=0)
        m_exp = exponential(tl.fma(m, pixel_scale, -exponent))
        factor = reciprocal(t + m_exp)
        if confidence_map is not None:
            confidence = (m_exp * factor).to(confidence_map.dtype.element_ty)
            tl.store(confidence_map + offset, confidence, inside)
        if entropy_map is not None:
            log_s = _log_sum(t, m, m_exp, pixel_scale, exponent, unit, inverse_temperature)
            entropy = log_s - moment * unit * factor
            tl.store(entropy_map + offset, entropy.to(entropy_map.dtype.element_ty), inside)
        if top_classes is not None:
            top_maps = (top_classes, top_probabilities)
            softmax = (pixel_scale, exponent, factor)
            DEPTH: tl.constexpr = C if C < TOP else TOP
            chosen = ()
            for rank in tl.static_range(DEPTH):
                highest, first_class = find_best_class(
                    scores, at, source_weights, chosen, inside, strides, dtype, C, BLOCK_C, BLOCK_P
                )
                chosen += (first_class,)
                row = (image * DEPTH + rank) * pixels + pixel
                store_top_class(top_maps, row, inside, first_class, highest, softmax)
