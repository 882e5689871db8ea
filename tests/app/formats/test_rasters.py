"""Label maps in TIFF and BMP: those that are read, and the errors for all others."""

import io
import random
import struct
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from app.errors import IllPosed, RequestError, TooLarge
from app.formats import png
from app.images.palettes import PALETTES

INDICES = np.array([[0, 1, 2], [255, 20, 0]], dtype=np.uint8)
BITS = np.array([[True, False, True], [False, False, True]])
LOSSLESS = ["raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits"]


def saved(picture, file_format, **options):
    target = io.BytesIO()
    picture.save(target, file_format, **options)
    return target.getvalue()


def read(data, **options):
    options = {"palette": None, "max_pixels": 1 << 20, **options}
    return png.read_label_map(data, where="labels", **options)


def palette_picture():
    picture = Image.fromarray(INDICES)
    picture.putpalette(PALETTES["voc"].colours.tobytes())
    return picture


def grey_16(order):
    return Image.frombytes(
        {"<": "I;16", ">": "I;16B"}[order], (2, 1), struct.pack(order + "2H", 7, 26001)
    )


@pytest.mark.parametrize("compression", LOSSLESS)
def test_tiffs_of_every_lossless_compression_are_read(compression):
    for mode, picture in (("L", Image.fromarray(INDICES)), ("P", palette_picture())):
        label_map = read(saved(picture, "TIFF", compression=compression))
        assert label_map.mode == mode
        np.testing.assert_array_equal(label_map.indices, INDICES)


def test_tiffs_of_other_depths_are_read():
    label_map = read(saved(Image.fromarray(BITS), "TIFF"))
    assert (label_map.mode, label_map.indices.tolist()) == ("1", BITS.astype(int).tolist())
    for order in "<>":
        label_map = read(saved(grey_16(order), "TIFF"))
        assert (label_map.mode, label_map.indices.tolist()) == ("I;16", [[7, 26001]])
    wide = Image.fromarray(np.array([[70000, -1]], np.int32))
    assert read(saved(wide, "TIFF")).indices.tolist() == [[70000, -1]]


def test_bmps_are_read():
    for mode, picture in (("L", Image.fromarray(INDICES)), ("P", palette_picture())):
        label_map = read(saved(picture, "BMP"))
        assert label_map.mode == mode
        np.testing.assert_array_equal(label_map.indices, INDICES)
    label_map = read(saved(Image.fromarray(BITS), "BMP"))
    assert (label_map.mode, label_map.indices.tolist()) == ("1", BITS.astype(int).tolist())


@pytest.mark.parametrize("file_format", ["TIFF", "BMP"])
def test_colours_are_those_of_a_palette_or_equal(file_format):
    voc = PALETTES["voc"]
    coloured = read(saved(Image.fromarray(voc.paint(INDICES)), file_format), palette=voc)
    assert coloured.is_coloured
    np.testing.assert_array_equal(coloured.indices, INDICES)
    grey = saved(Image.fromarray(np.dstack([INDICES] * 3)), file_format)
    np.testing.assert_array_equal(read(grey).indices, INDICES)


@pytest.mark.parametrize("orientation", [2, 6, 8])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_is_never_turned(compression, orientation):
    data = saved(
        Image.fromarray(INDICES), "TIFF", compression=compression, tiffinfo={274: orientation}
    )
    np.testing.assert_array_equal(read(data).indices, INDICES)


def four_bits():
    """A BMP of 4 bits whose palette is grey, which Pillow takes for 8 bits."""
    header = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 4, 0, 4, 0, 0, 16, 0)
    colours = b"".join(bytes([index] * 3 + [0]) for index in range(16))
    pixels = bytes([0x12, 0, 0, 0])
    offset = 14 + len(header) + len(colours)
    start = b"BM" + struct.pack("<IHHI", offset + 4, 0, 0, offset)
    return start + header + colours + pixels


def run_lengths():
    data = bytearray(saved(palette_picture(), "BMP"))
    struct.pack_into("<I", data, 30, 1)
    return bytes(data)


def tiff_of(width, height, *entries, samples=1):
    """A TIFF that has one byte of pixels and more entries in its directory."""
    rows = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (262, 3, 1, 1)]
    rows += [(273, 4, 1, 8), (277, 3, 1, samples), (279, 4, 1, 1), *entries]
    directory = b"".join(struct.pack("<HHII", *row) for row in sorted(rows))
    return (
        b"II*\0"
        + struct.pack("<I", 10)
        + b"\x07\0"
        + struct.pack("<H", len(rows))
        + directory
        + bytes(4)
    )


