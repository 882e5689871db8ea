"""The functions of `_backends` as operators, which torch can compile, export and trace.

An operator has a schema, a fake implementation, and a kernel per device, which torch's dispatcher
selects by the logits. `_autograd` and `_compile` make the functions differentiable.

A call of an operator takes several times the host time of the function itself. Therefore each
function here calls the operator only where `needs_operator` returns True.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, get_args

import torch
from torch import Tensor

from seg_loss import _backends
from seg_loss._inputs import LossInputs, LossOptions, loss_dtype
from seg_loss._maps import empty_maps
from seg_loss.upsampling import decode, encode

P = ParamSpec("P")
T = TypeVar("T")


def needs_operator(*arguments: Any) -> bool:
    """Returns whether a call must be an operator, which torch can record or replace.

    That is so while torch compiles, exports or traces a program, in its dispatch modes, for tensors
    without memory, for subclasses of Tensor with a `__torch_dispatch__`, and for the batches of
    gradients of `torch.autograd.grad` with `is_grads_batched`.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()  # functionalize: Functions lower the others
        or torch._C._get_tracing_state() is not None
    ):
        return True
    for value in arguments:
        if not isinstance(value, LossInputs):
            if isinstance(value, Tensor) and _is_special(value):
                return True
        elif type(value.logits) is Tensor is type(value.labels) and not value.is_weighted:
            if value.logits.is_meta:  # the usual case, in which a call of `_is_special` is saved
                return True
        elif any(tensor is not None and _is_special(tensor) for tensor in value.tensors):
            return True
    return False


def _is_special(tensor: Tensor) -> bool:
    return type(tensor).__torch_dispatch__ is not _DISABLED or tensor.is_meta or _is_batched(tensor)


def is_batched(value: object) -> bool:
    """Returns whether the value is a batch of gradients."""
    return isinstance(value, Tensor) and _is_batched(value)


_DISABLED = torch._C._disabled_torch_dispatch_impl
_is_batched = torch._C._functorch.is_legacy_batchedtensor


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


INPUTS = list(inspect.signature(_schema_of_inputs).parameters.values())


def flatten(inputs: LossInputs) -> tuple[Any, ...]:
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


def unflatten(arguments: Sequence[Any]) -> LossInputs:
    """Returns the `LossInputs` that `flatten` made the first arguments of."""
    logits, labels, class_weight, pixel_weight, *values = arguments[: len(INPUTS)]
    if labels.dtype == torch.uint64:
        values[0] = [value % (1 << 64) for value in values[0]]
    values[5] = decode(values[5])
    return LossInputs(logits, labels, class_weight, pixel_weight, LossOptions(*values))


_library = torch.library.Library("seg_loss", "DEF")  # type: ignore[no-untyped-call]


