"""The board of the README is made from committed records of real runs, and nobody has touched it since."""

import json
import re
import sys
from pathlib import Path

import pytest

from imago.board.board import Board
from imago.board.claims import answers
from imago.board.records import read_record

from .conftest import MakeRun, likelihood, quality, rows

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
tool = __import__("board")
claims = __import__("claims")


def test_the_readme_shows_what_its_records_say() -> None:
    board = tool.board_of(tool.RECORDS)
    assert len(board.records) >= 10
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == tool.between(readme, tool.block(board)), "run make board"
    assert (ROOT / "docs" / "board.md").read_text(encoding="utf-8") == tool.page(board), "run make board"


def test_records_are_small_and_whole() -> None:
    assert sum(path.stat().st_size for path in tool.RECORDS.rglob("*")) < 1_000_000
    for record in tool.board_of(tool.RECORDS).records:
        assert {"no checkpoint"} >= set(record.defects), record.path
        assert record.table.blocks, "curves are there"


def test_a_number_that_someone_types_is_noticed(make_run: MakeRun, tmp_path: Path) -> None:
    tool.collect([make_run("logs/a")], tmp_path / "records")
    block = tool.block(tool.board_of(tmp_path / "records"))
    readme = tool.between(f"before\n{tool.MARKS[0]}\nold\n{tool.MARKS[1]}\nafter\n", block)
    assert readme.startswith("before\n")
    assert readme.endswith("\nafter\n")
    assert tool.between(readme, block) == readme, "once is enough"
    typed = readme.replace("= 0.184", "= 0.183")
    assert typed != readme
    assert tool.between(typed, block) == readme
    with pytest.raises(SystemExit, match=r"README\.md lacks the marks"):
        tool.between("nothing", block)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("/data", "data"),
        ("~/imago/data", "data"),
        ("../alice/data", "data"),
        ("dir='/srv/a/b.pt', more", "dir='b.pt', more"),
        (r"C:\\data\\mnist", "mnist"),
        ("C:/data/mnist/", "mnist"),
        (r"\\\\server\\share\\x", "x"),
        ("[file:///srv/a/b,/c/d]", "[b,d]"),
        ("see https://example.org/a/b?x=/c/d", "see https://example.org/a/b?x=/c/d"),
        ("255 / 2, val/bpd, a/b, ./c, 100 images/s, //", "255 / 2, val/bpd, a/b, ./c, 100 images/s, //"),
    ],
)
def test_paths_of_a_machine_keep_their_last_part(said: str, kept: str) -> None:
    assert tool.anonymous({"key": [said]}) == {"key": [kept]}


def test_a_record_says_the_same_as_its_run_without_the_machine(make_run: MakeRun, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "data")
    cost = quality(seconds_per_sample=0.25, nfe=100)
    run = make_run(
        "logs/sweep/3-made-mnist",
        config={"logs": elsewhere, "word": "255 / 2, val/bpd"},
        summary={"command": f"python {elsewhere}/train.py logs={elsewhere}", "traceback": elsewhere},
        metrics=rows([300 / (k + 1) for k in range(500)]),
        evaluation=[
            {"name": "test/nats", "value": 90.0, "protocol": likelihood("test"), "checkpoint": "last.ckpt"},
            {"name": "fd_classifier", "value": 1.0, "protocol": cost},
        ],
    )
    assert tool.collect([run], tmp_path / "records") == []
    (copied,) = (tmp_path / "records").iterdir()
    assert all(str(tmp_path) not in path.read_text() for path in copied.iterdir())
    assert not (copied / "checkpoints").exists()
    ours, theirs = read_record(run), read_record(copied)
    assert theirs.settings["word"] == "255 / 2, val/bpd"
    assert theirs.settings["logs"] == "data"
    assert json.loads((copied / "summary.json").read_text())["command"] == "python train.py logs=data"
    cells = [Board([record]).groups[0].rows[0].cells for record in (ours, theirs)]
    assert {k: (c.text, c.note) for k, c in cells[0].items()} == {k: (c.text, c.note) for k, c in cells[1].items()}
    measured = [[b.curves["val/nats"] for b in r.table.blocks if "val/nats" in b.curves] for r in (ours, theirs)]
    assert measured[0] == [pytest.approx(values, rel=1e-5) for values in measured[1]], "every measurement"
    assert theirs.table.last["time/training_seconds"] == ours.table.last["time/training_seconds"]


def test_what_cannot_be_collected_is_named_and_the_rest_is(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run("one/a", metrics=rows([9.0, 8.0])[:-9]),
        make_run("two/a"),
        make_run("one/b", status="running"),
        make_run("one/c", summary='{"name": "x", "sta'),
    ]
    said = tool.collect(runs, tmp_path / "records")
    assert [path.name for path in sorted((tmp_path / "records").iterdir())] == ["a", "a-2"]
    assert [re.sub(r".*/", "", line) for line in said] == [
        "b: still running, left out",
        "c: damaged, left out: summary.json cannot be read (damaged or cut short)",
    ]


def test_answers_are_written_below_what_a_person_wrote(make_run: MakeRun) -> None:
    def answered(*runs: Path) -> list[object]:
        return answers(Board(map(read_record, runs)))

    one = make_run("a", evaluation=[{"name": "test/bpd", "value": 1.5, "protocol": likelihood("test")}])
    page = claims.answered("# Head\n\nWritten by hand.\n\n## Claims\n\nold answers\n", answered(one))
    assert page.startswith("# Head\n\nWritten by hand.\n\n## Claims\n\n1 of ")
    assert "old answers" not in page
    assert "### Which has a computable p(x)?" in page
    assert "= 1.500" in page
    assert claims.answered(page, answered(one)) == page, "once is enough"
    with pytest.raises(SystemExit, match="lacks the heading"):
        claims.answered("nothing", answered(one))
    with pytest.raises(SystemExit, match="of one data set, these are of 2"):
        claims.answered(page, answered(one, make_run("b", data="cifar10")))


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_pages_of_claims_have_their_place(name: str) -> None:
    assert claims.HEADING in (ROOT / "docs" / f"claims-{name}.md").read_text(encoding="utf-8")
