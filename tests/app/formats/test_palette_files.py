"""Palettes of users: the files that are read, and the errors for all others."""

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RequestError
from app.formats import palette_files
from app.images.palettes import PALETTES, Palette

COLOURS = [[0, 0, 0], [64, 128, 64], [192, 0, 128]]
NAMES = ("Void", "Animal", "Archway")

FILES = {
    "label_colors.txt of CamVid": "0 0 0\t\tVoid\n64 128 64\tAnimal\n192 0 128\tArchway\n",
    "label_colors.txt with a comment": (
        "# color (RGB) label\n0 0 0 Void\n64 128 64 Animal\n192 0 128 Archway\n"
    ),
    "class_dict.csv": "name,r,g,b\nVoid,0,0,0\nAnimal,64,128,64\nArchway,192,0,128\n",
    "class_dict.csv of Windows": "name, r, g, b\r\nVoid, 0, 0, 0\r\nAnimal,64, 128,64\r\n"
    "Archway,192,0,128\r\n\r\n",
    "colours first, as CSV": "r,g,b,name\n0,0,0,Void\n64,128,64,Animal\n192,0,128,Archway",
    "names first, with tabs": "Void\t0\t0\t0\nAnimal\t64\t128\t64\nArchway\t192\t0\t128\n",
    "names first, with spaces": "Void 0 0 0\nAnimal 64 128 64\nArchway 192 0 128\n",
    "labelmap.txt of CVAT": (
        "# label:color_rgb:parts:actions\nVoid:0,0,0::\nAnimal:64,128,64::\nArchway:192,0,128::\n"
    ),
    "with numbers": "0 0 0 0 Void\n1 64 128 64 Animal\n2 192 0 128 Archway\n",
    "with numbers and names first": "0,Void,0,0,0\n1,Animal,64,128,64\n2,Archway,192,0,128\n",
    "colours in parentheses": "Void (0, 0, 0)\nAnimal (64, 128, 64)\nArchway (192, 0, 128)\n",
    "GIMP": (
        "GIMP Palette\nName: mine\nColumns: 2\n# by hand\n"
        "  0   0   0\tVoid\n 64 128  64\tAnimal\n192   0 128\tArchway\n"
    ),
    "with a byte-order mark": "\ufeff0 0 0 Void\n64 128 64 Animal\n192 0 128 Archway\n",
    "JSON as the service answers": json.dumps(
        {"name": "mine", "class_names": NAMES, "colours": [*COLOURS, [1, 1, 1]]}
    ),
    "JSON by name": json.dumps(dict(zip(NAMES, COLOURS, strict=True))),
    "JSON with hexadecimal colours": '{"Void": "#000000", "Animal": "#408040", '
    '"Archway": "#C00080"}',
    "JSON as a list of objects": json.dumps(
        [
            {"id": i, "name": name, "color": colour}
            for i, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True))
        ]
    ),
    "JSON of Mapillary": json.dumps(
        {
            "labels": [
                {"name": name, "readable": name, "color": colour}
                for name, colour in zip(NAMES, COLOURS, strict=True)
            ]
        }
    ),
}


def read(text: str | bytes) -> Palette:
    return palette_files.decode(text.encode() if isinstance(text, str) else text, "palette")


@pytest.mark.parametrize("case", FILES)
def test_colours_and_names_are_read_in_the_order_of_the_file(case: str) -> None:
    palette = read(FILES[case])
    assert palette.colours[:3].tolist() == COLOURS
    assert (palette.class_names, palette.num_classes, palette.name) == (NAMES, 3, "own")


WITHOUT_NAMES = {
    "text": "0 0 0\n64 128 64\n192 0 128\n",
    "CSV": "0,0,0\n64,128,64\n192,0,128\n",
    "JSON": json.dumps(COLOURS),
    "GIMP": "GIMP Palette\n0 0 0 Untitled\n64 128 64 Untitled\n192 0 128\n",
    "JSON as the service answers": json.dumps({"colours": COLOURS}),
}


@pytest.mark.parametrize("case", WITHOUT_NAMES)
def test_names_are_optional(case: str) -> None:
    palette = read(WITHOUT_NAMES[case])
    assert palette.colours[:3].tolist() == COLOURS
    assert (palette.class_names, palette.num_classes) == ((), 3)


def test_names_keep_their_spaces_and_other_scripts() -> None:
    palette = read("1 2 3 traffic light\n4 5 6 Straßen-Schild\nchest of drawers 7 8 9\n")
    assert palette.class_names == ("traffic light", "Straßen-Schild", "chest of drawers")


def test_a_file_that_begins_with_grey_rows_has_no_numbers() -> None:
    palette = read("0 0 0 a\n1 1 1 b\n")
    assert palette.colours[:2].tolist() == [[0, 0, 0], [1, 1, 1]]


def test_four_numbers_are_a_colour_with_a_number_or_an_error() -> None:
    for lines in ("0 0 0 0\n128 0 0 1\n", "0 0 0 0\n1 128 0 0\n"):
        assert read(lines).colours[:2].tolist() == [[0, 0, 0], [128, 0, 0]]
    for lines in ("7 128 64 128 road\n8 244 35 232 walk\n", "0 0 0 255\n128 0 0 255\n"):
        with pytest.raises(RequestError, match="four numbers in each line"):
            read(lines)


def test_alpha_in_a_gimp_file_is_no_name() -> None:
    palette = read("GIMP Palette\nChannels: RGBA\n 0 0 0 255 road\n128 0 0 0\n")
    assert palette.class_names == ("road", "")
    assert palette.colours[:2].tolist() == [[0, 0, 0], [128, 0, 0]]


