"""A run that is stopped and continued is the run that was never stopped, bit for bit."""

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import Command, configuration, small
from imago.checkpoints import read
from imago.errors import Interrupted, UserError
from imago.images import Batch
from imago.models.gan import GAN
from imago.runs import alone_in
from imago.training.callbacks.log import TrainingLog
from imago.training.callbacks.quality import MeasureQuality
from imago.training.callbacks.samples import SampleGrid
from imago.training.run import train

EVERY = ["every.log=96", "every.samples=200", "every.checkpoints=10000", "max_images=null"]
MODELS = {
    "gan": ["model=gan", "model.generator.hidden=[16]", "model.discriminator.hidden=[16,16]"],
    "dcgan": ["model=dcgan", "model.generator.width=4", "model.discriminator.width=4", "model.discriminator_steps=2"],
    "conditional": [
        "model=dcgan",
        "conditional=true",
        "model.generator.width=4",
        "model.discriminator.width=4",
        "model.discriminator.spectral_norm=true",
        "model/schedule=warmup",
        "model.schedule.images=600",
        "model.gradient_clip=0.5",
    ],
    "autoencoder": ["model=autoencoder", "conditional=true", "model.encoder.width=4", "model.decoder.width=4"],
}
SLURM = {"NTASKS": "1", "JOB_ID": "5", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
# 1,437 images are 22 batches an epoch: 17 stop in the middle of the first, 28 in the second.
BATCHES = ["data.batch_size=64", "every.log=160"]
SHORT = ["model.network.width=8", "model.steps=20", "model.sampler.steps=5"]
EXPLICIT = {
    "pixelcnn": ["model=pixelcnn", "model.features=8", "model.blocks=1", "model.head=[8]"],
    "vae": ["model=vae", "model.latent=8", "model.encoder.hidden=[16]", "model.kl_warmup=1500", "model.free_bits=0.1"],
    "ddpm": ["model=ddpm", *SHORT, "conditional=true", "model.p_uncond=0.3"],
    "rbm": ["model=rbm", "data.binarize=threshold", "model.hidden=8", "model.persistent=true"],
    "hvae": [
        "model=hvae", "model.width=8", "model.widest=8", "model.blocks=[1,1]", "model.kl_warmup=1500",
        "model/optimizer/net=muon",
    ],
}  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    """The logged rows without what a clock or the operating system decides."""
    with path.open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def assert_equal(a: object, b: object, where: str = "checkpoint") -> None:
    """Equal to the last bit, tensors included."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor), where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert isinstance(b, dict), where
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert isinstance(b, list | tuple), where
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{k}]")
    else:
        assert a == b, where


@pytest.mark.parametrize("model", MODELS)
def test_stopped_and_continued_equals_never_stopped(model: str, tmp_path: Path) -> None:
    options = [*MODELS[model], *EVERY, *BATCHES, "metrics=classifier", "metrics.samples=64", "every.quality=300"]
    n, total = (8, 14) if model == "dcgan" else (17, 28)
    whole = train(small(tmp_path / "whole", *options, f"max_updates={total}"), "x", tmp_path / "whole" / "run")
    first = train(small(tmp_path / "cut", *options, f"max_updates={n}"), "x", tmp_path / "cut" / "run")
    torch.manual_seed(12345)  # whatever happened in between must not matter
    second = train(small(tmp_path / "cut", *options, f"max_updates={total}", "resume=auto"), "x", tmp_path / "new")
    assert second.path == first.path
    one, other = read(whole.last), read(second.last)
    assert one["progress"]["updates"] == total
    for checkpoint in (one, other):
        del checkpoint["random"]["python"]  # beartype, which checks types while tests run, draws from it
    for key in ("state_dict", "optimizer_states", "progress", "random", "rows"):
        assert_equal(one[key], other[key], key)
    assert_equal(one["callbacks"]["EMA"], other["callbacks"]["EMA"])
    assert rows(whole.metrics) == rows(second.metrics)
    assert len(rows(whole.metrics)) >= 12
    for picture in whole.samples.glob("*.png"):
        assert picture.read_bytes() == (second.samples / picture.name).read_bytes()


@pytest.mark.parametrize("model", EXPLICIT)
def test_a_model_with_likelihood_continues_as_if_never_stopped(model: str, tmp_path: Path) -> None:
    """Measurements by likelihood, made twice where the run was cut (closing and due), leave no trace either."""

    def options(logs: str, updates: int, *more: str) -> dict[str, Any]:
        return configuration(
            *EXPLICIT[model], "data=digits", "data.binarize=dynamic", "logger=csv", "metrics=none", "trainer=cpu",
            *EVERY, *BATCHES, "every.samples=800", "every.likelihood=600", "callbacks.likelihood.images=48",
            "callbacks.samples.rows=1", "callbacks.samples.columns=3", f"max_updates={updates}",
            f"logs={tmp_path / logs}", *more,
        )  # fmt: skip

    whole = train(options("whole", 28), "x", tmp_path / "whole" / "run")
    train(options("cut", 17), "x", tmp_path / "cut" / "run")
    torch.manual_seed(12345)
    second = train(options("cut", 28, "resume=auto"), "x", tmp_path / "new")
    one, other = read(whole.last), read(second.last)
    for checkpoint in (one, other):
        del checkpoint["random"]["python"]
    for key in ("state_dict", "optimizer_states", "progress", "random", "rows"):
        assert_equal(one[key], other[key], key)
    assert_equal(one["callbacks"]["EMA"], other["callbacks"]["EMA"])
    assert rows(whole.metrics) == rows(second.metrics)
    measured = [row["images_seen"] for row in rows(whole.metrics) if row["val/bpd"]]
    assert measured == ["0", "640", "1216", "1792"]
    assert whole.summary["metrics"] == second.summary["metrics"]
    assert whole.summary["best"] == second.summary["best"]
    assert_equal(read(whole.best)["state_dict"], read(second.best)["state_dict"])
    assert not any("test" in name for name in whole.summary["metrics"]), "the test split is for evaluate.py"


def numbers(summary: Any) -> Any:
    """A summary without what the clock, the command and the operating system decide."""
    if not isinstance(summary, dict):
        return summary
    own = ("seconds", "command", "memory", "per_second")
    return {k: numbers(v) for k, v in summary.items() if not any(part in k for part in own)}


def test_a_run_stopped_in_its_closing_phase_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a signal in the closing measurement, then by a failure before the closing grid; in the end nothing lacks."""
    options = [
        *MODELS["gan"],
        *EVERY,
        "metrics=classifier",
        "metrics.samples=64",
        "every.quality=300",
        "max_updates=31",
    ]
    whole = train(small(tmp_path / "whole", *options), "x", tmp_path / "whole" / "run")

    def at_the_end(kind: type, what: str, happens: Callable[[], None]) -> None:
        original = getattr(kind, what)

        def patched(self: Any, *arguments: Any, **named: Any) -> Any:
            if any(getattr(getattr(argument, "state", None), "images", 0) == 496 for argument in arguments):
                happens()
            return original(self, *arguments, **named)

        monkeypatch.setattr(kind, what, patched)

    def fails() -> None:
        raise RuntimeError("a bad day")

    path = tmp_path / "cut" / "run"
    with monkeypatch.context():
        at_the_end(MeasureQuality, "measure", lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(small(tmp_path / "cut", *options), "x", path)
        monkeypatch.undo()
    assert json.loads((path / "summary.json").read_text())["status"] == "interrupted"
    assert not (path / "samples" / "images-0000000496.png").exists(), "a run that is asked to stop does not draw"
    with monkeypatch.context():
        at_the_end(SampleGrid, "act", fails)
        with pytest.raises(RuntimeError, match="a bad day"):
            train(small(tmp_path / "cut", *options, "resume=auto"), "x", tmp_path / "new")
        monkeypatch.undo()
    second = train(small(tmp_path / "cut", *options, "resume=auto"), "x", tmp_path / "new")
    assert second.path == path
    assert_equal(numbers(second.summary), numbers(whole.summary))
    assert second.summary["status"] == "completed"
    assert second.summary["metrics"]["val/fd_classifier"]["images_seen"] == 496
    assert rows(whole.metrics) == rows(second.metrics)
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (read(run.path / "checkpoints" / name) for run in (whole, second))
        for key in ("state_dict", "optimizer_states", "progress", "rows"):
            assert_equal(one[key], other[key], key)
    assert sorted(p.name for p in whole.samples.iterdir()) == sorted(p.name for p in second.samples.iterdir())
    for picture in whole.samples.glob("*.png"):
        assert picture.read_bytes() == (second.samples / picture.name).read_bytes()
    with alone_in(path), pytest.raises(UserError, match=r"cut/run: another process is at work on this run"):
        train(small(tmp_path / "cut", *options, "resume=auto"), "x", tmp_path / "new")
    with pytest.raises(UserError, match=r"max_updates=31: the run in .* is there already"):
        train(small(tmp_path / "cut", *options, "resume=auto"), "x", tmp_path / "new")


@pytest.mark.filterwarnings(
    "ignore:.*srun. command is available:lightning.fabric.utilities.warnings.PossibleUserWarning"
)
def test_a_slurm_job_is_announced_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints are ours alone, where Lightning would write its own into the working folder and start from it."""
    for name, value in SLURM.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.chdir(tmp_path)
    Path("hpc_ckpt_1.ckpt").write_bytes(b"of another job")
    options = [*MODELS["gan"], *EVERY, "callbacks=minimal", "max_updates=6"]
    losses = GAN.batch_losses

    def signalled(self: GAN, batch: Batch, rng: Any) -> Any:
        if self.state.batches == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return losses(self, batch, rng)

    with monkeypatch.context() as patch:
        patch.setattr(GAN, "batch_losses", signalled)
        with pytest.raises(Interrupted) as error:
            train(small(tmp_path, *options), "x", tmp_path / "run")
    assert error.value.exit_code == 128 + signal.SIGUSR1
    assert read(tmp_path / "run")["progress"]["updates"] == 4
    assert train(small(tmp_path, *options, "resume=auto"), "x", tmp_path / "new").path == tmp_path / "run"
    assert [path.name for path in Path().glob("*.ckpt")] == ["hpc_ckpt_1.ckpt"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "on_train_start", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted) as error:
            train(small(tmp_path, *options), "x", tmp_path / "early")
    assert error.value.exit_code == 128 + signal.SIGTERM
    assert "stopped before the first checkpoint" in capsys.readouterr().err


def test_the_average_moves_and_is_not_the_last_weights(tmp_path: Path) -> None:
    run = train(small(tmp_path, *MODELS["gan"], *EVERY, "max_updates=30"), "x", tmp_path / "run")
    checkpoint = read(run.last)
    start = train(small(tmp_path, *MODELS["gan"], *EVERY, "max_updates=1"), "x", tmp_path / "start")
    for name, average in checkpoint["callbacks"]["EMA"]["weights"].items():
        assert not torch.equal(average, checkpoint["state_dict"][name])
        assert not torch.equal(average, read(start.last)["callbacks"]["EMA"]["weights"][name])


def test_resume_refuses_another_experiment(tmp_path: Path) -> None:
    run = train(small(tmp_path, *MODELS["gan"], *EVERY, "max_updates=2"), "x", tmp_path / "run")
    with pytest.raises(UserError, match=r"model.latent: 8 there, 9 now"):
        train(
            small(tmp_path, *MODELS["gan"], *EVERY, "max_updates=4", "model.latent=9", f"resume={run.path}"),
            "x",
            tmp_path,
        )
    with pytest.raises(UserError, match=r"max_updates=2: the run in .* is there already"):
        train(small(tmp_path, *MODELS["gan"], *EVERY, "max_updates=2", f"resume={run.last}"), "x", tmp_path)
    with pytest.raises(UserError, match="no such file"):
        train(small(tmp_path, *MODELS["gan"], "resume=nowhere.ckpt"), "x", tmp_path)


def test_a_foreign_or_damaged_file_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(UserError, match=r"cannot be read|refused"):
        read(damaged)
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}}, foreign)
    with pytest.raises(UserError, match=r"foreign\.ckpt: no checkpoint of this program: it lacks"):
        read(foreign)
    dangerous = tmp_path / "dangerous.ckpt"
    torch.save({"object": Path}, dangerous)
    with pytest.raises(UserError, match=r"dangerous\.ckpt: no checkpoint of this program: it holds objects"):
        read(dangerous)


def test_measuring_and_drawing_do_not_move_training(tmp_path: Path) -> None:
    busy = [*EVERY, "metrics=classifier", "metrics.samples=64", "every.quality=100", "max_updates=20"]
    one = train(small(tmp_path / "busy", *MODELS["dcgan"], *busy), "x", tmp_path / "busy" / "run")
    quiet = [*EVERY, "callbacks=minimal", "max_updates=20"]
    other = train(small(tmp_path / "quiet", *MODELS["dcgan"], *quiet), "x", tmp_path / "quiet" / "run")
    assert_equal(read(one.last)["state_dict"], read(other.last)["state_dict"])


def test_a_sweep_that_was_stopped_is_given_again(script: Command, tmp_path: Path) -> None:
    """Its finished jobs are no mistakes; a single run that has nothing left to do is one."""
    options = [
        "model=gan", "data=digits", "metrics=none", "logger=none", "callbacks=minimal", "model.generator.hidden=[8]",
        "model.discriminator.hidden=[8]", "max_images=128", "resume=auto",
    ]  # fmt: skip
    sweep = ["-m", *options, "seed=0,1"]
    assert script("train", *sweep)[0] == 0
    code, out, err = script("train", *sweep)
    assert code == 0, err
    assert out.count("note: max_images=128: the run in ") == 2
    assert len(list(tmp_path.glob("logs/**/summary.json"))) == 2
    code, _, err = script("train", *options)
    assert code == 2
    assert "is there already" in err
