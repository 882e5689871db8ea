"""Each state of the page in axe-core, and by keyboard alone."""

from pathlib import Path

import numpy as np
import pytest
from page_actions import answer, drop_and_wait, npy_file, png_file, wait_until, wait_until_settled
from scenes import other_logits, prediction_of, read_sample, scene_of, show

pytestmark = pytest.mark.page

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
FINDINGS = """async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"] });
  return violations.flatMap(({ id, help, nodes }) =>
    nodes.map(({ target, failureSummary }) => `${id} (${help}) at ${target}: ${failureSummary}`));
}"""


def findings(page):
    """What axe-core finds in the page as it is."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    # Colours that still change have no contrast yet.
    wait_until(page, "document.getAnimations().every((a) => a.playState === 'finished')")
    return page.evaluate(FINDINGS)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return read_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def one(url, sample):
    prediction = prediction_of(url, "first.npy", sample.logits, sample.labels)
    sentence = "labels: these look like ids. Use label_space=cityscapes_ids."
    inputs = {
        "labels": {
            "file": "PNG",
            "mode": "P",
            "dtype": "uint8",
            "shape": [1, 48, 96],
            "read_as": "indices",
            "label_space": "raw",
            "values": [[0, 1200], [255, 40]],
            "values_left_out": 0,
            "ignored_pixels": 40,
        }
    }
    return {
        **prediction,
        "answer": {**prediction["answer"], "warnings": [sentence], "inputs": inputs},
    }


@pytest.fixture(scope="module")
def other(url, sample):
    return prediction_of(url, "second.npy", other_logits(sample.logits), sample.labels)


THEMES = ("light", "dark")
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 360, "height": 800}}
themes = pytest.mark.parametrize("theme", THEMES)
sizes = pytest.mark.parametrize("size", SIZES)


@pytest.fixture
def themed(page, theme, size):
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size(SIZES[size])
    wait_until(page, "window.segLoss !== undefined")
    return page


def assert_no_sideways_scrolling(page):
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


@themes
@sizes
def test_axe_finds_nothing_in_the_empty_page_and_in_an_error(themed):
    assert findings(themed) == []
    themed.get_by_text("Options", exact=True).click()
    assert findings(themed) == []
    logits = np.zeros((1, 3, 8, 8), np.float32)
    drop_and_wait(
        themed,
        {"logits.npy": npy_file(logits), "labels.png": png_file(np.full((8, 8), 7, np.uint8))},
    )
    assert "got 7" in themed.locator("#status").inner_text()
    assert findings(themed) == []
    assert_no_sideways_scrolling(themed)


@themes
@sizes
def test_axe_finds_nothing_in_the_states_of_a_scene(themed, sample, one, other):
    show(themed, scene_of(sample.labels, one))
    for details in themed.locator("#panels summary").all():
        details.click()
    themed.get_by_role("button", name="absent class").click()
    assert findings(themed) == []
    assert_no_sideways_scrolling(themed)
    show(themed, scene_of(sample.labels, one, other))
    changes = "segLoss.store.set({ cell: { truth: 1, predicted: 0 }, hover: { x: 5, y: 5 } })"
    themed.evaluate(changes)
    assert findings(themed) == []
    assert_no_sideways_scrolling(themed)
    themed.evaluate("segLoss.store.set({ slider: { left: 'photo', right: 'error', at: 0.5 } })")
    themed.keyboard.press("?")
    assert findings(themed) == []


def test_sample_and_panels_work_by_keyboard_alone(page):
    def tab_to(selector):
        for _ in range(200):
            page.keyboard.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
        pytest.fail(f"{selector} is not reached")

    page.get_by_role("button", name="Sample").wait_for()
    tab_to("#inputs .toolbar button")
    page.keyboard.press("Enter")
    wait_until_settled(page)
    tab_to(".classes [data-column=iu] button")
    page.keyboard.press("Enter")
    assert page.locator(".classes th[data-column=iu]").get_attribute("aria-sort") == "ascending"
    tab_to(".classes tr[data-class='14'] button")
    assert page.evaluate("segLoss.store.state.highlighted") == 14
    page.keyboard.press("Enter")
    assert page.evaluate("segLoss.store.state.isolated") == 14
    tab_to(".board")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.evaluate("segLoss.store.state.cell") == {"truth": 0, "predicted": 1}
    assert answer(page)["confusion"][0][1] > 0
    tab_to(".viewer-lit button")
    page.keyboard.press("Space")
    assert page.evaluate("segLoss.store.state.cell") is None
