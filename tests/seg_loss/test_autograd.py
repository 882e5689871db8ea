"""The library inside torch: gradcheck, upstream gradients, graphs, operators, compilation."""

import gc
import math
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import seg_loss
from seg_loss import Bilinear, Deconvolution, InvalidInput
from tests.support.cases import (
    ALIGNED,
    FLOATS,
    NORMALIZATIONS,
    OPTIONS,
    UPSAMPLINGS,
    Case,
    assert_accurate,
    evaluation_of,
    is_read,
    loss_and_gradient_of,
    loss_of,
    make_inputs,
    make_labels,
    make_logits,
    make_options,
    same_bits,
    seed_of,
    true_loss_and_gradient,
)

SHAPE = (2, 4, 3, 5)
# Small, because gradcheck calls the loss twice for each score.
SMALL = {
    "plain": Case(SHAPE, "logits"),
    "bilinear": Case((2, 4, 3, 2), "up", (7, 5), Bilinear()),
    "aligned": Case((2, 4, 3, 2), "corners aligned", (7, 5), ALIGNED),
    "down": Case((1, 4, 5, 4), "down", (3, 2), Bilinear()),
    "deconvolution": Case((1, 4, 3, 3), "cropped", (5, 4), Deconvolution(3, crop=(2, 3))),
}
EACH_CASE = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
OTHER_FUNCTIONS = {
    "pixel_nll": lambda x, y: seg_loss.pixel_nll(x, y),
    "spatial_softmax": lambda x, y: seg_loss.spatial_softmax(x).square(),
}


def inputs_of(case, dtype=torch.float64):
    """Returns scores that require a gradient, labels and the upsampling."""
    scores, labels, upsampling = make_inputs(case, dtype)
    return scores.requires_grad_(), labels, upsampling


# -- gradcheck ---------------------------------------------------------------------------------


@pytest.mark.parametrize("option", OPTIONS)
@EACH_CASE
def test_the_loss_passes_gradcheck(case, option):
    scores, labels, upsampling = inputs_of(case)
    options = make_options(option, case.full_shape)
    assert torch.autograd.gradcheck(lambda x: loss_of(x, labels, upsampling, **options), scores)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@EACH_CASE
def test_every_normalization_passes_gradcheck(case, normalization):
    scores, labels, upsampling = inputs_of(case)
    options = {"class_weight": torch.rand(4), "normalization": normalization}
    assert torch.autograd.gradcheck(lambda x: loss_of(x, labels, upsampling, **options), scores)


