"""`seg-loss predict`: files and folders of logits and photos, their outputs, reports and errors."""

import csv
import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from examples import label_png, npy_file, safetensors_file
from PIL import Image
from small_networks import CLASS_NAMES, FCN_CHANNELS, make_photos, write_checkpoint

import seg_loss
from app import network as networks
from app.devices import CPU
from app.settings import Settings
from models import caffe_weights
from models.fcn import FCN8s
from models.surgery import initialize
from tests.models import thin

NAMES = ("a", "b", "sub/c")


def logits_of(name: str) -> torch.Tensor:
    return torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(NAMES.index(name)))


def labels_of(name: str) -> torch.Tensor:
    labels = logits_of(name).argmax(0).byte()
    labels[0] = 255
    labels[1, : NAMES.index(name) + 2] = 0
    return labels


@pytest.fixture
def folder(empty_directory) -> Path:
    """Logits in `logits` and labels in `labels`, in different file types, and what is neither."""
    for name in ("logits/sub", "logits/.hidden", "labels/sub"):
        Path(name).mkdir(parents=True)
    Path("logits/a.npy").write_bytes(npy_file(logits_of("a").numpy()))
    Path("logits/b.safetensors").write_bytes(safetensors_file(logits=logits_of("b")))
    np.savez_compressed("logits/sub/c.npz", logits=logits_of("sub/c").numpy())
    Path("logits/readme.txt").write_text("neither")
    Path("logits/.hidden/d.npy").write_bytes(b"neither")
    Path("labels/a.png").write_bytes(label_png(labels_of("a").numpy()))
    Path("labels/b.npy").write_bytes(npy_file(labels_of("b").numpy()))
    Path("labels/sub/c.png").write_bytes(label_png(labels_of("sub/c").numpy()))
    return empty_directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "Strided")


@pytest.fixture
def photos(empty_directory, checkpoint) -> list[str]:
    """Writes two photos into `photos`; returns the flags of the network."""
    Path("photos").mkdir()
    first, second = make_photos((40, 50), (30, 20))
    Image.fromarray(first).save("photos/first.png")
    Image.fromarray(second).save("photos/second.JPG")
    return ["--model", str(checkpoint), "--network", "small_networks:Strided"]


@pytest.fixture
def run_with_stdin(run):
    """Runs `seg-loss` with these bytes as standard input; returns stdout."""

    def run_with_stdin(content: bytes, *arguments: str) -> str:
        reader, writer = os.pipe()
        os.write(writer, content)  # small enough for the buffer of a pipe
        os.close(writer)
        before = os.dup(0)
        os.dup2(reader, 0)
        try:
            status, out, err = run(*arguments)
        finally:
            os.dup2(before, 0)
            os.close(before)
            os.close(reader)
        assert (status, err) == (0, "")
        return out

    return run_with_stdin


