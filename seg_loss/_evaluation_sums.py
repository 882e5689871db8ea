"""`EvaluationSums`: the sums and counts that a backend computes for `evaluate`."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class EvaluationSums:
    """Sums over the valid pixels of N images with C classes; on the CPU, except for the maps.

    Attributes:
        loss: float64 [N], sums of the terms.
        valid_pixels: int64 [N].
        weight: float64 [N], sums of pixel weight * class weight; None if there are no weights.
        class_nll: float64 [C], sums of the nll by true class.
        confusion: int64 [C, C], rows = truth.
        bin_pixels, bin_correct: int64 [15], pixels by confidence.
        bin_confidence: float64 [15], sums of the confidence.
        num_saturated: number of pixels whose true class has probability 0 in float32.
        num_non_finite: number of pixels that have no softmax.
        maps: [N, *spatial]; the maps of the top classes [N, k, *spatial]; on the logits' device.
    """

    loss: Tensor
    valid_pixels: Tensor
    weight: Tensor | None
    class_nll: Tensor
    confusion: Tensor
    bin_pixels: Tensor
    bin_correct: Tensor
    bin_confidence: Tensor
    num_saturated: int
    num_non_finite: int
    maps: dict[str, Tensor]
