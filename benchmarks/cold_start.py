"""Time until the first loss in a new process, with and without compiled kernels; needs no GPU.

    python -m benchmarks.cold_start [--rounds 5] [--output benchmarks/results]

Each number is the median over new processes, which take turns. Without a cache each process
compiles into an empty folder; with one it finds the files of an earlier process. Writes
cold_start.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.cpu import machine

CLASSES = 19
DTYPES = "float32", "float16"
# Seconds, from what a process does to the most that it should take.
TARGETS = {
    "import seg_loss": 0.1,
    "first call, float32, no cache": 1.5,
    "first call, float32, cache": 0.3,
}
_SCRIPT = """
import sys, time

start = time.perf_counter()
import torch
imported_torch = time.perf_counter()
import seg_loss
seg_loss.loss_and_gradient, seg_loss.evaluate, seg_loss.SpatialCrossEntropy
imported = time.perf_counter()
logits = torch.randn(1, int(sys.argv[2]), 64, 64).to(getattr(torch, sys.argv[1]))
labels = torch.zeros(1, 64, 64, dtype=torch.uint8)
before_call = time.perf_counter()
seg_loss.loss_and_gradient(logits, labels)
called = time.perf_counter()
seg_loss.loss_and_gradient(logits, labels)
again = time.perf_counter()
import json
print(json.dumps([imported_torch - start, imported - imported_torch, called - before_call,
                  again - called]))
"""


def run(dtype: str, folder: str) -> list[float]:
    """Returns the seconds of the imports and of two calls in a new process."""
    command = [sys.executable, "-c", _SCRIPT, dtype, str(CLASSES)]
    environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
    seconds: list[float] = json.loads(subprocess.check_output(command, text=True, env=environment))
    return seconds


def measure(rounds: int) -> dict[str, float]:
    """Returns the median seconds of what a process does, by name."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as kept:
        for dtype in DTYPES:
            run(dtype, kept)
        for _ in range(rounds):
            for dtype in DTYPES:
                with tempfile.TemporaryDirectory() as empty:
                    times = {"no cache": run(dtype, empty), "cache": run(dtype, kept)}
                for name, (torch_import, own_import, first, second) in times.items():
                    for row, seconds in (
                        ("import torch", torch_import),
                        ("import seg_loss", own_import),
                        (f"first call, {dtype}, {name}", first),
                        (f"second call, {dtype}", second),
                    ):
                        found.setdefault(row, []).append(seconds)
    return {row: statistics.median(seconds) for row, seconds in found.items()}


def table(times: dict[str, float]) -> list[str]:
    """Returns the lines of a table of times and targets."""
    rows = (
        f"| {name} | {seconds:.4f} | {TARGETS.get(name, '')} |" for name, seconds in times.items()
    )
    return ["| | s | target |", "|---|---|---|", *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    lines = [
        f"Made by `python -m benchmarks.cold_start`; medians over new processes. {machine()}.",
        "",
        f"A call is `loss_and_gradient` of logits 1x{CLASSES}x64x64. `import seg_loss` comes after",
        "`import torch`.",
        "",
        *table(measure(arguments.rounds)),
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "cold_start.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
