"""The kinds of pictures, and the maps of `seg_loss.evaluate` that they are drawn from.

`render` has a function for each kind. Here are the facts about a kind that do not need Pillow, for
the options and for the operation that computes the maps.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Kind:
    """A kind of picture.

    Attributes:
        map: the map that it is drawn from; None if it needs no logits.
        colormap: the default colour map of a heat map; None if the kind is no heat map.
        unit: the unit of the values of a heat map.
        runs_to_ln_c: whether the default scale is 0...ln C; else that of a heat map is 0...1.
    """

    map: str | None
    colormap: str | None = None
    unit: str = ""
    runs_to_ln_c: bool = False

    @property
    def is_heat_map(self) -> bool:
        """Whether the picture shows numbers on a scale."""
        return self.colormap is not None


KINDS: Final[dict[str, Kind]] = {
    "labels": Kind(map=None),
    "prediction": Kind(map="prediction"),
    "overlay": Kind(map="prediction"),
    "error": Kind(map="prediction"),
    "nll": Kind(map="nll", colormap="inferno", unit="nats", runs_to_ln_c=True),
    "confidence": Kind(map="confidence", colormap="viridis", unit="probability"),
    "entropy": Kind(map="entropy", colormap="viridis", unit="nats", runs_to_ln_c=True),
    "compare": Kind(map="prediction"),
}
