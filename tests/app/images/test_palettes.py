"""The palettes: the published tables, colours that classes share, and the rule that chooses one."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.errors import IllPosed
from app.images.oklch import oklch_to_srgb
from app.images.palettes import (
    NUM_COLOURS,
    PALETTES,
    choose_palette,
    find_class,
    generated_colours,
    own_palette,
    palette_of_file,
)

SHARED = Path(__file__).parents[4] / "shared" / "data"


def classes_of(name):
    """The colours and names of the classes."""
    palette = PALETTES[name]
    return palette.colours[: palette.num_classes], palette.class_names


def sha256_of(content):
    return hashlib.sha256(content).hexdigest()


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


def test_voc_has_the_background_at_0_and_no_shifted_colours() -> None:
    # PaddleSeg's palette lacks the first entry, so that each class has the colour of the next.
    colours = PALETTES["voc"].colours
    assert colours[:2].tolist() == [[0, 0, 0], [128, 0, 0]]
    assert not np.array_equal(colours[:-1], colours[1:])


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


# Of the lists in mmsegmentation 1.2.2: `voc_palette()` and the like as bytes, `voc_classes()` and
# the like with line feeds between them.
MMSEGMENTATION = {
    "voc": (
        "46a99c0d1f42c3d076ae0d49ac616fec5d6754de21e539cee9f4ebcbf013acae",
        "301e5e4e2a9a7ab6bfd6c7e2b1d381d4dd465ddedf787b4b4ed802b3366deb6c",
    ),
    "cityscapes": (
        "5af5a8d200c61cb3450a5ffb818ebcfc6c0b49d8b79f832e872fc6bbd4151c9e",
        "5995d02d6c574d515fa02371c8c2b5367f55cba8a732fed0567427c093f95adf",
    ),
    "ade20k": (
        "ce475c9151035eff51f4cf27fd7d906959b1480f6d15b9423ae2417c1b23a0ed",
        "2133f0a0e71146d00a14482f872bc5888f66d706f90f1b1333a7eb5025989af9",
    ),
    "cocostuff": (
        "788e8126c601896b7808a3149920f372dc670d0c3792625f354ede8b10bce4dc",
        "8ea44449837dceb30923012b201fe0152adc612160d0d040c9cfcd77e95f6801",
    ),
    "pascal_context": (
        "9a95e896a24bbcc5a96c4b640502016bb53c651caf406951f3566f998d5f0bae",
        "e29ff1a0eaea71eb3e090f0ff6abdbcc592fa17f74b4a17ecc6d33c5a9daea4e",
    ),
}


@pytest.mark.parametrize("name", MMSEGMENTATION)
def test_colours_and_names_are_those_of_mmsegmentation(name) -> None:
    colours, names = classes_of(name)
    of_source = [f"{text} " if text == "bed" and name == "ade20k" else text for text in names]
    found = sha256_of(colours.tobytes()), sha256_of("\n".join(of_source).encode())
    assert found == MMSEGMENTATION[name]


def test_camvid_has_the_colours_of_segnet_and_void_at_11() -> None:
    colours, names = classes_of("camvid")
    assert dict(zip(names, colours.tolist(), strict=True)) == {
        "Sky": [128, 128, 128],
        "Building": [128, 0, 0],
        "Pole": [192, 192, 128],
        "Road": [128, 64, 128],
        "Pavement": [60, 40, 222],
        "Tree": [128, 128, 0],
        "SignSymbol": [192, 128, 128],
        "Fence": [64, 64, 128],
        "Car": [64, 0, 128],
        "Pedestrian": [64, 64, 0],
        "Bicyclist": [0, 128, 192],
    }
    assert (PALETTES["camvid"].ignore_index, PALETTES["camvid"].ignore_colour) == (11, [0, 0, 0])


def test_pascal_context_has_59_classes_without_its_background() -> None:
    colours, names = classes_of("pascal_context")
    without, names_without = classes_of("pascal_context_59")
    assert (names[0], names[1:]) == ("background", names_without)
    assert np.array_equal(colours[1:], without)
    assert np.array_equal(colours, PALETTES["ade20k"].colours[:60])


def test_okabe_ito_has_the_eight_colours_of_its_authors() -> None:
    colours, names = classes_of("okabe_ito")
    assert [f"{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours.tolist()] == [
        *("000000", "e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7")
    ]
    assert names[1] == "orange"


def test_the_names_of_ade20k_are_among_those_of_the_data_set() -> None:
    path = SHARED / "ade-sample" / "objectInfo150.csv"
    if not path.exists():
        pytest.skip("the class names of ADE20K are not here")
    rows = [line.split(",")[5] for line in path.read_text().splitlines()[1:]]
    for row, name in zip(rows, PALETTES["ade20k"].class_names, strict=True):
        assert name in row.replace(";", " ")  # the file also cuts names at spaces


def test_ade20k_and_pascal_context_have_one_colour_twice() -> None:
    for name, classes in (
        ("ade20k", (6, 48)),
        ("pascal_context", (6, 48)),
        ("pascal_context_59", (5, 47)),
    ):
        assert PALETTES[name].shared_colours() == {(140, 140, 140): classes}
    names = PALETTES["ade20k"].class_names
    assert (names[6], names[48]) == ("road", "skyscraper")


def test_cocostuff_has_162_colours_for_171_classes() -> None:
    colours, _ = classes_of("cocostuff")
    assert (len(colours), len(np.unique(colours, axis=0))) == (171, 162)
    shared = PALETTES["cocostuff"].shared_colours()
    assert shared[0, 192, 64] == (0, 1)
    assert sum(map(len, shared.values())) - len(shared) == 171 - 162
    assert PALETTES["cocostuff"].fields()["shared_colours"][0] == {
        "colour": [0, 192, 64],
        "classes": [0, 1],
    }


@pytest.mark.parametrize("name", PALETTES)
def test_every_index_has_a_colour_of_its_own_but_for_shared_ones(name: str) -> None:
    row = PALETTES[name]
    assert row.name == name
    assert row.colours.shape == (NUM_COLOURS, 3)
    num_repeated = sum(len(classes) - 1 for classes in row.shared_colours().values())
    assert len(np.unique(row.colours, axis=0)) == NUM_COLOURS - num_repeated
    assert row.ignore_index >= len(row.class_names)


@pytest.mark.parametrize("name", PALETTES)
def test_void_colours_belong_to_no_class(name: str) -> None:
    row = PALETTES[name]
    classes = {tuple(colour) for colour in row.colours[: len(row.class_names)].tolist()}
    assert not classes & {*row.void_colours, tuple(row.ignore_colour)}


def oklab_of(colours):
    """sRGB colours [n,3] in OKLab, by the formulas of its author."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    lms = np.cbrt(
        linear
        @ np.array(
            [
                [0.4122214708, 0.2119034982, 0.0883024619],
                [0.5363325363, 0.6806995451, 0.2817188376],
                [0.0514459929, 0.1073969566, 0.6299787005],
            ]
        )
    )
    return lms @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


