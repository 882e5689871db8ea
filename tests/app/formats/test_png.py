"""Label maps and photos: the files that are read, and the errors for all others."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Collection

import fcn_demo
import numpy as np
import numpy.typing as npt
import pytest
from examples import label_png
from PIL import Image, ImageOps

from app.errors import IllPosed, RequestError, TooLarge
from app.formats import png, rasters
from app.formats.png import LabelMap
from app.formats.rasters import Encoding, UnknownColours
from app.images.palettes import PALETTES, Palette, own_palette

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def read(
    data: bytes | memoryview,
    *,
    encoding: Encoding = "auto",
    colours: Palette | None = None,
    colour_classes: Collection[int] = (),
    unknown_colours: UnknownColours = "error",
    check_size: Callable[[int, int], None] = lambda height, width: None,
    max_pixels: int = 1 << 24,
) -> LabelMap:
    return png.read_label_map(
        data,
        where="labels",
        encoding=encoding,
        palette=colours,
        colour_classes=colour_classes,
        unknown_colours=unknown_colours,
        check_size=check_size,
        max_pixels=max_pixels,
    )


def error_of(data: bytes, **options: object) -> RequestError:
    with pytest.raises(RequestError) as error:
        read(data, **options)  # type: ignore[arg-type]
    return error.value


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_bytes(
    width: int,
    height: int,
    bits: int,
    colour_type: int,
    rows: bytes | None = None,
    *more: bytes,
    after: bytes = b"",
) -> bytes:
    """A PNG with these packed samples; each row gets the filter byte 0."""
    samples = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}.get(colour_type, 1)
    stride = (width * bits * samples + 7) // 8
    packed = rows if rows is not None else bytes(stride * height)
    filtered = b"".join(b"\0" + packed[i * stride : (i + 1) * stride] for i in range(height))
    return b"".join(
        (
            png.PNG_SIGNATURE,
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)),
            *more,
            chunk(b"IDAT", zlib.compress(filtered)),
            after,
            chunk(b"IEND", b""),
        )
    )


def colour_png(colours: npt.NDArray[np.uint8], file_format: str = "PNG") -> bytes:
    target = io.BytesIO()
    Image.fromarray(colours).save(target, file_format)
    return target.getvalue()


PLTE = chunk(b"PLTE", bytes(range(48)))
TWO_COLOURS = bytes([128, 0, 0, 0, 128, 0])
INDICES = np.array([[0, 1, 2], [255, 20, 0]], dtype=np.uint8)


# Indices


def test_a_written_label_map_is_read_unchanged() -> None:
    every_index = np.arange(256, dtype=np.uint8).reshape(8, 32)
    label_map = read(label_png(every_index))
    assert label_map.mode == "P"
    assert label_map.indices.dtype == np.uint8
    assert label_map.warnings == ()
    np.testing.assert_array_equal(label_map.indices, every_index)


def test_a_written_label_map_has_the_colours_of_the_palette() -> None:
    with Image.open(io.BytesIO(label_png(INDICES))) as picture:
        assert picture.convert("RGB").getpixel((0, 1)) == (224, 224, 192)


def test_a_memoryview_is_read_like_bytes() -> None:
    label_map = read(memoryview(label_png(INDICES)))
    np.testing.assert_array_equal(label_map.indices, INDICES)


def test_wide_indices_are_written_if_they_fit() -> None:
    data = label_png(INDICES.astype(np.int64), "cityscapes")
    np.testing.assert_array_equal(read(data).indices, INDICES)


def test_grey_values_are_indices() -> None:
    label_map = read(png_bytes(3, 2, 8, GREY, INDICES.tobytes()))
    assert (label_map.mode, label_map.indices.dtype.name) == ("L", "uint8")
    np.testing.assert_array_equal(label_map.indices, INDICES)


def test_16_bit_values_are_indices() -> None:
    label_map = read(png_bytes(3, 1, 16, GREY, np.array([0, 7, 26001], ">u2").tobytes()))
    assert (label_map.mode, label_map.indices.dtype.name) == ("I;16", "int32")
    assert label_map.indices.tolist() == [[0, 7, 26001]]


def test_1_bit_values_are_0_and_1() -> None:
    label_map = read(png_bytes(4, 1, 1, GREY, bytes([0b0110_0000])))
    assert (label_map.mode, label_map.indices.dtype.name) == ("1", "uint8")
    assert label_map.indices.tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize(
    ("bits", "row", "expected"),
    [
        (1, bytes([0b0110_0000]), [0, 1, 1, 0]),
        (2, bytes([0b00_01_10_11]), [0, 1, 2, 3]),
        (4, bytes([0x0F, 0xA1]), [0, 15, 10, 1]),
    ],
)
def test_palettes_of_few_bits_keep_their_indices(
    bits: int, row: bytes, expected: list[int]
) -> None:
    label_map = read(png_bytes(4, 1, bits, PALETTE, row, PLTE))
    assert (label_map.mode, label_map.indices.tolist()) == ("P", [expected])


def test_transparency_does_not_change_indices() -> None:
    data = png_bytes(4, 1, 8, PALETTE, bytes([0, 1, 2, 3]), PLTE, chunk(b"tRNS", bytes([0, 128])))
    assert read(data).indices.tolist() == [[0, 1, 2, 3]]


def test_equal_colours_in_the_file_do_not_merge_indices() -> None:
    data = png_bytes(4, 1, 8, PALETTE, bytes([0, 1, 2, 3]), chunk(b"PLTE", bytes(12)))
    assert read(data).indices.tolist() == [[0, 1, 2, 3]]


def test_label_maps_are_never_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("convert was called")

    monkeypatch.setattr(Image.Image, "convert", never)
    read(label_png(INDICES))
    read(png_bytes(3, 2, 8, GREY))
    read(png_bytes(3, 1, 16, GREY))
    read(png_bytes(4, 1, 1, GREY))
    read(png_bytes(3, 1, 8, RGB), colours=PALETTES["voc"])
    read(png_bytes(3, 1, 8, RGBA), colours=PALETTES["voc"])


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_2_and_4_bits_is_an_error(bits: int) -> None:
    assert error_of(png_bytes(4, 1, bits, GREY)).detail == (
        "labels: expected a label map (PNG of mode P, L, 1 or I;16), got grey with "
        f"{bits} bits. Its values may have been scaled. Save the map as mode P or L, with 8 bits."
    )


@pytest.mark.parametrize(
    ("bits", "colour_type", "got"),
    [
        (8, GREY_ALPHA, "grey with alpha with 8 bits"),
        (16, RGB, "RGB with 16 bits"),
        (16, RGBA, "RGBA with 16 bits"),
        (8, 5, "an unknown colour type with 8 bits"),
        (7, GREY, "grey with 7 bits"),
    ],
)
def test_other_modes_are_an_error(bits: int, colour_type: int, got: str) -> None:
    error = error_of(png_bytes(2, 1, bits, colour_type), colours=PALETTES["voc"])
    assert (error.status, error.got) == (422, got)


# Colours


def test_colours_are_looked_up_in_the_named_palette() -> None:
    colours = PALETTES["voc"].paint(INDICES)
    label_map = read(colour_png(colours), colours=PALETTES["voc"])
    assert (label_map.mode, label_map.indices.dtype.name) == ("RGB", "uint8")
    np.testing.assert_array_equal(label_map.indices, INDICES)


def test_class_and_void_indices_are_recovered_from_colours() -> None:
    for row in PALETTES.values():
        indices = np.array([[*range(len(row.class_names)), row.ignore_index]], dtype=np.uint8)
        if not row.has_void:
            indices = indices[:, : row.num_classes]
        shared = {classes[0] for classes in row.shared_colours().values()}
        data = colour_png(row.paint(indices))
        decoded = read(data, encoding="rgb", colours=row, colour_classes=shared).indices
        # Later classes of a shared colour are read as the first.
        np.testing.assert_array_equal(row.paint(decoded), row.paint(indices))
        is_own = np.isin(indices, [i for group in row.shared_colours().values() for i in group])
        np.testing.assert_array_equal(decoded[~is_own], indices[~is_own])


def test_unevaluated_colours_of_cityscapes_are_void() -> None:
    colours = np.array([[[111, 74, 0], [81, 0, 81], [128, 64, 128]]], dtype=np.uint8)
    assert read(colour_png(colours), colours=PALETTES["cityscapes"]).indices.tolist() == [
        [255, 255, 0]
    ]


def test_alpha_is_dropped_with_a_warning_if_translucent() -> None:
    colours = np.array([[[128, 0, 0, 255], [0, 128, 0, 255]]], dtype=np.uint8)
    label_map = read(colour_png(colours), colours=PALETTES["voc"])
    assert (label_map.mode, label_map.indices.tolist(), label_map.warnings) == (
        "RGBA",
        [[1, 2]],
        (),
    )
    colours[0, 0, 3] = 128
    assert read(colour_png(colours), colours=PALETTES["voc"]).warnings == (
        "labels: transparency was dropped (translucent pixels: 1).",
    )


def test_colours_without_a_palette_are_an_error_with_a_fix() -> None:
    assert error_of(png_bytes(2, 1, 8, RGB, TWO_COLOURS)).detail == (
        "labels: expected indices (PNG of mode P or L), or colours of a named palette, got mode "
        "RGB and no palette. Name the palette (palette=voc, or cityscapes, ade20k, cocostuff, "
        "camvid, pascal_context, pascal_context_59, okabe_ito, generated), send your own, or save "
        "the map as mode P or L."
    )


def test_colours_are_an_error_if_indices_are_announced() -> None:
    error = error_of(
        png_bytes(2, 1, 8, RGB, TWO_COLOURS), encoding="index", colours=PALETTES["voc"]
    )
    assert error.detail == (
        "labels: expected indices (PNG of mode P or L), got colours (mode RGB). Use "
        "label_encoding=rgb and name the palette, or save the map as mode P or L."
    )


@pytest.mark.parametrize("encoding", ["auto", "index"])
@pytest.mark.parametrize("channels", [3, 4])
def test_equal_red_green_and_blue_are_indices(encoding: Encoding, channels: int) -> None:
    colours = np.full((2, 3, channels), 255, np.uint8)
    colours[:, :, :3] = INDICES[:, :, None]
    label_map = read(colour_png(colours), encoding=encoding)
    assert label_map.warnings == (
        "labels: red, green and blue are equal and were read as indices.",
    )
    assert not label_map.is_coloured
    np.testing.assert_array_equal(label_map.indices, INDICES)
    colours[1, 2, 2] += 1
    assert error_of(colour_png(colours), encoding=encoding).got.endswith(
        {"auto": "and no palette", "index": f"(mode {'RGBA'[:channels]})"}[encoding]
    )


def test_equal_red_green_and_blue_are_colours_of_a_named_palette() -> None:
    grey = np.full((2, 3, 3), 70, np.uint8)  # the colour of buildings
    label_map = read(colour_png(grey), colours=PALETTES["cityscapes"])
    assert (label_map.is_coloured, label_map.indices.tolist()) == (True, [[2] * 3] * 2)
    error = error_of(colour_png(grey + 1), colours=PALETTES["cityscapes"])
    assert error.fix == (
        "Red, green and blue are equal: use label_encoding=index if they are indices."
    )


def test_indices_are_an_error_if_colours_are_announced() -> None:
    error = error_of(png_bytes(2, 1, 8, GREY), encoding="rgb", colours=PALETTES["voc"])
    assert error.detail == (
        "labels: expected colours (PNG of mode RGB), got mode L. Use label_encoding=index."
    )


def test_a_named_palette_does_not_change_indices() -> None:
    data = png_bytes(4, 1, 8, PALETTE, bytes([3, 2, 1, 0]), PLTE)
    assert read(data, colours=PALETTES["voc"]).indices.tolist() == [[3, 2, 1, 0]]


def test_a_coloured_map_of_mode_p_can_be_read_by_its_colours() -> None:
    shuffled = chunk(b"PLTE", bytes([0, 128, 0, 128, 0, 0, 224, 224, 192]))
    data = png_bytes(3, 1, 8, PALETTE, bytes([0, 1, 2]), shuffled)
    assert read(data, encoding="rgb", colours=PALETTES["voc"]).indices.tolist() == [[2, 1, 255]]


def test_an_index_behind_the_end_of_plte_is_damage() -> None:
    data = png_bytes(2, 1, 8, PALETTE, bytes([0, 3]), chunk(b"PLTE", bytes(9)))
    assert (
        "behind the end of its own palette"
        in error_of(data, encoding="rgb", colours=PALETTES["voc"]).detail
    )


def test_unknown_colours_are_counted_located_and_listed() -> None:
    colours = PALETTES["voc"].paint(np.zeros((3, 4), dtype=np.uint8)).copy()
    colours[1, 2] = (1, 2, 3)
    colours[2, 0:2] = (9, 9, 9)
    error = error_of(colour_png(colours), colours=PALETTES["voc"])
    assert error.status == 422
    assert error.detail == (
        "labels: expected colours of the palette voc, got 2 other colours on 3 pixels, the first "
        "at (1, 2): (9, 9, 9), (1, 2, 3). JPEG compression and smooth resizing mix colours: "
        "use the original file, or unknown_colours=ignore."
    )


def test_at_most_ten_unknown_colours_are_listed() -> None:
    colours = np.full((1, 30, 3), 7, dtype=np.uint8)
    colours[0, :, 0] = np.arange(30)
    got = error_of(colour_png(colours), colours=PALETTES["voc"]).got
    assert got is not None
    assert got.startswith("30 other colours on 30 pixels, the first at (0, 0): (0, 7, 7), ")
    assert got.endswith("(9, 7, 7), …")


@pytest.mark.parametrize("block_pixels", [1, 2, 5, 6, 7])
def test_colours_are_looked_up_in_blocks(
    monkeypatch: pytest.MonkeyPatch, block_pixels: int
) -> None:
    monkeypatch.setattr(png, "_BLOCK_PIXELS", block_pixels)
    voc = PALETTES["voc"]
    test_unknown_colours_are_counted_located_and_listed()
    for data in (colour_png(voc.paint(INDICES)), label_png(INDICES)):
        np.testing.assert_array_equal(read(data, encoding="rgb", colours=voc).indices, INDICES)


ADE = PALETTES["ade20k"]
GREYS = colour_png(np.array([[[120] * 3, [140] * 3, [140] * 3]], np.uint8))


def test_a_colour_of_two_classes_is_an_error_that_names_them() -> None:
    assert error_of(GREYS, colours=ADE).detail == (
        "labels: expected colours that one class of the palette ade20k has, got (140, 140, 140) "
        "of road (6) and skyscraper (48) on 2 pixels, the first at (0, 1). Say which class it is, "
        "such as colour_classes=6, or save the map as mode P or L."
    )
    unnamed = own_palette(np.array([[1, 2, 3], [1, 2, 3]], np.uint8))
    error = error_of(colour_png(unnamed.colours[None, :1]), colours=unnamed)
    assert error.got == "(1, 2, 3) of 0 and 1 on 1 pixel, the first at (0, 0)"


@pytest.mark.parametrize("index", [6, 48])
def test_a_colour_of_two_classes_is_read_as_the_one_that_is_named(index: int) -> None:
    label_map = read(GREYS, colours=ADE, colour_classes={index, 0})
    assert label_map.indices.tolist() == [[0, index, index]]
    assert "such as colour_classes" in error_of(GREYS, colours=ADE, colour_classes={6, 48}).detail


def test_a_colour_of_two_classes_matters_only_where_it_occurs() -> None:
    colours = ADE.paint(np.array([[0, 149, 255]], np.uint8))
    assert read(colour_png(colours), colours=ADE).indices.tolist() == [[0, 149, 255]]


def test_unknown_colours_are_ignored_on_request_with_a_warning() -> None:
    colours = PALETTES["camvid"].paint(np.array([[0, 10, 11], [3, 3, 3]], np.uint8)).copy()
    colours[1, 1:] = [[255, 69, 0], [1, 2, 3]]
    label_map = read(colour_png(colours), colours=PALETTES["camvid"], unknown_colours="ignore")
    assert label_map.indices.tolist() == [[0, 10, 11], [3, 11, 11]]
    assert label_map.warnings == (
        (
            "labels: colours that the palette camvid does not have are ignored: "
            "2 other colours on 2 pixels: (1, 2, 3), (255, 69, 0)."
        ),
    )


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_memory_for_unknown_colours_is_reserved_and_given_back(mode: str) -> None:
    colours = np.full((30, 40, 3), 9, np.uint8)
    target = io.BytesIO()
    Image.fromarray(colours).convert(mode).save(target, "PNG")
    reserved: list[int] = []
    label_map = png.read_label_map(
        target.getvalue(),
        where="labels",
        encoding="rgb",
        palette=PALETTES["voc"],
        unknown_colours="ignore",
        max_pixels=1 << 20,
        grow=reserved.append,
    )
    assert sum(reserved) == label_map.indices.nbytes
    assert 16 * 30 * 40 in reserved


def test_a_palette_without_void_has_no_colour_for_it() -> None:
    own = own_palette(np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    colours = own.paint(np.array([[0, 1, 255]], np.uint8))
    assert "(0, 0, 0)" in error_of(colour_png(colours), colours=own).detail


def test_the_colours_of_mode_p_are_those_of_the_file() -> None:
    label_map = read(label_png(INDICES))
    assert label_map.colours.tolist() == PALETTES["voc"].colours.tolist()
    assert read(png_bytes(2, 1, 8, GREY)).colours.shape == (0, 3)
    data = colour_png(PALETTES["voc"].paint(INDICES))
    assert read(data, colours=PALETTES["voc"]).colours.size == 0


# Sizes


def test_the_size_is_checked_before_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr(rasters.Raster, "decode", never)
    sizes = []
    with pytest.raises(AssertionError, match="the pixels were decoded"):
        read(png_bytes(3, 2, 8, GREY), check_size=lambda *size: sizes.append(size))
    assert sizes == [(2, 3)]
    assert error_of(png_bytes(3, 2, 8, GREY), max_pixels=5).status == 413


@pytest.mark.parametrize("side", [20_000, (1 << 31) - 1])
def test_a_decompression_bomb_costs_only_its_header(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, GREY, 0, 0, 0)
    bomb = png.PNG_SIGNATURE + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b""))
    )
    error = error_of(bomb)
    assert isinstance(error, TooLarge)
    assert error.extensions == {"limit": 1 << 24}
    assert error.detail == (
        f"labels: expected at most 16777216 pixels, got {side} x {side} = {side * side}."
    )


def test_the_limit_on_pixels_is_not_that_of_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    assert read(png_bytes(3, 2, 8, GREY)).indices.shape == (2, 3)
    assert png.read_photo(png_bytes(3, 2, 8, RGB), where="image", max_pixels=6).shape == (2, 3, 3)


def test_compressed_text_is_never_decompressed() -> None:
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 22)))
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1 << 22)))
    data = png_bytes(3, 2, 8, GREY, INDICES.tobytes(), text, profile, after=text)
    np.testing.assert_array_equal(read(data).indices, INDICES)


# Damage


def test_a_file_cut_at_any_byte_is_an_error() -> None:
    data = label_png(INDICES)
    for length in range(len(data)):
        assert error_of(data[:length]).status == 422


def test_a_file_with_a_flipped_bit_is_an_error() -> None:
    data = png_bytes(3, 2, 8, GREY, INDICES.tobytes())
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        assert error_of(bytes(flipped)).status in (413, 422)


def test_incomplete_pixels_with_valid_checksums_are_an_error() -> None:
    compressed = zlib.compress(random.Random(0).randbytes(64 * 65))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, GREY, 0, 0, 0))
    for length in (0, 1, 2, 10, len(compressed) // 2):
        data = b"".join(
            (
                png.PNG_SIGNATURE,
                header,
                chunk(b"IDAT", compressed[:length]),
                chunk(b"IEND", b""),
            )
        )
        assert error_of(data).detail == (
            "labels: expected a complete file, got a damaged file: its pixels cannot be decoded."
        )


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"", "another format"),
        (b"GIF89a", "another format"),
        (b"\xff\xd8\xff\xe0", "JPEG, which is lossy and changes class indices"),
        (png.PNG_SIGNATURE, "a damaged file: it ends too early"),
        (
            png.PNG_SIGNATURE + chunk(b"IEND", b""),
            "a damaged file: IHDR is missing, repeated or not its first chunk",
        ),
        (
            png.PNG_SIGNATURE + chunk(b"IHDR", b"") + chunk(b"IEND", b""),
            "a damaged file: its IHDR chunk has a wrong length",
        ),
        (
            png.PNG_SIGNATURE + 2 * chunk(b"IHDR", bytes(13)),
            "a damaged file: IHDR is missing, repeated or not its first chunk",
        ),
        (png_bytes(0, 0, 8, GREY), "a damaged file: its width or height is out of range"),
        (png_bytes(2, 1, 8, GREY)[:-1], "a damaged file: it ends too early"),
        (png_bytes(2, 1, 8, GREY)[:-1] + b"\0", "a damaged file: a checksum is wrong"),
    ],
)
def test_damage_is_described(data: bytes, got: str) -> None:
    error = error_of(data)
    assert (type(error), error.got) == (IllPosed, got)


def test_too_many_chunks_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "_MAX_CHUNKS", 10)
    data = png_bytes(2, 1, 8, GREY, None, *[chunk(b"tEXt", b"")] * 10)
    assert "more than 10 chunks" in error_of(data).detail


def test_an_animated_png_is_an_error() -> None:
    target = io.BytesIO()
    first, second = (Image.new("P", (4, 4), index) for index in (0, 1))
    first.save(target, "PNG", save_all=True, append_images=[second])
    error = error_of(target.getvalue())
    assert error.detail == "labels: expected one picture, got an animated PNG."


def test_bytes_behind_the_end_are_ignored() -> None:
    np.testing.assert_array_equal(
        read(png_bytes(3, 2, 8, GREY, INDICES.tobytes()) + b"tail").indices, INDICES
    )


def test_random_pixels_behind_a_valid_header_are_an_error() -> None:
    generator = random.Random(1)
    for colour_type, bits in ((GREY, 8), (PALETTE, 4), (GREY, 16), (RGB, 8)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, bits, colour_type, 0, 0, 1))
        for _ in range(50):
            data = b"".join(
                (
                    png.PNG_SIGNATURE,
                    header,
                    chunk(b"PLTE", generator.randbytes(generator.randrange(20))),
                    chunk(b"IDAT", b"\x78\x9c" + generator.randbytes(generator.randrange(60))),
                    chunk(b"IEND", b""),
                )
            )
            assert error_of(data, colours=PALETTES["voc"]).status == 422


# Photos


def photo(data: bytes, max_pixels: int = 1 << 20) -> npt.NDArray[np.uint8]:
    return png.read_photo(data, where="image", max_pixels=max_pixels)


COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_a_png_photo_is_read_exactly() -> None:
    np.testing.assert_array_equal(photo(colour_png(COLOURS)), COLOURS)


def test_transparency_of_a_photo_is_dropped() -> None:
    translucent = np.dstack([COLOURS, np.full((5, 7), 9, dtype=np.uint8)])
    np.testing.assert_array_equal(photo(colour_png(translucent)), COLOURS)


def test_a_grey_photo_becomes_three_equal_channels() -> None:
    grey = COLOURS[:, :, 0]
    np.testing.assert_array_equal(photo(colour_png(grey)), np.dstack([grey] * 3))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(10))
def test_photos_are_turned_upright_by_exif(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x010E] = "another tag before it"
    exif[0x0112] = orientation
    target = io.BytesIO()
    flat = np.zeros((8, 16, 3), dtype=np.uint8)
    flat[:, :8] = 255  # one corner is red, so that no two orientations agree
    flat[:4, :8] = (255, 0, 0)
    picture = Image.fromarray(flat)
    picture.save(
        target, file_format, exif=exif, **({"subsampling": 0} if "J" in file_format else {})
    )
    turned = ImageOps.exif_transpose(Image.open(target)).convert("RGB")
    upright = photo(target.getvalue())
    np.testing.assert_array_equal(upright, np.array(turned))
    assert upright.shape == ((16, 8, 3) if 5 <= orientation <= 8 else (8, 16, 3))


@pytest.mark.parametrize(
    "exif",
    [b"", b"II*\0", b"MM\0*\0\0\0\x08", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\x09\0", b"??"],
)
def test_a_photo_with_damaged_exif_is_not_turned(exif: bytes) -> None:
    data = png_bytes(7, 5, 8, RGB, COLOURS.tobytes(), chunk(b"eXIf", exif))
    np.testing.assert_array_equal(photo(data), COLOURS)


ORIENTED = np.zeros((4, 6, 3), np.uint8)
ORIENTED[0, 0] = 255
ORIENTED[1, 2] = 99


def exif_of(order: str, kind: int, number: bytes, count: int = 1) -> bytes:
    """EXIF data with one tag of another type before the orientation."""
    entries = struct.pack(order + "HHI4s", 0x010F, 2, 4, b"abc")
    value = number if len(number) <= 4 else struct.pack(order + "I", 38)
    entries += struct.pack(order + "HHI4s", 0x0112, kind, count, value)
    header = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, 2)
    return header + entries + bytes(4) + number


def xmp_of(text: str) -> bytes:
    return b"<x:xmpmeta><rdf:Description %s</x:xmpmeta>" % text.encode()


EXIF = {
    f"{order} {kind} {values}": exif_of(order, kind, struct.pack(order + code, *values))
    for order in "<>"
    for kind, code, values in (
        (3, "H", [6]),
        (4, "L", [6]),
        (5, "2L", [12, 2]),
        (6, "b", [6]),
        (8, "h", [6]),
        (9, "l", [6]),
        (10, "2l", [-6, -1]),
        (11, "f", [6.0]),
        (12, "d", [6.0]),
        (1, "B", [6]),
        (7, "B", [6]),
        (3, "H", [9]),
        (4, "L", [1 << 31]),
        (5, "2L", [6, 4]),
    )
}
XMP = [
    xmp_of('tiff:Orientation="6"/>'),
    xmp_of("><tiff:Orientation>8</tiff:Orientation>"),
    xmp_of('tiff:Orientation="0"/>'),
    xmp_of('exif:Orientation="6"/>'),
]


def jpeg_with(*segments: bytes) -> bytes:
    target = io.BytesIO()
    Image.fromarray(ORIENTED).save(target, "JPEG", subsampling=0)
    head, rest = target.getvalue()[:2], target.getvalue()[2:]
    marked = (b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in segments)
    return head + b"".join(marked) + rest


def png_with(*chunks: bytes) -> bytes:
    return png_bytes(6, 4, 8, RGB, ORIENTED.tobytes(), *chunks)


def as_pillow_turns(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as photo:
        return np.array(ImageOps.exif_transpose(photo).convert("RGB"))


APP1 = b"http://ns.adobe.com/xap/1.0/\0"
ITXT = b"XML:com.adobe.xmp\0"
PHOTOS = {
    **{f"jpeg {name}": jpeg_with(b"Exif\0\0" + exif) for name, exif in EXIF.items()},
    **{f"png {name}": png_with(chunk(b"eXIf", exif)) for name, exif in EXIF.items()},
    **{f"jpeg xmp {i}": jpeg_with(APP1 + xmp) for i, xmp in enumerate(XMP)},
    **{
        f"png xmp {i}": png_with(chunk(b"iTXt", ITXT + bytes(4) + xmp)) for i, xmp in enumerate(XMP)
    },
    "png compressed xmp": png_with(chunk(b"iTXt", ITXT + b"\1\0\0\0" + zlib.compress(XMP[0]))),
    "exif before xmp": jpeg_with(b"Exif\0\0" + EXIF["> 4 [6]"], APP1 + XMP[1]),
    "exif twice": jpeg_with(b"Exif\0\0Exif\0\0" + EXIF["> 3 [6]"]),
    "png of ImageMagick": png_with(
        chunk(
            b"zTXt",
            b"Raw profile type exif\0\0"
            + zlib.compress(b"\nexif\n 99\n" + EXIF["> 4 [6]"].hex().encode() + b"\n"),
        )
    ),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_are_turned_as_pillow_turns_them(name: str) -> None:
    sizes: list[tuple[int, int]] = []
    upright = png.read_photo(
        PHOTOS[name],
        where="image",
        check_size=lambda height, width: sizes.append((height, width)),
        max_pixels=99,
    )
    np.testing.assert_array_equal(upright, as_pillow_turns(PHOTOS[name]))
    assert sizes == [upright.shape[:2]]


def test_some_of_these_photos_are_turned() -> None:
    turned = [name for name, data in PHOTOS.items() if as_pillow_turns(data).shape[0] == 6]
    assert 30 < len(turned) < 45


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"iTXt", ITXT + b"\1\0\0\0" + zlib.compress(bytes(1 << 22))),
        chunk(b"iTXt", ITXT + b"\1\0\0\0damaged"),
        chunk(b"eXIf", b"MM\0*" + bytes(1 << 21)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\n\n\nnot hex")),
        chunk(b"eXIf", exif_of(">", 5, struct.pack(">2L", 6, 0))),
        chunk(b"eXIf", exif_of(">", 11, struct.pack(">f", float("nan")))),
        chunk(b"eXIf", exif_of(">", 12, struct.pack(">d", float("inf")))),
    ],
)
def test_a_photo_with_damaged_metadata_is_not_turned(metadata: bytes) -> None:
    upright = png.read_photo(png_with(metadata), where="image", max_pixels=99)
    np.testing.assert_array_equal(upright, ORIENTED)


def test_labels_are_never_turned_by_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    target = io.BytesIO()
    Image.fromarray(INDICES).save(target, "PNG", exif=exif)
    np.testing.assert_array_equal(read(target.getvalue()).indices, INDICES)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_too_large_a_photo_is_an_error(file_format: str) -> None:
    with pytest.raises(TooLarge) as error:
        photo(colour_png(COLOURS, file_format), max_pixels=34)
    assert error.value.detail == "image: expected at most 34 pixels, got 5 x 7 = 35."


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_photo_cut_anywhere_is_an_error(file_format: str) -> None:
    data = colour_png(COLOURS, file_format)
    # A JPEG decodes in full from a file that lacks the two bytes of its end marker.
    for length in range(0, len(data) - 4, 7):
        with pytest.raises(IllPosed):
            photo(data[:length])


def test_photos_in_other_formats_are_an_error() -> None:
    with pytest.raises(IllPosed) as error:
        photo(colour_png(COLOURS, "BMP"))
    assert error.value.detail == "image: expected a PNG or JPEG file, got another format."


def test_a_photo_of_16_bit_grey_is_an_error() -> None:
    with pytest.raises(IllPosed) as error:
        photo(png_bytes(2, 1, 16, GREY))
    assert error.value.detail == "image: expected a photo with 8 bits, got grey with 16 bits."


# A real file


@fcn_demo.needed
def test_the_labels_of_the_fcn_demo_have_the_published_counts() -> None:
    label_map = read((fcn_demo.DIRECTORY / "label.png").read_bytes())
    values, counts = np.unique(label_map.indices, return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {
        0: 54389,
        2: 34183,
        15: 61143,
        255: 17285,
    }


@fcn_demo.needed
def test_the_prediction_of_the_fcn_demo_is_read_by_its_colours() -> None:
    truth = read((fcn_demo.DIRECTORY / "label.png").read_bytes()).indices
    prediction = read(
        (fcn_demo.DIRECTORY / "output.png").read_bytes(), colours=PALETTES["voc"]
    ).indices
    values, counts = np.unique(prediction[truth != 255], return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {
        0: 66092,
        2: 37122,
        15: 46501,
    }


@fcn_demo.needed
def test_the_photo_of_the_fcn_demo_has_the_size_of_its_labels() -> None:
    assert photo((fcn_demo.DIRECTORY / "image.jpg").read_bytes()).shape == (500, 334, 3)
