"""The CPU backend: from checked inputs to kernels that run on all threads.

`_backends` and `evaluate` call it. `plan` describes a call once, `region` says how threads share
it. The pixels of a chunk depend on the shape of one image alone, and partial sums are added in the
order of the chunks. So results depend neither on the number of threads nor on the other images of
the batch.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seg_loss import _labels
from seg_loss._evaluation_sums import EvaluationSums
from seg_loss._inputs import LossInputs, loss_dtype
from seg_loss._labels import InvalidValues, LabelReport
from seg_loss.cpu import plan as plans
from seg_loss.cpu import threads
from seg_loss.cpu.cache import Kernel
from seg_loss.cpu.memory import empty_gradient
from seg_loss.cpu.plan import Memory, Plan, dtype_code, layout, merged_axes, round_up
from seg_loss.cpu.records import ITEMSIZES, LANES, NUM_BINS, TOP
from seg_loss.cpu.target import target
from seg_loss.upsampling import Axes, Axis

# The classes of a column: as many as fit the registers of AVX-512, and the first-level cache of
# other processors.
MAX_COLUMN_CLASSES = 32
_COLUMN_TILE = 1024
_COLUMN_CHUNK = 4096
# Elements of a chunk of tiles: about 0.1 ms of work.
_CHUNK_ELEMENTS = 400_000
# The largest number of row blocks of an image of upsampled scores; each keeps two source rows. A
# power of two of source rows has one more interval row.
_MAX_ROW_BLOCKS = 33
# Rows of the scratch memory of tiles beside those of the classes; see `tiles`.
_EXTRA_ROWS = 10
# The most phases of a group, and the vectors of each; see `interval_columns`.
_GROUP_PHASES, _PHASE_VECTORS = 8, 6
# Blocks of source rows, and of corners, of upsampled scores; see `upsampled`.
_SOURCE_BLOCKS, _CORNERS = 4, 4

_Array = np.ndarray[Any, Any]
_plans = plans.Cache()


def cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the loss and its divisor; fills `gradient`, which may be the logits, if given.

    The divisor is float64 [2]: D and 1 / (D temperature).
    """
    loss = torch.empty((), dtype=loss_dtype(inputs.logits))
    divisor = torch.empty(2, dtype=torch.float64)
    _run_loss(inputs, gradient=gradient, loss=loss, divisor=divisor)
    return loss, divisor


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
        _run_loss(inputs, gradient=gradient, known=(total, factor))


def pixel_terms(inputs: LossInputs, terms: Tensor) -> None:
    """Fills `terms` [N, *spatial], contiguous."""
    _run_loss(inputs, terms=terms)


def _run_loss(
    inputs: LossInputs,
    *,
    terms: Tensor | None = None,
    gradient: Tensor | None = None,
    loss: Tensor | None = None,
    divisor: Tensor | None = None,
    known: tuple[float, float] | None = None,
) -> None:
    """Runs the kernel of the loss, and fills the tensors that are given.

    Args:
        inputs: the inputs.
        terms: [N, *spatial], of the loss's dtype.
        gradient: [N, C, *spatial]; may be the logits.
        loss, divisor: as in `cross_entropy`.
        known: the divisor and `grad_output`, if the labels have been checked before.
    """
    tensors = _Tensors(inputs, terms=terms, gradient=gradient)
    key = "loss", tensors.layouts, inputs.class_weight is None, inputs.options, known is None
    plan: Plan = _plans.get(key, lambda: _plan_loss(inputs, tensors, checks_labels=known is None))
    floats = {} if known is None else {"known_divisor": known[0], "grad_output": known[1]}
    addresses = tensors.addresses
    if loss is not None:
        addresses["loss"] = loss.data_ptr()
    if divisor is not None:
        addresses["divisor"] = divisor.data_ptr()
    memory = _run(plan, inputs, tensors, addresses, floats)
    plan.release(memory)
    tensors.copy_back()


