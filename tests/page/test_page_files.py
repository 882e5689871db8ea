"""Files, options and requests of the page: what is dropped, what is sent, and what is refused."""

import io
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import safetensors.numpy
import small_networks
import torch
from page_actions import (
    answer,
    drop,
    drop_and_wait,
    npy_file,
    png_file,
    wait_until,
    wait_until_settled,
)
from PIL import Image
from serving import running
from small_networks import write_checkpoint
from viewer_scenes import settle

import seg_loss

pytestmark = pytest.mark.page

SIZE = (24, 36)
SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
NUM_CLASSES = 5


def make_arrays(num_images: int = 1, seed: int = 0):
    """Logits float16 [N,5,24,36], and labels uint8 [N,24,36] with some ignored pixels."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(num_images, NUM_CLASSES, *SIZE)).astype(np.float16)
    labels = random.integers(0, NUM_CLASSES, (num_images, *SIZE)).astype(np.uint8)
    labels[:, 0, :3] = 255
    return logits, labels


def files_of(logits, labels) -> dict[str, bytes]:
    return {"net.npy": npy_file(logits), "gt.npy": npy_file(labels)}


def loss_of(logits, labels, **options) -> float:
    tensors = torch.from_numpy(logits), torch.from_numpy(labels)
    return seg_loss.evaluate(*tensors, **options).loss


def state(page, expression: str):
    return page.evaluate(f"segLoss.store.state.{expression}")


def test_dropped_logits_and_labels_become_a_scene(page):
    logits, labels = make_arrays()
    drop_and_wait(page, files_of(logits, labels))
    scene = page.evaluate(
        """() => {
          const { scene } = segLoss.store.state;
          const { width, height, numClasses, predictions: [prediction] } = scene;
          const { classes, nll, answer } = prediction;
          return { width, height, numClasses, name: prediction.name, loss: answer.loss,
            classes: [...classes], nll: [...nll] };
        }"""
    )
    evaluation = seg_loss.evaluate(
        torch.from_numpy(logits), torch.from_numpy(labels), maps=("prediction", "nll")
    )
    assert (scene["height"], scene["width"]) == SIZE
    assert (scene["numClasses"], scene["name"]) == (NUM_CLASSES, "net.npy")
    assert scene["loss"] == evaluation.loss
    assert scene["classes"] == evaluation.maps["prediction"].flatten().tolist()
    assert scene["nll"] == evaluation.maps["nll"].flatten().tolist()


def test_files_are_sent_as_safetensors_with_the_labels_first(page):
    logits, labels = make_arrays()
    with page.expect_request("**/v1/evaluate*") as sent:
        drop_and_wait(page, files_of(logits, labels))
    assert sent.value.headers["content-type"] == "application/x-safetensors"
    assert sent.value.headers["accept"] == "application/x-safetensors"


def test_a_file_input_takes_what_is_not_dropped(page):
    logits, labels = make_arrays()
    for role, name, content in (
        ("Prediction", "a.npy", npy_file(logits)),
        ("Truth", "b.png", png_file(labels[0], "P")),
    ):
        page.get_by_label(f"{role}: choose a file", exact=True).set_input_files(
            {"name": name, "mimeType": "", "buffer": content}
        )
        page.locator(".file-name").get_by_text(name, exact=True).wait_for(state="attached")
    wait_until_settled(page)
    assert answer(page)["loss"] == loss_of(logits, labels)


def test_each_kind_of_file_gets_its_role(page):
    logits, labels = make_arrays()
    photo = np.zeros((*SIZE, 3), np.uint8)
    drop_and_wait(
        page,
        {
            "street.png": png_file(photo),
            "logits.npy": npy_file(logits),
            "street_gtFine_labelTrainIds.png": png_file(labels[0]),
        },
    )
    roles = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".file-card")]
          .map((card) => [card.dataset.role, card.querySelector(".file-name")?.textContent]))"""
    )
    assert roles == {
        "photo": "street.png",
        "prediction": "logits.npy",
        "truth": "street_gtFine_labelTrainIds.png",
        "second": None,
    }
    assert state(page, "scene.photo.width") == SIZE[1]


