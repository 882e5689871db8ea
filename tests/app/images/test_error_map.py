"""The kinds of errors, on arrays that are small enough to check by eye."""

import numpy as np
import pytest

from app.images import error_map, render, style
from app.images.layers import Layers
from app.images.palettes import PALETTES
from app.images.style import Style

#              truth: class 1 from column 4 on   | ignored
LABELS = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 255]])
PREDICTION = np.array([[2, 0, 0, 1, 1, 0, 1, 3, 1, 2, 2]])
IGNORED = LABELS == 255


def kinds_of(**options):
    arguments = {"border_px": 2, "classes": None, **options}
    kinds = error_map.error_kinds(LABELS, PREDICTION, IGNORED, **arguments)
    return {kind.text: np.flatnonzero(kind.mask).tolist() for kind in kinds}


def test_errors_are_near_a_boundary_or_confusion():
    # The ignored pixel ends the region of class 1, so that column 9 is near a boundary.
    assert kinds_of() == {"near a boundary": [3, 5, 9], "taken for": [0, 7]}


def test_without_a_width_no_error_is_near_a_boundary():
    assert kinds_of(border_px=0) == {"near a boundary": [], "taken for": [0, 3, 5, 7, 9]}


def test_with_no_border_all_errors_are_of_one_kind():
    assert kinds_of(border_px=None) == {"wrong": [0, 3, 5, 7, 9]}


def test_a_chosen_class_is_hit_missed_or_a_false_alarm():
    expected = {"hit": [4, 6, 8], "missed": [5, 7, 9], "false alarm": [3]}
    assert kinds_of(classes=(1,)) == expected
    assert kinds_of(classes=(1,), border_px=None) == expected
    assert kinds_of(classes=(2,)) == {"hit": [], "missed": [], "false alarm": [0, 9]}


def test_several_classes_show_the_errors_from_and_to_them():
    assert kinds_of(classes=(2, 3)) == {"near a boundary": [9], "taken for": [0, 7]}
    assert kinds_of(classes=(3, 9)) == {"near a boundary": [], "taken for": [7]}


@pytest.mark.parametrize("values", [(), (7,), (255, 3), (-1, 300), tuple(range(3, 200))])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_one_of_many_values_is_found_in_every_dtype(values, dtype):
    indices = np.arange(-20, 100).astype(dtype).reshape(10, 12)
    expected = np.isin(indices.astype(np.int64), values)
    assert np.array_equal(error_map.is_one_of(indices, values), expected)


def test_each_kind_of_error_has_its_colour():
    layers = Layers(
        palette=PALETTES["voc"],
        num_classes=4,
        labels=LABELS,
        prediction=PREDICTION,
        valid=~IGNORED,
    )
    picture = np.array(render.draw("error", layers, Style(border_px=2)).image)[0]
    assert picture[1].tolist() == picture[4].tolist() == list(style.CORRECT)
    assert picture[3].tolist() == picture[5].tolist() == list(style.WRONG)
    assert picture[0].tolist() == [0, 128, 0]  # taken for class 2
    assert picture[7].tolist() == [128, 128, 0]  # taken for class 3
    assert picture[10].tolist() == [96] * 3  # ignored
    picture = np.array(render.draw("error", layers, Style(border_px=None)).image)[0]
    assert {tuple(colour) for colour in picture[:10].tolist()} == {style.CORRECT, style.WRONG}
    picture = np.array(render.draw("error", layers, Style(classes=(1,))).image)[0]
    assert picture[4].tolist() == list(style.HIT)
    assert picture[5].tolist() == list(style.MISSED)
    assert picture[3].tolist() == list(style.FALSE_ALARM)
    assert picture[0].tolist() == list(style.CORRECT)
