"""Derivatives above the first, forward mode, and the transforms of torch.func."""

import math

import pytest
import torch
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.autograd.functional import hessian, hvp, jvp, vhp
from torch.export import Dim

import seg_loss
from seg_loss import Bilinear, Deconvolution, InvalidInput, reference
from seg_loss.compat import caffe
from tests.support.cases import (
    ALIGNED,
    NORMALIZATIONS,
    Case,
    loss_and_gradient_of,
    loss_of,
    make_inputs,
    make_options,
    same_bits,
    seed_of,
)

# Small, because gradgradcheck calls the gradient twice for each score.
CASES = {
    "plain": Case((2, 4, 3, 2), "logits"),
    "bilinear": Case((2, 4, 3, 2), "up", (7, 5), Bilinear()),
    "aligned": Case((1, 4, 3, 2), "corners aligned", (7, 5), ALIGNED),
    "down": Case((1, 4, 5, 4), "down", (3, 2), Bilinear()),
    "deconvolution": Case((1, 4, 3, 3), "cropped", (5, 4), Deconvolution(3, crop=(2, 3))),
}
EACH_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
SOME_CASES = pytest.mark.parametrize(
    "case", [CASES["plain"], CASES["bilinear"]], ids=["plain", "bilinear"]
)
FUNCTIONS = {
    "spatial_cross_entropy": seg_loss.spatial_cross_entropy,
    "upsampled_cross_entropy": seg_loss.upsampled_cross_entropy,
    "pixel_nll": seg_loss.pixel_nll,
    "spatial_softmax": lambda x, y: seg_loss.spatial_softmax(x).square(),
}
OTHER_FUNCTIONS = {
    "pixel_nll": lambda x, y: seg_loss.pixel_nll(x, y, temperature=0.7),
    "spatial_softmax": lambda x, y: seg_loss.spatial_softmax(x, temperature=1.3),
    "spatial_softmax of rows": lambda x, y: seg_loss.spatial_softmax(x, axis=-1),
}
pytestmark = [
    pytest.mark.filterwarnings(line)
    for line in (
        "ignore:.torch.jit.script:DeprecationWarning",  # of torch.func.jvp
        "ignore:Attempted to insert a get_attr Node",  # of torch.func.linearize
        "ignore:There is a performance drop",  # torch calls operators for each element of a batch
    )
]


def true_loss(scores, labels, upsampling, **options):
    """Returns the loss of `reference`, which torch differentiates."""
    if upsampling is not None:
        scores = reference.upsample(scores, tuple(labels.shape[1:]), upsampling)
    return reference.spatial_cross_entropy(scores, labels, **options)


def functions_of(case, option="everything", dtype=torch.float64):
    """Returns scores, and the loss and the true loss as functions of scores."""
    scores, labels, upsampling = make_inputs(case, dtype)
    options = make_options(option, case.full_shape)
    return (
        scores,
        lambda x: loss_of(x, labels, upsampling, **options),
        lambda x: true_loss(x, labels, upsampling, **options),
    )


def vector_like(x, name="v"):
    return torch.randn(x.shape, generator=seed_of(name), dtype=x.dtype)


# -- against finite differences and float64 --------------------------------------------------------


CHECKED = [(name, "everything") for name in CASES] + [
    ("plain", option) for option in ("plain", "class_weight", "label_smoothing")
]


