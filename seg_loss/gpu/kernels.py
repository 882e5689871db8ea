"""The GPU kernels, in Triton: one read of the logits, one write of the gradient. Called by
`triton_backend`.

A program takes a tile of pixels with all their classes, as blocks [BLOCK_C, BLOCK_P] of which
`blocks` has the sizes. The formulas are those of `numba_kernels`:

    m = max_c x_c      t = sum_{c != y} exp(x_c - m)      s = t + exp(x_y - m)
    nll = ln s - (x_y - m)                                ln s = log1p(t) where x_y is the maximum
    grad_c = w exp(x_c - m) / s / D                       grad_y = -w (t / s) / D

The true class is found by comparing each class with the label: no label is ever used as an address
before it was compared with the classes. Partial sums are float64 and are added in the order of the
programs, by whichever program is done last: integers alone are added atomically.

None for a tensor leaves out, at compile time, all that has to do with it.
"""

import triton
import triton.language as tl

# Numbers for the user's options are float64, which Triton has no scalar arguments for: their bits
# travel as an int64.

# Rows of `counts` [NUM_COUNTS, programs of the survey]; from BAD_LABELS on, also the places in a
# report. Of bad values: how many, where the first, and its bits.
VALID = tl.constexpr(0)
BAD_LABELS = tl.constexpr(1)
BAD_WEIGHTS = tl.constexpr(4)
BAD_CLASS_WEIGHTS = tl.constexpr(7)
NUM_COUNTS = tl.constexpr(10)
TICKET = tl.constexpr(10)  # which call a report is about; 0 while there is none
REPORT_SIZE = 11
NOWHERE = tl.constexpr(0x7FFFFFFFFFFFFFFF)

# What the divisor is: a number of the host's, the valid pixels (at least 1), their weights (1 for
# 0), and both without a floor, as torch has them; or it is read from memory.
CONSTANT, COUNT, WEIGHT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
BARE_COUNT, BARE_WEIGHT, GIVEN = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)

NUM_BINS = tl.constexpr(15)
BIN_ROWS = tl.constexpr(16)
TOP = tl.constexpr(3)
# Beyond this nll the probability of the true class is 0 in float32, subnormals included.
SATURATED_NLL = tl.constexpr(103.97207708399179)  # 150 ln 2
# What a program of the tally reports, beside its bins and classes.
PIXELS, SATURATED, NON_FINITE, NUM_TALLIES = (
    tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3),
)  # fmt: skip

_LOG2_E = tl.constexpr(1.4426950408889634)
_LOG2_E_LOW = tl.constexpr(1.925963033500946e-08)  # what float32 drops of it
_LN_2 = tl.constexpr(0.6931471805599453)


# -- arithmetic ------------------------------------------------------------------------------------


@triton.jit
def number_of(bits, dtype: tl.constexpr):
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(dtype)


@triton.jit
def exp(d, IS_HALF: tl.constexpr):
    """e**d for d <= 0 or NaN.

    The hardware has 2**x, and rounding d log2(e) costs |d| ulps. Half-precision logits are further
    off than that; for float32 what was rounded away is put back.
    """
    if d.dtype == tl.float64:
        return tl.exp(d)
    if IS_HALF:
        return tl.exp2(d * _LOG2_E)
    d = tl.maximum(d, -200.0, propagate_nan=tl.PropagateNan.ALL)  # inf - inf below is NaN
    p = d * _LOG2_E
    lost = tl.fma(d, _LOG2_E_LOW, tl.fma(d, _LOG2_E, -p))
    e = tl.exp2(p)
    return tl.fma(e, lost * _LN_2, e)


@triton.jit
def _log1p(z):
    """ln(1 + z) for z >= 0 or NaN, by Kahan's correction of ln for the rounding of 1 + z."""
    u = 1 + z
    is_tiny = u == 1
    return tl.where(is_tiny, z, tl.log(u) * (z / tl.where(is_tiny, 1, u - 1)))


@triton.jit
def weighted(weight, x):
    """A share of x; 0 for a weight of 0, where 0 * infinity would be NaN."""
    return tl.where(weight != 0, weight * x, 0)


# -- from memory and back --------------------------------------------------------------------------


@triton.jit
def classes_of(labels, place, inside, ignored, C: tl.constexpr):
    """Labels as classes: their class, C where ignored or outside, C + 1 where neither."""
    label = tl.load(labels + place, mask=inside, other=0).to(tl.int64)
    y = tl.where((label >= 0) & (label < C), label, C + 1)
    for k in tl.static_range(len(ignored)):
        y = tl.where(label == ignored[k], C, y)
    return tl.where(inside, y, C).to(tl.int32)


