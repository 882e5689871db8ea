"""What the sum of the terms is divided by. The one place that will know of ranks.

A backend asks here once it has surveyed the labels; `triton_kernels` has the two formulas that need
counts a second time, for the device. A true mean over several ranks will sum the counts over them
before they come here.
"""

NORMALIZATIONS = ("valid", "full", "batch", "none", "weight")


def known_divisor(normalization: str, num_images: int, num_pixels: int) -> float | None:
    """The divisor where shapes alone tell it, at least 1 (Caffe's floor); None where labels must.

    "full", all pixels (Caffe FULL); "batch", images (Caffe BATCH_SIZE, the FCN set-up); "none", 1
    (Caffe NONE; torch's sum).
    """
    if normalization == "full":
        return float(max(num_pixels, 1))
    if normalization == "batch":
        return float(max(num_images, 1))
    return 1.0 if normalization == "none" else None


def divisor(
    normalization: str,
    valid_pixels: int,
    weight: float | None,
    num_images: int,
    num_pixels: int,
) -> float:
    """The divisor D of the loss.

    Args:
        normalization: "valid", number of valid pixels (Caffe VALID; torch's unweighted mean);
            "weight", the weights of the valid pixels; those of `known_divisor`; or "torch_mean",
            as "weight" but 0 where nothing is valid.
        valid_pixels: their number.
        weight: the sum of their weights; None where no weights are given: all are 1.
        num_images: N.
        num_pixels: of all images together.

    Returns:
        D, at least 1 if it is a count, and 1 for a weight of 0: with nothing valid the loss is
        0 / 1, never 0 / 0.
    """
    known = known_divisor(normalization, num_images, num_pixels)
    if known is not None:
        return known
    total = float(valid_pixels if weight is None or normalization == "valid" else weight)
    if normalization == "torch_mean":
        return total
    if normalization == "weight" and weight is not None:
        return total if total > 0 else 1.0
    return max(total, 1.0)
