"""The GPU kernels of the loss: one read of the logits, one write of the gradient.

`loss` launches them. A program takes tiles of pixels with all their classes, as blocks
[BLOCK_C, BLOCK_P] whose sizes are in `tiling`. With the exponents p_c of `gpu.math`, in units of
log2(e), the formulas are those of `cpu.kernels`:

    t = sum_{c != y} 2**p_c               s = t + 2**p_y
    nll = ln(1 + t / 2**p_y)              if the target has at least half of the probability,
    nll = ln s - p_y ln 2                 and otherwise
    grad_c = w 2**p_c / s / D             grad_y = -w (t / s) / D

The target class stays out of the sum t, so that nothing cancels where the prediction is sure. Its
logit is loaded a second time, from the cache, after the label has been compared with the number of
classes.

Each program stores a partial sum in float64, and `sum_partials_kernel` adds them in the order of
the programs. Passing None for a tensor removes its feature at compile time.
"""

import triton
import triton.language as tl

from seg_loss.gpu.math import (
    add_other_class,
    as_int,
    exponent_of_maximum,
    exponent_scale,
    exponential,
    float_from_bits,
    log,
    maximum,
    reciprocal,
    select_unless_target,
    wait_for_previous_kernel,
    widen,
)

# Where programs count themselves, among the counters of `labels`, zeros between two calls.
TICKET = tl.constexpr(8)


@triton.jit
def load_targets(labels, offset, inside, ignored, C: tl.constexpr, HAS_ALL: tl.constexpr):
    """Loads labels as classes; -1 where ignored, invalid or outside. `ignored` are classes."""
    if HAS_ALL:
        label = as_int(tl.load(labels + offset))
    else:
        label = as_int(tl.load(labels + offset, inside, 0))
    valid = (label >= 0) & (label < C)
    if not HAS_ALL:
        valid &= inside
    for k in tl.static_range(len(ignored)):
        valid &= label != ignored[k]
    return tl.where(valid, label.to(tl.int32), -1)


@triton.jit
def load_weights(class_weight, pixel_weight, offset, y, dtype: tl.constexpr):
    """Returns the pixel weight, and the class weight of the target class, of each pixel."""
    of_pixel = tl.full(y.shape, 1, dtype)
    of_class = tl.full(y.shape, 1, dtype)
    if pixel_weight is not None:
        of_pixel = tl.load(pixel_weight + offset, y >= 0, 0).to(dtype)
    if class_weight is not None:
        of_class = tl.load(class_weight + y, y >= 0, 0).to(dtype)
    return of_pixel, of_class


@triton.jit
def sum_class_weights(class_weight, C: tl.constexpr, BLOCK_C: tl.constexpr, dtype: tl.constexpr):
    """Returns the sum of the weights of all classes."""
    if class_weight is None:
        return tl.full((), C, dtype)
    else:
        c = tl.arange(0, BLOCK_C)
        total = tl.zeros((), tl.float64)
        for first in range(0, C, BLOCK_C):
            weight = tl.load(class_weight + first + c, first + c < C, 0)
            total += tl.sum(weight.to(dtype), axis=0).to(tl.float64)
        return total.to(dtype)


