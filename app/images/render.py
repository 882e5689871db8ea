"""Pictures of one image of a batch, drawn from arrays [H,W]; one function for each kind.

| kind | picture | mode |
|---|---|---|
| labels, prediction | the class indices, with the colours of the palette | P |
| overlay | the photo, blended with the colours of the prediction, or else of the labels | RGB |
| error | light grey where the prediction is right; errors by their kinds, see `error_map` | RGB |
| nll | inferno from 0 to ln C; clipped above, where a uniform prediction would be better | RGB |
| confidence | viridis from 0 to 1 | RGB |
| entropy | viridis from 0 to ln C | RGB |
| compare | photo, labels, prediction and error side by side | RGB |

Pictures of mode P are label maps: they can be sent as `labels`. They become RGB with a legend, with
contours, and with ignored pixels in another style than the palette's. No default scale depends on
the image, so that pictures with the same number of classes can be compared. Ignored pixels are a
checkerboard of two greys that no colour map but grey contains. The overlay shows the photo there,
and also where the background class of the palette is, as `vis.py` of FCN does. With
`ignore="transparent"` the mode is RGBA.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import IllPosed, safe_repr
from . import compare, heat, legend, painting
from .boundaries import is_near_another
from .colormaps import COLORMAPS
from .error_map import CONFUSION, error_kinds, is_one_of
from .indexed import indexed_picture, picture_of_indices
from .kinds import KINDS
from .layers import Indices, Layers, Mask
from .legend import ColourBar, Entry, Legend
from .palettes import NUM_COLOURS
from .style import (
    CORRECT,
    IGNORE_STYLES,
    IGNORED_GREY,
    LEGENDS,
    MAX_LINE_PIXELS,
    REST,
    TINTED_GREY,
    Colour,
    Scale,
    Style,
)

_Array = TypeVar("_Array", bound=npt.NDArray[Any])

PANELS: Final = ("photo", "truth", "prediction", "error")
"""The titles of kind=compare."""
_BLOCK_PIXELS = 1 << 16
"""Pixels that are blended at a time, so that they stay in the cache."""
_WIDE_FIX: Final = "With legend=strip the picture is RGB and holds any class."
_MIN_COUNTED, _MAX_COUNTED = -(1 << 15), 1 << 16
"""The indices that a legend counts one by one. All that are smaller are counted together, and all
that are larger: a map may have another index at each pixel."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture and what it does not show itself.

    Attributes:
        image: of mode P, RGB or RGBA.
        scale: the values with the first and the last colour of a heat map.
        unit: the unit of the scale.
        warnings: sentences about what was left out.
    """

    image: Image.Image
    scale: Scale | None = None
    unit: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Drawing(Picture):
    """A picture before it gets its legend, which is None if no legend is wanted."""

    legend: Legend | None = None


def draw(kind: str, layers: Layers, style: Style | None = None) -> Picture:
    """Returns the picture of a kind.

    Args:
        kind: a key of `KINDS`.
        layers: the arrays.
        style: the options; None for their defaults.

    Raises:
        IllPosed: if the kind or an option is unknown or out of range, an array is missing, sizes
            differ, an index does not fit mode P, or a legend does not fit the shape of the picture.
    """
    style = style or Style()
    if kind not in KINDS:
        raise IllPosed("kind", f"one of {', '.join(KINDS)}", safe_repr(kind))
    _check_style(style)
    layers.check_sizes()
    drawing = _DRAW[kind](layers, style)
    image = drawing.image
    if drawing.legend is not None:
        image = legend.beside(image, drawing.legend)
    return Picture(image, drawing.scale, drawing.unit, drawing.warnings)


def canvas_pixels(kind: str, style_legend: str, height: int, width: int) -> int:
    """Returns the most pixels of a canvas with panels or a legend; 0 if there is none.

    Args:
        kind: a key of `KINDS`.
        style_legend: one of `LEGENDS`.
        height, width: those of the labels, the prediction or the photo.
    """
    sizes = [(width, height)]
    if kind == "compare":
        numbers = range(2, len(PANELS) + 1)
        sizes = [compare.canvas_size(height, width, list(PANELS[-number:])) for number in numbers]
    elif style_legend == "none":
        return 0
    if style_legend != "none":
        sizes = [legend.largest_size(rows, columns) for columns, rows in sizes]
    return max(columns * rows for columns, rows in sizes)


def _check_style(style: Style) -> None:
    if not 0 <= style.alpha <= 1:
        raise IllPosed("alpha", "a weight from 0 to 1", f"{style.alpha}")
    for where, width in (("contour_px", style.contour_px), ("border_px", style.border_px or 0)):
        if not 0 <= width <= MAX_LINE_PIXELS:
            raise IllPosed(where, f"0...{MAX_LINE_PIXELS}", f"{width}")
    for where, choice, choices in (
        ("legend", style.legend, LEGENDS),
        ("ignore", style.ignore, IGNORE_STYLES),
        ("cmap", style.cmap, (None, *COLORMAPS)),
    ):
        if choice not in choices:
            names = ", ".join(filter(None, choices))
            raise IllPosed(where, f"one of {names}", safe_repr(f"{choice}"))


def _labels(layers: Layers, style: Style, *, is_panel: bool = False) -> _Drawing:
    labels = _required(layers.labels, "labels", "kind=labels", "Send `labels`.")
    ignored = layers.ignored()
    if _is_wide(labels, ignored) and (is_panel or _becomes_rgb(style, "colour")):
        picture = _wide_picture(labels, layers, style)
        if ignored is not None:
            painting.fill(picture, _ignored_colour("colour", layers, style), ignored)
        return _finished_label_map(picture, labels, "labels", "colour", layers, style)
    if labels.dtype != np.uint8 and ignored is not None:
        # An ignored label such as -1 does not fit mode P.
        replaced = ((labels < 0) | (labels > NUM_COLOURS - 1)) & ignored
        if replaced.any():
            # int8 cannot hold 255: NumPy would store -1.
            labels = np.where(replaced, np.int64(layers.palette.ignore_index), labels)
    picture = indexed_picture(labels, layers.palette, fix=_WIDE_FIX)
    colours = _colours(layers, style)
    if ignored is not None:
        # The colour of void also where the data set ignores another index than the palette.
        counts = picture.histogram(painting.mask_picture(ignored))[:NUM_COLOURS]
        colours[np.flatnonzero(np.array(counts))] = layers.palette.colours[
            layers.palette.ignore_index
        ]
    picture.putpalette(colours.tobytes())
    return _finished_label_map(picture, labels, "labels", "colour", layers, style)


def _prediction(layers: Layers, style: Style, *, is_panel: bool = False) -> _Drawing:
    prediction = _required(
        layers.prediction, "prediction", "kind=prediction", "Send `logits` or `prediction`."
    )
    if _is_wide(prediction, None) and (is_panel or _becomes_rgb(style, "prediction")):
        picture = _wide_picture(prediction, layers, style)
    else:
        picture = indexed_picture(prediction, layers.palette, "prediction", fix=_WIDE_FIX)
        picture.putpalette(_colours(layers, style).tobytes())
    # Ignored pixels have a prediction too, and show it unless a style is named.
    return _finished_label_map(picture, prediction, "prediction", "prediction", layers, style)


def _is_wide(indices: Indices, ignored: Mask | None) -> bool:
    """Returns whether mode P cannot hold an index that is not ignored."""
    if indices.dtype == np.uint8:
        return False
    outside = (indices < 0) | (indices >= NUM_COLOURS)
    if ignored is not None:
        outside &= ~ignored
    return bool(outside.any())


def _becomes_rgb(style: Style, default_ignore: str) -> bool:
    is_redrawn = style.ignore not in ("auto", default_ignore)
    return is_redrawn or style.legend != "none" or style.contour_px > 0


def _wide_picture(indices: Indices, layers: Layers, style: Style) -> Image.Image:
    """Returns a picture of mode RGB, for indices that mode P cannot hold."""
    picture = picture_of_indices(indices, layers.palette.colours).convert("RGB")
    if style.classes is not None:
        painting.fill(picture, REST, ~is_one_of(indices, style.classes))
    return picture


def _finished_label_map(
    picture: Image.Image,
    indices: Indices,
    where: str,
    default_ignore: str,
    layers: Layers,
    style: Style,
) -> _Drawing:
    """Returns a label map with contours and ignored pixels; of mode P if it has neither."""
    ignore = default_ignore if style.ignore == "auto" else style.ignore
    ignored = None if ignore == "prediction" else layers.ignored()
    is_redrawn = ignored is not None and not (ignore == "colour" and where == "labels")
    if style.contour_px:
        lines = _outlines(indices, style)
        if ignored is not None:
            lines &= ~ignored
        picture = picture.convert("RGB")
        painting.draw_lines(picture, lines)
    if is_redrawn and ignored is not None:
        picture = _with_ignored(picture.convert("RGB"), ignored, ignore, layers, style)
    if style.legend == "none":
        return _Drawing(picture)
    entries = _class_entries((indices,), ignored, layers, style)
    entries += _ignored_entry(ignored, ignore, layers, style)
    return _Drawing(picture, legend=Legend(entries, indices.size))


def _overlay(layers: Layers, style: Style) -> _Drawing:
    photo = _required(
        layers.photo, "image", "kind=overlay", "Send the photo as `image`, PNG or JPEG."
    )
    indices = _required(
        layers.labels if layers.prediction is None else layers.prediction,
        "prediction",
        "kind=overlay",
        "Send `logits`, `prediction` or `labels`.",
    )
    ignored = layers.ignored()
    blended = np.ones(indices.shape, dtype=np.bool_) if ignored is None else ~ignored
    if layers.palette.background_index is not None:
        blended &= indices != layers.palette.background_index
    picture = painting.rgb_picture(photo).copy()
    if style.classes is not None:
        chosen = is_one_of(indices, style.classes)
        blended &= chosen
        if ignored is not None:
            chosen |= ignored
        painting.paste(picture, picture.convert("L").convert("RGB"), ~chosen)
    colours = picture_of_indices(indices, layers.palette.colours).convert("RGB")
    blend = _blend(photo, np.asarray(colours), style.alpha)
    painting.paste(picture, painting.rgb_picture(blend), blended)
    if style.contour_px:
        painting.paste(picture, colours, is_near_another(indices, style.contour_px) & blended)
    ignore = "photo" if style.ignore == "auto" else style.ignore
    if ignored is not None and ignore != "photo":
        picture = _with_ignored(picture, ignored, ignore, layers, style)
    if style.legend == "none":
        return _Drawing(picture)
    entries = _class_entries((indices,), ignored, layers, style)
    entries += _ignored_entry(ignored, ignore, layers, style)
    return _Drawing(picture, legend=Legend(entries, indices.size))


def _blend(
    photo: npt.NDArray[np.uint8], colours: npt.NDArray[np.uint8], alpha: float
) -> npt.NDArray[np.uint8]:
    """Returns (1 - alpha) photo + alpha colours, rounded to the nearest, halves to even."""
    weight = np.float32(alpha)
    blend = np.empty_like(photo)
    rows = max(1, _BLOCK_PIXELS // photo.shape[1])
    for begin in range(0, len(photo), rows):
        block = photo[begin : begin + rows].astype(np.float32)
        block *= 1 - weight
        block += weight * colours[begin : begin + rows]
        np.rint(block, out=block)
        blend[begin : begin + rows] = block
    return blend


def _error(layers: Layers, style: Style) -> _Drawing:
    labels = _required(layers.labels, "labels", "kind=error", "Send `labels`.")
    prediction = _required(
        layers.prediction, "prediction", "kind=error", "Send `logits` or `prediction`."
    )
    ignored = layers.ignored()
    kinds = error_kinds(
        labels, prediction, ignored, border_px=style.border_px, classes=style.classes
    )
    height, width = labels.shape
    picture = Image.new("RGB", (width, height), CORRECT)
    for kind in kinds:
        if kind.colour is not None:
            painting.fill(picture, kind.colour, kind.mask)
        elif kind.mask.any():
            palette = layers.palette.colours
            colours = picture_of_indices(prediction, palette).convert("RGB")
            painting.paste(picture, colours, kind.mask)
    if style.contour_px:
        painting.draw_lines(picture, _outlines(labels, style))
    ignore = "checker" if style.ignore == "auto" else style.ignore
    if ignored is not None:
        picture = _with_ignored(picture, ignored, ignore, layers, style)
    if style.legend == "none":
        return _Drawing(picture)
    entries = list[Entry]()
    num_shown = 0 if ignored is None else int(np.count_nonzero(ignored))
    for kind in kinds:
        count = int(np.count_nonzero(kind.mask))
        num_shown += count
        if kind.colour is not None:
            entries.append(Entry(kind.colour, kind.text, (count,)))
            continue
        entries += [
            replace(entry, text=f"{kind.text} {entry.text}")
            for entry in _class_entries((prediction,), ~kind.mask, layers, Style())
        ]
    one_class = style.classes is not None and len(style.classes) == 1
    rest = "neither" if one_class else "correct" if style.classes is None else "other pixels"
    entries.insert(0, Entry(CORRECT, rest, (labels.size - num_shown,)))
    entries += _ignored_entry(ignored, ignore, layers, style)
    return _Drawing(picture, legend=Legend(entries, labels.size))


def _nll(layers: Layers, style: Style) -> _Drawing:
    nll = _required(layers.nll, "nll", "kind=nll", "Send `logits` and `labels`.")
    return _heat_map("nll", nll, layers, style)


def _confidence(layers: Layers, style: Style) -> _Drawing:
    confidence = _required(layers.confidence, "confidence", "kind=confidence", "Send `logits`.")
    return _heat_map("confidence", confidence, layers, style)


def _entropy(layers: Layers, style: Style) -> _Drawing:
    entropy = _required(layers.entropy, "entropy", "kind=entropy", "Send `logits`.")
    return _heat_map("entropy", entropy, layers, style)


def _heat_map(
    kind: str, values: npt.NDArray[np.floating], layers: Layers, style: Style
) -> _Drawing:
    # Pixels without a softmax have the value NaN, which is not on the scale.
    not_shown = np.isnan(values)
    ignored = layers.ignored()
    if ignored is not None:
        not_shown |= ignored
    indices = layers.prediction if layers.labels is None else layers.labels
    rest = np.zeros((0, 0), dtype=np.bool_)
    if style.classes is not None:
        chosen = _required(indices, "classes", f"kind={kind}", "Send `labels` or `prediction`.")
        rest = ~is_one_of(chosen, style.classes)
    left_out = not_shown | rest if rest.size else not_shown
    scale = heat.scale_of(kind, values, left_out, layers.num_classes, style.scale)
    row = KINDS[kind]
    colormap = COLORMAPS[style.cmap or row.colormap or "grey"]
    index = heat.indices_on(values, scale)
    picture = picture_of_indices(index, colormap).convert("RGB")
    grey = _neutral(style, REST)
    if rest.size:
        painting.fill(picture, grey, rest)
    if style.contour_px:
        drawn = _required(indices, "contour_px", f"kind={kind}", "Send `labels` or `prediction`.")
        painting.draw_lines(picture, _outlines(drawn, style))
    ignore = "checker" if style.ignore == "auto" else style.ignore
    if not_shown.any():
        picture = _with_ignored(picture, not_shown, ignore, layers, style)
    if style.legend == "none":
        return _Drawing(picture, scale, row.unit)
    entries = list[Entry]()
    if rest.size:
        count = int(np.count_nonzero(rest & ~not_shown))
        entries.append(Entry(grey, "other classes", (count,)))
    entries += _ignored_entry(not_shown, ignore, layers, style)
    uniform = math.log(layers.num_classes)
    marks = ((uniform, f"ln {layers.num_classes} = {uniform:.4g}"),) if row.runs_to_ln_c else ()
    bar = ColourBar(colormap, scale, row.unit, marks)
    return _Drawing(picture, scale, row.unit, legend=Legend(entries, values.size, bar=bar))


def _compare(layers: Layers, style: Style) -> _Drawing:
    """Returns the panels that there are inputs for; a warning names the others."""
    truth, prediction = layers.labels, layers.prediction
    are_there = (
        layers.photo is not None,
        truth is not None,
        prediction is not None,
        truth is not None and prediction is not None,
    )
    present = [name for name, is_there in zip(PANELS, are_there, strict=True) if is_there]
    if len(present) < 2:
        got = " and ".join(present) or "nothing"
        expected = "at least two of photo, labels and prediction (or logits) for kind=compare"
        raise IllPosed("inputs", expected, got)
    height, width = next(array for array in (truth, prediction) if array is not None).shape
    factor = compare.reduction(height, width, len(present))
    pictures, errors = list[compare.Panel](), list[Entry]()
    for name in present:
        panel = _panel(name, layers, style)
        pictures.append((name, compare.reduced(panel.image, factor, is_photo=name == "photo")))
        if panel.legend is not None:
            errors += panel.legend.entries
    warnings = list[str]()
    missing = [name for name in PANELS if name not in present]
    if missing:
        warnings.append(f"compare: no input for {' and '.join(missing)}, which was left out.")
    if factor > 1:
        size = f"{pictures[0][1].height} x {pictures[0][1].width}"
        warnings.append(f"compare: panels are reduced to {size}, one pixel of {factor} x {factor}.")
    image = compare.side_by_side(pictures)
    shown = None if style.legend == "none" else _compare_legend(layers, style, errors)
    return _Drawing(image, warnings=tuple(warnings), legend=shown)


def _panel(name: str, layers: Layers, style: Style) -> _Drawing:
    """Returns a panel, which only for the error has a legend, if one is wanted."""
    if name == "photo":
        assert layers.photo is not None
        return _Drawing(painting.rgb_picture(layers.photo))
    if name == "error":
        return _error(layers, style)
    draw_panel = _labels if name == "truth" else _prediction
    return draw_panel(layers, replace(style, legend="none"), is_panel=True)


def _compare_legend(layers: Layers, style: Style, errors: list[Entry]) -> Legend:
    """Returns the classes of labels and prediction with their shares in both, and the errors."""
    ignored = layers.ignored()
    maps = {"truth": layers.labels, "predicted": layers.prediction}
    shown = {name: indices for name, indices in maps.items() if indices is not None}
    size = next(iter(shown.values())).size
    entries = _class_entries(tuple(shown.values()), ignored, layers, style)
    ignore = "colour" if style.ignore == "auto" else style.ignore
    entries += _ignored_entry(ignored, ignore, layers, style)
    entries += [
        Entry(entry.colour, f"{entry.text}, {legend.share(entry.pixels[0], size)}")
        for entry in errors
        # Confusion has the colours of the classes, which are there already.
        if not entry.text.startswith((CONFUSION, "ignored"))
    ]
    return Legend(entries, size, tuple(shown) if len(shown) > 1 else ())


_DRAW: Final[dict[str, Callable[[Layers, Style], _Drawing]]] = {
    "labels": _labels,
    "prediction": _prediction,
    "overlay": _overlay,
    "error": _error,
    "nll": _nll,
    "confidence": _confidence,
    "entropy": _entropy,
    "compare": _compare,
}


def _required(array: _Array | None, where: str, purpose: str, fix: str) -> _Array:
    if array is None:
        raise IllPosed(where, f"something to draw for {purpose}", "nothing", fix)
    return array


def _outlines(indices: Indices, style: Style) -> Mask:
    """Returns the pixels near another index, of the chosen classes alone."""
    outlines = is_near_another(indices, style.contour_px)
    if style.classes is not None:
        outlines &= is_one_of(indices, style.classes)
    return outlines


def _colours(layers: Layers, style: Style) -> npt.NDArray[np.uint8]:
    """Returns a copy of the palette, with classes that are not chosen in grey."""
    colours = layers.palette.colours.copy()
    if style.classes is not None:
        rest = np.ones(len(colours), dtype=np.bool_)
        rest[[index for index in style.classes if index < NUM_COLOURS]] = False
        rest[layers.palette.ignore_index] = False
        colours[rest] = REST
    return colours


def _with_ignored(
    picture: Image.Image, ignored: Mask, ignore: str, layers: Layers, style: Style
) -> Image.Image:
    """Returns a picture of mode RGB or RGBA, with the ignored pixels in their style."""
    if ignore == "transparent":
        painting.fill(picture, (0, 0, 0), ignored)
        picture.putalpha(painting.mask_picture(~ignored).convert("L"))
    elif ignore == "photo":
        photo = _required(layers.photo, "image", "ignore=photo", "Send the photo as `image`.")
        painting.paste(picture, painting.rgb_picture(photo), ignored)
    elif ignore == "checker":
        painting.paste(picture, painting.checkerboard(*picture.size), ignored)
    else:
        painting.fill(picture, _ignored_colour(ignore, layers, style), ignored)
    return picture


def _ignored_colour(ignore: str, layers: Layers, style: Style) -> Colour:
    if ignore == "grey":
        return _neutral(style, IGNORED_GREY)
    return _colour_at(layers.palette.colours, layers.palette.ignore_index)


def _neutral(style: Style, grey: Colour) -> Colour:
    return TINTED_GREY if style.cmap == "grey" else grey


def _ignored_entry(ignored: Mask | None, ignore: str, layers: Layers, style: Style) -> list[Entry]:
    """Returns the row of ignored pixels, if there are any."""
    count = 0 if ignored is None else int(np.count_nonzero(ignored))
    if not count:
        return []
    if ignore in ("photo", "transparent"):
        return [Entry((255, 255, 255), f"ignored ({ignore})", (count,))]
    colour = None if ignore == "checker" else _ignored_colour(ignore, layers, style)
    return [Entry(colour, "ignored", (count,))]


def _class_entries(
    maps: tuple[Indices, ...], left_out: Mask | None, layers: Layers, style: Style
) -> list[Entry]:
    """Returns a row for each class that occurs, by the number of its pixels in the first map."""
    counts = [_counts(indices, left_out) for indices in maps]
    present = sorted({index for count in counts for index in count})
    classes = None if style.classes is None else frozenset(style.classes)
    chosen = [index for index in present if classes is None or index in classes]
    chosen.sort(key=lambda index: max(count.get(index, 0) for count in counts), reverse=True)
    entries = [
        Entry(
            _colour_at(layers.palette.colours, index % NUM_COLOURS),
            _name_of(layers, index),
            tuple(count.get(index, 0) for count in counts),
        )
        for index in chosen
    ]
    are_chosen = frozenset(chosen)
    rest = tuple(
        sum(number for index, number in count.items() if index not in are_chosen)
        for count in counts
    )
    return [*entries, Entry(REST, "other classes", rest)] if any(rest) else entries


def _name_of(layers: Layers, index: int) -> str:
    if index < _MIN_COUNTED:
        return f"below {_MIN_COUNTED}"
    return f"above {_MAX_COUNTED}" if index > _MAX_COUNTED else layers.name_of(index)


def _counts(indices: Indices, left_out: Mask | None) -> dict[int, int]:
    """Returns the number of pixels of each index; see `_MIN_COUNTED` for those out of range."""
    if indices.dtype == np.uint8:
        height, width = indices.shape
        picture = Image.frombuffer(
            "L", (width, height), np.ascontiguousarray(indices), "raw", "L", 0, 1
        )
        mask = None if left_out is None else painting.mask_picture(~left_out)
        numbers = picture.histogram(mask)
        return {index: number for index, number in enumerate(numbers) if number}
    shown = indices.reshape(-1) if left_out is None else indices[~left_out]
    if not shown.size:
        return {}
    limits = np.iinfo(shown.dtype)
    low = max(_MIN_COUNTED - 1, limits.min, int(shown.min()))
    high = min(_MAX_COUNTED + 1, limits.max, int(shown.max()))
    if low > high:  # all are out of range, on one side
        low = high = _MIN_COUNTED - 1 if high < _MIN_COUNTED else _MAX_COUNTED + 1
    numbers = np.bincount(np.clip(shown, low, high).astype(np.intp, copy=False) - low).tolist()
    return {low + index: number for index, number in enumerate(numbers) if number}


def _colour_at(colours: npt.NDArray[np.uint8], index: int) -> Colour:
    red, green, blue = colours[index].tolist()
    return red, green, blue
