"""The panels beside the pictures: their numbers are those of the JSON and of NumPy."""

import numpy as np
import pytest
import torch
from page_actions import answer, drop_and_wait, npy_file, png_file, wait_until, wait_until_settled
from scenes import IGNORED, other_logits, prediction_of, read_sample, scene_of, show

from seg_loss.metrics import confusion_matrix, fcn_metrics

pytestmark = pytest.mark.page

ROAD, SIDEWALK, TRAIN, BICYCLE = 0, 1, 16, 18


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return read_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def first(url, sample):
    return prediction_of(url, "first.npy", sample.logits, sample.labels)


@pytest.fixture(scope="module")
def second(url, sample):
    return prediction_of(url, "second.npy", other_logits(sample.logits), sample.labels)


@pytest.fixture
def panels(page, sample, first):
    """The page with one prediction."""
    show(page, scene_of(sample.labels, first))
    return page


def state(page, name):
    return page.evaluate(f"segLoss.store.state.{name}")


def set_state(page, changes):
    page.evaluate("(changes) => segLoss.store.set(changes)", changes)


def with_warning(prediction, sentence):
    return {**prediction, "answer": {**prediction["answer"], "warnings": [sentence]}}


def column(page, name, body="tbody:not([id])"):
    """The numbers that the cells of a column were written from; None where there is none."""
    cells = page.locator(f".classes {body} td[data-column={name}]")
    values = cells.evaluate_all("(cells) => cells.map((cell) => cell.dataset.value)")
    return [float(value) if value else None for value in values]


def names(page):
    return page.locator(".classes tbody:not([id]) .name").all_inner_texts()


def sort_by(page, name):
    page.locator(f".classes th[data-column={name}] button").click()


class TestClasses:
    def test_the_table_has_the_numbers_of_the_json(self, panels, first, sample):
        metrics, per_class = first["answer"]["metrics"], first["answer"]["per_class"]
        present = [index for index, row in enumerate(per_class) if row["pixels"]]
        assert TRAIN not in present
        assert column(panels, "iu") == [metrics["iu"][index] for index in present]
        assert column(panels, "accuracy") == [metrics["accuracy"][index] for index in present]
        assert column(panels, "nll") == [per_class[index]["mean_nll"] for index in present]
        pixels = [int(np.count_nonzero(sample.labels == index)) for index in present]
        assert column(panels, "pixels") == pixels
        row = panels.locator(f".classes tr[data-class='{SIDEWALK}']")
        expected = f"{100 * metrics['iu'][SIDEWALK]:.1f}"
        assert row.locator("td[data-column=iu]").inner_text() == expected

    def test_the_last_row_has_the_means(self, panels, first):
        metrics = first["answer"]["metrics"]
        assert column(panels, "iu", "tfoot") == [metrics["mean_iu"]]
        assert column(panels, "accuracy", "tfoot") == [metrics["mean_accuracy"]]
        assert column(panels, "nll", "tfoot") == pytest.approx([first["answer"]["loss"]])

    def test_a_press_on_a_head_sorts_and_another_reverses(self, panels):
        head = panels.locator(".classes th[data-column=iu]")
        sort_by(panels, "iu")
        values = column(panels, "iu")
        assert values == sorted(values)
        assert head.get_attribute("aria-sort") == "ascending"
        sort_by(panels, "iu")
        assert column(panels, "iu") == values[::-1]
        assert head.get_attribute("aria-sort") == "descending"
        sort_by(panels, "class")
        assert names(panels)[:2] == ["road", "sidewalk"]
        assert head.get_attribute("aria-sort") is None

    def test_absent_classes_are_folded_away(self, panels):
        train = panels.locator(f".classes tr[data-class='{TRAIN}']")
        fold = panels.get_by_role("button", name="absent class")
        assert not train.is_visible()
        fold.click()
        assert train.is_visible()
        assert fold.get_attribute("aria-expanded") == "true"

    def test_a_row_pointed_at_highlights_its_class(self, panels):
        panels.locator(f".classes tr[data-class='{SIDEWALK}']").hover()
        assert state(panels, "highlighted") == SIDEWALK
        panels.locator("#header h1").hover()
        assert state(panels, "highlighted") is None
        set_state(panels, {"highlighted": ROAD})
        assert "highlighted" in panels.locator(".classes tr[data-class='0']").get_attribute("class")

    def test_a_row_isolates_its_class_until_pressed_again(self, panels):
        row = panels.locator(f".classes tr[data-class='{SIDEWALK}']")
        row.click()
        assert state(panels, "isolated") == SIDEWALK
        assert row.locator("button").get_attribute("aria-pressed") == "true"
        row.click()
        assert state(panels, "isolated") is None

    def test_a_thousand_classes_are_drawn(self, page, url):
        random = np.random.default_rng(0)
        labels = random.integers(0, 1000, (1, 20, 30)).astype(np.int16)
        logits = random.normal(size=(1, 1000, 20, 30)).astype(np.float32)
        prediction = prediction_of(url, "many.npy", logits, labels)
        show(page, scene_of(labels, prediction, num_classes=1000))
        rows = page.locator(".classes tbody:not([id]) tr")
        assert rows.count() == 200
        page.get_by_role("button", name="more classes").click()
        valid = labels.ravel() != IGNORED
        present = {*labels.ravel()[valid], *np.array(prediction["classes"])[valid]}
        assert rows.count() == len(present) > 200
        assert not page.locator(".matrix").is_visible()
        assert page.locator(".frequent li").count() == 10


