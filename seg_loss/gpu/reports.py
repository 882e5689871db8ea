"""Reports of invalid labels: kernels write them to pinned host memory, the host reads them later.

Each call has a slot of a ring. A device runs far fewer than `RING_SIZE` calls behind the host, so
that a slot is free again when its turn comes. Calls captured into a CUDA graph keep a slot for
good, because the graph may be replayed at any time.
"""

import itertools
import struct
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from seg_loss import _labels
from seg_loss._errors import InvalidInput
from seg_loss._labels import InvalidValues, LabelReport
from seg_loss.gpu import labels

RING_SIZE = 1024
_CAPTURED_SIZE = 1024


class Context(NamedTuple):
    """The call that a report is about.

    Attributes:
        shape, dtype: of the labels.
        num_classes: C.
        ignored: the ignored labels.
    """

    shape: torch.Size
    dtype: torch.dtype
    num_classes: int
    ignored: tuple[int, ...]


class Reports:
    """The reports of one device.

    Attributes:
        memory: int64 [slots, REPORT_SIZE], zeros where nothing is written. Slot 0 holds no report;
            its first number says that some other slot has one.
    """

    def __init__(self, device: torch.device) -> None:
        size = 1 + RING_SIZE + _CAPTURED_SIZE, int(labels.REPORT_SIZE.value)
        pinned = device.type == "cuda"
        self.memory = torch.zeros(size, dtype=torch.int64, device="cpu", pin_memory=pinned)
        self._device = device
        self._numbers = self.memory.numpy()
        self._deferred: dict[int, Context] = {}  # by slot, the oldest call first
        self._calls = itertools.count()
        self._captured: dict[Context, int] = {}
        self._lock = threading.Lock()

    def reserve(self, context: Context, *, is_deferred: bool, is_captured: bool) -> int:
        """Returns the slot of a call, whose report is read by `error_in` or, if deferred, later."""
        if is_captured:
            # Of too many contexts, the last ones share a slot; an error may name another shape.
            with self._lock:
                number = min(len(self._captured), _CAPTURED_SIZE - 1)
                slot = self._captured.setdefault(context, 1 + RING_SIZE + number)
        else:
            slot = 1 + next(self._calls) % RING_SIZE
            if self._numbers[slot, 0]:
                self._numbers[slot] = 0  # a kernel writes no fields of absent weights
        self._deferred.pop(slot, None)
        if is_deferred:
            self._deferred[slot] = context
        return slot

    def error_in(self, slot: int, context: Context) -> InvalidInput | None:
        """Returns the error that a finished kernel has reported in a slot, and clears it."""
        if not self._numbers[slot, 0]:
            return None
        fields = self._numbers[slot].tolist()
        self._numbers[slot] = 0
        return _labels.error_for(
            label_report(fields, context), context.num_classes, context.ignored
        )

    def take_error(self, wait: bool) -> InvalidInput | None:
        """Returns the oldest deferred error and clears it; with `wait`, once all kernels ran."""
        if wait and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if not self._numbers[0, 0]:
            return None
        self._numbers[0, 0] = 0  # a kernel that writes now sets it again
        for slot, context in list(self._deferred.items()):
            error = self.error_in(slot, context)
            if error is not None:
                self._numbers[0, 0] = 1  # there may be more
                return error
        return None


_reports: dict[torch.device, Reports] = {}


def reports_of(device: torch.device) -> Reports:
    """Returns the reports of a device; the first call allocates them, and must not be captured."""
    if device not in _reports:
        reports = _reports.setdefault(device, Reports(device))
        _labels.register_pending(reports.take_error)
    return _reports[device]


def label_report(fields: Sequence[int], context: Context) -> LabelReport:
    is_uint64 = context.dtype == torch.uint64

    def invalid(field: Any, shape: Sequence[int], *, is_float: bool) -> InvalidValues | None:
        count, offset, value = fields[field.value : field.value + 3]
        if not count:
            return None
        index = []
        for size in reversed(shape):
            offset, last = divmod(offset, size)
            index.append(last)
        if is_float or is_uint64:
            (value,) = struct.unpack("<d" if is_float else "<Q", struct.pack("<q", value))
        return InvalidValues(count, tuple(reversed(index)), value)

    return LabelReport(
        labels=invalid(labels.INVALID_LABELS, context.shape, is_float=False),
        pixel_weights=invalid(labels.INVALID_PIXEL_WEIGHTS, context.shape, is_float=True),
        class_weights=invalid(labels.INVALID_CLASS_WEIGHTS, (1 << 62,), is_float=True),
    )
