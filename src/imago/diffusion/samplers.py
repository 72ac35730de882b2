"""Ways back from noise to an image. All of them ask the same network; they differ in how often, and in what they add.

A sampler visits some times T = τ_S > … > τ_1 > τ_0 = 0. At each it is told the network's estimate x̂ of x_0 (from which
ε̂ = (x_t − √ᾱ_t x̂) / √(1 − ᾱ_t)), and goes from t to the next s. At s = 0 what is left is x̂ itself.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, PositiveInt

from imago.diffusion.process import Process
from imago.diffusion.variances import Variance
from imago.errors import UserError
from imago.images import Normalized


class Estimate(NamedTuple):
    """What the network makes of x_t: x̂, and its output for a learned variance."""

    image: Normalized
    raw_variance: Normalized | None


class State(NamedTuple):
    """A station on the way: the images x_t, and what x_0 the network expects of them (at t = 0, themselves)."""

    t: int
    noisy: Normalized
    image: Normalized


@dataclass
class Context:
    """What a walk has at hand.

    Attributes:
        process: q.
        draw: gives standard normal numbers of the images' shape.
        variance: of the steps back.
        previous: the time before this one, and what the image was estimated to be there.
    """

    process: Process
    draw: Callable[[], Normalized]
    variance: Variance
    previous: tuple[int, Normalized] | None = None


Denoiser = Callable[[Normalized, int], Estimate]  # (x_t, t) → x̂, …


class Sampler(ABC):
    """A walk from x_T to x_0.

    Args:
        steps: S, how many times the network is asked; ``None`` for all T.
        spacing: ``uniform`` steps of t, or ``quadratic`` ones, which are closer together at the end (Song et al. 2021,
            appendix D.2).

    Attributes:
        uses_variance: whether samples depend on the variance of the steps back.
    """

    uses_variance: ClassVar[bool] = False

    def __init__(self, steps: PositiveInt | None = None, spacing: Literal["uniform", "quadratic"] = "uniform") -> None:
        self.steps = steps
        self.spacing = spacing

    def __str__(self) -> str:
        """The protocol's words: ``DDIM, 50 steps, uniform``."""
        return f"{type(self).__name__}, {self.steps or 'all'} steps, {self.spacing}"

    def times(self, total: int) -> list[int]:
        """τ_S, …, τ_1, 0 for a process of ``total`` steps.

        Raises:
            UserError: more steps than the process has.
        """
        steps = self.steps or total
        if steps > total:
            raise UserError(
                f"model.sampler.steps={steps}: the process has model.steps={total} steps; give at most so many, or null"
            )
        position = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        if self.spacing == "quadratic":
            position = position.square()
        # Rounded, and where several would fall on one time, moved apart.
        times = [0]
        for exact in (position * total).round().long().tolist():
            times.append(max(exact, times[-1] + 1))
        return times[::-1]

    def trajectory(self, denoise: Denoiser, x: Normalized, context: Context) -> Iterator[State]:
        """The states at each time, the first of them at t = T, the last at t = 0.

        Args:
            denoise: the network.
            x: x_T, standard normal (n, channels, height, width).
            context: the process, the noise, the variances.
        """
        for t, s in pairwise(self.times(context.process.steps)):
            estimate = denoise(x, t)
            yield State(t, x, estimate.image)
            x = estimate.image if s == 0 else self.step(x, estimate, t, s, context)
            context.previous = (t, estimate.image)
        yield State(0, x, x)

    @abstractmethod
    def step(self, x: Normalized, estimate: Estimate, t: int, s: int, context: Context) -> Normalized:
        """x_s from x_t, for s ≥ 1."""


class Ancestral(Sampler):
    """x_s ~ p(x_s | x_t) = N(c_0 x̂ + c_t x_t, σ² I) (Ho et al. 2020, algorithm 2): the model that the bound is of.

    With fewer steps than T the chain is that of the same ᾱ at the times visited (Nichol & Dhariwal 2021, section 4).
    """

    uses_variance = True

    def step(self, x: Normalized, estimate: Estimate, t: int, s: int, context: Context) -> Normalized:
        """See :class:`Sampler`."""
        q = context.process.posterior(s, t)
        # Tensors of no dimension on the CPU join any device's without a copy to wait for.
        log_beta, log_tilde = (torch.tensor(math.log(v), dtype=torch.float32) for v in (q.beta, q.variance))
        scale = torch.exp(0.5 * context.variance.log(log_beta, log_tilde, estimate.raw_variance))
        return q.image * estimate.image + q.noisy * x + scale * context.draw()


class DDIM(Sampler):
    """x_s = √ᾱ_s x̂ + √(1 − ᾱ_s − σ²) ε̂ + σ ε (Song et al. 2021, eq. 12): noise is optional.

    Args:
        steps: S.
        spacing: of the times.
        eta: σ in units of the ancestral sampler's √β̃: 1 is DDPM, 0 a function from x_T to the image.
    """

    def __init__(
        self,
        steps: PositiveInt | None = None,
        spacing: Literal["uniform", "quadratic"] = "uniform",
        eta: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ) -> None:
        super().__init__(steps, spacing)
        self.eta = eta

    def __str__(self) -> str:
        """With η."""
        return f"{super().__str__()}, eta {self.eta:g}"

    def step(self, x: Normalized, estimate: Estimate, t: int, s: int, context: Context) -> Normalized:
        """See :class:`Sampler`."""
        before, now = float(context.process.alpha_bar[s]), float(context.process.alpha_bar[t])
        sigma = self.eta * math.sqrt(context.process.posterior(s, t).variance)  # eq. 16
        # One formula for both directions of the estimate: ε̂ is put in where it belongs.
        towards = math.sqrt(max(0.0, 1 - before - sigma**2) / (1 - now))
        x = (math.sqrt(before) - math.sqrt(now) * towards) * estimate.image + towards * x
        return x + sigma * context.draw() if self.eta else x


class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): the same path as DDIM's, in steps of second order.

    In λ = log(√ᾱ / √(1 − ᾱ)) the path solves a linear differential equation whose driving term is x̂; two estimates
    give its slope. DDIM is the first-order rule.
    """

    def step(self, x: Normalized, estimate: Estimate, t: int, s: int, context: Context) -> Normalized:
        """See :class:`Sampler`."""
        process = context.process
        h = process.log_snr(s) - process.log_snr(t)
        image = estimate.image
        if context.previous is not None:
            previous, older = context.previous
            ratio = h / (process.log_snr(t) - process.log_snr(previous))  # 1 / r
            image = image + 0.5 * ratio * (image - older)
        a, sigma = math.sqrt(process.alpha_bar[s]), math.sqrt(1 - process.alpha_bar[s])
        sigma_now = math.sqrt(1 - process.alpha_bar[t])
        return (sigma / sigma_now) * x - a * math.expm1(-h) * image
