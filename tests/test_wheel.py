"""The wheel: what it contains, and that its packages can be imported where it is installed."""

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import seg_loss

ROOT = Path(__file__).parents[1]
SOURCES = {"seg_loss": "seg_loss", "app": "seg_loss_app", "models": "seg_loss_models"}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
INDEX_FREE = ["--no-deps", "--no-index"]


def run(*command, cwd, **environment):
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources: a build writes into the folder that it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "sources"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for name in (*SOURCES, "LICENSES", "tests", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(*PIP, "wheel", *INDEX_FREE, "--no-build-isolation", "-w", folder, copy, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    run(*PIP, "install", *INDEX_FREE, "--target", folder, wheel, cwd=folder)
    return folder


def read(wheel, suffix):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(suffix))
        return archive.read(name).decode()


def test_every_module_and_static_file_is_in_the_wheel(names):
    expected = {
        Path(package, path.relative_to(ROOT / folder)).as_posix()
        for folder, package in SOURCES.items()
        for pattern in ("*.py", "*.pyi", "py.typed", "static/**/*")
        for path in (ROOT / folder).rglob(pattern)
        if path.is_file()
    }
    assert "seg_loss_app/http/static/vendor/swagger-ui/LICENSE" in expected
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_every_package_is_typed(names):
    assert {f"{package}/py.typed" for package in SOURCES.values()} <= names
    assert "seg_loss/__init__.pyi" in names


def test_no_package_can_collide_with_one_of_the_user(names):
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == set(SOURCES.values())


def test_the_metadata_is_complete(wheel, names):
    metadata = email.message_from_string(read(wheel, ".dist-info/METADATA"))
    assert metadata["Name"] == "seg-loss"
    assert metadata["Version"] == seg_loss.__version__
    assert metadata["License-Expression"] == "MIT AND Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Summary"]
    assert metadata["Keywords"]
    assert metadata.get_payload().startswith("# seg-loss")
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    licences = {name.partition(".dist-info/licenses/")[2] for name in names}
    assert licences - {""} == {"LICENSE", "LICENSES/Apache-2.0.txt"}


def test_the_library_alone_needs_numba_numpy_and_torch(wheel):
    metadata = email.message_from_string(read(wheel, ".dist-info/METADATA"))
    needed = [text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text]
    assert [text.partition(">")[0] for text in needed] == ["numba", "numpy", "torch"]


def test_the_command_is_declared(wheel):
    assert "seg-loss = seg_loss_app.__main__:main" in read(wheel, ".dist-info/entry_points.txt")


def test_the_installed_packages_are_imported_from_where_they_are_installed(installed, tmp_path):
    script = (
        "import seg_loss, seg_loss_app.cli\n"
        "import seg_loss_models.checkpoints, seg_loss_models.surgery\n"
        "for module in (seg_loss, seg_loss_models, seg_loss_app): print(module.__file__)"
    )
    printed = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(installed))
    assert printed.splitlines() == [
        str(installed / package / "__init__.py")
        for package in ("seg_loss", "seg_loss_models", "seg_loss_app")
    ]


def test_the_installed_service_finds_the_installed_networks(installed, tmp_path):
    script = (
        "from seg_loss_app.models_import import import_models\n"
        "print(import_models('checkpoints').__name__)"
    )
    printed = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(installed))
    assert printed == "seg_loss_models.checkpoints\n"


def test_the_installed_service_has_the_page_and_its_files(installed, tmp_path):
    script = """
import asyncio, httpx
from seg_loss_app.http.app import create_app

async def get():
    transport = httpx.ASGITransport(create_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        for path in ("/", "/docs", "/static/main.js", "/static/vendor/swagger-ui/swagger-ui.css"):
            response = await client.get(path)
            print(response.status_code, response.headers["Content-Type"].partition(";")[0])

asyncio.run(get())
"""
    printed = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(installed))
    assert printed.splitlines() == [
        "200 text/html",
        "200 text/html",
        "200 text/javascript",
        "200 text/css",
    ]


def test_the_installed_training_has_the_installed_networks(installed, tmp_path):
    script = (
        "from seg_loss_app.training import command, networks\n"
        "print(networks.import_models('checkpoints').__file__)"
    )
    printed = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(installed))
    assert printed.strip() == str(installed / "seg_loss_models" / "checkpoints.py")


def test_the_installed_command_line_answers(installed, tmp_path):
    command = [sys.executable, "-m", "seg_loss_app", "--help"]
    assert "visualize" in run(*command, cwd=tmp_path, PYTHONPATH=str(installed))
