"""What is read of a run directory, whole or damaged: every defect is named, and nothing else is lost."""

import csv
import html
import json
import math
import os
import pickle
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from helpers import configuration
from imago.board.board import Board
from imago.board.checkpoint import peek
from imago.board.find import find_runs
from imago.board.page import write_page
from imago.board.records import Data, Measured, read_record
from imago.measures import Protocol
from imago.tables import POINTS, PROCESSOR, read_table
from imago.training.run import train

from .conftest import MakeRun, likelihood, quality, rows


def test_a_trained_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Holds this reader against the writers: the table, the summary, the checkpoint, the grids."""
    config = configuration(
        "model=made", "model.hidden=[8]", "data=digits", "data.binarize=threshold", "metrics=none",
        "data.batch_size=16", "logger=csv", "trainer=cpu", f"logs={tmp_path}", "max_images=160",
        "every.likelihood=80", "every.log=32",
    )  # fmt: skip
    run = train(config, "made-digits", tmp_path / "made-digits" / "2026-01-31_12-30-00")
    record = read_record(run.path)
    assert record.defects == []
    assert (record.name, record.model, record.status, record.when) == (
        "made-digits",
        "made",
        "completed",
        "2026-01-31 12:30",
    )
    assert record.data == Data("digits", "threshold", (1, 8, 8, 2))
    assert record.settings["data.classes"] == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert record.images_seen == run.summary["images_seen"]
    assert record.parameters == run.summary["parameters"]
    headline = record.headline("nats")
    assert headline is not None
    assert (headline.relation, headline.split) == ("=", "val")
    assert headline.value == run.summary["metrics"]["val/nats"]["value"]
    assert headline.error == run.summary["metrics"]["val/nats"]["protocol"]["standard_error"]
    (block,) = [block for block in record.table.blocks if "val/nats" in block.curves]
    assert block.curves["val/nats"][-1] == pytest.approx(headline.value)
    assert block.images[-1] == record.images_seen
    assert block.seconds[0] == 0
    assert block.seconds[-1] == pytest.approx(record.training_seconds, abs=0.01)
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    (run.path / "config.yaml").write_text(yaml.safe_dump(config | {"max_cpu_seconds": 60}))
    limited = read_record(run.path)
    (block,) = [block for block in limited.table.blocks if "val/nats" in block.curves]
    rows = list(csv.DictReader((run.path / "metrics.csv").read_text().splitlines()))
    assert block.seconds[-1] in [float(row["time/training_cpu_seconds"] or "nan") for row in rows]
    assert block.seconds[-1] not in [float(row["time/training_seconds"] or "nan") for row in rows]
    assert limited.table.clock == PROCESSOR
    assert record.grid is not None
    assert peek(run.last)["progress"]["images_seen"] == record.images_seen


def test_a_healthy_run_has_no_defects(make_run: MakeRun) -> None:
    record = read_record(make_run("logs/made-mnist/2026-01-31_12-00-00"))
    assert record.defects == []
    assert record.settings["model.optimizer.net.lr"] == "0.001"
    assert record.settings["model"] == "MADE"
    assert record.machine == "2 CPU cores, 1 of them used"


DEFECTS: list[tuple[str, dict[str, Any], str]] = [
    ("no checkpoint", {"checkpoint": None}, r"^no checkpoint$"),
    ("a cut checkpoint", {"checkpoint": "PK\3\4 half"}, r"^checkpoints/last\.ckpt cannot be read \(cut short"),
    ("no table", {"metrics": None}, r"^metrics\.csv is missing$"),
    ("an empty table", {"metrics": ""}, r"^metrics\.csv cannot be read \(empty\)$"),
    ("another table", {"metrics": "a,b\r\n1,2\r\n"}, r"^metrics\.csv cannot be read \(no table with a column"),
    ("a table cut short", {"metrics": rows([9.0, 8.0])[:-9]}, r"^metrics\.csv: the last row is cut short and left"),
    ("a damaged row", {"metrics": rows([9.0, 8.0]) + "1,2\r\n"}, r"^metrics\.csv: 1 damaged row left out$"),
    ("no word, no number", {"metrics": rows([9.0]) + "1,2,x,,,,\r\n"}, r"^metrics\.csv: 1 damaged row left out$"),
    ("a cut summary", {"summary": '{"name": "x", "sta'}, r"^summary\.json cannot be read \(damaged or cut short\)$"),
    ("an odd summary", {"summary": "[1]"}, r"^summary\.json holds something else$"),
    ("no summary", {"left_out": ("summary.json",)}, r"^summary\.json is missing$"),
    ("a broken config", {"config": "a: [1"}, r"^config\.yaml cannot be read"),
    ("no config", {"left_out": ("config.yaml",)}, r"^config\.yaml is missing$"),
    ("a failed run", {"status": "failed", "error": "DivergedError: nan\nmore"}, r"^failed: DivergedError: nan$"),
    ("cut results", {"evaluation": "[{"}, r"^evaluation\.json cannot be read \(damaged or cut short\)$"),
    ("odd results", {"evaluation": [{"name": "fid"}, {"value": 1}]}, r"^evaluation\.json: 2 without name and number"),
    (
        "another data set",
        {"evaluation": [{"name": "test/nats", "value": 9.0, "protocol": likelihood("test", data="cifar10 test")}]},
        r"^nats was measured on cifar10, the run is of mnist: left out$",
    ),
    (
        "another version",
        {"evaluation": [{"name": "test/nats", "value": 9.0, "protocol": likelihood("test", data_fingerprint="beef")}],
         "metrics": None, "summary": {"metrics": {"val/nats": {"value": 9.5, "protocol": likelihood()}}}},
        r"^measured on different versions of mnist \(f7b1, beef\)$",
    ),
    (
        "an older evaluation",
        {"evaluation": [{"name": "test/nats", "value": 9.0, "checkpoint": "last.ckpt", "images_seen": 100,
                         "protocol": likelihood("test")}]},
        r"^evaluated after 100 images, but last\.ckpt has seen 200; evaluate again$",
    ),
    (
        "too few samples",
        {"evaluation": [
            {"name": name, "value": 9.0, "protocol": quality(samples=40, caveat=caveat)}
            for name, caveat in {
                "fid": "unreliable: 40 images for covariances of 2048 features; compare at equal counts only",
                "kid": "subsets of 40 instead of 1000: too few images",
                "precision": "none",
            }.items()
        ]},
        r"^fid: unreliable: 40 images for covariances of 2048 features; compare at equal counts only$",
    ),
    (
        "too few for subsets",
        {"evaluation": [
            {"name": name, "value": 9.0, "protocol": quality(caveat="subsets of 40 instead of 1000: too few images")}
            for name in ("kid", "kd_dinov2")
        ]},
        r"^kid, kd_dinov2: subsets of 40 instead of 1000: too few images$",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), [d[1:] for d in DEFECTS], ids=[d[0] for d in DEFECTS])
def test_a_defect_is_named_in_one_line(make_run: MakeRun, given: dict[str, Any], message: str) -> None:
    record = read_record(make_run("run", **given))
    (named,) = [defect for defect in record.defects if re.search(message, defect)]
    assert "\n" not in named
    assert record.data.name == "mnist", "the rest is read all the same"
    assert record.model == "made"


def test_a_checkpoint_of_another_data_set_is_named(make_run: MakeRun) -> None:
    other = make_run("other", data="cifar10", binarize=None)
    foreign = {"config": yaml.safe_load((other / "config.yaml").read_text())}
    foreign |= {"spec": {"channels": 3, "height": 32, "width": 32, "levels": 256}, "progress": {"images_seen": 200}}
    record = read_record(make_run("run", checkpoint=foreign))
    said = "the checkpoint is of another data set (cifar10, 32×32 RGB; the run: mnist, 28×28 gray, binarised (dynamic))"
    assert record.defects == [said]


def test_a_bound_is_no_lack_of_images(make_run: MakeRun) -> None:
    said = "from a lower bound of the likelihood: the true value is smaller or equal; of the first 500 of 10000 images"
    results = [{"name": "test/nats", "value": 9.0, "protocol": likelihood("test", "lower_bound", caveat=said)}]
    assert read_record(make_run("run", evaluation=results)).defects == []


def test_one_damaged_run_does_not_keep_the_others_from_the_board(make_run: MakeRun, tmp_path: Path) -> None:
    """Everything at once that may be wrong: each is a line, and a whole run leads as if it were alone."""
    other = make_run("other", data="cifar10", binarize=None)
    foreign = {"config": yaml.safe_load((other / "config.yaml").read_text()), "progress": {}, "spec": {}}
    few = quality(
        samples=40, caveat="unreliable: 40 images for covariances of 56 features; compare at equal counts only"
    )
    good = [{"name": "test/nats", "value": 90.0, "protocol": likelihood("test")}]
    version = [{"name": "test/nats", "value": 1.0, "protocol": likelihood("test", data_fingerprint="beef")}]
    runs = {
        "bare": make_run("bare", checkpoint=None),
        "cut": make_run("cut", metrics=rows([9.0, 8.0])[:-9]),
        "foreign": make_run("foreign", checkpoint=foreign),
        "version": make_run("version", evaluation=version, metrics=None, summary={"metrics": {}}),
        "few": make_run("few", evaluation=[{"name": "fd_classifier", "value": 3.0, "protocol": few}]),
        "good": make_run("good", evaluation=good),
        "too": make_run("too", evaluation=good),
    }
    board = Board(map(read_record, runs.values()))
    said = {
        record.started: [d for d in record.defects if "metrics.csv is missing" not in d] for record in board.records
    }
    assert {name: len(lines) for name, lines in said.items()} == {
        "bare": 1, "cut": 1, "foreign": 1, "version": 1, "few": 1, "good": 0, "too": 0,
    }  # fmt: skip
    assert all("\n" not in line for lines in said.values() for line in lines)
    (group,) = board.groups
    assert {row.record.started for row in group.rows if row.cells["nats"].best} >= {"good", "too"}
    write_page(board, tmp_path / "board.html")
    page = (tmp_path / "board.html").read_text()
    assert all(html.escape(line) in page for lines in said.values() for line in lines)


def test_with_a_checkpoint_alone_a_run_is_still_known(make_run: MakeRun) -> None:
    path = make_run("vae-mnist/old", model="vae", left_out=("config.yaml", "summary.json", "metrics.csv"))
    assert find_runs([str(path.parent)]) == ([path], [])
    record = read_record(path)
    assert (record.model, record.data, record.images_seen) == ("vae", Data("mnist", "dynamic", (1, 28, 28, 2)), 200)
    assert "the configuration is the checkpoint's" in record.defects


def test_a_run_of_nothing_is_still_a_record(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    record = read_record(tmp_path / "run")
    assert (record.status, record.model, record.data.name, record.images_seen) == (
        "unknown",
        "unknown",
        "unknown",
        None,
    )
    assert record.headline("nats") is None


def test_an_older_run_without_protocols_shows_its_last_validation(make_run: MakeRun) -> None:
    """Its summary has no metrics: what the table says is taken, with the kind of likelihood that the summary knows."""
    record = read_record(make_run("run", likelihood="lower_bound", parameters={"encoder": 3, "decoder": 4}))
    headline = record.headline("nats")
    assert headline is not None
    assert (headline.value, headline.relation, headline.split, headline.error) == (100.0, "≤", "val", None)
    assert "protocol unknown" in headline.told
    assert record.parameters["total"] == 7


def test_a_running_run_is_as_far_as_its_table(make_run: MakeRun) -> None:
    path = make_run("run", status="running", images_seen=100, training_seconds=0.5, metrics=rows([9.0] * 11))
    record = read_record(path)
    assert (record.images_seen, record.training_seconds, record.peak_memory_mib) == (1000, 5.0, 910.0)
    assert record.defects == []
    long_ago = time.time() - 7 * 3600
    for name in ("metrics.csv", "summary.json"):
        os.utime(path / name, (long_ago, long_ago))
    assert read_record(path).defects == ["says running, but has written nothing for 7 hours: killed?"]


def test_the_test_split_comes_before_validation_and_more_images_before_fewer(make_run: MakeRun) -> None:
    def result(value: float, split: str, **more: Any) -> dict[str, Any]:
        changes = {"changes": more.pop("changes")} if "changes" in more else {}
        return {"name": f"{split}/nats", "value": value, "protocol": likelihood(split, **more), **changes}

    results = [
        result(1.0, "test", images=100),
        result(2.0, "test"),
        result(3.0, "test", standard_error=0.5),  # the newer one of as many
        result(4.0, "val", images=50000),
        result(5.0, "test", images=90000, changes={"observation_noise": False}),
    ]
    summary = {"metrics": {"val/nats": {"value": 6.0, "protocol": likelihood()}}}
    record = read_record(make_run("run", evaluation=results, summary=summary))
    headline = record.headline("nats")
    assert headline is not None
    assert (headline.value, headline.split, headline.error) == (3.0, "test", 0.5)
    assert [m.value for m in record.measured if m.name == "nats"] == [6.0, 1.0, 2.0, 3.0, 4.0, 5.0], "none is lost"


def test_the_model_is_the_choice_that_its_settings_are_like(make_run: MakeRun) -> None:
    for model in ("row_lstm", "diagonal_bilstm", "gan", "dcgan", "vae"):
        assert read_record(make_run(model, model=model, name="my run")).model == model
    toy = read_record(make_run("toy", config={"model": {"_target_": "imago.models.toy.Toy"}}))
    assert toy.model == "Toy"


def test_parts_of_a_bound_are_no_bounds(make_run: MakeRun) -> None:
    older = likelihood("test", kind="lower_bound")  # which the protocols of parts once said too
    results = [{"name": f"test/{name}", "value": 1.0, "protocol": older} for name in ("nats", "elbo/kl", "iw/nats")]
    record = read_record(make_run("run", evaluation=results))
    assert {m.name: m.relation for m in record.measured if m.split == "test"} == {
        "nats": "≤",
        "elbo/kl": "",
        "iw/nats": "≤",
    }


def test_the_cost_of_a_sample_is_what_its_measurement_says(make_run: MakeRun) -> None:
    fast = {"name": "fd_classifier", "value": 2.0, "changes": {"sampler": {"steps": 5}},
            "protocol": quality(seconds_per_sample=0.001, nfe=5)}  # fmt: skip
    slow = {"name": "fd_classifier", "value": 1.0, "protocol": quality(seconds_per_sample=0.25, nfe=1000)}
    record = read_record(make_run("run", evaluation=[slow, fast]))
    assert record.sampling is not None
    assert (record.sampling.protocol.seconds_per_sample, record.sampling.protocol.nfe) == (0.25, 1000)
    assert [m.told.endswith("with sampler.steps=5") for m in record.measured if m.split == "eval"] == [False, True]


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    torch.save({"config": {"seed": 3}, "spec": Bomb(), "progress": {}}, tmp_path / "a.ckpt", pickle_module=pickle)
    assert peek(tmp_path / "a.ckpt") == {"config": {"seed": 3}, "spec": {}, "progress": {}}
    assert not (tmp_path / "exploded").exists()


def test_the_last_row_of_training_stands_before_many_measurements(tmp_path: Path) -> None:
    lines = ["images_seen,updates,val/nats,train/nats,time/training_seconds"]
    lines += [f"{k},{k},,{k},{k / 10}" for k in range(1, 2004)]
    lines += [f"2003,2003,{k},," for k in range(5)]
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    last = read_table(tmp_path / "metrics.csv").last
    assert (last["train/nats"], last["val/nats"]) == (2003, 4)


def test_a_long_table_is_thinned_but_keeps_every_measurement_and_the_end(tmp_path: Path) -> None:
    lines = ["images_seen,updates,val/nats,train/nats,time/training_seconds"]
    for k in range(1, 20_001):
        lines.append(f"{k},{k},,{1 / k},{k / 10}")
        if k % 2500 == 0:
            lines.append(f"{k},{k},{100 - k / 1000},,")
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    table = read_table(tmp_path / "metrics.csv")
    assert table.problems == []
    curves = {name: (block, values) for block in table.blocks for name, values in block.curves.items()}
    block, values = curves["val/nats"]
    assert block.images == [2500.0 * k for k in range(1, 9)]
    assert values == [100 - 2.5 * k for k in range(1, 9)]
    assert block.seconds == pytest.approx([250.0 * k for k in range(1, 9)])
    block, values = curves["train/nats"]
    assert 50 < len(values) <= POINTS + 1
    assert values == pytest.approx([1 / x for x in block.images])
    assert block.images[-1] == 20_000
    assert table.last["time/training_seconds"] == 2000


def test_a_measurement_between_two_rows_has_the_time_between_them(tmp_path: Path) -> None:
    text = "images_seen,val/nats,train/nats,time/training_seconds\n100,,9,10\n150,8,,\n200,,7,30\n900,6,,\n"
    (tmp_path / "metrics.csv").write_text(text)
    (block,) = [block for block in read_table(tmp_path / "metrics.csv").blocks if "val/nats" in block.curves]
    assert block.seconds == [20.0, 30.0]


def test_numbers_that_are_none_stay_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("images_seen,train/loss\n1,2\n2,nan\n3,inf\n")
    (block,) = read_table(tmp_path / "metrics.csv").blocks
    assert block.images == [1, 2, 3]
    assert math.isnan(block.curves["train/loss"][1])
    assert math.isnan(block.seconds[0])


def test_runs_are_found_below_folders_by_globs_and_by_their_files(make_run: MakeRun, tmp_path: Path) -> None:
    first, second = make_run("logs/made-mnist/1"), make_run("logs/sweeps/s/0-made-mnist")
    odd = make_run("logs/odd [1]/2")
    wandb = first / "wandb" / "offline-run-1" / "files"
    wandb.mkdir(parents=True)
    (wandb / "config.yaml").write_text("a: 1")
    (tmp_path / "logs" / ".cache").mkdir()
    (tmp_path / "logs" / ".cache" / "summary.json").write_text("{}")
    logs = str(tmp_path / "logs")
    assert find_runs([logs]) == ([first, odd, second], [])
    assert find_runs([f"{logs}/*/1", f"{logs}/sweeps", logs]) == ([first, second, odd], [])
    assert find_runs([str(odd), str(first / "checkpoints" / "last.ckpt")]) == ([odd, first], [])
    found, empty = find_runs([f"{logs}/nothing", f"{logs}/*.x", str(tmp_path / "logs" / ".cache" / "..")])
    assert len(found) == 3
    assert empty == [f"{logs}/nothing: no such folder", f"{logs}/*.x: no such folder"]


def test_results_are_read_in_the_form_that_evaluate_writes(make_run: MakeRun) -> None:
    path = make_run("run", evaluation=[])
    (path / "evaluation.json").write_text(json.dumps({"name": "fid", "value": 1.0}))
    assert "evaluation.json holds something else" in read_record(path).defects


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"no array", "each/a1.npy"),
        (np.zeros(5, np.float32), "each/a1.npy"),  # of fewer images
        (np.full(10000, np.nan, np.float32), "each/a1.npy"),
        (np.zeros(10**6, np.float32), "each/a1.npy"),
        (np.array([object()] * 10000), "each/a1.npy"),  # a pickle
        (np.zeros(10000, np.float32), "../each/a1.npy"),
    ],
)
def test_values_of_each_image_that_are_something_else_are_none(make_run: MakeRun, content: Any, named: str) -> None:
    told = {"name": "test/nats", "value": 1.0, "protocol": likelihood("test")}
    path = make_run("run", metrics=None, evaluation=[told | {"each": named}])
    (path / "each").mkdir()
    if isinstance(content, bytes):
        (path / "each" / "a1.npy").write_bytes(content)
    else:
        np.save(path / "each" / "a1.npy", content, allow_pickle=True)
    (m,) = read_record(path).measured
    assert m.of_each_image() is None
    np.save(path / "each" / "a1.npy", np.ones(10000, np.float32))
    assert (m.of_each_image() is not None) == named.startswith("each/")


def test_numbers_compare_whatever_machine_drew_the_samples_but_not_with_other_neighbours() -> None:
    def comparison_key(**changes: Any) -> str:
        return Measured("precision_classifier", 0.5, "eval", Protocol.from_dict(quality(**changes))).comparison_key

    plain = comparison_key(neighbours=3, device="CPU, 2 cores, 1 thread", seconds_per_sample=0.1)
    assert comparison_key(neighbours=3, device="NVIDIA H200", seconds_per_sample=0.001) == plain
    for changes in ({"neighbours": 5}, {"neighbours": 3, "splits": 10}, {"neighbours": 3, "repeats": 5}):
        assert comparison_key(**changes) != plain


def test_the_distance_of_the_untrained_model_is_not_that_of_the_run(make_run: MakeRun) -> None:
    header = "images_seen,updates,val/fd_classifier,val/nats,time/training_seconds\n"
    stopped = make_run("a", metrics=f"{header}0,0,16.5,500,\n100,1,,90,\n", status="interrupted", images_seen=100)
    record = read_record(stopped)
    assert record.headline("fd_classifier") is None
    nats = record.headline("nats")
    assert nats is not None
    assert nats.value == 90
    begun = make_run("b", metrics=f"{header}0,0,16.5,500,\n", images_seen=0, checkpoint=None)
    untrained = read_record(begun).headline("fd_classifier")
    assert untrained is not None, "of a run that has seen nothing it is"


def test_of_one_name_each_protocol_has_its_number(make_run: MakeRun) -> None:
    evaluation = [
        {"name": "fid", "value": value, "protocol": quality(samples=n)}
        for value, n in ((3.0, 10), (2.0, 10), (1.0, 99))
    ]
    record = read_record(make_run("a", metrics=None, evaluation=evaluation))
    assert sorted(m.value for m in record.by_comparison_key("fid").values()) == [1.0, 2.0], "the newest of each"
