"""Encodings that cannot hold every character, pipes, and streams that cannot be written."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from examples import make_inputs, npy_file, write_inputs
from PIL import Image
from serving import ROOT

from app import cli
from app.report import FORMATS

NAME = "Ж–\udce9"
"""A file name with characters that ASCII, cp1252 and, for the last one, UTF-8 lack."""


@pytest.fixture
def run_in(empty_directory, monkeypatch):
    """Runs `seg-loss` with strict streams in an encoding; returns exit status, stdout, stderr."""
    write_inputs(make_inputs())

    def run(encoding, *arguments):
        streams = []
        for name in ("stdout", "stderr"):
            streams.append(io.TextIOWrapper(io.BytesIO(), encoding, "strict", write_through=True))
            monkeypatch.setattr(sys, name, streams[-1])
        with pytest.raises(SystemExit) as stop:
            cli.main(list(arguments))
        return stop.value.code or 0, *(stream.buffer.getvalue() for stream in streams)

    return run


RESULTS = {
    "palettes": [],
    "loss": ["logits.npy", "labels.png"],
    "evaluate": ["logits.npy", "labels.png"],
    "gradient": ["logits.npy", "labels.png", "-o", f"{NAME}.npy"],
}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("command", RESULTS)
def test_results_are_written_in_every_encoding(run_in, encoding, format_name, command):
    status, out, err = run_in(encoding, command, *RESULTS[command], "--format", format_name)
    assert (status, err) == (0, b"")
    text = out.decode(encoding)
    if format_name == "json":
        assert json.loads(text).get("output", f"{NAME}.npy") == f"{NAME}.npy"
    if format_name == "table" and encoding == "ascii":
        assert set(text.splitlines()[1].strip()) == {"-"}


def test_files_are_written_in_every_encoding(run_in):
    assert run_in("ascii", "visualize", "logits.npy", "-o", f"{NAME}.png") == (0, b"", b"")
    assert Path(f"{NAME}.png").exists()
    status, out, _ = run_in("ascii", "sample", NAME, "--height", "32", "--width", "32")
    assert (status, out.count(b"\n")) == (0, 3)


@pytest.mark.parametrize(
    "page",
    ["", "loss", "gradient", "evaluate", "visualize", "predict", "palettes", "sample", "serve"],
)
def test_help_pages_are_written_in_ascii(run_in, page):
    status, out, err = run_in("ascii", *page.split(), "--help")
    assert (status, err) == (0, b"")
    assert b"Usage: seg-loss" in out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize(
    "line",
    [
        NAME,
        f"palettes {NAME}",
        f"loss {NAME}.npy labels.png",
        f"loss logits.npy labels.png --{NAME} 1",
        f"loss logits.npy labels.png --format {NAME}",
        f"loss logits.npy labels.png --palette {NAME}",
        f"loss logits.npy labels.png --device {NAME}",
        f"evaluate logits.npy labels.png --fail-under {NAME}",
        f"gradient logits.npy labels.png -o {NAME}/g.npy",
        "loss logits.npy colours.png --palette voc",
        f"sample labels.png/{NAME}",
    ],
)
def test_errors_are_written_in_every_encoding(run_in, encoding, line):
    # The message lists ten of the colours, and an ellipsis.
    Image.fromarray(np.arange(126, dtype=np.uint8).reshape(6, 7, 3)).save("colours.png")
    status, out, err = run_in(encoding, *line.split())
    assert status in (1, 2)
    assert out == b""
    assert err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("command", ["logits", "labels", "--class-weight", "--pixel-weight"])
def test_every_input_may_come_from_a_pipe(run, empty_directory, command):
    inputs = make_inputs() | {"--class-weight": np.ones(5), "--pixel-weight": np.ones((6, 7))}
    files = {name: npy_file(np.asarray(array)) for name, array in inputs.items()}
    for name, content in files.items():
        Path(f"{name}.npy").write_bytes(content)
    Path(f"{command}.npy").unlink()
    os.mkfifo(f"{command}.npy")
    writer = threading.Thread(target=Path(f"{command}.npy").write_bytes, args=[files[command]])
    writer.start()
    weights = ["--class-weight=--class-weight.npy", "--pixel-weight=--pixel-weight.npy"]
    status, out, err = run("loss", "logits.npy", "labels.npy", *weights)
    writer.join()
    assert (status, err) == (0, "")
    assert "valid_pixels" in out


def seg_loss_process(*arguments, **options):
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False, stderr=subprocess.PIPE, **options)


def test_a_dash_is_standard_input(tmp_path):
    inputs = make_inputs()
    (tmp_path / "labels.npy").write_bytes(npy_file(inputs["labels"].numpy()))
    done = seg_loss_process(
        *("loss", "-", str(tmp_path / "labels.npy")),
        input=npy_file(inputs["logits"].numpy()),
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        stdout=subprocess.PIPE,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"valid_pixels" in done.stdout


def test_standard_input_is_one_input_and_must_be_there(run, empty_directory, monkeypatch):
    expected = "seg-loss: -: expected one input from standard input, got several.\n"
    assert run("loss", "-", "-") == (2, "", expected)
    monkeypatch.setattr(sys, "stdin", None)
    assert run("loss", "-", "a") == (2, "", "seg-loss: -: expected standard input, got none.\n")


def test_a_file_whose_name_is_a_dash_is_no_standard_input(run, empty_directory, monkeypatch):
    inputs = make_inputs()
    Path("-").write_bytes(npy_file(inputs["logits"].numpy()))
    Path("labels.npy").write_bytes(npy_file(inputs["labels"].numpy()))
    monkeypatch.setattr(sys, "stdin", None)
    for name in ("./-", Path("-").absolute()):
        assert run("loss", name, "labels.npy")[0] == 0
    assert run("loss", "-", "labels.npy")[0] == 2
    weights = ("--class-weight", "./-", "--pixel-weight", "./-")
    assert run("loss", "./-", "labels.npy", *weights)[2].startswith("seg-loss: class_weight: ")


@pytest.mark.parametrize("character", ["\x1b", "\n", "\r", "\x7f", "\x9b", "\u202e"])
@pytest.mark.parametrize(
    "line",
    [
        "loss {}.npy labels.png",
        "evaluate {} labels.png",
        "gradient logits.npy labels.png -o {}/g.npy",
        "gradient logits.npy labels.png -o {}.npy",
        "gradient logits.npy labels.png -o {}.npy --format md",
    ],
)
def test_control_characters_of_file_names_are_escaped(run, empty_directory, line, character):
    name = f"a{character}[2Jb"
    write_inputs(make_inputs())
    if line.startswith("evaluate"):
        Path(name).mkdir()
    _, out, err = run(*(part.format(name) for part in line.split()))
    assert ascii(character)[1:-1] + "[2Jb" in out + err
    assert f"{character}[2Jb" not in out + err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_with_a_sentence():
    with Path("/dev/full").open("wb") as full:
        done = seg_loss_process("palettes", stdout=full)
    assert done.returncode == 1
    assert done.stderr == b"seg-loss: standard output: No space left on device\n"


def test_a_result_without_standard_output_is_an_error(run, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as in `seg-loss palettes >&-`
    expected = "seg-loss: standard output: expected an open one, got none.\n"
    for arguments in (["palettes"], ["--version"]):
        assert run(*arguments) == (1, "", expected)


def test_a_reader_that_stops_ends_the_command_without_a_message():
    reader, writer = os.pipe()
    os.close(reader)
    done = seg_loss_process("palettes", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
