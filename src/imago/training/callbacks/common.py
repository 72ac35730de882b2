"""What callbacks share: acting every so many images, finding each other, and writing a row of numbers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from pydantic import Field

from imago.models.base import GenerativeModel
from imago.training.callbacks.interruption import Abandoned, Interruption

C = TypeVar("C", bound=Callback)
Halvings = Annotated[int, Field(ge=0, le=20)]


def find(trainer: Trainer, kind: type[C]) -> C | None:
    """The trainer's callback of a class, or ``None``."""
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]


def log_row(trainer: Trainer, model: GenerativeModel, row: Mapping[str, float]) -> None:
    """Write one row to every logger, with the counters that are the x-axes of all curves."""
    if trainer.is_global_zero:
        counted = {"images_seen": model.state.images, "updates": model.state.updates, **row}
        for logger in trainer.loggers:
            logger.log_metrics(counted, step=model.state.images)


def publish(trainer: Trainer, model: GenerativeModel, values: Mapping[str, float]) -> None:
    """Let callbacks see measured numbers, as after a validation: Lightning's EarlyStopping and ModelCheckpoint."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        callback.on_validation_end(trainer, model)


def show_picture(trainer: Trainer, model: GenerativeModel, key: str, picture: Image.Image, told: str = "") -> None:
    """Show a picture in every dashboard that takes pictures, with what is told of it."""
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key, [picture], step=None, caption=[f"{model.state.images:,} images seen{told}"])


def occasions(images: int, every: int, halvings: int) -> int:
    """How many occasions have passed after so many images: the multiples of ``every``, and before them its halves."""
    if images >= every:  # asked after every batch, so without a loop from here on
        return images // every + halvings
    return sum(images << k >= every for k in range(1, halvings + 1))


class Periodic(Callback, ABC):
    """A callback that acts whenever another ``every`` images have been seen, and once more at the end.

    The last time it acted is kept in checkpoints: a run that is stopped while it acts, acts when it is continued.

    Args:
        every: number of images between two actions.
        halvings: at first it acts after every/2^halvings images too, and whenever these have doubled.

    Attributes:
        lengthy: whether it is left out at the end of a run that was asked to stop; whoever continues makes up for it.
    """

    lengthy: ClassVar[bool] = True

    def __init__(self, every: int, halvings: int = 0) -> None:
        self.every = every
        self.halvings = halvings
        self.acted_at = 0

    @abstractmethod
    def act(self, trainer: Trainer, model: GenerativeModel) -> None:
        """What is to be done.

        Raises:
            Abandoned: the run was asked to stop meanwhile, and nothing was done.
        """

    def due(self, model: GenerativeModel) -> bool:
        """Whether an occasion has passed since the last action."""
        return self.passes(model.state.images)

    def passes(self, images: int) -> bool:
        """Whether an occasion lies between the last action and so many images."""
        return occasions(images, self.every, self.halvings) > occasions(self.acted_at, self.every, self.halvings)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what a stopped run left undone."""
        self._act_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Act when due."""
        self._act_if_due(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act once more, unless the last action saw the same model, or a signal came."""
        assert isinstance(pl_module, GenerativeModel)
        if self.acted_at == pl_module.state.images:
            return
        interruption = find(trainer, Interruption)
        if not (self.lengthy and interruption is not None and interruption.agreed(trainer)):
            self._act(trainer, pl_module)

    def ready(self, trainer: Trainer, model: GenerativeModel) -> bool:
        """Whether it may act now that it is due; asked again later where not."""
        return True

    def _act_if_due(self, trainer: Trainer, model: LightningModule) -> None:
        assert isinstance(model, GenerativeModel)
        if self.due(model) and self.ready(trainer, model):
            self._act(trainer, model)

    def _act(self, trainer: Trainer, model: GenerativeModel) -> None:
        abandoned = False
        try:
            self.act(trainer, model)
        except Abandoned:
            abandoned = True
        if trainer.world_size > 1:  # the others may have had nothing to do
            abandoned = trainer.strategy.reduce_boolean_decision(abandoned, all=False)
        if abandoned:
            trainer.should_stop = True
        else:
            self.acted_at = model.state.images

    def state_dict(self) -> dict[str, Any]:
        """When it acted last."""
        return {"acted_at": self.acted_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.acted_at = state_dict["acted_at"]
