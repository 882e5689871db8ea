"""The service on a GPU: the fake one with the kernels of the backend under test, and a real one."""

import io
import logging
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import fake_gpu
import pytest
import safetensors.torch
import torch
from examples import (
    UPSAMPLED_SIZE,
    UPSAMPLINGS,
    loss_and_gradient_of,
    make_inputs,
    safetensors_file,
)
from PIL import Image
from serving import SAFETENSORS, Client, assert_problem, assert_still_serves, served

import seg_loss
from app import devices
from app.http import app as application
from app.http import staging
from app.settings import Settings
from tests.support import backends

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation for ..."


@pytest.fixture
def link(monkeypatch):
    """The link to a fake GPU with slots so small that even the tensors of tests take several."""
    monkeypatch.setattr(staging, "SLOT_BYTES", 96)
    return fake_gpu.install(monkeypatch)


def assert_all_operations_are_right(client: Client, upsampling: str) -> None:
    inputs = make_inputs(upsampling)
    loss, gradient = loss_and_gradient_of(upsampling, inputs)
    query = f"upsampling={upsampling}"

    response = client.post_tensors(f"/v1/loss?{query}", **inputs)
    assert response.json()["loss"] == pytest.approx(loss, rel=1e-6)

    response = client.post_tensors(f"/v1/gradient?{query}", **inputs)
    got = safetensors.torch.load(response.content)["gradient"]
    torch.testing.assert_close(got.double(), gradient, rtol=1e-5, atol=1e-7)

    response = client.post(
        f"/v1/evaluate?{query}&maps=nll,prediction,top_classes,top_probabilities",
        content=safetensors_file(**inputs),
        headers={**SAFETENSORS, "Accept": "application/x-safetensors"},
    )
    maps = safetensors.torch.load(response.content)
    expected = maps_of(upsampling, inputs)
    assert maps.keys() == expected.keys()
    for name, tensor in maps.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)

    response = client.post_tensors(f"/v1/visualize?{query}&kind=nll", **inputs)
    height, width = inputs["labels"].shape[1:]
    assert Image.open(io.BytesIO(response.content)).size == (width, height)


