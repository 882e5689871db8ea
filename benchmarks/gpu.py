"""The loss on a GPU: checked in every way that needs one, then timed against torch, in one run.

    python -m benchmarks.gpu [--out benchmarks/results] [--quick] [--checks-only]

First come the checks of `gpu_checks`, each in a process of its own, several at a time. If one fails
nothing is timed. Then the contenders take turns, one call each a round; every result is compared
with ours before it is timed, and ours with float64. Figures are medians over the rounds.

Device time is that of a CUDA graph's replay between two events, so that the host's cost is left
out; where a call cannot be captured, the events stand around the call itself, and the row says
"eager". Before each of them 256 MB are written, so that nothing is found in the second-level cache.
Wall time is that of a run of plain calls, host included.

Predicted times are bytes over the bandwidth of a copy, measured in the same rounds: the bytes are
those that a scheme must move if it reads and writes each tensor of its own once. Bandwidths count
what must be moved by anyone: logits, gradient and labels once.
"""

import argparse
import csv
import functools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

import seg_loss
from seg_loss import Bilinear

IGNORED = 0.1
ROUNDS = 15
FLUSHED_BYTES = 256 << 20  # several times the second-level cache
CHECKS_SECONDS = 280  # after the start, by which all checks must be done
COMPILED_SECONDS = 30  # no compiled contender is begun with less time than this left
ROOT = Path(__file__).parents[1]
_start = time.perf_counter()


@dataclass(frozen=True)
class Plan:
    """Logits to be timed, and how many of torch's compilers run against us there.

    With a ratio they are those of scores, smaller by it on both axes, that are upsampled.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool = False
    compiled: bool = True
    autotuned: bool = False
    has_target: bool = True
    ratio: int | None = None

    @property
    def name(self) -> str:
        order = " channels_last" if self.channels_last else ""
        order += "" if self.ratio is None else f" upsampled {self.ratio} times"
        return "x".join(map(str, self.shape)) + " " + str(self.dtype)[6:] + order

    @property
    def options(self) -> dict[str, Any]:
        """For our functions."""
        return {} if self.ratio is None else {"upsampling": Bilinear()}


_TARGETS = ((16, 19, 1024, 2048), (8, 150, 512, 512), (1, 19, 1024, 2048), (16, 21, 512, 512))
_F32, _BF16 = torch.float32, torch.bfloat16
# In the order of what would be missed most if time ran out.
PLANS = (
    *(Plan(shape, _F32, autotuned=place < 2) for place, shape in enumerate(_TARGETS)),
    *(Plan(shape, _BF16) for shape in _TARGETS),
    *(
        Plan(shape, _F32, ratio=8)
        for shape in ((1, 19, 1024, 2048), (2, 150, 512, 512), (8, 150, 512, 512))
    ),
    *(
        Plan((1, 19, 1024, 2048), _F32, compiled=False, has_target=False, ratio=ratio)
        for ratio in (4, 16, 32)
    ),
    Plan((1, 21, 500, 300), _F32, has_target=False),
    Plan((1, 21, 500, 300), _BF16, has_target=False),
    *(
        Plan(shape, dtype, channels_last=True, compiled=False, has_target=False)
        for shape in _TARGETS[:2]
        for dtype in (_F32, _BF16)
    ),
)


@dataclass(frozen=True)
class Problem:
    """Logits, labels as we read them and as torch wants them, and memory that exists already."""

    plan: Plan
    logits: Tensor
    labels: Tensor
    long_labels: Tensor
    out: Tensor
    half: Tensor  # an upstream gradient

    def bytes_for(self, passes: float, labels: float = 1) -> float:
        """Of so many passes over the logits, and over the labels of one byte."""
        return passes * self.logits.nbytes + labels * self.labels.nbytes


def make_problem(plan: Plan, device: torch.device) -> Problem:
    torch.manual_seed(0)
    shape = plan.shape
    if plan.ratio is not None:
        shape = (*shape[:2], *(size // plan.ratio for size in shape[2:]))
    logits = torch.empty(shape, dtype=plan.dtype, device=device).normal_(0, 3)
    if plan.channels_last:
        logits = logits.to(memory_format=torch.channels_last)
    size = (plan.shape[0], *plan.shape[2:])
    labels = torch.randint(0, plan.shape[1], size, dtype=torch.uint8, device=device)
    labels[torch.rand(size, device=device) < IGNORED] = 255
    half = torch.tensor(0.5, device=device)
    return Problem(plan, logits, labels, labels.long(), torch.zeros_like(logits), half)


@dataclass(frozen=True)
class Contender:
    """A call to be timed.

    Attributes:
        call: returns a loss, or a loss and a gradient, or something that is not compared.
        kind: "gradient", "forward", "evaluate" or "copy"; what it is compared with.
        scheme_bytes: that it must move; 0 where that is unknown.
        in_graph: whether it can be captured.
        has_wall: whether plain calls are timed too.
        upstream: the gradient is multiplied by this.
        owns_gradient: its memory is its own, not the caller's.
    """

    name: str
    call: Callable[[], Any]
    kind: str
    scheme_bytes: float = 0
    in_graph: bool = True
    has_wall: bool = False
    upstream: float = 1
    owns_gradient: bool = True


@dataclass
class Row:
    """A contender's figures; None where there are none. Times in ms."""

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
    peak_share: float | None = None  # of the logits', which those of scores would take
    failure: str = ""


