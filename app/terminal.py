"""Standard output and standard error in an encoding that cannot hold every character.

A Windows redirect writes cp1252, and a container without a locale ASCII. Lines and punctuation that
such an encoding lacks are replaced by ASCII of the same width, so that columns stay aligned. Other
characters are escaped, such as the bytes of a file name that is not UTF-8. `printable` escapes
those that a terminal would interpret.
"""

import codecs
import io
import sys
from typing import Final

ERROR_HANDLER: Final = "seg_loss.ascii"
_STAND_INS = str.maketrans({"–": "-", "─": "-", "│": "|", "…": "~", "≤": "<", "×": "x"})


def configure_streams() -> None:
    """Lets standard output and standard error write any text without an error."""
    codecs.register_error(ERROR_HANDLER, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None without a console
            stream.reconfigure(errors=ERROR_HANDLER)


def printable(text: str) -> str:
    r"""Returns a text for one line, with line feeds and other control characters escaped.

    >>> print(printable("a\n\x1b[2J"))
    a\n\x1b[2J
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_STAND_INS)
    return text.encode("ascii", "backslashreplace").decode(), error.end
