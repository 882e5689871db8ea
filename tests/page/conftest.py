"""A service behind a real socket, and Debian's Chromium, driven by Playwright."""

import base64
import io
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "app"))

from serving import running

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

CHROMIUM = shutil.which("chromium")
WAIT_SECONDS = 60
"""The first request for a number of classes compiles its kernels."""

TRANSFER = """async (files) => {
  const transfer = new DataTransfer();
  for (const [name, content] of Object.entries(files)) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name));
  }
  return transfer;
}"""
"""Makes what a drop event carries, from the contents of files in base64 by name."""


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    # Nothing reads the log, and a pipe that is full would stop the service.
    with running(log_level="warning") as server:
        yield server.url


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs chromium, which .ci/run installs")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    """A fresh page; at its end no error may be in the console, and no request may have left.

    Chromium reports each error of HTTP in the console. A test whose requests fail for another
    reason than 422 says so: `page.allowed = [500]`, or a part of the message.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(10_000)
    problems: list[str] = []
    page.allowed = []
    page.on("pageerror", lambda error: problems.append(f"{error}"))
    page.on(
        "console",
        lambda message: problems.append(message.text) if message.type == "error" else None,
    )
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((url, "blob:", "data:"))
            else problems.append(request.url)
        ),
    )
    page.problems = problems
    page.goto(url)
    yield page
    context.close()
    allowed = [
        f"status of {text} " if isinstance(text, int) else text for text in (422, *page.allowed)
    ]
    assert [problem for problem in problems if not any(text in problem for text in allowed)] == []


def wait_until(page, expression: str) -> None:
    """Waits until a JavaScript expression is true.

    Playwright's `wait_for_function` evaluates text within the page, which its policy forbids.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression} has not become true"
        page.wait_for_timeout(10)


def drop(page, files: Mapping[str, bytes]) -> None:
    """Drops files on the page, all at once."""
    contents = {name: base64.b64encode(content).decode() for name, content in files.items()}
    transfer = page.evaluate_handle(TRANSFER, contents)
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})


def drop_and_wait(page, files: Mapping[str, bytes]) -> None:
    """Drops files and waits for the scene or the problem that comes of them."""
    before = page.evaluate_handle("segLoss.store.state.scene")
    drop(page, files)
    wait_until_settled(page, before)


def wait_until_settled(page, before=None) -> None:
    """Waits for another scene than before, or for a problem, and for the end of the request."""
    before = before or page.evaluate_handle("null")
    deadline = time.monotonic() + WAIT_SECONDS
    while not page.evaluate(
        """(before) => {
          const { scene, problem, progress } = segLoss.store.state;
          return progress === null && (problem !== null || (scene !== null && scene !== before));
        }""",
        before,
    ):
        assert time.monotonic() < deadline, "there is neither a scene nor a problem"
        page.wait_for_timeout(10)


def answer(page, index: int = 0) -> Any:
    """The JSON object that the service has answered for a prediction."""
    return page.evaluate(f"segLoss.store.state.scene.predictions[{index}].answer")


def npy_file(array: npt.NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def png_file(array: npt.NDArray[np.uint8], mode: str | None = None) -> bytes:
    """A grey PNG of [H,W], an RGB one of [H,W,3], or a mode P one."""
    picture = Image.fromarray(array)
    if mode == "P":
        picture = Image.fromarray(array, mode="L")
        picture.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
