"""The GPU backend: tensors in, Triton kernels on their device, tensors out.

Called by `ops` and `evaluation`; the tensors were checked by `checks`. A loss takes two launches:
the survey of the labels, which gives the divisor and finds bad labels, and the loss itself with its
gradient, whose last program adds up. Nothing waits for the device but `check_labels="raise"`, at
the end.

Bytes a pixel with labels of one byte, E bytes an element: loss alone C E + 2; loss and gradient
2 C E + 2, autograd's gradient for an upstream of 1 included; a backward pass for another upstream
2 C E + 1 more. Beyond the gradient: 8 bytes for each tile of pixels, less than one a pixel.

Upsampled scores are read where their pixels lie, from the caches; logits and their gradient are in
registers alone. Beyond the gradient: 8 bytes for each tile of nodes; of more than 256 classes 12 or
16 for each pixel; and the gradient once more if it overwrites the scores.

Integer labels and weights are taken in any order in memory, but copied if it is not the plain one:
they are small. Logits and gradient are not copied, unless more than three spatial axes lie apart.
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

from seg_loss import _inputs as checks
from seg_loss import _labels as label_check
from seg_loss._divisor import known_divisor
from seg_loss._evaluation_sums import Tallies
from seg_loss._inputs import InvalidInput, LossInputs
from seg_loss._label_report import Finding, Survey
from seg_loss.gpu import kernels
from seg_loss.gpu import tiling as blocks
from seg_loss.gpu import upsampled as upsampling_kernels
from seg_loss.upsampling import Axes, Axis

_NO_NUMBER = 0


class _Strides(NamedTuple):
    """Of [N, C, *spatial] with the spatial axes merged to at most three, in elements."""

    image: int
    class_: int
    slice_: int
    row: int
    column: int


@dataclass(frozen=True)
class _Cut:
    """Logits and gradient as the kernels walk them: images of `pixels`, in tiles of `blocks`."""

    num_images: int
    num_classes: int
    pixels: int
    rows: int
    columns: int
    axes: int
    blocks: blocks.Blocks
    strides: tuple[_Strides, ...]

    @property
    def tiles(self) -> int:
        return -(-self.pixels // self.blocks.pixels)

    @property
    def constants(self) -> dict[str, Any]:
        return {
            "C": self.num_classes,
            "BLOCK_C": self.blocks.classes,
            "BLOCK_P": self.blocks.pixels,
            "HELD": self.num_classes <= blocks.MAX_HELD_CLASSES,
            "AXES": self.axes,
            "num_warps": self.blocks.num_warps,
        }


def cross_entropy(inputs: LossInputs, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """The loss and its divisor; fills `gradient`, which may be the logits, if given."""
    inputs = _in_order(inputs)
    found = _survey(inputs)
    kind, given = _divisor(inputs)
    logits = inputs.logits
    loss = torch.empty((), dtype=checks.map_dtype(logits), device=logits.device)
    divisor = torch.empty((), dtype=torch.float64, device=logits.device)
    _launch(
        inputs, found,
        gradient=gradient, DIVISOR=kind, divisor_given=given, loss=loss, divisor=divisor,
    )  # fmt: skip
    _settle(inputs, found)
    return loss, divisor


def cross_entropy_gradient(
    inputs: LossInputs, divisor: Tensor, upstream: Tensor, gradient: Tensor, *, unless_one: bool
) -> None:
    """Fill `gradient` with upstream / divisor * d(sum of terms) / d(logits).

    With `unless_one` it holds the gradient for an upstream of 1 already, and the device leaves it
    alone for one.
    """
    _launch(
        _in_order(inputs), _Found(), gradient=gradient,
        DIVISOR=_value(kernels.GIVEN), divisor_given=divisor,
        upstream=upstream, UNLESS_ONE=unless_one,
    )  # fmt: skip


def upsampled_cross_entropy(inputs: LossInputs, axes: Axes, gradient: Tensor | None) -> Tensor:
    """The loss of upsampled scores; fills `gradient`, which may be the scores, if given."""
    inputs = _in_order(inputs)
    found = _survey(inputs)
    kind, given = _divisor(inputs)
    scores = inputs.logits
    loss = torch.empty((), dtype=checks.map_dtype(scores), device=scores.device)
    if gradient is None:
        _launch(inputs, found, axes=axes, DIVISOR=kind, divisor_given=given, loss=loss)
    else:
        # Programs read scores of each other's nodes.
        is_in_place = gradient.data_ptr() == scores.data_ptr() and gradient.numel() > 0
        written = torch.empty_like(gradient) if is_in_place else gradient
        _launch_upsampled(inputs, found, axes, kind, given, loss, written)
        if is_in_place:
            gradient.copy_(written)
    _settle(inputs, found)
    return loss


def pixel_terms(inputs: LossInputs, terms: Tensor) -> None:
    """Fill `terms` [N, *spatial], contiguous."""
    inputs = _in_order(inputs)
    found = _survey(inputs)
    _launch(inputs, found, terms=terms)
    _settle(inputs, found)


def evaluate(inputs: LossInputs, axes: Axes | None, maps: dict[str, Tensor]) -> Tallies:
    """Everything one read of the logits can tell; fills `maps`."""
    inputs = _in_order(inputs)
    found = _survey(inputs)
    # The tally needs these three, in the precision of the loss.
    wide = checks.map_dtype(inputs.logits)
    index = maps["prediction"].dtype if "prediction" in maps else torch.int32
    tallied = {
        name: maps[name]
        if name in maps and maps[name].dtype == dtype
        else torch.empty(inputs.labels.shape, dtype=dtype, device=inputs.logits.device)
        for name, dtype in (("prediction", index), ("nll", wide), ("confidence", wide))
    }
    sums = _launch(
        inputs, found, axes=axes,
        prediction=tallied["prediction"], nll_map=tallied["nll"],
        confidence_map=tallied["confidence"], entropy_map=maps.get("entropy"),
        top_classes=maps.get("top_classes"), top_probabilities=maps.get("top_probabilities"),
        keep_sums=True,
    )  # fmt: skip
    assert sums is not None
    _settle(inputs, found)
    for name, values in tallied.items():
        if name in maps and maps[name] is not values:
            maps[name].copy_(values)
    return _tally(inputs, sums, tallied, maps)


def _tally(
    inputs: LossInputs, sums: Tensor, tallied: dict[str, Tensor], maps: dict[str, Tensor]
) -> Tallies:
    """Count over the maps `prediction`, `nll` and `confidence` that a launch has filled."""
    (num_images, *size), num_classes = inputs.labels.shape, inputs.logits.shape[1]
    pixels = math.prod(size) if num_images else 0
    per_image = max(1, min(-(-pixels // blocks.TALLY_RUN), blocks.MAX_TALLY_PROGRAMS))
    programs = num_images * per_image
    copies = max(1, min(64, (1 << 17) // num_classes**2))
    device = inputs.labels.device

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    confusion = torch.zeros((copies, num_classes, num_classes), dtype=torch.int64, device=device)
    num_tallies, bin_rows = _value(kernels.NUM_TALLIES), _value(kernels.BIN_ROWS)
    num_bins = _value(kernels.NUM_BINS)
    image_counts = empty(programs, num_tallies)
    image_weights = empty(programs, dtype=torch.float64)
    bin_counts = empty(programs, 2, bin_rows)
    bin_confidence = empty(programs, bin_rows, dtype=torch.float64)
    class_nll = empty(programs, num_classes, dtype=torch.float64)
    if programs:
        _run(
            kernels.tally_kernel, programs,
            inputs.labels, tallied["prediction"], tallied["nll"], tallied["confidence"],
            inputs.class_weight, inputs.pixel_weight,
            confusion, copies, image_counts, image_weights, bin_counts, bin_confidence, class_nll,
            pixels, per_image, -(-pixels // per_image), inputs.ignored,
            C=num_classes, BLOCK_C=blocks.TALLY_CLASSES, BLOCK_P=blocks.TALLY_PIXELS,
            num_warps=blocks.TALLY_WARPS,
        )  # fmt: skip
    counts = image_counts.view(num_images, per_image, num_tallies).sum(dim=1).cpu()
    bins = bin_counts.sum(dim=0)[:, :num_bins].cpu()
    weights = image_weights.view(num_images, per_image).sum(dim=1)
    return Tallies(
        loss=sums.cpu(),
        valid_pixels=counts[:, _value(kernels.PIXELS)].clone(),
        weight=weights.cpu() if inputs.is_weighted else None,
        class_nll=class_nll.sum(dim=0).cpu(),
        confusion=confusion.sum(dim=0).cpu(),
        bin_pixels=bins[0],
        bin_correct=bins[1],
        bin_confidence=bin_confidence.sum(dim=0)[:num_bins].cpu(),
        num_saturated=int(counts[:, _value(kernels.SATURATED)].sum()),
        num_non_finite=int(counts[:, _value(kernels.NON_FINITE)].sum()),
        maps=maps,
    )


def softmax(logits: Tensor, axis: int, temperature: float) -> Tensor:
    """softmax(logits / temperature) along `axis`, in the dtype and memory order of `logits`."""
    return _softmax(logits, axis, temperature, None)


def softmax_gradient(upstream: Tensor, logits: Tensor, axis: int, temperature: float) -> Tensor:
    """The gradient with respect to `logits`, given `upstream`, the one with respect to softmax."""
    return _softmax(logits, axis, temperature, upstream.to(logits.dtype))


def _softmax(logits: Tensor, axis: int, temperature: float, upstream: Tensor | None) -> Tensor:
    out = torch.empty_like(logits)
    if not out.numel():
        return out
    tensors = [logits, out, *([] if upstream is None else [upstream])]
    by_axis = [tensor.movedim(axis, 0).unsqueeze(0) for tensor in tensors]
    cut = _cut(*by_axis)
    if cut is None:
        plain = [tensor.contiguous() for tensor in by_axis]
        cut = _cut(*plain)
        assert cut is not None
        source, target, *above = plain
    else:
        source, target, *above = by_axis
    _run(
        kernels.softmax_kernel, cut.tiles,
        source, cut.strides[0], target, cut.strides[1],
        above[0] if above else None, cut.strides[2] if above else cut.strides[0],
        cut.pixels, cut.rows, cut.columns, _bits(1 / temperature),
        HAS_TEMPERATURE=temperature != 1, **cut.constants,
    )  # fmt: skip
    if target is not by_axis[1]:
        by_axis[1].copy_(target)
    return out


# -- the survey, and what is done about it ---------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """What the survey of the labels leaves on the device; nothing where it was made before.

    Attributes:
        counts, weights: of each of its programs.
        finished: how many programs of the loss are done.
        report: where the last of them tells what is bad, if anyone is to hear of it.
        ticket: by which a report says what it is about.
        is_awaited: whether the report is waited for.
    """

    counts: Tensor | None = None
    weights: Tensor | None = None
    programs: int = 0
    finished: Tensor | None = None
    report: Tensor | None = None
    ticket: int = 0
    is_awaited: bool = False

    @property
    def room(self) -> int:
        """For the programs' counts, a power of two."""
        return max(1, 1 << (self.programs - 1).bit_length())


