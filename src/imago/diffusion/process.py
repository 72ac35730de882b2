"""The forward process q: a fixed Markov chain from an image to noise (Sohl-Dickstein et al. 2015; Ho et al. 2020).

    q(x_t | x_{t−1}) = N(√(1 − β_t) x_{t−1}, β_t I),    t = 1..T                                       (Ho, eq. 2)

Sums of normal variables are normal, so with ᾱ_t = Π_{s≤t} (1 − β_s) every x_t is one step away from the image,

    q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I),                                                           (Ho, eq. 4)

and given both ends every step between them is known. For any s < t, with α = ᾱ_t / ᾱ_s and β = 1 − α,

    q(x_s | x_t, x_0) = N(c_0 x_0 + c_t x_t, β̃ I),                                              (Ho, eq. 6 and 7)
    c_0 = √ᾱ_s β / (1 − ᾱ_t),    c_t = √α (1 − ᾱ_s) / (1 − ᾱ_t),    β̃ = β (1 − ᾱ_s) / (1 − ᾱ_t).

Ho et al. have s = t − 1; a sampler that leaves steps out needs the others. Everything is computed in float64.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from imago.diffusion.schedules import NoiseSchedule
from imago.images import Normalized

Times = Int[Tensor, " #n"]  # 1..T, of each image or one of all
Column = Float[Tensor, "#n 1 1 1"]


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(c_0 x_0 + c_t x_t, β̃ I), and the variance β of the forward step from s to t."""

    image: float
    noisy: float
    variance: float
    beta: float


class Process(nn.Module):
    """q for a schedule of T steps; no parameters, and no weights in checkpoints.

    Args:
        schedule: of the variances.
        steps: T.

    Attributes:
        steps: T.
        alpha_bar: float64 (T + 1,) on the CPU: ᾱ_0 = 1, …, ᾱ_T.
    """

    def __init__(self, schedule: NoiseSchedule, steps: int) -> None:
        super().__init__()
        self.steps = steps
        beta = schedule(steps)
        one = torch.ones(1, dtype=torch.float64)
        self.alpha_bar = torch.cat([one, (1 - beta).cumprod(0)])
        posterior = [self.posterior(t - 1, t) for t in range(1, steps + 1)]
        # β̃_1 is 0: x_0 is known. Where a logarithm is needed β̃_2 stands for it (Ho et al. 2020, as coded).
        tilde = [p.variance for p in posterior]
        tilde[0] = tilde[1] if steps > 1 else posterior[0].beta
        tables = {
            "signal": self.alpha_bar.sqrt(),
            "noise": (1 - self.alpha_bar).sqrt(),
            "from_image": torch.tensor([math.nan, *(p.image for p in posterior)], dtype=torch.float64),
            "from_noisy": torch.tensor([math.nan, *(p.noisy for p in posterior)], dtype=torch.float64),
            "log_beta": torch.tensor([math.nan, *(math.log(p.beta) for p in posterior)], dtype=torch.float64),
            "log_tilde": torch.tensor([math.nan, *map(math.log, tilde)], dtype=torch.float64),
        }
        for name, values in tables.items():
            self.register_buffer(name, values.float(), persistent=False)

    def at(self, table: str, t: Times) -> Column:
        """Entries of a table for each image: ``signal`` √ᾱ_t, ``noise`` √(1 − ᾱ_t), those of the posterior, …"""
        return self.get_buffer(table)[t].view(-1, 1, 1, 1)

    def diffuse(self, x: Normalized, t: Times, noise: Normalized) -> Normalized:
        """x_t ~ q(x_t | x_0), equation 4, from standard normal ``noise``."""
        return self.at("signal", t) * x + self.at("noise", t) * noise

    def step(self, x: Normalized, t: int, noise: Normalized) -> Normalized:
        """x_t ~ q(x_t | x_{t−1}), equation 2."""
        alpha = float(self.alpha_bar[t] / self.alpha_bar[t - 1])
        return math.sqrt(alpha) * x + math.sqrt(1 - alpha) * noise

    def posterior(self, s: int, t: int) -> Posterior:
        """q(x_s | x_t, x_0) for 0 ≤ s < t ≤ T, equations 6 and 7."""
        before, now = float(self.alpha_bar[s]), float(self.alpha_bar[t])
        alpha = now / before
        return Posterior(
            image=math.sqrt(before) * (1 - alpha) / (1 - now),
            noisy=math.sqrt(alpha) * (1 - before) / (1 - now),
            variance=(1 - alpha) * (1 - before) / (1 - now),
            beta=1 - alpha,
        )

    def log_snr(self, t: int) -> float:
        """λ_t = ½ log(ᾱ_t / (1 − ᾱ_t)), half the logarithm of signal to noise; infinite at t = 0."""
        alpha_bar = float(self.alpha_bar[t])
        return math.inf if alpha_bar == 1 else 0.5 * math.log(alpha_bar / (1 - alpha_bar))
