"""The web page in Chromium: from a drop to the first picture, and frames while a control moves.

    python -m benchmarks.page [--rounds 7] [--output benchmarks/results]

The service and headless Chromium run on this machine and share its cores, without a GPU. Needs
playwright, which the extra `test` has, and Chromium.

First picture: float16 logits 1x19x512x1024 and a label PNG are dropped on the page. The time ends
with the second frame after the page has its arrays, when the first one is on the screen. The parts
of the service are those of its header `Server-Timing`.

Frames: an image of 2 megapixels, 1024 x 2048, six panes in a window of 1280 x 900. A control gets
another value in every frame for two seconds; figures are the intervals between frames, of which the
browser makes at most one every 16.7 ms. A redraw is the time of one change until the second frame
after it. The NLL in the page is compared with that of
`seg_loss` before anything is timed. Writes page.csv and page.md.
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
SECONDS = 2.0
MAX_NLL_ERROR = 2e-5

CONTROLS = {
    "divider": "(t) => ({slider: {left: 'truth', right: 'prediction', at: t}})",
    "opacity": "(t) => ({opacity: t})",
    "threshold on the NLL": "(t) => ({minNll: 3 * t})",
    "threshold on the confidence": "(t) => ({maxConfidence: t})",
    "pan": "(t) => ({camera: {scale: 1, x: 2048 * t, y: 512}})",
    "zoom": "(t) => ({camera: {scale: 0.2 + 4 * t, x: 1024, y: 512}})",
    "class alone": "(t) => ({isolated: Math.floor(18.99 * t)})",
    "cell of the matrix": "(t) => ({cell: {truth: Math.floor(18.99 * t), predicted: 3}})",
}
"""The changes of the page's state, for t from 0 to 1."""

_RESET = """() => segLoss.store.set({slider: null, opacity: 0.5, minNll: 0, maxConfidence: 1,
  camera: null, isolated: null, cell: null, hover: null})"""

_INTERVALS = """async ([change, seconds]) => {
  const frame = () => new Promise(requestAnimationFrame);
  const intervals = [];
  await frame();
  let last = await frame();
  const start = last;
  while (last - start < 1000 * seconds) {
    const t = ((last - start) / 1000) % 1;
    segLoss.store.set(change(t));
    const now = await frame();
    intervals.push(now - last);
    last = now;
  }
  return intervals;
}"""

_REDRAW = """async (change) => {
  const frame = () => new Promise(requestAnimationFrame);
  const times = [];
  for (let i = 0; i < 12; i++) {
    await frame();
    const start = performance.now();
    segLoss.store.set(change((i % 7) / 7 + 0.05));
    await frame();
    await frame();
    times.push(performance.now() - start);
  }
  return times;
}"""

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
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as directory, service() as url, sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        version = browser.version
        paths = write_files(Path(directory), FIRST_PICTURE)
        for name, times in first_pictures(browser, url, paths, arguments.rounds).items():
            rows.append(["first", name, statistics.median(times), max(times), ""])
        paths = write_files(Path(directory), FRAMES)
        page = open_page(browser, url, paths)
        page.evaluate(_DROP)
        check(page, paths)
        for name, change in CONTROLS.items():
            intervals = page.evaluate(
                f"(argument) => ({_INTERVALS})([{change}, argument])", SECONDS
            )
            page.evaluate(_RESET)
            redraws = page.evaluate(f"() => ({_REDRAW})({change})")
            page.evaluate(_RESET)
            median, worst = statistics.median(intervals), max(intervals)
            rows.append(["frames", name, median, worst, statistics.median(redraws)])
        browser.close()
    shape = "x".join(map(str, (1, NUM_CLASSES, *FIRST_PICTURE)))
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
        "| control | between two frames, median | worst | one redraw |",
        "|---|---|---|---|",
        *(
            f"| {row[1]} | {row[2]:.1f} | {row[3]:.1f} | {row[4]:.1f} |"
            for row in rows
            if row[0] == "frames"
        ),
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "page.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "name", "median", "worst", "redraw"])
        writer.writerows(rows)
    (arguments.output / "page.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
