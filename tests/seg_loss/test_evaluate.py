"""`evaluate` against plain torch in float64: every number and every map."""

# ruff: noqa: E501 - messages stay in one piece, so that a search finds them

import math

import pytest
import torch

import seg_loss
from seg_loss import Bilinear, Deconvolution
from seg_loss.constants import MAPS
from seg_loss.metrics import confusion_matrix, fcn_metrics
from tests.support.cases import (
    ALIGNED,
    CASES,
    FLOATS,
    LAYOUTS,
    NORMALIZATIONS,
    OPTIONS,
    UPSAMPLED_CASES,
    Case,
    evaluation_of,
    is_valid,
    loss_of,
    make_inputs,
    make_labels,
    make_logits,
    make_options,
    one_thread,
    same_bits,
    true_logits,
    with_void,
)

PLAIN = Case((2, 7, 97, 101), "several chunks")
UPSAMPLINGS = {
    "bilinear": Case((2, 7, 9, 11), "up", (61, 83), Bilinear()),
    "aligned": Case((2, 7, 9, 11), "up", (61, 83), ALIGNED),
    "deconvolution": Case((2, 7, 9, 11), "cropped", (61, 83), Deconvolution(8, crop=(10, 5))),
    "odd kernel": Case((2, 7, 9, 11), "odd kernel", (61, 83), Deconvolution(9, 15, (20, 7))),
    "gaps": Case((2, 7, 9, 11), "gaps between filters", (61, 83), Deconvolution(10, 7)),
}
EACH_UPSAMPLING = pytest.mark.parametrize("case", UPSAMPLINGS.values(), ids=UPSAMPLINGS)
EACH_CASE = pytest.mark.parametrize(
    "case", [PLAIN, *UPSAMPLINGS.values()], ids=["plain", *UPSAMPLINGS]
)
CLASS_MAPS = ("prediction", "top_classes")
U8 = torch.uint8


@one_thread()
def true_softmax(scores, labels, upsampling, temperature=1.0):
    """Returns log-softmax and softmax of the logits, float64 [N, C, *spatial]."""
    log_p = (true_logits(scores, labels, upsampling) / temperature).log_softmax(dim=1)
    return log_p, log_p.exp()


def true_nll(log_p, labels):
    """Returns the nll of each pixel, float64 like the labels, 0 where ignored."""
    valid = is_valid(labels)
    nll = -log_p.gather(1, torch.where(valid, labels.long(), 0)[:, None])[:, 0]
    return torch.where(valid, nll, 0.0)


# -- the loss ----------------------------------------------------------------------------------


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
@pytest.mark.parametrize("case", [PLAIN, UPSAMPLINGS["bilinear"]], ids=["plain", "bilinear"])
def test_options_mean_the_same_as_in_the_loss(case, option, normalization):
    scores, labels, upsampling = make_inputs(case)
    labels[1, :40] = 255
    options = with_void(make_options(option, case.full_shape), labels)
    options["normalization"] = normalization
    got = evaluation_of(scores, labels, upsampling, **options)
    loss = loss_of(scores, labels, upsampling, **options)
    assert got.loss == pytest.approx(float(loss), rel=1e-7)
    assert got.normalization == normalization
    options_of_sum = {**options, "normalization": "none"}
    total = evaluation_of(scores, labels, upsampling, **options_of_sum).loss
    assert got.loss * got.divisor == pytest.approx(total, rel=1e-12)
    for k in range(2):
        alone = dict(options)
        if "pixel_weight" in options:
            alone["pixel_weight"] = options["pixel_weight"][k : k + 1]
        image = evaluation_of(scores[k : k + 1], labels[k : k + 1], upsampling, **alone)
        assert got.per_image[k].loss == image.loss
        assert got.per_image[k].valid_pixels == image.valid_pixels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [PLAIN, UPSAMPLINGS["bilinear"]], ids=["plain", "bilinear"])
def test_losses_per_class_are_unweighted_means(case, dtype):
    scores, labels, upsampling = make_inputs(case, dtype)
    labels[labels == 4] = 255  # a class without pixels
    log_p, _ = true_softmax(scores, labels, upsampling)
    nll = true_nll(log_p, labels)
    for options in ({}, {"class_weight": torch.rand(7), "label_smoothing": 0.2}):
        got = evaluation_of(scores, labels, upsampling, **options).per_class
        assert len(got) == 7
        for c in range(7):
            assert got[c].pixels == int((labels == c).sum())
            if c == 4:
                assert got[c].mean_nll is None
            else:
                assert got[c].mean_nll == pytest.approx(float(nll[labels == c].mean()), rel=1e-6)


