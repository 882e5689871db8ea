"""The GPU's checks, each on the CPU in a process of its own, by Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from benchmarks import gpu_checks

ROOT = Path(__file__).parents[2]
# These say nothing without a device; torch.compile would compile for the CPU.
ON_DEVICE_ONLY = {
    "more than 2^31 elements", "compute-sanitizer", "no waiting", "CUDA graphs", "peak memory",
    "torch.compile",
}  # fmt: skip


def interpreted(*command):
    return subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-m", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )


@pytest.mark.parametrize(
    "name", [check.name for check in gpu_checks.CHECKS if check.name not in ON_DEVICE_ONLY]
)
def test_the_check_holds_in_the_interpreter(name):
    done = interpreted("tests.interpreted", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    assert not done.stdout.startswith("skipped")


def test_the_kernels_agree_with_caffe_too():
    done = interpreted(
        "pytest", "-q", "-p", "no:cacheprovider", "tests/seg_loss/test_caffe_golden.py"
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


def test_axes_that_cannot_be_cut_keep_the_gradient_of_the_forward_pass():
    # More than three spatial axes apart: the gradient lies elsewhere, the backward pass too.
    script = (
        "import os; os.environ['TRITON_INTERPRET'] = '1'\n"
        "import torch, seg_loss\nfrom seg_loss import _operators as ops\n"
        "from tests.support.cases import *\n"
        "x = make_logits((2, 3, 6, 5, 4))[:, :, 1:-1, 1:-1, 1:-1].detach()\n"
        "x = x.permute(0, 1, 4, 3, 2).requires_grad_(); y = make_labels(x.shape)\n"
        "for factor in (1, 3):\n"
        "    ops.BACKENDS['cpu'] = 'seg_loss.gpu.backend'\n"
        "    (got,) = torch.autograd.grad(factor * seg_loss.spatial_cross_entropy(x, y), x)\n"
        "    ops.BACKENDS['cpu'] = 'seg_loss.cpu.backend'\n"
        "    (plain,) = torch.autograd.grad(factor * seg_loss.spatial_cross_entropy(x, y), x)\n"
        "    assert torch.allclose(got, plain, atol=1e-6), factor\n"
        "print('equal')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.stdout.strip() == "equal", done.stderr
