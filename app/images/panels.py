"""All pictures of one image on one canvas, for programs that show one picture of an image."""

from typing import Final

from PIL import Image, ImageDraw

from .canvas import INK, line_height, new_canvas
from .layers import Layers
from .painting import rgb_picture
from .palettes import NUM_COLOURS
from .render import draw
from .style import Style
from .text import font, font_pixels

HEAT_MAPS: Final = ("nll", "confidence", "entropy")


def pictures_of_layers(layers: Layers) -> dict[str, Image.Image]:
    """Returns the pictures that there are arrays for, by their kind, with legends.

    Photo, labels, prediction and errors are one picture, of kind `compare`. With more classes than
    a palette has colours they are a picture each, in colours that repeat.

    Args:
        layers: the arrays; none of them gives no picture.
    """
    maps = [name for name in ("photo", "labels", "prediction") if _has(layers, name)]
    kinds = [name for name in HEAT_MAPS if _has(layers, name)]
    pictures: dict[str, Image.Image] = {}
    if layers.num_classes > NUM_COLOURS or maps == ["photo"]:
        for name in maps:
            array = getattr(layers, name)
            pictures[name] = rgb_picture(array if name == "photo" else layers.palette.paint(array))
        kinds[:0] = ["error"] if {"labels", "prediction"} <= set(maps) else []
    elif maps:
        kinds.insert(0, "compare" if len(maps) > 1 else maps[0])
    style = Style(legend="strip")
    return pictures | {kind: draw(kind, layers, style).image for kind in kinds}


def in_columns(pictures: dict[str, Image.Image]) -> Image.Image:
    """Returns pictures by their kind in columns that are as high as the first, with titles."""
    height = max(picture.height for picture in pictures.values())
    pixels = font_pixels(height)
    corners: list[tuple[int, int]] = []
    x = y = right = bottom = 0
    for kind, picture in pictures.items():
        title = 0 if kind == "compare" else line_height(pixels)  # its panels have titles
        if y and y + title + picture.height > height:
            x, y = right, 0
        corners.append((x, y + title))
        y += title + picture.height
        right, bottom = max(right, x + picture.width), max(bottom, y)
    canvas = new_canvas("RGB", (right, bottom))
    for (kind, picture), (x, y) in zip(pictures.items(), corners, strict=True):
        canvas.paste(picture, (x, y))
        if y:
            ImageDraw.Draw(canvas).text((x, y), kind, INK, font(pixels), anchor="ld")
    return canvas


def _has(layers: Layers, name: str) -> bool:
    return getattr(layers, name) is not None
