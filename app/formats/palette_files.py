"""Palettes of users: JSON, text and GIMP files with a colour for each class, in their order.

| file | content |
|---|---|
| GPL | `GIMP Palette`, lines `Name:` and `Columns:`, then `R G B name`; `#` begins a comment. \
With the line `Channels: RGBA`, a fourth number is alpha, which is ignored |
| text | `R G B name`, or `name R G B`, separated by spaces, tabs, commas or colons; as in \
label_colors.txt of CamVid, class_dict.csv and labelmap.txt of CVAT |
| JSON | `{"class_names": [...], "colours": [[R, G, B], ...]}`, the answer of `/v1/palettes/NAME` |
| JSON | `[[R, G, B], ...]` |
| JSON | `{"name": [R, G, B], ...}` |
| JSON | `[{"name": "...", "color": [R, G, B]}, ...]`, or that list as the member `labels` |

A colour in JSON may be a text as well, `"#8c8c8c"`. In text, a line may begin with its number, from
0 on. Other numbers before the colour are an error, as is alpha. A first line such as `name,r,g,b`
and lines that begin with `#` or `//` are ignored. Names are optional. A class called void is a
class like all others: `ignore_index` says what is ignored.

Files are in UTF-8, have at most `MAX_BYTES` and 256 colours, and names of at most `MAX_NAME`
printable characters.
"""

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from ..errors import IllPosed, TooLarge, safe_repr
from ..images.palettes import NUM_COLOURS, Colour, Palette, own_palette
from .json import parse_strict, type_name

SUFFIXES: Final = (".json", ".txt", ".csv", ".gpl")
"""The suffixes by which the command line distinguishes files from names of palettes."""

MAX_BYTES: Final = 1 << 16
MAX_NAME: Final = 100
_MAX_LINE: Final = 256
"""Largest number of characters of a line. The time that the patterns take is quadratic in it."""

_GPL_SIGNATURE = "GIMP Palette"
_GPL_HEADERS = ("name:", "columns:", "channels:")
_COMMENTS = ("#", "//")

_SEPARATOR = r"[\s,;:=]+"
_NUMBERS = rf"\(?([0-9]{{1,9}}){_SEPARATOR}([0-9]{{1,9}}){_SEPARATOR}([0-9]{{1,9}})\)?"
_COLOUR_FIRST = re.compile(rf"{_NUMBERS}(?:[\s,;:=](.*))?")
_NAME_FIRST = re.compile(rf"(.*?){_SEPARATOR}{_NUMBERS}[\s,;:]*")
_INDEX_FIRST = re.compile(rf"([0-9]{{1,9}}){_SEPARATOR}(.*)")
_HEADER = re.compile(rf"(?:[a-z_#]+{_SEPARATOR})*[a-z_#]+", re.IGNORECASE)
_FOUR_NUMBERS = re.compile(rf"{_NUMBERS}{_SEPARATOR}([0-9]{{1,9}})(?:{_SEPARATOR}.*)?")
_GPL_ALPHA = re.compile(r"channels:\s*rgba", re.IGNORECASE)
_ALPHA = re.compile(rf"^({_NUMBERS})\s+[0-9]{{1,9}}(?:\s|$)")
_HEX = re.compile(r"#[0-9a-fA-F]{6}")

_Row = tuple[Colour, str]


