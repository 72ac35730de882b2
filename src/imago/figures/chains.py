"""The chains of a model that draws step by step: images drown in noise, and come out of it.

Ho et al. 2020, figures 2 and 6; Bengio et al. 2014, figure 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from PIL import Image
from pydantic import Field, NonNegativeInt
from torch import Tensor

from imago.capacity import Cells
from imago.diffusion.samplers import State
from imago.errors import UserError
from imago.figures.base import MOST_FRAMES, Animated, Trained, spread
from imago.figures.latents import class_of, first_of, labelled, of_class, repeated, stacked
from imago.images import normalize, quantize, to_bytes
from imago.models.denoiser import Denoiser
from imago.models.stepwise import Stepwise
from imago.progress import Progress
from imago.rng import PerImageGenerator

# What the rows of a denoiser's chain show, one after the other.
ROWS = ("x_t", "expected x_0")


@dataclass
class Chains(Animated[Stepwise]):
    """Samples step by step, each with what the network took the image to be; of denoisers test images at growing t too.

    What lies beyond black and white is cut.

    Args:
        images: rows of each part.
        snapshots: moments of each chain.
        seed: of the noise.
        label: the class, conditional models only; ``None`` is its first.
    """

    images: Cells = 3
    snapshots: Annotated[int, Field(ge=2, le=256)] = 11
    seed: NonNegativeInt = 0
    label: NonNegativeInt | None = None

    def spread(self, moments: int) -> list[int]:
        """The numbers of those of so many moments that are drawn."""
        return spread(moments, self.snapshots)

    @torch.no_grad()
    def draw(self, trained: Trained[Stepwise], progress: Progress) -> Image.Image:
        """See :meth:`Figure.draw`."""
        model = trained.model
        label = class_of(model, self.label)
        pictures = [self._forward(model, trained, label)] if isinstance(model, Denoiser) else []
        states = self._walked(model, label, progress)
        moments = self.spread(len(states))
        back = [states[k] for k in moments]
        title, rows = f"samples{of_class(model, label)} ({model.sampling})", ["x̃_t", "x_t+1"]
        columns = [f"step {k + 1}" for k in moments]
        if isinstance(model, Denoiser):
            title = f"p(x_0 … x_T): {title} and the image that the network expects at t"
            rows, columns = list(ROWS), _names(model, [state.t for state in back])
        grid = _shown(model, [s.noisy for s in back], [s.image for s in back])
        pictures.append(labelled(grid, len(back), title=title, column_names=columns, row_names=rows * self.images))
        return stacked(pictures)

    @torch.no_grad()
    def frames(self, trained: Trained[Stepwise], progress: Progress) -> list[Image.Image]:
        """See :meth:`Animated.frames`: samples alone, side by side."""
        model = trained.model
        label = class_of(model, self.label)
        states = self._walked(model, label, progress)
        moments = spread(len(states), MOST_FRAMES)
        rows, names = ["x̃_t", "x_t+1"], [f"step {k + 1}" for k in moments]
        if isinstance(model, Denoiser):
            rows, names = list(ROWS), _names(model, [states[k].t for k in moments])
        return [
            labelled(
                _shown(model, [torch.cat([states[k].noisy, states[k].image])]),
                self.images,
                title=f"samples{of_class(model, label)} ({model.sampling})",
                column_names=[name],
                row_names=rows,
            )
            for k, name in zip(moments, names, strict=True)
        ]

    def _walked(self, model: Stepwise, label: int | None, progress: Progress) -> list[State]:
        generator = PerImageGenerator(self.seed, device=model.device)
        labels = model.labels_for(self.images, None if label is None else repeated(label, self.images), generator)
        states: list[State] = []
        for state in model.trajectory(self.images, labels, generator):
            states.append(state)
            progress(len(states), model.moments)
        return states

    def _forward(self, model: Denoiser, trained: Trained[Stepwise], label: int | None) -> Image.Image:
        data = trained.data()
        part = first_of(data.test, label, self.images)
        if not len(part):
            raise UserError(f"figure.label={label}: {data.name} test has no image of this class; give another one")
        schedule = model.noise_schedule
        images, _ = model.checked(part.images, part.labels if model.conditional else None)
        generator = PerImageGenerator(self.seed, device=model.device)
        total = schedule.steps or self.snapshots - 1
        times = [k / total for k in self.spread(total + 1)]
        forward = [normalize(images, model.spec.levels)]
        for s, t in pairwise(times):
            noise = generator.normal(len(images), *model.spec.shape).to(model.device)
            forward.append(schedule.step(forward[-1], s, t, noise))
        return labelled(
            _shown(model, forward),
            len(times),
            title=f"q(x_t | x_0): test images{of_class(model, label)} at time t",
            column_names=_names(model, times),
            row_names=["x_t"] * len(part.images),
            beside=ROWS[1],
        )


def _shown(model: Stepwise, *rows: Sequence[Tensor]) -> Tensor:
    """Of each image its rows, snapshots side by side."""
    grid = torch.stack([torch.stack(list(row), 1) for row in rows], 1).flatten(0, 2)
    return to_bytes(quantize(grid, model.spec.levels), model.spec.levels).cpu()


def _names(model: Denoiser, times: Sequence[float]) -> list[str]:
    steps = model.noise_schedule.steps
    return [f"t = {round(t * steps) if steps else round(t, 3)}" for t in times]
