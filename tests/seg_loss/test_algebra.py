"""Identities that the loss obeys: sums, shifts, permutations, parts of a batch, repetition."""

import math

import pytest
import torch

import seg_loss
from seg_loss import Bilinear, Deconvolution
from seg_loss.constants import MAPS
from tests.support.cases import (
    ALIGNED,
    CASES,
    FCN_8S,
    FLOATS,
    OPTIONS,
    UPSAMPLINGS,
    Case,
    evaluation_of,
    is_positive_zero,
    is_read,
    loss_and_gradient_of,
    loss_of,
    make_inputs,
    make_labels,
    make_logits,
    make_options,
    same_bits,
    seed_of,
)

PLAIN = Case((2, 5, 9, 11), "odd planes")
EACH_UPSAMPLING = pytest.mark.parametrize("case", UPSAMPLINGS.values(), ids=UPSAMPLINGS)


# -- sums over classes, ignored pixels ---------------------------------------------------------


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    "case", [*CASES, *UPSAMPLINGS.values()], ids=[*(case.name for case in CASES), *UPSAMPLINGS]
)
def test_the_gradient_sums_to_zero_over_the_classes(case, option):
    scores, labels, upsampling = make_inputs(case, torch.float64)
    options = make_options(option, case.full_shape)
    _, gradient = loss_and_gradient_of(scores, labels, upsampling, **options)
    largest = float(gradient.abs().max())
    read = is_read(labels, case.shape, upsampling, options.get("ignore_index", 255))
    assert largest > 0 or case.shape[1] == 1 or not read.any()
    assert float(gradient.sum(dim=1).abs().max()) <= 1e-14 * max(largest, 1.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", [PLAIN, UPSAMPLINGS["bilinear"]], ids=["plain", "bilinear"])
def test_scores_without_a_valid_reader_have_gradient_plus_zero(case, dtype, option, sign):
    scores, labels, upsampling = make_inputs(case, dtype)
    labels[:, : labels.shape[1] // 2] = 255
    scores.requires_grad_()
    options = {**make_options(option, case.full_shape), "ignore_index": (255, 3)}
    (sign * loss_of(scores, labels, upsampling, **options)).backward()
    read = is_read(labels, case.shape, upsampling, (255, 3))[:, 0]
    assert not read.all()
    assert is_positive_zero(scores.grad.movedim(1, -1)[~read])
    assert scores.grad.movedim(1, -1)[read].any(dim=-1).all()


def test_ignored_is_the_same_as_removed():
    logits, labels, _ = make_inputs(PLAIN)
    valid = labels != 255
    loss, gradient = seg_loss.loss_and_gradient(logits, labels)
    rows = logits.movedim(1, -1)[valid]
    loss_of_rows, gradient_of_rows = seg_loss.loss_and_gradient(rows, labels[valid])
    assert float(loss_of_rows) == pytest.approx(float(loss), rel=1e-7)
    assert same_bits(gradient.movedim(1, -1)[valid], gradient_of_rows)


# -- shifts and permutations -------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, -1000.0, 2.0**20])
def test_adding_a_constant_to_all_logits_changes_no_bit(shift):
    # Rounded so that the shift loses no bit.
    logits = make_logits(PLAIN.shape).round(decimals=1).mul(8).round().div(8)
    labels = make_labels(PLAIN.shape)
    loss, gradient = seg_loss.loss_and_gradient(logits, labels)
    shifted, same_gradient = seg_loss.loss_and_gradient(logits + shift, labels)
    assert torch.equal(loss, shifted)
    assert same_bits(gradient, same_gradient)


def test_adding_a_constant_to_each_pixel_changes_no_bit():
    logits = make_logits(PLAIN.shape).mul(8).round().div(8)
    shifts = torch.randint(-500, 500, (2, 1, 9, 11)).float()
    labels = make_labels(PLAIN.shape)
    loss, gradient = seg_loss.loss_and_gradient(logits, labels)
    shifted, same_gradient = seg_loss.loss_and_gradient(logits + shifts, labels)
    assert torch.equal(loss, shifted)
    assert same_bits(gradient, same_gradient)


@pytest.mark.parametrize("shift", [1.0, -1000.0, 2.0**20])
@EACH_UPSAMPLING
def test_adding_a_constant_to_all_scores_changes_nothing(case, shift):
    scores, labels, upsampling = make_inputs(case, torch.float64)
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling)
    shifted, same_gradient = loss_and_gradient_of(scores + shift, labels, upsampling)
    assert float(shifted) == pytest.approx(float(loss), rel=1e-13 * max(abs(shift), 1))
    assert torch.allclose(gradient, same_gradient, rtol=0, atol=1e-15 * max(abs(shift), 1))


@EACH_UPSAMPLING
def test_adding_a_constant_to_each_source_pixel_changes_nothing(case):
    scores, labels, upsampling = make_inputs(case, torch.float64)
    shifts = 10 * torch.randn(2, 1, 7, 9, dtype=torch.float64)
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling)
    shifted, same_gradient = loss_and_gradient_of(scores + shifts, labels, upsampling)
    assert float(shifted) == pytest.approx(float(loss), rel=1e-12)
    assert torch.allclose(gradient, same_gradient, rtol=0, atol=1e-14)


