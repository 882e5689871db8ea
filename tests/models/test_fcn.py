"""The networks: sizes, parameters, alignment, what learns, and the scores for the fused loss."""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn

from models.bilinear import bilinear_kernel
from models.fcn import FCN8s, FCN8sAtOnce, FCN16s, FCN32s
from models.networks import NETWORKS
from seg_loss import Deconvolution, InvalidInput, spatial_cross_entropy, upsampled_cross_entropy
from tests.models.thin import CHANNELS, NUM_CLASSES, random_network

SIZES = (
    (1, 1), (1, 500), (2, 3), (7, 5), (31, 33), (32, 64), (97, 121), (128, 127), (199, 201),
    (224, 224), (255, 257), (299, 301), (321, 321), (333, 500), (375, 499), (500, 500), (501, 353),
    (512, 1024), (600, 799), (1023, 767),
)  # fmt: skip
STRIDES = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8, "fcn8s-atonce": 8}


def learning(network):
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def fixed(network):
    return {name: p.numel() for name, p in network.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("name", NETWORKS)
def test_at_full_width_logits_have_the_size_of_any_image(name):
    with torch.device("meta"):
        network = NETWORKS[name]()
        for size in SIZES:
            assert network(torch.empty(1, 3, *size)).shape == (1, 21, *size)


@pytest.mark.parametrize("name", NETWORKS)
def test_at_full_width_scores_have_the_sizes_of_caffes_layers(name):
    with torch.device("meta"):
        network = NETWORKS[name]()
        for size in SIZES:
            scores, upsampling = network.scores(torch.empty(2, 3, *size))
            assert scores.shape[:2] == (2, 21)
            assert upsampling.stride == STRIDES[name]
            # `of_fcn` knows the sizes by a formula of its own.
            assert Deconvolution.of_fcn(tuple(scores.shape[2:]), size) == upsampling


def test_the_scores_of_500_pixels_have_the_sizes_of_the_paper():
    sizes = {}
    with torch.device("meta"):
        for name, network in NETWORKS.items():
            sizes[name] = network().scores(torch.empty(1, 3, 500, 500))[0].shape[2]
    assert sizes == {"fcn32s": 16, "fcn16s": 34, "fcn8s": 70, "fcn8s-atonce": 70}


def test_the_networks_have_134_million_parameters_that_learn():
    with torch.device("meta"):
        counts = {name: learning(network()) for name, network in NETWORKS.items()}
    vgg16, score = 134_260_544, 21 * 4096 + 21
    pool4, pool3 = 21 * 512 + 21, 21 * 256 + 21
    assert counts == {
        "fcn32s": vgg16 + score,
        "fcn16s": vgg16 + score + pool4,
        "fcn8s": vgg16 + score + pool4 + pool3,
        "fcn8s-atonce": vgg16 + score + pool4 + pool3,
    }


def test_upsampling_and_constant_scales_do_not_learn():
    with torch.device("meta"):
        found = {name: fixed(network()) for name, network in NETWORKS.items()}
    pairs = 21 * 21
    assert found == {
        "fcn32s": {"upscore.weight": pairs * 64**2},
        "fcn16s": {"upscore2.weight": pairs * 4**2, "upscore16.weight": pairs * 32**2},
        "fcn8s": {
            "upscore2.weight": pairs * 4**2,
            "upscore_pool4.weight": pairs * 4**2,
            "upscore8.weight": pairs * 16**2,
        },
        "fcn8s-atonce": {
            "upscore2.weight": pairs * 4**2,
            "upscore_pool4.weight": pairs * 4**2,
            "upscore8.weight": pairs * 16**2,
            "scale_pool4.weight": 512,
            "scale_pool3.weight": 256,
        },
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_a_new_network_predicts_uniform_probabilities(name):
    network = NETWORKS[name](7, CHANNELS).eval()
    labels = torch.randint(0, 7, (1, 20, 30))
    with torch.no_grad():
        logits = network(torch.randn(1, 3, 20, 30))
    assert not logits.any()
    assert float(spatial_cross_entropy(logits, labels)) == pytest.approx(math.log(7))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_of_the_scores_is_the_loss_of_the_logits(name):
    network = random_network(name)
    image = torch.randn(2, 3, 61, 47)
    labels = torch.randint(0, NUM_CLASSES, (2, 61, 47))
    labels[:, :9] = 255
    plain = spatial_cross_entropy(network(image), labels)
    plain.backward()
    expected = {name: p.grad.clone() for name, p in network.named_parameters() if p.requires_grad}
    network.zero_grad()
    scores, upsampling = network.scores(image)
    fused = upsampled_cross_entropy(scores, labels, upsampling=upsampling)
    fused.backward()
    assert float(fused.detach()) == pytest.approx(float(plain.detach()), rel=1e-6)
    for key, parameter in network.named_parameters():
        if parameter.requires_grad:
            largest = float(expected[key].abs().max())
            assert float((parameter.grad - expected[key]).abs().max()) <= 2e-5 * largest, key


class _Position:
    """Where pixel x of the image lies in a blob: scale * x + shift, as Caffe's coord_map.py."""

    def __init__(self, scale=1, shift=0):
        self.scale, self.shift = Fraction(scale), Fraction(shift)

    def through(self, layer):
        (kernel, _), (stride, _), (pad, _) = layer.kernel_size, layer.stride, layer.padding
        middle = Fraction(kernel - 1, 2)
        if isinstance(layer, nn.ConvTranspose2d):
            return _Position(self.scale * stride, self.shift * stride + middle - pad)
        return _Position(self.scale / stride, (self.shift + pad - middle) / stride)

    def pooled(self):
        return self.through(nn.Conv2d(1, 1, 2, stride=2))

    def offset_to(self, other):
        assert self.scale == other.scale
        return self.shift - other.shift


def positions_of_pools_and_fc7(network):
    position, pools = _Position(), []
    for block, convolutions in enumerate((2, 2, 3, 3, 3), 1):
        for index in range(convolutions):
            position = position.through(getattr(network, f"conv{block}_{index + 1}"))
        position = position.pooled()
        pools.append(position)
    return pools[2], pools[3], position.through(network.fc6).through(network.fc7)


def test_the_crop_offsets_align_every_layer_with_the_image():
    with torch.device("meta"):
        nets = FCN32s(), FCN16s(), FCN8s()
    pool3, pool4, fc7 = positions_of_pools_and_fc7(nets[2])
    image = _Position()
    assert fc7.through(nets[0].upscore).offset_to(image) == 19
    upscore2 = fc7.through(nets[1].upscore2)
    assert pool4.offset_to(upscore2) == 5
    assert upscore2.through(nets[1].upscore16).offset_to(image) == 27
    upscore_pool4 = upscore2.through(nets[2].upscore_pool4)
    assert pool3.offset_to(upscore_pool4) == 9
    assert upscore_pool4.through(nets[2].upscore8).offset_to(image) == 31


@pytest.mark.parametrize(
    ("name", "offsets"), [("fcn16s", {"pool4": 5}), ("fcn8s", {"pool4": 5, "pool3": 9})]
)
def test_pool4_and_pool3_are_cropped_by_5_and_9(name, offsets):
    network = random_network(name)
    image = torch.zeros(1, 3, 64, 80)
    shapes = dict(zip(("pool3", "pool4"), network.pools_and_fc7(image)[:2], strict=True))
    for pool, offset in offsets.items():
        score = getattr(network, f"score_{pool}")
        score.register_forward_hook(
            lambda _, __, output, offset=offset: torch.zeros_like(output).index_put_(
                tuple(torch.tensor([i]) for i in (0, 0, offset, offset)), torch.tensor(1.0)
            )
        )
        assert min(shapes[pool].shape[2:]) > offset
    network.score_fr.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    with torch.no_grad():
        scores, _ = network.scores(image)
    # pool4's pixel becomes the filter's corner in FCN-8s, pool3's is added as it is.
    expected = {"fcn16s": 1.0, "fcn8s": 1.0 + 1 / 16}[name]
    assert float(scores[0, 0, 0, 0]) == expected


def test_at_once_is_fcn_8s_with_scaled_pools():
    at_once = random_network("fcn8s-atonce")
    network = FCN8s(NUM_CLASSES, CHANNELS).eval()
    state = {k: v for k, v in at_once.state_dict().items() if "scale" not in k}
    state["score_pool4.weight"] = state["score_pool4.weight"] * 0.01
    state["score_pool3.weight"] = state["score_pool3.weight"] * 0.0001
    network.load_state_dict(state)
    image = torch.randn(1, 3, 40, 50)
    with torch.no_grad():
        torch.testing.assert_close(at_once(image), network(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_submodules_have_the_names_of_the_prototxt(name):
    common = "conv1_1 conv1_2 conv2_1 conv2_2 conv3_1 conv3_2 conv3_3 conv4_1 conv4_2 conv4_3 "
    common += "conv5_1 conv5_2 conv5_3 fc6 drop6 fc7 drop7 score_fr "
    of_8s = "upscore2 score_pool4 upscore_pool4 score_pool3 upscore8 "
    special = {
        "fcn32s": "upscore",
        "fcn16s": "upscore2 score_pool4 upscore16",
        "fcn8s": of_8s,
        "fcn8s-atonce": of_8s + "scale_pool4 scale_pool3",
    }
    with torch.device("meta"):
        names = [key for key, _ in NETWORKS[name]().named_children()]
    assert names == (common + special[name]).split()


def test_dropout_acts_in_training_only():
    network = random_network("fcn32s")
    image = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(network(image), network(image))
        network.train()
        assert not torch.equal(network(image), network(image))
    assert (network.drop6.p, network.drop7.p) == (0.5, 0.5)


def test_images_of_a_batch_do_not_influence_each_other():
    network = random_network("fcn8s")
    images = torch.randn(2, 3, 40, 50)
    with torch.no_grad():
        together = network(images)
        torch.testing.assert_close(together[1:], network(images[1:]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel_size", "stride"), [(4, 2), (16, 8), (32, 16), (64, 32)])
def test_the_deconvolution_equals_the_dense_one_of_the_prototxt(kernel_size, stride):
    layer = random_network("fcn32s").upscore.__class__(3, kernel_size, stride)
    assert layer.weight.shape == (3, 3, kernel_size, kernel_size)
    for a in range(3):
        for b in range(3):
            expected = bilinear_kernel(kernel_size) if a == b else torch.zeros(())
            assert torch.equal(layer.weight[a, b], expected.expand(kernel_size, kernel_size))
    scores = torch.randn(2, 3, 5, 4)
    dense = F.conv_transpose2d(scores, layer.weight, stride=stride)
    torch.testing.assert_close(layer(scores), dense, rtol=1e-6, atol=1e-6)


def test_a_changed_deconvolution_computes_with_its_own_weights():
    network = random_network("fcn8s")
    layer = network.upscore8
    scores = torch.randn(1, NUM_CLASSES, 3, 3)
    before = layer(scores)
    with torch.no_grad():
        layer.weight[0, 1] = 0.25
    assert not torch.equal(layer(scores), before)
    torch.testing.assert_close(layer(scores), F.conv_transpose2d(scores, layer.weight, stride=8))


def test_scores_need_the_bilinear_filter():
    network = random_network("fcn8s")
    image = torch.randn(1, 3, 20, 20)
    network.scores(image)
    with torch.no_grad():
        network.upscore8.weight[2, 3, 0, 0] = 1e-3
    with pytest.raises(InvalidInput, match=r"upscore8\.weight: expected the bilinear filter") as e:
        network.scores(image)
    assert e.value.fix == "Take the loss of the logits that forward returns."
    assert network(image).shape == (1, NUM_CLASSES, 20, 20)
    network.upscore8.reset_parameters()
    network.scores(image)
    with torch.no_grad():
        network.upscore8.weight[2, 2] *= 1.01
    with pytest.raises(InvalidInput, match="upscore8"):
        network.scores(image)


def test_a_deconvolution_can_be_made_to_learn():
    network = random_network("fcn32s")
    network.upscore.weight.requires_grad_()
    network(torch.randn(1, 3, 20, 20)).square().sum().backward()
    gradient = network.upscore.weight.grad
    assert gradient.shape == network.upscore.weight.shape
    assert gradient[0, 1].any()  # off the diagonal too


def test_scores_leave_no_gradient_to_a_deconvolution_that_learns():
    network = random_network("fcn32s").requires_grad_()
    image = torch.randn(1, 3, 20, 20)
    with pytest.raises(InvalidInput, match=r"upscore\.weight: .*, got weights that learn\."):
        network.scores(image)
    with torch.no_grad():
        network.scores(image)


def test_the_networks_compute_in_bfloat16():
    network = random_network("fcn8s").bfloat16()
    scores, upsampling = network.scores(torch.randn(1, 3, 30, 30).bfloat16())
    assert scores.dtype == torch.bfloat16
    labels = torch.zeros(1, 30, 30, dtype=torch.uint8)
    assert torch.isfinite(upsampled_cross_entropy(scores, labels, upsampling=upsampling))


@pytest.mark.parametrize("num_classes", [1, 2, 33, 151])
def test_any_number_of_classes_is_possible(num_classes):
    network = FCN8sAtOnce(num_classes, (2, 2, 2, 2, 2, 3))
    assert network.num_classes == num_classes
    assert network(torch.zeros(1, 3, 9, 9)).shape == (1, num_classes, 9, 9)


@pytest.mark.parametrize("num_classes", [0, -1, True, 2.0, "21"])
def test_a_wrong_number_of_classes_raises(num_classes):
    with pytest.raises(InvalidInput, match="num_classes: expected an integer of at least 1, got"):
        FCN32s(num_classes, CHANNELS)


@pytest.mark.parametrize("channels", [(8,) * 5, (8,) * 7, (8, 8, 8, 8, 8, 0), 64, (8.0,) * 6])
def test_wrong_channels_raise(channels):
    with pytest.raises(InvalidInput, match="channels: expected six positive integers"):
        FCN8s(5, channels)


@pytest.mark.parametrize("shape", [(3, 9, 9), (1, 4, 9, 9), (1, 3, 0, 9), (1, 3, 9)])
@pytest.mark.parametrize("call", ["forward", "scores"])
def test_an_image_of_another_shape_raises(call, shape):
    network = FCN8s(2, (2, 2, 2, 2, 2, 2))
    with pytest.raises(InvalidInput, match=r"image: expected \(N, 3, H, W\)"):
        getattr(network, call)(torch.zeros(shape))


def test_an_image_of_integers_raises():
    with pytest.raises(InvalidInput, match="image: expected a floating point dtype, got uint8"):
        FCN32s(2, (2, 2, 2, 2, 2, 2))(torch.zeros(1, 3, 9, 9, dtype=torch.uint8))
