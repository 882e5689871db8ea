"""Bytes on a connection: as many answers as requests, whole bodies, and no body is a request."""

import asyncio
import json
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection

import pytest
import torch
from examples import make_inputs, safetensors_file
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from serving import Server, running
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.config import Config
from uvicorn.server import ServerState

from app.http.app import create_app
from app.http.protocol import HttpProtocol
from app.settings import Settings

HEAD = re.compile(rb"HTTP/1\.1 (\d+) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")
SMUGGLED = b"GET /v1/palettes HTTP/1.1\r\nHost: a\r\n\r\n"
UPGRADES = {
    "none": b"",
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n",
    "websocket": (
        b"upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a\r\n"
        b"connection: keep-alive, upgrade\r\n"
    ),
    "two": b"Connection: upgrade\r\nUpgrade: a/1, b/2\r\nX-Empty:\r\nUPGRADE: c\r\n",
    "expecting": b"Expect: 100-continue\r\nConnection: upgrade\r\nUpgrade: TLS/1.0\r\n",
}

JSON = b"Content-Type: application/json\r\n"
SAFETENSORS = b"Content-Type: application/x-safetensors\r\n"
TRAILERS = b"0\r\nX-Request-ID: trailer\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def parse_answers(received: bytes) -> list[Answer]:
    """All answers in these bytes, but for `100 Continue`."""
    answers = []
    while received:
        head = HEAD.match(received)
        assert head, received
        lines = head[2].decode().split("\r\n")[:-1]
        headers = dict(line.lower().split(": ", 1) for line in lines)
        end = head.end() + int(headers.get("content-length", "0"))
        assert len(received) >= end, received
        answer = Answer(int(head[1]), headers, received[head.end() : end])
        answers += [answer] if answer.status != 100 else []
        received = received[end:]
    return answers


def with_length(body: bytes, headers: bytes = b"", path: bytes = b"/echo") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n"
    return head % (path, headers, len(body)) + body


def chunked(body: bytes, headers: bytes = b"", path: bytes = b"/echo") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n%b\r\n" % (path, headers)
    pieces = [body[:5], body[5:]]
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
    return head + b"".join([*chunks, TRAILERS])


def without_body(headers: bytes = b"", path: bytes = b"/echo") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (path, headers)


# The protocol alone: each packet arrives as it was sent


class Transport(asyncio.Transport):
    """A connection without a socket, to a client that reads all or nothing."""

    def __init__(self, is_read: bool = True) -> None:
        super().__init__()
        self.received = bytearray()
        self.protocol: HttpProtocol | None = None
        self.is_aborted = False
        self._is_read = is_read
        self._is_closing = False

    def write(self, data: bytes) -> None:
        if self._is_closing:
            raise RuntimeError("The transport is closed.")  # as that of uvloop
        self.received += data
        if not self._is_read:
            self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return 0 if self._is_read else len(self.received)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if self._is_read:
            self.lose()

    def abort(self) -> None:
        self.is_aborted = True
        self.lose()

    def lose(self) -> None:
        """Ends the connection, as a client can at any time."""
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def echo(request: Request) -> Response:
    body = await request.body()
    return Response(f"{request.method} {request.headers.get('content-length')} ".encode() + body)


@contextmanager
def configured(**settings: object) -> Iterator[Config]:
    """uvicorn with the service and a path that answers with the body that it gets."""
    app = create_app(Settings(warm_classes="", **settings))
    app.add_api_route("/echo", echo, methods=["GET", "POST"])
    config = Config(app, http=HttpProtocol, ws="none", lifespan="off", log_config=None)
    config.load()
    yield config
    app.state.service.workers.close()


@pytest.fixture(scope="module")
def config() -> Iterator[Config]:
    with configured() as config:
        yield config


def exchange(
    config: Config, packets: Sequence[bytes], is_read: bool = True, is_lost: bool = False
) -> Transport:
    """The connection when all requests in the packets are answered; or the client ends it."""

    async def run() -> Transport:
        transport, state = Transport(is_read), ServerState()
        protocol = transport.protocol = HttpProtocol(config, state, {})
        protocol.connection_made(transport)
        for packet in packets:
            if not transport.is_closing():
                protocol.data_received(packet)
            for _ in range(9):  # the application runs
                await asyncio.sleep(0)
        if is_lost:
            transport.lose()
        while state.tasks:
            await asyncio.wait_for(asyncio.wait(state.tasks), 20)
        await asyncio.sleep(0)
        return transport

    return asyncio.run(run())


