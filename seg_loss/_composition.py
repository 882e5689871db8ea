"""The loss in torch's own operations, for the transforms of torch.func in compiled programs.

torch's compiler traces neither the derivatives of a Function nor those of an operator through
torch.func.grad, jvp and vmap. Therefore the derivatives are those of the formulas in `functional`.
An operator checks the labels and returns the divisor, which do not depend on the logits.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from seg_loss import _operators
from seg_loss._inputs import LossInputs, loss_dtype, valid_classes
from seg_loss.upsampling import Bilinear, bilinear_filter, encode


def cross_entropy(inputs: LossInputs) -> Tensor:
    """Returns the loss, differentiable in the logits."""
    inputs = _at_full_size(inputs)
    detached = replace(inputs, logits=inputs.logits.detach())
    _, divisor, _ = _operators.full_size_cross_entropy(detached, False)
    terms = _terms(inputs)
    return terms.sum() / divisor[0].to(terms.dtype)


def pixel_terms(inputs: LossInputs) -> Tensor:
    """Returns the terms [N, *spatial], differentiable in the logits."""
    _operators.pixel_terms(replace(inputs, logits=inputs.logits.detach()))
    return _terms(inputs)


def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature) along `axis`, differentiable."""
    return (logits.to(loss_dtype(logits)) / temperature).softmax(axis).to(logits.dtype)


def _terms(inputs: LossInputs) -> Tensor:
    options, num_classes = inputs.options, inputs.num_classes
    dtype = loss_dtype(inputs.logits)
    valid, classes = valid_classes(inputs)
    logits = torch.where(valid.unsqueeze(1), inputs.logits.to(dtype), 0) / options.temperature
    nll_of_all = -logits.log_softmax(1)
    nll = nll_of_all.gather(1, classes.unsqueeze(1)).squeeze(1)
    if math.isfinite(options.max_nll):  # the bound changes the loss, but not its derivatives
        nll = nll + (nll.clamp(max=options.max_nll) - nll).detach()
    smoothed = nll_of_all
    if inputs.class_weight is not None:
        weights = inputs.class_weight.to(dtype)
        nll = weights[classes] * nll
        smoothed = weights.reshape(-1, *[1] * (logits.ndim - 2)) * nll_of_all
    if options.label_smoothing:
        share = options.label_smoothing
        nll = (1 - share) * nll + share / num_classes * smoothed.sum(1)
    if inputs.pixel_weight is not None:
        nll = inputs.pixel_weight.to(dtype) * nll
    return torch.where(valid, nll, 0)


def _at_full_size(inputs: LossInputs) -> LossInputs:
    """Returns the inputs with scores upsampled by torch, if there is an upsampling."""
    upsampling, scores = inputs.options.upsampling, inputs.logits
    if upsampling is None:
        return inputs
    height, width = inputs.labels.shape[1:]
    scores = scores.to(loss_dtype(scores))
    if isinstance(upsampling, Bilinear):
        corners = upsampling.align_corners
        logits = F.interpolate(scores, (height, width), mode="bilinear", align_corners=corners)
    else:
        stride, kernel_size, top, left = encode(upsampling)
        kernel = torch.from_numpy(bilinear_filter(kernel_size)).to(scores)
        groups = inputs.num_classes
        filters = (kernel[:, None] * kernel).expand(groups, 1, -1, -1)
        logits = F.conv_transpose2d(scores, filters, stride=stride, groups=groups)
        logits = logits[:, :, top : top + height, left : left + width]
    return replace(inputs, logits=logits, options=replace(inputs.options, upsampling=None))
