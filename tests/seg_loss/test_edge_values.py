"""Where losses break: NaN and infinity, huge and tiny logits, nothing valid, bad labels, wrong arguments."""

# ruff: noqa: E501 - messages stay in one piece, to be found by a search

import math
import pickle
import re

import numpy as np
import pytest
import torch
from cases import (
    FLOATS,
    LABEL_DTYPES,
    LAYOUTS,
    NORMALIZATIONS,
    is_positive_zero,
    make_labels,
    make_logits,
    same_bits,
)

import seg_loss
from seg_loss import Bilinear, InvalidInput

SHAPE = (2, 5, 9, 11)
U8 = torch.uint8
# Bit patterns of NaN: quiet, signalling, all ones, negative, the smallest payload; by element size.
ODD_NANS = {
    torch.float32: (0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001, 0x7FBFFFFF),
    torch.float64: (0x7FF8 << 48, (0x7FF0 << 48) + 1, (1 << 63) - 1, (1 << 64) - 1),
    torch.float16: (0x7E00, 0x7C01, 0x7FFF, 0xFFFF, 0xFC01),
    torch.bfloat16: (0x7FC0, 0x7F81, 0x7FFF, 0xFFFF, 0xFF81),
}
INTEGERS = {torch.float32: np.uint32, torch.float64: np.uint64,
            torch.float16: np.uint16, torch.bfloat16: np.uint16}  # fmt: skip


def nan_of(dtype, bits):
    signed = np.array([bits], INTEGERS[dtype])
    return torch.from_numpy(signed.view(signed.dtype.str.replace("u", "i"))).view(dtype)


def refused(call, message):
    with pytest.raises(InvalidInput, match="^" + re.escape(message) + "$"):
        call()


def one_pixel(*logits, dtype=torch.float32):
    return torch.tensor(logits, dtype=dtype)[None, :, None, None]


def label(value):
    return torch.full((1, 1, 1), value, dtype=U8)


# -- what ignored pixels hold ------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -3e38])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_ignored_pixels_hold_reaches_neither_loss_nor_gradient(dtype, value, smoothing):
    logits, labels = make_logits(SHAPE, dtype), make_labels(SHAPE)
    ignored = (labels == 255)[:, None].expand(SHAPE)
    for classes in (slice(None), slice(0, 1), slice(4, 5)):
        where = torch.zeros(SHAPE, dtype=torch.bool)
        where[:, classes] = ignored[:, classes]
        spoilt = torch.where(where, value, logits)
        for options in ({}, {"normalization": "full"}, {"temperature": 0.5}):
            options = {**options, "label_smoothing": smoothing}
            plain = seg_loss.loss_and_gradient(logits, labels, **options)
            got = seg_loss.loss_and_gradient(spoilt, labels, **options)
            assert torch.equal(got[0], plain[0])
            assert same_bits(got[1], plain[1])
        assert same_bits(seg_loss.pixel_nll(spoilt, labels), seg_loss.pixel_nll(logits, labels))
        assert seg_loss.evaluate(spoilt, labels).loss == seg_loss.evaluate(logits, labels).loss


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_odd_nans_under_ignored_labels_leave_positive_zero(dtype):
    for bits in ODD_NANS[dtype]:
        logits = nan_of(dtype, bits).expand(1, 5, 9, 11).clone()
        labels = torch.full((1, 9, 11), 255, dtype=U8)
        loss, gradient = seg_loss.loss_and_gradient(logits, labels)
        assert float(loss) == 0
        assert is_positive_zero(gradient)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_odd_nans_at_valid_pixels_stay_nan_and_stay_there(dtype):
    # Rounding a NaN's payload to bfloat16 could carry over into infinity.
    for bits in ODD_NANS[dtype]:
        logits = torch.zeros(1, 3, 3, 9, dtype=dtype)
        logits[0, 1, 1, 4] = nan_of(dtype, bits)[0]
        loss, gradient = seg_loss.loss_and_gradient(logits, torch.zeros(1, 3, 9, dtype=U8))
        assert math.isnan(loss)
        assert gradient[0, :, 1, 4].isnan().all()
        assert int(gradient.isfinite().sum()) == 3 * 26
        assert seg_loss.evaluate(logits, torch.zeros(1, 3, 9, dtype=U8)).non_finite_pixels == 1


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_and_infinity_at_a_valid_pixel_are_not_hidden(dtype, value, y):
    logits = one_pixel(0.0, value, 1.0, dtype=dtype)
    loss, gradient = seg_loss.loss_and_gradient(logits, label(y))
    assert math.isnan(loss)
    assert gradient.isnan().all()
    assert math.isnan(seg_loss.spatial_cross_entropy(logits, label(y)))
    assert math.isnan(seg_loss.pixel_nll(logits, label(y)))
    assert math.isnan(seg_loss.evaluate(logits, label(y)).loss)


