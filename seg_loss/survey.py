"""What reading the labels once tells, before any logit is read.

Made by a backend, judged by `checks`.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Survey:
    """Counts over labels [N, *spatial] and the weights that go with them.

    Attributes:
        valid_pixels: int64 [N], pixels with a class for a label.
        weight: float64 [N], sum of pixel weight * class weight over them; 0 where no weights are
        given.
        num_bad_labels: pixels whose label is neither a class nor ignored.
        first_bad_label: where the first of them lies, [image, *spatial].
        num_bad_weights: valid pixels with a negative, infinite or NaN pixel weight.
        first_bad_weight: where the first of them lies.
    """

    valid_pixels: Tensor
    weight: Tensor
    num_bad_labels: int
    first_bad_label: tuple[int, ...] | None
    num_bad_weights: int
    first_bad_weight: tuple[int, ...] | None
