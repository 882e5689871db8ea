"""The two forms of the upsampled loss on the CPU: `interval_columns`, and `upsampled` for the rest.

Both are compared with float64; `test_accuracy` has more shapes, and the options of the loss.
"""

import math

import pytest
import torch

from seg_loss import Bilinear, Deconvolution
from seg_loss.cpu import plan, upsampled_loss
from tests.support.cases import (
    ALIGNED,
    FLOATS,
    Case,
    assert_accurate,
    is_positive_zero,
    loss_and_gradient_of,
    loss_of,
    make_inputs,
    make_options,
    same_bits,
    torch_loss_and_gradient,
    true_loss_and_gradient,
)

BILINEAR = Bilinear()
# Numbers of phases that do and do not fill a group, and numbers of intervals around 16.
CASES = (
    *(Case((1, classes, 3, 5), "classes", (25, 41), BILINEAR) for classes in (1, 2, 19, 21, 33)),
    Case((1, 150, 3, 5), "many classes", (25, 41), BILINEAR),
    *(
        Case((2, 5, 3, 17), f"stride {stride}", (3 * stride, 17 * stride), BILINEAR)
        for stride in (2, 4, 6, 8, 12, 16, 32, 64)
    ),
    *(
        Case((1, 4, 4, sources), "strips", (10, 4 * sources), BILINEAR)
        for sources in (14, 15, 16, 31, 32, 33)
    ),
    Case((1, 4, 9, 11), "phases that few intervals have", (65, 83), BILINEAR),
    Case((1, 4, 9, 11), "aligned corners", (66, 84), ALIGNED),
    Case((1, 4, 9, 40), "hardly larger", (65, 47), BILINEAR),
    Case((1, 5, 7, 9), "attenuated borders", (32, 40), Deconvolution(4)),
    Case((1, 21, 9, 10), "the last layer of FCN-8s", (33, 41), Deconvolution(8, crop=31)),
)
EACH_CASE = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
EACH_FORM = pytest.mark.parametrize("is_general", [False, True], ids=["columns", "general"])


@pytest.fixture
def choose_form(monkeypatch):
    """Returns what makes the backend use one of the forms."""

    def choose(is_general):
        monkeypatch.setattr(upsampled_loss, "plans", plan.Cache())
        if is_general:
            monkeypatch.setattr(upsampled_loss, "_has_interval_columns", lambda inputs: False)

    return choose


def assert_true(scores, labels, upsampling, **options):
    """Asserts that loss and gradient, and the loss alone, are as accurate as torch's."""
    arguments = {"upsampling": upsampling, **options}
    truth = true_loss_and_gradient(scores, labels, **arguments)
    by_torch = torch_loss_and_gradient(scores, labels, **arguments)
    got = loss_and_gradient_of(scores, labels, upsampling, **options)
    assert_accurate("loss", got[0], truth[0], by_torch[0])
    assert_accurate("gradient", got[1], truth[1], by_torch[1])
    assert same_bits(loss_of(scores, labels, upsampling, **options), got[0])


@EACH_FORM
@EACH_CASE
def test_both_forms_are_as_accurate_as_torch(choose_form, case, is_general):
    choose_form(is_general)
    scores, labels, upsampling = make_inputs(case)
    assert_true(scores, labels, upsampling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "option", ["class_weight", "pixel_weight", "weight_mean", "temperature", "several_ignored"]
)
def test_columns_know_these_options(dtype, option):
    case = Case((2, 5, 5, 18), "", (37, 140), BILINEAR)
    scores, labels, upsampling = make_inputs(case, dtype)
    options = {"ignore_index": 255, **make_options(option, case.full_shape)}
    assert_true(scores, labels, upsampling, **options)


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
@pytest.mark.parametrize("classes", [2, 19])
@pytest.mark.parametrize("largest", [20, 50, 200, 1e4])
def test_large_logits_are_as_accurate_as_torchs(largest, classes, stride):
    case = Case((1, classes, 6, 20), "", (6 * stride, 20 * stride), BILINEAR)
    scores, labels, upsampling = make_inputs(case)
    assert_true(scores.sign() * largest, labels, upsampling)
    assert_true((scores / 3).tanh() * largest, labels, upsampling)


