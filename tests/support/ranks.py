"""Processes of a gloo process group, which run functions of a test one after the other.

The ranks are started once and run a function each time that a test calls them. They meet in a file,
and talk over loopback alone. Nothing hangs: gloo and the test have a timeout.
"""

import datetime
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support import backends

TIMEOUT_SECONDS = 60
GLOO_TIMEOUT = datetime.timedelta(seconds=30)


class RankError(AssertionError):
    """An error that a function did not catch, with its traceback."""


class Ranks:
    """The processes.

    Attributes:
        world_size: number of them.
    """

    def __init__(self, world_size: int, folder: Path) -> None:
        self.world_size = world_size
        # A server imports the modules once, before it has any thread, and forks the ranks.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "seg_loss.functional"])
        pairs = [context.Pipe() for _ in range(world_size)]
        self._connections = [ours for ours, _ in pairs]
        self._processes = [
            context.Process(
                target=_serve, args=(rank, world_size, str(folder / "store"), theirs), daemon=True
            )
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self._processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Returns `function(rank, *arguments)` of each rank.

        A function and its arguments are pickled. Tensors are no arguments or results.
        """
        for connection in self._connections:
            connection.send((function, arguments))
        answers = [self._receive(rank) for rank in range(self.world_size)]
        for rank, (_, error) in enumerate(answers):
            if error is not None:  # after all ranks have answered, for the next function's sake
                raise RankError(f"rank {rank}: {error}")
        return [result for result, _ in answers]

    def _receive(self, rank: int) -> tuple[Any, str | None]:
        """Returns the result of a rank, or the traceback of its error."""
        connection = self._connections[rank]
        if not connection.poll(TIMEOUT_SECONDS):
            self.stop()
            raise RankError(f"rank {rank} did not answer within {TIMEOUT_SECONDS} s")
        try:
            result, error = connection.recv()
        except EOFError:
            raise RankError(f"rank {rank} has ended") from None
        return result, error

    def stop(self) -> None:
        """Ends the processes."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def started(world_size: int, folder: Path) -> Iterator[Ranks]:
    """Starts ranks, which meet in a file of the folder, and ends them."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    ranks = Ranks(world_size, folder)
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    try:
        yield ranks
    finally:
        ranks.stop()


ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    "OMP_NUM_THREADS": "1",
}


def _serve(rank: int, world_size: int, store: str, connection: Connection) -> None:
    """Runs functions until the test closes the connection."""
    if backends.IS_INTERPRETED:
        backends.use_interpreter()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=GLOO_TIMEOUT,
    )
    while True:
        try:
            function, arguments = connection.recv()
        except (EOFError, ConnectionError):
            break
        result, error = None, None
        try:
            result = function(rank, *arguments)
        except BaseException:
            error = traceback.format_exc()
        connection.send((result, error))
    dist.destroy_process_group()
