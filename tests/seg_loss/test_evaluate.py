"""`evaluate` against plain torch in float64: every figure and every map."""

# ruff: noqa: E501 - messages stay in one piece, to be found by a search

import math

import pytest
import torch
from cases import (
    CASES,
    FLOATS,
    LAYOUTS,
    NORMALIZATIONS,
    OPTIONS,
    make_labels,
    make_logits,
    make_options,
    same_bits,
    with_void,
)

import seg_loss
from seg_loss.evaluation import MAPS
from seg_loss.metrics import confusion_matrix, fcn_metrics

SHAPE = (2, 7, 97, 101)


def by_torch(logits, labels, temperature=1.0):
    """Softmax, nll, prediction and validity of every pixel, in float64, pixels flat."""
    columns = (logits.double() / temperature).movedim(1, -1).reshape(-1, logits.shape[1])
    y = labels.reshape(-1).long()
    valid = y != 255
    log_p = columns.log_softmax(dim=1)
    nll = -log_p.gather(1, torch.where(valid, y, 0)[:, None])[:, 0]
    return log_p, torch.where(valid, nll, 0), columns.argmax(dim=1), valid, y


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_loss_is_that_of_spatial_cross_entropy(case, dtype, layout):
    logits, labels = LAYOUTS[layout](make_logits(case.shape, dtype)), make_labels(case.shape)
    got = seg_loss.evaluate(logits, labels)
    loss = seg_loss.spatial_cross_entropy(logits, labels)
    assert float(torch.tensor(got.loss).to(loss.dtype)) == pytest.approx(float(loss), rel=1e-7)
    assert got.valid_pixels == int((labels != 255).sum())
    assert got.valid_pixels + got.ignored_pixels == labels.numel()
    assert got.uniform_loss == math.log(case.shape[1])
    assert got.non_finite_pixels == 0


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("option", OPTIONS)
def test_options_mean_the_same_as_in_the_loss(option, normalization):
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)
    options = {**with_void(make_options(option, SHAPE), labels), "normalization": normalization}
    got = seg_loss.evaluate(logits, labels, **options)
    assert got.loss == pytest.approx(
        float(seg_loss.spatial_cross_entropy(logits, labels, **options)), rel=1e-7
    )
    assert got.normalization == normalization
    total = seg_loss.evaluate(logits, labels, **{**options, "normalization": "none"}).loss
    assert got.loss * got.divisor == pytest.approx(total, rel=1e-12)
    for k in range(2):
        alone = dict(options)
        if "pixel_weight" in options:
            alone["pixel_weight"] = options["pixel_weight"][k : k + 1]
        one = seg_loss.evaluate(logits[k : k + 1], labels[k : k + 1], **alone)
        assert (got.per_image[k].loss, got.per_image[k].valid_pixels) == (
            one.loss,
            one.valid_pixels,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_losses_per_class_are_unweighted_means_by_truth(dtype):
    logits, labels = make_logits(SHAPE, dtype), make_labels(SHAPE)
    labels[labels == 4] = 255  # a class without pixels
    _, nll, _, _, y = by_torch(logits, labels)
    for options in ({}, {"class_weight": torch.rand(7), "label_smoothing": 0.2}):
        got = seg_loss.evaluate(logits, labels, **options).per_class
        assert len(got) == 7
        for c in range(7):
            assert got[c].pixels == int((y == c).sum())
            if c == 4:
                assert got[c].mean_nll is None
            else:
                assert got[c].mean_nll == pytest.approx(float(nll[y == c].mean()), rel=1e-6)


@pytest.mark.parametrize("shape", [SHAPE, (3, 150, 17, 31), (5, 10), (2, 3, 5, 6, 7)], ids=str)
def test_confusion_and_metrics_are_those_of_the_prediction(shape):
    logits, labels = make_logits(shape), make_labels(shape)
    got = seg_loss.evaluate(logits, labels, maps=("prediction",))
    confusion = confusion_matrix(logits.argmax(dim=1), labels, shape[1])
    assert got.confusion.dtype == torch.int64
    assert torch.equal(got.confusion, confusion)
    assert got.metrics == fcn_metrics(confusion)
    assert torch.equal(got.maps["prediction"].long(), logits.argmax(dim=1))


@pytest.mark.parametrize(
    ("num_classes", "dtype"),
    [(1, torch.uint8), (256, torch.uint8), (257, torch.int16), (1000, torch.int16)],
)
def test_maps_of_classes_take_the_smallest_integers_that_hold_them(num_classes, dtype):
    logits = torch.zeros(1, num_classes, 1, 3)
    logits[0, num_classes - 1, 0, 1] = 5.0
    got = seg_loss.evaluate(
        logits, torch.zeros(1, 1, 3, dtype=torch.uint8), maps=("prediction", "top_classes")
    ).maps
    assert got["prediction"].dtype == got["top_classes"].dtype == dtype
    assert got["prediction"].flatten().tolist() == [0, num_classes - 1, 0]
    assert got["top_classes"][0, 0].flatten().tolist() == [0, num_classes - 1, 0]


@pytest.mark.parametrize("y", [0, 1, 2, 3, 255])
def test_the_first_of_equals_wins_whatever_the_label(y):
    labels = torch.tensor([[[y]]], dtype=torch.uint8)
    for values, prediction, top in (
        ([1.0, 1.0, 1.0, 1.0], 0, [0, 1, 2]),
        ([0.0, 2.0, 1.0, 2.0], 1, [1, 3, 2]),
        ([0.0, 0.0, 2.0, 2.0], 2, [2, 3, 0]),
        ([-math.inf, -1.0, -math.inf, -1.0], 1, [1, 3, 0]),
    ):
        logits = torch.tensor(values)[None, :, None, None]
        got = seg_loss.evaluate(logits, labels, maps=("prediction", "top_classes")).maps
        assert int(got["prediction"]) == prediction
        assert got["top_classes"].flatten().tolist() == top


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_maps_are_torchs_in_float64(case, dtype, temperature):
    logits, labels = make_logits(case.shape, dtype), make_labels(case.shape)
    got = seg_loss.evaluate(logits, labels, temperature=temperature, maps=MAPS).maps
    log_p, nll, prediction, _, _ = by_torch(logits, labels, temperature)
    p = log_p.exp()
    depth = min(3, case.shape[1])
    top, _ = p.topk(depth, dim=1)
    truth = {
        "nll": nll,
        "confidence": p.amax(dim=1),
        "entropy": -(p * log_p).sum(dim=1),
    }
    scale = max(1.0, float(logits.double().abs().max()) / temperature)
    tolerance = 16 * torch.finfo(torch.float32).eps * scale
    assert list(got) == list(MAPS)
    for name, flat in truth.items():
        assert got[name].dtype == torch.float32
        assert got[name].shape == labels.shape
        assert float((got[name].reshape(-1) - flat).abs().max()) <= tolerance, name
    assert torch.equal(got["prediction"].reshape(-1).long(), prediction)
    assert got["top_classes"].shape == got["top_probabilities"].shape
    assert got["top_classes"].shape == (case.shape[0], depth, *case.shape[2:])
    top_p = got["top_probabilities"].movedim(1, -1).reshape(-1, depth)
    top_c = got["top_classes"].movedim(1, -1).reshape(-1, depth).long()
    assert float((top_p - top).abs().max()) <= tolerance
    assert float((p.gather(1, top_c) - top).abs().max()) <= tolerance
    assert torch.equal(got["top_classes"][:, 0], got["prediction"])


def test_maps_cover_ignored_pixels_too_but_nll_is_zero_there():
    logits = make_logits(SHAPE)
    labels = make_labels(SHAPE)
    half = seg_loss.evaluate(logits, labels, maps=MAPS).maps
    none = seg_loss.evaluate(logits, torch.full_like(labels, 255), maps=MAPS).maps
    for name in MAPS:
        if name == "nll":
            assert not none["nll"].any()
            assert not half["nll"][labels == 255].any()
        elif name in ("prediction", "top_classes"):
            assert torch.equal(half[name], none[name])
        else:
            assert torch.allclose(half[name], none[name], rtol=1e-6, atol=1e-6)


def test_each_map_is_the_same_alone_and_among_others():
    logits, labels = make_logits(SHAPE), make_labels(SHAPE)
    everything = seg_loss.evaluate(logits, labels, maps=MAPS)
    assert seg_loss.evaluate(logits, labels).maps == {}
    assert seg_loss.evaluate(logits, labels).loss == everything.loss
    for name in MAPS:
        alone = seg_loss.evaluate(logits, labels, maps=(name,))
        assert list(alone.maps) == [name]
        assert same_bits(alone.maps[name], everything.maps[name])
        assert alone.loss == everything.loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_calibration_bins_and_expected_error(dtype):
    logits, labels = make_logits(SHAPE, dtype), make_labels(SHAPE)
    log_p, _, prediction, valid, y = by_torch(logits, labels)
    confidence = log_p.exp().amax(dim=1)[valid]
    right = (prediction == y)[valid].double()
    # None lies so near to an edge that rounding could move it to the next bin.
    assert float(((confidence * 15) - (confidence * 15).round()).abs().min()) > 1e-6
    place = (confidence * 15).ceil().long() - 1
    got = seg_loss.evaluate(logits, labels).calibration
    assert len(got.bins) == 15
    ece = 0.0
    for k, found in enumerate(got.bins):
        inside = place == k
        assert (found.lower, found.upper) == (k / 15, (k + 1) / 15)
        assert found.pixels == int(inside.sum())
        if found.pixels:
            assert found.accuracy == pytest.approx(float(right[inside].mean()), rel=1e-12)
            assert found.confidence == pytest.approx(float(confidence[inside].mean()), rel=1e-6)
            gap = abs(float(right[inside].mean() - confidence[inside].mean()))
            ece += found.pixels / len(y[valid]) * gap
        else:
            assert found.accuracy is None
            assert found.confidence is None
    assert got.ece == pytest.approx(ece, rel=1e-5)
    assert sum(found.pixels for found in got.bins) == int(valid.sum())


def test_full_confidence_lies_in_the_last_bin():
    logits = torch.tensor([200.0, 0.0])[None, :, None, None]
    calibration = seg_loss.evaluate(logits, torch.zeros(1, 1, 1, dtype=torch.uint8)).calibration
    assert calibration.bins[14].pixels == 1
    assert calibration.bins[14].confidence == 1
    assert calibration.ece == 0


def test_without_valid_pixels_there_is_no_calibration():
    calibration = seg_loss.evaluate(
        torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1), 255, dtype=torch.uint8)
    ).calibration
    assert calibration.ece is None
    assert all(found.pixels == 0 for found in calibration.bins)


