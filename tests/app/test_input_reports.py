"""What answers say about the inputs: the file, and the values in label maps."""

import io
import json
import threading
import tracemalloc
from pathlib import Path

import fcn_demo
import numpy as np
import pytest
import torch
from examples import label_png, make_inputs, make_photo, npy_file, safetensors_file, write_inputs
from PIL import Image

from app.errors import IllPosed
from app.input_reports import MAX_VALUES, count_values, sorting_bytes
from app.inputs import _largest_class, assemble
from app.options import LossOptions, parse
from app.settings import for_commands


def counted(labels, space="raw", ignored=(255,)):
    """Values and counts, and the number of ignored pixels."""
    tensor = torch.from_numpy(np.asarray(labels))
    report = count_values(tensor, space, ignored, "labels").report("PNG", None, tensor, "", space)
    return report.values, report.ignored_pixels


@pytest.mark.parametrize(
    "name", ["uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"]
)
def test_values_of_every_dtype_are_counted(name) -> None:
    limits = np.iinfo(name)
    rng = np.random.default_rng(3)
    for low, high in ((0, 100), (limits.min, limits.min + 99), (limits.max - 99, limits.max)):
        labels = rng.integers(low, high, (3, 17, 19), dtype=name, endpoint=True)
        values, counts = np.unique(labels, return_counts=True)
        assert counted(labels)[0] == tuple(zip(values.tolist(), counts.tolist(), strict=True))


def test_values_of_a_large_range_are_counted_and_their_memory_is_known() -> None:
    labels = np.array([[[0, 7, 7, 2**40, -1, 65536]]])
    assert counted(labels, ignored=(7, -1)) == (
        ((-1, 1), (0, 1), (7, 2), (65536, 1), (2**40, 1)),
        3,
    )
    assert sorting_bytes(torch.from_numpy(labels)) == 56 * 6
    assert sorting_bytes(torch.from_numpy(labels[:, :, :3])) == 0


