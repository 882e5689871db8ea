"""Admission control and the compute thread pool.

A request is admitted before its body is read, with a reservation of the bytes that Content-Length
announces. The reservation grows as a body without a length arrives, as a body is decompressed,
before a picture is decoded, and when the memory of maps and upsampling is known. It is released
before the last bytes of the response are sent: a client that has received them may send its next
request. A thread cannot be stopped, so after a timeout the reservation is released only when the
thread has ended: its memory is in use until then.

Computations run in threads so that the event loop can go on answering other requests. If a GPU has
too little free memory, the request gets the same status as if the service had too little.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import torch

from .. import devices
from ..errors import TooLarge, Unavailable
from ..settings import PREFIX, Settings

T = TypeVar("T")

_log = logging.getLogger("seg_loss_app")


@dataclass(eq=False)
class Reservation:
    """The memory of one admitted request.

    Attributes:
        num_bytes: bytes reserved so far.
        future: the computation, once it is submitted to the pool.
    """

    num_bytes: int
    future: Future[Any] | None = None


class Workers:
    """A pool of threads, with limits on the number and the memory of the requests it serves."""

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
        """Number of requests that are admitted and not finished."""
        return self._requests

    @property
    def bytes_in_flight(self) -> int:
        """Bytes reserved for their bodies, pictures, upsampling and results."""
        return self._bytes

    @contextmanager
    def reserve(self, num_bytes: int) -> Iterator[Reservation]:
        """Admits a request with this many bytes; releases them at the end of the context.

        Raises:
            Unavailable: if the number of requests or their bytes would exceed the limits.
        """
        settings = self._settings
        with self._lock:
            if self._requests >= settings.max_concurrent_requests:
                raise self._busy(f"{settings.max_concurrent_requests} requests are being served")
            if self._bytes + num_bytes > settings.max_bytes_in_flight:
                raise self._busy("The memory for requests is in use")
            self._requests += 1
            self._bytes += num_bytes
        reservation = Reservation(num_bytes)
        try:
            yield reservation
        finally:
            if reservation.future is None:
                self._release(reservation)
            else:  # calls back immediately if the computation has ended
                reservation.future.add_done_callback(lambda _: self._release(reservation))

    def grow(self, reservation: Reservation, num_bytes: int) -> None:
        """Adds bytes to those that are reserved for the request; may be called from any thread.

        A negative number gives bytes back.

        Raises:
            TooLarge: if this request alone exceeds the limit.
            Unavailable: if all requests together would exceed the limit.
        """
        limit = self._settings.max_bytes_in_flight
        if reservation.num_bytes + num_bytes > limit:
            left = limit - reservation.num_bytes
            raise TooLarge(
                "memory",
                f"at most {left} bytes beside the body",
                f"{num_bytes}",
                f"The service has {PREFIX}MAX_BYTES_IN_FLIGHT={limit}.",
                limit=left,
            )
        with self._lock:
            if self._bytes + num_bytes > limit:
                raise self._busy("The memory for requests is in use")
            self._bytes += num_bytes
            reservation.num_bytes += num_bytes

    def deadline(self) -> float:
        """Returns the time of the event loop at which a request that begins now must end."""
        return asyncio.get_running_loop().time() + self._settings.compute_timeout_seconds

    @asynccontextmanager
    async def until(self, deadline: float) -> AsyncIterator[None]:
        """Ends the code within the context at a time of the event loop.

        Raises:
            Unavailable: if the time is over.
        """
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError:
            raise self._late() from None

    async def run(self, function: Callable[[], T], reservation: Reservation, deadline: float) -> T:
        """Calls a function in a thread of the pool and returns its result.

        Raises:
            Unavailable: if it has no result within the time limit, and then goes on running; or if
                the GPU has too little free memory.
        """
        future = self._pool.submit(self._call, function)
        reservation.future = future
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.done() and not future.cancelled():
                return future.result()  # a result at the last moment, or the function's own error
            raise self._late() from None

    async def run_without_limits(self, function: Callable[[], T]) -> T:
        """Calls a function that belongs to no single request in a thread of the pool.

        Raises:
            Unavailable: if the GPU has too little free memory.
        """
        return await asyncio.wrap_future(self._pool.submit(self._call, function))

    def close(self) -> None:
        """Cancels what has not begun; does not wait for running computations."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _call(self, function: Callable[[], T]) -> T:
        """Calls a function; frees what it held on the GPU if that had too little memory."""
        try:
            return function()
        except RuntimeError as error:
            if not devices.is_out_of_memory(error):
                raise
            reason = f"{error}".partition("\n")[0]
        # Outside of the handler: the error holds the frames of the function, and so its tensors.
        devices.release_cached_bytes()
        _log.warning("A request was answered with 503: %s", reason)
        raise self._busy("The GPU has too little free memory for this request")

    def _release(self, reservation: Reservation) -> None:
        with self._lock:
            self._requests -= 1
            self._bytes -= reservation.num_bytes

    def _late(self) -> Unavailable:
        limit = f"{self._settings.compute_timeout_seconds:g} s"
        return self._busy(f"The response was not ready within {limit}")

    def _busy(self, reason: str) -> Unavailable:
        wait = self._settings.retry_after_seconds
        return Unavailable(f"{reason}. Try again in {wait} s.", wait)
