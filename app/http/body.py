"""Reads the body of a request into one block of memory, within limits of size and time.

A request with invalid headers is rejected before the first byte of its body is read. uvicorn then
sends no `100 Continue`, and a client that waits for it sends no body. The connection stays open:
closing it while a client still writes would reset it, and the client would lose the response.

A body with a Content-Length is written into uninitialised memory of that length. The system
provides physical memory only as bytes arrive, so an announced length alone costs nothing. A body
without a length is collected in a bytearray, up to the limit, and its memory is reserved as it
arrives. Its chunks are never kept in a list: a body of one-byte chunks would take 200 times its
size.

The body is returned as it was sent: `formats.compression` decodes its Content-Encoding later, in a
worker thread.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from starlette.requests import ClientDisconnect, Request

from ..errors import (
    Malformed,
    TooSlow,
    UnsupportedMedia,
    body_too_large,
    empty_body,
    safe_repr,
)
from ..formats.compression import DECOMPRESSORS
from ..settings import Settings

_LENGTH = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True)
class BodyHeaders:
    """The headers of a request that describe its body.

    Attributes:
        length: Content-Length in bytes; None for a chunked body.
        content_encoding: a key of `DECOMPRESSORS`; None for an uncompressed body.
        limit: the largest number of bytes, as sent and decompressed.
    """

    length: int | None
    content_encoding: str | None
    limit: int


def parse_headers(headers: Mapping[str, str], limit: int) -> BodyHeaders:
    """Returns Content-Length and Content-Encoding, checked.

    Raises:
        Malformed: if the length is not a number, or 0.
        TooLarge: if the length is above the limit.
        UnsupportedMedia: if the content encoding is unknown.
    """
    content_encoding = headers.get("content-encoding", "identity").strip().lower()
    content_encoding = {"x-gzip": "gzip"}.get(content_encoding, content_encoding)  # RFC 9110, 8.4.1
    if content_encoding not in ("identity", *DECOMPRESSORS):
        accepted = ", ".join(DECOMPRESSORS)
        raise UnsupportedMedia(
            "Content-Encoding",
            f"one of {accepted}, or none",
            safe_repr(content_encoding),
            headers={"Accept-Encoding": accepted},
            accepted=[*DECOMPRESSORS],
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
        raise empty_body()
    if length is not None and length > limit:
        raise body_too_large(limit, f"{length}")
    return BodyHeaders(length, None if content_encoding == "identity" else content_encoding, limit)


async def read(
    request: Request, headers: BodyHeaders, settings: Settings, grow: Callable[[int], None]
) -> memoryview:
    """Returns the body as sent, in writable memory.

    Args:
        request: the request, of which nothing has been read.
        headers: its headers.
        settings: the limits of time.
        grow: reserves bytes of a body without a length, and raises Unavailable if there are none.

    Raises:
        Malformed: if the body is empty, incomplete or not in valid chunks.
        TooLarge: if it has more bytes than announced or allowed.
        TooSlow: if it arrives more slowly than the settings allow.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    buffer: _FixedBuffer | _GrowingBuffer
    if headers.length is None:
        buffer = _GrowingBuffer(headers.limit, grow)
    else:
        buffer = _FixedBuffer(headers.length)
    try:
        async with asyncio.timeout(settings.body_timeout_seconds) as timeout:
            async for chunk in request.stream():
                buffer.write(chunk)
                timeout.reschedule(start + settings.transfer_seconds(buffer.num_received))
    except TimeoutError:
        rate = settings.min_body_bytes_per_second
        raise TooSlow(
            "body",
            f"at least {rate} bytes per second after {settings.body_timeout_seconds:g} s",
            f"{buffer.num_received} bytes in {loop.time() - start:.0f} s",
            # An open connection would go on receiving the body as slowly.
            headers={"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise Malformed("body", "all of it", f"{buffer.num_received} bytes") from None
    error: Exception | None = getattr(request.state, "protocol_error", None)
    if error is not None:  # `http.protocol` could not read on
        raise error
    return buffer.finish()


class _FixedBuffer:
    """Memory for a body of known length."""

    def __init__(self, length: int) -> None:
        # A bytearray would be filled with zeros, which takes time and physical memory.
        self._memory = np.empty(length, dtype=np.uint8).data
        self.num_received = 0

    def write(self, chunk: bytes) -> None:
        end = self.num_received + len(chunk)
        if end > len(self._memory):
            raise Malformed("body", f"{len(self._memory)} bytes, as announced", "more")
        self._memory[self.num_received : end] = chunk
        self.num_received = end

    def finish(self) -> memoryview:
        if self.num_received < len(self._memory):
            expected = f"{len(self._memory)} bytes, as announced"
            raise Malformed("body", expected, f"{self.num_received}")
        return self._memory


class _GrowingBuffer:
    """Memory for a body of unknown length; a bytearray grows by an eighth at a time."""

    def __init__(self, limit: int, grow: Callable[[int], None]) -> None:
        self._memory = bytearray()
        self._limit = limit
        self._grow = grow

    @property
    def num_received(self) -> int:
        return len(self._memory)

    def write(self, chunk: bytes) -> None:
        if len(self._memory) + len(chunk) > self._limit:
            raise body_too_large(self._limit, "more")
        self._grow(len(chunk))
        self._memory += chunk

    def finish(self) -> memoryview:
        if not self._memory:
            raise empty_body()
        return memoryview(self._memory)
