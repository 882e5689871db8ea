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

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from seg_loss import checks, label_check
from seg_loss.checks import InvalidInput
from seg_loss.eager import eagerly
from seg_loss.gradient_memory import empty_gradient
from seg_loss.upsampling import axes_of

# By the type of the device; the keys in upper case are torch's dispatch keys.
BACKENDS = {"cpu": "seg_loss.numba_backend", "cuda": "seg_loss.triton_backend"}

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


def _operator(
    fake: Callable[..., Any], *, mutates: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define `seg_loss::<name of the function>` with the function as its kernel on all devices.

    `fake` makes the result's shapes and dtypes for tracing. Not `torch.library.custom_op`: its
    wrapper imports all of torch's compiler at the first call, which takes longer than loading our
    kernels.
    """

    def define(kernel: Callable[..., Any]) -> Callable[..., Any]:
        name = kernel.__name__
        schema = torch.library.infer_schema(kernel, mutates_args=mutates)
        _library.define(  # type: ignore[no-untyped-call]
            name + schema, tags=(torch.Tag.pt2_compliant_tag,)
        )
        for device in BACKENDS:
            _library.impl(name, kernel, device.upper())  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"seg_loss::{name}", fake)
        return cast(Callable[..., Any], getattr(torch.ops.seg_loss, name))

    return define


def _nothing_saved(ctx: Any, inputs: Any, output: Any) -> None:
    pass


# -- the loss --------------------------------------------------------------------------------------


def _fake_cross_entropy(logits: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    with_gradient = options[-1]
    return (
        logits.new_empty((), dtype=checks.map_dtype(logits)),
        logits.new_empty((), dtype=torch.float64),
        torch.empty_like(logits) if with_gradient else logits.new_empty(0),
    )


@_operator(_fake_cross_entropy)
def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignored: Sequence[int],
    label_smoothing: float,
    temperature: float,
    max_nll: float,
    normalization: str,
    check_labels: str,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its divisor (float64), and its gradient like the logits, or nothing for it."""
    label_check.raise_deferred()
    gradient = empty_gradient(logits) if with_gradient else None
    loss, divisor = backend_of(logits).cross_entropy(
        logits, labels, class_weight, pixel_weight, ignored, label_smoothing, temperature, max_nll,
        normalization, check_labels, gradient,
    )  # fmt: skip
    return loss, divisor, logits.new_empty(0) if gradient is None else gradient


@eagerly
def cross_entropy_into(out: Tensor, logits: Tensor, *options: Any) -> Tensor:
    """`cross_entropy` with its gradient in memory of the caller's, which may be the logits' own.

    No operator: torch's operators may not alias an argument they write. Readers of `out` that
    autograd holds are told that it changed.
    """
    label_check.raise_deferred()
    loss, _ = backend_of(logits).cross_entropy(logits, *options, out)
    torch.autograd.graph.increment_version(out)
    return cast(Tensor, loss)


def _fake_cross_entropy_gradient(
    upstream: Tensor, divisor: Tensor, logits: Tensor, *options: Any
) -> Tensor:
    return torch.empty_like(logits)


@_operator(_fake_cross_entropy_gradient)
def cross_entropy_gradient(
    upstream: Tensor,
    divisor: Tensor,
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignored: Sequence[int],
    label_smoothing: float,
    temperature: float,
    max_nll: float,
) -> Tensor:
    """upstream / divisor * d(sum of the terms) / d(logits), from labels that were checked."""
    gradient = empty_gradient(logits)
    backend_of(logits).cross_entropy_gradient(
        gradient, upstream, divisor, logits, labels, class_weight, pixel_weight, ignored,
        label_smoothing, temperature, max_nll, unless_one=False,
    )  # fmt: skip
    return gradient


def _fake_adapt_gradient(gradient: Tensor, *options: Any) -> None:
    pass


@_operator(_fake_adapt_gradient, mutates=("gradient",))
def adapt_gradient(
    gradient: Tensor,
    upstream: Tensor,
    divisor: Tensor,
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignored: Sequence[int],
    label_smoothing: float,
    temperature: float,
    max_nll: float,
) -> None:
    """Make a gradient for an upstream gradient of 1 into `cross_entropy_gradient`, in place."""
    backend_of(logits).cross_entropy_gradient(
        gradient, upstream, divisor, logits, labels, class_weight, pixel_weight, ignored,
        label_smoothing, temperature, max_nll, unless_one=True,
    )  # fmt: skip


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, labels, class_weight, pixel_weight, *options, _, _, with_gradient = inputs
    _, divisor, gradient = output
    ctx.mark_non_differentiable(divisor, gradient)
    ctx.set_materialize_grads(False)  # no zeros as large as the gradient for its own gradient
    ctx.save_for_backward(divisor, logits, labels, class_weight, pixel_weight)
    ctx.options = options
    ctx.gradient = gradient if with_gradient else None


def _cross_entropy_backward(
    ctx: Any, upstream: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 11
    # Given away once: who backs through the same graph again gets memory of its own. With
    # create_graph the operator is wanted, which refuses a second derivative.
    gradient, ctx.gradient = ctx.gradient, None
    if gradient is None or torch.is_grad_enabled():
        gradient = cross_entropy_gradient(upstream, *ctx.saved_tensors, *ctx.options)
    else:
        adapt_gradient(gradient, upstream, *ctx.saved_tensors, *ctx.options)
    return gradient, *[None] * 10


torch.library.register_autograd(
    "seg_loss::cross_entropy", _cross_entropy_backward, setup_context=_keep_for_backward
)
torch.library.register_autograd(
    "seg_loss::cross_entropy_gradient", _refuse_second_order, setup_context=_nothing_saved
)


# -- the loss of upsampled scores ------------------------------------------------------------------


def _fake_upsampled_cross_entropy(scores: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    dtype = checks.map_dtype(scores)
    gradient = torch.empty_like(scores, dtype=dtype) if options[-1] else None
    nothing = scores.new_empty(0, dtype=dtype)
    return scores.new_empty((), dtype=dtype), nothing if gradient is None else gradient


@_operator(_fake_upsampled_cross_entropy)
def upsampled_cross_entropy(
    scores: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignored: Sequence[int],
    label_smoothing: float,
    temperature: float,
    max_nll: float,
    normalization: str,
    check_labels: str,
    upsampling: Sequence[int],
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient in the loss's dtype, or nothing for it.

    The gradient is as small as the scores: it is kept, and multiplied in the backward pass, before
    it is rounded to the scores' dtype.
    """
    dtype = checks.map_dtype(scores)
    gradient = torch.empty_like(scores, dtype=dtype) if with_gradient else None
    loss = _upsampled_cross_entropy(
        gradient, scores, labels, class_weight, pixel_weight, ignored,
        label_smoothing, temperature, max_nll, normalization, check_labels, upsampling,
    )  # fmt: skip
    return loss, scores.new_empty(0, dtype=dtype) if gradient is None else gradient


@eagerly
def upsampled_cross_entropy_into(out: Tensor, scores: Tensor, *options: Any) -> Tensor:
    """`upsampled_cross_entropy` with its gradient in `out`, which may be the scores themselves."""
    loss = _upsampled_cross_entropy(out, scores, *options)
    torch.autograd.graph.increment_version(out)
    return loss


def _upsampled_cross_entropy(
    gradient: Tensor | None, scores: Tensor, labels: Tensor, *options: Any
) -> Tensor:
    *options, upsampling = options  # type: ignore[assignment]
    label_check.raise_deferred()
    axes = axes_of(upsampling, scores.shape[2:], labels.shape[1:])
    loss = backend_of(scores).upsampled_cross_entropy(scores, labels, *options, axes, gradient)
    return cast(Tensor, loss)


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
    gradient = None if upstream is None else upsampled_gradient(*ctx.saved_tensors, upstream)
    return gradient, *[None] * 11


torch.library.register_autograd(
    "seg_loss::upsampled_cross_entropy",
    _upsampled_cross_entropy_backward,
    setup_context=_keep_gradient,
)
torch.library.register_autograd(
    "seg_loss::upsampled_gradient", _refuse_second_order, setup_context=_nothing_saved
)


# -- the terms -------------------------------------------------------------------------------------


def _fake_pixel_terms(logits: Tensor, labels: Tensor, *options: Any) -> Tensor:
    return logits.new_empty(labels.shape, dtype=checks.map_dtype(logits))


@_operator(_fake_pixel_terms)
def pixel_terms(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignored: Sequence[int],
    label_smoothing: float,
    temperature: float,
    max_nll: float,
    check_labels: str,
) -> Tensor:
    """The terms themselves, [N, *spatial], 0 where ignored."""
    label_check.raise_deferred()
    terms = torch.empty(labels.shape, dtype=checks.map_dtype(logits), device=logits.device)
    backend_of(logits).pixel_terms(
        terms, logits, labels, class_weight, pixel_weight, ignored, label_smoothing, temperature,
        max_nll, check_labels,
    )  # fmt: skip
    return terms


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    logits, labels, class_weight, pixel_weight, *options, _ = inputs
    ctx.save_for_backward(logits, labels, class_weight, pixel_weight)
    ctx.options = options


def _pixel_terms_backward(ctx: Any, grad_terms: Tensor) -> tuple[Tensor | None, ...]:
    logits, labels, class_weight, pixel_weight = ctx.saved_tensors
    weight = grad_terms if pixel_weight is None else grad_terms * pixel_weight
    one = grad_terms.new_ones((), dtype=torch.float64)
    gradient = cross_entropy_gradient(one, one, logits, labels, class_weight, weight, *ctx.options)
    return gradient, *[None] * 8


torch.library.register_autograd(
    "seg_loss::pixel_terms", _pixel_terms_backward, setup_context=_keep_inputs
)


# -- the softmax -----------------------------------------------------------------------------------


def _fake_softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    return torch.empty_like(logits)


@_operator(_fake_softmax)
def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """softmax(logits / temperature) along `axis`."""
    return cast(Tensor, backend_of(logits).softmax(logits, axis, temperature))


def _fake_softmax_gradient(
    upstream: Tensor, logits: Tensor, axis: int, temperature: float
) -> Tensor:
    return torch.empty_like(logits)


@_operator(_fake_softmax_gradient)
def softmax_gradient(upstream: Tensor, logits: Tensor, axis: int, temperature: float) -> Tensor:
    """p (g - sum_c g_c p_c) / temperature, with p computed anew rather than read back rounded."""
    backend = backend_of(logits)
    return cast(Tensor, backend.softmax_gradient(upstream, logits, axis, temperature))


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
