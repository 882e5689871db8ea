"""The README and the pages of `docs`: their blocks of code, and how the tests run them.

A block marked `python` or `sh` is run. What cannot run in a test is marked `console` or `text`.
"""

import contextlib
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
WARM_SECONDS = 120
GENERATED = ("benchmarks/results/gpu.md", "site/")
SHOWN_URL = "http://127.0.0.1:8000"


def name_of(page: Path) -> str:
    """Returns the path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Returns the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


@contextlib.contextmanager
def running_service() -> Iterator[str]:
    """Runs `seg-loss serve` on a free loopback port; yields its address when it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app", "serve", "--port", f"{port}"]
    # Each number of classes takes time where the cache has no kernels for it.
    environment = {**os.environ, "SEG_LOSS_WARM_CLASSES": "2"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + WARM_SECONDS
    try:
        while not _is_ready(url):
            assert process.poll() is None, "the service ended"
            assert time.monotonic() < deadline, "the service is not ready"
            time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return True
    except OSError:
        return False


def run_python(page: Path, url: str) -> None:
    """Runs the `python` blocks of a page, one after the other, with the service at `url`.

    Every call of `print` has a comment behind it that says what it prints.
    """
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        assert all(len(line) <= 100 for line in block.splitlines()), block
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.replace(SHOWN_URL, url), name_of(page), "exec"), names)
        expected = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert printed.getvalue().splitlines() == expected
        assert block.count("print(") == len(expected)


def run_shell(page: Path, url: str, folder: Path) -> str:
    """Runs the `sh` blocks of a page in a folder that has the sample; returns what they print.

    `seg-loss` is the command of this checkout, and curl fails at an error of the service.
    """
    command = folder / "bin" / "seg-loss"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m app "$@"\n')
    command.chmod(0o755)
    (folder / ".curlrc").write_text("fail\nsilent\nshow-error\n")
    script = "\n".join(["seg-loss sample sample > /dev/null", *blocks(page, "sh")])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace(SHOWN_URL, url)],
        cwd=folder,
        env={
            **os.environ,
            "CURL_HOME": str(folder),
            "PATH": f"{command.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as the website and code forges name them."""
    outside = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_links(page: Path) -> None:
    """Checks that the files and headings exist that a page links to."""
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def check_names(page: Path) -> None:
    """Checks that the files, folders, commands and names exist that a page mentions."""
    text = page.read_text()
    for path in re.findall(r"`((?:[\w.-]+/)+(?:[\w-]+\.\w+)?)`", text):
        # Within the folder that a table is about, a path begins there.
        places = (ROOT / path, ROOT / "seg_loss" / path, ROOT / "app" / path)
        assert path in GENERATED or any(place.exists() for place in places), path
    for name, path in re.findall(r"`(\w+)`[^`.\n]* in\s+`((?:[\w.-]+/)+\w+\.py)`", text):
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{name} in {path}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^ {4})make ([a-z][a-z-]*[a-z])\b", text, re.MULTILINE):
        target = "test-triton-%" if target == "test-triton" else target
        assert f"\n{target}:" in makefile, f"make {target}"
    for module in re.findall(r"python -m (benchmarks\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    for path in re.findall(r"docker (?:build|compose) -f (\S+)", text):
        assert (ROOT / path).is_file(), path
    for stage in re.findall(r"--target (\w+)", text):
        assert f" AS {stage}\n" in dockerfile, stage
    for argument in re.findall(r"--build-arg (\w+)=", text):
        assert f"\nARG {argument}" in dockerfile, argument
