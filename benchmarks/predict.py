"""Predictions of upsampled scores on the CPU against torch's interpolation and argmax, in one run.

    python -m benchmarks.predict [--rounds 15] [--output benchmarks/results]

As in `benchmarks.cpu`: results are checked before anything is timed, the providers take turns, and
figures are medians. Random scores are the slowest ones: no class can be left out. Realistic scores
have objects with blurred edges, as those of a trained network. Bytes are those that must be moved:
one read of the scores and one write of the maps; the floor is a copy that reads and writes as many.
Memory is the peak beyond the scores and the maps, in a process of its own. Writes predict.csv and
predict.md.
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
from benchmarks.cpu import machine, measure, ratio

Shape = tuple[int, int, int, int]
SHAPES: tuple[Shape, ...] = (
    (1, 19, 1024, 2048),  # Cityscapes, one image
    (2, 150, 512, 512),  # ADE20K
)
STRIDE = 8
KINDS = ("realistic", "random")
# Pixels of the scores between the centres of two objects, and how far classes lie apart.
OBJECT, SPREAD, NOISE = 8, 4.0, 0.1
EAGER = "interpolate + argmax"
COMPILED = "the same, torch.compile"
OURS = "predict"
EAGER_CONFIDENCE = "interpolate + softmax + max"
OURS_CONFIDENCE = "predict, prediction and confidence"
FLOOR = "copy of as many bytes"
_MOST_ULP = 4


@dataclass(frozen=True)
class Problem:
    """Scores, and the height and width of the maps."""

    scores: Tensor
    size: tuple[int, int]

    @property
    def num_pixels(self) -> int:
        return self.scores.shape[0] * self.size[0] * self.size[1]

    @property
    def full_bytes(self) -> int:
        """The bytes of the scores at the size of the maps."""
        return self.num_pixels * self.scores.shape[1] * self.scores.element_size()

    def bytes_for(self, pixel_bytes: int) -> int:
        """Returns the bytes of the scores, and of maps with `pixel_bytes` bytes for each pixel."""
        return self.scores.nbytes + pixel_bytes * self.num_pixels


def make_problem(shape: Shape, kind: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    num_images, num_classes, height, width = shape
    size = height // STRIDE, width // STRIDE
    scores = torch.randn(num_images, num_classes, *size, generator=generator)
    if kind == "realistic":
        objects = (max(1, length // OBJECT) for length in size)
        coarse = torch.randn(num_images, num_classes, *objects, generator=generator)
        scores = NOISE * scores + SPREAD * F.interpolate(coarse, size, mode="bicubic")
    else:
        scores *= 3
    return Problem(scores, (height, width))


def upsample(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)


def predict_by_torch(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return upsample(scores, size).argmax(1)


def check(problem: Problem) -> int:
    """Returns the number of pixels whose class is another one than in float64.

    Raises:
        AssertionError: where the best two scores differ by more than `_MOST_ULP` units in the last
            place of float32 and the class differs, or a confidence is off by more than 2e-6.
    """
    names = ("prediction", "confidence")
    alone = seg_loss.predict(problem.scores, size=problem.size)["prediction"]
    maps = seg_loss.predict(problem.scores, size=problem.size, maps=names)
    if not torch.equal(alone, maps["prediction"]):
        raise AssertionError("the prediction differs from that with a confidence")
    different = 0
    for image, scores in enumerate(problem.scores):
        logits = upsample(scores[None].double(), problem.size)[0]
        confidence = (logits.logsumexp(0) - logits.amax(0)).neg_().exp_()
        ulp = torch.finfo(torch.float32).eps * logits.abs().amax(0)
        best, classes = logits.max(0)
        logits.scatter_(0, classes[None], -torch.inf)
        is_sure = best - logits.amax(0) > _MOST_ULP * ulp
        is_other = maps["prediction"][image] != classes
        error = float((maps["confidence"][image] - confidence).abs().max())
        if bool((is_sure & is_other).any()) or error > 2e-6:
            raise AssertionError(f"wrong classes, or a confidence off by {error}")
        different += int(is_other.sum())
    return different


_compiled: list[Callable[[Tensor, tuple[int, int]], Tensor]] = []


def providers(problem: Problem, *, is_compiled: bool) -> dict[str, Callable[[], object]]:
    scores, size = problem.scores, problem.size

    def eager_confidence() -> tuple[Tensor, Tensor]:
        confidence, prediction = upsample(scores, size).softmax(1).max(1)
        return prediction, confidence

    calls: dict[str, Callable[[], object]] = {EAGER: lambda: predict_by_torch(scores, size)}
    if is_compiled:
        if not _compiled:
            _compiled.append(torch.compile(predict_by_torch, dynamic=False))
        calls[COMPILED] = lambda: _compiled[0](scores, size)
    calls[OURS] = lambda: seg_loss.predict(scores, size=size)["prediction"]
    calls[EAGER_CONFIDENCE] = eager_confidence
    names = ("prediction", "confidence")
    calls[OURS_CONFIDENCE] = lambda: tuple(seg_loss.predict(scores, size=size, maps=names).values())
    # A copy reads one half of the bytes and writes the other.
    source = torch.zeros(problem.bytes_for(1) // 2, dtype=torch.uint8)
    target = torch.zeros_like(source)
    calls[FLOOR] = lambda: target.copy_(source)
    return calls


_PEAK = """
import sys, json, torch, seg_loss
from benchmarks import predict as benchmark
threads, name, shape, kind = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
torch.set_num_threads(threads)
def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024
small = benchmark.make_problem((1, shape[1], 128, 128), kind)
benchmark.providers(small, is_compiled=False)[name]()
problem = benchmark.make_problem(tuple(shape), kind)
call = benchmark.providers(problem, is_compiled=False)[name]
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
maps = call()
maps = maps if isinstance(maps, tuple) else (maps,)
print(status("VmHWM") - before - sum(values.nbytes for values in maps))
"""


def peak_bytes(shape: Shape, kind: str, name: str) -> int:
    """Returns the peak memory of one call beyond the scores and the maps."""
    arguments = [str(torch.get_num_threads()), name, json.dumps(shape), kind]
    command = [sys.executable, "-c", _PEAK, *arguments]
    return max(0, int(subprocess.check_output(command, text=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    lines = [f"Made by `make bench`; medians of one run, in ms. {machine()}.", ""]
    rows = []
    for shape in SHAPES:
        for kind in KINDS:
            problem = make_problem(shape, kind)
            different = check(problem)
            times = measure(providers(problem, is_compiled=True), arguments.rounds)
            median = {name: statistics.median(values) for name, values in times.items()}
            full = problem.full_bytes
            case = f"{'x'.join(map(str, problem.scores.shape))} to {shape[2]}x{shape[3]}, {kind}"
            megabytes = [problem.bytes_for(pixel_bytes) / 1e6 for pixel_bytes in (1, 5)]
            lines += [
                f"**{case}**, {full / 1e6:.0f} MB of upsampled scores not made",
                "",
                "| maps | ms | against eager | peak memory, MB | of the upsampled scores |",
                "|---|---|---|---|---|",
            ]
            for name, values in times.items():
                deciles = statistics.quantiles(values, n=10)
                has_peak = name not in (COMPILED, FLOOR)
                peak = peak_bytes(shape, kind, name) if has_peak else None
                share = "" if peak is None else peak / full
                rows.append([case, name, median[name], deciles[0], deciles[8], share, different])
                memory = "| |" if peak is None else f"| {peak / 1e6:.1f} | {peak / full:.1%} |"
                eager = EAGER_CONFIDENCE if name in (EAGER_CONFIDENCE, OURS_CONFIDENCE) else EAGER
                against = "" if name == FLOOR else ratio(median[eager], median[name])
                lines.append(f"| {name} | {median[name]:.2f} | {against} {memory}")
            lines += [
                "",
                f"Scores and prediction are {megabytes[0]:.1f} MB, with a confidence",
                f"{megabytes[1]:.1f} MB. Of {problem.num_pixels} classes {different} are others",
                f"than in float64, none where the best two differ by more than {_MOST_ULP} ulp.",
                "",
            ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "predict.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        heading = ["median", "p10", "p90", "peak memory of the upsampled scores", "other classes"]
        writer.writerow(["case", "provider", *heading])
        writer.writerows(rows)
    (arguments.output / "predict.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
