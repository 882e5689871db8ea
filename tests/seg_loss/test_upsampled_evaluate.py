"""`evaluate` of upsampled scores: all that `evaluate` says of the logits that nobody stores."""

import math

import pytest
import torch
from cases import (
    FLOATS,
    LAYOUTS,
    NORMALIZATIONS,
    OPTIONS,
    UPSAMPLED_CASES,
    make_labels,
    make_logits,
    make_options,
    one_thread,
    same_bits,
)

import seg_loss
from seg_loss import Bilinear, Deconvolution, reference
from seg_loss.evaluation import MAPS
from seg_loss.metrics import confusion_matrix, fcn_metrics
from seg_loss.upsampling import axes

SHAPE, SIZE = (2, 7, 9, 11), (61, 83)
FULL = (*SHAPE[:2], *SIZE)
WAYS = {
    "bilinear": Bilinear(),
    "aligned": Bilinear(align_corners=True),
    "deconvolution": Deconvolution(8, crop=(10, 5)),
    "odd kernel": Deconvolution(9, 15, crop=(20, 7)),
    "gaps": Deconvolution(10, 7),
}
WAY = pytest.mark.parametrize("way", WAYS)
CLASS_MAPS = ("prediction", "top_classes")


def made(dtype=torch.float32):
    return make_logits(SHAPE, dtype), make_labels(FULL)


@one_thread()
def truth_of(scores, size, upsampling):
    """The upsampled logits, their log-softmax and softmax, float64."""
    logits = reference.upsample(scores, tuple(size), upsampling)
    log_p = logits.log_softmax(dim=1)
    return logits, log_p, log_p.exp()


def near(got, expected, rel):
    """Numbers, or None for both."""
    return got == expected if expected is None else got == pytest.approx(expected, rel=rel)


def check_equal(got, plain, rel):
    """All figures of two evaluations; the counts exactly."""
    assert near(got.loss, plain.loss, rel)
    for field in ("normalization", "valid_pixels", "ignored_pixels", "uniform_loss"):
        assert getattr(got, field) == getattr(plain, field)
    assert near(got.divisor, plain.divisor, rel)
    assert got.non_finite_pixels == plain.non_finite_pixels
    for a, b in zip(got.per_image, plain.per_image, strict=True):
        assert a.valid_pixels == b.valid_pixels
        assert near(a.loss, b.loss, rel)
    for a, b in zip(got.per_class, plain.per_class, strict=True):
        assert a.pixels == b.pixels
        assert near(a.mean_nll, b.mean_nll, rel)
    assert torch.equal(got.confusion, plain.confusion)
    assert got.metrics == plain.metrics
    assert near(got.calibration.ece, plain.calibration.ece, 1e-6)
    for a, b in zip(got.calibration.bins, plain.calibration.bins, strict=True):
        assert (a.lower, a.upper, a.pixels, a.accuracy) == (b.lower, b.upper, b.pixels, b.accuracy)
        assert near(a.confidence, b.confidence, 1e-6)
    assert got.diagnosis.state == plain.diagnosis.state
    assert got.diagnosis.advice == plain.diagnosis.advice


