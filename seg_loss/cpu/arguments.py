"""From tensors to the arguments of kernels, and the parts of plans that several kernels share."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from seg_loss import _labels
from seg_loss._errors import InvalidInput
from seg_loss._inputs import LossInputs
from seg_loss._labels import InvalidValues, LabelReport
from seg_loss.cpu.cache import Kernel
from seg_loss.cpu.plan import CACHE_LINE, Cache, Memory, Plan, merged_axes, round_up, set_options
from seg_loss.cpu.records import LANES, NUM_EXTRA_ROWS

# The classes of a column: as many as fit the registers of AVX-512, and the first-level cache of
# other processors.
MAX_COLUMN_CLASSES = 32
COLUMN_TILE = 1024
COLUMN_CHUNK = 4096
# Elements of a chunk of tiles: about 0.1 ms of work.
_CHUNK_ELEMENTS = 400_000
WITH_CLASSES = "logits", "gradient", "grad_output_view"
_WRITTEN = "gradient", "terms"

Array = np.ndarray[Any, Any]
plans = Cache()


class Tensors:
    """The tensors of a call by the names of their views; keeps them alive.

    Attributes:
        layouts: all that a plan depends on.
        addresses: of the tensors.
    """

    def __init__(self, inputs: LossInputs | None, **others: Tensor | None) -> None:
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._tensors: dict[str, Tensor] = {}
        self.addresses: dict[str, int] = {}
        layouts: list[Any] = []
        if inputs is not None:
            others["logits"], others["labels"] = inputs.logits, inputs.labels
            if inputs.pixel_weight is not None:
                others["pixel_weight"] = _pixel_weight_for(inputs)
        for name, tensor in others.items():
            if tensor is not None:
                if tensor.ndim > 4:
                    tensor = self._copied(name, tensor)
                self._tensors[name] = tensor
                address = self.addresses[name] = tensor.data_ptr()
                # A gradient at whole cache lines is written by another kernel.
                is_aligned = name == "gradient" and address % CACHE_LINE == 0
                layouts.append((name, tensor.shape, tensor.stride(), tensor.dtype, is_aligned))
        self.layouts = tuple(layouts)

    def __getitem__(self, name: str) -> Tensor | None:
        return self._tensors.get(name)

    def add_views(self, plan: Plan) -> None:
        """Describes the tensors to a plan."""
        for name, tensor in self._tensors.items():
            plan.add_view(name, tensor, has_classes=name in WITH_CLASSES)

    def copy_back(self) -> None:
        """Copies results that kernels wrote to contiguous copies into their tensors."""
        for tensor, copy in self._copies:
            tensor.copy_(copy)

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        """Returns a contiguous copy if more than three spatial axes cannot be merged."""
        if len(merged_axes(tensor, 2 if name in WITH_CLASSES else 1)) <= 3:
            return tensor
        copy = tensor.contiguous()
        if name in _WRITTEN:
            self._copies.append((tensor, copy))
        return copy


def run(
    plan: Plan,
    inputs: LossInputs,
    tensors: Tensors,
    addresses: dict[str, int],
    floats: dict[str, float],
) -> Memory:
    """Runs a kernel that reads labels and reports what is invalid in them and in the weights."""
    invalid_classes = None
    if inputs.class_weight is not None:
        if plan.job[0]["checks_labels"] and inputs.options.checks_class_weight:
            invalid_classes = invalid_class_weights(inputs.class_weight)
        if invalid_classes is not None and inputs.options.check_labels == "raise":
            _report(inputs, LabelReport(None, None, invalid_classes))
        # The last two are for ignored and invalid labels.
        class_weight = np.append(inputs.class_weight.double().numpy(), [0.0, 0.0])
        addresses["class_weight"] = class_weight.ctypes.data
        with np.errstate(over="ignore", invalid="ignore"):
            floats["sum_of_class_weights"] = float(class_weight.sum())
    memory = plan.call(addresses, floats, inputs.labels.numel() * inputs.num_classes)
    if memory.word("num_invalid") or invalid_classes is not None:
        chunks = memory.chunks
        labels = invalid_values(plan, chunks, "label", inputs.labels)
        weights = inputs.pixel_weight
        pixel_weights = None
        if weights is not None:
            pixel_weights = invalid_values(plan, chunks, "weight", weights)
        try:
            _report(inputs, LabelReport(labels, pixel_weights, invalid_classes))
        except InvalidInput:
            plan.release(memory)
            raise
    return memory


def _report(inputs: LossInputs, report: LabelReport) -> None:
    error = _labels.error_for(report, inputs.num_classes, inputs.ignored)
    _labels.raise_or_defer(error, inputs.options.check_labels)


def invalid_values(plan: Plan, chunks: Array, name: str, values: Tensor) -> InvalidValues | None:
    """Returns what the chunks counted as invalid among `values` [N, *spatial]."""
    job = plan.job[0]
    per_image = int(job["label_chunks_per_image"])
    counts = chunks[f"invalid_{name}s"][: int(job["num_images"]) * per_image]
    found = np.flatnonzero(counts)
    if not len(found):
        return None
    pixel: tuple[Any, ...] = ()
    if values.ndim > 1:
        first = chunks[f"first_invalid_{name}"][found[0]]
        pixel = np.unravel_index(first, tuple(values.shape[1:]))
    index = int(found[0]) // per_image, *(int(i) for i in pixel)
    return InvalidValues(int(counts.sum()), index, values[index].item())


def invalid_class_weights(class_weight: Tensor) -> InvalidValues | None:
    invalid = ~((class_weight >= 0) & class_weight.isfinite())
    if not bool(invalid.any()):
        return None
    index = int(invalid.nonzero()[0])
    return InvalidValues(int(invalid.sum()), (index,), class_weight[index].item())


def make_plan(module: str, make: str, inputs: LossInputs, parameters: dict[str, Any]) -> Plan:
    logits, labels = inputs.logits, inputs.labels
    kernel = Kernel(module, make, tuple(parameters.items()))
    plan = Plan(kernel, len(labels), labels.shape[1:].numel() if len(labels) else 0)
    set_options(plan, inputs)
    plan.set(is_weighted=inputs.is_weighted)
    plan.ignored = np.array(inputs.ignored_bits, np.int64)
    plan.set(ignored=plan.ignored.ctypes.data)
    if inputs.options.label_smoothing and inputs.class_weight is None:
        plan.class_weight = np.append(np.ones(logits.shape[1]), [0.0, 0.0])
        plan.set(class_weight=plan.class_weight.ctypes.data, sum_of_class_weights=logits.shape[1])
    return plan


def split_columns(plan: Plan, pixels: int, chunk: int = COLUMN_CHUNK) -> None:
    """Splits the pixels into chunks of at most `chunk`, and smaller ones in small images."""
    plan.split(pixels, min(chunk, round_up(max(pixels // 16, 1), COLUMN_TILE)))


def add_tiles(plan: Plan, num_classes: int, pixels: int, itemsize: int) -> None:
    """Splits the pixels into chunks of tiles, and adds the scratch memory of a tile."""
    tile = tile_pixels(num_classes)
    stride = tile + LANES
    num_tiles = -(-pixels // tile)
    per_chunk = min(_CHUNK_ELEMENTS // (max(1, num_classes) * tile), num_tiles // 32)
    plan.set(tile=tile, row_stride=stride)
    plan.split(pixels, max(1, per_chunk) * tile)
    rows = num_classes + NUM_EXTRA_ROWS
    plan.add_scratch(rows=rows * stride * itemsize, classes=4 * stride)


def tile_pixels(num_classes: int) -> int:
    """Returns the pixels of a tile: its float32 rows take about 75 KiB.

    They fit the second-level cache, and a thread needs little memory. Larger tiles are no faster.
    """
    return max(64, min(1024, -(-18432 // max(num_classes, 1)) + 63) // 64 * 64)


def fits_column(inputs: LossInputs) -> bool:
    """Returns whether the logits can be processed column by column; see `columns`."""
    return (
        inputs.num_classes <= MAX_COLUMN_CLASSES
        and inputs.logits.dtype != torch.float64
        and not inputs.options.label_smoothing
    )


def num_pixels(logits: Tensor) -> int:
    """Returns the pixels of an image; a batch without images counts as one image without pixels."""
    return logits.shape[2:].numel() if len(logits) else 0


def element_of(dtype: torch.dtype) -> str:
    """Returns the dtype that kernels compute logits of this dtype in."""
    return "float64" if dtype == torch.float64 else "float32"


def is_dense(*tensors: Tensor | None) -> bool:
    """Returns whether the pixels of each class of an image are adjacent in all tensors."""
    for tensor in tensors:
        axes = [] if tensor is None else merged_axes(tensor, 2)
        if axes and (len(axes) > 1 or axes[0][1] != 1):
            return False
    return True


def has_whole_lines(gradient: Tensor | None) -> bool:
    """Returns whether each 16 pixels of each class are a cache line of float32."""
    if gradient is None:
        return False
    strides = (gradient.stride(0), gradient.stride(1), gradient.shape[2:].numel())
    return (
        gradient.dtype == torch.float32
        and is_dense(gradient)
        and gradient.data_ptr() % CACHE_LINE == 0
        and all(stride % LANES == 0 for stride in strides)
    )


def has_adjacent_classes(*tensors: Tensor | None) -> bool:
    """Returns whether the classes of a pixel, a vector or more, are adjacent: channels_last."""
    return all(
        tensor is None or (tensor.stride(1) == 1 and tensor.shape[1] >= LANES) for tensor in tensors
    )


def _pixel_weight_for(inputs: LossInputs) -> Tensor | None:
    """Returns the pixel weights in a dtype that the kernels for the logits' dtype can read."""
    pixel_weight = inputs.pixel_weight
    if pixel_weight is None:
        return None
    if inputs.logits.dtype == torch.float64:
        return pixel_weight.double()
    return pixel_weight.float() if pixel_weight.dtype == torch.float64 else pixel_weight
