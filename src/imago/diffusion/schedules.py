"""Noise schedules: x_t = α(t) x_0 + σ(t) ε, from the image at t = 0 to noise at t = 1.

Everything else of a Gaussian diffusion process follows from α and σ (Kingma et al. 2021, appendix A). For s < t,

    q(x_t | x_s) = N(a x_s, β I),    a = α_t / α_s,    β = σ_t² − a² σ_s²                                           (1)
    q(x_s | x_t, x_0) = N(c_0 x_0 + c_t x_t, β̃ I),
    c_0 = α_s β / σ_t²,    c_t = a σ_s² / σ_t²,    β̃ = β σ_s² / σ_t².                                               (2)

Ho et al. 2020 have a chain of T steps t = 1/T, …, 1 with α_t² = ᾱ_t = Π (1 − β) and σ_t² = 1 − ᾱ_t, defined by its
variances β_1..β_T. All families of β here are written for T = 1000, as in the papers, and for some fifty steps or more
keep their ᾱ as a function of t nearly the same: β grows by 1000 / T. Where that would pass :data:`LARGEST_BETA`, with
twenty steps or fewer, it is cut there.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from imago.images import Normalized

Times = Float[Tensor, " #n"]  # in (0, 1], of each image or one of all
Column = Float[Tensor, "#n 1 1 1"]
Betas = Float64[Tensor, " steps"]

LARGEST_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: a step that leaves nothing cannot be undone
Beta = Annotated[float, Field(gt=0, lt=1)]
Numbers = Any  # a float, or a tensor of them


def column(t: Times) -> Column:
    """Times in a shape that broadcasts against images."""
    return t.view(-1, 1, 1, 1)


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(c_0 x_0 + c_t x_t, β̃ I), equation 2, and β of equation 1."""

    image: Numbers
    noisy: Numbers
    variance: Numbers
    beta: Numbers


def posterior(alpha_s: Numbers, sigma_s: Numbers, alpha_t: Numbers, sigma_t: Numbers) -> Posterior:
    """Equations 1 and 2."""
    a, kept = alpha_t / alpha_s, (sigma_s / sigma_t) ** 2
    beta = sigma_t**2 - (a * sigma_s) ** 2
    return Posterior(image=alpha_s * beta / sigma_t**2, noisy=a * kept, variance=beta * kept, beta=beta)


class NoiseSchedule(nn.Module, ABC):
    """A function t ↦ (α(t), σ(t)) on [0, 1] with α(0) = 1, σ(0) = 0 and a signal-to-noise ratio that falls.

    Attributes:
        steps: T of a process in discrete time, whose times are the multiples of 1 / T; ``None`` in continuous time.
    """

    steps: int | None = None

    @abstractmethod
    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α(t) and σ(t), of the shape of ``t``."""

    def at(self, t: float) -> tuple[float, float]:
        """α(t) and σ(t) in float64."""
        alpha, sigma = self(torch.tensor(t, dtype=torch.float64))
        return float(alpha), float(sigma)

    def diffuse(self, x: Normalized, t: Times, noise: Normalized) -> Normalized:
        """x_t ~ q(x_t | x_0) from standard normal ``noise``."""
        alpha, sigma = self(column(t))
        return alpha * x + sigma * noise

    def step(self, x: Normalized, s: float, t: float, noise: Normalized) -> Normalized:
        """x_t ~ q(x_t | x_s) for s < t, equation 1."""
        return self.at(t)[0] / self.at(s)[0] * x + math.sqrt(self.posterior(s, t).beta) * noise

    def posterior(self, s: float, t: float) -> Posterior:
        """q(x_s | x_t, x_0) for s < t, equation 2."""
        return posterior(*self.at(s), *self.at(t))

    def log_snr(self, t: float) -> float:
        """λ(t) = log(α / σ), half the logarithm of the signal-to-noise ratio; infinite where one of them is 0."""
        alpha, sigma = self.at(t)
        return math.inf if not sigma else -math.inf if not alpha else math.log(alpha / sigma)


class StraightLines(NoiseSchedule):
    """α = 1 − t and σ = t: from an image straight to its noise (Liu et al. 2023; Lipman et al. 2023, section 4.1).

    x_t / (α + σ) = (1 − τ) x_0 + τ ε with τ = σ / (α + σ) shows every schedule as this one, in another scale and time.
    """

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`NoiseSchedule`."""
        return 1 - t, t