# -- huge, tiny and sure -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_minus_infinity_is_a_legal_logit_of_probability_zero(dtype):
    logits = one_pixel(1.0, -math.inf, 1.0, dtype=dtype)
    loss, gradient = seg_loss.loss_and_gradient(logits, label(0))
    kind = loss.dtype
    assert float(loss) == float(torch.tensor(math.log(2), dtype=kind))
    assert gradient.flatten().tolist() == [-0.5, 0.0, 0.5]
    loss, gradient = seg_loss.loss_and_gradient(logits, label(1))
    assert float(loss) == math.inf
    assert gradient.flatten().tolist() == [0.5, -1.0, 0.5]
    assert seg_loss.spatial_softmax(logits).flatten().tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("y", [0, 2])
def test_a_valid_pixel_of_minus_infinity_alone_is_nan(y):
    logits = one_pixel(*[-math.inf] * 3)
    loss, gradient = seg_loss.loss_and_gradient(logits, label(y))
    assert math.isnan(loss)
    assert gradient.isnan().all()
    assert seg_loss.spatial_softmax(logits).isnan().all()
    assert seg_loss.evaluate(logits, label(y)).non_finite_pixels == 1


def test_logits_below_minus_88_alone_are_no_trouble():
    # A running maximum that starts at 0 (FlagGems) or at -10000 (OHEM) gives -inf here.
    for base in (-100.0, -20000.0, -3e38):
        loss, gradient = seg_loss.loss_and_gradient(one_pixel(base, base), label(1))
        assert float(loss) == float(torch.tensor(math.log(2)))
        assert gradient.flatten().tolist() == [0.5, -0.5]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_logits_of_ten_thousand_give_exact_results(dtype):
    big = float(torch.tensor(1e4, dtype=dtype))
    for y, nll, gradient in ((0, 0.0, [0.0, 0.0, 0.0]), (2, 2 * big, [1.0, 0.0, -1.0])):
        loss, got = seg_loss.loss_and_gradient(one_pixel(big, -big, -big, dtype=dtype), label(y))
        assert float(loss) == nll
        assert got.abs().flatten().tolist() == [abs(g) for g in gradient]


