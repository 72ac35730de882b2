"""Writes checkpoints that a run can be continued from exactly."""

import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer, seed_everything
from pydantic import PositiveFloat, PositiveInt

from imago.checkpoints import random_state, set_random_state
from imago.errors import RunError
from imago.files import replacing
from imago.measures import Protocol, is_better
from imago.models.base import GenerativeModel
from imago.runs import CSVLogger, Run
from imago.training.callbacks.common import Periodic, find
from imago.training.callbacks.likelihood import MeasureLikelihood
from imago.training.callbacks.log import DivergedError
from imago.training.callbacks.quality import MeasureQuality

# Noise in training comes from another stream than the initial weights.
_TRAINING_STREAM = 0x9E3779B9
FINITE = ("state_dict", "optimizer_states", "callbacks")  # of a checkpoint, what has no numbers but finite ones
LOOKS = 50  # batches between two looks at the clock


class Checkpoints(Periodic):
    """Keeps ``last.ckpt``, the one before it as ``previous.ckpt``, and ``best.ckpt``: by the likelihood where the model
    knows it, else by the sample quality. A run can be continued from each.

    Must be the last callback: a checkpoint holds what all others did with the batch, and a run that is asked to stop
    writes ``last.ckpt`` *before* the closing grid and measurement, which a continued run would not have made there.

    Args:
        every: number of images between two checkpoints.
        seconds: of training, after which there is one too; ``None`` counts images alone.
        run: the run directory.
        config: the resolved configuration, stored in every checkpoint.
    """

    def __init__(
        self, every: PositiveInt, run: Run, config: Mapping[str, Any], seconds: PositiveFloat | None = None
    ) -> None:
        super().__init__(every)
        self.seconds = seconds
        self.run = run
        self.config = dict(config)
        self.best: dict[str, Any] = {}  # its metric, comparison_key and value
        self._random: dict[str, Any] | None = None
        self._counted = 0  # rows of metrics.csv by the checkpoint that the run goes on from
        self._wrote_at = 0.0  # seconds of training

    def act(self, trainer: Trainer, model: GenerativeModel) -> None:
        """Write last.ckpt.

        Raises:
            DivergedError: a number in it is not finite; the older checkpoint stays.
            RunError: it cannot be written; the older checkpoint stays.
        """
        self.acted_at, self._wrote_at = model.state.images, model.state.seconds
        # Before writing: the checkpoint holds it.
        with self._writing(model, self.run.last):
            kept = {"previous": self.run.previous}
            trainer.save_checkpoint(self.run.last, weights_only=False, storage_options=kept)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the random generators to where the stopped run left them, or to a start that depends on the seed alone.

        Building the model and the processes has drawn numbers, more or less of them; training must not depend on that.
        """
        if self._random is None:
            seed_everything((self.config["seed"] + _TRAINING_STREAM) % 2**32, verbose=False)
        else:
            set_random_state(self._random)
            self._random = None
        assert isinstance(pl_module, GenerativeModel)
        self._wrote_at = pl_module.state.seconds
        if self.best:
            self.run.update(best=self.best)  # a kill may have come between best.ckpt and the summary
        self._keep_best(trainer, pl_module)  # a measurement that the stopped run had left undone
        kept = self.run.last.exists() and self.acted_at == pl_module.state.images
        kept = kept and _rows(trainer) == self._counted  # a run that goes on later keeps the rows that were made up for
        if trainer.should_stop and not trainer.strategy.broadcast(kept):  # before the first step
            self._act(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write best.ckpt after a better measurement, and last.ckpt when due or stopping."""
        assert isinstance(pl_module, GenerativeModel)
        self._keep_best(trainer, pl_module)
        if self.due(pl_module) or trainer.should_stop or self._late(trainer, pl_module):
            self._act(trainer, pl_module)

    def _late(self, trainer: Trainer, model: GenerativeModel) -> bool:
        """Whether too many seconds have passed since the last one, by the first process's clock."""
        if self.seconds is None or model.state.batches % LOOKS:
            return False
        late = model.state.seconds - self._wrote_at >= self.seconds
        return trainer.strategy.broadcast(late)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The closing measurement may have been the best; a copy of last.ckpt can be continued from, as that one."""
        assert isinstance(pl_module, GenerativeModel)
        self._keep_best(trainer, pl_module, copy=self.acted_at == pl_module.state.images)

    def _keep_best(self, trainer: Trainer, model: GenerativeModel, copy: bool = False) -> None:
        for kind in (MeasureLikelihood, MeasureQuality):
            source = find(trainer, kind)
            headline = source.headline(model) if source is not None else None
            if source is not None and headline is not None:
                break
        else:
            return
        if not source.acted_at == model.state.images > 0:
            return
        told = source.latest.get(headline, math.nan), source.comparison_keys.get(headline, "")
        value, measure = trainer.strategy.broadcast(told)
        comparable = (self.best.get("metric"), self.best.get("comparison_key")) == (headline, measure)
        if is_better(headline, value, self.best["value"] if comparable else None):
            if self.best and not comparable and trainer.is_global_zero:
                otherwise = "" if self.best["metric"] == headline else f", by {self.best['metric']} before"
                print(f"note: best.ckpt starts anew: by {headline}{otherwise}, measured otherwise now", file=sys.stderr)
            self.best = {
                "metric": headline,
                "comparison_key": measure,
                "value": value,
                "images_seen": model.state.images,
            }
            with self._writing(model, self.run.best):
                if not copy:
                    trainer.save_checkpoint(self.run.best, weights_only=False)
                elif self.run.write:
                    with self.run.last.open("rb") as last, replacing(self.run.best) as best:
                        shutil.copyfileobj(last, best)
            self.run.update(best=self.best)  # once it is there: a kill in between repeats both

    @contextmanager
    def _writing(self, model: GenerativeModel, path: Path) -> Iterator[None]:
        """Inside the clock stands still; where there is no room for a checkpoint the run stops, and says so."""
        try:
            with model.state.paused():
                yield
        except OSError as error:
            last = self.run.last if self.run.last.exists() else "none was written yet"
            raise RunError(
                f"{path}: cannot be written ({error.strerror}), so the run stops; last good checkpoint: {last}. "
                "Make room, then the same command with resume=auto continues"
            ) from None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out, and leave out its loop counters: ours are ``progress``.

        Raises:
            DivergedError: a weight, a buffer, an average or an optimiser's number is not finite; nothing is written.
        """
        assert isinstance(pl_module, GenerativeModel)
        for part in FINITE:
            wrong = next(not_finite(checkpoint[part], part), None)
            if wrong is not None:
                raise DivergedError(f"{wrong.removeprefix('state_dict.')} = nan or inf", pl_module, self.run)
        del checkpoint["loops"]
        checkpoint["config"] = self.config
        checkpoint["spec"] = pl_module.spec.as_dict()
        checkpoint["data"] = trainer.datamodule.identity  # type: ignore[attr-defined]
        checkpoint["random"] = random_state()
        checkpoint["summary"] = dict(self.run.summary)
        checkpoint["rows"] = _rows(trainer)
        for table in _tables(trainer):
            table.save()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the random states until training starts; cut the table back to the rows of the checkpoint."""
        self._random, self._counted = checkpoint["random"], checkpoint["rows"]
        for table in _tables(trainer):
            if trainer.is_global_zero:
                table.continue_at(checkpoint["rows"], checkpoint["progress"]["images_seen"])

    def state_dict(self) -> dict[str, Any]:
        """When it wrote last, and the best value so far."""
        return {**super().state_dict(), "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        best, closing = state_dict["best"], _best_of(self.run.summary)
        if not isinstance(best, dict):  # of version 0.1: the value alone
            best = closing | {"value": best} if closing and math.isfinite(best) else {}
        comparable = all(closing.get(key) == best.get(key) for key in ("metric", "comparison_key"))
        if not best or (comparable and is_better(best["metric"], closing["value"], best["value"])):
            best = closing  # of a measurement after last.ckpt
        self.best = best if self.run.best.exists() else {}


def _tables(trainer: Trainer) -> list[CSVLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]


def _rows(trainer: Trainer) -> int:
    return sum(len(table.rows) for table in _tables(trainer))


def _best_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary says of the best value: metric, comparison_key and value; empty where there is none."""
    told = summary.get("best", {})
    metric, value = told.get("metric"), told.get("value")
    if not isinstance(metric, str) or not isinstance(value, int | float):
        return {}
    protocol = summary.get("metrics", {}).get(metric, {}).get("protocol", {})  # version 0.1 kept no comparison_key
    return {**told, "comparison_key": told.get("comparison_key", Protocol.from_dict(protocol).comparison_key)}


def not_finite(content: Any, name: str) -> Iterator[str]:
    """Names of the tensors in nested dictionaries and lists with a number that is not finite."""
    if isinstance(content, torch.Tensor):
        if content.is_floating_point() and not content.isfinite().all():
            yield name
    elif isinstance(content, Mapping | list | tuple):
        for key, part in content.items() if isinstance(content, Mapping) else enumerate(content):
            yield from not_finite(part, f"{name}.{key}")
