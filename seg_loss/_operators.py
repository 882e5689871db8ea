"""The operators as torch sees them: name, shapes for tracing, gradient, a kernel for each device.

`loss` calls these; torch's dispatcher goes by the device of the logits to a backend, imported on
the first call: `numba_backend` on the CPU, `triton_backend` on a GPU.

The gradient is made in the forward pass, for an upstream gradient of 1, when there will be a
backward pass: one read of the logits and one write for both. The backward pass hands it over if the
upstream gradient is 1, which the device finds out for itself, and otherwise fills it anew from the
logits: another read and write, two passes where a forward pass that made no gradient would have
needed one, and never a gradient rounded twice. In a program that torch compiles the forward pass
makes none, because handing over memory that is changed in place would cost the compiler a copy.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from seg_loss import _inputs as checks
from seg_loss import _labels as label_check
from seg_loss._dynamo import eagerly
from seg_loss._inputs import InvalidInput, LossInputs
from seg_loss.cpu.memory import empty_gradient
from seg_loss.upsampling import axes_of

P = ParamSpec("P")
T = TypeVar("T")

# By the type of the device; the keys in upper case are torch's dispatch keys.
BACKENDS = {"cpu": "seg_loss.cpu.backend", "cuda": "seg_loss.gpu.backend"}

_NO_SECOND_ORDER = (
    "seg_loss: expected a first derivative, got a request for a second one (create_graph=True, or "
    "backward through a gradient). Second derivatives are not supported."
)


def backend_of(tensor: Tensor) -> ModuleType:
    """The backend for the tensor's device.

    Raises:
        InvalidInput: for a GPU without Triton.
    """
    try:
        return importlib.import_module(BACKENDS[tensor.device.type])
    except ModuleNotFoundError as missing:
        if missing.name != "triton":
            raise
        got = f"a tensor on {tensor.device} without it"
        fix = "pip install triton, or call .cpu()."
        raise InvalidInput("logits", "Triton to be installed", got, fix) from missing


def _refuse_second_order(context: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(_NO_SECOND_ORDER)


_library = torch.library.Library("seg_loss", "DEF")  # type: ignore[no-untyped-call]


_FIELDS = [field.name for field in fields(LossInputs)]
_NUM_TENSORS = 4  # the first fields: what autograd saves


def _flat(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """As torch's operators take them: the first field by field, if it is `LossInputs`."""
    first, *others = arguments
    if isinstance(first, LossInputs):
        return (*(getattr(first, name) for name in _FIELDS), *others)
    return arguments


