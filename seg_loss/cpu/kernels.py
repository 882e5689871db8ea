"""The CPU kernels: one read of the logits, one write of the gradient.

Called by `numba_backend`; `numba_upsampling` has other ways of filling and emptying a tile.

A chunk of one image's pixels is worked through in tiles that stay in the second-level cache:

    load_rows     C planes -> rows of a scratch buffer, converted to float32 (float64 for float64);
                  rows lie a cache line further apart than the tile is long, so that planes a power
                  of two apart do not evict each other
    _take_own     x_y is moved out of the rows, -inf left in its place
    strips        LANES pixels at a time, all classes, in registers:
                      m = max(x_y, max_c x_c)     t = sum_{c != y} exp(x_c - m)
                      s = t + exp(x_y - m)
                      nll = ln s - (x_y - m)      ln s = log1p(t) where x_y is the maximum
                  rows now hold exp(x_c - m)
    put_own       -t into the place of x_y
    store_rows    row * w / (D s), so that  grad_c = w p_c / D  and  grad_y = -w (t / s) / D

Keeping the true class out of the sum is what makes nll and gradient right to the last bits where
the prediction is sure: neither ln(1 + tiny) nor p - 1 is ever rounded away.

Ignored pixels are labelled C, a row of the scratch buffer that nobody reads: no branch per pixel.
No label is used as an index before it was compared with the classes. Sums run in float64, lane by
lane, tile by tile, in an order that depends on the shape alone.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from seg_loss.cpu.cache import kernel
from seg_loss.cpu.simd import (
    KINDS,
    LANES,
    SIZES,
    any_lane,
    at,
    both,
    equal,
    exp,
    filled,
    is_nan,
    lane,
    less,
    lesser,
    load,
    load_float,
    load_integer,
    load_integers,
    load_row,
    log1p,
    maximum,
    memory,
    narrowed,
    pointer,
    splat,
    store,
    store_float,
    store_row,
    sum_of_lanes,
    two_sum,
    where,
    widened,
    within,
)

UINT8, INT16 = KINDS.index("uint8"), KINDS.index("int16")
NUM_BINS = 15  # of the calibration, (0, 1/15] ... (14/15, 1]
TOP = 3
# Beyond this nll the probability of the true class is 0 in float32, subnormals included.
SATURATED_NLL = 150 * math.log(2)


class View(NamedTuple):
    """A tensor [N, C, *spatial] as the kernels see it: an address and strides, counted in elements.

    The spatial axes are merged to at most three: slices of `num_rows` rows of `num_columns`
    columns. Labels and maps have one class. What is `streamed` is written past the caches. An
    absent tensor has address 0.
    """

    address: int
    kind: int
    num_classes: int
    streamed: int
    image_stride: int
    class_stride: int
    num_rows: int
    num_columns: int
    slice_stride: int
    row_stride: int
    column_stride: int


class Options(NamedTuple):
    """The numbers of the loss, as the kernels use them."""

    inverse_temperature: float
    label_smoothing: float
    max_nll: float
    gradient_scale: float
    is_class_weighted: float
    sum_of_class_weights: float


class EvaluationMaps(NamedTuple):
    """Addresses of the maps to write, contiguous [N, pixels] or [N, k, pixels]; 0 if unwanted."""

    prediction: int
    prediction_kind: int
    nll: int
    confidence: int
    entropy: int
    top_classes: int
    top_probabilities: int


# A kernel gets these records as arrays (a named tuple takes Python 10 microseconds a field
# to pass, an array takes none) and reads a field by its place.
(
    ADDRESS, KIND, NUM_CLASSES, STREAMED, IMAGE_STRIDE, CLASS_STRIDE, NUM_ROWS, NUM_COLUMNS,
    SLICE_STRIDE, ROW_STRIDE, COLUMN_STRIDE,
) = range(11)  # fmt: skip
(
    INVERSE_TEMPERATURE, LABEL_SMOOTHING, MAX_NLL, GRADIENT_SCALE, IS_CLASS_WEIGHTED,
    SUM_OF_CLASS_WEIGHTS,
) = range(6)  # fmt: skip
(
    PREDICTION_MAP, PREDICTION_KIND, NLL_MAP, CONFIDENCE_MAP, ENTROPY_MAP, TOP_CLASSES_MAP,
    TOP_PROBABILITIES_MAP,
) = range(7)  # fmt: skip
# Where in the array `views` the fields of each begin:
LOGITS, LABELS, PIXEL_WEIGHT, TERMS, GRADIENT, UPSTREAM, VIEWS_SIZE = range(0, 7 * 11, 11)

# What a chunk reports, by place in its `sums` (float64) and `counts` (int64).
LOSS, WEIGHT, NUM_SUMS = 0, 1, 2
VALID, BAD_LABELS, FIRST_BAD_LABEL, BAD_WEIGHTS, FIRST_BAD_WEIGHT = 0, 1, 2, 3, 4
NON_FINITE, SATURATED, NUM_COUNTS = 5, 6, 7


inner = njit(error_model="numpy")


def tile_pixels(num_classes: int) -> int:
    """Pixels in a tile: its float32 rows take about 75 KiB, so that a thread needs little memory.

    They fit a second-level cache, and larger tiles are no faster.
    """
    return max(64, min(1024, -(-18432 // max(num_classes, 1)) + 63) // 64 * 64)


def row_stride(num_classes: int) -> int:
    """Elements from one row of the scratch buffer to the next."""
    return tile_pixels(num_classes) + 16


# Rows of the scratch buffer behind the C rows of the classes.
(
    _NOBODY,
    OWN,
    FACTOR,
    PIXEL_WEIGHTS,
    _CLASS_WEIGHT,
    MAP,
    CONFIDENCE,
    ENTROPY,
    LEFT_FACTOR,
    RIGHT_FACTOR,
    NUM_EXTRA_ROWS,
) = range(11)


# -- from strided memory of any kind to rows and back ----------------------------------------------


@inner
def _run(view, first, count):
    """Offset of pixel `first`; how many of `count` pixels follow it one column stride apart."""
    column = first % view[NUM_COLUMNS]
    row = first // view[NUM_COLUMNS]
    offset = (
        (row // view[NUM_ROWS]) * view[SLICE_STRIDE]
        + (row % view[NUM_ROWS]) * view[ROW_STRIDE]
        + column * view[COLUMN_STRIDE]
    )
    return offset, lesser(count, view[NUM_COLUMNS] - column)


@inner
def load_rows(view, image, first, n, scale, rows, stride):
    """Pixels [first, first + n), times `scale`: class c to row c; a map has one row."""
    kind, num_classes, class_stride = view[KIND], view[NUM_CLASSES], view[CLASS_STRIDE]
    size, column_stride = SIZES[kind], view[COLUMN_STRIDE]
    step = size * column_stride
    factor = filled(rows, scale)
    done = 0
    while done < n:
        offset, run = _run(view, first + done, n - done)
        whole = run - run % LANES if column_stride == 1 else 0
        for c in range(num_classes):
            address = view[ADDRESS] + size * (
                offset + image * view[IMAGE_STRIDE] + c * class_stride
            )
            row = at(rows, c * stride + done)
            load_row(row, address, kind, factor, whole)
            for i in range(whole, run):
                row[i] = load_float(rows, address + i * step, kind) * lane(factor, 0)
        done += run


@inner
def store_rows(view, image, first, n, rows, factors, stride):
    """Rows times `factors` to where pixels [first, first + n) lie: the mirror of `load_rows`."""
    kind, num_classes, class_stride = view[KIND], view[NUM_CLASSES], view[CLASS_STRIDE]
    size, column_stride, streamed = SIZES[kind], view[COLUMN_STRIDE], view[STREAMED]
    step = size * column_stride
    done = 0
    while done < n:
        offset, run = _run(view, first + done, n - done)
        for c in range(num_classes):
            address = view[ADDRESS] + size * (
                offset + image * view[IMAGE_STRIDE] + c * class_stride
            )
            row = at(rows, c * stride + done)
            factor = at(factors, done)
            # Only whole vectors that begin at a multiple of their size may pass the caches.
            start = lesser(run, (-address % (LANES * size)) // size) if streamed else 0
            whole = start + (run - start) // LANES * LANES
            if column_stride != 1:
                start = whole = 0
            for i in range(start):
                store_float(address + i * step, kind, row[i] * factor[i])
            store_row(address, kind, streamed, row, factor, start, whole)
            for i in range(whole, run):
                store_float(address + i * step, kind, row[i] * factor[i])
        done += run


@inner
def load_classes(view, ignored, num_classes, image, first, n, classes):
    """The classes of pixels [first, first + n): C where ignored, C + 1 where it is neither."""
    kind, column_stride = view[KIND], view[COLUMN_STRIDE]
    size = SIZES[kind]
    step = size * column_stride
    nobody, bad = splat(np.int64(num_classes)), splat(np.int64(num_classes + 1))
    done = 0
    while done < n:
        offset, run = _run(view, first + done, n - done)
        address = view[ADDRESS] + size * (offset + image * view[IMAGE_STRIDE])
        whole = run - run % LANES if column_stride == 1 else 0
        for i in range(0, whole, LANES):
            label = load_integers(address + i * size, kind)
            place = where(within(label, num_classes), label, bad)
            for k in range(ignored.size):
                place = where(equal(label, splat(ignored[k])), nobody, place)
            store(classes, done + i, narrowed(place))
        for i in range(whole, run):
            label = splat(load_integer(address + i * step, kind))
            place = where(within(label, num_classes), label, bad)
            for k in range(ignored.size):
                place = where(equal(label, splat(ignored[k])), nobody, place)
            classes[done + i] = np.int32(lane(place, 0))
        done += run
    for i in range(n, n + -n % LANES):
        classes[i] = num_classes


@inner
def fill(row, n, value):
    """`value` to elements [0, n), and on to a whole vector."""
    for i in range(0, n, LANES):
        store(row, i, filled(row, value))


@inner
def _take_own(num_classes, n, classes, rows, stride):
    """Move the true class's logit of each pixel to the row `OWN`; leave -inf in its place."""
    own = at(rows, (num_classes + OWN) * stride)
    fill(at(rows, num_classes * stride), n, -np.inf)
    fill(own, n, -np.inf)
    for i in range(n):
        place = lesser(classes[i], num_classes) * stride + i
        own[i] = rows[place]
        rows[place] = -np.inf


