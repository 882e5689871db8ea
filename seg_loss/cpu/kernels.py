"""The CPU kernels: one read of the logits, one write of the gradient.

`backend` calls them for chunks of the pixels of one image. `upsampled` reuses them for upsampled
scores. A kernel processes its chunk in tiles that fit the second-level cache:

    load_rows     converts C planes to rows of a scratch buffer, float32 (float64 for float64).
                  Rows lie a cache line further apart than a tile is long, so that planes a
                  power of two apart do not evict each other.
    take_target   moves the target logit x_y out of the rows and leaves -inf in its place.
    strips        LANES pixels at a time, all classes, in registers:
                      m = max(x_y, max_c x_c)     t = sum_{c != y} exp(x_c - m)
                      s = t + exp(x_y - m)
                      nll = ln s - (x_y - m)      ln s = log1p(t) where x_y is the maximum
                  The rows now hold exp(x_c - m).
    put_target    writes -t to the place of x_y.
    store_rows    writes row * w / (D s), so that  grad_c = w p_c / D  and  grad_y = -w (t / s) / D.

The target class is kept out of the sum t. This makes nll and gradient accurate to the last bits
where the prediction is sure, because neither ln(1 + tiny) nor p - 1 is computed.

Ignored pixels get class C, a dummy row, which avoids a branch per pixel. A label is compared with
the number of classes before it is used as an index. Sums are float64 and run lane by lane and tile
by tile, in an order that depends on the shape alone.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from seg_loss.constants import NUM_CONFIDENCE_BINS, NUM_TOP_CLASSES, SATURATED_NLL
from seg_loss.cpu.cache import kernel
from seg_loss.cpu.simd import (
    DTYPES,
    ITEMSIZES,
    LANES,
    any_lane,
    at,
    broadcast,
    equal,
    exp,
    in_range,
    is_nan,
    lane,
    less,
    load,
    load_float,
    load_integer,
    load_integers,
    load_row,
    log1p,
    mask_and,
    maximum,
    memory,
    min_int,
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
)

UINT8, INT16 = DTYPES.index("uint8"), DTYPES.index("int16")
NUM_BINS, TOP = NUM_CONFIDENCE_BINS, NUM_TOP_CLASSES


class View(NamedTuple):
    """A tensor [N, C, *spatial] as the kernels see it: an address, and strides in elements.

    The spatial axes are merged to at most three: slices of `num_rows` rows of `num_columns`
    columns. Labels and maps have one class. A `streamed` tensor is written with stores that bypass
    the caches. A missing tensor has the address 0.
    """

    address: int
    dtype_code: int
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
    """The options of the loss as numbers."""

    inverse_temperature: float
    label_smoothing: float
    max_nll: float
    gradient_scale: float
    is_class_weighted: float
    sum_of_class_weights: float


class EvaluationMaps(NamedTuple):
    """Addresses of the maps to write, contiguous [N, pixels] or [N, k, pixels]; 0 if not wanted."""

    prediction: int
    prediction_dtype: int
    nll: int
    confidence: int
    entropy: int
    top_classes: int
    top_probabilities: int


# A kernel takes these records as arrays, because passing a named tuple costs 10 microseconds for
# each field. It reads a field by its index.
(
    ADDRESS,
    DTYPE,
    NUM_CLASSES,
    STREAMED,
    IMAGE_STRIDE,
    CLASS_STRIDE,
    NUM_ROWS,
    NUM_COLUMNS,
    SLICE_STRIDE,
    ROW_STRIDE,
    COLUMN_STRIDE,
) = range(11)
(
    INVERSE_TEMPERATURE,
    LABEL_SMOOTHING,
    MAX_NLL,
    GRADIENT_SCALE,
    IS_CLASS_WEIGHTED,
    SUM_OF_CLASS_WEIGHTS,
) = range(6)
(
    PREDICTION_MAP,
    PREDICTION_DTYPE,
    NLL_MAP,
    CONFIDENCE_MAP,
    ENTROPY_MAP,
    TOP_CLASSES_MAP,
    TOP_PROBABILITIES_MAP,
) = range(7)
# Where each view begins in the array `views`.
LOGITS, LABELS, PIXEL_WEIGHT, TERMS, GRADIENT, GRAD_OUTPUT, VIEWS_SIZE = range(0, 7 * 11, 11)

# Indices into the `sums` (float64) and `counts` (int64) of a chunk.
LOSS, WEIGHT, NUM_SUMS = 0, 1, 2
VALID, INVALID_LABELS, FIRST_INVALID_LABEL, INVALID_WEIGHTS, FIRST_INVALID_WEIGHT = 0, 1, 2, 3, 4
NON_FINITE, SATURATED, NUM_COUNTS = 5, 6, 7


inner = njit(error_model="numpy")


def tile_pixels(num_classes: int) -> int:
    """Returns the pixels of a tile: its float32 rows take about 75 KiB.

    They fit the second-level cache, and a thread needs little memory. Larger tiles are no faster.
    """
    return max(64, min(1024, -(-18432 // max(num_classes, 1)) + 63) // 64 * 64)


def row_stride(num_classes: int) -> int:
    """Returns the elements from one row of the scratch buffer to the next."""
    return tile_pixels(num_classes) + 16


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
    NUM_EXTRA_ROWS,
) = range(11)


# -- from strided memory of any dtype to rows and back ---------------------------------------------


@inner
def _run_at(view, first, count):
    """Returns the offset of pixel `first` and how many of `count` pixels follow it in its row."""
    column = first % view[NUM_COLUMNS]
    row = first // view[NUM_COLUMNS]
    offset = (
        (row // view[NUM_ROWS]) * view[SLICE_STRIDE]
        + (row % view[NUM_ROWS]) * view[ROW_STRIDE]
        + column * view[COLUMN_STRIDE]
    )
    return offset, min_int(count, view[NUM_COLUMNS] - column)


@inner
def load_rows(view, image, first, n, scale, rows, stride):
    """Loads pixels [first, first + n), times `scale`: class c to row c; a map has one row."""
    dtype_code, num_classes, class_stride = view[DTYPE], view[NUM_CLASSES], view[CLASS_STRIDE]
    size, column_stride = ITEMSIZES[dtype_code], view[COLUMN_STRIDE]
    step = size * column_stride
    factor = broadcast(rows, scale)
    done = 0
    while done < n:
        offset, run = _run_at(view, first + done, n - done)
        whole = run - run % LANES if column_stride == 1 else 0
        for c in range(num_classes):
            address = view[ADDRESS] + size * (
                offset + image * view[IMAGE_STRIDE] + c * class_stride
            )
            row = at(rows, c * stride + done)
            load_row(row, address, dtype_code, factor, whole)
            for i in range(whole, run):
                row[i] = load_float(rows, address + i * step, dtype_code) * lane(factor, 0)
        done += run


@inner
def store_rows(view, image, first, n, rows, factors, stride):
    """Stores rows times `factors` to pixels [first, first + n), the reverse of `load_rows`."""
    dtype_code, num_classes, class_stride = view[DTYPE], view[NUM_CLASSES], view[CLASS_STRIDE]
    size, column_stride, streamed = ITEMSIZES[dtype_code], view[COLUMN_STRIDE], view[STREAMED]
    step = size * column_stride
    done = 0
    while done < n:
        offset, run = _run_at(view, first + done, n - done)
        for c in range(num_classes):
            address = view[ADDRESS] + size * (
                offset + image * view[IMAGE_STRIDE] + c * class_stride
            )
            row = at(rows, c * stride + done)
            factor = at(factors, done)
            # Stores that bypass the caches require whole vectors at a multiple of their size.
            start = min_int(run, (-address % (LANES * size)) // size) if streamed else 0
            whole = start + (run - start) // LANES * LANES
            if column_stride != 1:
                start = whole = 0
            for i in range(start):
                store_float(address + i * step, dtype_code, row[i] * factor[i])
            store_row(address, dtype_code, streamed, row, factor, start, whole)
            for i in range(whole, run):
                store_float(address + i * step, dtype_code, row[i] * factor[i])
        done += run


@inner
def load_classes(view, ignored, num_classes, image, first, n, classes):
    """Loads the classes of pixels [first, first + n): C where ignored, C + 1 where invalid."""
    dtype_code, column_stride = view[DTYPE], view[COLUMN_STRIDE]
    size = ITEMSIZES[dtype_code]
    step = size * column_stride
    dummy, invalid = splat(np.int64(num_classes)), splat(np.int64(num_classes + 1))
    done = 0
    while done < n:
        offset, run = _run_at(view, first + done, n - done)
        address = view[ADDRESS] + size * (offset + image * view[IMAGE_STRIDE])
        whole = run - run % LANES if column_stride == 1 else 0
        for i in range(0, whole, LANES):
            label = load_integers(address + i * size, dtype_code)
            index = where(in_range(label, num_classes), label, invalid)
            for k in range(ignored.size):
                index = where(equal(label, splat(ignored[k])), dummy, index)
            store(classes, done + i, narrowed(index))
        for i in range(whole, run):
            label = splat(load_integer(address + i * step, dtype_code))
            index = where(in_range(label, num_classes), label, invalid)
            for k in range(ignored.size):
                index = where(equal(label, splat(ignored[k])), dummy, index)
            classes[done + i] = np.int32(lane(index, 0))
        done += run
    for i in range(n, n + -n % LANES):
        classes[i] = num_classes


@inner
def fill(row, n, value):
    """Writes `value` to elements [0, n), rounded up to whole vectors."""
    for i in range(0, n, LANES):
        store(row, i, broadcast(row, value))


@inner
def take_target(num_classes, n, classes, rows, stride):
    """Moves the target logit of each pixel to the row `TARGET` and leaves -inf in its place."""
    target_logit = at(rows, (num_classes + TARGET) * stride)
    fill(at(rows, num_classes * stride), n, -np.inf)
    fill(target_logit, n, -np.inf)
    for i in range(n):
        offset = min_int(classes[i], num_classes) * stride + i
        target_logit[i] = rows[offset]
        rows[offset] = -np.inf


@inner
def put_target(num_classes, n, classes, rows, stride):
    """Writes the row `TARGET` back to the places of the target classes."""
    target_logit = at(rows, (num_classes + TARGET) * stride)
    for i in range(n):
        rows[min_int(classes[i], num_classes) * stride + i] = target_logit[i]


@inner
def add_chunk_sums(total, compensation, sums):
    """Adds the lanes of the terms, and their compensation, to the LOSS of a chunk."""
    sums[LOSS] += sum_of_lanes(total)
    if abs(sum_of_lanes(compensation)) < np.inf:  # an infinite sum has none
        sums[LOSS] += sum_of_lanes(compensation)


# -- the loss and its gradient ---------------------------------------------------------------------


@kernel
def check_labels_chunk(classes, views, ignored, num_classes, tile, image, first, last, counts):
    """Counts valid pixels and invalid labels without reading the logits."""
    views = memory(views)
    labels = at(views, LABELS)
    classes = memory(classes)
    for start in range(first, last, tile):
        n = min_int(tile, last - start)
        load_classes(labels, ignored, num_classes, image, start, n, classes)
        valid = invalid = 0
        for i in range(n):
            valid += classes[i] < num_classes
            invalid += classes[i] > num_classes
        counts[VALID] += valid
        if invalid and not counts[INVALID_LABELS]:
            counts[FIRST_INVALID_LABEL] = start
            while classes[counts[FIRST_INVALID_LABEL] - start] <= num_classes:
                counts[FIRST_INVALID_LABEL] += 1
        counts[INVALID_LABELS] += invalid


@kernel
def check_weights_chunk(
    buffer,
    classes,
    views,
    class_weight,
    ignored,
    num_classes,
    stride,
    tile,
    image,
    first,
    last,
    sums,
    counts,
):
    """Sums the weights of the valid pixels and counts pixel weights that are invalid.

    A weight is invalid if it is negative, infinite or NaN. `class_weight` has C + 2 entries, the
    last two for ignored and invalid labels.
    """
    views = memory(views)
    labels, pixel_weight = at(views, LABELS), at(views, PIXEL_WEIGHT)
    rows = memory(buffer)
    classes = memory(classes)
    fill(rows, tile, 1.0)
    for start in range(first, last, tile):
        n = min_int(tile, last - start)
        load_classes(labels, ignored, num_classes, image, start, n, classes)
        if pixel_weight[ADDRESS]:
            load_rows(pixel_weight, image, start, n, 1.0, rows, stride)
        for i in range(n):
            if classes[i] < num_classes:
                if not 0 <= rows[i] < np.inf:
                    if not counts[INVALID_WEIGHTS]:
                        counts[FIRST_INVALID_WEIGHT] = start + i
                    counts[INVALID_WEIGHTS] += 1
                sums[WEIGHT] += np.float64(rows[i]) * class_weight[classes[i]]


@inner
def _non_finite_strip(num_classes, n, i, classes, s, rows, stride, counts):
    """Counts the valid pixels of a strip that have no finite sum, and clears the ignored ones.

    It is called only if some lane of the strip at `i` is NaN.
    """
    sums = at(rows, (num_classes + FACTOR) * stride)
    store(sums, i, s)
    for j in range(i, min_int(i + LANES, n)):
        if sums[j] != sums[j]:
            if classes[j] < num_classes:
                counts[NON_FINITE] += 1
            else:
                # Assign 0 to the gradient of an ignored pixel: NaN times 0 would stay NaN.
                for c in range(num_classes):
                    rows[c * stride + j] = 0


@inner
def _weighted_distance(num_classes, y, target_distance, m, class_weight, rows, stride, i):
    """Returns sum_c weight_c (x_c - m), for label smoothing.

    The rows hold -inf in place of the target logit, so its distance is an argument.
    """
    zero = m - m
    total = zero
    for c in range(num_classes):
        weight = class_weight[c]
        if weight != 0:
            is_target = equal(y, splat(np.int32(c)))
            distance = where(is_target, target_distance, load(rows, c * stride + i) - m)
            total = total + broadcast(rows, weight) * distance
    return total


@inner
def _load_class_weights(n, classes, class_weight, options, row):
    """Loads the weight of the target class of each pixel."""
    if options[IS_CLASS_WEIGHTED]:
        for i in range(n):
            row[i] = class_weight[classes[i]]
    else:
        fill(row, n, 1.0)


@inner
def _term(num_classes, nll, log_s, smoothing_sum, pixel_weight, class_weight, options, rows):
    """Returns the term of a pixel, and the weights of its nll and of the nll of all classes in it.

    `smoothing_sum` is sum_c weight_c (x_c - m), so that sum_c weight_c nll_c is
    sum_c weight_c log_s - smoothing_sum.
    """
    smoothing = options[LABEL_SMOOTHING]
    target_weight, uniform_weight = pixel_weight * class_weight, pixel_weight
    term = target_weight * nll
    if smoothing:
        target_weight = target_weight * broadcast(rows, 1.0 - smoothing)
        uniform_weight = uniform_weight * broadcast(rows, smoothing / num_classes)
        all_weights = broadcast(rows, options[SUM_OF_CLASS_WEIGHTS])
        term = target_weight * nll + uniform_weight * (all_weights * log_s - smoothing_sum)
    return term, target_weight, uniform_weight


@inner
def terms_of_tile(
    num_classes, n, classes, class_weight, options, rows, stride, total, compensation, counts
):
    """Computes the terms of a tile of `n` pixels and prepares its gradient.

    The rows become exponentials (with label smoothing, gradients); times the row `FACTOR` they are
    the gradient. The entry of the target class is in the row `TARGET`, and the row `MAP` has the
    terms. `classes` and the row `PIXEL_WEIGHTS` must be filled. Returns `total` and `compensation`
    with the terms added.
    """
    target_row = at(rows, (num_classes + TARGET) * stride)
    factor_row = at(rows, (num_classes + FACTOR) * stride)
    pixel_row = at(rows, (num_classes + PIXEL_WEIGHTS) * stride)
    class_row = at(rows, (num_classes + _CLASS_WEIGHT) * stride)
    map_row = at(rows, (num_classes + MAP) * stride)
    zero = broadcast(rows, 0.0)
    one = broadcast(rows, 1.0)
    scale = broadcast(rows, options[GRADIENT_SCALE])
    max_nll = broadcast(rows, options[MAX_NLL])
    _load_class_weights(n, classes, class_weight, options, class_row)
    take_target(num_classes, n, classes, rows, stride)

    for i in range(0, n, LANES):
        y = load(classes, i)
        valid = less(y, splat(np.int32(num_classes)))
        target_logit = load(target_row, i)
        m = target_logit
        for c in range(num_classes):
            m = maximum(load(rows, c * stride + i), m)
        distance = target_logit - m
        if options[LABEL_SMOOTHING]:
            smoothing_sum = _weighted_distance(
                num_classes, y, distance, m, class_weight, rows, stride, i
            )
        else:
            smoothing_sum = zero
        t = zero
        for c in range(num_classes):
            e = exp(load(rows, c * stride + i) - m)
            store(rows, c * stride + i, e)
            t = t + e
        target_exp = exp(distance)
        s = t + target_exp
        if any_lane(is_nan(s)):
            _non_finite_strip(num_classes, n, i, classes, s, rows, stride, counts)

        log_s = log1p(where(equal(distance, zero), t, s - one))
        nll = log_s - distance
        nll = where(less(max_nll, nll), max_nll, nll)
        pixel_weight = where(valid, load(pixel_row, i), zero)
        term, target_weight, uniform_weight = _term(
            num_classes, nll, log_s, smoothing_sum, pixel_weight, load(class_row, i), options, rows
        )
        term = where(valid, term, zero)
        total, rounding = two_sum(total, widened(term))
        compensation = compensation + rounding
        store(map_row, i, term)

        factor = where(valid, scale / s, zero)
        if options[LABEL_SMOOTHING]:
            uniform_sum = uniform_weight * broadcast(rows, options[SUM_OF_CLASS_WEIGHTS])
            grad_scale = (target_weight + uniform_sum) * factor
            smoothing_grad = where(valid, uniform_weight * scale, zero)  # 0 times infinity is NaN
            for c in range(num_classes):
                e = load(rows, c * stride + i)
                store(
                    rows,
                    c * stride + i,
                    e * grad_scale - broadcast(rows, class_weight[c]) * smoothing_grad,
                )
            target_grad = (target_exp * uniform_sum - t * target_weight) * factor
            store(target_row, i, target_grad - smoothing_grad * load(class_row, i))
            store(factor_row, i, where(valid, one, zero))
        else:
            store(target_row, i, -t)
            store(factor_row, i, target_weight * factor)
    return total, compensation


@kernel
def cross_entropy_chunk(
    buffer,
    classes,
    views,
    class_weight,
    ignored,
    options,
    stride,
    tile,
    image,
    first,
    last,
    sums,
    counts,
):
    """Adds the terms of pixels [first, last) of one image; writes their map and gradient if wanted.

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
    total = compensation = widened(broadcast(rows, 0.0))
    for start in range(first, last, tile):
        n = min_int(tile, last - start)
        load_classes(labels, ignored, num_classes, image, start, n, classes)
        if pixel_weight[ADDRESS]:
            load_rows(pixel_weight, image, start, n, 1.0, pixel_row, stride)
        load_rows(logits, image, start, n, options[INVERSE_TEMPERATURE], rows, stride)
        total, compensation = terms_of_tile(
            num_classes,
            n,
            classes,
            class_weight,
            options,
            rows,
            stride,
            total,
            compensation,
            counts,
        )
        if gradient[ADDRESS]:
            put_target(num_classes, n, classes, rows, stride)
            store_rows(gradient, image, start, n, rows, factor_row, stride)
        if terms[ADDRESS]:
            fill(factor_row, n, 1.0)
            map_row = at(rows, (num_classes + MAP) * stride)
            store_rows(terms, image, start, n, map_row, factor_row, stride)
    add_chunk_sums(total, compensation, sums)


