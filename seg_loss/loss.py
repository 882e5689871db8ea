"""The loss as functions: check, survey the labels, sum the terms, divide. The next stop is `ops`.

    nll_p  = logsumexp_c(x_pc / T) - x_p,y_p / T
    term_p = pixel_weight_p * class_weight_y_p * nll_p
    loss   = sum over valid p of term_p / D

With label smoothing e, as torch defines it,

    term_p = pixel_weight_p * ((1 - e) class_weight_y_p nll_p + e / C * sum_c class_weight_c
    nll_pc).

A pixel is valid unless its label is ignored. What an ignored pixel's logits hold, NaN and inf too,
never reaches the loss or the gradient, which is exactly 0 there.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seg_loss import checks, ops
from seg_loss.checks import LossInputs
from seg_loss.normalization import divisor


def spatial_softmax(logits: Tensor, *, axis: int = 1, temperature: float = 1.0) -> Tensor:
    """Probabilities softmax(logits / temperature) along `axis`; differentiable.

    Equal to `torch.softmax(logits / temperature, axis)`, computed in float32 (float64 of float64).

    Args:
        logits: any shape; float32, float16, bfloat16 or float64.
        axis: of the classes.
        temperature: above 1 flattens the distribution.

    Returns:
        Like `logits`, memory order included. NaN where a logit is NaN or +inf, or all are -inf.

    Raises:
        InvalidInput: for another dtype, a missing axis, or a temperature that is not positive.

    >>> spatial_softmax(torch.zeros(1, 4, 1, 1)).flatten().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    if not isinstance(logits, Tensor):
        raise checks.InvalidInput("logits", "a torch.Tensor", type(logits).__name__)
    checks.check_device("logits", logits)
    checks.check_float_dtype("logits", logits)
    checks.check_temperature(temperature)
    if not (isinstance(axis, int) and -logits.ndim <= axis < logits.ndim):
        expected = f"an axis of the {logits.ndim} that logits have"
        raise checks.InvalidInput("axis", expected, repr(axis))
    return ops.softmax(logits, axis % logits.ndim, float(temperature))


