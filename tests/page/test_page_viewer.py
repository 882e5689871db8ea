"""The panes of the page: pixels, pointer and keyboard against NumPy."""

import base64
import io
import math
import re

import numpy as np
import pytest
from PIL import Image
from viewer_scenes import Prediction, Scene, made_up_scene, settle

from app.images import style
from app.images.colormaps import INFERNO, VIRIDIS, paint

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright").expect

pytestmark = pytest.mark.page

CHECKERS = {(grey, grey, grey) for grey in style.CHECKER_GREYS}
LEVELS = (0, 128, 208)
ALL_PANES = ["photo", "truth", "prediction", "error", "nll", "confidence", "entropy"]


def set_state(page, **changes):
    page.evaluate("(changes) => window.segLoss.store.set(changes)", changes)
    settle(page)


def state(page, name):
    return page.evaluate("(name) => window.segLoss.store.state[name]", name)


def expect_state(page, name, is_expected):
    """Waits until a member of the state is as expected. CSP forbids Playwright's own polling."""
    for _ in range(200):
        if is_expected(state(page, name)):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"{name} is {state(page, name)}")


def stage_box(page, pane=""):
    """Scrolls to a stage, and returns where it is in the window."""
    stage = page.locator(f"{pane} .viewer-stage")
    stage.scroll_into_view_if_needed()
    return stage.bounding_box()


def painted(page, pane):
    """Returns a pane's canvas, uint8 [height,width,4]."""
    width, height, data = page.evaluate(
        """(pane) => {
          const canvas = document.querySelector(`[data-pane="${pane}"] .viewer-stage canvas`);
          const {width, height} = canvas;
          const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
          let text = "";
          for (let i = 0; i < data.length; i += 8192)
            text += String.fromCharCode(...data.subarray(i, i + 8192));
          return [width, height, btoa(text)];
        }""",
        pane,
    )
    return np.frombuffer(base64.b64decode(data), dtype=np.uint8).reshape(height, width, 4)


