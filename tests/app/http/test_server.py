"""`seg-loss serve` in a process of its own, with curl as the client."""

import json
import shutil
import signal
import socket
from collections.abc import Iterator

import pytest
from examples import make_inputs, npy_file, safetensors_file
from serving import Server, running

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(max_body_bytes=1_000_000) as server:
        yield server


def test_curl_posts_files_and_gets_the_loss(server, tmp_path):
    (tmp_path / "logits.npy").write_bytes(npy_file(make_inputs()["logits"].numpy()))
    (tmp_path / "labels.npy").write_bytes(npy_file(make_inputs()["labels"].numpy()))
    status, body = server.curl(
        "/v1/loss", "-F", f"logits=@{tmp_path}/logits.npy", "-F", f"labels=@{tmp_path}/labels.npy"
    )
    assert status == 200, body
    assert json.loads(body)["valid_pixels"] == 39


def test_curl_posts_safetensors_and_gets_a_gradient(server, tmp_path):
    (tmp_path / "body").write_bytes(safetensors_file(**make_inputs()))
    arguments = ("--data-binary", f"@{tmp_path}/body", "-H", "Transfer-Encoding: chunked")
    for chunked in (arguments[:2], arguments):
        status, body = server.curl(
            "/v1/gradient", "-H", "Content-Type: application/x-safetensors", *chunked
        )
        assert status == 200, body
        assert b'"gradient"' in body[:200]


def test_curl_gets_413_without_sending_the_body(server, tmp_path):
    (tmp_path / "large").write_bytes(bytes(3_000_000))
    status, body = server.curl(
        "/v1/loss",
        *("-H", "Content-Type: application/x-safetensors"),
        *("-H", "Expect: 100-continue", "--expect100-timeout", "20"),
        *("--data-binary", f"@{tmp_path}/large"),
        *("-w", "%{size_upload}\n%{http_code}"),
    )
    assert status == 413
    problem, _, num_sent = body.rpartition(b"}")
    assert json.loads(problem + b"}")["limit"] == 1_000_000
    assert int(num_sent) == 0


def test_a_connection_stays_open_after_errors(server):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(20)
        for status in (b"415", b"415"):
            connection.sendall(
                b"POST /v1/loss HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde"
            )
            assert status in connection.recv(65536).split(b"\r\n")[0]


def test_the_service_survives_an_incomplete_body(server):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/loss HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n"
            b"Content-Type: application/x-safetensors\r\n\r\nabcde"
        )
    assert server.curl("/livez")[0] == 200


def test_the_server_stops_at_sigterm(server):
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) in (0, -signal.SIGTERM)
    assert b"Traceback" not in server.process.stderr.read()
