"""Label maps and photos as files: PNG (and JPEG, for photos) to arrays, indices to PNG.

A label map is a PNG whose *samples* are class indices:

| colour type, bits | mode | read as |
|---|---|---|
| palette, 1, 2, 4, 8 | P | the indices; the colours and tRNS play no part |
| grey, 1, 8, 16 | 1, L, I;16 | the values |
| grey, 2, 4 | L | refused: decoders stretch these values to 0…255 |
| RGB, RGBA, 8 | RGB, RGBA | the indices of the colours in a palette that the request names |
| all others | | refused |

Nothing here ever converts a label map from one mode to another: that replaces indices by
brightness, the most frequent mistake with PASCAL VOC.

A PNG is read in two steps. The first walks over its chunks without decoding anything: signature,
order, checksums, size, mode. It refuses files that are cut, damaged, animated, or too large, so a
decompression bomb costs its compressed bytes only. The second gives Pillow a PNG made of the
critical chunks alone (IHDR, PLTE, IDAT, IEND), so that text, colour profiles and transparency
cannot fail, swell or change an index. Pillow's PNG and JPEG readers are called directly: they are
the only two formats ever tried, and `Image.open` would add a limit on pixels that is a global of
the process.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from ..errors import IllPosed, RequestError, TooLarge
from ..images.palettes import NUM_COLOURS, PALETTES, Palette

MEDIA_TYPE: Final = "image/png"

Encoding = Literal["auto", "index", "rgb"]
ENCODINGS: Final = ("auto", "index", "rgb")

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE: Final = b"\xff\xd8\xff"

COMPRESS_LEVEL: Final = 3
"""zlib level of every PNG written here: a third of the time of Pillow's default 6 for label maps,
half for photos, and files larger by 50 % and 1 % (measured on ADE20K, zlib-ng 2.3)."""

_MAX_CHUNKS = 1 << 16
"""Chunks are walked over in Python: this keeps a file of empty chunks from costing seconds. With
the 8 KiB per chunk that libpng writes it is still a file of 512 MiB."""

_MAX_EXAMPLES = 10

_GREY, _RGB, _PALETTE, _RGBA = 0, 2, 3, 6
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

_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    EOFError,
    zlib.error,
    OverflowError,
    MemoryError,
    Warning,  # about metadata, where warnings are made errors
)
"""What Pillow raises when the pixels cannot be decoded."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What to do with a photo of each EXIF orientation; 1 is upright."""

Indices = npt.NDArray[np.uint8] | npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A decoded label map.

    Args:
        indices: [H,W]; uint8 where the values fit, int32 for 16-bit files.
        mode: Pillow's name of what the file held: P, L, 1, I;16, RGB, RGBA.
        warnings: sentences about what was read but looks unintended.
    """

    indices: Indices
    mode: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Header:
    """IHDR, and the chunks that hold pixels."""

    width: int
    height: int
    bits: int
    colour_type: int
    plte: bytes
    bare: bytes
    """A PNG of the critical chunks only."""

    @property
    def mode(self) -> str | None:
        """Pillow's mode, or None where a label map must be refused."""
        return _MODES.get((self.colour_type, self.bits))

    @property
    def description(self) -> str:
        """For messages: `grey with 4 bits`."""
        kind = {
            _GREY: "grey",
            _RGB: "RGB",
            _PALETTE: "palette",
            4: "grey with alpha",
            _RGBA: "RGBA",
        }
        return f"{kind.get(self.colour_type, 'an unknown colour type')} with {self.bits} bits"