@inner
def put_own(num_classes, n, classes, rows, stride):
    """Write the row `OWN` back to the places of the true classes."""
    own = at(rows, (num_classes + OWN) * stride)
    for i in range(n):
        rows[lesser(classes[i], num_classes) * stride + i] = own[i]


@inner
def add_up(total, lost, sums):
    """The lanes of a chunk's terms, and what rounding lost of them, to its LOSS."""
    sums[LOSS] += sum_of_lanes(total)
    if abs(sum_of_lanes(lost)) < np.inf:  # of an infinite sum nothing was lost
        sums[LOSS] += sum_of_lanes(lost)


# -- the loss and its gradient ---------------------------------------------------------------------


@kernel
def survey_chunk(classes, views, ignored, num_classes, tile, image, first, last, counts):
    """Count valid pixels and bad labels without reading the logits."""
    views = memory(views)
    labels = at(views, LABELS)
    classes = memory(classes)
    for start in range(first, last, tile):
        n = lesser(tile, last - start)
        load_classes(labels, ignored, num_classes, image, start, n, classes)
        valid = bad = 0
        for i in range(n):
            valid += classes[i] < num_classes
            bad += classes[i] > num_classes
        counts[VALID] += valid
        if bad and not counts[BAD_LABELS]:
            counts[FIRST_BAD_LABEL] = start
            while classes[counts[FIRST_BAD_LABEL] - start] <= num_classes:
                counts[FIRST_BAD_LABEL] += 1
        counts[BAD_LABELS] += bad


