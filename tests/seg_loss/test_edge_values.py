"""NaN and infinity, huge and tiny logits, confident pixels, no valid pixel, empty tensors."""

import itertools
import math

import numpy as np
import pytest
import torch

import seg_loss
from seg_loss import Bilinear, Deconvolution
from seg_loss.constants import MAPS
from tests.support.cases import (
    ALIGNED,
    FLOATS,
    NORMALIZATIONS,
    UPSAMPLINGS,
    Case,
    assert_accurate,
    evaluation_of,
    is_positive_zero,
    is_read,
    loss_and_gradient_of,
    loss_of,
    make_inputs,
    make_labels,
    same_bits,
    seed_of,
    torch_loss_and_gradient,
    torch_upsample,
    true_logits,
    true_loss_and_gradient,
    weight_matrices,
)

PLAIN = Case((2, 5, 9, 11), "odd planes")
EACH_UPSAMPLING = pytest.mark.parametrize("case", UPSAMPLINGS.values(), ids=UPSAMPLINGS)
EACH_DTYPE = pytest.mark.parametrize("dtype", FLOATS, ids=str)
U8 = torch.uint8
# Bit patterns of NaN: quiet, signalling, all ones, negative, the smallest payload; by element size.
NAN_BITS = {
    torch.float32: (0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001, 0x7FBFFFFF),
    torch.float64: (0x7FF8 << 48, (0x7FF0 << 48) + 1, (1 << 63) - 1, (1 << 64) - 1),
    torch.float16: (0x7E00, 0x7C01, 0x7FFF, 0xFFFF, 0xFC01),
    torch.bfloat16: (0x7FC0, 0x7F81, 0x7FFF, 0xFFFF, 0xFF81),
}
INTEGERS = {torch.float32: np.uint32, torch.float64: np.uint64,
            torch.float16: np.uint16, torch.bfloat16: np.uint16}  # fmt: skip


def nan_of(dtype, bits):
    unsigned = np.array([bits], INTEGERS[dtype])
    return torch.from_numpy(unsigned.view(unsigned.dtype.str.replace("u", "i"))).view(dtype)


def one_pixel(*logits, dtype=torch.float32):
    return torch.tensor(logits, dtype=dtype)[None, :, None, None]


def label(value):
    return torch.full((1, 1, 1), value, dtype=U8)


# -- scores that no valid pixel reads ----------------------------------------------------------


def only_on_sources(labels, shape, upsampling, dims):
    """Ignores target pixels unless their row, column or both coincide with a source's."""
    rows, columns = (
        (weights == 1).any(dim=1) if dim in dims else torch.tensor(True)
        for dim, weights in enumerate(weight_matrices(shape, labels.shape[1:], upsampling))
    )
    return torch.where(rows.unsqueeze(-1) & columns, labels, 255)


# A case, and the share of ignored pixels, or the axes on which targets must coincide with sources.
UNREAD = {
    "plain": (PLAIN, 0.2),
    **{
        f"{name}, few valid": (case, 0.4 if name == "down" else 0.97)
        for name, case in UPSAMPLINGS.items()
    },
    "equal sizes": (Case((2, 5, 6, 7), "", (6, 7), Bilinear()), 0.6),
    "stride 3, on sources": (Case((2, 5, 6, 7), "", (18, 21), Bilinear()), (0, 1)),
    "stride 3 aligned, on sources": (Case((2, 5, 6, 7), "", (16, 19), ALIGNED), (0, 1)),
    "stride 3 and 2, in rows of sources": (Case((2, 5, 6, 7), "", (18, 14), Bilinear()), (0,)),
    "stride 2 and 3, in columns of sources": (Case((2, 5, 6, 7), "", (12, 21), Bilinear()), (1,)),
    "odd kernel, on sources": (Case((2, 5, 6, 7), "", (17, 20), Deconvolution(3, 5)), (0, 1)),
    "gaps, on sources": (Case((2, 5, 6, 7), "", (23, 27), Deconvolution(4, 3)), (0, 1)),
    "down, other sources": (Case((2, 5, 12, 13), "", (3, 4), Bilinear()), 0.0),
    "down aligned, other sources": (Case((2, 5, 12, 13), "", (3, 4), ALIGNED), 0.0),
    "cropped away": (Case((2, 5, 6, 7), "", (5, 6), Deconvolution(8, crop=40)), 0.0),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -3e38])
