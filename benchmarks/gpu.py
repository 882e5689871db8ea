"""The loss on a GPU: the tests that need one, then its speed against torch, in one run.

    python -m benchmarks.gpu [--out benchmarks/results] [--quick] [--tests-only] [--sanitize]
                             [--seconds 330]

Compilation takes most of the time. Therefore the tests (`pytest -m gpu`) and the first calls of the
measurements run in parallel, in one process per core, and later calls find their kernels compiled.
Then the measurements run alone. The contenders of a case take turns, one call each per round, and
the results are medians over the rounds. Failed tests do not prevent the measurements, because time
on a device is rare; but the report begins with them, and the exit status is 1.

Every result is compared with float64: its error is part of the table. A wrong result of torch is
measured all the same; in bfloat16 torch sums 33 million pixels to 5.375 instead of 6.130. Ours must
not have a larger error than eager torch's largest in the same run and dtype, or the run fails.

Device time is measured between two events around the replay of a CUDA graph, which excludes the
host. A call that cannot be captured is measured between events around the call, and its row says
"eager". 256 MB are written before each, so that the second-level cache is cold. Wall time is that
of a series of calls, including the host.

The floor is a copy of the logits. It is a call of `out.copy_(logits)` between events, which runs as
a kernel. Captured in a CUDA graph it would become a memcpy node, which moves 2.7 instead of
4.25 TB/s on an H200, so that shares of it would be 1.57 times too large. Bandwidths count what
every scheme must move: logits, gradient and labels once.
"""

import argparse
import functools
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

import seg_loss
from benchmarks import gpu_tests
from benchmarks.gpu_report import (
    CASES,
    HOST_SHAPE,
    IGNORED,
    Case,
    Measurement,
    Report,
    accuracy_failures,
    comparisons,
    ratio,
    write,
)
from seg_loss import Bilinear

ROUNDS = 15
FLUSHED_BYTES = 256 << 20  # several times the second-level cache
SECONDS = 330  # after this long no measurement begins
SHARE_OF_TESTS = 0.45  # of that time, after which tests are killed
COMPILE_PROCESSES = 8  # at a time, because their tensors are large
ROOT = Path(__file__).parents[1]
_start = time.perf_counter()


@dataclass(frozen=True)
class Problem:
    """Logits or scores, labels in our dtype and in torch's, and memory for a gradient."""

    case: Case
    logits: Tensor
    labels: Tensor
    long_labels: Tensor
    out: Tensor
    half: Tensor  # a grad_output

    def bytes_for(self, passes: float, labels: float = 1) -> float:
        """Returns the bytes of passes over the logits, and over labels of one byte."""
        return passes * self.logits.nbytes + labels * self.labels.nbytes


