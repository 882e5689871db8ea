"""The cross entropy of given probabilities: values, gradients, and what is refused."""

import math
import re

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.nn.functional import nll_loss, one_hot

import seg_loss
from seg_loss import InvalidInput, probability_cross_entropy, reference
from seg_loss.constants import MAPS
from tests.support.cases import (
    FLOATS,
    LABEL_DTYPES,
    LAYOUTS,
    NORMALIZATIONS,
    assert_accurate,
    is_positive_zero,
    make_labels,
    make_logits,
    make_options,
)

SHAPE = (2, 7, 9, 11)
PROBABILITIES = {"scores": "probabilities"}


def make_probabilities(shape=SHAPE, dtype=torch.float32):
    return make_logits(shape).softmax(dim=1).to(dtype)


def weights_of(name):
    """Returns the options that probabilities have, of an option set of the other tests."""
    without = ("label_smoothing", "temperature")
    return {k: v for k, v in make_options(name, SHAPE).items() if k not in without}


def true_loss_and_gradient(probabilities, labels, **options):
    return reference.loss_and_gradient(probabilities, labels, **PROBABILITIES, **options)


def torch_loss_and_gradient(probabilities, labels, **options):
    x = probabilities.detach().requires_grad_()
    log_p = x.contiguous().float().log()
    loss = nll_loss(log_p, labels.long(), ignore_index=255)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_loss_and_gradient_are_as_accurate_as_torchs(dtype, layout):
    probabilities = LAYOUTS[layout](make_probabilities(dtype=dtype))
    labels = make_labels(SHAPE)
    x = probabilities.detach().requires_grad_()
    loss = probability_cross_entropy(x, labels)
    (gradient,) = torch.autograd.grad(loss, x)
    truth, true_gradient = true_loss_and_gradient(probabilities, labels)
    by_torch, torch_gradient = torch_loss_and_gradient(probabilities, labels)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    assert_accurate("loss", loss, truth, by_torch)
    assert_accurate("gradient", gradient, true_gradient, torch_gradient)
    hot = one_hot(torch.where(labels == 255, 0, labels).long(), 7).movedim(-1, 1).bool()
    assert is_positive_zero(gradient[~hot])
    assert is_positive_zero(gradient.movedim(1, -1)[labels == 255])
    got, same = seg_loss.loss_and_gradient(probabilities, labels, **PROBABILITIES)
    assert torch.equal(got, loss.detach())
    assert torch.equal(same, gradient)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("option", ["plain", "everything"])
def test_options_are_those_of_the_loss_of_logits(option, normalization):
    probabilities, labels = make_probabilities(), make_labels(SHAPE)
    options = {**weights_of(option), "normalization": normalization}
    truth, true_gradient = true_loss_and_gradient(probabilities, labels, **options)
    out = torch.empty_like(probabilities)
    loss, gradient = seg_loss.loss_and_gradient(
        probabilities, labels, **PROBABILITIES, **options, out=out
    )
    assert gradient is out
    assert float(loss) == pytest.approx(float(truth), rel=1e-6)
    assert torch.allclose(gradient.double(), true_gradient, rtol=1e-6, atol=0)
    # The loss of the logits ln p is the same.
    of_logits = seg_loss.spatial_cross_entropy(probabilities.log(), labels, **options)
    assert float(loss) == pytest.approx(float(of_logits), rel=1e-5)
    evaluation = seg_loss.evaluate(probabilities, labels, **PROBABILITIES, **options)
    assert evaluation.loss == pytest.approx(float(truth), rel=1e-6)
    wide = probability_cross_entropy(probabilities.double(), labels, **options)
    assert float(wide) == pytest.approx(float(truth), rel=1e-14)


