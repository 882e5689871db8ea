"""The GPU backend: launches Triton kernels on the tensors' device.

`_autograd`, the operators and `evaluate` call it with checked inputs. A loss takes three kernel
launches: the label check, which also computes the divisor; one pass that reads the logits and
writes the gradient; and the sum of the partial losses. Only `check_labels="raise"` waits for the
device, at the end of the call and only for the label check. What depends on shapes, dtypes and
options alone is computed once: see `plan`.

Bytes per pixel with labels of one byte, for elements of E bytes: the loss alone C E + 2; loss and
gradient 2 C E + 2, which includes autograd's gradient for a `grad_output` of 1; a backward pass for
another `grad_output` 2 C E + 1 more. Temporary memory is 8 bytes per tile of pixels, less than one
byte per pixel, and is kept for later calls.

Labels and weights may have any strides. They are small, and copied if they are not contiguous.
Logits and gradient are not copied, unless more than three spatial axes cannot be merged.
"""

import math
import struct
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from seg_loss import _labels
from seg_loss._divisor import known_divisor
from seg_loss._evaluation_sums import EvaluationSums
from seg_loss._inputs import LossInputs, loss_dtype
from seg_loss.gpu import cross_entropy as cross_entropy_kernels
from seg_loss.gpu import evaluate as evaluate_kernels
from seg_loss.gpu import labels as label_kernels
from seg_loss.gpu import many_classes as many_classes_kernels
from seg_loss.gpu import softmax as softmax_kernels
from seg_loss.gpu import tiling
from seg_loss.gpu import upsampled as upsampled_kernels
from seg_loss.gpu.plan import (
    Cache,
    Launch,
    current_stream,
    event_of,
    is_capturing,
    layout,
    on_device,
    workspace,
)
from seg_loss.gpu.reports import Context, Reports, reports_of
from seg_loss.gpu.tiling import Tiling
from seg_loss.upsampling import Axes, Axis

_plans: Cache[Any] = Cache(max_size=1024)
# Triton 3.4 and 3.5 spill registers where later ones do not.
_IS_OLD_TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 6)


# -- the loss --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LossPlan:
    """Launches of a loss.

    Attributes:
        check: the label check.
        tiles: the pass over the logits; None without any pixel.
        num_partials: number of partial sums of that pass.
        sum: their sum.
    """

    check: "_CheckPlan"
    tiles: Launch | None
    num_partials: int
    sum: Launch


def cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the loss and its divisor; fills `gradient`, which may be the logits, if given.

    The divisor is float64 [2]: D and 1 / (D temperature), for `cross_entropy_gradient`.
    """
    inputs, gradient, copied = _prepared(inputs, gradient)
    with on_device(inputs.logits):
        plan: _LossPlan = _plans.get(
            _key("loss", inputs, gradient), lambda: _plan_loss(inputs, gradient)
        )
        stream = current_stream(inputs.logits)
        ints, partial = workspace(
            inputs.logits, stream, plan.check.num_ints, plan.num_partials + tiling.MAX_SUM_PROGRAMS
        )
        check = _check_labels(plan.check, inputs, stream, ints)
        loss = _empty(inputs.logits, (), loss_dtype(inputs.logits))
        if plan.tiles is not None:
            _run_tiles(plan.tiles, stream, inputs, gradient, check.divisor, partial=partial)
        plan.sum(stream, partial, ints, check.divisor, loss)
        _copy_back(gradient, copied)
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
    inputs, written, copied = _prepared(inputs, gradient, keep)
    with on_device(inputs.logits):
        launch: Launch = _plans.get(
            _key("gradient", inputs, written, divisor, grad_output, skip_if_unit_grad),
            lambda: _plan_tiles(inputs, written, skip_if_unit_grad=skip_if_unit_grad)[0],
        )
        stream = current_stream(inputs.logits)
        _run_tiles(launch, stream, inputs, written, divisor, grad_output=grad_output)
        _copy_back(written, copied)


def pixel_terms(inputs: LossInputs, terms: Tensor) -> None:
    """Fills `terms` [N, *spatial], contiguous."""
    inputs, _, _ = _prepared(inputs, None)
    with on_device(inputs.logits):
        plan: _LossPlan = _plans.get(_key("terms", inputs, terms), lambda: _plan_loss(inputs, None))
        stream = current_stream(inputs.logits)
        ints, _ = workspace(terms, stream, plan.check.num_ints, 0)
        check = _check_labels(plan.check, inputs, stream, ints)
        if plan.tiles is not None:
            _run_tiles(plan.tiles, stream, inputs, None, None, terms=terms)
        check.raise_if_invalid()


def _plan_loss(inputs: LossInputs, gradient: Tensor | None) -> _LossPlan:
    tiles, num_partials = None, 0
    if inputs.labels.numel():
        tiles, num_partials = _plan_tiles(inputs, gradient, is_early=_is_early(inputs.logits))
    return _LossPlan(
        _plan_check(inputs, has_early_next=_is_early(inputs.logits)),
        tiles,
        num_partials,
        _plan_sum(inputs.logits, num_partials),
    )


def _plan_sum(logits: Tensor, num_partials: int) -> Launch:
    """Returns the launch of a sum of partial losses."""
    programs = _num_sum_programs(num_partials)
    return Launch(
        cross_entropy_kernels.sum_partials_kernel,
        programs,
        (num_partials,),
        **_sum_options(programs),
        **_early(_is_early(logits)),
    )


def _num_sum_programs(num_partials: int) -> int:
    """Returns the programs that add partial losses; each adds at least one block."""
    return max(1, min(-(-num_partials // tiling.SUM_BLOCK), tiling.MAX_SUM_PROGRAMS))


def _sum_options(programs: int) -> dict[str, int]:
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
    tiles = _tile(inputs.logits, gradient)
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
        "MAX_NLL": _finite_or_none(inputs.options.max_nll),
        "SKIP_IF_UNIT_GRAD": skip_if_unit_grad,
        **_compiled_for(shape, inputs.logits),
    }
    if num_classes <= tiling.MAX_CLASSES_IN_REGISTERS:
        options |= _early(is_early)
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
            **_compiled_for(shape, inputs.logits),
        }
        scalars: tuple[Any, ...] = pixels, *_option_bits(inputs), _ignored_classes(inputs)
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
        *_option_bits(inputs),
        _ignored_classes(inputs),
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
        *_option_bits(inputs),
        _ignored_classes(inputs),
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


# -- the loss of upsampled scores ------------------------------------------------------------------


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
        finish: the sums of partial sums and of shared rows; None without shared rows.
        sum: the sum of partial sums, without shared rows.
    """

    check: "_CheckPlan"
    planes: Launch | None
    tiles: Launch | None
    num_partials: int
    halo_size: int
    interval_stride: int
    finish: Launch | None
    sum: Launch


def upsampled_cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> Tensor:
    """Returns the loss of upsampled scores; fills `gradient`, which may be the scores, if given."""
    axes = inputs.axes
    assert axes is not None
    inputs, _, _ = _prepared(inputs, None)
    scores, wide = inputs.logits, loss_dtype(inputs.logits)
    written = gradient
    if gradient is not None:
        # The gradient is summed in the loss's precision, while other programs read the scores.
        is_in_place = gradient.data_ptr() == scores.data_ptr() and gradient.numel() > 0
        if is_in_place or gradient.dtype != wide:
            written = torch.empty_like(gradient, dtype=wide)
    with on_device(scores):
        plan: _UpsampledPlan = _plans.get(
            _key("upsampled", inputs, written), lambda: _plan_upsampled(inputs, axes, written)
        )
        stream = current_stream(scores)
        ints, partial = workspace(
            scores, stream, plan.check.num_ints, plan.num_partials + tiling.MAX_SUM_PROGRAMS
        )
        halo = planes = None
        if written is not None:
            halo = _empty(scores, (plan.halo_size,), wide)
            torch._foreach_zero_([written, halo])
        check = _check_labels(plan.check, inputs, stream, ints)
        loss = _empty(scores, (), wide)
        weights = inputs.class_weight, inputs.pixel_weight
        if plan.planes is not None:
            if plan.tiles is not None:
                planes = _empty(scores, (4, inputs.labels.numel()), wide)
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
                *_grid(scores, axes),
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
                *_interval_tables(scores, axes, plan.interval_stride),
            )
        if plan.finish is not None:
            plan.finish(stream, partial, ints, check.divisor, loss, halo, written)
        else:
            plan.sum(stream, partial, ints, check.divisor, loss)
        if gradient is not None and written is not gradient and written is not None:
            gradient.copy_(written)
        check.raise_if_invalid()
    return loss


