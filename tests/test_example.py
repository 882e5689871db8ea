"""The page docs/models.md and the committed results of its worked example."""

import csv
import re

import pytest

from benchmarks import example
from tests.documents import ROOT

RESULTS = ROOT / "benchmarks" / "results"
PAGE = example.PAGE.read_text()


def test_a_page_without_the_commands_is_an_error():
    with pytest.raises(ValueError, match=r"models.md: expected a block of commands"):
        example.commands("## The worked example\n\nNothing.\n")
    with pytest.raises(ValueError, match=r"models.md: expected '--scenes .*' in the commands"):
        example.commands("## The worked example\n\n```sh\nseg-loss\n```\n", shorten=True)


def test_a_page_without_a_row_of_the_results_is_an_error():
    page = "## The worked example\n\n| train | 1 |\n"
    assert example.with_rows(page, ["| train | 2 | 3 |"]).endswith("\n| train | 2 | 3 |\n")
    with pytest.raises(ValueError, match=r"models.md: expected one row 'all', got 0 of them"):
        example.with_rows(page, ["| all | 2 | 3 |"])


def committed_rows() -> list[dict[str, str]]:
    with (RESULTS / "example.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["kind"] == "val"]


def test_the_committed_result_is_at_least_a_mean_iu_of_a_half():
    assert float(committed_rows()[-1]["mean_iu"]) >= 0.5


def test_the_page_quotes_the_committed_results():
    text = (RESULTS / "example.md").read_text()
    assert re.findall(r"^    (seg-loss .*)$", text, re.MULTILINE) == example.commands(PAGE)
    names = ("seg-loss sample", "seg-loss train", "seg-loss predict", "all", "untrained", "trained")
    rows = re.findall(rf"^\| (?:{'|'.join(names)}) \|.*$", text, re.MULTILINE)
    assert len(rows) == len(names)
    assert example.with_rows(PAGE, rows) == PAGE


def test_the_pictures_of_the_page_are_small():
    for name in ("example.png", "example-curves.svg"):
        assert (ROOT / "docs" / name).stat().st_size < 100_000
        assert f"]({name})" in PAGE
