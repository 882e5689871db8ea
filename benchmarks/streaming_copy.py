"""A copy with stores that bypass the caches, which `Tensor.copy_` does not use.

Ordinary stores read each cache line before they write it. A copy without that is the floor of every
kernel that reads logits and writes a gradient. It runs on the same threads as the kernels.
"""

import functools
from collections.abc import Callable

import numpy as np
from numba import types
from torch import Tensor

from seg_loss.cpu import cache, threads
from seg_loss.cpu.compiler import compile_to_object, inner
from seg_loss.cpu.dtypes import load_as, store_as
from seg_loss.cpu.records import FLOAT32, LANES
from seg_loss.cpu.simd import fetch_add, min_int, pointer

_CHUNK = 1 << 16  # elements
_BYTES = 4 * LANES
# The words of a job: addresses of the source and of the target, elements, chunks taken.
_SOURCE, _TARGET, _SIZE, _NEXT, _WORDS = range(5)


@inner(types.void)
def _copy_chunk(source, target, num_bytes):
    for offset in range(0, num_bytes, _BYTES):
        store_as(FLOAT32, True, target + offset, load_as(FLOAT32, source + offset))


def _copy(address: int) -> None:
    job = pointer(address, np.int64)
    size = job[_SIZE]
    while True:
        first = fetch_add(address + 8 * _NEXT, 1) * _CHUNK
        if first >= size:
            break
        num_bytes = 4 * min_int(_CHUNK, size - first)
        _copy_chunk(job[_SOURCE] + 4 * first, job[_TARGET] + 4 * first, num_bytes)


@functools.cache
def _function() -> cache.Function:
    return cache.link(compile_to_object(_copy, cache.SYMBOL))


def streaming_copy(source: Tensor, target: Tensor) -> Callable[[], None]:
    """Returns a call that copies the whole cache lines of contiguous tensors."""
    size = source.nbytes // _BYTES * LANES
    assert source.is_contiguous()
    assert target.is_contiguous()
    assert source.nbytes == target.nbytes
    assert target.data_ptr() % _BYTES == 0
    job = np.zeros(_WORDS, np.int64)
    initial = source.data_ptr(), target.data_ptr(), size, 0
    function = _function()

    def copy() -> None:
        job[:4] = initial
        threads.run(function, job.ctypes.data, threads.num_threads_for(size // _CHUNK))

    return copy