# -- the confusion and the classes -------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [PLAIN.shape, (3, 150, 17, 31), (5, 10), (2, 3, 5, 6, 7)], ids=str
)
def test_confusion_and_metrics_are_those_of_the_prediction(shape):
    logits, labels = make_logits(shape), make_labels(shape)
    got = seg_loss.evaluate(logits, labels, maps=("prediction",))
    confusion = confusion_matrix(logits.argmax(dim=1), labels, shape[1])
    assert got.confusion.dtype == torch.int64
    assert torch.equal(got.confusion, confusion)
    assert got.metrics == fcn_metrics(confusion)
    assert torch.equal(got.maps["prediction"].long(), logits.argmax(dim=1))


@pytest.mark.parametrize(
    ("num_classes", "dtype"), [(1, U8), (256, U8), (257, torch.int16), (1000, torch.int16)]
)
def test_maps_of_classes_have_the_smallest_dtype_that_holds_them(num_classes, dtype):
    last = num_classes - 1
    logits = torch.zeros(1, num_classes, 1, 3)
    logits[0, last, 0, 1] = 5.0
    got = seg_loss.evaluate(logits, torch.zeros(1, 1, 3, dtype=U8), maps=CLASS_MAPS).maps
    assert got["prediction"].dtype == got["top_classes"].dtype == dtype
    assert got["prediction"].flatten().tolist() == [0, last, 0]
    assert got["top_classes"][0, 0].flatten().tolist() == [0, last, 0]
    scores = torch.zeros(1, num_classes, 1, 2)
    scores[0, last, 0, 1] = 5.0
    labels = torch.zeros(1, 2, 4, dtype=U8)
    got = seg_loss.evaluate(scores, labels, upsampling=Bilinear(), maps=CLASS_MAPS).maps
    assert got["prediction"].dtype == got["top_classes"].dtype == dtype
    assert got["prediction"].tolist() == [[[0, last, last, last]] * 2]
    assert got["top_classes"].shape == (1, min(3, num_classes), 2, 4)


@pytest.mark.parametrize("y", [0, 1, 2, 3, 255])
def test_the_first_of_equal_classes_wins_for_any_label(y):
    labels = torch.tensor([[[y]]], dtype=U8)
    for values, prediction, top in (
        ([1.0, 1.0, 1.0, 1.0], 0, [0, 1, 2]),
        ([0.0, 2.0, 1.0, 2.0], 1, [1, 3, 2]),
        ([0.0, 0.0, 2.0, 2.0], 2, [2, 3, 0]),
        ([-math.inf, -1.0, -math.inf, -1.0], 1, [1, 3, 0]),
    ):
        logits = torch.tensor(values)[None, :, None, None]
        got = seg_loss.evaluate(logits, labels, maps=CLASS_MAPS).maps
        assert int(got["prediction"]) == prediction
        assert got["top_classes"].flatten().tolist() == top


@EACH_CASE
def test_the_first_of_equal_classes_wins_at_every_pixel(case):
    scores, labels, upsampling = make_inputs(case)
    scores[:, 5] = scores[:, 2]
    scores[:, 6] = scores[:, 0]
    got = evaluation_of(scores, labels, upsampling, maps=CLASS_MAPS).maps
    assert not torch.isin(got["prediction"], torch.tensor([5, 6], dtype=U8)).any()
    top = got["top_classes"]
    for first, second in ((2, 5), (0, 6)):
        rank = (top == first).double().argmax(dim=1), (top == second).double().argmax(dim=1)
        among = (top == first).any(dim=1), (top == second).any(dim=1)
        assert not (among[1] & ~among[0]).any()
        assert (rank[0] < rank[1])[among[1]].all()


