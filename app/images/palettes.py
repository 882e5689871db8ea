"""Colours and class names of data sets: one row of `PALETTES` for each.

| palette | classes | colours |
|---|---|---|
| `voc` | 21 | Everingham's `labelcolormap`, a formula for all 256 |
| `cityscapes` | 19, the train ids | cityscapesScripts |
| `ade20k` | 150 | mmsegmentation; two classes are (140, 140, 140) |
| `cocostuff` | 171 | mmsegmentation; 162 colours, eight of which several classes have |
| `camvid` | 11, and 11 for void | SegNet |
| `pascal_context` | 60, the first is the background | mmsegmentation: the first 60 of `ade20k` |
| `pascal_context_59` | the same without the background | the same |
| `okabe_ito` | 8, named after their colours | distinct with every kind of colour blindness |
| `generated` | any number, without names | computed, see `generated_colours` |

Every palette has 256 colours, one for each index that a PNG of mode P can hold. The colours behind
those of the classes are:

- in `voc`, those of the formula that also gives its first 21 colours;
- in every other palette, the VOC colours that it does not use itself, in their order, so that they
  differ from each other and from those of the classes.

`ignore_index` has the colour of void pixels: that of the data set if it has one.

`choose_palette` holds the rule by which a picture gets its palette if the request names none.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ..errors import IllPosed, did_you_mean, safe_repr
from . import palette_tables
from .oklch import oklch_to_srgb

NUM_COLOURS = 256
"""Number of colours that a PNG of mode P can hold."""

DEFAULT_PALETTE: Final = "voc"
"""The palette of pictures of up to 21 classes if nothing tells which one fits."""

OWN: Final = "own"
"""The name of a palette that comes from a file."""

Colour = tuple[int, int, int]  # red, green, blue
Colours = npt.NDArray[np.uint8]

Source = Literal["option", "network", "file", "values", "default"]
"""What has decided on the palette: the request, the network that is served, the palette in the file
of a label map, the number of classes or the values, or nothing of these."""

SOURCES: Final[tuple[Source, ...]] = ("option", "network", "file", "values", "default")

_BLACK: Final = (0, 0, 0)
_VOC_VOID: Final = (224, 224, 192)


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
        unnamed_classes: the number of classes behind those that have a name.
        has_void: whether coloured label maps have the colour of `ignore_index` at void pixels.
    """

    name: str
    colours: Colours
    class_names: tuple[str, ...]
    ignore_index: int
    background_index: int | None = None
    void_colours: tuple[Colour, ...] = ()
    unnamed_classes: int = 0
    has_void: bool = True

    def __post_init__(self) -> None:
        assert self.colours.shape == (NUM_COLOURS, 3), self.name
        assert 0 <= self.ignore_index < NUM_COLOURS, self.name
        self.colours.setflags(write=False)

    @property
    def num_classes(self) -> int:
        """The number of classes, with or without a name."""
        return len(self.class_names) + self.unnamed_classes

    @property
    def ignore_colour(self) -> list[int]:
        """Red, green and blue of void pixels."""
        return [int(value) for value in self.colours[self.ignore_index]]

    def paint(self, indices: npt.NDArray[np.integer]) -> Colours:
        """Returns the colours [H,W,3] of indices [H,W], taken modulo 256."""
        # Conversion drops the higher bits. The mode "wrap" of numpy.take subtracts 256 in a loop,
        # which takes years for the largest indices.
        return np.take(self.colours, indices.astype(np.uint8), axis=0)

    def colours_of(self, num_classes: int) -> list[list[int]]:
        """Returns the colours of this many classes; those from 256 on are those modulo 256."""
        colours: list[list[int]] = self.colours.tolist()
        return [colours[index % NUM_COLOURS] for index in range(num_classes)]

    def shared_colours(self) -> dict[Colour, tuple[int, ...]]:
        """Returns the colours that several classes have, with their indices."""
        classes: dict[Colour, tuple[int, ...]] = {}
        for index, (red, green, blue) in enumerate(self.colours[: self.num_classes].tolist()):
            colour = red, green, blue
            classes[colour] = (*classes.get(colour, ()), index)
        return {colour: indices for colour, indices in classes.items() if len(indices) > 1}

    def fields(self) -> dict[str, object]:
        """Returns the names and the special indices as JSON fields."""
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "ignore_index": self.ignore_index,
            "background_index": self.background_index,
            "shared_colours": [
                {"colour": list(colour), "classes": list(classes)}
                for colour, classes in self.shared_colours().items()
            ],
        }


