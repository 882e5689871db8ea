"""Tensors without elements: torch's meta device, its fake mode, and what needs elements."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

import seg_loss
from seg_loss import Bilinear, InvalidInput, metrics
from seg_loss.compat import caffe
from seg_loss.compat import torch as compat
from tests.support.cases import FLOATS

SHAPE, SIZE = (2, 3, 4, 5), (8, 10)


def on_meta():
    return torch.device("meta")


MODES = {"meta": on_meta, "fake": FakeTensorMode}

# Each takes logits, labels of their size, labels of SIZE, class weights and pixel weights.
DIFFERENTIABLE = {
    "spatial_softmax": lambda x, *others: seg_loss.spatial_softmax(x),
    "pixel_nll": lambda x, y, *others: seg_loss.pixel_nll(x, y),
    "spatial_cross_entropy": lambda x, y, _, class_weight, pixel_weight: (
        seg_loss.spatial_cross_entropy(x, y, class_weight, pixel_weight=pixel_weight)
    ),
    "upsampled_cross_entropy": lambda x, _, y, *weights: seg_loss.upsampled_cross_entropy(x, y),
    "probability_cross_entropy": lambda x, y, _, class_weight, pixel_weight: (
        seg_loss.probability_cross_entropy(
            x.softmax(1), y, class_weight, pixel_weight=pixel_weight, normalization="weight"
        )
    ),
    "SpatialCrossEntropy": lambda x, y, *others: seg_loss.SpatialCrossEntropy()(x, y),
    "compat.torch, mean": lambda x, y, *others: compat.cross_entropy(x, y),
    "compat.torch, none": lambda x, y, *others: compat.cross_entropy(x, y, reduction="none"),
    "compat.caffe": lambda x, y, *others: caffe.SoftmaxWithLoss()(x, y),
}
WITH_GRADIENT = {
    "plain": lambda x, y, *others: seg_loss.loss_and_gradient(x, y),
    "upsampled": lambda x, _, y, *others: seg_loss.loss_and_gradient(x, y, upsampling=Bilinear()),
    "probabilities": lambda x, y, *others: seg_loss.loss_and_gradient(
        x.softmax(1), y, scores="probabilities"
    ),
    "out": lambda x, y, *others: seg_loss.loss_and_gradient(x, y, out=torch.empty_like(x)),
    "in place": lambda x, y, *others: seg_loss.loss_and_gradient(x, y, out=x),
}
READING = {
    "evaluate": lambda x, y, *others: seg_loss.evaluate(x, y),
    "require_finite": lambda x, y, *others: seg_loss.require_finite(x, y),
    "scratch_bytes": lambda x, *others: seg_loss.scratch_bytes(x, SIZE, upsampling=Bilinear()),
    "confusion_matrix": lambda x, y, *others: metrics.confusion_matrix(y, y, 3),
}


def inputs(dtype=torch.float32):
    return (
        torch.zeros(SHAPE, dtype=dtype),
        torch.zeros(2, 4, 5, dtype=torch.uint8),
        torch.zeros(2, *SIZE, dtype=torch.uint8),
        torch.ones(3),
        torch.ones(2, 4, 5),
    )


def inputs_of_any_size():
    """Returns inputs of torch's fake mode whose sizes are symbols."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    return tuple(
        mode.from_tensor(
            tensor,
            symbolic_context=StatelessSymbolicContext(
                dynamic_sizes=[DimDynamic.DYNAMIC] * tensor.ndim
            ),
        )
        for tensor in inputs()
    )


def described(result):
    return result.shape, result.dtype


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_differentiable_functions_return_shapes_and_dtypes(name, mode):
    call = DIFFERENTIABLE[name]
    for dtype in FLOATS:
        expected = call(*inputs(dtype))
        with MODES[mode]():
            x, *others = inputs(dtype)
            x.requires_grad_()
            result = call(x, *others)
            (gradient,) = torch.autograd.grad(result.sum(), x)
        assert described(result) == described(expected)
        assert described(gradient) == (torch.Size(SHAPE), dtype)
        assert result.device == gradient.device == x.device


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_loss_and_gradient_returns_shapes_and_dtypes(name, mode):
    call = WITH_GRADIENT[name]
    for dtype in FLOATS:
        expected = call(*inputs(dtype))
        with MODES[mode]():
            x, *others = inputs(dtype)
            results = call(x, *others)
        assert [*map(described, results)] == [*map(described, expected)]
        assert {result.device for result in results} == {x.device}
        assert name != "in place" or results[1] is x


