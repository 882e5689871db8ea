"""Commands: what they print and write, and their exit status."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import fake_gpu
import fcn_demo
import numpy as np
import pytest
import safetensors.torch
import torch
from examples import (
    make_inputs,
    npy_file,
    safetensors_file,
    write_inputs,
)
from PIL import Image
from serving import ROOT

import seg_loss
from app import __main__ as entry_point
from app import cli
from app.images.palettes import PALETTES
from app.settings import Settings


@pytest.fixture
def files(empty_directory):
    """Logits and labels in all file types, with the current directory as theirs."""
    logits, labels = (make_inputs()[name].numpy() for name in ("logits", "labels"))
    write_inputs(make_inputs())
    Path("logits.safetensors").write_bytes(safetensors_file(logits=torch.from_numpy(logits)))
    np.savez("logits.npz", logits=logits, other=labels)
    np.savez_compressed("labels.npz", labels)
    Path("labels.npy").write_bytes(npy_file(labels))


@pytest.mark.parametrize("logits", ["logits.npy", "logits.npz", "logits.safetensors"])
@pytest.mark.parametrize("labels", ["labels.png", "labels.npy", "labels.npz"])
def test_loss_reads_every_file_type(files, run, logits, labels):
    status, out, err = run("loss", logits, labels, "--format", "json")
    assert (status, err) == (0, "")
    assert json.loads(out)["loss"] == seg_loss.evaluate(**make_inputs()).loss


def test_json_is_the_json_object_of_the_service(files, run, client):
    files = {name: Path(f"{name}.npy").read_bytes() for name in ("logits", "labels")}
    for command in ("loss", "evaluate"):
        response = client.post(f"/v1/{command}", files=files).json()
        _, out, _ = run(command, "logits.npy", "labels.npy", "--format", "json")
        assert json.loads(out) == response


def test_flags_have_the_names_of_options_with_dash_or_underscore(files, run):
    Path("weight.npy").write_bytes(npy_file(np.arange(5, dtype=np.float32)))
    expected = seg_loss.evaluate(
        **make_inputs(),
        class_weight=torch.arange(5.0),
        ignore_index=(0, 255),
        normalization="weight",
        temperature=2.0,
        label_smoothing=0.1,
    ).loss
    for dash in "-_":
        status, out, _ = run(
            *("loss", "logits.npy", "labels.png", "--format", "json"),
            *(f"--ignore{dash}index", "0,255", "--normalization", "weight"),
            *("--temperature", "2", f"--label{dash}smoothing", "0.1"),
            *(f"--class{dash}weight", "weight.npy"),
        )
        assert status == 0
        assert json.loads(out)["loss"] == expected


def test_an_ignored_class_is_in_no_mean_and_no_row(files, run, client):
    flags = "--ignore-index", "2,255"
    metrics = seg_loss.evaluate(**make_inputs(), ignore_index=(2, 255)).metrics
    assert metrics.mean_iu != seg_loss.evaluate(**make_inputs()).metrics.mean_iu
    for got in (
        json.loads(run("evaluate", "logits.npy", "labels.png", *flags, "--format", "json")[1]),
        client.post_tensors("/v1/evaluate?ignore_index=2,255", **make_inputs()).json(),
    ):
        assert got["metrics"]["iu"] == list(metrics.iu)
        assert got["metrics"]["mean_iu"] == metrics.mean_iu
        assert got["metrics"]["num_classes_averaged"] == 4
    out = run("evaluate", "logits.npy", "labels.png", *flags, "--format", "csv")[1]
    assert {row[1] for row in csv.reader(io.StringIO(out)) if row[0] == "class"} == set("0134")


def test_a_negative_label_can_be_ignored(files, run):
    status, out, _ = run("loss", "logits.npy", "labels.png", "--ignore-index", "-1,255")
    assert status == 0
    assert "valid_pixels" in out


def test_the_table_has_the_class_names_of_the_palette(files, run):
    out = run("loss", "logits.npy", "labels.png", "--palette", "voc")[1]
    assert "aeroplane" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("format_name", ["table", "csv", "md", "html"])
@pytest.mark.parametrize("command", ["loss", "evaluate"])
def test_every_format_shows_the_loss(files, run, format_name, command):
    status, out, err = run(command, "logits.npy", "labels.png", "--format", format_name)
    assert (status, err) == (0, "")
    assert f"{seg_loss.evaluate(**make_inputs()).loss:.6g}"[:6] in out


def test_csv_has_one_number_per_line(files, run):
    out = run("evaluate", "logits.npy", "labels.png", "--format", "csv")[1]
    rows = list(csv.reader(io.StringIO(out)))
    assert rows[0] == ["of", "item", "quantity", "value"]
    assert all(len(row) == 4 for row in rows)
    expected = seg_loss.evaluate(**make_inputs())
    assert ["batch", "loss", "", repr(expected.loss)] not in rows
    assert ["batch", "", "loss", repr(expected.loss)] in rows
    assert ["class", "2", "pixels", str(expected.per_class[2].pixels)] in rows


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_gradient_writes_a_file_and_prints_the_loss(files, run, suffix):
    status, out, _ = run(
        *("gradient", "logits.npy", "labels.png", "--output", f"g.{suffix}"),
        *("--loss-weight", "2", "--format", "json"),
    )
    loss, gradient = seg_loss.loss_and_gradient(**make_inputs())
    assert status == 0
    assert json.loads(out)["loss"] == float(loss)
    if suffix == "npy":
        written = torch.from_numpy(np.load("g.npy"))
    else:
        written = safetensors.torch.load_file("g.safetensors")["gradient"]
    assert torch.equal(written, gradient * 2)


def test_evaluate_writes_maps(files, run):
    arguments = ("logits.npy", "labels.png", "--maps", "nll,prediction", "-o", "m.safetensors")
    assert run("evaluate", *arguments)[0] == 0
    maps = safetensors.torch.load_file("m.safetensors")
    assert torch.equal(maps["prediction"].long(), make_inputs()["logits"].argmax(1))
    assert maps.keys() == {"nll", "prediction"}


def test_a_metric_below_its_threshold_exits_with_1(files, run):
    arguments = ("evaluate", "logits.npy", "labels.png", "--fail-under")
    assert run(*arguments, "mean_iu=0")[0] == 0
    status, out, err = run(*arguments, "mean_iu=0.99")
    assert status == 1
    assert "mean_iu" in out
    assert err.startswith("seg-loss: mean_iu: expected at least 0.99, got 0.")


@pytest.mark.parametrize(
    "value", ["nan", "inf", "-inf", "-1", "1.01", "60", "", "x", ".1_0", "0.5 0.6"]
)
def test_a_threshold_that_no_metric_can_pass_or_fail_is_wrong_usage(run, value):
    status, out, err = run("evaluate", "a", "b", "--fail-under", f"mean_iu={value}")
    assert (status, out) == (2, "")
    assert err.startswith("seg-loss: --fail-under: expected METRIC=VALUE with one of pixel_acc")
    assert err.endswith(f"frequency_weighted_iu, and 0...1, got 'mean_iu={value}'.\n")


def test_thresholds_apply_to_upsampled_logits(run, empty_directory):
    write_inputs(make_inputs("fcn"))
    arguments = ["evaluate", "logits.npy", "labels.png", "--upsampling", "fcn", "--fail-under"]
    assert run(*arguments, "mean_iu=0")[0] == 0
    assert run(*arguments, "mean_iu=1")[0] == 1


def test_visualize_writes_a_picture(files, run):
    photo = np.full((6, 7, 3), 99, np.uint8)
    Image.fromarray(photo).save("photo.jpg")
    for arguments in (
        ("logits.npy", "labels.png", "--kind", "error"),
        ("logits.npy", "--kind", "overlay", "--image", "photo.jpg", "--alpha", "0.3"),
        ("--labels", "labels.png", "--kind", "labels"),
        (
            "--prediction",
            "labels.png",
        ),
    ):
        assert run("visualize", *arguments, "--output", "a.png") == (0, "", "")
        with Image.open("a.png") as picture:
            assert picture.size == (7, 6)
        Path("a.png").unlink()


def test_palettes_are_listed_and_shown(run):
    printed = run("palettes")[1]
    assert all(name in printed for name in PALETTES)
    assert "aeroplane" in run("palettes", "voc")[1]
    assert json.loads(run("palettes", "voc", "--format", "json")[1])["colours"][1] == [128, 0, 0]


def test_the_sample_is_a_valid_input_of_loss(run, tmp_path):
    status, out, _ = run("sample", tmp_path / "s", "--height", "32", "--width", "64")
    assert status == 0
    names = ["photo.png", "labels.png", "logits.npy"]
    assert out.split() == [str(tmp_path / "s" / name) for name in names]
    directory = tmp_path / "s"
    status, out, _ = run(
        "loss", directory / "logits.npy", directory / "labels.png", "--format", "json"
    )
    assert json.loads(out)["diagnosis"]["state"] == "learning"


def test_a_data_set_of_scenes_has_lists_of_both_splits(run, tmp_path):
    size = ("--height", "32", "--width", "64")
    status, out, _ = run("sample", tmp_path, "--scenes", "2", "--held-out", "1", *size)
    assert status == 0
    lists = [tmp_path / "ImageSets" / "Segmentation" / f"{name}.txt" for name in ("train", "val")]
    assert out.split() == [str(path) for path in lists]
    assert [path.read_text().split() for path in lists] == [
        ["train_0000", "train_0001"],
        ["val_0000"],
    ]
    assert not (tmp_path / "logits.npy").exists()


def test_held_out_scenes_without_scenes_are_wrong_usage(run, tmp_path):
    status, _, err = run("sample", tmp_path / "s", "--held-out", "3")
    assert status == 2
    assert "--held-out: expected --scenes too" in err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("upsampling", ["none", "bilinear"])
def test_logits_with_nan_have_a_loss_of_null_and_a_diagnosis(run, empty_directory, upsampling):
    inputs = make_inputs(upsampling)
    inputs["logits"][0, 1, 3, 3] = float("nan")
    write_inputs(inputs)
    arguments = ("logits.npy", "labels.png", "--upsampling", upsampling)
    status, out, _ = run("loss", *arguments, "--format", "json")
    assert status == 0
    assert json.loads(out)["loss"] is None
    assert json.loads(out)["diagnosis"]["state"] == "non_finite"
    status, _, err = run("gradient", *arguments, "-o", "g.npy")
    assert status == 0
    assert err == (
        "seg-loss: warning: logits contain non-finite values, so the gradient does too.\n"
    )


USAGE = {
    "loss logits.npy": "Missing argument",
    "loss logits.npy labels.png --nothing 1": "No such option",
    "loss logits.npy labels.png --temperature 0": "seg-loss: temperature: expected a positive",
    "loss logits.npy labels.png --normalization mean": "seg-loss: normalization: expected one of",
    "loss logits.npy labels.png --format xml": "seg-loss: --format: expected one of table",
    "gradient logits.npy labels.png": "Missing option",
    "gradient logits.npy labels.png -o g.png": "seg-loss: --output: expected a name that ends in",
    "evaluate . .": "seg-loss: .: expected a file, got a directory.",
    "evaluate logits.npy labels.png --fail-under iou=1": "seg-loss: --fail-under: expected METRIC",
    "evaluate logits.npy labels.png --fail-under mean_iu=x": "seg-loss: --fail-under: expected",
    "evaluate logits.npy labels.png --maps nll": "seg-loss: --maps and --output: expected both",
    "visualize logits.npy -o a.jpg": "seg-loss: --output: expected a name that ends in .png.",
    "visualize logits.npy labels.png --kind heat -o a.png": "seg-loss: kind: expected one of",
    "palettes nothing": f"seg-loss: palette: expected one of {', '.join(PALETTES)}, got 'nothing'.",
    "palettes cityscape": "got 'cityscape'. Did you mean cityscapes?\n",
    "palettes --format jsn": "csv, md, html, got 'jsn'. Did you mean json?\n",
    "loss logits.npy labels.png --normalization vald": "got 'vald'. Did you mean valid?\n",
    "loss logits.npy labels.png --palette VOC": "got 'VOC'. Did you mean voc?\n",
    "loss logits.npy labels.png --scores probs": "got 'probs'. Did you mean probabilities?\n",
    "loss logits.npy labels.png --label-space ade": "got 'ade'. Did you mean ade_zero?\n",
    "evaluate logits.npy labels.png -o a --maps all": "between them, got 'all'.\n",
    "loss logits.npy labels.png --layout layout=nhwc": "got 'layout=nhwc'.\n",
    "evaluate logits.npy labels.png --fail-under mean_ui=1": "Did you mean mean_iu?\n",
    "loss logits.npy labels.png --temprature 2": "(Possible options: --temperature)",
    "nothing": "No such command",
}


@pytest.mark.parametrize("line", USAGE)
def test_wrong_usage_exits_with_2_and_prints_only_to_stderr(files, run, line):
    status, out, err = run(*line.split())
    assert (status, out) == (2, "")
    assert USAGE[line] in err


def test_an_unknown_upsampling_is_wrong_usage(files, run):
    expected = "upsampling: expected one of none, bilinear, bilinear_aligned, fcn, got 'nearest'."
    arguments = ("logits.npy", "labels.png", "--upsampling", "nearest")
    assert run("loss", *arguments) == (2, "", f"seg-loss: {expected}\n")


FAILURES = {
    "loss nothing.npy labels.png": "seg-loss: nothing.npy: No such file or directory\n",
    "loss . labels.png": "seg-loss: .: Is a directory\n",
    "loss labels.npy labels.png": "seg-loss: logits: expected",
    "loss logits.npy logits.npy": "seg-loss: labels: expected uint8",
    "loss empty labels.png": "seg-loss: logits: expected an NPY, NPZ or safetensors file, got",
    "loss cut.npz labels.png": "seg-loss: logits: expected a complete NPZ file, got a damaged one.",
    "loss pickled.npz labels.png": "Pickled objects are never read",
    "loss two.npz labels.png": "seg-loss: logits: expected one array, or one named logits, got 2",
    "gradient logits.npy labels.png -o nowhere/g.npy": "seg-loss: nowhere/g.npy: No such file",
}


FLAGS = {
    "--normalization none": "Use --upsampling bilinear.",
    "--ignore-index none --upsampling bilinear": "marks void pixels, pass --ignore-index 255.",
    "--label-space ade_zero --ignore-index 0 --upsampling fcn": (
        "which --label-space ade_zero gives to void pixels"
    ),
}


@pytest.mark.parametrize("flags", FLAGS)
def test_messages_name_options_as_flags(run, empty_directory, flags):
    tensors = make_inputs("bilinear")
    tensors["labels"][0, 0, 0] = 255
    write_inputs(tensors)
    status, _, err = run("loss", "logits.npy", "labels.png", *flags.split())
    assert status == 1
    assert FLAGS[flags] in err


@pytest.mark.parametrize("line", FAILURES)
def test_an_unusable_file_exits_with_1_and_prints_one_line(files, run, line):
    Path("empty").touch()
    Path("cut.npz").write_bytes(Path("logits.npz").read_bytes()[:100])
    np.savez("pickled.npz", np.array([{}], dtype=object))
    np.savez("two.npz", a=np.zeros(1), b=np.zeros(1))
    status, out, err = run(*line.split())
    assert (status, out) == (1, "")
    assert FAILURES[line] in err
    assert err.count("\n") == 1


def test_scores_that_do_not_fit_the_upsampling_exit_with_1(run, empty_directory):
    np.save("small.npy", np.zeros((1, 5, 2, 2), np.float32))
    np.save("wide.npy", np.zeros((1, 99, 99), np.uint8))
    status, out, err = run(*["loss", "small.npy", "wide.npy", "--upsampling", "fcn"])
    assert (status, out) == (1, "")
    assert err.startswith("seg-loss: logits: expected height and width (22, 22) or")


def test_the_limit_on_upsampled_logits_applies_to_commands(run, empty_directory, monkeypatch):
    write_inputs(make_inputs("fcn"))
    arguments = ["loss", "logits.npy", "labels.png", "--upsampling", "fcn"]
    monkeypatch.setenv("SEG_LOSS_MAX_UPSAMPLED_LOGITS", "2999")
    status, _, err = run(*arguments)
    assert status == 1
    assert "at most 2999 upsampled logits" in err
    monkeypatch.setenv("SEG_LOSS_MAX_UPSAMPLED_LOGITS", "3000")
    assert run(*arguments)[0] == 0


def test_an_invalid_setting_is_wrong_usage(run, monkeypatch):
    monkeypatch.setenv("SEG_LOSS_PORT", "http")
    expected = "expected an integer from 0 to 65535, got"
    assert run("serve") == (2, "", f"seg-loss: SEG_LOSS_PORT: {expected} 'http'.\n")
    assert run("serve", "--port", "70000") == (2, "", f"seg-loss: --port: {expected} 70000.\n")


DEVICES = {
    "loss logits.npy labels.png --device gpu": (
        "seg-loss: --device: expected auto, cpu, cuda or cuda:N, got 'gpu'.\n"
    ),
    "gradient logits.npy labels.png -o g.npy --device cuda:x": (
        "seg-loss: --device: expected auto, cpu, cuda or cuda:N, got 'cuda:x'.\n"
    ),
    "evaluate logits.npy labels.png --device cuda": (
        "seg-loss: --device: expected compute capability 8.0 or newer, got 7.5 of cuda:0. "
        "Use cpu.\n"
    ),
    "visualize logits.npy -o a.png --device cuda:1": (
        "seg-loss: --device: expected cuda:0, got cuda:1.\n"
    ),
    "serve --device cuda:1": "seg-loss: --device: expected cuda:0, got cuda:1.\n",
}


@pytest.mark.parametrize("line", DEVICES)
def test_a_device_that_cannot_be_used_is_wrong_usage(files, run, monkeypatch, line):
    fake_gpu.install_driver(monkeypatch, count=1, capability=(7, 5))
    assert run(*line.split()) == (2, "", DEVICES[line])


def test_the_setting_of_the_device_applies_to_commands_and_is_named(files, run, monkeypatch):
    fake_gpu.install_driver(monkeypatch, count=1)
    monkeypatch.setenv("SEG_LOSS_DEVICE", "cuda:3")
    status, _, err = run("loss", "logits.npy", "labels.png")
    assert (status, err) == (2, "seg-loss: SEG_LOSS_DEVICE: expected cuda:0, got cuda:3.\n")
    assert run("loss", "logits.npy", "labels.png", "--device", "cpu")[0] == 0


def test_auto_warns_of_a_device_that_it_does_not_use(files, run, monkeypatch):
    fake_gpu.install_driver(monkeypatch, count=1, capability=(7, 5))
    status, _, err = run("loss", "logits.npy", "labels.png")
    assert status == 0
    assert err.startswith("seg-loss: warning: SEG_LOSS_DEVICE: expected compute capability 8.0")


def test_a_gpu_without_free_memory_exits_with_1_and_a_fix(files, run, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(seg_loss, "evaluate", fail)
    status, out, err = run("loss", "logits.npy", "labels.png")
    assert (status, out) == (1, "")
    assert (
        err == "seg-loss: memory: expected enough on the GPU, got too little. Use --device cpu.\n"
    )


def test_a_cuda_device_gives_the_results_of_the_cpu(cuda, files, run):
    results = {}
    for device in ("cpu", "cuda"):
        command = ["gradient", "logits.npy", "labels.png", "-o", f"{device}.npy"]
        assert run(*command, "--device", device)[0] == 0
        results[device] = np.load(f"{device}.npy")
        assert run("visualize", "logits.npy", "-o", f"{device}.png", "--device", device)[0] == 0
    np.testing.assert_allclose(results["cuda"], results["cpu"], rtol=1e-5, atol=1e-8)
    assert Path("cuda.png").read_bytes() == Path("cpu.png").read_bytes()


@pytest.mark.parametrize("text", ["19,", "0", "two", "19, 21", "-1"])
def test_the_classes_to_warm_up_are_positive_integers(run, monkeypatch, text):
    monkeypatch.setenv("SEG_LOSS_WARM_CLASSES", text)
    status, _, err = run("serve")
    assert status == 2
    assert err.startswith("seg-loss: SEG_LOSS_WARM_CLASSES: expected positive integers")


def test_serve_help_lists_every_setting(run):
    out = run("serve", "--help")[1]
    for name, field in Settings.model_fields.items():
        assert f"SEG_LOSS_{name.upper()} [{field.default}]" in out
        assert field.description in out


@pytest.mark.parametrize("command", ["loss", "gradient", "evaluate", "visualize", "predict"])
def test_the_help_of_every_operation_has_the_option_upsampling(run, command):
    assert "--upsampling" in run(command, "--help")[1]


def test_help_version_and_palettes_do_not_load_torch():
    commands = [["--help"], ["loss", "--help"], ["serve", "--help"], ["--version"], ["palettes"]]
    program = (
        "import sys\n"
        "from app import cli\n"
        f"for arguments in {commands}:\n"
        "    try:\n"
        "        cli.main(arguments)\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code, arguments\n"
        "    assert 'torch' not in sys.modules, arguments\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_version_is_the_same_everywhere(run, client):
    assert run("--version") == (0, f"seg-loss {seg_loss.__version__}\n", "")
    document = client.get("/openapi.json").json()
    assert document["info"]["version"] == seg_loss.__version__


def test_python_m_app_runs_the_same_commands():
    command = [sys.executable, "-m", "app", "palettes", "--format", "json"]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    assert "voc" in json.loads(output)["palettes"]


@pytest.mark.parametrize("package", ["typer", "pydantic", "fastapi"])
def test_a_missing_package_of_the_extra_ends_with_a_sentence(package):
    program = (
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"
        "from app.__main__ import main\n"
        "sys.argv = ['seg-loss', 'serve', '--port', '0']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"seg-loss: the command line needs the package {package}, which is not installed. "
        'Run pip install ".[app]" in a checkout of seg-loss.\n'
    )


@pytest.mark.parametrize("package", ["google", "google.protobuf", "safetensors"])
def test_a_missing_package_of_the_networks_ends_with_a_sentence(package, monkeypatch):
    def main():
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(cli, "main", main)
    with pytest.raises(SystemExit, match=f"needs the package {package}, which is not installed"):
        entry_point.main()


def test_a_missing_package_of_the_library_is_no_matter_of_the_extra(monkeypatch):
    def main():
        raise ModuleNotFoundError("No module named 'numba'", name="numba")

    monkeypatch.setattr(cli, "main", main)
    with pytest.raises(ModuleNotFoundError, match="numba"):
        entry_point.main()


@fcn_demo.needed
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_published_example_has_the_published_values(run, tmp_path, dtype):
    np.save(tmp_path / "logits.npy", fcn_demo.logits(dtype))
    paths = (tmp_path / "logits.npy", fcn_demo.DIRECTORY / "label.png")
    fcn_demo.assert_published_values(
        json.loads(run("evaluate", *paths, "--format", "json")[1]), dtype
    )
    for normalization, loss in fcn_demo.LOSS.items():
        out = run("loss", *paths, "--format", "json", "--normalization", normalization)[1]
        assert json.loads(out)["loss"] == pytest.approx(loss, rel=fcn_demo.LOSS_TOLERANCE[dtype])
