"""Admission control: limits on requests, their memory and their time."""

import gzip
import threading
import time
import zlib
from collections.abc import AsyncIterator

import httpx
import pytest
import torch
from examples import UPSAMPLED_SIZE, make_inputs, safetensors_file
from serving import SAFETENSORS, Client, assert_problem, assert_still_serves, served
from zstandard import compress as zstd_compress

import seg_loss
from app import inputs, results
from app.results import EvaluationResult
from seg_loss import Bilinear, Evaluation


@pytest.fixture(autouse=True)
def still_serves(client):
    yield
    assert_still_serves(client)


def test_health_and_metrics_need_no_admission():
    with served(max_concurrent_requests=1) as client, client.app.state.service.workers.reserve(1):
        assert client.post_tensors("/v1/loss", **make_inputs()).status_code == 503
        assert client.get("/livez").status_code == 200
        assert "seg_loss_requests_in_flight 1.0" in client.get("/metrics").text


def test_all_bodies_together_have_a_limit():
    with served(max_body_bytes=4000, max_bytes_in_flight=4000) as client:
        service = client.app.state.service
        with service.workers.reserve(3999):
            response = client.post_tensors("/v1/loss", **make_inputs())
            problem = assert_problem(response, 503, "unavailable")
            assert problem["retry_after_seconds"] == 1
        assert_still_serves(client)


def test_a_timed_out_computation_keeps_its_reservation_to_the_end(monkeypatch):
    decode = inputs.decode

    def slow(*arguments: object) -> object:
        time.sleep(0.3)
        return decode(*arguments)

    with served(compute_timeout_seconds=0.05, max_concurrent_requests=1) as client:
        client.wait_until_warm()
        monkeypatch.setattr(inputs, "decode", slow)
        response = client.post_tensors("/v1/loss", **make_inputs())
        problem = assert_problem(response, 503, "unavailable")
        assert "not ready within 0.05 s" in problem["detail"]
        assert response.headers["Retry-After"] == "1"
        monkeypatch.undo()
        response = client.post_tensors("/v1/loss", **make_inputs())
        problem = assert_problem(response, 503, "unavailable")
        assert problem["detail"] == "1 requests are being served. Try again in 1 s."
        time.sleep(0.4)
        assert_still_serves(client)
        assert client.app.state.service.workers.requests_in_flight == 0
        assert client.app.state.service.workers.bytes_in_flight == 0


def test_maps_and_upsampling_grow_the_reservation():
    tensors = make_inputs("bilinear")
    body = len(safetensors_file(**tensors))
    maps = "prediction,nll,confidence,entropy,top_classes,top_probabilities"
    path = f"/v1/evaluate?upsampling=bilinear&maps={maps}"
    headers = {**SAFETENSORS, "Accept": "application/x-safetensors"}
    map_bytes = 4 * 10 * 20 * 30
    scratch = seg_loss.scratch_bytes(tensors["logits"], UPSAMPLED_SIZE, upsampling=Bilinear())
    result = 3 * 8 * 5 * 5 + 3 * results.max_json_bytes(1, 5, 20 * 30)
    needed = map_bytes + scratch + result
    limits = {"max_body_bytes": body, "max_bytes_in_flight": body + needed, "num_threads": 2}

    def post(client: Client, path: str = path):
        return client.post(path, content=safetensors_file(**tensors), headers=headers)

    with served(**limits) as client:
        workers = client.app.state.service.workers
        response = post(client)
        assert response.status_code == 200, response.text
        assert len(response.content) < map_bytes + (1 << 14)
        assert workers.bytes_in_flight == 0
        with workers.reserve(1):
            problem = assert_problem(post(client), 503, "unavailable")
            assert problem["retry_after_seconds"] == 1
            assert workers.bytes_in_flight == 1
            assert post(client, "/v1/evaluate?upsampling=bilinear&maps=nll").status_code == 200
    limits["max_bytes_in_flight"] -= 1
    with served(**limits) as client:
        problem = assert_problem(post(client), 413, "too_large")
        assert problem["detail"] == (
            f"memory: expected at most {needed - 1} bytes beside the body, got {needed}. "
            f"The service has SEG_LOSS_MAX_BYTES_IN_FLIGHT={body + needed - 1}."
        )
        assert problem["limit"] == needed - 1
        assert client.app.state.service.workers.bytes_in_flight == 0


