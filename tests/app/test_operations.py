"""The operations through every entry point, with and without upsampling.

The truth is `seg_loss.reference` in float64: the dense upsampling, then the loss as defined.
"""

import io
import json
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import safetensors.torch
import torch
from examples import (
    UPSAMPLED_SIZE,
    UPSAMPLINGS,
    full_size_logits,
    label_png,
    loss_and_gradient_of,
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
from app.images import render
from app.inputs import Inputs
from seg_loss import Bilinear, reference
from seg_loss.constants import SCORES

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "fcn_head"

with_and_without_upsampling = pytest.mark.parametrize("upsampling", UPSAMPLINGS)


@with_and_without_upsampling
def test_every_entry_point_returns_the_loss_of_the_library(
    client, run, empty_directory, upsampling
):
    inputs = make_inputs(upsampling)
    expected = seg_loss.evaluate(**inputs, upsampling=UPSAMPLINGS[upsampling]).loss
    assert expected == pytest.approx(loss_and_gradient_of(upsampling, inputs)[0], rel=1e-6)
    path = f"/v1/loss?upsampling={upsampling}"
    lists = {key: value.tolist() for key, value in inputs.items()}
    logits, labels = npy_file(inputs["logits"].numpy()), inputs["labels"]
    for request in (
        {"content": safetensors_file(**inputs), "headers": SAFETENSORS},
        {"json": lists},
        {"files": {"logits": logits, "labels": label_png(labels[0].numpy())}},
        {"files": {"labels": npy_file(labels.numpy()), "logits": logits}},
        {"files": {"labels": safetensors_file(labels=labels[:, None]), "logits": logits}},
    ):
        response = client.post(path, **request)
        assert response.status_code == 200, response.text
        assert response.json()["loss"] == expected
    write_inputs(inputs)
    line = f"loss logits.npy labels.png --upsampling {upsampling} --format json"
    status, out, err = run(*line.split())
    assert (status, err) == (0, "")
    assert json.loads(out)["loss"] == expected


@with_and_without_upsampling
def test_the_gradient_is_that_of_the_definition(client, run, empty_directory, upsampling):
    inputs = make_inputs(upsampling, num_images=2)
    loss, expected = loss_and_gradient_of(upsampling, inputs)
    path = f"/v1/gradient?upsampling={upsampling}&loss_weight=2"
    response = client.post_tensors(path, **inputs)
    gradient = safetensors.torch.load(response.content)["gradient"]
    assert float(response.headers["Seg-Loss"]) == pytest.approx(loss, rel=1e-6)
    assert gradient.shape == inputs["logits"].shape
    torch.testing.assert_close(gradient.double(), 2 * expected, rtol=1e-5, atol=1e-7)
    headers = {**SAFETENSORS, "Accept": "application/x-npy"}
    response = client.post(path, content=safetensors_file(**inputs), headers=headers)
    assert np.array_equal(np.load(io.BytesIO(response.content)), gradient.numpy())

    inputs = make_inputs(upsampling)
    loss, expected = loss_and_gradient_of(upsampling, inputs)
    write_inputs(inputs)
    line = f"gradient logits.npy labels.png --upsampling {upsampling} -o g.npy --format json"
    status, out, _ = run(*line.split())
    assert status == 0
    assert json.loads(out)["loss"] == pytest.approx(loss, rel=1e-6)
    gradient = torch.from_numpy(np.load("g.npy"))
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-7)


@with_and_without_upsampling
def test_maps_have_the_size_of_the_labels(client, run, empty_directory, upsampling):
    inputs = make_inputs(upsampling, num_images=2)
    size = inputs["labels"].shape[1:]
    logits = full_size_logits(upsampling, inputs)
    probabilities = torch.softmax(logits, 1)
    maps = "prediction,nll,confidence,top_probabilities"
    path = f"/v1/evaluate?upsampling={upsampling}&maps={maps}"
    headers = {**SAFETENSORS, "Accept": "application/x-safetensors"}
    response = client.post(path, content=safetensors_file(**inputs), headers=headers)
    maps = safetensors.torch.load(response.content)
    assert torch.equal(maps["prediction"].long(), logits.argmax(1))
    torch.testing.assert_close(
        maps["confidence"].double(), probabilities.amax(1).double(), rtol=1e-5, atol=0
    )
    assert maps["nll"].shape == (2, *size)
    assert maps["top_probabilities"].shape == (2, 3, *size)

    inputs = make_inputs(upsampling)
    write_inputs(inputs)
    flags = f"--upsampling {upsampling} --maps prediction -o m.safetensors"
    assert run("evaluate", "logits.npy", "labels.png", *flags.split())[0] == 0
    prediction = safetensors.torch.load_file("m.safetensors")["prediction"]
    assert torch.equal(prediction.long(), full_size_logits(upsampling, inputs).argmax(1))


