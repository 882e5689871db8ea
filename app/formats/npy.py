r"""One tensor in NPY, the file format of NumPy (`application/x-npy`).

    offset  size  content
    0       6     the magic bytes `\x93NUMPY`
    6       2     version: 1.0, 2.0 or 3.0
    8       2, 4  header length, little-endian; two bytes in version 1.0, else four; at most 64 KiB
    10, 12  ...   header: a Python dict literal, spaces and a final line feed, in ASCII
    ...     ...   the elements, without gap or padding, to the end of the file

The dict has exactly the keys `descr`, `fortran_order` and `shape`, in any order:

    {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }

The dict is parsed with regular expressions and never evaluated. Files of Python 2 may have a shape
of long integers, `(2L, 3L)`. The size of the shape must equal the number of bytes after the header,
which is checked before any memory is allocated.

`descr` is a key of `DTYPES`, little-endian; types of one byte may have any byte order. Object
arrays are pickles and are never read (`Malformed`). Booleans, complex numbers, strings, dates,
structures and big-endian numbers are well-formed but not supported (`IllPosed`). NPY has no
bfloat16, for which safetensors can be used. An array in Fortran order becomes a transposed view.

The tensor shares the memory of the body and keeps it alive, with two exceptions. Read-only memory
is copied, since torch has no read-only tensors and `out=logits` writes. Misaligned elements are
copied.
"""

import re
import struct

import torch

from ..errors import IllPosed, Malformed, dtype_name

MEDIA_TYPE = "application/x-npy"

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 64 * 1024
MAX_AXES = 64
"""Largest number of axes that NumPy and the elementwise kernels of torch support."""
MAX_AXIS = 2**31 - 1
"""Largest size of an axis."""
MAX_TENSOR_BYTES = 2**62
"""Largest product of the element size and the axes, empty axes counted as 1. The strides of torch
overflow above it."""

DTYPES = {
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
}

_DESCR = {dtype: f"{'|' if dtype.itemsize == 1 else '<'}{name}" for name, dtype in DTYPES.items()}
_TYPESTR = re.compile(
    r"(?P<order>[<>|=]?)(?P<kind>[A-Za-z?])(?P<size>[0-9]{0,9})(?:\[\w{1,9}\])?", re.A
)
_ENTRY = re.compile(
    r""" [ ]* (?P<quote>['"]) (?P<key> descr | fortran_order | shape ) (?P=quote) [ ]* : [ ]*
         (?P<value> '[^'\\]*' | "[^"\\]*" | True | False | \([0-9L, ]*\) | \[[^\n]*\] )
         [ ]* (?: , | (?=\}) )
    """,
    re.VERBOSE,
)
_SHAPE = re.compile(r"\( *\)|\( *[0-9]+L? *,(?: *[0-9]+L? *,)* *(?:[0-9]+L? *)?\)")
_END = re.compile(r" *\} *\n")


