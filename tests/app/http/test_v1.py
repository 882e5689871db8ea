"""The responses to valid requests under `/v1`."""

import io
import json
import math

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
from serving import SAFETENSORS, assert_problem, served

import seg_loss
from app.images.palettes import PALETTES
from app.images.render import KINDS

LOSS_FIELDS = {
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


def test_a_bfloat16_gradient_as_npy_is_an_error(client):
    tensors = {**make_inputs(), "logits": make_inputs()["logits"].bfloat16()}
    headers = {**SAFETENSORS, "Accept": "application/x-npy"}
    response = client.post("/v1/gradient", content=safetensors_file(**tensors), headers=headers)
    assert response.status_code == 422
    assert response.json()["fix"] == "Ask for application/x-safetensors."


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
        "prediction: expected 19 x 30 (height x width) to match the labels, got 20 x 30."
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
        "logits: expected [1,C,H,W], the logits of one image, got shape (2, 5, 6, 7)."
    )


def test_a_picture_needs_integer_labels_of_one_image(client):
    labels = make_inputs()["labels"]
    for tensor, got in (
        (labels.float(), "expected class indices, which are integers, got float32."),
        (torch.cat([labels] * 2), "expected [1,H,W], one image, got shape (2, 6, 7)."),
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
        f"palette: expected one of {', '.join(PALETTES)}, got an unknown name."
    )


def test_readyz_is_503_until_warm_and_while_draining():
    with served() as client:
        assert client.get("/livez").json() == {"status": "live"}
        client.app.state.service.is_warm = False
        response = client.get("/readyz")
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"
        client.wait_until_warm()
        assert client.get("/readyz").json() == {"status": "ready"}
        client.app.state.service.is_draining = True
        assert client.get("/readyz").json()["detail"] == "The service is stopping."


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
