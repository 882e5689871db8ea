"""The responses to valid requests under `/v1`."""

import io
import json
import math
import threading
import time
from pathlib import Path

import fcn_demo
import numpy as np
import pytest
import safetensors.torch
import torch
from examples import (
    UPSAMPLED_SIZE,
    UPSAMPLINGS,
    full_size_logits,
    label_png,
    make_inputs,
    make_photo,
    npy_file,
    safetensors_file,
)
from PIL import Image
from serving import SAFETENSORS, assert_problem, assert_still_serves, served

import seg_loss
from app.http.v1 import RESOURCES
from app.images.kinds import KINDS
from app.images.palettes import PALETTES
from seg_loss.constants import MAPS

LOSS_FIELDS = {
    "inputs",
    "palette",
    "loss",
    "normalization",
    "divisor",
    "valid_pixels",
    "ignored_pixels",
    "uniform_loss",
    "per_image",
    "per_class",
    "diagnosis",
    "warnings",
}


def test_loss_returns_the_fields_of_the_contract(client):
    response = client.post_tensors("/v1/loss", **make_inputs())
    assert response.headers["Content-Type"] == "application/json"
    loss = response.json()
    assert loss.keys() == LOSS_FIELDS
    assert loss["valid_pixels"] == 39
    assert loss["ignored_pixels"] == 3
    assert loss["divisor"] == 39
    assert loss["uniform_loss"] == math.log(5)
    assert loss["per_image"] == [{"loss": loss["loss"], "valid_pixels": 39}]
    assert sum(row["pixels"] for row in loss["per_class"]) == 39
    assert loss["diagnosis"].keys() == {"state", "advice"}
    assert loss["warnings"] == []


REQUESTS = [
    "loss",
    "loss?label_space=ade_zero",
    "loss?label_space=instance_1000",
    "gradient",
    "evaluate",
    "evaluate?num_classes=5",
    *(f"visualize?kind={kind}" for kind in KINDS),
    "visualize?kind=prediction&prediction_space=ade_zero",
]


def without_inputs(response):
    """The answer; of JSON without `inputs`, which names the dtypes."""
    if response.headers["Content-Type"] != "application/json":
        return response.content
    return {name: value for name, value in response.json().items() if name != "inputs"}


@pytest.mark.parametrize("request_path", REQUESTS)
def test_labels_of_every_dtype_mean_the_same(client, request_path):
    inputs = make_inputs()
    inputs["prediction"] = inputs["labels"].flip(1).clamp(max=4)
    inputs["image"] = make_photo(6, 7)
    if request_path.startswith("evaluate"):
        del inputs["logits" if "num_classes" in request_path else "prediction"]
    expected = client.post_tensors(f"/v1/{request_path}", **inputs)
    assert expected.status_code == 200
    for name in ("int16", "int32", "int64", "uint16", "uint32", "uint64"):
        dtype = getattr(torch, name)
        names = inputs.keys() & {"labels", "prediction"}
        indices = {name: inputs[name].to(dtype) for name in names}
        tensors = {**inputs, **indices}
        files = {name: npy_file(tensor.numpy()) for name, tensor in tensors.items()}
        for response in (
            client.post_tensors(f"/v1/{request_path}", **tensors),
            client.post(f"/v1/{request_path}", files=files),
        ):
            assert response.status_code == 200, (name, response.text)
            assert without_inputs(response) == without_inputs(expected), name


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_the_largest_unsigned_label_is_no_negative_one(client, dtype):
    inputs = {**make_inputs(), "labels": make_inputs()["labels"].to(dtype)}
    largest = torch.iinfo(dtype).max
    inputs["labels"].numpy()[0, 2, 3] = largest  # torch's own assignment overflows
    for path in ("/v1/loss", "/v1/loss?ignore_index=-1,255"):
        problem = assert_problem(client.post_tensors(path, **inputs), 422, "ill_posed")
        assert problem["got"].startswith(f"{largest} at (0, 2, 3)")
    if dtype == torch.uint16:
        response = client.post_tensors("/v1/loss?ignore_index=255,65535", **inputs)
        assert response.json()["ignored_pixels"] == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_safetensors_gradient_has_the_loss_in_its_metadata(client, dtype):
    tensors = {**make_inputs(), "logits": make_inputs()["logits"].to(dtype)}
    loss, gradient = seg_loss.loss_and_gradient(**tensors)
    response = client.post_tensors("/v1/gradient?loss_weight=3", **tensors)
    assert response.headers["Content-Type"] == "application/x-safetensors"
    tensors_of_response = safetensors.torch.load(response.content)
    assert tensors_of_response.keys() == {"gradient"}
    assert torch.equal(tensors_of_response["gradient"], gradient * 3)
    length = int.from_bytes(response.content[:8], "little")
    metadata = json.loads(response.content[8 : 8 + length])["__metadata__"]
    assert float(metadata["loss"]) == float(loss)
    assert metadata["normalization"] == "valid"
    assert metadata["loss_weight"] == "3.0"


