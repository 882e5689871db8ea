"""`compat.torch` against torch itself: the same results for the same calls."""

import inspect
import math
import re

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

import seg_loss
from seg_loss.compat import torch as ours
from tests.support.cases import (
    CASES,
    FLOATS,
    LABEL_DTYPES,
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


@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
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


@pytest.mark.parametrize("size_average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
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
                "labels: expected 0...2 or -100 (ignored), got 3 at (0, 0, 0) and 39 more pixels. "
                "If 3 marks void pixels, pass ignore_index=3."
            ),
        ),
    ],
    ids=["probabilities", "reduction", "invalid target"],
)
def test_what_only_torch_supports_raises(call, message):
    with pytest.raises(seg_loss.InvalidInput, match="^" + re.escape(message) + "$"):
        call(torch.zeros(2, 3, 4, 5))
