"""The board as text: for the terminal, as a table for other programs, and as Markdown."""

import csv
import html
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from imago.board.board import Board, Cell, Column, Group
from imago.board.records import Record
from imago.files import write_text

# Columns that a terminal has no room for; beginnings of their keys.
ELSEWHERE = ("kid", "kd_", "precision", "recall", "density", "coverage", "inception_score", "authenticity", "copies")
# Wide enough for all columns where the output goes into a file and has no width of its own.
WIDE = 220
# First characters by which a spreadsheet knows a formula, the wide ones of East Asian scripts too.
FORMULAS = tuple("=+-@＝＋－＠")


def show(board: Board) -> None:
    """Print a table for each data set, without the columns that are empty in it, and what is wrong with which run.

    What tells more of samples than their distance is left to the files.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    for group in board.groups:
        filled = group.filled(board.columns)
        columns = [c for c in filled if not c.key.startswith(ELSEWHERE)]
        table = Table(title=Text(str(group.data)), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        table.add_column("run", overflow="fold", min_width=12)
        table.add_column("model", overflow="fold")
        for column in columns:
            table.add_column(Text(column.title), justify="right")
        table.add_column("status")
        for row in group.rows:
            cells = [Text(_tagged(row.cells[c.key]), "bold" if row.cells[c.key].best else "") for c in columns]
            name = Text(f"{row.record.name} {row.record.when}")
            table.add_row(name, Text(row.record.model), *cells, Text(row.record.status))
        console.print(table)
        more = [c.title for c in filled if c.key.startswith(ELSEWHERE)]
        if more:
            console.print(Text(f"in the files: {', '.join(more)}"), soft_wrap=True)
    for record in board.records:
        for defect in record.defects:
            console.print(Text(f"{record.place}: {defect}"), style="yellow", soft_wrap=True)


def _tagged(cell: Cell) -> str:
    return f"{cell.text} {cell.tag}".strip()


def write_csv(board: Board, path: Path) -> None:
    """One row a run, numbers in full; beside each measured one its error, relation, split and protocol."""
    with io.StringIO() as file:
        writer = csv.writer(file)
        names = ["run", "started", "directory", "model", "data", "seed", "status"]
        for column in board.columns:
            names += [column.key, *(f"{column.key}_{extra}" for extra in _EXTRAS if _is_measured(board, column))]
        writer.writerow([inert(name) for name in [*names, "defects"]])
        for group in board.groups:
            for row in group.rows:
                r = row.record
                entries: list[Any] = [r.name, r.started, r.place, r.model, str(group.data), r.seed, r.status]
                for column in board.columns:
                    cell = row.cells[column.key]
                    entries.append(None if math.isnan(cell.value) else cell.value)
                    if _is_measured(board, column):
                        m = cell.source
                        entries += [None] * len(_EXTRAS) if m is None else [m.error, m.relation, m.split, m.told]
                entries.append("; ".join(r.defects))
                writer.writerow([inert(entry) if isinstance(entry, str) else entry for entry in entries])
        write_text(path, file.getvalue())


def inert(text: str) -> str:
    """Text that a spreadsheet takes for text: of what it would take for a formula, with an apostrophe before it."""
    return f"'{text}" if len(text) > 1 and text.lstrip()[:1] in FORMULAS else text


_EXTRAS = ("error", "relation", "split", "protocol")


def _is_measured(board: Board, column: Column) -> bool:
    return any(row.cells[column.key].source is not None for group in board.groups for row in group.rows)


def write_markdown(board: Board, path: Path) -> None:
    """A table for each data set, the leaders in bold, and what is wrong with which run."""
    lines = ["# Board", ""]
    for group in board.groups:
        runs = {row.record: [f"{row.record.name} {row.record.when}", row.record.model] for row in group.rows}
        status = {row.record: row.record.status for row in group.rows}
        lines += [
            f"## {escaped(str(group.data))}",
            "",
            *_table(group, ["run", "model"], runs, board.columns, status),
            "",
        ]
    defects = [f"- {escaped(f'{r.place}: {defect}')}" for r in board.records for defect in r.defects]
    lines += ["## Of these runs one must know", "", *defects, ""] if defects else []
    lines += [READING, ""]
    write_text(path, "\n".join(lines))


def short_tables(board: Board, left_out: tuple[str, ...] = ()) -> list[str]:
    """Lines of Markdown for a text about something else: a table for each data set, a run by the shortest name it has.

    Args:
        board: the runs; what is wrong with them is not said.
        left_out: beginnings of the keys of columns that are not wanted.
    """
    lines = []
    columns = [column for column in board.columns if not column.key.startswith(left_out)]
    for group in board.groups:
        names = {record: [label] for record, label in group.labels.items()}
        lines += [f"**{escaped(str(group.data))}**", "", *_table(group, ["model"], names, columns), ""]
    return lines


def _table(
    group: Group,
    heads: list[str],
    names: Mapping[Record, list[str]],
    columns: list[Column],
    status: Mapping[Record, str] | None = None,
) -> list[str]:
    """Lines of a table: names of each run, the columns that are not empty, and its status where that is wanted."""
    filled = group.filled(columns)
    last = [] if status is None else ["status"]
    rows = [[*heads, *(column.title for column in filled), *last]]
    rows.append([*("---" for _ in heads), *("---:" for _ in filled), *("---" for _ in last)])
    for row in group.rows:
        cells = [row.cells[column.key] for column in filled]
        shown = [f"**{cell.text}** {cell.tag}".strip() if cell.best else _tagged(cell) for cell in cells]
        said = [] if status is None else [escaped(status[row.record])]
        rows.append([*map(escaped, names[row.record]), *shown, *said])
    return [f"| {' | '.join(row)} |" for row in rows]


READING = (
    "= is an exact likelihood and ≤ a bound: the negative log-likelihood is at most that; ± is the standard error "
    "of a likelihood, and of samples the standard deviation over seeds (an Inception score of one seed: over its "
    "splits). `test` and `val` are splits of the data with the number of images; `eval` marks samples that evaluate.py "
    "drew and `val` those of the last measurement in training, with their number. Bold leads among numbers of one "
    "protocol. † has a caveat."
)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    shown = re.sub(r"([\\|`*\[\]@])", r"\\\1", " ".join(text.split()))
    return html.escape(re.sub(r"(?i)(?<=\w)(:)(?=//)|(?<=www)(\.)", r"\\\1\2", shown), quote=False)
