"""Whatever is in the directories of others, every run is shown or named, and what is written executes nothing."""

import copy
import csv
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from helpers import Command
from imago.board.board import Board
from imago.board.claims import answers
from imago.board.claims_page import write_claims_markdown, write_claims_page
from imago.board.find import find_runs
from imago.board.page import write_page
from imago.board.pictures import picture_of
from imago.board.records import Record, read_record
from imago.board.text import escaped, inert, show, write_csv, write_markdown

from .conftest import MakeRun, likelihood, quality, rows

# A formula, a script, a picture elsewhere, code, a cell's end, a cleared terminal, a change of direction, an address.
EVIL = (
    '=HYPERLINK("http://x.example")<script>alert(1)</script>![x](http://x.example/x.png)`|\x1b[2J\u202e\x9b2J@x www.x.y'
)
VALUES: list[Any] = [
    *(None, True, 0, -1, 1.5, 10**18 + 1, 10**30, 1e308, 5e-324, float("nan"), float("inf"), "", "1e400", "x" * 50_000),
    *(EVIL, f"{EVIL}\r\n={EVIL}", [], {}, [[]], [1, "x"], {"a": {"b": 1}}, {EVIL: EVIL}, [{"_target_": EVIL}]),
    *({"value": "x"}, {"value": 10**30, "protocol": 3}),
]


def ways(node: Any, *keys: Any) -> Iterator[tuple[Any, ...]]:
    """The ways to everything in plain data."""
    if keys:
        yield keys
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from ways(value, *keys, key)


def with_value(node: Any, keys: tuple[Any, ...], value: Any) -> Any:
    node = copy.deepcopy(node)
    inside = node
    for key in keys[:-1]:
        inside = inside[key]
    inside[keys[-1]] = value
    return node


def written(records: list[Record], folder: Path) -> dict[str, str]:
    """Everything that compare writes about runs, by file."""
    board = Board(records)
    assert sorted(map(id, board.records)) == sorted(map(id, records))
    write_page(board, folder / "board.html")
    write_csv(board, folder / "board.csv")
    write_markdown(board, folder / "board.md")
    claims = answers(board)
    write_claims_page(claims, folder / "claims.html")
    write_claims_markdown(claims, folder / "claims.md")
    names = ("board.html", "board.csv", "board.md", "claims.html", "claims.md")
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}