# -- the maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", [*CASES, *UPSAMPLED_CASES], ids=lambda case: case.name)
def test_maps_are_torchs_in_float64(case, dtype, temperature):
    scores, labels, upsampling = make_inputs(case, dtype)
    got = evaluation_of(scores, labels, upsampling, temperature=temperature, maps=MAPS)
    log_p, p = true_softmax(scores, labels, upsampling, temperature)
    nll, valid = true_nll(log_p, labels), is_valid(labels)
    depth = min(3, case.shape[1])
    top, true_classes = p.topk(depth, dim=1)
    truth = {
        "nll": nll,
        "confidence": p.amax(dim=1),
        "entropy": -(p * log_p).sum(dim=1),
        "top_probabilities": top,
    }
    scale = max(1.0, float(scores.double().abs().max()) / temperature)
    tolerance = 16 * torch.finfo(torch.float32).eps * scale
    assert list(got.maps) == list(MAPS)
    for name, expected in truth.items():
        assert got.maps[name].dtype == torch.float32
        assert got.maps[name].shape == expected.shape
        assert float((got.maps[name] - expected).abs().max()) <= tolerance, name
    prediction, top_classes = got.maps["prediction"], got.maps["top_classes"]
    assert prediction.shape == labels.shape
    assert top_classes.shape == (case.shape[0], depth, *labels.shape[1:])
    assert float((p.gather(1, top_classes.long()) - top).abs().max()) <= tolerance
    assert torch.equal(top_classes[:, 0], prediction)
    if upsampling is None:
        assert torch.equal(prediction.long(), scores.double().argmax(dim=1))
    elif depth > 1:  # rounding may exchange classes that are nearly equal
        clear = top[:, 0] - top[:, 1] > tolerance
        assert torch.equal(prediction.long()[clear], true_classes[:, 0][clear])
    assert torch.equal(got.confusion, confusion_matrix(prediction, labels, case.shape[1]))
    assert got.metrics == fcn_metrics(got.confusion)
    assert got.valid_pixels == int(valid.sum())
    assert got.valid_pixels + got.ignored_pixels == labels.numel()
    total = float(nll[valid].sum()) / max(int(valid.sum()), 1)
    assert got.loss == pytest.approx(total, rel=1e-6, abs=1e-7)
    assert got.uniform_loss == math.log(case.shape[1])
    assert got.non_finite_pixels == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", [PLAIN, UPSAMPLINGS["bilinear"]], ids=["plain", "bilinear"])
def test_scores_and_labels_may_have_any_strides(case, dtype, layout):
    scores, labels, upsampling = make_inputs(case, dtype)
    strided = LAYOUTS[layout](scores), LAYOUTS[layout](labels[:, None])
    got = evaluation_of(*strided, upsampling, maps=MAPS)
    expected = evaluation_of(*(x.contiguous() for x in strided), upsampling, maps=MAPS)
    assert got.loss == expected.loss
    assert torch.equal(got.confusion, expected.confusion)
    for name in MAPS:
        assert same_bits(got.maps[name], expected.maps[name])


@EACH_CASE
def test_maps_include_ignored_pixels_but_their_nll_is_zero(case):
    scores, labels, upsampling = make_inputs(case)
    got = evaluation_of(scores, labels, upsampling, maps=MAPS).maps
    all_ignored = evaluation_of(scores, torch.full_like(labels, 255), upsampling, maps=MAPS).maps
    for name in MAPS:
        if name == "nll":
            assert not all_ignored["nll"].any()
            assert not got["nll"][labels == 255].any()
        elif name in CLASS_MAPS:
            assert torch.equal(got[name], all_ignored[name])
        else:
            assert torch.allclose(got[name], all_ignored[name], rtol=1e-6, atol=1e-6)


@EACH_CASE
def test_each_map_is_the_same_alone_and_with_others(case):
    inputs = make_inputs(case)
    expected = evaluation_of(*inputs, maps=MAPS)
    without = evaluation_of(*inputs)
    assert without.maps == {}
    assert without.loss == expected.loss
    for name in MAPS:
        alone = evaluation_of(*inputs, maps=(name,))
        assert list(alone.maps) == [name]
        assert same_bits(alone.maps[name], expected.maps[name])
        assert alone.loss == expected.loss


@pytest.mark.parametrize("case", [PLAIN, UPSAMPLINGS["aligned"]], ids=["plain", "aligned"])
def test_an_image_has_the_same_maps_alone_and_in_a_batch(case):
    scores, labels, upsampling = make_inputs(case)
    batch = evaluation_of(scores, labels, upsampling, maps=MAPS).maps
    for k in range(2):
        one = slice(k, k + 1)
        image = evaluation_of(scores[one], labels[one], upsampling, maps=MAPS)
        for name in MAPS:
            assert same_bits(image.maps[name], batch[name][one])