def test_generated_colours_of_neighbours_differ_by_a_quarter_in_oklab() -> None:
    colours = generated_colours(NUM_COLOURS)
    assert len(np.unique(colours, axis=0)) == NUM_COLOURS
    lab = oklab_of(colours)
    distance_to_next = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert distance_to_next.min() > 0.26
    assert np.linalg.norm(lab[2:] - lab[:-2], axis=1).min() > 0.16
    first = lab[:20]
    distances = np.linalg.norm(first[:, None] - first, axis=-1)[~np.eye(20, dtype=bool)]
    assert distances.min() > 0.045  # about twice what an eye can just tell apart


def test_generated_colours_do_not_depend_on_their_number() -> None:
    assert np.array_equal(generated_colours(7), generated_colours(200)[:7])
    assert np.array_equal(PALETTES["generated"].colours[:255], generated_colours(255))
    assert generated_colours(3).tolist() == [[239, 104, 86], [0, 104, 77], [217, 186, 255]]


def test_oklch_has_white_black_and_red_where_its_author_has_them() -> None:
    lightness = np.array([1, 0, 0.6279554])
    colours = oklch_to_srgb(lightness, 0.257683, np.array([0, 0, 29.2339]))
    assert colours.tolist() == [[255, 255, 255], [0, 0, 0], [255, 0, 0]]


