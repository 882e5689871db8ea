"""The strip beside a picture, the panels side by side, and their text."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, features

from app.errors import IllPosed
from app.images import canvas, compare, legend, render, text
from app.images.kinds import KINDS
from app.images.layers import Layers
from app.images.legend import ColourBar, Entry, Legend
from app.images.palettes import PALETTES
from app.images.style import CORRECT, FALSE_ALARM, HIT, MISSED, REST, WRONG, Style

HEIGHT, WIDTH = 60, 80
LABELS = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
LABELS[:30] = 15
LABELS[:, :10] = 255
PREDICTION = LABELS.copy()
PREDICTION[:, :40] = 2
LAYERS = Layers(
    palette=PALETTES["voc"],
    num_classes=21,
    labels=LABELS,
    prediction=PREDICTION,
    nll=np.full(LABELS.shape, 1, "f"),
    confidence=np.full(LABELS.shape, 0.5, "f"),
    entropy=np.full(LABELS.shape, 2, "f"),
    photo=np.full((HEIGHT, WIDTH, 3), 50, np.uint8),
    valid=LABELS != 255,
    class_names=PALETTES["voc"].class_names,
)
STRIP = Style(legend="strip")


@pytest.fixture
def drawn_legends(monkeypatch):
    """The legends that are drawn."""
    drawn = []
    beside = legend.beside
    monkeypatch.setattr(
        legend, "beside", lambda picture, shown: drawn.append(shown) or beside(picture, shown)
    )
    return drawn


def rows_of(shown):
    return [(entry.text, entry.colour, entry.pixels) for entry in shown.entries]


def colours_in(image):
    return {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


def test_pillow_ships_a_font_that_scales():
    assert features.check("freetype2")
    assert text.font(11).getname()[0] == "Aileron"
    assert text.length("wide", 22) > 1.6 * text.length("wide", 11)


@pytest.mark.parametrize(
    "name", ["é中ß😀", "\ud800", "a\nb\x00\x1b[0m", "\u202ereversed", "", "n" * 5000]
)
def test_names_with_any_character_are_drawn(name):
    layers = replace(LAYERS, class_names=(name,) * 21)
    image = render.draw("labels", layers, STRIP).image
    assert image.width < WIDTH + 40 * text.MIN_FONT_PIXELS
    assert set(text.drawable(name)) <= {chr(code) for code in range(32, 127)}


def test_a_legend_has_the_classes_that_occur_with_their_pixels(drawn_legends):
    picture = render.draw("labels", LAYERS, STRIP)
    (shown,) = drawn_legends
    assert rows_of(shown) == [
        ("0 background", (0, 0, 0), (2100,)),
        ("15 person", (192, 128, 128), (2100,)),
        ("ignored", (224, 224, 192), (600,)),
    ]
    assert shown.total == HEIGHT * WIDTH
    assert picture.image.mode == "RGB"
    assert np.array_equal(
        np.array(picture.image)[:HEIGHT, :WIDTH],
        np.array(render.draw("labels", LAYERS).image.convert("RGB")),
    )
    strip = picture.image.crop((WIDTH, 0, *picture.image.size))
    assert {(0, 0, 0), (192, 128, 128), (224, 224, 192)} <= colours_in(strip)
    assert (0, 128, 0) not in colours_in(strip)


def test_classes_without_a_name_are_called_by_their_index(drawn_legends):
    layers = replace(LAYERS, class_names=("sky",), labels=LABELS.astype(np.int64) * 100)
    render.draw("overlay", replace(layers, prediction=None, valid=None), STRIP)
    assert [entry.text for entry in drawn_legends[0].entries] == [
        "0 sky",
        "class 1500",
        "class 25500",
    ]


def test_negative_and_huge_indices_are_counted(drawn_legends):
    labels = np.array([[-5, -5, 1 << 40, 3]])
    layers = Layers(palette=PALETTES["voc"], num_classes=4, labels=labels, photo=LAYERS.photo)
    photo = np.zeros((1, 4, 3), np.uint8)
    render.draw("overlay", replace(layers, photo=photo), STRIP)
    assert {entry.text: entry.pixels for entry in drawn_legends[0].entries} == {
        "class -5": (2,),
        "class 3": (1,),
        "above 65536": (1,),
    }


def test_classes_that_are_not_chosen_are_one_row(drawn_legends):
    render.draw("prediction", LAYERS, replace(STRIP, classes=(15, 7)))
    assert rows_of(drawn_legends[0]) == [
        ("15 person", (192, 128, 128), (1200,)),
        ("other classes", REST, (3600,)),
    ]


def test_the_legend_of_errors_names_their_kinds(drawn_legends):
    render.draw("error", LAYERS, STRIP)
    render.draw("error", LAYERS, replace(STRIP, classes=(2,)))
    render.draw("error", LAYERS, replace(STRIP, border_px=None, classes=(2, 3)))
    kinds, one_class, two_classes = map(rows_of, drawn_legends)
    near = 2 * 27 * 3 + 6 * 30  # beside the ignored columns, and where the classes meet
    assert kinds == [
        ("correct", CORRECT, (2400,)),
        ("near a boundary", WRONG, (near,)),
        ("taken for 2 bicycle", (0, 128, 0), (1800 - near,)),
        ("ignored", None, (600,)),
    ]
    assert one_class == [
        ("neither", CORRECT, (2400,)),
        ("hit", HIT, (0,)),
        ("missed", MISSED, (0,)),
        ("false alarm", FALSE_ALARM, (1800,)),
        ("ignored", None, (600,)),
    ]
    assert two_classes[:2] == [("other pixels", CORRECT, (2400,)), ("wrong", WRONG, (1800,))]


def test_the_legend_of_a_heat_map_is_a_colour_bar_with_ln_c(drawn_legends):
    for kind, unit, texts in (
        ("nll", "nats", ["0", "1.522", "ln 21 = 3.045"]),
        ("entropy", "nats", ["0", "1.522", "ln 21 = 3.045"]),
        ("confidence", "probability", ["0", "0.5", "1"]),
    ):
        image = render.draw(kind, LAYERS, STRIP).image
        bar = drawn_legends.pop().bar
        assert bar.unit == unit
        assert [name for _, name in sorted(legend._ticks(bar))] == texts
        strip = colours_in(image.crop((WIDTH, 0, *image.size)))
        assert len({tuple(colour) for colour in bar.colormap.tolist()} & strip) > 100


@pytest.mark.parametrize(
    ("scale", "texts"),
    [
        ((0.0, 9.0), ["0", "ln 21 = 3.045", "4.5", "9"]),
        ((0.0, 3.1), ["0", "1.55", "ln 21 = 3.045"]),  # 3.1 would be drawn over it
        ((0.0, 2.0), ["0", "1", "2"]),
        ((5.0, 5.0), ["5"]),
    ],
)
def test_the_tick_at_ln_c_stands_where_the_scale_has_it(scale, texts):
    bar = ColourBar(np.zeros((256, 3), np.uint8), scale, "nats", ((3.045, "ln 21 = 3.045"),))
    assert [name for _, name in sorted(legend._ticks(bar))] == texts


def test_entries_without_room_are_joined_in_the_last_row():
    entries = [Entry((index, 0, 0), f"class {index}", (100 - index,)) for index in range(60)]
    shown = Legend(entries, 6000)
    rows = legend._rows(shown, 12)
    assert [row.name for row in rows] == [*(f"class {index}" for index in range(11)), "+ 49 more"]
    rest = sum(100 - index for index in range(11, 60))
    assert rows[-1].shares == (legend.share(rest, 6000),)
    assert not rows[-1].has_swatch
    assert len(legend._rows(shown, 60)) == 60
    extended = legend.beside(Image.new("RGB", (9, 9)), shown)
    assert extended.height < 14 * canvas.line_height(text.MIN_FONT_PIXELS) + 24


def test_a_legend_of_a_picture_of_one_row_is_an_error():
    labels = np.zeros((1, 1 << 20), dtype=np.uint8)
    layers = Layers(palette=PALETTES["voc"], num_classes=21, labels=labels, prediction=labels)
    with pytest.raises(IllPosed) as error:
        render.draw("labels", layers, STRIP)
    assert error.value.detail.startswith(
        "legend: expected a picture that is less narrow, with which the canvas has at most 8388608 "
        "pixels, got a canvas of "
    )
    assert error.value.detail.endswith(" for a picture of 1 x 1048576. Use legend=none.")
    with pytest.raises(IllPosed) as error:
        render.draw("compare", layers)
    assert error.value.where == "kind"
    assert error.value.fix == "Use another kind than compare."


def test_compare_shows_what_the_other_kinds_show():
    image = render.draw("compare", LAYERS).image
    assert image.mode == "RGB"
    height = image.height - HEIGHT
    step = (image.width - WIDTH) // 3
    assert step >= WIDTH
    photo, truth, prediction, error = (
        np.array(image)[height:, step * column : step * column + WIDTH] for column in range(4)
    )
    assert np.array_equal(photo, LAYERS.photo)
    for panel, kind in ((truth, "labels"), (prediction, "prediction"), (error, "error")):
        expected = render.draw(kind, LAYERS).image.convert("RGB")
        assert np.array_equal(panel, np.array(expected)), kind


def test_compare_leaves_out_what_it_has_no_input_for():
    drawn = render.draw("compare", replace(LAYERS, photo=None))
    assert drawn.warnings == ("compare: no input for photo, which was left out.",)
    assert drawn.image.width < 3.3 * WIDTH
    drawn = render.draw("compare", replace(LAYERS, prediction=None))
    assert drawn.warnings == ("compare: no input for prediction and error, which was left out.",)
    for layers, got in (
        (replace(LAYERS, prediction=None, photo=None), "truth"),
        (Layers(palette=PALETTES["voc"], num_classes=3), "nothing"),
    ):
        with pytest.raises(IllPosed) as error:
            render.draw("compare", layers)
        assert error.value.detail == (
            "inputs: expected at least two of photo, labels and prediction (or logits) for "
            f"kind=compare, got {got}."
        )


def test_wide_panels_stand_in_two_columns():
    picture = Image.new("RGB", (300, 100))
    image = compare.side_by_side([("photo", picture)] * 4)
    assert 600 < image.width < 660
    assert 200 < image.height < 280
    image = compare.side_by_side([("photo", Image.new("RGB", (100, 300)))] * 4)
    assert 400 < image.width < 460


def test_large_panels_are_reduced_with_a_warning(monkeypatch):
    monkeypatch.setattr(compare, "MAX_PIXELS", 4 * HEIGHT * WIDTH // 8)
    drawn = render.draw("compare", LAYERS, STRIP)
    assert drawn.warnings == ("compare: panels are reduced to 20 x 27, one pixel of 3 x 3.",)
    assert drawn.image.width < 4 * WIDTH + 200
    # No colours are mixed in labels, and those of photos are.
    assert colours_in(compare.reduced(Image.fromarray(LABELS), 7, is_photo=False)) <= {
        (0, 0, 0), (15, 15, 15), (255, 255, 255),
    }  # fmt: skip
    pair = Image.fromarray(np.array([[[0, 0, 0], [200, 100, 50]]], dtype=np.uint8))
    assert colours_in(compare.reduced(pair, 2, is_photo=True)) == {(100, 50, 25)}


def test_the_legend_of_compare_has_the_shares_in_both_maps(drawn_legends):
    render.draw("compare", LAYERS, STRIP)
    (shown,) = drawn_legends
    assert shown.columns == ("truth", "predicted")
    assert rows_of(shown) == [
        ("0 background", (0, 0, 0), (2100, 1200)),
        ("15 person", (192, 128, 128), (2100, 1200)),
        ("2 bicycle", (0, 128, 0), (0, 1800)),
        ("ignored", (224, 224, 192), (600,)),
        ("correct, 50.0 %", CORRECT, ()),
        ("near a boundary, 7.1 %", WRONG, ()),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_legend_on_one_pixel_and_on_wide_pictures(kind):
    for height, width in ((1, 1), (1, 500), (500, 1)):
        shape = (height, width)
        layers = replace(
            LAYERS,
            **dict.fromkeys(("labels", "prediction"), np.zeros(shape, np.uint8)),
            **dict.fromkeys(("nll", "confidence", "entropy"), np.zeros(shape, "f")),
            photo=np.zeros((*shape, 3), np.uint8),
            valid=None,
        )
        image = render.draw(kind, layers, replace(STRIP, contour_px=2)).image
        assert image.width > width
        assert image.width * image.height < 1 << 22
        assert image.width * image.height <= render.canvas_pixels(kind, "strip", height, width)


@pytest.mark.parametrize("kind", ["compare", "overlay", "error"])
@pytest.mark.parametrize("size", [(1, 1), (60, 80), (300, 20), (40, 400), (2000, 10)])
def test_a_canvas_has_no_more_pixels_than_are_reserved(size, kind, monkeypatch):
    monkeypatch.setattr(compare, "MAX_PIXELS", 20_000)
    random = np.random.default_rng(0)
    layers = Layers(
        palette=PALETTES["voc"],
        num_classes=90,
        labels=random.integers(0, 90, size),
        prediction=random.integers(0, 90, size),
        photo=np.zeros((*size, 3), np.uint8),
        class_names=("W" * 40,) * 90,
    )
    without = (layers, replace(layers, photo=None), replace(layers, prediction=None))
    for shown in without if kind == "compare" else (layers,):
        image = render.draw(kind, shown, STRIP).image
        assert image.width * image.height <= render.canvas_pixels(kind, "strip", *size)
    if kind == "compare":
        image = render.draw(kind, layers).image
        assert image.width * image.height <= render.canvas_pixels(kind, "none", *size)
    else:
        assert render.canvas_pixels(kind, "none", *size) == 0


def test_a_map_with_an_index_of_its_own_at_each_pixel_has_a_legend(drawn_legends):
    indices = np.arange(-40_000, 80_000).reshape(300, 400)
    photo = np.zeros((300, 400, 3), np.uint8)
    layers = Layers(PALETTES["voc"], 21, labels=indices, photo=photo)
    render.draw("overlay", layers, STRIP)
    entries = {entry.text: entry.pixels for entry in drawn_legends[0].entries}
    assert entries["below -32768"] == (40_000 - 32_768,)
    assert entries["above 65536"] == (80_000 - 65_537,)
    assert len(entries) == 65_536 + 32_768 + 3
    assert sum(pixels for (pixels,) in entries.values()) == indices.size


@pytest.mark.parametrize(
    ("value", "text"),
    [(2**62, "above 65536"), (-(2**62), "below -32768"), (-1, "class -1"), (65_536, "class 65536")],
)
def test_indices_of_any_size_are_counted(value, text, drawn_legends):
    indices = np.full((HEIGHT, WIDTH), value)
    layers = replace(LAYERS, labels=indices, prediction=None, valid=None)
    render.draw("overlay", layers, STRIP)
    assert [(entry.text, entry.pixels) for entry in drawn_legends[0].entries] == [
        (text, (indices.size,))
    ]


def test_only_no_pixel_is_0_percent_and_only_all_are_100():
    shares = [legend.share(count, 9999) for count in (0, 1, 3333, 9998, 9999)]
    assert shares == ["0 %", "< 0.1 %", "33.3 %", "> 99.9 %", "100.0 %"]
