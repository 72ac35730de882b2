"""Ctrl-C and what schedulers send: finish the step, write a checkpoint, exit with a code that a scheduler knows."""

import signal
import sys
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from imago.errors import Interrupted

# Ctrl-C, the end of a job, its announcement (Slurm: --signal=USR1@60), and the end of the terminal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class Abandoned(BaseException):
    """Long work beside training was left undone, because the run was asked to stop. No error, and not caught as one."""


class Interruption(Callback):
    """Turns a first signal of ``SIGNALS`` into a stop at the end of the step, and a second one into an immediate stop.

    Used as a context manager around a whole run: outside training the first signal stops at once. A SIGHUP that was
    ignored before stays ignored: that is what ``nohup`` is for.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.training = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self.requested is None
        self.requested = self.requested or number  # also where the exception below gets lost, as in a destructor
        if not self.training or not first:
            raise Interrupted(number)
        name = signal.Signals(number).name
        with suppress(OSError, ValueError, RuntimeError):  # the terminal is gone, or was just being written to
            print(
                f"\n{name}: stopping after this step and writing a checkpoint; once more to stop at once",
                file=sys.stderr,
            )

    def stop_if_requested(self) -> None:
        """For long work outside the training step: abandon it.

        Raises:
            Abandoned: a signal came.
        """
        if self.requested is not None:
            raise Abandoned

    def agreed(self, trainer: Trainer) -> bool:
        """Whether a signal came to any of the processes; afterwards all know which. Called by all or none of them."""
        if trainer.world_size > 1:
            number = torch.tensor(float(self.requested or 0), device=trainer.strategy.root_device)
            self.requested = int(trainer.strategy.reduce(number, reduce_op="max")) or None
        return self.requested is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on signals wait for the step's end, whoever has put a handler of its own before ours."""
        for number in self._previous:
            signal.signal(number, self._handle)
        self.training = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop if a signal came to any of the processes."""
        if self.agreed(trainer):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of several processes all end alike."""
        self.agreed(trainer)
