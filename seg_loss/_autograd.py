"""The functions of `_backends` made differentiable in eager mode, by `torch.autograd.Function`.

If there will be a backward pass, the forward pass computes the gradient too, for a `grad_output` of
1: one read of the logits and one write serve both. The backward pass returns that gradient if
`grad_output` is 1, which is checked on the device, and otherwise computes it again from the logits,
so that a gradient is never rounded twice. The gradient of upsampled scores is stored in the loss's
dtype and multiplied instead: in place, unless the graph is retained for another pass.

A call of an operator of `_compile` takes several times the host time of a Function. The operators
are called only where `needs_operator` returns True. A backward pass may need one although its
forward pass did not: torch traces it, or calls it for a batch of gradients, as
`torch.autograd.grad` with `is_grads_batched` does.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from seg_loss import _backends, _compile
from seg_loss._compile import NO_SECOND_ORDER
from seg_loss._inputs import LossInputs, LossOptions


def needs_operator(*tensors: Tensor | None) -> bool:
    """Returns whether a call must be an operator of `_compile`, which torch can record or replace.

    That is so while torch compiles, exports or traces a program, in its function transforms
    (torch.func) and dispatch modes, for subclasses of Tensor with a `__torch_dispatch__`, and for
    meta tensors, which have shapes and dtypes alone.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    ):
        return True
    for tensor in tensors:
        # torch.func.vmap is a transform; the older vmap, which serves `is_grads_batched`, is none.
        if tensor is not None and (
            type(tensor).__torch_dispatch__ is not _DISABLED
            or _is_batched(tensor)
            or tensor.is_meta
        ):
            return True
    return False


_DISABLED = torch._C._disabled_torch_dispatch_impl
_is_batched = torch._C._functorch.is_legacy_batchedtensor


def cross_entropy(inputs: LossInputs) -> Tensor:
    """Returns the loss, differentiable in the logits."""
    is_upsampled = inputs.options.upsampling is not None
    if not (inputs.logits.requires_grad and torch.is_grad_enabled()):
        compute = _backends.compute_upsampled_loss if is_upsampled else _backends.compute_loss
        return compute(inputs, with_gradient=False)[0]
    function = _UpsampledCrossEntropy if is_upsampled else _CrossEntropy
    loss: Tensor = _apply(function, *_flatten(inputs))[0]
    return loss


