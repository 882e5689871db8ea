"""Every backend reports invalid labels and weights as the CPU kernels do, and they do no harm."""

import importlib
import math
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

import seg_loss
from seg_loss import Bilinear, InvalidInput
from seg_loss import _labels as label_reports
from seg_loss.constants import MAPS
from tests.support.backends import DEFAULT_SHAPE, numba_kernels
from tests.support.cases import (
    ALIGNED,
    FCN_8S,
    Case,
    ignored_label,
    loss_and_gradient_of,
    loss_of,
    make_inputs,
    make_labels,
    make_logits,
    same_bits,
)

LOGITS = Case(DEFAULT_SHAPE, "several tiles and a remainder")
SCORES = Case((2, 5, 2, 3), "upsampled", (5, 6), Bilinear())
# Neither a class nor ignored, and the dtype that holds it.
INVALID = [
    (-1, torch.int64), (21, torch.uint8), (254, torch.uint8), (1 << 40, torch.int64),
    (-128, torch.int8), (-(1 << 62), torch.int64),
]  # fmt: skip
# Values that are negative or wrong classes if their bits are read as signed integers.
UNSIGNED = [
    (40_000, torch.uint16),
    ((1 << 31) + 5, torch.uint32),
    ((1 << 63) + 5, torch.uint64),
]
FUNCTIONS = {
    "loss_and_gradient": loss_and_gradient_of,
    "autograd": lambda x, y, upsampling, **options: loss_of(
        x.detach().requires_grad_(), y, upsampling, **options
    ),
    "evaluate": lambda x, y, upsampling, **options: seg_loss.evaluate(
        x, y, upsampling=upsampling, **options
    ),
    "pixel_nll": lambda x, y, upsampling, **options: seg_loss.pixel_nll(x, y, **options),
}


@pytest.fixture(autouse=True)
def without_reports_of_other_tests():
    yield
    error_of(seg_loss.check)
    label_reports._deferred.clear()


def set_three(labels, value):
    """Sets the labels of three pixels; torch assigns no number above 2**63 - 1, but a tensor."""
    for index in ((1, 2, 4), (1, -3, 2), (0, -1, -1)):
        labels[index] = torch.tensor(value, dtype=labels.dtype)


def error_of(call, *arguments, **options):
    """Returns the message of the error that a call raises, or "" if it raises none."""
    try:
        call(*arguments, **options)
    except InvalidInput as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("case", "value", "dtype", "function"),
    [
        *((LOGITS, *invalid, function) for invalid in INVALID for function in FUNCTIONS),
        *((LOGITS, *invalid, "loss_and_gradient") for invalid in UNSIGNED),
        *((SCORES, 77, torch.int64, function) for function in [*FUNCTIONS][:3]),
    ],
    ids=lambda value: getattr(value, "name", str(value).removeprefix("torch.")),
)
def test_invalid_labels_are_reported_at_once_later_or_never(backend, case, value, dtype, function):
    scores, labels, upsampling = make_inputs(case, label_dtype=dtype)
    set_three(labels, value)
    options = {"ignore_index": ignored_label(dtype)}
    with numba_kernels():
        expected = error_of(loss_of, scores, labels, upsampling, **options)
    assert expected.startswith("labels:")
    x, y = backend.place(scores), backend.place(labels)
    valid = torch.zeros_like(y)

    def call(check_labels):
        FUNCTIONS[function](x, y, upsampling, **options, check_labels=check_labels)

    assert error_of(call, "raise") == expected
    assert error_of(call, "defer") == ""
    backend.wait()
    assert error_of(loss_and_gradient_of, x, valid, upsampling) == expected, "the next call"
    assert error_of(seg_loss.check) == "", "a report must be raised once"
    assert error_of(call, "defer") == ""
    assert error_of(seg_loss.check) == expected
    assert error_of(call, "ignore") == ""
    assert error_of(seg_loss.check) == ""


