"""What is ranked with what, and what the tables say."""

import csv
import math
import re
from pathlib import Path
from typing import Any

import pytest

from imago.board.board import Board, duration, si
from imago.board.records import read_record
from imago.board.text import short_tables, show, write_csv, write_markdown

from .conftest import MakeRun, likelihood, quality


def measured(value: float, name: str = "test/nats", **protocol: Any) -> dict[str, Any]:
    kind = likelihood("test") if "nats" in name or "bpd" in name else quality()
    return {"name": name, "value": value, "protocol": kind | protocol}


def order(board: Board, group: int = 0) -> list[str]:
    return [row.record.started for row in board.groups[group].rows]


def test_runs_on_other_data_or_another_binarisation_are_groups_of_their_own(make_run: MakeRun) -> None:
    runs = [
        make_run("a", evaluation=[measured(90.0)]),
        make_run("b", evaluation=[measured(80.0, likelihood="lower_bound")], model="vae"),
        make_run("c", binarize="threshold", evaluation=[measured(10.0)]),
        make_run("d", binarize=None, spec={"channels": 1, "height": 28, "width": 28, "levels": 256}),
        make_run("own", binarize=None, config={"data": {"_target_": "imago.data.folder_data", "path": "my/mnist"}}),
        make_run("e", data="cifar10", binarize=None, spec={"channels": 3, "height": 32, "width": 32, "levels": 256}),
    ]
    board = Board(map(read_record, runs))
    assert [(str(g.data), order(board, k)) for k, g in enumerate(board.groups)] == [
        ("mnist, 28×28 gray, binarised (dynamic)", ["b", "a"]),
        ("cifar10, 32×32 RGB", ["e"]),
        ("mnist, 28×28 gray", ["d"]),
        ("mnist, 28×28 gray, binarised (threshold)", ["c"]),
        ("mnist, own images, 28×28 gray", ["own"]),
    ]
    cells = [row.cells["nats"] for group in board.groups for row in group.rows]
    assert [(cell.text, cell.best) for cell in cells] == [
        ("≤ 80.00 ± 0.25", True), ("= 90.00 ± 0.25", False), ("= 100.00", False), ("= 100.00", False),
        ("= 10.00 ± 0.25", False), ("= 100.00", False),
    ]  # fmt: skip


def test_a_run_that_broke_before_its_data_were_known_stands_with_those_it_was_to_join(make_run: MakeRun) -> None:
    broken = make_run("broken", summary={"spec": None, "status": "failed"}, checkpoint=None, metrics=None)
    board = Board(map(read_record, [broken, make_run("whole")]))
    assert order(board) == ["whole", "broken"]
    assert len(board.groups) == 1


def test_numbers_of_different_protocols_are_apart_and_lead_only_their_own(make_run: MakeRun) -> None:
    """Test before validation whatever the values; fewer images, labels or another version of the data are apart."""
    runs = [
        make_run("val-1", summary={"metrics": {"val/nats": {"value": 1.0, "protocol": likelihood()}}}),
        make_run("val-2", summary={"metrics": {"val/nats": {"value": 2.0, "protocol": likelihood()}}}),
        make_run("test-5", evaluation=[measured(5.0)]),
        make_run("test-4", evaluation=[measured(4.0)]),
        make_run("few", evaluation=[measured(3.0, images=100)]),
        make_run("labels", evaluation=[measured(2.0, conditional=True)]),
        make_run("version", evaluation=[measured(1.0, data_fingerprint="beef")], metrics=None),
    ]
    board = Board(map(read_record, runs))
    assert order(board)[:2] == ["test-4", "test-5"]
    assert order(board)[-2:] == ["val-1", "val-2"]
    leading = {row.record.started: row.cells["nats"].best for row in board.groups[0].rows}
    assert [name for name, best in leading.items() if best] == ["test-4", "val-1"]
    (version,) = [row.record for row in board.groups[0].rows if row.record.started == "version"]
    assert version.defects[-1].startswith("another version of mnist (beef) than in most runs (f7b1)")


