"""The cross entropy of given probabilities, such as the output of a softmax.

    nll_p  = -ln p_y                  p_y is the probability of the target class of the pixel
    term_p = pixel_weight_p * class_weight_y_p * nll_p
    loss   = sum over valid p of term_p / D

For a weight w, the gradient in the probabilities is -w / (D p_y) at the target class and exactly 0
at all other classes. Where p_y = 0 the loss is infinite, as in torch. Caffe's
MultinomialLogisticLoss raises p_y to at least 1e-20 instead.

The functions consist of operations of torch, so that autograd differentiates them any number of
times. Besides the gradient they allocate maps of one number per pixel, and on the CPU a float32
copy of probabilities of 16 bits for their sum. The loss of logits is more accurate, because a
softmax rounds small probabilities, some of them to 0.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from seg_loss import _labels
from seg_loss._backends import without_dynamo
from seg_loss._divisor import divisor
from seg_loss._errors import InvalidInput, more_pixels, shape_text
from seg_loss._inputs import LossInputs, LossOptions, check_choice, check_inputs, loss_dtype
from seg_loss._inputs import loss_options as make_options
from seg_loss._labels import InvalidValues, LabelReport
from seg_loss.constants import SCORES

_FIX = "Are these logits? Then pass scores=logits; in Python, use spatial_cross_entropy."


@without_dynamo
def probability_cross_entropy(
    probabilities: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    pixel_weight: Tensor | None = None,
    ignore_index: int | Sequence[int] = 255,
    normalization: str = "valid",
    check_labels: str = "raise",
) -> Tensor:
    """Returns the cross entropy of probabilities, -ln p; differentiable in the probabilities.

    Equal to `F.nll_loss(probabilities.log(), labels.long(), ignore_index=255)`, except that the
    loss of no valid pixel is 0. On a GPU the call waits for the device.

    Args:
        probabilities: [N, C, *spatial], from 0 to 1, with a sum of 1 over the classes of each valid
            pixel; float32, float16, bfloat16 or float64. Ignored pixels may hold anything.
        labels: as in `spatial_cross_entropy`, like the arguments that follow.
        class_weight: as there.
        pixel_weight: as there.
        ignore_index: as there.
        normalization: as there.
        check_labels: as there, and also for the values of the probabilities.

    Returns:
        The loss, a scalar; float32, or float64 for float64 probabilities. Infinity if the target
        class of a valid pixel has the probability 0.

    Raises:
        InvalidInput: as `spatial_cross_entropy`, and if probabilities of valid pixels are negative,
            above 1 or NaN, or their sum differs from 1 by more than the square root of the eps of
            their dtype (of float32 for float64). The message gives the number of such pixels, and
            the index and value of the first.

    >>> probabilities = torch.tensor([[0.25, 0.75]])
    >>> f"{probability_cross_entropy(probabilities, torch.tensor([0])):.4f}"  # ln 4
    '1.3863'
    """
    options = make_options(ignore_index, 0.0, 1.0, normalization, check_labels)
    tensors = probabilities, labels, class_weight, pixel_weight
    where = "probabilities"
    return _loss_of(check_inputs(*tensors, options, where=where), where)


def _loss_of(inputs: LossInputs, where: str = "logits") -> Tensor:
    """Returns the loss of checked inputs, whose `logits` are probabilities; differentiable."""
    nll, weight, valid = pixel_nll(inputs, where)
    terms = nll if weight is None else nll * weight
    total = divisor(
        inputs.options.normalization,
        valid_pixels=int(valid.sum()),
        weight_sum=None if weight is None else float(weight.double().sum()),
        num_images=len(inputs.labels),
        num_pixels=inputs.labels.numel(),
    )
    return (terms.sum(dtype=torch.float64) / total).to(terms.dtype)


@without_dynamo
def probability_loss_and_gradient(
    inputs: LossInputs, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the loss and its gradient in the probabilities, in `out` if given."""
    with torch.enable_grad():
        probabilities = inputs.logits.detach().requires_grad_()
        loss = _loss_of(replace(inputs, logits=probabilities))
        (gradient,) = torch.autograd.grad(loss, probabilities)
    return loss.detach(), gradient if out is None else out.copy_(gradient)


