"""`/v1/evaluate` and `seg-loss evaluate` of a prediction that has one class for each pixel."""

import json
import math
from pathlib import Path

import fcn_demo
import numpy as np
import pytest
import safetensors.torch
import torch
from examples import label_png, make_inputs, npy_file, safetensors_file
from PIL import Image
from serving import SAFETENSORS, assert_problem, served

from seg_loss.metrics import confusion_matrix, fcn_metrics

ADE = fcn_demo.DIRECTORY.parent / "ade-sample"
HEADERS = {**SAFETENSORS, "Accept": "application/x-safetensors"}


def label_maps(num_images=1):
    """A prediction and labels of 5 classes; predictions at ignored pixels are no class."""
    inputs = make_inputs(num_images=num_images)
    prediction = inputs["logits"].argmax(1).to(torch.uint8)
    prediction[inputs["labels"] == 255] = 77
    return {"prediction": prediction, "labels": inputs["labels"]}


def figures_of(answer):
    """All but what was found in the inputs, which differs between files and tensors."""
    return {name: value for name, value in answer.items() if name not in ("inputs", "palette")}


def test_a_label_map_has_counts_and_metrics_but_no_loss(client):
    maps = label_maps(2)
    answer = client.post_tensors("/v1/evaluate?num_classes=6", **maps).json()
    confusion = confusion_matrix(maps["prediction"], maps["labels"], 6)
    metrics = fcn_metrics(confusion)
    of_logits = client.post_tensors("/v1/evaluate", **make_inputs()).json()
    assert answer.keys() == of_logits.keys()
    for name in ("loss", "divisor", "diagnosis", "calibration"):
        assert answer[name] is None
    assert answer["normalization"] == "valid"
    assert (answer["valid_pixels"], answer["ignored_pixels"]) == (78, 6)
    assert answer["uniform_loss"] == math.log(6)
    assert answer["per_image"] == [{"loss": None, "valid_pixels": 39}] * 2
    pixels = confusion.sum(1).tolist()
    assert answer["per_class"] == [{"pixels": count, "mean_nll": None} for count in pixels]
    assert answer["confusion"] == confusion.tolist()
    assert answer["metrics"] == json.loads(json.dumps(vars(metrics)))
    assert answer["warnings"] == []


def test_what_was_found_in_a_label_map_is_in_the_answer(client):
    maps = label_maps()
    path = "/v1/evaluate?num_classes=6&palette=voc"
    answer = client.post_tensors(path, **maps).json()
    assert answer["inputs"].keys() == {"labels", "prediction"}
    values, counts = maps["prediction"].unique(return_counts=True)
    pairs = [list(pair) for pair in zip(values.tolist(), counts.tolist(), strict=True)]
    assert answer["inputs"]["prediction"]["values"] == pairs
    assert answer["palette"]["name"] == "voc"
    assert len(answer["palette"]["colours"]) == 6


def test_a_label_map_has_the_counts_of_the_logits_that_it_comes_from(client):
    inputs = make_inputs(num_images=3)
    prediction = inputs["logits"].argmax(1)
    of_logits = client.post_tensors("/v1/evaluate", **inputs).json()
    maps = {"prediction": prediction, "labels": inputs["labels"][:, None]}
    answer = client.post_tensors("/v1/evaluate", **maps).json()
    for name in ("confusion", "metrics", "valid_pixels", "ignored_pixels", "uniform_loss"):
        assert answer[name] == of_logits[name]


@pytest.mark.parametrize(
    ("query", "num_classes"),
    [
        ("", 5),
        ("?num_classes=9", 9),
        ("?palette=voc", 21),
        ("?palette=voc&num_classes=7", 7),
        ("?ignore_index=255,4", 4),
    ],
)
def test_the_number_of_classes_is_an_option_or_that_of_the_values(client, query, num_classes):
    maps = label_maps()
    if "255,4" in query:  # an ignored label may be a class; it is none of the values that count
        maps["prediction"][maps["labels"] != 4] %= 4
    answer = client.post_tensors(f"/v1/evaluate{query}", **maps).json()
    assert len(answer["confusion"]) == num_classes


