"""The pixel-wise softmax loss of semantic segmentation: exact, fused and repeatable.

`functional` has the loss as functions; `reference` is its definition.

A name is imported from its module on first use, so that `seg_loss.constants` can be imported
without torch. The types of these names are in `__init__.pyi`.
"""

import importlib

from seg_loss._version import __version__ as __version__

_MODULE_OF = {
    "Bilinear": "upsampling",
    "Calibration": "evaluation",
    "CalibrationBin": "evaluation",
    "ClassLoss": "evaluation",
    "Deconvolution": "upsampling",
    "Diagnosis": "diagnosis",
    "Evaluation": "evaluation",
    "FcnMetrics": "metrics",
    "ImageLoss": "evaluation",
    "InvalidInput": "_errors",
    "SpatialCrossEntropy": "modules",
    "SpatialSoftmax": "modules",
    "UpsampledCrossEntropy": "modules",
    "check": "_labels",
    "evaluate": "evaluation",
    "loss_and_gradient": "functional",
    "pixel_nll": "functional",
    "predict": "prediction",
    "probability_cross_entropy": "probabilities",
    "require_finite": "_finite",
    "scratch_bytes": "_scratch",
    "spatial_cross_entropy": "functional",
    "spatial_softmax": "functional",
    "upsampled_cross_entropy": "functional",
    "warm_up": "warmup",
}
_SUBMODULES = (
    "compat",
    "constants",
    "diagnosis",
    "evaluation",
    "functional",
    "metrics",
    "modules",
    "prediction",
    "probabilities",
    "reference",
    "upsampling",
)

__all__ = sorted(["__version__", *_MODULE_OF])


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return importlib.import_module(f"seg_loss.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'seg_loss' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"seg_loss.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
