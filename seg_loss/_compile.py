"""The functions of `_backends` as operators, which torch can compile, export and transform.

An operator has a schema, a fake implementation, a gradient, and a kernel per device, which torch's
dispatcher selects by the logits. In a program compiled by torch the forward pass of full-size
logits computes no gradient, because returning a buffer mutated in place would force Inductor to
copy it.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from seg_loss import _backends
from seg_loss._inputs import LossInputs, LossOptions, loss_dtype
from seg_loss.upsampling import decode, encode

P = ParamSpec("P")
T = TypeVar("T")

NO_SECOND_ORDER = (
    "seg_loss: expected a first derivative, got a request for a second one (create_graph=True, or "
    "backward through a gradient). Second derivatives are not supported."
)


# -- from functions of `LossInputs` to operators ---------------------------------------------------


def _schema_of_inputs(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignore_index: Sequence[int],
    label_smoothing: float,
    temperature: float,
    normalization: str,
    check_labels: str,
    upsampling: Sequence[int],
    max_nll: float,
    has_divisor_floor: bool,
    checks_class_weight: bool,
) -> None:
    """The arguments of an operator in place of one `LossInputs`, in the order of its fields."""


_INPUTS = list(inspect.signature(_schema_of_inputs).parameters.values())
_NUM_TENSORS = 4  # the first of them, which autograd saves


def _flatten(inputs: LossInputs) -> tuple[Any, ...]:
    options = inputs.options
    return (
        inputs.logits,
        inputs.labels,
        inputs.class_weight,
        inputs.pixel_weight,
        inputs.ignored_bits,
        options.label_smoothing,
        options.temperature,
        options.normalization,
        options.check_labels,
        encode(options.upsampling),
        options.max_nll,
        options.has_divisor_floor,
        options.checks_class_weight,
    )


def _unflatten(arguments: Sequence[Any]) -> LossInputs:
    """Returns the `LossInputs` that `_flatten` made the first arguments of."""
    logits, labels, class_weight, pixel_weight, *values = arguments[: len(_INPUTS)]
    if labels.dtype == torch.uint64:
        values[0] = [value % (1 << 64) for value in values[0]]
    values[5] = decode(values[5])
    return LossInputs(logits, labels, class_weight, pixel_weight, LossOptions(*values))


_library = torch.library.Library("seg_loss", "DEF")  # type: ignore[no-untyped-call]


def _operator(
    fake: Callable[..., Any], *, mutates: Sequence[str] = ()
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Defines the operator `seg_loss::<name of the function>`, the same on all devices.

    An argument `inputs: LossInputs`, which must come first, becomes the arguments of
    `_schema_of_inputs`. `fake` takes the operator's arguments and returns tensors of the result's
    shapes and dtypes. `torch.library.custom_op` is not used: at the first call it imports torch's
    compiler, which takes longer than loading the kernels.
    """

    def define(function: Callable[P, T]) -> Callable[P, T]:
        name, kernel = function.__name__, _with_flat_inputs(function)
        schema = torch.library.infer_schema(kernel, mutates_args=mutates)
        _library.define(  # type: ignore[no-untyped-call]
            name + schema, tags=(torch.Tag.pt2_compliant_tag,)
        )
        for device in _backends.BACKENDS:
            _library.impl(name, kernel, device.upper())  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"seg_loss::{name}", fake)
        operator = getattr(torch.ops.seg_loss, name)

        @functools.wraps(function)
        def call(*arguments: P.args, **keywords: P.kwargs) -> T:
            assert not keywords, "gradients and fakes take their arguments by position"
            first, *others = arguments
            flat = _flatten(first) if isinstance(first, LossInputs) else (first,)
            result: T = operator(*flat, *others)
            return result

        return call

    return define


def _with_flat_inputs(function: Callable[..., Any]) -> Callable[..., Any]:
    first, *others = inspect.signature(function).parameters.values()
    if first.annotation is not LossInputs:
        return function

    def kernel(*arguments: Any) -> Any:
        return function(_unflatten(arguments), *arguments[len(_INPUTS) :])

    signature = inspect.signature(function).replace(parameters=[*_INPUTS, *others])
    kernel.__signature__ = signature  # type: ignore[attr-defined]
    return kernel