@pytest.mark.parametrize("name", PALETTES)
def test_the_answer_of_the_service_is_the_same_palette(name: str) -> None:
    row = PALETTES[name]
    palette = read(json.dumps({**row.fields(), "colours": row.colours.tolist()}))
    assert palette.class_names == row.class_names
    count = row.num_classes
    assert np.array_equal(palette.colours[:count], row.colours[:count])


MALFORMED = {
    "nothing": ("", "palette: expected a colour for each class, got none."),
    "a comment alone": ("# colours\n", "palette: expected a colour for each class, got none."),
    "a word": (
        "0 0 0 void\nroad\n",
        "palette, line 2: expected R G B name, or name R G B, got 'road'.",
    ),
    "two numbers": (
        "0 0 0\n\n0 0\n",
        "palette, line 3: expected R G B name, or name R G B, got '0 0'.",
    ),
    "a large number": (
        "0 0 256 road\n",
        "palette, line 1: expected red, green and blue from 0 to 255, got '256'.",
    ),
    "a negative number": (
        "road 0 0 -1\n",
        "palette, line 1: expected R G B name, or name R G B, got 'road 0 0 -1'.",
    ),
    "a GIMP file with another line": (
        "GIMP Palette\nName: a\nroad\n",
        "palette, line 3: expected R G B name, got 'road'.",
    ),
    "a long name": (
        f"0 0 0 {'a' * 101}",
        "palette, line 1: expected a name of at most 100 characters, got 101.",
    ),
    "a long line": (
        f"0 0 0 {' ' * 400}a",
        "palette, line 1: expected a line of at most 256 characters, got 407.",
    ),
    "a name with an escape": (
        "0 0 0 a\x1b[2J",
        "palette, line 1: expected a name of printable characters, got 'a\\x1b[2J'.",
    ),
    "too many": (
        "0 0 0\n" * 257,
        "palette: expected at most 256 colours, got 257. Leave out the colours of no class.",
    ),
    "too many in JSON": (
        json.dumps([[0, 0, 0]] * 257),
        "palette: expected at most 256 colours, got 257. Leave out the colours of no class.",
    ),
    "UTF-16": (
        "0 0 0 road\n".encode("utf-16"),
        "palette: expected text in UTF-8, got UTF-16. Save the file as UTF-8.",
    ),
    "Latin 1": (
        "0 0 0 Straße\n".encode("latin-1"),
        "palette: expected text in UTF-8, got other bytes. Save the file as UTF-8.",
    ),
    "other bytes": (b"\xfd\xfe\0", "palette: expected text in UTF-8, got other bytes."),
    "classes from 1": (
        "1 120 120 120 wall\n2 180 120 120 building\n",
        (
            "palette: expected R G B name, or number R G B name, got four numbers in each line. "
            "Number the classes from 0, with a colour for each, or leave out numbers and alpha."
        ),
    ),
    "damaged JSON": ('{"a": ', "palette: expected JSON, got something else at character 6."),
    "a colour of two numbers": (
        '{"a": [0, 0]}',
        "palette['a']: expected [R, G, B], integers, or \"#rrggbb\", got a list of other entries.",
    ),
    "a colour of decimals": (
        "[[0, 0, 0.5]]",
        'palette[0]: expected [R, G, B], integers, or "#rrggbb", got a list of other entries.',
    ),
    "a colour name": (
        '["red"]',
        "palette[0]: expected [R, G, B], integers, or \"#rrggbb\", got 'red'.",
    ),
    "no colour": (
        '[{"name": "a"}]',
        'palette[0].color: expected [R, G, B], integers, or "#rrggbb", got null.',
    ),
    "a large number in JSON": (
        "[[0, 0, 256]]",
        "palette[0]: expected red, green and blue from 0 to 255, got '256'.",
    ),
    "ids in another order": (
        '[{"id": 1, "color": "#000000"}]',
        (
            "palette[0]: expected the classes in their order, so the id 0, got '1'. "
            "Sort the entries by class."
        ),
    ),
    "a name that is a number": (
        '[{"name": 1, "color": "#000000"}]',
        "palette[0].name: expected a text, got an integer.",
    ),
    "more names than colours": (
        '{"colours": [[0, 0, 0]], "class_names": ["a", "b"]}',
        "palette: expected a colour for each name, got 2 names and 1 colours.",
    ),
    "names that are no texts": (
        '{"colours": [[0, 0, 0]], "class_names": [1]}',
        "palette.class_names: expected a list of texts, got something else.",
    ),
    "colours that are no list": (
        '{"colours": 1}',
        "palette.colours: expected a list, got an integer.",
    ),
    "more colours than a map can have": (
        json.dumps({"colours": [[0, 0, 0]] * 300}),
        "palette: expected at most 256 colours, got 300. Leave out the colours of no class.",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_the_error_names_the_line_or_the_entry(case: str) -> None:
    text, message = MALFORMED[case]
    with pytest.raises(RequestError) as error:
        read(text)
    assert error.value.detail == message


def test_a_large_file_is_refused_before_it_is_read() -> None:
    with pytest.raises(RequestError) as error:
        read(b"0" * (palette_files.MAX_BYTES + 1))
    assert error.value.status == 413


@given(st.one_of(st.binary(max_size=200), st.text(alphabet='0129 ,:a#\n[]{}"', max_size=200)))
def test_any_content_is_a_palette_or_an_error_in_words(content: str | bytes) -> None:
    with suppress(RequestError):
        assert 1 <= read(content).num_classes <= 256