def _plan_upsampled(inputs: LossInputs, axes: Axes, gradient: Tensor | None) -> _UpsampledPlan:
    scores, num_classes = inputs.logits, inputs.num_classes
    rows, columns = axes
    shape = tiling.upsampled_tile_shape(
        num_classes, is_double=scores.dtype == torch.float64, has_gradient=gradient is not None
    )
    is_smoothed = inputs.options.label_smoothing != 0
    if is_smoothed:
        shape = shape.for_smoothing(num_classes)
    max_nll = _finite_or_none(inputs.options.max_nll)
    planes, num_partials = None, 0
    is_early = _is_early(scores) and shape.chunk is None
    if shape.chunk is not None and inputs.labels.numel():
        pixels = _tile_upsampled(scores, axes)
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
                *_option_bits(inputs),
                _ignored_classes(inputs),
            ),
            C=num_classes,
            BLOCK_C=pixels.shape.classes,
            BLOCK_P=pixels.shape.pixels,
            AXES=pixels.axes,
            IS_SMOOTHED=is_smoothed,
            MAX_NLL=max_nll,
            SKIP_IF_UNIT_GRAD=False,
            **_compiled_for(pixels.shape, scores),
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
                *_option_bits(inputs),
                _ignored_classes(inputs),
            ),
            C=num_classes,
            CHUNK=shape.chunk or num_classes,
            BLOCK_C=shape.classes,
            INTERVALS=shape.intervals,
            IS_SMOOTHED=is_smoothed,
            SKIPS_ZERO=columns.has_zero_weights,
            MAX_NLL=max_nll,
            **_compiled_for(shape, scores, is_smoothed=is_smoothed),
            **_early(is_early),
        )
        if gradient is not None:
            halo_size = 2 * halo_stride
            if intervals.row_blocks > 1:
                of_row = -(-num_classes * columns.num_sources // tiling.HALO_BLOCK)
                sum_programs = _num_sum_programs(num_partials)
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
                    **_sum_options(sum_programs),
                    **_early(_is_early(scores)),
                )
    return _UpsampledPlan(
        _plan_check(inputs, has_early_next=is_early),
        planes,
        tiles,
        num_partials,
        halo_size,
        interval_stride,
        finish,
        _plan_sum(scores, num_partials),
    )


