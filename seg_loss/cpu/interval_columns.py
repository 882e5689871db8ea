"""The loss of upsampled scores where a lane is an interval between two source pixels.

`upsampled` writes interpolated logits to rows and reads them again. Here the logits are never
stored. A strip is 16 neighbouring intervals of an interval row. Its target rows are processed one
by one; the k-th target pixels of its intervals are the phase k:

    edges        left_c, right_c    the scores on both sides, combined vertically, for each class
                 a = max_c left_c   b = max_c right_c
    exponents    from A_c = (left_c - a) / (T ln 2)  and  B_c = (right_c - b) / (T ln 2)
                     u_c = A_c + w (B_c - A_c)       e_c = 2**u_c
                 where w is the weight of the right source
    pixels       nll and factor from the sum of the e_c; see `cross_entropy`
    gradients    left_c += w0 factor e_c             right_c += w1 factor e_c
                 with -t instead of e_c for the target class

The weights of an interval are evenly spaced, so its exponentials are a geometric progression. Only
one phase in four needs `exp2`; the others follow by multiplication.

The interpolated maximum  a + w (b - a)  is at least the maximum of the logits, so no exponential
overflows. It may be far above the maximum. A pixel whose sum or whose target's exponential is too
small or not finite is computed again with the maximum of its own logits. So are the pixels of an
interval in which some logit rises too steeply for the progression.

All pixels of an interval in one target row read the same four scores. Where none of them is valid,
the scores are replaced by 0, so that NaN and infinity do not reach the gradient.

Phases are processed in groups, whose exponentials lie in the first-level cache, for many classes in
the second.
"""

import math

import llvmlite.ir as ir
import numpy as np
from numba import types

from seg_loss.cpu.compiler import inner, intrinsic
from seg_loss.cpu.dtypes import emit_load, emit_store
from seg_loss.cpu.exponential import emit_exp2, exp2, log_float32
from seg_loss.cpu.records import FLOAT32, LANES, NUM_PHASE_VECTORS, NUM_SOURCE_BLOCKS
from seg_loss.cpu.region import add_terms, make_region
from seg_loss.cpu.rows import fill, load_classes, load_rows, store_rows
from seg_loss.cpu.simd import (
    FLOATS,
    VectorType,
    address_of,
    any_lane,
    at,
    constant,
    emit_fma,
    emit_loop,
    emit_maximum,
    equal,
    fma,
    less,
    load,
    mask_and,
    maximum,
    min_int,
    pointer,
    splat,
    store,
    sum_of_lanes,
    where,
    widened,
)
from seg_loss.cpu.sums import SUM_BLOCK, add_block, emit_add_block
from seg_loss.cpu.target import target
from seg_loss.cpu.upsampled import (
    SUM_ROWS,
    load_sources,
    make_add_halo_rows,
    write_halo_row,
)

_LOG2_E = math.log2(math.e)
# An exponential below float32's range that grows by the largest ratio in each of three phases is
# still far below the smallest sum, and below the smallest exponential of a target class.
_LARGEST_RATIO = 2.0**20
_SMALLEST_SUM = np.float32(2.0**-40)
_SMALLEST_TARGET = np.float32(2.0**-60)
_FAR = np.float32(-40)  # below it ln(1 + t / e) is ln(t / e) in float32
_LINE = 4 * LANES
# Blocks of scratch memory, each of `num_classes` rows of sources, followed by one row of ones.
_UPPER, _LOWER, _UPPER_GRADIENT, _LOWER_GRADIENT = range(NUM_SOURCE_BLOCKS)
# Vectors of a phase, each with one lane for each interval.
(
    _SUM,
    _TARGET_EXPONENTIAL,
    _TARGET_DISTANCE,  # its logit / T less the maximum if computed again, else 0
    _LEFT_FACTOR,
    _RIGHT_FACTOR,
    _TARGET_ENTRY,
) = range(NUM_PHASE_VECTORS)
_SUM_LOW = _LEFT_FACTOR  # until the factors are known