def test_the_largest_floats_do_not_overflow_where_the_truth_is_finite():
    big = torch.finfo(torch.float32).max
    loss, gradient = seg_loss.loss_and_gradient(one_pixel(big, 0.0), label(1))
    assert float(loss) == big
    assert gradient.flatten().tolist() == [1.0, -1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_denormal_logits_count_as_what_they_are_nothing(dtype):
    tiny = torch.finfo(dtype).smallest_normal / 8
    loss, gradient = seg_loss.loss_and_gradient(one_pixel(tiny, -tiny, dtype=dtype), label(0))
    assert float(loss) == float(torch.tensor(math.log(2), dtype=dtype))
    assert gradient.flatten().tolist() == [-0.5, 0.5]


@pytest.mark.parametrize("num_classes", [2, 21, 1000])
@pytest.mark.parametrize("margin", [5.0, 10.0, 16.0, 20.723, 40.0, 80.0, 87.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sure_pixels_are_right_to_the_last_bits(dtype, margin, num_classes):
    # At 20.723 the loss is 1e-9: ln(1 + 1e-9) and 1 - p are both lost where they are rounded.
    logits = torch.zeros(1, num_classes, 2, 3, dtype=dtype)
    logits[:, 1] = margin
    margin = float(logits[0, 1, 0, 0])
    loss, gradient = seg_loss.loss_and_gradient(
        logits, torch.ones(1, 2, 3, dtype=U8), normalization="none"
    )
    t = (num_classes - 1) * math.exp(-margin)
    # The C terms are added one after another, and float32's exp loses an ulp per 10 of distance.
    tolerance = (4 + num_classes / 8 + margin / 8) * torch.finfo(dtype).eps
    assert float(loss) == pytest.approx(6 * math.log1p(t), rel=tolerance, abs=0)
    assert float(gradient[0, 1, 0, 0]) == pytest.approx(-t / (1 + t), rel=tolerance, abs=0)
    assert float(gradient[0, 0, 1, 2]) == pytest.approx(
        math.exp(-margin) / (1 + t), rel=tolerance, abs=0
    )
    evaluation = seg_loss.evaluate(logits, torch.ones(1, 2, 3, dtype=U8), normalization="none")
    assert evaluation.loss == pytest.approx(6 * math.log1p(t), rel=tolerance, abs=0)


def test_saturated_pixels_keep_their_loss_and_their_gradient():
    # Only Caffe stops at 87.3365, and only in its loss.
    loss, gradient = seg_loss.loss_and_gradient(one_pixel(0.0, 150.0), label(0))
    assert float(loss) == 150.0
    assert gradient.flatten().tolist() == [-1.0, 1.0]


def test_sure_and_right_beyond_float32_costs_exactly_zero():
    loss, gradient = seg_loss.loss_and_gradient(one_pixel(0.0, 150.0), label(1))
    assert float(loss) == 0
    assert not gradient.any()


# -- nothing valid -----------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_with_nothing_valid_the_loss_is_zero_and_attached_to_the_graph(
    dtype, weighted, normalization
):
    logits = torch.full(SHAPE, math.nan, dtype=dtype).requires_grad_()
    labels = torch.full((2, 9, 11), 255, dtype=U8)
    weights = (
        {"class_weight": torch.rand(5), "pixel_weight": torch.rand(2, 9, 11)} if weighted else {}
    )
    loss = seg_loss.spatial_cross_entropy(logits, labels, **weights, normalization=normalization)
    assert loss.requires_grad
    loss.backward()
    assert float(loss.detach()) == 0
    assert is_positive_zero(logits.grad)
    evaluation = seg_loss.evaluate(logits, labels, **weights, normalization=normalization)
    assert (evaluation.loss, evaluation.valid_pixels, evaluation.ignored_pixels) == (0, 0, 198)
    assert evaluation.diagnosis.state == "nothing_valid"


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("shape", [(0, 5, 9, 11), (2, 5, 0, 11), (2, 5, 9, 0), (0, 5)], ids=str)
def test_an_empty_batch_and_empty_maps_cost_zero(shape, normalization):
    logits = torch.zeros(shape, requires_grad=True)
    labels = torch.zeros((shape[0], *shape[2:]), dtype=U8)
    loss = seg_loss.spatial_cross_entropy(logits, labels, normalization=normalization)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad.shape == shape
    assert seg_loss.pixel_nll(logits, labels).shape == labels.shape
    assert seg_loss.spatial_softmax(logits).shape == shape
    maps = ("prediction", "nll", "confidence", "entropy", "top_classes", "top_probabilities")
    evaluation = seg_loss.evaluate(logits, labels, normalization=normalization, maps=maps)
    assert evaluation.loss == 0
    assert evaluation.maps["top_classes"].shape == (shape[0], 3, *shape[2:])
    out = torch.zeros(shape)
    assert seg_loss.loss_and_gradient(logits.detach(), labels, out=out)[1] is out


# -- labels ------------------------------------------------------------------------------------


def test_a_label_that_is_no_class_is_named_with_its_place():
    labels = torch.zeros(1, 3, 4, dtype=U8)
    labels[0, 1, 2] = 7
    logits = torch.zeros(1, 3, 3, 4)
    message = "labels: expected 0...2 or 255 (ignored), got 7 at (0, 1, 2)."
    for call in (
        lambda: seg_loss.spatial_cross_entropy(logits, labels),
        lambda: seg_loss.loss_and_gradient(logits, labels),
        lambda: seg_loss.pixel_nll(logits, labels),
        lambda: seg_loss.evaluate(logits, labels),
    ):
        refused(call, message)


def test_bad_labels_are_counted_and_the_first_is_shown():
    labels = torch.zeros(2, 3, 4, dtype=torch.int64)
    labels[1, 2, 3] = -5
    labels[1, 0, 1] = 3
    refused(
        lambda: seg_loss.spatial_cross_entropy(torch.zeros(2, 3, 3, 4), labels),
        "labels: expected 0...2 or 255 (ignored), got 3 at (1, 0, 1) and 1 more pixel. "
        "If 3 marks void pixels, pass ignore_index=3.",
    )
    labels[1, 0, 0] = -1
    refused(
        lambda: seg_loss.spatial_cross_entropy(
            torch.zeros(2, 3, 3, 4), labels, ignore_index=(255, 9)
        ),
        "labels: expected 0...2 or 255, 9 (ignored), got -1 at (1, 0, 0) and 2 more pixels. "
        "If -1 marks void pixels, add it to ignore_index.",
    )


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 2**32, 2**32 + 1, -(2**32), 256, 300])
def test_labels_beyond_32_bits_do_not_wrap_into_classes(value):
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    labels[0, 1, 0] = value
    refused(
        lambda: seg_loss.spatial_cross_entropy(torch.zeros(1, 3, 2, 2), labels),
        f"labels: expected 0...2 or 255 (ignored), got {value} at (0, 1, 0)."
        + (f" If {value} marks void pixels, add it to ignore_index." if value < 0 else ""),
    )


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
def test_the_first_bad_label_of_a_large_batch_is_found_in_any_layout(layout):
    labels = torch.zeros(3, 1, 301, 299, dtype=torch.int16)
    bad = ((1, 200, 298), (1, 201, 0), (2, 0, 0), (2, 300, 298))
    for n, h, w in bad:
        labels[n, 0, h, w] = 21 if n == 1 else -1
    laid = LAYOUTS[layout](labels)[:, 0]
    logits = torch.zeros(3, 21, 1, 1).expand(3, 21, 301, 299)
    refused(
        lambda: seg_loss.spatial_cross_entropy(logits, laid),
        "labels: expected 0...20 or 255 (ignored), got 21 at (1, 200, 298) and 3 more pixels. "
        "If 21 marks void pixels, pass ignore_index=21.",
    )


