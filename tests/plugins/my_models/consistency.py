"""Consistency training (Song et al. 2023, "Consistency models", algorithms 1 and 3), the target without averaging."""

import torch
from torch import Tensor

from imago.diffusion.samplers import Context, Estimate, Sampler
from imago.diffusion.schedules import Times
from imago.images import Normalized
from imago.models.denoiser import Denoiser
from my_models.edm import DATA, EDM, SMALLEST, Preconditioned

STEPS = 160  # N


class Anchored(Preconditioned):
    """x̂ = x_t at the smallest noise, exactly (appendix C)."""

    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out."""
        above = sigma - SMALLEST
        return DATA**2 / (above**2 + DATA**2), above * DATA / (sigma**2 + DATA**2).sqrt()


class ConsistencyModel(EDM):
    """Every point of a path from noise to an image leads to its end at once."""

    training_times = Denoiser.training_times  # uniform: a path begins at t = 1

    def loss(self, x: Normalized, t: Times, noise: Normalized, labels: Tensor | None) -> dict[str, Tensor]:
        """The distance of where x_t leads and where the point before it on its path leads."""
        t = (t * STEPS).ceil().clamp(min=1) / STEPS
        s = (t * STEPS - 1) / STEPS
        found = self.predict(self.noise_schedule.diffuse(x, t, noise), t, labels).image
        with torch.no_grad():
            target = self.predict(self.noise_schedule.diffuse(x, s, noise), s, labels).image
        return {"loss": (found - target).square().mean((1, 2, 3))}


class Multistep(Sampler):
    """Noise what was found and look again."""

    def step(self, x: Normalized, estimate: Estimate, t: float, s: float, context: Context) -> Normalized:
        """x_s ~ q(x_s | x̂)."""
        alpha, sigma = context.schedule.at(s)
        return alpha * estimate.image + sigma * context.draw()