def at_centres(canvas, scene, scale=None, centre=None):
    """Returns the colours [H,W,3] at the centres of the image's pixels; -1 outside the canvas."""
    height, width = canvas.shape[:2]
    scale = scale or min(width / scene.width, height / scene.height)
    x, y = centre or (scene.width / 2, scene.height / 2)
    columns = np.floor((np.arange(scene.width) + 0.5 - x) * scale + width / 2).astype(int)
    rows = np.floor((np.arange(scene.height) + 0.5 - y) * scale + height / 2).astype(int)
    result = np.full((scene.height, scene.width, 3), -1)
    visible = np.ix_((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
    every = canvas[np.ix_(rows.clip(0, height - 1), columns.clip(0, width - 1))][..., :3]
    result[visible] = every[visible]
    return result


def picture(page, pane, scene):
    return at_centres(painted(page, pane), scene)


def mix(first, second, weight):
    return np.rint(np.asarray(first) * (1 - weight) + np.asarray(second) * weight)


def dimmed(colours, level):
    weight = np.asarray(LEVELS)[level][..., None] / 256
    return mix(colours, 128, weight)


def lit(colours, full):
    """Returns where a picture has its full colours; asserts that the rest is dimmed."""
    is_lit = (abs(colours - full) <= 1).all(axis=-1)
    assert (abs(colours - dimmed(full, 2))[~is_lit] <= 2).all()
    return is_lit


def test_each_pane_has_the_colours_that_numpy_says(page):
    scene = made_up_scene(num_classes=5)
    scene.show(page)
    set_state(page, panes=ALL_PANES, opacity=0.75)
    (prediction,) = scene.predictions
    valid = scene.truth >= 0
    truth = scene.colours[np.where(valid, scene.truth, 0)]
    expected = {
        "photo": (scene.photo, np.ones_like(valid)),
        "truth": (mix(scene.photo, truth, 0.75), valid),
        "prediction": (
            mix(scene.photo, scene.colours[prediction.classes], 0.75),
            np.ones_like(valid),
        ),
        "error": (
            right_or_wrong(scene),
            valid,
        ),
        "nll": (paint(prediction.nll / math.log(5), INFERNO), valid),
        "confidence": (paint(prediction.confidence, VIRIDIS), valid),
        "entropy": (paint(prediction.entropy / math.log(5), INFERNO), valid),
    }
    for pane, (colours, where) in expected.items():
        tolerance = 1 if pane in ("truth", "prediction") else 0
        difference = abs(picture(page, pane, scene) - colours)[where]
        assert difference.max() <= tolerance, pane


def right_or_wrong(scene):
    """Returns the colours of the error pane at valid pixels."""
    is_right = scene.predictions[0].classes == scene.truth
    return np.where(is_right[..., None], style.CORRECT, style.WRONG)


def test_ignored_pixels_are_a_checkerboard(page):
    scene = made_up_scene(has_photo=False)
    scene.show(page)
    set_state(page, panes=["truth", "error", "nll"])
    for pane in ("truth", "error", "nll"):
        colours = picture(page, pane, scene)
        ignored = {tuple(map(int, colour)) for colour in colours[scene.truth < 0]}
        assert ignored == CHECKERS
    # Without a photo classes are opaque.
    valid = scene.truth >= 0
    expected = scene.colours[scene.truth[valid]]
    assert (picture(page, "truth", scene)[valid] == expected).all()


def test_colour_maps_of_the_page_are_those_of_the_pictures(page):
    tables = page.evaluate(
        """async () => {
          const {INFERNO, VIRIDIS} = await import("/static/viewer/colormaps.js");
          return [[...INFERNO], [...VIRIDIS]];
        }"""
    )
    assert tables[0] == INFERNO.ravel().tolist()
    assert tables[1] == VIRIDIS.ravel().tolist()


def test_the_top_of_the_nll_is_the_99th_percentile_on_request(page):
    scene = made_up_scene(seed=3)
    scene.show(page)
    page.get_by_label("NLL up to").select_option("auto")
    settle(page)
    (prediction,) = scene.predictions
    valid = scene.truth >= 0
    top = np.percentile(prediction.nll[valid].astype(np.float64), 99)
    expected = paint(prediction.nll / top, INFERNO)[valid]
    difference = abs(picture(page, "nll", scene)[valid] - expected.astype(int))
    # A value halfway between two colours may fall on either side.
    assert (difference.max(axis=1) > 0).sum() <= 1
    assert f"{top:.3f}"[:4] in page.locator("[data-pane=nll] .viewer-legend").inner_text()


def test_errors_by_kind_tell_boundaries_from_confusion(page):
    scene = made_up_scene(num_classes=3, has_photo=False)
    scene.show(page)
    page.get_by_label("Errors").select_option("kinds")
    page.get_by_label("Boundary px").fill("2")
    page.get_by_label("Boundary px").press("Enter")
    settle(page)
    predicted = scene.predictions[0].classes
    padded = np.pad(scene.truth, 2, mode="edge")
    height, width = scene.truth.shape
    near = np.zeros((height, width), dtype=bool)
    for down in range(5):
        for right in range(5):
            near |= padded[down : down + height, right : right + width] != scene.truth
    # A pixel beyond the edge repeats one that is as near.
    colours = np.where(near[..., None], style.WRONG, scene.colours[predicted])
    colours = np.where((scene.truth == predicted)[..., None], style.CORRECT, colours)
    valid = scene.truth >= 0
    assert (picture(page, "error", scene)[valid] == colours[valid]).all()
    assert near[valid].any()
    assert not near[valid].all()


def test_an_isolated_class_has_hits_misses_and_false_alarms(page):
    scene = made_up_scene(num_classes=3, has_photo=False)
    scene.show(page)
    set_state(page, isolated=1)
    colours = picture(page, "error", scene)
    predicted = scene.predictions[0].classes
    is_true, is_predicted = scene.truth == 1, predicted == 1
    assert (colours[is_true & is_predicted] == style.HIT).all()
    assert (colours[is_true & ~is_predicted] == style.WRONG).all()
    assert (colours[~is_true & is_predicted & (scene.truth >= 0)] == style.FALSE_ALARM).all()
    # The truth shows this class alone.
    truth = picture(page, "truth", scene)
    valid = scene.truth >= 0
    full = scene.colours[np.where(valid, scene.truth, 0)]
    assert (lit(truth[valid], full[valid]) == is_true[valid]).all()
    # A class that a row points at dims the others lightly, and no more.
    set_state(page, isolated=None, highlighted=2)
    truth = picture(page, "truth", scene)
    expected = dimmed(full, np.where(scene.truth == 2, 0, 1))
    assert abs(truth - expected)[valid].max() <= 1


def test_thresholds_dim_the_same_pixels_in_all_panes(page):
    scene = made_up_scene(has_photo=False)
    scene.show(page)
    (prediction,) = scene.predictions
    set_state(page, panes=["prediction", "nll", "confidence"], minNll=0.5)
    wanted = prediction.nll.astype(np.float64) >= 0.5
    valid = scene.truth >= 0
    full = {
        "prediction": scene.colours[prediction.classes],
        "nll": paint(prediction.nll / math.log(scene.num_classes), INFERNO),
        "confidence": paint(prediction.confidence, VIRIDIS),
    }
    for pane, colours in full.items():
        assert (lit(picture(page, pane, scene)[valid], colours[valid]) == wanted[valid]).all(), pane
    page.get_by_label("Confidence up to").fill("0.6")
    settle(page)
    wanted &= prediction.confidence.astype(np.float64) <= 0.6
    assert (lit(picture(page, "nll", scene)[valid], full["nll"][valid]) == wanted[valid]).all()
    expect(page.locator(".viewer-lit")).to_have_text(re.compile(f"^{wanted.sum()} pixels are lit"))
    page.get_by_role("button", name="Light all").click()
    assert state(page, "minNll") == 0
    assert state(page, "maxConfidence") == 1


def test_a_cell_of_the_matrix_lights_exactly_its_pixels(page):
    scene = made_up_scene(num_classes=3, has_photo=False)
    scene.show(page)
    predicted = scene.predictions[0].classes
    set_state(page, cell={"truth": 2, "predicted": 0})
    wanted = (scene.truth == 2) & (predicted == 0)
    valid = scene.truth >= 0
    for pane, full in (
        ("truth", scene.colours[np.where(valid, scene.truth, 0)]),
        ("prediction", scene.colours[predicted]),
    ):
        assert (lit(picture(page, pane, scene)[valid], full[valid]) == wanted[valid]).all(), pane
    text = page.locator(".viewer-lit")
    text.wait_for()
    assert text.inner_text().startswith(
        f"{wanted.sum()} pixels are lit: truth class 2 and prediction class 0."
    )
    page.keyboard.press("Escape")
    assert state(page, "cell") is None


def test_zoom_keeps_the_pixel_under_the_pointer(page):
    scene = made_up_scene(height=48, width=96)
    scene.show(page)
    box = stage_box(page, "[data-pane=truth]")
    x, y = box["x"] + 0.3 * box["width"], box["y"] + 0.6 * box["height"]
    page.mouse.move(x, y)
    before = state(page, "hover")
    assert state(page, "camera") is None
    page.mouse.wheel(0, -700)
    expect_state(page, "camera", lambda camera: camera is not None)
    settle(page)
    page.mouse.move(x, y)
    assert state(page, "hover") == before
    zoomed = state(page, "camera")
    assert zoomed["scale"] > 2 * box["width"] / 96
    # The canvas shows the pixels that the camera says.
    canvas = painted(page, "error")
    colours = at_centres(canvas, scene, zoomed["scale"], (zoomed["x"], zoomed["y"]))
    expected = right_or_wrong(scene)
    visible = (colours[..., 0] >= 0) & (scene.truth >= 0)
    assert visible.any()
    assert (colours[visible] == expected[visible]).all()
    # A drag takes the pixel along.
    page.mouse.down()
    page.mouse.move(x + 40, y - 25, steps=4)
    page.mouse.up()
    assert state(page, "hover") == before
    dragged = state(page, "camera")
    assert dragged["x"] == pytest.approx(zoomed["x"] - 40 / zoomed["scale"], abs=0.2)
    page.mouse.dblclick(x + 40, y - 25)
    assert state(page, "camera")["scale"] == pytest.approx(min(2 * zoomed["scale"], 64))
    page.keyboard.press("0")
    assert state(page, "camera") is None


def test_two_fingers_zoom_at_their_centre(page):
    scene = made_up_scene(height=48, width=96)
    scene.show(page)
    box = stage_box(page, "[data-pane=photo]")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)

    def touch(kind, distance):
        points = [{"x": x - distance, "y": y, "id": 0}, {"x": x + distance, "y": y, "id": 1}]
        arguments = {"type": kind, "touchPoints": points if kind != "touchEnd" else []}
        session.send("Input.dispatchTouchEvent", arguments)

    touch("touchStart", 20)
    for distance in (30, 40, 60):
        touch("touchMove", distance)
    touch("touchEnd", 60)
    expect_state(page, "camera", lambda camera: camera is not None)
    settle(page)
    camera = state(page, "camera")
    assert camera["scale"] == pytest.approx(3 * box["width"] / 96, rel=0.05)
    assert camera["x"] == pytest.approx(48, abs=1)


def test_the_tooltip_has_the_values_of_numpy_at_ten_pixels(page):
    scene = made_up_scene(predictions=2, num_classes=6, seed=5)
    scene.show(page)
    set_state(page, panes=["prediction"])
    box = stage_box(page, "[data-pane=prediction]")
    scale = min(box["width"] / scene.width, box["height"] / scene.height)
    rng = np.random.default_rng(1)
    pixels = [*zip(rng.integers(0, 24, 9), rng.integers(0, 32, 9), strict=True)]
    pixels.append(tuple(np.argwhere(scene.truth < 0)[0]))
    for row, column in pixels:
        page.mouse.move(
            box["x"] + box["width"] / 2 + (column + 0.5 - scene.width / 2) * scale,
            box["y"] + box["height"] / 2 + (row + 0.5 - scene.height / 2) * scale,
        )
        assert state(page, "hover") == {"x": column, "y": row}
        text = page.locator(".viewer-tooltip").inner_text().replace("\n", " ")
        assert f"Row {row}, column {column}" in text
        label = scene.truth[row, column]
        assert f"Truth {'ignored' if label < 0 else f'class {label}'}" in text
        for each in scene.predictions:
            assert each.name in text
            for k, probability in zip(
                each.top_classes[:, row, column],
                each.top_probabilities[:, row, column],
                strict=True,
            ):
                assert f"class {k} {100 * float(probability):.1f} %" in text
            if label >= 0:
                assert f"NLL {digits(each.nll[row, column])} nats" in text
                verdict = "right" if each.classes[row, column] == label else "wrong"
                assert f"Prediction class {each.classes[row, column]} {verdict}" in text
            assert f"confidence {digits(each.confidence[row, column])}" in text
            assert f"entropy {digits(each.entropy[row, column])} nats" in text


def digits(value):
    """Four significant digits, as the page writes them."""
    value = float(value)
    if value != 0 and abs(value) < 0.001:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{float(f'{value:.4g}'):.4g}"


def test_the_divider_shows_one_pane_on_each_side(page):
    scene = made_up_scene(has_photo=False)
    scene.show(page)
    alone = {}
    for pane in ("truth", "error"):
        set_state(page, panes=[pane])
        alone[pane] = painted(page, pane)
    page.get_by_role("button", name="Compare two").click()
    page.get_by_label("Left pane").select_option("truth")
    page.get_by_label("Right pane").select_option("error")
    divider = page.get_by_role("slider", name="Divider between Truth and Error")
    for at in (0.5, 0.8, 0.1, 0.0, 1.0):
        divider.fill(f"{at}")
        settle(page)
        both = painted(page, "truth error")
        height = min(len(both), len(alone["truth"]))
        width = both.shape[1]
        cut = round(width * at)
        assert alone["truth"].shape == both.shape, "the same place for one pane and for two"
        assert (both[:height, :cut] == alone["truth"][:height, :cut]).all()
        assert (both[:height, cut:] == alone["error"][:height, cut:]).all()
    # The line itself can be dragged, and keys move it.
    set_state(page, slider={"left": "truth", "right": "error", "at": 0.5})
    box = stage_box(page, "")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert state(page, "slider")["at"] == pytest.approx(0.25, abs=0.01)
    assert state(page, "camera") is None
    page.keyboard.press(".")
    assert state(page, "slider")["at"] == pytest.approx(0.30, abs=0.01)
    page.keyboard.press("s")
    assert state(page, "slider") is None


def flood_regions(scene, is_found, key):
    """Returns the connected pixels of equal keys, the greatest summed NLL or number first."""
    (prediction,) = scene.predictions
    rest = {(row, column) for row, column in np.argwhere(is_found)}
    regions = []
    while rest:
        first = rest.pop()
        region, border = [first], [first]
        while border:
            row, column = border.pop()
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    near = (row + down, column + right)
                    if near in rest and key[near] == key[first]:
                        rest.remove(near)
                        region.append(near)
                        border.append(near)
        regions.append(region)
    value = np.ones(scene.truth.shape) if prediction.nll is None else prediction.nll
    return sorted(regions, key=lambda region: -sum(float(value[pixel]) for pixel in region))


def region_facts(page, count):
    """Waits until the list has as many regions, and returns their texts."""
    rows = page.locator(".viewer-region-facts")
    expect(rows).to_have_count(count)
    return rows.all_inner_texts()


def grow(mask, distance):
    """Returns the pixels at most `distance` rows and columns from those of a mask."""
    padded = np.pad(mask, distance)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * distance + 1,) * 2)
    return windows.any(axis=(2, 3))