# -- loops over the classes, in which the phases of a group are unrolled ---------------------------


def _emit_exponent(builder, x, top, scale, shift):
    """Emits (x - top) * scale, where `shift` is top * scale.

    An fma has the accuracy of a difference first; without one the difference must come first.
    """
    if target().has_fma:
        return emit_fma(builder, x, scale, builder.fneg(shift))
    return builder.fmul(builder.fsub(x, top), scale)


def _emit_class(builder, c):
    """Emits a class index in every lane."""
    vector = ir.Constant(ir.VectorType(ir.IntType(32), LANES), ir.Undefined)
    index = builder.trunc(c, ir.IntType(32))
    vector = builder.insert_element(vector, index, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(vector, vector, constant(types.int32, 0))


def _emit_vector(builder, address, index, *, is_integer=False):
    """Emits a load of the vector number `index` at an address."""
    if isinstance(index, int):
        index = address.type(index)
    address = builder.add(address, builder.mul(index, address.type(_LINE)))
    value = emit_load(builder, address, FLOAT32, LANES)
    return builder.bitcast(value, constant(types.int32, 0).type) if is_integer else value


def _emit_vector_store(builder, address, index, value):
    if isinstance(index, int):
        index = address.type(index)
    address = builder.add(address, builder.mul(index, address.type(_LINE)))
    emit_store(builder, address, FLOAT32, value, False)


def _emit_sum_over_blocks(builder, num_classes, sums, others, of_class, results):
    """Emits a loop over the classes in blocks; returns the sums of the phases, and other values.

    `of_class(c, values)` returns sums and others for the next class. Sums of earlier blocks lie in
    memory, so that the loop over a block has all registers.
    """
    word, zero = num_classes.type, constant(types.float32, 0.0)
    size = word(SUM_BLOCK)

    def of_block(turn, others):
        first = builder.mul(turn, size)
        left = builder.sub(num_classes, first)
        count = builder.select(builder.icmp_signed("<", left, size), left, size)
        initial = [zero] * sums + others
        values = emit_loop(
            builder, count, initial, lambda i, values: of_class(builder.add(first, i), values)
        )
        totals, others = values[:sums], values[sums:]
        before = builder.block
        # A single block needs no addition.
        with builder.if_then(builder.icmp_signed(">", num_classes, size), likely=False):
            is_first = builder.icmp_signed("==", turn, word(0))
            added = []
            for k, value in enumerate(totals):
                slots = [k * NUM_PHASE_VECTORS + slot for slot in (_SUM, _SUM_LOW)]
                old = [_emit_vector(builder, results, slot) for slot in slots]
                old = [builder.select(is_first, zero, value) for value in old]
                pair = emit_add_block(builder, *old, value)
                for slot, value in zip(slots, pair, strict=True):
                    _emit_vector_store(builder, results, slot, value)
                added.append(builder.fadd(*pair))
            behind = builder.block
        return [*_emit_phis(builder, {before: totals, behind: added}), *others]

    zeros = [zero] * sums
    turns = builder.sdiv(builder.add(num_classes, word(SUM_BLOCK - 1)), size)
    return emit_loop(
        builder, turns, [*zeros, *others], lambda turn, values: of_block(turn, values[sums:])
    )


def _emit_phis(builder, values_of):
    """Emits phi nodes for lists of values by the block that they come from."""
    phis = []
    for values in zip(*values_of.values(), strict=True):
        phis.append(builder.phi(values[0].type))
        for block, value in zip(values_of, values, strict=True):
            phis[-1].add_incoming(value, block)
    return phis


def _make_exponentials(phases, anchor_distance, is_stored):
    """Returns what computes the exponentials of a group of `phases`.

    Args:
        phases: the phases of a group. The sums of each take two registers.
        anchor_distance: from one phase whose exponentials are computed by `exp2` to the next. The
            phases between follow by multiplication with  r_c = 2**(step (B_c - A_c)),  where `step`
            is the distance of their weights.
        is_stored: whether the exponentials are stored, for a gradient.
    """
    float32 = types.float32

    @intrinsic
    def exponentials(
        typingctx,
        num_classes,
        edges,
        left_top,
        right_top,
        scale,
        steps,
        labels,
        weights,
        results,
        e,
    ):
        """Writes the exponentials, their sums and the exponential of the target class.

        Args:
            edges: address of the vectors left_c and right_c of each class.
            left_top, right_top: their maxima.
            scale: 1 / (T ln 2).
            steps: the vector of steps.
            labels: address of a vector of labels for each phase.
            weights: address of a vector w for each phase.
            results: address of the vectors `_SUM` and `_TARGET_EXPONENTIAL` of each phase.
            e: address of the exponentials [classes, phases].
        """

        def codegen(context, builder, signature, args):
            (
                num_classes,
                edges,
                left_top,
                right_top,
                scale,
                steps,
                labels,
                weights,
                results,
                e,
            ) = args
            y = [_emit_vector(builder, labels, k, is_integer=True) for k in range(phases)]
            left_shift = builder.fmul(left_top, scale)
            right_shift = builder.fmul(right_top, scale)

            def of_class(c, values):
                pair = builder.add(edges, builder.mul(c, c.type(2 * _LINE)))
                left, right = (_emit_vector(builder, pair, side) for side in (0, 1))
                first = _emit_exponent(builder, left, left_top, scale, left_shift)
                last = _emit_exponent(builder, right, right_top, scale, right_shift)
                rise = builder.fsub(last, first)
                class_index = _emit_class(builder, c)
                row = builder.add(e, builder.mul(c, c.type(phases * _LINE)))
                powers, largest = [], values[-1]
                if anchor_distance > 1:
                    ratio = emit_exp2(builder, builder.fmul(rise, steps))
                    largest = emit_maximum(builder, ratio, largest)
                    powers = [ratio, builder.fmul(ratio, ratio)]
                sums, targets, computed = [], [], []
                for k in range(phases):
                    beyond = k % anchor_distance
                    if beyond == 0:
                        u = emit_fma(builder, rise, _emit_vector(builder, weights, k), first)
                        computed.append(emit_exp2(builder, u))
                    else:
                        # From two phases before, so that rounding errors do not add up.
                        back = min(beyond, 2)
                        computed.append(builder.fmul(computed[-back], powers[back - 1]))
                    is_target = builder.icmp_signed("==", y[k], class_index)
                    if is_stored:
                        _emit_vector_store(builder, row, k, computed[k])
                    total = builder.fadd(values[k], computed[k])
                    sums.append(builder.select(is_target, values[k], total))
                    targets.append(builder.select(is_target, computed[k], values[phases + k]))
                return [*sums, *targets, largest]

            zero, one = constant(float32, 0.0), constant(float32, 1.0)
            others = [one] * phases + [zero]
            values = _emit_sum_over_blocks(builder, num_classes, phases, others, of_class, results)
            limit = constant(float32, _LARGEST_RATIO)
            is_steep = builder.fcmp_unordered(">", values[-1], limit)
            for k in range(phases):
                vectors = k * NUM_PHASE_VECTORS
                total = builder.select(is_steep, constant(float32, math.inf), values[k])
                _emit_vector_store(builder, results, vectors + _SUM, total)
                e_target = values[phases + k]
                _emit_vector_store(builder, results, vectors + _TARGET_EXPONENTIAL, e_target)
                _emit_vector_store(builder, results, vectors + _TARGET_DISTANCE, zero)
            return context.get_dummy_value()

        words = (types.int64,) * 4
        vectors = (left_top, right_top, scale, steps)
        return types.void(types.int64, types.int64, *vectors, *words), codegen

    return exponentials


def _make_gradients(phases):
    """Returns what adds the gradient of a group of phases to the corners of the intervals."""
    float32 = types.float32
    classes = 2  # of a turn, so that factors and labels are loaded once for two classes

    @intrinsic
    def gradients(typingctx, num_classes, above, below, labels, results, e, corners):
        """Adds to the vectors upper left, upper right, lower left, lower right of each class.

        Exponentials and corners have room for one more class if their number is odd.
        """

        def codegen(context, builder, signature, args):
            num_classes, above, below, labels, results, e, corners = args

            def of_classes(turn, values):
                first = builder.mul(turn, turn.type(classes))
                index = [builder.add(first, turn.type(j)) for j in range(classes)]
                class_index = [_emit_class(builder, c) for c in index]
                rows = [builder.add(e, builder.mul(c, c.type(phases * _LINE))) for c in index]
                lefts = [constant(float32, 0.0)] * classes
                rights = [constant(float32, 0.0)] * classes
                for k in range(phases):
                    vectors = k * NUM_PHASE_VECTORS
                    y = _emit_vector(builder, labels, k, is_integer=True)
                    from_left = _emit_vector(builder, results, vectors + _LEFT_FACTOR)
                    from_right = _emit_vector(builder, results, vectors + _RIGHT_FACTOR)
                    of_target = _emit_vector(builder, results, vectors + _TARGET_ENTRY)
                    for j in range(classes):
                        is_target = builder.icmp_signed("==", y, class_index[j])
                        value = _emit_vector(builder, rows[j], k)
                        value = builder.select(is_target, of_target, value)
                        lefts[j] = emit_fma(builder, value, from_left, lefts[j])
                        rights[j] = emit_fma(builder, value, from_right, rights[j])
                for j, c in enumerate(index):
                    corner = builder.add(corners, builder.mul(c, c.type(4 * _LINE)))
                    for k, (weight, side) in enumerate(
                        ((above, lefts), (above, rights), (below, lefts), (below, rights))
                    ):
                        total = emit_fma(builder, weight, side[j], _emit_vector(builder, corner, k))
                        _emit_vector_store(builder, corner, k, total)
                return []

            one = num_classes.type(1)
            turns = builder.lshr(builder.add(num_classes, one), one)
            emit_loop(builder, turns, [], of_classes)
            return context.get_dummy_value()

        words = (types.int64,) * 4
        return types.void(types.int64, above, below, *words), codegen

    return gradients


# -- a strip of a target row -----------------------------------------------------------------------


@inner(types.void)
def _load_labels(job, image, y, first_interval, intervals, labels, weights, has_weights):
    """Loads the labels and weights of a target row, and arranges them by phase."""
    grid, num_classes = job.grid, job.logits.num_classes
    starts = pointer(grid.column_starts, np.int64)
    first = starts[first_interval]
    start = y * grid.num_columns + first
    n = starts[first_interval + intervals] - first
    pixel_labels = at(labels, grid.num_phases * LANES)
    load_classes(job, image, start, n, pixel_labels)
    for j in range(LANES):
        offset = count = 0
        if j < intervals:
            offset = starts[first_interval + j] - first
            count = starts[first_interval + j + 1] - first - offset
        for k in range(count):
            labels[k * LANES + j] = pixel_labels[offset + k]
        for k in range(count, grid.num_phases):
            labels[k * LANES + j] = num_classes
    if has_weights:
        pixel_weights = at(weights, grid.num_phases * LANES)
        fill(pixel_weights, n, 1.0)
        if job.pixel_weight.address:
            load_rows(job.pixel_weight, image, start, n, pixel_weights, n)
        if job.class_weight:
            class_weight = pointer(job.class_weight, np.float64)
            for i in range(n):
                factor = np.float32(class_weight[pixel_labels[i]])
                pixel_weights[i] = pixel_weights[i] * factor
        for j in range(intervals):
            offset = starts[first_interval + j] - first
            count = starts[first_interval + j + 1] - first - offset
            for k in range(count):
                weights[k * LANES + j] = pixel_weights[offset + k]


@inner(VectorType(types.boolean))
def _find_live(labels, num_phases, num_classes):
    """Returns the intervals that have a valid pixel."""
    one, end = splat(np.int32(1)), splat(np.int32(num_classes))
    live = splat(np.int32(0))
    for k in range(num_phases):
        live = where(less(load(labels, k * LANES), end), one, live)
    return equal(live, one)


@inner(types.UniTuple(FLOATS, 2))
def _combine_rows(job, upper, lower, above, below, is_live, edges):
    """Writes left_c and right_c of each class, and returns their maxima.

    They are 0 in lanes without a valid pixel.
    """
    grid, num_classes = job.grid, job.logits.num_classes
    zero = splat(np.float32(0))
    left_top = right_top = splat(np.float32(-np.inf))
    for c in range(num_classes):
        i = c * grid.source_stride
        left = fma(above, load(upper, i), below * load(lower, i))
        right = fma(above, load(upper, i + 1), below * load(lower, i + 1))
        left, right = where(is_live, left, zero), where(is_live, right, zero)
        store(edges, 2 * c * LANES, left)
        store(edges, (2 * c + 1) * LANES, right)
        left_top, right_top = maximum(left, left_top), maximum(right, right_top)
    return left_top, right_top


@inner(VectorType(types.boolean))
def _is_kept(vectors):
    """Returns the pixels whose sum and whose target's exponential are in range."""
    e_target = load(vectors, _TARGET_EXPONENTIAL * LANES)
    s = load(vectors, _SUM * LANES) + e_target
    is_finite = mask_and(less(splat(_SMALLEST_SUM), s), less(s, splat(np.float32(np.inf))))
    return mask_and(is_finite, less(splat(_SMALLEST_TARGET), e_target))


@inner(types.void)
def _recompute_lost_pixels(job, edges, scale, y, shares, vectors, e, step):
    """Computes the pixels of a phase that are not kept, by the maximum of their own logits.

    `shares` are the weights of the left and the right source. `step` is the distance of the
    exponentials of two classes; 0 if they are not stored.
    """
    left_weight, right_weight = shares
    num_classes, is_kept = job.logits.num_classes, _is_kept(vectors)
    one = splat(np.int32(1))
    if not any_lane(less(where(is_kept, one, splat(np.int32(0))), one)):
        return
    high = low = distance = splat(np.float32(0))
    top = splat(np.float32(-np.inf))
    for c in range(num_classes):
        left, right = load(edges, 2 * c * LANES), load(edges, (2 * c + 1) * LANES)
        top = maximum(fma(left_weight, left, right_weight * right), top)
    for first in range(0, num_classes, SUM_BLOCK):
        t = splat(np.float32(0))
        for c in range(first, min_int(first + SUM_BLOCK, num_classes)):
            left, right = load(edges, 2 * c * LANES), load(edges, (2 * c + 1) * LANES)
            below_top = fma(left_weight, left, right_weight * right) - top
            is_target = equal(y, splat(np.int32(c)))
            distance = where(is_target, below_top, distance)
            new = exp2(below_top * scale)
            t = where(is_target, t, t + new)
            if step:
                store(e, c * step, where(is_kept, load(e, c * step), new))
        high, low = add_block(high, low, t)
    t = high + low
    e_target = where(is_kept, load(vectors, _TARGET_EXPONENTIAL * LANES), exp2(distance * scale))
    distance = distance * splat(np.float32(job.inverse_temperature))
    distance = where(is_kept, load(vectors, _TARGET_DISTANCE * LANES), distance)
    store(vectors, _SUM * LANES, where(is_kept, load(vectors, _SUM * LANES), t))
    store(vectors, _TARGET_EXPONENTIAL * LANES, e_target)
    store(vectors, _TARGET_DISTANCE * LANES, distance)


@inner(VectorType(types.float64))
def _pixels_of_phase(num_classes, y, weight, shares, scale, max_nll, vectors, total):
    """Writes the factors of a phase, and returns `total` with its terms added."""
    left_weight, right_weight = shares
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    valid = less(y, splat(np.int32(num_classes)))
    t, e_target = load(vectors, _SUM * LANES), load(vectors, _TARGET_EXPONENTIAL * LANES)
    s = t + e_target
    # ln(1 + t / e) is accurate where t is tiny. Where e is tiny, the nll is ln(s) - distance. One
    # division gives both t / e and 1 / s, and the slope of ln(1 + x) too; see `log1p`.
    distance = load(vectors, _TARGET_DISTANCE * LANES)
    is_near = less(splat(_FAR), distance)
    divisor = where(is_near, e_target, one)
    reciprocal = one / (s * divisor)
    inverse = divisor * reciprocal
    x = where(is_near, t * (s * reciprocal), s - one)
    w = one + x
    nll = log_float32(w) + (x - (w - one)) * (divisor * inverse)
    nll = nll - where(is_near, zero, distance)
    nll = where(less(max_nll, nll), max_nll, nll)
    factor = where(valid, weight * (scale * inverse), zero)
    store(vectors, _LEFT_FACTOR * LANES, left_weight * factor)
    store(vectors, _RIGHT_FACTOR * LANES, right_weight * factor)
    store(vectors, _TARGET_ENTRY * LANES, -t)
    return total + widened(where(valid, nll * weight, zero))


@inner(types.void)
def _add_corners(job, corners, upper, lower):
    """Adds the corners of a strip to the gradient of its sources, and clears them."""
    num_classes, stride = job.logits.num_classes, job.grid.source_stride
    zero = splat(np.float32(0))
    for side in range(2):
        for c in range(num_classes):
            i, corner = c * stride + side, at(corners, (4 * c + side) * LANES)
            store(upper, i, load(upper, i) + load(corner, 0))
            store(lower, i, load(lower, i) + load(corner, 2 * LANES))
            store(corner, 0, zero)
            store(corner, 2 * LANES, zero)


def make_loss(*, phases, anchor_distance, has_gradient):
    """Returns the kernel of the loss; a chunk is a block of interval rows, as in `upsampled`.

    Args:
        phases: the phases of a group, whose exponentials are kept at a time.
        anchor_distance: as in `_make_exponentials`.
        has_gradient: whether the gradient is written.
    """
    exponentials = _make_exponentials(phases, anchor_distance, has_gradient)
    gradients = _make_gradients(phases)

    @inner(VectorType(types.float64))
    def process_row(job, image, y, strip, intervals, upper, lower, total, scratch):
        grid, num_classes = job.grid, job.logits.num_classes
        edges = pointer(scratch + grid.edges, np.float32)
        e = pointer(scratch + grid.exponentials, np.float32)
        vectors = pointer(scratch + grid.phase_vectors, np.float32)
        labels = pointer(scratch + grid.pixel_classes, np.int32)
        weights = pointer(scratch + grid.pixel_weights, np.float32)
        corners = pointer(scratch + grid.corners, np.float32)
        row_weights = pointer(grid.row_weights, np.float64)
        left_weights = pointer(grid.column_weights, np.float32)
        right_weights = at(left_weights, grid.num_phases * grid.phase_stride)
        has_weights = job.pixel_weight.address != 0 or job.class_weight != 0
        grad_scale = job.grad_output * job.inverse_temperature / job.known_divisor
        gradient_scale = splat(np.float32(grad_scale))
        scale = splat(np.float32(job.inverse_temperature * _LOG2_E))
        max_nll = splat(np.float32(job.max_nll))
        steps = load(pointer(grid.weight_steps, np.float32), strip)
        above = splat(np.float32(row_weights[y]))
        below = splat(np.float32(row_weights[grid.num_rows + y]))
        _load_labels(job, image, y, strip, intervals, labels, weights, has_weights)
        is_live = _find_live(labels, grid.num_phases, num_classes)
        if not any_lane(is_live):
            return total
        left_top, right_top = _combine_rows(
            job, at(upper, strip), at(lower, strip), above, below, is_live, edges
        )
        for first in range(0, grid.num_phases, phases):
            y_of_group = at(labels, first * LANES)
            table = (strip // LANES * grid.num_phases + first) * LANES
            exponentials(
                num_classes,
                address_of(edges),
                left_top,
                right_top,
                scale,
                steps,
                address_of(y_of_group),
                grid.exponent_weights + 4 * table,
                address_of(vectors),
                address_of(e),
            )
            for k in range(phases):
                phase_vectors = at(vectors, k * NUM_PHASE_VECTORS * LANES)
                y_of_phase = load(y_of_group, k * LANES)
                weight = load(weights, (first + k) * LANES)
                shares = (
                    load(left_weights, table + k * LANES),
                    load(right_weights, table + k * LANES),
                )
                step = phases * LANES if has_gradient else 0
                of_class = at(e, k * LANES)
                _recompute_lost_pixels(
                    job, edges, scale, y_of_phase, shares, phase_vectors, of_class, step
                )
                total = _pixels_of_phase(
                    num_classes,
                    y_of_phase,
                    weight,
                    shares,
                    gradient_scale,
                    max_nll,
                    phase_vectors,
                    total,
                )
            if has_gradient:
                gradients(
                    num_classes,
                    above,
                    below,
                    address_of(y_of_group),
                    address_of(vectors),
                    address_of(e),
                    address_of(corners),
                )
        return total

    @inner(types.void)
    def process_chunk(job, scratch, image, first, last, chunk):
        if first >= last:
            return  # an empty batch
        grid, scores, gradient = job.grid, job.logits, job.gradient
        num_classes, columns = scores.num_classes, grid.source_columns
        sources = pointer(scratch + grid.sources, np.float32)
        corners = pointer(scratch + grid.corners, np.float32)
        row_starts = pointer(grid.row_starts, np.int64)
        block = num_classes * grid.source_stride
        halo_size = num_classes * columns
        k = image * job.chunks_per_image + first // job.chunk_units
        halo_rows = pointer(grid.halo_rows + 4 * k * 2 * halo_size, np.float32)
        upper, lower = at(sources, _UPPER * block), at(sources, _LOWER * block)
        upper_gradient = at(sources, _UPPER_GRADIENT * block)
        lower_gradient = at(sources, _LOWER_GRADIENT * block)
        ones = at(sources, NUM_SOURCE_BLOCKS * block)
        fill(ones, grid.source_stride, 1.0)
        fill(upper_gradient, block, 0.0)
        fill(corners, 4 * LANES * num_classes, 0.0)
        fill(pointer(scratch + grid.pixel_weights, np.float32), grid.num_phases * LANES, 1.0)
        load_sources(scores, image, first - 1, grid, upper)
        total = widened(splat(np.float32(0)))
        for row in range(first, last):
            load_sources(scores, image, row, grid, lower)
            fill(lower_gradient, block, 0.0)
            for strip in range(0, columns + 1, LANES):
                intervals = min_int(LANES, columns + 1 - strip)
                for y in range(row_starts[row], row_starts[row + 1]):
                    total = process_row(
                        job, image, y, strip, intervals, upper, lower, total, scratch
                    )
                    # Sum in two stages: adding many terms one by one would lose their last bits.
                    is_last = y == row_starts[row + 1] - 1
                    if has_gradient and (is_last or (y + 1) % SUM_ROWS == 0):
                        up, low = at(upper_gradient, strip), at(lower_gradient, strip)
                        _add_corners(job, corners, up, low)
            if has_gradient:
                if row == first:
                    write_halo_row(
                        num_classes, upper_gradient, grid.source_stride, columns, halo_rows
                    )
                else:
                    pixel, values = (row - 1) * columns, at(upper_gradient, 1)
                    store_rows(gradient, image, pixel, columns, values, ones, grid.source_stride)
            upper, lower = lower, upper
            upper_gradient, lower_gradient = lower_gradient, upper_gradient
        if has_gradient:
            halo_row = at(halo_rows, halo_size)
            write_halo_row(num_classes, upper_gradient, grid.source_stride, columns, halo_row)
        add_terms(chunk, sum_of_lanes(total))

    return make_region(process_chunk, np.float32, True, make_add_halo_rows(np.float32))