class TestConfusions:
    def test_the_list_has_the_most_frequent_ones(self, panels, first, sample):
        confusion = np.array(first["answer"]["confusion"])
        np.fill_diagonal(confusion, 0)
        rows = panels.locator(".frequent button").evaluate_all(
            "(rows) => rows.map(({ dataset }) => [+dataset.truth, +dataset.predicted])"
        )
        counts = [confusion[truth, predicted] for truth, predicted in rows]
        assert counts == sorted(confusion[confusion > 0], reverse=True)[:10]
        predicted = np.array(first["classes"]).reshape(sample.labels.shape[1:])
        (truth, wrong), count = rows[0], counts[0]
        assert np.count_nonzero((sample.labels[0] == truth) & (predicted == wrong)) == count
        panels.locator(".frequent button").first.click()
        assert state(panels, "cell") == {"truth": truth, "predicted": wrong}

    def test_the_keyboard_moves_in_the_matrix_and_chooses(self, panels, first):
        board = panels.get_by_role("application", name="Confusion matrix")
        board.focus()
        for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowLeft"):
            board.press(key)
        line = panels.locator(".cell-line").inner_text()
        count = first["answer"]["confusion"][SIDEWALK][ROAD]
        assert line.startswith(f"sidewalk predicted as road: {count} pixels")
        board.press("Enter")
        assert state(panels, "cell") == {"truth": SIDEWALK, "predicted": ROAD}
        board.press("Enter")
        assert state(panels, "cell") is None
        board.press("End")
        board.press("Home")
        assert panels.locator(".cell-line").inner_text() == line

    def test_a_cell_pointed_at_is_described_and_a_click_chooses_it(self, panels, first):
        set_state(panels, {"isolated": 3})
        canvas = panels.locator(".board canvas")
        canvas.scroll_into_view_if_needed()
        side = canvas.bounding_box()["width"]
        num_present = sum(row["pixels"] > 0 for row in first["answer"]["per_class"])
        middle_of_last = side - 0.4 * side / num_present
        canvas.hover(position={"x": middle_of_last, "y": middle_of_last})
        count = first["answer"]["confusion"][18][18]
        line = panels.locator(".cell-line").inner_text()
        assert line.startswith(f"bicycle, predicted correctly: {count} pixels")
        canvas.click(position={"x": middle_of_last, "y": middle_of_last})
        assert state(panels, "cell") == {"truth": 18, "predicted": 18}
        assert state(panels, "isolated") is None

    def test_its_colours_are_by_pixels_or_by_share_of_the_row(self, panels):
        def colour():
            return panels.evaluate("document.querySelector('.board canvas').toDataURL()")

        by_pixels = colour()
        panels.get_by_role("button", name="Share of row").click()
        assert colour() != by_pixels


