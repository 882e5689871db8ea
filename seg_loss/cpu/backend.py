"""The CPU backend: functions that run kernels on all threads.

`_backends` and `evaluate` call them with checked inputs. `gpu.backend` has the same names.

    loss             the loss of full-size logits, its gradient, and the terms of the pixels
    upsampled_loss   the loss of upsampled scores, with its gradient
    evaluation       all sums and maps of `evaluate`, from one read of the logits
    prediction       the maps of `predict`, without labels
    probabilities    the softmax and its gradient
    label_check      the label check without a loss, for a divisor over several processes

Each describes a call once, in a plan (see `plan`), with `arguments`. `region` says how threads
share the work: the pixels of a chunk depend on the shape of one image alone, and partial sums are
added in the order of the chunks. So results depend neither on the number of threads nor on the
other images of the batch.
"""

from seg_loss.cpu.evaluation import evaluate
from seg_loss.cpu.label_check import count_labels
from seg_loss.cpu.loss import cross_entropy, cross_entropy_gradient, pixel_terms
from seg_loss.cpu.prediction import predict
from seg_loss.cpu.probabilities import softmax, softmax_gradient
from seg_loss.cpu.upsampled_loss import scale_gradient, scratch_bytes, upsampled_cross_entropy

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
