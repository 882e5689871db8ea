"""The scales of heat maps, and the index of the colour of each value."""

import math

import numpy as np
import numpy.typing as npt

from ..errors import IllPosed
from . import colormaps
from .kinds import KINDS
from .style import Scale

Values = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

PERCENTILES = (1.0, 99.0)
"""The shares of values, in percent, that are the ends of scale=percentile."""
_MAX_SAMPLE = 1 << 20
_BLOCK_VALUES = 1 << 17
"""Values that are converted at a time, so that they stay in the cache."""


def scale_of(
    kind: str, values: Values, left_out: Mask, num_classes: int, wanted: str | Scale | None
) -> Scale:
    """Returns the values with the first and the last colour of the colour map.

    Args:
        kind: a heat map of `KINDS`.
        values: [H,W].
        left_out: pixels that do not count for a scale of the values.
        num_classes: C, for a scale to ln C.
        wanted: lnC, auto for the least and the largest value, percentile for the 1st and the 99th
            (of at most 2^20 pixels), or two numbers; None for 0...ln C, or for a confidence 0...1.

    Raises:
        IllPosed: if a confidence is to have the scale lnC.
    """
    default = (0.0, math.log(num_classes) if KINDS[kind].runs_to_ln_c else 1.0)
    if wanted is None or isinstance(wanted, tuple):
        return wanted or default
    if wanted == "lnC":
        if not KINDS[kind].runs_to_ln_c:
            expected = f"auto, percentile or two numbers for kind={kind}, which is from 0 to 1"
            raise IllPosed("scale", expected, "lnC")
        return default
    shown = values[~left_out & np.isfinite(values)]
    if not shown.size:
        return default
    if wanted == "auto":
        return float(shown.min()), float(shown.max())
    low, high = np.percentile(shown[:: -(-shown.size // _MAX_SAMPLE)], PERCENTILES)
    return float(low), float(high)


def indices_on(values: Values, scale: Scale) -> npt.NDArray[np.uint8]:
    """Returns the index of the colour of each value, clipped at the ends of the scale.

    On a scale of one value, as for a single class, all values have the first colour. NaN has it
    too, and is drawn over by the caller.
    """
    low, high = scale
    indices = np.zeros(values.shape, dtype=np.uint8)
    if low == high:
        return indices
    rows = max(1, _BLOCK_VALUES // values.shape[1])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for begin in range(0, len(values), rows):
            block = (values[begin : begin + rows] - low) / (high - low)
            indices[begin : begin + rows] = colormaps.indices_of(block)
    return indices
