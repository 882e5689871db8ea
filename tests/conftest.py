"""What every test runs under: a backend, poisoned memory, fixed seeds, torch's threads restored."""

import os
from collections.abc import Iterator

import numba
import pytest
import torch

from tests.support import backends
from tests.support.backends import Backend

if backends.IS_INTERPRETED:
    backends.use_interpreter()


def pytest_report_header() -> list[str]:
    kernels = {
        "": "numba and cuda" if torch.cuda.is_available() else "numba; no cuda, without a device",
        "interpreter": "GPU kernels in Triton's interpreter, for all tensors on the CPU",
    }.get(backends.SELECTED, backends.SELECTED)
    versions = f"torch {torch.__version__}, numba {numba.__version__}"
    size = "small" if backends.IS_SMALL else "full"
    return [f"backends: {kernels}; inputs: {size}; {versions}"]


def pytest_configure() -> None:
    if backends.SELECTED not in ("", *backends.NAMES):
        names = ", ".join(backends.NAMES)
        raise pytest.UsageError(
            f"SEG_LOSS_TEST_BACKEND: expected one of {names}, got {backends.SELECTED!r}."
        )


CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def _backend(name: str) -> Backend:
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return Backend(name)


@pytest.fixture(params=["numba", "interpreter", CUDA])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend; a run has those that SEG_LOSS_TEST_BACKEND selects."""
    return _backend(request.param)


@pytest.fixture(params=["interpreter", CUDA])
def gpu_kernels(request: pytest.FixtureRequest) -> Backend:
    """Each backend that runs the GPU kernels."""
    return _backend(request.param)


@pytest.fixture(params=[CUDA])
def cuda(request: pytest.FixtureRequest) -> Backend:
    """The GPU kernels on a CUDA device alone."""
    return _backend(request.param)


def _backend_of(item: pytest.Item) -> str | None:
    parameters = getattr(item, "callspec", None)
    values = {} if parameters is None else parameters.params
    return next(
        (values[name] for name in ("backend", "gpu_kernels", "cuda") if name in values), None
    )


def _is_selected(name: str | None, marks: str) -> bool:
    """Returns whether the tests of a backend are run; `marks` is the expression after -m."""
    if backends.SELECTED == "cuda":
        return name == "cuda"
    if backends.SELECTED:
        return name in (None, backends.SELECTED)
    if name == "cuda":
        return torch.cuda.is_available() or "gpu" in marks
    return name != "interpreter"  # it has processes of its own


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marks = config.option.markexpr
    selected = [item for item in items if _is_selected(_backend_of(item), marks)]
    kept = set(selected)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = selected
    for item in items:
        if item.get_closest_marker("gpu"):
            # Warnings of drivers and of torch's compiler are not errors of this library.
            item.add_marker(pytest.mark.filterwarnings("default"))
        elif backends.IS_INTERPRETED:
            # NumPy warns of the infinities and NaN in the tests' inputs.
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
        if item.get_closest_marker("large") and os.environ.get("SEG_LOSS_LARGE") != "1":
            reason = "needs about 8 GB and a minute; SEG_LOSS_LARGE=1 runs it"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills uninitialised tensors with NaN or the largest integer: unwritten memory shows."""
    torch.manual_seed(0)
    num_threads = torch.get_num_threads()
    # On a device torch has operators without a deterministic algorithm, which the tests may use.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(num_threads)