def decode(body: bytes | bytearray | memoryview, where: str) -> torch.Tensor:
    """Returns the tensor in an NPY file.

    Args:
        body: the whole file.
        where: name of the file for messages.

    Raises:
        Malformed: if the file is not as specified above.
        IllPosed: if its dtype is not supported.
    """
    memory = memoryview(body).cast("B")
    descr, is_fortran, shape, begin = _read_header(memory, where)
    dtype = _dtype(descr, where)
    payload = memory[begin:]
    check_size(payload.nbytes, dtype, shape, where)
    if is_fortran:
        return tensor_over(payload, dtype, shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
    return tensor_over(payload, dtype, shape)


def encode(tensor: torch.Tensor) -> tuple[bytes, memoryview]:
    """Returns the header and the payload of an NPY 1.0 file.

    The payload is the memory of the tensor itself if it is contiguous and on the CPU.

    Raises:
        IllPosed: if NumPy has no such dtype.
    """
    if tensor.dtype not in _DESCR:
        raise IllPosed(
            "npy",
            "a number type that NumPy has",
            dtype_name(tensor.dtype),
            "Ask for application/x-safetensors.",
        )
    header = (
        f"{{'descr': '{_DESCR[tensor.dtype]}', 'fortran_order': False, "
        f"'shape': {tuple(tensor.shape)}, }}"
    )
    padding = -(len(MAGIC) + 4 + len(header) + 1) % 64  # aligns the payload of a mapped file
    text = header + " " * padding + "\n"
    return MAGIC + struct.pack("<BBH", 1, 0, len(text)) + text.encode(), memory_of(tensor)


def has_dtype(dtype: torch.dtype) -> bool:
    """Returns whether NumPy has this dtype, so that `encode` accepts it."""
    return dtype in _DESCR


def check_size(num_bytes: int, dtype: torch.dtype, shape: tuple[int, ...], where: str) -> None:
    """Checks that torch can hold the shape, and that it has exactly `num_bytes`.

    Raises:
        Malformed: if not.
    """
    if len(shape) > MAX_AXES:
        raise Malformed(where, f"at most {MAX_AXES} axes", f"{len(shape)}")
    extent_bytes = dtype.itemsize
    for axis, size in enumerate(shape):
        if size > MAX_AXIS:
            raise Malformed(where, f"at most {MAX_AXIS} entries on axis {axis}", "more")
        extent_bytes *= max(size, 1)
        if extent_bytes > MAX_TENSOR_BYTES:
            raise Malformed(where, "a shape within 64-bit addresses", f"{shape}")
    expected = 0 if 0 in shape else extent_bytes
    if num_bytes != expected:
        raise Malformed(where, f"{expected} bytes for {dtype_name(dtype)} {shape}", f"{num_bytes}")


def tensor_over(memory: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Returns a tensor that shares the memory, with the exceptions named at the top.

    The size of the shape must be that of the memory.
    """
    if memory.readonly:
        memory = memoryview(bytearray(memory))
    if not memory.nbytes:
        return torch.empty(shape, dtype=dtype, device="cpu")
    # While the tensor holds the memoryview, its bytearray cannot be resized.
    elements = torch.frombuffer(memory, dtype=torch.uint8)
    if elements.data_ptr() % dtype.itemsize:
        elements = elements.clone()
    return elements.view(dtype).reshape(shape)


def memory_of(tensor: torch.Tensor) -> memoryview:
    """Returns the elements of a tensor in row-major order as bytes.

    The elements are copied only if the tensor is not contiguous or not on the CPU.
    """
    elements = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return elements.numpy().data


def _read_header(memory: memoryview, where: str) -> tuple[str, bool, tuple[int, ...], int]:
    """Returns `descr`, `fortran_order`, `shape` and the offset of the payload."""
    start = bytes(memory[:8])
    if start[:6] != MAGIC:
        got = start[:6].hex(" ") or "nothing"
        fix = "Write the file with numpy.save."
        raise Malformed(where, f"an NPY file, which begins with {MAGIC.hex(' ')}", got, fix)
    versions = {b"\x01\x00": "<H", b"\x02\x00": "<I", b"\x03\x00": "<I"}
    length_format = versions.get(start[6:])
    if length_format is None:
        got = ".".join(map(str, start[6:])) or "nothing"
        raise Malformed(where, "NPY version 1.0, 2.0 or 3.0", got)
    header_begin = 8 + struct.calcsize(length_format)
    if memory.nbytes < header_begin:
        raise Malformed(where, f"an NPY file of at least {header_begin} bytes", f"{memory.nbytes}")
    (length,) = struct.unpack_from(length_format, memory, 8)
    if length > MAX_HEADER_BYTES:
        raise Malformed(where, f"an NPY header of at most {MAX_HEADER_BYTES} bytes", f"{length}")
    begin = header_begin + length
    if begin > memory.nbytes:
        present = memory.nbytes - header_begin
        raise Malformed(where, f"an NPY header of {length} bytes", f"{present}")
    values = _read_dict(str(memory[header_begin:begin], "latin-1"), where)
    return *_parse_literals(values, where), begin


def _read_dict(header: str, where: str) -> dict[str, str]:
    """Returns the literals of the three keys as text."""
    values: dict[str, str] = {}
    position = 1
    while header.startswith("{") and (entry := _ENTRY.match(header, position)):
        if entry["key"] in values:
            raise Malformed(where, f"{entry['key']} once in the NPY header", "it twice")
        values[entry["key"]] = entry["value"]
        position = entry.end()
    if len(values) != 3 or not _END.fullmatch(header, position):
        raise Malformed(
            where,
            "an NPY header {'descr': ..., 'fortran_order': ..., 'shape': ...}",
            f"something else from its byte {position if values else 0} on",
        )
    return values


def _parse_literals(values: dict[str, str], where: str) -> tuple[str, bool, tuple[int, ...]]:
    descr, order, shape = values["descr"], values["fortran_order"], values["shape"]
    if descr[0] not in "'\"[":
        raise Malformed(where, "a string as descr in the NPY header", "something else")
    if order not in ("True", "False"):
        raise Malformed(where, "True or False as fortran_order", "something else")
    if not _SHAPE.fullmatch(shape):
        raise Malformed(where, "a tuple of numbers as shape", "something else")
    sizes = re.findall("[0-9]+", shape)
    if any(len(size) > 10 for size in sizes):  # int() takes quadratic time
        raise Malformed(where, f"axes of at most {MAX_AXIS} entries", "more")
    return descr, order == "True", tuple(map(int, sizes))


def _dtype(descr: str, where: str) -> torch.dtype:
    known = ", ".join(_DESCR.values())
    if descr.startswith("["):
        fix = "Save each field as an array of its own."
        raise IllPosed(where, f"one of {known}", "a structured dtype", fix)
    typestr = _TYPESTR.fullmatch(descr[1:-1])
    if typestr is None:
        raise Malformed(where, f"one of {known} as descr", "something else")
    kind, name = typestr["kind"], typestr["kind"] + typestr["size"]
    if kind == "O":
        fix = "Pickled objects are never read: save numbers, array.astype('<f4')."
        raise Malformed(where, f"one of {known}", "Python objects", fix)
    if name in DTYPES:
        if typestr["order"] == "<" or DTYPES[name].itemsize == 1:
            return DTYPES[name]
        order = "big-endian" if typestr["order"] == ">" else "no byte order"
        fix = f"Save array.astype('<{name}')."
        raise IllPosed(where, f"little-endian <{name}", f"{order} {descr[1:-1]}", fix)
    better = {"b": "|u1", "?": "|u1", "u": "<i8", "i": "<i8", "f": "<f4"}.get(kind)
    fix = f"Save array.astype('{better}')." if better else ""
    if name == "V2":  # numpy.save writes ml_dtypes.bfloat16 so
        fix = "bfloat16? Send safetensors."
    raise IllPosed(where, f"one of {known}", f"{descr[1:-1]}", fix)