def decode(data: bytes | memoryview, where: str) -> Palette:
    """Returns the palette in a file, named `own`.

    Raises:
        TooLarge: if it has more than `MAX_BYTES`.
        IllPosed: if it is no palette; the message has the number of the line.
        Malformed: if it is damaged JSON.
    """
    if len(data) > MAX_BYTES:
        raise TooLarge(where, f"at most {MAX_BYTES} bytes", f"{len(data)}", limit=MAX_BYTES)
    try:
        text = str(data, "utf-8-sig")
    except UnicodeDecodeError:
        is_utf_16 = bytes(data[:2]) in (BOM_UTF16_LE, BOM_UTF16_BE)
        is_text = is_utf_16 or 0 not in bytes(data)
        got, fix = "UTF-16" if is_utf_16 else "other bytes", "Save the file as UTF-8."
        raise IllPosed(where, "text in UTF-8", got, fix if is_text else "") from None
    if text.lstrip()[:1] in ("{", "["):
        rows = list(_rows_of_json(parse_strict(data, where), where))
    else:
        rows = _rows_of_text(text, where)
    if not rows:
        raise IllPosed(where, "a colour for each class", "none")
    names = [name for _, name in rows]
    if not any(names):
        names = []
    return own_palette(np.array([colour for colour, _ in rows], dtype=np.uint8), names)


def _rows_of_text(text: str, where: str) -> list[_Row]:
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    for number, line in lines:
        if len(line) > _MAX_LINE:
            expected = f"a line of at most {_MAX_LINE} characters"
            raise IllPosed(f"{where}, line {number}", expected, f"{len(line)}")
    is_gpl = bool(lines) and lines[0][1] == _GPL_SIGNATURE
    lines = [
        (number, line)
        for number, line in lines[1 if is_gpl else 0 :]
        if line and not line.startswith(_COMMENTS)
    ]
    if is_gpl:
        has_alpha = any(_GPL_ALPHA.fullmatch(line) for _, line in lines)
        lines = [row for row in lines if not row[1].lower().startswith(_GPL_HEADERS)]
        if has_alpha:
            lines = [(number, _ALPHA.sub(r"\1 ", line)) for number, line in lines]
    elif lines and _HEADER.fullmatch(lines[0][1]):
        lines = lines[1:]
    if len(lines) > NUM_COLOURS:
        raise _number_error(where, len(lines))
    read_row = _row_of_gpl if is_gpl else _row_of_text
    if not is_gpl and _are_numbered([line for _, line in lines]):
        lines = [(number, _rest_of(line)) for number, line in lines]
    elif not is_gpl:
        _check_numbers([line for _, line in lines], where)
    return [read_row(line, f"{where}, line {number}") for number, line in lines]


def _are_numbered(lines: list[str]) -> bool:
    """Returns whether the lines begin with 0, 1, 2, ... and a colour or a name follows."""
    for index, line in enumerate(lines):
        match = _INDEX_FIRST.fullmatch(line)
        if match is None or int(match[1]) != index:
            return False
        if not (_COLOUR_FIRST.fullmatch(match[2]) or _NAME_FIRST.fullmatch(match[2])):
            return False
    return bool(lines)


def _check_numbers(lines: list[str], where: str) -> None:
    """Checks that not every line begins with four numbers, of which no three are the colour.

    Raises:
        IllPosed: if they do, as with classes that are numbered from 1, or with alpha.
    """
    fourth = [match[4] if (match := _FOUR_NUMBERS.fullmatch(line)) else "" for line in lines]
    if len(lines) < 2 or not all(fourth):
        return
    names = [int(name) for name in fourth]
    if names in ([*range(len(lines))], [*range(1, len(lines) + 1)]):
        return  # each class is named by its number
    fix = "Number the classes from 0, with a colour for each, or leave out numbers and alpha."
    raise IllPosed(where, "R G B name, or number R G B name", "four numbers in each line", fix)


def _rest_of(line: str) -> str:
    match = _INDEX_FIRST.fullmatch(line)
    return match[2] if match else line


def _row_of_gpl(line: str, where: str) -> _Row:
    match = _COLOUR_FIRST.fullmatch(line)
    if match is None:
        raise IllPosed(where, "R G B name", safe_repr(line))
    name = _name(match[4] or "", where)
    # GIMP gives this name to each colour without one.
    return _colour(match.groups()[:3], where), "" if name == "Untitled" else name


