"""The training log: a row of means every so many images, throughput, memory, and an alarm for numbers that are none."""

import math
import sys
from typing import Any

from lightning import LightningModule, Trainer
from pydantic import PositiveInt

from imago.errors import RunError
from imago.models.base import GenerativeModel
from imago.runs import Run, peak_memory_mib
from imago.training.advice import of_row
from imago.training.callbacks.common import Halvings, Periodic, log_row


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
            f"{what} after {model.state.images} images; last good checkpoint: {good}. "
            "A lower learning rate or model.gradient_clip may help."
        )


class TrainingLog(Periodic):
    """Writes the means of what the model recorded as ``train/...``, and what it cost as ``time/...``.

    Throughput counts the time spent training: not measuring, drawing grids or writing checkpoints.

    Args:
        every: number of images between two rows.
        run: the run directory, whose last checkpoint the alarm names.
        halvings: see :class:`~imago.training.callbacks.common.Periodic`.
    """

    lengthy = False

    def __init__(self, every: PositiveInt, run: Run, halvings: Halvings = 0) -> None:
        super().__init__(every, halvings)
        self.run = run
        self.latest: dict[str, float] = {}
        self.images_per_second = 0.0
        self.training_seconds = 0.0  # until the last row
        self._row = (0, 0.0)  # images and seconds when the last row was written
        self._advised = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the first row."""
        assert isinstance(pl_module, GenerativeModel)
        self._row = (pl_module.state.images, pl_module.state.seconds)
        self._look_ahead(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a row when due."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._look_ahead(trainer, pl_module)

    def _look_ahead(self, trainer: Trainer, model: LightningModule) -> None:
        """Tell the model whether the coming update ends in a row: only then gradient norms are worth computing."""
        assert isinstance(model, GenerativeModel)
        coming = model.batches_per_update * trainer.datamodule.batch_size  # type: ignore[attr-defined]
        model.log_grad_norm = self.passes(model.state.images + coming)

    def act(self, trainer: Trainer, model: GenerativeModel) -> None:
        """Write the row.

        Raises:
            DivergedError: one of its numbers is not finite.
        """
        self.latest = model.mean_logs()
        wrong = {name: value for name, value in self.latest.items() if not math.isfinite(value)}
        row = {f"train/{name}": value for name, value in self.latest.items()}
        images, seconds = model.state.images - self._row[0], model.state.seconds - self._row[1]
        if seconds > 0:
            self.images_per_second = images / seconds
            row["time/images_per_second"] = self.images_per_second
        row["time/training_seconds"] = self.training_seconds = model.state.seconds
        row["time/training_cpu_seconds"] = model.state.cpu_seconds
        row["time/peak_memory_mib"] = peak_memory_mib(trainer.strategy.root_device)
        self._row = (model.state.images, model.state.seconds)
        log_row(trainer, model, row)
        advice = of_row(self.latest, model.state.images)
        if advice is not None and not self._advised and trainer.is_global_zero:
            self._advised = True
            print(f"note: {advice}", file=sys.stderr)
            self.run.update(notices=[*self.run.summary.get("notices", ()), advice])
        if wrong:
            raise DivergedError(", ".join(f"{name} = {value}" for name, value in wrong.items()), model, self.run)

    def state_dict(self) -> dict[str, Any]:
        """When the last row was written, and its means."""
        return {**super().state_dict(), "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        self.latest = state_dict.get("latest", {})