def test_a_file_that_may_be_either_waits_for_a_choice(page):
    _, labels = make_arrays()
    drop(page, {"1.png": png_file(labels[0]), "2.png": png_file(labels[0])})
    page.get_by_text("Choose which input each file is.").wait_for()
    assert state(page, "scene") is None
    page.get_by_label("1.png is the").select_option("Truth")
    logits, _ = make_arrays()
    page.get_by_label("Remove 2.png").click()
    drop_and_wait(page, {"net.npy": npy_file(logits)})
    assert answer(page)["loss"] == loss_of(logits, labels)


def test_roles_can_be_exchanged_and_files_removed(page):
    logits, labels = make_arrays()
    other, _ = make_arrays(seed=1)
    drop_and_wait(page, files_of(logits, labels))
    drop_and_wait(page, {"other.npy": npy_file(other)})
    page.locator("#files summary").click()
    page.get_by_label("other.npy is the").select_option("Prediction")
    wait_until(page, "segLoss.store.state.scene?.predictions[0].name === 'other.npy'")
    page.get_by_label("Remove other.npy").click()
    wait_until(page, "segLoss.store.state.scene?.predictions.length === 1")
    assert state(page, "scene.predictions[0].name") == "net.npy"
    page.get_by_label("Remove net.npy").click()
    wait_until(page, "segLoss.store.state.scene === null")
    page.get_by_text("Add a prediction: logits, or a map of classes.").wait_for()


def test_two_predictions_share_the_truth(page):
    logits, labels = make_arrays()
    other, _ = make_arrays(seed=1)
    files = {"net_a.npy": npy_file(logits), "net_b.npy": npy_file(other)}
    drop_and_wait(page, {**files, "gt.npy": npy_file(labels)})
    assert [answer(page, index)["loss"] for index in (0, 1)] == [
        loss_of(logits, labels),
        loss_of(other, labels),
    ]
    page.get_by_role("button", name="B net_b.npy").click()
    assert state(page, "shown") == 1


def test_two_predictions_with_other_classes_are_refused(page):
    logits, labels = make_arrays()
    labels = labels % 2
    drop_and_wait(page, files_of(logits, labels))
    drop_and_wait(page, {"narrow.npy": npy_file(logits[:, :2])})
    assert state(page, "scene") is None
    message = page.locator("#problem").text_content()
    assert message.startswith("Prediction B, narrow.npy:")
    assert "expected 5 classes, as in the first, got 2" in message
    assert page.get_by_role("button", name="Try again").count() == 0  # it would fail again


def test_maps_of_classes_get_the_classes_of_the_prediction_beside_them(page):
    truth = np.array([[0, 1, 2], [0, 1, 2]], np.uint8)
    rows = {"gt.png": truth, "pred.png": np.minimum(truth, 1), "pred_b.png": truth + 2}
    drop_and_wait(page, {name: png_file(rows[name]) for name in ("gt.png", "pred.png")})
    assert state(page, "scene.numClasses") == 3
    drop_and_wait(page, {"pred_b.png": png_file(rows["pred_b.png"])})
    assert state(page, "scene.numClasses") == 5
    assert [len(answer(page, index)["confusion"]) for index in (0, 1)] == [5, 5]
    assert state(page, "options") == {}
    assert page.locator("[data-pane=better]").is_visible()


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_map_of_classes_may_have_64_bits_and_be_column_major(page, order):
    labels = make_arrays(num_images=2)[1]
    classes = labels.astype(np.int64, order=order)
    classes[0, 2, 2] = 2**32 + 1  # no class
    classes[0, 2, 3] = -1
    labels[0, 2, 2:4] = 255
    drop_and_wait(page, {"gt.npy": npy_file(labels), "pred.npy": npy_file(classes)})
    assert state(page, "problem") is None
    assert answer(page)["metrics"]["pixel_accuracy"] == 1
    shown = page.evaluate("[...segLoss.store.state.scene.predictions[0].classes]")
    classes[0, 2, 2] = -1
    assert shown == classes[0].ravel().tolist()
    settle(page)


