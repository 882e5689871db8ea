"""The CPU backend: runs `kernels` over chunks of pixels on all threads.

`_backends` and `evaluate` call it with checked inputs. Work is split by pixels, so that a batch of
one image keeps every core busy. The pixels of a chunk depend on the shape of one image alone,
and partial sums are added in the order of the chunks. So results depend neither on the number of
threads nor on the other images of the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seg_loss import _labels
from seg_loss._divisor import divisor
from seg_loss._evaluation_sums import EvaluationSums
from seg_loss._inputs import LossInputs, loss_dtype
from seg_loss._labels import InvalidValues, LabelReport
from seg_loss.cpu import kernels, threads
from seg_loss.cpu import upsampled as upsampled_kernels
from seg_loss.cpu.memory import empty_gradient
from seg_loss.upsampling import Axes, Axis

# Elements of a chunk: about 0.1 ms of work, which is long compared with a call from Python.
_CHUNK_ELEMENTS = 400_000
# With fewer elements to read, a second thread costs more time than it saves.
_MIN_ELEMENTS_FOR_THREADS = 60_000
_MIN_LABELS_FOR_THREADS = 500_000
# The largest number of row blocks of an image of upsampled scores; each keeps two source rows.
_MAX_ROW_BLOCKS = 32
# A larger gradient does not fit the caches; it is written with stores that bypass them.
_STREAM_BYTES = 24 << 20

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Chunk:
    """Pixels (or interval rows) [first, last) of image `image`; `index` counts within the image."""

    image: int
    index: int
    first: int
    last: int


class _Plan:
    """The chunks of logits [N, C, *spatial] and the scratch memory for one of them."""

    def __init__(
        self, shape: torch.Size, dtype: torch.dtype, split: tuple[int, int] | None = None
    ) -> None:
        """Splits the pixels of each image, or `split`: a number of rows, and rows per chunk."""
        self.num_images, self.num_classes = shape[0], shape[1]
        self.pixels = shape[2:].numel()
        self._element = np.float64 if dtype == torch.float64 else np.float32
        self.tile = kernels.tile_pixels(self.num_classes)
        self.stride = kernels.row_stride(self.num_classes)
        tiles = -(-self.pixels // self.tile)
        elements = max(1, self.num_classes) * self.tile
        per_chunk = min(_CHUNK_ELEMENTS // elements, tiles // 32)
        size, step = split or (self.pixels, max(1, per_chunk) * self.tile)
        starts = range(0, size, step)
        self.chunks_per_image = len(starts)
        self.chunks = [
            _Chunk(image, index, first, min(first + step, size))
            for image in range(self.num_images)
            for index, first in enumerate(starts)
        ]
        self.tables: tuple[Any, ...] = self.tile, self.pixels
        self.evaluate_chunk = kernels.evaluate_chunk

    def scratch(self) -> tuple[_Array, ...]:
        """Returns the memory that the kernels of one thread write to."""
        return self.buffer(), self.classes()

    def sums(self, width: int) -> _Array:
        """Returns `width` float64 partial sums for each chunk."""
        return np.zeros((self.num_images, self.chunks_per_image, width))

    def counts(self) -> _Array:
        """Returns int64 counts for each chunk."""
        shape = (self.num_images, self.chunks_per_image, kernels.NUM_COUNTS)
        return np.zeros(shape, np.int64)

    def buffer(self) -> _Array:
        """Returns memory for the rows of one tile; zeros, so that unused lanes hold numbers."""
        rows = self.num_classes + kernels.NUM_EXTRA_ROWS
        return _aligned_zeros(rows * self.stride, self._element)

    def classes(self, rows: int = 1) -> _Array:
        """Returns memory for the classes of one tile."""
        return _aligned_zeros(rows * self.stride, np.int32)

    def run(
        self,
        make_state: Callable[[], Any],
        work: Callable[[Any, _Chunk], None],
        *,
        labels_only: bool = False,
    ) -> list[Any]:
        """Calls `work(state, chunk)` for all chunks; returns the state of each thread."""
        pixels = self.num_images * self.pixels
        is_small = pixels * self.num_classes < _MIN_ELEMENTS_FOR_THREADS
        if labels_only:
            is_small = pixels < _MIN_LABELS_FOR_THREADS
        num_threads = 1 if is_small else threads.num_threads_for(len(self.chunks))
        return threads.run(self.chunks, make_state, work, num_threads)


class _RowBlocks(_Plan):
    """The chunks of upsampled scores [N, C, h, w]: blocks of interval rows."""

    def __init__(self, scores: Tensor, axes: Axes) -> None:
        rows, columns = axes
        shape = (*scores.shape[:2], rows.num_targets, columns.num_targets)
        interval_rows = rows.num_sources + 1
        split = interval_rows, -(-interval_rows // _MAX_ROW_BLOCKS)
        super().__init__(torch.Size(shape), scores.dtype, split)
        self._intervals = columns.num_sources + 1
        self._phases = columns.max_targets
        # Split the intervals evenly among the fewest tiles, all phases in one tile if they fit.
        lanes = kernels.LANES
        most = max(lanes, self.tile // max(1, self._phases) // lanes * lanes)
        groups = -(-self._intervals // most)
        self._tile_intervals = _round_up(-(-self._intervals // groups), lanes)
        # A vector of right sources begins at 1 and ends behind the last source.
        self._source_stride = _round_up(self._intervals + 1, lanes) + lanes
        grid = upsampled_kernels.Grid(
            num_rows=rows.num_targets,
            num_columns=columns.num_targets,
            source_rows=rows.num_sources,
            source_columns=columns.num_sources,
            num_phases=self._phases,
            tile_intervals=self._tile_intervals,
            tile_phases=max(1, min(self._phases, self.tile // self._tile_intervals)),
            source_stride=self._source_stride,
            phase_stride=_round_up(self._intervals, lanes),
            has_zero_weights=int(rows.has_zero_weights or columns.has_zero_weights),
        )
        self.tables = (
            np.array(grid, np.int64),
            rows.starts.astype(np.int64),
            rows.weights.flatten(),
            columns.starts.astype(np.int64),
            _weights_by_phase(columns, grid.phase_stride).astype(self._element),
        )
        self.evaluate_chunk = upsampled_kernels.upsampled_evaluate_chunk

    def scratch(self) -> tuple[_Array, ...]:
        pixels = self._tile_intervals * max(1, self._phases) + kernels.LANES
        sources = upsampled_kernels.NUM_SOURCE_BLOCKS * self.num_classes + 1
        corners = upsampled_kernels.NUM_CORNERS * self.num_classes * self._tile_intervals
        weights = _aligned_zeros(pixels, self._element)
        weights[:] = 1
        return (
            self.buffer(),
            self.classes(),
            _aligned_zeros(pixels, np.int32),
            weights,
            _aligned_zeros(sources * self._source_stride, self._element),
            _aligned_zeros(corners + kernels.LANES, self._element),
        )

    def halo_rows(self, *, is_wanted: bool) -> _Array:
        """Returns memory for the gradient that a block adds to the source rows at its two ends."""
        sources = self._intervals - 1 if is_wanted else 0
        shape = (self.num_images, self.chunks_per_image, 2, self.num_classes, sources)
        return np.zeros(shape, self._element)

    def add_halo_rows(self, halo_rows: _Array, gradient: Tensor) -> None:
        """Writes the gradient of the source rows between blocks: the sum of their two halo rows."""
        between = [chunk.first - 1 for chunk in self.chunks[1 : self.chunks_per_image]]
        if between and self.num_images:
            total = torch.from_numpy(halo_rows[:, :-1, 1] + halo_rows[:, 1:, 0])
            gradient[:, :, between] = total.transpose(1, 2).to(gradient.dtype)


def scratch_bytes(scores: Tensor, axes: Axes) -> int:
    """Returns the scratch memory of a call with scores [N, C, h, w] that is not negligible.

    Source rows, for each thread and between blocks, are large for wide scores of few rows. Tables
    of weights by phase are large for wide labels of few sources.
    """
    num_images, num_classes, rows, sources = scores.shape
    element = loss_dtype(scores).itemsize
    num_blocks = num_images * min(rows + 1, _MAX_ROW_BLOCKS)
    num_threads = threads.num_threads_for(num_blocks)
    of_threads = upsampled_kernels.NUM_SOURCE_BLOCKS * num_threads
    halo_rows = 3 * num_blocks  # two of each block, and one of each sum
    source_rows = element * num_classes * (sources + 2 * kernels.LANES) * (of_threads + halo_rows)
    phases, intervals = axes[1].max_targets, sources + kernels.LANES
    weights = phases * intervals * 2 * (8 + element)  # computed in float64
    pixels = phases * min(intervals, 1024) * (4 + element) * num_threads
    return source_rows + weights + pixels


@dataclass(frozen=True)
class _LabelCounts:
    """What the label check has counted.

    Attributes:
        valid_pixels: of each image.
        weight: sum of the weights of the valid pixels of each image; None without weights.
    """

    valid_pixels: list[int]
    weight: list[float] | None

    def divisor_of(self, inputs: LossInputs) -> float:
        """Returns the divisor D."""
        return divisor(
            inputs.options.normalization,
            valid_pixels=sum(self.valid_pixels),
            weight_sum=None if self.weight is None else float(np.sum(self.weight)),
            num_images=len(inputs.labels),
            num_pixels=inputs.labels.numel(),
            has_floor=inputs.options.has_divisor_floor,
        )


def check_labels(inputs: LossInputs) -> _LabelCounts:
    """Reads the labels once, counts them, and reports invalid ones as `check_labels` says."""
    labels, num_classes = inputs.labels, inputs.num_classes
    pixel_weight = inputs.pixel_weight
    shape = torch.Size([labels.shape[0], num_classes, *labels.shape[1:]])
    plan = _Plan(shape, torch.float32 if pixel_weight is None else pixel_weight.dtype)
    views = _Views(labels=labels, pixel_weight=pixel_weight)
    ignored = _ignored(inputs)
    sums, counts = plan.sums(kernels.NUM_SUMS), plan.counts()

    def count(classes: Any, chunk: _Chunk) -> None:
        kernels.check_labels_chunk(
            classes,
            views.array,
            ignored,
            num_classes,
            plan.tile,
            chunk.image,
            chunk.first,
            chunk.last,
            counts[chunk.image, chunk.index],
        )

    plan.run(plan.classes, count, labels_only=True)
    if inputs.is_weighted:
        class_weight = _class_weight(inputs)

        def weigh(state: tuple[Any, Any], chunk: _Chunk) -> None:
            kernels.check_weights_chunk(
                *state,
                views.array,
                class_weight,
                ignored,
                num_classes,
                plan.stride,
                plan.tile,
                chunk.image,
                chunk.first,
                chunk.last,
                sums[chunk.image, chunk.index],
                counts[chunk.image, chunk.index],
            )

        plan.run(plan.scratch, weigh, labels_only=True)
    invalid_labels = kernels.INVALID_LABELS, kernels.FIRST_INVALID_LABEL
    invalid_weights = kernels.INVALID_WEIGHTS, kernels.FIRST_INVALID_WEIGHT
    report = LabelReport(
        _invalid_values(counts, *invalid_labels, labels),
        None if pixel_weight is None else _invalid_values(counts, *invalid_weights, pixel_weight),
        _invalid_class_weights(inputs.class_weight),
    )
    error = _labels.error_for(report, num_classes, inputs.ignored)
    _labels.raise_or_defer(error, inputs.options.check_labels)
    return _LabelCounts(
        counts[:, :, kernels.VALID].sum(axis=1).tolist(),
        sums[:, :, kernels.WEIGHT].sum(axis=1).tolist() if inputs.is_weighted else None,
    )


def cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the loss and its divisor; fills `gradient`, which may be the logits, if given.

    The divisor is float64 [2]: D and 1 / (D temperature).
    """
    total = check_labels(inputs).divisor_of(inputs)
    sums = _terms(inputs, gradient=gradient, scale=ieee_divide(1.0, total))
    loss = ieee_divide(float(sums.sum()), total)
    dtype = loss_dtype(inputs.logits)
    scale = ieee_divide(1 / inputs.options.temperature, total)
    return torch.tensor(loss, dtype=dtype), torch.tensor([total, scale], dtype=torch.float64)