def test_distances_rank_by_extractor_and_count_wherever_they_were_measured(make_run: MakeRun) -> None:
    val = {"metrics": {"val/fd_classifier": {"value": 3.0, "protocol": quality()}}}
    runs = [
        make_run("a", metrics=None, summary=val),
        make_run("b", metrics=None, evaluation=[measured(2.0, "fd_classifier"), measured(9.0, "fid", extractor="x")]),
        make_run("c", metrics=None, evaluation=[measured(1.0, "fd_classifier", samples=100, caveat="unreliable: few")]),
        make_run("d", metrics=None, evaluation=[measured(0.5, "precision"), measured(0.75, "recall_dinov2")]),
        make_run("e", metrics=None, evaluation=[measured(0.25, "precision")]),
    ]
    board = Board(map(read_record, runs))
    keys = [c.key for c in board.columns if c.key not in ("nats", "bpd")][:5]
    assert keys == ["fid", "fd_classifier", "kid", "precision", "recall_dinov2"]
    assert order(board)[0] == "b"
    cells = {row.record.started: row.cells for row in board.groups[0].rows}
    assert {name: (cell["fd_classifier"].text, cell["fd_classifier"].tag) for name, cell in cells.items()} == {
        "a": ("3", "val 10k"), "b": ("2", "eval 10k"), "c": ("1 †", "eval 100"), "d": ("–", ""), "e": ("–", ""),
    }  # fmt: skip
    leading = [name for name, cell in cells.items() if cell["fd_classifier"].best]
    assert leading == ["b"], "equal protocols, in training or after it; c drew fewer"
    assert [name for name, cell in cells.items() if cell["precision"].best] == ["d"], "more is better"
    assert "unreliable: few" in cells["c"]["fd_classifier"].note


def test_nothing_leads_in_what_held_out_images_judge(make_run: MakeRun) -> None:
    runs = [
        make_run(name, metrics=None, evaluation=[measured(value, "authenticity_classifier"), measured(value, "copies")])
        for name, value in (("a", 0.25), ("b", 0.5))
    ]
    board = Board(map(read_record, runs))
    titles = {column.key: column.title for column in board.columns}
    assert (titles["authenticity_classifier"], titles["copies"]) == ("Authentic classifier", "Copies")
    cells = [row.cells[key] for row in board.groups[0].rows for key in ("authenticity_classifier", "copies")]
    assert [(cell.text, cell.best) for cell in cells] == [("0.25", False)] * 2 + [("0.5", False)] * 2


def test_what_is_beyond_held_out_images_does_not_lead(make_run: MakeRun, tmp_path: Path) -> None:
    """A recall of 0.96 where real images have 0.87 is a fault of the samples; 0.88 ± 0.01 is not beyond them."""
    beside = {"held_out": "mnist val", "held_out_images": 10000, "held_out_value": 0.87, "repeats": 4}
    values = {"a": (0.96, 0.02), "b": (0.8, 0.02), "c": (0.88, 0.02)}
    runs = [
        make_run(name, metrics=None, evaluation=[measured(value, "recall_classifier", deviation=error, **beside)])
        for name, (value, error) in values.items()
    ]
    board = Board(map(read_record, runs))
    (group,) = board.groups
    assert [row.record.started for row in group.rows if row.cells["recall_classifier"].best] == ["c"]
    assert group.held_out is not None
    assert group.held_out.cells["recall_classifier"].text == "0.87"
    write_markdown(board, tmp_path / "board.md")
    rows = [line for line in (tmp_path / "board.md").read_text().splitlines() if line.startswith("| ")]
    assert rows[-1].startswith("| held-out images | – | ")
    assert "0.87 val 10k" in rows[-1]
    assert "| held-out images | " in "\n".join(short_tables(board))


def test_a_changed_use_of_a_model_is_no_headline(make_run: MakeRun) -> None:
    changed = measured(0.1, "fd_classifier") | {"changes": {"observation_noise": False}}
    board = Board([read_record(make_run("a", evaluation=[changed], metrics=None))])
    assert "fd_classifier" not in [column.key for column in board.columns]
    assert [m.value for m in board.records[0].measured] == [0.1]


def test_cells_say_what_is_known_and_a_dash_what_is_not(make_run: MakeRun) -> None:
    cost = quality(seconds_per_sample=0.0123, nfe=784)
    full = make_run(
        "full", parameters={"net": 1_361_884}, images_seen=3_000_000, training_seconds=2268.35,
        evaluation=[measured(0.1508, "test/bpd", standard_error=4e-4), {"name": "fid", "value": 7.1, "protocol": cost}],
    )  # fmt: skip
    nothing = dict.fromkeys(("parameters", "images_seen", "training_seconds", "peak_memory_mib"))
    bare = make_run("bare", metrics=None, checkpoint=None, **nothing)
    board = Board(map(read_record, [full, bare]))
    cells = {row.record.started: row.cells for row in board.groups[0].rows}
    assert {key: cell.text for key, cell in cells["full"].items()} == {
        "nats": "= 100.00", "bpd": "= 0.1508 ± 0.0004", "fid": "7.1", "kid": "–", "precision": "–", "recall": "–",
        "parameters": "1.36M", "images_seen": "3M", "training_seconds": "2,268 s", "seconds_per_sample": "12.3 ms",
        "nfe": "784", "peak_memory_mib": "902 MiB",
    }  # fmt: skip
    assert {cell.text for cell in cells["bare"].values()} == {"–"}
    assert "2 CPU cores, 1 of them used" in cells["full"]["seconds_per_sample"].note
    assert "net 1,361,884" in cells["full"]["parameters"].note


