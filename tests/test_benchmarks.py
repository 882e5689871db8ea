"""What the benchmarks decide: which errors of the GPU's results fail a run."""

import csv
import math
from pathlib import Path

import pytest

from app.images.kinds import KINDS
from app.operations import PICTURE_BYTES
from benchmarks import cold_start, networks, pictures
from benchmarks.gpu_report import CASES, REFERENCE, Measurement, accuracy_failures

ROOT = Path(__file__).parents[1]
LOGITS = [case.name for case in CASES if case.stride is None and "float32" in case.name]
SCORES = [case.name for case in CASES if case.stride is not None]


def rows(name, ours, by_torch):
    return [
        Measurement(name, "loss_and_gradient", "gradient", gradient_error=ours, loss_error=0.0),
        Measurement(name, REFERENCE, "gradient", gradient_error=by_torch, loss_error=0.0),
    ]


def test_errors_up_to_torchs_largest_pass():
    measurements = [*rows(LOGITS[0], 2e-6, 1e-6), *rows(LOGITS[1], 1e-6, 3e-6)]
    assert not list(accuracy_failures(measurements))


@pytest.mark.parametrize("error", [4e-6, math.nan])
def test_an_error_above_torchs_largest_fails(error):
    measurements = [*rows(LOGITS[0], error, 1e-6), *rows(LOGITS[1], 1e-6, 3e-6)]
    (failure,) = accuracy_failures(measurements)
    assert failure.startswith("logits in float32: gradient error")


def test_logits_and_upsampled_scores_are_compared_apart():
    measurements = [*rows(LOGITS[0], 1e-6, 9e-6), *rows(SCORES[0], 4e-6, 1e-6)]
    (failure,) = accuracy_failures(measurements)
    assert failure.startswith("upsampled scores in float32")


def test_half_a_step_of_the_dtype_passes():
    assert not list(accuracy_failures(rows(LOGITS[0], 5e-8, 1e-9)))


def test_contenders_of_torch_are_no_results_of_ours():
    compiled = Measurement(
        LOGITS[0], "compiled forward+backward", "gradient", gradient_error=1.0, loss_error=1.0
    )
    assert not list(accuracy_failures([compiled, *rows(LOGITS[0], 1e-6, 1e-6)]))


def test_the_table_of_cold_starts_has_each_target():
    times = {"import torch": 0.5, **dict.fromkeys(cold_start.TARGETS, 0.25)}
    lines = cold_start.table(times)
    assert lines[2] == "| import torch | 0.5000 |  |"
    assert lines[3:] == [
        f"| {name} | 0.2500 | {target} |" for name, target in cold_start.TARGETS.items()
    ]


def test_a_cold_start_is_measured_in_a_process_of_its_own(tmp_path):
    times = cold_start.run("float32", str(tmp_path))
    assert len(times) == 4
    assert min(times) > 0
    assert list((tmp_path / "seg_loss").iterdir())


@pytest.mark.parametrize("name", networks.NAMES)
def test_the_curves_of_both_heads_of_a_network_are_compared(name):
    runs = {(name, head): networks.train(name, head, "thin", 60, 2) for head in networks.HEADS}
    fused, plain = runs.values()
    assert fused.losses[0] == pytest.approx(math.log(networks.CLASSES))
    assert fused.losses[1] != fused.losses[0]
    assert networks.curve_error(fused, plain) <= networks.TOLERANCE
    header, _, *rows = networks.step_table(runs)
    assert {row.count("|") for row in rows} == {header.count("|")}


def test_the_difference_of_two_curves_is_the_largest_of_a_step():
    fused = networks.Run([2.0, 1.0, 0.5], [1.0, 1.0, 1.0], 0)
    plain = networks.Run([2.0, 1.1, 0.5], [9.0, 3.0, 2.0], 0)
    assert networks.curve_error(fused, plain) == pytest.approx(0.1 / 1.1)
    assert plain.step_seconds == 2.0


@pytest.mark.parametrize("name", networks.NAMES)
def test_the_last_layers_of_a_network_have_one_loss(name):
    scores, losses = networks.last_layers(name, 40)
    values = [float(loss(scores)) for loss in losses.values()]
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_pictures_take_no_more_memory_than_the_service_reserves():
    with (ROOT / "benchmarks" / "results" / "pictures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["kind"], row["style"]) for row in rows} == {
        (kind, name) for kind in KINDS for name in pictures.STYLES
    }
    # Resampling copies labels, a prediction and a photo before they are drawn.
    copies = 8 + 8 + 3
    for row in rows:
        assert float(row["bytes a pixel"]) + copies <= PICTURE_BYTES, row
