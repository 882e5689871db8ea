"""The GPU kernels of `evaluate`.

`evaluate_kernel` reads the logits once and writes maps: prediction, nll and confidence, which the
next kernels read, and others if asked for. `count_kernel` counts predictions and confidences,
`nll_kernel` sums the nll. `sum_kernel` adds partial sums. Integers are added atomically; sums of
floats are stored per tile or program and added in a fixed order, those of an image in an order that
depends on the size of the image alone. All results lie in one array of 64-bit numbers, which is
copied to the host at once, see `Results`.

On devices that allow it, a kernel starts before the previous one has ended: `evaluate_kernel` runs
beside the label check, and `nll_kernel` beside `count_kernel`.
"""

import triton
import triton.language as tl

from seg_loss.constants import NUM_CONFIDENCE_BINS, NUM_TOP_CLASSES, SATURATED_NLL
from seg_loss.gpu.cross_entropy import (
    exponentials_of_blocks,
    load_blocks,
    load_targets,
    load_weights,
    maximum_of_blocks,
    nats_of,
    nll_of,
    spatial_offsets,
    sum_class_weights,
)
from seg_loss.gpu.interpolation import interpolate, locate_sources
from seg_loss.gpu.math import (
    add_where_equal,
    exponent_of_maximum,
    exponent_scale,
    exponential,
    float_from_bits,
    let_next_kernel_start,
    reciprocal,
    wait_for_previous_kernel,
    widen,
)

TOP = tl.constexpr(NUM_TOP_CLASSES)
NUM_BINS = tl.constexpr(NUM_CONFIDENCE_BINS)
BIN_ROWS = tl.constexpr(16)
_NUM_BIN_COUNTS = tl.constexpr(2 * 16)  # of wrong and right predictions
_SATURATED_NLL = tl.constexpr(SATURATED_NLL)
# Blocks of pixels that are loaded before the first of them is counted.
_UNROLLED = tl.constexpr(4)
NUM_IMAGE_COUNTS = tl.constexpr(4)  # one is not used


class Results:
    """Where the results for N images and C classes lie in one array of 64-bit numbers.

    Each part begins at an even number, so that pointers to it are aligned alike for all N and C.

    Attributes:
        loss: sums of the terms, float64 [N].
        weight: sums of the weights of the valid pixels, float64 [N].
        class_nll: sums of the nll by class, float64 [C].
        bin_confidence: sums of the confidence by bin, float64 [16].
        image_counts: numbers of valid, saturated and non-finite pixels, and 0; int64 [N, 4].
        bins: numbers of pixels by bin with wrong and with right predictions, int64 [16, 2].
        confusion: int64 [C, C].
        size: length of the array.
    """

    def __init__(self, num_images: int, num_classes: int) -> None:
        self.size = 0
        self.loss = self._add(num_images)
        self.weight = self._add(num_images)
        self.class_nll = self._add(num_classes)
        self.bin_confidence = self._add(BIN_ROWS.value)
        self.image_counts = self._add(NUM_IMAGE_COUNTS.value * num_images)
        self.bins = self._add(2 * BIN_ROWS.value)
        self.confusion = self._add(num_classes**2)

    def _add(self, length: int) -> slice:
        part = slice(self.size, self.size + length)
        self.size += length + length % 2
        return part


@triton.jit
def first_class_of_blocks(blocks, value, chosen, c, C: tl.constexpr):
    """Returns the first class with a logit, but for the chosen ones; 0 if there is none."""
    BLOCK_C: tl.constexpr = blocks[0].shape[0]
    first = tl.full(blocks[0].shape, C, tl.int32)
    for k in tl.static_range(len(blocks)):
        classes = (c + k * BLOCK_C)[:, None]
        is_value = widen(blocks[k]) == value[None, :]
        for earlier in tl.static_range(len(chosen)):
            is_value &= classes != chosen[earlier][None, :]
        first = tl.where(is_value, tl.minimum(first, classes), first)
    first = tl.min(first, axis=0)
    return tl.where(first < C, first, 0)