def test_training_is_told_in_the_seconds_that_limited_it(make_run: MakeRun, tmp_path: Path) -> None:
    """Those by the clock count what else the machine did."""
    told = {"training_seconds": 22.0, "training_cpu_seconds": 4.0}
    runs = [make_run("clock", **told), make_run("processor", config={"max_cpu_seconds": 4.0}, **told)]
    board = Board(map(read_record, runs))
    cells = {
        row.record.started: [row.cells[key].text for key in ("training_seconds", "training_cpu_seconds")]
        for row in board.groups[0].rows
    }
    assert cells == {"clock": ["22 s", "–"], "processor": ["–", "4 s"]}
    alone = Board([read_record(runs[1])])
    assert "Training, CPU" in (titles := [column.title for column in alone.groups[0].filled(alone.columns)])
    assert "Training" not in titles
    assert "training_cpu_seconds" not in [column.key for column in Board([read_record(runs[0])]).columns]


def swept(name: str, seed: int, value: float, lr: str = "0.1", **told: Any) -> dict[str, Any]:
    """Of a run of a sweep over seeds and learning rates."""
    varied = {"model.optimizer.net.lr": lr, "seed": str(seed)}
    config = {"seed": seed, "model": {"_target_": "imago.models.made.MADE", "optimizer": {"net": {"lr": float(lr)}}}}
    record = {"folder": "s", "overrides": [f"{key}={value}" for key, value in varied.items()], "varied": varied}
    measured = {"val/nats": {"value": value, "protocol": likelihood()}}
    about = {"seed": seed, "sweep": record, "metrics": measured, "name": f"made-mnist lr={lr} seed={seed}"} | told
    return {"where": name, "config": config, "summary": about, "metrics": None}


def test_runs_that_differ_in_their_seed_alone_have_a_mean_with_its_standard_error(make_run: MakeRun) -> None:
    """Of n seeds the deviation over √n; a better number of one seed, by another protocol, does not take its place."""
    runs = [
        make_run(**swept("a", 1, 90.0, training_seconds=1.0)),
        make_run(**swept("b", 2, 94.0, training_seconds=2.0), evaluation=[measured(5.0)]),
        make_run(**swept("c", 3, 98.0, training_seconds=6.0)),
        make_run(**swept("again", 3, 98.0, training_seconds=6.0)),
        make_run(**swept("broken", 4, 1.0, status="failed", error="x")),
        make_run(**swept("d", 1, 80.0, "0.2")),
        make_run(**swept("e", 2, 99.0, "0.2")),
        make_run(**swept("other", 1, 70.0, "0.3")),
    ]
    (group,) = Board(map(read_record, runs)).groups
    assert [row.record.name for row in group.means] == ["made-mnist lr=0.2", "made-mnist lr=0.1"]
    cells = group.means[1].cells
    assert (cells["nats"].text, cells["nats"].tag) == ("= 94.00 ± 2.31", "val 10k, 3 seeds")
    assert cells["training_seconds"].text == "3 s"
    assert cells["nats"].note.startswith("94; mean ± its standard error over 3 seeds: 1, 2, 3; ")
    assert [row.cells["nats"].best for row in group.means] == [True, False]
    assert len(group.rows) == len(runs)


def test_a_measurement_of_one_seed_does_not_take_the_place_of_a_mean_over_seeds(make_run: MakeRun) -> None:
    evaluation = [measured(3.0, "fd_classifier", repeats=3, deviation=0.5), measured(1.0, "fd_classifier")]
    (row,) = Board([read_record(make_run("a", evaluation=evaluation))]).groups[0].rows
    assert row.cells["fd_classifier"].value == 3.0


def test_what_sweeps_vary_has_a_column_in_every_table(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        make_run(**swept(f"{lr}-{seed}", seed, 90 + seed + 10 * float(lr), lr))
        for lr in ("0.1", "0.2")
        for seed in (1, 2)
    ]
    single = make_run("single", notices=["20 training images: too few"])
    board = Board(map(read_record, [*runs, single]))
    assert board.groups[0].settings == {"model.optimizer.net.lr": "lr", "seed": "seed"}
    write_csv(board, tmp_path / "board.csv")
    with (tmp_path / "board.csv").open(newline="") as file:
        found = {row["started"]: (row["model.optimizer.net.lr"], row["seed"]) for row in csv.DictReader(file)}
    assert found == {"0.1-1": ("0.1", "1"), "0.1-2": ("0.1", "2"), "0.2-1": ("0.2", "1"), "0.2-2": ("0.2", "2"),
                     "single": ("0.001", "0")}  # fmt: skip
    write_markdown(board, tmp_path / "board.md")
    text = (tmp_path / "board.md").read_text()
    assert "Mean ± standard error over seeds\n\n| run | model | lr | nats |" in text
    assert "| made-mnist lr=0.2 2 seeds | made | 0.2 | = 93.50 ± 0.50 val 10k, 2 seeds |" in text
    assert "Runs\n\n| run | model | lr | seed | nats |" in text
    assert re.search(r"^- .*/single: 20 training images: too few$", text, re.MULTILINE)
    show(board)
    told = capsys.readouterr().out
    assert re.search(r"mean ± standard error over seeds\s+run +model +lr +nats", told)
    assert re.search(r"made-mnist lr=0.1 seed=2 +made +0.1 +2 +", told)
    assert re.search(r"/single: 20 training images: too few$", told, re.MULTILINE)


