"""Every error: its status, its sentence, and a service that still serves afterwards."""

import asyncio
import io
import json
import struct

import httpx
import numpy as np
import pytest
import torch
from examples import (
    UPSAMPLED_SIZE,
    label_png,
    make_inputs,
    make_photo,
    npy_file,
    png_bomb,
    safetensors_file,
    write_inputs,
)
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import SAFETENSORS, Client, assert_problem, assert_still_serves, served

from app.errors import safe_repr
from app.http.problems import install_handlers
from app.http.v1 import OPERATIONS, RESOURCES
from app.images.kinds import KINDS
from app.images.palettes import PALETTES
from app.inputs import MAX_UPSAMPLED_SIDE
from app.options import UPSAMPLINGS

LOGITS, LABELS = make_inputs()["logits"], make_inputs()["labels"]
CODES = {400: "malformed", 413: "too_large", 422: "ill_posed"}
NON_FINITE = "logits: expected finite numbers (or -inf in some classes) at valid pixels"
RESAMPLE = "Use resize=labels or resize=image to resample."
DIVERGED = "The network has diverged, or the file is damaged."


@pytest.fixture(autouse=True)
def still_serves(client):
    yield
    assert_still_serves(client)


def png_file(array: np.ndarray, mode: str | None = None) -> bytes:
    target = io.BytesIO()
    Image.fromarray(array, mode).save(target, "PNG")
    return target.getvalue()


def post_files(client: Client, path: str, labels: bytes, logits: bytes | None = None):
    logits = npy_file(LOGITS.numpy()) if logits is None else logits
    files = {"logits": ("logits", logits), "labels": ("labels", labels)}
    return client.post(path, files=files)


def with_label(value: int, *pixels: tuple[int, int]) -> torch.Tensor:
    labels = LABELS.to(torch.int64)
    for row, column in pixels:
        labels[0, row, column] = value
    return labels


def with_logit(value: float, *index: int) -> torch.Tensor:
    logits = LOGITS.clone()
    logits[index] = value
    return logits


# Inputs that no loss is defined for


ILL_POSED = {
    "labels of another shape": (
        "none",
        {"labels": LABELS[:, :5]},
        "labels: expected shape (1, 6, 7) to match logits (1, 5, 6, 7), got shape (1, 5, 7).",
    ),
    "height and width exchanged": (
        "none",
        {"labels": LABELS.mT},
        (
            "labels: expected shape (1, 6, 7) to match logits (1, 5, 6, 7), got shape (1, 7, 6). "
            "Height and width are exchanged."
        ),
    ),
    "one-hot labels": (
        "none",
        {"labels": torch.zeros(1, 5, 6, 7, dtype=torch.uint8)},
        (
            "labels: expected shape (1, 6, 7) to match logits (1, 5, 6, 7), "
            "got shape (1, 5, 6, 7). One-hot? Take argmax over axis 1."
        ),
    ),
    "one-hot labels, upsampled": (
        "fcn",
        {"labels": torch.zeros(1, 5, *UPSAMPLED_SIZE, dtype=torch.uint8)},
        (
            "labels: expected shape (1, 20, 30) to match logits (1, 5, 6, 7), "
            "got shape (1, 5, 20, 30). One-hot? Take argmax over axis 1."
        ),
    ),
    "logits of one axis": (
        "none",
        {"logits": torch.zeros(5)},
        "logits: expected [N,C,H,W], [C,H,W], [N,C] or [N,C,D,H,W], got 1 axes.",
    ),
    "logits of six axes": (
        "none",
        {"logits": torch.zeros(1, 1, 1, 1, 1, 1)},
        "logits: expected [N,C,H,W], [C,H,W], [N,C] or [N,C,D,H,W], got 6 axes.",
    ),
    "logits of two axes, upsampled": (
        "bilinear",
        {"logits": torch.zeros(1, 5)},
        "logits: expected [N,C,h,w] or [C,h,w], to be upsampled, got 2 axes.",
    ),
    "logits of five axes, upsampled": (
        "fcn",
        {"logits": torch.zeros(1, 5, 2, 6, 7)},
        "logits: expected [N,C,h,w] or [C,h,w], to be upsampled, got 5 axes.",
    ),
    "logits without pixels": (
        "none",
        {"logits": torch.zeros(1, 5, 0, 7)},
        "logits: expected at least one number, got shape (1, 5, 0, 7).",
    ),
    "labels without axes": (
        "none",
        {"labels": torch.tensor(1, dtype=torch.uint8)},
        "labels: expected shape (1, 6, 7) to match logits (1, 5, 6, 7), got shape ().",
    ),
    "labels without pixels": (
        "none",
        {"labels": LABELS[:, :0]},
        "labels: expected at least one number, got shape (1, 0, 7).",
    ),
    "integer logits": (
        "none",
        {"logits": LOGITS.to(torch.int32)},
        "logits: expected float32, float16, bfloat16 or float64, got int32.",
    ),
    "float labels": (
        "none",
        {"labels": LABELS.float()},
        (
            "labels: expected uint8, int8, int16, int32, int64, uint16, uint32 or uint64, "
            "got float32. Class indices are integers."
        ),
    ),
    "a label out of range": (
        "none",
        {"labels": with_label(31, (2, 3), (4, 4), (5, 6))},
        "labels: expected 0...4 or 255 (ignored), got 31 at (0, 2, 3) and 2 more pixels.",
    ),
    "a label out of range, upsampled": (
        "bilinear",
        {"labels": torch.full((1, *UPSAMPLED_SIZE), 31, dtype=torch.uint8)},
        "labels: expected 0...4 or 255 (ignored), got 31 at (0, 0, 0) and 599 more pixels.",
    ),
    "a label that may be void": (
        "none",
        {"labels": with_label(-1, (2, 3))},
        (
            "labels: expected 0...4 or 255 (ignored), got -1 at (0, 2, 3). "
            "If -1 marks void pixels, pass ignore_index=255,-1."
        ),
    ),
    "NaN": (
        "none",
        {"logits": with_logit(float("nan"), 0, 1, 2, 3)},
        f"{NON_FINITE}, got nan at (0, 1, 2, 3), in 1 of 39 valid pixels. {DIVERGED}",
    ),
    "infinity": (
        "none",
        {"logits": with_logit(float("inf"), 0, 4, 5, 6)},
        f"{NON_FINITE}, got inf at (0, 4, 5, 6), in 1 of 39 valid pixels. {DIVERGED}",
    ),
    "too few class weights": (
        "none",
        {"class_weight": torch.ones(4)},
        "class_weight: expected shape (5,), one per class, got shape (4,).",
    ),
    "a negative class weight": (
        "none",
        {"class_weight": -torch.ones(5)},
        "class_weight: expected finite numbers that are not negative, got -1.0 for class 0.",
    ),
    "a negative pixel weight": (
        "none",
        {"pixel_weight": -torch.ones(1, 6, 7)},
        (
            "pixel_weight: expected finite numbers that are not negative, "
            "got -1.0 at (0, 0, 3) and 38 more pixels."
        ),
    ),
    "a pixel weight for each score": (
        "bilinear",
        {"pixel_weight": torch.ones(1, 6, 7)},
        "pixel_weight: expected shape (1, 20, 30) to match the labels, got shape (1, 6, 7).",
    ),
    "scores of no FCN": (
        "fcn",
        {"logits": torch.zeros(1, 5, 2, 2), "labels": torch.zeros(1, 99, 99, dtype=torch.uint8)},
        (
            "logits: expected height and width (22, 22) or (10, 10) or (4, 4), "
            "FCN-8s', 16s' or 32s' for labels (99, 99), got (2, 2). "
            "For other sizes use upsampling=bilinear, or Deconvolution in Python."
        ),
    ),
    "more label maps than scores": (
        "bilinear",
        {"labels": make_inputs("bilinear", num_images=2)["labels"]},
        "labels: expected shape (1, 20, 30) to match logits (1, 5, 6, 7), got shape (2, 20, 30).",
    ),
    "one label map for two images": (
        "fcn",
        {
            "logits": make_inputs("fcn", num_images=2)["logits"],
            "labels": make_inputs("fcn")["labels"][0],
        },
        "labels: expected [N,H,W] or [H,W], got shape (20, 30).",
    ),
    "labels of one axis, upsampled": (
        "fcn",
        {"labels": torch.zeros(9, dtype=torch.uint8)},
        "labels: expected [N,H,W] or [H,W], got shape (9,).",
    ),
}