ENCODERS = {None: bytes, "gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd_compress}


@pytest.mark.parametrize("content_encoding", ENCODERS)
def test_a_body_of_unknown_size_takes_the_memory_of_what_arrives(content_encoding):
    def post(content: bytes) -> httpx.Response:
        async def chunks() -> AsyncIterator[bytes]:
            encoded = ENCODERS[content_encoding](content)
            for begin in range(0, len(encoded), 1000):
                yield encoded[begin : begin + 1000]

        headers = {**SAFETENSORS, "Transfer-Encoding": "chunked"}
        headers |= {"Content-Encoding": content_encoding} if content_encoding else {}
        return client.post("/v1/loss", content=chunks(), headers=headers)

    small, large = safetensors_file(**make_inputs()), bytes(20_000)
    with served(max_body_bytes=1 << 20, max_bytes_in_flight=1 << 20) as client:
        workers = client.app.state.service.workers
        assert post(small).status_code == 200
        with workers.reserve((1 << 20) - 10_000):
            assert post(small).status_code == 200
            problem = assert_problem(post(large), 503, "unavailable")
            assert problem["detail"] == "The memory for requests is in use. Try again in 1 s."
            assert workers.bytes_in_flight == (1 << 20) - 10_000
        assert workers.bytes_in_flight == 0
        assert_problem(post(bytes((1 << 20) + 1)), 413, "too_large")


ONE_PIXEL = {"logits": torch.zeros(1, 1024, 1, 1), "labels": torch.zeros(1, 1, 1).byte()}


def test_an_answer_is_counted_until_it_is_sent(monkeypatch):
    """A small body can have a large answer: clients that do not read it could fill the memory."""
    reserved = []

    def encode(result: EvaluationResult) -> list[bytes]:
        reserved.append(client.app.state.service.workers.bytes_in_flight)
        return evaluation_json(result)

    evaluation_json = results.evaluation_json
    monkeypatch.setattr(results, "evaluation_json", encode)
    with served() as client:
        response = client.post_tensors("/v1/evaluate", **ONE_PIXEL)
        assert response.status_code == 200
        assert len(response.content) < 200_000
        assert reserved[0] > 3 * 8 * 1024 * 1024 + len(response.content)
        assert client.app.state.service.workers.bytes_in_flight == 0


@pytest.mark.parametrize("operation", ["loss", "evaluate"])
def test_a_matrix_of_more_than_the_limit_is_too_large(operation):
    with served(max_body_bytes=1 << 20, max_bytes_in_flight=1 << 23) as client:
        response = client.post_tensors(f"/v1/{operation}", **ONE_PIXEL)
        problem = assert_problem(response, 413, "too_large")
        assert problem["detail"].startswith("memory: expected at most ")
        assert_still_serves(client)


def test_a_loss_turns_no_matrix_into_json(monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError

    with served() as client:
        expected = client.post_tensors("/v1/evaluate", **ONE_PIXEL).json()
        monkeypatch.setattr(results._Matrix, "blocks", fail)
        monkeypatch.setattr(Evaluation, "metrics", property(fail))
        response = client.post_tensors("/v1/loss", **ONE_PIXEL)
    assert response.json().items() <= expected.items()
    # A mean nll and a colour for each class, and nothing for each pair.
    assert len(response.content) < 64 * ONE_PIXEL["logits"].shape[1]


def test_results_become_json_in_a_compute_thread(monkeypatch):
    threads = []

    def chunks(values: object) -> list[bytes]:
        threads.append(threading.current_thread().name)
        return json_chunks(values)

    json_chunks = results.json_chunks
    monkeypatch.setattr(results, "json_chunks", chunks)
    with served() as client:
        for path in ("/v1/loss", "/v1/evaluate"):
            assert client.post_tensors(path, **make_inputs()).status_code == 200
    assert len(threads) == 2
    assert all(name.startswith("compute") for name in threads)


def test_upsampling_beyond_the_memory_limit_is_an_error():
    wide = {"logits": torch.zeros(1, 3, 1, 60_000), "labels": torch.zeros(1, 1, 9).byte()}
    with served(max_body_bytes=1 << 20, max_bytes_in_flight=1 << 21) as client:
        response = client.post_tensors("/v1/loss?upsampling=bilinear", **wide)
        problem = assert_problem(response, 413, "too_large")
        assert problem["detail"].startswith("memory: expected at most ")
        assert client.app.state.service.workers.bytes_in_flight == 0
        assert_still_serves(client)