@pytest.mark.parametrize("space", ["raw", "instance_1000"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_distinct_values_take_no_more_memory_than_is_reserved(dtype, space) -> None:
    labels = (3 * torch.randperm(1 << 18)).to(dtype)[None]
    tracemalloc.start()
    try:
        values = count_values(labels, space, (255,), "labels")
        report = values.report("NPY", None, labels, "indices", space)
        assert values.present_classes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.values_left_out == labels.numel() - MAX_VALUES
    of_lists = 1 << 22  # the present classes and the values of the report
    assert labels.numel() < peak < sorting_bytes(labels) + of_lists


def test_values_of_blocks_and_of_other_orders_are_counted_once() -> None:
    labels = np.zeros((1, 300, 301), np.int16)
    labels[0, 299, 299:] = -1
    labels[0, 0, 0] = 300
    expected = ((-1, 2), (0, 300 * 301 - 3), (300, 1))
    assert counted(labels)[0] == expected
    assert counted(np.asfortranarray(labels))[0] == expected


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="Linux lists its threads")
def test_values_are_counted_without_further_threads() -> None:
    """A thread that shares work with torch gets a pool, whose turns cost more than the work."""
    labels = torch.zeros(1, 300, 301, dtype=torch.uint8)
    signed, num_started = labels.int() - 1, list[int]()

    def count() -> None:
        before = set(Path("/proc/self/task").iterdir())
        count_values(labels, "raw", (255,), "labels")
        count_values(signed, "raw", (255,), "labels")
        _largest_class(labels, labels, (255,))
        num_started.append(len(set(Path("/proc/self/task").iterdir()) - before))

    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        thread = threading.Thread(target=count)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(num_threads)
    assert num_started == [0]


def test_the_values_with_the_most_pixels_are_listed() -> None:
    labels = np.arange(1000, dtype=np.int32).repeat(2)[None, 1:]
    labels[0, -1] = 5
    report = count_values(torch.from_numpy(labels), "raw", (), "labels").report(
        "NPY", None, torch.from_numpy(labels), "indices", "raw"
    )
    assert len(report.values) == MAX_VALUES
    assert report.values[:2] == ((1, 2), (2, 2))
    assert (5, 3) in report.values
    assert report.values_left_out == 1000 - MAX_VALUES
    assert list(report.values) == sorted(report.values)


SPACES = {
    "cityscapes_ids": ([7, 0, 1, 33], 2),
    "ade_zero": ([0, 1, 150, 255], 2),
    "cocostuff_182": ([0, 255, 181], 1),
    "coco_ids": ([0, 255, 182], 2),
    "instance_1000": ([255, 26001, 7], 1),
    "binary_255": ([0, 255, 255], 0),
}


@pytest.mark.parametrize("space", SPACES)
def test_pixels_are_ignored_after_the_label_space(space) -> None:
    values, num_ignored = SPACES[space]
    found, ignored = counted(np.array([[values]], np.int32), space)
    assert [value for value, _ in found] == sorted(set(values))
    assert ignored == num_ignored


def test_an_ignored_value_that_the_dtype_cannot_hold_ignores_nothing() -> None:
    assert counted(np.array([[[0, 255]]], np.uint8), ignored=(-1, 2**40))[1] == 0


def reports_of(query="", **files):
    options = parse(LossOptions, [pair.split("=") for pair in query.split("&") if pair])
    sources = {
        name: content if isinstance(content, torch.Tensor) else memoryview(bytearray(content))
        for name, content in files.items()
    }
    return assemble(sources, options, for_commands()).reports


def saved(array, name="PNG"):
    target = io.BytesIO()
    Image.fromarray(array).save(target, name)
    return target.getvalue()


def test_each_input_has_a_report_of_its_file() -> None:
    inputs = make_inputs()
    photo = make_photo(6, 7).numpy()
    reports = reports_of(
        logits=npy_file(inputs["logits"].half().numpy()),
        labels=label_png(inputs["labels"][0].numpy()),
        class_weight=safetensors_file(class_weight=torch.ones(5)),
        pixel_weight=torch.ones(6, 7, dtype=torch.float64),
        image=saved(photo, "JPEG"),
        prediction=saved(np.zeros((6, 7), np.uint16)),
    )
    assert list(reports) == [
        *("logits", "labels", "class_weight", "pixel_weight", "prediction", "image")
    ]
    assert vars(reports["logits"]) == {
        "file": "NPY",
        "dtype": "float16",
        "shape": (1, 5, 6, 7),
        "layout": "nchw",
    }
    labels = reports["labels"]
    assert (labels.file, labels.mode, labels.dtype, labels.shape) == (
        "PNG",
        "P",
        "uint8",
        (1, 6, 7),
    )
    assert (labels.read_as, labels.label_space) == ("indices", "raw")
    values, counts = np.unique(inputs["labels"], return_counts=True)
    assert labels.values == tuple(zip(values.tolist(), counts.tolist(), strict=True))
    assert labels.ignored_pixels == int((inputs["labels"] == 255).sum())
    assert vars(reports["class_weight"]) == {
        "file": "safetensors",
        "dtype": "float32",
        "shape": (5,),
    }
    assert vars(reports["pixel_weight"]) == {"file": "tensor", "dtype": "float64", "shape": (6, 7)}
    prediction = reports["prediction"]
    assert (prediction.mode, prediction.dtype, prediction.values) == ("I;16", "uint16", ((0, 42),))
    assert vars(reports["image"]) == {"file": "JPEG", "mode": "RGB", "shape": (6, 7, 3)}


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_the_mode_of_a_photo_is_that_of_its_file(mode) -> None:
    picture = Image.new(mode, (4, 3))
    target = io.BytesIO()
    picture.save(target, "PNG")
    assert reports_of(image=target.getvalue())["image"].mode == mode


def test_coloured_labels_are_reported_as_indices_of_their_colours() -> None:
    colours = np.array([[[128, 64, 128], [0, 0, 0], [128, 64, 128]]], np.uint8)
    report = reports_of("palette=cityscapes", labels=saved(colours))["labels"]
    assert (report.mode, report.read_as) == ("RGB", "colours")
    assert (report.values, report.ignored_pixels) == (((0, 2), (255, 1)), 1)


def test_equal_channels_are_reported_as_indices() -> None:
    grey = np.full((2, 2, 3), 7, np.uint8)
    report = reports_of(labels=saved(grey))["labels"]
    assert (report.mode, report.read_as, report.values) == ("RGB", "indices", ((7, 4),))


ANSWERS = ("loss", "evaluate", "predict")


@pytest.mark.parametrize("path", ANSWERS)
def test_answers_hold_the_reports_and_the_palette(client, path) -> None:
    inputs = make_inputs()
    headers = {"Accept": "application/json"}
    files = {
        "logits": npy_file(inputs["logits"].numpy()),
        "labels": label_png(inputs["labels"][0].numpy(), "cityscapes"),
    }
    answer = client.post(f"/v1/{path}", files=files, headers=headers).json()
    assert list(answer)[-3:] == ["inputs", "palette", "warnings"]
    assert list(answer["inputs"]) == ["logits", "labels"]
    assert list(answer["inputs"]["labels"]) == [
        *("file", "mode", "dtype", "shape", "read_as", "label_space", "values"),
        *("values_left_out", "ignored_pixels"),
    ]
    assert answer["inputs"]["labels"]["values"][-1][0] == 255
    assert answer["palette"] == {
        "name": "own",  # the colours of Cityscapes, but five classes
        "source": "file",
        "class_names": [],
        "colours": [
            *([128, 64, 128], [244, 35, 232], [70, 70, 70], [102, 102, 156], [190, 153, 153])
        ],
        "ignore_colour": [0, 0, 0],
    }


def test_the_gradient_needs_no_report(client) -> None:
    inputs = make_inputs()
    options = parse(LossOptions, [])
    assert assemble({"labels": inputs["labels"]}, options, for_commands()).reports
    answer = client.post_tensors("/v1/gradient", **inputs)
    assert answer.status_code == 200


def test_the_command_line_prints_the_same_report(run, empty_directory) -> None:
    write_inputs(make_inputs())
    _, out, _ = run("loss", "logits.npy", "labels.png", "--format", "json")
    labels = json.loads(out)["inputs"]["labels"]
    assert (labels["file"], labels["mode"], labels["ignored_pixels"]) == ("PNG", "P", 3)
    _, table, _ = run("evaluate", "logits.npy", "labels.png")
    values = ", ".join(f"{value}: {count}" for value, count in labels["values"])
    (line,) = (line for line in table.splitlines() if "PNG" in line)
    assert line.split() == f"labels PNG, mode P uint8 raw 3 {values}".split()


def test_a_table_lists_at_most_12_values(run, empty_directory) -> None:
    labels = np.arange(30, dtype=np.uint8).reshape(1, 5, 6)
    write_inputs({"logits": torch.zeros(1, 30, 5, 6), "labels": torch.from_numpy(labels)})
    _, table, _ = run("loss", "logits.npy", "labels.png")
    (line,) = (line for line in table.splitlines() if "PNG" in line)
    assert line.endswith("10: 1, 11: 1, 18 more values")


def test_predict_prints_reports_and_the_palette(run, empty_directory) -> None:
    write_inputs(make_inputs())
    _, out, _ = run(
        "predict", "logits.npy", "-o", "out", "--labels", "labels.png", "--format", "json"
    )
    fields = json.loads(out)
    assert fields["files"][0]["inputs"]["labels"]["mode"] == "P"
    assert fields["palette"]["source"] == "file"


@fcn_demo.needed
def test_the_demo_of_fcn_has_the_values_that_it_must_have() -> None:
    label = reports_of(labels=(fcn_demo.DIRECTORY / "label.png").read_bytes())["labels"]
    assert label.values == ((0, 54389), (2, 34183), (15, 61143), (255, 17285))
    assert label.ignored_pixels == 17285


@fcn_demo.needed
def test_the_prediction_of_fcns_demo_is_read_by_its_colours() -> None:
    files = {"labels": (fcn_demo.DIRECTORY / "output.png").read_bytes()}
    report = reports_of("palette=voc", **files)["labels"]
    assert (report.mode, report.read_as, report.shape) == ("RGB", "colours", (1, 500, 334))
    assert [value for value, _ in report.values] == [0, 2, 15]
    assert sum(count for _, count in report.values) == 334 * 500


ADE_SAMPLE = fcn_demo.DIRECTORY.parent / "ade-sample"


@pytest.mark.skipif(not ADE_SAMPLE.is_dir(), reason="the sample of ADE20K is not there")
def test_the_sample_of_ade20k_has_the_ignored_pixels_that_it_must_have() -> None:
    reports = [
        reports_of("label_space=ade_zero", labels=path.read_bytes())["labels"]
        for path in sorted((ADE_SAMPLE / "annotations").glob("*.png"))
    ]
    assert sorted(row.ignored_pixels for row in reports) == [2031, 3613, 17280]
    assert sum(count for row in reports for value, count in row.values if value) == 628772


def test_a_palette_input_and_a_palette_option_are_an_error() -> None:
    with pytest.raises(IllPosed) as error:
        reports_of("palette=voc", palette=b"0 0 0 a\n")
    assert error.value.detail == "palette: expected the option or the input, got both."
