"""The palettes: the VOC formula, the published tables, and a colour for each index."""

import numpy as np
import pytest

from app.images.palettes import NUM_COLOURS, PALETTES


def test_voc_begins_with_the_published_colours() -> None:
    assert PALETTES["voc"].colours[:21].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
        [0, 128, 128],
        [128, 128, 128],
        [64, 0, 0],
        [192, 0, 0],
        [64, 128, 0],
        [192, 128, 0],
        [64, 0, 128],
        [192, 0, 128],
        [64, 128, 128],
        [192, 128, 128],
        [0, 64, 0],
        [128, 64, 0],
        [0, 192, 0],
        [128, 192, 0],
        [0, 64, 128],
    ]


def test_the_void_of_voc_follows_the_formula_at_255() -> None:
    assert PALETTES["voc"].colours[255].tolist() == [224, 224, 192]


def test_voc_has_21_names_from_background_to_tvmonitor() -> None:
    names = PALETTES["voc"].class_names
    assert (len(names), names[0], names[15], names[20]) == (21, "background", "person", "tvmonitor")


def test_cityscapes_has_the_19_train_ids_in_order() -> None:
    cityscapes = PALETTES["cityscapes"]
    assert len(cityscapes.class_names) == 19
    first_and_last = {
        name: cityscapes.colours[i].tolist() for name, i in (("road", 0), ("bicycle", 18))
    }
    assert first_and_last == {"road": [128, 64, 128], "bicycle": [119, 11, 32]}
    assert cityscapes.class_names.index("car") == 13
    assert cityscapes.colours[13].tolist() == [0, 0, 142]
    assert cityscapes.colours[255].tolist() == [0, 0, 0]


def test_cityscapes_is_filled_with_unused_voc_colours() -> None:
    assert PALETTES["cityscapes"].colours[19:22].tolist() == [
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
    ]
    # 21 in VOC is (128, 64, 128), which is the road of Cityscapes.
    assert PALETTES["cityscapes"].colours[38:40].tolist() == [[0, 64, 128], [0, 192, 128]]


@pytest.mark.parametrize("name", PALETTES)
def test_every_index_has_a_colour_of_its_own(name: str) -> None:
    row = PALETTES[name]
    assert row.name == name
    assert row.colours.shape == (NUM_COLOURS, 3)
    assert len(np.unique(row.colours, axis=0)) == NUM_COLOURS
    assert row.ignore_index >= len(row.class_names)


@pytest.mark.parametrize("name", PALETTES)
def test_void_colours_belong_to_no_class(name: str) -> None:
    row = PALETTES[name]
    classes = {tuple(colour) for colour in row.colours[: len(row.class_names)].tolist()}
    assert not classes & set(row.void_colours)


def test_the_colours_of_a_palette_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        PALETTES["voc"].colours[0] = 1


@pytest.mark.parametrize(
    "name", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)
def test_indices_of_every_dtype_are_painted_modulo_256(name: str) -> None:
    limits = np.iinfo(name)
    indices = [0, 1, 100, limits.min, limits.max]
    painted = PALETTES["voc"].paint(np.array([indices], dtype=name))
    modulo = [index % 256 for index in indices]
    assert painted.tolist() == [PALETTES["voc"].colours[modulo].tolist()]