@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
def test_labels_may_have_any_integer_dtype(dtype):
    probabilities, labels = make_probabilities(), make_labels(SHAPE)
    ignore_index = 255 if dtype == torch.uint8 else 100
    labels = torch.where(labels == 255, ignore_index, labels.int()).to(dtype)
    expected = true_loss_and_gradient(probabilities, labels, ignore_index=ignore_index)[0]
    for y in (labels, labels[:, None]):
        loss = probability_cross_entropy(probabilities, y, ignore_index=ignore_index)
        assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_every_derivative_is_that_of_the_definition():
    labels = make_labels((2, 3, 4))
    logits = make_logits((2, 3, 4), torch.float64).requires_grad_()

    def loss(x):
        return probability_cross_entropy(x.softmax(dim=1), labels, pixel_weight=weight)

    weight = torch.rand(2, 4)
    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)
    # Through the softmax the gradient is that of the loss of the logits.
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    expected = seg_loss.loss_and_gradient(logits.detach(), labels, pixel_weight=weight)[1]
    assert torch.allclose(gradient, expected, rtol=1e-12, atol=1e-15)


def compiled(function):
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def loss_of_one(probabilities, labels):
    """Returns the loss of one image."""
    weight = torch.arange(1.0, 8)
    return probability_cross_entropy(probabilities[None], labels[None], weight)


def gradient_of_one(probabilities, labels):
    weight = torch.arange(1.0, 8)
    tensors = probabilities[None], labels[None], weight
    return seg_loss.loss_and_gradient(*tensors, **PROBABILITIES)[1][0]


def values_and_gradients(function):
    """Returns the results of a function of one image for each of them."""
    return lambda p, y: torch.stack([function(*one) for one in zip(p, y, strict=True)])


def in_inference_mode(p, y):
    with torch.inference_mode():
        return seg_loss.loss_and_gradient(p, y, **PROBABILITIES)[1]


def to_a_leaf(p, y):
    leaf = p.clone().requires_grad_()
    return seg_loss.loss_and_gradient(leaf, y, **PROBABILITIES, out=leaf)[1].detach()


def exported(p, y):
    class Loss(torch.nn.Module):
        def forward(self, p, y):
            return probability_cross_entropy(p, y)

    return torch.export.export(Loss(), (p, y)).module()(p, y)


def gradient(p, y):
    return seg_loss.loss_and_gradient(p, y, **PROBABILITIES)[1]


def along_ones(p, y):
    return gradient(p, y).sum()


# Each has a function of probabilities and labels, and one with the same result in eager mode.
CONTEXTS = {
    "inference mode": (in_inference_mode, gradient),
    "out is a leaf": (to_a_leaf, gradient),
    "vmap": (vmap(loss_of_one), values_and_gradients(loss_of_one)),
    "vmap over the labels": (
        lambda p, y: vmap(loss_of_one, (None, 0))(p[0], y),
        lambda p, y: values_and_gradients(loss_of_one)(p[:1].expand_as(p), y),
    ),
    "vmap of loss_and_gradient": (vmap(gradient_of_one), values_and_gradients(gradient_of_one)),
    "its vmap over the labels": (
        lambda p, y: vmap(gradient_of_one, (None, 0))(p[0], y),
        lambda p, y: values_and_gradients(gradient_of_one)(p[:1].expand_as(p), y),
    ),
    "grad": (grad(probability_cross_entropy), gradient),
    "vmap of grad": (vmap(grad(loss_of_one)), values_and_gradients(gradient_of_one)),
    "jvp": (
        lambda p, y: jvp(lambda p: probability_cross_entropy(p, y), (p,), (torch.ones_like(p),))[1],
        along_ones,
    ),
    "grad of loss_and_gradient": (
        grad(lambda p, y: seg_loss.loss_and_gradient(p, y, **PROBABILITIES)[0]),
        lambda p, y: torch.zeros_like(p),
    ),
    "compile": (compiled(probability_cross_entropy), probability_cross_entropy),
    "compile loss_and_gradient": (compiled(gradient), gradient),
    "compile grad": (compiled(grad(probability_cross_entropy)), gradient),
    "export": (exported, probability_cross_entropy),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of torch.func.jvp
@pytest.mark.parametrize("context", CONTEXTS)
def test_probabilities_work_wherever_logits_do(context):
    call, in_eager_mode = CONTEXTS[context]
    probabilities, labels = make_probabilities(), make_labels(SHAPE)
    got, expected = call(probabilities, labels), in_eager_mode(probabilities, labels)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    # All values are checked there.
    if "grad of" in context:
        return
    labels[0, 3, 4] = 0
    invalid_probabilities, invalid_labels = probabilities.clone(), labels.clone()
    invalid_probabilities[0, 2, 3, 4] = invalid_labels[0, 3, 4] = 9
    with pytest.raises(InvalidInput, match=r"^(probabilities|logits): expected probabilities from"):
        call(invalid_probabilities, labels)
    with pytest.raises(InvalidInput, match=r"^labels: "):
        call(probabilities, invalid_labels)


def test_a_compiled_loss_has_its_gradient():
    probabilities, labels = make_probabilities().requires_grad_(), make_labels(SHAPE)
    loss = compiled(probability_cross_entropy)(probabilities, labels)
    (got,) = torch.autograd.grad(loss, probabilities)
    assert torch.equal(got, gradient(probabilities, labels))


def test_a_probability_of_zero_is_an_infinite_loss():
    probabilities = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).requires_grad_()
    labels = torch.tensor([0, 1])
    loss = probability_cross_entropy(probabilities, labels)
    assert loss.item() == math.inf == nll_loss(probabilities.log(), labels).item()
    (gradient,) = torch.autograd.grad(loss, probabilities)
    assert gradient.tolist() == [[-math.inf, 0], [0, -1]]
    evaluation = seg_loss.evaluate(probabilities, labels, **PROBABILITIES)
    assert evaluation.loss == math.inf
    assert evaluation.diagnosis.state == "saturated"
    # Of another class it does no harm.
    assert probability_cross_entropy(probabilities, torch.tensor([1, 1])).item() < 0.35


