"""How long a run is: in images, in updates, in seconds of training, whichever comes first."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import Callback, LightningModule, Trainer

from imago.models.base import GenerativeModel


class Limits(Callback):
    """Stops training at the first limit reached; a continued run counts what went before.

    Args:
        max_images: training images seen, ``None`` for no limit.
        max_updates: optimiser steps of the model, ``None`` for no limit.
        max_seconds: seconds of training, ``None`` for no limit. Measuring, drawing and writing do not count.
    """

    def __init__(self, max_images: int | None, max_updates: int | None, max_seconds: float | None) -> None:
        self.max_images = max_images
        self.max_updates = max_updates
        self.max_seconds = max_seconds
        self.earlier_seconds = 0.0
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self.earlier_seconds + time.monotonic() - self._start

    def reached(self, model: GenerativeModel) -> str | None:
        """The limit that is reached, as text, or ``None``."""
        if self.max_images is not None and model.images_seen >= self.max_images:
            return f"max_images={self.max_images}"
        if self.max_updates is not None and model.updates >= self.max_updates:
            return f"max_updates={self.max_updates}"
        if self.max_seconds is not None and self.seconds >= self.max_seconds:
            return f"max_seconds={self.max_seconds}"
        return None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside."""
        before = time.monotonic()
        try:
            yield
        finally:
            self._start += time.monotonic() - before

    def fraction(self, model: GenerativeModel) -> float:
        """How much of the run is done, in [0, 1]."""
        parts = [0.0]
        if self.max_images is not None:
            parts.append(model.images_seen / self.max_images)
        if self.max_updates is not None:
            parts.append(model.updates / self.max_updates)
        if self.max_seconds is not None:
            parts.append(self.seconds / self.max_seconds)
        return min(1.0, max(parts))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        assert isinstance(pl_module, GenerativeModel)
        self._start = time.monotonic()
        pl_module.done = self.fraction(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of a run that was stopped at its limit only the end is left to do."""
        assert isinstance(pl_module, GenerativeModel)
        if pl_module.images_seen > 0:
            self._stop_if_reached(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop at a limit, tell the model how far it is; with several processes the first one's clock decides."""
        assert isinstance(pl_module, GenerativeModel)
        self._stop_if_reached(trainer, pl_module)

    def _stop_if_reached(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        stop, pl_module.done = self.reached(pl_module) is not None, self.fraction(pl_module)
        if trainer.world_size > 1 and self.max_seconds is not None:
            stop, pl_module.done = trainer.strategy.broadcast((stop, pl_module.done))
        if stop:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.earlier_seconds = state_dict["seconds"]
