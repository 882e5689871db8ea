"""Plans: everything about a call that depends on shapes, strides, dtypes and options alone.

`Plan.call` fills a copy of the plan's job with addresses and runs the kernel. Plans are kept by
their signature. Each also keeps the memory of its last call: the partial sums of the chunks and the
scratch memory of the threads.
"""

import os
import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seg_loss._divisor import known_divisor
from seg_loss._inputs import LossInputs
from seg_loss.cpu import cache, threads
from seg_loss.cpu.records import (
    CHUNK,
    DTYPES,
    IMAGE,
    JOB,
    KNOWN,
    VALID,
    WEIGHT,
)

CACHE_LINE = 64
# What is kept for later calls: plans, the tables of each, and the memory of calls, of one plan and
# of all together.
MAX_PLANS = 128
MAX_TABLE_BYTES = 512 << 10
MAX_KEPT_BYTES_OF_PLAN = 4 << 20
MAX_KEPT_BYTES = 64 << 20
# A second thread costs more time than it saves where there are fewer elements to read.
_MIN_ELEMENTS_FOR_THREADS = 60_000


def _words(dtype: Any, prefix: str = "", start: int = 0) -> dict[str, int]:
    """Returns where each field begins, in words of 8 bytes; "maps.nll" is a field of a field."""
    words = {}
    for name, (inner, offset, *_) in dtype.fields.items():
        words[prefix + name] = (start + offset) // 8
        if inner.fields:
            words |= _words(inner, f"{prefix}{name}.", start + offset)
    return words


_WORDS = _words(JOB)

_lock = threading.Lock()
_kept_bytes = 0
if hasattr(os, "register_at_fork"):
    # Another thread may hold the lock while this one forks.
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


