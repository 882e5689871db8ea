"""`torch.nn.functional.cross_entropy` and `torch.nn.CrossEntropyLoss`, for class-index targets.

Signatures, defaults and results are those of torch, the NaN of an empty mean included; targets may
have more integer dtypes. Targets given as probabilities are refused.
"""

import warnings

from torch import Tensor, nn

from seg_loss._errors import InvalidInput
from seg_loss._inputs import LossOptions, check_choice, check_inputs
from seg_loss.functional import loss_of, terms_of

_NORMALIZATIONS = {"mean": "weight", "sum": "none", "none": "none"}  # by reduction


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
        target: class indices, [N, *spatial] or a scalar; any integer dtype.
        weight: weights of the classes, [C].
        size_average: deprecated, as in torch.
        ignore_index: the target that does not count.
        reduce: deprecated, as in torch.
        reduction: "mean" divides the sum by the weights of the valid targets, and is NaN if there
            are none; "sum"; or "none", the terms themselves.
        label_smoothing: from 0 to 1.

    Raises:
        InvalidInput: if shapes, dtypes or options do not fit, or a target is out of range (where
            torch raises IndexError).
    """
    if size_average is not None or reduce is not None:
        reduction = _legacy_reduction(size_average, reduce)
    check_choice("reduction", reduction, tuple(_NORMALIZATIONS))
    if target.is_floating_point():
        raise InvalidInput(
            "target", "class indices", f"probabilities ({target.dtype})", "Take argmax over axis 1."
        )
    options = LossOptions(
        ignore_index,
        label_smoothing,
        normalization=_NORMALIZATIONS[reduction],
        has_divisor_floor=False,  # 0 / 0 = NaN where nothing is valid, as in torch
    )
    is_batched = input.ndim != 1
    if not is_batched:
        input, target = input[None], target.reshape(1)  # noqa: A001 - torch's name
    inputs = check_inputs(input, target, weight, None, options)
    loss = terms_of(inputs) if reduction == "none" else loss_of(inputs)
    loss = loss.to(input.dtype)
    return loss if is_batched else loss.reshape(())


class CrossEntropyLoss(nn.Module):
    """`torch.nn.CrossEntropyLoss` with class indices as targets.

    Args:
        weight: as in `cross_entropy`, like the arguments that follow.
        size_average: as there.
        ignore_index: as there.
        reduce: as there.
        reduction: as there.
        label_smoothing: as there.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if size_average is not None or reduce is not None:
            reduction = _legacy_reduction(size_average, reduce)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Returns the loss of logits and class indices."""
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


def _legacy_reduction(size_average: bool | None, reduce: bool | None) -> str:
    warnings.warn(
        "size_average and reduce are deprecated; use reduction.", UserWarning, stacklevel=3
    )
    if reduce is False:
        return "none"
    return "sum" if size_average is False else "mean"