def test_without_valid_pixels_loss_and_gradient_are_zero():
    probabilities = torch.full((1, 2, 3), math.nan).requires_grad_()
    loss = probability_cross_entropy(probabilities, torch.full((1, 3), 255))
    (gradient,) = torch.autograd.grad(loss, probabilities)
    assert loss.item() == 0
    assert is_positive_zero(gradient)
    empty = torch.zeros(0, 2, 3).requires_grad_()
    assert probability_cross_entropy(empty, torch.zeros(0, 3, dtype=torch.uint8)).item() == 0


@pytest.mark.parametrize("num_classes", [2, 21, 150, 1000, 3000, 4096])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_output_of_a_softmax_is_accepted(dtype, num_classes):
    logits = make_logits((1, num_classes, 2, 6))
    logits *= torch.tensor([0, 0.01, 1, 5, 20, 300])
    labels = torch.zeros(1, 2, 6, dtype=torch.uint8)
    for x in (logits, logits.contiguous(memory_format=torch.channels_last)):
        for probabilities in (
            x.to(dtype).softmax(dim=1),
            x.softmax(dim=1).to(dtype),
            seg_loss.spatial_softmax(x.to(dtype)),
        ):
            probability_cross_entropy(probabilities, labels)


# -- what is refused ---------------------------------------------------------------------------

FIX = " Are these logits? Then pass scores=logits; in Python, use spatial_cross_entropy."
RANGE = "expected probabilities from 0 to 1 at valid pixels, got "
SUM = "expected probabilities with a sum of 1 at valid pixels, got "


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({(0, 2, 1): -0.25}, RANGE + "-0.25 at (0, 2, 1)."),
        ({(1, 1, 0): 1.5, (1, 2, 2): 2}, RANGE + "1.5 at (1, 1, 0) and 1 more pixel."),
        ({(0, 1, 2): math.nan, (0, 2, 2): -1}, RANGE + "nan at (0, 1, 2)."),
        ({(0, 0, 0): math.inf}, RANGE + "inf at (0, 0, 0)."),
        ({(1, 0, 1): 0.3, (1, 0, 2): 0.3}, SUM + "a sum of 0.8 at (1, 1) and 1 more pixel."),
        ({(0, 0, 3): 0.501}, SUM + "a sum of 1.001 at (0, 3)."),
        ({(1, 0, 3): -5, (1, 1, 3): math.nan}, None),  # an ignored pixel
        ({(0, 0, 3): 0.5001}, None),  # rounding
    ],
    ids=["negative", "above 1", "nan", "inf", "sums", "nearly 1", "ignored", "rounded"],
)
def test_values_that_are_no_probabilities_are_refused(values, message):
    probabilities = torch.tensor([0.5, 0.25, 0.25])[None, :, None].repeat(2, 1, 4)
    labels = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 255]])
    for index, value in values.items():
        probabilities[index] = value
    if message is None:
        assert math.isfinite(probability_cross_entropy(probabilities, labels))
        return
    with pytest.raises(InvalidInput, match=f"^{re.escape('probabilities: ' + message + FIX)}$"):
        probability_cross_entropy(probabilities, labels)
    for function in (seg_loss.loss_and_gradient, seg_loss.evaluate):
        with pytest.raises(InvalidInput, match=f"^{re.escape('logits: ' + message + FIX)}$"):
            function(probabilities, labels, **PROBABILITIES)
    probability_cross_entropy(probabilities, labels, check_labels="ignore")
    probability_cross_entropy(probabilities, labels, check_labels="defer")
    with pytest.raises(InvalidInput, match=r"^probabilities: "):
        seg_loss.check()