@EACH_DTYPE
@pytest.mark.parametrize("name", UNREAD)
def test_unread_scores_reach_neither_loss_nor_gradient(name, dtype, value):
    case, ignored = UNREAD[name]
    share = ignored if isinstance(ignored, float) else 0
    scores, labels, upsampling = make_inputs(case, dtype, ignored=share)
    if isinstance(ignored, tuple):
        height, width = case.size
        labels = only_on_sources(labels, case.shape, upsampling, ignored)
        # Source pixels at an interval with a valid pixel, on either side of it, that none reads.
        labels[0, : height // 2, : width // 2] = 255
        labels[1, height // 2 :, width // 2 :] = 255
    read = is_read(labels, case.shape, upsampling)
    assert not read.all()
    assert read.any()
    loss_of_evaluation = evaluation_of(scores, labels, upsampling).loss
    for classes in (slice(None), slice(0, 1), slice(4, 5)):
        changed = scores.clone()
        changed[:, classes] = torch.where(read, scores[:, classes], value)
        for options, smoothing in itertools.product(
            ({}, {"normalization": "full"}, {"temperature": 0.5}), (0.0, 0.1)
        ):
            options = {**options, "label_smoothing": smoothing}
            expected = loss_and_gradient_of(scores, labels, upsampling, **options)
            got = loss_and_gradient_of(changed, labels, upsampling, **options)
            assert math.isfinite(got[0])
            assert same_bits(got[0], expected[0])
            assert same_bits(got[1], expected[1])
            assert is_positive_zero(got[1][~read.expand(case.shape)])
        evaluation = evaluation_of(changed, labels, upsampling)
        assert evaluation.non_finite_pixels == 0
        assert evaluation.loss == loss_of_evaluation
        if upsampling is None:
            expected_nll = seg_loss.pixel_nll(scores, labels)
            assert same_bits(seg_loss.pixel_nll(changed, labels), expected_nll)


@pytest.mark.parametrize("factor", [1.0, -1.0])
@EACH_DTYPE
def test_unread_nan_of_upsampled_scores_has_gradient_plus_zero(dtype, factor):
    scores, labels, upsampling = make_inputs(UPSAMPLINGS["bilinear"], dtype)
    labels[:, :13] = 255
    scores[:, :, :2] = math.nan
    scores.requires_grad_()
    (factor * loss_of(scores, labels, upsampling)).backward()
    read = is_read(labels, scores.shape, upsampling).expand_as(scores)
    assert is_positive_zero(scores.grad[~read])
    assert scores.grad[read].all()


@EACH_DTYPE
def test_every_nan_at_ignored_pixels_has_gradient_plus_zero(dtype):
    for bits in NAN_BITS[dtype]:
        logits = nan_of(dtype, bits).expand(1, 5, 9, 11).clone()
        labels = torch.full((1, 9, 11), 255, dtype=U8)
        loss, gradient = seg_loss.loss_and_gradient(logits, labels)
        assert float(loss) == 0
        assert is_positive_zero(gradient)


# -- NaN and infinity at valid pixels ----------------------------------------------------------


@EACH_DTYPE
def test_every_nan_at_a_valid_pixel_stays_nan_at_that_pixel(dtype):
    # Rounding a NaN's payload to bfloat16 could carry over into infinity.
    for bits in NAN_BITS[dtype]:
        logits = torch.zeros(1, 3, 3, 9, dtype=dtype)
        logits[0, 1, 1, 4] = nan_of(dtype, bits)[0]
        loss, gradient = seg_loss.loss_and_gradient(logits, torch.zeros(1, 3, 9, dtype=U8))
        assert math.isnan(loss)
        assert gradient[0, :, 1, 4].isnan().all()
        assert int(gradient.isfinite().sum()) == 3 * 26
        assert seg_loss.evaluate(logits, torch.zeros(1, 3, 9, dtype=U8)).non_finite_pixels == 1


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@EACH_DTYPE
def test_nan_and_infinity_at_a_valid_pixel_are_not_hidden(dtype, value, y):
    logits = one_pixel(0.0, value, 1.0, dtype=dtype)
    loss, gradient = seg_loss.loss_and_gradient(logits, label(y))
    assert math.isnan(loss)
    assert gradient.isnan().all()
    assert math.isnan(seg_loss.spatial_cross_entropy(logits, label(y)))
    assert math.isnan(seg_loss.pixel_nll(logits, label(y)))
    assert math.isnan(seg_loss.evaluate(logits, label(y)).loss)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@EACH_DTYPE
@EACH_UPSAMPLING
def test_nan_and_infinity_stay_near_the_pixels_that_read_them(case, dtype, value):
    scores, labels, upsampling = make_inputs(case, dtype, ignored=0.0)
    changed = scores.clone()
    changed[1, 2, 3, 4] = value
    options = {"normalization": "none"}
    _, expected = loss_and_gradient_of(scores, labels, upsampling, **options)
    loss, gradient = loss_and_gradient_of(changed, labels, upsampling, **options)
    rows, columns = weight_matrices(scores.shape, labels.shape[1:], upsampling)
    readers = (rows[:, 3] != 0)[:, None] & (columns[:, 4] != 0)
    if not readers.any():  # when upsampling makes images smaller, no pixel reads it
        assert same_bits(gradient, expected)
        return
    assert math.isnan(loss)
    assert math.isnan(loss_of(changed, labels, upsampling))
    evaluation = evaluation_of(changed, labels, upsampling)
    assert math.isnan(evaluation.loss)
    assert evaluation.non_finite_pixels == int(readers.sum())
    reached = ((rows != 0).double().T @ readers.double() @ (columns != 0).double()) > 0
    assert gradient[1][:, reached].isnan().all()
    # No farther than the source pixels around the intervals of those readers.
    far = torch.ones(7, 9, dtype=torch.bool)
    far[2:5, 3:6] = False
    assert same_bits(gradient[1][:, far], expected[1][:, far])
    assert same_bits(gradient[0], expected[0])


# -- minus infinity ----------------------------------------------------------------------------


@EACH_DTYPE
def test_minus_infinity_is_a_valid_logit_of_probability_zero(dtype):
    logits = one_pixel(1.0, -math.inf, 1.0, dtype=dtype)
    loss, gradient = seg_loss.loss_and_gradient(logits, label(0))
    assert float(loss) == float(torch.tensor(math.log(2), dtype=loss.dtype))
    assert gradient.flatten().tolist() == [-0.5, 0.0, 0.5]
    loss, gradient = seg_loss.loss_and_gradient(logits, label(1))
    assert float(loss) == math.inf
    assert gradient.flatten().tolist() == [0.5, -1.0, 0.5]
    assert seg_loss.spatial_softmax(logits).flatten().tolist() == [0.5, 0.0, 0.5]


@EACH_DTYPE
@EACH_UPSAMPLING
def test_a_class_of_minus_infinity_is_the_same_as_no_class(case, dtype):
    scores, labels, upsampling = make_inputs(case, dtype)
    labels[labels == 2] = 3
    scores[:, 2] = -math.inf
    others = [0, 1, 3, 4]
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling)
    renamed = labels.clone()
    renamed[(labels > 2) & (labels != 255)] -= 1
    expected, expected_gradient = loss_and_gradient_of(scores[:, others], renamed, upsampling)
    if case is UPSAMPLINGS["gaps"]:
        # Where no filter reaches, its logit is 0 like all others.
        truth = torch_upsample(scores.double(), labels.shape[1:], upsampling)
        assert float(loss) > float(expected)
        assert math.isfinite(loss)
        assert truth.nan_to_num(neginf=-1e9).isfinite().all()
        assert gradient.isfinite().all()
        return
    rounding = 2 * torch.finfo(dtype).eps
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert is_positive_zero(gradient[:, 2].abs())
    assert torch.allclose(gradient[:, others], expected_gradient, rtol=rounding, atol=1e-7)
    evaluation = evaluation_of(scores, labels, upsampling, maps=("prediction", "entropy"))
    assert evaluation.non_finite_pixels == 0
    assert not (evaluation.maps["prediction"] == 2).any()
    assert evaluation.maps["entropy"].isfinite().all()


@EACH_DTYPE
@EACH_UPSAMPLING
def test_minus_infinity_removes_a_class_where_it_is_read(case, dtype):
    scores, labels, upsampling = make_inputs(case, dtype)
    scores[0, 2, 3, 4] = -math.inf
    rows, columns = weight_matrices(scores.shape, labels.shape[1:], upsampling)
    readers = (rows[:, 3] != 0)[:, None] & (columns[:, 4] != 0)
    labels[0][readers & (labels[0] == 2)] = 1
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling)
    # -3e4 has the same probability, 0, unless its weight is tiny.
    finite = torch.where(scores.isinf(), -3e4, scores.double())
    truth, true_gradient = true_loss_and_gradient(finite, labels, upsampling=upsampling)
    assert float(loss) == pytest.approx(float(truth), rel=1e-6)
    rounding = 2 * torch.finfo(dtype).eps + 1e-6
    assert torch.allclose(gradient.double(), true_gradient, rtol=rounding, atol=1e-7)
    if readers.any():
        assert float(gradient[0, 2, 3, 4]) == 0


