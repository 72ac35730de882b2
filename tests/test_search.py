"""Searches: what they vary, who works on which trial, and what is left when one is stopped."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import optuna
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from imago.cli import check_command
from imago.cli.jobs import shares
from imago.errors import UserError
from imago.figures.searches import draw_search, importances_of
from imago.search import Reporter, Search, space_of

ROOT = Path(__file__).parents[1]
SMALL = [
    "model=fvbn", "data=digits", "trainer=cpu", "callbacks.samples=null", "metrics=none", "logger=none",
    "max_updates=3", "objective=val/bpd",
]  # fmt: skip
SEARCH = ["-m", "hydra/sweeper=optuna", *SMALL, "model.optimizer.net.lr=tag(log,interval(1e-4,1e-1))"]
LR = FloatDistribution(1e-4, 1e-1, log=True)


def summary_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def parsed(*overrides: str) -> list:
    return OverridesParser.create().parse_overrides(list(overrides))


@pytest.mark.parametrize(
    ("given", "distribution"),
    [
        ("x=a,b", CategoricalDistribution(["a", "b"])),
        ("x=choice([1,2],[3])", CategoricalDistribution(["[1,2]", "[3]"])),
        ("x=interval(0.5,2)", FloatDistribution(0.5, 2.0)),
        ("x=interval(1,8)", FloatDistribution(1.0, 8.0)),
        ("x=int(interval(1,8.0))", IntDistribution(1, 8)),
        ("x=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("x=tag(log,int(interval(4,256)))", IntDistribution(4, 256, log=True)),
        ("x=range(2,9,2)", IntDistribution(2, 8, step=2)),
        ("x=range(0.0,1.0,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
    ],
)
def test_the_syntax_of_the_command_line_is_optunas_space(given: str, distribution: object) -> None:
    assert space_of(parsed("seed=1", given)) == {"x": distribution}


@pytest.mark.parametrize("given", ["x=interval(2,1)", "x=tag(log,interval(0,1))", "x=interval(0,inf)"])
def test_an_interval_of_nothing_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=r"^x=.*; give another interval$"):
        space_of(parsed(given))


def search_in(folder: Path, *objectives: str) -> Search:
    folder.mkdir(exist_ok=True)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3)
    return Search(folder, objectives or ["val/bpd"], optuna.samplers.TPESampler, pruner)


def test_the_direction_is_that_of_the_number(tmp_path: Path) -> None:
    study = search_in(tmp_path, "val/bpd", "val/recall_classifier", "train/loss").study
    assert [way.name for way in study.directions] == ["MINIMIZE", "MAXIMIZE", "MINIMIZE"]
    with pytest.raises(UserError, match=r"^objective=val/bpd: the search in .* is for val/bpd,val/recall_classifier"):
        search_in(tmp_path, "val/bpd")


def test_a_trial_is_of_one_process_until_that_ends(tmp_path: Path) -> None:
    """A trial that a process has left is taken up by another one; one that it is at work on is not."""
    with search_in(tmp_path) as first:
        left = first.claim({"lr": LR}, 3)
        assert left is not None
        with search_in(tmp_path) as second:
            assert [t.number for t in (first.claim({"lr": LR}, 3), second.claim({"lr": LR}, 3)) if t] == [1, 2]
            assert second.claim({"lr": LR}, 3) is None
            second.tell(2, [1.0])
    with search_in(tmp_path) as third:
        (tmp_path / "1-vae-digits").mkdir()
        again = third.claim({"lr": LR}, 3)
        assert again is not None
        assert (again.number, again.params) == (0, left.params)
        third.tell(0, None, "broke")
        third.tell(0, [5.0])  # told already
    assert [t.state for t in third.trials] == [TrialState.FAIL, TrialState.RUNNING, TrialState.COMPLETE]


def test_a_trial_without_all_its_settings_is_not_taken_up(tmp_path: Path) -> None:
    with search_in(tmp_path) as search:
        search.study.ask()  # and no more: its process is killed
        taken = search.claim({"lr": LR}, 9)
        assert taken is not None
        assert (taken.number, set(taken.params)) == (1, {"lr"})
        assert search.trials[0].state is TrialState.FAIL


def test_a_search_proposes_the_same_whoever_asks(tmp_path: Path) -> None:
    """A process that begins in the middle goes on with the sampler's numbers, and does not begin them anew."""
    proposals = []
    for name, processes in (("one", 1), ("many", 6)):
        for _ in range(processes):
            with search_in(tmp_path / name) as search:
                for _ in range(6 // processes):
                    trial = search.claim({"lr": LR}, 6)
                    assert trial is not None
                    search.tell(trial.number, [trial.params["lr"]])
        proposals.append([trial.params["lr"] for trial in search.trials])
    assert proposals[0] == proposals[1]
    assert len(set(proposals[0])) == 6


def test_a_line_that_was_cut_short_is_no_harm(tmp_path: Path) -> None:
    with search_in(tmp_path) as search:
        search.claim({"lr": LR}, 9)
    with (tmp_path / "study.log").open("a") as file:
        file.write('{"op_code": 4, "wor')
    with search_in(tmp_path) as search:
        assert search.claim({"lr": LR}, 9) is not None
    assert len(search_in(tmp_path).trials) == 1
    (tmp_path / "study.log").write_text("nonsense\n" * 3)
    with pytest.raises(UserError, match=r"study\.log: cannot be used .*; move the folder away, and"):
        search_in(tmp_path)


def test_a_hopeless_trial_is_told_so(tmp_path: Path) -> None:
    with search_in(tmp_path) as search:
        for value in (1.0, 2.0, 3.0):
            trial = search.claim({"lr": LR}, 9)
            assert trial is not None
            reporter = Reporter(tmp_path, trial.number, search.study.pruner)
            reporter.report(4, value)
            search.tell(trial.number, [value])
        trial = search.claim({"lr": LR}, 9)
        assert trial is not None
        reporter = Reporter(tmp_path, trial.number, search.study.pruner)
        reporter.report(4, 1.5)
        assert not reporter.hopeless
        reporter.report(5, 9.0)
        reporter.report(5, 0.0)  # told again, by a run that continues: the first one stays
        assert search.trials[3].intermediate_values == {4: 1.5, 5: 9.0}
        reporter.give_up("median")
        search.tell(3, [9.0])
    assert search.trials[3].state == TrialState.PRUNED


def test_a_picture_for_one_objective_and_for_several(tmp_path: Path) -> None:
    for name, objectives in (("one", ["val/bpd"]), ("two", ["val/bpd", "val/recall"])):
        with search_in(tmp_path / name, *objectives) as search:
            space = {"model.lr": LR, "model.size": IntDistribution(1, 9), "kind": CategoricalDistribution(["a", "b"])}
            for k in range(6):
                trial = search.claim(space, 6)
                assert trial is not None
                values = [trial.params["model.lr"], float(k)][: len(objectives)]
                search.tell(trial.number, None if k == 3 else values, "broke")
        draw_search(search.study, search.objectives, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_a_search_may_be_among_more_combinations_than_a_sweep_may_run() -> None:
    many = ["-m", "seed=range(0,200)", "model.latent=range(1,200)"]
    with pytest.raises(UserError, match=r"^-m: 39,800 runs are more than the 10,000 of one command"):
        check_command(many, "train")
    assert len(check_command([*many, "hydra/sweeper=optuna"], "train")) == 3


def test_importance_is_the_share_of_the_variance(tmp_path: Path) -> None:
    """Functional analysis of variance: of a sum, each part's own variance; Optuna's default measures something else."""
    with search_in(tmp_path) as search:
        for _ in range(60):
            trial = search.claim({"a": FloatDistribution(0, 1), "b": FloatDistribution(0, 1)}, 60)
            assert trial is not None
            search.tell(trial.number, [2 * trial.params["a"] + trial.params["b"]])
    (shares,) = importances_of(search.study, ["val/bpd"]).values()
    assert shares["a"] == pytest.approx(4 / 5, abs=0.1)
    assert shares["b"] == pytest.approx(1 / 5, abs=0.1)


def test_processes_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [shares(k, 3) for k in range(3)] == [
        {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": device} for device in ("4", "6", "4")
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert shares(0, 3) == {}


def folder_of_search() -> Path:
    (folder,) = Path("logs/sweeps").glob("search-fvbn-digits-*")
    return folder


def test_the_same_command_goes_on(script) -> None:  # type: ignore[no-untyped-def]
    code, out, err = script("train", *SEARCH, "hydra.sweeper.n_trials=2", "seed=1,2")
    assert code == 0, err
    folder = folder_of_search()
    assert "2 trials: 2 complete\n" in out
    (best,) = yaml.safe_load((folder / "best.yaml").read_text())
    summaries = [summary_of(path) for path in sorted(folder.glob("[01]-*"))]
    values = [summary["objective"]["val/bpd"] for summary in summaries]
    assert best["val/bpd"] == min(values)
    assert best["command"].startswith("python src/train.py model=fvbn data=digits ")
    assert best["command"].endswith(f" model.optimizer.net.lr={best['params']['model.optimizer.net.lr']!r} "
                                    f"seed={best['params']['seed']}")  # fmt: skip
    assert Path(best["run"]).is_dir()
    assert (folder / "search.png").exists()
    before = (folder / "study.log").read_bytes()
    code, out, err = script("train", *SEARCH, "hydra.sweeper.n_trials=2", "seed=1,2")
    assert code == 0, err
    assert "2 trials: 2 complete\n" in out
    after = (folder / "study.log").read_bytes()
    assert after.startswith(before)
    assert after.count(b'"trial_id"') == before.count(b'"trial_id"')
    code, out, err = script("train", *SEARCH, "hydra.sweeper.n_trials=3", "seed=1,2")
    assert code == 0, err
    assert "3 trials: 3 complete\n" in out
    name = f"hydra.sweeper.study={folder.name}"
    code, _, err = script("train", *SEARCH, name, "max_seconds=5", "seed=1,2")
    assert code == 2
    assert "that search has other settings (model=fvbn " in err
    study = folder / "study.log"
    for damaged, told in (
        (b"\0damaged", f"{study}: cannot be used (it is no study); move the folder away, and the search starts anew"),
        (None, f"{folder}: holds runs of a search whose study.log is gone; move the folder away"),
    ):
        kept = study.read_bytes()
        study.write_bytes(damaged) if damaged else study.unlink()
        code, _, err = script("train", *SEARCH, "hydra.sweeper.n_trials=3", "seed=1,2")
        assert code == 2
        assert err.startswith(f"error: {told}")
        assert damaged is None or study.read_bytes() == damaged
        study.write_bytes(kept)
    for varied, told in (
        (["seed=2,3"], "seed: the search in logs/sweeps/NAME has other choices for it; give what it varies"),
        ([], "seed: the search in logs/sweeps/NAME varies it"),
        (["seed=1,2", "conditional=true,false"], "conditional: the search in logs/sweeps/NAME keeps it"),
    ):
        code, _, err = script("train", *SEARCH, name, *varied)
        assert code == 2
        assert err.startswith(f"error: {told.replace('NAME', folder.name)}")


def test_a_name_is_any_text(script) -> None:  # type: ignore[no-untyped-def]
    name = "it's, [x]=1"
    for count in (1, 2):
        given = [
            "measuring_share=null",
            "tags=['a, b']",
            "hydra.sweeper.study='it\\'s, [x]=1'",
            f"hydra.sweeper.n_trials={count}",
        ]
        code, out, err = script("train", *SEARCH[:-1], *given, "seed=1,1")
        assert code == 0, err
        assert f"{count} trials: {count} complete\n" in out
        assert "fewer images" not in out
    (best,) = yaml.safe_load(Path("logs/sweeps", name, "best.yaml").read_text())
    assert shlex.split(best["command"])[-2:] == ["tags=['a, b']", "seed=1"]
    assert sorted(path.name for path in Path("logs/sweeps").glob("*/[0-9]-*")) == ["0-fvbn-digits", "1-fvbn-digits"]
    assert [path.name for path in Path("logs/sweeps").iterdir()] == [name]


def test_trials_are_pruned_where_they_are_measured(script) -> None:  # type: ignore[no-untyped-def]
    pruner = ["hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner", "+hydra.sweeper.pruner.upper=0.001"]
    measured = ["every.likelihood=128", "max_updates=20"]
    given = [*SEARCH, *measured, *(f"{pruner}" for pruner in pruner), "~hydra.sweeper.pruner.n_startup_trials",
             "~hydra.sweeper.pruner.n_warmup_steps", "hydra.sweeper.n_trials=1"]  # fmt: skip
    code, out, err = script("train", *given)
    assert code == 1, err  # no trial came to an end
    assert "note: slow trials may be measured with fewer images, which compare with no others" in out
    assert "pruned by threshold: val/bpd=" in out
    (run,) = folder_of_search().glob("0-*")
    summary = summary_of(run)
    assert summary["status"] == "completed"
    assert str(summary["pruned"]).startswith("threshold: val/bpd=")
    assert summary["images_seen"] < 20 * 64


def test_a_search_that_always_fails_ends(script) -> None:  # type: ignore[no-untyped-def]
    code, out, err = script("train", *SEARCH, "objective=val/fid", "hydra.sweeper.n_trials=9")
    assert code == 2
    assert out.count("failed (exit code 2)") == 3
    assert "error: the first 3 trials failed" in err


VARIED = "model.optimizer.net.lr=1e-3,1e-2"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["objective=val/bpd"], "-m hydra/sweeper=optuna: nothing varies; give KEY=A,B or 'KEY=interval(A,B)'"),
        (["seed=interval(1,8)"], "seed: takes whole numbers; give 'seed=int(interval(1,8))'"),
        (["seed=1,x"], 'seed="x": input should be a valid integer'),
        ([VARIED, "model=fvbn,gan"], f"{VARIED}: not all of these combinations have this setting"),
        ([VARIED, "data=folder"], "data.path is missing"),
        ([VARIED, "estimate=true"], "estimate=true: of a search a trial is not known"),
        ([VARIED, "objective=3"], "objective=3: input should be"),
        ([VARIED, "objective=[]"], "objective: a search needs the number that it is for"),
        ([VARIED, "objective=[val/bpd,val/bpd]"], "objective=[val/bpd,val/bpd]: names a number twice"),
        ([VARIED, "hydra.sweeper.study=../x"], "hydra.sweeper.study=../x: names a folder inside logs/sweeps"),
        ([VARIED, "hydra.sweeper.study="], "hydra.sweeper.study=: names a folder inside logs/sweeps"),
        ([VARIED, "hydra.sweeper.n_trials=x"], "hydra.sweeper.n_trials=x: Value 'x' of type 'str' could not be conv"),
    ],
)
def test_mistakes_are_told_before_the_first_trial(script, given: list[str], told: str) -> None:  # type: ignore[no-untyped-def]
    code, out, err = script("train", "-m", "hydra/sweeper=optuna", *SMALL, *given)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {told}")
    assert err.count("\n") == 1
    assert not Path("logs").exists()


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def begin(folder: Path, *given: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "src/train.py"), *SEARCH, *given]
    folder.mkdir(exist_ok=True)
    with (folder / "out.txt").open("a") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment(), start_new_session=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.slow
