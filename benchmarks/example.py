"""The worked example of docs/models.md: its commands, timed, and the curves and the picture of it.

    python -m benchmarks.example [--output benchmarks/results] [--pictures docs]

Runs the commands of the page as they stand there, in an empty folder: a data set of made-up street
scenes, a thin FCN-8s that is trained on it from random weights, and the label maps of the held-out
scenes. Writes example.md, example.csv, example.png and example-curves.svg, and the measurements in
the tables of the page. `--shorten` takes few scenes and steps, to try it out, and does not change
the page.
"""

import argparse
import csv
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.cpu import machine
from models.checkpoints import build, load_network, save_network
from models.surgery import initialize

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
SECTION = "The worked example"
SHORTENED: Mapping[str, str] = {
    "--scenes 480 --held-out 40 --height 128 --width 256": (
        "--scenes 24 --held-out 4 --height 64 --width 128"
    ),
    "--steps 1000": "--steps 40",
    "--val-interval 100": "--val-interval 20",
    "--log-interval 20": "--log-interval 5",
}
"""Parts of the commands, and what takes their place in a shortened form."""
METRICS = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
_GAP = 4  # pixels between pictures
_SCENES = ("val_0000", "val_0001", "val_0002")
_UNTRAINED, _TRAINED = "untrained", "predictions"  # folders of label maps


@dataclass(frozen=True)
class Timing:
    """What a command took.

    Attributes:
        command: the command.
        seconds: wall-clock time.
        cpu_seconds: time of all processors, of the command and its children.
    """

    command: str
    seconds: float
    cpu_seconds: float


def commands(page: str, *, shorten: bool = False) -> list[str]:
    """Returns the commands in the first `sh` block of the section, one line each."""
    section = page.partition(f"## {SECTION}\n")[2]
    block = re.search(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    if block is None:
        raise ValueError(f"{PAGE.name}: expected a block of commands behind {SECTION!r}, got none.")
    text = re.sub(r"\\\n\s*", "", block[1])
    if shorten:
        text = shortened(text)
    return text.splitlines()


def shortened(text: str) -> str:
    """Returns commands for few scenes and steps."""
    for part, short in SHORTENED.items():
        if part not in text:
            raise ValueError(f"{PAGE.name}: expected {part!r} in the commands, got none.")
        text = text.replace(part, short)
    return text


def run(command: str, folder: Path) -> Timing:
    """Runs a command in a folder, where `seg-loss` is that of this checkout."""
    program = folder / "bin" / "seg-loss"
    if not program.exists():
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m app "$@"\n')
        program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}",
    }
    begin, cpu_begin = time.monotonic(), _cpu_seconds_of_children()
    subprocess.run(["bash", "-euc", command], cwd=folder, env=environment, check=True)
    return Timing(command, time.monotonic() - begin, _cpu_seconds_of_children() - cpu_begin)


def _cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def save_untrained(trained: Path, path: Path) -> None:
    """Writes a network as the training has begun with it: scores are zero, the rest is random."""
    _, spec = load_network(trained)
    model = build(spec)
    initialize(model, 0, preprocessing=spec.preprocessing)
    save_network(path, model, spec)


def metrics_of(network: str, output: str, folder: Path) -> dict[str, float]:
    """Writes the label maps of the held-out scenes, and returns their metrics."""
    command = (
        "seg-loss predict scenes/JPEGImages/val_*.jpg --labels scenes/SegmentationClass "
        f"--model {network} --palette cityscapes --output {output} --format json > metrics.json"
    )
    run(command, folder)
    fields = json.loads((folder / "metrics.json").read_text())
    return {name: fields["metrics"][name] for name in METRICS}


def draw_scenes(folder: Path, path: Path) -> None:
    """Draws scenes in rows: photo, truth, and the predictions before and after the training."""
    rows = []
    for name in _SCENES:
        if not (folder / "scenes" / "JPEGImages" / f"{name}.jpg").exists():
            continue
        files = (
            f"scenes/JPEGImages/{name}.jpg",
            f"scenes/SegmentationClass/{name}.png",
            f"{_UNTRAINED}/{name}.png",
            f"{_TRAINED}/{name}.png",
        )
        tiles = []
        for file in files:
            with Image.open(folder / file) as picture:
                tiles.append(np.asarray(picture.convert("RGB")))
        rows.append(np.concatenate([_framed(tile) for tile in tiles], axis=1))
    sheet = Image.fromarray(np.concatenate(rows, axis=0)[:-_GAP, :-_GAP])
    colours = sheet.quantize(256, dither=Image.Dither.NONE)  # a third of the bytes
    colours.save(path, "PNG", optimize=True)


