"""Several pictures of one image side by side, with titles."""

from dataclasses import dataclass
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
    names = [name for name, _ in panels]
    grid = _Grid.of(height, width, names)
    has_alpha = any(picture.mode == "RGBA" for _, picture in panels)
    fix = "Use another kind than compare."
    check_extension("kind", panels[0][1], grid.size, fix, len(panels))
    canvas = new_canvas("RGBA" if has_alpha else "RGB", grid.size)
    draw = ImageDraw.Draw(canvas)
    for number, (name, picture) in enumerate(panels):
        row, column = divmod(number, grid.columns)
        x, y = column * grid.column_step, row * grid.row_step
        title = grid.row_step - grid.gap - height
        draw.text((x, y + title // 2), name, INK, font(grid.font_pixels), anchor="lm")
        canvas.paste(picture, (x, y + title))
    return canvas


def canvas_size(height: int, width: int, names: list[str]) -> tuple[int, int]:
    """Returns width and height of the canvas of reduced panels with these titles."""
    factor = reduction(height, width, len(names))
    return _Grid.of(-(-height // factor), -(-width // factor), names).size


@dataclass(frozen=True)
class _Grid:
    """Where panels stand: steps and sizes in pixels."""

    rows: int
    columns: int
    row_step: int
    column_step: int
    gap: int
    font_pixels: int

    @classmethod
    def of(cls, height: int, width: int, names: list[str]) -> "_Grid":
        columns = 2 if width >= _WIDE * height else len(names)
        rows = -(-len(names) // columns)
        pixels = font_pixels(rows * height)  # as the legend beside them
        gap = max(2, pixels // 2)
        row_step = line_height(pixels) + height + gap
        column_step = max(width, *(length(name, pixels) for name in names)) + gap
        return cls(rows, columns, row_step, column_step, gap, pixels)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.columns * self.column_step - self.gap, self.rows * self.row_step - self.gap
