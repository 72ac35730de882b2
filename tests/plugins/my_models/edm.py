"""EDM (Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", table 1)."""

import torch
from torch import Tensor

from imago.diffusion.predictions import Prediction
from imago.diffusion.samplers import Context, Estimate, Sampler
from imago.diffusion.schedules import NoiseSchedule, Times, column
from imago.images import Normalized
from imago.models.denoiser import Denoiser, Outputs
from imago.rng import BatchGenerator

SMALLEST, LARGEST, RHO, DATA = 0.002, 80.0, 7.0, 0.5  # of σ, and the standard deviation of images
LOW, HIGH = SMALLEST ** (1 / RHO), LARGEST ** (1 / RHO)


class VarianceExploding(NoiseSchedule):
    """α = 1; the ρ-th root of σ grows evenly (eq. 5)."""

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 and σ(t)."""
        return torch.ones_like(t), (LOW + t * (HIGH - LOW)) ** RHO


class Preconditioned(Prediction):
    """F of x̂ = c_skip x_t + c_out F, as wide as the network's input at every σ (eq. 7)."""

    def target(self, x: Normalized, noise: Normalized, alpha: Tensor, sigma: Tensor) -> Normalized:
        """(x_0 − c_skip x_t) / c_out."""
        skip, out = self.scales(sigma)
        return (x - skip * (x + sigma * noise)) / out

    def image(self, output: Normalized, noisy: Normalized, alpha: Tensor, sigma: Tensor) -> Normalized:
        """c_skip x_t + c_out F."""
        skip, out = self.scales(sigma)
        return skip * noisy + out * output

    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out."""
        return DATA**2 / (sigma**2 + DATA**2), sigma * DATA / (sigma**2 + DATA**2).sqrt()


class EDM(Denoiser):
    """A denoiser whose network sees x_t at the width of images, trained most where it matters."""

    def forward(self, noisy: Normalized, t: Times, labels: Tensor | None) -> Outputs:
        """F(c_in x_t, t)."""
        _, sigma = self.noise_schedule(column(t))
        return super().forward(noisy / (sigma**2 + DATA**2).sqrt(), t, labels)

    def training_times(self, n: int, rng: BatchGenerator) -> Tensor:
        """log σ ~ N(−1.2, 1.2²)."""
        sigma = torch.exp(1.2 * rng.normal(n) - 1.2)
        return ((sigma ** (1 / RHO) - LOW) / (HIGH - LOW)).clamp(0, 1)


class Heun(Sampler):
    """Second order by a second look at where Euler's step leads (algorithm 1)."""

    def nfe(self, total: int | None) -> int:
        """Two calls for each step but the last."""
        return 2 * super().nfe(total) - 1

    def step(self, x: Normalized, estimate: Estimate, t: float, s: float, context: Context) -> Normalized:
        """The mean of both slopes dx/dσ = (x − x̂) / σ; α = 1."""
        (_, now), (_, then) = context.schedule.at(t), context.schedule.at(s)
        slope = (x - estimate.image) / now
        euler = x + (then - now) * slope
        return x + (then - now) * 0.5 * (slope + (euler - context.predict(euler, s).image) / then)