@pytest.mark.parametrize("upsampling", ["none", "fcn"])
def test_options_reach_the_library_by_their_own_names(client, upsampling):
    inputs = make_inputs(upsampling, num_images=2)
    pixel_weight = torch.rand(inputs["labels"].shape)
    weights = {"class_weight": torch.rand(5), "pixel_weight": pixel_weight}
    values = {"label_smoothing": 0.1, "temperature": 2.0, "normalization": "weight"}
    expected = seg_loss.evaluate(
        **inputs,
        **weights,
        **values,
        ignore_index=(0, 255),
        upsampling=UPSAMPLINGS[upsampling],
    )
    truth, _ = loss_and_gradient_of(upsampling, inputs, **weights, **values, ignore_index=(0, 255))
    query = "&".join(f"{name}={value}" for name, value in values.items())
    path = f"/v1/loss?upsampling={upsampling}&ignore_index=0,255&{query}"
    response = client.post_tensors(path, **inputs, **weights).json()
    assert response["loss"] == expected.loss == pytest.approx(truth, rel=1e-6)
    assert response["divisor"] == expected.divisor


def test_no_upsampling_is_the_default_and_equal_sizes_need_none(client):
    inputs = make_inputs()
    response = client.post_tensors("/v1/loss", **inputs).json()
    assert client.post_tensors("/v1/loss?upsampling=none", **inputs).json() == response
    bilinear = client.post_tensors("/v1/loss?upsampling=bilinear", **inputs).json()
    assert bilinear["loss"] == pytest.approx(response["loss"], rel=1e-6)


@pytest.mark.parametrize("upsampling", ["none", "bilinear"])
def test_one_image_without_batch_axis_is_a_batch_of_one(client, upsampling):
    inputs = make_inputs(upsampling)
    size = inputs["labels"].shape[1:]
    path = f"/v1/loss?upsampling={upsampling}"
    expected = client.post_tensors(path, **inputs).json()
    assert expected.pop("inputs")["logits"]["shape"] == [1, 5, 6, 7]

    def answer_of(**request):
        answer = client.post(path, **request).json()
        assert answer.pop("inputs")["logits"]["shape"] == [5, 6, 7]
        return answer

    without_batch = {name: tensor[0] for name, tensor in inputs.items()}
    body = {"content": safetensors_file(**without_batch), "headers": SAFETENSORS}
    assert answer_of(**body) == expected
    lists = {name: tensor.tolist() for name, tensor in without_batch.items()}
    assert answer_of(json=lists) == expected
    weighted = client.post_tensors(path, **inputs, pixel_weight=torch.ones(1, *size)).json()
    weighted.pop("inputs")
    content = safetensors_file(**without_batch, pixel_weight=torch.ones(size))
    assert answer_of(content=content, headers=SAFETENSORS) == weighted


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not on this machine")
@pytest.mark.parametrize("case", ["fcn32s_dense_surgery", "fcn8s_group5"])
def test_upsampling_fcn_is_caffes_deconvolution_and_crop(run, empty_directory, case):
    with np.load(GOLDEN / f"{case}.npz") as golden:
        scores, labels = golden["score_fr"], golden["label"].astype(np.uint8)
        loss, gradient = float(golden["loss"]), golden["d_score_fr"]
    files = {"logits": npy_file(scores), "labels": label_png(labels[0, 0])}
    query = "upsampling=fcn&normalization=batch&ignore_index=255"
    with served() as client:
        response = client.post(f"/v1/loss?{query}", files=files)
        assert response.json()["loss"] == pytest.approx(loss, rel=1e-6)
        headers = {"Accept": "application/x-npy"}
        response = client.post(f"/v1/gradient?{query}", files=files, headers=headers)
        assert float(response.headers["Seg-Loss"]) == pytest.approx(loss, rel=1e-6)
    got = np.load(io.BytesIO(response.content))
    assert np.abs(got - gradient).max() <= 1e-6 * np.abs(gradient).max()
    np.save("scores.npy", scores)
    np.save("labels.npy", labels)
    line = "loss scores.npy labels.npy --upsampling fcn --normalization batch --format json"
    assert json.loads(run(*line.split())[1])["loss"] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("kind", ["prediction", "overlay", "confidence", "entropy"])