def test_bad_labels_of_rows_and_volumes_are_placed_too():
    refused(
        lambda: seg_loss.spatial_cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, 5])),
        "labels: expected 0...1 or 255 (ignored), got 5 at (2,).",
    )
    labels = torch.zeros(1, 2, 3, 4, dtype=torch.int32)
    labels[0, 1, 2, 3] = 9
    refused(
        lambda: seg_loss.spatial_cross_entropy(torch.zeros(1, 2, 2, 3, 4), labels),
        "labels: expected 0...1 or 255 (ignored), got 9 at (0, 1, 2, 3).",
    )


def test_cityscapes_ids_are_guessed():
    labels = torch.full((1, 1, 1), 31, dtype=U8)
    refused(
        lambda: seg_loss.spatial_cross_entropy(torch.zeros(1, 19, 1, 1), labels),
        "labels: expected 0...18 or 255 (ignored), got 31 at (0, 0, 0). "
        "Cityscapes ids? Map them to the 19 train ids.",
    )


def test_a_bad_label_leaves_out_as_it_was_and_the_next_call_works():
    logits, out = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 5.0)
    with pytest.raises(InvalidInput):
        seg_loss.loss_and_gradient(logits, torch.full((1, 2, 2), 9, dtype=U8), out=out)
    assert (out == 5).all()
    good = torch.zeros(1, 2, 2, dtype=U8)
    assert float(seg_loss.spatial_cross_entropy(logits, good)) == pytest.approx(math.log(3))


def test_an_ignore_label_the_dtype_cannot_hold_matches_no_pixel():
    # Cast to uint8, -1 would be 255 and 256 would be 0; cast to int8, 255 would be -1.
    logits = torch.zeros(1, 3, 1, 2)
    for ignore, value, dtype in (
        (-1, 255, U8),
        (256, 255, U8),
        (255, -1, torch.int8),
        (2**16 - 1, -1, torch.int16),
        (2**32 - 1, -1, torch.int32),
        (2**64 - 1, -1, torch.int64),
        (2**70, -1, torch.int64),
    ):
        labels = torch.tensor([[[0, value]]], dtype=dtype)
        refused(
            lambda labels=labels, ignore=ignore: seg_loss.spatial_cross_entropy(
                logits, labels, ignore_index=ignore
            ),
            f"labels: expected 0...2, got {value} at (0, 0, 1). "
            f"If {value} marks void pixels, add it to ignore_index.",
        )
        good = torch.zeros(1, 1, 2, dtype=dtype)
        assert seg_loss.evaluate(logits, good, ignore_index=ignore).valid_pixels == 2