def test_worst_regions_are_those_of_a_flood_fill(page):
    scene = made_up_scene(height=40, width=60, num_classes=3, seed=2)
    scene.show(page)
    (prediction,) = scene.predictions
    predicted = prediction.classes.astype(int)
    is_wrong = (scene.truth >= 0) & (scene.truth != predicted)
    regions = flood_regions(scene, is_wrong, 3 * scene.truth + predicted)
    rows = page.locator(".viewer-region")
    facts = region_facts(page, 20)
    assert f"of {len(regions)} regions" in page.locator(".viewer-regions-summary").inner_text()
    total = prediction.nll.astype(np.float64).sum()
    for fact, region in zip(facts, regions, strict=False):
        nll = sum(float(prediction.nll[pixel]) for pixel in region)
        share = f"{100 * nll / total:.1f} % of the loss"
        assert fact == f"{len(region)} px · {digits(nll)} nats · {share}"
    # Choosing one brings the panes there.
    page.keyboard.press("n")
    region = np.array(regions[0])
    camera = state(page, "camera")
    settle(page)
    assert rows.first.get_attribute("aria-current") == "true"
    if camera is not None:
        top, left = region.min(axis=0)
        bottom, right = region.max(axis=0) + 1
        assert camera["x"] == (left + right) / 2
        assert camera["y"] == (top + bottom) / 2
    # A white line is two device pixels from the region, and a black one three.
    set_state(page, camera=None, panes=["error"])
    canvas = painted(page, "error")
    height, width = canvas.shape[:2]
    scale = min(width / scene.width, height / scene.height)
    shown_rows = np.floor((np.arange(height) + 0.5 - height / 2) / scale + scene.height / 2)
    shown_columns = np.floor((np.arange(width) + 0.5 - width / 2) / scale + scene.width / 2)
    mask = np.zeros(scene.truth.shape, dtype=bool)
    mask[tuple(region.T)] = True
    visible = np.ix_(
        (shown_rows >= 0) & (shown_rows < scene.height),
        (shown_columns >= 0) & (shown_columns < scene.width),
    )
    nearest = np.ix_(
        shown_rows.clip(0, scene.height - 1).astype(int),
        shown_columns.clip(0, scene.width - 1).astype(int),
    )
    within = np.zeros((height, width), dtype=bool)
    within[visible] = mask[nearest][visible]
    grown = [grow(within, distance) for distance in (1, 2, 3)]
    black, white = grown[2] & ~grown[1], grown[1] & ~grown[0]
    assert (canvas[black] == (0, 0, 0, 255)).all()
    assert (canvas[white] == (255, 255, 255, 255)).all()
    assert not (canvas[~black] == (0, 0, 0, 255)).all(axis=1).any()
    rows.nth(1).focus()
    page.keyboard.press("Enter")
    assert rows.nth(1).get_attribute("aria-current") == "true"
    page.keyboard.press("p")
    assert rows.first.get_attribute("aria-current") == "true"


