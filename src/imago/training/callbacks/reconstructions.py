"""Grids of images and their reconstructions: the same images every time, so that one sees what z comes to hold."""

from lightning import Trainer
from pydantic import PositiveInt

from imago.capacity import Cells
from imago.data.base import seen_by
from imago.evaluation.reconstructions import pairs
from imago.models.base import GenerativeModel
from imago.models.latent import EncodingModel
from imago.pictures import picture_of, write_png
from imago.runs import Run
from imago.training.callbacks.common import Halvings, show_picture
from imago.training.callbacks.ema import sampling_weights
from imago.training.callbacks.pace import Paced, Share


class ReconstructionGrid(Paced):
    """Draws the first validation images, each row above its reconstructions, into ``samples/`` and W&B.

    Does nothing for models that cannot encode images, nor for points in R^d.

    Args:
        every: number of images between two grids.
        run: the run directory.
        rows: pairs of rows of the grid.
        columns: columns of the grid.
        halvings, share: see :class:`~imago.training.callbacks.pace.Paced`.
    """

    portion = 0.1

    def __init__(
        self,
        every: PositiveInt,
        run: Run,
        rows: Cells = 4,
        columns: Cells = 10,
        halvings: Halvings = 0,
        share: Share | None = None,
    ) -> None:
        super().__init__(every, halvings, share)
        self.run = run
        self.rows = rows
        self.columns = columns

    def act(self, trainer: Trainer, model: GenerativeModel) -> None:
        """Draw and write the grid."""
        if not trainer.is_global_zero or not isinstance(model, EncodingModel) or model.spec.kind == "points":
            return
        part = seen_by(model, trainer.datamodule.val)  # type: ignore[attr-defined]
        if not len(part):  # a conditional model of a class that has training images alone
            return
        with model.state.paused(), self.run.beside("reconstruction grid"), sampling_weights(trainer, model):
            images, columns = pairs(model, part, self.rows, self.columns)
            picture = picture_of(images, columns)
            self.run.samples.mkdir(exist_ok=True)
            write_png(picture, self.run.samples / f"reconstructions-{model.state.images:010d}.png")
            show_picture(trainer, model, "reconstructions", picture)