def cross_entropy_gradient(
    inputs: LossInputs,
    divisor: Tensor | None,
    grad_output: Tensor | None,
    gradient: Tensor,
    *,
    skip_if_unit_grad: bool,
) -> None:
    """Fills `gradient` with grad_output / D * d(sum of terms) / d(logits); None stands for 1.

    With `skip_if_unit_grad`, `gradient` already holds the result for a `grad_output` of 1.
    """
    factor = 1.0 if grad_output is None else float(grad_output)
    if not (skip_if_unit_grad and factor == 1):
        total = 1.0 if divisor is None else float(divisor[0])
        _terms(inputs, gradient=gradient, scale=ieee_divide(factor, total))


def upsampled_cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> Tensor:
    """Returns the loss; fills `gradient` [N, C, h, w], which may be the scores, if given."""
    axes = inputs.axes
    assert axes is not None
    total = check_labels(inputs).divisor_of(inputs)
    blocks = _RowBlocks(inputs.logits, axes)
    views = _Views.of(inputs, gradient=gradient)
    class_weight, ignored = _class_weight(inputs), _ignored(inputs)
    options = _options(inputs, ieee_divide(1.0, total), class_weight)
    sums, counts = blocks.sums(kernels.NUM_SUMS), blocks.counts()
    halo_rows = blocks.halo_rows(is_wanted=gradient is not None)

    def work(state: tuple[Any, ...], chunk: _Chunk) -> None:
        at = chunk.image, chunk.index
        upsampled_kernels.upsampled_cross_entropy_chunk(
            *state,
            views.array,
            class_weight,
            ignored,
            options,
            blocks.stride,
            *blocks.tables,
            chunk.image,
            chunk.first,
            chunk.last,
            sums[at],
            counts[at],
            halo_rows[at],
        )

    blocks.run(blocks.scratch, work)
    if gradient is not None:
        blocks.add_halo_rows(halo_rows, gradient)
    views.copy_back()
    loss = ieee_divide(float(sums[:, :, kernels.LOSS].sum()), total)
    return torch.tensor(loss, dtype=loss_dtype(inputs.logits))


