"""The board as text: for the terminal, as a table for other programs, and as Markdown."""

import csv
import html
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from imago.board.board import MISSING, Board, Cell, Column, Group, Row
from imago.board.records import Record
from imago.board.terminal import Shown, output, tables
from imago.files import write_text

# Columns that a terminal has no room for; beginnings of their keys.
ELSEWHERE = ("kid", "kd_", "precision", "recall", "density", "coverage", "inception_score", "authenticity", "copies")
TRAINING = ("training_seconds", "training_cpu_seconds")
# Columns that make room where there is little, the first of them first.
LEAST = ("peak_memory_mib", "nfe", "parameters", "bpd", "seconds_per_sample", *TRAINING, "images_seen")
# First characters by which a spreadsheet knows a formula, the wide ones of East Asian scripts too.
FORMULAS = tuple("=+-@＝＋－＠")


def show(board: Board) -> None:
    """Print tables for each data set, without the columns that are empty in it, and what to know of which run.

    There is a table of means over seeds, where there are some, and one of all runs. What tells more of samples than
    their distance is left to the files, and so is what the terminal has no room for.
    """
    console = output()
    for group in board.groups:
        filled = group.filled(board.columns)
        columns = [c for c in filled if not c.key.startswith(ELSEWHERE)]
        drafts = [(f"{group.data}: {MEANS}", _shown(group, group.means, columns))] if group.means else []
        fitting, no_room = tables([*drafts, (str(group.data), _shown(group, group.rows, columns))], console.width)
        for table in fitting:
            console.print(table, crop=False)
            console.print()
        more = [c.title for c in filled if c.key.startswith(ELSEWHERE)]
        if more:
            console.print(Text(f"in the files: {'; '.join(more)}"), soft_wrap=True)
        if no_room:
            remedy = "A wider terminal shows them; board.html and board.csv in the folder of out= have all"
            console.print(Text(f"no room here: {'; '.join(no_room)}. {remedy}"), soft_wrap=True)
    for notice, told in board.told(lambda r: r.notices).items():
        console.print(Text(f"{of_runs(told)}: {notice}"), soft_wrap=True)
    for defect, told in board.told(lambda r: r.defects).items():
        console.print(Text(f"{of_runs(told)}: {defect}"), style="yellow", soft_wrap=True)


def of_runs(told: list[Record]) -> str:
    """Which runs were told something."""
    return told[0].place if len(told) == 1 else f"{len(told)} runs, such as {told[0].place}"


def _shown(group: Group, rows: list[Row], columns: list[Column]) -> list[Shown]:
    """The columns of a table for the terminal."""
    settings = _settings(group, rows)
    order = _first_out_first([column.key for column in columns], list(group.settings))
    rank = {key: len(order) - k for k, key in enumerate(order)}
    names = [name_parts(row.record, rows) for row in rows]
    all_rows = rows if group.held_out is None else [*rows, group.held_out]
    real = [] if group.held_out is None else [group.held_out.record.name]
    blank = [(MISSING, "") for _ in real]
    styles = [*("" for _ in rows), *("dim" for _ in real)]

    def texts(title: str, of: list[str], key: str = "", right: bool = False) -> Shown:
        cells = [*((text, "") for text in of), *blank]
        return Shown(title, cells, rank[key or title], is_name=not right, right=right, styles=styles)

    records = [row.record for row in rows]
    shown = [Shown("run", [*names, *((name, "") for name in real)], is_name=True, right=False, styles=styles)]
    shown.append(texts("model", [r.model for r in records]))
    for key, title in settings.items():
        right = all(is_number(r.setting(key)) for r in records)
        shown.append(texts(title, [r.setting(key) or MISSING for r in records], key, right))
    for column in columns:
        cells = [row.cells[column.key] for row in all_rows]
        bold = ["bold" if cell.best else style for cell, style in zip(cells, styles, strict=True)]
        tagged = [(cell.text, cell.tag) for cell in cells]
        shown.append(Shown(column.title, tagged, rank.get(column.key, 0), styles=bold))
    shown.append(texts("status", [r.status for r in records]))
    return shown


def _first_out_first(keys: list[str], settings: list[str]) -> list[str]:
    """Columns in the order in which they make room: what a run cost, numbers after the first, what tells it apart."""
    least = [key for key in LEAST if key in keys and (key != "bpd" or "nats" in keys)]
    numbers = [key for key in keys if key not in least]
    return [*least, *reversed(numbers[2:]), *reversed(settings), "status", *numbers[1:2], "model"]


def named(record: Record, rows: list[Row]) -> str:
    """The name of a run, and where that is not enough its start; of a mean the number of seeds."""
    alone = record.varied and [row.record.name for row in rows].count(record.name) == 1 and not record.runs
    return record.name if alone else record.name_and_start


def _settings(group: Group, rows: list[Row]) -> dict[str, str]:
    """The varied settings that have a column: a mean over seeds has no seed."""
    return {key: title for key, title in group.settings.items() if rows is not group.means or key != "seed"}


