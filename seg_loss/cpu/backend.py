"""The CPU backend: tensors in, `numba_kernels` over chunks of pixels on all threads, tensors out.

Called by `ops` and `evaluation`; the tensors were checked by `checks`. Work is split by pixels, so
a batch of one keeps every core busy. Which pixels make a chunk depends on the shape of one image
alone, and partial sums are added in the chunks' order: results do not depend on the number of
threads, nor on what else is in the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seg_loss import _inputs as checks
from seg_loss import _labels as label_check
from seg_loss._divisor import divisor
from seg_loss._evaluation_sums import Tallies
from seg_loss._inputs import LossInputs
from seg_loss._label_report import Finding, Survey
from seg_loss.cpu import kernels, threads
from seg_loss.cpu import upsampled as upsampled_kernels
from seg_loss.cpu.memory import empty_gradient
from seg_loss.upsampling import Axes, Axis

# Elements of a chunk: about 0.1 ms of work, long against the call of a kernel from Python.
_CHUNK_ELEMENTS = 400_000
# Below this much to read a second thread costs more than it brings.
_THREAD_ELEMENTS = 60_000
_THREAD_LABELS = 500_000
# Bands of upsampled scores in an image at most; two rows of nodes are kept for each.
_MAX_BANDS = 32
# A gradient larger than this leaves the caches anyway; it is written past them.
_STREAM_BYTES = 24 << 20


@dataclass(frozen=True)
class _Chunk:
    """Pixels [first, last) of image `image`; `place` counts the chunks of its image."""

    image: int
    place: int
    first: int
    last: int


class _Plan:
    """The chunks of logits, and the scratch memory a thread needs for one of them."""

    def __init__(
        self, shape: torch.Size, dtype: torch.dtype, cut: tuple[int, int] | None = None
    ) -> None:
        """For logits [N, C, *spatial]; `cut` is the size of what is cut and the step, or pixels."""
        self.num_images, self.num_classes = shape[0], shape[1]
        self.pixels = shape[2:].numel()
        self._element = np.float64 if dtype == torch.float64 else np.float32
        self.tile = kernels.tile_pixels(self.num_classes)
        self.stride = kernels.row_stride(self.num_classes)
        tiles = -(-self.pixels // self.tile)
        elements = max(1, self.num_classes) * self.tile
        per_chunk = min(_CHUNK_ELEMENTS // elements, tiles // 32)
        size, step = cut or (self.pixels, max(1, per_chunk) * self.tile)
        starts = range(0, size, step)
        self.chunks_per_image = len(starts)
        self.chunks = [
            _Chunk(image, place, first, min(first + step, size))
            for image in range(self.num_images)
            for place, first in enumerate(starts)
        ]
        self.tables: tuple[Any, ...] = self.tile, self.pixels
        self.evaluate_chunk = kernels.evaluate_chunk

    def scratch(self) -> tuple[np.ndarray[Any, Any], ...]:
        """What a thread's kernels write to, but for what they find."""
        return self.buffer(), self.classes()

    def sums(self, width: int) -> np.ndarray[Any, Any]:
        """A float64 partial sum for each chunk, filled in by whichever thread does it."""
        return np.zeros((self.num_images, self.chunks_per_image, width))

    def counts(self) -> np.ndarray[Any, Any]:
        shape = (self.num_images, self.chunks_per_image, kernels.NUM_COUNTS)
        return np.zeros(shape, np.int64)

    def buffer(self) -> np.ndarray[Any, Any]:
        """The rows of one tile; zeros, so that unused lanes hold numbers."""
        rows = self.num_classes + kernels.NUM_EXTRA_ROWS
        return _aligned_zeros(rows * self.stride, self._element)

    def classes(self, rows: int = 1) -> np.ndarray[Any, Any]:
        return _aligned_zeros(rows * self.stride, np.int32)

    def run(
        self,
        make_state: Callable[[], Any],
        work: Callable[[Any, _Chunk], None],
        *,
        labels_only: bool = False,
    ) -> list[Any]:
        """Do all chunks; return what each thread made for itself with `make_state`."""
        pixels = self.num_images * self.pixels
        is_small = pixels * self.num_classes < _THREAD_ELEMENTS
        if labels_only:
            is_small = pixels < _THREAD_LABELS
        num_threads = 1 if is_small else threads.num_threads_for(len(self.chunks))
        return threads.run(self.chunks, make_state, work, num_threads)


