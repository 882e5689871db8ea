"""Content negotiation."""

import pytest

from app.errors import NotAcceptable
from app.http.responses import choose_media_type


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
