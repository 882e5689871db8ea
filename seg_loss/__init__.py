"""The pixel-wise softmax loss of semantic segmentation: exact, fused, repeatable.

Start at `loss`; the way goes on to `ops` and a backend for the device, `numba_backend` or
`triton_backend`. `reference` is the definition.
"""

from seg_loss._finite import require_finite
from seg_loss._inputs import InvalidInput
from seg_loss._labels import check
from seg_loss.diagnosis import Diagnosis
from seg_loss.evaluation import (
    Calibration,
    CalibrationBin,
    ClassLoss,
    Evaluation,
    ImageLoss,
    evaluate,
)
from seg_loss.functional import (
    loss_and_gradient,
    pixel_nll,
    spatial_cross_entropy,
    spatial_softmax,
    upsampled_cross_entropy,
)
from seg_loss.metrics import FcnMetrics
from seg_loss.modules import SpatialCrossEntropy, SpatialSoftmax, UpsampledCrossEntropy
from seg_loss.upsampling import Bilinear, Deconvolution
from seg_loss.warmup import warm_up

__all__ = [
    "Bilinear",
    "Calibration",
    "CalibrationBin",
    "ClassLoss",
    "Deconvolution",
    "Diagnosis",
    "Evaluation",
    "FcnMetrics",
    "ImageLoss",
    "InvalidInput",
    "SpatialCrossEntropy",
    "SpatialSoftmax",
    "UpsampledCrossEntropy",
    "check",
    "evaluate",
    "loss_and_gradient",
    "pixel_nll",
    "require_finite",
    "spatial_cross_entropy",
    "spatial_softmax",
    "upsampled_cross_entropy",
    "warm_up",
]
