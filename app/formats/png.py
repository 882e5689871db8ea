"""Label maps and photos: reads PNG, and JPEG for photos, into arrays; writes pictures as PNG.

A label map is a PNG whose samples are class indices. `rasters` reads TIFF and BMP in the same way.

| colour type, bits | mode | read as |
|---|---|---|
| palette, 1, 2, 4, 8 | P | the indices; the colours and tRNS are ignored |
| grey, 1, 8, 16 | 1, L, I;16 | the values |
| grey, 2, 4 | L | rejected: decoders stretch these values to 0…255 |
| RGB, RGBA, 8 | RGB, RGBA | the indices of the colours, in the palette of the request; without \
one, the values, if red, green and blue are equal |
| all others | | rejected |

No label map is ever converted from one mode to another. Conversion replaces indices by brightness,
which is the most frequent mistake with PASCAL VOC.

A PNG is read in two steps. The first walks over the chunks and checks signature, order, checksums,
size and mode, without decoding pixels. It rejects files that are incomplete, damaged, animated or
too large, so that a decompression bomb costs only its compressed bytes. The second step gives
Pillow a PNG made of the critical chunks alone (IHDR, PLTE, IDAT, IEND). Text, colour profiles and
transparency can then neither fail, nor inflate, nor change an index.

Pillow's PNG and JPEG readers are called directly. `Image.open` would try other formats, and its
limit on pixels is global to the process.
"""

import io
import re
import struct
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from ..errors import IllPosed, TooLarge
from ..images.palettes import PALETTES, Palette
from .rasters import (
    BMP_SIGNATURE,
    DECODE_ERRORS,
    TIFF_SIGNATURES,
    Encoding,
    Raster,
    UnknownColours,
    damage_error,
    read_bmp,
    read_tiff,
)

MEDIA_TYPE: Final = "image/png"

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE: Final = b"\xff\xd8\xff"
WEBP_SIGNATURE: Final = b"WEBP"
"""The bytes at offset 8 of a WebP file."""

COMPRESS_LEVEL: Final = 3
"""zlib level of every written PNG. Compared with Pillow's default of 6, label maps take a third of
the time and are 50 % larger; photos take half and are 1 % larger (ADE20K, zlib-ng 2.3)."""

_MAX_CHUNKS = 1 << 16
"""Largest number of chunks. They are walked over in Python, which takes seconds for a file of empty
chunks. With the 8 KiB per chunk that libpng writes, the limit is a file of 512 MiB."""

_MAX_EXAMPLES = 10
"""Number of unknown colours that a message lists."""

_BLOCK_PIXELS = 1 << 16
"""Number of pixels whose colours are looked up at a time, in 50 bytes for each."""

_PHOTO_BYTES = 3 * 4 + 3 * 3
"""The most bytes that a pixel of a photo takes while it is decoded: in three pictures, which are
decoded, in RGB and upright, and in some rows as bytes, all bytes, and the array."""

_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_PHOTO_MODES = {_GREY: "L", _RGB: "RGB", _PALETTE: "P", _GREY_ALPHA: "LA", _RGBA: "RGBA"}
_MODES = {
    (_GREY, 1): "1",
    (_GREY, 8): "L",
    (_GREY, 16): "I;16",
    (_PALETTE, 1): "P",
    (_PALETTE, 2): "P",
    (_PALETTE, 4): "P",
    (_PALETTE, 8): "P",
    (_RGB, 8): "RGB",
    (_RGBA, 8): "RGBA",
}

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns a photo upright, by EXIF orientation; 1 is upright."""
_SIDEWAYS = range(5, 9)
"""The orientations whose transposition exchanges height and width."""

_ORIENTATION = 0x0112
_EXIF_TYPES = {3: "H", 4: "L", 5: "2L", 6: "b", 8: "h", 9: "l", 10: "2l", 11: "f", 12: "d"}
"""The types that EXIF has for numbers; those of two numbers are fractions."""

_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_EMPTY_IDAT = bytes(4) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
_METADATA_KEYS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
_MAX_METADATA_BYTES = 1 << 20

Indices = npt.NDArray[np.uint8] | npt.NDArray[np.int32]

_NO_COLOURS = np.zeros((0, 3), dtype=np.uint8)
_KEY_BYTES = 16
"""The most bytes of a pixel while unknown colours are counted: collected, put together, sorted."""

_SHARED = -1
"""The class of a colour that several classes have, in the table of the lookup."""


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A decoded label map.

    Attributes:
        indices: [H,W]; int32 for files of 16 bits, else uint8.
        mode: Pillow's name of the mode of the file: P, L, 1, I;16, RGB or RGBA.
        is_coloured: whether the indices are those of colours.
        warnings: sentences about content that is probably unintended.
        colours: uint8 [n,3], red, green and blue of each index in a PNG of mode P; else [0,3].
    """

    indices: Indices
    mode: str
    is_coloured: bool = False
    warnings: tuple[str, ...] = ()
    colours: npt.NDArray[np.uint8] = field(default_factory=lambda: _NO_COLOURS)


