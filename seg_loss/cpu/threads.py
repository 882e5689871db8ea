"""Splits work over threads, which release the GIL while a kernel runs.

There are as many threads as torch uses (`torch.set_num_threads`), the calling thread included. The
threads take items in no fixed order, so no result may depend on which thread computes an item.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_State = TypeVar("_State")
_pool: ThreadPoolExecutor | None = None


def run(
    items: Iterable[_Item],
    make_state: Callable[[], _State],
    work: Callable[[_State, _Item], None],
    num_threads: int,
) -> list[_State]:
    """Calls `work(state, item)` for every item; each thread has its own state.

    Returns:
        The states of the threads.
    """
    remaining = iter(list(items))

    def take() -> _State:
        state = make_state()
        for item in remaining:
            work(state, item)
        return state

    others = [_thread_pool().submit(take) for _ in range(num_threads - 1)]
    try:
        states = [take()]
    finally:
        # Threads that have not started by now are not needed. The others must end before this
        # function returns, even after an error: they write to memory that the caller then frees.
        started = [future for future in others if not future.cancel()]
        wait(started)
    return states + [future.result() for future in started]


def num_threads_for(num_items: int) -> int:
    """Returns torch's number of threads, or `num_items` if that is less."""
    return max(1, min(torch.get_num_threads(), num_items))


def _thread_pool() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(
            max_workers=max(1, 2 * (os.cpu_count() or 1)), thread_name_prefix="seg_loss"
        )
    return _pool


def _drop_pool() -> None:
    global _pool
    _pool = None


# A forked child (a DataLoader worker) inherits the pool object, but none of its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_pool)
