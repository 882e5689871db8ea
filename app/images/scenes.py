"""Many synthetic street scenes: a data set to train a network with, free of any licence.

`draw_scene` draws the scene of a number. Layout, buildings, vehicles, people, colours, light and
fog are random. The random numbers come from the number alone, so that the same number and size give
the same scene. The held-out scenes of the split `val` come from other random numbers than those of
`train`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from .files import replace_file
from .indexed import indexed_picture
from .palettes import Colour
from .street import PALETTE, House, Point, Street, smooth_noise, with_void

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

_SEED = 20150608
_JPEG_QUALITY = 92

_WALLS: tuple[Colour, ...] = (
    (186, 150, 120),
    (204, 192, 168),
    (150, 104, 88),
    (168, 168, 172),
    (176, 150, 140),
    (146, 140, 136),
    (206, 178, 130),
    (152, 164, 172),
)
_PAINTS: tuple[Colour, ...] = (
    (176, 42, 38),
    (46, 92, 140),
    (206, 208, 210),
    (150, 152, 156),
    (60, 62, 68),
    (38, 84, 66),
    (120, 30, 34),
    (196, 178, 140),
    (90, 120, 160),
)
_CLOTHES: tuple[Colour, ...] = (
    (60, 76, 120),
    (172, 60, 56),
    (70, 110, 92),
    (206, 180, 120),
    (196, 190, 180),
    (110, 70, 120),
    (60, 60, 66),
)
_BUSES: tuple[tuple[Colour, Colour], ...] = (
    ((222, 170, 36), (150, 112, 20)),
    ((216, 120, 40), (150, 82, 26)),
    ((150, 176, 60), (100, 120, 38)),
)
_TRAMS: tuple[tuple[Colour, Colour], ...] = (
    ((236, 236, 232), (190, 36, 44)),
    ((230, 228, 214), (40, 110, 120)),
)
_SIGNS: tuple[Colour, ...] = ((196, 30, 36), (30, 80, 170), (210, 150, 20))
_LEAVES: tuple[Colour, ...] = ((56, 88, 44), (64, 84, 36), (44, 82, 56), (84, 86, 34))
_SKIES: tuple[Colour, ...] = ((172, 200, 226), (150, 184, 222), (196, 206, 214), (214, 200, 190))
_LAMPS: tuple[Colour, ...] = ((196, 30, 30), (246, 240, 214))  # of the back and of the front


@dataclass(frozen=True, eq=False)
class Scene:
    """A photo and its labels.

    Attributes:
        photo: uint8 RGB [H,W,3].
        labels: uint8 [H,W], the 19 classes of Cityscapes; 255 is void.
    """

    photo: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def draw_scene(
    number: int, split: Split = "train", *, height: int = 256, width: int = 512
) -> Scene:
    """Returns the scene of a number, from 0.

    Raises:
        ValueError: if height or width is below 32 pixels, where no object is recognisable.
    """
    if height < 32 or width < 32:
        raise ValueError(f"scenes: expected sides of at least 32 pixels, got {height} x {width}.")
    random = np.random.default_rng((_SEED, SPLITS.index(split), number))
    street = _Layout(random, height, width).draw()
    photo = _with_weather(street.photo(random), street.vanishing_point[1], random)
    labels = with_void(*street.truth())
    if random.random() < 0.5:
        photo, labels = photo[:, ::-1], labels[:, ::-1]
    return Scene(np.ascontiguousarray(photo), np.ascontiguousarray(labels))


def write_scenes(
    directory: Path, num_train: int, num_val: int, *, height: int = 256, width: int = 512
) -> tuple[Path, ...]:
    """Writes a data set in the folders of PASCAL VOC, and returns the paths of its two lists.

    | path | content |
    |---|---|
    | `JPEGImages/train_0000.jpg` | photo, RGB |
    | `SegmentationClass/train_0000.png` | labels, a PNG of mode P; 255 is void |
    | `ImageSets/Segmentation/train.txt` | names of the scenes to train on, one a line |
    | `ImageSets/Segmentation/val.txt` | names of the held-out scenes |
    | `class_names.txt` | names of the classes, one a line, in the order of their indices |

    Each file is replaced in one step. The lists are written last, so that they name no file that
    does not exist yet. Files of other names are not changed.

    Args:
        directory: is created if it does not exist.
        num_train, num_val: number of scenes of each split.
        height, width: size of the scenes in pixels.

    Raises:
        ValueError: if height or width is below 32 pixels.
        OSError: if a file cannot be written.
    """
    photos, labels, lists = (
        directory / name for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    )
    counts = zip(SPLITS, (num_train, num_val), strict=True)
    names = {split: [f"{split}_{number:04}" for number in range(count)] for split, count in counts}
    for folder in (photos, labels, lists):
        folder.mkdir(parents=True, exist_ok=True)
    for split in names:
        for number, name in enumerate(names[split]):
            scene = draw_scene(number, split, height=height, width=width)
            photo = Image.fromarray(scene.photo)
            label_map = indexed_picture(scene.labels, PALETTE)
            _save(photo, photos / f"{name}.jpg", "JPEG", quality=_JPEG_QUALITY)
            _save(label_map, labels / f"{name}.png", "PNG")
    _write_lines(directory / "class_names.txt", PALETTE.class_names)
    paths = {split: lists / f"{split}.txt" for split in names}
    for split, path in paths.items():
        _write_lines(path, names[split])
    return tuple(paths.values())


class _Layout:
    """Decides at random what stands where, and draws it from the background to the foreground.

    An object at depth `near`, from 0 at the horizon to 1 at the bottom edge of the picture, has
    `near` times the size that it has at the bottom edge.
    """

    def __init__(self, random: np.random.Generator, height: int, width: int) -> None:
        self.random = random
        vanishing_point = (self.uniform(0.8, 1.2), self.uniform(0.36, 0.50))
        self.street = Street(height, width, vanishing_point, self.colour(_SKIES, 12))
        self.left = -self.uniform(0.75, 1.15)
        self.right = self.uniform(0.75, 1.15)
        self.objects: list[tuple[float, Callable[[], None]]] = []

    def uniform(self, low: float, high: float) -> float:
        return float(self.random.uniform(low, high))

    def happens(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def colour(self, choices: Sequence[Colour], spread: float = 18) -> Colour:
        """Returns one of the colours, changed a little."""
        chosen = choices[int(self.random.integers(len(choices)))]
        return self.changed(chosen, self.random.uniform(-spread, spread, 3))

    def changed(self, colour: Colour, by: npt.ArrayLike) -> Colour:
        red, green, blue = np.clip(np.add(colour, by), 0, 255).astype(int).tolist()
        return red, green, blue

    def place(self, side: float, near: float) -> Point:
        """Returns the point of the ground at a depth; see `Street.strip` for `side`."""
        x, y = self.street.vanishing_point
        return x + side * near, y + (1 - y) * near

    def draw(self) -> Street:
        self._sky()
        self._ground()
        for side in (-1.0, 1.0):
            self._beside_the_street(side)
        self._distance()
        self._poles_and_trees()
        self._vehicles()
        self._people()
        for _, draw in sorted(self.objects, key=lambda pair: pair[0]):
            draw()
        if self.happens(0.5):
            self.street.bonnet()
        return self.street

    def _sky(self) -> None:
        self.street.begin("sky")
        for _ in range(self.random.integers(0, 6)):
            x, y, radius = self.uniform(0, 2), self.uniform(0, 0.2), self.uniform(0.06, 0.16)
            self.street.disc(self.colour([(200, 214, 230)], 20), x, y, radius, aspect=0.3)

    def _ground(self) -> None:
        street = self.street
        grey = self.uniform(-22, 16)
        sidewalk = self.changed(self.colour([(158, 152, 148), (170, 150, 138)], 8), grey)
        street.sidewalk(sidewalk, self.changed(sidewalk, -12))
        for side in (-1, 1):
            if self.happens(0.6):
                edge = (self.left if side < 0 else self.right) + side * self.uniform(0.25, 0.7)
                further = edge + side * self.uniform(0.35, 1.2)
                street.begin("terrain")
                grass = self.colour([(118, 140, 76), (134, 138, 84), (104, 134, 66)])
                low, high = min(edge, further), max(edge, further)
                street.polygon(grass, street.strip(low, high, 0.0, self.uniform(0.7, 0.95)))
        asphalt = self.changed((96, 97, 101), self.uniform(-24, 20))
        street.road(self.left, self.right, asphalt, self.changed(sidewalk, 26))
        if self.happens(0.8):
            paint = self.changed((222, 222, 216), -self.uniform(0, 40))
            lines = (
                (self.left + 0.07, self.left + 0.09),
                (-0.075, -0.045),
                (self.right - 0.08, self.right - 0.06),
            )
            street.lane_markings(lines, (paint, self.changed(paint, -8)))
        if self.happens(0.4):
            near = self.uniform(0.3, 0.6)
            street.zebra_crossing(self.left + 0.14, self.right - 0.1, near, near + 0.09)

    def _beside_the_street(self, side: float) -> None:
        """Draws houses, or a park in their place; then walls, fences and hedges before them."""
        street = self.street
        reach = side * self.uniform(1.75, 2.6)
        if self.happens(0.8):
            cuts = np.sort([0.0, *self.random.uniform(0.15, 0.9, 4), 0.93])
            houses = [
                House(self.colour(_WALLS), self.uniform(1.1, 2.2), near, distant)
                for near, distant in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)
                if self.happens(0.92)
            ]
            street.row_of_houses(reach, houses)
        else:
            for near in np.sort(self.random.uniform(0.12, 0.6, 9)).tolist():
                x, y = self.place(reach * self.uniform(0.9, 1.2), near)
                street.tree(x, y, self.uniform(2.2, 3.6) * near, self._leaves())
        for near in (0.55, 0.2):
            if not self.happens(0.55):
                continue
            foot = reach - side * self.uniform(0.05, 0.3)
            height, distant = self.uniform(0.22, 0.42), near + self.uniform(0.1, 0.25)
            kind = self.random.integers(3)
            if kind == 0:
                colour = self.colour([(132, 120, 112), (150, 132, 120), (120, 122, 126)], 14)
                street.wall(foot, height, near, distant, colour)
            elif kind == 1:
                colour = self.colour([(120, 98, 72), (96, 104, 92), (142, 120, 92)], 14)
                street.fence(foot, height, near, distant, colour, self.changed(colour, -44))
            else:
                street.begin("vegetation")
                colour = self.changed(self.colour(_LEAVES), 14)
                street.polygon(colour, street.upright(foot, height, near, distant))

    def _distance(self) -> None:
        """Draws what closes the street at the vanishing point."""
        street = self.street
        x, y = street.vanishing_point
        if self.happens(0.6):
            street.begin("building")
            for _ in range(self.random.integers(1, 4)):
                left, top = self.uniform(-0.2, 0.1), self.uniform(0.05, 0.2)
                colour = self.colour([(166, 164, 168), (150, 150, 158)])
                street.box(colour, x + left, y - top, x + left + 0.12, y + 0.035)
        street.begin("vegetation")
        for _ in range(self.random.integers(2, 9)):
            colour = self.colour([(84, 112, 68)])
            street.disc(colour, x + self.uniform(-0.25, 0.25), y, self.uniform(0.02, 0.06))

    def _add(
        self, draw: Callable[..., None], side: float, near: float, size: float, *details: object
    ) -> None:
        """Adds an object, which is drawn when all that is more distant has been drawn.

        Args:
            draw: a method of `Street` that takes x, y, the size and the details.
            side: see `Street.strip`.
            near: depth of the object.
            size: at the bottom edge of the picture.
            details: further arguments of `draw`.
        """
        x, y = self.place(side, near)
        self.objects.append((near, partial(draw, x, y, size * near, *details)))

    def _vehicles(self) -> None:
        street, uniform = self.street, self.uniform
        lanes = (self.left * 0.55, self.right * 0.5, self.left * 0.95, self.right * 0.95)
        for near in self.random.uniform(0.1, 0.65, self.random.integers(2, 6)).tolist():
            side = lanes[self.random.integers(4)] + uniform(-0.08, 0.08)
            paint, lamp = self.colour(_PAINTS), _LAMPS[self.random.integers(2)]
            self._add(street.car, side, near, uniform(0.48, 0.58), paint, lamp)
        if self.happens(0.45):
            paint = self.colour([(226, 222, 210), (70, 110, 160), (90, 140, 90)])
            side, near = self.left * uniform(0.4, 0.7), uniform(0.2, 0.55)
            self._add(street.truck, side, near, uniform(0.62, 0.8), paint)
        if self.happens(0.45):
            body, shaded = _BUSES[self.random.integers(len(_BUSES))]
            side, near = self.right * uniform(0.2, 0.6), uniform(0.2, 0.5)
            self._add(street.bus, side, near, uniform(1.05, 1.25), body, shaded)
        if self.happens(0.4):
            body, stripe = _TRAMS[self.random.integers(len(_TRAMS))]
            side, near = self.right * uniform(0.15, 0.5), uniform(0.2, 0.5)
            self._add(street.tram, side, near, uniform(1.2, 1.4), body, stripe)

    def _people(self) -> None:
        street, uniform = self.street, self.uniform
        for near in self.random.uniform(0.2, 0.7, self.random.integers(2, 8)).tolist():
            edge, direction = (self.left, -1) if self.happens(0.5) else (self.right, 1)
            side = edge + direction * uniform(-0.15, 0.7)
            coat, legs = self.colour(_CLOTHES), self.colour([(50, 50, 60), (58, 70, 100)])
            self._add(street.person, side, near, uniform(0.46, 0.56), coat, legs)
        for near in self.random.uniform(0.3, 0.75, self.random.integers(0, 3)).tolist():
            side = uniform(self.left, self.right)
            jacket, frame = self.colour([(232, 120, 40), (220, 210, 60)]), self.colour(_PAINTS)
            self._add(street.cyclist, side, near, uniform(0.56, 0.66), jacket, frame)
        for near in self.random.uniform(0.35, 0.8, self.random.integers(0, 3)).tolist():
            edge = (self.left if self.happens(0.5) else self.right) * uniform(0.85, 1.3)
            paint = self.colour([(30, 84, 58), (150, 40, 36), (40, 60, 120)])
            self._add(street.motorcycle, edge, near, uniform(0.36, 0.44), paint)

    def _poles_and_trees(self) -> None:
        street, uniform = self.street, self.uniform
        edges = (self.left - 0.12, self.right + 0.12)
        for near in self.random.uniform(0.15, 0.7, self.random.integers(1, 4)).tolist():
            side = edges[self.random.integers(2)]
            self._add(street.lamp, side, near, uniform(1.1, 1.4), 0.05 * near)
        for near in self.random.uniform(0.25, 0.75, self.random.integers(0, 4)).tolist():
            side = edges[self.random.integers(2)] * uniform(1, 1.3)
            colour = self.colour(_SIGNS)
            self._add(street.sign, side, near, uniform(0.75, 0.95), 0.045 * near, colour)
        for near in self.random.uniform(0.25, 0.75, self.random.integers(0, 3)).tolist():
            side, lit = edges[self.random.integers(2)], int(self.random.integers(3))
            self._add(street.traffic_light, side, near, uniform(0.8, 1.0), 0.05 * near, lit)
        for near in self.random.uniform(0.12, 0.5, self.random.integers(1, 6)).tolist():
            side = edges[self.random.integers(2)] * uniform(1.1, 1.6)
            self._add(street.tree, side, near, uniform(2.2, 3.6), self._leaves())

    def _leaves(self) -> list[Colour]:
        leaf = self.colour(_LEAVES)
        return [self.changed(leaf, (18 * step, 22 * step, 10 * step)) for step in range(3)]


def _with_weather(
    photo: npt.NDArray[np.uint8], horizon: float, random: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Returns the photo in another light, with fog around the horizon, shadows and noise."""
    height, width, _ = photo.shape
    colours = photo.astype(np.float32) / 255
    rows = (np.arange(height, dtype=np.float32) + 0.5) / height
    distance = np.where(rows < horizon, 1.0, (1 - rows) / (1 - horizon))
    fog = random.choice([0.0, 0.15, 0.4]) * distance[:, None, None] ** 2
    colours += fog * (random.uniform(0.7, 0.85) - colours)
    clouds = smooth_noise(random, 1, height, width, height // 3 + 1)[0, :, :, None]
    colours *= 1 + 0.08 * clouds
    gain = random.uniform(0.6, 1.15) * random.uniform(0.92, 1.08, 3)
    colours = np.clip(colours * gain, 0, 1) ** random.uniform(0.8, 1.25)
    colours += random.normal(0, random.uniform(0.005, 0.03), colours.shape)
    return np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)


def _save(picture: Image.Image, path: Path, form: str, **options: int) -> None:
    replace_file(path, lambda file: picture.save(file, form, **options))


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    replace_file(path, lambda file: file.write(content))
