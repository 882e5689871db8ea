"""Label maps in TIFF and BMP, the formats of GIS programs and of older tools.

| file | mode | read as |
|---|---|---|
| TIFF, grey of 1, 8, 16 or 32 bits, where 0 is black | 1, L, I;16, I | the values |
| TIFF, palette | P | the indices |
| BMP of 1, 4 or 8 bits | 1, L, P | the indices |
| TIFF and BMP, RGB or RGBA of 8 bits | RGB, RGBA | as in `png` |
| all others, and lossy compression | | rejected |

Pillow gets a TIFF with a directory of `_TAGS` alone, each within bounds. Other tags can then
neither cost memory nor rotate the map: Pillow would turn a TIFF upright. A file of several pictures
is rejected. The size is known before any pixel is decoded.
"""

import ctypes
import io
import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, _imaging
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import IllPosed

Encoding = Literal["auto", "index", "rgb"]
ENCODINGS: Final = ("auto", "index", "rgb")
"""Whether the samples of label maps are indices or colours."""

UnknownColours = Literal["error", "ignore"]
UNKNOWN_COLOURS: Final = ("error", "ignore")
"""What happens to pixels whose colour the palette does not have: an error, or they are ignored."""

TIFF_SIGNATURES: Final = (b"II*\0", b"MM\0*")
BMP_SIGNATURE: Final = b"BM"

DECODE_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    struct.error,
    EOFError,
    zlib.error,
    MemoryError,
    Image.DecompressionBombError,
    Warning,  # about metadata, where a filter turns warnings into errors
)
"""Exceptions that Pillow raises if the pixels cannot be decoded."""

_GREY_BITS = (1, 8, 16, 32)
_BLACK_IS_ZERO, _RGB, _PALETTE = 1, 2, 3
_LOSSLESS = {1: "none", 5: "LZW", 8: "Deflate", 32773: "PackBits", 32946: "Deflate"}

_TAGS = {
    256: 1,  # width
    257: 1,  # height
    258: 4,  # bits per sample
    259: 1,  # compression
    262: 1,  # photometric interpretation
    266: 1,  # fill order
    273: 1 << 16,  # offsets of strips
    277: 1,  # samples per pixel
    278: 1,  # rows per strip
    279: 1 << 16,  # bytes of strips
    284: 1,  # planar configuration
    317: 1,  # predictor
    320: 3 << 8,  # colours
    322: 1,  # width of tiles
    323: 1,  # height of tiles
    324: 1 << 16,  # offsets of tiles
    325: 1 << 16,  # bytes of tiles
    338: 4,  # extra samples
    339: 4,  # sample format
}
"""The tags of a TIFF that are read, and the most values of each."""

_SAMPLES_PER_PIXEL = 277
_MAX_SAMPLES = 4
"""The number of samples in RGBA. Of more than 6, Pillow would write to the log."""

_TYPES = {3: "H", 4: "I"}
"""The types of these tags: SHORT and LONG."""

_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2}
"""Bytes of a pixel in Pillow's memory, by mode; all other modes have 4."""
_MAX_TILE = 4
"""Largest tile of a TIFF, in pictures of at least 256 x 256 pixels."""


@dataclass(frozen=True)
class Raster:
    """A picture whose header is checked and whose pixels are not decoded.

    Attributes:
        width, height: in pixels.
        mode: Pillow's name of the mode; None if no label map has it.
        description: text for messages, such as "grey with 4 bits".
        open: returns the picture.
        plte: red, green and blue of each index of a PNG, or empty.
        copies: the most copies of the picture that are in memory while it is decoded.
    """

    width: int
    height: int
    mode: str | None
    description: str
    open: Callable[[], ImageFile]
    plte: bytes = b""
    copies: int = 4  # Pillow's, some rows as bytes, all bytes, and the array

    @property
    def decoding_bytes(self) -> int:
        """The most bytes that decoding takes, those of the result included."""
        pixel_bytes = _PIXEL_BYTES.get(self.mode or "", 4)
        return self.copies * pixel_bytes * self.width * self.height

    def decode(self, where: str) -> npt.NDArray[Any]:
        """Returns the samples without conversion: [H,W], or [H,W,3 or 4] for colours."""
        try:
            with self.open() as picture:
                return np.array(picture)
        except DECODE_ERRORS as error:
            raise damage_error(where, "its pixels cannot be decoded") from error


def damage_error(where: str, reason: str) -> IllPosed:
    """Returns the error for a file that is damaged."""
    return IllPosed(where, "a complete file", f"a damaged file: {reason}")


