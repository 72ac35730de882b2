"""How fast an image is destroyed: the share ᾱ_t of its variance that is left after t of T steps.

All schedules are written for T = 1000, as in the papers, and for some fifty steps or more keep their ᾱ as a function of
t / T nearly the same: β_t grows by 1000 / T. Where that would pass :data:`LARGEST_BETA`, with twenty steps or fewer, it
is cut there.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated

import torch
from jaxtyping import Float64
from pydantic import Field, PositiveFloat
from torch import Tensor

Betas = Float64[Tensor, " steps"]

LARGEST_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: a step that leaves nothing cannot be undone
Beta = Annotated[float, Field(gt=0, lt=1)]


class NoiseSchedule(ABC):
    """A family of sequences β_1..β_T, the variances that the steps add."""

    @abstractmethod
    def __call__(self, steps: int) -> Betas:
        """β_1..β_T in float64, each in (0, 0.999]."""


class _Between(NoiseSchedule):
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
        """See :class:`NoiseSchedule`."""
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


class CosineNoise(NoiseSchedule):
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
