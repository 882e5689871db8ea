"""Options of pictures over HTTP and on the command line."""

import io
import json
import math

import numpy as np
import pytest
import torch
from examples import label_png, make_inputs, make_photo, npy_file, write_inputs
from PIL import Image
from serving import assert_problem

import seg_loss
from app.formats import png
from app.images.colormaps import COLORMAPS
from app.images.palettes import PALETTES
from app.options import VisualizeOptions, parse

BATCH = make_inputs(num_images=3)
ONE = {name: tensor[:1] for name, tensor in BATCH.items()}


def picture_of(response):
    assert response.status_code == 200, response.text
    return Image.open(io.BytesIO(response.content))


def visualize(client, query, **tensors):
    return client.post_tensors(f"/v1/visualize?{query}", **tensors)


def rejected(client, query, **tensors):
    return assert_problem(visualize(client, query, **tensors), 422, "ill_posed")["detail"]


def test_of_a_batch_one_image_is_chosen(client):
    inputs = {**BATCH, "prediction": BATCH["logits"].argmax(1), "image": make_photo(6, 7)}
    for kind in ("labels", "prediction", "error", "nll", "entropy", "overlay", "compare"):
        for index in range(3):
            one = {
                name: tensor if name == "image" else tensor[index : index + 1]
                for name, tensor in inputs.items()
            }
            chosen = visualize(client, f"kind={kind}&image_index={index}", **inputs)
            assert chosen.status_code == 200, chosen.text
            alone = visualize(client, f"kind={kind}", **one)
            assert chosen.content == alone.content, (kind, index)
    assert visualize(client, "kind=nll&image_index=0", **ONE).status_code == 200


def test_a_batch_without_a_choice_is_an_error_that_names_the_option(client):
    choice = "Choose one: image_index=0...2."
    for kind, inputs in (
        ("labels", {"labels": BATCH["labels"]}),
        ("entropy", {"logits": BATCH["logits"]}),
        ("prediction", {"prediction": BATCH["labels"]}),
    ):
        assert rejected(client, f"kind={kind}", **inputs).endswith(choice)


def test_an_index_without_an_image_is_an_error(client):
    assert rejected(client, "kind=nll&image_index=3", **BATCH) == (
        "image_index: expected 0...2, the images of logits, got 3."
    )
    inputs = {"logits": BATCH["logits"], "labels": BATCH["labels"][:2]}
    assert rejected(client, "kind=nll&image_index=2", **inputs) == (
        "image_index: expected 0...1, the images of labels, got 2."
    )


def test_logits_of_another_image_may_be_infinite(client):
    logits = BATCH["logits"].clone()
    logits[2] = math.nan
    inputs = {**BATCH, "logits": logits}
    assert visualize(client, "kind=nll&image_index=1", **inputs).status_code == 200
    assert rejected(client, "kind=nll&image_index=2", **inputs).startswith(
        "logits: expected finite"
    )


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("kind=nll", f"0,{math.log(5):.5g}"),
        ("kind=nll&scale=lnC", "0,1.6094"),
        ("kind=nll&scale=0..lnC", "0,1.6094"),
        ("kind=entropy", "0,1.6094"),
        ("kind=confidence", "0,1"),
        ("kind=nll&scale=0.5,%202e1", "0.5,20"),
        ("kind=confidence&scale=.2,.9", "0.2,0.9"),
    ],
)
def test_the_scale_of_a_heat_map_is_in_a_header(client, query, text):
    assert visualize(client, query, **ONE).headers["Seg-Loss-Scale"] == text


def test_a_scale_of_the_values_is_that_of_valid_pixels(client):
    nll = seg_loss.evaluate(**ONE, maps=("nll",)).maps["nll"][0].numpy()
    valid = nll[ONE["labels"][0].numpy() != 255]
    for name, ends in (
        ("auto", (valid.min(), valid.max())),
        ("percentile", np.percentile(valid, (1, 99))),
    ):
        header = visualize(client, f"kind=nll&scale={name}", **ONE).headers["Seg-Loss-Scale"]
        assert [float(end) for end in header.split(",")] == pytest.approx(list(ends), rel=1e-4)