class TestLoss:
    def test_the_headline_has_the_numbers_of_the_json(self, panels, first):
        metrics = first["answer"]["metrics"]
        tiles = panels.locator(".tile .value").all_inner_texts()
        assert tiles == [
            f"{100 * metrics['mean_iu']:.1f} %",
            f"{100 * metrics['pixel_accuracy']:.1f} %",
            f"{first['answer']['loss']:.4g}",
        ]

    def test_the_panel_has_loss_divisor_chance_and_advice(self, panels, first):
        text = panels.locator(".loss").inner_text()
        valid, ignored = first["answer"]["valid_pixels"], first["answer"]["ignored_pixels"]
        assert f"{valid:,}, the number of valid pixels" in text
        assert f"{valid:,} valid, {ignored:,} ignored" in text
        assert first["answer"]["diagnosis"]["advice"] in text
        assert "ln C at 2.944" in panels.locator(".loss svg").get_attribute("aria-label")

    def test_a_sum_is_compared_with_ln_c_by_its_mean(self, page, url, sample, first):
        sums = prediction_of(url, "sum.npy", sample.logits, sample.labels, normalization="none")
        show(page, scene_of(sample.labels, sums))
        text = page.locator(".loss").inner_text()
        assert "nothing: the loss is a sum" in text
        assert f"{first['answer']['loss']:.4g}" in text

    def test_a_label_map_has_metrics_and_no_loss(self, page, sample, first):
        missing = dict.fromkeys(("loss", "divisor", "diagnosis", "calibration"))
        per_class = [{**row, "mean_nll": None} for row in first["answer"]["per_class"]]
        answer = {**first["answer"], **missing, "per_class": per_class, "per_image": None}
        maps = dict.fromkeys(("nll", "confidence", "entropy", "topClasses", "topProbabilities"))
        show(page, scene_of(sample.labels, {**first, **maps, "answer": answer}))
        assert "A label map has no loss" in page.locator(".loss").inner_text()
        assert page.locator(".tile .value").last.inner_text() == "–"
        assert page.locator(".classes [data-column=nll]").count() == 0
        assert not page.locator(".reliability").is_visible()
        assert len(column(page, "iu")) == 18

    def test_the_reliability_table_has_the_bins_of_the_json(self, panels, first):
        calibration = first["answer"]["calibration"]
        filled = [row for row in calibration["bins"] if row["pixels"]]
        panels.get_by_text("As a table").click()
        rows = panels.locator(".reliability tbody tr").all_inner_texts()
        assert len(rows) == len(filled)
        assert f"{filled[-1]['pixels']:,}" in rows[-1]
        assert f"{100 * filled[-1]['accuracy']:.1f} %" in rows[-1]
        assert f"{100 * calibration['ece']:.1f} %" in panels.locator(".reliability p").inner_text()

    def test_each_image_of_a_batch_has_its_loss(self, page, url, sample):
        logits = np.concatenate([sample.logits, other_logits(sample.logits)])
        labels = np.concatenate([sample.labels, sample.labels])
        prediction = prediction_of(url, "batch.npy", logits, labels)
        show(page, scene_of(labels, prediction))
        losses = [image["loss"] for image in prediction["answer"]["per_image"]]
        assert page.locator(".images li").all_inner_texts() == [
            f"Image 2\n{losses[1]:.4g}",
            f"Image 1\n{losses[0]:.4g}",
        ]
        assert "batch of 2 images" in page.locator(".headline").inner_text()


class TestTwoPredictions:
    @pytest.fixture
    def panels(self, page, sample, first, second):
        show(page, scene_of(sample.labels, first, second))
        return page

    def test_the_table_has_both_ius_and_their_difference(self, panels, sample, first, second):
        by_class = []
        for prediction in (first, second):
            confusion = confusion_matrix_of(sample.labels, prediction)
            by_class.append(fcn_metrics(confusion).iu)
        shown = panels.locator(".classes tbody:not([id]) tr").evaluate_all(
            "(rows) => rows.map(({ dataset }) => +dataset.class)"
        )
        first_ius, second_ius = ([ius[index] for index in shown] for ius in by_class)
        assert column(panels, "iu") == pytest.approx(first_ius)
        assert column(panels, "otherIu") == pytest.approx(second_ius)
        differences = [
            None if None in pair else pair[1] - pair[0]
            for pair in zip(first_ius, second_ius, strict=True)
        ]
        assert column(panels, "change") == pytest.approx(differences)

    def test_the_choice_shows_the_numbers_of_the_other(self, panels, first, second):
        panels.locator(".headline .choice button").nth(1).click()
        assert state(panels, "shown") == 1
        mean_iu = second["answer"]["metrics"]["mean_iu"]
        assert panels.locator(".tile .value").first.inner_text() == f"{100 * mean_iu:.1f} %"
        change = 100 * (mean_iu - first["answer"]["metrics"]["mean_iu"])
        assert f"−{-change:.1f} vs A" in panels.locator(".tile").first.inner_text()
        assert panels.evaluate("document.activeElement.textContent").startswith("B")