@pytest.mark.parametrize(
    ("case", "value", "dtype"),
    [*((LOGITS, *invalid) for invalid in INVALID + UNSIGNED), (SCORES, 77, torch.int64)],
    ids=lambda value: getattr(value, "name", str(value).removeprefix("torch.")),
)
def test_pixels_with_invalid_labels_count_as_ignored(backend, case, value, dtype):
    scores, labels, upsampling = make_inputs(case, label_dtype=dtype)
    set_three(labels, value)
    x, y, ignored = backend.place(scores), backend.place(labels), ignored_label(dtype)
    options = {"ignore_index": ignored}
    loss, gradient = loss_and_gradient_of(x, y, upsampling, **options, check_labels="ignore")
    set_three(labels, ignored)
    y = backend.place(labels)
    expected = loss_and_gradient_of(x, y, upsampling, **options)
    assert same_bits(loss, expected[0])
    assert same_bits(gradient, expected[1])


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["class_weight", "pixel_weight"])
def test_invalid_weights_are_reported(backend, name, value):
    logits, labels, _ = make_inputs(LOGITS, label_dtype=torch.int64)
    weight = torch.ones(logits.shape[1] if name == "class_weight" else labels.shape)
    weight[-1] = value
    if name == "pixel_weight":
        weight[0, :3, :3] = value
    with numba_kernels():
        expected = error_of(seg_loss.spatial_cross_entropy, logits, labels, **{name: weight})
    assert expected.startswith(name)
    x, y = backend.place(logits), backend.place(labels)
    options = {name: backend.place(weight)}
    assert error_of(seg_loss.loss_and_gradient, x, y, **options) == expected
    seg_loss.loss_and_gradient(x, y, **options, check_labels="defer")
    assert error_of(seg_loss.check) == expected


def test_results_after_an_error_are_those_before(backend):
    logits, labels, _ = make_inputs(LOGITS, label_dtype=torch.int64)
    x, y = backend.place(logits), backend.place(labels)
    expected = seg_loss.loss_and_gradient(x, y)
    invalid = y.clone()
    invalid[0, 0, 0] = 1 << 40
    assert error_of(seg_loss.loss_and_gradient, x, invalid)
    seg_loss.loss_and_gradient(x, invalid, check_labels="ignore")
    seg_loss.loss_and_gradient(x, invalid, check_labels="defer")
    assert error_of(seg_loss.check)
    got = seg_loss.loss_and_gradient(x, y)
    assert same_bits(got[0], expected[0])
    assert same_bits(got[1], expected[1])


# -- reports of several calls --------------------------------------------------------------------


def invalid_inputs(backend, case, value, index=(0, 0, 0)):
    """Returns inputs on the device with one invalid label, and the error of the CPU kernels."""
    scores, labels, upsampling = make_inputs(case, label_dtype=torch.int64)
    labels[index] = value
    with numba_kernels():
        error = error_of(loss_of, scores, labels, upsampling)
    assert f"got {value} at {index}" in error
    return backend.place(scores), backend.place(labels), upsampling, error


@contextmanager
def device_behind_the_host():
    """No call finds a report of an earlier one, as if no kernel had run yet."""
    with mock.patch.object(label_reports, "raise_deferred"):
        yield


@pytest.fixture
def small_ring(gpu_kernels, monkeypatch):
    """The GPU backend's reports, with three slots for calls and two for calls in graphs."""
    reports = importlib.import_module("seg_loss.gpu.reports")
    monkeypatch.setattr(reports, "RING_SIZE", 3)
    monkeypatch.setattr(reports, "_CAPTURED_SIZE", 2)
    monkeypatch.setattr(reports, "_reports", {})
    monkeypatch.setattr(label_reports, "_pending", [])
    yield gpu_kernels
    gpu_kernels.wait()  # for the kernels that write to the ring


@pytest.fixture
def capturing(monkeypatch):
    """Calls as under the capture of a CUDA graph; another call with the same inputs is a replay."""
    for name in ("label_check", "plan"):
        module = importlib.import_module(f"seg_loss.gpu.{name}")
        monkeypatch.setattr(module, "is_capturing", lambda _: True)


