"""Launches the loss of upsampled scores, which computes the gradient in the scores as well.

The logits are interpolated in registers, so that neither they nor their gradient are stored. With
more classes than a program can hold, `many_classes` computes the loss, and stores for each pixel
what the pass that computes the gradient needs of its softmax.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seg_loss._inputs import LossInputs, loss_dtype
from seg_loss.gpu import many_classes as many_classes_kernels
from seg_loss.gpu import tiling
from seg_loss.gpu import upsampled as upsampled_kernels
from seg_loss.gpu.arguments import (
    TRITON,
    can_start_early,
    compiler_options,
    early_options,
    empty,
    finite_or_none,
    grid_tables,
    ignored_classes,
    interval_tables,
    option_bits,
    plan_key,
    plans,
    prepare,
    tile_upsampled,
)
from seg_loss.gpu.label_check import CheckPlan, check_labels, plan_check
from seg_loss.gpu.loss import num_sum_programs, plan_sum, sum_options
from seg_loss.gpu.plan import Launch, current_stream, layout, on_device, workspace
from seg_loss.upsampling import Axes


@dataclass(frozen=True)
class _UpsampledPlan:
    """Launches of a loss of upsampled scores.

    Attributes:
        check: the label check.
        planes: the pass over the pixels, of `many_classes_kernel`, if a program cannot hold all
            classes; else None.
        tiles: the pass over the intervals; None without any pixel, or if `planes` is all there is.
        num_partials: number of partial sums.
        halo_size: elements of the source rows that two programs share.
        interval_stride: of the weights of the columns.
        adds_rows: whether `finish` also adds up the shared rows.
        finish: the sum of the partial sums.
    """

    check: CheckPlan
    planes: Launch | None
    tiles: Launch | None
    num_partials: int
    halo_size: int
    interval_stride: int
    adds_rows: bool
    finish: Launch


def upsampled_cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> Tensor:
    """Returns the loss of upsampled scores; fills `gradient`, which may be the scores, if given."""
    axes = inputs.axes
    assert axes is not None
    inputs, _, _ = prepare(inputs, None)
    scores, wide = inputs.logits, loss_dtype(inputs.logits)
    written = gradient
    if gradient is not None:
        # The gradient is summed in the loss's precision, while other programs read the scores.
        is_in_place = gradient.data_ptr() == scores.data_ptr() and gradient.numel() > 0
        if is_in_place or gradient.dtype != wide:
            written = torch.empty_like(gradient, dtype=wide)
    with on_device(scores):
        plan: _UpsampledPlan = plans.get(
            plan_key("upsampled", inputs, written), lambda: _plan_upsampled(inputs, axes, written)
        )
        stream = current_stream(scores)
        ints, partial = workspace(
            scores, stream, plan.check.num_ints, plan.num_partials + tiling.MAX_SUM_PROGRAMS
        )
        halo = planes = None
        if written is not None:
            halo = empty(scores, (plan.halo_size,), wide)
            torch._foreach_zero_([written, halo])
        check = check_labels(plan.check, inputs, stream, ints)
        loss = empty(scores, (), wide)
        weights = inputs.class_weight, inputs.pixel_weight
        if plan.planes is not None:
            if plan.tiles is not None:
                planes = empty(scores, (4, inputs.labels.numel()), wide)
            plan.planes(
                stream,
                scores,
                None,
                inputs.labels,
                *weights,
                check.divisor,
                None,
                partial,
                None,
                planes,
                *(None,) * 6,
                *grid_tables(scores, axes),
            )
        if plan.tiles is not None:
            plan.tiles(
                stream,
                scores,
                inputs.labels,
                *weights,
                check.divisor,
                written,
                halo,
                None if plan.planes else partial,
                planes,
                *interval_tables(scores, axes, plan.interval_stride),
            )
        shared_rows = (halo, written) if plan.adds_rows else ()
        plan.finish(stream, partial, ints, check.divisor, loss, *shared_rows)
        if gradient is not None and written is not gradient and written is not None:
            gradient.copy_(written)
        check.raise_if_invalid()
    return loss


def _plan_upsampled(inputs: LossInputs, axes: Axes, gradient: Tensor | None) -> _UpsampledPlan:
    scores, num_classes = inputs.logits, inputs.num_classes
    rows, columns = axes
    is_smoothed = inputs.options.label_smoothing != 0
    shape = _tile_shape(scores, has_gradient=gradient is not None, is_smoothed=is_smoothed)
    max_nll = finite_or_none(inputs.options.max_nll)
    planes, num_partials = None, 0
    is_early = can_start_early(scores) and shape.chunk is None
    if shape.chunk is not None and inputs.labels.numel():
        pixels = tile_upsampled(scores, axes)
        num_partials = pixels.num_images * pixels.tiles
        planes = Launch(
            many_classes_kernels.many_classes_kernel,
            num_partials,
            (
                pixels.pixels,
                pixels.tiles,
                num_partials,
                inputs.labels.numel(),
                pixels.rows,
                pixels.columns,
                *pixels.strides[0],
                *(0,) * 5,
                *option_bits(inputs),
                ignored_classes(inputs),
            ),
            C=num_classes,
            BLOCK_C=pixels.shape.classes,
            BLOCK_P=pixels.shape.pixels,
            AXES=pixels.axes,
            IS_SMOOTHED=is_smoothed,
            MAX_NLL=max_nll,
            SKIP_IF_UNIT_GRAD=False,
            **compiler_options(pixels.shape, scores),
        )
    tiles, finish, halo_size, interval_stride = None, None, 0, 0
    if inputs.labels.numel() and (planes is None or gradient is not None):
        intervals = tiling.tile_intervals(shape, len(scores), num_classes, axes)
        interval_stride = intervals.tiles * shape.intervals
        halo_stride = intervals.parts * num_classes * columns.num_sources
        gradient_strides = (0,) * 4 if gradient is None else gradient.stride()
        if planes is None:
            num_partials = intervals.programs
        tiles = Launch(
            upsampled_kernels.upsampled_cross_entropy_kernel,
            intervals.programs,
            (
                *scores.stride(),
                *gradient_strides,
                halo_stride,
                interval_stride,
                rows.num_sources,
                columns.num_sources,
                rows.num_targets,
                columns.num_targets,
                columns.max_targets,
                inputs.labels.numel(),
                intervals.row_blocks,
                intervals.block_rows,
                intervals.splits,
                intervals.tiles,
                *option_bits(inputs),
                ignored_classes(inputs),
            ),
            C=num_classes,
            CHUNK=shape.chunk or num_classes,
            BLOCK_C=shape.classes,
            INTERVALS=shape.intervals,
            IS_SMOOTHED=is_smoothed,
            SKIPS_ZERO=columns.has_zero_weights,
            MAX_NLL=max_nll,
            **compiler_options(shape, scores, is_smoothed=is_smoothed),
            **early_options(is_early),
        )
        if gradient is not None:
            halo_size = 2 * halo_stride
            if intervals.row_blocks > 1:
                of_row = -(-num_classes * columns.num_sources // tiling.HALO_BLOCK)
                sum_programs = num_sum_programs(num_partials)
                finish = Launch(
                    upsampled_kernels.finish_kernel,
                    sum_programs + len(scores) * (intervals.row_blocks - 1) * of_row,
                    (
                        num_partials,
                        sum_programs,
                        halo_stride,
                        columns.num_sources,
                        intervals.row_blocks,
                        intervals.block_rows,
                        intervals.splits,
                        *gradient.stride(),
                    ),
                    C=num_classes,
                    HALO_BLOCK=tiling.HALO_BLOCK,
                    num_stages=1,
                    **sum_options(sum_programs),
                    **early_options(can_start_early(scores)),
                )
    return _UpsampledPlan(
        plan_check(inputs, has_early_next=is_early),
        planes,
        tiles,
        num_partials,
        halo_size,
        interval_stride,
        adds_rows=finish is not None,
        finish=finish or plan_sum(scores, num_partials),
    )


def _tile_shape(
    scores: Tensor, *, has_gradient: bool = True, is_smoothed: bool = False
) -> tiling.UpsampledTileShape:
    """Returns the row of the table for scores.

    Since 3.7, Triton lets the warps of a program share the classes of a pixel, so that all wait for
    each other at each pixel. A program then has one warp.
    """
    num_classes, is_double = scores.shape[1], scores.dtype == torch.float64
    shape = tiling.upsampled_tile_shape(num_classes, is_double=is_double, has_gradient=has_gradient)
    if is_smoothed:
        shape = shape.for_smoothing(num_classes)
    if TRITON >= (3, 7) and shape.chunk is None:
        shape = replace(shape, num_warps=1)
    return shape


def scale_gradient(gradient: Tensor, grad_output: Tensor, scaled: Tensor) -> None:
    """Fills `scaled`, which may be the gradient, with grad_output * gradient; zeros stay +0.

    The device leaves the gradient unchanged if it is `scaled` and `grad_output` is 1.
    """
    if not gradient.numel():
        return
    with on_device(gradient):
        is_in_place = scaled is gradient
        tensors = gradient, grad_output, scaled
        key = "scale", gradient.device, *map(layout, tensors), is_in_place
        launch: Launch = plans.get(key, lambda: _plan_scale(gradient, is_in_place=is_in_place))
        launch(current_stream(gradient), *tensors)


def _plan_scale(gradient: Tensor, *, is_in_place: bool) -> Launch:
    count, block = gradient.numel(), 1024
    programs = -(-count // block)
    if is_in_place:
        programs = min(programs, tiling.BACKWARD_PROGRAMS)
    kernel = upsampled_kernels.scale_gradient_kernel
    return Launch(kernel, programs, (count,), BLOCK=block, SKIP_IF_UNIT_GRAD=is_in_place)


def scratch_bytes(scores: Tensor, axes: Axes) -> int:
    """Returns the temporary memory of a call: shared rows, planes of pixels, a second gradient.

    With label smoothing there may be other shared rows; it is the larger number.
    """
    rows, columns = axes
    num_classes, element = scores.shape[1], loss_dtype(scores).itemsize
    shapes = [_tile_shape(scores, is_smoothed=is_smoothed) for is_smoothed in (False, True)]
    parts = max(
        tiling.tile_intervals(shape, len(scores), num_classes, axes).parts for shape in shapes
    )
    halo = 2 * parts * num_classes * columns.num_sources
    planes = 0
    if shapes[0].chunk is not None:
        planes = 4 * len(scores) * rows.num_targets * columns.num_targets
    return element * (halo + planes + scores.numel())