def test_more_classes_than_colours_are_painted_modulo_256() -> None:
    colours = PALETTES["generated"].colours_of(300)
    assert (len(colours), colours[256], colours[299]) == (300, colours[0], colours[43])


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


# Classes by name

NAMED = {
    "an index": ("voc", "15", 15),
    "an index behind the names": ("voc", " 200 ", 200),
    "a name": ("voc", "person", 15),
    "with a space": ("voc", "potted plant", 16),
    "in capitals": ("voc", "TV/Monitor", 20),
    "with an underscore": ("cityscapes", "traffic_light", 6),
    "with a hyphen": ("cocostuff", "wallconcrete", 160),
    "with a space behind it": ("ade20k", "bed ", 7),
    "of two words": ("camvid", "sign-symbol", 6),
}


@pytest.mark.parametrize("case", NAMED)
def test_a_class_is_found_by_its_index_or_its_name(case) -> None:
    name, text, index = NAMED[case]
    assert find_class(PALETTES[name], text) == index


UNKNOWN = {
    "misspelt": (
        "voc",
        "persn",
        (
            "classes: expected an index or a class name of the palette voc, got 'persn'. "
            "Did you mean person?"
        ),
    ),
    "empty": (
        "voc",
        "",
        "classes: expected an index or a class name of the palette voc, got nothing.",
    ),
    "negative": (
        "voc",
        "-1",
        "classes: expected an index or a class name of the palette voc, got '-1'.",
    ),
    "without names": (
        "generated",
        "road",
        (
            "classes: expected an index or a class name of the palette generated, got 'road'. "
            "It has no names: use the index, or name a palette."
        ),
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_class_is_an_error_that_names_a_similar_one(case) -> None:
    name, text, message = UNKNOWN[case]
    with pytest.raises(IllPosed) as error:
        find_class(PALETTES[name], text)
    assert error.value.detail == message


def test_a_name_of_several_classes_is_an_error() -> None:
    own = own_palette(np.arange(9, dtype=np.uint8).reshape(3, 3), ("door", "Wall", "wall"))
    with pytest.raises(IllPosed) as error:
        find_class(own, "wall", "colour_classes")
    assert error.value.detail == (
        "colour_classes: expected a class, got 'wall', the name of 1 and 2. Use the index."
    )


def test_class_names_of_a_palette_are_different() -> None:
    for palette in PALETTES.values():
        for index, name in enumerate(palette.class_names):
            assert find_class(palette, name) == index


# The palette of a picture

VOC = PALETTES["voc"].colours
ADE = PALETTES["ade20k"].colours
CITY_NAMES = PALETTES["cityscapes"].class_names
GREY = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
TWO = VOC[[3, 9]]

CHOICES = {
    # arguments: name, source, number of names
    "the option": ({"option": PALETTES["camvid"], "num_classes": 19}, "camvid", "option", 11),
    "the network": (
        {"network_names": CITY_NAMES, "files": [(VOC, [1])], "num_classes": 19},
        *("cityscapes", "network", 19),
    ),
    "a network with other spellings": (
        {"network_names": [name.upper().replace(" ", "_") for name in CITY_NAMES]},
        *("cityscapes", "network", 19),
    ),
    "a network of other classes": (
        {"network_names": ("cell", "gap"), "num_classes": 2},
        *("voc", "default", 2),
    ),
    "the file, VOC": ({"files": [(VOC, [0, 15])]}, "voc", "file", 21),
    "the file, VOC with logits": (
        {"files": [(VOC, [0, 15])], "num_classes": 21},
        "voc",
        "file",
        21,
    ),
    "VOC colours of other classes": (
        {"files": [(VOC, [0, 1])], "num_classes": 2},
        *("own", "file", 0),
    ),
    "VOC colours of more classes": ({"files": [(VOC, [0, 30])]}, "own", "file", 0),
    "ADE20K before Pascal-Context": ({"files": [(ADE, [3])]}, "ade20k", "file", 150),
    "Pascal-Context with logits": (
        {"files": [(ADE, [3])], "num_classes": 60},
        *("pascal_context", "file", 60),
    ),
    "generated colours": (
        {"files": [(PALETTES["generated"].colours, [3])], "num_classes": 40},
        *("generated", "file", 0),
    ),
    "two colours": ({"files": [(TWO, [0, 1])]}, "own", "file", 0),
    "the first file with colours": (
        {"files": [(GREY, [0, 1]), (VOC, [0])]},
        *("voc", "file", 21),
    ),
    "19 classes": ({"num_classes": 19}, "cityscapes", "values", 19),
    "150 classes": ({"num_classes": 150}, "ade20k", "values", 150),
    "171 classes": ({"num_classes": 171}, "cocostuff", "values", 171),
    "11 classes": ({"num_classes": 11}, "camvid", "values", 11),
    "59 classes": ({"num_classes": 59}, "pascal_context_59", "values", 59),
    "60 classes": ({"num_classes": 60}, "pascal_context", "values", 60),
    "21 classes": ({"num_classes": 21}, "voc", "values", 21),
    "8 classes": ({"num_classes": 8}, "voc", "default", 0),
    "22 classes": ({"num_classes": 22}, "generated", "values", 0),
    "1000 classes": ({"num_classes": 1000}, "generated", "values", 0),
    "a label space": (
        {"label_space": "cityscapes_ids", "largest_value": 18},
        *("cityscapes", "values", 19),
    ),
    "a label space of fewer classes": (
        {"label_space": "ade_zero", "largest_value": 200},
        *("generated", "values", 0),
    ),
    "values of VOC": ({"largest_value": 20}, "voc", "default", 0),
    "larger values": ({"largest_value": 21}, "generated", "values", 0),
    "nothing": ({}, "voc", "default", 0),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_palette_is_the_first_that_something_tells(case) -> None:
    arguments, name, source, num_names = CHOICES[case]
    chosen = choose_palette(**arguments)
    found = chosen.palette.name, chosen.source, len(chosen.palette.class_names)
    assert found == (name, source, num_names)


NO_FILE_PALETTES = {
    "grey": (GREY, [0, 7]),
    "black": (np.zeros((4, 3), np.uint8), [0, 1]),
    "no colour of a value": (VOC[:4], [0, 4]),
    "no colours": (VOC[:0], []),
    "negative values": (VOC, [-1]),
}


@pytest.mark.parametrize("case", NO_FILE_PALETTES)
def test_the_palette_in_a_file_is_not_used_if_it_shows_nothing(case) -> None:
    assert palette_of_file(*NO_FILE_PALETTES[case], None) is None


def test_a_palette_of_a_file_keeps_its_colours() -> None:
    own = palette_of_file(TWO, [0, 1], 2)
    assert own is not None
    assert own.colours[:2].tolist() == TWO.tolist()
    assert (own.num_classes, own.ignore_colour) == (2, [0, 0, 0])
    assert len(np.unique(own.colours, axis=0)) == NUM_COLOURS
    assert own_palette(GREY).colours.tolist() == GREY.tolist()


def test_the_fields_of_a_choice_have_a_colour_for_each_class() -> None:
    fields = choose_palette(num_classes=11).fields(11)
    assert list(fields) == ["name", "source", "class_names", "colours", "ignore_colour"]
    assert (len(fields["colours"]), fields["ignore_colour"]) == (11, [0, 0, 0])
    assert choose_palette(option=PALETTES["voc"]).fields(2)["class_names"] == [
        *("background", "aeroplane")
    ]


def test_the_label_map_of_fcns_demo_has_the_palette_of_voc() -> None:
    path = SHARED / "fcn-demo" / "label.png"
    if not path.exists():
        pytest.skip("the demo of FCN is not here")
    with Image.open(path) as picture:
        colours = np.array(picture.getpalette(), np.uint8).reshape(-1, 3)
        values = set(np.unique(picture).tolist()) - {255}
    assert palette_of_file(colours, values, 21) is PALETTES["voc"]
