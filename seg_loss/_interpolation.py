"""Upsampling by torch's operations, for derivatives of the loss above the first.

The kernels interpolate in registers. These functions store the upsampled scores. Both are linear,
the one is the transpose of the other, and torch can differentiate and transform them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from seg_loss.upsampling import Axes, Axis


def interpolate(scores: Tensor, axes: Axes) -> Tensor:
    """Returns scores [N, C, h, w] as logits [N, C, H, W].

    A source of weight 0 is not read: a NaN or an infinity there reaches no target.
    """
    for dim, axis in ((2, axes[0]), (3, axes[1])):
        left, right = (
            torch.where(weights != 0, weights * scores.index_select(dim, sources), 0)
            for sources, weights in _sources(axis, dim, scores)
        )
        scores = left + right
    return scores


def interpolate_transposed(logits: Tensor, axes: Axes) -> Tensor:
    """Returns the gradient in the scores of `interpolate`, for the gradient in its logits."""
    for dim, axis in ((3, axes[1]), (2, axes[0])):
        shape = [*logits.shape[:dim], axis.num_sources, *logits.shape[dim + 1 :]]
        total = logits.new_zeros(shape)
        for sources, weights in _sources(axis, dim, logits):
            total = total.index_add(dim, sources, torch.where(weights != 0, weights * logits, 0))
        logits = total
    return logits


def _sources(axis: Axis, dim: int, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the sources before the targets and their weights, then those behind the targets."""
    intervals = torch.from_numpy(axis.intervals).to(like.device)
    weights = torch.from_numpy(axis.weights).to(like.device, like.dtype)
    shape = [-1, 1] if dim == 2 else [-1]
    for side, weight in enumerate(weights.unbind()):
        # A source that does not exist has the weight 0, so that another one can take its place.
        sources = (intervals - 1 + side).clamp(0, axis.num_sources - 1)
        yield sources, weight.reshape(shape)
