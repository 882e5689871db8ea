"""The worked example of docs/models.md: it learns in a shortened form, and the page quotes it."""

import csv
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import example
from tests.documents import ROOT

RESULTS = ROOT / "benchmarks" / "results"
PAGE = example.PAGE.read_text()


@dataclass(frozen=True)
class Run:
    """A shortened run of the example."""

    folder: Path
    timings: list[example.Timing]
    records: list[example.Record]
    before: dict[str, float]
    after: dict[str, float]


@pytest.fixture(scope="module")
def shortened(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("example")
    lines = example.commands(PAGE, shorten=True)
    timings = [example.run(line, folder) for line in lines]
    example.save_untrained(folder / "run" / "best.safetensors", folder / "untrained.safetensors")
    return Run(
        folder,
        timings,
        example.read_records(folder / "run" / "metrics.jsonl"),
        example.metrics_of("untrained.safetensors", "untrained", folder),
        example.metrics_of("run/best.safetensors", "predictions", folder),
    )


def test_the_training_leaves_the_loss_of_a_uniform_prediction(shortened):
    losses = [loss for _, loss in example.points(shortened.records, "train", "mean_nll")]
    held_out = [loss for _, loss in example.points(shortened.records, "val", "mean_nll")]
    assert losses[0] < 1.2 * math.log(19)
    assert losses[-1] < 0.75 * math.log(19)
    assert held_out[-1] < 0.75 * math.log(19)


def test_held_out_scenes_are_predicted_better_than_by_chance(shortened):
    assert shortened.before["mean_iu"] < 0.03  # one class everywhere
    assert shortened.after["mean_iu"] > 3 * shortened.before["mean_iu"]
    assert shortened.after["pixel_accuracy"] > shortened.before["pixel_accuracy"] + 0.1


def test_predict_and_train_agree_on_the_metrics(shortened):
    best = max(iu for _, iu in example.points(shortened.records, "val", "mean_iu"))
    assert shortened.after["mean_iu"] == pytest.approx(best, abs=1e-3)


def test_each_held_out_scene_has_a_label_map(shortened):
    for photo in shortened.folder.glob("scenes/JPEGImages/val_*.jpg"):
        with Image.open(shortened.folder / "predictions" / f"{photo.stem}.png") as picture:
            assert (picture.mode, picture.size) == ("P", (128, 64))


def test_the_benchmark_draws_the_scenes_and_the_curves(shortened, tmp_path):
    example.draw_scenes(shortened.folder, tmp_path / "scenes.png")
    with Image.open(tmp_path / "scenes.png") as picture:
        assert picture.size == (4 * 128 + 3 * 4, 3 * 64 + 2 * 4)
    drawing = ET.fromstring(example.draw_curves(shortened.records, 19))
    lines = [element for element in drawing.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 5
    num_logged = len(example.points(shortened.records, "train", "mean_nll"))
    assert len(lines[0].get("points").split()) == num_logged == 8


def test_the_report_has_times_metrics_and_classes(shortened):
    lines = example.report(
        shortened.timings,
        shortened.records,
        shortened.before,
        shortened.after,
        (shortened.folder / "scenes" / "class_names.txt").read_text().splitlines(),
    )
    text = "\n".join(lines)
    assert text.count("    seg-loss ") == 3
    assert text.count("| seg-loss train |") == 1
    assert f"| trained | {shortened.after['pixel_accuracy']:.3f} |" in text
    assert "| traffic light | " in text


def test_a_page_without_the_commands_is_an_error():
    with pytest.raises(ValueError, match=r"models.md: expected a block of commands"):
        example.commands("## The worked example\n\nNothing.\n")
    with pytest.raises(ValueError, match=r"models.md: expected '--scenes .*' in the commands"):
        example.commands("## The worked example\n\n```sh\nseg-loss\n```\n", shorten=True)


def test_a_page_without_a_row_of_the_results_is_an_error():
    page = "## The worked example\n\n| train | 1 |\n"
    assert example.with_rows(page, ["| train | 2 | 3 |"]).endswith("\n| train | 2 | 3 |\n")
    with pytest.raises(ValueError, match=r"models.md: expected one row 'all', got 0 of them"):
        example.with_rows(page, ["| all | 2 | 3 |"])


def committed_rows() -> list[dict[str, str]]:
    with (RESULTS / "example.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["kind"] == "val"]


def test_the_committed_result_is_at_least_a_mean_iu_of_a_half():
    assert float(committed_rows()[-1]["mean_iu"]) >= 0.5


def test_the_page_quotes_the_committed_results():
    text = (RESULTS / "example.md").read_text()
    assert re.findall(r"^    (seg-loss .*)$", text, re.MULTILINE) == example.commands(PAGE)
    names = ("seg-loss sample", "seg-loss train", "seg-loss predict", "all", "untrained", "trained")
    rows = re.findall(rf"^\| (?:{'|'.join(names)}) \|.*$", text, re.MULTILINE)
    assert len(rows) == len(names)
    assert example.with_rows(PAGE, rows) == PAGE


def test_the_pictures_of_the_page_are_small():
    for name in ("example.png", "example-curves.svg"):
        assert (ROOT / "docs" / name).stat().st_size < 100_000
        assert f"]({name})" in PAGE
