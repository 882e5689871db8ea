"""The GPU kernels of the loss of upsampled scores with its gradient.

`upsampled_loss` launches them. Target pixels lie in intervals between source pixels, as
`seg_loss.upsampling` says. A program of `upsampled_cross_entropy_kernel` owns a tile of intervals
side by side, in a block of interval rows of one image. All lanes move together through the rows of
target pixels, and through the pixels of their intervals, the phases:

    left, right = the sources before and behind the interval, interpolated vertically for a row
    p = w0 left + w1 right                                              for each pixel of the row
    g = the gradient in p, by the formulas of `cross_entropy`
    to_left += w0 g          to_right += w1 g                           the transpose of the above

Sources are exponents, of which the maximum over the classes of the source has been subtracted.
So p is at most 0 and needs no maximum of its own, unless it may be so far below 0 in all classes
that its exponentials vanish: then no class is near its maximum at all four sources.

After a row of pixels, to_left and to_right are distributed to the sources above and below. A source
row between two interval rows of a program is complete after the second of them. It is added to the
gradient, which is 0 at first: each source receives one sum from the interval on its left and one
from that on its right, and two numbers have the same sum in any order. The first and the last row
of a program are shared with others: they are added to `halo` in the same way, and `finish_kernel`
computes their sums.

A block is [classes, intervals], and the lanes of one warp share the classes of a pixel, so that no
loop waits for other warps. Triton chooses this layout, the first axis first, as long as no load
imposes another one: therefore `hide_order` hides the order of the intervals from it.
"""

import triton
import triton.language as tl

from seg_loss.gpu.cross_entropy import (
    gradient_factors,
    load_grad_scale,
    load_weights,
    nll_of,
    sum_class_weights,
    sum_partials,
)
from seg_loss.gpu.math import (
    INTERPRETED,
    LN_2,
    add_and_find_target,
    as_int,
    exponent_scale,
    exponential,
    float_from_bits,
    select_unless_target,
    wait_for_previous_kernel,
)

# The exponentials of a pixel are accurate if the largest exponent is not below this.
_MIN_EXPONENT = tl.constexpr(-100.0)
_PADDING = tl.constexpr(-1e30)  # an exponent, which times a weight of 0 is 0


@triton.jit
def hide_order(x):
    """Returns x, about which the compiler then knows nothing."""
    if INTERPRETED:
        return x
    else:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def _load_sources(
    scores,
    at,
    exists,
    c,
    class_stride,
    scale,
    first_class,
    C: tl.constexpr,
    K: tl.constexpr,
    HAS_MAXIMUM: tl.constexpr,
):
    """Returns the exponents of a source for each interval, less their maximum; 0 if there is none.

    Padding classes have an exponent that is far below all others, and finite.
    """
    dtype: tl.constexpr = scale.dtype
    BLOCK_C: tl.constexpr = c.shape[0]
    blocks = ()
    m = tl.full(at.shape, -float("inf"), dtype)
    for k in tl.static_range(K):
        classes = first_class + c + k * BLOCK_C
        x = tl.load(scores + at + classes * class_stride, exists & (classes < C), -float("inf"))
        blocks += (x.to(dtype),)
        m = tl.maximum(m, blocks[k])
    m = tl.max(m, axis=0)[None, :] if HAS_MAXIMUM else tl.zeros(at.shape, dtype)
    exponents = ()
    for k in tl.static_range(K):
        classes = first_class + c + k * BLOCK_C
        missing = tl.where(classes < C, 0.0, _PADDING).to(dtype)
        exponents += (tl.where(exists & (classes < C), (blocks[k] - m) * scale, missing),)
    return exponents


