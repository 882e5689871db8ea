"""The GPU kernels in Triton's interpreter, for which Triton must be imported in its own process.

Each test runs pytest with SEG_LOSS_TEST_BACKEND=interpreter on a group of tests. `make test` runs
the small groups, and `make test-matrices` those of many combinations.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[2]
BACKENDS = "tests/seg_loss/backends"
# The slowest first, so that parallel runs end early.
MATRICES = {
    "agreement of all options": [f"{BACKENDS}/test_backends_agree.py", "-k", "test_all_options"],
    "grid of logits": [f"{BACKENDS}/test_backend_grid.py", "-k", "not upsampled"],
    "values": [f"{BACKENDS}/test_backend_values.py"],
    "agreement of edge values": [
        f"{BACKENDS}/test_backends_agree.py",
        "-k",
        "not test_all_options",
    ],
    "grid of upsampled scores": [f"{BACKENDS}/test_backend_grid.py", "-k", "upsampled"],
    "predictions": [f"{BACKENDS}/test_backend_prediction.py"],
    "torch's samples and defaults": [
        "tests/seg_loss/test_torch_samples.py",
        "tests/seg_loss/test_default_device.py",
        "-k",
        "interpreter",
    ],
}
_PROCESS_GROUPS = " or ".join((
    "(one_process and two and (logits or bilinear))",
    "(one_rank_is and (label or pixel) and logits)",
    "(deferred_error_is and logits)",
    "ignored_errors",
))  # fmt: skip
GROUPS = {
    "the service": ["tests/app/http/test_gpu_service.py"],
    "second derivatives": [f"{BACKENDS}/test_backend_derivatives.py"],
    "labels": [f"{BACKENDS}/test_backend_labels.py"],
    "some predictions": [
        f"{BACKENDS}/test_backend_prediction.py",
        "-k",
        "those_of_float64 and (plain or bilinear)",
    ],
    "Caffe": ["tests/seg_loss/test_caffe_golden.py"],
    "process groups": ["tests/seg_loss/test_process_group.py", "-k", _PROCESS_GROUPS],
}


@pytest.mark.parametrize(
    "group", [*(pytest.param(name, marks=pytest.mark.matrix) for name in MATRICES), *GROUPS]
)
def test_the_group_passes_in_the_interpreter(group):
    arguments = (MATRICES | GROUPS)[group]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "SEG_LOSS_TEST_BACKEND": "interpreter", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