def test_255_is_ignored_even_where_it_is_a_class():
    logits, labels = make_logits((1, 300, 2, 3)), torch.tensor([[[0, 255, 299], [255, 254, 256]]])
    evaluation = seg_loss.evaluate(logits, labels)
    assert evaluation.ignored_pixels == 2
    assert evaluation.per_class[255].pixels == 0
    all_of_them = seg_loss.evaluate(logits, labels, ignore_index=())
    assert all_of_them.per_class[255].pixels == 2
    _, gradient = seg_loss.loss_and_gradient(logits, labels)
    assert is_positive_zero(gradient[0, :, 0, 1])


def test_class_0_can_be_ignored():
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)
    evaluation = seg_loss.evaluate(logits, labels, ignore_index=(0, 255))
    assert evaluation.per_class[0].pixels == 0
    assert evaluation.valid_pixels == int(((labels != 0) & (labels != 255)).sum())


@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
def test_the_extreme_values_of_each_label_dtype_are_ignored_when_asked(dtype):
    limits = torch.iinfo(dtype)
    labels = torch.tensor([[[0, limits.max, limits.min, 1]]], dtype=dtype)
    logits = torch.zeros(1, 2, 1, 4)
    ignored = (limits.max, limits.min) if limits.min else (limits.max,)
    evaluation = seg_loss.evaluate(logits, labels, ignore_index=ignored)
    assert evaluation.valid_pixels == (2 if limits.min else 3)


# -- pixel and class weights -------------------------------------------------------------------


def test_bad_weights_are_refused():
    logits, labels = torch.zeros(2, 3, 2, 2), torch.zeros(2, 2, 2, dtype=U8)
    for bad in (-1.0, math.nan, math.inf):
        weight = torch.tensor([1.0, bad, 1.0])
        refused(
            lambda weight=weight: seg_loss.spatial_cross_entropy(logits, labels, weight),
            f"class_weight: expected finite numbers that are not negative, got {bad} for class 1.",
        )
        pixels = torch.ones(2, 2, 2)
        pixels[1, 0, 1] = pixels[1, 1, 1] = bad
        refused(
            lambda pixels=pixels: seg_loss.spatial_cross_entropy(
                logits, labels, pixel_weight=pixels
            ),
            "pixel_weight: expected finite numbers that are not negative, "
            f"got {bad} at (1, 0, 1) and 1 more pixel.",
        )


# -- arguments ---------------------------------------------------------------------------------