@pytest.mark.parametrize(
    "name", ["label", "void", "pixel_weight", "class_weight", "shape", "dtype"]
)
def test_other_errors_are_those_of_the_loss_of_logits(name):
    probabilities, labels, options = make_probabilities(), make_labels(SHAPE), {}
    if name in ("label", "void"):
        labels[0, 1, 2] = labels[1, 3, 4] = 9 if name == "label" else 7
    elif name == "pixel_weight":
        labels[1, 2] = 1
        options = {"pixel_weight": torch.ones(2, 9, 11)}
        options["pixel_weight"][1, 2, 3] = -1
    elif name == "class_weight":
        options = {"class_weight": torch.tensor([1, 1, math.nan, 1, 1, 1, 1])}
    elif name == "shape":
        labels = labels[:, :5]
    else:
        labels = labels.float()
    with pytest.raises(InvalidInput) as expected:
        seg_loss.spatial_cross_entropy(probabilities, labels, **options)
    with pytest.raises(InvalidInput) as got:
        probability_cross_entropy(probabilities, labels, **options)
    assert str(got.value) == str(expected.value).replace("logits", "probabilities")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 2.0}, "temperature: expected 1.0 with scores=probabilities, got 2.0."),
        ({"label_smoothing": 0.1}, "label_smoothing: expected 0.0 with scores=probabilities, got"),
        ({"upsampling": seg_loss.Bilinear()}, "upsampling: expected none with scores=probabil"),
        ({"scores": "logit"}, "scores: expected one of logits, probabilities, got 'logit'."),
    ],
    ids=["temperature", "label_smoothing", "upsampling", "scores"],
)
def test_options_without_a_meaning_for_probabilities_are_refused(options, message):
    for function in (seg_loss.loss_and_gradient, seg_loss.evaluate):
        with pytest.raises(InvalidInput, match="^" + re.escape(message)):
            function(make_probabilities(), make_labels(SHAPE), **{**PROBABILITIES, **options})


# -- evaluate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_evaluate_returns_what_it_returns_for_the_logits(dtype):
    probabilities, labels = make_probabilities(dtype=dtype), make_labels(SHAPE)
    got = seg_loss.evaluate(probabilities, labels, **PROBABILITIES, maps=MAPS)
    expected = seg_loss.evaluate(probabilities.double().log(), labels, maps=MAPS)
    truth = true_loss_and_gradient(probabilities, labels)[0]
    assert got.loss == pytest.approx(float(truth), rel=1e-6)
    assert torch.equal(got.confusion, expected.confusion)
    assert got.metrics == expected.metrics
    assert torch.equal(got.maps["prediction"].long(), probabilities.argmax(dim=1))
    close = 2 * torch.finfo(dtype).eps  # the logits' loss divides by the sum
    for name in ("nll", "confidence", "entropy", "top_probabilities"):
        assert torch.allclose(got.maps[name], expected.maps[name], rtol=close, atol=close + 1e-6)
    for image, true_image in zip(got.per_image, expected.per_image, strict=True):
        assert image.valid_pixels == true_image.valid_pixels
        assert image.loss == pytest.approx(true_image.loss, rel=close + 1e-6)
    for c, (row, true_row) in enumerate(zip(got.per_class, expected.per_class, strict=True)):
        assert row.pixels == true_row.pixels == int((labels == c).sum())
        assert row.mean_nll == pytest.approx(true_row.mean_nll, rel=close + 1e-6)
    assert got.diagnosis.state == expected.diagnosis.state