@pytest.mark.parametrize("y", [0, 2])
@pytest.mark.parametrize(
    "case",
    [Case((1, 3, 1, 1), "plain"), Case((1, 3, 2, 2), "bilinear", (8, 8), Bilinear())],
    ids=lambda case: case.reason,
)
def test_pixels_of_minus_infinity_in_every_class_are_nan(case, y):
    scores = torch.full(case.shape, -math.inf)
    labels = torch.full((1, *case.full_shape[2:]), y, dtype=U8)
    loss, gradient = loss_and_gradient_of(scores, labels, case.upsampling)
    assert math.isnan(loss)
    assert gradient.isnan().all()
    assert seg_loss.spatial_softmax(scores).isnan().all()
    evaluation = evaluation_of(scores, labels, case.upsampling)
    assert evaluation.non_finite_pixels == labels.numel()


# -- huge and tiny -----------------------------------------------------------------------------


def test_logits_far_below_zero_are_exact():
    # A running maximum that starts at 0 (FlagGems) or at -10000 (OHEM) gives -inf here.
    for base in (-100.0, -20000.0, -3e38):
        loss, gradient = seg_loss.loss_and_gradient(one_pixel(base, base), label(1))
        assert float(loss) == float(torch.tensor(math.log(2)))
        assert gradient.flatten().tolist() == [0.5, -0.5]


