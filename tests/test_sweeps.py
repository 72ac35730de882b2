"""What a job of a sweep is called, and which runs are its own."""

from pathlib import Path

import pytest
import yaml

from imago.sweeps import Job, job_of, short_names

CHOICES = {"model": "vae", "data": "mnist", "experiment": "vae_mnist"}


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["model.optimizer.net.lr", "seed"], ["lr", "seed"]),
        (["model.optimizer.generator.lr", "model.optimizer.discriminator.lr"], ["generator.lr", "discriminator.lr"]),
        (["model/optimizer/generator", "model/objective"], ["generator", "objective"]),
        (["lr", "model.lr"], ["lr", "model.lr"]),
    ],
)
def test_keys_are_as_short_as_tells_them_apart(keys: list[str], names: list[str]) -> None:
    assert list(short_names(keys).values()) == names


@pytest.mark.parametrize(
    ("varied", "own", "name"),
    [
        ({"model": "vae", "data": "mnist", "seed": "1"}, False, "vae-mnist seed=1"),
        ({"model": "vae", "seed": "1"}, True, "vae-mnist model=vae seed=1"),
        ({"experiment": "vae_mnist"}, False, "vae-mnist"),
        ({"experiment": "vae_mnist_paper"}, False, "vae-mnist experiment=vae_mnist_paper"),
        ({"name": "vae-mnist", "model.beta": "2"}, True, "vae-mnist beta=2"),
        ({"data.path": "x" * 50}, False, f"vae-mnist path={'x' * 40}…"),
    ],
)
def test_a_run_is_named_by_what_its_sweep_varies(varied: dict[str, str], own: bool, name: str) -> None:
    assert Job(Path("s"), (), varied).named("vae-mnist", CHOICES, own) == name


def test_what_varies_is_read_from_the_sweep(tmp_path: Path) -> None:
    """The command line counts more than the configuration; other launchers' jobs have no other place to read it."""
    given = ["model=vae", "seed=1,2", "+x='a,b'", "lr=choice(1,2)", "model.hidden=[5],[6]"]
    node = {"sweeper": {"params": {"model": "gan,vae", "data": "digits,mnist"}}, "overrides": {"task": given}}
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": node}))
    own = ["model=vae", "data=mnist", "seed=2", "+x='a,b'", "lr=1", "model.hidden=[5]"]
    job = job_of(tmp_path, own)
    assert job.varied == {"data": "mnist", "seed": "2", "lr": "1", "model.hidden": "[5]"}
    assert job.overrides == tuple(own)
    assert job_of(tmp_path / "elsewhere", own).varied == {}


def test_a_job_goes_on_with_runs_of_its_own_sweep_alone(tmp_path: Path) -> None:
    sweep = tmp_path / "new"
    job = Job(sweep, ("metrics=none", "seed=1", "resume=auto", "max_images=200"), {"seed": "1"})
    recorded = Job(tmp_path / "old", ("metrics=none", "seed=1", "max_images=100"), {"seed": "1"}).recorded
    inside, outside = sweep / "0-vae-mnist", tmp_path / "old" / "0-vae-mnist"
    assert job.may_continue(outside, recorded), "the same sweep, given again"
    assert job.may_continue(inside, None)
    assert job.may_continue(inside, recorded | {"overrides": []})
    assert not job.may_continue(outside, None), "a single run"
    assert not job.may_continue(outside, recorded | {"overrides": ["metrics=classifier", "seed=1"]})
    assert not job.may_continue(inside, recorded | {"varied": {"seed": "2"}}), "another job"
