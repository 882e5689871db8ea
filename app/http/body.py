"""The body of a request as one piece of memory, within limits of size, time and unpacking.

What can be refused by the headers is refused before the first byte is read; uvicorn then never
sends `100 Continue`, and a client that waits for it sends nothing. Such answers leave the
connection open: closing it while a client still writes would reset it and lose the answer.

A body of known length is written, chunk by chunk, into memory of that length that nobody has
touched yet: it costs real memory only as far as it has arrived. A chunked one grows up to the
limit. There is never a list of chunks: a body sent a byte at a time would cost 200 times its size.

`Content-Encoding` is unpacked afterwards by `unpack`, in the worker thread, with the output held to
the same limit. The way goes on in `app.uploads`.
"""

import asyncio
import re
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import zstandard
from starlette.requests import ClientDisconnect, Request

from ..errors import Malformed, TooLarge, TooSlow, UnsupportedMedia
from ..settings import Settings

_LENGTH = re.compile(r"[0-9]{1,19}")
_PACKED_BYTES = 64 * 1024
_UNPACKED_BYTES = 1024 * 1024
_ZSTD_PACKED_BYTES = 4 * 1024
"""Its decoder cannot be told to stop: this much may come to 128 MiB, but no more, before it is
counted."""
_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024
"""As RFC 9659 demands for HTTP."""


@dataclass(frozen=True)
class Announced:
    """What the headers say of a body.

    Args:
        length: its bytes as they are sent; None if it comes in chunks.
        coding: a row of `CODINGS`, or None for bytes as they are.
        limit: the most bytes it may have, as sent and when unpacked.
    """

    length: int | None
    coding: str | None
    limit: int

    @property
    def reserved_bytes(self) -> int:
        """The most memory that the body can come to."""
        known = self.length is not None and self.coding is None
        return self.length if known and self.length is not None else self.limit


def announced(headers: Mapping[str, str], limit: int) -> Announced:
    """Read the headers, and refuse what they already show to be too much.

    Raises:
        Malformed: a length that is none, or an empty body.
        TooLarge: a length over the limit.
        UnsupportedMedia: a coding that is not in `CODINGS`.
    """
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", *CODINGS):
        accepted = ", ".join(CODINGS)
        raise UnsupportedMedia(
            "Content-Encoding",
            f"one of {accepted}, or none",
            "another one",
            headers={"Accept-Encoding": accepted},
            accepted=[*CODINGS],
        )
    text = headers.get("content-length")
    length = None
    if text is not None:
        if not _LENGTH.fullmatch(text):
            raise Malformed("Content-Length", "a number of bytes", "something else")
        length = int(text)
    if length is None and "transfer-encoding" not in headers:
        length = 0
    if length == 0:
        raise _empty()
    if length is not None and length > limit:
        raise _too_large(limit, f"{length}")
    return Announced(length, None if coding == "identity" else coding, limit)


