"""Named tensors as safetensors (`application/x-safetensors`).

    offset  size  content
    0       8     header length, unsigned, little-endian; at most 64 KiB
    8       ...   header: a JSON object, padded with spaces; its first byte is `{`
    ...     ...   the elements of all tensors, little-endian and row-major, to the end of the file

The header maps each name to an object of exactly `dtype`, `shape` and `data_offsets`, which count
from the end of the header. `__metadata__` is optional and an object of strings:

    {"__metadata__": {"loss": "0.5"},
     "logits": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}

There are at most `MAX_TENSORS` tensors, in any order in the header. Every byte after the header
belongs to exactly one tensor: there is no hole, no overlap, and no byte behind the last tensor.
Each tensor has the size of its shape. `dtype` is a key of `DTYPES`. Other dtypes of the format are
well-formed but not supported (`IllPosed`).

The tensors share the memory of the body, with the exceptions of `npy`: read-only or misaligned
memory is copied.

In written files, the payload begins at a multiple of 64 bytes, and each tensor at a multiple of its
element size. Tensors are sorted by descending element size and then by name, so that equal tensors
give equal bytes. The header of a written file may be larger than 64 KiB, which is the limit for
requests alone; the format allows 100 MB.
"""

import json
import re
import struct
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from ..errors import IllPosed, Malformed, dtype_name, safe_repr
from . import npy
from .json import parse_strict

MEDIA_TYPE = "application/x-safetensors"

MAX_HEADER_BYTES = 64 * 1024
MAX_TENSORS = 16

DTYPES = {
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_DTYPE = re.compile(r"[A-Z][A-Z0-9_]{0,15}")


def decode(
    body: bytes | bytearray | memoryview, where: str = "body"
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Returns the tensors by name, and the metadata.

    Args:
        body: the whole file.
        where: name of the file for messages.

    Raises:
        Malformed: if the file is not as specified above.
        IllPosed: if a dtype is not supported.
    """
    memory = memoryview(body).cast("B")
    if memory.nbytes < 8:
        raise Malformed(where, "a safetensors file of at least 8 bytes", f"{memory.nbytes}")
    (length,) = struct.unpack_from("<Q", memory)
    if length > MAX_HEADER_BYTES:
        expected = f"a safetensors header of at most {MAX_HEADER_BYTES} bytes"
        raise Malformed(where, expected, f"{length}")
    if length > memory.nbytes - 8:
        expected = f"a safetensors header of {length} bytes"
        raise Malformed(where, expected, f"{memory.nbytes - 8}")
    header, payload = memory[8 : 8 + length], memory[8 + length :]
    if bytes(header[:1]) != b"{":
        raise Malformed(where, "a safetensors header that begins with {", "something else")
    entries = parse_strict(header, f"{where} header")
    metadata = _metadata(entries.pop("__metadata__", {}), where)
    if len(entries) > MAX_TENSORS:
        raise Malformed(where, f"at most {MAX_TENSORS} tensors", f"{len(entries)}")
    paths = {name: f"{where}[{safe_repr(name)}]" for name in entries}
    fields = {name: _fields(entry, paths[name]) for name, entry in entries.items()}
    _check_coverage([offsets for _, _, offsets in fields.values()], payload.nbytes, where)
    tensors = {}
    for name, (dtype, shape, (begin, end)) in fields.items():
        npy.check_size(end - begin, dtype, shape, paths[name])
        tensors[name] = npy.tensor_over(payload[begin:end], dtype, shape)
    return tensors, metadata


def encode(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> list[bytes | memoryview]:
    """Returns a file in chunks: the header, then the elements of each tensor.

    The elements of a contiguous tensor on the CPU are not copied.

    Raises:
        IllPosed: if the format has no such dtype.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    payloads = []
    begin = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise IllPosed(name, f"a dtype among {', '.join(DTYPES)}", dtype_name(tensor.dtype))
        payload = npy.memory_of(tensor)
        end = begin + payload.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        payloads.append(payload)
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return [struct.pack("<Q", len(text)) + text, *payloads]


def _metadata(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise Malformed(where, "an object of strings as __metadata__", "something else")
    return value


def _fields(entry: Any, where: str) -> tuple[torch.dtype, tuple[int, ...], tuple[int, int]]:
    """Returns the checked dtype, shape and offsets of one tensor."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise Malformed(where, "exactly dtype, shape and data_offsets", "something else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise Malformed(where, f"a dtype among {', '.join(DTYPES)}", "something else")
    if not _are_sizes(shape):
        raise Malformed(where, "a list of integers from 0 as shape", "something else")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Malformed(where, "data_offsets [begin, end], begin ≤ end", "something else")
    if dtype not in DTYPES:
        fix = "Send U8." if dtype == "BOOL" else ""
        raise IllPosed(where, f"a dtype among {', '.join(DTYPES)}", dtype, fix)
    return DTYPES[dtype], tuple(shape), (offsets[0], offsets[1])


def _are_sizes(value: object) -> bool:
    # Not isinstance, since bool is a subclass of int.
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size < 2**63 for size in value
    )


def _check_coverage(offsets: list[tuple[int, int]], num_bytes: int, where: str) -> None:
    """Checks that the tensors cover all bytes, one after the other."""
    ranges = [(0, 0), *sorted(offsets)]
    for (_, end), (begin, _) in pairwise(ranges):
        if begin != end:
            got = f"{'an overlap' if begin < end else 'a hole'} at byte {begin}"
            raise Malformed(where, "tensors one after the other", got)
    _, end = ranges[-1]
    if end != num_bytes:
        raise Malformed(where, f"{end} bytes after the header", f"{num_bytes}")