def scale_gradient(gradient: Tensor, grad_output: Tensor, scaled: Tensor) -> None:
    """Fills `scaled`, which may be the gradient, with grad_output * gradient; zeros stay +0."""
    if scaled is gradient and float(grad_output) == 1:
        return
    is_zero = gradient == 0
    torch.mul(gradient, grad_output, out=scaled)
    scaled.masked_fill_(is_zero, 0)


def pixel_terms(inputs: LossInputs, terms: Tensor) -> None:
    """Fills `terms` [N, *spatial], contiguous."""
    check_labels(inputs)
    _terms(inputs, terms=terms)


def _terms(
    inputs: LossInputs,
    *,
    terms: Tensor | None = None,
    gradient: Tensor | None = None,
    scale: float = 1.0,
) -> _Array:
    """Returns the sum of the terms of each image, float64 [N].

    Args:
        inputs: the inputs.
        terms: filled if given, [N, *spatial], of the loss's dtype.
        gradient: filled if given, [N, C, *spatial]; may be the logits.
        scale: gradient = scale * d(sum of terms) / d(logits).
    """
    plan = _Plan(inputs.logits.shape, inputs.logits.dtype)
    views = _Views.of(inputs, terms=terms, gradient=gradient)
    class_weight, ignored = _class_weight(inputs), _ignored(inputs)
    options = _options(inputs, scale, class_weight)
    sums, counts = plan.sums(kernels.NUM_SUMS), plan.counts()

    def work(state: tuple[Any, Any], chunk: _Chunk) -> None:
        kernels.cross_entropy_chunk(
            *state,
            views.array,
            class_weight,
            ignored,
            options,
            plan.stride,
            plan.tile,
            chunk.image,
            chunk.first,
            chunk.last,
            sums[chunk.image, chunk.index],
            counts[chunk.image, chunk.index],
        )

    plan.run(plan.scratch, work)
    views.copy_back()
    per_image: _Array = sums[:, :, kernels.LOSS].sum(axis=1)
    return per_image