def test_a_number_that_is_none_is_shown_and_never_leads(make_run: MakeRun) -> None:
    runs = [make_run("nan", evaluation=[measured(math.nan)]), make_run("a", evaluation=[measured(3.0)]),
            make_run("b", evaluation=[measured(4.0)])]  # fmt: skip
    board = Board(map(read_record, runs))
    assert order(board) == ["a", "b", "nan"]
    assert [row.cells["nats"].best for row in board.groups[0].rows] == [True, False, False]
    assert board.groups[0].rows[2].cells["nats"].text == "= nan ± 0.25"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1k"), (999_600, "1M"), (1_361_884, "1.36M"), (2.5e9, "2.5G")]
)
def test_counts_have_three_digits(count: float, text: str) -> None:
    assert si(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(2e-6, "2 µs"), (0.0123, "12.3 ms"), (1.5, "1.5 s"), (12_345.6, "12,346 s")]
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_tables_hold_every_run_with_relation_split_and_protocol(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # which decides how many columns there are
    runs = [
        make_run("a", evaluation=[measured(90.125)]),
        make_run("b", evaluation=[measured(80.0, likelihood="lower_bound")], model="vae", name="a|b [bold]<script>"),
        make_run("c", binarize="threshold", checkpoint=None),
    ]
    board = Board(map(read_record, runs))
    write_csv(board, tmp_path / "board.csv")
    with (tmp_path / "board.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["started"] for row in found] == ["b", "a", "c"]
    assert [(row["nats"], row["nats_relation"], row["nats_split"], row["nats_error"]) for row in found] == [
        ("80.0", "≤", "test", "0.25"), ("90.125", "=", "test", "0.25"), ("100.0", "=", "val", ""),
    ]  # fmt: skip
    assert "data mnist test" in found[0]["nats_protocol"]
    assert (found[2]["defects"], found[2]["fid"]) == ("no checkpoint", "")
    assert found[0]["data"] == "mnist, 28×28 gray, binarised (dynamic)"

    write_markdown(board, tmp_path / "board.md")
    text = (tmp_path / "board.md").read_text()
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.split(r"(?<!\\)\|", line)) for line in tables[:4]}
    assert len(widths) == 1, "a name does not break the table"
    assert "<script>" not in text
    assert "| **≤ 80.00 ± 0.25** test 10k |" in text
    assert re.search(r"^- .*/c: no checkpoint$", text, re.MULTILINE)

    show(board)
    told = capsys.readouterr().out
    assert "a|b [bold]<script>" in told, "rich takes no name for markup"
    assert "≤ 80.00 ± 0.25 test 10k" in told
    assert re.search(r"/c: no checkpoint$", told, re.MULTILINE)
    assert "KID" not in told, "columns that are empty are left out here"


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 200])
def test_the_terminal_leaves_out_columns_and_cuts_no_number(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """What there is no room for is named, the cost of a run before its numbers; a run takes as few lines as it can."""
    more = [measured(3.0625, "fd_classifier"), measured(2.5, "fid")]
    runs = [make_run(f"sweeps/a_sweep/{k}-a_long_name", evaluation=[measured(160.125 + k), *more]) for k in range(3)]
    monkeypatch.setenv("COLUMNS", str(width))
    show(Board(map(read_record, runs)))
    printed = capsys.readouterr().out.splitlines()
    table, rest = printed[: printed.index("")], printed[printed.index("") :]
    assert max(map(len, table)) <= width
    assert "…" not in "".join(printed)
    assert all(any(f"= {160.125 + k:.2f} ± 0.25" in line for line in table) for k in range(3))
    assert len([line for line in table if line.strip()]) <= 4 + 3 * (4 if width < 60 else 2)
    titles = ["nats", "FID", "status", "FD", "Images", "Training", "Parameters", "Memory"]
    shown = [title for title in titles if title in " ".join(table)]
    assert shown == titles[: len(shown)], "the least important are left out first"
    (said,) = [line for line in rest if line.startswith("no room here: ")] or [""]
    assert all(title in said for title in titles[len(shown) :])
    assert not said or ("wider terminal" in said and "board.html" in said)
    assert (said == "") == (width >= 140)
