"""The loss on the CPU against torch eager, torch.compile and a plain copy, in one run.

    python -m benchmarks.cpu [--rounds 15] [--shape 1,19,1024,2048] [--output benchmarks/results]

Every result is checked against float64 before anything is timed. The providers take turns, one call
each a round, so that what else the machine does hits all alike; figures are medians over the
rounds, and the ratios are of medians of the same run. Bytes are those that the scheme must move:
one read of the logits, and of the labels, and one write of the gradient. There are two floors, both
a copy of the logits into memory that exists: `Tensor.copy_`, and a copy past the caches, which does
not read the memory that it writes. Writes cpu.csv and cpu.md.
"""

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numba
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

import seg_loss
from benchmarks.streaming_copy import streaming_copy

STREAMING_COPY = "copy past the caches"
SHAPES = (
    (1, 21, 500, 300),  # an image of PASCAL VOC; 12.6 MB, which a large cache holds
    (1, 19, 1024, 2048),  # Cityscapes, one image
    (2, 150, 512, 512),  # ADE20K
)
IGNORED = 0.05


@dataclass(frozen=True)
class Problem:
    """Logits, labels as we read them and as torch wants them, and memory that exists already."""

    logits: Tensor
    labels: Tensor
    long_labels: Tensor
    out: Tensor

    @property
    def name(self) -> str:
        return "x".join(map(str, self.logits.shape)) + " " + str(self.logits.dtype)[6:]


def make_problem(shape: tuple[int, ...], dtype: torch.dtype) -> Problem:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(shape, generator=generator) * 3).to(dtype)
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < IGNORED] = 255
    return Problem(logits, labels.to(torch.uint8), labels, torch.zeros_like(logits))


