"""`compat.torch` against torch itself: the same results for the same calls."""

import functools
import inspect
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

import seg_loss
from seg_loss.compat import torch as ours
from tests.support.cases import (
    ALL_LABEL_DTYPES,
    CASES,
    FLOATS,
    assert_accurate,
    make_labels,
    make_logits,
)


def targets(shape):
    labels = make_labels(shape).long()
    return torch.where(labels == 255, -100, labels)


def test_names_order_and_defaults_of_the_arguments_are_torchs():
    for mine, theirs in (
        (ours.cross_entropy, F.cross_entropy),
        (ours.CrossEntropyLoss, torch.nn.CrossEntropyLoss),
    ):
        mine, theirs = inspect.signature(mine), inspect.signature(theirs)
        assert [(p.name, p.default, p.kind) for p in mine.parameters.values()] == [
            (p.name, p.default, p.kind) for p in theirs.parameters.values()
        ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_results_and_gradients_are_torchs(case, reduction, weighted, smoothing):
    logits, target = make_logits(case.shape), targets(case.shape)
    weight = torch.rand(case.shape[1]) + 0.1 if weighted else None

    def run(function, dtype):
        x = logits.to(dtype).requires_grad_()
        loss = function(
            x,
            target,
            None if weight is None else weight.to(dtype),
            reduction=reduction,
            label_smoothing=smoothing,
        )
        return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]

    got, truth, theirs = (
        run(ours.cross_entropy, torch.float32),
        run(F.cross_entropy, torch.float64),
        run(F.cross_entropy, torch.float32),
    )
    assert got[0].dtype == theirs[0].dtype
    assert_accurate("loss", got[0], truth[0], theirs[0])
    scale = 1.0 if case.shape[1] == 1 else None
    assert_accurate("gradient", got[1], truth[1], theirs[1], scale=scale)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_result_has_the_dtype_of_the_input(dtype, reduction):
    logits, target = make_logits((2, 3, 4, 5), dtype), targets((2, 3, 4, 5))
    got = ours.cross_entropy(logits, target, reduction=reduction)
    truth = F.cross_entropy(logits.double(), target, reduction=reduction)
    assert got.dtype == dtype
    assert torch.allclose(got.double(), truth, rtol=8 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (0, 3), (0, 3, 4, 5)], ids=str)
def test_the_mean_of_no_pixel_is_nan_and_the_sum_is_zero(shape, weighted):
    logits = torch.zeros(shape, requires_grad=True)
    target = torch.full((shape[0], *shape[2:]), -100)
    weight = torch.ones(3) if weighted else None
    for function in (ours.cross_entropy, F.cross_entropy):
        assert math.isnan(function(logits, target, weight).detach())
        assert function(logits, target, weight, reduction="sum").detach() == 0
        none = function(logits, target, weight, reduction="none")
        assert none.shape == target.shape
        assert not none.any()


def test_a_mean_over_weights_of_zero_is_nan():
    logits, target = torch.zeros(1, 2), torch.tensor([1])
    weight = torch.tensor([1.0, 0.0])
    assert math.isnan(F.cross_entropy(logits, target, weight))
    assert math.isnan(ours.cross_entropy(logits, target, weight))


def test_a_sample_may_have_no_batch_axis():
    logits = make_logits((1, 7))[0]
    for reduction in ("mean", "sum", "none"):
        got = ours.cross_entropy(logits, torch.tensor(3), reduction=reduction)
        truth = F.cross_entropy(logits.double(), torch.tensor(3), reduction=reduction)
        assert got.shape == truth.shape
        assert float(got) == pytest.approx(float(truth), rel=1e-6)


@pytest.mark.parametrize("dtype", ALL_LABEL_DTYPES, ids=str)
def test_targets_may_have_any_integer_dtype(dtype):
    shape = (2, 3, 4, 5)
    labels = make_labels(shape, ignored=0.0)
    got = ours.cross_entropy(make_logits(shape), labels.to(dtype))
    assert torch.equal(got, ours.cross_entropy(make_logits(shape), labels.long()))


def test_any_target_can_be_ignored():
    logits, target = make_logits((2, 3, 4, 5)), make_labels((2, 3, 4, 5), ignored=0.0).long()
    for ignored in (0, 2, 255, -1):
        got = ours.cross_entropy(logits, target, ignore_index=ignored)
        truth = F.cross_entropy(logits.double(), target, ignore_index=ignored)
        assert float(got) == pytest.approx(float(truth), rel=1e-6)


