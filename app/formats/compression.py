"""Compressed bodies: the content encodings gzip, deflate and zstd of HTTP (RFC 9110).

    gzip     RFC 1952: one or more members, one after the other
    deflate  RFC 1950: one zlib stream, and nothing after it
    zstd     RFC 8878: one or more frames, with windows of at most 8 MiB (RFC 9659)

The output is limited while it is produced, so that a small body cannot fill the memory: zlib is
asked for at most `_MAX_OUTPUT_BYTES` at a time. The zstd decoder has no such limit. It gets
`_MAX_ZSTD_INPUT_BYTES` at a time instead, which yield 128 MiB at most.
"""

import zlib
from collections.abc import Callable, Generator, Iterator

import zstandard

from ..errors import Malformed, body_too_large, empty_body

_MAX_INPUT_BYTES = 64 * 1024
_MAX_OUTPUT_BYTES = 1024 * 1024
_MAX_ZSTD_INPUT_BYTES = 4 * 1024
_MAX_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024


def decompress(encoded: memoryview, content_encoding: str | None, max_bytes: int) -> memoryview:
    """Returns the decompressed bytes of a body, in writable memory.

    Args:
        encoded: the body as sent.
        content_encoding: a key of `DECOMPRESSORS`; None for a body that is not compressed and is
            returned as it is.
        max_bytes: the largest size of a decompressed body.

    Raises:
        Malformed: if the body is damaged, incomplete, empty, or followed by other bytes.
        TooLarge: if the result has more than `max_bytes`.
    """
    if content_encoding is None:
        return encoded
    decoded = bytearray()
    try:
        for chunk in DECOMPRESSORS[content_encoding](encoded):
            decoded += chunk
            if len(decoded) > max_bytes:
                raise body_too_large(max_bytes, "more, decompressed")
    except EOFError:
        raise Malformed("body", f"a complete {content_encoding} body", "a part of it") from None
    except (zlib.error, zstandard.ZstdError):
        expected = f"{content_encoding}, the Content-Encoding"
        raise Malformed("body", expected, "other bytes") from None
    if not decoded:
        raise empty_body()
    return memoryview(decoded)


def _gzip(encoded: memoryview) -> Iterator[bytes]:
    while encoded:
        encoded = yield from _zlib_stream(encoded, 16 + zlib.MAX_WBITS)


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
    while encoded:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW_BYTES)
        frame = decompressor.decompressobj()
        begin = 0
        while not frame.eof:
            unread = encoded[begin : begin + _MAX_ZSTD_INPUT_BYTES]
            if not unread:
                raise EOFError
            begin += len(unread)
            yield frame.decompress(unread)
        encoded = encoded[begin - len(frame.unused_data) :]


DECOMPRESSORS: dict[str, Callable[[memoryview], Iterator[bytes]]] = {
    "gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}
"""Values of `Content-Encoding`. Each function raises EOFError if the input is incomplete."""