def indices_in(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "P"
        return np.array(picture)


def files_in(directory: str) -> set[str]:
    root = Path(directory)
    return {f"{path.relative_to(root)}" for path in root.rglob("*") if path.is_file()}


def test_a_folder_becomes_a_folder_of_label_maps(folder, run):
    status, out, err = run("predict", "logits", "-o", "out", "--format", "json")
    assert (status, err) == (0, "")
    assert files_in("out") == {"a.png", "b.png", "sub/c.png"}
    for name in NAMES:
        assert np.array_equal(indices_in(f"out/{name}.png"), logits_of(name).argmax(0).numpy())
    report = json.loads(out)
    assert [row["file"] for row in report["files"]] == [
        "logits/a.npy",
        "logits/b.safetensors",
        "logits/sub/c.npz",
    ]
    for name, row in zip(NAMES, report["files"], strict=True):
        counts = torch.bincount(logits_of(name).argmax(0).flatten(), minlength=5).tolist()
        assert [entry["pixels"] for entry in row["classes"]] == [count for count in counts if count]
        assert row["outputs"] == [f"out/{name}.png"]
    assert sum(row["pixels"] for row in report["classes"]) == 3 * 42
    assert report["failures"] == []
    assert report["metrics"] is None


def test_several_files_and_folders_are_inputs_together(folder, run):
    Path("out").mkdir()
    status, out, _ = run("predict", "logits/sub", "logits/a.npy", "-o", "out", "--format", "json")
    assert status == 0
    assert files_in("out") == {"a.png", "c.png"}
    assert len(json.loads(out)["files"]) == 2


def test_a_single_file_becomes_a_file_of_any_name(folder, run):
    assert run("predict", "logits/a.npy", "-o", "label map.png")[0] == 0
    assert run("predict", "logits/a.npy", "-o", "place")[0] == 0
    assert run("predict", "logits/a.npy", "-o", "maps.safetensors")[0] == 0
    expected = logits_of("a").argmax(0)
    for path in ("label map.png", "place/a.png"):
        assert np.array_equal(indices_in(path), expected.numpy())
    maps = safetensors.torch.load_file("maps.safetensors")
    assert torch.equal(maps["prediction"][0].long(), expected)
    assert not Path("maps.png").exists()


def test_maps_are_written_beside_the_label_maps(folder, run):
    flags = ["--maps", "confidence,top_classes", "--size", "12,14", "--temperature", "2"]
    assert run("predict", "logits", "-o", "out", *flags)[0] == 0
    assert run("predict", "logits/a.npy", "-o", "one.png", *flags)[0] == 0
    assert files_in("out") == {f"{name}{end}" for name in NAMES for end in (".png", ".safetensors")}
    names = ("prediction", "confidence", "top_classes")
    for name in NAMES:
        expected = seg_loss.predict(
            logits_of(name)[None], size=(12, 14), maps=names, temperature=2.0
        )
        maps = safetensors.torch.load_file(f"out/{name}.safetensors")
        assert maps.keys() == {"confidence", "top_classes"}
        assert all(torch.equal(maps[key], expected[key]) for key in maps)
        assert np.array_equal(indices_in(f"out/{name}.png"), expected["prediction"][0].numpy())
    assert Path("one.safetensors").read_bytes() == Path("out/a.safetensors").read_bytes()


def test_with_labels_the_confusions_of_the_set_are_summed(folder, run):
    status, out, err = run(
        "predict", "logits", "-o", "out", "--labels", "labels", "--format", "json"
    )
    assert (status, err) == (0, "")
    logits = torch.stack([logits_of(name) for name in NAMES])
    labels = torch.stack([labels_of(name) for name in NAMES])
    expected = seg_loss.evaluate(logits, labels)
    report = json.loads(out)
    assert report["confusion"] == expected.confusion.tolist()
    assert report["metrics"]["mean_iu"] == pytest.approx(expected.metrics.mean_iu, rel=1e-12)
    for row, image in zip(report["files"], expected.per_image, strict=True):
        assert row["loss"] == pytest.approx(image.loss, rel=1e-6)
    out = run("predict", "logits", "-o", "out", "--labels", "labels", "--format", "csv")[1]
    rows = {tuple(row[:3]): row[3] for row in csv.reader(io.StringIO(out))}
    assert float(rows["batch", "", "mean_iu"]) == report["metrics"]["mean_iu"]
    assert float(rows["file", "logits/a.npy", "loss"]) == report["files"][0]["loss"]


def test_a_metric_of_the_set_below_its_threshold_exits_with_1(folder, run):
    arguments = ["predict", "logits", "-o", "out", "--labels", "labels", "--fail-under"]
    assert run(*arguments, "mean_iu=0.1")[0] == 0
    status, out, err = run(*arguments, "mean_iu=1")
    assert status == 1
    assert "mean_iu" in out
    assert err.startswith("seg-loss: mean_iu: expected at least 1, got 0.")


def test_the_rest_is_done_if_files_cannot_be_read(folder, run):
    Path("logits/bad.npy").write_bytes(b"damaged")
    os.link("logits/a.npy", "logits/no_labels.npy")
    Path("labels/b.png").write_bytes(label_png(labels_of("b").numpy()))
    Path("labels/bad.png").write_bytes(b"")
    status, out, err = run(
        "predict", "logits", "-o", "out", "--labels", "labels", "--format", "json"
    )
    assert status == 1
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("seg-loss: logits/b.safetensors: labels: expected one file labels/b")
    assert lines[0].endswith("got labels/b.png and labels/b.npy.")
    assert lines[1].startswith("seg-loss: logits/bad.npy: logits: expected an NPY, NPZ or")
    assert lines[2].startswith(
        "seg-loss: logits/no_labels.npy: labels: expected one file labels/no"
    )
    assert files_in("out") == {"a.png", "sub/c.png"}
    failures = json.loads(out)["failures"]
    assert [row["file"] for row in failures] == [line.split(": ")[1] for line in lines]
    assert run("predict", "logits/bad.npy", "-o", "out")[:2] == (1, "")


def test_files_of_other_numbers_of_classes_have_no_common_metrics(folder, run):
    Path("logits/b.safetensors").write_bytes(safetensors_file(logits=torch.randn(6, 6, 7)))
    status, _, err = run("predict", "logits", "-o", "out", "--labels", "labels")
    assert status == 1
    assert err == (
        "seg-loss: logits/b.safetensors: logits: expected 5 classes, as in the files before, "
        "got 6.\n"
    )


def test_photos_are_predicted_by_the_network_of_a_checkpoint(photos, run, checkpoint):
    status, out, err = run("predict", "photos", "-o", "out", *photos, "--format", "json")
    assert (status, err) == (0, "")
    assert files_in("out") == {"first.png", "second.png"}
    factory = "small_networks:Strided"
    network = networks.load(str(checkpoint), factory, CPU, Settings(), ("a", "b"))
    with Image.open("photos/first.png") as photo:
        scores, upsampling = network.scores(np.array(photo))
    expected = seg_loss.predict(scores, size=(40, 50), upsampling=upsampling)["prediction"][0]
    assert np.array_equal(indices_in("out/first.png"), expected.numpy())
    report = json.loads(out)
    assert {row["name"] for row in report["classes"]} <= set(CLASS_NAMES)
    assert [row["size"] for row in report["files"]] == [[40, 50], [30, 20]]


def test_photos_are_cut_into_tiles_as_the_settings_say(photos, run, monkeypatch):
    assert run("predict", "photos", "-o", "whole", *photos)[0] == 0
    Path("large").mkdir()
    Image.fromarray(make_photos((150, 70))[0]).save("large/a.png")
    assert run("predict", "large", "-o", "whole", *photos)[0] == 0
    monkeypatch.setenv("SEG_LOSS_TILE_SIDE_PIXELS", "64")
    monkeypatch.setenv("SEG_LOSS_TILE_OVERLAP_PIXELS", "32")
    assert run("predict", "large", "-o", "tiled", *photos)[0] == 0
    assert (
        indices_in("tiled/a.png") != indices_in("whole/a.png")
    ).sum() <= 2  # nearly equal scores
    monkeypatch.setenv("SEG_LOSS_MAX_PHOTO_PIXELS", "1000")
    status, _, err = run("predict", "large", "-o", "out", *photos)
    assert status == 1
    assert "image: expected at most 1000 pixels for a network, got 150 x 70 = 10500, count" in err


def test_the_report_of_a_photo_says_what_the_network_raised(photos, run, tmp_path):
    model = write_checkpoint(tmp_path, "Choosy")
    Image.fromarray(make_photos((64, 64))[0]).save("photos/first.png")
    flags = ["--model", str(model), "--network", "small_networks:Choosy"]
    status, _, err = run("predict", "photos", "-o", "out", *flags)
    assert (status, files_in("out")) == (1, {"first.png"})
    assert err == (
        "seg-loss: photos/second.JPG: image: expected a size that the network "
        "small_networks:Choosy can process, got 30 x 20. It raised AssertionError: size does not "
        "match model (64).\n"
    )


def test_labels_of_photos_have_their_size(photos, run):
    Path("labels").mkdir()
    for name, size in (("first", (40, 50)), ("second", (9, 9))):
        Image.fromarray(np.eye(*size, dtype=np.uint8)).save(f"labels/{name}.png")
    status, out, err = run("predict", "photos", "-o", "out", *photos, "--labels", "labels")
    assert status == 1
    assert "photos/first.png" in out
    assert err == (
        "seg-loss: photos/second.JPG: labels: expected 30 x 20 (height x width) to match the "
        "image, got 9 x 9.\n"
    )


def test_outputs_within_the_folder_of_the_inputs_are_no_inputs(photos, run):
    for _ in range(2):
        status, out, err = run("predict", "photos", "-o", "photos/out", *photos, "--format", "json")
        assert (status, err) == (0, "")
        assert len(json.loads(out)["files"]) == 2
    assert files_in("photos/out") == {"first.png", "second.png"}


def test_logits_or_labels_come_from_standard_input(folder, run_with_stdin):
    labels = npy_file(labels_of("a").numpy())
    line = "predict logits/a.npy --labels - -o a.png --format json"
    report = json.loads(run_with_stdin(labels, *line.split()))
    logits = logits_of("a")[None]
    expected = seg_loss.evaluate(logits, labels_of("a")[None])
    assert report["metrics"]["mean_iu"] == pytest.approx(expected.metrics.mean_iu)
    run_with_stdin(npy_file(logits.numpy()), "predict", "-", "-o", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


USAGE = {
    "logits -o logits": None,
    "logits -o a.png": "--output: expected a folder for several files, got a.png.",
    "logits/a.npy logits/b.safetensors -o a.png": "--output: expected a folder for several files",
    "logits -o logits/a.npy": "--output: expected a folder, got the file logits/a.npy.",
    "logits logits/a.npy -o out": "logits/a.npy and logits/a.npy would both become out/a.png.",
    "logits/b.safetensors -o logits/b.safetensors": (
        "--output: expected another place, since logits/b.safetensors is an input."
    ),
    "logits/b.safetensors -o logits --maps entropy": "since logits/b.safetensors is an input.",
    "logits/a.npy --labels labels/a.png -o labels/a.png": "since labels/a.png is an input.",
    "logits/a.npy --labels labels -o labels": "since labels/a.png is an input.",
    "logits --labels labels/a.png -o out": (
        "--labels: expected a folder for several files, got labels/a.png."
    ),
    "labels/a.png -o out": "--model: expected a checkpoint, since photos need a network.",
    "logits -o out --network a:b": "--network: expected --model too.",
    "labels/a.png -o out --model a.safetensors --network a": "--network: expected package.module",
    "logits -o out --model a.safetensors --size 5,5": "size: expected none with a photo",
    "logits -o out --model a.caffemodel --upsampling fcn": "upsampling: expected none with a",
    "logits -o out --fail-under mean_iu=1": "--fail-under: expected --labels too.",
    "logits -o out --maps nll": "Ask evaluate for nll, which needs labels.",
    "logits -o out --size 5": "size: expected height and width with a comma between them",
    "- --labels - -o out": "-: expected one input from standard input, got several.",
    "logits -o out --format xml": "--format: expected one of table",
    "logits": "Missing option",
    "-o out": "Missing argument",
}


@pytest.mark.parametrize("line", USAGE)
def test_no_input_is_replaced_and_wrong_usage_exits_with_2(folder, run, line):
    before = {path: Path(path).read_bytes() for path in files_in(".")}
    status, out, err = run("predict", *line.split())
    if USAGE[line] is None:  # label maps beside logits replace nothing
        assert status == 0
    else:
        assert (status, out) == (2, "")
        assert USAGE[line] in err
        assert files_in(".") == set(before)
    assert all(Path(path).read_bytes() == content for path, content in before.items())


FAILURES = {
    "labels -o out": "labels: expected files with one of .npy, .npz, .safetensors, got none.",
    "photos -o out --model a.pt": "--model: checkpoint: expected a .safetensors or .caffemodel",
    "photos -o out --model no.safetensors": "got no.safetensors: No such file or directory.",
    "nothing.npy -o out": "seg-loss: nothing.npy: No such file or directory\n",
}


@pytest.mark.parametrize("line", FAILURES)
def test_an_unusable_input_exits_with_1(folder, run, line):
    Path("labels/b.npy").unlink()
    Path("photos").mkdir()
    Image.fromarray(make_photos((4, 4))[0]).save("photos/a.png")
    status, out, err = run("predict", *line.split())
    assert (status, out) == (1, "")
    assert FAILURES[line] in err
    assert err.count("\n") == 1


def test_the_table_has_the_most_frequent_classes(empty_directory, run):
    prediction = torch.arange(60).clamp(max=55).reshape(1, 6, 10) // 5
    logits = torch.nn.functional.one_hot(prediction, 12).float().movedim(3, 1)
    Path("a.npy").write_bytes(npy_file(logits.numpy()))
    out = run("predict", "a.npy", "-o", "a.png", "--palette", "cityscapes", "--format", "md")[1]
    header = next(line for line in out.splitlines() if line.startswith("| file |"))
    cells = header.strip("| ").split(" | ")
    assert len(cells) == 1 + 8 + 1
    assert cells[1] == "road"
    assert cells[-1] == "other classes"
    row = next(line for line in out.splitlines() if line.startswith("| a.npy"))
    shares = [float(cell) for cell in row.strip("| ").split(" | ")[1:]]
    assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_a_terminal_has_a_progress_bar(folder, run, monkeypatch):
    assert run("predict", "logits", "-o", "out")[2] == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    status, out, err = run("predict", "logits", "-o", "out")
    assert status == 0
    assert "Predicting" in err
    assert "Predicting" not in out


DOCUMENTED = Path(__file__).parents[2] / "docs" / "serving-a-network.md"


def test_the_documented_command_runs_with_a_caffemodel_of_that_name(empty_directory, run):
    (line,) = re.findall(
        r"^seg-loss (predict \S+ --model \S+\.caffemodel .*)$", DOCUMENTED.read_text(), re.MULTILINE
    )
    arguments = line.split()
    Image.fromarray(make_photos((40, 50))[0]).save(arguments[1], quality=95)
    model = FCN8s(21, FCN_CHANNELS)
    initialize(model, 0)
    caffe_weights.save(model, arguments[arguments.index("--model") + 1])
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    assert "background" in out  # of the palette; such a file has no names
    assert indices_in(arguments[-1]).shape == (40, 50)


@pytest.mark.parametrize("name", ["fcn32s", "fcn8s", "fcn8s-atonce"])
def test_a_photo_through_caffes_weights_has_caffes_classes_and_loss(empty_directory, run, name):
    golden = thin.arrays(name)
    bgr = golden["image"][0].byte().permute(1, 2, 0).numpy()
    Image.fromarray(np.ascontiguousarray(bgr[:, :, ::-1])).save("photo.png")
    Path("labels.png").write_bytes(label_png(golden["label"].reshape(97, 121).byte().numpy()))
    Path("fcn.caffemodel").write_bytes(thin.caffemodel(name))
    line = "predict photo.png --model fcn.caffemodel --labels labels.png -o out.png --format json"
    status, out, err = run(*line.split(), "--normalization", "batch")
    assert (status, err) == (0, "")
    (row,) = json.loads(out)["files"]
    assert row["loss"] == pytest.approx(float(golden["loss"]), rel=2e-5)
    best = golden["score"].topk(2, dim=1)
    is_clear = (best.values[0, 0] - best.values[0, 1]).numpy() > 1e-3
    assert is_clear.mean() > 0.99
    prediction = indices_in("out.png")[::3, ::3]
    assert np.array_equal(prediction[is_clear], best.indices[0, 0].numpy()[is_clear])
