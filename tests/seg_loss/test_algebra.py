"""What the loss must obey without any oracle: sums, shifts, permutations, parts, repetition."""

import math

import pytest
import torch
from cases import (
    CASES,
    FLOATS,
    OPTIONS,
    is_positive_zero,
    make_labels,
    make_logits,
    make_options,
    same_bits,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import seg_loss

SHAPE = (2, 5, 9, 11)


def loss_of(logits, labels, **options):
    return seg_loss.spatial_cross_entropy(logits, labels, **options)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_gradient_sums_to_zero_over_the_classes(case, option):
    logits, labels = make_logits(case.shape, torch.float64), make_labels(case.shape)
    options = make_options(option, case.shape)
    _, gradient = seg_loss.loss_and_gradient(logits, labels, **options)
    largest = float(gradient.abs().max())
    assert float(gradient.sum(dim=1).abs().max()) <= 1e-14 * max(largest, 1.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ignored_pixels_have_exactly_positive_zero_gradient(dtype, option, sign):
    logits, labels = make_logits(SHAPE, dtype).requires_grad_(), make_labels(SHAPE)
    options = {**make_options(option, SHAPE), "ignore_index": (255, 3)}
    (sign * loss_of(logits, labels, **options)).backward()
    ignored = (labels == 255) | (labels == 3)
    assert is_positive_zero(logits.grad.movedim(1, -1)[ignored])
    assert logits.grad.movedim(1, -1)[~ignored].any(dim=-1).all()


@pytest.mark.parametrize("shift", [1.0, -1000.0, 2.0**20])
def test_a_constant_added_to_all_classes_changes_nothing(shift):
    logits = (
        make_logits(SHAPE).round(decimals=1).mul(8).round().div(8)
    )  # no bit is lost by the shift
    labels = make_labels(SHAPE)
    plain, gradient = seg_loss.loss_and_gradient(logits, labels)
    moved, same_gradient = seg_loss.loss_and_gradient(logits + shift, labels)
    assert torch.equal(plain, moved)
    assert same_bits(gradient, same_gradient)


def test_a_constant_of_its_own_for_each_pixel_changes_nothing():
    logits = make_logits(SHAPE).mul(8).round().div(8)
    shifts = torch.randint(-500, 500, (2, 1, 9, 11)).float()
    labels = make_labels(SHAPE)
    plain, gradient = seg_loss.loss_and_gradient(logits, labels)
    moved, same_gradient = seg_loss.loss_and_gradient(logits + shifts, labels)
    assert torch.equal(plain, moved)
    assert same_bits(gradient, same_gradient)


def test_permuting_the_classes_with_the_labels_permutes_the_gradient():
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)
    order = torch.tensor([3, 0, 4, 2, 1])
    renamed = torch.cat([order.argsort(), torch.zeros(251, dtype=torch.int64)])
    renamed[255] = 255
    plain, gradient = seg_loss.loss_and_gradient(logits, labels)
    other, permuted = seg_loss.loss_and_gradient(logits[:, order], renamed[labels.long()])
    assert float(other) == pytest.approx(float(plain), rel=1e-7)
    assert torch.allclose(permuted, gradient[:, order], rtol=1e-5, atol=1e-9)


def test_ignored_is_the_same_as_removed():
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)
    valid = labels != 255
    kept = logits.movedim(1, -1)[valid]
    loss, gradient = seg_loss.loss_and_gradient(logits, labels)
    less, rows = seg_loss.loss_and_gradient(kept, labels[valid])
    assert float(less) == pytest.approx(float(loss), rel=1e-7)
    assert same_bits(gradient.movedim(1, -1)[valid], rows)


def test_the_parts_of_a_batch_add_up():
    logits, labels = make_logits((5, 3, 15, 17)), make_labels((5, 3, 15, 17))
    whole, gradient = seg_loss.loss_and_gradient(logits, labels, normalization="none")
    parts = [
        seg_loss.loss_and_gradient(logits[a:b], labels[a:b], normalization="none")
        for a, b in ((0, 2), (2, 3), (3, 5))
    ]
    assert float(whole) == pytest.approx(sum(float(loss) for loss, _ in parts), rel=1e-7)
    assert same_bits(gradient, torch.cat([part for _, part in parts]))


def test_a_mean_over_parts_is_right_when_sum_and_count_are_kept_apart():
    # The mean of the parts' means is wrong where their valid counts differ.
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)
    labels[0, 1:] = 255
    whole = seg_loss.evaluate(logits, labels)
    parts = [seg_loss.evaluate(logits[k : k + 1], labels[k : k + 1]) for k in range(2)]
    assert parts[0].divisor != parts[1].divisor
    total = sum(part.loss * part.divisor for part in parts)
    assert total / sum(part.divisor for part in parts) == pytest.approx(whole.loss, rel=1e-12)


