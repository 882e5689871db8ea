"""A service to test: in this process without a socket, or in another one behind a real socket."""

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from examples import make_inputs, safetensors_file

from app.http.app import create_app
from app.settings import Settings
from tests.support import backends

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
        return self.post(path, content=safetensors_file(**tensors), headers=SAFETENSORS)

    def post_all(self, path: str, bodies: Sequence[bytes], accept: str) -> list[httpx.Response]:
        """Posts safetensors bodies at the same time."""
        headers = {**SAFETENSORS, "Accept": accept}

        async def post_all() -> list[httpx.Response]:
            requests = (self._http.post(path, content=body, headers=headers) for body in bodies)
            return await asyncio.gather(*requests)

        return self._runner.run(post_all())

    def post_and_disconnect(
        self, path: str, bodies: Sequence[bytes], is_time: Callable[[], bool]
    ) -> list[int]:
        """Posts safetensors bodies, and closes the connections when it is time; the statuses."""

        async def post(body: bytes, leaving: asyncio.Event) -> int:
            messages = [{"type": "http.request", "body": body, "more_body": False}]
            statuses = []

            async def receive() -> dict[str, object]:
                if messages:
                    return messages.pop()
                await leaving.wait()
                return {"type": "http.disconnect"}

            async def send(message: dict[str, object]) -> None:
                statuses.append(message.get("status"))

            await self.app(_scope(path, b"", body), receive, send)
            return statuses[0]

        async def post_all() -> list[int]:
            leaving = asyncio.Event()
            posting = [asyncio.create_task(post(body, leaving)) for body in bodies]
            while not is_time():
                await asyncio.sleep(0.01)
            leaving.set()
            return await asyncio.gather(*posting)

        return self._runner.run(asyncio.wait_for(post_all(), 30))

    def post_raw_query(self, path: str, query: bytes, content: bytes) -> int:
        """The status; for queries that no HTTP client would send."""
        scope = _scope(path, query, content)
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


def _scope(path: str, query: bytes, content: bytes) -> dict[str, object]:
    """The ASGI scope of a POST of a safetensors body."""
    return {
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


@dataclass(frozen=True)
class Server:
    """`seg-loss serve` in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def curl(self, path: str, *arguments: str) -> tuple[int, bytes]:
        """Status and body."""
        command = ["curl", "-sS", "-m", "30", "-w", "\n%{http_code}", *arguments, self.url + path]
        output = subprocess.run(command, check=True, capture_output=True).stdout
        body, _, status = output.rpartition(b"\n")
        return int(status), body


# Every number of classes takes time where the cache has no kernels for it. Triton's interpreter
# runs one kernel at a time, and a warm-up would run beside the first request.
USUAL_SETTINGS = {"warm_classes": "none" if backends.IS_INTERPRETED else "2"}


@contextmanager
def running(**settings: object) -> Iterator[Server]:
    """A server on a free loopback port, ready."""
    settings = {**USUAL_SETTINGS, **settings}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {f"SEG_LOSS_{name.upper()}": f"{value}" for name, value in settings.items()}
    environment = {**os.environ, **variables, "SEG_LOSS_PORT": f"{port}"}
    command = [sys.executable, "-m", "app", "serve"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    server = Server(process, port)
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
    with Client(Settings(**{**USUAL_SETTINGS, **settings})) as client:
        yield client


def assert_still_serves(client: Client) -> None:
    """A valid request gets the right loss, after whatever requests came before."""
    response = client.post_tensors("/v1/loss", **make_inputs())
    assert response.status_code == 200, response.text
    loss = torch.nn.functional.cross_entropy(
        make_inputs()["logits"], make_inputs()["labels"].long(), ignore_index=255
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