def pixel_nll(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int | Sequence[int] = 255,
    temperature: float = 1.0,
) -> Tensor:
    """The negative log-likelihood of each pixel, 0 where ignored; differentiable in the logits.

    Equal to `F.cross_entropy(logits / temperature, labels, reduction="none")`.

    Args:
        logits: [N, C, *spatial].
        labels: [N, *spatial] or [N, 1, *spatial], any integer dtype.
        ignore_index: the label, or labels, of pixels that do not count.
        temperature: divides the logits.

    Returns:
        [N, *spatial], float32; float64 of float64 logits.

    Raises:
        InvalidInput: for what does not fit, and for labels that are neither a class nor ignored.
    """
    inputs = checks.loss_inputs(
        logits,
        labels,
        None,
        pixel_weight=None,
        ignore_index=ignore_index,
        label_smoothing=0.0,
        temperature=temperature,
        normalization="none",
    )
    return pixel_terms_of(inputs)


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
) -> Tensor:
    """The pixel-wise softmax loss; differentiable in the logits.

    Equal to `F.cross_entropy(logits / temperature, labels.long(), ignore_index=255)` for the
    defaults, but 0 where torch's is NaN: with no valid pixel. No tensor of the logits' size is
    stored; the logits are read once here and once more in the backward pass.

    Args:
        logits: [N, C, *spatial]; float32, float16, bfloat16 or float64. Any strides.
        labels: [N, *spatial] or [N, 1, *spatial]; uint8, int8, int16, int32 or int64.
        class_weight: [C], not negative; the factor of a pixel is that of its true class.
        pixel_weight: [N, *spatial], not negative, the factor of each pixel.
        ignore_index: the label, or labels, of pixels that do not count. A value that the labels'
        dtype
            cannot hold matches no pixel.
        label_smoothing: from 0 to 1.
        temperature: divides the logits.
        normalization: what divides the sum: "valid", the valid pixels; "full", all pixels; "batch",
        the
            images (the FCN set-up); "none", 1; "weight", the weights of the valid pixels.

    Returns:
        The loss, a scalar; float32, or float64 of float64 logits. Bitwise repeatable, whatever the
        number of threads.

    Raises:
        InvalidInput: for what does not fit, and for labels that are neither a class nor ignored:
        with
            the value, how many, and where the first is.

    >>> logits = torch.zeros(1, 3, 1, 2)
    >>> labels = torch.tensor([[[2, 255]]], dtype=torch.uint8)
    >>> f"{spatial_cross_entropy(logits, labels):.4f}"  # ln 3, of the one pixel that counts
    '1.0986'
    """
    inputs = checks.loss_inputs(
        logits,
        labels,
        class_weight,
        pixel_weight=pixel_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        normalization=normalization,
    )
    return loss_of(inputs)


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
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by the logits, in one read of the logits and one write of the
    gradient.

    Arguments, meaning and errors are those of `spatial_cross_entropy`; autograd is not involved.

    Args:
        out: memory for the gradient, like the logits. `out=logits` overwrites the logits.

    Returns:
        The loss, a scalar, and the gradient, like `logits` (or `out` itself).

    >>> labels = torch.zeros(1, 1, 1, dtype=torch.uint8)
    >>> loss, gradient = loss_and_gradient(torch.zeros(1, 2, 1, 1), labels)
    >>> gradient.flatten().tolist()
    [-0.5, 0.5]
    """
    inputs = checks.loss_inputs(
        logits,
        labels,
        class_weight,
        pixel_weight=pixel_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        normalization=normalization,
    )
    with torch.no_grad():
        count = divisor_of(inputs)
        scale = (1 / count).expand(logits.shape[0])
        tensors = (logits, inputs.labels, class_weight, inputs.pixel_weight)
        options = (inputs.ignored, inputs.label_smoothing, inputs.temperature, math.inf)
        if out is None:
            sums, gradient = ops.cross_entropy_gradient(scale, *tensors, *options)
        else:
            checks.check_out(out, logits)
            sums, gradient = ops.cross_entropy_gradient_into(out, scale, *tensors, *options), out
        return (sums.sum() / count).to(ops.map_dtype(logits)), gradient


def survey_of(inputs: LossInputs) -> tuple[Tensor, Tensor | None]:
    """Read the labels, which raises for bad ones: valid pixels and their weights per image.

    The weights are None where neither classes nor pixels have any.
    """
    valid_pixels, weight = ops.survey(
        inputs.labels,
        inputs.class_weight,
        inputs.pixel_weight,
        inputs.logits.shape[1],
        inputs.ignored,
    )
    is_weighted = inputs.class_weight is not None or inputs.pixel_weight is not None
    return valid_pixels, weight if is_weighted else None


def divisor_of(inputs: LossInputs) -> Tensor:
    """Survey the labels and choose the divisor: float64, a scalar."""
    labels = inputs.labels
    return divisor(inputs.normalization, *survey_of(inputs), labels.shape[0], labels.numel())


def sum_of(inputs: LossInputs, *, max_nll: float = math.inf) -> Tensor:
    """The sum of the terms of surveyed inputs, float64, a scalar."""
    sums: Tensor = ops.cross_entropy(
        inputs.logits,
        inputs.labels,
        inputs.class_weight,
        inputs.pixel_weight,
        inputs.ignored,
        inputs.label_smoothing,
        inputs.temperature,
        max_nll,
    )
    return sums.sum()


def loss_of(inputs: LossInputs, *, max_nll: float = math.inf) -> Tensor:
    """The loss of checked inputs; `max_nll` bounds a pixel's loss, not its gradient (Caffe)."""
    count = divisor_of(inputs)
    return (sum_of(inputs, max_nll=max_nll) / count).to(ops.map_dtype(inputs.logits))


def pixel_terms_of(inputs: LossInputs) -> Tensor:
    """The terms of checked inputs, [N, *spatial], before any sum."""
    survey_of(inputs)
    return ops.pixel_terms(
        inputs.logits,
        inputs.labels,
        inputs.class_weight,
        inputs.pixel_weight,
        inputs.ignored,
        inputs.label_smoothing,
        inputs.temperature,
        math.inf,
    )