@pytest.mark.parametrize("size_average", [None, True, False, 0, 1])
@pytest.mark.parametrize("reduce", [None, True, False, 0])
def test_deprecated_arguments_mean_the_same_as_in_torch(size_average, reduce):
    if size_average is None and reduce is None:
        return
    logits, target = make_logits((2, 3, 4, 5)), targets((2, 3, 4, 5))
    with pytest.warns(UserWarning, match="deprecated"):
        got = ours.cross_entropy(logits, target, None, size_average, -100, reduce)
    with pytest.warns(UserWarning, match="deprecated"):
        truth = F.cross_entropy(logits, target, None, size_average, -100, reduce)
    assert got.shape == truth.shape
    assert torch.allclose(got, truth, rtol=1e-6, atol=1e-7)
    with pytest.warns(UserWarning, match="deprecated"):
        module = ours.CrossEntropyLoss(None, size_average, -100, reduce)
    assert torch.equal(module(logits, target), got)


def test_the_module_equals_the_function():
    logits, target, weight = make_logits((2, 3, 4, 5)), targets((2, 3, 4, 5)), torch.rand(3)
    module = ours.CrossEntropyLoss(weight, ignore_index=1, reduction="none", label_smoothing=0.1)
    assert torch.equal(
        module(logits, target.clamp(min=0)),
        ours.cross_entropy(
            logits,
            target.clamp(min=0),
            weight,
            ignore_index=1,
            reduction="none",
            label_smoothing=0.1,
        ),
    )
    theirs = torch.nn.CrossEntropyLoss(weight)
    assert module.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: ours.cross_entropy(x, torch.rand(2, 3, 4, 5)),
            (
                "target: expected class indices, got probabilities (torch.float32). "
                "Take argmax over axis 1."
            ),
        ),
        (
            lambda x: ours.cross_entropy(x, torch.zeros(2, 4, 5).long(), reduction="max"),
            "reduction: expected one of mean, sum, none, got 'max'.",
        ),
        (
            lambda x: ours.cross_entropy(x, torch.full((2, 4, 5), 3)),
            (
                "target: expected 0...2 or -100 (ignored), got 3 at (0, 0, 0) and 39 more pixels. "
                "If 3 marks void pixels, pass ignore_index=3."
            ),
        ),
    ],
    ids=["probabilities", "reduction", "invalid target"],
)
def test_what_only_torch_supports_raises(call, message):
    with pytest.raises(seg_loss.InvalidInput, match="^" + re.escape(message) + "$"):
        call(torch.zeros(2, 3, 4, 5))


# -- autocast ----------------------------------------------------------------------------------


def compiled(function, fullgraph=True):
    return torch.compile(function, backend="eager", fullgraph=fullgraph)


