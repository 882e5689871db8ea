"""What the README shows is run, what it names exists, and its figures are those committed."""

import csv
import json
import re

import pytest

from tests.documents import (
    README,
    ROOT,
    check_links,
    check_names,
    run_python,
    run_shell,
    running_service,
)

RESULTS = ROOT / "benchmarks" / "results"
TEXT = README.read_text()


@pytest.fixture(scope="module")
def url():
    with running_service() as url:
        yield url


def test_the_python_examples_print_what_their_comments_say(url):
    run_python(README, url)


def test_the_commands_and_requests_succeed(url, tmp_path):
    printed = run_shell(README, url, tmp_path)
    answer = json.loads(printed[printed.index('{"loss"') :])
    assert answer["diagnosis"]["state"] == "learning"
    assert (tmp_path / "gradient.npy").read_bytes().startswith(b"\x93NUMPY")
    for picture in ("error.png", "nll.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_what_is_named_exists():
    check_links(README)
    check_names(README)


def test_the_map_lists_every_folder_of_the_repository():
    shown = re.findall(r"^    (\w+)/ ", TEXT, re.MULTILINE)
    generated = {"build", "dist", "sample", "site"}
    there = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0].isalpha()}
    assert set(shown) == {name for name in there - generated if not name.endswith(".egg-info")}


def rows_of(result: str, case: str) -> dict[str, list[str]]:
    """The rows of a table of a result file, by their first cell."""
    text = (RESULTS / result).read_text()
    table = re.search(rf"\*\*{re.escape(case)}\*\*[^|]*\n\n(.*?)\n(?:\n|$)", text, re.DOTALL)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[1].splitlines()]
    return {name: cells for name, *cells in rows}


def expected_row(what: str, shape: str) -> str:
    """A row of the speed table, from the committed result files."""
    if what.startswith("upsampled"):
        rows = rows_of("cpu_upsampled.md", shape)
        torch_row, own_row = "interpolate + cross_entropy", "upsampled_cross_entropy"
        faster = rows[own_row][1]
    elif what == "prediction, upsampled":
        rows = rows_of("predict.md", shape)
        torch_row, own_row = "interpolate + argmax", "predict"
        faster = rows[own_row][1]
    elif what == "evaluation":
        rows = rows_of("cpu.md", f"{shape} float32")
        torch_row, own_row = "torch evaluate", "evaluate"
        faster = rows[own_row][2]
    else:
        rows = rows_of("cpu.md", f"{shape} float32")
        torch_row, own_row = "eager forward+backward", "spatial_cross_entropy forward+backward"
        faster = rows[own_row][2]
    return f"| {what} | {shape} | {rows[torch_row][0]} | {rows[own_row][0]} | {faster} |"


def test_the_speed_table_is_that_of_the_committed_results():
    table = re.search(r"<!-- speed -->\n(.*?)<!-- /speed -->", TEXT, re.DOTALL)
    rows = table[1].splitlines()[2:]
    assert len(rows) >= 5
    cases = [tuple(cell.strip() for cell in row.split("|")[1:3]) for row in rows]
    assert rows == [expected_row(*case) for case in cases]
    for result in ("cpu.md", "cpu_upsampled.md", "predict.md"):
        machine = (RESULTS / result).read_text().splitlines()[0]
        assert "AMD EPYC, 2 threads, torch 2.13.0" in machine


def gpu_results() -> dict[str, dict[str, dict[str, str]]]:
    """The rows of the GPU's result file, by case and contender."""
    results: dict[str, dict[str, dict[str, str]]] = {}
    with (RESULTS / "gpu.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            results.setdefault(row["case"], {})[row["contender"]] = row
    return results


def number(cell: str, unit: str = "") -> str:
    return f"{float(cell):.3g}{unit}" if cell else ""


def gpu_row(what: str, case: str) -> str:
    """A row of the README's table of the GPU, from the committed result file."""
    own, other = {
        "forward and backward": ("forward+backward", "eager forward+backward"),
        "evaluation": ("evaluate", "torch evaluate"),
    }[what]
    contenders = gpu_results()[case]
    ms = [number(contenders[name]["median"]) for name in (other, own)]
    return (
        f"| {what} | {case} | {ms[0]} | {ms[1]} | {number(contenders[own]['against_eager'], 'x')} |"
    )


def test_the_gpus_speed_table_is_that_of_the_committed_results():
    table = re.search(r"<!-- gpu-speed -->\n(.*?)<!-- /gpu-speed -->", TEXT, re.DOTALL)
    rows = table[1].splitlines()[2:]
    assert len(rows) >= 8
    cases = [tuple(cell.strip() for cell in row.split("|")[1:3]) for row in rows]
    assert rows == [gpu_row(*case) for case in cases]
    machine = (RESULTS / "gpu.md").read_text().splitlines()[0]
    for named in ("NVIDIA H200", "torch 2.11", "Triton 3.6"):
        assert named in machine
        assert named in " ".join(TEXT.split())


def test_the_measured_table_of_the_gpus_page_is_that_of_the_committed_results():
    page = (ROOT / "docs" / "gpu.md").read_text()
    table = re.search(r"<!-- measured -->\n(.*?)<!-- /measured -->", page, re.DOTALL)
    columns = [
        ("forward+backward", "median", ""),
        ("loss_and_gradient", "share", ""),
        ("eager forward+backward", "median", ""),
        ("forward+backward", "against_eager", "x"),
        ("compiled forward+backward", "median", ""),
        ("forward", "median", ""),
        ("evaluate", "median", ""),
        ("evaluate", "against_eager", "x"),
    ]
    expected = []
    for case, contenders in gpu_results().items():
        cells = [
            number(contenders.get(name, {}).get(field, ""), unit) for name, field, unit in columns
        ]
        expected.append(f"| {' | '.join([case, *cells])} |")
    assert table[1].splitlines()[2:] == expected
    machine = (RESULTS / "gpu.md").read_text().splitlines()[0]
    assert machine.rpartition("commit ")[2].rstrip(".") in page
