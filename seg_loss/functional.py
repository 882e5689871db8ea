"""The loss as functions: each checks its arguments and calls `_autograd` or `_compile`.

    nll_p  = logsumexp_c(x_pc / T) - x_p,y_p / T
    term_p = pixel_weight_p * class_weight_y_p * nll_p
    loss   = sum over valid p of term_p / D

With label smoothing e, as torch defines it,

    term_p = pixel_weight_p * ((1 - e) class_weight_y_p nll_p
                               + e / C * sum_c class_weight_c nll_pc)

A pixel is valid unless its label is ignored. Logits of ignored pixels, NaN and infinity included,
never reach the loss, and their gradient is exactly 0.

With an upsampling, x are the upsampled scores, of the labels' height and width. They are never
stored.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from seg_loss import _autograd, _backends, _compile, _distributed, _operators
from seg_loss._divisor import ProcessGroup
from seg_loss._inputs import (
    LossInputs,
    check_axis,
    check_device,
    check_float_dtype,
    check_inputs,
    check_out,
    check_temperature,
    check_tensor,
    loss_options,
)
from seg_loss.probabilities import check_scores, probability_loss_and_gradient
from seg_loss.upsampling import Bilinear, Upsampling, check_upsampling


def spatial_softmax(logits: Tensor, *, axis: int = 1, temperature: float = 1.0) -> Tensor:
    """Returns the probabilities softmax(logits / temperature) along `axis`; differentiable.

    Equal to `torch.softmax(logits / temperature, axis)`, computed in float32, or in float64 for
    float64 logits.

    Args:
        logits: any shape; float32, float16, bfloat16 or float64.
        axis: axis of the classes.
        temperature: divides the logits; above 1 flattens the distribution.

    Returns:
        Probabilities, like `logits` in shape, dtype and memory order. NaN where a logit is NaN or
        +inf, and where all logits are -inf.

    Raises:
        InvalidInput: for another dtype, a missing axis, or a temperature that is not positive.

    >>> spatial_softmax(torch.zeros(1, 4, 1, 1)).flatten().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    check_tensor("logits", logits)
    check_device("logits", logits)
    check_float_dtype("logits", logits)
    temperature = check_temperature(temperature)
    axis = check_axis(axis, logits, "logits have")
    softmax = _differentiable().softmax
    probabilities: Tensor = softmax(logits, axis, temperature)
    return probabilities


def pixel_nll(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int | Sequence[int] = 255,
    temperature: float = 1.0,
    check_labels: str = "raise",
) -> Tensor:
    """Returns the negative log-likelihood of each pixel, 0 where ignored; differentiable.

    Equal to `F.cross_entropy(logits / temperature, labels, reduction="none")`.

    Args:
        logits: [N, C, *spatial].
        labels: [N, *spatial] or [N, 1, *spatial], any integer dtype.
        ignore_index: the label, or labels, of pixels that do not count.
        temperature: divides the logits.
        check_labels: as in `spatial_cross_entropy`.

    Returns:
        [N, *spatial], float32; float64 for float64 logits.

    Raises:
        InvalidInput: if shapes, dtypes or options do not fit, or a label is neither a class nor
            ignored.
    """
    options = loss_options(ignore_index, 0.0, temperature, "none", check_labels)
    return terms_of(check_inputs(logits, labels, None, None, options))


