"""Calls of the backends: selects the backend of a tensor and allocates the results.

Each backend is imported on its first use. A function that reads labels first raises the deferred
error of an earlier call. `_operators` makes operators of the functions, `_autograd` and `_compile`
make them differentiable.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from seg_loss import _labels
from seg_loss._errors import InvalidInput
from seg_loss._inputs import LossInputs, loss_dtype
from seg_loss._labels import LabelCount
from seg_loss._maps import empty_maps
from seg_loss.cpu.memory import empty_gradient
from seg_loss.upsampling import Upsampling, axes

P = ParamSpec("P")
T = TypeVar("T")

# By device type. The same names in capitals are torch's dispatch keys.
BACKENDS = {"cpu": "seg_loss.cpu.backend", "cuda": "seg_loss.gpu.backend"}


def backend_of(tensor: Tensor) -> ModuleType:
    """Returns the backend for the tensor's device.

    Raises:
        InvalidInput: for a GPU without Triton.
    """
    name = BACKENDS[tensor.device.type]
    module = sys.modules.get(name)
    if module is not None:
        return module
    try:
        return importlib.import_module(name)
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


def compute_loss(
    inputs: LossInputs, *, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the loss, its divisor, and its gradient if wanted.

    The divisor is float64 [2]: D and 1 / (D temperature).
    """
    _labels.raise_deferred()
    inputs = inputs.resolve_neg()
    gradient = empty_gradient(inputs.logits) if with_gradient else None
    loss, divisor = backend_of(inputs.logits).cross_entropy(inputs, gradient)
    return loss, divisor, gradient


def compute_gradient(
    inputs: LossInputs, divisor: Tensor | None, grad_output: Tensor | None
) -> Tensor:
    """Returns grad_output / D * d(sum of terms) / d(logits), without checking the labels.

    A divisor or `grad_output` of None is 1.
    """
    inputs = inputs.resolve_neg()
    gradient = empty_gradient(inputs.logits)
    backend_of(gradient).cross_entropy_gradient(
        inputs, divisor, grad_output, gradient, skip_if_unit_grad=False
    )
    return gradient


def write_gradient(inputs: LossInputs, divisor: Tensor, out: Tensor) -> None:
    """Writes 1 / D * d(sum of terms) / d(logits) to `out`, which may be the logits themselves."""
    backend_of(out).cross_entropy_gradient(
        inputs.resolve_neg(), divisor, None, out, skip_if_unit_grad=False
    )
    torch.autograd.graph.increment_version(out)


def rescale_gradient_(
    inputs: LossInputs, divisor: Tensor, grad_output: Tensor, gradient: Tensor
) -> None:
    """Replaces a gradient for a `grad_output` of 1 by the one for this `grad_output`, in place."""
    backend_of(gradient).cross_entropy_gradient(
        inputs.resolve_neg(), divisor, grad_output, gradient, skip_if_unit_grad=True
    )


def compute_upsampled_loss(
    inputs: LossInputs, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns the loss of upsampled scores, and its gradient in the loss's dtype if wanted.

    The gradient is as small as the scores: it is stored, multiplied in the backward pass, and only
    then rounded to the scores' dtype if that is another one.
    """
    _labels.raise_deferred()
    inputs = inputs.resolve_neg()
    scores, dtype = inputs.logits, loss_dtype(inputs.logits)
    gradient = torch.empty_like(scores, dtype=dtype) if with_gradient else None
    return backend_of(scores).upsampled_cross_entropy(inputs, gradient), gradient


def scale_upsampled_gradient(
    scores: Tensor, gradient: Tensor, grad_output: Tensor, *, may_overwrite: bool = False
) -> Tensor:
    """Returns grad_output * gradient, rounded to the scores' dtype.

    Zeros stay +0, also for a `grad_output` that is negative or infinite. With `may_overwrite`, the
    result is the gradient itself, multiplied in place, if it has the scores' dtype. Its version is
    incremented, so that autograd raises an error if the graph still uses it.
    """
    if may_overwrite and gradient.dtype == scores.dtype:
        scaled = gradient
        torch.autograd.graph.increment_version(gradient)
    else:
        scaled = torch.empty_like(gradient, dtype=scores.dtype)
    backend_of(scores).scale_gradient(gradient, grad_output, scaled)
    return scaled


def write_loss(inputs: LossInputs, out: Tensor) -> Tensor:
    """Returns the loss and writes its gradient to `out`, which may be the logits themselves.

    The version of `out` is incremented, so that autograd notices the change.
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


def count_labels(inputs: LossInputs) -> LabelCount:
    """Returns what the divisor of several processes adds up, and what is invalid."""
    count: LabelCount = backend_of(inputs.logits).count_labels(inputs.resolve_neg())
    return count


def compute_terms(inputs: LossInputs) -> Tensor:
    """Returns the terms, [N, *spatial], 0 where ignored."""
    _labels.raise_deferred()
    inputs = inputs.resolve_neg()
    logits, labels = inputs.logits, inputs.labels
    terms = torch.empty(labels.shape, dtype=loss_dtype(logits), device=logits.device)
    backend_of(logits).pixel_terms(inputs, terms)
    return terms


def weighted_by(inputs: LossInputs, grad_terms: Tensor) -> LossInputs:
    """Returns the inputs with pixel weights times `grad_terms`.

    Their sum of terms has the gradient that the backward pass of the terms returns.
    """
    weight = inputs.pixel_weight
    return replace(inputs, pixel_weight=grad_terms if weight is None else grad_terms * weight)


def compute_softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature) along `axis`."""
    logits = logits.resolve_neg()
    probabilities: Tensor = backend_of(logits).softmax(logits, axis, temperature)
    return probabilities


def compute_softmax_gradient(
    grad_output: Tensor, logits: Tensor, weight: Tensor | None, axis: int, temperature: float
) -> Tensor:
    """Returns weight * p (g - sum_c g_c p_c) / temperature for g = grad_output.

    p is computed from the logits again, because the stored probabilities are rounded.

    Args:
        grad_output: like the logits.
        logits: any shape.
        weight: the shape of the logits without `axis`; None for 1. Where it is 0 the result is 0,
            whatever the logits are.
        axis: axis of the classes.
        temperature: divides the logits.
    """
    logits, grad_output = logits.resolve_neg(), grad_output.resolve_neg()
    backend = backend_of(logits)
    if weight is not None:
        weight = weight.resolve_neg()
    gradient: Tensor = backend.softmax_gradient(grad_output, logits, weight, axis, temperature)
    return gradient


def compute_maps(
    scores: Tensor,
    size: Sequence[int],
    upsampling: Upsampling | None,
    names: Sequence[str],
    temperature: float,
) -> list[Tensor]:
    """Returns the maps of these names, without labels.

    Args:
        scores: [N, C, *spatial].
        size: spatial size of the maps.
        upsampling: how the scores become that large; None if they are.
        names: names of maps, without repetitions.
        temperature: divides the scores.
    """
    scores = scores.resolve_neg()
    maps = empty_maps(names, scores.shape[1], (scores.shape[0], *size), scores.device)
    grid = None if upsampling is None else axes(upsampling, scores.shape[2:], size)
    if any(values.numel() for values in maps.values()):
        backend_of(scores).predict(scores, grid, temperature, maps)
    return [maps[name] for name in names]