@kernel
def survey_weights_chunk(
    buffer, classes, views, class_weight, ignored, num_classes, stride, tile,
    image, first, last, sums, counts,
):  # fmt: skip
    """Sum the weights of the valid pixels; count pixel weights that are negative, infinite or NaN.

    `class_weight` has C + 2 entries, the last two for ignored and bad labels.
    """
    views = memory(views)
    labels, pixel_weight = at(views, LABELS), at(views, PIXEL_WEIGHT)
    rows = memory(buffer)
    classes = memory(classes)
    fill(rows, tile, 1.0)
    for start in range(first, last, tile):
        n = lesser(tile, last - start)
        load_classes(labels, ignored, num_classes, image, start, n, classes)
        if pixel_weight[ADDRESS]:
            load_rows(pixel_weight, image, start, n, 1.0, rows, stride)
        for i in range(n):
            if classes[i] < num_classes:
                if not 0 <= rows[i] < np.inf:
                    if not counts[BAD_WEIGHTS]:
                        counts[FIRST_BAD_WEIGHT] = start + i
                    counts[BAD_WEIGHTS] += 1
                sums[WEIGHT] += np.float64(rows[i]) * class_weight[classes[i]]


@inner
def _non_finite_strip(num_classes, n, i, classes, s, rows, stride, counts):
    """Some lane of the strip at `i` has no finite sum: count it if valid, forget it if ignored."""
    sums = at(rows, (num_classes + FACTOR) * stride)
    store(sums, i, s)
    for j in range(i, lesser(i + LANES, n)):
        if sums[j] != sums[j]:
            if classes[j] < num_classes:
                counts[NON_FINITE] += 1
            else:
                # The gradient of an ignored pixel is assigned 0: NaN times 0 would stay NaN.
                for c in range(num_classes):
                    rows[c * stride + j] = 0


