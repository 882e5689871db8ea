"""The loss of a batch that is spread over the processes of a group.

Each rank returns its own sum of terms, divided by the divisor D of all ranks:

    label check     counts the rank's valid pixels, or sums their weights
    all-reduce      starts: adds up the counts, and tells each rank which ranks have an error
    loss            runs meanwhile, with a divisor of 1
    division        by D, which is a constant to autograd

A rank takes part in the all-reduce whatever happens before it, so that no other rank waits forever.
An error on one rank is an error on all.
"""

import functools
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from seg_loss import _autograd, _backends, _labels
from seg_loss._autograd import DifferentiableFunction, is_transformed
from seg_loss._compile import is_compiling
from seg_loss._divisor import (
    FAILED,
    INVALID,
    LATE,
    DivisorReduction,
    ProcessGroup,
    check_process_group,
)
from seg_loss._errors import InvalidInput
from seg_loss._inputs import LossInputs, LossOptions, check_memory, check_out
from seg_loss._labels import LabelCount

CountLabels = Callable[[LossInputs], LabelCount]
"""Checks the labels of a rank, and counts what the divisor adds up."""


@_backends.without_dynamo
def report_failure(group: ProcessGroup) -> None:
    """Tells the other ranks that this one raises an error before it computes a loss."""
    if has_several_ranks(group):
        DivisorReduction(group, 0.0, FAILED, None).wait()


@_backends.without_dynamo
def check_out_of_ranks(out: Tensor, logits: Tensor, group: ProcessGroup) -> None:
    """Checks memory for the gradient; an error is raised on the other ranks too."""
    try:
        check_out(out, logits)
    except Exception:
        report_failure(group)
        raise


@_backends.without_dynamo
def has_several_ranks(group: ProcessGroup) -> bool:
    """Returns whether a group, which is checked, has more ranks than this one."""
    check_process_group(group)
    return group.size() > 1


@_backends.without_dynamo
def cross_entropy(inputs: LossInputs, group: ProcessGroup) -> Tensor:
    """Returns the rank's part of the loss of all ranks; differentiable in the logits."""
    if not has_several_ranks(group):
        return _autograd.cross_entropy(inputs)
    if is_transformed():
        joint = divisor(inputs, group, _backends.count_labels)
        return _divide(_sum_of_terms(inputs), joint)
    check = _start_check(inputs, group, _backends.count_labels)
    total = _sum_of_terms(inputs)
    return _divide(total, check.finish())


@_backends.without_dynamo
def divisor(inputs: LossInputs, group: ProcessGroup, count_labels: CountLabels) -> Tensor:
    """Returns the divisor of all ranks, float64, for a group of several."""
    inputs = replace(inputs, logits=inputs.logits.detach())
    if is_transformed():
        arguments = *inputs.tensors, group, count_labels, inputs.options
        result: Tensor = _autograd.apply(_Divisor, *arguments)
        return result
    return _start_check(inputs, group, count_labels).finish()


@_backends.without_dynamo
def loss_and_gradient(
    inputs: LossInputs, group: ProcessGroup, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns the rank's part of the loss, and its gradient, in `out` if given.

    The group has several ranks. The gradient of full-size logits is computed in a pass of its own,
    once the divisor is there.
    """
    if is_transformed():
        joint = divisor(inputs, group, _backends.count_labels)
        with torch.no_grad(), _labels.deferred_errors_held():
            total, of_sum = _autograd.loss_and_gradient(_summed(inputs))
            divided = (of_sum.double() / joint).to(inputs.logits.dtype)
            return _divide(total, joint), divided if out is None else out.copy_(divided)
    check = _start_check(inputs, group, _backends.count_labels)
    scores, temperature, inputs = inputs.logits, inputs.options.temperature, _summed(inputs)
    with torch.no_grad(), _labels.deferred_errors_held():
        if inputs.options.upsampling is not None:
            total, gradient = _backends.compute_upsampled_loss(inputs, with_gradient=True)
        else:
            total, _, gradient = _backends.compute_loss(inputs, with_gradient=False)
        joint = check.finish()
        loss = _divide(total, joint)
        if gradient is not None:
            factor = joint.reciprocal().to(gradient.dtype)
            gradient = _backends.scale_upsampled_gradient(
                scores, gradient, factor, may_overwrite=True
            )
            return loss, gradient if out is None else out.copy_(gradient)
        divisors = torch.stack((joint, 1 / (joint * temperature)))
        if out is None:
            return loss, _backends.compute_gradient(inputs, divisors, None)
        _backends.write_gradient(inputs, divisors, out)
        return loss, out


def _sum_of_terms(inputs: LossInputs) -> Tensor:
    """Returns the sum of terms of labels that have been checked; differentiable.

    The error of an earlier call is raised before the all-reduce or not at all.
    """
    with _labels.deferred_errors_held():
        return _autograd.sum_of_terms(_summed(inputs))


def _summed(inputs: LossInputs) -> LossInputs:
    return replace(inputs, options=_options_of_sum(inputs.options))


@functools.lru_cache(maxsize=256)
def _options_of_sum(options: LossOptions) -> LossOptions:
    """Returns the options of the sum of terms, without a second check of the labels."""
    return replace(options, normalization="none", check_labels="ignore")


def _divide(total: Tensor, divisor: Tensor) -> Tensor:
    return (total.double() / divisor).to(total.dtype)


class _Divisor(DifferentiableFunction):
    """`divisor` in the transforms of torch.func. It has no derivative."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        logits, labels, class_weight, pixel_weight, group, count_labels, options = arguments
        inputs = LossInputs(logits, labels, class_weight, pixel_weight, options)
        return _start_check(inputs, group, count_labels).finish()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[None, ...]:
        return (None,) * 7

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Tensor | None) -> None:
        """Returns no derivative."""


