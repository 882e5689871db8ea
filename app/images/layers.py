"""The arrays that a picture is drawn from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import IllPosed
from .palettes import Palette

Indices = npt.NDArray[np.integer]
Values = npt.NDArray[np.floating]
Colours = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_RESAMPLE = "Use resize=labels or resize=image to resample."


@dataclass(frozen=True, eq=False)
class Layers:
    """The arrays [H,W] that a picture of one image is drawn from; None where there is none.

    Attributes:
        palette: the colours of the classes.
        num_classes: C, for the scales of nll and entropy.
        labels, prediction: class indices.
        nll, entropy: in nats, not negative.
        confidence: from 0 to 1.
        prediction_source: the input that the prediction comes from, for messages.
        photo: uint8 [H,W,3].
        valid: false at ignored pixels; None if no pixel is ignored.
        class_names: what a legend calls the classes; the first ones may be all that have a name.
    """

    palette: Palette
    num_classes: int
    labels: Indices | None = None
    prediction: Indices | None = None
    nll: Values | None = None
    confidence: Values | None = None
    entropy: Values | None = None
    prediction_source: str = "prediction"
    photo: Colours | None = None
    valid: Mask | None = None
    class_names: tuple[str, ...] = ()

    def ignored(self) -> Mask | None:
        """Returns a mask of the ignored pixels; None if there are none."""
        if self.valid is None or self.valid.all():
            return None
        return ~self.valid

    def name_of(self, index: int) -> str:
        """Returns what a legend calls a class."""
        if 0 <= index < len(self.class_names):
            return f"{index} {self.class_names[index]}"
        return f"class {index}"

    def check_sizes(self) -> None:
        """Checks that all arrays have the height and width of the first one.

        Raises:
            IllPosed: if one has not.
        """
        maps = (self.confidence, self.nll, self.entropy)
        first = ""
        for where, array in (
            ("labels", self.labels),
            (self.prediction_source, self.prediction),
            ("logits", next((map_ for map_ in maps if map_ is not None), None)),
            ("image", self.photo),
        ):
            if array is None:
                continue
            height, width = array.shape[:2]
            if not first:
                first, expected = where, (height, width)
            elif (height, width) != expected:
                is_larger = height >= expected[0] and width >= expected[1]
                is_upsampled = where == "image" and first == "logits" and is_larger
                raise IllPosed(
                    where,
                    f"{expected[0]} x {expected[1]} (height x width) to match the {first}",
                    f"{height} x {width}",
                    "Scores of lower resolution? Use upsampling=bilinear."
                    if is_upsampled
                    else _RESAMPLE,
                )
