"""Compile, or load from the cache, every kernel before the first request needs it."""

import torch

from seg_loss.evaluation import MAPS, evaluate
from seg_loss.loss import loss_and_gradient, pixel_nll, spatial_softmax


def warm_up() -> None:
    """Run each kernel once on a few pixels: many seconds the first time on a machine, then one."""
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    weights = torch.ones(2), torch.ones(1, 2, 2)
    for dtype in (torch.float32, torch.float64):
        logits = torch.zeros(1, 2, 2, 2, dtype=dtype, requires_grad=True)
        loss_and_gradient(logits.detach(), labels, weights[0], pixel_weight=weights[1])
        evaluate(logits, labels, maps=MAPS)
        both = pixel_nll(logits, labels).sum() + spatial_softmax(logits).sum()
        torch.autograd.grad(both, logits)