def _plan_loss(inputs: LossInputs, tensors: "_Tensors", *, checks_labels: bool) -> Plan:
    logits, gradient = inputs.logits, tensors["gradient"]
    num_classes, pixels = logits.shape[1], _num_pixels(logits)
    element = _element(logits.dtype)
    is_column = element == "float32" and not inputs.options.label_smoothing
    if is_column and num_classes <= MAX_COLUMN_CLASSES:
        parameters = {
            "num_classes": num_classes if target().has_avx512 else None,
            "dtype_code": dtype_code(logits.dtype),
            "has_gradient": gradient is not None,
            "bypasses_caches": gradient is not None and _has_whole_lines(gradient),
        }
        plan = _make_plan("cross_entropy", "make_columns", inputs, parameters)
        plan.set(tile=_COLUMN_TILE, row_stride=_COLUMN_TILE)
        plan.set(is_dense=all(_is_dense(t) for t in (logits, gradient) if t is not None))
        plan.split(pixels, min(_COLUMN_CHUNK, round_up(max(pixels // 16, 1), _COLUMN_TILE)))
        plan.add_scratch(
            rows=2 * 4 * _COLUMN_TILE,
            factors=4 * _COLUMN_TILE,
            classes=4 * _COLUMN_TILE,
            extra=8 * LANES + 3 * 4 * LANES * num_classes + 4 * LANES,
        )
    else:
        plan = _make_plan("cross_entropy", "make_tiles", inputs, {"element": element})
        _add_tiles(plan, num_classes, pixels, ITEMSIZES[dtype_code(loss_dtype(logits))])
    plan.set(checks_labels=checks_labels)
    tensors.add_views(plan)
    return plan


def upsampled_cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> Tensor:
    """Returns the loss; fills `gradient` [N, C, h, w], which may be the scores, if given."""
    loss = torch.empty((), dtype=loss_dtype(inputs.logits))
    tensors = _Tensors(inputs, gradient=gradient)
    key = "upsampled", tensors.layouts, inputs.class_weight is None, inputs.options
    plan: Plan = _plans.get(key, lambda: _plan_upsampled("make_loss", inputs, tensors))
    addresses = tensors.addresses
    addresses["loss"] = loss.data_ptr()
    memory = _run(plan, inputs, tensors, addresses, {})
    plan.release(memory)
    tensors.copy_back()
    return loss


def scale_gradient(gradient: Tensor, grad_output: Tensor, scaled: Tensor) -> None:
    """Fills `scaled`, which may be the gradient, with grad_output * gradient; zeros stay +0."""
    if scaled is gradient and float(grad_output) == 1:
        return
    is_zero = gradient == 0
    torch.mul(gradient, grad_output, out=scaled)
    scaled.masked_fill_(is_zero, 0)


def evaluate(inputs: LossInputs, maps: dict[str, Tensor]) -> EvaluationSums:
    """Returns everything that one read of the logits can tell; fills `maps`."""
    num_classes = inputs.num_classes
    tensors = _Tensors(inputs)
    classes = maps.get("prediction", maps.get("top_classes"))
    dtype = None if classes is None else classes.dtype
    key = "evaluate", tensors.layouts, inputs.class_weight is None, inputs.options, dtype
    plan: Plan = _plans.get(key, lambda: _plan_evaluate(inputs, tensors, dtype))
    num_chunks = int(plan.job[0]["num_images"] * plan.job[0]["chunks_per_image"])
    tables = np.zeros((num_chunks, num_classes + NUM_BINS))
    addresses = tensors.addresses
    addresses["chunk_tables"] = tables.ctypes.data
    for name, values in maps.items():
        addresses[f"maps.{name}"] = values.data_ptr()
    memory = _run(plan, inputs, tensors, addresses, {})
    floats = tables.reshape(-1, num_classes + NUM_BINS).sum(axis=0)
    integers = memory.take_tables(num_classes * num_classes + 2 * NUM_BINS)
    bin_pixels = integers[-2 * NUM_BINS :].reshape(NUM_BINS, 2)
    images, chunks = memory.images[: len(inputs.labels)], memory.chunks[:num_chunks]
    sums = EvaluationSums(
        loss=torch.from_numpy(images["loss"].copy()),
        valid_pixels=torch.from_numpy(images["valid"].copy()),
        weight=torch.from_numpy(images["weight"].copy()) if inputs.is_weighted else None,
        class_nll=torch.from_numpy(floats[:num_classes].copy()),
        confusion=torch.from_numpy(
            integers[: -2 * NUM_BINS].reshape(num_classes, num_classes).copy()
        ),
        bin_pixels=torch.from_numpy(bin_pixels.sum(axis=1)),
        bin_correct=torch.from_numpy(bin_pixels[:, 1].copy()),
        bin_confidence=torch.from_numpy(floats[num_classes:].copy()),
        num_saturated=int(chunks["saturated"].sum()),
        num_non_finite=int(chunks["non_finite"].sum()),
        maps=maps,
    )
    plan.release(memory)
    return sums


def _plan_evaluate(inputs: LossInputs, tensors: "_Tensors", dtype: torch.dtype | None) -> Plan:
    logits = inputs.logits
    num_classes = logits.shape[1]
    if inputs.axes is not None:
        plan = _plan_upsampled("make_evaluate", inputs, tensors)
    else:
        element = _element(logits.dtype)
        plan = _make_plan("evaluate", "make_tiles", inputs, {"element": element})
        itemsize = ITEMSIZES[dtype_code(loss_dtype(logits))]
        _add_tiles(plan, num_classes, _num_pixels(logits), itemsize)
        plan.set(checks_labels=1)
        tensors.add_views(plan)
    if dtype is not None:
        plan.job[0]["maps"]["prediction_dtype"] = dtype_code(dtype)
    row_stride = int(plan.job[0]["row_stride"])
    plan.add_scratch(
        predicted=4 * (1 + TOP) * row_stride,
        offsets=8 * row_stride,
        tables=8 * (num_classes * num_classes + 2 * NUM_BINS),
    )
    return plan


def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature) along `axis`, like `logits` in dtype and strides."""
    probabilities = empty_gradient(logits)
    views = {"logits": _axis_first(logits, axis), "gradient": _axis_first(probabilities, axis)}
    _run_softmax("make_softmax", views, temperature)
    return probabilities


def softmax_gradient(grad_output: Tensor, logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns the gradient in `logits`, where `grad_output` is the gradient in the softmax."""
    gradient = empty_gradient(logits)
    views = {
        "logits": _axis_first(logits, axis),
        "gradient": _axis_first(gradient, axis),
        "grad_output_view": _axis_first(grad_output.to(logits.dtype), axis),
    }
    _run_softmax("make_softmax_gradient", views, temperature)
    return gradient


def _run_softmax(make: str, views: dict[str, Tensor], temperature: float) -> None:
    tensors = _Tensors(None, **views)
    plan: Plan = _plans.get(
        (make, tensors.layouts, temperature), lambda: _plan_softmax(make, tensors, temperature)
    )
    memory = plan.call(tensors.addresses, {}, views["logits"].numel())
    plan.release(memory)
    tensors.copy_back()


def _plan_softmax(make: str, tensors: "_Tensors", temperature: float) -> Plan:
    logits = tensors["logits"]
    assert logits is not None
    num_classes, pixels = logits.shape[1], _num_pixels(logits)
    plan = Plan(Kernel("softmax", make, (("element", _element(logits.dtype)),)), 1, pixels)
    itemsize = ITEMSIZES[dtype_code(loss_dtype(logits))]
    _add_tiles(plan, num_classes, pixels, itemsize)
    plan.add_scratch(extra=(num_classes + 1) * int(plan.job[0]["row_stride"]) * itemsize)
    plan.set(inverse_temperature=1 / temperature)
    tensors.add_views(plan)
    return plan


# -- plans -----------------------------------------------------------------------------------------


def _make_plan(module: str, make: str, inputs: LossInputs, parameters: dict[str, Any]) -> Plan:
    logits, labels = inputs.logits, inputs.labels
    kernel = Kernel(module, make, tuple(parameters.items()))
    plan = Plan(kernel, len(labels), labels.shape[1:].numel() if len(labels) else 0)
    plans.set_options(plan, inputs)
    plan.set(is_weighted=inputs.is_weighted)
    plan.ignored = np.array(inputs.ignored, np.int64)
    plan.set(ignored=plan.ignored.ctypes.data)
    if inputs.options.label_smoothing and inputs.class_weight is None:
        plan.class_weight = np.append(np.ones(logits.shape[1]), [0.0, 0.0])
        plan.set(class_weight=plan.class_weight.ctypes.data, sum_of_class_weights=logits.shape[1])
    return plan


def _add_tiles(plan: Plan, num_classes: int, pixels: int, itemsize: int) -> None:
    """Splits the pixels into chunks of tiles, and adds the scratch memory of a tile."""
    tile = _tile_pixels(num_classes)
    stride = tile + LANES
    num_tiles = -(-pixels // tile)
    per_chunk = min(_CHUNK_ELEMENTS // (max(1, num_classes) * tile), num_tiles // 32)
    plan.set(tile=tile, row_stride=stride)
    plan.split(pixels, max(1, per_chunk) * tile)
    rows = num_classes + _EXTRA_ROWS
    plan.add_scratch(rows=rows * stride * itemsize, classes=4 * stride)


def _tile_pixels(num_classes: int) -> int:
    """Returns the pixels of a tile: its float32 rows take about 75 KiB.

    They fit the second-level cache, and a thread needs little memory. Larger tiles are no faster.
    """
    return max(64, min(1024, -(-18432 // max(num_classes, 1)) + 63) // 64 * 64)


def _plan_upsampled(make: str, inputs: LossInputs, tensors: "_Tensors") -> Plan:
    scores, axes = inputs.logits, inputs.axes
    assert axes is not None
    rows, columns = axes
    if make == "make_loss" and _has_interval_columns(inputs):
        return _plan_interval_columns(inputs, tensors)
    num_classes, element = scores.shape[1], _element(scores.dtype)
    itemsize = ITEMSIZES[dtype_code(loss_dtype(scores))]
    plan = _make_plan("upsampled", make, inputs, {"element": element})
    tile = _tile_pixels(num_classes)
    stride = tile + LANES
    intervals, phases = columns.num_sources + 1, columns.max_targets
    # Split the intervals evenly among the fewest tiles, all phases in one tile if they fit.
    most = max(LANES, tile // max(1, phases) // LANES * LANES)
    tile_intervals = round_up(-(-intervals // -(-intervals // most)), LANES)
    source_stride = round_up(intervals + 1, LANES) + LANES
    phase_stride = round_up(intervals, LANES)
    plan.tables = (
        rows.starts.astype(np.int64),
        rows.weights.flatten().astype(np.float64),
        columns.starts.astype(np.int64),
        _weights_by_phase(columns, phase_stride).astype(element),
    )
    grid = plan.job[0]["grid"]
    for name, value in {
        "num_rows": rows.num_targets,
        "num_columns": columns.num_targets,
        "source_rows": rows.num_sources,
        "source_columns": columns.num_sources,
        "num_phases": phases,
        "tile_intervals": tile_intervals,
        "tile_phases": max(1, min(phases, tile // tile_intervals)),
        # A vector of right sources begins at 1 and ends behind the last source.
        "source_stride": source_stride,
        "phase_stride": phase_stride,
        "has_zero_weights": rows.has_zero_weights or columns.has_zero_weights,
        "row_starts": plan.tables[0].ctypes.data,
        "row_weights": plan.tables[1].ctypes.data,
        "column_starts": plan.tables[2].ctypes.data,
        "column_weights": plan.tables[3].ctypes.data,
    }.items():
        grid[name] = value
    plan.set(tile=tile, row_stride=stride, checks_labels=1)
    interval_rows = rows.num_sources + 1
    plan.split(interval_rows if len(scores) else 0, -(-interval_rows // _MAX_ROW_BLOCKS), 8 * tile)
    plan.add_scratch(
        rows=(num_classes + _EXTRA_ROWS) * stride * itemsize,
        classes=4 * stride,
    )
    pixels = tile_intervals * max(1, phases) + LANES
    sources = (_SOURCE_BLOCKS * num_classes + 1) * source_stride
    corners = _CORNERS * num_classes * tile_intervals + LANES
    for name, num_bytes in {
        "pixel_classes": 4 * pixels,
        "pixel_weights": itemsize * pixels,
        "sources": itemsize * sources,
        "corners": itemsize * corners,
    }.items():
        grid[name] = plan.reserve(num_bytes)
    if tensors["gradient"] is not None:
        blocks = int(plan.job[0]["chunks_per_image"])
        plan.halo_shape = len(scores), blocks, 2, num_classes, columns.num_sources
        plan.halo_dtype = np.dtype(element)
    tensors.add_views(plan)
    return plan


def _has_interval_columns(inputs: LossInputs) -> bool:
    """Returns whether `interval_columns` processes these inputs; `upsampled` does the others."""
    axes = inputs.axes
    assert axes is not None
    return (
        _element(inputs.logits.dtype) == "float32"
        and not inputs.options.label_smoothing
        and not any(axis.has_zero_weights for axis in axes)
        and axes[1].num_targets >= max(1, axes[1].num_sources)
        and _right_weights(axes[1]) is not None
    )


def _right_weights(columns: Axis) -> _Array | None:
    """Returns w [targets] such that x = left + w (right - left); None if there is none.

    At a border the source that does not exist is 0.
    """
    left, right = columns.weights
    behind_last = columns.intervals == columns.num_sources
    weights = np.where(behind_last, 1 - left, right)
    is_border = behind_last | (columns.intervals == 0)
    is_mean = np.abs(left + right - 1) < 1e-9
    return weights if np.all(is_mean | is_border) else None


def _weight_steps(columns: Axis, weights: _Array, size: int) -> tuple[_Array, bool]:
    """Returns the distance of the weights in each interval, float32 [size].

    Also returns whether all weights of an interval have the same distance.
    """
    steps = np.zeros(size)
    follows = np.diff(columns.intervals) == 0
    differences, intervals = np.diff(weights)[follows], columns.intervals[1:][follows]
    steps[intervals] = differences
    is_linear = bool(np.all(np.abs(differences - steps[intervals]) < 1e-9))
    return steps.astype(np.float32), is_linear


def _plan_interval_columns(inputs: LossInputs, tensors: "_Tensors") -> Plan:
    scores, axes = inputs.logits, inputs.axes
    assert axes is not None
    rows, columns = axes
    num_classes = scores.shape[1]
    strips = -(-(columns.num_sources + 1) // LANES)
    num_groups = -(-columns.max_targets // _GROUP_PHASES)
    phases = -(-columns.max_targets // num_groups)
    weights = _right_weights(columns)
    assert weights is not None
    steps, is_linear = _weight_steps(columns, weights, LANES * strips)
    parameters = {
        "phases": phases,
        "anchor_distance": min(4, phases) if is_linear and phases > 2 else 1,
        "has_gradient": tensors["gradient"] is not None,
    }
    plan = _make_plan("interval_columns", "make_loss", inputs, parameters)
    num_phases = phases * num_groups
    plan.tables = (
        rows.starts.astype(np.int64),
        rows.weights.flatten().astype(np.float64),
        columns.starts.astype(np.int64),
        _weights_by_strip(columns, columns.weights, num_phases, strips),
        _weights_by_strip(columns, weights[None], num_phases, strips),
        steps,
    )
    # An odd number of cache lines, so that the classes do not share cache sets.
    source_stride = LANES * ((strips + 1) | 1)
    grid = plan.job[0]["grid"]
    for name, value in {
        "num_rows": rows.num_targets,
        "num_columns": columns.num_targets,
        "source_rows": rows.num_sources,
        "source_columns": columns.num_sources,
        "num_phases": num_phases,
        "source_stride": source_stride,
        "phase_stride": strips * LANES,
        "row_starts": plan.tables[0].ctypes.data,
        "row_weights": plan.tables[1].ctypes.data,
        "column_starts": plan.tables[2].ctypes.data,
        "column_weights": plan.tables[3].ctypes.data,
        "exponent_weights": plan.tables[4].ctypes.data,
        "weight_steps": plan.tables[5].ctypes.data,
    }.items():
        grid[name] = value
    plan.set(tile=_COLUMN_TILE, row_stride=_COLUMN_TILE, checks_labels=1)
    interval_rows = rows.num_sources + 1
    plan.split(
        interval_rows if len(scores) else 0,
        -(-interval_rows // _MAX_ROW_BLOCKS),
        8 * _COLUMN_TILE,
    )
    plan.add_scratch(rows=4 * _COLUMN_TILE, classes=4 * _COLUMN_TILE)
    line = 4 * LANES
    for name, num_bytes in {
        # The values of the pixels by phase, and in their order.
        "pixel_classes": 2 * line * num_phases + line,
        "pixel_weights": 2 * line * num_phases + line,
        "sources": 4 * (_SOURCE_BLOCKS * num_classes + 1) * source_stride,
        "corners": _CORNERS * line * (num_classes + 1),
        "edges": 2 * line * num_classes,
        "exponentials": line * phases * (num_classes + 1),
        "phase_vectors": _PHASE_VECTORS * line * phases,
    }.items():
        grid[name] = plan.reserve(num_bytes)
    if tensors["gradient"] is not None:
        blocks = int(plan.job[0]["chunks_per_image"])
        plan.halo_shape = len(scores), blocks, 2, num_classes, columns.num_sources
        plan.halo_dtype = np.dtype(np.float32)
    tensors.add_views(plan)
    return plan


def _weights_by_strip(columns: Axis, weights: _Array, num_phases: int, strips: int) -> _Array:
    """Returns weights [k, strips, phases, 16].

    Where an interval has no pixel of a phase they are 1/2: 0 times an infinite score would be NaN.
    """
    table = np.full((len(weights), num_phases, strips * LANES), 0.5, np.float32)
    phase = np.arange(columns.num_targets) - columns.starts[columns.intervals]
    table[:, phase, columns.intervals] = weights
    return np.ascontiguousarray(
        table.reshape(len(weights), num_phases, strips, LANES).swapaxes(1, 2)
    )


def scratch_bytes(scores: Tensor, axes: Axes) -> int:
    """Returns the scratch memory of a call with scores [N, C, h, w] that is not negligible.

    Source rows, for each thread and between blocks, are large for wide scores of few rows. Tables
    of weights by phase are large for wide labels of few sources.
    """
    num_images, num_classes, rows, sources = scores.shape
    element = loss_dtype(scores).itemsize
    num_blocks = num_images * min(rows + 1, _MAX_ROW_BLOCKS)
    num_threads = threads.num_threads_for(num_blocks)
    of_threads = _SOURCE_BLOCKS * num_threads
    halo_rows = 2 * num_blocks
    source_rows = element * num_classes * (sources + 3 * LANES) * (of_threads + halo_rows)
    phases, intervals = axes[1].max_targets, sources + LANES
    weights = phases * intervals * 2 * (8 + element)  # computed in float64
    tile_intervals = max(2 * LANES, min(intervals, 1024))
    pixels = phases * tile_intervals * (4 + element) * num_threads
    group = min(phases, _GROUP_PHASES)
    columns = num_classes * LANES * element * (group + _CORNERS + 2) * num_threads
    return source_rows + weights + pixels + columns


def _weights_by_phase(columns: Axis, phase_stride: int) -> _Array:
    """Returns weights [2, phases, intervals], 0 where an interval has no pixel of that phase."""
    weights = np.zeros((2, columns.max_targets, phase_stride))
    phase = np.arange(columns.num_targets) - columns.starts[columns.intervals]
    weights[:, phase, columns.intervals] = columns.weights
    return weights


# -- calls -----------------------------------------------------------------------------------------


def _run(
    plan: Plan,
    inputs: LossInputs,
    tensors: "_Tensors",
    addresses: dict[str, int],
    floats: dict[str, float],
) -> Memory:
    """Runs a kernel that reads labels and reports what is invalid in them and in the weights."""
    invalid_classes = None
    if inputs.class_weight is not None:
        invalid_classes = _invalid_class_weights(inputs.class_weight)
        if invalid_classes is not None and inputs.options.check_labels == "raise":
            _report(inputs, LabelReport(None, None, invalid_classes))
        # The last two are for ignored and invalid labels.
        class_weight = np.append(inputs.class_weight.double().numpy(), [0.0, 0.0])
        addresses["class_weight"] = class_weight.ctypes.data
        floats["sum_of_class_weights"] = math.fsum(class_weight.tolist())
    memory = plan.call(addresses, floats, inputs.labels.numel() * inputs.num_classes)
    if memory.word("num_invalid") or invalid_classes is not None:
        chunks = memory.chunks
        labels = _invalid_values(plan, chunks, "label", inputs.labels)
        weights = inputs.pixel_weight
        pixel_weights = None
        if weights is not None:
            pixel_weights = _invalid_values(plan, chunks, "weight", weights)
        plan.release(memory)
        _report(inputs, LabelReport(labels, pixel_weights, invalid_classes))
    return memory


def _report(inputs: LossInputs, report: LabelReport) -> None:
    error = _labels.error_for(report, inputs.num_classes, inputs.ignored)
    _labels.raise_or_defer(error, inputs.options.check_labels)


def _invalid_values(plan: Plan, chunks: _Array, name: str, values: Tensor) -> InvalidValues | None:
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


def _invalid_class_weights(class_weight: Tensor) -> InvalidValues | None:
    invalid = ~((class_weight >= 0) & class_weight.isfinite())
    if not bool(invalid.any()):
        return None
    index = int(invalid.nonzero()[0])
    return InvalidValues(int(invalid.sum()), (index,), class_weight[index].item())


# -- from tensors to views -------------------------------------------------------------------------

_WITH_CLASSES = "logits", "gradient", "grad_output_view"
_WRITTEN = "gradient", "terms"


class _Tensors:
    """The tensors of a call by the names of their views; keeps them alive.

    Attributes:
        layouts: all that a plan depends on.
        addresses: of the tensors.
    """

    def __init__(self, inputs: LossInputs | None, **others: Tensor | None) -> None:
        self._copies: list[tuple[Tensor, Tensor]] = []
        tensors = others
        if inputs is not None:
            tensors = {
                "logits": inputs.logits,
                "labels": inputs.labels,
                "pixel_weight": _pixel_weight_for(inputs),
                **others,
            }
        self._tensors = {
            name: tensor if tensor.ndim <= 5 else self._copied(name, tensor)
            for name, tensor in tensors.items()
            if tensor is not None
        }
        self.layouts = tuple((name, layout(tensor)) for name, tensor in self._tensors.items())
        self.addresses = {name: tensor.data_ptr() for name, tensor in self._tensors.items()}

    def __getitem__(self, name: str) -> Tensor | None:
        return self._tensors.get(name)

    def add_views(self, plan: Plan) -> None:
        """Describes the tensors to a plan."""
        for name, tensor in self._tensors.items():
            plan.add_view(name, tensor, has_classes=name in _WITH_CLASSES)

    def copy_back(self) -> None:
        """Copies results that kernels wrote to contiguous copies into their tensors."""
        for tensor, copy in self._copies:
            tensor.copy_(copy)

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        """Returns a contiguous copy if more than three spatial axes cannot be merged."""
        if len(merged_axes(tensor, 2 if name in _WITH_CLASSES else 1)) <= 3:
            return tensor
        copy = tensor.contiguous()
        if name in _WRITTEN:
            self._copies.append((tensor, copy))
        return copy


def _num_pixels(logits: Tensor) -> int:
    """Returns the pixels of an image; a batch without images counts as one image without pixels."""
    return logits.shape[2:].numel() if len(logits) else 0


def _element(dtype: torch.dtype) -> str:
    """Returns the dtype that kernels compute logits of this dtype in."""
    return "float64" if dtype == torch.float64 else "float32"


def _is_dense(tensor: Tensor) -> bool:
    """Returns whether the pixels of each class of an image are adjacent."""
    axes = merged_axes(tensor, 2)
    return not axes or (len(axes) == 1 and axes[0][1] == 1)


def _has_whole_lines(gradient: Tensor) -> bool:
    """Returns whether each 16 pixels of each class are a cache line of float32."""
    strides = (gradient.stride(0), gradient.stride(1), gradient.shape[2:].numel())
    return (
        gradient.dtype == torch.float32
        and _is_dense(gradient)
        and gradient.data_ptr() % plans.CACHE_LINE == 0
        and all(stride % LANES == 0 for stride in strides)
    )


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
