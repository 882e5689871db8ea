"""What a loss says about the training that it comes from.

A network that knows nothing gives every class the probability 1/C and costs ln C per pixel: FCN's
score layers begin at zero and cost exactly that. A loss stuck there has not begun to learn; one
above it is confidently wrong; a pixel whose true class has probability 0 in float32 costs Caffe
87.3365, a figure that its users know from logs of trainings that broke.
"""

import math
from dataclasses import dataclass

# Within 2 % of ln C the network tells the classes apart no better than chance does.
_CHANCE = 0.02


@dataclass(frozen=True)
class Diagnosis:
    """The state of the training, one word, and a sentence of advice."""

    state: str
    advice: str


def diagnose(
    *,
    num_classes: int,
    valid_pixels: int,
    mean_nll: float,
    saturated_pixels: int,
    non_finite_pixels: int,
) -> Diagnosis:
    """Name the state that explains most; the first that applies.

    Args:
        num_classes: C.
        valid_pixels: pixels that count.
        mean_nll: over them, unweighted.
        saturated_pixels: valid pixels whose true class has probability 0 in float32.
        non_finite_pixels: valid pixels without a softmax, for NaN or +inf among their logits.

    >>> diagnose(
    ...     num_classes=21, valid_pixels=9, mean_nll=3.04, saturated_pixels=0, non_finite_pixels=0
    ... ).state
    'at_chance'
    """
    chance = math.log(num_classes)
    if not valid_pixels:
        return Diagnosis(
            "nothing_valid",
            "Every pixel is ignored, so there is nothing to learn from: check ignore_index and the "
            "labels.",
        )
    if non_finite_pixels:
        return Diagnosis(
            "non_finite",
            f"The logits of {non_finite_pixels} valid pixels hold NaN or infinity: the training "
            "has diverged; lower the learning rate, and look for the first step with such a loss.",
        )
    if num_classes == 1:
        return Diagnosis(
            "single_class",
            "A softmax over one class is always 1 and its loss always 0: give the background a "
            "class of its own, or use a sigmoid.",
        )
    if saturated_pixels:
        return Diagnosis(
            "saturated",
            f"{saturated_pixels} of {valid_pixels} valid pixels give their true class a "
            "probability of 0 in float32: the logits have grown too large, or the labels are "
            "shifted; lower the learning rate and compare a label map with its prediction.",
        )
    if mean_nll > chance * (1 + _CHANCE):
        return Diagnosis(
            "worse_than_chance",
            f"The mean loss of a pixel, {mean_nll:.4g}, is above ln C = {chance:.4g}, the cost of "
            "knowing nothing: the network is confidently wrong; check the order of the classes.",
        )
    if mean_nll >= chance * (1 - _CHANCE):
        return Diagnosis(
            "at_chance",
            f"The mean loss of a pixel, {mean_nll:.4g}, is that of knowing nothing, ln C = "
            f"{chance:.4g}: normal before the first steps; later, raise the learning rate and "
            "check that the scores reach the loss.",
        )
    return Diagnosis(
        "learning",
        f"The mean loss of a pixel, {mean_nll:.4g}, is below ln C = {chance:.4g}, the cost of "
        "knowing nothing: the network tells the classes apart.",
    )