def test_a_void_value_beside_the_ignored_one_is_one_click(page):
    logits, labels = make_arrays()
    labels = labels.astype(np.int16)
    labels[0, 1, :2] = (-1, -100)  # the service proposes no pair of values
    drop_and_wait(page, files_of(logits, labels))
    for value in ("255,-1", "255,-1,-100"):
        page.get_by_role("button", name=f"Use ignore_index={value}", exact=True).click()
        wait_until_settled(page)
    assert answer(page)["ignored_pixels"] == 5


def test_an_image_of_a_batch_is_chosen_without_a_request(page):
    logits, labels = make_arrays(num_images=3)
    drop_and_wait(page, files_of(logits, labels))
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.get_by_label("Image of the batch").select_option("Image 3 of 3")
    wait_until(page, "segLoss.store.state.scene.imageIndex === 2")
    evaluation = seg_loss.evaluate(
        torch.from_numpy(logits), torch.from_numpy(labels), maps=("prediction", "top_classes")
    )
    assert page.evaluate("[...segLoss.store.state.scene.predictions[0].classes]") == (
        evaluation.maps["prediction"][2].flatten().tolist()
    )
    assert page.evaluate("[...segLoss.store.state.scene.predictions[0].topClasses[1]]") == (
        evaluation.maps["top_classes"][2, 1].flatten().tolist()
    )
    page.locator(".images button").first.click()
    losses = [image["loss"] for image in answer(page)["per_image"]]
    worst = losses.index(max(losses))
    wait_until(page, f"segLoss.store.state.scene.imageIndex === {worst}")
    assert not [request for request in requests if "/v1/" in request]


def test_an_option_sends_the_same_files_again(page):
    logits, labels = make_arrays()
    drop_and_wait(page, files_of(logits, labels))
    before = page.evaluate_handle("segLoss.store.state")
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("Temperature").fill("2")
    with page.expect_request("**/v1/evaluate*") as sent:
        page.keyboard.press("Tab")
    wait_until_settled(page, before)
    assert "temperature=2" in sent.value.url
    assert "ignore_index" not in sent.value.url  # only options that have been changed
    assert answer(page)["loss"] == loss_of(logits, labels, temperature=2)


def test_an_error_about_an_option_is_in_its_field(page):
    logits, labels = make_arrays()
    drop_and_wait(page, files_of(logits, labels))
    page.get_by_text("Options", exact=True).click()
    field = page.get_by_label("Temperature")
    field.fill("warm")
    page.keyboard.press("Tab")
    sentence = "temperature: expected a positive number, 1e-30...1e30, got 'warm'."
    page.locator("#option-temperature-error").get_by_text(sentence).wait_for()
    assert field.get_attribute("aria-invalid") == "true"
    before = page.evaluate_handle("segLoss.store.state")
    field.fill("2")
    page.keyboard.press("Tab")
    wait_until_settled(page, before)
    assert answer(page)["loss"] == loss_of(logits, labels, temperature=2)
    assert field.get_attribute("aria-invalid") is None
    assert page.locator("#problem").is_hidden()


def test_an_invalid_label_names_its_fix_which_a_button_applies(page):
    logits, labels = make_arrays()
    labels[labels == 255] = 0
    drop_and_wait(page, files_of(logits, labels + 1))
    assert state(page, "scene") is None
    assert page.locator("#problem").text_content().startswith("Truth, gt.npy: expected 0")
    assert page.get_by_label("gt.npy is the").get_attribute("aria-invalid") == "true"
    page.get_by_role("button", name="Use label_space=ade_zero").click()
    wait_until_settled(page)
    assert answer(page)["loss"] == loss_of(logits, labels)
    assert page.get_by_label("Label space").input_value() == "ade_zero"


def test_a_truth_of_another_size_is_refused_in_words(page):
    logits, labels = make_arrays()
    drop_and_wait(page, files_of(logits, labels[:, :20]))
    message = page.locator("#problem").text_content()
    assert message.startswith("Truth, gt.npy: expected shape (1, 24, 36)")


def test_scores_of_lower_resolution_get_an_upsampling(page):
    logits, labels = make_arrays()
    larger = labels.repeat(2, axis=1).repeat(2, axis=2)
    drop_and_wait(page, files_of(logits, larger))
    page.get_by_role("button", name="Use upsampling=bilinear").click()
    wait_until_settled(page)
    assert [state(page, "scene.height"), state(page, "scene.width")] == [48, 72]


