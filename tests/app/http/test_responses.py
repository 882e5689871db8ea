"""Content negotiation, and responses in chunks."""

import asyncio
import weakref
from contextlib import ExitStack

import numpy as np
import pytest

from app.errors import NotAcceptable
from app.http.pool import Workers
from app.http.responses import ChunkedResponse, Encoded, choose_media_type
from app.settings import Settings


def test_accept_selects_by_quality_then_by_order():
    offered = ("application/x-safetensors", "application/x-npy")
    for accept, expected in (
        (None, 0),
        ("", 0),
        ("*/*", 0),
        ("application/*", 0),
        ("application/x-npy", 1),
        ("APPLICATION/X-NPY;q=0.1, text/html", 1),
        ("application/x-safetensors;q=0.5, application/x-npy;q=0.6", 1),
        ("application/x-safetensors;q=0, */*", 1),
        ("*/*;q=0.1, application/x-npy;q=x", 0),
    ):
        assert choose_media_type(accept, offered) == offered[expected], accept
    with pytest.raises(NotAcceptable):
        choose_media_type("text/html, application/x-npy;q=0", offered)


@pytest.mark.parametrize("num_bytes", [0, 1, 1 << 14, (1 << 14) + 1, (3 << 20) + 5])
def test_memory_and_admission_are_released_before_the_last_bytes(num_bytes):
    workers = Workers(Settings())
    array = np.random.default_rng(0).integers(0, 256, num_bytes, dtype=np.uint8)
    expected = b"header" + array.tobytes()
    get_array = weakref.ref(array)
    stack = ExitStack()
    stack.enter_context(workers.reserve(num_bytes))
    response = ChunkedResponse(Encoded("a/b", [b"header", array.data]), {}, stack, Settings())
    del array, stack
    messages = []

    async def send(message: dict[str, object]) -> None:
        is_held = get_array() is not None, workers.requests_in_flight, workers.bytes_in_flight > 0
        messages.append((bytes(message.get("body", b"")), message.get("more_body"), is_held))

    asyncio.run(response({"type": "http"}, None, send))
    assert b"".join(body for body, *_ in messages) == expected
    *parts, last = messages
    assert all(more and num_admitted == 1 for _, more, (_, num_admitted, _) in parts[1:])
    assert len(last[0]) <= 1 << 14
    assert last[1:] == (False, (False, 0, False))
    workers.close()