async def read(request: Request, body: Announced, settings: Settings) -> memoryview:
    """The body, still packed, in writable memory.

    Raises:
        Malformed: it is empty, or ends early.
        TooLarge: over the limit.
        TooSlow: slower than the settings allow.
    """
    clock = asyncio.get_running_loop()
    begun = clock.time()
    sink = _Exactly(body.length) if body.length is not None else _Growing(body.limit)
    try:
        async with asyncio.timeout(settings.body_timeout_seconds) as deadline:
            async for chunk in request.stream():
                sink.write(chunk)
                allowed = sink.received / settings.min_body_bytes_per_second
                deadline.reschedule(begun + settings.body_timeout_seconds + allowed)
    except TimeoutError:
        rate = settings.min_body_bytes_per_second
        raise TooSlow(
            "body",
            f"at least {rate} bytes per second after {settings.body_timeout_seconds:g} s",
            f"{sink.received} bytes in {clock.time() - begun:.0f} s",
            # Unlike with other refusals, the rest would keep coming as slowly.
            headers={"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise Malformed("body", "all of it", f"{sink.received} bytes") from None
    return sink.finish()


def unpack(body: memoryview, coding: str, limit: int) -> memoryview:
    """The bytes behind one layer of `Content-Encoding`, in writable memory.

    Raises:
        Malformed: damaged, cut, or followed by something else.
        TooLarge: more than `limit` bytes, found out soon after that many.
    """
    unpacked = bytearray()
    try:
        for piece in CODINGS[coding](body):
            unpacked += piece
            if len(unpacked) > limit:
                raise _too_large(limit, "more, unpacked")
    except EOFError:
        raise Malformed("body", f"all of its {coding}", "a part of it") from None
    except (zlib.error, zstandard.ZstdError):
        raise Malformed("body", f"{coding}, as its header says", "other bytes") from None
    if not unpacked:
        raise _empty()
    return memoryview(unpacked)


def _gzip(packed: memoryview) -> Iterator[bytes]:
    while packed:  # RFC 1952 allows several members, one after the other
        packed = yield from _zlib_stream(packed, 16 + zlib.MAX_WBITS)


def _deflate(packed: memoryview) -> Iterator[bytes]:
    if (yield from _zlib_stream(packed, zlib.MAX_WBITS)):
        raise zlib.error


def _zlib_stream(packed: memoryview, window_bits: int) -> Generator[bytes, None, memoryview]:
    """Unpack one stream, in bounded pieces, and return what is behind it."""
    stream = zlib.decompressobj(window_bits)
    begin = 0
    while not stream.eof:
        rest: bytes | memoryview = packed[begin : begin + _PACKED_BYTES]
        if not rest:
            raise EOFError
        begin += len(rest)
        # A full piece may mean that more is waiting, in the stream if not in its input.
        while piece := stream.decompress(rest, _UNPACKED_BYTES):
            yield piece
            rest = stream.unconsumed_tail
    return packed[begin - len(stream.unused_data) :]


def _zstd(packed: memoryview) -> Iterator[bytes]:
    while packed:  # RFC 8878 allows several frames, one after the other
        frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
        begin = 0
        while not frame.eof:
            rest = packed[begin : begin + _ZSTD_PACKED_BYTES]
            if not rest:
                raise EOFError
            begin += len(rest)
            yield frame.decompress(rest)
        packed = packed[begin - len(frame.unused_data) :]


CODINGS: dict[str, Callable[[memoryview], Iterator[bytes]]] = {
    "gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}
"""What `Content-Encoding` may say. Each raises EOFError where something is missing."""


class _Exactly:
    """A body of known length."""

    def __init__(self, length: int) -> None:
        # Unlike a bytearray, not filled with zeros: a client that announces a gigabyte and sends
        # nothing costs nothing, and what arrives is written once.
        self._memory = np.empty(length, dtype=np.uint8).data
        self.received = 0

    def write(self, chunk: bytes) -> None:
        end = self.received + len(chunk)
        if end > len(self._memory):
            raise Malformed("body", f"{len(self._memory)} bytes, as announced", "more")
        self._memory[self.received : end] = chunk
        self.received = end

    def finish(self) -> memoryview:
        if self.received < len(self._memory):
            raise Malformed("body", f"{len(self._memory)} bytes, as announced", f"{self.received}")
        return self._memory


class _Growing:
    """A body of unknown length; bytearrays grow by an eighth, without a second copy in sight."""

    def __init__(self, limit: int) -> None:
        self._memory = bytearray()
        self._limit = limit

    @property
    def received(self) -> int:
        return len(self._memory)

    def write(self, chunk: bytes) -> None:
        if len(self._memory) + len(chunk) > self._limit:
            raise _too_large(self._limit, "more")
        self._memory += chunk

    def finish(self) -> memoryview:
        if not self._memory:
            raise _empty()
        return memoryview(self._memory)


def _empty() -> Malformed:
    return Malformed("body", "tensors", "0 bytes")


def _too_large(limit: int, got: str) -> TooLarge:
    return TooLarge("body", f"at most {limit} bytes", got, limit=limit)
