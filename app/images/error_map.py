"""The kinds of errors of a prediction, as masks."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import style
from .boundaries import is_near_another
from .style import Colour

Indices = npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]

_MAX_COMPARISONS = 8
"""For more values, numpy.isin is faster than a comparison for each."""
CONFUSION = "taken for"
"""The text of errors that have the colour of the predicted class, whose name follows."""


@dataclass(frozen=True, eq=False)
class ErrorKind:
    """Pixels of one kind of error, or of hits of a chosen class.

    Attributes:
        text: what the legend calls them.
        mask: where they are, [H,W].
        colour: their colour; None for that of the predicted class.
    """

    text: str
    mask: Mask
    colour: Colour | None


def error_kinds(
    labels: Indices,
    prediction: Indices,
    ignored: Mask | None,
    *,
    border_px: int | None,
    classes: tuple[int, ...] | None,
) -> tuple[ErrorKind, ...]:
    """Returns the kinds of errors; no pixel has two of them.

    - For one chosen class: hit, missed (false negative) and false alarm (false positive).
    - Else boundary, at most `border_px` rows and columns from a pixel with another label, and
      confusion. Ignored pixels count as another label, since data sets such as VOC ignore the
      boundaries of objects. With several chosen classes, only errors from or to one of them count.
    - With border_px=None, all errors are of one kind.

    Args:
        labels, prediction: class indices [H,W].
        ignored: pixels that are no errors; None if there are none.
        border_px: the width of boundaries.
        classes: the chosen classes; None for all.
    """
    if classes is not None and len(classes) == 1:
        is_true, is_predicted = labels == classes[0], prediction == classes[0]
        if ignored is not None:
            is_true &= ~ignored
            is_predicted &= ~ignored
        return (
            ErrorKind("hit", is_true & is_predicted, style.HIT),
            ErrorKind("missed", is_true & ~is_predicted, style.MISSED),
            ErrorKind("false alarm", is_predicted & ~is_true, style.FALSE_ALARM),
        )
    wrong = labels != prediction
    if ignored is not None:
        wrong &= ~ignored
    if classes is not None:
        wrong &= is_one_of(labels, classes) | is_one_of(prediction, classes)
    if border_px is None:
        return (ErrorKind("wrong", wrong, style.WRONG),)
    boundary = is_near_another(labels, border_px)
    boundary &= wrong
    return (
        ErrorKind("near a boundary", boundary, style.WRONG),
        ErrorKind(CONFUSION, wrong & ~boundary, None),
    )


def is_one_of(indices: Indices, values: tuple[int, ...]) -> Mask:
    """Returns where the indices are one of the values, which may exceed their dtype."""
    limits = np.iinfo(indices.dtype)
    held = [value for value in values if limits.min <= value <= limits.max]
    if len(held) > _MAX_COMPARISONS:
        return np.isin(indices, held)
    found = np.zeros(indices.shape, dtype=np.bool_)
    for value in held:
        found |= indices == value
    return found
