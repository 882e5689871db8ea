"""What the service answers when all is well."""

import io
import json
import math

import fcn_demo
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from serving import SAFETENSORS, example, npy_file, packed, served

import seg_loss
from app.errors import NotAcceptable
from app.http.app import create_app
from app.http.responses import choose_media_type
from app.http.v1 import OPERATIONS
from app.images.render import KINDS

LOSS_MEMBERS = {
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


def test_loss_answers_with_the_members_of_the_contract(client):
    answer = client.post_tensors("/v1/loss", **example())
    assert answer.headers["Content-Type"] == "application/json"
    loss = answer.json()
    assert loss.keys() == LOSS_MEMBERS
    assert loss["valid_pixels"] == 39
    assert loss["ignored_pixels"] == 3
    assert loss["divisor"] == 39
    assert loss["uniform_loss"] == math.log(5)
    assert loss["per_image"] == [{"loss": loss["loss"], "valid_pixels": 39}]
    assert sum(row["pixels"] for row in loss["per_class"]) == 39
    assert loss["diagnosis"].keys() == {"state", "advice"}
    assert loss["warnings"] == []


def test_options_reach_the_library_by_their_own_names(client):
    tensors = {**example(), "class_weight": torch.rand(5), "pixel_weight": torch.rand(1, 6, 7)}
    query = "ignore_index=0,255&label_smoothing=0.1&temperature=2&normalization=weight"
    expected = seg_loss.evaluate(
        tensors["logits"],
        tensors["labels"],
        tensors["class_weight"],
        pixel_weight=tensors["pixel_weight"],
        ignore_index=(0, 255),
        label_smoothing=0.1,
        temperature=2.0,
        normalization="weight",
    )
    answer = client.post_tensors(f"/v1/loss?{query}", **tensors).json()
    assert answer["loss"] == expected.loss
    assert answer["divisor"] == expected.divisor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_gradient_comes_as_safetensors_with_the_loss_in_the_metadata(client, dtype):
    tensors = {**example(), "logits": example()["logits"].to(dtype)}
    loss, gradient = seg_loss.loss_and_gradient(**tensors)
    answer = client.post_tensors("/v1/gradient?loss_weight=3", **tensors)
    assert answer.headers["Content-Type"] == "application/x-safetensors"
    found = safetensors.torch.load(answer.content)
    assert found.keys() == {"gradient"}
    assert torch.equal(found["gradient"], gradient * 3)
    length = int.from_bytes(answer.content[:8], "little")
    metadata = json.loads(answer.content[8 : 8 + length])["__metadata__"]
    assert float(metadata["loss"]) == float(loss)
    assert metadata["normalization"] == "valid"
    assert metadata["loss_weight"] == "3.0"


def test_the_gradient_comes_as_npy_with_the_loss_in_a_header(client):
    loss, gradient = seg_loss.loss_and_gradient(**example())
    headers = {**SAFETENSORS, "Accept": "application/x-npy"}
    answer = client.post("/v1/gradient", content=packed(**example()), headers=headers)
    assert answer.headers["Content-Type"] == "application/x-npy"
    assert float(answer.headers["Seg-Loss"]) == float(loss)
    assert np.array_equal(np.load(io.BytesIO(answer.content)), gradient.numpy())


def test_a_bfloat16_gradient_has_no_npy_and_says_so(client):
    tensors = {**example(), "logits": example()["logits"].bfloat16()}
    headers = {**SAFETENSORS, "Accept": "application/x-npy"}
    answer = client.post("/v1/gradient", content=packed(**tensors), headers=headers)
    assert answer.status_code == 422
    assert answer.json()["fix"] == "Ask for application/x-safetensors."


def test_evaluate_answers_with_everything_but_maps(client):
    answer = client.post_tensors("/v1/evaluate", **example()).json()
    assert answer.keys() == LOSS_MEMBERS | {"confusion", "metrics", "calibration"}
    expected = seg_loss.evaluate(**example())
    assert answer["confusion"] == expected.confusion.tolist()
    assert answer["metrics"]["mean_iu"] == expected.metrics.mean_iu
    assert len(answer["calibration"]["bins"]) == 15


def test_maps_come_as_tensors_with_the_rest_in_the_metadata(client):
    names = "prediction,nll,confidence,entropy,top_classes,top_probabilities"
    headers = {**SAFETENSORS, "Accept": "application/x-safetensors"}
    content = packed(**example())
    answer = client.post(f"/v1/evaluate?maps={names}", content=content, headers=headers)
    expected = seg_loss.evaluate(**example(), maps=names.split(","))
    found = safetensors.torch.load(answer.content)
    assert found.keys() == expected.maps.keys()
    for name, values in expected.maps.items():
        assert torch.equal(found[name].to(values.dtype), values), name
    length = int.from_bytes(answer.content[:8], "little")
    metadata = json.loads(answer.content[8 : 8 + length])["__metadata__"]
    plain = client.post_tensors("/v1/evaluate", **example()).json()
    assert json.loads(metadata["evaluation"]) == plain


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_is_drawn_from_logits_labels_and_photo(client, kind):
    photo = torch.full((6, 7, 3), 99, dtype=torch.uint8)
    answer = client.post_tensors(f"/v1/visualize?kind={kind}", **example(), image=photo)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "image/png"
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.size == (7, 6)
    if kind == "labels":
        assert np.array_equal(np.array(picture), example()["labels"][0].numpy())
    if kind == "prediction":
        predicted = example()["logits"].argmax(1)[0].numpy()
        assert np.array_equal(np.array(picture), predicted)


def test_pictures_need_no_more_than_they_show(client):
    logits, labels = example()["logits"], example()["labels"]
    photo = torch.full((6, 7, 3), 99, dtype=torch.uint8)
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
        answer = client.post_tensors(f"/v1/visualize?{query}", **tensors)
        assert answer.status_code == 200, answer.text


def test_a_picture_without_what_it_shows_says_what_to_send(client):
    labels = example()["labels"]
    for kind, fix in (
        ("prediction", "Send `logits` or `prediction`."),
        ("overlay", "Send the photo as `image`, PNG or JPEG."),
        ("nll", "Send `logits` and `labels`."),
    ):
        answer = client.post_tensors(f"/v1/visualize?kind={kind}", labels=labels)
        assert answer.status_code == 422
        assert answer.json()["fix"] == fix
    answer = client.post_tensors("/v1/visualize?kind=nll", logits=example()["logits"])
    assert answer.json()["fix"] == "Send `logits` and `labels`."


def test_a_picture_shows_one_image(client):
    two = torch.cat([example()["logits"]] * 2)
    answer = client.post_tensors("/v1/visualize", logits=two)
    assert answer.status_code == 422
    assert answer.json()["detail"] == (
        "logits: expected [1,C,H,W], the logits of one image, got shape (2, 5, 6, 7)."
    )


def test_palettes_are_listed_and_shown(client):
    names = [row["name"] for row in client.get("/v1/palettes").json()["palettes"]]
    assert names[:2] == ["voc", "cityscapes"]
    voc = client.get("/v1/palettes/voc").json()
    assert voc["colours"][1] == [128, 0, 0]
    assert voc["class_names"][15] == "person"
    assert client.get("/v1/palettes/none").json()["detail"] == (
        "palette: expected one of voc, cityscapes, got an unknown name."
    )


def test_live_at_once_ready_when_warm_and_not_while_draining():
    with served() as client:
        assert client.get("/livez").json() == {"status": "live"}
        client.app.state.service.is_warm = False
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        client.wait_until_warm()
        assert client.get("/readyz").json() == {"status": "ready"}
        client.app.state.service.is_draining = True
        assert client.get("/readyz").json()["detail"] == "The service is stopping."


def test_health_and_figures_are_answered_when_no_request_is_let_in():
    with served(max_concurrent_requests=1) as client, client.app.state.service.workers.reserve(1):
        assert client.post_tensors("/v1/loss", **example()).status_code == 503
        assert client.get("/livez").status_code == 200
        assert "seg_loss_requests_in_flight 1.0" in client.get("/metrics").text


def test_figures_count_requests_by_route_and_bytes():
    with served() as client:
        content = packed(**example())
        client.post_tensors("/v1/loss", **example())
        client.get("/nothing")
        text = client.get("/metrics").text
    assert 'seg_loss_requests_total{method="POST",route="/v1/loss",status="200"} 1.0' in text
    assert 'seg_loss_requests_total{method="GET",route="other",status="404"} 1.0' in text
    assert f"seg_loss_received_bytes_total {float(len(content))}" in text


def test_every_answer_has_an_id_the_clients_own_if_it_is_plain(client):
    assert client.get("/livez", headers={"X-Request-ID": "a-1"}).headers["X-Request-ID"] == "a-1"
    strange = client.get("/livez", headers={"X-Request-ID": "a b"}).headers["X-Request-ID"]
    assert len(strange) == 32
    assert client.get("/livez").headers["Cache-Control"] == "no-store"


def test_timings_are_told(client):
    timing = client.post_tensors("/v1/loss", **example()).headers["Server-Timing"]
    names = [part.split(";")[0] for part in timing.split(", ")]
    assert names == ["read", "wait", "decode", "compute", "encode"]


def test_accept_chooses_by_quality_and_the_first_of_equals():
    offered = ("application/x-safetensors", "application/x-npy")
    for accept, expected in (
        (None, 0),
        ("", 0),
        ("*/*", 0),
        ("application/*", 0),
        ("application/x-npy", 1),
        ("APPLICATION/X-NPY;q=0.1, text/html", 1),
        ("application/x-safetensors;q=0.5, application/x-npy;q=0.6", 1),
        ("application/x-safetensors;q=0, */*", 1),
        ("*/*;q=0.1, application/x-npy;q=x", 0),
    ):
        assert choose_media_type(accept, offered) == offered[expected], accept
    with pytest.raises(NotAcceptable):
        choose_media_type("text/html, application/x-npy;q=0", offered)


def test_the_document_describes_every_operation_and_option():
    document = create_app().openapi()
    for operation in OPERATIONS:
        described = document["paths"][f"/v1/{operation.name}"]["post"]
        parameters = {entry["name"] for entry in described["parameters"]}
        assert parameters == set(operation.options.model_fields)
        assert "application/x-safetensors" in described["requestBody"]["content"]
        assert described["responses"]["200"]["content"].keys() == operation.encoders.keys()
        assert {"400", "406", "408", "413", "415", "422", "503"} <= described["responses"].keys()
    assert "HTTPValidationError" not in json.dumps(document)


@fcn_demo.needed
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_published_example_gives_its_figures(dtype):
    files = {
        "logits": npy_file(fcn_demo.logits(dtype)),
        "labels": (fcn_demo.DIRECTORY / "label.png").read_bytes(),
    }
    with served() as client:
        fcn_demo.assert_figures(client.post("/v1/evaluate", files=files).json(), dtype)
        for normalization, loss in fcn_demo.LOSS.items():
            query = f"normalization={normalization}"
            answer = client.post(f"/v1/loss?{query}", files=files).json()
            assert answer["loss"] == pytest.approx(loss, rel=fcn_demo.LOSS_TOLERANCE[dtype])