def evaluate(inputs: LossInputs, maps: dict[str, Tensor]) -> EvaluationSums:
    """Returns everything that one read of the logits can tell; fills `maps`."""
    logits, axes = inputs.logits, inputs.axes
    found = check_labels(inputs)
    plan = _Plan(logits.shape, logits.dtype) if axes is None else _RowBlocks(logits, axes)
    num_classes = plan.num_classes
    views = _Views.of(inputs)
    class_weight, ignored = _class_weight(inputs), _ignored(inputs)
    options = _options(inputs, 0.0, class_weight)
    addresses = _map_addresses(maps)
    sums, counts = plan.sums(kernels.NUM_SUMS), plan.counts()
    class_nll, bin_confidence = plan.sums(num_classes), plan.sums(kernels.NUM_BINS)

    def make_state() -> tuple[Any, ...]:
        integers = (
            np.zeros((num_classes, num_classes), np.int64),
            np.zeros((kernels.NUM_BINS, 2), np.int64),
        )
        offsets = np.zeros(plan.tile, np.int64)
        return *plan.scratch(), plan.classes(1 + kernels.TOP), offsets, *integers

    def work(state: tuple[Any, ...], chunk: _Chunk) -> None:
        at = chunk.image, chunk.index
        plan.evaluate_chunk(
            *state,
            views.array,
            class_weight,
            ignored,
            options,
            addresses,
            plan.stride,
            *plan.tables,
            chunk.image,
            chunk.first,
            chunk.last,
            sums[at],
            counts[at],
            class_nll[at],
            bin_confidence[at],
        )

    states = plan.run(make_state, work)
    confusion, bin_pixels = (
        sum((state[k] for state in states[1:]), start=states[0][k]) for k in (-2, -1)
    )
    return EvaluationSums(
        loss=torch.from_numpy(sums[:, :, kernels.LOSS].sum(axis=1)),
        valid_pixels=torch.tensor(found.valid_pixels, dtype=torch.int64),
        weight=None if found.weight is None else torch.tensor(found.weight, dtype=torch.float64),
        class_nll=torch.from_numpy(class_nll.sum(axis=(0, 1))),
        confusion=torch.from_numpy(confusion),
        bin_pixels=torch.from_numpy(bin_pixels.sum(axis=1)),
        bin_correct=torch.from_numpy(bin_pixels[:, 1].copy()),
        bin_confidence=torch.from_numpy(bin_confidence.sum(axis=(0, 1))),
        num_saturated=int(counts[:, :, kernels.SATURATED].sum()),
        num_non_finite=int(counts[:, :, kernels.NON_FINITE].sum()),
        maps=maps,
    )


