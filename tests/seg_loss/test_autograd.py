"""The operators inside torch: gradcheck, cotangents, graphs, compilation, autocast, opcheck."""

import math

import pytest
import torch
from cases import (
    FLOATS,
    NORMALIZATIONS,
    OPTIONS,
    assert_accurate,
    make_labels,
    make_logits,
    make_options,
    same_bits,
    seed_of,
)
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import seg_loss
from seg_loss import Bilinear

SHAPE = (2, 4, 3, 5)
SECOND_ORDER = (
    r"^seg_loss: expected a first derivative, got a request for a second one "
    r"\(create_graph=True, or backward through a gradient\)\. "
    r"Second derivatives are not supported\.$"
)


def given(dtype=torch.float64, shape=SHAPE):
    return make_logits(shape, dtype).requires_grad_(), make_labels(shape)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_loss_passes_gradcheck(option):
    logits, labels = given()
    options = make_options(option, SHAPE)
    assert torch.autograd.gradcheck(
        lambda x: seg_loss.spatial_cross_entropy(x, labels, **options), logits
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_every_normalization_passes_gradcheck(normalization):
    logits, labels = given()
    weight = torch.rand(4)
    assert torch.autograd.gradcheck(
        lambda x: seg_loss.spatial_cross_entropy(x, labels, weight, normalization=normalization),
        logits,
    )


def test_pixel_nll_passes_gradcheck():
    logits, labels = given()
    assert torch.autograd.gradcheck(
        lambda x: seg_loss.pixel_nll(x, labels, temperature=0.7), logits
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_passes_gradcheck(axis):
    logits, _ = given()
    assert torch.autograd.gradcheck(
        lambda x: seg_loss.spatial_softmax(x, axis=axis, temperature=1.3), logits
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["dense", "expanded", "transposed", "row", "signed zeros"])
def test_random_cotangents_reach_every_pixel(kind, dtype):
    shape = (2, 21, 37, 53)
    logits, labels = given(dtype, shape)
    nll = seg_loss.pixel_nll(logits, labels)
    cotangent = torch.randn(nll.shape, generator=seed_of(kind), dtype=nll.dtype)
    if kind == "expanded":
        cotangent = cotangent[:1, :1, :1].expand(nll.shape)
    elif kind == "transposed":
        cotangent = cotangent.mT.contiguous().mT
    elif kind == "row":
        cotangent = cotangent[:, :, :1].expand(nll.shape)
    elif kind == "signed zeros":
        cotangent = torch.zeros_like(nll).copysign(cotangent)
    kept = cotangent.clone()
    (got,) = torch.autograd.grad(nll, logits, cotangent)
    assert torch.equal(cotangent, kept)

    def by_torch(wide):
        x = logits.detach().to(wide).requires_grad_()
        terms = torch.nn.functional.cross_entropy(
            x, labels.long(), ignore_index=255, reduction="none"
        )
        return torch.autograd.grad(terms, x, cotangent.to(wide))[0]

    theirs = by_torch(nll.dtype).to(dtype)
    assert_accurate("gradient", got, by_torch(torch.float64), theirs)
    ignored = got.movedim(1, -1)[labels == 255]
    assert same_bits(ignored, torch.zeros_like(ignored))


def test_nan_in_the_cotangent_of_ignored_pixels_does_not_reach_the_gradient():
    logits, labels = given(torch.float32)
    nll = seg_loss.pixel_nll(logits, labels)
    cotangent = torch.where(labels == 255, torch.nan, 1.0)
    (got,) = torch.autograd.grad(nll, logits, cotangent)
    (plain,) = torch.autograd.grad(seg_loss.pixel_nll(logits, labels).sum(), logits)
    assert same_bits(got, plain)


@pytest.mark.parametrize("factor", [2.5, -1.0, 0.0, 1e-30])
def test_grad_output_multiplies_the_gradient(factor):
    logits, labels = given(torch.float32)
    _, gradient = seg_loss.loss_and_gradient(logits.detach(), labels)
    loss = seg_loss.spatial_cross_entropy(logits, labels)
    (got,) = torch.autograd.grad(loss, logits, torch.tensor(factor))
    assert torch.allclose(got, factor * gradient, rtol=1e-6, atol=0)


def test_grad_output_may_be_expanded():
    logits, labels = given(torch.float32)
    loss = seg_loss.spatial_cross_entropy(logits, labels)
    upstream = torch.tensor([3.0]).expand(7)[2]
    (got,) = torch.autograd.grad(loss, logits, upstream)
    _, gradient = seg_loss.loss_and_gradient(logits.detach(), labels)
    assert torch.allclose(got, 3 * gradient, rtol=1e-6, atol=0)
    (total,) = torch.autograd.grad(
        seg_loss.spatial_cross_entropy(logits, labels).expand(5).sum(), logits
    )
    assert torch.allclose(total, 5 * gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize("function", ["spatial_cross_entropy", "pixel_nll", "spatial_softmax"])
def test_a_retained_graph_gives_the_same_gradient_again(function):
    logits, labels = given(torch.float32)
    result = {
        "spatial_cross_entropy": lambda: seg_loss.spatial_cross_entropy(logits, labels),
        "pixel_nll": lambda: seg_loss.pixel_nll(logits, labels),
        "spatial_softmax": lambda: seg_loss.spatial_softmax(logits).square(),
    }[function]().sum()
    result.backward(retain_graph=True)
    first = logits.grad.clone()
    result.backward()
    assert same_bits(logits.grad, 2 * first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        result.backward()


def test_losses_of_one_tensor_add_their_gradients():
    logits, labels = given()
    both = (
        seg_loss.spatial_cross_entropy(logits, labels) + seg_loss.pixel_nll(logits, labels).mean()
    )
    (got,) = torch.autograd.grad(both, logits)
    parts = [
        torch.autograd.grad(part, logits)[0]
        for part in (
            seg_loss.spatial_cross_entropy(logits, labels),
            seg_loss.pixel_nll(logits, labels).mean(),
        )
    ]
    assert torch.equal(got, parts[0] + parts[1])


DIFFERENTIABLE = {
    "spatial_cross_entropy": seg_loss.spatial_cross_entropy,
    "upsampled_cross_entropy": seg_loss.upsampled_cross_entropy,
    "pixel_nll": seg_loss.pixel_nll,
    "spatial_softmax": lambda x, y: seg_loss.spatial_softmax(x),
}


@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_what_is_saved_is_unpacked_once_so_that_it_can_be_checkpointed(function):
    logits, labels = given(torch.float32)
    call = DIFFERENTIABLE[function]
    (plain,) = torch.autograd.grad(call(logits, labels).sum(), logits)
    again = checkpoint(lambda x: call(x, labels).sum(), logits, use_reentrant=False)
    assert same_bits(torch.autograd.grad(again, logits)[0], plain)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of torch.func.jvp
@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_forward_mode_is_refused_instead_of_telling_zero(function):
    logits, labels = given()
    where = "scores" if function.startswith("upsampled") else "logits"
    message = (
        rf"^{where}: expected a tensor without a tangent, got one of forward-mode "
        r"differentiation \(jvp, jacfwd\)\. Only backward derivatives are supported\.$"
    )

    def call(x):
        return DIFFERENTIABLE[function](x, labels)

    tangent = torch.ones_like(logits)
    with pytest.raises(seg_loss.InvalidInput, match=message):
        torch.func.jvp(call, (logits.detach(),), (tangent,))
    with forward_ad.dual_level():
        call(logits)  # of others at the same time
        with pytest.raises(seg_loss.InvalidInput, match=message):
            call(forward_ad.make_dual(logits.detach(), tangent))


@pytest.mark.parametrize("function", ["spatial_cross_entropy", "pixel_nll", "spatial_softmax"])
def test_a_second_derivative_is_refused_clearly(function):
    logits, labels = given()
    result = {
        "spatial_cross_entropy": lambda: seg_loss.spatial_cross_entropy(logits, labels),
        "pixel_nll": lambda: seg_loss.pixel_nll(logits, labels),
        "spatial_softmax": lambda: seg_loss.spatial_softmax(logits).square(),
    }[function]().sum()
    (gradient,) = torch.autograd.grad(result, logits, create_graph=True)
    with pytest.raises(NotImplementedError, match=SECOND_ORDER):
        gradient.square().sum().backward()


def test_inputs_are_not_modified():
    logits, labels = given(torch.float32)
    class_weight, pixel_weight = torch.rand(4), torch.rand(2, 3, 5)
    tensors = (logits, labels, class_weight, pixel_weight)
    kept = [tensor.detach().clone() for tensor in tensors]
    versions = [tensor._version for tensor in tensors]
    options = {"class_weight": class_weight, "pixel_weight": pixel_weight, "label_smoothing": 0.1}
    seg_loss.spatial_cross_entropy(logits, labels, **options).backward()
    seg_loss.loss_and_gradient(logits.detach(), labels, **options)
    seg_loss.evaluate(logits, labels, **options, maps=("nll", "top_classes"))
    seg_loss.spatial_softmax(logits).sum().backward()
    seg_loss.pixel_nll(logits, labels).sum().backward()
    for tensor, before, version in zip(tensors, kept, versions, strict=True):
        assert same_bits(tensor.detach(), before)
        assert tensor._version == version


def test_no_gradient_is_recorded_where_none_is_wanted():
    logits, labels = given(torch.float32)
    with torch.no_grad():
        assert not seg_loss.spatial_cross_entropy(logits, labels).requires_grad
    with torch.inference_mode():
        assert not seg_loss.spatial_softmax(logits).requires_grad
        seg_loss.loss_and_gradient(logits, labels)
    assert not seg_loss.spatial_cross_entropy(logits.detach(), labels).requires_grad


def test_overwriting_a_tensor_that_autograd_holds_is_noticed():
    # Kernels that write past autograd leave other readers with garbage (Liger, Unsloth).
    leaf, labels = given(torch.float32)
    logits = leaf * 1
    square = logits.square()
    version = logits._version
    seg_loss.loss_and_gradient(logits, labels, out=logits)
    assert logits._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


def test_a_logit_changed_between_forward_and_backward_is_noticed():
    leaf, labels = given(torch.float32)
    logits = leaf * 1
    loss = seg_loss.spatial_cross_entropy(logits, labels)
    logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_that_ask_for_a_gradient_get_none_and_disturb_nothing(dtype, normalization):
    # The loss is differentiable in the logits alone.
    logits, labels = given()
    weight = torch.rand(4, dtype=dtype, requires_grad=True)
    pixels = torch.rand(2, 3, 5, dtype=dtype, requires_grad=True)
    options = {"class_weight": weight, "pixel_weight": pixels, "normalization": normalization}
    seg_loss.spatial_cross_entropy(logits, labels, **options).backward()
    plain = seg_loss.loss_and_gradient(logits.detach(), labels, **options)[1]
    assert same_bits(logits.grad, plain)
    assert weight.grad is None
    assert pixels.grad is None
    seg_loss.evaluate(logits, labels, **options)


# -- torch's own checks of operators -----------------------------------------------------------

WEIGHTS = (torch.rand(4), torch.rand(2, 3, 5))
ONE = torch.ones((), dtype=torch.float64)
OPTIONS_OF_ALL = ([255], 0.1, 2.0, "valid", "raise", [], math.inf, True)
PLAIN = ([255, 0], 0.0, 1.0, "valid", "raise", [], 87.3, True)
# The arguments of an operator: first those that stand for a `LossInputs`.
OPERATORS = {
    # Under tracing, the forward pass of a loss makes no gradient.
    "full_size_cross_entropy": lambda x, y: (x, y, *WEIGHTS, *OPTIONS_OF_ALL, not x.requires_grad),
    "full_size_cross_entropy without weights": lambda x, y: (x, y, None, None, *PLAIN, False),
    "pixel_terms": lambda x, y: (x, y, *WEIGHTS, *OPTIONS_OF_ALL),
    "cross_entropy_gradient": lambda x, y: (x, y, *WEIGHTS, *OPTIONS_OF_ALL, 9 * ONE, 2 * ONE),
    "rescale_gradient_": lambda x, y: (
        x, y, *WEIGHTS, *OPTIONS_OF_ALL, 9 * ONE, 2 * ONE, torch.zeros_like(x),
    ),
    "softmax": lambda x, y: (x, 1, 2.0),
    "softmax_gradient": lambda x, y: (torch.randn(SHAPE), x, 1, 2.0),
}  # fmt: skip


@pytest.mark.parametrize("differentiable", [True, False])
@pytest.mark.parametrize("operator", OPERATORS)
def test_torch_finds_nothing_wrong_with_the_operator(operator, differentiable):
    logits, labels = given(torch.float32)
    if "_gradient" in operator or not differentiable:
        logits = logits.detach()  # no derivative of a derivative
    function = getattr(torch.ops.seg_loss, operator.split()[0])
    torch.library.opcheck(function, OPERATORS[operator](logits, labels))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_torch_finds_nothing_wrong_with_other_dtypes_and_layouts(dtype):
    logits, labels = given(dtype)
    for x in (logits, logits.detach().to(memory_format=torch.channels_last).requires_grad_()):
        arguments = x, labels, None, None, *PLAIN, False
        torch.library.opcheck(torch.ops.seg_loss.full_size_cross_entropy, arguments)
        torch.library.opcheck(torch.ops.seg_loss.softmax, (x, 1, 1.0))


# -- compilation -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("option", ["plain", "everything"])
def test_the_loss_compiles_into_a_full_graph_and_gives_the_same_bits(option):
    torch.compiler.reset()
    options = make_options(option, SHAPE)

    def step(x, y):
        return seg_loss.spatial_cross_entropy(x * 2, y, **options)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for dtype in (torch.float32, torch.bfloat16):
        logits, labels = given(dtype)
        loss = step(logits, labels)
        (gradient,) = torch.autograd.grad(loss, logits)
        again = compiled(logits, labels)
        (same,) = torch.autograd.grad(again, logits)
        assert same_bits(again.detach(), loss.detach())
        assert same_bits(same, gradient)


@pytest.mark.filterwarnings("default")
def test_everything_differentiable_compiles_with_shapes_that_change():
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
        logits, labels = given(torch.float32, shape)
        (plain,) = torch.autograd.grad(step(logits, labels), logits)
        (got,) = torch.autograd.grad(compiled(logits, labels), logits)
        assert torch.allclose(got, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("default")
def test_a_bad_label_is_still_refused_in_a_compiled_program():
    torch.compiler.reset()
    compiled = torch.compile(seg_loss.spatial_cross_entropy, fullgraph=True, backend="aot_eager")
    logits, labels = given(torch.float32)
    labels[0, 0, 0] = 9
    with pytest.raises(seg_loss.InvalidInput, match=r"got 9 at \(0, 0, 0\)"):
        compiled(logits, labels)


@pytest.mark.parametrize("upsampling", [None, Bilinear()], ids=str)
@pytest.mark.parametrize("function", ["evaluate", "out"])
def test_what_is_no_operator_may_be_called_in_a_compiled_program(function, upsampling):
    torch.compiler.reset()
    logits, labels = given(torch.float32)
    logits = logits.detach()

    def step(x):
        scores = (-2 * x)._neg_view()  # whose numbers in memory mean their negatives
        if function == "evaluate":
            found = seg_loss.evaluate(scores, labels, upsampling=upsampling)
            return x.sum() + found.loss
        out = torch.empty_like(x)
        loss, _ = seg_loss.loss_and_gradient(scores, labels, upsampling=upsampling, out=out)
        return out * 3 + loss

    assert same_bits(torch.compile(step, backend="aot_eager")(logits), step(logits))


# -- mixed precision ---------------------------------------------------------------------------


def test_under_autocast_the_loss_of_bfloat16_scores_is_float32():
    layer = torch.nn.Conv2d(3, 4, 1)
    image, labels = torch.randn(2, 3, 3, 5), make_labels(SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = layer(image)
        loss = seg_loss.spatial_cross_entropy(scores, labels)
        softmax = seg_loss.spatial_softmax(scores)
    assert scores.dtype == torch.bfloat16
    assert softmax.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert torch.equal(loss, seg_loss.spatial_cross_entropy(scores, labels))
    loss.backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.any()


def test_a_scale_of_the_loss_reaches_float16_gradients_before_they_are_rounded():
    # What GradScaler does: without the scale these gradients are below float16's normal numbers.
    logits = torch.zeros(1, 2, 1000, 1000, dtype=torch.float16, requires_grad=True)
    labels = torch.zeros(1, 1000, 1000, dtype=torch.uint8)
    scale = 2.0**16
    (scale * seg_loss.spatial_cross_entropy(logits, labels)).backward()
    exact = torch.tensor(0.5e-6 * scale, dtype=torch.float64).to(torch.float16)
    assert (logits.grad[:, 0] == -exact).all()
    assert (logits.grad[:, 1] == exact).all()
