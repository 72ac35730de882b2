"""The board as one page that needs nothing else: no network, no server, no other file."""

import base64
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from imago.board.board import FRECHET, NOT_TELLING, Board, Cell, Column, Group, without_seed
from imago.board.pictures import embedded
from imago.board.records import Record, flat
from imago.board.text import MEANS, READING, is_number, of_runs
from imago.errors import printable
from imago.files import write_text
from imago.sweeps import short_names
from imago.tables import PROCESSOR

PARTS = Path(__file__).parent / "page"
COLOURS = 12
SEARCH_WIDTH = 1200  # pixels of the picture of a search
LEADING = ("nats", *FRECHET)


def write_page(board: Board, path: Path) -> None:
    """Write the page; links in it are relative to the folder of ``path``.

    Grids that cannot be read are left out and named among the run's defects.
    """
    pictures = _pictures(board.records)
    numbers = {record: k for k, record in enumerate(board.records)}
    labels = {record: label for group in board.groups for record, label in group.labels.items()}
    labels |= {row.record: row.record.name for group in board.groups for row in group.means}

    def link(record: Record) -> str:
        return quote(os.fsencode(Path(os.path.relpath(record.path, path.parent)).as_posix())) + "/"

    write_html(
        path,
        "page.html",
        board=board,
        pictures=pictures,
        searches=_searches(board.records),
        numbers=numbers,
        labels=labels,
        link=link,
        made=time.strftime("%Y-%m-%d %H:%M"),
        leaders=[(group, lists) for group in board.groups if (lists := list(_leaders(group, board.columns)))],
        leading={column.key: column.title for column in board.columns if column.key.startswith(LEADING)},
        defects=[(record, defect) for record in board.records for defect in record.defects],
        settings=_settings(board),
        of_runs=of_runs,
        notices=board.told(lambda r: r.notices),
        means_title=MEANS,
        states=("completed", "running", "interrupted", "failed"),
        reading=READING.replace("`", ""),
        data=_data(board, numbers, labels),
    )


def write_html(path: Path, template: str, **parts: Any) -> None:
    """Write a page from a template of :data:`PARTS`, where whatever is no markup of its own becomes text."""
    style, script = ((PARTS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    write_text(path, rendered(template, **parts, style=style, script=script, hash=_hash))


def rendered(template: str, **parts: Any) -> str:
    """A template of :data:`PARTS` filled in, where whatever is no markup of its own becomes text."""
    return _pages().get_template(template).render(parts)


@cache
def _pages() -> Environment:
    """The templates, compiled once."""
    return Environment(
        loader=FileSystemLoader(PARTS), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _settings(board: Board) -> dict[str, tuple[str, bool]]:
    """What sweeps vary, with a title for each and whether its values are numbers."""
    keys = dict.fromkeys(key for group in board.groups for key in group.settings)
    return {
        key: (title, all(is_number(record.setting(key)) for record in board.records))
        for key, title in short_names(keys).items()
    }


def _hash(text: str) -> str:
    """What a content security policy calls a style or script that stands in the page itself."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _pictures(records: list[Record]) -> dict[Record, str]:
    def of(record: Record) -> str | None:
        if record.grid is None:
            return None
        try:
            return embedded(record.grid)
        except Exception:  # Pillow raises whatever a damaged picture leads it to
            record.defects.append(f"samples/{record.grid.name} cannot be read")
            return None

    with ThreadPoolExecutor() as pool:  # Pillow works without the interpreter's lock
        drawn = pool.map(of, records)
        return {record: picture for record, picture in zip(records, drawn, strict=True) if picture is not None}


def _searches(records: list[Record]) -> dict[str, str]:
    """The pictures of the searches that the runs are trials of, by the names of their folders."""
    found = {}
    for folder in dict.fromkeys(record.path.parent for record in records):
        with suppress(Exception):  # most are of no search; Pillow raises whatever a damaged picture leads it to
            found[printable(folder.name)] = embedded(folder / "search.png", SEARCH_WIDTH)
    return found


def _leaders(group: Group, columns: list[Column]) -> Iterator[tuple[Column, list[tuple[Record, Cell]], str]]:
    """The first three in likelihood, and in each distance of samples; and their tag, if it is that of all three.

    A mean over seeds takes the place of its runs.
    """
    for column in columns:
        cells = {row.record: row.cells[column.key] for row in group.settled}
        leading = [(r, cell) for r, cell in cells.items() if cell.block == 0 and not math.isnan(cell.value)]
        rivals = [(r, cell) for r, cell in leading if cell.comparison_key == leading[0][1].comparison_key]
        if len(rivals) > 1 and column.key.startswith(LEADING):
            first = sorted(rivals, key=lambda rival: rival[1].value)[:3]
            tags = {cell.tag for _, cell in first}
            yield column, first, tags.pop() if len(tags) == 1 else ""


def _data(board: Board, numbers: dict[Record, int], labels: dict[Record, str]) -> str:
    """What the page draws, as JSON that cannot end its element."""
    kinds = {record: record.model for record in board.records}
    if len(set(kinds.values())) == 1:  # a sweep of one model: of one colour are runs that differ in their seed alone
        kinds = {record: without_seed(record.name) for record in board.records}
    colours = list(dict.fromkeys(kinds.values()))
    settings = _settings(board)
    runs = [
        {
            "id": numbers[row.record],
            "label": labels[row.record],
            "model": row.record.model,
            "group": place,
            "colour": colours.index(kinds[row.record]) % COLOURS,
            "processor": row.record.table.clock == PROCESSOR,
            "curves": [
                {
                    "x": block.images,
                    "s": [_rounded(s) for s in block.seconds],
                    "y": {name: [_rounded(value) for value in values] for name, values in block.curves.items()},
                }
                for block in row.record.table.blocks
            ],
            "points": {
                key: {"v": cell.value, "t": cell.text, "b": cell.block, "n": cell.note}
                for key, cell in row.cells.items()
                if math.isfinite(cell.value)
            },
            "samplings": _samplings(row.record, [column.key for column in board.columns]),
            "settings": {key: value for key, value in row.record.settings.items() if not NOT_TELLING.fullmatch(key)}
            | {key: value for key in settings if (value := row.record.setting(key))},
        }
        for place, group in enumerate(board.groups)
        for row in group.rows
    ]
    columns = [{"key": c.key, "title": c.title, "better": c.better} for c in board.columns]
    groups = [str(group.data) for group in board.groups]
    text = json.dumps({"runs": runs, "groups": groups, "columns": columns}, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _samplings(record: Record, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Of each quality of samples every measurement with its cost: a run may be sampled in many ways."""
    found: dict[str, list[dict[str, Any]]] = {}
    for m in record.measured:
        # Of a model as it was trained one is enough: several by other protocols are no choice that one has.
        shown = bool(m.changes) or m is record.headline(m.name)
        if shown and m.name in names and m.protocol.seconds_per_sample is not None and math.isfinite(m.value):
            changes = ", ".join(f"{key} {value}" for key, value in flat(m.changes))
            point = {"v": m.value, "seconds_per_sample": m.protocol.seconds_per_sample, "nfe": m.protocol.nfe}
            found.setdefault(m.name, []).append(
                point | {"comparison_key": m.comparison_key, "how": m.protocol.sampler or changes}
            )
    return found


def _rounded(value: float) -> Any:
    """Five digits, which is more than a screen shows; what is no number becomes a gap."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
