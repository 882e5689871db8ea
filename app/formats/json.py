"""Small tensors as nested lists in a JSON object (`application/json`).

    {"logits": [[[[0.5, 2.0]], [[1.5, -1.0]]]], "labels": [[[0, 255]]]}

The keys are any of `KEYS`. `labels` and `prediction` hold integers and become int64; the others
hold numbers and become float32, which must be able to hold them. The lists of one tensor are
rectangular and at most `MAX_AXES` deep. `null`, `true` and `1.0` as a label are refused: no guess
is made at what they were meant to be.

The text is UTF-8 JSON by the letter: no NaN, no Infinity, no key twice, no half a surrogate pair.

About 20 bytes of text carry one number: for small examples only.
"""

import json
import math
from array import array
from itertools import chain
from typing import Any

import torch

from ..errors import IllPosed, Malformed

MEDIA_TYPE = "application/json"

KEYS = ("logits", "labels", "prediction", "class_weight", "pixel_weight")
INTEGER_KEYS = ("labels", "prediction")
MAX_AXES = 6


def decode(body: bytes | bytearray | memoryview) -> dict[str, torch.Tensor]:
    """Read the lists of a JSON body."""
    message = parse_strict(body, "body")
    if not isinstance(message, dict):
        raise Malformed("body", "a JSON object", type_name(message))
    for key in message:
        if key not in KEYS:
            raise IllPosed("body", f"keys out of {', '.join(KEYS)}", f"{key[:40]!a}")
    return {key: _tensor(value, key) for key, value in message.items()}


def parse_strict(text: bytes | bytearray | memoryview, where: str) -> Any:
    """JSON by the letter, or `Malformed`, whatever the text. `1e400` comes back as infinity."""

    def refuse_constant(name: str) -> None:
        raise Malformed(where, "JSON, which has finite numbers only", name)

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            raise Malformed(where, "a JSON object with every key once", "a key twice")
        return members

    try:
        decoded = str(text, "utf-8")
        value = json.loads(
            decoded, parse_constant=refuse_constant, object_pairs_hook=refuse_duplicates
        )
        if "\\u" in decoded:  # JSON can spell half a surrogate pair, which no answer could repeat
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise Malformed(where, "JSON in UTF-8", "other bytes") from None
    except json.JSONDecodeError as error:
        got = f"something else at character {error.pos}"
        raise Malformed(where, "JSON", got) from None
    except ValueError:  # Python's limit on the digits of an integer
        raise Malformed(where, "JSON numbers of a few digits", "thousands of them") from None
    except RecursionError:
        raise Malformed(where, "JSON nested a few levels deep", "hundreds of them") from None
    return value


def type_name(value: object) -> str:
    """What a JSON value is, in JSON's own words."""
    names = {dict: "an object", list: "a list", str: "a text", int: "an integer"}
    names |= {float: "a decimal number", bool: "true or false"}
    return names.get(type(value), "null")


def _tensor(value: object, key: str) -> torch.Tensor:
    entries, shape = _flattened(value, key)
    if key in INTEGER_KEYS:
        return _int64(entries, shape, key).reshape(shape)
    return _float32(entries, shape, key).reshape(shape)


def _flattened(value: object, key: str) -> tuple[list[Any], list[int]]:
    """The innermost entries and the shape of a rectangular list, axis by axis."""
    if not isinstance(value, list):
        raise IllPosed(key, "a list", type_name(value))
    shape, entries = [len(value)], value
    while entries and isinstance(entries[0], list):
        if len(shape) == MAX_AXES:
            raise Malformed(key, f"lists at most {MAX_AXES} deep", "deeper ones")
        size = len(entries[0])
        for index, entry in enumerate(entries):
            if not isinstance(entry, list):
                place = _place(key, index, shape)
                raise IllPosed(place, f"a list of {size} entries", type_name(entry))
            if len(entry) != size:
                raise IllPosed(_place(key, index, shape), f"{size} entries", f"{len(entry)}")
        entries = list(chain.from_iterable(entries))
        shape.append(size)
    return entries, shape


def _int64(entries: list[Any], shape: list[int], key: str) -> torch.Tensor:
    for index, entry in enumerate(entries):
        if type(entry) is int:  # not isinstance: true is an int to Python
            continue
        if isinstance(entry, float):
            is_whole = entry.is_integer()  # false for the infinity of 1e400
            fix = f"Write {int(entry)}." if is_whole and abs(entry) < 2**53 else ""
            raise IllPosed(_place(key, index, shape), "an integer", f"{entry}", fix)
        raise IllPosed(_place(key, index, shape), "an integer", type_name(entry))
    try:
        return _over(array("q", entries), torch.int64)
    except OverflowError:
        index = next(i for i, entry in enumerate(entries) if not -(2**63) <= entry < 2**63)
        got = "a larger one" if entries[index] > 0 else "a smaller one"
        raise IllPosed(_place(key, index, shape), "a 64-bit integer", got) from None


def _float32(entries: list[Any], shape: list[int], key: str) -> torch.Tensor:
    for index, entry in enumerate(entries):
        if type(entry) not in (float, int):
            raise IllPosed(_place(key, index, shape), "a number", type_name(entry))
    try:
        numbers = _over(array("d", entries), torch.float64).to(torch.float32)
    except OverflowError:  # an integer beyond float64
        index = next(i for i, entry in enumerate(entries) if not _has_float(entry))
    else:
        infinite = numbers.isinf().nonzero()
        if not len(infinite):
            return numbers
        index = int(infinite[0])
    got = "a larger one" if entries[index] > 0 else "a smaller one"
    raise IllPosed(_place(key, index, shape), "a number that float32 holds", got)


def _over(numbers: "array[Any]", dtype: torch.dtype) -> torch.Tensor:
    if not numbers:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(numbers, dtype=dtype)


def _has_float(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _place(key: str, index: int, shape: list[int]) -> str:
    """The path to an entry of the flattened list, such as `logits[0][2]`."""
    path = ""
    for size in reversed(shape):
        path = f"[{index % size}]{path}"
        index //= size
    return key + path
