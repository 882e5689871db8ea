"""Memory for gradients: huge pages where there are any, and the last one again where it is free.

A gradient is as large as the logits, and a training step makes one and drops it. Fresh memory costs
more than the gradient itself: on its first touch the system clears every page, which for 160 MB in
pages of 4 KiB takes about twice as long as reading the logits and writing the gradient. So large
gradients lie in mappings of their own, advised to use huge pages, and the most recent mapping is
kept: the next gradient of the same size takes it if nobody holds the last one any more. At most one
is kept, so at most the memory of one gradient stays with the process between steps.
"""

import contextlib
import mmap
import sys
import threading

import torch
from torch import Tensor

_LARGE_BYTES = 4 << 20  # below, malloc keeps freed memory itself

_lock = threading.Lock()
_kept: mmap.mmap | None = None


def empty_gradient(logits: Tensor) -> Tensor:
    """Uninitialised memory like `torch.empty_like(logits)`."""
    if (
        logits.device.type != "cpu"
        or logits.nbytes < _LARGE_BYTES
        or not hasattr(mmap, "MAP_ANONYMOUS")
    ):
        return torch.empty_like(logits)
    strides = torch.empty_like(logits, device="meta").stride()
    bytes_of = torch.frombuffer(_mapping(logits.numel() * logits.element_size()), dtype=torch.uint8)
    gradient = torch.empty(0, dtype=logits.dtype)
    with torch.no_grad():
        # A tensor of its own over this storage, not a view: it may be changed in place like any
        # other.
        return gradient.set_(bytes_of.untyped_storage(), 0, logits.shape, strides)


def _mapping(size: int) -> mmap.mmap:
    """`size` bytes that nobody else holds."""
    global _kept
    with _lock:
        # Tensors count as references to their mapping. Two are not theirs: `_kept`, and the
        # argument of getrefcount.
        if _kept is not None and len(_kept) == size and sys.getrefcount(_kept) == 2:
            return _kept
        _kept = None
        # Private: a forked child gets its own copy of what it writes.
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # Advice: without huge pages everything works, only slower.
            with contextlib.suppress(OSError):
                mapping.madvise(mmap.MADV_HUGEPAGE)
        _kept = mapping
        return mapping
