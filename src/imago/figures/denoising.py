"""Where the bits of a diffusion model's bound are spent (Nichol & Dhariwal 2021, figure 2)."""

import torch
from matplotlib.figure import Figure as Drawing
from pydantic import NonNegativeInt, PositiveInt

from imago.figures.base import Figure, Progress, Trained, needed
from imago.images import bits_per_dim, to_signal
from imago.models.diffusion import Diffusion
from imago.noise import PerImageGenerator


class Denoising(Figure):
    """Each term of the bound against t, in bits per dimension, and how they add up, over test images.

    Args:
        images: test images; all, if there are fewer.
        points: values of t, all of them or so many evenly spread over the logarithm of t.
        seed: of the noise.
    """

    family = Diffusion

    def __init__(self, images: PositiveInt = 64, points: PositiveInt = 100, seed: NonNegativeInt = 0) -> None:
        self.images = images
        self.points = points
        self.seed = seed

    @torch.no_grad()
    def draw(self, trained: Trained | None, progress: Progress) -> Drawing:
        """See :meth:`Figure.draw`."""
        trained = needed(trained)
        model, data = trained.model, trained.data()
        assert isinstance(model, Diffusion)
        part = data.test.part(slice(self.images))
        images, labels = model.checked(part.images, part.labels if model.conditional else None)
        steps = model.process.steps
        times = sorted(set(torch.logspace(0, torch.log10(torch.tensor(float(steps))), self.points).round().tolist()))
        if self.points >= steps:
            times = [float(t) for t in range(1, steps + 1)]
        x = to_signal(images, model.spec.levels)
        bits = []
        for k, time in enumerate(times):
            generator = PerImageGenerator(self.seed, device=model.device)
            t = torch.full((len(x),), int(time), device=model.device)
            nats = model.term(images, x, t, labels, lambda n, *s, g=generator: g.normal(n, *s).to(model.device))
            bits.append(float(bits_per_dim(nats.mean(), model.spec)))
            progress(k + 1, len(times))
        last = float(bits_per_dim(model.regularisation(x).mean(), model.spec))
        drawing = Drawing(figsize=(9, 3.6), layout="constrained")
        left, right = drawing.subplots(1, 2)
        left.loglog(times[1:], bits[1:], marker=".", markersize=3, label="denoising")
        left.loglog(times[:1], bits[:1], "o", color="tab:orange", label="reconstruction (t = 1)")
        left.set_ylabel("bits per dimension, each t")
        left.legend(fontsize=8)
        # Between the times drawn a term is taken to change evenly.
        every = torch.arange(1, steps + 1).double()
        known, values = torch.tensor(times).double(), torch.tensor(bits).double()
        after = torch.searchsorted(known, every).clamp(1, len(known) - 1)
        share = (every - known[after - 1]) / (known[after] - known[after - 1])
        sums = torch.lerp(values[after - 1], values[after], share).cumsum(0)
        right.semilogx(every.numpy(), sums.numpy())
        right.set_ylabel("sum of the terms up to t")
        for axes in (left, right):
            axes.set_xlabel("t")
            axes.grid(alpha=0.3)
        drawing.suptitle(
            f"{len(x)} test images of {data.name}: about {float(sums[-1]) + last:.3f} bits/dim, of which "
            f"reconstruction {bits[0]:.3f}, denoising {float(sums[-1]) - bits[0]:.3f}, regularisation {last:.1e}",
            fontsize=10,
        )
        return drawing
