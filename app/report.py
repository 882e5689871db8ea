"""Results as text: a few tables, printed in the form that `--format` asks for.

| form | meant for |
|---|---|
| table | a person at a terminal |
| json | programs; the same object that the service answers with |
| csv | spreadsheets: one number per line, `of, item, quantity, value` |
| md, html | reports |

People get 6 digits, programs all of them.
"""

import csv
import html
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of the same kind.

    Args:
        of: what a row is about: batch, image, class.
        columns: names of the columns; the first one tells the rows apart.
        rows: cells, as many as there are columns.
    """

    of: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Report:
    """One result.

    Args:
        tables: for people.
        members: the object for programs.
        note: a sentence behind the tables.
    """

    tables: tuple[Table, ...]
    members: Mapping[str, object]
    note: str = ""


def render(report: Report, form: str) -> str:
    """The text of a report, without a last line feed."""
    return FORMS[form](report)


def _as_table(report: Report) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    texts = []
    for table in report.tables:
        drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for number, name in enumerate(table.columns):
            is_text = all(isinstance(row[number], str) for row in table.rows)
            drawn.add_column(name, justify="left" if is_text or not number else "right")
        for row in table.rows:
            drawn.add_row(*(Text(_for_people(cell)) for cell in row))
        # Text of this process goes to files and pipes as well: no colours, and no width to fill.
        console = Console(file=io.StringIO(), width=200, color_system=None)
        with console.capture() as capture:
            console.print(drawn)
        lines = (line.rstrip() for line in capture.get().splitlines())
        texts.append("\n".join(line for line in lines if line))
    return _with_note(texts, report.note)


def _as_json(report: Report) -> str:
    return json.dumps(report.members, allow_nan=False, ensure_ascii=False, indent=2)


def _as_csv(report: Report) -> str:
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(("of", "item", "quantity", "value"))
    for table in report.tables:
        for item, *cells in table.rows:
            for name, cell in zip(table.columns[1:], cells, strict=True):
                # A table of single quantities has them in its rows already.
                place = ("", item) if table.columns[1:] == ("value",) else (item, name)
                writer.writerow((table.of, *place, "" if cell is None else cell))
    return target.getvalue().removesuffix("\n")


def _as_markdown(report: Report) -> str:
    texts = []
    for table in report.tables:
        lines = [table.columns, ("---",) * len(table.columns)]
        lines += [
            tuple(_for_people(cell).replace("|", "\\|") for cell in row) for row in table.rows
        ]
        texts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return _with_note(texts, report.note)


def _as_html(report: Report) -> str:
    texts = []
    for table in report.tables:
        lines = [("th", table.columns)]
        lines += [("td", tuple(map(_for_people, row))) for row in table.rows]
        rows = "\n".join(
            f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
            for tag, cells in lines
        )
        texts.append(f"<table>\n{rows}\n</table>")
    if report.note:
        texts.append(f"<p>{html.escape(report.note)}</p>")
    return "\n".join(texts)


FORMS: Mapping[str, Callable[[Report], str]] = {
    "table": _as_table,
    "json": _as_json,
    "csv": _as_csv,
    "md": _as_markdown,
    "html": _as_html,
}


def _with_note(texts: list[str], note: str) -> str:
    return "\n\n".join([*texts, note] if note else texts)


def _for_people(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.6g}" if math.isfinite(cell) else str(cell)
    return str(cell)
