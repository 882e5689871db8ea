"""The GPU backend: launches Triton kernels on the tensors' device.

The operators and `evaluate` call it with checked inputs. A loss takes two kernel launches: a label
check, then one pass that reads the logits and writes the gradient. Only `check_labels="raise"`
waits for the device, at the end of the call.

Bytes per pixel with labels of one byte, for elements of E bytes: the loss alone C E + 2; loss and
gradient 2 C E + 2, which includes autograd's gradient for a `grad_output` of 1; a backward pass for
another `grad_output` 2 C E + 1 more. Temporary memory is 8 bytes per tile of pixels, less than one
byte per pixel.

Upsampled scores are read from the caches; logits and their gradient are only in registers.
Temporary memory is 8 bytes per tile of source pixels; for more than 256 classes, 12 or 16 bytes per
target pixel; and a second gradient if the first overwrites the scores.

Labels and weights may have any strides. They are small, and copied if they are not contiguous.
Logits and gradient are not copied, unless more than three spatial axes cannot be merged.
"""

import math
import struct
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seg_loss import _labels
from seg_loss._divisor import known_divisor
from seg_loss._errors import InvalidInput
from seg_loss._evaluation_sums import EvaluationSums
from seg_loss._inputs import LossInputs, loss_dtype
from seg_loss._labels import InvalidValues, LabelReport
from seg_loss.gpu import cross_entropy as cross_entropy_kernels
from seg_loss.gpu import evaluate as evaluate_kernels
from seg_loss.gpu import labels as label_kernels
from seg_loss.gpu import softmax as softmax_kernels
from seg_loss.gpu import tiling
from seg_loss.gpu import upsampled as upsampled_kernels
from seg_loss.upsampling import Axes, Axis


class _Strides(NamedTuple):
    """Strides of [N, C, *spatial] in elements, the spatial axes merged to at most three."""

    image: int
    class_: int
    slice_: int
    row: int
    column: int