# -- the sums and maps of `evaluate` ---------------------------------------------------------------


@inner
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


@inner
def _write_row(row, offsets, address, first, n):
    target = pointer(address, np.float32)
    for i in range(n):
        if offsets[i] >= 0:
            target[first + offsets[i]] = np.float32(row[i])


@inner
def _find_top(num_classes, n, predicted, rows, stride):
    """Finds the TOP most probable classes.

    The rows hold exp(x_c - m), the row `CONFIDENCE` holds 1 / s.
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


@inner
def accumulate_tile(
    num_classes,
    n,
    classes,
    predicted,
    class_weight,
    options,
    maps,
    rows,
    stride,
    total,
    compensation,
    counts,
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
    _load_class_weights(n, classes, class_weight, options, class_row)
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
        distance = target_logit - m
        if options[LABEL_SMOOTHING]:
            smoothing_sum = _weighted_distance(
                num_classes, y, distance, m, class_weight, rows, stride, i
            )
        else:
            smoothing_sum = zero
        t = zero
        target_exp = exp(distance)
        if maps[ENTROPY_MAP] or maps[TOP_CLASSES_MAP]:
            moment = target_exp * maximum(distance, least)
            for c in range(num_classes):
                d = load(rows, c * stride + i) - m
                e = exp(d)
                store(rows, c * stride + i, e)
                t = t + e
                moment = moment + e * maximum(d, least)
            store(target_row, i, target_exp)
        else:
            moment = zero
            for c in range(num_classes):
                t = t + exp(load(rows, c * stride + i) - m)
        s = t + target_exp
        if any_lane(is_nan(s)):
            _non_finite_strip(num_classes, n, i, classes, s, rows, stride, counts)

        log_s = log1p(where(equal(distance, zero), t, s - one))
        nll = log_s - distance
        pixel_weight = where(valid, load(pixel_row, i), zero)
        term, _, _ = _term(
            num_classes, nll, log_s, smoothing_sum, pixel_weight, load(class_row, i), options, rows
        )
        total, rounding = two_sum(total, widened(where(valid, term, zero)))
        compensation = compensation + rounding
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
                scaled = confidence * num_bins
                whole = np.int64(scaled)
                bin_index = whole - (whole == scaled)  # a bin includes its upper bound
                bin_pixels[2 * bin_index + (prediction == label)] += 1
                bin_confidence[bin_index] += confidence
    counts[VALID] += valid_pixels
    counts[SATURATED] += saturated
    if maps[TOP_CLASSES_MAP]:
        put_target(num_classes, n, classes, rows, stride)
        _find_top(num_classes, n, predicted, rows, stride)
    return total, compensation


@inner
def write_maps(num_classes, maps, image, pixels, offsets, n, predicted, rows, stride):
    """Writes the maps that `accumulate_tile` left to `offsets` in the image; -1 writes nothing."""
    first, dtype_code = image * pixels, maps[PREDICTION_DTYPE]
    if maps[PREDICTION_MAP]:
        _write_classes(predicted, offsets, maps[PREDICTION_MAP], dtype_code, first, n)
    if maps[NLL_MAP]:
        _write_row(at(rows, (num_classes + MAP) * stride), offsets, maps[NLL_MAP], first, n)
    if maps[CONFIDENCE_MAP]:
        confidence = at(rows, (num_classes + CONFIDENCE) * stride)
        _write_row(confidence, offsets, maps[CONFIDENCE_MAP], first, n)
    if maps[ENTROPY_MAP]:
        entropy = at(rows, (num_classes + ENTROPY) * stride)
        _write_row(entropy, offsets, maps[ENTROPY_MAP], first, n)
    if maps[TOP_CLASSES_MAP]:
        depth = min_int(TOP, num_classes)
        for k in range(depth):
            first = (image * depth + k) * pixels
            _write_row(at(rows, k * stride), offsets, maps[TOP_PROBABILITIES_MAP], first, n)
            top = at(predicted, (k + 1) * stride)
            _write_classes(top, offsets, maps[TOP_CLASSES_MAP], dtype_code, first, n)


@kernel
def evaluate_chunk(
    buffer,
    classes,
    predicted,
    offsets,
    confusion,
    bin_pixels,
    views,
    class_weight,
    ignored,
    options,
    maps,
    stride,
    tile,
    pixels,
    image,
    first,
    last,
    sums,
    counts,
    class_nll,
    bin_confidence,
):
    """Like `cross_entropy_chunk` without a gradient; also counts all that `EvaluationSums` holds.

    `class_nll` [C] and `bin_confidence` [NUM_BINS] are float sums of this chunk. `confusion` [C, C]
    and `bin_pixels` [NUM_BINS, 2], the wrong and the right pixels, are integers, which a thread may
    accumulate over its chunks.
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
    predicted, offsets = memory(predicted), memory(offsets)
    pixel_row = at(rows, (num_classes + PIXEL_WEIGHTS) * stride)
    fill(pixel_row, tile, 1.0)
    total = compensation = widened(broadcast(rows, 0.0))
    for start in range(first, last, tile):
        n = min_int(tile, last - start)
        load_classes(labels, ignored, num_classes, image, start, n, classes)
        if pixel_weight[ADDRESS]:
            load_rows(pixel_weight, image, start, n, 1.0, pixel_row, stride)
        load_rows(logits, image, start, n, options[INVERSE_TEMPERATURE], rows, stride)
        total, compensation = accumulate_tile(
            num_classes,
            n,
            classes,
            predicted,
            class_weight,
            options,
            maps,
            rows,
            stride,
            total,
            compensation,
            counts,
            class_nll,
            bin_confidence,
            confusion,
            bin_pixels,
        )
        for i in range(n):
            offsets[i] = start + i
        write_maps(num_classes, maps, image, pixels, offsets, n, predicted, rows, stride)
    add_chunk_sums(total, compensation, sums)


