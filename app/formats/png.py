"""Label maps and photos: reads PNG, and JPEG for photos, into arrays; writes pictures as PNG.

A label map is a PNG whose samples are class indices. `rasters` reads TIFF and BMP in the same way.

| colour type, bits | mode | read as |
|---|---|---|
| palette, 1, 2, 4, 8 | P | the indices; the colours and tRNS are ignored |
| grey, 1, 8, 16 | 1, L, I;16 | the values |
| grey, 2, 4 | L | rejected: decoders stretch these values to 0…255 |
| RGB, RGBA, 8 | RGB, RGBA | the indices of the colours, in the palette that the request names; \
without one, the values, if red, green and blue are equal |
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A decoded label map.

    Attributes:
        indices: [H,W]; int32 for files of 16 bits, else uint8.
        mode: Pillow's name of the mode of the file: P, L, 1, I;16, RGB or RGBA.
        is_coloured: whether the indices are those of colours.
        warnings: sentences about content that is probably unintended.
    """

    indices: Indices
    mode: str
    is_coloured: bool = False
    warnings: tuple[str, ...] = ()


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
        palette: the palette that colours are looked up in; None if the request names none.
        check_size: raises if the map must not have this height and width. It is called before
            pixels are decoded.
        max_pixels: the largest number of pixels.
        grow: reserves memory before pixels are decoded, and raises if there is none. Afterwards, it
            gives back all but that of the indices, as a negative number.

    Raises:
        IllPosed: if the file is not a PNG, is damaged, or has another mode, or colours that are not
            in the palette.
        TooLarge: if it has more than `max_pixels`.
    """
    grow(len(data))  # Pillow reads a copy
    raster = _open_label_map(data, where)
    _check_num_pixels(where, raster.height, raster.width, max_pixels)
    check_size(raster.height, raster.width)
    if raster.mode is None:
        raise _mode_error(where, raster)
    grow(raster.decoding_bytes)
    label_map = _decode(raster, where, encoding, palette)
    grow(label_map.indices.nbytes - raster.decoding_bytes - len(data))
    return label_map


def _decode(raster: Raster, where: str, encoding: Encoding, palette: Palette | None) -> LabelMap:
    mode = raster.mode
    assert mode is not None
    in_colour = mode in ("RGB", "RGBA")
    if encoding == "rgb" or (in_colour and encoding == "auto" and palette is not None):
        if palette is None:
            raise _no_palette_error(where, mode)
        return _decode_colours(raster, where, palette)
    samples = raster.decode(where)
    if in_colour:
        return _equal_channels(samples, where, mode, encoding)
    if samples.dtype in (np.bool_, np.uint8):
        return LabelMap(samples.astype(np.uint8, copy=False), mode)
    return LabelMap(samples.astype(np.int32), mode)


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
        f"Name the palette ({_named_palettes()}), or save the map as mode P or L.",
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


def _decode_colours(raster: Raster, where: str, palette: Palette) -> LabelMap:
    """Returns the indices of a map whose samples, or whose colours in PLTE, are colours."""
    assert raster.mode is not None
    if raster.mode not in ("RGB", "RGBA") and not raster.plte:
        raise IllPosed(
            where, "colours (PNG of mode RGB)", f"mode {raster.mode}", "Use label_encoding=index."
        )
    samples = raster.decode(where)
    if not raster.plte:
        indices = _colours_to_indices(samples, None, where, palette)
        return LabelMap(indices, raster.mode, True, _alpha_warnings(samples, where))
    plte = np.frombuffer(raster.plte, dtype=np.uint8, count=len(raster.plte) // 3 * 3)
    plte = plte.reshape(-1, 3)
    if int(samples.max()) >= len(plte):
        raise damage_error(where, "it uses colours behind the end of its own palette")
    return LabelMap(_colours_to_indices(samples, plte, where, palette), raster.mode, True)


def _colours_to_indices(
    samples: npt.NDArray[np.uint8],
    plte: npt.NDArray[np.uint8] | None,
    where: str,
    palette: Palette,
) -> npt.NDArray[np.uint8]:
    """Returns the index of each colour; the void colours are the ignored index.

    Args:
        samples: colours [H,W,3 or 4], or indices [H,W] in `plte`.
        plte: the colours [K,3] of indices; None if the samples are colours.
        where: name of the input for messages.
        palette: the palette that colours are looked up in.
    """
    keys, classes = _colour_table(palette, where)
    height, width = samples.shape[:2]
    indices = np.empty((height, width), dtype=np.uint8)
    flat, begin = indices.reshape(-1), 0
    for key in _key_blocks(samples, plte):
        position = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        unknown = keys[position] != key
        if unknown.any():
            first = divmod(begin + int(np.argmax(unknown)), width)
            raise _unknown_colours_error(_key_blocks(samples, plte), keys, first, where, palette)
        flat[begin : begin + len(key)] = classes[position]
        begin += len(key)
    return indices


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


def _unknown_colours_error(
    blocks: Iterable[npt.NDArray[np.int32]],
    keys: npt.NDArray[np.int32],
    first: tuple[int, int],
    where: str,
    palette: Palette,
) -> IllPosed:
    """Returns the error that counts the colours which are not among `keys`."""
    counts = np.zeros(1 << 24, dtype=np.uint32)
    for key in blocks:
        np.add.at(counts, key, 1)
    fix = "JPEG compression and smooth resizing mix colours: use the original file."
    if counts[::0x01_01_01].sum() == counts.sum():
        fix = "Red, green and blue are equal: use label_encoding=index if they are indices."
    counts[keys] = 0
    num_colours, num_pixels = int(np.count_nonzero(counts)), int(counts.sum())
    examples = []
    for _ in range(min(num_colours, _MAX_EXAMPLES)):
        value = int(np.argmax(counts))
        examples.append(f"({value >> 16}, {value >> 8 & 255}, {value & 255})")
        counts[value] = 0
    more = ", …" if num_colours > _MAX_EXAMPLES else ""
    return IllPosed(
        where,
        f"colours of the palette {palette.name}",
        f"{num_colours} other colours on {num_pixels} pixels, the first at {first}: "
        f"{', '.join(examples)}{more}",
        fix,
    )


def _colour_table(
    palette: Palette, where: str
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Returns the colours of classes and void as keys 0xRRGGBB, ascending, and their indices."""
    pairs = [
        *((index, palette.colours[index].tolist()) for index in range(len(palette.class_names))),
        (palette.ignore_index, palette.colours[palette.ignore_index].tolist()),
        *((palette.ignore_index, list(colour)) for colour in palette.void_colours),
    ]
    index_of: dict[int, int] = {}
    for index, (red, green, blue) in pairs:
        key = red << 16 | green << 8 | blue
        if index_of.setdefault(key, index) != index:
            raise IllPosed(
                where,
                "a palette with one colour per class",
                f"{palette.name}, where {index_of[key]} and {index} are ({red}, {green}, {blue})",
                "Save the map as mode P or L.",
            )
    keys = sorted(index_of)
    return (
        np.array(keys, dtype=np.int32),
        np.array([index_of[key] for key in keys], dtype=np.uint8),
    )


def _mode_error(where: str, raster: Raster) -> IllPosed:
    fix = "Save the map as mode P or L, with 8 bits."
    if raster.description.startswith("grey with") and "alpha" not in raster.description:
        fix = "Its values may have been scaled. " + fix
    return IllPosed(where, "a label map (PNG of mode P, L, 1 or I;16)", raster.description, fix)


def _named_palettes() -> str:
    return ", ".join(f"palette={name}" for name in PALETTES)
