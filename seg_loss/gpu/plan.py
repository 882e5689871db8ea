"""Launch plans: what calls with the same shapes, dtypes and options share is computed once.

A training loop calls the loss thousands of times with one signature. Triton's own launch binds each
argument, finds out what the kernel is specialized on, and looks the kernel up: 15 to 30 us each. A
`Launch` does so once and then passes pointers to the compiled kernel. Plans are kept in `Cache`, by
everything on which the compiled kernel or its arguments depend.

Memory that kernels only use during a call is kept per stream and thread, in `workspace`.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel

T = TypeVar("T")


class Launch:
    """A kernel with its grid and the arguments that do not change from call to call.

    A call passes the first arguments of the kernel: tensors, None, and integers that do not
    specialize the kernel. The first call compiles the kernel, or finds it in Triton's cache. It
    must be on the same device as all later ones, with the same None, dtypes and alignments.

    Triton's interpreter, and hooks that profilers set, need the ordinary call each time.

    Attributes:
        kernel, programs, scalars, constants: as passed to the constructor.
    """

    def __init__(
        self, kernel: Any, programs: int, scalars: Sequence[Any], **constants: Any
    ) -> None:
        """Prepares `kernel[(programs,)](*arguments, *scalars, **constants)`.

        Args:
            kernel: a function decorated with `triton.jit`.
            programs: the size of the grid.
            scalars: arguments behind those of the call, and before the constants.
            constants: compile-time arguments, and options of the compiler.
        """
        self.kernel, self.programs = kernel, programs
        self.scalars = tuple(scalars)
        # The kernels say `fma` where the result must be rounded once; elsewhere it is faster.
        self.constants = {**constants, "enable_fp_fusion": True}
        self._compiled: CompiledKernel | None = None
        self._fixed: tuple[Any, ...] = ()

    def __call__(self, stream: int, *arguments: Any) -> None:
        """Launches on a stream of the current device, the one that torch uses."""
        compiled = self._compiled
        if compiled is None or _has_hooks():
            self._first_call(arguments)
            return
        pointers = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
        compiled.run(
            self.programs, 1, 1, stream, compiled.function, compiled.packed_metadata,
            None, None, None, *pointers, *self._fixed,
        )  # fmt: skip

    def _first_call(self, arguments: tuple[Any, ...]) -> None:
        compiled = self.kernel[(self.programs,)](*arguments, *self.scalars, **self.constants)
        if isinstance(compiled, CompiledKernel):
            names = self.kernel.arg_names[len(arguments) + len(self.scalars) :]
            self._fixed = *self.scalars, *(self.constants[name] for name in names)
            self._compiled = compiled


def _has_hooks() -> bool:
    """Returns whether a profiler wants to be called at each launch."""
    runtime = knobs.runtime
    return _is_set(runtime.launch_enter_hook) or _is_set(runtime.launch_exit_hook)


def _is_set(hook: Any) -> bool:
    return hook is not None and bool(getattr(hook, "calls", True))  # Triton 3.4 has no `calls`


class Cache(Generic[T]):
    """Values by key, computed when they are first asked for; the oldest go when there are many."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._values: dict[Hashable, T] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns the value of a key. Two threads may both compute it; the first value is kept."""
        value = self._values.get(key)
        if value is None:
            made = make()
            with self._lock:
                value = self._values.setdefault(key, made)
                while len(self._values) > self._max_size:
                    del self._values[next(iter(self._values))]
        return value

    def clear(self) -> None:
        """Forgets all values."""
        with self._lock:
            self._values.clear()


def layout(tensor: Tensor | None) -> Hashable:
    """Returns what kernels are specialized on: shape, strides, dtype, alignment to 16 bytes."""
    if tensor is None:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() % 16 == 0


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's device torch's current one, unless it is that already."""
    if not tensor.is_cuda or torch.cuda.current_device() == tensor.device.index:
        return nullcontext()
    return torch.cuda.device(tensor.device)


def current_stream(tensor: Tensor) -> int:
    """Returns the handle of torch's current stream on the tensor's device."""
    if not tensor.is_cuda:
        return 0
    stream: int = torch._C._cuda_getCurrentRawStream(tensor.device.index)
    return stream


def is_capturing(tensor: Tensor) -> bool:
    """Returns whether the current stream is being captured into a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


_workspaces = threading.local()  # `by_stream`, and `events` by device


def workspace(tensor: Tensor, stream: int, num_ints: int, num_floats: int) -> tuple[Tensor, Tensor]:
    """Returns int64 that are zeros before the first call, and float64, on the tensor's device.

    Kernels of later calls on the stream use the same memory, because they run after these. Kernels
    of other threads may run between two launches of this one, and use other memory. So do those
    captured into a graph, which is replayed at any time.
    """
    device = tensor.device
    if is_capturing(tensor):
        return _ints(num_ints, device), torch.empty(num_floats, dtype=torch.float64, device=device)
    kept: dict[Hashable, tuple[Tensor, Tensor]]
    kept = _workspaces.__dict__.setdefault("by_stream", {})
    key = device, stream
    ints, floats = kept.get(key, (None, None))
    if ints is None or floats is None or len(ints) < num_ints or len(floats) < num_floats:
        ints = _ints(max(num_ints, 0 if ints is None else len(ints)), device)
        size = max(num_floats, 0 if floats is None else len(floats))
        floats = torch.empty(size, dtype=torch.float64, device=device)
        kept[key] = ints, floats
    return ints, floats


def _ints(size: int, device: torch.device) -> Tensor:
    return torch.zeros(size, dtype=torch.int64, device=device)


def event_of(device: torch.device) -> torch.cuda.Event:
    """Returns an event of this thread, which the next call on the device uses again."""
    events: dict[torch.device, torch.cuda.Event] = _workspaces.__dict__.setdefault("events", {})
    if device not in events:
        events[device] = torch.cuda.Event()  # type: ignore[no-untyped-call]
    return events[device]
