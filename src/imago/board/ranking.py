"""How a sweep ends: its runs in the order of one number, and the command that repeats the best of them."""

import math
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from imago.board.board import Board, Cell, Column, Row
from imago.board.records import read_record
from imago.board.text import WIDE, named
from imago.errors import printable
from imago.measures import MEASURES, better


def show_ranking(runs: Iterable[Path], objective: str | None, command: Sequence[str]) -> None:
    """Print a table for each data set: the runs, or where they differ in the seed alone their means, the best first.

    Args:
        runs: the run directories of a sweep.
        objective: the number that ranks them, as metrics.csv calls it; of one without a direction the lowest is best.
            ``None`` for the first number of the board that most of them have.
        command: that trains, to which the overrides of the best are added.
    """
    board = Board(map(read_record, runs))
    console = Console(highlight=False, soft_wrap=True)
    console = console if console.is_terminal else Console(highlight=False, width=WIDE, soft_wrap=True)
    for group in board.groups:
        rows = group.settled
        if len(group.rows) < 2:
            continue
        title, way, cells = _numbers(rows, board.columns, objective)
        sign = -1 if way == "high" else 1
        rows.sort(key=lambda row: _place(cells[id(row)], sign))
        table = Table(box=SIMPLE_HEAD)
        table.add_column("run", overflow="fold")
        table.add_column(Text(title), justify="right")
        table.add_column("seconds", justify="right")
        for row in rows:
            r, cell = row.record, cells[id(row)]
            number = r.status if math.isnan(cell.value) and r.status != "completed" else f"{cell.text} {cell.tag}"
            seconds = "" if r.training_seconds is None else f"{r.training_seconds:,.0f}"
            table.add_row(Text(named(r, rows)), Text(number.strip()), Text(seconds))
        console.print(table)
        if {"estimate"} < {kind for row in rows if (kind := _kind(cells[id(row)]))}:
            console.print("≈ is an estimate, which may err to either side: it is ranked apart from = and ≤")
        best = rows[0]
        if math.isnan(cells[id(best)].value):
            console.print("no number ranks these runs; choose metrics=classifier, or name one with objective=")
            continue
        if best.record.runs:
            console.print("± is the standard error of the mean over seeds")
        overrides = (best.record.runs or [best.record])[0].overrides
        given = [text for text in overrides if not re.match(r"\+*(resume|hydra\.)", text)]
        said = " ".join(shlex.quote(printable(word)) for word in [*command, *given])
        console.print(Text(f"the best again: {said}"))


def _numbers(rows: list[Row], columns: list[Column], objective: str | None) -> tuple[str, str | None, dict[int, Cell]]:
    """The title of a number, which way it is better, and its cells by their rows."""
    known = {column.key: column for column in columns}
    split, _, bare = (objective or "").partition("/")
    bare = bare if split in ("val", "test") else ""
    if objective is not None and bare not in known:
        return objective, better(objective), {id(row): _logged(row, objective) for row in rows}
    if objective is not None:
        column = known[bare]
    else:

        def count(column: Column) -> int:
            return sum(not math.isnan(row.cells[column.key].value) for row in rows)

        column = max((c for c in columns if c.better and c.key.startswith(tuple(MEASURES))), key=count)
    return column.title, column.better, {id(row): row.cells[column.key] for row in rows}


def _logged(row: Row, name: str) -> Cell:
    """The last value of a number that is logged and no measurement; of several runs the mean with its error."""
    values = [run.table.last[name] for run in row.record.runs or [row.record] if name in run.table.last]
    if not values:
        return Cell()
    error = f" ± {stdev(values) / math.sqrt(len(values)):.2g}" if len(values) > 1 else ""
    return Cell(fmean(values), f"{fmean(values):.4g}{error}")


def _kind(cell: Cell) -> str | None:
    """Of a likelihood whether it is exact, a bound or an estimate."""
    return None if cell.source is None else cell.source.protocol.likelihood


def _place(cell: Cell, sign: int) -> tuple[bool, int, float]:
    """Numbers of other protocols behind those of the first, and runs without a number last.

    Estimates of a likelihood are of another protocol than exact values and bounds (``Protocol.comparison_key``).
    """
    missing = math.isnan(cell.value)
    return missing, cell.block, 0.0 if missing else sign * cell.value