def scale_gradient(gradient: Tensor, grad_output: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns grad_output * gradient in `dtype`, where zeros stay +0."""
    scaled = torch.empty_like(gradient, dtype=dtype)
    if gradient.numel():
        with on_device(gradient):
            key = "scale", gradient.device, layout(gradient), layout(grad_output), dtype
            launch: Launch = _plans.get(key, lambda: _plan_scale(gradient))
            launch(current_stream(gradient), gradient, grad_output, scaled)
    return scaled


def _plan_scale(gradient: Tensor) -> Launch:
    count = gradient.numel()
    return Launch(upsampled_kernels.scale_gradient_kernel, -(-count // 1024), (count,), BLOCK=1024)


def scratch_bytes(scores: Tensor, axes: Axes) -> int:
    """Returns the temporary memory of a call: shared rows, planes of pixels, a second gradient.

    With label smoothing there may be other shared rows; it is the larger number.
    """
    rows, columns = axes
    num_classes, element = scores.shape[1], loss_dtype(scores).itemsize
    shape = tiling.upsampled_tile_shape(num_classes, is_double=element == 8)
    parts = max(
        tiling.tile_intervals(used, len(scores), num_classes, axes).parts
        for used in (shape, shape.for_smoothing(num_classes))
    )
    halo = 2 * parts * num_classes * columns.num_sources
    planes = 0
    if shape.chunk is not None:
        planes = 4 * len(scores) * rows.num_targets * columns.num_targets
    return element * (halo + planes + scores.numel())


# -- the label check -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CheckPlan:
    """The launch of a label check, and what its report is about."""

    launch: Launch
    num_ints: int
    context: Context


@dataclass(frozen=True)
class _Check:
    """A label check that has been launched.

    Attributes:
        divisor: float64 [2], D and 1 / (D temperature), once the kernel has run.
        reports, slot, context: the report, if it is to be raised at the end of the call.
        event: recorded behind the kernel.
    """

    divisor: Tensor
    reports: Reports | None = None
    slot: int = 0
    context: Context | None = None
    event: torch.cuda.Event | None = None

    def raise_if_invalid(self) -> None:
        """Waits for the report and raises what it says, if the call is to do so."""
        if self.reports is not None and self.context is not None:
            if self.event is not None:
                self.event.synchronize()
            _labels.raise_or_defer(self.reports.error_in(self.slot, self.context), "raise")


def _plan_check(inputs: LossInputs, *, has_early_next: bool = False) -> _CheckPlan:
    options, labels = inputs.options, inputs.labels
    pixels = labels.numel()
    programs = max(1, min(-(-pixels // tiling.CHECK_PIXELS), tiling.MAX_CHECK_PROGRAMS))
    block = tiling.CHECK_WEIGHTS_BLOCK if inputs.is_weighted else tiling.CHECK_BLOCK
    known = known_divisor(options.normalization, labels.shape[0], pixels)
    if known is not None:
        source = label_kernels.CONSTANT
    elif options.normalization == "weight" and inputs.is_weighted:
        has_floor = options.has_divisor_floor
        source = label_kernels.WEIGHT if has_floor else label_kernels.WEIGHT_NO_FLOOR
    else:
        has_floor = options.has_divisor_floor
        source = label_kernels.COUNT if has_floor else label_kernels.COUNT_NO_FLOOR
    launch = Launch(
        label_kernels.check_labels_kernel,
        programs,
        (
            pixels,
            _bits(known or 0.0),
            _bits(1 / options.temperature),
            inputs.ignored,
        ),
        C=inputs.num_classes,
        BLOCK_P=block,
        DIVISOR=source.value,
        PADDED_PROGRAMS=triton.next_power_of_2(programs),
        HAS_EARLY_NEXT=has_early_next,
        num_warps=tiling.CHECK_WARPS,
    )
    context = Context(labels.shape, inputs.num_classes, inputs.ignored)
    return _CheckPlan(launch, label_kernels.num_counters(programs), context)


def _check_labels(plan: _CheckPlan, inputs: LossInputs, stream: int, counters: Tensor) -> _Check:
    """Launches the label check."""
    labels, mode = inputs.labels, inputs.options.check_labels
    divisor = _empty(labels, (2,), torch.float64)
    reports, slot, memory = None, 0, None
    is_captured = is_capturing(labels)
    if mode != "ignore":
        # The host cannot wait for a graph under capture.
        is_deferred = mode == "defer" or is_captured
        reports = reports_of(labels.device)
        memory = reports.memory
        slot = reports.reserve(plan.context, is_deferred=is_deferred, is_captured=is_captured)
    plan.launch(
        stream, labels, inputs.class_weight, inputs.pixel_weight, counters, divisor, memory, slot
    )
    if reports is None or is_deferred:
        return _Check(divisor)
    event = None
    if labels.is_cuda:
        event = event_of(labels.device)
        event.record()
    return _Check(divisor, reports, slot, plan.context, event)


# -- evaluate --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _EvaluationPlan:
    """Launches of `evaluate`.

    Attributes:
        check: the label check.
        tiles: the pass over the logits; None without any pixel.
        count, nll: the counts over the maps, and the sums of the nll.
        sum: the sums over tiles and programs.
        sizes: numbers of partial sums: of the pass over the logits, of the bins, of the classes.
        num_copies: of the confusion matrix; 0 if one is enough.
        results: where the results lie.
    """

    check: _CheckPlan
    tiles: Launch | None
    count: Launch
    nll: Launch
    sum: Launch
    sizes: tuple[int, int, int]
    num_copies: int
    results: evaluate_kernels.Results


def evaluate(inputs: LossInputs, maps: dict[str, Tensor]) -> EvaluationSums:
    """Returns everything that one read of the logits can tell; fills `maps`."""
    axes = inputs.axes
    inputs, _, _ = _prepared(inputs, None)
    logits, labels = inputs.logits, inputs.labels
    wide = loss_dtype(logits)
    # These maps are counted, the latter two in the precision of the loss.
    index = maps["prediction"].dtype if "prediction" in maps else _index_dtype(inputs.num_classes)
    counted = {
        name: maps[name]
        if name in maps and maps[name].dtype == dtype
        else _empty(logits, labels.shape, dtype)
        for name, dtype in (("prediction", index), ("nll", wide), ("confidence", wide))
    }
    written = [
        *counted.values(),
        *(maps.get(name) for name in ("entropy", "top_classes", "top_probabilities")),
    ]
    num_classes = inputs.num_classes
    with on_device(logits):
        plan: _EvaluationPlan = _plans.get(
            _key("evaluate", inputs, *written), lambda: _plan_evaluation(inputs, axes, written)
        )
        stream, results = current_stream(logits), plan.results
        ints, floats = workspace(logits, stream, plan.check.num_ints, sum(plan.sizes))
        numbers = torch.zeros(results.size, dtype=torch.int64, device=logits.device)
        copies = None
        if plan.num_copies:
            shape = plan.num_copies * num_classes**2
            copies = torch.zeros(shape, dtype=torch.int32, device=logits.device)
        check = _check_labels(plan.check, inputs, stream, ints)
        if plan.tiles is not None:
            partial, bin_confidence, class_nll = torch.split(
                floats[: sum(plan.sizes)], list(plan.sizes)
            )
            weights = inputs.class_weight, inputs.pixel_weight
            tables = (None,) * 4 if axes is None else _grid(logits, axes)
            if num_classes > tiling.MAX_CLASSES_IN_REGISTERS:
                plan.tiles(
                    stream,
                    logits,
                    None,
                    labels,
                    *weights,
                    None,
                    None,
                    partial,
                    None,
                    None,
                    *written,
                    *tables,
                )
            else:
                plan.tiles(stream, logits, labels, *weights, partial, *written, *tables)
            plan.count(
                stream,
                labels,
                counted["prediction"],
                counted["confidence"],
                numbers[results.bins],
                numbers[results.confusion],
                copies,
                bin_confidence,
            )
            plan.nll(stream, labels, counted["nll"], numbers[results.image_counts], class_nll)
            sums = numbers.view(torch.float64)
            plan.sum(
                stream,
                partial,
                class_nll,
                bin_confidence,
                copies,
                sums[results.loss],
                sums[results.weight],
                sums[results.class_nll],
                sums[results.bin_confidence],
                numbers[results.confusion],
            )
        for name, values in counted.items():
            if name in maps and maps[name] is not values:
                maps[name].copy_(values)
        numbers = numbers.cpu()
        check.raise_if_invalid()
    return _evaluation_sums(inputs, results, numbers, maps)


def _plan_evaluation(
    inputs: LossInputs, axes: Axes | None, written: list[Tensor | None]
) -> _EvaluationPlan:
    """Plans `evaluate_kernel`, or `many_classes_kernel`, and what follows it."""
    (num_images, *size), num_classes = inputs.labels.shape, inputs.num_classes
    pixels = math.prod(size) if num_images else 0
    is_smoothed = inputs.options.label_smoothing != 0
    if axes is None:
        tiles = _tile(inputs.logits, None, merges=False)
    else:
        tiles = _tile_upsampled(inputs.logits, axes)
    assert tiles is not None
    itemsize = inputs.logits.dtype.itemsize
    if written[-1] is not None:
        tiles = tiles.within(tiling.MAPS_REGISTERS, itemsize)
    elif is_smoothed:
        tiles = tiles.for_smoothing(itemsize)
    shape = tiles.shape
    num_tiles = num_images * tiles.tiles if pixels else 0
    is_early = _is_early(inputs.logits)
    has_early_tiles = is_early and num_classes <= tiling.MAX_CLASSES_IN_REGISTERS
    options: dict[str, Any] = {
        "C": num_classes,
        "BLOCK_C": shape.classes,
        "BLOCK_P": shape.pixels,
        "AXES": tiles.axes,
        "IS_SMOOTHED": is_smoothed,
        **_compiled_for(shape, inputs.logits),
    }
    scalars: tuple[Any, ...] = (
        tiles.rows,
        tiles.columns,
        *tiles.strides[0],
        *_option_bits(inputs),
        _ignored_classes(inputs),
    )
    numbers: tuple[int, ...] = tiles.pixels, tiles.tiles, num_tiles
    if num_classes > tiling.MAX_CLASSES_IN_REGISTERS:
        kernel = many_classes_kernels.many_classes_kernel
        numbers = *numbers, inputs.labels.numel()
        no_gradient = (0,) * 5
        scalars = *scalars[:7], *no_gradient, *scalars[7:]
        options |= {"MAX_NLL": None, "SKIP_IF_UNIT_GRAD": False}
    else:
        kernel = evaluate_kernels.evaluate_kernel
        options["HAS_ALL"] = tiles.pixels % shape.pixels == 0
        options["INDEX"] = tl.int64 if tiles.is_wide else tl.int32
        options |= _early(has_early_tiles)
    step = tiling.COUNT_STEP
    per_program = -(-pixels * num_images // tiling.COUNT_PROGRAMS)
    per_program = min(tiling.MAX_COUNT_PIXELS, -(-max(per_program, 1) // step) * step)
    per_image = max(1, -(-pixels // per_program))
    num_pairs = max(32, triton.next_power_of_2(num_classes**2))
    num_copies = 0
    if num_pairs > tiling.MAX_HISTOGRAM_PAIRS:
        num_copies = max(1, min(16, (1 << 20) // num_classes**2))
    num_programs = num_images * per_image
    count = Launch(
        evaluate_kernels.count_kernel,
        num_programs,
        (pixels, per_image, per_program, num_copies, _ignored_classes(inputs)),
        C=num_classes,
        NUM_PAIRS=min(num_pairs, tiling.MAX_HISTOGRAM_PAIRS),
        HISTOGRAM_P=step,
        BLOCK_P=tiling.COUNT_BLOCK,
        HAS_EARLY_NEXT=is_early,
        num_warps=tiling.COUNT_WARPS,
        maxnreg=tiling.COUNT_REGISTERS if num_copies else None,
        num_stages=1,
    )
    block_c = min(32, triton.next_power_of_2(num_classes))
    nll = Launch(
        evaluate_kernels.nll_kernel,
        num_programs * -(-num_classes // block_c),
        (pixels, per_image, per_program, _ignored_classes(inputs)),
        C=num_classes,
        BLOCK_C=block_c,
        BLOCK_P=tiling.COUNT_BLOCK,
        num_warps=tiling.COUNT_WARPS,
        num_stages=1,
        **_early(is_early),
    )
    rows = num_images + num_classes + evaluate_kernels.BIN_ROWS.value
    blocks = -(-(num_classes**2) // tiling.EVALUATION_SUM_BLOCK) if num_copies else 0
    total = Launch(
        evaluate_kernels.sum_kernel,
        rows + blocks,
        (num_images, tiles.tiles, num_programs, num_copies),
        C=num_classes,
        BLOCK=tiling.EVALUATION_SUM_BLOCK,
        HAS_WEIGHTS=inputs.is_weighted,
        num_warps=tiling.EVALUATION_SUM_WARPS,
        **_early(is_early),
    )
    return _EvaluationPlan(
        check=_plan_check(inputs, has_early_next=has_early_tiles),
        tiles=Launch(kernel, num_tiles, (*numbers, *scalars), **options) if num_tiles else None,
        count=count,
        nll=nll,
        sum=total,
        sizes=(
            2 * num_tiles,
            num_programs * evaluate_kernels.BIN_ROWS.value,
            num_programs * num_classes,
        ),
        num_copies=num_copies,
        results=evaluate_kernels.Results(num_images, num_classes),
    )


def _evaluation_sums(
    inputs: LossInputs,
    results: evaluate_kernels.Results,
    numbers: Tensor,
    maps: dict[str, Tensor],
) -> EvaluationSums:
    """Returns the results, an array on the host, as sums."""
    floats = numbers.view(torch.float64)
    counts = numbers[results.image_counts].view(-1, evaluate_kernels.NUM_IMAGE_COUNTS.value)
    bins = numbers[results.bins].view(-1, 2)[: evaluate_kernels.NUM_BINS.value]
    num_classes = inputs.num_classes
    return EvaluationSums(
        loss=floats[results.loss],
        valid_pixels=counts[:, 0],
        weight=floats[results.weight] if inputs.is_weighted else None,
        class_nll=floats[results.class_nll],
        confusion=numbers[results.confusion].view(num_classes, num_classes),
        bin_pixels=bins.sum(dim=1),
        bin_correct=bins[:, 1],
        bin_confidence=floats[results.bin_confidence][: evaluate_kernels.NUM_BINS.value],
        num_saturated=int(counts[:, 1].sum()),
        num_non_finite=int(counts[:, 2].sum()),
        maps=maps,
    )


# -- the softmax -----------------------------------------------------------------------------------


def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature) along `axis`, like `logits` in dtype and strides."""
    return _softmax(logits, axis, temperature, None)


def softmax_gradient(grad_output: Tensor, logits: Tensor, axis: int, temperature: float) -> Tensor:
    """Returns the gradient in `logits`, where `grad_output` is the gradient in the softmax."""
    return _softmax(logits, axis, temperature, grad_output.to(logits.dtype))


def _softmax(logits: Tensor, axis: int, temperature: float, grad_output: Tensor | None) -> Tensor:
    out = torch.empty_like(logits)
    if not out.numel():
        return out
    tensors = [logits, out, *([] if grad_output is None else [grad_output])]
    by_axis = [tensor.movedim(axis, 0).unsqueeze(0) for tensor in tensors]
    used = by_axis
    if _tile_of(*by_axis) is None:
        used = [tensor.contiguous() for tensor in by_axis]
    with on_device(logits):
        key = "softmax", logits.device, temperature, *map(layout, used)
        launch: Launch = _plans.get(key, lambda: _plan_softmax(used, temperature))
        launch(current_stream(logits), used[0], used[1], used[2] if len(used) > 2 else None)
        if used[1] is not by_axis[1]:
            by_axis[1].copy_(used[1])
    return out


def _plan_softmax(tensors: list[Tensor], temperature: float) -> Launch:
    tiles = _tile_of(*tensors)
    assert tiles is not None
    above: tuple[int, ...] = (0,) * 5
    if len(tensors) > 2:
        above = tiles.strides[2]
        tiles = tiles.within(tiling.SOFTMAX_GRADIENT_REGISTERS, tensors[0].dtype.itemsize)
    scalars = (
        *tiles.strides[0],
        *tiles.strides[1],
        *above,
        tiles.pixels,
        tiles.rows,
        tiles.columns,
        _bits(1 / temperature),
    )
    return Launch(
        softmax_kernels.softmax_kernel,
        tiles.tiles,
        scalars,
        C=tiles.num_classes,
        BLOCK_C=tiles.shape.classes,
        BLOCK_P=tiles.shape.pixels,
        IN_REGISTERS=tiles.num_classes <= tiling.MAX_CLASSES_IN_REGISTERS,
        AXES=tiles.axes,
        HAS_TEMPERATURE=temperature != 1,
        **_compiled_for(tiles.shape, tensors[0]),
    )


# -- from tensors to arguments of kernels ----------------------------------------------------------


def _prepared(
    inputs: LossInputs, gradient: Tensor | None, keep: Tensor | None = None
) -> tuple[LossInputs, Tensor | None, Tensor | None]:
    """Returns inputs and gradient as the kernels take them, and what the gradient is copied to.

    Labels and weights become contiguous. So do logits and gradient if more than three spatial axes
    cannot be merged. Then the last result is the gradient that was passed; `keep` is that gradient
    if its elements are needed.
    """
    labels, class_weight, pixel_weight = inputs.labels, inputs.class_weight, inputs.pixel_weight
    is_contiguous = (
        labels.is_contiguous()
        and (class_weight is None or class_weight.is_contiguous())
        and (pixel_weight is None or pixel_weight.is_contiguous())
    )
    if not is_contiguous:
        inputs = replace(
            inputs,
            labels=labels.contiguous(),
            class_weight=None if class_weight is None else class_weight.contiguous(),
            pixel_weight=None if pixel_weight is None else pixel_weight.contiguous(),
        )
    if inputs.logits.ndim <= 5 or _tile(inputs.logits, gradient) is not None:
        return inputs, gradient, None
    inputs = replace(inputs, logits=inputs.logits.contiguous())
    if gradient is None:
        return inputs, None, None
    written = torch.empty_like(inputs.logits) if keep is None else keep.contiguous()
    return inputs, written, gradient


def _copy_back(written: Tensor | None, gradient: Tensor | None) -> None:
    """Copies a gradient that `_prepared` has replaced."""
    if gradient is not None and written is not None:
        gradient.copy_(written)


def _key(name: str, inputs: LossInputs, *others: Tensor | bool | None) -> Hashable:
    """Returns what a plan depends on: the function, the options, and the layout of each tensor."""
    return (
        name,
        inputs.options,
        inputs.logits.device,
        layout(inputs.logits),
        layout(inputs.labels),
        layout(inputs.class_weight),
        layout(inputs.pixel_weight),
        *(layout(other) if isinstance(other, Tensor) else other for other in others),
    )


def _tile(logits: Tensor, gradient: Tensor | None, *, merges: bool = True) -> Tiling | None:
    """Tiles logits and gradient, if any; with `merges`, small images as one where possible."""
    shape: list[int] = list(logits.shape)
    strides = [list(tensor.stride()) for tensor in (logits, gradient) if tensor is not None]
    if merges and math.prod(shape[2:]) < tiling.SMALL_IMAGE:
        merged = [[0, inner[1], inner[0], *inner[2:]] for inner in strides]
        as_one = [1, shape[1], shape[0], *shape[2:]]
        tiles = _tiles(as_one, merged, logits.dtype)
        if tiles is not None:
            return tiles
    return _tiles(shape, strides, logits.dtype)


def _tile_of(*tensors: Tensor) -> Tiling | None:
    first = tensors[0]
    return _tiles(first.shape, [tensor.stride() for tensor in tensors], first.dtype)


def _tiles(
    shape: Sequence[int], strides: Sequence[Sequence[int]], dtype: torch.dtype
) -> Tiling | None:
    """Returns tiles that the Triton in use compiles without spilled registers."""
    tiles = tiling.tile(shape, strides, dtype.itemsize)
    if _IS_OLD_TRITON and tiles is not None:
        return tiles.within(tiling.FEWER_REGISTERS, dtype.itemsize)
    return tiles


def _tile_upsampled(scores: Tensor, axes: Axes) -> Tiling:
    """Tiles the upsampled logits of scores [N, C, h, w]; the strides are those of the scores."""
    rows, columns = (axis.num_targets for axis in axes)
    image, class_, row, column = scores.stride()
    return Tiling(
        num_images=scores.shape[0],
        num_classes=scores.shape[1],
        pixels=rows * columns,
        rows=rows,
        columns=columns,
        axes=2,
        shape=tiling.interpolated_tile_shape(
            scores.shape[1], is_double=scores.dtype == torch.float64
        ),
        strides=(tiling.Strides(image, class_, 0, row, column),),
        is_wide=False,
    )


_tables: weakref.WeakKeyDictionary[Axis, dict[Hashable, tuple[Tensor, int]]]
_tables = weakref.WeakKeyDictionary()


def _table(
    axis: Axis, name: str, scores: Tensor, make: Callable[[], Any], *, is_weight: bool
) -> Tensor:
    """Returns an array that belongs to an axis in the memory of the scores' device.

    Weights have the precision of the loss. The first call copies the array, and waits for that.
    """
    cached = _tables.setdefault(axis, {})
    dtype = loss_dtype(scores) if is_weight else torch.int32
    key, stream = (name, scores.device, dtype), current_stream(scores)
    if key not in cached:
        cached[key] = torch.from_numpy(make()).to(scores.device, dtype), stream
    table, first_stream = cached[key]
    if stream != first_stream and table.is_cuda:
        # If the axis is forgotten, the memory must not be used again before this stream is done.
        table.record_stream(torch.cuda.current_stream(table.device))
    return table


def _grid(scores: Tensor, axes: Axes) -> list[Tensor]:
    """Returns intervals and weights of rows and of columns, for `interpolation`."""

    def of_axis(axis: Axis) -> list[Tensor]:
        return [
            _table(axis, "intervals", scores, lambda: axis.intervals, is_weight=False),
            _table(axis, "weights", scores, lambda: axis.weights, is_weight=True),
        ]

    return [*of_axis(axes[0]), *of_axis(axes[1])]


def _interval_tables(scores: Tensor, axes: Axes, interval_stride: int) -> list[Tensor]:
    """Returns starts and weights of rows and of columns, the latter by phase and interval."""
    rows, columns = axes
    return [
        _table(rows, "starts", scores, lambda: rows.starts, is_weight=False),
        _table(rows, "weights", scores, lambda: rows.weights, is_weight=True),
        _table(columns, "starts", scores, lambda: columns.starts, is_weight=False),
        _table(
            columns,
            f"by phase, {interval_stride}",
            scores,
            lambda: columns.weights_by_phase(interval_stride),
            is_weight=True,
        ),
    ]


def _empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


def _index_dtype(num_classes: int) -> torch.dtype:
    return torch.uint8 if num_classes <= 256 else torch.int32


def _ignored_classes(inputs: LossInputs) -> tuple[int, ...]:
    """Returns the ignored labels that would otherwise be classes."""
    return tuple(value for value in inputs.ignored if 0 <= value < inputs.num_classes)


def _option_bits(inputs: LossInputs) -> tuple[int, int]:
    """Returns the options that are numbers as bits, so that no value causes a compilation."""
    return _bits(1 / inputs.options.temperature), _bits(inputs.options.label_smoothing)


def _capability(tensor: Tensor) -> tuple[int, int]:
    """Returns the compute capability of the tensor's device; zeros without one."""
    return torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else (0, 0)


def _is_early(tensor: Tensor) -> bool:
    """Returns whether kernels may start before the ones before them have finished."""
    return tiling.USE_PDL and _capability(tensor) >= (9, 0)


def _compiled_for(
    shape: tiling.TileShape | tiling.UpsampledTileShape,
    tensor: Tensor,
    *,
    is_smoothed: bool = False,
) -> dict[str, Any]:
    """Returns the compiler's options for a row of a table.

    Without a limit, the compiler may spill a few registers if one more program then fits. Rows were
    measured on Hopper, where they spill neither without a limit nor, with label smoothing, with it.
    """
    max_registers = shape.max_registers
    is_hopper = _capability(tensor)[0] == 9
    if (max_registers is None or is_smoothed) and (_IS_OLD_TRITON or not is_hopper):
        max_registers = tiling.MAX_REGISTERS
    return {"num_warps": shape.num_warps, "maxnreg": max_registers, "num_stages": 1}


def _early(is_early: bool) -> dict[str, bool]:
    return {"IS_EARLY": is_early, "launch_pdl": True} if is_early else {"IS_EARLY": False}


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _bits(value: float) -> int:
    """Returns the bits of a float64 as an int64."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits)
