"""The GPU kernels in Triton's interpreter, for which Triton must be imported in its own process.

Each group is a process of pytest with SEG_LOSS_TEST_BACKEND=interpreter; as many run at a time as
there are cores.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[2]
BACKENDS = "tests/seg_loss/backends"
# The slowest first.
GROUPS = {
    "agreement of all options": [f"{BACKENDS}/test_backends_agree.py", "-k", "test_all_options"],
    "values": [f"{BACKENDS}/test_backend_values.py"],
    "grid of logits": [f"{BACKENDS}/test_backend_grid.py", "-k", "not upsampled"],
    "agreement of edge values": [
        f"{BACKENDS}/test_backends_agree.py",
        "-k",
        "not test_all_options",
    ],
    "labels": [f"{BACKENDS}/test_backend_labels.py"],
    "grid of upsampled scores": [f"{BACKENDS}/test_backend_grid.py", "-k", "upsampled"],
    "Caffe": ["tests/seg_loss/test_caffe_golden.py"],
}


def run(arguments):
    environment = {**os.environ, "SEG_LOSS_TEST_BACKEND": "interpreter", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )


@pytest.fixture(scope="module")
def runs(request):
    """Starts the groups of the selected tests; the results come as they are waited for."""
    selected = {
        item.callspec.params["group"]
        for item in request.session.items
        if item.module is request.module
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {group: pool.submit(run, GROUPS[group]) for group in GROUPS if group in selected}


@pytest.mark.parametrize("group", GROUPS)
def test_the_group_passes_in_the_interpreter(group, runs):
    done = runs[group].result()
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
