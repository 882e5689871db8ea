"""Clients that people use, against a server: each way in which its users upload a loss."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import httpx
import pytest
import requests
import torch
from examples import npy_file, safetensors_file
from serving import Server, running

Answer = tuple[int, dict[str, object]]


@dataclass(frozen=True)
class Example:
    """A loss, and its inputs as files."""

    loss: float
    safetensors: Path
    json: Path
    logits: Path
    labels: Path


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = tmp_path_factory.mktemp("example")
    names = ("body.safetensors", "body.json", "logits.npy", "labels.npy")
    files = [folder / name for name in names]
    # The body is larger than what a client or a server reads at once.
    logits = torch.randn(1, 2, 100, 150, generator=torch.Generator().manual_seed(0))
    labels = (logits[:, 0] > 0.5).to(torch.uint8)
    values = {"logits": logits.tolist(), "labels": labels.tolist()}
    contents = (
        safetensors_file(logits=logits, labels=labels),
        json.dumps(values).encode(),
        npy_file(logits.numpy()),
        npy_file(labels.numpy()),
    )
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    loss = torch.nn.functional.cross_entropy(logits, labels.long())
    return Example(float(loss), *files)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


def assert_is_the_loss(answer: Answer, example: Example) -> None:
    status, fields = answer
    assert status == 200, fields
    assert fields["loss"] == pytest.approx(example.loss, rel=1e-6)


def in_pieces(content: bytes) -> Iterator[bytes]:
    for begin in range(0, len(content), 10_000):
        yield content[begin : begin + 10_000]


SAFETENSORS = {"Content-Type": "application/x-safetensors"}


# Each uploads in one way


def requests_safetensors(url: str, example: Example) -> Answer:
    response = requests.post(url, data=example.safetensors.read_bytes(), headers=SAFETENSORS)
    return response.status_code, response.json()


def requests_file(url: str, example: Example) -> Answer:
    with example.safetensors.open("rb") as file:
        response = requests.post(url, data=file, headers=SAFETENSORS)
    return response.status_code, response.json()


def requests_chunks(url: str, example: Example) -> Answer:
    content = in_pieces(example.safetensors.read_bytes())
    response = requests.post(url, data=content, headers=SAFETENSORS)
    return response.status_code, response.json()


def requests_multipart(url: str, example: Example) -> Answer:
    with example.logits.open("rb") as logits, example.labels.open("rb") as labels:
        response = requests.post(url, files={"logits": logits, "labels": labels})
    return response.status_code, response.json()


def requests_json(url: str, example: Example) -> Answer:
    response = requests.post(url, json=json.loads(example.json.read_bytes()))
    return response.status_code, response.json()


def httpx_safetensors(url: str, example: Example) -> Answer:
    response = httpx.post(url, content=example.safetensors.read_bytes(), headers=SAFETENSORS)
    return response.status_code, response.json()


def httpx_chunks(url: str, example: Example) -> Answer:
    content = in_pieces(example.safetensors.read_bytes())
    response = httpx.post(url, content=content, headers=SAFETENSORS)
    return response.status_code, response.json()


def httpx_multipart(url: str, example: Example) -> Answer:
    with example.logits.open("rb") as logits, example.labels.open("rb") as labels:
        response = httpx.post(url, files={"logits": logits, "labels": labels})
    return response.status_code, response.json()


def httpx_json(url: str, example: Example) -> Answer:
    response = httpx.post(url, json=json.loads(example.json.read_bytes()))
    return response.status_code, response.json()


def aiohttp_post(url: str, **request: object) -> Answer:
    async def post() -> Answer:
        async with aiohttp.ClientSession() as session, session.post(url, **request) as response:
            return response.status, await response.json()

    return asyncio.run(post())


def aiohttp_safetensors(url: str, example: Example) -> Answer:
    return aiohttp_post(url, data=example.safetensors.read_bytes(), headers=SAFETENSORS)


def aiohttp_compressed(url: str, example: Example) -> Answer:
    content = example.safetensors.read_bytes()
    return aiohttp_post(url, data=content, headers=SAFETENSORS, compress="gzip")


def aiohttp_multipart(url: str, example: Example) -> Answer:
    with example.logits.open("rb") as logits, example.labels.open("rb") as labels:
        return aiohttp_post(url, data={"logits": logits, "labels": labels})


def aiohttp_json(url: str, example: Example) -> Answer:
    return aiohttp_post(url, json=json.loads(example.json.read_bytes()))


UPLOADS = (
    requests_safetensors,
    requests_file,
    requests_chunks,
    requests_multipart,
    requests_json,
    httpx_safetensors,
    httpx_chunks,
    httpx_multipart,
    httpx_json,
    aiohttp_safetensors,
    aiohttp_compressed,
    aiohttp_multipart,
    aiohttp_json,
)


@pytest.mark.parametrize("upload", UPLOADS, ids=lambda upload: upload.__name__)
def test_a_python_client_gets_the_loss(
    server: Server, example: Example, upload: Callable[[str, Example], Answer]
):
    assert_is_the_loss(upload(f"{server.url}/v1/loss", example), example)


CURL_UPLOADS = {
    "safetensors": "--data-binary @{safetensors} -H Content-Type:application/x-safetensors",
    "chunks": "-X POST -T {safetensors} -H Content-Type:application/x-safetensors "
    "-H Transfer-Encoding:chunked",
    "multipart": "-F logits=@{logits} -F labels=@{labels}",
    "json": "--data @{json} -H Content-Type:application/json",
}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize("upload", CURL_UPLOADS)
def test_curl_gets_the_loss(server, example, upload, version):
    arguments = CURL_UPLOADS[upload].format(**vars(example)).split()
    status, body = server.curl("/v1/loss", version, *arguments)
    assert_is_the_loss((status, json.loads(body)), example)


@pytest.mark.skipif(shutil.which("javac") is None, reason="a JDK is not installed")
def test_the_http_client_of_java_gets_the_loss(server, example, tmp_path):
    source = Path(__file__).with_name("Client.java")
    files = {"logits": example.logits.read_bytes(), "labels": example.labels.read_bytes()}
    form = httpx.Request("POST", server.url, files=files)
    (tmp_path / "form").write_bytes(form.read())
    uploads = (
        ("application/x-safetensors", example.safetensors),
        (form.headers["Content-Type"], tmp_path / "form"),
        ("application/json", example.json),
    )
    arguments = [argument for upload in uploads for argument in map(str, upload)]
    command = ["java", str(source), f"{server.url}/v1/loss", *arguments]
    output = subprocess.run(command, check=True, capture_output=True, timeout=120).stdout
    answers = [line.partition(" ") for line in output.decode().splitlines()]
    assert len(answers) == 2 * len(uploads)
    for status, _, body in answers:
        assert_is_the_loss((int(status), json.loads(body)), example)
