"""The board of README.md and docs/board.md, from small records of real runs: ``make board RUNS='logs/sweeps/x/*'``.

With ``RUNS`` their records are copied into docs/board/, in place of those that are there, and the page's picture is
taken; without, the two texts are written anew from the records. Records are text: config.yaml, summary.json,
evaluation.json and a thinned metrics.csv, without checkpoints and pictures and the paths of the machine that trained.
"""

import argparse
import csv
import json
import re
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from photo import ROOT, photograph

from imago.board.board import Board
from imago.board.find import find_runs
from imago.board.page import write_page
from imago.board.records import Record, read_record
from imago.board.text import READING, short_tables
from imago.paths import anonymous
from imago.sweeps import command_of
from imago.tables import CLOCK

RECORDS = ROOT / "docs" / "board"
MARKS = ("<!-- board: `make board` writes what follows -->", "<!-- board: end -->")
# Of a summary, what boards do not show.
UNWANTED = ("notices", "untrained", "unmeasured", "train", "traceback", "wandb_id", "wandb_mode", "versions", "best")
ROWS = 40  # of training, of a metrics.csv
# Columns that the README does without.
SHORTER = (
    "nats",
    "kid",
    "kd_",
    "fd_infinity",
    "mind",
    "clipped",
    "edge_width",
    "density",
    "coverage",
    "inception_score",
    "authenticity",
    "copies",
    "peak_memory_mib",
)


def collect(runs: Iterable[Path], folder: Path) -> list[str]:
    """Copy the records of runs into a folder, one folder each; what is left out and why."""
    said = []
    for run in runs:
        record = read_record(run)
        if record.status == "running":
            said.append(f"{run}: still running, left out")
            continue
        place, count = folder / run.name, 1
        while place.exists():
            count += 1
            place = folder / f"{run.name}-{count}"
        try:
            thinned = {
                name: thin((run / name).read_text(encoding="utf-8"))
                for name, thin in FILES.items()
                if (run / name).exists()
            }
        except (ValueError, AttributeError, yaml.YAMLError):
            said.append(f"{run}: damaged, left out: {'; '.join(record.defects)}")
            continue
        place.mkdir(parents=True)
        for name, text in thinned.items():
            (place / name).write_text(text, encoding="utf-8")
    return said


def thin_config(text: str) -> str:
    """config.yaml without absolute paths."""
    return yaml.safe_dump(anonymous(yaml.safe_load(text)), sort_keys=False)


def thin_summary(text: str) -> str:
    """summary.json without absolute paths and what boards do not show."""
    summary = json.loads(text)
    kept = {key: entry for key, entry in summary.items() if key not in UNWANTED}
    if command := command_of(summary):  # it can be typed again in the repository's folder
        kept["command"] = re.sub(r"^python \S*?((src/)?\w+\.py)(?!\S)", r"python \1", command)
    return json.dumps(anonymous(kept), indent=1) + "\n"


def thin_results(text: str) -> str:
    """evaluation.json without absolute paths."""
    return json.dumps(anonymous(json.loads(text)), indent=1) + "\n"