def test_without_labels_pictures_have_the_size_of_the_photo(client, run, empty_directory, kind):
    inputs = make_inputs("fcn")
    logits, photo = inputs["logits"], make_photo(*UPSAMPLED_SIZE)
    path = f"/v1/visualize?upsampling=fcn&kind={kind}"
    response = client.post_tensors(path, logits=logits, image=photo)
    assert response.status_code == 200, response.text
    assert Image.open(io.BytesIO(response.content)).size == UPSAMPLED_SIZE[::-1]
    problem = assert_problem(client.post_tensors(path, logits=logits), 422, "ill_posed")
    assert problem["detail"] == (
        "inputs: expected labels or image too, for the size that logits are upsampled to, "
        "got logits."
    )
    write_inputs(inputs)
    Image.fromarray(photo.numpy()).save("photo.png")
    arguments = f"visualize logits.npy --upsampling fcn --kind {kind} -o a.png".split()
    scale = {"confidence": "0,1 (probability)", "entropy": "0,1.6094 (nats)"}.get(kind)
    err = f"seg-loss: scale: {scale}\n" if scale else ""
    assert run(*arguments, "--image", "photo.png") == (0, "", err)
    with Image.open("a.png") as picture:
        assert picture.size == UPSAMPLED_SIZE[::-1]
    status, _, err = run(*arguments)
    assert status == 1
    assert "labels or image too" in err


def test_every_entry_point_takes_probabilities(client, run, empty_directory):
    inputs = make_inputs()
    inputs["logits"] = inputs["logits"].softmax(dim=1)
    expected = seg_loss.evaluate(**inputs, scores="probabilities", maps=("nll",))
    truth, true_gradient = reference.loss_and_gradient(*inputs.values(), scores="probabilities")
    assert expected.loss == pytest.approx(float(truth), rel=1e-6)
    write_inputs(inputs)
    arguments = ["logits.npy", "labels.png", "--scores", "probabilities", "--format", "json"]
    for name in ("loss", "evaluate"):
        answer = client.post_tensors(f"/v1/{name}?scores=probabilities", **inputs).json()
        assert answer["loss"] == expected.loss
        of_files = json.loads(run(name, *arguments)[1])
        assert of_files.keys() == answer.keys()
        for fields in (of_files, answer):
            del fields["inputs"], fields["palette"]  # the file of the labels has colours
        assert of_files == answer
    response = client.post_tensors("/v1/gradient?scores=probabilities&loss_weight=2", **inputs)
    gradient = safetensors.torch.load(response.content)["gradient"]
    assert torch.allclose(gradient.double(), 2 * true_gradient, rtol=1e-6, atol=0)
    assert run("gradient", *arguments, "--output", "g.npy")[0] == 0
    assert np.array_equal(2 * np.load("g.npy"), gradient.numpy())
    # The pictures of probabilities are those of their logits, with labels and without.
    logits = {"logits": inputs["logits"].log()}
    for kind in ("prediction", "confidence", "nll"):
        labels = {"labels": inputs["labels"]} if kind == "nll" else {}
        path = f"/v1/visualize?kind={kind}"
        of_logits = client.post_tensors(path, **logits, **labels)
        of_probabilities = client.post_tensors(
            f"{path}&scores=probabilities", logits=inputs["logits"], **labels
        )
        assert of_logits.content == of_probabilities.content, kind


