"""Drawings of streets in perspective: the photo, the class of each pixel, and the instances.

A `Street` draws each shape three times with the same outline. Scenes, which say what stands where,
are in `sample` and `scenes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .palettes import PALETTES, Colour

PALETTE = PALETTES["cityscapes"]
CLASS = {name: index for index, name in enumerate(PALETTE.class_names)}
VOID = PALETTE.ignore_index

_SUPERSAMPLING = 2
_THINGS = (
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
"""Classes around which the labels have a void border."""

Point = tuple[float, float]

# The three lights of a traffic light from the top: their colours when dark and when lit.
_LIGHTS: tuple[tuple[Colour, Colour], ...] = (
    ((72, 22, 20), (236, 60, 48)),
    ((78, 64, 20), (244, 190, 60)),
    ((22, 70, 40), (64, 232, 120)),
)


@dataclass(frozen=True)
class House:
    """A facade in a row along the street.

    Attributes:
        colour: of the wall.
        height: in the units of `Street`, at the bottom edge of the picture.
        near, distant: where it begins and ends, as fractions of the way to the vanishing point.
    """

    colour: Colour
    height: float
    near: float
    distant: float


class Street:
    """Draws each shape into a photo, a map of classes and a map of instances.

    Coordinates are relative to the size of the picture: x from 0 to 2 and y from 0 to 1, so that
    shapes have their natural proportions in pictures of 2:1. What is drawn later covers what was
    drawn before.
    """

    def __init__(
        self,
        height: int,
        width: int,
        vanishing_point: Point = (1.04, 0.44),
        sky: Colour = (172, 200, 226),
    ) -> None:
        self.size = (height, width)
        self.vanishing_point = vanishing_point
        canvas = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
        self.scale = (canvas[0] / 2, float(canvas[1]))
        self._photo = Image.new("RGB", canvas, sky)
        self._classes = Image.new("L", canvas, CLASS["sky"])
        self._instances = Image.new("L", canvas, 0)
        self._pens = (ImageDraw.Draw(self._photo), ImageDraw.Draw(self._classes))
        self._instance_pen = ImageDraw.Draw(self._instances)
        self._class = CLASS["sky"]
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
        roughness = np.full(VOID + 1, 3.0, dtype=np.float32)
        roughness[[CLASS["road"], CLASS["sidewalk"], CLASS["building"]]] = 8.0
        roughness[[CLASS["vegetation"], CLASS["terrain"]]] = 26.0
        roughness[CLASS["sky"]] = 1.0
        grain = random.random((height, width), dtype=np.float32) - 0.5
        coarse = smooth_noise(random, 1, height, width, height // 40 + 1)[0]
        light = smooth_noise(random, 1, height, width, height // 5 + 1)[0]
        is_sky = classes == CLASS["sky"]
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
        self._class = CLASS[name]
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
            point[0] + (self.vanishing_point[0] - point[0]) * fraction,
            point[1] + (self.vanishing_point[1] - point[1]) * fraction,
        )

    def strip(
        self, left: float, right: float, near: float = 0.0, distant: float = 1.0
    ) -> list[Point]:
        """Returns a strip of the ground.

        `left` and `right` are x at the bottom edge of the picture, from the vanishing point.
        """
        corners = [(self.vanishing_point[0] + side, 1.0) for side in (left, right)]
        return [
            self.recede(corners[0], near),
            self.recede(corners[0], distant),
            self.recede(corners[1], distant),
            self.recede(corners[1], near),
        ]

    def upright(self, side: float, height: float, near: float, distant: float) -> list[Point]:
        """Returns a wall along the street; `side` is x of its foot, as in `_strip`."""
        x = self.vanishing_point[0] + side
        return [
            self.recede((x, 1.0), near),
            self.recede((x, 1.0), distant),
            self.recede((x, 1.0 - height), distant),
            self.recede((x, 1.0 - height), near),
        ]

    # Things

    # The ground, and what stands along the street

    def sidewalk(self, colour: Colour, joints: Colour) -> None:
        """Draws paving slabs from the horizon to the bottom edge."""
        self.begin("sidewalk")
        self.box(colour, 0, self.vanishing_point[1], 2, 1)
        for side in (-1.0, 1.0):
            for near in np.arange(0.35, 3.2, 0.28):
                foot = (self.vanishing_point[0] + side * near, 1.0)
                self.line(joints, (foot, self.recede(foot, 0.97)), 0.003)

    def road(self, left: float, right: float, colour: Colour, kerb: Colour) -> None:
        """Draws a road between two kerbs, which belong to the sidewalk; see `strip` for sides."""
        self.begin("road")
        self.polygon(colour, self.strip(left, right))
        self.begin("sidewalk")
        self.polygon(kerb, self.strip(left - 0.04, left))
        self.polygon(kerb, self.strip(right, right + 0.04))

    def lane_markings(
        self, lines: Sequence[tuple[float, float]], colours: tuple[Colour, Colour]
    ) -> None:
        """Draws a line at the left of the lanes, dashes in the middle, and a line at the right.

        `lines` are the sides of the three, see `strip`; `colours` those of the dashes and of the
        lines.
        """
        left, middle, right = lines
        self.begin("road")
        for near in np.arange(0.04, 0.92, 0.115):
            length = 0.055 * (1 - near)
            self.polygon(colours[0], self.strip(*middle, near, near + length + 0.012))
        self.polygon(colours[1], self.strip(*left, 0, 0.97))
        self.polygon(colours[1], self.strip(*right, 0, 0.97))

    def zebra_crossing(self, left: float, right: float, near: float, distant: float) -> None:
        """Draws the stripes of a crossing between two sides, see `strip`."""
        self.begin("road")
        for stripe in np.arange(left, right, 0.155):
            self.polygon((218, 218, 212), self.strip(stripe, stripe + 0.08, near, distant))

    def wall(
        self,
        side: float,
        height: float,
        near: float,
        distant: float,
        colour: Colour = (132, 120, 112),
    ) -> None:
        """Draws a wall along the street; see `upright`."""
        self.begin("wall")
        self.polygon(colour, self.upright(side, height, near, distant))

    def fence(
        self,
        side: float,
        height: float,
        near: float,
        distant: float,
        colour: Colour = (108, 96, 84),
        bars: Colour = (74, 64, 56),
    ) -> None:
        """Draws a fence along the street; see `upright`."""
        self.begin("fence")
        self.polygon(colour, self.upright(side, height, near, distant))
        for bar in np.arange(near, distant, 0.018):
            foot, _, _, top = self.upright(side, height, bar, bar)
            self.line(bars, (foot, top), 0.004)

    def row_of_houses(self, side: float, houses: Sequence[House]) -> None:
        """Draws facades along the street, in a plane through the vanishing point.

        `side` is x of their foot at the bottom edge of the picture, as in `strip`.
        """
        for house in houses:
            colour, height = house.colour, house.height

            def at(along: float, up: float, house: House = house) -> Point:
                fraction = house.near + (house.distant - house.near) * along
                return self.recede((self.vanishing_point[0] + side, 1.0 - up), fraction)

            def patch(colour: Colour, start: float, low: float, stop: float, high: float) -> None:
                self.polygon(
                    colour, (at(start, low), at(stop, low), at(stop, high), at(start, high))
                )

            self.begin("building")
            patch(colour, 0, 0, 1, height)
            dark: Colour = (colour[0] - 40, colour[1] - 40, colour[2] - 36)
            patch(dark, 0, 0, 1, 0.30)
            patch((88, 66, 58), 0, height, 1, height + 0.05)
            columns = 4 if house.near == 0 else 3
            for column in range(columns):
                start, stop = (column + 0.22) / columns, (column + 0.74) / columns
                patch((58, 62, 70), start, 0.05, stop, 0.24)
                for floor in np.arange(0.40, height - 0.14, 0.26):
                    lit = (column + round(floor * 50)) % 5 == 0
                    patch((224, 222, 212), start - 0.02, floor - 0.02, stop + 0.02, floor + 0.17)
                    patch(
                        (150, 176, 196) if lit else (70, 84, 100), start, floor, stop, floor + 0.15
                    )

    def tree(
        self,
        x: float,
        y: float,
        size: float,
        leaves: Sequence[Colour] = ((56, 88, 44), (74, 112, 54), (96, 134, 66)),
    ) -> None:
        self.begin("vegetation")
        self.line((84, 66, 52), ((x, y + 0.02 * size), (x, y - 0.22 * size)), 0.022 * size)
        crown = ((0, -0.34, 0.13), (-0.10, -0.27, 0.10), (0.10, -0.28, 0.10), (0.03, -0.22, 0.09))
        for shade, shift in zip(leaves, (0.0, -0.015, -0.03), strict=True):
            for dx, dy, radius in crown:
                self.disc(
                    shade, x + (dx + shift) * size, y + (dy + shift) * size, (radius + shift) * size
                )

    def car(self, x: float, y: float, size: float, colour: Colour, lamp: Colour) -> None:
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

    def truck(self, x: float, y: float, size: float, colour: Colour = (226, 222, 210)) -> None:
        """Draws a truck from behind; its wheels stand at y, and `size` is its width."""
        self.begin("truck")
        half = size / 2
        for wheel in (x - half * 0.7, x + half * 0.7):
            self.box((26, 26, 28), wheel - size * 0.08, y - size * 0.16, wheel + size * 0.08, y)
        self.box(colour, x - half, y - size * 1.25, x + half, y - size * 0.20)
        seam: Colour = (colour[0] - 26, colour[1] - 26, colour[2] - 26)
        self.box(seam, x - size * 0.02, y - size * 1.2, x + size * 0.02, y - size * 0.26)
        self.box((60, 60, 64), x - half, y - size * 0.24, x + half, y - size * 0.10)

    def bus(
        self,
        x: float,
        y: float,
        height: float,
        colour: Colour = (222, 170, 36),
        shaded: Colour = (150, 112, 20),
    ) -> None:
        """Draws an oncoming bus: its front, and the side towards the vanishing point."""
        self.begin("bus")
        width = height * 0.74
        front = ((x, y), (x + width, y), (x + width, y - height), (x, y - height))
        back = [self.recede(point, 0.36) for point in front]
        self.polygon(shaded, (front[0], back[0], back[3], front[3]))
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
        self.polygon(colour, front)
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

    def tram(
        self,
        x: float,
        y: float,
        height: float,
        colour: Colour = (236, 236, 232),
        stripe: Colour = (190, 36, 44),
    ) -> None:
        """Draws an oncoming tram, of the class train, whose side recedes to the vanishing point."""
        self.begin("train")
        width = height * 0.62
        front = ((x, y), (x + width, y), (x + width, y - height), (x, y - height))
        back = [self.recede(point, 0.62) for point in front]
        shaded: Colour = (colour[0] * 4 // 5, colour[1] * 4 // 5, colour[2] * 4 // 5)
        self.polygon(shaded, (front[0], back[0], back[3], front[3]))
        for low, high, paint in ((0.16, 0.36, stripe), (0.50, 0.84, (44, 54, 64))):
            corners = ((0.02, low), (0.60, low), (0.60, high), (0.02, high))
            side = [self.recede((x, y - height * up), fraction) for fraction, up in corners]
            self.polygon(paint, side)
        self.polygon(colour, front)
        self.box(stripe, x, y - height * 0.36, x + width, y - height * 0.16)
        self.polygon(
            (40, 50, 60),
            (
                (x + width * 0.06, y - height * 0.46),
                (x + width * 0.94, y - height * 0.46),
                (x + width * 0.84, y - height * 0.88),
                (x + width * 0.16, y - height * 0.88),
            ),
        )
        self.disc((250, 246, 224), x + width * 0.5, y - height * 0.26, height * 0.06)
        self.box((70, 72, 76), x, y - height * 0.08, x + width, y - height * 0.01)
        self.line(  # the pantograph
            (60, 62, 66),
            ((x + width * 0.3, y - height), (x + width * 0.5, y - height * 1.12)),
            height * 0.03,
        )

    def lamp(self, x: float, y: float, height: float, thickness: float = 0.011) -> None:
        """Draws a street lamp, with the foot at y."""
        self.begin("pole")
        self.line(
            (92, 96, 98),
            ((x, y), (x, y - height), (x + height * 0.22, y - height * 1.04)),
            thickness,
        )
        self.box(
            (70, 74, 76), x + height * 0.2, y - height * 1.07, x + height * 0.36, y - height * 1.03
        )

    def traffic_light(
        self, x: float, y: float, height: float, thickness: float = 0.014, lit: int = 2
    ) -> None:
        """Draws a traffic light on a pole; `lit` is 0 for red, 1 for amber and 2 for green."""
        self.begin("pole")
        self.line((70, 72, 74), ((x, y), (x, y - height)), thickness)
        self.begin("traffic light")
        width, top = height * 0.09, y - height * 1.02
        self.box((30, 32, 32), x - width, top - height * 0.14, x + width, top + height * 0.30)
        for number, (dark, bright) in enumerate(_LIGHTS):
            colour = bright if number == lit else dark
            self.disc(colour, x, top - height * 0.06 + height * 0.14 * number, width * 0.66)

    def sign(
        self,
        x: float,
        y: float,
        height: float,
        thickness: float = 0.010,
        colour: Colour = (196, 30, 36),
    ) -> None:
        """Draws a round traffic sign on a pole, with the foot at y."""
        self.begin("pole")
        self.line((128, 130, 132), ((x, y), (x, y - height)), thickness)
        self.begin("traffic sign")
        self.disc(colour, x, y - height, height * 0.17)
        self.disc((244, 244, 240), x, y - height, height * 0.125)
        self.box(
            (40, 40, 42), x - height * 0.08, y - height * 1.03, x + height * 0.08, y - height * 0.97
        )

    def person(self, x: float, y: float, height: float, coat: Colour, legs: Colour) -> None:
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

    def cyclist(
        self,
        x: float,
        y: float,
        height: float,
        jacket: Colour = (232, 120, 40),
        frame_colour: Colour = (30, 128, 150),
    ) -> None:
        """Draws a cyclist who crosses the road to the right, with the wheels at y."""
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
        self.line(frame_colour, frame, height * 0.03)
        self.line(frame_colour, ((front, hub), bars), height * 0.03)
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
            jacket,
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

    def motorcycle(self, x: float, y: float, size: float, colour: Colour = (30, 84, 58)) -> None:
        """Draws a parked motorcycle, seen from the side, with the wheels at y."""
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
            colour,
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

    def bonnet(self) -> None:
        """Draws the bonnet of the car that carries the camera; it is void."""
        self._class, self._instance = VOID, 0
        angles = np.linspace(np.pi, 2 * np.pi, 40)
        for colour, drop in (((24, 27, 32), 0.0), ((44, 49, 57), 0.012)):
            arc = zip(
                1.0 + 0.98 * np.cos(angles), 1.02 + drop + 0.085 * np.sin(angles), strict=True
            )
            self.polygon(colour, [*arc, (2.0, 1.1), (0.0, 1.1)])


def with_void(
    truth: npt.NDArray[np.uint8], instances: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Returns labels with a void border wherever two instances meet, as in VOC."""
    padded = np.pad(instances, 1, mode="edge")
    height, width = instances.shape
    border = np.zeros(instances.shape, dtype=np.bool_)
    for down, right in ((0, 1), (1, 0), (1, 2), (2, 1)):
        border |= padded[down : down + height, right : right + width] != instances
    return np.where(border, np.uint8(VOID), truth)


def smooth_noise(
    random: np.random.Generator, count: int, height: int, width: int, cell: int
) -> npt.NDArray[np.float32]:
    """Returns smooth noise [count,H,W] of mean 0, deviation 1 and feature size `cell`."""
    coarse = random.random((count, -(-height // cell) + 1, -(-width // cell) + 1), dtype=np.float32)
    fine = np.repeat(np.repeat(coarse, cell, axis=1), cell, axis=2)[:, :height, :width]
    smooth = blur(blur(fine, cell // 2), cell // 2)
    deviation: npt.NDArray[np.float32] = (smooth - 0.5) / np.maximum(smooth.std(), 1e-6)
    return deviation


def blur(planes: npt.NDArray[np.float32], radius: int) -> npt.NDArray[np.float32]:
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
