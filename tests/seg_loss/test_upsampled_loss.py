"""What is special to the loss of upsampled scores: how target pixels share their gradient."""

import math

import pytest
import torch

import seg_loss
from seg_loss import Bilinear, Deconvolution
from tests.support.cases import (
    ALIGNED,
    FLOATS,
    OPTIONS,
    UPSAMPLINGS,
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
    true_logits,
    weight_matrices,
)

EACH_UPSAMPLING = pytest.mark.parametrize("case", UPSAMPLINGS.values(), ids=UPSAMPLINGS)


@EACH_UPSAMPLING
def test_the_gradient_is_that_of_the_logits_times_the_weights(case):
    # This uses neither autograd nor the loss of `reference`.
    scores, labels, upsampling = make_inputs(case, torch.float64)
    rows, columns = weight_matrices(scores.shape, labels.shape[1:], upsampling)
    logits = true_logits(scores, labels, upsampling)
    loss, gradient_of_logits = seg_loss.loss_and_gradient(logits, labels)
    got, gradient = loss_and_gradient_of(scores, labels, upsampling)
    assert float(got) == pytest.approx(float(loss), rel=1e-13)
    expected = rows.T @ gradient_of_logits @ columns
    assert torch.allclose(gradient, expected, rtol=1e-12, atol=1e-15)


@EACH_UPSAMPLING
def test_one_valid_pixel_shares_its_gradient_by_the_weights(case):
    scores, labels, upsampling = make_inputs(case, torch.float64)
    scores, labels = scores[:1], labels[:1]
    size = labels.shape[1:]
    rows, columns = weight_matrices(scores.shape, size, upsampling)
    logits = true_logits(scores, labels, upsampling)
    pixels = torch.randint(0, labels.numel(), (12,), generator=seed_of(case.name)).tolist()
    for pixel in (0, size[1] - 1, labels.numel() - 1, *pixels):
        y, x = divmod(pixel, size[1])
        one = torch.full_like(labels, 255)
        one[0, y, x] = 3
        loss, gradient = loss_and_gradient_of(scores, one, upsampling)
        p = logits[0, :, y, x].softmax(dim=0)
        p[3] -= 1
        weights = rows[y][:, None] * columns[x]
        nll = -logits[0, :, y, x].log_softmax(dim=0)[3]
        assert float(loss) == pytest.approx(float(nll), rel=1e-13)
        assert torch.allclose(gradient[0], p[:, None, None] * weights, rtol=1e-12, atol=1e-16)
        assert is_positive_zero(gradient[0][:, weights == 0])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_score_that_is_the_same_everywhere_upsamples_to_itself(dtype):
    column = make_logits((2, 5, 1, 1), dtype)
    labels = make_labels((2, 5, 24, 40))
    logits = column.expand(2, 5, 24, 40)
    expected, full = seg_loss.loss_and_gradient(logits, labels)
    for upsampling in (Bilinear(), ALIGNED):
        loss, gradient = loss_and_gradient_of(column.expand(2, 5, 3, 5), labels, upsampling)
        assert float(loss) == pytest.approx(float(expected), rel=1e-6)
        # The weights of each target pixel sum to one, so that no gradient is lost.
        rounding = 16 * torch.finfo(dtype).eps
        assert torch.allclose(
            gradient.double().sum(dim=(2, 3)),
            full.double().sum(dim=(2, 3)),
            rtol=rounding,
            atol=rounding,
        )


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("upsampling", [Bilinear(), ALIGNED, Deconvolution(1, 1)], ids=str)
def test_equal_sizes_give_the_loss_of_the_scores_themselves(upsampling, option):
    shape = (2, 21, 17, 23)
    labels, options = make_labels(shape), make_options(option, shape)
    for dtype in FLOATS:
        scores = make_logits(shape, dtype)
        loss, gradient = loss_and_gradient_of(scores, labels, upsampling, **options)
        expected, expected_gradient = seg_loss.loss_and_gradient(scores, labels, **options)
        wide = dtype == torch.float64
        assert float(loss) == pytest.approx(float(expected), rel=1e-14 if wide else 1e-6)
        rounding = 2 * torch.finfo(dtype).eps
        largest = float(expected_gradient.abs().max())
        assert torch.allclose(gradient, expected_gradient, rtol=rounding, atol=rounding * largest)
        read = is_read(labels, shape, None, options.get("ignore_index", 255))[:, 0]
        assert is_positive_zero(gradient.movedim(1, -1)[~read])


def test_equal_sizes_need_no_special_case():
    scores, labels = torch.zeros(2, 3, 2, 4), torch.zeros(2, 1, 2, 4, dtype=torch.int32)
    loss = seg_loss.upsampled_cross_entropy(scores, labels)
    assert float(loss) == pytest.approx(math.log(3), rel=1e-6)


def test_bilinear_without_aligned_corners_is_the_default():
    scores, labels, _ = make_inputs(UPSAMPLINGS["bilinear"])
    loss = seg_loss.upsampled_cross_entropy(scores, labels)
    assert same_bits(loss, loss_of(scores, labels, Bilinear()))
    logits = torch.nn.functional.interpolate(scores, labels.shape[1:], mode="bilinear")
    other = seg_loss.spatial_cross_entropy(logits, labels)
    assert float(loss) == pytest.approx(float(other), rel=1e-6)