def test_pixel_nll_passes_gradcheck():
    logits, labels, _ = inputs_of(SMALL["plain"])
    assert torch.autograd.gradcheck(
        lambda x: seg_loss.pixel_nll(x, labels, temperature=0.7), logits
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_passes_gradcheck(axis):
    logits, _, _ = inputs_of(SMALL["plain"])
    assert torch.autograd.gradcheck(
        lambda x: seg_loss.spatial_softmax(x, axis=axis, temperature=1.3), logits
    )


# -- upstream gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2.5, -1.0, 0.0, 1e-30])
@EACH_CASE
def test_grad_output_multiplies_the_gradient(case, factor):
    scores, labels, upsampling = inputs_of(case, torch.float32)
    _, gradient = loss_and_gradient_of(scores.detach(), labels, upsampling)
    loss = loss_of(scores, labels, upsampling)
    (got,) = torch.autograd.grad(loss, scores, torch.tensor(factor))
    assert torch.allclose(got, factor * gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["plain", "bilinear"])
def test_non_finite_grad_output_does_not_reach_unread_scores(name, factor):
    scores, labels, upsampling = inputs_of(SMALL[name], torch.float32)
    labels[1] = 255
    read = is_read(labels, scores.shape, upsampling).expand_as(scores)
    loss = loss_of(scores, labels, upsampling)
    (got,) = torch.autograd.grad(loss, scores, torch.tensor(factor))
    assert not got[read].isfinite().any()
    assert same_bits(got[~read], torch.zeros_like(got[~read]))
    assert not read[1].any()


@EACH_CASE
def test_grad_output_may_be_expanded(case):
    scores, labels, upsampling = inputs_of(case, torch.float32)
    grad_output = torch.tensor([3.0]).expand(7)[2]
    (got,) = torch.autograd.grad(loss_of(scores, labels, upsampling), scores, grad_output)
    _, gradient = loss_and_gradient_of(scores.detach(), labels, upsampling)
    assert torch.allclose(got, 3 * gradient, rtol=1e-6, atol=0)
    total = loss_of(scores, labels, upsampling).expand(5).sum()
    (got,) = torch.autograd.grad(total, scores)
    assert torch.allclose(got, 5 * gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factor", [1.0, 3.0, 1 / 3, 1000.0])
@pytest.mark.parametrize("case", UPSAMPLINGS.values(), ids=UPSAMPLINGS)
def test_half_precision_gradients_are_rounded_once(case, factor, dtype):
    scores, labels, upsampling = inputs_of(case, dtype)
    (factor * loss_of(scores, labels, upsampling, normalization="full")).backward()
    options = {"upsampling": upsampling, "normalization": "full"}
    _, truth = true_loss_and_gradient(scores, labels, **options)
    truth *= float(torch.tensor(factor))
    # Half a step of the dtype, and the error of float32.
    normal = torch.maximum(truth.abs(), torch.tensor(torch.finfo(dtype).tiny))
    step = normal * torch.finfo(dtype).eps
    error = (scores.grad.double() - truth).abs()
    assert bool((error <= 0.501 * step + 1e-6 * float(truth.abs().max())).all())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["dense", "expanded", "transposed", "row", "signed zeros"])
def test_random_grad_output_reaches_every_pixel(kind, dtype):
    shape = (2, 21, 37, 53)
    logits, labels = make_logits(shape, dtype).requires_grad_(), make_labels(shape)
    nll = seg_loss.pixel_nll(logits, labels)
    grad_output = torch.randn(nll.shape, generator=seed_of(kind), dtype=nll.dtype)
    if kind == "expanded":
        grad_output = grad_output[:1, :1, :1].expand(nll.shape)
    elif kind == "transposed":
        grad_output = grad_output.mT.contiguous().mT
    elif kind == "row":
        grad_output = grad_output[:, :, :1].expand(nll.shape)
    elif kind == "signed zeros":
        grad_output = torch.zeros_like(nll).copysign(grad_output)
    before = grad_output.clone()
    (got,) = torch.autograd.grad(nll, logits, grad_output)
    assert torch.equal(grad_output, before)

    def by_torch(wide):
        x = logits.detach().to(wide).requires_grad_()
        terms = torch.nn.functional.cross_entropy(
            x, labels.long(), ignore_index=255, reduction="none"
        )
        return torch.autograd.grad(terms, x, grad_output.to(wide))[0]

    torch_gradient = by_torch(nll.dtype).to(dtype)
    assert_accurate("gradient", got, by_torch(torch.float64), torch_gradient)
    ignored = got.movedim(1, -1)[labels == 255]
    assert same_bits(ignored, torch.zeros_like(ignored))


def test_nan_in_grad_output_of_ignored_pixels_has_no_effect():
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    nll = seg_loss.pixel_nll(logits, labels)
    grad_output = torch.where(labels == 255, torch.nan, 1.0)
    (got,) = torch.autograd.grad(nll, logits, grad_output)
    (expected,) = torch.autograd.grad(seg_loss.pixel_nll(logits, labels).sum(), logits)
    assert same_bits(got, expected)


def test_a_float16_gradient_is_scaled_before_it_is_rounded():
    # GradScaler does this: without the scale these gradients are subnormal in float16.
    logits = torch.zeros(1, 2, 1000, 1000, dtype=torch.float16, requires_grad=True)
    labels = torch.zeros(1, 1000, 1000, dtype=torch.uint8)
    scale = 2.0**16
    (scale * seg_loss.spatial_cross_entropy(logits, labels)).backward()
    exact = torch.tensor(0.5e-6 * scale, dtype=torch.float64).to(torch.float16)
    assert (logits.grad[:, 0] == -exact).all()
    assert (logits.grad[:, 1] == exact).all()


def test_an_upsampled_gradient_is_scaled_before_it_is_rounded():
    scores = torch.zeros(1, 2, 1, 1, dtype=torch.float16, requires_grad=True)
    labels = torch.full((1, 1000, 1000), 255, dtype=torch.uint8)
    labels[0, 500, 500] = 0
    loss = seg_loss.upsampled_cross_entropy(scores, labels, normalization="full")
    scale = 2.0**16
    (scale * loss).backward()
    exact = float(torch.tensor(0.5e-6 * scale, dtype=torch.float64).to(torch.float16))
    assert scores.grad.flatten().tolist() == [-exact, exact]


# -- graphs ------------------------------------------------------------------------------------


@EACH_CASE
def test_a_retained_graph_gives_the_same_gradient_twice(case):
    scores, labels, upsampling = inputs_of(case, torch.float32)
    loss = loss_of(scores, labels, upsampling)
    loss.backward(retain_graph=True)
    first = scores.grad.clone()
    assert same_bits(first, loss_and_gradient_of(scores.detach(), labels, upsampling)[1])
    loss.backward()
    assert same_bits(scores.grad, 2 * first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("function", OTHER_FUNCTIONS)
def test_other_functions_with_a_retained_graph_do_too(function):
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    result = OTHER_FUNCTIONS[function](logits, labels).sum()
    result.backward(retain_graph=True)
    first = logits.grad.clone()
    result.backward()
    assert same_bits(logits.grad, 2 * first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        result.backward()


@EACH_CASE
def test_a_returned_gradient_is_not_written_by_a_later_pass(case):
    scores, labels, upsampling = inputs_of(case, torch.float32)
    loss = loss_of(scores, labels, upsampling)
    (first,) = torch.autograd.grad(loss, scores, retain_graph=True)
    expected = first.clone()
    (second,) = torch.autograd.grad(loss, scores, torch.tensor(2.0), retain_graph=True)
    assert same_bits(first, expected)
    first.fill_(7)
    second.fill_(7)
    (third,) = torch.autograd.grad(loss, scores)
    assert same_bits(third, expected)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("plain", lambda x, y: seg_loss.pixel_nll(x, y).mean()),
        ("bilinear", lambda x, y: loss_of(x, y, ALIGNED)),
    ],
)
def test_losses_of_one_tensor_add_their_gradients(name, other):
    scores, labels, upsampling = inputs_of(SMALL[name])
    total = loss_of(scores, labels, upsampling) + other(scores, labels)
    (got,) = torch.autograd.grad(total, scores)
    (a,) = torch.autograd.grad(loss_of(scores, labels, upsampling), scores)
    (b,) = torch.autograd.grad(other(scores, labels), scores)
    assert torch.equal(got, a + b)


DIFFERENTIABLE = {
    "spatial_cross_entropy": seg_loss.spatial_cross_entropy,
    "upsampled_cross_entropy": seg_loss.upsampled_cross_entropy,
    "pixel_nll": seg_loss.pixel_nll,
    "spatial_softmax": lambda x, y: seg_loss.spatial_softmax(x),
}


@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_saved_tensors_are_unpacked_once_as_checkpointing_needs(function):
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    call = DIFFERENTIABLE[function]
    (expected,) = torch.autograd.grad(call(logits, labels).sum(), logits)
    result = checkpoint(lambda x: call(x, labels).sum(), logits, use_reentrant=False)
    assert same_bits(torch.autograd.grad(result, logits)[0], expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_checkpointing_gives_the_gradient_in_both_ways(function, use_reentrant):
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    call = DIFFERENTIABLE[function]
    (expected,) = torch.autograd.grad(call(logits, labels).sum(), logits)
    checkpoint(call, logits, labels, use_reentrant=use_reentrant).sum().backward()
    assert same_bits(logits.grad, expected)


SAVED_TENSORS = {
    "copied": lambda: torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone),
    "on the CPU": torch.autograd.graph.save_on_cpu,
}


@pytest.mark.parametrize("how", SAVED_TENSORS)
@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_tensors_may_be_saved_by_hooks(function, how):
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    call = DIFFERENTIABLE[function]
    (expected,) = torch.autograd.grad(call(logits, labels).sum(), logits)
    with SAVED_TENSORS[how]():
        result = call(logits, labels)
    for _ in range(2):
        (got,) = torch.autograd.grad(result.sum(), logits, retain_graph=True)
        assert same_bits(got, expected)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_anomaly_mode_finds_only_gradients_that_are_nan(function):
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    call = DIFFERENTIABLE[function]
    (expected,) = torch.autograd.grad(call(logits, labels).sum(), logits)
    with torch.autograd.detect_anomaly():
        (got,) = torch.autograd.grad(call(logits, labels).sum(), logits)
        assert same_bits(got, expected)
        labels[0, 0, 0] = 1
        with torch.no_grad():
            logits[0, 0, 0, 0] = torch.nan
        with pytest.raises(RuntimeError, match="returned nan values in its 0th output"):
            torch.autograd.grad(call(logits, labels).sum(), logits)


@EACH_CASE
def test_the_gradient_of_a_leaf_is_its_own_memory(case):
    scores, labels, upsampling = inputs_of(case, torch.float32)
    loss = loss_of(scores, labels, upsampling)
    loss.backward(retain_graph=True)
    expected, first = scores.grad.clone(), scores.grad
    scores.grad = None
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)  # accumulates in place
    assert same_bits(first, expected)
    assert same_bits(scores.grad, 2 * expected)
    scores.grad.zero_()
    loss.backward()
    assert same_bits(scores.grad, expected)


