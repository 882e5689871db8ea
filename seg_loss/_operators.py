"""The operators as torch sees them: schema, fake implementation, gradient, a kernel per device.

`functional` calls these functions. torch's dispatcher selects the backend by the device of the
logits: `cpu.backend` or `gpu.backend`, each imported on its first call.

If there will be a backward pass, the forward pass computes the gradient too, for a `grad_output` of
1: one read of the logits and one write serve both. The backward pass returns that gradient if
`grad_output` is 1, which is checked on the device, and otherwise computes it again from the logits,
so that a gradient is never rounded twice. In a program compiled by torch the forward pass computes
no gradient, because returning a buffer mutated in place would force Inductor to copy it.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from seg_loss import _labels
from seg_loss._errors import InvalidInput
from seg_loss._inputs import LossInputs, LossOptions, loss_dtype
from seg_loss.cpu.memory import empty_gradient
from seg_loss.upsampling import decode, encode

P = ParamSpec("P")
T = TypeVar("T")

# By device type. The same names in capitals are torch's dispatch keys.
BACKENDS = {"cpu": "seg_loss.cpu.backend", "cuda": "seg_loss.gpu.backend"}

_NO_SECOND_ORDER = (
    "seg_loss: expected a first derivative, got a request for a second one (create_graph=True, or "
    "backward through a gradient). Second derivatives are not supported."
)


def backend_of(tensor: Tensor) -> ModuleType:
    """Returns the backend for the tensor's device.

    Raises:
        InvalidInput: for a GPU without Triton.
    """
    try:
        return importlib.import_module(BACKENDS[tensor.device.type])
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        got = f"a tensor on {tensor.device} without it"
        fix = "pip install triton, or call .cpu()."
        raise InvalidInput("logits", "Triton to be installed", got, fix) from error


def without_dynamo(function: Callable[P, T]) -> Callable[P, T]:
    """Disables Dynamo for functions that are not custom operators.

    `torch.compiler.disable` alone would import torch's compiler, which takes two seconds.
    """
    disabled: Callable[P, T] | None = None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal disabled
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if disabled is None:
            disabled = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
        return disabled(*args, **kwargs)

    return call


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
        inputs.ignored,
        options.label_smoothing,
        options.temperature,
        options.normalization,
        options.check_labels,
        encode(options.upsampling),
        options.max_nll,
        options.has_divisor_floor,
    )


def _unflatten(arguments: Sequence[Any]) -> LossInputs:
    """Returns the `LossInputs` that `_flatten` made the first arguments of."""
    logits, labels, class_weight, pixel_weight, *values = arguments[: len(_INPUTS)]
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
        for device in BACKENDS:
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
    raise NotImplementedError(_NO_SECOND_ORDER)


# -- the loss --------------------------------------------------------------------------------------


def cross_entropy(inputs: LossInputs, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Returns the loss, differentiable, and its gradient or an empty tensor.

    The gradient is like the logits. The gradient of upsampled scores has the loss's dtype.
    """
    if inputs.options.upsampling is not None:
        return upsampled_cross_entropy(inputs, with_gradient)
    loss, _, gradient = full_size_cross_entropy(
        inputs, with_gradient and not torch.compiler.is_compiling()
    )
    return loss, gradient


@without_dynamo
def cross_entropy_into(out: Tensor, inputs: LossInputs) -> Tensor:
    """Returns the loss and writes its gradient to `out`, which may be the logits themselves.

    This is no operator, because a torch operator may not return or alias an argument that it
    writes. Autograd is told that `out` has changed.
    """
    _labels.raise_deferred()
    backend, inputs = backend_of(out), inputs.resolve_neg()
    loss: Tensor
    if inputs.options.upsampling is not None:
        loss = backend.upsampled_cross_entropy(inputs, out)
    else:
        loss, _ = backend.cross_entropy(inputs, out)
    torch.autograd.graph.increment_version(out)
    return loss


