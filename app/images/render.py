"""Pictures of one image of a batch, drawn from arrays [H,W]; one row of `KINDS` for each kind.

| kind | picture | mode |
|---|---|---|
| labels, prediction | the class indices, with the colours of the palette | P |
| overlay | the photo, blended with the colours of the prediction, or else of the labels | RGB |
| error | light grey where the prediction is right, vermilion where it is wrong | RGB |
| nll | inferno from 0 to ln C; clipped above, where a uniform prediction would be better | RGB |
| confidence | viridis from 0 to 1 | RGB |
| entropy | viridis from 0 to ln C | RGB |

Pictures of mode P are label maps: they can be sent as `labels`. No scale depends on the image, so
that pictures with the same number of classes can be compared. Ignored pixels are a checkerboard of
two greys that no colour map contains. The overlay shows the photo there, and also where the
background class of the palette is, as `vis.py` of FCN does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import IllPosed, safe_repr
from . import colormaps
from .palettes import NUM_COLOURS, Palette

Indices = npt.NDArray[np.integer]
Values = npt.NDArray[np.floating]
Colours = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_Array = TypeVar("_Array", bound=npt.NDArray[Any])

CORRECT: Final = (217, 217, 217)
WRONG: Final = (213, 94, 0)
"""Vermilion of Okabe and Ito, distinct from grey with every kind of colour blindness."""
CHECKER_GREYS: Final = (96, 144)
CHECKER_PIXELS: Final = 4
"""Width and height of one square of the checkerboard."""


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
        alpha: weight of the palette in the overlay, from 0 to 1.
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
    alpha: float = 0.5

    def ignored(self, shape: tuple[int, int]) -> Mask:
        """Returns a mask of the ignored pixels."""
        return np.zeros(shape, dtype=np.bool_) if self.valid is None else ~self.valid


@dataclass(frozen=True)
class Kind:
    """A kind of picture.

    Attributes:
        draw: the function that draws it.
        map: the map of `seg_loss.evaluate` that it is drawn from; None if it needs no logits.
    """

    draw: Callable[[Layers], Image.Image]
    map: str | None


def draw(kind: str, layers: Layers) -> Image.Image:
    """Returns the picture of a kind, of mode P or RGB.

    Raises:
        IllPosed: if the kind is unknown, an array is missing, sizes differ, alpha is not from 0 to
            1, or an index does not fit mode P.
    """
    row = KINDS.get(kind)
    if row is None:
        raise IllPosed("kind", f"one of {', '.join(KINDS)}", safe_repr(kind))
    if not 0 <= layers.alpha <= 1:
        raise IllPosed("alpha", "a weight from 0 to 1", f"{layers.alpha}")
    _check_sizes(layers)
    return row.draw(layers)


def indexed_picture(indices: Indices, palette: Palette, where: str = "labels") -> Image.Image:
    """Returns a picture of mode P, whose samples are the indices [H,W].

    Args:
        indices: class indices of any integer dtype.
        palette: the colours.
        where: the name of the input for messages.

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
            )
    height, width = indices.shape
    picture = Image.frombytes("P", (width, height), indices.astype(np.uint8).tobytes())
    picture.putpalette(palette.colours.tobytes())
    return picture


def _check_sizes(layers: Layers) -> None:
    """Checks that all arrays have the height and width of the first one."""
    arrays = (
        ("labels", layers.labels),
        (layers.prediction_source, layers.prediction),
        ("logits", layers.nll if layers.confidence is None else layers.confidence),
        ("image", layers.photo),
    )
    first = ""
    for where, array in arrays:
        if array is None:
            continue
        height, width = array.shape[:2]
        if not first:
            first, expected = where, (height, width)
        elif (height, width) != expected:
            is_larger = height >= expected[0] and width >= expected[1]
            raise IllPosed(
                where,
                f"{expected[0]} x {expected[1]} (height x width) to match the {first}",
                f"{height} x {width}",
                "Scores of lower resolution? Use upsampling=bilinear."
                if where == "image" and first == "logits" and is_larger
                else "",
            )


