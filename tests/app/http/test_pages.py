"""The pages at `/` and `/docs`, their files under `/static`, and the file at `/v1/sample`."""

import asyncio
import json
import os
import re
import threading

import numpy as np
import pytest
import safetensors.torch
import torch
from serving import assert_problem, served

from app.formats import safetensors as safetensors_format
from app.http import pages, sample
from app.images.palettes import PALETTES
from app.images.sample import draw_sample

FILES = sorted(path for path in pages.DIRECTORY.rglob("*") if path.is_file())
NAMES = [path.relative_to(pages.DIRECTORY).as_posix() for path in FILES]
PAGES = ("/", "/docs", "/docs/")


def policy_of(response):
    pairs = (part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
    return dict(pairs)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_html_under_a_strict_policy(client, path):
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers.get_list("Cache-Control") == ["no-cache"]
    policy = policy_of(response)
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", PAGES)
def test_the_html_of_a_page_has_no_inline_code_and_no_outside_address(client, path):
    text = client.get(path).text
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|https?:|//\w", text)
    for tag in re.findall(r"<script[^>]*>(?!</script>)", text):
        raise AssertionError(tag)
    for address in re.findall(r'(?:src|href)="(/[^"]*)"', text):
        assert client.get(address).status_code == 200, address


@pytest.mark.parametrize("name", NAMES)
def test_every_file_has_the_media_type_of_its_suffix(client, name):
    response = client.get(f"/static/{name}")
    assert response.status_code == 200
    assert response.content == (pages.DIRECTORY / name).read_bytes()
    media_type = response.headers["Content-Type"].partition(";")[0]
    assert media_type == pages.MEDIA_TYPES[os.path.splitext(name)[1]]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "Content-Security-Policy" in response.headers  # that of a worker is its script's


def test_the_media_type_of_a_script_is_not_that_of_the_system(client, monkeypatch):
    monkeypatch.setattr("mimetypes.guess_type", lambda *_, **__: ("text/plain", None))
    response = client.get("/static/main.js")
    assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize("path", [*PAGES, "/static/main.js", "/v1/sample"])
def test_a_client_that_has_a_copy_gets_no_content(client, path):
    response = client.get(path)
    tag = response.headers["ETag"]
    head = client.request("HEAD", path)
    assert (head.content, head.headers["ETag"]) == (b"", tag)
    assert head.headers["Content-Length"] == f"{len(response.content)}"
    for header in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        for method in ("GET", "HEAD"):
            copy = client.request(method, path, headers={"If-None-Match": header})
            assert (copy.status_code, copy.content) == (304, b"")
            assert copy.headers["ETag"] == tag
            assert copy.headers.get_list("Cache-Control") == ["no-cache"]
            policy = response.headers.get("Content-Security-Policy")
            assert copy.headers.get("Content-Security-Policy") == policy
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_file_of_another_version_has_another_tag(client, monkeypatch, tmp_path):
    """Also with the same size and time: a package may set all times to the same."""
    tags = []
    for content in ("let a = 1;", "let a = 2;"):
        folder = tmp_path / content[-2]
        folder.mkdir()
        (folder / "main.js").write_text(content)
        os.utime(folder / "main.js", (0, 0))
        monkeypatch.setattr(pages, "_FILES", pages._Files(directory=folder))
        response = client.get("/static/main.js")
        assert response.text == content
        assert "Last-Modified" not in response.headers
        tags.append(response.headers["ETag"])
    assert tags[0] != tags[1]


def test_other_answers_are_not_stored(client):
    for path in ("/livez", "/v1/palettes", "/static/nothing.js"):
        assert client.get(path).headers.get_list("Cache-Control") == ["no-store"]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/nothing.js",
        "/docs",  # a folder
        "/vendor/swagger-ui/",
        "/../pages.py",
        "/%2e%2e/pages.py",
        "/..%2fpages.py",
        "/docs/..%2f..%2fpages.py",
        "/....//pages.py",
        "//etc/passwd",
        "/%2fetc%2fpasswd",
        "/%5c..%5cpages.py",
        "/main.js%00",
        "/%00",
        "/main.js/docs",
        "/" + "a" * 5000,
        "/" + "a/" * 3000,
        "/%F0%9F%92%A9",
        "/%ff%fe",
    ],
    ids=range(20),
)
def test_what_is_no_file_is_a_problem(client, path):
    problem = assert_problem(client.get(f"/static{path}"), 404, "not_found")
    assert problem["where"] == "path"
    assert len(problem["got"]) < 200


def test_a_link_that_leaves_the_folder_is_not_followed(client, monkeypatch, tmp_path):
    folder, outside = tmp_path / "static", tmp_path / "secret.js"
    folder.mkdir()
    outside.write_text("secret")
    (folder / "inside.js").write_text("inside")
    (folder / "link.js").symlink_to(outside)
    (folder / "loop.js").symlink_to("loop.js")
    (folder / "up").symlink_to(tmp_path)
    monkeypatch.setattr(pages, "_FILES", pages._Files(directory=folder))
    assert client.get("/static/inside.js").text == "inside"
    for name in ("link.js", "loop.js", "up/secret.js"):
        assert_problem(client.get(f"/static/{name}"), 404, "not_found")


