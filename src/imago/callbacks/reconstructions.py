"""Grids of images and their reconstructions: the same images every time, so that one sees what z comes to hold."""

import torch
from lightning import Trainer
from pydantic import PositiveInt

from imago.callbacks.averaging import sampling_weights
from imago.callbacks.common import Periodic, show_picture
from imago.callbacks.log import clock_paused
from imago.capacity import Cells
from imago.data.base import ImageSet, seen_by
from imago.images import Images, Signal, to_bytes, to_images
from imago.models.base import GenerativeModel, evaluating
from imago.models.latent import EncodingModel
from imago.pictures import picture_of, write_png
from imago.runs import Run


class ReconstructionGrid(Periodic):
    """Draws the first validation images, each row above its reconstructions, into ``samples/`` and W&B.

    Does nothing for models that cannot encode images.

    Args:
        every: number of images between two grids.
        run: the run directory.
        rows: pairs of rows of the grid.
        columns: columns of the grid.
    """

    def __init__(self, every: PositiveInt, run: Run, rows: Cells = 4, columns: Cells = 10) -> None:
        super().__init__(every)
        self.run = run
        self.rows = rows
        self.columns = columns

    def act(self, trainer: Trainer, model: GenerativeModel) -> None:
        """Draw and write the grid."""
        if not trainer.is_global_zero or not isinstance(model, EncodingModel):
            return
        part = seen_by(model, trainer.datamodule.val)  # type: ignore[attr-defined]
        if not len(part):  # a conditional model of a class that has training images alone
            return
        with clock_paused(trainer), self.run.beside("reconstruction grid"), sampling_weights(trainer, model):
            images, columns = pairs(model, part, self.rows, self.columns)
            picture = picture_of(images, columns)
            self.run.samples.mkdir(exist_ok=True)
            write_png(picture, self.run.samples / f"reconstructions-{model.images_seen:010d}.png")
            show_picture(trainer, model, "reconstructions", picture)


@torch.no_grad()
def reconstruct(model: EncodingModel, part: ImageSet) -> Signal:
    """Images decoded from their codes, in [-1, 1], in evaluation mode, on the CPU; conditional models get labels."""
    labels = part.labels if model.conditional else None
    with evaluating(model):
        z = model.encode(part.images, labels)
        return model.decode(z, None if labels is None else labels.to(model.device)).float().cpu()


def pairs(model: EncodingModel, part: ImageSet, rows: int, columns: int) -> tuple[Images, int]:
    """The first images of a split in rows, each row followed by its reconstructions.

    Returns:
        images with values 0..255, and the number of columns; both smaller where the split is.
    """
    columns = min(columns, len(part))
    few = part.part(slice(min(rows, len(part) // columns) * columns))
    both = torch.stack([to_bytes(few.images, model.spec.levels), to_images(reconstruct(model, few), 256)])
    return both.unflatten(1, (-1, columns)).transpose(0, 1).flatten(0, 2), columns
