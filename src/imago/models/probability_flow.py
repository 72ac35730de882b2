"""The likelihood of a denoiser, by the differential equation that carries noise to images.

Samples of a diffusion model may be had without noise on the way: along dy/dτ = v(y, τ) with

    v(y, τ) = (y − x̂_0(y, τ)) / τ                                                                                   (1)

the distributions are the same as those of the chain that adds noise (Song et al. 2021, "Score-based generative modeling
through stochastic differential equations", eq. 13; here as on straight lines, y = x_t / (α + σ) and τ = σ / (α + σ),
which every schedule is in another scale and time: :class:`~imago.diffusion.schedules.StraightLines`). An equation
without noise is a normalizing flow, so its density is known (their eq. 39; :mod:`imago.diffusion.ode`, equation 1):
log p(x) is the log-density of the noise at the end of the path through x, and the divergence of v along it.

That is a density in R^D, which an integer image gets by dequantisation (Theis et al. 2016): with u uniform over the
width w of a level, log P(x) ≥ E_u log p(x + u) + D log w. With one u and one of Hutchinson's probes for each image, and
to a solver's tolerance, it is an estimate, which may err to either side. It is of another model than a chain's bound:
the same network, walked without noise.
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from imago.diffusion.ode import log_density
from imago.diffusion.schedules import column
from imago.images import Images, Normalized, normalize
from imago.models.base import Normal
from imago.models.denoiser import Denoiser

EXACT = 8  # values up to which the divergence is


class ProbabilityFlow(Denoiser, ABC):
    """A denoiser whose equation without noise can be followed from an image to noise.

    Attributes:
        ends: τ of the least noise that the network was trained on, and τ of the noise that samples begin with.
    """

    ends: tuple[float, float]

    @abstractmethod
    def on_schedule(self, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The network's time, α and σ where σ / (α + σ) = ``tau``, (n,)."""

    def velocity(self, y: Normalized, tau: Tensor, labels: Tensor | None) -> Normalized:
        """Equation 1, without clipping what the network expects of the image; before :attr:`ends` as at its first.

        Args:
            y: x_t / (α + σ).
            tau: (n,), each in [0, 1].
            labels: of each image, conditional models only.
        """
        tau = tau.clamp(min=self.ends[0])
        t, alpha, sigma = self.on_schedule(tau)
        alpha, sigma = column(alpha), column(sigma)
        noisy = (alpha + sigma) * y
        return (y - self.prediction.image(self(noisy, t, labels)[:, 0], noisy, alpha, sigma)) / column(tau)

    def flow_nats(self, images: Images, labels: Tensor | None, normal: Normal, tolerance: float) -> Float[Tensor, " n"]:
        """−log p(x) in nats, an estimate, without a gradient: of points their density, of pixels see the module.

        Args:
            images: uint8 (n, channels, height, width), or points.
            labels: of each, conditional models only.
            normal: draws (n, ...) for the images, standard normal, on the model's device.
            tolerance: of the solver, relative and absolute.
        """
        n, levels, values = len(images), self.spec.levels, self.spec.dimensions
        x, width = normalize(images, levels), 1.0
        if levels:
            width = 2 / (levels - 1)
            x = x + width * (torch.special.ndtr(normal(n, *self.spec.shape)) - 0.5)
        signs = None if values <= EXACT else torch.where(normal(n, *self.spec.shape) < 0, -1.0, 1.0)
        end = self.ends[1]
        density = log_density(
            lambda y, tau: self.velocity(y, tau, labels),
            x,
            signs,
            tolerance,
            tolerance,
            end=end,
            scale=math.hypot(1 - end, end),
        )
        return -density - values * math.log(width)

    def flow_estimator(self, tolerance: float) -> str:
        """How :meth:`flow_nats` estimates: of the path, the divergence and the density of integers."""
        told = f"probability flow, tolerance {tolerance:g}"
        told += ", exact divergence" if self.spec.dimensions <= EXACT else ", Hutchinson's divergence"
        return told + (", uniform dequantisation" if self.spec.levels else "")
