"""Upsampling by torch's operations, for derivatives of the loss above the first.

The kernels interpolate in registers. These functions store the upsampled scores. Both are linear,
the one is the transpose of the other, and torch can differentiate and transform them.

A source of weight 0 is not read: a NaN or an infinity there reaches no target. Targets read a
source of zeros instead, which is added behind the last one.
"""

import numpy as np
import torch
from torch import Tensor

from seg_loss.upsampling import Axes, Axis


def interpolate(scores: Tensor, axes: Axes) -> Tensor:
    """Returns scores [N, C, h, w] as logits [N, C, H, W]."""
    rows, columns = axes
    # Columns first, while there are few rows: adjacent rows are faster to copy.
    for dim, axis in ((3, columns), (2, rows)):
        shape = [*scores.shape[:dim], 1, *scores.shape[dim + 1 :]]
        sources = torch.cat([scores, scores.new_zeros(shape)], dim)
        (before, weight_before), (behind, weight_behind) = _sources(axis, dim, scores)
        scores = torch.addcmul(
            weight_before * sources.index_select(dim, before),
            sources.index_select(dim, behind),
            weight_behind,
        )
    return scores


def interpolate_transposed(logits: Tensor, axes: Axes) -> Tensor:
    """Returns the gradient in the scores of `interpolate`, for the gradient in its logits."""
    rows, columns = axes
    for dim, axis in ((2, rows), (3, columns)):
        shape = [*logits.shape[:dim], axis.num_sources + 1, *logits.shape[dim + 1 :]]
        total = logits.new_zeros(shape)
        for sources, weights in _sources(axis, dim, logits):
            total = total.index_add(dim, sources, weights * logits)
        logits = total.narrow(dim, 0, axis.num_sources)
    return logits


def _sources(axis: Axis, dim: int, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Returns the sources before the targets and their weights, then those behind the targets."""
    shape = [-1, 1] if dim == 2 else [-1]
    sides = []
    for side in (0, 1):
        weights = axis.weights[side]
        sources = np.where(weights != 0, axis.intervals - 1 + side, axis.num_sources)
        weight = torch.from_numpy(weights).to(like.device, like.dtype)
        sides.append((torch.from_numpy(sources).to(like.device), weight.reshape(shape)))
    return sides
