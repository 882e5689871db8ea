"""Compile, or load from the cache, every kernel before the first request needs it."""

import torch

from seg_loss.evaluation import MAPS, evaluate
from seg_loss.functional import loss_and_gradient, pixel_nll, spatial_softmax
from seg_loss.upsampling import Bilinear


def warm_up(device: str | torch.device = "cpu", *, num_classes: int = 2) -> None:
    """Run each kernel once on a few pixels: many seconds the first time on a machine, then one.

    Args:
        device: whose kernels.
        num_classes: those of a GPU are compiled for a number of classes; the CPU's serve any.
    """
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8, device=device)
    class_weight = torch.ones(num_classes, device=device)
    pixel_weight = torch.ones(1, 2, 2, device=device)
    for dtype in (torch.float32, torch.float64):
        shape = (1, num_classes, 2, 2)
        logits = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)
        loss_and_gradient(logits.detach(), labels, class_weight, pixel_weight=pixel_weight)
        evaluate(logits, labels, maps=MAPS)
        scores = torch.zeros((1, num_classes, 1, 1), dtype=dtype, device=device)
        loss_and_gradient(scores, labels, upsampling=Bilinear())
        evaluate(scores, labels, upsampling=Bilinear(), maps=MAPS)
        both = pixel_nll(logits, labels).sum() + spatial_softmax(logits).sum()
        torch.autograd.grad(both, logits)
