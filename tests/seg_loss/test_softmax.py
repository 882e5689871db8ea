"""The softmax and its gradient against torch in float64, for every axis, dtype and layout."""

# ruff: noqa: E501 - messages stay in one piece, so that a search finds them

import math

import pytest
import torch

import seg_loss
from seg_loss import InvalidInput, reference
from tests.support.cases import CASES, FLOATS, LAYOUTS, assert_accurate, make_logits, seed_of


def torch_softmax(logits, axis=1, temperature=1.0):
    x = logits if logits.dtype == torch.float64 else logits.float()
    return torch.softmax(x / temperature, axis).to(logits.dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_softmax_is_as_accurate_as_torchs(case, dtype, layout):
    logits = LAYOUTS[layout](make_logits(case.shape, dtype))
    got = seg_loss.spatial_softmax(logits)
    assert got.dtype == dtype
    assert got.stride() == torch.empty_like(logits).stride()
    assert_accurate("softmax", got, reference.spatial_softmax(logits), torch_softmax(logits))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -3, -4])
def test_any_axis_may_be_that_of_the_classes(axis, dtype):
    logits = make_logits((4, 7, 9, 11), dtype)
    got = seg_loss.spatial_softmax(logits, axis=axis)
    truth = reference.spatial_softmax(logits, axis=axis)
    assert_accurate("softmax", got, truth, torch_softmax(logits, axis))
    ones = got.double().sum(axis)
    assert float((ones - 1).abs().max()) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4), (2, 3, 4, 5, 6)], ids=str)
def test_tensors_of_any_rank_are_allowed(shape):
    logits = make_logits(shape)
    for axis in range(len(shape)):
        got = seg_loss.spatial_softmax(logits, axis=axis)
        truth = reference.spatial_softmax(logits, axis=axis)
        assert_accurate("softmax", got, truth, torch_softmax(logits, axis))


@pytest.mark.parametrize("temperature", [0.1, 0.7, 3, 1000.0])
def test_temperature_flattens_the_distribution(temperature):
    logits = make_logits((2, 5, 9, 11))
    got = seg_loss.spatial_softmax(logits, temperature=temperature)
    truth = reference.spatial_softmax(logits, temperature=temperature)
    scale = max(1.0, float(logits.abs().max()) / temperature)
    assert_accurate("softmax", got, truth, torch_softmax(logits, 1, temperature), scale=scale)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_gradient_is_as_accurate_as_torchs(dtype, layout):
    shape = (2, 21, 37, 53)
    logits = LAYOUTS[layout](make_logits(shape, dtype)).detach().requires_grad_()
    grad_output = LAYOUTS[layout](torch.randn(shape, generator=seed_of("grad_output")).to(dtype))
    for axis, temperature in ((1, 1.0), (1, 2.0), (-1, 1.0)):
        (got,) = torch.autograd.grad(
            seg_loss.spatial_softmax(logits, axis=axis, temperature=temperature),
            logits,
            grad_output,
        )
        x = logits.detach().double().requires_grad_()
        truth = reference.spatial_softmax(x, axis=axis, temperature=temperature)
        (truth,) = torch.autograd.grad(truth, x, grad_output.double())
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        y = logits.detach().to(kind).requires_grad_()
        (by_torch,) = torch.autograd.grad(
            torch.softmax(y / temperature, axis), y, grad_output.to(kind)
        )
        assert got.dtype == dtype
        # p (g - sum g p) may cancel, so the scale is that of g.
        assert_accurate("softmax gradient", got, truth, by_torch.to(dtype),
                        scale=float(grad_output.abs().max()) / temperature)  # fmt: skip


@pytest.mark.parametrize("order", [(0, 1, 4, 3, 2), (0, 4, 3, 2, 1), (3, 1, 0, 4, 2)], ids=str)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_axes_of_volumes_may_have_any_order(order, axis):
    logits = make_logits((2, 3, 4, 5, 6)).permute(order)
    got = seg_loss.spatial_softmax(logits, axis=axis)
    truth = reference.spatial_softmax(logits, axis=axis)
    assert_accurate("softmax", got, truth, torch_softmax(logits, axis))


def test_volumes_may_be_sliced():
    logits = make_logits((4, 3, 8, 8, 8))[::2, :, ::2, ::2, ::2]
    got = seg_loss.spatial_softmax(logits)
    assert_accurate("softmax", got, reference.spatial_softmax(logits), torch_softmax(logits))


def test_pixels_without_a_softmax_are_nan_in_every_class():
    logits = torch.zeros(1, 3, 1, 20)
    logits[0, 1, 0, 3] = math.nan
    logits[0, 2, 0, 4] = math.inf
    logits[0, :, 0, 5] = -math.inf
    got = seg_loss.spatial_softmax(logits)
    assert got[..., 3:6].isnan().all()
    assert int(got.isnan().sum()) == 9


def test_extreme_logits_have_exact_probabilities():
    logits = torch.tensor([[1e4, -1e4, 1e4], [3e38, -3e38, 0.0], [-3e38, -3e38, -3e38]])
    third = float(torch.tensor(1 / 3))
    assert seg_loss.spatial_softmax(logits).tolist() == [[0.5, 0, 0.5], [1, 0, 0], [third] * 3]


def test_one_class_has_probability_one():
    assert (seg_loss.spatial_softmax(make_logits((2, 1, 5, 7))) == 1).all()


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (2, 0, 3)], ids=str)
def test_an_empty_tensor_has_an_empty_softmax(shape):
    assert seg_loss.spatial_softmax(torch.zeros(shape)).shape == shape


def test_the_module_equals_the_function():
    logits = make_logits((2, 3, 4, 5))
    module = seg_loss.SpatialSoftmax(axis=-1, temperature=2.0)
    assert torch.equal(module(logits), seg_loss.spatial_softmax(logits, axis=-1, temperature=2.0))
    assert repr(module) == "SpatialSoftmax(axis=-1, temperature=2.0)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], {}), r"logits: expected a torch\.Tensor, got list\."),
        ((torch.zeros(2, 3).int(), {}), r"logits: expected float32, .* or float64, got int32\."),
        ((torch.zeros(2, 3), {"axis": 2}), r"axis: expected an axis of the 2 that logits have, got 2\."),
        ((torch.zeros(2, 3), {"axis": -3}), r"axis: expected an axis of the 2 that logits have, got -3\."),
        ((torch.zeros(2, 3), {"axis": 1.0}), r"axis: expected an axis of the 2 that logits have, got 1\.0\."),
        ((torch.zeros(()), {}), r"axis: expected an axis of the 0 that logits have, got 1\."),
        ((torch.zeros(2, 3), {"temperature": 0.0}), r"temperature: expected a positive number, 1e-30...1e30, got 0\.0\."),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_raise(arguments, message):
    logits, options = arguments
    with pytest.raises(InvalidInput, match=f"^{message}$"):
        seg_loss.spatial_softmax(logits, **options)