@dataclass(frozen=True, eq=False)
class ChosenPalette:
    """The palette of a picture or an answer.

    Attributes:
        palette: the colours, and the names of the classes as far as they are known.
        source: what has decided on it.
    """

    palette: Palette
    source: Source

    def fields(self, num_classes: int) -> dict[str, object]:
        """Returns the JSON object `palette` of an answer about this many classes."""
        return {
            "name": self.palette.name,
            "source": self.source,
            "class_names": list(self.palette.class_names[:num_classes]),
            "colours": self.palette.colours_of(num_classes),
            "ignore_colour": self.palette.ignore_colour,
        }


def voc_colours() -> Colours:
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


def generated_colours(count: int) -> Colours:
    """Returns distinct colours for up to 256 classes, uint8 [count,3].

    The hue of a class is that of the one before it plus the golden angle, 137.5 degrees in OKLCH,
    and its lightness is the next of five. The chroma is 0.17, or the largest that sRGB has. So
    neighbouring classes differ by at least 0.26 in OKLab, and all 256 colours are distinct.
    """
    index = np.arange(count)
    golden_angle = 180 * (3 - 5**0.5)
    lightness = np.array([0.68, 0.46, 0.84, 0.57, 0.76])[index % 5]
    return oklch_to_srgb(lightness, 0.17, 30 + golden_angle * index)


def own_palette(colours: Colours, class_names: Sequence[str] = ()) -> Palette:
    """Returns a palette of colours [n,3] of a user, uint8 and at most 256.

    Args:
        colours: those of the classes 0…n-1.
        class_names: their names, n or none.
    """
    num_colours = len(colours)
    assert 0 < num_colours <= NUM_COLOURS
    assert len(class_names) in (0, num_colours)
    rows = tuple((red, green, blue) for red, green, blue in colours.tolist())
    all_colours = colours.copy() if num_colours == NUM_COLOURS else _fill_with_voc(rows)
    return Palette(
        OWN,
        all_colours,
        tuple(class_names),
        ignore_index=NUM_COLOURS - 1,
        unnamed_classes=num_colours - len(class_names),
        has_void=False,
    )


def palette_of_file(
    colours: Colours, values: Iterable[int], num_classes: int | None
) -> Palette | None:
    """Returns the palette in the file of a label map, a PNG of mode P.

    If the file begins with all class colours of a known palette, that palette is returned, with its
    names; but only if the number of classes is that of the palette, or, where it is not known, if
    no value is larger. Many programs give classes of their own the colours of VOC.

    Args:
        colours: those in the file, uint8 [n,3].
        values: the values in the label map that are not ignored.
        num_classes: C, or None if it is not known.

    Returns:
        The palette; or None if the file has no colour for a value, the same for several, or the
        grey that is the value itself.
    """
    present = sorted(values)
    if not len(colours) or any(not 0 <= value < len(colours) for value in present):
        return None
    shown = {tuple(colours[value].tolist()) for value in present}
    grey = np.arange(len(colours), dtype=np.uint8)[:, None]
    if len(shown) < len(present) or (len(colours) > 1 and bool((colours == grey).all())):
        return None
    # The first 60 colours of ADE20K are also those of another palette.
    for palette in sorted(PALETTES.values(), key=lambda row: -row.num_classes):
        count = palette.num_classes
        fits = num_classes == count or not palette.class_names
        fits |= num_classes is None and all(value < count for value in present)
        if fits and np.array_equal(colours[:count], palette.colours[:count]):
            return palette
    return own_palette(colours[:NUM_COLOURS])


