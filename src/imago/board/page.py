"""The board as one page that needs nothing else: no network, no server, no other file."""

import base64
import hashlib
import html
import json
import math
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from imago.board.board import FRECHET, Board, Cell, Column, Group, Row
from imago.board.pictures import embedded
from imago.board.records import Record, flat
from imago.board.text import READING
from imago.files import write_text

PARTS = Path(__file__).parent / "page"
COLOURS = 12
# Settings that say where a run lay, not what it was, and those that only repeat others.
NOT_TELLING = re.compile(r"data\.(dir|seed)|logs|resume|name|tags|callbacks\..+\.every|model\.conditional")


def write_page(board: Board, path: Path) -> None:
    """Write the page; links in it are relative to the folder of ``path``.

    Grids that cannot be read are left out and named among the run's defects.
    """
    pictures = _pictures(board.records)
    numbers = {record: k for k, record in enumerate(board.records)}
    style, script = ((PARTS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    labels = {key: label for group in board.groups for key, label in group.labels.items()}
    parts = {
        "style": style,
        "script": script,
        "style_hash": inline_hash(style),
        "script_hash": inline_hash(script),
        "facts": _facts(board),
        "leaders": "".join(_leaders(board, labels)),
        "defects": _defects(board, numbers),
        "chips": "".join(_chips(board)),
        "head": "".join(_head(column) for column in board.columns),
        "body": "".join(_body(group, k, board.columns, numbers, path.parent) for k, group in enumerate(board.groups)),
        "cards": "".join(_cards(group, numbers, labels, pictures) for group in board.groups),
        "numbers": "".join(_about(record, k, path.parent) for k, record in enumerate(board.records)),
        "reading": html.escape(READING.replace("`", "")),
        "data": _data(board, numbers, labels),
    }
    template = (PARTS / "page.html").read_text(encoding="utf-8")
    write_text(path, re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template))


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


def inline_hash(text: str) -> str:
    """What a content security policy calls a style or script that stands in the page itself."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _facts(board: Board) -> str:
    runs, data = len(board.records), len(board.groups)
    made = time.strftime("%Y-%m-%d %H:%M")
    return f"{runs} run{'s' * (runs != 1)} on {data} data set{'s' * (data != 1)} · {made}"


def _leaders(board: Board, labels: dict[Record, str]) -> Iterator[str]:
    """A card for each data set: the first three in likelihood, and in the first distance of samples."""
    for group in board.groups:
        lists = ""
        for column in board.columns:
            cells = {row.record: row.cells[column.key] for row in group.rows}
            rivals = [(r, cell) for r, cell in cells.items() if cell.block == 0 and not math.isnan(cell.value)]
            if len(rivals) < 2 or not column.key.startswith(("nats", *FRECHET)):
                continue
            first = sorted(rivals, key=lambda rival: rival[1].value)[:3]
            tags = [f" <small>{html.escape(cell.tag)}</small>" for _, cell in first]
            alike = len(set(tags)) == 1  # then said once, above
            lines = [
                f"<li><b>{html.escape(labels[r])}</b><span>{_text(cell)}{'' if alike else tag}</span></li>"
                for (r, cell), tag in zip(first, tags, strict=True)
            ]
            title = html.escape(column.title) + (tags[0] if alike else "")
            lists += f"<div><h4>{title}</h4><ol>{''.join(lines)}</ol></div>"
        if lists:
            yield f'<section><h3>{html.escape(str(group.data))}</h3><div class="lists">{lists}</div></section>'


def _defects(board: Board, numbers: dict[Record, int]) -> str:
    lines = [
        f'<li><a href="#run-{numbers[r]}">{html.escape(f"{r.name} {r.when}")}</a> {html.escape(defect)}</li>'
        for r in board.records
        for defect in r.defects
    ]
    if not lines:
        return ""
    said = f"{len(lines)} thing{'s' * (len(lines) != 1)} to know about these runs"
    return f'<details class="defects"><summary>{said}</summary><ul>{"".join(lines)}</ul></details>'


def _chips(board: Board) -> Iterator[str]:
    if len(board.groups) == 1:
        return
    entries = [("", "All data", len(board.records))]
    entries += [(str(k), str(group.data), len(group.rows)) for k, group in enumerate(board.groups)]
    for value, label, count in entries:
        checked = " checked" if value == "" else ""
        yield (
            f'<label class="chip"><input type="radio" name="data" value="{value}"{checked}>'
            f"<span>{html.escape(label)} <small>{count}</small></span></label>"
        )


def _head(column: Column) -> str:
    sort = ' aria-sort="ascending"' if column.key == "nats" else ""
    return (
        f'<th scope="col" class="num" data-key="{html.escape(column.key)}"{sort}>'
        f'<button type="button" data-note="{html.escape(column.help)}">{html.escape(column.title)}</button></th>'
    )


def _body(group: Group, place: int, columns: list[Column], numbers: dict[Record, int], out: Path) -> str:
    rows = "".join(_row(row, columns, numbers[row.record], out) for row in group.rows)
    return (
        f'<tbody data-group="{place}"><tr class="group"><th colspan="{len(columns) + 3}" scope="rowgroup">'
        f"<span>{html.escape(str(group.data))}</span></th></tr>{rows}</tbody>"
    )


def _row(row: Row, columns: list[Column], number: int, out: Path) -> str:
    r = row.record
    cells = "".join(_cell(row.cells[column.key]) for column in columns)
    words = html.escape(" ".join([r.name, r.model, r.started, r.status, str(r.data), r.place]).lower())
    name = "" if r.name == f"{r.model}-{r.data.name}" else f"{html.escape(r.name)}<br>"
    mark = ""
    if r.defects:
        mark = f' <span class="mark" data-note="{html.escape(chr(10).join(r.defects))}">{len(r.defects)} !</span>'
    return (
        f'<tr data-run="{number}" data-words="{words}">'
        f'<td class="pick"><input type="checkbox" aria-label="Compare {html.escape(f"{r.name} {r.when}")}"></td>'
        f'<th scope="row" class="run" data-value="{html.escape(r.model)}">'
        f'<a href="{_link(r.path, out)}">{html.escape(r.model)}</a>'
        f'<small>{name}{html.escape(r.when)} · <a href="#run-{number}">numbers</a></small></th>'
        f'{cells}<td class="status" data-value="{html.escape(r.status)}"><span class="state {_class(r.status)}">'
        f"{html.escape(r.status)}</span>{mark}</td></tr>"
    )


def _cell(cell: Cell) -> str:
    value = "" if math.isnan(cell.value) else f' data-value="{cell.value!r}" data-block="{cell.block}"'
    note = f' data-note="{html.escape(cell.note)}"' if cell.note else ""
    number, _, error = cell.text.partition(" ± ")
    beside = ", ".join(part for part in (error and f"± {error}", cell.tag) if part)
    tag = f'<small class="tag">{html.escape(beside)}</small>' if beside else ""
    lead = " best" if cell.best and cell.block == 0 else " ahead" if cell.best else ""
    return f'<td class="num{lead}"{value}{note}>{html.escape(number)}{tag}</td>'


def _text(cell: Cell) -> str:
    number, error, rest = html.escape(cell.text).partition(" ± ")
    return f'{number}<span class="error"> ± {rest}</span>' if error else number


def _class(status: str) -> str:
    return status if status in ("completed", "running", "interrupted", "failed") else "unknown"


def _link(target: Path, out: Path) -> str:
    return html.escape(quote(os.fsencode(Path(os.path.relpath(target, out)).as_posix())) + "/")


def _cards(group: Group, numbers: dict[Record, int], labels: dict[Record, str], pictures: dict[Record, str]) -> str:
    cards = "".join(_card(row, numbers[row.record], labels[row.record], pictures.get(row.record)) for row in group.rows)
    return f'<div class="gallery"><h3>{html.escape(str(group.data))}</h3><div class="cards">{cards}</div></div>'


def _card(row: Row, number: int, label: str, picture: str | None) -> str:
    r = row.record
    keys = [key for key, cell in row.cells.items() if cell.source and key.startswith(("nats", *FRECHET))]
    best = "<br>".join(_text(row.cells[key]) + _unit(key) for key in keys)
    told = html.escape(f"Samples of {r.name} {r.when}")
    seen = r.grid.stem.removeprefix("images-") if r.grid else ""
    after = f"after {int(seen):,} images" if seen.isdigit() else ""
    inside = '<div class="none">no samples</div>'
    if picture is not None:
        image = f'<img decoding="async" alt="{told}" src="{picture}">'
        inside = f'<button type="button" class="zoom" aria-label="Enlarge: {told}">{image}</button>'
    return (
        f'<figure class="card" data-run="{number}">{inside}<figcaption><b>{html.escape(label)}</b>'
        f"<span>{best}</span><small>{after}</small></figcaption></figure>"
    )


def _unit(key: str) -> str:
    return " nats" if key == "nats" else f" {key.upper()}" if key == "fid" else " FD"


def _about(record: Record, number: int, out: Path) -> str:
    """Everything known of a run, with the protocol of every number."""
    facts = {
        "directory": f'<a href="{_link(record.path, out)}">{html.escape(record.place)}</a>',
        "status": html.escape(record.status),
        "data": html.escape(str(record.data)),
        "machine": html.escape(record.machine or "unknown"),
        "parameters": html.escape(", ".join(f"{k} {n:,}" for k, n in record.parameters.items()) or "unknown"),
    }
    listed = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in facts.items())
    rows = "".join(
        f'<tr><th scope="row">{html.escape(m.name)}</th><td class="num">{html.escape(m.relation)} {m.value:.6g}'
        f"{'' if m.error is None else f' ± {m.error:.2g}'}</td><td>{html.escape(m.split)}</td>"
        f"<td>{html.escape(m.told)}</td></tr>"
        for m in record.measured
    )
    table = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Numbers of {html.escape(record.name)}"><table>'
        '<thead><tr><th scope="col">number</th><th scope="col" class="num">value</th><th scope="col">of</th>'
        f'<th scope="col">protocol</th></tr></thead><tbody>{rows}</tbody></table></div>'
        if rows
        else "<p>Nothing was measured.</p>"
    )
    wrong = "".join(f"<li>{html.escape(defect)}</li>" for defect in record.defects)
    return (
        f'<details class="about" id="run-{number}" data-run="{number}"><summary>{html.escape(record.name)} '
        f"<small>{html.escape(record.when)}</small></summary><dl>{listed}</dl>"
        f"{f'<ul>{wrong}</ul>' if wrong else ''}{table}</details>"
    )


def _data(board: Board, numbers: dict[Record, int], labels: dict[Record, str]) -> str:
    """What the page draws, as JSON that cannot end its element."""
    models = list(dict.fromkeys(record.model for record in board.records))
    runs = [
        {
            "id": numbers[row.record],
            "label": labels[row.record],
            "model": row.record.model,
            "group": place,
            "colour": models.index(row.record.model) % COLOURS,
            "curves": [
                {"x": block.images, "s": [_rounded(s) for s in block.seconds], "y": _curves(block.curves)}
                for block in row.record.table.blocks
            ],
            "points": {
                key: {"v": cell.value, "t": cell.text, "b": cell.block, "n": cell.note}
                for key, cell in row.cells.items()
                if math.isfinite(cell.value)
            },
            "samplings": _samplings(row.record, [column.key for column in board.columns]),
            "settings": {key: value for key, value in row.record.settings.items() if not NOT_TELLING.fullmatch(key)},
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
        if shown and m.name in names and m.seconds_per_sample is not None and math.isfinite(m.value):
            changes = ", ".join(f"{key} {value}" for key, value in flat(m.changes))
            point = {"v": m.value, "seconds_per_sample": m.seconds_per_sample, "nfe": m.nfe}
            found.setdefault(m.name, []).append(
                point | {"comparison_key": m.comparison_key, "how": m.protocol.sampler or changes}
            )
    return found


def _curves(curves: dict[str, list[float]]) -> dict[str, list[float | None]]:
    return {name: [_rounded(value) for value in values] for name, values in curves.items()}


def _rounded(value: float) -> Any:
    """Five digits, which is more than a screen shows; what is no number becomes a gap."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
