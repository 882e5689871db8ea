"""The maps of `predict`, without labels."""

import numpy as np
import torch
from torch import Tensor

from seg_loss._inputs import loss_dtype
from seg_loss.cpu.arguments import Tensors, add_tiles, element_of, num_pixels, plans
from seg_loss.cpu.cache import Kernel
from seg_loss.cpu.plan import Plan, dtype_code, round_up
from seg_loss.cpu.records import ITEMSIZES, LANES, PACKED_PIXELS, TOP
from seg_loss.cpu.target import target
from seg_loss.cpu.upsampled_loss import add_grid, add_interpolated_tiles, weights_by_strip
from seg_loss.upsampling import Axes

# The phases of a group in `best_class`, and with AVX-512. Each has a vector of scores and one of
# classes, which should be in registers. Few choices mean few kernels.
_GROUPS = {"float32": (1, 2), "float64": (1,)}
_GROUPS_OF_AVX512 = {"float32": (1, 2, 4, 8), "float64": (1, 2, 4)}
# Instructions of a group for a class, beside five for each phase.
_GROUP_COST = 4
# Pixels of an interval from which on `best_class` looks for candidates.
_MIN_PIXELS_FOR_CANDIDATES = 4


def predict(scores: Tensor, axes: Axes | None, temperature: float, maps: dict[str, Tensor]) -> None:
    """Fills the maps [N, *spatial] of the scores [N, C, *spatial], or of upsampled scores."""
    tensors = Tensors(None, logits=scores)
    classes = maps.get("prediction", maps.get("top_classes"))
    dtype = torch.uint8 if classes is None else classes.dtype
    is_prediction = maps.keys() == {"prediction"}
    key = "predict", tensors.layouts, axes, temperature, dtype, is_prediction
    plan: Plan = plans.get(
        key, lambda: _plan(scores, axes, tensors, temperature, dtype, is_prediction)
    )
    addresses = tensors.addresses
    for name, values in maps.items():
        addresses[f"maps.{name}"] = values.data_ptr()
    num_elements = scores.shape[1] * next(iter(maps.values())).numel()
    plan.release(plan.call(addresses, {}, num_elements))


def _plan(
    scores: Tensor,
    axes: Axes | None,
    tensors: Tensors,
    temperature: float,
    dtype: torch.dtype,
    is_prediction: bool,
) -> Plan:
    element = element_of(scores.dtype)
    if axes is None:
        plan = _empty_plan(
            "predict", "make_tiles", len(scores), num_pixels(scores), element=element
        )
        itemsize = ITEMSIZES[dtype_code(loss_dtype(scores))]
        add_tiles(plan, scores.shape[1], num_pixels(scores), itemsize)
        tensors.add_views(plan)
    elif is_prediction:
        plan = _plan_best_class(scores, axes, tensors)
    else:
        pixels = axes[0].num_targets * axes[1].num_targets
        plan = _empty_plan("predict", "make_upsampled", len(scores), pixels, element=element)
        add_interpolated_tiles(plan, scores, axes, tensors)
    plan.set(inverse_temperature=1 / temperature)
    plan.job[0]["maps"]["prediction_dtype"] = dtype_code(dtype)
    row_stride = int(plan.job[0]["row_stride"])
    plan.add_scratch(predicted=4 * (1 + TOP) * row_stride, offsets=8 * row_stride)
    return plan


def _empty_plan(
    module: str, make: str, num_images: int, pixels: int, **parameters: str | int
) -> Plan:
    return Plan(Kernel(module, make, tuple(parameters.items())), num_images, pixels)


def _plan_best_class(scores: Tensor, axes: Axes, tensors: Tensors) -> Plan:
    """Plans `best_class`."""
    rows, columns = axes
    num_classes, element = scores.shape[1], element_of(scores.dtype)
    itemsize = np.dtype(element).itemsize
    strips = -(-(columns.num_sources + 1) // LANES)
    groups = (_GROUPS_OF_AVX512 if target().has_avx512 else _GROUPS)[element]
    phases = min(
        groups,
        key=lambda phases: -(-columns.max_targets // phases) * (5 * phases + _GROUP_COST),
    )
    num_phases = round_up(max(1, columns.max_targets), phases)
    has_gaps = any(np.any(axis.weights.sum(axis=0) == 0) for axis in axes)
    pixels = rows.num_targets * columns.num_targets
    plan = _empty_plan(
        "best_class",
        "make_prediction",
        len(scores),
        pixels,
        element=element,
        phases=phases,
        skips_zero_weights=any(axis.has_zero_weights for axis in axes),
    )
    plan.set(tile=pixels)
    source_stride = LANES * (strips + 2)
    line = LANES * itemsize
    weights = weights_by_strip(columns, columns.weights, num_phases, strips, element)
    sizes = {
        "num_phases": num_phases,
        "source_stride": source_stride,
        "phase_stride": strips * LANES,
        # Where all weights of a pixel are 0, all classes are equal, whatever the scores are.
        "has_candidates": not has_gaps
        and pixels >= _MIN_PIXELS_FOR_CANDIDATES * rows.num_sources * columns.num_sources,
    }
    block = 2 * num_classes * source_stride * itemsize
    scratch = {
        "sources": block,
        "distances": block,
        "tops": 2 * source_stride * itemsize,
        "highest": line * num_classes,
        "edges": 2 * line * num_classes,
        "candidates": 2 * 4 * num_classes,
        # The phases, and the words that they are packed into.
        "pixel_classes": 4 * LANES * 2 * (num_phases + PACKED_PIXELS),
        "strip_pixels": LANES * num_phases + num_phases + PACKED_PIXELS,
    }
    tables = {"column_weights": weights}
    add_grid(plan, scores, axes, tensors, tables=tables, sizes=sizes, scratch=scratch)
    return plan
