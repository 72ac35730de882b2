"""Sample grids: the same seeds every time, so that one sees the same images become better."""

from collections.abc import Callable

import torch
from lightning import Trainer
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from imago.capacity import Cells
from imago.data import ImageDataModule
from imago.images import to_bytes
from imago.models.base import GenerativeModel
from imago.models.variational import Variational
from imago.pictures import picture_of, scatter_of, write_png
from imago.processes import of_first_process, shared
from imago.rng import PerImageGenerator
from imago.runs import Run
from imago.training.callbacks.common import Halvings, find, show_picture
from imago.training.callbacks.ema import sampling_weights
from imago.training.callbacks.interruption import Interruption
from imago.training.callbacks.pace import Paced, Share, amounts_up_to, seconds_of
from imago.training.callbacks.progress import Progress

POINTS = 200  # of a row, in a scatter plot


class SampleGrid(Paced):
    """Draws a grid every so many images into ``samples/`` and W&B; one class a column for conditional models.

    Where x is drawn from p(x|z), a row of its means stands below each row of draws. Classes without training images
    have no column. Points in R^d are a scatter plot, of 200 points for each row, beside as many of validation.

    Args:
        every: number of images between two grids.
        run: the run directory.
        rows: rows of the grid.
        columns: columns of the grid; a conditional model's columns show the classes in turn.
        seed: of the random streams of the images.
        halvings, share: see :class:`~imago.training.callbacks.pace.Paced`; where drawing takes long there are fewer
            rows, and at least one.
    """

    portion = 0.2

    def __init__(
        self,
        every: PositiveInt,
        run: Run,
        rows: Cells = 8,
        columns: Cells = 10,
        seed: NonNegativeInt = 0,
        halvings: Halvings = 0,
        share: Share | None = None,
    ) -> None:
        super().__init__(every, halvings, share)
        self.run = run
        self.rows = rows
        self.columns = columns
        self.seed = seed

    def act(self, trainer: Trainer, model: GenerativeModel) -> None:
        """Draw the grid, each process a part of it, and write it."""
        points = model.spec.kind == "points"
        columns = POINTS if points else self.columns
        of_first_process(model.buffers())
        classes = model.classes
        row = torch.tensor(model.spec.trained)[torch.arange(columns) % len(model.spec.trained)] if classes else None
        told = "" if row is None or points else f"; columns: {', '.join(map(model.spec.class_name, row.tolist()))}"
        progress = find(trainer, Progress) if trainer.is_global_zero else None
        interruption = find(trainer, Interruption)

        def draw(rows: int, report: Callable[[int, int], None] | None = None) -> Tensor:
            def step(done: int, total: int) -> None:
                if report is not None:
                    report(done, total)
                if interruption is not None:
                    interruption.stop_if_requested()

            labels, count = None if row is None else row.repeat(rows), rows * columns
            size = -(-count // trainer.world_size)

            def part(first: int) -> Tensor:
                n = min(size, count - first)
                generator = PerImageGenerator(self.seed, first, device=model.device)
                given = None if labels is None else labels[first : first + n]
                return model.sample(n, labels=given, generator=generator, progress=step).cpu()

            return torch.cat(list(shared(part, range(0, count, size))))

        with model.state.paused(), self.run.beside("sample grid"), sampling_weights(trainer, model):
            rows = self.choose(trainer, model, amounts_up_to(self.rows, 1), lambda: seconds_of(draw, 1)) or 1
            report = None if progress is None else progress.subtask("drawing samples")
            path, drawn = self.run.samples / f"images-{model.state.images:010d}.png", None
            try:
                images = draw(rows, report)
                if isinstance(model, Variational) and model.observation_noise and not points:
                    with model.without_observation_noise():
                        both = torch.stack([images, draw(rows)])
                    images = both.unflatten(1, (rows, columns)).transpose(0, 1).flatten(0, 2)
                    told += "; every second row: the means of p(x|z) at the same z"
                drawn = f"{len(images)}, {path.relative_to(self.run.path)}"
            finally:
                if progress is not None:
                    progress.end_subtask(drawn)
            if not trainer.is_global_zero:
                return
            if points:
                data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
                real = (data.val if len(data.val) else data.test).part(slice(len(images))).images
                picture = scatter_of(images.flatten(1), real.flatten(1))
            else:
                picture = picture_of(to_bytes(images, model.spec.levels), columns)
            self.run.samples.mkdir(exist_ok=True)
            write_png(picture, path)
            show_picture(trainer, model, "samples", picture, told)
