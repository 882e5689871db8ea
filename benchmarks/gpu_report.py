"""The cases of `benchmarks.gpu`, their targets, its results, and the report of them."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_tests import Outcome
from seg_loss import Bilinear

IGNORED = 0.1  # share of the pixels
# The contender whose errors ours are compared with, and how the names of those of torch begin.
REFERENCE = "eager forward+backward"
OTHERS = ("eager", "torch", "compiled", "copy")


@dataclass(frozen=True)
class Targets:
    """The least that a case must reach; None without a target.

    Attributes:
        share: of the copy's bandwidth, for `loss_and_gradient`.
        against_eager, against_compiled: speed of forward and backward, relative to torch.
        evaluate: speed of `evaluate`, relative to torch.
    """

    share: float | None = None
    against_eager: float | None = None
    against_compiled: float | None = None
    evaluate: float | None = None


@dataclass(frozen=True)
class Case:
    """Logits to be measured, or scores that are upsampled to them.

    Attributes:
        shape: of the logits.
        stride: by which the scores are smaller on both axes; None for logits.
        is_quick: whether a quick run includes the case.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    targets: Targets = Targets()
    channels_last: bool = False
    stride: int | None = None
    is_quick: bool = False

    @property
    def name(self) -> str:
        order = " channels_last" if self.channels_last else ""
        order += "" if self.stride is None else f" upsampled {self.stride} times"
        return "x".join(map(str, self.shape)) + " " + str(self.dtype)[6:] + order

    @property
    def options(self) -> dict[str, Any]:
        """The options of our functions."""
        return {} if self.stride is None else {"upsampling": Bilinear()}


_CITYSCAPES, _ADE20K = (16, 19, 1024, 2048), (8, 150, 512, 512)
_ONE_IMAGE, _VOC = (1, 19, 1024, 2048), (16, 21, 512, 512)
_SMALL = (1, 21, 500, 300)
_F32, _BF16 = torch.float32, torch.bfloat16
# The most important ones first, in case the time runs out.
CASES = (
    Case(_CITYSCAPES, _F32, Targets(0.93, 5.2, 4.0, 5.0), is_quick=True),
    Case(_ADE20K, _F32, Targets(0.93, 5.2, 4.0, 5.0), is_quick=True),
    Case(_ONE_IMAGE, _F32, Targets(0.93, 5.2, 4.0, 5.0), is_quick=True),
    Case(_VOC, _F32, Targets(0.93, 5.2, 4.0, 5.0)),
    Case(_CITYSCAPES, _BF16, Targets(0.93, 5.2)),
    Case(_ADE20K, _BF16, Targets(0.85, 5.2), is_quick=True),
    Case(_ONE_IMAGE, _BF16, Targets(0.93, 5.2)),
    Case(_VOC, _BF16, Targets(0.93, 5.2)),
    Case(_ONE_IMAGE, _F32, Targets(against_eager=30), stride=8, is_quick=True),
    Case(_ADE20K, _F32, Targets(against_eager=30), stride=8),
    Case(_ONE_IMAGE, _F32, Targets(against_eager=12), stride=4),
    Case(_ONE_IMAGE, _F32, Targets(against_eager=80), stride=16),
    Case(_ONE_IMAGE, _F32, Targets(against_eager=200), stride=32),
    Case(_ADE20K, _F32, Targets(0.90), channels_last=True, is_quick=True),
    Case(_CITYSCAPES, _F32, Targets(0.80), channels_last=True),
    Case(_SMALL, _F32, Targets(evaluate=1.5)),
    Case(_SMALL, _BF16),
    Case((2, *_ADE20K[1:]), _F32, stride=8),
    Case(_ADE20K, _BF16, channels_last=True),
    Case(_CITYSCAPES, _BF16, channels_last=True),
)
# The most memory of an upsampled loss, as a share of the logits, beside the gradient of the scores
# that autograd stores.
UPSAMPLED_MEMORY = 0.04
HOST_SHAPE = (1, 21, 64, 64)
HOST_MICROSECONDS = 150  # the most wall time of forward and backward on it


