"""`warm_up`: compiles the kernels, or loads them from the cache, before the first request."""

import torch

from seg_loss.constants import MAPS
from seg_loss.evaluation import evaluate
from seg_loss.functional import loss_and_gradient, pixel_nll, spatial_softmax
from seg_loss.upsampling import Bilinear


def warm_up(device: str | torch.device = "cpu", *, num_classes: int = 2) -> None:
    """Runs each kernel once on a few pixels.

    The first call on a machine compiles and takes several seconds; later processes take one.

    Args:
        device: the device whose kernels are compiled.
        num_classes: the number of classes that GPU kernels are compiled for. The CPU kernels serve
            any number.
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
        total = pixel_nll(logits, labels).sum() + spatial_softmax(logits).sum()
        torch.autograd.grad(total, logits)
