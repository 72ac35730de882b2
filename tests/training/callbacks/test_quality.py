"""Measuring sample quality during training, and keeping the best checkpoint."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from imago.checkpoints import read
from imago.evaluation import Measurement, Protocol, SampleQuality
from imago.rng import PerImageGenerator
from imago.runs import CSVLogger, Run
from imago.training.callbacks.checkpoints import Checkpoints
from imago.training.callbacks.ema import EMA
from imago.training.callbacks.interruption import Abandoned, Interruption
from imago.training.callbacks.quality import MeasureQuality, machine_of, measure


class Scripted(SampleQuality):
    """Gives values from a list, and keeps the samples that it was shown."""

    names = ("fd_toy", "kd_toy")

    def __init__(self, *values: float) -> None:
        super().__init__(None, samples=5)
        self.values = list(values)
        self.seen: list[torch.Tensor] = []

    def prepare(self, data: Any, device: torch.device) -> None:
        raise AssertionError("prepared before training")

    def measure(self, sample: Any, progress: Any = None, means: Any = None) -> list[Measurement]:
        self.seen.append(torch.cat([sample(3, 0), sample(2, 3)]))
        value = self.values.pop(0)
        return [Measurement("fd_toy", value, Protocol(samples=5)), Measurement("kd_toy", -value, Protocol(samples=5))]


def test_values_and_protocols_reach_rows_and_summary(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, metrics = Run(tmp_path), Scripted(9.0, 5.0, 3.0, 4.0)
    logger = CSVLogger(run.metrics)
    fit(toy(), 6, MeasureQuality(32, run, metrics, at_start=True, seed=7), loggers=(logger,))
    assert [(row["images_seen"], row["val/fd_toy"]) for row in logger.rows] == [(0, 9), (32, 5), (64, 3), (96, 4)]
    assert run.summary["untrained"] == {"val/fd_toy": 9, "val/kd_toy": -9}
    protocol = {"samples": 5, "weights": "last", "seed": 7, "nfe": 1}
    for found in run.summary["metrics"].values():
        assert 0 < found["protocol"].pop("seconds_per_sample") < 1
        assert found["protocol"].pop("device") == machine_of(torch.device("cpu"))
    assert run.summary["metrics"] == {
        "val/fd_toy": {"value": 4, "best": 3, "images_seen": 96, "protocol": protocol},
        "val/kd_toy": {"value": -4, "best": -5, "images_seen": 96, "protocol": protocol},
    }


def test_the_averaged_weights_are_judged_where_there_are_some(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, metrics, model = Run(tmp_path), Scripted(1.0), toy(lr=0.05)
    averaging = EMA(10**6, ramp=1.0)
    fit(model, 4, averaging, MeasureQuality(10**6, run, metrics, at_start=False, seed=7))
    assert run.summary["metrics"]["val/fd_toy"]["protocol"]["weights"] == "averaged"
    own = model.sample(5, generator=PerImageGenerator(7))
    assert not torch.equal(metrics.seen[0], own)
    with averaging.applied(model):
        assert torch.equal(metrics.seen[0], model.sample(5, generator=PerImageGenerator(7)))


def test_measuring_outside_training(toy: Any) -> None:
    metrics, model, said = Scripted(2.0), toy(), []
    torch.set_num_threads(1)
    (headline, _) = measure(metrics, model, 3, True, before_batch=lambda: said.append(len(metrics.seen)))
    told = headline.protocol.as_dict()
    assert 0 < told.pop("seconds_per_sample") < 1
    assert re.fullmatch(r"CPU, \d+ cores?, 1 thread", told.pop("device")), "what seconds depend on"
    assert told == {"samples": 5, "weights": "averaged", "seed": 3, "nfe": 1}
    assert said == [0, 0], "asked before each batch of samples"
    assert torch.equal(metrics.seen[0], model.sample(5, generator=PerImageGenerator(3)))


def test_nothing_to_measure(toy: Any, fit: Any, tmp_path: Path) -> None:
    run = Run(tmp_path)
    quality = MeasureQuality(16, run, SampleQuality(None))
    fit(toy(), 3, quality, last=(Checkpoints(10**6, run, {"seed": 0}),))
    assert quality.headline(toy()) is None
    assert "metrics" not in run.summary
    assert not run.best.exists()


@pytest.mark.parametrize(
    ("values", "best"), [([5, 3, 4], 64), ([3, 4, 5], 32), ([5, 4, 3], 96), ([5, float("nan"), 6], 32)]
)
def test_best_is_the_best_by_the_headline(toy: Any, fit: Any, tmp_path: Path, values: list[float], best: int) -> None:
    run = Run(tmp_path)
    metrics = Scripted(1.0, *map(float, values))  # the untrained model's 1.0 does not count
    fit(toy(), 6, MeasureQuality(32, run, metrics), last=(Checkpoints(10**6, run, {"seed": 0}),))
    assert read(run.best)["progress"]["images_seen"] == best
    assert read(run.last)["progress"]["images_seen"] == 96


def test_the_best_checkpoint_holds_what_was_measured(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, metrics, averaging = Run(tmp_path), Scripted(2.0, 5.0), EMA(100)
    fit(
        toy(lr=0.05), 4, averaging, MeasureQuality(32, run, metrics, at_start=False, seed=7),
        last=(Checkpoints(10**6, run, {"seed": 0}),),
    )  # fmt: skip
    checkpoint, model = read(run.best), toy()
    model.load_state_dict(checkpoint["state_dict"])
    model.load_state_dict(checkpoint["callbacks"]["EMA"]["weights"], strict=False)
    assert torch.equal(model.sample(5, generator=PerImageGenerator(7)), metrics.seen[0])


class Directed(SampleQuality):
    """The same value of three names, of which lower, higher and neither is better."""

    names = ()

    def __init__(self, *values: float, headline: str = "fd_toy", samples: int = 5) -> None:
        self.names = [headline, "precision_toy", "authenticity_toy"]
        super().__init__(None, samples=5)
        self.values = list(values)
        self.seen = samples

    def prepare(self, data: Any, device: torch.device) -> None: ...

    def measure(self, sample: Any, progress: Any = None, means: Any = None) -> list[Measurement]:
        value = self.values.pop(0)
        return [Measurement(name, value, Protocol(samples=self.seen, seed=1)) for name in self.names]


def test_the_best_is_of_one_direction_one_name_and_one_protocol(
    toy: Any, fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Continued again and again, 32 images at a time."""
    run = Run(tmp_path)

    def go_on(batches: int, metrics: SampleQuality) -> tuple[dict[str, Any], int, list[str]]:
        """The best values by name, after how many images best.ckpt was written, and what is said."""
        start = run.last if run.last.exists() else None
        quality = MeasureQuality(32, Run(tmp_path), metrics, at_start=False)
        fit(toy(), batches, quality, last=(Checkpoints(16, quality.run, {"seed": 0}),), checkpoint=start)
        run.summary = quality.run.summary
        best = {key: entry.get("best") for key, entry in run.summary["metrics"].items()}
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
        return best, read(run.best)["progress"]["images_seen"], told

    nan = float("nan")
    found = go_on(6, Directed(5.0, nan, 4.0))
    assert found == ({"val/fd_toy": 4, "val/precision_toy": 5, "val/authenticity_toy": None}, 96, [])
    found = go_on(8, Directed(6.0))
    assert found == ({"val/fd_toy": 4, "val/precision_toy": 6, "val/authenticity_toy": None}, 96, []), "no better"
    best, images, told = go_on(10, Directed(7.0, samples=50))
    assert (best["val/fd_toy"], best["val/precision_toy"], images) == (7, 7, 160)
    assert told == [
        "note: val/fd_toy, val/precision_toy: the best starts anew, measured otherwise now (samples: 5 there, 50 now)",
        "note: best.ckpt starts anew: by val/fd_toy, measured otherwise now",
    ]
    assert go_on(12, Directed(8.0, samples=50))[:2] == (best | {"val/precision_toy": 8}, 160)
    best, images, told = go_on(14, Directed(9.0, samples=50, headline="kd_toy"))
    assert (best["val/fd_toy"], best["val/kd_toy"], images) == (7, 9, 224)
    assert told == ["note: best.ckpt starts anew: by val/kd_toy, by val/fd_toy before, measured otherwise now"]

    # version 0.1 kept a value alone: it goes on where the summary's protocol is the same
    checkpoint = torch.load(run.last, weights_only=True)
    checkpoint["callbacks"]["Checkpoints"]["best"] = 9.0
    torch.save(checkpoint, run.last)
    del run.summary["best"]["comparison_key"]
    run.update()
    assert go_on(16, Directed(10.0, samples=50, headline="kd_toy"))[1:] == (224, [])


