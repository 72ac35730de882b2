"""The two chains of a diffusion model (Ho et al. 2020, figures 2 and 6): images drown in noise, and come out of it."""

from typing import Annotated

import torch
from PIL import Image
from pydantic import Field, NonNegativeInt

from imago.capacity import Cells
from imago.errors import UserError
from imago.figures.base import Figure, Trained, needed
from imago.figures.latents import class_of, first_of, labelled, of_class, repeated, stacked
from imago.images import Images, Normalized, quantize, to_bytes
from imago.models.diffusion import Diffusion
from imago.progress import Progress
from imago.rng import PerImageGenerator


class Chains(Figure):
    """Above, test images at growing t; below, samples at falling t, each with what the network took x_0 to be.

    What lies beyond black and white is cut.

    Args:
        images: rows of each part.
        snapshots: moments of each chain.
        seed: of the noise.
        label: the class, conditional models only; ``None`` is its first.
    """

    family = Diffusion

    def __init__(
        self,
        images: Cells = 3,
        snapshots: Annotated[int, Field(ge=2, le=256)] = 11,
        seed: NonNegativeInt = 0,
        label: NonNegativeInt | None = None,
    ) -> None:
        self.images = images
        self.snapshots = snapshots
        self.seed = seed
        self.label = label

    @torch.no_grad()
    def draw(self, trained: Trained | None, progress: Progress) -> Image.Image:
        """See :meth:`Figure.draw`."""
        trained = needed(trained)
        model = trained.model
        assert isinstance(model, Diffusion)
        label = class_of(model, self.label)
        data = trained.data()
        part = first_of(data.test, label, self.images)
        if not len(part):
            raise UserError(f"figure.label={label}: {data.name} test has no image of this class; give another one")
        steps = model.process.steps
        times = sorted(set(torch.linspace(0, steps, self.snapshots).round().long().tolist()))
        forward = model.chain(part.images, times, PerImageGenerator(self.seed, device=model.device))
        generator = PerImageGenerator(self.seed, device=model.device)
        labels = None if label is None else repeated(label, self.images)
        back = model.sample_chain(self.images, self.snapshots, generator, labels, progress)
        assert back.image is not None

        def shown(chain: Normalized) -> Images:
            return to_bytes(quantize(chain, model.spec.levels), model.spec.levels).cpu()

        above = shown(forward.noisy.transpose(0, 1).flatten(0, 1))
        of = of_class(model, label)
        pairs = torch.stack([back.noisy, back.image], 1).permute(2, 1, 0, 3, 4, 5)  # image, kind, station
        return stacked(
            [
                labelled(
                    above,
                    len(times),
                    title=f"q(x_t | x_0): test images{of} at time t",
                    column_names=[f"t = {t}" for t in times],
                    row_names=["x_t"] * len(part.images),
                ),
                labelled(
                    shown(pairs.flatten(0, 2)),
                    len(back.times),
                    title=f"p(x_0 … x_T): samples{of} ({model.sampling}) and the image that the network expects at t",
                    column_names=[f"t = {t}" for t in back.times],
                    row_names=["x_t", "expected x_0"] * self.images,
                ),
            ]
        )
