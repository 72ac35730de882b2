"""Measuring likelihood during training, and the best checkpoint by it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from explicit import Pixels
from imago.checkpoints import read
from imago.data import ImageDataModule
from imago.data.base import ImageSet
from imago.data.sources import Digits
from imago.evaluation import Measurement, Protocol, SampleQuality, measure_likelihood
from imago.runs import CSVLogger, Run
from imago.training.callbacks.checkpoints import Checkpoints
from imago.training.callbacks.ema import EMA
from imago.training.callbacks.interruption import Interruption
from imago.training.callbacks.likelihood import MeasureLikelihood
from imago.training.callbacks.log import TrainingLog
from imago.training.callbacks.quality import MeasureQuality


@pytest.fixture
def digits() -> ImageDataModule:
    data = ImageDataModule(Digits(), batch_size=16, binarize="threshold")
    data.prepare()
    return data


class Falling(SampleQuality):
    """A sample quality that becomes better with every measurement."""

    names = ("fd_toy",)

    def __init__(self) -> None:
        super().__init__(None, samples=2)
        self.value = 0.0

    def prepare(self, data: Any, device: torch.device) -> None:
        raise AssertionError("prepared before training")

    def measure(self, sample: Any, progress: Any = None) -> list[Measurement]:
        sample(2, 0)
        self.value -= 1
        return [Measurement("fd_toy", self.value, Protocol())]


def test_values_and_protocols_reach_rows_and_summary(fit: Any, tmp_path: Path, digits: ImageDataModule) -> None:
    run, model, logger = Run(tmp_path), Pixels(digits.spec), CSVLogger(tmp_path / "metrics.csv")
    fit(model, 6, MeasureLikelihood(32, run), loggers=(logger,), data=digits)
    assert [row["images_seen"] for row in logger.rows] == [0, 32, 64, 96]
    assert logger.rows[0]["val/bpd"] == pytest.approx(1)
    assert run.summary["untrained"] == pytest.approx({"val/bpd": 1, "val/nats": 64 * math.log(2)})
    bpd = [row["val/bpd"] for row in logger.rows]
    assert bpd == sorted(bpd, reverse=True)
    assert bpd[-1] < 0.8
    for m in measure_likelihood(model, digits, "val", averaged=False):
        entry = run.summary["metrics"][f"val/{m.name}"]
        assert entry == {"value": m.value, "best": m.value, "images_seen": 96, "protocol": m.protocol.as_dict()}
        assert logger.rows[-1][f"val/{m.name}"] == m.value


def test_a_limit_of_images_and_no_measurement_at_the_start(fit: Any, tmp_path: Path, digits: ImageDataModule) -> None:
    run, logger = Run(tmp_path), CSVLogger(tmp_path / "metrics.csv")
    callback = MeasureLikelihood(10**6, run, images=50, batch_size=32, at_start=False)
    fit(Pixels(digits.spec), 2, callback, loggers=(logger,), data=digits)
    assert [row["images_seen"] for row in logger.rows] == [32]
    assert run.summary["metrics"]["val/nats"]["protocol"]["images"] == 50
    assert "untrained" not in run.summary


def test_the_averaged_weights_are_judged_where_there_are_some(
    fit: Any, tmp_path: Path, digits: ImageDataModule
) -> None:
    run, model, averaging = Run(tmp_path), Pixels(digits.spec), EMA(10**6, ramp=1.0)
    fit(model, 5, averaging, MeasureLikelihood(10**6, run), data=digits)
    entry = run.summary["metrics"]["val/bpd"]
    assert entry["protocol"]["weights"] == "averaged"
    own = measure_likelihood(model, digits, "val", averaged=False)[0].value
    with averaging.applied(model):
        assert measure_likelihood(model, digits, "val", averaged=True)[0].value == entry["value"] != own


def test_models_without_likelihood_are_left_alone(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, logger = Run(tmp_path), CSVLogger(tmp_path / "metrics.csv")
    fit(toy(), 3, MeasureLikelihood(16, run), last=(Checkpoints(10**6, run, {"seed": 0}),), loggers=(logger,))
    assert logger.rows == []
    assert "metrics" not in run.summary
    assert not run.best.exists()


def test_the_best_checkpoint_follows_the_likelihood(fit: Any, tmp_path: Path, digits: ImageDataModule) -> None:
    """The sample quality improves to the end, the likelihood does not: from step 4 on the weights only get worse."""
    run = Run(tmp_path)

    class Spoilt(Pixels):
        def on_train_batch_start(self, *rest: Any) -> None:
            if self.state.batches >= 3:
                self.table.weight.data += torch.randn(self.table.weight.shape)

    quality, likelihood = MeasureQuality(16, run, Falling()), MeasureLikelihood(16, run)
    fit(Spoilt(digits.spec), 6, quality, likelihood, last=(Checkpoints(10**6, run, {"seed": 0}),), data=digits)
    assert run.summary["best"]["metric"] == "val/bpd"
    assert read(run.best)["progress"]["images_seen"] == run.summary["best"]["images_seen"] == 48
    assert run.summary["metrics"]["val/bpd"]["best"] == run.summary["best"]["value"]
    assert run.summary["metrics"]["val/bpd"]["value"] > run.summary["best"]["value"]
    model = Pixels(digits.spec)
    model.load_state_dict(read(run.best)["state_dict"])
    assert measure_likelihood(model, digits, "val", averaged=False)[0].value == run.summary["best"]["value"]


def test_measuring_does_not_move_training_nor_its_clock(
    fit: Any, tmp_path: Path, digits: ImageDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0

    def slowly(*rest: Any, **options: Any) -> list[Measurement]:
        nonlocal seconds
        seconds += 1000.0
        torch.rand(1)  # as much noise as it likes
        return measure_likelihood(*rest, **options)

    def clock() -> float:
        return seconds

    monkeypatch.setattr("imago.models.base.time.perf_counter", clock)
    quiet = Pixels(digits.spec)
    fit(quiet, 4, data=digits)
    monkeypatch.setattr("imago.training.callbacks.likelihood.measure_likelihood", slowly)
    busy, log = Pixels(digits.spec), TrainingLog(16, Run(tmp_path))
    fit(busy, 4, log, MeasureLikelihood(16, Run(tmp_path)), data=digits)
    assert torch.equal(quiet.table.weight, busy.table.weight)
    assert seconds == 5000
    assert busy.state.seconds == 0


def test_an_abandoned_measurement_is_made_up_for(fit: Any, tmp_path: Path, digits: ImageDataModule) -> None:
    """A signal during the second measurement: the continued run makes it first, and logs as if nothing had been."""
    whole, interruption = CSVLogger(tmp_path / "whole.csv"), Interruption()
    fit(Pixels(digits.spec), 6, MeasureLikelihood(32, Run(tmp_path / "whole")), loggers=(whole,), data=digits)

    class Interrupting(Pixels):
        def log_prob(self, images: Any, labels: Any) -> Any:
            if not self.training and self.state.images == 64:
                interruption.requested = 15
            return super().log_prob(images, labels)

    run, checkpoints = Run(tmp_path / "cut"), {"seed": 0}
    first = MeasureLikelihood(32, run, batch_size=100)
    fit(
        Interrupting(digits.spec), 6, first, interruption, last=(Checkpoints(10**6, run, checkpoints),),
        loggers=(CSVLogger(run.metrics),), data=digits,
    )  # fmt: skip
    assert first.acted_at == 32
    assert read(run.last)["progress"]["images_seen"] == 64
    second, logger = MeasureLikelihood(32, run, batch_size=100), CSVLogger(run.metrics)
    fit(
        Pixels(digits.spec), 6, second, last=(Checkpoints(10**6, run, checkpoints),),
        loggers=(logger,), checkpoint=run.last, data=digits,
    )  # fmt: skip
    expected = [[float(row[k]) for k in ("images_seen", "val/bpd", "val/nats")] for row in whole.rows]
    rows = [[float(row[k]) for k in ("images_seen", "val/bpd", "val/nats")] for row in logger.rows]
    assert rows == [pytest.approx(row, rel=1e-6) for row in expected]
    assert run.summary["best"]["images_seen"] == 96


def test_a_number_that_is_none_is_never_the_best(fit: Any, tmp_path: Path, digits: ImageDataModule) -> None:
    run = Run(tmp_path)

    class Broken(Pixels):
        def log_prob(self, images: Any, labels: Any) -> Any:
            value = super().log_prob(images, labels)
            return value * float("nan") if not self.training and self.state.images == 64 else value

    fit(Broken(digits.spec), 4, MeasureLikelihood(32, run), last=(Checkpoints(10**6, run, {"seed": 0}),), data=digits)
    entry = run.summary["metrics"]["val/bpd"]
    assert math.isnan(entry["value"])
    assert 0 < entry["best"] < 1
    assert read(run.best)["progress"]["images_seen"] == 32


def test_nothing_is_measured_of_classes_without_training_images(
    fit: Any, tmp_path: Path, digits: ImageDataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = [len(digits.train)] + [0] * 9
    model = Pixels(replace(digits.spec, class_counts=counts), conditional=True)
    digits.train = ImageSet(digits.train.images, torch.zeros(len(digits.train), dtype=torch.int64))
    digits.val = ImageSet(digits.val.images, torch.ones(len(digits.val), dtype=torch.int64))
    run = Run(tmp_path)
    fit(model, 2, MeasureLikelihood(16, run), data=digits)
    assert "metrics" not in run.summary
    assert capsys.readouterr().err.count("none of the 180 validation images is of a class") == 1
