"""A training step of the FCNs on the CPU: the loss of the scores against the loss of the logits.

    python -m benchmarks.networks [--width full] [--size 500] [--steps 3] [--output FOLDER]

FCN-32s, FCN-16s and FCN-8s train on one image as FCN does: batch 1, unnormalised loss, SGD with
momentum 0.99, dropout, scores that begin at zero; the other weights are random. Each network does
so twice, in a process of its own: with `upsampled_cross_entropy` of its low-resolution scores
("fused"), and with its last deconvolution and `spatial_cross_entropy` ("plain"). Both draw the same
dropout, so that the losses of their steps are the same curve; a larger difference than the
tolerance fails the run.

Only the last layers differ, and a step is mostly VGG16. The second part of the tables has these
layers alone, from the scores to their gradient; "torch" is the deconvolution, then torch's loss.

The time of a step is the least of those after the first. Its memory is the peak of the whole
process. Memory of the last layers is the peak beyond scores, labels and weights, in a process of
its own. Writes networks.csv and networks.md.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from benchmarks.cpu import IGNORED, machine, measure, training
from models.fcn import FCN, VGG16_CHANNELS, BilinearDeconvolution
from models.networks import NETWORKS
from models.surgery import initialize
from seg_loss import Deconvolution, spatial_cross_entropy, upsampled_cross_entropy
from seg_loss.constants import FCN_CROPS

NAMES = ("fcn32s", "fcn16s", "fcn8s")
HEADS = ("fused", "plain")
CLASSES = 21
# For a loss that is the sum over the pixels. The published rates, 1e-10 and less, are for VGG16's
# weights, whose activations are larger; from random ones they move nothing in a few steps.
LEARNING_RATE = 1e-8
MOMENTUM = 0.99
WIDTHS = {"full": VGG16_CHANNELS, "thin": (8, 16, 16, 16, 16, 32)}
TOLERANCE = 1e-5  # of the loss of a step, relative
HEAD_ROUNDS = 9


@dataclass(frozen=True)
class Run:
    """The steps of one network with one head.

    Attributes:
        losses: per pixel, before each step.
        seconds: of each step.
        peak_bytes: of the process.
    """

    losses: list[float]
    seconds: list[float]
    peak_bytes: int

    @property
    def step_seconds(self) -> float:
        """The least of the steps after the first, which allocates."""
        return min(self.seconds[1:] or self.seconds)


def make_image_and_labels(size: int) -> tuple[Tensor, Tensor]:
    """Returns noise of the deviation of photos, and labels in blocks of 25 pixels, some ignored."""
    generator = torch.Generator().manual_seed(0)
    image = 60 * torch.randn(1, 3, size, size, generator=generator)
    blocks = torch.randint(0, CLASSES, (1, -(-size // 25), -(-size // 25)), generator=generator)
    labels = blocks.repeat_interleave(25, 1).repeat_interleave(25, 2)[:, :size, :size].contiguous()
    labels[torch.rand(labels.shape, generator=generator) < IGNORED] = 255
    return image, labels.to(torch.uint8)


def loss_of(network: FCN, head: str, image: Tensor, labels: Tensor) -> Tensor:
    if head == "fused":
        scores, upsampling = network.scores(image)
        return upsampled_cross_entropy(scores, labels, upsampling=upsampling, normalization="batch")
    return spatial_cross_entropy(network(image), labels, normalization="batch")


def train(name: str, head: str, width: str, size: int, steps: int) -> Run:
    """Takes some steps; to be called in a process of its own, whose peak memory it returns."""
    network = NETWORKS[name](CLASSES, WIDTHS[width]).train()
    initialize(network, 0)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=LEARNING_RATE, momentum=MOMENTUM)
    image, labels = make_image_and_labels(size)
    valid = int((labels != 255).sum())
    losses, seconds = [], []
    torch.manual_seed(2)
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = loss_of(network, head, image, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item() / valid)
    return Run(losses, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def last_layers(name: str, size: int) -> tuple[Tensor, dict[str, Callable[[Tensor], Tensor]]]:
    """Returns scores for an image of this size, and losses of them: of each head, and of torch."""
    stride = NETWORKS[name].stride
    crop = FCN_CROPS[stride]
    with torch.device("meta"):
        low, _ = NETWORKS[name](CLASSES, WIDTHS["thin"]).scores(torch.empty(1, 3, size, size))
    scores = 3 * torch.randn(low.shape, generator=torch.Generator().manual_seed(0))
    _, labels = make_image_and_labels(size)
    long_labels = labels.long()
    deconvolution = BilinearDeconvolution(CLASSES, 2 * stride, stride)

    def logits(x: Tensor) -> Tensor:
        upscore: Tensor = deconvolution(x)
        return upscore[:, :, crop : crop + size, crop : crop + size]

    def fused(x: Tensor) -> Tensor:
        upsampling = Deconvolution(stride, crop=crop)
        return upsampled_cross_entropy(x, labels, upsampling=upsampling, normalization="batch")

    def plain(x: Tensor) -> Tensor:
        return spatial_cross_entropy(logits(x), labels, normalization="batch")

    def by_torch(x: Tensor) -> Tensor:
        return F.cross_entropy(logits(x), long_labels, ignore_index=255, reduction="sum")

    return scores, {"fused": fused, "plain": plain, "torch": by_torch}


def peak_of_last_layers(name: str, size: int, head: str) -> int:
    """Returns the peak memory of one pass; to be called in a process of its own."""

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    warm, losses = last_layers(name, 64)
    training(warm, losses[head])()  # compiles
    scores, losses = last_layers(name, size)
    call = training(scores, losses[head])
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    call()
    return max(0, status("VmHWM") - before)


def in_process(function: str, *arguments: Any) -> Any:
    """Calls a function of this module in a new process, whose result is JSON."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.networks",
        "--call",
        function,
        *map(str, arguments),
    ]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    output = subprocess.check_output(command, text=True, env={**os.environ, **threads})
    return json.loads(output.splitlines()[-1])