def _save_inputs(ctx: Any, arguments: tuple[Any, ...], *results: Tensor) -> None:
    """Saves the arguments that are a flat `LossInputs`, and results."""
    ctx.save_for_backward(*arguments[:_NUM_TENSORS], *results)
    ctx.options = arguments[_NUM_TENSORS : len(_INPUTS)]


def _saved_inputs(ctx: Any) -> tuple[LossInputs, list[Tensor]]:
    saved = ctx.saved_tensors  # read once: each access unpacks them
    return _unflatten([*saved[:_NUM_TENSORS], *ctx.options]), list(saved[_NUM_TENSORS:])


def _save_nothing(ctx: Any, inputs: Any, output: Any) -> None:
    pass


def _raise_no_second_order(context: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(NO_SECOND_ORDER)


# -- the loss --------------------------------------------------------------------------------------


def cross_entropy(inputs: LossInputs) -> Tensor:
    """Returns the loss, differentiable in the logits."""
    with_gradient = inputs.logits.requires_grad and torch.is_grad_enabled()
    if inputs.options.upsampling is not None:
        return upsampled_cross_entropy(inputs, with_gradient)[0]
    return full_size_cross_entropy(inputs, with_gradient and not torch.compiler.is_compiling())[0]


def loss_and_gradient(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Returns the loss and its gradient, without gradients of their own."""
    if inputs.options.upsampling is not None:
        return upsampled_cross_entropy(inputs, True)
    loss, _, gradient = full_size_cross_entropy(inputs, True)
    return loss, gradient


def _fake_cross_entropy(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    with_gradient = others[-1]
    return (
        logits.new_empty((), dtype=loss_dtype(logits)),
        logits.new_empty((2,), dtype=torch.float64),
        torch.empty_like(logits) if with_gradient else logits.new_empty(0),
    )


@_operator(_fake_cross_entropy)
def full_size_cross_entropy(
    inputs: LossInputs, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the loss, its divisor, and its gradient or an empty tensor."""
    loss, divisor, gradient = _backends.compute_loss(inputs, with_gradient=with_gradient)
    return loss, divisor, inputs.logits.new_empty(0) if gradient is None else gradient


def _fake_gradient(logits: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(logits)


@_operator(_fake_gradient)
def cross_entropy_gradient(
    inputs: LossInputs, divisor: Tensor | None, grad_output: Tensor | None
) -> Tensor:
    """Returns grad_output / D * d(sum of terms) / d(logits), without checking the labels."""
    return _backends.compute_gradient(inputs, divisor, grad_output)


def _fake_rescale_gradient_(*arguments: Any) -> None:
    pass


@_operator(_fake_rescale_gradient_, mutates=("gradient",))
def rescale_gradient_(
    inputs: LossInputs, divisor: Tensor, grad_output: Tensor, gradient: Tensor
) -> None:
    """Replaces a gradient for a `grad_output` of 1 by the one for this `grad_output`, in place."""
    _backends.rescale_gradient_(inputs, divisor, grad_output, gradient)


def _save_for_cross_entropy(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, divisor, gradient = output
    ctx.mark_non_differentiable(divisor, gradient)
    ctx.set_materialize_grads(False)  # no zeros of the gradient's size for its own gradient
    _save_inputs(ctx, inputs, divisor)
    with_gradient = inputs[-1]
    ctx.gradient = gradient if with_gradient else None


def _cross_entropy_backward(
    ctx: Any, grad_output: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    others = (None,) * len(_INPUTS)
    if grad_output is None:
        return None, *others
    # The gradient is returned once. A second backward pass through the graph allocates its own.
    # With create_graph the operator is called, so that its backward raises an error.
    gradient, ctx.gradient = ctx.gradient, None
    inputs, (divisor,) = _saved_inputs(ctx)
    if gradient is None or torch.is_grad_enabled():
        gradient = cross_entropy_gradient(inputs, divisor, grad_output)
    else:
        rescale_gradient_(inputs, divisor, grad_output, gradient)
    return gradient, *others


torch.library.register_autograd(
    "seg_loss::full_size_cross_entropy",
    _cross_entropy_backward,
    setup_context=_save_for_cross_entropy,
)
torch.library.register_autograd(
    "seg_loss::cross_entropy_gradient", _raise_no_second_order, setup_context=_save_nothing
)


# -- the loss of upsampled scores ------------------------------------------------------------------


def _fake_upsampled_cross_entropy(scores: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    dtype, with_gradient = loss_dtype(scores), others[-1]
    gradient = torch.empty_like(scores, dtype=dtype) if with_gradient else None
    nothing = scores.new_empty(0, dtype=dtype)
    return scores.new_empty((), dtype=dtype), nothing if gradient is None else gradient


@_operator(_fake_upsampled_cross_entropy)
def upsampled_cross_entropy(inputs: LossInputs, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Returns the loss, and its gradient in the loss's dtype or an empty tensor."""
    loss, gradient = _backends.compute_upsampled_loss(inputs, with_gradient=with_gradient)
    return loss, loss.new_empty(0) if gradient is None else gradient


def _fake_upsampled_gradient(scores: Tensor, gradient: Tensor, grad_output: Tensor) -> Tensor:
    return torch.empty_like(scores)


@_operator(_fake_upsampled_gradient)
def upsampled_gradient(scores: Tensor, gradient: Tensor, grad_output: Tensor) -> Tensor:
    """Returns grad_output * gradient, rounded to the scores' dtype.

    The scores are an argument so that autograd reaches the backward pass of this operator, which
    raises an error.
    """
    return _backends.scale_upsampled_gradient(scores, gradient, grad_output)


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, gradient = output
    ctx.mark_non_differentiable(gradient)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], gradient)


def _upsampled_cross_entropy_backward(
    ctx: Any, grad_output: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    others = (None,) * len(_INPUTS)
    if grad_output is None:
        return None, *others
    scores, gradient = ctx.saved_tensors
    return upsampled_gradient(scores, gradient, grad_output), *others


torch.library.register_autograd(
    "seg_loss::upsampled_cross_entropy",
    _upsampled_cross_entropy_backward,
    setup_context=_save_gradient,
)
torch.library.register_autograd(
    "seg_loss::upsampled_gradient", _raise_no_second_order, setup_context=_save_nothing
)


# -- the terms -------------------------------------------------------------------------------------


def _fake_pixel_terms(logits: Tensor, labels: Tensor, *others: Any) -> Tensor:
    return logits.new_empty(labels.shape, dtype=loss_dtype(logits))


@_operator(_fake_pixel_terms)
def pixel_terms(inputs: LossInputs) -> Tensor:
    """Returns the terms, [N, *spatial], 0 where ignored."""
    return _backends.compute_terms(inputs)


def _save_for_terms(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _save_inputs(ctx, inputs)


def _pixel_terms_backward(ctx: Any, grad_terms: Tensor) -> tuple[Tensor | None, ...]:
    inputs, _ = _saved_inputs(ctx)
    inputs = _backends.weighted_by(inputs, grad_terms)
    return cross_entropy_gradient(inputs, None, None), *[None] * (len(_INPUTS) - 1)


torch.library.register_autograd(
    "seg_loss::pixel_terms", _pixel_terms_backward, setup_context=_save_for_terms
)


# -- the softmax -----------------------------------------------------------------------------------


def _fake_softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    return torch.empty_like(logits)


@_operator(_fake_softmax)
def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature) along `axis`."""
    return _backends.compute_softmax(logits, axis, temperature)


def _fake_softmax_gradient(
    grad_output: Tensor, logits: Tensor, axis: int, temperature: float
) -> Tensor:
    return torch.empty_like(logits)


@_operator(_fake_softmax_gradient)
def softmax_gradient(grad_output: Tensor, logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns the gradient in the logits, where `grad_output` is the gradient in the softmax."""
    return _backends.compute_softmax_gradient(grad_output, logits, axis, temperature)


def _save_logits(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    logits, ctx.axis, ctx.temperature = inputs
    ctx.save_for_backward(logits)


def _softmax_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
    (logits,) = ctx.saved_tensors
    return softmax_gradient(grad_output, logits, ctx.axis, ctx.temperature), None, None


torch.library.register_autograd("seg_loss::softmax", _softmax_backward, setup_context=_save_logits)
torch.library.register_autograd(
    "seg_loss::softmax_gradient", _raise_no_second_order, setup_context=_save_nothing
)
