"""The loss as functions: check what was given and hand it on. The next stop is `ops`.

    nll_p  = logsumexp_c(x_pc / T) - x_p,y_p / T
    term_p = pixel_weight_p * class_weight_y_p * nll_p
    loss   = sum over valid p of term_p / D

With label smoothing e, as torch defines it,

    term_p = pixel_weight_p * ((1 - e) class_weight_y_p nll_p + e / C * sum_c class_weight_c
    nll_pc).

A pixel is valid unless its label is ignored. What an ignored pixel's logits hold, NaN and inf too,
never reaches the loss or the gradient, which is exactly 0 there.

With an upsampling the logits are those that it makes of the scores given, of the labels' height and
width; they are never stored.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from seg_loss import _inputs as checks
from seg_loss import _operators as ops
from seg_loss._inputs import LossInputs
from seg_loss.upsampling import Bilinear, Upsampling, numbers_for


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
    checks.check_tangent("logits", logits)
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
    check_labels: str = "raise",
) -> Tensor:
    """The negative log-likelihood of each pixel, 0 where ignored; differentiable in the logits.

    Equal to `F.cross_entropy(logits / temperature, labels, reduction="none")`.

    Args:
        logits: [N, C, *spatial].
        labels: [N, *spatial] or [N, 1, *spatial], any integer dtype.
        ignore_index: the label, or labels, of pixels that do not count.
        temperature: divides the logits.
        check_labels: as in `spatial_cross_entropy`.

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
        check_labels=check_labels,
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
    check_labels: str = "raise",
) -> Tensor:
    """The pixel-wise softmax loss; differentiable in the logits.

    Equal to `F.cross_entropy(logits / temperature, labels.long(), ignore_index=255)` for the
    defaults, but 0 where torch's is NaN: with no valid pixel. No tensor of the logits' size is
    stored but the gradient, which is made along with the loss if logits require one.

    Args:
        logits: [N, C, *spatial]; float32, float16, bfloat16 or float64. Any strides.
        labels: [N, *spatial] or [N, 1, *spatial]; uint8, int8, int16, int32 or int64.
        class_weight: [C], not negative; the factor of a pixel is that of its true class.
        pixel_weight: [N, *spatial], not negative, the factor of each pixel.
        ignore_index: the label, or labels, of pixels that do not count. A value that the labels'
            dtype cannot hold matches no pixel.
        label_smoothing: from 0 to 1.
        temperature: divides the logits.
        normalization: what divides the sum: "valid", the valid pixels; "full", all pixels; "batch",
            the images (the FCN set-up); "none", 1; "weight", the weights of the valid pixels.
        check_labels: what happens on bad labels or weights. "raise" speaks at once, for which a GPU
            must be waited for at the end of the call (not while a CUDA graph is captured: as
            "defer"); "defer" speaks at the next call or at `check()`; "ignore" never does. Pixels
            with bad labels count as ignored; bad weights are used as they are.

    Returns:
        The loss, a scalar; float32, or float64 of float64 logits. Bitwise repeatable, whatever the
        number of threads.

    Raises:
        InvalidInput: for what does not fit, and for labels that are neither a class nor ignored:
            with the value, how many, and where the first is.

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
        check_labels=check_labels,
    )
    return loss_of(inputs)


def upsampled_cross_entropy(
    scores: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    upsampling: Upsampling = Bilinear(),  # noqa: B008 - it is frozen
    pixel_weight: Tensor | None = None,
    ignore_index: int | Sequence[int] = 255,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    normalization: str = "valid",
    check_labels: str = "raise",
) -> Tensor:
    """The loss of upsampled scores, which are never stored; differentiable in the scores.

    Equal to `spatial_cross_entropy(F.interpolate(scores, labels.shape[1:], mode="bilinear"),
    labels)` for the defaults, and as repeatable: the gradient is summed in a fixed order. It is
    made along with the loss if scores require one, and kept for the backward pass.

    Args:
        scores: [N, C, h, w]; float32, float16, bfloat16 or float64. Any strides.
        labels: [N, H, W] or [N, 1, H, W]; uint8, int8, int16, int32 or int64.
        upsampling: `Bilinear` or `Deconvolution`, from h and w to H and W.

    The other arguments, the result and the errors are those of `spatial_cross_entropy`;
    pixel_weight is [N, H, W].

    >>> scores = torch.zeros(1, 3, 1, 1)
    >>> labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    >>> f"{upsampled_cross_entropy(scores, labels):.4f}"
    '1.0986'
    """
    inputs = checks.loss_inputs(
        scores,
        labels,
        class_weight,
        pixel_weight=pixel_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        normalization=normalization,
        check_labels=check_labels,
        is_upsampled=True,
        where="scores",
    )
    numbers = numbers_for(upsampling, scores, inputs.labels)
    with_gradient = scores.requires_grad and torch.is_grad_enabled()
    return ops.upsampled_cross_entropy(inputs, numbers, with_gradient)[0]


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
    check_labels: str = "raise",
    upsampling: Upsampling | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by the logits, in one read of the logits and one write of the
    gradient.

    Arguments, meaning and errors are those of `spatial_cross_entropy`; autograd is not involved.

    Args:
        upsampling: None, or how the logits, which then are scores [N, C, h, w], become as large as
            the labels: as in `upsampled_cross_entropy`.
        out: memory for the gradient, like the logits. `out=logits` overwrites the logits. Bad
            labels leave it as it was on the CPU; on a GPU it is written before they are known.

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
        check_labels=check_labels,
        is_upsampled=upsampling is not None,
    )
    if out is not None:
        checks.check_out(out, logits)
    with torch.no_grad():
        if upsampling is not None:
            numbers = numbers_for(upsampling, logits, inputs.labels)
            if out is not None:
                return ops.upsampled_cross_entropy_into(out, inputs, numbers), out
            loss, gradient = ops.upsampled_cross_entropy(inputs, numbers, True)
            return loss, gradient.to(logits.dtype)
        if out is not None:
            return ops.cross_entropy_into(out, inputs), out
        loss, _, gradient = ops.cross_entropy(inputs, True)
        return loss, gradient


def loss_of(inputs: LossInputs) -> Tensor:
    """The loss of checked inputs."""
    will_back = inputs.logits.requires_grad and torch.is_grad_enabled()
    return ops.cross_entropy(inputs, will_back and not torch.compiler.is_compiling())[0]


def pixel_terms_of(inputs: LossInputs) -> Tensor:
    """The terms of checked inputs, [N, *spatial], before any sum."""
    return ops.pixel_terms(inputs)
