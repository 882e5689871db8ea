"""Label maps as pictures of mode P."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import IllPosed
from .palettes import NUM_COLOURS, Palette


def indexed_picture(
    indices: npt.NDArray[np.integer], palette: Palette, where: str = "labels", fix: str = ""
) -> Image.Image:
    """Returns a picture of mode P, whose samples are the indices [H,W].

    Args:
        indices: class indices of any integer dtype.
        palette: the colours.
        where: the name of the input for messages.
        fix: what to do about an index that does not fit.

    Raises:
        IllPosed: if an index is not from 0 to 255.
    """
    if indices.dtype != np.uint8:
        outside = (indices < 0) | (indices >= NUM_COLOURS)
        if outside.any():
            row, column = map(int, np.argwhere(outside)[0])
            others = int(np.count_nonzero(outside)) - 1
            more = f" and {others} more pixel{'s' if others > 1 else ''}" if others else ""
            raise IllPosed(
                where,
                f"0…{NUM_COLOURS - 1}, which a PNG of mode P can hold",
                f"{int(indices[row, column])} at ({row}, {column}){more}",
                fix,
            )
    return picture_of_indices(indices, palette.colours)


def picture_of_indices(
    indices: npt.NDArray[np.integer], colours: npt.NDArray[np.uint8]
) -> Image.Image:
    """Returns a picture of mode P of indices [H,W], taken modulo 256, in colours [256,3]."""
    height, width = indices.shape
    # Conversion drops the higher bits.
    picture = Image.frombytes("P", (width, height), indices.astype(np.uint8).tobytes())
    picture.putpalette(colours.tobytes())
    return picture
