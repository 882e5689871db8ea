"""`upsampling`: logits of lower resolution than the labels, through every door.

The truth is `seg_loss.reference` in float64: the dense upsampling, then the loss by its definition.
"""

import io
import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from serving import (
    SAFETENSORS,
    Client,
    assert_problem,
    assert_well,
    bomb,
    label_png,
    npy_file,
    packed,
    served,
)

import seg_loss
from app import cli, inputs, operations, options
from app.http.app import create_app
from app.images.render import KINDS
from app.options import UPSAMPLINGS
from seg_loss import Bilinear, Deconvolution, InvalidInput, reference
from seg_loss.upsampling import Upsampling, axes

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "fcn_head"
NAMES = [name for name in UPSAMPLINGS if name != "none"]
SIZE = (20, 30)


def example(num_images: int = 1, size: tuple[int, int] = SIZE) -> dict[str, torch.Tensor]:
    """5 classes, scores 6 x 7, labels in 20 x 30 pixels: sizes that every upsampling knows."""
    random = torch.Generator().manual_seed(num_images)
    labels = torch.randint(0, 5, (num_images, *size), generator=random, dtype=torch.uint8)
    labels[:, :3, 2:9] = 255
    return {"logits": torch.randn(num_images, 5, 6, 7, generator=random) * 3, "labels": labels}


def meant(name: str) -> Upsampling:
    return {
        "bilinear": Bilinear(align_corners=False),
        "bilinear_aligned": Bilinear(align_corners=True),
        "fcn": Deconvolution(8, crop=31),
    }[name]


def truth(name: str, tensors: Mapping[str, torch.Tensor], **more: object) -> tuple[float, object]:
    """Loss and gradient by the scores, float64."""
    scores = tensors["logits"].double().requires_grad_()
    labels = tensors["labels"]
    logits = reference.upsample(scores, tuple(labels.shape[1:]), meant(name))
    loss = reference.spatial_cross_entropy(logits, labels, **more)
    (gradient,) = torch.autograd.grad(loss, scores)
    return float(loss.detach()), gradient