def read_tiff(data: bytes | memoryview, where: str) -> Raster:
    """Returns the picture in a TIFF.

    Raises:
        IllPosed: if the file is damaged, or has several pictures or a lossy compression.
    """
    _silence_libtiff()
    content = _with_few_tags(memoryview(data), where)
    try:
        picture = TiffImageFile(io.BytesIO(content))
        tags = picture.tag_v2
        width, height = picture.size
        bits = tags.get(258, (1,))
        kind = int(tags.get(262, -1))
        compression = tags.get(259, 1)
        has_all_pieces = _has_all_pieces(tags, width, height, len(content))
    except DECODE_ERRORS as error:
        raise damage_error(where, "its header cannot be read") from error
    if compression not in _LOSSLESS:
        expected = f"a TIFF with compression {', '.join(dict.fromkeys(_LOSSLESS.values()))}"
        raise IllPosed(where, expected, "another one", "Save the map as PNG.")
    _check_sides(where, width, height)
    if not has_all_pieces:
        raise damage_error(where, "its strips or tiles are not those of its size")
    names = {_BLACK_IS_ZERO: "grey", _RGB: "RGB", _PALETTE: "palette", 0: "grey with 0 for white"}
    description = f"{names.get(kind, 'other colours')} with {max(bits)} bits"
    is_known = (
        (kind == _BLACK_IS_ZERO and bits[0] in _GREY_BITS)
        or (kind == _RGB and max(bits) == 8 and picture.mode in ("RGB", "RGBA"))
        or (kind == _PALETTE and picture.mode == "P")
    )
    modes = {"I;16B": "I;16", "I;16L": "I;16"}
    mode = modes.get(picture.mode, picture.mode)
    if mode in ("F", "LA", "PA"):
        is_known, description = False, f"{description}, mode {mode}"
    return Raster(
        width,
        height,
        mode if is_known else None,
        description,
        lambda: picture,
        copies=1 + _MAX_TILE,
    )


@cache
def _silence_libtiff() -> None:
    """Keeps libtiff from writing a line to standard error about each damaged file.

    Pillow reports the damage too, and has no function for this. Where libtiff is a part of Pillow's
    own library, its function cannot be found, and libtiff goes on writing.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def read_bmp(data: bytes | memoryview, where: str) -> Raster:
    """Returns the picture in a BMP.

    Raises:
        IllPosed: if the file is damaged or compressed.
    """
    try:
        picture = BmpImageFile(io.BytesIO(data))
        width, height = picture.size
        (header_bytes,) = struct.unpack_from("<I", data, 14)
        (bits,) = struct.unpack_from("<H", data, 24 if header_bytes == 12 else 28)
        is_compressed = picture.tile[0].codec_name != "raw"
    except DECODE_ERRORS as error:
        raise damage_error(where, "its header cannot be read") from error
    if is_compressed:
        raise IllPosed(where, "a BMP without compression", "run lengths", "Save the map as PNG.")
    _check_sides(where, width, height)
    # Pillow guesses the number of bits from the colours of a grey palette.
    is_known = {"1": bits == 1, "L": bits == 8, "P": True}.get(picture.mode, bits in (24, 32))
    description = f"mode {picture.mode} with {bits} bits"
    return Raster(width, height, picture.mode if is_known else None, description, lambda: picture)


def _check_sides(where: str, width: int, height: int) -> None:
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        raise damage_error(where, "its width or height is out of range")


def _has_all_pieces(tags: Mapping[int, Any], width: int, height: int, num_bytes: int) -> bool:
    """Returns whether the strips or tiles of a TIFF cover the picture and are within the file.

    Otherwise libtiff, which decompresses them, would write about each to standard error.
    """
    is_tiled = 322 in tags
    if is_tiled == (273 in tags):
        return False
    if is_tiled:
        offsets, sizes, columns, rows = tags[324], tags[325], tags[322], tags[323]
    else:
        offsets, sizes, columns, rows = tags[273], tags[279], width, tags.get(278, height)
    if columns * rows > _MAX_TILE * max(width, 256) * max(height, 256) and is_tiled:
        return False
    num_pieces = -(-width // columns) * -(-height // rows)
    return (
        tags.get(284, 1) == 1
        and len(offsets) == len(sizes) == num_pieces
        and all(begin + size <= num_bytes for begin, size in zip(offsets, sizes, strict=True))
    )


def _with_few_tags(view: memoryview, where: str) -> bytes:
    """Returns a TIFF with another directory, which has only the tags that are read.

    The directory is at the end: the offsets of all values stay the same.
    """
    order = "<" if bytes(view[:2]) == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", view, 4)
        (num_tags,) = struct.unpack_from(order + "H", view, start)
        entries = [bytes(view[start + 2 + 12 * i :][:12]) for i in range(num_tags)]
        (next_directory,) = struct.unpack_from(order + "I", view, start + 2 + 12 * num_tags)
    except struct.error:
        raise damage_error(where, "it ends too early") from None
    if next_directory:
        raise IllPosed(where, "one picture", "a TIFF of several")
    kept: dict[int, bytes] = {}
    for entry in entries:
        tag, kind, count, value = struct.unpack(order + "HHII", entry)
        if tag not in _TAGS:
            continue
        if not 0 < count <= _TAGS[tag] or kind not in _TYPES or tag in kept:
            raise damage_error(where, f"its tag {tag} is invalid or repeated")
        num_bytes = count * struct.calcsize(_TYPES[kind])
        if num_bytes > 4 and value + num_bytes > len(view):
            raise damage_error(where, "it ends too early")
        if tag == _SAMPLES_PER_PIXEL:
            (samples,) = struct.unpack_from(order + _TYPES[kind], entry, 8)
            if samples > _MAX_SAMPLES:
                expected = f"a TIFF of at most {_MAX_SAMPLES} samples per pixel"
                raise IllPosed(where, expected, f"{samples}")
        kept[tag] = entry
    directory = b"".join(kept[tag] for tag in sorted(kept))
    padding = bytes(len(view) % 2)
    begin = len(view) + len(padding)
    return b"".join(
        (
            view[:4],
            struct.pack(order + "I", begin),
            view[8:],
            padding,
            struct.pack(order + "H", len(kept)),
            directory,
            bytes(4),
        )
    )
