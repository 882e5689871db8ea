"""Bodies are read within limits of size and time."""

import asyncio
import gzip
import zlib

import pytest
from examples import make_inputs, safetensors_file
from serving import SAFETENSORS, assert_problem, assert_still_serves, served
from starlette.requests import Request

from app.errors import Malformed
from app.http import body
from app.settings import Settings


@pytest.fixture(autouse=True)
def still_serves(client):
    yield
    assert_still_serves(client)


def test_a_chunked_body_is_read(client):
    content = safetensors_file(**make_inputs())

    async def chunks():
        for begin in range(0, len(content), 100):
            yield content[begin : begin + 100]

    headers = {**SAFETENSORS, "Transfer-Encoding": "chunked"}
    response = client.post("/v1/loss", content=chunks(), headers=headers)
    assert response.json() == client.post_tensors("/v1/loss", **make_inputs()).json()


def test_a_body_over_the_limit_is_too_large_by_length_or_chunks(client):
    limit = 1 << 20
    response = client.post("/v1/loss", content=bytes(limit + 1), headers=SAFETENSORS)
    problem = assert_problem(response, 413, "too_large")
    assert problem["detail"] == (
        f"body: expected at most {limit} bytes, got {limit + 1}. Send fewer images, or logits in "
        "float16. JSON has a lower limit than other bodies."
    )
    assert problem["limit"] == limit
    assert "Connection" not in response.headers

    async def chunks():
        for _ in range(limit // 1000 + 1):
            yield bytes(1000)

    headers = {**SAFETENSORS, "Transfer-Encoding": "chunked"}
    response = client.post("/v1/loss", content=chunks(), headers=headers)
    assert assert_problem(response, 413, "too_large")["got"] == "more"


def test_json_bodies_have_a_lower_limit(client):
    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/loss", content=b" " * (1 << 17), headers=headers)
    assert assert_problem(response, 413, "too_large")["limit"] == 1 << 16


def test_a_small_body_that_decompresses_to_too_much_is_an_error(client):
    for content_encoding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        content = compress(bytes(1 << 24))
        assert len(content) < 1 << 20
        response = client.post(
            "/v1/loss",
            content=content,
            headers={**SAFETENSORS, "Content-Encoding": content_encoding},
        )
        assert assert_problem(response, 413, "too_large")["limit"] == 1 << 20


@pytest.mark.parametrize("name", ["gzip", "x-gzip", " X-GZip "])
def test_gzip_has_two_names(client, name):
    headers = {**SAFETENSORS, "Content-Encoding": name}
    content = gzip.compress(safetensors_file(**make_inputs()))
    response = client.post("/v1/loss", content=content, headers=headers)
    assert response.json() == client.post_tensors("/v1/loss", **make_inputs()).json()


def test_an_unknown_content_encoding_lists_the_known_ones(client):
    for content_encoding in ("br", "gzip, gzip", "GZIPX"):
        response = client.post(
            "/v1/loss", content=b"x", headers={**SAFETENSORS, "Content-Encoding": content_encoding}
        )
        problem = assert_problem(response, 415, "unsupported_media")
        assert problem["got"] == f"'{content_encoding.lower()}'"
        assert response.headers["Accept-Encoding"] == "gzip, deflate, zstd"


@pytest.mark.parametrize("content_encoding", ["gzip", "deflate", "zstd"])
def test_a_body_not_in_its_content_encoding_is_malformed(client, content_encoding):
    for content in (b"x", b"x" * 1000):
        response = client.post(
            "/v1/loss",
            content=content,
            headers={**SAFETENSORS, "Content-Encoding": content_encoding},
        )
        assert_problem(response, 400, "malformed")


def test_a_slow_body_is_an_error_and_closes_the_connection():
    with served(body_timeout_seconds=0.05, min_body_bytes_per_second=10**9) as client:

        async def slow():
            yield b"x"
            await asyncio.sleep(1)
            yield b"y"

        response = client.post(
            "/v1/loss", content=slow(), headers={**SAFETENSORS, "Transfer-Encoding": "chunked"}
        )
        assert_problem(response, 408, "too_slow")
        assert response.headers["Connection"] == "close"


def test_an_invalid_or_missing_content_length_is_malformed():
    with pytest.raises(Malformed) as error:
        body.parse_headers({"content-length": "1e3"}, limit=10)
    assert error.value.detail == "Content-Length: expected a number of bytes, got something else."
    with pytest.raises(Malformed) as error:
        body.parse_headers({}, limit=10)
    assert error.value.detail == "body: expected tensors, got 0 bytes."


def read(headers: dict[str, str], *chunks: bytes, is_complete: bool = True) -> memoryview:
    """Reads a body that arrives in these chunks; the client then disconnects if incomplete."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    end = {"type": "http.request", "body": b"", "more_body": False}
    messages.append(end if is_complete else {"type": "http.disconnect"})

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    request = Request({"type": "http", "headers": []}, receive)
    parsed = body.parse_headers(headers, limit=10)
    return asyncio.run(body.read(request, parsed, Settings(), grow=lambda _: None))


@pytest.mark.parametrize("headers", [{"content-length": "4"}, {"transfer-encoding": "chunked"}])
def test_a_body_in_any_chunks_is_read_into_writable_memory(headers):
    content = read(headers, b"ab", b"", b"cd")
    assert content == b"abcd"
    assert not content.readonly


@pytest.mark.parametrize(
    ("headers", "chunks", "is_complete", "sentence"),
    [
        (
            {"content-length": "4"},
            [b"abcde"],
            True,
            "body: expected 4 bytes, as announced, got more.",
        ),
        ({"content-length": "4"}, [b"abc"], True, "body: expected 4 bytes, as announced, got 3."),
        ({"content-length": "4"}, [b"abc"], False, "body: expected all of it, got 3 bytes."),
        ({"transfer-encoding": "chunked"}, [b""], True, "body: expected tensors, got 0 bytes."),
    ],
)
def test_a_body_of_another_length_is_malformed(headers, chunks, is_complete, sentence):
    with pytest.raises(Malformed) as error:
        read(headers, *chunks, is_complete=is_complete)
    assert error.value.detail == sentence