@pytest.mark.parametrize("classes", [2, 19])
def test_sure_predictions_of_other_classes_are_accurate(classes):
    # The largest logit moves to another class in each interval, and is never the target's.
    shape = 1, classes, 4, 40
    best = torch.arange(4 * 40).reshape(1, 1, 4, 40) % classes
    scores = torch.full(shape, -60.0).scatter(1, best, 60.0)
    scores += torch.randn(shape, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(1, 32, 320, dtype=torch.uint8)
    assert_true(scores, labels, BILINEAR)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_reaches_the_scores_of_its_intervals_alone(value):
    case = Case((1, 5, 5, 40), "", (40, 320), BILINEAR)
    scores, labels, upsampling = make_inputs(case, ignored=0.0)
    _, expected = loss_and_gradient_of(scores, labels, upsampling)
    scores[0, 2, 2, 20] = value
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling)
    assert math.isnan(loss)
    reached = torch.zeros(5, 40, dtype=torch.bool)
    reached[1:4, 19:22] = True
    assert gradient[:, :, reached].isnan().all()
    assert same_bits(gradient[:, :, ~reached], expected[:, :, ~reached])


def test_a_class_of_minus_infinity_changes_no_other_class():
    case = Case((1, 5, 5, 40), "", (40, 320), BILINEAR)
    scores, labels, upsampling = make_inputs(case)
    labels[labels == 4] = 255
    scores[:, 4, 2, 20] = -math.inf
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling)
    assert math.isfinite(loss)
    assert gradient.isfinite().all()
    finite = torch.where(scores.isinf(), -1e6, scores)
    truth, true_gradient = true_loss_and_gradient(finite, labels, upsampling=upsampling)
    assert float(loss) == pytest.approx(float(truth), rel=1e-6)
    assert torch.allclose(gradient.double(), true_gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_only_ignored_pixels_read_change_no_bit(value):
    case = Case((1, 5, 5, 40), "", (40, 320), BILINEAR)
    scores, labels, upsampling = make_inputs(case)
    labels[:, :, 100:140] = 255
    expected = loss_and_gradient_of(scores, labels, upsampling)
    scores[:, :, :, 14:16] = value
    got = loss_and_gradient_of(scores, labels, upsampling)
    assert same_bits(got[0], expected[0])
    assert same_bits(got[1], expected[1])
    assert is_positive_zero(got[1][:, :, :, 14:16])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_and_two_threads_give_the_same_bits(dtype):
    case = Case((2, 19, 33, 40), "", (264, 320), BILINEAR)
    scores, labels, upsampling = make_inputs(case, dtype)
    num_threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append(loss_and_gradient_of(scores, labels, upsampling))
    finally:
        torch.set_num_threads(num_threads)
    assert same_bits(results[0][0], results[1][0])
    assert same_bits(results[0][1], results[1][1])


def test_general_options_take_the_general_form(monkeypatch):
    def fail(*args):
        raise AssertionError("interval_columns do not process this")

    monkeypatch.setattr(upsampled_loss, "plans", plan.Cache())
    monkeypatch.setattr(upsampled_loss, "_plan_interval_columns", fail)
    scores, labels, _ = make_inputs(Case((1, 5, 4, 6), "", (20, 30), BILINEAR))
    loss_of(scores, labels, BILINEAR, label_smoothing=0.1)
    loss_of(scores.double(), labels, BILINEAR)
    loss_of(scores, labels[:, :3, :5], BILINEAR)  # smaller than the scores
    loss_of(scores, labels[:, :12, :18], BILINEAR)  # stride 3 has weights of 0
    with pytest.raises(AssertionError, match="do not process this"):
        loss_of(scores, labels[:, :16, :24], BILINEAR)