@triton.jit
def _offsets(pixel, strides, rows, columns, AXES: tl.constexpr):
    """Where pixels lie; strides are those of image, class, slice, row and column."""
    if AXES == 1:
        return pixel * strides[4]
    if AXES == 2:
        return (pixel // columns) * strides[3] + (pixel % columns) * strides[4]
    row = pixel // columns
    return (row // rows) * strides[2] + (row % rows) * strides[3] + (pixel % columns) * strides[4]


@triton.jit
def _load(source, at, classes, class_stride, inside, C: tl.constexpr, other):
    """[classes, pixels] of a tensor; `other` beyond its classes and pixels."""
    mask = (classes < C)[:, None] & inside[None, :]
    return tl.load(source + classes.to(tl.int64)[:, None] * class_stride + at, mask, other)


@triton.jit
def _store(target, at, classes, class_stride, inside, C: tl.constexpr, values):
    mask = (classes < C)[:, None] & inside[None, :]
    place = target + classes.to(tl.int64)[:, None] * class_stride + at
    tl.store(place, values.to(target.dtype.element_ty), mask)


@triton.jit
def _corners(pixel, inside, strides, rows, columns, mesh, AXES: tl.constexpr):
    """Where pixels find their logits, and with which weights: of the nodes above and below,
    before and behind. Without a mesh they have logits of their own, and no weights: an empty tuple,
    since Triton before 3.7 cannot return a tuple that holds None.
    """
    if mesh is None:
        return _offsets(pixel, strides, rows, columns, AXES)[None, :], ()
    row_cells, row_weights, column_cells, column_weights = mesh
    y = pixel // columns
    x = pixel % columns
    row = tl.load(row_cells + y, inside, 0).to(tl.int64)
    column = tl.load(column_cells + x, inside, 0).to(tl.int64)
    shares = (
        tl.load(row_weights + y, inside, 0)[None, :],
        tl.load(row_weights + rows + y, inside, 0)[None, :],
        tl.load(column_weights + x, inside, 0)[None, :],
        tl.load(column_weights + columns + x, inside, 0)[None, :],
    )
    return (row * strides[3] + column * strides[4])[None, :], shares


@triton.jit
def _load_logits(logits, at, shares, classes, strides, inside, C: tl.constexpr):
    """[classes, pixels] of the logits, -inf beyond them: from memory, or between four nodes."""
    if len(shares) == 0:
        return _load(logits, at, classes, strides[1], inside, C, -float("inf"))
    above, below, before, behind = shares
    lower_right = logits + classes.to(tl.int64)[:, None] * strides[1] + at
    upper_right = lower_right - strides[3]
    # No node of weight 0: it may not exist, and 0 times what it holds may be NaN.
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


# -- the labels ------------------------------------------------------------------------------------


@triton.jit
def _is_weight(weight):
    return (weight >= 0) & (weight < float("inf"))


@triton.jit
def _first(bad, place, first):
    return tl.minimum(first, tl.min(tl.where(bad, place, NOWHERE), axis=0))


@triton.jit
def survey_kernel(
    labels, class_weight, pixel_weight,
    counts, weights, finished,
    pixels, pixels_per_program, ignored,
    C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Read the labels and their weights: count the valid ones, find the bad ones.

    Program i writes column i of `counts`, and `weights[i]`, the weights of its valid pixels. The
    first clears `finished`, where the programs of the next kernel count themselves.
    """
    program = tl.program_id(0)
    num_programs = tl.num_programs(0)
    start = program.to(tl.int64) * pixels_per_program
    end = tl.minimum(start + pixels_per_program, pixels)
    lane = tl.arange(0, BLOCK_P)
    valid = tl.zeros((BLOCK_P,), tl.int32)
    bad = tl.zeros((BLOCK_P,), tl.int32)
    first = tl.full((), NOWHERE, tl.int64)
    weight_sum = tl.zeros((BLOCK_P,), tl.float64)
    bad_weights = tl.zeros((BLOCK_P,), tl.int32)
    first_weight = tl.full((), NOWHERE, tl.int64)
    for done in range(0, pixels_per_program, BLOCK_P):
        place = start + done + lane
        inside = place < end
        y = classes_of(labels, place, inside, ignored, C)
        is_valid = y < C
        is_bad = y > C
        valid += is_valid.to(tl.int32)
        bad += is_bad.to(tl.int32)
        first = _first(is_bad, place, first)
        if class_weight is not None or pixel_weight is not None:
            weight = tl.full((BLOCK_P,), 1, tl.float64)
            if pixel_weight is not None:
                weight = tl.load(pixel_weight + place, mask=is_valid, other=0).to(tl.float64)
                is_wrong = is_valid & ~_is_weight(weight)
                bad_weights += is_wrong.to(tl.int32)
                first_weight = _first(is_wrong, place, first_weight)
            if class_weight is not None:
                weight *= tl.load(class_weight + y, mask=is_valid, other=0).to(tl.float64)
            weight_sum += tl.where(is_valid, weight, 0)

    column = counts + program
    tl.store(column + VALID * num_programs, tl.sum(valid.to(tl.int64), axis=0))
    tl.store(column + BAD_LABELS * num_programs, tl.sum(bad.to(tl.int64), axis=0))
    tl.store(column + (BAD_LABELS + 1) * num_programs, first)
    found = first < NOWHERE
    label = tl.load(labels + tl.where(found, first, 0), mask=found, other=0).to(tl.int64)
    tl.store(column + (BAD_LABELS + 2) * num_programs, label)
    tl.store(weights + program, tl.sum(weight_sum, axis=0))

    tl.store(column + BAD_WEIGHTS * num_programs, tl.sum(bad_weights.to(tl.int64), axis=0))
    tl.store(column + (BAD_WEIGHTS + 1) * num_programs, first_weight)
    bits = tl.zeros((), tl.int64)
    if pixel_weight is not None:
        found = first_weight < NOWHERE
        value = tl.load(pixel_weight + tl.where(found, first_weight, 0), mask=found, other=0)
        bits = value.to(tl.float64).to(tl.int64, bitcast=True)
    tl.store(column + (BAD_WEIGHTS + 2) * num_programs, bits)

    bad_classes = tl.zeros((), tl.int64)
    first = tl.full((), NOWHERE, tl.int64)
    bits = tl.zeros((), tl.int64)
    if class_weight is not None:
        if program == 0:
            for c in range(0, C, BLOCK_P):
                place = (c + lane).to(tl.int64)
                weight = tl.load(class_weight + place, mask=place < C, other=0)
                is_wrong = ~_is_weight(weight.to(tl.float64))
                bad_classes += tl.sum(is_wrong.to(tl.int64), axis=0)
                first = _first(is_wrong, place, first)
            found = first < NOWHERE
            value = tl.load(class_weight + tl.where(found, first, 0), mask=found, other=0)
            bits = value.to(tl.float64).to(tl.int64, bitcast=True)
    tl.store(column + BAD_CLASS_WEIGHTS * num_programs, bad_classes)
    tl.store(column + (BAD_CLASS_WEIGHTS + 1) * num_programs, first)
    tl.store(column + (BAD_CLASS_WEIGHTS + 2) * num_programs, bits)
    if program == 0:
        tl.store(finished, 0)


@triton.jit
def divisor_of(counts, weights, given, surveyed, KIND: tl.constexpr, SURVEYED: tl.constexpr):
    """D, float64: `normalization.divisor` for the device. `given` is a number's bits, or memory."""
    if KIND == CONSTANT:
        return number_of(given, tl.float64)
    if KIND == GIVEN:
        return tl.load(given)
    lane = tl.arange(0, SURVEYED)
    if KIND == COUNT or KIND == BARE_COUNT:
        number = tl.sum(tl.load(counts + VALID * surveyed + lane, lane < surveyed, 0), axis=0).to(
            tl.float64
        )
        if KIND == COUNT:
            number = tl.maximum(number, 1)
    else:
        number = tl.sum(tl.load(weights + lane, lane < surveyed, 0), axis=0)
        if KIND == WEIGHT:
            number = tl.where(number > 0, number, 1)
    return number


@triton.jit
def _found(counts, surveyed, KIND: tl.constexpr, SURVEYED: tl.constexpr):
    """Number, first place and value of the bad labels, or of bad weights, over all programs."""
    lane = tl.arange(0, SURVEYED)
    is_there = lane < surveyed
    number = tl.sum(tl.load(counts + KIND * surveyed + lane, is_there, 0), axis=0)
    places = tl.load(counts + (KIND + 1) * surveyed + lane, is_there, NOWHERE)
    first = tl.min(places, axis=0)
    values = tl.load(counts + (KIND + 2) * surveyed + lane, is_there, 0)
    return number, first, tl.sum(tl.where(places == first, values, 0), axis=0)


@triton.jit
def _write_found(report, number, first, value, KIND: tl.constexpr):
    tl.store(report + KIND, number)
    tl.store(report + KIND + 1, first)
    tl.store(report + KIND + 2, value)


@triton.jit
def _report_bad(counts, surveyed, report, ticket, finished, SURVEYED: tl.constexpr):
    """Write what is bad, if anything is; the ticket last, which the host looks at."""
    labels, first_label, label = _found(counts, surveyed, BAD_LABELS, SURVEYED)
    pixels, first_pixel, pixel_weight = _found(counts, surveyed, BAD_WEIGHTS, SURVEYED)
    classes, first_class, class_weight = _found(counts, surveyed, BAD_CLASS_WEIGHTS, SURVEYED)
    if labels + pixels + classes > 0:
        _write_found(report, labels, first_label, label, BAD_LABELS)
        _write_found(report, pixels, first_pixel, pixel_weight, BAD_WEIGHTS)
        _write_found(report, classes, first_class, class_weight, BAD_CLASS_WEIGHTS)
        # An atomic that changes nothing, for its order: the host sees all of the above first.
        tl.debug_barrier()
        tl.atomic_add(finished, 0, sem="acq_rel", scope="sys")
        tl.debug_barrier()
        tl.store(report + TICKET, ticket)


# -- the loss, its gradient, and the maps ----------------------------------------------------------


@triton.jit
def _best(values, classes, best, best_classes):
    """Elementwise the higher of two, the first of equals."""
    higher = values > best
    return tl.where(higher, values, best), tl.where(higher, classes[:, None], best_classes)


@triton.jit
def _first_best(best, best_classes, C: tl.constexpr):
    """Over the classes' axis: the highest value and the first class that has it."""
    highest = tl.max(best, axis=0)
    first = tl.min(tl.where(best == highest[None, :], best_classes, C), axis=0)
    return highest, tl.where(first == C, 0, first)  # C: there were only NaN


@triton.jit
def scaled(x, temperature, dtype: tl.constexpr, HAS_TEMPERATURE: tl.constexpr):
    """x / T, rounded here and now.

    A plain product would be contracted with the subtraction of the maximum, and the maximum less
    itself, rounded once on one side and not on the other, would not be 0.
    """
    x = x.to(dtype)
    if HAS_TEMPERATURE:
        x = tl.fma(x, temperature, tl.zeros_like(x))
    return x


@triton.jit
def _highest(x, classes, y, m, best_classes, x_own, WANTS_CLASS: tl.constexpr):
    """A block's part in the maximum and the class that has it, and in the true class's logit."""
    if WANTS_CLASS:
        m, best_classes = _best(x, classes, m, best_classes)
    else:
        m = tl.maximum(m, x)
    return m, best_classes, tl.where(classes[:, None] == y[None, :], x, x_own)


@triton.jit
def add_exponentials(
    x, own, classes, m, t, soft, moment, class_weight,
    C: tl.constexpr, IS_HALF: tl.constexpr, IS_SMOOTHED: tl.constexpr, WANTS_MOMENT: tl.constexpr,
):  # fmt: skip
    """A block's exponentials, 0 for the true class, and its part in the sums over them.

    Classes, and the pixels' m, have the axes of x, of length 1 where they are all the same; `own`
    says where the true class is.
    """
    d = x - m
    e = exp(tl.where(own, -float("inf"), d), IS_HALF)
    if IS_SMOOTHED:
        if class_weight is None:
            soft += tl.where(classes < C, d, 0)
        else:
            share = tl.load(class_weight + classes, classes < C, 0).to(x.dtype)
            soft += tl.where(share != 0, share * d, 0)  # 0 times -inf is NaN
    if WANTS_MOMENT:
        least = tl.maximum(d, -1000.0, propagate_nan=tl.PropagateNan.ALL)
        moment += exp(d, IS_HALF) * least
    return e, t + e, soft, moment


@triton.jit
def slope_of(
    e, own, classes, rise, fall, own_slope, class_weight, C: tl.constexpr,
    IS_SMOOTHED: tl.constexpr,
):  # fmt: skip
    """A block's gradient; that of the true class is known already. Axes as above."""
    g = e * rise
    if IS_SMOOTHED:
        if class_weight is None:
            g -= fall
        else:
            g -= tl.load(class_weight + classes, classes < C, 0).to(e.dtype) * fall
    return tl.where(own, own_slope, g)


@triton.jit
def sum_of_weights(class_weight, C: tl.constexpr, BLOCK_C: tl.constexpr, dtype: tl.constexpr):
    """Of all classes."""
    if class_weight is None:
        return tl.full((), C, dtype)
    c = tl.arange(0, BLOCK_C)
    number = tl.zeros((), dtype)
    for first in range(0, C, BLOCK_C):
        weight = tl.load(class_weight + first + c, first + c < C, 0)
        number += tl.sum(weight.to(dtype), axis=0)
    return number


@triton.jit
def weights_of(class_weight, pixel_weight, place, y, C: tl.constexpr, dtype: tl.constexpr):
    """Of pixels: their own, and that of their true class."""
    of_pixel = tl.full(y.shape, 1, dtype)
    of_class = tl.full(y.shape, 1, dtype)
    if pixel_weight is not None:
        of_pixel = tl.load(pixel_weight + place, y < C, 0).to(dtype)
    if class_weight is not None:
        of_class = tl.load(class_weight + y, y < C, 0).to(dtype)
    return of_pixel, of_class


@triton.jit
def nll_of(d_own, t, s, limit):
    """ln s and the nll, which is at most `limit`, from x_y - m, t and s."""
    log_s = _log1p(tl.where(d_own == 0, t, s - 1))
    nll = log_s - d_own
    return log_s, tl.where(nll > limit, limit, nll)


@triton.jit
def slopes_of(e_own, t, s, weight, soft_weight, of_class, all_weights, scale,
              IS_SMOOTHED: tl.constexpr):  # fmt: skip
    """What `slope_of` makes a pixel's gradient of: e_c rise - w_c fall, and that of its class."""
    factor = scale / s
    if IS_SMOOTHED:
        spread = soft_weight * all_weights
        fall = soft_weight * scale
        return (
            (weight + spread) * factor,
            fall,
            (e_own * spread - t * weight) * factor - fall * of_class,
        )
    rise = weight * factor
    return rise, rise, -t * rise


@triton.jit
def finish(
    partial, finished, loss, divisor, D, counts, surveyed, report, ticket, SURVEYED: tl.constexpr
):  # fmt: skip
    """The last program adds up what all have left in `partial`, and reports what is bad."""
    # All stores of this program come before its arrival, and all arrivals before the last one.
    tl.debug_barrier()
    arrived = tl.atomic_add(finished, 1, sem="acq_rel", scope="gpu")
    if arrived == tl.num_programs(0) - 1:
        if loss is not None:
            row = tl.arange(0, 2048)
            sums = tl.zeros((2048,), tl.float64)
            for start in range(0, tl.num_programs(0), 2048):
                sums += tl.load(
                    partial + start + row, start + row < tl.num_programs(0), 0,
                    cache_modifier=".cg",
                )  # fmt: skip
            tl.store(loss, (tl.sum(sums, axis=0) / D).to(loss.dtype.element_ty))
            if divisor is not None:
                tl.store(divisor, D)
        if report is not None:
            _report_bad(counts, surveyed, report, ticket, finished, SURVEYED)


@triton.jit
def _not_chosen(e, classes, y, e_own, chosen, RANK: tl.constexpr):
    """A block's exponentials, the true class's too, without those of higher rank."""
    e = tl.where(classes[:, None] == y[None, :], e_own[None, :], e)
    for earlier in tl.static_range(RANK):
        e = tl.where(classes[:, None] == chosen[earlier][None, :], -1, e)
    return e


@triton.jit
def cross_entropy_kernel(
    logits, logits_strides, mesh, labels, class_weight, pixel_weight,
    gradient, gradient_strides, slopes, terms,
    prediction, nll_map, confidence_map, entropy_map, top_classes, top_probabilities,
    counts, weights, surveyed, divisor_given, divisor, upstream,
    partial, finished, loss, report, ticket,
    pixels, num_pixels, rows, columns, programs_per_image, tiles_per_program, ignored,
    inverse_temperature, label_smoothing, max_nll,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, HELD: tl.constexpr,
    AXES: tl.constexpr, DIVISOR: tl.constexpr, SURVEYED: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr, IS_SMOOTHED: tl.constexpr, UNLESS_ONE: tl.constexpr,
):  # fmt: skip
    """Loss, gradient, terms and maps, each if there is a place for it.

    With a mesh (cells and weights of rows and of columns) the logits are scores, whose upsampled
    logits are meant; their gradient is for another kernel to make, of the `slopes` [4, pixels].

    gradient = upstream / D * d(sum of terms) / d(logits); upstream is 1 if None. `UNLESS_ONE` says
    that a gradient for an upstream of 1 is there already: then nothing is done for one.
    """
    if UNLESS_ONE:
        if tl.load(upstream) == 1:
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
    temperature = number_of(inverse_temperature, dtype)
    D = divisor_of(counts, weights, divisor_given, surveyed, DIVISOR, SURVEYED)
    if gradient is not None:
        gradient += image * gradient_strides[0]
    if gradient is not None or slopes is not None:
        scale = 1 / D
        if upstream is not None:
            scale *= tl.load(upstream).to(tl.float64)
        if HAS_TEMPERATURE:
            scale *= number_of(inverse_temperature, tl.float64)
        scale = scale.to(dtype)
    all_weights = 1
    if IS_SMOOTHED:
        hard_share = 1 - number_of(label_smoothing, dtype)
        soft_share = number_of(label_smoothing, dtype) / C
        all_weights = sum_of_weights(class_weight, C, BLOCK_C, dtype)
    total = tl.zeros((BLOCK_P,), tl.float64)

    for tile in range(tiles_per_program):
        pixel = first_pixel + tile * BLOCK_P + lane
        inside = pixel < pixels
        at, shares = _corners(pixel, inside, logits_strides, rows, columns, mesh, AXES)
        place = image * pixels + pixel
        held = ()
        if HELD:
            for k in tl.static_range(K):
                held += (
                    _load_logits(logits, at, shares, c + k * BLOCK_C, logits_strides, inside, C),
                )
        y = classes_of(labels, place, inside, ignored, C)
        valid = y < C
        soft_weight, of_class = weights_of(class_weight, pixel_weight, place, y, C, dtype)
        weight = soft_weight * of_class

        # The maximum, and the true class's logit.
        nothing = tl.full((BLOCK_C, BLOCK_P), -float("inf"), dtype)
        m = nothing
        x_own = nothing
        best_classes = c[:, None] + tl.zeros((BLOCK_C, BLOCK_P), tl.int32)
        if HELD:
            for k in tl.static_range(K):
                x = scaled(held[k], temperature, dtype, HAS_TEMPERATURE)
                m, best_classes, x_own = _highest(
                    x, c + k * BLOCK_C, y, m, best_classes, x_own, prediction is not None
                )
        else:
            for k in range(K):
                classes = c + k * BLOCK_C
                x = _load_logits(logits, at, shares, classes, logits_strides, inside, C)
                x = scaled(x, temperature, dtype, HAS_TEMPERATURE)
                m, best_classes, x_own = _highest(
                    x, classes, y, m, best_classes, x_own, prediction is not None
                )
        if prediction is not None:
            m, best_class = _first_best(m, best_classes, C)
            tl.store(prediction + place, best_class.to(prediction.dtype.element_ty), inside)
        else:
            m = tl.max(m, axis=0)
        is_nan = tl.max((x_own != x_own).to(tl.int32), axis=0) > 0  # a maximum passes NaN over
        x_own = tl.where(is_nan, float("nan"), tl.max(x_own, axis=0))

        # The sum over the other classes.
        zeros = tl.zeros((BLOCK_C, BLOCK_P), dtype)
        t = zeros
        soft = zeros
        moment = zeros
        exponentials = ()
        if HELD:
            for k in tl.static_range(K):
                x = scaled(held[k], temperature, dtype, HAS_TEMPERATURE)
                classes = (c + k * BLOCK_C)[:, None]
                e, t, soft, moment = add_exponentials(
                    x, classes == y[None, :], classes, m[None, :], t, soft, moment, class_weight,
                    C, IS_HALF, IS_SMOOTHED, entropy_map is not None,
                )  # fmt: skip
                exponentials += (e,)
        else:
            for k in range(K):
                classes = c + k * BLOCK_C
                x = _load_logits(logits, at, shares, classes, logits_strides, inside, C)
                x = scaled(x, temperature, dtype, HAS_TEMPERATURE)
                classes = classes[:, None]
                e, t, soft, moment = add_exponentials(
                    x, classes == y[None, :], classes, m[None, :], t, soft, moment, class_weight,
                    C, IS_HALF, IS_SMOOTHED, entropy_map is not None,
                )  # fmt: skip
        t = tl.sum(t, axis=0)
        d_own = x_own - m
        e_own = exp(d_own, IS_HALF)
        s = t + e_own
        log_s, nll = nll_of(d_own, t, s, number_of(max_nll, dtype))
        term = weight * nll
        if IS_SMOOTHED:
            soft = tl.sum(soft, axis=0)
            weight *= hard_share
            soft_weight *= soft_share
            term = weight * nll + soft_weight * (all_weights * log_s - soft)
        term = tl.where(valid, term, 0)
        total += term.to(tl.float64)
        if terms is not None:
            tl.store(terms + place, term, inside)
        if nll_map is not None:
            tl.store(nll_map + place, tl.where(valid, nll, 0), inside)
        if confidence_map is not None:
            tl.store(confidence_map + place, 1 / s, inside)
        if entropy_map is not None:
            tl.store(entropy_map + place, log_s - tl.sum(moment, axis=0) / s, inside)

        if top_classes is not None:
            DEPTH: tl.constexpr = C if C < TOP else TOP  # min() is a tensor before Triton 3.6
            chosen = ()
            for rank in tl.static_range(DEPTH):
                best = tl.full((BLOCK_C, BLOCK_P), -2, dtype)
                best_classes = c[:, None] + tl.zeros((BLOCK_C, BLOCK_P), tl.int32)
                if HELD:
                    for k in tl.static_range(K):
                        classes = c + k * BLOCK_C
                        e = _not_chosen(exponentials[k], classes, y, e_own, chosen, rank)
                        best, best_classes = _best(e, classes, best, best_classes)
                else:
                    for k in range(K):
                        classes = c + k * BLOCK_C
                        x = _load_logits(logits, at, shares, classes, logits_strides, inside, C)
                        x = scaled(x, temperature, dtype, HAS_TEMPERATURE)
                        e = exp(x - m[None, :], IS_HALF)
                        e = _not_chosen(e, classes, y, e_own, chosen, rank)
                        best, best_classes = _best(e, classes, best, best_classes)
                highest, best_class = _first_best(best, best_classes, C)
                chosen += (best_class,)
                row = (image * DEPTH + rank) * pixels + pixel
                tl.store(top_classes + row, best_class.to(top_classes.dtype.element_ty), inside)
                tl.store(top_probabilities + row, (highest / s).to(tl.float32), inside)

        if gradient is not None or slopes is not None:
            rise, fall, own_slope = slopes_of(
                e_own, t, s, weight, soft_weight, of_class, all_weights, scale, IS_SMOOTHED
            )
        if slopes is not None:
            plane = slopes + place
            tl.store(plane, m, inside)
            plane += num_pixels
            tl.store(plane, rise, inside)
            plane += num_pixels
            tl.store(plane, own_slope, inside)
            if IS_SMOOTHED:
                tl.store(plane + num_pixels, fall, inside)
        if gradient is not None:
            to = _offsets(pixel, gradient_strides, rows, columns, AXES)[None, :]
            if HELD:
                for k in tl.static_range(K):
                    classes = c + k * BLOCK_C
                    g = slope_of(
                        exponentials[k], classes[:, None] == y[None, :], classes[:, None],
                        rise[None, :], fall[None, :], own_slope[None, :], class_weight,
                        C, IS_SMOOTHED,
                    )  # fmt: skip
                    g = tl.where(valid[None, :], g, 0)  # assigned: NaN times 0 would stay NaN
                    _store(gradient, to, classes, gradient_strides[1], inside, C, g)
            else:
                for k in range(K):
                    classes = c + k * BLOCK_C
                    x = _load_logits(logits, at, shares, classes, logits_strides, inside, C)
                    x = scaled(x, temperature, dtype, HAS_TEMPERATURE)
                    g = slope_of(
                        exp(x - m[None, :], IS_HALF), classes[:, None] == y[None, :],
                        classes[:, None], rise[None, :], fall[None, :], own_slope[None, :],
                        class_weight, C, IS_SMOOTHED,
                    )  # fmt: skip
                    g = tl.where(valid[None, :], g, 0)
                    _store(gradient, to, classes, gradient_strides[1], inside, C, g)

    if partial is not None:
        tl.store(partial + program, tl.sum(total, axis=0))
    if finished is not None:
        finish(
            partial, finished, loss, divisor, D, counts, surveyed, report, ticket, SURVEYED
        )  # fmt: skip


# -- what `evaluate` counts ------------------------------------------------------------------------


@triton.jit
def tally_kernel(
    labels, prediction, nll_map, confidence_map, class_weight, pixel_weight,
    confusion, num_copies, image_counts, image_weights, bin_counts, bin_confidence, class_nll,
    pixels, programs_per_image, pixels_per_program, ignored,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Count over the maps. The confusion is added up atomically, in integers, in one of several
    copies so that pixels of one class do not queue for one address; all else per program.
    """
    program = tl.program_id(0)
    image = (program // programs_per_image).to(tl.int64)
    start = (program % programs_per_image).to(tl.int64) * pixels_per_program
    end = tl.minimum(start + pixels_per_program, pixels)
    lane = tl.arange(0, BLOCK_P)
    bin_row = tl.arange(0, BIN_ROWS)
    confusion += (program % num_copies).to(tl.int64) * C * C
    number = tl.zeros((BLOCK_P,), tl.int64)
    saturated = tl.zeros((BLOCK_P,), tl.int64)
    non_finite = tl.zeros((BLOCK_P,), tl.int64)
    weight_sum = tl.zeros((BLOCK_P,), tl.float64)
    in_bins = tl.zeros((BIN_ROWS,), tl.int64)
    right_in_bins = tl.zeros((BIN_ROWS,), tl.int64)
    sure_in_bins = tl.zeros((BIN_ROWS,), tl.float64)
    for done in range(0, pixels_per_program, BLOCK_P):
        pixel = start + done + lane
        inside = pixel < end
        place = image * pixels + pixel
        y = classes_of(labels, place, inside, ignored, C)
        valid = y < C
        predicted = tl.load(prediction + place, inside, 0).to(tl.int64)
        nll = tl.load(nll_map + place, valid, 0)
        confidence = tl.load(confidence_map + place, valid, 0)
        tl.atomic_add(confusion + tl.where(valid, y, 0).to(tl.int64) * C + predicted, 1, valid)
        number += valid.to(tl.int64)
        saturated += (valid & (nll > SATURATED_NLL)).to(tl.int64)
        non_finite += (valid & (nll != nll)).to(tl.int64)
        weight = tl.full((BLOCK_P,), 1, tl.float64)
        if pixel_weight is not None:
            weight = tl.load(pixel_weight + place, valid, 0).to(tl.float64)
        if class_weight is not None:
            weight *= tl.load(class_weight + y, valid, 0).to(tl.float64)
        weight_sum += tl.where(valid, weight, 0)
        share = confidence * NUM_BINS
        whole = share.to(tl.int32)
        bin_of = whole - (whole.to(share.dtype) == share).to(tl.int32)  # the upper bound belongs
        counted = valid & (confidence > 0) & (confidence <= 1)  # not NaN
        member = (bin_row[:, None] == bin_of[None, :]) & counted[None, :]
        right = member & (predicted == y)[None, :]
        in_bins += tl.sum(member.to(tl.int32), axis=1)
        right_in_bins += tl.sum(right.to(tl.int32), axis=1)
        sure_in_bins += tl.sum(tl.where(member, confidence.to(tl.float64)[None, :], 0), axis=1)
    tl.store(image_counts + program * NUM_TALLIES + PIXELS, tl.sum(number, axis=0))
    tl.store(image_counts + program * NUM_TALLIES + SATURATED, tl.sum(saturated, axis=0))
    tl.store(image_counts + program * NUM_TALLIES + NON_FINITE, tl.sum(non_finite, axis=0))
    tl.store(image_weights + program, tl.sum(weight_sum, axis=0))
    tl.store(bin_counts + program * 2 * BIN_ROWS + bin_row, in_bins)
    tl.store(bin_counts + program * 2 * BIN_ROWS + BIN_ROWS + bin_row, right_in_bins)
    tl.store(bin_confidence + program * BIN_ROWS + bin_row, sure_in_bins)

    # Class by class over the same pixels: their maps are in the cache by now.
    for first in range(0, C, BLOCK_C):
        classes = first + tl.arange(0, BLOCK_C)
        sums = tl.zeros((BLOCK_C,), tl.float64)
        for done in range(0, pixels_per_program, BLOCK_P):
            pixel = start + done + lane
            inside = pixel < end
            place = image * pixels + pixel
            y = classes_of(labels, place, inside, ignored, C)
            nll = tl.load(nll_map + place, y < C, 0).to(tl.float64)
            sums += tl.sum(tl.where(classes[:, None] == y[None, :], nll[None, :], 0), axis=1)
        tl.store(class_nll + program.to(tl.int64) * C + classes, sums, classes < C)


# -- the softmax itself ----------------------------------------------------------------------------


@triton.jit
def softmax_kernel(
    logits, logits_strides, probabilities, probabilities_strides,
    upstream, upstream_strides,
    pixels, rows, columns, inverse_temperature,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, HELD: tl.constexpr,
    AXES: tl.constexpr, HAS_TEMPERATURE: tl.constexpr,
):  # fmt: skip
    """p = softmax(logits / temperature), or with `upstream` g the gradient
    p (g - sum_c g_c p_c) / temperature. One image: the batch is among the pixels.
    """
    dtype: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    IS_HALF: tl.constexpr = logits.dtype.element_ty.primitive_bitwidth == 16
    K: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < pixels
    c = tl.arange(0, BLOCK_C)
    at = _offsets(pixel, logits_strides, rows, columns, AXES)[None, :]
    to = _offsets(pixel, probabilities_strides, rows, columns, AXES)[None, :]
    temperature = number_of(inverse_temperature, dtype)
    held = ()
    m = tl.full((BLOCK_C, BLOCK_P), -float("inf"), dtype)
    s = tl.zeros((BLOCK_C, BLOCK_P), dtype)
    if HELD:
        for k in tl.static_range(K):
            x = _load(logits, at, c + k * BLOCK_C, logits_strides[1], inside, C, -float("inf"))
            held += (scaled(x, temperature, dtype, HAS_TEMPERATURE),)
            m = tl.maximum(m, held[k])
    else:
        for k in range(K):
            x = _load(logits, at, c + k * BLOCK_C, logits_strides[1], inside, C, -float("inf"))
            m = tl.maximum(m, scaled(x, temperature, dtype, HAS_TEMPERATURE))
    m = tl.max(m, axis=0)
    exponentials = ()
    if HELD:
        for k in tl.static_range(K):
            exponentials += (exp(held[k] - m[None, :], IS_HALF),)
            s += exponentials[k]
    else:
        for k in range(K):
            x = _load(logits, at, c + k * BLOCK_C, logits_strides[1], inside, C, -float("inf"))
            s += exp(scaled(x, temperature, dtype, HAS_TEMPERATURE) - m[None, :], IS_HALF)
    s = tl.sum(s, axis=0)
    factor = 1 / s
    mean = tl.zeros((BLOCK_C, BLOCK_P), dtype)
    upstreams = ()
    by = at
    if upstream is not None:
        by = _offsets(pixel, upstream_strides, rows, columns, AXES)[None, :]
        if HELD:
            for k in tl.static_range(K):
                g = _load(upstream, by, c + k * BLOCK_C, upstream_strides[1], inside, C, 0)
                upstreams += (g.to(dtype),)
                mean += upstreams[k] * exponentials[k]
        else:
            for k in range(K):
                classes = c + k * BLOCK_C
                x = _load(logits, at, classes, logits_strides[1], inside, C, -float("inf"))
                e = exp(scaled(x, temperature, dtype, HAS_TEMPERATURE) - m[None, :], IS_HALF)
                g = _load(upstream, by, classes, upstream_strides[1], inside, C, 0)
                mean += g.to(dtype) * e
        if HAS_TEMPERATURE:
            factor *= temperature
    average = tl.sum(mean, axis=0) / s
    if HELD:
        for k in tl.static_range(K):
            p = exponentials[k] * factor[None, :]
            if upstream is not None:
                p *= upstreams[k] - average[None, :]
            _store(
                probabilities, to, c + k * BLOCK_C, probabilities_strides[1], inside, C, p
            )  # fmt: skip
    else:
        for k in range(K):
            classes = c + k * BLOCK_C
            x = _load(logits, at, classes, logits_strides[1], inside, C, -float("inf"))
            e = exp(scaled(x, temperature, dtype, HAS_TEMPERATURE) - m[None, :], IS_HALF)
            p = e * factor[None, :]
            if upstream is not None:
                g = _load(upstream, by, classes, upstream_strides[1], inside, C, 0)
                p *= g.to(dtype) - average[None, :]
            _store(probabilities, to, classes, probabilities_strides[1], inside, C, p)