def read(
    data: bytes | memoryview,
    *,
    where: str,
    encoding: Encoding = "auto",
    palette: Palette | None,
    expected_size: tuple[int, int] | None,
    max_pixels: int,
) -> LabelMap:
    """Indices of a label map in PNG.

    Args:
        data: the file.
        where: the name of the input for messages, `labels`.
        encoding: whether samples are indices or colours. `auto` takes colours in RGB and RGBA if a
            palette is named, and indices otherwise. `rgb` also takes the colours of mode P, for
            coloured maps that an optimiser has shrunk to it.
        palette: what the colours mean; None if the request names none.
        expected_size: (height, width) of the logits, where the map must have it.
        max_pixels: what the settings allow, checked before decoding.

    Raises:
        IllPosed: not a PNG, damaged, of another size or mode, or with colours that the palette
            does not have.
        TooLarge: more than `max_pixels`.
    """
    header = _read_header(data, where)
    _check_size(where, header.height, header.width, expected_size, max_pixels)
    if header.mode is None:
        raise _refused_mode(where, header)
    in_colour = header.mode in ("RGB", "RGBA")
    if encoding == "index" and in_colour:
        raise IllPosed(
            where,
            "indices (PNG of mode P or L)",
            f"colours (mode {header.mode})",
            "Use label_encoding=rgb and name the palette, or save the map as mode P or L.",
        )
    if encoding == "rgb" or in_colour:
        if palette is None:
            raise IllPosed(
                where,
                "indices (PNG of mode P or L), or colours of a named palette",
                f"mode {header.mode} and no palette",
                f"Name the palette ({_named_palettes()}), or save the map as mode P or L.",
            )
        return _decode_colours(header, where, palette)
    samples = _decode(header, where)
    if samples.dtype in (np.bool_, np.uint8):
        return LabelMap(samples.astype(np.uint8, copy=False), header.mode)
    return LabelMap(samples.astype(np.int32), header.mode)


def write(indices: npt.NDArray[np.integer], palette: Palette) -> bytes:
    """A PNG of mode P with `indices` [H,W], 0…255, as samples and the colours of the palette.

    `read(write(indices, palette), ...)` gives `indices` back.

    Raises:
        IllPosed: an index does not fit.
    """
    assert indices.ndim == 2, indices.shape
    if indices.dtype != np.uint8:
        outside = (indices < 0) | (indices >= NUM_COLOURS)
        if outside.any():
            row, column = map(int, np.argwhere(outside)[0])
            more = int(np.count_nonzero(outside)) - 1
            others = f" and {more} more place{'s' if more > 1 else ''}" if more else ""
            raise IllPosed(
                "labels",
                f"0…{NUM_COLOURS - 1}, which a PNG of mode P can hold",
                f"{int(indices[row, column])} at ({row}, {column}){others}",
            )
    height, width = indices.shape
    picture = Image.frombytes("P", (width, height), indices.astype(np.uint8).tobytes())
    picture.putpalette(palette.colours.tobytes())
    return encode(picture)


def encode(picture: Image.Image) -> bytes:
    """A picture as PNG, at `COMPRESS_LEVEL`."""
    target = io.BytesIO()
    picture.save(target, "PNG", compress_level=COMPRESS_LEVEL)
    return target.getvalue()


