"""The loss of upsampled scores, with its gradient."""

import numpy as np
import torch
from torch import Tensor

from seg_loss._inputs import LossInputs, loss_dtype
from seg_loss.cpu import threads
from seg_loss.cpu.arguments import (
    COLUMN_TILE,
    Array,
    Tensors,
    element_of,
    make_plan,
    plans,
    run,
    tile_pixels,
)
from seg_loss.cpu.plan import Plan, dtype_code, round_up
from seg_loss.cpu.records import (
    ITEMSIZES,
    LANES,
    NUM_CORNERS,
    NUM_EXTRA_ROWS,
    NUM_PHASE_VECTORS,
    NUM_SOURCE_BLOCKS,
)
from seg_loss.upsampling import Axes, Axis

# The largest number of row blocks of an image of upsampled scores; each keeps two source rows. A
# power of two of source rows has one more interval row.
_MAX_ROW_BLOCKS = 33
_GROUP_PHASES = 8  # the most phases of a group; see `interval_columns`


def upsampled_cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> Tensor:
    """Returns the loss; fills `gradient` [N, C, h, w], which may be the scores, if given."""
    loss = torch.empty((), dtype=loss_dtype(inputs.logits), device="cpu")
    tensors = Tensors(inputs, gradient=gradient)
    key = "upsampled", tensors.layouts, inputs.class_weight is None, inputs.options
    plan: Plan = plans.get(key, lambda: plan_upsampled("make_loss", inputs, tensors))
    addresses = tensors.addresses
    addresses["loss"] = loss.data_ptr()
    memory = run(plan, inputs, tensors, addresses, {})
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


def plan_upsampled(make: str, inputs: LossInputs, tensors: Tensors) -> Plan:
    """Returns the plan of the loss (`make_loss`) or of the evaluation (`make_evaluate`)."""
    scores, axes = inputs.logits, inputs.axes
    assert axes is not None
    if make == "make_loss" and _has_interval_columns(inputs):
        return _plan_interval_columns(inputs, tensors)
    plan = make_plan("upsampled", make, inputs, {"element": element_of(scores.dtype)})
    plan.set(checks_labels=1)
    add_interpolated_tiles(plan, scores, axes, tensors)
    return plan


