"""The GPU backend: functions that launch Triton kernels on the tensors' device.

`_backends` and `evaluate` call them with checked inputs. `cpu.backend` has the same names.

    loss             the loss of full-size logits, its gradient, and the terms of the pixels
    upsampled_loss   the loss of upsampled scores, with its gradient
    evaluation       all sums and maps of `evaluate`, from one read of the logits
    prediction       the maps of `predict`, without labels
    probabilities    the softmax and its gradient
    label_check      the label check without a loss, for a divisor over several processes

These modules share `label_check`, which launches the label check, and `arguments`, which makes
arguments of kernels from tensors. What depends on shapes, dtypes and options alone is computed
once: see `plan`.
"""

from seg_loss.gpu.evaluation import evaluate
from seg_loss.gpu.label_check import count_labels
from seg_loss.gpu.loss import cross_entropy, cross_entropy_gradient, pixel_terms
from seg_loss.gpu.prediction import predict
from seg_loss.gpu.probabilities import softmax, softmax_gradient
from seg_loss.gpu.upsampled_loss import scale_gradient, scratch_bytes, upsampled_cross_entropy

__all__ = [
    "count_labels",
    "cross_entropy",
    "cross_entropy_gradient",
    "evaluate",
    "pixel_terms",
    "predict",
    "scale_gradient",
    "scratch_bytes",
    "softmax",
    "softmax_gradient",
    "upsampled_cross_entropy",
]
