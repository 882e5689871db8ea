"""The sums, counts and maps of `evaluate`."""

import numpy as np
import torch
from torch import Tensor

from seg_loss._evaluation_sums import EvaluationSums
from seg_loss._inputs import LossInputs, loss_dtype
from seg_loss.cpu.arguments import (
    COLUMN_CHUNK,
    COLUMN_TILE,
    Tensors,
    add_tiles,
    element_of,
    fits_column,
    has_adjacent_classes,
    is_dense,
    make_plan,
    num_pixels,
    plans,
    run,
    split_columns,
)
from seg_loss.cpu.plan import Plan, dtype_code
from seg_loss.cpu.records import (
    ITEMSIZES,
    LANES,
    NUM_BINS,
    NUM_EXTRA_ROWS,
    NUM_TABLE_COPIES,
    TOP,
)
from seg_loss.cpu.target import target
from seg_loss.cpu.upsampled_loss import plan_upsampled


def evaluate(inputs: LossInputs, maps: dict[str, Tensor]) -> EvaluationSums:
    """Returns everything that one read of the logits can tell; fills `maps`."""
    num_classes = inputs.num_classes
    tensors = Tensors(inputs)
    classes = maps.get("prediction", maps.get("top_classes"))
    dtype = None if classes is None else classes.dtype
    # The other maps are by-products.
    has_distributions = "entropy" in maps or "top_classes" in maps
    has_class_weight = inputs.class_weight is not None
    key = "evaluate", tensors.layouts, has_class_weight, inputs.options, dtype, has_distributions
    plan: Plan = plans.get(key, lambda: _plan_evaluate(inputs, tensors, dtype, has_distributions))
    num_chunks = int(plan.job[0]["num_images"] * plan.job[0]["chunks_per_image"])
    tables = np.zeros((num_chunks, num_classes + NUM_BINS))
    addresses = tensors.addresses
    addresses["chunk_tables"] = tables.ctypes.data
    for name, values in maps.items():
        addresses[f"maps.{name}"] = values.data_ptr()
    memory = run(plan, inputs, tensors, addresses, {})
    floats = tables.sum(axis=0)
    integers = memory.take_tables(num_classes * num_classes + 2 * NUM_BINS)
    bin_pixels = integers[-2 * NUM_BINS :].reshape(NUM_BINS, 2)
    images, chunks = memory.images[: len(inputs.labels)], memory.chunks[:num_chunks]
    sums = EvaluationSums(
        loss=torch.from_numpy(images["loss"].copy()),
        valid_pixels=torch.from_numpy(images["valid"].copy()),
        weight=torch.from_numpy(images["weight"].copy()) if inputs.is_weighted else None,
        class_nll=torch.from_numpy(floats[:num_classes].copy()),
        confusion=torch.from_numpy(
            integers[: -2 * NUM_BINS].reshape(num_classes, num_classes).copy()
        ),
        bin_pixels=torch.from_numpy(bin_pixels.sum(axis=1)),
        bin_correct=torch.from_numpy(bin_pixels[:, 1].copy()),
        bin_confidence=torch.from_numpy(floats[num_classes:].copy()),
        num_saturated=int(chunks["saturated"].sum()),
        num_non_finite=int(chunks["non_finite"].sum()),
        maps=maps,
    )
    plan.release(memory)
    return sums


def _plan_evaluate(
    inputs: LossInputs, tensors: Tensors, dtype: torch.dtype | None, has_distributions: bool
) -> Plan:
    logits = inputs.logits
    num_classes, pixels = logits.shape[1], num_pixels(logits)
    if inputs.axes is not None:
        plan = plan_upsampled("make_evaluate", inputs, tensors)
    elif fits_column(inputs):
        parameters = {
            "num_classes": num_classes if target().has_avx512 else None,
            "dtype_code": dtype_code(logits.dtype),
            "classes_adjacent": has_adjacent_classes(logits),
            "has_distributions": has_distributions,
        }
        plan = make_plan("evaluate", "make_columns", inputs, parameters)
        stride = COLUMN_TILE + LANES
        plan.set(tile=COLUMN_TILE, row_stride=stride, is_dense=is_dense(logits), checks_labels=1)
        split_columns(plan, pixels, 4 * COLUMN_CHUNK)
        num_rows = num_classes + 1
        of_copy = 8 * num_rows + 8 * (2 * NUM_BINS + 1) + 4 * num_rows * num_rows
        plan.add_scratch(
            rows=4 * (max(num_classes, TOP) + NUM_EXTRA_ROWS) * stride,
            classes=4 * stride,
            extra=8 * LANES
            + 2 * 4 * LANES * num_classes
            + 3 * 4 * LANES
            + NUM_TABLE_COPIES * of_copy,
        )
        tensors.add_views(plan)
    else:
        element = element_of(logits.dtype)
        plan = make_plan("evaluate", "make_tiles", inputs, {"element": element})
        itemsize = ITEMSIZES[dtype_code(loss_dtype(logits))]
        add_tiles(plan, num_classes, pixels, itemsize)
        plan.set(checks_labels=1)
        tensors.add_views(plan)
    if dtype is not None:
        plan.job[0]["maps"]["prediction_dtype"] = dtype_code(dtype)
    row_stride = int(plan.job[0]["row_stride"])
    plan.add_scratch(
        predicted=4 * (1 + TOP) * row_stride,
        offsets=8 * row_stride,
        tables=8 * (num_classes * num_classes + 2 * NUM_BINS),
    )
    return plan
