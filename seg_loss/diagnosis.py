"""What the value of a loss says about the training that it comes from.

A uniform prediction gives every class the probability 1/C and has the loss ln C: FCN's score layers
are initialised to zero and start exactly there. A loss that stays at ln C has not begun to learn. A
larger loss is confidently wrong. A pixel whose true class has probability 0 in float32 has Caffe's
largest loss, 87.3365, which appears in the logs of trainings that diverged.
"""

import math
from dataclasses import dataclass

# Within 2 % of ln C the predictions are no better than uniform ones.
_CHANCE_TOLERANCE = 0.02


@dataclass(frozen=True)
class Diagnosis:
    """The state of the training and a sentence of advice.

    Attributes:
        state: one of nothing_valid, non_finite, single_class, saturated, worse_than_chance,
            at_chance, learning.
        advice: a sentence for the user.
    """

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
    """Returns the first state that applies, in the order listed in `Diagnosis`.

    Args:
        num_classes: C.
        valid_pixels: number of valid pixels.
        mean_nll: mean nll of the valid pixels, unweighted.
        saturated_pixels: number of valid pixels whose true class has probability 0 in float32.
        non_finite_pixels: number of valid pixels without a softmax, because their logits hold NaN
            or +inf.

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
            f"The logits of {non_finite_pixels} of {valid_pixels} valid pixels hold NaN or "
            "infinity: the training has diverged; lower the learning rate, and look for the first "
            "step with such a loss.",
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
    if mean_nll > chance * (1 + _CHANCE_TOLERANCE):
        return Diagnosis(
            "worse_than_chance",
            f"The mean loss of a pixel, {mean_nll:.4g}, is above ln C = {chance:.4g}, the loss of "
            "a uniform prediction: the network is confidently wrong; check the order of the "
            "classes.",
        )
    if mean_nll >= chance * (1 - _CHANCE_TOLERANCE):
        return Diagnosis(
            "at_chance",
            f"The mean loss of a pixel, {mean_nll:.4g}, is that of a uniform prediction, ln C = "
            f"{chance:.4g}: normal before the first steps; later, raise the learning rate and "
            "check that the scores reach the loss.",
        )
    return Diagnosis(
        "learning",
        f"The mean loss of a pixel, {mean_nll:.4g}, is below ln C = {chance:.4g}, the loss of a "
        "uniform prediction: the network tells the classes apart.",
    )
