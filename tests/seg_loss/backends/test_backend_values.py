"""Every backend with NaN, infinity, huge values, no valid pixel, and any upstream gradient."""

import itertools
import math

import pytest
import torch

import seg_loss
from seg_loss import Bilinear
from seg_loss.compat import torch as compat_torch
from seg_loss.gpu import tiling
from tests.support.backends import DEFAULT_SHAPE, IS_SMALL, LARGE_IMAGE, assert_close
from tests.support.cases import (
    ALIGNED,
    FLOATS,
    Case,
    assert_accurate,
    evaluation_of,
    is_positive_zero,
    is_read,
    loss_and_gradient_of,
    loss_of,
    make_inputs,
    make_labels,
    make_logits,
    same_bits,
    torch_loss_and_gradient,
    true_loss_and_gradient,
)

LOGITS = Case((2, 5, 9, 11) if IS_SMALL else DEFAULT_SHAPE, "several tiles and a remainder")
SCORES = (
    Case((2, 5, 3, 4), "upsampled", (7, 9), Bilinear())
    if IS_SMALL
    else Case((3, 5, 4, 6), "upsampled", (15, 21), Bilinear())
)
SMALL = (2, 3, 4, 5)
EACH_CASE = pytest.mark.parametrize("case", [LOGITS, SCORES], ids=["plain", "upsampled"])
EACH_DTYPE = pytest.mark.parametrize("dtype", FLOATS, ids=str)
# The interpreter is slowest with upsampled scores, so that it has one dtype of them.
EACH_CASE_AND_DTYPE = pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *(pytest.param(LOGITS, dtype, id=f"plain-{dtype}") for dtype in FLOATS),
        *(
            pytest.param(SCORES, dtype, id=f"upsampled-{dtype}")
            for dtype in FLOATS[: 1 if IS_SMALL else None]
        ),
    ],
)


