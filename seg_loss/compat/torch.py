"""`torch.nn.functional.cross_entropy` and `torch.nn.CrossEntropyLoss`, for class-index targets.

Same signatures, defaults and results, NaN of an empty mean included; more target dtypes. Targets
given as probabilities are refused.
"""

import dataclasses
import warnings

from torch import Tensor, nn

from seg_loss import _inputs as checks
from seg_loss import functional as loss
from seg_loss._inputs import InvalidInput


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
    """`torch.nn.functional.cross_entropy` with class indices for targets.

    Args:
        input: logits, [N, C, *spatial] or [C].
        target: class indices, [N, *spatial] or a scalar; any integer dtype.
        weight: of the classes, [C].
        size_average, reduce: deprecated, as in torch.
        ignore_index: the target that does not count.
        reduction: "mean", the sum over the weights of the valid targets, NaN if there are none;
            "sum"; or "none", the terms themselves.
        label_smoothing: from 0 to 1.

    Raises:
        InvalidInput: for what does not fit, targets out of range included (torch: IndexError).
    """
    if size_average is not None or reduce is not None:
        reduction = _legacy_reduction(size_average, reduce)
    if reduction not in ("mean", "sum", "none"):
        raise InvalidInput("reduction", "mean, sum or none", repr(reduction))
    if target.is_floating_point():
        raise InvalidInput(
            "target", "class indices", f"probabilities ({target.dtype})", "Take argmax over axis 1."
        )
    if input.ndim == 1:
        unbatched = cross_entropy(
            input[None],
            target.reshape(1),
            weight,
            None,
            ignore_index,
            None,
            reduction,
            label_smoothing,
        )
        return unbatched.reshape(())
    inputs = checks.loss_inputs(
        input,
        target,
        weight,
        pixel_weight=None,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=1.0,
        normalization="none",
    )
    if reduction == "none":
        return loss.pixel_terms_of(inputs).to(input.dtype)
    if reduction == "mean":
        # 0 / 0 where nothing is valid: NaN, as in torch.
        inputs = dataclasses.replace(inputs, normalization="torch_mean")
    return loss.loss_of(inputs).to(input.dtype)


class CrossEntropyLoss(nn.Module):
    """`torch.nn.CrossEntropyLoss` with class indices for targets."""

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
