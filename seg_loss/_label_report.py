"""What reading the labels once tells, before any logit is read.

Made by a backend, judged by `checks`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Values of one kind that no loss can be made of.

    Attributes:
        number: how many.
        place: of the first, [image, *spatial] or [class].
        value: the first.
    """

    number: int
    place: tuple[int, ...]
    value: float


@dataclass(frozen=True)
class Survey:
    """What is wrong with labels [N, *spatial] and weights; None where nothing is.

    Attributes:
        bad_labels: neither a class nor ignored.
        bad_weights: pixel weights of valid pixels that are negative, infinite or NaN.
        bad_class_weights: of classes, likewise.
    """

    bad_labels: Finding | None
    bad_weights: Finding | None
    bad_class_weights: Finding | None