def in_regions_of_autocast(function, logits, target):
    """Returns losses in autocast, where it is disabled again or another device's, and outside."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = function(logits, target)
        with torch.autocast("cpu", enabled=False):
            disabled = function(logits, target)
        with torch.autocast("cpu", dtype=torch.float16):
            nested = function(logits, target)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
        outside = function(logits, target)
    return inside, disabled, nested, outside


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_under_autocast_the_loss_has_torchs_dtype_and_digits(reduction, dtype):
    logits, target = make_logits((2, 3, 4, 5), dtype), targets((2, 3, 4, 5))
    for mine, theirs in (
        (
            functools.partial(ours.cross_entropy, reduction=reduction),
            functools.partial(F.cross_entropy, reduction=reduction),
        ),
        (
            ours.CrossEntropyLoss(reduction=reduction),
            torch.nn.CrossEntropyLoss(reduction=reduction),
        ),
    ):
        x = logits.clone().requires_grad_()
        truth = theirs(logits.double(), target)
        got = in_regions_of_autocast(mine, x, target)
        expected = in_regions_of_autocast(theirs, x, target)
        for loss, of_torch in zip(got, expected, strict=True):
            assert loss.dtype == of_torch.dtype
            assert_accurate("loss", loss, truth, of_torch)
            (gradient,) = torch.autograd.grad(loss.sum(), x, retain_graph=True)
            assert gradient.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_autocast_is_the_same_in_a_compiled_program(dtype):
    logits, target = make_logits((2, 3, 4, 5), dtype), targets((2, 3, 4, 5))
    run = functools.partial(in_regions_of_autocast, ours.CrossEntropyLoss(), logits, target)
    for got, expected in zip(compiled(run)(), run(), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


def test_under_autocast_of_another_device_the_loss_has_the_dtype_of_the_input(monkeypatch):
    logits, target = make_logits((2, 3, 4, 5), torch.bfloat16), targets((2, 3, 4, 5))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    assert ours.cross_entropy(logits, target).dtype == torch.bfloat16


@pytest.mark.gpu
def test_under_autocast_of_a_gpu_the_loss_is_float32(cuda):
    logits, target = make_logits((2, 3, 4, 5), torch.float16), targets((2, 3, 4, 5))
    logits, target = logits.to(cuda.device), target.to(cuda.device)
    for function in (ours.cross_entropy, F.cross_entropy):
        with torch.autocast("cuda", dtype=torch.float16):
            assert function(logits, target).dtype == torch.float32
            with torch.autocast("cuda", enabled=False):
                assert function(logits, target).dtype == torch.float16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert function(logits, target).dtype == torch.float16


# -- all that torch accepts --------------------------------------------------------------------


def test_elementwise_mean_is_the_mean_and_deprecated():
    logits, target = make_logits((2, 3, 4, 5)), targets((2, 3, 4, 5))
    expected = ours.cross_entropy(logits, target)
    module = ours.CrossEntropyLoss(reduction="elementwise_mean")
    with pytest.warns(UserWarning, match=r"elementwise_mean.*deprecated"):
        assert torch.equal(module(logits, target), expected)


@pytest.mark.parametrize(
    "arguments",
    [{"reduction": "elementwise_mean"}, {"size_average": False}, {"reduce": False}],
    ids=str,
)
def test_deprecated_arguments_can_be_compiled(arguments):
    logits, target = make_logits((2, 3, 4, 5)), targets((2, 3, 4, 5))
    call = functools.partial(ours.cross_entropy, logits, target, **arguments)
    with pytest.warns(UserWarning, match="deprecated"):
        expected = call()
    assert torch.equal(compiled(call)(), expected)


def test_the_module_is_one_of_torchs():
    weight = torch.rand(3)
    arguments = {"ignore_index": 1, "reduction": "sum", "label_smoothing": 0.1}
    mine = ours.CrossEntropyLoss(weight, **arguments)
    theirs = torch.nn.CrossEntropyLoss(weight, **arguments)
    assert isinstance(mine, torch.nn.CrossEntropyLoss)
    assert repr(mine) == repr(theirs)
    mine.load_state_dict(theirs.state_dict())
    assert {name: getattr(mine, name) for name in arguments} == arguments


NUMBERS = {
    "NumPy scalars": (np.int64(1), np.float32(0.25)),
    "NumPy arrays without axes": (np.array(1, np.uint8), np.array(0.25)),
    "tensors without axes": (torch.tensor(1), torch.tensor(0.25)),
}


@pytest.mark.parametrize("numbers", NUMBERS)
def test_options_may_be_scalars_of_numpy_and_torch(numbers):
    ignore_index, smoothing = NUMBERS[numbers]
    logits, target = make_logits((2, 3, 4, 5)), make_labels((2, 3, 4, 5), ignored=0.0).long()
    got = ours.cross_entropy(logits, target, ignore_index=ignore_index, label_smoothing=smoothing)
    truth = F.cross_entropy(logits.double(), target, ignore_index=1, label_smoothing=0.25)
    assert float(got) == pytest.approx(float(truth), rel=1e-6)
    module = ours.CrossEntropyLoss(ignore_index=ignore_index, label_smoothing=smoothing)
    assert torch.equal(module(logits, target), got)


@pytest.mark.parametrize("smoothing", [-0.1, -5, -math.inf, math.nan, True, False, 1, 0.5], ids=str)
def test_smoothing_below_zero_is_none_and_a_bool_is_a_number(smoothing):
    logits, target = make_logits((2, 3, 4, 5)), targets((2, 3, 4, 5))
    got = ours.cross_entropy(logits, target, label_smoothing=smoothing)
    truth = F.cross_entropy(logits.double(), target, label_smoothing=smoothing)
    assert float(got) == pytest.approx(float(truth), rel=1e-6)


def test_one_class_is_the_target_of_logits_without_a_batch_axis():
    logits = make_logits((1, 7))[0]
    for target in (torch.tensor(3), torch.tensor([3])):
        for reduction in ("mean", "sum", "none"):
            got = ours.cross_entropy(logits, target, reduction=reduction)
            expected = F.cross_entropy(logits, target, reduction=reduction)
            assert got.shape == expected.shape
            assert float(got) == pytest.approx(float(expected), rel=1e-6)


# -- errors ------------------------------------------------------------------------------------

X, Y = torch.zeros(2, 3), torch.tensor([0, 2])
WRONG_CALLS = {
    "no batch axis, several targets": ((X[0], torch.zeros(5).long()), {}),
    "a list as target": ((X, [0, 2]), {}),
    "a list as input": (([[0.0, 1.0]], Y), {}),
    "an array as input": ((X.numpy(), Y), {}),
    "an array as target": ((X, Y.numpy()), {}),
    "None as target": ((X, None), {}),
    "a list as weight": ((X, Y, [1.0, 1.0, 1.0]), {}),
    "input without axes": ((torch.tensor(1.0), torch.tensor(0)), {}),
    "target out of range": ((X, torch.tensor([0, 3])), {}),
    "target below range": ((X, torch.tensor([0, -1])), {}),
    "no class": ((torch.zeros(2, 0), Y), {}),
    "another batch size": ((X, torch.tensor([1])), {}),
    "another height": ((torch.zeros(2, 3, 4, 5), torch.zeros(2, 5, 5).long()), {}),
    "target like the input": ((X, X.long()), {}),
    "more axes": ((torch.zeros(2, 3, 4), torch.zeros(2, 4, 1).long()), {}),
    "bool target": ((X, Y.bool()), {}),
    "integer input": ((X.long(), Y), {}),
    "complex input": ((X + 1j, Y), {}),
    "weight of another size": ((X, Y, torch.ones(4)), {}),
    "weight of two axes": ((X, Y, torch.ones(3, 1)), {}),
    "sparse input": ((X.to_sparse(), Y), {}),
    "sparse target": ((X, Y.to_sparse()), {}),
    "sparse weight": ((X, Y, torch.ones(3).to_sparse()), {}),
    "integer weight": ((X, Y, torch.ones(3).long()), {}),
    "target on another device": ((X, Y.to("meta")), {}),
    "input on another device": ((X.to("meta"), Y), {}),
    "weight on another device": ((X, Y, torch.ones(3, device="meta")), {}),
    "another reduction": ((X, Y), {"reduction": "max"}),
    "no reduction": ((X, Y), {"reduction": None}),
    "a list as reduction": ((X, Y), {"reduction": ["mean"]}),
    "smoothing above 1": ((X, Y), {"label_smoothing": 1.5}),
    "smoothing as text": ((X, Y), {"label_smoothing": "0.1"}),
    "no smoothing": ((X, Y), {"label_smoothing": None}),
    "a bool as ignore_index": ((X, Y), {"ignore_index": True}),
    "a float as ignore_index": ((X, Y), {"ignore_index": 1.0}),
    "no ignore_index": ((X, Y), {"ignore_index": None}),
}


@pytest.mark.parametrize(
    ("arguments", "options", "where"),
    [
        ((X, Y[:1]), {}, "target"),
        ((X, Y.float()), {}, "target"),
        ((X, [0, 2]), {}, "target"),
        ((X, Y.to("meta")), {}, "target"),
        ((X, Y, torch.ones(4)), {}, "weight"),
        ((X, Y, [1.0, 1.0, 1.0]), {}, "weight"),
        ((X.long(), Y), {}, "input"),
        ((X, Y), {"ignore_index": None}, "ignore_index"),
    ],
)
def test_errors_have_the_names_of_torchs_arguments(arguments, options, where):
    for call in (ours.cross_entropy, compiled(ours.cross_entropy, fullgraph=False)):
        with pytest.raises(seg_loss.InvalidInput, match=f"^{where}: ") as raised:
            call(*arguments, **options)
        assert raised.value.where == where
        assert "labels" not in str(raised.value)
        torch.compiler.reset()


@pytest.mark.parametrize("name", WRONG_CALLS)
@pytest.mark.parametrize("kind", ["function", "module"])
def test_what_torch_raises_catches_the_error_too(kind, name):
    arguments, options = WRONG_CALLS[name]

    def call(function, module):
        if kind == "function":
            return function(*arguments, **options)
        return module(*arguments[2:], **options)(*arguments[:2])

    with pytest.raises((ValueError, IndexError, RuntimeError, TypeError)) as expected:
        call(F.cross_entropy, torch.nn.CrossEntropyLoss)
    caught = expected.type
    if caught is NotImplementedError:  # of a missing kernel, where a handler names its base
        caught = RuntimeError
    with pytest.raises(caught) as raised:
        call(ours.cross_entropy, ours.CrossEntropyLoss)
    # A weight that is no tensor is refused by torch's own constructor.
    is_weight = kind == "module" and name == "a list as weight"
    assert is_weight or isinstance(raised.value, seg_loss.InvalidInput)