@dataclass
class Measurement:
    """The results of a contender; None if there are none. Times in ms."""

    case: str
    contender: str
    kind: str
    how: str = ""
    median: float | None = None
    p10: float | None = None
    p90: float | None = None
    predicted: float | None = None
    gbs: float | None = None
    share: float | None = None
    against_eager: float | None = None
    against_compiled: float | None = None
    wall: float | None = None
    peak_beyond_mb: float | None = None
    peak_share: float | None = None  # of the logits, which upsampled scores do not allocate
    loss: float | None = None
    loss_error: float | None = None  # relative
    gradient_error: float | None = None  # relative to the largest element
    failure: str = ""


@dataclass
class Report:
    """The results so far; written after each phase."""

    machine: str
    tests: list[Outcome] = field(default_factory=list)
    sanitizer: str = ""
    measurements: list[Measurement] = field(default_factory=list)
    host: dict[str, float] = field(default_factory=dict)  # microseconds per call
    failures: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def accuracy_failures(measurements: list[Measurement]) -> Iterator[str]:
    """Yields a sentence for each dtype in which our largest error is larger than eager torch's.

    The largest error is that over the cases measured, of which logits and upsampled scores are two
    groups: in a single case it depends on a few logits. Half a step of the dtype is always allowed,
    because the result itself is rounded.
    """
    cases = {case.name: case for case in CASES}
    groups: dict[tuple[torch.dtype, bool], list[Measurement]] = {}
    for row in measurements:
        case = cases[row.case]
        groups.setdefault((case.dtype, case.stride is not None), []).append(row)
    for (dtype, is_upsampled), rows in groups.items():
        by_torch = [row for row in rows if row.contender == REFERENCE]
        ours = [row for row in rows if not row.contender.startswith(OTHERS)]
        kind = "upsampled scores" if is_upsampled else "logits"
        steps = {"loss_error": torch.float32, "gradient_error": dtype}
        for name, rounded_to in steps.items():
            got, allowed = _largest(ours, name), _largest(by_torch, name)
            if got > max(allowed, torch.finfo(rounded_to).eps / 2):
                yield (
                    f"{kind} in {str(dtype)[6:]}: {name.replace('_', ' ')} {got:.2e}, "
                    f"torch's is {allowed:.2e}"
                )


def _largest(measurements: list[Measurement], name: str) -> float:
    """Returns the largest error; infinity if one is NaN."""
    errors = [getattr(row, name) for row in measurements]
    known = [math.inf if math.isnan(error) else error for error in errors if error is not None]
    return max(known, default=0.0)


def ratio(other: Measurement | None, measurement: Measurement | None) -> float | None:
    """Returns how many times as long the other takes."""
    if other is None or measurement is None:
        return None
    if other.median is None or measurement.median is None:
        return None
    return other.median / measurement.median


# -- the report ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A target and the result."""

    what: str
    sign: str
    target: float
    result: float | None

    @property
    def verdict(self) -> str:
        if self.result is None:
            return "open"
        is_met = self.result >= self.target if self.sign == ">=" else self.result <= self.target
        return "met" if is_met else "missed"

    def cells(self) -> list[str]:
        result = "not measured" if self.result is None else f"{self.result:.3g}"
        return [self.what, f"{self.sign} {self.target:g}", result, self.verdict]


def comparisons(report: Report) -> Iterator[Comparison]:
    """Yields each target of the measured cases with its result."""
    for case in CASES:
        rows = {row.contender: row for row in report.measurements if row.case == case.name}
        if not rows:
            continue
        direct, trained = rows.get("loss_and_gradient"), rows.get("forward+backward")
        results = {
            "loss_and_gradient, share of the copy's bandwidth": (
                case.targets.share, direct.share if direct else None,
            ),
            "forward+backward against eager": (
                case.targets.against_eager, trained.against_eager if trained else None,
            ),
            "forward+backward against compiled": (
                case.targets.against_compiled, trained.against_compiled if trained else None,
            ),
            "evaluate against torch": (
                case.targets.evaluate, ratio(rows.get("torch evaluate"), rows.get("evaluate")),
            ),
        }  # fmt: skip
        for what, (target, result) in results.items():
            if target is not None:
                yield Comparison(f"{case.name}: {what}", ">=", target, result)
        if case.stride is not None:
            share = trained.peak_share if trained else None
            what = f"{case.name}: forward+backward, memory as a share of the logits"
            yield Comparison(what, "<=", 1 / case.stride**2 + UPSAMPLED_MEMORY, share)
    if report.host:
        eager_us = report.host["eager forward+backward"]
        what = "x".join(map(str, HOST_SHAPE)) + " float32: wall time of forward+backward, in us"
        what += f" (eager {eager_us:.0f})"
        result = report.host["forward+backward, defer"]
        yield Comparison(what, "<=", HOST_MICROSECONDS, result)


