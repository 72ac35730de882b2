"""Numbers that are none: a run skips and counts such a step, or stops before anything of it is kept."""

import csv
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import TINY, configuration
from imago.checkpoints import load, read
from imago.models.base import GenerativeModel, Loss
from imago.rng import PerImageGenerator
from imago.runs import Run
from imago.training.callbacks.common import find
from imago.training.callbacks.ema import EMA
from imago.training.callbacks.log import DivergedError
from imago.training.callbacks.measuring import Measuring
from imago.training.run import train

FEW = ["data=digits", "metrics=none", "trainer=cpu", "logger=csv", "data.batch_size=16"]
FEW += ["max_images=320", "every.log=64", "every.samples=100000", "every.checkpoints=64", "every.likelihood=64"]
Poison = Callable[[GenerativeModel, float], None]


def settings(tmp_path: Path, model: str, *more: str) -> dict[str, Any]:
    return configuration(*FEW, f"model={model}", *TINY[model], f"logs={tmp_path}", *more)


def weight(model: GenerativeModel, value: float) -> None:
    next(iter(model.networks.values())).get_parameter(first_of(model)).data.view(-1)[0] = value


def first_of(model: GenerativeModel) -> str:
    return next(name for name, _ in next(iter(model.networks.values())).named_parameters())


def buffer(model: GenerativeModel, value: float) -> None:
    name = next(n for n, b in model.named_buffers() if b.is_floating_point() and n in model.state_dict())
    model.get_buffer(name).view(-1)[0] = value


def optimizer(model: GenerativeModel, value: float) -> None:
    state = next(iter(model._optimizers.values())).state
    next(iter(state.values()))["exp_avg"].view(-1)[0] = value


def average(model: GenerativeModel, value: float) -> None:
    averaging = find(model.trainer, EMA)
    assert averaging is not None
    next(iter(averaging.weights.values())).view(-1)[0] = value


CASES: dict[str, tuple[str, Poison, float, str]] = {
    "weight of a VAE": ("vae", weight, math.nan, "= nan or inf"),
    "weight of a GAN": ("gan", weight, math.inf, "= nan or inf"),
    "buffer": ("dcgan", buffer, math.nan, "running_mean = nan or inf"),
    "optimiser": ("gan", optimizer, math.inf, r"optimizer_states.*exp_avg = nan or inf"),
    "average": ("made", average, math.nan, r"callbacks\.EMA\.weights.* = nan or inf"),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_that_is_no_number_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Spoilt behind the last step before a checkpoint, with nothing of it in a row of the log yet."""
    name, poison, value, message = CASES[case]
    step = GenerativeModel.training_step

    def spoilt(self: GenerativeModel, batch: Any, index: int) -> None:
        step(self, batch, index)
        if self.state.images == 192:
            poison(self, value)

    monkeypatch.setattr(GenerativeModel, "training_step", spoilt)
    stops_and_keeps_what_was_good(settings(tmp_path, name, "every.log=100000"), tmp_path, message, 192)


@pytest.mark.parametrize(
    ("model", "player", "value"),
    [
        ("vae", 0, math.nan),
        ("gan", 0, math.inf),
        ("gan", 1, math.nan),
        *(pytest.param(model, 0, math.inf, marks=pytest.mark.slow) for model in TINY if model != "hvae"),  # skips it
        pytest.param("dcgan", 1, math.nan, marks=pytest.mark.slow),
    ],
)
def test_a_loss_that_is_no_number_stops_with_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, player: int, value: float
) -> None:
    def spoilt(model: GenerativeModel, loss: Loss) -> Loss:
        bad = model.state.images == 160 and loss.network == list(model.networks)[player]
        return loss._replace(value=loss.value * value) if bad else loss

    spoil(monkeypatch, spoilt)
    stops_and_keeps_what_was_good(settings(tmp_path, model), tmp_path, "(nan|inf)", 192)


def spoil(monkeypatch: pytest.MonkeyPatch, how: Callable[[GenerativeModel, Loss], Loss]) -> None:
    """Train on losses that were changed."""
    losses = GenerativeModel.losses

    def spoilt(self: GenerativeModel, *given: Any) -> Iterator[Loss]:
        for loss in losses(self, *given):
            yield how(self, loss)

    monkeypatch.setattr(GenerativeModel, "losses", spoilt)


def stops_and_keeps_what_was_good(config: dict[str, Any], tmp_path: Path, message: str, images: int) -> None:
    with pytest.raises(DivergedError, match=message) as error:
        train(config, "x", tmp_path / "run")
    run = Run(tmp_path / "run")
    assert f"after {images} images; last good checkpoint: {run.last}." in str(error.value)
    assert run.summary["status"] == "failed"
    assert read(run.last)["progress"]["images_seen"] == images - 64
    for path in run.last.parent.glob("*.ckpt"):
        for part in ("state_dict", "optimizer_states", "callbacks"):
            assert all(tensor.isfinite().all() for tensor in tensors(read(path)[part])), (path, part)
    load(run.last).sample(2, generator=PerImageGenerator(0))


def tensors(content: Any) -> list[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        return [content] if content.is_floating_point() else []
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else []
    return [tensor for part in parts for tensor in tensors(part)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_where_steps_are_skipped_they_are_counted_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Steps 3, 7 and 8 of 20; the weights are those of a run that left them out."""
    bad = {2, 6, 7}

    def spoilt(model: GenerativeModel, loss: Loss) -> Loss:
        factor = value if model.state.batches in bad else 1
        return Loss(loss.network, loss.value * factor, {name: v * factor for name, v in loss.logs.items()})

    spoil(monkeypatch, spoilt)
    run = train(settings(tmp_path, "hvae", "model.gradient_skip=1e9"), "x", tmp_path / "run")
    assert run.summary["status"] == "completed"
    rows = [row for row in csv.DictReader(run.metrics.read_text().splitlines()) if row["train/skipped/net"]]
    assert [float(row["train/skipped/net"]) for row in rows] == [0.25, 0.5, 0.0, 0.0, 0.0]
    assert all(math.isfinite(float(number)) for row in rows for number in row.values() if number)


def test_where_every_step_is_skipped_the_run_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(model: GenerativeModel, loss: Loss) -> Loss:
        factor = math.nan if model.state.images >= 128 else 1
        return Loss(loss.network, loss.value * math.nan, {name: v * factor for name, v in loss.logs.items()})

    spoil(monkeypatch, spoilt)
    with pytest.raises(DivergedError, match=r"= nan after 192 images; last good checkpoint: .*last\.ckpt"):
        train(settings(tmp_path, "hvae", "model.gradient_skip=1e9"), "x", tmp_path / "run")


def test_a_measured_number_that_is_none_is_written_and_never_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nan, then infinities of both signs, then a number again: that is the best."""
    values = iter([math.nan, -math.inf, math.inf, math.nan, 2.0, 3.0])
    measure = Measuring._measure

    def spoilt(self: Measuring, *given: Any, **more: Any) -> Any:
        found = measure(self, *given, **more)
        value = next(values)
        for m in found:
            object.__setattr__(m, "value", value)
        self.latest = dict.fromkeys(self.latest, value)
        return found

    monkeypatch.setattr(Measuring, "_measure", spoilt)
    run = train(settings(tmp_path, "made"), "x", tmp_path / "run")
    assert run.summary["status"] == "completed"
    assert (run.summary["best"]["value"], run.summary["best"]["images_seen"]) == (2.0, 256)
    assert run.summary["metrics"]["val/bpd"]["best"] == 2.0
    assert (run.path / "curves.png").exists()
    assert re.search(r"\bNaN\b", run.summary_path.read_text())