def test_a_search_of_several_processes_is_stopped_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost, nothing done twice; the half-done trial continues from its checkpoint."""
    given = ["max_updates=500", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "every.checkpoints=640"]
    process = begin(tmp_path, *given)
    runs = tmp_path / "logs/sweeps"
    wait_for(lambda: len(list(runs.glob("search-*/[01]-*/checkpoints/last.ckpt"))) == 2, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    monkeypatch.chdir(tmp_path)
    folder = folder_of_search()
    done = {path for path in folder.glob("[0-9]-*") if summary_of(path)["status"] == "completed"}
    assert len(done) < 2
    process = begin(tmp_path, *given)
    assert process.wait() == 0, (tmp_path / "out.txt").read_text()
    names = sorted(path.name for path in folder.glob("[0-9]-*"))
    assert names == [f"{k}-fvbn-digits" for k in range(2)]
    assert all(summary_of(folder / name)["updates"] == 500 for name in names)
    assert "continues logs/sweeps/" in "".join(path.read_text() for path in folder.glob("worker-*.log"))
    assert "2 trials: 2 complete" in (tmp_path / "out.txt").read_text()


@pytest.mark.slow
def test_forty_trials_and_ten_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed ten times at random and given again, a search ends with the trials of one that nobody killed."""
    given = ["max_updates=200", "hydra.sweeper.n_trials=40", "every.checkpoints=640", "measuring_share=null"]
    random = Random(0)
    kills = 0
    while kills < 10:
        process = begin(tmp_path / "killed", *given)
        before = told_in(tmp_path / "killed")
        wait_for(lambda: told_in(tmp_path / "killed") > before, process)  # it is at work again  # noqa: B023
        with suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0, 8))
        assert process.poll() is None, "the search is too short to be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    for name in ("killed", "whole"):
        assert begin(tmp_path / name, *given).wait() == 0, (tmp_path / name / "out.txt").read_text()[-2000:]
    found = []
    for name in ("killed", "whole"):
        monkeypatch.chdir(tmp_path / name)
        folder = folder_of_search()
        search = search_in(folder)
        assert [trial.number for trial in search.trials] == list(range(40))
        runs = sorted(path.name for path in folder.glob("*-fvbn-digits"))
        assert runs == sorted(f"{k}-fvbn-digits" for k in range(40))
        assert {summary_of(folder / run)["status"] for run in runs} == {"completed"}
        found.append([(t.params, t.state, t.values, t.intermediate_values) for t in search.trials])
    assert found[0] == found[1]


def told_in(folder: Path) -> int:
    """How much a search has written down."""
    files = list(folder.glob("logs/sweeps/search-*/study.log"))
    return files[0].stat().st_size if files else 0
