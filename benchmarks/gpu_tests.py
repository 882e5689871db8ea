"""Runs the tests that need a GPU, in parallel, and reads their outcomes; for `benchmarks.gpu`."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
TESTS = "tests/seg_loss"
SANITIZED_TEST = f"{TESTS}/backends/test_backend_labels.py"
SANITIZED_CASES = "access_no_foreign_memory and (3x3x15x17 or 2x21x5x9)"


@dataclass(frozen=True)
class Outcome:
    """The outcomes of a test function with all its parameters."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0
    message: str = ""  # of the first failure, or of a skipped test


def pytest_command(*arguments: str) -> list[str]:
    # Where pytest-benchmark is installed, its warning beside pytest-xdist would end the run.
    plugins = ["-p", "no:cacheprovider", "-p", "no:benchmark"]
    return [sys.executable, "-m", "pytest", "-v", *plugins, "-m", "gpu", *arguments]


def run_tests(*, jobs: int, is_quick: bool, seconds: float) -> list[Outcome]:
    """Runs the tests in this number of processes and returns their outcomes.

    Tests that have not finished after these seconds are killed. Their inputs are small in a quick
    run; SEG_LOSS_TEST_SIZE overrides that.

    pytest-xdist distributes single tests. Without it each test function has a process.
    """
    outcomes = []
    environment = {
        "SEG_LOSS_TEST_SIZE": "small" if is_quick else "full",
        **os.environ,
        "SEG_LOSS_TEST_BACKEND": "cuda",
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("xdist") is not None:
            groups = [["-n", str(jobs), "--dist", "worksteal", TESTS]]
        else:
            groups = [[function] for function in test_functions(environment)]
        with ThreadPoolExecutor(jobs) as pool:
            runs = [
                pool.submit(run_group, group, Path(folder) / f"{index}.xml", environment, seconds)
                for index, group in enumerate(groups)
            ]
            for done in as_completed(runs):
                outcomes += done.result()
    return sorted(outcomes, key=lambda outcome: outcome.name)


def test_functions(environment: dict[str, str]) -> list[str]:
    """Returns the test functions with a test that needs a device."""
    done = subprocess.run(
        pytest_command("--collect-only", "-qq", TESTS),
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment,
    )  # fmt: skip
    names = [line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line]
    return list(dict.fromkeys(names))


def run_group(
    arguments: list[str], results: Path, environment: dict[str, str], seconds: float
) -> list[Outcome]:
    """Runs a process of pytest and returns the outcomes of its test functions."""
    output, is_finished = run_limited(
        pytest_command(f"--junitxml={results}", *arguments), environment, seconds
    )
    if not is_finished:
        message = f"not finished after {seconds:.0f} s"
        return [*outcomes_of_output(output), Outcome(arguments[-1], failed=1, message=message)]
    if not results.is_file():
        message = " / ".join(output.strip().splitlines()[-3:])
        return [Outcome(arguments[-1], failed=1, message=message)]
    return outcomes_of(results)


def run_limited(
    command: list[str], environment: dict[str, str], seconds: float
) -> tuple[str, bool]:
    """Runs a process for at most these seconds; returns its output and whether it has finished.

    Otherwise it is killed with its children, which would disturb the measurements.
    """
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env=environment, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            return process.communicate(timeout=seconds)[0], True
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.communicate()[0], False


def outcomes_of_output(output: str) -> list[Outcome]:
    """Reads the lines that pytest prints per test, for a process that did not finish."""
    by_function: dict[str, Outcome] = {}
    for line in output.splitlines():
        status = re.search(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", line)
        function = re.search(r"(\w+)\.py(::\w+)", line)
        if status and function:
            name = function.group(1) + function.group(2)
            before = by_function.get(name, Outcome(name))
            by_function[name] = Outcome(
                name,
                before.passed + (status.group(1) == "PASSED"),
                before.failed + (status.group(1) in ("FAILED", "ERROR")),
                before.skipped + (status.group(1) in ("SKIPPED", "XFAIL")),
            )
    return list(by_function.values())


def outcomes_of(results: Path) -> list[Outcome]:
    """Reads a JUnit file; tests that differ only in parameters are one outcome."""
    by_function: dict[str, Outcome] = {}
    for test in ElementTree.parse(results).iter("testcase"):
        module = test.get("classname", "").rpartition(".")[2]
        name = module + "::" + test.get("name", "").partition("[")[0]
        before = by_function.get(name, Outcome(name))
        failure, skipped = test.find("failure"), test.find("skipped")
        failure = test.find("error") if failure is None else failure
        reason = failure if failure is not None else skipped
        message = "" if reason is None else (reason.get("message") or "").partition("\n")[0][:300]
        if failure is not None:
            message = f"[{test.get('name', '').partition('[')[2]} {message}"
        by_function[name] = Outcome(
            name,
            before.passed + (reason is None),
            before.failed + (failure is not None),
            before.skipped + (failure is None and skipped is not None),
            before.seconds + float(test.get("time", 0)),
            before.message if before.failed or not message else message,
        )
    return list(by_function.values())


def run_sanitizer() -> tuple[bool, str]:
    """Runs compute-sanitizer on small inputs, which takes minutes.

    Returns whether it has found nothing, and its summary.
    """
    tool = shutil.which("compute-sanitizer", path=os.environ["PATH"] + ":/usr/local/cuda/bin")
    if tool is None:
        return False, "not installed"
    # torch's caching allocator would hide accesses outside a tensor.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    environment["SEG_LOSS_TEST_BACKEND"] = "cuda"
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9"]
    command += pytest_command(SANITIZED_TEST, "-k", SANITIZED_CASES)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    output = (done.stdout + done.stderr).splitlines()
    summary = [line.strip("= ") for line in output if "ERROR SUMMARY" in line]
    return not done.returncode, summary[-1] if summary else " / ".join(output[-3:])