def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature) along `axis`, like `logits` in dtype and strides."""
    probabilities = empty_gradient(logits)
    source, target = _axis_first(logits, axis), _axis_first(probabilities, axis)
    plan = _Plan(source.shape, logits.dtype)
    views = _Views(logits=source, gradient=target)

    def work(buffer: Any, chunk: _Chunk) -> None:
        kernels.softmax_chunk(
            buffer,
            views.array,
            plan.stride,
            plan.tile,
            1 / temperature,
            chunk.image,
            chunk.first,
            chunk.last,
        )

    plan.run(plan.buffer, work)
    views.copy_back()
    return probabilities


def softmax_gradient(grad_output: Tensor, logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns the gradient in `logits`, where `grad_output` is the gradient in the softmax."""
    gradient = empty_gradient(logits)
    source, target = _axis_first(logits, axis), _axis_first(gradient, axis)
    plan = _Plan(source.shape, logits.dtype)
    grad_output = _axis_first(grad_output.to(logits.dtype), axis)
    views = _Views(logits=source, grad_output=grad_output, gradient=target)

    def work(state: tuple[Any, Any], chunk: _Chunk) -> None:
        kernels.softmax_gradient_chunk(
            *state,
            views.array,
            plan.stride,
            plan.tile,
            1 / temperature,
            chunk.image,
            chunk.first,
            chunk.last,
        )

    plan.run(lambda: (plan.buffer(), plan.buffer()), work)
    views.copy_back()
    return gradient