def test_a_damaged_file_is_refused_in_words(page):
    logits, labels = make_arrays()
    damaged = {"net.npy": npy_file(logits)[:-7], "gt.npy": npy_file(labels)}
    page.allowed = [400]
    drop_and_wait(page, damaged)
    message = page.locator("#problem").text_content()
    assert message.startswith("Prediction, net.npy: expected")
    assert "bytes" in message


def test_a_photo_that_cannot_be_decoded_is_told_and_the_rest_shown(page):
    logits, labels = make_arrays()
    drop_and_wait(page, {**files_of(logits, labels), "photo.jpg": b"no photo"})
    page.get_by_text("photo.jpg is no picture that this browser decodes.").wait_for()
    assert state(page, "scene.photo") is None
    assert answer(page)["loss"] == loss_of(logits, labels)


def test_a_photo_of_another_size_is_told(page):
    logits, labels = make_arrays()
    photo = png_file(np.zeros((10, 20, 3), np.uint8))
    drop_and_wait(page, {**files_of(logits, labels), "photo.png": photo})
    page.get_by_text("The photo has 20×10 pixels, the maps have 36×24").wait_for()


def test_logits_without_a_truth_are_predicted(page):
    logits, _ = make_arrays()
    drop_and_wait(page, {"net.npy": npy_file(logits)})
    assert page.evaluate("[...segLoss.store.state.scene.predictions[0].classes]") == (
        logits[0].argmax(0).flatten().tolist()
    )
    assert state(page, "scene.truth") is None


def test_an_error_of_the_service_is_told_in_words(page):
    page.allowed = [500, 503]
    logits, labels = make_arrays()
    page.route("**/v1/evaluate*", lambda route: route.fulfill(status=500, body="<b>oops</b>"))
    drop_and_wait(page, files_of(logits, labels))
    page.get_by_text("The service answered with the HTTP status 500").wait_for()
    page.unroute("**/v1/evaluate*")
    page.route(
        "**/v1/evaluate*",
        lambda route: route.fulfill(
            status=503, headers={"Retry-After": "2"}, json={"detail": "The service is busy."}
        ),
    )
    drop_and_wait(page, files_of(logits, labels))
    page.get_by_text("The service is busy. Try again in 2 seconds.").wait_for()
    page.unroute("**/v1/evaluate*")
    page.get_by_role("button", name="Try again").click()
    wait_until_settled(page)
    assert answer(page)["loss"] == loss_of(logits, labels)


def test_files_that_are_too_large_are_told_in_words(page):
    page.allowed = [413]
    problem = {"where": "body", "detail": "body: expected less", "limit": 50_000_000}
    page.route("**/v1/evaluate*", lambda route: route.fulfill(status=413, json=problem))
    drop_and_wait(page, files_of(*make_arrays()))
    page.get_by_text("The files have more than 50 MB together. Use float16").wait_for()


def test_the_page_works_when_the_service_comes_back(page, url):
    page.allowed = ["ERR_CONNECTION"]
    page.route("**/openapi.json", lambda route: route.abort("connectionrefused"))
    page.goto(url)
    page.get_by_text("The service did not answer").wait_for()
    page.unroute("**/openapi.json")
    logits, labels = make_arrays()
    drop_and_wait(page, files_of(logits, labels))
    assert answer(page)["loss"] == loss_of(logits, labels)
    page.get_by_label("Label space").wait_for(state="attached")


def test_a_closed_connection_is_told_in_words(page):
    page.allowed = ["ERR_CONNECTION"]
    logits, labels = make_arrays()
    page.route("**/v1/evaluate*", lambda route: route.abort("connectionreset"))
    drop_and_wait(page, files_of(logits, labels))
    page.get_by_text("The service did not answer: the connection failed or was closed.").wait_for()


def test_a_request_can_be_cancelled(page):
    logits, labels = make_arrays()
    page.route("**/v1/evaluate*", lambda route: None)  # it waits for ever
    drop(page, files_of(logits, labels))
    page.get_by_role("progressbar").wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("The request was cancelled.").wait_for()
    assert state(page, "progress") is None
    assert state(page, "scene") is None


