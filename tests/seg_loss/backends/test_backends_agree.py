"""The GPU kernels against the CPU kernels, over all combinations of options, with edge values.

Neither is the truth: `test_backend_grid.py` compares both with float64. Here they must also agree
on infinities and NaN.
"""

import itertools
import math

import pytest
import torch

from seg_loss import Bilinear, Deconvolution
from tests.support.backends import IS_INTERPRETED, numba_kernels
from tests.support.cases import (
    FLOATS,
    NORMALIZATIONS,
    Case,
    evaluation_of,
    loss_of,
    make_inputs,
    seed_of,
)

CASES = {
    "plain": Case((2, 3, 2, 3), "logits"),
    "bilinear": Case((2, 3, 2, 2), "scores", (3, 3), Bilinear()),
}
GRAD_OUTPUTS = (1.0, 0.0, -1.0, math.inf, math.nan)
HUGE = 3e38


def combinations():
    """Yields a name and the options that it stands for, of every combination of options."""
    switches = ("class_weight", "pixel_weight", "label_smoothing", "temperature", "ignore_index")
    for chosen in itertools.product((False, True), repeat=len(switches)):
        names = [name for name, is_on in zip(switches, chosen, strict=True) if is_on]
        yield "+".join(names) or "no option", names


COMBINATIONS = dict(combinations())
# A device would compile for minutes: each combination is a kernel of its own.
DIVISORS = NORMALIZATIONS if IS_INTERPRETED else ("valid", "weight")


def options_of(names, case):
    values = {
        "class_weight": torch.rand(case.shape[1], generator=seed_of("class")) + 0.5,
        "pixel_weight": torch.rand(case.shape[0], *case.full_shape[2:], generator=seed_of("pixel")),
        "label_smoothing": 0.2,
        "temperature": 1.7,
        "ignore_index": (255, 1),
    }
    return {name: values[name] for name in names}


def results_of(scores, labels, upsampling, options, place, grad_outputs):
    """Returns the loss, and the gradient for each `grad_output`, on the CPU."""
    x = place(scores).requires_grad_()
    options = {
        name: place(value) if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
    }
    loss = loss_of(x, place(labels), upsampling, **options)
    gradients = [
        torch.autograd.grad(loss, x, loss.new_tensor(value), retain_graph=True)[0].cpu()
        for value in grad_outputs
    ]
    return loss.detach().cpu(), gradients


def second_derivative_of(scores, labels, upsampling, options, place):
    """Returns the second derivative of the loss along a vector, on the CPU."""
    x = place(scores).requires_grad_()
    options = {
        name: place(value) if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
    }
    loss = loss_of(x, place(labels), upsampling, **options)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    return torch.autograd.grad(gradient, x, place(scores.flip(1).sign()))[0].cpu()


def assert_agree(name, got, expected):
    """Asserts that NaN and infinities are at the same elements, and the others are close."""
    message = f"{name}: {got} and {expected}"
    assert torch.equal(got.isnan(), expected.isnan()), message
    infinite = expected.isinf()
    assert torch.equal(got.isinf(), infinite), message
    assert torch.equal(got[infinite], expected[infinite]), message
    finite = expected.isfinite()
    a, b = got[finite].double(), expected[finite].double()
    if a.numel():
        allowed = 8 * torch.finfo(got.dtype).eps * float(b.abs().max())
        assert float((a - b).abs().max()) <= allowed, message


def check(gpu_kernels, scores, labels, upsampling, options, grad_outputs=GRAD_OUTPUTS):
    got = results_of(scores, labels, upsampling, options, gpu_kernels.place, grad_outputs)
    with numba_kernels():
        expected = results_of(scores, labels, upsampling, options, torch.Tensor.clone, grad_outputs)
    assert_agree("loss", got[0], expected[0])
    for value, ours, theirs in zip(grad_outputs, got[1], expected[1], strict=True):
        if math.isinf(value) and options.get("label_smoothing"):
            # Smoothing subtracts, and whether inf - inf arises depends on the order of operations.
            ours, theirs = (x.where(x.isfinite(), math.nan) for x in (ours, theirs))
        assert_agree(f"gradient for grad_output {value}", ours, theirs)