X, Y = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=U8)
REFUSED = [
    ((None, Y, {}), "logits: expected a torch.Tensor, got NoneType."),
    ((X.numpy(), Y, {}), "logits: expected a torch.Tensor, got ndarray."),
    ((X[0, 0, 0], Y, {}), "logits: expected [N, C, *spatial], got shape (5,). Add the batch and class axes."),
    ((X.int(), Y, {}), "logits: expected float32, float16, bfloat16 or float64, got int32."),
    ((X.to(torch.complex64), Y, {}), "logits: expected float32, float16, bfloat16 or float64, got complex64."),
    ((X[:, :0], Y, {}), "logits: expected at least one class, got shape (2, 0, 4, 5)."),
    ((X, None, {}), "labels: expected a torch.Tensor, got NoneType."),
    ((X, Y.float(), {}), "labels: expected uint8, int8, int16, int32 or int64, got float32. Class indices are integers."),
    ((X, Y.bool(), {}), "labels: expected uint8, int8, int16, int32 or int64, got bool."),
    ((X, Y[:1], {}), "labels: expected shape (2, 4, 5) to match logits (2, 3, 4, 5), got shape (1, 4, 5)."),
    ((X, Y.mT, {}), "labels: expected shape (2, 4, 5) to match logits (2, 3, 4, 5), got shape (2, 5, 4). Height and width are exchanged."),
    ((X, X.int(), {}), "labels: expected shape (2, 4, 5) to match logits (2, 3, 4, 5), got shape (2, 3, 4, 5). One-hot? Take argmax over axis 1."),
    ((X[:1], Y[0], {}), "labels: expected shape (1, 4, 5) to match logits (1, 3, 4, 5), got shape (4, 5). Add the batch axis: [None]."),
    ((X.movedim(1, -1), Y, {}), "labels: expected shape (2, 5, 3) to match logits (2, 4, 5, 3), got shape (2, 4, 5)."),
    ((X[..., 0, 0], Y, {}), "labels: expected shape (2,) to match logits (2, 3), got shape (2, 4, 5)."),
    ((X, Y, {"class_weight": [1, 1, 1]}), "class_weight: expected a torch.Tensor, got list."),
    ((X, Y, {"class_weight": torch.ones(4)}), "class_weight: expected shape (3,), one per class, got shape (4,)."),
    ((X, Y, {"class_weight": torch.ones(3, dtype=torch.int64)}), "class_weight: expected float32, float16, bfloat16 or float64, got int64."),
    ((X, Y, {"pixel_weight": 2.0}), "pixel_weight: expected a torch.Tensor, got float."),
    ((X, Y, {"pixel_weight": Y}), "pixel_weight: expected float32, float16, bfloat16 or float64, got uint8."),
    ((X, Y, {"pixel_weight": torch.ones(2, 5, 5)}), "pixel_weight: expected shape (2, 4, 5) to match logits (2, 3, 4, 5), got shape (2, 5, 5)."),
    ((X, Y, {"temperature": 0}), "temperature: expected a positive number, 1e-30...1e30, got 0."),
    ((X, Y, {"temperature": -1.0}), "temperature: expected a positive number, 1e-30...1e30, got -1.0."),
    ((X, Y, {"temperature": math.inf}), "temperature: expected a positive number, 1e-30...1e30, got inf."),
    ((X, Y, {"temperature": math.nan}), "temperature: expected a positive number, 1e-30...1e30, got nan."),
    ((X, Y, {"temperature": "1"}), "temperature: expected a positive number, 1e-30...1e30, got '1'."),
    ((X, Y, {"temperature": True}), "temperature: expected a positive number, 1e-30...1e30, got True."),
    ((X, Y, {"label_smoothing": -0.1}), "label_smoothing: expected a number from 0 to 1, got -0.1."),
    ((X, Y, {"label_smoothing": 1.1}), "label_smoothing: expected a number from 0 to 1, got 1.1."),
    ((X, Y, {"label_smoothing": math.nan}), "label_smoothing: expected a number from 0 to 1, got nan."),
    ((X, Y, {"label_smoothing": None}), "label_smoothing: expected a number from 0 to 1, got None."),
    ((X, Y, {"normalization": "mean"}), "normalization: expected one of valid, full, batch, none, weight, got 'mean'."),
    ((X, Y, {"normalization": None}), "normalization: expected one of valid, full, batch, none, weight, got None."),
    ((X, Y, {"ignore_index": None}), "ignore_index: expected an int or several, got None."),
    ((X, Y, {"ignore_index": 255.0}), "ignore_index: expected an int or several, got 255.0."),
    ((X, Y, {"ignore_index": True}), "ignore_index: expected an int or several, got True."),
    ((X, Y, {"ignore_index": "255"}), "ignore_index: expected an int or several, got '2'."),
    ((X, Y, {"ignore_index": (255, 0.5)}), "ignore_index: expected an int or several, got 0.5."),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_wrong_arguments_are_named_with_what_was_expected(arguments, message):
    logits, labels, options = arguments
    refused(lambda: seg_loss.spatial_cross_entropy(logits, labels, **options), message)
    refused(lambda: seg_loss.loss_and_gradient(logits, labels, **options), message)
    refused(lambda: seg_loss.evaluate(logits, labels, **options), message)


def test_tensors_on_another_device_are_refused():
    refused(
        lambda: seg_loss.spatial_cross_entropy(X, Y.to("meta")),
        "labels: expected a tensor on cpu, got one on meta.",
    )
    refused(
        lambda: seg_loss.spatial_cross_entropy(X, Y, torch.ones(3, device="meta")),
        "class_weight: expected a tensor on cpu, got one on meta.",
    )


MEMORY = torch.zeros(2, 2, 3, 4, 5)
WRONG_OUT = [
    (X, X.tolist(), "out: expected a torch.Tensor, got list."),
    (X, X[:1].clone(), "out: expected shape (2, 3, 4, 5) of the logits, got shape (1, 3, 4, 5)."),
    (X, X.half(), "out: expected float32 as the logits, got float16."),
    (X, torch.empty(X.shape, device="meta"), "out: expected a tensor on cpu, got one on meta."),
    (X, torch.zeros(1, 3, 4, 5).expand(2, 3, 4, 5), "out: expected separate memory for each element, got an expanded tensor."),
    (X[..., :1].expand(X.shape), X[..., :1].expand(X.shape), "out: expected separate memory for each element, got an expanded tensor."),
    (X, X.clone()._neg_view(), "out: expected a tensor without torch's negation bit, got a negated view."),
    (MEMORY[0], MEMORY.flatten()[60:180].view(2, 3, 4, 5), "out: expected the logits themselves, or other memory, got another view of the logits."),
]  # fmt: skip


@pytest.mark.parametrize(("logits", "out", "message"), WRONG_OUT, ids=[m for *_, m in WRONG_OUT])
def test_out_of_the_wrong_kind_is_refused(logits, out, message):
    refused(lambda: seg_loss.loss_and_gradient(logits, Y, out=out), message)


@pytest.mark.parametrize("upsampling", [None, Bilinear()], ids=str)
def test_tensors_that_torch_marks_as_negated_mean_their_negatives(upsampling):
    logits, weight = torch.randn(X.shape), torch.rand(Y.shape)
    options = {"upsampling": upsampling, "class_weight": torch.tensor([1.0, 2.0, 3.0])}
    plain = logits, {**options, "pixel_weight": weight}
    negated = (
        (-logits)._neg_view(),
        {
            "upsampling": upsampling,
            "class_weight": (-options["class_weight"])._neg_view(),
            "pixel_weight": (-weight)._neg_view(),
        },
    )
    for read in (
        lambda x, options: seg_loss.loss_and_gradient(x, Y, **options),
        lambda x, options: seg_loss.loss_and_gradient(
            x, Y, out=torch.empty_like(logits), **options
        ),
    ):
        assert all(map(same_bits, read(*negated), read(*plain)))
    found, expected = (
        seg_loss.evaluate(x, Y, maps=("nll",), **options) for x, options in (negated, plain)
    )
    assert found.loss == expected.loss
    assert same_bits(found.maps["nll"], expected.maps["nll"])


def test_unknown_maps_are_refused():
    names = "prediction, nll, confidence, entropy, top_classes, top_probabilities"
    refused(
        lambda: seg_loss.evaluate(X, Y, maps=("nll", "depth")),
        f"maps: expected names among {names}, got ('nll', 'depth').",
    )
    refused(
        lambda: seg_loss.evaluate(X, Y, maps="nll"),
        f"maps: expected names among {names}, got 'nll'.",
    )


def test_invalid_input_is_a_value_error_with_its_parts_and_survives_pickling():
    error = InvalidInput("labels", "4", "5", "Count again.")
    assert isinstance(error, ValueError)
    assert str(error) == "labels: expected 4, got 5. Count again."
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.where, copy.expected, copy.got, copy.fix) == ("labels", "4", "5", "Count again.")
    assert str(InvalidInput("a", "b", "c")) == "a: expected b, got c."