# -- diagnosis ---------------------------------------------------------------------------------


def diagnosed(logits, label=0):
    labels = torch.full((1, *logits.shape[2:]), label, dtype=torch.uint8)
    return seg_loss.evaluate(logits, labels).diagnosis


def row(*values):
    return torch.tensor(values)[None, :, None, None]


@pytest.mark.parametrize(
    ("logits", "label", "state", "advice"),
    [
        (row(0.0, 0.0), 255, "nothing_valid",
         "Every pixel is ignored, so there is nothing to learn from: check ignore_index and the labels."),
        (row(math.nan, 0.0), 0, "non_finite",
         ("The logits of 1 valid pixels hold NaN or infinity: the training has diverged; lower the "
         "learning rate, and look for the first step with such a loss.")),
        (row(math.inf, 0.0), 0, "non_finite", None),
        (row(3.0), 0, "single_class",
         ("A softmax over one class is always 1 and its loss always 0: give the background a class of "
         "its own, or use a sigmoid.")),
        (row(0.0, 110.0), 0, "saturated",
         ("1 of 1 valid pixels give their true class a probability of 0 in float32: the logits have "
         "grown too large, or the labels are shifted; lower the learning rate and compare a label map "
         "with its prediction.")),
        (row(0.0, 100.0), 0, "worse_than_chance",
         ("The mean loss of a pixel, 100, is above ln C = 0.6931, the loss of a uniform prediction: the "
         "network is confidently wrong; check the order of the classes.")),
        (row(0.0, 0.0), 0, "at_chance",
         ("The mean loss of a pixel, 0.6931, is that of a uniform prediction, ln C = 0.6931: normal before "
         "the first steps; later, raise the learning rate and check that the scores reach the loss.")),
        (row(2.0, 0.0), 0, "learning",
         ("The mean loss of a pixel, 0.1269, is below ln C = 0.6931, the loss of a uniform prediction: the "
         "network tells the classes apart.")),
        (row(-math.inf, 0.0), 0, "saturated", None),
    ],
)  # fmt: skip
def test_the_diagnosis_names_the_state_and_gives_advice(logits, label, state, advice):
    got = diagnosed(logits, label)
    assert got.state == state
    if advice is not None:
        assert got.advice == advice