@pytest.mark.parametrize("case", [PLAIN, *UPSAMPLINGS.values()], ids=["larger", *UPSAMPLINGS])
def test_permuting_the_classes_permutes_the_gradient(case):
    scores, labels, upsampling = make_inputs(case)
    order = torch.tensor([3, 0, 4, 2, 1])
    renamed = torch.cat([order.argsort(), torch.full((251,), 255)])
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling)
    permuted, got = loss_and_gradient_of(scores[:, order], renamed[labels.long()], upsampling)
    rel, atol = (1e-7, 1e-9) if upsampling is None else (1e-6, 1e-7)
    assert float(permuted) == pytest.approx(float(loss), rel=rel)
    assert torch.allclose(got, gradient[:, order], rtol=1e-5, atol=atol)


@pytest.mark.parametrize("axes", [(2,), (3,), (2, 3)], ids=["rows", "columns", "both"])
@pytest.mark.parametrize("name", ["plain", "bilinear", "aligned", "equal", "down"])
def test_a_mirrored_image_has_a_mirrored_gradient(name, axes):
    scores, labels, upsampling = make_inputs(UPSAMPLINGS[name], torch.float64)
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling)
    mirrored = labels.flip([axis - 1 for axis in axes])
    same, got = loss_and_gradient_of(scores.flip(axes), mirrored, upsampling)
    assert float(same) == pytest.approx(float(loss), rel=1e-13)
    assert torch.allclose(got.flip(axes), gradient, rtol=1e-11, atol=1e-15)


@EACH_UPSAMPLING
def test_a_transposed_image_has_a_transposed_gradient(case):
    scores, labels, upsampling = make_inputs(case, torch.float64)
    transposed = upsampling
    if isinstance(upsampling, Deconvolution):
        transposed = Deconvolution(upsampling.stride, upsampling.kernel_size, upsampling.crop[::-1])
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling)
    same, got = loss_and_gradient_of(scores.mT, labels.mT, transposed)
    assert float(same) == pytest.approx(float(loss), rel=1e-13)
    assert torch.allclose(got.mT, gradient, rtol=1e-11, atol=1e-15)


# -- parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "rel"),
    [(Case((5, 3, 15, 17), "odd planes"), 1e-7), *((case, 1e-6) for case in UPSAMPLINGS.values())],
    ids=["larger", *UPSAMPLINGS],
)
def test_the_parts_of_a_batch_add_up(case, rel):
    scores, labels, upsampling = make_inputs(case)
    whole, gradient = loss_and_gradient_of(scores, labels, upsampling, normalization="none")
    bounds = ((0, 2), (2, 3), (3, 5)) if len(scores) == 5 else ((0, 1), (1, 2))
    parts = [
        loss_and_gradient_of(scores[a:b], labels[a:b], upsampling, normalization="none")
        for a, b in bounds
    ]
    assert float(whole) == pytest.approx(sum(float(loss) for loss, _ in parts), rel=rel)
    assert same_bits(gradient, torch.cat([part for _, part in parts]))