def curve_error(fused: Run, plain: Run) -> float:
    """Returns the largest relative difference between two curves of losses."""
    pairs = zip(fused.losses, plain.losses, strict=True)
    return max(abs(a - b) / abs(b) for a, b in pairs)


def step_table(runs: Mapping[tuple[str, str], Run]) -> list[str]:
    """Returns a table of the steps, by network and head."""
    lines = [
        "| network | head | s a step | peak, GB | loss per pixel at each step | difference |",
        "|---|---|---|---|---|---|",
    ]
    for (name, head), run in runs.items():
        losses = ", ".join(f"{loss:.6f}" for loss in run.losses)
        error = f"{curve_error(run, runs[name, 'plain']):.1e}" if head == "fused" else ""
        cells = (
            name,
            head,
            f"{run.step_seconds:.2f}",
            f"{run.peak_bytes / 1e9:.2f}",
            losses,
            error,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", choices=WIDTHS, default="full")
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--call", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.call:
        call(*arguments.call)
        return
    runs = {}
    for name in NAMES:
        for head in HEADS:
            result = in_process(
                "train", name, head, arguments.width, arguments.size, arguments.steps
            )
            runs[name, head] = Run(**result)
            print(name, head, f"{runs[name, head].step_seconds:.2f} s a step", file=sys.stderr)
    errors = {name: curve_error(runs[name, "fused"], runs[name, "plain"]) for name in NAMES}
    size = f"{arguments.size}x{arguments.size}"
    lines = [
        f"Made by `python -m benchmarks.networks`; one run. {machine()}.",
        "",
        f"**A training step at {size}**, {arguments.width} width, {CLASSES} classes, batch 1",
        "",
        *step_table(runs),
        "",
        f"The losses of both heads may differ by {TOLERANCE:.0e}, relative.",
        "",
    ]
    rows: list[list[object]] = [
        ["step", name, head, run.step_seconds * 1e3, run.peak_bytes, *run.losses]
        for (name, head), run in runs.items()
    ]
    for name in NAMES:
        scores, losses = last_layers(name, arguments.size)
        calls: dict[str, Callable[[], object]] = {
            head: training(scores, loss) for head, loss in losses.items()
        }
        times = measure(calls, HEAD_ROUNDS)
        lines += [
            f"**The last layers of {name}**, from scores {'x'.join(map(str, scores.shape))}",
            "",
            "| forward and backward | ms | against plain | peak memory, MB |",
            "|---|---|---|---|",
        ]
        plain_ms = statistics.median(times["plain"])
        for head, values in times.items():
            median = statistics.median(values)
            peak = in_process("peak_of_last_layers", name, arguments.size, head)
            cells = (head, f"{median:.1f}", f"{plain_ms / median:.1f}x", f"{peak / 1e6:.1f}")
            lines.append(f"| {' | '.join(cells)} |")
            rows.append(["last layers", name, head, median, peak])
        lines.append("")
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "networks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "network", "head", "ms", "peak bytes", "losses per pixel"])
        writer.writerows(rows)
    (arguments.output / "networks.md").write_text("\n".join(lines))
    print("\n".join(lines))
    wrong = [f"{name}: {error:.1e}" for name, error in errors.items() if not error <= TOLERANCE]
    if wrong:
        sys.exit(f"The losses of the two heads differ: {', '.join(wrong)}.")


def call(function: str, *texts: str) -> None:
    """Calls `train` or `peak_of_last_layers`, and prints the result as JSON."""
    if function == "train":
        name, head, width, size, steps = texts
        print(json.dumps(asdict(train(name, head, width, int(size), int(steps)))))
    else:
        name, size, head = texts
        print(json.dumps(peak_of_last_layers(name, int(size), head)))


if __name__ == "__main__":
    main()
