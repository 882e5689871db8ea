"""The meaning of each option: as in torch where torch has it, otherwise by the formula."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

import seg_loss
from seg_loss import Deconvolution, InvalidInput, SpatialCrossEntropy, metrics, reference
from seg_loss._inputs import LossOptions
from seg_loss.compat import torch as compat
from seg_loss.compat.caffe import SoftmaxWithLoss
from tests.support.cases import (
    NORMALIZATIONS,
    UPSAMPLINGS,
    Case,
    assert_accurate,
    evaluation_of,
    loss_and_gradient_of,
    loss_of,
    make_inputs,
    make_labels,
    make_logits,
    same_bits,
    torch_loss,
    torch_loss_and_gradient,
    true_logits,
    true_loss_and_gradient,
)

PLAIN = Case((3, 5, 11, 13), "odd planes")
CASES = {**UPSAMPLINGS, "plain": PLAIN}


@pytest.fixture(params=["plain", "bilinear", "aligned", "deconvolution"])
def case(request):
    return CASES[request.param]


@pytest.fixture
def inputs(case):
    """Scores, labels and upsampling; one of the images has no valid pixel."""
    scores, labels, upsampling = make_inputs(case)
    labels[1] = 255
    return scores, labels, upsampling


@pytest.fixture
def logits():
    return make_logits(PLAIN.shape)


@pytest.fixture
def class_weight():
    return torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0])


@pytest.fixture
def pixel_weight(inputs):
    _, labels, _ = inputs
    return torch.rand(labels.shape)


def assert_close(got, truth, rel=5e-7):
    assert float(got) == pytest.approx(float(truth), rel=rel)


def assert_same_bits(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert same_bits(a, b)


# -- normalization -----------------------------------------------------------------------------


def test_the_default_is_torchs_unweighted_mean(inputs):
    _, labels, _ = inputs
    truth = F.cross_entropy(true_logits(*inputs), labels.long(), ignore_index=255)
    assert_close(loss_of(*inputs), truth)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_weight_is_torchs_weighted_mean_and_none_is_torchs_sum(
    inputs, class_weight, weighted, smoothing
):
    _, labels, _ = inputs
    weight = class_weight if weighted else None
    for normalization, reduction in (("weight", "mean"), ("none", "sum")):
        got = loss_of(
            *inputs, class_weight=weight, label_smoothing=smoothing, normalization=normalization
        )
        truth = F.cross_entropy(
            true_logits(*inputs),
            labels.long(),
            weight.double() if weighted else None,
            ignore_index=255,
            label_smoothing=smoothing,
            reduction=reduction,
        )
        assert_close(got, truth)


def test_each_normalization_divides_the_same_sum(inputs, class_weight, pixel_weight):
    _, labels, _ = inputs
    valid = labels != 255
    weights = pixel_weight[valid].double() * class_weight[labels[valid].long()].double()
    divisors = {
        "valid": int(valid.sum()),
        "full": labels.numel(),
        "batch": len(labels),
        "none": 1,
        "weight": float(weights.sum()),
    }
    terms, _ = reference.pixel_terms(
        true_logits(*inputs), labels, class_weight, pixel_weight=pixel_weight
    )
    for normalization in NORMALIZATIONS:
        options = {"class_weight": class_weight, "pixel_weight": pixel_weight}
        got = loss_of(*inputs, **options, normalization=normalization)
        assert_close(got, terms.sum() / divisors[normalization])


def test_valid_counts_pixels_regardless_of_weights(inputs):
    weight = torch.full((5,), 7.0)
    expected = loss_of(*inputs)
    assert_close(loss_of(*inputs, class_weight=weight), 7 * expected)
    assert_close(loss_of(*inputs, class_weight=weight, normalization="weight"), expected)


def test_weight_without_weights_is_valid(inputs):
    assert torch.equal(loss_of(*inputs, normalization="weight"), loss_of(*inputs))


def test_weights_that_sum_to_less_than_one_are_not_raised_to_one(inputs):
    # Only counts are raised to at least 1.
    weight = torch.full((5,), 1e-6)
    assert_close(loss_of(*inputs, class_weight=weight, normalization="weight"), loss_of(*inputs))


def test_weights_of_zero_give_a_loss_of_zero(inputs):
    scores, labels, upsampling = inputs
    scores.requires_grad_()
    options = {"class_weight": torch.zeros(5), "normalization": "weight"}
    loss = loss_of(scores, labels, upsampling, **options)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not scores.grad.any()
    loss, gradient = loss_and_gradient_of(scores.detach(), labels, upsampling, **options)
    assert float(loss) == 0
    assert not gradient.any()


# -- weights -----------------------------------------------------------------------------------


def test_pixel_weight_multiplies_each_pixels_term(inputs, pixel_weight):
    scores, labels, upsampling = inputs
    logits = scores if upsampling is None else true_logits(*inputs)
    nll = seg_loss.pixel_nll(logits, labels)
    got = loss_of(*inputs, pixel_weight=pixel_weight, normalization="none")
    assert_close(got, (nll.double() * pixel_weight).sum())


def test_pixel_weights_of_ignored_pixels_are_not_read(inputs, pixel_weight):
    _, labels, _ = inputs
    with_nan = torch.where(labels == 255, torch.nan, pixel_weight)
    for normalization in NORMALIZATIONS:
        got, expected = (
            loss_and_gradient_of(*inputs, pixel_weight=weight, normalization=normalization)
            for weight in (with_nan, pixel_weight)
        )
        assert_same_bits(got, expected)


# -- temperature, ignored labels, smoothing ----------------------------------------------------


@pytest.mark.parametrize("temperature", [0.25, 0.7, 1, 3.0, 100.0])
def test_temperature_divides_the_logits_and_the_gradient(inputs, temperature):
    scores, labels, upsampling = inputs
    options = {"temperature": temperature, "upsampling": upsampling}
    loss, gradient = seg_loss.loss_and_gradient(scores, labels, **options)
    truth, true_gradient = true_loss_and_gradient(scores, labels, **options)
    _, torch_gradient = torch_loss_and_gradient(scores, labels, **options)
    by_torch = torch_loss(scores, labels, **options)
    scale = float(scores.abs().max()) / temperature
    assert_accurate("loss", loss, truth, by_torch, scale=scale)
    assert_accurate("gradient", gradient, true_gradient, torch_gradient)


@pytest.mark.parametrize("classes", [(2, 4), (0, 4)], ids=str)
def test_several_ignored_labels_are_a_set(inputs, classes):
    scores, labels, upsampling = inputs
    a, b = classes
    merged = torch.where((labels == a) | (labels == b), 255, labels)
    expected = loss_and_gradient_of(scores, merged, upsampling)
    for ignored in ((255, a, b), [b, a, 255], (a, b, a, 255, 1000, -7)):
        assert_same_bits(loss_and_gradient_of(*inputs, ignore_index=ignored), expected)


def test_no_label_need_be_ignored(case):
    inputs = make_inputs(case, ignored=0.0)
    assert torch.equal(loss_of(*inputs, ignore_index=()), loss_of(*inputs))


def test_smoothing_does_not_count_ignored_pixels(logits):
    # pytorch/pytorch#73205
    labels = make_labels(PLAIN.shape, ignored=0.0)
    half = labels.clone()
    half[:, ::2] = 255
    got = seg_loss.spatial_cross_entropy(logits, half, label_smoothing=0.3)
    alone = seg_loss.spatial_cross_entropy(logits[:, :, 1::2], labels[:, 1::2], label_smoothing=0.3)
    assert_close(got, alone)


def test_class_weights_apply_to_the_smoothing_of_all_classes():
    # pytorch/pytorch#104776. By hand: p = (3/4, 1/4), weights (1, 2), e = 1/2.
    logits = torch.tensor([[math.log(3.0), 0.0]])
    nll = -math.log(0.75), -math.log(0.25)
    truth = 0.5 * 1 * nll[0] + 0.5 / 2 * (1 * nll[0] + 2 * nll[1])
    got = seg_loss.spatial_cross_entropy(
        logits, torch.tensor([0]), torch.tensor([1.0, 2.0]), label_smoothing=0.5
    )
    assert_close(got, truth)


# -- together ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("name", ["plain", "bilinear"])
def test_all_options_combine(name, normalization, dtype, class_weight):
    scores, labels, upsampling = make_inputs(CASES[name], dtype)
    labels[1] = 255
    for weight, pixel_weight, smoothing, temperature, ignored in itertools.product(
        (None, class_weight),
        (None, torch.rand(labels.shape)),
        (0.0, 0.2),
        (1.0, 1.7),
        (255, (255, 3)),
    ):
        options = {
            "class_weight": weight,
            "pixel_weight": pixel_weight,
            "label_smoothing": smoothing,
            "temperature": temperature,
            "ignore_index": ignored,
            "normalization": normalization,
            "upsampling": upsampling,
        }
        loss, gradient = seg_loss.loss_and_gradient(scores, labels, **options)
        truth, true_gradient = true_loss_and_gradient(scores, labels, **options)
        by_torch, torch_gradient = torch_loss_and_gradient(scores, labels, **options)
        assert_accurate(f"loss with {options}", loss, truth, by_torch)
        assert_accurate(f"gradient with {options}", gradient, true_gradient, torch_gradient)


def module_of(class_weight, upsampling, **options):
    if upsampling is None:
        return seg_loss.SpatialCrossEntropy(class_weight, **options)
    return seg_loss.UpsampledCrossEntropy(class_weight, upsampling=upsampling, **options)


def test_the_module_keeps_the_options_of_the_function(inputs, class_weight, pixel_weight):
    scores, labels, upsampling = inputs
    labels[0, 0, 0] = 200  # neither a class nor ignored
    options = {"ignore_index": (255, 1), "label_smoothing": 0.1, "temperature": 2.0,
               "normalization": "batch", "check_labels": "ignore"}  # fmt: skip
    module = module_of(class_weight, upsampling, **options)
    options |= {"class_weight": class_weight, "pixel_weight": pixel_weight}
    assert same_bits(module(scores, labels, pixel_weight=pixel_weight), loss_of(*inputs, **options))
    assert list(module.state_dict()) == ["class_weight"]
    assert isinstance(module, seg_loss.SpatialCrossEntropy)


def test_the_module_has_the_defaults_of_the_function(case):
    scores, labels, upsampling = make_inputs(case)
    module = module_of(None, upsampling)
    assert torch.equal(module(scores, labels), loss_of(scores, labels, upsampling))


def test_the_module_shows_its_options(class_weight):
    options = {"ignore_index": (255, 1), "label_smoothing": 0.1, "temperature": 2.0,
               "normalization": "batch"}  # fmt: skip
    assert repr(seg_loss.SpatialCrossEntropy(class_weight, **options)) == (
        "SpatialCrossEntropy(ignore_index=(255, 1), label_smoothing=0.1, temperature=2.0, "
        "normalization='batch', check_labels='raise')"
    )


def test_every_optional_argument_accepts_its_default(inputs):
    # qubvel-org/segmentation_models.pytorch#372: a default that cannot work.
    defaults = {"class_weight": None, "pixel_weight": None, "ignore_index": 255,
                "label_smoothing": 0.0, "temperature": 1.0, "normalization": "valid"}  # fmt: skip
    expected = loss_of(*inputs)
    assert torch.equal(loss_of(*inputs, **defaults), expected)
    assert torch.equal(loss_and_gradient_of(*inputs, **defaults, out=None)[0], expected)
    assert evaluation_of(*inputs, **defaults, maps=()).loss == pytest.approx(
        float(expected), rel=1e-7
    )


def test_pickled_options_are_equal_to_new_ones():
    options = LossOptions((255, 1), 0.1, 2.0, "batch", "defer", seg_loss.Bilinear())
    # Another process gives the strings of the options other hashes.
    object.__setattr__(options, "_hash", hash(options) + 1)
    module = SpatialCrossEntropy()
    module.options = options
    for restored in (
        pickle.loads(pickle.dumps(options)),
        copy.deepcopy(options),
        pickle.loads(pickle.dumps(module)).options,
    ):
        new = LossOptions((255, 1), 0.1, 2.0, "batch", "defer", seg_loss.Bilinear())
        assert {restored: True} == {new: True}


# -- numbers of NumPy and torch ----------------------------------------------------------------

IN_EACH_FORM = {
    "NumPy scalars": (np.int16, np.float32),
    "NumPy arrays without axes": (lambda number: np.array(number, np.uint8), np.array),
    "tensors without axes": (torch.tensor, lambda number: torch.tensor(number).double()),
}


@pytest.mark.parametrize("form", IN_EACH_FORM)
def test_options_may_be_numbers_of_numpy_and_torch(case, inputs, form):
    scores, labels, upsampling = inputs
    integer, number = IN_EACH_FORM[form]
    expected = {"ignore_index": (255, 1), "label_smoothing": 0.25, "temperature": 0.5}
    options = {
        "ignore_index": (integer(255 if form != "NumPy scalars" else -1), integer(1), 255),
        "label_smoothing": number(0.25),
        "temperature": number(0.5),
    }
    got = loss_and_gradient_of(scores, labels, upsampling, **options)
    for mine, usual in zip(
        got, loss_and_gradient_of(scores, labels, upsampling, **expected), strict=True
    ):
        assert same_bits(mine, usual)
    for ignored in (integer(1), [integer(1)], np.array([1]), torch.tensor([1])):
        labels[labels == 255] = 1
        got = loss_of(scores, labels, upsampling, ignore_index=ignored)
        assert torch.equal(got, loss_of(scores, labels, upsampling, ignore_index=1))


@pytest.mark.parametrize("form", IN_EACH_FORM)
def test_axes_strides_and_crops_may_be_numbers_of_numpy_and_torch(logits, form):
    integer, number = IN_EACH_FORM[form]
    got = seg_loss.spatial_softmax(logits, axis=integer(2), temperature=number(0.5))
    assert torch.equal(got, seg_loss.spatial_softmax(logits, axis=2, temperature=0.5))
    got = Deconvolution(integer(4), integer(6), (integer(1), integer(2)))
    assert got == Deconvolution(4, 6, (1, 2))
    assert {type(value) for value in (got.stride, got.kernel_size, *got.crop)} == {int}


@pytest.mark.parametrize("form", IN_EACH_FORM)
def test_other_numbers_may_be_those_of_numpy_and_torch(logits, form):
    integer, number = IN_EACH_FORM[form]
    labels = make_labels(PLAIN.shape)
    labels[labels == 255] = 1
    got = metrics.confusion_matrix(labels, labels, integer(5), ignore_index=integer(1))
    assert torch.equal(got, metrics.confusion_matrix(labels, labels, 5, ignore_index=1))
    bilinear = seg_loss.Bilinear()
    got = seg_loss.scratch_bytes(logits, (integer(22), integer(26)), upsampling=bilinear)
    assert got == seg_loss.scratch_bytes(logits, (22, 26), upsampling=bilinear)
    layer = SoftmaxWithLoss(integer(1), axis=integer(1), loss_weight=number(2.0))
    got, expected = layer(logits, labels), SoftmaxWithLoss(1, loss_weight=2.0)(logits, labels)
    assert same_bits(got, expected)


@pytest.mark.parametrize("form", IN_EACH_FORM)
def test_numbers_of_numpy_and_torch_can_be_compiled(logits, form):
    integer, number = IN_EACH_FORM[form]
    labels = make_labels(PLAIN.shape, ignored=0.0)
    # Of numbers that a program finds, torch's compiler knows the values of 64 bits alone.
    found = {"NumPy scalars": np.int64(1), "tensors without axes": torch.tensor(1)}
    found = found.get(form, np.array(1))

    def losses(x):
        return (
            seg_loss.spatial_cross_entropy(x, labels, ignore_index=integer(1)),
            seg_loss.spatial_cross_entropy(x, labels, ignore_index=found),
            seg_loss.pixel_nll(x, labels, ignore_index=(integer(1), 3)),
            compat.cross_entropy(x, labels, ignore_index=integer(1)),
            seg_loss.spatial_softmax(x, axis=integer(1), temperature=number(0.5)),
        )

    compiled = torch.compile(losses, backend="eager", fullgraph=True)
    for got, expected in zip(compiled(logits), losses(logits), strict=True):
        assert same_bits(got, expected)


def test_a_tensor_as_option_is_read_at_each_call(logits):
    labels, temperature = make_labels(PLAIN.shape), torch.tensor(0.5)
    before = seg_loss.spatial_cross_entropy(logits, labels, temperature=temperature)
    temperature.fill_(2.0)
    after = seg_loss.spatial_cross_entropy(logits, labels, temperature=temperature)
    assert torch.equal(before, seg_loss.spatial_cross_entropy(logits, labels, temperature=0.5))
    assert torch.equal(after, seg_loss.spatial_cross_entropy(logits, labels, temperature=2.0))


@pytest.mark.parametrize("form", [bool, np.bool_, torch.tensor])
def test_a_bool_is_no_number(logits, form):
    labels = make_labels(PLAIN.shape)
    for option in ("ignore_index", "label_smoothing", "temperature"):
        with pytest.raises(InvalidInput, match=rf"^{option}: expected .*, got True\.$"):
            seg_loss.spatial_cross_entropy(logits, labels, **{option: form(True)})
    with pytest.raises(InvalidInput, match=r"^axis: expected .*, got True\.$"):
        seg_loss.spatial_softmax(logits, axis=form(True))
    with pytest.raises(InvalidInput, match=r"^stride: expected .*, got True\.$"):
        Deconvolution(form(True))
