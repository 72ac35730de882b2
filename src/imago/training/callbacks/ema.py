"""An exponential moving average of the weights, which samples better than the last weights do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from lightning import Callback, LightningModule, Trainer
from pydantic import Field, PositiveInt
from torch import Tensor

from imago.models.base import GenerativeModel
from imago.training.callbacks.common import find


class EMA(Callback):
    """Averages the parameters of the submodules that sampling needs, after every update of the model.

    The decay is given as a half-life in images, so that it does not depend on the batch size. Early on the half-life
    is a fraction ``ramp`` of the images seen, so that the average does not remember the random start (Karras et al.
    2022, appendix F.2). Buffers, such as running statistics, are not averaged: they are the model's own.

    Args:
        half_life: number of images after which a weight counts half in the average.
        ramp: largest half-life as a fraction of the images seen so far.
    """

    def __init__(self, half_life: PositiveInt, ramp: Annotated[float, Field(gt=0, le=1)] = 0.05) -> None:
        self.half_life = half_life
        self.ramp = ramp
        self.weights: dict[str, Tensor] = {}
        self._parameters: list[Tensor] = []
        self.updates = 0
        self.images_seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with a copy of the weights, or go on with the restored ones, on the model's device."""
        assert isinstance(pl_module, GenerativeModel)
        restored = self.weights
        self.weights = {n: restored.get(n, p.detach()).clone().to(p.device) for n, p in ema_parameters(pl_module)}
        self._parameters = [p for _, p in ema_parameters(pl_module)]

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average towards the weights if they were updated."""
        assert isinstance(pl_module, GenerativeModel)
        if pl_module.state.updates == self.updates:
            return
        half_life = max(1e-8, min(self.half_life, self.ramp * pl_module.state.images))
        decay = 0.5 ** ((pl_module.state.images - self.images_seen) / half_life)
        torch._foreach_lerp_(list(self.weights.values()), self._parameters, 1 - decay)
        self.updates = pl_module.state.updates
        self.images_seen = pl_module.state.images

    @contextmanager
    def applied(self, model: GenerativeModel) -> Iterator[None]:
        """The model with averaged weights inside, with its own afterwards."""
        parameters = dict(ema_parameters(model))
        own = {name: p.data for name, p in parameters.items()}
        for name, p in parameters.items():
            p.data = self.weights[name]
        try:
            yield
        finally:
            for name, p in parameters.items():
                p.data = own[name]

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and when they were moved last."""
        return {"weights": self.weights, "updates": self.updates, "images_seen": self.images_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.weights = state_dict["weights"]
        self.updates = state_dict["updates"]
        self.images_seen = state_dict["images_seen"]


def ema_parameters(model: GenerativeModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Names and parameters of the submodules that sampling needs."""
    for part in model.ema:
        for name, parameter in model.get_submodule(part).named_parameters():
            yield f"{part}.{name}", parameter


@contextmanager
def sampling_weights(trainer: Trainer, model: GenerativeModel) -> Iterator[bool]:
    """Inside, the model as it is judged: with averaged weights where the run keeps them (yields whether)."""
    averaging = find(trainer, EMA)
    if averaging is None:
        yield False
    else:
        with averaging.applied(model):
            yield True