def test_upsampled_scores_far_below_zero_are_accurate():
    for base in (-100.0, -20000.0, -3e38):
        scores, labels = torch.full((1, 2, 2, 3), base), torch.ones(1, 9, 7, dtype=U8)
        loss, gradient = loss_and_gradient_of(scores, labels, Bilinear(), normalization="none")
        # Logits of equal scores may differ in the last bit.
        assert float(loss) == pytest.approx(63 * math.log(2), rel=1e-6)
        assert torch.allclose(gradient[:, 0], -gradient[:, 1], rtol=1e-6, atol=0)


@EACH_DTYPE
def test_logits_of_ten_thousand_give_exact_results(dtype):
    big = float(torch.tensor(1e4, dtype=dtype))
    for y, nll, gradient in ((0, 0.0, [0.0, 0.0, 0.0]), (2, 2 * big, [1.0, 0.0, -1.0])):
        loss, got = seg_loss.loss_and_gradient(one_pixel(big, -big, -big, dtype=dtype), label(y))
        assert float(loss) == nll
        assert got.abs().flatten().tolist() == [abs(g) for g in gradient]


@EACH_DTYPE
@EACH_UPSAMPLING
def test_scores_of_ten_thousand_are_accurate(case, dtype):
    # Between source pixels of +1e4 and -1e4 the logits of an interval have all values in between.
    signs = torch.randint(0, 2, case.shape, generator=seed_of(case.name)) * 2 - 1
    scores, labels = (signs * 1e4).to(dtype), make_labels(case.full_shape)
    for options in ({}, {"label_smoothing": 0.1}, {"temperature": 0.1}):
        options = {**options, "upsampling": case.upsampling}
        got = seg_loss.loss_and_gradient(scores, labels, **options)
        truth = true_loss_and_gradient(scores, labels, **options)
        by_torch = torch_loss_and_gradient(scores, labels, **options)
        largest = 1e4 / options.get("temperature", 1.0)
        assert_accurate("loss", got[0], truth[0], by_torch[0], scale=largest)
        # The truth itself is exp(x - log-sum-exp) in float64, with an error of an ulp of x.
        scale = largest * float(truth[1].abs().max()) if dtype == torch.float64 else None
        assert_accurate("gradient", got[1], truth[1], by_torch[1], scale=scale)