@pytest.mark.parametrize(("name", "option"), CHECKED)
def test_all_derivatives_pass_torchs_checks(name, option):
    scores, loss, _ = functions_of(CASES[name], option)
    x = scores.requires_grad_()
    assert torch.autograd.gradcheck(
        loss, x, check_batched_grad=True, check_forward_ad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(loss, x, check_batched_grad=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("function", OTHER_FUNCTIONS)
def test_all_derivatives_of_other_functions_pass_torchs_checks(function):
    scores, labels, _ = make_inputs(CASES["plain"], torch.float64)

    def call(x):
        return OTHER_FUNCTIONS[function](x, labels)

    x = scores.requires_grad_()
    assert torch.autograd.gradcheck(
        call, x, check_batched_grad=True, check_forward_ad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(call, x, check_batched_grad=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@SOME_CASES
def test_second_derivatives_have_every_normalization(case, normalization):
    scores, labels, upsampling = make_inputs(case, torch.float64)
    options = make_options("everything", case.full_shape) | {"normalization": normalization}
    got = torch.func.hessian(lambda x: loss_of(x, labels, upsampling, **options))(scores)
    truth = torch.func.hessian(lambda x: true_loss(x, labels, upsampling, **options))(scores)
    torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-13)


def third_derivative(f, v):
    def along(f):
        return lambda x: (torch.func.grad(f)(x) * v).sum()

    return torch.func.grad(along(along(f)))


# From a function and a vector to a function of scores.
TRANSFORMS = {
    "grad": lambda f, v: torch.func.grad(f),
    "vjp": lambda f, v: lambda x: torch.func.vjp(f, x)[1](v.sum())[0],
    "jvp": lambda f, v: lambda x: torch.func.jvp(f, (x,), (v,))[1],
    "forward over reverse": lambda f, v: torch.func.jacfwd(torch.func.jacrev(f)),
    "reverse over forward": lambda f, v: torch.func.jacrev(torch.func.jacfwd(f)),
    "reverse over reverse": lambda f, v: torch.func.jacrev(torch.func.jacrev(f)),
    "forward over forward": lambda f, v: torch.func.jacfwd(torch.func.jacfwd(f)),
    "third": third_derivative,
    "vmap": lambda f, v: lambda x: torch.func.vmap(f)(torch.stack([x, 2 * x])),
    "vmap of grad": lambda f, v: (
        lambda x: torch.func.vmap(torch.func.grad(f), in_dims=1)(torch.stack([x, 2 * x], dim=1))
    ),
    "vmap of hessian": lambda f, v: lambda x: torch.func.vmap(torch.func.hessian(f))(x[None]),
    "functional hvp": lambda f, v: lambda x: hvp(f, x, v)[1],
    "functional vhp": lambda f, v: lambda x: vhp(f, x, v)[1],
    "functional jvp": lambda f, v: lambda x: jvp(f, x, v)[1],
    "functional hessian": lambda f, v: lambda x: hessian(f, x, vectorize=True),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@EACH_CASE
def test_transforms_give_the_derivatives_of_float64(case, transform):
    scores, loss, truth = functions_of(case)
    v = vector_like(scores)
    got = TRANSFORMS[transform](loss, v)(scores)
    torch.testing.assert_close(got, TRANSFORMS[transform](truth, v)(scores), rtol=1e-9, atol=1e-12)


@EACH_CASE
def test_the_loss_may_be_linearized(case):
    scores, loss, _ = functions_of(case)
    v = vector_like(scores)
    got = torch.func.linearize(loss, scores)[1](v)
    torch.testing.assert_close(got, torch.func.jvp(loss, (scores,), (v,))[1])


@EACH_CASE
def test_a_hessian_may_be_batched_in_forward_mode(case):
    scores, loss, truth = functions_of(case)
    got = hessian(loss, scores, vectorize=True, outer_jacobian_strategy="forward-mode")
    torch.testing.assert_close(got, hessian(truth, scores), rtol=1e-9, atol=1e-12)


def test_vmap_takes_batches_of_labels_and_weights():
    scores, labels, _ = make_inputs(CASES["plain"], torch.float64)
    batch = torch.stack([labels, labels.flip(0), labels.roll(1, 2)])
    weights = torch.rand(3, *labels.shape, generator=seed_of("weights"), dtype=torch.float64)

    def gradient(y, pixel_weight):
        def loss(x):
            return seg_loss.spatial_cross_entropy(x, y, pixel_weight=pixel_weight)

        return torch.func.grad(loss)(scores)

    got = torch.func.vmap(gradient)(batch, weights)
    for index in range(3):
        expected = gradient(batch[index], weights[index])
        torch.testing.assert_close(got[index], expected, rtol=1e-12, atol=1e-15)


@SOME_CASES
def test_vmap_takes_the_loss_with_its_gradient(case):
    scores, labels, upsampling = make_inputs(case)
    batch = torch.stack([scores, -scores])
    losses, gradients = torch.func.vmap(lambda x: loss_and_gradient_of(x, labels, upsampling))(
        batch
    )
    for index in range(2):
        loss, gradient = loss_and_gradient_of(batch[index], labels, upsampling)
        assert same_bits(losses[index], loss)
        assert same_bits(gradients[index], gradient)


def test_per_sample_gradients_of_a_model():
    # torch.func.functional_call, vmap and grad, as torch's tutorial has it.
    model = torch.nn.Conv2d(3, 4, 1)
    images = torch.randn(5, 3, 6, 7, generator=seed_of("images"))
    labels = torch.randint(0, 4, (5, 6, 7), generator=seed_of("labels"))
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters, image, label):
        logits = torch.func.functional_call(model, parameters, (image[None],))
        return seg_loss.spatial_cross_entropy(logits, label[None])

    got = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)
    for index in range(5):
        model.zero_grad()
        seg_loss.spatial_cross_entropy(model(images[index, None]), labels[index, None]).backward()
        torch.testing.assert_close(got["weight"][index], model.weight.grad)


@pytest.mark.parametrize("function", ["spatial_cross_entropy", "pixel_nll", "spatial_softmax"])
def test_a_batch_may_be_empty(function):
    scores, labels, _ = make_inputs(CASES["plain"])
    call = FUNCTIONS[function]
    expected = call(scores, labels)
    got = torch.func.vmap(call)(scores.new_zeros(0, *scores.shape), labels.expand(0, *labels.shape))
    assert got.shape == (0, *expected.shape)
    assert got.dtype == expected.dtype


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_may_be_functionalized(function):
    scores, labels, _ = make_inputs(CASES["plain"])
    call = FUNCTIONS[function]
    assert same_bits(torch.func.functionalize(call)(scores, labels), call(scores, labels))


def test_the_loss_of_probabilities_may_be_functionalized():
    scores, labels, _ = make_inputs(CASES["plain"])
    probabilities, call = scores.softmax(1), seg_loss.probability_cross_entropy
    expected = call(probabilities, labels)
    assert same_bits(torch.func.functionalize(call)(probabilities, labels), expected)


@SOME_CASES
def test_the_loss_with_its_gradient_has_no_derivative(case):
    scores, labels, upsampling = make_inputs(case)

    def call(x):
        return loss_and_gradient_of(x, labels, upsampling)

    results, tangents = torch.func.jvp(call, (scores,), (vector_like(scores),))
    assert same_bits(results[0], call(scores)[0])
    assert not tangents[0].any()
    assert not tangents[1].any()


@pytest.mark.parametrize("transform", ["grad", "jvp", "forward over reverse", "vmap"])
@SOME_CASES
def test_a_deferred_error_is_raised_by_no_derivative(case, transform):
    scores, labels, upsampling = make_inputs(case)
    labels[0, 1, 1] = 9

    def loss(x):
        return loss_of(x, labels, upsampling, check_labels="defer")

    TRANSFORMS[transform](loss, vector_like(scores))(scores)
    with pytest.raises(InvalidInput, match=r"got 9 at \(0, 1, 1\)"):
        seg_loss.check()
    for _ in range(transform == "vmap"):  # the second example
        with pytest.raises(InvalidInput, match=r"got 9 at \(0, 1, 1\)"):
            seg_loss.check()
    seg_loss.check()


# -- autograd ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["spatial_cross_entropy", "pixel_nll", "spatial_softmax"])
def test_a_batch_of_gradients_has_a_graph(function):
    scores, labels, _ = make_inputs(CASES["plain"], torch.float64)
    x = scores.requires_grad_()
    result = FUNCTIONS[function](x, labels)
    v = vector_like(torch.empty(2, *result.shape, dtype=torch.float64))
    (batch,) = torch.autograd.grad(
        result, x, v, is_grads_batched=True, create_graph=True, retain_graph=True
    )
    (got,) = torch.autograd.grad(batch.square().sum(), x, retain_graph=True)
    parts = [torch.autograd.grad(result, x, row, create_graph=True)[0] for row in v]
    (expected,) = torch.autograd.grad(sum(part.square().sum() for part in parts), x)
    torch.testing.assert_close(got, expected)


@EACH_CASE
def test_a_batch_of_gradients_of_the_loss_has_a_graph(case):
    scores, loss, truth = functions_of(case)
    got = hessian(loss, scores.requires_grad_(), vectorize=True, create_graph=True)
    expected = hessian(truth, scores, create_graph=True)
    torch.testing.assert_close(
        torch.autograd.grad(got.square().sum(), scores)[0],
        torch.autograd.grad(expected.square().sum(), scores)[0],
        rtol=1e-9,
        atol=1e-12,
    )


@EACH_CASE
def test_a_gradient_with_a_graph_has_the_same_bits(case):
    scores, labels, upsampling = make_inputs(case)
    x = scores.clone().requires_grad_()
    loss = loss_of(x, labels, upsampling)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    assert gradient.requires_grad
    assert same_bits(gradient.detach(), loss_and_gradient_of(scores, labels, upsampling)[1])


@EACH_CASE
def test_grad_output_has_a_derivative(case):
    scores, loss, _ = functions_of(case)
    x, factor = scores.requires_grad_(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(x), x, factor, create_graph=True)
    v = vector_like(scores)
    (got,) = torch.autograd.grad((gradient * v).sum(), factor)
    (unit,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(got, (unit * v).sum())


def test_a_gradient_penalty_trains():
    # double backward through a network, as for gradient penalties
    layer = torch.nn.Conv2d(3, 4, 1)
    image = torch.randn(1, 3, 5, 6, generator=seed_of("image"), requires_grad=True)
    labels = torch.randint(0, 4, (1, 5, 6), generator=seed_of("labels"))

    def penalty(loss_function):
        (gradient,) = torch.autograd.grad(
            loss_function(layer(image), labels), image, create_graph=True
        )
        return torch.autograd.grad(gradient.square().sum(), layer.weight)[0]

    got = penalty(seg_loss.spatial_cross_entropy)
    torch.testing.assert_close(got, penalty(torch.nn.functional.cross_entropy))


def test_forward_mode_outside_torch_func():
    scores, labels, _ = make_inputs(CASES["plain"], torch.float64)
    v = vector_like(scores)
    _, gradient = seg_loss.loss_and_gradient(scores, labels)
    with forward_ad.dual_level():
        assert (
            forward_ad.unpack_dual(seg_loss.spatial_cross_entropy(scores, labels)).tangent is None
        )
        loss = seg_loss.spatial_cross_entropy(forward_ad.make_dual(scores, v), labels)
        tangent = forward_ad.unpack_dual(loss).tangent
    torch.testing.assert_close(tangent, (gradient * v).sum())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@SOME_CASES
def test_logits_of_ignored_pixels_reach_no_derivative(case, value):
    scores, labels, upsampling = make_inputs(case)
    labels[0] = 255
    changed = scores.clone()
    changed[0] = value
    results = []
    for x in (scores, changed):
        x = x.requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(x, labels, upsampling), x, create_graph=True)
        results.append(torch.autograd.grad(gradient, x, vector_like(x))[0])
    assert same_bits(*results)
    assert same_bits(results[1][0], torch.zeros_like(results[1][0]))


@SOME_CASES
def test_an_invalid_label_raises_inside_a_transform(case):
    scores, labels, upsampling = make_inputs(case)
    labels[0, 1, 1] = 9
    with pytest.raises(InvalidInput, match=r"got 9 at \(0, 1, 1\)"):
        torch.func.grad(lambda x: loss_of(x, labels, upsampling))(scores)


# -- compiled and exported programs ----------------------------------------------------------------


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_backward_pass_may_be_compiled(function):
    torch.compiler.reset()
    scores, labels, _ = make_inputs(CASES["plain"])

    def gradient():
        x = scores.detach().requires_grad_()
        FUNCTIONS[function](x, labels).mul(3).sum().backward()
        return x.grad

    expected = gradient()
    with compiled_autograd._enable(lambda graph: torch.compile(graph, backend="eager")):
        got = gradient()
    torch.testing.assert_close(got, expected)


MINUS_INFINITY = {
    "Caffe's bound": (caffe.SoftmaxWithLoss(), [[[0.0, -math.inf], [0, 0]]], [[1, 0]]),
    "a class of weight 0": (
        lambda x, y: seg_loss.spatial_cross_entropy(
            x, y, torch.tensor([1.0, 1, 0]), label_smoothing=0.1
        ),
        [[[0.0], [1], [-math.inf]]],
        [[0]],
    ),
    "upsampled scores": (
        seg_loss.upsampled_cross_entropy,
        [[[[500.0, 500], [500, 500]], [[0, 0], [0, 0]], [[-math.inf] * 2] * 2]],
        [[[0] * 4] * 4],
    ),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", MINUS_INFINITY)
def test_a_logit_of_minus_infinity_in_a_compiled_transform(name):
    torch.compiler.reset()
    loss, logits, labels = MINUS_INFINITY[name]
    logits, labels = torch.tensor(logits), torch.tensor(labels)

    def call(x):
        return torch.func.grad_and_value(lambda x: loss(x, labels))(x)[1]

    torch.testing.assert_close(torch.compile(call, backend="eager")(logits), call(logits))


COMPILED = [
    (name, transform)
    for name in ("plain", "bilinear", "deconvolution")
    for transform in ("grad", "jvp", "vmap of grad")
] + [("plain", "forward over reverse")]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("name", "transform"), COMPILED)
def test_transforms_compile_into_a_full_graph(name, transform):
    torch.compiler.reset()
    scores, loss, truth = functions_of(CASES[name])
    v = vector_like(scores)
    compiled = torch.compile(TRANSFORMS[transform](loss, v), fullgraph=True, backend="eager")
    expected = TRANSFORMS[transform](truth, v)(scores)
    torch.testing.assert_close(compiled(scores), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("function", ["pixel_nll", "spatial_softmax"])
def test_transforms_of_other_functions_compile(function):
    torch.compiler.reset()
    scores, labels, _ = make_inputs(CASES["plain"], torch.float64)

    def gradient(x):
        return torch.func.grad(lambda x: OTHER_FUNCTIONS[function](x, labels).square().sum())(x)

    compiled = torch.compile(gradient, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(scores), gradient(scores), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("default")
@SOME_CASES
def test_a_second_derivative_through_a_compiled_program(case):
    # Inductor and aot_eager have none; the program itself is differentiable twice.
    torch.compiler.reset()
    scores, loss, _ = functions_of(case)
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="eager")):
        x = scores.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(x), x, create_graph=True)
        results.append(torch.autograd.grad(gradient, x, vector_like(x))[0])
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("function", ["spatial_cross_entropy", "pixel_nll"])
def test_an_invalid_label_raises_in_a_compiled_transform(function):
    torch.compiler.reset()
    scores, labels, _ = make_inputs(CASES["plain"])
    labels[0, 1, 1] = 9

    def gradient(x):
        return torch.func.grad(lambda x: FUNCTIONS[function](x, labels).sum())(x)

    with pytest.raises(InvalidInput, match=r"got 9 at \(0, 1, 1\)"):
        torch.compile(gradient, fullgraph=True, backend="aot_eager")(scores)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("upsampling", "strict"),
    [(Bilinear(), True), (ALIGNED, False), (Deconvolution(8, crop=4), False)],
    ids=str,
)
def test_an_exported_program_keeps_all_sizes_dynamic(upsampling, strict):
    module = seg_loss.UpsampledCrossEntropy(upsampling=upsampling)
    labels = torch.zeros(2, 44, 50, dtype=torch.uint8)
    n = Dim("n")
    shapes = {
        "logits": {0: n, 1: Dim("c"), 2: Dim("h"), 3: Dim("w")},
        "labels": {0: n, 1: Dim("H"), 2: Dim("W")},
    }
    program = torch.export.export(
        module, (torch.randn(2, 5, 6, 7), labels), dynamic_shapes=shapes, strict=strict
    ).module()
    for shape, size in (((1, 4, 4, 9), (30, 70)), ((3, 5, 2, 2), (9, 9))):
        scores, labels, _ = make_inputs(Case(shape, "", size, upsampling))
        assert same_bits(program(scores, labels), module(scores, labels))
    if isinstance(upsampling, Deconvolution):
        with pytest.raises(InvalidInput, match="what upsampling leaves"):
            program(torch.randn(1, 3, 2, 2), torch.zeros(1, 90, 9, dtype=torch.uint8))
