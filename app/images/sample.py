"""A synthetic street scene: photo, labels and logits to try the service with, free of any licence.

`make_sample` draws one scene in perspective, twice with the same outlines: in the colours of a
photo, and in the indices of the 19 Cityscapes classes, of which only the train is missing. The
logits are not those of a trained network. They are the true classes, blurred and perturbed: borders
are uncertain, similar classes are confused, and wrong predictions are too confident. All random
numbers come from one seed, so that the same size gives the same files.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .palettes import PALETTES, Colour
from .render import indexed_picture

_SEED = 20150608  # FCN was published in this month
_SUPERSAMPLING = 2

_PALETTE = PALETTES["cityscapes"]
_NAMES = _PALETTE.class_names
_CLASS = {name: index for index, name in enumerate(_NAMES)}
_VOID = _PALETTE.ignore_index

_THINGS = ("person", "rider", "car", "truck", "bus", "motorcycle", "bicycle")
"""Classes around which the labels have a void border."""

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

Point = tuple[float, float]


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


def make_sample(directory: Path, *, height: int = 256, width: int = 512) -> SampleFiles:
    """Writes `photo.png`, `labels.png` and `logits.npy`, and no other file, into a directory.

    The directory is created if it does not exist. Files of the three names are replaced, each in
    one step, so that no other process reads an incomplete file.

    Raises:
        ValueError: if height or width is below 32 pixels, where no object is recognisable.
        OSError: if the directory cannot be created or written to.
    """
    if height < 32 or width < 32:
        raise ValueError(f"sample: expected sides of at least 32 pixels, got {height} x {width}.")
    random = np.random.default_rng(_SEED)
    street = _Street(height, width)
    street.draw()
    truth, instances = street.truth()
    labels = _with_void(truth, instances)

    files = SampleFiles(directory / "photo.png", directory / "labels.png", directory / "logits.npy")
    directory.mkdir(parents=True, exist_ok=True)
    photo = Image.fromarray(street.photo(random))
    logits = _logits(truth, random)[None]
    _write(files.photo, lambda file: photo.save(file, "PNG"))
    _write(files.labels, lambda file: indexed_picture(labels, _PALETTE).save(file, "PNG"))
    _write(files.logits, lambda file: np.save(file, logits, allow_pickle=False))
    return files


class _Street:
    """Draws each shape into a photo, a map of classes and a map of instances.

    Coordinates are relative to the size of the picture: x from 0 to 2 and y from 0 to 1, so that
    shapes have their natural proportions in pictures of 2:1.
    """

    HORIZON = 0.44
    VANISHING_POINT: Point = (1.04, 0.44)

    def __init__(self, height: int, width: int) -> None:
        self.size = (height, width)
        canvas = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
        self.scale = (canvas[0] / 2, float(canvas[1]))
        self._photo = Image.new("RGB", canvas, (172, 200, 226))
        self._classes = Image.new("L", canvas, _CLASS["sky"])
        self._instances = Image.new("L", canvas, 0)
        self._pens = (ImageDraw.Draw(self._photo), ImageDraw.Draw(self._classes))
        self._instance_pen = ImageDraw.Draw(self._instances)
        self._class = _CLASS["sky"]
        self._instance = 0
        self._num_instances = 0

    def truth(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Returns classes and instances, uint8 [H,W]; instance 0 has no void border."""
        step = slice(None, None, _SUPERSAMPLING)
        return np.array(self._classes)[step, step], np.array(self._instances)[step, step]

    def photo(self, random: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Returns the drawing, uint8 [H,W,3], with shading, surface texture and sensor noise."""
        height, width = self.size
        drawing = np.array(self._photo.reduce(_SUPERSAMPLING), dtype=np.float32)
        classes, _ = self.truth()
        roughness = np.full(_VOID + 1, 3.0, dtype=np.float32)
        roughness[[_CLASS["road"], _CLASS["sidewalk"], _CLASS["building"]]] = 8.0
        roughness[[_CLASS["vegetation"], _CLASS["terrain"]]] = 26.0
        roughness[_CLASS["sky"]] = 1.0
        grain = random.random((height, width), dtype=np.float32) - 0.5
        coarse = _smooth_noise(random, 1, height, width, height // 40 + 1)[0]
        light = _smooth_noise(random, 1, height, width, height // 5 + 1)[0]
        is_sky = classes == _CLASS["sky"]
        shade = roughness[classes] * (grain + 0.35 * coarse) + np.where(is_sky, 1, 7) * light
        # The sky is lighter towards the horizon, the street darker towards the viewer.
        depth = np.linspace(0, 1, height, dtype=np.float32)[:, None]
        shade += np.where(is_sky, 60 * depth - 14, 10 - 26 * depth)
        sensor = 4 * (random.random((height, width, 3), dtype=np.float32) - 0.5)
        drawing += shade[:, :, None] + sensor
        return np.rint(np.clip(drawing, 0, 255)).astype(np.uint8)

    # Drawing tools

    def begin(self, name: str) -> None:
        """Gives the shapes that follow a class, and a new instance if the class has borders."""
        self._class = _CLASS[name]
        self._instance = 0
        if name in _THINGS:
            self._num_instances += 1
            self._instance = self._num_instances

    def polygon(self, colour: Colour, points: Sequence[Point]) -> None:
        scaled = [(x * self.scale[0], y * self.scale[1]) for x, y in points]
        self._pens[0].polygon(scaled, fill=colour)
        self._pens[1].polygon(scaled, fill=self._class)
        self._instance_pen.polygon(scaled, fill=self._instance)

    def box(self, colour: Colour, left: float, top: float, right: float, bottom: float) -> None:
        self.polygon(colour, ((left, top), (right, top), (right, bottom), (left, bottom)))

    def disc(self, colour: Colour, x: float, y: float, radius: float, aspect: float = 1.0) -> None:
        angles = np.arange(24) * (2 * np.pi / 24)
        self.polygon(
            colour,
            list(
                zip(x + radius * np.cos(angles), y + radius * aspect * np.sin(angles), strict=True)
            ),
        )

    def line(self, colour: Colour, points: Sequence[Point], thickness: float) -> None:
        for (x0, y0), (x1, y1) in pairwise(points):
            length = max(np.hypot(x1 - x0, y1 - y0), 1e-6)
            dx, dy = (x1 - x0) / length * thickness / 2, (y1 - y0) / length * thickness / 2
            self.polygon(
                colour,
                ((x0 - dy, y0 + dx), (x1 - dy, y1 + dx), (x1 + dy, y1 - dx), (x0 + dy, y0 - dx)),
            )

    def recede(self, point: Point, fraction: float) -> Point:
        """Returns a point moved towards the vanishing point by a fraction of the distance."""
        return (
            point[0] + (self.VANISHING_POINT[0] - point[0]) * fraction,
            point[1] + (self.VANISHING_POINT[1] - point[1]) * fraction,
        )

    # The scene, from the background to the foreground

    def draw(self) -> None:
        self._clouds_in_the_sky()
        self._ground()
        self._row_of_houses(left=True)
        self._row_of_houses(left=False)
        self._wall_and_fence()
        self._background()
        self._markings()
        for x, y, size in ((0.60, 0.475, 0.40), (0.47, 0.50, 0.62), (0.22, 0.55, 1.05)):
            self._tree(x, y, size)
        for x, y, size in ((1.50, 0.50, 0.55), (1.78, 0.56, 0.95)):
            self._tree(x, y, size)
        self._truck(0.865, 0.505, 0.125)
        self._car(0.98, 0.515, 0.085, (120, 30, 34), (196, 30, 30))
        self._car(0.795, 0.535, 0.105, (70, 84, 110), (196, 30, 30))
        self._car(0.915, 0.565, 0.125, (206, 208, 210), (196, 30, 30))
        self._car(0.685, 0.575, 0.150, (150, 152, 156), (196, 30, 30))
        self._bus(1.20, 0.585, 0.30)
        self._person(0.29, 0.595, 0.125, (196, 190, 180), (50, 50, 60))
        self._lamp(0.575, 0.600, 0.36)
        self._sign(0.345, 0.655, 0.34)
        self._traffic_light(1.655, 0.650, 0.40)
        self._person(1.725, 0.66, 0.18, (60, 76, 120), (40, 40, 48))
        self._person(1.785, 0.665, 0.17, (172, 60, 56), (58, 54, 60))
        self._car(0.505, 0.675, 0.235, (46, 92, 140), (196, 30, 30))
        self._person(0.12, 0.74, 0.27, (70, 110, 92), (50, 46, 44))
        self._cyclist(0.795, 0.755, 0.33)
        self._car(1.490, 0.760, 0.300, (176, 42, 38), (246, 240, 214))
        self._person(1.87, 0.775, 0.30, (206, 180, 120), (44, 56, 84))
        self._motorcycle(0.300, 0.830, 0.225)
        self._bonnet()

    def _clouds_in_the_sky(self) -> None:
        self.begin("sky")
        for x, y, radius in ((0.76, 0.13, 0.10), (0.86, 0.11, 0.12), (0.97, 0.135, 0.10)):
            self.disc((196, 216, 234), x, y, radius, aspect=0.30)
        for x, y, radius in ((1.20, 0.05, 0.09), (1.30, 0.035, 0.11)):
            self.disc((190, 212, 232), x, y, radius, aspect=0.28)

    def _ground(self) -> None:
        horizon = self.HORIZON
        self.begin("sidewalk")
        self.box((158, 152, 148), 0, horizon, 2, 1)
        for side in (-1.0, 1.0):
            for near in np.arange(0.35, 3.2, 0.28):  # the joints between paving slabs
                foot = (self.VANISHING_POINT[0] + side * near, 1.0)
                self.line((146, 140, 136), (foot, self.recede(foot, 0.97)), 0.003)
        self.begin("road")
        self.polygon((96, 97, 101), self._strip(-1.02, 0.90))
        self.begin("sidewalk")  # the kerbs
        self.polygon((186, 182, 176), self._strip(-1.06, -1.02))
        self.polygon((186, 182, 176), self._strip(0.90, 0.94))
        self.begin("terrain")
        self.polygon((118, 140, 76), self._strip(-1.92, -1.62, 0.0, 0.80))

    def _strip(
        self, left: float, right: float, near: float = 0.0, distant: float = 1.0
    ) -> list[Point]:
        """Returns a strip of the ground; left and right are x at the bottom edge of the picture."""
        corners = [(self.VANISHING_POINT[0] + side, 1.0) for side in (left, right)]
        return [
            self.recede(corners[0], near),
            self.recede(corners[0], distant),
            self.recede(corners[1], distant),
            self.recede(corners[1], near),
        ]

    def _row_of_houses(self, *, left: bool) -> None:
        """Draws facades along one side, in a plane through the vanishing point."""
        side = -1.0 if left else 1.0
        reach = 2.35 if left else 2.05
        colours: tuple[Colour, ...] = (
            ((186, 150, 120), (204, 192, 168), (150, 104, 88), (196, 176, 150), (168, 168, 172))
            if left
            else (
                (168, 110, 92),
                (208, 198, 180),
                (146, 140, 136),
                (190, 158, 116),
                (176, 150, 140),
            )
        )
        heights = (1.50, 1.95, 1.35, 1.75, 1.45) if left else (1.80, 1.40, 1.95, 1.50, 1.85)
        cuts = (0.0, 0.36, 0.58, 0.72, 0.82, 0.90)
        for colour, height, near, distant in zip(
            colours, heights, cuts[:-1], cuts[1:], strict=True
        ):

            def at(along: float, up: float, near: float = near, distant: float = distant) -> Point:
                fraction = near + (distant - near) * along
                return self.recede((self.VANISHING_POINT[0] + side * reach, 1.0 - up), fraction)

            def patch(colour: Colour, start: float, low: float, stop: float, high: float) -> None:
                self.polygon(
                    colour, (at(start, low), at(stop, low), at(stop, high), at(start, high))
                )

            self.begin("building")
            patch(colour, 0, 0, 1, height)
            dark: Colour = (colour[0] - 40, colour[1] - 40, colour[2] - 36)
            patch(dark, 0, 0, 1, 0.30)
            patch((88, 66, 58), 0, height, 1, height + 0.05)
            columns = 4 if near == 0 else 3
            for column in range(columns):
                start, stop = (column + 0.22) / columns, (column + 0.74) / columns
                patch((58, 62, 70), start, 0.05, stop, 0.24)
                for floor in np.arange(0.40, height - 0.14, 0.26):
                    lit = (column + round(floor * 50)) % 5 == 0
                    patch((224, 222, 212), start - 0.02, floor - 0.02, stop + 0.02, floor + 0.17)
                    patch(
                        (150, 176, 196) if lit else (70, 84, 100), start, floor, stop, floor + 0.15
                    )

    def _wall_and_fence(self) -> None:
        """Draws a wall before the houses on the left, and a fence before those on the right."""
        self.begin("wall")
        self.polygon((132, 120, 112), self._upright(-1.96, 0.16, 0.50, 0.66))
        self.begin("fence")
        self.polygon((108, 96, 84), self._upright(1.86, 0.17, 0.30, 0.52))
        for near in np.arange(0.30, 0.52, 0.018):
            foot, _, _, top = self._upright(1.86, 0.17, near, near)
            self.line((74, 64, 56), (foot, top), 0.004)

    def _upright(self, side: float, height: float, near: float, distant: float) -> list[Point]:
        """Returns a wall along the street; `side` is x of its foot, as in `_strip`."""
        x = self.VANISHING_POINT[0] + side
        return [
            self.recede((x, 1.0), near),
            self.recede((x, 1.0), distant),
            self.recede((x, 1.0 - height), distant),
            self.recede((x, 1.0 - height), near),
        ]

    def _background(self) -> None:
        """Draws trees and a distant building around the vanishing point."""
        x, y = self.VANISHING_POINT
        self.begin("building")
        self.box((166, 164, 168), x - 0.16, y - 0.105, x + 0.13, y + 0.035)
        self.box((150, 150, 158), x - 0.05, y - 0.165, x + 0.03, y + 0.035)
        self.begin("vegetation")
        for dx, radius in (
            (-0.17, 0.035),
            (-0.12, 0.028),
            (0.10, 0.03),
            (0.15, 0.04),
            (0.20, 0.04),
        ):
            self.disc((84, 112, 68), x + dx, y + 0.01, radius)

    def _markings(self) -> None:
        self.begin("road")
        for near in np.arange(0.04, 0.92, 0.115):
            length = 0.055 * (1 - near)
            self.polygon((222, 222, 216), self._strip(-0.075, -0.045, near, near + length + 0.012))
        self.polygon((214, 214, 208), self._strip(-0.95, -0.93, 0, 0.97))
        self.polygon((214, 214, 208), self._strip(0.82, 0.84, 0, 0.97))
        for left in np.arange(-0.88, 0.80, 0.155):  # a zebra crossing
            self.polygon((218, 218, 212), self._strip(left, left + 0.08, 0.48, 0.56))

    def _tree(self, x: float, y: float, size: float) -> None:
        self.begin("vegetation")
        self.line((84, 66, 52), ((x, y + 0.02 * size), (x, y - 0.22 * size)), 0.022 * size)
        crown = ((0, -0.34, 0.13), (-0.10, -0.27, 0.10), (0.10, -0.28, 0.10), (0.03, -0.22, 0.09))
        for shade, shift in (((56, 88, 44), 0.0), ((74, 112, 54), -0.015), ((96, 134, 66), -0.03)):
            for dx, dy, radius in crown:
                self.disc(
                    shade, x + (dx + shift) * size, y + (dy + shift) * size, (radius + shift) * size
                )

    def _car(self, x: float, y: float, size: float, colour: Colour, lamp: Colour) -> None:
        """Draws a car; its wheels stand at y, and `size` is its width."""
        self.begin("car")
        dark: Colour = (colour[0] * 3 // 4, colour[1] * 3 // 4, colour[2] * 3 // 4)
        half, height = size / 2, size * 0.80
        for wheel in (x - half * 0.72, x + half * 0.72):
            self.box((26, 26, 28), wheel - size * 0.09, y - size * 0.16, wheel + size * 0.09, y)
        self.box((34, 34, 38), x - half * 0.9, y - size * 0.14, x + half * 0.9, y - size * 0.06)
        self.box(colour, x - half, y - height * 0.62, x + half, y - size * 0.12)
        self.polygon(
            dark,
            (
                (x - half * 0.94, y - height * 0.60),
                (x - half * 0.70, y - height),
                (x + half * 0.70, y - height),
                (x + half * 0.94, y - height * 0.60),
            ),
        )
        self.polygon(
            (62, 78, 92),
            (
                (x - half * 0.80, y - height * 0.63),
                (x - half * 0.62, y - height * 0.94),
                (x + half * 0.62, y - height * 0.94),
                (x + half * 0.80, y - height * 0.63),
            ),
        )
        for left in (x - half * 0.95, x + half * 0.60):
            self.box(lamp, left, y - height * 0.54, left + half * 0.35, y - height * 0.42)
        self.box(
            (228, 228, 220), x - half * 0.24, y - height * 0.36, x + half * 0.24, y - height * 0.26
        )

    def _truck(self, x: float, y: float, size: float) -> None:
        self.begin("truck")
        half = size / 2
        for wheel in (x - half * 0.7, x + half * 0.7):
            self.box((26, 26, 28), wheel - size * 0.08, y - size * 0.16, wheel + size * 0.08, y)
        self.box((226, 222, 210), x - half, y - size * 1.25, x + half, y - size * 0.20)
        self.box((200, 196, 184), x - size * 0.02, y - size * 1.2, x + size * 0.02, y - size * 0.26)
        self.box((60, 60, 64), x - half, y - size * 0.24, x + half, y - size * 0.10)

    def _bus(self, x: float, y: float, height: float) -> None:
        """Draws an oncoming bus: its front, and the side towards the vanishing point."""
        self.begin("bus")
        width = height * 0.74
        front = ((x, y), (x + width, y), (x + width, y - height), (x, y - height))
        back = [self.recede(point, 0.36) for point in front]
        self.polygon((150, 112, 20), (front[0], back[0], back[3], front[3]))
        self.polygon(
            (48, 60, 72),
            tuple(
                self.recede((x, y - height * up), fraction)
                for fraction, up in ((0.03, 0.52), (0.34, 0.52), (0.34, 0.86), (0.03, 0.86))
            ),
        )
        for fraction in (0.06, 0.26):
            self.disc(
                (24, 24, 26),
                *self.recede((x, y - height * 0.04), fraction),
                height * 0.07,
                aspect=1.3,
            )
        self.polygon((222, 170, 36), front)
        self.box(
            (30, 30, 34), x + width * 0.05, y - height * 0.97, x + width * 0.95, y - height * 0.86
        )
        self.box(
            (250, 196, 70), x + width * 0.2, y - height * 0.94, x + width * 0.7, y - height * 0.89
        )
        self.box(
            (70, 90, 106), x + width * 0.06, y - height * 0.83, x + width * 0.94, y - height * 0.42
        )
        self.line(
            (40, 44, 50),
            ((x + width * 0.5, y - height * 0.83), (x + width * 0.5, y - height * 0.42)),
            0.006,
        )
        for lamp in (0.16, 0.84):
            self.disc((250, 246, 224), x + width * lamp, y - height * 0.22, height * 0.05)
        self.box((40, 40, 42), x, y - height * 0.09, x + width, y - height * 0.02)

    def _lamp(self, x: float, y: float, height: float) -> None:
        self.begin("pole")
        self.line(
            (92, 96, 98), ((x, y), (x, y - height), (x + height * 0.22, y - height * 1.04)), 0.011
        )
        self.box(
            (70, 74, 76), x + height * 0.2, y - height * 1.07, x + height * 0.36, y - height * 1.03
        )

    def _traffic_light(self, x: float, y: float, height: float) -> None:
        self.begin("pole")
        self.line((70, 72, 74), ((x, y), (x, y - height)), 0.014)
        self.begin("traffic light")
        width, top = height * 0.09, y - height * 1.02
        self.box((30, 32, 32), x - width, top - height * 0.14, x + width, top + height * 0.30)
        lights: tuple[Colour, ...] = ((72, 22, 20), (78, 64, 20), (64, 232, 120))
        for number, light in enumerate(lights):
            self.disc(light, x, top - height * 0.06 + height * 0.14 * number, width * 0.66)

    def _sign(self, x: float, y: float, height: float) -> None:
        self.begin("pole")
        self.line((128, 130, 132), ((x, y), (x, y - height)), 0.010)
        self.begin("traffic sign")
        self.disc((196, 30, 36), x, y - height, height * 0.17)
        self.disc((244, 244, 240), x, y - height, height * 0.125)
        self.box(
            (40, 40, 42), x - height * 0.08, y - height * 1.03, x + height * 0.08, y - height * 0.97
        )

    def _person(self, x: float, y: float, height: float, coat: Colour, legs: Colour) -> None:
        """Draws a walking person, with the feet at y."""
        self.begin("person")
        stride = height * 0.11
        for side in (-1, 1):
            self.line(legs, ((x + side * stride, y), (x, y - height * 0.50)), height * 0.10)
        self._upper_body(x, y - height * 0.48, height, coat)

    def _upper_body(self, x: float, hip: float, height: float, coat: Colour) -> None:
        self.polygon(
            coat,
            (
                (x - height * 0.10, hip),
                (x + height * 0.10, hip),
                (x + height * 0.13, hip - height * 0.34),
                (x - height * 0.13, hip - height * 0.34),
            ),
        )
        dark: Colour = (coat[0] * 4 // 5, coat[1] * 4 // 5, coat[2] * 4 // 5)
        for side in (-1, 1):
            self.line(
                dark,
                ((x + side * height * 0.12, hip - height * 0.31), (x + side * height * 0.16, hip)),
                height * 0.06,
            )
        self.disc((206, 160, 130), x, hip - height * 0.43, height * 0.072, aspect=1.15)
        self.disc((60, 44, 34), x, hip - height * 0.47, height * 0.068, aspect=0.75)

    def _wheel(self, x: float, y: float, radius: float, rim: Colour) -> None:
        """Draws a wheel with spokes; the whole disc has the label of the vehicle."""
        self.disc((24, 24, 26), x, y, radius)
        self.disc(rim, x, y, radius * 0.80)
        self.line((150, 150, 152), ((x - radius * 0.8, y), (x + radius * 0.8, y)), radius * 0.06)
        self.line((150, 150, 152), ((x, y - radius * 0.8), (x, y + radius * 0.8)), radius * 0.06)
        self.disc((60, 60, 62), x, y, radius * 0.16)

    def _cyclist(self, x: float, y: float, height: float) -> None:
        """Draws a cyclist who crosses the road to the right."""
        self.begin("bicycle")
        radius = height * 0.17
        hub = y - radius
        back, front = x - height * 0.27, x + height * 0.27
        for wheel in (back, front):
            self._wheel(wheel, hub, radius, (104, 105, 108))
        seat, bars = (
            (x - height * 0.12, hub - height * 0.26),
            (x + height * 0.19, hub - height * 0.30),
        )
        crank = (x - height * 0.03, hub + height * 0.01)
        frame = ((back, hub), seat, crank, (back, hub), crank, bars, seat)
        self.line((30, 128, 150), frame, height * 0.03)
        self.line((30, 128, 150), ((front, hub), bars), height * 0.03)
        self.begin("rider")
        self.line(
            (44, 46, 60),
            (
                (x - height * 0.11, hub - height * 0.29),
                (x + height * 0.06, hub - height * 0.17),
                crank,
            ),
            height * 0.075,
        )
        self.polygon(
            (232, 120, 40),
            (
                (x - height * 0.17, hub - height * 0.28),
                (x - height * 0.03, hub - height * 0.27),
                (x + height * 0.10, hub - height * 0.56),
                (x - height * 0.02, hub - height * 0.60),
            ),
        )
        self.line((206, 160, 130), ((x + height * 0.05, hub - height * 0.54), bars), height * 0.05)
        self.disc(
            (206, 160, 130), x + height * 0.10, hub - height * 0.66, height * 0.068, aspect=1.1
        )
        self.disc(
            (236, 236, 232), x + height * 0.09, hub - height * 0.70, height * 0.078, aspect=0.7
        )

    def _motorcycle(self, x: float, y: float, size: float) -> None:
        """Draws a parked motorcycle, seen from the side."""
        self.begin("motorcycle")
        radius = size * 0.22
        for wheel in (x - size * 0.36, x + size * 0.36):
            self.disc((24, 24, 26), wheel, y - radius, radius)
            self.disc((120, 122, 126), wheel, y - radius, radius * 0.45)
        hub = (x + size * 0.36, y - radius)
        self.line((60, 62, 66), (hub, (x + size * 0.18, y - size * 0.74)), size * 0.06)
        self.box((74, 76, 82), x - size * 0.14, y - size * 0.38, x + size * 0.14, y - size * 0.14)
        self.line(
            (150, 152, 156), ((x, y - size * 0.16), (x - size * 0.46, y - size * 0.20)), size * 0.05
        )
        self.polygon(
            (30, 84, 58),
            (
                (x - size * 0.10, y - size * 0.58),
                (x + size * 0.20, y - size * 0.62),
                (x + size * 0.24, y - size * 0.42),
                (x - size * 0.12, y - size * 0.36),
            ),
        )
        self.polygon(
            (32, 30, 32),
            (
                (x - size * 0.50, y - size * 0.56),
                (x - size * 0.06, y - size * 0.52),
                (x - size * 0.10, y - size * 0.36),
                (x - size * 0.40, y - size * 0.42),
            ),
        )
        self.line(
            (30, 30, 32),
            ((x + size * 0.06, y - size * 0.76), (x + size * 0.22, y - size * 0.72)),
            size * 0.05,
        )

    def _bonnet(self) -> None:
        """Draws the bonnet of the car that carries the camera; it is void."""
        self._class, self._instance = _VOID, 0
        angles = np.linspace(np.pi, 2 * np.pi, 40)
        for colour, drop in (((24, 27, 32), 0.0), ((44, 49, 57), 0.012)):
            arc = zip(
                1.0 + 0.98 * np.cos(angles), 1.02 + drop + 0.085 * np.sin(angles), strict=True
            )
            self.polygon(colour, [*arc, (2.0, 1.1), (0.0, 1.1)])


def _with_void(
    truth: npt.NDArray[np.uint8], instances: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Returns labels with a void border wherever two instances meet, as in VOC."""
    padded = np.pad(instances, 1, mode="edge")
    height, width = instances.shape
    border = np.zeros(instances.shape, dtype=np.bool_)
    for down, right in ((0, 1), (1, 0), (1, 2), (2, 1)):
        border |= padded[down : down + height, right : right + width] != instances
    return np.where(border, np.uint8(_VOID), truth)


def _logits(truth: npt.NDArray[np.uint8], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Returns logits, float32 [19,H,W], as a network might compute them."""
    height, width = truth.shape
    num_classes = len(_NAMES)
    cell = max(height // 32, 2)  # networks predict at low resolution and upsample
    onehot = (truth == np.arange(num_classes, dtype=np.uint8)[:, None, None]).astype(np.float32)
    onehot[_CLASS["car"]] += truth == _VOID  # the network predicts a car for the bonnet
    smooth = _blur(_blur(onehot, cell // 8 + 1), cell // 8)
    smoother = _blur(_blur(onehot, cell), cell)
    evidence = 0.75 * smooth + 0.25 * smoother
    evidence[_CLASS["pole"]] *= 1.9  # poles are so thin that the blur would remove them
    scores = evidence.copy()
    clouds = _smooth_noise(random, len(_CONFUSIONS), height, width, cell * 2)
    for (true, predicted, strength), cloud in zip(_CONFUSIONS, clouds, strict=True):
        strength_map = np.clip(strength + 0.36 * cloud, 0, 1.4)
        scores[_CLASS[predicted]] += strength_map * evidence[_CLASS[true]]
    scores *= 16.0
    scores += 1.8 * _smooth_noise(random, num_classes, height, width, cell)
    scores += 0.9 * (random.random(scores.shape, dtype=np.float32) - 0.5)
    # A network prefers frequent classes.
    frequency = onehot.mean(axis=(1, 2))
    scores += 7 * np.sqrt(frequency)[:, None, None]
    return scores.astype(np.float32)


def _smooth_noise(
    random: np.random.Generator, count: int, height: int, width: int, cell: int
) -> npt.NDArray[np.float32]:
    """Returns smooth noise [count,H,W] of mean 0, deviation 1 and feature size `cell`."""
    coarse = random.random((count, -(-height // cell) + 1, -(-width // cell) + 1), dtype=np.float32)
    fine = np.repeat(np.repeat(coarse, cell, axis=1), cell, axis=2)[:, :height, :width]
    smooth = _blur(_blur(fine, cell // 2), cell // 2)
    deviation: npt.NDArray[np.float32] = (smooth - 0.5) / np.maximum(smooth.std(), 1e-6)
    return deviation


def _blur(planes: npt.NDArray[np.float32], radius: int) -> npt.NDArray[np.float32]:
    """Returns means over squares of side 2 radius + 1, the edges repeated; planes [N,H,W]."""
    for axis in (1, 2):
        length = planes.shape[axis]
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (radius + 1, radius)
        total = np.cumsum(np.pad(planes, pad, mode="edge"), axis=axis, dtype=np.float32)
        ahead = np.take(total, np.arange(2 * radius + 1, 2 * radius + 1 + length), axis=axis)
        behind = np.take(total, np.arange(length), axis=axis)
        planes = (ahead - behind) / np.float32(2 * radius + 1)
    return planes


def _write(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes a temporary file and renames it, so that no other process reads a part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
