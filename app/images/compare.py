"""Several pictures of one image side by side, with titles."""

from typing import Final

from PIL import Image, ImageDraw

from .canvas import INK, check_extension, line_height, new_canvas
from .text import font, font_pixels, length

MAX_PIXELS: Final = 1 << 24
"""Largest number of pixels of all panels together; larger ones are reduced."""
_WIDE: Final = 1.5
"""From this ratio of width to height on, panels stand in two columns."""

Panel = tuple[str, Image.Image]


def reduction(height: int, width: int, num_panels: int) -> int:
    """Returns the integer by which height and width of panels are divided."""
    factor = 1
    while num_panels * -(-height // factor) * -(-width // factor) > MAX_PIXELS:
        factor += 1
    return factor


def reduced(picture: Image.Image, factor: int, *, is_photo: bool) -> Image.Image:
    """Returns a picture of 1/factor of the height and width.

    Of a photo the means of pixels are taken. Of other pictures some pixels are, so that no colours
    are mixed.
    """
    if factor == 1:
        return picture
    if is_photo:
        return picture.reduce(factor)
    size = -(-picture.width // factor), -(-picture.height // factor)
    return picture.resize(size, Image.Resampling.NEAREST)


def side_by_side(panels: list[Panel]) -> Image.Image:
    """Returns panels of one size in a row, or wide ones in two columns, with titles above.

    Raises:
        IllPosed: if the titles would take many times the pixels of the panels.
    """
    width, height = panels[0][1].size
    num_columns = 2 if width >= _WIDE * height else len(panels)
    num_rows = -(-len(panels) // num_columns)
    pixels = font_pixels(num_rows * height)  # as the legend beside them
    title, gap = line_height(pixels), max(2, pixels // 2)
    step = gap + max(width, *(length(name, pixels) for name, _ in panels))
    size = (
        num_columns * step - gap,
        num_rows * (title + height) + (num_rows - 1) * gap,
    )
    has_alpha = any(picture.mode == "RGBA" for _, picture in panels)
    check_extension("kind", panels[0][1], size, "Use another kind than compare.", len(panels))
    canvas = new_canvas("RGBA" if has_alpha else "RGB", size)
    draw = ImageDraw.Draw(canvas)
    for number, (name, picture) in enumerate(panels):
        row, column = divmod(number, num_columns)
        x, y = column * step, row * (title + height + gap)
        draw.text((x, y + title // 2), name, INK, font(pixels), anchor="lm")
        canvas.paste(picture, (x, y + title))
    return canvas
