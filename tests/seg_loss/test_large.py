"""Tensors of more than 2^31 elements, whose offsets need 64 bits. SEG_LOSS_LARGE=1 runs these."""

import math

import pytest
import torch

import seg_loss

pytestmark = pytest.mark.large

PIXELS = (1 << 30) + 67


@pytest.fixture(autouse=True)
def unpoisoned():
    # Filling gigabytes with NaN would double the time.
    torch.utils.deterministic.fill_uninitialized_memory = False


def labels_with_marks():
    labels = torch.zeros(1, 1, PIXELS, dtype=torch.uint8)
    labels[..., -5:] = 1
    labels[..., -7] = 255
    return labels


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_than_two_to_the_31_elements_are_read_and_written(layout):
    # Two classes with logits 0 and 1: ln(1 + e) where the label is 0, ln(1 + 1/e) where it is 1.
    if layout == "contiguous":
        logits = torch.zeros(1, 2, 1, PIXELS, dtype=torch.float16)
    else:
        logits = torch.zeros(1, 1, PIXELS, 2, dtype=torch.float16).movedim(-1, 1)
    logits[:, 1] = 1
    labels = labels_with_marks()
    assert logits.numel() > 1 << 31
    zeros, ones = PIXELS - 6, 5
    truth = (zeros * math.log1p(math.e) + ones * math.log1p(1 / math.e)) / (zeros + ones)

    evaluation = seg_loss.evaluate(logits, labels, maps=("prediction",))
    assert evaluation.loss == pytest.approx(truth, rel=1e-7)
    assert evaluation.confusion.tolist() == [[0, zeros], [0, ones]]
    assert evaluation.ignored_pixels == 1
    assert bool((evaluation.maps["prediction"] == 1).all())
    del evaluation

    loss, gradient = seg_loss.loss_and_gradient(logits, labels, normalization="none", out=logits)
    assert float(loss) == pytest.approx(truth * (zeros + ones), rel=1e-7)
    p = float(torch.tensor(math.e / (1 + math.e)).half())
    q = float(torch.tensor(1 / (1 + math.e)).half())
    marks = {0: [-p, p], -8: [-p, p], -7: [0, 0], -6: [-p, p], -5: [q, -q], -1: [q, -q]}
    for pixel, expected in marks.items():
        assert gradient[0, :, 0, pixel].tolist() == expected
    assert int((gradient[0, 0] == -p).sum()) == zeros
    assert int((gradient[0, 1] == p).sum()) == zeros


def test_an_invalid_label_after_two_to_the_31_pixels_is_found():
    pixels = (1 << 31) + 3
    logits = torch.zeros(1, 3, 1, 1, dtype=torch.float16).expand(1, 3, 1, pixels)
    labels = torch.zeros(1, 1, pixels, dtype=torch.uint8)
    labels[0, 0, -1] = 3
    with pytest.raises(seg_loss.InvalidInput, match=rf"got 3 at \(0, 0, {pixels - 1}\)\."):
        seg_loss.spatial_cross_entropy(logits, labels)
    labels[0, 0, -1] = 2
    loss = seg_loss.spatial_cross_entropy(logits, labels)
    assert float(loss) == pytest.approx(math.log(3), rel=1e-7)