_COLUMNS = (
    "case", "contender", "how", "median", "p10", "p90", "predicted", "gbs", "share",
    "against_eager", "against_compiled", "wall", "peak_beyond_mb", "peak_share", "loss",
    "loss_error", "gradient_error", "failure",
)  # fmt: skip


def write(report: Report, folder: Path) -> None:
    """Writes gpu.md and gpu.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.md").write_text("\n".join(report_lines(report)) + "\n")
    table = folder / "gpu.csv"
    if not report.measurements:
        table.unlink(missing_ok=True)  # it would be that of an earlier run
        return
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows([getattr(row, name) for name in _COLUMNS] for row in report.measurements)


def report_lines(report: Report) -> list[str]:
    lines = [f"Made by `python -m benchmarks.gpu`. {report.machine}.", ""]
    if report.failures:
        lines += ["**Failed:**", "", *(f"- {cell(failure)}" for failure in report.failures), ""]
    lines += test_lines(report)
    if not report.measurements:
        return lines
    lines += ["", "| target | asked | measured | |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(comparison.cells()) + " |" for comparison in comparisons(report)]
    lines += host_lines(report)
    lines += [
        "", f"Labels uint8 for ours and int64 for torch; {IGNORED:.0%} ignored. Times in ms,",
        "medians of one run, with a cold second-level cache: the device time of a CUDA graph, or",
        "of a call if the row says eager. Predicted: the bytes of the scheme at the bandwidth of",
        "the copy, which is a kernel. GB/s and share count logits, gradient and labels once.",
        "Wall: series of calls, host included. `raise` waits for the label check; the others of",
        "ours defer it. MB: peak memory beside logits, labels and gradient. Errors are relative to",
        "float64: of the loss, and of the gradient to its largest element.",
    ]  # fmt: skip
    for case in dict.fromkeys(row.case for row in report.measurements):
        rows = [row for row in report.measurements if row.case == case]
        lines += ["", f"**{case}**", "", *table_lines(rows)]
    return lines + [""] * bool(report.left_out) + [f"- Left out: {why}." for why in report.left_out]


def test_lines(report: Report) -> list[str]:
    lines = []
    if report.tests:
        lines = ["| test | passed | failed | skipped | s | |", "|---|---|---|---|---|---|"]
    for outcome in report.tests:
        cells = [outcome.name, outcome.passed, outcome.failed, outcome.skipped]
        cells += [f"{outcome.seconds:.0f}", cell(outcome.message)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    if report.sanitizer:
        lines += ["", f"compute-sanitizer: {cell(report.sanitizer)}."]
    return lines


def host_lines(report: Report) -> list[str]:
    lines = ["", "Wall time per call on a small tensor, " + "x".join(map(str, HOST_SHAPE))]
    lines[-1] += " float32, in us: the time of the host."
    lines += ["", "| | us |", "|---|---|"]
    return lines + [f"| {name} | {value:.0f} |" for name, value in report.host.items()]


_HEADINGS = (
    "", "ms", "p10", "p90", "how", "predicted", "GB/s", "of copy", "eager", "compiled", "wall",
    "MB", "loss", "loss error", "gradient error",
)  # fmt: skip


def table_lines(rows: list[Measurement]) -> list[str]:
    lines = [
        "| " + " | ".join(_HEADINGS) + " |",
        "|" + "---|" * len(_HEADINGS),
    ]
    for row in rows:
        if row.failure:
            lines.append(f"| {row.contender} | {cell(row.failure)} |" + " |" * (len(_HEADINGS) - 2))
            continue
        cells = [
            row.contender, number(row.median, ".3f"), number(row.p10, ".3f"),
            number(row.p90, ".3f"), row.how, number(row.predicted, ".3f"), number(row.gbs, ".0f"),
            number(row.share, ".2f"), number(row.against_eager, ".2f", "x"),
            number(row.against_compiled, ".2f", "x"), number(row.wall, ".3f"),
            number(row.peak_beyond_mb, ".2f"), number(row.loss, ".6f"),
            number(row.loss_error, ".1e"), number(row.gradient_error, ".1e"),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