def _fake_cross_entropy(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    with_gradient = others[-1]
    return (
        logits.new_empty((), dtype=loss_dtype(logits)),
        logits.new_empty((), dtype=torch.float64),
        torch.empty_like(logits) if with_gradient else logits.new_empty(0),
    )


@_operator(_fake_cross_entropy)
def full_size_cross_entropy(
    inputs: LossInputs, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the loss, its divisor in float64, and its gradient or an empty tensor."""
    _labels.raise_deferred()
    logits = inputs.logits
    gradient = empty_gradient(logits) if with_gradient else None
    loss, divisor = backend_of(logits).cross_entropy(inputs, gradient)
    return loss, divisor, logits.new_empty(0) if gradient is None else gradient


def _fake_cross_entropy_gradient(logits: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(logits)


@_operator(_fake_cross_entropy_gradient)
def cross_entropy_gradient(inputs: LossInputs, divisor: Tensor, grad_output: Tensor) -> Tensor:
    """Returns grad_output / divisor * d(sum of terms) / d(logits), without checking the labels."""
    gradient = empty_gradient(inputs.logits)
    backend_of(gradient).cross_entropy_gradient(
        inputs, divisor, grad_output, gradient, skip_if_unit_grad=False
    )
    return gradient


def _fake_rescale_gradient_(*arguments: Any) -> None:
    pass


@_operator(_fake_rescale_gradient_, mutates=("gradient",))
def rescale_gradient_(
    inputs: LossInputs, divisor: Tensor, grad_output: Tensor, gradient: Tensor
) -> None:
    """Replaces a gradient for a `grad_output` of 1 by the one for this `grad_output`, in place."""
    backend_of(gradient).cross_entropy_gradient(
        inputs, divisor, grad_output, gradient, skip_if_unit_grad=True
    )


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
    # The gradient is handed out once. A second backward pass through the graph allocates its own.
    # With create_graph the operator is called, so that its backward refuses a second derivative.
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
    """Returns the loss, and its gradient in the loss's dtype or an empty tensor.

    The gradient is as small as the scores: it is stored, multiplied in the backward pass, and only
    then rounded to the scores' dtype.
    """
    _labels.raise_deferred()
    scores, dtype = inputs.logits, loss_dtype(inputs.logits)
    gradient = torch.empty_like(scores, dtype=dtype) if with_gradient else None
    loss: Tensor = backend_of(scores).upsampled_cross_entropy(inputs, gradient)
    return loss, scores.new_empty(0, dtype=dtype) if gradient is None else gradient


def _fake_upsampled_gradient(scores: Tensor, gradient: Tensor, grad_output: Tensor) -> Tensor:
    return torch.empty_like(scores)


@_operator(_fake_upsampled_gradient)
def upsampled_gradient(scores: Tensor, gradient: Tensor, grad_output: Tensor) -> Tensor:
    """Returns grad_output * gradient, rounded to the scores' dtype.

    Zeros stay +0, also for a `grad_output` that is negative or infinite. The scores are an argument
    so that autograd reaches this operator, which refuses a second derivative.
    """
    product = torch.mul(gradient, grad_output, out=torch.empty_like(scores))
    return product.masked_fill_(gradient == 0, 0)


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
    _labels.raise_deferred()
    logits, labels = inputs.logits, inputs.labels
    terms = torch.empty(labels.shape, dtype=loss_dtype(logits), device=logits.device)
    backend_of(logits).pixel_terms(inputs, terms)
    return terms


def _save_for_terms(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _save_inputs(ctx, inputs)


def _pixel_terms_backward(ctx: Any, grad_terms: Tensor) -> tuple[Tensor | None, ...]:
    inputs, _ = _saved_inputs(ctx)
    weight = inputs.pixel_weight
    inputs = replace(inputs, pixel_weight=grad_terms if weight is None else grad_terms * weight)
    one = grad_terms.new_ones((), dtype=torch.float64)
    return cross_entropy_gradient(inputs, one, one), *[None] * (len(_INPUTS) - 1)


torch.library.register_autograd(
    "seg_loss::pixel_terms", _pixel_terms_backward, setup_context=_save_for_terms
)


# -- the softmax -----------------------------------------------------------------------------------


def _fake_softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    return torch.empty_like(logits)


@_operator(_fake_softmax)
def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature) along `axis`."""
    probabilities: Tensor = backend_of(logits).softmax(logits, axis, temperature)
    return probabilities


def _fake_softmax_gradient(
    grad_output: Tensor, logits: Tensor, axis: int, temperature: float
) -> Tensor:
    return torch.empty_like(logits)


@_operator(_fake_softmax_gradient)
def softmax_gradient(grad_output: Tensor, logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns p (g - sum_c g_c p_c) / temperature for g = grad_output.

    p is computed from the logits again, because the stored probabilities are rounded.
    """
    backend = backend_of(logits)
    gradient: Tensor = backend.softmax_gradient(grad_output, logits, axis, temperature)
    return gradient


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