def test_a_link_restores_options_and_zoom_but_no_files(page, url):
    logits, labels = make_arrays()
    drop_and_wait(page, files_of(logits, labels))
    camera = {"scale": 3, "x": 7.5, "y": 2}
    changes = {"camera": camera, "opacity": 0.25, "panes": ["truth", "nll"], "minNll": 0.5}
    page.evaluate("(changes) => segLoss.store.set(changes)", changes)
    before = page.evaluate_handle("segLoss.store.state")
    page.evaluate('segLoss.store.set({ options: { temperature: "2" } })')
    wait_until_settled(page, before)
    wait_until(page, "location.hash.includes('temperature=2')")
    page.reload()
    wait_until(page, "window.segLoss !== undefined")
    page.get_by_text("This link is about net.npy, gt.npy").wait_for()
    assert {name: state(page, name) for name in changes} == changes
    drop_and_wait(page, files_of(logits, labels))
    assert answer(page)["loss"] == loss_of(logits, labels, temperature=2)
    assert state(page, "camera") == camera


def test_a_link_that_is_pasted_into_the_open_page_is_followed(page):
    logits, labels = make_arrays()
    drop_and_wait(page, files_of(logits, labels))
    before = page.evaluate_handle("segLoss.store.state")
    page.evaluate("location.hash = '#o.temperature=2&o.maps=nll&panes=nll&shown=1'")
    wait_until_settled(page, before)
    assert answer(page)["loss"] == loss_of(logits, labels, temperature=2)
    assert state(page, "options") == {"temperature": "2"}
    assert (state(page, "panes"), state(page, "shown")) == (["nll"], 0)
    page.evaluate("location.hash = '#main'")  # the link that skips to the content
    page.wait_for_timeout(50)
    assert state(page, "panes") == ["nll"]


def test_what_is_invalid_in_a_link_is_ignored(page, url):
    hash_ = (
        "#o.temperature=2&o.label_space=<b>&o.constructor=1&o.unknown=1&zoom=nan,1,1&opacity=7"
        "&panes=photo,<script>&slider=a,b,0.5&shown=9&nll=-1&confidence=1e9&file=<img src=x>"
    )
    page.goto(f"{url}/{hash_}")
    page.reload()
    wait_until(page, "window.segLoss !== undefined")
    page.get_by_label("Temperature").wait_for(state="attached")
    assert state(page, "options") == {"temperature": "2"}
    assert state(page, "panes") == ["photo"]
    names = ("camera", "opacity", "slider", "shown", "minNll", "maxConfidence")
    assert [state(page, name) for name in names] == [None, 0.5, None, 0, 0, 1]
    page.get_by_text("This link is about <img src=x>").wait_for()


def test_the_json_can_be_downloaded(page):
    logits, labels = make_arrays()
    drop_and_wait(page, files_of(logits, labels))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    assert download.value.suggested_filename == "net.json"
    assert json.loads(download.value.path().read_text()) == answer(page)


def test_the_fcn_demo_gives_its_published_metrics(page):
    folder = SHARED_DATA / "fcn-demo"
    if not folder.exists():
        pytest.skip("needs the FCN demo in ../shared/data")
    names = ("image.jpg", "label.png", "output.png")
    drop_and_wait(page, {name: (folder / name).read_bytes() for name in names})
    page.get_by_role("button", name="Use palette=voc").click()
    wait_until_settled(page)
    result = answer(page)
    assert (result["valid_pixels"], result["ignored_pixels"]) == (149715, 17285)
    metrics = result["metrics"]
    assert metrics["pixel_accuracy"] == 0.8425141101426042
    assert metrics["mean_accuracy"] == 0.8454627806113827
    assert metrics["mean_iu"] == 0.7196156777147081
    assert metrics["frequency_weighted_iu"] == 0.7273739799737002
    assert [metrics["iu"][index] for index in (0, 2, 15)] == [
        0.7772942512797062,
        0.6620824689401179,
        0.7194703129243007,
    ]
    scene = page.evaluate(
        """() => {
          const { scene } = segLoss.store.state;
          const { truth, predictions: [{ classes }], classNames, photo } = scene;
          const valid = classes.filter((_, pixel) => truth[pixel] >= 0);
          const count = (array, value) => array.filter((entry) => entry === value).length;
          return { truth: [-1, 0, 2, 15].map((value) => count(truth, value)),
            predicted: [0, 2, 15].map((value) => count(valid, value)),
            names: classNames.length, photo: [photo.width, photo.height] };
        }"""
    )
    assert scene["truth"] == [17285, 54389, 34183, 61143]
    assert scene["predicted"] == [66092, 37122, 46501]
    assert scene["names"] == 21
    assert scene["photo"] == [334, 500]