def choose_palette(
    *,
    option: Palette | None = None,
    network_names: Sequence[str] = (),
    files: Iterable[tuple[Colours, Iterable[int]]] = (),
    num_classes: int | None = None,
    label_space: str = "raw",
    largest_value: int | None = None,
) -> ChosenPalette:
    """Returns the palette of a picture or an answer.

    The first of these rules that holds decides:

    1. `option`: the palette that the request names or sends.
    2. `network`: the palette whose class names are those of the network that is served.
    3. `file`: the palette in the file of a label map, labels before a prediction; see
       `palette_of_file`.
    4. `values`: the palette with as many classes as there are; 19 is `cityscapes`, 21 `voc`, 150
       `ade20k`. Without logits it is that of the data set which the option `label_space` names.
       More classes or larger values than `voc` has are `generated`.
    5. `default`: the colours of `voc`, without its names.

    The names of the network's classes, if it has some, are those of the palette in any case. Every
    picture and every answer about the same inputs gets the same palette, so that labels and
    prediction have the same colours.

    Args:
        option: the palette of the request, or None.
        network_names: the class names of the network; none if none is asked.
        files: the colours in files of label maps, with the values that are not ignored.
        num_classes: C of the logits, or None without any.
        label_space: the option.
        largest_value: the largest class of the label maps, which counts if C is not known.
    """
    chosen = _choose(option, network_names, files, num_classes, label_space, largest_value)
    if not network_names:
        return chosen
    unnamed = max(0, chosen.palette.num_classes - len(network_names))
    named = replace(chosen.palette, class_names=tuple(network_names), unnamed_classes=unnamed)
    return replace(chosen, palette=named)


def _choose(
    option: Palette | None,
    network_names: Sequence[str],
    files: Iterable[tuple[Colours, Iterable[int]]],
    num_classes: int | None,
    label_space: str,
    largest_value: int | None,
) -> ChosenPalette:
    if option is not None:
        return ChosenPalette(option, "option")
    keys = list(map(_name_key, network_names))
    for palette in PALETTES.values():
        if keys and keys == list(map(_name_key, palette.class_names)):
            return ChosenPalette(palette, "network")
    for colours, values in files:
        of_file = palette_of_file(colours, values, num_classes)
        if of_file is not None:
            return ChosenPalette(of_file, "file")
    fitting = _PALETTES_BY_CLASSES.get(num_classes or 0)
    if num_classes is None:
        fitting = PALETTES.get(_PALETTES_BY_SPACE.get(label_space, ""))
    count = (0 if largest_value is None else largest_value + 1) if num_classes is None else 0
    if fitting is not None and count <= fitting.num_classes:
        return ChosenPalette(fitting, "values")
    default = PALETTES[DEFAULT_PALETTE]
    if max(num_classes or 0, count) > default.num_classes:
        return ChosenPalette(PALETTES["generated"], "values")
    return ChosenPalette(_without_names(default), "default")


def find_class(palette: Palette, text: str, where: str = "classes") -> int:
    """Returns the index of a class that is named by its index or its name.

    Names are compared without case, spaces, slashes, hyphens and underscores: `potted plant` is
    `pottedplant`.

    Args:
        palette: the names.
        text: an index such as `15`, or a name.
        where: the name of the option, for messages.

    Raises:
        IllPosed: if the palette has no class of that name, or several.
    """
    text = text.strip()
    if _INDEX.fullmatch(text):
        return int(text)
    key = _name_key(text)
    found = [i for i, name in enumerate(palette.class_names) if key and _name_key(name) == key]
    if len(found) == 1:
        return found[0]
    if found:
        got = f"{safe_repr(text)}, the name of {' and '.join(map(str, found))}"
        raise IllPosed(where, "a class", got, "Use the index.")
    names = palette.class_names
    expected = f"an index or a class name of the palette {palette.name}"
    fix = did_you_mean(text, names)
    if not names:
        fix = "It has no names: use the index, or name a palette."
    raise IllPosed(where, expected, safe_repr(text), fix)


