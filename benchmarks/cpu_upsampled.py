"""The loss of upsampled scores on the CPU against torch's interpolation and loss, in one run.

    python -m benchmarks.cpu_upsampled [--rounds 9] [--output benchmarks/results]

As in `benchmarks.cpu`: results are checked against float64 before anything is timed, the providers
take turns, figures are medians. Memory is the peak beyond inputs and the gradient of the scores, in
a process of its own, beside the full-resolution logits that are never made. Writes
cpu_upsampled.csv and cpu_upsampled.md.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

import seg_loss
from benchmarks.cpu import IGNORED, judge, machine, measure, ratio, training
from seg_loss import Bilinear

SHAPES = (
    (1, 19, 1024, 2048),  # Cityscapes, one image
    (2, 150, 512, 512),  # ADE20K
)
RATIOS = (8, 4, 16, 32)
COMPILED_RATIO = 8  # compiling takes half a minute each
EAGER = "interpolate + cross_entropy"
COMPILED = "the same, torch.compile"
UNFUSED = "interpolate + spatial_cross_entropy"
OURS = "upsampled_cross_entropy"


@dataclass(frozen=True)
class Problem:
    """Scores, labels as we read them and as torch wants them."""

    scores: Tensor
    labels: Tensor
    long_labels: Tensor

    @property
    def full_bytes(self) -> int:
        """Of the logits at the labels' resolution."""
        return self.labels.numel() * self.scores.shape[1] * self.scores.element_size()


def make_problem(shape: tuple[int, int, int, int], scale: int) -> Problem:
    generator = torch.Generator().manual_seed(0)
    num_images, num_classes, height, width = shape
    size = (num_images, num_classes, height // scale, width // scale)
    scores = torch.randn(size, generator=generator) * 3
    labels = torch.randint(0, num_classes, (num_images, height, width), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < IGNORED] = 255
    return Problem(scores, labels.to(torch.uint8), labels)


def torch_loss(scores: Tensor, labels: Tensor) -> Tensor:
    logits = F.interpolate(scores, labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, labels, ignore_index=255)


def check(problem: Problem) -> float:
    """The largest error of the gradient, relative to its largest value; as in `benchmarks.cpu`."""

    def of_torch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = problem.scores.to(dtype).requires_grad_()
        loss = torch_loss(x, problem.long_labels)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    truth, gradient = of_torch(torch.float64)
    _, theirs = of_torch(torch.float32)
    loss, ours = seg_loss.loss_and_gradient(problem.scores, problem.labels, upsampling=Bilinear())
    return judge(loss, ours, truth, gradient, theirs)


def providers(problem: Problem, *, is_compiled: bool) -> dict[str, Callable[[], object]]:
    scores, labels, long_labels = problem.scores, problem.labels, problem.long_labels

    def eager(x: Tensor) -> Tensor:
        return torch_loss(x, long_labels)

    def unfused(x: Tensor) -> Tensor:
        logits = F.interpolate(x, labels.shape[1:], mode="bilinear", align_corners=False)
        return seg_loss.spatial_cross_entropy(logits, labels)

    def ours(x: Tensor) -> Tensor:
        return seg_loss.upsampled_cross_entropy(x, labels)

    calls: dict[str, Callable[[], object]] = {EAGER: training(scores, eager)}
    if is_compiled:
        calls[COMPILED] = training(scores, torch.compile(eager, dynamic=False))
    calls[UNFUSED] = training(scores, unfused)
    calls[OURS] = training(scores, ours)
    return calls


_PEAK = """
import sys, json, torch, torch.nn.functional as F, seg_loss
from benchmarks import cpu_upsampled as benchmark
threads, name, shape, scale = int(sys.argv[1]), sys.argv[2], *map(json.loads, sys.argv[3:])
torch.set_num_threads(threads)
def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024
small = benchmark.make_problem((1, shape[1], 16, 16), scale if scale < 16 else 8)
benchmark.providers(small, is_compiled=False)[name]()
problem = benchmark.make_problem(shape, scale)
call = benchmark.providers(problem, is_compiled=False)[name]
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
gradient = call()
print(status("VmHWM") - before - gradient.nbytes)
"""


def peak_bytes(shape: tuple[int, ...], scale: int, name: str) -> int:
    """Peak memory of one forward and backward pass beyond inputs and gradient."""
    arguments = [str(torch.get_num_threads()), name, json.dumps(shape), json.dumps(scale)]
    command = [sys.executable, "-c", _PEAK, *arguments]
    return max(0, int(subprocess.check_output(command, text=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    lines = [f"Made by `make bench`; medians of one run, in ms. {machine()}.", ""]
    rows = []
    for shape in SHAPES:
        for scale in RATIOS:
            problem = make_problem(shape, scale)
            error = check(problem)
            calls = providers(problem, is_compiled=scale == COMPILED_RATIO)
            times = measure(calls, arguments.rounds)
            median = {name: statistics.median(values) for name, values in times.items()}
            peaks = {name: peak_bytes(shape, scale, name) for name in times if name != COMPILED}
            case = f"{'x'.join(map(str, problem.scores.shape))} to {shape[2]}x{shape[3]}"
            full = problem.full_bytes
            lines += [
                f"**{case}**, {full / 1e6:.0f} MB of logits not made",
                "",
                "| forward and backward | ms | against eager | peak memory, MB | of the logits |",
                "|---|---|---|---|---|",
            ]
            for name, values in times.items():
                deciles = statistics.quantiles(values, n=10)
                peak = peaks.get(name)
                figures = [median[name], deciles[0], deciles[8]]
                rows.append([case, name, *figures, "" if peak is None else peak / full, error])
                memory = "| |" if peak is None else f"| {peak / 1e6:.1f} | {peak / full:.1%} |"
                against = ratio(median[EAGER], median[name])
                lines.append(f"| {name} | {median[name]:.1f} | {against} {memory}")
            lines.append("")
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "cpu_upsampled.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        heading = ["median", "p10", "p90", "peak memory of the logits", "gradient error"]
        writer.writerow(["case", "provider", *heading])
        writer.writerows(rows)
    (arguments.output / "cpu_upsampled.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