EACH_UPSAMPLED = pytest.mark.parametrize(
    "case", [case for case in SMALL.values() if case.upsampling], ids=list(SMALL)[1:]
)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@EACH_UPSAMPLED
def test_the_last_pass_returns_the_stored_gradient_unless_it_rounds(case, dtype):
    scores, labels, upsampling = inputs_of(case, dtype)
    loss = loss_of(scores, labels, upsampling)
    stored = loss.grad_fn.saved_tensors[-1]
    address, is_rounded = stored.data_ptr(), stored.dtype != dtype
    del stored
    loss.backward()
    assert (scores.grad.data_ptr() == address) == (not is_rounded)
    assert same_bits(scores.grad, loss_and_gradient_of(scores.detach(), labels, upsampling)[1])


@pytest.mark.parametrize("factors", [(1.0, -2.0), (2.0, 1.0), (3.0, 0.5)], ids=str)
@EACH_CASE
def test_passes_with_different_grad_outputs_accumulate(case, factors):
    scores, labels, upsampling = inputs_of(case, torch.float32)
    _, gradient = loss_and_gradient_of(scores.detach(), labels, upsampling)
    loss = loss_of(scores, labels, upsampling)
    first, last = factors
    (first * loss).backward(retain_graph=True)
    (last * loss).backward()
    assert torch.allclose(scores.grad, (first + last) * gradient, rtol=1e-5, atol=1e-8)


