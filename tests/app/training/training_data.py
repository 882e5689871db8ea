"""Small data sets and networks for the tests of training."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

COLOURS = np.array([(60, 60, 60), (220, 40, 40), (40, 60, 220)], dtype=np.uint8)
"""The colours of the classes 0, 1 and 2 in photos."""
NUM_CLASSES = len(COLOURS)
TINY = f"{__name__}:tiny_network"
PLAIN = f"{__name__}:PlainNetwork"
SKIPPING = f"{__name__}:SkippingNetwork"
"""The names of networks of the user."""


def make_labels(seed, height=20, width=24):
    """Labels [H,W] with a square of class 1 and of class 2, and a row of 255."""
    random = np.random.default_rng(seed)
    labels = np.zeros((height, width), dtype=np.uint8)
    for value in (1, 2):
        top, left = random.integers(height - 8), random.integers(width - 8)
        labels[top : top + 8, left : left + 8] = value
    labels[seed % height] = 255
    return labels


def photo_of(labels):
    """A photo in which each class has its colour."""
    return COLOURS[np.where(labels == 255, 0, labels)]


def write_pair(photo, labels, seed, **size):
    """Writes a photo, as PNG, and its labels."""
    values = make_labels(seed, **size)
    for path in (photo, labels):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo_of(values)).save(photo)
    Image.fromarray(values).save(labels)


def write_voc(root, num_train=6, num_val=2, **size):
    """Writes a data set in the layout of VOC, and returns its folder."""
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    names = [f"2007_{index:06d}" for index in range(num_train + num_val)]
    for seed, name in enumerate(names):
        photo = root / "JPEGImages" / f"{name}.png"
        write_pair(photo, root / "SegmentationClass" / f"{name}.png", seed, **size)
    for split, chosen in (("train", names[:num_train]), ("val", names[num_train:])):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in chosen))
    return Path(root)


def tiny_network(num_classes):
    """A network with dropout and scores of half the size, which `models` wraps."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Dropout2d(0.25),
        nn.Conv2d(8, num_classes, 1),
    )


class PlainNetwork(nn.Module):
    """A network without dropout, with a layer that nothing uses and one with the image's size."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.score = nn.Conv2d(8, num_classes, 1)
        self.auxiliary = nn.Conv2d(8, num_classes, 1)

    def forward(self, image):
        """Returns scores of the image's size."""
        return self.score(self.conv(image).relu())


class SkippingNetwork(PlainNetwork):
    """A network that skips a layer in each second training step, as stochastic depth does."""

    _num_steps = 0

    def forward(self, image):
        """Returns scores of the image's size."""
        features = self.conv(image).relu()
        scores = self.score(features)
        if self.training:
            self._num_steps += 1
            if self._num_steps % 2 == 0:
                scores = scores + self.auxiliary(features)
        return scores
