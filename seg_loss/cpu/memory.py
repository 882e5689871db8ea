"""Allocates gradients in huge pages and reuses the last buffer once it is free.

A gradient is as large as the logits, and a training step allocates one and drops it. The operating
system clears each page of fresh memory on first touch. For 160 MB in pages of 4 KiB that takes
about twice as long as computing the gradient. Therefore large gradients are allocated in their own
mappings, advised to use huge pages, and the latest mapping is kept: the next gradient of the same
size reuses it if no tensor refers to it any more. The process keeps at most one such mapping, so at
most the memory of one gradient, between two steps.
"""

import contextlib
import mmap
import os
import sys
import threading

import torch
from torch import Tensor

_LARGE_BYTES = 4 << 20  # below this size malloc itself keeps freed memory

_lock = threading.Lock()
_kept: mmap.mmap | None = None


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


# A thread that a forked child does not inherit may have held it.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def empty_gradient(logits: Tensor) -> Tensor:
    """Returns uninitialised memory like `torch.empty_like(logits)`."""
    if (
        logits.device.type != "cpu"
        or logits.nbytes < _LARGE_BYTES
        or not hasattr(mmap, "MAP_ANONYMOUS")
    ):
        return torch.empty_like(logits)
    strides = torch.empty_like(logits, device="meta").stride()
    memory = torch.frombuffer(_mapping(logits.numel() * logits.element_size()), dtype=torch.uint8)
    gradient = torch.empty(0, dtype=logits.dtype, device="cpu")
    with torch.no_grad():
        # A tensor with this storage rather than a view of it, so that autograd allows changing it
        # in place.
        return gradient.set_(memory.untyped_storage(), 0, logits.shape, strides)


def _mapping(size: int) -> mmap.mmap:
    """Returns a mapping of `size` bytes that no tensor uses."""
    global _kept
    with _lock:
        # Each tensor holds a reference to its mapping. Two other references are `_kept` and the
        # argument of getrefcount.
        if _kept is not None and len(_kept) == size and sys.getrefcount(_kept) == 2:
            return _kept
        _kept = None
        # Private: a forked child gets its own copy of what it writes.
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # The advice may fail: without huge pages the gradient is only slower.
            with contextlib.suppress(OSError):
                mapping.madvise(mmap.MADV_HUGEPAGE)
        _kept = mapping
        return mapping
