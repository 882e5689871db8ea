"""Bad labels and weights: spoken of at once, later, or never; and harmless in any case."""

import pytest
import torch

import seg_loss
from seg_loss import _labels as label_check
from tests.cases import make_labels, make_logits, same_bits

SHAPE = (2, 5, 7, 9)
MESSAGE = "labels: expected 0...4 or 255 (ignored), got 77 at (0, 2, 3) and 1 more pixel."


def given():
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)
    labels[0, 2, 3] = labels[1, 6, 8] = 77
    return logits, labels


CALLS = {
    "spatial_cross_entropy": seg_loss.spatial_cross_entropy,
    "loss_and_gradient": seg_loss.loss_and_gradient,
    "pixel_nll": seg_loss.pixel_nll,
    "evaluate": seg_loss.evaluate,
    "SpatialCrossEntropy": lambda x, y, **options: seg_loss.SpatialCrossEntropy(**options)(x, y),
}


@pytest.fixture(autouse=True)
def nothing_left_over():
    yield
    label_check._deferred.clear()


def said(call, *arguments, **options):
    with pytest.raises(seg_loss.InvalidInput) as refusal:
        call(*arguments, **options)
    return str(refusal.value)


@pytest.mark.parametrize("name", CALLS)
def test_by_default_the_call_itself_raises(name):
    assert said(CALLS[name], *given()) == MESSAGE
    assert said(CALLS[name], *given(), check_labels="raise") == MESSAGE
    seg_loss.check()


@pytest.mark.parametrize("name", CALLS)
def test_deferred_it_is_raised_by_check_once(name):
    CALLS[name](*given(), check_labels="defer")
    assert said(seg_loss.check) == MESSAGE
    seg_loss.check()


@pytest.mark.parametrize("later", CALLS)
def test_deferred_it_is_raised_by_the_next_call_whichever(later):
    seg_loss.loss_and_gradient(*given(), check_labels="defer")
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)
    assert said(CALLS[later], logits, labels, check_labels="ignore") == MESSAGE
    CALLS[later](logits, labels)


@pytest.mark.parametrize("name", CALLS)
def test_ignored_it_is_never_raised(name):
    CALLS[name](*given(), check_labels="ignore")
    seg_loss.check()


@pytest.mark.parametrize("how", ["defer", "ignore"])
def test_bad_pixels_count_as_ignored(how):
    logits, labels = given()
    loss, gradient = seg_loss.loss_and_gradient(logits, labels, check_labels=how)
    terms = seg_loss.pixel_nll(logits, labels, check_labels="ignore") if how == "ignore" else None
    found = seg_loss.evaluate(logits, labels, check_labels="ignore") if how == "ignore" else None
    if how == "defer":
        said(seg_loss.check)
    labels[labels == 77] = 255
    plain = seg_loss.loss_and_gradient(logits, labels)
    assert same_bits(loss, plain[0])
    assert same_bits(gradient, plain[1])
    if terms is not None:
        assert same_bits(terms, seg_loss.pixel_nll(logits, labels))
        assert found.valid_pixels == int((labels != 255).sum())


def test_several_deferred_reports_come_one_by_one():
    logits, labels = given()
    seg_loss.loss_and_gradient(logits, labels, check_labels="defer")
    assert said(seg_loss.loss_and_gradient, logits, labels, check_labels="defer") == MESSAGE
    seg_loss.check()


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_weights_are_deferred_too(value):
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)
    weight = torch.ones(5)
    weight[3] = value
    seg_loss.loss_and_gradient(logits, labels, weight, check_labels="defer")
    assert said(seg_loss.check).startswith("class_weight: expected finite numbers")


def test_another_word_is_refused():
    message = said(seg_loss.pixel_nll, *given(), check_labels="later")
    assert message == "check_labels: expected one of raise, defer, ignore, got 'later'."