def spatial_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    pixel_weight: Tensor | None = None,
    ignore_index: int | Sequence[int] = 255,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    normalization: str = "valid",
    process_group: ProcessGroup | None = None,
    check_labels: str = "raise",
) -> Tensor:
    """Returns the pixel-wise softmax loss; differentiable in the logits.

    With the defaults, equal to `F.cross_entropy(logits, labels.long(), ignore_index=255)`, except
    that the loss of no valid pixel is 0 and not NaN. The only tensor of the logits' size that is
    stored is the gradient. It is computed together with the loss if the logits require one.

    Args:
        logits: [N, C, *spatial]; float32, float16, bfloat16 or float64. Any strides.
        labels: [N, *spatial] or [N, 1, *spatial]; any integer dtype.
        class_weight: [C], not negative; multiplies the term of each pixel of the class.
        pixel_weight: [N, *spatial], not negative; multiplies the term of each pixel.
        ignore_index: the label, or labels, of pixels that do not count. A value that the labels'
            dtype cannot hold matches no pixel.
        label_smoothing: share of the target that is spread over all classes, from 0 to 1.
        temperature: divides the logits.
        normalization: the divisor D. "valid" is the number of valid pixels, "full" of all pixels,
            "batch" of images (the FCN setup), "none" is 1, "weight" is the sum of the weights of
            the valid pixels.
        process_group: None for a batch of this process alone, or the `ProcessGroup` whose ranks
            have a part of the batch each, such as `torch.distributed.group.WORLD`. D is then that
            of the whole batch. The result is this rank's part of the loss: the sum over the ranks
            is the loss of the whole batch. The gradient is this rank's part of its gradient. All
            ranks call the function, with the same options; the batch of a rank may be empty. An
            error on one rank raises `InvalidInput` on all. `DistributedDataParallel` averages the
            gradients, so that the loss must be multiplied by the number of ranks.
        check_labels: when invalid labels and weights are reported. "raise" reports immediately. On
            a GPU it waits for the label check at the end of the call, except while a CUDA graph is
            captured, where it acts like "defer". "defer" reports at a later call, which then
            computes nothing, or at `check()`: one error a call, the oldest first. "ignore" never
            reports. A pixel with an invalid label counts as ignored; an invalid weight is used as
            it is.

    Returns:
        The loss, a scalar; float32, or float64 for float64 logits. Bitwise repeatable for any
        number of threads.

    Raises:
        InvalidInput: if shapes, dtypes or options do not fit. If a label is neither a class nor
            ignored, the message gives its value, the number of such pixels, and the first index.

    >>> logits = torch.zeros(1, 3, 1, 2)
    >>> labels = torch.tensor([[[2, 255]]], dtype=torch.uint8)
    >>> f"{spatial_cross_entropy(logits, labels):.4f}"  # ln 3, for the one valid pixel
    '1.0986'
    """
    try:
        options = loss_options(
            ignore_index, label_smoothing, temperature, normalization, check_labels
        )
        inputs = check_inputs(logits, labels, class_weight, pixel_weight, options)
    except Exception:
        if process_group is not None:
            _distributed.report_failure(process_group)
        raise
    return loss_of(inputs, process_group)


def upsampled_cross_entropy(
    scores: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    upsampling: Upsampling = Bilinear(),  # noqa: B008 - it is immutable
    pixel_weight: Tensor | None = None,
    ignore_index: int | Sequence[int] = 255,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    normalization: str = "valid",
    process_group: ProcessGroup | None = None,
    check_labels: str = "raise",
) -> Tensor:
    """Returns the loss of upsampled scores, which are never stored; differentiable in the scores.

    With the defaults, equal to
    `spatial_cross_entropy(F.interpolate(scores, labels.shape[1:], mode="bilinear"), labels)`.
    The gradient is summed in a fixed order, so that it is bitwise repeatable. It is computed
    together with the loss if the scores require one, and stored until the backward pass.

    Args:
        scores: [N, C, h, w]; float32, float16, bfloat16 or float64. Any strides.
        labels: [N, H, W] or [N, 1, H, W]; any integer dtype.
        class_weight: as in `spatial_cross_entropy`.
        upsampling: `Bilinear` or `Deconvolution`, from h and w to H and W.
        pixel_weight: [N, H, W]; otherwise as in `spatial_cross_entropy`.
        ignore_index: as in `spatial_cross_entropy`, like the options that follow.
        label_smoothing: as there.
        temperature: as there.
        normalization: as there.
        process_group: as there.
        check_labels: as there.

    Returns:
        The loss, a scalar, as `spatial_cross_entropy` returns it.

    Raises:
        InvalidInput: as `spatial_cross_entropy`, and if the sizes do not fit the upsampling.

    >>> scores = torch.zeros(1, 3, 1, 1)
    >>> labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    >>> f"{upsampled_cross_entropy(scores, labels):.4f}"
    '1.0986'
    """
    try:
        check_upsampling(upsampling)
        options = loss_options(
            ignore_index, label_smoothing, temperature, normalization, check_labels, upsampling
        )
        inputs = check_inputs(scores, labels, class_weight, pixel_weight, options, where="scores")
    except Exception:
        if process_group is not None:
            _distributed.report_failure(process_group)
        raise
    return loss_of(inputs, process_group)


