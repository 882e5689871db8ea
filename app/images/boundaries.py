"""Distances to regions of another class, in maps of class indices."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]

_Extremum = Callable[[Indices, Indices], Indices]
_MAX_INDEX = (1 << 16) - 1


def is_near_another(indices: Indices, radius: int) -> Mask:
    """Returns where some pixel at most `radius` rows and columns away has another index.

    The square of 2 radius + 1 pixels around a pixel holds another index if its least and its
    largest index differ. The edge of the picture is no boundary. Negative indices, and those from
    65535 on, count as one index.

    Args:
        indices: integers [H,W].
        radius: 0 gives false everywhere.
    """
    narrow = _narrow(indices)
    is_near: Mask = _extremum(np.maximum, narrow, radius) != _extremum(np.minimum, narrow, radius)
    return is_near


def _narrow(indices: Indices) -> Indices:
    """Returns the indices in the smallest dtype, with which extrema are several times as fast."""
    if indices.dtype.itemsize == 1:
        return indices
    outside = (indices < 0) | (indices > _MAX_INDEX)
    narrow = indices.astype(np.uint16)
    narrow[outside] = _MAX_INDEX
    return narrow.astype(np.uint8) if int(narrow.max()) < 1 << 8 else narrow


def _extremum(function: _Extremum, indices: Indices, radius: int) -> Indices:
    """Returns the largest, or the least, index of the square around each pixel.

    A window of n + s pixels is two windows of n pixels, s apart, so that the number of steps grows
    with the logarithm of the radius. No row needs a radius that is larger than the picture, which
    so is padded to three times its pixels at most.
    """
    for axis in (0, 1):
        reach = min(radius, indices.shape[axis] - 1)
        width = 2 * reach + 1
        padding = [(reach, reach) if axis == padded else (0, 0) for padded in (0, 1)]
        windows, covered = np.pad(indices, padding, mode="edge"), 1
        while covered < width:
            step = min(covered, width - covered)
            if axis == 0:
                windows = function(windows[step:], windows[:-step])
            else:
                windows = function(windows[:, step:], windows[:, :-step])
            covered += step
        indices = windows
    return indices