def photo(*size: int) -> torch.Tensor:
    return torch.full((*size, 3), 99, dtype=torch.uint8)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """The command line, in a directory with the example's files."""
    monkeypatch.chdir(tmp_path)
    tensors = example()
    Path("scores.npy").write_bytes(npy_file(tensors["logits"].numpy()))
    Path("labels.png").write_bytes(label_png(tensors["labels"][0].numpy()))

    def run(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(line.split())
        output = capsys.readouterr()
        return stop.value.code or 0, output.out, output.err

    return run


# -- the same number everywhere ----------------------------------------------------------------


def test_there_is_a_meaning_for_every_name():
    assert tuple(UPSAMPLINGS) == ("none", "bilinear", "bilinear_aligned", "fcn")


@pytest.mark.parametrize("name", NAMES)
def test_every_door_gives_the_loss_of_the_library_which_is_that_of_the_definition(
    client, run, name
):
    tensors = example()
    expected = seg_loss.evaluate(**tensors, upsampling=meant(name)).loss
    assert expected == pytest.approx(truth(name, tensors)[0], rel=1e-6)
    path = f"/v1/loss?upsampling={name}"
    lists = {key: value.tolist() for key, value in tensors.items()}
    scores, labels = npy_file(tensors["logits"].numpy()), tensors["labels"]
    for request in (
        {"content": packed(**tensors), "headers": SAFETENSORS},
        {"json": lists},
        {"files": {"logits": scores, "labels": label_png(labels[0].numpy())}},
        {"files": {"labels": npy_file(labels.numpy()), "logits": scores}},
        {"files": {"labels": packed(labels=labels[:, None]), "logits": scores}},
    ):
        answer = client.post(path, **request)
        assert answer.status_code == 200, answer.text
        assert answer.json()["loss"] == expected
    status, out, err = run(f"loss scores.npy labels.png --upsampling {name} --format json")
    assert (status, err) == (0, "")
    assert json.loads(out)["loss"] == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_has_the_shape_of_the_scores(client, run, name):
    tensors = example(2)
    loss, expected = truth(name, tensors)
    path = f"/v1/gradient?upsampling={name}&loss_weight=2"
    answer = client.post_tensors(path, **tensors)
    gradient = safetensors.torch.load(answer.content)["gradient"]
    assert float(answer.headers["Seg-Loss"]) == pytest.approx(loss, rel=1e-6)
    assert gradient.shape == tensors["logits"].shape
    torch.testing.assert_close(gradient.double(), 2 * expected, rtol=1e-5, atol=1e-7)
    headers = {**SAFETENSORS, "Accept": "application/x-npy"}
    answer = client.post(path, content=packed(**tensors), headers=headers)
    assert np.array_equal(np.load(io.BytesIO(answer.content)), gradient.numpy())

    line = f"gradient scores.npy labels.png --upsampling {name} -o g.npy --format json"
    status, out, _ = run(line)
    loss, expected = truth(name, example())
    assert status == 0
    assert json.loads(out)["loss"] == pytest.approx(loss, rel=1e-6)
    gradient = torch.from_numpy(np.load("g.npy"))
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_maps_have_the_size_of_the_labels(client, run, name):
    tensors = example(2)
    logits = reference.upsample(tensors["logits"], SIZE, meant(name))
    probabilities = torch.softmax(logits, 1)
    path = f"/v1/evaluate?upsampling={name}&maps=prediction,nll,confidence,top_probabilities"
    headers = {**SAFETENSORS, "Accept": "application/x-safetensors"}
    answer = client.post(path, content=packed(**tensors), headers=headers)
    maps = safetensors.torch.load(answer.content)
    assert torch.equal(maps["prediction"].long(), logits.argmax(1))
    torch.testing.assert_close(
        maps["confidence"].double(), probabilities.amax(1), rtol=1e-5, atol=0
    )
    assert maps["nll"].shape == (2, *SIZE)
    assert maps["top_probabilities"].shape == (2, 3, *SIZE)
    line = f"evaluate scores.npy labels.png --upsampling {name} --maps prediction -o m.safetensors"
    assert run(line)[0] == 0
    prediction = safetensors.torch.load_file("m.safetensors")["prediction"]
    expected = reference.upsample(example()["logits"], SIZE, meant(name)).argmax(1)
    assert torch.equal(prediction.long(), expected)


def test_all_other_options_go_along(client):
    tensors = example(2)
    weights = {"class_weight": torch.rand(5), "pixel_weight": torch.rand(2, *SIZE)}
    values = {"label_smoothing": 0.1, "temperature": 2.0, "normalization": "weight"}
    expected, _ = truth("fcn", tensors, **weights, **values, ignore_index=(0, 255))
    query = "&".join(f"{name}={value}" for name, value in values.items())
    path = f"/v1/loss?upsampling=fcn&ignore_index=0,255&{query}"
    answer = client.post_tensors(path, **tensors, **weights).json()
    assert answer["loss"] == pytest.approx(expected, rel=1e-6)


def test_without_the_option_nothing_is_new(client):
    tensors = example(size=(6, 7))
    answer = client.post_tensors("/v1/loss", **tensors)
    assert client.post_tensors("/v1/loss?upsampling=none", **tensors).json() == answer.json()
    # Of the labels' own size the bilinear upsampling changes nothing.
    same = client.post_tensors("/v1/loss?upsampling=bilinear", **tensors).json()
    assert same["loss"] == pytest.approx(answer.json()["loss"], rel=1e-6)


def test_an_image_without_batch_axis_is_a_batch_of_one(client):
    tensors = example()
    path = "/v1/loss?upsampling=bilinear"
    expected = client.post_tensors(path, **tensors).json()
    flat = {name: tensor[0] for name, tensor in tensors.items()}
    assert client.post_tensors(path, **flat).json() == expected
    lists = {name: tensor.tolist() for name, tensor in flat.items()}
    assert client.post(path, json=lists).json() == expected
    weighted = client.post_tensors(path, **tensors, pixel_weight=torch.ones(1, *SIZE))
    assert client.post_tensors(path, **flat, pixel_weight=torch.ones(SIZE)).json() == (
        weighted.json()
    )


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not on this machine")
@pytest.mark.parametrize("case", ["fcn32s_dense_surgery", "fcn8s_group5"])
def test_upsampling_fcn_is_caffes_deconvolution_and_crop(run, case):
    with np.load(GOLDEN / f"{case}.npz") as golden:
        scores, labels = golden["score_fr"], golden["label"].astype(np.uint8)
        loss, gradient = float(golden["loss"]), golden["d_score_fr"]
    files = {"logits": npy_file(scores), "labels": label_png(labels[0, 0])}
    query = "upsampling=fcn&normalization=batch&ignore_index=255"
    with served() as client:
        answer = client.post(f"/v1/loss?{query}", files=files)
        assert answer.json()["loss"] == pytest.approx(loss, rel=1e-6)
        headers = {"Accept": "application/x-npy"}
        answer = client.post(f"/v1/gradient?{query}", files=files, headers=headers)
        assert float(answer.headers["Seg-Loss"]) == pytest.approx(loss, rel=1e-6)
    got = np.load(io.BytesIO(answer.content))
    assert np.abs(got - gradient).max() <= 1e-6 * np.abs(gradient).max()
    np.save("scores.npy", scores)
    np.save("labels.npy", labels)
    line = "loss scores.npy labels.npy --upsampling fcn --normalization batch --format json"
    assert json.loads(run(line)[1])["loss"] == pytest.approx(loss, rel=1e-6)


# -- pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_pictures_have_the_size_of_the_labels(client, name, kind):
    tensors = example()
    path = f"/v1/visualize?upsampling={name}&kind={kind}"
    answer = client.post_tensors(path, **tensors, image=photo(*SIZE))
    assert answer.status_code == 200, answer.text
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.size == SIZE[::-1]
    if kind == "prediction":
        logits = reference.upsample(tensors["logits"], SIZE, meant(name))
        assert np.array_equal(np.array(picture), logits.argmax(1)[0].numpy())


@pytest.mark.parametrize("kind", ["prediction", "overlay", "confidence", "entropy"])
def test_without_labels_pictures_have_the_size_of_the_photo(client, run, kind):
    logits = example()["logits"]
    path = f"/v1/visualize?upsampling=fcn&kind={kind}"
    answer = client.post_tensors(path, logits=logits, image=photo(*SIZE))
    assert answer.status_code == 200, answer.text
    assert Image.open(io.BytesIO(answer.content)).size == SIZE[::-1]
    problem = assert_problem(client.post_tensors(path, logits=logits), 422, "ill_posed")
    assert problem["detail"] == (
        "body: expected labels or image too, for the size that logits are upsampled to, got logits."
    )
    Image.fromarray(photo(*SIZE).numpy()).save("photo.png")
    line = f"visualize scores.npy --upsampling fcn --kind {kind} -o a.png"
    assert run(f"{line} --image photo.png") == (0, "", "")
    with Image.open("a.png") as picture:
        assert picture.size == SIZE[::-1]
    status, _, err = run(line)
    assert status == 1
    assert "labels or image too" in err


def test_a_picture_that_needs_no_logits_needs_no_size(client):
    prediction = example()["labels"] % 5
    path = "/v1/visualize?upsampling=bilinear&kind="
    answer = client.post_tensors(f"{path}prediction", prediction=prediction)
    assert Image.open(io.BytesIO(answer.content)).size == SIZE[::-1]
    tensors = {"prediction": prediction, "labels": example()["labels"]}
    answer = client.post_tensors(f"{path}error", **tensors, logits=example()["logits"])
    assert Image.open(io.BytesIO(answer.content)).size == SIZE[::-1]
    files = {
        "logits": npy_file(example()["logits"].numpy()),
        "prediction": label_png(prediction[0].numpy()),
        "labels": label_png(example()["labels"][0, :-1].numpy()),
    }
    answer = client.post(f"{path}error", files=files)
    assert assert_problem(answer, 422, "ill_posed")["detail"] == (
        "prediction: expected 19 x 30 (height x width) to match the labels, got 20 x 30."
    )


# -- refusals ----------------------------------------------------------------------------------


@pytest.fixture
def refuse(client):
    """What a request to /v1/loss is refused with; the service is well afterwards."""

    def refuse(query: str, status: int = 422, /, **tensors: torch.Tensor) -> dict[str, object]:
        answer = client.post_tensors(f"/v1/loss?{query}", **{**example(), **tensors})
        return assert_problem(answer, status, {413: "too_large", 422: "ill_posed"}[status])

    yield refuse
    assert_well(client)


def test_an_unknown_upsampling_is_refused_with_the_names_there_are(refuse, run):
    expected = "upsampling: expected one of none, bilinear, bilinear_aligned, fcn, got 'nearest'."
    assert refuse("upsampling=nearest")["detail"] == expected
    line = "loss scores.npy labels.png --upsampling nearest"
    assert run(line) == (2, "", f"seg-loss: {expected}\n")


ILL_POSED = {
    "no net has such scores": (
        "fcn",
        {"logits": torch.zeros(1, 5, 2, 2), "labels": torch.zeros(1, 99, 99, dtype=torch.uint8)},
        (
            "logits: expected height and width (22, 22) or (10, 10) or (4, 4), FCN-8s', 16s' or "
            "32s' for labels (99, 99), got (2, 2). "
            "For other sizes use upsampling=bilinear, or Deconvolution in Python."
        ),
    ),
    "more label maps than scores": (
        "bilinear",
        {"labels": example(2)["labels"]},
        "labels: expected shape (1, 20, 30) to match logits (1, 5, 6, 7), got shape (2, 20, 30).",
    ),
    "one label map for two": (
        "fcn",
        {"logits": example(2)["logits"], "labels": example()["labels"][0]},
        "labels: expected [N,H,W] or [H,W], got shape (20, 30).",
    ),
    "labels of one axis": (
        "fcn",
        {"labels": torch.zeros(9, dtype=torch.uint8)},
        "labels: expected [N,H,W] or [H,W], got shape (9,).",
    ),
    "one-hot labels": (
        "fcn",
        {"labels": torch.zeros(1, 5, *SIZE, dtype=torch.uint8)},
        "labels: expected shape (1, 20, 30) to match logits (1, 5, 6, 7), got shape (1, 5, 20, 30)",
    ),
    "a weight for each score": (
        "bilinear",
        {"pixel_weight": torch.ones(1, 6, 7)},
        "pixel_weight: expected shape (1, 20, 30) to match the labels, got shape (1, 6, 7).",
    ),
    "logits of two axes": (
        "bilinear",
        {"logits": torch.zeros(1, 5)},
        "logits: expected [N,C,h,w] or [C,h,w], to be upsampled, got 2 axes.",
    ),
    "logits of five axes": (
        "fcn",
        {"logits": torch.zeros(1, 5, 2, 6, 7)},
        "logits: expected [N,C,h,w] or [C,h,w], to be upsampled, got 5 axes.",
    ),
    "a label out of range": (
        "bilinear",
        {"labels": torch.full((1, *SIZE), 31, dtype=torch.uint8)},
        "labels: expected 0...4 or 255 (ignored), got 31 at (0, 0, 0) and 599 more pixels.",
    ),
}


@pytest.mark.parametrize("case", ILL_POSED)
def test_what_does_not_go_together_is_refused(refuse, case):
    name, tensors, sentence = ILL_POSED[case]
    problem = refuse(f"upsampling={name}", **tensors)
    assert problem["detail"].startswith(sentence)
    parts = f"{problem['where']}: expected {problem['expected']}, got {problem['got']}."
    assert problem["detail"] == f"{parts} {problem.get('fix', '')}".rstrip()


def test_labels_larger_than_logits_are_refused_with_the_option_that_would_take_them(client, run):
    sentence = (
        "labels: expected shape (1, 6, 7) to match logits (1, 5, 6, 7), got shape (1, 20, 30). "
        "Scores of lower resolution? Use upsampling=bilinear; in Python, seg_loss.Bilinear()."
    )
    tensors = example()
    assert client.post_tensors("/v1/loss", **tensors).json()["detail"] == sentence
    flat = {**tensors, "labels": tensors["labels"][0]}
    fix = client.post_tensors("/v1/loss", **flat).json()["fix"]
    assert sentence.endswith(fix)
    sentence = (
        "labels: expected 6 x 7 (height x width) to match the logits, got 20 x 30. "
        "Scores of lower resolution? Use upsampling=bilinear."
    )
    files = {
        "logits": npy_file(tensors["logits"].numpy()),
        "labels": label_png(tensors["labels"][0].numpy()),
    }
    assert client.post("/v1/loss", files=files).json()["detail"] == sentence
    assert run("loss scores.npy labels.png") == (1, "", f"seg-loss: {sentence}\n")


@pytest.mark.parametrize(
    ("size", "fix"),
    [((8, 9), " Scores of lower resolution? Use upsampling=bilinear."), ((5, 9), "")],
)
def test_a_photo_larger_than_logits_is_refused_with_the_option_too(client, size, fix):
    tensors = {"logits": example()["logits"], "image": torch.zeros(*size, 3).byte()}
    answer = client.post_tensors("/v1/visualize?kind=overlay", **tensors)
    assert assert_problem(answer, 422, "ill_posed")["detail"] == (
        f"image: expected 6 x 7 (height x width) to match the prediction, got {size[0]} x 9.{fix}"
    )
    path = "/v1/visualize?kind=overlay&upsampling=bilinear"
    assert client.post_tensors(path, **tensors).status_code == 200


def test_labels_that_are_not_larger_are_not_sent_to_upsampling(client):
    for labels in (
        torch.zeros(1, 5, 9, dtype=torch.uint8),
        torch.zeros(2, 6, 7, dtype=torch.uint8),
        torch.zeros(1, 4, 4, dtype=torch.uint8),
    ):
        tensors = {**example(), "labels": labels}
        assert "fix" not in client.post_tensors("/v1/loss", **tensors).json()


def test_the_command_line_exits_as_with_other_logits(run):
    np.save("small.npy", np.zeros((1, 5, 2, 2), np.float32))
    np.save("wide.npy", np.zeros((1, 99, 99), np.uint8))
    status, out, err = run("loss small.npy wide.npy --upsampling fcn")
    assert (status, out) == (1, "")
    assert err.startswith("seg-loss: logits: expected height and width (22, 22) or")
    assert run("evaluate scores.npy labels.png --upsampling fcn --fail-under mean_iu=0")[0] == 0
    assert run("evaluate scores.npy labels.png --upsampling fcn --fail-under mean_iu=1")[0] == 1


# -- limits ------------------------------------------------------------------------------------


def test_a_label_map_that_is_too_large_is_refused_by_its_header(client):
    scores = npy_file(np.zeros((1, 5, 1, 1), np.float32))
    files = {"logits": scores, "labels": bomb()}
    problem = assert_problem(
        client.post("/v1/loss?upsampling=bilinear", files=files), 413, "too_large"
    )
    assert problem["detail"] == (
        "labels: expected at most 16384 pixels, got 50000 x 50000 = 2500000000."
    )
    assert problem["limit"] == 1 << 14


def test_labels_and_photos_of_any_kind_have_the_limits_of_logits(refuse, client):
    large = torch.zeros(1, 129, 128, dtype=torch.uint8)
    problem = refuse("upsampling=bilinear", 413, labels=large)
    assert problem["detail"] == "labels: expected at most 16384 pixels per image, got 16512."
    refuse("upsampling=bilinear", 413, labels=large[:, None])
    refuse("upsampling=bilinear", 413, labels=large[0])
    with served(max_pixels=1 << 26) as roomy:
        logits = torch.zeros(1, 2, 1, 1)
        long = torch.zeros(1, 1, inputs.MAX_UPSAMPLED_SIDE + 1, dtype=torch.uint8)
        for labels, what in ((long, "columns"), (long.mT, "rows")):
            path = "/v1/loss?upsampling=bilinear"
            answer = roomy.post_tensors(path, logits=logits, labels=labels)
            problem = assert_problem(answer, 413, "too_large")
            assert problem["detail"] == f"labels: expected at most 65536 {what}, got 65537."


def post_for_logits(client: Client, path: str, **tensors: torch.Tensor) -> dict[str, object]:
    answer = client.post_tensors(path, **tensors)
    return assert_problem(answer, 413, "too_large")


def test_what_is_computed_for_a_small_body_has_a_limit():
    tensors = example(2)
    number = 2 * 5 * 20 * 30
    path = "/v1/loss?upsampling=bilinear"
    with served(max_upsampled_logits=number - 1) as client:
        problem = post_for_logits(client, path, **tensors)
        assert problem["detail"] == (
            "labels: expected at most 5999 upsampled logits (images x classes x pixels), got 6000."
        )
        assert problem["limit"] == number - 1
        # Without labels the photo says the size; beside labels it says nothing.
        logits = tensors["logits"][:1]
        path = "/v1/visualize?upsampling=bilinear"
        problem = post_for_logits(client, path, logits=logits, image=photo(40, 30))
        assert problem["where"] == "image"
        labels = tensors["labels"][:1]
        answer = client.post_tensors(
            "/v1/loss?upsampling=bilinear", logits=logits, labels=labels, image=photo(40, 30)
        )
        assert answer.status_code == 200
        # Logits of the labels' size are bounded by the body.
        large = {"logits": torch.zeros(1, 5, 40, 31), "labels": torch.zeros(1, 40, 31).byte()}
        assert client.post_tensors("/v1/loss", **large).status_code == 200
    with served(max_upsampled_logits=number) as client:
        answer = client.post_tensors("/v1/loss?upsampling=bilinear", **tensors)
        assert answer.status_code == 200, answer.text


def test_the_limit_holds_for_the_command_line(run, monkeypatch):
    monkeypatch.setenv("SEG_LOSS_MAX_UPSAMPLED_LOGITS", "2999")
    status, _, err = run("loss scores.npy labels.png --upsampling fcn")
    assert status == 1
    assert "at most 2999 upsampled logits" in err
    monkeypatch.setenv("SEG_LOSS_MAX_UPSAMPLED_LOGITS", "3000")
    assert run("loss scores.npy labels.png --upsampling fcn")[0] == 0


def test_maps_and_rows_of_nodes_take_their_place_among_the_bytes_in_flight():
    tensors = example()
    body = len(packed(**tensors))
    maps = "prediction,nll,confidence,entropy,top_classes,top_probabilities"
    path = f"/v1/evaluate?upsampling=bilinear&maps={maps}"
    headers = {**SAFETENSORS, "Accept": "application/x-safetensors"}
    map_bytes = 4 * 10 * 20 * 30
    scratch = seg_loss.scratch_bytes(tensors["logits"], SIZE, upsampling=Bilinear())
    needed = map_bytes + scratch
    limits = {"max_body_bytes": body, "max_bytes_in_flight": body + needed, "num_threads": 2}

    def post(client: Client, path: str = path):
        return client.post(path, content=packed(**tensors), headers=headers)

    with served(**limits) as client:
        workers = client.app.state.service.workers
        answer = post(client)
        assert answer.status_code == 200, answer.text
        assert len(answer.content) < map_bytes + (1 << 14)
        assert workers.bytes_in_flight == 0
        with workers.reserve(1):
            problem = assert_problem(post(client), 503, "unavailable")
            assert problem["retry_after_seconds"] == 1
            assert workers.bytes_in_flight == 1
            assert post(client, "/v1/evaluate?upsampling=bilinear&maps=nll").status_code == 200
    limits["max_bytes_in_flight"] -= 1
    with served(**limits) as client:
        problem = assert_problem(post(client), 413, "too_large")
        assert (
            problem["detail"]
            == f"memory: expected at most {needed - 1} bytes beside the body, got {needed}."
        )
        assert problem["limit"] == needed - 1
        assert client.app.state.service.workers.bytes_in_flight == 0


# -- scores that are not finite ----------------------------------------------------------------


@pytest.mark.parametrize("operation", ["loss", "gradient", "evaluate", "visualize"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused_with_its_position(client, operation, value):
    tensors = example()
    tensors["logits"][0, 2, 3, 4] = value
    path = f"/v1/{operation}?upsampling=bilinear"
    problem = assert_problem(client.post_tensors(path, **tensors), 422, "ill_posed")
    assert problem["where"] == "logits"
    # Between its neighbours lie rows 8 to 14 and columns 15 to 23.
    assert problem["got"] == f"{value} at (0, 2, 3, 4), read by pixel (0, 8, 15) and 62 more pixels"
    assert problem["fix"] == "The network has diverged, or the file is damaged."


def test_a_score_that_only_ignored_pixels_read_may_be_anything(client):
    tensors = example()
    tensors["labels"][0, 8:15, 15:24] = 255
    path = "/v1/loss?upsampling=bilinear"
    expected = client.post_tensors(path, **tensors).json()
    for value in (float("nan"), float("inf"), float("-inf")):
        tensors["logits"][0, 2, 3, 4] = value
        answer = client.post_tensors(path, **tensors)
        assert answer.status_code == 200, answer.text
        assert answer.json() == expected
    tensors["labels"][0, 14, 23] = 0
    tensors["logits"][0, 2, 3, 4] = float("nan")
    problem = assert_problem(client.post_tensors(path, **tensors), 422, "ill_posed")
    assert problem["got"] == "nan at (0, 2, 3, 4), read by pixel (0, 14, 23)"


def test_scores_that_are_all_minus_infinity_together_are_refused(client):
    tensors = {"logits": torch.zeros(1, 2, 1, 2), "labels": torch.zeros(1, 1, 6).byte()}
    tensors["logits"][0, 0, 0, 0] = float("-inf")
    path = "/v1/loss?upsampling=bilinear"
    assert client.post_tensors(path, **tensors).status_code == 200
    tensors["logits"][0, 1, 0, 1] = float("-inf")
    problem = assert_problem(client.post_tensors(path, **tensors), 422, "ill_posed")
    assert problem["got"] == "-inf in every class at pixel (0, 0, 2) and 1 more pixel"


def test_the_command_line_shows_scores_that_are_not_finite(run):
    scores = example()["logits"]
    scores[0, 2, 3, 4] = float("nan")
    Path("scores.npy").write_bytes(npy_file(scores.numpy()))
    status, out, _ = run("loss scores.npy labels.png --upsampling bilinear --format json")
    assert status == 0
    assert json.loads(out)["loss"] is None
    assert json.loads(out)["diagnosis"]["state"] == "non_finite"


SPECIAL = [float("nan"), float("inf"), float("-inf"), 0.0]


@pytest.mark.parametrize(
    "upsampling",
    [
        Bilinear(),
        Bilinear(align_corners=True),  # 7 x 9 from 3 x 3: some pixels lie on nodes
        Deconvolution(3),
        Deconvolution(4, kernel_size=2),  # pixels that read nothing
        Deconvolution(4, kernel_size=7, crop=(2, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(12))
def test_require_finite_refuses_what_has_no_softmax_and_the_loss_is_nan_of(upsampling, seed):
    random = torch.Generator().manual_seed(seed)
    share = torch.rand(1, 3, 3, 3, generator=random)
    pick = torch.randint(0, 4, (1, 3, 3, 3), generator=random)
    minus = seed % 3 == 0  # so that all classes are -inf now and then
    values = torch.tensor(SPECIAL)[pick.clamp(min=2)] if minus else torch.tensor(SPECIAL)[pick]
    scores = torch.where(share < (0.7 if minus else 0.12), values, share)
    labels = torch.randint(0, 3, (1, 7, 9), generator=random, dtype=torch.uint8)
    labels[torch.rand(1, 7, 9, generator=random) < 0.6] = 255
    rows, columns = (axis.matrix() for axis in axes(upsampling, (3, 3), (7, 9)))
    bad = []
    for y, x in (labels[0] != 255).nonzero().tolist():
        read = [(i, j) for i in rows[y].nonzero()[0] for j in columns[x].nonzero()[0]]
        logits = sum(
            (rows[y, i] * columns[x, j] * scores[0, :, i, j].double() for i, j in read),
            start=torch.zeros(3).double(),
        )
        if logits.softmax(0).isnan().any():
            bad.append((y, x))
    loss = seg_loss.evaluate(scores, labels, upsampling=upsampling)
    assert loss.non_finite_pixels == len(bad)
    if not bad:
        seg_loss.require_finite(scores, labels, upsampling=upsampling)
        return
    with pytest.raises(InvalidInput) as refusal:
        seg_loss.require_finite(scores, labels, upsampling=upsampling)
    y, x = bad[0]
    assert f"(0, {y}, {x})" in refusal.value.got
    more = f" and {len(bad) - 1} more pixel" if len(bad) > 1 else ""
    assert more in refusal.value.got
    if "read by" in refusal.value.got:
        value, place = refusal.value.got.split(", read by")[0].split(" at ")
        assert str(float(scores[tuple(map(int, place.strip("()").split(", ")))])) == value


def test_require_finite_refuses_sizes_and_things_that_are_no_upsampling():
    scores, labels = torch.zeros(1, 2, 2, 2), torch.zeros(1, 9, 9).byte()
    with pytest.raises(InvalidInput, match="upsampling: expected Bilinear"):
        seg_loss.require_finite(scores, labels, upsampling="bilinear")
    with pytest.raises(InvalidInput, match="labels: expected at most 6 rows"):
        seg_loss.require_finite(scores, labels, upsampling=Deconvolution(2))


# -- the document ------------------------------------------------------------------------------


def test_the_document_and_the_help_have_the_option(run):
    document = create_app().openapi()
    for name in ("loss", "gradient", "evaluate", "visualize"):
        parameters = document["paths"][f"/v1/{name}"]["post"]["parameters"]
        (found,) = (entry for entry in parameters if entry["name"] == "upsampling")
        assert found["schema"] == {"type": "string", "default": "none"}
        assert "one of none, bilinear, bilinear_aligned, fcn" in found["description"]
        assert "--upsampling" in run(f"{name} --help")[1]


def test_maps_of_other_operations_need_no_room():
    upload = inputs.Inputs(**example())
    needed = operations.working_bytes
    assert needed(upload, options.LossOptions()) == 0
    assert needed(upload, options.EvaluateOptions()) == 0
    assert needed(upload, options.EvaluateOptions(maps=("nll",))) == 4 * 42
    assert needed(upload, options.VisualizeOptions(kind="entropy")) == 4 * 42
    assert needed(upload, options.VisualizeOptions(kind="labels")) == 0
    alone = inputs.Inputs(logits=upload.logits)
    assert needed(alone, options.VisualizeOptions(kind="entropy")) == 4 * 42
    upsampled = options.VisualizeOptions(kind="entropy", upsampling="bilinear")
    assert needed(alone, upsampled) == 0  # it will be refused
    photo = inputs.Inputs(logits=upload.logits, image=np.zeros((8, 9, 3), np.uint8))
    scratch = seg_loss.scratch_bytes(upload.logits, (8, 9), upsampling=Bilinear())
    assert needed(photo, upsampled) == 4 * 72 + scratch


@pytest.mark.parametrize("function", ["loss_and_gradient", "evaluate"])
@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize(("nodes", "columns"), [(20_000, 20_000), (1, 20_000), (30, 20_000)])
def test_wide_scores_and_labels_take_the_memory_that_was_reserved_for_them(
    function, rows, nodes, columns
):
    scores, labels = torch.zeros(2, 5, rows, nodes), torch.zeros(2, 1, columns).byte()
    call = getattr(seg_loss, function)
    call(scores, labels, upsampling=Bilinear())  # whatever stays
    tracemalloc.start()  # NumPy's memory: not torch's, of which the gradient is
    try:
        call(scores, labels, upsampling=Bilinear())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    reserved = seg_loss.scratch_bytes(scores, (1, columns), upsampling=Bilinear())
    assert peak < 1.1 * reserved + (1 << 20)
    if function == "loss_and_gradient":  # nor is much more reserved; the others have no seams
        assert reserved < 3 * peak + (1 << 20)


def test_scores_that_need_more_memory_than_there_is_are_refused():
    wide = {"logits": torch.zeros(1, 3, 1, 60_000), "labels": torch.zeros(1, 1, 9).byte()}
    with served(max_body_bytes=1 << 20, max_bytes_in_flight=1 << 21) as client:
        response = client.post_tensors("/v1/loss?upsampling=bilinear", **wide)
        problem = assert_problem(response, 413, "too_large")
        assert problem["detail"].startswith("memory: expected at most ")
        assert client.app.state.service.workers.bytes_in_flight == 0
        assert_well(client)
