"""The divisor D of the loss, for each `normalization`.

"valid" divides by the number of valid pixels (Caffe VALID; torch's unweighted mean), "weight" by
the sum of their weights (torch's weighted mean): the kernels compute them. The CPU kernels compile
`counted_divisor`; those of the GPU have the same in `gpu.labels`. This is the only module that will
use `torch.distributed`: a mean over several processes sums the counts over them first.
"""

import math


def known_divisor(normalization: str, num_images: int, num_pixels: int) -> float | None:
    """Returns the divisor if it depends on the shapes alone, at least 1 as in Caffe; else None.

    "full" divides by all pixels (Caffe FULL), "batch" by the images (Caffe BATCH_SIZE, the FCN
    setup), "none" by 1 (Caffe NONE; torch's sum).
    """
    if normalization == "full":
        return float(max(num_pixels, 1))
    if normalization == "batch":
        return float(max(num_images, 1))
    return 1.0 if normalization == "none" else None


def counted_divisor(total: float, has_floor: bool) -> float:
    """Returns the divisor for a number of valid pixels, or for the sum of their weights.

    With a floor a count is raised to at least 1, and a weight of 0 replaced by 1, so that a batch
    without valid pixels has the loss 0. Without one a divisor of 0 is NaN, and so are loss and
    gradient: torch divides by 0 too, each part of a smoothed loss.
    """
    if has_floor:
        return total if total > 0 else 1.0
    return total if total != 0 else math.nan


def divisor(
    normalization: str,
    *,
    valid_pixels: int,
    weight_sum: float | None,
    num_images: int,
    num_pixels: int,
    has_floor: bool = True,
) -> float:
    """Returns the divisor D.

    Args:
        normalization: "valid", "weight", or one of those that `known_divisor` knows.
        valid_pixels: number of valid pixels.
        weight_sum: sum of their weights; None if there are no weights, so that each weighs 1.
        num_images: N.
        num_pixels: number of pixels of all images.
        has_floor: as in `counted_divisor`.
    """
    known = known_divisor(normalization, num_images, num_pixels)
    if known is not None:
        return known
    total = float(valid_pixels)
    if normalization == "weight" and weight_sum is not None:
        total = weight_sum
    return counted_divisor(total, has_floor)