def read_photo(data: bytes | memoryview, *, where: str, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Colours [H,W,3] of a PNG or JPEG, upright: EXIF rotation is applied, transparency dropped.

    Raises:
        IllPosed: neither PNG nor JPEG, damaged, or grey with 16 bits.
        TooLarge: more than `max_pixels`.
    """
    try:
        photo: ImageFile.ImageFile
        if bytes(data[:8]) == PNG_SIGNATURE:
            header = _read_header(data, where, also=b"eXIf")
            _check_size(where, header.height, header.width, None, max_pixels)
            if (header.colour_type, header.bits) == (_GREY, 16):
                raise IllPosed(where, "a photo with 8 bits", header.description)
            photo = PngImageFile(io.BytesIO(header.bare))
        elif bytes(data[:3]) == JPEG_SIGNATURE:
            photo = JpegImageFile(io.BytesIO(data))
            _check_size(where, photo.height, photo.width, None, max_pixels)
        else:
            raise IllPosed(where, "a PNG or JPEG file", "another format")
        with photo:
            upright = _UPRIGHT.get(_orientation(photo.info.get("exif", b"")))
            colours = photo.convert("RGB")
            return np.array(colours if upright is None else colours.transpose(upright))
    except _DAMAGE as error:
        raise _damaged(where, "its pixels cannot be decoded") from error


def _read_header(data: bytes | memoryview, where: str, also: bytes = b"") -> _Header:
    """Walk over the chunks, keeping the critical ones and those named `also`.

    Every checksum is verified, which Pillow leaves out for the pixels, and IEND must be there: a
    file cut at any byte, or with any bit flipped, is refused. Bytes behind IEND are left alone.
    """
    view = memoryview(data)
    if bytes(view[:8]) != PNG_SIGNATURE:
        is_jpeg = bytes(view[:3]) == JPEG_SIGNATURE
        got = "a JPEG, whose colours are approximate" if is_jpeg else "another format"
        raise IllPosed(where, "a PNG file", got)
    ihdr, plte = b"", b""
    kept: list[bytes | memoryview] = [PNG_SIGNATURE]
    ended = False
    for number, (name, body, chunk) in enumerate(_chunks(view, where)):
        if number == _MAX_CHUNKS:
            raise _damaged(where, f"it has more than {_MAX_CHUNKS} chunks")
        if (number == 0) != (name == b"IHDR"):
            raise _damaged(where, "it does not begin with one header")
        if name == b"acTL":
            raise IllPosed(where, "one picture", "an animated PNG")
        if name == b"IHDR":
            ihdr = bytes(body)
        elif name == b"PLTE":
            plte = bytes(body)
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND", also):
            kept.append(chunk)
        if name == b"IEND":
            ended = True
            break
    if not ended:
        raise _damaged(where, "it ends too early")
    if len(ihdr) != 13:
        raise _damaged(where, "its header has a wrong length")
    width, height, bits, colour_type = struct.unpack(">IIBB", ihdr[:10])
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        raise _damaged(where, "its header has an impossible size")
    return _Header(width, height, bits, colour_type, plte, b"".join(kept))


def _chunks(view: memoryview, where: str) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Name, body and whole of each chunk, its checksum verified."""
    position = len(PNG_SIGNATURE)
    while position < len(view):
        if len(view) - position < 12:
            raise _damaged(where, "it ends too early")
        (length,) = struct.unpack_from(">I", view, position)
        end = position + length + 12
        if end > len(view):
            raise _damaged(where, "it ends too early")
        (checksum,) = struct.unpack_from(">I", view, end - 4)
        if zlib.crc32(view[position + 4 : end - 4]) != checksum:
            raise _damaged(where, "a checksum is wrong")
        yield (
            bytes(view[position + 4 : position + 8]),
            view[position + 8 : end - 4],
            view[position:end],
        )
        position = end


def _check_size(
    where: str, height: int, width: int, expected: tuple[int, int] | None, max_pixels: int
) -> None:
    if height * width > max_pixels:
        raise TooLarge(
            where,
            f"at most {max_pixels} pixels",
            f"{height} x {width} = {height * width}",
            limit=max_pixels,
        )
    if expected is not None and (height, width) != expected:
        is_larger = height >= expected[0] and width >= expected[1]
        raise IllPosed(
            where,
            f"{expected[0]} x {expected[1]} (height x width) to match the logits",
            f"{height} x {width}",
            "Scores of lower resolution? Use upsampling=bilinear." if is_larger else "",
        )


def _decode(header: _Header, where: str) -> npt.NDArray[Any]:
    """The samples of a PNG, as they are: [H,W], or [H,W,3] and [H,W,4] for colours."""
    try:
        with PngImageFile(io.BytesIO(header.bare)) as picture:
            return np.array(picture)
    except _DAMAGE as error:
        raise _damaged(where, "its pixels cannot be decoded") from error


def _orientation(exif: bytes) -> int:
    """The orientation in EXIF data, 1 where there is none or none that can be read.

    `ImageOps.exif_transpose` would also rewrite the other tags, and fails on odd ones.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (num_tags,) = struct.unpack_from(order + "H", tiff, start)
        for number in range(num_tags):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * number)
            if tag == 0x0112:
                return int(value)
    except struct.error:
        pass
    return 1


def _decode_colours(header: _Header, where: str, palette: Palette) -> LabelMap:
    """Indices of a map in the colours of `palette`."""
    assert header.mode is not None
    samples = _decode(header, where)
    warnings: tuple[str, ...] = ()
    if header.mode == "P":
        own = np.frombuffer(header.plte, dtype=np.uint8, count=len(header.plte) // 3 * 3)
        own = own.reshape(-1, 3)
        if int(samples.max()) >= len(own):
            raise _damaged(where, "it uses colours behind the end of its own palette")
        samples = own[samples]
    elif header.mode not in ("RGB", "RGBA"):
        raise IllPosed(
            where, "colours (PNG of mode RGB)", f"mode {header.mode}", "Use label_encoding=index."
        )
    if header.mode == "RGBA":
        translucent = int(np.count_nonzero(samples[:, :, 3] != 255))
        if translucent:
            warnings = (f"{where}: transparency was left out (translucent pixels: {translucent}).",)
    return LabelMap(_colours_to_indices(samples, where, palette), header.mode, warnings)


def _colours_to_indices(
    colours: npt.NDArray[np.uint8], where: str, palette: Palette
) -> npt.NDArray[np.uint8]:
    """Look up each colour of [H,W,3 or 4] among those of the named classes and the void."""
    keys, indices = _colour_table(palette, where)
    # uint8 would lose what is shifted out of its 8 bits, and confuse classes.
    wide = colours.astype(np.int32)
    key = (wide[:, :, 0] << 16) | (wide[:, :, 1] << 8) | wide[:, :, 2]
    place = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
    unknown = keys[place] != key
    if unknown.any():
        values, counts = np.unique(key[unknown], return_counts=True)
        most_frequent = np.argsort(-counts, kind="stable")[:_MAX_EXAMPLES]
        examples = ", ".join(
            f"({value >> 16}, {value >> 8 & 255}, {value & 255})"
            for value in values[most_frequent].tolist()
        )
        row, column = divmod(int(np.argmax(unknown)), unknown.shape[1])
        raise IllPosed(
            where,
            f"colours of the palette {palette.name}",
            f"{len(values)} other colours on {int(counts.sum())} pixels, the first at "
            f"({row}, {column}): {examples}{', …' if len(values) > _MAX_EXAMPLES else ''}",
            "A JPEG or a smooth resize in its past mixes colours; use the original file.",
        )
    return indices[place]


def _colour_table(
    palette: Palette, where: str
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """The sorted keys of the colours that mean something, and the index of each."""
    pairs = [
        *((index, palette.colours[index].tolist()) for index in range(len(palette.class_names))),
        (palette.ignore_index, palette.colours[palette.ignore_index].tolist()),
        *((palette.ignore_index, list(colour)) for colour in palette.void_colours),
    ]
    meaning: dict[int, int] = {}
    for index, (red, green, blue) in pairs:
        key = red << 16 | green << 8 | blue
        if meaning.setdefault(key, index) != index:
            raise IllPosed(
                where,
                "a palette with one colour per class",
                f"{palette.name}, where {meaning[key]} and {index} are ({red}, {green}, {blue})",
                "Save the map as mode P or L.",
            )
    keys = sorted(meaning)
    return (
        np.array(keys, dtype=np.int32),
        np.array([meaning[key] for key in keys], dtype=np.uint8),
    )


def _refused_mode(where: str, header: _Header) -> RequestError:
    fix = "Save the map as mode P or L, with 8 bits."
    if header.colour_type == _GREY:
        fix = "Its values may have been scaled. " + fix
    return IllPosed(where, "a label map (PNG of mode P, L, 1 or I;16)", header.description, fix)


def _damaged(where: str, reason: str) -> RequestError:
    return IllPosed(where, "a complete file", f"a damaged file: {reason}")


def _named_palettes() -> str:
    return ", ".join(f"palette={name}" for name in PALETTES)