def test_regions_of_high_nll_and_those_without_logits(page):
    scene = made_up_scene(height=30, width=40, num_classes=4, seed=4)
    scene.show(page)
    (prediction,) = scene.predictions
    page.get_by_label("Regions of").select_option("nll")
    set_state(page, minNll=2.5)
    everywhere = np.zeros(scene.truth.shape, dtype=int)
    regions = flood_regions(scene, prediction.nll.astype(np.float64) >= 2.5, everywhere)
    for fact, region in zip(region_facts(page, min(20, len(regions))), regions, strict=False):
        nll = sum(float(prediction.nll[pixel]) for pixel in region)
        assert fact.startswith(f"{len(region)} px · {digits(nll)} nats · ")
    # Without logits it is the number of pixels that counts.
    predicted = prediction.classes.astype(int)
    is_wrong = (scene.truth >= 0) & (scene.truth != predicted)
    scene = Scene(4, scene.truth, [Prediction("map.png", prediction.classes)])
    scene.show(page)
    regions = flood_regions(scene, is_wrong, 4 * scene.truth + predicted)
    facts = region_facts(page, 20)
    for fact, region in zip(facts, regions, strict=False):
        share = f"{100 * len(region) / is_wrong.sum():.1f} % of the errors"
        assert fact == f"{len(region)} px · {share}"


