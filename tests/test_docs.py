"""The pages of `docs`: their code is run, what they name exists, and nothing public is missing."""

import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
import torch
from safetensors.torch import save

import models
import seg_loss
from benchmarks import example
from tests.documents import (
    PAGES,
    ROOT,
    blocks,
    check_links,
    check_names,
    name_of,
    run_python,
    run_shell,
    running_service,
)

TEXT = {name_of(page): page.read_text() for page in PAGES}
CONTRIBUTING = ROOT / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def url():
    with running_service() as url:
        yield url


def printed_by(*arguments):
    """What `seg-loss ARGUMENTS` prints."""
    run = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def help_of(*command):
    return printed_by(*command, "--help")


def pages_with(language):
    return [page for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_the_python_examples_print_what_their_comments_say(page, url):
    run_python(page, url)


def pages_with_commands():
    # `make test-example` runs the commands of the worked example in a short form.
    return [page for page in pages_with("sh") if page != example.PAGE]


@pytest.mark.parametrize("page", pages_with_commands(), ids=name_of)
def test_the_commands_and_requests_succeed(page, url, tmp_path):
    run_shell(page, url, tmp_path)
    for name in re.findall(r"(?:-o|--output) (\S+)", "".join(blocks(page, "sh"))):
        (file,) = tmp_path.rglob(name)
        assert file.stat().st_size > 0, name


@pytest.mark.parametrize("page", [*PAGES, CONTRIBUTING], ids=name_of)
def test_what_is_named_exists(page):
    check_links(page)
    check_names(page)


def test_the_tables_of_the_architecture_name_files_of_their_folders():
    sections = re.findall(
        r"^## [^`\n]*`([\w/]+)/`\n(.*?)(?=^## |\Z)",
        TEXT["docs/architecture.md"],
        re.MULTILINE | re.DOTALL,
    )
    page = [
        "app/http/static",
        *(f"app/http/static/{name}" for name in ("inputs", "viewer", "panels")),
    ]
    assert [folder for folder, _ in sections] == ["seg_loss", "app", *page]
    for folder, section in sections:
        cells = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
        named = set(re.findall(r"`(.*?)`", " ".join(cells)))
        for path in named:
            assert (ROOT / folder / path).exists(), f"{folder}/{path}"
        if folder in page:
            assert {path.name for path in (ROOT / folder).glob("*.js")} <= named, folder


def test_every_command_of_make_is_in_contributing():
    makefile = (ROOT / "Makefile").read_text()
    commands = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)) - {"help", "clean"}
    table = set(re.findall(r"^\| `make ([a-z-]+)` \|", CONTRIBUTING.read_text(), re.MULTILINE))
    assert table == commands


def test_every_setting_is_documented_with_its_default():
    documented = re.findall(r"^\| `(SEG_LOSS_\w+)` \| (\S+) \|", TEXT["docs/http.md"], re.MULTILINE)
    assert documented == re.findall(r"(SEG_LOSS_\w+) \[(.*?)\]", help_of("serve"))


def test_every_flag_of_the_command_line_is_documented():
    commands = re.findall(r"^  (\w+)  ", help_of(), re.MULTILINE)
    text = TEXT["docs/command-line.md"] + TEXT["docs/training.md"]
    documented = set(re.findall(r"`(--[\w-]+)", text))
    assert "serve" in commands
    for command in commands:
        assert f"| `{command}" in TEXT["docs/command-line.md"], command
        flags = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", help_of(command), re.MULTILINE))
        assert flags - documented <= {"--help"}, command


def test_every_palette_is_documented():
    for name in json.loads(printed_by("palettes", "--format", "json"))["palettes"]:
        assert f"`{name}`" in TEXT["docs/http.md"], name


