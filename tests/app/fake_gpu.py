"""A GPU for tests on machines without one: its memory is that of the CPU.

What a service does on a GPU beside launching kernels goes through `staging.Link` and the functions
of `torch.cuda`. Both are replaced here. In Triton's interpreter the kernels are those of the GPU
too.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from app import devices
from app.http import staging

MODEL = "NVIDIA Fake"


@dataclass(eq=False)
class LateCopy:
    """A copy that is made only when its end is waited for, which is as late as a GPU may be."""

    target: Tensor
    source: Tensor
    is_done: bool = False

    def synchronize(self) -> None:
        if not self.is_done:
            self.target.copy_(self.source)
            self.is_done = True


@dataclass(eq=False)
class FakeLink:
    """Copies like a GPU, and records the pinned memory and the number of copies.

    Attributes:
        is_late: whether copies are made when they are waited for, or else immediately.
        pinned_bytes: pinned memory so far; there is none beyond `max_pinned_bytes`.
        copies: all copies, in the order in which they were started.
    """

    is_late: bool = False
    max_pinned_bytes: int = 1 << 40
    pinned_bytes: int = 0
    copies: list[LateCopy] = field(default_factory=list)

    def pinned(self, num_bytes: int) -> Tensor:
        if self.pinned_bytes + num_bytes > self.max_pinned_bytes:
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported")
        self.pinned_bytes += num_bytes
        return torch.full((num_bytes,), 0xCD, dtype=torch.uint8)

    def start_copy(self, target: Tensor, source: Tensor) -> LateCopy:
        copy = LateCopy(target, source)
        self.copies.append(copy)
        if not self.is_late:
            copy.synchronize()
        return copy

    def finish(self) -> None:
        """Makes all copies, in the order in which they were started."""
        for copy in self.copies:
            copy.synchronize()


def install(monkeypatch: pytest.MonkeyPatch, **settings: object) -> FakeLink:
    """Makes services, created from now on, compute on the fake GPU; returns the link to it."""
    link = FakeLink(**settings)
    choice = devices.Choice(devices.CPU)
    monkeypatch.setattr(devices, "choose", lambda name, where: choice)
    monkeypatch.setattr(devices, "model", lambda device: MODEL)
    monkeypatch.setattr(staging, "link_to", lambda device: link)
    return link


def install_driver(
    monkeypatch: pytest.MonkeyPatch,
    *,
    count: int = 1,
    capability: tuple[int, int] = (9, 0),
    total_bytes: int = 1 << 30,
    error: str = "",
) -> None:
    """Makes `torch.cuda` report `count` GPUs; with an `error`, allocations on them raise it."""

    def allocate(*_: object, **__: object) -> None:
        if error:
            raise RuntimeError(error)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: MODEL)
    properties = SimpleNamespace(total_memory=total_bytes)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices, "_has_triton", lambda: True)
    monkeypatch.setattr(devices, "_allocate", allocate)
