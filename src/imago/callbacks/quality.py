"""Sample quality during training: the metrics of the ``metrics`` group, every so many images."""

import math
from collections.abc import Callable

from lightning import LightningModule, Trainer
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from imago.callbacks.averaging import sampling_weights
from imago.callbacks.common import Periodic, find, log_row
from imago.callbacks.interruption import Abandoned, Interruption
from imago.callbacks.log import clock_paused
from imago.callbacks.progress import Progress
from imago.metrics import Evaluator, Measurement
from imago.models.base import GenerativeModel
from imago.noise import PerImageGenerator
from imago.runs import Run


class MeasureQuality(Periodic):
    """Measures samples against the training split and logs ``val/<metric>``; the summary keeps value and protocol.

    Args:
        every: number of images between two measurements.
        run: the run directory.
        metrics: what is measured, prepared for the data.
        at_start: measure the untrained model too, for comparison.
        seed: of the random streams of the samples; another one than the grids'.
    """

    def __init__(
        self, every: PositiveInt, run: Run, metrics: Evaluator, at_start: bool = True, seed: NonNegativeInt = 1
    ) -> None:
        super().__init__(every)
        self.run = run
        self.metrics = metrics
        self.at_start = at_start
        self.seed = seed
        self.latest: dict[str, float] = {}

    @property
    def headline(self) -> str | None:
        """The name under which the most important metric is logged, ``None`` if there is none."""
        return f"val/{self.metrics.names[0]}" if self.metrics.names else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the untrained model."""
        assert isinstance(pl_module, GenerativeModel)
        if self.at_start and pl_module.images_seen == 0 and self.metrics.names:
            measurements = self._measure(trainer, pl_module)
            self.run.update(untrained={f"val/{m.name}": m.value for m in measurements})
        super().on_train_start(trainer, pl_module)

    def act(self, trainer: Trainer, model: GenerativeModel) -> None:
        """Measure, log, and keep the results in the summary."""
        if not self.metrics.names:
            return
        measurements = self._measure(trainer, model)
        results = self.run.summary.get("metrics", {})
        for m in measurements:
            key = f"val/{m.name}"
            best = min(m.value, results.get(key, {}).get("best", math.inf))
            results[key] = {"value": m.value, "best": best, "images_seen": model.images_seen, "protocol": m.protocol}
        self.run.update(metrics=results)

    def _measure(self, trainer: Trainer, model: GenerativeModel) -> list[Measurement]:
        interruption, progress = find(trainer, Interruption), find(trainer, Progress)

        def stop_if_requested() -> None:
            if interruption is not None:
                interruption.stop_if_requested()

        measurements: list[Measurement] = []
        abandoned = False
        if trainer.is_global_zero:
            with clock_paused(trainer), sampling_weights(trainer, model) as averaged:
                report = None if progress is None else progress.subtask("measuring samples")
                try:
                    measurements = measure(self.metrics, model, self.seed, averaged, report, stop_if_requested)
                except Abandoned:
                    abandoned = True
                finally:
                    if progress is not None:
                        progress.end_subtask()
        if trainer.strategy.broadcast(abandoned):  # the others wait here for the one that measures
            raise Abandoned
        self.latest = {f"val/{m.name}": m.value for m in measurements}
        log_row(trainer, model, self.latest)
        return measurements


def measure(
    metrics: Evaluator,
    model: GenerativeModel,
    seed: int,
    averaged: bool,
    progress: Callable[[int, int], None] | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> list[Measurement]:
    """Measure a model's samples; the protocols say with which weights and seed.

    Args:
        metrics: what is measured, prepared for the data.
        model: with the weights to be judged.
        seed: of the random streams of the samples.
        averaged: whether these are averaged weights.
        progress: called with (samples so far, samples in all).
        before_batch: called before each batch of samples; may raise to abandon the measurement.
    """

    def sample(n: int, first: int) -> Tensor:
        before_batch()
        return model.sample(n, generator=PerImageGenerator(seed, first, device=model.device))

    measurements = metrics.measure(sample, progress)
    for m in measurements:
        m.protocol.update(weights="averaged" if averaged else "last", seed=seed)
    return measurements
