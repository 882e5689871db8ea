"""The loss while torch compiles, exports or traces a program: a call of an operator.

The derivative of an operator is that of a Function of `_autograd`. The forward pass of full-size
logits computes no gradient, because returning a buffer mutated in place would force Inductor to
copy it.
"""

from typing import Any

import torch
from torch import Tensor

from seg_loss import _autograd, _composition, _operators
from seg_loss._autograd import is_transformed
from seg_loss._inputs import LossInputs


def is_compiling() -> bool:
    """Returns whether torch compiles, exports or traces a program."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def cross_entropy(inputs: LossInputs) -> Tensor:
    """Returns the loss, differentiable in the logits."""
    if is_transformed():
        return _composition.cross_entropy(inputs)
    if inputs.options.upsampling is None:
        return _operators.full_size_cross_entropy(inputs, False)[0]
    with_gradient = inputs.logits.requires_grad and torch.is_grad_enabled()
    return _operators.upsampled_cross_entropy(inputs, with_gradient)[0]


def loss_and_gradient(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Returns the loss and its gradient, without gradients of their own."""
    if inputs.options.upsampling is not None:
        loss, gradient = _operators.upsampled_cross_entropy(inputs, True)
    else:
        loss, _, gradient = _operators.full_size_cross_entropy(inputs, True)
    assert gradient is not None
    return loss, gradient


def pixel_terms(inputs: LossInputs) -> Tensor:
    """Returns the terms [N, *spatial], differentiable in the logits."""
    if is_transformed():
        return _composition.pixel_terms(inputs)
    return _operators.pixel_terms(inputs)


def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature) along `axis`, differentiable."""
    if is_transformed():
        return _composition.softmax(logits, axis, temperature)
    return _operators.softmax(logits, axis, temperature)


def _differentiate(name: str, function: Any, *, has_inputs: bool = True) -> None:
    """Registers the derivative of a Function for an operator.

    Args:
        has_inputs: whether the first arguments of the operator are a flat `LossInputs`, of which
            the Function takes the tensors first and the options last.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if has_inputs:
            loss_inputs, others = _operators.unflatten(inputs), inputs[_NUM_INPUTS:]
            # Which arguments of the operator are those of the Function.
            ctx.indices = *range(_NUM_TENSORS), *range(_NUM_INPUTS, len(inputs))
            inputs = *loss_inputs.tensors, *others, loss_inputs.options
        function.setup_context(ctx, inputs, output)

    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients: tuple[Tensor | None, ...] = function.backward(ctx, *grad_outputs)
        if not has_inputs:
            return gradients
        of_tensors, of_others = gradients[:_NUM_TENSORS], gradients[_NUM_TENSORS:-1]
        return *of_tensors, *(None,) * (_NUM_INPUTS - _NUM_TENSORS), *of_others

    torch.library.register_autograd(f"seg_loss::{name}", backward, setup_context=setup_context)


_NUM_INPUTS, _NUM_TENSORS = len(_operators.INPUTS), 4

_differentiate("full_size_cross_entropy", _autograd.CrossEntropy)
_differentiate("cross_entropy_gradient", _autograd.Gradient)
_differentiate("upsampled_cross_entropy", _autograd.UpsampledCrossEntropy)
_differentiate("upsampled_gradient", _autograd.UpsampledGradient)
_differentiate("pixel_terms", _autograd.PixelTerms)
_differentiate("softmax", _autograd.Softmax, has_inputs=False)
_differentiate("softmax_gradient", _autograd.SoftmaxGradient, has_inputs=False)
