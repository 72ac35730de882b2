"""The progress bar: images, losses, images per second, time left; plain lines where there is no terminal."""

import sys
import time
from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer
from pydantic import PositiveFloat
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from imago.models.base import GenerativeModel
from imago.progress import lines
from imago.training.callbacks.common import find
from imago.training.callbacks.limits import Limits
from imago.training.callbacks.log import TrainingLog


class Progress(Callback):
    """A Rich progress bar over the run, on standard error.

    Args:
        seconds: time between two refreshes on a terminal.
        line_seconds: time between two lines where standard error is not a terminal.
    """

    def __init__(self, seconds: PositiveFloat = 1.0, line_seconds: PositiveFloat = 15.0) -> None:
        self.console = Console(file=sys.stderr)
        self.interval = seconds if self.console.is_terminal else line_seconds
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._subtask: TaskID | None = None
        self._next = 0.0
        self._began = 0.0
        self._began_fraction = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        if not trainer.is_global_zero:
            return
        self._began = time.monotonic()
        limits = find(trainer, Limits)
        assert limits is not None
        assert isinstance(pl_module, GenerativeModel)
        self._began_fraction = limits.fraction(pl_module)
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
            )
            self._bar = RichProgress(*columns, TimeRemainingColumn(), console=self.console, auto_refresh=False)
            self._bar.start()
            self._task = self._bar.add_task("training", total=1.0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh, not more often than the interval."""
        now = time.monotonic()
        if now >= self._next and trainer.is_global_zero:
            self._next = now + self.interval
            self._show(trainer, pl_module)

    def _show(self, trainer: Trainer, model: LightningModule) -> None:
        assert isinstance(model, GenerativeModel)
        limits, log = find(trainer, Limits), find(trainer, TrainingLog)
        assert limits is not None
        done = limits.fraction(model)
        text = f"{model.state.images:,} images"
        if log is not None:
            losses = {k.removeprefix("loss/"): v for k, v in log.latest.items() if k.startswith("loss")}
            text += "".join(f" · {name} {value:.3f}" for name, value in losses.items())
            text += f" · {log.images_per_second:,.0f} images/s" if log.images_per_second else ""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, description=text)
            self._bar.refresh()
        else:
            elapsed = time.monotonic() - self._began
            share = done - self._began_fraction
            left = f" · {elapsed * (1 - done) / share:,.0f} s left" if share > 0 else ""
            print(f"{done:4.0%} · {text}{left}", file=sys.stderr, flush=True)

    def subtask(self, description: str) -> Callable[[int, int], None] | None:
        """A second bar for other long work: returns what reports (done, total) to it; without a terminal, lines."""
        if self._bar is None:
            print(f"       {description}", file=sys.stderr, flush=True)
            return lines(f"       {description}", self.interval)
        bar = self._bar
        task = self._subtask = bar.add_task(description, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            bar.refresh()

        return report

    def end_subtask(self) -> None:
        """Take the second bar away."""
        if self._bar is not None and self._subtask is not None:
            self._bar.remove_task(self._subtask)
            self._subtask = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last state."""
        if trainer.is_global_zero:
            self._show(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