def _framed(tile: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.pad(tile, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)


Record = Mapping[str, object]
"""A line of the training's metrics.jsonl."""
Point = tuple[float, float]


def read_records(path: Path) -> list[Record]:
    """Returns the lines of a training's metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def points(records: Iterable[Record], kind: str, name: str) -> list[Point]:
    """Returns (step, value) of the records of a kind that have the value."""
    return [
        (float(f"{record['step']}"), float(f"{record[name]}"))
        for record in records
        if record["kind"] == kind and record.get(name) is not None
    ]


@dataclass(frozen=True)
class Curve:
    """A line in a diagram.

    Attributes:
        name: its legend.
        colour: as SVG names it.
        points: (step, value).
        is_dashed: whether it is a dashed line.
    """

    name: str
    colour: str
    points: Sequence[Point]
    is_dashed: bool = False


_WIDTH, _HEIGHT, _MARGIN = 360, 230, 42


def draw_curves(records: Sequence[Record], num_classes: int) -> str:
    """Returns an SVG picture of two diagrams: the losses and the metrics of each step."""
    train, val = (points(records, kind, "mean_nll") for kind in ("train", "val"))
    uniform = math.log(num_classes)
    ends = [train[0][0], train[-1][0]]
    losses = (
        Curve("training loss", "#0072b2", train),
        Curve("held-out loss", "#d55e00", val),
        Curve(f"ln {num_classes}", "#777777", [(step, uniform) for step in ends], is_dashed=True),
    )
    metrics = (
        Curve("pixel accuracy", "#009e73", points(records, "val", "pixel_accuracy")),
        Curve("mean IU", "#d55e00", points(records, "val", "mean_iu")),
    )
    diagrams = (
        _diagram("loss per valid pixel, in nats", losses, 3.0, 0.5, 0),
        _diagram("held-out scenes", metrics, 1.0, 0.2, _WIDTH),
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * _WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {2 * _WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="{2 * _WIDTH}" height="{_HEIGHT}" fill="white"/>\n{"".join(diagrams)}</svg>\n'
    )


def _diagram(title: str, curves: Sequence[Curve], top: float, tick: float, shift: float) -> str:
    """Returns the elements of a diagram whose axes begin at 0."""
    last_step = max(step for curve in curves for step, _ in curve.points)
    left, right = shift + _MARGIN, shift + _WIDTH - 12
    upper, lower = 30, _HEIGHT - 34

    def x(step: float) -> float:
        return left + (right - left) * step / last_step

    def y(value: float) -> float:
        return lower - (lower - upper) * min(value / top, 1.02)

    lines = [f'<text x="{left}" y="18" font-weight="bold">{title}</text>']
    for number in range(round(top / tick) + 1):
        value = number * tick
        lines += [
            f'<path d="M{left} {y(value):.1f}H{right}" stroke="#dddddd"/>',
            f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>',
        ]
    for quarter in range(5):
        step = last_step * quarter / 4
        label = f'<text x="{x(step):.1f}" y="{lower + 15}" text-anchor="middle">{step:.0f}</text>'
        lines.append(label)
    lines.append(
        f'<text x="{(left + right) / 2}" y="{lower + 29}" text-anchor="middle">step</text>'
    )
    for row, curve in enumerate(curves):
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in curve.points)
        dash = ' stroke-dasharray="5 4"' if curve.is_dashed else ""
        style = f'fill="none" stroke="{curve.colour}" stroke-width="2"{dash}'
        key = upper + 12 + 15 * row + (lower - upper) * (0.74 if top == 1.0 else 0.12)
        lines += [
            f'<polyline points="{path}" {style}/>',
            f'<path d="M{right - 112} {key:.1f}h18" {style}/>',
            f'<text x="{right - 88}" y="{key + 4:.1f}">{curve.name}</text>',
        ]
    return "\n".join(lines) + "\n"


def rows_of_times(timings: Sequence[Timing]) -> list[str]:
    """Returns the rows of a table: the seconds of each command, and of all together."""
    rows = [(" ".join(row.command.split()[:2]), row.seconds, row.cpu_seconds) for row in timings]
    rows.append(
        ("all", sum(row.seconds for row in timings), sum(row.cpu_seconds for row in timings))
    )
    return [f"| {name} | {seconds:.0f} | {cpu:.0f} |" for name, seconds, cpu in rows]


def rows_of_metrics(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Returns the rows of a table: FCN's metrics before and after the training."""
    return [
        f"| {name} | {' | '.join(f'{metrics[key]:.3f}' for key in METRICS)} |"
        for name, metrics in (("untrained", before), ("trained", after))
    ]


def report(
    timings: Sequence[Timing],
    records: Sequence[Record],
    before: Mapping[str, float],
    after: Mapping[str, float],
    class_names: Sequence[str],
) -> list[str]:
    """Returns the lines of example.md."""
    last = [record for record in records if record["kind"] == "val"][-1]
    iu: list[float | None] = last["iu"]  # type: ignore[assignment]
    return [
        f"Made by `python -m benchmarks.example`. {machine()}.",
        "",
        *(f"    {row.command}" for row in timings),
        "",
        "| command | s | CPU s |",
        "|---|---|---|",
        *rows_of_times(timings),
        "",
        "Held-out scenes:",
        "",
        "| network | pixel accuracy | mean accuracy | mean IU | f.w. IU |",
        "|---|---|---|---|---|",
        *rows_of_metrics(before, after),
        "",
        f"The IU of each class after step {last['step']}:",
        "",
        "| class | IU |",
        "|---|---|",
        *(
            f"| {name} | {'' if value is None else f'{value:.2f}'} |"
            for name, value in zip(class_names, iu, strict=True)
        ),
    ]


def with_rows(page: str, rows: Iterable[str]) -> str:
    """Returns the page with other rows in the tables of the section, found by their first cell."""
    begin, heading, section = page.partition(f"## {SECTION}\n")
    for row in rows:
        name = row.split("|")[1]
        pattern = rf"^\|{re.escape(name)}\|.*$"
        section, count = re.subn(pattern, row, section, flags=re.MULTILINE)
        if count != 1:
            got = f"{count} of them"
            raise ValueError(f"{PAGE.name}: expected one row {name.strip()!r}, got {got}.")
    return f"{begin}{heading}{section}"


def write_csv(path: Path, records: Iterable[Record]) -> None:
    """Writes the curves: a row for each line of the log and for each validation."""
    columns = ("kind", "step", "mean_nll", "learning_rate", *METRICS)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for record in records:
            row = {name: f"{value:.6g}" if isinstance(value, float) else value
                   for name, value in record.items()}  # fmt: skip
            writer.writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs")
    parser.add_argument("--shorten", action="store_true", help="few scenes and steps")
    arguments = parser.parse_args()
    lines = commands(PAGE.read_text(), shorten=arguments.shorten)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        timings = [run(command, folder) for command in lines]
        trained = folder / "run" / "best.safetensors"
        save_untrained(trained, folder / "untrained.safetensors")
        before = metrics_of("untrained.safetensors", _UNTRAINED, folder)
        after = metrics_of("run/best.safetensors", _TRAINED, folder)
        records = read_records(folder / "run" / "metrics.jsonl")
        class_names = (folder / "scenes" / "class_names.txt").read_text().splitlines()
        text = "\n".join(report(timings, records, before, after, class_names))
        for made in (arguments.output, arguments.pictures):
            made.mkdir(parents=True, exist_ok=True)
        (arguments.output / "example.md").write_text(f"{text}\n")
        write_csv(arguments.output / "example.csv", records)
        curves = draw_curves(records, len(class_names))
        (arguments.pictures / "example-curves.svg").write_text(curves)
        draw_scenes(folder, arguments.pictures / "example.png")
    if not arguments.shorten:
        rows = [*rows_of_times(timings), *rows_of_metrics(before, after)]
        PAGE.write_text(with_rows(PAGE.read_text(), rows))
    print(text)


if __name__ == "__main__":
    main()
