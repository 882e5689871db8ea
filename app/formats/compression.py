"""Compressed bodies: the content encodings gzip, deflate and zstd of HTTP (RFC 9110).

    gzip     RFC 1952: one or more members, one after the other
    deflate  RFC 1950: one zlib stream, and nothing after it
    zstd     RFC 8878: one or more frames, with windows of at most 8 MiB (RFC 9659)

The output is limited while it is produced, so that a small body cannot fill the memory: zlib is
asked for at most `_MAX_OUTPUT_BYTES` at a time. The zstd decoder has no such limit. It gets
`_MAX_ZSTD_INPUT_BYTES` at a time instead, which yield 128 MiB at most. The number of members and
frames is limited too: an empty one has a few bytes, and takes microseconds to decode.
"""

import zlib
from collections.abc import Callable, Generator, Iterator
from functools import partial

import zstandard

from ..errors import Malformed, TooLarge, body_too_large, empty_body

_MAX_INPUT_BYTES = 64 * 1024
_MAX_OUTPUT_BYTES = 1024 * 1024
_MAX_ZSTD_INPUT_BYTES = 4 * 1024
_MAX_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024
_MAX_STREAMS = 32 * 1024
"""Most gzip members or zstd frames. bgzip makes members of 64 KiB, so that 2 GiB have as many."""


def decompress(
    encoded: memoryview,
    content_encoding: str | None,
    max_bytes: int,
    grow: Callable[[int], None] = lambda _: None,
) -> memoryview:
    """Returns the decompressed bytes of a body, in writable memory.

    Args:
        encoded: the body as sent.
        content_encoding: a key of `DECOMPRESSORS`; None for a body that is not compressed and is
            returned as it is.
        max_bytes: the largest size of a decompressed body.
        grow: reserves memory for bytes as they are decompressed, and raises if there is none.

    Raises:
        Malformed: if the body is damaged, incomplete, empty, or followed by other bytes.
        TooLarge: if the result has more than `max_bytes`, or the body too many members or frames.
    """
    if content_encoding is None:
        return encoded
    decoded = bytearray()
    try:
        for chunk in DECOMPRESSORS[content_encoding](encoded):
            if len(decoded) + len(chunk) > max_bytes:
                raise body_too_large(max_bytes, "more, decompressed")
            grow(len(chunk))
            decoded += chunk
    except EOFError:
        raise Malformed("body", f"a complete {content_encoding} body", "a part of it") from None
    except (zlib.error, zstandard.ZstdError):
        expected = f"{content_encoding}, the Content-Encoding"
        raise Malformed("body", expected, "other bytes") from None
    if not decoded:
        raise empty_body()
    return memoryview(decoded)


def _gzip(encoded: memoryview) -> Iterator[bytes]:
    return _concatenated(encoded, partial(_zlib_stream, window_bits=16 + zlib.MAX_WBITS))


def _deflate(encoded: memoryview) -> Iterator[bytes]:
    if (yield from _zlib_stream(encoded, zlib.MAX_WBITS)):
        raise zlib.error


def _zlib_stream(encoded: memoryview, window_bits: int) -> Generator[bytes, None, memoryview]:
    """Yields the bytes of one stream in bounded chunks, and returns the input behind it."""
    stream = zlib.decompressobj(window_bits)
    begin = 0
    while not stream.eof:
        unread: bytes | memoryview = encoded[begin : begin + _MAX_INPUT_BYTES]
        if not unread:
            raise EOFError
        begin += len(unread)
        # A full chunk may mean that more output is waiting, even without unread input.
        while chunk := stream.decompress(unread, _MAX_OUTPUT_BYTES):
            yield chunk
            unread = stream.unconsumed_tail
    return encoded[begin - len(stream.unused_data) :]


def _zstd(encoded: memoryview) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW_BYTES)
    return _concatenated(encoded, partial(_zstd_frame, decompressor=decompressor))


def _zstd_frame(
    encoded: memoryview, decompressor: zstandard.ZstdDecompressor
) -> Generator[bytes, None, memoryview]:
    """Yields the bytes of one frame in bounded chunks, and returns the input behind it."""
    frame = decompressor.decompressobj()
    begin = 0
    while not frame.eof:
        unread = encoded[begin : begin + _MAX_ZSTD_INPUT_BYTES]
        if not unread:
            raise EOFError
        begin += len(unread)
        yield frame.decompress(unread)
    return encoded[begin - len(frame.unused_data) :]


def _concatenated(
    encoded: memoryview, read: Callable[[memoryview], Generator[bytes, None, memoryview]]
) -> Iterator[bytes]:
    """Yields the bytes of members or frames, one after the other; `read` reads one of them."""
    for _ in range(_MAX_STREAMS):
        if not encoded:
            return
        encoded = yield from read(encoded)
    if encoded:
        expected = f"at most {_MAX_STREAMS} gzip members or zstd frames"
        raise TooLarge("body", expected, "more", limit=_MAX_STREAMS)


DECOMPRESSORS: dict[str, Callable[[memoryview], Iterator[bytes]]] = {
    "gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}
"""Values of `Content-Encoding`. Each function raises EOFError if the input is incomplete."""