@triton.jit
def spatial_offsets(pixel, rows, columns, strides, AXES: tl.constexpr):
    """Returns the offsets of pixels in an image; strides are those of slice, row and column."""
    if AXES == 0:
        return pixel
    elif AXES == 1:
        return pixel * strides[2]
    elif AXES == 2:
        return (pixel // columns) * strides[1] + (pixel % columns) * strides[2]
    else:
        row = pixel // columns
        return (
            (row // rows) * strides[0] + (row % rows) * strides[1] + (pixel % columns) * strides[2]
        )


@triton.jit
def class_offsets(c, k, BLOCK_C: tl.constexpr, class_stride, at):
    """Returns the offsets [BLOCK_C, pixels] of block k, with the integers of `at`."""
    return (c + k * BLOCK_C).to(at.dtype)[:, None] * class_stride + at[None, :]


@triton.jit
def load_blocks(
    logits,
    class_stride,
    at,
    inside,
    c,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HAS_ALL: tl.constexpr,
):
    """Loads a tile of the logits as a tuple of blocks; -inf beyond its classes and pixels."""
    K: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    blocks = ()
    for k in tl.static_range(K):
        offset = class_offsets(c, k, BLOCK_C, class_stride, at)
        if HAS_ALL and (k + 1) * BLOCK_C <= C:
            blocks += (tl.load(logits + offset),)
        else:
            mask = (c + k * BLOCK_C < C)[:, None] & inside[None, :]
            blocks += (tl.load(logits + offset, mask, -float("inf")),)
    return blocks


@triton.jit
def maximum_of_blocks(blocks):
    """Returns the maximum over the classes; NaN only where all logits are NaN."""
    m = blocks[0]
    for k in tl.static_range(1, len(blocks)):
        m = maximum(m, blocks[k])
    return tl.max(widen(m), axis=0)


@triton.jit
def exponentials_of_blocks(
    blocks, scale, exponent, unit, y, c, class_weight, C: tl.constexpr, IS_SMOOTHED: tl.constexpr
):
    """Returns the exponentials, their sum over the other classes, and the sum for the smoothing.

    The last is the weighted sum of all exponents, in nats.
    """
    BLOCK_C: tl.constexpr = blocks[0].shape[0]
    t = tl.zeros(blocks[0].shape, scale.dtype)
    smoothing_sum = t
    exponentials = ()
    for k in tl.static_range(len(blocks)):
        classes = (c + k * BLOCK_C)[:, None]
        p = tl.fma(widen(blocks[k]), scale[None, :], -exponent[None, :])
        e = exponential(p)
        exponentials += (e,)
        t = add_other_class(t, e, classes, y[None, :])
        if IS_SMOOTHED:
            if class_weight is None:
                smoothing_sum += tl.where(classes < C, p, 0)
            else:
                share = tl.load(class_weight + classes, classes < C, 0).to(p.dtype)
                smoothing_sum += tl.where(share != 0, share * p, 0)  # 0 times -inf is NaN
    return exponentials, tl.sum(t, axis=0), tl.sum(smoothing_sum, axis=0) * unit


@triton.jit
def nll_of(t, target_exp, target_nats, limit):
    """Returns ln s and the nll, at most `limit` unless that is None.

    `target_nats` is the target's exponent in nats. Where the target has at least half of the
    probability, nll = ln(1 + t / target_exp) by Kahan's correction for the rounding of the sum.
    """
    s = t + target_exp
    is_sure = t <= target_exp
    z = t * reciprocal(target_exp)
    u = tl.where(is_sure, 1 + z, s)
    ln = log(u)
    ln += tl.where(is_sure, (z - (u - 1)) * reciprocal(u), 0)
    nll = tl.where(is_sure, ln, ln - target_nats)
    log_s = tl.where(is_sure, ln + target_nats, ln)
    if limit is not None:
        nll = tl.where(nll > limit, limit, nll)
    return log_s, nll


@triton.jit
def nats_of(target_exponent, target_logit, m, unit, inverse_temperature):
    """Returns the target's exponent in nats, also where the exponent itself overflows."""
    distance = (target_logit - m) * float_from_bits(inverse_temperature, m.dtype)
    return tl.where(target_exponent == -float("inf"), distance, target_exponent * unit)


@triton.jit
def gradient_factors(
    t, target_exp, weight, uniform_weight, of_class, class_weight_sum, IS_SMOOTHED: tl.constexpr
):
    """Returns the factors of a pixel's gradient: of the exponentials, of class weights, and of y.

    The derivative of the term in the logit of class c, divided by the temperature, is
    factor * e_c - smoothing_grad * w_c; that of the target class is the third result.
    """
    factor = reciprocal(t + target_exp)
    if IS_SMOOTHED:
        spread = uniform_weight * class_weight_sum
        target_grad = (target_exp * spread - t * weight) * factor - uniform_weight * of_class
        return (weight + spread) * factor, uniform_weight, target_grad
    else:
        factor *= weight
        return factor, factor, -t * factor


@triton.jit
def loss_of_tile(
    blocks,
    target_logit,
    y,
    uniform_weight,
    of_class,
    c,
    class_weight,
    inverse_temperature,
    label_smoothing,
    C: tl.constexpr,
    IS_SMOOTHED: tl.constexpr,
    MAX_NLL: tl.constexpr,
):
    """Returns the terms of a tile, 0 where y is negative, the exponentials and gradient factors."""
    BLOCK_C: tl.constexpr = blocks[0].shape[0]
    dtype: tl.constexpr = target_logit.dtype
    m = maximum_of_blocks(blocks)
    scale, exponent, unit = exponent_of_maximum(m, exponent_scale(inverse_temperature, dtype))
    exponentials, t, smoothing_sum = exponentials_of_blocks(
        blocks, scale, exponent, unit, y, c, class_weight, C, IS_SMOOTHED
    )
    target_exponent = tl.fma(target_logit, scale, -exponent)
    target_exp = exponential(target_exponent)
    target_nats = nats_of(target_exponent, target_logit, m, unit, inverse_temperature)
    log_s, nll = nll_of(t, target_exp, target_nats, MAX_NLL)
    weight = uniform_weight * of_class
    class_weight_sum = 1
    if IS_SMOOTHED:
        smoothing = float_from_bits(label_smoothing, dtype)
        weight *= 1 - smoothing
        uniform_weight *= smoothing / C
        class_weight_sum = sum_class_weights(class_weight, C, BLOCK_C, dtype)
        term = weight * nll + uniform_weight * (class_weight_sum * log_s - smoothing_sum)
    else:
        term = weight * nll
    factors = gradient_factors(
        t, target_exp, weight, uniform_weight, of_class, class_weight_sum, IS_SMOOTHED
    )
    return tl.where(y >= 0, term, 0), exponentials, factors


@triton.jit
def gradient_of_block(
    scaled,
    factors,
    grad_scale,
    classes,
    y,
    class_weight,
    C: tl.constexpr,
    IS_SMOOTHED: tl.constexpr,
):
    """Returns the gradient of a block times `grad_scale`; 0 where y is negative.

    `scaled` are its exponentials times the first of the factors and `grad_scale`.
    """
    if IS_SMOOTHED:
        smoothing_grad = (factors[1] * grad_scale)[None, :]
        if class_weight is not None:
            smoothing_grad *= tl.load(class_weight + classes, classes < C, 0).to(scaled.dtype)
        scaled -= smoothing_grad
    target_grad = tl.where(y >= 0, factors[2] * grad_scale, 0)[None, :]
    return select_unless_target(scaled, target_grad, classes, y[None, :])


@triton.jit
def load_grad_scale(divisor, grad_output, inverse_temperature, dtype: tl.constexpr):
    """Returns grad_output / (D temperature), where None stands for 1."""
    if divisor is None:
        scale = float_from_bits(inverse_temperature, tl.float64)
    else:
        scale = tl.load(divisor + 1)
    if grad_output is not None:
        scale *= tl.load(grad_output).to(tl.float64)
    return scale.to(dtype)


@triton.jit
def cross_entropy_kernel(
    logits,
    gradient,
    labels,
    class_weight,
    pixel_weight,
    divisor,
    grad_output,
    partial,
    terms,
    pixels,
    tiles_per_image,
    num_tiles,
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
    HAS_ALL: tl.constexpr,
    INDEX: tl.constexpr,
    IS_SMOOTHED: tl.constexpr,
    MAX_NLL: tl.constexpr,
    SKIP_IF_UNIT_GRAD: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Computes partial sums of the terms, the gradient and the terms, each if there is memory.

    gradient = grad_output / D * d(sum of terms) / d(logits), where a `grad_output` of None is 1.
    `divisor` holds D and 1 / (D temperature). With SKIP_IF_UNIT_GRAD the gradient for a
    `grad_output` of 1 exists already, and the kernel returns at once if `grad_output` is 1.

    The strides of the gradient are None if they are those of the logits: one address serves both.
    HAS_ALL says that the pixels of an image are a multiple of BLOCK_P; INDEX is the integer type of
    offsets within an image.
    """
    if SKIP_IF_UNIT_GRAD:
        if tl.load(grad_output) == 1:
            return
    dtype: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0)
    lane = tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_P,), tl.float64)

    # A loop of one round is none, which saves registers.
    rounds = tl.cdiv(num_tiles - program, tl.num_programs(0)) if SKIP_IF_UNIT_GRAD else 1
    for i in range(0, rounds):
        tile = program + i * tl.num_programs(0)
        image = (tile // tiles_per_image).to(tl.int64)
        pixel = (tile % tiles_per_image).to(INDEX) * BLOCK_P + lane
        inside = pixel < pixels
        image_logits = logits + image * image_stride
        image_pixels = image * pixels
        strides = (slice_stride, row_stride, column_stride)
        at = spatial_offsets(pixel, rows, columns, strides, AXES)
        blocks = load_blocks(image_logits, class_stride, at, inside, c, C, BLOCK_C, HAS_ALL)
        y = load_targets(labels + image_pixels, pixel, inside, ignored, C, HAS_ALL)
        valid = y >= 0
        target = image_logits + tl.where(valid, y, 0).to(INDEX) * class_stride + at
        target_logit = tl.load(target, valid, 0).to(dtype)
        image_weight = pixel_weight
        if pixel_weight is not None:
            image_weight += image_pixels
        uniform_weight, of_class = load_weights(class_weight, image_weight, pixel, y, dtype)
        term, exponentials, factors = loss_of_tile(
            blocks,
            target_logit,
            y,
            uniform_weight,
            of_class,
            c,
            class_weight,
            inverse_temperature,
            label_smoothing,
            C,
            IS_SMOOTHED,
            MAX_NLL,
        )
        if IS_EARLY:
            wait_for_previous_kernel()
        if partial is not None:
            total += term.to(tl.float64)
        if terms is not None:
            tl.store(terms + image_pixels + pixel, term, inside)
        if gradient is not None:
            to = at
            to_image_stride = image_stride
            to_class_stride = class_stride
            if gradient_image_stride is not None:
                strides = (gradient_slice_stride, gradient_row_stride, gradient_column_stride)
                to = spatial_offsets(pixel, rows, columns, strides, AXES)
                to_image_stride = gradient_image_stride
                to_class_stride = gradient_class_stride
            image_gradient = gradient + image * to_image_stride
            grad_scale = load_grad_scale(divisor, grad_output, inverse_temperature, dtype)
            factor = factors[0] * grad_scale
            for k in tl.static_range(len(blocks)):
                classes = (c + k * BLOCK_C)[:, None]
                g = gradient_of_block(
                    exponentials[k] * factor[None, :],
                    factors,
                    grad_scale,
                    classes,
                    y,
                    class_weight,
                    C,
                    IS_SMOOTHED,
                ).to(gradient.dtype.element_ty)
                offset = class_offsets(c, k, BLOCK_C, to_class_stride, to)
                if HAS_ALL and (k + 1) * BLOCK_C <= C:
                    tl.store(image_gradient + offset, g)
                else:
                    tl.store(image_gradient + offset, g, (classes < C) & inside[None, :])
    if partial is not None:
        tl.store(partial + program, tl.sum(total, axis=0))


@triton.jit
def channels_last_kernel(
    logits,
    gradient,
    labels,
    class_weight,
    pixel_weight,
    divisor,
    grad_output,
    partial,
    terms,
    pixels,
    inverse_temperature,
    label_smoothing,
    ignored,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_ALL: tl.constexpr,
    IS_SMOOTHED: tl.constexpr,
    MAX_NLL: tl.constexpr,
    SKIP_IF_UNIT_GRAD: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Computes what `cross_entropy_kernel` does, for few classes that lie side by side.

    The logits of a tile of BLOCK_P pixels are one piece of memory. It is loaded as it is and
    exchanged between threads, so that each holds all classes of its pixels. BLOCK_C and BLOCK are
    powers of two, at least C and BLOCK_P * C. `pixels` are those of all images.
    """
    if SKIP_IF_UNIT_GRAD:
        if tl.load(grad_output) == 1:
            return
    dtype: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    lane = tl.arange(0, BLOCK_P)
    element = tl.arange(0, BLOCK)
    row = tl.arange(0, BLOCK_C * BLOCK_P)  # of the exchanged tile [BLOCK_C, BLOCK_P]
    is_class = row // BLOCK_P < C
    source = tl.where(is_class, (row % BLOCK_P) * C + row // BLOCK_P, 0)
    is_element = element < BLOCK_P * C
    total = tl.zeros((BLOCK_P,), tl.float64)

    rounds = 1
    if SKIP_IF_UNIT_GRAD:
        rounds = tl.cdiv(tl.cdiv(pixels, BLOCK_P) - program, tl.num_programs(0))
    for i in range(0, rounds):
        first = (program + i * tl.num_programs(0)).to(tl.int64) * BLOCK_P
        pixel = first + lane
        inside = pixel < pixels
        mask = is_element
        if not HAS_ALL:
            mask &= first * C + element < pixels * C
        flat = widen(tl.load(logits + first * C + element, mask, -float("inf")))
        x = tl.where(is_class, tl.gather(flat, source, 0), -float("inf"))
        blocks = (tl.reshape(x, (BLOCK_C, BLOCK_P)),)
        y = load_targets(labels, pixel, inside, ignored, C, HAS_ALL)
        valid = y >= 0
        if logits.dtype.element_ty.primitive_bitwidth == 16:
            # With a load of 16 bits, Triton before 3.9 computes the tile in two equal layouts.
            target_logit = tl.sum(tl.where(c[:, None] == y[None, :], blocks[0], 0), axis=0)
        else:
            at = logits + first * C + lane * C + tl.where(valid, y, 0)
            target_logit = tl.load(at, valid, 0).to(dtype)
        uniform_weight, of_class = load_weights(class_weight, pixel_weight, pixel, y, dtype)
        term, exponentials, factors = loss_of_tile(
            blocks,
            target_logit,
            y,
            uniform_weight,
            of_class,
            c,
            class_weight,
            inverse_temperature,
            label_smoothing,
            C,
            IS_SMOOTHED,
            MAX_NLL,
        )
        if IS_EARLY:
            wait_for_previous_kernel()
        if partial is not None:
            total += term.to(tl.float64)
        if terms is not None:
            tl.store(terms + pixel, term, inside)
        if gradient is not None:
            grad_scale = load_grad_scale(divisor, grad_output, inverse_temperature, dtype)
            g = gradient_of_block(
                exponentials[0] * (factors[0] * grad_scale)[None, :],
                factors,
                grad_scale,
                c[:, None],
                y,
                class_weight,
                C,
                IS_SMOOTHED,
            )
            to = (lane * C)[:, None] + c[None, :]
            is_inside = (c < C)[None, :] & inside[:, None]
            g = tl.trans(g.to(gradient.dtype.element_ty))
            tl.store(gradient + first * C + to, g, is_inside)
    if partial is not None:
        tl.store(partial + program, tl.sum(total, axis=0))


@triton.jit
def sum_partials(
    partial,
    counters,
    divisor,
    loss,
    num_partials,
    program,
    num_programs,
    BLOCK: tl.constexpr,
    PADDED_PROGRAMS: tl.constexpr,
):
    """Computes loss = (sum of partial sums) / D, always in the same order.

    The last program to finish adds the sums of all, which are stored behind the partial sums.
    """
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float64)
    for first in range(program * BLOCK, num_partials, num_programs * BLOCK):
        sums += tl.load(partial + first + lane, first + lane < num_partials, 0)
    total = tl.sum(sums, axis=0)
    if PADDED_PROGRAMS == 1:
        tl.store(loss, (total / tl.load(divisor)).to(loss.dtype.element_ty))
    else:
        tl.store(partial + num_partials + program, total)
        tl.debug_barrier()
        ticket = counters + TICKET
        if tl.atomic_add(ticket, 1, sem="acq_rel") == num_programs - 1:
            tl.store(ticket, 0)
            row = tl.arange(0, PADDED_PROGRAMS)
            at = partial + num_partials + row
            of_programs = tl.load(at, row < num_programs, 0, cache_modifier=".cg")
            all_sums = tl.sum(of_programs, axis=0)
            tl.store(loss, (all_sums / tl.load(divisor)).to(loss.dtype.element_ty))


@triton.jit(do_not_specialize=["num_partials"])
def sum_partials_kernel(
    partial,
    counters,
    divisor,
    loss,
    num_partials,
    BLOCK: tl.constexpr,
    PADDED_PROGRAMS: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Computes the loss from the partial sums."""
    if IS_EARLY:
        wait_for_previous_kernel()
    sum_partials(
        partial, counters, divisor, loss, num_partials, tl.program_id(0), tl.num_programs(0), BLOCK,
        PADDED_PROGRAMS,
    )  # fmt: skip