class TestWarnings:
    SENTENCE = "labels: these look like ids. Use label_space=cityscapes_ids, or label_space=raw."

    @pytest.fixture
    def panels(self, page, sample, first):
        show(page, scene_of(sample.labels, with_warning(first, self.SENTENCE)))
        return page

    def test_a_fix_sends_the_files_again_and_undo_takes_it_back(self, page, sample):
        labels = sample.labels[0]
        shifted = np.where(labels >= BICYCLE, 0, labels + 1)
        files = {"logits.npy": npy_file(sample.logits), "labels.png": png_file(shifted)}
        drop_and_wait(page, files)
        before = page.evaluate_handle("segLoss.store.state")
        page.locator(".warnings").get_by_role("button", name="Use label_space=ade_zero").click()
        wait_until_settled(page, before)
        assert state(page, "options") == {"label_space": "ade_zero"}
        assert answer(page)["metrics"]["pixel_accuracy"] > 0.8
        assert not page.locator(".warnings").is_visible()
        page.get_by_role("button", name="Undo").click()
        assert state(page, "options") == {}

    def test_an_option_in_force_is_no_fix(self, page, sample, first):
        set_state(page, {"options": {"label_space": "raw"}})
        show(page, scene_of(sample.labels, with_warning(first, self.SENTENCE)))
        fixes = page.locator(".warnings .fixes button").all_inner_texts()
        assert fixes == ["Use label_space=cityscapes_ids"]

    def test_markup_in_names_is_text(self, page, sample, first):
        markup = "<img src=x onerror=alert(1)>"
        scene = scene_of(sample.labels, with_warning({**first, "name": markup}, markup))
        scene["classNames"][ROAD] = markup
        show(page, scene)
        assert names(page)[0] == markup
        assert page.locator(".warnings li p").inner_text() == markup
        assert page.locator("#panels img").count() == 0


def test_what_the_service_read_is_listed(page, sample, first):
    values, counts = np.unique(sample.labels, return_counts=True)
    labels = {
        "file": "PNG",
        "mode": "P",
        "dtype": "uint8",
        "shape": [1, 48, 96],
        "read_as": "indices",
        "label_space": "raw",
        "values": np.stack([values, counts], axis=1).tolist(),
        "values_left_out": 0,
        "ignored_pixels": int(counts[-1]),
    }
    inputs = {"labels": labels, "logits": {"file": "NPY", "dtype": "float32", "layout": "nchw"}}
    answer = {**first["answer"], "inputs": inputs}
    show(page, scene_of(sample.labels, {**first, "answer": answer}))
    text = page.locator(".read").inner_text()
    assert "PNG, mode P, uint8, 1 × 48 × 96" in text
    assert "indices, label space raw" in text
    page.locator(".read summary").click()
    rows = page.locator(".read tbody tr").all_inner_texts()
    assert rows[1].split() == ["1", "sidewalk", f"{counts[1]:,}"]
    assert rows[-1].split() == ["255", f"{counts[-1]:,}"]


def test_the_help_sheet_returns_the_focus(page):
    button = page.get_by_role("button", name="Help")
    button.focus()
    page.keyboard.press("?")
    sheet = page.get_by_role("dialog", name="Help")
    assert "ln C" in sheet.inner_text()
    page.keyboard.press("Escape")
    assert not sheet.is_visible()
    assert button.evaluate("(button) => button === document.activeElement")


def test_the_theme_is_kept(page):
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "light"
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(theme) == "dark"
    page.reload()
    wait_until(page, "window.segLoss !== undefined")
    assert page.evaluate(theme) == "dark"
    assert page.get_by_role("button", name="Light").is_visible()


def test_no_panel_is_wider_than_a_phone(page, sample, first, second):
    page.set_viewport_size({"width": 360, "height": 800})
    show(page, scene_of(sample.labels, first, second))
    overflow = "document.querySelector('#panels').scrollWidth - innerWidth"
    assert page.evaluate(overflow) <= 0


def confusion_matrix_of(labels, prediction):
    predicted = torch.tensor(prediction["classes"]).reshape(labels.shape)
    return confusion_matrix(predicted, torch.from_numpy(labels), 19)
