"""`require_finite`: finds logits that have no softmax.

It reads all logits, so it is called only after a loss turned out to be NaN.
"""

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from seg_loss._errors import InvalidInput, shape_text
from seg_loss._inputs import (
    LossOptions,
    check_labels_tensor,
    check_memory,
    size_to_upsample_to,
)
from seg_loss.upsampling import Axes, Axis, Upsampling
from seg_loss.upsampling import axes as axes_of


def require_finite(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int | Sequence[int] = 255,
    upsampling: Upsampling | None = None,
) -> None:
    """Raises if the logits of a valid pixel hold NaN or +inf, or are all -inf.

    A single -inf is a legal logit, of probability 0. The library itself returns a loss of NaN for
    such pixels, as torch does. A service that must answer with a number calls this function when
    that has happened.

    Args:
        logits: [N, C, *spatial]; scores [N, C, h, w] with an upsampling.
        labels: as in `spatial_cross_entropy`.
        ignore_index: as there.
        upsampling: None, or how the scores become as large as the labels. Scores that no valid
            pixel reads, or only with weight 0, may hold anything.

    Raises:
        InvalidInput: with the index and value of the first such pixel, their number, and the number
            of valid pixels.
    """
    check_memory(logits=logits, labels=labels)
    options = LossOptions(ignore_index, upsampling=upsampling)
    axes = None
    if upsampling is None:
        labels = check_labels_tensor(labels, logits, logits.shape[2:])
        # amax returns NaN before +inf, and -inf only where all classes are.
        non_finite = ~logits.amax(dim=1).isfinite()
    else:
        size = size_to_upsample_to(logits, labels, "logits")
        labels = check_labels_tensor(labels, logits, size)
        axes = axes_of(upsampling, logits.shape[2:], labels.shape[1:])
        non_finite = _is_non_finite_when_upsampled(logits, axes)
    valid = torch.ones_like(non_finite)
    for value in options.ignored_labels(labels.dtype):
        valid &= labels != value
    non_finite &= valid
    count = int(non_finite.sum())
    if not count:
        return
    index = tuple(int(i) for i in non_finite.nonzero()[0])
    if axes is None:
        got = _first_non_finite(logits, index)
    else:
        image, row, column = index
        sources = product(_sources_of(row, axes[0]), _sources_of(column, axes[1]))
        found = (_first_non_finite(logits, (image, *source)) for source in sources)
        got = next(filter(None, found), "")
        got = got and f"{got}, read by pixel {shape_text(index)}"
    raise InvalidInput(
        "logits",
        "finite numbers (or -inf in some classes) at valid pixels",
        (got or f"-inf in every class at pixel {shape_text(index)}")
        + f", in {count} of {int(valid.sum())} valid pixels",
        "The network has diverged, or the file is damaged.",
    )


def _first_non_finite(logits: Tensor, index: tuple[int, ...]) -> str:
    """Returns NaN or +inf among the logits at [image, *spatial] with its index, or ""."""
    values = logits.movedim(1, -1)[index]
    for mask in (values.isnan(), values == math.inf):
        if mask.any():
            number = int(mask.nonzero()[0])
            return f"{float(values[number])} at {shape_text((index[0], number, *index[1:]))}"
    return ""


def _is_non_finite_when_upsampled(scores: Tensor, axes: Axes) -> Tensor:
    """Returns the target pixels, bool [N, H, W], that read NaN or +inf, or -inf in every class."""
    highest = scores.amax(dim=1)
    non_finite = _reads(highest.isnan() | (highest == math.inf), axes)
    # Classes may be -inf at different source pixels, so check each one separately.
    all_minus_inf = torch.ones_like(non_finite)
    for scores_of_class in scores.unbind(dim=1):
        all_minus_inf &= _reads(scores_of_class == -math.inf, axes)
        if not all_minus_inf.any():
            break
    return non_finite | all_minus_inf


def _reads(sources: Tensor, axes: Axes) -> Tensor:
    """Returns the target pixels, bool [N, H, W], that read one of these source pixels [N, h, w]."""
    for dim, axis in enumerate(axes, start=1):
        shape = (-1, 1) if dim == 1 else (-1,)
        intervals = torch.from_numpy(axis.intervals).to(sources.device)
        before, behind = torch.from_numpy(axis.weights != 0).to(sources.device).view(2, *shape)
        # A source that does not exist has weight 0, so any other one can be read in its place.
        left = sources.index_select(dim, (intervals - 1).clamp(min=0)) & before
        right = sources.index_select(dim, intervals.clamp(max=axis.num_sources - 1)) & behind
        sources = left | right
    return sources


def _sources_of(target: int, axis: Axis) -> list[int]:
    """Returns the sources that a target reads."""
    interval = int(axis.intervals[target])
    return [interval - 1 + side for side in (0, 1) if axis.weights[side, target]]