def test_ignoring_each_class_in_turn_adds_up_to_one_less_than_the_classes():
    # Caffe's own test of ignore_label.
    logits, labels = make_logits((10, 5, 2, 3)), make_labels((10, 5, 2, 3), ignored=0.0)
    full, gradient = seg_loss.loss_and_gradient(logits, labels, normalization="none")
    turns = [
        seg_loss.loss_and_gradient(logits, labels, ignore_index=c, normalization="none")
        for c in range(5)
    ]
    assert sum(float(loss) for loss, _ in turns) == pytest.approx(4 * float(full), rel=1e-6)
    assert torch.allclose(sum(part for _, part in turns), 4 * gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("num_classes", [2, 3, 21, 150, 1000])
def test_zero_logits_cost_ln_c_and_pull_by_one_minus_one_over_c(num_classes, dtype):
    logits = torch.zeros(1, num_classes, 4, 5, dtype=dtype)
    loss, gradient = seg_loss.loss_and_gradient(
        logits, torch.ones(1, 4, 5, dtype=torch.int16), normalization="none"
    )
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    tolerance = 4 * torch.finfo(kind).eps
    assert float(loss) == pytest.approx(20 * math.log(num_classes), rel=tolerance)
    rounding = 4 * torch.finfo(dtype).eps
    assert float(gradient[0, 0, 0, 0]) == pytest.approx(1 / num_classes, rel=rounding)
    assert float(gradient[0, 1, 0, 0]) == pytest.approx(1 / num_classes - 1, rel=rounding)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_class_costs_exactly_nothing(dtype):
    logits = make_logits((2, 1, 5, 7), dtype, spread=100.0)
    loss, gradient = seg_loss.loss_and_gradient(logits, torch.zeros(2, 5, 7, dtype=torch.uint8))
    assert float(loss) == 0
    assert not gradient.any()


def everything_of(logits, labels, options):
    maps = ("prediction", "nll", "confidence", "entropy", "top_classes", "top_probabilities")
    x = logits.detach().clone().requires_grad_()
    loss, gradient = seg_loss.loss_and_gradient(logits, labels, **options)
    evaluation = seg_loss.evaluate(logits, labels, **options, maps=maps)
    softmax = seg_loss.spatial_softmax(x)
    (softmax_gradient,) = torch.autograd.grad(softmax, x, logits.detach())
    numbers = [evaluation.loss, evaluation.divisor, evaluation.calibration.ece]
    numbers += [part.loss for part in evaluation.per_image]
    numbers += [part.mean_nll or 0.0 for part in evaluation.per_class]
    return [
        loss,
        gradient,
        softmax.detach(),
        softmax_gradient,
        torch.tensor(numbers, dtype=torch.float64),
        evaluation.confusion,
        *evaluation.maps.values(),
    ]


@pytest.mark.parametrize("option", ["plain", "everything"])
def test_results_are_bitwise_equal_between_runs_and_for_any_number_of_threads(option):
    shape = (2, 7, 150, 171)
    logits, labels = make_logits(shape), make_labels(shape)
    options = make_options(option, shape)
    once = everything_of(logits, labels, options)
    for num_threads in (1, 1, 2, 3, 8):
        torch.set_num_threads(num_threads)
        for a, b in zip(once, everything_of(logits, labels, options), strict=True):
            assert same_bits(a, b)


@pytest.mark.parametrize("option", ["plain", "everything"])
def test_an_image_gives_the_same_bits_alone_and_in_a_batch(option):
    shape = (3, 7, 97, 101)
    logits, labels = make_logits(shape), make_labels(shape)
    options = {**make_options(option, shape), "normalization": "none"}
    nll = seg_loss.pixel_nll(logits, labels)
    softmax = seg_loss.spatial_softmax(logits)
    _, gradient = seg_loss.loss_and_gradient(logits, labels, **options)
    per_image = seg_loss.evaluate(logits, labels, **options).per_image
    for k in range(3):
        one = slice(k, k + 1)
        alone = {**options}
        if "pixel_weight" in options:
            alone["pixel_weight"] = options["pixel_weight"][one]
        assert same_bits(nll[one], seg_loss.pixel_nll(logits[one], labels[one]))
        assert same_bits(softmax[one], seg_loss.spatial_softmax(logits[one]))
        loss, part = seg_loss.loss_and_gradient(logits[one], labels[one], **alone)
        assert same_bits(gradient[one], part)
        assert per_image[k].loss == seg_loss.evaluate(logits[one], labels[one], **alone).loss
        assert float(loss) == pytest.approx(per_image[k].loss, rel=1e-7)


shapes = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(shapes, st.sampled_from(FLOATS), st.floats(0, 1), st.integers(0, 2**31))
def test_any_shape_gives_torchs_loss_and_clean_ignored_pixels(shape, dtype, ignored, seed):
    source = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=source).to(dtype)
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=source)
    labels[torch.rand(labels.shape, generator=source) < ignored] = 255
    if shape[1] == 1 and not (labels == 255).all():
        labels[labels != 255] = 0
    loss, gradient = seg_loss.loss_and_gradient(logits, labels)
    assert is_positive_zero(gradient.movedim(1, -1)[labels == 255])
    x = logits.double().requires_grad_()
    total = torch.nn.functional.cross_entropy(x, labels, ignore_index=255, reduction="sum")
    mean = total / max(int((labels != 255).sum()), 1)
    mean.backward()
    assert float(loss) == pytest.approx(float(mean.detach()), rel=1e-6, abs=1e-7)
    rounding = 2 * torch.finfo(dtype).eps
    assert torch.allclose(gradient.double(), x.grad, rtol=rounding + 1e-5, atol=1e-7)
