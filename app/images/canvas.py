"""Canvases for pictures with text: their colours, their lines, and how large they may be."""

from typing import Final

from PIL import Image

from ..errors import IllPosed
from .style import Colour

BACKGROUND: Final[Colour] = (255, 255, 255)
INK: Final[Colour] = (32, 32, 32)
MAX_EXTENSION: Final = 4
"""The largest canvas, in pixels of the pictures on it."""
ALLOWED_PIXELS: Final = 1 << 22
"""Pixels that a canvas may have beyond that, so that small pictures can have legends."""


def line_height(pixels: int) -> int:
    """Returns the distance of lines of a text of that height."""
    return pixels + pixels // 2


def new_canvas(mode: str, size: tuple[int, int]) -> Image.Image:
    """Returns an empty canvas for a picture of a mode: RGBA if that is, else RGB."""
    if mode == "RGBA":
        return Image.new("RGBA", size, (*BACKGROUND, 255))
    return Image.new("RGB", size, BACKGROUND)


def check_extension(
    where: str, picture: Image.Image, size: tuple[int, int], fix: str, num_pictures: int = 1
) -> None:
    """Checks that a canvas is not many times as large as the pictures on it.

    Raises:
        IllPosed: if it is, as for a picture of one row and a million columns.
    """
    width, height = size
    allowed = MAX_EXTENSION * num_pictures * picture.width * picture.height + ALLOWED_PIXELS
    if width * height > allowed:
        raise IllPosed(
            where,
            f"a picture that is less narrow, with which the canvas has at most {allowed} pixels",
            f"a canvas of {height} x {width} for a picture of {picture.height} x {picture.width}",
            fix,
        )
