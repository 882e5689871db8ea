"""Loss and gradient against the definition in float64, of logits and of upsampled scores."""

import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import seg_loss
from seg_loss import Bilinear, Deconvolution, reference
from tests.support.cases import (
    ALIGNED,
    CASES,
    FCN_8S,
    FLOATS,
    LABEL_DTYPES,
    LAYOUTS,
    NORMALIZATIONS,
    OPTIONS,
    UPSAMPLED_CASES,
    UPSAMPLINGS,
    Case,
    assert_accurate,
    is_positive_zero,
    is_read,
    loss_and_gradient_of,
    loss_of,
    make_inputs,
    make_labels,
    make_logits,
    make_options,
    same_bits,
    torch_loss,
    torch_loss_and_gradient,
    true_loss_and_gradient,
    with_void,
)


def grid():
    """Yields parameters: case, dtype, layout, label dtype, option.

    Logits of every shape have every dtype and layout, and label dtypes and options rotate in two
    orders. Scores of every shape have every dtype; layouts, label dtypes and options rotate: there
    are 9, 5 and 8 of them, without a common divisor, so that each dtype meets every combination.
    """
    rotations = (
        itertools.cycle(itertools.product(LABEL_DTYPES, OPTIONS)),
        itertools.cycle((dtype, option) for option in OPTIONS for dtype in LABEL_DTYPES),
    )
    for case, dtype, layout in itertools.product(CASES, FLOATS, LAYOUTS):
        for label_dtype, option in dict.fromkeys(next(rotation) for rotation in rotations):
            yield case, dtype, layout, label_dtype, option
    rotation = zip(
        itertools.cycle(LAYOUTS), itertools.cycle(LABEL_DTYPES), itertools.cycle(OPTIONS)
    )
    for dtype, case in itertools.product(FLOATS, UPSAMPLED_CASES):
        yield case, dtype, *next(rotation)


def check_accuracy(case, scores, labels, options):
    loss, gradient = loss_and_gradient_of(scores, labels, case.upsampling, **options)
    options_of_truth = {**options, "upsampling": case.upsampling}
    truth, true_gradient = true_loss_and_gradient(scores, labels, **options_of_truth)
    by_torch, torch_gradient = torch_loss_and_gradient(scores, labels, **options_of_truth)
    assert loss.shape == ()
    assert loss.dtype == (torch.float64 if scores.dtype == torch.float64 else torch.float32)
    assert gradient.dtype == scores.dtype
    assert gradient.stride() == torch.empty_like(scores).stride()
    assert not loss.requires_grad
    assert not gradient.requires_grad
    # For one class the truth is 1 - 1, and smoothing computes it from rounded parts.
    scale = 1.0 if case.shape[1] == 1 else None
    assert_accurate(f"loss ({case.reason})", loss, truth, by_torch)
    assert_accurate(
        f"gradient ({case.reason})", gradient, true_gradient, torch_gradient, scale=scale
    )
    assert same_bits(loss, loss_of(scores, labels, case.upsampling, **options))
    read = is_read(labels, case.shape, case.upsampling, options.get("ignore_index", 255))
    assert is_positive_zero(gradient[~read.expand_as(gradient)])


@pytest.mark.parametrize(
    ("case", "dtype", "layout", "label_dtype", "option"),
    list(grid()),
    ids=lambda value: getattr(value, "name", str(value).removeprefix("torch.")),
)
def test_loss_and_gradient_are_as_accurate_as_torchs(case, dtype, layout, label_dtype, option):
    scores, labels, _ = make_inputs(case, dtype, label_dtype=label_dtype)
    options = with_void(make_options(option, case.full_shape), labels)
    check_accuracy(case, LAYOUTS[layout](scores), labels, options)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("case", UPSAMPLINGS.values(), ids=UPSAMPLINGS)
def test_each_option_is_accurate_with_each_upsampling(case, option):
    for dtype in (torch.float32, torch.float64):
        scores, labels, _ = make_inputs(case, dtype)
        check_accuracy(case, scores, labels, make_options(option, case.full_shape))