def test_two_predictions_show_which_is_better_where(page):
    scene = made_up_scene(predictions=2, has_photo=False)
    scene.show(page)
    set_state(page, panes=["better", "other"])
    first, second = scene.predictions
    valid = scene.truth >= 0
    table = np.array(
        page.evaluate(
            """async () =>
              [...(await import("/static/viewer/colours.js")).DIVERGING]"""
        )
    ).reshape(256, 3)
    assert table[0].tolist() == [0, 114, 178]
    assert table[255].tolist() == [213, 94, 0]
    gain = first.nll.astype(np.float64) - second.nll.astype(np.float64)
    index = np.clip(127.5 + gain * 127.5 / math.log(scene.num_classes), 0, 255)
    expected = table[np.floor(index + 0.5).astype(int)]
    assert (picture(page, "better", scene)[valid] == expected[valid]).all()
    assert (picture(page, "other", scene) == scene.colours[second.classes]).all()
    page.keyboard.press("x")
    assert state(page, "shown") == 1
    settle(page)
    assert (picture(page, "other", scene) == scene.colours[first.classes]).all()
    # Label maps have no NLL: then it is which of them is right.
    maps = [Prediction(f"{i}.png", scene.predictions[i].classes) for i in range(2)]
    Scene(scene.num_classes, scene.truth, maps).show(page)
    is_first = (first.classes == scene.truth) & (second.classes != scene.truth)
    is_second = (first.classes != scene.truth) & (second.classes == scene.truth)
    colours = picture(page, "better", scene)
    assert (colours[is_first] == table[0]).all()
    assert (colours[is_second] == table[255]).all()
    assert (colours[valid & ~is_first & ~is_second] == table[128]).all()