@inner
def _weighted_distance(num_classes, y, own_distance, m, class_weight, rows, stride, i):
    """sum_c weight_c (x_c - m), for label smoothing; the true class's place in `rows` is taken."""
    zero = m - m
    total = zero
    for c in range(num_classes):
        weight = class_weight[c]
        if weight != 0:
            taken = equal(y, splat(np.int32(c)))
            distance = where(taken, own_distance, load(rows, c * stride + i) - m)
            total = total + filled(rows, weight) * distance
    return total


@inner
def _load_class_weights(n, classes, class_weight, options, row):
    """The weight of each pixel's true class."""
    if options[IS_CLASS_WEIGHTED]:
        for i in range(n):
            row[i] = class_weight[classes[i]]
    else:
        fill(row, n, 1.0)


@inner
def _term(num_classes, nll, log_s, soft, pixel_weight, class_weight, options, rows):
    """A pixel's term, and with what weight its nll and, smoothed, those of all classes are in it.

    `soft` is sum_c weight_c (x_c - m), so that those sum up to sum_c weight_c log_s - soft.
    """
    smoothing = options[LABEL_SMOOTHING]
    weight, soft_weight = pixel_weight * class_weight, pixel_weight
    term = weight * nll
    if smoothing:
        weight = weight * filled(rows, 1.0 - smoothing)
        soft_weight = soft_weight * filled(rows, smoothing / num_classes)
        all_weights = filled(rows, options[SUM_OF_CLASS_WEIGHTS])
        term = weight * nll + soft_weight * (all_weights * log_s - soft)
    return term, weight, soft_weight


