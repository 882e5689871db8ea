"""The page at `/` in Chromium: the time to the first picture, and frames while controls move.

    python -m benchmarks.page [--frames 120] [--output benchmarks/results]

Starts the service in a process of its own, gives the page a file of logits, labels and a photo, and
waits until the panes are painted. Then each control moves once a frame. Script time is that of the
page's code in one frame, which the browser's own work follows; an interval is the time between two
frames, at best 16.7 ms on a screen of 60 Hz. Chromium is headless and draws without a GPU.
Needs playwright, and Chromium on the path. Writes page.csv and page.md.
"""

import argparse
import csv
import json
import os
import shutil
import socket
import struct
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
import numpy.typing as npt
from playwright.sync_api import Page, sync_playwright

from benchmarks.cpu import machine

CLASSES = 19
FIRST_PICTURE = (512, 1024)
FRAMES = (1024, 2048)
TARGET_MS = 16
START_SECONDS = 180
WAIT_SECONDS = 120

CONTROLS = {
    "pan": "{camera: {scale: 0.5, x: 600 + 6 * i, y: 400 + 2 * i}}",
    "zoom": "{camera: {scale: 0.3 * 1.03 ** (i % 90), x: 700, y: 500}}",
    "opacity": "{camera: null, opacity: (i % 100) / 100}",
    "NLL threshold": "{minNll: (i % 100) / 50}",
    "confidence threshold": "{minNll: 0, maxConfidence: 1 - (i % 100) / 110}",
    "cell of the matrix": "{maxConfidence: 1, cell: {truth: i % 8, predicted: (i + 1) % 8}}",
    "row under the pointer": "{cell: null, highlighted: i % 19}",
    "pixel under the pointer": "{highlighted: null, hover: {x: 300 + 3 * i, y: 200 + i}}",
    "divider": "{hover: null, slider: {left: 'truth', right: 'nll', at: (i % 100) / 100}}",
    "pan behind the divider": "{slider: {left: 'truth', right: 'nll', at: 0.5},"
    " camera: {scale: 0.8, x: 600 + 6 * i, y: 400 + 2 * i}}",
    "opacity behind the divider": "{camera: null, opacity: (i % 100) / 100}",
}
"""Changes of the state of the page in frame i, one control after the other."""

_MOVE = """async (frames) => {
  const {store} = window.segLoss;
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

_PAINTED = """async () => {
  const {store} = window.segLoss;
  for (;;) {
    await new Promise((done) => requestAnimationFrame(done));
    const canvas = document.querySelector(".viewer-stage canvas");
    if (store.state.problem) throw new Error(store.state.problem.detail);
    if (!store.state.scene || !canvas || canvas.width < 2) continue;
    // Painted in a frame, shown at its end.
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - window.chosenAt;
  }
}"""


def file_of(height: int, width: int) -> bytes:
    """Returns a safetensors file with objects of 64 pixels, float16 logits, labels and a photo."""
    random = np.random.default_rng(0)
    objects = random.integers(0, CLASSES, (height // 64, width // 64))
    labels = np.kron(objects, np.ones((64, 64), dtype=np.int64))
    logits = random.normal(0, 1, (1, CLASSES, height, width)).astype(np.float16)
    shifted = np.roll(labels, (4, 6), (0, 1))
    np.put_along_axis(logits[0], shifted[None], np.float16(5), axis=0)
    labels[random.random((height, width)) < 0.05] = 255
    photo = np.repeat((labels * 12 % 256)[..., None], 3, axis=2)
    photo = (photo + random.integers(0, 30, photo.shape)).clip(0, 255)
    return safetensors(
        labels=labels[None].astype(np.uint8), image=photo.astype(np.uint8), logits=logits
    )


def safetensors(**arrays: npt.NDArray[Any]) -> bytes:
    """Returns a safetensors file of uint8 and float16 arrays."""
    names = {"uint8": "U8", "float16": "F16"}
    header, offset = {}, 0
    for name, array in arrays.items():
        end = offset + array.nbytes
        entry = {"dtype": names[f"{array.dtype}"], "shape": array.shape}
        header[name] = {**entry, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in arrays.values())


@contextmanager
def service() -> Iterator[str]:
    """Runs the service in a process of its own; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app", "serve", "--port", f"{port}"]
    environment = {**os.environ, "SEG_LOSS_WARM_CLASSES": f"{CLASSES}"}
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _is_ready(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(log.read().decode())
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return True
    except OSError:
        return False


def first_picture(page: Page, url: str, file: Path) -> float:
    """Gives the page a file, and returns the milliseconds until its pictures are painted."""
    page.goto(url)
    page.evaluate(
        "addEventListener('change', () => { window.chosenAt ??= performance.now(); }, true)"
    )
    page.locator("input[type=file]").first.set_input_files(file)
    return float(page.evaluate(_PAINTED))


def summary(values: list[float]) -> list[float]:
    """Returns the median, the 95th percentile and the greatest value."""
    return [float(np.percentile(values, share)) for share in (50, 95, 100)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or sys.exit("page: expected chromium on the path.")
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as folder, service() as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        size = {"width": 1280, "height": 900}
        page = browser.new_page(viewport=size)  # type: ignore[arg-type]
        page.set_default_timeout(WAIT_SECONDS * 1000)
        file = Path(folder, "example.safetensors")
        file.write_bytes(file_of(*FIRST_PICTURE))
        times = [first_picture(page, url, file) for _ in range(arguments.rounds)]
        file.write_bytes(file_of(*FRAMES))
        first_picture(page, url, file)
        page.wait_for_timeout(2000)
        for control, changes in CONTROLS.items():
            frames = page.evaluate(_MOVE.replace("CHANGES", changes), arguments.frames)
            rows.append([control, *summary(frames["scripts"]), *summary(frames["intervals"])])
        browser.close()
    window = f"{size['width']} x {size['height']}"
    picture, frame = (" x ".join(map(str, sizes)) for sizes in (FIRST_PICTURE, FRAMES))
    first, *others = times
    lines = [
        f"One run, in ms. {machine()}. Chromium, headless, in a window of {window}.",
        "",
        f"Float16 logits of 1 x {CLASSES} x {picture}, labels and photo in one safetensors file:",
        f"{np.median(others):.0f} from the choice of the file to its pictures, {first:.0f} for the",
        "first request that the service gets.",
        "",
        f"{arguments.frames} frames of each control, with an image of {frame} in six panes, or in",
        "two with a divider:",
        "",
        "| control | script, median | 95 % | worst | interval, median | 95 % | worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for control, *values in rows:
        lines.append(f"| {control} | {' | '.join(f'{value:.1f}' for value in values)} |")
    slowest = max(row[1] for row in rows)
    lines += ["", f"Target: {TARGET_MS} ms of script a frame; the slowest median is {slowest:.1f}."]
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "page.csv").open("w", newline="") as results:
        writer = csv.writer(results)
        kinds = [f"{of} {kind}" for of in ("script", "interval") for kind in ("p50", "p95", "max")]
        writer.writerow(["control", *kinds])
        writer.writerows(rows)
    (arguments.output / "page.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