@triton.jit
def highest_of_blocks(blocks, chosen, c):
    """Returns the highest logit, but for those of the chosen classes."""
    BLOCK_C: tl.constexpr = blocks[0].shape[0]
    highest = tl.full(blocks[0].shape, -float("inf"), widen(blocks[0]).dtype)
    for k in tl.static_range(len(blocks)):
        x = widen(blocks[k])
        for earlier in tl.static_range(len(chosen)):
            x = tl.where((c + k * BLOCK_C)[:, None] == chosen[earlier][None, :], -float("inf"), x)
        highest = tl.maximum(highest, x)
    return tl.max(highest, axis=0)


@triton.jit
def moment_of_blocks(blocks, exponentials, pixel_scale, exponent):
    """Returns the sum of exponentials times their exponents, which the entropy is made of."""
    moment = tl.zeros(blocks[0].shape, widen(blocks[0]).dtype)
    for k in tl.static_range(len(blocks)):
        p = tl.fma(widen(blocks[k]), pixel_scale[None, :], -exponent[None, :])
        p = tl.maximum(p, -2000.0, propagate_nan=tl.PropagateNan.ALL)  # 0 times -inf is NaN
        moment += exponentials[k] * p
    return tl.sum(moment, axis=0)


@triton.jit
def store_top_class(top_maps, row, inside, top_class, logit, softmax):
    """Stores one of the most probable classes, and its probability.

    Args:
        top_maps: the maps of classes and of probabilities.
        row: offsets in the maps.
        inside: which pixels exist.
        top_class: the class of each pixel.
        logit: its logit.
        softmax: scale and subtrahend of the exponent, and the factor of the exponential.
    """
    top_classes, top_probabilities = top_maps
    pixel_scale, exponent, factor = softmax
    tl.store(top_classes + row, top_class.to(top_classes.dtype.element_ty), inside)
    probability = exponential(tl.fma(logit, pixel_scale, -exponent)) * factor
    tl.store(top_probabilities + row, probability.to(top_probabilities.dtype.element_ty), inside)


