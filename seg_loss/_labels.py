"""The label report: which labels and weights are invalid, and when the error is raised.

A backend reads the labels once and makes a `LabelReport`; `error_for` turns it into an error, and
`raise_or_defer` raises it as `check_labels` says. On a GPU a kernel writes the report: see
`gpu.reports`. "raise" waits for that kernel at the end of the call. "defer" leaves the report for a
later call, or for `check`. A pixel with an invalid label counts as ignored, so that it harms
nothing.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from seg_loss._errors import InvalidInput, more_pixels, shape_text
from seg_loss.constants import USUAL_VOIDS


@dataclass(frozen=True)
class InvalidValues:
    """Invalid values of one kind.

    Attributes:
        count: number of them.
        index: index of the first, [image, *spatial] or [class].
        value: value of the first.
    """

    count: int
    index: tuple[int, ...]
    value: float


@dataclass(frozen=True)
class LabelReport:
    """What is invalid in labels [N, *spatial] and weights; None where nothing is.

    Attributes:
        labels: labels that are neither a class nor ignored.
        pixel_weights: weights of valid pixels that are negative, infinite or NaN.
        class_weights: weights of classes that are negative, infinite or NaN.
    """

    labels: InvalidValues | None
    pixel_weights: InvalidValues | None
    class_weights: InvalidValues | None


@dataclass(frozen=True)
class LabelCount:
    """The result of a label check that computes no loss.

    Attributes:
        total: number of valid pixels, or the sum of their weights; on a GPU a float64 scalar there.
        is_invalid: whether there is an error; on a GPU a scalar there, not 0 if there is.
        error: returns the error, once the device has run; None for `check_labels="ignore"`.
    """

    total: Tensor | float
    is_invalid: Tensor | bool
    error: Callable[[], InvalidInput | None]


def error_for(report: LabelReport, num_classes: int, ignored: Sequence[int]) -> InvalidInput | None:
    """Returns the error for a report: the value, how many there are, and where the first is."""
    invalid = report.class_weights
    if invalid is not None:
        return InvalidInput(
            "class_weight",
            "finite numbers that are not negative",
            f"{invalid.value} for class {invalid.index[0]}",
        )
    invalid = report.labels
    if invalid is not None:
        names = ", ".join(str(value) for value in ignored)
        return InvalidInput(
            "labels",
            f"0...{num_classes - 1}" + (f" or {names} (ignored)" if ignored else ""),
            f"{invalid.value} at {shape_text(invalid.index)}" + more_pixels(invalid.count),
            _fix_for(int(invalid.value), num_classes),
        )
    invalid = report.pixel_weights
    if invalid is not None:
        return InvalidInput(
            "pixel_weight",
            "finite numbers that are not negative",
            f"{invalid.value} at {shape_text(invalid.index)}" + more_pixels(invalid.count),
        )
    return None


_FIXES = {
    2: (range(255, 256), "A mask of 0 and 255? Divide it by 255."),
    19: (range(19, 34), "Cityscapes ids? Map them to the 19 train ids."),
    150: (range(150, 151), "ADE20K, where 0 marks void pixels? Subtract 1 and ignore 255."),
    171: (range(171, 182), "Ids of COCO-Stuff? Map them to the 171 classes."),
}
"""By the number of classes of a data set: labels in its files that are no class, and a fix."""


def _fix_for(label: int, num_classes: int) -> str:
    labels, fix = _FIXES.get(num_classes, (range(0), ""))
    fix = fix if label in labels else ""
    if label == num_classes:
        fix += f" If {label} marks void pixels, pass ignore_index={label}."
    elif label < 0 or label in USUAL_VOIDS:
        fix += f" If {label} marks void pixels, add it to ignore_index."
    return fix.lstrip()


_deferred: deque[InvalidInput] = deque()
_pending: list[Callable[[bool], InvalidInput | None]] = []


def register_pending(take_error: Callable[[bool], InvalidInput | None]) -> None:
    """Registers a function that returns the oldest error that kernels have reported, and clears it.

    The argument of the function says whether to wait for kernels that still run.
    """
    _pending.append(take_error)


def raise_or_defer(error: InvalidInput | None, check_labels: str) -> None:
    """Raises the error, keeps it for later, or drops it, as `check_labels` says."""
    if error is None or check_labels == "ignore":
        return
    if check_labels == "raise":
        raise error
    _deferred.append(error)


@contextmanager
def deferred_errors_held() -> Iterator[None]:
    """Raises no deferred error in this thread."""
    before = holds_errors()
    _thread.holds_errors = True
    try:
        yield
    finally:
        _thread.holds_errors = before


_thread = threading.local()


def holds_errors() -> bool:
    """Returns whether this thread raises no deferred error now."""
    return getattr(_thread, "holds_errors", False)


def raise_deferred(*, wait: bool = False) -> None:
    """Raises one error of an earlier call, the oldest of a device first."""
    if holds_errors():
        return
    if _deferred:
        raise _deferred.popleft()
    for take_error in _pending:
        error = take_error(wait)
        if error is not None:
            raise error


def check() -> None:
    """Waits for all calls with `check_labels="defer"` and raises the first error among them.

    Several invalid calls have an error each. Each call of `check`, or of a function that reads
    labels, raises one of them and clears it: those of the CPU first, then those of each GPU, the
    oldest first. A function that raises it computes nothing.

    Raises:
        InvalidInput: the error that the call would have raised with `check_labels="raise"`.
    """
    raise_deferred(wait=True)
