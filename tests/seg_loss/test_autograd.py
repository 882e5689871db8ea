"""The operators inside torch: gradcheck, upstream gradients, graphs, opcheck, compilation."""

import math

import pytest
import torch
from torch.autograd import forward_ad
from torch.library import opcheck
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
NO_SECOND_ORDER = (
    r"^seg_loss: expected a first derivative, got a request for a second one "
    r"\(create_graph=True, or backward through a gradient\)\. "
    r"Second derivatives are not supported\.$"
)
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


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of torch.func.jvp
@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_forward_mode_raises_instead_of_returning_zero(function):
    logits, labels, _ = inputs_of(SMALL["plain"])
    where = "scores" if function.startswith("upsampled") else "logits"
    message = (
        rf"^{where}: expected a tensor without a tangent, got one of forward-mode "
        r"differentiation \(jvp, jacfwd\)\. Only backward derivatives are supported\.$"
    )

    def call(x):
        return DIFFERENTIABLE[function](x, labels)

    tangent = torch.ones_like(logits)
    with pytest.raises(InvalidInput, match=message):
        torch.func.jvp(call, (logits.detach(),), (tangent,))
    with forward_ad.dual_level():
        call(logits)  # without a tangent, while other tensors have one
        with pytest.raises(InvalidInput, match=message):
            call(forward_ad.make_dual(logits.detach(), tangent))


@EACH_CASE
def test_a_second_derivative_raises(case):
    scores, labels, upsampling = inputs_of(case)
    loss = loss_of(scores, labels, upsampling)
    (gradient,) = torch.autograd.grad(loss, scores, create_graph=True)
    expected = loss_and_gradient_of(scores.detach(), labels, upsampling)[1]
    assert same_bits(gradient.detach(), expected)
    with pytest.raises(NotImplementedError, match=NO_SECOND_ORDER):
        gradient.square().sum().backward()


@pytest.mark.parametrize("function", OTHER_FUNCTIONS)
def test_a_second_derivative_of_other_functions_raises(function):
    logits, labels, _ = inputs_of(SMALL["plain"])
    result = OTHER_FUNCTIONS[function](logits, labels).sum()
    (gradient,) = torch.autograd.grad(result, logits, create_graph=True)
    with pytest.raises(NotImplementedError, match=NO_SECOND_ORDER):
        gradient.square().sum().backward()


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


@pytest.mark.parametrize("name", ["plain", "bilinear"])
def test_autograd_notices_that_scores_changed_before_backward(name):
    leaf, labels, upsampling = inputs_of(SMALL[name], torch.float32)
    scores = leaf * 1
    loss = loss_of(scores, labels, upsampling)
    scores.add_(1)
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


# -- torch's own checks of operators -----------------------------------------------------------

WEIGHTS = (torch.rand(4), torch.rand(2, 3, 5))
ONE = torch.ones((), dtype=torch.float64)
ALL_OPTIONS = ([255], 0.1, 2.0, "valid", "raise", [], math.inf, True)
FEW_OPTIONS = ([255, 0], 0.0, 1.0, "valid", "raise", [], 87.3, True)
# The arguments of an operator, of which the first stand for a `LossInputs`.
OPERATORS = {
    # When torch traces a program, the forward pass of a loss computes no gradient.
    "full_size_cross_entropy": lambda x, y: (x, y, *WEIGHTS, *ALL_OPTIONS, not x.requires_grad),
    "full_size_cross_entropy without weights": lambda x, y: (x, y, None, None, *FEW_OPTIONS, False),
    "pixel_terms": lambda x, y: (x, y, *WEIGHTS, *ALL_OPTIONS),
    "cross_entropy_gradient": lambda x, y: (x, y, *WEIGHTS, *ALL_OPTIONS, 9 * ONE, 2 * ONE),
    "rescale_gradient_": lambda x, y: (
        x, y, *WEIGHTS, *ALL_OPTIONS, 9 * ONE, 2 * ONE, torch.zeros_like(x),
    ),
    "softmax": lambda x, y: (x, 1, 2.0),
    "softmax_gradient": lambda x, y: (torch.randn(SHAPE), x, 1, 2.0),
}  # fmt: skip


@pytest.mark.parametrize("differentiable", [True, False])
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_pass_opcheck(operator, differentiable):
    logits, labels, _ = inputs_of(SMALL["plain"], torch.float32)
    if "_gradient" in operator or not differentiable:
        logits = logits.detach()  # a gradient has no derivative
    function = getattr(torch.ops.seg_loss, operator.split()[0])
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
    options = ([255], 0.1, 2.0, "valid", "raise", [0], math.inf, True)
    for x in (scores, scores.to(memory_format=torch.channels_last)):
        x = x.detach().requires_grad_(differentiable)
        arguments = (x, labels, *weights, *options, differentiable)
        opcheck(torch.ops.seg_loss.upsampled_cross_entropy, arguments)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    gradient, grad_output = torch.randn(scores.shape, dtype=wide), torch.tensor(2.0, dtype=wide)
    opcheck(torch.ops.seg_loss.upsampled_gradient, (scores, gradient, grad_output))


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
