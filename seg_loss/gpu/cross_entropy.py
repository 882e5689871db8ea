"""The GPU kernel of the loss: one read of the logits, one write of the gradient.

`backend` launches it. A program takes a tile of pixels with all their classes, as blocks
[BLOCK_C, BLOCK_P] whose sizes are in `tiling`. The formulas are those of `cpu.kernels`:

    m = max_c x_c      t = sum_{c != y} exp(x_c - m)      s = t + exp(x_y - m)
    nll = ln s - (x_y - m)                                ln s = log1p(t) where x_y is the maximum
    grad_c = w exp(x_c - m) / s / D                       grad_y = -w (t / s) / D

The target class is found by comparing each class with the label, so that no label is used in an
address before it has been compared with the number of classes. Partial sums are float64, and the
program that finishes last adds them in the order of the programs. Only integers are added
atomically.

Passing None for a tensor removes its feature at compile time.
"""

import triton
import triton.language as tl

from seg_loss.constants import NUM_TOP_CLASSES
from seg_loss.gpu.labels import (
    load_divisor,
    reduce_partials,
)
from seg_loss.gpu.math import (
    exp,
    float_from_bits,
    load,
    load_classes,
    load_weights,
    nll_of,
    offsets_of,
    scale_logits,
    store,
    sum_class_weights,
)

TOP = tl.constexpr(NUM_TOP_CLASSES)


@triton.jit
def _locate(pixel, inside, strides, rows, columns, grid, AXES: tl.constexpr):
    """Returns the offsets of the logits of pixels, and the weights of their source pixels.

    `grid` holds intervals and weights of rows and of columns. The weights are those of the sources
    above and below, before and behind. Without a grid the weights are an empty tuple, because
    Triton before 3.7 cannot return a tuple that holds None.
    """
    if grid is None:
        return offsets_of(pixel, strides, rows, columns, AXES)[None, :], ()
    else:
        row_cells, row_weights, column_cells, column_weights = grid
        y = pixel // columns
        x = pixel % columns
        row = tl.load(row_cells + y, inside, 0).to(tl.int64)
        column = tl.load(column_cells + x, inside, 0).to(tl.int64)
        source_weights = (
            tl.load(row_weights + y, inside, 0)[None, :],
            tl.load(row_weights + rows + y, inside, 0)[None, :],
            tl.load(column_weights + x, inside, 0)[None, :],
            tl.load(column_weights + columns + x, inside, 0)[None, :],
        )
        return (row * strides[3] + column * strides[4])[None, :], source_weights


@triton.jit
def _load_logits(logits, at, source_weights, classes, strides, inside, C: tl.constexpr):
    """Loads [classes, pixels] of the logits, interpolated if there are weights; -inf outside."""
    if len(source_weights) == 0:
        return load(logits, at, classes, strides[1], inside, C, -float("inf"))
    else:
        above, below, before, behind = source_weights
        lower_right = logits + classes.to(tl.int64)[:, None] * strides[1] + at
        upper_right = lower_right - strides[3]
        # Skip sources of weight 0: they may not exist, and 0 times NaN or infinity is NaN.
        is_class = (classes < C)[:, None]
        has_left = is_class & (before != 0)
        has_right = is_class & (behind != 0)
        has_upper = above != 0
        has_lower = below != 0
        left = above * tl.load(upper_right - strides[4], has_left & has_upper, 0)
        left += below * tl.load(lower_right - strides[4], has_left & has_lower, 0)
        right = above * tl.load(upper_right, has_right & has_upper, 0)
        right += below * tl.load(lower_right, has_right & has_lower, 0)
        x = before * left + behind * right
        return tl.where(is_class & inside[None, :], x, -float("inf"))


@triton.jit
def _best(values, classes, best, best_classes):
    """Returns the larger of two values and its class; the first of equal ones."""
    higher = values > best
    return tl.where(higher, values, best), tl.where(higher, classes[:, None], best_classes)


@triton.jit
def _first_best(best, best_classes, C: tl.constexpr):
    """Returns, over the axis of classes, the highest value and the first class that has it."""
    highest = tl.max(best, axis=0)
    first = tl.min(tl.where(best == highest[None, :], best_classes, C), axis=0)
    return highest, tl.where(first == C, 0, first)  # C if all values are NaN


@triton.jit
def _highest(x, classes, y, m, best_classes, target_logit, WANTS_CLASS: tl.constexpr):
    """Updates the maximum, the class that has it, and the target logit with one block."""
    if WANTS_CLASS:
        m, best_classes = _best(x, classes, m, best_classes)
    else:
        m = tl.maximum(m, x)
    return m, best_classes, tl.where(classes[:, None] == y[None, :], x, target_logit)


