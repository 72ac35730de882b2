"""By what the runs of a sweep are ranked."""

from pathlib import Path
from typing import Any

import pytest

from imago.board.ranking import show_ranking

from .conftest import MakeRun, likelihood, quality, rows


def order(capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str], str]:
    """The number's title, the runs, and the line below the table."""
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    return lines[0], [line.split()[1] for line in lines[2:-1]], lines[-1]


def test_runs_are_ranked_by_what_most_of_them_have(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    """GANs have no likelihood; of precision more is better; a run that failed is last."""

    def measured(name: str, value: float) -> list[dict[str, Any]]:
        return [{"name": name, "value": value, "protocol": quality()}]

    runs = [
        make_run("a", config={"x": 1}, evaluation=measured("precision", 0.2), metrics=None),
        make_run("b", config={"x": 2}, evaluation=measured("precision", 0.9), metrics=None, model="gan",
                 summary={"sweep": {"overrides": ["resume=auto", "name=a b", "x=2", "hydra.job.chdir=true"]}}),
        make_run("c", config={"x": 3}, evaluation=measured("precision", 0.5)),
        make_run("d", config={"x": 4}, metrics=None, status="failed", error="x"),
    ]  # fmt: skip
    show_ranking(runs, None, ["imago", "train"])
    title, places, last = order(capsys)
    assert (title.split(), places) == (["run", "Precision", "seconds"], ["b", "c", "a", "d"])
    assert last == "the best again: imago train 'name=a b' x=2"
    assert title


@pytest.mark.parametrize(
    ("objective", "title", "places"),
    [("train/nats", "train/nats", ["low", "high"]), ("val/nats", "nats", ["high", "low"])],
)
def test_a_sweepers_objective_ranks(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], objective: str, title: str, places: list[str]
) -> None:
    """Of training or of held-out images; the runs differ, so there is no mean."""
    value = {"high": rows([9.0]).replace("9.0,", "3.0,", 1), "low": rows([4.0])}
    runs = [make_run(name, config={"x": name}, metrics=value[name]) for name in value]
    show_ranking(runs, objective, ["imago", "train"])
    found = order(capsys)
    assert (found[0].split()[1], found[1]) == (title, places)


@pytest.mark.parametrize("exact", ["exact", "lower_bound"])
def test_estimates_are_ranked_apart_and_it_is_said(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], exact: str
) -> None:
    """However small an estimate is: more runs have an exact value or a bound, so these come first."""

    def run(name: str, value: float, kind: str) -> Path:
        measured = {"name": "test/nats", "value": value, "protocol": likelihood("test", kind)}
        return make_run(name, config={"x": name}, evaluation=[measured], metrics=None)

    worse, better, estimate = run("worse", 90.0, exact), run("better", 80.0, "lower_bound"), run("low", 1.0, "estimate")
    show_ranking([worse, better, estimate], "test/nats", ["imago", "train"])
    told = capsys.readouterr().out
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    assert [line.split()[1] for line in lines[2:5]] == ["better", "worse", "low"]
    assert "≈ 1.00 ± 0.25 test 10k" in lines[4]
    assert "≈ is an estimate, which may err to either side: it is ranked apart from = and ≤" in lines
    show_ranking([worse, better], "test/nats", ["imago", "train"])
    assert "estimate" not in capsys.readouterr().out
    show_ranking([estimate, run("lower", 0.5, "estimate")], "test/nats", ["imago", "train"])
    assert "ranked apart" not in capsys.readouterr().out


def test_a_best_is_named_among_runs_that_were_measured_alike(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small number of few samples is not better than one of many; means over seeds and single runs count together."""

    def run(name: str, value: float, samples: int, split: str = "val", **config: Any) -> Path:
        measured = {"val/fd_classifier": {"value": value, "protocol": quality(samples=samples)}}
        metrics: dict[str, Any] = {"metrics": measured if split == "val" else {}}
        evaluated = [{"name": "fd_classifier", "value": value, "protocol": quality(samples=samples)}]
        return make_run(
            name,
            config={"x": name, "measuring_share": 0.1} | config,
            metrics=None,
            evaluation=evaluated if split == "eval" else None,
            summary={"sweep": {"overrides": [f"x={name}"]}, "seed": config.get("seed", 0)} | metrics,
        )

    few, many, more = run("few", 5.1, 1000), run("many", 5.2, 5000), run("more", 44.6, 5000)
    apart = "not all were measured alike, so they are ranked apart: samples 5,000 and 1,000; evaluate.py with the same "
    apart += "settings measures all alike now, and measuring_share=null in training"
    show_ranking([few, many, more], None, ["train"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [line.split()[1] for line in lines[2:5]] == ["many", "more", "few"]
    assert lines[5:] == [apart, "the best of the first 2 again: train x=many"]
    show_ranking([few, many], None, ["train"])
    told = capsys.readouterr().out
    assert "ranked apart" in told
    assert "again" not in told, "each has a protocol of its own"
    show_ranking([many, more], None, ["train"])
    told = capsys.readouterr().out
    assert "ranked apart" not in told
    assert "the best again: train x=many" in told
    seeds = [run(f"seed{seed}", 4.0 + seed, 1000, x="same", seed=seed) for seed in (1, 2)]
    show_ranking([*seeds, many], None, ["train"])
    told = capsys.readouterr().out
    assert "ranked apart" in told, "blocks of means are numbered apart from those of runs on the board"
    assert "again" not in told
    show_ranking([few, run("evaluated", 5.0, 10000, "eval", measuring_share=None)], None, ["train"])
    assert "and measuring_share=null" in capsys.readouterr().out


def test_seconds_are_those_that_limited_the_runs(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    told = {"training_seconds": 22.0, "training_cpu_seconds": 4.0}
    runs = [make_run(name, config={"x": name, "max_cpu_seconds": cpu}, **told) for name, cpu in (("a", 4), ("b", None))]
    show_ranking(runs, None, ["train"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert sorted(" ".join(line[-2:]) for line in lines[2:4]) == ["4 CPU", "val 22"]


def test_without_a_number_it_is_said(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    show_ranking([make_run(name, config={"x": name}, metrics=None) for name in "ab"], None, ["imago", "train"])
    told = "no number ranks these runs; choose metrics=classifier, or name one with objective="
    assert order(capsys)[2] == told
    show_ranking([make_run("alone")], None, ["imago", "train"])
    assert capsys.readouterr().out == "", "one run is no ranking"


def test_no_number_is_cut_where_there_is_little_room(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "36")
    show_ranking([make_run(name, config={"x": name}) for name in ("a-rather-long-name", "another")], "val/nats", ["x"])
    table = capsys.readouterr().out.split("\n\n")[0]
    assert "= 100.00" in table
    assert "…" not in table