def test_pictures_without_a_scale_have_no_such_header(client):
    inputs = {**ONE, "image": make_photo(6, 7)}
    for kind in ("labels", "prediction", "overlay", "error", "compare"):
        assert (
            "Seg-Loss-Scale" not in visualize(client, f"kind={kind}&scale=auto", **inputs).headers
        )


@pytest.mark.parametrize("text", ["", "2", "3,1", "1,1", "a,b", "0,inf", "0,1e31", "1,2,3", "max"])
def test_an_unknown_scale_is_an_error(client, text):
    detail = rejected(client, f"kind=nll&scale={text}", **ONE)
    assert detail.startswith(
        "scale: expected lnC, auto, percentile, or two numbers LO,HI with LO < HI, got "
    )


def test_a_scale_to_ln_c_is_an_error_for_a_confidence(client):
    assert rejected(client, "kind=confidence&scale=lnC", **ONE).startswith("scale: expected auto")


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        ("contour_px", "101", "an integer from 0 to 100"),
        ("contour_px", "-1", "an integer from 0 to 100"),
        ("contour_px", "1.5", "an integer from 0 to 100"),
        ("border_px", "1_0", "an integer from 0 to 100, or none"),
        ("border_px", "101", "an integer from 0 to 100, or none"),
        ("image_index", "-1", "an integer from 0"),
        ("image_index", "first", "an integer from 0"),
        ("legend", "box", "one of none, strip"),
        ("ignore", "black", "one of auto, checker, grey, photo, colour, transparent"),
        ("resize", "bilinear", "one of none, labels, image"),
        ("cmap", "virids", f"one of {', '.join(COLORMAPS)}"),
    ],
)
def test_an_invalid_style_is_an_error(client, option, text, expected):
    detail = rejected(client, f"{option}={text}", **ONE)
    fix = " Did you mean viridis?" if option == "cmap" else ""
    assert detail == f"{option}: expected {expected}, got '{text}'.{fix}"


def test_numbers_of_pixels_may_have_spaces_and_none_is_no_border():
    options = parse(VisualizeOptions, [("border_px", "none"), ("contour_px", " 2 ")])
    assert (options.border_px, options.contour_px) == (None, 2)
    assert parse(VisualizeOptions, []).border_px == 3


def test_classes_are_chosen_by_index_or_name(client):
    labels = torch.tensor([[[0, 16, 15, 255]]], dtype=torch.uint8)
    for text in ("16", "pottedplant", "Potted-Plant", "%20potted_plant,16"):
        query = f"kind=labels&palette=voc&classes={text}"
        picture = picture_of(visualize(client, query, labels=labels))
        assert picture.mode == "P"
        assert np.array(picture).tolist() == labels[0].tolist()
        assert np.array(picture.convert("RGB"))[0].tolist() == [
            [217] * 3, [0, 64, 0], [217] * 3, [224, 224, 192],
        ]  # fmt: skip
    detail = rejected(client, "kind=labels&palette=voc&classes=pottedplan", labels=labels)
    assert detail.startswith("classes: expected an index or a class name of the palette voc, got")
    assert detail.endswith("Did you mean pottedplant?")
    assert rejected(client, "kind=labels&classes=1,,2", labels=labels).startswith("classes: ")


def test_a_label_map_is_the_same_input_when_it_comes_back(client):
    picture = visualize(client, "kind=labels", labels=ONE["labels"]).content
    files = {"logits": npy_file(ONE["logits"].numpy()), "labels": picture}
    again = client.post("/v1/loss", files=files).json()
    assert again["loss"] == client.post_tensors("/v1/loss", **ONE).json()["loss"]
    returned = client.post("/v1/visualize?kind=labels", files={"labels": picture})
    assert returned.content == picture