def round_up(value: int, step: int) -> int:
    """Returns the smallest multiple of `step` that is not less than `value`."""
    return -(-value // step) * step


def dtype_code(dtype: torch.dtype) -> int:
    """Returns the code of a dtype in `records.DTYPES`."""
    return _DTYPE_CODES[dtype]


_DTYPE_CODES = {getattr(torch, name): code for code, name in enumerate(DTYPES)}


def merged_axes(tensor: Tensor, first: int) -> list[tuple[int, int]]:
    """Returns sizes and strides of the axes from `first` on, contiguous ones merged."""
    axes: list[tuple[int, int]] = []
    for size, stride in zip(tensor.shape[first:], tensor.stride()[first:], strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == stride * size:
            axes[-1] = axes[-1][0] * size, stride
        else:
            axes.append((size, stride))
    return axes


class Plan:
    """A job without addresses, and what runs it.

    Attributes:
        job: one `JOB`.
        kernel: the kernel.
    """

    def __init__(self, kernel: cache.Kernel, num_images: int, num_pixels: int) -> None:
        self.job = np.zeros(1, JOB)
        self.kernel = kernel
        self._function: cache.Function | None = None
        self._free: list[Memory] = []
        self._is_discarded = False
        self._scratch = 0
        self.num_chunks = 1
        self.set(num_images=max(1, num_images), pixels=num_pixels, inverse_temperature=1.0)
        self.set(grad_output=1.0, max_nll=np.inf, known_divisor=1.0)
        # What the job refers to by address.
        self.ignored: Any = None
        self.class_weight: Any = None
        self.tables: tuple[Any, ...] = ()
        self.halo_shape: tuple[int, ...] | None = None
        self.halo_dtype: Any = None

    def set(self, **fields: Any) -> None:
        """Sets fields of the job."""
        for name, value in fields.items():
            self.job[0][name] = value

    def add_view(self, name: str, tensor: Tensor | None, *, has_classes: bool) -> None:
        """Describes a tensor with at most three spatial axes that cannot be merged."""
        if tensor is None:
            return
        axes = merged_axes(tensor, 2 if has_classes else 1)
        padded = [(1, 0)] * (3 - len(axes)) + axes
        (_, slice_stride), (rows, row_stride), (columns, column_stride) = padded
        if not axes:
            column_stride = 1
        view = self.job[0][name]
        view["dtype_code"] = dtype_code(tensor.dtype)
        view["num_classes"] = tensor.shape[1] if has_classes else 1
        view["image_stride"] = tensor.stride(0)
        view["class_stride"] = tensor.stride(1) if has_classes else 0
        view["num_rows"], view["num_columns"] = rows, columns
        view["slice_stride"], view["row_stride"] = slice_stride, row_stride
        view["column_stride"] = column_stride

    def split(self, units: int, chunk_units: int, label_chunk_pixels: int = 0) -> None:
        """Splits each image into chunks of `chunk_units` pixels or rows, and its labels."""
        pixels = int(self.job[0]["pixels"])
        self.set(
            image_units=units,
            chunk_units=chunk_units,
            chunks_per_image=max(1, -(-units // chunk_units)),
            label_chunk_pixels=label_chunk_pixels or chunk_units,
            label_chunks_per_image=max(1, -(-pixels // (label_chunk_pixels or chunk_units))),
        )
        job = self.job[0]
        per_image = max(job["chunks_per_image"], job["label_chunks_per_image"])
        self.num_chunks = int(job["num_images"] * per_image)

    def add_scratch(self, **parts: int) -> None:
        """Adds parts to the scratch memory of a thread; each number is a number of bytes."""
        self.set(**{name: self.reserve(num_bytes) for name, num_bytes in parts.items()})

    def reserve(self, num_bytes: int) -> int:
        """Returns where a new part of a thread's scratch memory begins."""
        start = self._scratch
        self._scratch += round_up(num_bytes, CACHE_LINE)
        return start

    def call(
        self, addresses: dict[str, int], floats: dict[str, float], num_elements: int
    ) -> "Memory":
        """Runs the kernel and returns its memory, to be given back by `release`."""
        num_threads = 1
        if num_elements >= _MIN_ELEMENTS_FOR_THREADS:
            num_threads = threads.num_threads_for(self.num_chunks)
        memory = self._take()
        if memory is None or memory.max_threads < num_threads:
            memory = Memory(self, num_threads)
        words = memory.words
        words[: memory.size] = memory.initial
        for name, value in addresses.items():
            words[_WORDS[name]] = value
        for name, number in floats.items():
            memory.floats[_WORDS[name]] = number
        if self._function is None:
            self._function = cache.load(self.kernel)
        threads.run(self._function, memory.address, num_threads)
        return memory

    def release(self, memory: "Memory") -> None:
        """Keeps the memory of a call for the next one."""
        global _kept_bytes
        with _lock:
            kept_bytes = _kept_bytes + memory.num_bytes
            is_small = memory.num_bytes <= MAX_KEPT_BYTES_OF_PLAN and kept_bytes <= MAX_KEPT_BYTES
            if is_small and len(self._free) < 2 and not self._is_discarded:
                self._free.append(memory)
                _kept_bytes = kept_bytes

    def _take(self) -> "Memory | None":
        """Returns the memory of an earlier call, if another thread has not taken it."""
        global _kept_bytes
        with _lock:
            if not self._free:
                return None
            memory = self._free.pop()
            _kept_bytes -= memory.num_bytes
            return memory

    def discard(self) -> None:
        """Frees what the plan keeps, now and after calls that still run."""
        self._is_discarded = True
        while self._take() is not None:
            pass

    @property
    def num_bytes(self) -> int:
        """The memory of the plan's own tables."""
        return sum(table.nbytes for table in self.tables)


class Memory:
    """The job, the chunks, the images and the scratch memory of one call at a time."""

    def __init__(self, plan: Plan, max_threads: int) -> None:
        job = plan.job[0]
        num_images = int(job["num_images"])
        self.max_threads = max_threads
        scratch_bytes = round_up(plan._scratch, 4096) + CACHE_LINE * 5
        sizes = [
            JOB.itemsize,
            plan.num_chunks * CHUNK.itemsize,
            num_images * IMAGE.itemsize,
            self.max_threads * scratch_bytes,
        ]
        starts = np.cumsum([0] + [round_up(size, CACHE_LINE) for size in sizes]).tolist()
        self._bytes = np.zeros(starts[-1] + CACHE_LINE, np.uint8)
        self.num_bytes = self._bytes.nbytes
        start = -self._bytes.ctypes.data % CACHE_LINE
        self._bytes = self._bytes[start:]
        self.address = self._bytes.ctypes.data
        self.job = self._bytes[: JOB.itemsize].view(JOB)
        self.job[0] = job
        self.job[0]["chunks"] = self.address + starts[1]
        self.job[0]["images"] = self.address + starts[2]
        self.job[0]["scratch"] = self.address + starts[3]
        self.job[0]["scratch_bytes"] = scratch_bytes
        self.size = JOB.itemsize // 8
        self.words = self._bytes[: JOB.itemsize].view(np.int64)
        self.floats = self._bytes[: JOB.itemsize].view(np.float64)
        self.initial = self.words.copy()
        self._scratch = self._bytes[starts[3] :]
        self._scratch_bytes, self._tables = scratch_bytes, int(job["tables"])
        if plan.halo_shape is not None:
            self.halo_rows = np.zeros(plan.halo_shape, plan.halo_dtype)
            self.num_bytes += self.halo_rows.nbytes
            self.initial[_WORDS["grid.halo_rows"]] = self.halo_rows.ctypes.data
        self.chunks = self._bytes[starts[1] : starts[1] + sizes[1]].view(CHUNK)
        self.images = self._bytes[starts[2] : starts[2] + sizes[2]].view(IMAGE)

    def take_tables(self, size: int) -> Any:
        """Returns the sum of the threads' integer tables, and sets them to 0 for the next call."""
        total = np.zeros(size, np.int64)
        for k in range(self.max_threads):
            start = k * self._scratch_bytes + self._tables
            table = self._scratch[start : start + 8 * size].view(np.int64)
            total += table
            table[:] = 0
        return total

    def word(self, name: str) -> int:
        """Returns an integer field of the job."""
        return int(self.words[_WORDS[name]])


def set_options(plan: Plan, inputs: LossInputs) -> None:
    """Sets the fields of the job that options determine."""
    options = inputs.options
    known = known_divisor(options.normalization, len(inputs.labels), inputs.labels.numel())
    is_weight = options.normalization == "weight" and inputs.is_weighted
    plan.set(
        divisor_source=KNOWN if known is not None else WEIGHT if is_weight else VALID,
        known_divisor=1.0 if known is None else known,
        has_floor=options.has_divisor_floor,
        stops_if_invalid=options.check_labels == "raise",
        inverse_temperature=1 / options.temperature,
        label_smoothing=options.label_smoothing,
        max_nll=options.max_nll,
        num_ignored=len(inputs.ignored),
    )


class Cache:
    """Plans by their signatures; the oldest go if there are too many."""

    def __init__(self) -> None:
        self._plans: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns the plan of a signature, made if it is new."""
        plan = self._plans.get(key)
        if plan is None:
            plan = make()
            if plan.num_bytes > MAX_TABLE_BYTES:
                return plan
            # A copy of the keys: another thread may add a plan at the same time.
            for oldest in list(self._plans)[: max(0, len(self._plans) + 1 - MAX_PLANS)]:
                discarded = self._plans.pop(oldest, None)
                if discarded is not None:
                    discarded.discard()
            self._plans[key] = plan
        return plan