@pytest.mark.parametrize(
    "case",
    [
        Case((1, 21, 70, 70), "FCN-8s", (500, 500), FCN_8S),
        Case((1, 21, 63, 63), "a net of stride 8", (500, 500), Bilinear()),
        Case((1, 3, 1, 2), "source pixels read by 300,000 pixels each", (900, 700), Bilinear()),
    ],
    ids=lambda case: case.reason,
)
def test_whole_images_are_as_accurate_as_torchs(case):
    scores, labels, _ = make_inputs(case)
    check_accuracy(case, scores, labels, {})


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pixel_nll_is_the_loss_of_each_pixel(case, dtype):
    logits, labels, _ = make_inputs(case, dtype)
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


# -- any sizes ---------------------------------------------------------------------------------

batches, classes, sizes = st.integers(1, 2), st.integers(1, 40), st.integers(1, 12)
label_sizes = st.integers(0, 40)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(shapes, st.sampled_from(FLOATS), st.floats(0, 1), st.integers(0, 2**31))
def test_logits_of_any_shape_have_torchs_loss(shape, dtype, ignored, seed):
    source = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=source).to(dtype)
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=source)
    labels[torch.rand(labels.shape, generator=source) < ignored] = 255
    if shape[1] == 1 and not (labels == 255).all():
        labels[labels != 255] = 0
    loss, gradient = seg_loss.loss_and_gradient(logits, labels)
    assert is_positive_zero(gradient.movedim(1, -1)[labels == 255])
    x = logits.double().requires_grad_()
    total = torch.nn.functional.cross_entropy(x, labels, ignore_index=255, reduction="sum")
    mean = total / max(int((labels != 255).sum()), 1)
    mean.backward()
    assert float(loss) == pytest.approx(float(mean.detach()), rel=1e-6, abs=1e-7)
    rounding = 2 * torch.finfo(dtype).eps
    assert torch.allclose(gradient.double(), x.grad, rtol=rounding + 1e-5, atol=1e-7)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    st.tuples(batches, classes, sizes, sizes),
    st.tuples(label_sizes, label_sizes),
    st.sampled_from([Bilinear(), ALIGNED]),
    st.sampled_from(FLOATS),
    st.floats(0, 1),
)
def test_bilinear_upsampling_to_any_size_has_the_true_loss(shape, size, upsampling, dtype, ignored):
    check_against_definition(make_logits(shape, dtype), size, upsampling, ignored)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    st.tuples(batches, classes, sizes, sizes),
    st.integers(1, 9),
    st.sampled_from(FLOATS),
    st.floats(0, 1),
    st.data(),
)
def test_any_deconvolution_has_the_true_loss(shape, stride, dtype, ignored, data):
    kernel_size = data.draw(st.integers(1, 2 * stride))
    whole = [(sources - 1) * stride + kernel_size for sources in shape[2:]]
    crop = tuple(data.draw(st.integers(0, size)) for size in whole)
    size = tuple(data.draw(st.integers(0, n - c)) for n, c in zip(whole, crop, strict=True))
    upsampling = Deconvolution(stride, kernel_size, crop)
    check_against_definition(make_logits(shape, dtype), size, upsampling, ignored)


def check_against_definition(scores, size, upsampling, ignored):
    labels = make_labels((*scores.shape[:2], *size), ignored=ignored)
    loss, gradient = loss_and_gradient_of(scores, labels, upsampling)
    truth, true_gradient = true_loss_and_gradient(scores, labels, upsampling=upsampling)
    wide = scores.dtype == torch.float64
    assert float(loss) == pytest.approx(float(truth), rel=1e-13 if wide else 1e-6, abs=1e-7)
    # The gradient of a target pixel is at most 1, and a source pixel sums a share of several.
    eps = torch.finfo(scores.dtype).eps
    assert torch.allclose(gradient.double(), true_gradient, rtol=2 * eps + 1e-5, atol=1e-6)
    read = is_read(labels, scores.shape, upsampling)
    assert is_positive_zero(gradient[~read.expand_as(gradient)])
    exact, _ = loss_and_gradient_of(scores.double(), labels, upsampling)
    assert float(exact) == pytest.approx(float(truth), rel=1e-13, abs=1e-14)


