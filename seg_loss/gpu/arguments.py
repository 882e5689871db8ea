"""From tensors to arguments of kernels: what all modules that launch kernels share.

Labels and weights may have any strides. They are small, and copied if they are not contiguous.
Logits and gradient are not copied, unless more than three spatial axes cannot be merged.

What depends on shapes, dtypes and options alone is computed once, and kept in `plans`.
"""

import math
import struct
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from seg_loss._inputs import LossInputs, loss_dtype
from seg_loss.gpu import tiling
from seg_loss.gpu.plan import Cache, current_stream, layout
from seg_loss.gpu.tiling import Tiling
from seg_loss.upsampling import Axes, Axis

# The launches of each call, by `plan_key`.
plans: Cache[Any] = Cache(max_size=1024)
# Older Tritons spill registers where later ones do not.
TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])


def prepare(
    inputs: LossInputs, gradient: Tensor | None, keep: Tensor | None = None
) -> tuple[LossInputs, Tensor | None, Tensor | None]:
    """Returns inputs and gradient as the kernels take them, and what the gradient is copied to.

    Labels and weights become contiguous. So do logits and gradient if more than three spatial axes
    cannot be merged. Then the last result is the gradient that was passed; `keep` is that gradient
    if its elements are needed.
    """
    labels, class_weight, pixel_weight = inputs.labels, inputs.class_weight, inputs.pixel_weight
    is_contiguous = (
        labels.is_contiguous()
        and (class_weight is None or class_weight.is_contiguous())
        and (pixel_weight is None or pixel_weight.is_contiguous())
    )
    if not is_contiguous:
        inputs = replace(
            inputs,
            labels=labels.contiguous(),
            class_weight=None if class_weight is None else class_weight.contiguous(),
            pixel_weight=None if pixel_weight is None else pixel_weight.contiguous(),
        )
    if inputs.logits.ndim <= 5 or tile_logits(inputs.logits, gradient) is not None:
        return inputs, gradient, None
    inputs = replace(inputs, logits=inputs.logits.contiguous())
    if gradient is None:
        return inputs, None, None
    written = torch.empty_like(inputs.logits) if keep is None else keep.contiguous()
    return inputs, written, gradient


def copy_back(written: Tensor | None, gradient: Tensor | None) -> None:
    """Copies a gradient that `prepare` has replaced."""
    if gradient is not None and written is not None:
        gradient.copy_(written)


def plan_key(name: str, inputs: LossInputs, *others: Tensor | bool | None) -> Hashable:
    """Returns what a plan depends on: the function, the options, and the layout of each tensor."""
    return (
        name,
        inputs.options,
        inputs.logits.device,
        layout(inputs.logits),
        layout(inputs.labels),
        layout(inputs.class_weight),
        layout(inputs.pixel_weight),
        *(layout(other) if isinstance(other, Tensor) else other for other in others),
    )


def tile_logits(logits: Tensor, gradient: Tensor | None, *, merges: bool = True) -> Tiling | None:
    """Tiles logits and gradient, if any; with `merges`, small images as one where possible."""
    shape: list[int] = list(logits.shape)
    strides = [list(tensor.stride()) for tensor in (logits, gradient) if tensor is not None]
    if merges and math.prod(shape[2:]) < tiling.SMALL_IMAGE:
        merged = [[0, inner[1], inner[0], *inner[2:]] for inner in strides]
        as_one = [1, shape[1], shape[0], *shape[2:]]
        tiles = _tiles(as_one, merged, logits.dtype)
        if tiles is not None:
            return tiles
    return _tiles(shape, strides, logits.dtype)


def tile_tensors(*tensors: Tensor) -> Tiling | None:
    """Tiles tensors [N, C, *spatial] of the same shape, image by image."""
    first = tensors[0]
    return _tiles(first.shape, [tensor.stride() for tensor in tensors], first.dtype)


def _tiles(
    shape: Sequence[int], strides: Sequence[Sequence[int]], dtype: torch.dtype
) -> Tiling | None:
    """Returns tiles that the Triton in use compiles without spilled registers."""
    tiles = tiling.tile(shape, strides, dtype.itemsize)
    if tiles is not None and shape[1] > 512 and dtype == torch.float32 and TRITON < (3, 9):
        return tiles.within(tiling.FEWER_REGISTERS, dtype.itemsize)
    return tiles