def gradient_of(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Torch's own loss and gradient, in the dtype of the logits."""
    x = logits.detach().requires_grad_()
    loss = F.cross_entropy(x, labels, ignore_index=255)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def check(problem: Problem) -> float:
    """The largest error of the gradient, relative to its largest value.

    Raises:
        AssertionError: where it is larger than twice torch's own plus four times the dtype's
            epsilon, or the loss is off by more than 1e-6.
    """
    truth, gradient = gradient_of(problem.logits.double(), problem.long_labels)
    _, theirs = gradient_of(problem.logits, problem.long_labels)
    loss, ours = seg_loss.loss_and_gradient(problem.logits, problem.labels)
    return judge(loss, ours, truth, gradient, theirs)


def judge(
    loss: Tensor, gradient: Tensor, true_loss: Tensor, true_gradient: Tensor, by_torch: Tensor
) -> float:
    """The largest error of a gradient, relative to its largest value; as `check`."""
    scale = true_gradient.abs().max()
    error = ((gradient - true_gradient).abs().max() / scale).item()
    allowed = 2 * ((by_torch - true_gradient).abs().max() / scale).item()
    allowed += 4 * torch.finfo(gradient.dtype).eps
    loss_error = abs(loss.item() / true_loss.item() - 1)
    if error > allowed or loss_error > 1e-6:
        shape = "x".join(map(str, gradient.shape))
        name = f"{shape} {str(gradient.dtype)[6:]}"
        raise AssertionError(f"{name}: gradient off by {error}, loss by {loss_error}")
    return error


def training(logits: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """A forward and a backward pass, and the gradient it leaves."""

    def step() -> Tensor:
        x = logits.detach().requires_grad_()
        loss_of(x).backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return x.grad

    return step


def providers(problem: Problem) -> dict[str, Callable[[], object]]:
    logits, labels, long_labels, out = (
        problem.logits, problem.labels, problem.long_labels, problem.out,
    )  # fmt: skip
    num_classes = logits.shape[1]

    def eager(x: Tensor) -> Tensor:
        return F.cross_entropy(x, long_labels, ignore_index=255)

    def ours(x: Tensor) -> Tensor:
        return seg_loss.spatial_cross_entropy(x, labels)

    compiled = torch.compile(eager, dynamic=False)

    def torch_evaluate() -> None:
        with torch.no_grad():
            eager(logits)
            prediction = logits.argmax(dim=1)
            logits.softmax(dim=1).amax(dim=1)
            valid = long_labels != 255
            torch.bincount(
                long_labels[valid] * num_classes + prediction[valid], minlength=num_classes**2
            )

    @torch.no_grad()
    def forward(loss: Callable[[Tensor], Tensor]) -> Tensor:
        return loss(logits)

    return {
        "copy": lambda: out.copy_(logits),
        STREAMING_COPY: streaming_copy(logits, out),
        "clone": lambda: logits.clone(),
        "eager forward": lambda: forward(eager),
        "eager forward+backward": training(logits, eager),
        "compiled forward": lambda: forward(compiled),
        "compiled forward+backward": training(logits, compiled),
        "spatial_cross_entropy forward": lambda: forward(ours),
        "spatial_cross_entropy forward+backward": training(logits, ours),
        "loss_and_gradient": lambda: seg_loss.loss_and_gradient(logits, labels),
        "loss_and_gradient out=": lambda: seg_loss.loss_and_gradient(logits, labels, out=out),
        "torch evaluate": torch_evaluate,
        "evaluate": lambda: seg_loss.evaluate(logits, labels),
    }


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, the providers taking turns."""
    for call in calls.values():
        for _ in range(2):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


_PEAK = """
import sys, json, torch, seg_loss
torch.set_num_threads(int(sys.argv[1]))
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
def reset():
    open("/proc/self/clear_refs", "w").write("5")
def resident():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
shape = json.loads(sys.argv[2])
small = torch.zeros(1, shape[1], 8, 8).requires_grad_()
seg_loss.spatial_cross_entropy(small, torch.zeros(1, 8, 8, dtype=torch.uint8)).backward()
seg_loss.loss_and_gradient(small.detach(), torch.zeros(1, 8, 8, dtype=torch.uint8))
logits = torch.randn(shape)
labels = torch.randint(0, shape[1], (shape[0], *shape[2:])).to(torch.uint8)
out = torch.zeros_like(logits)
reset(); before = resident()
seg_loss.loss_and_gradient(logits, labels, out=out)
direct = peak() - before
del out
logits.requires_grad_()
reset(); before = resident()
seg_loss.spatial_cross_entropy(logits, labels).backward()
trained = peak() - before - logits.nbytes
print(json.dumps([direct / logits.nbytes, trained / logits.nbytes]))
"""


def peak_memory(shape: tuple[int, ...]) -> tuple[float, float]:
    """Peak beyond input and gradient, as a share of the logits: loss_and_gradient, and with
    autograd.
    """
    command = [sys.executable, "-c", _PEAK, str(torch.get_num_threads()), json.dumps(shape)]
    direct, trained = json.loads(subprocess.check_output(command, text=True))
    return direct, trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shape", action="append", help="N,C,H,W; may be repeated")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    if arguments.shape:
        shapes = tuple(tuple(map(int, text.split(","))) for text in arguments.shape)

    lines = [f"Made by `make bench`; medians of one run, in ms. {machine()}.", ""]
    rows = []
    for shape in shapes:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            problem = make_problem(shape, dtype)
            error = check(problem)
            calls = providers(problem)
            if dtype != torch.float32:
                calls = {
                    name: calls[name]
                    for name in (
                        "copy",
                        STREAMING_COPY,
                        "loss_and_gradient",
                        "loss_and_gradient out=",
                    )
                }
            times = measure(calls, arguments.rounds)
            for name, values in times.items():
                deciles = statistics.quantiles(values, n=10)
                rows.append(
                    [problem.name, name, statistics.median(values), deciles[0], deciles[8], error]
                )
            lines += _table(problem, {name: statistics.median(v) for name, v in times.items()})
    for shape in shapes:
        direct, trained = peak_memory(shape)
        name = "x".join(map(str, shape))
        rows += [[name, "peak memory, loss_and_gradient", direct, "", "", ""]]
        rows += [[name, "peak memory, forward+backward", trained, "", "", ""]]
        lines.append(
            f"- {name}: peak memory beyond input and gradient {direct:.2%} of the logits "
            f"(`loss_and_gradient`), {trained:.2%} (`spatial_cross_entropy` and backward)."
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "cpu.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "provider", "median", "p10", "p90", "gradient error"])
        writer.writerows(rows)
    (arguments.output / "cpu.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _table(problem: Problem, ms: dict[str, float]) -> list[str]:
    moved = 2 * problem.logits.nbytes + problem.labels.nbytes
    heading = f"**{problem.name}**, {moved / 1e6:.1f} MB to move"
    columns = "against eager", "against compiled", "copies", "copies past the caches"
    lines = [
        heading,
        "",
        f"| | ms | GB/s | {' | '.join(columns)} |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, time_ms in ms.items():
        kind = "evaluate" if "evaluate" in name else "forward" if name.endswith("forward") else ""
        eager = {
            "evaluate": ms.get("torch evaluate"),
            "forward": ms.get("eager forward"),
            "": ms.get("eager forward+backward"),
        }[kind]
        compiled = ms.get("compiled forward" if kind == "forward" else "compiled forward+backward")
        if kind == "evaluate":
            compiled = None
        passes = 0 if kind else moved
        lines.append(
            f"| {name} | {time_ms:.1f} | {f'{passes / time_ms / 1e6:.1f}' if passes else ''} "
            f"| {ratio(eager, time_ms)} | {ratio(compiled, time_ms)} "
            f"| {time_ms / ms['copy']:.2f} | {time_ms / ms[STREAMING_COPY]:.2f} |"
        )
    return [*lines, ""]


def ratio(other: float | None, time_ms: float) -> str:
    return f"{other / time_ms:.2f}x" if other else ""


def machine() -> str:
    """What measured what."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    versions = f"torch {torch.__version__}, Numba {numba.__version__}, commit {commit}"
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}, {versions}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
