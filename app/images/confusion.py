"""A picture of a confusion matrix, with the names of the classes beside its rows and columns."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from . import colormaps
from .canvas import INK, new_canvas
from .text import drawable, font, length

_SIZE = 960
"""The largest width of the matrix in pixels, unless it has more classes."""
_CELL = 24
_MIN_TEXT = 9
"""The smallest cell with a name beside it, in pixels."""
_MARGIN = 4
_CORNER = "rows: truth"


def draw_confusion(confusion: npt.NDArray[np.integer], class_names: Sequence[str]) -> Image.Image:
    """Returns the picture of a confusion matrix, of mode RGB.

    A row is the truth and a column is the prediction. The colour of a cell, of viridis, is its
    share of the pixels of its row. Rows without pixels have the colour of 0. Names are left out
    where a cell is smaller than a line of text.

    Args:
        confusion: [C,C] counts.
        class_names: the name of each of the C classes.
    """
    pixels = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(pixels, 1)
    cell = max(1, min(_CELL, _SIZE // len(confusion)))
    cells = np.kron(colormaps.paint(shares, colormaps.VIRIDIS), np.ones((cell, cell, 1), np.uint8))
    matrix = Image.fromarray(cells)
    if cell < _MIN_TEXT:
        return matrix
    pixels = cell - _MARGIN
    names = [drawable(name) for name in class_names]
    width = 2 * _MARGIN + max(length(name, pixels) for name in (*names, _CORNER))
    rows, columns = (new_canvas("RGB", (width, matrix.height)) for _ in range(2))
    for strip, x, anchor in ((rows, width - _MARGIN, "rm"), (columns, _MARGIN, "lm")):
        canvas = ImageDraw.Draw(strip)
        for index, name in enumerate(names):
            canvas.text((x, (index + 0.5) * cell), name, INK, font(pixels), anchor)
    picture = new_canvas("RGB", (width + matrix.width, width + matrix.height))
    corner = (width - _MARGIN, width - _MARGIN)
    ImageDraw.Draw(picture).text(corner, _CORNER, INK, font(pixels), "rs")
    picture.paste(matrix, (width, width))
    picture.paste(rows, (0, width))
    picture.paste(columns.transpose(Image.Transpose.ROTATE_90), (width, 0))
    return picture
