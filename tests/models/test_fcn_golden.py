"""The networks against Caffe: weights, scores, loss and gradients of the thin FCNs in `golden`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models import caffe_weights
from models.checkpoints import NetworkSpec, load_network
from models.networks import NETWORKS
from seg_loss import Deconvolution, spatial_cross_entropy, upsampled_cross_entropy
from seg_loss.compat.caffe import SoftmaxWithLoss
from tests.models.thin import CHANNELS, NUM_CLASSES, arrays, caffemodel

NAMES = ("fcn32s", "fcn8s", "fcn8s-atonce")
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "fcn_thin"


def caffes_network(name, folder):
    path = folder / f"{name}.caffemodel"
    path.write_bytes(caffemodel(name))
    network = NETWORKS[name](NUM_CLASSES, CHANNELS).eval()
    caffe_weights.load(network, path)
    return network


def loss_of_logits(network, data, labels):
    return spatial_cross_entropy(network(data), labels, normalization="batch")


def loss_of_caffes_layer(network, data, labels):
    layer = SoftmaxWithLoss(ignore_label=255, normalize=False)
    return layer(network(data), labels)


def loss_of_scores(network, data, labels):
    scores, upsampling = network.scores(data)
    return upsampled_cross_entropy(scores, labels, upsampling=upsampling, normalization="batch")


def error(got, caffe):
    """Returns the largest error, as a share of the largest number."""
    assert got.shape == caffe.shape
    return float((got - caffe).abs().max() / caffe.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_the_score_blob_equals_caffes(name, tmp_path):
    golden = arrays(name)
    with torch.no_grad():
        score = caffes_network(name, tmp_path)(golden["data"])
    assert score.shape == (1, NUM_CLASSES, 97, 121)
    assert error(score[:, :, ::3, ::3], golden["score"]) < 2e-5


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/golden is not on this machine")
@pytest.mark.parametrize("name", NAMES)
def test_every_pixel_of_the_score_blob_equals_caffes(name, tmp_path):
    score = np.load(SHARED / f"{name.replace('-', '_')}_thin.npz")["score"]
    with torch.no_grad():
        got = caffes_network(name, tmp_path)(arrays(name)["data"])
    assert error(got, torch.from_numpy(score)) < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_low_resolution_scores_equal_caffes(name, tmp_path):
    golden = arrays(name)
    with torch.no_grad():
        scores, upsampling = caffes_network(name, tmp_path).scores(golden["data"])
    assert error(scores, golden["low_resolution_scores"]) < 2e-5
    assert upsampling == Deconvolution.of_fcn(tuple(scores.shape[2:]), (97, 121))


@pytest.mark.parametrize("loss_of", [loss_of_logits, loss_of_caffes_layer, loss_of_scores])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_and_every_gradient_equal_caffes(name, loss_of, tmp_path):
    golden = arrays(name)
    network = caffes_network(name, tmp_path)
    if loss_of is loss_of_logits:
        network.requires_grad_()  # Caffe computes those of the fixed layers too, if it must
    loss = loss_of(network, golden["data"], golden["label"])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(golden["loss"]), rel=2e-5)
    compared = 0
    for layer, parameters in caffe_weights.layers_of(network).items():
        for blob, parameter in enumerate(parameters):
            if parameter.requires_grad:
                step = 4 if layer == "upscore" else 1
                gradient = parameter.grad[..., ::step, ::step] if step > 1 else parameter.grad
                assert error(gradient, golden[f"dparam.{layer}.{blob}"]) < 1e-4, (layer, blob)
                compared += 1
    recorded = [key for key in golden if key.startswith("dparam.")]
    fixed = [key for key in recorded if ".up" in key or ".scale_" in key]
    assert compared == len(recorded) - (0 if loss_of is loss_of_logits else len(fixed))


@pytest.mark.parametrize("name", NAMES)
def test_caffes_files_are_recognized_as_networks(name, tmp_path):
    golden = arrays(name)
    path = tmp_path / "any.caffemodel"
    path.write_bytes(caffemodel(name))
    network, spec = load_network(path)
    assert spec == NetworkSpec(name, NUM_CLASSES, CHANNELS, "caffe")
    with torch.no_grad():
        assert error(network(golden["data"])[:, :, ::3, ::3], golden["score"]) < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_caffes_files_survive_reading_and_writing_bit_for_bit(name, tmp_path):
    caffes_network(name, tmp_path)
    layers = caffe_weights.read(tmp_path / f"{name}.caffemodel")
    caffe_weights.write(tmp_path / "copy.caffemodel", layers)
    copy = caffe_weights.read(tmp_path / "copy.caffemodel")
    assert list(copy) == list(layers)
    for layer, blobs in layers.items():
        assert all(torch.equal(*pair) for pair in zip(blobs, copy[layer], strict=True)), layer
