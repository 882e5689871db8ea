"""What every test runs under: poisoned memory, fixed seeds, torch's threads put back."""

import os
from collections.abc import Iterator

import numba
import pytest
import torch

from seg_loss import _operators as ops

# In a process of its own, so that Triton sees it when it is imported: the library's tests then run
# on the GPU's kernels, by Triton's interpreter.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    ops.BACKENDS["cpu"] = "seg_loss.gpu.backend"


def pytest_report_header() -> str:
    backend = "GPU backend, interpreted" if INTERPRETED else f"CPU, numba {numba.__version__}"
    return f"seg_loss: {backend}; torch {torch.__version__}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if INTERPRETED:
        # NumPy warns of the infinities and NaN that the tests put in.
        for item in items:
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
    if os.environ.get("SEG_LOSS_LARGE") == "1":
        return
    reason = "needs about 8 GB and a minute; SEG_LOSS_LARGE=1 runs it"
    for item in items:
        if item.get_closest_marker("large"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Uninitialised tensors hold NaN, or the largest integer: one left unwritten is seen."""
    torch.manual_seed(0)
    num_threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(num_threads)
