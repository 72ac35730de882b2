"""Jobs of a sweep in processes of their own: Hydra's launchers, and a real Slurm where it is installed."""

import getpass
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import slurm
from imago.cli.jobs import gpus, make_ready

ROOT = Path(__file__).parents[1]
TRAIN = [sys.executable, str(ROOT / "src/train.py")]
TINY = ["model=fvbn", "data=digits", "trainer=cpu", "metrics=none", "callbacks=minimal", "logger=none"]
SWEEP = [
    "model=fvbn", "data=digits", "trainer=cpu", "metrics=none", "callbacks.samples=null",
    "callbacks.likelihood.at_start=false", "logger=wandb", "model.optimizer.net.lr=0.01,1e39,0.001", "resume=auto",
]  # fmt: skip
BROKEN = "nats = nan, bpd = nan, gradient_norm/net = nan after 128 images"


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def train(folder: Path, *given: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [*TRAIN, *given], cwd=folder, env=env or environment(), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def summary_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"])


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    if missing := slurm.missing():
        pytest.skip(f"needs Slurm (Debian: apt-get install slurm-wlm munge); there is no {missing[0]}")
    with slurm.cluster() as env:
        yield env | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "WANDB_MODE": "offline"}


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, str]:
    folder = tmp_path_factory.mktemp("basic")
    env = environment() | {"WANDB_MODE": "offline"}
    return folder, *train(folder, "-m", *SWEEP, "max_updates=3", "hydra.sweep.dir=logs/first", env=env)


def check_runs(runs: list[Path]) -> None:
    """Three runs, of which the middle one has failed, each with its name and a W&B run of its own."""
    assert [summary_of(run)["status"] for run in runs] == ["completed", "failed", "completed"]
    assert [summary_of(run)["name"] for run in runs] == [f"fvbn-digits lr={lr}" for lr in ("0.01", "1e+39", "0.001")]
    assert all(list(run.glob("wandb/offline-run-*")) for run in runs)


def check_ranking(out: str) -> None:
    table = out[[found.start() for found in re.finditer(r"^ *run  ", out, re.MULTILINE)][-1] :]
    assert re.findall(r"^ *(fvbn-digits lr=\S+)", table, re.MULTILINE) == [
        f"fvbn-digits lr={lr}" for lr in ("0.01", "0.001", "1e+39")
    ]


def test_jobs_in_one_process(in_one_process: tuple[Path, int, str, str]) -> None:
    folder, code, out, err = in_one_process
    assert code == 1
    assert (out + err).count(BROKEN) == 1
    assert "Error executing job" not in err
    check_runs([folder / f"logs/first/{k}-fvbn-digits" for k in range(3)])
    check_ranking(out)


@pytest.mark.parametrize(
    "launcher",
    ["submitit_local", *(pytest.param(name, marks=pytest.mark.slow) for name in ("joblib", "submitit_slurm"))],
)
def test_jobs_in_processes_of_their_own(
    launcher: str, tmp_path: Path, in_one_process: tuple[Path, int, str, str], request: pytest.FixtureRequest
) -> None:
    """One continues an earlier sweep's, one fails, one begins; each speaks into a file, and a line says of its fate."""
    env = request.getfixturevalue("cluster") if launcher == "submitit_slurm" else environment()
    shutil.copytree(
        in_one_process[0] / "logs/first/0-fvbn-digits", tmp_path / "logs/first/0-fvbn-digits", symlinks=True
    )
    given = ["-m", f"hydra/launcher={launcher}", *SWEEP, "max_updates=4", "hydra.sweep.dir=logs/second"]
    code, out, err = train(tmp_path, *given, env=env)
    assert code == 1, err
    sweep = tmp_path / "logs/second"
    check_runs([tmp_path / "logs/first/0-fvbn-digits", *(sweep / f"{k}-fvbn-digits" for k in (1, 2))])
    check_ranking(out)
    assert (out + err).count(BROKEN) == 1
    assert "images/s" not in out + err
    for job, lr, ending in ((0, "0.01", "done"), (1, r"1e\+39", "failed with exit code 1"), (2, "0.001", "done")):
        name = rf"^job {job} model\.optimizer\.net\.lr={lr}: "
        log = f"logs/second/{job}-fvbn-digits/train.log"
        assert len(re.findall(rf"{name}begins, and writes to {log}$", out, re.MULTILINE)) == 1, out
        assert len(re.findall(rf"{name}{ending} after \d+ s", out, re.MULTILINE)) == 1, out
        assert "images/s" in (tmp_path / log).read_text()
    assert "continues logs/first/0-fvbn-digits" in (sweep / "0-fvbn-digits/train.log").read_text()
    assert not (sweep / ".jobs").exists()


def test_the_worst_exit_code_counts(script) -> None:  # type: ignore[no-untyped-def]
    given = ["-m", *TINY, "max_updates=9", "hydra.sweep.dir=s", "+hydra.sweeper.max_batch_size=1"]
    code, _, err = script("train", *given, "model.optimizer.net.lr=1e39,-1,0.1")
    assert code == 2
    assert err.count("error: ") == 2
    assert {path.name: summary_of(path)["status"] for path in Path("s").glob("*/")} == {
        "0-fvbn-digits": "failed",
        "2-fvbn-digits": "completed",
    }