def assert_inert(files: dict[str, str], shown: str) -> None:
    """Nothing in it is more than text, wherever it is opened."""
    steering = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
    for name, text in (*files.items(), ("terminal", shown)):
        assert not steering.search(text.replace("\r\n", "\n")), name
    for name in ("board.html", "claims.html"):
        page = files[name]
        assert "<script>alert" not in page
        assert not re.search(r'(src|href)="(?!data:|#|board\.html"|[^":]*/")', page)
    for name in ("board.md", "claims.md"):
        prose = "\n".join(line for line in files[name].splitlines() if not line.startswith("    "))  # no commands
        assert not re.search(r"<\w|(?<!\\)!\[|(?<!\\)\]\(|(?<!\\)`=|\w://|www\.", prose)
    for row in csv.reader(files["board.csv"].splitlines()):
        assert not [cell for cell in row if (len(cell) > 1 and cell[0] in "=+@") or re.match(r"-\D", cell)]


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_wrong_values_at_every_key(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    """Each of two dozen values, or every fourth, another of them at each key, in place of each value of each file.

    Every run is read, and all are shown together.
    """
    path = make_run(
        "base",
        checkpoint=None,
        metrics=rows([9.0]),
        evaluation=[
            {"name": "test/nats", "value": 9.5, "checkpoint": "last.ckpt", "protocol": likelihood("test")},
            {"name": "fd_classifier", "value": 3.5, "protocol": quality(seconds_per_sample=0.1, nfe=2)},
        ],
        metrics_kept=3,
    )
    summary = json.loads((path / "summary.json").read_text())
    summary["metrics"] = {"val/nats": {"value": 9.0, "images_seen": 5, "protocol": likelihood()}}
    evaluation = json.loads((path / "evaluation.json").read_text())
    config = yaml.safe_load((path / "config.yaml").read_text())
    records = [read_record(path)]
    assert not [defect for defect in records[0].defects if "no checkpoint" not in defect and "evaluated" not in defect]
    for name, content, write in (
        ("summary.json", summary, json.dumps),
        ("evaluation.json", evaluation, json.dumps),
        ("config.yaml", config, yaml.safe_dump),
    ):
        good = (path / name).read_text()
        for k, keys in enumerate(ways(content)):
            for value in VALUES[k % step :: step]:
                (path / name).write_text(write(with_value(content, keys, value)))
                record = read_record(path)
                assert not [defect for defect in record.defects if "read further" in defect], (keys, value)
                if len(records) % 40 == 0:
                    written([record, records[0]], tmp_path)
                records.append(record)
        (path / name).write_text(good)
    capsys.readouterr()
    some = records[:: 4 // step]
    show(Board(some))
    assert_inert(written(some, tmp_path), capsys.readouterr().out)


DEEP = "{a: " * 60_000 + "1" + "}" * 60_000
FILES: dict[str, tuple[str, bytes]] = {
    "no text": ("config.yaml", b"\xff\xfe\x00\x81"),
    "UTF-16": ("config.yaml", "seed: 0\n".encode("utf-16")),
    "nested deep": ("config.yaml", f"a: {DEEP}\n".encode()),
    "lists nested deep": ("config.yaml", b"[" * 200_000),
    "a block nested deep": ("config.yaml", b"- " * 50_000 + b"1\n"),
    "laughs": (
        "config.yaml",
        b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (k, k, k - 1, k - 1) for k in range(1, 40)),
    ),
    "merged laughs": (
        "config.yaml",
        b"a0: &a0 {x: 1}\n" + b"".join(b"a%d: &a%d {<<: [*a%d, *a%d]}\n" % (k, k, k - 1, k - 1) for k in range(1, 40)),
    ),
    "in circles": ("config.yaml", b"model: &a\n  b: *a\n  c: [*a]\n"),
    "a class": ("config.yaml", b"a: !!python/object/apply:os.system ['touch marker']\n"),
    "a long number": ("config.yaml", b"seed: " + b"9" * 5000 + b"\n"),
    "a long number in sixteens": ("config.yaml", b"seed: 0x" + b"f" * 50_000 + b"\n"),
    "a day that is none": ("config.yaml", b"seed: 2024-99-99\nname: 2024-01-01\n"),
    "a truth that is none": ("config.yaml", b"seed: !!bool x\n"),
    "a name that is a list": ("config.yaml", b"? [1, 2]\n: 3\n"),
    "a mark at the start": ("config.yaml", b"\xef\xbb\xbfseed: 0\n"),
    "large": ("config.yaml", b"a: " + b"x" * 20_000_000),
    "nested JSON": ("summary.json", b'{"a":' * 100_000),
    "a JSON number": ("summary.json", b'{"images_seen": ' + b"9" * 5000 + b', "seed": 1e400, "training_seconds": NaN}'),
    "JSON of bytes": ("summary.json", b"\x00\xff"),
    "JSON in UTF-16": ("summary.json", '{"name": "x"}'.encode("utf-16")),
    "halves of characters": (
        "summary.json",
        b'{"name": "\\ud800\\udfff\\ud800", "status": "failed", "error": "\\udc80"}',
    ),
    "a list": ("summary.json", b"[1]"),
    "results nested": ("evaluation.json", b"[" * 100_000),
    "results by name": ("evaluation.json", b'{"a": 1}'),
    "a wide table": ("metrics.csv", b"images_seen," + b"a," * 50_000 + b"\n1," + b"2," * 50_000 + b"\n"),
    "a table of bytes": ("metrics.csv", b"images_seen,\xff\xfe\x1b[2J,toString,__proto__\n1,2,3,4\n"),
    "a table of zeros": ("metrics.csv", bytes(100_000)),
    "large numbers": ("metrics.csv", b"images_seen,val/nats,time/training_seconds\n1e308,1e400,nan\ninf,1,1\n" * 3),
    "a picture of PostScript": ("samples/images-0000000300.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "no checkpoint": ("checkpoints/last.ckpt", b"PK\x05\x06" + bytes(18)),
    "a formula": ("summary.json", json.dumps({"name": EVIL, "data": EVIL, "status": EVIL, "device": EVIL}).encode()),
}


def test_every_file_of_others_is_read_or_named(
    make_run: MakeRun, tmp_path: Path, script: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thirty damaged, hostile and endless files beside a good run: all on one board, in seconds."""
    make_run("logs/good/1", picture=None)
    for k, (name, content) in enumerate(FILES.values()):
        path = make_run(f"logs/{k:02d}/=1+1\x1b[31m", picture=None)
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content)
    pipes = make_run("logs/pipes/1", picture=None)
    for name in ("config.yaml", "summary.json", "metrics.csv", "checkpoints/last.ckpt"):
        (pipes / name).unlink()
        os.mkfifo(pipes / name)
    os.mkfifo(pipes / "evaluation.json")
    (pipes / "samples").mkdir()
    os.mkfifo(pipes / "samples" / "images-0000000300.png")
    circle = make_run("logs/circle/1", picture=None)
    (circle / "inside").symlink_to(tmp_path / "logs")
    (circle / "config.yaml").unlink()
    (circle / "config.yaml").symlink_to("config.yaml")
    for name in ("one", "two"):
        (tmp_path / "logs" / name).symlink_to(tmp_path / "logs")
    (tmp_path / "logs" / "config.yaml").write_text("seed: 0\n")  # which makes logs itself look like a run
    began = time.perf_counter()
    said_of_claims = script("compare", "runs=[logs,'logs/**/1']", "report=claims")
    code, out, err = script("compare", "runs=[logs,'logs/**/1']")
    assert (code, err) == (said_of_claims[0], said_of_claims[2]) == (0, "")
    assert time.perf_counter() - began < 60
    runs, _ = find_runs(["logs"])
    assert len(runs) == len(FILES) + 4
    page = (tmp_path / "logs/board/board.html").read_text()
    assert f"{len(runs)} runs" in page
    assert not (tmp_path / "marker").exists()
    files = {
        p.name: p.read_text() for p in (tmp_path / "logs" / "board").iterdir() if p.suffix in (".html", ".csv", ".md")
    }
    assert_inert(files, out + said_of_claims[1])
    for said in (
        "no regular file",
        "nested too deep",
        "more than 100,000 entries",
        "no text in UTF-8",
        "symbolic links",
    ):
        assert said in out, said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1+1", "'=1+1"), ("+1", "'+1"), ("-x", "'-x"), ("@SUM(A1)", "'@SUM(A1)"), (" =1", "' =1"), ("＝1", "'＝1"),
        ("=", "="), ("-", "-"), ("made", "made"), ("a=1", "a=1"),
    ],
)  # fmt: skip
def test_a_spreadsheet_takes_text_for_text(text: str, shown: str) -> None:
    assert inert(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b\nc", r"a\|b c"),
        ("![x](http://e.x/y.png)", r"!\[x\](http\://e.x/y.png)"),
        ("<img src=x>", "&lt;img src=x&gt;"),
        ("www.e.x and me@e.x", r"www\.e.x and me\@e.x"),
    ],
)
def test_markdown_shows_text(text: str, shown: str) -> None:
    assert escaped(text) == shown


def too_wide(path: Path) -> None:
    Image.new("1", (9_000, 8_000)).save(path)


@pytest.mark.parametrize("make", [too_wide, lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%EOF\n")])
def test_pictures_are_of_a_sane_size_and_start_no_program(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "x.png")
    with pytest.raises((ValueError, OSError)):
        picture_of((tmp_path / "x.png").read_bytes())


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is for a user who may not; tests may run as one who always may."""
    (tmp_path / "open" / "run").mkdir(parents=True)
    (tmp_path / "open" / "run" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "shut").mkdir()
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    runs, said = find_runs([str(tmp_path)])
    assert [run.name for run in runs] == ["run"]
    assert said == [f"{tmp_path}/shut: cannot be read (Permission denied)"]


def test_a_checkpoint_speaks_for_a_run_without_files(make_run: MakeRun) -> None:
    """With the same care: what it says is text."""
    path = make_run("run", left_out=("config.yaml", "summary.json"), checkpoint=None, picture=None)
    torch.save(
        {"config": {"model": {"_target_": EVIL}, "data": {"path": f"/a/{EVIL}"}}, "spec": {"channels": 10**30}},
        path / "checkpoints" / "last.ckpt",
    )
    record = read_record(path)
    assert "the configuration is the checkpoint's" in record.defects
    assert "\x1b" not in f"{record.model}{record.data}{record.settings}"
    assert record.data.shape is None


def test_names_of_numbers_are_text_in_a_terminal(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("fd_[/]", "fd_[link=http://x.example]y")
    evaluation = [{"name": name, "value": 1.5, "checkpoint": "last.ckpt", "protocol": quality()} for name in names]
    show(Board([read_record(make_run("a", evaluation=evaluation, picture=None))]))
    shown = capsys.readouterr().out
    assert "[/]" in shown
    assert "[link" in shown
