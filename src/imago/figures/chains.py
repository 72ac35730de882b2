"""The two chains of a diffusion model (Ho et al. 2020, figures 2 and 6): images drown in noise, and come out of it."""

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
from imago.figures.base import Figure, Trained
from imago.figures.latents import class_of, first_of, labelled, of_class, repeated, stacked
from imago.images import normalize, quantize, to_bytes
from imago.models.denoiser import Denoiser
from imago.progress import Progress
from imago.rng import PerImageGenerator


@dataclass
class Chains(Figure[Denoiser]):
    """Above, test images at growing t; below, samples at falling t, each with what the network took x_0 to be.

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
        return torch.linspace(0, moments - 1, min(self.snapshots, moments)).round().long().tolist()

    @torch.no_grad()
    def draw(self, trained: Trained[Denoiser], progress: Progress) -> Image.Image:
        """See :meth:`Figure.draw`."""
        model = trained.model
        label = class_of(model, self.label)
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
        generator = PerImageGenerator(self.seed, device=model.device)
        labels = model.labels_for(self.images, None if label is None else repeated(label, self.images), generator)
        states: list[State] = []
        for state in model.trajectory(self.images, labels, generator):
            states.append(state)
            progress(len(states), len(model.sampler.times(schedule.steps)))
        back = [states[k] for k in self.spread(len(states))]

        def shown(*rows: Sequence[Tensor]) -> Tensor:  # of each image, snapshots side by side
            grid = torch.stack([torch.stack(list(row), 1) for row in rows], 1).flatten(0, 2)
            return to_bytes(quantize(grid, model.spec.levels), model.spec.levels).cpu()

        def names(times: Sequence[float]) -> list[str]:
            return [f"t = {round(t * schedule.steps) if schedule.steps else round(t, 3)}" for t in times]

        of = of_class(model, label)
        return stacked(
            [
                labelled(
                    shown(forward),
                    len(times),
                    title=f"q(x_t | x_0): test images{of} at time t",
                    column_names=names(times),
                    row_names=["x_t"] * len(part.images),
                ),
                labelled(
                    shown([s.noisy for s in back], [s.image for s in back]),
                    len(back),
                    title=f"p(x_0 … x_T): samples{of} ({model.sampling}) and the image that the network expects at t",
                    column_names=names([s.t for s in back]),
                    row_names=["x_t", "expected x_0"] * self.images,
                ),
            ]
        )
