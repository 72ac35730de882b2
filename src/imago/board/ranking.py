"""How a sweep ends: its runs in the order of one number, and the command that repeats the best of them."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev

from rich.text import Text

from imago.board.board import Board, Cell, Column, Row, rank_by
from imago.board.records import Measured, read_record
from imago.board.terminal import Shown, output, tables
from imago.board.text import name_parts
from imago.measures import MEASURES, better
from imago.sweeps import alone


def show_ranking(runs: Iterable[Path], objective: str | None, command: Sequence[str]) -> None:
    """Print a table for each data set: the runs, or where they differ in the seed alone their means, the best first.

    Args:
        runs: the run directories of a sweep.
        objective: the number that ranks them, as metrics.csv calls it; of one without a direction the lowest is best.
            ``None`` for the first number of the board that most of them have.
        command: that trains, to which the overrides of the best are added.
    """
    board = Board(map(read_record, runs))
    console = output()
    for group in board.groups:
        rows = group.settled
        if len(group.rows) < 2:
            continue
        title, way, cells = _numbers(rows, board.columns, objective)
        sign = -1 if way == "high" else 1
        rows.sort(key=lambda row: _place(cells[id(row)], sign))
        blocks = {cells[id(row)].block: cells[id(row)].source for row in rows if not math.isnan(cells[id(row)].value)}
        numbers, seconds = [], []
        for row in rows:
            r, cell = row.record, cells[id(row)]
            failed = math.isnan(cell.value) and r.status != "completed"
            numbers.append((r.status, "") if failed else (cell.text, cell.tag))
            spent = r.cpu_seconds if r.by_processor else r.training_seconds
            seconds.append(("" if spent is None else f"{spent:,.0f}{' CPU' * r.by_processor}", ""))
        names = [name_parts(row.record, rows) for row in rows]
        columns = [Shown("run", names, is_name=True, right=False), Shown(title, numbers), Shown("seconds", seconds, 1)]
        (table,), _ = tables([("", columns)], console.width)
        for row, after, printed in zip(rows, rows[1:], table.rows, strict=False):
            printed.end_section = cells[id(row)].block != cells[id(after)].block
        console.print(table, crop=False)
        if {"estimate"} < {kind for row in rows if (kind := _kind(cells[id(row)]))}:
            told = "≈ is an estimate, which may err to either side: it is ranked apart from = and ≤"
            console.print(told, soft_wrap=True)
        if differing := _differing([m for m in blocks.values() if m is not None]):
            told = "; ".join([*differing.values(), *_remedy(rows, differing)])
            console.print(Text(f"not all were measured alike, so they are ranked apart: {told}"), soft_wrap=True)
        best = rows[0]
        if math.isnan(cells[id(best)].value):
            told = "no number ranks these runs; choose metrics=classifier, or name one with objective="
            console.print(told, soft_wrap=True)
            continue
        if any(row.record.runs for row in rows):
            console.print("± is the standard error of the mean over seeds")
        alike = sum(not cells[id(row)].block and not math.isnan(cells[id(row)].value) for row in rows)
        if len(blocks) > 1 and alike == 1:  # nothing compares with it
            continue
        said = alone(command, (best.record.runs or [best.record])[0].overrides)
        of = f" of the first {alike}" if len(blocks) > 1 else ""
        console.print(Text(f"the best{of} again: {said}"), soft_wrap=True)


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
    rank_by(rows, column)  # means over seeds and single runs together
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


def _differing(sources: Sequence[Measured]) -> dict[str, str]:
    """The entries in which protocols differ, in words; that some are estimates is said elsewhere."""
    compared = [m.protocol.compared for m in sources]
    found = {}
    for entry in dict.fromkeys(name for protocol in compared for name in protocol if name != "likelihood"):
        values = list(dict.fromkeys(protocol.get(entry) for protocol in compared))
        if len(values) > 1:
            told = (f"{value:,}" if type(value) is int else str(value or "unknown") for value in values)
            found[entry] = f"{entry.replace('_', ' ')} {' and '.join(told)}"
    return found


def _remedy(rows: Iterable[Row], differing: Iterable[str]) -> list[str]:
    """What would have all runs measured alike, where they differ in what whoever measures chooses."""
    if not set(differing) <= {"data", "images", "selection", "samples", "subsets", "subset_size", "reference_images"}:
        return []
    runs = [run for row in rows for run in row.record.runs or [row.record]]
    paced = any(run.settings.get("measuring_share", "null") != "null" for run in runs)
    varied = any(key.startswith("metrics") for run in runs for key in run.varied)
    later = " now, and measuring_share=null in training" if paced and not varied else ""
    return [f"evaluate.py with the same settings measures all alike{later}"]


def _place(cell: Cell, sign: int) -> tuple[bool, int, float]:
    """Numbers of other protocols behind those of the first, and runs without a number last.

    Estimates of a likelihood are of another protocol than exact values and bounds (``Protocol.comparison_key``).
    """
    missing = math.isnan(cell.value)
    return missing, cell.block, 0.0 if missing else sign * cell.value