def test_a_probability_of_zero_is_null_and_saturated(client):
    inputs = {"logits": torch.tensor([[0.0, 1.0]]), "labels": torch.tensor([0])}
    for name in ("loss", "evaluate"):
        answer = client.post_tensors(f"/v1/{name}?scores=probabilities", **inputs).json()
        assert answer["loss"] is None
        assert answer["per_class"][0] == {"pixels": 1, "mean_nll": None}
        assert answer["diagnosis"]["state"] == "saturated"
    response = client.post_tensors("/v1/gradient?scores=probabilities", **inputs)
    assert safetensors.torch.load(response.content)["gradient"].tolist() == [[-np.inf, 0]]


@pytest.mark.parametrize("name", ["loss", "gradient", "evaluate", "visualize", "predict"])
@pytest.mark.parametrize(
    ("query", "where", "expected"),
    [
        ("", "logits", "probabilities from 0 to 1 at valid pixels"),
        ("&temperature=2", "temperature", "1.0 with scores=probabilities"),
        ("&label_smoothing=0.1", "label_smoothing", "0.0 with scores=probabilities"),
        ("&upsampling=bilinear", "upsampling", "none with scores=probabilities"),
    ],
    ids=["logits", "temperature", "label_smoothing", "upsampling"],
)
def test_probabilities_are_checked(client, name, query, where, expected):
    path = f"/v1/{name}?scores=probabilities{query}"
    problem = client.post_tensors(path, **make_inputs())
    assert problem.status_code == 422
    assert (problem.json()["where"], problem.json()["expected"]) == (where, expected)


def test_a_picture_without_labels_checks_all_probabilities(client):
    logits = make_inputs()["logits"]
    response = client.post_tensors("/v1/visualize?scores=probabilities", logits=logits)
    assert response.status_code == 422
    assert "Are these logits?" in response.json()["fix"]


def test_working_bytes_are_those_of_results_and_upsampling():
    inputs = Inputs(**make_inputs())
    needed = partial(operations.working_bytes, device=CPU)
    matrix, text = 8 * 5 * 5, results.max_json_bytes(1, 5, 42)
    assert needed(inputs, options.LossOptions()) == 2 * matrix
    assert needed(inputs, options.EvaluateOptions()) == 3 * matrix + text
    maps = needed(inputs, options.EvaluateOptions(maps=("nll",)))
    assert maps == 4 * 42 + 3 * matrix + 3 * text
    with_labels = options.EvaluateOptions(maps=("nll", "labels"))
    assert needed(inputs, with_labels) == maps
    on_gpu = needed(inputs, with_labels, device=torch.device("meta"))
    assert on_gpu == maps + inputs.labels.nbytes  # they come back
    picture = operations.PICTURE_BYTES * 42
    entropy = options.VisualizeOptions(kind="entropy")
    assert needed(inputs, entropy) == 4 * 42 + 2 * matrix + picture
    logits_alone, labels_alone = Inputs(logits=inputs.logits), Inputs(labels=inputs.labels)
    assert needed(labels_alone, options.VisualizeOptions(kind="labels")) == picture
    assert needed(logits_alone, entropy) == 4 * 42 + picture
    upsampled = options.VisualizeOptions(kind="entropy", upsampling="bilinear")
    assert needed(logits_alone, upsampled) == picture  # the operation will raise
    with_photo = Inputs(logits=inputs.logits, image=np.zeros((8, 9, 3), np.uint8))
    scratch = seg_loss.scratch_bytes(inputs.logits, (8, 9), upsampling=Bilinear())
    assert needed(with_photo, upsampled) == 4 * 72 + scratch + operations.PICTURE_BYTES * 72
    # A batch costs one picture, and a canvas its pixels.
    batch = Inputs(labels=torch.cat([inputs.labels] * 3))
    chosen = options.VisualizeOptions(kind="labels", image_index=1, legend="strip")
    canvas = operations.CANVAS_BYTES * render.canvas_pixels("labels", "strip", 6, 7)
    assert needed(batch, chosen) == picture + canvas
    half = Inputs(logits=inputs.logits.half(), labels=inputs.labels)
    logarithms = {name: needed(half, options.LossOptions(scores=name)) for name in SCORES}
    # The logarithms of probabilities are float32.
    assert logarithms["probabilities"] - logarithms["logits"] == 4 * 5 * 42