def loss_and_gradient(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Returns the loss and its gradient, without gradients of their own."""
    if inputs.options.upsampling is not None:
        loss, gradient = _backends.compute_upsampled_loss(inputs, with_gradient=True)
    else:
        loss, _, gradient = _backends.compute_loss(inputs, with_gradient=True)
    assert gradient is not None
    return loss, gradient


def pixel_terms(inputs: LossInputs) -> Tensor:
    """Returns the terms [N, *spatial], differentiable in the logits."""
    if not (inputs.logits.requires_grad and torch.is_grad_enabled()):
        return _backends.compute_terms(inputs)
    terms: Tensor = _apply(_PixelTerms, *_flatten(inputs))
    return terms


def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature) along `axis`, differentiable."""
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return _backends.compute_softmax(logits, axis, temperature)
    result: Tensor = _apply(_Softmax, logits, axis, temperature)
    return result


def _apply(function: type[Function], *arguments: Any) -> Any:
    """Returns `function.apply(*arguments)`, by the method of the base class.

    `Function.apply` also inspects the signature of `forward`, for defaults and for torch.func. That
    takes as long as four launches.
    """
    return super(Function, function).apply(*arguments)  # type: ignore[misc]


_Flat = tuple[Tensor, Tensor, Tensor | None, Tensor | None, LossOptions]


def _flatten(inputs: LossInputs) -> _Flat:
    """Returns the fields of the inputs: autograd finds only tensors that are arguments."""
    return (
        inputs.logits, inputs.labels, inputs.class_weight, inputs.pixel_weight, inputs.options,
    )  # fmt: skip


class _CrossEntropy(Function):
    """Logits to loss, divisor and gradient, of which only the loss is differentiable."""

    @staticmethod
    def forward(*flat: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        return _backends.compute_loss(LossInputs(*flat), with_gradient=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: _Flat, output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, divisor, gradient = output
        ctx.mark_non_differentiable(divisor, gradient)
        ctx.set_materialize_grads(False)  # no zeros of the gradient's size for its own gradient
        ctx.save_for_backward(*inputs[:4], divisor)
        ctx.options, ctx.gradient = inputs[4], gradient

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 5
        # The gradient is returned once: a second backward pass through the graph computes its own.
        # With create_graph a Function computes it, whose backward raises an error.
        gradient, ctx.gradient = ctx.gradient, None
        *tensors, divisor = ctx.saved_tensors
        flat = *tensors, ctx.options
        inputs = LossInputs(*flat)
        if needs_operator(grad_loss):
            gradient = _compile.cross_entropy_gradient(inputs, divisor, grad_loss)
        elif torch.is_grad_enabled():
            gradient = _apply(_Gradient, *flat, divisor, grad_loss)
        elif gradient is None:
            gradient = _backends.compute_gradient(inputs, divisor, grad_loss)
        else:
            _backends.rescale_gradient_(inputs, divisor, grad_loss, gradient)
        return gradient, None, None, None, None


class _Gradient(Function):
    """Logits to the gradient of their loss."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return _backends.compute_gradient(LossInputs(*arguments[:5]), *arguments[5:])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError(NO_SECOND_ORDER)


class _UpsampledCrossEntropy(Function):
    """Scores to loss and gradient, of which only the loss is differentiable."""

    @staticmethod
    def forward(*flat: Any) -> tuple[Tensor, Tensor | None]:
        return _backends.compute_upsampled_loss(LossInputs(*flat), with_gradient=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: _Flat, output: tuple[Tensor, Tensor]) -> None:
        _, gradient = output
        ctx.mark_non_differentiable(gradient)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], gradient)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 5
        scores, gradient = ctx.saved_tensors
        if needs_operator(grad_loss):
            scaled = _compile.upsampled_gradient(scores, gradient, grad_loss)
        elif torch.is_grad_enabled():
            scaled = _apply(_ScaledGradient, scores, gradient, grad_loss)
        else:
            # A graph that is not retained drops the stored gradient after this pass.
            is_retained = torch._C._autograd._get_current_graph_task_keep_graph()
            scaled = _backends.scale_upsampled_gradient(
                scores, gradient, grad_loss, may_overwrite=not is_retained
            )
        return scaled, None, None, None, None


class _ScaledGradient(Function):
    """Scores and their gradient to its product with `grad_output`.

    The scores are an argument so that autograd reaches `backward`, which raises an error.
    """

    @staticmethod
    def forward(scores: Tensor, gradient: Tensor, grad_output: Tensor) -> Tensor:
        return _backends.scale_upsampled_gradient(scores, gradient, grad_output)

    setup_context = _Gradient.setup_context
    backward = _Gradient.backward


class _PixelTerms(Function):
    """Logits to terms."""

    @staticmethod
    def forward(*flat: Any) -> Tensor:
        return _backends.compute_terms(LossInputs(*flat))

    @staticmethod
    def setup_context(ctx: Any, inputs: _Flat, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.options = inputs[4]

    @staticmethod
    def backward(ctx: Any, grad_terms: Tensor) -> tuple[Tensor | None, ...]:
        flat = *ctx.saved_tensors, ctx.options
        inputs = _backends.weighted_by(LossInputs(*flat), grad_terms)
        if needs_operator(grad_terms):
            gradient = _compile.cross_entropy_gradient(inputs, None, None)
        elif torch.is_grad_enabled():
            gradient = _apply(_Gradient, *_flatten(inputs), None, None)
        else:
            gradient = _backends.compute_gradient(inputs, None, None)
        return gradient, None, None, None, None


class _Softmax(Function):
    """Logits to probabilities."""

    @staticmethod
    def forward(logits: Tensor, axis: int, temperature: float) -> Tensor:
        return _backends.compute_softmax(logits, axis, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, float], output: Tensor) -> None:
        logits, ctx.axis, ctx.temperature = inputs
        ctx.save_for_backward(logits)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        arguments = grad_output, logits, ctx.axis, ctx.temperature
        if needs_operator(grad_output):
            gradient = _compile.softmax_gradient(*arguments)
        elif torch.is_grad_enabled():
            gradient = _apply(_SoftmaxGradient, *arguments)
        else:
            gradient = _backends.compute_softmax_gradient(*arguments)
        return gradient, None, None


class _SoftmaxGradient(Function):
    """Logits and the gradient in their softmax to the gradient in them."""

    @staticmethod
    def forward(grad_output: Tensor, logits: Tensor, axis: int, temperature: float) -> Tensor:
        return _backends.compute_softmax_gradient(grad_output, logits, axis, temperature)

    setup_context = _Gradient.setup_context
    backward = _Gradient.backward