def make_problem(case: Case, device: torch.device) -> Problem:
    torch.manual_seed(0)
    shape = case.shape
    if case.stride is not None:
        shape = (*shape[:2], *(size // case.stride for size in shape[2:]))
    logits = torch.empty(shape, dtype=case.dtype, device=device).normal_(0, 3)
    if case.channels_last:
        logits = logits.to(memory_format=torch.channels_last)
    size = (case.shape[0], *case.shape[2:])
    labels = torch.randint(0, case.shape[1], size, dtype=torch.uint8, device=device)
    labels[torch.rand(size, device=device) < IGNORED] = 255
    half = torch.tensor(0.5, device=device)
    return Problem(case, logits, labels, labels.long(), torch.zeros_like(logits), half)


@dataclass(frozen=True)
class Contender:
    """A call to be measured.

    Attributes:
        call: returns a loss, a loss and a gradient, an `Evaluation`, or the predicted classes.
        kind: "gradient", "forward", "evaluate", "predict" or "copy"; selects what it is compared
            with.
        is_ours: whether a wrong result fails the run.
        scheme_bytes: bytes that its scheme must move; 0 if unknown.
        in_graph: whether it is measured as a CUDA graph.
        has_wall: whether its wall time is measured too.
        grad_output: factor of the gradient.
        owns_gradient: whether it allocates its gradient.
    """

    name: str
    call: Callable[[], Any]
    kind: str
    is_ours: bool
    scheme_bytes: float = 0
    in_graph: bool = True
    has_wall: bool = False
    grad_output: float = 1
    owns_gradient: bool = True


def log(text: str) -> None:
    print(f"[{time.perf_counter() - _start:6.1f} s] {text}", flush=True)


# -- tests and compilation, in parallel ------------------------------------------------------------


def run_tests_and_compile(
    report: Report,
    cases: list[Case],
    *,
    jobs: int,
    is_quick: bool,
    measures: bool,
    seconds: float,
) -> None:
    """Runs the tests and the first calls of the measurements."""
    compile_jobs = min(COMPILE_PROCESSES, max(1, jobs // 2)) if measures else 0
    test_jobs = max(1, jobs - compile_jobs)
    log(f"tests in {test_jobs} processes, first calls of {len(cases)} cases in {compile_jobs}")
    with ThreadPoolExecutor(max(1, compile_jobs)) as pool:
        compilations = {
            pool.submit(compile_case, case, is_quick=is_quick, seconds=seconds): case
            for case in cases
            if measures
        }
        report.tests = gpu_tests.run_tests(jobs=test_jobs, is_quick=is_quick, seconds=seconds)
        for done in as_completed(compilations):
            if message := done.result():
                log(f"  first calls of {compilations[done].name}: {message}")
    numbers = Counter[str]()
    for outcome in report.tests:
        numbers.update(passed=outcome.passed, failed=outcome.failed, skipped=outcome.skipped)
        if outcome.failed:
            report.failures.append(f"{outcome.name}: {outcome.message}")
    if not numbers["passed"]:
        report.failures.append("no test has passed")
    log("tests: " + ", ".join(f"{number} {name}" for name, number in numbers.items()))
    for failure in report.failures:
        log(f"  failed: {failure}")


def compile_case(case: Case, *, is_quick: bool, seconds: float) -> str:
    """Compiles the kernels of a case in a process of its own; returns an error message or ""."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--compile", str(CASES.index(case))]
    command += ["--quick"] * is_quick
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return f"not finished after {seconds:.0f} s"
    return " / ".join(done.stderr.strip().splitlines()[-2:]) if done.returncode else ""


def run_first_calls(case: Case, *, is_quick: bool) -> None:
    """Calls each of our contenders once, and torch's compiled ones unless the run is quick."""
    problem = make_problem(case, torch.device("cuda"))
    for contender in contenders_of(problem):
        if contender.is_ours:
            contender.call()
    for contender in [] if is_quick else compiled_contenders(problem):
        contender.call()
    torch.cuda.synchronize()


# -- the contenders --------------------------------------------------------------------------------


def eager(x: Tensor, long_labels: Tensor) -> Tensor:
    return F.cross_entropy(x, long_labels, ignore_index=255)


def eager_upsampled(x: Tensor, long_labels: Tensor) -> Tensor:
    return eager(F.interpolate(x, long_labels.shape[1:], mode="bilinear"), long_labels)


def training(
    problem: Problem, loss_of: Callable[[Tensor], Tensor], grad_output: Tensor | None = None
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Returns a forward and a backward pass."""

    def step() -> tuple[Tensor, Tensor]:
        x = problem.logits.detach().requires_grad_()
        loss = loss_of(x)
        upstream = None if grad_output is None else grad_output.to(loss.dtype)
        return loss.detach(), torch.autograd.grad(loss, x, upstream)[0]

    return step


def forward(problem: Problem, loss_of: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return loss_of(problem.logits)

    return call


def torch_evaluate(logits: Tensor, long_labels: Tensor) -> Tensor:
    """Computes the results of `evaluate` as usual, without losses per image and class."""
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


def predict_by_torch(problem: Problem, dtype: torch.dtype | None = None) -> Tensor:
    """Returns the most probable classes of scores that torch upsamples in their own dtype."""
    scores = problem.logits.to(dtype or problem.case.dtype)
    return F.interpolate(scores, problem.labels.shape[1:], mode="bilinear").argmax(1)


def contenders_of(problem: Problem) -> list[Contender]:
    """Returns the contenders, without the compiled ones.

    Eager torch makes six passes: log_softmax reads and writes, the gradient of the nll is filled,
    and the backward pass of log_softmax reads two tensors and writes one.
    """
    if problem.case.stride is not None:
        return upsampled_contenders(problem)
    logits, labels, out = problem.logits, problem.labels, problem.out
    long_labels, need = problem.long_labels, problem.bytes_for

    def ours(x: Tensor) -> Tensor:
        return seg_loss.spatial_cross_entropy(x, labels, check_labels="defer")

    def torchs(x: Tensor) -> Tensor:
        return eager(x, long_labels)

    def direct(**options: Any) -> Callable[[], tuple[Tensor, Tensor]]:
        return lambda: seg_loss.loss_and_gradient(logits, labels, **options)

    # Two kernels read the labels. The maps of evaluate are 12 bytes per pixel, written and read.
    return [
        Contender("copy", lambda: out.copy_(logits), "copy", False, need(2, 0), in_graph=False,
                  owns_gradient=False),
        Contender("loss_and_gradient", direct(check_labels="defer"), "gradient", True, need(2, 2),
                  has_wall=True),
        Contender("loss_and_gradient out=", direct(check_labels="defer", out=out), "gradient",
                  True, need(2, 2), owns_gradient=False),
        Contender("loss_and_gradient, raise", direct(), "gradient", True, need(2, 2),
                  in_graph=False, has_wall=True),
        Contender("forward", forward(problem, ours), "forward", True, need(1, 2)),
        Contender("forward+backward", training(problem, ours), "gradient", True, need(2, 2),
                  has_wall=True),
        Contender("forward+backward, grad_output 0.5", training(problem, ours, problem.half),
                  "gradient", True, need(4, 3), grad_output=0.5),
        Contender("eager forward", forward(problem, torchs), "forward", False, need(2, 8)),
        Contender("eager forward+backward", training(problem, torchs), "gradient", False,
                  need(6, 16), has_wall=True),
        Contender("evaluate", lambda: seg_loss.evaluate(logits, labels, check_labels="defer"),
                  "evaluate", True, need(1, 3 + 24), in_graph=False),
        Contender("torch evaluate", lambda: torch_evaluate(logits, long_labels), "evaluate",
                  False, in_graph=False),
    ]  # fmt: skip


def upsampled_contenders(problem: Problem) -> list[Contender]:
    """Returns the contenders for scores, whose time does not depend on bytes."""
    scores, labels, long_labels = problem.logits, problem.labels, problem.long_labels
    options = {**problem.case.options, "check_labels": "defer"}
    size = labels.shape[1], labels.shape[2]

    def direct() -> tuple[Tensor, Tensor]:
        return seg_loss.loss_and_gradient(scores, labels, **options)

    def ours(x: Tensor) -> Tensor:
        return seg_loss.upsampled_cross_entropy(x, labels, **options)

    def torchs(x: Tensor) -> Tensor:
        return eager_upsampled(x, long_labels)

    return [
        Contender("loss_and_gradient", direct, "gradient", True, has_wall=True),
        Contender("forward", forward(problem, ours), "forward", True),
        Contender("forward+backward", training(problem, ours), "gradient", True, has_wall=True),
        Contender("eager forward", forward(problem, torchs), "forward", False),
        Contender("eager forward+backward", training(problem, torchs), "gradient", False,
                  has_wall=True),
        Contender("evaluate", lambda: seg_loss.evaluate(scores, labels, **options), "evaluate",
                  True, in_graph=False),
        Contender("predict", lambda: seg_loss.predict(scores, size=size)["prediction"], "predict",
                  True),
        Contender("torch predict", lambda: predict_by_torch(problem), "predict", False),
    ]  # fmt: skip


def compiled_contenders(problem: Problem) -> list[Contender]:
    """Returns torch's compiled loss if a target needs it: compiling takes half a minute."""
    if problem.case.targets.against_compiled is None:
        return []
    loss_of = eager if problem.case.stride is None else eager_upsampled
    compiled = torch.compile(loss_of, dynamic=False)
    step = training(problem, functools.partial(_with_labels, compiled, problem.long_labels))
    return [Contender("compiled forward+backward", step, "gradient", False, has_wall=True)]


def _with_labels(loss_of: Callable[..., Tensor], long_labels: Tensor, x: Tensor) -> Tensor:
    return loss_of(x, long_labels)


# -- accuracy --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """The loss and its gradient by torch in float64."""

    loss: float
    gradient: Tensor


def true_result(problem: Problem) -> Truth:
    """Computes the truth image by image, which needs little memory."""
    total, gradient = 0.0, torch.empty_like(problem.logits, dtype=torch.float64)
    size = problem.labels.shape[1:]
    for image in range(len(problem.logits)):
        one = slice(image, image + 1)
        x = problem.logits[one].double().requires_grad_()
        wide = x if problem.case.stride is None else F.interpolate(x, size, mode="bilinear")
        loss = F.cross_entropy(wide, problem.long_labels[one], ignore_index=255, reduction="sum")
        gradient[one] = torch.autograd.grad(loss, x)[0]
        total += float(loss.detach())
    valid = int((problem.labels != 255).sum())
    return Truth(total / valid, gradient.div_(valid))


def add_errors(
    measurement: Measurement, contender: Contender, result: Any, truth: Truth, problem: Problem
) -> None:
    """Adds the errors of a result to its measurement."""
    if contender.kind == "copy":
        assert torch.equal(problem.out, problem.logits)
        return
    if contender.kind == "predict":
        # Scores that are equal but for rounding errors may have another class.
        different = int((result.long() != predict_by_torch(problem, torch.float32)).sum())
        if contender.is_ours and different > 1e-4 * result.numel():
            raise AssertionError(f"{different} of {result.numel()} classes are others than torch's")
        return
    loss = result[0] if isinstance(result, tuple) else getattr(result, "loss", result)
    measurement.loss = float(loss)
    measurement.loss_error = abs(measurement.loss / truth.loss - 1)
    if contender.kind != "gradient":
        return
    errors = [
        float((got.double() / contender.grad_output - true).abs().max())
        for got, true in zip(result[1], truth.gradient, strict=True)
    ]
    # max() would ignore NaN.
    worst = math.nan if any(map(math.isnan, errors)) else max(errors)
    measurement.gradient_error = worst / float(truth.gradient.abs().max())


# -- time ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A contender, ready to be measured."""

    contender: Contender
    run: Callable[[], object]
    how: str


def prepare(contender: Contender) -> Prepared:
    """Captures the contender as a CUDA graph if that is possible."""
    if contender.in_graph:
        try:
            return Prepared(contender, capture(contender.call).replay, "graph")
        except RuntimeError as error:
            log(f"    {contender.name}: not captured: {str(error).splitlines()[0]}")
            torch.cuda.synchronize()
    return Prepared(contender, contender.call, "eager")


def capture(call: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def device_times(prepared: list[Prepared], rounds: int) -> dict[str, list[float]]:
    """Returns the milliseconds of each call in each round, with a cold cache."""
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {one.contender.name: [] for one in prepared}
    for turn in range(rounds + 2):
        for one in prepared:
            start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            # While the device writes these, the host launches the call.
            flushed.fill_(turn)
            start.record()
            one.run()
            end.record()
            end.synchronize()
            if turn >= 2:
                times[one.contender.name].append(start.elapsed_time(end))
    return times


def wall_time(call: Callable[[], object], expected_ms: float) -> float:
    """Returns the milliseconds per call in a series of calls of about 50 ms, host included."""
    number = max(5, min(200, int(50 / max(expected_ms, 0.05))))
    series = []
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(number):
            call()
        torch.cuda.synchronize()
        series.append((time.perf_counter() - start) * 1e3 / number)
    return statistics.median(series)


def peak_bytes(call: Callable[[], object]) -> int:
    """Returns the bytes that a call has at its peak in addition to those before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(case: Case, report: Report, *, rounds: int, compiles: bool) -> None:
    """Measures all contenders of a case."""
    problem = make_problem(case, torch.device("cuda"))
    truth = true_result(problem)
    contenders = contenders_of(problem)
    if compiles:
        torch._dynamo.reset()
        contenders += compiled_contenders(problem)
    measurements = {one.name: Measurement(case.name, one.name, one.kind) for one in contenders}
    prepared = []
    for one in contenders:
        measurement = measurements[one.name]
        try:
            result = one.call()
            add_errors(measurement, one, result, truth, problem)
            del result
            has_gradient = one.kind == "gradient" and one.owns_gradient
            beyond = peak_bytes(one.call) - (problem.logits.nbytes if has_gradient else 0)
            measurement.peak_beyond_mb = beyond / 1e6
            measurement.peak_share = beyond / (case.dtype.itemsize * math.prod(case.shape))
            prepared.append(prepare(one))
        except Exception as error:  # noqa: BLE001, RUF100 - the other contenders are measured
            measurement.failure = f"{type(error).__name__}: {error}"[:300]
            log(f"    {one.name}: {measurement.failure}")
            if one.is_ours:
                report.failures.append(f"{case.name}, {one.name}: {measurement.failure}")
    del truth
    for name, values in device_times(prepared, rounds).items():
        measurement = measurements[name]
        measurement.median = statistics.median(values)
        deciles = statistics.quantiles(values, n=10)
        measurement.p10, measurement.p90 = deciles[0], deciles[8]
    for ready in prepared:
        measurement = measurements[ready.contender.name]
        measurement.how = ready.how
        if ready.contender.has_wall:
            measurement.wall = wall_time(ready.contender.call, measurement.median or 1)
    compare(problem, contenders, measurements)
    report.measurements += measurements.values()


def compare(
    problem: Problem, contenders: list[Contender], measurements: dict[str, Measurement]
) -> None:
    """Adds bandwidths, and speeds relative to the copy, eager and compiled torch."""
    copy = measurements["copy"].median if "copy" in measurements else None
    eager_of = {
        "gradient": "eager forward+backward",
        "forward": "eager forward",
        "evaluate": "torch evaluate",
        "predict": "torch predict",
    }
    needed = {
        "copy": problem.bytes_for(2, 0),
        "gradient": problem.bytes_for(2),
        "forward": problem.bytes_for(1),
        "evaluate": problem.bytes_for(1),
        "predict": problem.bytes_for(1),
    }
    for one in contenders:
        measurement = measurements[one.name]
        if measurement.median is None:
            continue
        if problem.case.stride is None:
            measurement.gbs = needed[one.kind] / measurement.median / 1e6
        if measurement.gbs is not None and copy is not None:
            bandwidth = needed["copy"] / copy
            measurement.share = measurement.gbs * 1e6 / bandwidth
            if one.scheme_bytes:
                measurement.predicted = one.scheme_bytes / bandwidth
        if one.kind != "copy":
            measurement.against_eager = ratio(measurements.get(eager_of[one.kind]), measurement)
        if one.kind == "gradient":
            compiled = measurements.get("compiled forward+backward")
            measurement.against_compiled = ratio(compiled, measurement)


# -- the host --------------------------------------------------------------------------------------


def measure_host(report: Report) -> None:
    """Measures the wall time per call on a small tensor, which is the time of the host."""
    device = torch.device("cuda")
    plain = make_problem(Case(HOST_SHAPE, torch.float32), device)
    upsampled = make_problem(Case(HOST_SHAPE, torch.float32, stride=8), device)
    x, labels = plain.logits, plain.labels
    scores = upsampled.logits
    deferred: dict[str, Any] = {"check_labels": "defer"}
    calls: dict[str, Callable[[], object]] = {
        "eager forward+backward": training(plain, lambda x: eager(x, plain.long_labels)),
        "forward+backward, defer": training(
            plain, lambda x: seg_loss.spatial_cross_entropy(x, labels, **deferred)
        ),
        "forward+backward, raise": training(
            plain, lambda x: seg_loss.spatial_cross_entropy(x, labels)
        ),
        "loss_and_gradient, defer": lambda: seg_loss.loss_and_gradient(x, labels, **deferred),
        "loss_and_gradient, raise": lambda: seg_loss.loss_and_gradient(x, labels),
        "eager upsampled forward+backward": training(
            upsampled, lambda x: eager_upsampled(x, upsampled.long_labels)
        ),
        "upsampled forward+backward, defer": training(
            upsampled, lambda x: seg_loss.upsampled_cross_entropy(x, labels, **deferred)
        ),
        "upsampled loss_and_gradient, defer": lambda: seg_loss.loss_and_gradient(
            scores, labels, upsampling=Bilinear(), **deferred
        ),
        "torch evaluate": lambda: torch_evaluate(x, plain.long_labels),
        "evaluate, defer": lambda: seg_loss.evaluate(x, labels, **deferred),
    }
    for name, call in calls.items():
        for _ in range(10):
            call()
        report.host[name] = 1e3 * wall_time(call, 0.25)


def machine(commit: str | None) -> str:
    """Returns what measures what; the commit is asked from git if it is None."""
    import triton

    properties = torch.cuda.get_device_properties(0)
    driver = first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return ", ".join(
        [
            f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)",
            f"driver {driver}",
            f"CUDA {torch.version.cuda}",
            f"torch {torch.__version__}",
            f"Triton {triton.__version__}",
            f"Python {platform.python_version()}",
            f"commit {commit or first_line('git', 'describe', '--always', '--dirty')}",
        ]
    )


def first_line(*command: str) -> str:
    """Returns the first line that a command prints, or "unknown"."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except OSError:
        return "unknown"
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines and not done.returncode else "unknown"


def measure_all(
    report: Report, folder: Path, cases: list[Case], *, is_quick: bool, seconds: float
) -> None:
    """Measures the cases that there is time for; writes the report after each."""
    log("measuring the host")
    measure_host(report)
    for case in cases:
        if time.perf_counter() - _start > seconds:
            report.left_out.append(f"{case.name}, for lack of time")
            continue
        log(f"measuring {case.name}")
        try:
            measure(case, report, rounds=5 if is_quick else ROUNDS, compiles=not is_quick)
        except Exception as error:  # noqa: BLE001, RUF100 - the other cases are measured
            message = f"{case.name}: {type(error).__name__}: {error}"
            log(f"  failed: {message}")
            report.failures.append(message[:300])
        torch.cuda.empty_cache()
        for row in report.measurements:
            if row.case == case.name and row.median is not None:
                predicted = "" if row.predicted is None else f", predicted {row.predicted:.3f}"
                log(f"    {row.contender}: {row.median:.3f} ms{predicted}")
        write(report, folder)
    report.failures += accuracy_failures(report.measurements)
    log("targets")
    for comparison in comparisons(report):
        what, target, result, verdict = comparison.cells()
        print(f"  {verdict}: {what}: {target}, measured {result}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--quick", action="store_true", help="fewer tests, cases and rounds: about two minutes"
    )
    parser.add_argument("--tests-only", action="store_true", help="measure nothing")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    parser.add_argument(
        "--sanitize", action="store_true", help="run compute-sanitizer too, which takes minutes"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2, help="processes at a time")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="after this long no measurement begins"
    )
    parser.add_argument("--commit", help="what is measured, on a machine without git")
    parser.add_argument("--compile", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        why = "torch is built without CUDA" if torch.version.cuda is None else "torch finds none"
        print(f"benchmarks.gpu: no CUDA device here: {why}.", file=sys.stderr)
        return 2
    if arguments.compile is not None:
        run_first_calls(CASES[arguments.compile], is_quick=arguments.quick)
        return 0
    report = Report(machine(arguments.commit))
    log(report.machine)
    cases = [case for case in CASES if case.is_quick or not arguments.quick]
    if not arguments.no_tests:
        run_tests_and_compile(
            report,
            cases,
            jobs=arguments.jobs,
            is_quick=arguments.quick,
            measures=not arguments.tests_only,
            seconds=SHARE_OF_TESTS * arguments.seconds,
        )
        write(report, arguments.out)
    if arguments.sanitize:
        log("compute-sanitizer")
        is_clean, report.sanitizer = gpu_tests.run_sanitizer()
        if not is_clean:
            report.failures.append(f"compute-sanitizer: {report.sanitizer}")
    if not arguments.tests_only:
        measure_all(
            report, arguments.out, cases, is_quick=arguments.quick, seconds=arguments.seconds
        )
    write(report, arguments.out)
    for failure in report.failures:
        print(f"failed: {failure}", flush=True)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