# -- normalizations and sums -------------------------------------------------------------------


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["plain", "bilinear"])
def test_normalizations_count_target_pixels_not_source_pixels(name, weighted, normalization):
    scores, labels, upsampling = make_inputs(UPSAMPLINGS[name])
    labels[1] = 255  # an image without a valid pixel
    weights = make_options("everything", UPSAMPLINGS[name].full_shape) if weighted else {}
    weights = {key: value for key, value in weights.items() if key.endswith("_weight")}
    options = {**weights, "normalization": normalization}
    got = loss_and_gradient_of(scores, labels, upsampling, **options)
    truth = true_loss_and_gradient(scores, labels, upsampling=upsampling, **options)
    by_torch = torch_loss_and_gradient(scores, labels, upsampling=upsampling, **options)
    assert_accurate("loss", got[0], truth[0], by_torch[0])
    assert_accurate("gradient", got[1], truth[1], by_torch[1])


@pytest.mark.parametrize("order", [(2, 3, 4, 5), (5, 4, 3, 2), (3, 5, 2, 4)], ids=str)
def test_four_spatial_axes_may_have_any_order(order):
    # Axes that are not contiguous with each other cannot be merged.
    base = make_logits((2, 3, 4, 5, 2, 3))
    logits = base.permute(0, 1, *order)
    labels = make_labels(logits.shape)
    got, gradient = seg_loss.loss_and_gradient(logits, labels)
    truth, true_gradient = reference.loss_and_gradient(logits, labels)
    assert_accurate("loss", got, truth, torch_loss(logits, labels))
    assert float((gradient - true_gradient).abs().max()) < 1e-7


