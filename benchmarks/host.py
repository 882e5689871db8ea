"""Time of the host per call on a small tensor, against eager torch, in one run; needs no GPU.

    python -m benchmarks.host [--rounds 15] [--output benchmarks/results]

A training loop whose device is idle waits for the host. The GPU backend runs here with tensors on
the CPU and with launches that do nothing: what is left is the time in Python and in torch's
allocator. It does not contain the launches of the driver, about 5 us each, and no waiting. The CPU
backend is measured as it is, its kernels included.

The contenders take turns, one series of calls a round; figures are medians over the rounds in one
thread. `python -m benchmarks.gpu` measures the same on a device. Writes host.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

import seg_loss
from benchmarks.cpu import machine
from seg_loss import _backends

SHAPE = (1, 21, 8, 8)
TARGET = 4.0  # times eager torch, forward and backward
CALLS = 50
EAGER, OURS = "eager forward+backward", "forward+backward"


class _Compiled:
    """In place of a compiled kernel: a launch takes its arguments and does nothing."""

    function = 0
    packed_metadata = ()

    @staticmethod
    def run(*arguments: Any) -> None:
        pass


def _without_compiling(launch: Any, arguments: tuple[Any, ...]) -> None:
    launch._compiled = _Compiled


def series(call: Callable[[], object]) -> float:
    """Returns the microseconds per call."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS * 1e6


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    for call in calls.values():
        for _ in range(CALLS):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(series(call))
    return {name: statistics.median(values) for name, values in times.items()}


def training(x: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    def step() -> None:
        x.grad = None
        loss_of(x).backward()  # type: ignore[no-untyped-call]

    return step


def contenders() -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], object]]]:
    """Returns calls of torch and the CPU backend, and calls for the GPU backend."""
    torch.manual_seed(0)
    logits = torch.randn(SHAPE)
    labels = torch.randint(0, SHAPE[1], (SHAPE[0], *SHAPE[2:]), dtype=torch.uint8)
    long_labels = labels.long()
    leaf, scores = logits.clone().requires_grad_(), torch.randn(1, SHAPE[1], 2, 2).requires_grad_()
    deferred: dict[str, Any] = {"check_labels": "defer"}

    def eager(x: Tensor) -> Tensor:
        return F.cross_entropy(x, long_labels, ignore_index=255)

    def ours(x: Tensor) -> Tensor:
        return seg_loss.spatial_cross_entropy(x, labels)

    def upsampled(x: Tensor) -> Tensor:
        return seg_loss.upsampled_cross_entropy(x, labels)

    on_gpu: dict[str, Callable[[], object]] = {
        OURS: training(leaf, ours),
        "forward+backward, defer": training(
            leaf, lambda x: seg_loss.spatial_cross_entropy(x, labels, **deferred)
        ),
        "forward": lambda: ours(logits),
        "loss_and_gradient": lambda: seg_loss.loss_and_gradient(logits, labels),
        "upsampled forward+backward": training(scores, upsampled),
        "evaluate": lambda: seg_loss.evaluate(logits, labels),
    }
    on_cpu: dict[str, Callable[[], object]] = {
        EAGER: training(leaf, eager),
        "eager forward": lambda: eager(logits),
        "CPU kernels, forward+backward": training(leaf, ours),
        "CPU kernels, loss_and_gradient": lambda: seg_loss.loss_and_gradient(logits, labels),
    }
    return on_cpu, on_gpu


def on_gpu_backend(call: Callable[[], object]) -> Callable[[], object]:
    """Returns a series' call that runs on the GPU backend with tensors on the CPU."""
    gpu = _backends.BACKENDS["cuda"]

    def run() -> object:
        saved = _backends.BACKENDS["cpu"]
        _backends.BACKENDS["cpu"] = gpu
        try:
            return call()
        finally:
            _backends.BACKENDS["cpu"] = saved

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    from seg_loss.gpu import plan

    torch.set_num_threads(1)
    on_cpu, on_gpu = contenders()
    calls = on_cpu | {f"GPU backend, {name}": on_gpu_backend(call) for name, call in on_gpu.items()}
    with mock.patch.object(plan.Launch, "_first_call", _without_compiling):
        times = measure(calls, arguments.rounds)
    eager = times[EAGER]
    measured = times[f"GPU backend, {OURS}"] / eager
    shape = "x".join(map(str, SHAPE))
    lines = [
        f"Made by `python -m benchmarks.host`; medians of one run, in us per call. {machine()}.",
        "",
        f"Logits {shape} in float32. The GPU backend runs with launches that do nothing.",
        "",
        "| | us | against eager forward+backward |",
        "|---|---|---|",
        *(f"| {name} | {us:.0f} | {us / eager:.2f} |" for name, us in times.items()),
        "",
        f"GPU backend, forward+backward: at most {TARGET:.0f} times eager; it is {measured:.2f}.",
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "host.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