@inner
def terms_of_tile(
    num_classes, n, classes, class_weight, options, rows, stride, total, lost, counts
):  # fmt: skip
    """Turn the rows of a tile of `n` logits into what is left to be multiplied and summed.

    Rows become exponentials (with label smoothing gradients), times the row `FACTOR` the gradient;
    the true class's is in the row `OWN`, its place not yet filled; the row `MAP` has the terms.
    `classes` and the row `PIXEL_WEIGHTS` must be there. Returns `total` and `lost` with the terms
    added.
    """
    own_row = at(rows, (num_classes + OWN) * stride)
    factor_row = at(rows, (num_classes + FACTOR) * stride)
    pixel_row = at(rows, (num_classes + PIXEL_WEIGHTS) * stride)
    class_row = at(rows, (num_classes + _CLASS_WEIGHT) * stride)
    map_row = at(rows, (num_classes + MAP) * stride)
    zero = filled(rows, 0.0)
    one = filled(rows, 1.0)
    scale = filled(rows, options[GRADIENT_SCALE])
    max_nll = filled(rows, options[MAX_NLL])
    _load_class_weights(n, classes, class_weight, options, class_row)
    _take_own(num_classes, n, classes, rows, stride)

    for i in range(0, n, LANES):
        y = load(classes, i)
        valid = less(y, splat(np.int32(num_classes)))
        own = load(own_row, i)
        m = own
        for c in range(num_classes):
            m = maximum(load(rows, c * stride + i), m)
        distance = own - m
        if options[LABEL_SMOOTHING]:
            soft = _weighted_distance(num_classes, y, distance, m, class_weight, rows, stride, i)
        else:
            soft = zero
        t = zero
        for c in range(num_classes):
            e = exp(load(rows, c * stride + i) - m)
            store(rows, c * stride + i, e)
            t = t + e
        own_e = exp(distance)
        s = t + own_e
        if any_lane(is_nan(s)):
            _non_finite_strip(num_classes, n, i, classes, s, rows, stride, counts)

        log_s = log1p(where(equal(distance, zero), t, s - one))
        nll = log_s - distance
        nll = where(less(max_nll, nll), max_nll, nll)
        pixel_weight = where(valid, load(pixel_row, i), zero)
        term, weight, soft_weight = _term(
            num_classes, nll, log_s, soft, pixel_weight, load(class_row, i), options, rows
        )
        term = where(valid, term, zero)
        total, rounding = two_sum(total, widened(term))
        lost = lost + rounding
        store(map_row, i, term)

        factor = where(valid, scale / s, zero)
        if options[LABEL_SMOOTHING]:
            spread = soft_weight * filled(rows, options[SUM_OF_CLASS_WEIGHTS])
            rise = (weight + spread) * factor
            fall = soft_weight * scale
            for c in range(num_classes):
                e = load(rows, c * stride + i)
                store(rows, c * stride + i, e * rise - filled(rows, class_weight[c]) * fall)
            own_fall = fall * load(class_row, i)
            store(own_row, i, (own_e * spread - t * weight) * factor - own_fall)
            store(factor_row, i, where(valid, one, zero))
        else:
            store(own_row, i, -t)
            store(factor_row, i, weight * factor)
    return total, lost


@kernel
def cross_entropy_chunk(
    buffer, classes, views, class_weight, ignored, options, stride, tile,
    image, first, last, sums, counts,
):  # fmt: skip
    """Add the terms of pixels [first, last) of one image; write their map and gradient if wanted.

    gradient = options[GRADIENT_SCALE] * d(sum of terms) / d(logits / temperature).
    """
    views = memory(views)
    logits, labels, pixel_weight = at(views, LOGITS), at(views, LABELS), at(views, PIXEL_WEIGHT)
    terms, gradient = at(views, TERMS), at(views, GRADIENT)
    num_classes = logits[NUM_CLASSES]
    options = memory(options)
    rows = memory(buffer)
    classes = memory(classes)
    factor_row = at(rows, (num_classes + FACTOR) * stride)
    pixel_row = at(rows, (num_classes + PIXEL_WEIGHTS) * stride)
    fill(pixel_row, tile, 1.0)
    total = lost = widened(filled(rows, 0.0))
    for start in range(first, last, tile):
        n = lesser(tile, last - start)
        load_classes(labels, ignored, num_classes, image, start, n, classes)
        if pixel_weight[ADDRESS]:
            load_rows(pixel_weight, image, start, n, 1.0, pixel_row, stride)
        load_rows(logits, image, start, n, options[INVERSE_TEMPERATURE], rows, stride)
        total, lost = terms_of_tile(
            num_classes, n, classes, class_weight, options, rows, stride, total, lost, counts
        )
        if gradient[ADDRESS]:
            put_own(num_classes, n, classes, rows, stride)
            store_rows(gradient, image, start, n, rows, factor_row, stride)
        if terms[ADDRESS]:
            fill(factor_row, n, 1.0)
            map_row = at(rows, (num_classes + MAP) * stride)
            store_rows(terms, image, start, n, map_row, factor_row, stride)
    add_up(total, lost, sums)


