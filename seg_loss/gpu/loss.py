"""Launches the loss of full-size logits, its gradient, and the terms of the pixels.

A loss takes three kernel launches: the label check; one pass that reads the logits and writes the
gradient; and the sum of the partial losses.

Bytes per pixel with labels of one byte, for elements of E bytes: the loss alone C E + 2; loss and
gradient 2 C E + 2, which includes autograd's gradient for a `grad_output` of 1; a backward pass for
another `grad_output` 2 C E + 1 more. Temporary memory is 8 bytes per tile of pixels, less than one
byte per pixel, and is kept for later calls.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from seg_loss._inputs import LossInputs, loss_dtype
from seg_loss.gpu import cross_entropy as cross_entropy_kernels
from seg_loss.gpu import many_classes as many_classes_kernels
from seg_loss.gpu import tiling
from seg_loss.gpu.arguments import (
    can_start_early,
    compiler_options,
    copy_back,
    early_options,
    empty,
    finite_or_none,
    ignored_classes,
    option_bits,
    plan_key,
    plans,
    prepare,
    tile_logits,
)
from seg_loss.gpu.label_check import CheckPlan, check_labels, plan_check
from seg_loss.gpu.plan import Launch, current_stream, on_device, workspace


@dataclass(frozen=True)
class _LossPlan:
    """Launches of a loss.

    Attributes:
        check: the label check.
        tiles: the pass over the logits; None without any pixel.
        num_partials: number of partial sums of that pass.
        sum: their sum.
    """

    check: CheckPlan
    tiles: Launch | None
    num_partials: int
    sum: Launch


def cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the loss and its divisor; fills `gradient`, which may be the logits, if given.

    The divisor is float64 [2]: D and 1 / (D temperature), for `cross_entropy_gradient`.
    """
    inputs, gradient, copied = prepare(inputs, gradient)
    with on_device(inputs.logits):
        plan: _LossPlan = plans.get(
            plan_key("loss", inputs, gradient), lambda: _plan_loss(inputs, gradient)
        )
        stream = current_stream(inputs.logits)
        ints, partial = workspace(
            inputs.logits, stream, plan.check.num_ints, plan.num_partials + tiling.MAX_SUM_PROGRAMS
        )
        check = check_labels(plan.check, inputs, stream, ints)
        loss = empty(inputs.logits, (), loss_dtype(inputs.logits))
        if plan.tiles is not None:
            _run_tiles(plan.tiles, stream, inputs, gradient, check.divisor, partial=partial)
        plan.sum(stream, partial, ints, check.divisor, loss)
        copy_back(gradient, copied)
        check.raise_if_invalid()
    return loss, check.divisor


def cross_entropy_gradient(
    inputs: LossInputs,
    divisor: Tensor | None,
    grad_output: Tensor | None,
    gradient: Tensor,
    *,
    skip_if_unit_grad: bool,
) -> None:
    """Fills `gradient` with grad_output / D * d(sum of terms) / d(logits); None stands for 1.

    With `skip_if_unit_grad`, `gradient` already holds the result for a `grad_output` of 1, and the
    device leaves it unchanged if `grad_output` is 1.
    """
    if not gradient.numel():
        return
    keep = gradient if skip_if_unit_grad else None
    inputs, written, copied = prepare(inputs, gradient, keep)
    with on_device(inputs.logits):
        launch: Launch = plans.get(
            plan_key("gradient", inputs, written, divisor, grad_output, skip_if_unit_grad),
            lambda: _plan_tiles(inputs, written, skip_if_unit_grad=skip_if_unit_grad)[0],
        )
        stream = current_stream(inputs.logits)
        _run_tiles(launch, stream, inputs, written, divisor, grad_output=grad_output)
        copy_back(written, copied)


def pixel_terms(inputs: LossInputs, terms: Tensor) -> None:
    """Fills `terms` [N, *spatial], contiguous."""
    inputs, _, _ = prepare(inputs, None)
    with on_device(inputs.logits):
        plan: _LossPlan = plans.get(
            plan_key("terms", inputs, terms), lambda: _plan_loss(inputs, None)
        )
        stream = current_stream(inputs.logits)
        ints, _ = workspace(terms, stream, plan.check.num_ints, 0)
        check = check_labels(plan.check, inputs, stream, ints)
        if plan.tiles is not None:
            _run_tiles(plan.tiles, stream, inputs, None, None, terms=terms)
        check.raise_if_invalid()


def _plan_loss(inputs: LossInputs, gradient: Tensor | None) -> _LossPlan:
    tiles, num_partials = None, 0
    if inputs.labels.numel():
        tiles, num_partials = _plan_tiles(inputs, gradient, is_early=can_start_early(inputs.logits))
    return _LossPlan(
        plan_check(inputs, has_early_next=can_start_early(inputs.logits)),
        tiles,
        num_partials,
        plan_sum(inputs.logits, num_partials),
    )