@pytest.mark.parametrize("path", ["/", "/docs", "/static/main.js", "/v1/sample"])
def test_files_have_no_other_methods(client, path):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        response = client.request(method, path)
        assert_problem(response, 405, "method_not_allowed")
        assert response.headers["Allow"] == "GET, HEAD"


def test_a_part_of_a_file_is_answered_with_the_whole(client):
    for header in ("bytes=0-1", "bytes=9-1", "bytes=999999999-", "bytes=" + "0-1," * 200, "x"):
        response = client.get("/static/main.js", headers={"Range": header})
        assert response.status_code == 200
        assert response.content == (pages.DIRECTORY / "main.js").read_bytes()
        assert response.headers["Accept-Ranges"] == "none"


def test_all_files_are_one_route_of_the_metrics(client):
    for path in ("/", "/docs", "/static/main.js", "/static/types.js", "/static/nothing-1.js"):
        client.get(path)
    text = client.get("/metrics").text
    routes = set(re.findall(r'seg_loss_requests_total{[^}]*route="([^"]*)"', text))
    assert {"/", "/docs", "/static/{path}"} <= routes
    assert not any("main.js" in route or "nothing-1" in route for route in routes)


def test_pages_are_answered_while_no_request_is_admitted():
    with served(max_concurrent_requests=1) as client:
        workers = client.app.state.service.workers
        with workers.reserve(0):
            assert client.post("/v1/loss", json={}).status_code == 503
            for path in ("/", "/docs", "/static/main.js"):
                assert client.get(path).status_code == 200
            assert workers.requests_in_flight == 1


def test_a_client_that_reads_no_file_loses_its_connection():
    sent = []

    async def send(message):
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # a socket that takes no bytes

    async def receive():
        await asyncio.Event().wait()

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/static/main.js",
        "query_string": b"",
        "headers": [],
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }
    limits = {"body_timeout_seconds": 0.1, "min_body_bytes_per_second": 1 << 30}
    with served(**limits) as client:
        client._runner.run(asyncio.wait_for(client.app(scope, receive, send), 20))
    assert sent == ["http.response.start", "http.response.body"]


def test_the_vendored_files_have_a_licence_and_a_version():
    vendor = pages.DIRECTORY / "vendor"
    folders = [folder for folder in vendor.iterdir() if folder.is_dir()]
    assert folders
    for folder in folders:
        package = json.loads((folder / "package.json").read_text())
        assert package["version"]
        assert package["license"]
        assert (folder / "LICENSE").stat().st_size > 500
    assert sum(path.stat().st_size for path in vendor.rglob("*")) < 2_200_000


def test_the_sample_is_a_scene_with_its_class_names(client):
    response = client.get("/v1/sample")
    assert response.headers["Content-Type"] == "application/x-safetensors"
    tensors, metadata = safetensors_format.decode(memoryview(bytearray(response.content)))
    scene = draw_sample()
    assert tensors.keys() == {"image", "labels", "logits"}
    assert np.array_equal(tensors["image"].numpy(), scene.photo)
    assert torch.equal(tensors["labels"], torch.from_numpy(scene.labels)[None])
    assert torch.equal(tensors["logits"], torch.from_numpy(scene.logits)[None].half())
    assert tensors["logits"].shape == (1, 19, 256, 512)
    palette = PALETTES[metadata["palette"]]
    assert json.loads(metadata["class_names"]) == [*palette.class_names]
    assert metadata["ignore_index"] == "255"
    assert safetensors.torch.load(response.content).keys() == tensors.keys()
    problem = client.get("/v1/sample", headers={"Accept": "application/json"})
    assert assert_problem(problem, 406, "not_acceptable")["offered"] == [
        "application/x-safetensors"
    ]


def test_the_sample_can_be_sent_back_as_it_is(client):
    with served() as roomy:
        content = client.get("/v1/sample").content
        response = roomy.post(
            "/v1/evaluate",
            content=content,
            headers={"Content-Type": "application/x-safetensors"},
        )
    answer = response.json()
    assert answer["diagnosis"]["state"] == "learning"
    assert len(answer["confusion"]) == 19
    assert answer["warnings"] == []


def test_the_sample_is_drawn_once_in_a_worker_thread(monkeypatch):
    threads, draw = [], sample.draw_sample

    def counting_draw(*_: int):
        threads.append(threading.current_thread().name)
        return draw(32, 64)

    monkeypatch.setattr(sample, "draw_sample", counting_draw)
    with served() as client:
        service = client.app.state.service

        async def ask() -> list[sample.SampleFile]:
            files = (service.sample.file(service.workers) for _ in range(5))
            return await asyncio.gather(*files)

        files = client._runner.run(ask())
        assert all(file is files[0] for file in files)
        assert client.get("/v1/sample").content == files[0].content
    (name,) = threads
    assert name.startswith("compute")