def test_working_bytes_hold_a_gradient_where_the_logits_are_not_reused():
    gradient = options.GradientOptions()
    for dtype, num_bytes in ((torch.float32, 4), (torch.float16, 2), (torch.bfloat16, 2 + 4)):
        tensors = {**make_inputs(), "logits": make_inputs()["logits"].to(dtype)}
        inputs = Inputs(**tensors)
        assert operations.working_bytes(inputs, gradient, CPU) == num_bytes * 5 * 42
        assert operations.working_bytes(inputs, gradient, torch.device("meta")) == 0


def test_working_bytes_grow_with_the_classes_and_not_with_unused_pixels():
    few, many = (
        Inputs(
            logits=torch.zeros(1, 4096, 1, 1).expand(1, 4096, 1, width),
            labels=torch.zeros(1, 1, width, dtype=torch.uint8),
        )
        for width in (1, 1000)
    )
    matrix = 8 * 4096 * 4096
    for inputs in (few, many):
        assert operations.working_bytes(inputs, options.LossOptions(), CPU) == 2 * matrix
    texts = [
        operations.working_bytes(inputs, options.EvaluateOptions(), CPU) for inputs in (few, many)
    ]
    assert 3 * matrix < texts[0] < texts[1] < 3 * matrix + 2_000_000


# Results that overflow


OVERFLOWS = {
    "logits over the temperature": (
        {"logits": torch.tensor([1e30, 0, 0]), "temperature": 1e-30, "label": 1},
        (
            "temperature: expected logits / temperature within 3.4e+38, "
            "got logits from 0 to 1e+30, temperature 1e-30."
        ),
    ),
    "float64 logits over the temperature": (
        {
            "logits": torch.tensor([1e300, 0, 0], dtype=torch.float64),
            "temperature": 1e-30,
            "label": 1,
        },
        (
            "temperature: expected logits / temperature within 1.8e+308, "
            "got logits from 0 to 1e+300, temperature 1e-30."
        ),
    ),
    "float16 logits over the temperature": (
        {"logits": torch.tensor([6e4, 0, 0], dtype=torch.float16), "temperature": 1e-30},
        None,  # 6e34 fits float32
    ),
    "the difference of two logits": (
        {"logits": torch.tensor([3e38, -3e38, 0]), "label": 1},
        (
            "temperature: expected logits / temperature within 3.4e+38, "
            "got logits from -3e+38 to 3e+38, temperature 1."
        ),
    ),
    "the weights": (
        {
            "logits": torch.tensor([0.0, 1, 2], dtype=torch.float64),
            "class_weight": torch.full((3,), 1e300, dtype=torch.float64),
            "pixel_weight": torch.full((1, 1, 1), 1e300, dtype=torch.float64),
        },
        "loss: expected a finite number, got an overflow. Use smaller weights.",
    ),
    "a logit of -inf, which is legal": (
        {"logits": torch.tensor([0, -float("inf"), 0]), "label": 1},
        None,
    ),
    "a logit of -inf beside an overflow": (
        {"logits": torch.tensor([1e30, -float("inf"), 0]), "temperature": 1e-30, "label": 2},
        (
            "temperature: expected logits / temperature within 3.4e+38, "
            "got logits from 0 to 1e+30, temperature 1e-30."
        ),
    ),
}