@pytest.mark.parametrize("case", ILL_POSED)
@pytest.mark.parametrize("operation", ["loss", "gradient", "evaluate", "predict"])
def test_an_ill_posed_input_is_named_with_expected_got_and_fix(client, case, operation):
    upsampling, tensors, sentence = ILL_POSED[case]
    path = f"/v1/{operation}?upsampling={upsampling}"
    response = client.post_tensors(path, **{**make_inputs(upsampling), **tensors})
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["detail"] == sentence
    parts = f"{problem['where']}: expected {problem['expected']}, got {problem['got']}."
    assert problem["detail"] == f"{parts} {problem.get('fix', '')}".rstrip()


def test_labels_larger_than_logits_suggest_upsampling(client, run, empty_directory):
    sentence = (
        "labels: expected shape (1, 6, 7) to match logits (1, 5, 6, 7), got shape (1, 20, 30). "
        "Scores of lower resolution? Use upsampling=bilinear; in Python, seg_loss.Bilinear()."
    )
    inputs = make_inputs("bilinear")
    assert client.post_tensors("/v1/loss", **inputs).json()["detail"] == sentence
    without_batch = {**inputs, "labels": inputs["labels"][0]}
    fix = client.post_tensors("/v1/loss", **without_batch).json()["fix"]
    assert sentence.endswith(fix)
    sentence = (
        "labels: expected 6 x 7 (height x width) to match the logits, got 20 x 30. "
        "Scores of lower resolution? Use upsampling=bilinear."
    )
    labels = label_png(inputs["labels"][0].numpy())
    response = post_files(client, "/v1/loss", labels, npy_file(inputs["logits"].numpy()))
    assert response.json()["detail"] == sentence
    write_inputs(inputs)
    sentence = sentence.replace("upsampling=", "--upsampling ")
    assert run("loss", "logits.npy", "labels.png") == (1, "", f"seg-loss: {sentence}\n")


@pytest.mark.parametrize(
    ("size", "fix"),
    [((8, 9), "Scores of lower resolution? Use upsampling=bilinear."), ((5, 9), RESAMPLE)],
)
def test_a_photo_larger_than_logits_suggests_upsampling(client, size, fix):
    tensors = {"logits": LOGITS, "image": torch.zeros(*size, 3).byte()}
    response = client.post_tensors("/v1/visualize?kind=overlay", **tensors)
    assert assert_problem(response, 422, "ill_posed")["detail"] == (
        f"image: expected 6 x 7 (height x width) to match the logits, got {size[0]} x 9. {fix}"
    )
    path = "/v1/visualize?kind=overlay&upsampling=bilinear"
    assert client.post_tensors(path, **tensors).status_code == 200


