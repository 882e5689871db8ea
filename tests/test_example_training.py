"""The worked example of docs/models.md in a shortened form, which `make test-example` runs."""

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import example

pytestmark = pytest.mark.example


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
    lines = example.commands(example.PAGE.read_text(), shorten=True)
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
