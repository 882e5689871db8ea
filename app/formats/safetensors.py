"""Named tensors as safetensors (`application/x-safetensors`).

    offset  size  content
    0       8     header length, unsigned, little-endian; at most 64 KiB
    8       ...   header: a JSON object, padded with spaces; its first byte is `{`
    ...     rest  the elements of all tensors, little-endian and row-major

The header maps each name to exactly `dtype`, `shape` and `data_offsets`, counted from the end of
the header, and perhaps `__metadata__` to an object of texts:

    {"__metadata__": {"loss": "0.5"},
     "logits": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}

At most `MAX_TENSORS` tensors. They fill the payload exactly: without hole, overlap or rest, each as
large as its shape says, so no byte belongs to two tensors or to none. The order in the header is
free. `dtype` is one of the rows of `DTYPES`; others of the format are well-formed but of no use
here, so their refusal is another one (`IllPosed`).

The tensors share the memory of the body, with the exceptions of `app.codecs.npy`: read-only or
misaligned memory is copied and unsigned 16 and 32 bit are widened.

Written files begin each tensor at a multiple of its element size and the payload at a multiple of
64, with the widest elements first and then by name: the same tensors give the same bytes. Metadata
of an answer may exceed the 64 KiB that requests are held to; the format itself allows 100 MB.
"""

import json
import re
import struct
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from ..errors import IllPosed, Malformed, dtype_name
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
    """Read the tensors and the metadata; `where` names the file in refusals."""
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
    places = {name: f"{where}[{name[:40]!a}]" for name in entries}
    fields = {name: _fields(entry, places[name]) for name, entry in entries.items()}
    _check_tiling([offsets for _, _, offsets in fields.values()], payload.nbytes, where)
    tensors = {}
    for name, (dtype, shape, (begin, end)) in fields.items():
        npy.check_size(end - begin, dtype, shape, places[name])
        tensors[name] = npy.tensor_over(payload[begin:end], dtype, shape)
    return tensors, metadata


def encode(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> list[bytes | memoryview]:
    """The file in pieces: header, then each payload, which is the memory of a contiguous tensor."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    payloads = []
    begin = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise IllPosed(name, f"a dtype out of {', '.join(DTYPES)}", dtype_name(tensor.dtype))
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
        raise Malformed(where, "an object of texts as __metadata__", "something else")
    return value


def _fields(entry: Any, where: str) -> tuple[torch.dtype, tuple[int, ...], tuple[int, int]]:
    """The checked members of one tensor's entry in the header."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise Malformed(where, "exactly dtype, shape and data_offsets", "something else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise Malformed(where, f"a dtype out of {', '.join(DTYPES)}", "something else")
    if not _are_sizes(shape):
        raise Malformed(where, "a list of integers from 0 as shape", "something else")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Malformed(where, "data_offsets [begin, end], begin ≤ end", "something else")
    if dtype not in DTYPES:
        fix = "Send U8." if dtype == "BOOL" else ""
        raise IllPosed(where, f"a dtype out of {', '.join(DTYPES)}", dtype, fix)
    return DTYPES[dtype], tuple(shape), (offsets[0], offsets[1])


def _are_sizes(value: object) -> bool:
    # not isinstance: true is an int to Python
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size < 2**63 for size in value
    )


def _check_tiling(offsets: list[tuple[int, int]], num_bytes: int, where: str) -> None:
    """Refuse tensors that do not follow one another from the first byte to the last."""
    tiles = [(0, 0), *sorted(offsets)]
    for (_, end), (begin, _) in pairwise(tiles):
        if begin != end:
            what = "an overlap" if begin < end else "a hole"
            raise Malformed(where, "tensors one after the other", f"{what} at byte {begin}")
    _, end = tiles[-1]
    if end != num_bytes:
        raise Malformed(where, f"{end} bytes after the header", f"{num_bytes}")