def test_joblib_has_as_many_workers_as_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from omegaconf import OmegaConf

    def workers(n_jobs: int) -> int:
        launcher = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "n_jobs": n_jobs}
        config = OmegaConf.create({"hydra": {"launcher": launcher}})
        OmegaConf.set_readonly(config, True)
        make_ready(config)
        return int(config.hydra.launcher.n_jobs)

    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,4,6")
    assert gpus() == ["1", "4", "6"]
    assert (workers(-1), workers(5)) == (3, 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert workers(-1) == 2


def test_a_search_by_another_launcher(tmp_path: Path) -> None:
    given = ["hydra/sweeper=optuna", "hydra/launcher=submitit_local", "hydra/sweeper/pruner=hyperband"]
    given += ["hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "objective=train/nats", "max_updates=3"]
    code, out, err = train(tmp_path, "-m", *given, *TINY, "model.optimizer.net.lr=tag(log, interval(1e-4, 1e-1))")
    assert code == 0, out + err
    assert "2 trials: 2 complete\n" in out
    (folder,) = tmp_path.glob("logs/sweeps/search-*")
    assert sorted(path.name for path in folder.glob("[0-9]*")) == ["0-fvbn-digits", "1-fvbn-digits"]
    assert all(summary_of(run)["objective"] for run in folder.glob("[0-9]*"))


def script_in(page: str) -> str:
    """The batch script that a page of the documentation shows, with this Python and this copy of the repository."""
    shown = re.search(r"```sh\n(#!/bin/sh\n.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert shown is not None
    assert "srun python src/train.py model=dcgan data=cifar10 " in shown[1]
    tiny = " ".join([*TINY, "max_updates=800", "every.checkpoints=1000000"])
    return shown[1].replace("python src/train.py model=dcgan data=cifar10", f"{' '.join(TRAIN)} {tiny}")


def running_in(folder: Path) -> Callable[[], bool]:
    """Whether a run below a folder has made its first updates."""

    def running() -> bool:
        try:
            return any(path.stat().st_size for path in folder.glob("**/metrics.csv"))
        except FileNotFoundError:  # a folder that Hydra made, and that the run makes again
            return False

    return running


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("never-stopped")
    code, _, err = train(folder, *TINY, "max_updates=800", "hydra.run.dir=run")
    assert code == 0, err
    return weights_of(folder / "run")


def check_same(run: Path, expected: dict[str, torch.Tensor]) -> None:
    assert (summary_of(run)["status"], summary_of(run)["updates"]) == ("completed", 800)
    weights = weights_of(run)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_batch_job_whose_time_is_up_begins_again_and_goes_on(
    tmp_path: Path, cluster: dict[str, str], never_stopped: dict[str, torch.Tensor]
) -> None:
    """As the documentation shows it; beside another run of the same experiment, which is not its own."""
    (tmp_path / "job.sh").write_text(script_in("clusters.md").replace("--gpus=1 ", ""))
    job = slurm.asked(["sbatch", "--parsable", f"--chdir={tmp_path}", str(tmp_path / "job.sh")], cluster).strip()
    other = tmp_path / "logs" / "other"
    wait_for(running_in(tmp_path), "the job has not begun")
    subprocess.run(["scancel", "--signal=USR1", job], env=cluster, check=True)
    (run,) = tmp_path.glob(f"logs/{job}/*/*/")
    wait_for(lambda: summary_of(run)["status"] == "interrupted", f"the job in {run} does not stop", 60)
    shutil.copytree(run, other, symlinks=True)  # newer, and not this job's
    wait_for(lambda: summary_of(run)["status"] == "completed", f"the job in {run} does not end", 120)
    said = (tmp_path / f"slurm-{job}.out").read_text()
    assert said.count("SIGUSR1: stopping after this step and writing a checkpoint") == 1
    assert f"continues logs/{job}/fvbn-digits/" in said
    check_same(run, never_stopped)
    assert summary_of(other)["status"] == "interrupted"
    assert not list(tmp_path.rglob("hpc_ckpt*"))


@pytest.mark.slow
def test_a_job_of_a_sweep_whose_time_is_up_begins_again_and_goes_on(
    tmp_path: Path, cluster: dict[str, str], never_stopped: dict[str, torch.Tensor]
) -> None:
    given = ["-m", "hydra/launcher=submitit_slurm", "hydra.launcher.max_num_timeout=9", "hydra.launcher.timeout_min=5"]
    given += [*TINY, "max_updates=800", "resume=auto", "hydra.sweep.dir=logs/s", "seed=0"]
    with (tmp_path / "said.txt").open("w") as log:
        process = subprocess.Popen([*TRAIN, *given], cwd=tmp_path, env=cluster, stdout=log, stderr=log)
    wait_for(running_in(tmp_path), "the job has not begun")
    subprocess.run(["scancel", "--signal=USR2", "--user", getpass.getuser()], env=cluster, check=True)
    assert process.wait(300) == 0, (tmp_path / "said.txt").read_text()
    said = (tmp_path / "said.txt").read_text()
    found = re.findall(r"^job 0: (\w+ ?\w*)", said, re.MULTILINE)
    assert found == ["begins", "stopped by", "begins", "done after"], said
    check_same(tmp_path / "logs/s/0-fvbn-digits", never_stopped)


def test_jobs_of_an_array_never_share_a_directory(tmp_path: Path, cluster: dict[str, str]) -> None:
    """Four that begin in the same second, and are even told to use the same one."""
    command = " ".join(["srun", *TRAIN, *TINY, "max_updates=1", "hydra.run.dir=logs/run"])
    given = ["sbatch", "--parsable", f"--chdir={tmp_path}", "--array=0-3", f"--wrap={command}"]
    slurm.asked(given, cluster)
    wait_for(lambda: not slurm.asked(["squeue", "--noheader"], cluster).strip(), "the array does not end")
    runs = sorted(path.name for path in tmp_path.glob("logs/*/"))
    assert runs == ["run", "run-2", "run-3", "run-4"], [path.read_text() for path in tmp_path.glob("*.out")]
    assert all(summary_of(tmp_path / "logs" / run)["status"] == "completed" for run in runs)
