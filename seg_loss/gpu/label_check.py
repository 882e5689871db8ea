"""Launches the label check, which also computes the divisor, alone or before a loss.

`labels` has the kernel, and `reports` the memory for what it finds. Only `check_labels="raise"`
waits for the device, at the end of the call and only for this kernel.
"""

import math
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from seg_loss import _labels
from seg_loss._divisor import known_divisor
from seg_loss._errors import InvalidInput
from seg_loss._inputs import LossInputs
from seg_loss._labels import LabelCount
from seg_loss.gpu import labels as label_kernels
from seg_loss.gpu import tiling
from seg_loss.gpu.arguments import bits_of, empty, plan_key, plans, prepare
from seg_loss.gpu.plan import Launch, current_stream, event_of, is_capturing, on_device, workspace
from seg_loss.gpu.reports import Context, Reports, label_report, reports_of


@dataclass(frozen=True)
class CheckPlan:
    """The launch of a label check, and what its report is about."""

    launch: Launch
    num_ints: int
    context: Context


@dataclass(frozen=True)
class Check:
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


def plan_check(inputs: LossInputs, *, has_early_next: bool = False) -> CheckPlan:
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
            bits_of(known or 0.0),
            bits_of(1 / options.temperature),
            inputs.ignored_bits,
        ),
        C=inputs.num_classes,
        BLOCK_P=block,
        DIVISOR=source.value,
        PADDED_PROGRAMS=triton.next_power_of_2(programs),
        HAS_EARLY_NEXT=has_early_next,
        CHECKS_CLASSES=options.checks_class_weight,
        num_warps=tiling.CHECK_WARPS,
        maxnreg=tiling.CHECK_WEIGHTS_REGISTERS if inputs.is_weighted else None,
    )
    context = Context(labels.shape, labels.dtype, inputs.num_classes, inputs.ignored)
    return CheckPlan(launch, label_kernels.num_counters(programs), context)


def check_labels(plan: CheckPlan, inputs: LossInputs, stream: int, counters: Tensor) -> Check:
    """Launches the label check."""
    labels, mode = inputs.labels, inputs.options.check_labels
    divisor = empty(labels, (2,), torch.float64)
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
        return Check(divisor)
    event = None
    if labels.is_cuda:
        event = event_of(labels.device)
        event.record()
    return Check(divisor, reports, slot, plan.context, event)


def count_labels(inputs: LossInputs) -> LabelCount:
    """Counts the valid pixels, or sums their weights, and checks labels and weights.

    The host waits for nothing. The kernel writes its report to the device, where the all-reduce
    over several processes needs it, and a copy of it goes to the host.
    """
    if is_capturing(inputs.labels):
        expected, got = "None while a CUDA graph is captured", "a group"
        raise InvalidInput("process_group", expected, got, "Compute the loss outside of the graph.")
    inputs, _, _ = prepare(inputs, None)
    labels = inputs.labels
    with on_device(labels):
        plan: CheckPlan = plans.get(
            plan_key("labels", inputs), lambda: plan_check(_with_counted_divisor(inputs))
        )
        stream = current_stream(labels)
        counters, _ = workspace(labels, stream, plan.num_ints, 0)
        divisor = empty(labels, (2,), torch.float64)
        shape = 2, int(label_kernels.REPORT_SIZE.value)
        report = torch.zeros(shape, dtype=torch.int64, device=labels.device)
        memory = None if inputs.options.check_labels == "ignore" else report
        weights = inputs.class_weight, inputs.pixel_weight
        plan.launch(stream, labels, *weights, counters, divisor, memory, 1)
        copy = torch.empty(shape, dtype=torch.int64, device="cpu", pin_memory=labels.is_cuda)
        copy.copy_(report, non_blocking=True)
    # A divisor without a floor is NaN where the sum is 0.
    total = divisor[0].nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)

    def error() -> InvalidInput | None:
        found = label_report(copy[1].tolist(), plan.context)
        return _labels.error_for(found, plan.context.num_classes, plan.context.ignored)

    return LabelCount(total, report[1, label_kernels.IS_WRITTEN.value], error)


def _with_counted_divisor(inputs: LossInputs) -> LossInputs:
    """Returns inputs whose divisor is the sum itself, without a floor."""
    options = inputs.options
    normalization = "weight" if options.normalization == "weight" else "valid"
    options = replace(options, normalization=normalization, has_divisor_floor=False)
    return replace(inputs, options=options)