class _Bands(_Plan):
    """The chunks of scores [N, C, h, w] that are upsampled: bands of cell rows."""

    def __init__(self, scores: Tensor, axes: Axes) -> None:
        rows, columns = axes
        shape = (*scores.shape[:2], rows.num_positions, columns.num_positions)
        cell_rows = rows.num_nodes + 1
        super().__init__(torch.Size(shape), scores.dtype, (cell_rows, -(-cell_rows // _MAX_BANDS)))
        self._cells = columns.num_nodes + 1
        self._phases = columns.max_positions
        # Cells shared out evenly among the fewest tiles; all phases of theirs, if they fit.
        lanes = kernels.LANES
        most = max(lanes, self.tile // max(1, self._phases) // lanes * lanes)
        groups = -(-self._cells // most)
        self._tile_cells = _round_up(-(-self._cells // groups), lanes)
        # A vector of right nodes begins at 1 and ends beyond the last.
        self._node_stride = _round_up(self._cells + 1, lanes) + lanes
        mesh = upsampled_kernels.Mesh(
            num_rows=rows.num_positions,
            num_columns=columns.num_positions,
            node_rows=rows.num_nodes,
            node_columns=columns.num_nodes,
            num_phases=self._phases,
            tile_cells=self._tile_cells,
            tile_phases=max(1, min(self._phases, self.tile // self._tile_cells)),
            node_stride=self._node_stride,
            phase_stride=_round_up(self._cells, lanes),
            has_unread_nodes=int(rows.has_unread_nodes or columns.has_unread_nodes),
        )
        self.tables = (
            np.array(mesh, np.int64),
            rows.starts.astype(np.int64),
            rows.weights.flatten(),
            columns.starts.astype(np.int64),
            _weights_by_phase(columns, mesh.phase_stride).astype(self._element),
        )
        self.evaluate_chunk = upsampled_kernels.upsampled_evaluate_chunk

    def scratch(self) -> tuple[np.ndarray[Any, Any], ...]:
        pixels = self._tile_cells * max(1, self._phases) + kernels.LANES
        nodes = upsampled_kernels.NUM_NODE_BLOCKS * self.num_classes + 1
        corners = upsampled_kernels.NUM_CORNERS * self.num_classes * self._tile_cells
        weights = _aligned_zeros(pixels, self._element)
        weights[:] = 1
        return (
            self.buffer(),
            self.classes(),
            _aligned_zeros(pixels, np.int32),
            weights,
            _aligned_zeros(nodes * self._node_stride, self._element),
            _aligned_zeros(corners + kernels.LANES, self._element),
        )

    def seams(self, *, is_wanted: bool) -> np.ndarray[Any, Any]:
        """For each band its part of the gradient of the node rows before it and at its end."""
        nodes = self._cells - 1 if is_wanted else 0
        shape = (self.num_images, self.chunks_per_image, 2, self.num_classes, nodes)
        return np.zeros(shape, self._element)

    def close_seams(self, seams: np.ndarray[Any, Any], gradient: Tensor) -> None:
        """Add up the parts of the node rows between bands."""
        between = [chunk.first - 1 for chunk in self.chunks[1 : self.chunks_per_image]]
        if between and self.num_images:
            total = torch.from_numpy(seams[:, :-1, 1] + seams[:, 1:, 0])
            gradient[:, :, between] = total.transpose(1, 2).to(gradient.dtype)


def upsampling_bytes(scores: Tensor, axes: Axes) -> int:
    """Scratch memory of a call with scores [N, C, h, w] that is not small beside its tensors.

    Rows of nodes, for each thread and between bands, are many times wide scores of few rows; tables
    of weights by phase many times wide labels of few nodes.
    """
    num_images, num_classes, rows, nodes = scores.shape
    element = checks.map_dtype(scores).itemsize
    num_bands = num_images * min(rows + 1, _MAX_BANDS)
    num_threads = threads.num_threads_for(num_bands)
    of_threads = upsampled_kernels.NUM_NODE_BLOCKS * num_threads
    seams = 3 * num_bands  # two each, and one when they are added up
    of_nodes = element * num_classes * (nodes + 2 * kernels.LANES) * (of_threads + seams)
    phases, cells = axes[1].max_positions, nodes + kernels.LANES
    weights = phases * cells * 2 * (8 + element)  # computed in float64
    pixels = phases * min(cells, 1024) * (4 + element) * num_threads
    return of_nodes + weights + pixels


@dataclass(frozen=True)
class _Counted:
    """What the survey of the labels found to count."""

    valid_pixels: list[int]  # of each image
    weight: list[float] | None  # of each image's valid pixels; None where no weights are given

    def divisor_of(self, inputs: LossInputs) -> float:
        weight = None if self.weight is None else float(np.sum(self.weight))
        num_images, num_pixels = len(inputs.labels), inputs.labels.numel()
        valid_pixels = sum(self.valid_pixels)
        return divisor(inputs.normalization, valid_pixels, weight, num_images, num_pixels)


def _survey(inputs: LossInputs) -> _Counted:
    """Read the labels once, and speak of what is bad if that is wanted."""
    labels, num_classes = inputs.labels, inputs.logits.shape[1]
    pixel_weight = inputs.pixel_weight
    shape = torch.Size([labels.shape[0], num_classes, *labels.shape[1:]])
    plan = _Plan(shape, torch.float32 if pixel_weight is None else pixel_weight.dtype)
    views = _Views(labels=labels, pixel_weight=pixel_weight)
    ignored_labels = _ignored(inputs.ignored)
    sums, counts = plan.sums(kernels.NUM_SUMS), plan.counts()

    def count(classes: Any, chunk: _Chunk) -> None:
        kernels.survey_chunk(
            classes, views.array, ignored_labels, num_classes, plan.tile,
            chunk.image, chunk.first, chunk.last, counts[chunk.image, chunk.place],
        )  # fmt: skip

    plan.run(plan.classes, count, labels_only=True)
    if inputs.is_weighted:
        weights = _class_weights(inputs)

        def weigh(state: tuple[Any, Any], chunk: _Chunk) -> None:
            kernels.survey_weights_chunk(
                *state, views.array, weights, ignored_labels, num_classes,
                plan.stride, plan.tile, chunk.image, chunk.first, chunk.last,
                sums[chunk.image, chunk.place], counts[chunk.image, chunk.place],
            )  # fmt: skip

        plan.run(plan.scratch, weigh, labels_only=True)
    found = Survey(
        _finding(counts, kernels.BAD_LABELS, kernels.FIRST_BAD_LABEL, labels),
        None
        if pixel_weight is None
        else _finding(counts, kernels.BAD_WEIGHTS, kernels.FIRST_BAD_WEIGHT, pixel_weight),
        _bad_class_weights(inputs.class_weight),
    )
    refusal = checks.judge(found, num_classes, inputs.ignored)
    label_check.settle(refusal, inputs.check_labels)
    return _Counted(
        counts[:, :, kernels.VALID].sum(axis=1).tolist(),
        sums[:, :, kernels.WEIGHT].sum(axis=1).tolist() if inputs.is_weighted else None,
    )


def cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """The loss and its divisor; fills `gradient`, which may be the logits, if given."""
    count = _survey(inputs).divisor_of(inputs)
    sums = _terms(inputs, gradient=gradient, scale=_quotient(1.0, count))
    loss = _quotient(float(sums.sum()), count)
    dtype = checks.map_dtype(inputs.logits)
    return torch.tensor(loss, dtype=dtype), torch.tensor(count, dtype=torch.float64)


def cross_entropy_gradient(
    inputs: LossInputs, divisor: Tensor, upstream: Tensor, gradient: Tensor, *, unless_one: bool
) -> None:
    """Fill `gradient` with upstream / divisor * d(sum of terms) / d(logits).

    With `unless_one` it holds the gradient for an upstream of 1 already and is left alone for one.
    """
    factor = float(upstream)
    if not (unless_one and factor == 1):
        _terms(inputs, gradient=gradient, scale=_quotient(factor, float(divisor)))


def upsampled_cross_entropy(inputs: LossInputs, axes: Axes, gradient: Tensor | None) -> Tensor:
    """The loss; fills `gradient` [N, C, h, w], which may be the scores, if given."""
    count = _survey(inputs).divisor_of(inputs)
    bands = _Bands(inputs.logits, axes)
    views = _Views.of(inputs, gradient=gradient)
    weights, ignored_labels = _class_weights(inputs), _ignored(inputs.ignored)
    options = _options(inputs, _quotient(1.0, count), weights)
    sums, counts = bands.sums(kernels.NUM_SUMS), bands.counts()
    seams = bands.seams(is_wanted=gradient is not None)

    def work(state: tuple[Any, ...], chunk: _Chunk) -> None:
        at = chunk.image, chunk.place
        upsampled_kernels.upsampled_cross_entropy_chunk(
            *state, views.array, weights, ignored_labels, options, bands.stride, *bands.tables,
            chunk.image, chunk.first, chunk.last, sums[at], counts[at], seams[at],
        )  # fmt: skip

    bands.run(bands.scratch, work)
    if gradient is not None:
        bands.close_seams(seams, gradient)
    views.finish()
    loss = _quotient(float(sums[:, :, kernels.LOSS].sum()), count)
    return torch.tensor(loss, dtype=checks.map_dtype(inputs.logits))


def pixel_terms(inputs: LossInputs, terms: Tensor) -> None:
    """Fill `terms` [N, *spatial], contiguous."""
    _survey(inputs)
    _terms(inputs, terms=terms)


def _terms(
    inputs: LossInputs,
    *,
    terms: Tensor | None = None,
    gradient: Tensor | None = None,
    scale: float = 1.0,
) -> np.ndarray[Any, Any]:
    """The sum of the terms of each image, float64 [N]; fills `terms` and `gradient` if given.

    Args:
        terms: [N, *spatial], float32 or (of float64 logits) float64.
        gradient: [N, C, *spatial]; may be the logits.
        scale: gradient = scale * d(sum of terms) / d(logits).
    """
    plan = _Plan(inputs.logits.shape, inputs.logits.dtype)
    views = _Views.of(inputs, terms=terms, gradient=gradient)
    weights, ignored_labels = _class_weights(inputs), _ignored(inputs.ignored)
    options = _options(inputs, scale, weights)
    sums, counts = plan.sums(kernels.NUM_SUMS), plan.counts()

    def work(state: tuple[Any, Any], chunk: _Chunk) -> None:
        kernels.cross_entropy_chunk(
            *state, views.array, weights, ignored_labels, options, plan.stride, plan.tile,
            chunk.image, chunk.first, chunk.last,
            sums[chunk.image, chunk.place], counts[chunk.image, chunk.place],
        )  # fmt: skip

    plan.run(plan.scratch, work)
    views.finish()
    of_images: np.ndarray[Any, Any] = sums[:, :, kernels.LOSS].sum(axis=1)
    return of_images


def evaluate(inputs: LossInputs, axes: Axes | None, maps: dict[str, Tensor]) -> Tallies:
    """Everything one read of the logits can tell; fills `maps`."""
    logits = inputs.logits
    found = _survey(inputs)
    plan = _Plan(logits.shape, logits.dtype) if axes is None else _Bands(logits, axes)
    num_classes = plan.num_classes
    views = _Views.of(inputs)
    weights, ignored_labels = _class_weights(inputs), _ignored(inputs.ignored)
    options = _options(inputs, 0.0, weights)
    addresses = _map_addresses(maps)
    sums, counts = plan.sums(kernels.NUM_SUMS), plan.counts()
    class_nll, bin_confidence = plan.sums(num_classes), plan.sums(kernels.NUM_BINS)

    def make_state() -> tuple[Any, ...]:
        integers = (
            np.zeros((num_classes, num_classes), np.int64),
            np.zeros((kernels.NUM_BINS, 2), np.int64),
        )
        places = np.zeros(plan.tile, np.int64)
        return *plan.scratch(), plan.classes(1 + kernels.TOP), places, *integers

    def work(state: tuple[Any, ...], chunk: _Chunk) -> None:
        at = chunk.image, chunk.place
        plan.evaluate_chunk(
            *state, views.array, weights, ignored_labels, options, addresses, plan.stride,
            *plan.tables, chunk.image, chunk.first, chunk.last,
            sums[at], counts[at], class_nll[at], bin_confidence[at],
        )  # fmt: skip

    states = plan.run(make_state, work)
    confusion, bin_pixels = (
        sum((state[k] for state in states[1:]), start=states[0][k]) for k in (-2, -1)
    )
    return Tallies(
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
    """softmax(logits / temperature) along `axis`, in the dtype and memory order of `logits`."""
    probabilities = empty_gradient(logits)
    source, target = _axis_first(logits, axis), _axis_first(probabilities, axis)
    plan = _Plan(source.shape, logits.dtype)
    views = _Views(logits=source, gradient=target)

    def work(buffer: Any, chunk: _Chunk) -> None:
        kernels.softmax_chunk(
            buffer, views.array, plan.stride, plan.tile, 1 / temperature,
            chunk.image, chunk.first, chunk.last,
        )  # fmt: skip

    plan.run(plan.buffer, work)
    views.finish()
    return probabilities


def softmax_gradient(upstream: Tensor, logits: Tensor, axis: int, temperature: float) -> Tensor:
    """The gradient with respect to `logits`, given `upstream`, the one with respect to softmax."""
    gradient = empty_gradient(logits)
    source, target = _axis_first(logits, axis), _axis_first(gradient, axis)
    plan = _Plan(source.shape, logits.dtype)
    views = _Views(
        logits=source, upstream=_axis_first(upstream.to(logits.dtype), axis), gradient=target
    )

    def work(state: tuple[Any, Any], chunk: _Chunk) -> None:
        kernels.softmax_gradient_chunk(
            *state, views.array, plan.stride, plan.tile, 1 / temperature,
            chunk.image, chunk.first, chunk.last,
        )  # fmt: skip

    plan.run(lambda: (plan.buffer(), plan.buffer()), work)
    views.finish()
    return gradient


# -- from tensors to what kernels take -------------------------------------------------------------


class _Views:
    """Tensors as one array, for the kernels; keeps the tensors alive meanwhile."""

    def __init__(self, **tensors: Tensor | None) -> None:
        self._tensors: list[Tensor] = []
        self._written_elsewhere: list[tuple[Tensor, Tensor]] = []
        self.array = np.zeros(kernels.VIEWS_SIZE, np.int64)
        for name, tensor in tensors.items():
            if tensor is not None:
                place = getattr(kernels, name.upper())
                self.array[place : place + len(kernels.View._fields)] = self._view(name, tensor)

    @classmethod
    def of(cls, inputs: LossInputs, **others: Tensor | None) -> "_Views":
        """Of the inputs' tensors, and of others."""
        return cls(
            logits=inputs.logits,
            labels=inputs.labels,
            pixel_weight=_weights_as(inputs.pixel_weight, inputs.logits.dtype),
            **others,
        )

    def finish(self) -> None:
        """Bring what was written elsewhere to where it belongs."""
        for tensor, plain in self._written_elsewhere:
            tensor.copy_(plain)

    def _view(self, name: str, tensor: Tensor) -> kernels.View:
        has_classes = name in ("logits", "gradient", "upstream")
        axes = _merged_axes(tensor, 2 if has_classes else 1)
        if len(axes) > 3:
            # Four axes or more in an order of their own: too rare to carry through the kernels.
            plain = tensor.contiguous()
            if name in ("gradient", "terms"):
                self._written_elsewhere.append((tensor, plain))
            return self._view(name, plain)
        self._tensors.append(tensor)
        padded = [(1, 0)] * (3 - len(axes)) + axes
        (_, slice_stride), (rows, row_stride), (columns, column_stride) = padded
        return kernels.View(
            address=tensor.data_ptr(),
            kind=kernels.KINDS.index(str(tensor.dtype).removeprefix("torch.")),
            num_classes=tensor.shape[1] if has_classes else 1,
            # Elements astride their own size never make up a vector at a multiple of its size.
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
    """Sizes and strides of the axes from `first` on, those that lie seamlessly joined into one."""
    axes: list[tuple[int, int]] = []
    for size, stride in zip(tensor.shape[first:], tensor.stride()[first:], strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == stride * size:
            axes[-1] = axes[-1][0] * size, stride
        else:
            axes.append((size, stride))
    return axes


def _weights_by_phase(columns: Axis, phase_stride: int) -> np.ndarray[Any, Any]:
    """[2, phases, cells], 0 where a cell has no pixel of that phase."""
    weights = np.zeros((2, columns.max_positions, phase_stride))
    phase = np.arange(columns.num_positions) - columns.starts[columns.cells]
    weights[:, phase, columns.cells] = columns.weights
    return weights


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _options(
    inputs: LossInputs, scale: float, weights: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """As the kernels use them; `weights` are those of `_class_weights`."""
    options = kernels.Options(
        inverse_temperature=1 / inputs.temperature,
        label_smoothing=inputs.label_smoothing,
        max_nll=inputs.max_nll,
        gradient_scale=scale / inputs.temperature,
        is_class_weighted=inputs.class_weight is not None,
        sum_of_class_weights=sum(weights.tolist()),
    )
    return np.array(options, np.float64)


def _quotient(a: float, b: float) -> float:
    """a / b as floating point has it: NaN or infinity for b = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(a) / np.float64(b))


def _axis_first(tensor: Tensor, axis: int) -> Tensor:
    """[1, C, *rest], a view."""
    return tensor.movedim(axis, 0).unsqueeze(0)


def _weights_as(pixel_weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Float64 for kernels that compute in float64, as it is or float32 for the others."""
    if pixel_weight is None:
        return None
    if dtype == torch.float64:
        return pixel_weight.double()
    return pixel_weight.float() if pixel_weight.dtype == torch.float64 else pixel_weight


def _class_weights(inputs: LossInputs) -> np.ndarray[Any, Any]:
    """[C + 2]: zeros for ignored and bad labels behind the weights of the classes."""
    given, num_classes = inputs.class_weight, inputs.logits.shape[1]
    weights = np.ones(num_classes) if given is None else given.double().numpy()
    return np.append(weights, [0.0, 0.0])


def _ignored(ignored: Sequence[int]) -> np.ndarray[Any, Any]:
    return np.array(ignored, np.int64)


def _aligned_zeros(size: int, dtype: Any) -> np.ndarray[Any, Any]:
    """Zeros that begin at a cache line."""
    itemsize = np.dtype(dtype).itemsize
    memory = np.zeros(size * itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size * itemsize].view(dtype)


def _finding(
    counts: np.ndarray[Any, Any], number: int, first: int, values: Tensor
) -> Finding | None:
    """What chunks counted as bad among `values` [N, *spatial]."""
    found = np.argwhere(counts[:, :, number])
    if not len(found):
        return None
    image, chunk = found[0]
    pixel: tuple[Any, ...] = ()
    if values.ndim > 1:
        pixel = np.unravel_index(counts[image, chunk, first], tuple(values.shape[1:]))
    place = int(image), *(int(index) for index in pixel)
    return Finding(int(counts[:, :, number].sum()), place, values[place].item())


def _bad_class_weights(class_weight: Tensor | None) -> Finding | None:
    if class_weight is None:
        return None
    bad = ~((class_weight >= 0) & class_weight.isfinite())
    if not bool(bad.any()):
        return None
    place = int(bad.nonzero()[0])
    return Finding(int(bad.sum()), (place,), class_weight[place].item())


def _map_addresses(maps: dict[str, Tensor]) -> np.ndarray[Any, Any]:
    addresses = {
        name: maps[name].data_ptr() if name in maps else 0
        for name in kernels.EvaluationMaps._fields
        if name != "prediction_kind"
    }
    of_classes = maps.get("prediction", maps.get("top_classes"))
    kind = "int32" if of_classes is None else str(of_classes.dtype).removeprefix("torch.")
    return np.array(
        kernels.EvaluationMaps(prediction_kind=kernels.KINDS.index(kind), **addresses), np.int64
    )
