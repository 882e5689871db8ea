"""One array of an NPZ, the archive of NumPy: a ZIP file with an NPY file for each array.

`numpy.savez` names the members after the arrays, `logits.npy`, and stores them;
`numpy.savez_compressed` deflates them. `read` returns the bytes of one member, which `npy` decodes
like any other NPY file. Nothing is ever unpickled.

An archive that anyone may send must not cost more than allowed. With a limit, the bytes of a member
are counted while they are read, and members are stored or deflated: Python's readers of BZ2 and
LZMA return all bytes that a few compressed ones yield. The checksum of the array is verified.
"""

import io
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from itertools import islice
from typing import IO, Final

from ..errors import IllPosed, Malformed, TooLarge
from . import npy

MAGIC: Final = b"PK\x03\x04"
EMPTY_MAGIC: Final = b"PK\x05\x06"
"""The first bytes of an archive without members."""

MAX_MEMBERS: Final = 1024
"""Largest number of members. Python's reader makes an object of each before any is read."""

_CHUNK_BYTES = 1024 * 1024
_ENTRY = re.compile(rb"PK\x01\x02")
_BOUNDED_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_IS_ENCRYPTED = 1

_DAMAGE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,  # an unknown method or version
    OSError,  # BZ2; an offset before the file
    ValueError,  # names that are not UTF-8; sizes beyond 64 bits
    IndexError,
    KeyError,
    RuntimeError,
    MemoryError,
)
"""Exceptions that `zipfile` and its decompressors raise for damaged archives."""


def read(
    content: memoryview,
    where: str,
    max_bytes: int | None = None,
    grow: Callable[[int], None] = lambda _: None,
) -> memoryview:
    """Returns the NPY file of the array called `where`, or of the only array.

    The bytes are in writable memory, which a tensor can share.

    Args:
        content: the archive.
        where: the name of the input, for messages too.
        max_bytes: the largest size of the NPY file; None for any size.
        grow: reserves memory for bytes as they are read, and raises if there is none.

    Raises:
        Malformed: if the archive is damaged, incomplete or encrypted, has too many members, or has
            another file than an array.
        IllPosed: if it has several arrays and none of that name.
        TooLarge: if the array has more than `max_bytes`.
    """
    if sum(1 for _ in islice(_ENTRY.finditer(content), MAX_MEMBERS + 1)) > MAX_MEMBERS:
        raise Malformed(where, f"an NPZ file of at most {MAX_MEMBERS} arrays", "more")
    try:
        with zipfile.ZipFile(_MemoryFile(content)) as archive:
            member = _choose(archive.infolist(), where)
            _check(member, where, max_bytes)
            with archive.open(member) as file:
                array = _read_all(file, where, max_bytes, grow)
    except _DAMAGE_ERRORS:
        raise Malformed(where, "a complete NPZ file", "a damaged one") from None
    if bytes(array[: len(npy.MAGIC)]) != npy.MAGIC:
        raise Malformed(where, "an NPZ file of arrays", "one with another file")
    return array


class _MemoryFile(io.RawIOBase):
    """A file over memory, which `io.BytesIO` would copy."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_CUR: self._position, io.SEEK_END: len(self._memory)}.get(whence, 0)
        if start + offset < 0:
            raise OSError("negative position")  # as files do, which `zipfile` catches
        self._position = start + offset
        return self._position

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        part = self._memory[self._position : self._position + len(target)]
        target[: len(part)] = part
        self._position += len(part)
        return len(part)

    def read(self, size: int = -1) -> bytes:
        # RawIOBase allocates all of `size`, which a damaged archive may claim to be 2^64.
        left = max(0, len(self._memory) - self._position)
        return super().read(left if size < 0 else min(size, left)) or b""


def _choose(members: list[zipfile.ZipInfo], where: str) -> zipfile.ZipInfo:
    """Returns the member of that name, or the only one."""
    for member in members:
        if member.filename == f"{where}.npy":
            return member
    if len(members) != 1:
        got = f"{len(members)} of other names" if members else "an empty archive"
        raise IllPosed(where, f"one array, or one named {where}", got)
    return members[0]


def _check(member: zipfile.ZipInfo, where: str, max_bytes: int | None) -> None:
    if member.flag_bits & _IS_ENCRYPTED:
        raise Malformed(where, "an NPZ file without a password", "an encrypted one")
    if max_bytes is None:
        return
    if member.compress_type not in _BOUNDED_METHODS:
        fix = "Write the file with numpy.savez_compressed."
        raise Malformed(where, "arrays that are stored or deflated", "another compression", fix)
    if member.file_size > max_bytes:
        raise _too_large(where, max_bytes)


def _read_all(
    file: IO[bytes], where: str, max_bytes: int | None, grow: Callable[[int], None]
) -> memoryview:
    """Returns the bytes of a member; its entry may claim fewer or more than there are."""
    content = bytearray()
    while chunk := file.read(_CHUNK_BYTES):
        if max_bytes is not None and len(content) + len(chunk) > max_bytes:
            raise _too_large(where, max_bytes)
        grow(len(chunk))
        content += chunk
    return memoryview(content)


def _too_large(where: str, max_bytes: int) -> TooLarge:
    return TooLarge(where, f"at most {max_bytes} bytes", "more, decompressed", limit=max_bytes)
