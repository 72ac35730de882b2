"""Samplers: steps from noise to an image. All of them ask the same network; they differ in how often and what they add.

A sampler visits some times 1 = τ_S > … > τ_1 > τ_0 = 0. At each it has the network's estimate x̂ of x_0 (from which
ε̂ = (x_t − α_t x̂) / σ_t), and steps from t to the next s. At s = 0 what is left is x̂ itself.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from imago.diffusion.ode import dopri5
from imago.diffusion.schedules import NoiseSchedule, column
from imago.diffusion.variances import Variance
from imago.errors import UserError
from imago.images import Normalized


class Estimate(NamedTuple):
    """What the network makes of x_t: x̂, and its output for a learned variance."""

    image: Normalized
    raw_variance: Normalized | None = None


class State(NamedTuple):
    """A point of a trajectory: the images x_t, and the x_0 that the network expects of them (at t = 0, themselves)."""

    t: float
    noisy: Normalized
    image: Normalized


@dataclass
class Context:
    """What a sampler has at hand.

    Attributes:
        schedule: α and σ.
        predict: the network: (x_t, t) → x̂, at one time for all or at times (n,).
        draw: gives standard normal numbers of the images' shape.
        variance: of the steps back.
        previous: the time before this one, and what the image was estimated to be there.
    """

    schedule: NoiseSchedule
    predict: Callable[[Normalized, float | Tensor], Estimate]
    draw: Callable[[], Normalized]
    variance: Variance
    previous: tuple[float, Normalized] | None = None


class Sampler(ABC):
    """A trajectory from x_1 to x_0.

    Args:
        steps: S; ``None`` for all of a process in discrete time.
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

    def times(self, total: int | None) -> list[float]:
        """1 = τ_S, …, τ_1, 0 for a process of ``total`` steps, at multiples of 1 / total; ``None`` is continuous time.

        Raises:
            UserError: more steps than the process has, or no number of them in continuous time.
        """
        steps = self.steps or total
        if steps is None:
            raise UserError(
                "model.sampler.steps=null: in continuous time there is no number of all steps; give one, such as 50"
            )
        position = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        if self.spacing == "quadratic":
            position = position.square()
        if total is None:
            return [*position.tolist()[::-1], 0.0]
        if steps > total:
            raise UserError(
                f"model.sampler.steps={steps}: the process has model.steps={total} steps; give at most so many, or null"
            )
        # Rounded, and where several would fall on one time, moved apart.
        times = [0]
        for exact in (position * total).round().long().tolist():
            times.append(max(exact, times[-1] + 1))
        return [k / total for k in times[::-1]]

    def nfe(self, total: int | None) -> int:
        """How often the network is asked; arguments and errors as in :meth:`times`."""
        return len(self.times(total)) - 1

    def trajectory(self, x: Normalized, context: Context) -> Iterator[State]:
        """Yield the states at each time, the first of them at t = 1, the last at t = 0, from x = x_1."""
        for t, s in pairwise(self.times(context.schedule.steps)):
            estimate = context.predict(x, t)
            yield State(t, x, estimate.image)
            x = estimate.image if s == 0 else self.step(x, estimate, t, s, context)
            context.previous = (t, estimate.image)
        yield State(0.0, x, x)

    @abstractmethod
    def step(self, x: Normalized, estimate: Estimate, t: float, s: float, context: Context) -> Normalized:
        """x_s from x_t and the estimate there, for 0 < s < t."""


class Ancestral(Sampler):
    """x_s ~ p(x_s | x_t) = N(c_0 x̂ + c_t x_t, σ² I) (Ho et al. 2020, algorithm 2): the model that the bound is of.

    With fewer steps than T the chain is that of the same ᾱ at the times visited (Nichol & Dhariwal 2021, section 4).
    """

    uses_variance = True

    def step(self, x: Normalized, estimate: Estimate, t: float, s: float, context: Context) -> Normalized:
        """See :class:`Sampler`."""
        q = context.schedule.posterior(s, t)
        # Tensors of no dimension on the CPU join any device's without a copy to wait for.
        log_beta, log_tilde = (torch.tensor(math.log(v), dtype=torch.float32) for v in (q.beta, q.variance))
        scale = torch.exp(0.5 * context.variance.log(log_beta, log_tilde, estimate.raw_variance))
        return q.image * estimate.image + q.noisy * x + scale * context.draw()