# -- everything else one read of the logits can tell -----------------------------------------------


@inner
def _write_classes(source, places, address, kind, first, n):
    """int32 class indices as the smallest of uint8, int16 and int32 that was chosen for them."""
    if kind == UINT8:
        target = pointer(address, np.uint8)
        for i in range(n):
            if places[i] >= 0:
                target[first + places[i]] = np.uint8(source[i])
    elif kind == INT16:
        wide_target = pointer(address, np.int16)
        for i in range(n):
            if places[i] >= 0:
                wide_target[first + places[i]] = np.int16(source[i])
    else:
        widest_target = pointer(address, np.int32)
        for i in range(n):
            if places[i] >= 0:
                widest_target[first + places[i]] = source[i]


@inner
def _write_row(row, places, address, first, n):
    target = pointer(address, np.float32)
    for i in range(n):
        if places[i] >= 0:
            target[first + places[i]] = np.float32(row[i])


@inner
def _find_top(num_classes, n, predicted, rows, stride):
    """The TOP most probable classes: rows hold exp(x_c - m), the row `CONFIDENCE` 1 / s."""
    for i in range(0, n, LANES):
        first = second = third = filled(rows, -1.0)
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
        # All classes of this strip are read: the first rows (there are at least TOP) are free.
        store(rows, i, first * confidence)
        store(rows, stride + i, second * confidence)
        store(rows, 2 * stride + i, third * confidence)
        store(predicted, stride + i, first_class)
        store(predicted, 2 * stride + i, second_class)
        store(predicted, 3 * stride + i, third_class)


@inner
def tallies_of_tile(
    num_classes, n, classes, predicted, class_weight, options, maps, rows, stride, total, lost,
    counts, class_nll, bin_confidence, confusion, bin_pixels,
):  # fmt: skip
    """`terms_of_tile` without gradient, counting all that `Evaluation` holds.

    Leaves the tile's maps in the rows `MAP` (nll), `CONFIDENCE` and `ENTROPY`, and the classes
    in `predicted`, if wanted the TOP ones behind, their probabilities in the first rows.
    """
    own_row = at(rows, (num_classes + OWN) * stride)
    pixel_row = at(rows, (num_classes + PIXEL_WEIGHTS) * stride)
    class_row = at(rows, (num_classes + _CLASS_WEIGHT) * stride)
    nll_row = at(rows, (num_classes + MAP) * stride)
    confidence_row = at(rows, (num_classes + CONFIDENCE) * stride)
    entropy_row = at(rows, (num_classes + ENTROPY) * stride)
    zero = filled(rows, 0.0)
    one = filled(rows, 1.0)
    num_bins = lane(filled(rows, float(NUM_BINS)), 0)  # in the precision of the confidence
    least = filled(rows, -1000.0)  # exp is 0 there, and 0 times it is 0, not NaN as with -inf
    _load_class_weights(n, classes, class_weight, options, class_row)
    _take_own(num_classes, n, classes, rows, stride)

    for i in range(0, n, LANES):
        y = load(classes, i)
        valid = less(y, splat(np.int32(num_classes)))
        own = load(own_row, i)
        m = filled(rows, -np.inf)
        best = splat(np.int32(0))
        for c in range(num_classes):
            x = load(rows, c * stride + i)
            higher = less(m, x)
            m = where(higher, x, m)
            best = where(higher, splat(np.int32(c)), best)
        # The first of equals wins, as in argmax: the true class stands apart and is put in
        # order.
        best = where(less(m, own), y, where(both(equal(m, own), less(y, best)), y, best))
        m = maximum(own, m)
        distance = own - m
        if options[LABEL_SMOOTHING]:
            soft = _weighted_distance(num_classes, y, distance, m, class_weight, rows, stride, i)
        else:
            soft = zero
        t = zero
        own_e = exp(distance)
        if maps[ENTROPY_MAP] or maps[TOP_CLASSES_MAP]:
            moment = own_e * maximum(distance, least)
            for c in range(num_classes):
                d = load(rows, c * stride + i) - m
                e = exp(d)
                store(rows, c * stride + i, e)
                t = t + e
                moment = moment + e * maximum(d, least)
            store(own_row, i, own_e)
        else:
            moment = zero
            for c in range(num_classes):
                t = t + exp(load(rows, c * stride + i) - m)
        s = t + own_e
        if any_lane(is_nan(s)):
            _non_finite_strip(num_classes, n, i, classes, s, rows, stride, counts)

        log_s = log1p(where(equal(distance, zero), t, s - one))
        nll = log_s - distance
        pixel_weight = where(valid, load(pixel_row, i), zero)
        term, _, _ = _term(
            num_classes, nll, log_s, soft, pixel_weight, load(class_row, i), options, rows
        )
        total, rounding = two_sum(total, widened(where(valid, term, zero)))
        lost = lost + rounding
        store(nll_row, i, where(valid, nll, zero))
        store(confidence_row, i, one / s)
        store(entropy_row, i, log_s - moment / s)
        store(predicted, i, best)

    valid_pixels = saturated = 0
    for i in range(n):
        label = classes[i]
        if label < num_classes:
            prediction = predicted[i]
            confusion[label * num_classes + prediction] += 1
            class_nll[label] += nll_row[i]
            valid_pixels += 1
            saturated += nll_row[i] > SATURATED_NLL
            confidence = confidence_row[i]
            if 0 < confidence <= 1:  # not NaN
                share = confidence * num_bins
                whole = np.int64(share)
                place = whole - (whole == share)  # the upper bound belongs to the bin
                bin_pixels[2 * place + (prediction == label)] += 1
                bin_confidence[place] += confidence
    counts[VALID] += valid_pixels
    counts[SATURATED] += saturated
    if maps[TOP_CLASSES_MAP]:
        put_own(num_classes, n, classes, rows, stride)
        _find_top(num_classes, n, predicted, rows, stride)
    return total, lost