def test_tensors_of_a_device_that_is_not_there_have_losses_too():
    with FakeTensorMode():
        x = torch.zeros(SHAPE, device="cuda")
        loss = seg_loss.spatial_cross_entropy(x, x.new_zeros(2, 4, 5, dtype=torch.uint8))
    assert loss.device == x.device


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", READING)
def test_functions_that_read_elements_raise(name, mode):
    call = READING[name]
    with MODES[mode]():
        fake = inputs()
        with pytest.raises(InvalidInput, match="expected a tensor with elements in memory, got"):
            call(*fake)
    if mode == "fake":  # the mode has ended, and its tensors still have no elements
        with pytest.raises(InvalidInput, match="expected a tensor with elements in memory, got"):
            call(*fake)


@pytest.mark.parametrize("name", READING)
def test_functions_that_read_elements_raise_for_any_size(name):
    with pytest.raises(InvalidInput, match="expected a tensor with elements in memory, got"):
        READING[name](*inputs_of_any_size())


@pytest.mark.parametrize("name", [*DIFFERENTIABLE, *WITH_GRADIENT])
def test_sizes_may_be_symbols(name):
    call = {**DIFFERENTIABLE, **WITH_GRADIENT}[name]
    x, *others = inputs_of_any_size()
    if name in WITH_GRADIENT:
        loss, gradient = call(x, *others)
        assert loss.shape == ()
    else:
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(call(x, *others).sum(), x)
    # Two symbols of the same size may be different, so that their hints are compared.
    assert [size.node.hint for size in gradient.shape] == [*SHAPE]
    assert gradient.dtype == x.dtype

    def run(x, *others):
        if name in WITH_GRADIENT:
            return call(x.clone(), *others)
        return torch.func.grad(lambda x: call(x, *others).sum())(x)

    traced = make_fx(run, tracing_mode="symbolic")(*inputs())
    larger = (
        torch.randn(3, 5, 6, 7),
        torch.randint(0, 5, (3, 6, 7), dtype=torch.uint8),
        torch.randint(0, 5, (3, 9, 11), dtype=torch.uint8),
        torch.rand(5),
        torch.rand(3, 6, 7),
    )
    torch.testing.assert_close(traced(*larger), run(*larger), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of torch.func.jvp
@pytest.mark.parametrize(
    ("transform", "text"),
    [("vmap", "vmap"), ("grad", "grad, vjp or jvp"), ("jvp", "grad, vjp or jvp")],
)
@pytest.mark.parametrize("name", ["evaluate", "require_finite"])
def test_the_error_in_a_transform_names_it(name, transform, text):
    x, y, *others = inputs()

    def call(x):
        READING[name](x, y, *others)
        return x.sum()

    run = {
        "vmap": lambda: torch.func.vmap(call)(x[None]),
        "grad": lambda: torch.func.grad(call)(x),
        "jvp": lambda: torch.func.jvp(call, (x,), (x,)),
    }[transform]
    with pytest.raises(InvalidInput, match=rf"got one inside of torch\.func\.{text}\. "):
        run()


def test_weights_without_elements_are_not_read():
    x, y, _, class_weight, pixel_weight = inputs()
    with FakeTensorMode() as mode:
        fake = {"class_weight": torch.ones(3), "pixel_weight": torch.ones(2, 4, 5)}
    assert mode is not None
    for name, weight in fake.items():
        with pytest.raises(InvalidInput, match=f"^{name}: expected a tensor with elements"):
            seg_loss.evaluate(x, y, **{name: weight})
    assert seg_loss.evaluate(x, y, class_weight, pixel_weight=pixel_weight).valid_pixels == 40


def test_warm_up_needs_a_device_with_kernels():
    with pytest.raises(InvalidInput, match="expected a tensor with elements in memory, got"):
        seg_loss.warm_up("meta")
