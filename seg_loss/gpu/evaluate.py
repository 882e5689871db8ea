"""The GPU kernel behind `evaluate`: counts over maps that `cross_entropy_kernel` has written."""

import triton
import triton.language as tl

from seg_loss.constants import NUM_CONFIDENCE_BINS, SATURATED_NLL
from seg_loss.gpu.math import (
    load_classes,
)

NUM_BINS = tl.constexpr(NUM_CONFIDENCE_BINS)
BIN_ROWS = tl.constexpr(16)
_SATURATED_NLL = tl.constexpr(SATURATED_NLL)
# Fields of `image_counts`, beside the bins and classes.
PIXELS, SATURATED, NON_FINITE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
NUM_IMAGE_COUNTS = tl.constexpr(3)


@triton.jit
def evaluate_kernel(
    labels,
    prediction,
    nll_map,
    confidence_map,
    class_weight,
    pixel_weight,
    confusion,
    num_copies,
    image_counts,
    image_weights,
    bin_counts,
    bin_confidence,
    class_nll,
    pixels,
    programs_per_image,
    pixels_per_program,
    ignored,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Counts over the maps prediction, nll and confidence.

    The confusion matrix is summed atomically, in integers. There are several copies of it, so that
    pixels of one class do not wait for one address. All other sums are stored per program.
    """
    program = tl.program_id(0)
    image = (program // programs_per_image).to(tl.int64)
    start = (program % programs_per_image).to(tl.int64) * pixels_per_program
    end = tl.minimum(start + pixels_per_program, pixels)
    lane = tl.arange(0, BLOCK_P)
    bin_row = tl.arange(0, BIN_ROWS)
    confusion += (program % num_copies).to(tl.int64) * C * C
    valid_count = tl.zeros((BLOCK_P,), tl.int64)
    saturated = tl.zeros((BLOCK_P,), tl.int64)
    non_finite = tl.zeros((BLOCK_P,), tl.int64)
    weight_sum = tl.zeros((BLOCK_P,), tl.float64)
    in_bins = tl.zeros((BIN_ROWS,), tl.int64)
    right_in_bins = tl.zeros((BIN_ROWS,), tl.int64)
    sure_in_bins = tl.zeros((BIN_ROWS,), tl.float64)
    for done in range(0, pixels_per_program, BLOCK_P):
        pixel = start + done + lane
        inside = pixel < end
        offset = image * pixels + pixel
        y = load_classes(labels, offset, inside, ignored, C)
        valid = y < C
        predicted = tl.load(prediction + offset, inside, 0).to(tl.int64)
        nll = tl.load(nll_map + offset, valid, 0)
        confidence = tl.load(confidence_map + offset, valid, 0)
        tl.atomic_add(confusion + tl.where(valid, y, 0).to(tl.int64) * C + predicted, 1, valid)
        valid_count += valid.to(tl.int64)
        saturated += (valid & (nll > _SATURATED_NLL)).to(tl.int64)
        non_finite += (valid & (nll != nll)).to(tl.int64)
        weight = tl.full((BLOCK_P,), 1, tl.float64)
        if pixel_weight is not None:
            weight = tl.load(pixel_weight + offset, valid, 0).to(tl.float64)
        if class_weight is not None:
            weight *= tl.load(class_weight + y, valid, 0).to(tl.float64)
        weight_sum += tl.where(valid, weight, 0)
        scaled = confidence * NUM_BINS
        whole = scaled.to(tl.int32)
        bin_of = whole - (whole.to(scaled.dtype) == scaled).to(tl.int32)  # includes its upper bound
        counted = valid & (confidence > 0) & (confidence <= 1)  # not NaN
        member = (bin_row[:, None] == bin_of[None, :]) & counted[None, :]
        right = member & (predicted == y)[None, :]
        in_bins += tl.sum(member.to(tl.int32), axis=1)
        right_in_bins += tl.sum(right.to(tl.int32), axis=1)
        sure_in_bins += tl.sum(tl.where(member, confidence.to(tl.float64)[None, :], 0), axis=1)
    tl.store(image_counts + program * NUM_IMAGE_COUNTS + PIXELS, tl.sum(valid_count, axis=0))
    tl.store(image_counts + program * NUM_IMAGE_COUNTS + SATURATED, tl.sum(saturated, axis=0))
    tl.store(image_counts + program * NUM_IMAGE_COUNTS + NON_FINITE, tl.sum(non_finite, axis=0))
    tl.store(image_weights + program, tl.sum(weight_sum, axis=0))
    tl.store(bin_counts + program * 2 * BIN_ROWS + bin_row, in_bins)
    tl.store(bin_counts + program * 2 * BIN_ROWS + BIN_ROWS + bin_row, right_in_bins)
    tl.store(bin_confidence + program * BIN_ROWS + bin_row, sure_in_bins)

    # One block of classes after another over the same pixels, whose maps are in the cache now.
    for first in range(0, C, BLOCK_C):
        classes = first + tl.arange(0, BLOCK_C)
        sums = tl.zeros((BLOCK_C,), tl.float64)
        for done in range(0, pixels_per_program, BLOCK_P):
            pixel = start + done + lane
            inside = pixel < end
            offset = image * pixels + pixel
            y = load_classes(labels, offset, inside, ignored, C)
            nll = tl.load(nll_map + offset, y < C, 0).to(tl.float64)
            sums += tl.sum(tl.where(classes[:, None] == y[None, :], nll[None, :], 0), axis=1)
        tl.store(class_nll + program.to(tl.int64) * C + classes, sums, classes < C)
