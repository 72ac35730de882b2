"""Where the bits of a diffusion model's bound are spent (Nichol & Dhariwal 2021, figure 2)."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing
from pydantic import NonNegativeInt, PositiveInt

from imago.data.base import drawn
from imago.figures.base import Figure, Trained, held_out
from imago.images import bits_per_dim, normalize
from imago.models.diffusion import Diffusion
from imago.progress import Progress
from imago.rng import PerImageGenerator


@dataclass
class Denoising(Figure[Diffusion]):
    """Each term of the bound against t, in bits per dimension, and how they add up, over test images.

    Args:
        images: test images; all, if there are fewer.
        points: values of t, all of them or so many evenly spread over the logarithm of t.
        seed: of the noise.
    """

    images: PositiveInt = 64
    points: PositiveInt = 100
    seed: NonNegativeInt = 0

    @torch.no_grad()
    def draw(self, trained: Trained[Diffusion], progress: Progress) -> Drawing:
        """See :meth:`Figure.draw`."""
        model, data = trained.model, trained.data()
        part = drawn(held_out(model, data, "test"), "test", self.images)
        images, labels = model.checked(part.images, part.labels if model.conditional else None)
        steps = model.steps
        times = list(range(1, steps + 1))
        if self.points < steps:
            spread = np.geomspace(1, steps, self.points).round().astype(int).tolist()
            times = sorted({1, 2, steps, *spread})
        x = normalize(images, model.spec.levels)
        generator = PerImageGenerator(self.seed, device=model.device)
        bits = []
        for k, t in enumerate(times):
            nats = model.term(x, t, labels, lambda n, *shape: generator.normal(n, *shape).to(model.device))
            bits.append(float(bits_per_dim(nats.mean(), model.spec)))
            progress(k + 1, len(times))
        last = float(bits_per_dim(model.regularisation(x).mean(), model.spec))
        drawing = Drawing(figsize=(9, 3.6), layout="constrained")
        left, right = drawing.subplots(1, 2)
        left.loglog(times[1:], bits[1:], marker=".", markersize=3, label="denoising")
        left.loglog(times[:1], bits[:1], "o", color="tab:orange", label="reconstruction (t = 1)")
        left.set_ylabel("bits per dimension, each t")
        left.legend(fontsize=8)
        # Between the times drawn a term is taken to be a power of t; at t = 1 there is another kind of term.
        every, terms = np.arange(1, steps + 1), np.array(bits)
        if steps > 1:
            logs = np.log(terms[1:].clip(1e-30))
            terms = np.array([bits[0], *np.exp(np.interp(np.log(every[1:]), np.log(times[1:]), logs))])
        sums = terms.cumsum()
        right.semilogx(every, sums)
        right.set_ylabel("sum of the terms up to t")
        for axes in (left, right):
            axes.set_xlabel("t")
            axes.grid(alpha=0.3)
        drawing.suptitle(
            f"{len(images)} test images of {data.name}: about {sums[-1] + last:.3f} bits/dim, of which "
            f"reconstruction {bits[0]:.3f}, denoising {sums[-1] - bits[0]:.3f}, regularisation {last:.1e}",
            fontsize=10,
        )
        return drawing
