"""Thin FCNs for tests: Caffe's own, from `golden`, and random ones."""

import functools
import gzip
from pathlib import Path

import numpy as np
import torch

from models.networks import NETWORKS

GOLDEN = Path(__file__).parent / "golden"
CHANNELS = (8, 16, 16, 16, 16, 32)
NUM_CLASSES = 5
TORCHVISION = {  # torchvision.models.vgg16: features is a list of convolutions, ReLUs and pools
    "conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10, "conv3_2": 12,
    "conv3_3": 14, "conv4_1": 17, "conv4_2": 19, "conv4_3": 21, "conv5_1": 24, "conv5_2": 26,
    "conv5_3": 28,
}  # fmt: skip
MEAN = (104.00699, 116.66877, 122.67892)


@functools.cache
def caffemodel(name):
    """The bytes of a file that Caffe has written."""
    return gzip.decompress((GOLDEN / f"{name}.caffemodel.gz").read_bytes())


@functools.cache
def arrays(name):
    """What Caffe has computed, as tensors; `data` is the input."""
    golden = np.load(GOLDEN / "fcn_thin.npz")
    found = {
        key.partition("/")[2]: torch.from_numpy(golden[key])
        for key in golden.files
        if key.startswith(f"{name}/")
    }
    mean = torch.tensor(MEAN, dtype=torch.float64).view(1, 3, 1, 1)
    return found | {"data": (found["image"] - mean).float()}


def random_network(name, num_classes=NUM_CLASSES, channels=CHANNELS, seed=0):
    """A network whose scores are not zero, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    network = NETWORKS[name](num_classes, channels).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                fan_in = parameter[0].numel()
                parameter.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
    return network


def torchvision_state(layers):
    """The state of torchvision's vgg16 that has the weights of Caffe's."""
    names = {f"features.{index}": name for name, index in TORCHVISION.items()}
    names |= {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"}
    return {
        f"{key}.{kind}": blob
        for key, name in names.items()
        for kind, blob in zip(("weight", "bias"), layers.get(name, ()), strict=False)
    }
