"""What the sum of the terms is divided by. The one place that will know of ranks.

The sum and the divisor stay apart until here, so that a mean over several ranks can be a true mean:
the divisors are summed over the ranks before the division.
"""

import torch
from torch import Tensor

NORMALIZATIONS = ("valid", "full", "batch", "none", "weight")


def divisor(
    normalization: str,
    valid_pixels: Tensor,
    weight: Tensor | None,
    num_images: int,
    num_pixels: int,
) -> Tensor:
    """The divisor D of the loss, float64, a scalar.

    Args:
        normalization: "valid", number of valid pixels (Caffe VALID; torch's unweighted mean);
            "full", all pixels (Caffe FULL); "batch", images (Caffe BATCH_SIZE, the FCN set-up);
            "none", 1 (Caffe NONE; torch's sum); "weight", the weights of the valid pixels (torch's
            weighted mean).
        valid_pixels: int64 [N].
        weight: float64 [N], sums over valid pixels; None where no weights are given: all are 1.
        num_images: N.
        num_pixels: of all images together.

    Returns:
        D, at least 1 if it is a count (Caffe's floor), and 1 for a weight of 0: with nothing valid
        the loss is 0 / 1, never 0 / 0.
    """
    if normalization == "none":
        return valid_pixels.new_ones((), dtype=torch.float64)
    if normalization == "weight" and weight is not None:
        total = weight.sum()
        return torch.where(total > 0, total, torch.ones_like(total))
    if normalization in ("valid", "weight"):
        return valid_pixels.sum().clamp(min=1).double()
    count = num_pixels if normalization == "full" else num_images
    return valid_pixels.new_full((), max(count, 1), dtype=torch.float64)
