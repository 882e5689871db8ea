"""The GPU kernel for more classes than a program can hold: loss, gradient, terms and maps.

A program takes a tile of pixels, and one block of classes after another. It reads the logits once
for the maximum, again for the sums, for the gradient, and for each of the top classes; after the
first time from the second-level cache. The formulas are those of `cross_entropy` and `evaluate`.
"""

import triton
import triton.language as tl

from seg_loss.gpu.cross_entropy import (
    gradient_factors,
    gradient_of_block,
    load_grad_scale,
    load_targets,
    load_weights,
    nats_of,
    nll_of,
    spatial_offsets,
    sum_class_weights,
)
from seg_loss.gpu.evaluate import TOP, store_top_class
from seg_loss.gpu.interpolation import interpolate, locate_sources
from seg_loss.gpu.math import (
    BLOCKS_PER_SUM,
    add_other_class,
    exponent_of_maximum,
    exponent_scale,
    exponential,
    float_from_bits,
    reciprocal,
)


@triton.jit
def load_block(logits, at, source_weights, classes, inside, strides, dtype, C: tl.constexpr):
    """Loads a block [classes, pixels] of logits, or interpolates it if there are weights."""
    if len(source_weights) == 0:
        offset = classes.to(tl.int64)[:, None] * strides[0] + at[None, :]
        mask = (classes < C)[:, None] & inside[None, :]
        return tl.load(logits + offset, mask, -float("inf")).to(dtype)
    else:
        return interpolate(logits, at, source_weights, classes, inside, strides, C)


@triton.jit
def higher_of(x, classes, best, best_classes):
    """Returns the larger of two logits and its class; the first of equal ones."""
    is_higher = x > best
    return tl.where(is_higher, x, best), tl.where(is_higher, classes[:, None], best_classes)


@triton.jit
def highest_of(best, best_classes, C: tl.constexpr):
    """Returns, over the axis of classes, the highest logit and the first class that has it."""
    highest = tl.max(best, axis=0)
    first = tl.min(tl.where(best == highest[None, :], best_classes, C), axis=0)
    return highest, tl.where(first < C, first, 0)