# -- the label check of all ranks ------------------------------------------------------------------


@dataclass(frozen=True)
class _Check:
    """A label check of all ranks that has been started.

    Attributes:
        reduction: the all-reduce.
        group: the ranks.
        error: returns the error of this rank, once its device has run.
        device: of the inputs.
        check_labels: the option.
    """

    reduction: DivisorReduction
    group: ProcessGroup
    error: Callable[[], InvalidInput | None]
    device: torch.device
    check_labels: str

    def finish(self) -> Tensor:
        """Returns the divisor; raises or defers the error of this rank or of others."""
        joint = self.reduction.wait()
        vector, mode = self.reduction.vector, self.check_labels
        statuses = torch.empty(
            vector.shape, dtype=vector.dtype, device="cpu", pin_memory=vector.is_cuda
        )
        statuses.copy_(vector, non_blocking=True)
        event = None
        device = vector.device if vector.is_cuda else self.device
        if device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
        if event is not None and mode != "raise":
            # The host waits for no device. An error before the labels were read is never ignored.
            # A rank that raised LATE would turn into LATE here, and so on without an end.
            reported = (FAILED,) if mode == "ignore" else (INVALID, FAILED)
            _pending.append(
                _Pending(event, lambda: self._find_error(statuses, reported), self.group)
            )
            return joint
        if event is not None:
            event.synchronize()
        at_once = (INVALID, FAILED, LATE) if mode == "raise" else (FAILED, LATE)
        error = self._find_error(statuses, at_once)
        if error is not None:
            raise error
        if mode == "defer":
            error = self._find_error(statuses, (INVALID,))
            if error is not None:
                _pending.append(_Pending(None, lambda: error, self.group))
        return joint

    def _find_error(self, statuses: Tensor, reported: Container[int]) -> InvalidInput | None:
        """Returns the error of this rank, or else of others with one of the statuses `reported`."""
        error = self.error() if INVALID in reported else None
        return error or self.reduction.error_of_others(statuses[1:].tolist(), reported)


def _start_check(inputs: LossInputs, group: ProcessGroup, count_labels: CountLabels) -> _Check:
    """Checks and counts the labels of this rank, and starts the all-reduce."""
    status = FAILED
    try:
        if not _labels.holds_errors():
            error = _take_error(wait=True, group=group)
            if error is not None:
                # The other ranks raise an error for the same call too. One that has taken it by
                # `check` before computes no loss with a part of the divisor.
                status = LATE
                raise error
        _labels.raise_deferred()
        _check_is_eager()
        _check_memory(inputs)
        count = count_labels(inputs)
    except Exception:
        DivisorReduction(group, 0.0, status, None).wait()
        raise
    options, labels = inputs.options, inputs.labels
    reduction = DivisorReduction.of_batch(
        group, options.normalization, labels, count.total, count.is_invalid
    )
    return _Check(reduction, group, count.error, labels.device, options.check_labels)


def _check_memory(inputs: LossInputs) -> None:
    """Checks for tensors whose elements can be counted."""
    names = "logits", "labels", "class_weight", "pixel_weight"
    try:
        check_memory(**dict(zip(names, inputs.tensors, strict=True)))
    except InvalidInput as error:
        fix = "With a process_group the labels are counted."
        raise InvalidInput(error.where, error.expected, error.got, fix) from None


def _check_is_eager() -> None:
    """Raises an error if torch records a program, which would hold the divisor of this call."""
    if is_compiling() or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY):
        expected = "None while torch exports or traces a program"
        raise InvalidInput("process_group", expected, "a group", "Compute the loss eagerly.")


@dataclass(frozen=True, eq=False)
class _Pending:
    """A label check whose error a later call raises.

    Attributes:
        event: recorded behind the check; None if it has ended.
        error: returns the error, once the event has come.
        group: the ranks, each of which raises an error.
    """

    event: torch.cuda.Event | None
    error: Callable[[], InvalidInput | None]
    group: ProcessGroup


_pending: deque[_Pending] = deque()


def _take_error(wait: bool, group: ProcessGroup | None = None) -> InvalidInput | None:
    """Returns the oldest error of a deferred check, and clears it; of a group if it is given.

    All ranks of a group must raise it at the same call. Therefore a call with the group waits until
    the device has run the check of the call before it, which a training step lies between. A call
    without the group, which does not wait, takes no error: the other ranks may not make that call.
    """
    if not wait:
        return None
    for check in list(_pending):
        if group is not None and check.group is not group:
            continue
        if check.event is not None:
            check.event.synchronize()
        try:
            _pending.remove(check)
        except ValueError:  # another thread has taken it
            continue
        error = check.error()
        if error is not None:
            return error
    return None


_labels.register_pending(_take_error)
