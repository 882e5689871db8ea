"""How a picture is drawn: the options of all kinds, and the colours with a fixed meaning."""

from dataclasses import dataclass
from typing import Final

Colour = tuple[int, int, int]  # red, green, blue
Scale = tuple[float, float]  # the values with the first and the last colour

LEGENDS: Final = ("none", "strip")
IGNORE_STYLES: Final = ("auto", "checker", "grey", "photo", "colour", "transparent")
RESIZES: Final = ("none", "labels", "image")
SCALE_NAMES: Final = ("lnC", "auto", "percentile")
MAX_LINE_PIXELS: Final = 100
"""Largest value of `contour_px` and of `border_px`."""

CORRECT: Final[Colour] = (217, 217, 217)
WRONG: Final[Colour] = (213, 94, 0)
"""Vermilion of Okabe and Ito, distinct from grey with every kind of colour blindness."""
HIT: Final[Colour] = (0, 158, 115)
MISSED: Final[Colour] = WRONG
FALSE_ALARM: Final[Colour] = (0, 114, 178)
"""Bluish green and blue of Okabe and Ito."""
REST: Final[Colour] = (217, 217, 217)
"""The colour of classes that are not chosen."""
IGNORED_GREY: Final[Colour] = (160, 160, 160)
TINTED_GREY: Final[Colour] = (150, 170, 205)
"""Takes the place of the two greys above on the colour map grey, which contains them."""
CHECKER_GREYS: Final = (96, 144)
CHECKER_PIXELS: Final = 4
"""Width and height of one square of the checkerboard."""


@dataclass(frozen=True)
class Style:
    """The options of a picture; `VisualizeOptions` describes them.

    Attributes:
        alpha: weight of the palette in the overlay, from 0 to 1.
        contour_px: width of the outline of each region of a class; 0 for none.
        border_px: largest distance of a boundary error from another true class; None if the error
            picture does not tell kinds of error apart.
        legend: one of `LEGENDS`.
        scale: one of `SCALE_NAMES`, or the two ends; None for the default of the kind.
        cmap: a key of `COLORMAPS`; None for the default of the kind.
        classes: the chosen classes; None for all.
        ignore: one of `IGNORE_STYLES`.
    """

    alpha: float = 0.5
    contour_px: int = 0
    border_px: int | None = 3
    legend: str = "none"
    scale: str | Scale | None = None
    cmap: str | None = None
    classes: tuple[int, ...] | None = None
    ignore: str = "auto"