def _row_of_text(line: str, where: str) -> _Row:
    match = _COLOUR_FIRST.fullmatch(line)
    if match is not None:
        return _colour(match.groups()[:3], where), _name(match[4] or "", where)
    match = _NAME_FIRST.fullmatch(line)
    if match is None:
        raise IllPosed(where, "R G B name, or name R G B", safe_repr(line))
    return _colour(match.groups()[1:], where), _name(match[1], where)


def _rows_of_json(value: Any, where: str) -> Iterator[_Row]:
    if isinstance(value, dict) and isinstance(value.get("labels"), list):
        value = value["labels"]
    if isinstance(value, dict) and "colours" in value:
        yield from _rows_of_palette(value, where)
        return
    if not isinstance(value, (dict, list)):
        raise IllPosed(where, "a list or an object of colours", type_name(value))
    if len(value) > NUM_COLOURS:
        raise _number_error(where, len(value))
    if isinstance(value, dict):
        for name, colour in value.items():
            entry = f"{where}[{safe_repr(name)}]"
            yield _json_colour(colour, entry), _name(name, entry)
        return
    for index, entry in enumerate(value):
        place = f"{where}[{index}]"
        if not isinstance(entry, dict):
            yield _json_colour(entry, place), ""
            continue
        position = entry.get("id", index)
        if position != index:
            expected = f"the classes in their order, so the id {index}"
            raise IllPosed(place, expected, safe_repr(f"{position}"), "Sort the entries by class.")
        name = entry.get("name", "")
        if not isinstance(name, str):
            raise IllPosed(f"{place}.name", "a text", type_name(name))
        colour = entry.get("color", entry.get("colour"))
        yield _json_colour(colour, f"{place}.color"), _name(name, f"{place}.name")


def _rows_of_palette(value: dict[str, Any], where: str) -> Iterator[_Row]:
    """Yields the rows of an answer of `/v1/palettes/NAME`, whose 256 colours fill up."""
    colours, names = value["colours"], value.get("class_names", [])
    if not isinstance(colours, list):
        raise IllPosed(f"{where}.colours", "a list", type_name(colours))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise IllPosed(f"{where}.class_names", "a list of texts", "something else")
    if len(colours) > NUM_COLOURS:
        raise _number_error(where, len(colours))
    if len(names) > len(colours):
        got = f"{len(names)} names and {len(colours)} colours"
        raise IllPosed(where, "a colour for each name", got)
    count = len(names) or len(colours)
    for index, colour in enumerate(colours[:count]):
        name = _name(names[index], f"{where}.class_names[{index}]") if names else ""
        yield _json_colour(colour, f"{where}.colours[{index}]"), name


def _json_colour(value: Any, where: str) -> Colour:
    if isinstance(value, str) and _HEX.fullmatch(value):
        return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
    is_list = isinstance(value, list) and len(value) == 3
    if not is_list or not all(type(entry) is int for entry in value):
        got = safe_repr(value) if isinstance(value, str) else type_name(value)
        if isinstance(value, list):
            got = "a list of other entries"
        raise IllPosed(where, '[R, G, B], integers, or "#rrggbb"', got)
    return _colour(value, where)


def _colour(numbers: Any, where: str) -> Colour:
    red, green, blue = (int(number) for number in numbers)
    for number in (red, green, blue):
        if not 0 <= number < 256:
            raise IllPosed(where, "red, green and blue from 0 to 255", safe_repr(f"{number}"))
    return red, green, blue


def _name(text: str, where: str) -> str:
    name = text.strip(" \t,;:\"'")
    if len(name) > MAX_NAME:
        raise IllPosed(where, f"a name of at most {MAX_NAME} characters", f"{len(name)}")
    if not name.isprintable():
        raise IllPosed(where, "a name of printable characters", safe_repr(name))
    return name


def _number_error(where: str, count: int) -> IllPosed:
    fix = "Leave out the colours of no class."
    return IllPosed(where, f"at most {NUM_COLOURS} colours", f"{count}", fix)