def all_cuts(content: bytes) -> Iterator[list[bytes]]:
    """The bytes as one packet, as two in each way, and one by one."""
    yield [content]
    for position in range(1, len(content)):
        yield [content[:position], content[position:]]
    yield [content[index : index + 1] for index in range(len(content))]


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("framed", [with_length, chunked])
def test_a_body_is_whole_and_no_request_wherever_packets_are_cut(config, framed, upgrade):
    content = framed(SMUGGLED, UPGRADES[upgrade]) + without_body(UPGRADES[upgrade])
    for packets in all_cuts(content):
        received = bytes(exchange(config, packets).received)
        posted, got = parse_answers(received)
        length = b"%d" % len(SMUGGLED) if framed is with_length else b"None"
        assert (posted.status, posted.body) == (200, b"POST %b %b" % (length, SMUGGLED)), packets
        assert (got.status, got.body) == (200, b"GET None "), packets
        assert (b"100 Continue" in received) == (upgrade == "expecting")


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.data())
def test_there_are_as_many_answers_as_requests(config, data):
    content, expected = b"", []
    for _ in range(data.draw(st.integers(1, 4))):
        body = data.draw(st.sampled_from([b"", SMUGGLED, b"0\r\n\r\n" + SMUGGLED]))
        body += data.draw(st.binary(max_size=9))
        upgrade = UPGRADES[data.draw(st.sampled_from([*UPGRADES]))]
        content += data.draw(st.sampled_from([with_length, chunked]))(body, upgrade)
        expected.append(body)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
    ends = zip([0, *cuts], [*cuts, len(content)], strict=True)
    packets = [content[begin:end] for begin, end in ends]
    answers = parse_answers(bytes(exchange(config, packets).received))
    assert [answer.body.split(b" ", 2)[2] for answer in answers] == expected


