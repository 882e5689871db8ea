"""The loss of a step: its divisor over micro-batches, the fused head, weights, mixed precision."""

import copy
import dataclasses

import pytest
import torch
from training_data import NUM_CLASSES, tiny_network

import seg_loss
from app.training.distributed import Ranks
from app.training.objective import Objective, amp_dtype
from app.training.recipes import RECIPES
from models.fcn import FCN8s
from models.wrap import ScoreNetwork
from seg_loss import InvalidInput

CPU = Ranks(0, 1, torch.device("cpu"))
RECIPE = dataclasses.replace(RECIPES["fcn"], normalization="valid")
NORMALIZATIONS = ("valid", "full", "batch", "none", "weight")


@pytest.fixture
def model():
    return ScoreNetwork(tiny_network(NUM_CLASSES), NUM_CLASSES).eval()


def make_batch(num_images, share_ignored, seed, size=(8, 10)):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(num_images, 3, *size, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (num_images, *size), generator=generator)
    ignored = torch.rand(labels.shape, generator=generator) < share_ignored
    return image, labels.masked_fill(ignored, 255).to(torch.uint8)


def gradient_of(model, batches, recipe=RECIPE, ignore_index=(255,)):
    """Returns the loss of a step and the gradient of all parameters."""
    model.zero_grad(set_to_none=True)
    loss = Objective(model, recipe, ignore_index, CPU).accumulate(batches)
    return loss, [parameter.grad.clone() for parameter in model.parameters()]


def joined(batches):
    return [tuple(map(torch.cat, zip(*batches, strict=True)))]


UNEVEN = [make_batch(1, share, seed) for seed, share in enumerate((0.0, 0.95, 1.0, 0.4))]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_micro_batches_add_up_to_the_joined_batch(model, normalization):
    recipe = dataclasses.replace(RECIPE, normalization=normalization, class_weight=(0.5, 1.0, 3.0))
    loss, gradient = gradient_of(model, UNEVEN, recipe)
    expected, expected_gradient = gradient_of(model, joined(UNEVEN), recipe)
    assert loss.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (loss.valid_pixels, loss.num_images) == (expected.valid_pixels, 4)
    for one, other in zip(gradient, expected_gradient, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_loss_is_that_of_the_library(model, normalization):
    (image, labels), *_ = joined(UNEVEN)
    weight = torch.tensor([0.5, 1.0, 3.0])
    options = {"normalization": normalization, "label_smoothing": 0.1}
    recipe = dataclasses.replace(RECIPE, class_weight=tuple(weight.tolist()), **options)
    loss, gradient = gradient_of(model, UNEVEN, recipe)
    model.zero_grad(set_to_none=True)
    scores, upsampling = model.scores(image)
    expected = seg_loss.upsampled_cross_entropy(
        scores, labels, weight, upsampling=upsampling, **options
    )
    expected.backward()
    assert loss.loss == pytest.approx(expected.item(), rel=1e-6)
    for one, parameter in zip(gradient, model.parameters(), strict=True):
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(one, parameter.grad, rtol=1e-5, atol=1e-6 * scale)


def test_a_mean_of_means_would_be_another_gradient(model):
    _, gradient = gradient_of(model, UNEVEN)
    parts = [gradient_of(model, [batch])[1] for batch in UNEVEN]
    means = [sum(part) / len(parts) for part in zip(*parts, strict=True)]
    difference = max(
        float((one - other).abs().max() / one.abs().max())
        for one, other in zip(gradient, means, strict=True)
    )
    assert difference > 0.05


def test_the_mean_nll_is_that_of_a_pixel_for_every_normalization(model):
    expected = seg_loss.evaluate(model(joined(UNEVEN)[0][0]), joined(UNEVEN)[0][1]).loss
    for normalization in NORMALIZATIONS:
        recipe = dataclasses.replace(RECIPE, normalization=normalization)
        loss, _ = gradient_of(model, UNEVEN, recipe)
        assert loss.mean_nll == pytest.approx(expected, rel=1e-5)


def test_a_step_without_valid_pixels_has_no_gradient(model):
    loss, gradient = gradient_of(model, [make_batch(2, 1.0, 0)])
    assert (loss.loss, loss.mean_nll, loss.valid_pixels) == (0.0, 0.0, 0)
    assert all((part == 0).all() for part in gradient)


def test_several_labels_can_be_ignored(model):
    image, labels = make_batch(2, 0.2, 3)
    loss, _ = gradient_of(model, [(image, labels)], ignore_index=(1, 255))
    assert loss.valid_pixels == int(((labels != 1) & (labels != 255)).sum())
    loss, _ = gradient_of(model, [(image, labels.clamp(max=2))], ignore_index=(-1,))
    assert loss.valid_pixels == labels.numel()


def test_the_fused_head_has_the_gradient_of_the_plain_one():
    model = FCN8s(NUM_CLASSES, (2, 2, 2, 2, 2, 2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2)
    batch = make_batch(1, 0.3, 0, (17, 22))
    results = {}
    for head in ("fused", "plain"):
        model.zero_grad(set_to_none=True)
        objective = Objective(model, dataclasses.replace(RECIPE, head=head), (255,), CPU)
        loss = objective.accumulate([batch]).loss
        results[head] = loss, [p.grad for p in model.parameters() if p.requires_grad]
    assert results["fused"][0] == pytest.approx(results["plain"][0], rel=1e-5)
    for one, other in zip(results["fused"][1], results["plain"][1], strict=True):
        scale = max(float(other.abs().max()), 1e-6)
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * scale)


def test_bfloat16_is_close_to_float32(model):
    loss, gradient = gradient_of(model, UNEVEN)
    recipe = dataclasses.replace(RECIPE, amp="bfloat16")
    half, half_gradient = gradient_of(copy.deepcopy(model), UNEVEN, recipe)
    assert half.loss == pytest.approx(loss.loss, rel=2e-2)
    assert half.loss != loss.loss
    for one, other in zip(gradient, half_gradient, strict=True):
        assert other.dtype == torch.float32
        assert float((one - other).abs().max()) < 0.1 * float(one.abs().max())


def test_mixed_precision_depends_on_the_device():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [amp_dtype("auto", device) for device in (cpu, gpu)] == [None, torch.bfloat16]
    assert amp_dtype("none", gpu) is None
    assert amp_dtype("float16", gpu) == torch.float16
    with pytest.raises(InvalidInput, match=r"amp: expected bfloat16 on the CPU, got float16"):
        amp_dtype("float16", cpu)
