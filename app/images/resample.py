"""Layers of different sizes, resampled to one."""

from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import IllPosed
from .layers import Layers

_Array = TypeVar("_Array", bound=npt.NDArray[Any])
_MAPS: Final = ("labels", "prediction", "nll", "confidence", "entropy", "valid")
"""The layers that are never interpolated. The first of them has the size of resize=labels."""


def resampled(layers: Layers, resize: str) -> Layers:
    """Returns layers of one height and width.

    Indices, maps and the mask of valid pixels take the nearest pixel. Photos are interpolated.

    Args:
        layers: arrays that may differ in size.
        resize: labels for the size of the labels, or else of the prediction or the map; image for
            that of the photo; none to leave all as they are.

    Raises:
        IllPosed: if there is no photo for resize=image.
    """
    if resize == "none":
        return layers
    arrays = {name: getattr(layers, name) for name in _MAPS}
    maps = {name: array for name, array in arrays.items() if array is not None}
    if resize == "image":
        if layers.photo is None:
            raise IllPosed("image", "a photo for resize=image", "nothing", "Send it as `image`.")
        size = layers.photo.shape[:2]
    elif maps:
        size = next(iter(maps.values())).shape
    else:
        return layers
    changed: dict[str, Any] = {name: _nearest(array, size) for name, array in maps.items()}
    if layers.photo is not None and layers.photo.shape[:2] != size:
        changed["photo"] = _interpolated(layers.photo, size)
    return replace(layers, **changed)


def _interpolated(photo: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Returns a photo [H,W,3] of another size, interpolated bilinearly.

    Rows that become fewer do so before columns become more: a photo of one column that becomes one
    row is never a square.
    """
    height, width = size
    picture = Image.fromarray(photo)
    if height < picture.height and width > picture.width:
        picture = picture.resize((picture.width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def _nearest(array: _Array, size: tuple[int, int]) -> _Array:
    """Returns an array [H,W] of another size, whose pixels are those nearest to their centres."""
    if array.shape == size:
        return array
    # The axis that becomes shorter comes first, so that no array between them is larger than both.
    for axis in sorted((0, 1), key=lambda axis: size[axis] / array.shape[axis]):
        length = size[axis]
        # floor((i + 1/2) old / new), without rounding errors.
        nearest = (2 * np.arange(length) + 1) * array.shape[axis] // (2 * length)
        array = np.take(array, nearest, axis=axis)
    return array
