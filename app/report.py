"""Results as text, in the formats of `--format`.

| format | content | meant for |
|---|---|---|
| table | the tables, aligned | a terminal |
| json | the JSON object with which the service answers | programs |
| csv | the tables, one number per line: `of, item, quantity, value` | spreadsheets |
| md, html | the tables | documents |

Numbers have 6 digits in table, md and html, and all digits in json and csv.
"""

import csv
import html
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .terminal import printable

Cell = str | int | float | None

METRICS = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
"""FCN's metrics, as reports name them."""


@dataclass(frozen=True)
class Table:
    """Rows of the same kind.

    Attributes:
        subject: what each row is about: batch, image, class or palette.
        columns: the names of the columns; the first column identifies the row.
        rows: one cell for each column.
    """

    subject: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Report:
    """One result.

    Attributes:
        tables: what all formats but json show.
        fields: what json shows.
        note: a sentence behind the tables, or an empty string.
    """

    tables: tuple[Table, ...]
    fields: Mapping[str, object]
    note: str = ""


def render(report: Report, format_name: str) -> str:
    """Returns the text of a report, without a final line feed."""
    return FORMATS[format_name](report)


def _as_table(report: Report) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    texts = []
    for table in report.tables:
        grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for column, name in enumerate(table.columns):
            is_text = all(isinstance(row[column], str) for row in table.rows)
            grid.add_column(name, justify="left" if is_text or not column else "right")
        for row in table.rows:
            grid.add_row(*(Text(_short_text(cell)) for cell in row))
        # Files and pipes need text without colours, and as wide as its content.
        console = Console(file=io.StringIO(), width=200, color_system=None)
        with console.capture() as capture:
            console.print(grid)
        lines = (line.rstrip() for line in capture.get().splitlines())
        texts.append("\n".join(line for line in lines if line))
    return _with_note(texts, report.note)


def _as_json(report: Report) -> str:
    # Escapes are JSON in every encoding, and can hold file names that are not UTF-8.
    return json.dumps(report.fields, allow_nan=False, indent=2)


def _as_csv(report: Report) -> str:
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(("of", "item", "quantity", "value"))
    for table in report.tables:
        for item, *cells in table.rows:
            for name, cell in zip(table.columns[1:], cells, strict=True):
                # In a table of quantities and values, the first cell is already the quantity.
                keys = ("", item) if table.columns[1:] == ("value",) else (item, name)
                writer.writerow((table.subject, *keys, "" if cell is None else cell))
    return target.getvalue().removesuffix("\n")


def _as_markdown(report: Report) -> str:
    texts = []
    for table in report.tables:
        lines = [table.columns, ("---",) * len(table.columns)]
        lines += [
            tuple(_short_text(cell).replace("|", "\\|") for cell in row) for row in table.rows
        ]
        texts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return _with_note(texts, report.note)


def _as_html(report: Report) -> str:
    texts = []
    for table in report.tables:
        lines = [("th", table.columns)]
        lines += [("td", tuple(map(_short_text, row))) for row in table.rows]
        rows = "\n".join(
            f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
            for tag, cells in lines
        )
        texts.append(f"<table>\n{rows}\n</table>")
    if report.note:
        texts.append(f"<p>{html.escape(report.note)}</p>")
    return "\n".join(texts)


FORMATS: Mapping[str, Callable[[Report], str]] = {
    "table": _as_table,
    "json": _as_json,
    "csv": _as_csv,
    "md": _as_markdown,
    "html": _as_html,
}


def _with_note(texts: list[str], note: str) -> str:
    return "\n\n".join([*texts, note] if note else texts)


def _short_text(cell: Cell) -> str:
    """Returns a cell as people read it: 6 digits, and a dash for None."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.6g}" if math.isfinite(cell) else str(cell)
    return printable(str(cell))