def define_operator(fake: Callable[..., Any]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Defines the operator `seg_loss::<name of the function>`, the same on all devices.

    An argument `inputs: LossInputs`, which must come first, becomes the arguments of
    `_schema_of_inputs`; a result of None becomes an empty tensor. `fake` takes the operator's
    arguments and returns tensors of the result's shapes and dtypes. `torch.library.custom_op` is
    not used: at the first call it imports torch's compiler, which takes longer than loading the
    kernels.
    """

    def define(function: Callable[P, T]) -> Callable[P, T]:
        name, kernel = function.__name__, _with_flat_inputs(function)
        schema = torch.library.infer_schema(kernel, mutates_args=())
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
            if not needs_operator(*arguments):
                return function(*arguments, **keywords)
            first, *others = arguments
            flat = flatten(first) if isinstance(first, LossInputs) else (first,)
            result: T = operator(*flat, *others)
            return result

        return call

    return define


def _with_flat_inputs(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)
    first, *others = signature.parameters.values()
    if first.annotation is not LossInputs:
        return function

    def kernel(*arguments: Any) -> Any:
        results = function(unflatten(arguments), *arguments[len(INPUTS) :])
        if isinstance(results, Tensor):
            return results
        return tuple(results[0].new_empty(0) if one is None else one for one in results)

    returns = signature.return_annotation
    if returns is not Tensor:  # an operator cannot return None
        returns = tuple[(Tensor,) * len(get_args(returns))]  # type: ignore[misc]
    signature = signature.replace(parameters=[*INPUTS, *others], return_annotation=returns)
    kernel.__signature__ = signature  # type: ignore[attr-defined]
    return kernel


# -- the loss --------------------------------------------------------------------------------------


def _fake_cross_entropy(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    with_gradient = others[-1]
    return (
        logits.new_empty((), dtype=loss_dtype(logits)),
        logits.new_empty((2,), dtype=torch.float64),
        torch.empty_like(logits)
        if with_gradient
        else logits.new_empty(0, dtype=loss_dtype(logits)),
    )


@define_operator(_fake_cross_entropy)
def full_size_cross_entropy(
    inputs: LossInputs, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the loss, its divisor, and its gradient if it is wanted."""
    return _backends.compute_loss(inputs, with_gradient=with_gradient)


def _fake_gradient(logits: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(logits)


@define_operator(_fake_gradient)
def cross_entropy_gradient(
    inputs: LossInputs, divisor: Tensor | None, grad_output: Tensor | None
) -> Tensor:
    """Returns grad_output / D * d(sum of terms) / d(logits), without checking the labels."""
    return _backends.compute_gradient(inputs, divisor, grad_output)


# -- the loss of upsampled scores ------------------------------------------------------------------


def _fake_upsampled_cross_entropy(scores: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    dtype, with_gradient = loss_dtype(scores), others[-1]
    gradient = torch.empty_like(scores, dtype=dtype) if with_gradient else None
    nothing = scores.new_empty(0, dtype=dtype)
    return scores.new_empty((), dtype=dtype), nothing if gradient is None else gradient


@define_operator(_fake_upsampled_cross_entropy)
def upsampled_cross_entropy(
    inputs: LossInputs, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns the loss, and its gradient in the loss's dtype if it is wanted."""
    return _backends.compute_upsampled_loss(inputs, with_gradient=with_gradient)


@define_operator(_fake_gradient)
def upsampled_gradient(inputs: LossInputs, gradient: Tensor, grad_output: Tensor) -> Tensor:
    """Returns grad_output * gradient, rounded to the scores' dtype.

    The derivative of this operator needs all inputs.
    """
    return _backends.scale_upsampled_gradient(inputs.logits, gradient, grad_output)


# -- the terms -------------------------------------------------------------------------------------


def _fake_pixel_terms(logits: Tensor, labels: Tensor, *others: Any) -> Tensor:
    return logits.new_empty(labels.shape, dtype=loss_dtype(logits))


@define_operator(_fake_pixel_terms)
def pixel_terms(inputs: LossInputs) -> Tensor:
    """Returns the terms, [N, *spatial], 0 where ignored."""
    return _backends.compute_terms(inputs)


# -- the softmax -----------------------------------------------------------------------------------


def _fake_softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    return torch.empty_like(logits)


@define_operator(_fake_softmax)
def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature) along `axis`."""
    return _backends.compute_softmax(logits, axis, temperature)


def _fake_softmax_gradient(
    grad_output: Tensor, logits: Tensor, weight: Tensor | None, axis: int, temperature: float
) -> Tensor:
    return torch.empty_like(logits)


@define_operator(_fake_softmax_gradient)
def softmax_gradient(
    grad_output: Tensor, logits: Tensor, weight: Tensor | None, axis: int, temperature: float
) -> Tensor:
    """Returns weight * p (g - sum_c g_c p_c) / temperature for g = grad_output."""
    return _backends.compute_softmax_gradient(grad_output, logits, weight, axis, temperature)


# -- the maps without labels -----------------------------------------------------------------------


def _fake_predict(
    scores: Tensor, size: Sequence[int], upsampling: Sequence[int], names: str, temperature: float
) -> list[Tensor]:
    shape = scores.shape[0], *size
    wanted = names.split(",") if names else []
    maps = empty_maps(wanted, scores.shape[1], shape, scores.device)
    return [maps[name] for name in wanted]


@define_operator(_fake_predict)
def predict(
    scores: Tensor, size: Sequence[int], upsampling: Sequence[int], names: str, temperature: float
) -> list[Tensor]:
    """Returns the maps of these names, joined by commas, of the spatial size given."""
    wanted = names.split(",") if names else []
    return _backends.compute_maps(scores, size, decode(upsampling), wanted, temperature)
