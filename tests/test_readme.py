"""What the README shows is run: Python, command line and curl; its figures are those committed."""

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from serving import ROOT, running

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("example", "output"),
    list(zip(blocks("python"), ("3.0445\nat_chance\n", "3.0445\n"), strict=True)),
)
def test_the_python_examples_print_what_their_comments_say(example, output):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec"), {})
    assert printed.getvalue() == output
    for line in output.splitlines():
        assert f"# {line}" in example


def test_the_commands_run_one_after_the_other(tmp_path):
    (commands,) = (block for block in blocks("sh") if "seg-loss" in block)
    for command in commands.splitlines():
        program, *arguments = shlex.split(command)
        assert program == "seg-loss"
        run = [sys.executable, "-m", "app", *arguments]
        environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
        finished = subprocess.run(
            run, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"sample", "gradient.npy", "error.png"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_requests_are_answered(tmp_path):
    (requests,) = (block for block in blocks("sh") if block.startswith("curl"))
    make = [sys.executable, "-m", "app", "sample", str(tmp_path / "sample")]
    subprocess.run(make, cwd=ROOT, check=True, capture_output=True)
    with running() as server:
        answers = []
        for request in requests.splitlines():
            command = shlex.split(request.replace("http://127.0.0.1:8000", server.url))
            command.insert(1, "-fsS")
            answers.append(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True))
    assert json.loads(answers[0].stdout)["diagnosis"]["state"] == "learning"
    assert (tmp_path / "gradient.npy").read_bytes().startswith(b"\x93NUMPY")
    assert (tmp_path / "nll.png").read_bytes().startswith(b"\x89PNG")


def test_every_file_that_is_named_exists():
    for name in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / name).exists(), name
    for folder in re.findall(r"^    (\w+/) ", README, flags=re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder


@pytest.mark.parametrize("name", ["cpu", "cpu_upsampled"])
def test_the_figures_are_those_of_the_committed_result(name):
    pattern = rf"<!-- figures of {name} -->\n(.*?)<!-- /figures -->"
    figures = re.search(pattern, README, flags=re.DOTALL)
    results = (RESULTS / f"{name}.md").read_text()
    for line in figures[1].splitlines():
        assert line in results, line
    assert len(figures[1].splitlines()) > 10