@dataclass(frozen=True)
class _Header:
    """The checked header of a PNG.

    Attributes:
        width, height: in pixels.
        bits: per sample.
        colour_type: one of `_GREY`, `_RGB`, `_PALETTE`, `_GREY_ALPHA`, `_RGBA`, or unknown.
        plte: the content of PLTE, or empty.
        critical: a PNG of the critical chunks.
        metadata_chunks: the chunks that may hold an orientation.
    """

    width: int
    height: int
    bits: int
    colour_type: int
    plte: bytes
    critical: bytes
    metadata_chunks: Sequence[memoryview]

    @property
    def mode(self) -> str | None:
        """Pillow's name of the mode; None if no label map has it."""
        return _MODES.get((self.colour_type, self.bits))

    def metadata(self) -> Mapping[Any, Any]:
        """Returns EXIF data and texts of a photo; none if they are damaged or too large."""
        ihdr = self.critical[: len(PNG_SIGNATURE) + 25]
        if sum(map(len, self.metadata_chunks)) > _MAX_METADATA_BYTES:
            return {}
        content = b"".join((ihdr, *self.metadata_chunks, _EMPTY_IDAT))
        with suppress(*DECODE_ERRORS), PngImageFile(io.BytesIO(content)) as picture:
            return picture.info
        return {}

    @property
    def raster(self) -> Raster:
        """The picture, without its ancillary chunks."""
        content = self.critical
        return Raster(
            self.width,
            self.height,
            self.mode,
            self.description,
            lambda: PngImageFile(io.BytesIO(content)),
            self.plte,
        )

    @property
    def description(self) -> str:
        """Text for messages, such as "grey with 4 bits"."""
        names = {
            _GREY: "grey",
            _RGB: "RGB",
            _PALETTE: "palette",
            _GREY_ALPHA: "grey with alpha",
            _RGBA: "RGBA",
        }
        return f"{names.get(self.colour_type, 'an unknown colour type')} with {self.bits} bits"