def test_a_photo_larger_than_a_prediction_does_not_suggest_upsampling(client):
    tensors = {"prediction": LABELS, "image": torch.zeros(12, 14, 3).byte()}
    response = client.post_tensors("/v1/visualize?kind=overlay", **tensors)
    assert assert_problem(response, 422, "ill_posed")["detail"] == (
        f"image: expected 6 x 7 (height x width) to match the prediction, got 12 x 14. {RESAMPLE}"
    )


def test_labels_not_larger_than_logits_do_not_suggest_upsampling(client):
    for labels in (
        torch.zeros(1, 5, 9, dtype=torch.uint8),
        torch.zeros(2, 6, 7, dtype=torch.uint8),
        torch.zeros(1, 4, 4, dtype=torch.uint8),
    ):
        response = client.post_tensors("/v1/loss", logits=LOGITS, labels=labels)
        assert "fix" not in response.json()


# Logits that are not finite


def test_non_finite_logits_of_ignored_pixels_do_not_matter(client):
    logits = with_logit(float("nan"), 0, 1, 0, 0)
    response = client.post_tensors("/v1/loss", logits=logits, labels=LABELS)
    expected = client.post_tensors("/v1/loss", **make_inputs())
    assert response.json()["loss"] == expected.json()["loss"]


def test_non_finite_scores_of_ignored_pixels_do_not_matter(client):
    inputs = make_inputs("bilinear")
    inputs["labels"][0, 8:15, 15:24] = 255
    path = "/v1/loss?upsampling=bilinear"
    expected = client.post_tensors(path, **inputs).json()
    for value in (float("nan"), float("inf"), float("-inf")):
        inputs["logits"][0, 2, 3, 4] = value
        response = client.post_tensors(path, **inputs)
        assert response.status_code == 200, response.text
        assert response.json() == expected
    inputs["labels"][0, 14, 23] = 0
    inputs["logits"][0, 2, 3, 4] = float("nan")
    problem = assert_problem(client.post_tensors(path, **inputs), 422, "ill_posed")
    assert (
        problem["got"] == "nan at (0, 2, 3, 4), read by pixel (0, 14, 23), in 1 of 517 valid pixels"
    )


