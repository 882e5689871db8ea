"""A check of `benchmarks.gpu_checks` on the CPU, by Triton's interpreter: for a process of its own.

TRITON_INTERPRET=1 python -m tests.interpreted "name of the check"
"""

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from benchmarks import gpu_checks
from seg_loss import _operators as ops
from seg_loss.gpu import tiling

NUMBA, TRITON = ops.BACKENDS["cpu"], ops.BACKENDS["cuda"]


def by_numba(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call on the backend that is not under test: what the checks compare with."""

    @functools.wraps(call)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        with mock.patch.dict(ops.BACKENDS, {"cpu": NUMBA}):
            return call(*arguments, **options)

    return wrapped


def main(name: str) -> None:
    warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of the infinities put in
    ops.BACKENDS["cpu"] = TRITON
    # The interpreter takes a second for what a device does in a microsecond: the same cuts smaller.
    gpu_checks.USUAL, gpu_checks.MORE_CLASSES = (2, 21, 9, 11), (2, 150, 9, 11)
    gpu_checks.LARGER, gpu_checks.SMALLER = (23, 29), (3, 5)
    tiling.SMALL_IMAGE = 400
    tiling.MULTIPROCESSORS = 1  # fewer programs, of more rows
    gpu_checks.on_cpu = by_numba(gpu_checks.on_cpu)
    gpu_checks.evaluate_on_cpu = by_numba(gpu_checks.evaluate_on_cpu)
    (check,) = (check for check in gpu_checks.CHECKS if check.name == name)
    try:
        print(check.run(torch.device("cpu"), True))
    except gpu_checks.Skipped as reason:
        print(f"skipped: {reason}")


if __name__ == "__main__":
    main(sys.argv[1])