def read_label_map(
    data: bytes | memoryview,
    *,
    where: str,
    encoding: Encoding = "auto",
    palette: Palette | None,
    colour_classes: Collection[int] = (),
    unknown_colours: UnknownColours = "error",
    check_size: Callable[[int, int], None] = lambda height, width: None,
    max_pixels: int,
    grow: Callable[[int], None] = lambda num_bytes: None,
) -> LabelMap:
    """Returns the class indices of a PNG.

    Args:
        data: the file.
        where: name of the input for messages, such as "labels".
        encoding: whether the samples are indices or colours. "auto" reads RGB and RGBA as colours,
            and all other modes as indices. "rgb" also reads mode P as colours, for coloured maps
            that an optimiser has converted to it.
        palette: the palette that colours are looked up in; None if the request has none.
        colour_classes: the classes that colours are read as which several classes have.
        unknown_colours: "ignore" gives pixels of a colour that is not in the palette its ignored
            index, with a warning.
        check_size: raises if the map must not have this height and width. It is called before
            pixels are decoded.
        max_pixels: the largest number of pixels.
        grow: reserves memory before pixels are decoded, and raises if there is none. Afterwards, it
            gives back all but that of the indices, as a negative number.

    Raises:
        IllPosed: if the file is not a PNG, is damaged, or has another mode, or colours that are not
            in the palette or belong to several of its classes.
        TooLarge: if it has more than `max_pixels`.
    """
    grow(len(data))  # Pillow reads a copy
    raster = _open_label_map(data, where)
    _check_num_pixels(where, raster.height, raster.width, max_pixels)
    check_size(raster.height, raster.width)
    if raster.mode is None:
        raise _mode_error(where, raster)
    grow(raster.decoding_bytes)
    lookup = None
    if palette is not None:
        lookup = _Lookup(where, palette, colour_classes, unknown_colours, grow)
    label_map = _decode(raster, where, encoding, lookup)
    grow(label_map.indices.nbytes - raster.decoding_bytes - len(data))
    return label_map


def _decode(raster: Raster, where: str, encoding: Encoding, lookup: "_Lookup | None") -> LabelMap:
    mode = raster.mode
    assert mode is not None
    in_colour = mode in ("RGB", "RGBA")
    if encoding == "rgb" or (in_colour and encoding == "auto" and lookup is not None):
        if lookup is None:
            raise _no_palette_error(where, mode)
        return _decode_colours(raster, lookup)
    samples = raster.decode(where)
    if in_colour:
        return _equal_channels(samples, where, mode, encoding)
    if samples.dtype in (np.bool_, np.uint8):
        return LabelMap(samples.astype(np.uint8, copy=False), mode, colours=_colours_in(raster))
    return LabelMap(samples.astype(np.int32), mode)


def _colours_in(raster: Raster) -> npt.NDArray[np.uint8]:
    """Returns the colours in PLTE, uint8 [n,3]; none if the file has none."""
    count = len(raster.plte) // 3
    return np.frombuffer(raster.plte, dtype=np.uint8, count=3 * count).reshape(-1, 3)


def _open_label_map(data: bytes | memoryview, where: str) -> Raster:
    signature = bytes(data[:12])
    if signature[:4] in TIFF_SIGNATURES:
        return read_tiff(data, where)
    if signature[:2] == BMP_SIGNATURE:
        return read_bmp(data, where)
    if signature[:3] == JPEG_SIGNATURE or signature[8:] == WEBP_SIGNATURE:
        name = "JPEG" if signature[:3] == JPEG_SIGNATURE else "WebP"
        got = f"{name}, which is lossy and changes class indices"
        raise IllPosed(where, "a lossless label map", got, "Save the map as PNG.")
    return _read_header(data, where).raster