def test_the_ade_sample_gives_its_published_metrics(page):
    folder = SHARED_DATA / "ade-sample"
    if not folder.exists():
        pytest.skip("needs the ADE20K sample in ../shared/data")
    ignored = valid = 0
    options = {"label_space": "ade_zero", "prediction_space": "ade_zero", "palette": "ade20k"}
    page.evaluate("(options) => segLoss.store.set({ options })", {**options, "absent": "zero"})
    classes = set()
    for index in (1, 2, 3):
        name = f"ADE_val_0000000{index}.png"
        files = {"pred.png": "predictions", "gt.png": "annotations"}
        drop_and_wait(page, {key: (folder / files[key] / name).read_bytes() for key in files})
        result = answer(page)
        ignored += result["ignored_pixels"]
        valid += result["valid_pixels"]
        present = [label for label, row in enumerate(result["confusion"]) if any(row)]
        classes.update(present)
        assert result["metrics"]["mean_iu"] == len(present) / 150
        assert result["metrics"]["pixel_accuracy"] == 1
    assert (ignored, valid, len(classes)) == (3613 + 17280 + 2031, 628772, 15)


def test_the_sample_is_one_button(page):
    page.get_by_role("button", name="Sample").click()
    wait_until_settled(page)
    sample = safetensors.numpy.load(httpx.get(f"{page.url.partition('#')[0]}v1/sample").content)
    truth = page.evaluate("[...segLoss.store.state.scene.truth]")
    assert (
        truth
        == np.where(sample["labels"] == 255, -1, sample["labels"].astype(int)).ravel().tolist()
    )
    assert state(page, "scene.photo.width") == sample["image"].shape[1]


def test_files_replace_the_sample_as_a_whole(page):
    page.get_by_role("button", name="Sample", exact=True).click()
    wait_until_settled(page)
    logits, labels = make_arrays()
    drop_and_wait(page, files_of(logits, labels))
    assert state(page, "scene.photo") is None
    assert answer(page)["loss"] == loss_of(logits, labels)


def test_a_sample_that_comes_late_can_be_cancelled(page):
    waiting = []
    page.route("**/v1/sample", lambda route: waiting.append(route))
    page.get_by_role("button", name="Sample", exact=True).click()
    page.get_by_text("Loading the sample").wait_for()
    page.get_by_role("button", name="Cancel").click()
    wait_until(page, "segLoss.store.state.progress === null")
    page.get_by_role("button", name="Sample", exact=True).click()
    logits, labels = make_arrays()
    drop_and_wait(page, files_of(logits, labels))  # in place of the sample, which is dropped
    assert answer(page)["loss"] == loss_of(logits, labels)
    assert len(waiting) == 2


def test_a_sample_that_breaks_off_is_told_in_words(page):
    page.allowed = ["ERR_FAILED"]
    page.route("**/v1/sample", lambda route: route.abort())
    page.get_by_role("button", name="Sample", exact=True).click()
    page.get_by_text("The service did not answer").wait_for()


def test_a_photo_is_turned_upright_and_labels_are_not(page):
    logits, labels = make_arrays()
    height, width = SIZE
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright
    photo = io.BytesIO()
    Image.new("RGB", (height, width)).save(photo, "JPEG", exif=exif)
    drop_and_wait(page, {**files_of(logits, labels), "photo.jpg": photo.getvalue()})
    size = [state(page, "scene.photo.width"), state(page, "scene.photo.height")]
    assert size == [width, height]


