"""The published example of FCN and its published values; the files are not in the repository."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from app.formats import png
from app.images.palettes import PALETTES

DIRECTORY = Path(__file__).parents[3] / "shared" / "data" / "fcn-demo"

LOSS = {
    "valid": 0.9420592678484891,
    "none": 141040.40328593654,
    "full": 0.8445533130894404,
}
METRICS = {
    "pixel_accuracy": 0.8425141101426042,
    "mean_accuracy": 0.8454627806113827,
    "mean_iu": 0.7196156777147081,
    "frequency_weighted_iu": 0.7273739799737002,
}
IU = {0: 0.7772942512797062, 2: 0.6620824689401179, 15: 0.7194703129243007}
TRUTH = {0: 54389, 2: 34183, 15: 61143}
PREDICTED = {0: 66092, 2: 37122, 15: 46501}

needed = pytest.mark.skipif(not DIRECTORY.is_dir(), reason=f"{DIRECTORY} is not there")


LOSS_TOLERANCE = {np.float32: 2e-7, np.float64: 1e-13}
"""Relative. The example has only two different terms, those of right and of wrong pixels. The
rounding errors of its pixels are equal, and so do not average out."""


def logits(dtype: type = np.float32) -> npt.NDArray[np.floating]:
    """4.0 at the predicted class and 0 elsewhere, [1,21,H,W]."""
    predicted = png.read_label_map(
        (DIRECTORY / "output.png").read_bytes(),
        where="prediction",
        palette=PALETTES["voc"],
        max_pixels=1 << 20,
    ).indices
    classes = np.arange(21)[:, None, None]
    return np.where(predicted == classes, dtype(4), dtype(0))[None]


def assert_published_values(evaluation: dict, dtype: type) -> None:
    """Checks the JSON of `evaluate`: the loss within its tolerance, metrics to the last bits."""
    assert evaluation["valid_pixels"] == 149715
    assert evaluation["ignored_pixels"] == 17285
    assert evaluation["uniform_loss"] == 3.044522437723423
    assert evaluation["loss"] == pytest.approx(LOSS["valid"], rel=LOSS_TOLERANCE[dtype])
    metrics = evaluation["metrics"]
    assert {name: metrics[name] for name in METRICS} == pytest.approx(METRICS, rel=1e-15)
    assert metrics["num_classes_averaged"] == 3
    assert {index: metrics["iu"][index] for index in IU} == IU
    assert {
        index: row["pixels"] for index, row in enumerate(evaluation["per_class"]) if row["pixels"]
    } == TRUTH
    predicted = np.array(evaluation["confusion"]).sum(axis=0)
    assert {int(index): int(predicted[index]) for index in predicted.nonzero()[0]} == PREDICTED
    accuracy = METRICS["pixel_accuracy"]
    assert math.log(math.exp(4) + 20) - 4 * accuracy == pytest.approx(LOSS["valid"], rel=1e-15)
