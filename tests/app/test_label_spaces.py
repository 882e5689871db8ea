"""Label spaces: every value of each, and advice about labels of another space."""

import hashlib
import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from examples import label_png, safetensors_file, write_inputs
from PIL import Image
from serving import SAFETENSORS

import seg_loss
from app.errors import IllPosed
from app.images.palettes import PALETTES
from app.label_spaces import (
    LABEL_SPACES,
    VOID,
    advice_for,
    prediction_fix,
    shift_advice,
    to_classes,
    values_of_classes,
)

IGNORED = (VOID,)
CITYSCAPES = [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
COCO_UNUSED = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
UNUSED_NAMES = (
    *("street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door"),
    *("blender", "hair brush"),
)
COCO = [value for value in range(182) if value not in COCO_UNUSED]
COCO_IDS = [value + 1 for value in COCO]
CLASSES = {
    "cityscapes_ids": (
        dict.fromkeys([*range(34), VOID], VOID) | {v: c for c, v in enumerate(CITYSCAPES)}
    ),
    "ade_zero": {0: VOID, VOID: VOID, **{value: value - 1 for value in range(1, VOID)}},
    "cocostuff_182": {VOID: VOID, **{v: c for c, v in enumerate(COCO)}},
    "coco_ids": {0: VOID, VOID: VOID, **{v: c for c, v in enumerate(COCO_IDS)}},
    "binary_255": {0: 0, VOID: 1},
}
"""The class of every value; all others are invalid."""


# Of labels.py in cityscapesScripts: id, trainId, red, green, blue, name.
LABELS_OF_CITYSCAPES = """
0 255 0 0 0 unlabeled
1 255 0 0 0 ego vehicle
2 255 0 0 0 rectification border
3 255 0 0 0 out of roi
4 255 0 0 0 static
5 255 111 74 0 dynamic
6 255 81 0 81 ground
7 0 128 64 128 road
8 1 244 35 232 sidewalk
9 255 250 170 160 parking
10 255 230 150 140 rail track
11 2 70 70 70 building
12 3 102 102 156 wall
13 4 190 153 153 fence
14 255 180 165 180 guard rail
15 255 150 100 100 bridge
16 255 150 120 90 tunnel
17 5 153 153 153 pole
18 255 153 153 153 polegroup
19 6 250 170 30 traffic light
20 7 220 220 0 traffic sign
21 8 107 142 35 vegetation
22 9 152 251 152 terrain
23 10 70 130 180 sky
24 11 220 20 60 person
25 12 255 0 0 rider
26 13 0 0 142 car
27 14 0 0 70 truck
28 15 0 60 100 bus
29 255 0 0 90 caravan
30 255 0 0 110 trailer
31 16 0 80 100 train
32 17 0 0 230 motorcycle
33 18 119 11 32 bicycle
-1 -1 0 0 142 license plate
"""

# Of the table `clsID_to_trID` in mmsegmentation 1.2.2, sorted, as text.
CONVERTER_OF_MMSEGMENTATION = "19f483ef4e68f35f2b018252df840e09a49a186e8285948da3b0e295a6e47c03"
# Of the lines of labels.txt in the repository of COCO-Stuff.
LABELS_OF_COCOSTUFF = "a5b9a060feb7b151e0c6ba0c9d5ef4c791210b85fab7b3d483f58a638a093d4f"


def test_ids_of_cityscapes_have_the_train_ids_of_its_scripts():
    colours = PALETTES["cityscapes"].colours
    void = {PALETTES["cityscapes"].ignore_index}
    for line in LABELS_OF_CITYSCAPES.strip().splitlines():
        value, train_id, *colour, name = line.split(maxsplit=5)
        if int(value) < 0:
            continue  # the licence plate, which does not occur in files
        labels = np.array([[[int(value)]]], np.uint8)
        index = int(to_classes(labels, "cityscapes_ids", IGNORED, "labels")[0, 0, 0])
        assert index == int(train_id), name
        if index not in void:
            assert PALETTES["cityscapes"].class_names[index] == name
            assert colours[index].tolist() == [int(value) for value in colour], name


def test_colours_of_ids_without_a_train_id_are_void():
    palette = PALETTES["cityscapes"]
    void = {tuple(palette.ignore_colour), *palette.void_colours}
    others = set()
    for line in LABELS_OF_CITYSCAPES.strip().splitlines():
        _, train_id, *colour, name = line.split(maxsplit=5)
        if train_id == "255" and name != "polegroup":
            others.add(tuple(map(int, colour)))
    assert others == void


def test_the_numbering_of_cocostuff_is_that_of_mmsegmentation():
    table = LABEL_SPACES["cocostuff_182"].table
    pairs = [(value, int(table[value])) for value in range(256) if table[value] >= 0]
    assert hashlib.sha256(repr(pairs).encode()).hexdigest() == CONVERTER_OF_MMSEGMENTATION


def test_ids_of_coco_are_one_more_and_have_the_names_of_the_palette():
    table = LABEL_SPACES["coco_ids"].table
    names = PALETTES["cocostuff"].class_names
    unused = dict(zip(COCO_UNUSED, UNUSED_NAMES, strict=True))
    lines = ["0: unlabeled"]
    lines += [
        f"{value}: {unused[value - 1] if value - 1 in unused else names[table[value]]}"
        for value in range(1, 183)
    ]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == LABELS_OF_COCOSTUFF
    assert np.array_equal(table[1:183], LABEL_SPACES["cocostuff_182"].table[:182])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
@pytest.mark.parametrize("name", CLASSES)
def test_every_value_has_its_class_or_is_an_error(name, dtype):
    for value in range(256):
        labels = np.array([[[min(CLASSES[name]), value]]], dtype)
        if value in CLASSES[name]:
            classes = to_classes(labels, name, IGNORED, "labels")
            assert classes.dtype == np.uint8
            assert classes[0, 0, 1] == CLASSES[name][value]
        else:
            with pytest.raises(IllPosed) as error:
                to_classes(labels, name, IGNORED, "labels")
            assert error.value.got == f"{value} at (0, 0, 1)"


@pytest.mark.parametrize(
    ("name", "values", "other"),
    [("cocostuff_182", [0, 11, 182], "coco_ids"), ("coco_ids", [1, 12], "cocostuff_182")],
)
def test_ids_of_the_other_numbering_of_coco_name_it(name, values, other):
    with pytest.raises(IllPosed) as error:
        to_classes(np.array([[values]], np.uint8), name, IGNORED, "labels")
    assert error.value.fix == f"All values are ids of label_space={other}."
    with pytest.raises(IllPosed) as error:
        to_classes(np.array([[[*values, 200]]], np.uint8), name, IGNORED, "labels")
    assert error.value.fix is None


def test_each_class_has_the_value_that_becomes_it():
    for name, row in CLASSES.items():
        values = values_of_classes(name, 256)
        classes = sorted({index for index in row.values() if index != VOID})
        assert [row[value] for value in values.tolist()] == list(range(len(classes))), name
    assert values_of_classes("cityscapes_ids", 12).tolist() == [7, 8, 11]
    assert values_of_classes("raw", 3).tolist() == [0, 1, 2]
    assert values_of_classes("instance_1000", 256).tolist() == []


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("name", LABEL_SPACES)
def test_labels_of_every_dtype_are_read(name, dtype):
    value = 7 if name == "cityscapes_ids" else 0
    labels = np.full((1, 2, 2), value, dtype)
    classes = to_classes(labels, name, IGNORED, "labels")
    assert np.all(classes == (VOID if name in ("ade_zero", "coco_ids") else 0))
    advice_for(labels, 2, IGNORED, name)


@pytest.mark.parametrize("value", [256, 70000, -2])
@pytest.mark.parametrize("name", CLASSES)
def test_values_of_more_bits_are_not_wrapped(name, value):
    with pytest.raises(IllPosed) as error:
        to_classes(np.full((1, 2, 2), value), name, IGNORED, "prediction")
    assert error.value.detail == (
        f"prediction: expected {LABEL_SPACES[name].expected}, got {value} at (0, 0, 0) and 3 more "
        "pixels."
    )


def test_minus_1_is_void_in_spaces_with_void():
    labels = np.full((1, 1, 1), -1, np.int8)
    assert to_classes(labels, "cityscapes_ids", IGNORED, "labels").tolist() == [[[VOID]]]


def test_instances_have_the_class_of_their_thousand():
    labels = np.array([[[7, 33, 999, 1000, 26003, 33999]]], np.int32)
    classes = to_classes(labels, "instance_1000", IGNORED, "labels")
    assert classes.tolist() == [[[7, 33, 999, 1, 26, 33]]]


@pytest.mark.parametrize(
    ("where", "option"), [("labels", "label_space"), ("prediction", "prediction_space")]
)
@pytest.mark.parametrize("name", ["cityscapes_ids", "ade_zero", "cocostuff_182"])
def test_a_space_with_void_needs_it_ignored(name, where, option):
    with pytest.raises(IllPosed) as error:
        to_classes(np.zeros((1, 1, 1), np.uint8), name, (0,), where)
    assert error.value.detail == (
        f"ignore_index: expected 255 among its values, which {option}={name} gives to void "
        "pixels, got 0."
    )


# Advice

ADE = "values up to 150 for 150 classes look like ADE20K, with 0 for void and classes from 1."
IDS = "values up to 33 for 19 classes look like ids of Cityscapes, not train ids."
MASK = "values 0 and 255 for 2 classes look like a mask."
COCO_IDS = "values up to 181 for 171 classes look like ids of COCO-Stuff."
COCO_NUMBERS = "values up to 182 for 171 classes look like ids of COCO, with 0 for unlabelled."
INSTANCES = "values from 1000 on look like ids of instances, 1000 times their class and more."

LIKELY = {
    "a mask": ([0, 255], 2, (), "binary_255", MASK),
    "ids of Cityscapes": ([7, 8, 11, 23, 26], 19, IGNORED, "cityscapes_ids", IDS),
    "ids of Cityscapes with 19": ([0, 19, 33, -1], 19, IGNORED, "cityscapes_ids", IDS),
    "ADE20K with its last class": ([0, 1, 150], 150, IGNORED, "ade_zero", ADE),
    "ADE20K in a padded crop": ([0, 1, 150, 255], 150, IGNORED, "ade_zero", ADE),
    "ids of Cityscapes of which some are ignored": (
        *([7, 20, 33], 19, (20, 255), "cityscapes_ids", IDS),
    ),
    "COCO-Stuff": ([0, 12, 181, 255], 171, IGNORED, "cocostuff_182", COCO_IDS),
    "ids of COCO": ([0, 11, 182, 255], 171, IGNORED, "coco_ids", COCO_NUMBERS),
    "ids of COCO without the last": ([0, 11, 181], 171, IGNORED, "coco_ids", COCO_NUMBERS),
    "instances": ([7, 26003], 19, IGNORED, "instance_1000", INSTANCES),
}


@pytest.mark.parametrize("case", LIKELY)
def test_invalid_labels_name_the_space_that_they_look_like(case):
    values, num_classes, ignored, name, sign = LIKELY[case]
    labels = np.array([[values]])
    with pytest.raises(IllPosed) as error:
        advice_for(labels, num_classes, ignored, "")
    assert error.value.fix == f"{capitalized(sign)} Use label_space={name}."
    assert advice_for(labels, num_classes, ignored, "raw") == []  # the request has named a space


TWO_READINGS = {
    "void alone": ([0, 1, 19], 19, IGNORED, ""),
    "void in a crop without class 0": ([5, 19, 255], 19, IGNORED, "or from 1"),
    "void beside an ignored class": ([0, 5, 21], 21, (0,), "or from 1"),
    "one label 2 of 2 classes": ([2, 2], 2, (), "or from 1"),
    "the only class, from 1": ([1, 1], 1, IGNORED, "or from 1"),
    "void of COCO-Stuff": ([0, 171], 171, IGNORED, ""),
}


@pytest.mark.parametrize("case", TWO_READINGS)
def test_a_label_of_the_number_of_classes_is_void_or_counted_from_1(case):
    values, num_classes, ignored, second = TWO_READINGS[case]
    labels = np.array([[values]])
    with pytest.raises(IllPosed) as error:
        advice_for(labels, num_classes, ignored, "")
    present = [*(value for value in ignored if value in values), num_classes]
    fix = f"If {num_classes} marks void pixels, pass ignore_index={','.join(map(str, present))}."
    if second:
        fix += " If classes are counted from 1, pass label_space=ade_zero."
    assert error.value.fix == fix
    advice_for(labels, num_classes, (*ignored, num_classes), "")


@pytest.mark.parametrize(
    ("values", "ignored", "option"),
    [
        ([0, 1, -1], IGNORED, "-1"),
        ([0, 1, 255, -1, -1], IGNORED, "255,-1"),
        ([0, 1, 254], IGNORED, "254"),
        ([0, 1, 65535], (), "65535"),
        ([0, 1, 255], (7,), "255"),
    ],
)
def test_a_single_value_that_often_marks_void_pixels_has_a_fix(values, ignored, option):
    labels = np.array([[values]])
    with pytest.raises(IllPosed) as error:
        advice_for(labels, 3, ignored, "")
    void = option.split(",")[-1]
    assert error.value.fix == f"If {void} marks void pixels, pass ignore_index={option}."
    advice_for(labels, 3, tuple(map(int, option.split(","))), "")


@pytest.mark.parametrize("ignored", [(), (0,), (7, -1)])
def test_the_error_is_that_of_the_library_with_another_fix(ignored):
    labels = np.array([[[0, 255, 0], [255, 0, 255]]])
    with pytest.raises(IllPosed) as error:
        advice_for(labels, 2, ignored, "")
    with pytest.raises(seg_loss.InvalidInput) as same:
        seg_loss.evaluate(torch.zeros(1, 2, 2, 3), torch.from_numpy(labels), ignore_index=ignored)
    assert (error.value.expected, error.value.got) == (same.value.expected, same.value.got)


OR_RAW = "or label_space=raw if they are class indices."
ADVICE = {
    "a mask whose foreground is ignored": (
        [0, 0, 255],
        2,
        IGNORED,
        [
            f"labels: {MASK} Use label_space=binary_255, {OR_RAW}",
            "labels: all pixels that are not ignored have the class 0.",
        ],
    ),
    "most pixels ignored": (
        [0, 1, 255, 255, 7],
        3,
        (255, 7),
        ["labels: 60 % of the pixels are ignored."],
    ),
    "all pixels ignored": ([4, 4], 3, (4,), ["labels: 100 % of the pixels are ignored."]),
    "one class alone": (
        [2, 2, 255],
        3,
        IGNORED,
        ["labels: all pixels that are not ignored have the class 2."],
    ),
    "one pixel": ([2], 3, IGNORED, []),
    "one class": ([0, 0], 1, IGNORED, []),
    "half of the pixels ignored": ([0, 1, 255, 255], 2, IGNORED, []),
    "Cityscapes": ([0, 18, 7, 255], 19, IGNORED, []),
    "void at the number of classes": ([0, 11, 3], 11, (11,), []),
    "ADE20K with void": ([0, 149, 255], 150, IGNORED, []),
    "ADE20K in a crop without void": ([0, 3, 149], 150, IGNORED, []),
    "ADE20K whose last class is ignored": ([0, 3, 150], 150, (150,), []),
    "Cityscapes with another void": ([0, 18, 7, 20], 19, (20,), []),
    "Cityscapes with the last id as void": ([0, 18, 7, 33], 19, (33, 255), []),
    "void of 15 and 16 bits, which the library names": ([0, 1, 32767, 65535], 21, IGNORED, []),
    "invalid for no known reason": ([0, 1, 77], 3, IGNORED, []),
}


@pytest.mark.parametrize("case", ADVICE)
def test_valid_labels_that_are_probably_unintended_have_advice(case):
    values, num_classes, ignored, sentences = ADVICE[case]
    assert advice_for(np.array([[values]]), num_classes, ignored, "") == sentences


def test_rare_labels_are_counted_though_a_sample_is_read():
    labels = np.zeros((1, 999, 999), np.uint8)
    alone = ["labels: all pixels that are not ignored have the class 0."]
    assert advice_for(labels, 3, IGNORED, "") == alone
    labels[0, 500, 500] = 255
    assert advice_for(labels, 3, IGNORED, "") == alone
    labels[0, 500, 501] = 1
    assert advice_for(labels, 3, IGNORED, "") == []


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_all_pixels_must_confirm_what_a_sample_looks_like(dtype):
    labels = np.zeros((1, 1024, 2048), dtype)
    labels[0, :3] = 255
    assert len(advice_for(labels, 2, IGNORED, "")) == 2
    labels[0, 500:506, 701:711] = 1
    assert advice_for(labels, 2, IGNORED, "") == []
    labels[0, 600:800] = 19
    with pytest.raises(IllPosed, match="marks void"):
        advice_for(labels, 19, IGNORED, "")
    labels[0, 0, 0] = 26
    with pytest.raises(IllPosed, match="ids of Cityscapes"):
        advice_for(labels, 19, IGNORED, "")
    labels[0, 0, 0] = 99
    assert advice_for(labels, 19, IGNORED, "") == []


def test_a_share_below_all_is_not_shown_as_100_percent():
    labels = np.full((1, 300, 300), 255)
    labels[0, 7, :3] = 1, 2, 0
    advice = ["labels: more than 99.9 % of the pixels are ignored."]
    assert advice_for(labels, 3, IGNORED, "") == advice
    confusion = np.eye(4, k=-1, dtype=np.int64) * 9999
    confusion[0, 0] = 1
    (advice,) = shift_advice(confusion)
    assert "agree with 0.00333 % of the labels, and with more than 99.9 % of the" in advice


SHIFTED = {
    "labels from 1": (-1, 9, "minus 1. Classes from 1, with 0 for void? Use label_space=ade_zero."),
    "labels reduced twice": (1, 9, "plus 1. Has 1 been subtracted twice?"),
    "labels of the predictions": (0, 9, ""),
    "labels of two classes": (-1, 2, ""),
}


@pytest.mark.parametrize("case", SHIFTED)
def test_predictions_tell_that_labels_are_shifted_by_one(case):
    shift, num_classes, advice = SHIFTED[case]
    confusion = np.ones((num_classes, num_classes), np.int64)
    confusion += 50 * np.eye(num_classes, k=shift, dtype=np.int64)
    sentences = shift_advice(confusion)
    assert len(sentences) == bool(advice)
    if advice:
        assert sentences[0] == (
            "labels: predictions agree with 1.87 % of the labels, and with 84.8 % of the labels "
            + advice
        )


def test_a_network_that_predicts_one_class_is_not_a_shift():
    confusion = np.zeros((4, 4), np.int64)
    confusion[:, 1] = [1, 1, 97, 1]
    assert shift_advice(confusion) == []
    assert shift_advice(np.zeros((4, 4), np.int64)) == []


def test_shifted_labels_are_recognized_in_an_evaluation(client):
    labels = (torch.arange(40) % 4 + 1).reshape(1, 5, 8)
    logits = torch.nn.functional.one_hot(labels - 1, 5).movedim(-1, 1).float().contiguous()
    for path in ("/v1/loss", "/v1/evaluate"):
        answer = client.post_tensors(path, logits=logits, labels=labels).json()
        assert answer["warnings"] == [
            "labels: predictions agree with 0 % of the labels, and with 100 % of the labels minus "
            + SHIFTED["labels from 1"][2].removeprefix("minus ")
        ]
    path = "/v1/evaluate?label_space=ade_zero"
    answer = client.post_tensors(path, logits=logits, labels=labels).json()
    assert (answer["metrics"]["mean_iu"], answer["warnings"]) == (1.0, [])


@pytest.fixture
def mask():
    """Perfect logits for a 0/255 mask, and the mask."""
    labels = np.zeros((8, 9), np.uint8)
    labels[2:4, 3:6] = 255
    truth = torch.from_numpy(labels // 255).long()
    logits = torch.nn.functional.one_hot(truth, 2).permute(2, 0, 1)[None].float()
    return {"logits": logits.contiguous(), "labels": torch.from_numpy(labels)[None]}


def test_every_answer_carries_the_warnings(client, run, mask, empty_directory):
    expected = ADVICE["a mask whose foreground is ignored"][3]
    for path in ("loss", "evaluate"):
        assert client.post_tensors(f"/v1/{path}", **mask).json()["warnings"] == expected
    _, metadata = safetensors_of(client.post_tensors("/v1/gradient", **mask).content)
    assert json.loads(metadata["warnings"]) == expected
    headers = {**SAFETENSORS, "Accept": "application/x-npy, image/png"}
    for path in ("/v1/gradient", "/v1/visualize?kind=nll"):
        response = client.post(path, content=safetensors_file(**mask), headers=headers)
        assert response.headers["Seg-Loss-Warning"] == " ".join(expected)
    write_inputs(mask)
    for command in ("loss", "evaluate", "gradient -o g.npy", "visualize -o a.png --kind nll"):
        name, *options = command.split()
        status, _, err = run(name, "logits.npy", "labels.png", *options)
        assert status == 0
        flags = (text.replace("label_space=", "--label-space ") for text in expected)
        warnings = [line for line in err.splitlines() if "warning" in line]
        assert warnings == [f"seg-loss: warning: {sentence}" for sentence in flags]


@pytest.mark.parametrize("shape", [(4, 2), (1, 2, 2, 2), (1, 2, 1, 2, 2)])
def test_labels_of_any_number_of_axes_have_advice(client, shape):
    labels = torch.zeros(shape[0], *shape[2:], dtype=torch.uint8)
    answer = client.post_tensors("/v1/loss", logits=torch.zeros(shape), labels=labels).json()
    expected = ["labels: all pixels that are not ignored have the class 0."]
    assert answer["warnings"] == expected


def test_a_mask_is_read_as_two_classes(client, run, mask, empty_directory):
    wrong = client.post_tensors("/v1/evaluate", **mask).json()
    assert (wrong["metrics"]["mean_iu"], wrong["ignored_pixels"]) == (1.0, 6)
    answer = client.post_tensors("/v1/evaluate?label_space=binary_255", **mask).json()
    assert answer["ignored_pixels"] == 0
    assert [row["pixels"] for row in answer["per_class"]] == [66, 6]
    assert answer["warnings"] == []
    write_inputs(mask)
    arguments = ("logits.npy", "labels.png", "--label-space", "binary_255", "--format", "json")
    of_files = json.loads(run("evaluate", *arguments)[1])
    assert of_files["inputs"]["labels"]["values"] == answer["inputs"]["labels"]["values"]
    echo = ("inputs", "palette")  # a file has a mode and colours
    for fields in (of_files, answer):
        assert [fields.pop(name)["labels" if name == "inputs" else "colours"] for name in echo]
    assert of_files == answer


def test_an_invalid_label_names_its_space_in_the_answer(client):
    labels = torch.full((1, 2, 2), 26, dtype=torch.uint8)
    problem = client.post_tensors("/v1/loss", logits=torch.zeros(1, 19, 2, 2), labels=labels).json()
    assert problem["detail"] == (
        "labels: expected 0...18 or 255 (ignored), got 26 at (0, 0, 0) and 3 more pixels. "
        f"{capitalized(IDS)} Use label_space=cityscapes_ids."
    )


def test_a_prediction_has_a_space_of_its_own(run, empty_directory):
    Path("p.png").write_bytes(label_png(np.array([[7, 26], [0, 33]])))
    Path("l.png").write_bytes(label_png(np.array([[0, 13], [255, 18]])))
    spaces = ("--prediction-space", "cityscapes_ids", "--palette", "cityscapes")
    for kind in ("prediction", "labels"):
        output = (f"{kind}.png", "--kind", kind)
        arguments = ("--prediction", "p.png", "--labels", "l.png", *spaces, "-o", *output)
        assert run("visualize", *arguments) == (0, "", "")
    assert Path("prediction.png").read_bytes() == Path("labels.png").read_bytes()


def test_colours_have_no_label_space(run, empty_directory):
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save("colours.png")
    options = ("--palette", "cityscapes", "--label-space", "cityscapes_ids")
    status, _, err = run("visualize", "--labels", "colours.png", *options, "-o", "a.png")
    assert status == 1
    assert err == (
        "seg-loss: labels: expected indices, which --label-space cityscapes_ids maps, got "
        "colours (mode RGB).\n"
    )


def capitalized(sentence):
    return sentence[0].upper() + sentence[1:]


def safetensors_of(content):
    """The tensors and the metadata of a safetensors file."""
    (length,) = struct.unpack_from("<Q", content)
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    return safetensors.torch.load(content), metadata


def test_the_advice_about_many_values_takes_little_memory():
    """A body of a gigabyte may have 268 million values, of which Python would make objects."""
    labels = np.arange(2000, 2000 + (1 << 20), dtype=np.int32)[None]
    tracemalloc.start()
    try:
        with pytest.raises(IllPosed, match=r"Use label_space=instance_1000\.$"):
            advice_for(labels, 19, IGNORED, "")
        assert prediction_fix(labels, 19).endswith("Use prediction_space=instance_1000.")
        assert tracemalloc.get_traced_memory()[1] < 10 * labels.nbytes
    finally:
        tracemalloc.stop()
