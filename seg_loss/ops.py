"""The operators as torch sees them: name, shapes for tracing, gradient, and a kernel for each
device.

`loss` calls these; the device of the logits picks the kernel through torch's dispatcher. On the CPU
that is `numba_backend`, imported on the first call. Every operator works per image, so that the
gradient of the loss arrives as one factor per image and the division by D is left to autograd.

The backward pass reads the logits again and normalises them anew: nothing but the inputs is kept,
so training needs no memory beyond the gradient, in three passes over the logits (read; read,
write).
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from seg_loss import checks
from seg_loss.gradient_memory import empty_gradient

_NO_SECOND_ORDER = (
    "seg_loss: expected a first derivative, got a request for a second one (create_graph=True, or "
    "backward through a gradient). Second derivatives are not supported."
)


def _refuse_second_order(context: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(_NO_SECOND_ORDER)


_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])
_library = torch.library.Library("seg_loss", "DEF")  # type: ignore[no-untyped-call]


def _operator(fake: Callable[..., Any]) -> Callable[[_Kernel], _Kernel]:
    """Define `seg_loss::<name of the function>` with the function as its kernel for the CPU.

    `fake` makes the result's shapes and dtypes for tracing. Not `torch.library.custom_op`: its
    wrapper imports all of torch's compiler at the first call, which takes longer than loading our
    kernels.
    """

    def define(kernel: _Kernel) -> _Kernel:
        name = kernel.__name__
        schema = torch.library.infer_schema(kernel, mutates_args=())
        _library.define(  # type: ignore[no-untyped-call]
            name + schema, tags=(torch.Tag.pt2_compliant_tag,)
        )
        _library.impl(name, kernel, "CPU")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"seg_loss::{name}", fake)
        return cast(_Kernel, getattr(torch.ops.seg_loss, name))

    return define


def _nothing_saved(ctx: Any, inputs: Any, output: Any) -> None:
    pass


def map_dtype(logits: Tensor) -> torch.dtype:
    """Dtype of a per-pixel loss: float32, or float64 of float64 logits."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _fake_survey(
    labels: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    num_classes: int,
    ignored: Sequence[int],
) -> tuple[Tensor, Tensor]:
    num_images = labels.shape[0]
    return (
        labels.new_empty(num_images, dtype=torch.int64),
        labels.new_empty(num_images, dtype=torch.float64),
    )


@_operator(_fake_survey)
def survey(
    labels: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    num_classes: int,
    ignored: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Valid pixels (int64 [N]) and their weights (float64 [N]); raises for bad ones."""
    from seg_loss import numba_backend

    if class_weight is not None:
        checks.check_class_weight_values(class_weight)
    found = numba_backend.survey(labels, num_classes, ignored, class_weight, pixel_weight)
    checks.judge(found, labels, pixel_weight, num_classes, ignored)
    return found.valid_pixels, found.weight


def _fake_cross_entropy(logits: Tensor, *_options: Any) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float64)


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
) -> Tensor:
    """The sum of the terms of each image: float64 [N]."""
    from seg_loss import numba_backend

    return numba_backend.cross_entropy(
        logits, labels, class_weight, pixel_weight, ignored, label_smoothing, temperature, max_nll
    )


def _fake_cross_entropy_gradient(
    scale: Tensor, logits: Tensor, *_options: Any
) -> tuple[Tensor, Tensor]:
    return scale.new_empty(logits.shape[0], dtype=torch.float64), torch.empty_like(logits)


@_operator(_fake_cross_entropy_gradient)
def cross_entropy_gradient(
    scale: Tensor,
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    ignored: Sequence[int],
    label_smoothing: float,
    temperature: float,
    max_nll: float,
) -> tuple[Tensor, Tensor]:
    """`cross_entropy`, and its gradient times `scale` [N], like the logits: one read, one write."""
    from seg_loss import numba_backend

    gradient = empty_gradient(logits)
    sums = numba_backend.cross_entropy(
        logits, labels, class_weight, pixel_weight, ignored, label_smoothing, temperature, max_nll,
        gradient=gradient, gradient_scale=scale,
    )  # fmt: skip
    return sums, gradient


def cross_entropy_gradient_into(
    out: Tensor, scale: Tensor, logits: Tensor, *options: Any
) -> Tensor:
    """`cross_entropy_gradient` into memory of the caller's, which may be the logits' own.

    No operator: torch's operators may not alias an argument they write. Readers of `out` that
    autograd holds are told that it changed.
    """
    from seg_loss import numba_backend

    sums = numba_backend.cross_entropy(logits, *options, gradient=out, gradient_scale=scale)
    torch.autograd.graph.increment_version(out)
    return sums


def _fake_pixel_terms(logits: Tensor, labels: Tensor, *_options: Any) -> Tensor:
    return logits.new_empty(labels.shape, dtype=map_dtype(logits))


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
) -> Tensor:
    """The terms themselves, [N, *spatial], 0 where ignored."""
    from seg_loss import numba_backend

    terms = torch.empty(labels.shape, dtype=map_dtype(logits))
    numba_backend.cross_entropy(
        logits, labels, class_weight, pixel_weight, ignored, label_smoothing, temperature, max_nll,
        terms=terms,
    )  # fmt: skip
    return terms


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    logits, labels, class_weight, pixel_weight, *options = inputs
    ctx.save_for_backward(logits, labels, class_weight, pixel_weight)
    ctx.options = options


def _cross_entropy_backward(ctx: Any, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
    _, gradient = cross_entropy_gradient(grad_sums, *ctx.saved_tensors, *ctx.options)
    return gradient, *[None] * 7


def _pixel_terms_backward(ctx: Any, grad_terms: Tensor) -> tuple[Tensor | None, ...]:
    logits, labels, class_weight, pixel_weight = ctx.saved_tensors
    weight = grad_terms if pixel_weight is None else grad_terms * pixel_weight
    ones = grad_terms.new_ones(logits.shape[0], dtype=torch.float64)
    _, gradient = cross_entropy_gradient(ones, logits, labels, class_weight, weight, *ctx.options)
    return gradient, *[None] * 7


torch.library.register_autograd(
    "seg_loss::cross_entropy", _cross_entropy_backward, setup_context=_keep_inputs
)
torch.library.register_autograd(
    "seg_loss::pixel_terms", _pixel_terms_backward, setup_context=_keep_inputs
)
torch.library.register_autograd(
    "seg_loss::cross_entropy_gradient", _refuse_second_order, setup_context=_nothing_saved
)


def _fake_softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    return torch.empty_like(logits)


@_operator(_fake_softmax)
def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """softmax(logits / temperature) along `axis`."""
    from seg_loss import numba_backend

    return numba_backend.softmax(logits, axis, temperature)


def _fake_softmax_gradient(
    upstream: Tensor, logits: Tensor, axis: int, temperature: float
) -> Tensor:
    return torch.empty_like(logits)


@_operator(_fake_softmax_gradient)
def softmax_gradient(upstream: Tensor, logits: Tensor, axis: int, temperature: float) -> Tensor:
    """p (g - sum_c g_c p_c) / temperature, with p computed anew rather than read back rounded."""
    from seg_loss import numba_backend

    return numba_backend.softmax_gradient(upstream, logits, axis, temperature)


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