DAMAGED = (
    b"POST /v1/loss HTTP/1.1\r\nTransfer-Encoding: chunked\r\n%b\r\n2\r\n{}\r\nx\r\n" + SMUGGLED
)
NO_HTTP = b"no HTTP\r\n\r\n"
BROKEN = {
    "no HTTP": (NO_HTTP, [400]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SMUGGLED, [400]),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED, [400]),
    "a tunnel": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n" + SMUGGLED, [405]),
    "behind requests": (
        with_length(SMUGGLED) + without_body() + NO_HTTP,
        [200, 200, 400],
    ),
    "two lengths": (without_body(b"Content-Length: 5\r\nContent-Length: 6\r\n"), [400]),
    "two lengths and an upgrade": (
        with_length(SMUGGLED, UPGRADES["h2c"] + b"Transfer-Encoding: chunked\r\n"),
        [400],
    ),
    "a damaged body": (DAMAGED % JSON, [400]),
    "a damaged body behind a request": (without_body() + DAMAGED % JSON, [200, 400]),
    "a damaged body and an upgrade": (DAMAGED % (JSON + UPGRADES["h2c"]), [400]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bytes_that_are_no_http_get_one_problem_behind_other_answers(config, case):
    content, statuses = BROKEN[case]
    for packets in all_cuts(content):
        transport = exchange(config, packets)
        answers = parse_answers(bytes(transport.received))
        assert [answer.status for answer in answers] == statuses, packets
        assert transport.is_closing()
        assert not transport.is_aborted
        *_, last = answers
        problem = json.loads(last.body)
        assert last.headers["content-type"] == "application/problem+json"
        assert last.headers["x-content-type-options"] == "nosniff"
        assert last.headers["x-request-id"] == problem["request_id"]
        assert problem["status"] == statuses[-1]
        if last.status == 405:
            assert last.headers["allow"] == "get, head, post"
            sentence = "method: expected GET or HEAD or POST, got 'CONNECT'."
        elif "body" in case:
            continue
        else:
            sentence = "request: expected HTTP/1.1, got other bytes."
        assert problem["detail"] == sentence


def test_a_damaged_body_behind_its_answer_closes_the_connection(config):
    for packets in all_cuts(DAMAGED % b""):
        transport = exchange(config, packets)
        (answer,) = parse_answers(bytes(transport.received))
        assert answer.status in (400, 415)  # by whether the damage comes before the answer
        assert transport.is_closing()


@pytest.mark.parametrize("path", [b"/v1/gradient", b"/livez"])
def test_a_client_that_does_not_read_its_answer_loses_the_connection(path):
    content, headers = safetensors_file(**make_inputs()), SAFETENSORS
    request = with_length(content, headers, path) if b"v1" in path else without_body(path=path)
    with configured(body_timeout_seconds=0.05, min_body_bytes_per_second=10**9) as config:
        transport = exchange(config, [request], is_read=False)
        assert transport.received.startswith(b"HTTP/1.1 200 OK")
        assert transport.is_aborted
        assert config.app.state.service.workers.bytes_in_flight == 0


@pytest.mark.parametrize("num_requests", [1, 2, 5])
@pytest.mark.parametrize("path", [b"/v1/gradient", b"/openapi.json"])
@pytest.mark.parametrize("is_reset", [True, False])
def test_a_lost_connection_is_no_error(caplog, is_reset, path, num_requests):
    content, headers = safetensors_file(**make_inputs()), SAFETENSORS
    request = with_length(content, headers, path) if b"v1" in path else without_body(path=path)
    grace = 0.05 if is_reset else 20
    with configured(body_timeout_seconds=grace, min_body_bytes_per_second=10**9) as config:
        transport = exchange(config, [request * num_requests], is_read=False, is_lost=not is_reset)
        assert transport.is_aborted == is_reset
        assert config.app.state.service.workers.bytes_in_flight == 0
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []


# A server in another process


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    limits = {"body_timeout_seconds": 3, "min_body_bytes_per_second": 10**9}
    # At level info, the log of some hundred requests would fill the pipe.
    with running(max_concurrent_requests=1, log_level="warning", **limits) as server:
        yield server


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def read_answers(connection: socket.socket, count: int) -> list[Answer]:
    """The next answers on a connection; waits until no byte of the last one is missing."""
    received = bytearray()
    while True:
        received += connection.recv(1 << 20)
        with suppress(AssertionError):
            answers = parse_answers(bytes(received))
            if len(answers) >= count:
                return answers


def read_to_the_end(connection: socket.socket) -> None:
    while connection.recv(1 << 20):
        pass


@pytest.mark.parametrize("framed", [with_length, chunked])
def test_a_server_reads_bodies_of_requests_for_an_upgrade(server, framed):
    values = {"logits": [[[[1.0, 2.0]], [[3.0, 1.0]]]], "labels": [[[0, 1]]]}
    body = json.dumps(values).encode()
    loss = torch.nn.functional.cross_entropy(
        torch.tensor(values["logits"]), torch.tensor(values["labels"])
    )
    content = framed(body, UPGRADES["h2c"] + JSON, b"/v1/loss")
    with connected(server) as connection, connected(server) as other:
        for packets in all_cuts(content):
            for packet in packets:
                connection.sendall(packet)
                # The server reads the connections in turn: with this answer, the packet is read.
                other.sendall(without_body(path=b"/livez"))
                read_answers(other, 1)
            (answer,) = read_answers(connection, 1)
            assert json.loads(answer.body)["loss"] == pytest.approx(float(loss), rel=1e-6)


def test_a_server_answers_a_smuggled_request_as_a_body(server):
    headers = UPGRADES["h2c"] + SAFETENSORS
    head, body = with_length(SMUGGLED, headers, b"/v1/loss").split(SMUGGLED)[0], SMUGGLED
    with connected(server) as connection, connected(server) as other:
        connection.sendall(head)
        other.sendall(without_body(path=b"/livez"))
        read_answers(other, 1)
        connection.sendall(body + without_body(path=b"/livez"))
        refused, live = read_answers(connection, 2)
        assert (refused.status, live.body) == (400, b'{"status": "live"}')


def test_one_request_after_the_other_is_admitted_with_a_limit_of_one(server):
    tensors = {"logits": torch.zeros(1, 2, 600, 999), "labels": torch.zeros(1, 600, 999).byte()}
    content = safetensors_file(**tensors)
    headers = {"Content-Type": "application/x-safetensors"}
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=20)) as connection:
        for _ in range(40):
            connection.request("POST", "/v1/gradient", content, headers)
            response = connection.getresponse()
            assert response.status == 200
            response.read()


def test_a_server_resets_the_connection_of_a_client_that_does_not_read(server):
    tensors = {"logits": torch.zeros(1, 2, 2048, 2048), "labels": torch.zeros(1, 2048, 2048).byte()}
    with socket.socket() as connection, connected(server) as other:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(with_length(safetensors_file(**tensors), SAFETENSORS, b"/v1/gradient"))
        assert connection.recv(12) == b"HTTP/1.1 200"
        in_flight = b""
        while b"seg_loss_bytes_in_flight 0.0" not in in_flight:
            other.sendall(without_body(path=b"/metrics"))
            in_flight = read_answers(other, 1)[0].body
        with pytest.raises(ConnectionResetError):
            read_to_the_end(connection)
