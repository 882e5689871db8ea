"""The definition of the loss: log-sum-exp minus the target logit, in float64, in plain torch.

Tests and benchmarks compare with it; the library itself does not use it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from seg_loss.upsampling import Upsampling, axes


def pixel_terms(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    pixel_weight: Tensor | None = None,
    ignore_index: int | Sequence[int] = 255,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    scores: str = "logits",
) -> tuple[Tensor, Tensor]:
    """Returns the terms of the valid pixels, in the labels' order, and their weights; float64.

    If `scores` is "probabilities", so are the logits, and the nll is -ln p.
    """
    num_classes = logits.shape[1]
    values = (ignore_index,) if isinstance(ignore_index, int) else ignore_index
    target = labels.reshape(-1).long()
    device = logits.device
    is_valid = [int(label) not in values for label in target.tolist()]
    valid = torch.tensor(is_valid, dtype=torch.bool, device=device)
    by_pixel = logits.double().movedim(1, -1).reshape(-1, num_classes)
    x, y = by_pixel[valid] / temperature, target[valid]
    weights = torch.ones(num_classes, dtype=torch.float64, device=device)
    if class_weight is not None:
        weights = class_weight.double()
    pixels = torch.ones(len(y), dtype=torch.float64, device=device)
    if pixel_weight is not None:
        pixels = pixel_weight.reshape(-1).double()[valid]
    if scores == "probabilities":
        return -pixels * weights[y] * x.gather(1, y[:, None])[:, 0].log(), pixels * weights[y]
    nll_of_all = torch.logsumexp(x, dim=1, keepdim=True) - x
    nll = nll_of_all.gather(1, y[:, None])[:, 0]
    terms = weights[y] * nll
    if label_smoothing:
        smooth = (weights * nll_of_all).sum(dim=1) / num_classes
        terms = (1 - label_smoothing) * terms + label_smoothing * smooth
    return pixels * terms, pixels * weights[y]


def spatial_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    normalization: str = "valid",
    **options: object,
) -> Tensor:
    """Returns the loss, float64, differentiable by autograd; options as in `seg_loss`."""
    terms, weights = pixel_terms(logits, labels, class_weight, **options)  # type: ignore[arg-type]
    divisor: float | Tensor = {
        "valid": max(len(terms), 1),
        "full": max(labels.numel(), 1),
        "batch": max(len(logits), 1),
        "none": 1,
        "weight": weights.sum() if weights.sum() > 0 else 1,
    }[normalization]
    # A sum over no pixels is attached to the logits as well.
    return terms.sum() / divisor


def loss_and_gradient(
    logits: Tensor, labels: Tensor, class_weight: Tensor | None = None, **options: object
) -> tuple[Tensor, Tensor]:
    """Returns the loss and its gradient in the logits, both float64."""
    x = logits.detach().double().requires_grad_()
    loss = spatial_cross_entropy(x, labels, class_weight, **options)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient


def upsample(scores: Tensor, size: tuple[int, int], upsampling: Upsampling) -> Tensor:
    """Returns scores [N, C, h, w] as logits [N, C, *size], float64, by dense matrices."""
    rows, columns = axes(upsampling, scores.shape[2:], size)
    by_row, by_column = (
        torch.from_numpy(axis.matrix()).to(scores.device) for axis in (rows, columns)
    )
    return by_row @ scores.double() @ by_column.T


def spatial_softmax(logits: Tensor, *, axis: int = 1, temperature: float = 1.0) -> Tensor:
    """Returns the probabilities, float64."""
    # torch sums adjacent classes in several parts, which is more accurate for many classes.
    x = logits.double().movedim(axis, -1).contiguous() / temperature
    return torch.softmax(x, -1).movedim(-1, axis)