def test_another_photo_needs_no_request(page):
    logits, labels = make_arrays()
    drop_and_wait(page, files_of(logits, labels))
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    drop_and_wait(page, {"photo.png": png_file(np.zeros((*SIZE, 3), np.uint8))})
    assert state(page, "scene.photo.width") == SIZE[1]
    assert not [request for request in requests if "/v1/" in request]


def test_a_palette_file_names_the_classes(page):
    logits, labels = make_arrays()
    palette = "\n".join(f"{10 * index} 0 0 thing{index}" for index in range(NUM_CLASSES))
    drop_and_wait(page, {**files_of(logits, labels), "classes.txt": palette.encode()})
    names = [f"thing{index}" for index in range(NUM_CLASSES)]
    assert state(page, "scene.classNames") == names
    assert page.evaluate("[...segLoss.store.state.scene.colours]")[3:6] == [10, 0, 0]


def test_long_names_do_not_widen_the_page_of_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 800})
    logits, labels = make_arrays()
    names = [f"{'W' * 90}{index}" for index in range(NUM_CLASSES)]
    rows = [f"{40 * index} 0 99 {name}" for index, name in enumerate(names)]
    files = {f"{'a' * 180}_{name}": content for name, content in files_of(logits, labels).items()}
    drop_and_wait(page, {**files, "names.txt": "\n".join(rows).encode()})
    assert state(page, "scene.classNames") == names
    page.locator("#viewer .viewer-regions-list li").first.wait_for(state="attached")
    page.evaluate("document.querySelector('#files').open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_names_of_files_are_text(page):
    logits, labels = make_arrays()
    name = "<img src=x onerror=alert(1)>.npy"
    drop_and_wait(page, {name: npy_file(logits), "gt.npy": npy_file(labels)})
    page.locator(".file-name").get_by_text(name, exact=True).wait_for(state="attached")
    assert page.locator("#inputs img").count() == 0


def test_what_cannot_be_read_is_told_in_words(page):
    page.evaluate(
        """() => {
          const file = new File([], "folder");
          file.arrayBuffer = () => Promise.reject(new DOMException("", "NotReadableError"));
          const transfer = { files: [file], types: ["Files"] };
          const event = new Event("drop", { cancelable: true });
          window.dispatchEvent(Object.assign(event, { dataTransfer: transfer }));
        }"""
    )
    page.get_by_text("folder cannot be read").wait_for()


def test_a_drag_is_shown_and_never_opens_the_file(page):
    cancelled = page.evaluate(
        """() => {
          const make = (name) => new DragEvent(name, { dataTransfer: new DataTransfer(),
            bubbles: true, cancelable: true });
          return ["dragover", "drop"].map((name) => !document.body.dispatchEvent(make(name)));
        }"""
    )
    assert cancelled == [True, True]


def test_a_network_predicts_a_photo_and_compares_it_with_a_truth(browser, tmp_path):
    write_checkpoint(tmp_path, "fcn8s")
    model = tmp_path / "fcn8s.safetensors"
    random = np.random.default_rng(0)
    photo = random.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    labels = random.integers(0, small_networks.NUM_CLASSES, (40, 50)).astype(np.uint8)
    with running(model=f"{model}", log_level="warning") as server:
        page = browser.new_page()
        page.set_default_timeout(10_000)
        page.goto(server.url)
        button = page.get_by_role("button", name="Predict with")
        button.wait_for()
        assert button.is_disabled()
        drop(page, {"photo.png": png_file(photo)})
        button.click()
        wait_until_settled(page)
        assert state(page, "scene.truth") is None
        predicted = page.evaluate("[...segLoss.store.state.scene.predictions[0].classes]")
        drop_and_wait(page, {"gt.png": png_file(labels)})
        assert page.evaluate("[...segLoss.store.state.scene.predictions[0].classes]") == predicted
        assert page.evaluate("[...segLoss.store.state.scene.truth]") == labels.ravel().tolist()
        confusion = np.zeros((small_networks.NUM_CLASSES,) * 2, int)
        np.add.at(confusion, (labels.ravel(), predicted), 1)
        assert answer(page)["confusion"] == confusion.tolist()
        page.close()