COLOURS = Image.fromarray(PALETTES["voc"].paint(INDICES))
REFUSED = {
    "TIFF of several pictures": (
        saved(COLOURS, "TIFF", save_all=True, append_images=[COLOURS]),
        "expected one picture, got a TIFF of several.",
    ),
    "TIFF in JPEG": (
        saved(COLOURS, "TIFF", compression="jpeg"),
        "expected a TIFF with compression none, LZW, Deflate, PackBits, got another one.",
    ),
    "TIFF of floats": (
        saved(Image.fromarray(INDICES.astype(np.float32)), "TIFF"),
        "got grey with 32 bits, mode F.",
    ),
    "TIFF where 0 is white": (
        saved(Image.fromarray(INDICES), "TIFF", tiffinfo={262: 0}),
        "got grey with 0 for white with 8 bits.",
    ),
    "TIFF in CMYK": (saved(COLOURS.convert("CMYK"), "TIFF"), "got other colours with 8 bits."),
    "TIFF with alpha": (saved(COLOURS.convert("LA"), "TIFF"), "got grey with 8 bits, mode LA."),
    "TIFF of five samples": (
        tiff_of(1, 1, samples=5),
        "expected a TIFF of at most 4 samples per pixel, got 5.",
    ),
    "TIFF of 60000 samples": (
        tiff_of(1, 1, samples=60000),
        "expected a TIFF of at most 4 samples per pixel, got 60000.",
    ),
    "TIFF without palette": (saved(COLOURS, "TIFF"), "got mode RGB and no palette."),
    "BMP of grey with 4 bits": (four_bits(), "got mode L with 4 bits."),
    "BMP of run lengths": (run_lengths(), "expected a BMP without compression, got run lengths."),
    "cut TIFF": (saved(COLOURS, "TIFF")[:9], "got a damaged file: it ends too early."),
    "cut BMP": (saved(palette_picture(), "BMP")[:-2], "got a damaged file: its pixels cannot be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_all_others_are_an_error(case, caplog):
    data, sentence = REFUSED[case]
    with pytest.raises(IllPosed) as error:
        read(data)
    assert sentence in error.value.detail
    assert not caplog.records


def test_the_smallest_tiff_is_read():
    assert read(tiff_of(1, 1)).indices.tolist() == [[7]]


@pytest.mark.parametrize(
    "entry",
    [
        (324, 4, 1 << 20, 8),  # as many offsets of tiles
        (320, 3, 1 << 30, 8),
        (258, 3, 1, 8),  # again
        (259, 5, 1, 8),  # a fraction
        (322, 4, 1, 1 << 30),
        (338, 4, 4, 1 << 20),
    ],
)
def test_a_tag_that_would_cost_memory_is_damage(entry):
    rows = [entry, (323, 4, 1, 1 << 20)] if entry[0] == 322 else [entry]
    with pytest.raises(IllPosed, match="got a damaged file"):
        read(tiff_of(1, 1, *rows))


def test_other_tags_are_not_read():
    many = [(60000 + number, 7, 100, 0) for number in range(4000)]
    assert read(tiff_of(1, 1, *many)).indices.tolist() == [[7]]


@pytest.mark.parametrize(
    "data", [tiff_of(1 << 16, 1 << 16), four_bits()[:18] + b"\xff\xff\0\0" * 2]
)
def test_the_size_is_checked_before_pixels_are_decoded(data):
    data += bytes(64)
    if data[:2] == b"BM":
        data = data[:26] + four_bits()[26:]
    with pytest.raises(TooLarge):
        read(data)


@pytest.mark.parametrize(
    "name", ["TIFF raw", "TIFF tiff_lzw", "TIFF tiff_deflate", "TIFF packbits", "BMP"]
)
def test_a_damaged_file_ends_with_a_sentence(name, capfd):
    file_format, *compression = name.split()
    options = {"compression": compression[0]} if compression else {}
    content = saved(palette_picture(), file_format, **options)
    numbers = random.Random(name)
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(numbers.choice([1, 2, 4])):
            damaged[numbers.randrange(len(damaged))] = numbers.choice(
                [0, 255, numbers.randrange(256)]
            )
        with suppress(RequestError):
            assert read(damaged).indices.ndim == 2
    for end in range(len(content)):
        with suppress(RequestError):
            read(content[:end])
    assert capfd.readouterr() == ("", "")
