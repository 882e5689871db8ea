"""The loss of upsampled scores, with its gradient."""

import numpy as np
import torch
from torch import Tensor

from seg_loss._inputs import LossInputs, loss_dtype
from seg_loss.cpu import threads
from seg_loss.cpu.arguments import (
    EXTRA_ROWS,
    Array,
    Tensors,
    element_of,
    make_plan,
    plans,
    run,
    tile_pixels,
)
from seg_loss.cpu.plan import Memory, Plan, dtype_code, round_up
from seg_loss.cpu.records import ITEMSIZES, LANES
from seg_loss.upsampling import Axes, Axis

# The largest number of row blocks of an image of upsampled scores; each keeps two source rows.
_MAX_ROW_BLOCKS = 32
# Blocks of source rows, and of corners, of upsampled scores; see `upsampled`.
_SOURCE_BLOCKS, _CORNERS = 4, 4


def upsampled_cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> Tensor:
    """Returns the loss; fills `gradient` [N, C, h, w], which may be the scores, if given."""
    loss = torch.empty((), dtype=loss_dtype(inputs.logits))
    tensors = Tensors(inputs, gradient=gradient)
    key = "upsampled", tensors.layouts, inputs.class_weight is None, inputs.options
    plan: Plan = plans.get(key, lambda: plan_upsampled("make_loss", inputs, tensors))
    addresses = tensors.addresses
    addresses["loss"] = loss.data_ptr()
    memory = run(plan, inputs, tensors, addresses, {})
    if gradient is not None:
        _add_halo_rows(plan, memory, gradient)
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
    scores, axes = inputs.logits, inputs.axes
    assert axes is not None
    rows, columns = axes
    num_classes, element = scores.shape[1], element_of(scores.dtype)
    itemsize = ITEMSIZES[dtype_code(loss_dtype(scores))]
    plan = make_plan("upsampled", make, inputs, {"element": element})
    tile = tile_pixels(num_classes)
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
        rows=(num_classes + EXTRA_ROWS) * stride * itemsize,
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


def _add_halo_rows(plan: Plan, memory: Memory, gradient: Tensor) -> None:
    """Writes the gradient of the source rows between blocks: the sum of their two halo rows."""
    job = plan.job[0]
    step, blocks = int(job["chunk_units"]), int(job["chunks_per_image"])
    between = [step * k - 1 for k in range(1, blocks)]
    if between and len(gradient):
        halo_rows = memory.halo_rows
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
    of_threads = _SOURCE_BLOCKS * num_threads
    halo_rows = 3 * num_blocks  # two of each block, and one of each sum
    source_rows = element * num_classes * (sources + 2 * LANES) * (of_threads + halo_rows)
    phases, intervals = axes[1].max_targets, sources + LANES
    weights = phases * intervals * 2 * (8 + element)  # computed in float64
    pixels = phases * min(intervals, 1024) * (4 + element) * num_threads
    return source_rows + weights + pixels


def _weights_by_phase(columns: Axis, phase_stride: int) -> Array:
    """Returns weights [2, phases, intervals], 0 where an interval has no pixel of that phase."""
    weights = np.zeros((2, columns.max_targets, phase_stride))
    phase = np.arange(columns.num_targets) - columns.starts[columns.intervals]
    weights[:, phase, columns.intervals] = columns.weights
    return weights
