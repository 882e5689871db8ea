"""The scales of heat maps."""

import math

import numpy as np
import pytest

from app.errors import IllPosed
from app.images import colormaps, heat, render
from app.images.colormaps import COLORMAPS
from app.images.layers import Layers
from app.images.palettes import PALETTES
from app.images.style import CHECKER_GREYS, REST, TINTED_GREY, Style

VALUES = np.array([[1.0, 2.0, 3.0, 99.0, np.nan, np.inf]], dtype=np.float32)
LABELS = np.array([[0, 1, 1, 255, 1, 1]], dtype=np.uint8)
LAYERS = Layers(
    palette=PALETTES["voc"], num_classes=20, labels=LABELS, nll=VALUES, valid=LABELS != 255
)


def picture_of(style):
    return np.array(render.draw("nll", LAYERS, style).image)[0]


def test_the_default_scale_does_not_depend_on_the_image():
    for wanted in (None, "lnC"):
        assert render.draw("nll", LAYERS, Style(scale=wanted)).scale == (0.0, math.log(20))
    layers = Layers(palette=PALETTES["voc"], num_classes=20, confidence=VALUES)
    assert render.draw("confidence", layers).scale == (0.0, 1.0)
    assert render.draw("confidence", layers).unit == "probability"


def test_the_scale_auto_is_that_of_valid_finite_values():
    drawn = render.draw("nll", LAYERS, Style(scale="auto"))
    assert drawn.scale == (1.0, 3.0)
    picture = np.array(drawn.image)[0]
    assert picture[0].tolist() == colormaps.INFERNO[0].tolist()
    assert picture[1].tolist() == colormaps.INFERNO[128].tolist()
    assert picture[2].tolist() == picture[5].tolist() == colormaps.INFERNO[255].tolist()
    assert render.draw("nll", LAYERS, Style(scale="auto", classes=(1,))).scale == (2.0, 3.0)


def test_the_scale_percentile_leaves_out_one_percent_at_each_end():
    values = np.arange(1, 102, dtype=np.float32).reshape(1, 101)
    left_out = np.zeros(values.shape, dtype=bool)
    assert heat.scale_of("nll", values, left_out, 5, "percentile") == (2.0, 100.0)


def test_a_large_image_is_sampled_for_percentiles(monkeypatch):
    monkeypatch.setattr(heat, "_MAX_SAMPLE", 101)
    values = np.repeat(np.arange(1, 102, dtype=np.float32), 7).reshape(7, 101)
    left_out = np.zeros(values.shape, dtype=bool)
    assert heat.scale_of("nll", values, left_out, 5, "percentile") == (2.0, 100.0)


def test_two_numbers_are_the_ends_of_the_scale():
    drawn = render.draw("nll", LAYERS, Style(scale=(2.0, 4.0)))
    assert drawn.scale == (2.0, 4.0)
    picture = np.array(drawn.image)[0]
    assert picture[0].tolist() == picture[1].tolist() == colormaps.INFERNO[0].tolist()
    assert picture[2].tolist() == colormaps.INFERNO[128].tolist()


@pytest.mark.parametrize("wanted", ["auto", "percentile"])
def test_an_image_without_values_has_the_default_scale(wanted):
    layers = Layers(
        palette=PALETTES["voc"], num_classes=20, labels=LABELS, nll=VALUES, valid=LABELS > 255
    )
    assert render.draw("nll", layers, Style(scale=wanted)).scale == (0.0, math.log(20))


def test_equal_values_have_the_first_colour_on_their_own_scale():
    layers = Layers(palette=PALETTES["voc"], num_classes=9, entropy=np.full((2, 2), 0.5, "f"))
    drawn = render.draw("entropy", layers, Style(scale="auto", legend="strip"))
    assert drawn.scale == (0.5, 0.5)
    assert np.array(drawn.image)[0, 0].tolist() == colormaps.VIRIDIS[0].tolist()


def test_extreme_ends_of_a_scale_do_not_overflow():
    for scale in ((-1e30, 1e30), (0.0, 1e-300), (1.0, 1.0 + 1e-16)):
        assert heat.indices_on(VALUES, scale).dtype == np.uint8


def test_the_scale_ln_c_is_an_error_for_a_confidence():
    layers = Layers(palette=PALETTES["voc"], num_classes=20, confidence=VALUES)
    with pytest.raises(IllPosed) as error:
        render.draw("confidence", layers, Style(scale="lnC"))
    assert error.value.detail == (
        "scale: expected auto, percentile or two numbers for kind=confidence, "
        "which is from 0 to 1, got lnC."
    )


def test_a_colour_map_is_chosen_by_name():
    for name, table in COLORMAPS.items():
        picture = picture_of(Style(cmap=name, scale="auto"))
        assert picture[0].tolist() == table[0].tolist()
        assert picture[2].tolist() == table[255].tolist()


def test_no_colour_map_has_the_greys_of_the_checkerboard():
    for name, table in COLORMAPS.items():
        assert (table.shape, table.dtype) == ((256, 3), np.uint8)
        assert len(np.unique(table, axis=0)) > 250, name
        for grey in CHECKER_GREYS if name != "grey" else ():
            assert not (table == grey).all(axis=1).any(), name


def test_the_colours_of_the_maps_are_those_that_were_published():
    middles = {name: table[128].tolist() for name, table in COLORMAPS.items()}
    assert middles == {
        "viridis": [33, 145, 140],
        "magma": [183, 55, 121],
        "inferno": [188, 55, 84],
        "plasma": [204, 71, 120],
        "cividis": [125, 124, 120],
        "turbo": [164, 252, 60],
        "grey": [128, 128, 128],
    }


def test_classes_that_are_not_chosen_are_grey_on_a_heat_map():
    picture = picture_of(Style(classes=(1,)))
    assert picture[0].tolist() == list(REST)
    assert picture[1].tolist() != list(REST)
    assert picture[3].tolist() == [96] * 3  # ignored


def test_greys_on_the_grey_colour_map_are_tinted():
    picture = picture_of(Style(classes=(1,), cmap="grey", ignore="grey"))
    assert picture[0].tolist() == picture[3].tolist() == list(TINTED_GREY)


def test_without_labels_the_prediction_says_which_classes_are_shown():
    layers = Layers(
        palette=PALETTES["voc"],
        num_classes=3,
        confidence=np.array([[0.5, 0.5]], "f"),
        prediction=np.array([[1, 2]]),
    )
    picture = np.array(render.draw("confidence", layers, Style(classes=(2,))).image)
    assert picture.tolist() == [[list(REST), [33, 145, 140]]]