def plan_sum(logits: Tensor, num_partials: int) -> Launch:
    """Returns the launch of a sum of partial losses."""
    programs = num_sum_programs(num_partials)
    return Launch(
        cross_entropy_kernels.sum_partials_kernel,
        programs,
        (num_partials,),
        **sum_options(programs),
        **early_options(can_start_early(logits)),
    )


def num_sum_programs(num_partials: int) -> int:
    """Returns the programs that add partial losses; each adds at least one block."""
    return max(1, min(-(-num_partials // tiling.SUM_BLOCK), tiling.MAX_SUM_PROGRAMS))


def sum_options(programs: int) -> dict[str, int]:
    """Returns the constants of a kernel whose first programs add partial losses."""
    return {
        "BLOCK": tiling.SUM_BLOCK,
        "PADDED_PROGRAMS": triton.next_power_of_2(programs),
        "num_warps": tiling.SUM_WARPS,
    }


def _plan_tiles(
    inputs: LossInputs,
    gradient: Tensor | None,
    *,
    skip_if_unit_grad: bool = False,
    is_early: bool = False,
) -> tuple[Launch, int]:
    """Returns the launch of a pass over the logits for `_run_tiles`, and its number of tiles.

    If it `is_early`, it starts before the label check, which must come right before it, has ended.
    """
    tiles = tile_logits(inputs.logits, gradient)
    assert tiles is not None
    if inputs.options.label_smoothing != 0:
        tiles = tiles.for_smoothing(inputs.logits.dtype.itemsize)
    shape, num_classes = tiles.shape, inputs.num_classes
    num_tiles = tiles.num_images * tiles.tiles
    options = {
        "C": num_classes,
        "BLOCK_C": shape.classes,
        "BLOCK_P": shape.pixels,
        "IS_SMOOTHED": inputs.options.label_smoothing != 0,
        "MAX_NLL": finite_or_none(inputs.options.max_nll),
        "SKIP_IF_UNIT_GRAD": skip_if_unit_grad,
        **compiler_options(shape, inputs.logits),
    }
    if num_classes <= tiling.MAX_CLASSES_IN_REGISTERS:
        options |= early_options(is_early)
    programs = min(num_tiles, tiling.BACKWARD_PROGRAMS) if skip_if_unit_grad else num_tiles
    if num_classes <= tiling.MAX_FLAT_CLASSES and tiles.is_dense_channels_last:
        pixels = tiles.num_images * tiles.pixels
        shape = tiling.SMOOTHED_FLAT if options["IS_SMOOTHED"] else tiling.FLAT
        if inputs.logits.dtype == torch.float64:
            shape = tiling.DOUBLE_FLAT
        num_tiles = -(-pixels // shape.pixels)
        programs = min(num_tiles, tiling.BACKWARD_PROGRAMS) if skip_if_unit_grad else num_tiles
        options |= {
            "BLOCK_C": triton.next_power_of_2(num_classes),
            "BLOCK_P": shape.pixels,
            "BLOCK": triton.next_power_of_2(num_classes * shape.pixels),
            "HAS_ALL": pixels % shape.pixels == 0,
            **compiler_options(shape, inputs.logits),
        }
        scalars: tuple[Any, ...] = pixels, *option_bits(inputs), ignored_classes(inputs)
        kernel = cross_entropy_kernels.channels_last_kernel
        return Launch(kernel, programs, scalars, **options), num_tiles
    options["AXES"] = tiles.axes
    strides: tuple[int | None, ...] = tiles.strides[-1]
    numbers = tiles.pixels, tiles.tiles, num_tiles
    scalars = (
        tiles.rows,
        tiles.columns,
        *tiles.strides[0],
        *strides,
        *option_bits(inputs),
        ignored_classes(inputs),
    )
    if num_classes > tiling.MAX_CLASSES_IN_REGISTERS:
        kernel = many_classes_kernels.many_classes_kernel
        nothing = (None,) * 11  # planes, maps and interpolation
        scalars = *nothing, *numbers, inputs.labels.numel(), *scalars
        return Launch(kernel, num_tiles, scalars, **options), num_tiles
    if tiles.strides[-1] == tiles.strides[0]:
        strides = (None,) * 5
    scalars = (
        *numbers,
        tiles.rows,
        tiles.columns,
        *tiles.strides[0],
        *strides,
        *option_bits(inputs),
        ignored_classes(inputs),
    )
    options["HAS_ALL"] = tiles.pixels % shape.pixels == 0
    options["INDEX"] = tl.int64 if tiles.is_wide else tl.int32
    kernel = cross_entropy_kernels.cross_entropy_kernel
    return Launch(kernel, programs, scalars, **options), num_tiles


def _run_tiles(
    launch: Launch,
    stream: int,
    inputs: LossInputs,
    gradient: Tensor | None,
    divisor: Tensor | None,
    *,
    grad_output: Tensor | None = None,
    partial: Tensor | None = None,
    terms: Tensor | None = None,
) -> None:
    """Launches a pass over the logits, whose kernels all have these first arguments."""
    launch(
        stream,
        inputs.logits,
        gradient,
        inputs.labels,
        inputs.class_weight,
        inputs.pixel_weight,
        divisor,
        grad_output,
        partial,
        terms,
    )