def test_inputs_of_different_size_are_resampled_by_option(client):
    inputs = {"logits": ONE["logits"], "image": make_photo(12, 21)}
    query = "kind=overlay&alpha=1&palette=cityscapes"
    assert "upsampling=bilinear" in rejected(client, query, **inputs)
    assert picture_of(visualize(client, f"{query}&resize=image", **inputs)).size == (21, 12)
    small = picture_of(visualize(client, f"{query}&resize=labels", **inputs))
    assert small.size == (7, 6)
    prediction = ONE["logits"].argmax(1)[0].numpy()
    assert np.array_equal(np.array(small), PALETTES["cityscapes"].paint(prediction))
    errors = {"labels": ONE["labels"], "prediction": torch.zeros(1, 3, 7).byte()}
    assert rejected(client, "kind=error", **errors).endswith(
        "Use resize=labels or resize=image to resample."
    )
    assert picture_of(visualize(client, "kind=error&resize=labels", **errors)).size == (7, 6)
    assert rejected(client, "kind=error&resize=image", **errors).startswith(
        "image: expected a photo"
    )


def test_without_labels_a_confidence_has_the_predicted_classes(client):
    query = "kind=confidence&classes=2&contour_px=1"
    picture = np.array(picture_of(visualize(client, query, logits=ONE["logits"])))
    is_rest = (picture == 217).all(axis=2)
    assert np.array_equal(is_rest, ONE["logits"].argmax(1)[0].numpy() != 2)


def test_compare_is_drawn_from_files_and_warns_of_what_is_missing(client):
    files = {
        "logits": npy_file(ONE["logits"].numpy()),
        "labels": label_png(ONE["labels"][0].numpy()),
        "image": png.encode(Image.fromarray(make_photo(6, 7).numpy())),
    }
    response = client.post("/v1/visualize?kind=compare&legend=strip", files=files)
    assert picture_of(response).mode == "RGB"
    assert "compare" not in response.headers.get("Seg-Loss-Warning", "")
    del files["image"]
    response = client.post("/v1/visualize?kind=compare", files=files)
    assert (
        "compare: no input for photo, which was left out." in response.headers["Seg-Loss-Warning"]
    )
    assert rejected(client, "kind=compare", labels=ONE["labels"]).startswith(
        "inputs: expected at least two of photo, labels and prediction"
    )


def test_the_command_line_takes_the_options_and_tells_the_scale(run, empty_directory):
    write_inputs(BATCH)
    line = "visualize logits.npy --kind nll --labels labels.npy --image-index 2 -o a.png"
    arguments = line.split(" ")
    np.save("labels.npy", BATCH["labels"].numpy())
    flags = "--scale 0,2 --cmap magma --legend strip --contour-px 1 --ignore grey"
    style = flags.split(" ")
    assert run(*arguments, *style) == (0, "", "seg-loss: scale: 0,2 (nats)\n")
    with Image.open("a.png") as picture:
        assert picture.width > 50
    status, out, _ = run(*arguments, "--scale", "auto", "--format", "json")
    answer = json.loads(out)
    nll = seg_loss.evaluate(**BATCH, maps=("nll",)).maps["nll"][2]
    valid = nll[BATCH["labels"][2] != 255]
    assert status == 0
    assert answer.pop("scale") == pytest.approx([float(valid.min()), float(valid.max())])
    assert answer == {"output": "a.png", "kind": "nll", "unit": "nats", "warnings": []}
    line = "visualize --labels labels.npy --image-index 0 --kind labels -o a.png --format json"
    answer = json.loads(run(*line.split())[1])
    assert (answer["scale"], answer["unit"]) == (None, None)
    status, _, err = run("visualize", "logits.npy", "-o", "a.png")
    assert (status, err.endswith("Choose one: --image-index 0...2.\n")) == (1, True)
