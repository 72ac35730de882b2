"""What measurements during training share: when, with which weights, and where the numbers go."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from lightning import LightningModule, Trainer

from imago.measures import Measurement, Protocol, better, is_better
from imago.models.base import GenerativeModel
from imago.processes import of_first_process
from imago.runs import Run, differences
from imago.training.callbacks.common import find, log_row, publish
from imago.training.callbacks.ema import sampling_weights
from imago.training.callbacks.interruption import Abandoned, Interruption
from imago.training.callbacks.pace import CHEAP, Paced
from imago.training.callbacks.progress import Progress


class Measuring(Paced, ABC):
    """Measures the model, logs ``val/<name>`` for each number, and keeps value, best and protocol in the summary.

    The best is of numbers of one protocol: where a continued run is measured otherwise, it starts anew.

    Args:
        every: number of images between two measurements.
        run: the run directory.
        at_start: measure the untrained model too, for comparison, where it takes no more than a few seconds.
        halvings, share: see :class:`~imago.training.callbacks.pace.Paced`.

    Attributes:
        doing: what the progress bar says meanwhile.
        latest: the last numbers by the names under which they are logged.
        comparison_keys: what numbers must share to be compared with these.
    """

    doing: ClassVar[str]

    def __init__(self, every: int, run: Run, at_start: bool, halvings: int, share: float | None) -> None:
        super().__init__(every, halvings, share)
        self.run = run
        self.at_start = at_start
        self._told: int | None = None  # the amount that a note was about
        self.latest: dict[str, float] = {}
        self.comparison_keys: dict[str, str] = {}

    @abstractmethod
    def headline(self, model: GenerativeModel) -> str | None:
        """The name under which the most important number is logged; ``None`` if this model cannot be measured so."""

    @abstractmethod
    def amounts(self, trainer: Trainer, model: GenerativeModel) -> list[int]:
        """How many images a measurement may be of, the largest number first."""

    @abstractmethod
    def seconds_each(self, trainer: Trainer, model: GenerativeModel) -> float:
        """Seconds that measuring takes for an image in one process; several call it together."""

    @abstractmethod
    def measure(
        self,
        trainer: Trainer,
        model: GenerativeModel,
        amount: int,
        averaged: bool,
        progress: Callable[[int, int], None] | None,
        before_batch: Callable[[], None],
    ) -> list[Measurement]:
        """Measure; called where there is a :meth:`headline`, by all processes, of which each does a share.

        Args:
            trainer: whose data may be needed.
            model: with the weights to be judged.
            amount: of how many images.
            averaged: whether these are averaged weights.
            progress: called with (images so far, images in all).
            before_batch: called before each batch; raises :class:`Abandoned` if the run was asked to stop.
        """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the untrained model."""
        assert isinstance(pl_module, GenerativeModel)
        if self.at_start and pl_module.state.images == 0 and self.headline(pl_module):
            with self.charged():
                values = {f"val/{m.name}": m.value for m in self._measure(trainer, pl_module, untrained=True)}
            if values:
                self.run.update(untrained=self.run.summary.get("untrained", {}) | values)
        super().on_train_start(trainer, pl_module)

    def act(self, trainer: Trainer, model: GenerativeModel) -> None:
        """Measure, log, and keep the results in the summary."""
        if not self.headline(model):
            return
        measurements = self._measure(trainer, model)
        results = self.run.summary.get("metrics", {})
        anew: dict[str, list[str]] = {}
        for m in measurements:
            key = f"val/{m.name}"
            old = results.get(key, {})
            best, before = old.get("best"), Protocol.from_dict(old.get("protocol", {}))
            if best is not None and before.comparison_key != m.protocol.comparison_key:
                changed = "; ".join(differences(before.compared, m.protocol.compared))
                anew.setdefault(changed, []).append(key)
                best = None
            best = m.value if is_better(m.name, m.value, best) else best if better(m.name) else None
            results[key] = {"value": m.value, "images_seen": model.state.images, "protocol": m.protocol.as_dict()}
            results[key] |= {} if best is None else {"best": best}
        if trainer.is_global_zero:
            for changed, keys in anew.items():
                text = f"note: {', '.join(keys)}: the best starts anew, measured otherwise now ({changed})"
                print(text, file=sys.stderr)
        self.run.update(metrics=results)
        publish(trainer, model, self.latest)

    def _measure(self, trainer: Trainer, model: GenerativeModel, untrained: bool = False) -> list[Measurement]:
        interruption = find(trainer, Interruption)
        progress = find(trainer, Progress) if trainer.is_global_zero else None

        def stop_if_requested() -> None:
            if interruption is not None:
                interruption.stop_if_requested()

        if interruption is not None and interruption.agreed(trainer):
            raise Abandoned
        measurements: list[Measurement] = []
        of_first_process(model.buffers())
        with model.state.paused(), sampling_weights(trainer, model) as averaged, self.run.beside(self.doing):
            try:
                amount, seconds = self._amount(trainer, model, untrained)
                if amount:
                    report = None if progress is None else progress.subtask(self.doing, seconds)
                    measurements = self.measure(trainer, model, amount, averaged, report, stop_if_requested)
            finally:
                if progress is not None:
                    progress.end_subtask({m.name: m.value for m in measurements})
        self.latest = {f"val/{m.name}": m.value for m in measurements}
        self.comparison_keys = {f"val/{m.name}": m.protocol.comparison_key for m in measurements}
        if self.latest:
            log_row(trainer, model, self.latest)
        return measurements

    def _amount(self, trainer: Trainer, model: GenerativeModel, untrained: bool) -> tuple[int, float]:
        """Of how many images this measurement is, none if it would take too long, and the seconds that it will take."""
        amounts = self.amounts(trainer, model)
        if self.share is None:
            return amounts[0], self.cost
        if self.amount:
            return self.amount, self.cost
        each = self.seconds_each(trainer, model) / trainer.world_size
        if untrained:
            return (amounts[0] if amounts[0] * each <= CHEAP else 0), amounts[0] * each
        amount = self.choose(trainer, model, amounts, lambda: each)
        if amount < amounts[0] and self._told != amount and trainer.is_global_zero:
            self._told = amount
            least = amount or amounts[-1]
            told = f"with {amount:,} images" if amount else f"is put off: {least:,} images"
            print(
                f"note: {self.doing} {told}, about {least * each:,.1f} s; {amounts[0]:,} images would take about "
                f"{amounts[0] * each:,.0f} s (measuring_share=null measures them)",
                file=sys.stderr,
            )
        return amount, amount * each
