"""Strides, offsets and dtypes of logits, labels and weights do not change a result."""

import pytest
import torch

import seg_loss
from seg_loss import Bilinear
from tests.support.cases import (
    ALL_LABEL_DTYPES,
    FLOATS,
    LAYOUTS,
    UPSAMPLINGS,
    Case,
    ignored_label,
    loss_and_gradient_of,
    loss_of,
    make_inputs,
    make_labels,
    same_bits,
)

PLAIN = Case((3, 3, 15, 17), "odd planes: images after the first are unaligned")
CASES = {**UPSAMPLINGS, "plain": PLAIN}


def each(*names):
    return pytest.mark.parametrize("case", [CASES[name] for name in names], ids=names)


def assert_same_bits(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@each("plain", "bilinear")
def test_scores_may_have_any_strides(case, dtype, layout):
    scores, labels, upsampling = make_inputs(case, dtype)
    strided = LAYOUTS[layout](scores)
    loss, gradient = loss_and_gradient_of(strided, labels, upsampling)
    expected = loss_and_gradient_of(strided.contiguous(), labels, upsampling)
    assert gradient.stride() == torch.empty_like(strided).stride()
    assert_same_bits((loss, gradient), expected)


@pytest.mark.parametrize("label_dtype", ALL_LABEL_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@each("plain", "bilinear")
def test_labels_and_pixel_weights_may_have_any_strides(case, layout, label_dtype):
    scores, labels, upsampling = make_inputs(case, label_dtype=label_dtype)
    ignored = ignored_label(label_dtype)
    strided = LAYOUTS[layout](labels[:, None])
    weight = LAYOUTS[layout](torch.rand(labels.shape)[:, None])
    got = loss_and_gradient_of(
        scores, strided, upsampling, ignore_index=ignored, pixel_weight=weight[:, 0]
    )
    expected = loss_and_gradient_of(
        scores,
        strided[:, 0].contiguous(),
        upsampling,
        ignore_index=ignored,
        pixel_weight=weight.contiguous(),
    )
    assert_same_bits(got, expected)
    if upsampling is None:
        nll = seg_loss.pixel_nll(scores, strided[:, 0], ignore_index=ignored)
        expected_nll = seg_loss.pixel_nll(scores, strided[:, 0].contiguous(), ignore_index=ignored)
        assert torch.equal(nll, expected_nll)


@pytest.mark.parametrize("layout", LAYOUTS)
@each("plain", "bilinear")
def test_pixel_weights_of_any_dtype_may_have_any_strides(case, layout):
    scores, labels, upsampling = make_inputs(case)
    weight = LAYOUTS[layout](torch.rand(labels.shape)[:, None])
    for dtype in FLOATS:
        strided = weight.to(dtype)
        contiguous = strided[:, 0].clone(memory_format=torch.contiguous_format)
        for normalization in ("none", "weight"):
            options = {"normalization": normalization}
            got = loss_of(scores, labels, upsampling, pixel_weight=strided, **options)
            expected = loss_of(scores, labels, upsampling, pixel_weight=contiguous, **options)
            assert torch.equal(got, expected)


@pytest.mark.parametrize("layout", [x for x in LAYOUTS if x not in ("expanded", "between_bytes")])
@each("plain", "bilinear")
def test_autograd_returns_a_gradient_like_the_scores(case, layout):
    scores, labels, upsampling = make_inputs(case)
    _, expected = loss_and_gradient_of(scores, labels, upsampling)
    leaf = LAYOUTS[layout](scores).requires_grad_()
    (got,) = torch.autograd.grad(loss_of(leaf, labels, upsampling), leaf)
    assert got.stride() == torch.empty_like(leaf).stride()
    assert same_bits(got, expected)


@each("plain", "deconvolution")
def test_labels_of_every_dtype_mean_the_same(case):
    scores, labels, upsampling = make_inputs(case)
    expected = loss_and_gradient_of(scores, labels, upsampling)
    for dtype in ALL_LABEL_DTYPES:
        labels = make_labels(case.full_shape, dtype)
        got = loss_and_gradient_of(scores, labels, upsampling, ignore_index=(255, -1))
        assert_same_bits(got, expected)


@each("plain", "bilinear")
def test_labels_and_weights_may_have_an_axis_of_one_class(case):
    scores, labels, upsampling = make_inputs(case)
    weight = torch.rand(labels.shape)
    got = loss_and_gradient_of(scores, labels[:, None], upsampling, pixel_weight=weight[:, None])
    expected = loss_and_gradient_of(scores, labels, upsampling, pixel_weight=weight)
    assert_same_bits(got, expected)


@each("plain", "aligned")
def test_weights_may_have_another_dtype_than_the_scores(case):
    scores, labels, upsampling = make_inputs(case)
    class_weight = torch.tensor([0.5, 2.0, 0.25, 1.0, 3.0])[: case.shape[1]]
    pixel_weight = torch.full(labels.shape, 0.5)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        options = {"class_weight": class_weight.to(dtype), "pixel_weight": pixel_weight.to(dtype)}
        got = loss_and_gradient_of(scores, labels, upsampling, **options)
        options = {"class_weight": class_weight, "pixel_weight": pixel_weight}
        assert_same_bits(got, loss_and_gradient_of(scores, labels, upsampling, **options))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_converted_pixel_weights_live_as_long_as_the_kernel(dtype):
    # Without a reference a converted copy is returned to the system while the kernel reads it.
    shape = (1, 2, 1500, 1500)
    logits, labels = torch.zeros(shape), torch.zeros(1, 1500, 1500, dtype=torch.uint8)
    weight = torch.full((1, 1500, 1500), 0.5, dtype=dtype)
    loss = seg_loss.spatial_cross_entropy(
        logits, labels, pixel_weight=weight, normalization="weight"
    )
    assert float(loss) == pytest.approx(0.6931471805599453, rel=1e-7)


@pytest.mark.parametrize("upsampling", [None, Bilinear()], ids=str)
def test_torchs_negation_bit_is_resolved(upsampling):
    logits, weight = torch.randn(2, 3, 4, 5), torch.rand(2, 4, 5)
    labels = torch.zeros(2, 4, 5, dtype=torch.uint8)
    options = {"upsampling": upsampling, "class_weight": torch.tensor([1.0, 2.0, 3.0])}
    resolved = logits, {**options, "pixel_weight": weight}
    negated = (
        (-logits)._neg_view(),
        {
            "upsampling": upsampling,
            "class_weight": (-options["class_weight"])._neg_view(),
            "pixel_weight": (-weight)._neg_view(),
        },
    )
    for read in (
        lambda x, options: seg_loss.loss_and_gradient(x, labels, **options),
        lambda x, options: seg_loss.loss_and_gradient(
            x, labels, out=torch.empty_like(logits), **options
        ),
    ):
        assert_same_bits(read(*negated), read(*resolved))
    got, expected = (
        seg_loss.evaluate(x, labels, maps=("nll",), **options) for x, options in (negated, resolved)
    )
    assert got.loss == expected.loss
    assert same_bits(got.maps["nll"], expected.maps["nll"])