@pytest.mark.parametrize("option", OPTIONS)
@WAY
def test_every_figure_is_that_of_the_upsampled_logits(way, option):
    scores, labels = made(torch.float64)
    options = make_options(option, FULL)
    got = seg_loss.evaluate(scores, labels, **options, upsampling=WAYS[way], maps=MAPS)
    logits, _, _ = truth_of(scores, SIZE, WAYS[way])
    plain = seg_loss.evaluate(logits, labels, **options, maps=MAPS)
    check_equal(got, plain, 1e-12)
    assert list(got.maps) == list(MAPS)
    for name in MAPS:
        assert got.maps[name].dtype == plain.maps[name].dtype
        assert got.maps[name].shape == plain.maps[name].shape
        if name in CLASS_MAPS and way != "gaps":
            assert torch.equal(got.maps[name], plain.maps[name])
        else:
            # Float32 of what differs in the last bits of float64.
            assert torch.allclose(got.maps[name], plain.maps[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("option", ["plain", "everything"])
def test_options_mean_the_same_as_in_the_loss(option, normalization):
    scores, labels = made()
    labels[1, :40] = 255
    options = {**make_options(option, FULL), "normalization": normalization}
    upsampling = WAYS["bilinear"]
    got = seg_loss.evaluate(scores, labels, **options, upsampling=upsampling)
    loss = seg_loss.upsampled_cross_entropy(scores, labels, **options, upsampling=upsampling)
    assert got.loss == pytest.approx(float(loss), rel=1e-7)
    for k in range(2):
        one, alone = slice(k, k + 1), dict(options)
        if "pixel_weight" in options:
            alone["pixel_weight"] = options["pixel_weight"][one]
        image = seg_loss.evaluate(scores[one], labels[one], **alone, upsampling=upsampling)
        assert got.per_image[k].loss == image.loss
        assert got.per_image[k].valid_pixels == image.valid_pixels


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", UPSAMPLED_CASES, ids=lambda case: case.name)
def test_maps_are_as_large_as_the_labels_and_true(case, dtype):
    scores, labels = make_logits(case.shape, dtype), make_labels(case.full_shape)
    got = seg_loss.evaluate(scores, labels, upsampling=case.upsampling, maps=MAPS)
    _, log_p, p = truth_of(scores, case.size, case.upsampling)
    valid = labels != 255
    nll = -log_p.gather(1, torch.where(valid, labels.long(), 0)[:, None])[:, 0]
    depth = min(3, case.shape[1])
    top, top_classes = p.topk(depth, dim=1)
    truth = {
        "nll": torch.where(valid, nll, 0.0),
        "confidence": p.amax(dim=1),
        "entropy": -(p * log_p).sum(dim=1),
        "top_probabilities": top,
    }
    scale = max(1.0, float(scores.double().abs().max()))
    tolerance = 16 * torch.finfo(torch.float32).eps * scale
    for name, expected in truth.items():
        assert got.maps[name].dtype == torch.float32
        assert got.maps[name].shape == expected.shape
        assert float((got.maps[name] - expected).abs().max()) <= tolerance, name
    # Classes as near to each other as rounding may change places.
    prediction = got.maps["prediction"]
    assert prediction.shape == labels.shape
    found = p.gather(1, got.maps["top_classes"].long())
    assert float((found - top).abs().max()) <= tolerance
    assert torch.equal(got.maps["top_classes"][:, 0], prediction)
    if depth > 1:
        clear = top[:, 0] - top[:, 1] > tolerance
        assert torch.equal(prediction.long()[clear], top_classes[:, 0][clear])
    assert torch.equal(got.confusion, confusion_matrix(prediction, labels, case.shape[1]))
    assert got.metrics == fcn_metrics(got.confusion)
    assert got.valid_pixels == int(valid.sum())
    assert got.valid_pixels + got.ignored_pixels == labels.numel()
    total = float(nll[valid].sum()) / max(int(valid.sum()), 1)
    assert got.loss == pytest.approx(total, rel=1e-6, abs=1e-7)
    assert got.uniform_loss == math.log(case.shape[1])
    assert got.non_finite_pixels == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@WAY
def test_calibration_counts_the_labels_pixels(way, dtype):
    scores, labels = made(dtype)
    _, _, p = truth_of(scores, SIZE, WAYS[way])
    valid = labels != 255
    confidence, prediction = p.max(dim=1)
    confidence, right = confidence[valid], (prediction == labels)[valid]
    got = seg_loss.evaluate(scores, labels, upsampling=WAYS[way]).calibration
    # Those that lie so near to an edge that rounding could move them to the next bin.
    at_edge = int((((confidence * 15) - (confidence * 15).round()).abs() < 2e-5).sum())
    place = (confidence * 15).ceil().long().clamp(min=1) - 1
    assert sum(found.pixels for found in got.bins) == int(valid.sum())
    for k, found in enumerate(got.bins):
        inside = place == k
        assert abs(found.pixels - int(inside.sum())) <= at_edge
        if at_edge or not found.pixels:
            continue
        assert found.accuracy == pytest.approx(float(right[inside].double().mean()), rel=1e-12)
        assert found.confidence == pytest.approx(float(confidence[inside].mean()), rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_scores_and_labels_are_read_as_they_lie(dtype, layout):
    scores, labels = made(dtype)
    laid = LAYOUTS[layout](scores), LAYOUTS[layout](labels[:, None])
    got = seg_loss.evaluate(*laid, upsampling=WAYS["bilinear"], maps=MAPS)
    plain = seg_loss.evaluate(
        *(x.contiguous() for x in laid), upsampling=WAYS["bilinear"], maps=MAPS
    )
    assert got.loss == plain.loss
    assert torch.equal(got.confusion, plain.confusion)
    for name in MAPS:
        assert same_bits(got.maps[name], plain.maps[name])


@WAY
def test_results_are_bitwise_equal_between_runs_and_for_any_number_of_threads(way):
    scores, labels = make_logits((2, 21, 40, 30)), make_labels((2, 21, 300, 215))
    given = {"upsampling": Deconvolution(8) if way == "odd kernel" else WAYS[way], "maps": MAPS}
    if isinstance(given["upsampling"], Deconvolution):
        labels = labels[:, :260, :200]
    once = seg_loss.evaluate(scores, labels, **given)
    for num_threads in (1, 1, 2, 3, 8):
        torch.set_num_threads(num_threads)
        again = seg_loss.evaluate(scores, labels, **given)
        assert again.loss == once.loss
        assert again.per_image == once.per_image
        assert again.per_class == once.per_class
        assert again.calibration == once.calibration
        assert torch.equal(again.confusion, once.confusion)
        for name in MAPS:
            assert same_bits(again.maps[name], once.maps[name])


def test_an_image_gives_the_same_maps_alone_and_in_a_batch():
    scores, labels = made()
    whole = seg_loss.evaluate(scores, labels, upsampling=WAYS["aligned"], maps=MAPS).maps
    for k in range(2):
        one = slice(k, k + 1)
        part = seg_loss.evaluate(scores[one], labels[one], upsampling=WAYS["aligned"], maps=MAPS)
        for name in MAPS:
            assert same_bits(part.maps[name], whole[name][one])


@WAY
def test_each_map_is_the_same_alone_and_among_others(way):
    scores, labels = made()
    everything = seg_loss.evaluate(scores, labels, upsampling=WAYS[way], maps=MAPS)
    plain = seg_loss.evaluate(scores, labels, upsampling=WAYS[way])
    assert plain.maps == {}
    assert plain.loss == everything.loss
    for name in MAPS:
        alone = seg_loss.evaluate(scores, labels, upsampling=WAYS[way], maps=(name,))
        assert list(alone.maps) == [name]
        assert same_bits(alone.maps[name], everything.maps[name])
        assert alone.loss == everything.loss


@WAY
def test_maps_cover_ignored_pixels_too_but_nll_is_zero_there(way):
    scores, labels = made()
    half = seg_loss.evaluate(scores, labels, upsampling=WAYS[way], maps=MAPS).maps
    nothing = torch.full_like(labels, 255)
    none = seg_loss.evaluate(scores, nothing, upsampling=WAYS[way], maps=MAPS).maps
    for name in MAPS:
        if name == "nll":
            assert not none["nll"].any()
            assert not half["nll"][labels == 255].any()
        elif name in CLASS_MAPS:
            assert torch.equal(half[name], none[name])
        else:
            assert torch.allclose(half[name], none[name], rtol=1e-6, atol=1e-6)


@WAY
def test_the_first_of_equals_wins_at_every_pixel(way):
    scores, labels = made()
    scores[:, 5] = scores[:, 2]
    scores[:, 6] = scores[:, 0]
    got = seg_loss.evaluate(scores, labels, upsampling=WAYS[way], maps=CLASS_MAPS).maps
    assert not torch.isin(got["prediction"], torch.tensor([5, 6], dtype=torch.uint8)).any()
    top = got["top_classes"]
    for first, second in ((2, 5), (0, 6)):
        place = (top == first).double().argmax(dim=1), (top == second).double().argmax(dim=1)
        among = (top == first).any(dim=1), (top == second).any(dim=1)
        assert not (among[1] & ~among[0]).any()
        assert (place[0] < place[1])[among[1]].all()


def test_pixels_that_no_filter_reaches_know_nothing():
    scores, labels = made()
    found = seg_loss.evaluate(scores, labels, upsampling=WAYS["gaps"], maps=MAPS).maps
    for gap in (slice(7, 10), slice(17, 20)):
        for part in (lambda x, gap=gap: x[:, gap], lambda x, gap=gap: x[:, :, gap]):
            assert not part(found["prediction"]).any()
            assert torch.allclose(part(found["confidence"]), torch.tensor(1 / 7))
            assert torch.allclose(part(found["entropy"]), torch.tensor(math.log(7)))
    assert found["top_classes"][0, :, 8, 8].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("num_classes", "dtype"),
    [(1, torch.uint8), (256, torch.uint8), (257, torch.int16), (1000, torch.int16)],
)
def test_maps_of_classes_take_the_smallest_integers_that_hold_them(num_classes, dtype):
    scores = torch.zeros(1, num_classes, 1, 2)
    scores[0, num_classes - 1, 0, 1] = 5.0
    labels = torch.zeros(1, 2, 4, dtype=torch.uint8)
    got = seg_loss.evaluate(scores, labels, upsampling=Bilinear(), maps=CLASS_MAPS).maps
    last = num_classes - 1
    assert got["prediction"].dtype == got["top_classes"].dtype == dtype
    assert got["prediction"].tolist() == [[[0, last, last, last]] * 2]
    assert got["top_classes"].shape == (1, min(3, num_classes), 2, 4)


def test_saturated_and_non_finite_pixels_are_counted_among_the_labels():
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[0, 0] = 255
    scores = torch.zeros(1, 2, 2, 2)
    scores[0, 1] = 110.0
    got = seg_loss.evaluate(scores, labels, upsampling=Bilinear())
    assert got.diagnosis.state == "saturated"
    assert got.diagnosis.advice.startswith("56 of 56 valid pixels give their true class")
    scores[0, 1, 0, 0] = math.nan
    got = seg_loss.evaluate(scores, labels, upsampling=Bilinear())
    assert got.diagnosis.state == "non_finite"
    assert got.non_finite_pixels == 6 * 5  # of the 6 rows and columns that read it, less the first
    assert math.isnan(got.loss)


def test_scores_that_require_a_gradient_are_no_trouble():
    scores, labels = made()
    got = seg_loss.evaluate(scores.requires_grad_(), labels, upsampling=WAYS["bilinear"], maps=MAPS)
    assert not any(found.requires_grad for found in got.maps.values())


@pytest.mark.parametrize("option", ["plain", "everything"])
def test_equal_sizes_give_the_evaluation_of_the_logits(option):
    shape = (2, 7, 31, 37)
    logits, labels, options = make_logits(shape), make_labels(shape), make_options(option, shape)
    plain = seg_loss.evaluate(logits, labels, **options, maps=MAPS)
    for upsampling in (Bilinear(), Bilinear(align_corners=True), Deconvolution(1, 1)):
        got = seg_loss.evaluate(logits, labels, **options, upsampling=upsampling, maps=MAPS)
        check_equal(got, plain, 1e-6)
        for name in MAPS:
            assert torch.allclose(got.maps[name], plain.maps[name], rtol=1e-6, atol=1e-6)


def test_unknown_maps_are_refused_with_an_upsampling_too():
    scores, labels = made()
    with pytest.raises(seg_loss.InvalidInput, match=r"^maps: expected names among "):
        seg_loss.evaluate(scores, labels, upsampling=Bilinear(), maps="nll")


# -- finite scores -----------------------------------------------------------------------------

START = "logits: expected finite numbers (or -inf in some classes) at valid pixels, got "
END = " The network has diverged, or the file is damaged."


def refusal_of(scores, labels, upsampling, **options):
    with pytest.raises(seg_loss.InvalidInput) as refusal:
        seg_loss.require_finite(scores, labels, upsampling=upsampling, **options)
    return str(refusal.value)


@one_thread()
def readers(nodes, size, upsampling):
    """Pixels [N, H, W] that read one of the nodes [N, h, w] with another weight than 0."""
    rows, columns = (
        torch.from_numpy(axis.matrix() != 0).double()
        for axis in axes(upsampling, nodes.shape[1:], size)
    )
    return (rows @ nodes.double() @ columns.T) > 0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("share", [0.001, 0.05, 0.5])
@WAY
def test_pixels_without_a_softmax_are_those_that_read_what_is_not_finite(way, share, dtype):
    scores, labels = made(dtype)
    for k, value in enumerate((math.nan, math.inf, -math.inf)):
        source = torch.Generator().manual_seed(k)
        scores[torch.rand(SHAPE, generator=source) < share] = value
    scores[0, :, 2:4, 5:8] = -math.inf
    upsampling = WAYS[way]
    wrong = scores.isnan() | (scores == math.inf)
    bad = readers(wrong.any(dim=1), SIZE, upsampling)
    nothing = [readers(scores[:, c] == -math.inf, SIZE, upsampling) for c in range(7)]
    bad |= torch.stack(nothing).all(dim=0)
    bad &= labels != 255
    got = seg_loss.evaluate(scores, labels, upsampling=upsampling)
    assert got.non_finite_pixels == int(bad.sum()) > 0
    assert math.isnan(got.loss)
    assert math.isnan(seg_loss.upsampled_cross_entropy(scores, labels, upsampling=upsampling))
    message = refusal_of(scores, labels, upsampling)
    others = int(bad.sum()) - 1
    assert f" and {others} more pixel{'' if others == 1 else 's'}." in message
    # Without those, the rest is finite.
    labels[bad] = 255
    seg_loss.require_finite(scores, labels, upsampling=upsampling)
    plain = seg_loss.evaluate(scores, labels, upsampling=upsampling)
    assert plain.non_finite_pixels == 0
    assert not math.isnan(plain.loss)
    _, gradient = seg_loss.loss_and_gradient(scores, labels, upsampling=upsampling)
    assert not gradient.isnan().any()


def test_require_finite_names_the_score_and_the_first_pixel_that_reads_it():
    scores, labels = torch.zeros(2, 3, 4, 5), torch.zeros(2, 16, 20, dtype=torch.uint8)
    seg_loss.require_finite(scores, labels, upsampling=Bilinear())
    scores[1, 2, 1, 3] = math.inf
    labels[1, 2] = 255  # the first row that reads it
    message = refusal_of(scores, labels, Bilinear())
    assert message == (
        f"{START}inf at (1, 2, 1, 3), read by pixel (1, 3, 10) and 55 more pixels.{END}"
    )
    scores[1, 2, 1, 3] = -math.inf
    seg_loss.require_finite(scores, labels, upsampling=Bilinear())
    scores[1, :, 2, 0] = -math.inf
    message = refusal_of(scores, labels, Bilinear())
    assert message.startswith(f"{START}-inf in every class at pixel (1, 6, 0) and ")
    everything = torch.full_like(labels, 7)
    seg_loss.require_finite(scores, everything, ignore_index=(255, 7), upsampling=Bilinear())


def test_each_class_may_be_minus_infinity_in_a_node_of_its_own():
    # No node has only -inf, but the pixels between two of them have.
    scores, labels = torch.zeros(1, 2, 1, 2), torch.zeros(1, 1, 8, dtype=torch.uint8)
    scores[0, 0, 0, 0] = scores[0, 1, 0, 1] = -math.inf
    assert refusal_of(scores, labels, Bilinear()) == (
        f"{START}-inf in every class at pixel (0, 0, 2) and 3 more pixels.{END}"
    )
    assert seg_loss.evaluate(scores, labels, upsampling=Bilinear()).non_finite_pixels == 4


def test_require_finite_refuses_what_the_loss_refuses():
    scores, labels = torch.zeros(2, 3, 4, 5), torch.zeros(2, 16, 20, dtype=torch.uint8)
    assert refusal_of(scores, labels, "bilinear") == (
        "upsampling: expected Bilinear(...) or Deconvolution(...), got 'bilinear'."
    )
    assert refusal_of(scores, labels, Deconvolution(2)) == (
        "labels: expected at most 10 rows and 12 columns, what upsampling leaves, got 16 and 20."
    )
    assert refusal_of(scores[0], labels, Bilinear()) == (
        "logits: expected [N, C, h, w] with h and w of at least 1, to be upsampled, "
        "got shape (3, 4, 5)."
    )
    assert refusal_of(scores, labels[:1], Bilinear()) == (
        "labels: expected shape (2, 16, 20) to match logits (2, 3, 4, 5), got shape (1, 16, 20)."
    )
    empty = scores[:0], labels[:0]
    seg_loss.require_finite(*empty, upsampling=Bilinear())
    seg_loss.require_finite(scores, labels[:, :0], upsampling=Bilinear())
