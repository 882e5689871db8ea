"""The loss in torch's own operations, for the transforms of torch.func in compiled programs.

torch's compiler traces neither the derivatives of a Function nor those of an operator through
torch.func.grad, jvp and vmap. Therefore this module computes the formulas in the docstring of
`functional` by operations that it does trace. An operator checks the labels and returns the
divisor, which do not depend on the logits.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from seg_loss import _operators
from seg_loss._inputs import LossInputs, loss_dtype, valid_classes
from seg_loss._interpolation import interpolate


def cross_entropy(inputs: LossInputs) -> Tensor:
    """Returns the loss, differentiable in the logits."""
    inputs = _at_full_size(inputs)
    _, divisor, _ = _operators.full_size_cross_entropy(_detached(inputs), False)
    terms = _terms(inputs, *valid_classes(inputs))
    return terms.sum() / divisor[0].to(terms.dtype)


def pixel_terms(inputs: LossInputs) -> Tensor:
    """Returns the terms [N, *spatial], differentiable in the logits."""
    checked = _operators.pixel_terms(_detached(inputs))
    valid, classes = valid_classes(inputs)
    # A condition that is always true: a compiler removes a call whose result is not used.
    valid = valid & ((checked == checked) | checked.isnan())
    return _terms(inputs, valid, classes)


def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature) along `axis`, differentiable."""
    return (logits.to(loss_dtype(logits)) / temperature).softmax(axis).to(logits.dtype)


def _terms(inputs: LossInputs, valid: Tensor, classes: Tensor) -> Tensor:
    options, num_classes = inputs.options, inputs.num_classes
    dtype = loss_dtype(inputs.logits)
    logits = torch.where(valid.unsqueeze(1), inputs.logits.to(dtype), 0) / options.temperature
    nll_of_all = -logits.log_softmax(1)
    nll = nll_of_all.gather(1, classes.unsqueeze(1)).squeeze(1)
    if math.isfinite(options.max_nll):  # the bound changes the loss, but not its derivatives
        excess = (nll - options.max_nll).clamp(min=0).detach()
        nll = torch.where(nll.isinf(), options.max_nll, nll - excess)
    smoothed = nll_of_all
    if inputs.class_weight is not None:
        weights = inputs.class_weight.to(dtype)
        nll = weights[classes] * nll
        weights = weights.reshape(-1, *[1] * (logits.ndim - 2))
        smoothed = torch.where(weights != 0, weights * nll_of_all, 0)  # 0 times infinity is NaN
    if options.label_smoothing:
        share = options.label_smoothing
        nll = (1 - share) * nll + share / num_classes * smoothed.sum(1)
    if inputs.pixel_weight is not None:
        nll = inputs.pixel_weight.to(dtype) * nll
    return torch.where(valid, nll, 0)


def _detached(inputs: LossInputs) -> LossInputs:
    return replace(inputs, logits=inputs.logits.detach())


def _at_full_size(inputs: LossInputs) -> LossInputs:
    """Returns the inputs with upsampled scores, if there is an upsampling."""
    axes = inputs.axes
    if axes is None:
        return inputs
    logits = interpolate(inputs.logits.to(loss_dtype(inputs.logits)), axes)
    return replace(inputs, logits=logits, options=replace(inputs.options, upsampling=None))