def thin_table(text: str) -> str:
    """metrics.csv with every measurement, some rows of training, the last of both kinds, and numbers of 10 digits."""
    reader = csv.DictReader(text.splitlines())
    names = [name for name in reader.fieldnames or [] if not name.startswith("train/gradient_norm")]
    rows = list(reader)
    training = [k for k, row in enumerate(rows) if row.get(CLOCK)]
    stride = -(-len(training) // ROWS)
    kept = {k for k, row in enumerate(rows) if not row.get(CLOCK)} | {*training[:: stride or 1], *training[-1:]}
    lines = [",".join(_short(row.get(name) or "") for name in names) for k, row in enumerate(rows) if k in kept]
    return "\n".join([",".join(names), *lines]) + "\n"


def _short(number: str) -> str:
    return number if len(number) < 12 or not re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", number) else f"{float(number):.10g}"


FILES: dict[str, Callable[[str], str]] = {
    "config.yaml": thin_config,
    "summary.json": thin_summary,
    "metrics.csv": thin_table,
    "evaluation.json": thin_results,
}


def board_of(folder: Path) -> Board:
    """The board of collected records."""
    return Board(read_record(run) for run in find_runs([str(folder)])[0])


def block(board: Board) -> str:
    """What the README shows between its marks."""
    told = f"Made by `make board` from the records of these runs ([all numbers](docs/board.md)). {READING}"
    return "\n".join([*short_tables(board, SHORTER), _wrapped(told)])


def page(board: Board) -> str:
    """docs/board.md: all columns, the commands, and what one must know of a run."""
    commands = sorted({_summary(record).get("command", "unknown") for record in board.records})
    machines = sorted({record.machine for record in board.records})
    # Checkpoints are left out of records on purpose.
    defects = {r: [d for d in r.defects if d != "no checkpoint"] for r in board.records}
    names = {record: label for group in board.groups for record, label in group.labels.items()}
    lines = ["# The board of these runs", "", "    make board RUNS='logs/sweeps/<time>/*'", ""]
    lines += ["collects the records of runs in [board/](board/) and writes this page and the board of the README; ",
              "`make board` alone writes them anew. Trained by", ""]  # fmt: skip
    lines += [*(f"    {command}" for command in commands), "", f"on {'; '.join(machines)}.", ""]
    lines += short_tables(board)
    known = [f"- {names[record]}: {defect}" for record, found in defects.items() for defect in found]
    lines += ["Of these runs one must know", "", *known, ""] if known else []
    return "\n".join([*(line.rstrip() for line in lines), _wrapped(READING), ""])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)


def _summary(record: Record) -> dict[str, Any]:
    path = record.path / "summary.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def between(text: str, replacement: str) -> str:
    """A text with something else between the marks.

    Raises:
        SystemExit: it has no marks.
    """
    before, first, rest = text.partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not first or not last:
        raise SystemExit(f"README.md lacks the marks {MARKS[0]} and {MARKS[1]}")
    return f"{before}{first}\n\n{replacement}\n\n{last}{after}"


def photograph_board(runs: list[Path], picture: Path) -> None:
    """Take the picture of the page of these runs below its table."""
    others = ":is(body > *, main > *):not(main, [aria-labelledby=h-curves], [aria-labelledby=h-cost], "
    others += "[aria-labelledby=h-samples])"
    with tempfile.TemporaryDirectory() as folder:
        write_page(Board(map(read_record, runs)), Path(folder) / "board.html")
        photograph(Path(folder) / "board.html", picture, width=1500, hidden=others)


def main() -> None:
    """Collect if there is something to collect, then write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("runs", nargs="*", help="run directories, folders that hold some, or globs")
    places = [place for place in parser.parse_args().runs if not Path(place).is_file()]  # a sweep's multirun.yaml
    if places:
        runs, empty = find_runs(places)
        if not runs:
            raise SystemExit(f"error: RUNS={' '.join(places)}: {'; '.join(empty)}")
        with tempfile.TemporaryDirectory() as folder:
            said = collect(runs, Path(folder) / "board")
            if not (Path(folder) / "board").exists():
                raise SystemExit(f"error: RUNS={' '.join(places)}: {'; '.join(said)}")
            shutil.rmtree(RECORDS, ignore_errors=True)
            shutil.copytree(Path(folder) / "board", RECORDS)
        print("\n".join([*said, *empty]), end="\n" if said or empty else "")
        photograph_board(runs, ROOT / "docs" / "images" / "board.png")
    board = board_of(RECORDS)
    readme = ROOT / "README.md"
    readme.write_text(between(readme.read_text(encoding="utf-8"), block(board)), encoding="utf-8")
    (ROOT / "docs" / "board.md").write_text(page(board), encoding="utf-8")
    size = sum(path.stat().st_size for path in RECORDS.rglob("*") if path.is_file())
    print(f"{len(board.records)} runs, {size / 1000:.0f} kB of records: README.md, docs/board.md")


if __name__ == "__main__":
    main()
