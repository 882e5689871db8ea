"""What tests do with the page: they drop files, and wait for what comes of them."""

import base64
import io
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

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
    before = page.evaluate_handle("segLoss.store.state")
    drop(page, files)
    wait_until_settled(page, before)


def wait_until_settled(page, before=None) -> None:
    """Waits for a scene or a problem that the state before had not, and for the end of the request.

    Args:
        page: the page.
        before: a handle of the state; by default one without scene and problem.
    """
    before = before or page.evaluate_handle("({scene: null, problem: null})")
    deadline = time.monotonic() + WAIT_SECONDS
    while not page.evaluate(
        """(before) => {
          const { scene, problem, progress } = segLoss.store.state;
          const isNew = (value, former) => value !== null && value !== former;
          return progress === null &&
            (isNew(problem, before.problem) || isNew(scene, before.scene));
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
