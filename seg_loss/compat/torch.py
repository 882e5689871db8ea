"""`torch.nn.functional.cross_entropy` and `torch.nn.CrossEntropyLoss`, for class-index targets.

Signatures, defaults and results are those of torch, the NaN of an empty mean included; targets may
have more integer dtypes. Targets given as probabilities are refused.

Under autocast torch computes a cross entropy in float32, and so does this module: the loss of
float16 or bfloat16 logits is float32 there. Elsewhere it has the dtype of the logits.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from seg_loss._errors import InvalidInput, shape_of
from seg_loss._inputs import LossOptions, check_choice, check_inputs, check_tensor
from seg_loss._numbers import plain_number
from seg_loss.functional import loss_of, terms_of

_NORMALIZATIONS = {"mean": "weight", "sum": "none", "none": "none"}  # by reduction
_ARGUMENTS = {"labels": "target", "class_weight": "weight"}


def cross_entropy(
    input: Tensor,  # noqa: A002 - torch's name
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`torch.nn.functional.cross_entropy` with class indices as targets.

    Args:
        input: logits, [N, C, *spatial] or [C].
        target: class indices, [N, *spatial], or one class for logits [C]; any integer dtype.
        weight: weights of the classes, [C]; any numbers, as in torch.
        size_average: deprecated, as in torch.
        ignore_index: the target that does not count.
        reduce: deprecated, as in torch.
        reduction: "mean" divides the sum by the weights of the valid targets, and is NaN if there
            are none; "sum"; or "none", the terms themselves.
        label_smoothing: up to 1; a negative number or NaN is 0, as in torch.

    Raises:
        InvalidInput: if shapes, dtypes or options do not fit, or a target is out of range. It is
            also an IndexError, a RuntimeError and a TypeError, one of which torch raises.
    """
    if size_average is not None or reduce is not None:
        _warn("size_average and reduce are deprecated; use reduction.")
        reduction = _legacy_reduction(size_average, reduce)
    if reduction == "elementwise_mean":
        _warn("reduction='elementwise_mean' is deprecated; use 'mean'.")
        reduction = "mean"
    check_choice("reduction", reduction, tuple(_NORMALIZATIONS))
    check_tensor("input", input)
    check_tensor("target", target)
    if target.is_floating_point():
        raise InvalidInput(
            "target", "class indices", f"probabilities ({target.dtype})", "Take argmax over axis 1."
        )
    options = LossOptions(
        ignore_index,
        _smoothing(label_smoothing),
        normalization=_NORMALIZATIONS[reduction],
        has_divisor_floor=False,  # 0 / 0 = NaN where nothing is valid, as in torch
        checks_class_weight=False,
    )
    is_batched = input.ndim != 1
    if not is_batched:
        if target.numel() != 1 or target.ndim > 1:
            raise InvalidInput("target", "one class for logits [C]", f"shape {shape_of(target)}")
        input, target = input[None], target.reshape(1)  # noqa: A001 - torch's name
    try:
        inputs = check_inputs(input, target, weight, None, options, where="input")
        loss = terms_of(inputs) if reduction == "none" else loss_of(inputs)
    except InvalidInput as error:  # in a compiled program, without those of the target's values
        raise error.renamed(_ARGUMENTS) from None
    if not _is_autocast(input.device.type):
        loss = loss.to(input.dtype)
    return loss if is_batched else loss.reshape(())


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` with class indices as targets; the arguments are the same."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Returns the loss of logits and class indices, as `cross_entropy` does."""
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


def _is_autocast(device_type: str) -> bool:
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def _smoothing(label_smoothing: float) -> Any:
    """Returns a smoothing of 0 for a negative number or NaN, and a bool as a number, as torch."""
    number = plain_number(label_smoothing)
    if not isinstance(number, int | float):
        return number
    return float(number) if number > 0 else 0.0


def _legacy_reduction(size_average: bool | None, reduce: bool | None) -> str:
    if reduce is not None and not reduce:
        return "none"
    return "mean" if size_average is None or size_average else "sum"


def _warn(text: str) -> None:
    """Warns of a deprecated argument, in eager mode: torch's compiler has no warnings."""
    if not torch.compiler.is_compiling():
        warnings.warn(text, UserWarning, stacklevel=3)
