"""The public names and signatures, and what importing the library loads."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import seg_loss
from seg_loss import compat, metrics, modules, upsampling
from seg_loss.compat import caffe
from seg_loss.compat import torch as compat_torch

ROOT = Path(seg_loss.__file__).parents[1]


def run(script):
    """Runs a script in a process of its own and returns what it prints."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_gpu_without_triton_raises():
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, seg_loss; from tests.support.backends import TRITON, _backends\n"
        "_backends.BACKENDS['cpu'] = TRITON\n"
        "try: seg_loss.spatial_softmax(torch.zeros(1, 2))\n"
        "except seg_loss.InvalidInput as error: print(error)"
    )
    assert run(script) == (
        "logits: expected Triton to be installed, got a tensor on cpu without it. "
        "pip install triton, or call .cpu()."
    )


def test_importing_the_library_loads_no_kernels():
    # At the top of a file, numba costs every user of the names half a second.
    script = (
        "import json, sys; before = set(sys.modules); import seg_loss, seg_loss.compat.torch, "
        "seg_loss.compat.caffe, seg_loss.metrics; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    loaded = set(json.loads(run(script)))
    assert "seg_loss" in loaded
    assert not loaded & {
        "numba",
        "llvmlite",
        "triton",
        "fastapi",
        "pydantic",
        "PIL",
        "app",
        "models",
    }


def test_public_names_are_those_of_the_contract():
    assert seg_loss.__all__ == sorted(seg_loss.__all__)
    assert set(seg_loss.__all__) == {
        "Bilinear", "Calibration", "CalibrationBin", "ClassLoss", "Deconvolution", "Diagnosis",
        "Evaluation", "FcnMetrics", "ImageLoss", "InvalidInput", "SpatialCrossEntropy",
        "__version__",
        "SpatialSoftmax", "UpsampledCrossEntropy", "check", "evaluate", "loss_and_gradient",
        "pixel_nll", "predict", "probability_cross_entropy", "require_finite", "scratch_bytes",
        "spatial_cross_entropy", "spatial_softmax", "upsampled_cross_entropy", "warm_up",
    }  # fmt: skip
    for name in seg_loss.__all__:
        assert getattr(seg_loss, name).__doc__, f"{name} has no docstring"


LOSS = {"pixel_weight": None, "ignore_index": 255, "label_smoothing": 0.0, "temperature": 1.0,
        "normalization": "valid", "process_group": None, "check_labels": "raise"}  # fmt: skip
SIGNATURES = [
    (seg_loss.spatial_softmax, ["logits"], {"axis": 1, "temperature": 1.0}),
    (seg_loss.pixel_nll, ["logits", "labels"], {"ignore_index": 255, "temperature": 1.0,
     "check_labels": "raise"}),
    (seg_loss.spatial_cross_entropy, ["logits", "labels", "class_weight"], LOSS),
    (seg_loss.upsampled_cross_entropy, ["scores", "labels", "class_weight"],
     {"upsampling": seg_loss.Bilinear(align_corners=False), **LOSS}),
    (seg_loss.loss_and_gradient, ["logits", "labels", "class_weight"],
     {**LOSS, "upsampling": None, "scores": "logits", "out": None}),
    (seg_loss.evaluate, ["logits", "labels", "class_weight"],
     {**{name: value for name, value in LOSS.items() if name != "process_group"},
      "upsampling": None, "scores": "logits", "maps": ()}),
    (seg_loss.predict, ["scores"],
     {"size": None, "upsampling": None, "maps": ("prediction",), "temperature": 1.0}),
    (seg_loss.probability_cross_entropy, ["probabilities", "labels", "class_weight"],
     {"pixel_weight": None, "ignore_index": 255, "normalization": "valid",
      "process_group": None, "check_labels": "raise"}),
    (seg_loss.require_finite, ["logits", "labels"], {"ignore_index": 255, "upsampling": None}),
    (metrics.confusion_matrix, ["prediction", "labels", "num_classes"], {"ignore_index": 255}),
    (metrics.fcn_metrics, ["confusion"], {"absent": "skip", "ignore_index": None}),
    (modules.SpatialSoftmax, [], {"axis": 1, "temperature": 1.0}),
    (modules.SpatialCrossEntropy, ["class_weight"],
     {name: value for name, value in LOSS.items() if name != "pixel_weight"}),
    (modules.UpsampledCrossEntropy, ["class_weight"],
     {"upsampling": seg_loss.Bilinear(align_corners=False),
      **{name: value for name, value in LOSS.items() if name != "pixel_weight"}}),
    (upsampling.Bilinear, ["align_corners"], {}),
    (upsampling.Deconvolution, ["stride", "kernel_size", "crop"], {}),
    (upsampling.Deconvolution.of_fcn, ["scores", "labels"], {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "positional", "keywords"), SIGNATURES, ids=lambda f: getattr(f, "__name__", "")
)
def test_signatures_are_those_of_the_contract(function, positional, keywords):
    parameters = inspect.signature(function).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    got = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert got == keywords


def test_compat_has_the_names_of_caffe_and_torch():
    assert compat.__name__ == "seg_loss.compat"
    assert list(inspect.signature(caffe.Softmax).parameters) == ["axis"]
    assert list(inspect.signature(caffe.SoftmaxWithLoss).parameters) == [
        "ignore_label", "normalization", "normalize", "axis", "loss_weight",
    ]  # fmt: skip
    assert compat_torch.CrossEntropyLoss
    assert compat_torch.cross_entropy