@triton.jit
def add_exponentials(
    x,
    is_target,
    classes,
    m,
    t,
    smoothing_sum,
    moment,
    class_weight,
    C: tl.constexpr,
    IS_HALF: tl.constexpr,
    IS_SMOOTHED: tl.constexpr,
    WANTS_MOMENT: tl.constexpr,
):
    """Returns the exponentials of a block, 0 for the target class, and updates the sums over them.

    `classes` and `m` have the axes of x, of length 1 where they are constant; `is_target` marks the
    target class.
    """
    d = x - m
    e = exp(tl.where(is_target, -float("inf"), d), IS_HALF)
    if IS_SMOOTHED:
        if class_weight is None:
            smoothing_sum += tl.where(classes < C, d, 0)
        else:
            share = tl.load(class_weight + classes, classes < C, 0).to(x.dtype)
            smoothing_sum += tl.where(share != 0, share * d, 0)  # 0 times -inf is NaN
    if WANTS_MOMENT:
        least = tl.maximum(d, -1000.0, propagate_nan=tl.PropagateNan.ALL)
        moment += exp(d, IS_HALF) * least
    return e, t + e, smoothing_sum, moment


@triton.jit
def class_gradient(
    e,
    is_target,
    classes,
    grad_scale,
    smoothing_grad,
    target_grad,
    class_weight,
    C: tl.constexpr,
    IS_SMOOTHED: tl.constexpr,
):
    """Returns the gradient of a block; that of the target class is an argument."""
    g = e * grad_scale
    if IS_SMOOTHED:
        if class_weight is None:
            g -= smoothing_grad
        else:
            g -= tl.load(class_weight + classes, classes < C, 0).to(e.dtype) * smoothing_grad
    return tl.where(is_target, target_grad, g)


@triton.jit
def gradient_factors(
    target_exp,
    t,
    s,
    weight,
    uniform_weight,
    of_class,
    class_weight_sum,
    scale,
    IS_SMOOTHED: tl.constexpr,
):
    """Returns the factors of the gradient of a pixel, for `class_gradient`.

    The gradient of class c is e_c grad_scale - w_c smoothing_grad; that of the target class is
    computed here.
    """
    factor = scale / s
    if IS_SMOOTHED:
        spread = uniform_weight * class_weight_sum
        smoothing_grad = uniform_weight * scale
        return (
            (weight + spread) * factor,
            smoothing_grad,
            (target_exp * spread - t * weight) * factor - smoothing_grad * of_class,
        )
    else:
        grad_scale = weight * factor
        return grad_scale, grad_scale, -t * grad_scale


@triton.jit
def _not_chosen(e, classes, y, target_exp, chosen, RANK: tl.constexpr):
    """Returns the exponentials of a block, the target class included, without higher ranks."""
    e = tl.where(classes[:, None] == y[None, :], target_exp[None, :], e)
    for earlier in tl.static_range(RANK):
        e = tl.where(classes[:, None] == chosen[earlier][None, :], -1, e)
    return e


