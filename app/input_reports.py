"""What was found in the inputs of a request: the JSON object `inputs` of answers.

Half of all trouble with label maps comes from files that are read in another way than their maker
meant. The report says how each file was read, and which values it holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import label_spaces
from .errors import dtype_name

MAX_VALUES = 256
"""Largest number of values that a report lists."""

_BLOCK_PIXELS = 1 << 14
"""Number of pixels that are counted together. From 1 << 15 on, torch shares the work among threads,
which costs more than the work: on a busy machine, each block waits for a turn of every thread."""
_MAX_RANGE = 1 << 16
_SORTING_BYTES = 56
"""The most bytes of a pixel where values have a larger range: if all differ, a sorted copy, values,
counts, classes, masks and indices."""

_DTYPES_OF_MODES = {"I;16": "uint16"}
"""The dtype of the samples in a picture, where it is not that of the decoded array."""


@dataclass(frozen=True)
class LabelMapReport:
    """What was found in `labels` or `prediction`.

    Attributes:
        file: the type of the file: PNG, NPY and the like, or "tensor".
        mode: Pillow's name of the mode of a picture: P, L, I;16, RGB; None for other files.
        dtype: the dtype of the values in the file.
        shape: [N,*spatial].
        read_as: whether the file holds indices, or colours that were looked up in a palette.
        label_space: the option.
        values: the values and the number of pixels of each, by value; of more than `MAX_VALUES`
            those with the most pixels. They are those in the file, before the label space. Of
            colours they are the indices in the palette.
        values_left_out: the number of values that are not listed.
        ignored_pixels: the number of pixels whose class, after the label space, is ignored.
    """

    file: str
    mode: str | None
    dtype: str
    shape: tuple[int, ...]
    read_as: str
    label_space: str
    values: tuple[tuple[int, ...], ...]
    values_left_out: int
    ignored_pixels: int


@dataclass(frozen=True)
class LogitsReport:
    """What was found in `logits`.

    Attributes:
        file: the type of the file, or "tensor".
        dtype: the dtype.
        shape: the shape as it was sent.
        layout: the option.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    layout: str


@dataclass(frozen=True)
class WeightReport:
    """What was found in `class_weight` or `pixel_weight`; see `LogitsReport`."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ImageReport:
    """What was found in `image`.

    Attributes:
        file: the type of the file, or "tensor".
        mode: Pillow's name of the mode of a picture; None for other files.
        shape: [H,W,3], upright.
    """

    file: str
    mode: str | None
    shape: tuple[int, ...]


InputReport = LabelMapReport | LogitsReport | WeightReport | ImageReport

REPORTS: dict[str, type[InputReport]] = {
    "logits": LogitsReport,
    "labels": LabelMapReport,
    "class_weight": WeightReport,
    "pixel_weight": WeightReport,
    "prediction": LabelMapReport,
    "image": ImageReport,
}
"""The report about each input."""


@dataclass(frozen=True, eq=False)
class ValueCounts:
    """The values in a label map.

    Attributes:
        values: the distinct values, ascending.
        counts: int64, the number of pixels of each.
        classes: the class of each value, after the label space.
        is_ignored: whether the class is ignored.
    """

    values: npt.NDArray[np.integer]
    counts: npt.NDArray[np.int64]
    classes: npt.NDArray[np.integer]
    is_ignored: npt.NDArray[np.bool_]

    @property
    def present_classes(self) -> tuple[int, ...]:
        """The classes that occur and are not ignored, at most 65536."""
        # With counts, numpy.unique sorts. Without, it fills a hash table. That takes seconds for
        # millions of values, and it holds Python's global lock.
        classes, _ = np.unique(self.classes[~self.is_ignored], return_counts=True)
        return tuple(classes[:_MAX_RANGE].tolist())

    def report(
        self, file: str, mode: str | None, labels: Tensor, read_as: str, label_space: str
    ) -> LabelMapReport:
        """Returns the report about a label map of these values."""
        listed = np.arange(len(self.values))
        if len(listed) > MAX_VALUES:
            listed = np.sort(np.argsort(-self.counts, kind="stable")[:MAX_VALUES])
        pairs = zip(self.values[listed].tolist(), self.counts[listed].tolist(), strict=True)
        return LabelMapReport(
            file,
            mode,
            _DTYPES_OF_MODES.get(mode or "", dtype_name(labels.dtype)),
            tuple(labels.shape),
            read_as,
            label_space,
            tuple(pairs),
            len(self.values) - len(listed),
            int(self.counts[self.is_ignored].sum()),
        )


def sorting_bytes(labels: Tensor) -> int:
    """Returns the bytes that `count_values` and the report take, but for those of a block."""
    low, high = _bounds(labels.numpy())
    return 0 if high - low < _MAX_RANGE else _SORTING_BYTES * labels.numel()


def count_values(
    labels: Tensor, label_space: str, ignored: Sequence[int], where: str
) -> ValueCounts:
    """Returns the values in labels, their number and their classes.

    A pixel costs about 1 ns. Values whose range is larger than 65536 are sorted, which costs more.

    Args:
        labels: integers of any shape, not empty, on the CPU; all of them belong to the space.
        label_space: the space of the values.
        ignored: the option `ignore_index`.
        where: the name of the input.
    """
    array = labels.numpy()
    values, counts = _count(array.ravel("K"))
    classes = label_spaces.to_classes(values, label_space, ignored, where)
    limits = np.iinfo(classes.dtype)
    representable = [value for value in ignored if limits.min <= value <= limits.max]
    return ValueCounts(
        values, counts, classes, np.isin(classes, np.array(representable, dtype=classes.dtype))
    )


def _count(
    flat: npt.NDArray[np.integer],
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
    low, high = _bounds(flat)
    if high - low >= _MAX_RANGE:
        values, counts = np.unique(flat, return_counts=True)
        return values, counts.astype(np.int64)
    offset = flat.dtype.type(0 if low >= 0 and high < _MAX_RANGE else low)
    unsigned = np.dtype(f"u{flat.dtype.itemsize}")
    total = torch.zeros(high - int(offset) + 1, dtype=torch.int64, device="cpu")
    for begin in range(0, flat.size, _BLOCK_PIXELS):
        block = flat[begin : begin + _BLOCK_PIXELS]
        if offset:
            block = (block - offset).view(unsigned)  # a difference that overflows is right then
        if block.dtype != np.uint8:
            block = block.astype(np.int64)
        # Three times as fast as numpy.bincount, which converts the block first.
        total += torch.bincount(torch.from_numpy(block), minlength=len(total))
    found = total.numpy().nonzero()[0]
    return found.astype(flat.dtype) + offset, total.numpy()[found]


def _bounds(array: npt.NDArray[np.integer]) -> tuple[int, int]:
    return int(array.min()), int(array.max())
