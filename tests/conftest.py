"""What every test runs under: poisoned memory, fixed seeds, torch's threads put back."""

import os
from collections.abc import Iterator

import numba
import pytest
import torch


def pytest_report_header() -> str:
    return f"seg_loss: CPU backend, numba {numba.__version__}, torch {torch.__version__}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
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