# -- from tensors to arguments of kernels ----------------------------------------------------------


class _Views:
    """Tensors as one array of `kernels.View` records; keeps the tensors alive."""

    def __init__(self, **tensors: Tensor | None) -> None:
        self._tensors: list[Tensor] = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        self.array = np.zeros(kernels.VIEWS_SIZE, np.int64)
        for name, tensor in tensors.items():
            if tensor is not None:
                start = getattr(kernels, name.upper())
                self.array[start : start + len(kernels.View._fields)] = self._view(name, tensor)

    @classmethod
    def of(cls, inputs: LossInputs, **others: Tensor | None) -> "_Views":
        """Returns the views of the inputs' tensors and of other tensors."""
        return cls(
            logits=inputs.logits,
            labels=inputs.labels,
            pixel_weight=_pixel_weight_for(inputs),
            **others,
        )

    def copy_back(self) -> None:
        """Copies results that kernels wrote to contiguous copies into their tensors."""
        for tensor, copy in self._copies:
            tensor.copy_(copy)

    def _view(self, name: str, tensor: Tensor) -> kernels.View:
        has_classes = name in ("logits", "gradient", "grad_output")
        axes = _merged_axes(tensor, 2 if has_classes else 1)
        if len(axes) > 3:
            # More than three spatial axes that cannot be merged are too rare for the kernels.
            copy = tensor.contiguous()
            if name in ("gradient", "terms"):
                self._copies.append((tensor, copy))
            return self._view(name, copy)
        self._tensors.append(tensor)
        padded = [(1, 0)] * (3 - len(axes)) + axes
        (_, slice_stride), (rows, row_stride), (columns, column_stride) = padded
        return kernels.View(
            address=tensor.data_ptr(),
            dtype_code=kernels.DTYPES.index(str(tensor.dtype).removeprefix("torch.")),
            num_classes=tensor.shape[1] if has_classes else 1,
            # A tensor at an address that is no multiple of its element size has no aligned vector.
            streamed=int(
                has_classes
                and tensor.nbytes > _STREAM_BYTES
                and tensor.data_ptr() % tensor.element_size() == 0
            ),
            image_stride=tensor.stride(0),
            class_stride=tensor.stride(1) if has_classes else 0,
            num_rows=rows,
            num_columns=columns,
            slice_stride=slice_stride,
            row_stride=row_stride,
            column_stride=column_stride,
        )


def _merged_axes(tensor: Tensor, first: int) -> list[tuple[int, int]]:
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


