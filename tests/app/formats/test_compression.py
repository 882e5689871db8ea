"""Content encodings: every encoded form is decoded, within a limit, and damage is an error."""

import gzip
import zlib

import numpy as np
import pytest
import zstandard
from examples import make_inputs, safetensors_file
from serving import SAFETENSORS

from app.errors import Malformed, TooLarge
from app.formats.compression import DECOMPRESSORS, decompress

COMPRESSORS = {
    "gzip": [gzip.compress, lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])],
    "deflate": [zlib.compress],
    "zstd": [
        lambda data: zstandard.ZstdCompressor().compress(data),
        lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
        lambda data: (
            zstandard.ZstdCompressor().compress(data[:9])
            + zstandard.ZstdCompressor().compress(data[9:])
        ),
    ],
}

CONTENTS = [b"x", bytes(3 << 20), np.random.default_rng(0).bytes(300_000)]


def memory(content: bytes) -> memoryview:
    return memoryview(bytearray(content))


@pytest.mark.parametrize("content_encoding", DECOMPRESSORS)
def test_an_encoded_body_is_decoded_into_writable_memory(content_encoding):
    for compress in COMPRESSORS[content_encoding]:
        for content in CONTENTS:
            decoded = decompress(memory(compress(content)), content_encoding, len(content))
            assert decoded == content
            assert not decoded.readonly


def test_a_body_without_content_encoding_is_not_copied():
    content = memory(b"content")
    assert decompress(content, None, 1) is content


@pytest.mark.parametrize("content_encoding", DECOMPRESSORS)
def test_an_incomplete_continued_or_too_long_body_is_an_error(content_encoding):
    content = CONTENTS[2]
    encoded = COMPRESSORS[content_encoding][0](content)
    for end in (1, 5, len(encoded) // 2, len(encoded) - 1):
        with pytest.raises(Malformed):
            decompress(memory(encoded[:end]), content_encoding, len(content))
    with pytest.raises(Malformed):
        decompress(memory(encoded + b"x"), content_encoding, len(content))
    with pytest.raises(TooLarge):
        decompress(memory(encoded), content_encoding, len(content) - 1)


EMPTY_STREAMS = {
    "gzip members": ("gzip", gzip.compress(b"")),
    "zstd frames": ("zstd", zstandard.compress(b"")),
    "skippable zstd frames": ("zstd", b"\x50\x2a\x4d\x18\0\0\0\0"),
}


@pytest.mark.parametrize("case", EMPTY_STREAMS)
def test_the_number_of_members_and_frames_is_limited(case):
    content_encoding, empty = EMPTY_STREAMS[case]
    end = COMPRESSORS[content_encoding][0](b"x")
    limit = 32 * 1024
    assert decompress(memory(empty * (limit - 1) + end), content_encoding, 1) == b"x"
    with pytest.raises(TooLarge) as error:
        decompress(memory(empty * limit + end), content_encoding, 1)
    assert error.value.detail == (
        f"body: expected at most {limit} gzip members or zstd frames, got more."
    )
    assert error.value.extensions == {"limit": limit}


def test_memory_is_reserved_as_bytes_are_decompressed():
    for content_encoding, (compress, *_) in COMPRESSORS.items():
        for content in CONTENTS:
            counts: list[int] = []
            decompress(memory(compress(content)), content_encoding, len(content), counts.append)
            assert sum(counts) == len(content)


@pytest.mark.parametrize("content_encoding", DECOMPRESSORS)
def test_an_encoded_empty_body_is_malformed(content_encoding):
    encoded = COMPRESSORS[content_encoding][0](b"")
    with pytest.raises(Malformed) as error:
        decompress(memory(encoded), content_encoding, 1)
    assert error.value.detail == "body: expected tensors, got 0 bytes."


def test_the_service_reads_encoded_bodies(client):
    expected = client.post_tensors("/v1/loss", **make_inputs()).json()
    for content_encoding, (compress, *_) in COMPRESSORS.items():
        headers = {**SAFETENSORS, "Content-Encoding": content_encoding}
        content = compress(safetensors_file(**make_inputs()))
        assert client.post("/v1/loss", content=content, headers=headers).json() == expected
