"""Other networks with the interface of the FCNs, by what their outputs look like."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import nn

from models.wrap import ScoreNetwork
from seg_loss import Bilinear, InvalidInput, spatial_cross_entropy, upsampled_cross_entropy

NUM_CLASSES = 4
IMAGE = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, NUM_CLASSES, (2, 32, 40), generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Scores at a stride, returned in a given form."""

    def __init__(self, stride, form=lambda scores: scores):
        super().__init__()
        self.score = nn.Conv2d(3, NUM_CLASSES, max(1, stride), stride=max(1, stride))
        self.form = form

    def forward(self, image):
        return self.form(self.score(image))


FORMS = {
    "tensor": lambda scores: scores,
    "torchvision": lambda scores: {"out": scores, "aux": scores.new_zeros(1)},
    "mapping with logits": lambda scores: {"logits": scores},
    "transformers": lambda scores: SimpleNamespace(logits=scores, loss=None),
    "tuple": lambda scores: (scores, None),
    "list": lambda scores: [scores],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_scores_are_found_in_the_output(form):
    module = Network(4, FORMS[form])
    scores, upsampling = ScoreNetwork(module, NUM_CLASSES).scores(IMAGE)
    assert torch.equal(scores, module.score(IMAGE))
    assert upsampling == Bilinear()


def test_an_output_of_another_name_is_named():
    module = Network(4, lambda scores: {"semantic": scores})
    network = ScoreNetwork(module, NUM_CLASSES, output="semantic")
    assert network.scores(IMAGE)[0].shape == (2, NUM_CLASSES, 8, 10)
    module = Network(4, lambda scores: SimpleNamespace(semantic=scores, logits=None))
    network = ScoreNetwork(module, NUM_CLASSES, output="semantic")
    assert network.scores(IMAGE)[0].shape == (2, NUM_CLASSES, 8, 10)


def test_scores_of_the_images_size_need_no_upsampling():
    network = ScoreNetwork(Network(1), NUM_CLASSES)
    scores, upsampling = network.scores(IMAGE)
    assert upsampling is None
    assert torch.equal(network(IMAGE), scores)


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_loss_of_the_scores_is_the_loss_of_the_logits(align_corners):
    network = ScoreNetwork(Network(4), NUM_CLASSES, align_corners=align_corners)
    logits = network(IMAGE)
    expected = F.interpolate(
        network.module(IMAGE), (32, 40), mode="bilinear", align_corners=align_corners
    )
    assert torch.equal(logits, expected)
    scores, upsampling = network.scores(IMAGE)
    fused = upsampled_cross_entropy(scores, LABELS, upsampling=upsampling)
    plain = spatial_cross_entropy(logits, LABELS)
    assert float(fused.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("output", "got"),
    [
        ({"masks": torch.zeros(1)}, r"dict with the keys \['masks'\]"),
        (None, "NoneType"),
        ((), "tuple"),
        ([None], "list"),
        ("scores", "str"),
    ],
)
def test_an_output_without_scores_is_reported(output, got):
    network = ScoreNetwork(Network(4, lambda scores: output), NUM_CLASSES)
    message = (
        rf"output of the network: expected a tensor, or one named 'out' or 'logits', got {got}"
    )
    with pytest.raises(InvalidInput, match=message):
        network(IMAGE)


@pytest.mark.parametrize(
    "shape",
    [
        *((2, 5, 8, 10), (1, 4, 8, 10), (2, 4, 8), (2, 4)),
        *((2, 4, 33, 40), (2, 4, 8, 41), (2, 4, 0, 10)),
    ],
)
def test_scores_of_another_shape_are_reported(shape):
    network = ScoreNetwork(Network(4, lambda scores: torch.zeros(shape)), NUM_CLASSES)
    with pytest.raises(InvalidInput) as caught:
        network.scores(IMAGE)
    assert caught.value.expected == "(2, 4, h from 1 to 32, w from 1 to 40)"
    assert caught.value.got == str(shape)


def test_an_image_without_a_batch_is_reported():
    with pytest.raises(InvalidInput, match=r"image: expected \(N, 3, H, W\), got \(3, 32, 40\)"):
        ScoreNetwork(Network(4), NUM_CLASSES)(IMAGE[0])


def test_scores_larger_than_the_image_name_a_way_out():
    network = ScoreNetwork(Network(4, lambda scores: torch.zeros(2, 4, 64, 64)), NUM_CLASSES)
    with pytest.raises(InvalidInput, match="Crop the scores in the module if it pads its images"):
        network(IMAGE)


@pytest.mark.parametrize("num_classes", [0, True, "4"])
def test_a_wrong_number_of_classes_raises(num_classes):
    with pytest.raises(InvalidInput, match="num_classes: expected an integer of at least 1, got"):
        ScoreNetwork(Network(4), num_classes)


def test_a_function_is_no_module():
    with pytest.raises(InvalidInput, match=r"module: expected a torch\.nn\.Module, got <function"):
        ScoreNetwork(lambda image: image, NUM_CLASSES)


def test_weights_keep_the_names_of_the_module():
    network = ScoreNetwork(Network(4), NUM_CLASSES)
    assert sorted(network.state_dict()) == ["module.score.bias", "module.score.weight"]