@EACH_UPSAMPLED
def test_a_pass_that_failed_after_its_gradient_cannot_be_repeated(case):
    # The gradient is scaled already, and the graph is not freed.
    scores, labels, upsampling = inputs_of(case, torch.float32)
    loss = loss_of(scores, labels, upsampling)

    def fail(*_):
        raise ArithmeticError

    hook = loss.grad_fn.register_hook(fail)
    with pytest.raises(ArithmeticError):
        (2 * loss).backward()
    hook.remove()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (2 * loss).backward()


@EACH_CASE
def test_gradients_of_several_batches_accumulate(case):
    scores, labels, upsampling = inputs_of(case)
    expected = torch.zeros_like(scores)
    for factor in (1.0, -0.5, 3.0):
        batch = scores.detach() * factor
        expected += factor * loss_and_gradient_of(batch, labels, upsampling)[1]
        loss_of(scores * factor, labels, upsampling).backward()
    assert torch.allclose(scores.grad, expected, rtol=1e-12, atol=1e-15)


@EACH_CASE
def test_a_dropped_graph_frees_its_memory_at_once(case):
    # A reference cycle would keep the gradient until Python looks for cycles.
    scores, labels, upsampling = inputs_of(case, torch.float32)
    loss = loss_of(scores, labels, upsampling)
    graph = weakref.ref(loss.grad_fn)
    gc.disable()
    try:
        del loss
        assert graph() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_threads_may_train_at_the_same_time(function):
    # As torch.nn.DataParallel does: forward in threads, backward through all in one.
    call = DIFFERENTIABLE[function]
    batches = [(make_logits((2, 4, 3, 5 + k)), make_labels((2, 4, 3, 5 + k))) for k in range(8)]

    def gradient(logits, labels):
        leaf = logits.clone().requires_grad_()
        return torch.autograd.grad(call(leaf, labels).sum(), leaf)[0]

    expected = [gradient(*batch) for batch in batches]
    leaves = [logits.clone().requires_grad_() for logits, _ in batches]
    labels = [labels for _, labels in batches]
    with ThreadPoolExecutor(4) as pool:
        for got, truth in zip(
            pool.map(gradient, *zip(*batches, strict=True)), expected, strict=True
        ):
            assert same_bits(got, truth)
        results = list(pool.map(call, leaves, labels))
        sum(result.sum() for result in results).backward()
        for leaf, truth in zip(leaves, expected, strict=True):
            assert same_bits(leaf.grad, truth)


@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_a_backward_pass_may_run_in_another_thread(function):
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    call = DIFFERENTIABLE[function]
    (expected,) = torch.autograd.grad(call(logits, labels).sum(), logits)
    result = call(logits, labels).sum()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(result.backward).result()
    assert same_bits(logits.grad, expected)


# -- inputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "bilinear"])
def test_inputs_are_not_modified(name):
    scores, labels, upsampling = inputs_of(SMALL[name], torch.float32)
    class_weight, pixel_weight = torch.rand(4), torch.rand(labels.shape)
    tensors = (scores, labels, class_weight, pixel_weight)
    before = [tensor.detach().clone() for tensor in tensors]
    versions = [tensor._version for tensor in tensors]
    options = {"class_weight": class_weight, "pixel_weight": pixel_weight, "label_smoothing": 0.1}
    loss_of(scores, labels, upsampling, **options).backward()
    loss_and_gradient_of(scores.detach(), labels, upsampling, **options)
    evaluation_of(scores, labels, upsampling, **options, maps=("nll", "top_classes"))
    if upsampling is None:
        seg_loss.spatial_softmax(scores).sum().backward()
        seg_loss.pixel_nll(scores, labels).sum().backward()
    for tensor, contents, version in zip(tensors, before, versions, strict=True):
        assert same_bits(tensor.detach(), contents)
        assert tensor._version == version


