"""The progress bar: images, losses, images per second, time left; plain lines where there is no terminal."""

import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from lightning import Callback, LightningModule, Trainer
from pydantic import PositiveFloat
from rich.console import Console
from rich.progress import BarColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from imago.models.base import GenerativeModel
from imago.progress import lines
from imago.training.callbacks.common import find
from imago.training.callbacks.limits import Limits
from imago.training.callbacks.log import TrainingLog
from imago.training.callbacks.pace import Paced


class TimeLeft(TimeRemainingColumn):
    """The seconds left that a task says, or for one that says nothing those that its pace tells."""

    def render(self, task: Task) -> Text:
        """The column of a task."""
        if "left" not in task.fields:
            return super().render(task)
        left = task.fields["left"]
        return Text("-:--:--" if left is None else str(timedelta(seconds=round(left))), "progress.remaining")


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
        self._doing = ""
        self._measured: dict[str, str] = {}  # by what measured it
        self._next = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        if not trainer.is_global_zero:
            return
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
            )
            self._bar = RichProgress(*columns, TimeLeft(), console=self.console, auto_refresh=False)
            self._bar.start()
            self._task = self._bar.add_task("training", total=1.0, left=None)

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
            text += "".join(f" · {name} {value:.3f}" for name, value in _losses(log.latest).items())
            text += f" · {log.images_per_second:,.0f} images/s" if log.images_per_second else ""
        left = seconds_left(trainer, model, limits)
        if self._bar is not None and self._task is not None:
            text += "".join(f" · {number}" for number in self._measured.values())
            self._bar.update(self._task, completed=done, description=text, left=left)
            self._bar.refresh()
        else:
            rest = "" if left is None or done == 1 else f" · {left:,.0f} s left"
            print(f"{done:4.0%} · {text}{rest}", file=sys.stderr, flush=True)

    def subtask(self, description: str, seconds: float = 0.0) -> Callable[[int, int], None] | None:
        """Begin other long work: returns what reports (done, total) of it, to a second bar or in lines.

        Args:
            description: of the work.
            seconds: that it will take, as far as that is known. Without a terminal only long work is announced.
        """
        self._doing = description
        told = f"{description}, about {seconds:.0f} s" if seconds >= 1 else description
        if self._bar is None:
            if seconds >= self.interval:
                print(f"       {told}", file=sys.stderr, flush=True)
            return lines(f"       {description}", self.interval)
        bar = self._bar
        task = self._subtask = bar.add_task(told, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            bar.refresh()

        return report

    def end_subtask(self, results: Mapping[str, float] | str | None = None) -> None:
        """Say what came out: numbers by their names, or a text; ``None`` if nothing did. Take the second bar away."""
        if isinstance(results, Mapping):
            numbers = [
                f"{name} {value:.5g}" for name, value in results.items() if "/" not in name
            ]  # no parts of others
            self._measured |= {self._doing: numbers[0]} if numbers else {}
            results = ", ".join(numbers)
        if self._bar is None and results:
            print(f"       {self._doing}: {results}", file=sys.stderr, flush=True)
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


def _losses(latest: Mapping[str, float]) -> dict[str, float]:
    """Of the numbers of a log those that say how training goes: losses and nats; of others the first."""
    told = {name.removeprefix("loss/"): v for name, v in latest.items() if name.startswith("loss") or name == "nats"}
    return told or dict(list(latest.items())[:1])


def seconds_left(trainer: Trainer, model: GenerativeModel, limits: Limits) -> float | None:
    """Seconds until the run ends, with what is measured and drawn until then; ``None`` while nobody can tell."""
    spent = model.state.seconds
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    paced = [c for c in callbacks if isinstance(c, Paced)]
    beside = sum(
        min(c.spent / spent, c.spent / spent if c.share is None else c.portion * c.share) for c in paced if spent
    )
    return limits.seconds_left(model, beside, sum(c.cost for c in paced))
