"""The cross entropy of given probabilities, such as the output of a softmax.

    nll_p  = -ln p_y                  p_y is the probability of the target class of the pixel
    term_p = pixel_weight_p * class_weight_y_p * nll_p
    loss   = sum over valid p of term_p / D

For a weight w, the gradient in the probabilities is -w / (D p_y) at the target class and exactly 0
at all other classes. Where p_y = 0 the loss is infinite, as in torch. Caffe's
MultinomialLogisticLoss raises p_y to at least 1e-20 instead.

The functions consist of operations of torch, so that autograd and torch.func differentiate them any
number of times, and of an operator, which checks all values and returns the divisor. Besides the
gradient they allocate maps of one number per pixel, and on the CPU a float32 copy of probabilities
of 16 bits for their sum. The loss of logits is more accurate, because a softmax rounds small
probabilities, some of them to 0.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seg_loss import _autograd, _distributed, _labels, _operators
from seg_loss._autograd import DifferentiableFunction, is_transformed
from seg_loss._compile import is_compiling
from seg_loss._divisor import ProcessGroup, counted_divisor, known_divisor
from seg_loss._errors import InvalidInput, more_pixels, shape_text
from seg_loss._inputs import (
    LossInputs,
    LossOptions,
    check_choice,
    check_inputs,
    loss_dtype,
    loss_options,
    valid_classes,
)
from seg_loss._labels import InvalidValues, LabelCount, LabelReport
from seg_loss.constants import SCORES

_FIX = "Are these logits? Then pass scores=logits; in Python, use spatial_cross_entropy."


def probability_cross_entropy(
    probabilities: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    *,
    pixel_weight: Tensor | None = None,
    ignore_index: int | Sequence[int] = 255,
    normalization: str = "valid",
    process_group: ProcessGroup | None = None,
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
        process_group: as there.
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
    where = "probabilities"
    try:
        options = loss_options(ignore_index, 0.0, 1.0, normalization, check_labels)
        tensors = probabilities, labels, class_weight, pixel_weight
        inputs = check_inputs(*tensors, options, where=where)
    except Exception:
        if process_group is not None:
            _distributed.report_failure(process_group)
        raise
    divisor = _divisor(inputs, where, process_group)
    return _mean(targets_of(inputs), divisor)


def probability_loss_and_gradient(
    inputs: LossInputs, out: Tensor | None = None, process_group: ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the loss and its gradient in the probabilities, in `out` if given."""
    with torch.no_grad():
        divisor = _divisor(inputs, "logits", process_group)
        targets = targets_of(inputs)
        loss = _mean(targets, divisor)
        scale = targets.weight * divisor.reciprocal().to(loss.dtype)
        # A negation would make 0 a -0.
        values = (0 - scale / targets.probability).to(inputs.logits.dtype).unsqueeze(1)
        index = targets.classes.unsqueeze(1)
        if out is not None:
            return loss, out.zero_().scatter_(1, index, values)
        zeros = torch.zeros_like(inputs.logits)
        if torch._C._are_functorch_transforms_active():  # `vmap` may be over the labels alone
            return loss, zeros.scatter(1, index, values)
        return loss, zeros.scatter_(1, index, values)


class Targets(NamedTuple):
    """The target class of each pixel, [N, *spatial].

    Attributes:
        classes: the class, int64; 0 where ignored.
        probability: its probability, differentiable, in the loss's dtype; 1 where ignored.
        weight: the weight of the pixel; 0 where ignored.
    """

    classes: Tensor
    probability: Tensor
    weight: Tensor

    @property
    def nll(self) -> Tensor:
        """-ln p, 0 where ignored."""
        return 0 - self.probability.log()  # a negation would make 0 a -0


def targets_of(inputs: LossInputs) -> Targets:
    """Returns the targets of checked inputs, whose `logits` are probabilities."""
    valid, classes = valid_classes(inputs)
    probability = inputs.logits.gather(1, classes.unsqueeze(1)).squeeze(1)
    probability = probability.to(loss_dtype(probability)).masked_fill(~valid, 1)
    return Targets(classes, probability, _weight(inputs, valid, classes))