def test_a_million_equal_terms_sum_to_the_last_bit():
    # A running sum in float32 loses five digits here (Caffe).
    logits = torch.zeros(1, 3, 1000, 1000)
    labels = torch.zeros(1, 1000, 1000, dtype=torch.uint8)
    loss = seg_loss.spatial_cross_entropy(logits, labels, normalization="none")
    ln3 = float(seg_loss.pixel_nll(logits[..., :1, :1], labels[..., :1, :1]))
    assert float(loss) == float(torch.tensor(ln3 * 1e6, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_pixels_may_be_more_than_float16_can_count(dtype):
    # 65536 is infinite in float16, and bfloat16 counts only to 256.
    logits = torch.zeros(1, 2, 300, 300, dtype=dtype)
    labels = torch.zeros(1, 300, 300, dtype=torch.uint8)
    got = seg_loss.spatial_cross_entropy(logits, labels)
    assert float(got) == pytest.approx(0.6931471805599453, rel=1e-7)
    total = seg_loss.spatial_cross_entropy(logits, labels, normalization="none")
    assert float(total) == pytest.approx(90000 * 0.6931471805599453, rel=1e-7)


def test_pixels_may_be_more_than_float32_can_count():
    # 2^24 + 1 is no float32.
    shape = (1, 2, 1, (1 << 24) + 1)
    logits = torch.zeros(1, 2, 1, 1).expand(shape)
    evaluation = seg_loss.evaluate(logits, torch.zeros(1, 1, shape[3], dtype=torch.uint8))
    assert evaluation.divisor == (1 << 24) + 1
    assert evaluation.per_class[0].pixels == (1 << 24) + 1


# -- sums over many classes --------------------------------------------------------------------

MANY_CLASSES = 1000, 4096, 32000
MAX_CLASSES_TO_EVALUATE = 1000  # the confusion matrix of 32,000 classes takes 8 GB
# Layouts of 48 pixels.
OF_MANY_CLASSES = {
    "rows": lambda x: x,
    "columns": lambda x: x.T.contiguous().T,
    "planes": lambda x: x.reshape(2, 4, 6, -1).movedim(3, 1).contiguous(),
    "channels_last": lambda x: x.reshape(2, 4, 6, -1).movedim(3, 1),
}


def relative_error(got, truth):
    return float(((got.double() - truth) / truth).abs().max())


def assert_as_accurate_as_torch(name, got, by_torch, truth, eps):
    """Asserts that the largest relative error is at most torch's own, or a few eps."""
    ours, theirs = relative_error(got, truth), relative_error(by_torch, truth)
    assert ours <= max(theirs, eps * torch.finfo(torch.float32).eps), f"{name}: {ours}, {theirs}"


@functools.cache
def results_of_many_classes(num_classes):
    """Returns logits, labels, a gradient, and the results of torch and of torch in float64.

    The logits are contiguous rows, which torch sums most accurately.
    """
    source = torch.Generator().manual_seed(num_classes)
    rows = torch.randn(48, num_classes, generator=source)
    target = torch.randint(256, num_classes, (48,), generator=source)  # 255 is ignored
    grad_output = torch.randn(rows.shape, generator=source)
    by_torch = results_by_torch(rows, target, grad_output)
    truth = results_by_torch(rows.double(), target, grad_output.double())
    return rows, target, grad_output, by_torch, truth


def results_by_torch(rows, target, grad_output):
    x = rows.clone().requires_grad_()
    log_p, p = x.log_softmax(1), x.softmax(1)
    nll = torch.nn.functional.nll_loss(log_p, target, reduction="none")
    return {
        "nll": nll.detach(),
        "gradient": torch.autograd.grad(nll.sum(), x, retain_graph=True)[0],
        "softmax": p.detach(),
        "confidence": p.detach().amax(1),
        "entropy": -(p * log_p).sum(1).detach(),
        "smoothed": torch.autograd.grad(
            torch.nn.functional.cross_entropy(x, target, label_smoothing=0.3), x
        )[0],
        "softmax gradient": torch.autograd.grad(x.softmax(1), x, grad_output)[0],
    }


def our_results(logits, labels, grad_output):
    x = logits.clone(memory_format=torch.preserve_format).requires_grad_()
    results = {
        "nll": seg_loss.pixel_nll(logits, labels),
        "gradient": seg_loss.loss_and_gradient(logits, labels, normalization="none")[1],
        "softmax": seg_loss.spatial_softmax(logits),
        "smoothed": seg_loss.loss_and_gradient(logits, labels, label_smoothing=0.3)[1],
        "softmax gradient": torch.autograd.grad(seg_loss.spatial_softmax(x), x, grad_output)[0],
    }
    if logits.shape[1] <= MAX_CLASSES_TO_EVALUATE:
        maps = seg_loss.evaluate(logits, labels, maps=("nll", "confidence", "entropy")).maps
        results |= {"nll of evaluate": maps.pop("nll"), **maps}
    return results


@pytest.mark.parametrize("layout", OF_MANY_CLASSES)
@pytest.mark.parametrize("num_classes", MANY_CLASSES)
def test_errors_do_not_grow_with_the_number_of_classes(num_classes, layout):
    rows, target, grad_output, by_torch, truth = results_of_many_classes(num_classes)
    logits = OF_MANY_CLASSES[layout](rows)
    labels = target.reshape(logits.shape[0], *logits.shape[2:])
    got = our_results(logits, labels, OF_MANY_CLASSES[layout](grad_output))
    for name, values in got.items():
        if values.ndim == logits.ndim:
            values = values.movedim(1, -1).reshape(rows.shape)
        key = name.removesuffix(" of evaluate")
        values = values.reshape(truth[key].shape)
        if key in ("smoothed", "softmax gradient"):  # differences, which may be near 0
            assert_accurate(name, values, truth[key], by_torch[key])
        else:
            eps = 8 if key in ("gradient", "softmax", "confidence") else 2
            assert_as_accurate_as_torch(name, values, by_torch[key], truth[key], eps)


@pytest.mark.parametrize("num_classes", MANY_CLASSES)
def test_errors_of_upsampled_scores_do_not_grow_with_the_number_of_classes(num_classes):
    scores = 0.01 * make_logits((1, num_classes, 1, 2))
    labels = torch.zeros(1, 2, 6, dtype=torch.uint8)
    options = {"upsampling": Bilinear()}
    _, gradient = seg_loss.loss_and_gradient(scores, labels, **options)
    _, truth = true_loss_and_gradient(scores, labels, **options)
    _, by_torch = torch_loss_and_gradient(scores, labels, **options)
    assert_as_accurate_as_torch("gradient", gradient, by_torch, truth, 8)
    if num_classes <= MAX_CLASSES_TO_EVALUATE:
        got = seg_loss.evaluate(scores, labels, maps=("nll",), **options).maps["nll"]
        logits = reference.upsample(scores, (2, 6), Bilinear())
        nll = torch.nn.functional.cross_entropy(logits, labels.long(), reduction="none")
        by_torch = torch.nn.functional.cross_entropy(
            logits.float(), labels.long(), reduction="none"
        )
        assert_as_accurate_as_torch("nll", got, by_torch, nll, 2)
