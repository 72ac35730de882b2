"""The devices and processes of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from imago.nets.together import synchronise
from imago.processes import started


class SyncBatchNorms(TorchSyncBatchNorm):
    """Lightning's plugin for ``sync_batchnorm``, on CPUs too."""

    def apply(self, model: Any) -> Any:
        """The model with batch norms that are synchronised in training."""
        if model.trainer.strategy.root_device.type != "cpu":
            return super().apply(model)
        synchronise(model)
        return model


@contextmanager
def together(trainer: Trainer) -> Iterator[None]:
    """Inside, all processes of the trainer are there and can speak to each other; those that are missing are started.

    They come here with the same configuration, and do from here on what the first one does.
    """
    if not isinstance(trainer.strategy, DDPStrategy):
        yield
        return
    with started(trainer.num_devices):
        trainer.strategy.setup_environment()
        yield
        torch.distributed.destroy_process_group()  # not after an error: the others may be stuck


def batch_norm_of(model: nn.Module, trainer: Trainer) -> dict[str, str]:
    """For the summary of a run: what batch normalisation takes its means over, where there are several processes."""
    if trainer.world_size == 1 or not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return {}
    strategy = trainer.strategy
    whole = isinstance(strategy, DDPStrategy) and strategy._layer_sync is not None
    return {"batch_norm": "over all processes" if whole else "of each process"}
