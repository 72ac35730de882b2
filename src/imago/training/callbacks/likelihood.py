"""The likelihood of the validation split during training, for models that know it."""

import sys
from collections.abc import Callable

from lightning import LightningModule, Trainer
from pydantic import PositiveInt

from imago.data import ImageDataModule
from imago.data.base import seen_by
from imago.evaluation import measure_likelihood
from imago.measures import Measurement
from imago.models.base import ExplicitModel, GenerativeModel, knows_likelihood
from imago.runs import Run
from imago.training.callbacks.common import Halvings
from imago.training.callbacks.measuring import Measuring
from imago.training.callbacks.pace import Share, amounts_up_to, seconds_of

FEWEST = 10  # images that a mean is worth something of


class MeasureLikelihood(Measuring):
    """Logs ``val/bpd`` and ``val/nats``, with averaged weights where the run keeps them.

    Does nothing for models without a likelihood.

    Args:
        every: number of images between two measurements.
        run: the run directory.
        images: take at most so many of the validation split, the first ones; ``None`` takes all.
        batch_size: images at a time; changes no number beyond rounding.
        at_start: measure the untrained model too, for comparison.
        bound_steps: of a diffusion's bound so many of its T terms for each image, drawn at random: right on average,
            and the standard error knows it. ``None`` takes all.
        halvings, share: see :class:`~imago.training.callbacks.pace.Paced`.
    """

    doing = "measuring likelihood"
    portion = 0.3

    def __init__(
        self,
        every: PositiveInt,
        run: Run,
        images: PositiveInt | None = None,
        batch_size: PositiveInt = 128,
        at_start: bool = True,
        bound_steps: PositiveInt | None = 10,
        halvings: Halvings = 0,
        share: Share | None = None,
    ) -> None:
        super().__init__(every, run, at_start, halvings, share)
        self.images = images
        self.bound_steps = bound_steps
        self.batch_size = batch_size
        self.possible = True

    def headline(self, model: GenerativeModel) -> str | None:
        """Bits per dimension."""
        return "val/bpd" if knows_likelihood(model) and self.possible else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the untrained model, where there is something to measure it with."""
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, GenerativeModel)
        if knows_likelihood(pl_module) and not len(seen_by(pl_module, data.val)):
            self.possible = False
            if trainer.is_global_zero:
                why = (
                    f"none of the {len(data.val)} validation images is of a class that has training images"
                    if len(data.val)
                    else "data.val=0 holds no images out"
                )
                print(f"note: the likelihood is not measured during training: {why}", file=sys.stderr)
        super().on_train_start(trainer, pl_module)

    def amounts(self, trainer: Trainer, model: GenerativeModel) -> list[int]:
        """Of what there is to measure with, or fewer."""
        there = len(seen_by(model, trainer.datamodule.val))  # type: ignore[attr-defined]
        return amounts_up_to(min(there, self.images or there), FEWEST)

    def seconds_each(self, trainer: Trainer, model: GenerativeModel) -> float:
        """Measure a few."""

        def work(images: int) -> None:
            self.measure(trainer, model, images, False, None, lambda: None)

        if model.likelihood == "estimate":
            work(1)  # once what all images share, such as log Z: a measurement's cost has it, no image's
        return seconds_of(work, self.batch_size)

    def measure(
        self,
        trainer: Trainer,
        model: GenerativeModel,
        amount: int,
        averaged: bool,
        progress: Callable[[int, int], None] | None,
        before_batch: Callable[[], None],
    ) -> list[Measurement]:
        """See :meth:`Measuring.measure`."""
        assert isinstance(model, ExplicitModel)
        return measure_likelihood(
            model,
            trainer.datamodule,  # type: ignore[attr-defined]
            "val",
            averaged=averaged,
            batch_size=self.batch_size,
            images=amount,
            bound_steps=self.bound_steps,
            progress=progress,
            before_batch=before_batch,
        )