@pytest.mark.parametrize("case", OVERFLOWS)
@pytest.mark.parametrize("operation", ["loss", "gradient", "evaluate", "visualize", "predict"])
def test_finite_logits_with_an_infinite_loss_are_an_error(
    client, run, empty_directory, case, operation
):
    arguments, sentence = OVERFLOWS[case]
    logits = torch.tensor([0.0, 1.0, 2.0])
    label, temperature = arguments.get("label", 0), arguments.get("temperature", 1)
    tensors = {
        "logits": arguments.get("logits", logits)[None, :, None, None],
        "labels": torch.full((1, 1, 1), label, dtype=torch.uint8),
        **{name: value for name, value in arguments.items() if name.endswith("_weight")},
    }
    response = client.post_tensors(f"/v1/{operation}?temperature={temperature}", **tensors)
    if sentence is None:
        assert response.status_code == 200, response.text
    else:
        assert assert_problem(response, 422, "ill_posed")["detail"] == sentence
    if operation in ("loss", "evaluate"):
        for name, tensor in tensors.items():
            np.save(f"{name}.npy", tensor.numpy())
        flags = [f"--{name}={name}.npy" for name in tensors if name.endswith("_weight")]
        line = [operation, "logits.npy", "labels.npy", "--temperature", temperature, *flags]
        status, _, err = run(*line)
        assert (status, err) == ((0, "") if sentence is None else (1, f"seg-loss: {sentence}\n"))


GRADIENTS = {
    "loss_weight": ({"loss_weight": 1e30}, torch.float16),
    "temperature": ({"temperature": 1e-6, "normalization": "none"}, torch.float16),
    "temperature and loss_weight": ({"temperature": 1e-20, "loss_weight": 1e20}, torch.float32),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_a_gradient_that_overflows_is_an_error(client, case):
    query, dtype = GRADIENTS[case]
    text = urlencode(query)
    tensors = {
        "logits": torch.zeros(1, 2, 1, 1, dtype=dtype),
        "labels": torch.zeros(1, 1, 1, dtype=torch.uint8),
    }
    problem = assert_problem(
        client.post_tensors(f"/v1/gradient?{text}", **tensors), 422, "ill_posed"
    )
    assert problem["where"] == "gradient"
    assert problem["expected"] == f"numbers that {str(dtype).removeprefix('torch.')} holds"
    doubles = {**tensors, "logits": tensors["logits"].double()}
    assert client.post_tensors(f"/v1/gradient?{text}", **doubles).status_code == 200


def test_a_gradient_that_sums_many_upsampled_pixels_may_overflow():
    tensors = {
        "logits": torch.zeros(1, 2, 1, 1, dtype=torch.float16),
        "labels": torch.zeros(1, 400, 400, dtype=torch.uint8),
    }
    path = "/v1/gradient?upsampling=bilinear&normalization="
    with served() as client:
        problem = assert_problem(client.post_tensors(f"{path}none", **tensors), 422, "ill_posed")
        assert problem["where"] == "gradient"
        assert client.post_tensors(f"{path}valid", **tensors).status_code == 200


def test_a_gradient_that_the_weights_make_overflow_is_an_error(client):
    tensors = {
        "logits": torch.zeros(1, 2, 1, 1, dtype=torch.float16),
        "labels": torch.zeros(1, 1, 1, dtype=torch.uint8),
        "class_weight": torch.tensor([1e6, 1]),
    }
    problem = assert_problem(client.post_tensors("/v1/gradient", **tensors), 422, "ill_posed")
    assert problem["fix"].startswith("Use a smaller loss_weight or smaller weights")


@pytest.mark.parametrize("value", ["1e300", "-1e31", "inf", "nan"])
def test_a_loss_weight_is_bounded(client, value):
    response = client.post_tensors(f"/v1/gradient?loss_weight={value}", **make_inputs())
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["detail"] == (
        f"loss_weight: expected a number from -1e30 to 1e30, got '{value}'."
    )


def test_tensor_bytes_are_those_of_inputs_and_results():
    inputs = Inputs(**make_inputs(), class_weight=torch.ones(5), prediction=torch.zeros(1, 6, 7))
    num_bytes = 4 * 5 * 42 + 42 + 4 * 5  # the prediction stays on the CPU
    needed = operations.tensor_bytes
    assert needed(inputs, options.LossOptions()) == num_bytes
    assert needed(inputs, options.GradientOptions()) == num_bytes + 4 * 5 * 42
    assert needed(inputs, options.EvaluateOptions(maps=("nll", "top_classes"))) == (
        num_bytes + 4 * (1 + 6) * 42
    )
    assert needed(Inputs(labels=inputs.labels), options.VisualizeOptions(kind="labels")) == 0
