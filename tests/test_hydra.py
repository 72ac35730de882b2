"""Hydra's own ways work as its manual says: folders, search path, sweeps and what they optimise, completion."""

import csv
import importlib
import json
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

import imago
from helpers import Command
from imago import cli
from imago.errors import UserError

SMALL = ["model.generator.hidden=[8]", "model.discriminator.hidden=[8]", "logger=none", "metrics=none", "trainer=cpu"]
TINY = [*SMALL, "callbacks=minimal", "max_updates=2"]


def summary_of(run: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((run / "summary.json").read_text())
    return content


def test_a_run_lies_where_hydra_says(script: Command) -> None:
    code, out, err = script("train", *TINY, "hydra.run.dir=runs/${seed}-${hydra.runtime.choices.model}", "seed=3")
    assert code == 0, err
    assert "writes to runs/3-gan\n" in out
    assert summary_of(Path("runs/3-gan"))["status"] == "completed"
    assert not Path("logs").exists()
    assert script("train", *TINY, "name=mine")[0] == 0
    assert len(list(Path("logs/mine").glob("*/summary.json"))) == 1
    code, _, err = script("train", *TINY, f"resume={next(Path('logs/mine').iterdir())}", "max_updates=3")
    assert code == 0, err
    assert [path.parent.name for path in Path().glob("logs/*/*")] == ["mine"], "a run that continues makes no folder"


def test_a_run_in_its_own_working_directory(script: Command, tmp_path: Path) -> None:
    code, _, err = script("train", *TINY, f"logs={tmp_path}/logs", "hydra.job.chdir=true", "hydra.output_subdir=.hydra")
    assert code == 0, err
    (run,) = tmp_path.glob("logs/gan-digits/*")
    assert (run / "summary.json").exists()
    assert (run / ".hydra" / "overrides.yaml").exists()


def test_a_sweep_lies_where_hydra_says(script: Command) -> None:
    code, _, err = script("train", "-m", *TINY, "seed=1,2", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=s${seed}")
    assert code == 0, err
    assert sorted(path.name for path in Path("sweep").iterdir()) == ["multirun.yaml", "s1", "s2"]
    assert {summary_of(Path("sweep") / name)["seed"] for name in ("s1", "s2")} == {1, 2}
    command = str(summary_of(Path("sweep") / "s2")["command"])  # that repeats this run alone
    assert command.startswith("python src/train.py ")
    assert command.endswith(" seed=2")


def test_sweeps_of_the_same_second_have_folders_of_their_own(script: Command) -> None:
    place = Path("logs/sweeps/2020-02-02_02-02-02")
    place.mkdir(parents=True)
    code, _, err = script("train", "-m", *TINY, "seed=1", f"hydra.sweep.dir={place}")
    assert code == 0, err
    assert list(place.iterdir()) == []
    own = place.with_name(f"{place.name}-2")
    assert summary_of(own / "0-gan-digits")["sweep"]["folder"] == own.name
    assert (own / "multirun.yaml").exists()
    assert script("train", "-m", *TINY, "seed=-1", f"hydra.sweep.dir={place}")[0] == 2
    assert not place.with_name(f"{place.name}-3").exists()


def names_in(sweep: str) -> list[object]:
    return [summary_of(run.parent)["name"] for run in sorted(Path(sweep).glob("*/summary.json"))]


def test_jobs_of_a_sweep_are_named_by_what_it_varies(script: Command) -> None:
    """Model and data are in the name already, and the folder's stays short."""
    given = ["-m", *TINY, "model.optimizer.generator.lr=0.1,0.2", "model/objective=hinge", "seed=1,2"]
    code, _, err = script("train", *given, "hydra.sweep.dir=s")
    assert code == 0, err
    pairs = [(lr, seed) for lr in (0.1, 0.2) for seed in (1, 2)]
    assert names_in("s") == [f"gan-digits lr={lr} seed={seed}" for lr, seed in pairs]
    assert {run.name for run in Path("s").glob("*/")} == {f"{k}-gan-digits" for k in range(4)}


def test_a_sweep_that_is_given_again_goes_on_with_its_own_runs_alone(script: Command) -> None:
    """Not with a single run of the same experiment, nor with that of another sweep."""
    given = [*SMALL, "max_updates=2"]
    assert script("train", *given, "seed=1", "hydra.run.dir=logs/single")[0] == 0
    assert script("train", "-m", *given, "seed=1,2", "tags=[other]", "hydra.sweep.dir=logs/other")[0] == 0
    again = ["-m", *given, "seed=1,2", "max_updates=3", "resume=auto"]
    code, out, err = script("train", *again, "hydra.sweep.dir=logs/first")
    assert code == 0, err
    assert out.count("resume=auto: no checkpoint of this experiment and sweep below logs/, starting anew") == 2
    code, out, err = script("train", *again, "max_updates=4", "hydra.sweep.dir=logs/second")
    assert code == 0, err
    assert out.count("continues logs/first/") == 2, out
    assert not Path("logs/second").exists()
    assert {str(run.parent): summary_of(run.parent)["updates"] for run in Path("logs").rglob("summary.json")} == {
        "logs/single": 2,
        **{f"logs/other/{k}-gan-digits": 2 for k in range(2)},
        **{f"logs/first/{k}-gan-digits": 4 for k in range(2)},
    }


def test_a_sweep_ends_with_its_ranking_and_the_command_of_the_best(script: Command) -> None:
    tiny = ["model=fvbn", "trainer=cpu", "logger=none", "metrics=none", "max_updates=4", "data.batch_size=8"]
    tiny += ["callbacks.samples=null", "callbacks.likelihood.at_start=false"]
    given = ["model.optimizer.net.lr=0.01,0.0001", "seed=1,2", "hydra.sweep.dir=s", "+trainer.benchmark=false"]
    code, out, err = script("train", "-m", *tiny, *given)
    assert code == 0, err
    table = out[out.rindex("run ") :].splitlines()
    assert table[0].split() == ["run", "nats", "seconds"]
    told = [
        re.match(r" *(fvbn-digits lr=\S+) 2 seeds +(= [\d.]+ ± [\d.]+) val 180, 2 seeds +\d+ *$", line)
        for line in table[2:4]
    ]
    assert told[0] is not None, table
    assert told[1] is not None, table
    assert told[0][1] == "fvbn-digits lr=0.01"
    again = "the best again: python src/train.py model=fvbn "
    (line,) = [line for line in table if line.startswith(again)]
    assert line.endswith(" model.optimizer.net.lr=0.01 seed=1 +trainer.benchmark=False")
    nats = [summary_of(Path("s") / f"{k}-fvbn-digits")["metrics"]["val/nats"]["value"] for k in (0, 1)]  # type: ignore[index]
    assert f"= {sum(nats) / 2:.2f} ± {abs(nats[0] - nats[1]) / 2:.2f}" == told[0][2]
    code, _, err = script("train", *line.removeprefix("the best again: python src/train.py ").split())
    assert code == 0, err
    code, out, err = script("train", "-m", *TINY, "every.log=1", "seed=1,x", "objective=train/d_x", "hydra.sweep.dir=t")
    assert code == 2
    assert re.search(r"gan-digits seed=1 0-gan-digits +[\d.]+ ", out) is None, "one run is no ranking"


def test_choices_are_recorded(script: Command) -> None:
    assert script("train", *TINY, "hydra.run.dir=run", "experiment=gan_digits", "model/objective=hinge")[0] == 0
    choices = summary_of(Path("run"))["choices"]
    assert isinstance(choices, dict)
    expected = {"model": "gan", "data": "digits", "experiment": "gan_digits", "model/objective": "hinge", "sweep": None}
    assert expected.items() <= choices.items()
    assert not any(group.startswith("hydra/") for group in choices)


def test_configurations_of_ones_own(script: Command) -> None:
    for folder in ("own/model/objective", "own/experiment"):
        Path(folder).mkdir(parents=True)
    Path("own/model/objective/softer.yaml").write_text("_target_: imago.models.gan.LeastSquares\n")
    Path("own/experiment/quick.yaml").write_text(
        "# @package _global_\ndefaults: [override /model: gan, override /model/objective: softer]\nmax_updates: 1\n"
    )
    given = ["--config-dir", "own", *SMALL, "callbacks=minimal"]
    code, out, err = script("train", *given, "experiment=quick", "hydra.run.dir=run")
    assert code == 0, err
    assert summary_of(Path("run"))["updates"] == 1
    code, out, _ = script("train", *given, "max_updates=1")
    assert "experiments for model=gan data=digits: gan_digits, quick\n" in out
    code, _, err = script("train", *given, "experiment=quik")
    assert code == 2
    assert "experiment=quik: no such choice; did you mean quick? --help lists all " in err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ["--help"],
            ["experiment: autoencoder_mnist, ", "model/objective: hinge, ", "debug: anomaly, "],
        ),
        (["--cfg", "job", "--resolve", "seed=7"], ["\n  seed: 7\n", "max_images: 2000000"]),
        (["--cfg", "all", "--resolve", "-p", "hydra.run", "name=x"], ["dir: logs/x/20"]),
        (["--info", "defaults", "model/penalty=r1"], ["model/penalty/r1"]),
        (["--shell-completion", "install=bash"], ["hydra_bash_completion"]),
        (["--version"], ["Hydra 1."]),
    ],
)
def test_hydras_options(script: Command, given: list[str], words: list[str]) -> None:
    code, out, err = script("train", *given)
    assert code == 0, err
    for word in words:
        assert word in out
    assert list(Path().iterdir()) == []


