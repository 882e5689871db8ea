"""Caffe's Softmax and SoftmaxWithLoss, with all of their rules except undefined behaviour.

From `softmax_layer.cpp` and `softmax_loss_layer.cpp` of BVLC/caffe as of 2020:

- The loss of a pixel is -ln max(p, FLT_MIN), at most 87.3365, also where p is subnormal. The
  gradient has no such bound. NaN stays NaN, as in Caffe on the CPU.
- Labels may be floats and are truncated toward zero. Only their number and first axis must fit.
- The divisor is at least 1. BATCH_SIZE divides by the product of all axes before the softmax axis.
- `normalize` counts only if `normalization` is not set: true means VALID, and false means
  BATCH_SIZE, not NONE.

Two things differ. For a label that is neither a class nor ignored, Caffe reads and writes memory
out of bounds; here it raises InvalidInput. Caffe sums in float32, one pixel after another, and errs
by up to 2e-5; here sums are float64.
"""

import math

import torch
from torch import Tensor, nn

from seg_loss._errors import InvalidInput, shape_of
from seg_loss._inputs import (
    LossOptions,
    check_axis,
    check_choice,
    check_float_dtype,
    check_inputs,
    check_tensor,
)
from seg_loss.functional import loss_of, spatial_softmax

_MAX_NLL = -math.log(torch.finfo(torch.float32).tiny)
_NORMALIZATIONS = {"FULL": "full", "VALID": "valid", "BATCH_SIZE": "batch", "NONE": "none"}

_ARGUMENTS = {"labels": "label", "ignore_index": "ignore_label"}


class Softmax(nn.Module):
    """Caffe's Softmax layer, `softmax_param { axis }`.

    Args:
        axis: axis of the classes.
    """

    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Returns the probabilities of scores of any shape."""
        return spatial_softmax(x, axis=self.axis)


class SoftmaxWithLoss(nn.Module):
    """Caffe's SoftmaxWithLoss layer.

    Args:
        ignore_label: the label that does not count; None if every pixel counts.
        normalization: "VALID", "FULL", "BATCH_SIZE" or "NONE". The default is None and not
            "VALID", because Caffe reads `normalize` only if `normalization` is not set.
        normalize: the older option, read only if `normalization` is None.
        axis: axis of the classes.
        loss_weight: multiplies the loss, and with it the gradient, as the net does with the top.
    """

    def __init__(
        self,
        ignore_label: int | None = None,
        normalization: str | None = None,
        normalize: bool | None = None,
        axis: int = 1,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if normalization is None:
            normalization = "BATCH_SIZE" if normalize is False else "VALID"
        check_choice("normalization", normalization, tuple(_NORMALIZATIONS))
        self.ignore_label = ignore_label
        self.normalization = normalization
        self.axis = axis
        self.loss_weight = loss_weight

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Returns the loss times `loss_weight`, which is what the layer adds to the net's loss.

        Args:
            x: scores, any shape with the classes on `axis`.
            label: an entry for each pixel, in any shape with the first axis of `x`.
        """
        check_tensor("x", x)
        check_tensor("label", label)
        check_float_dtype("x", x)
        axis = check_axis(self.axis, x, "x has")
        outer, num_classes = math.prod(x.shape[:axis]), x.shape[axis]
        inner = math.prod(x.shape[axis + 1 :])
        if label.numel() != outer * inner or label.shape[:1] != x.shape[:1]:
            expected = f"{outer * inner} entries, the first axis {x.shape[0]}"
            raise InvalidInput("label", expected, f"shape {shape_of(label)}")
        # Caffe's static_cast<int> truncates toward zero, and so does the conversion to int64.
        labels = label.to(torch.int64) if label.is_floating_point() else label
        x, labels = x.reshape(outer, num_classes, inner), labels.reshape(outer, inner)
        try:
            options = LossOptions(
                ignore_index=() if self.ignore_label is None else self.ignore_label,
                normalization=_NORMALIZATIONS[self.normalization],
                max_nll=_MAX_NLL,
            )
            loss = loss_of(check_inputs(x, labels, None, None, options, where="x"))
        except InvalidInput as error:
            raise error.renamed(_ARGUMENTS) from None
        return loss * float(self.loss_weight)  # a tensor could have another dtype than the loss