def test_the_limit_of_classes_holds_for_label_maps(client):
    maps = label_maps()
    path = "/v1/evaluate?num_classes=65"
    problem = assert_problem(client.post_tensors(path, **maps), 413, "too_large")
    assert problem["detail"] == (
        "num_classes: expected at most 64 classes, got 65. The limit is SEG_LOSS_MAX_CLASSES."
    )
    maps["labels"][0, 2, 3] = 200
    problem = assert_problem(client.post_tensors("/v1/evaluate", **maps), 422, "ill_posed")
    assert problem["detail"] == "labels: expected 0...63 or 255 (ignored), got 200 at (0, 2, 3)."
    for text in ("0", "65537", "1_0", "five", ""):
        response = client.post_tensors(f"/v1/evaluate?num_classes={text}", **maps)
        problem = assert_problem(response, 422, "ill_posed")
        assert problem["where"] == "num_classes"
        assert problem["expected"] == "an integer from 1 to 65536"


def test_the_limit_of_images_holds_for_label_maps(client):
    many = torch.zeros(65, 1, 1, dtype=torch.uint8)
    response = client.post_tensors("/v1/evaluate", prediction=many, labels=many)
    assert_problem(response, 413, "too_large")
    assert response.json()["detail"] == (
        "labels: expected at most 64 images, got 65. The limit is SEG_LOSS_MAX_IMAGES."
    )


@pytest.mark.parametrize("absent", ["skip", "gt_only", "zero", "one"])
def test_absent_classes_count_as_the_option_says(client, absent):
    inputs = make_inputs()
    inputs["logits"][:, 3] -= 50
    inputs["logits"][:, 4] -= 50
    inputs["labels"][inputs["labels"] == 4] = 0
    inputs["labels"][inputs["labels"] == 1] = 2
    prediction = inputs["logits"].argmax(1)
    confusion = confusion_matrix(prediction, inputs["labels"], 5)
    expected = fcn_metrics(confusion, absent=absent)
    maps = {"prediction": prediction, "labels": inputs["labels"]}
    for query, tensors in (("", inputs), ("&num_classes=5", maps)):
        path = f"/v1/evaluate?absent={absent}{query}"
        metrics = client.post_tensors(path, **tensors).json()["metrics"]
        assert metrics["absent"] == absent
        assert metrics["mean_iu"] == expected.mean_iu
        assert metrics["num_classes_averaged"] == expected.num_classes_averaged


def test_a_prediction_that_is_no_class_is_an_error_that_says_where(client):
    maps = label_maps()
    for value, fix in (
        (9, ""),
        (255, "A prediction is not ignored at a pixel whose label is a class."),
    ):
        maps["prediction"][0, 3, 2:4] = value
        response = client.post_tensors("/v1/evaluate?num_classes=5", **maps)
        problem = assert_problem(response, 422, "ill_posed")
        assert problem["where"] == "prediction"
        assert problem["expected"] == "0...4"
        assert problem["got"] == f"{value} at (0, 3, 2) and 1 more pixel"
        assert problem.get("fix", "") == fix


def test_a_prediction_in_another_label_space_has_a_fix(client):
    values = torch.arange(34, dtype=torch.uint8)[None, None]
    labels = torch.zeros_like(values)
    path = "/v1/evaluate?palette=cityscapes"
    response = client.post_tensors(path, prediction=values, labels=labels)
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["detail"] == (
        "prediction: expected 0...18, got 19 at (0, 0, 19) and 14 more pixels. Values up to 33 "
        "for 19 classes look like ids of Cityscapes, not train ids. "
        "Use prediction_space=cityscapes_ids."
    )


def test_a_mask_of_0_and_255_as_a_prediction_has_the_fix_of_masks(client):
    mask = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    response = client.post_tensors("/v1/evaluate", prediction=mask, labels=mask.clamp(max=1))
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["fix"].endswith("Use prediction_space=binary_255.")


def test_rows_without_pixels_are_images_of_one_pixel(client):
    prediction, labels = torch.tensor([1, 0, 1]), torch.tensor([1, 255, 0])
    answer = client.post_tensors("/v1/evaluate", prediction=prediction, labels=labels).json()
    assert answer["confusion"] == [[0, 1], [0, 1]]
    assert [image["valid_pixels"] for image in answer["per_image"]] == [1, 0, 1]


def test_another_number_of_classes_than_that_of_the_logits_is_an_error(client):
    inputs = make_inputs()
    num_classes = inputs["logits"].shape[1]
    assert client.post_tensors(f"/v1/evaluate?num_classes={num_classes}", **inputs).is_success
    response = client.post_tensors(f"/v1/evaluate?num_classes={num_classes + 1}", **inputs)
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["where"] == "num_classes"
    assert problem["expected"] == f"{num_classes}, the classes of the logits"