def _equal_channels(
    samples: npt.NDArray[np.uint8], where: str, mode: str, encoding: Encoding
) -> LabelMap:
    """Returns the values of a map in RGB whose red, green and blue are equal."""
    red, green, blue = (samples[:, :, channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        warning = f"{where}: red, green and blue are equal and were read as indices."
        return LabelMap(red.copy(), mode, warnings=(warning, *_alpha_warnings(samples, where)))
    if encoding == "auto":
        raise _no_palette_error(where, mode)
    raise IllPosed(
        where,
        "indices (PNG of mode P or L)",
        f"colours (mode {mode})",
        "Use label_encoding=rgb and name the palette, or save the map as mode P or L.",
    )


def _no_palette_error(where: str, mode: str) -> IllPosed:
    return IllPosed(
        where,
        "indices (PNG of mode P or L), or colours of a named palette",
        f"mode {mode} and no palette",
        f"Name the palette ({_named_palettes()}), send your own, or save the map as mode P or L.",
    )


def _alpha_warnings(samples: npt.NDArray[np.uint8], where: str) -> tuple[str, ...]:
    if samples.shape[2] < 4:
        return ()
    translucent = int(np.count_nonzero(samples[:, :, 3] != 255))
    if not translucent:
        return ()
    return (f"{where}: transparency was dropped (translucent pixels: {translucent}).",)


def encode(picture: Image.Image) -> bytes:
    """Returns a picture as a PNG file."""
    target = io.BytesIO()
    picture.save(target, "PNG", compress_level=COMPRESS_LEVEL)
    return target.getvalue()


def read_photo(
    data: bytes | memoryview,
    *,
    where: str,
    check_size: Callable[[int, int], None] = lambda height, width: None,
    max_pixels: int,
    grow: Callable[[int], None] = lambda num_bytes: None,
) -> npt.NDArray[np.uint8]:
    """Returns the colours of a PNG or JPEG, uint8 [H,W,3].

    The photo is turned upright as its EXIF orientation says. Transparency is dropped. The arguments
    are those of `read_label_map`; `check_size` gets the size of the upright photo.

    Raises:
        IllPosed: if the file is neither PNG nor JPEG, is damaged, or has grey values of 16 bits.
        TooLarge: if it has more than `max_pixels`.
    """
    grow(len(data))  # Pillow reads a copy
    try:
        photo: ImageFile.ImageFile
        if bytes(data[:8]) == PNG_SIGNATURE:
            header = _read_header(data, where)
            if (header.colour_type, header.bits) == (_GREY, 16):
                raise IllPosed(where, "a photo with 8 bits", header.description)
            width, height = header.width, header.height
            _check_num_pixels(where, height, width, max_pixels)
            photo = PngImageFile(io.BytesIO(header.critical))
            metadata = header.metadata()
        elif bytes(data[:3]) == JPEG_SIGNATURE:
            photo = JpegImageFile(io.BytesIO(data))
            metadata = photo.info
            width, height = photo.size
            _check_num_pixels(where, height, width, max_pixels)
        else:
            raise IllPosed(where, "a PNG or JPEG file", "another format")
        orientation = _orientation(metadata)
        is_on_its_side = orientation in _SIDEWAYS
        check_size(*((width, height) if is_on_its_side else (height, width)))
        decoding_bytes = _PHOTO_BYTES * width * height
        grow(decoding_bytes)
        with photo:
            transpose = _TRANSPOSE.get(orientation)
            colours = photo.convert("RGB")
            upright = np.array(colours if transpose is None else colours.transpose(transpose))
    except DECODE_ERRORS as error:
        raise damage_error(where, "its pixels cannot be decoded") from error
    grow(upright.nbytes - decoding_bytes - len(data))
    return upright


def _read_header(data: bytes | memoryview, where: str) -> _Header:
    """Returns the header of a PNG, after walking over all of its chunks.

    All checksums are verified, which Pillow does not do for the pixels, and IEND must be there. A
    file that is cut at any byte, or has a flipped bit, is rejected. Bytes behind IEND are ignored.
    """
    view = memoryview(data)
    if bytes(view[:8]) != PNG_SIGNATURE:
        raise IllPosed(where, "a PNG file", "another format")
    ihdr, plte = b"", b""
    kept: list[bytes | memoryview] = [PNG_SIGNATURE]
    metadata: list[memoryview] = []
    ended = False
    for number, (name, body, chunk) in enumerate(_chunks(view, where)):
        if number == _MAX_CHUNKS:
            raise damage_error(where, f"it has more than {_MAX_CHUNKS} chunks")
        if (number == 0) != (name == b"IHDR"):
            raise damage_error(where, "IHDR is missing, repeated or not its first chunk")
        if name == b"acTL":
            raise IllPosed(where, "one picture", "an animated PNG")
        if name == b"IHDR":
            ihdr = bytes(body)
        elif name == b"PLTE":
            plte = bytes(body)
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept.append(chunk)
        elif name == b"eXIf" or bytes(body[:24]).startswith(_METADATA_KEYS):
            metadata.append(chunk)
        if name == b"IEND":
            ended = True
            break
    if not ended:
        raise damage_error(where, "it ends too early")
    if len(ihdr) != 13:
        raise damage_error(where, "its IHDR chunk has a wrong length")
    width, height, bits, colour_type = struct.unpack(">IIBB", ihdr[:10])
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        raise damage_error(where, "its width or height is out of range")
    return _Header(width, height, bits, colour_type, plte, b"".join(kept), metadata)


def _chunks(view: memoryview, where: str) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Yields the name, the content and all bytes of each chunk, after checking its checksum."""
    position = len(PNG_SIGNATURE)
    while position < len(view):
        if len(view) - position < 12:
            raise damage_error(where, "it ends too early")
        (length,) = struct.unpack_from(">I", view, position)
        end = position + length + 12
        if end > len(view):
            raise damage_error(where, "it ends too early")
        (checksum,) = struct.unpack_from(">I", view, end - 4)
        if zlib.crc32(view[position + 4 : end - 4]) != checksum:
            raise damage_error(where, "a checksum is wrong")
        yield (
            bytes(view[position + 4 : position + 8]),
            view[position + 8 : end - 4],
            view[position:end],
        )
        position = end


def _check_num_pixels(where: str, height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise TooLarge(
            where,
            f"at most {max_pixels} pixels",
            f"{height} x {width} = {height * width}",
            limit=max_pixels,
        )


def photo_mode(data: bytes | memoryview) -> str:
    """Returns Pillow's name of the mode of a PNG or JPEG that `read_photo` has read."""
    if bytes(data[:8]) == PNG_SIGNATURE:
        bits, colour_type = data[24:26]
        return "1" if (bits, colour_type) == (1, _GREY) else _PHOTO_MODES[colour_type]
    with JpegImageFile(io.BytesIO(data)) as photo:
        return photo.mode


def photo_orientation(data: bytes) -> int:
    """Returns the EXIF orientation of a PNG or JPEG that `read_photo` can read: 1 if upright."""
    if data.startswith(PNG_SIGNATURE):
        orientation = _orientation(_read_header(data, "photo").metadata())
    else:
        with JpegImageFile(io.BytesIO(data)) as photo:
            orientation = _orientation(photo.info)
    return orientation if orientation in _TRANSPOSE else 1


def _orientation(metadata: Mapping[Any, Any]) -> int:
    """Returns the orientation in EXIF data or else in XMP, or 1 if it is missing or damaged.

    It is the one that `ImageOps.exif_transpose` applies. That also rewrites the other tags, raises
    for unusual ones, and reads any number of them.
    """
    exif = metadata.get("exif")
    profile = metadata.get("Raw profile type exif")  # written by ImageMagick
    if exif is None and profile is not None:
        with suppress(ValueError):
            exif = bytes.fromhex("".join(profile.split("\n")[3:]))
    orientation = _orientation_in_exif(exif or b"")
    if orientation is not None:
        return orientation
    xmp = metadata.get("XML:com.adobe.xmp") or metadata.get("xmp") or b""
    match = _XMP_ORIENTATION.search(xmp if isinstance(xmp, bytes) else xmp.encode())
    return int(match[1]) if match else 1


def _orientation_in_exif(exif: bytes) -> int | None:
    tiff = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    with suppress(struct.error):
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (num_tags,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * num_tags, 12):
            tag, kind, count = struct.unpack_from(order + "HHI", tiff, entry)
            if tag == _ORIENTATION and kind in _EXIF_TYPES and count:
                number = order + _EXIF_TYPES[kind]
                begin = entry + 8
                if count * struct.calcsize(number) > 4:  # the entry holds an offset
                    (begin,) = struct.unpack_from(order + "I", tiff, begin)
                value, *divisor = struct.unpack_from(number, tiff, begin)
                with suppress(ArithmeticError, ValueError):  # no number
                    quotient = value / divisor[0] if divisor else value
                    return int(quotient) if quotient == int(quotient) else 1
    return None


def _decode_colours(raster: Raster, lookup: "_Lookup") -> LabelMap:
    """Returns the indices of a map whose samples, or whose colours in PLTE, are colours."""
    assert raster.mode is not None
    where = lookup.where
    if raster.mode not in ("RGB", "RGBA") and not raster.plte:
        raise IllPosed(
            where, "colours (PNG of mode RGB)", f"mode {raster.mode}", "Use label_encoding=index."
        )
    samples = raster.decode(where)
    plte, warnings = None, tuple[str, ...]()
    if raster.plte:
        plte = _colours_in(raster)
        if int(samples.max()) >= len(plte):
            raise damage_error(where, "it uses colours behind the end of its own palette")
    else:
        warnings = _alpha_warnings(samples, where)
    indices, more_warnings = lookup.indices_of(samples, plte)
    return LabelMap(indices, raster.mode, True, (*warnings, *more_warnings))


class _Lookup:
    """Finds the class of each colour in a palette.

    Args:
        where: name of the input for messages.
        palette: the palette.
        colour_classes, unknown_colours, grow: as in `read_label_map`.
    """

    def __init__(
        self,
        where: str,
        palette: Palette,
        colour_classes: Collection[int],
        unknown_colours: UnknownColours,
        grow: Callable[[int], None],
    ) -> None:
        self.where = where
        self._grow = grow
        self._palette = palette
        self._unknown_colours = unknown_colours
        index_of: dict[int, int] = {}
        self._classes_of: dict[int, tuple[int, ...]] = {}
        for index, key in enumerate(map(_key_of, palette.colours[: palette.num_classes].tolist())):
            index_of[key] = index
            self._classes_of[key] = (*self._classes_of.get(key, ()), index)
        for key, classes in self._classes_of.items():
            if len(classes) > 1:
                wanted = [index for index in classes if index in colour_classes]
                index_of[key] = wanted[0] if len(wanted) == 1 else _SHARED
        void = [palette.ignore_colour] if palette.has_void else []
        for colour in (*void, *palette.void_colours):
            index_of.setdefault(_key_of(colour), palette.ignore_index)
        self._keys = np.array(sorted(index_of), dtype=np.int32)
        self._indices = np.array([index_of[key] for key in sorted(index_of)], dtype=np.int16)

    def indices_of(
        self, samples: npt.NDArray[np.uint8], plte: npt.NDArray[np.uint8] | None
    ) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
        """Returns the index of each colour, uint8 [H,W], and warnings.

        The void colours are the ignored index.

        Args:
            samples: colours [H,W,3 or 4], or indices [H,W] in `plte`.
            plte: the colours [K,3] of indices; None if the samples are colours.

        Raises:
            IllPosed: if a colour is unknown, or belongs to several classes.
        """
        height, width = samples.shape[:2]
        indices = np.empty((height, width), dtype=np.uint8)
        flat, begin = indices.reshape(-1), 0
        unknown, shared = _Found(), _Found()
        for key in _key_blocks(samples, plte):
            position = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
            index = self._indices[position]
            is_unknown = self._keys[position] != key
            if is_unknown.any() or (index == _SHARED).any():
                if not unknown.keys and not shared.keys:
                    self._grow(_KEY_BYTES * flat.size)
                index[is_unknown] = self._palette.ignore_index
                unknown.add(key, is_unknown, begin)
                shared.add(key, index == _SHARED, begin)
            flat[begin : begin + len(key)] = index
            begin += len(key)
        if unknown.keys and self._unknown_colours == "error":
            grey = (key == (key & 255) * 0x01_01_01 for key in _key_blocks(samples, plte))
            are_grey = all(bool(block.all()) for block in grey)
            raise self._unknown_error(unknown, width, are_grey)
        if shared.keys:
            raise self._shared_error(shared, width)
        if not unknown.keys:
            return indices, ()
        subject = f"{self.where}: colours that the palette {self._palette.name} does not have"
        warning = f"{subject} are ignored: {unknown.describe()}."
        self._grow(-_KEY_BYTES * flat.size)
        return indices, (warning,)

    def _unknown_error(self, unknown: "_Found", width: int, are_grey: bool) -> IllPosed:
        first = divmod(unknown.first, width)
        fix = (
            "JPEG compression and smooth resizing mix colours: use the original file, or "
            "unknown_colours=ignore."
        )
        if are_grey:
            fix = "Red, green and blue are equal: use label_encoding=index if they are indices."
        expected = f"colours of the palette {self._palette.name}"
        return IllPosed(self.where, expected, unknown.describe(f", the first at {first}"), fix)

    def _shared_error(self, shared: "_Found", width: int) -> IllPosed:
        values, counts = shared.counts()
        names = dict(enumerate(self._palette.class_names))
        texts = []
        for value in values[:_MAX_EXAMPLES].tolist():
            classes = " and ".join(
                f"{names[index]} ({index})" if index in names else f"{index}"
                for index in self._classes_of[value]
            )
            texts.append(f"{_text_of(value)} of {classes}")
        choice = ",".join(f"{self._classes_of[value][0]}" for value in values.tolist())
        first = divmod(shared.first, width)
        return IllPosed(
            self.where,
            f"colours that one class of the palette {self._palette.name} has",
            f"{', '.join(texts)} on {_number(int(counts.sum()), 'pixel')}, the first at {first}",
            f"Say which class it is, such as colour_classes={choice}, or save the map as mode P "
            "or L.",
        )


class _Found:
    """Colours of a picture that cannot be read.

    Attributes:
        keys: a key for each pixel, in blocks.
        first: the index of the first pixel in the flattened picture.
    """

    def __init__(self) -> None:
        self.keys: list[npt.NDArray[np.int32]] = []
        self.first = 0

    def add(self, key: npt.NDArray[np.int32], chosen: npt.NDArray[np.bool_], begin: int) -> None:
        """Adds the chosen pixels of a block that begins at an index."""
        if not chosen.any():
            return
        if not self.keys:
            self.first = begin + int(np.argmax(chosen))
        self.keys.append(key[chosen])

    def counts(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.intp]]:
        """Returns the keys, ascending, and the number of pixels of each."""
        return np.unique(np.concatenate(self.keys), return_counts=True)

    def describe(self, position: str = "") -> str:
        """Returns the numbers of colours and pixels, with examples."""
        values, counts = self.counts()
        most_frequent = np.argsort(-counts, kind="stable")[:_MAX_EXAMPLES]
        examples = ", ".join(_text_of(value) for value in values[most_frequent].tolist())
        more = ", …" if len(values) > _MAX_EXAMPLES else ""
        colours = _number(len(values), "other colour")
        return f"{colours} on {_number(int(counts.sum()), 'pixel')}{position}: {examples}{more}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _key_of(colour: Sequence[int]) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _text_of(key: int) -> str:
    return f"({key >> 16}, {key >> 8 & 255}, {key & 255})"


def _key_blocks(
    samples: npt.NDArray[np.uint8], plte: npt.NDArray[np.uint8] | None
) -> Iterator[npt.NDArray[np.int32]]:
    """Yields the colours as keys 0xRRGGBB, of some pixels at a time.

    A wide key for each pixel of the picture would take several times the memory of the picture.
    """
    pixels = samples.reshape(-1, *samples.shape[2:])
    for begin in range(0, len(pixels), _BLOCK_PIXELS):
        block = pixels[begin : begin + _BLOCK_PIXELS]
        # In uint8, shifting would lose bits and confuse classes.
        wide = (block if plte is None else plte[block]).astype(np.int32)
        yield (wide[:, 0] << 16) | (wide[:, 1] << 8) | wide[:, 2]


def _mode_error(where: str, raster: Raster) -> IllPosed:
    fix = "Save the map as mode P or L, with 8 bits."
    if raster.description.startswith("grey with") and "alpha" not in raster.description:
        fix = "Its values may have been scaled. " + fix
    return IllPosed(where, "a label map (PNG of mode P, L, 1 or I;16)", raster.description, fix)


def _named_palettes() -> str:
    first, *others = PALETTES
    return f"palette={first}, or {', '.join(others)}"
