"""`warm_up`: compiles the kernels, or loads them from the cache, before the first request."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from seg_loss.constants import MAPS
from seg_loss.evaluation import evaluate
from seg_loss.functional import (
    loss_and_gradient,
    pixel_nll,
    spatial_cross_entropy,
    spatial_softmax,
)
from seg_loss.prediction import predict
from seg_loss.upsampling import Bilinear


class Case(NamedTuple):
    """The dtypes and the height and width of logits and labels."""

    logits: torch.dtype
    labels: torch.dtype
    size: tuple[int, int]


# The CPU kernels serve all labels. The kernels of columns serve one dtype, and on AVX-512 one
# number of classes; the others serve all logits of one precision. Gradients whose planes are whole
# cache lines, as with 4 x 4 pixels, have a kernel of their own. Each kernel takes a second or two
# to compile, so that those of float16 and bfloat16 are left to the first call that needs them.
CPU_CASES = (
    Case(torch.float32, torch.uint8, (2, 2)),
    Case(torch.float32, torch.uint8, (4, 4)),
    Case(torch.float64, torch.uint8, (2, 2)),
)

# Triton compiles the kernels that read logits for each dtype, for pixels that fill whole tiles or
# not, and for numbers of pixels that 16 divides or not. The smaller kernels around them depend on
# the number of pixels, so the sizes are those of Cityscapes, ADE20K's crops and PASCAL VOC.
_CITYSCAPES, _ADE20K, _VOC, _VOC_BY_16 = (1024, 2048), (512, 512), (375, 500), (300, 500)
GPU_CASES = (
    *(Case(torch.float32, torch.uint8, size) for size in (_ADE20K, _VOC, _VOC_BY_16, _CITYSCAPES)),
    *(Case(torch.float32, torch.int64, size) for size in (_ADE20K, _VOC)),
    Case(torch.float32, torch.int32, _ADE20K),
    *(Case(torch.float16, torch.uint8, size) for size in (_ADE20K, _VOC)),
    *(Case(torch.bfloat16, torch.uint8, size) for size in (_ADE20K, _VOC)),
)
_MAX_LOGITS_BYTES = 1 << 28
_SMALL_SIZE = 64, 64
"""The size where logits of the case's size would take more than `_MAX_LOGITS_BYTES`."""


def warm_up(device: str | torch.device = "cpu", *, num_classes: int = 2) -> None:
    """Runs each kernel on a few pixels.

    The first call on a machine compiles, which takes about half a minute, on a GPU a minute or
    more. On the CPU each further number of classes takes about ten seconds. Later processes take
    less than a second, with a GPU a few seconds.

    On the CPU this compiles what calls need for float32 logits in class planes, for scores that are
    upsampled by 8, and for loss, gradient and `evaluate` of float64 logits.

    On a GPU this compiles what most calls need: one image of contiguous logits, of the usual sizes,
    float32, float16 or bfloat16, with labels uint8; float32 logits with labels int32 and int64;
    class weights, maps, upsampling and predictions of float32 logits. Any other kernel is compiled
    by the first call that needs it. The tensors take up to 1 GB of the GPU's memory.

    Args:
        device: the device whose kernels are compiled.
        num_classes: the number of classes that kernels are compiled for. On a processor without
            AVX-512 the CPU kernels serve any number, and so do those for more than 32 classes.
    """
    device = torch.device(device)
    cases: Sequence[Case] = GPU_CASES if device.type == "cuda" else CPU_CASES
    for case in cases:
        size = case.size
        if num_classes * math.prod(size) * case.logits.itemsize > _MAX_LOGITS_BYTES:
            size = _SMALL_SIZE
        logits = torch.zeros((1, num_classes, *size), dtype=case.logits, device=device)
        labels = torch.zeros((1, *size), dtype=case.labels, device=device)
        loss_and_gradient(logits, labels)
        evaluate(logits, labels)
        if device.type == "cpu" and case.logits == torch.float32:
            leaf = logits.clone().requires_grad_()
            torch.autograd.grad(spatial_softmax(leaf).sum(), leaf)
        # The options of the other float32 sizes have the same kernels on a GPU.
        if case is cases[0] or (device.type == "cpu" and case.logits == torch.float32):
            _run_options(logits, labels)


def _run_options(logits: Tensor, labels: Tensor) -> None:
    """Runs weights, maps, upsampling and autograd."""
    class_weight = logits.new_ones(logits.shape[1], dtype=torch.float32)
    pixel_weight = logits.new_ones(labels.shape, dtype=torch.float32)
    loss_and_gradient(logits, labels, class_weight)
    loss_and_gradient(logits, labels, class_weight, pixel_weight=pixel_weight)
    evaluate(logits, labels, class_weight)
    evaluate(logits, labels, maps=("entropy",))
    evaluate(logits, labels, maps=MAPS)
    if logits.device.type == "cpu":
        loss_and_gradient(logits, labels, label_smoothing=0.1)
    if min(labels.shape[1:]) < 8:
        scores, large_labels = logits, labels.repeat(1, 8, 8)
    else:
        scores, large_labels = logits[:, :, ::8, ::8].contiguous(), labels
    loss_and_gradient(scores, large_labels, upsampling=Bilinear())
    for maps in ((), MAPS):
        evaluate(scores, large_labels, upsampling=Bilinear(), maps=maps)
    size = large_labels.shape[1], large_labels.shape[2]
    for names in (("prediction",), ("prediction", "confidence")):
        predict(logits, maps=names)
        predict(scores, size=size, maps=names)
    leaf = logits.clone().requires_grad_()
    total = spatial_cross_entropy(leaf, labels)
    total = total + pixel_nll(leaf, labels).sum() + spatial_softmax(leaf).sum()
    torch.autograd.grad(total, leaf)