def test_chance_reaches_two_percent_to_either_side():
    # ln(1 + e^-d) against ln 2 for two classes.
    for share, state in ((0.975, "learning"), (0.985, "at_chance"), (1.015, "at_chance"),
                         (1.025, "worse_than_chance")):  # fmt: skip
        d = -math.log(math.expm1(share * math.log(2)))
        assert diagnosed(row(d, 0.0)).state == state


def test_nan_at_ignored_pixels_is_no_divergence():
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0] = torch.tensor([[5.0, math.nan]])
    got = seg_loss.evaluate(logits, torch.tensor([[[0, 255]]], dtype=torch.uint8), maps=MAPS)
    assert got.diagnosis.state == "learning"
    assert got.non_finite_pixels == 0
    assert got.maps["nll"][0, 0, 1] == 0


def test_the_diagnosis_looks_at_the_unweighted_loss():
    logits, labels = row(2.0, 0.0), torch.zeros(1, 1, 1, dtype=torch.uint8)
    got = seg_loss.evaluate(logits, labels, torch.tensor([100.0, 1.0]))
    assert got.loss > 10
    assert got.diagnosis.state == "learning"


def test_logits_that_require_a_gradient_are_no_trouble():
    logits, labels = make_logits(SHAPE).requires_grad_(), make_labels(SHAPE)
    got = seg_loss.evaluate(logits, labels, maps=MAPS)
    assert not any(found.requires_grad for found in got.maps.values())