# -- finite logits -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_require_finite_names_the_first_bad_logit_and_counts_the_pixels(dtype):
    logits, labels = torch.zeros(2, 3, 4, 5, dtype=dtype), torch.zeros(2, 4, 5, dtype=U8)
    labels[0, 0, 0] = 255
    logits[0, 1, 0, 0] = math.nan  # ignored
    logits[0, 2, 0, 1] = -math.inf  # legal
    seg_loss.require_finite(logits, labels)
    logits[1, 2, 3, 4] = math.inf
    start = "logits: expected finite numbers (or -inf in some classes) at valid pixels, got "
    end = " The network has diverged, or the file is damaged."
    refused(lambda: seg_loss.require_finite(logits, labels), start + "inf at (1, 2, 3, 4)." + end)
    logits[1, 1, 0, 2] = math.nan
    refused(
        lambda: seg_loss.require_finite(logits, labels),
        start + "nan at (1, 1, 0, 2) and 1 more pixel." + end,
    )
    logits[0, :, 2, 2] = -math.inf
    refused(
        lambda: seg_loss.require_finite(logits, labels),
        start + "-inf in every class at pixel (0, 2, 2) and 2 more pixels." + end,
    )
    seg_loss.require_finite(logits, torch.full_like(labels, 7), ignore_index=(255, 7))


@pytest.mark.parametrize("call", [seg_loss.spatial_cross_entropy, seg_loss.loss_and_gradient])
def test_logits_on_a_device_without_kernels_are_refused_by_name(call):
    logits = torch.zeros(1, 2, 3, 3, device="meta")
    labels = torch.zeros(1, 3, 3, dtype=torch.uint8, device="meta")
    refused(
        lambda: call(logits, labels),
        "logits: expected a tensor on the CPU or on a CUDA device, got one on meta. "
        "There are no kernels for other devices: call .cpu().",
    )