class DDIM(Sampler):
    """x_s = α_s x̂ + √(σ_s² − σ²) ε̂ + σ ε (Song et al. 2021, eq. 12): noise is optional.

    Args:
        steps: S.
        spacing: of the times.
        eta: σ in units of the ancestral sampler's √β̃: 1 is DDPM, 0 a function from x_1 to the image.
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

    def step(self, x: Normalized, estimate: Estimate, t: float, s: float, context: Context) -> Normalized:
        """See :class:`Sampler`."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = context.schedule.at(s), context.schedule.at(t)
        noise = self.eta * math.sqrt(context.schedule.posterior(s, t).variance)  # eq. 16
        # One formula for both directions of the estimate: ε̂ is put in where it belongs.
        kept = math.sqrt(max(0.0, sigma_s**2 - noise**2)) / sigma_t
        x = (alpha_s - alpha_t * kept) * estimate.image + kept * x
        return x + noise * context.draw() if self.eta else x


class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): the same path as DDIM's, in steps of second order.

    In λ = log(α / σ) the path solves a linear differential equation whose driving term is x̂; two estimates give its
    slope. DDIM is the first-order rule.
    """

    def step(self, x: Normalized, estimate: Estimate, t: float, s: float, context: Context) -> Normalized:
        """See :class:`Sampler`."""
        schedule, image = context.schedule, estimate.image
        h = schedule.log_snr(s) - schedule.log_snr(t)
        if context.previous is not None:
            previous, older = context.previous
            ratio = h / (schedule.log_snr(t) - schedule.log_snr(previous))  # 1 / r; 0 from pure noise on
            image = image + 0.5 * ratio * (image - older)
        alpha, sigma = schedule.at(s)
        return (sigma / schedule.at(t)[1]) * x - alpha * math.expm1(-h) * image


class AnnealedLangevin(Sampler):
    """Langevin's walk at each time, x ← x + r (α x̂ − x) + √(2r) σ ε, and on to the next (Song & Ermon 2019, alg. 1).

    That is x + a s + √(2a) ε with the score s = (α x̂ − x) / σ² and a = r σ². At t = 1 x is drawn, so there it has no
    need to walk; the last step is to x̂ (Jolicoeur-Martineau et al. 2021).

    Args:
        steps: times.
        spacing: of the times.
        walk: T, steps of the walk at each time. Their length r is :func:`length_of_steps`.
    """

    def __init__(
        self,
        steps: PositiveInt | None = None,
        spacing: Literal["uniform", "quadratic"] = "uniform",
        walk: PositiveInt = 1,
    ) -> None:
        super().__init__(steps, spacing)
        self.walk = walk

    def __str__(self) -> str:
        """With T."""
        return f"{super().__str__()}, {self.walk} each"

    def nfe(self, total: int | None) -> int:
        """T at each time; once at t = 1, and once more at the end."""
        times = super().nfe(total)
        return 1 if times == 1 else 2 + (times - 1) * self.walk

    def step(self, x: Normalized, estimate: Estimate, t: float, s: float, context: Context) -> Normalized:
        """Not taken: :meth:`trajectory` walks."""
        raise NotImplementedError

    def trajectory(self, x: Normalized, context: Context) -> Iterator[State]:
        """See :class:`Sampler`; states are those where a walk begins.

        Raises:
            UserError: nothing of the image is left at t = 1, where no score says how to go on.
        """
        times = self.times(context.schedule.steps)[:-1]
        alpha, sigma = context.schedule.at(times[0])
        if not alpha:
            raise UserError(
                "model.sampler: AnnealedLangevin walks from one level of noise to the next, and at t = 1 of these "
                "straight lines there is nothing but noise; choose model/sampler=heun or dopri5"
            )
        image = context.predict(x, times[0]).image
        yield State(times[0], x, image)
        for t in times[1:]:
            before, (alpha, sigma) = (alpha, sigma), context.schedule.at(t)
            x = x * (alpha / before[0])
            r = length_of_steps((before[1] / before[0]) / (sigma / alpha), self.walk)
            for k in range(self.walk):
                image = context.predict(x, t).image
                if k == 0:
                    yield State(t, x, image)
                x = x + r * (alpha * image - x) + math.sqrt(2 * r) * sigma * context.draw()
        if len(times) > 1:
            image = context.predict(x, times[-1]).image
        yield State(0.0, image, image)


def length_of_steps(ratio: float, steps: int) -> float:
    """r of Langevin's walk after which the noise is most nearly what it should be (Song & Ermon 2020, technique 4).

    A walk of T steps x ← (1 − r) x + √(2r) z that begins with a variance of γ² ends with one of
    (1 − r)^(2T) (γ² − v) + v, v = 2 / (2 − r) (proposition 3 there). It should be 1, and is always more.

    Args:
        ratio: γ, by which the noise was too large.
        steps: T.
    """
    r = torch.linspace(1e-4, 1, 10_000, dtype=torch.float64)
    final = 2 / (2 - r)
    return float(r[((1 - r) ** (2 * steps) * (ratio**2 - final) + final).argmin()])


# --- along straight lines ---------------------------------------------------------------------------------------------
#
# In y = x_t / (α + σ) and τ = σ / (α + σ) every schedule is y = (1 − τ) x_0 + τ ε. There the probability flow is
# dy/dτ = ε̂ − x̂ = (y − x̂) / τ (Lipman et al. 2023; Karras et al. 2022, eq. 4, in other scales).


def straight(schedule: NoiseSchedule, t: float) -> tuple[float, float]:
    """α + σ and τ."""
    alpha, sigma = schedule.at(t)
    return alpha + sigma, sigma / (alpha + sigma)


class Euler(Sampler):
    """y_s = y_t + (τ_s − τ_t) dy/dτ: straight steps, first order. On any schedule it is DDIM without noise."""

    def step(self, x: Normalized, estimate: Estimate, t: float, s: float, context: Context) -> Normalized:
        """See :class:`Sampler`."""
        (scale, tau), (next_scale, next_tau) = straight(context.schedule, t), straight(context.schedule, s)
        y = x / scale
        return next_scale * (y + (next_tau - tau) / tau * (y - estimate.image))


class Heun(Sampler):
    """Euler's step, and again with the mean of the slopes at both its ends: second order, for twice the calls.

    Karras et al. 2022, algorithm 1, without noise. The last step is Euler's.
    """

    def nfe(self, total: int | None) -> int:
        """Two a step but for the last."""
        return 2 * super().nfe(total) - 1

    def step(self, x: Normalized, estimate: Estimate, t: float, s: float, context: Context) -> Normalized:
        """See :class:`Sampler`."""
        (scale, tau), (next_scale, next_tau) = straight(context.schedule, t), straight(context.schedule, s)
        y, h = x / scale, next_tau - tau
        slope = (y - estimate.image) / tau
        moved = y + h * slope
        there = (moved - context.predict(next_scale * moved, s).image) / next_tau
        return next_scale * (y + h / 2 * (slope + there))


class Dopri5(Sampler):
    """Steps as long as a tolerance allows, of an image's own (:func:`imago.diffusion.ode.dopri5`): the path itself.

    Continuous time only. The last thousandth of the time, where the slope would be 0 / 0, is one step of Euler's.

    Args:
        rtol: relative tolerance of the path, see there.
        atol: absolute tolerance.

    Attributes:
        asked: calls and images so far.
    """

    END = 1e-3

    def __init__(self, rtol: PositiveFloat = 1e-3, atol: PositiveFloat = 1e-3) -> None:
        super().__init__(1)
        self.rtol, self.atol = rtol, atol
        self.asked = (0, 0)

    def __str__(self) -> str:
        """With the tolerances."""
        return f"Dopri5, rtol {self.rtol:g}, atol {self.atol:g}"

    def times(self, total: int | None) -> list[float]:
        """1 and 0: between them each image has times of its own.

        Raises:
            UserError: a process in discrete time.
        """
        if total is not None:
            raise UserError(
                f"model.sampler: Dopri5 stops anywhere in time, and the process has model.steps={total} steps only; "
                "choose model/sampler=heun or dpm_solver"
            )
        return [1.0, 0.0]

    def nfe(self, total: int | None) -> int:
        """The mean over the images that were drawn so far; of none, those of a single step."""
        calls, images = self.asked
        return round(calls / images) if images else 8

    def step(self, x: Normalized, estimate: Estimate, t: float, s: float, context: Context) -> Normalized:
        """Not taken: :meth:`trajectory` goes on its own."""
        raise NotImplementedError

    def trajectory(self, x: Normalized, context: Context) -> Iterator[State]:
        """See :class:`Sampler`; the estimate at t = 1 and the end."""
        schedule = context.schedule
        yield State(1.0, x, context.predict(x, 1.0).image)

        def slope(y: Normalized, t: Tensor) -> Normalized:
            with torch.enable_grad():
                at = t.detach().clone().requires_grad_()
                alpha, sigma = schedule(at)
                tau = sigma / (alpha + sigma)
                (speed,) = torch.autograd.grad(tau.sum(), at)
            scale, tau = column((alpha + sigma).detach()), column(tau.detach())
            return column(speed) * (y - context.predict(scale * y, t).image) / tau

        y, calls = dopri5(slope, x / straight(schedule, 1.0)[0], 1.0, self.END, self.rtol, self.atol)
        self.asked = self.asked[0] + int(calls.sum()) + len(x), self.asked[1] + len(x)
        image = context.predict(straight(schedule, self.END)[0] * y, self.END).image
        yield State(0.0, image, image)
