"""Copies the tensors of requests to a GPU, and results back, through pinned memory.

A GPU copies pinned memory by itself, at the full speed of the bus, while the thread goes on. Memory
of any other kind is first copied to pinned memory of the driver, and the thread waits.

A service has one `StagingBuffers` for each of its worker threads, and a request borrows one. Each
has `NUM_SLOTS` slots of pinned memory, and tensors are copied in pieces: while the GPU copies one
slot, the thread copies the next piece to the other. So the pinned memory, which the system cannot
swap out, is small and does not depend on the size of a request. A slot is used again only after
its event says that the copy before has ended, also if the request of that copy has failed.

Results are copied out of the slots before the response is sent. Otherwise slow clients would hold
pinned memory, and a client could receive what a later request has written.

All threads use the current stream, which is the default one. Streams of their own would let the
copies of two requests overlap, but bodies arrive over the network more slowly than one stream
copies them. And torch keeps freed memory for the stream that has used it, so each thread would hold
memory of the GPU that the others cannot use.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from queue import SimpleQueue
from typing import Protocol

import torch
from torch import Tensor

SLOT_BYTES = 8 * 1024 * 1024
"""Size of a slot. The time to start a copy is small beside that of the copy."""
NUM_SLOTS = 2
"""Slots of a request: one for the GPU and one for the thread."""

_log = logging.getLogger("seg_loss_app")


class Event(Protocol):
    """The end of a copy."""

    def synchronize(self) -> None:
        """Waits for it."""


class Link(Protocol):
    """The operations of a device that the copies need; tests replace it."""

    def pinned(self, num_bytes: int) -> Tensor:
        """Returns uninitialised pinned memory, uint8, or raises a RuntimeError."""

    def start_copy(self, target: Tensor, source: Tensor) -> Event:
        """Starts a copy behind all that the device has been given, and returns its end."""


class CudaLink:
    """A `Link` to a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def pinned(self, num_bytes: int) -> Tensor:
        # Otherwise torch would take memory on the first device for a context.
        with torch.cuda.device(self._device):
            return torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def start_copy(self, target: Tensor, source: Tensor) -> Event:
        target.copy_(source, non_blocking=True)
        # A thread that waits for a blocking event takes no processor time.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


def link_to(device: torch.device) -> Link | None:
    """Returns the link to a device; None for the CPU, where nothing is copied."""
    return CudaLink(device) if device.type == "cuda" else None


@dataclass(eq=False)
class _Slot:
    """Pinned memory, and the end of the last copy to or from it."""

    memory: Tensor
    copy: Event | None = None

    def wait(self) -> None:
        if self.copy is not None:
            self.copy.synchronize()
            self.copy = None


class StagingBuffers:
    """Pinned memory for one request at a time, and its copies to a device and back.

    Without pinned memory, and for tensors that are not contiguous, it uses torch's own copies,
    which are slower. On the CPU nothing is copied.
    """

    def __init__(self, device: torch.device, link: Link | None, memory: Sequence[Tensor]) -> None:
        self._device = device
        self._link = link
        self._num_slots = len(memory)
        # The next slot is always the one whose copy was started first.
        self._slots = cycle([_Slot(tensor) for tensor in memory])

    def upload(self, tensor: Tensor) -> Tensor:
        """Returns a copy on the device, which the device may still be making.

        The tensor itself is no longer needed.
        """
        if self._link is None or not self._num_slots or not tensor.is_contiguous():
            return tensor.to(self._device)
        copy = torch.empty_like(tensor, device=self._device)
        for source, target in _pieces(tensor, copy):
            slot = next(self._slots)
            slot.wait()
            slot.copy = self._link.start_copy(target, slot.memory[: len(source)].copy_(source))
        return copy

    def download(self, tensor: Tensor, into: Tensor | None = None) -> Tensor:
        """Returns a copy on the host, complete.

        Args:
            tensor: a tensor on the device.
            into: a tensor on the host that is no longer needed. If it has the same shape, dtype and
                layout, the copy takes its memory: fresh memory is slow when it is first written.
        """
        if self._link is None or not self._num_slots or not tensor.is_contiguous():
            return tensor.cpu()
        if into is None or not _are_alike(into, tensor):
            into = torch.empty_like(tensor, device="cpu")
        started: deque[tuple[_Slot, Tensor]] = deque()

        def finish() -> None:
            slot, target = started.popleft()
            slot.wait()
            target.copy_(slot.memory[: len(target)])

        for source, target in _pieces(tensor, into):
            if len(started) == self._num_slots:
                finish()
            slot = next(self._slots)
            slot.wait()
            slot.copy = self._link.start_copy(slot.memory[: len(source)], source)
            started.append((slot, target))
        while started:
            finish()
        return into


class StagingPool:
    """The `StagingBuffers` of a service, as many as it computes requests at a time."""

    def __init__(self, device: torch.device, num_workers: int) -> None:
        self._idle: SimpleQueue[StagingBuffers] = SimpleQueue()
        link = link_to(device)
        for memory in _allocate(link, num_workers, device):
            self._idle.put(StagingBuffers(device, link, memory))

    @contextmanager
    def borrow(self) -> Iterator[StagingBuffers]:
        """Lends buffers to a request, and takes them back at the end of the context."""
        buffers = self._idle.get()
        try:
            yield buffers
        finally:
            self._idle.put(buffers)


def _allocate(link: Link | None, num_workers: int, device: torch.device) -> list[list[Tensor]]:
    """Returns the slots of each worker; no slots if there is no pinned memory for all of them."""
    if link is None:
        return [[] for _ in range(num_workers)]
    try:
        return [[link.pinned(SLOT_BYTES) for _ in range(NUM_SLOTS)] for _ in range(num_workers)]
    except RuntimeError as error:
        reason = f"{error}".partition("\n")[0]
        _log.warning("Copies to %s will be slow, without pinned memory: %s", device, reason)
        return [[] for _ in range(num_workers)]


def _pieces(source: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the bytes of two contiguous tensors of one size, in pieces as large as a slot."""
    sources, targets = _as_bytes(source), _as_bytes(target)
    for begin in range(0, len(sources), SLOT_BYTES):
        piece = slice(begin, begin + SLOT_BYTES)
        yield sources[piece], targets[piece]


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


def _are_alike(first: Tensor, second: Tensor) -> bool:
    return (
        first.shape == second.shape
        and first.dtype == second.dtype
        and first.is_contiguous()
        and second.is_contiguous()
    )
