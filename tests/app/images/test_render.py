"""The pixels of each kind of picture."""

import io
import math
from dataclasses import fields, replace
from functools import partial

import fcn_demo
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from app.errors import IllPosed
from app.formats import png
from app.images import colormaps, render
from app.images.indexed import indexed_picture
from app.images.kinds import KINDS
from app.images.layers import Layers
from app.images.palettes import PALETTES
from app.images.style import Style

LABELS = np.array([[0, 1, 2], [255, 3, 3]])
PREDICTION = np.array([[0, 1, 1], [4, 3, 0]])
VALID = LABELS != 255
PHOTO = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10
FULL = Layers(
    palette=PALETTES["voc"],
    num_classes=21,
    labels=LABELS,
    prediction=PREDICTION,
    nll=np.array([[0, 1, math.log(21)], [np.nan, 99, np.inf]], dtype=np.float32),
    confidence=np.array([[0, 0.5, 1], [0.3, 0.25, 1 / 21]], dtype=np.float32),
    entropy=np.array([[0, math.log(21) / 2, math.log(21)], [1, 0.5, 2]], dtype=np.float32),
    photo=PHOTO,
    valid=VALID,
)
CHECKER = [96, 96, 96]


def pixels(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """The pixels of a picture, which a PNG file keeps."""
    array = np.array(picture)
    with Image.open(io.BytesIO(png.encode(picture))) as decoded:
        assert (decoded.format, decoded.mode) == ("PNG", picture.mode)
        assert np.array_equal(np.array(decoded), array)
    return array


def error_of(kind: str, layers: Layers, style: Style | None = None) -> str:
    with pytest.raises(IllPosed) as error:
        render.draw(kind, layers, style)
    return error.value.detail


def test_pictures_of_labels_and_predictions_are_label_maps() -> None:
    for kind, indices in (("labels", LABELS), ("prediction", PREDICTION)):
        label_map = png.read_label_map(
            png.encode(render.draw(kind, FULL).image),
            where="labels",
            palette=None,
            max_pixels=6,
        )
        assert label_map.mode == "P"
        np.testing.assert_array_equal(label_map.indices, indices)


def test_an_ignored_label_that_no_png_holds_becomes_void() -> None:
    layers = replace(FULL, labels=np.where(VALID, LABELS, -1))
    assert pixels(render.draw("labels", layers).image).tolist() == LABELS.tolist()


def test_a_valid_label_that_no_png_holds_is_an_error() -> None:
    assert error_of("labels", replace(FULL, labels=LABELS + 253, valid=None)) == (
        "labels: expected 0…255, which a PNG of mode P can hold, got 508 at (1, 0) and 2 more "
        "pixels. With legend=strip the picture is RGB and holds any class."
    )


def test_classes_that_no_png_holds_have_colours_modulo_256() -> None:
    labels, prediction = np.array([[0, 1, 300], [255, -1, 44]]), np.array([[0, 300, 1], [2, 3, 44]])
    colours = PALETTES["voc"].colours
    shown = colours[labels % 256]
    shown[1, 1] = colours[255]  # ignored
    layers = replace(FULL, labels=labels, prediction=prediction, valid=labels != -1)
    strip = Style(legend="strip")
    assert pixels(render.draw("labels", layers, strip).image)[:2, :3].tolist() == shown.tolist()
    picture = pixels(render.draw("prediction", layers, strip).image)
    assert picture[:2, :3].tolist() == colours[prediction % 256].tolist()
    one = pixels(render.draw("prediction", layers, replace(strip, classes=(300,))).image)
    assert one[:2, :3].reshape(6, 3).tolist() == [[217] * 3, colours[44].tolist(), *[[217] * 3] * 4]
    panels = pixels(render.draw("compare", layers, Style()).image)
    for row in (*shown, *colours[prediction % 256]):
        assert any((panels[:, x : x + 3] == row).all((1, 2)).any() for x in range(panels.shape[1]))


def test_a_chosen_class_that_no_png_holds_is_no_other_class() -> None:
    picture = render.draw("labels", FULL, Style(classes=(256,))).image.convert("RGB")
    assert pixels(picture)[0, 0].tolist() == [217, 217, 217]


def test_an_index_that_does_not_fit_is_an_error_with_its_pixel() -> None:
    with pytest.raises(IllPosed) as error:
        indexed_picture(np.array([[0, 1], [-1, 300]]), PALETTES["voc"])
    assert error.value.detail == (
        "labels: expected 0…255, which a PNG of mode P can hold, got -1 at (1, 0) and 1 more pixel."
    )


def test_the_overlay_is_half_photo_and_half_palette() -> None:
    overlay = pixels(render.draw("overlay", FULL).image)
    assert overlay[0, 1].tolist() == [79, 20, 25]  # (30, 40, 50) and (128, 0, 0)
    assert overlay[1, 1].tolist() == [124, 129, 70]  # (120, 130, 140) and (128, 128, 0)


def test_the_overlay_shows_the_photo_at_background_and_ignored() -> None:
    overlay = pixels(render.draw("overlay", FULL).image)
    for row, column in ((0, 0), (1, 0), (1, 2)):
        assert overlay[row, column].tolist() == PHOTO[row, column].tolist()


def test_an_overlay_without_background_class_blends_class_0() -> None:
    overlay = pixels(render.draw("overlay", replace(FULL, palette=PALETTES["cityscapes"])).image)
    assert overlay[0, 0].tolist() == [64, 37, 74]  # half of the road, half of (0, 10, 20)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, [30, 40, 50]), (1.0, [128, 0, 0])])
def test_alpha_is_the_weight_of_the_palette(alpha: float, expected: list[int]) -> None:
    overlay = pixels(render.draw("overlay", FULL, Style(alpha=alpha)).image)
    assert overlay[0, 1].tolist() == expected


def test_the_overlay_shows_labels_where_there_is_no_prediction() -> None:
    overlay = pixels(render.draw("overlay", replace(FULL, prediction=None), Style(alpha=1.0)).image)
    assert overlay[0, 2].tolist() == [0, 128, 0]


def test_blends_are_rounded_to_the_nearest_even() -> None:
    layers = Layers(
        palette=PALETTES["voc"],
        num_classes=21,
        prediction=np.array([[1, 1]]),
        photo=np.array([[[0, 1, 3], [0, 5, 7]]], dtype=np.uint8),
    )
    assert pixels(render.draw("overlay", layers).image).tolist() == [[[64, 0, 2], [64, 2, 4]]]


def test_the_error_map_is_grey_vermilion_or_checkered() -> None:
    assert pixels(render.draw("error", FULL).image).tolist() == [
        [[217] * 3, [217] * 3, [213, 94, 0]],
        [CHECKER, [217] * 3, [213, 94, 0]],
    ]


def test_the_checkerboard_has_squares_of_four_pixels() -> None:
    nothing = np.zeros((8, 8), dtype=np.bool_)
    layers = replace(
        FULL,
        labels=np.zeros((8, 8), dtype=np.int64),
        prediction=np.zeros((8, 8), dtype=np.int64),
        photo=None,
        valid=nothing,
        nll=None,
        confidence=None,
        entropy=None,
    )
    error = pixels(render.draw("error", layers).image)[:, :, 0]
    assert error[0].tolist() == [96] * 4 + [144] * 4
    assert error[4].tolist() == [144] * 4 + [96] * 4


def test_nll_runs_from_0_to_ln_c_and_is_clipped_above() -> None:
    nll = pixels(render.draw("nll", FULL).image)
    assert nll[0].tolist() == [
        [0, 0, 4],
        colormaps.INFERNO[math.floor(255 / math.log(21) + 0.5)].tolist(),
        [252, 255, 164],
    ]
    assert nll[1].tolist() == [CHECKER, [252, 255, 164], [252, 255, 164]]


def test_confidence_is_viridis_from_0_to_1() -> None:
    confidence = pixels(render.draw("confidence", FULL).image)
    assert confidence[0].tolist() == [[68, 1, 84], [33, 145, 140], [253, 231, 37]]
    assert confidence[1, 0].tolist() == CHECKER


def test_entropy_is_viridis_of_shares_of_ln_c() -> None:
    entropy = pixels(render.draw("entropy", FULL).image)
    assert entropy[0].tolist() == [[68, 1, 84], [33, 145, 140], [253, 231, 37]]


def test_the_nll_of_a_single_class_is_black() -> None:
    layers = replace(FULL, num_classes=1, nll=np.zeros((2, 3), dtype=np.float32))
    assert pixels(render.draw("nll", layers).image)[0, 0].tolist() == [0, 0, 4]


def test_a_valid_pixel_with_a_value_of_nan_is_checkered() -> None:
    layers = replace(FULL, valid=None)
    assert pixels(render.draw("nll", layers).image)[1, 0].tolist() == CHECKER


def test_no_colour_map_contains_a_grey_of_the_checkerboard() -> None:
    for table in (colormaps.INFERNO, colormaps.VIRIDIS):
        assert not (table == table[:, :1]).all(axis=1).any()


def test_colour_maps_go_from_dark_to_light() -> None:
    for table in (colormaps.INFERNO, colormaps.VIRIDIS):
        assert table.shape == (256, 3)
        luminance = table @ np.array([0.2126, 0.7152, 0.0722])
        assert (np.diff(luminance) > -0.8).all()  # rounding to 8 bits may step back a little
        assert luminance[-1] > luminance[0] + 150


@pytest.mark.parametrize(
    ("share", "index"), [(-1, 0), (0.0019, 0), (0.002, 1), (0.5, 128), (0.999, 255), (7, 255)]
)
def test_the_first_and_the_last_colour_cover_half_a_step(share: float, index: int) -> None:
    steps = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    assert colormaps.paint(np.array([[share]]), steps)[0, 0, 0] == index


def test_an_unknown_kind_is_an_error_that_lists_the_known_ones() -> None:
    assert error_of("margin", FULL) == (
        "kind: expected one of labels, prediction, overlay, error, nll, confidence, entropy, "
        "compare, got 'margin'."
    )


@pytest.mark.parametrize(
    ("kind", "missing", "detail"),
    [
        ("labels", "labels", "labels: {}. Send `labels`."),
        ("prediction", "prediction", "prediction: {}. Send `logits` or `prediction`."),
        ("overlay", "photo", "image: {}. Send the photo as `image`, PNG or JPEG."),
        ("error", "labels", "labels: {}. Send `labels`."),
        ("error", "prediction", "prediction: {}. Send `logits` or `prediction`."),
        ("nll", "nll", "nll: {}. Send `logits` and `labels`."),
        ("confidence", "confidence", "confidence: {}. Send `logits`."),
        ("entropy", "entropy", "entropy: {}. Send `logits`."),
    ],
)
def test_a_missing_array_is_an_error_with_a_fix(kind: str, missing: str, detail: str) -> None:
    layers = replace(FULL, **{missing: None})  # type: ignore[arg-type]
    assert error_of(kind, layers) == detail.format(
        f"expected something to draw for kind={kind}, got nothing"
    )


def test_an_overlay_needs_a_prediction_or_labels() -> None:
    assert error_of("overlay", replace(FULL, labels=None, prediction=None)) == (
        "prediction: expected something to draw for kind=overlay, got nothing. "
        "Send `logits`, `prediction` or `labels`."
    )


def test_a_photo_of_another_size_is_an_error() -> None:
    assert error_of("overlay", replace(FULL, photo=PHOTO[:, :2])) == (
        "image: expected 2 x 3 (height x width) to match the labels, got 2 x 2. "
        "Use resize=labels or resize=image to resample."
    )


@pytest.mark.parametrize("alpha", [-0.1, 1.5, math.nan])
def test_alpha_outside_0_to_1_is_an_error(alpha: float) -> None:
    assert error_of("overlay", FULL, Style(alpha=alpha)) == (
        f"alpha: expected a weight from 0 to 1, got {alpha}."
    )


@pytest.mark.parametrize("kind", KINDS)
def test_drawing_does_not_change_the_arrays(kind: str) -> None:
    arrays = [getattr(FULL, field.name) for field in fields(FULL)]
    copies = [array.copy() for array in arrays if isinstance(array, np.ndarray)]
    render.draw(kind, FULL)
    for array, copy in zip(
        (array for array in arrays if isinstance(array, np.ndarray)), copies, strict=True
    ):
        np.testing.assert_array_equal(array, copy)


@fcn_demo.needed
def test_the_overlay_is_that_which_fcn_published() -> None:
    read = partial(png.read_label_map, where="prediction", max_pixels=1 << 20)
    prediction = read((fcn_demo.DIRECTORY / "output.png").read_bytes(), palette=PALETTES["voc"])
    with Image.open(fcn_demo.DIRECTORY / "image.jpg") as photo:
        layers = Layers(PALETTES["voc"], 21, prediction=prediction.indices, photo=np.array(photo))
    overlay = render.draw("overlay", layers).image
    with Image.open(fcn_demo.DIRECTORY / "visualization.jpg") as published:
        # The published one is a JPEG, which keeps the means of 8 x 8 pixels best.
        pair = [np.array(picture.reduce(8)).astype(int) for picture in (overlay, published)]
    difference = np.abs(pair[0] - pair[1])
    assert difference.mean() < 1
    assert difference.max() < 16