@inner
def write_maps(num_classes, maps, image, pixels, places, n, predicted, rows, stride):
    """Write the maps that `tallies_of_tile` left to `places` in the image; -1 is nowhere."""
    first, kind = image * pixels, maps[PREDICTION_KIND]
    if maps[PREDICTION_MAP]:
        _write_classes(predicted, places, maps[PREDICTION_MAP], kind, first, n)
    if maps[NLL_MAP]:
        _write_row(at(rows, (num_classes + MAP) * stride), places, maps[NLL_MAP], first, n)
    if maps[CONFIDENCE_MAP]:
        confidence = at(rows, (num_classes + CONFIDENCE) * stride)
        _write_row(confidence, places, maps[CONFIDENCE_MAP], first, n)
    if maps[ENTROPY_MAP]:
        entropy = at(rows, (num_classes + ENTROPY) * stride)
        _write_row(entropy, places, maps[ENTROPY_MAP], first, n)
    if maps[TOP_CLASSES_MAP]:
        depth = lesser(TOP, num_classes)
        for k in range(depth):
            first = (image * depth + k) * pixels
            _write_row(at(rows, k * stride), places, maps[TOP_PROBABILITIES_MAP], first, n)
            top = at(predicted, (k + 1) * stride)
            _write_classes(top, places, maps[TOP_CLASSES_MAP], kind, first, n)