@pytest.mark.parametrize("normalization", DIVISORS)
@pytest.mark.parametrize("combination", [*COMBINATIONS][:: 1 if IS_INTERPRETED else 8])
@pytest.mark.parametrize("name", CASES)
def test_all_options_combine(gpu_kernels, name, combination, normalization):
    case, names = CASES[name], COMBINATIONS[combination]
    index = [*COMBINATIONS].index(combination) + NORMALIZATIONS.index(normalization)
    scores, labels, upsampling = make_inputs(case, FLOATS[index % len(FLOATS)])
    labels[0, 0, 0] = 255
    options = {**options_of(names, case), "normalization": normalization}
    # The edge values rotate: each is a launch, and the interpreter is slow.
    edges = (0.0, math.inf, math.nan)
    grad_outputs = (1.0, -1.0, edges[index % len(edges)])
    check(gpu_kernels, scores, labels, upsampling, options, grad_outputs)


@pytest.mark.parametrize("combination", [*COMBINATIONS][:: 3 if IS_INTERPRETED else 10])
@pytest.mark.parametrize("name", CASES)
def test_second_derivatives(gpu_kernels, name, combination):
    case, names = CASES[name], COMBINATIONS[combination]
    index = [*COMBINATIONS].index(combination)
    scores, labels, upsampling = make_inputs(case, FLOATS[index % len(FLOATS)])
    labels[0, 0, 0] = 255
    options = options_of(names, case)
    options["normalization"] = NORMALIZATIONS[index % len(NORMALIZATIONS)]
    inputs = scores, labels, upsampling, options
    got = second_derivative_of(*inputs, gpu_kernels.place)
    with numba_kernels():
        expected = second_derivative_of(*inputs, torch.Tensor.clone)
    assert_agree("second derivative", got, expected)


@pytest.mark.parametrize("normalization", DIVISORS)
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", CASES)
def test_without_valid_pixels(gpu_kernels, name, smoothing, is_weighted, normalization):
    case = CASES[name]
    scores, labels, upsampling = make_inputs(case)
    labels[:] = 255
    names = ("class_weight", "pixel_weight") if is_weighted else ()
    options = {**options_of(names, case), "label_smoothing": smoothing}
    options["normalization"] = normalization
    check(gpu_kernels, scores, labels, upsampling, options)


@pytest.mark.parametrize("normalization", DIVISORS)
@pytest.mark.parametrize("zero", ["class_weight", "pixel_weight", "both"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", CASES)
def test_weights_of_zero(gpu_kernels, name, smoothing, zero, normalization):
    case = CASES[name]
    scores, labels, upsampling = make_inputs(case)
    names = ("class_weight", "pixel_weight") if zero == "both" else (zero,)
    options = {key: torch.zeros_like(value) for key, value in options_of(names, case).items()}
    options |= {"label_smoothing": smoothing, "normalization": normalization}
    check(gpu_kernels, scores, labels, upsampling, options)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, HUGE])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    "case",
    [*CASES.values(), Case((2, 3, 2, 2), "gaps", (5, 5), Deconvolution(3, 2))],
    ids=[*CASES, "gaps"],
)
def test_non_finite_and_huge_scores(gpu_kernels, case, smoothing, value):
    scores, labels, upsampling = make_inputs(case)
    labels[0, 0, 0] = 255
    if upsampling is not None and value == HUGE:
        value /= 3  # the GPU's exponents are in base 2, and overflow at 2.4e38
    scores[:, 1, 0, 0] = value
    options = {"label_smoothing": smoothing}
    check(gpu_kernels, scores, labels, upsampling, options, GRAD_OUTPUTS[:3])


@pytest.mark.parametrize("normalization", DIVISORS)
@pytest.mark.parametrize("combination", [*COMBINATIONS][:: 5 if IS_INTERPRETED else 10])
@pytest.mark.parametrize("name", CASES)
def test_evaluations(gpu_kernels, name, combination, normalization):
    case = CASES[name]
    scores, labels, upsampling = make_inputs(case)
    options = {**options_of(COMBINATIONS[combination], case), "normalization": normalization}
    here = gpu_kernels.place_options(options)
    got = evaluation_of(gpu_kernels.place(scores), gpu_kernels.place(labels), upsampling, **here)
    with numba_kernels():
        expected = evaluation_of(scores, labels, upsampling, **options)
    assert got.loss == pytest.approx(expected.loss, rel=1e-5)
    assert got.divisor == pytest.approx(expected.divisor, rel=1e-12)
    assert got.valid_pixels == expected.valid_pixels
    assert torch.equal(got.confusion, expected.confusion)
    assert got.diagnosis.state == expected.diagnosis.state
