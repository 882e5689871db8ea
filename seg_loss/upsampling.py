"""How scores [N, C, h, w] become logits [N, C, H, W]: what the kernels of the upsampled loss read.

Both ways are linear, act on each axis by itself, and give a position at most two nodes of the axis:

    logits[y, x] = sum_ij  rows[y, i] columns[x, j] scores[i, j]

`Axis` is one such matrix. Nodes bound cells: node -1, cell 0, node 0, cell 1, node 1, ..., cell n,
node n, of which nodes -1 and n do not exist. Position p lies in `cells[p]` and is

    x_p = weights[0, p] * node[cell - 1] + weights[1, p] * node[cell].

A node that does not exist has weight 0, and one of weight 0 is not read: neither NaN nor infinity
comes out of it, where 0 * infinity would be NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from seg_loss._inputs import InvalidInput

Size = tuple[int, int]  # height and width

_MOST = 1 << 30  # positions times this are integers yet


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of an upsampling.

    Attributes:
        num_nodes: n, of the scores.
        num_positions: of the labels.
        cells: int32 [positions], ascending, from 0 to n.
        weights: float64 [2, positions], of the nodes before and behind.
    """

    num_nodes: int
    num_positions: int
    cells: np.ndarray[Any, np.dtype[np.int32]]
    weights: np.ndarray[Any, np.dtype[np.float64]]

    @cached_property
    def starts(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """int32 [n + 2]: the first position of each cell; its last is before that of the next."""
        places = np.searchsorted(self.cells, np.arange(self.num_nodes + 2))
        return places.astype(np.int32)

    @cached_property
    def max_positions(self) -> int:
        """The most positions that a cell has."""
        return int(np.diff(self.starts).max(initial=0))

    @cached_property
    def has_unread_nodes(self) -> bool:
        """Whether some position gives a node that exists the weight 0."""
        nodes = np.stack([self.cells - 1, self.cells])
        exists = (nodes >= 0) & (nodes < self.num_nodes)
        return bool(np.any(exists & (self.weights == 0)))

    def matrix(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The whole of it, float64 [positions, nodes]."""
        matrix = np.zeros((self.num_positions, self.num_nodes + 2))
        position = np.arange(self.num_positions)
        matrix[position, self.cells] = self.weights[0]
        matrix[position, self.cells + 1] = self.weights[1]
        return matrix[:, 1:-1]


Axes = tuple[Axis, Axis]  # rows and columns


@dataclass(frozen=True)
class Bilinear:
    """`F.interpolate(scores, size, mode="bilinear", align_corners=...)`, for sizes of any ratio.

    Where torch computes positions and weights in float32, here positions are integers, and weights
    their quotients in float64.

    Attributes:
        align_corners: whether first and last pixels coincide, rather than the pixels' outer edges.
    """

    align_corners: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.align_corners, bool):
            raise InvalidInput("align_corners", "True or False", repr(self.align_corners))

    @property
    def numbers(self) -> list[int]:
        """All that it is, for torch's operators."""
        return [int(self.align_corners)]

    def check_size(self, scores: Sequence[int], labels: Sequence[int]) -> None:
        """All sizes go together."""

    def axes(self, scores: Sequence[int], labels: Sequence[int]) -> Axes:
        """From scores of this height and width to labels of that."""
        return self._axis(scores[0], labels[0]), self._axis(scores[1], labels[1])

    def _axis(self, num_nodes: int, num_positions: int) -> Axis:
        position = np.arange(num_positions, dtype=np.int64)
        # Where a position lies among the nodes, as a fraction.
        if self.align_corners:
            whole = max(num_positions - 1, 1)
            place = position * (num_nodes - 1)
        else:
            whole = 2 * num_positions
            place = (2 * position + 1) * num_nodes - num_positions
        place = place.clip(0, (num_nodes - 1) * whole)
        behind = (place % whole) / whole
        # On the first node or before it: in cell 0, with nothing of the node that is not there.
        is_first = place == 0
        cells = np.where(is_first, 0, place // whole + 1).astype(np.int32)
        behind = np.where(is_first, 1.0, behind)
        return Axis(num_nodes, num_positions, cells, np.stack([1 - behind, behind]))


@dataclass(frozen=True)
class Deconvolution:
    """FCN's way: a deconvolution with the fixed bilinear filter, then Caffe's Crop.

    The filter is surgery.py's, 1 - |i - c| / f on each axis with f = (kernel_size + 1) // 2 and
    c = f - 1 (odd) or f - 0.5 (even). At borders, where only part of the filter meets scores, the
    result is attenuated, as in Caffe. FCN's nets crop 19 at stride 32, 27 at 16 and 31 at 8.

    Attributes:
        stride: of the deconvolution, at least 1.
        kernel_size: of the filter; 2 * stride, the usual one, is also the largest: beyond it more
            than two nodes would meet in a pixel.
        crop: how many rows and columns are cut off before the first; a number or a pair.
    """

    stride: int
    kernel_size: int | None = None
    crop: int | Size = 0

    def __post_init__(self) -> None:
        if not _is_count(self.stride, 1):
            raise InvalidInput("stride", f"an integer from 1 to {_MOST}", repr(self.stride))
        stride = int(self.stride)
        kernel_size = 2 * stride if self.kernel_size is None else self.kernel_size
        if not _is_count(kernel_size, 1, 2 * stride):
            expected = f"an integer from 1 to 2 * stride = {2 * stride}"
            raise InvalidInput("kernel_size", expected, repr(self.kernel_size))
        crop = self.crop if isinstance(self.crop, list | tuple) else (self.crop, self.crop)
        if len(crop) != 2 or not all(_is_count(number, 0) for number in crop):
            expected = f"an integer from 0 to {_MOST}, or two, of rows and columns"
            raise InvalidInput("crop", expected, repr(self.crop))
        # NumPy's integers are taken, but torch's operators want Python's.
        object.__setattr__(self, "stride", stride)
        object.__setattr__(self, "kernel_size", int(kernel_size))
        object.__setattr__(self, "crop", (int(crop[0]), int(crop[1])))

    @classmethod
    def of_fcn(cls, scores: Size, labels: Size) -> "Deconvolution":
        """The last layers of FCN-8s, 16s or 32s, whichever has scores of this size.

        Where no net has just this size for such labels, the smallest stride of which the crop
        leaves what labels need, and about as much more as it leaves in the nets.

        Raises:
            InvalidInput: for scores of another size than any of theirs.
        """
        for fits in (_is_fcn_size, _is_like_fcn_size):
            for stride, crop in FCN_CROPS.items():
                if all(map(fits, (stride, stride), scores, labels)):
                    return cls(stride, crop=crop)
        sizes = (tuple(_fcn_size(stride, size) for size in labels) for stride in FCN_CROPS)
        expected = " or ".join(map(_text, sizes))
        raise InvalidInput(
            "logits",
            f"height and width {expected}, FCN-8s', 16s' or 32s' for labels {_text(labels)}",
            _text(scores),
            "For other sizes use upsampling=bilinear, or Deconvolution in Python.",
        )

    @property
    def numbers(self) -> list[int]:
        """All that it is, for torch's operators: stride, kernel size, crop of rows and columns."""
        assert self.kernel_size is not None
        assert isinstance(self.crop, tuple)
        return [self.stride, self.kernel_size, *self.crop]

    def check_size(self, scores: Sequence[int], labels: Sequence[int]) -> None:
        """Labels may not reach beyond what is left after the crop.

        Raises:
            InvalidInput: if they do.
        """
        stride, kernel_size, *crops = self.numbers
        left = [
            max(0, (nodes - 1) * stride + kernel_size - crop)
            for nodes, crop in zip(scores, crops, strict=True)
        ]
        if labels[0] > left[0] or labels[1] > left[1]:
            expected = f"at most {left[0]} rows and {left[1]} columns, what upsampling leaves"
            raise InvalidInput("labels", expected, f"{labels[0]} and {labels[1]}")

    def axes(self, scores: Sequence[int], labels: Sequence[int]) -> Axes:
        """From scores of this height and width to labels of that."""
        _, _, rows, columns = self.numbers
        return self._axis(scores[0], labels[0], rows), self._axis(scores[1], labels[1], columns)

    def _axis(self, num_nodes: int, num_positions: int, crop: int) -> Axis:
        position = np.arange(num_positions, dtype=np.int64) + crop
        cells, phase = position // self.stride, position % self.stride
        before = np.where(cells > 0, self._filter(phase + self.stride), 0.0)
        behind = np.where(cells < num_nodes, self._filter(phase), 0.0)
        return Axis(num_nodes, num_positions, cells.astype(np.int32), np.stack([before, behind]))

    def _filter(
        self, place: np.ndarray[Any, np.dtype[np.int64]]
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The filter's values at these places; 0 behind it."""
        _, size, _, _ = self.numbers
        half = (size + 1) // 2
        centre = half - 1 if size % 2 else half - 0.5
        return np.where(place < size, 1 - abs(place - centre) / half, 0.0)


Upsampling = Bilinear | Deconvolution

FCN_CROPS = {8: 31, 16: 27, 32: 19}  # by stride


def numbers_for(upsampling: Upsampling, scores: Tensor, labels: Tensor) -> list[int]:
    """An upsampling of scores [N, C, h, w] to labels [N, H, W], as torch's operators can take it.

    Raises:
        InvalidInput: for another thing than an upsampling, or sizes that do not go with it.
    """
    if not isinstance(upsampling, Bilinear | Deconvolution):
        raise InvalidInput("upsampling", "Bilinear(...) or Deconvolution(...)", repr(upsampling))
    upsampling.check_size(scores.shape[2:], labels.shape[1:])
    return upsampling.numbers


def axes_of(numbers: Sequence[int], scores: Sequence[int], labels: Sequence[int]) -> Axes:
    """The two axes of what `numbers_for` was asked about, from sizes (h, w) to (H, W)."""
    return _axes(tuple(numbers), (scores[0], scores[1]), (labels[0], labels[1]))


def axes_for(upsampling: Upsampling, scores: Tensor, labels: Tensor) -> Axes:
    """The two axes of what upsamples scores [N, C, h, w] to labels [N, H, W].

    Raises:
        InvalidInput: as `numbers_for`.
    """
    numbers = numbers_for(upsampling, scores, labels)
    return axes_of(numbers, scores.shape[2:], labels.shape[1:])


@lru_cache(maxsize=64)
def _axes(numbers: tuple[int, ...], scores: Size, labels: Size) -> Axes:
    if len(numbers) == 1:  # of `Bilinear`; four are of `Deconvolution`
        return Bilinear(align_corners=bool(numbers[0])).axes(scores, labels)
    stride, kernel_size, *crop = numbers
    return Deconvolution(stride, kernel_size, (crop[0], crop[1])).axes(scores, labels)


def _fcn_size(stride: int, size: int) -> int:
    """The height or width of an FCN's last scores for a picture's.

    VGG16 pads 100 before its first 3x3 convolution, which pads 1 itself; pooling halves and rounds
    up five times; fc6 takes 7x7 without padding. FCN-16s and 8s double that by deconvolutions of 4.
    """
    size += 2 * 100 - 2
    for _ in range(5):
        size = -(-size // 2)
    size -= 6
    while stride < 32:
        size, stride = 2 * size + 2, 2 * stride
    return size


def _is_fcn_size(stride: int, scores: int, labels: int) -> bool:
    return scores == _fcn_size(stride, labels)


def _is_like_fcn_size(stride: int, scores: int, labels: int) -> bool:
    """What is cut off behind the labels is, in the nets, what is cut off before them or up to 31
    more: a node more is let through.
    """
    behind = (scores + 1) * stride - FCN_CROPS[stride] - labels
    return 0 <= behind <= FCN_CROPS[stride] + 31 + stride


def _is_count(value: object, least: int, most: int = _MOST) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return False
    return bool(least <= value <= most)


def _text(size: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, size)) + ")"
