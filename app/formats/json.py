"""Small tensors as nested lists in a JSON object (`application/json`).

    {"logits": [[[[0.5, 2.0]], [[1.5, -1.0]]]], "labels": [[[0, 255]]]}

The keys are any of `KEYS`. `labels` and `prediction` hold integers and become int64. The others
hold numbers in the range of float32 and become float32. The lists of a tensor are rectangular and
at most `MAX_AXES` deep. As a label, `null`, `true` and `1.0` are rejected: the service does not
guess what they mean.

The text is strictly JSON in UTF-8: without NaN and Infinity, repeated keys and unpaired surrogates.
A byte-order mark before it is ignored, as RFC 8259 allows.

One number takes about 20 bytes of text, so that this format is for small examples.
"""

import json
import math
from array import array
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch

from ..errors import IllPosed, Malformed, did_you_mean, safe_repr

MEDIA_TYPE = "application/json"

KEYS = ("logits", "labels", "prediction", "class_weight", "pixel_weight")
INTEGER_KEYS = ("labels", "prediction")
MAX_AXES = 6


def decode(
    body: bytes | bytearray | memoryview, fix_for: Callable[[str], str] = lambda key: ""
) -> dict[str, torch.Tensor]:
    """Returns the tensors in a JSON body by their keys.

    Args:
        body: the text.
        fix_for: returns the fix for an unknown key, or "" if the key means nothing to the caller.

    Raises:
        Malformed: if the body is not strictly JSON, not an object, or nested too deeply.
        IllPosed: if a key is unknown, or a value is not a rectangular list of numbers in range.
    """
    message = parse_strict(body, "body")
    if not isinstance(message, dict):
        raise Malformed("body", "a JSON object", type_name(message))
    for key in message:
        if key not in KEYS:
            fix = fix_for(key) or did_you_mean(key, KEYS)
            raise IllPosed("body", f"keys among {', '.join(KEYS)}", safe_repr(key), fix)
    return {key: _tensor(value, key) for key, value in message.items()}


def parse_strict(text: bytes | bytearray | memoryview, where: str) -> Any:
    """Returns the value of a text that is strictly JSON; `1e400` becomes infinity.

    Raises:
        Malformed: for any other text; `where` names it.
    """

    def reject_constant(name: str) -> None:
        raise Malformed(where, "JSON, which has finite numbers only", name)

    def check_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            raise Malformed(where, "a JSON object with every key once", "a key twice")
        return members

    try:
        decoded = str(text, "utf-8-sig")
        value = json.loads(decoded, parse_constant=reject_constant, object_pairs_hook=check_unique)
        if "\\u" in decoded:  # an escaped unpaired surrogate cannot be encoded in a response
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise Malformed(where, "JSON in UTF-8", "other bytes") from None
    except json.JSONDecodeError as error:
        got = f"something else at character {error.pos}"
        raise Malformed(where, "JSON", got) from None
    except ValueError:  # Python limits the digits of an integer
        raise Malformed(where, "JSON numbers of a few digits", "thousands of digits") from None
    except RecursionError:
        raise Malformed(where, "JSON nested a few levels deep", "hundreds of levels") from None
    return value


def type_name(value: object) -> str:
    """Returns the name of the type of a JSON value, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", int: "an integer"}
    names |= {float: "a decimal number", bool: "true or false"}
    return names.get(type(value), "null")


def _tensor(value: object, key: str) -> torch.Tensor:
    entries, shape = _flatten(value, key)
    if key in INTEGER_KEYS:
        return _int64(entries, shape, key).reshape(shape)
    return _float32(entries, shape, key).reshape(shape)


def _flatten(value: object, key: str) -> tuple[list[Any], list[int]]:
    """Returns the numbers in a nested list, in row-major order, and its shape."""
    if not isinstance(value, list):
        raise IllPosed(key, "a list", type_name(value))
    shape, entries = [len(value)], value
    while entries and isinstance(entries[0], list):
        if len(shape) == MAX_AXES:
            raise Malformed(key, f"lists at most {MAX_AXES} deep", "deeper ones")
        size = len(entries[0])
        for index, entry in enumerate(entries):
            if not isinstance(entry, list):
                path = _path(key, index, shape)
                raise IllPosed(path, f"a list of {size} entries", type_name(entry))
            if len(entry) != size:
                raise IllPosed(_path(key, index, shape), f"{size} entries", f"{len(entry)}")
        entries = list(chain.from_iterable(entries))
        shape.append(size)
    return entries, shape


def _int64(entries: list[Any], shape: list[int], key: str) -> torch.Tensor:
    for index, entry in enumerate(entries):
        if type(entry) is int:  # not isinstance, since bool is a subclass of int
            continue
        if isinstance(entry, float):
            is_whole = entry.is_integer()  # False for infinity, the value of 1e400
            fix = f"Write {int(entry)}." if is_whole and abs(entry) < 2**53 else ""
            raise IllPosed(_path(key, index, shape), "an integer", f"{entry}", fix)
        raise IllPosed(_path(key, index, shape), "an integer", type_name(entry))
    try:
        return _tensor_over(array("q", entries), torch.int64)
    except OverflowError:
        index = next(i for i, entry in enumerate(entries) if not -(2**63) <= entry < 2**63)
        got = "a larger one" if entries[index] > 0 else "a smaller one"
        raise IllPosed(_path(key, index, shape), "a 64-bit integer", got) from None


def _float32(entries: list[Any], shape: list[int], key: str) -> torch.Tensor:
    for index, entry in enumerate(entries):
        if type(entry) not in (float, int):
            raise IllPosed(_path(key, index, shape), "a number", type_name(entry))
    try:
        numbers = _tensor_over(array("d", entries), torch.float64).to(torch.float32)
    except OverflowError:  # an integer out of the range of float64
        index = next(i for i, entry in enumerate(entries) if not _fits_float64(entry))
    else:
        infinite = numbers.isinf().nonzero()
        if not len(infinite):
            return numbers
        index = int(infinite[0])
    got = "a larger one" if entries[index] > 0 else "a smaller one"
    raise IllPosed(_path(key, index, shape), "a number that float32 holds", got)


def _tensor_over(numbers: "array[Any]", dtype: torch.dtype) -> torch.Tensor:
    if not numbers:
        return torch.empty(0, dtype=dtype, device="cpu")
    return torch.frombuffer(numbers, dtype=dtype)


def _fits_float64(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _path(key: str, index: int, shape: list[int]) -> str:
    """Returns the path to an entry of the flattened list, such as `logits[0][2]`."""
    path = ""
    for size in reversed(shape):
        path = f"[{index % size}]{path}"
        index //= size
    return key + path
