"""Colours by lightness, chroma and hue in OKLCH, where equal distances look equal.

OKLCH is OKLab (Björn Ottosson, 2020) in polar coordinates. The matrices are those of its author.
"""

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.floating]
Colours = npt.NDArray[np.uint8]

_LMS_OF_LAB = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
_RGB_OF_LMS = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
_STEPS = 20
"""Steps of the bisection: the chroma is exact to 1e-6."""


def oklch_to_srgb(lightness: Numbers, max_chroma: float, hue_degrees: Numbers) -> Colours:
    """Returns sRGB colours, uint8 [n,3].

    Args:
        lightness: [n], from 0 to 1.
        max_chroma: the chroma. A colour that sRGB does not have gets the largest chroma at which
            sRGB has its lightness and hue.
        hue_degrees: [n].
    """
    hue = np.deg2rad(hue_degrees)
    low, high = np.zeros_like(hue), np.full_like(hue, max_chroma)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        linear = _linear_rgb(lightness, middle, hue)
        is_inside = ((linear >= 0) & (linear <= 1)).all(axis=-1)
        low, high = np.where(is_inside, middle, low), np.where(is_inside, high, middle)
    linear = _linear_rgb(lightness, low, hue).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colours: Colours = np.rint(255 * encoded).astype(np.uint8)
    return colours


def _linear_rgb(lightness: Numbers, chroma: Numbers, hue: Numbers) -> Numbers:
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    linear: Numbers = (lab @ _LMS_OF_LAB.T) ** 3 @ _RGB_OF_LMS.T
    return linear