def test_panes_without_data_say_why(page):
    scene = made_up_scene()
    label_map = Prediction("map.png", scene.predictions[0].classes.astype(np.int16))
    Scene(scene.num_classes, None, [label_map]).show(page)
    reasons = {
        "Photo": "No photo was given.",
        "Truth": "No truth was given.",
        "Error": "No truth was given.",
        "NLL": "No truth was given.",
        "Confidence": "It needs logits, not only a label map.",
    }
    for name, reason in reasons.items():
        toggle = page.locator(".viewer-toggles button").filter(has_text=name)
        assert toggle.get_attribute("aria-disabled") == "true"
        assert toggle.get_attribute("title") == reason
        toggle.press("Enter")
        assert (
            page.locator("[aria-live=polite].visually-hidden").inner_text() == f"{name}: {reason}"
        )
    assert page.locator(".viewer-pane").count() == 1
    assert page.locator(".viewer-regions").is_hidden()


def test_the_keyboard_alone_reads_pixels_and_moves(page):
    scene = made_up_scene()
    scene.show(page)
    page.keyboard.press("1")
    assert "photo" not in state(page, "panes")
    page.keyboard.press("e")
    assert "error" not in state(page, "panes")
    page.keyboard.press("]")
    assert state(page, "opacity") == 0.6
    page.locator("[data-pane=truth] .viewer-stage").focus()
    page.keyboard.press("+")
    page.keyboard.press("+")
    camera = state(page, "camera")
    page.keyboard.press("ArrowRight")
    assert state(page, "camera")["x"] > camera["x"]
    page.keyboard.press("Enter")
    start = state(page, "hover")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowUp")
    x, y = start["x"] - 1, max(start["y"] + 1 - 10, 0)
    assert state(page, "hover") == {"x": x, "y": y}
    spoken = page.locator("#viewer > [aria-live=polite]")
    expect(spoken).to_have_text(re.compile(f"^Row {y}, column {x}; truth "))
    page.keyboard.press("Escape")
    assert state(page, "hover") is None
    page.keyboard.press("f")
    assert state(page, "panes") == ["truth"]
    page.keyboard.press("f")
    assert len(state(page, "panes")) == 5
    label = page.locator("[data-pane=truth] canvas").get_attribute("aria-label")
    share = 100 * (scene.truth < 0).mean()
    assert f"ignored {share:.1f} %" in label