def test_the_largest_floats_do_not_overflow():
    big = torch.finfo(torch.float32).max
    loss, gradient = seg_loss.loss_and_gradient(one_pixel(big, 0.0), label(1))
    assert float(loss) == big
    assert gradient.flatten().tolist() == [1.0, -1.0]


@pytest.mark.parametrize("upsampling", [Bilinear(), ALIGNED, Deconvolution(4, crop=2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_interpolation_of_the_largest_floats_does_not_overflow(dtype, upsampling):
    # a + t (b - a) would overflow: b - a is larger than the largest float.
    big = torch.finfo(dtype).max
    scores = torch.zeros(1, 2, 2, 2, dtype=dtype)
    scores[0, 0] = torch.tensor([[big, -big], [-big, big]], dtype=dtype)
    for pixel in range(64):
        labels = torch.full((64,), 255, dtype=U8)
        labels[pixel] = 0
        labels = labels.view(1, 8, 8)
        loss, gradient = loss_and_gradient_of(scores, labels, upsampling)
        logits = true_logits(scores, labels, upsampling)
        truth = max(0.0, -float(logits[0, 0].flatten()[pixel]))
        assert float(loss) == pytest.approx(truth, rel=1e-6)
        assert gradient.isfinite().all()
    assert evaluation_of(scores, labels, upsampling).non_finite_pixels == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_subnormal_logits_count_as_nearly_zero(dtype):
    tiny = torch.finfo(dtype).smallest_normal / 8
    loss, gradient = seg_loss.loss_and_gradient(one_pixel(tiny, -tiny, dtype=dtype), label(0))
    assert float(loss) == float(torch.tensor(math.log(2), dtype=dtype))
    assert gradient.flatten().tolist() == [-0.5, 0.5]


# -- confident pixels --------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [2, 21, 1000])
@pytest.mark.parametrize("margin", [5.0, 10.0, 16.0, 20.723, 20.75, 40.0, 80.0, 87.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("case", "constant", "per_margin"),
    [
        # The C terms are added one by one, and float32's exp loses an ulp per 10 of distance.
        (Case((1, 1, 2, 3), "plain"), 4, 1 / 8),
        # A logit is a sum of four parts, with an error of one or two ulps of the margin.
        (Case((1, 1, 2, 3), "bilinear", (4, 6), Bilinear()), 8, 3),
    ],
    ids=["plain", "bilinear"],
)
def test_confident_pixels_are_right_to_the_last_bits(
    case, constant, per_margin, dtype, margin, num_classes
):
    # At 20.723 the loss is 1e-9: ln(1 + 1e-9) and 1 - p are both lost if they are rounded.
    scores = torch.zeros(1, num_classes, 2, 3, dtype=dtype)
    scores[:, 1] = margin
    margin = float(scores[0, 1, 0, 0])
    labels = torch.ones(1, *case.full_shape[2:], dtype=U8)
    inputs, num_pixels = (scores, labels, case.upsampling), labels.numel()
    loss, gradient = loss_and_gradient_of(*inputs, normalization="none")
    t = (num_classes - 1) * math.exp(-margin)
    tolerance = (constant + num_classes / 8 + per_margin * margin) * torch.finfo(dtype).eps
    truth = num_pixels * math.log1p(t)
    assert float(loss) == pytest.approx(truth, rel=tolerance, abs=0)
    target, other = -num_pixels * t / (1 + t), num_pixels * math.exp(-margin) / (1 + t)
    total = gradient.double().sum(dim=(2, 3))[0]
    assert float(total[1]) == pytest.approx(target, rel=tolerance, abs=0)
    assert float(total[0]) == pytest.approx(other, rel=tolerance, abs=0)
    evaluation = evaluation_of(*inputs, normalization="none")
    assert evaluation.loss == pytest.approx(truth, rel=tolerance, abs=0)


def test_saturated_pixels_keep_their_loss_and_their_gradient():
    # Only Caffe stops at 87.3365, and only in its loss.
    loss, gradient = seg_loss.loss_and_gradient(one_pixel(0.0, 150.0), label(0))
    assert float(loss) == 150.0
    assert gradient.flatten().tolist() == [-1.0, 1.0]


def test_right_pixels_of_probability_one_cost_exactly_zero():
    loss, gradient = seg_loss.loss_and_gradient(one_pixel(0.0, 150.0), label(1))
    assert float(loss) == 0
    assert not gradient.any()


# -- no valid pixel ----------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("weighted", [False, True])
@EACH_DTYPE
@pytest.mark.parametrize(
    "case",
    [
        PLAIN,
        *(Case((2, 5, 7, 9), name, (27, 31), upsampling)
          for name, upsampling in (("bilinear", Bilinear()), ("aligned", ALIGNED),
                                   ("deconvolution", Deconvolution(4)))),
    ],
    ids=["plain", "bilinear", "aligned", "deconvolution"],
)  # fmt: skip
def test_without_valid_pixels_the_loss_is_zero_and_has_a_graph(
    case, dtype, weighted, normalization
):
    scores = torch.full(case.shape, math.nan, dtype=dtype).requires_grad_()
    labels = torch.full((2, *case.full_shape[2:]), 255, dtype=U8)
    options = {"normalization": normalization}
    if weighted:
        options |= {"class_weight": torch.rand(5), "pixel_weight": torch.rand(labels.shape)}
    loss = loss_of(scores, labels, case.upsampling, **options)
    assert loss.requires_grad
    (gradient,) = torch.autograd.grad(loss, scores)
    assert float(loss.detach()) == 0
    assert is_positive_zero(gradient)
    evaluation = evaluation_of(scores, labels, case.upsampling, **options)
    assert (evaluation.loss, evaluation.valid_pixels) == (0, 0)
    assert evaluation.ignored_pixels == labels.numel()
    assert evaluation.diagnosis.state == "nothing_valid"


EMPTY = {
    "no image": ((0, 5, 7, 9), (27, 31)),
    "no row": ((2, 5, 7, 9), (0, 31)),
    "no column": ((2, 5, 7, 9), (27, 0)),
    "no pixel": ((2, 5, 7, 9), (0, 0)),
    "nothing": ((0, 5, 1, 1), (0, 0)),
}
EMPTY_CASES = [
    *(Case(shape, "") for shape in ((0, 5, 9, 11), (2, 5, 0, 11), (2, 5, 9, 0), (0, 5))),
    *(
        Case(shape, "", size, upsampling)
        for shape, size in EMPTY.values()
        for upsampling in (Bilinear(), ALIGNED, Deconvolution(4, crop=(1, 0) if size[0] < 4 else 0))
    ),
]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@EACH_DTYPE
@pytest.mark.parametrize("case", EMPTY_CASES, ids=lambda case: case.name)
def test_empty_batches_and_empty_labels_cost_zero(case, dtype, normalization):
    labels = torch.zeros(case.shape[0], *case.full_shape[2:], dtype=U8)
    scores = torch.ones(case.shape, dtype=dtype, requires_grad=True)
    options = {"normalization": normalization}
    loss = loss_of(scores, labels, case.upsampling, **options)
    loss.backward()
    assert float(loss.detach()) == 0
    assert scores.grad.shape == case.shape
    assert is_positive_zero(scores.grad)
    out = torch.full(case.shape, 7.0, dtype=dtype)
    same, result = loss_and_gradient_of(
        scores.detach(), labels, case.upsampling, **options, out=out
    )
    assert result is out
    assert float(same) == 0
    assert is_positive_zero(out)
    evaluation = evaluation_of(scores, labels, case.upsampling, **options, maps=MAPS)
    assert evaluation.loss == 0
    assert evaluation.maps["nll"].shape == labels.shape
    assert evaluation.maps["top_classes"].shape == (case.shape[0], 3, *labels.shape[1:])
    assert seg_loss.spatial_softmax(scores).shape == case.shape
    if case.upsampling is None:
        assert seg_loss.pixel_nll(scores, labels).shape == labels.shape