def test_an_npy_gradient_has_the_loss_in_a_header(client):
    loss, gradient = seg_loss.loss_and_gradient(**make_inputs())
    headers = {**SAFETENSORS, "Accept": "application/x-npy"}
    response = client.post(
        "/v1/gradient", content=safetensors_file(**make_inputs()), headers=headers
    )
    assert response.headers["Content-Type"] == "application/x-npy"
    assert float(response.headers["Seg-Loss"]) == float(loss)
    assert np.array_equal(np.load(io.BytesIO(response.content)), gradient.numpy())


def test_an_npy_gradient_of_bfloat16_is_float32_with_the_same_numbers(client, run, empty_directory):
    tensors = {**make_inputs(), "logits": make_inputs()["logits"].bfloat16()}
    _, gradient = seg_loss.loss_and_gradient(**tensors)
    assert gradient.dtype == torch.bfloat16
    headers = {**SAFETENSORS, "Accept": "application/x-npy"}
    response = client.post("/v1/gradient", content=safetensors_file(**tensors), headers=headers)
    assert response.headers["Seg-Loss-Dtype"] == "bfloat16"
    array = np.load(io.BytesIO(response.content))
    assert array.dtype == np.float32
    assert np.array_equal(array, gradient.float().numpy())
    Path("logits.safetensors").write_bytes(safetensors_file(logits=tensors["logits"]))
    Path("labels.npy").write_bytes(npy_file(tensors["labels"].numpy()))
    status, _, err = run("gradient", "logits.safetensors", "labels.npy", "-o", "g.npy")
    assert (status, err) == (
        0,
        "seg-loss: warning: NPY has no bfloat16: the file holds the same numbers as float32.\n",
    )
    assert np.array_equal(np.load("g.npy"), array)
    tensors["logits"] = tensors["logits"].half()
    response = client.post("/v1/gradient", content=safetensors_file(**tensors), headers=headers)
    assert "Seg-Loss-Dtype" not in response.headers
    assert np.load(io.BytesIO(response.content)).dtype == np.float16


def test_evaluate_as_json_returns_all_but_maps(client):
    response = client.post_tensors("/v1/evaluate", **make_inputs()).json()
    assert response.keys() == LOSS_FIELDS | {"confusion", "metrics", "calibration"}
    expected = seg_loss.evaluate(**make_inputs())
    assert response["confusion"] == expected.confusion.tolist()
    assert response["metrics"]["mean_iu"] == expected.metrics.mean_iu
    assert len(response["calibration"]["bins"]) == 15


