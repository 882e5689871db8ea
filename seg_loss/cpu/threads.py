"""Runs a kernel on several threads at once, which take chunks until none is left.

The threads are those of the OpenMP library that torch has loaded. After an operation of torch they
still wait for work actively, so they begin at once; threads of another pool would first have to
take the processor from them. Without an OpenMP library of the GNU kind, and in a forked process,
which inherits no threads, the threads are Python's.

There are as many as torch uses (`torch.set_num_threads`, OMP_NUM_THREADS), the calling thread
included, and at most as many as the control group of the process may use. Calls from several
threads share the processors: a call that begins while others compute gets those that are left, but
at least its own thread. The library keeps threads for each thread that has called it, as it does
for torch's operations, so that few threads should call, and live long.
No result depends on the number of threads.
"""

import ctypes
import functools
import math
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from seg_loss.cpu.cache import Function

_lock = threading.Lock()
_busy = 0
_is_forked = False
_pool: ThreadPoolExecutor | None = None


def num_threads_for(num_chunks: int) -> int:
    """Returns the largest number of threads that a kernel with `num_chunks` chunks may use."""
    return max(1, min(torch.get_num_threads(), max_threads(), num_chunks))


def run(function: Function, job: int, num_threads: int) -> None:
    """Calls a kernel with the address of a job on up to `num_threads` threads."""
    if num_threads == 1:
        function.call(job)
        return
    global _busy
    with _lock:
        num_threads = max(1, num_threads - _busy)
        _busy += num_threads
    try:
        start_parallel = None if _is_forked else _openmp()
        if num_threads == 1:
            function.call(job)
        elif start_parallel is not None:
            start_parallel(function.address, job, num_threads, 0)
        else:
            _run_in_pool(function, job, num_threads)
    finally:
        with _lock:
            _busy -= num_threads


def _run_in_pool(function: Function, job: int, num_threads: int) -> None:
    others: list[Future[None]] = []
    try:
        while len(others) < num_threads - 1:
            others.append(_thread_pool().submit(function.call, job))
        function.call(job)
    finally:
        # Threads that have not started by now are not needed. The others must end before this
        # function returns, even after an error: they write to memory that the caller then frees.
        running = [future for future in others if not future.cancel()]
        interrupt = None
        while not all(future.done() for future in running):
            try:
                wait(running)
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt


@functools.cache
def _openmp() -> Any:
    """Returns `GOMP_parallel` of the library that torch is linked to; None if there is none."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            start_parallel = ctypes.CDLL(str(folder / name)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        word = ctypes.c_void_p
        start_parallel.argtypes = word, word, ctypes.c_uint, ctypes.c_uint
        start_parallel.restype = None
        return start_parallel
    return None


@functools.cache
def max_threads() -> int:
    """Returns the number of processors that this process may use, also by its control group."""
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    return math.ceil(max(1, min(available, _cgroup_limit())))


def _cgroup_limit(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Returns the processors that the control group grants; infinity without a limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return math.inf
    try:
        limit = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return math.inf
    return limit if limit > 0 else math.inf


def _thread_pool() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max_workers=max_threads(), thread_name_prefix="seg_loss")
    return _pool


def _after_fork() -> None:
    global _pool, _is_forked, _lock, _busy
    _pool, _is_forked, _lock, _busy = None, True, threading.Lock(), 0


# A forked child (a DataLoader worker) inherits none of the threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