@pytest.mark.parametrize("name", ["plain", "bilinear"])
def test_no_graph_is_recorded_without_need(name):
    scores, labels, upsampling = inputs_of(SMALL[name], torch.float32)
    with torch.no_grad():
        loss = loss_of(scores, labels, upsampling)
        assert not loss.requires_grad
    with torch.inference_mode():
        assert not seg_loss.spatial_softmax(scores).requires_grad
        assert same_bits(loss, loss_of(scores, labels, upsampling))
        loss_and_gradient_of(scores, labels, upsampling)
    detached = loss_of(scores.detach(), labels, upsampling)
    assert not detached.requires_grad
    assert same_bits(loss, detached)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_without_a_graph_the_results_are_the_same(function, context):
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    call = DIFFERENTIABLE[function]
    expected = call(logits, labels).detach()
    with context():
        result = call(logits, labels)
        assert same_bits(result, expected)
        assert same_bits(call(logits * 1, labels.clone()), expected)  # inference tensors
    assert not result.requires_grad
    assert result.is_inference() == (context is torch.inference_mode)


@pytest.mark.parametrize("name", ["plain", "bilinear"])
def test_autograd_notices_that_out_was_overwritten(name):
    # Kernels that write without telling autograd give wrong gradients elsewhere (Liger, Unsloth).
    leaf, labels, upsampling = inputs_of(SMALL[name], torch.float32)
    scores = leaf * 1
    square = scores.square()
    version = scores._version
    loss_and_gradient_of(scores, labels, upsampling, out=scores)
    assert scores._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


@pytest.mark.parametrize("passes", [0, 1])
@pytest.mark.parametrize("name", ["plain", "bilinear"])
def test_autograd_notices_that_scores_changed_before_backward(name, passes):
    leaf, labels, upsampling = inputs_of(SMALL[name], torch.float32)
    scores = leaf * 1
    loss = loss_of(scores, labels, upsampling)
    for _ in range(passes):
        loss.backward(retain_graph=True)
    scores.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("function", ["pixel_nll", "spatial_softmax"])
def test_autograd_notices_that_logits_of_other_functions_changed(function):
    leaf, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    logits = leaf * 1
    result = DIFFERENTIABLE[function](logits, labels).sum()
    logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


@pytest.mark.parametrize("changed", ["labels", "class_weight", "pixel_weight"])
@pytest.mark.parametrize("name", ["plain", "bilinear"])
def test_autograd_notices_that_labels_or_weights_changed_before_backward(name, changed):
    scores, labels, upsampling = inputs_of(SMALL[name], torch.float32)
    tensors = {
        "labels": labels,
        "class_weight": torch.ones(4),
        "pixel_weight": torch.ones(labels.shape),
    }
    loss = loss_of(scores, tensors["labels"], upsampling, **without_labels(tensors))
    tensors[changed].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["plain", "bilinear"])
def test_weights_that_require_a_gradient_get_none(name, dtype, normalization):
    # The loss is differentiable in the scores alone.
    scores, labels, upsampling = inputs_of(SMALL[name])
    weight = torch.rand(4, dtype=dtype, requires_grad=True)
    pixels = torch.rand(labels.shape, dtype=dtype, requires_grad=True)
    options = {"class_weight": weight, "pixel_weight": pixels, "normalization": normalization}
    loss_of(scores, labels, upsampling, **options).backward()
    _, expected = loss_and_gradient_of(scores.detach(), labels, upsampling, **options)
    assert same_bits(scores.grad, expected)
    assert weight.grad is None
    assert pixels.grad is None
    evaluation_of(scores, labels, upsampling, **options)


# -- where operators are called ------------------------------------------------------------------


class DispatchMode(TorchDispatchMode):
    """Changes nothing; torch's own modes count operations or trace programs."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Tagged(torch.Tensor):
    """A subclass that handles no operators itself, as torchvision's `Mask` and `Image`."""


def operators_in(call):
    """Returns the operators of the library that torch runs in a call, backward passes included."""
    with torch.autograd.profiler.profile() as profile:
        call()
    return {event.name for event in profile.function_events if "seg_loss::" in event.name}


OPERATOR_OF = {
    "spatial_cross_entropy": "seg_loss::full_size_cross_entropy",
    "upsampled_cross_entropy": "seg_loss::upsampled_cross_entropy",
    "pixel_nll": "seg_loss::pixel_terms",
    "spatial_softmax": "seg_loss::softmax",
}
GRADIENT_OPERATOR_OF = {
    "spatial_cross_entropy": "seg_loss::cross_entropy_gradient",
    "upsampled_cross_entropy": "seg_loss::upsampled_gradient",
    "pixel_nll": "seg_loss::cross_entropy_gradient",
    "spatial_softmax": "seg_loss::softmax_gradient",
}


