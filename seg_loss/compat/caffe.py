"""Caffe's Softmax and SoftmaxWithLoss, by all of their rules but the undefined ones.

From `softmax_layer.cpp` and `softmax_loss_layer.cpp` of BVLC/caffe, state of 2020:

- The loss of a pixel is -ln max(p, FLT_MIN), at most 87.3365, also where p is subnormal; the
  gradient knows no such bound. NaN stays NaN, as in Caffe on the CPU.
- Labels may be floats and are cut toward zero; only their count and first axis must fit.
- The divisor is at least 1. BATCH_SIZE divides by the product of all axes before the softmax axis.
- `normalize` counts only while `normalization` is absent: true is VALID, false is BATCH_SIZE, not
  NONE.

Not inherited: labels that are neither a class nor ignored read and write foreign memory there; here
they raise InvalidInput. Sums there are float32, one pixel after another, and off by up to 2e-5.
"""

import math

import torch
from torch import Tensor, nn

from seg_loss import _inputs as checks
from seg_loss import functional as loss
from seg_loss._inputs import InvalidInput
from seg_loss.functional import spatial_softmax

_MAX_NLL = -math.log(torch.finfo(torch.float32).tiny)
_NORMALIZATIONS = {"FULL": "full", "VALID": "valid", "BATCH_SIZE": "batch", "NONE": "none"}


class Softmax(nn.Module):
    """Caffe's Softmax layer: `softmax_param { axis }`."""

    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return spatial_softmax(x, axis=self.axis)


class SoftmaxWithLoss(nn.Module):
    """Caffe's SoftmaxWithLoss layer.

    Args:
        ignore_label: the label that does not count; absent, every pixel counts.
        normalization: "VALID" (also if absent, and `normalize` too), "FULL", "BATCH_SIZE" or
            "NONE". Absent is None here, not "VALID", because Caffe heeds `normalize` only then.
        normalize: the older option, heeded only while `normalization` is absent.
        axis: of the classes.
        loss_weight: multiplies the value, and with it the gradient, as the net does with the top.
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
        if normalization not in _NORMALIZATIONS:
            raise InvalidInput(
                "normalization", f"one of {', '.join(_NORMALIZATIONS)}", repr(normalization)
            )
        self.ignore_label = ignore_label
        self.normalization = normalization
        self.axis = axis
        self.loss_weight = loss_weight

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """The loss times `loss_weight`: what the layer adds to the net's loss.

        Args:
            x: scores, any shape with the classes on `axis`.
            label: an entry for each position, in any shape that begins like `x`.
        """
        checks.check_float_dtype("x", x)
        if not -x.ndim <= self.axis < x.ndim:
            raise InvalidInput("axis", f"an axis of the {x.ndim} that x has", repr(self.axis))
        axis = self.axis % x.ndim
        outer, num_classes = math.prod(x.shape[:axis]), x.shape[axis]
        inner = math.prod(x.shape[axis + 1 :])
        if label.numel() != outer * inner or label.shape[:1] != x.shape[:1]:
            raise InvalidInput(
                "label",
                f"{outer * inner} entries, the first axis {x.shape[0]}",
                f"shape {tuple(label.shape)}",
            )
        # Caffe's static_cast<int> cuts toward zero, as conversion to int64 does here.
        labels = label.to(torch.int64) if label.is_floating_point() else label
        inputs = checks.loss_inputs(
            x.reshape(outer, num_classes, inner),
            labels.reshape(outer, inner),
            None,
            pixel_weight=None,
            ignore_index=() if self.ignore_label is None else self.ignore_label,
            label_smoothing=0.0,
            temperature=1.0,
            normalization=_NORMALIZATIONS[self.normalization],
            max_nll=_MAX_NLL,
        )
        return loss.loss_of(inputs) * self.loss_weight