def test_maps_are_tensors_with_the_evaluation_in_the_metadata(client):
    names = "prediction,nll,confidence,entropy,top_classes,top_probabilities"
    headers = {**SAFETENSORS, "Accept": "application/x-safetensors"}
    content = safetensors_file(**make_inputs())
    response = client.post(f"/v1/evaluate?maps={names}", content=content, headers=headers)
    expected = seg_loss.evaluate(**make_inputs(), maps=names.split(","))
    maps = safetensors.torch.load(response.content)
    assert maps.keys() == expected.maps.keys()
    for name, values in expected.maps.items():
        assert torch.equal(maps[name].to(values.dtype), values), name
    length = int.from_bytes(response.content[:8], "little")
    metadata = json.loads(response.content[8 : 8 + length])["__metadata__"]
    without_maps = client.post_tensors("/v1/evaluate", **make_inputs()).json()
    assert json.loads(metadata["evaluation"]) == without_maps


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("ignored", [-1, 4, 255])
def test_every_kind_of_picture_takes_every_dtype_of_labels(client, dtype, ignored):
    labels = make_inputs()["labels"].to(torch.int64)
    labels[labels == 255] = ignored
    labels = labels.to(dtype)
    photo = make_photo(6, 7)
    ignored = int(labels.to(torch.int64)[0, 0, 0])  # -1 is 255 in uint8, and the other way round
    for kind in KINDS:
        for inputs in (
            {"logits": make_inputs()["logits"], "labels": labels, "image": photo},
            {"prediction": labels.clamp(0, 4), "labels": labels, "image": photo},
            {"labels": labels, "image": photo},
        ):
            path = f"/v1/visualize?kind={kind}&ignore_index={ignored}"
            response = client.post_tensors(path, **inputs)
            if "logits" in inputs or response.status_code != 422:
                assert response.status_code == 200, (kind, response.text)
            else:  # the kind needs more inputs
                assert response.json()["got"] == "nothing", (kind, response.text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_every_kind_of_picture_has_the_size_of_the_labels(client, upsampling, kind):
    inputs = make_inputs(upsampling)
    height, width = inputs["labels"].shape[1:]
    path = f"/v1/visualize?upsampling={upsampling}&kind={kind}"
    response = client.post_tensors(path, **inputs, image=make_photo(height, width))
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "image/png"
    picture = Image.open(io.BytesIO(response.content))
    if kind == "compare":  # two columns of two panels, with titles
        assert picture.size > (2 * width, 2 * height)
    else:
        assert picture.size == (width, height)
    if kind == "labels":
        assert np.array_equal(np.array(picture), inputs["labels"][0].numpy())
    if kind == "prediction":
        prediction = full_size_logits(upsampling, inputs).argmax(1)[0].numpy()
        assert np.array_equal(np.array(picture), prediction)


def test_a_picture_needs_only_the_inputs_that_it_shows(client):
    logits, labels = make_inputs()["logits"], make_inputs()["labels"]
    photo = make_photo(6, 7)
    prediction = logits.argmax(1)
    for query, tensors in (
        ("kind=labels", {"labels": labels}),
        ("kind=prediction", {"logits": logits}),
        ("kind=prediction", {"prediction": prediction}),
        ("kind=confidence", {"logits": logits}),
        ("kind=entropy", {"logits": logits}),
        ("kind=overlay", {"labels": labels, "image": photo}),
        ("kind=overlay&alpha=1", {"prediction": prediction, "image": photo}),
        ("kind=error", {"prediction": prediction, "labels": labels}),
        ("kind=labels&palette=cityscapes", {"labels": labels[:, None]}),
    ):
        response = client.post_tensors(f"/v1/visualize?{query}", **tensors)
        assert response.status_code == 200, response.text


def test_a_picture_without_logits_is_not_upsampled(client):
    inputs = make_inputs("bilinear")
    prediction = inputs["labels"] % 5
    path = "/v1/visualize?upsampling=bilinear&kind="
    response = client.post_tensors(f"{path}prediction", prediction=prediction)
    assert Image.open(io.BytesIO(response.content)).size == UPSAMPLED_SIZE[::-1]
    tensors = {"prediction": prediction, "labels": inputs["labels"]}
    response = client.post_tensors(f"{path}error", **tensors, logits=inputs["logits"])
    assert Image.open(io.BytesIO(response.content)).size == UPSAMPLED_SIZE[::-1]
    files = {
        "logits": npy_file(inputs["logits"].numpy()),
        "prediction": label_png(prediction[0].numpy()),
        "labels": label_png(inputs["labels"][0, :-1].numpy()),
    }
    response = client.post(f"{path}error", files=files)
    assert assert_problem(response, 422, "ill_posed")["detail"] == (
        "prediction: expected 19 x 30 (height x width) to match the labels, got 20 x 30. "
        "Use resize=labels or resize=image to resample."
    )


def test_a_missing_input_of_a_picture_is_an_error_with_a_fix(client):
    labels = make_inputs()["labels"]
    for kind, fix in (
        ("prediction", "Send `logits` or `prediction`."),
        ("overlay", "Send the photo as `image`, PNG or JPEG."),
        ("nll", "Send `logits` and `labels`."),
    ):
        response = client.post_tensors(f"/v1/visualize?kind={kind}", labels=labels)
        assert response.status_code == 422
        assert response.json()["fix"] == fix
    response = client.post_tensors("/v1/visualize?kind=nll", logits=make_inputs()["logits"])
    assert response.json()["fix"] == "Send `logits` and `labels`."


def test_a_picture_shows_exactly_one_image(client):
    two = torch.cat([make_inputs()["logits"]] * 2)
    response = client.post_tensors("/v1/visualize", logits=two)
    assert response.status_code == 422
    assert response.json()["detail"] == (
        "logits: expected [1,C,H,W], the logits of one image, got shape (2, 5, 6, 7). "
        "Choose one: image_index=0...1."
    )


def test_a_picture_needs_integer_labels_of_one_image(client):
    labels, choice = make_inputs()["labels"], "Choose one: image_index=0...1."
    for tensor, got in (
        (labels.float(), "expected class indices, which are integers, got float32."),
        (torch.cat([labels] * 2), f"expected [1,H,W], one image, got shape (2, 6, 7). {choice}"),
    ):
        response = client.post_tensors("/v1/visualize?kind=labels", labels=tensor)
        assert assert_problem(response, 422, "ill_posed")["detail"] == f"labels: {got}"


def test_palettes_are_listed_and_shown(client):
    names = [row["name"] for row in client.get("/v1/palettes").json()["palettes"]]
    assert names == list(PALETTES)
    voc = client.get("/v1/palettes/voc").json()
    assert voc["colours"][1] == [128, 0, 0]
    assert voc["class_names"][15] == "person"
    assert client.get("/v1/palettes/none").json()["detail"] == (
        f"palette: expected one of {', '.join(PALETTES)}, got 'none'."
    )


GET_PATHS = [resource.path.replace("{name}", "voc") for resource in RESOURCES]


@pytest.mark.parametrize("path", GET_PATHS)
def test_every_get_path_answers_head_too(client, path):
    response = client.request("HEAD", path)
    expected = client.get(path)
    assert response.status_code == expected.status_code == 200
    assert response.headers["Content-Type"] == expected.headers["Content-Type"]
    assert response.content == b""
    if path != "/metrics":
        assert response.headers["Content-Length"] == f"{len(expected.content)}"


@pytest.mark.parametrize("path", GET_PATHS)
def test_a_slash_at_the_end_is_the_same_path(client, path):
    response = client.get(f"{path}/")
    assert response.status_code == 200
    if path != "/metrics":
        assert response.content == client.get(path).content
        return
    client.post_tensors("/v1/loss/?temperature=2", **make_inputs())
    text = client.get(path).text
    assert 'route="/v1/loss"' in text
    assert 'route="/v1/loss/"' not in text


def test_a_loss_is_answered_with_a_slash_at_the_end(client):
    for query in ("", "?temperature=2"):
        response = client.post_tensors(f"/v1/loss/{query}", **make_inputs())
        assert response.json() == client.post_tensors(f"/v1/loss{query}", **make_inputs()).json()


def test_readyz_is_503_until_warm_and_while_draining():
    with served() as client:
        assert client.get("/livez").json() == {"status": "live"}
        client.wait_until_warm()  # the start sets it once, at a time that a test cannot choose
        client.app.state.service.is_warm = False
        response = client.get("/readyz")
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"
        client.app.state.service.is_warm = True
        assert client.get("/readyz").json() == {"status": "ready"}
        client.app.state.service.is_draining = True
        assert client.get("/readyz").json()["detail"] == "The service is stopping."


def test_requests_do_not_wait_until_further_kernels_are_compiled(monkeypatch):
    may_end = threading.Event()

    def warm_up(_: torch.device, *, num_classes: int) -> None:
        if num_classes == 19:
            may_end.wait(90)

    monkeypatch.setattr(seg_loss, "warm_up", warm_up)
    with served(warm_classes="2,19", num_workers=1, compute_timeout_seconds=45) as client:
        client.wait_until_warm()
        try:
            assert_still_serves(client)
        finally:
            may_end.set()


def test_the_kernels_of_the_page_follow_the_first_number_of_classes(monkeypatch):
    calls = []

    def warm_up(_: torch.device, *, num_classes: int) -> None:
        calls.append(num_classes)

    def evaluate(logits: torch.Tensor, labels: torch.Tensor, *, maps: tuple[str, ...]) -> None:
        assert labels.shape == (1, *logits.shape[2:])
        calls.append((logits.dtype, logits.shape[1], maps))

    monkeypatch.setattr(seg_loss, "warm_up", warm_up)
    monkeypatch.setattr(seg_loss, "evaluate", evaluate)
    of_pages = [
        (dtype, num_classes, MAPS)
        for num_classes in (19, 2, 21)  # those of the sample first
        for dtype in (torch.float16, torch.float32)
    ]
    with served(warm_classes="2,19,21") as client:
        deadline = time.monotonic() + 60
        while 21 not in calls and time.monotonic() < deadline:
            client.get("/livez")
    assert calls == [2, *of_pages, 19, 21]


def test_server_timing_names_the_steps(client):
    timing = client.post_tensors("/v1/loss", **make_inputs()).headers["Server-Timing"]
    names = [part.split(";")[0] for part in timing.split(", ")]
    assert names == ["read", "wait", "decode", "compute", "encode"]


@fcn_demo.needed
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_published_example_has_the_published_values(dtype):
    files = {
        "logits": npy_file(fcn_demo.logits(dtype)),
        "labels": (fcn_demo.DIRECTORY / "label.png").read_bytes(),
    }
    with served() as client:
        fcn_demo.assert_published_values(client.post("/v1/evaluate", files=files).json(), dtype)
        for normalization, loss in fcn_demo.LOSS.items():
            query = f"normalization={normalization}"
            response = client.post(f"/v1/loss?{query}", files=files).json()
            assert response["loss"] == pytest.approx(loss, rel=fcn_demo.LOSS_TOLERANCE[dtype])