@triton.jit
def cross_entropy_kernel(
    logits,
    logits_strides,
    grid,
    labels,
    class_weight,
    pixel_weight,
    gradient,
    gradient_strides,
    grad_planes,
    terms,
    prediction,
    nll_map,
    confidence_map,
    entropy_map,
    top_classes,
    top_probabilities,
    counts,
    weights,
    num_partials,
    divisor_source,
    divisor,
    grad_output,
    partial,
    finished,
    loss,
    report,
    call_id,
    pixels,
    num_pixels,
    rows,
    columns,
    programs_per_image,
    tiles_per_program,
    ignored,
    inverse_temperature,
    label_smoothing,
    max_nll,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    AXES: tl.constexpr,
    DIVISOR: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    IS_SMOOTHED: tl.constexpr,
    SKIP_IF_UNIT_GRAD: tl.constexpr,
):
    """Computes loss, gradient, terms and maps, each if there is memory for it.

    With a `grid` the logits are scores to be upsampled; `upsampled_cross_entropy_kernel` computes
    their gradient from the `grad_planes` [4, pixels] written here.

    gradient = grad_output / D * d(sum of terms) / d(logits), where a `grad_output` of None is 1.
    With SKIP_IF_UNIT_GRAD the gradient for a `grad_output` of 1 exists already, and the kernel
    returns at once if `grad_output` is 1.
    """
    if SKIP_IF_UNIT_GRAD:
        if tl.load(grad_output) == 1:
            return
    dtype: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    IS_HALF: tl.constexpr = logits.dtype.element_ty.primitive_bitwidth == 16
    K: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    image = (program // programs_per_image).to(tl.int64)
    first_pixel = (program % programs_per_image).to(tl.int64) * tiles_per_program * BLOCK_P
    logits += image * logits_strides[0]
    lane = tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    temperature = float_from_bits(inverse_temperature, dtype)
    D = load_divisor(counts, weights, divisor_source, num_partials, DIVISOR, NUM_PARTIALS)
    if gradient is not None:
        gradient += image * gradient_strides[0]
    if gradient is not None or grad_planes is not None:
        scale = 1 / D
        if grad_output is not None:
            scale *= tl.load(grad_output).to(tl.float64)
        if HAS_TEMPERATURE:
            scale *= float_from_bits(inverse_temperature, tl.float64)
        scale = scale.to(dtype)
    class_weight_sum = 1
    if IS_SMOOTHED:
        target_share = 1 - float_from_bits(label_smoothing, dtype)
        uniform_share = float_from_bits(label_smoothing, dtype) / C
        class_weight_sum = sum_class_weights(class_weight, C, BLOCK_C, dtype)
    total = tl.zeros((BLOCK_P,), tl.float64)

    for tile in range(0, tiles_per_program):
        pixel = first_pixel + tile * BLOCK_P + lane
        inside = pixel < pixels
        at, source_weights = _locate(pixel, inside, logits_strides, rows, columns, grid, AXES)
        offset = image * pixels + pixel
        blocks = ()
        if IN_REGISTERS:
            for k in tl.static_range(K):
                blocks += (
                    _load_logits(
                        logits, at, source_weights, c + k * BLOCK_C, logits_strides, inside, C
                    ),
                )
        y = load_classes(labels, offset, inside, ignored, C)
        valid = y < C
        uniform_weight, of_class = load_weights(class_weight, pixel_weight, offset, y, C, dtype)
        weight = uniform_weight * of_class

        # The maximum and the target logit.
        nothing = tl.full((BLOCK_C, BLOCK_P), -float("inf"), dtype)
        m = nothing
        target_logit = nothing
        best_classes = c[:, None] + tl.zeros((BLOCK_C, BLOCK_P), tl.int32)
        if IN_REGISTERS:
            for k in tl.static_range(K):
                x = scale_logits(blocks[k], temperature, dtype, HAS_TEMPERATURE)
                m, best_classes, target_logit = _highest(
                    x, c + k * BLOCK_C, y, m, best_classes, target_logit, prediction is not None
                )
        else:
            for k in range(K):
                classes = c + k * BLOCK_C
                x = _load_logits(logits, at, source_weights, classes, logits_strides, inside, C)
                x = scale_logits(x, temperature, dtype, HAS_TEMPERATURE)
                m, best_classes, target_logit = _highest(
                    x, classes, y, m, best_classes, target_logit, prediction is not None
                )
        if prediction is not None:
            m, best_class = _first_best(m, best_classes, C)
            tl.store(prediction + offset, best_class.to(prediction.dtype.element_ty), inside)
        else:
            m = tl.max(m, axis=0)
        is_nan = tl.max((target_logit != target_logit).to(tl.int32), axis=0) > 0  # tl.max drops NaN
        target_logit = tl.where(is_nan, float("nan"), tl.max(target_logit, axis=0))

        # The sum over the other classes, without the target.
        zeros = tl.zeros((BLOCK_C, BLOCK_P), dtype)
        t = zeros
        smoothing_sum = zeros
        moment = zeros
        exponentials = ()
        if IN_REGISTERS:
            for k in tl.static_range(K):
                x = scale_logits(blocks[k], temperature, dtype, HAS_TEMPERATURE)
                classes = (c + k * BLOCK_C)[:, None]
                e, t, smoothing_sum, moment = add_exponentials(
                    x,
                    classes == y[None, :],
                    classes,
                    m[None, :],
                    t,
                    smoothing_sum,
                    moment,
                    class_weight,
                    C,
                    IS_HALF,
                    IS_SMOOTHED,
                    entropy_map is not None,
                )
                exponentials += (e,)
        else:
            for k in range(K):
                classes = c + k * BLOCK_C
                x = _load_logits(logits, at, source_weights, classes, logits_strides, inside, C)
                x = scale_logits(x, temperature, dtype, HAS_TEMPERATURE)
                classes = classes[:, None]
                e, t, smoothing_sum, moment = add_exponentials(
                    x,
                    classes == y[None, :],
                    classes,
                    m[None, :],
                    t,
                    smoothing_sum,
                    moment,
                    class_weight,
                    C,
                    IS_HALF,
                    IS_SMOOTHED,
                    entropy_map is not None,
                )
        t = tl.sum(t, axis=0)
        target_distance = target_logit - m
        target_exp = exp(target_distance, IS_HALF)
        s = t + target_exp
        log_s, nll = nll_of(target_distance, t, s, float_from_bits(max_nll, dtype))
        term = weight * nll
        if IS_SMOOTHED:
            smoothing_sum = tl.sum(smoothing_sum, axis=0)
            weight *= target_share
            uniform_weight *= uniform_share
            term = weight * nll + uniform_weight * (class_weight_sum * log_s - smoothing_sum)
        term = tl.where(valid, term, 0)
        total += term.to(tl.float64)
        if terms is not None:
            tl.store(terms + offset, term, inside)
        if nll_map is not None:
            tl.store(nll_map + offset, tl.where(valid, nll, 0), inside)
        if confidence_map is not None:
            tl.store(confidence_map + offset, 1 / s, inside)
        if entropy_map is not None:
            tl.store(entropy_map + offset, log_s - tl.sum(moment, axis=0) / s, inside)

        if top_classes is not None:
            DEPTH: tl.constexpr = C if C < TOP else TOP  # Triton before 3.6 makes a tensor of min()
            chosen = ()
            for rank in tl.static_range(DEPTH):
                best = tl.full((BLOCK_C, BLOCK_P), -2, dtype)
                best_classes = c[:, None] + tl.zeros((BLOCK_C, BLOCK_P), tl.int32)
                if IN_REGISTERS:
                    for k in tl.static_range(K):
                        classes = c + k * BLOCK_C
                        e = _not_chosen(exponentials[k], classes, y, target_exp, chosen, rank)
                        best, best_classes = _best(e, classes, best, best_classes)
                else:
                    for k in range(K):
                        classes = c + k * BLOCK_C
                        x = _load_logits(
                            logits, at, source_weights, classes, logits_strides, inside, C
                        )
                        x = scale_logits(x, temperature, dtype, HAS_TEMPERATURE)
                        e = exp(x - m[None, :], IS_HALF)
                        e = _not_chosen(e, classes, y, target_exp, chosen, rank)
                        best, best_classes = _best(e, classes, best, best_classes)
                highest, best_class = _first_best(best, best_classes, C)
                chosen += (best_class,)
                row = (image * DEPTH + rank) * pixels + pixel
                tl.store(top_classes + row, best_class.to(top_classes.dtype.element_ty), inside)
                tl.store(top_probabilities + row, (highest / s).to(tl.float32), inside)

        if gradient is not None or grad_planes is not None:
            grad_scale, smoothing_grad, target_grad = gradient_factors(
                target_exp,
                t,
                s,
                weight,
                uniform_weight,
                of_class,
                class_weight_sum,
                scale,
                IS_SMOOTHED,
            )
        if grad_planes is not None:
            plane = grad_planes + offset
            tl.store(plane, m, inside)
            plane += num_pixels
            tl.store(plane, grad_scale, inside)
            plane += num_pixels
            tl.store(plane, target_grad, inside)
            if IS_SMOOTHED:
                tl.store(plane + num_pixels, smoothing_grad, inside)
        if gradient is not None:
            to = offsets_of(pixel, gradient_strides, rows, columns, AXES)[None, :]
            if IN_REGISTERS:
                for k in tl.static_range(K):
                    classes = c + k * BLOCK_C
                    g = class_gradient(
                        exponentials[k],
                        classes[:, None] == y[None, :],
                        classes[:, None],
                        grad_scale[None, :],
                        smoothing_grad[None, :],
                        target_grad[None, :],
                        class_weight,
                        C,
                        IS_SMOOTHED,
                    )
                    g = tl.where(valid[None, :], g, 0)  # a product with 0 would keep NaN
                    store(gradient, to, classes, gradient_strides[1], inside, C, g)
            else:
                for k in range(K):
                    classes = c + k * BLOCK_C
                    x = _load_logits(logits, at, source_weights, classes, logits_strides, inside, C)
                    x = scale_logits(x, temperature, dtype, HAS_TEMPERATURE)
                    g = class_gradient(
                        exp(x - m[None, :], IS_HALF),
                        classes[:, None] == y[None, :],
                        classes[:, None],
                        grad_scale[None, :],
                        smoothing_grad[None, :],
                        target_grad[None, :],
                        class_weight,
                        C,
                        IS_SMOOTHED,
                    )
                    g = tl.where(valid[None, :], g, 0)
                    store(gradient, to, classes, gradient_strides[1], inside, C, g)

    if partial is not None:
        tl.store(partial + program, tl.sum(total, axis=0))
    if finished is not None:
        reduce_partials(
            partial, finished, loss, divisor, D, counts, num_partials, report, call_id, NUM_PARTIALS
        )