def add_interpolated_tiles(plan: Plan, scores: Tensor, axes: Axes, tensors: Tensors) -> None:
    """Adds the grid and the tiles of interpolated logits to a plan."""
    rows, columns = axes
    num_classes, element = scores.shape[1], element_of(scores.dtype)
    itemsize = ITEMSIZES[dtype_code(loss_dtype(scores))]
    tile = tile_pixels(num_classes)
    stride = tile + LANES
    intervals, phases = columns.num_sources + 1, columns.max_targets
    # Split the intervals evenly among the fewest tiles, all phases in one tile if they fit.
    most = max(LANES, tile // max(1, phases) // LANES * LANES)
    tile_intervals = round_up(-(-intervals // -(-intervals // most)), LANES)
    source_stride = round_up(intervals + 1, LANES) + LANES
    phase_stride = round_up(intervals, LANES)
    weights = _weights_by_phase(columns, phase_stride).astype(element)
    plan.set(tile=tile, row_stride=stride)
    plan.add_scratch(rows=(num_classes + NUM_EXTRA_ROWS) * stride * itemsize, classes=4 * stride)
    pixels = tile_intervals * max(1, phases) + LANES
    sizes = {
        "num_phases": phases,
        "tile_intervals": tile_intervals,
        "tile_phases": max(1, min(phases, tile // tile_intervals)),
        # A vector of right sources begins at 1 and ends behind the last source.
        "source_stride": source_stride,
        "phase_stride": phase_stride,
        "has_zero_weights": rows.has_zero_weights or columns.has_zero_weights,
    }
    scratch = {
        "pixel_classes": 4 * pixels,
        "pixel_weights": itemsize * pixels,
        "sources": itemsize * (NUM_SOURCE_BLOCKS * num_classes + 1) * source_stride,
        "corners": itemsize * (NUM_CORNERS * num_classes * tile_intervals + LANES),
    }
    tables = {"column_weights": weights}
    add_grid(plan, scores, axes, tensors, tables=tables, sizes=sizes, scratch=scratch)


def add_grid(
    plan: Plan,
    scores: Tensor,
    axes: Axes,
    tensors: Tensors,
    *,
    tables: dict[str, Array],
    sizes: dict[str, int],
    scratch: dict[str, int],
) -> None:
    """Adds the interpolation grid to a plan, and splits it into blocks of interval rows.

    Args:
        plan: the plan, with its tile.
        scores, axes: those of the call.
        tensors: the tensors of the call.
        tables: arrays that the grid refers to by address, beside the starts and the row weights.
        sizes: fields of the grid.
        scratch: bytes of the parts of a thread's scratch memory.
    """
    rows, columns = axes
    tables = {
        "row_starts": rows.starts.astype(np.int64),
        "row_weights": rows.weights.flatten().astype(np.float64),
        # The lanes behind the last interval have no pixel.
        "column_starts": np.pad(columns.starts.astype(np.int64), (0, LANES), mode="edge"),
        **tables,
    }
    plan.tables = tuple(tables.values())
    fields = {
        "num_rows": rows.num_targets,
        "num_columns": columns.num_targets,
        "source_rows": rows.num_sources,
        "source_columns": columns.num_sources,
        **sizes,
        **{name: table.ctypes.data for name, table in tables.items()},
        **{name: plan.reserve(num_bytes) for name, num_bytes in scratch.items()},
    }
    for name, value in fields.items():
        plan.job[0]["grid"][name] = value
    interval_rows = rows.num_sources + 1
    plan.split(
        interval_rows if len(scores) else 0,
        -(-interval_rows // _MAX_ROW_BLOCKS),
        8 * int(plan.job[0]["tile"]),
    )
    if tensors["gradient"] is not None:
        blocks = int(plan.job[0]["chunks_per_image"])
        plan.halo_shape = len(scores), blocks, 2, scores.shape[1], columns.num_sources
        plan.halo_dtype = np.dtype(element_of(scores.dtype))
    tensors.add_views(plan)


def _has_interval_columns(inputs: LossInputs) -> bool:
    """Returns whether `interval_columns` processes these inputs; `upsampled` does the others."""
    axes = inputs.axes
    assert axes is not None
    return (
        element_of(inputs.logits.dtype) == "float32"
        and not inputs.options.label_smoothing
        and not any(axis.has_zero_weights for axis in axes)
        and axes[1].num_targets >= max(1, axes[1].num_sources)
        and _right_weights(axes[1]) is not None
    )


def _right_weights(columns: Axis) -> Array | None:
    """Returns w [targets] such that x = left + w (right - left); None if there is none.

    At a border the source that does not exist is 0.
    """
    left, right = columns.weights
    behind_last = columns.intervals == columns.num_sources
    weights = np.where(behind_last, 1 - left, right)
    is_border = behind_last | (columns.intervals == 0)
    is_mean = np.abs(left + right - 1) < 1e-9
    return weights if np.all(is_mean | is_border) else None


def _weight_steps(columns: Axis, weights: Array, size: int) -> tuple[Array, bool]:
    """Returns the distance of the weights in each interval, float32 [size].

    Also returns whether all weights of an interval have the same distance.
    """
    steps = np.zeros(size)
    follows = np.diff(columns.intervals) == 0
    differences, intervals = np.diff(weights)[follows], columns.intervals[1:][follows]
    steps[intervals] = differences
    is_linear = bool(np.all(np.abs(differences - steps[intervals]) < 1e-9))
    return steps.astype(np.float32), is_linear


def _plan_interval_columns(inputs: LossInputs, tensors: Tensors) -> Plan:
    scores, axes = inputs.logits, inputs.axes
    assert axes is not None
    _, columns = axes
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
    plan = make_plan("interval_columns", "make_loss", inputs, parameters)
    num_phases = phases * num_groups
    # An odd number of cache lines, so that the classes do not share cache sets.
    source_stride = LANES * ((strips + 1) | 1)
    plan.set(tile=COLUMN_TILE, row_stride=COLUMN_TILE, checks_labels=1)
    plan.add_scratch(rows=4 * COLUMN_TILE, classes=4 * COLUMN_TILE)
    tables = {
        "column_weights": weights_by_strip(columns, columns.weights, num_phases, strips),
        "exponent_weights": weights_by_strip(columns, weights[None], num_phases, strips),
        "weight_steps": steps,
    }
    sizes = {
        "num_phases": num_phases,
        "source_stride": source_stride,
        "phase_stride": strips * LANES,
    }
    line = 4 * LANES
    scratch = {
        # The values of the pixels by phase, and in their order.
        "pixel_classes": 2 * line * num_phases + line,
        "pixel_weights": 2 * line * num_phases + line,
        "sources": 4 * (NUM_SOURCE_BLOCKS * num_classes + 1) * source_stride,
        "corners": NUM_CORNERS * line * (num_classes + 1),
        "edges": 2 * line * num_classes,
        "exponentials": line * phases * (num_classes + 1),
        "phase_vectors": NUM_PHASE_VECTORS * line * phases,
    }
    add_grid(plan, scores, axes, tensors, tables=tables, sizes=sizes, scratch=scratch)
    return plan


def weights_by_strip(
    columns: Axis, weights: Array, num_phases: int, strips: int, element: str = "float32"
) -> Array:
    """Returns weights [k, strips, phases, 16].

    Where an interval has no pixel of a phase they are 1/2: 0 times an infinite score would be NaN.
    """
    table = np.full((len(weights), num_phases, strips * LANES), 0.5, element)
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
    of_threads = NUM_SOURCE_BLOCKS * num_threads
    halo_rows = 2 * num_blocks
    source_rows = element * num_classes * (sources + 3 * LANES) * (of_threads + halo_rows)
    phases, intervals = axes[1].max_targets, sources + LANES
    weights = phases * intervals * 2 * (8 + element)  # computed in float64
    tile_intervals = max(2 * LANES, min(intervals, 1024))
    pixels = phases * tile_intervals * (4 + element) * num_threads
    group = min(phases, _GROUP_PHASES)
    columns = num_classes * LANES * element * (group + NUM_CORNERS + 2) * num_threads
    return source_rows + weights + pixels + columns


def _weights_by_phase(columns: Axis, phase_stride: int) -> Array:
    """Returns weights [2, phases, intervals], 0 where an interval has no pixel of that phase."""
    weights = np.zeros((2, columns.max_targets, phase_stride))
    phase = np.arange(columns.num_targets) - columns.starts[columns.intervals]
    weights[:, phase, columns.intervals] = columns.weights
    return weights