def tile_upsampled(scores: Tensor, axes: Axes) -> Tiling:
    """Tiles the upsampled logits of scores [N, C, h, w]; the strides are those of the scores."""
    rows, columns = (axis.num_targets for axis in axes)
    image, class_, row, column = scores.stride()
    return Tiling(
        num_images=scores.shape[0],
        num_classes=scores.shape[1],
        pixels=rows * columns,
        rows=rows,
        columns=columns,
        axes=2,
        shape=tiling.interpolated_tile_shape(
            scores.shape[1], is_double=scores.dtype == torch.float64
        ),
        strides=(tiling.Strides(image, class_, 0, row, column),),
        is_wide=False,
    )


_tables: weakref.WeakKeyDictionary[Axis, dict[Hashable, tuple[Tensor, int]]]
_tables = weakref.WeakKeyDictionary()


def _table(
    axis: Axis, name: str, scores: Tensor, make: Callable[[], Any], *, is_weight: bool
) -> Tensor:
    """Returns an array that belongs to an axis in the memory of the scores' device.

    Weights have the precision of the loss. The first call copies the array, and waits for that.
    """
    cached = _tables.setdefault(axis, {})
    dtype = loss_dtype(scores) if is_weight else torch.int32
    key, stream = (name, scores.device, dtype), current_stream(scores)
    if key not in cached:
        cached[key] = torch.from_numpy(make()).to(scores.device, dtype), stream
    table, first_stream = cached[key]
    if stream != first_stream and table.is_cuda:
        # If the axis is forgotten, the memory must not be used again before this stream is done.
        table.record_stream(torch.cuda.current_stream(table.device))
    return table


def grid_tables(scores: Tensor, axes: Axes) -> list[Tensor]:
    """Returns intervals and weights of rows and of columns, for `interpolation`."""

    def of_axis(axis: Axis) -> list[Tensor]:
        return [
            _table(axis, "intervals", scores, lambda: axis.intervals, is_weight=False),
            _table(axis, "weights", scores, lambda: axis.weights, is_weight=True),
        ]

    return [*of_axis(axes[0]), *of_axis(axes[1])]


def interval_tables(scores: Tensor, axes: Axes, interval_stride: int) -> list[Tensor]:
    """Returns starts and weights of rows and of columns, the latter by phase and interval."""
    rows, columns = axes
    return [
        _table(rows, "starts", scores, lambda: rows.starts, is_weight=False),
        _table(rows, "weights", scores, lambda: rows.weights, is_weight=True),
        _table(columns, "starts", scores, lambda: columns.starts, is_weight=False),
        _table(
            columns,
            f"by phase, {interval_stride}",
            scores,
            lambda: columns.weights_by_phase(interval_stride),
            is_weight=True,
        ),
    ]


def empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Returns memory on the device of `like`, not initialized."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def ignored_classes(inputs: LossInputs) -> tuple[int, ...]:
    """Returns the ignored labels that would otherwise be classes."""
    return tuple(value for value in inputs.ignored if 0 <= value < inputs.num_classes)


def option_bits(inputs: LossInputs) -> tuple[int, int]:
    """Returns the options that are numbers as bits, so that no value causes a compilation."""
    return bits_of(1 / inputs.options.temperature), bits_of(inputs.options.label_smoothing)


def capability(tensor: Tensor) -> tuple[int, int]:
    """Returns the compute capability of the tensor's device; zeros without one."""
    return torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else (0, 0)


def can_start_early(tensor: Tensor) -> bool:
    """Returns whether kernels may start before the ones before them have finished."""
    return tiling.USE_PDL and capability(tensor) >= (9, 0)


def compiler_options(
    shape: tiling.TileShape | tiling.UpsampledTileShape,
    tensor: Tensor,
    *,
    is_smoothed: bool = False,
) -> dict[str, Any]:
    """Returns the compiler's options for a row of a table.

    Without a limit, the compiler may spill a few registers if one more program then fits. The rows
    were measured on Hopper: elsewhere the limits of logits, and of label smoothing, may be too low.
    """
    max_registers = shape.max_registers
    is_loose = max_registers is None or is_smoothed or isinstance(shape, tiling.TileShape)
    if is_loose and (TRITON < (3, 6) or capability(tensor)[0] != 9):
        max_registers = tiling.MAX_REGISTERS
    return {"num_warps": shape.num_warps, "maxnreg": max_registers, "num_stages": 1}


def early_options(is_early: bool) -> dict[str, bool]:
    """Returns the options of a launch that starts before the kernel before it has ended, or not."""
    return {"IS_EARLY": is_early, "launch_pdl": True} if is_early else {"IS_EARLY": False}


def finite_or_none(value: float) -> float | None:
    """Returns a finite limit; None for one that limits nothing."""
    return value if math.isfinite(value) else None


def bits_of(value: float) -> int:
    """Returns the bits of a float64 as an int64."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits)
