"""The backends that the tests with a `backend` run on, and the size of their inputs.

SEG_LOSS_TEST_BACKEND selects one:

    numba        the CPU kernels
    interpreter  the GPU kernels in Triton's interpreter, which the whole process then uses for
                 tensors on the CPU
    cuda         the GPU kernels on a CUDA device

By default `numba` runs, and `cuda` if there is a device. Inputs have their full size only if there
is a device. The interpreter takes a second for a microsecond of a device, so that its inputs are
fewer and smaller, with the same numbers of tiles. SEG_LOSS_TEST_SIZE (small or full) overrides it.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from seg_loss import _backends
from seg_loss.gpu import tiling

NAMES = ("numba", "interpreter", "cuda")
SELECTED = os.environ.get("SEG_LOSS_TEST_BACKEND", "")
IS_INTERPRETED = SELECTED == "interpreter"
_has_device = torch.cuda.is_available() and SELECTED in ("", "cuda")
IS_SMALL = (os.environ.get("SEG_LOSS_TEST_SIZE") or ("full" if _has_device else "small")) == "small"
NUMBA, TRITON = _backends.BACKENDS["cpu"], _backends.BACKENDS["cuda"]

# Several tiles and a remainder, odd planes.
DEFAULT_SHAPE = (2, 21, 9, 11) if IS_SMALL else (2, 21, 37, 53)
MANY_CLASSES = (2, 150, 9, 11) if IS_SMALL else (2, 150, 37, 53)
# Images that are large enough to be processed one by one, and small ones for very many classes.
LARGE_IMAGE = (23, 29) if IS_SMALL else (71, 67)
SMALL_IMAGE = (3, 5) if IS_SMALL else (19, 23)


class Depth(IntEnum):
    """How many functions of the library a test calls."""

    FORWARD = 1
    TRAINING = 2
    EVERYTHING = 3


@dataclass(frozen=True)
class Backend:
    """The kernels under test, and the device of their tensors."""

    name: str

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.name == "cuda" else "cpu")

    def place(self, x: Tensor) -> Tensor:
        """Returns a copy on the device with the same strides, offset and gaps."""
        memory = torch.empty(0, dtype=x.dtype).set_(x.detach().untyped_storage())
        copy = memory.to(self.device, copy=True)
        return copy.as_strided(x.shape, x.stride(), x.storage_offset())

    def place_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in options.items()
        }

    def wait(self) -> None:
        if self.name == "cuda":
            torch.cuda.synchronize()


def use_interpreter() -> None:
    """Runs all tensors on the CPU through the GPU kernels, in Triton's interpreter."""
    assert "triton" not in sys.modules, "Triton reads the variable when it is imported"
    os.environ["TRITON_INTERPRET"] = "1"
    _backends.BACKENDS["cpu"] = TRITON
    # Smaller images are then processed one by one, and by fewer programs of more rows.
    tiling.SMALL_IMAGE = 400
    tiling.MULTIPROCESSORS = 1
    _patch_modules_once()


def _patch_modules_once() -> None:
    """Halves the interpreter's time.

    Triton replaces the functions of its language before it runs a kernel, and does so again at each
    call of a device function. Once for each module of device functions is enough.
    """
    try:
        from triton.runtime import interpreter
    except ImportError:  # the tests of the GPU kernels say that Triton is not installed
        return
    patched: set[int] = set()

    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if id(self.fn.__globals__) not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(id(self.fn.__globals__))
        return self.rewrite()(*arguments, **keywords)

    interpreter.InterpretedFunction.__call__ = call


@contextmanager
def numba_kernels() -> Iterator[None]:
    """Runs tensors on the CPU through the CPU kernels, also in the interpreter's process."""
    with mock.patch.dict(_backends.BACKENDS, {"cpu": NUMBA}):
        yield


def assert_close(name: str, got: float, truth: float, rel: float) -> None:
    """Asserts that two numbers differ by at most this share of the truth."""
    allowed = rel * max(abs(truth), 1e-30) + 1e-12
    assert abs(got - truth) <= allowed, f"{name}: got {got!r}, truth {truth!r}"