def _survey(inputs: LossInputs) -> _Found:
    """Let the device count the labels, and make ready to hear what is bad."""
    labels, device, num_classes = inputs.labels, inputs.labels.device, inputs.logits.shape[1]
    check_labels = inputs.check_labels
    if check_labels == "raise" and _is_capturing(labels):
        check_labels = "defer"  # a graph under capture cannot be waited for
    deferred = _deferred_report(device)  # made before any capture, where it could not be
    pixels = labels.numel()
    programs = max(1, min(-(-pixels // blocks.SURVEY_PIXELS), blocks.MAX_SURVEY_PROGRAMS))
    number = _value(kernels.NUM_COUNTS) * programs
    counts = torch.empty(number, dtype=torch.int64, device=device)
    weights = torch.empty(programs, dtype=torch.float64, device=device)
    finished = torch.empty((), dtype=torch.int32, device=device)
    _run(
        kernels.survey_kernel, programs,
        labels, inputs.class_weight, inputs.pixel_weight, counts, weights, finished,
        pixels, -(-pixels // programs), inputs.ignored,
        C=num_classes, BLOCK_P=blocks.SURVEY_PIXELS, num_warps=blocks.SURVEY_WARPS,
    )  # fmt: skip
    report = deferred if check_labels == "defer" else None
    if check_labels == "raise":
        report = torch.zeros(kernels.REPORT_SIZE, dtype=torch.int64, device=device)
    ticket = _ticket((labels.shape, num_classes, tuple(inputs.ignored)))
    is_awaited = check_labels == "raise"
    return _Found(counts, weights, programs, finished, report, ticket, is_awaited)


def _settle(inputs: LossInputs, found: _Found) -> None:
    """Wait for the report if it is to be raised now."""
    if found.is_awaited:
        assert found.report is not None
        survey = _survey_of(found.report.tolist(), inputs.labels.shape)
        refusal = checks.judge(survey, inputs.logits.shape[1], inputs.ignored)
        label_check.settle(refusal, "raise")


def _divisor(inputs: LossInputs) -> tuple[int, int]:
    """What the divisor is, and the bits of its number if it is known already."""
    normalization, shape = inputs.normalization, inputs.labels.shape
    known = known_divisor(normalization, shape[0], shape.numel())
    if known is not None:
        return _value(kernels.CONSTANT), _bits(known)
    by_weight = normalization in ("weight", "torch_mean") and inputs.is_weighted
    if normalization == "torch_mean":
        return _value(kernels.BARE_WEIGHT if by_weight else kernels.BARE_COUNT), _NO_NUMBER
    return _value(kernels.WEIGHT if by_weight else kernels.COUNT), _NO_NUMBER


_Context = tuple[torch.Size, int, tuple[int, ...]]  # of labels: shape, classes, ignored
_tickets: dict[_Context, int] = {}
_deferred: dict[torch.device, Tensor] = {}


def _deferred_report(device: torch.device) -> Tensor:
    """A report in memory of the host's that kernels write to only when there is something bad."""
    if device not in _deferred:
        if not _deferred:
            label_check.add_source(_take_report)
        pinned = device.type == "cuda"
        _deferred[device] = torch.zeros(kernels.REPORT_SIZE, dtype=torch.int64, pin_memory=pinned)
    return _deferred[device]


def _take_report(wait: bool) -> InvalidInput | None:
    for device, report in _deferred.items():
        if wait and device.type == "cuda":
            torch.cuda.synchronize(device)
        fields = report.tolist()
        ticket = fields[_value(kernels.TICKET)]
        if ticket:
            report.zero_()
            shape, num_classes, ignored = list(_tickets)[ticket // 16 - 1]
            return checks.judge(_survey_of(fields, shape), num_classes, ignored)
    return None


def _ticket(context: _Context) -> int:
    """A number by which a report says what it is about; the same for the same.

    A multiple of 16, never 1 or 0: for other numbers Triton would compile the kernel again.
    """
    return _tickets.setdefault(context, 16 * (len(_tickets) + 1))


def _survey_of(report: Sequence[int], shape: torch.Size) -> Survey:
    """The report of a kernel in the host's words."""

    def finding(kind: Any, shape: Sequence[int], *, is_float: bool) -> Finding | None:
        number, place, value = report[_value(kind) : _value(kind) + 3]
        if not number:
            return None
        index = []
        for size in reversed(shape):
            place, rest = divmod(place, size)
            index.append(rest)
        return Finding(number, tuple(reversed(index)), _number(value) if is_float else value)

    return Survey(
        finding(kernels.BAD_LABELS, shape, is_float=False),
        finding(kernels.BAD_WEIGHTS, shape, is_float=True),
        finding(kernels.BAD_CLASS_WEIGHTS, (1 << 62,), is_float=True),
    )


# -- from tensors to what kernels take -------------------------------------------------------------


def _launch(
    inputs: LossInputs,
    found: _Found,
    *,
    axes: Axes | None = None,
    gradient: Tensor | None = None,
    keep_sums: bool = False,
    DIVISOR: int = 0,  # noqa: N803 - the kernel's constants
    divisor_given: Tensor | int = 0,
    loss: Tensor | None = None,
    upstream: Tensor | None = None,
    UNLESS_ONE: bool = False,  # noqa: N803
    **outputs: Tensor | None,
) -> Tensor | None:
    """Run `cross_entropy_kernel`; with `keep_sums`, return the sum of the terms of each image.

    Without, small images are worked on as one. With `axes` it is that of upsampled scores.
    """
    logits = inputs.logits
    source, target = logits, gradient
    is_small = logits.shape[2:].numel() < blocks.SMALL_IMAGE
    if axes is None and is_small and not keep_sums:
        source, target = (
            _as_one_image(logits),
            None if gradient is None else _as_one_image(gradient),
        )
    tensors = [source] if target is None else [source, target]
    cut = _cut(*tensors) if axes is None else _upsampled_cut(source, axes)
    written = target
    if cut is None:
        # More than three spatial axes in an order of their own: too rare to carry along.
        source = source.contiguous()
        if target is not None:
            # What is there already may be all there is to do.
            written = target.contiguous() if UNLESS_ONE else torch.empty_like(source)
        cut = _cut(*([source] if written is None else [source, written]))
        assert cut is not None
    if outputs.get("top_classes") is not None:
        cut = replace(cut, blocks=cut.blocks.with_more_warps())
    # An image's sum must not depend on what else is in the batch.
    tiles = cut.tiles if keep_sums else cut.num_images * cut.tiles
    per_program = max(1, tiles // blocks.MANY_PROGRAMS)
    if UNLESS_ONE:
        per_program = max(1, -(-cut.num_images * cut.tiles // blocks.BACKWARD_PROGRAMS))
    per_image = -(-cut.tiles // per_program)
    programs = cut.num_images * per_image
    partial = None
    if loss is not None or keep_sums:
        partial = torch.empty(programs, dtype=torch.float64, device=logits.device)
    reports = found.report is not None
    # With nothing to do one program still writes loss and report.
    if programs or loss is not None or reports:
        _run(
            kernels.cross_entropy_kernel, max(programs, 1),
            source, cut.strides[0], None if axes is None else _mesh(source, axes),
            inputs.labels, inputs.class_weight, inputs.pixel_weight,
            written, cut.strides[-1], outputs.get("slopes"), outputs.get("terms"),
            outputs.get("prediction"), outputs.get("nll_map"), outputs.get("confidence_map"),
            outputs.get("entropy_map"), outputs.get("top_classes"),
            outputs.get("top_probabilities"),
            found.counts, found.weights, found.programs, divisor_given,
            outputs.get("divisor"), upstream,
            partial if programs or partial is None else partial.new_zeros(1),
            found.finished if loss is not None or reports else None, loss,
            found.report, found.ticket,
            cut.pixels if programs else 0, inputs.labels.numel(), cut.rows, cut.columns,
            max(per_image, 1), per_program, inputs.ignored,
            *_numbers(inputs),
            DIVISOR=DIVISOR, SURVEYED=found.room,
            HAS_TEMPERATURE=inputs.temperature != 1, IS_SMOOTHED=inputs.label_smoothing != 0,
            UNLESS_ONE=UNLESS_ONE, **cut.constants,
        )  # fmt: skip
    if target is not None and written is not None and written is not target:
        target.copy_(written)
    if not keep_sums or partial is None:
        return None
    return partial.view(cut.num_images, per_image).sum(dim=1)


def _launch_upsampled(
    inputs: LossInputs,
    found: _Found,
    axes: Axes,
    kind: int,
    given: int,
    loss: Tensor,
    gradient: Tensor,
) -> None:
    """Run `upsampled_cross_entropy_kernel`, after `cross_entropy_kernel` if there are so many
    classes that a program cannot hold a pixel's.
    """
    scores, num_pixels = inputs.logits, inputs.labels.numel()
    rows, columns = axes
    num_images, num_classes = scores.shape[:2]
    cut = blocks.cells_for(num_classes, is_double=scores.dtype == torch.float64)
    slopes = None
    if cut.chunk is not None:
        shape = (3 if inputs.label_smoothing == 0 else 4, num_pixels)
        slopes = torch.empty(shape, dtype=loss.dtype, device=scores.device)
        _launch(
            inputs, found, axes=axes, slopes=slopes, DIVISOR=kind, divisor_given=given, loss=loss
        )
        kind, given = _value(kernels.CONSTANT), _bits(1.0)  # it is in the slopes
    chunks = 1 if cut.chunk is None else -(-num_classes // cut.chunk)
    tiles = -(-columns.num_nodes // (cut.cells - 1))
    band_rows = cut.band_rows(num_images * tiles * chunks, rows.num_nodes)
    bands = -(-rows.num_nodes // band_rows)
    programs = num_images * bands * tiles * chunks
    if slopes is not None and not programs:
        return
    finishes = slopes is None
    row_starts, _, row_weights = _tables(rows, scores)
    column_starts, _, column_weights = _tables(columns, scores)
    _run(
        upsampling_kernels.upsampled_cross_entropy_kernel, max(programs, 1),
        scores, *scores.stride(), inputs.labels, inputs.class_weight, inputs.pixel_weight,
        gradient, *gradient.stride(), slopes,
        row_starts, row_weights, column_starts, column_weights,
        found.counts, found.weights, found.programs, given,
        torch.empty(max(programs, 1), dtype=torch.float64, device=scores.device)
        if finishes else None,
        found.finished if finishes else None, loss if finishes else None,
        found.report if finishes else None, found.ticket,
        # With nothing to do one program still writes loss and report.
        rows.num_nodes if programs else -1, columns.num_nodes,
        rows.num_positions, columns.num_positions, num_pixels,
        bands, tiles, band_rows, inputs.ignored,
        *_numbers(inputs),
        C=num_classes, CHUNK=cut.chunk or num_classes, BLOCK_C=cut.classes,
        CELLS=cut.cells, PARTS=cut.parts,
        DIVISOR=kind, SURVEYED=found.room, HAS_TEMPERATURE=inputs.temperature != 1,
        IS_SMOOTHED=inputs.label_smoothing != 0, SKIPS=columns.has_unread_nodes,
        num_warps=cut.num_warps, maxnreg=cut.max_registers,
    )  # fmt: skip


def _run(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Launch on the device of the first argument, which need not be torch's current one."""
    first = arguments[0]
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        kernel[(programs,)](*arguments, **constants, enable_fp_fusion=True)


def _in_order(inputs: LossInputs) -> LossInputs:
    """With labels and weights in the plain order of memory: they are small."""
    class_weight, pixel_weight = inputs.class_weight, inputs.pixel_weight
    return replace(
        inputs,
        labels=inputs.labels.contiguous(),
        class_weight=None if class_weight is None else class_weight.contiguous(),
        pixel_weight=None if pixel_weight is None else pixel_weight.contiguous(),
        ignored=tuple(inputs.ignored),
    )


def _as_one_image(tensor: Tensor) -> Tensor:
    """[N, C, *spatial] as [1, C, N, *spatial], a view."""
    return tensor.movedim(0, 1).unsqueeze(0)


def _cut(*tensors: Tensor) -> _Cut | None:
    """Cut tensors [N, C, *spatial] of one shape; None if three spatial axes are too few."""
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
    return _Cut(
        num_images=shape[0],
        num_classes=shape[1],
        pixels=shape[2:].numel(),
        rows=padded[1][0],
        columns=padded[2][0],
        axes=max(1, len(axes)),
        blocks=blocks.blocks_for(
            shape[1],
            channels_last=first.stride(1) == 1 and padded[2][1][0] != 1,
            is_double=first.dtype == torch.float64,
        ),
        strides=tuple(
            _Strides(tensor.stride(0), tensor.stride(1), *(axis[1][place] for axis in padded))
            for place, tensor in enumerate(tensors)
        ),
    )


def _upsampled_cut(scores: Tensor, axes: Axes) -> _Cut:
    """Cut the upsampled logits of scores [N, C, h, w]; the strides are those of the scores."""
    rows, columns = (axis.num_positions for axis in axes)
    image, class_, row, column = scores.stride()
    return _Cut(
        num_images=scores.shape[0],
        num_classes=scores.shape[1],
        pixels=rows * columns,
        rows=rows,
        columns=columns,
        axes=2,
        blocks=blocks.interpolated_blocks_for(
            scores.shape[1], is_double=scores.dtype == torch.float64
        ),
        strides=(_Strides(image, class_, 0, row, column),),
    )


_Tables = tuple[Tensor, Tensor, Tensor]  # starts and cells, int32, and weights
_tables_of: weakref.WeakKeyDictionary[Axis, dict[tuple[torch.device, torch.dtype], _Tables]] = (
    weakref.WeakKeyDictionary()
)


def _tables(axis: Axis, scores: Tensor) -> _Tables:
    """An axis in the memory of the scores' device, in the precision of their loss.

    Copied there the first time, which the host waits for.
    """
    made = _tables_of.setdefault(axis, {})
    key = scores.device, checks.map_dtype(scores)
    if key not in made:
        starts, cells, weights = (
            torch.from_numpy(array) for array in (axis.starts, axis.cells, axis.weights)
        )
        made[key] = starts.to(key[0]), cells.to(key[0]), weights.to(*key)
    return made[key]


def _mesh(scores: Tensor, axes: Axes) -> tuple[Tensor, ...]:
    """Cells and weights of rows and of columns, as `cross_entropy_kernel` takes them."""
    return tuple(table for axis in axes for table in _tables(axis, scores)[1:])


def _is_capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _numbers(inputs: LossInputs) -> tuple[int, int, int]:
    """The options that are numbers, as bits: their values compile nothing anew."""
    return _bits(1 / inputs.temperature), _bits(inputs.label_smoothing), _bits(inputs.max_nll)


def _bits(number: float) -> int:
    """A float64's bits as an int64."""
    (bits,) = struct.unpack("<q", struct.pack("<d", number))
    return int(bits)


def _number(bits: int) -> float:
    (number,) = struct.unpack("<d", struct.pack("<q", bits))
    return float(number)


def _value(constant: Any) -> int:
    """Of a `tl.constexpr`."""
    return int(constant.value)
