"""Text in pictures, in the font that Pillow ships: no font of the system is read."""

import unicodedata
from functools import cache
from typing import Final

from PIL import ImageFont

MIN_FONT_PIXELS: Final = 11
MAX_FONT_PIXELS: Final = 40
_ROWS_PER_PIXEL = 40
_MAX_CHARACTERS = 28


@cache
def font(pixels: int) -> ImageFont.FreeTypeFont:
    """Returns Pillow's own font, Aileron, with that height.

    Raises:
        ImportError: if Pillow was built without FreeType. Its packages have it.
    """
    loaded = ImageFont.load_default(pixels)
    assert isinstance(loaded, ImageFont.FreeTypeFont)
    return loaded


def font_pixels(height: int) -> int:
    """Returns the height of the text beside a picture of that height."""
    return max(MIN_FONT_PIXELS, min(MAX_FONT_PIXELS, round(height / _ROWS_PER_PIXEL)))


def drawable(text: str) -> str:
    """Returns a text with characters of the font alone, and not too many of them.

    The font has ASCII and few other characters. Accents are dropped, and any other character
    becomes a question mark.

    >>> drawable("Förderband"), drawable("中 road"), drawable("a" * 40)
    ('Forderband', '? road', 'aaaaaaaaaaaaaaaaaaaaaaaaa...')
    """
    decomposed = unicodedata.normalize("NFKD", text)
    plain = (char for char in decomposed if not unicodedata.combining(char))
    shown = "".join(char if " " <= char <= "~" else "?" for char in plain)
    if len(shown) > _MAX_CHARACTERS:
        return shown[: _MAX_CHARACTERS - len("...")] + "..."
    return shown


def length(text: str, pixels: int) -> int:
    """Returns the width of a text in pixels."""
    return round(font(pixels).getlength(text)) + 1
