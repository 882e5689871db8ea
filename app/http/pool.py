"""Who may come in, and the threads that do the work, so that the event loop stays free to answer.

A request is let in before its body is read, with the bytes that the body can come to, and asks for
more when it is known what maps and upsampling take. It takes its place back out when it has its
answer, or, after a timeout, when its thread has really ended: work in a thread cannot be stopped,
and what it holds is not free before.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TypeVar

import torch

from ..errors import TooLarge, Unavailable
from ..settings import Settings

T = TypeVar("T")


@dataclass(eq=False)
class Place:
    """One request that was let in, and its bytes."""

    num_bytes: int
    work: "Future[object] | None" = field(default=None)


class Workers:
    """A few threads, and a count of the requests that may wait for them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(
            settings.workers,
            thread_name_prefix="compute",
            initializer=torch.set_num_threads,
            initargs=(settings.threads,),
        )
        self._lock = Lock()
        self._requests = 0
        self._bytes = 0

    @property
    def requests_in_flight(self) -> int:
        """Requests that were let in and are not done."""
        return self._requests

    @property
    def bytes_in_flight(self) -> int:
        """The memory their bodies, maps and upsampling can come to."""
        return self._bytes

    @contextmanager
    def place(self, num_bytes: int) -> Iterator[Place]:
        """Room for a request of that many bytes.

        Raises:
            Unavailable: there is none.
        """
        settings = self._settings
        with self._lock:
            if self._requests >= settings.max_concurrent_requests:
                raise self._busy(f"{settings.max_concurrent_requests} requests are being served")
            if self._bytes + num_bytes > settings.max_bytes_in_flight:
                raise self._busy("The memory for requests is in use")
            self._requests += 1
            self._bytes += num_bytes
        place = Place(num_bytes)
        try:
            yield place
        finally:
            if place.work is None:
                self._leave(place)
            else:  # at once if it has ended
                place.work.add_done_callback(lambda _: self._leave(place))

    def enlarge(self, place: Place, num_bytes: int) -> None:
        """More room for a request, for what it turned out to need beside its body.

        Raises:
            TooLarge: it alone would need more than there is.
            Unavailable: there is none now.
        """
        limit = self._settings.max_bytes_in_flight
        if place.num_bytes + num_bytes > limit:
            left = limit - place.num_bytes
            raise TooLarge(
                "memory", f"at most {left} bytes beside the body", f"{num_bytes}", limit=left
            )
        with self._lock:
            if self._bytes + num_bytes > limit:
                raise self._busy("The memory for requests is in use")
            self._bytes += num_bytes
            place.num_bytes += num_bytes

    async def run(self, work: Callable[[], T], place: Place) -> T:
        """Do the work in a thread.

        Raises:
            Unavailable: it took too long.
        """
        future = self._pool.submit(work)
        place.work = future  # type: ignore[assignment]  # only ever asked whether it is done
        try:
            async with asyncio.timeout(self._settings.compute_timeout_seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.done() and not future.cancelled():
                return future.result()  # its own TimeoutError, or an answer in the last moment
            limit = f"{self._settings.compute_timeout_seconds:g} s"
            raise self._busy(f"The answer was not ready within {limit}") from None

    async def run_at_start(self, work: Callable[[], T]) -> T:
        """Do what is nobody's request, without a limit."""
        return await asyncio.wrap_future(self._pool.submit(work))

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _leave(self, place: Place) -> None:
        with self._lock:
            self._requests -= 1
            self._bytes -= place.num_bytes

    def _busy(self, what: str) -> Unavailable:
        wait = self._settings.retry_after_seconds
        return Unavailable(f"{what}. Try again in {wait} s.", wait)
