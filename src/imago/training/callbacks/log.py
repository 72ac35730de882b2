"""The training log: a row of means every so many images, throughput, memory, and an alarm for numbers that are none."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning import LightningModule, Trainer
from pydantic import PositiveInt

from imago.errors import RunError
from imago.models.base import GenerativeModel
from imago.runs import Run, peak_memory_mib
from imago.training.callbacks.common import Periodic, find, log_row
from imago.training.callbacks.limits import Limits


class DivergedError(RunError):
    """A loss, a gradient or a weight is not a finite number.

    Args:
        what: the number and its value.
        model: whose number it is.
        run: whose last checkpoint was written before.
    """

    def __init__(self, what: str, model: GenerativeModel, run: Run) -> None:
        good = next((path for path in (run.last, run.best) if path.exists()), "none was written yet")
        super().__init__(
            f"{what} after {model.images_seen} images; last good checkpoint: {good}. "
            "A lower learning rate or model.gradient_clip may help."
        )


class TrainingLog(Periodic):
    """Writes the means of what the model recorded as ``train/...``, and what it cost as ``time/...``.

    Throughput counts the time spent training: not measuring, drawing grids or writing checkpoints (:meth:`paused`).

    Args:
        every: number of images between two rows.
        run: the run directory, whose last checkpoint the alarm names.
    """

    lengthy = False

    def __init__(self, every: PositiveInt, run: Run) -> None:
        super().__init__(every)
        self.run = run
        self.latest: dict[str, float] = {}
        self.training_seconds = 0.0
        self.images_per_second = 0.0
        self._mark = 0.0
        self._interval_images = 0
        self._interval_seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._mark = time.perf_counter()
        self._observe_next(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's time; write a row when due."""
        now = time.perf_counter()
        self._interval_seconds += now - self._mark
        self._interval_images += len(batch.images) * trainer.world_size
        self._mark = now
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._observe_next(trainer, pl_module)

    def _observe_next(self, trainer: Trainer, model: LightningModule) -> None:
        """Tell the model whether the coming update ends in a row: only then gradient norms are worth computing."""
        assert isinstance(model, GenerativeModel)
        coming = model.images_seen + model.batches_per_update * trainer.datamodule.batch_size  # type: ignore[attr-defined]
        model.log_grad_norm = coming // self.every > self.acted_at // self.every

    def act(self, trainer: Trainer, model: GenerativeModel) -> None:
        """Write the row.

        Raises:
            DivergedError: one of its numbers is not finite.
        """
        self.latest = model.take_records()
        wrong = {name: value for name, value in self.latest.items() if not math.isfinite(value)}
        self.training_seconds += self._interval_seconds
        row = {f"train/{name}": value for name, value in self.latest.items()}
        if self._interval_seconds > 0:
            self.images_per_second = self._interval_images / self._interval_seconds
            row["time/images_per_second"] = self.images_per_second
        row["time/training_seconds"] = self.training_seconds
        row["time/peak_memory_mib"] = peak_memory_mib(trainer.strategy.root_device)
        self._interval_images, self._interval_seconds = 0, 0.0
        log_row(trainer, model, row)
        if wrong:
            raise DivergedError(", ".join(f"{name} = {value}" for name, value in wrong.items()), model, self.run)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside."""
        before = time.perf_counter()
        self._interval_seconds += before - self._mark
        try:
            yield
        finally:
            self._mark = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """When the last row was written, and the time spent."""
        seconds = self.training_seconds + self._interval_seconds
        return {**super().state_dict(), "training_seconds": seconds, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        self.training_seconds = state_dict["training_seconds"]
        self.latest = state_dict.get("latest", {})


@contextmanager
def clock_paused(trainer: Trainer) -> Iterator[None]:
    """Inside, time does not count as training time, neither in the log nor against the limit of the run."""
    clocks = [find(trainer, TrainingLog), find(trainer, Limits)]
    with ExitStack() as stack:
        for clock in clocks:
            if clock is not None:
                stack.enter_context(clock.paused())
        yield
