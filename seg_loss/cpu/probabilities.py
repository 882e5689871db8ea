"""The softmax along any axis, and its gradient."""

import torch
from torch import Tensor

from seg_loss._inputs import loss_dtype
from seg_loss.cpu.arguments import (
    MAX_COLUMN_CLASSES,
    WITH_CLASSES,
    Tensors,
    add_tiles,
    element_of,
    has_whole_lines,
    is_dense,
    num_pixels,
    plans,
    split_columns,
)
from seg_loss.cpu.cache import Kernel
from seg_loss.cpu.memory import empty_gradient
from seg_loss.cpu.plan import Plan, dtype_code
from seg_loss.cpu.records import ITEMSIZES, LANES
from seg_loss.cpu.target import target


def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature) along `axis`, like `logits` in dtype and strides."""
    probabilities = empty_gradient(logits)
    views = {"logits": _axis_first(logits, axis), "gradient": _axis_first(probabilities, axis)}
    _run_softmax("make_softmax", views, temperature)
    return probabilities


def softmax_gradient(
    grad_output: Tensor, logits: Tensor, weight: Tensor | None, axis: int, temperature: float
) -> Tensor:
    """Returns weight * p (g - sum_c g_c p_c) / temperature for g = grad_output."""
    gradient = empty_gradient(logits)
    views = {
        "logits": _axis_first(logits, axis),
        "gradient": _axis_first(gradient, axis),
        "grad_output_view": _axis_first(grad_output.to(logits.dtype), axis),
    }
    if weight is not None:
        views["pixel_weight"] = weight.to(loss_dtype(logits)).unsqueeze(0)
    _run_softmax("make_gradient", views, temperature)
    return gradient


def _run_softmax(make: str, views: dict[str, Tensor], temperature: float) -> None:
    tensors = Tensors(None, **views)
    plan: Plan = plans.get(
        (make, tensors.layouts, temperature), lambda: _plan_softmax(make, tensors, temperature)
    )
    memory = plan.call(tensors.addresses, {}, views["logits"].numel())
    plan.release(memory)
    tensors.copy_back()


def _plan_softmax(make: str, tensors: Tensors, temperature: float) -> Plan:
    views = [tensors[name] for name in WITH_CLASSES]
    logits = tensors["logits"]
    assert logits is not None
    num_classes, pixels = logits.shape[1], num_pixels(logits)
    if 1 <= num_classes <= MAX_COLUMN_CLASSES and logits.dtype != torch.float64:
        parameters = {
            "num_classes": num_classes if target().has_avx512 else None,
            "dtype_code": dtype_code(logits.dtype),
            "bypasses_caches": has_whole_lines(tensors["gradient"]),
        }
        kernel = Kernel("softmax", f"{make}_columns", tuple(parameters.items()))
        plan = Plan(kernel, 1, pixels)
        plan.set(is_dense=is_dense(*views))
        split_columns(plan, pixels)
        plan.add_scratch(extra=8 * LANES + 3 * 4 * LANES * num_classes, rows=4 * LANES)
    else:
        kernel = Kernel("softmax", f"{make}_tiles", (("element", element_of(logits.dtype)),))
        plan = Plan(kernel, 1, pixels)
        itemsize = ITEMSIZES[dtype_code(loss_dtype(logits))]
        add_tiles(plan, num_classes, pixels, itemsize)
        plan.add_scratch(extra=(num_classes + 1) * int(plan.job[0]["row_stride"]) * itemsize)
    plan.set(inverse_temperature=1 / temperature)
    tensors.add_views(plan)
    return plan


def _axis_first(tensor: Tensor, axis: int) -> Tensor:
    """Returns a view [1, C, *rest]."""
    return tensor.movedim(axis, 0).unsqueeze(0)
