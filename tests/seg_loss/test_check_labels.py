"""When invalid labels and weights are reported: immediately, later or never."""

import math

import pytest
import torch

import seg_loss
from seg_loss import Bilinear, InvalidInput
from seg_loss import _labels as label_reports
from tests.support.cases import (
    Case,
    evaluation_of,
    loss_and_gradient_of,
    make_inputs,
    same_bits,
)

# Both have labels (2, 7, 9).
LOGITS = Case((2, 5, 7, 9), "logits")
SCORES = Case((2, 5, 3, 4), "scores", (7, 9), Bilinear())
MESSAGE = "labels: expected 0...4 or 255 (ignored), got 77 at (0, 2, 3) and 1 more pixel."
CALLS = {
    "spatial_cross_entropy": (LOGITS, seg_loss.spatial_cross_entropy),
    "loss_and_gradient": (LOGITS, seg_loss.loss_and_gradient),
    "pixel_nll": (LOGITS, seg_loss.pixel_nll),
    "evaluate": (LOGITS, seg_loss.evaluate),
    "SpatialCrossEntropy": (
        LOGITS, lambda x, y, **options: seg_loss.SpatialCrossEntropy(**options)(x, y)
    ),
    "upsampled_cross_entropy": (SCORES, seg_loss.upsampled_cross_entropy),
    "loss_and_gradient upsampled": (
        SCORES, lambda x, y, **options: loss_and_gradient_of(x, y, Bilinear(), **options)
    ),
    "evaluate upsampled": (
        SCORES, lambda x, y, **options: evaluation_of(x, y, Bilinear(), **options)
    ),
    "UpsampledCrossEntropy": (
        SCORES, lambda x, y, **options: seg_loss.UpsampledCrossEntropy(**options)(x, y)
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def without_reports_of_other_tests():
    yield
    label_reports._deferred.clear()


def with_invalid_labels(case):
    scores, labels, _ = make_inputs(case)
    labels[0, 2, 3] = labels[1, 6, 8] = 77
    return scores, labels


def call(name, **options):
    """Calls a function with invalid labels."""
    case, function = CALLS[name]
    function(*with_invalid_labels(case), **options)


def error_of(call, *arguments, **options):
    with pytest.raises(InvalidInput) as error:
        call(*arguments, **options)
    return str(error.value)


@pytest.mark.parametrize("name", CALLS)
def test_by_default_the_call_itself_raises(name):
    assert error_of(call, name) == MESSAGE
    assert error_of(call, name, check_labels="raise") == MESSAGE
    seg_loss.check()


@pytest.mark.parametrize("name", CALLS)
def test_a_deferred_report_is_raised_by_check_once(name):
    call(name, check_labels="defer")
    assert error_of(seg_loss.check) == MESSAGE
    seg_loss.check()


@pytest.mark.parametrize("next_name", CALLS)
@pytest.mark.parametrize("name", CALLS)
def test_a_deferred_report_is_raised_by_the_next_call(name, next_name):
    call(name, check_labels="defer")
    case, function = CALLS[next_name]
    scores, labels, _ = make_inputs(case)
    assert error_of(function, scores, labels, check_labels="ignore") == MESSAGE
    function(scores, labels)


@pytest.mark.parametrize("name", CALLS)
def test_an_ignored_report_is_never_raised(name):
    call(name, check_labels="ignore")
    seg_loss.check()


@pytest.mark.parametrize("mode", ["defer", "ignore"])
@pytest.mark.parametrize("case", [LOGITS, SCORES], ids=["plain", "bilinear"])
def test_pixels_with_invalid_labels_count_as_ignored(case, mode):
    scores, labels = with_invalid_labels(case)
    upsampling = case.upsampling
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling, check_labels=mode)
    if mode == "defer":
        assert error_of(seg_loss.check) == MESSAGE
    evaluation = evaluation_of(scores, labels, upsampling, check_labels="ignore")
    ignored = torch.where(labels == 77, 255, labels)
    expected = loss_and_gradient_of(scores, ignored, upsampling)
    assert same_bits(loss, expected[0])
    assert same_bits(gradient, expected[1])
    assert evaluation.valid_pixels == int((ignored != 255).sum())
    assert evaluation.loss == evaluation_of(scores, ignored, upsampling).loss
    if upsampling is None:
        terms = seg_loss.pixel_nll(scores, labels, check_labels="ignore")
        assert same_bits(terms, seg_loss.pixel_nll(scores, ignored))


def test_several_deferred_reports_are_raised_one_by_one():
    call("loss_and_gradient", check_labels="defer")
    assert error_of(call, "loss_and_gradient", check_labels="defer") == MESSAGE
    seg_loss.check()


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("case", [LOGITS, SCORES], ids=["plain", "bilinear"])
def test_invalid_weights_can_be_deferred(case, value):
    scores, labels, upsampling = make_inputs(case)
    weight = torch.ones(5)
    weight[3] = value
    options = {"class_weight": weight, "check_labels": "defer"}
    loss_and_gradient_of(scores, labels, upsampling, **options)
    assert error_of(seg_loss.check).startswith("class_weight: expected finite numbers")


@pytest.mark.parametrize("name", CALLS)
def test_another_mode_raises(name):
    assert error_of(call, name, check_labels="later") == (
        "check_labels: expected one of raise, defer, ignore, got 'later'."
    )
