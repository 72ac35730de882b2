"""How long a run is: in images, in updates, in seconds of training or of everything, whichever comes first."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from imago.models.base import GenerativeModel

# Seconds of training, or the share of a run, after which its pace is known.
TELLING_SECONDS, TELLING_SHARE = 2.0, 0.2


class Limits(Callback):
    """Stops training at the first limit reached; a continued run counts what went before.

    Args:
        max_images: training images seen, ``None`` for no limit.
        max_updates: optimiser steps of the model, ``None`` for no limit.
        max_seconds: seconds of training, ``None`` for no limit. Measuring, drawing and writing do not count.
        max_wall_seconds: seconds of everything that the run does, ``None`` for no limit. Training ends earlier by what
            the closing work will take.
        max_cpu_seconds: seconds of processor time of training, of all threads of a process; ``None`` for no limit.
        began: when the run did, by ``time.monotonic()``; ``None`` for now.
    """

    def __init__(
        self,
        max_images: int | None,
        max_updates: int | None,
        max_seconds: float | None,
        max_wall_seconds: float | None = None,
        began: float | None = None,
        max_cpu_seconds: float | None = None,
    ) -> None:
        self.max_images = max_images
        self.max_updates = max_updates
        self.max_seconds = max_seconds
        self.max_wall_seconds = max_wall_seconds
        self.max_cpu_seconds = max_cpu_seconds
        self.closing_seconds = 0.0  # what the work after training will take
        self._began = time.monotonic() if began is None else began
        self._start = (0, 0, 0.0, 0.0, 0.0)  # images, updates, seconds and processor seconds of the first batch; share

    @property
    def wall_seconds(self) -> float:
        """Seconds that the run has taken, with what it had before it was continued."""
        return time.monotonic() - self._began

    @property
    def timed(self) -> bool:
        """Whether a clock can end the run."""
        return any(limit is not None for limit in (self.max_seconds, self.max_wall_seconds, self.max_cpu_seconds))

    def reached(self, model: GenerativeModel) -> str | None:
        """The limit that is reached, as text, or ``None``."""
        if self.max_images is not None and model.state.images >= self.max_images:
            return f"max_images={self.max_images}"
        if self.max_updates is not None and model.state.updates >= self.max_updates:
            return f"max_updates={self.max_updates}"
        if self.max_seconds is not None and model.state.seconds >= self.max_seconds:
            return f"max_seconds={self.max_seconds}"
        if self.max_cpu_seconds is not None and model.state.cpu_seconds >= self.max_cpu_seconds:
            return f"max_cpu_seconds={self.max_cpu_seconds}"
        if self.max_wall_seconds is not None and self.wall_seconds + self.closing_seconds >= self.max_wall_seconds:
            return f"max_wall_seconds={self.max_wall_seconds}"
        return None

    def fraction(self, model: GenerativeModel) -> float:
        """How much of the run is done, in [0, 1]."""
        parts = [0.0]
        if self.max_images is not None:
            parts.append(model.state.images / self.max_images)
        if self.max_updates is not None:
            parts.append(model.state.updates / self.max_updates)
        if self.max_seconds is not None:
            parts.append(model.state.seconds / self.max_seconds)
        if self.max_cpu_seconds is not None:
            parts.append(model.state.cpu_seconds / self.max_cpu_seconds)
        if self.max_wall_seconds is not None:
            parts.append((self.wall_seconds + self.closing_seconds) / self.max_wall_seconds)
        return min(1.0, max(parts))

    def expected_seconds(self, model: GenerativeModel) -> float:
        """Seconds of training that the whole run will take, as far as that can be told; what they are now if not."""
        guesses = [seconds for seconds in (self.max_seconds, self.max_wall_seconds) if seconds is not None]
        fraction = self.fraction(model)
        if model.state.seconds and fraction:
            guesses.append(model.state.seconds / fraction)
        return min(guesses, default=model.state.seconds)

    def seconds_left(self, model: GenerativeModel, beside: float = 0.0, closing: float = 0.0) -> float | None:
        """Seconds until the first limit is reached; ``None`` as long as nobody can tell.

        A limit in seconds tells that from the start, one of images or updates when the pace of this fit is known.

        Args:
            model: in training.
            beside: seconds of measuring and drawing for each second of training.
            closing: seconds of the work after training.
        """
        state = model.state
        images, updates, seconds, cpu_seconds, share = self._start
        trained = state.seconds - seconds
        telling = trained >= TELLING_SECONDS or self.fraction(model) - share >= TELLING_SHARE * (1 - share)
        rests = []
        if self.max_seconds is not None:
            rests.append(self.max_seconds - state.seconds)
        if self.max_cpu_seconds is not None:
            spent = state.cpu_seconds - cpu_seconds
            rests.append((self.max_cpu_seconds - state.cpu_seconds) * (trained / spent if telling and spent else 1.0))
        if telling and self.max_images is not None and state.images > images:
            rests.append((self.max_images - state.images) * trained / (state.images - images))
        if telling and self.max_updates is not None and state.updates > updates:
            rests.append((self.max_updates - state.updates) * trained / (state.updates - updates))
        rests = [rest * (1 + beside) + closing for rest in rests]
        if self.max_wall_seconds is not None:
            rests.append(self.max_wall_seconds - self.wall_seconds)
        return max(0.0, min(rests)) if rests else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the model how far it is."""
        assert isinstance(pl_module, GenerativeModel)
        pl_module.state.progress = self.fraction(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of a run that was stopped at its limit only the end is left to do."""
        assert isinstance(pl_module, GenerativeModel)
        state = pl_module.state
        self._start = (state.images, state.updates, state.seconds, state.cpu_seconds, self.fraction(pl_module))
        if pl_module.state.images > 0:
            self._stop_if_reached(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop at a limit, tell the model how far it is; with several processes the first one's clock decides."""
        assert isinstance(pl_module, GenerativeModel)
        self._stop_if_reached(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Seconds that the run has taken."""
        return {"wall_seconds": self.wall_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from :meth:`state_dict`."""
        self._began -= state_dict.get("wall_seconds", 0.0)

    def _stop_if_reached(self, trainer: Trainer, pl_module: GenerativeModel) -> None:
        if self.max_wall_seconds is not None:
            callbacks: Any = trainer
            self.closing_seconds = sum(getattr(c, "cost", 0.0) for c in callbacks.callbacks)
        stop, pl_module.state.progress = self.reached(pl_module) is not None, self.fraction(pl_module)
        if trainer.world_size > 1 and self.timed:
            stop, pl_module.state.progress = trainer.strategy.broadcast((stop, pl_module.state.progress))
        if stop:
            trainer.should_stop = True