def unread_inputs(case, dtype, backend):
    """Returns scores, labels, upsampling and the source pixels that valid pixels read.

    For upsampled scores the pixels that read the first source pixel are ignored.
    """
    scores, labels, upsampling = make_inputs(case, dtype)
    if upsampling is not None:
        height, width = labels.shape[1:]
        labels[0, : height * 2 // case.shape[2] + 1, : width * 2 // case.shape[3] + 1] = 255
    read = is_read(labels, case.shape, upsampling).expand(case.shape)
    assert not read[0, :, 0, 0].any() or upsampling is None
    return backend.place(scores), backend.place(labels), upsampling, read.to(backend.device)


# -- NaN and infinity --------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("value", [-2.0, math.nan, math.inf, -math.inf])
def test_class_weights_may_be_any_numbers_as_in_torch(backend, value, reduction):
    target, weight = make_labels(SMALL).long(), torch.tensor([0.5, value, 2.0])
    for dtype, smoothing in itertools.product((torch.float32, torch.float64), (0.0, 0.2)):
        if math.isinf(value) and smoothing:
            continue  # torch adds inf for each class, and the kernels subtract inf from inf

        def run(function, place, dtype=dtype, smoothing=smoothing):
            x = place(make_logits(SMALL, dtype)).requires_grad_()
            options = {"ignore_index": 255, "label_smoothing": smoothing, "reduction": reduction}
            loss = function(x, place(target), place(weight.to(dtype)), **options)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            return loss.detach().cpu(), gradient.cpu()

        got = run(compat_torch.cross_entropy, backend.place)
        expected = run(torch.nn.functional.cross_entropy, torch.Tensor.clone)
        torch.testing.assert_close(got[0], expected[0], equal_nan=True)
        # The gradient of an ignored pixel stays 0. One of an infinite weight is NaN in torch.
        valid = (target != 255)[:, None].expand(SMALL)
        finite = valid & expected[1].isfinite()
        torch.testing.assert_close(got[1][finite], expected[1][finite])
        assert not got[1][valid & ~finite].isfinite().any()
        assert is_positive_zero(got[1][~valid])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@EACH_CASE_AND_DTYPE
def test_unread_scores_reach_neither_loss_nor_gradient(backend, case, dtype, value):
    x, y, upsampling, read = unread_inputs(case, dtype, backend)
    expected = loss_and_gradient_of(x, y, upsampling)
    changed = torch.where(read, x, torch.tensor(value, dtype=dtype, device=backend.device))
    got = loss_and_gradient_of(changed, y, upsampling)
    assert same_bits(got[0], expected[0])
    assert same_bits(got[1], expected[1])
    assert is_positive_zero(got[1][~read])


@pytest.mark.parametrize("normalization", ["valid", "weight", "full"])
@EACH_CASE_AND_DTYPE
def test_without_valid_pixels_the_loss_is_zero(backend, case, dtype, normalization):
    x = torch.full(case.shape, math.nan, dtype=dtype, device=backend.device).requires_grad_()
    size = (case.shape[0], *case.full_shape[2:])
    y = torch.full(size, 255, dtype=torch.uint8, device=backend.device)
    loss = loss_of(x, y, case.upsampling, normalization=normalization)
    loss.backward()
    assert float(loss.detach()) == 0
    assert is_positive_zero(x.grad)
    loss, gradient = loss_and_gradient_of(
        x.detach(), y, case.upsampling, normalization=normalization
    )
    assert float(loss) == 0
    assert is_positive_zero(gradient)


@EACH_CASE_AND_DTYPE
def test_an_empty_batch_costs_zero(backend, case, dtype):
    x, y, upsampling = make_inputs(case, dtype)
    x, y = backend.place(x)[:0], backend.place(y)[:0]
    loss, gradient = loss_and_gradient_of(x, y, upsampling)
    assert float(loss) == 0
    assert gradient.shape == x.shape


@EACH_DTYPE
def test_pixels_of_minus_infinity_in_every_class_are_nan(backend, dtype):
    labels = make_labels(LOGITS.shape).to(backend.device)
    x = torch.full(LOGITS.shape, -math.inf, dtype=dtype, device=backend.device)
    loss, _ = seg_loss.loss_and_gradient(x, labels)
    assert math.isnan(float(loss))


@EACH_DTYPE
def test_a_class_of_minus_infinity_has_gradient_zero(backend, dtype):
    logits, labels, _ = make_inputs(LOGITS, dtype)
    logits[:, 3] = -math.inf
    labels[labels == 3] = 255
    loss, gradient = seg_loss.loss_and_gradient(backend.place(logits), backend.place(labels))
    assert math.isfinite(float(loss))
    assert not gradient[:, 3].any()


@pytest.mark.parametrize("upsampling", [ALIGNED, Bilinear()], ids=str)
@EACH_DTYPE
def test_equal_sizes_with_minus_infinity_equal_the_plain_loss(backend, dtype, upsampling):
    scores, labels = make_logits(SCORES.shape, dtype), make_labels(SCORES.shape)
    scores[:, 3] = -math.inf
    scores[0, 2, 1, 1] = -math.inf
    labels = torch.where((labels == 3) | (labels == 2), 255, labels)
    x, y = backend.place(scores), backend.place(labels)
    expected = seg_loss.loss_and_gradient(x, y, normalization="none")
    got = loss_and_gradient_of(x, y, upsampling, normalization="none")
    assert math.isfinite(float(got[0]))
    assert_close("loss", float(got[0]), float(expected[0]), 1e-6)
    expected_gradient = expected[1].cpu()
    assert_accurate("gradient", got[1].cpu(), expected_gradient.double(), expected_gradient)
    assert not got[1][:, 3].any()
    assert evaluation_of(x, y, upsampling).non_finite_pixels == 0


@EACH_DTYPE
def test_nan_at_a_valid_pixel_stays_at_that_pixel(backend, dtype):
    logits, labels, _ = make_inputs(LOGITS, dtype)
    logits[0, 2, 0, 0] = math.nan
    labels[0, 0, 0] = 1
    x, y = backend.place(logits), backend.place(labels)
    loss, gradient = seg_loss.loss_and_gradient(x, y)
    assert math.isnan(float(loss))
    assert int(gradient.isnan().sum()) == LOGITS.shape[1]
    assert seg_loss.evaluate(x, y).non_finite_pixels == 1


@EACH_DTYPE
def test_logits_of_ten_thousand_are_accurate(backend, dtype):
    logits, labels, _ = make_inputs(LOGITS, dtype)
    logits = logits.double().sign().to(dtype) * 1e4
    truth, true_gradient = true_loss_and_gradient(logits, labels)
    by_torch, torch_gradient = torch_loss_and_gradient(logits, labels)
    loss, gradient = seg_loss.loss_and_gradient(backend.place(logits), backend.place(labels))
    assert_accurate("loss", loss.cpu(), truth, by_torch)
    assert_accurate("gradient", gradient.cpu(), true_gradient, torch_gradient)


# -- upstream gradients ------------------------------------------------------------------------

# A factor, and how the loss or its `grad_output` gets it.
UPSTREAM = {
    "times 3": (3, lambda loss: loss * 3, None),
    "times 1024": (1024, lambda loss: loss * 1024, None),
    "times 65536": (65536, lambda loss: loss * 65536, None),
    "times 0": (0, lambda loss: loss * 0, None),
    "negative": (-1, lambda loss: -loss, None),
    "expanded": (3, lambda loss: loss.expand(3).sum(), None),
    "a view": (3, lambda loss: loss, lambda x: x[1:].expand(7)[2]),
}


@pytest.mark.parametrize("name", UPSTREAM)
@EACH_CASE_AND_DTYPE
def test_grad_output_multiplies_the_gradient_once_rounded(backend, case, dtype, name):
    scores, labels, upsampling = make_inputs(case, dtype)
    factor, root, view = UPSTREAM[name]
    _, truth = true_loss_and_gradient(scores, labels, upsampling=upsampling)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    _, by_torch = torch_loss_and_gradient(scores.to(wide), labels, upsampling=upsampling)
    by_torch = (factor * by_torch).to(dtype)
    if not bool(by_torch.isfinite().all()):
        pytest.skip("the gradient itself overflows this dtype")
    x = backend.place(scores).requires_grad_()
    loss = root(loss_of(x, backend.place(labels), upsampling))
    pair = torch.tensor([7.0, 3.0], dtype=wide, device=backend.device)
    (got,) = torch.autograd.grad(loss, x, None if view is None else view(pair))
    assert_accurate("gradient", got.cpu(), factor * truth, by_torch)


@EACH_CASE_AND_DTYPE
def test_a_changed_gradient_does_not_change_later_passes(backend, case, dtype):
    scores, labels, upsampling = make_inputs(case, dtype)
    _, truth = true_loss_and_gradient(scores, labels, upsampling=upsampling)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    _, by_torch = torch_loss_and_gradient(scores.to(wide), labels, upsampling=upsampling)
    x = backend.place(scores).requires_grad_()
    loss = loss_of(x, backend.place(labels), upsampling)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    expected = first.clone()
    first.mul_(5)  # it belongs to the caller
    (second,) = torch.autograd.grad(loss, x, retain_graph=True)
    (third,) = torch.autograd.grad(2 * loss, x)
    assert same_bits(second, expected)
    assert_accurate("third", third.cpu(), 2 * truth, (2 * by_torch).to(dtype))


@pytest.mark.parametrize("factor", [1.0, -2.0, math.inf])
def test_an_upsampled_gradient_is_stored_and_returned_in_one_memory(backend, factor):
    x, y, upsampling, read = unread_inputs(SCORES, torch.float32, backend)
    _, gradient = loss_and_gradient_of(x, y, upsampling)
    expected = torch.where(gradient == 0, 0, factor * gradient)
    loss = loss_of(x.requires_grad_(), y, upsampling)
    grad_output = torch.tensor(factor, device=backend.device)
    stored = loss.grad_fn.saved_tensors[-1].data_ptr()
    (retained,) = torch.autograd.grad(loss, x, grad_output, retain_graph=True)
    assert retained.data_ptr() != stored
    (other,) = torch.autograd.grad(loss, x, torch.full_like(loss, 3), retain_graph=True)
    assert same_bits(other, 3 * gradient)
    loss.backward(grad_output)
    assert x.grad.data_ptr() == stored
    for got in (x.grad, retained):
        assert same_bits(got, expected)
        assert is_positive_zero(got[~read])


def test_programs_multiply_several_blocks_of_a_gradient(gpu_kernels, monkeypatch):
    monkeypatch.setattr(tiling, "BACKWARD_PROGRAMS", 2)
    scores, labels, upsampling = make_inputs(Case((2, 75, 5, 7), "", (5, 7), Bilinear()))
    x, y = gpu_kernels.place(scores), gpu_kernels.place(labels)
    _, gradient = loss_and_gradient_of(x, y, upsampling)
    assert gradient.numel() > 5 * 1024
    (-loss_of(x.requires_grad_(), y, upsampling)).backward()
    assert same_bits(x.grad, torch.where(gradient == 0, 0, -gradient))


def test_a_gradient_scaler_preserves_float16_gradients(backend):
    # The gradient of a mean over 2 million pixels is subnormal in float16 without the scale.
    shape = (1, 2, 20, 30) if IS_SMALL else (1, 2, 1000, 2000)
    logits, labels = make_logits(shape, torch.float16), make_labels(shape)
    scaler = torch.amp.GradScaler(backend.device.type, init_scale=65536.0)
    x = backend.place(logits).requires_grad_()
    scaler.scale(seg_loss.spatial_cross_entropy(x, backend.place(labels))).backward()
    _, truth = true_loss_and_gradient(logits, labels)
    _, by_torch = torch_loss_and_gradient(logits.float(), labels)
    assert_accurate("gradient", x.grad.cpu(), 65536 * truth, (65536 * by_torch).half())


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@EACH_CASE
def test_no_grad_output_reaches_unread_scores(backend, case, smoothing, factor):
    x, y, upsampling, read = unread_inputs(case, torch.float32, backend)
    loss = loss_of(x.requires_grad_(), y, upsampling, label_smoothing=smoothing)
    grad_output = torch.tensor(factor, device=backend.device)
    (got,) = torch.autograd.grad(loss, x, grad_output)
    assert is_positive_zero(got[~read])
    if factor:
        assert not got[read].eq(0).all()


@pytest.mark.parametrize("weights", ["none", "zero"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_mean_of_nothing_has_torchs_gradient(backend, smoothing, weights):
    # torch divides by 0: the loss is NaN, and so is the gradient of valid pixels of weight 0.
    logits, target = make_logits((1, 3, 2, 2)), torch.full((1, 2, 2), -100)
    weight = None
    if weights == "zero":
        target[0, 0, 0], weight = 1, torch.zeros(3)

    def run(function, x, target, weight):
        x = x.requires_grad_()
        loss = function(x, target, weight, label_smoothing=smoothing)
        loss.backward()
        return loss.detach().cpu(), x.grad.cpu()

    weight_here = None if weight is None else backend.place(weight)
    here = backend.place(logits), backend.place(target), weight_here
    loss, gradient = run(compat_torch.cross_entropy, *here)
    expected = run(torch.nn.functional.cross_entropy, logits, target, weight)
    assert math.isnan(loss)
    assert math.isnan(expected[0])
    assert torch.equal(gradient.isnan(), expected[1].isnan())
    assert torch.equal(gradient.nan_to_num(), expected[1].nan_to_num())


# -- repetition --------------------------------------------------------------------------------

# Sums of float32 numbers are often exact in float64 in any order, so float64 logits tell more.
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
REPEATED = [*itertools.product([(3, *DEFAULT_SHAPE[1:])], DTYPES)]
REPEATED += itertools.product([(2, 19, *LARGE_IMAGE)], DTYPES[: 1 if IS_SMALL else None])
if not IS_SMALL:
    REPEATED += itertools.product([(16, 3, 1024, 1024), (4, 150, 256, 256)], DTYPES)


@pytest.mark.parametrize(("shape", "dtype"), REPEATED, ids=str)
def test_results_are_the_same_twice_and_for_an_image_alone(backend, shape, dtype):
    logits, labels, _ = make_inputs(Case(shape, ""), dtype)
    x, y = backend.place(logits), backend.place(labels)
    options = {"normalization": "none"}
    loss, gradient = seg_loss.loss_and_gradient(x, y, **options)
    evaluation = seg_loss.evaluate(x, y, **options)
    for _ in range(3):
        same = seg_loss.loss_and_gradient(x, y, **options)
        assert same_bits(same[0], loss)
        assert same_bits(same[1], gradient)
    assert seg_loss.evaluate(x, y, **options).loss == evaluation.loss
    for k in range(0, shape[0], max(1, shape[0] // 3)):
        image = x[k : k + 1], y[k : k + 1]
        assert same_bits(seg_loss.loss_and_gradient(*image, **options)[1], gradient[k : k + 1])
        assert seg_loss.evaluate(*image, **options).per_image == evaluation.per_image[k : k + 1]
    torch.use_deterministic_algorithms(True)  # raises for operators that are not
    leaf = x.detach().requires_grad_()
    strict = seg_loss.spatial_cross_entropy(leaf, y, **options)
    assert same_bits(strict.detach(), loss)
    assert same_bits(torch.autograd.grad(strict, leaf)[0], gradient)
    seg_loss.evaluate(x, y)


def test_upsampled_results_are_the_same_twice_and_for_one_image(backend):
    for dtype in (torch.float32, torch.bfloat16)[: 1 if IS_SMALL else None]:
        x, y, upsampling, _ = unread_inputs(SCORES, dtype, backend)
        options = {"normalization": "none"}
        expected = loss_and_gradient_of(x, y, upsampling, **options)
        same = loss_and_gradient_of(x, y, upsampling, **options)
        assert same_bits(same[0], expected[0])
        assert same_bits(same[1], expected[1])
        _, alone = loss_and_gradient_of(x[1:2], y[1:2], upsampling, **options)
        assert same_bits(alone, expected[1][1:2])


def test_more_than_three_spatial_axes_have_the_true_gradient(gpu_kernels):
    # More than three spatial axes are copied: the gradient and the backward pass use the copy.
    base = make_logits((2, 3, 6, 5, 4))
    strided = base[:, :, 1:-1, 1:-1, 1:-1].permute(0, 1, 4, 3, 2)
    labels = make_labels(strided.shape)
    for factor in (1, 3):
        x = gpu_kernels.place(strided).requires_grad_()
        loss = factor * seg_loss.spatial_cross_entropy(x, gpu_kernels.place(labels))
        (got,) = torch.autograd.grad(loss, x)
        _, truth = true_loss_and_gradient(strided, labels)
        assert torch.allclose(got.cpu().double(), factor * truth, atol=1e-6)