@triton.jit
def evaluate_kernel(
    logits,
    labels,
    class_weight,
    pixel_weight,
    partial,
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
    rows,
    columns,
    image_stride,
    class_stride,
    slice_stride,
    row_stride,
    column_stride,
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
    IS_EARLY: tl.constexpr,
):
    """Writes the maps, and the partial sums [2, tiles] of terms and weights.

    With intervals and weights of rows and columns, the logits are scores to be upsampled.
    """
    dtype: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    tile = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    scale = exponent_scale(inverse_temperature, dtype)

    image = (tile // tiles_per_image).to(tl.int64)
    pixel = (tile % tiles_per_image).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < pixels
    image_pixels = image * pixels
    y = load_targets(labels + image_pixels, pixel, inside, ignored, C, HAS_ALL)
    valid = y >= 0
    image_weight = pixel_weight
    if pixel_weight is not None:
        image_weight += image_pixels
    uniform_weight, of_class = load_weights(class_weight, image_weight, pixel, y, dtype)
    weight = uniform_weight * of_class
    logits += image * image_stride
    # All classes of an ignored pixel are other classes than its target.
    y = tl.where(valid, y, C)
    if row_intervals is None:
        strides = (slice_stride, row_stride, column_stride)
        at = spatial_offsets(pixel, rows, columns, strides, AXES)
        blocks = load_blocks(logits, class_stride, at, inside, c, C, BLOCK_C, HAS_ALL)
        target = logits + tl.where(valid, y, 0).to(INDEX) * class_stride + at
        target_logit = tl.load(target, valid, 0).to(dtype)
    else:
        grid = (row_intervals, row_weights, column_intervals, column_weights)
        strides = (class_stride, row_stride, column_stride)
        at, source_weights = locate_sources(grid, pixel, inside, rows, columns, strides)
        blocks = ()
        for k in tl.static_range((C + BLOCK_C - 1) // BLOCK_C):
            classes = c + k * BLOCK_C
            blocks += (interpolate(logits, at, source_weights, classes, inside, strides, C),)
        target = tl.zeros((BLOCK_C, BLOCK_P), dtype)
        for k in tl.static_range(len(blocks)):
            target = tl.where((c + k * BLOCK_C)[:, None] == y[None, :], blocks[k], target)
        target_logit = tl.sum(target, axis=0)  # unlike a maximum, a sum keeps NaN

    m = maximum_of_blocks(blocks)
    pixel_scale, exponent, unit = exponent_of_maximum(m, scale)
    exponentials, t, smoothing_sum = exponentials_of_blocks(
        blocks, pixel_scale, exponent, unit, y, c, class_weight, C, IS_SMOOTHED
    )
    target_exponent = tl.fma(target_logit, pixel_scale, -exponent)
    target_exponent = tl.where(valid, target_exponent, -float("inf"))
    target_exp = exponential(target_exponent)
    target_nats = nats_of(target_exponent, target_logit, m, unit, inverse_temperature)
    log_s, nll = nll_of(t, target_exp, target_nats, None)
    factor = reciprocal(t + target_exp)
    term = weight * nll
    if IS_SMOOTHED:
        class_weight_sum = sum_class_weights(class_weight, C, BLOCK_C, dtype)
        smoothing = float_from_bits(label_smoothing, dtype)
        term = (1 - smoothing) * term
        term += uniform_weight * (smoothing / C) * (class_weight_sum * log_s - smoothing_sum)
    term = tl.where(valid, term, 0).to(tl.float64)
    tl.store(partial + tile, tl.sum(term, axis=0))
    if class_weight is not None or pixel_weight is not None:
        weight = uniform_weight.to(tl.float64) * of_class.to(tl.float64)
        weight = tl.where(valid, weight, 0)
        tl.store(partial + num_tiles + tile, tl.sum(weight, axis=0))

    offset = image_pixels + pixel
    predicted = first_class_of_blocks(blocks, m, (), c, C)
    tl.store(prediction + offset, predicted.to(prediction.dtype.element_ty), inside)
    tl.store(nll_map + offset, tl.where(valid, nll, 0), inside)
    confidence = exponential(tl.fma(m, pixel_scale, -exponent)) * factor
    tl.store(confidence_map + offset, confidence, inside)
    if entropy_map is not None:
        moment = moment_of_blocks(blocks, exponentials, pixel_scale, exponent)
        entropy = log_s - moment * unit * factor
        tl.store(entropy_map + offset, entropy.to(entropy_map.dtype.element_ty), inside)
    if top_classes is not None:
        top_maps = (top_classes, top_probabilities)
        softmax = (pixel_scale, exponent, factor)
        DEPTH: tl.constexpr = C if C < TOP else TOP  # Triton before 3.6 makes a tensor of min()
        chosen = ()
        for rank in tl.static_range(DEPTH):
            highest = highest_of_blocks(blocks, chosen, c)
            first = first_class_of_blocks(blocks, highest, chosen, c, C)
            chosen += (first,)
            row = (image * DEPTH + rank) * pixels + pixel
            store_top_class(top_maps, row, inside, first, highest, softmax)
    if IS_EARLY:
        wait_for_previous_kernel()


@triton.jit
def _bin_of(confidence):
    """Returns the bin (k / 15, (k + 1) / 15] of a confidence."""
    scaled = confidence * NUM_BINS
    whole = scaled.to(tl.int32)
    return whole - (whole.to(scaled.dtype) == scaled).to(tl.int32)


@triton.jit(do_not_specialize=["programs_per_image", "pixels_per_program", "num_copies"])
def count_kernel(
    labels,
    prediction,
    confidence_map,
    bins,
    confusion,
    copies,
    bin_confidence,
    pixels,
    programs_per_image,
    pixels_per_program,
    num_copies,
    ignored,
    C: tl.constexpr,
    NUM_PAIRS: tl.constexpr,
    HISTOGRAM_P: tl.constexpr,
    BLOCK_P: tl.constexpr,
    HAS_EARLY_NEXT: tl.constexpr,
):
    """Counts pairs of classes and bins of confidence; `bin_confidence` [programs, 16] are sums.

    Pairs of few classes are counted by histograms of NUM_PAIRS numbers. The confusion matrix of
    more classes is counted in several `copies`, so that pixels of one class do not wait for one
    address.
    """
    if HAS_EARLY_NEXT:
        let_next_kernel_start()
    program = tl.program_id(0)
    image = (program // programs_per_image).to(tl.int64)
    start = (program % programs_per_image) * pixels_per_program
    end = tl.minimum(start + pixels_per_program, pixels)
    labels += image * pixels
    prediction += image * pixels
    confidence_map += image * pixels

    bin_counts = tl.zeros((_NUM_BIN_COUNTS,), tl.int32)
    if copies is None:
        pairs = tl.zeros((NUM_PAIRS,), tl.int32)
    for done in range(0, pixels_per_program, HISTOGRAM_P):
        pixel = start + done + tl.arange(0, HISTOGRAM_P)
        inside = pixel < end
        y = load_targets(labels, pixel, inside, ignored, C, False)
        predicted = tl.load(prediction + pixel, inside, 0).to(tl.int32)
        confidence = tl.load(confidence_map + pixel, inside, 0)
        valid = y >= 0
        if copies is None:
            pairs += tl.histogram(y * C + predicted, NUM_PAIRS, mask=valid)
        else:
            copy = copies + (program % num_copies).to(tl.int64) * C * C
            tl.atomic_add(copy + y.to(tl.int64) * C + predicted, 1, valid, sem="relaxed")
        counted = valid & (confidence > 0) & (confidence <= 1)  # not NaN
        bin_of = tl.where(counted, _bin_of(confidence), 0)
        is_right = (predicted == y).to(tl.int32)
        bin_counts += tl.histogram(2 * bin_of + is_right, _NUM_BIN_COUNTS, mask=counted)
    if copies is None:
        pair = tl.arange(0, NUM_PAIRS)
        tl.atomic_add(confusion + pair, pairs.to(tl.int64), pairs > 0, sem="relaxed")
    count = tl.arange(0, _NUM_BIN_COUNTS)
    tl.atomic_add(bins + count, bin_counts.to(tl.int64), bin_counts > 0, sem="relaxed")

    # Each lane keeps sums of its own, which are added at the end.
    lane = tl.arange(0, BLOCK_P)
    bin_row = tl.arange(0, BIN_ROWS)[:, None]
    bin_sums = tl.zeros((BIN_ROWS, BLOCK_P), tl.float64)
    for done in range(0, pixels_per_program, _UNROLLED * BLOCK_P):
        loaded = ()
        for k in tl.static_range(_UNROLLED):
            pixel = start + done + k * BLOCK_P + lane
            inside = pixel < end
            y = load_targets(labels, pixel, inside, ignored, C, False)
            loaded += ((y, tl.load(confidence_map + pixel, inside, 0)),)
        for k in tl.static_range(_UNROLLED):
            y, confidence = loaded[k]
            counted = (y >= 0) & (confidence > 0) & (confidence <= 1)
            bin_of = tl.where(counted, _bin_of(confidence), -1)[None, :]
            confidence = confidence.to(tl.float64)[None, :]
            bin_sums = add_where_equal(bin_sums, confidence, bin_row, bin_of)
    row = tl.arange(0, BIN_ROWS)
    tl.store(bin_confidence + program * BIN_ROWS + row, tl.sum(bin_sums, axis=1))


@triton.jit(do_not_specialize=["programs_per_image", "pixels_per_program"])
def nll_kernel(
    labels,
    nll_map,
    image_counts,
    class_nll,
    pixels,
    programs_per_image,
    pixels_per_program,
    ignored,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Computes partial sums [parts, C] of the nll by class, and counts pixels of each image.

    A program sums the nll of a block of classes; the first block also counts.
    """
    CHUNKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    first_class = (program % CHUNKS) * BLOCK_C
    part = program // CHUNKS
    image = (part // programs_per_image).to(tl.int64)
    start = (part % programs_per_image) * pixels_per_program
    end = tl.minimum(start + pixels_per_program, pixels)
    labels += image * pixels
    nll_map += image * pixels
    lane = tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    sums = tl.zeros((BLOCK_C, BLOCK_P), tl.float64)
    pixel_counts = tl.zeros((BLOCK_P,), tl.int32)  # three numbers of a lane, each below 2**10
    for done in range(0, pixels_per_program, _UNROLLED * BLOCK_P):
        loaded = ()
        for k in tl.static_range(_UNROLLED):
            pixel = start + done + k * BLOCK_P + lane
            inside = pixel < end
            y = load_targets(labels, pixel, inside, ignored, C, False)
            loaded += ((y, tl.load(nll_map + pixel, inside, 0)),)
        for k in tl.static_range(_UNROLLED):
            y, nll = loaded[k]
            valid = y >= 0
            pixel_counts += valid.to(tl.int32)
            pixel_counts += (valid & (nll > _SATURATED_NLL)).to(tl.int32) << 10
            pixel_counts += (valid & (nll != nll)).to(tl.int32) << 20
            y = tl.where(valid, y - first_class, -1)
            sums = add_where_equal(sums, nll.to(tl.float64)[None, :], c[:, None], y[None, :])
    classes = first_class + c
    tl.store(class_nll + part.to(tl.int64) * C + classes, tl.sum(sums, axis=1), classes < C)
    image_counts += image * NUM_IMAGE_COUNTS
    for k in tl.static_range(NUM_IMAGE_COUNTS - 1):
        count = tl.sum((pixel_counts >> (10 * k)) & 1023, axis=0).to(tl.int64)
        tl.atomic_add(image_counts + k, count, (count > 0) & (first_class == 0), sem="relaxed")
    if IS_EARLY:
        wait_for_previous_kernel()


@triton.jit
def _sum_column(values, count, stride, BLOCK: tl.constexpr):
    """Returns values[0] + values[stride] + ..., always in the same order."""
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        at = (first + lane).to(tl.int64) * stride
        sums += tl.load(values + at, first + lane < count, 0)
    return tl.sum(sums, axis=0)


@triton.jit(do_not_specialize=["num_images", "tiles_per_image", "num_partials", "num_copies"])
def sum_kernel(
    partial,
    class_nll,
    bin_confidence,
    copies,
    losses,
    weights,
    class_sums,
    bin_sums,
    confusion,
    num_images,
    tiles_per_image,
    num_partials,
    num_copies,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    IS_EARLY: tl.constexpr,
):
    """Adds partial sums: one program an image, a class, a bin, or `BLOCK` pairs of classes."""
    if IS_EARLY:
        wait_for_previous_kernel()
    program = tl.program_id(0)
    if program < num_images:
        first = partial + program.to(tl.int64) * tiles_per_image
        tl.store(losses + program, _sum_column(first, tiles_per_image, 1, BLOCK))
        if HAS_WEIGHTS:
            first += num_images * tiles_per_image
            tl.store(weights + program, _sum_column(first, tiles_per_image, 1, BLOCK))
    elif program < num_images + C:
        column = program - num_images
        tl.store(class_sums + column, _sum_column(class_nll + column, num_partials, C, BLOCK))
    elif program < num_images + C + BIN_ROWS:
        column = program - num_images - C
        total = _sum_column(bin_confidence + column, num_partials, BIN_ROWS, BLOCK)
        tl.store(bin_sums + column, total)
    elif copies is not None:
        first = (program - num_images - C - BIN_ROWS).to(tl.int64) * BLOCK
        pair = first + tl.arange(0, BLOCK)
        counts = tl.zeros((BLOCK,), tl.int64)
        for copy in range(0, num_copies):
            at = copies + copy * (C * C) + pair
            counts += tl.load(at, pair < C * C, 0).to(tl.int64)
        tl.store(confusion + pair, counts, pair < C * C)