def test_a_shell_completes_groups_choices_and_keys(script: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    completed = {"model/objective=h": "model/objective=hinge", "model.late": "model.latent=", "experiment=sn": "sngan"}
    for typed, completion in completed.items():
        monkeypatch.setenv("COMP_LINE", f"python src/train.py {typed}")
        code, out, _ = script("train", "--shell-completion", "query=bash")
        assert code == 0
        assert completion in out


def test_a_sweeper_gets_the_last_value_of_what_it_optimises(
    script: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train = importlib.import_module("imago.cli.train")
    returned = []

    def task(config: DictConfig) -> float | None:
        returned.append(train.main(config))
        return returned[-1]

    given = ["-m", *TINY, "every.log=1", "objective=train/d_x", "seed=1,2", "hydra.sweep.dir=s"]
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    with pytest.raises(SystemExit, match="0"):
        cli.run(task, "train", train.check)
    for job, value in enumerate(returned):
        with (tmp_path / f"s/{job}-gan-digits/metrics.csv").open() as file:
            assert value == float(list(csv.DictReader(file))[-1]["train/d_x"])
    assert len(set(returned)) == 2
    code, _, err = script("train", *TINY, "objective=train/bpd")
    assert code == 2
    assert "error: objective=train/bpd: the run never measured it; it has train/loss/discriminator, " in err
    code, out, err = script("train", *TINY, "objective=val/bpd")
    assert code == 2
    assert "error: objective=val/bpd: this run would not measure it; its metrics and callbacks measure nothing" in err
    assert "writes to" not in out
    assert script("train", *TINY, "objective=hinge")[0] == 2


@pytest.mark.parametrize("name", ["default", "overfit", "profiler", "anomaly"])
def test_every_debug_configuration_runs(script: Command, name: str) -> None:
    given = [
        *SMALL,
        f"debug={name}",
        "hydra.run.dir=run",
        *(["max_images=640"] if name in ("overfit", "anomaly") else []),
    ]
    code, _, err = script("train", *given)
    assert code == 0, err
    found = summary_of(Path("run"))
    assert (found["updates"], found["images_seen"]) == {
        "default": (5, 320), "overfit": (40, 640), "profiler": (100, 6400), "anomaly": (10, 640),
    }[name]  # fmt: skip
    assert ("trained on the first 16" in str(found["split"])) == (name == "overfit")


def test_a_loss_that_is_no_number_names_its_operation(script: Command) -> None:
    code, _, err = script("train", *SMALL, "debug=anomaly", "model.optimizer.discriminator.lr=1e30", "max_images=10000")
    assert code == 1
    assert "nan" in err
    assert not torch.is_anomaly_enabled()


def test_what_only_a_command_line_may_construct(script: Command) -> None:
    given = ["+callbacks.rates._target_=lightning.pytorch.callbacks.LearningRateMonitor"]
    given += [
        "+logger.own._target_=lightning.pytorch.loggers.CSVLogger",
        "+logger.own.save_dir=own",
        "+logger.own.name=n",
    ]
    code, _, err = script("train", *TINY, *given, "every.log=1")
    assert code == 0, err
    assert len(list(Path("own/n").glob("version_0/metrics.csv"))) == 1
    for wrong, told in {
        "+callbacks.x._target_=lightning.pytorch.callbacks.EarlyStopping": "callbacks.x.monitor: missing",
        "+callbacks.x._target_=lightning.pytorch.loggers.CSVLogger": "can be constructed in callbacks",
        "+callbacks.x._target_=lightning.pytorch.callbacks.early_stopping.log": "can be constructed in callbacks",
    }.items():
        code, _, err = script("train", *TINY, wrong)
        assert code == 2
        assert told in err


def test_a_model_and_its_data_from_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["model=vae", "data=digits", "model.latent=3", "data.batch_size=8", "seed=5"]
    model, data = imago.compose(given)
    again, _ = imago.compose(given)
    assert (model.latent, model.config["latent"], data.batch_size) == (3, 3, 8)
    assert model.spec == data.spec
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(UserError, match=r'^model.latent="x": '):
        imago.compose(["model=vae", "model.latent=x"])
    assert list(tmp_path.iterdir()) == []


def test_compose_begins_with_the_weights_of_train(script: Command) -> None:
    given = ["model=fvbn", "seed=5"]
    model, _ = imago.compose(given)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tiny = ["logger=none", "metrics=none", "trainer=cpu", "callbacks=minimal", "max_updates=1", "hydra.run.dir=run"]
    assert script("train", *given, *tiny, "model.optimizer.net.lr=0")[0] == 0
    trained = imago.load("run").state_dict()
    assert all(torch.equal(trained[name], value) for name, value in before.items())


def test_a_launcher_gets_the_exit_code_of_a_job_in_another_process() -> None:
    assert pickle.loads(pickle.dumps(cli.JobFailed(2))).exit_code == 2