@EACH_UPSAMPLING
def test_the_pixels_of_a_batch_add_up(case):
    # Two calls, each with a part of the pixels ignored.
    scores, labels, upsampling = make_inputs(case, torch.float64, ignored=0.0)
    first = torch.rand(labels.shape, generator=seed_of(case.name)) < 0.5
    whole = loss_and_gradient_of(scores, labels, upsampling, normalization="none")
    parts = [
        loss_and_gradient_of(
            scores, torch.where(part, labels, 255), upsampling, normalization="none"
        )
        for part in (first, ~first)
    ]
    assert float(whole[0]) == pytest.approx(float(parts[0][0] + parts[1][0]), rel=1e-13)
    assert torch.allclose(whole[1], parts[0][1] + parts[1][1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", [PLAIN, UPSAMPLINGS["bilinear"]], ids=["plain", "bilinear"])
def test_losses_times_divisors_of_parts_add_up(case):
    # The mean of the parts' means is wrong if their numbers of valid pixels differ.
    scores, labels, upsampling = make_inputs(case)
    labels[0, 1:] = 255
    whole = evaluation_of(scores, labels, upsampling)
    parts = [evaluation_of(scores[k : k + 1], labels[k : k + 1], upsampling) for k in range(2)]
    assert parts[0].divisor != parts[1].divisor
    total = sum(part.loss * part.divisor for part in parts)
    assert total / sum(part.divisor for part in parts) == pytest.approx(whole.loss, rel=1e-12)


@pytest.mark.parametrize(
    ("case", "rtol", "atol"),
    [
        (Case((10, 5, 2, 3), "the shape of Caffe's own test"), 1e-6, 0),
        (UPSAMPLINGS["deconvolution"], 1e-5, 1e-5),
    ],
    ids=["plain", "deconvolution"],
)
def test_ignoring_each_class_in_turn_counts_all_others(case, rtol, atol):
    # Caffe's own test of ignore_label.
    scores, labels, upsampling = make_inputs(case, ignored=0.0)
    full, gradient = loss_and_gradient_of(scores, labels, upsampling, normalization="none")
    parts = [
        loss_and_gradient_of(scores, labels, upsampling, ignore_index=c, normalization="none")
        for c in range(5)
    ]
    assert sum(float(loss) for loss, _ in parts) == pytest.approx(4 * float(full), rel=1e-6)
    total = sum(part.double() for _, part in parts)
    assert torch.allclose(total, 4 * gradient.double(), rtol=rtol, atol=atol)


# -- known values ------------------------------------------------------------------------------

# Four source pixels get equal shares of the gradient of this many target pixels. FCN's borders are
# attenuated, so that they get less. The rounding is in steps of the dtype.
EQUAL_SHARES = [
    (Case((1, 1, 4, 5), "logits"), 1.0, 4),
    (Case((1, 1, 2, 2), "bilinear", (8, 8), Bilinear()), 16.0, 8),
    (Case((1, 1, 2, 2), "aligned", (8, 8), ALIGNED), 16.0, 8),
    (Case((1, 1, 2, 2), "cropped", (8, 8), Deconvolution(4, crop=2)), 12.25, 8),
    (Case((1, 1, 2, 2), "not cropped", (12, 12), Deconvolution(4)), 16.0, 8),
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("num_classes", [2, 3, 21, 150, 1000])
@pytest.mark.parametrize(
    ("case", "share", "steps"), EQUAL_SHARES, ids=[case.reason for case, *_ in EQUAL_SHARES]
)
def test_zero_scores_cost_ln_c_and_pull_by_one_minus_one_over_c(
    case, share, steps, num_classes, dtype
):
    scores = torch.zeros(1, num_classes, *case.shape[2:], dtype=dtype)
    labels = torch.ones(1, *case.full_shape[2:], dtype=torch.int16)
    loss, gradient = loss_and_gradient_of(scores, labels, case.upsampling, normalization="none")
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    tolerance = steps * torch.finfo(accumulator).eps
    assert float(loss) == pytest.approx(labels.numel() * math.log(num_classes), rel=tolerance)
    rounding = steps * torch.finfo(dtype).eps
    for c, part in ((0, 1 / num_classes), (1, 1 / num_classes - 1)):
        got = gradient[0, c].flatten().tolist()
        assert got == pytest.approx([part * share] * len(got), rel=rounding)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("case", "share", "steps"), EQUAL_SHARES, ids=[case.reason for case, *_ in EQUAL_SHARES]
)
def test_a_target_class_of_minus_infinity_costs_infinity(case, share, steps, dtype):
    scores = torch.zeros(1, 3, *case.shape[2:], dtype=dtype)
    scores[:, 1] = -math.inf
    labels = torch.ones(1, *case.full_shape[2:], dtype=torch.uint8)
    loss, gradient = loss_and_gradient_of(scores, labels, case.upsampling, normalization="none")
    assert float(loss) == math.inf
    rounding = steps * torch.finfo(dtype).eps
    for c, pull in enumerate((0.5, -1.0, 0.5)):
        got = gradient[0, c].flatten().tolist()
        assert got == pytest.approx([pull * share] * len(got), rel=rounding)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@EACH_UPSAMPLING
def test_one_class_costs_exactly_nothing(case, dtype):
    scores = make_logits((2, 1, *case.shape[2:]), dtype, spread=100.0)
    labels = torch.zeros(2, *case.full_shape[2:], dtype=torch.uint8)
    loss, gradient = loss_and_gradient_of(scores, labels, case.upsampling)
    assert float(loss) == 0
    assert not gradient.any()


# -- repetition --------------------------------------------------------------------------------


def everything_of(scores, labels, upsampling, options):
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling, **options)
    evaluation = evaluation_of(scores, labels, upsampling, **options, maps=MAPS)
    numbers = [evaluation.loss, evaluation.divisor, evaluation.calibration.ece]
    numbers += [part.loss for part in evaluation.per_image]
    numbers += [part.mean_nll or 0.0 for part in evaluation.per_class]
    results = [loss, gradient, torch.tensor(numbers, dtype=torch.float64), evaluation.confusion]
    results += evaluation.maps.values()
    if upsampling is None:
        x = scores.detach().clone().requires_grad_()
        softmax = seg_loss.spatial_softmax(x)
        (softmax_gradient,) = torch.autograd.grad(softmax, x, scores.detach())
        results += [softmax.detach(), softmax_gradient]
    return results


@pytest.mark.parametrize("option", ["plain", "everything"])
@pytest.mark.parametrize(
    "case",
    [
        Case((2, 7, 150, 171), "several chunks"),
        Case((2, 7, 60, 47), "several row blocks", (440, 338), Bilinear()),
        Case((2, 7, 60, 47), "several row blocks", (440, 338), ALIGNED),
        Case((2, 7, 60, 47), "several row blocks", (440, 338), FCN_8S),
    ],
    ids=lambda case: case.name,
)
def test_results_are_repeatable_for_any_number_of_threads(case, option):
    inputs, options = make_inputs(case), make_options(option, case.full_shape)
    expected = everything_of(*inputs, options)
    for num_threads in (1, 1, 2, 3, 8):
        torch.set_num_threads(num_threads)
        for a, b in zip(expected, everything_of(*inputs, options), strict=True):
            assert same_bits(a, b)


@pytest.mark.parametrize("option", ["plain", "everything"])
@pytest.mark.parametrize(
    "case",
    [
        Case((3, 7, 97, 101), "several chunks"),
        *(Case((5, *case.shape[1:]), case.reason, case.size, case.upsampling)
          for case in UPSAMPLINGS.values()),
    ],
    ids=["larger", *UPSAMPLINGS],
)  # fmt: skip
def test_an_image_has_the_same_bits_alone_and_in_a_batch(case, option):
    scores, labels, upsampling = make_inputs(case)
    options = {**make_options(option, case.full_shape), "normalization": "none"}
    _, gradient = loss_and_gradient_of(scores, labels, upsampling, **options)
    per_image = evaluation_of(scores, labels, upsampling, **options).per_image
    for k in range(len(scores)):
        image = scores[k : k + 1], labels[k : k + 1], upsampling
        alone = {**options}
        if "pixel_weight" in options:
            alone["pixel_weight"] = options["pixel_weight"][k : k + 1]
        loss, part = loss_and_gradient_of(*image, **alone)
        assert same_bits(gradient[k : k + 1], part)
        assert per_image[k].loss == evaluation_of(*image, **alone).loss
        assert float(loss) == pytest.approx(per_image[k].loss, rel=1e-7)


def test_softmax_and_nll_of_an_image_are_the_same_in_a_batch():
    logits, labels, _ = make_inputs(Case((3, 7, 97, 101), "several chunks"))
    nll, softmax = seg_loss.pixel_nll(logits, labels), seg_loss.spatial_softmax(logits)
    for k in range(3):
        one = slice(k, k + 1)
        assert same_bits(nll[one], seg_loss.pixel_nll(logits[one], labels[one]))
        assert same_bits(softmax[one], seg_loss.spatial_softmax(logits[one]))