@triton.jit
def _lowest_maximum(upper_left, upper_right, lower_left, lower_right):
    """Returns the smallest over the intervals of max over classes of min over the four sources.

    It bounds the largest exponent of each pixel from below. NaN counts as not small.
    """
    highest = tl.full(upper_left[0].shape, -float("inf"), upper_left[0].dtype)
    for k in tl.static_range(len(upper_left)):
        lowest = tl.minimum(
            tl.minimum(upper_left[k], upper_right[k]), tl.minimum(lower_left[k], lower_right[k])
        )
        highest = tl.maximum(highest, lowest)
    return tl.min(tl.max(highest, axis=0), axis=0)


@triton.jit
def _interpolate(w0, a, w1, b, SKIPS_ZERO: tl.constexpr):
    """Returns w0 a + w1 b, where a weight of 0 hides infinity and NaN."""
    if SKIPS_ZERO:
        return tl.where(w0 != 0, w0 * a, 0) + tl.where(w1 != 0, w1 * b, 0)
    else:
        return tl.fma(w1, b, w0 * a)


@triton.jit
def _zeros(K: tl.constexpr, zero):
    blocks = ()
    for _ in tl.static_range(K):
        blocks += (zero,)
    return blocks


@triton.jit
def _add_scaled(blocks, weight, others):
    """Returns blocks + weight * others."""
    sums = ()
    for k in tl.static_range(len(blocks)):
        sums += (tl.fma(weight, others[k], blocks[k]),)
    return sums


