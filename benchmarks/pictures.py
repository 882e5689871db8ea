"""Pictures of 8 megapixels: the time of drawing and of encoding, and the memory of both.

    python -m benchmarks.pictures [--rounds 9] [--output benchmarks/results]

Each kind is drawn as it is by default, and with an outline, a legend and a scale from percentiles.
Drawing takes one thread. Labels have objects of 64 pixels and 19 classes, one tenth of the pixels
is ignored, and one eighth of the predictions is wrong. The photo is noise on smooth colours, so
that its PNG is as large as that of a photo. The pictures take turns, and figures are medians.
Memory is the peak of drawing and encoding beyond the inputs, in a process of its own, with labels
and a prediction in int64, which takes most. Writes pictures.csv and pictures.md.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from app.formats import png
from app.images import render
from app.images.kinds import KINDS
from app.images.layers import Layers
from app.images.palettes import PALETTES
from app.images.style import Style
from benchmarks.cpu import machine, measure

HEIGHT, WIDTH, CLASSES = 2048, 4096, 19
OBJECT = 64
TARGET_MS = 500
"""The longest that drawing may take, without encoding."""
ENCODINGS = 2
"""Encodings of each picture, which take long."""
STYLES = {
    "default": Style(),
    "outline and legend": Style(contour_px=3, legend="strip", scale="percentile"),
    "one class": Style(classes=(13,), legend="strip"),
}


def make_layers(height: int, width: int, dtype: type[np.integer] = np.uint8) -> Layers:
    """Returns made-up layers for all kinds."""
    random = np.random.default_rng(0)
    rows, columns = -(-height // OBJECT), -(-width // OBJECT)
    objects = random.integers(0, CLASSES, (rows, columns), dtype=np.uint8)
    labels = np.repeat(np.repeat(objects, OBJECT, 0), OBJECT, 1)[:height, :width]
    wrong = np.roll(labels, (5, 7), (0, 1))
    prediction = np.where(random.random((height, width)) < 1 / 16, np.uint8(0), wrong)
    ignored = random.random((rows * 4, columns * 4)) < 0.1
    ignored = np.repeat(np.repeat(ignored, OBJECT // 4, 0), OBJECT // 4, 1)[:height, :width]
    labels = np.where(ignored, np.uint8(255), labels)
    values = random.random((height, width), dtype=np.float32)
    smooth = np.linspace(0, 200, width)[None, :, None] + np.array([0, 20, 40])
    photo = (smooth + random.integers(0, 8, (height, width, 1))).astype(np.uint8)
    palette = PALETTES["cityscapes"]
    return Layers(
        palette=palette,
        num_classes=CLASSES,
        labels=labels.astype(dtype),
        prediction=prediction.astype(dtype),
        nll=-np.log(values + np.float32(1e-6)),
        confidence=values,
        entropy=2 * values,
        photo=photo,
        valid=labels != 255,
        class_names=palette.class_names,
    )


_PEAK = """
import ctypes, sys
import numpy as np
from benchmarks import pictures
kind, name = sys.argv[1:]
def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024
def encode(layers):
    picture = pictures.render.draw(kind, layers, pictures.STYLES[name])
    return pictures.png.encode(picture.image)
encode(pictures.make_layers(64, 128, np.int64))
layers = pictures.make_layers(pictures.HEIGHT, pictures.WIDTH, np.int64)
# Memory that the allocator keeps would not be seen to be taken.
ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
encode(layers)
print(status("VmHWM") - before)
"""


def peak_bytes(kind: str, name: str) -> float:
    """Returns the peak memory of drawing and encoding a picture, in bytes for each pixel."""
    command = [sys.executable, "-c", _PEAK, kind, name]
    return int(subprocess.check_output(command, text=True)) / (HEIGHT * WIDTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    layers = make_layers(HEIGHT, WIDTH)
    cases = [(kind, name) for kind in KINDS for name in STYLES]
    calls: dict[str, Callable[[], object]] = {
        f"{kind}, {name}": partial(render.draw, kind, layers, STYLES[name]) for kind, name in cases
    }
    times = measure(calls, arguments.rounds)
    lines = [
        f"Medians of one run, in ms, for {HEIGHT} x {WIDTH} pixels. {machine()}.",
        "Drawing takes one thread.",
        "",
        "| picture | drawing, ms | encoding as PNG, ms | PNG, MB | peak memory, bytes a pixel |",
        "|---|---|---|---|---|",
    ]
    rows, slowest = [], 0.0
    for kind, name in cases:
        case = f"{kind}, {name}"
        image = render.draw(kind, layers, STYLES[name]).image
        encoding = []
        for _ in range(ENCODINGS):
            start = time.perf_counter()
            file = png.encode(image)
            encoding.append((time.perf_counter() - start) * 1e3)
        median = [statistics.median(values) for values in (times[case], encoding)]
        slowest = max(slowest, median[0])
        low, high = np.percentile(times[case], [10, 90])  # of a single round as well
        megabytes, peak = len(file) / 1e6, peak_bytes(kind, name)
        rows.append([kind, name, median[0], low, high, median[1], megabytes, peak])
        lines.append(
            f"| {case} | {median[0]:.1f} | {median[1]:.0f} | {megabytes:.1f} | {peak:.1f} |"
        )
    lines += ["", f"Target: {TARGET_MS} ms for drawing; the slowest takes {slowest:.0f} ms."]
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "pictures.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        heading = ["median", "p10", "p90", "encoding", "PNG megabytes", "bytes a pixel"]
        writer.writerow(["kind", "style", *heading])
        writer.writerows(rows)
    (arguments.output / "pictures.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