def maps_of(upsampling: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The maps that the CPU kernels compute."""
    names = ("nll", "prediction", "top_classes", "top_probabilities")
    with backends.numba_kernels():
        return seg_loss.evaluate(**inputs, upsampling=UPSAMPLINGS[upsampling], maps=names).maps


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_every_operation_is_computed_on_copies(link, upsampling):
    with served(num_workers=1) as client:
        client.wait_until_warm()
        assert_all_operations_are_right(client, upsampling)
    uploads = [copy for copy in link.copies if copy.source.data_ptr() != copy.target.data_ptr()]
    assert len(uploads) > 20
    assert link.pinned_bytes == staging.NUM_SLOTS * 96


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_cuda_device_computes_what_the_cpu_does(cuda, upsampling, num_workers):
    with served(device="cuda", warm_classes="5", num_workers=num_workers) as client:
        client.wait_until_warm()
        assert_all_operations_are_right(client, upsampling)
        assert 'device="cuda:0"' in client.get("/metrics").text


def test_many_requests_at_a_time_get_their_own_results_on_a_cuda_device(cuda):
    with served(device="cuda", warm_classes="19", num_workers=4) as client:
        client.wait_until_warm()
        assert_results_do_not_mix(client, shape=(1, 19, 512, 512), num_requests=32)


def test_many_requests_at_a_time_get_their_own_results(link):
    # The interpreter runs one kernel at a time.
    with served(num_workers=1 if backends.IS_INTERPRETED else 3) as client:
        client.wait_until_warm()
        assert_results_do_not_mix(client, shape=(1, 3, 8, 9), num_requests=24)


def assert_results_do_not_mix(client: Client, shape: tuple[int, ...], num_requests: int) -> None:
    """Gradients of uniform logits: the value of a class tells the labels, and so the request."""
    service, results = client.app.state.service, {}
    labels = {k: torch.full((1, *shape[2:]), k % shape[1]).byte() for k in range(num_requests)}
    logits = torch.zeros(shape)

    def request(k: int) -> None:
        with service.staging.borrow() as buffers:
            placed = [buffers.upload(tensor) for tensor in (logits, labels[k])]
            _, gradient = seg_loss.loss_and_gradient(*placed)
            results[k] = buffers.download(gradient)

    with ThreadPoolExecutor(service.settings.workers) as pool:
        list(pool.map(request, range(num_requests)))
    for k, gradient in results.items():
        is_target = torch.zeros(shape)
        is_target[:, k % shape[1]] = 1
        expected = (1 / shape[1] - is_target) / labels[k].numel()
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-9)


def test_non_finite_logits_are_an_error_on_a_gpu_too(link):
    inputs = make_inputs()
    inputs["logits"][0, 2, 5, 6] = float("nan")
    with served() as client:
        problem = assert_problem(client.post_tensors("/v1/loss", **inputs), 422, "ill_posed")
        assert problem["detail"].startswith("logits: expected finite")
        assert_still_serves(client)


def test_a_label_map_is_evaluated_beside_the_gpu(link):
    labels = make_inputs()["labels"]
    with served(device="cuda") as client:
        client.wait_until_warm()
        before = len(link.copies)
        response = client.post(
            "/v1/evaluate?maps=labels,prediction",
            content=safetensors_file(prediction=labels.clone(), labels=labels),
            headers={**SAFETENSORS, "Accept": "application/x-safetensors"},
        )
        assert len(link.copies) == before
    maps = safetensors.torch.load(response.content)
    assert torch.equal(maps["labels"], labels)
    assert torch.equal(maps["prediction"], labels)


def test_invalid_labels_are_an_error_on_a_gpu_too(link):
    inputs = make_inputs()
    inputs["labels"][0, 5, 6] = 77
    with served() as client:
        problem = assert_problem(client.post_tensors("/v1/loss", **inputs), 422, "ill_posed")
        assert problem["detail"].startswith("labels: expected 0...4 or 255")
        assert_still_serves(client)


@pytest.mark.parametrize("when", ["upload", "compute"])
def test_a_gpu_without_free_memory_is_a_503_and_not_for_ever(link, monkeypatch, caplog, when):
    released = []

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    with served(retry_after_seconds=7) as client:
        client.wait_until_warm()
        monkeypatch.setattr(devices, "release_cached_bytes", lambda: released.append(1))
        with monkeypatch.context() as patch:
            if when == "upload":
                patch.setattr(link, "start_copy", fail)
            else:
                patch.setattr(seg_loss, "evaluate", fail)
            response = client.post_tensors("/v1/loss", **make_inputs())
        problem = assert_problem(response, 503, "unavailable")
        assert problem["detail"] == (
            "The GPU has too little free memory for this request. Try again in 7 s."
        )
        assert response.headers["Retry-After"] == "7"
        assert released == [1]
        assert "answered with 503: CUDA out of memory. Tried to allocate 2.00 GiB." in caplog.text
        assert_still_serves(client)
        workers = client.app.state.service.workers
        assert (workers.requests_in_flight, workers.bytes_in_flight) == (0, 0)


def test_the_memory_of_a_failed_request_is_freed_before_the_cache_is_emptied(link, monkeypatch):
    logits_of_request, are_freed = [], []

    def fail(logits: torch.Tensor, *_: object, **__: object) -> None:
        logits_of_request.append(weakref.ref(logits))
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    def release() -> None:
        are_freed.append(logits_of_request[-1]() is None)

    with served() as client:
        client.wait_until_warm()
        monkeypatch.setattr(devices, "release_cached_bytes", release)
        with monkeypatch.context() as patch:
            patch.setattr(seg_loss, "evaluate", fail)
            client.post_tensors("/v1/loss", **make_inputs())
    assert are_freed == [True]


def test_other_errors_of_a_gpu_are_not_taken_for_a_lack_of_memory(link, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with served() as client:
        monkeypatch.setattr(seg_loss, "evaluate", fail)
        assert_problem(client.post_tensors("/v1/loss", **make_inputs()), 500, "internal")


def test_a_request_larger_than_the_gpu_is_a_413(link, monkeypatch):
    inputs = make_inputs("bilinear")
    num_bytes = sum(tensor.nbytes for tensor in inputs.values())
    map_bytes = 4 * 2 * UPSAMPLED_SIZE[0] * UPSAMPLED_SIZE[1]
    limit = num_bytes
    monkeypatch.setattr(devices, "total_bytes", lambda _: limit)
    path = "/v1/evaluate?upsampling=bilinear"
    headers = {**SAFETENSORS, "Accept": "application/x-safetensors"}

    def post(query: str):
        return client.post(path + query, content=safetensors_file(**inputs), headers=headers)

    with served() as client:
        assert post("").status_code == 200
        problem = assert_problem(post("&maps=nll,entropy"), 413, "too_large")
        assert problem["limit"] == limit
        assert problem["got"] == f"{num_bytes + map_bytes}"
        response = client.post_tensors("/v1/gradient?upsampling=bilinear", **inputs)
        assert_problem(response, 413, "too_large")


def test_the_log_and_the_metrics_name_the_device(link, caplog):
    caplog.set_level(logging.INFO)
    with served() as client:
        client.wait_until_warm()
        text = client.get("/metrics").text
    assert 'seg_loss_device_info{device="cpu",model="NVIDIA Fake"} 1.0' in text
    messages = [record.getMessage() for record in caplog.records]
    assert "Computing on cpu (NVIDIA Fake)." in messages
    (ready,) = (message for message in messages if message.startswith("Ready."))
    assert ready.endswith(" s.")


def test_the_metrics_of_a_service_on_the_cpu_name_it(client):
    assert 'seg_loss_device_info{device="cpu",model=""} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("device", "setting", "counts"),
    [
        ("cuda", "2,19,150", [2, 19]),  # no request may have 150 classes
        ("cuda", "", []),
        ("cpu", "2,19,150", [2, 19]),  # the service is ready after the first
    ],
)
def test_kernels_for_the_usual_numbers_of_classes_are_loaded_at_the_start(
    link, monkeypatch, device, setting, counts
):
    warmed = []

    def warm_up(device: torch.device, *, num_classes: int) -> None:
        warmed.append((device.type, num_classes, client.app.state.service.is_warm))

    monkeypatch.setattr(seg_loss, "warm_up", warm_up)
    monkeypatch.setattr(application, "_evaluate_as_pages_do", lambda device, num_classes: None)
    client = Client(Settings(warm_classes=setting, max_classes=64))
    client.app.state.service.device = torch.device(device)
    with client:
        client.wait_until_warm()
        assert client.get("/readyz").status_code == 200
        deadline = time.monotonic() + 10
        while len(warmed) < len(counts) and time.monotonic() < deadline:
            client.get("/livez")
    is_ready = [device == "cpu" and k > 0 for k in range(len(counts))]
    assert warmed == list(zip([device] * len(counts), counts, is_ready, strict=True))