def pixel_nll(inputs: LossInputs, where: str = "logits") -> tuple[Tensor, Tensor | None, Tensor]:
    """Returns -ln p_y and the weight of each pixel, both 0 where ignored, and the valid pixels.

    The weight is None if there are no weights. Invalid labels, weights and probabilities are
    reported as `check_labels` says; `where` is what messages call the probabilities.
    """
    _labels.raise_deferred()
    probabilities, dtype = inputs.logits, loss_dtype(inputs.logits)
    y = inputs.labels.long()
    ignored = torch.zeros_like(y, dtype=torch.bool)
    for value in inputs.ignored_bits:
        ignored |= y == value
    is_class = (y >= 0) & (y < inputs.num_classes)
    valid = is_class & ~ignored
    if inputs.options.check_labels != "ignore":
        with torch.no_grad():
            report = _label_report(inputs, valid, ~is_class & ~ignored)
            error = _labels.error_for(report, inputs.num_classes, inputs.ignored)
            error = error or _error_in_probabilities(where, probabilities, valid)
        _labels.raise_or_defer(error, inputs.options.check_labels)
    y = torch.where(valid, y, 0)
    of_target = probabilities.gather(1, y.unsqueeze(1)).squeeze(1).to(dtype)
    nll = 0 - torch.where(valid, of_target, 1).log()  # a negation would make 0 a -0
    weight = None
    if inputs.is_weighted:
        weight = torch.ones_like(nll)
        if inputs.class_weight is not None:
            weight = weight * inputs.class_weight.to(dtype)[y]
        if inputs.pixel_weight is not None:
            weight = weight * inputs.pixel_weight.to(dtype)
        weight = torch.where(valid, weight, 0).detach()
    return nll, weight, valid


def check_scores(scores: str, options: LossOptions) -> None:
    """Checks what `scores` says that the logits are, and for options without a meaning for it."""
    check_choice("scores", scores, SCORES)
    if scores == "logits":
        return
    for name, neutral, fix in (
        ("label_smoothing", 0.0, "Smooth the loss of the logits."),
        ("temperature", 1.0, "A temperature divides logits."),
        ("upsampling", None, "Upsample the probabilities first."),
    ):
        value = getattr(options, name)
        if value != neutral:
            expected = f"{'none' if neutral is None else neutral} with scores=probabilities"
            raise InvalidInput(name, expected, repr(value), fix)


def _label_report(inputs: LossInputs, valid: Tensor, invalid: Tensor) -> LabelReport:
    class_weight, pixel_weight = inputs.class_weight, inputs.pixel_weight
    return LabelReport(
        labels=_invalid_values(invalid, inputs.labels),
        pixel_weights=None
        if pixel_weight is None
        else _invalid_values(valid & ~_is_weight(pixel_weight), pixel_weight),
        class_weights=None
        if class_weight is None
        else _invalid_values(~_is_weight(class_weight), class_weight),
    )


def _is_weight(weight: Tensor) -> Tensor:
    return (weight >= 0) & weight.isfinite()


def _invalid_values(invalid: Tensor, values: Tensor) -> InvalidValues | None:
    count = int(invalid.sum())
    if not count:
        return None
    index = _first(invalid)
    return InvalidValues(count, index, values[index].item())


def _first(mask: Tensor) -> tuple[int, ...]:
    """Returns the index of the first true element."""
    return tuple(int(i) for i in mask.nonzero()[0])


def _error_in_probabilities(
    where: str, probabilities: Tensor, valid: Tensor
) -> InvalidInput | None:
    """Returns the error for probabilities of valid pixels outside 0...1, or with another sum."""
    # NaN is in no range, and amin and amax return it.
    in_range = (probabilities.amin(dim=1) >= 0) & (probabilities.amax(dim=1) <= 1)
    wrong = valid & ~in_range
    if bool(wrong.any()):
        image, *pixel = _first(wrong)
        values = probabilities.movedim(1, -1)[(image, *pixel)]
        number = _first(~((values >= 0) & (values <= 1)))[0]
        index = shape_text((image, number, *pixel))
        got = f"{values[number].item():.6g} at {index}" + more_pixels(int(wrong.sum()))
        return InvalidInput(where, "probabilities from 0 to 1 at valid pixels", got, _FIX)
    total = probabilities.sum(dim=1, dtype=loss_dtype(probabilities))
    eps = max(torch.finfo(probabilities.dtype).eps, torch.finfo(torch.float32).eps)
    wrong = valid & ~((total - 1).abs() <= math.sqrt(eps))
    if not bool(wrong.any()):
        return None
    pixel_index = _first(wrong)
    got = f"a sum of {total[pixel_index].item():.6g} at {shape_text(pixel_index)}"
    got += more_pixels(int(wrong.sum()))
    return InvalidInput(where, "probabilities with a sum of 1 at valid pixels", got, _FIX)