def _weight(inputs: LossInputs, valid: Tensor, classes: Tensor) -> Tensor:
    dtype = loss_dtype(inputs.logits)
    weight = valid.to(dtype)
    if inputs.class_weight is not None:
        weight = weight * inputs.class_weight.to(dtype)[classes]
    if inputs.pixel_weight is not None:
        weight = weight * inputs.pixel_weight.to(dtype)
    return weight.masked_fill(~valid, 0).detach()


def _mean(targets: Targets, divisor: Tensor) -> Tensor:
    terms = targets.nll * targets.weight
    return (terms.sum(dtype=torch.float64) / divisor).to(terms.dtype)


def _divisor(inputs: LossInputs, where: str, process_group: ProcessGroup | None) -> Tensor:
    """Returns the divisor of the loss, after a check of all values."""
    if process_group is not None and _distributed.has_several_ranks(process_group):
        count_labels = functools.partial(_count_labels, where=where)
        return _distributed.divisor(inputs, process_group, count_labels)
    inputs = replace(inputs, logits=inputs.logits.detach())
    if is_transformed() and not is_compiling():
        divisor: Tensor = _autograd.apply(_Divisor, *inputs.tensors, where, inputs.options)
        return divisor
    return probability_divisor(inputs, where)


def _fake_divisor(probabilities: Tensor, *others: Any) -> Tensor:
    return probabilities.new_empty((), dtype=torch.float64)


@_operators.define_operator(_fake_divisor)
def probability_divisor(inputs: LossInputs, where: str) -> Tensor:
    """Returns the divisor, float64, and reports what is invalid as `check_labels` says.

    Args:
        inputs: the inputs; their `logits` are probabilities.
        where: what messages call the probabilities.
    """
    _labels.raise_deferred()
    inputs, options = inputs.resolve_neg(), inputs.options
    count = _count_labels(inputs, where)
    _labels.raise_or_defer(count.error(), options.check_labels)
    pixels = inputs.labels.numel()
    total = known_divisor(options.normalization, len(inputs.labels), pixels)
    if total is None:
        total = counted_divisor(float(count.total), True)
    return torch.tensor(total, dtype=torch.float64, device=inputs.logits.device)


def _count_labels(inputs: LossInputs, where: str) -> LabelCount:
    """Counts the valid pixels, or sums their weights, and checks all values."""
    inputs, options = inputs.resolve_neg(), inputs.options
    valid, classes = valid_classes(inputs)
    error = None
    if options.check_labels != "ignore":
        report = _label_report(inputs, valid)
        error = _labels.error_for(report, inputs.num_classes, inputs.ignored)
        error = error or _error_in_probabilities(where, inputs.logits, valid)
    if options.normalization == "weight":
        total = float(_weight(inputs, valid, classes).double().sum())
    else:
        total = float(valid.sum())
    return LabelCount(total, error is not None, lambda: error)


class _Divisor(DifferentiableFunction):
    """`probability_divisor` in the transforms of torch.func. It has no derivative."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        logits, labels, class_weight, pixel_weight, where, options = arguments
        inputs = LossInputs(logits, labels, class_weight, pixel_weight, options)
        return probability_divisor(inputs, where)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[None, ...]:
        return (None,) * 6

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Tensor | None) -> None:
        """Returns no derivative."""


def check_probabilities(inputs: LossInputs) -> None:
    """Reports logits that are no probabilities, as `check_labels` says."""
    if inputs.options.check_labels == "ignore":
        return
    valid, _ = valid_classes(inputs)
    error = _error_in_probabilities("logits", inputs.logits, valid)
    _labels.raise_or_defer(error, inputs.options.check_labels)


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


def _label_report(inputs: LossInputs, valid: Tensor) -> LabelReport:
    invalid = ~valid
    for value in inputs.ignored_bits:
        invalid &= inputs.labels.long() != value
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
