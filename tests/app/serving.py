"""A service to test: in this process without a socket, or in another one behind a real socket."""

import asyncio
import io
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch

from app.formats import png, safetensors
from app.http.app import create_app
from app.images.palettes import PALETTES
from app.images.render import indexed_picture
from app.settings import Settings

ROOT = Path(__file__).parents[2]
WARM_SECONDS = 120
SAFETENSORS = {"Content-Type": "application/x-safetensors"}


class Client:
    """A client of one service, which runs on an event loop of its own."""

    def __init__(self, settings: Settings) -> None:
        self.app = create_app(settings)
        self._runner = asyncio.Runner()
        transport = httpx.ASGITransport(self.app)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://service")
        self._lifespan = self.app.router.lifespan_context(self.app)

    def __enter__(self) -> "Client":
        self._runner.run(self._lifespan.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._http.aclose())
        self._runner.run(self._lifespan.__aexit__(None, None, None))
        self._runner.close()

    def request(self, method: str, path: str, **request: object) -> httpx.Response:
        return self._runner.run(self._http.request(method, path, **request))

    def get(self, path: str, **request: object) -> httpx.Response:
        return self.request("GET", path, **request)

    def post(self, path: str, **request: object) -> httpx.Response:
        return self.request("POST", path, **request)

    def post_tensors(self, path: str, /, **tensors: torch.Tensor) -> httpx.Response:
        return self.post(path, content=packed(**tensors), headers=SAFETENSORS)

    def post_raw_query(self, path: str, query: bytes, content: bytes) -> int:
        """The status; for queries that no HTTP client would send."""
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "root_path": "",
            "headers": [
                (b"content-type", b"application/x-safetensors"),
                (b"content-length", b"%d" % len(content)),
            ],
        }
        statuses = []

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: dict[str, object]) -> None:
            statuses.append(message.get("status"))

        self._runner.run(self.app(scope, receive, send))
        return statuses[0]

    def wait_until_warm(self) -> None:
        async def wait() -> None:
            while not self.app.state.service.is_warm:
                await asyncio.sleep(0.01)

        self._runner.run(asyncio.wait_for(wait(), 120))


@dataclass(frozen=True)
class Server:
    """`seg-loss serve` in a process of its own."""

    process: subprocess.Popen[bytes]
    url: str

    def curl(self, path: str, *arguments: str) -> tuple[int, bytes]:
        """Status and body."""
        command = ["curl", "-sS", "-m", "30", "-w", "\n%{http_code}", *arguments, self.url + path]
        output = subprocess.run(command, check=True, capture_output=True).stdout
        body, _, status = output.rpartition(b"\n")
        return int(status), body


@contextmanager
def running(**settings: object) -> Iterator[Server]:
    """A server on a free loopback port, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {f"SEG_LOSS_{name.upper()}": f"{value}" for name, value in settings.items()}
    environment = {**os.environ, **variables, "SEG_LOSS_PORT": f"{port}"}
    command = [sys.executable, "-m", "app", "serve"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    server = Server(process, f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + WARM_SECONDS
        while not _is_ready(server):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _is_ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"{server.url}/readyz", timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def served(**settings: object) -> Iterator[Client]:
    with Client(Settings(**settings)) as client:
        yield client


def packed(**tensors: torch.Tensor) -> bytes:
    return b"".join(safetensors.encode(tensors, {}))


def label_png(labels: npt.NDArray[np.integer], palette: str = "voc") -> bytes:
    """A PNG of mode P whose samples are the labels."""
    return png.encode(indexed_picture(labels, PALETTES[palette]))


def npy_file(array: npt.NDArray[np.generic]) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


def example(seed: int = 0) -> dict[str, torch.Tensor]:
    """A well-posed request: 5 classes, 6 x 7 pixels, some ignored."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (1, 6, 7), generator=random, dtype=torch.uint8)
    labels[0, 0, :3] = 255
    return {"logits": torch.randn(1, 5, 6, 7, generator=random), "labels": labels}


def assert_well(client: Client) -> None:
    """A good request is answered as before, whatever came in between."""
    response = client.post_tensors("/v1/loss", **example())
    assert response.status_code == 200, response.text
    loss = torch.nn.functional.cross_entropy(
        example()["logits"], example()["labels"].long(), ignore_index=255
    )
    assert response.json()["loss"] == pytest.approx(float(loss), rel=1e-6)


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"urn:seg-loss:{code}"
    assert problem["code"] == code
    assert problem["status"] == status
    assert problem["error"] == problem["detail"]
    assert problem["title"]
    assert problem["request_id"] == response.headers["X-Request-ID"]
    return problem


def bomb() -> bytes:
    """50000 x 50000 pixels in a file of few bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", 50000, 50000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 16))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