def _labels(layers: Layers) -> Image.Image:
    labels = _required(layers.labels, "labels", "labels", "Send `labels`.")
    outside = (labels < 0) | (labels > NUM_COLOURS - 1)
    # An ignored label such as -1 does not fit mode P.
    replaced = outside & layers.ignored(labels.shape)
    if replaced.any():
        # int8 cannot hold 255: NumPy would store -1.
        labels = np.where(replaced, np.int64(layers.palette.ignore_index), labels)
    return indexed_picture(labels, layers.palette)


def _prediction(layers: Layers) -> Image.Image:
    # Ignored pixels have a prediction too, and show it.
    prediction = _required(
        layers.prediction, "prediction", "prediction", "Send `logits` or `prediction`."
    )
    return indexed_picture(prediction, layers.palette, "prediction")


def _overlay(layers: Layers) -> Image.Image:
    photo = _required(layers.photo, "image", "overlay", "Send the photo as `image`, PNG or JPEG.")
    indices = _required(
        layers.labels if layers.prediction is None else layers.prediction,
        "prediction",
        "overlay",
        "Send `logits`, `prediction` or `labels`.",
    )
    alpha = np.float32(layers.alpha)
    blend = (1 - alpha) * photo + alpha * layers.palette.paint(indices)
    shows_photo = layers.ignored(indices.shape)
    if layers.palette.background_index is not None:
        shows_photo |= indices == layers.palette.background_index
    return _picture(np.where(shows_photo[:, :, None], photo, np.rint(blend).astype(np.uint8)))


def _error(layers: Layers) -> Image.Image:
    labels = _required(layers.labels, "labels", "error", "Send `labels`.")
    prediction = _required(
        layers.prediction, "prediction", "error", "Send `logits` or `prediction`."
    )
    colours = np.array([WRONG, CORRECT], dtype=np.uint8)[(labels == prediction).astype(np.intp)]
    return _with_checkerboard(colours, layers.ignored(labels.shape))


def _nll(layers: Layers) -> Image.Image:
    nll = _required(layers.nll, "nll", "nll", "Send `logits` and `labels`.")
    return _heat_map(_over_ln_c(nll, layers.num_classes), colormaps.INFERNO, layers)


def _confidence(layers: Layers) -> Image.Image:
    confidence = _required(layers.confidence, "confidence", "confidence", "Send `logits`.")
    return _heat_map(confidence, colormaps.VIRIDIS, layers)


def _entropy(layers: Layers) -> Image.Image:
    entropy = _required(layers.entropy, "entropy", "entropy", "Send `logits`.")
    return _heat_map(_over_ln_c(entropy, layers.num_classes), colormaps.VIRIDIS, layers)


KINDS: Final[dict[str, Kind]] = {
    "labels": Kind(_labels, map=None),
    "prediction": Kind(_prediction, map="prediction"),
    "overlay": Kind(_overlay, map="prediction"),
    "error": Kind(_error, map="prediction"),
    "nll": Kind(_nll, map="nll"),
    "confidence": Kind(_confidence, map="confidence"),
    "entropy": Kind(_entropy, map="entropy"),
}


def _required(array: _Array | None, where: str, kind: str, fix: str) -> _Array:
    if array is None:
        raise IllPosed(where, f"something to draw for kind={kind}", "nothing", fix)
    return array


def _over_ln_c(values: Values, num_classes: int) -> Values:
    """Returns values divided by ln C, the nll and the entropy of a uniform prediction."""
    # With a single class, ln C and all values are 0.
    return values / math.log(num_classes) if num_classes > 1 else np.zeros_like(values)


def _heat_map(values: Values, colormap: Colours, layers: Layers) -> Image.Image:
    # Pixels without a softmax have the value NaN, which is not on the scale.
    not_shown = layers.ignored(values.shape) | np.isnan(values)
    return _with_checkerboard(colormaps.paint(values, colormap), not_shown)


def _with_checkerboard(colours: Colours, mask: Mask) -> Image.Image:
    row, column = (np.arange(length) // CHECKER_PIXELS for length in mask.shape)
    greys = np.array(CHECKER_GREYS, dtype=np.uint8)[(row[:, None] + column) % 2]
    return _picture(np.where(mask[:, :, None], greys[:, :, None], colours))


def _picture(colours: Colours) -> Image.Image:
    height, width, _ = colours.shape
    return Image.frombytes("RGB", (width, height), colours.tobytes())
