"""Net surgery: fully connected layers, FCN's stages, torchvision's VGG16, random weights."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from models import caffe_weights, surgery
from models.fcn import FCN8s, FCN8sAtOnce, FCN16s, FCN32s
from models.networks import NETWORKS
from seg_loss import InvalidInput
from tests.models.thin import CHANNELS, NUM_CLASSES, random_network, torchvision_state

IMAGE = torch.randn(1, 3, 33, 41, generator=torch.Generator().manual_seed(0))
CONVOLUTIONS = surgery._VGG16_LAYERS[:-2]


def layers_of(network):
    return {
        name: [blob.detach().clone() for blob in blobs]
        for name, blobs in caffe_weights.layers_of(network).items()
    }


def classifier(v1):
    """A thin VGG16 as Caffe's file has it: fc6 and fc7 fully connected, and fc8."""
    layers = layers_of(random_network("fcn32s", seed=3))
    layers = {name: layers[name] for name in (*CONVOLUTIONS, "fc6", "fc7")}
    for name in ("fc6", "fc7"):
        layers[name][0] = layers[name][0].flatten(1)
    layers["fc8"] = [torch.zeros(1000, CHANNELS[-1]), torch.zeros(1000)]
    if v1:  # four axes each
        layers = {
            name: [blob.reshape((1,) * (4 - blob.dim()) + blob.shape) for blob in blobs]
            for name, blobs in layers.items()
        }
    return layers


def same(a, b, names):
    a, b = caffe_weights.layers_of(a), caffe_weights.layers_of(b)
    return all(torch.equal(x, y) for name in names for x, y in zip(a[name], b[name], strict=True))


