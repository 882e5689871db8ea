"""The metrics: computed by hand, by the rules for absent classes, and on real label maps."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import seg_loss
from seg_loss import InvalidInput
from seg_loss.constants import ABSENT
from seg_loss.metrics import confusion_matrix, fcn_metrics
from tests.support.cases import ALL_LABEL_DTYPES

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the real label maps are missing: no {DATA}"
)
# Class 0: 3 correct, 1 predicted as class 1, 1 as class 3. Class 1: 2 correct, 2 predicted as class
# 0. Class 2 occurs nowhere. Class 3 is only predicted.
BY_HAND = torch.tensor([[3, 1, 0, 1], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_rows_of_the_confusion_are_the_truth():
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 255])
    prediction = torch.tensor([0, 0, 0, 1, 3, 0, 0, 1, 1, 2])
    got = confusion_matrix(prediction, labels, 4)
    assert got.dtype == torch.int64
    assert torch.equal(got, BY_HAND)


def test_metrics_equal_those_computed_by_hand():
    metrics = fcn_metrics(BY_HAND)
    assert metrics.pixel_accuracy == 5 / 9
    assert metrics.mean_accuracy == pytest.approx((3 / 5 + 2 / 4) / 2, rel=1e-15)
    assert metrics.iu == (3 / 7, 2 / 5, None, 0.0)
    assert metrics.accuracy == (3 / 5, 2 / 4, None, None)
    assert metrics.mean_iu == pytest.approx((3 / 7 + 2 / 5 + 0) / 3, rel=1e-15)
    assert metrics.frequency_weighted_iu == pytest.approx((5 * 3 / 7 + 4 * 2 / 5) / 9, rel=1e-15)
    assert metrics.num_classes_averaged == 3
    assert metrics.absent == "skip"


@pytest.mark.parametrize(
    ("absent", "mean_iu", "averaged"),
    [
        ("skip", (3 / 7 + 2 / 5 + 0) / 3, 3),
        ("gt_only", (3 / 7 + 2 / 5) / 2, 2),
        ("zero", (3 / 7 + 2 / 5 + 0 + 0) / 4, 4),
        ("one", (3 / 7 + 2 / 5 + 1 + 0) / 4, 4),
    ],
)
def test_absent_classes_are_skipped_or_counted(absent, mean_iu, averaged):
    metrics = fcn_metrics(BY_HAND, absent=absent)
    assert metrics.mean_iu == pytest.approx(mean_iu, rel=1e-15)
    assert metrics.num_classes_averaged == averaged
    assert metrics.absent == absent
    assert metrics.iu == fcn_metrics(BY_HAND).iu
    assert metrics.pixel_accuracy == 5 / 9


def one_hot_inputs(prediction, labels, num_classes):
    logits = torch.nn.functional.one_hot(torch.tensor([prediction]), num_classes).movedim(-1, 1)
    return logits.float(), torch.tensor([labels])


def test_an_ignored_class_is_in_no_row_and_in_no_mean():
    logits, labels = one_hot_inputs([0, 1, 2, 0], [0, 1, 2, 1], 3)
    evaluation = seg_loss.evaluate(logits, labels, ignore_index=0)
    assert evaluation.confusion.tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 1]]
    # The pixel of class 1 that is predicted as class 0 is a miss of class 1.
    assert evaluation.metrics.iu == (None, 1 / 2, 1)
    assert evaluation.metrics.accuracy == (None, 1 / 2, 1)
    assert evaluation.metrics.mean_iu == evaluation.metrics.mean_accuracy == 0.75
    assert evaluation.metrics.pixel_accuracy == 2 / 3
    assert evaluation.metrics.frequency_weighted_iu == (2 * 1 / 2 + 1) / 3
    assert evaluation.metrics.num_classes_averaged == 2


def test_class_255_is_ignored_by_default_if_it_has_no_pixels():
    truth = torch.tensor([0, 0, 1, 255])
    prediction = torch.tensor([0, 255, 1, 1])
    metrics = fcn_metrics(confusion_matrix(prediction, truth, 300))
    assert metrics.iu[255] is None
    assert metrics.mean_iu == pytest.approx((1 / 2 + 1) / 2)
    with_class = fcn_metrics(confusion_matrix(prediction, truth, 300, ignore_index=-1))
    assert with_class.iu[255] == 0
    assert with_class.mean_iu == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)


@pytest.mark.parametrize("absent", ABSENT)
@pytest.mark.parametrize(
    "ignored", [(), (0,), (2, 3), (0, 2, -1, 255), (1, 1, 4), (3, 300)], ids=str
)
def test_ignored_classes_count_as_their_definition_says(ignored, absent):
    # Class 3 is in neither truth nor prediction, class 4 is only predicted.
    torch.manual_seed(0)
    prediction = torch.tensor([0, 1, 2, 4])[torch.randint(0, 4, (60,))].tolist()
    truth = torch.tensor([0, 1, 2, 255, -1])[torch.randint(0, 5, (60,))].tolist()
    ignore_index = (*ignored, 255, -1)
    pairs = [(y, p) for y, p in zip(truth, prediction, strict=True) if y not in ignore_index]
    counted = [c for c in range(5) if c not in ignored]
    iu = {}
    for c in counted:
        right = sum(y == p == c for y, p in pairs)
        union = sum(c in pair for pair in pairs)
        iu[c] = right / union if union else {"zero": 0.0, "one": 1.0}.get(absent)
        if absent == "gt_only" and not any(y == c for y, _ in pairs):
            iu[c] = None
    averaged = [value for value in iu.values() if value is not None]

    logits, labels = one_hot_inputs(prediction, truth, 5)
    confusion = seg_loss.evaluate(logits, labels, ignore_index=ignore_index).confusion
    of_maps = torch.tensor([prediction]), labels, 5
    assert torch.equal(confusion, confusion_matrix(*of_maps, ignore_index=ignore_index))
    # The rows of a matrix that counts the ignored classes are ignored as well.
    full = confusion_matrix(*of_maps, ignore_index=(255, -1))
    for matrix in (confusion, full):
        got = fcn_metrics(matrix, absent=absent, ignore_index=ignore_index)
        assert got.mean_iu == pytest.approx(sum(averaged) / len(averaged), rel=1e-15)
        assert got.num_classes_averaged == len(averaged)
        assert all(got.iu[c] is None and got.accuracy[c] is None for c in ignored if 0 <= c < 5)
        assert got.pixel_accuracy == sum(y == p for y, p in pairs) / len(pairs)
    assert int(full.sum()) == 60 - sum(y in (255, -1) for y in truth)


def test_without_pixels_there_are_no_metrics():
    metrics = fcn_metrics(torch.zeros(2, 2, dtype=torch.int64))
    assert metrics.pixel_accuracy is None
    assert metrics.mean_accuracy is None
    assert metrics.mean_iu is None
    assert metrics.frequency_weighted_iu is None
    assert metrics.iu == (None, None)
    assert metrics.num_classes_averaged == 0


def test_a_perfect_prediction_scores_one():
    metrics = fcn_metrics(torch.diag(torch.tensor([5, 7, 9])))
    assert metrics.pixel_accuracy == metrics.mean_accuracy == metrics.mean_iu == 1
    assert metrics.frequency_weighted_iu == 1


def test_counts_beyond_float32_stay_exact():
    big = 2**24 + 1
    metrics = fcn_metrics(torch.tensor([[big, 1], [0, big]]))
    assert metrics.pixel_accuracy == 2 * big / (2 * big + 1)


def test_confusions_of_images_add_up_to_that_of_the_data_set():
    labels = torch.randint(0, 5, (4, 10, 10))
    prediction = torch.randint(0, 5, (4, 10, 10))
    whole = confusion_matrix(prediction, labels, 5)
    assert torch.equal(whole, sum(confusion_matrix(prediction[k], labels[k], 5) for k in range(4)))
    assert int(whole.sum()) == 400


@pytest.mark.parametrize("dtype", ALL_LABEL_DTYPES, ids=str)
def test_labels_of_any_integer_dtype_do_not_wrap(dtype):
    # uint8: 15 * 16 + 15 = 255 is the last entry; 20 * 21 would wrap.
    labels = torch.arange(21).to(dtype)
    assert torch.equal(confusion_matrix(labels, labels, 21), torch.eye(21, dtype=torch.int64))


def test_a_large_unsigned_label_is_no_negative_one():
    labels = torch.tensor([0, 2**64 - 100], dtype=torch.uint64)
    prediction = torch.zeros(2, dtype=torch.uint8)
    with pytest.raises(InvalidInput, match=r"labels: .* got 18446744073709551516 "):
        confusion_matrix(prediction, labels, 2, ignore_index=-100)
    got = confusion_matrix(prediction, labels, 2, ignore_index=2**64 - 100)
    assert got.tolist() == [[1, 0], [0, 0]]


def test_maps_of_several_blocks_have_all_pixels_counted(monkeypatch):
    monkeypatch.setattr("seg_loss.metrics._BLOCK_PIXELS", 100)
    random = torch.Generator().manual_seed(0)
    labels, prediction = torch.randint(0, 5, (2, 3, 11, 13), generator=random)
    labels[1, 3:5] = 255
    got = confusion_matrix(prediction, labels, 5)
    for truth in range(5):
        for predicted in range(5):
            expected = ((labels == truth) & (prediction == predicted)).sum()
            assert got[truth, predicted] == expected
    prediction[2, 10, 11:] = 7
    with pytest.raises(InvalidInput, match=r"got 7 at \(2, 10, 11\) and 1 more pixel"):
        confusion_matrix(prediction, labels, 5)
    empty = labels[:0]
    assert confusion_matrix(empty, empty, 5).tolist() == [[0] * 5] * 5


def test_several_labels_can_be_ignored():
    labels, prediction = torch.tensor([0, 1, 2, 255]), torch.tensor([0, 0, 9, 9])
    got = confusion_matrix(prediction, labels, 2, ignore_index=(2, 255))
    assert got.tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: confusion_matrix(torch.zeros(2), torch.zeros(2).long(), 2),
            "prediction: expected class indices, got float32.",
        ),
        (
            lambda: confusion_matrix(torch.zeros(2).long(), torch.zeros(2), 2),
            "labels: expected class indices, got float32.",
        ),
        (
            lambda: confusion_matrix(torch.zeros(3).long(), torch.zeros(2).long(), 2),
            "prediction: expected shape (2,) of the labels, got shape (3,).",
        ),
        (
            lambda: confusion_matrix(torch.tensor([0, 1]), torch.tensor([5, 5]), 2),
            "labels: expected 0...1 or 255 (ignored), got 5 at (0,) and 1 more pixel.",
        ),
        (
            lambda: confusion_matrix(torch.tensor([0, -1]), torch.tensor([0, 1]), 2),
            "prediction: expected 0...1, got -1 at (1,).",
        ),
        (
            lambda: confusion_matrix(
                torch.tensor([[9, 9], [0, 255]]), torch.tensor([[255, 1], [0, 1]]), 2
            ),
            "prediction: expected 0...1, got 9 at (0, 1) and 1 more pixel.",
        ),
        (
            lambda: confusion_matrix(torch.tensor([0, 255]), torch.tensor([0, 1]), 2),
            (
                "prediction: expected 0...1, got 255 at (1,). "
                "A prediction is not ignored at a pixel whose label is a class."
            ),
        ),
        (
            lambda: fcn_metrics(torch.zeros(2, 3)),
            "confusion: expected [C, C], got shape (2, 3).",
        ),
        (
            lambda: fcn_metrics(BY_HAND, absent="none"),
            "absent: expected one of skip, gt_only, zero, one, got 'none'.",
        ),
    ],
    ids=[
        "float prediction",
        "float labels",
        "shapes",
        "label",
        "prediction",
        "prediction at valid pixels",
        "ignored prediction",
        "confusion",
        "absent",
    ],
)
def test_wrong_calls_raise(call, message):
    with pytest.raises(InvalidInput, match="^" + re.escape(message) + "$"):
        call()


# -- real label maps ---------------------------------------------------------------------------


def image_of(path):
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image)


def voc_indices(rgb):
    """Returns classes from PASCAL VOC's colours, in which R, G and B have every third bit."""
    classes = np.arange(21)
    colours = np.zeros((21, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((classes >> (3 * bit + channel)) & 1) << (7 - bit)
    codes = {tuple(colour): number for number, colour in enumerate(colours.tolist())}
    flat = [codes[tuple(pixel)] for pixel in rgb.reshape(-1, 3).tolist()]
    return torch.tensor(flat, dtype=torch.uint8).reshape(rgb.shape[:2])


@pytest.fixture(scope="module")
def fcn_demo():
    pytest.importorskip("PIL", reason="Pillow reads the label maps")
    folder = DATA / "fcn-demo"
    return voc_indices(image_of(folder / "output.png")), torch.from_numpy(
        image_of(folder / "label.png")
    )


@needs_data
def test_fcn_demo_has_the_published_metrics(fcn_demo):
    prediction, labels = fcn_demo
    confusion = confusion_matrix(prediction, labels, 21)
    metrics = fcn_metrics(confusion)
    assert int(confusion.sum()) == 149715
    assert int((labels == 255).sum()) == 17285
    assert metrics.pixel_accuracy == pytest.approx(0.8425141101426042, rel=1e-15)
    assert metrics.mean_accuracy == pytest.approx(0.8454627806113827, rel=1e-15)
    assert metrics.mean_iu == pytest.approx(0.7196156777147081, rel=1e-15)
    assert metrics.frequency_weighted_iu == pytest.approx(0.7273739799737002, rel=1e-15)
    present = (0, 2, 15)
    assert [metrics.iu[c] for c in present] == pytest.approx(
        [0.7772942512797062, 0.6620824689401179, 0.7194703129243007], rel=1e-15
    )
    assert [c for c in range(21) if metrics.iu[c] is not None] == [0, 2, 15]
    assert metrics.num_classes_averaged == 3
    assert confusion.sum(dim=1)[list(present)].tolist() == [54389, 34183, 61143]
    assert confusion.sum(dim=0)[list(present)].tolist() == [66092, 37122, 46501]


@needs_data
def test_fcn_demo_has_the_published_losses(fcn_demo):
    prediction, labels = fcn_demo
    logits = torch.zeros(1, 21, *labels.shape).scatter_(1, prediction[None, None].long(), 4.0)
    for normalization, loss in (
        ("valid", 0.9420592678484891),
        ("none", 141040.40328593654),
        ("full", 0.8445533130894404),
    ):
        evaluation = seg_loss.evaluate(logits, labels[None], normalization=normalization)
        # There are only two different terms, and float32 rounds each in one direction.
        assert evaluation.loss == pytest.approx(loss, rel=3e-7)
        wide = seg_loss.evaluate(logits.double(), labels[None], normalization=normalization)
        assert wide.loss == pytest.approx(loss, rel=1e-13)
        assert evaluation.metrics.mean_iu == pytest.approx(0.7196156777147081, rel=1e-15)
        one = seg_loss.spatial_cross_entropy(logits, labels[None], normalization=normalization)
        assert float(one) == pytest.approx(loss, rel=3e-7)
    assert evaluation.uniform_loss == pytest.approx(3.044522437723423, rel=1e-15)
    assert torch.equal(
        seg_loss.evaluate(logits, labels[None], maps=("prediction",)).maps["prediction"][0],
        prediction,
    )


@needs_data
def test_ade_sample_has_the_published_metrics():
    pytest.importorskip("PIL", reason="Pillow reads the label maps")
    folder = DATA / "ade-sample"
    truths = sorted((folder / "annotations").glob("*.png"))
    assert len(truths) == 3
    confusion, ignored = torch.zeros(150, 150, dtype=torch.int64), []
    for path in truths:
        # 0 is ignored and 1...150 are classes. Minus one in uint8, 0 becomes 255.
        labels = torch.from_numpy(image_of(path)) - 1
        predicted = torch.from_numpy(image_of(folder / "predictions" / path.name)) - 1
        ignored.append(int((labels == 255).sum()))
        confusion += confusion_matrix(predicted, labels, 150)
    assert sorted(ignored) == sorted([3613, 17280, 2031])
    assert int(confusion.sum()) == 628772
    zero, skip = fcn_metrics(confusion, absent="zero"), fcn_metrics(confusion)
    assert zero.mean_iu == pytest.approx(0.1, rel=1e-15)
    assert zero.num_classes_averaged == 150
    assert (skip.mean_iu, skip.num_classes_averaged, skip.pixel_accuracy) == (1.0, 15, 1.0)