@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_eager_calls_use_no_operator(function):
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    call = DIFFERENTIABLE[function]

    def train():
        result = call(logits, labels).sum()
        result.backward(retain_graph=True)
        torch.autograd.grad(2 * result, logits, retain_graph=True)
        torch.autograd.grad(result, logits, create_graph=True)
        call(logits.detach(), labels)
        with torch.no_grad():
            call(logits, labels)
        seg_loss.loss_and_gradient(logits, labels)

    assert operators_in(train) == set()


@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_operators_are_called_in_a_dispatch_mode(function):
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    call = DIFFERENTIABLE[function]

    def train():
        with DispatchMode():
            call(logits, labels).sum().backward()

    assert operators_in(train) == {OPERATOR_OF[function], GRADIENT_OPERATOR_OF[function]}


@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_a_dispatch_mode_of_the_backward_pass_alone_sees_its_operator(function):
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    result = DIFFERENTIABLE[function](logits, labels).sum()
    (expected,) = torch.autograd.grad(result, logits, retain_graph=True)
    got = []

    def backward():
        with DispatchMode():
            got.extend(torch.autograd.grad(result, logits))

    assert operators_in(backward) == {GRADIENT_OPERATOR_OF[function]}
    assert same_bits(got[0], expected)


# torch has no batching rules for the operators: it calls them for each element, and says so.
BATCHED = pytest.mark.filterwarnings("ignore:There is a performance drop")


@BATCHED
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_gradients_may_be_computed_as_a_batch(function, create_graph):
    # As torch.autograd.functional.jacobian(vectorize=True) does.
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    result = DIFFERENTIABLE[function](logits, labels)
    batch = torch.randn(3, *result.shape)
    (got,) = torch.autograd.grad(
        result, logits, batch, is_grads_batched=True, create_graph=create_graph, retain_graph=True
    )
    for gradient, grad_output in zip(got.detach(), batch, strict=True):
        (expected,) = torch.autograd.grad(result, logits, grad_output, retain_graph=True)
        assert same_bits(gradient, expected)


@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_subclasses_that_handle_operators_get_them(function):
    logits, labels, _ = make_inputs(SMALL["plain"])
    call = DIFFERENTIABLE[function]
    pair = TwoTensor(logits, 2 * logits).requires_grad_()
    result = call(pair, labels)
    (gradient,) = torch.autograd.grad(result.sum(), pair)
    for part, factor in (("a", 1), ("b", 2)):
        leaf = (factor * logits).requires_grad_()
        expected = call(leaf, labels)
        (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)
        assert same_bits(getattr(result, part).detach(), expected.detach())
        assert same_bits(getattr(gradient, part), expected_gradient)


@pytest.mark.parametrize("argument", ["labels", "class_weight", "pixel_weight"])
@pytest.mark.parametrize("name", ["plain", "bilinear"])
def test_labels_and_weights_may_be_such_subclasses(name, argument):
    scores, labels, upsampling = make_inputs(SMALL[name])
    tensors = {
        "labels": labels, "class_weight": torch.rand(4), "pixel_weight": torch.rand(labels.shape)
    }  # fmt: skip
    other = 1 - (labels != 0).to(labels.dtype) if argument == "labels" else 3 * tensors[argument]
    pair = {**tensors, argument: TwoTensor(tensors[argument], other)}
    for function in (
        loss_of,
        lambda *inputs, **weights: loss_and_gradient_of(*inputs, **weights)[1],
    ):
        got = function(scores, pair["labels"], upsampling, **without_labels(pair))
        for part in ("a", "b"):
            one = {**tensors, argument: getattr(pair[argument], part)}
            expected = function(scores, one["labels"], upsampling, **without_labels(one))
            assert same_bits(getattr(got, part), expected)


def without_labels(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "labels"}


@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_other_subclasses_take_the_eager_path(function):
    logits, labels, _ = make_inputs(SMALL["plain"])
    call, leaf = DIFFERENTIABLE[function], logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(call(leaf, labels).sum(), leaf)
    tagged, got = logits.as_subclass(Tagged).requires_grad_(), []

    def train():
        result = call(tagged, labels.as_subclass(Tagged)).sum()
        got.extend(torch.autograd.grad(result, tagged))

    assert operators_in(train) == set()
    assert same_bits(got[0].as_subclass(torch.Tensor), expected)