@dataclass(frozen=True)
class Tiling:
    """Logits and gradient as the kernels process them: images of `pixels`, in tiles.

    Attributes:
        num_images, num_classes, pixels: sizes.
        rows, columns: sizes of the last two merged spatial axes.
        axes: number of merged spatial axes.
        shape: row of the table.
        strides: of each tensor.
    """

    num_images: int
    num_classes: int
    pixels: int
    rows: int
    columns: int
    axes: int
    shape: tiling.TileShape
    strides: tuple[_Strides, ...]

    @property
    def tiles(self) -> int:
        """Tiles of an image."""
        return -(-self.pixels // self.shape.pixels)

    @property
    def constants(self) -> dict[str, Any]:
        """Compile-time arguments of a kernel."""
        return {
            "C": self.num_classes,
            "BLOCK_C": self.shape.classes,
            "BLOCK_P": self.shape.pixels,
            "IN_REGISTERS": self.num_classes <= tiling.MAX_CLASSES_IN_REGISTERS,
            "AXES": self.axes,
            "num_warps": self.shape.num_warps,
        }


def cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the loss and its divisor; fills `gradient`, which may be the logits, if given."""
    inputs = _contiguous(inputs)
    found = check_labels(inputs)
    source, value = _divisor(inputs)
    logits = inputs.logits
    loss = torch.empty((), dtype=loss_dtype(logits), device=logits.device)
    divisor = torch.empty((), dtype=torch.float64, device=logits.device)
    _launch(
        inputs,
        found,
        gradient=gradient,
        divisor_source=source,
        divisor_value=value,
        loss=loss,
        divisor=divisor,
    )
    _raise_if_waiting(inputs, found)
    return loss, divisor


def cross_entropy_gradient(
    inputs: LossInputs,
    divisor: Tensor,
    grad_output: Tensor,
    gradient: Tensor,
    *,
    skip_if_unit_grad: bool,
) -> None:
    """Fills `gradient` with grad_output / divisor * d(sum of terms) / d(logits).

    With `skip_if_unit_grad`, `gradient` already holds the result for a `grad_output` of 1, and the
    device leaves it unchanged if `grad_output` is 1.
    """
    _launch(
        _contiguous(inputs),
        _LabelCheck(),
        gradient=gradient,
        divisor_source=label_kernels.MEMORY,
        divisor_value=divisor,
        grad_output=grad_output,
        skip_if_unit_grad=skip_if_unit_grad,
    )


def upsampled_cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> Tensor:
    """Returns the loss of upsampled scores; fills `gradient`, which may be the scores, if given."""
    axes = inputs.axes
    assert axes is not None
    inputs = _contiguous(inputs)
    found = check_labels(inputs)
    scores = inputs.logits
    loss = torch.empty((), dtype=loss_dtype(scores), device=scores.device)
    if gradient is None:
        source, value = _divisor(inputs)
        _launch(inputs, found, axes=axes, divisor_source=source, divisor_value=value, loss=loss)
    else:
        # A program reads scores whose gradient another program writes.
        is_in_place = gradient.data_ptr() == scores.data_ptr() and gradient.numel() > 0
        written = torch.empty_like(gradient) if is_in_place else gradient
        _launch_upsampled(inputs, found, axes, loss, written)
        if is_in_place:
            gradient.copy_(written)
    _raise_if_waiting(inputs, found)
    return loss


def scratch_bytes(scores: Tensor, axes: Axes) -> int:
    """Returns the temporary memory of a call: planes for many classes, and a second gradient."""
    pixels = len(scores) * axes[0].num_targets * axes[1].num_targets
    element = loss_dtype(scores).itemsize
    shape = tiling.upsampled_tile_shape(scores.shape[1], is_double=element == 8)
    planes = 0 if shape.chunk is None else 4 * element * pixels
    return planes + scores.nbytes


def pixel_terms(inputs: LossInputs, terms: Tensor) -> None:
    """Fills `terms` [N, *spatial], contiguous."""
    inputs = _contiguous(inputs)
    found = check_labels(inputs)
    _launch(inputs, found, terms=terms)
    _raise_if_waiting(inputs, found)


def evaluate(inputs: LossInputs, maps: dict[str, Tensor]) -> EvaluationSums:
    """Returns everything that one read of the logits can tell; fills `maps`."""
    axes = inputs.axes
    inputs = _contiguous(inputs)
    found = check_labels(inputs)
    # `evaluate_kernel` needs these three maps, in the precision of the loss.
    wide = loss_dtype(inputs.logits)
    index = maps["prediction"].dtype if "prediction" in maps else torch.int32
    counted = {
        name: maps[name]
        if name in maps and maps[name].dtype == dtype
        else torch.empty(inputs.labels.shape, dtype=dtype, device=inputs.logits.device)
        for name, dtype in (("prediction", index), ("nll", wide), ("confidence", wide))
    }
    sums = _launch(
        inputs,
        found,
        axes=axes,
        prediction=counted["prediction"],
        nll_map=counted["nll"],
        confidence_map=counted["confidence"],
        entropy_map=maps.get("entropy"),
        top_classes=maps.get("top_classes"),
        top_probabilities=maps.get("top_probabilities"),
        keep_sums=True,
    )
    assert sums is not None
    _raise_if_waiting(inputs, found)
    for name, values in counted.items():
        if name in maps and maps[name] is not values:
            maps[name].copy_(values)
    return _sum_maps(inputs, sums, counted, maps)


def _sum_maps(
    inputs: LossInputs, sums: Tensor, counted: dict[str, Tensor], maps: dict[str, Tensor]
) -> EvaluationSums:
    """Sums over the maps `prediction`, `nll` and `confidence`."""
    (num_images, *size), num_classes = inputs.labels.shape, inputs.num_classes
    pixels = math.prod(size) if num_images else 0
    per_image = max(
        1,
        min(-(-pixels // tiling.EVALUATE_PROGRAM_PIXELS), tiling.MAX_EVALUATE_PROGRAMS),
    )
    programs = num_images * per_image
    copies = max(1, min(64, (1 << 17) // num_classes**2))
    device = inputs.labels.device

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    confusion = torch.zeros((copies, num_classes, num_classes), dtype=torch.int64, device=device)
    num_counts = _value(evaluate_kernels.NUM_IMAGE_COUNTS)
    num_bins, bin_rows = _value(evaluate_kernels.NUM_BINS), _value(evaluate_kernels.BIN_ROWS)
    image_counts = empty(programs, num_counts)
    image_weights = empty(programs, dtype=torch.float64)
    bin_counts = empty(programs, 2, bin_rows)
    bin_confidence = empty(programs, bin_rows, dtype=torch.float64)
    class_nll = empty(programs, num_classes, dtype=torch.float64)
    if programs:
        _run(
            evaluate_kernels.evaluate_kernel, programs,
            inputs.labels, counted["prediction"], counted["nll"], counted["confidence"],
            inputs.class_weight, inputs.pixel_weight,
            confusion, copies, image_counts, image_weights, bin_counts, bin_confidence, class_nll,
            pixels, per_image, -(-pixels // per_image), inputs.ignored,
            C=num_classes, BLOCK_C=tiling.EVALUATE_CLASSES, BLOCK_P=tiling.EVALUATE_PIXELS,
            num_warps=tiling.EVALUATE_WARPS,
        )  # fmt: skip
    counts = image_counts.view(num_images, per_image, num_counts).sum(dim=1).cpu()
    bins = bin_counts.sum(dim=0)[:, :num_bins].cpu()
    weights = image_weights.view(num_images, per_image).sum(dim=1)
    return EvaluationSums(
        loss=sums.cpu(),
        valid_pixels=counts[:, _value(evaluate_kernels.PIXELS)].clone(),
        weight=weights.cpu() if inputs.is_weighted else None,
        class_nll=class_nll.sum(dim=0).cpu(),
        confusion=confusion.sum(dim=0).cpu(),
        bin_pixels=bins[0],
        bin_correct=bins[1],
        bin_confidence=bin_confidence.sum(dim=0)[:num_bins].cpu(),
        num_saturated=int(counts[:, _value(evaluate_kernels.SATURATED)].sum()),
        num_non_finite=int(counts[:, _value(evaluate_kernels.NON_FINITE)].sum()),
        maps=maps,
    )


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
    tiles = tile(*by_axis)
    if tiles is None:
        copies = [tensor.contiguous() for tensor in by_axis]
        tiles = tile(*copies)
        assert tiles is not None
        source, target, *above = copies
    else:
        source, target, *above = by_axis
    _run(
        softmax_kernels.softmax_kernel, tiles.tiles,
        source, tiles.strides[0], target, tiles.strides[1],
        above[0] if above else None, tiles.strides[2] if above else tiles.strides[0],
        tiles.pixels, tiles.rows, tiles.columns, _bits(1 / temperature),
        HAS_TEMPERATURE=temperature != 1, **tiles.constants,
    )  # fmt: skip
    if target is not by_axis[1]:
        by_axis[1].copy_(target)
    return out


# -- the label check -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LabelCheck:
    """What the label check leaves on the device; empty if the labels were checked before.

    Attributes:
        counts, weights: partial sums of its programs.
        programs: their number.
        finished: how many programs of the loss kernel have finished.
        report: error report, written by the last program; None if unwanted.
        call_id: identifies the call in the report.
        is_waiting: whether the host waits for the report.
    """

    counts: Tensor | None = None
    weights: Tensor | None = None
    programs: int = 0
    finished: Tensor | None = None
    report: Tensor | None = None
    call_id: int = 0
    is_waiting: bool = False

    @property
    def padded_programs(self) -> int:
        """The number of programs, rounded up to a power of two."""
        return max(1, 1 << (self.programs - 1).bit_length())


def check_labels(inputs: LossInputs) -> _LabelCheck:
    """Launches the kernel that counts the labels, and prepares the report of invalid ones."""
    labels, device, num_classes = inputs.labels, inputs.labels.device, inputs.num_classes
    mode = inputs.options.check_labels
    if mode == "raise" and _is_capturing(labels):
        mode = "defer"  # the host cannot wait for a graph under capture
    deferred = _deferred_report(device)  # allocated before any capture, which forbids it
    pixels = labels.numel()
    programs = max(1, min(-(-pixels // tiling.CHECK_PIXELS), tiling.MAX_CHECK_PROGRAMS))
    num_counts = _value(label_kernels.NUM_COUNTS) * programs
    counts = torch.empty(num_counts, dtype=torch.int64, device=device)
    weights = torch.empty(programs, dtype=torch.float64, device=device)
    finished = torch.empty((), dtype=torch.int32, device=device)
    _run(
        label_kernels.check_labels_kernel, programs,
        labels, inputs.class_weight, inputs.pixel_weight, counts, weights, finished,
        pixels, -(-pixels // programs), inputs.ignored,
        C=num_classes, BLOCK_P=tiling.CHECK_PIXELS, num_warps=tiling.CHECK_WARPS,
    )  # fmt: skip
    report = deferred if mode == "defer" else None
    if mode == "raise":
        report = torch.zeros(label_kernels.REPORT_SIZE, dtype=torch.int64, device=device)
    call_id = _call_id((labels.shape, num_classes, inputs.ignored))
    return _LabelCheck(counts, weights, programs, finished, report, call_id, mode == "raise")


def _raise_if_waiting(inputs: LossInputs, found: _LabelCheck) -> None:
    """Waits for the report, if it is to be raised now."""
    if found.is_waiting:
        assert found.report is not None
        report = _label_report(found.report.tolist(), inputs.labels.shape)
        error = _labels.error_for(report, inputs.num_classes, inputs.ignored)
        _labels.raise_or_defer(error, "raise")


def _divisor(inputs: LossInputs) -> tuple[Any, int]:
    """Returns the source of the divisor for `load_divisor`, and its bits if the host knows it."""
    options, shape = inputs.options, inputs.labels.shape
    known = known_divisor(options.normalization, shape[0], shape.numel())
    if known is not None:
        return label_kernels.CONSTANT, _bits(known)
    if options.normalization == "weight" and inputs.is_weighted:
        has_floor = label_kernels.WEIGHT, label_kernels.WEIGHT_NO_FLOOR
    else:
        has_floor = label_kernels.COUNT, label_kernels.COUNT_NO_FLOOR
    return has_floor[0 if options.has_divisor_floor else 1], 0


_Context = tuple[torch.Size, int, tuple[int, ...]]  # of labels: shape, classes, ignored
_call_ids: dict[_Context, int] = {}
_deferred: dict[torch.device, Tensor] = {}


def _deferred_report(device: torch.device) -> Tensor:
    """Returns a report in host memory, which kernels write to only if something is invalid."""
    if device not in _deferred:
        if not _deferred:
            _labels.register_pending(_take_error)
        pinned = device.type == "cuda"
        _deferred[device] = torch.zeros(
            label_kernels.REPORT_SIZE, dtype=torch.int64, pin_memory=pinned
        )
    return _deferred[device]


def _take_error(wait: bool) -> InvalidInput | None:
    for device, report in _deferred.items():
        if wait and device.type == "cuda":
            torch.cuda.synchronize(device)
        fields = report.tolist()
        call_id = fields[_value(label_kernels.CALL_ID)]
        if call_id:
            report.zero_()
            shape, num_classes, ignored = list(_call_ids)[call_id // 16 - 1]
            return _labels.error_for(_label_report(fields, shape), num_classes, ignored)
    return None


def _call_id(context: _Context) -> int:
    """Returns a stable id of a context (shape, classes, ignored).

    It is a multiple of 16 and never 0 or 1: for other numbers Triton would compile a kernel again.
    """
    return _call_ids.setdefault(context, 16 * (len(_call_ids) + 1))


def _label_report(fields: Sequence[int], shape: torch.Size) -> LabelReport:
    """Returns the report that a kernel has written."""

    def invalid(kind: Any, shape: Sequence[int], *, is_float: bool) -> InvalidValues | None:
        count, offset, value = fields[_value(kind) : _value(kind) + 3]
        if not count:
            return None
        index = []
        for size in reversed(shape):
            offset, last = divmod(offset, size)
            index.append(last)
        number = _float_from_bits(value) if is_float else value
        return InvalidValues(count, tuple(reversed(index)), number)

    return LabelReport(
        labels=invalid(label_kernels.INVALID_LABELS, shape, is_float=False),
        pixel_weights=invalid(label_kernels.INVALID_PIXEL_WEIGHTS, shape, is_float=True),
        class_weights=invalid(label_kernels.INVALID_CLASS_WEIGHTS, (1 << 62,), is_float=True),
    )


# -- from tensors to arguments of kernels ----------------------------------------------------------


def _launch(
    inputs: LossInputs,
    found: _LabelCheck,
    *,
    axes: Axes | None = None,
    gradient: Tensor | None = None,
    keep_sums: bool = False,
    divisor_source: Any = label_kernels.CONSTANT,
    divisor_value: Tensor | int = 0,
    loss: Tensor | None = None,
    grad_output: Tensor | None = None,
    skip_if_unit_grad: bool = False,
    **outputs: Tensor | None,
) -> Tensor | None:
    """Runs `cross_entropy_kernel`; with `keep_sums`, returns the sum of the terms of each image.

    Otherwise small images are processed as one. With `axes` the logits are scores to upsample.
    """
    logits = inputs.logits
    source, target = logits, gradient
    is_small = logits.shape[2:].numel() < tiling.SMALL_IMAGE
    if axes is None and is_small and not keep_sums:
        source, target = (
            _as_one_image(logits),
            None if gradient is None else _as_one_image(gradient),
        )
    tensors = [source] if target is None else [source, target]
    tiles = tile(*tensors) if axes is None else _tile_upsampled(source, axes)
    written = target
    if tiles is None:
        # More than three spatial axes that cannot be merged are too rare for the kernels.
        source = source.contiguous()
        if target is not None:
            # An existing gradient may be all there is to do.
            written = target.contiguous() if skip_if_unit_grad else torch.empty_like(source)
        tiles = tile(*([source] if written is None else [source, written]))
        assert tiles is not None
    if outputs.get("top_classes") is not None:
        tiles = replace(tiles, shape=tiles.shape.with_more_warps())
    # The sum of an image must not depend on the other images of the batch.
    num_tiles = tiles.tiles if keep_sums else tiles.num_images * tiles.tiles
    per_program = max(1, num_tiles // tiling.MANY_PROGRAMS)
    if skip_if_unit_grad:
        per_program = max(1, -(-tiles.num_images * tiles.tiles // tiling.BACKWARD_PROGRAMS))
    per_image = -(-tiles.tiles // per_program)
    programs = tiles.num_images * per_image
    partial = None
    if loss is not None or keep_sums:
        partial = torch.empty(programs, dtype=torch.float64, device=logits.device)
    reports = found.report is not None
    # Without any pixel, one program still writes the loss and the report.
    if programs or loss is not None or reports:
        _run(
            cross_entropy_kernels.cross_entropy_kernel, max(programs, 1),
            source, tiles.strides[0], None if axes is None else _grid(source, axes),
            inputs.labels, inputs.class_weight, inputs.pixel_weight,
            written, tiles.strides[-1], outputs.get("grad_planes"), outputs.get("terms"),
            outputs.get("prediction"), outputs.get("nll_map"), outputs.get("confidence_map"),
            outputs.get("entropy_map"), outputs.get("top_classes"),
            outputs.get("top_probabilities"),
            found.counts, found.weights, found.programs, divisor_value,
            outputs.get("divisor"), grad_output,
            partial if programs or partial is None else partial.new_zeros(1),
            found.finished if loss is not None or reports else None, loss,
            found.report, found.call_id,
            tiles.pixels if programs else 0, inputs.labels.numel(), tiles.rows, tiles.columns,
            max(per_image, 1), per_program, inputs.ignored,
            *_option_bits(inputs),
            DIVISOR=_value(divisor_source), NUM_PARTIALS=found.padded_programs,
            HAS_TEMPERATURE=inputs.options.temperature != 1,
            IS_SMOOTHED=inputs.options.label_smoothing != 0,
            SKIP_IF_UNIT_GRAD=skip_if_unit_grad, **tiles.constants,
        )  # fmt: skip
    if target is not None and written is not None and written is not target:
        target.copy_(written)
    if not keep_sums or partial is None:
        return None
    return partial.view(tiles.num_images, per_image).sum(dim=1)


def _launch_upsampled(
    inputs: LossInputs, found: _LabelCheck, axes: Axes, loss: Tensor, gradient: Tensor
) -> None:
    """Runs `upsampled_cross_entropy_kernel`.

    If a program cannot hold all classes of a pixel, `cross_entropy_kernel` runs before it.
    """
    source, value = _divisor(inputs)
    scores, num_pixels = inputs.logits, inputs.labels.numel()
    rows, columns = axes
    num_images, num_classes = scores.shape[:2]
    shape = tiling.upsampled_tile_shape(num_classes, is_double=scores.dtype == torch.float64)
    grad_planes = None
    if shape.chunk is not None:
        num_planes = 3 if inputs.options.label_smoothing == 0 else 4
        grad_planes = torch.empty((num_planes, num_pixels), dtype=loss.dtype, device=scores.device)
        _launch(
            inputs,
            found,
            axes=axes,
            grad_planes=grad_planes,
            divisor_source=source,
            divisor_value=value,
            loss=loss,
        )
        source, value = label_kernels.CONSTANT, _bits(1.0)  # the planes include the divisor
    chunks = 1 if shape.chunk is None else -(-num_classes // shape.chunk)
    tiles = -(-columns.num_sources // (shape.intervals - 1))
    block_rows = shape.block_rows(num_images * tiles * chunks, rows.num_sources)
    row_blocks = -(-rows.num_sources // block_rows)
    programs = num_images * row_blocks * tiles * chunks
    if grad_planes is not None and not programs:
        return
    reduces = grad_planes is None
    row_starts, _, row_weights = _tables(rows, scores)
    column_starts, _, column_weights = _tables(columns, scores)
    _run(
        upsampled_kernels.upsampled_cross_entropy_kernel, max(programs, 1),
        scores, *scores.stride(), inputs.labels, inputs.class_weight, inputs.pixel_weight,
        gradient, *gradient.stride(), grad_planes,
        row_starts, row_weights, column_starts, column_weights,
        found.counts, found.weights, found.programs, value,
        torch.empty(max(programs, 1), dtype=torch.float64, device=scores.device)
        if reduces else None,
        found.finished if reduces else None, loss if reduces else None,
        found.report if reduces else None, found.call_id,
        # Without any pixel, one program still writes the loss and the report.
        rows.num_sources if programs else -1, columns.num_sources,
        rows.num_targets, columns.num_targets, num_pixels,
        row_blocks, tiles, block_rows, inputs.ignored,
        *_option_bits(inputs),
        C=num_classes, CHUNK=shape.chunk or num_classes, BLOCK_C=shape.classes,
        INTERVALS=shape.intervals, ROW_GROUPS=shape.row_groups,
        DIVISOR=_value(source), NUM_PARTIALS=found.padded_programs,
        HAS_TEMPERATURE=inputs.options.temperature != 1,
        IS_SMOOTHED=inputs.options.label_smoothing != 0,
        SKIPS_ZERO_WEIGHTS=columns.has_zero_weights,
        num_warps=shape.num_warps, maxnreg=shape.max_registers,
    )  # fmt: skip


def _run(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Launches on the device of the first argument, which may not be torch's current one."""
    first = arguments[0]
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        kernel[(programs,)](*arguments, **constants, enable_fp_fusion=True)


def _contiguous(inputs: LossInputs) -> LossInputs:
    """Returns the inputs with contiguous labels and weights, which are small."""
    class_weight, pixel_weight = inputs.class_weight, inputs.pixel_weight
    return replace(
        inputs,
        labels=inputs.labels.contiguous(),
        class_weight=None if class_weight is None else class_weight.contiguous(),
        pixel_weight=None if pixel_weight is None else pixel_weight.contiguous(),
    )


def _as_one_image(tensor: Tensor) -> Tensor:
    """Returns a view of [N, C, *spatial] as [1, C, N, *spatial]."""
    return tensor.movedim(0, 1).unsqueeze(0)


def tile(*tensors: Tensor) -> Tiling | None:
    """Tiles tensors [N, C, *spatial] of one shape; None if they need over three spatial axes."""
    shape = tensors[0].shape
    axes: list[tuple[int, list[int]]] = []  # size, and the stride in each tensor
    for axis in range(2, len(shape)):
        if shape[axis] == 1:
            continue
        strides = [tensor.stride(axis) for tensor in tensors]
        if axes and all(
            outer == inner * shape[axis] for outer, inner in zip(axes[-1][1], strides, strict=True)
        ):
            axes[-1] = axes[-1][0] * shape[axis], strides
        else:
            axes.append((shape[axis], strides))
    if len(axes) > 3:
        return None
    padded = [(1, [1] * len(tensors))] * (3 - len(axes)) + axes
    first = tensors[0]
    return Tiling(
        num_images=shape[0],
        num_classes=shape[1],
        pixels=shape[2:].numel(),
        rows=padded[1][0],
        columns=padded[2][0],
        axes=max(1, len(axes)),
        shape=tiling.tile_shape(
            shape[1],
            channels_last=first.stride(1) == 1 and padded[2][1][0] != 1,
            is_double=first.dtype == torch.float64,
        ),
        strides=tuple(
            _Strides(tensor.stride(0), tensor.stride(1), *(axis[1][k] for axis in padded))
            for k, tensor in enumerate(tensors)
        ),
    )


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
        strides=(_Strides(image, class_, 0, row, column),),
    )


