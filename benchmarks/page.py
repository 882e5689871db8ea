"""The web page in Chromium: from a drop to the first picture, and frames while a control moves.

    python -m benchmarks.page [--rounds 7] [--output benchmarks/results]

The service and headless Chromium run on this machine and share its cores, without a GPU. Needs
playwright, which the extra `test` has, and Chromium.

First picture: float16 logits 1x19x512x1024 and a label PNG are dropped on the page. The time ends
with the second frame after the page has its arrays, when the first one is on the screen. The parts
of the service are those of its header `Server-Timing`.

Frames: an image of 2 megapixels, 1024 x 2048, six panes in a window of 1280 x 900. A control gets
another value in every frame. Script is the time that the page's code takes in a frame, which the
browser's own work follows. The browser makes at most one frame every 16.7 ms.

The NLL in the page is compared with that of `seg_loss` before anything is timed. Writes page.csv
and page.md.
"""

import argparse
import csv
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import seg_loss
from benchmarks.cpu import machine

NUM_CLASSES = 19
FIRST_PICTURE = (512, 1024)
FRAMES = (1024, 2048)
OBJECT = 32
VIEWPORT = {"width": 1280, "height": 900}
WARM_SECONDS = 120
NUM_FRAMES = 120
MAX_NLL_ERROR = 2e-5

CONTROLS = {
    "pan": "{camera: {scale: 0.5, x: 600 + 6 * i, y: 400 + 2 * i}}",
    "zoom": "{camera: {scale: 0.3 * 1.03 ** (i % 90), x: 700, y: 500}}",
    "opacity": "{camera: null, opacity: (i % 100) / 100}",
    "threshold on the NLL": "{minNll: (i % 100) / 50}",
    "threshold on the confidence": "{minNll: 0, maxConfidence: 1 - (i % 100) / 110}",
    "cell of the matrix": "{maxConfidence: 1, cell: {truth: i % 8, predicted: (i + 1) % 8}}",
    "class alone": "{cell: null, isolated: i % 19}",
    "row of a table under the pointer": "{isolated: null, highlighted: i % 19}",
    "pixel under the pointer": "{highlighted: null, hover: {x: 300 + 3 * i, y: 200 + i}}",
    "divider": "{hover: null, slider: {left: 'truth', right: 'nll', at: (i % 100) / 100}}",
    "pan behind the divider": "{slider: {left: 'truth', right: 'nll', at: 0.5},"
    " camera: {scale: 0.8, x: 600 + 6 * i, y: 400 + 2 * i}}",
}
"""The changes of the page's state in frame i, one control after the other."""

_MOVE = """async (frames) => {
  const {store} = segLoss;
  const request = window.requestAnimationFrame.bind(window);
  let script = 0;
  window.requestAnimationFrame = (run) => request((now) => {
    const start = performance.now();
    run(now);
    script += performance.now() - start;
  });
  const scripts = [], intervals = [];
  let last = null;
  for (let i = 0; i < frames; i++) {
    script = 0;
    const start = performance.now();
    store.set(CHANGES);
    const setting = performance.now() - start;
    await new Promise((done) => request(done));
    const now = performance.now();
    scripts.push(setting + script);
    if (last !== null) intervals.push(now - last);
    last = now;
  }
  window.requestAnimationFrame = request;
  return {scripts: scripts.slice(2), intervals: intervals.slice(2)};
}"""
"""Changes a control in every frame, and returns the times of the frames but the first two."""

_FIRST_PICTURE = """() => {
  const frame = () => new Promise(requestAnimationFrame);
  segLoss.firstPicture = new Promise((resolve) => {
    const start = performance.now();
    segLoss.store.on(["scene"], async ({ scene }) => {
      if (scene === null) return;
      const hasArrays = performance.now() - start;
      await frame();
      await frame();
      resolve([hasArrays, performance.now() - start]);
    });
  });
}"""

_DROP = """async () => {
  const transfer = new DataTransfer();
  for (const file of document.getElementById("benchmark").files) transfer.items.add(file);
  document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
  return segLoss.firstPicture;
}"""

_MAKE_INPUT = """() => {
  const input = document.createElement("input");
  Object.assign(input, {type: "file", multiple: true, id: "benchmark"});
  document.body.append(input);
}"""

_NLL = """() => {
  const { scene } = segLoss.store.state;
  return [...scene.predictions[0].nll.filter((_, i) => i % 997 === 0)];
}"""


