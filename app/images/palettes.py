"""Colours and class names of data sets: one row of `PALETTES` for each.

Every palette has 256 colours, one for each index that a PNG of mode P can hold. The colours behind
those of the named classes are:

- in `voc`, those of the formula that also gives its first 21 colours (Everingham's
  `labelcolormap`);
- in every other palette, the VOC colours that it does not use itself, in their order, so that all
  256 colours differ.

`ignore_index` has the colour that the data set gives to its void pixels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import IllPosed, did_you_mean, safe_repr

NUM_COLOURS = 256
"""Number of colours that a PNG of mode P can hold."""

Colour = tuple[int, int, int]  # red, green, blue


@dataclass(frozen=True, eq=False)
class Palette:
    """The colours and names of the classes of a data set.

    Attributes:
        name: the value of the option `palette`.
        colours: uint8 [256,3], read-only: red, green and blue of each index.
        class_names: names of the classes 0…n-1. Later indices have a colour and no name.
        ignore_index: the index of void pixels.
        background_index: the class at which an overlay shows the photo, or None.
        void_colours: further colours of void pixels in coloured label maps.
    """

    name: str
    colours: npt.NDArray[np.uint8]
    class_names: tuple[str, ...]
    ignore_index: int
    background_index: int | None = None
    void_colours: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        assert self.colours.shape == (NUM_COLOURS, 3), self.name
        assert 0 <= self.ignore_index < NUM_COLOURS, self.name
        self.colours.setflags(write=False)

    def paint(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Returns the colours [H,W,3] of indices [H,W], taken modulo 256."""
        # Conversion drops the higher bits. The mode "wrap" of numpy.take subtracts 256 in a loop,
        # which takes years for the largest indices.
        return np.take(self.colours, indices.astype(np.uint8), axis=0)

    def fields(self) -> dict[str, object]:
        """Returns the names and the special indices as JSON fields."""
        return {
            "name": self.name,
            "class_names": list(self.class_names),
            "ignore_index": self.ignore_index,
            "background_index": self.background_index,
        }


def voc_colours() -> npt.NDArray[np.uint8]:
    """Returns the 256 VOC colours, uint8 [256,3].

    Bits 0, 1 and 2 of the index are the highest bits of red, green and blue. Bits 3, 4 and 5 are
    the next ones, and so on. Index 0 is black and index 255 is (224, 224, 192).
    """
    index = np.arange(NUM_COLOURS, dtype=np.uint8)
    colours = np.zeros((NUM_COLOURS, 3), dtype=np.uint8)
    for bit in range(8):
        channel, position = bit % 3, 7 - bit // 3
        colours[:, channel] |= ((index >> bit) & 1) << position
    return colours


def _fill_with_voc(
    class_colours: tuple[Colour, ...], void: Colour, ignore_index: int
) -> npt.NDArray[np.uint8]:
    """Returns 256 distinct colours: those of the classes, then VOC colours; void where ignored."""
    used = {*class_colours, void}
    unused = [colour for colour in map(tuple, voc_colours().tolist()) if colour not in used]
    colours = [*class_colours, *unused][: NUM_COLOURS - 1]
    colours.insert(ignore_index, void)
    return np.array(colours, dtype=np.uint8)


_VOC_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

# The evaluated classes in the order of their trainIds, as in labels.py of cityscapesScripts.
_CITYSCAPES: dict[str, Colour] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}

# The classes that Cityscapes annotates but does not evaluate, in the colours of *_color.png. The
# licence plate is missing: it has the colour of cars, and does not occur in the files.
_CITYSCAPES_VOID: dict[str, Colour] = {
    "dynamic": (111, 74, 0),
    "ground": (81, 0, 81),
    "parking": (250, 170, 160),
    "rail track": (230, 150, 140),
    "guard rail": (180, 165, 180),
    "bridge": (150, 100, 100),
    "tunnel": (150, 120, 90),
    "caravan": (0, 0, 90),
    "trailer": (0, 0, 110),
}

PALETTES: dict[str, Palette] = {
    row.name: row
    for row in (
        Palette("voc", voc_colours(), _VOC_NAMES, ignore_index=255, background_index=0),
        Palette(
            "cityscapes",
            _fill_with_voc(tuple(_CITYSCAPES.values()), void=(0, 0, 0), ignore_index=255),
            tuple(_CITYSCAPES),
            ignore_index=255,
            void_colours=tuple(_CITYSCAPES_VOID.values()),
        ),
    )
}


def find_class(palette: Palette, text: str) -> int:
    """Returns the index of a class, from its index or its name.

    Names are compared without case, spaces, hyphens and underscores.

    Raises:
        IllPosed: if the palette has no such class.
    """
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return int(text)
    names = {_plain(name): index for index, name in enumerate(palette.class_names)}
    index = names.get(_plain(text))
    if index is None:
        expected = f"indices, or names of the palette {palette.name}"
        fix = did_you_mean(text, palette.class_names)
        raise IllPosed("classes", expected, safe_repr(text), fix)
    return index


def _plain(name: str) -> str:
    return "".join(char for char in name.casefold() if char not in " -_/")
