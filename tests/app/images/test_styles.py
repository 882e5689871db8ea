"""Contours, chosen classes, styles of ignored pixels, and layers of different sizes."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from app.errors import IllPosed
from app.formats import png
from app.images import render
from app.images.kinds import KINDS
from app.images.layers import Layers
from app.images.palettes import PALETTES
from app.images.resample import resampled
from app.images.style import IGNORED_GREY, REST, Style

# Class 1 left, class 2 right, background below, and one ignored column.
LABELS = np.array([[1] * 6 + [2] * 6] * 4 + [[0] * 12] * 4, dtype=np.uint8)
LABELS[:, 11] = 255
PHOTO = np.full((8, 12, 3), (200, 100, 50), np.uint8)
VOID = [224, 224, 192]
LAYERS = Layers(
    palette=PALETTES["voc"],
    num_classes=21,
    labels=LABELS,
    prediction=np.where(LABELS == 255, np.uint8(3), LABELS),
    nll=np.zeros(LABELS.shape, "f"),
    confidence=np.zeros(LABELS.shape, "f"),
    entropy=np.zeros(LABELS.shape, "f"),
    photo=PHOTO,
    valid=LABELS != 255,
    class_names=PALETTES["voc"].class_names,
)


def pixels(kind, layers=LAYERS, **options):
    image = render.draw(kind, layers, Style(**options)).image
    return np.array(image if image.mode == "RGBA" else image.convert("RGB"))


def error_of(kind, layers=LAYERS, **options):
    with pytest.raises(IllPosed) as error:
        render.draw(kind, layers, Style(**options))
    return error.value.detail


def test_contours_of_an_overlay_have_the_colours_of_their_classes():
    overlay = pixels("overlay", alpha=0, contour_px=1)
    assert overlay[0, 4:8].tolist() == [
        [200, 100, 50], [128, 0, 0], [0, 128, 0], [200, 100, 50],
    ]  # fmt: skip
    assert overlay[3, 0].tolist() == [128, 0, 0]
    assert overlay[4, 0].tolist() == [200, 100, 50]  # the background is left as photo
    assert overlay[:, 11].tolist() == [[200, 100, 50]] * 8  # and so is an ignored pixel
    wider = pixels("overlay", alpha=0, contour_px=2)
    assert wider[0, 3:5].tolist() == [[200, 100, 50], [128, 0, 0]]


def test_contours_are_black_on_light_and_white_on_dark_colours():
    layers = replace(LAYERS, palette=PALETTES["cityscapes"], prediction=None)
    labels = pixels("labels", layers, contour_px=1)
    assert labels[0, 4].tolist() == [244, 35, 232]  # sidewalk, within its region
    assert labels[0, 5].tolist() == [255] * 3  # on the sidewalk of luma 120
    light = replace(layers, labels=np.where(LABELS == 1, np.uint8(9), LABELS))
    assert pixels("labels", light, contour_px=1)[0, 5].tolist() == [0] * 3  # on terrain


def test_contours_outline_chosen_classes_alone():
    labels = pixels("labels", classes=(2,), contour_px=1)
    assert labels[0, 5].tolist() == list(REST)
    assert labels[0, 6].tolist() == [255] * 3


def test_contours_of_heat_maps_follow_labels_or_the_prediction():
    for layers in (LAYERS, replace(LAYERS, labels=None, valid=None)):
        entropy = pixels("entropy", layers, contour_px=1)
        assert entropy[0, 4:8].tolist() == [
            [68, 1, 84], [255] * 3, [255] * 3, [68, 1, 84],
        ]  # fmt: skip
    layers = replace(LAYERS, labels=None, prediction=None, valid=None)
    for options, where in (({"contour_px": 1}, "contour_px"), ({"classes": (1,)}, "classes")):
        assert error_of("entropy", layers, **options) == (
            f"{where}: expected something to draw for kind=entropy, got nothing. "
            "Send `labels` or `prediction`."
        )


def test_chosen_classes_keep_their_colour_and_labels_their_indices():
    image = render.draw("labels", LAYERS, Style(classes=(2,))).image
    assert image.mode == "P"
    read = png.read_label_map(png.encode(image), where="labels", palette=None, max_pixels=96)
    assert np.array_equal(read.indices, LABELS)
    colours = np.array(image.convert("RGB"))
    assert colours[0, 0].tolist() == list(REST)
    assert colours[0, 6].tolist() == [0, 128, 0]
    assert colours[0, 11].tolist() == VOID


def test_an_overlay_is_grey_where_no_chosen_class_is():
    overlay = pixels("overlay", classes=(2,))
    grey = overlay[0, 0].tolist()
    assert grey[0] == grey[1] == grey[2] == 124  # the luma of the photo
    assert overlay[0, 6].tolist() == [100, 114, 25]
    assert overlay[0, 11].tolist() == [200, 100, 50]


def test_ignored_labels_have_the_colour_of_void_whatever_their_index():
    layers = replace(LAYERS, valid=(LABELS != 255) & (LABELS != 1))
    image = render.draw("labels", layers).image
    assert np.array_equal(np.array(image), LABELS)
    assert np.array(image.convert("RGB"))[0, 0].tolist() == VOID


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "compare"])
def test_ignored_pixels_have_the_style_that_is_asked_for(kind):
    for ignore, colour in (
        ("grey", list(IGNORED_GREY)),
        ("colour", VOID),
        ("photo", [200, 100, 50]),
        ("checker", [96, 96, 96]),
        ("transparent", [0, 0, 0, 0]),
    ):
        picture = pixels(kind, ignore=ignore)
        assert picture[0, 11].tolist() == colour, ignore
        assert ignore != "transparent" or picture[0, 0].tolist()[3] == 255
    default = pixels(kind)[0, 11].tolist()
    expected = {"labels": VOID, "overlay": [200, 100, 50], "prediction": [128, 128, 0]}
    assert default == expected.get(kind, [96, 96, 96])


def test_transparent_pixels_make_a_picture_with_alpha():
    for kind in KINDS:
        image = render.draw(kind, LAYERS, Style(ignore="transparent", legend="strip")).image
        assert image.mode == "RGBA"
        alpha = np.array(image)[:, :, 3]
        assert (alpha == 0).sum() == {"compare": 3 * 8}.get(kind, 8)


def test_the_style_photo_needs_a_photo():
    assert error_of("error", replace(LAYERS, photo=None), ignore="photo") == (
        "image: expected something to draw for ignore=photo, got nothing. Send the photo as "
        "`image`."
    )


@pytest.mark.parametrize(
    ("option", "value", "detail"),
    [
        ("contour_px", 101, "contour_px: expected 0...100, got 101."),
        ("contour_px", -1, "contour_px: expected 0...100, got -1."),
        ("border_px", 101, "border_px: expected 0...100, got 101."),
        ("legend", "box", "legend: expected one of none, strip, got 'box'."),
        (
            "ignore",
            "black",
            "ignore: expected one of auto, checker, grey, photo, colour, transparent, got 'black'.",
        ),
        (
            "cmap",
            "jet",
            (
                "cmap: expected one of viridis, magma, inferno, plasma, cividis, turbo, grey, "
                "got 'jet'."
            ),
        ),
    ],
)
def test_a_style_out_of_range_is_an_error(option, value, detail):
    assert error_of("labels", **{option: value}) == detail


def test_layers_of_one_size_are_left_as_they_are():
    for resize in ("none", "labels", "image"):
        layers = resampled(LAYERS, resize)
        assert layers.labels is LABELS
        assert layers.photo is PHOTO


def test_maps_take_the_nearest_pixel_of_the_photo_size():
    photo = np.zeros((4, 9, 3), np.uint8)
    small = Layers(
        palette=PALETTES["voc"],
        num_classes=3,
        prediction=np.array([[1, 2, 3], [4, 5, 6]]),
        entropy=np.array([[1, 2, 3], [4, 5, 6]], "f"),
        photo=photo,
    )
    layers = resampled(small, "image")
    expected = np.repeat(np.repeat(small.prediction, 2, 0), 3, 1)
    assert np.array_equal(layers.prediction, expected)
    assert np.array_equal(layers.entropy, expected)
    assert layers.photo is photo
    # Of seven pixels, three are those nearest to the centres.
    wide = Layers(palette=PALETTES["voc"], num_classes=3, labels=np.arange(7)[None])
    assert resampled(replace(wide, photo=photo[:1, :3]), "image").labels.tolist() == [[1, 3, 5]]


def test_a_photo_is_interpolated_to_the_size_of_the_labels():
    photo = np.array([[[0] * 3, [100] * 3]], dtype=np.uint8)
    labels = np.zeros((2, 4), np.uint8)
    prediction = np.array([[1, 2]])
    layers = resampled(
        Layers(PALETTES["voc"], 3, labels=labels, prediction=prediction, photo=photo), "labels"
    )
    assert layers.photo[0, :, 0].tolist() == [0, 25, 75, 100]
    assert layers.prediction.tolist() == [[1, 1, 2, 2]] * 2
    assert resampled(Layers(PALETTES["voc"], 3, photo=photo), "labels").photo is photo


@pytest.mark.parametrize("is_tall", [False, True])
def test_a_column_that_becomes_a_row_is_never_a_square(is_tall, monkeypatch):
    shapes = [(2, 3000), (3000, 2)]
    labels_shape, photo_shape = reversed(shapes) if is_tall else shapes
    labels = np.arange(6000).reshape(labels_shape)
    photo = np.zeros((*photo_shape, 3), np.uint8)
    layers = Layers(PALETTES["voc"], 3, labels=labels, photo=photo)
    sizes = []
    resize = Image.Image.resize

    def resize_and_note(picture, size, *arguments):
        # Pillow resizes rows first.
        sizes.append(size[0] * picture.height)
        return resize(picture, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", resize_and_note)
    tracemalloc.start()
    try:
        resampled(layers, "image")
        assert resampled(layers, "labels").photo.shape[:2] == labels_shape
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 100 * labels.size
    assert max(sizes) <= labels.size


def test_the_size_of_a_photo_needs_a_photo():
    with pytest.raises(IllPosed) as error:
        resampled(replace(LAYERS, photo=None), "image")
    assert error.value.detail == (
        "image: expected a photo for resize=image, got nothing. Send it as `image`."
    )