@contextmanager
def service() -> Iterator[str]:
    """Yields the address of a service of its own process, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"SEG_LOSS_PORT": f"{port}", "SEG_LOSS_WARM_CLASSES": f"{NUM_CLASSES}"}
    command = [sys.executable, "-m", "app", "serve"]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        command, cwd=root, env={**os.environ, **variables}, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + WARM_SECONDS
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the service did not become ready")
            time.sleep(0.1)
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


def write_files(directory: Path, size: tuple[int, int]) -> tuple[Path, Path]:
    """Writes float16 logits and a label map with objects, and returns their paths."""
    random = np.random.default_rng(0)
    objects = random.integers(0, NUM_CLASSES, (size[0] // OBJECT, size[1] // OBJECT), np.uint8)
    labels = np.repeat(np.repeat(objects, OBJECT, 0), OBJECT, 1)
    logits = random.standard_normal((1, NUM_CLASSES, *size), np.float32)
    np.put_along_axis(
        logits, labels[None, None], 2 + np.take_along_axis(logits, labels[None, None], 1), 1
    )
    labels[:, ::50] = 255
    paths = directory / "logits.npy", directory / "labels.png"
    np.save(paths[0], logits.astype(np.float16))
    Image.fromarray(labels).save(paths[1])
    return paths


def check(page: Any, paths: tuple[Path, Path]) -> float:
    """Returns the largest difference of the NLL in the page from that of `seg_loss`.

    Raises:
        AssertionError: if it is more than `MAX_NLL_ERROR`.
    """
    logits = torch.from_numpy(np.load(paths[0]))
    labels = torch.from_numpy(np.asarray(Image.open(paths[1]))[None].copy())
    expected = seg_loss.pixel_nll(logits, labels).flatten()[::997]
    error = float((torch.tensor(page.evaluate(_NLL)) - expected).abs().max())
    if error > MAX_NLL_ERROR:
        raise AssertionError(f"the NLL in the page is off by {error}")
    return error


def open_page(browser: Any, url: str, paths: tuple[Path, Path]) -> Any:
    """Returns a new page to which the files can be dropped."""
    page = browser.new_page(viewport=VIEWPORT)
    page.goto(url)
    page.evaluate(_MAKE_INPUT)
    page.set_input_files("#benchmark", [f"{path}" for path in paths])
    page.evaluate(_FIRST_PICTURE)
    return page


def first_pictures(
    browser: Any, url: str, paths: tuple[Path, Path], rounds: int
) -> dict[str, list[float]]:
    """Returns the milliseconds from a drop to the arrays and to the picture, and of the service."""
    times: dict[str, list[float]] = {"first picture": [], "arrays in the page": []}
    for count in range(rounds + 1):
        page = open_page(browser, url, paths)
        with page.expect_response(lambda response: "/v1/evaluate" in response.url) as answered:
            arrays, picture = page.evaluate(_DROP)
        if count == 0:
            check(page, paths)  # and the first round warms the kernels and the browser
        else:
            times["first picture"].append(picture)
            times["arrays in the page"].append(arrays)
            for part in answered.value.headers["server-timing"].split(", "):
                name, _, duration = part.partition(";dur=")
                times.setdefault(f"service: {name}", []).append(float(duration))
        page.close()
    return times


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    rows: list[tuple[str, str, float, float]] = []
    with tempfile.TemporaryDirectory() as directory, service() as url, sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        version = browser.version
        paths = write_files(Path(directory), FIRST_PICTURE)
        for name, times in first_pictures(browser, url, paths, arguments.rounds).items():
            rows.append(("first", name, statistics.median(times), max(times)))
        paths = write_files(Path(directory), FRAMES)
        page = open_page(browser, url, paths)
        page.evaluate(_DROP)
        check(page, paths)
        page.wait_for_timeout(2000)  # for the list of regions
        for name, changes in CONTROLS.items():
            frames = page.evaluate(_MOVE.replace("CHANGES", changes), NUM_FRAMES)
            for part, times in (("script", frames["scripts"]), ("interval", frames["intervals"])):
                rows.append((part, name, statistics.median(times), max(times)))
        browser.close()
    shape = "x".join(map(str, (1, NUM_CLASSES, *FIRST_PICTURE)))
    frames_of = {name: [t for row in rows if row[1] == name for t in row[2:]] for name in CONTROLS}
    lines = [
        f"Medians of one run, in ms. {machine()},",
        f"headless Chromium {version} without a GPU, on the same cores as the service.",
        "",
        f"**From a drop to the first picture**, {shape} float16 and a label PNG",
        "",
        "| until, or part of | median | worst |",
        "|---|---|---|",
        *(f"| {row[1]} | {row[2]:.1f} | {row[3]:.1f} |" for row in rows if row[0] == "first"),
        "",
        f"**Frames while a control moves**, {FRAMES[0]} x {FRAMES[1]} pixels, six panes",
        "",
        "| control | script, median | worst | interval, median | worst |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {' | '.join(f'{time:.1f}' for time in times)} |"
            for name, times in frames_of.items()
        ),
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "page.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "name", "median", "worst"])
        writer.writerows(rows)
    (arguments.output / "page.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
