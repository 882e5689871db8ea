"""Tiles: pixels whose logits lie in a scratch buffer, one row for each class.

Tiles serve what the faster kernels (`columns`, `many_classes`, `interval_columns`) do not: label
smoothing, float64, evaluations of upsampled scores or of more classes than a column has. Rows fit
the second-level cache. Below, d_c is (x_c - m) / T.

    take_target   moves the target logit x_y out of the rows and leaves -inf in its place
    strips        16 pixels at a time, all classes:
                      m = max(x_y, max_c x_c)     t = sum_{c != y} exp(d_c)
                      s = t + exp(d_y)
                      nll = ln s - d_y            ln s = log1p(t) where x_y is the maximum
                  The rows now hold exp(d_c).
    put_target    writes -t to the place of x_y

A row times the row `FACTOR` is the gradient:  grad_c = w p_c / D  and  grad_y = -w (t / s) / D.
Ignored pixels get class C, a dummy row, which avoids a branch per pixel.
"""

import numpy as np
from numba import types

from seg_loss.constants import SATURATED_NLL
from seg_loss.cpu.compiler import inner
from seg_loss.cpu.exponential import exp, log1p
from seg_loss.cpu.records import INT16, LANES, NUM_BINS, NUM_EXTRA_ROWS, TOP, UINT8
from seg_loss.cpu.region import add_terms
from seg_loss.cpu.rows import fill
from seg_loss.cpu.simd import (
    VectorType,
    any_lane,
    at,
    broadcast,
    equal,
    is_nan,
    lane,
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
from seg_loss.cpu.sums import SUM_BLOCK, add_block

# Rows of the scratch buffer after the C rows of the classes.
(
    _DUMMY,
    TARGET,
    FACTOR,
    PIXEL_WEIGHTS,
    _CLASS_WEIGHT,
    MAP,
    CONFIDENCE,
    ENTROPY,
    LEFT_FACTOR,
    RIGHT_FACTOR,
) = range(NUM_EXTRA_ROWS)


def _vectors(count):
    """Returns what gives the type of a result: a tuple of vectors like the first vector."""

    def returns(*args):
        vector = next(argument for argument in args if isinstance(argument, VectorType))
        return types.UniTuple(vector, count)

    return returns


@inner(types.void)
def take_target(num_classes, n, classes, rows, stride):
    """Moves the target logit of each pixel to the row `TARGET` and leaves -inf in its place."""
    target_logit = at(rows, (num_classes + TARGET) * stride)
    fill(at(rows, num_classes * stride), n, -np.inf)
    fill(target_logit, n, -np.inf)
    for i in range(n):
        offset = min_int(classes[i], num_classes) * stride + i
        target_logit[i] = rows[offset]
        rows[offset] = -np.inf


@inner(types.void)
def put_target(num_classes, n, classes, rows, stride):
    """Writes the row `TARGET` back to the places of the target classes."""
    target_logit = at(rows, (num_classes + TARGET) * stride)
    for i in range(n):
        rows[min_int(classes[i], num_classes) * stride + i] = target_logit[i]


@inner(types.void)
def _non_finite_strip(num_classes, n, i, classes, s, rows, stride, chunk):
    """Counts the valid pixels of a strip that have no finite sum, and clears the ignored ones.

    It is called only if some lane of the strip at `i` is NaN.
    """
    sums = at(rows, (num_classes + FACTOR) * stride)
    store(sums, i, s)
    for j in range(i, min_int(i + LANES, n)):
        if sums[j] != sums[j]:
            if classes[j] < num_classes:
                chunk.non_finite += 1
            else:
                # Assign 0 to the gradient of an ignored pixel: NaN times 0 would stay NaN.
                for c in range(num_classes):
                    rows[c * stride + j] = 0


@inner(lambda *args: args[2])
def _weighted_distance(job, y, target_distance, m, inverse_temperature, rows, stride, i):
    """Returns sum_c weight_c (x_c - m) / T, for label smoothing.

    The rows hold -inf in place of the target logit, so its distance is an argument.
    """
    class_weight = pointer(job.class_weight, np.float64)
    zero = broadcast(rows, 0.0)
    high = low = zero
    for first in range(0, job.logits.num_classes, SUM_BLOCK):
        total = zero
        for c in range(first, min_int(first + SUM_BLOCK, job.logits.num_classes)):
            weight = class_weight[c]
            if weight != 0:
                is_target = equal(y, splat(np.int32(c)))
                distance = (load(rows, c * stride + i) - m) * inverse_temperature
                distance = where(is_target, target_distance, distance)
                total = total + broadcast(rows, weight) * distance
        high, low = add_block(high, low, total)
    return high + low


@inner(types.void)
def _load_class_weights(job, n, classes, row):
    """Loads the weight of the target class of each pixel."""
    if job.class_weight:
        class_weight = pointer(job.class_weight, np.float64)
        for i in range(n):
            row[i] = class_weight[classes[i]]
    else:
        fill(row, n, 1.0)


@inner(_vectors(3))
def _term(job, nll, log_s, smoothing_sum, pixel_weight, class_weight, rows):
    """Returns the term of a pixel, and the weights of its nll and of the nll of all classes in it.

    `smoothing_sum` is sum_c weight_c d_c, so that sum_c weight_c nll_c is
    sum_c weight_c log_s - smoothing_sum.
    """
    smoothing = job.label_smoothing
    target_weight, uniform_weight = pixel_weight * class_weight, pixel_weight
    term = target_weight * nll
    if smoothing:
        target_weight = target_weight * broadcast(rows, 1.0 - smoothing)
        uniform_weight = uniform_weight * broadcast(rows, smoothing / job.logits.num_classes)
        all_weights = broadcast(rows, job.sum_of_class_weights)
        term = target_weight * nll + uniform_weight * (all_weights * log_s - smoothing_sum)
    return term, target_weight, uniform_weight


@inner(types.void)
def terms_of_tile(job, n, classes, scale_of_gradient, rows, stride, chunk):
    """Computes the terms of a tile of `n` pixels and prepares its gradient.

    The rows become exponentials (with label smoothing, gradients); times the row `FACTOR` they are
    the gradient. The entry of the target class is in the row `TARGET`, and the row `MAP` has the
    terms. `classes` and the row `PIXEL_WEIGHTS` must be filled.
    """
    num_classes = job.logits.num_classes
    class_weight = pointer(job.class_weight, np.float64)
    target_row = at(rows, (num_classes + TARGET) * stride)
    factor_row = at(rows, (num_classes + FACTOR) * stride)
    pixel_row = at(rows, (num_classes + PIXEL_WEIGHTS) * stride)
    class_row = at(rows, (num_classes + _CLASS_WEIGHT) * stride)
    map_row = at(rows, (num_classes + MAP) * stride)
    zero = broadcast(rows, 0.0)
    one = broadcast(rows, 1.0)
    scale = broadcast(rows, scale_of_gradient)
    max_nll = broadcast(rows, job.max_nll)
    inverse_temperature = broadcast(rows, job.inverse_temperature)
    total = widened(zero)
    _load_class_weights(job, n, classes, class_row)
    take_target(num_classes, n, classes, rows, stride)

    for i in range(0, n, LANES):
        y = load(classes, i)
        valid = less(y, splat(np.int32(num_classes)))
        target_logit = load(target_row, i)
        m = target_logit
        for c in range(num_classes):
            m = maximum(load(rows, c * stride + i), m)
        distance = (target_logit - m) * inverse_temperature
        smoothing_sum = zero
        if job.label_smoothing:
            smoothing_sum = _weighted_distance(
                job, y, distance, m, inverse_temperature, rows, stride, i
            )
        high = low = zero
        for first in range(0, num_classes, SUM_BLOCK):
            t = zero
            for c in range(first, min_int(first + SUM_BLOCK, num_classes)):
                e = exp((load(rows, c * stride + i) - m) * inverse_temperature)
                store(rows, c * stride + i, e)
                t = t + e
            high, low = add_block(high, low, t)
        t = high + low
        target_exp = exp(distance)
        s = t + target_exp
        if any_lane(is_nan(s)):
            _non_finite_strip(num_classes, n, i, classes, s, rows, stride, chunk)

        log_s = log1p(where(equal(distance, zero), t, s - one))
        nll = log_s - distance
        nll = where(less(max_nll, nll), max_nll, nll)
        pixel_weight = where(valid, load(pixel_row, i), zero)
        term, target_weight, uniform_weight = _term(
            job, nll, log_s, smoothing_sum, pixel_weight, load(class_row, i), rows
        )
        term = where(valid, term, zero)
        total = total + widened(term)
        store(map_row, i, term)

        factor = where(valid, scale / s, zero)
        if job.label_smoothing:
            uniform_sum = uniform_weight * broadcast(rows, job.sum_of_class_weights)
            grad_scale = (target_weight + uniform_sum) * factor
            smoothing_grad = uniform_weight * scale
            for c in range(num_classes):
                e = load(rows, c * stride + i)
                value = e * grad_scale - broadcast(rows, class_weight[c]) * smoothing_grad
                # An infinite weight or scale times the 0 of an ignored pixel is NaN.
                store(rows, c * stride + i, where(valid, value, zero))
            target_grad = (target_exp * uniform_sum - t * target_weight) * factor
            target_grad = target_grad - smoothing_grad * load(class_row, i)
            store(target_row, i, where(valid, target_grad, zero))
            store(factor_row, i, where(valid, one, zero))
        else:
            store(target_row, i, -t)
            store(factor_row, i, target_weight * factor)
    add_terms(chunk, sum_of_lanes(total))


# -- the sums and maps of `evaluate` ---------------------------------------------------------------


@inner(types.void)
def _write_classes(source, offsets, address, dtype_code, first, n):
    """Writes int32 class indices as uint8, int16 or int32."""
    if dtype_code == UINT8:
        target = pointer(address, np.uint8)
        for i in range(n):
            if offsets[i] >= 0:
                target[first + offsets[i]] = np.uint8(source[i])
    elif dtype_code == INT16:
        wide_target = pointer(address, np.int16)
        for i in range(n):
            if offsets[i] >= 0:
                wide_target[first + offsets[i]] = np.int16(source[i])
    else:
        widest_target = pointer(address, np.int32)
        for i in range(n):
            if offsets[i] >= 0:
                widest_target[first + offsets[i]] = source[i]


@inner(types.void)
def _write_row(row, offsets, address, first, n):
    target = pointer(address, np.float32)
    for i in range(n):
        if offsets[i] >= 0:
            target[first + offsets[i]] = np.float32(row[i])


@inner(types.void)
def _find_top(num_classes, n, predicted, rows, stride):
    """Finds the TOP most probable classes.

    The rows hold exp(d_c), the row `CONFIDENCE` holds 1 / s.
    """
    for i in range(0, n, LANES):
        first = second = third = broadcast(rows, -1.0)
        first_class = second_class = third_class = splat(np.int32(0))
        for c in range(num_classes):
            e = load(rows, c * stride + i)
            here = splat(np.int32(c))
            above_first, above_second = less(first, e), less(second, e)
            above_third = less(third, e)
            third_class = where(above_second, second_class, where(above_third, here, third_class))
            third = where(above_second, second, where(above_third, e, third))
            second_class = where(above_first, first_class, where(above_second, here, second_class))
            second = where(above_first, first, where(above_second, e, second))
            first_class = where(above_first, here, first_class)
            first = where(above_first, e, first)
        confidence = load(rows, (num_classes + CONFIDENCE) * stride + i)
        # All classes of this strip have been read, so the first rows (at least TOP) can be reused.
        store(rows, i, first * confidence)
        store(rows, stride + i, second * confidence)
        store(rows, 2 * stride + i, third * confidence)
        store(predicted, stride + i, first_class)
        store(predicted, 2 * stride + i, second_class)
        store(predicted, 3 * stride + i, third_class)


@inner(types.void)
def accumulate_tile(
    job,
    n,
    classes,
    predicted,
    rows,
    stride,
    chunk,
    class_nll,
    bin_confidence,
    confusion,
    bin_pixels,
):
    """Like `terms_of_tile` without a gradient; also counts all that `EvaluationSums` holds.

    Leaves the maps of the tile in the rows `MAP` (nll), `CONFIDENCE` and `ENTROPY`, and the
    predicted classes in `predicted`. If the TOP classes are wanted, they follow in `predicted`, and
    their probabilities are in the first rows.
    """
    num_classes = job.logits.num_classes
    target_row = at(rows, (num_classes + TARGET) * stride)
    pixel_row = at(rows, (num_classes + PIXEL_WEIGHTS) * stride)
    class_row = at(rows, (num_classes + _CLASS_WEIGHT) * stride)
    nll_row = at(rows, (num_classes + MAP) * stride)
    confidence_row = at(rows, (num_classes + CONFIDENCE) * stride)
    entropy_row = at(rows, (num_classes + ENTROPY) * stride)
    zero = broadcast(rows, 0.0)
    one = broadcast(rows, 1.0)
    num_bins = lane(broadcast(rows, float(NUM_BINS)), 0)  # in the precision of the confidence
    least = broadcast(rows, -1000.0)  # exp is 0 there, and 0 times it is 0, not NaN as with -inf
    inverse_temperature = broadcast(rows, job.inverse_temperature)
    total = widened(zero)
    _load_class_weights(job, n, classes, class_row)
    take_target(num_classes, n, classes, rows, stride)

    for i in range(0, n, LANES):
        y = load(classes, i)
        valid = less(y, splat(np.int32(num_classes)))
        target_logit = load(target_row, i)
        m = broadcast(rows, -np.inf)
        best = splat(np.int32(0))
        for c in range(num_classes):
            x = load(rows, c * stride + i)
            higher = less(m, x)
            m = where(higher, x, m)
            best = where(higher, splat(np.int32(c)), best)
        # The first of equal classes wins, as in argmax; the target class is compared last.
        best = where(
            less(m, target_logit),
            y,
            where(mask_and(equal(m, target_logit), less(y, best)), y, best),
        )
        m = maximum(target_logit, m)
        distance = (target_logit - m) * inverse_temperature
        smoothing_sum = zero
        if job.label_smoothing:
            smoothing_sum = _weighted_distance(
                job, y, distance, m, inverse_temperature, rows, stride, i
            )
        high = low = zero
        target_exp = exp(distance)
        moment_low = zero
        moment = target_exp * maximum(distance, least)
        has_moment = job.maps.entropy != 0 or job.maps.top_classes != 0
        for first in range(0, num_classes, SUM_BLOCK):
            end = min_int(first + SUM_BLOCK, num_classes)
            t = zero
            if has_moment:
                moment_of_block = zero
                for c in range(first, end):
                    d = (load(rows, c * stride + i) - m) * inverse_temperature
                    e = exp(d)
                    store(rows, c * stride + i, e)
                    t = t + e
                    moment_of_block = moment_of_block + e * maximum(d, least)
                moment, moment_low = add_block(moment, moment_low, moment_of_block)
            else:
                for c in range(first, end):
                    t = t + exp((load(rows, c * stride + i) - m) * inverse_temperature)
            high, low = add_block(high, low, t)
        t = high + low
        moment = moment + moment_low
        if has_moment:
            store(target_row, i, target_exp)
        s = t + target_exp
        if any_lane(is_nan(s)):
            _non_finite_strip(num_classes, n, i, classes, s, rows, stride, chunk)

        log_s = log1p(where(equal(distance, zero), t, s - one))
        nll = log_s - distance
        pixel_weight = where(valid, load(pixel_row, i), zero)
        term, _, _ = _term(job, nll, log_s, smoothing_sum, pixel_weight, load(class_row, i), rows)
        total = total + widened(where(valid, term, zero))
        store(nll_row, i, where(valid, nll, zero))
        store(confidence_row, i, one / s)
        store(entropy_row, i, log_s - moment / s)
        store(predicted, i, best)

    add_terms(chunk, sum_of_lanes(total))
    for i in range(n):
        label = classes[i]
        if label < num_classes:
            prediction = predicted[i]
            confusion[label * num_classes + prediction] += 1
            class_nll[label] += nll_row[i]
            chunk.saturated += nll_row[i] > SATURATED_NLL
            confidence = confidence_row[i]
            if 0 < confidence <= 1:  # not NaN
                scaled = confidence * num_bins
                whole = np.int64(scaled)
                bin_index = whole - (whole == scaled)  # a bin includes its upper bound
                bin_pixels[2 * bin_index + (prediction == label)] += 1
                bin_confidence[bin_index] += confidence
    if job.maps.top_classes:
        put_target(num_classes, n, classes, rows, stride)
        _find_top(num_classes, n, predicted, rows, stride)


@inner(types.void)
def distribution_of_tile(job, n, predicted, rows, stride):
    """Finds the most probable class of each pixel of a tile and, for their maps, probabilities.

    Leaves what `accumulate_tile` leaves, except for the nll, in the same places and with the same
    bits as for labels that are the predicted classes.
    """
    num_classes = job.logits.num_classes
    confidence_row = at(rows, (num_classes + CONFIDENCE) * stride)
    entropy_row = at(rows, (num_classes + ENTROPY) * stride)
    zero = broadcast(rows, 0.0)
    one = broadcast(rows, 1.0)
    least = broadcast(rows, -1000.0)
    inverse_temperature = broadcast(rows, job.inverse_temperature)
    has_moment = job.maps.entropy != 0 or job.maps.top_classes != 0
    has_probabilities = has_moment or job.maps.confidence != 0
    for i in range(0, n, LANES):
        m = broadcast(rows, -np.inf)
        best = splat(np.int32(0))
        for c in range(num_classes):
            x = load(rows, c * stride + i)
            higher = less(m, x)
            m = where(higher, x, m)
            best = where(higher, splat(np.int32(c)), best)
        store(predicted, i, best)
        if has_probabilities:
            best_exp = exp((m - m) * inverse_temperature)
            high = low = moment = moment_low = zero
            for first in range(0, num_classes, SUM_BLOCK):
                t = moment_of_block = zero
                for c in range(first, min_int(first + SUM_BLOCK, num_classes)):
                    is_best = equal(best, splat(np.int32(c)))
                    d = (load(rows, c * stride + i) - m) * inverse_temperature
                    e = where(is_best, zero, exp(d))
                    t = t + e
                    if has_moment:
                        moment_of_block = moment_of_block + e * maximum(d, least)
                        store(rows, c * stride + i, where(is_best, best_exp, e))
                high, low = add_block(high, low, t)
                moment, moment_low = add_block(moment, moment_low, moment_of_block)
            t = high + low
            s = t + best_exp
            store(confidence_row, i, one / s)
            store(entropy_row, i, log1p(t) - (moment + moment_low) / s)
    if job.maps.top_classes:
        _find_top(num_classes, n, predicted, rows, stride)


@inner(types.void)
def write_maps(job, image, offsets, n, predicted, rows, stride):
    """Writes the maps that the tile holds to `offsets` in the image; -1 writes nothing."""
    num_classes = job.logits.num_classes
    first, dtype_code = image * job.pixels, job.maps.prediction_dtype
    if job.maps.prediction:
        _write_classes(predicted, offsets, job.maps.prediction, dtype_code, first, n)
    if job.maps.nll:
        _write_row(at(rows, (num_classes + MAP) * stride), offsets, job.maps.nll, first, n)
    if job.maps.confidence:
        confidence = at(rows, (num_classes + CONFIDENCE) * stride)
        _write_row(confidence, offsets, job.maps.confidence, first, n)
    if job.maps.entropy:
        entropy = at(rows, (num_classes + ENTROPY) * stride)
        _write_row(entropy, offsets, job.maps.entropy, first, n)
    if job.maps.top_classes:
        depth = min_int(TOP, num_classes)
        for k in range(depth):
            first = (image * depth + k) * job.pixels
            _write_row(at(rows, k * stride), offsets, job.maps.top_probabilities, first, n)
            top = at(predicted, (k + 1) * stride)
            _write_classes(top, offsets, job.maps.top_classes, dtype_code, first, n)