def test_logits_and_a_prediction_are_one_too_many(client):
    maps, logits = label_maps(), make_inputs()["logits"]
    problem = assert_problem(
        client.post_tensors("/v1/evaluate", logits=logits, **maps), 422, "ill_posed"
    )
    assert problem["detail"] == (
        "inputs: expected logits or prediction, got logits and prediction. "
        "Leave one out: a request evaluates one of them."
    )


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"prediction": torch.zeros(1, 2, 2).byte()}, "inputs: expected labels too, got pred"),
        (
            {"labels": torch.zeros(1, 2, 2).byte()},
            "inputs: expected labels, and logits or a prediction, got labels.",
        ),
        (
            {"prediction": torch.zeros(1, 2, 2), "labels": torch.zeros(1, 2, 2).byte()},
            "prediction: expected class indices, which are integers, got float32.",
        ),
        (
            {"prediction": torch.zeros(1, 2, 2).byte(), "labels": torch.zeros(1, 2, 2)},
            "labels: expected class indices, which are integers, got float32.",
        ),
        (
            {"prediction": torch.zeros(1, 2, 3).byte(), "labels": torch.zeros(1, 2, 2).byte()},
            "prediction: expected shape (1, 2, 2) of the labels, got shape (1, 2, 3).",
        ),
        (
            {"prediction": torch.tensor(1), "labels": torch.tensor(1)},
            "labels: expected [N,H,W] or [H,W], got no axes.",
        ),
    ],
    ids=["no labels", "no prediction", "float prediction", "float labels", "shapes", "no axes"],
)
def test_label_maps_that_cannot_be_compared_are_errors(client, tensors, message):
    problem = assert_problem(client.post_tensors("/v1/evaluate", **tensors), 422, "ill_posed")
    assert problem["detail"].startswith(message)


def test_a_label_map_of_ignored_pixels_has_no_metrics(client):
    void = torch.full((1, 2, 3), 255, dtype=torch.uint8)
    answer = client.post_tensors("/v1/evaluate", prediction=void, labels=void).json()
    assert answer["valid_pixels"] == 0
    assert answer["metrics"]["mean_iu"] is None
    assert answer["confusion"] == [[0]]


def test_label_spaces_of_prediction_and_labels_are_options(client):
    maps = label_maps()
    expected = client.post_tensors("/v1/evaluate", **maps).json()
    of_ade = {
        "prediction": maps["prediction"] + 1,
        "labels": torch.where(maps["labels"] == 255, 0, maps["labels"].long() + 1),
    }
    path = "/v1/evaluate?label_space=ade_zero&prediction_space=ade_zero"
    assert figures_of(client.post_tensors(path, **of_ade).json()) == figures_of(expected)
    problem = assert_problem(
        client.post_tensors("/v1/evaluate?num_classes=5", **of_ade), 422, "ill_posed"
    )
    assert problem["fix"] == ("If 5 marks void pixels, pass ignore_index=5.")


def test_labels_of_a_label_map_that_look_wrong_have_a_warning(client):
    labels = torch.arange(1, 21, dtype=torch.uint8).repeat(1, 5, 1)
    for prediction, option in ((labels - 1, "label_space"), (labels + 1, "prediction_space")):
        path = "/v1/evaluate?num_classes=22"
        answer = client.post_tensors(path, prediction=prediction, labels=labels).json()
        (warning,) = answer["warnings"]
        assert warning == (
            f"{option.removesuffix('_space').replace('label', 'labels')}: prediction and labels "
            f"agree at 0 % of the pixels, and at 100 % with {option}=ade_zero. "
            f"Use {option}=ade_zero."
        )
        path += f"&{option}=ade_zero"
        answer = client.post_tensors(path, prediction=prediction, labels=labels).json()
        assert (answer["metrics"]["mean_iu"], answer["warnings"]) == (1.0, [])


def test_ids_of_cityscapes_are_recognized_without_a_number_of_classes(client):
    ids = torch.tensor([[7, 8, 11, 23, 26, 33, 0, 4]], dtype=torch.uint8).repeat(1, 6, 1)
    classes = torch.tensor([[0, 1, 2, 10, 13, 18, 3, 5]], dtype=torch.uint8).repeat(1, 6, 1)
    for prediction, labels, option in (
        (classes, ids, "label_space"),
        (ids[..., :6], classes[..., :6], "prediction_space"),
    ):
        tensors = {
            "prediction": prediction.contiguous(),
            "labels": labels.contiguous(),
        }
        (warning,) = client.post_tensors("/v1/evaluate", **tensors).json()["warnings"]
        assert warning.endswith(f"Use {option}=cityscapes_ids.")
        path = f"/v1/evaluate?{option}=cityscapes_ids"
        answer = client.post_tensors(path, **tensors).json()
        assert (answer["metrics"]["mean_iu"], answer["warnings"]) == (1.0, [])


