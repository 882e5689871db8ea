"""`seg-loss train`: the command, its files, its exit statuses, and first weights from files."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from training_data import TINY, make_labels, write_voc
from training_runs import weights_of

from app.training.checkpoints import Run
from models import caffe_weights, surgery
from models.checkpoints import NetworkSpec, build, load_network, save_network

ROOT = Path(__file__).parents[3]
THIN = (3, 3, 3, 3, 3, 4)
SMALL = (
    *("--num-classes", 3, "--workers", 0, "--tensorboard", "no"),
    *("--steps", 2, "--log-interval", 1, "--recipe", "modern", "--crop", "16"),
    *("--batch-size", 1, "--format", "json"),
)
OWN = ("--model", TINY, *SMALL)
FCN = ("--network", "fcn32s", "--channels", ",".join(map(str, THIN)), *SMALL)


def test_a_training_writes_weights_that_are_served(voc, tmp_path, run):
    output = tmp_path / "run"
    status, out, err = run(
        *("train", voc, "--output", output, *FCN, "--palette", "voc"),
        *("--class-names", "a,b,c", "--tensorboard", "yes", "--learning_rate", "1e-3"),
    )
    assert status == 0, err
    result = json.loads(out)
    assert result["step"] == 2
    assert result["checkpoint"] == f"{output / 'checkpoints' / '00000002'}"
    assert 0 <= result["best_mean_iu"] == result["mean_iu"] <= 1
    assert [row["name"] for row in result["per_class"]] == ["a", "b", "c"]
    ious = [row["iu"] for row in result["per_class"] if row["iu"] is not None]
    assert sum(ious) / len(ious) == pytest.approx(result["mean_iu"])
    assert {path.name for path in output.iterdir()} == {
        *("config.json", "best.safetensors", "checkpoints", "metrics.jsonl", "events")
    }
    model, spec = load_network(output / "best.safetensors")
    assert spec == NetworkSpec("fcn32s", 3, THIN, "imagenet", ("a", "b", "c"))
    assert model(torch.zeros(1, 3, 20, 24)).shape == (1, 3, 20, 24)
    config = json.loads((output / "config.json").read_text())
    assert config["recipe"]["learning_rate"] == 1e-3
    assert config["options"]["channels"] == list(THIN)
    assert err.splitlines()[0] == "VOC: 6 training and 2 validation images"
    assert err.splitlines()[1] == "weights: random, seed 0"
    assert "step 2/2  epoch 0.33  loss" in err
    assert "validation 2  loss" in err


def test_the_palette_of_a_training_may_be_a_file(tmp_path, run):
    voc = write_voc(tmp_path / "voc")
    palette = tmp_path / "mine.txt"
    palette.write_text("1 2 3 cell\n4 5 6 gap\n7 8 9 wall\n")
    for path in (voc / "SegmentationClass").iterdir():
        with Image.open(path) as labels:
            size, indices = labels.size, labels.tobytes()
        coloured = bytes(value for index in indices for value in _COLOURS.get(index, (0, 0, 0)))
        Image.frombytes("RGB", size, coloured).save(path)
    arguments = ("train", voc, "-o", tmp_path / "run", *OWN, "--palette", palette)
    assert run(*arguments)[0] == 1  # the colour of void is not in the file
    status, out, err = run(*arguments, "--unknown-colours", "ignore")
    assert status == 0, err
    assert [row["name"] for row in json.loads(out)["per_class"]] == ["cell", "gap", "wall"]


_COLOURS = {0: (1, 2, 3), 1: (4, 5, 6), 2: (7, 8, 9)}


def test_a_training_of_ones_own_network_is_resumed(voc, tmp_path, run):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("train", voc, "-o", whole, *OWN, "--steps", 4)[0] == 0
    assert run("train", voc, "-o", parts, *OWN, "--steps", 4, "--schedule", "poly")[0] == 0
    shutil.rmtree(parts)
    # The options of the first call hold, but for those that are given again.
    assert run("train", voc, "-o", parts, *OWN, "--schedule", "fixed", "--warmup-steps", 0)[0] == 0
    status, out, err = run(
        "train", voc, "-o", parts, "--model", TINY, "--resume", "--steps", 3, "--format", "csv"
    )
    assert status == 0, err
    assert "resumed after step 2 of 3" in err
    config = json.loads((parts / "config.json").read_text())
    assert config["recipe"]["schedule"] == "fixed"
    assert config["options"]["num_classes"] == 3
    assert "training,,step,3" in out
    lines = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3]


def test_resuming_where_nothing_is_begins(voc, tmp_path, run):
    output = tmp_path / "run"
    status, _, err = run("train", voc, "-o", output, *OWN, "--resume")
    assert status == 0
    assert f"{output} has no checkpoint: the training begins with step 1" in err
    assert "weights: those of training_data:tiny_network" in err


def test_a_resumed_training_with_other_images_gets_a_warning(tmp_path, run):
    root = write_voc(tmp_path / "voc", 4, 1)
    assert run("train", root, "-o", tmp_path / "run", *OWN)[0] == 0
    path = root / "ImageSets" / "Segmentation" / "train.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    status, _, err = run("train", root, "-o", tmp_path / "run", *OWN, "--resume", "--steps", 3)
    assert status == 0
    assert "warning: num_train: the training had '4', and now has '3'" in err


def test_changes_of_a_resumed_training_are_kept_in_its_configuration(voc, tmp_path, run):
    output = tmp_path / "run"
    resume = ("train", voc, "-o", output, "--model", TINY, "--resume")
    assert run("train", voc, "-o", output, *OWN)[0] == 0
    status, _, err = run(*resume, "--steps", 3, "--seed", 7, "--keep", 1)
    assert status == 0
    assert "warning: seed: the training had '0', and now has '7'" in err
    status, _, err = run(*resume)
    assert status == 0
    assert "there is no step left: pass more steps with --steps or --epochs to go on" in err
    assert "warning" not in err
    config = json.loads((output / "config.json").read_text())
    assert config["resumed"] == [
        {"after_step": 2, "changes": {"seed": [0, 7]}},
        {"after_step": 3, "changes": {}},
    ]
    assert (config["processes"], config["device"]) == (1, "cpu")


def test_a_resumed_training_keeps_its_first_weights(trained_fcn, voc, tmp_path, run):
    best = trained_fcn / "best.safetensors"
    output = tmp_path / "run"
    assert run("train", voc, "-o", output, *FCN, "--init", best)[0] == 0
    assert run("train", voc, "-o", output, "--resume", "--steps", 3)[0] == 0
    assert json.loads((output / "config.json").read_text())["init"] == f"{best}"
    shutil.rmtree(output / "checkpoints")  # as if it had been stopped before the first
    status, _, err = run("train", voc, "-o", output, "--resume")
    assert status == 0
    assert f"layers of {best}, from conv1_1" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--channels", "3,3,3,3,3,5"), "expected 'fc6.weight' of shape (5, 3, 7, 7), got (4, 3"),
        (("--num-classes", 4), "expected a network of 4 classes, got 3."),
        (("--network", "fcn16s"), "network: expected 'fcn32s', which"),
        (("--optimizer", "sgd"), "expected the state of SGD, got 'AdamW'."),
    ],
)
def test_a_network_of_other_sizes_is_not_resumed(trained_fcn, voc, run, change, message):
    status, _, err = run("train", voc, "-o", trained_fcn, "--resume", *change, "--steps", 3)
    assert status == 1
    assert message in err
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def trained_fcn(voc, tmp_path_factory):
    """The folder of a training of two steps, which tests do not change."""
    folder = tmp_path_factory.mktemp("trained")
    command = ("app", "train", voc, "-o", folder, *FCN)
    process = start(*command)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return folder


def test_a_folder_with_a_training_is_not_overwritten(voc, tmp_path, run):
    assert run("train", voc, "-o", tmp_path, *OWN)[0] == 0
    before = weights_of(tmp_path / "best.safetensors")
    status, _, err = run("train", voc, "-o", tmp_path, *OWN, "--seed", 9)
    assert status == 1
    assert "output: expected a folder without a training, got" in err
    assert "Pass --resume to go on with it, or name another folder." in err
    assert weights_of(tmp_path / "best.safetensors") == before


def test_no_file_names_the_code_that_is_run(voc, tmp_path, run):
    assert run("train", voc, "-o", tmp_path, *OWN)[0] == 0
    config = json.loads((tmp_path / "config.json").read_text())
    status, _, err = run("train", voc, "-o", tmp_path, "--resume")
    assert status == 1
    assert "Pass the --model of the training: no file names code to run." in err
    config["network"]["network"] = "os:getcwd"
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, _, err = run("train", voc, "-o", tmp_path, "--resume", "--model", TINY)
    assert status == 1
    assert "network: expected 'os:getcwd'" in err
    config["options"]["crop"] = "3x3x3"
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, _, err = run("train", voc, "-o", tmp_path, "--resume", "--model", TINY)
    assert "expected valid options, got another value of 'crop'" in err
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": 7}))
    status, _, err = run("train", voc, "-o", tmp_path, "--resume", "--model", TINY)
    assert "expected a configuration of format 1, got another one" in err


def test_bad_data_is_listed_before_the_first_step(tmp_path, run):
    root = write_voc(tmp_path / "voc", 3, 1)
    (root / "JPEGImages" / "2007_000000.png").unlink()
    labels = make_labels(1)
    labels[3, 4:6] = 7
    Image.fromarray(labels).save(root / "SegmentationClass" / "2007_000001.png")
    counts = "missing photos: 1, labels outside the classes: 1"
    status, out, err = run("train", root, "-o", tmp_path / "run", *OWN)
    assert (status, out) == (1, "")
    assert err.splitlines()[1:] == [
        "  JPEGImages/2007_000000: there is no photo of this name.",
        "  SegmentationClass/2007_000001.png: expected 0...2 or 255, got 7 (2 pixels).",
        f"seg-loss: data: expected 3 images and labels that fit, got {counts}.",
    ]
    assert not (tmp_path / "run").exists()
    # Without the check the training begins, and finds the label in the first epoch.
    status, _, err = run(
        *("train", root, "-o", tmp_path / "run", *OWN, "--check-data", "none", "--crop", "none")
    )
    assert status == 1
    assert "warning: images without a partner, which are left out: 1" in err
    expected = "expected files that fit, got labels: expected 0...2 or 255, got 7."
    assert f"image '2007_000001': {expected}" in err
    for name in ("2007_000001", "2007_000002"):
        (root / "JPEGImages" / f"{name}.png").unlink()
    status, _, err = run(
        "train", root, "-o", tmp_path / "other", *OWN, "--check-data", "none", "--val-split", "none"
    )
    assert status == 1
    assert "expected at least one training image with labels, got images without a par" in err


def test_turned_photos_get_a_warning(tmp_path, run):
    root = write_voc(tmp_path / "voc", 2, 1)
    path = root / "JPEGImages" / "2007_000000.png"
    with Image.open(path) as photo:
        exif = photo.getexif()
        exif[0x0112] = 3
        photo.save(path, exif=exif)
    status, _, err = run("train", root, "-o", tmp_path / "seed=3" / "run", *OWN)
    assert status == 0
    assert "warning: photos that their EXIF orientation turns upright: 1. Their labels" in err
    assert f"in {tmp_path}/seed=3/run/best.safetensors" in err  # not --seed 3


def test_images_of_both_splits_get_a_warning(tmp_path, run):
    root = write_voc(tmp_path / "voc", 3, 1)
    lists = root / "ImageSets" / "Segmentation"
    (lists / "val.txt").write_text((lists / "train.txt").read_text())
    status, _, err = run("train", root, "-o", tmp_path / "run", *OWN)
    assert status == 0
    assert "warning: images that are trained and validated on: 3" in err


def test_wrong_usage_has_status_2(voc, tmp_path, run):
    status, _, err = run("train", voc, "-o", tmp_path, *OWN, "--recipe", "modem")
    assert status == 2
    assert "recipe: expected one of fcn, modern, got 'modem'. Did you mean modern?" in err
    assert run("train", voc, "-o", tmp_path, "--format", "xml")[0] == 2
    assert run("train", voc)[0] == 2
    status, _, err = run("train", voc, "-o", tmp_path, *OWN, "--model", "training_data:absent")
    assert status == 1
    assert "network: expected an importable network" in err


def first_loss(run, voc, output, *arguments):
    """Trains one step without learning; returns what the command writes to standard error."""
    status, _, err = run(
        *("train", voc, "-o", output, *arguments, "--steps", 1, "--learning-rate", "1e-30"),
        *("--check-data", "none", "--weight-decay", 0),
    )
    assert status == 0, err
    return err


def filled(network):
    """A thin network whose scores are not zero."""
    spec = NetworkSpec(network, 3, THIN, "imagenet")
    model = build(spec)
    surgery.initialize(model, 5, preprocessing="imagenet")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score" in name:
                parameter.normal_(0, 0.1)
    return model, spec


def test_a_stage_begins_with_the_weights_of_the_last(voc, tmp_path, run):
    model, spec = filled("fcn32s")
    save_network(tmp_path / "stage.safetensors", model, spec)
    caffe_weights.save(model, tmp_path / "stage.caffemodel")
    thin = ("--channels", ",".join(map(str, THIN)), *SMALL, "--network", "fcn16s")
    for name in ("stage.safetensors", "stage.caffemodel"):
        output = tmp_path / name.partition(".")[2]
        err = first_loss(run, voc, output, *thin, "--init", tmp_path / name)
        assert f"weights: 16 layers of {tmp_path / name}, from conv1_1 to score_fr" in err
        stage, _ = load_network(Run(output).checkpoints()[-1] / "weights.safetensors")
        assert torch.equal(stage.conv3_1.weight, model.conv3_1.weight)
        assert torch.equal(stage.score_fr.weight, model.score_fr.weight)
        assert stage.score_pool4.weight.abs().max() < 1e-20  # zero, but for the step


def test_vgg16_of_torchvision_and_of_caffe_are_first_weights(voc, tmp_path, run):
    model, _ = filled("fcn32s")
    layers = [name for name, _ in surgery.layers_of(model).items() if name[:2] in ("co", "fc")]
    state = {}
    features = iter((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
    caffe = {}
    for layer in layers:
        module = getattr(model, layer)
        weight = module.weight.detach()
        name = f"classifier.{3 * (layer == 'fc7')}"
        if layer.startswith("conv"):
            name = f"features.{next(features)}"
        else:
            weight = weight.flatten(1)
        state[f"{name}.weight"], state[f"{name}.bias"] = weight.clone(), module.bias.detach()
        caffe[layer] = [weight, module.bias.detach()]
    save_file(state, tmp_path / "vgg16.safetensors")
    caffe_weights.write(tmp_path / "vgg16.caffemodel", caffe)
    for name, maker in (("vgg16.safetensors", "torchvision's "), ("vgg16.caffemodel", "")):
        output = tmp_path / name.partition(".")[2]
        err = first_loss(run, voc, output, *FCN, "--init", tmp_path / name)
        assert f"weights: {maker}VGG16 of {tmp_path / name}, scores zero" in err
        first, _ = load_network(Run(output).checkpoints()[-1] / "weights.safetensors")
        assert torch.equal(first.fc6.weight, model.fc6.weight)
        assert first.score_fr.weight.abs().max() < 1e-20
        assert "loss 1.0986 (1.0986 a pixel)" in err  # ln 3


def test_ones_own_network_begins_with_its_own_checkpoint(voc, tmp_path, run):
    assert run("train", voc, "-o", tmp_path / "a", *OWN)[0] == 0
    best = tmp_path / "a" / "best.safetensors"
    err = first_loss(run, voc, tmp_path / "b", *OWN, "--init", best)
    assert f"weights: {best}" in err
    (newest,) = Run(tmp_path / "b").checkpoints()
    assert weights_of(newest / "weights.safetensors") == weights_of(best)
    other = (*OWN, "--num-classes", 4, "--init", best)
    status, _, err = run("train", voc, "-o", tmp_path / "c", *other)
    assert status == 1
    assert f"{best}: expected a network of 4 classes, got 3." in err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("weights.pth", b"\x80\x04.", "Other files, such as .pth, are pickles: load them in"),
        ("weights.safetensors", b"\x80\x04.", "expected a safetensors file, got the error"),
        ("weights.caffemodel", b"\xff" * 9, "weights.caffemodel"),
    ],
)
def test_first_weights_in_another_file_are_an_error(voc, tmp_path, run, name, content, message):
    (tmp_path / name).write_bytes(content)
    status, _, err = run("train", voc, "-o", tmp_path / "run", *FCN, "--init", tmp_path / name)
    assert status == 1
    assert message in err
    status, _, err = run("train", voc, "-o", tmp_path / "run", *FCN, "--init", "a.safetensors")
    assert "seg-loss: a.safetensors: No such file or directory" in err
    assert not (tmp_path / "run").exists()


def start(*arguments):
    """Starts the command in a session of its own, as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_ctrl_c_ends_with_a_checkpoint_and_status_130(voc, tmp_path):
    endless = (*OWN, "--steps", 10**6, "--val-interval", 10**6, "--workers", 1)
    process = start("app", "train", voc, "-o", tmp_path, *endless)
    try:
        for line in process.stderr:
            if line.startswith("step 3/"):
                break
        os.killpg(process.pid, signal.SIGINT)  # to the workers too, as a terminal does
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    step = json.loads(out)["step"]
    assert step >= 3
    assert "stopping after this step, with a checkpoint; Ctrl-C again aborts" in err
    assert f"stopped after step {step} of 1000000; --resume goes on" in err
    assert "Traceback" not in err
    (newest,) = Run(tmp_path).checkpoints()
    assert newest.name == f"{step:08d}"


def test_torchrun_trains_as_one_process(voc, tmp_path, run):
    options = ("--crop", "18x22", "--model", "training_data:PlainNetwork", "--optimizer", "sgd")
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "app")
    process = start(*torchrun, "train", voc, "-o", tmp_path / "two", *OWN, *options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    options = (*OWN, *options, "--batch-size", 2)
    status, expected, _ = run("train", voc, "-o", tmp_path / "one", *options)
    assert status == 0
    result, expected = json.loads(out), json.loads(expected)  # one process prints
    assert result["mean_nll"] == pytest.approx(expected["mean_nll"], rel=1e-5)
    assert "2 steps of 2 images in 2 processes on cpu" in err
    assert err.count("VOC: 6 training and 2 validation images") == 1
