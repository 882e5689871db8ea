"""The strip beside a picture: the colours with their names and shares, or a colour bar."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .canvas import INK, check_extension, line_height, new_canvas
from .painting import checkerboard
from .style import Colour, Scale
from .text import drawable, font, font_pixels, length

_FRAME: Final[Colour] = (150, 150, 150)
_MIN_ROWS = 12
"""Entries for which a small picture is extended below; further ones are joined in the last."""
_BAR_ROWS = 8


@dataclass(frozen=True)
class Entry:
    """One row of a legend.

    Attributes:
        colour: the colour of the swatch; None for the checkerboard.
        text: the name.
        pixels: their number in each column of shares; none if the row has no shares.
    """

    colour: Colour | None
    text: str
    pixels: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class ColourBar:
    """The scale of a heat map.

    Attributes:
        colormap: uint8 [256,3].
        scale: the values with the first and the last colour.
        unit: their unit.
        marks: further values on the bar, with their names.
    """

    colormap: npt.NDArray[np.uint8]
    scale: Scale
    unit: str
    marks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Legend:
    """What the strip beside a picture shows.

    Attributes:
        entries: the rows, those that matter most first.
        total: the number of pixels that shares refer to.
        columns: the headings of the columns of shares, if there are several.
        bar: the scale of a heat map.
    """

    entries: Sequence[Entry]
    total: int
    columns: tuple[str, ...] = ()
    bar: ColourBar | None = None


def beside(picture: Image.Image, legend: Legend) -> Image.Image:
    """Returns a picture with the legend on a strip at its right.

    A picture with fewer rows than the legend needs is extended below. Entries for which there is no
    room are joined in the last one.

    Raises:
        IllPosed: if the extension would be many times as large as the picture.
    """
    pixels = font_pixels(picture.height)
    line, margin, swatch = line_height(pixels), pixels, round(1.6 * pixels)
    bar = legend.bar
    top = margin if bar is None else margin + (1 + _BAR_ROWS) * line + margin
    num_headings = bool(legend.columns)
    num_rows = num_headings + min(len(legend.entries), _MIN_ROWS)
    height = max(picture.height, top + num_rows * line + margin)
    rows = _rows(legend, (height - top - margin) // line - num_headings)

    names = max((length(row.name, pixels) for row in rows), default=0)
    columns = [
        max(length(row.shares[column], pixels) for row in rows if column < len(row.shares))
        for column in range(max((len(row.shares) for row in rows), default=0))
    ]
    width = swatch + margin // 2 + names + sum(column + margin for column in columns)
    if bar is not None:
        texts = (length(text, pixels) for _, text in (*_ticks(bar), (0.0, bar.unit)))
        width = max(width, swatch + margin + max(texts))
    left = picture.width + margin
    size = (left + width + margin, height)
    check_extension("legend", picture, size, "Use legend=none.")

    canvas = new_canvas(picture.mode, size)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    if bar is not None:
        _draw_bar(canvas, draw, bar, (left, margin, swatch, _BAR_ROWS * line), pixels)
    for row, y in zip(rows, range(top, height, line), strict=False):
        middle = y + line // 2
        if row.has_swatch:
            _draw_swatch(canvas, draw, row.colour, (left, y + line // 6, swatch, line * 2 // 3))
        x = left + swatch + margin // 2
        draw.text((x, middle), row.name, INK, font(pixels), anchor="lm")
        x += names
        for text, column in zip(row.shares, columns, strict=False):
            x += margin + column
            draw.text((x, middle), text, INK, font(pixels), anchor="rm")
    return canvas


def largest_size(height: int, width: int) -> tuple[int, int]:
    """Returns the most width and height of a picture of that size with a legend beside it.

    A name has at most 28 characters, and each of two columns 9. None is wider than the font is
    high.
    """
    pixels = font_pixels(height)
    strip = 50 * pixels
    rows = 1 + _BAR_ROWS + 1 + _MIN_ROWS
    return width + strip, max(height, rows * line_height(pixels) + 4 * pixels)


@dataclass(frozen=True)
class _Row:
    name: str
    shares: tuple[str, ...]
    colour: Colour | None = None
    has_swatch: bool = True


def _rows(legend: Legend, num_fitting: int) -> list[_Row]:
    """Returns the headings, if any, and the entries as texts."""
    entries = list(legend.entries)
    rows = [_Row("", legend.columns, has_swatch=False)] if legend.columns else []
    shown = entries if len(entries) <= num_fitting else entries[: max(0, num_fitting - 1)]
    rows += [
        _Row(
            drawable(entry.text),
            tuple(share(count, legend.total) for count in entry.pixels),
            entry.colour,
        )
        for entry in shown
    ]
    left_out = entries[len(shown) :]
    if left_out:
        counts = zip(*(entry.pixels for entry in left_out if entry.pixels), strict=False)
        shares = tuple(share(sum(column), legend.total) for column in counts)
        rows.append(_Row(f"+ {len(left_out)} more", shares, has_swatch=False))
    return rows


def share(count: int, total: int) -> str:
    """Returns a share in percent; none that is not 0 looks like 0, or not 100 like 100.

    >>> share(1, 3), share(1, 9999), share(0, 5), share(9998, 9999)
    ('33.3 %', '< 0.1 %', '0 %', '> 99.9 %')
    """
    if not count:
        return "0 %"
    percent = f"{100 * count / total:.1f} %"
    if percent == "100.0 %" and count < total:
        return "> 99.9 %"
    return "< 0.1 %" if percent == "0.0 %" else percent


def _ticks(bar: ColourBar) -> list[tuple[float, str]]:
    """Returns the ends of the bar, its middle, and the marks within, with their texts."""
    low, high = bar.scale
    if low == high:
        return [(low, f"{low:.4g}")]
    middle = (low + high) / 2
    ticks = [(value, f"{value:.4g}") for value in (low, middle, high)]
    for value, name in bar.marks:
        if low <= value <= high:
            # A number that is as near to it as texts are high gives way.
            near = (high - low) / _BAR_ROWS
            ticks = [tick for tick in ticks if abs(tick[0] - value) > near]
            ticks.append((value, name))
    return ticks


def _draw_bar(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    bar: ColourBar,
    box: tuple[int, int, int, int],
    pixels: int,
) -> None:
    """Draws a colour bar, with its unit above it and its highest value at the top."""
    left, top, width, height = box
    draw.text((left, top), bar.unit, INK, font(pixels), anchor="lt")
    top += line_height(pixels)
    index = np.rint(np.linspace(255, 0, height)).astype(np.intp)
    colours = np.repeat(bar.colormap[index][:, None], width, axis=1)
    canvas.paste(Image.fromarray(colours), (left, top))
    draw.rectangle((left, top, left + width - 1, top + height - 1), outline=_FRAME)
    low, high = bar.scale
    for value, text in _ticks(bar):
        level = (value - low) / (high - low) if high > low else 0.0
        y = top + round((1 - level) * (height - 1))
        draw.line((left + width, y, left + width + pixels // 3, y), fill=INK)
        draw.text((left + width + pixels // 2, y), text, INK, font(pixels), anchor="lm")


def _draw_swatch(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    colour: Colour | None,
    box: tuple[int, int, int, int],
) -> None:
    left, top, width, height = box
    if colour is None:
        canvas.paste(checkerboard(width, height), (left, top))
    else:
        draw.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
    draw.rectangle((left, top, left + width - 1, top + height - 1), outline=_FRAME)