def is_number(text: str) -> bool:
    """Whether a value can be sorted as a number, or is missing."""
    return not text or re.fullmatch(r"-?\d*\.?\d+(e[+-]?\d+)?", text) is not None


def name_parts(record: Record, rows: list[Row]) -> tuple[str, str]:
    """The name of a run, and apart what is added to it."""
    name = named(record, rows)
    return (record.name, name.removeprefix(record.name).strip()) if name.startswith(record.name) else (name, "")


def _tagged(cell: Cell) -> str:
    return f"{cell.text} {cell.tag}".strip()


def write_csv(board: Board, path: Path) -> None:
    """One row a run, numbers in full; beside each measured one its error, relation, split and protocol."""
    varied = list(dict.fromkeys(key for group in board.groups for key in group.settings if key != "seed"))
    with io.StringIO() as file:
        writer = csv.writer(file)
        names = ["run", "started", "directory", "model", "data", "seed", "status", *varied]
        for column in board.columns:
            names += [column.key, *(f"{column.key}_{extra}" for extra in _EXTRAS if _is_measured(board, column))]
        writer.writerow([inert(name) for name in [*names, "defects"]])
        for group in board.groups:
            for row in group.rows:
                r = row.record
                entries: list[Any] = [r.name, r.started, r.place, r.model, str(group.data), r.seed, r.status]
                entries += [r.setting(key) for key in varied]
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
    """Tables for each data set, the leaders in bold, and what to know of which run."""
    lines = ["# Board", ""]
    for group in board.groups:
        lines += [f"## {escaped(str(group.data))}", ""]
        for title, rows in ((MEANS, group.means), ("Runs", group.rows)):
            if not rows:
                continue
            settings = _settings(group, rows)
            heads = ["run", "model", *settings.values()]
            names = {
                row.record: [named(row.record, rows), row.record.model]
                + [row.record.setting(key) or MISSING for key in settings]
                for row in rows
            }
            if group.held_out is not None:
                real = group.held_out.record
                names[real], rows = [real.name, MISSING, *(MISSING for _ in settings)], [*rows, group.held_out]
            status = {row.record: row.record.status for row in rows}
            lines += [f"{title[:1].upper()}{title[1:]}", ""] if group.means else []
            lines += [*_table(rows, heads, names, group.filled(board.columns), status), ""]
    said = board.told(lambda r: [*r.notices, *r.defects])
    told = [f"- {escaped(f'{of_runs(records)}: {line}')}" for line, records in said.items()]
    lines += ["## Of these runs one must know", "", *told, ""] if told else []
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
        rows = group.rows
        if (real := group.held_out) is not None and not all(math.isnan(real.cells[c.key].value) for c in columns):
            names[real.record], rows = [real.record.name], [*rows, real]
        lines += [
            f"**{escaped(str(group.data))}**",
            "",
            *_table(rows, ["model"], names, group.filled(columns)),
            "",
        ]
    return lines


def _table(
    rows: list[Row],
    heads: list[str],
    names: Mapping[Record, list[str]],
    columns: list[Column],
    status: Mapping[Record, str] | None = None,
) -> list[str]:
    """Lines of a table: what names each run, the columns, and its status where that is wanted."""
    last = [] if status is None else ["status"]
    lines = [[*map(escaped, heads), *(column.title for column in columns), *last]]
    lines.append([*("---" for _ in heads), *("---:" for _ in columns), *("---" for _ in last)])
    for row in rows:
        cells = [row.cells[column.key] for column in columns]
        shown = [f"**{cell.text}** {cell.tag}".strip() if cell.best else _tagged(cell) for cell in cells]
        said = [] if status is None else [escaped(status[row.record])]
        lines.append([*map(escaped, names[row.record]), *shown, *said])
    return [f"| {' | '.join(line)} |" for line in lines]


MEANS = "mean ± standard error over seeds"
READING = (
    "= is an exact likelihood, ≤ a bound: the negative log-likelihood is at most that, and ≈ an estimate, which may "
    "err to either side and is ranked with estimates alone; ± is the standard error of a mean: of a likelihood over "
    "images, of samples over the seeds that drew them (an Inception score of one seed: over its splits), and where `n "
    "seeds` stands over n runs that differ in their seed alone. `test` and `val` are splits of the data with the "
    "number of images; `eval` marks samples that evaluate.py drew and `val` those of the last measurement in "
    "training, with their number. Held-out images are validation images that are judged as samples are, as many. Bold "
    "leads among numbers of one protocol, except those beyond what held-out images have. † has a caveat."
)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    shown = re.sub(r"([\\|`*\[\]@])", r"\\\1", " ".join(text.split()))
    return html.escape(re.sub(r"(?i)(?<=\w)(:)(?=//)|(?<=www)(\.)", r"\\\1\2", shown), quote=False)