_Tables = tuple[Tensor, Tensor, Tensor]  # starts and intervals, int32, and weights
_tables_of: weakref.WeakKeyDictionary[Axis, dict[tuple[torch.device, torch.dtype], _Tables]] = (
    weakref.WeakKeyDictionary()
)


def _tables(axis: Axis, scores: Tensor) -> _Tables:
    """Returns an axis in the memory of the scores' device, in the precision of the loss.

    The first call for an axis copies it, and the host waits for that.
    """
    cached = _tables_of.setdefault(axis, {})
    key = scores.device, loss_dtype(scores)
    if key not in cached:
        starts, intervals, weights = (
            torch.from_numpy(array) for array in (axis.starts, axis.intervals, axis.weights)
        )
        cached[key] = starts.to(key[0]), intervals.to(key[0]), weights.to(*key)
    return cached[key]


def _grid(scores: Tensor, axes: Axes) -> tuple[Tensor, ...]:
    """Returns intervals and weights of rows and of columns, for `cross_entropy_kernel`."""
    return tuple(table for axis in axes for table in _tables(axis, scores)[1:])


def _is_capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _option_bits(inputs: LossInputs) -> tuple[int, int, int]:
    """Returns the options that are numbers as bits, so that no value causes a compilation."""
    options = inputs.options
    return _bits(1 / options.temperature), _bits(options.label_smoothing), _bits(options.max_nll)


def _bits(value: float) -> int:
    """Returns the bits of a float64 as an int64."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits)


def _float_from_bits(bits: int) -> float:
    (value,) = struct.unpack("<d", struct.pack("<q", bits))
    return float(value)


def _value(constant: Any) -> int:
    """Returns the value of a `tl.constexpr`."""
    return int(constant.value)
