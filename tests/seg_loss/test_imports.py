"""Who may import whom, and the public names: what the layout promises, read off the sources."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import seg_loss
from seg_loss import _operators as ops
from seg_loss import compat, metrics, modules, upsampling
from seg_loss.compat import caffe
from seg_loss.compat import torch as compat_torch

PACKAGE = Path(seg_loss.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path):
    """Full names of all modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:  # a relative import, in `app` and `models`
                package = path.relative_to(PACKAGE.parent).parts[: -node.level]
                module = ".".join([*package, *filter(None, [node.module])])
            found |= {module} | {f"{module}.{name.name}" for name in node.names}
    return found


def importers(*modules):
    """The files that import one of the modules, or something inside it."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if any(f"{name}.".startswith(f"{module}.") for name in imported(path) for module in modules)
    }


def test_the_library_knows_neither_service_nor_models_nor_a_web_framework():
    assert importers("app", "models", "fastapi", "starlette", "pydantic", "uvicorn", "PIL") == set()


def test_numba_lives_in_the_files_named_for_it_behind_their_backend():
    files = importers("numba", "llvmlite")
    assert files == {"cpu/cache.py", "cpu/kernels.py", "cpu/simd.py"}


def test_triton_lives_in_the_files_of_its_kernels():
    names = ("cross_entropy", "evaluate", "labels", "math", "softmax", "upsampled")
    assert importers("triton") == {f"gpu/{name}.py" for name in names}


def test_a_gpu_without_triton_is_refused_by_name():
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, seg_loss; from seg_loss import _operators as ops\n"
        "ops.BACKENDS['cpu'] = ops.BACKENDS['cuda']\n"
        "try: seg_loss.spatial_softmax(torch.zeros(1, 2))\n"
        "except seg_loss.InvalidInput as refusal: print(refusal)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "logits: expected Triton to be installed, got a tensor on cpu without it. "
        "pip install triton, or call .cpu()."
    )


def test_kernels_are_reached_through_their_backend_alone():
    assert importers("seg_loss.cpu.simd") == {"cpu/kernels.py", "cpu/upsampled.py"}
    assert importers("seg_loss.cpu.kernels") == {"cpu/backend.py", "cpu/upsampled.py"}
    assert importers("seg_loss.cpu.upsampled") == {"cpu/backend.py"}
    for name in ("evaluate", "softmax", "upsampled"):
        assert importers(f"seg_loss.gpu.{name}") == {"gpu/backend.py"}
    assert importers("seg_loss.gpu.cross_entropy") == {"gpu/backend.py", "gpu/upsampled.py"}
    # By the device of the tensors, in `ops`, and there by name.
    assert importers("seg_loss.cpu.backend", "seg_loss.gpu.backend") == set()
    assert ops.BACKENDS == {"cpu": "seg_loss.cpu.backend", "cuda": "seg_loss.gpu.backend"}


def test_only_normalization_may_know_of_other_ranks():
    assert importers("torch.distributed") <= {"_divisor.py"}


def test_the_product_does_not_use_the_reference():
    assert importers("seg_loss.reference") == set()
    root = PACKAGE.parent
    for folder in ("app", "models"):
        for path in (root / folder).rglob("*.py"):
            assert "seg_loss.reference" not in imported(path), path


def test_numba_is_imported_on_first_use_only():
    # At the top of a file, numba costs every user of the names half a second.
    script = (
        "import json, sys; before = set(sys.modules); import seg_loss, seg_loss.compat.torch, "
        "seg_loss.compat.caffe, seg_loss.metrics; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    loaded = set(json.loads(done.stdout))
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


def test_public_names_are_frozen():
    assert seg_loss.__all__ == sorted(seg_loss.__all__)
    assert set(seg_loss.__all__) == {
        "Bilinear", "Calibration", "CalibrationBin", "ClassLoss", "Deconvolution", "Diagnosis",
        "Evaluation", "FcnMetrics", "ImageLoss", "InvalidInput", "SpatialCrossEntropy",
        "__version__",
        "SpatialSoftmax", "UpsampledCrossEntropy", "check", "evaluate", "loss_and_gradient",
        "pixel_nll", "require_finite", "scratch_bytes", "spatial_cross_entropy", "spatial_softmax",
        "upsampled_cross_entropy", "warm_up",
    }  # fmt: skip
    for name in seg_loss.__all__:
        assert getattr(seg_loss, name).__doc__, f"{name} says nothing"


LOSS = {"pixel_weight": None, "ignore_index": 255, "label_smoothing": 0.0, "temperature": 1.0,
        "normalization": "valid", "check_labels": "raise"}  # fmt: skip
SIGNATURES = [
    (seg_loss.spatial_softmax, ["logits"], {"axis": 1, "temperature": 1.0}),
    (seg_loss.pixel_nll, ["logits", "labels"], {"ignore_index": 255, "temperature": 1.0,
     "check_labels": "raise"}),
    (seg_loss.spatial_cross_entropy, ["logits", "labels", "class_weight"], LOSS),
    (seg_loss.upsampled_cross_entropy, ["scores", "labels", "class_weight"],
     {"upsampling": seg_loss.Bilinear(align_corners=False), **LOSS}),
    (seg_loss.loss_and_gradient, ["logits", "labels", "class_weight"],
     {**LOSS, "upsampling": None, "out": None}),
    (seg_loss.evaluate, ["logits", "labels", "class_weight"],
     {**LOSS, "upsampling": None, "maps": ()}),
    (seg_loss.require_finite, ["logits", "labels"], {"ignore_index": 255, "upsampling": None}),
    (metrics.confusion_matrix, ["prediction", "labels", "num_classes"], {"ignore_index": 255}),
    (metrics.fcn_metrics, ["confusion"], {"absent": "skip"}),
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
def test_names_order_and_defaults_of_the_options_are_those_of_the_contract(
    function, positional, keywords
):
    parameters = inspect.signature(function).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    # An option more may come, such as process_group; none may go or change.
    got = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert keywords.items() <= got.items()
    assert set(got) - set(keywords) <= {"process_group"}


def test_caffe_and_torch_words_are_where_the_contract_says():
    assert compat.__name__ == "seg_loss.compat"
    assert list(inspect.signature(caffe.Softmax).parameters) == ["axis"]
    assert list(inspect.signature(caffe.SoftmaxWithLoss).parameters) == [
        "ignore_label", "normalization", "normalize", "axis", "loss_weight",
    ]  # fmt: skip
    assert compat_torch.CrossEntropyLoss
    assert compat_torch.cross_entropy