# -- the softmax -----------------------------------------------------------------------------------


@inner
def _exponentials(num_classes, rows, stride, i):
    """Replaces the rows of a strip by exp(x_c - max) and returns their sum."""
    m = load(rows, i)
    for c in range(1, num_classes):
        m = maximum(load(rows, c * stride + i), m)
    s = broadcast(rows, 0.0)
    for c in range(num_classes):
        e = exp(load(rows, c * stride + i) - m)
        store(rows, c * stride + i, e)
        s = s + e
    return s


@kernel
def softmax_chunk(
    buffer,
    views,
    stride,
    tile,
    inverse_temperature,
    image,
    first,
    last,
):
    """Writes softmax(logits / temperature) of pixels [first, last) to the view GRADIENT."""
    views = memory(views)
    logits, probabilities = at(views, LOGITS), at(views, GRADIENT)
    num_classes = logits[NUM_CLASSES]
    rows = memory(buffer)
    factor_row = at(rows, (num_classes + FACTOR) * stride)
    one = broadcast(rows, 1.0)
    for start in range(first, last, tile):
        n = min_int(tile, last - start)
        load_rows(logits, image, start, n, inverse_temperature, rows, stride)
        for i in range(0, n, LANES):
            store(factor_row, i, one / _exponentials(num_classes, rows, stride, i))
        store_rows(probabilities, image, start, n, rows, factor_row, stride)


