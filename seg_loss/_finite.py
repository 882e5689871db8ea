"""Which logits have no softmax. Reads all of them, so it is asked only when a loss came out NaN."""

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from seg_loss import _inputs as checks
from seg_loss.upsampling import Axes, Axis, Upsampling, axes_for


def require_finite(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int | Sequence[int] = 255,
    upsampling: Upsampling | None = None,
) -> None:
    """Refuse logits no softmax can be taken of: NaN, +inf, or all -inf, at a valid pixel.

    -inf is a legal logit, of probability 0. The library itself lets such values through to a loss
    of NaN, as torch does; a service that must answer calls this when that has happened.

    Args:
        upsampling: None, or how the logits, which then are scores [N, C, h, w], become as large as
            the labels. What no valid pixel reads of them, or only with weight 0, may be anything.

    Raises:
        InvalidInput: with the number of pixels, and the first one's position and value.
    """
    if upsampling is None:
        labels = checks.check_labels_for(labels, logits, logits.shape[2:])
        bad = ~logits.amax(dim=1).isfinite()  # NaN wins, then +inf; -inf only where all are
    else:
        labels = checks.check_labels_for(
            labels, logits, checks.size_to_upsample_to(logits, labels, "logits")
        )
        axes = axes_for(upsampling, logits, labels)
        bad = _has_no_softmax_when_upsampled(logits, axes)
    for value in checks.ignored_labels(ignore_index, labels.dtype):
        bad &= labels != value
    count = int(bad.sum())
    if not count:
        return
    place = tuple(int(index) for index in bad.nonzero()[0])
    if upsampling is None:
        found = _wrong_number(logits, place)
    else:
        image, row, column = place
        read = product(_nodes_of(row, axes[0]), _nodes_of(column, axes[1]))
        found = next(filter(None, (_wrong_number(logits, (image, *node)) for node in read)), "")
        found = found and f"{found}, read by pixel {checks.text_of_place(place)}"
    raise checks.InvalidInput(
        "logits",
        "finite numbers (or -inf in some classes) at valid pixels",
        (found or f"-inf in every class at pixel {checks.text_of_place(place)}")
        + checks.text_of_others(count),
        "The network has diverged, or the file is damaged.",
    )


def _wrong_number(logits: Tensor, place: tuple[int, ...]) -> str:
    """NaN or +inf at a place [N, *spatial], with its class; empty if there is none."""
    column = logits.movedim(1, -1)[place]
    for wrong in (column.isnan(), column == math.inf):
        if wrong.any():
            number = int(wrong.nonzero()[0])
            logit = place[0], number, *place[1:]
            return f"{float(column[number])} at {checks.text_of_place(logit)}"
    return ""


def _has_no_softmax_when_upsampled(scores: Tensor, axes: Axes) -> Tensor:
    """Pixels [N, H, W] that read NaN or +inf, or -inf in every class."""
    highest = scores.amax(dim=1)
    bad = _reads(highest.isnan() | (highest == math.inf), axes)
    # Not every class need be -inf in the same node, so that each is looked at by itself.
    empty = torch.ones_like(bad)
    for scores_of_class in scores.unbind(dim=1):
        empty &= _reads(scores_of_class == -math.inf, axes)
        if not empty.any():
            break
    return bad | empty


def _reads(nodes: Tensor, axes: Axes) -> Tensor:
    """Pixels [N, H, W] that read one of these nodes, bool [N, h, w]."""
    for dim, axis in enumerate(axes, start=1):
        shape = (-1, 1) if dim == 1 else (-1,)
        cells = torch.from_numpy(axis.cells).to(nodes.device)
        before, behind = torch.from_numpy(axis.weights != 0).to(nodes.device).view(2, *shape)
        # A node that does not exist has weight 0, so that another one may stand for it.
        left = nodes.index_select(dim, (cells - 1).clamp(min=0)) & before
        right = nodes.index_select(dim, cells.clamp(max=axis.num_nodes - 1)) & behind
        nodes = left | right
    return nodes


def _nodes_of(position: int, axis: Axis) -> list[int]:
    """The nodes that a position reads."""
    cell = int(axis.cells[position])
    return [cell - 1 + side for side in (0, 1) if axis.weights[side, position]]