def test_a_fully_connected_layer_becomes_the_same_convolution():
    weight, x = torch.randn(6, 4 * 7 * 7), torch.randn(2, 4, 7, 7)
    convolution = surgery.fc_to_conv(weight, 7)
    assert convolution.shape == (6, 4, 7, 7)
    expected = F.linear(x.flatten(1), weight)
    torch.testing.assert_close(F.conv2d(x, convolution).flatten(1), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(surgery.fc_to_conv(weight.reshape(1, 1, 6, -1), 7), convolution)


@pytest.mark.parametrize("shape", [(6,), (6, 50), (2, 1, 6, 49), ()])
def test_a_weight_of_another_shape_is_no_fully_connected_one(shape):
    with pytest.raises(InvalidInput, match=r"weight: expected \(outputs, a multiple of 49 inputs"):
        surgery.fc_to_conv(torch.zeros(shape), 7)


@pytest.mark.parametrize("v1", [False, True], ids=["current", "v1"])
@pytest.mark.parametrize("name", NETWORKS)
def test_caffes_vgg16_becomes_the_base_of_every_network(name, v1, tmp_path):
    caffe_weights.write(tmp_path / "vgg16.caffemodel", classifier(v1))
    network = NETWORKS[name](NUM_CLASSES, CHANNELS)
    surgery.load_vgg16(network, caffe_weights.read(tmp_path / "vgg16.caffemodel"))
    assert same(network, random_network("fcn32s", seed=3), (*CONVOLUTIONS, "fc6", "fc7"))
    assert not network.score_fr.weight.any()
    with torch.no_grad():
        assert not network.eval()(IMAGE).any()


def test_fcns_own_convolutional_vgg16_is_taken_as_it_is():
    layers = layers_of(random_network("fcn32s", seed=3))
    network = FCN32s(7, CHANNELS)
    surgery.load_vgg16(network, layers)
    assert same(network, random_network("fcn32s", seed=3), ("conv1_1", "fc6", "fc7"))
    assert not network.score_fr.weight.any()


def test_an_incomplete_vgg16_is_reported():
    layers = classifier(v1=False)
    del layers["conv3_2"]
    with pytest.raises(InvalidInput, match=r"VGG16: expected .*, got layers missing: conv3_2"):
        surgery.load_vgg16(FCN32s(7, CHANNELS), layers)


def test_loading_a_classifier_as_a_network_names_the_surgery(tmp_path):
    path = tmp_path / "vgg16.caffemodel"
    caffe_weights.write(path, classifier(v1=True))
    with pytest.raises(InvalidInput, match=r"use models\.surgery\.load_vgg16\."):
        caffe_weights.load(FCN32s(7, CHANNELS), path)


def test_torchvisions_vgg16_becomes_the_base_of_a_network():
    network = FCN8s(NUM_CLASSES, CHANNELS)
    surgery.load_torchvision_vgg16(network, torchvision_state(classifier(v1=False)))
    assert same(network, random_network("fcn32s", seed=3), (*CONVOLUTIONS, "fc6", "fc7"))


def test_timms_vgg16_becomes_the_base_of_a_network():
    state = torchvision_state(classifier(v1=False))
    for old, new, name in (("0", "fc1", "fc6"), ("3", "fc2", "fc7")):
        convolution = random_network("fcn32s", seed=3).get_submodule(name).weight.detach()
        state.pop(f"classifier.{old}.weight")
        state[f"pre_logits.{new}.weight"] = convolution
        state[f"pre_logits.{new}.bias"] = state.pop(f"classifier.{old}.bias")
    network = FCN8s(NUM_CLASSES, CHANNELS)
    surgery.load_torchvision_vgg16(network, state)
    assert same(network, random_network("fcn32s", seed=3), (*CONVOLUTIONS, "fc6", "fc7"))


def test_a_vgg16_whose_classifier_is_nan_is_reported():
    state = torchvision_state(classifier(v1=False))  # torchvision's IMAGENET1K_FEATURES
    state["classifier.3.weight"] = torch.full_like(state["classifier.3.weight"], math.nan)
    network = FCN8s(NUM_CLASSES, CHANNELS)
    before = network.conv1_1.weight.detach().clone()
    with pytest.raises(InvalidInput, match="VGG16: fc7: expected finite weights, got NaN"):
        surgery.load_torchvision_vgg16(network, state)
    assert torch.equal(network.conv1_1.weight, before)


def test_vgg16_with_batch_normalization_is_reported():
    state = torchvision_state(classifier(v1=False)) | {"features.1.weight": torch.ones(CHANNELS[0])}
    with pytest.raises(InvalidInput, match="VGG16: expected vgg16, got vgg16_bn"):
        surgery.load_torchvision_vgg16(FCN8s(NUM_CLASSES, CHANNELS), state)


def test_a_network_instead_of_its_state_is_reported():
    with pytest.raises(InvalidInput, match=r"state: expected a state dict, got FCN8s\. Pass its"):
        surgery.load_torchvision_vgg16(FCN8s(NUM_CLASSES, CHANNELS), FCN8s(NUM_CLASSES, CHANNELS))


def test_convolutions_of_one_channel_are_taken_as_they_are():
    network = FCN32s(2, (1,) * 6)
    surgery.load_vgg16(network, layers_of(random_network("fcn32s", 2, (1,) * 6)))
    assert same(network, random_network("fcn32s", 2, (1,) * 6), ("fc6", "fc7"))


def test_another_state_of_torchvision_is_reported():
    state = torchvision_state(classifier(v1=False))
    state["features.3.weight"] = state.pop("features.2.weight")  # vgg16_bn's numbering
    with pytest.raises(InvalidInput, match=r"torchvision's VGG16: .* missing: conv1_2"):
        surgery.load_torchvision_vgg16(FCN8s(NUM_CLASSES, CHANNELS), state)


@pytest.mark.parametrize(
    ("source", "target", "scores"),
    [
        ("fcn32s", FCN16s, ("score_fr",)),
        ("fcn16s", FCN8s, ("score_fr", "upscore2", "score_pool4")),
    ],
)
def test_each_stage_begins_with_the_layers_of_the_last(source, target, scores):
    before, network = random_network(source), target(NUM_CLASSES, CHANNELS)
    copied = surgery.transplant(before, network)
    assert copied == (*CONVOLUTIONS, "fc6", "fc7", *scores)
    assert same(before, network, copied)


def test_a_new_fcn_16s_begins_with_the_scores_of_the_fcn_32s():
    before, network = random_network("fcn32s"), FCN16s(NUM_CLASSES, CHANNELS).eval()
    surgery.transplant(before, network)
    with torch.no_grad():
        torch.testing.assert_close(network.scores(IMAGE)[0], F.conv_transpose2d(
            before.scores(IMAGE)[0], network.upscore2.weight, stride=2
        ), rtol=1e-5, atol=1e-5)  # fmt: skip


def test_a_file_is_transplanted_as_a_network_is(tmp_path):
    before, network = random_network("fcn32s"), FCN16s(NUM_CLASSES, CHANNELS)
    caffe_weights.save(before, tmp_path / "fcn32s.caffemodel")
    copied = surgery.transplant(caffe_weights.read(tmp_path / "fcn32s.caffemodel"), network)
    assert same(before, network, copied)


@pytest.mark.parametrize(
    ("source", "target", "scores"),
    [
        ("fcn8s-atonce", FCN8s, ("score_fr", "upscore2", "upscore_pool4", "upscore8")),
        ("fcn16s", FCN8sAtOnce, ("score_fr", "upscore2")),
    ],
)
def test_scores_of_scaled_pools_are_not_those_of_others(source, target, scores):
    network = target(NUM_CLASSES, CHANNELS)
    assert surgery.transplant(random_network(source), network)[15:] == scores
    assert not network.score_pool4.weight.any()


def test_scores_of_scaled_pools_are_shared_by_networks_that_scale():
    before, network = random_network("fcn8s-atonce"), FCN8sAtOnce(NUM_CLASSES, CHANNELS)
    surgery.transplant(before, network)
    with torch.no_grad():
        assert torch.equal(network.eval()(IMAGE), before(IMAGE))


def test_a_network_for_other_classes_gets_the_base_alone():
    copied = surgery.transplant(random_network("fcn8s"), FCN8sAtOnce(3, CHANNELS))
    assert copied == (*CONVOLUTIONS, "fc6", "fc7")


def test_a_source_without_shared_layers_is_reported():
    with pytest.raises(InvalidInput, match=r"source: expected layers of FCN8s \(conv1_1, "):
        surgery.transplant({"conv1": [torch.zeros(1)]}, FCN8s(3, CHANNELS))


def test_a_base_of_other_channels_is_reported():
    with pytest.raises(InvalidInput, match=r"source: .* of another shape: conv1_1 \(8, 3, 3, 3\)"):
        surgery.transplant(random_network("fcn32s"), FCN16s(NUM_CLASSES, (4, 4, 4, 4, 4, 4)))


def test_random_weights_have_hes_deviation():
    network = FCN8sAtOnce(3, (32, 32, 32, 32, 32, 32))
    with torch.no_grad():
        network.upscore8.weight.zero_()
        network.scale_pool3.weight.zero_()
    surgery.initialize(network, 1, preprocessing="imagenet")
    for name in (*CONVOLUTIONS, "fc6"):
        weight, bias = network.get_submodule(name).parameters()
        expected = math.sqrt(2 / weight[0].numel())
        assert float(weight.detach().std()) == pytest.approx(expected, rel=0.15), name
        assert not bias.any()
    assert not network.score_fr.weight.any()
    assert network.upscore8.is_bilinear()
    assert torch.equal(network.scale_pool3.weight, torch.full((32,), 0.0001))


@pytest.mark.parametrize(("preprocessing", "deviation"), [("caffe", 60.0), ("imagenet", 1.0)])
def test_random_weights_keep_the_scale_of_the_preprocessing(preprocessing, deviation):
    network = FCN32s(3, (32,) * 6).eval()
    surgery.initialize(network, 0, preprocessing=preprocessing)
    with torch.no_grad():
        _, pool4, _ = network.pools_and_fc7(deviation * torch.randn(1, 3, 64, 64))
    middle = pool4[:, :, 6:-6, 6:-6]  # where the image is
    assert 0.2 < float(middle.square().mean().sqrt()) < 5


def test_random_weights_are_those_of_their_seed():
    nets = [FCN32s(3, CHANNELS) for _ in range(4)]
    surgery.initialize(nets[0], np.int64(5))
    surgery.initialize(nets[1], torch.Generator().manual_seed(5))
    surgery.initialize(nets[2], 6)
    surgery.initialize(nets[3], 5)
    fc6 = [network.fc6.weight for network in nets]
    assert torch.equal(fc6[0], fc6[1])
    assert torch.equal(fc6[0], fc6[3])
    assert not torch.equal(fc6[0], fc6[2])
    assert not torch.equal(
        nets[0].conv1_2.weight.flatten()[:9], nets[0].conv1_1.weight.flatten()[:9]
    )


def test_an_unknown_preprocessing_is_reported():
    with pytest.raises(InvalidInput, match='preprocessing: expected "caffe" or "imagenet", got'):
        surgery.initialize(FCN32s(3, CHANNELS), preprocessing="vgg")
