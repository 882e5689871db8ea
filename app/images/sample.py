"""A synthetic street scene: photo, labels and logits to try the service with, free of any licence.

`draw_sample` draws one scene in perspective, twice with the same outlines: in the colours of a
photo, and in the indices of the 19 Cityscapes classes, of which only the train is missing. The
logits are not those of a trained network. They are the true classes, blurred and perturbed: borders
are uncertain, similar classes are confused, and wrong predictions are too confident. All random
numbers come from one seed, so that the same size gives the same files.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from .files import replace_file
from .indexed import indexed_picture
from .palettes import Colour
from .street import CLASS, PALETTE, VOID, House, Street, blur, smooth_noise, with_void

_SEED = 20150608  # FCN was published in this month


# True class, class that it is confused with, and how strongly: at 1 both are equally likely on
# average.
_CONFUSIONS: tuple[tuple[str, str, float], ...] = (
    ("sidewalk", "road", 0.62),
    ("road", "sidewalk", 0.45),
    ("rider", "person", 0.80),
    ("person", "rider", 0.50),
    ("bicycle", "motorcycle", 0.50),
    ("motorcycle", "bicycle", 0.75),
    ("bus", "truck", 0.62),
    ("truck", "car", 0.70),
    ("car", "truck", 0.40),
    ("wall", "building", 0.75),
    ("fence", "wall", 0.70),
    ("terrain", "vegetation", 0.70),
    ("vegetation", "building", 0.42),
    ("building", "vegetation", 0.48),
    ("building", "wall", 0.44),
    ("pole", "building", 0.50),
    ("traffic light", "pole", 0.45),
    ("traffic sign", "building", 0.40),
)

_CUTS = (0.0, 0.36, 0.58, 0.72, 0.82, 0.90)
_LEFT: tuple[tuple[Colour, float], ...] = (
    ((186, 150, 120), 1.50),
    ((204, 192, 168), 1.95),
    ((150, 104, 88), 1.35),
    ((196, 176, 150), 1.75),
    ((168, 168, 172), 1.45),
)
_RIGHT: tuple[tuple[Colour, float], ...] = (
    ((168, 110, 92), 1.80),
    ((208, 198, 180), 1.40),
    ((146, 140, 136), 1.95),
    ((190, 158, 116), 1.50),
    ((176, 150, 140), 1.85),
)
_HOUSES_ON_THE_LEFT, _HOUSES_ON_THE_RIGHT = (
    tuple(
        House(colour, height, near, distant)
        for (colour, height), near, distant in zip(row, _CUTS[:-1], _CUTS[1:], strict=True)
    )
    for row in (_LEFT, _RIGHT)
)


@dataclass(frozen=True, eq=False)
class Sample:
    """The scene.

    Attributes:
        photo: uint8 [H,W,3].
        labels: uint8 [H,W], with the indices 0…18 and 255.
        logits: float32 [19,H,W].
    """

    photo: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True)
class SampleFiles:
    """The paths of the three files.

    Attributes:
        photo: PNG of mode RGB.
        labels: PNG of mode P, with the indices 0…18 and 255.
        logits: NPY, float32 [1,19,H,W].
    """

    photo: Path
    labels: Path
    logits: Path


def draw_sample(height: int = 256, width: int = 512) -> Sample:
    """Returns the scene of this size.

    Raises:
        ValueError: if height or width is below 32 pixels, where no object is recognisable.
    """
    if height < 32 or width < 32:
        raise ValueError(f"sample: expected sides of at least 32 pixels, got {height} x {width}.")
    random = np.random.default_rng(_SEED)
    street = Street(height, width)
    _draw(street)
    truth, instances = street.truth()
    photo = street.photo(random)
    return Sample(photo, with_void(truth, instances), _logits(truth, random))


def make_sample(directory: Path, *, height: int = 256, width: int = 512) -> SampleFiles:
    """Writes `photo.png`, `labels.png` and `logits.npy`, and no other file, into a directory.

    The directory is created if it does not exist. Files of the three names are replaced, each in
    one step, so that no other process reads an incomplete file.

    Raises:
        ValueError: if height or width is below 32 pixels, where no object is recognisable.
        OSError: if the directory cannot be created or written to.
    """
    sample = draw_sample(height, width)
    files = SampleFiles(directory / "photo.png", directory / "labels.png", directory / "logits.npy")
    directory.mkdir(parents=True, exist_ok=True)
    photo = Image.fromarray(sample.photo)
    labels = indexed_picture(sample.labels, PALETTE)
    logits = sample.logits[None]
    replace_file(files.photo, lambda file: photo.save(file, "PNG"))
    replace_file(files.labels, lambda file: labels.save(file, "PNG"))
    replace_file(files.logits, lambda file: np.save(file, logits, allow_pickle=False))
    return files


def _draw(street: Street) -> None:
    """Draws the scene, from the background to the foreground."""
    street.begin("sky")
    for x, y, radius in ((0.76, 0.13, 0.10), (0.86, 0.11, 0.12), (0.97, 0.135, 0.10)):
        street.disc((196, 216, 234), x, y, radius, aspect=0.30)
    for x, y, radius in ((1.20, 0.05, 0.09), (1.30, 0.035, 0.11)):
        street.disc((190, 212, 232), x, y, radius, aspect=0.28)
    street.sidewalk((158, 152, 148), (146, 140, 136))
    street.road(-1.02, 0.90, (96, 97, 101), (186, 182, 176))
    street.begin("terrain")
    street.polygon((118, 140, 76), street.strip(-1.92, -1.62, 0.0, 0.80))
    street.row_of_houses(-2.35, _HOUSES_ON_THE_LEFT)
    street.row_of_houses(2.05, _HOUSES_ON_THE_RIGHT)
    street.wall(-1.96, 0.16, 0.50, 0.66)
    street.fence(1.86, 0.17, 0.30, 0.52)
    _distant_buildings_and_trees(street)
    street.lane_markings(
        ((-0.95, -0.93), (-0.075, -0.045), (0.82, 0.84)), ((222, 222, 216), (214, 214, 208))
    )
    street.zebra_crossing(-0.88, 0.80, 0.48, 0.56)
    for x, y, size in ((0.60, 0.475, 0.40), (0.47, 0.50, 0.62), (0.22, 0.55, 1.05)):
        street.tree(x, y, size)
    for x, y, size in ((1.50, 0.50, 0.55), (1.78, 0.56, 0.95)):
        street.tree(x, y, size)
    street.truck(0.865, 0.505, 0.125)
    street.car(0.98, 0.515, 0.085, (120, 30, 34), (196, 30, 30))
    street.car(0.795, 0.535, 0.105, (70, 84, 110), (196, 30, 30))
    street.car(0.915, 0.565, 0.125, (206, 208, 210), (196, 30, 30))
    street.car(0.685, 0.575, 0.150, (150, 152, 156), (196, 30, 30))
    street.bus(1.20, 0.585, 0.30)
    street.person(0.29, 0.595, 0.125, (196, 190, 180), (50, 50, 60))
    street.lamp(0.575, 0.600, 0.36)
    street.sign(0.345, 0.655, 0.34)
    street.traffic_light(1.655, 0.650, 0.40)
    street.person(1.725, 0.66, 0.18, (60, 76, 120), (40, 40, 48))
    street.person(1.785, 0.665, 0.17, (172, 60, 56), (58, 54, 60))
    street.car(0.505, 0.675, 0.235, (46, 92, 140), (196, 30, 30))
    street.person(0.12, 0.74, 0.27, (70, 110, 92), (50, 46, 44))
    street.cyclist(0.795, 0.755, 0.33)
    street.car(1.490, 0.760, 0.300, (176, 42, 38), (246, 240, 214))
    street.person(1.87, 0.775, 0.30, (206, 180, 120), (44, 56, 84))
    street.motorcycle(0.300, 0.830, 0.225)
    street.bonnet()


def _distant_buildings_and_trees(street: Street) -> None:
    """Draws trees and a distant building around the vanishing point."""
    x, y = street.vanishing_point
    street.begin("building")
    street.box((166, 164, 168), x - 0.16, y - 0.105, x + 0.13, y + 0.035)
    street.box((150, 150, 158), x - 0.05, y - 0.165, x + 0.03, y + 0.035)
    street.begin("vegetation")
    for dx, radius in (
        (-0.17, 0.035),
        (-0.12, 0.028),
        (0.10, 0.03),
        (0.15, 0.04),
        (0.20, 0.04),
    ):
        street.disc((84, 112, 68), x + dx, y + 0.01, radius)


def _logits(truth: npt.NDArray[np.uint8], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Returns logits, float32 [19,H,W], as a network might compute them."""
    height, width = truth.shape
    num_classes = len(CLASS)
    cell = max(height // 32, 2)  # networks predict at low resolution and upsample
    onehot = (truth == np.arange(num_classes, dtype=np.uint8)[:, None, None]).astype(np.float32)
    onehot[CLASS["car"]] += truth == VOID  # the network predicts a car for the bonnet
    smooth = blur(blur(onehot, cell // 8 + 1), cell // 8)
    smoother = blur(blur(onehot, cell), cell)
    evidence = 0.75 * smooth + 0.25 * smoother
    evidence[CLASS["pole"]] *= 1.9  # poles are so thin that the blur would remove them
    scores = evidence.copy()
    clouds = smooth_noise(random, len(_CONFUSIONS), height, width, cell * 2)
    for (true, predicted, strength), cloud in zip(_CONFUSIONS, clouds, strict=True):
        strength_map = np.clip(strength + 0.36 * cloud, 0, 1.4)
        scores[CLASS[predicted]] += strength_map * evidence[CLASS[true]]
    scores *= 16.0
    scores += 1.8 * smooth_noise(random, num_classes, height, width, cell)
    scores += 0.9 * (random.random(scores.shape, dtype=np.float32) - 0.5)
    # A network prefers frequent classes.
    frequency = onehot.mean(axis=(1, 2))
    scores += 7 * np.sqrt(frequency)[:, None, None]
    return scores.astype(np.float32)
