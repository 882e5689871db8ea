"""Palettes in requests: sent as a file or a tensor, named, or chosen by what is known."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import label_png, make_inputs, npy_file, safetensors_file
from PIL import Image
from serving import SAFETENSORS, assert_problem

from app.formats import palette_files
from app.images.palettes import PALETTES

COLOURS = np.array([[10, 0, 0], [0, 20, 0], [0, 0, 30], [40, 40, 0], [0, 50, 50]], np.uint8)
NAMES = ("cell", "gap", "wall", "trace", "rest")
TEXT = "".join(
    f"{r} {g} {b} {name}\n" for (r, g, b), name in zip(COLOURS.tolist(), NAMES, strict=True)
)
LOGITS = make_inputs()["logits"]
LABELS = np.arange(42, dtype=np.uint8).reshape(6, 7) % 5
JSON = {"Accept": "application/json"}
MEMBER = {
    "name": "own",
    "source": "option",
    "class_names": list(NAMES),
    "colours": COLOURS.tolist(),
    "ignore_colour": [0, 0, 0],
}


def picture(colours: np.ndarray, **options: object) -> bytes:
    target = io.BytesIO()
    Image.fromarray(colours).save(target, "PNG", **options)
    return target.getvalue()


def drawn(content: bytes) -> np.ndarray:
    """The picture in RGB."""
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


RGB = picture(COLOURS[LABELS])
FILES = {
    "mine.txt": TEXT,
    "mine.gpl": f"GIMP Palette\nName: mine\n#\n{TEXT}",
    "mine.json": json.dumps(dict(zip(NAMES, COLOURS.tolist(), strict=True))),
}


# One's own palette


@pytest.mark.parametrize("path", ["loss", "evaluate", "predict"])
@pytest.mark.parametrize("name", FILES)
def test_coloured_labels_are_read_by_a_palette_that_is_sent(client, path, name) -> None:
    files = {"logits": npy_file(LOGITS.numpy()), "labels": RGB, "palette": FILES[name].encode()}
    answer = client.post(f"/v1/{path}", files=files, headers=JSON).json()
    assert answer["palette"] == MEMBER
    assert answer["inputs"]["labels"]["read_as"] == "colours"
    values, counts = np.unique(LABELS, return_counts=True)
    assert answer["inputs"]["labels"]["values"] == np.stack([values, counts], 1).tolist()


def test_a_palette_may_be_a_tensor_without_names(client) -> None:
    palette = torch.from_numpy(COLOURS)
    answer = client.post_tensors("/v1/evaluate", **make_inputs(), palette=palette).json()
    assert answer["palette"] == {**MEMBER, "class_names": []}
    files = {"labels": RGB, "palette": npy_file(COLOURS)}
    response = client.post("/v1/visualize?kind=labels", files=files)
    assert np.array_equal(drawn(response.content), COLOURS[LABELS])


INVALID = {
    "another dtype": (torch.zeros(5, 3), "uint8 [n,3], a colour for each class", "float32 (5, 3)"),
    "another shape": (
        torch.zeros(3, 5, dtype=torch.uint8),
        *("uint8 [n,3], a colour for each class", "uint8 (3, 5)"),
    ),
    "too many": (torch.zeros(257, 3, dtype=torch.uint8), "1...256 colours", "257"),
    "none": (torch.zeros(0, 3, dtype=torch.uint8), "1...256 colours", "0"),
}


@pytest.mark.parametrize("case", INVALID)
def test_a_tensor_that_is_no_palette_is_an_error(client, case) -> None:
    palette, expected, got = INVALID[case]
    response = client.post_tensors("/v1/loss", **make_inputs(), palette=palette)
    problem = assert_problem(response, 422, "ill_posed")
    assert (problem["where"], problem["expected"], problem["got"]) == ("palette", expected, got)


def test_a_palette_file_that_cannot_be_used_is_an_error(client) -> None:
    files = {"labels": RGB, "palette": b"1 2 3 road\n1 2 wall\n"}
    problem = assert_problem(
        client.post("/v1/visualize?kind=labels", files=files), 422, "ill_posed"
    )
    assert problem["where"] == "palette, line 2"
    files["palette"] = b"0" * (palette_files.MAX_BYTES + 1)
    problem = assert_problem(
        client.post("/v1/visualize?kind=labels", files=files), 413, "too_large"
    )
    assert problem["limit"] == palette_files.MAX_BYTES
    files["palette"] = TEXT.encode()
    response = client.post("/v1/visualize?kind=labels&palette=voc", files=files)
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["detail"] == "palette: expected the option or the input, got both."


@pytest.fixture
def files_of_mine(empty_directory):
    """Logits, coloured labels and the palettes, in the current directory."""
    Path("logits.npy").write_bytes(npy_file(LOGITS.numpy()))
    Path("labels.png").write_bytes(RGB)
    Path("folder").mkdir()
    for name, text in FILES.items():
        Path(name).write_text(text)
        Path("folder", name).with_suffix("").write_text(text)


@pytest.mark.parametrize("path", [*FILES, "./folder/mine"])
def test_the_command_line_takes_the_path_of_a_palette(files_of_mine, run, path) -> None:
    for command in ("loss", "evaluate"):
        arguments = ("logits.npy", "labels.png", "--palette", path, "--format", "json")
        status, out, err = run(command, *arguments)
        assert (status, err, json.loads(out)["palette"]) == (0, "", MEMBER)
    status, table, _ = run("loss", "logits.npy", "labels.png", "--palette", path)
    assert [name in table for name in NAMES] == [True] * 5
    arguments = ("--labels", "labels.png", "--kind", "labels", "--palette", path)
    assert run("visualize", *arguments, "-o", "a.png") == (0, "", "")
    assert np.array_equal(drawn(Path("a.png").read_bytes()), COLOURS[LABELS])
    assert run("gradient", "logits.npy", "labels.png", "--palette", path, "-o", "g.npy")[0] == 0
    _, out, _ = run(
        *("predict", "logits.npy", "--labels", "labels.png", "--palette", path),
        *("-o", "b.png", "--format", "json"),
    )
    assert json.loads(out)["palette"] == MEMBER
    prediction = LOGITS[0].argmax(0).numpy()
    assert np.array_equal(drawn(Path("b.png").read_bytes()), COLOURS[prediction])


NO_PALETTES = {
    "missing.txt": (1, "seg-loss: missing.txt: No such file or directory\n"),
    "cityscape": (
        2,
        (
            f"seg-loss: palette: expected one of {', '.join(PALETTES)}, got 'cityscape'. Did you "
            "mean cityscapes?\n"
        ),
    ),
    "labels.png": (1, "seg-loss: palette: expected text in UTF-8, got other bytes.\n"),
}


@pytest.mark.parametrize("path", NO_PALETTES)
def test_a_path_that_is_no_palette_is_an_error(files_of_mine, run, path) -> None:
    status, message = NO_PALETTES[path]
    arguments = ("logits.npy", "labels.png", "--palette", path)
    assert run("loss", *arguments) == (status, "", message)


# Colours of several classes, and unknown ones


@pytest.mark.parametrize(("text", "index"), [("48", 48), ("Sky-Scraper", 48), ("sky,road", 6)])
def test_the_class_of_a_shared_colour_is_named_or_numbered(client, text, index) -> None:
    files = {"labels": picture(PALETTES["ade20k"].paint(np.array([[6, 48, 2]])))}
    path = f"/v1/visualize?kind=labels&palette=ade20k&colour_classes={text}"
    with Image.open(io.BytesIO(client.post(path, files=files).content)) as image:
        assert np.array(image).tolist() == [[index, index, 2]]


def test_a_shared_colour_is_an_error_in_the_words_of_the_entry_point(client, run, tmp_path) -> None:
    content = picture(PALETTES["ade20k"].paint(np.array([[6, 2]])))
    response = client.post("/v1/visualize?kind=labels&palette=ade20k", files={"labels": content})
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["got"].startswith("(140, 140, 140) of road (6) and skyscraper (48) on 1 pixel")
    assert "colour_classes=6" in problem["fix"]
    path = tmp_path / "labels.png"
    path.write_bytes(content)
    output = ("-o", tmp_path / "a.png", "--kind", "labels", "--palette", "ade20k")
    _, _, err = run("visualize", "--labels", path, *output)
    assert "such as --colour-classes 6" in err
    _, _, err = run("visualize", "--labels", path, *output, "--colour-classes", "rod")
    assert err == (
        "seg-loss: colour_classes: expected an index or a class name of the palette ade20k, got "
        "'rod'. Did you mean road?\n"
    )


@pytest.mark.parametrize("text", ["", "road,", ",", " "])
def test_a_class_without_a_name_is_an_error(client, text) -> None:
    response = client.post_tensors(f"/v1/loss?colour_classes={text}", **make_inputs())
    problem = assert_problem(response, 422, "ill_posed")
    assert problem["expected"] == "indices or names of classes, with commas between them"


def test_unknown_colours_are_an_error_or_ignored_with_a_warning(client) -> None:
    colours = PALETTES["voc"].paint(LABELS).copy()
    colours[0, 0] = (1, 2, 3)
    files = {"logits": npy_file(LOGITS.numpy()), "labels": picture(colours)}
    response = client.post("/v1/loss?palette=voc", files=files)
    problem = assert_problem(response, 422, "ill_posed")
    assert "unknown_colours=ignore" in problem["fix"]
    answer = client.post("/v1/loss?palette=voc&unknown_colours=ignore", files=files).json()
    assert answer["ignored_pixels"] == answer["inputs"]["labels"]["ignored_pixels"] == 1
    assert answer["warnings"] == [
        (
            "labels: colours that the palette voc does not have are ignored: 1 other colour on 1 "
            "pixel: (1, 2, 3)."
        )
    ]


# The palette of a picture without the option `palette`


def test_labels_and_prediction_have_the_colours_of_the_file(client) -> None:
    labels = label_png(LABELS, "camvid")
    files = {"logits": npy_file(LOGITS.numpy()), "labels": labels}
    camvid = PALETTES["camvid"].colours
    for kind, indices in (("labels", LABELS), ("prediction", LOGITS[0].argmax(0).numpy())):
        content = client.post(f"/v1/visualize?kind={kind}", files=files).content
        assert np.array_equal(drawn(content), camvid[indices]), kind
    content = client.post("/v1/predict", files=files).content
    assert np.array_equal(drawn(content), camvid[LOGITS[0].argmax(0).numpy()])
    files = {"labels": labels, "prediction": label_png(LABELS[::-1], "voc")}
    content = client.post("/v1/visualize?kind=prediction", files=files).content
    assert np.array_equal(drawn(content), camvid[LABELS[::-1]])


def test_the_palette_of_a_file_follows_the_label_space(client) -> None:
    colours = np.concatenate([[[9, 9, 9]], COLOURS]).astype(np.uint8)
    image = Image.frombytes("P", (7, 6), (LABELS + 1).tobytes())
    image.putpalette(colours.tobytes())
    target = io.BytesIO()
    image.save(target, "PNG")
    files = {"logits": npy_file(LOGITS.numpy()), "labels": target.getvalue()}
    answer = client.post("/v1/loss?label_space=ade_zero", files=files).json()
    assert answer["palette"] == {**MEMBER, "source": "file", "class_names": []}
    assert answer["inputs"]["labels"]["values"][0][0] == 1


@pytest.mark.parametrize(
    ("num_classes", "name", "source"),
    [
        (19, "cityscapes", "values"),
        (21, "voc", "values"),
        (11, "camvid", "values"),
        (5, "voc", "default"),
        (30, "generated", "values"),
    ],
)
def test_logits_have_the_palette_of_their_number_of_classes(
    client, num_classes, name, source
) -> None:
    tensors = {
        "logits": torch.zeros(1, num_classes, 2, 3),
        "labels": torch.zeros(1, 2, 3, dtype=torch.uint8),
    }
    for path in ("loss", "evaluate", "predict"):
        content = safetensors_file(**tensors)
        response = client.post(f"/v1/{path}", content=content, headers={**SAFETENSORS, **JSON})
        member = response.json()["palette"]
        assert (member["name"], member["source"]) == (name, source)
        assert len(member["colours"]) == num_classes
        names = PALETTES[name].class_names
        assert member["class_names"] == ([] if source == "default" else list(names))


@pytest.mark.parametrize(
    ("query", "largest", "source"),
    [
        ("", 18, "default"),
        ("", 20, "default"),
        ("", 30, "values"),
        ("label_space=ade_zero", 50, "values"),
        ("prediction_space=ade_zero", 50, "values"),
    ],
)
def test_two_label_maps_have_the_palette_of_their_picture(client, query, largest, source) -> None:
    values = np.arange(1, largest + 1, dtype=np.uint8)[None]
    files = {"labels": picture(values), "prediction": picture(values)}
    answer = client.post(f"/v1/evaluate?{query}", files=files).json()
    assert answer["palette"]["source"] == source
    content = client.post(f"/v1/visualize?kind=prediction&{query}", files=files).content
    palette = PALETTES[answer["palette"]["name"]]
    classes = values if "prediction" not in query else values - 1
    assert np.array_equal(drawn(content), palette.colours[classes])


def test_indented_json_is_not_taken_for_safetensors(client) -> None:
    palette = b'[\n      {"name": "road", "color": [1, 2, 3]}]'
    assert palette[8:9] == b"{"
    files = {"labels": picture(np.zeros((2, 3), np.uint8)), "palette": palette}
    content = client.post("/v1/visualize?kind=labels", files=files).content
    assert np.array_equal(drawn(content)[0, 0], [1, 2, 3])


def test_the_help_names_the_palettes_and_a_file(run) -> None:
    text = " ".join(run("visualize", "--help")[1].split())
    assert "generated, or the path of a file" in text


def test_a_prediction_alone_has_the_palette_of_its_space(client) -> None:
    files = {"prediction": picture(np.array([[7, 26], [0, 33]], np.uint8))}
    path = "/v1/visualize?kind=prediction&prediction_space=cityscapes_ids"
    colours = PALETTES["cityscapes"].colours
    assert np.array_equal(
        drawn(client.post(path, files=files).content), colours[[[0, 13], [255, 18]]]
    )


def test_a_label_map_comes_back_as_its_own_input(client) -> None:
    for name in ("cityscapes", "ade20k", "generated"):
        first = client.post(
            f"/v1/visualize?kind=labels&palette={name}", files={"labels": label_png(LABELS)}
        ).content
        again = client.post("/v1/visualize?kind=labels", files={"labels": first}).content
        assert again == first, name


# Lists


def test_the_palettes_name_the_colours_that_classes_share(client, run) -> None:
    answer = client.get("/v1/palettes/ade20k").json()
    assert answer["shared_colours"] == [{"colour": [140, 140, 140], "classes": [6, 48]}]
    assert (answer["num_classes"], len(answer["class_names"])) == (150, 150)
    rows = {row["name"]: row for row in client.get("/v1/palettes").json()["palettes"]}
    assert list(rows) == list(PALETTES)
    assert (rows["generated"]["num_classes"], rows["generated"]["class_names"]) == (256, [])
    _, table, _ = run("palettes", "ade20k")
    assert "140 140 140" in table
    assert "6 road, 48 skyscraper" in table
    _, table, _ = run("palettes", "voc")
    assert "shared" not in table
    assert json.loads(run("palettes", "ade20k", "--format", "json")[1]) == answer
