"""Pictures of one image of a batch: arrays [H,W] to PNG, one function per row of `KINDS`.

| kind | picture | mode |
|---|---|---|
| labels, prediction | the indices themselves, in the colours of the palette | P |
| overlay | the photo, blended with the colours of the prediction, or else of the labels | RGB |
| error | correct light grey, wrong vermilion | RGB |
| nll | inferno from 0 to ln C; what is above is worse than knowing nothing, and clipped | RGB |
| confidence | viridis from 0 to 1 | RGB |
| entropy | viridis of entropy / ln C, from 0 to 1 | RGB |

The P pictures are label maps again: they can be sent where labels are read. The scales never depend
on the image, so pictures of one class count can be compared. Pixels that do not count are a checker
of two greys, which no colour map contains; the overlay leaves them as photo, and also the
background class of the palette, as `vis.py` of FCN does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import IllPosed
from ..formats import png
from . import colormaps
from .palettes import Palette

Indices = npt.NDArray[np.integer]
Values = npt.NDArray[np.floating]
Colours = npt.NDArray[np.uint8]

_Array = TypeVar("_Array", bound=npt.NDArray[Any])

CORRECT: Final = (217, 217, 217)
WRONG: Final = (213, 94, 0)
"""Vermilion of Okabe and Ito, told from grey with any kind of colour blindness."""
CHECKER: Final = (96, 144)
CHECKER_PX: Final = 4


@dataclass(frozen=True, eq=False)
class Scene:
    """What there is to draw: arrays [H,W] of one image, all of the same size.

    Args:
        palette: the colours of the classes.
        num_classes: C, for the scales of nll and entropy.
        labels, prediction: class indices.
        nll, confidence, entropy: natural logarithms and probabilities, unclipped.
        photo: uint8 [H,W,3].
        valid: whether a pixel counts; None where all do.
        alpha: weight of the palette in the overlay, 0…1.
    """

    palette: Palette
    num_classes: int
    labels: Indices | None = None
    prediction: Indices | None = None
    nll: Values | None = None
    confidence: Values | None = None
    entropy: Values | None = None
    photo: Colours | None = None
    valid: npt.NDArray[np.bool_] | None = None
    alpha: float = 0.5

    def ignored(self, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """The pixels that do not count."""
        return np.zeros(shape, dtype=np.bool_) if self.valid is None else ~self.valid


def draw(kind: str, scene: Scene) -> bytes:
    """The PNG of that kind.

    Raises:
        IllPosed: an unknown kind, something missing for it, sizes that differ, or a bad alpha.
    """
    function = KINDS.get(kind)
    if function is None:
        raise IllPosed("kind", f"one of {', '.join(KINDS)}", "an unknown name")
    if not 0 <= scene.alpha <= 1:
        raise IllPosed("alpha", "a weight from 0 to 1", f"{scene.alpha}")
    _check_sizes(scene)
    return function(scene)


def _check_sizes(scene: Scene) -> None:
    """Everything there is has the size of the first thing there is."""
    arrays = {
        "labels": scene.labels,
        "prediction": scene.prediction,
        "logits": scene.nll if scene.confidence is None else scene.confidence,
        "image": scene.photo,
    }
    first = ""
    for where, array in arrays.items():
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
                if where == "image" and first != "labels" and is_larger
                else "",
            )


def _labels(scene: Scene) -> bytes:
    """Labels as they came; an ignored one that no PNG can hold, such as -1, as the palette's."""
    labels = _needed(scene.labels, "labels", "labels", "Send `labels`.")
    outside = (labels < 0) | (labels > 255)
    replaced = outside & scene.ignored(labels.shape)
    if replaced.any():
        labels = np.where(replaced, scene.palette.ignore_index, labels)
    return png.write(labels, scene.palette)


def _prediction(scene: Scene) -> bytes:
    """Predicted classes of all pixels, ignored ones included: a prediction has no void."""
    prediction = _needed(
        scene.prediction, "prediction", "prediction", "Send `logits` or `prediction`."
    )
    return png.write(prediction, scene.palette)


def _overlay(scene: Scene) -> bytes:
    photo = _needed(scene.photo, "image", "overlay", "Send the photo as `image`, PNG or JPEG.")
    indices = _needed(
        scene.labels if scene.prediction is None else scene.prediction,
        "prediction",
        "overlay",
        "Send `logits`, `prediction` or `labels`.",
    )
    alpha = np.float32(scene.alpha)
    blend = (1 - alpha) * photo + alpha * scene.palette.paint(indices)
    as_photo = scene.ignored(indices.shape)
    if scene.palette.background_index is not None:
        as_photo |= indices == scene.palette.background_index
    return _encode(np.where(as_photo[:, :, None], photo, np.rint(blend).astype(np.uint8)))


def _error(scene: Scene) -> bytes:
    labels = _needed(scene.labels, "labels", "error", "Send `labels`.")
    prediction = _needed(scene.prediction, "prediction", "error", "Send `logits` or `prediction`.")
    colours = np.array([WRONG, CORRECT], dtype=np.uint8)[(labels == prediction).astype(np.intp)]
    return _with_checker(colours, scene.ignored(labels.shape))


def _nll(scene: Scene) -> bytes:
    nll = _needed(scene.nll, "nll", "nll", "Send `logits` and `labels`.")
    return _heat(_share(nll, scene.num_classes), colormaps.INFERNO, scene)


def _confidence(scene: Scene) -> bytes:
    confidence = _needed(scene.confidence, "confidence", "confidence", "Send `logits`.")
    return _heat(confidence, colormaps.VIRIDIS, scene)


def _entropy(scene: Scene) -> bytes:
    entropy = _needed(scene.entropy, "entropy", "entropy", "Send `logits`.")
    return _heat(_share(entropy, scene.num_classes), colormaps.VIRIDIS, scene)


KINDS: Final[dict[str, Callable[[Scene], bytes]]] = {
    "labels": _labels,
    "prediction": _prediction,
    "overlay": _overlay,
    "error": _error,
    "nll": _nll,
    "confidence": _confidence,
    "entropy": _entropy,
}


def _needed(array: _Array | None, where: str, kind: str, fix: str) -> _Array:
    if array is None:
        raise IllPosed(where, f"something to draw for kind={kind}", "nothing", fix)
    return array


def _share(values: Values, num_classes: int) -> Values:
    """Values as shares of ln C, the loss and the entropy of knowing nothing."""
    # A single class leaves nothing to know: ln 1 = 0, and every value is 0 too.
    return values / math.log(num_classes) if num_classes > 1 else np.zeros_like(values)


def _heat(share: Values, table: Colours, scene: Scene) -> bytes:
    # NaN can only come from pixels without a value, and is shown as such.
    return _with_checker(
        colormaps.paint(share, table), scene.ignored(share.shape) | np.isnan(share)
    )


def _with_checker(colours: Colours, where: npt.NDArray[np.bool_]) -> bytes:
    row, column = (np.arange(length) // CHECKER_PX for length in where.shape)
    checker = np.array(CHECKER, dtype=np.uint8)[(row[:, None] + column) % 2]
    return _encode(np.where(where[:, :, None], checker[:, :, None], colours))


def _encode(colours: Colours) -> bytes:
    height, width, _ = colours.shape
    return png.encode(Image.frombytes("RGB", (width, height), colours.tobytes()))