_INDEX = re.compile(r"[0-9]{1,6}")
_IGNORED_IN_NAMES = re.compile(r"[\s/_-]+")


def _name_key(name: str) -> str:
    """Returns what class names are compared by."""
    return _IGNORED_IN_NAMES.sub("", name).casefold()


def _without_names(palette: Palette) -> Palette:
    return replace(palette, class_names=(), unnamed_classes=palette.num_classes)


def _rows(table: str) -> tuple[tuple[Colour, ...], tuple[str, ...]]:
    """Returns the colours and the names in a table of `palette_tables`."""
    colours, names = [], []
    for line in table.strip().splitlines():
        red, green, blue, name = line.split(maxsplit=3)
        colours.append((int(red), int(green), int(blue)))
        names.append(name)
    return tuple(colours), tuple(names)


def _fill_with_voc(
    class_colours: tuple[Colour, ...],
    void: Colour | None = None,
    ignore_index: int = NUM_COLOURS - 1,
) -> Colours:
    """Returns 256 colours: those of the classes, then unused VOC colours; void where ignored."""
    used = {*class_colours, void}
    unused = [colour for colour in map(tuple, voc_colours().tolist()) if colour not in used]
    if void is None:
        void = unused.pop(unused.index(_BLACK) if _BLACK in unused else -1)
    colours = [*class_colours, *unused][: NUM_COLOURS - 1]
    colours.insert(ignore_index, void)
    return np.array(colours, dtype=np.uint8)


def _of_table(
    name: str,
    table: str,
    void: Colour | None = _BLACK,
    *,
    ignore_index: int = NUM_COLOURS - 1,
    background_index: int | None = None,
    void_colours: tuple[Colour, ...] = (),
    has_void: bool = True,
) -> Palette:
    colours, class_names = _rows(table)
    return Palette(
        name,
        _fill_with_voc(colours, void, ignore_index),
        class_names,
        ignore_index,
        background_index,
        void_colours,
        has_void=has_void,
    )


PALETTES: Mapping[str, Palette] = {
    row.name: row
    for row in (
        Palette(
            "voc", voc_colours(), _rows(palette_tables.VOC)[1], ignore_index=255, background_index=0
        ),
        _of_table(
            "cityscapes",
            palette_tables.CITYSCAPES,
            void_colours=_rows(palette_tables.CITYSCAPES_VOID)[0],
        ),
        _of_table("ade20k", palette_tables.ADE20K),
        # Black is a class of COCO-Stuff.
        _of_table("cocostuff", palette_tables.COCOSTUFF, _VOC_VOID, has_void=False),
        _of_table("camvid", palette_tables.CAMVID, ignore_index=11),
        _of_table(
            "pascal_context", palette_tables.PASCAL_CONTEXT, background_index=0, has_void=False
        ),
        _of_table(
            "pascal_context_59",
            palette_tables.PASCAL_CONTEXT.strip().partition("\n")[2],
            has_void=False,
        ),
        _of_table("okabe_ito", palette_tables.OKABE_ITO, _VOC_VOID, has_void=False),
        Palette(
            "generated",
            np.concatenate([generated_colours(NUM_COLOURS - 1), np.zeros((1, 3), dtype=np.uint8)]),
            (),
            ignore_index=255,
            unnamed_classes=NUM_COLOURS,
            has_void=False,
        ),
    )
}

_PALETTES_BY_CLASSES = {
    palette.num_classes: palette
    for palette in PALETTES.values()
    if palette.name not in ("okabe_ito", "generated")
}
"""The palette of a data set by its number of classes."""

_PALETTES_BY_SPACE = {
    "cityscapes_ids": "cityscapes",
    "ade_zero": "ade20k",
    "cocostuff_182": "cocostuff",
    "coco_ids": "cocostuff",
}
"""The palette of the data set that a label space belongs to."""
