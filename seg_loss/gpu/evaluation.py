"""Launches the kernels of `evaluate`, and copies their results to the host at once.

It takes five launches: the label check; one pass over the logits, which writes maps; the counts
over the maps; the sums of the nll; and the sums of what tiles and programs have stored. The
prediction, nll and confidence of each pixel are temporary memory unless they are asked for.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from seg_loss._evaluation_sums import EvaluationSums
from seg_loss._inputs import LossInputs, loss_dtype
from seg_loss.gpu import evaluate as evaluate_kernels
from seg_loss.gpu import many_classes as many_classes_kernels
from seg_loss.gpu import tiling
from seg_loss.gpu.arguments import (
    can_start_early,
    compiler_options,
    early_options,
    empty,
    grid_tables,
    ignored_classes,
    option_bits,
    plan_key,
    plans,
    prepare,
    tile_logits,
    tile_upsampled,
)
from seg_loss.gpu.label_check import CheckPlan, check_labels, plan_check
from seg_loss.gpu.plan import Launch, current_stream, on_device, workspace
from seg_loss.upsampling import Axes


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

    check: CheckPlan
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
    inputs, _, _ = prepare(inputs, None)
    logits, labels = inputs.logits, inputs.labels
    wide = loss_dtype(logits)
    # These maps are counted, the latter two in the precision of the loss.
    index = maps["prediction"].dtype if "prediction" in maps else _index_dtype(inputs.num_classes)
    counted = {
        name: maps[name]
        if name in maps and maps[name].dtype == dtype
        else empty(logits, labels.shape, dtype)
        for name, dtype in (("prediction", index), ("nll", wide), ("confidence", wide))
    }
    written = [
        *counted.values(),
        *(maps.get(name) for name in ("entropy", "top_classes", "top_probabilities")),
    ]
    num_classes = inputs.num_classes
    with on_device(logits):
        plan: _EvaluationPlan = plans.get(
            plan_key("evaluate", inputs, *written), lambda: _plan_evaluation(inputs, axes, written)
        )
        stream, results = current_stream(logits), plan.results
        ints, floats = workspace(logits, stream, plan.check.num_ints, sum(plan.sizes))
        numbers = torch.zeros(results.size, dtype=torch.int64, device=logits.device)
        copies = None
        if plan.num_copies:
            shape = plan.num_copies * num_classes**2
            copies = torch.zeros(shape, dtype=torch.int32, device=logits.device)
        check = check_labels(plan.check, inputs, stream, ints)
        if plan.tiles is not None:
            partial, bin_confidence, class_nll = torch.split(
                floats[: sum(plan.sizes)], list(plan.sizes)
            )
            weights = inputs.class_weight, inputs.pixel_weight
            tables = (None,) * 4 if axes is None else grid_tables(logits, axes)
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
        tiles = tile_logits(inputs.logits, None, merges=False)
    else:
        tiles = tile_upsampled(inputs.logits, axes)
    assert tiles is not None
    itemsize = inputs.logits.dtype.itemsize
    if written[-1] is not None:
        tiles = tiles.within(tiling.MAPS_REGISTERS, itemsize)
    elif is_smoothed:
        tiles = tiles.for_smoothing(itemsize)
    shape = tiles.shape
    num_tiles = num_images * tiles.tiles if pixels else 0
    is_early = can_start_early(inputs.logits)
    has_early_tiles = is_early and num_classes <= tiling.MAX_CLASSES_IN_REGISTERS
    options: dict[str, Any] = {
        "C": num_classes,
        "BLOCK_C": shape.classes,
        "BLOCK_P": shape.pixels,
        "AXES": tiles.axes,
        "IS_SMOOTHED": is_smoothed,
        **compiler_options(shape, inputs.logits),
    }
    scalars: tuple[Any, ...] = (
        tiles.rows,
        tiles.columns,
        *tiles.strides[0],
        *option_bits(inputs),
        ignored_classes(inputs),
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
        options |= early_options(has_early_tiles)
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
        (pixels, per_image, per_program, num_copies, ignored_classes(inputs)),
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
        (pixels, per_image, per_program, ignored_classes(inputs)),
        C=num_classes,
        BLOCK_C=block_c,
        BLOCK_P=tiling.COUNT_BLOCK,
        num_warps=tiling.COUNT_WARPS,
        num_stages=1,
        **early_options(is_early),
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
        **early_options(is_early),
    )
    return _EvaluationPlan(
        check=plan_check(inputs, has_early_next=has_early_tiles),
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


def _index_dtype(num_classes: int) -> torch.dtype:
    return torch.uint8 if num_classes <= 256 else torch.int32
