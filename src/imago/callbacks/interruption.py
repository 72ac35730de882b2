"""Ctrl-C and SIGTERM: finish the step, write a checkpoint, exit with the code that a scheduler understands."""

import signal
import sys
from types import FrameType, TracebackType
from typing import Any

from lightning import Callback, LightningModule, Trainer

from imago.errors import Interrupted


class Abandoned(Exception):  # noqa: N818 - not an error
    """Long work beside training was left undone, because the run was asked to stop."""


class Interruption(Callback):
    """Turns the first SIGINT or SIGTERM into a stop at the end of the step, and a second one into an immediate stop.

    Used as a context manager around a whole run: outside training the first signal stops at once.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.training = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.training or self.requested is not None:
            raise Interrupted(number)
        self.requested = number
        name = signal.Signals(number).name
        print(
            f"\n{name}: stopping after this step and writing a checkpoint; once more to stop at once", file=sys.stderr
        )

    def stop_if_requested(self) -> None:
        """For long work outside the training step: abandon it.

        Raises:
            Abandoned: a signal came.
        """
        if self.requested is not None:
            raise Abandoned

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on signals wait for the step's end.

        Lightning has put a SIGTERM handler of its own before ours, which ends the process with code 0: it goes.
        """
        signal.signal(signal.SIGTERM, self._handle)
        self.training = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if a signal came to any of the processes."""
        requested = self.requested is not None
        if trainer.world_size > 1:
            requested = trainer.strategy.reduce_boolean_decision(requested, all=False)
        if requested:
            self.requested = self.requested or signal.SIGTERM
            trainer.should_stop = True