def test_every_path_option_and_status_of_the_service_is_documented(url):
    with urllib.request.urlopen(f"{url}/openapi.json") as response:
        document = json.load(response)
    text = TEXT["docs/http.md"]
    statuses = set(re.findall(r"^\| (\d\d\d) \|", text, re.MULTILINE))
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}`" in text, path
            assert set(operation["responses"]) - statuses <= {"200"}, path
            options = operation.get("parameters", ())
            for option in (entry["name"] for entry in options if entry["in"] == "query"):
                assert f"`{option}`" in text, option


def test_the_error_that_is_shown_is_answered(url):
    (shown,) = map(json.loads, blocks(ROOT / "docs" / "http.md", "json"))
    labels = torch.zeros(1, 20, 60, dtype=torch.uint8)
    labels[0, 12, 40:48] = 31
    body = save({"logits": torch.zeros(1, 19, 20, 60), "labels": labels})
    headers = {"Content-Type": "application/x-safetensors"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/loss", body, headers))
    answer = json.load(caught.value)
    assert answer["error"] == answer["detail"]
    varying = {"error": shown["error"], "request_id": shown["request_id"]}
    assert {**answer, **varying} == shown


def public_modules():
    """The modules that users import; `cpu` and `gpu` are reached through `seg_loss` alone."""
    for package in (seg_loss, models):
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            parts = found.name.split(".")[1:]
            if not any(part.startswith("_") or part in ("cpu", "gpu") for part in parts):
                yield importlib.import_module(found.name)


def public_things():
    """Yields (name, docstring) of all public modules, functions, classes, methods, properties."""
    for module in public_modules():
        yield module.__name__, module.__doc__
        for name, value in vars(module).items():
            is_own = getattr(value, "__module__", None) == module.__name__
            if name.startswith("_") or not is_own or not callable(value):
                continue
            yield f"{module.__name__}.{name}", value.__doc__
            for member, inside in vars(value).items() if inspect.isclass(value) else ():
                inside = getattr(inside, "__func__", inside)  # of a class method
                is_code = inspect.isfunction(inside) or isinstance(inside, property)
                if is_code and not member.startswith("_"):
                    yield f"{module.__name__}.{name}.{member}", inside.__doc__
    for name in seg_loss.__all__:
        yield f"seg_loss.{name}", getattr(seg_loss, name).__doc__


def test_every_public_thing_has_a_docstring():
    missing = sorted({name for name, text in public_things() if not (text or "").strip()})
    assert missing == []


def test_every_public_name_is_in_the_reference():
    listed = set(re.findall(r"^::: (\S+)", "\n".join(TEXT.values()), re.MULTILINE))
    modules = ("metrics", "compat.torch", "compat.caffe", "constants")
    names = {f"seg_loss.{name}" for name in seg_loss.__all__}
    walk = pkgutil.walk_packages(models.__path__, "models.")
    networks = [found.name for found in walk if "._" not in found.name]
    for module in (*(f"seg_loss.{name}" for name in modules), *networks):
        for name, value in vars(importlib.import_module(module)).items():
            if not name.startswith("_") and getattr(value, "__module__", None) == module:
                names.add(f"{module}.{name}")
    # `FcnMetrics` is public in two modules and documented in one.
    assert names - listed <= {"seg_loss.metrics.FcnMetrics"}


def test_the_image_with_cuda_can_write_and_keep_what_triton_compiles():
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    (stage,) = re.findall(r"(?ms)^FROM runtime AS cuda\n(.*?)^FROM ", dockerfile)
    (cache,) = re.findall(r"TRITON_CACHE_DIR=(\S+)", stage)
    assert f"\nVOLUME {cache}\n" in stage
    assert 'install --directory --owner=10001 "$TRITON_CACHE_DIR"' in stage
    assert "gcc libc6-dev" in stage
    assert re.findall(r"^USER (\S+)", stage, re.MULTILINE)[-1] == "10001"
    assert f"- triton:{cache}\n" in (ROOT / "docker" / "compose.gpu.yaml").read_text()
    assert f":{cache} " in TEXT["docs/docker.md"]