@triton.jit
def find_best_class(
    logits,
    at,
    source_weights,
    chosen,
    inside,
    strides,
    dtype,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Returns the highest logit and the first class that has it, but for the chosen classes."""
    c = tl.arange(0, BLOCK_C)
    best = tl.full((BLOCK_C, BLOCK_P), -float("inf"), dtype)
    best_classes = c[:, None] + tl.zeros((BLOCK_C, BLOCK_P), tl.int32)
    for k in range((C + BLOCK_C - 1) // BLOCK_C):
        classes = c + k * BLOCK_C
        x = load_block(logits, at, source_weights, classes, inside, strides, dtype, C)
        for earlier in tl.static_range(len(chosen)):
            x = tl.where(classes[:, None] == chosen[earlier][None, :], -float("inf"), x)
        best, best_classes = higher_of(x, classes, best, best_classes)
    return highest_of(best, best_classes, C)


@triton.jit
def many_classes_kernel(
    logits,
    gradient,
    labels,
    class_weight,
    pixel_weight,
    divisor,
    grad_output,
    partial,
    terms,
    grad_planes,
    prediction,
    nll_map,
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
    num_tiles,
    num_pixels,
    rows,
    columns,
    image_stride,
    class_stride,
    slice_stride,
    row_stride,
    column_stride,
    gradient_image_stride,
    gradient_class_stride,
    gradient_slice_stride,
    gradient_row_stride,
    gradient_column_stride,
    inverse_temperature,
    label_smoothing,
    ignored,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    AXES: tl.constexpr,
    IS_SMOOTHED: tl.constexpr,
    MAX_NLL: tl.constexpr,
    SKIP_IF_UNIT_GRAD: tl.constexpr,
):
    """Computes partial sums, the gradient, the terms and the maps, each if there is memory for it.

    With intervals and weights, the logits are scores to be upsampled.
    `upsampled.upsampled_cross_entropy_kernel` computes their gradient from the `grad_planes`
    [4, pixels] that this kernel writes: maximum, factor, gradient of the target, and smoothing.
    """
    if SKIP_IF_UNIT_GRAD:
        if tl.load(grad_output) == 1:
            return
    dtype: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    K: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    scale = exponent_scale(inverse_temperature, dtype)

    image = (tile // tiles_per_image).to(tl.int64)
    pixel = (tile % tiles_per_image).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < pixels
    offset = image * pixels + pixel
    y = load_targets(labels, offset, inside, ignored, C, False)
    valid = y >= 0
    uniform_weight, of_class = load_weights(class_weight, pixel_weight, offset, y, dtype)
    weight = uniform_weight * of_class
    y = tl.where(valid, y, C)
    logits += image * image_stride
    if row_intervals is None:
        at = spatial_offsets(pixel, rows, columns, (slice_stride, row_stride, column_stride), AXES)
        source_weights = ()
    else:
        grid = (row_intervals, row_weights, column_intervals, column_weights)
        strides = (class_stride, row_stride, column_stride)
        at, source_weights = locate_sources(grid, pixel, inside, rows, columns, strides)
    strides = (class_stride, row_stride, column_stride)

    best = tl.full((BLOCK_C, BLOCK_P), -float("inf"), dtype)
    best_classes = c[:, None] + tl.zeros((BLOCK_C, BLOCK_P), tl.int32)
    target = tl.zeros((BLOCK_C, BLOCK_P), dtype)
    for k in range(K):
        classes = c + k * BLOCK_C
        x = load_block(logits, at, source_weights, classes, inside, strides, dtype, C)
        best, best_classes = higher_of(x, classes, best, best_classes)
        target = tl.where(classes[:, None] == y[None, :], x, target)
    m, predicted = highest_of(best, best_classes, C)
    target_logit = tl.sum(target, axis=0)  # unlike a maximum, a sum keeps NaN

    pixel_scale, exponent, unit = exponent_of_maximum(m, scale)
    t = tl.zeros((BLOCK_P,), dtype)
    smoothing_sum = tl.zeros((BLOCK_P,), dtype)
    moment = tl.zeros((BLOCK_P,), dtype)
    for first in range(0, K, BLOCKS_PER_SUM):
        partial_t = tl.zeros((BLOCK_C, BLOCK_P), dtype)
        partial_smoothing = tl.zeros((BLOCK_C, BLOCK_P), dtype)
        partial_moment = tl.zeros((BLOCK_C, BLOCK_P), dtype)
        for k in range(first, tl.minimum(first + BLOCKS_PER_SUM, K)):
            classes = c + k * BLOCK_C
            x = load_block(logits, at, source_weights, classes, inside, strides, dtype, C)
            classes = classes[:, None]
            p = tl.fma(x, pixel_scale[None, :], -exponent[None, :])
            e = exponential(p)
            partial_t = add_other_class(partial_t, e, classes, y[None, :])
            if IS_SMOOTHED:
                if class_weight is None:
                    partial_smoothing += tl.where(classes < C, p, 0)
                else:
                    share = tl.load(class_weight + classes, classes < C, 0).to(dtype)
                    partial_smoothing += tl.where(share != 0, share * p, 0)
            if entropy_map is not None:
                p = tl.maximum(p, -2000.0, propagate_nan=tl.PropagateNan.ALL)
                partial_moment += e * p
        t += tl.sum(partial_t, axis=0)
        if IS_SMOOTHED:
            smoothing_sum += tl.sum(partial_smoothing, axis=0)
        if entropy_map is not None:
            moment += tl.sum(partial_moment, axis=0)
    target_exponent = tl.fma(target_logit, pixel_scale, -exponent)
    target_exponent = tl.where(valid, target_exponent, -float("inf"))
    target_exp = exponential(target_exponent)
    target_nats = nats_of(target_exponent, target_logit, m, unit, inverse_temperature)
    log_s, nll = nll_of(t, target_exp, target_nats, MAX_NLL)
    inverse = reciprocal(t + target_exp)
    pixel_term = weight * nll
    class_weight_sum = 1
    if IS_SMOOTHED:
        class_weight_sum = sum_class_weights(class_weight, C, BLOCK_C, dtype)
        smoothing = float_from_bits(label_smoothing, dtype)
        pixel_term *= 1 - smoothing
        smoothing_sum *= unit
        smooth_term = class_weight_sum * log_s - smoothing_sum
        pixel_term += uniform_weight * (smoothing / C) * smooth_term
    pixel_term = tl.where(valid, pixel_term, 0)
    if partial is not None:
        tl.store(partial + tile, tl.sum(pixel_term.to(tl.float64), axis=0))
        if prediction is not None:
            exact = uniform_weight.to(tl.float64) * of_class.to(tl.float64)
            sum_of_weights = tl.sum(tl.where(valid, exact, 0), axis=0)
            tl.store(partial + num_tiles + tile, sum_of_weights)
    if terms is not None:
        tl.store(terms + offset, pixel_term, inside)

    if prediction is not None:
        tl.store(prediction + offset, predicted.to(prediction.dtype.element_ty), inside)
        tl.store(nll_map + offset, tl.where(valid, nll, 0), inside)
        confidence = exponential(tl.fma(m, pixel_scale, -exponent)) * inverse
        tl.store(confidence_map + offset, confidence, inside)
    if entropy_map is not None:
        entropy = log_s - moment * unit * inverse
        tl.store(entropy_map + offset, entropy.to(entropy_map.dtype.element_ty), inside)
    if top_classes is not None:
        top_maps = (top_classes, top_probabilities)
        softmax = (pixel_scale, exponent, inverse)
        chosen = ()
        for rank in tl.static_range(TOP):
            highest, first = find_best_class(
                logits, at, source_weights, chosen, inside, strides, dtype, C, BLOCK_C, BLOCK_P
            )
            chosen += (first,)
            row = (image * TOP + rank) * pixels + pixel
            store_top_class(top_maps, row, inside, first, highest, softmax)

    if gradient is not None or grad_planes is not None:
        if IS_SMOOTHED:
            weight *= 1 - smoothing
            uniform_weight *= smoothing / C
        factors = gradient_factors(
            t, target_exp, weight, uniform_weight, of_class, class_weight_sum, IS_SMOOTHED
        )
    if grad_planes is not None:
        plane = grad_planes + offset
        tl.store(plane, m, inside)
        tl.store(plane + num_pixels, factors[0], inside)
        tl.store(plane + 2 * num_pixels, tl.where(valid, factors[2], 0), inside)
        if IS_SMOOTHED:
            tl.store(plane + 3 * num_pixels, factors[1], inside)
    if gradient is not None:
        grad_scale = load_grad_scale(divisor, grad_output, inverse_temperature, dtype)
        y = tl.where(valid, y, -1)  # each class of an ignored pixel counts as its target
        gradient += image * gradient_image_stride
        to_strides = (gradient_slice_stride, gradient_row_stride, gradient_column_stride)
        to = spatial_offsets(pixel, rows, columns, to_strides, AXES)
        for k in range(K):
            classes = c + k * BLOCK_C
            x = load_block(logits, at, source_weights, classes, inside, strides, dtype, C)
            mask = (classes < C)[:, None] & inside[None, :]
            cell = classes.to(tl.int64)[:, None] * gradient_class_stride + to[None, :]
            e = exponential(tl.fma(x, pixel_scale[None, :], -exponent[None, :]))
            g = gradient_of_block(
                e * (factors[0] * grad_scale)[None, :],
                factors,
                grad_scale,
                classes[:, None],
                y,
                class_weight,
                C,
                IS_SMOOTHED,
            )
            tl.store(gradient + cell, g.to(gradient.dtype.element_ty), mask)
