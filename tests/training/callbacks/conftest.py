"""A model of 16 numbers that trains in microseconds, and a trainer for it."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn

from imago.checkpoints import AtomicCheckpointIO
from imago.images import Batch, Images, ImageSpec
from imago.models.base import GenerativeModel, Loss
from imago.rng import BatchGenerator, PerImageGenerator

BATCH = 16


class Toy(GenerativeModel):
    """One brightness for each pixel (and class), drawn to 1; samples are brightness plus a little noise."""

    likelihood = "none"
    ema = ("net",)

    def __init__(self, conditional: bool = False, batches_per_update: int = 1, lr: float = 0.5) -> None:
        spec = ImageSpec(1, 4, 4, classes=3)
        optimizer = dict.fromkeys(("watch", "net"), lambda parameters: torch.optim.SGD(parameters, lr=lr))
        super().__init__(spec, optimizer=optimizer, conditional=conditional)
        self.net = nn.Embedding(max(1, self.classes), 16)
        nn.init.constant_(self.net.weight, 0.1)
        self.net.register_buffer("steps", torch.zeros(()))
        self.watch = nn.Linear(1, 1)  # what sampling does not need, and what is stepped with every batch
        self.batches_per_update = batches_per_update
        self.values: list[float] = []
        self.watched: list[bool] = []
        self.poison: int | None = None

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"watch": self.watch, "net": self.net}

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        self.net.steps += 1
        loss = (self.net.weight - 1).square().sum()
        if self.state.batches == self.poison:
            loss = loss * float("nan")
        self.values.append(float(loss.detach()))
        self.watched.append(self.log_grad_norm)
        yield Loss("watch", self.watch.weight.sum(), {"loss": loss.detach()})
        if (self.state.batches + 1) % self.batches_per_update == 0:
            yield Loss("net", loss / 16)

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        brightness = self.net.weight[0 if labels is None else labels].reshape(-1, 1, 4, 4).expand(n, -1, -1, -1)
        noise = generator.uniform(n, 1, 4, 4).mul(20).to(brightness)
        return (100 * brightness + noise).clamp(0, 255).byte()


class Endless(LightningDataModule):
    """Black images without end."""

    batch_size = BATCH
    identity: ClassVar[dict[str, Any]] = {"name": "black", "splits": {}}

    def train_dataloader(self) -> Iterator[Batch]:
        while True:
            yield Batch(torch.zeros(BATCH, 1, 4, 4, dtype=torch.uint8), None)


class StopAfter(Callback):
    """Stops at the end of a batch, as a limit or a signal does."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *rest: Any) -> None:
        if pl_module.state.batches >= self.batches:
            trainer.should_stop = True


@pytest.fixture
def toy() -> Callable[..., Toy]:
    """Makes models."""
    return Toy


@pytest.fixture
def fit() -> Callable[..., Trainer]:
    """Trains a model up to its n-th batch with some callbacks, in their order; ``last`` act after the stop is known."""

    def run(
        model: GenerativeModel,
        batches: int,
        *callbacks: Callback,
        last: tuple[Callback, ...] = (),
        loggers: tuple[Logger, ...] = (),
        checkpoint: Any = None,
        data: LightningDataModule | None = None,
    ) -> Trainer:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=-1,
            limit_val_batches=0,
            logger=list(loggers),
            callbacks=[*callbacks, StopAfter(batches), *last],
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        model.managed = True
        trainer.fit(model, datamodule=data or Endless(), ckpt_path=checkpoint, weights_only=True)
        return trainer

    return run


@pytest.fixture(autouse=True)
def _what_lightning_warns_of_is_meant() -> None:
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # the stream is endless
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")  # tests need few of them