class GeometricNoise(NoiseSchedule):
    """α = 1 and L levels σ, each the same multiple of the one before (Song & Ermon 2019, section 4.2).

    Args:
        smallest: σ at t = 1 / L; at t = 0 there is none.
        largest: σ at t = 1.
        steps: L.
    """

    steps: int

    def __init__(self, smallest: float, largest: float, steps: int) -> None:
        super().__init__()
        self.smallest, self.largest, self.steps = smallest, largest, steps

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`NoiseSchedule`."""
        above = (1 - t) * (self.steps / max(1, self.steps - 1))  # 1 at the last level, 0 at the first
        sigma = self.largest * torch.exp(above * math.log(self.smallest / self.largest))
        return torch.ones_like(t), torch.where(t > 0, sigma, 0.0)


# --- discrete time ----------------------------------------------------------------------------------------------------


class BetaSchedule(ABC):
    """A family of sequences β_1..β_T, the variances that the steps add."""

    @abstractmethod
    def __call__(self, steps: int) -> Betas:
        """β_1..β_T in float64, each in (0, 0.999]."""


class DiscreteSchedule(NoiseSchedule):
    """A Markov chain of T steps (Sohl-Dickstein et al. 2015; Ho et al. 2020, eq. 2 and 4); no weights in checkpoints.

    Args:
        betas: the variances.
        steps: T.

    Attributes:
        alpha_bar: float64 (T + 1,) on the CPU: ᾱ_0 = 1, …, ᾱ_T.
    """

    steps: int
    table: Float[Tensor, "times columns"]

    def __init__(self, betas: BetaSchedule, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas(steps)).cumprod(0)])
        alpha, sigma = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        q = posterior(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
        # β̃_1 is 0: x_0 is known. Where a logarithm is needed β̃_2 stands for it (Ho et al. 2020, as coded).
        q.variance[0] = q.variance[1] if steps > 1 else q.beta[0]
        backward = torch.stack([q.image, q.noisy, q.variance.log(), q.beta.log()])
        table = torch.cat([torch.stack([alpha, sigma]), nn.functional.pad(backward, (1, 0), value=math.nan)])
        self.register_buffer("table", table.T.float().contiguous(), persistent=False)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 − ᾱ_t)."""
        alpha, sigma = self.table[self.index(t), :2].unbind(-1)
        return alpha, sigma

    def at(self, t: float) -> tuple[float, float]:
        """See :meth:`NoiseSchedule.at`."""
        alpha_bar = float(self.alpha_bar[round(t * self.steps)])
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)

    def index(self, t: Tensor) -> Tensor:
        """1..T of times."""
        return (t * self.steps).round().long()

    def between(self, tau: Tensor) -> Tensor:
        """The time, also between two steps, at which σ / (α + σ) is ``tau``, of the same shape: linear between them."""
        known = self.table[:, 1] / self.table[:, :2].sum(1)
        after = torch.searchsorted(known, tau).clamp(1, self.steps)
        low, high = known[after - 1], known[after]
        return (after - 1 + ((tau - low) / (high - low)).clamp(0, 1)) / self.steps

    def last_step(self, t: Times) -> Posterior:
        """The step back from t to t − 1/T, for each image; of both variances the logarithm."""
        return Posterior(*self.table[self.index(column(t)), 2:].unbind(-1))


class _Between(BetaSchedule):
    """From one β to another; a subclass says along which curve.

    Args:
        first: β_1 at T = 1000.
        last: β_T at T = 1000.
    """

    def __init__(self, first: Beta = 1e-4, last: Beta = 0.02) -> None:
        self.first = first
        self.last = last

    @abstractmethod
    def curve(self, position: Betas) -> Betas:
        """β at T = 1000 for positions from 0, the first step, to 1, the last."""

    def __call__(self, steps: int) -> Betas:
        """See :class:`BetaSchedule`."""
        position = torch.linspace(0, 1, steps, dtype=torch.float64)
        return (self.curve(position) * (1000 / steps)).clamp(max=LARGEST_BETA)


class Linear(_Between):
    """β grows evenly (Ho et al. 2020, section 4)."""

    def curve(self, position: Betas) -> Betas:
        """A straight line."""
        return self.first + (self.last - self.first) * position


class Quadratic(_Between):
    """√β grows evenly: slower at first than :class:`Linear`."""

    def curve(self, position: Betas) -> Betas:
        """The square of a straight line."""
        return (math.sqrt(self.first) + (math.sqrt(self.last) - math.sqrt(self.first)) * position).square()


class Sigmoid(_Between):
    """β follows a logistic curve: slow at both ends.

    Args:
        first: β where the curve begins, at T = 1000.
        last: β where it ends.
        reach: the curve is σ on [-reach, reach].
    """

    def __init__(self, first: Beta = 1e-4, last: Beta = 0.02, reach: PositiveFloat = 6.0) -> None:
        super().__init__(first, last)
        self.reach = reach

    def curve(self, position: Betas) -> Betas:
        """The logistic function between its values at the ends, which it all but reaches (0.25% at 6)."""
        return self.first + (self.last - self.first) * torch.sigmoid(self.reach * (2 * position - 1))


class CosineNoise(BetaSchedule):
    """ᾱ_t is given instead of β: cos²((t/T + s) / (1 + s) · π/2), normalised (Nichol & Dhariwal 2021, eq. 17).

    Args:
        offset: s, which keeps the first β from being too small to be noticed in 256 levels.
    """

    def __init__(self, offset: PositiveFloat = 0.008) -> None:
        self.offset = offset

    def __call__(self, steps: int) -> Betas:
        """β_t = 1 − ᾱ_t / ᾱ_{t−1}."""
        position = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        alpha_bar = torch.cos((position + self.offset) / (1 + self.offset) * (math.pi / 2)).square()
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=LARGEST_BETA)