def test_label_maps_that_disagree_otherwise_have_no_warning(client):
    maps = label_maps(3)
    assert client.post_tensors("/v1/evaluate", **maps).json()["warnings"] == []
    one = torch.zeros(1, 4, 4, dtype=torch.uint8)
    assert client.post_tensors("/v1/evaluate", prediction=one, labels=one + 1).json()[
        "warnings"
    ] == ["labels: all pixels that are not ignored have the class 1."]


def test_weights_of_a_label_map_have_a_warning(client):
    answer = client.post_tensors("/v1/evaluate", **label_maps(), class_weight=torch.ones(5))
    warning = "class_weight: a prediction has no loss that it could weight."
    assert answer.json()["warnings"] == [warning]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("has_logits", [True, False], ids=["logits", "prediction"])
def test_the_map_of_labels_is_what_the_server_understood(client, dtype, has_logits):
    inputs = make_inputs()
    inputs["labels"] = inputs["labels"].to(dtype)
    if not has_logits:
        inputs = {**label_maps(), "labels": inputs["labels"]}
    path = "/v1/evaluate?maps=labels,prediction"
    response = client.post(path, content=safetensors_file(**inputs), headers=HEADERS)
    maps = safetensors.torch.load(response.content)
    assert maps.keys() == {"labels", "prediction"}
    assert maps["labels"].dtype == dtype
    assert torch.equal(maps["labels"], inputs["labels"])
    expected = inputs["logits"].argmax(1) if has_logits else inputs["prediction"]
    assert torch.equal(maps["prediction"].long(), expected.long())
    length = int.from_bytes(response.content[:8], "little")
    metadata = json.loads(response.content[8 : 8 + length])["__metadata__"]
    assert json.loads(metadata["evaluation"]) == client.post_tensors(path[:12], **inputs).json()


def test_the_map_of_labels_comes_after_encoding_and_label_space(client):
    ids = np.array([[7, 8, 33], [0, 26, 255]], dtype=np.uint8)
    classes = torch.tensor([[[0, 1, 18], [255, 13, 255]]])
    files = {
        "logits": npy_file(np.zeros((1, 19, 2, 3), dtype=np.float32)),
        "labels": label_png(ids),
    }
    path = "/v1/evaluate?maps=labels&label_space=cityscapes_ids"
    response = client.post(path, files=files, headers={"Accept": HEADERS["Accept"]})
    maps = safetensors.torch.load(response.content)
    assert torch.equal(maps["labels"].long(), classes)


def test_the_map_of_labels_has_the_size_of_the_labels(client):
    for upsampling in ("none", "bilinear"):
        inputs = make_inputs(upsampling)
        expected = inputs["labels"]
        inputs["labels"] = expected[:, None].contiguous()
        path = f"/v1/evaluate?maps=labels,nll&upsampling={upsampling}"
        response = client.post(path, content=safetensors_file(**inputs), headers=HEADERS)
        maps = safetensors.torch.load(response.content)
        assert torch.equal(maps["labels"], expected)
        assert maps["nll"].shape == expected.shape


def test_a_map_that_needs_logits_is_an_error_for_a_label_map(client):
    path = "/v1/evaluate?maps=labels,nll,entropy"
    response = client.post(path, content=safetensors_file(**label_maps()), headers=HEADERS)
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["detail"] == (
        "maps: expected some of prediction, labels for a prediction without logits, "
        "got nll, entropy. Send logits to get them."
    )