def test_an_abandoned_measurement_is_made_up_for(toy: Any, fit: Any, tmp_path: Path) -> None:
    """A signal during the second measurement: the continued run makes it first, and its checkpoint may be the best."""
    run, interruption = Run(tmp_path), Interruption()

    class Interrupted(Scripted):
        def measure(self, sample: Any, progress: Any = None, means: Any = None) -> list[Measurement]:
            if len(self.values) == 1:
                interruption.requested = 15
            return super().measure(sample, progress, means)

    first = MeasureQuality(32, run, Interrupted(5.0, 99.0), at_start=False)
    fit(toy(), 6, first, interruption, last=(Checkpoints(10**6, run, {"seed": 0}),))
    assert (first.acted_at, run.summary["metrics"]["val/fd_toy"]["value"]) == (32, 5)
    assert read(run.last)["progress"]["images_seen"] == 64
    assert read(run.best)["progress"]["images_seen"] == 32

    metrics = Scripted(3.0, 4.0)
    logger = CSVLogger(run.metrics)
    second = MeasureQuality(32, run, metrics, at_start=False)
    fit(toy(), 6, second, last=(Checkpoints(10**6, run, {"seed": 0}),), loggers=(logger,), checkpoint=run.last)
    assert [(row["images_seen"], row["val/fd_toy"]) for row in logger.rows] == [(64, 3), (96, 4)]
    assert read(run.best)["progress"]["images_seen"] == 64
    assert run.summary["metrics"]["val/fd_toy"]["best"] == 3
    with pytest.raises(Abandoned):
        interruption.stop_if_requested()
