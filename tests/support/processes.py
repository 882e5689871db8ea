"""Scripts that tests run in a process of their own, with a cache of compiled kernels of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 120


def run_script(script: str, *arguments: object, cache: Path, **environment: str) -> str:
    """Returns what a script prints; an error or a process that does not end fails the test."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