def loss_and_gradient(
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    pixel_weight: Tensor | None = None,
    ignore_index: int | Sequence[int] = 255,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    normalization: str = "valid",
    process_group: ProcessGroup | None = None,
    check_labels: str = "raise",
    upsampling: Upsampling | None = None,
    scores: str = "logits",
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the loss and its gradient in the logits, without autograd.

    The logits are read once and the gradient is written once; with a `process_group` the logits are
    read twice. Arguments, meaning and errors are those of `spatial_cross_entropy`.

    Args:
        logits: [N, C, *spatial]; scores [N, C, h, w] with an upsampling.
        labels: as in `spatial_cross_entropy`, like the arguments that follow.
        class_weight: as there.
        pixel_weight: as there.
        ignore_index: as there.
        label_smoothing: as there.
        temperature: as there.
        normalization: as there.
        process_group: as there.
        check_labels: as there.
        upsampling: None, or how the scores become as large as the labels, as in
            `upsampled_cross_entropy`.
        scores: "probabilities" if the logits are probabilities, as in `probability_cross_entropy`.
            The gradient is then in the probabilities.
        out: memory for the gradient, like the logits. `out=logits` overwrites the logits. If a
            label is invalid, `out` keeps its contents on the CPU; on a GPU it is written before the
            labels have been checked.

    Returns:
        The loss, a scalar, and the gradient, like `logits` (or `out` itself).

    >>> labels = torch.zeros(1, 1, 1, dtype=torch.uint8)
    >>> loss, gradient = loss_and_gradient(torch.zeros(1, 2, 1, 1), labels)
    >>> gradient.flatten().tolist()
    [-0.5, 0.5]
    """
    try:
        options = loss_options(
            ignore_index, label_smoothing, temperature, normalization, check_labels, upsampling
        )
        check_scores(scores, options)
        inputs = check_inputs(logits, labels, class_weight, pixel_weight, options)
    except Exception:
        if process_group is not None:
            _distributed.report_failure(process_group)
        raise
    if out is not None:
        # Not above: Dynamo breaks the graph in `check_out`, and compiles no `try` with a break.
        if process_group is None:
            check_out(out, logits)
        else:
            _distributed.check_out_of_ranks(out, logits, process_group)
    if scores == "probabilities":
        return probability_loss_and_gradient(inputs, out, process_group)
    if process_group is not None and _distributed.has_several_ranks(process_group):
        return _distributed.loss_and_gradient(inputs, process_group, out)
    with torch.no_grad():
        if out is not None and (torch.compiler.is_compiling() or not _needs_copy(inputs, out)):
            return _write_loss(inputs, out), out
        loss, gradient = _differentiable().loss_and_gradient(inputs)
        # No operator writes `out`: torch's modes and subclasses take a copy.
        return loss, gradient.to(logits.dtype) if out is None else out.copy_(gradient)


def loss_of(inputs: LossInputs, process_group: ProcessGroup | None = None) -> Tensor:
    """Returns the loss of checked inputs; differentiable."""
    if process_group is not None:
        return _distributed.cross_entropy(inputs, process_group)
    loss: Tensor = _differentiable().cross_entropy(inputs)
    return loss


def terms_of(inputs: LossInputs) -> Tensor:
    """Returns the terms of checked inputs before any sum, [N, *spatial]; differentiable."""
    terms: Tensor = _differentiable().pixel_terms(inputs)
    return terms


# This is not an operator, which may neither return nor alias an argument that it writes.
_write_loss = _backends.without_dynamo(_backends.write_loss)


def _needs_copy(inputs: LossInputs, out: Tensor) -> bool:
    return _operators.needs_operator(inputs, out) or _autograd.is_transformed()


def _differentiable() -> ModuleType:
    """Returns `_compile` while torch compiles, else `_autograd`, with the same functions."""
    return _compile if _compile.is_compiling() else _autograd
