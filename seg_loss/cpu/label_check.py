"""The label check without a loss, for a divisor over several processes."""

import numpy as np

from seg_loss import _labels
from seg_loss._inputs import LossInputs
from seg_loss._labels import LabelCount, LabelReport
from seg_loss.cpu.arguments import (
    COLUMN_CHUNK,
    COLUMN_TILE,
    Tensors,
    element_of,
    invalid_class_weights,
    invalid_values,
    make_plan,
    plans,
)
from seg_loss.cpu.plan import Plan
from seg_loss.cpu.records import LANES


def count_labels(inputs: LossInputs) -> LabelCount:
    """Counts the valid pixels, or sums their weights, and checks labels and weights."""
    tensors = Tensors(inputs)
    key = "labels", tensors.layouts, inputs.class_weight is None, inputs.options
    plan: Plan = plans.get(key, lambda: _plan_check(inputs, tensors))
    addresses = tensors.addresses
    if inputs.class_weight is not None:
        # The last two are for ignored and invalid labels.
        class_weight = np.append(inputs.class_weight.double().numpy(), [0.0, 0.0])
        addresses["class_weight"] = class_weight.ctypes.data
    memory = plan.call(addresses, {}, inputs.labels.numel())
    job = memory.job[0]
    sums_weights = inputs.options.normalization == "weight" and inputs.is_weighted
    total = float(job["weight_sum"] if sums_weights else job["num_valid"])
    error = None
    if inputs.options.check_labels != "ignore":
        class_weights = pixel_weights = None
        if inputs.class_weight is not None:
            class_weights = invalid_class_weights(inputs.class_weight)
        if inputs.pixel_weight is not None:
            pixel_weights = invalid_values(plan, memory.chunks, "weight", inputs.pixel_weight)
        labels = invalid_values(plan, memory.chunks, "label", inputs.labels)
        report = LabelReport(labels, pixel_weights, class_weights)
        error = _labels.error_for(report, inputs.num_classes, inputs.ignored)
    plan.release(memory)
    return LabelCount(total, error is not None, lambda: error)


def _plan_check(inputs: LossInputs, tensors: Tensors) -> Plan:
    element = element_of(inputs.logits.dtype)
    plan = make_plan("labels", "make_check", inputs, {"element": element})
    stride = COLUMN_TILE + LANES
    plan.set(tile=COLUMN_TILE, row_stride=stride, checks_labels=1, stops_if_invalid=0)
    plan.split(0, 1, label_chunk_pixels=COLUMN_CHUNK)
    plan.add_scratch(rows=np.dtype(element).itemsize * stride, classes=4 * stride)
    tensors.add_views(plan)
    return plan
