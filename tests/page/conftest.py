"""A service behind a real socket, and Debian's Chromium, driven by Playwright."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "app"))

from serving import running

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    # Nothing reads the log, and a pipe that is full would stop the service.
    with running(log_level="warning") as server:
        yield server.url


@pytest.fixture(scope="session")
def browser():
    # Not at the top: pytest takes a skip in this file for an error of its own.
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
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