REPEATED = {
    "plain": Case((2, 21, 150, 171), "several chunks"),
    "bilinear": Case((2, 21, 40, 30), "up", (300, 215), Bilinear()),
    "aligned": Case((2, 21, 40, 30), "up", (300, 215), ALIGNED),
    "deconvolution": Case((2, 21, 40, 30), "crop", (260, 200), Deconvolution(8, crop=(10, 5))),
    "not cropped": Case((2, 21, 40, 30), "not cropped", (260, 200), Deconvolution(8)),
    "gaps": Case((2, 21, 40, 30), "gaps between filters", (260, 200), Deconvolution(10, 7)),
}


@pytest.mark.parametrize("case", REPEATED.values(), ids=REPEATED)
def test_results_are_repeatable_for_any_number_of_threads(case):
    inputs = make_inputs(case)
    expected = evaluation_of(*inputs, maps=MAPS)
    for num_threads in (1, 1, 2, 3, 8):
        torch.set_num_threads(num_threads)
        got = evaluation_of(*inputs, maps=MAPS)
        assert got.loss == expected.loss
        assert got.per_image == expected.per_image
        assert got.per_class == expected.per_class
        assert got.calibration == expected.calibration
        assert torch.equal(got.confusion, expected.confusion)
        for name in MAPS:
            assert same_bits(got.maps[name], expected.maps[name])


@pytest.mark.parametrize("case", [PLAIN, UPSAMPLINGS["bilinear"]], ids=["plain", "bilinear"])
def test_scores_may_require_a_gradient(case):
    scores, labels, upsampling = make_inputs(case)
    got = evaluation_of(scores.requires_grad_(), labels, upsampling, maps=MAPS)
    assert not any(values.requires_grad for values in got.maps.values())


# -- upsampled scores --------------------------------------------------------------------------


def nearly_equal(got, expected, rel):
    """Compares numbers, or None with None."""
    return got == expected if expected is None else got == pytest.approx(expected, rel=rel)


def assert_equal_evaluations(got, expected, rel):
    """Compares all numbers of two evaluations; counts must be equal."""
    assert nearly_equal(got.loss, expected.loss, rel)
    for field in ("normalization", "valid_pixels", "ignored_pixels", "uniform_loss"):
        assert getattr(got, field) == getattr(expected, field)
    assert nearly_equal(got.divisor, expected.divisor, rel)
    assert got.non_finite_pixels == expected.non_finite_pixels
    for a, b in zip(got.per_image, expected.per_image, strict=True):
        assert a.valid_pixels == b.valid_pixels
        assert nearly_equal(a.loss, b.loss, rel)
    for a, b in zip(got.per_class, expected.per_class, strict=True):
        assert a.pixels == b.pixels
        assert nearly_equal(a.mean_nll, b.mean_nll, rel)
    assert torch.equal(got.confusion, expected.confusion)
    assert got.metrics == expected.metrics
    assert nearly_equal(got.calibration.ece, expected.calibration.ece, 1e-6)
    for a, b in zip(got.calibration.bins, expected.calibration.bins, strict=True):
        assert (a.lower, a.upper, a.pixels, a.accuracy) == (b.lower, b.upper, b.pixels, b.accuracy)
        assert nearly_equal(a.confidence, b.confidence, 1e-6)
    assert got.diagnosis.state == expected.diagnosis.state
    assert got.diagnosis.advice == expected.diagnosis.advice


