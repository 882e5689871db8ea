"""A service with a network: photos become label maps, maps, pictures, and with labels metrics."""

import asyncio
import io
import json
import shutil
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
from examples import npy_file, png_bomb, safetensors_file
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import SAFETENSORS, Client, assert_problem, running, served
from small_networks import CLASS_NAMES, NUM_CLASSES, Waiting, make_photos, write_checkpoint

import seg_loss
from app import network as networks
from app.devices import CPU
from app.images.palettes import PALETTES
from app.settings import Settings
from seg_loss import InvalidInput

AS_JSON = {**SAFETENSORS, "Accept": "application/json"}
AS_SAFETENSORS = {**SAFETENSORS, "Accept": "application/x-safetensors"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The directory of a checkpoint of each network."""
    directory = tmp_path_factory.mktemp("checkpoints")
    for name in ("Strided", "NoWhite", "Waiting", "Overflowing", "Choosy", "fcn8s"):
        write_checkpoint(directory, name)
    return directory


def settings_of(directory, name, **others):
    factory = "none" if name == "fcn8s" else f"small_networks:{name}"
    return {"model": f"{directory / name}.safetensors", "network": factory, **others}


@pytest.fixture(scope="module")
def service(checkpoints) -> Iterator[Client]:
    """A service of an FCN-8s, whose photos of more than 64 pixels are cut into tiles."""
    limits = {"max_photo_pixels": 70_000, "max_pixels": 1 << 18, "max_body_bytes": 1 << 20}
    tiles = {"tile_side_pixels": 64, "tile_overlap_pixels": 32}
    with served(**settings_of(checkpoints, "fcn8s"), **limits, **tiles) as client:
        client.wait_until_warm()
        yield client


@pytest.fixture(scope="module")
def no_white(checkpoints) -> Iterator[Client]:
    """A service whose network fails for white photos, and that waits for its requests."""
    with served(**settings_of(checkpoints, "NoWhite"), batch_wait_seconds=20) as client:
        client.wait_until_warm()
        yield client


def maps_of(client: Client, photo, **options) -> dict[str, torch.Tensor]:
    """The maps that the library computes from the scores of the service's network."""
    network = client.app.state.service.batcher.network
    scores, upsampling = network.scores(photo)
    return seg_loss.predict(scores, size=photo.shape[:2], upsampling=upsampling, **options)


def png_of(photo) -> bytes:
    target = io.BytesIO()
    Image.fromarray(photo).save(target, "PNG")
    return target.getvalue()


def file_of(photo) -> bytes:
    return safetensors_file(image=torch.from_numpy(photo))


@pytest.mark.parametrize("size", [(40, 50), (70, 90)], ids=["one tile", "tiles"])
def test_a_photo_becomes_a_label_map_of_its_size(service, size):
    (photo,) = make_photos(size)
    expected = maps_of(service, photo)["prediction"][0].numpy()
    for request in (
        {"content": file_of(photo), "headers": SAFETENSORS},
        {"files": {"image": png_of(photo)}},
        {"files": {"image": npy_file(photo)}},
    ):
        response = service.post("/v1/predict", **request)
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"] == "image/png"
        picture = Image.open(io.BytesIO(response.content))
        assert picture.mode == "P"
        assert np.array_equal(np.array(picture), expected)


def test_a_photo_becomes_maps_with_a_summary(service):
    (photo,) = make_photos((70, 50))
    names = ("confidence", "entropy", "top_classes", "top_probabilities")
    path = f"/v1/predict?temperature=2&maps={','.join(names)}"
    response = service.post(path, content=file_of(photo), headers=AS_SAFETENSORS)
    expected = maps_of(service, photo, maps=names, temperature=2)
    maps = safetensors.torch.load(response.content)
    assert maps.keys() == set(names)
    for name in names:
        torch.testing.assert_close(maps[name], expected[name], rtol=1e-5, atol=1e-6)
    length = int.from_bytes(response.content[:8], "little")
    metadata = json.loads(response.content[8 : 8 + length])["__metadata__"]
    as_json = service.post("/v1/predict?temperature=2", content=file_of(photo), headers=AS_JSON)
    assert json.loads(metadata["prediction"]) == as_json.json()


def test_the_summary_has_the_class_names_of_the_network(service):
    (photo,) = make_photos((40, 50))
    summary = service.post("/v1/predict", content=file_of(photo), headers=AS_JSON).json()
    assert (summary["num_images"], summary["size"]) == (1, [40, 50])
    assert summary["num_classes"] == NUM_CLASSES
    assert summary["evaluation"] is None
    counts = np.bincount(maps_of(service, photo)["prediction"].flatten(), minlength=NUM_CLASSES)
    assert summary["classes"] == [
        {"index": index, "name": CLASS_NAMES[index], "pixels": count, "share": count / 2000}
        for index, count in enumerate(counts.tolist())
        if count
    ]


def test_with_labels_the_summary_has_loss_and_metrics(service):
    (photo,) = make_photos((70, 50))
    network = service.app.state.service.batcher.network
    scores, upsampling = network.scores(photo)
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, NUM_CLASSES, (1, 70, 50), generator=random, dtype=torch.uint8)
    labels[:, :9] = 255
    expected = seg_loss.evaluate(scores, labels, upsampling=upsampling, normalization="batch")
    body = safetensors_file(image=torch.from_numpy(photo), labels=labels)
    response = service.post("/v1/predict?normalization=batch", content=body, headers=AS_JSON)
    evaluation = response.json()["evaluation"]
    assert evaluation["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert evaluation["ignored_pixels"] == 450
    confusion = torch.tensor(evaluation["confusion"])
    assert (confusion - expected.confusion).abs().sum() <= 4  # of nearly equal scores
    assert evaluation["metrics"]["mean_iu"] == pytest.approx(expected.metrics.mean_iu, abs=0.01)
    # The label map is that of all pixels, ignored ones included.
    assert sum(row["pixels"] for row in response.json()["classes"]) == 3500


@pytest.mark.parametrize("kind", ["prediction", "overlay", "confidence", "entropy", "error", "nll"])
def test_every_kind_of_picture_is_drawn_of_a_photo(service, kind):
    (photo,) = make_photos((40, 50))
    inputs = {"image": torch.from_numpy(photo)}
    if kind in ("error", "nll"):
        inputs["labels"] = torch.zeros(40, 50, dtype=torch.uint8)
    response = service.post_tensors(f"/v1/visualize?kind={kind}", **inputs)
    assert response.status_code == 200, response.text
    picture = Image.open(io.BytesIO(response.content))
    assert picture.size == (50, 40)
    prediction = maps_of(service, photo)["prediction"][0].numpy()
    if kind == "prediction":
        assert np.array_equal(np.array(picture), prediction)
    if kind == "overlay":
        palette = PALETTES["voc"]
        blend = np.rint(photo / 2 + palette.paint(prediction) / 2)
        shown = np.where((prediction == palette.background_index)[..., None], photo, blend)
        assert np.abs(np.array(picture) - shown).max() <= 1


def test_pictures_that_need_no_network_stay_what_they_are(service, client):
    (photo,) = make_photos((40, 50))
    labels = torch.ones(40, 50, dtype=torch.uint8)
    image = torch.from_numpy(photo)
    before = service.app.state.service.metrics.batch_photos.collect()[0].samples
    for query, inputs in (
        ("kind=overlay", {"labels": labels, "image": image}),
        ("kind=labels", {"labels": labels, "image": image}),
        ("kind=overlay", {"prediction": labels, "image": image}),
        ("kind=error", {"prediction": labels, "labels": labels, "image": image}),
        ("kind=nll", {"image": image}),
        ("kind=error", {"image": image}),
    ):
        response = service.post_tensors(f"/v1/visualize?{query}", **inputs)
        expected = client.post_tensors(f"/v1/visualize?{query}", **inputs)
        assert response.status_code == expected.status_code
        assert response.headers["Content-Type"] == expected.headers["Content-Type"]
        if response.status_code == 200:
            assert response.content == expected.content
    after = service.app.state.service.metrics.batch_photos.collect()[0].samples
    assert after == before


def test_a_photo_and_labels_are_evaluated_like_logits(service):
    (photo,) = make_photos((70, 50))
    network = service.app.state.service.batcher.network
    scores, upsampling = network.scores(photo)
    random = torch.Generator().manual_seed(4)
    labels = torch.randint(0, NUM_CLASSES, (1, 70, 50), generator=random, dtype=torch.uint8)
    labels[:, :9] = 255
    expected = seg_loss.evaluate(scores, labels, upsampling=upsampling, maps=("nll",))
    body = safetensors_file(image=torch.from_numpy(photo), labels=labels)
    response = service.post("/v1/evaluate?maps=labels,nll", content=body, headers=AS_SAFETENSORS)
    maps = safetensors.torch.load(response.content)
    assert torch.equal(maps["labels"], labels)
    torch.testing.assert_close(maps["nll"], expected.maps["nll"], rtol=1e-5, atol=1e-6)
    evaluation = service.post("/v1/evaluate", content=body, headers=SAFETENSORS).json()
    assert evaluation["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert evaluation["confusion"] == expected.confusion.tolist()


def test_labels_of_a_photo_have_the_usual_warnings(service):
    (photo,) = make_photos((40, 50))
    labels = torch.full((40, 50), 3, dtype=torch.uint8)
    body = safetensors_file(image=torch.from_numpy(photo), labels=labels)
    summary = service.post("/v1/predict", content=body, headers=AS_JSON).json()
    assert "labels: all pixels that are not ignored have the class 3." in summary["warnings"]


def test_scores_with_a_photo_are_not_those_of_the_network(service):
    (photo,) = make_photos((40, 50))
    logits = torch.randn(1, 3, 10, 10)
    response = service.post_tensors(
        "/v1/predict?upsampling=bilinear", logits=logits, image=torch.from_numpy(photo)
    )
    prediction = np.array(Image.open(io.BytesIO(response.content)))
    assert np.array_equal(prediction, seg_loss.predict(logits, size=(40, 50))["prediction"][0])


ERRORS = {
    "an upsampling": (
        "upsampling=fcn",
        {},
        "upsampling: expected none with a photo, since the network has its own, got fcn.",
    ),
    "probabilities": (
        "scores=probabilities",
        {},
        "scores: expected logits with a photo, which is no scores, got probabilities.",
    ),
    "a size": (
        "size=20,25",
        {},
        "size: expected none with a photo, whose maps have its size, got 20 x 25.",
    ),
    "labels of another size": (
        "",
        {"labels": torch.zeros(1, 50, 40, dtype=torch.uint8)},
        "labels: expected 40 x 50 (height x width) to match the image, got 50 x 40.",
    ),
    "labels of no class": (
        "",
        {"labels": torch.full((1, 40, 50), 7, dtype=torch.uint8)},
        "labels: expected 0...4 or 255 (ignored), got 7 at (0, 0, 0) and 1999 more pixels.",
    ),
    "float labels": (
        "",
        {"labels": torch.zeros(1, 40, 50)},
        (
            "labels: expected uint8, int8, int16, int32, int64, uint16, uint32 or uint64, "
            "got float32. Class indices are integers."
        ),
    ),
    "a mask": (
        "ignore_index=none",
        {"labels": torch.full((1, 40, 50), 255, dtype=torch.uint8)},
        (
            "labels: expected 0...4, got 255 at (0, 0, 0) and 1999 more pixels. "
            "If 255 marks void pixels, pass ignore_index=255."
        ),
    ),
}


def test_what_does_not_fit_a_photo_is_found_before_the_network_computes(service):
    (photo,) = make_photos((40, 50))
    batches = service.app.state.service.metrics.batch_photos
    before = batches.collect()[0].samples
    for query, shape, sentence in (
        ("", (2, 40, 50), "labels: expected [H,W] or [1,H,W], those of one image, got shape (2,"),
        ("", (1, 1, 1, 40, 50), "labels: expected [H,W] or [1,H,W], those of one image, got"),
        ("num_classes=9", (40, 50), "num_classes: expected 5, the classes of the network, got 9."),
    ):
        labels = torch.zeros(shape, dtype=torch.uint8)
        response = service.post_tensors(
            f"/v1/evaluate?{query}", labels=labels, image=torch.from_numpy(photo)
        )
        problem = assert_problem(response, 422, "ill_posed")
        assert problem["detail"].startswith(sentence)
    assert batches.collect()[0].samples == before


@pytest.mark.parametrize("case", ERRORS)
def test_what_does_not_fit_a_photo_is_an_error(service, case):
    query, inputs, sentence = ERRORS[case]
    (photo,) = make_photos((40, 50))
    response = service.post_tensors(f"/v1/predict?{query}", **inputs, image=torch.from_numpy(photo))
    assert assert_problem(response, 422, "ill_posed")["detail"] == sentence


def test_photos_for_the_network_have_a_limit_of_their_own(service):
    for size, got in (
        ((265, 265), "265 x 265 = 70225"),
        ((1, 300), "1 x 300 = 300, counted as 76800"),
    ):
        (photo,) = make_photos(size)
        response = service.post("/v1/predict", content=file_of(photo), headers=SAFETENSORS)
        problem = assert_problem(response, 413, "too_large")
        assert problem["detail"] == (
            f"image: expected at most 70000 pixels for a network, got {got}. "
            "Send a smaller photo. The limit is SEG_LOSS_MAX_PHOTO_PIXELS."
        )
        assert problem["limit"] == 70_000
    bomb = service.post("/v1/predict", files={"image": png_bomb()})
    assert assert_problem(bomb, 413, "too_large")["where"] == "image"


def test_the_limits_on_upsampled_logits_hold_for_photos(checkpoints):
    limits = {"max_upsampled_logits": 5 * 40 * 50, "max_photo_pixels": 1 << 30}
    with served(**settings_of(checkpoints, "Strided"), **limits) as client:
        for size, limit in (((40, 50), None), ((40, 51), 10_000), ((65537, 1), 65536)):
            (photo,) = make_photos(size)
            response = client.post("/v1/predict", content=file_of(photo), headers=SAFETENSORS)
            if limit is None:
                assert response.status_code == 200
            else:
                assert assert_problem(response, 413, "too_large")["limit"] == limit


def test_the_scores_of_a_photo_are_reserved_before_the_network_computes(checkpoints):
    (photo,) = make_photos((64, 64))
    body = file_of(photo)
    limits = {"max_body_bytes": len(body), "max_bytes_in_flight": len(body) + 10_000}
    with served(**settings_of(checkpoints, "Strided"), **limits) as client:
        service = client.app.state.service
        needed = service.batcher.network.working_bytes(64, 64)
        assert 4 * NUM_CLASSES * 16 * 16 <= needed < 4 * 4 * NUM_CLASSES * 16 * 16
        response = client.post("/v1/predict", content=body, headers=SAFETENSORS)
        assert_problem(response, 413, "too_large")
        assert service.metrics.batch_photos.collect()[0].samples[-2].value == 0
        assert service.workers.bytes_in_flight == 0


def test_photos_sent_together_have_the_answers_of_each_alone(no_white):
    photos = make_photos(*[(40, 50)] * 4, *[(20, 30)] * 3, (80, 20))
    bodies = [file_of(photo) for photo in photos]
    path, accept = "/v1/predict?maps=confidence", "application/x-safetensors"
    num_batches = partial(_num_batches, no_white)
    alone = [no_white.post_all(path, [body], accept)[0] for body in bodies]
    before = num_batches()
    together = no_white.post_all(path, bodies, accept)
    assert num_batches() - before == 3  # one for each size
    for response, expected in zip(together, alone, strict=True):
        assert response.status_code == 200, response.text
        confidence, confidence_alone = (
            safetensors.torch.load(answer.content)["confidence"] for answer in (response, expected)
        )
        torch.testing.assert_close(confidence, confidence_alone, rtol=1e-5, atol=1e-6)


def test_a_photo_that_fails_does_not_hurt_those_beside_it(no_white, caplog):
    photos = make_photos(*[(40, 50)] * 3)
    photos[1][:] = 255
    responses = no_white.post_all("/v1/predict", [file_of(photo) for photo in photos], "*/*")
    assert [response.status_code for response in responses] == [200, 422, 200]
    problem = assert_problem(responses[1], 422, "ill_posed")
    assert problem["detail"] == (
        "image: expected a size that the network small_networks:NoWhite can process, got 40 x 50."
    )
    assert "secret" not in responses[1].text
    (line,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert line == "No scores of a photo 40 x 50: RuntimeError: a secret of the network"
    assert no_white.app.state.service.workers.requests_in_flight == 0


def test_batches_have_a_limit_of_pixels(checkpoints):
    photos = make_photos(*[(40, 50)] * 5)
    bodies = [file_of(photo) for photo in photos]
    limits = {"batch_wait_seconds": 20, "max_batch_pixels": 2 * 256 * 256}
    with served(**settings_of(checkpoints, "Strided"), **limits) as client:
        client.wait_until_warm()
        responses = client.post_all("/v1/predict", bodies[:4], "*/*")
        assert [response.status_code for response in responses] == [200] * 4
        assert _num_batches(client) == 2
        assert "seg_loss_network_batch_photos_sum 4.0" in client.get("/metrics").text


def test_a_network_that_takes_too_long_is_a_503(checkpoints):
    Waiting.may_go.clear()
    (photo, other) = make_photos((40, 50), (20, 30))
    limits = {"compute_timeout_seconds": 0.3, "num_workers": 1}
    with served(**settings_of(checkpoints, "Waiting"), **limits) as client:
        client.wait_until_warm()
        responses = client.post_all("/v1/predict", [file_of(photo), file_of(other)], "*/*")
        for response in responses:
            problem = assert_problem(response, 503, "unavailable")
            assert "not ready within 0.3 s" in problem["detail"]
        Waiting.may_go.set()
        while True:  # until the one thread is free again
            response = client.post("/v1/predict", content=file_of(photo), headers=SAFETENSORS)
            if response.status_code == 200:
                break
            assert_problem(response, 503, "unavailable")
        # The photo that was still waiting has been dropped.
        sizes = client.app.state.service.batcher.network._module.module.sizes
        assert (40, 50) in sizes
        assert (20, 30) not in sizes
        assert client.app.state.service.workers.bytes_in_flight == 0


def test_the_photo_of_a_client_that_disconnects_is_dropped(checkpoints):
    Waiting.may_go.clear()
    bodies = [file_of(photo) for photo in make_photos((40, 50), (20, 30))]
    with served(**settings_of(checkpoints, "Waiting"), num_workers=2) as client:
        client.wait_until_warm()
        service = client.app.state.service
        sizes = service.batcher.network._module.module.sizes
        statuses = client.post_and_disconnect(
            "/v1/predict", bodies, lambda: len(sizes) == 2 and len(service.batcher._queue) == 1
        )
        assert statuses == [400, 400]
        assert service.workers.requests_in_flight == service.workers.bytes_in_flight == 0
        Waiting.may_go.set()
        (photo,) = make_photos((10, 10))
        response = client.post("/v1/predict", content=file_of(photo), headers=SAFETENSORS)
        assert response.status_code == 200
        assert sorted(sizes[1:]) in ([(10, 10), (20, 30)], [(10, 10), (40, 50)])


def test_photos_in_a_batch_are_cancelled_when_the_service_ends(checkpoints):
    Waiting.may_go.clear()
    (photo,) = make_photos((40, 50))

    async def close_while_it_computes(batcher) -> None:
        scores = asyncio.create_task(batcher.scores(photo))
        while len(batcher.network._module.module.sizes) < 2:
            await asyncio.sleep(0.01)
        await batcher.close()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(scores, 20)

    with served(**settings_of(checkpoints, "Waiting")) as client:
        client.wait_until_warm()
        client._runner.run(close_while_it_computes(client.app.state.service.batcher))
        Waiting.may_go.set()


def test_a_network_that_has_diverged_is_named(checkpoints):
    (photo,) = make_photos((40, 50))
    with served(**settings_of(checkpoints, "Overflowing")) as client:
        for path in ("/v1/predict", "/v1/predict?maps=prediction"):
            response = client.post(path, content=file_of(photo), headers=SAFETENSORS)
            problem = assert_problem(response, 422, "ill_posed")
            assert problem["fix"] == "The network has diverged, or the file is damaged."


def test_whatever_a_network_raises_is_an_error_of_the_photo(checkpoints):
    photos = make_photos((64, 64), (40, 50))
    with served(**settings_of(checkpoints, "Choosy")) as client:
        statuses = [
            client.post("/v1/predict", content=file_of(photo), headers=SAFETENSORS).status_code
            for photo in photos
        ]
    assert statuses == [200, 422]


def test_the_served_network_is_described(service, client):
    assert client.get("/v1/model").json() == {"model": None}
    model = service.get("/v1/model").json()["model"]
    assert (model["network"], model["preprocessing"]) == ("fcn8s", "caffe")
    assert model["class_names"] == list(CLASS_NAMES)
    assert model["max_photo_pixels"] == 70_000
    assert str(service.app.state.service.settings.model) not in service.get("/v1/model").text


def test_without_a_network_a_photo_is_an_error_with_the_setting(client):
    (photo,) = make_photos((40, 50))
    response = client.post("/v1/predict", content=file_of(photo), headers=SAFETENSORS)
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["detail"] == (
        "inputs: expected logits, or an image where a network is served, got image. "
        "No network is served: set SEG_LOSS_MODEL to a checkpoint, or send logits."
    )


def test_a_service_with_a_bad_checkpoint_does_not_start(run, monkeypatch, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no weights")
    monkeypatch.setenv("SEG_LOSS_MODEL", str(tmp_path / "a.safetensors"))
    status, out, err = run("serve", "--port", "0")
    assert (status, out) == (1, "")
    assert err.startswith("seg-loss: SEG_LOSS_MODEL: a.safetensors: expected a safetensors file")
    assert err.count("\n") == 1
    with pytest.raises(InvalidInput):
        served(model=str(tmp_path / "b.safetensors")).__enter__()


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(0, 80), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.uint8, torch.uint8, torch.float32]),
    channels=st.sampled_from([3, 3, 3, 1]),
    path=st.sampled_from(["predict?", "predict?maps=entropy&", "visualize?kind=overlay&"]),
    palette=st.sampled_from(["voc", "cityscapes"]),
    accept=st.sampled_from(["*/*", "application/json", "application/x-safetensors"]),
    labels=st.none() | st.lists(st.integers(0, 3), max_size=4) | st.just("those of the photo"),
)
def test_no_photo_causes_an_internal_error(
    no_white, shape, dtype, channels, path, palette, accept, labels
):
    tensors = {"image": torch.ones((*shape, channels), dtype=dtype)}
    if labels is not None:
        size = shape[-2:] if labels == "those of the photo" else labels
        tensors["labels"] = torch.ones(size, dtype=torch.uint8)
    body = safetensors_file(**tensors)
    (response,) = no_white.post_all(f"/v1/{path}palette={palette}", [body], accept)
    assert response.status_code in (200, 406, 422), response.text


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_posts_a_photo_to_a_process_with_a_network(checkpoints, tmp_path):
    (photo,) = make_photos((40, 50))
    (tmp_path / "photo.png").write_bytes(png_of(photo))
    (tmp_path / "labels.npy").write_bytes(npy_file(np.ones((40, 50), np.uint8)))
    with running(model=f"{checkpoints / 'fcn8s.safetensors'}") as server:
        image = ("-F", f"image=@{tmp_path}/photo.png")
        status, body = server.curl("/v1/predict", *image)
        assert status == 200, body
        assert np.array(Image.open(io.BytesIO(body))).shape == (40, 50)
        labels = ("-F", f"labels=@{tmp_path}/labels.npy", "-H", "Accept: application/json")
        status, body = server.curl("/v1/predict", *image, *labels)
        assert status == 200, body
        assert json.loads(body)["evaluation"]["valid_pixels"] == 2000


def test_a_network_is_loaded_on_the_device_of_the_service(checkpoints):
    path = f"{checkpoints / 'fcn8s'}.safetensors"
    network = networks.load(path, None, CPU, Settings(), ("SEG_LOSS_MODEL", "SEG_LOSS_NETWORK"))
    assert network.device == CPU


def _num_batches(client: Client) -> int:
    samples = client.app.state.service.metrics.batch_photos.collect()[0].samples
    return next(int(sample.value) for sample in samples if sample.name.endswith("_count"))