def _weights_by_phase(columns: Axis, phase_stride: int) -> _Array:
    """Returns weights [2, phases, intervals], 0 where an interval has no pixel of that phase."""
    weights = np.zeros((2, columns.max_targets, phase_stride))
    phase = np.arange(columns.num_targets) - columns.starts[columns.intervals]
    weights[:, phase, columns.intervals] = columns.weights
    return weights


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _options(inputs: LossInputs, scale: float, class_weight: _Array) -> _Array:
    options = kernels.Options(
        inverse_temperature=1 / inputs.options.temperature,
        label_smoothing=inputs.options.label_smoothing,
        max_nll=inputs.options.max_nll,
        gradient_scale=scale / inputs.options.temperature,
        is_class_weighted=inputs.class_weight is not None,
        sum_of_class_weights=sum(class_weight.tolist()),
    )
    return np.array(options, np.float64)


def ieee_divide(a: float, b: float) -> float:
    """Returns a / b by the rules of IEEE 754: NaN or infinity for b = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(a) / np.float64(b))


def _axis_first(tensor: Tensor, axis: int) -> Tensor:
    """Returns a view [1, C, *rest]."""
    return tensor.movedim(axis, 0).unsqueeze(0)


def _pixel_weight_for(inputs: LossInputs) -> Tensor | None:
    """Returns the pixel weights in a dtype that the kernels for the logits' dtype can read."""
    pixel_weight = inputs.pixel_weight
    if pixel_weight is None:
        return None
    if inputs.logits.dtype == torch.float64:
        return pixel_weight.double()
    return pixel_weight.float() if pixel_weight.dtype == torch.float64 else pixel_weight


def _class_weight(inputs: LossInputs) -> _Array:
    """Returns class weights [C + 2]; the last two, for ignored and invalid labels, are 0."""
    if inputs.class_weight is None:
        weights = np.ones(inputs.num_classes)
    else:
        weights = inputs.class_weight.double().numpy()
    return np.append(weights, [0.0, 0.0])


def _ignored(inputs: LossInputs) -> _Array:
    return np.array(inputs.ignored, np.int64)


def _aligned_zeros(size: int, dtype: Any) -> _Array:
    """Returns zeros that begin at a cache line."""
    itemsize = np.dtype(dtype).itemsize
    memory = np.zeros(size * itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size * itemsize].view(dtype)


def _invalid_values(counts: _Array, count: int, first: int, values: Tensor) -> InvalidValues | None:
    """Returns what the chunks counted as invalid among `values` [N, *spatial].

    `count` and `first` are indices into the counts of a chunk.
    """
    chunks = np.argwhere(counts[:, :, count])
    if not len(chunks):
        return None
    image, chunk = chunks[0]
    pixel: tuple[Any, ...] = ()
    if values.ndim > 1:
        pixel = np.unravel_index(counts[image, chunk, first], tuple(values.shape[1:]))
    index = int(image), *(int(i) for i in pixel)
    return InvalidValues(int(counts[:, :, count].sum()), index, values[index].item())


def _invalid_class_weights(class_weight: Tensor | None) -> InvalidValues | None:
    if class_weight is None:
        return None
    invalid = ~((class_weight >= 0) & class_weight.isfinite())
    if not bool(invalid.any()):
        return None
    index = int(invalid.nonzero()[0])
    return InvalidValues(int(invalid.sum()), (index,), class_weight[index].item())


def _map_addresses(maps: dict[str, Tensor]) -> _Array:
    addresses = {
        name: maps[name].data_ptr() if name in maps else 0
        for name in kernels.EvaluationMaps._fields
        if name != "prediction_dtype"
    }
    classes = maps.get("prediction", maps.get("top_classes"))
    dtype = "int32" if classes is None else str(classes.dtype).removeprefix("torch.")
    return np.array(
        kernels.EvaluationMaps(prediction_dtype=kernels.DTYPES.index(dtype), **addresses), np.int64
    )