def test_shortcuts_do_not_fire_while_someone_types(page):
    scene = made_up_scene()
    scene.show(page)
    panes = state(page, "panes")
    page.get_by_label("Errors").select_option("kinds")
    page.get_by_label("Boundary px").press("5")
    page.get_by_label("Errors").press("e")
    page.evaluate(
        "() => { const area = document.createElement('textarea');"
        " document.body.append(area); area.focus(); }"
    )
    page.keyboard.type("e15lnp +-s ")
    assert state(page, "panes") == panes
    assert state(page, "slider") is None
    # Held, the space bar shows the photo everywhere; a slider is no text.
    page.get_by_label("Opacity").focus()
    page.keyboard.down(" ")
    settle(page)
    assert (picture(page, "error", scene) == scene.photo).all()
    page.keyboard.up(" ")
    settle(page)
    assert (picture(page, "error", scene) != scene.photo).any()
    shortcuts = page.evaluate("async () => (await import('/static/viewer/keys.js')).SHORTCUTS")
    keys = [key for shortcut in shortcuts for key in shortcut["keys"]]
    assert len(set(keys)) == len(keys)
    assert all(shortcut["does"] for shortcut in shortcuts)


def test_saved_pictures_have_a_pixel_for_each_of_the_image(page):
    scene = made_up_scene(has_photo=False)
    scene.show(page)
    set_state(page, camera={"scale": 40, "x": 3, "y": 3})
    (prediction,) = scene.predictions
    valid = scene.truth >= 0
    expected = {
        "Truth": scene.colours[np.where(valid, scene.truth, 0)],
        "Prediction": scene.colours[prediction.classes],
        "NLL": paint(prediction.nll / math.log(scene.num_classes), INFERNO),
    }
    names = {
        "Truth": "truth.png",
        "Prediction": "network-0-prediction.png",
        "NLL": "network-0-nll.png",
    }
    for title, colours in expected.items():
        with page.expect_download() as download:
            page.get_by_role("button", name=f"{title}: Save as PNG").click()
        assert download.value.suggested_filename == names[title]
        with open(download.value.path(), "rb") as file:
            saved = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
        assert saved.shape == (scene.height, scene.width, 3)
        assert (saved[valid] == colours[valid]).all(), title


