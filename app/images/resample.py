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
        height, width = size
        photo = Image.fromarray(layers.photo)
        changed["photo"] = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))
    return replace(layers, **changed)


def _nearest(array: _Array, size: tuple[int, int]) -> _Array:
    """Returns an array [H,W] of another size, whose pixels are those nearest to their centres."""
    if array.shape == size:
        return array
    for axis, length in enumerate(size):
        # floor((i + 1/2) old / new), without rounding errors.
        nearest = (2 * np.arange(length) + 1) * array.shape[axis] // (2 * length)
        array = np.take(array, nearest, axis=axis)
    return array
