"""What each option means, alone and together: as in torch where it has it, else by the formula."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from cases import (
    NORMALIZATIONS,
    assert_accurate,
    make_labels,
    make_logits,
    torch_loss,
    torch_loss_and_gradient,
)

import seg_loss
from seg_loss import reference

SHAPE = (3, 5, 11, 13)


@pytest.fixture
def logits():
    return make_logits(SHAPE)


@pytest.fixture
def labels():
    labels = make_labels(SHAPE)
    labels[1] = 255  # images with different numbers of valid pixels, one with none
    return labels


@pytest.fixture
def class_weight():
    return torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0])


@pytest.fixture
def pixel_weight():
    return torch.rand(3, 11, 13)


def close(got, truth, rel=5e-7):
    assert float(got) == pytest.approx(float(truth), rel=rel)


def test_the_default_is_torchs_unweighted_mean(logits, labels):
    close(
        seg_loss.spatial_cross_entropy(logits, labels),
        F.cross_entropy(logits.double(), labels.long(), ignore_index=255),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_weight_is_torchs_weighted_mean_and_none_is_torchs_sum(
    logits, labels, class_weight, weighted, smoothing
):
    weight = class_weight if weighted else None
    for normalization, reduction in (("weight", "mean"), ("none", "sum")):
        got = seg_loss.spatial_cross_entropy(
            logits, labels, weight, label_smoothing=smoothing, normalization=normalization
        )
        truth = F.cross_entropy(
            logits.double(),
            labels.long(),
            weight.double() if weighted else None,
            ignore_index=255,
            label_smoothing=smoothing,
            reduction=reduction,
        )
        close(got, truth)


def test_each_normalization_divides_the_same_sum(logits, labels, class_weight, pixel_weight):
    valid = labels != 255
    weights = pixel_weight[valid].double() * class_weight[labels[valid].long()].double()
    divisors = {
        "valid": int(valid.sum()),
        "full": labels.numel(),
        "batch": 3,
        "none": 1,
        "weight": float(weights.sum()),
    }
    terms, _ = reference.pixel_terms(logits, labels, class_weight, pixel_weight=pixel_weight)
    for normalization in NORMALIZATIONS:
        got = seg_loss.spatial_cross_entropy(
            logits, labels, class_weight, pixel_weight=pixel_weight, normalization=normalization
        )
        close(got, terms.sum() / divisors[normalization])


def test_valid_counts_pixels_whatever_their_weights(logits, labels):
    weight = torch.full((5,), 7.0)
    plain = seg_loss.spatial_cross_entropy(logits, labels)
    close(seg_loss.spatial_cross_entropy(logits, labels, weight), 7 * plain)
    close(seg_loss.spatial_cross_entropy(logits, labels, weight, normalization="weight"), plain)


def test_weight_without_weights_is_valid(logits, labels):
    assert torch.equal(
        seg_loss.spatial_cross_entropy(logits, labels, normalization="weight"),
        seg_loss.spatial_cross_entropy(logits, labels),
    )


def test_weights_that_sum_to_less_than_one_are_not_raised_to_one(logits, labels):
    # The floor of 1 is one of counts.
    weight = torch.full((5,), 1e-6)
    close(
        seg_loss.spatial_cross_entropy(logits, labels, weight, normalization="weight"),
        seg_loss.spatial_cross_entropy(logits, labels),
    )


def test_weights_of_zero_give_a_loss_of_zero(logits, labels):
    logits.requires_grad_()
    loss = seg_loss.spatial_cross_entropy(logits, labels, torch.zeros(5), normalization="weight")
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def test_pixel_weight_multiplies_each_pixels_term(logits, labels, pixel_weight):
    nll = seg_loss.pixel_nll(logits, labels)
    got = seg_loss.spatial_cross_entropy(
        logits, labels, pixel_weight=pixel_weight, normalization="none"
    )
    close(got, (nll.double() * pixel_weight).sum())


def test_pixel_weight_of_ignored_pixels_is_not_read_even_if_nan(logits, labels, pixel_weight):
    spoilt = torch.where(labels == 255, torch.nan, pixel_weight)
    for normalization in NORMALIZATIONS:
        given, expected = (
            seg_loss.loss_and_gradient(
                logits, labels, pixel_weight=weight, normalization=normalization
            )
            for weight in (spoilt, pixel_weight)
        )
        assert torch.equal(given[0], expected[0])
        assert torch.equal(given[1], expected[1])


@pytest.mark.parametrize("temperature", [0.25, 0.7, 1, 3.0, 100.0])
def test_temperature_divides_the_logits_and_the_gradient(logits, labels, temperature):
    loss, gradient = seg_loss.loss_and_gradient(logits, labels, temperature=temperature)
    truth, true_gradient = reference.loss_and_gradient(logits, labels, temperature=temperature)
    _, by_torch = torch_loss_and_gradient(logits, labels, temperature=temperature)
    scale = float(logits.abs().max()) / temperature
    assert_accurate("loss", loss, truth, torch_loss(logits, labels, temperature=temperature),
                    scale=scale)  # fmt: skip
    assert_accurate("gradient", gradient, true_gradient, by_torch)


def test_several_ignore_labels_are_one_set(logits, labels):
    merged = torch.where((labels == 2) | (labels == 4), 255, labels)
    for given in ((255, 2, 4), [4, 2, 255], (2, 4, 2, 255, 1000, -7)):
        got = seg_loss.loss_and_gradient(logits, labels, ignore_index=given)
        expected = seg_loss.loss_and_gradient(logits, merged)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


def test_no_ignore_label_at_all(logits):
    labels = make_labels(SHAPE, ignored=0.0)
    assert torch.equal(
        seg_loss.spatial_cross_entropy(logits, labels, ignore_index=()),
        seg_loss.spatial_cross_entropy(logits, labels),
    )


def test_smoothing_does_not_count_ignored_pixels(logits):
    # pytorch/pytorch#73205
    labels = make_labels(SHAPE, ignored=0.0)
    half = labels.clone()
    half[:, ::2] = 255
    got = seg_loss.spatial_cross_entropy(logits, half, label_smoothing=0.3)
    alone = seg_loss.spatial_cross_entropy(logits[:, :, 1::2], labels[:, 1::2], label_smoothing=0.3)
    close(got, alone)


def test_class_weights_enter_the_smoothing_of_all_classes_as_in_torch():
    # pytorch/pytorch#104776. By hand: p = (3/4, 1/4), weights (1, 2), e = 1/2.
    logits = torch.tensor([[math.log(3.0), 0.0]])
    nll = -math.log(0.75), -math.log(0.25)
    truth = 0.5 * 1 * nll[0] + 0.5 / 2 * (1 * nll[0] + 2 * nll[1])
    got = seg_loss.spatial_cross_entropy(
        logits, torch.tensor([0]), torch.tensor([1.0, 2.0]), label_smoothing=0.5
    )
    close(got, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_all_options_compose(labels, class_weight, pixel_weight, normalization, dtype):
    logits = make_logits(SHAPE, dtype)
    for weighted, weighing, smoothing, temperature, ignored in itertools.product(
        (None, class_weight), (None, pixel_weight), (0.0, 0.2), (1.0, 1.7), (255, (255, 3))
    ):
        options = {
            "class_weight": weighted,
            "pixel_weight": weighing,
            "label_smoothing": smoothing,
            "temperature": temperature,
            "ignore_index": ignored,
            "normalization": normalization,
        }
        loss, gradient = seg_loss.loss_and_gradient(logits, labels, **options)
        truth, true_gradient = reference.loss_and_gradient(logits, labels, **options)
        by_torch, torch_gradient = torch_loss_and_gradient(logits, labels, **options)
        assert_accurate(f"loss with {options}", loss, truth, by_torch)
        assert_accurate(f"gradient with {options}", gradient, true_gradient, torch_gradient)


def test_weights_may_be_of_another_dtype_than_the_logits(logits, labels):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        weight = torch.tensor([0.5, 2.0, 0.25, 1.0, 3.0]).to(dtype)
        pixels = torch.full((3, 11, 13), 0.5, dtype=dtype)
        assert torch.equal(
            seg_loss.spatial_cross_entropy(logits, labels, weight, pixel_weight=pixels),
            seg_loss.spatial_cross_entropy(
                logits, labels, weight.float(), pixel_weight=pixels.float()
            ),
        )


def test_pixel_weight_may_have_an_axis_of_one_class(logits, labels, pixel_weight):
    assert torch.equal(
        seg_loss.spatial_cross_entropy(logits, labels, pixel_weight=pixel_weight[:, None]),
        seg_loss.spatial_cross_entropy(logits, labels, pixel_weight=pixel_weight),
    )


def test_the_module_is_the_function_with_its_options_kept(
    logits, labels, class_weight, pixel_weight
):
    options = {"ignore_index": (255, 1), "label_smoothing": 0.1, "temperature": 2.0,
               "normalization": "batch"}  # fmt: skip
    module = seg_loss.SpatialCrossEntropy(class_weight, **options)
    assert torch.equal(
        module(logits, labels, pixel_weight=pixel_weight),
        seg_loss.spatial_cross_entropy(
            logits, labels, class_weight, pixel_weight=pixel_weight, **options
        ),
    )
    assert module.state_dict()["class_weight"] is not None
    assert repr(module) == (
        "SpatialCrossEntropy(ignore_index=(255, 1), label_smoothing=0.1, temperature=2.0, "
        "normalization='batch', check_labels='raise')"
    )
    assert torch.equal(seg_loss.SpatialCrossEntropy()(logits, labels),
                       seg_loss.spatial_cross_entropy(logits, labels))  # fmt: skip


def test_every_optional_argument_may_be_left_out_or_given_its_default(logits, labels):
    # qubvel-org/segmentation_models.pytorch#372: a default that cannot work.
    defaults = {"class_weight": None, "pixel_weight": None, "ignore_index": 255,
                "label_smoothing": 0.0, "temperature": 1.0, "normalization": "valid"}  # fmt: skip
    plain = seg_loss.spatial_cross_entropy(logits, labels)
    assert torch.equal(seg_loss.spatial_cross_entropy(logits, labels, **defaults), plain)
    assert torch.equal(seg_loss.loss_and_gradient(logits, labels, **defaults, out=None)[0], plain)
    assert seg_loss.evaluate(logits, labels, **defaults, maps=()).loss == pytest.approx(
        float(plain), rel=1e-7
    )
