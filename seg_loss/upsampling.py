"""How scores [N, C, h, w] become logits [N, C, H, W]: `Bilinear` and `Deconvolution`.

Both are linear, act on each axis separately, and read at most two scores per axis:

    logits[y, x] = sum_ij  rows[y, i] columns[x, j] scores[i, j]

`Axis` is one of the two matrices. Scores are source pixels, logits are target pixels. The source
pixels of an axis bound intervals: source -1, interval 0, source 0, interval 1, source 1, ...,
interval n, source n, of which the sources -1 and n do not exist. Target p lies in `intervals[p]`:

    x_p = weights[0, p] * source[interval - 1] + weights[1, p] * source[interval]

A source that does not exist has the weight 0. The kernels do not read sources of weight 0, so that
a NaN or an infinity there reaches no target; torch computes 0 * infinity = NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeGuard

import numpy as np

from seg_loss._errors import InvalidInput, shape_text
from seg_loss._numbers import plain_number
from seg_loss.constants import FCN_CROPS

Size = tuple[int, int]  # height and width
_Integers = np.ndarray[Any, np.dtype[np.int64]]
_Floats = np.ndarray[Any, np.dtype[np.float64]]

_MAX_INT = 1 << 30  # a product of two sizes below it fits int64


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of an upsampling.

    Attributes:
        num_sources: n, the size of the scores.
        num_targets: the size of the labels.
        intervals: int32 [targets], ascending, from 0 to n.
        weights: float64 [2, targets], of the sources before and behind each target.
    """

    num_sources: int
    num_targets: int
    intervals: np.ndarray[Any, np.dtype[np.int32]]
    weights: _Floats

    @cached_property
    def starts(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """int32 [n + 2]: the first target of each interval; the next entry is its end."""
        starts = np.searchsorted(self.intervals, np.arange(self.num_sources + 2))
        return starts.astype(np.int32)

    @cached_property
    def max_targets(self) -> int:
        """The largest number of targets in an interval."""
        return int(np.diff(self.starts).max(initial=0))

    @cached_property
    def has_zero_weights(self) -> bool:
        """Whether some target gives an existing source the weight 0."""
        sources = np.stack([self.intervals - 1, self.intervals])
        exists = (sources >= 0) & (sources < self.num_sources)
        return bool(np.any(exists & (self.weights == 0)))

    def weights_by_phase(self, stride: int) -> _Floats:
        """Returns the weights [2, max_targets, stride]; [:, k, i] belong to target k of interval i.

        Args:
            stride: length of an axis of intervals, at least n + 1; zeros fill it up.
        """
        weights = np.zeros((2, max(1, self.max_targets), stride))
        target = np.arange(self.num_targets)
        weights[:, target - self.starts[self.intervals], self.intervals] = self.weights
        return weights

    def matrix(self) -> _Floats:
        """Returns the dense matrix, float64 [targets, sources]."""
        matrix = np.zeros((self.num_targets, self.num_sources + 2))
        target = np.arange(self.num_targets)
        matrix[target, self.intervals] = self.weights[0]
        matrix[target, self.intervals + 1] = self.weights[1]
        return matrix[:, 1:-1]


Axes = tuple[Axis, Axis]  # rows and columns


@dataclass(frozen=True)
class Bilinear:
    """`F.interpolate(scores, size, mode="bilinear", align_corners=...)`, for sizes of any ratio.

    torch computes source positions and weights in float32. Here positions are integer fractions,
    and weights are their quotients in float64.

    Attributes:
        align_corners: whether the centres of the corner pixels coincide, rather than the outer
            edges of the images.
    """

    align_corners: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.align_corners, bool):
            raise InvalidInput("align_corners", "True or False", repr(self.align_corners))

    def max_size(self, scores: Size) -> Size:
        """Returns the largest height and width of labels: there is no limit."""
        return _MAX_INT, _MAX_INT

    def row_axis(self, num_sources: int, num_targets: int) -> Axis:
        """Returns the axis of rows; columns are alike."""
        target = np.arange(num_targets, dtype=np.int64)
        # The position of a target among the sources is the fraction position / unit.
        if self.align_corners:
            unit = max(num_targets - 1, 1)
            position = target * (num_sources - 1)
        else:
            unit = 2 * num_targets
            position = (2 * target + 1) * num_sources - num_targets
        position = position.clip(0, (num_sources - 1) * unit)
        # The cast is for torch's compiler, whose quotient of integers is float32.
        behind = (position % unit).astype(np.float64) / unit
        # A target at the first source, or before it, lies in interval 0, whose source before it
        # does not exist.
        is_first = position == 0
        intervals = np.where(is_first, 0, position // unit + 1).astype(np.int32)
        behind = np.where(is_first, 1.0, behind)
        return Axis(num_sources, num_targets, intervals, np.stack([1 - behind, behind]))

    column_axis = row_axis


@dataclass(frozen=True)
class Deconvolution:
    """FCN's upsampling: a deconvolution with a fixed bilinear filter, then Caffe's Crop.

    The filter is `bilinear_filter`. At the borders only a part of the filter meets scores, and the
    logits are attenuated, as in Caffe. FCN crops 19 pixels at stride 32, 27 at 16 and 31 at 8.

    Attributes:
        stride: stride of the deconvolution, at least 1.
        kernel_size: size of the filter, 2 * stride by default. That is also the largest size
            allowed: a larger filter would read more than two scores per axis.
        crop: number of rows and columns to cut off before the first; a number or a pair.
    """

    stride: int
    kernel_size: int | None = None
    crop: int | Size = 0

    def __post_init__(self) -> None:
        stride = plain_number(self.stride)
        if not _is_int(stride, 1):
            raise InvalidInput("stride", f"an integer from 1 to {_MAX_INT}", repr(stride))
        kernel_size = 2 * stride if self.kernel_size is None else plain_number(self.kernel_size)
        if not _is_int(kernel_size, 1, 2 * stride):
            expected = f"an integer from 1 to 2 * stride = {2 * stride}"
            raise InvalidInput("kernel_size", expected, repr(kernel_size))
        pair = self.crop if isinstance(self.crop, list | tuple) else (self.crop, self.crop)
        crop = tuple(map(plain_number, pair))
        if len(crop) != 2 or not all(_is_int(pixels, 0) for pixels in crop):
            expected = f"an integer from 0 to {_MAX_INT}, or two, of rows and columns"
            raise InvalidInput("crop", expected, repr(self.crop))
        object.__setattr__(self, "stride", stride)
        object.__setattr__(self, "kernel_size", kernel_size)
        object.__setattr__(self, "crop", crop)

    @classmethod
    def of_fcn(cls, scores: Size, labels: Size) -> "Deconvolution":
        """Returns the last layer of FCN-8s, 16s or 32s, found by the size of the scores.

        If none of the three nets makes scores of this size for such labels, returns the layer with
        the smallest stride whose crop leaves at least the labels' size, and not much more.

        Raises:
            InvalidInput: if no layer fits.
        """
        for fits in (_is_fcn_size, _is_near_fcn_size):
            for stride, crop in FCN_CROPS.items():
                if all(map(fits, (stride, stride), scores, labels)):
                    return cls(stride, crop=crop)
        sizes = (tuple(_fcn_size(stride, size) for size in labels) for stride in FCN_CROPS)
        expected = " or ".join(map(shape_text, sizes))
        raise InvalidInput(
            "logits",
            f"height and width {expected}, FCN-8s', 16s' or 32s' for labels {shape_text(labels)}",
            shape_text(scores),
            "For other sizes use upsampling=bilinear, or Deconvolution in Python.",
        )

    def max_size(self, scores: Size) -> Size:
        """Returns the largest height and width of labels: what the crop leaves."""
        _, kernel_size, *crops = encode(self)
        rows, columns = (
            max(0, (size - 1) * self.stride + kernel_size - crop)
            for size, crop in zip(scores, crops, strict=True)
        )
        return rows, columns

    def row_axis(self, num_sources: int, num_targets: int) -> Axis:
        """Returns the axis of rows."""
        return self._axis(num_sources, num_targets, encode(self)[2])

    def column_axis(self, num_sources: int, num_targets: int) -> Axis:
        """Returns the axis of columns."""
        return self._axis(num_sources, num_targets, encode(self)[3])

    def _axis(self, num_sources: int, num_targets: int, crop: int) -> Axis:
        position = np.arange(num_targets, dtype=np.int64) + crop
        intervals, phase = position // self.stride, position % self.stride
        _, kernel_size, _, _ = encode(self)
        before = _filter_at(phase + self.stride, kernel_size)
        behind = _filter_at(phase, kernel_size)
        before[intervals == 0] = 0
        behind[intervals >= num_sources] = 0
        return Axis(
            num_sources, num_targets, intervals.astype(np.int32), np.stack([before, behind])
        )


Upsampling = Bilinear | Deconvolution


def bilinear_filter(kernel_size: int) -> _Floats:
    """Returns one axis of the filter that FCN's `surgery.py` writes into deconvolutions.

    With f = (k + 1) // 2 and the centre c = f - 1 (k odd) or f - 0.5 (k even), it is
    1 - |i - c| / f for i from 0 to k - 1; float64 [k].
    """
    return _filter_at(np.arange(kernel_size), kernel_size)


def _filter_at(position: _Integers, kernel_size: int) -> _Floats:
    """Returns the values of the filter at these positions; 0 behind its end."""
    factor = (kernel_size + 1) // 2
    centre = factor - 1 if kernel_size % 2 else factor - 0.5
    distance = abs(position.astype(np.float64) - centre)
    return np.where(position < kernel_size, 1 - distance / factor, 0.0)


def check_upsampling(upsampling: object) -> None:
    """Checks for `Bilinear` or `Deconvolution`."""
    if not isinstance(upsampling, Bilinear | Deconvolution):
        raise InvalidInput("upsampling", "Bilinear(...) or Deconvolution(...)", repr(upsampling))


def check_size(upsampling: Upsampling, scores: Sequence[int], labels: Sequence[int]) -> None:
    """Checks that scores of height and width (h, w) can be upsampled to (H, W).

    Raises:
        InvalidInput: if the labels are larger than what a crop leaves.
    """
    rows, columns = upsampling.max_size((scores[0], scores[1]))
    if labels[0] > rows or labels[1] > columns:
        expected = f"at most {rows} rows and {columns} columns, what upsampling leaves"
        raise InvalidInput("labels", expected, f"{labels[0]} and {labels[1]}")


def axes(upsampling: Upsampling, scores: Sequence[int], labels: Sequence[int]) -> Axes:
    """Returns the axes of rows and columns from scores (h, w) to labels (H, W); cached.

    Raises:
        InvalidInput: as `check_size`.
    """
    check_size(upsampling, scores, labels)
    # While torch traces a program with dynamic sizes, they become constants here.
    height, width = (int(size) for size in scores)
    return _axes(upsampling, (height, width), (int(labels[0]), int(labels[1])))


@lru_cache(maxsize=64)
def _axes(upsampling: Upsampling, scores: Size, labels: Size) -> Axes:
    return (
        upsampling.row_axis(scores[0], labels[0]),
        upsampling.column_axis(scores[1], labels[1]),
    )


def encode(upsampling: Upsampling | None) -> list[int]:
    """Returns an upsampling as integers, which torch.library operators accept as an argument.

    None becomes no integer, `Bilinear` one, and `Deconvolution` four: stride, kernel size, and the
    crop of rows and of columns.
    """
    if upsampling is None:
        return []
    if isinstance(upsampling, Bilinear):
        return [int(upsampling.align_corners)]
    assert upsampling.kernel_size is not None
    assert isinstance(upsampling.crop, tuple)
    return [upsampling.stride, upsampling.kernel_size, *upsampling.crop]


def decode(encoding: Sequence[int]) -> Upsampling | None:
    """Returns the upsampling that `encode` made the integers of."""
    if not encoding:
        return None
    if len(encoding) == 1:
        return Bilinear(align_corners=bool(encoding[0]))
    stride, kernel_size, *crop = encoding
    return Deconvolution(stride, kernel_size, (crop[0], crop[1]))


def _fcn_size(stride: int, size: int) -> int:
    """Returns the height or width of an FCN's last scores for an image of height or width `size`.

    VGG16 pads 100 pixels before its first 3x3 convolution, which itself pads 1. Pooling halves the
    size five times, rounding up; fc6 is a 7x7 convolution without padding. FCN-16s and 8s double
    the result with deconvolutions of kernel size 4.
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


def _is_near_fcn_size(stride: int, scores: int, labels: int) -> bool:
    """Returns whether the crop behind the labels is of a plausible size.

    In the nets it is the crop before the labels plus up to 31 pixels. One more score is tolerated.
    """
    behind = (scores + 1) * stride - FCN_CROPS[stride] - labels
    return 0 <= behind <= FCN_CROPS[stride] + 31 + stride


def _is_int(value: object, least: int, most: int = _MAX_INT) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