@dataclass
class Report:
    """What is known so far; written anew after each phase."""

    machine: str
    checks: list[tuple[str, str, str]] = field(default_factory=list)  # name, status, note
    rows: list[Row] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)  # of our gradient, by case
    left_out: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        return [name for name, status, _ in self.checks if status == "failed"]


def say(text: str) -> None:
    print(f"[{time.perf_counter() - _start:6.1f} s] {text}", flush=True)


# -- the checks --------------------------------------------------------------------------------


def run_check(name: str, *, quick: bool) -> None:
    """In a process of its own: one check, its outcome as the last line."""
    from benchmarks import gpu_checks  # the parent need not know the tests

    check = next(check for check in gpu_checks.CHECKS if check.name == name)
    try:
        outcome = ["passed", check.run(torch.device("cuda"), quick)]
        torch.cuda.synchronize()
    except gpu_checks.Skipped as reason:
        outcome = ["skipped", str(reason)]
    except Exception as failure:  # noqa: BLE001, RUF100 - reported, whatever it is
        outcome = ["failed", f"{type(failure).__name__}: {failure}"[:3000]]
    print(json.dumps(outcome), flush=True)
    # A context that a kernel has spoilt may not come down cleanly.
    sys.stdout.flush()
    os._exit(0)


def outcome_of(name: str, seconds: float, *, quick: bool) -> tuple[str, str, str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--check", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    started = time.perf_counter()
    seconds = max(5.0, min(seconds, CHECKS_SECONDS - (started - _start)))
    try:
        done = subprocess.run(
            [*command, *(["--quick"] if quick else [])], capture_output=True, text=True,
            check=False, cwd=ROOT, env=environment, timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return name, "failed", f"not done after {seconds:.0f} s"
    lines = done.stdout.strip().splitlines()
    try:
        status, note = json.loads(lines[-1])
    except (IndexError, ValueError):
        last = " / ".join(done.stderr.strip().splitlines()[-3:])
        return name, "failed", f"exit status {done.returncode}: {last}"
    return name, status, f"{note} ({time.perf_counter() - started:.0f} s)"


def run_checks(report: Report, *, jobs: int, quick: bool) -> None:
    from benchmarks.gpu_checks import CHECKS

    say(f"checks: {len(CHECKS)}, {jobs} at a time")
    with ThreadPoolExecutor(jobs) as pool:
        pending = [
            pool.submit(outcome_of, check.name, check.seconds, quick=quick) for check in CHECKS
        ]
        for done in as_completed(pending):
            name, status, note = done.result()
            report.checks.append((name, status, note))
            say(f"  {status}: {name}: {note}")
    order = [check.name for check in CHECKS]
    report.checks.sort(key=lambda row: order.index(row[0]))


# -- the contenders ----------------------------------------------------------------------------


def eager(x: Tensor, long_labels: Tensor) -> Tensor:
    return F.cross_entropy(x, long_labels, ignore_index=255)


def eager_upsampled(x: Tensor, long_labels: Tensor) -> Tensor:
    return eager(F.interpolate(x, long_labels.shape[1:], mode="bilinear"), long_labels)


def training(
    problem: Problem, loss_of: Callable[[Tensor], Tensor], upstream: Tensor | None = None
) -> Callable[[], tuple[Tensor, Tensor]]:
    def step() -> tuple[Tensor, Tensor]:
        x = problem.logits.detach().requires_grad_()
        loss = loss_of(x)
        above = None if upstream is None else upstream.to(loss.dtype)
        return loss.detach(), torch.autograd.grad(loss, x, above)[0]

    return step


def forward(problem: Problem, loss_of: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return loss_of(problem.logits)

    return call


def torch_evaluate(logits: Tensor, long_labels: Tensor) -> Tensor:
    """What `evaluate` tells, but for losses by image and class, as it is usually written."""
    num_classes = logits.shape[1]
    with torch.no_grad():
        loss = eager(logits, long_labels)
        prediction = logits.argmax(dim=1)
        logits.softmax(dim=1).amax(dim=1)
        valid = long_labels != 255
        torch.bincount(
            long_labels[valid] * num_classes + prediction[valid], minlength=num_classes**2
        ).cpu()
    return loss


def contenders(problem: Problem) -> list[Contender]:
    """All but the compiled ones. Eager torch makes six passes: log_softmax reads and writes, the
    gradient of the nll is filled, and log_softmax's backward reads two and writes one.
    """
    logits, labels, out = problem.logits, problem.labels, problem.out
    long_labels, need = problem.long_labels, problem.bytes_for

    def ours(x: Tensor) -> Tensor:
        return seg_loss.spatial_cross_entropy(x, labels, check_labels="defer")

    def torchs(x: Tensor) -> Tensor:
        return eager(x, long_labels)

    def direct(**options: Any) -> Callable[[], tuple[Tensor, Tensor]]:
        return lambda: seg_loss.loss_and_gradient(logits, labels, **options)

    # Two kernels read the labels; the maps of evaluate are 12 bytes a pixel, written and read.
    return [
        Contender("copy", lambda: out.copy_(logits), "copy", need(2, 0), owns_gradient=False),
        Contender("loss_and_gradient", direct(check_labels="defer"), "gradient", need(2, 2),
                  has_wall=True),
        Contender("loss_and_gradient out=", direct(check_labels="defer", out=out), "gradient",
                  need(2, 2), owns_gradient=False),
        Contender("loss_and_gradient, raise", direct(), "gradient", need(2, 2), in_graph=False,
                  has_wall=True),
        Contender("forward", forward(problem, ours), "forward", need(1, 2)),
        Contender("forward+backward", training(problem, ours), "gradient", need(2, 2),
                  has_wall=True),
        Contender("forward+backward, upstream 0.5", training(problem, ours, problem.half),
                  "gradient", need(4, 3), upstream=0.5),
        Contender("eager forward", forward(problem, torchs), "forward", need(2, 8)),
        Contender("eager forward+backward", training(problem, torchs), "gradient", need(6, 16),
                  has_wall=True),
        Contender("evaluate", lambda: seg_loss.evaluate(logits, labels, check_labels="defer"),
                  "evaluate", need(1, 3 + 24), in_graph=False),
        Contender("torch evaluate", lambda: torch_evaluate(logits, long_labels), "evaluate",
                  in_graph=False),
    ]  # fmt: skip


def upsampled_contenders(problem: Problem) -> list[Contender]:
    """As `contenders`, of scores; what takes their time is not the bytes."""
    scores, labels, long_labels = problem.logits, problem.labels, problem.long_labels

    def direct() -> tuple[Tensor, Tensor]:
        return seg_loss.loss_and_gradient(
            scores, labels, **problem.plan.options, check_labels="defer"
        )

    def ours(x: Tensor) -> Tensor:
        return seg_loss.upsampled_cross_entropy(x, labels, check_labels="defer")

    def torchs(x: Tensor) -> Tensor:
        return eager_upsampled(x, long_labels)

    return [
        Contender("loss_and_gradient", direct, "gradient", has_wall=True),
        Contender("forward", forward(problem, ours), "forward"),
        Contender("forward+backward", training(problem, ours), "gradient", has_wall=True),
        Contender("eager forward", forward(problem, torchs), "forward"),
        Contender("eager forward+backward", training(problem, torchs), "gradient", has_wall=True),
        Contender("evaluate", lambda: seg_loss.evaluate(
            scores, labels, **problem.plan.options, check_labels="defer"
        ), "evaluate", in_graph=False),
    ]  # fmt: skip


def compiled_contenders(problem: Problem) -> list[Contender]:
    modes: dict[str, str | None] = {"compiled forward+backward": None}
    if problem.plan.autotuned:
        modes["max-autotune forward+backward"] = "max-autotune-no-cudagraphs"
    made = []
    for name, mode in modes.items():
        loss_of = eager if problem.plan.ratio is None else eager_upsampled
        compiled = torch.compile(loss_of, dynamic=False, mode=mode)
        step = training(problem, functools.partial(_with_labels, compiled, problem.long_labels))
        made.append(Contender(name, step, "gradient", has_wall=True))
    return made


def _with_labels(loss_of: Callable[..., Tensor], long_labels: Tensor, x: Tensor) -> Tensor:
    return loss_of(x, long_labels)


# -- is it right? ------------------------------------------------------------------------------


def check_ours(problem: Problem) -> float:
    """The largest error of our gradient against float64, by its largest value, in one image.

    Raises:
        AssertionError: where it is more than four times the dtype's epsilon.
    """
    options = problem.plan.options
    loss, gradient = seg_loss.loss_and_gradient(problem.logits, problem.labels, **options)
    x = problem.logits[:1].double().requires_grad_()
    size = problem.labels.shape[1:]
    wide = x if problem.plan.ratio is None else F.interpolate(x, size, mode="bilinear")
    one_loss = F.cross_entropy(wide, problem.long_labels[:1], ignore_index=255, reduction="sum")
    (truth,) = torch.autograd.grad(one_loss, x)
    truth /= (problem.labels != 255).sum()
    error = float((gradient[:1] - truth).abs().max() / truth.abs().max())
    allowed = 4 * torch.finfo(problem.plan.dtype).eps
    if not error <= allowed or not torch.isfinite(loss):
        raise AssertionError(f"{problem.plan.name}: gradient off by {error}, loss {float(loss)}")
    return error


def check_like_ours(problem: Problem, contender: Contender, result: Any) -> None:
    """Torch rounds the log of the softmax to the dtype of the logits, and is given room for it."""
    exact = problem.plan.dtype == torch.float32
    if contender.kind == "copy":
        assert torch.equal(problem.out, problem.logits)
        return
    loss, gradient = seg_loss.loss_and_gradient(
        problem.logits, problem.labels, **problem.plan.options
    )
    got = result[0] if isinstance(result, tuple) else getattr(result, "loss", result)
    off = abs(float(got) / float(loss) - 1)
    assert off < (1e-3 if exact else 5e-2), f"loss {float(got)}, ours {float(loss)}"
    if contender.kind == "gradient":
        largest = float(gradient.abs().max())
        gradient.mul_(contender.upstream).sub_(result[1])
        error = float(gradient.abs().max()) / largest
        assert error < (1e-4 if exact else 0.1), f"gradient differs by {error:.3g} of its largest"


# -- how long does it take? --------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    contender: Contender
    run: Callable[[], object]
    how: str


def prepared(contender: Contender) -> Timed:
    """As a CUDA graph if it can be one."""
    from benchmarks.gpu_checks import captured

    if contender.in_graph:
        try:
            graph, _ = captured(contender.call)
            return Timed(contender, graph.replay, "graph")
        except RuntimeError as failure:
            say(f"    {contender.name}: not captured: {str(failure).splitlines()[0]}")
            torch.cuda.synchronize()
    return Timed(contender, contender.call, "eager")


def device_times(timed: list[Timed], rounds: int) -> dict[str, list[float]]:
    """Milliseconds between events around each call in each round, taking turns, cache flushed."""
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {one.contender.name: [] for one in timed}
    for turn in range(rounds + 2):
        for one in timed:
            start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            flushed.fill_(turn)
            start.record()
            one.run()
            end.record()
            end.synchronize()
            if turn >= 2:
                times[one.contender.name].append(start.elapsed_time(end))
    return times


def wall_time(call: Callable[[], object], expected_ms: float) -> float:
    """Milliseconds a call, host included, in a run of calls that takes about 50 ms."""
    number = max(5, min(200, int(50 / max(expected_ms, 0.05))))
    runs = []
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(number):
            call()
        torch.cuda.synchronize()
        runs.append((time.perf_counter() - start) * 1e3 / number)
    return statistics.median(runs)


def measure(plan: Plan, report: Report, *, rounds: int, deadline: float) -> None:
    problem = make_problem(plan, torch.device("cuda"))
    report.errors[plan.name] = check_ours(problem)
    everyone = contenders(problem) if plan.ratio is None else upsampled_contenders(problem)
    if plan.compiled:
        if deadline - time.perf_counter() > COMPILED_SECONDS:
            torch._dynamo.reset()
            everyone += compiled_contenders(problem)
        else:
            report.left_out.append(f"{plan.name}: torch.compile, for want of time")
    rows = {one.name: Row(plan.name, one.name, one.kind) for one in everyone}
    timed = []
    for one in everyone:
        try:
            result = one.call()
            check_like_ours(problem, one, result)
            del result
            beyond = _peak_beyond(one, problem)
            rows[one.name].peak_beyond_mb = beyond / 1e6
            rows[one.name].peak_share = beyond / (plan.dtype.itemsize * math.prod(plan.shape))
            timed.append(prepared(one))
        except Exception as failure:  # noqa: BLE001, RUF100 - the others go on
            rows[one.name].failure = f"failed: {type(failure).__name__}: {failure}"[:300]
            say(f"    {one.name}: {rows[one.name].failure}")
    for name, values in device_times(timed, rounds).items():
        row = rows[name]
        row.median = statistics.median(values)
        deciles = statistics.quantiles(values, n=10)
        row.p10, row.p90 = deciles[0], deciles[8]
    for one_timed in timed:
        one, row = one_timed.contender, rows[one_timed.contender.name]
        row.how = one_timed.how
        if one.has_wall:
            row.wall = wall_time(one.call, row.median or 1)
    _compare(problem, everyone, rows)
    report.rows += rows.values()


def _peak_beyond(contender: Contender, problem: Problem) -> int:
    from benchmarks.gpu_checks import peak_beyond

    has_gradient = contender.kind == "gradient" and contender.owns_gradient
    return peak_beyond(contender.call) - (problem.logits.nbytes if has_gradient else 0)


def _compare(problem: Problem, everyone: list[Contender], rows: dict[str, Row]) -> None:
    copy = rows["copy"].median if "copy" in rows else None
    base = {
        "gradient": "eager forward+backward", "forward": "eager forward",
        "evaluate": "torch evaluate",
    }  # fmt: skip
    needed = {
        "copy": problem.bytes_for(2, 0), "gradient": problem.bytes_for(2),
        "forward": problem.bytes_for(1), "evaluate": problem.bytes_for(1),
    }  # fmt: skip
    for one in everyone:
        row = rows[one.name]
        if row.median is None:
            continue
        if problem.plan.ratio is None:
            row.gbs = needed[one.kind] / row.median / 1e6
        if row.gbs is not None and copy is not None:
            bandwidth = needed["copy"] / copy
            row.share = row.gbs * 1e6 / bandwidth
            if one.scheme_bytes:
                row.predicted = one.scheme_bytes / bandwidth
        if one.kind != "copy":
            row.against_eager = _ratio(rows.get(base[one.kind]), row)
        if one.kind == "gradient":
            row.against_compiled = _ratio(rows.get("compiled forward+backward"), row)


def _ratio(other: Row | None, row: Row | None) -> float | None:
    if other is None or row is None or other.median is None or row.median is None:
        return None
    return other.median / row.median


# -- what was asked, and what came of it -------------------------------------------------------


def targets(report: Report) -> list[tuple[str, str, str, str]]:
    """What, asked, got, and whether that is met."""
    told = []
    for plan in PLANS:
        rows = {row.contender: row for row in report.rows if row.case == plan.name}
        if not plan.has_target or not rows:
            continue
        wanted_of = _wanted if plan.ratio is None else _wanted_of_upsampled
        for what, sign, asked, got in wanted_of(plan, rows):
            is_met = got is not None and (got >= asked if sign == ">=" else got <= asked)
            told.append(
                (
                    f"{plan.name}: {what}", f"{sign} {asked:g}",
                    "not measured" if got is None else f"{got:.3g}",
                    "open" if got is None else "met" if is_met else "missed",
                )
            )  # fmt: skip
    return told


_Rows = dict[str, Row]  # of a plan, by contender
_Wanted = list[tuple[str, str, float, float | None]]  # what, >= or <=, asked, got


def _wanted(plan: Plan, rows: _Rows) -> _Wanted:
    direct, evaluated = rows.get("loss_and_gradient"), rows.get("evaluate")
    others = {"eager": 3.0, "compiled": 1.5}
    if plan.autotuned:
        others["max-autotune"] = 1.5
    return [
        (
            "loss_and_gradient, share of a copy's bandwidth", ">=", 0.85,
            direct.share if direct else None,
        ),
        *_training_against(others, rows),
        ("evaluate against torch's way", ">=", 6.0, _ratio(rows.get("torch evaluate"), evaluated)),
    ]  # fmt: skip


def _wanted_of_upsampled(plan: Plan, rows: _Rows) -> _Wanted:
    trained = rows.get("forward+backward")
    others = {"eager": 8.0, "compiled": 4.0} if plan.compiled else {"eager": 8.0}
    return [
        *_training_against(others, rows),
        (
            "forward+backward, memory as a share of the upsampled logits", "<=", 0.03,
            trained.peak_share if trained else None,
        ),
    ]  # fmt: skip


def _training_against(others: dict[str, float], rows: _Rows) -> _Wanted:
    """How many times as fast as others, at least."""
    ours = rows.get("forward+backward")
    return [
        (
            f"forward+backward against {other}", ">=", least,
            _ratio(rows.get(f"{other} forward+backward"), ours),
        )
        for other, least in others.items()
    ]  # fmt: skip


# -- the report --------------------------------------------------------------------------------

_COLUMNS = (
    "case", "contender", "how", "median", "p10", "p90", "predicted", "gbs", "share",
    "against_eager", "against_compiled", "wall", "peak_beyond_mb", "peak_share", "failure",
)  # fmt: skip


def write(report: Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.md").write_text("\n".join(_lines(report)) + "\n")
    table = folder / "gpu.csv"
    if not report.rows:
        table.unlink(missing_ok=True)  # that of an earlier run would belie the checks
        return
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows([getattr(row, name) for name in _COLUMNS] for row in report.rows)


def _lines(report: Report) -> list[str]:
    lines = [f"Made by `python -m benchmarks.gpu`. {report.machine}.", ""]
    lines += [
        f"Checks: {len(report.checks) - len(report.failed)} of {len(report.checks)} did not fail.",
        "", "| check | outcome | |", "|---|---|---|",
    ]  # fmt: skip
    lines += [f"| {name} | {status} | {_cell(note)} |" for name, status, note in report.checks]
    if report.failed:
        return [*lines, "", "No speed-up reported on a failing check: " + ", ".join(report.failed)]
    if not report.rows:
        return lines
    asked = targets(report)
    lines += ["", "| target | asked | got | |", "|---|---|---|---|"]
    lines += [f"| {what} | {least} | {got} | {met} |" for what, least, got, met in asked]
    lines += [
        "", f"Labels uint8 for ours, int64 for torch's; {IGNORED:.0%} ignored. Times in ms,",
        "medians of one run: device time of a CUDA graph's replay, or of a plain call where it",
        "says eager, the second-level cache flushed. Predicted: the scheme's bytes at the speed",
        "of the copy.",
        "GB/s and share count logits, gradient and labels once. Wall: plain calls, host included.",
        "`raise` waits for the labels' survey; the others of ours defer. MB: peak memory beyond",
        "logits, labels and gradient.",
    ]  # fmt: skip
    for case, error in report.errors.items():
        rows = [row for row in report.rows if row.case == case]
        lines += ["", f"**{case}**, gradient within {error:.1e} of float64", ""]
        lines += _table(rows)
        if " upsampled " in case:
            shares = [
                f"{row.contender} {row.peak_share:.1%}"
                for row in rows if row.kind == "gradient" and row.peak_share is not None
            ]  # fmt: skip
            lines += ["", "That memory as a share of the upsampled logits: " + ", ".join(shares)]
    return lines + [""] * bool(report.left_out) + [f"- Left out: {why}." for why in report.left_out]


def _table(rows: list[Row]) -> list[str]:
    lines = [
        "| | ms | p10 | p90 | how | predicted | GB/s | of copy | eager | compiled | wall | MB |",
        "|" + "---|" * 12,
    ]
    for row in rows:
        if row.failure:
            lines.append(f"| {row.contender} | {_cell(row.failure)} |" + " |" * 10)
            continue
        cells = [
            row.contender, _figure(row.median, 3), _figure(row.p10, 3), _figure(row.p90, 3),
            row.how, _figure(row.predicted, 3), _figure(row.gbs, 0), _figure(row.share, 2),
            _figure(row.against_eager, 2, "x"), _figure(row.against_compiled, 2, "x"),
            _figure(row.wall, 3), _figure(row.peak_beyond_mb, 2),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _figure(value: float | None, digits: int, unit: str = "") -> str:
    return "" if value is None else f"{value:.{digits}f}{unit}"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def machine() -> str:
    import triton

    properties = torch.cuda.get_device_properties(0)
    return ", ".join(
        [
            f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)",
            f"driver {_said('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader')}",
            f"CUDA {torch.version.cuda}",
            f"torch {torch.__version__}",
            f"Triton {triton.__version__}",
            f"Python {platform.python_version()}",
            f"commit {_said('git', 'describe', '--always', '--dirty')}",
        ]
    )


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except OSError:
        return "unknown"
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines and not done.returncode else "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--quick", action="store_true", help="fewer cases, short measurements")
    parser.add_argument("--checks-only", action="store_true")
    parser.add_argument("--jobs", type=int, default=min(12, max(1, (os.cpu_count() or 2) * 3 // 4)))
    parser.add_argument("--seconds", type=float, default=450, help="no measurement begins later")
    parser.add_argument("--check", help=argparse.SUPPRESS)
    parser.add_argument("--sanitized-child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        why = "torch is built without CUDA" if torch.version.cuda is None else "torch finds none"
        print(f"benchmarks.gpu: no CUDA device here: {why}.", file=sys.stderr)
        return 2
    if arguments.check:
        run_check(arguments.check, quick=arguments.quick)
    if arguments.sanitized_child:
        from benchmarks.gpu_checks import run_sanitized

        run_sanitized(torch.device("cuda"))
        return 0

    report = Report(machine())
    say(report.machine)
    run_checks(report, jobs=arguments.jobs, quick=arguments.quick)
    write(report, arguments.out)
    if report.failed:
        print("failed: " + ", ".join(report.failed), flush=True)
        print("no speed-up reported on a failing check", flush=True)
        return 1
    if not arguments.checks_only:
        measure_all(report, arguments.out, seconds=arguments.seconds, quick=arguments.quick)
    return 0


def measure_all(report: Report, folder: Path, *, seconds: float, quick: bool) -> None:
    """Every plan that there is time for, the results written after each."""
    deadline = _start + seconds
    for plan in PLANS:
        if quick:
            plan = replace(plan, compiled=False, autotuned=False)
        if time.perf_counter() > deadline:
            report.left_out.append(f"{plan.name}, for want of time")
            continue
        say(f"measuring {plan.name}")
        try:
            measure(plan, report, rounds=5 if quick else ROUNDS, deadline=deadline)
        except Exception as failure:  # noqa: BLE001, RUF100 - the other shapes go on
            say(f"  failed: {type(failure).__name__}: {failure}")
            report.left_out.append(f"{plan.name}: {type(failure).__name__}: {failure}")
        torch.cuda.empty_cache()
        for row in report.rows:
            if row.case == plan.name and row.median is not None:
                expected = "" if row.predicted is None else f", predicted {row.predicted:.3f}"
                say(f"    {row.contender}: {row.median:.3f} ms{expected}")
        write(report, folder)
    say("targets, asked and got")
    for what, least, got, met in targets(report):
        print(f"  {met}: {what}: asked {least}, got {got}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
