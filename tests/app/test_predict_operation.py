"""`predict` of scores, over HTTP and on the command line: label maps, maps and class counts."""

import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from examples import (
    UPSAMPLED_SIZE,
    UPSAMPLINGS,
    full_size_logits,
    make_inputs,
    make_photo,
    npy_file,
    safetensors_file,
    write_inputs,
)
from PIL import Image
from serving import SAFETENSORS, assert_problem, served

import seg_loss
from app import operations, options, results
from app.devices import CPU
from app.errors import IllPosed
from app.images.palettes import PALETTES, ChosenPalette
from app.inputs import Inputs
from seg_loss import Bilinear
from seg_loss.constants import PREDICTION_MAPS

LOGITS, LABELS = make_inputs()["logits"], make_inputs()["labels"]
SIZE = "{},{}".format(*UPSAMPLED_SIZE)
AS_JSON = {**SAFETENSORS, "Accept": "application/json"}
AS_SAFETENSORS = {**SAFETENSORS, "Accept": "application/x-safetensors"}


def indices_of(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.array(picture)


def summary_of(client, query="", **tensors) -> dict[str, object]:
    content = safetensors_file(**tensors)
    response = client.post(f"/v1/predict?{query}", content=content, headers=AS_JSON)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_every_entry_point_returns_the_classes_of_the_definition(
    client, run, empty_directory, upsampling
):
    inputs = make_inputs(upsampling)
    expected = full_size_logits(upsampling, inputs).argmax(1)[0].numpy()
    logits = inputs["logits"]
    size = "" if upsampling == "none" else f"&size={SIZE}"
    path = f"/v1/predict?upsampling={upsampling}{size}"
    for request in (
        {"content": safetensors_file(logits=logits), "headers": SAFETENSORS},
        {"json": {"logits": logits.tolist()}},
        {"files": {"logits": npy_file(logits.numpy())}},
        {"files": {"logits": npy_file(logits[0].numpy())}},
    ):
        response = client.post(path, **request)
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"] == "image/png"
        assert np.array_equal(indices_of(response.content), expected)
    np.save("logits.npy", logits.numpy())
    line = f"predict logits.npy --upsampling {upsampling} -o a.png".split()
    line += [] if upsampling == "none" else ["--size", SIZE]
    status, _, err = run(*line)
    assert (status, err) == (0, "")
    assert np.array_equal(indices_of(Path("a.png").read_bytes()), expected)


def test_a_label_map_comes_back_as_the_input_that_it_is(client):
    png = client.post_tensors("/v1/predict?palette=cityscapes", logits=LOGITS).content
    picture = Image.open(io.BytesIO(png))
    assert picture.mode == "P"
    assert picture.getpalette() == PALETTES["cityscapes"].colours.flatten().tolist()
    logits = npy_file(LOGITS.numpy())
    files = {"logits": logits, "labels": png}
    evaluation = client.post("/v1/evaluate", files=files).json()
    assert evaluation["metrics"]["pixel_accuracy"] == 1
    assert (
        client.post("/v1/visualize?kind=prediction", files={"prediction": png}).status_code == 200
    )


@pytest.mark.parametrize("num_classes", [256, 257, 1000])
def test_many_classes_are_a_grey_png_of_16_bits(num_classes):
    logits = torch.randn(1, num_classes, 8, 9, generator=torch.Generator().manual_seed(0))
    logits[0, num_classes - 1, 2, 3] = 99
    with served() as client:
        png = client.post_tensors("/v1/predict", logits=logits).content
        picture = Image.open(io.BytesIO(png))
        assert picture.mode == ("P" if num_classes == 256 else "I;16")
        assert np.array_equal(np.array(picture), logits.argmax(1)[0].numpy())
        files = {"logits": npy_file(logits.numpy()), "labels": png}
        evaluation = client.post("/v1/evaluate?ignore_index=none", files=files)
        assert evaluation.json()["metrics"]["pixel_accuracy"] == 1


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_maps_are_those_of_the_library(client, upsampling):
    logits = make_inputs(upsampling, num_images=2)["logits"]
    size = None if upsampling == "none" else UPSAMPLED_SIZE
    expected = seg_loss.predict(
        logits,
        size=size,
        upsampling=UPSAMPLINGS[upsampling],
        maps=PREDICTION_MAPS,
        temperature=2.0,
    )
    query = f"temperature=2&upsampling={upsampling}&maps={','.join(PREDICTION_MAPS)}"
    query += "" if size is None else f"&size={SIZE}"
    content = safetensors_file(logits=logits)
    response = client.post(f"/v1/predict?{query}", content=content, headers=AS_SAFETENSORS)
    maps = safetensors.torch.load(response.content)
    assert maps.keys() == set(PREDICTION_MAPS)
    for name, values in expected.items():
        assert torch.equal(maps[name], values), name
    length = int.from_bytes(response.content[:8], "little")
    metadata = json.loads(response.content[8 : 8 + length])["__metadata__"]
    summary = json.loads(metadata["prediction"])
    assert (summary["num_images"], summary["size"]) == (2, list(expected["prediction"].shape[1:]))


def test_the_file_holds_the_maps_asked_for_alone(client):
    content = safetensors_file(logits=LOGITS)
    for query, names in (("", {"prediction"}), ("?maps=entropy", {"entropy"})):
        response = client.post(f"/v1/predict{query}", content=content, headers=AS_SAFETENSORS)
        assert safetensors.torch.load(response.content).keys() == names


def test_logits_of_any_number_of_axes_have_maps_and_counts(client):
    for shape in ((3, 5), (2, 5, 2, 3, 4)):
        logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        content = safetensors_file(logits=logits)
        response = client.post("/v1/predict", content=content, headers=AS_SAFETENSORS)
        prediction = safetensors.torch.load(response.content)["prediction"]
        assert torch.equal(prediction.long(), logits.argmax(1))
        assert summary_of(client, logits=logits)["size"] == list(shape[2:])
        problem = assert_problem(
            client.post_tensors("/v1/predict", logits=logits), 422, "ill_posed"
        )
        assert problem["expected"] == "[1,C,H,W], whose label map is a PNG"
        assert problem["fix"] == "A safetensors file holds any prediction."


def test_the_summary_counts_the_pixels_of_each_class(client):
    summary = summary_of(client, "palette=voc", logits=LOGITS)
    palette = summary.pop("palette")
    assert (palette["name"], palette["source"]) == ("voc", "option")
    counts = torch.bincount(LOGITS.argmax(1).flatten(), minlength=5).tolist()
    assert summary == {
        "num_images": 1,
        "size": [6, 7],
        "num_classes": 5,
        "classes": [
            {
                "index": index,
                "name": PALETTES["voc"].class_names[index],
                "pixels": count,
                "share": count / 42,
            }
            for index, count in enumerate(counts)
        ],
        "evaluation": None,
        "inputs": {
            "logits": {
                "file": "tensor",
                "dtype": "float32",
                "shape": [1, 5, 6, 7],
                "layout": "nchw",
            }
        },
        "warnings": [],
    }
    without_names = summary_of(client, logits=LOGITS)
    assert {row["name"] for row in without_names["classes"]} == {None}
    one = torch.zeros(1, 5, 6, 7)
    one[:, 3] = 1
    assert [row["index"] for row in summary_of(client, logits=one)["classes"]] == [3]


def test_with_labels_the_summary_has_the_evaluation(client):
    query = "normalization=batch&label_smoothing=0.1&ignore_index=0,255"
    summary = summary_of(client, query, **make_inputs())
    expected = client.post_tensors(f"/v1/evaluate?{query}", **make_inputs()).json()
    shared = {name: summary[name] for name in ("inputs", "palette", "warnings")}
    assert {**summary["evaluation"], **shared} == expected
    classes = torch.zeros(1, 6, 7, dtype=torch.uint8)
    shifted = torch.nn.functional.one_hot(torch.arange(42) % 4 + 1, 5).float()
    logits = shifted.reshape(1, 6, 7, 5).movedim(3, 1)
    classes = (torch.arange(42) % 4).reshape(1, 6, 7).byte()
    (warning,) = summary_of(client, logits=logits, labels=classes)["warnings"]
    assert "plus 1" in warning or "minus 1" in warning
    png = client.post_tensors("/v1/predict", logits=logits, labels=classes)
    assert png.headers["Seg-Loss-Warning"] == warning


def test_a_size_alone_means_bilinear_and_labels_or_a_photo_give_the_size(client):
    logits = make_inputs("bilinear")["logits"]
    expected = client.post_tensors(
        f"/v1/predict?upsampling=bilinear&size={SIZE}", logits=logits
    ).content
    labels = torch.zeros(1, *UPSAMPLED_SIZE, dtype=torch.uint8)
    photo = make_photo(*UPSAMPLED_SIZE)
    for query, tensors in (
        (f"size={SIZE}", {}),
        (f"size= {SIZE.replace(',', ' , ')}", {}),
        ("upsampling=bilinear", {"labels": labels}),
        ("upsampling=bilinear", {"image": photo}),
        (f"size={SIZE}", {"labels": labels}),
    ):
        response = client.post_tensors(f"/v1/predict?{query}", logits=logits, **tensors)
        assert response.content == expected, query
    for name in ("bilinear", "fcn"):
        response = client.post_tensors(f"/v1/predict?upsampling={name}", logits=logits)
        assert assert_problem(response, 422, "ill_posed")["detail"] == (
            "inputs: expected labels or image too, for the size that logits are upsampled to, "
            "got logits. Or name it: size=512,1024."
        )


def test_probabilities_have_the_maps_of_their_logits(client):
    content = safetensors_file(logits=LOGITS.softmax(1))
    path = "/v1/predict?scores=probabilities&maps=prediction,confidence"
    response = client.post(path, content=content, headers=AS_SAFETENSORS)
    maps = safetensors.torch.load(response.content)
    expected = seg_loss.predict(LOGITS, maps=("prediction", "confidence"))
    assert torch.equal(maps["prediction"], expected["prediction"])
    torch.testing.assert_close(maps["confidence"], expected["confidence"], rtol=1e-5, atol=0)
    problem = client.post_tensors("/v1/predict?scores=probabilities", logits=LOGITS)
    assert "Are these logits?" in assert_problem(problem, 422, "ill_posed")["fix"]


def test_logits_with_classes_on_the_last_axis_are_predicted(client):
    nhwc = LOGITS.movedim(1, -1).contiguous()
    response = client.post_tensors("/v1/predict?layout=nhwc", logits=nhwc)
    assert response.content == client.post_tensors("/v1/predict", logits=LOGITS).content


ERRORS = {
    "size=0,3": "got '0,3'",
    "size=5": "height and width with a comma between them, such as 512,1024, got '5'",
    "size=5,6,7": "got '5,6,7'",
    "size=20,30&upsampling=bilinear&size=20,30": "size: expected one value, got several.",
    "maps=nll": "got 'nll'. Ask evaluate for nll, which needs labels.",
    "maps=entropi": "got 'entropi'. Did you mean entropy?",
    "maps=entropy": (
        "maps: expected none in a PNG, got some. "
        "Send Accept: application/x-safetensors to get them."
    ),
    "size=99,99&upsampling=fcn": "FCN-8s', 16s' or 32s' for size (99, 99), got (6, 7)",
    "kind=overlay": "It is an option of visualize.",
    "size=100000,1": "size: expected at most 65536 rows, got 100000.",
    "size=200,200": "size: expected at most 16384 pixels per image, got 40000.",
}


@pytest.mark.parametrize("query", ERRORS)
def test_an_invalid_request_is_an_error_with_a_fix(client, query):
    response = client.post_tensors(f"/v1/predict?{query}", logits=LOGITS)
    assert response.status_code in (413, 422)
    assert ERRORS[query] in response.json()["detail"]


def test_labels_of_another_size_than_asked_for_are_an_error(client):
    response = client.post_tensors("/v1/predict?size=9,9", **make_inputs())
    assert assert_problem(response, 422, "ill_posed")["detail"] == (
        "size: expected 6 x 7 (height x width) to match the labels, got 9 x 9."
    )


def test_without_logits_the_inputs_are_named(client):
    for tensors, got in (({"labels": LABELS}, "labels"), ({"prediction": LABELS}, "prediction")):
        response = client.post_tensors("/v1/predict", **tensors)
        assert assert_problem(response, 422, "ill_posed")["detail"] == (
            f"inputs: expected logits, or an image where a network is served, got {got}."
        )


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_logits_that_have_no_softmax_are_an_error(client, value):
    logits = LOGITS.clone()
    logits[0, 1, 2, 3] = float(value)
    for path in ("/v1/predict", "/v1/predict?size=12,14"):
        problem = assert_problem(client.post_tensors(path, logits=logits), 422, "ill_posed")
        assert problem["got"].startswith(f"{value} at (0, 1, 2, 3)")
    logits[0, 1, 2, 3] = -float("inf")
    assert client.post_tensors("/v1/predict", logits=logits).status_code == 200
    logits[0, :, 2, 3] = -float("inf")
    problem = assert_problem(client.post_tensors("/v1/predict", logits=logits), 422, "ill_posed")
    assert "-inf in every class" in problem["got"]


def test_a_temperature_at_which_logits_overflow_is_an_error(client):
    path = "/v1/predict?temperature=1e-30&maps=confidence"
    content = safetensors_file(logits=LOGITS * 1e15)
    response = client.post(path, content=content, headers=AS_SAFETENSORS)
    assert assert_problem(response, 422, "ill_posed")["where"] == "temperature"


def test_the_limit_on_upsampled_logits_holds_for_the_size():
    with served(max_upsampled_logits=5 * 20 * 30) as client:
        logits = make_inputs("bilinear")["logits"]
        path = "/v1/predict?size="
        assert client.post_tensors(f"{path}20,30", logits=logits).status_code == 200
        problem = client.post_tensors(f"{path}20,31", logits=logits)
        assert assert_problem(problem, 413, "too_large")["limit"] == 3000


def test_working_bytes_are_those_of_maps_and_the_label_map():
    needed = partial(operations.working_bytes, device=CPU)
    logits = Inputs(logits=LOGITS)
    assert needed(logits, options.PredictOptions()) == (4 + results.LABEL_MAP_BYTES) * 42
    every = options.PredictOptions(maps=PREDICTION_MAPS)
    assert needed(logits, every) == (4 * 9 + results.LABEL_MAP_BYTES) * 42
    upsampled = options.PredictOptions(size=(20, 30))
    scratch = seg_loss.scratch_bytes(LOGITS, (20, 30), upsampling=Bilinear())
    assert needed(logits, upsampled) == scratch + (4 + results.LABEL_MAP_BYTES) * 600
    with_labels = needed(Inputs(**make_inputs()), options.PredictOptions())
    text = results.max_json_bytes(1, 5, 42)
    assert with_labels == (4 + results.LABEL_MAP_BYTES) * 42 + 3 * 8 * 25 + 3 * text


def test_a_prediction_of_more_classes_than_16_bits_hold_is_no_png():
    result = results.PredictionResult(
        maps={"prediction": torch.zeros(1, 2, 2, dtype=torch.int32)},
        names=("prediction",),
        num_classes=65537,
        palette=ChosenPalette(PALETTES["voc"], "default"),
        evaluation=None,
        reports={},
        warnings=(),
        is_finite=True,
    )
    with pytest.raises(Exception, match="at most 65536 classes, which a PNG can hold, got 65537"):
        results.label_map_png(result)


def test_nan_is_a_warning_of_the_command(run, empty_directory):
    inputs = make_inputs()
    inputs["logits"][0, 1, 3, 3] = float("nan")
    write_inputs(inputs)
    status, _, err = run("predict", "logits.npy", "-o", "a.png")
    assert status == 0
    assert err == "seg-loss: warning: logits.npy: logits contain non-finite values.\n"


@pytest.mark.parametrize(
    ("values", "size", "fix"),
    [
        ({}, "3 x 4", " Scores of lower resolution? Use upsampling=bilinear."),
        ({"size": (5, 5)}, "5 x 5", ""),
        ({"upsampling": "bilinear"}, "6 x 8", ""),
        ({"size": (6, 8)}, "6 x 8", ""),
    ],
)
def test_an_image_beside_logits_has_the_size_of_the_maps(values, size, fix):
    inputs = Inputs(logits=torch.randn(1, 3, 3, 4), image=np.zeros((6, 8, 3), np.uint8))
    predict_options = options.PredictOptions(**values)
    if size == "6 x 8":
        result = operations.predict(inputs, predict_options)
        assert result.maps["prediction"].shape == (1, 6, 8)
    else:
        with pytest.raises(IllPosed) as error:
            operations.predict(inputs, predict_options)
        expected = f"image: expected {size} (height x width) to match the maps, got 6 x 8."
        assert error.value.detail == expected + fix