def _operator(
    fake: Callable[..., Any], *, mutates: Sequence[str] = ()
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Define `seg_loss::<name of the function>` with the function as its kernel on all devices.

    `fake` makes the result's shapes and dtypes for tracing, of the arguments as torch has them: for
    an `inputs: LossInputs`, which comes first, all its fields. Not `torch.library.custom_op`: its
    wrapper imports all of torch's compiler at the first call, which takes longer than loading our
    kernels.
    """

    def define(kernel: Callable[P, T]) -> Callable[P, T]:
        name, flat_kernel = kernel.__name__, _with_flat_inputs(kernel)
        schema = torch.library.infer_schema(flat_kernel, mutates_args=mutates)
        _library.define(  # type: ignore[no-untyped-call]
            name + schema, tags=(torch.Tag.pt2_compliant_tag,)
        )
        for device in BACKENDS:
            _library.impl(name, flat_kernel, device.upper())  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"seg_loss::{name}", fake)
        operator = getattr(torch.ops.seg_loss, name)

        @functools.wraps(kernel)
        def call(*arguments: P.args, **named: P.kwargs) -> T:
            assert not named, "fakes and gradients know arguments by their places"
            result: T = operator(*_flat(arguments))
            return result

        return call

    return define


def _with_flat_inputs(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, with the fields of its first argument in place of that, if it is `LossInputs`."""
    first, *others = inspect.signature(kernel).parameters.values()
    if first.annotation is not LossInputs:
        return kernel

    def flat_kernel(*arguments: Any) -> Any:
        return kernel(LossInputs(*arguments[: len(_FIELDS)]), *arguments[len(_FIELDS) :])

    places = inspect.signature(LossInputs).parameters.values()
    signature = inspect.signature(kernel).replace(parameters=[*places, *others])
    flat_kernel.__signature__ = signature  # type: ignore[attr-defined]
    return flat_kernel


def _nothing_saved(ctx: Any, inputs: Any, output: Any) -> None:
    pass


# -- the loss --------------------------------------------------------------------------------------


def _fake_cross_entropy(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    with_gradient = others[-1]
    return (
        logits.new_empty((), dtype=checks.map_dtype(logits)),
        logits.new_empty((), dtype=torch.float64),
        torch.empty_like(logits) if with_gradient else logits.new_empty(0),
    )


@_operator(_fake_cross_entropy)
def cross_entropy(inputs: LossInputs, with_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its divisor (float64), and its gradient like the logits, or nothing for it."""
    label_check.raise_deferred()
    logits = inputs.logits
    gradient = empty_gradient(logits) if with_gradient else None
    loss, divisor = backend_of(logits).cross_entropy(inputs, gradient)
    return loss, divisor, logits.new_empty(0) if gradient is None else gradient


@eagerly
def cross_entropy_into(out: Tensor, inputs: LossInputs) -> Tensor:
    """The loss, its gradient in memory of the caller's, which may be the logits' own.

    No operator: torch's operators may not alias an argument they write. Readers of `out` that
    autograd holds are told that it changed.
    """
    label_check.raise_deferred()
    loss: Tensor = backend_of(out).cross_entropy(inputs.as_they_lie(), out)[0]
    torch.autograd.graph.increment_version(out)
    return loss


def _fake_cross_entropy_gradient(logits: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(logits)


@_operator(_fake_cross_entropy_gradient)
def cross_entropy_gradient(inputs: LossInputs, divisor: Tensor, upstream: Tensor) -> Tensor:
    """upstream / divisor * d(sum of the terms) / d(logits), from labels that were checked."""
    gradient = empty_gradient(inputs.logits)
    backend_of(gradient).cross_entropy_gradient(
        inputs, divisor, upstream, gradient, unless_one=False
    )
    return gradient


def _fake_adapt_gradient(*arguments: Any) -> None:
    pass


@_operator(_fake_adapt_gradient, mutates=("gradient",))
def adapt_gradient(inputs: LossInputs, divisor: Tensor, upstream: Tensor, gradient: Tensor) -> None:
    """Make a gradient for an upstream gradient of 1 into `cross_entropy_gradient`, in place."""
    backend_of(gradient).cross_entropy_gradient(
        inputs, divisor, upstream, gradient, unless_one=True
    )


def _keep_inputs(ctx: Any, arguments: tuple[Any, ...], *results: Tensor) -> None:
    """Of arguments that begin with the fields of `LossInputs`; and results, or none."""
    ctx.save_for_backward(*arguments[:_NUM_TENSORS], *results)
    ctx.options = arguments[_NUM_TENSORS : len(_FIELDS)]


def _kept_inputs(ctx: Any) -> tuple[LossInputs, list[Tensor]]:
    saved = ctx.saved_tensors  # once: each reading unpacks them anew
    inputs = LossInputs(*saved[:_NUM_TENSORS], *ctx.options)
    return inputs, list(saved[_NUM_TENSORS:])


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, divisor, gradient = output
    ctx.mark_non_differentiable(divisor, gradient)
    ctx.set_materialize_grads(False)  # no zeros as large as the gradient for its own gradient
    _keep_inputs(ctx, inputs, divisor)
    with_gradient = inputs[-1]
    ctx.gradient = gradient if with_gradient else None


def _cross_entropy_backward(
    ctx: Any, upstream: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    others = (None,) * len(_FIELDS)
    if upstream is None:
        return None, *others
    # Given away once: who backs through the same graph again gets memory of its own. With
    # create_graph the operator is wanted, which refuses a second derivative.
    gradient, ctx.gradient = ctx.gradient, None
    inputs, (divisor,) = _kept_inputs(ctx)
    if gradient is None or torch.is_grad_enabled():
        gradient = cross_entropy_gradient(inputs, divisor, upstream)
    else:
        adapt_gradient(inputs, divisor, upstream, gradient)
    return gradient, *others


torch.library.register_autograd(
    "seg_loss::cross_entropy", _cross_entropy_backward, setup_context=_keep_for_backward
)
torch.library.register_autograd(
    "seg_loss::cross_entropy_gradient", _refuse_second_order, setup_context=_nothing_saved
)


# -- the loss of upsampled scores ------------------------------------------------------------------


def _fake_upsampled_cross_entropy(scores: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    dtype, with_gradient = checks.map_dtype(scores), others[-1]
    gradient = torch.empty_like(scores, dtype=dtype) if with_gradient else None
    nothing = scores.new_empty(0, dtype=dtype)
    return scores.new_empty((), dtype=dtype), nothing if gradient is None else gradient


@_operator(_fake_upsampled_cross_entropy)
def upsampled_cross_entropy(
    inputs: LossInputs, upsampling: Sequence[int], with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient in the loss's dtype, or nothing for it.

    The gradient is as small as the scores: it is kept, and multiplied in the backward pass, before
    it is rounded to the scores' dtype.
    """
    scores, dtype = inputs.logits, checks.map_dtype(inputs.logits)
    gradient = torch.empty_like(scores, dtype=dtype) if with_gradient else None
    loss = _upsampled_cross_entropy(gradient, inputs, upsampling)
    return loss, scores.new_empty(0, dtype=dtype) if gradient is None else gradient


@eagerly
def upsampled_cross_entropy_into(
    out: Tensor, inputs: LossInputs, upsampling: Sequence[int]
) -> Tensor:
    """The loss, its gradient in `out`, which may be the scores themselves."""
    loss = _upsampled_cross_entropy(out, inputs.as_they_lie(), upsampling)
    torch.autograd.graph.increment_version(out)
    return loss


def _upsampled_cross_entropy(
    gradient: Tensor | None, inputs: LossInputs, upsampling: Sequence[int]
) -> Tensor:
    label_check.raise_deferred()
    axes = axes_of(upsampling, inputs.logits.shape[2:], inputs.labels.shape[1:])
    loss: Tensor = backend_of(inputs.logits).upsampled_cross_entropy(inputs, axes, gradient)
    return loss


def _fake_upsampled_gradient(scores: Tensor, gradient: Tensor, upstream: Tensor) -> Tensor:
    return torch.empty_like(scores)


@_operator(_fake_upsampled_gradient)
def upsampled_gradient(scores: Tensor, gradient: Tensor, upstream: Tensor) -> Tensor:
    """upstream * gradient, rounded to the scores' dtype.

    What is 0 stays +0, for an upstream gradient that is negative or infinite too. An operator with
    the scores among its inputs, to refuse a second derivative.
    """
    product = torch.mul(gradient, upstream, out=torch.empty_like(scores))
    return product.masked_fill_(gradient == 0, 0)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, gradient = output
    ctx.mark_non_differentiable(gradient)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], gradient)


def _upsampled_cross_entropy_backward(
    ctx: Any, upstream: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    others = (None,) * (len(_FIELDS) + 1)
    if upstream is None:
        return None, *others
    scores, gradient = ctx.saved_tensors
    return upsampled_gradient(scores, gradient, upstream), *others


torch.library.register_autograd(
    "seg_loss::upsampled_cross_entropy",
    _upsampled_cross_entropy_backward,
    setup_context=_keep_gradient,
)
torch.library.register_autograd(
    "seg_loss::upsampled_gradient", _refuse_second_order, setup_context=_nothing_saved
)


# -- the terms -------------------------------------------------------------------------------------


def _fake_pixel_terms(logits: Tensor, labels: Tensor, *others: Any) -> Tensor:
    return logits.new_empty(labels.shape, dtype=checks.map_dtype(logits))


@_operator(_fake_pixel_terms)
def pixel_terms(inputs: LossInputs) -> Tensor:
    """The terms themselves, [N, *spatial], 0 where ignored."""
    label_check.raise_deferred()
    logits, labels = inputs.logits, inputs.labels
    terms = torch.empty(labels.shape, dtype=checks.map_dtype(logits), device=logits.device)
    backend_of(logits).pixel_terms(inputs, terms)
    return terms


def _keep_for_terms(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _keep_inputs(ctx, inputs)


def _pixel_terms_backward(ctx: Any, grad_terms: Tensor) -> tuple[Tensor | None, ...]:
    inputs, _ = _kept_inputs(ctx)
    weight = inputs.pixel_weight
    inputs = replace(inputs, pixel_weight=grad_terms if weight is None else grad_terms * weight)
    one = grad_terms.new_ones((), dtype=torch.float64)
    return cross_entropy_gradient(inputs, one, one), *[None] * (len(_FIELDS) - 1)


torch.library.register_autograd(
    "seg_loss::pixel_terms", _pixel_terms_backward, setup_context=_keep_for_terms
)


# -- the softmax -----------------------------------------------------------------------------------


def _fake_softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    return torch.empty_like(logits)


@_operator(_fake_softmax)
def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """softmax(logits / temperature) along `axis`."""
    probabilities: Tensor = backend_of(logits).softmax(logits, axis, temperature)
    return probabilities


def _fake_softmax_gradient(
    upstream: Tensor, logits: Tensor, axis: int, temperature: float
) -> Tensor:
    return torch.empty_like(logits)


@_operator(_fake_softmax_gradient)
def softmax_gradient(upstream: Tensor, logits: Tensor, axis: int, temperature: float) -> Tensor:
    """p (g - sum_c g_c p_c) / temperature, with p computed anew rather than read back rounded."""
    backend = backend_of(logits)
    gradient: Tensor = backend.softmax_gradient(upstream, logits, axis, temperature)
    return gradient


def _keep_logits(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    logits, ctx.axis, ctx.temperature = inputs
    ctx.save_for_backward(logits)


def _softmax_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
    (logits,) = ctx.saved_tensors
    return softmax_gradient(upstream, logits, ctx.axis, ctx.temperature), None, None


torch.library.register_autograd("seg_loss::softmax", _softmax_backward, setup_context=_keep_logits)
torch.library.register_autograd(
    "seg_loss::softmax_gradient", _refuse_second_order, setup_context=_nothing_saved
)