@pytest.mark.parametrize("operation", ["loss", "gradient", "evaluate", "visualize", "predict"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_score_is_named_with_its_pixel(client, operation, value):
    inputs = make_inputs("bilinear")
    inputs["logits"][0, 2, 3, 4] = value
    path = f"/v1/{operation}?upsampling=bilinear"
    problem = assert_problem(client.post_tensors(path, **inputs), 422, "ill_posed")
    assert problem["where"] == "logits"
    # Rows 8 to 14 and columns 15 to 23 read the score.
    assert problem["got"] == (
        f"{value} at (0, 2, 3, 4), read by pixel (0, 8, 15), in 63 of 579 valid pixels"
    )
    assert problem["fix"] == DIVERGED


def test_a_pixel_with_minus_infinity_in_all_classes_is_an_error(client):
    inputs = {"logits": torch.zeros(1, 2, 1, 2), "labels": torch.zeros(1, 1, 6).byte()}
    inputs["logits"][0, 0, 0, 0] = float("-inf")
    path = "/v1/loss?upsampling=bilinear"
    assert client.post_tensors(path, **inputs).status_code == 200
    inputs["logits"][0, 1, 0, 1] = float("-inf")
    problem = assert_problem(client.post_tensors(path, **inputs), 422, "ill_posed")
    assert problem["got"] == "-inf in every class at pixel (0, 0, 2), in 2 of 6 valid pixels"


def test_an_infinite_loss_is_null_in_json(client):
    labels = with_label(2, (3, 3))
    logits = with_logit(-float("inf"), 0, 2, 3, 3)
    response = client.post_tensors("/v1/loss", logits=logits, labels=labels)
    assert response.status_code == 200
    assert response.json()["loss"] is None
    assert response.json()["diagnosis"]["state"] == "saturated"


# Files


PNG = png_file(LABELS[0].numpy())


def npy_with_wrong_shape() -> bytes:
    return npy_file(np.zeros((1, 5, 6, 7), np.float32)).replace(b"(1, 5, 6, 7)", b"(9, 5, 6, 7)")


def pickled_npy() -> bytes:
    target = io.BytesIO()
    np.save(target, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return target.getvalue()


FILES = {
    "an RGB label map without a palette": (
        {"labels": png_file(np.arange(126, dtype=np.uint8).reshape(6, 7, 3))},
        422,
        (
            "labels: expected indices (PNG of mode P or L), or colours of a named palette, "
            "got mode RGB and no palette. Name the palette (palette=voc, or cityscapes, ade20k, "
            "cocostuff, camvid, pascal_context, pascal_context_59, okabe_ito, generated), send "
            "your own, or save the map as mode P or L."
        ),
    ),
    "a PNG of another size": (
        {"labels": png_file(np.zeros((7, 6), np.uint8))},
        422,
        (
            "labels: expected 6 x 7 (height x width) to match the logits, got 7 x 6. "
            "Height and width are exchanged."
        ),
    ),
    "an incomplete PNG": (
        {"labels": PNG[:-20]},
        422,
        "labels: expected a complete file, got a damaged file: it ends too early.",
    ),
    "a decompression bomb": (
        {"labels": png_bomb()},
        413,
        "labels: expected at most 16384 pixels, got 50000 x 50000 = 2500000000.",
    ),
    "a pickled NPY": (
        {"labels": pickled_npy()},
        400,
        (
            "labels: expected one of |i1, <i2, <i4, <i8, |u1, <u2, <u4, <u8, <f2, <f4, <f8, "
            "got Python objects. Pickled objects are never read: save numbers, array.astype('<f4')."
        ),
    ),
    "an NPY with a larger shape than its payload": (
        {"logits": npy_with_wrong_shape()},
        400,
        "logits: expected 7560 bytes for float32 (9, 5, 6, 7), got 840.",
    ),
    "a JPEG as labels": (
        {"labels": b"\xff\xd8\xff\xe0" + bytes(100)},
        422,
        (
            "labels: expected a lossless label map, got JPEG, which is lossy and changes class "
            "indices. Save the map as PNG."
        ),
    ),
    "a PNG as logits": (
        {"logits": PNG},
        422,
        "logits: expected an NPY, NPZ or safetensors file, got PNG.",
    ),
    "an empty file": (
        {"labels": b""},
        422,
        "labels: expected an NPY, NPZ, safetensors, PNG, TIFF or BMP file, got an empty file.",
    ),
    "text": (
        {"labels": b"0 0 0 1 1 1\n" * 7},
        422,
        "labels: expected an NPY, NPZ, safetensors, PNG, TIFF or BMP file, got another format.",
    ),
    "a safetensors file of two tensors": (
        {"logits": safetensors_file(a=LOGITS, b=LOGITS)},
        422,
        "logits: expected one tensor, or one named logits, got 2 of other names.",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_used_is_an_error(client, case):
    files, status, sentence = FILES[case]
    response = post_files(client, "/v1/loss", **{"labels": PNG, **files})
    problem = assert_problem(response, status, CODES[status])
    assert problem["detail"] == sentence
    if status == 413:
        assert problem["limit"] == 1 << 14


def test_a_decompression_bomb_for_upsampled_logits_is_an_error(client):
    scores = npy_file(np.zeros((1, 5, 1, 1), np.float32))
    response = post_files(client, "/v1/loss?upsampling=bilinear", png_bomb(), scores)
    problem = assert_problem(response, 413, "too_large")
    assert problem["detail"] == (
        "labels: expected at most 16384 pixels, got 50000 x 50000 = 2500000000."
    )
    assert problem["limit"] == 1 << 14


def test_colours_are_read_if_the_palette_is_named(client):
    colours = PALETTES["voc"].paint(LABELS[0].numpy())
    response = post_files(client, "/v1/loss?palette=voc", png_file(colours))
    expected = client.post_tensors("/v1/loss", **make_inputs())
    assert response.json()["loss"] == expected.json()["loss"]


# Bodies and names of inputs


def safetensors_with_offsets(begin: int, end: int) -> bytes:
    header = {"logits": {"dtype": "F32", "shape": [1, 5, 6, 7], "data_offsets": [begin, end]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(840)


@pytest.mark.parametrize("offsets", [(0, 10**12), (100, 940), (0, 4), (-1, 839), (840, 0)])
def test_safetensors_with_wrong_offsets_are_malformed(client, offsets):
    content = safetensors_with_offsets(*offsets)
    response = client.post("/v1/loss", content=content, headers=SAFETENSORS)
    assert_problem(response, 400, "malformed")


def test_a_safetensors_header_longer_than_the_file_is_malformed(client):
    response = client.post("/v1/loss", content=b"\xff" * 8 + b"{}", headers=SAFETENSORS)
    assert_problem(response, 400, "malformed")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_empty_body_is_malformed(client, operation):
    response = client.post(f"/v1/{operation.name}", content=b"", headers=SAFETENSORS)
    problem = assert_problem(response, 400, "malformed")
    assert problem["detail"] == "body: expected tensors, got 0 bytes."


def test_a_missing_input_is_an_error_that_names_those_present(client):
    response = client.post_tensors("/v1/loss", labels=LABELS)
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["detail"] == "inputs: expected logits and labels, got labels."
    response = client.post_tensors("/v1/gradient", logits=LOGITS)
    assert response.json()["detail"] == "inputs: expected logits and labels, got logits."


def test_an_unknown_input_is_an_error_that_lists_the_known_ones(client):
    response = client.post_tensors("/v1/loss", **make_inputs(), target=LABELS)
    problem = assert_problem(response, 422, "ill_posed")
    known = "palette, logits, labels, class_weight, pixel_weight, prediction, image"
    assert problem["detail"] == f"body: expected inputs among {known}, got 'target'."


def test_an_option_among_the_inputs_belongs_in_the_query(client):
    files = {"logits": npy_file(LOGITS.numpy()), "labels": PNG, "ignore_index": b"0"}
    lists = {"logits": LOGITS.tolist(), "labels": LABELS.tolist(), "ignore_index": 0}
    tensors = safetensors_file(**make_inputs(), ignore_index=torch.zeros(1))
    for request in (
        {"files": files},
        {"json": lists},
        {"content": tensors, "headers": SAFETENSORS},
    ):
        problem = assert_problem(client.post("/v1/loss", **request), 422, "ill_posed")
        assert problem["fix"] == "Options belong in the query: ?ignore_index=..."


@pytest.mark.parametrize("name", ["label", "Labels", "lables"])
def test_an_input_that_is_like_a_known_one_suggests_it(client, name):
    tensors = safetensors_file(**{name: LABELS})
    for request in (
        {"files": {name: PNG}},
        {"json": {name: LABELS.tolist()}},
        {"content": tensors, "headers": SAFETENSORS},
    ):
        problem = assert_problem(client.post("/v1/loss", **request), 422, "ill_posed")
        assert problem["fix"] == "Did you mean labels?"


def test_a_palette_and_a_media_type_that_are_like_known_ones_suggest_them(client):
    problem = assert_problem(client.get("/v1/palettes/cityscape"), 404, "not_found")
    assert problem["fix"] == "Did you mean cityscapes?"
    for media_type, known in {
        "application/jason": "application/json",
        "application/safetensors": "application/x-safetensors",
        "application/form-data": "multipart/form-data",
    }.items():
        response = client.post("/v1/loss", content=b"x", headers={"Content-Type": media_type})
        problem = assert_problem(response, 415, "unsupported_media")
        assert problem["fix"] == f"Did you mean {known}?"


WRONG_INPUTS = {
    "a prediction of two images": (
        "prediction",
        {"prediction": torch.zeros(2, 6, 7).byte()},
        (
            "prediction: expected [1,H,W], one image, got shape (2, 6, 7). "
            "Choose one: image_index=0...1."
        ),
    ),
    "a prediction that is no index": (
        "prediction",
        {"prediction": torch.zeros(1, 6, 7)},
        "prediction: expected class indices, which are integers, got float32.",
    ),
    "a prediction that no PNG holds": (
        "prediction",
        {"prediction": torch.full((1, 6, 7), 300)},
        (
            "prediction: expected 0…255, which a PNG of mode P can hold, "
            "got 300 at (0, 0) and 41 more pixels. "
            "With legend=strip the picture is RGB and holds any class."
        ),
    ),
    "labels that no PNG holds": (
        "labels",
        {"labels": torch.full((1, 6, 7), 300)},
        (
            "labels: expected 0…255, which a PNG of mode P can hold, "
            "got 300 at (0, 0) and 41 more pixels. "
            "With legend=strip the picture is RGB and holds any class."
        ),
    ),
    "a photo of another size than the prediction": (
        "overlay",
        {"prediction": torch.zeros(1, 6, 7).byte(), "image": make_photo(5, 7)},
        f"image: expected 6 x 7 (height x width) to match the prediction, got 5 x 7. {RESAMPLE}",
    ),
    "a photo of another size than the logits": (
        "overlay",
        {"logits": LOGITS, "image": make_photo(5, 7)},
        f"image: expected 6 x 7 (height x width) to match the logits, got 5 x 7. {RESAMPLE}",
    ),
    "a photo of another size than the labels": (
        "overlay",
        {"labels": LABELS, "image": make_photo(5, 7)},
        f"image: expected 6 x 7 (height x width) to match the labels, got 5 x 7. {RESAMPLE}",
    ),
    "a prediction of another size than the labels": (
        "error",
        {"labels": LABELS, "prediction": torch.zeros(1, 5, 7).byte()},
        (f"prediction: expected 6 x 7 (height x width) to match the labels, got 5 x 7. {RESAMPLE}"),
    ),
}


def test_a_message_about_the_size_of_the_photo_names_the_photo(client):
    tensors = {"logits": torch.zeros(1, 5, 2, 2), "image": make_photo(99, 99)}
    response = client.post_tensors("/v1/visualize?kind=overlay&upsampling=fcn", **tensors)
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["expected"].endswith("FCN-8s', 16s' or 32s' for image (99, 99)")


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_a_message_about_a_picture_names_the_input_that_was_sent(client, case):
    kind, tensors, sentence = WRONG_INPUTS[case]
    response = client.post_tensors(f"/v1/visualize?kind={kind}", **tensors)
    assert assert_problem(response, 422, "ill_posed")["detail"] == sentence


def test_a_prediction_in_colours_is_named_in_messages(client):
    colours = png_file(np.full((6, 7, 3), 9, np.uint8))
    for name in ("prediction", "labels"):
        path = "/v1/visualize?palette=voc&kind=prediction"
        problem = assert_problem(client.post(path, files={name: colours}), 422, "ill_posed")
        assert problem["where"] == name


def test_arrays_in_npz_files_are_bounded_together():
    """A small file can hold much, and a request has several files."""
    target = io.BytesIO()
    np.savez_compressed(target, np.zeros((1, 5, 300, 300), np.float32))
    logits = target.getvalue()
    target = io.BytesIO()
    np.savez_compressed(target, np.zeros((1, 300, 300), np.uint8))
    labels = target.getvalue()
    assert len(logits) + len(labels) < 4000
    num_bytes = 4 * 5 * 300 * 300 + 300 * 300 + 2 * 128
    files = {"logits": ("a", logits), "labels": ("b", labels)}
    limits = {"max_body_bytes": num_bytes, "max_bytes_in_flight": num_bytes + 8000}
    with served(**limits) as client:
        assert client.post("/v1/loss", files=files).status_code == 200
        workers = client.app.state.service.workers
        with workers.reserve(7000):
            assert_problem(client.post("/v1/loss", files=files), 503, "unavailable")
        assert workers.bytes_in_flight == 0
    with served(max_body_bytes=num_bytes - 1) as client:
        problem = assert_problem(client.post("/v1/loss", files=files), 413, "too_large")
        assert problem["where"] == "labels"
        assert problem["limit"] == 300 * 300 + 128 - 1


# Options


NAMES = (
    "options: expected names among ignore_index, label_space, label_encoding, palette, "
    "colour_classes, unknown_colours, label_smoothing, temperature, normalization, upsampling, "
    "layout, scores"
)
INTEGERS = "ignore_index: expected an integer, several with commas between them, or none"
SHARE = "label_smoothing: expected a number from 0 to 1"
POSITIVE = "temperature: expected a positive number, 1e-30...1e30"
REPLACED = "\\ufffd"
UPSAMPLING = "upsampling: expected one of none, bilinear, bilinear_aligned, fcn"

OPTIONS = {
    "unheard=1": f"{NAMES}, got 'unheard'.",
    "kind=error": f"{NAMES}, got 'kind'. It is an option of visualize.",
    "label_smoothing=1.5": f"{SHARE}, got '1.5'.",
    "label_smoothing=nan": f"{SHARE}, got 'nan'.",
    "label_smoothing=1_0": f"{SHARE}, got '1_0'.",
    "temperature=0": f"{POSITIVE}, got '0'.",
    "temperature=-1": f"{POSITIVE}, got '-1'.",
    "temperature=inf": f"{POSITIVE}, got 'inf'.",
    "temperature=1e999": f"{POSITIVE}, got '1e999'.",
    "temperature=": f"{POSITIVE}, got nothing.",
    "normalization=mean": (
        "normalization: expected one of valid, full, batch, none, weight, got 'mean'."
    ),
    "ignore_index=a": f"{INTEGERS}, got 'a'.",
    "ignore_index=1,,2": f"{INTEGERS}, got '1,,2'.",
    "ignore_index=1.5": f"{INTEGERS}, got '1.5'.",
    "ignore_index=" + "9" * 30: f"{INTEGERS}, got '999999999999999999999999999999'.",
    "ignore_index=" + "9" * 4000: f"{INTEGERS}, got '{'9' * 75}...'.",
    "ignore_index=%00": f"{INTEGERS}, got '\\x00'.",
    "ignore_index=%ED%A0%80": f"{INTEGERS}, got '{REPLACED * 3}'.",
    "palette=<script>": (
        f"palette: expected one of {', '.join(PALETTES)}, got '\\x3cscript\\x3e'."
    ),
    "palette=Cityscape": (
        f"palette: expected one of {', '.join(PALETTES)}, got 'Cityscape'. Did you mean cityscapes?"
    ),
    "loss_weight=2": f"{NAMES}, got 'loss_weight'. It is an option of gradient.",
    "maps=nll": f"{NAMES}, got 'maps'. It is an option of evaluate.",
    "temprature=1": f"{NAMES}, got 'temprature'. Did you mean temperature?",
    "normalization=Weights": (
        "normalization: expected one of valid, full, batch, none, weight, got 'Weights'. "
        "Did you mean weight?"
    ),
    "upsampling=": f"{UPSAMPLING}, got nothing.",
    "upsampling=FCN": f"{UPSAMPLING}, got 'FCN'. Did you mean fcn?",
    "upsampling=nearest": f"{UPSAMPLING}, got 'nearest'.",
    "label_encoding=rgba": (
        "label_encoding: expected one of auto, index, rgb, got 'rgba'. Did you mean rgb?"
    ),
    "temperature=1&temperature=2": "temperature: expected one value, got several.",
}


@pytest.mark.parametrize("query", OPTIONS)
def test_an_unknown_or_invalid_option_is_an_error(client, query):
    content = safetensors_file(**make_inputs())
    response = client.post(f"/v1/loss?{query}", content=content, headers=SAFETENSORS)
    assert assert_problem(response, 422, "ill_posed")["detail"] == OPTIONS[query]


def test_text_of_the_client_is_escaped_and_cut(client):
    """In every place that a client can name: a message may be shown on a page or a terminal."""
    part = b'Content-Disposition: form-data; name="%s"\r\n\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    names = {"safetensors": b"<script>", "part": b"<script>", "long": b"x" * 999}
    for case, request in {
        "option": {"path": "/v1/loss?%3Cscript%3E=1", "content": b"x", "headers": SAFETENSORS},
        "choice": {"path": "/v1/loss?palette=<script>", "content": b"x", "headers": SAFETENSORS},
        "header": {"path": "/v1/loss?palette=%0d%0aSet-Cookie:a", "headers": SAFETENSORS},
        "long": {"path": f"/v1/loss?palette={'<' * 999}", "content": b"x", "headers": SAFETENSORS},
        "path": {"path": "/<script>"},
        "palette": {"method": "GET", "path": "/v1/palettes/<script>"},
        "media type": {"path": "/v1/loss", "headers": {"Content-Type": "a/<script>"}},
        "coding": {"path": "/v1/loss", "headers": {**SAFETENSORS, "Content-Encoding": "<script>"}},
        "accept": {"path": "/v1/loss", "headers": {**SAFETENSORS, "Accept": "a/<script>"}},
        "key": {"path": "/v1/loss", "json": {"<script>": [0]}},
        "long key": {"path": "/v1/loss", "json": {"\u202e" * 999: [0]}},
        "tensor": {
            "path": "/v1/loss",
            "content": safetensors_file(**{"<script>": LOGITS.flatten()}),
            "headers": SAFETENSORS,
        },
        "damaged tensor": {
            "path": "/v1/loss",
            "content": safetensors_file(**{"<script>": LOGITS}).replace(b"[1,5", b"[9,5"),
            "headers": SAFETENSORS,
        },
        "tensor in a file": {
            "path": "/v1/loss",
            "files": {"logits": safetensors_file(**{"<script>": LOGITS}).replace(b"[1,5", b"[9,5")},
        },
        "part": {
            "path": "/v1/loss",
            "content": b"--b\r\n" + part % names["part"] + b"\r\n--b--\r\n",
            "headers": form,
        },
        "two parts": {
            "path": "/v1/loss",
            "content": (b"--b\r\n" + part % names["part"] + b"\r\n") * 2 + b"--b--\r\n",
            "headers": form,
        },
        "disposition": {
            "path": "/v1/loss",
            "content": b"--b\r\nContent-Disposition: <script>\r\n\r\n\r\n--b--\r\n",
            "headers": form,
        },
        "part encoding": {
            "path": "/v1/loss",
            "content": b"--b\r\nContent-Transfer-Encoding: <script>\r\n"
            + part % b"logits"
            + b"\r\n--b--\r\n",
            "headers": form,
        },
    }.items():
        response = client.request(request.pop("method", "POST"), request.pop("path"), **request)
        assert response.status_code >= 400, case
        assert response.headers["Content-Type"] == "application/problem+json"
        assert "<" not in response.text, case
        assert "\u202e" not in response.text, case
        assert not any("script" in value.lower() for value in response.headers.values()), case
        assert "Set-Cookie" not in response.headers, case
        problem = response.json()
        assert len(problem["got"]) <= 80 + len("Content-Transfer-Encoding ' twice"), case
        assert "script" in problem["detail"] or "..." in problem["got"] or case == "header", case


# Limits


def test_pixels_classes_and_images_have_limits(client):
    many = torch.zeros(1, 2, 129, 128, dtype=torch.float16)
    problem = assert_problem(client.post_tensors("/v1/loss", logits=many), 413, "too_large")
    assert problem["detail"] == (
        "logits: expected at most 16384 pixels per image, got 16512. "
        "The limit is SEG_LOSS_MAX_PIXELS."
    )
    response = client.post_tensors("/v1/loss", logits=torch.zeros(1, 65, 2, 2))
    assert response.json()["detail"] == (
        "logits: expected at most 64 classes, got 65. The limit is SEG_LOSS_MAX_CLASSES."
    )
    response = client.post_tensors("/v1/loss", logits=torch.zeros(65, 2, 2, 2))
    assert response.json()["detail"] == (
        "logits: expected at most 64 images, got 65. The limit is SEG_LOSS_MAX_IMAGES."
    )


def test_labels_of_upsampled_logits_have_the_same_limits(client):
    path, logits = "/v1/loss?upsampling=bilinear", LOGITS
    large = torch.zeros(1, 129, 128, dtype=torch.uint8)
    response = client.post_tensors(path, logits=logits, labels=large)
    problem = assert_problem(response, 413, "too_large")
    assert problem["detail"] == (
        "labels: expected at most 16384 pixels per image, got 16512. "
        "The limit is SEG_LOSS_MAX_PIXELS."
    )
    for labels in (large[:, None], large[0]):
        response = client.post_tensors(path, logits=logits, labels=labels)
        assert_problem(response, 413, "too_large")
    with served(max_pixels=1 << 26) as large_service:
        logits = torch.zeros(1, 2, 1, 1)
        long = torch.zeros(1, 1, MAX_UPSAMPLED_SIDE + 1, dtype=torch.uint8)
        for labels, unit in ((long, "columns"), (long.mT, "rows")):
            response = large_service.post_tensors(path, logits=logits, labels=labels)
            problem = assert_problem(response, 413, "too_large")
            assert problem["detail"] == f"labels: expected at most 65536 {unit}, got 65537."


def test_upsampled_logits_have_a_limit():
    inputs = make_inputs("bilinear", num_images=2)
    count = 2 * 5 * 20 * 30
    path = "/v1/loss?upsampling=bilinear"
    with served(max_upsampled_logits=count - 1) as client:
        problem = assert_problem(client.post_tensors(path, **inputs), 413, "too_large")
        assert problem["detail"] == (
            "labels: expected at most 5999 upsampled logits (images x classes x pixels), got 6000. "
            "The limit is SEG_LOSS_MAX_UPSAMPLED_LOGITS."
        )
        assert problem["limit"] == count - 1
        # Without labels, the size is that of the photo; with labels, it is not.
        logits, labels = inputs["logits"][:1], inputs["labels"][:1]
        photo = make_photo(40, 30)
        visualize = "/v1/visualize?upsampling=bilinear"
        response = client.post_tensors(visualize, logits=logits, image=photo)
        assert assert_problem(response, 413, "too_large")["where"] == "image"
        response = client.post_tensors(path, logits=logits, labels=labels, image=photo)
        assert response.status_code == 200
        # Without upsampling, the size of the body limits the logits.
        large = {"logits": torch.zeros(1, 5, 40, 31), "labels": torch.zeros(1, 40, 31).byte()}
        assert client.post_tensors("/v1/loss", **large).status_code == 200
    with served(max_upsampled_logits=count) as client:
        response = client.post_tensors(path, **inputs)
        assert response.status_code == 200, response.text


# Media types, paths and methods


def test_an_unknown_media_type_lists_the_known_ones(client):
    for content_type in (
        "application/octet-stream",
        "application/x-npy",
        "application/zip",
        "image/png",
        "text/plain; charset=utf-8",
        "\xff",
        "",
    ):
        response = client.post(
            "/v1/loss", content=b"x", headers=[(b"Content-Type", content_type.encode("latin-1"))]
        )
        problem = assert_problem(response, 415, "unsupported_media")
        assert problem["got"] == safe_repr(content_type.partition(";")[0])
        accepted = ["application/x-safetensors", "multipart/form-data", "application/json"]
        assert problem["accepted"] == accepted
        assert problem["fix"] == (
            "Send files as multipart/form-data: curl -F logits=@FILE -F labels=@FILE."
        )
        assert response.headers["Accept-Post"] == ", ".join(accepted)


def test_the_default_media_type_of_curl_is_an_error_with_a_fix(client):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = client.post("/v1/loss", content=b"x", headers=headers)
    problem = assert_problem(response, 415, "unsupported_media")
    assert problem["fix"] == "With curl, add -H 'Content-Type: application/x-safetensors'."


def test_an_accept_without_an_offered_type_lists_the_offered_ones(client):
    for path, offered in (
        ("loss", ["application/json"]),
        ("gradient", ["application/x-safetensors", "application/x-npy"]),
        ("visualize", ["image/png"]),
        ("predict", ["image/png", "application/x-safetensors", "application/json"]),
    ):
        response = client.post(
            f"/v1/{path}",
            content=safetensors_file(**make_inputs()),
            headers={**SAFETENSORS, "Accept": "text/html"},
        )
        problem = assert_problem(response, 406, "not_acceptable")
        assert problem["offered"] == offered
        assert problem["got"] == "'text/html'"


def test_maps_in_a_json_response_are_an_error(client):
    response = client.post_tensors("/v1/evaluate?maps=nll", **make_inputs())
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["fix"] == "Send Accept: application/x-safetensors to get them."


def test_an_unknown_path_lists_those_there_are(client):
    problem = assert_problem(client.get("/nothing"), 404, "not_found")
    assert problem["routes"] == [
        *(f"POST /v1/{operation.name}" for operation in OPERATIONS),
        *(f"GET {resource.path}" for resource in RESOURCES),
        *(f"GET {path}" for path in ("/", "/docs", "/static/{path}")),
    ]
    assert problem["detail"] == (
        f"path: expected one of {', '.join(problem['routes'])}, got '/nothing'."
    )
    problem = assert_problem(client.post("/v1/los"), 404, "not_found")
    assert problem["fix"] == "Did you mean /v1/loss?"
    for path in ("/v1/palettes/%00", "/v1/loss//", "/%2F", "/v1/loss%0A", "/v1/palettes/a/b"):
        assert_problem(client.get(path), 404, "not_found")


def test_another_method_is_an_error_that_names_those_of_the_path(client):
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"):
        for path in ("/v1/loss", "/v1/loss/"):
            response = client.request(method, path)
            assert response.status_code == 405
            assert response.headers["Allow"] == "POST"
            if method != "HEAD":
                problem = assert_problem(response, 405, "method_not_allowed")
                assert problem["detail"] == f"method: expected POST, got '{method}'."
    response = client.post("/livez")
    problem = assert_problem(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == "GET, HEAD"
    assert problem["expected"] == "GET or HEAD"


def test_an_input_that_fastapi_rejects_is_a_problem_without_it():
    app = FastAPI()
    install_handlers(app)

    @app.get("/")
    def get(number: int) -> int:
        return number

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.get("/?number=secret")

    response = asyncio.run(request())
    assert response.status_code == 422
    assert response.json()["detail"] == "The request does not fit this path."
    assert "secret" not in response.text


# Random requests


@settings(max_examples=60, deadline=None)
@given(
    body=st.binary(max_size=300),
    content_type=st.sampled_from(
        ["application/x-safetensors", "application/json", "multipart/form-data; boundary=a"]
    ),
    content_encoding=st.sampled_from(["identity", "identity", "gzip", "zstd"]),
    operation=st.sampled_from([operation.name for operation in OPERATIONS]),
)
def test_no_body_causes_an_internal_error(client, body, content_type, content_encoding, operation):
    headers = {"Content-Type": content_type, "Content-Encoding": content_encoding}
    response = client.post(f"/v1/{operation}", content=body, headers=headers)
    assert 400 <= response.status_code < 500, response.text


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_to_a_valid_body_causes_an_internal_error(client, data):
    body = bytearray(safetensors_file(**make_inputs()))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(1, len(body))) :]
    operation = data.draw(st.sampled_from(OPERATIONS)).name
    response = client.post(f"/v1/{operation}", content=bytes(body), headers=SAFETENSORS)
    assert response.status_code in (200, 400, 413, 422), response.text


@settings(max_examples=100, deadline=None)
@given(
    query=st.binary(max_size=60),
    name=st.sampled_from(
        ["", "ignore_index=", "temperature=", "upsampling=", "palette=", "kind=", "maps=", "size="]
    ),
    operation=st.sampled_from([operation.name for operation in OPERATIONS]),
)
def test_no_query_causes_an_internal_error(client, query, name, operation):
    raw = name.encode() + query
    content = safetensors_file(**make_inputs())
    status = client.post_raw_query(f"/v1/{operation}", raw, content)
    assert status in (200, 400, 422)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.fixed_dictionaries(
        {},
        optional={
            name: st.tuples(
                st.lists(st.integers(0, 3), max_size=6),
                st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8]),
            )
            for name in ("logits", "labels", "class_weight", "pixel_weight", "prediction", "image")
        },
    ),
    operation=st.sampled_from(
        [
            *("loss?", "gradient?", "evaluate?", "predict?", "predict?size=2,5&"),
            *(f"visualize?kind={kind}&" for kind in KINDS),
        ]
    ),
    upsampling=st.sampled_from([*UPSAMPLINGS]),
)
def test_no_tensors_cause_an_internal_error(client, shapes, operation, upsampling):
    tensors = {name: torch.ones(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    response = client.post_tensors(f"/v1/{operation}upsampling={upsampling}", **tensors)
    assert response.status_code in (200, 413, 422), response.text