@triton.jit
def _add_row(
    to,
    class_stride,
    column_stride,
    interval,
    has_left,
    has_right,
    left,
    right,
    c,
    first_class,
    C: tl.constexpr,
):
    """Adds what the sources on both sides of each interval have received to a row at `to`."""
    BLOCK_C: tl.constexpr = c.shape[0]
    to += first_class.to(tl.int64) * class_stride + (interval - 1).to(tl.int64) * column_stride
    for k in tl.static_range(len(left)):
        classes = c + k * BLOCK_C
        at = to + classes * class_stride
        is_class = first_class + classes < C
        tl.atomic_add(at, left[k], has_left & is_class, sem="relaxed")
        tl.atomic_add(at + column_stride, right[k], has_right & is_class, sem="relaxed")


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
        "halo_stride",
        "interval_stride",
        "source_rows",
        "source_columns",
        "rows",
        "columns",
        "max_phases",
        "num_pixels",
        "row_blocks",
        "block_rows",
        "splits",
        "tiles",
    ]
)
def upsampled_cross_entropy_kernel(
    scores,
    labels,
    class_weight,
    pixel_weight,
    divisor,
    gradient,
    halo,
    partial,
    grad_planes,
    row_starts,
    row_weights,
    column_starts,
    phase_weights,
    image_stride,
    class_stride,
    row_stride,
    column_stride,
    gradient_image_stride,
    gradient_class_stride,
    gradient_row_stride,
    gradient_column_stride,
    halo_stride,
    interval_stride,
    source_rows,
    source_columns,
    rows,
    columns,
    max_phases,
    num_pixels,
    row_blocks,
    block_rows,
    splits,
    tiles,
    inverse_temperature,
    label_smoothing,
    ignored,
    C: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    INTERVALS: tl.constexpr,
    IS_SMOOTHED: tl.constexpr,
    SKIPS_ZERO: tl.constexpr,
    MAX_NLL: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Computes partial sums of the terms, and adds the gradient if there is memory for it.

    `halo` is [2, blocks of all images, splits, C, source_columns], zeros at first: the source rows
    above and below each block of interval rows; `halo_stride` is that of its first axis. With
    several splits, each program takes a part of the target rows of each interval row.
    `phase_weights` [2, max_phases, interval_stride] are the weights of the columns.

    With `grad_planes`, written by `many_classes_kernel`, only the gradient is computed, of `CHUNK`
    classes per program. SKIPS_ZERO says that some column gives the weight 0 to a source that
    exists.
    """
    dtype: tl.constexpr = tl.float64 if scores.dtype.element_ty == tl.float64 else tl.float32
    K: tl.constexpr = (CHUNK + BLOCK_C - 1) // BLOCK_C
    CHUNKS: tl.constexpr = (C + CHUNK - 1) // CHUNK
    HAS_LOSS: tl.constexpr = grad_planes is None
    program = tl.program_id(0)
    first_class = (program % CHUNKS) * CHUNK
    tile = (program // CHUNKS) % tiles
    part = program // CHUNKS // tiles  # of splits, row blocks and images
    split = part % splits
    row_block = (part // splits) % row_blocks
    image = (part // splits // row_blocks).to(tl.int64)
    scores += image * image_stride
    labels += image * rows * columns
    image_weight = pixel_weight
    if pixel_weight is not None:
        image_weight += image * rows * columns

    c = tl.arange(0, BLOCK_C)[:, None]
    zero = tl.zeros((BLOCK_C, INTERVALS), dtype)
    lane = hide_order(tl.arange(0, INTERVALS)[None, :] + tl.zeros((BLOCK_C, INTERVALS), tl.int32))
    interval = tile * INTERVALS + lane
    is_interval = interval <= source_columns
    has_left = is_interval & (interval > 0)
    has_right = interval < source_columns
    x_start = tl.load(column_starts + interval, is_interval, 0)
    x_end = tl.load(column_starts + interval + 1, is_interval, 0)
    phases = tl.max(tl.max(x_end - x_start, axis=1), axis=0)
    left_at = (interval - 1).to(tl.int64) * column_stride
    right_at = interval.to(tl.int64) * column_stride
    wide_class_stride = class_stride.to(tl.int64)

    scale = exponent_scale(inverse_temperature, dtype)
    unit: tl.constexpr = 1.0 if dtype == tl.float64 else LN_2
    class_weight_sum = 1
    if IS_SMOOTHED:
        smoothing = float_from_bits(label_smoothing, dtype)
        class_weight_sum = sum_class_weights(class_weight, C, BLOCK_C, dtype)
    total = tl.zeros((BLOCK_C, INTERVALS), tl.float64)
    to_upper_left = _zeros(K, zero)
    to_upper_right = _zeros(K, zero)
    if gradient is not None:
        gradient += image * gradient_image_stride
        halo += part.to(tl.int64) * C * source_columns

    # The last round only stores what the row below the block has received.
    for r in range(0, block_rows + 1):
        row = row_block * block_rows + r  # of intervals, and of the sources below it
        is_row = (row <= source_rows) & (r < block_rows)
        row_of_lane = row + tl.zeros((BLOCK_C, INTERVALS), tl.int32)
        has_upper = (row_of_lane > 0) & (row_of_lane <= source_rows)
        has_lower = row_of_lane < source_rows
        upper = (row - 1).to(tl.int64) * row_stride
        lower = row.to(tl.int64) * row_stride
        upper_left = _load_sources(
            scores,
            left_at + upper,
            has_left & has_upper,
            c,
            wide_class_stride,
            scale,
            first_class,
            C,
            K,
            HAS_LOSS,
        )
        upper_right = _load_sources(
            scores,
            right_at + upper,
            has_right & has_upper,
            c,
            wide_class_stride,
            scale,
            first_class,
            C,
            K,
            HAS_LOSS,
        )
        lower_left = _load_sources(
            scores,
            left_at + lower,
            has_left & has_lower,
            c,
            wide_class_stride,
            scale,
            first_class,
            C,
            K,
            HAS_LOSS,
        )
        lower_right = _load_sources(
            scores,
            right_at + lower,
            has_right & has_lower,
            c,
            wide_class_stride,
            scale,
            first_class,
            C,
            K,
            HAS_LOSS,
        )
        is_deep = False
        if HAS_LOSS:
            bound = _lowest_maximum(upper_left, upper_right, lower_left, lower_right)
            is_deep = bound < _MIN_EXPONENT
        to_lower_left = _zeros(K, zero)
        to_lower_right = _zeros(K, zero)
        y_first = tl.load(row_starts + row, is_row, 0)
        y_end = tl.load(row_starts + row + 1, is_row, 0)
        y_step = tl.cdiv(y_end - y_first, splits)
        y_first += split * y_step
        y_end = tl.minimum(y_first + y_step, y_end)
        label_of_row = tl.load(labels + y_first * columns + x_start, x_start < x_end, 0)
        for y in range(y_first, y_end):
            # Labels are loaded one pixel and one row ahead: they come from far away.
            next_label = label_of_row
            next_end = tl.where(y + 1 < y_end, x_end, x_start)
            label_of_row = tl.load(labels + (y + 1) * columns + x_start, x_start < next_end, 0)
            above = tl.load(row_weights + y)
            below = tl.load(row_weights + rows + y)
            left = ()
            right = ()
            for k in tl.static_range(K):
                left += (_interpolate(above, upper_left[k], below, lower_left[k], True),)
                right += (_interpolate(above, upper_right[k], below, lower_right[k], True),)
            to_left = _zeros(K, zero)
            to_right = _zeros(K, zero)
            first_pixel = y * columns
            # Collect pixels until each lane that shares an interval has a logarithm to compute.
            for first_phase in range(0, phases, BLOCK_C):
                is_valid = zero != 0
                kept_t = zero
                kept_exponent = zero
                kept_weight = zero
                kept_uniform_weight = zero
                kept_smoothing_sum = zero
                for phase in range(first_phase, tl.minimum(first_phase + BLOCK_C, phases)):
                    x = x_start + phase
                    inside = x < x_end
                    at = phase * interval_stride + interval
                    before = tl.load(phase_weights + at, inside, 0)
                    behind = tl.load(phase_weights + max_phases * interval_stride + at, inside, 0)
                    label = as_int(next_label)
                    next_label = tl.load(labels + first_pixel + x + 1, x + 1 < x_end, 0)
                    valid = inside & (label >= 0) & (label < C)
                    for k in tl.static_range(len(ignored)):
                        valid &= label != ignored[k]
                    target = tl.where(valid, label.to(tl.int32), -1)
                    m = zero
                    if not HAS_LOSS:
                        plane = grad_planes + image * rows * columns + first_pixel + x
                        m += tl.load(plane, valid, 0) * scale
                    elif is_deep:
                        m += -float("inf")
                        for k in tl.static_range(K):
                            p = _interpolate(before, left[k], behind, right[k], SKIPS_ZERO)
                            m = tl.maximum(m, p)
                        m = tl.max(m, axis=0)[None, :] + zero
                        m = tl.where(m > -float("inf"), m, 0)
                    t = zero
                    target_exponent = zero
                    smoothing_sum = zero
                    exponentials = ()
                    for k in tl.static_range(K):
                        classes = first_class + c + k * BLOCK_C
                        if SKIPS_ZERO:
                            p = _interpolate(before, left[k], behind, right[k], True) - m
                        else:
                            p = tl.fma(behind, right[k], tl.fma(before, left[k], -m))
                        e = exponential(p)
                        exponentials += (e,)
                        if HAS_LOSS:
                            t, target_exponent = add_and_find_target(
                                t, target_exponent, e, p, classes, target
                            )
                            if IS_SMOOTHED:
                                share = tl.where(classes < C, 1.0, 0.0).to(dtype)
                                if class_weight is not None:
                                    share = tl.load(class_weight + classes, classes < C, 0).to(
                                        dtype
                                    )
                                smoothing_sum += tl.where(share != 0, share * p, 0)
                    if HAS_LOSS:
                        t = tl.sum(t, axis=0)[None, :] + zero
                        target_exponent = tl.sum(target_exponent, axis=0)[None, :] + zero
                        uniform_weight, of_class = load_weights(
                            class_weight, image_weight, first_pixel + x, target, dtype
                        )
                        uniform_weight = tl.where(valid, uniform_weight, 0)
                        weight = uniform_weight * of_class
                        if IS_SMOOTHED:
                            weight *= 1 - smoothing
                            uniform_weight *= smoothing / C
                            smoothing_sum = tl.sum(smoothing_sum, axis=0)[None, :] * unit
                        factor, smoothing_grad, target_grad = gradient_factors(
                            t,
                            exponential(target_exponent),
                            weight,
                            uniform_weight,
                            of_class,
                            class_weight_sum,
                            IS_SMOOTHED,
                        )
                        is_kept = (c == phase - first_phase) & valid
                        is_valid |= is_kept
                        kept_t = tl.where(is_kept, t, kept_t)
                        kept_exponent = tl.where(is_kept, target_exponent, kept_exponent)
                        kept_weight = tl.where(is_kept, weight, kept_weight)
                        if IS_SMOOTHED:
                            kept_uniform_weight = tl.where(
                                is_kept, uniform_weight, kept_uniform_weight
                            )
                            kept_smoothing_sum = tl.where(
                                is_kept, smoothing_sum, kept_smoothing_sum
                            )
                    else:
                        plane += num_pixels
                        factor = tl.load(plane, valid, 0)
                        plane += num_pixels
                        target_grad = tl.load(plane, valid, 0)
                        smoothing_grad = factor
                        if IS_SMOOTHED:
                            smoothing_grad = tl.load(plane + num_pixels, valid, 0)
                    if gradient is not None:
                        # Each class of an ignored pixel counts as its target, of gradient 0.
                        gradients = ()
                        if IS_SMOOTHED or not HAS_LOSS:
                            target_grad = tl.where(valid, target_grad, 0)
                            for k in tl.static_range(K):
                                classes = first_class + c + k * BLOCK_C
                                g = exponentials[k] * factor
                                if IS_SMOOTHED:
                                    if class_weight is None:
                                        g -= smoothing_grad
                                    else:
                                        share = tl.load(class_weight + classes, classes < C, 0)
                                        g -= smoothing_grad * share.to(dtype)
                                g = select_unless_target(g, target_grad, classes, target)
                                gradients += (g,)
                        else:
                            for k in tl.static_range(K):
                                classes = first_class + c + k * BLOCK_C
                                e = select_unless_target(exponentials[k], -t, classes, target)
                                gradients += (e,)
                            before *= tl.where(valid, factor, 0)
                            behind *= tl.where(valid, factor, 0)
                        to_left = _add_scaled(to_left, before, gradients)
                        to_right = _add_scaled(to_right, behind, gradients)
                if HAS_LOSS:
                    target_exp = exponential(kept_exponent)
                    log_s, nll = nll_of(kept_t, target_exp, kept_exponent * unit, MAX_NLL)
                    term = kept_weight * nll
                    if IS_SMOOTHED:
                        term += kept_uniform_weight * (
                            class_weight_sum * log_s - kept_smoothing_sum
                        )
                    total += tl.where(is_valid, term, 0).to(tl.float64)
            if gradient is not None:
                to_upper_left = _add_scaled(to_upper_left, above, to_left)
                to_upper_right = _add_scaled(to_upper_right, above, to_right)
                to_lower_left = _add_scaled(to_lower_left, below, to_left)
                to_lower_right = _add_scaled(to_lower_right, below, to_right)
        if gradient is not None:
            if IS_EARLY:
                wait_for_previous_kernel()
            grad_scale = load_grad_scale(divisor, None, inverse_temperature, dtype)
            left = ()
            right = ()
            for k in tl.static_range(K):
                left += (to_upper_left[k] * grad_scale,)
                right += (to_upper_right[k] * grad_scale,)
            to = halo
            to_class_stride = source_columns.to(tl.int64)
            to_column_stride = source_columns * 0 + 1
            if r == block_rows:
                to = halo + halo_stride
            if (r > 0) & (r < block_rows):
                to = gradient + (row - 1).to(tl.int64) * gradient_row_stride
                to_class_stride = gradient_class_stride.to(tl.int64)
                to_column_stride = gradient_column_stride
            _add_row(
                to,
                to_class_stride,
                to_column_stride,
                interval,
                has_left & has_upper,
                has_right & has_upper,
                left,
                right,
                c,
                first_class,
                C,
            )
        to_upper_left = to_lower_left
        to_upper_right = to_lower_right
    if IS_EARLY:
        wait_for_previous_kernel()  # for the ones behind this kernel, which need its results
    if partial is not None:
        tl.store(partial + program, tl.sum(tl.sum(total, axis=1), axis=0))


@triton.jit(
    do_not_specialize=[
        "num_partials",
        "sum_programs",
        "halo_stride",
        "row_blocks",
        "block_rows",
        "splits",
    ]
)
def finish_kernel(
    partial,
    counters,
    divisor,
    loss,
    halo,
    gradient,
    num_partials,
    sum_programs,
    halo_stride,
    source_columns,
    row_blocks,
    block_rows,
    splits,
    image_stride,
    class_stride,
    row_stride,
    column_stride,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED_PROGRAMS: tl.constexpr,
    HALO_BLOCK: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Computes the loss, and the source rows between two blocks of interval rows.

    The first programs compute the loss from the partial sums. Each of the others adds up, in a
    fixed order, HALO_BLOCK sources of a row, of all classes.
    """
    if IS_EARLY:
        wait_for_previous_kernel()
    program = tl.program_id(0)
    if program < sum_programs:
        sum_partials(
            partial,
            counters,
            divisor,
            loss,
            num_partials,
            program,
            sum_programs,
            BLOCK,
            PADDED_PROGRAMS,
        )
    else:
        program -= sum_programs
        tiles = tl.cdiv(C * source_columns, HALO_BLOCK)
        index = (program % tiles) * HALO_BLOCK + tl.arange(0, HALO_BLOCK)
        block = program // tiles % (row_blocks - 1) + 1  # the row lies above it
        image = program // tiles // (row_blocks - 1)
        mask = index < C * source_columns
        total = tl.zeros((HALO_BLOCK,), halo.dtype.element_ty)
        part = (image * row_blocks + block) * splits
        for split in range(0, splits):
            above = halo + (part - splits + split).to(tl.int64) * C * source_columns
            total += tl.load(above + halo_stride + index, mask, 0)
            below = halo + (part + split).to(tl.int64) * C * source_columns
            total += tl.load(below + index, mask, 0)
        to = gradient + image.to(tl.int64) * image_stride
        to += (block * block_rows - 1).to(tl.int64) * row_stride
        to += (index // source_columns).to(tl.int64) * class_stride
        to += (index % source_columns).to(tl.int64) * column_stride
        tl.store(to, total, mask)


@triton.jit
def scale_gradient_kernel(
    gradient, grad_output, scaled, count, BLOCK: tl.constexpr, SKIP_IF_UNIT_GRAD: tl.constexpr
):
    """Computes grad_output * gradient, in which zeros stay +0.

    With SKIP_IF_UNIT_GRAD, `scaled` is the gradient, and the kernel returns at once if
    `grad_output` is 1. Its programs then take several blocks each.
    """
    factor = tl.load(grad_output)
    rounds = 1
    if SKIP_IF_UNIT_GRAD:
        if factor == 1:
            return
        rounds = tl.cdiv(tl.cdiv(count, BLOCK) - tl.program_id(0), tl.num_programs(0))
    factor = factor.to(gradient.dtype.element_ty)
    for i in range(0, rounds):
        block = tl.program_id(0) + i * tl.num_programs(0)
        at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        g = tl.load(gradient + at, at < count, 0)
        product = tl.where(g == 0, 0, g * factor)
        tl.store(scaled + at, product.to(scaled.dtype.element_ty), at < count)
