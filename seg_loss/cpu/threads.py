"""Work on the CPU, split over threads that hold no lock while a kernel runs.

As many threads as torch uses (`torch.set_num_threads`), the calling one among them. Which thread
does which piece of work is left to chance; no result may depend on it.
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
    """Call `work(state, item)` for every item, each thread with a state of its own.

    Returns:
        The threads' states.
    """
    remaining = iter(list(items))

    def take() -> _State:
        state = make_state()
        for item in remaining:
            work(state, item)
        return state

    others = [_workers().submit(take) for _ in range(num_threads - 1)]
    try:
        states = [take()]
    finally:
        # What has not begun by now is not needed. What has must end before the caller goes on, even
        # after a failure: it writes into memory that the caller then frees.
        begun = [future for future in others if not future.cancel()]
        wait(begun)
    return states + [future.result() for future in begun]


def num_threads_for(num_items: int) -> int:
    """Torch's number of threads, or less where there is less to do."""
    return max(1, min(torch.get_num_threads(), num_items))


def _workers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(
            max_workers=max(1, 2 * (os.cpu_count() or 1)), thread_name_prefix="seg_loss"
        )
    return _pool


def _forget_pool() -> None:
    global _pool
    _pool = None


# A forked child (a DataLoader worker) inherits the pool object but none of its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
