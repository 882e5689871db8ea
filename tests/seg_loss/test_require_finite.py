"""`require_finite`: the first non-finite score, and the number of pixels that read one."""

import math

import pytest
import torch

import seg_loss
from seg_loss import Bilinear, Deconvolution, InvalidInput
from seg_loss.upsampling import axes
from tests.support.cases import (
    FLOATS,
    Case,
    evaluation_of,
    loss_and_gradient_of,
    loss_of,
    make_inputs,
    one_thread,
    weight_matrices,
)

U8 = torch.uint8
SPECIAL_VALUES = [float("nan"), float("inf"), float("-inf"), 0.0]
START = "logits: expected finite numbers (or -inf in some classes) at valid pixels, got "
END = " The network has diverged, or the file is damaged."
CASES = {
    "plain": Case((2, 7, 61, 83), "logits"),
    "bilinear": Case((2, 7, 9, 11), "up", (61, 83), Bilinear()),
    "aligned": Case((2, 7, 9, 11), "up", (61, 83), Bilinear(align_corners=True)),
    "deconvolution": Case((2, 7, 9, 11), "cropped", (61, 83), Deconvolution(8, crop=(10, 5))),
    "odd kernel": Case((2, 7, 9, 11), "odd kernel", (61, 83), Deconvolution(9, 15, (20, 7))),
    "gaps": Case((2, 7, 9, 11), "gaps between filters", (61, 83), Deconvolution(10, 7)),
}


def error_of(scores, labels, upsampling=None, **options):
    with pytest.raises(InvalidInput) as error:
        seg_loss.require_finite(scores, labels, upsampling=upsampling, **options)
    return str(error.value)


@one_thread()
def readers_of(sources, size, upsampling):
    """Returns the target pixels [N, H, W] that read one of the source pixels [N, h, w]."""
    rows, columns = weight_matrices((1, 1, *sources.shape[1:]), size, upsampling)
    return ((rows != 0).double() @ sources.double() @ (columns != 0).double().T) > 0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("share", [0.001, 0.05, 0.5])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_pixels_that_read_non_finite_scores_are_counted(case, share, dtype):
    scores, labels, upsampling = make_inputs(case, dtype)
    size = labels.shape[1:]
    for k, value in enumerate((math.nan, math.inf, -math.inf)):
        source = torch.Generator().manual_seed(k)
        scores[torch.rand(case.shape, generator=source) < share] = value
    scores[0, :, 2:4, 5:8] = -math.inf
    non_finite = scores.isnan() | (scores == math.inf)
    invalid = readers_of(non_finite.any(dim=1), size, upsampling)
    minus_infinity = [readers_of(scores[:, c] == -math.inf, size, upsampling) for c in range(7)]
    invalid |= torch.stack(minus_infinity).all(dim=0)
    invalid &= labels != 255
    evaluation = evaluation_of(scores, labels, upsampling)
    assert evaluation.non_finite_pixels == int(invalid.sum()) > 0
    assert math.isnan(evaluation.loss)
    assert math.isnan(loss_of(scores, labels, upsampling))
    message = error_of(scores, labels, upsampling)
    valid_pixels = int((labels != 255).sum())
    assert f", in {int(invalid.sum())} of {valid_pixels} valid pixels." in message
    # With those pixels ignored, the others are finite.
    labels[invalid] = 255
    seg_loss.require_finite(scores, labels, upsampling=upsampling)
    evaluation = evaluation_of(scores, labels, upsampling)
    assert evaluation.non_finite_pixels == 0
    assert not math.isnan(evaluation.loss)
    _, gradient = loss_and_gradient_of(scores, labels, upsampling)
    assert not gradient.isnan().any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_first_non_finite_logit_is_named(dtype):
    logits, labels = torch.zeros(2, 3, 4, 5, dtype=dtype), torch.zeros(2, 4, 5, dtype=U8)
    labels[0, 0, 0] = 255
    logits[0, 1, 0, 0] = math.nan  # ignored
    logits[0, 2, 0, 1] = -math.inf  # valid: probability 0
    seg_loss.require_finite(logits, labels)
    logits[1, 2, 3, 4] = math.inf
    assert error_of(logits, labels) == f"{START}inf at (1, 2, 3, 4), in 1 of 39 valid pixels.{END}"
    logits[1, 1, 0, 2] = math.nan
    assert error_of(logits, labels) == (
        f"{START}nan at (1, 1, 0, 2), in 2 of 39 valid pixels.{END}"
    )
    logits[0, :, 2, 2] = -math.inf
    assert error_of(logits, labels) == (
        f"{START}-inf in every class at pixel (0, 2, 2), in 3 of 39 valid pixels.{END}"
    )
    seg_loss.require_finite(logits, torch.full_like(labels, 7), ignore_index=(255, 7))