class Calls(torch.nn.Module):
    """A function of two arguments as a module, which torch.export needs."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x, y):
        return self.call(x, y)


def compiled_graph(call, *arguments):
    graphs = []

    def record(graph, example_inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    torch.compile(call, fullgraph=True, backend=record)(*arguments)
    (graph,) = graphs
    return graph


TRACED = {
    "compile": compiled_graph,
    "export": lambda call, *arguments: torch.export.export(Calls(call), arguments).graph_module,
    "make_fx": lambda call, *arguments: make_fx(Calls(call))(*arguments),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("how", TRACED)
@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_a_traced_program_contains_the_operator(function, how):
    logits, labels, _ = make_inputs(SMALL["plain"])
    graph = TRACED[how](DIFFERENTIABLE[function], logits, labels)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    (operator,) = (target for target in targets if "seg_loss" in target)
    assert operator.removesuffix(".default").replace(".", "::") == OPERATOR_OF[function]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_a_traced_backward_pass_contains_its_operator(function):
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    call = DIFFERENTIABLE[function]
    graph = make_fx(lambda x: torch.autograd.grad(call(x, labels).sum(), x)[0])(logits)
    (expected,) = torch.autograd.grad(call(logits, labels).sum(), logits)
    assert same_bits(graph(logits), expected)
    assert "torch.ops.seg_loss" in graph.code
    result = call(logits, labels).sum()  # traced in the backward pass alone
    graph = make_fx(lambda x: torch.autograd.grad(result, logits, x)[0])(torch.ones(()))
    assert GRADIENT_OPERATOR_OF[function].replace("::", ".") in graph.code
    assert same_bits(graph(torch.ones(())), expected)


# -- torch's own checks of operators -----------------------------------------------------------

WEIGHTS = (torch.rand(4), torch.rand(2, 3, 5))
DIVISOR = torch.tensor([9.0, 1 / 18], dtype=torch.float64)  # D and 1 / (D temperature)
TWO = torch.tensor(2.0, dtype=torch.float64)
ALL_OPTIONS = ([255], 0.1, 2.0, "valid", "raise", [], math.inf, True, True)
FEW_OPTIONS = ([255, 0], 0.0, 1.0, "valid", "raise", [], 87.3, True, False)
# The arguments of an operator, of which the first stand for a `LossInputs`.
OPERATORS = {
    # When torch traces a program, the forward pass of a loss computes no gradient.
    "full_size_cross_entropy": lambda x, y: (x, y, *WEIGHTS, *ALL_OPTIONS, not x.requires_grad),
    "full_size_cross_entropy without weights": lambda x, y: (x, y, None, None, *FEW_OPTIONS, False),
    "pixel_terms": lambda x, y: (x, y, *WEIGHTS, *ALL_OPTIONS),
    "cross_entropy_gradient": lambda x, y: (x, y, *WEIGHTS, *ALL_OPTIONS, DIVISOR, TWO),
    "cross_entropy_gradient of terms": lambda x, y: (x, y, *WEIGHTS, *ALL_OPTIONS, None, None),
    "softmax": lambda x, y: (x, 1, 2.0),
    "softmax_gradient": lambda x, y: (torch.randn(SHAPE), x, None, 1, 2.0),
    "softmax_gradient, weighted": lambda x, y: (torch.randn(SHAPE), x, WEIGHTS[1], 1, 2.0),
}  # fmt: skip


@pytest.mark.parametrize("differentiable", [True, False])
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_pass_opcheck(operator, differentiable):
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    if "_gradient" in operator or not differentiable:
        logits = logits.detach()  # a gradient has no derivative
    function = getattr(torch.ops.seg_loss, operator.split()[0].rstrip(","))
    opcheck(function, OPERATORS[operator](logits, labels))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_operators_pass_opcheck_in_other_dtypes_and_layouts(dtype):
    logits, labels, _ = inputs_of(SMALL["plain"], dtype)
    for x in (logits, logits.detach().to(memory_format=torch.channels_last).requires_grad_()):
        arguments = x, labels, None, None, *FEW_OPTIONS, False
        opcheck(torch.ops.seg_loss.full_size_cross_entropy, arguments)
        opcheck(torch.ops.seg_loss.softmax, (x, 1, 1.0))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("differentiable", [True, False])
def test_operators_of_upsampled_scores_pass_opcheck(differentiable, dtype):
    scores, labels, _ = make_inputs(SMALL["bilinear"], dtype)
    weights = (torch.rand(4), torch.rand(labels.shape)) if differentiable else (None, None)
    options = ([255], 0.1, 2.0, "valid", "raise", [0], math.inf, True, True)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grad_output = torch.tensor(2.0, dtype=wide)
    for x in (scores, scores.to(memory_format=torch.channels_last)):
        x = x.detach().requires_grad_(differentiable)
        arguments = (x, labels, *weights, *options, differentiable)
        opcheck(torch.ops.seg_loss.upsampled_cross_entropy, arguments)
        gradient = torch.randn_like(x, dtype=wide)
        arguments = (x.detach(), *arguments[1:-1], gradient, grad_output)
        opcheck(torch.ops.seg_loss.upsampled_gradient, arguments)


# -- compilation -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["plain", "bilinear", "deconvolution"])
@pytest.mark.parametrize("option", ["plain", "everything"])
def test_the_loss_compiles_into_a_full_graph_with_the_same_bits(option, name):
    torch.compiler.reset()
    upsampling = SMALL[name].upsampling
    options = make_options(option, SMALL[name].full_shape)

    def step(x, y):
        return loss_of(x * 2, y, upsampling, **options)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for dtype in (torch.float32, torch.bfloat16):
        scores, labels, _ = inputs_of(SMALL[name], dtype)
        loss = step(scores, labels)
        (gradient,) = torch.autograd.grad(loss, scores)
        compiled_loss = compiled(scores, labels)
        (compiled_gradient,) = torch.autograd.grad(compiled_loss, scores)
        assert same_bits(compiled_loss.detach(), loss.detach())
        assert same_bits(compiled_gradient, gradient)


@pytest.mark.filterwarnings("default")
def test_all_functions_compile_with_dynamic_shapes():
    torch.compiler.reset()

    def step(x, y):
        nll = seg_loss.pixel_nll(x, y)
        return (
            nll.sum()
            + (seg_loss.spatial_softmax(x) * x).sum()
            + seg_loss.spatial_cross_entropy(x, y)
        )

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 4, 3, 5), (3, 4, 6, 7), (1, 5, 8, 2)):
        logits, labels = make_logits(shape).requires_grad_(), make_labels(shape)
        (expected,) = torch.autograd.grad(step(logits, labels), logits)
        (got,) = torch.autograd.grad(compiled(logits, labels), logits)
        assert torch.allclose(got, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("default")
def test_the_module_for_upsampling_compiles_with_dynamic_shapes():
    torch.compiler.reset()
    module = seg_loss.UpsampledCrossEntropy(upsampling=Deconvolution(4, crop=1))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape, size in (((2, 4, 3, 5), (9, 17)), ((3, 4, 6, 7), (20, 21)), ((1, 5, 8, 2), (5, 3))):
        scores, labels = make_logits(shape).requires_grad_(), make_labels((*shape[:2], *size))
        (expected,) = torch.autograd.grad(module(scores, labels), scores)
        (got,) = torch.autograd.grad(compiled(scores, labels), scores)
        assert same_bits(got, expected)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("plain", seg_loss.spatial_cross_entropy),
        ("bilinear", seg_loss.upsampled_cross_entropy),
    ],
)
def test_an_invalid_label_raises_in_a_compiled_program(name, function):
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    scores, labels, _ = inputs_of(SMALL[name], torch.float32)
    labels[0, 1, 2] = 9
    with pytest.raises(InvalidInput, match=r"got 9 at \(0, 1, 2\)"):
        compiled(scores, labels)


@pytest.mark.parametrize("upsampling", [None, Bilinear()], ids=str)
@pytest.mark.parametrize("function", ["evaluate", "out"])
def test_functions_without_an_operator_run_in_compiled_programs(function, upsampling):
    torch.compiler.reset()
    logits, labels, _ = make_inputs(SMALL["plain"])

    def step(x):
        scores = (-2 * x)._neg_view()  # has torch's negation bit
        if function == "evaluate":
            evaluation = seg_loss.evaluate(scores, labels, upsampling=upsampling)
            return x.sum() + evaluation.loss
        out = torch.empty_like(x)
        loss, _ = seg_loss.loss_and_gradient(scores, labels, upsampling=upsampling, out=out)
        return out * 3 + loss

    assert same_bits(torch.compile(step, backend="aot_eager")(logits), step(logits))


# -- mixed precision ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "label_size", "upsampling"),
    [((3, 5), (3, 5), None), ((7, 9), (27, 31), Bilinear())],
    ids=["plain", "bilinear"],
)
def test_under_autocast_the_loss_of_bfloat16_scores_is_float32(size, label_size, upsampling):
    layer = torch.nn.Conv2d(3, 5, 1)
    image, labels = torch.randn(2, 3, *size), make_labels((2, 5, *label_size))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = layer(image)
        loss = loss_of(scores, labels, upsampling)
        softmax = seg_loss.spatial_softmax(scores)
    assert scores.dtype == torch.bfloat16
    assert softmax.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_of(scores, labels, upsampling))
    loss.backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.any()


@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_autocast_changes_nothing_by_itself(function):
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    call = DIFFERENTIABLE[function]
    expected = call(logits, labels)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = call(logits, labels)
        (gradient,) = torch.autograd.grad(result.sum(), logits)
    assert result.dtype == torch.float32
    assert same_bits(result.detach(), expected.detach())
    assert same_bits(gradient, expected_gradient)