@kernel
def evaluate_chunk(
    buffer, classes, predicted, places, confusion, bin_pixels, views, class_weight, ignored,
    options, maps, stride, tile, pixels,
    image, first, last, sums, counts, class_nll, bin_confidence,
):  # fmt: skip
    """`cross_entropy_chunk` without gradient, and all that `Evaluation` holds.

    `class_nll` [C] and `bin_confidence` [NUM_BINS] are float sums of this chunk; `confusion` [C, C]
    and `bin_pixels` [NUM_BINS, 2], the wrong and the right ones, are integers, which the calling
    thread may gather over its chunks.
    """
    views = memory(views)
    logits, labels, pixel_weight = at(views, LOGITS), at(views, LABELS), at(views, PIXEL_WEIGHT)
    num_classes = logits[NUM_CLASSES]
    options = memory(options)
    maps = memory(maps)
    class_nll, bin_confidence = memory(class_nll), memory(bin_confidence)
    confusion, bin_pixels = memory(confusion), memory(bin_pixels)
    rows = memory(buffer)
    classes = memory(classes)
    predicted, places = memory(predicted), memory(places)
    pixel_row = at(rows, (num_classes + PIXEL_WEIGHTS) * stride)
    fill(pixel_row, tile, 1.0)
    total = lost = widened(filled(rows, 0.0))
    for start in range(first, last, tile):
        n = lesser(tile, last - start)
        load_classes(labels, ignored, num_classes, image, start, n, classes)
        if pixel_weight[ADDRESS]:
            load_rows(pixel_weight, image, start, n, 1.0, pixel_row, stride)
        load_rows(logits, image, start, n, options[INVERSE_TEMPERATURE], rows, stride)
        total, lost = tallies_of_tile(
            num_classes, n, classes, predicted, class_weight, options, maps, rows, stride,
            total, lost, counts, class_nll, bin_confidence, confusion, bin_pixels,
        )  # fmt: skip
        for i in range(n):
            places[i] = start + i
        write_maps(num_classes, maps, image, pixels, places, n, predicted, rows, stride)
    add_up(total, lost, sums)


# -- the softmax itself ----------------------------------------------------------------------------


@inner
def _exponentials(num_classes, rows, stride, i):
    """Turn the rows of a strip into exp(x_c - max); return their sum."""
    m = load(rows, i)
    for c in range(1, num_classes):
        m = maximum(load(rows, c * stride + i), m)
    s = filled(rows, 0.0)
    for c in range(num_classes):
        e = exp(load(rows, c * stride + i) - m)
        store(rows, c * stride + i, e)
        s = s + e
    return s


@kernel
def softmax_chunk(
    buffer, views, stride, tile, inverse_temperature, image, first, last,
):  # fmt: skip
    """softmax(logits / temperature) of pixels [first, last) of one image, to the view GRADIENT."""
    views = memory(views)
    logits, probabilities = at(views, LOGITS), at(views, GRADIENT)
    num_classes = logits[NUM_CLASSES]
    rows = memory(buffer)
    factor_row = at(rows, (num_classes + FACTOR) * stride)
    one = filled(rows, 1.0)
    for start in range(first, last, tile):
        n = lesser(tile, last - start)
        load_rows(logits, image, start, n, inverse_temperature, rows, stride)
        for i in range(0, n, LANES):
            store(factor_row, i, one / _exponentials(num_classes, rows, stride, i))
        store_rows(probabilities, image, start, n, rows, factor_row, stride)


@kernel
def softmax_gradient_chunk(
    buffer, upstream_buffer, views, stride, tile, inverse_temperature, image, first, last,
):  # fmt: skip
    """gradient = p (g - sum_c g_c p_c) / temperature, with p computed anew from the logits."""
    views = memory(views)
    logits, upstream, gradient = at(views, LOGITS), at(views, UPSTREAM), at(views, GRADIENT)
    num_classes = logits[NUM_CLASSES]
    rows = memory(buffer)
    upstream_rows = memory(upstream_buffer)
    factor_row = at(rows, (num_classes + FACTOR) * stride)
    scale = filled(rows, inverse_temperature)
    for start in range(first, last, tile):
        n = lesser(tile, last - start)
        load_rows(logits, image, start, n, inverse_temperature, rows, stride)
        load_rows(upstream, image, start, n, 1.0, upstream_rows, stride)
        for i in range(0, n, LANES):
            s = _exponentials(num_classes, rows, stride, i)
            dot = filled(rows, 0.0)
            for c in range(num_classes):
                dot = dot + load(upstream_rows, c * stride + i) * load(rows, c * stride + i)
            mean = dot / s
            for c in range(num_classes):
                e = load(rows, c * stride + i)
                store(rows, c * stride + i, e * (load(upstream_rows, c * stride + i) - mean))
            store(factor_row, i, scale / s)
        store_rows(gradient, image, start, n, rows, factor_row, stride)