def test_the_first_non_finite_score_is_named_with_its_reader():
    scores, labels = torch.zeros(2, 3, 4, 5), torch.zeros(2, 16, 20, dtype=U8)
    seg_loss.require_finite(scores, labels, upsampling=Bilinear())
    scores[1, 2, 1, 3] = math.inf
    labels[1, 2] = 255  # the first row that reads it
    assert error_of(scores, labels, Bilinear()) == (
        f"{START}inf at (1, 2, 1, 3), read by pixel (1, 3, 10), in 56 of 620 valid pixels.{END}"
    )
    scores[1, 2, 1, 3] = -math.inf
    seg_loss.require_finite(scores, labels, upsampling=Bilinear())
    scores[1, :, 2, 0] = -math.inf
    message = error_of(scores, labels, Bilinear())
    assert message.startswith(f"{START}-inf in every class at pixel (1, 6, 0), in ")
    ignored = torch.full_like(labels, 7)
    seg_loss.require_finite(scores, ignored, ignore_index=(255, 7), upsampling=Bilinear())


def test_classes_may_be_minus_infinity_at_different_sources():
    # No source pixel is -inf in every class, but the target pixels between the two are.
    scores, labels = torch.zeros(1, 2, 1, 2), torch.zeros(1, 1, 8, dtype=U8)
    scores[0, 0, 0, 0] = scores[0, 1, 0, 1] = -math.inf
    assert error_of(scores, labels, Bilinear()) == (
        f"{START}-inf in every class at pixel (0, 0, 2), in 4 of 8 valid pixels.{END}"
    )
    assert evaluation_of(scores, labels, Bilinear()).non_finite_pixels == 4


@pytest.mark.parametrize(
    "upsampling",
    [
        Bilinear(),
        Bilinear(align_corners=True),  # 7 x 9 from 3 x 3: some pixels coincide with scores
        Deconvolution(3),
        Deconvolution(4, kernel_size=2),  # some pixels read no score
        Deconvolution(4, kernel_size=7, crop=(2, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(12))
def test_require_finite_raises_if_a_valid_pixel_has_no_softmax(upsampling, seed):
    random = torch.Generator().manual_seed(seed)
    uniform = torch.rand(1, 3, 3, 3, generator=random)
    pick = torch.randint(0, 4, (1, 3, 3, 3), generator=random)
    only_minus_inf = seed % 3 == 0  # so that all classes of some pixels are -inf
    pick = pick.clamp(min=2) if only_minus_inf else pick
    values = torch.tensor(SPECIAL_VALUES)[pick]
    scores = torch.where(uniform < (0.7 if only_minus_inf else 0.12), values, uniform)
    labels = torch.randint(0, 3, (1, 7, 9), generator=random, dtype=torch.uint8)
    labels[torch.rand(1, 7, 9, generator=random) < 0.6] = 255
    rows, columns = (axis.matrix() for axis in axes(upsampling, (3, 3), (7, 9)))
    without_softmax = []
    for y, x in (labels[0] != 255).nonzero().tolist():
        read = [(i, j) for i in rows[y].nonzero()[0] for j in columns[x].nonzero()[0]]
        logits = sum(
            (rows[y, i] * columns[x, j] * scores[0, :, i, j].double() for i, j in read),
            start=torch.zeros(3).double(),
        )
        if logits.softmax(0).isnan().any():
            without_softmax.append((y, x))
    evaluation = seg_loss.evaluate(scores, labels, upsampling=upsampling)
    assert evaluation.non_finite_pixels == len(without_softmax)
    if not without_softmax:
        seg_loss.require_finite(scores, labels, upsampling=upsampling)
        return
    with pytest.raises(InvalidInput) as error:
        seg_loss.require_finite(scores, labels, upsampling=upsampling)
    y, x = without_softmax[0]
    got = error.value.got
    assert f"(0, {y}, {x})" in got
    valid_pixels = int((labels != 255).sum())
    assert got.endswith(f", in {len(without_softmax)} of {valid_pixels} valid pixels")
    if "read by" in got:
        value, index = got.split(", read by")[0].split(" at ")
        assert str(float(scores[tuple(map(int, index.strip("()").split(", ")))])) == value


def test_inputs_are_checked_as_the_loss_checks_them():
    scores, labels = torch.zeros(2, 3, 4, 5), torch.zeros(2, 16, 20, dtype=U8)
    assert error_of(scores, labels, "bilinear") == (
        "upsampling: expected Bilinear(...) or Deconvolution(...), got 'bilinear'."
    )
    assert error_of(scores, labels, Deconvolution(2)) == (
        "labels: expected at most 10 rows and 12 columns, what upsampling leaves, got 16 and 20."
    )
    assert error_of(scores[0], labels, Bilinear()) == (
        "logits: expected [N, C, h, w] with h and w of at least 1, to be upsampled, "
        "got shape (3, 4, 5)."
    )
    assert error_of(scores, labels[:1], Bilinear()) == (
        "labels: expected shape (2, 16, 20) to match logits (2, 3, 4, 5), got shape (1, 16, 20)."
    )
    seg_loss.require_finite(scores[:0], labels[:0], upsampling=Bilinear())
    seg_loss.require_finite(scores, labels[:, :0], upsampling=Bilinear())
