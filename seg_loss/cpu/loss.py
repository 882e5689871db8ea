"""The loss of logits as large as the labels, its gradient, and the terms of the pixels."""

import torch
from torch import Tensor

from seg_loss._inputs import LossInputs, loss_dtype
from seg_loss.cpu.arguments import (
    COLUMN_CHUNK,
    COLUMN_TILE,
    Tensors,
    add_tiles,
    element_of,
    fits_column,
    has_adjacent_classes,
    has_whole_lines,
    is_dense,
    make_plan,
    num_pixels,
    plans,
    run,
    split_columns,
)
from seg_loss.cpu.plan import Plan, dtype_code, round_up
from seg_loss.cpu.records import ITEMSIZES, LANES, MANY_CLASSES_TILE
from seg_loss.cpu.target import target


def cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the loss and its divisor; fills `gradient`, which may be the logits, if given.

    The divisor is float64 [2]: D and 1 / (D temperature).
    """
    loss = torch.empty((), dtype=loss_dtype(inputs.logits), device="cpu")
    divisor = torch.empty(2, dtype=torch.float64, device="cpu")
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
    tensors = Tensors(inputs, terms=terms, gradient=gradient)
    key = "loss", tensors.layouts, inputs.class_weight is None, inputs.options, known is None
    plan: Plan = plans.get(key, lambda: _plan_loss(inputs, tensors, checks_labels=known is None))
    floats = {} if known is None else {"known_divisor": known[0], "grad_output": known[1]}
    addresses = tensors.addresses
    if loss is not None:
        addresses["loss"] = loss.data_ptr()
    if divisor is not None:
        addresses["divisor"] = divisor.data_ptr()
    memory = run(plan, inputs, tensors, addresses, floats)
    plan.release(memory)
    tensors.copy_back()


def _plan_loss(inputs: LossInputs, tensors: Tensors, *, checks_labels: bool) -> Plan:
    logits = inputs.logits
    element = element_of(logits.dtype)
    if fits_column(inputs):
        plan = _plan_columns(inputs, tensors["gradient"])
    elif element == "float32" and not inputs.options.label_smoothing:
        plan = _plan_many_classes(inputs, tensors["gradient"])
    else:
        plan = make_plan("cross_entropy", "make_tiles", inputs, {"element": element})
        itemsize = ITEMSIZES[dtype_code(loss_dtype(logits))]
        add_tiles(plan, logits.shape[1], num_pixels(logits), itemsize)
    plan.set(checks_labels=checks_labels)
    tensors.add_views(plan)
    return plan


def _plan_columns(inputs: LossInputs, gradient: Tensor | None) -> Plan:
    logits = inputs.logits
    num_classes = logits.shape[1]
    parameters = {
        "num_classes": num_classes if target().has_avx512 else None,
        "dtype_code": dtype_code(logits.dtype),
        "has_gradient": gradient is not None,
        "bypasses_caches": has_whole_lines(gradient),
        "classes_adjacent": has_adjacent_classes(logits, gradient),
    }
    plan = make_plan("cross_entropy", "make_columns", inputs, parameters)
    plan.set(tile=COLUMN_TILE, row_stride=COLUMN_TILE, is_dense=is_dense(logits, gradient))
    split_columns(plan, num_pixels(logits))
    plan.add_scratch(
        rows=4 * COLUMN_TILE,
        factors=4 * COLUMN_TILE,
        classes=4 * COLUMN_TILE,
        extra=8 * LANES + 2 * 4 * LANES * num_classes,
    )
    return plan


def _plan_many_classes(inputs: LossInputs, gradient: Tensor | None) -> Plan:
    logits = inputs.logits
    is_float32 = logits.dtype == torch.float32
    parameters = {
        "dtype_code": dtype_code(logits.dtype),
        "has_gradient": gradient is not None,
        "bypasses_caches": has_whole_lines(gradient),
        "classes_adjacent": is_float32 and has_adjacent_classes(logits, gradient),
    }
    plan = make_plan("many_classes", "make_many_classes", inputs, parameters)
    stride = MANY_CLASSES_TILE + LANES
    # Rows of three tiles, which begin at different sets of the caches.
    rows = round_up(logits.shape[1] * stride, 1024) + 336
    plan.set(tile=MANY_CLASSES_TILE, row_stride=rows, is_dense=is_dense(logits, gradient))
    plan.split(num_pixels(logits), COLUMN_CHUNK)
    plan.add_scratch(rows=3 * 4 * rows, factors=9 * 4 * stride, classes=4 * stride, extra=8 * LANES)
    return plan
