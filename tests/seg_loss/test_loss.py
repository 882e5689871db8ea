"""The loss against the definition in float64, over shapes, dtypes, layouts, labels and options."""

import itertools

import pytest
import torch
from cases import (
    CASES,
    FLOATS,
    LABEL_DTYPES,
    LAYOUTS,
    OPTIONS,
    assert_accurate,
    make_labels,
    make_logits,
    make_options,
    same_bits,
    torch_loss,
    with_void,
)

import seg_loss
from seg_loss import reference

# Every shape in every dtype and layout; label dtypes and options take turns.
_turns = itertools.cycle(
    (label_dtype, option) for option in OPTIONS for label_dtype in LABEL_DTYPES
)
GRID = [
    pytest.param(case, dtype, layout, *next(_turns), id=f"{case.name}-{str(dtype)[6:]}-{layout}")
    for case in CASES
    for dtype in FLOATS
    for layout in LAYOUTS
]


@pytest.mark.parametrize(("case", "dtype", "layout", "label_dtype", "option"), GRID)
def test_loss_is_as_accurate_as_torchs_or_better(case, dtype, layout, label_dtype, option):
    logits = LAYOUTS[layout](make_logits(case.shape, dtype))
    labels = make_labels(case.shape, label_dtype)
    options = with_void(make_options(option, case.shape), labels)
    got = seg_loss.spatial_cross_entropy(logits, labels, **options)
    truth = reference.spatial_cross_entropy(logits, labels, **options)
    assert got.shape == ()
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_accurate(f"loss ({case.reason})", got, truth, torch_loss(logits, labels, **options))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pixel_nll_is_the_loss_of_each_pixel(case, dtype):
    logits, labels = make_logits(case.shape, dtype), make_labels(case.shape)
    got = seg_loss.pixel_nll(logits, labels)
    terms, _ = reference.pixel_terms(logits, labels)
    valid = labels != 255
    truth = torch.zeros(labels.shape, dtype=torch.float64)
    truth[valid] = terms
    x = logits if dtype == torch.float64 else logits.float()
    by_torch = torch.nn.functional.cross_entropy(
        x, labels.long(), ignore_index=255, reduction="none"
    )
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.is_contiguous()
    assert_accurate("pixel_nll", got, truth, by_torch)
    assert same_bits(got[~valid], torch.zeros_like(got[~valid]))


@pytest.mark.parametrize("label_dtype", LABEL_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_are_read_as_they_lie(layout, label_dtype):
    shape = (3, 3, 15, 17)
    logits, labels = make_logits(shape), make_labels(shape, label_dtype)
    void = -1 if label_dtype == torch.int8 else 255
    laid = LAYOUTS[layout](labels[:, None])[:, 0]
    got = seg_loss.pixel_nll(logits, laid, ignore_index=void)
    assert torch.equal(got, seg_loss.pixel_nll(logits, laid.contiguous(), ignore_index=void))


def test_labels_may_have_an_axis_of_one_class():
    shape = (2, 5, 7, 9)
    logits, labels = make_logits(shape), make_labels(shape)
    assert torch.equal(
        seg_loss.spatial_cross_entropy(logits, labels[:, None]),
        seg_loss.spatial_cross_entropy(logits, labels),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixel_weights_are_read_as_they_lie(layout):
    shape = (3, 3, 15, 17)
    logits, labels = make_logits(shape), make_labels(shape)
    weight = LAYOUTS[layout](torch.rand(3, 1, 15, 17))
    for dtype in FLOATS:
        laid = weight.to(dtype)
        for normalization in ("none", "weight"):
            got = seg_loss.spatial_cross_entropy(
                logits, labels, pixel_weight=laid, normalization=normalization
            )
            plain = seg_loss.spatial_cross_entropy(
                logits,
                labels,
                pixel_weight=laid[:, 0].clone(memory_format=torch.contiguous_format),
                normalization=normalization,
            )
            assert torch.equal(got, plain)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_large_pixel_weights_of_any_dtype_stay_alive_while_they_are_read(dtype):
    # A converted copy that nobody holds is given back to the system while the kernel reads it.
    shape = (1, 2, 1500, 1500)
    logits, labels = torch.zeros(shape), torch.zeros(1, 1500, 1500, dtype=torch.uint8)
    weight = torch.full((1, 1500, 1500), 0.5, dtype=dtype)
    loss = seg_loss.spatial_cross_entropy(
        logits, labels, pixel_weight=weight, normalization="weight"
    )
    assert float(loss) == pytest.approx(0.6931471805599453, rel=1e-7)


@pytest.mark.parametrize("order", [(2, 3, 4, 5), (5, 4, 3, 2), (3, 5, 2, 4)], ids=str)
def test_four_spatial_axes_in_any_order_are_read_right(order):
    # Axes that do not lie seamlessly behind each other cannot be merged.
    base = make_logits((2, 3, 4, 5, 2, 3))
    logits = base.permute(0, 1, *order)
    labels = make_labels(logits.shape)
    got, gradient = seg_loss.loss_and_gradient(logits, labels)
    truth, true_gradient = reference.loss_and_gradient(logits, labels)
    assert_accurate("loss", got, truth, torch_loss(logits, labels))
    assert float((gradient - true_gradient).abs().max()) < 1e-7


def test_a_million_equal_terms_sum_to_the_last_bit():
    # One float32 after another loses five digits here (Caffe).
    logits = torch.zeros(1, 3, 1000, 1000)
    labels = torch.zeros(1, 1000, 1000, dtype=torch.uint8)
    loss = seg_loss.spatial_cross_entropy(logits, labels, normalization="none")
    ln3 = float(seg_loss.pixel_nll(logits[..., :1, :1], labels[..., :1, :1]))
    assert float(loss) == float(torch.tensor(ln3 * 1e6, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_more_pixels_than_float16_can_count_are_no_trouble(dtype):
    # 65536 is infinite in float16, and bfloat16 counts only to 256.
    logits = torch.zeros(1, 2, 300, 300, dtype=dtype)
    labels = torch.zeros(1, 300, 300, dtype=torch.uint8)
    got = seg_loss.spatial_cross_entropy(logits, labels)
    assert float(got) == pytest.approx(0.6931471805599453, rel=1e-7)
    total = seg_loss.spatial_cross_entropy(logits, labels, normalization="none")
    assert float(total) == pytest.approx(90000 * 0.6931471805599453, rel=1e-7)


def test_more_pixels_than_float32_can_count():
    # 2^24 + 1 is no float32.
    shape = (1, 2, 1, (1 << 24) + 1)
    logits = torch.zeros(1, 2, 1, 1).expand(shape)
    evaluation = seg_loss.evaluate(logits, torch.zeros(1, 1, shape[3], dtype=torch.uint8))
    assert evaluation.divisor == (1 << 24) + 1
    assert evaluation.per_class[0].pixels == (1 << 24) + 1
