"""Sample grids: the same seeds every time, so that one sees the same images become better."""

import torch
from lightning import Trainer
from pydantic import NonNegativeInt, PositiveInt

from imago.capacity import Cells
from imago.images import to_bytes
from imago.models.base import GenerativeModel
from imago.pictures import picture_of, write_png
from imago.rng import PerImageGenerator
from imago.runs import Run
from imago.training.callbacks.common import Periodic, find, show_picture
from imago.training.callbacks.ema import sampling_weights
from imago.training.callbacks.interruption import Interruption
from imago.training.callbacks.progress import Progress


class SampleGrid(Periodic):
    """Draws a grid every so many images into ``samples/`` and W&B; one class a column for conditional models.

    Classes without training images have no column. Points in R^d are no pictures.

    Args:
        every: number of images between two grids.
        run: the run directory.
        rows: rows of the grid.
        columns: columns of the grid; a conditional model's columns show the classes in turn.
        seed: of the random streams of the images.
    """

    def __init__(
        self, every: PositiveInt, run: Run, rows: Cells = 8, columns: Cells = 10, seed: NonNegativeInt = 0
    ) -> None:
        super().__init__(every)
        self.run = run
        self.rows = rows
        self.columns = columns
        self.seed = seed

    def act(self, trainer: Trainer, model: GenerativeModel) -> None:
        """Draw and write the grid."""
        if not trainer.is_global_zero or model.spec.kind == "points":
            return
        n = self.rows * self.columns
        labels, told = None, ""
        if model.classes:
            classes = torch.tensor(model.spec.trained)[torch.arange(self.columns) % len(model.spec.trained)]
            labels = classes.repeat(self.rows)
            told = f"; columns: {', '.join(map(model.spec.class_name, classes.tolist()))}"
        generator = PerImageGenerator(self.seed, device=model.device)
        progress, interruption = find(trainer, Progress), find(trainer, Interruption)

        def step(done: int, total: int) -> None:
            if report is not None:
                report(done, total)
            if interruption is not None:
                interruption.stop_if_requested()

        with model.state.paused(), self.run.beside("sample grid"), sampling_weights(trainer, model):
            report = None if progress is None else progress.subtask("drawing samples")
            try:
                images = model.sample(n, labels=labels, generator=generator, progress=step)
            finally:
                if progress is not None:
                    progress.end_subtask()
            picture = picture_of(to_bytes(images, model.spec.levels), self.columns)
            self.run.samples.mkdir(exist_ok=True)
            write_png(picture, self.run.samples / f"images-{model.state.images:010d}.png")
            show_picture(trainer, model, "samples", picture, told)