@kernel
def softmax_gradient_chunk(
    buffer,
    grad_output_buffer,
    views,
    stride,
    tile,
    inverse_temperature,
    image,
    first,
    last,
):
    """Writes p (g - sum_c g_c p_c) / temperature to the view GRADIENT, for g = grad_output.

    p is computed from the logits again.
    """
    views = memory(views)
    logits, grad_output, gradient = at(views, LOGITS), at(views, GRAD_OUTPUT), at(views, GRADIENT)
    num_classes = logits[NUM_CLASSES]
    rows = memory(buffer)
    grad_output_rows = memory(grad_output_buffer)
    factor_row = at(rows, (num_classes + FACTOR) * stride)
    scale = broadcast(rows, inverse_temperature)
    for start in range(first, last, tile):
        n = min_int(tile, last - start)
        load_rows(logits, image, start, n, inverse_temperature, rows, stride)
        load_rows(grad_output, image, start, n, 1.0, grad_output_rows, stride)
        for i in range(0, n, LANES):
            s = _exponentials(num_classes, rows, stride, i)
            dot = broadcast(rows, 0.0)
            for c in range(num_classes):
                dot = dot + load(grad_output_rows, c * stride + i) * load(rows, c * stride + i)
            mean = dot / s
            for c in range(num_classes):
                e = load(rows, c * stride + i)
                store(rows, c * stride + i, e * (load(grad_output_rows, c * stride + i) - mean))
            store(factor_row, i, scale / s)
        store_rows(gradient, image, start, n, rows, factor_row, stride)