SEVERAL = [(LOGITS, 70, (1, 2, 3)), (SCORES, 71, (0, 4, 5)), (Case((1, 3, 4), "row"), 72, (0, 3))]


def test_deferred_reports_of_several_calls_are_raised_in_their_order(backend):
    expected = []
    with device_behind_the_host():
        for case, value, index in SEVERAL:
            x, y, upsampling, error = invalid_inputs(backend, case, value, index)
            loss_and_gradient_of(x, y, upsampling, check_labels="defer")
            loss_and_gradient_of(x, torch.zeros_like(y), upsampling, check_labels="defer")
            expected.append(error)
    assert [error_of(seg_loss.check) for _ in expected] == expected
    assert error_of(seg_loss.check) == ""


def test_an_error_of_the_call_itself_leaves_deferred_reports(backend):
    (x, y, upsampling, first), (*inputs, second) = (
        invalid_inputs(backend, case, value, index) for case, value, index in SEVERAL[:2]
    )
    with device_behind_the_host():
        loss_and_gradient_of(x, y, upsampling, check_labels="defer")
        assert error_of(loss_and_gradient_of, *inputs, check_labels="raise") == second
    assert error_of(seg_loss.check) == first
    assert error_of(seg_loss.check) == ""


def test_calls_reuse_the_slots_of_earlier_ones(small_ring):
    expected = []
    with device_behind_the_host():
        for value in range(70, 77):
            x, y, _, error = invalid_inputs(small_ring, SEVERAL[2][0], value, (0, 1))
            seg_loss.loss_and_gradient(x, y, check_labels="defer")
            expected.append(error)
    # Reports are lost if no call looks for them while as many calls run as there are slots.
    assert [error_of(seg_loss.check) for _ in range(3)] == expected[-3:]
    assert error_of(seg_loss.check) == ""


@pytest.mark.usefixtures("capturing")
def test_each_replay_of_a_graph_reports_its_invalid_labels(small_ring):
    x, y, _, error = invalid_inputs(small_ring, *SEVERAL[2])
    valid = torch.zeros_like(y)
    for _ in range(4):  # more than there are slots
        seg_loss.loss_and_gradient(x, y, check_labels="raise")
        assert error_of(seg_loss.check) == error
        seg_loss.loss_and_gradient(x, valid, check_labels="raise")
        assert error_of(seg_loss.check) == ""


@pytest.mark.parametrize(
    "case",
    [
        Case((3, 3, 15, 17), "odd planes"),
        LOGITS,
        Case((1, 150, 17, 31), "ADE20K"),
        Case((1, 5000, 1, 3), "classes do not fit the registers"),
        Case((2, 21, 5, 9), "upsampled", (37, 71), Bilinear()),
        Case((1, 150, 6, 7), "upsampled", (17, 31), FCN_8S),
        Case((1, 300, 2, 3), "classes in chunks", (9, 11), ALIGNED),
    ],
    ids=lambda case: case.name,
)
def test_invalid_labels_access_no_foreign_memory(cuda, case):
    """Calls every kernel; compute-sanitizer finds accesses outside an allocation."""
    scores, labels = make_logits(case.shape), make_labels(case.full_shape, torch.int64)
    x, y = cuda.place(scores).requires_grad_(), cuda.place(labels)
    (2 * loss_of(x, y, case.upsampling)).backward()
    seg_loss.evaluate(x, y, upsampling=case.upsampling, maps=MAPS)
    if case.upsampling is None:
        seg_loss.spatial_softmax(x).sum().backward()
    y[0, 0, 0], y[0, 0, 1] = 1 << 40, -5
    weight = torch.ones(case.shape[1], device=cuda.device)
    options = {"class_weight": weight, "check_labels": "ignore"}
    loss_and_gradient_of(x.detach(), y, case.upsampling, **options)
    seg_loss.evaluate(x, y, upsampling=case.upsampling, check_labels="ignore")
    cuda.wait()