@pytest.mark.parametrize("option", OPTIONS)
@EACH_UPSAMPLING
def test_every_number_is_that_of_the_upsampled_logits(case, option):
    scores, labels, upsampling = make_inputs(case, torch.float64)
    options = make_options(option, case.full_shape)
    got = evaluation_of(scores, labels, upsampling, **options, maps=MAPS)
    logits = true_logits(scores, labels, upsampling)
    expected = seg_loss.evaluate(logits, labels, **options, maps=MAPS)
    assert_equal_evaluations(got, expected, 1e-12)
    assert list(got.maps) == list(MAPS)
    for name in MAPS:
        assert got.maps[name].dtype == expected.maps[name].dtype
        assert got.maps[name].shape == expected.maps[name].shape
        if name in CLASS_MAPS and case is not UPSAMPLINGS["gaps"]:
            assert torch.equal(got.maps[name], expected.maps[name])
        else:
            # Float32 values whose float64 originals differ in the last bits.
            assert torch.allclose(got.maps[name], expected.maps[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("option", ["plain", "everything"])
def test_equal_sizes_give_the_evaluation_of_the_logits(option):
    shape = (2, 7, 31, 37)
    logits, labels, options = make_logits(shape), make_labels(shape), make_options(option, shape)
    expected = seg_loss.evaluate(logits, labels, **options, maps=MAPS)
    for upsampling in (Bilinear(), ALIGNED, Deconvolution(1, 1)):
        got = seg_loss.evaluate(logits, labels, **options, upsampling=upsampling, maps=MAPS)
        assert_equal_evaluations(got, expected, 1e-6)
        for name in MAPS:
            assert torch.allclose(got.maps[name], expected.maps[name], rtol=1e-6, atol=1e-6)


def test_pixels_that_no_filter_reaches_are_uniform():
    scores, labels, upsampling = make_inputs(UPSAMPLINGS["gaps"])
    got = evaluation_of(scores, labels, upsampling, maps=MAPS).maps
    for gap in (slice(7, 10), slice(17, 20)):
        for part in (lambda x, gap=gap: x[:, gap], lambda x, gap=gap: x[:, :, gap]):
            assert not part(got["prediction"]).any()
            assert torch.allclose(part(got["confidence"]), torch.tensor(1 / 7))
            assert torch.allclose(part(got["entropy"]), torch.tensor(math.log(7)))
    assert got["top_classes"][0, :, 8, 8].tolist() == [0, 1, 2]


# -- calibration -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_calibration_bins_and_expected_error(dtype):
    logits, labels, _ = make_inputs(PLAIN, dtype)
    _, p = true_softmax(logits, labels, None)
    valid = is_valid(labels)
    confidence, prediction = p.max(dim=1)
    confidence, correct = confidence[valid], (prediction == labels)[valid].double()
    # No confidence is so close to an edge that rounding could move it to the next bin.
    assert float(((confidence * 15) - (confidence * 15).round()).abs().min()) > 1e-6
    bin_of_pixel = (confidence * 15).ceil().long() - 1
    got = seg_loss.evaluate(logits, labels).calibration
    assert len(got.bins) == 15
    ece = 0.0
    for k, bin_ in enumerate(got.bins):
        inside = bin_of_pixel == k
        assert (bin_.lower, bin_.upper) == (k / 15, (k + 1) / 15)
        assert bin_.pixels == int(inside.sum())
        if bin_.pixels:
            assert bin_.accuracy == pytest.approx(float(correct[inside].mean()), rel=1e-12)
            assert bin_.confidence == pytest.approx(float(confidence[inside].mean()), rel=1e-6)
            gap = abs(float(correct[inside].mean() - confidence[inside].mean()))
            ece += bin_.pixels / int(valid.sum()) * gap
        else:
            assert bin_.accuracy is None
            assert bin_.confidence is None
    assert got.ece == pytest.approx(ece, rel=1e-5)
    assert sum(bin_.pixels for bin_ in got.bins) == int(valid.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@EACH_UPSAMPLING
def test_calibration_counts_target_pixels(case, dtype):
    scores, labels, upsampling = make_inputs(case, dtype)
    _, p = true_softmax(scores, labels, upsampling)
    valid = is_valid(labels)
    confidence, prediction = p.max(dim=1)
    confidence, correct = confidence[valid], (prediction == labels)[valid]
    got = evaluation_of(scores, labels, upsampling).calibration
    # Confidences so close to an edge that rounding could move them to the next bin.
    at_edge = int((((confidence * 15) - (confidence * 15).round()).abs() < 2e-5).sum())
    bin_of_pixel = (confidence * 15).ceil().long().clamp(min=1) - 1
    assert sum(bin_.pixels for bin_ in got.bins) == int(valid.sum())
    for k, bin_ in enumerate(got.bins):
        inside = bin_of_pixel == k
        assert abs(bin_.pixels - int(inside.sum())) <= at_edge
        if at_edge or not bin_.pixels:
            continue
        assert bin_.accuracy == pytest.approx(float(correct[inside].double().mean()), rel=1e-12)
        assert bin_.confidence == pytest.approx(float(confidence[inside].mean()), rel=1e-6)


def test_full_confidence_is_in_the_last_bin():
    logits = torch.tensor([200.0, 0.0])[None, :, None, None]
    calibration = seg_loss.evaluate(logits, torch.zeros(1, 1, 1, dtype=U8)).calibration
    assert calibration.bins[14].pixels == 1
    assert calibration.bins[14].confidence == 1
    assert calibration.ece == 0


def test_without_valid_pixels_there_is_no_calibration_error():
    logits, labels = torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1), 255, dtype=U8)
    calibration = seg_loss.evaluate(logits, labels).calibration
    assert calibration.ece is None
    assert all(bin_.pixels == 0 for bin_ in calibration.bins)


# -- diagnosis ---------------------------------------------------------------------------------


def diagnosis_of(logits, label=0):
    labels = torch.full((1, *logits.shape[2:]), label, dtype=U8)
    return seg_loss.evaluate(logits, labels).diagnosis


def pixel(*values):
    return torch.tensor(values)[None, :, None, None]


@pytest.mark.parametrize(
    ("logits", "label", "state", "advice"),
    [
        (pixel(0.0, 0.0), 255, "nothing_valid",
         "Every pixel is ignored, so there is nothing to learn from: check ignore_index and the labels."),
        (pixel(math.nan, 0.0), 0, "non_finite",
         ("The logits of 1 of 1 valid pixels hold NaN or infinity: the training has diverged; lower "
         "the learning rate, and look for the first step with such a loss.")),
        (pixel(math.inf, 0.0), 0, "non_finite", None),
        (pixel(3.0), 0, "single_class",
         ("A softmax over one class is always 1 and its loss always 0: give the background a class of "
         "its own, or use a sigmoid.")),
        (pixel(0.0, 110.0), 0, "saturated",
         ("1 of 1 valid pixels give their true class a probability of 0 in float32: the logits have "
         "grown too large, or the labels are shifted; lower the learning rate and compare a label map "
         "with its prediction.")),
        (pixel(0.0, 100.0), 0, "worse_than_chance",
         ("The mean loss of a pixel, 100, is above ln C = 0.6931, the loss of a uniform prediction: the "
         "network is confidently wrong; check the order of the classes.")),
        (pixel(0.0, 0.0), 0, "at_chance",
         ("The mean loss of a pixel, 0.6931, is that of a uniform prediction, ln C = 0.6931: normal before "
         "the first steps; later, raise the learning rate and check that the scores reach the loss.")),
        (pixel(2.0, 0.0), 0, "learning",
         ("The mean loss of a pixel, 0.1269, is below ln C = 0.6931, the loss of a uniform prediction: the "
         "network tells the classes apart.")),
        (pixel(-math.inf, 0.0), 0, "saturated", None),
    ],
)  # fmt: skip
def test_the_diagnosis_names_the_state_and_gives_advice(logits, label, state, advice):
    got = diagnosis_of(logits, label)
    assert got.state == state
    if advice is not None:
        assert got.advice == advice


def test_at_chance_is_within_two_percent_of_ln_c():
    # ln(1 + e^-d) against ln 2 for two classes.
    for share, state in ((0.975, "learning"), (0.985, "at_chance"), (1.015, "at_chance"),
                         (1.025, "worse_than_chance")):  # fmt: skip
        d = -math.log(math.expm1(share * math.log(2)))
        assert diagnosis_of(pixel(d, 0.0)).state == state


def test_nan_at_ignored_pixels_is_not_reported():
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0] = torch.tensor([[5.0, math.nan]])
    got = seg_loss.evaluate(logits, torch.tensor([[[0, 255]]], dtype=U8), maps=MAPS)
    assert got.diagnosis.state == "learning"
    assert got.non_finite_pixels == 0
    assert got.maps["nll"][0, 0, 1] == 0


def test_the_diagnosis_uses_the_unweighted_loss():
    logits, labels = pixel(2.0, 0.0), torch.zeros(1, 1, 1, dtype=U8)
    got = seg_loss.evaluate(logits, labels, torch.tensor([100.0, 1.0]))
    assert got.loss > 10
    assert got.diagnosis.state == "learning"


def test_saturated_and_non_finite_target_pixels_are_counted():
    labels = torch.zeros(1, 8, 8, dtype=U8)
    labels[0, 0] = 255
    scores = torch.zeros(1, 2, 2, 2)
    scores[0, 1] = 110.0
    got = seg_loss.evaluate(scores, labels, upsampling=Bilinear())
    assert got.diagnosis.state == "saturated"
    assert got.diagnosis.advice.startswith("56 of 56 valid pixels give their true class")
    scores[0, 1, 0, 0] = math.nan
    got = seg_loss.evaluate(scores, labels, upsampling=Bilinear())
    assert got.diagnosis.state == "non_finite"
    assert got.non_finite_pixels == 6 * 5  # 6 rows and columns read it; the first row is ignored
    assert math.isnan(got.loss)