def test_the_command_line_evaluates_a_label_map(client, run, empty_directory):
    maps = label_maps()
    Path("prediction.png").write_bytes(label_png(maps["prediction"][0].numpy()))
    Path("prediction.npy").write_bytes(npy_file(maps["prediction"].numpy()))
    Path("labels.png").write_bytes(label_png(maps["labels"][0].numpy()))
    expected = client.post_tensors("/v1/evaluate", **maps).json()
    for prediction in ("prediction.png", "prediction.npy"):
        status, out, err = run("evaluate", prediction, "labels.png", "--format", "json")
        assert (status, err) == (0, "")
        assert figures_of(json.loads(out)) == figures_of(expected)
    status, out, _ = run("evaluate", "prediction.png", "labels.png")
    assert status == 0
    assert "mean_iu" in out
    options = ("--maps", "labels,prediction", "-o", "maps.safetensors")
    assert run("evaluate", "prediction.png", "labels.png", *options)[0] == 0
    written = safetensors.torch.load_file("maps.safetensors")
    assert torch.equal(written["labels"], maps["labels"])
    status, _, err = run("evaluate", "prediction.png", "labels.png", "--fail-under", "mean_iu=0.99")
    assert status == 1
    assert "mean_iu: expected at least 0.99" in err


def test_a_label_map_in_floating_point_is_no_logits(run, empty_directory):
    maps = {name: array[0].numpy() for name, array in label_maps().items()}
    np.save("labels.npy", maps["labels"])
    np.save("prediction.npy", maps["prediction"].astype(np.float32))
    status, out, err = run("evaluate", "prediction.npy", "labels.npy")
    assert (status, out) == (1, "")
    assert err == (
        "seg-loss: logits: expected [N,C,H,W] or [C,H,W], got float32 "
        f"{maps['labels'].shape}, as the labels. "
        "Save class indices as integers: array.astype('uint8').\n"
    )


@fcn_demo.needed
def test_the_published_label_map_has_the_published_values():
    files = {
        name: (fcn_demo.DIRECTORY / file).read_bytes()
        for name, file in (("prediction", "output.png"), ("labels", "label.png"))
    }
    with served() as client:
        answer = client.post("/v1/evaluate?palette=voc", files=files).json()
    assert (answer["valid_pixels"], answer["ignored_pixels"]) == (149715, 17285)
    metrics = answer["metrics"]
    for name, value in fcn_demo.METRICS.items():
        assert metrics[name] == pytest.approx(value, rel=1e-15)
    assert metrics["num_classes_averaged"] == 3
    assert {index: metrics["iu"][index] for index in fcn_demo.IU} == fcn_demo.IU
    truth = {index: row["pixels"] for index, row in enumerate(answer["per_class"]) if row["pixels"]}
    assert truth == fcn_demo.TRUTH
    predicted = np.array(answer["confusion"]).sum(axis=0)
    assert {int(index): int(predicted[index]) for index in predicted.nonzero()[0]} == (
        fcn_demo.PREDICTED
    )


@pytest.mark.skipif(not ADE.is_dir(), reason=f"{ADE} is not there")
def test_the_published_predictions_of_ade_have_the_published_values():
    query = "label_space=ade_zero&prediction_space=ade_zero&num_classes=150"
    with served() as client:
        confusion, ignored = np.zeros((150, 150), dtype=np.int64), []
        for number in (1, 2, 3):
            name = f"ADE_val_0000000{number}.png"
            files = {
                "prediction": (ADE / "predictions" / name).read_bytes(),
                "labels": (ADE / "annotations" / name).read_bytes(),
            }
            answer = client.post(f"/v1/evaluate?{query}&absent=zero", files=files).json()
            assert answer["metrics"]["pixel_accuracy"] == 1
            confusion += np.array(answer["confusion"])
            ignored.append(answer["ignored_pixels"])
        assert ignored == [3613, 17280, 2031]
        assert confusion.sum() == 628772
        # The three pictures as one: of the same size after padding with void.
        shapes = [
            np.array(Image.open(file)).shape for file in sorted((ADE / "annotations").iterdir())
        ]
        rows, columns = (max(sizes) for sizes in zip(*shapes, strict=True))
        batch = np.zeros((3, rows, columns), dtype=np.uint8)
        for index, file in enumerate(sorted((ADE / "annotations").iterdir())):
            labels = np.array(Image.open(file))
            batch[index, : labels.shape[0], : labels.shape[1]] = labels
        tensors = dict.fromkeys(("prediction", "labels"), torch.from_numpy(batch))
        for absent, mean_iu, averaged in (("zero", 0.1, 150), ("skip", 1.0, 15)):
            answer = client.post_tensors(f"/v1/evaluate?{query}&absent={absent}", **tensors).json()
            assert answer["valid_pixels"] == 628772
            assert answer["metrics"]["mean_iu"] == mean_iu
            assert answer["metrics"]["num_classes_averaged"] == averaged
            assert answer["confusion"] == confusion.tolist()
