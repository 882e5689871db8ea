"""Masks, lines and patterns on pictures of mode RGB, in Pillow's C functions."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from .style import CHECKER_GREYS, CHECKER_PIXELS, Colour

Mask = npt.NDArray[np.bool_]

_MIDDLE = 128


def rgb_picture(colours: npt.NDArray[np.uint8]) -> Image.Image:
    """Returns a picture of colours, uint8 [H,W,3]."""
    height, width, _ = colours.shape
    return Image.frombuffer(
        "RGB", (width, height), np.ascontiguousarray(colours), "raw", "RGB", 0, 1
    )


def mask_picture(mask: Mask) -> Image.Image:
    """Returns a mask [H,W] as Pillow takes it: pixels of 0 and 255."""
    height, width = mask.shape
    contiguous = np.ascontiguousarray(mask)
    return Image.frombuffer("1", (width, height), contiguous, "raw", "1;8", 0, 1)


def fill(picture: Image.Image, colour: Colour, mask: Mask) -> None:
    """Draws one colour where the mask is true."""
    picture.paste(colour, mask=mask_picture(mask))


def paste(picture: Image.Image, other: Image.Image, mask: Mask) -> None:
    """Draws another picture where the mask is true."""
    picture.paste(other, mask=mask_picture(mask))


def checkerboard(width: int, height: int) -> Image.Image:
    """Returns a checkerboard of two greys."""
    row, column = (np.arange(length) // CHECKER_PIXELS for length in (height, width))
    greys = np.array(CHECKER_GREYS, dtype=np.uint8)
    rows = greys[(np.arange(2)[:, None] + column) % 2]  # all rows are one of these two
    return Image.fromarray(rows[row % 2]).convert("RGB")


def draw_lines(picture: Image.Image, mask: Mask) -> None:
    """Draws black where the picture is light and white where it is dark, within the mask."""
    is_dark = np.asarray(picture.convert("L")) < _MIDDLE
    fill(picture, (0, 0, 0), mask)
    fill(picture, (255, 255, 255), mask & is_dark)
