"""A default device or dtype of torch changes no result: each is on the device of its inputs."""

import contextlib

import pytest
import torch

import seg_loss
from models import bilinear
from seg_loss import Bilinear, metrics, reference
from seg_loss.compat import caffe
from seg_loss.compat import torch as compat
from seg_loss.constants import MAPS, PREDICTION_MAPS
from tests.support.backends import Backend
from tests.support.cases import make_labels, make_logits

SHAPE = (2, 3, 4, 5)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS = {
    "a device in a with statement": lambda: torch.device("meta"),
    "a default device": lambda: default_device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
}


def gradient(function):
    def call(x, *arguments):
        leaf = x.clone().requires_grad_()
        result = function(leaf, *arguments)
        return result, torch.autograd.grad(result, leaf, torch.ones_like(result))

    return call


def with_class_weight(function):
    return lambda x, y, class_weight, pixel_weight: function(x, y, class_weight)


def with_weights(function, **options):
    return lambda x, y, class_weight, pixel_weight: function(
        x, y, class_weight, pixel_weight=pixel_weight, **options
    )


def with_labels(function, **options):
    return lambda x, y, *weights: function(x, y, **options)


def in_place(x, y, *weights):
    out = x.clone()
    return seg_loss.loss_and_gradient(out, y, out=out)


# Each takes logits, labels, class weights and pixel weights.
CALLS = {
    "spatial_softmax": gradient(lambda x, *others: seg_loss.spatial_softmax(x)),
    "pixel_nll": gradient(with_labels(seg_loss.pixel_nll)),
    "spatial_cross_entropy": gradient(with_weights(seg_loss.spatial_cross_entropy)),
    "label smoothing": gradient(with_weights(seg_loss.spatial_cross_entropy, label_smoothing=0.1)),
    "upsampled_cross_entropy": gradient(with_weights(seg_loss.upsampled_cross_entropy)),
    "loss_and_gradient": with_weights(seg_loss.loss_and_gradient),
    "loss_and_gradient, upsampled": with_weights(
        seg_loss.loss_and_gradient, upsampling=Bilinear(align_corners=True)
    ),
    "loss_and_gradient, in place": in_place,
    "evaluate": with_weights(seg_loss.evaluate, maps=MAPS),
    "evaluate, upsampled": with_weights(seg_loss.evaluate, upsampling=Bilinear(), maps=MAPS),
    "predict": lambda x, *others: seg_loss.predict(x, maps=PREDICTION_MAPS),
    "predict, upsampled": lambda x, *others: seg_loss.predict(x, size=(3, 4), maps=PREDICTION_MAPS),
    "predict, the prediction alone, upsampled": lambda x, *others: seg_loss.predict(x, size=(9, 8)),
    "require_finite": with_labels(seg_loss.require_finite),
    "require_finite, upsampled": with_labels(seg_loss.require_finite, upsampling=Bilinear()),
    "scratch_bytes": lambda x, *others: seg_loss.scratch_bytes(x, (8, 9), upsampling=Bilinear()),
    "SpatialSoftmax": lambda x, *others: seg_loss.SpatialSoftmax()(x),
    "SpatialCrossEntropy": lambda x, y, weight, _: seg_loss.SpatialCrossEntropy(weight)(x, y),
    "UpsampledCrossEntropy": lambda x, y, weight, _: seg_loss.UpsampledCrossEntropy(weight)(x, y),
    "compat.torch.cross_entropy": gradient(
        lambda x, y, weight, _: compat.cross_entropy(x, y.long(), weight, ignore_index=255)
    ),
    "compat.torch.CrossEntropyLoss": lambda x, y, weight, _: compat.CrossEntropyLoss(
        weight, ignore_index=255, reduction="none", label_smoothing=0.1
    )(x, y.long()),
    "compat.caffe.Softmax": lambda x, *others: caffe.Softmax()(x),
    "compat.caffe.SoftmaxWithLoss": gradient(with_labels(caffe.SoftmaxWithLoss(255))),
    "metrics.confusion_matrix": lambda x, y, *weights: metrics.confusion_matrix(y, y, 3),
    "metrics.fcn_metrics": lambda x, y, *weights: metrics.fcn_metrics(
        metrics.confusion_matrix(y, y, 3), absent="zero"
    ),
    "reference.loss_and_gradient": with_weights(
        reference.loss_and_gradient, ignore_index=255, label_smoothing=0.1
    ),
    "reference.upsample": lambda x, *others: reference.upsample(x, (8, 9), Bilinear()),
    "bilinear_kernel": lambda *inputs: bilinear.bilinear_kernel(4),
}


def fields(result):
    """Yields the tensors and numbers of a result, also those of an `Evaluation`."""
    if isinstance(result, seg_loss.Evaluation):
        properties = ("per_image", "per_class", "metrics", "calibration", "diagnosis")
        yield from fields([getattr(result, name) for name in properties])
        yield from fields([vars(result)[name] for name in ("loss", "divisor", "confusion", "maps")])
    elif isinstance(result, dict):
        yield from fields(list(result.values()))
    elif isinstance(result, list | tuple):
        for item in result:
            yield from fields(item)
    else:
        yield result


@pytest.mark.parametrize("name", CALLS)
def test_a_default_device_or_dtype_changes_no_bit(backend: Backend, name):
    is_upsampled = "upsample" in name.lower()
    shape, size = ((1, 3, 2, 2), (1, 3, 3, 4)) if is_upsampled else (SHAPE, SHAPE)
    labels = make_labels(size)
    tensors = make_logits(shape), labels, torch.rand(3), torch.rand(labels.shape)
    inputs = [backend.place(tensor) for tensor in tensors]
    results = []
    for default in DEFAULTS.values():
        with default():
            results.append(list(fields(CALLS[name](*inputs))))
    # The calls before may have left memory on a wrong device for this one.
    expected = list(fields(CALLS[name](*inputs)))
    for got in results:
        for result, usual in zip(got, expected, strict=True):
            if isinstance(usual, torch.Tensor):
                assert result.device == usual.device
                assert result.dtype == usual.dtype
                assert torch.equal(result.detach(), usual.detach())
            else:
                assert result == usual


@pytest.mark.parametrize("default", DEFAULTS)
def test_kernels_are_warmed_up_under_a_default_device_or_dtype(default):
    with DEFAULTS[default]():
        seg_loss.warm_up("cpu", num_classes=3)