def test_a_picture_has_a_name_before_it_is_described(page):
    made_up_scene(predictions=2).show(page)
    names = page.evaluate(
        """() => {
          segLoss.store.set({ panes: ["other"] });
          const canvas = () => document.querySelector(".viewer-pane canvas[role=img]");
          return canvas().getAttribute("aria-label");
        }"""
    )
    assert names == "Other prediction: network-1.npy."


def test_panes_stack_on_a_narrow_page(page):
    page.set_viewport_size({"width": 360, "height": 740})
    scene = made_up_scene(predictions=2)
    scene.show(page)
    expect(page.locator(".viewer-pane")).to_have_count(7)
    boxes = [pane.bounding_box() for pane in page.locator(".viewer-pane").all()]
    assert len({box["x"] for box in boxes}) == 1
    assert all(box["width"] <= 360 for box in boxes)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="Compare two").click()
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_dense_screen_gets_all_of_its_pixels(browser, url):
    context = browser.new_context(
        viewport={"width": 800, "height": 600}, device_scale_factor=2, color_scheme="dark"
    )
    page = context.new_page()
    page.goto(url)
    scene = made_up_scene(has_photo=False)
    scene.show(page)
    canvas = painted(page, "error")
    assert canvas.shape[1] == 2 * stage_box(page, "[data-pane=error]")["width"]
    wrong = scene.predictions[0].classes != scene.truth
    valid = scene.truth >= 0
    expected = np.where(wrong[..., None], style.WRONG, style.CORRECT)
    assert (at_centres(canvas, scene)[valid] == expected[valid]).all()
    context.close()


def test_a_scene_of_another_size_is_shown_whole(page):
    made_up_scene().show(page)
    set_state(page, camera={"scale": 40, "x": 3, "y": 3}, hover={"x": 2, "y": 2})
    made_up_scene(seed=1).show(page)
    assert state(page, "camera") == {"scale": 40, "x": 3, "y": 3}
    # A link may have any camera: it is brought within bounds.
    set_state(page, camera={"scale": 900, "x": 1000, "y": -5})
    assert page.locator(".viewer-zoom-value").inner_text() == "6400 %"
    other = made_up_scene(height=10, width=50, has_photo=False)
    other.show(page)
    assert state(page, "camera") is None
    assert state(page, "hover") is None
    colours = picture(page, "prediction", other)
    assert (colours == other.colours[other.predictions[0].classes]).all()
