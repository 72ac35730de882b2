"""Rectified flow (Liu et al. 2023, "Flow straight and fast"; Lipman et al. 2023, "Flow matching")."""

from torch import Tensor

from imago.diffusion.predictions import Prediction
from imago.diffusion.samplers import Context, Estimate, Sampler
from imago.diffusion.schedules import NoiseSchedule
from imago.images import Normalized


class RectifiedFlow(NoiseSchedule):
    """Straight lines from an image to noise."""

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α = 1 − t and σ = t."""
        return 1 - t, t


class Velocity(Prediction):
    """ε − x_0, how x_t moves along its line."""

    def target(self, x: Normalized, noise: Normalized, alpha: Tensor, sigma: Tensor) -> Normalized:
        """The direction from the image to the noise."""
        return noise - x

    def image(self, output: Normalized, noisy: Normalized, alpha: Tensor, sigma: Tensor) -> Normalized:
        """Back along the line; α + σ = 1."""
        return noisy - sigma * output


class Euler(Sampler):
    """Follow the velocity in straight steps."""

    def step(self, x: Normalized, estimate: Estimate, t: float, s: float, context: Context) -> Normalized:
        """x_s = x_t + (s − t) v with v = (x_t − x̂) / t."""
        return x + (s - t) / t * (x - estimate.image)
