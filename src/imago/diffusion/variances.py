"""The variance of a step back, p(x_s | x_t) = N(μ, σ² I).

It lies between β̃, right if the image is a single point, and β, right if it is standard normal (Ho et al. 2020, section
3.2); with many steps they are nearly the same.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Variance(ABC):
    """log σ² from its two bounds.

    Attributes:
        name: in protocols.
        learned: whether the network has an output of its own for it, of the image's shape.
    """

    name: ClassVar[str]
    learned: ClassVar[bool] = False

    def __str__(self) -> str:
        return self.name

    @abstractmethod
    def log(self, log_beta: Tensor, log_tilde: Tensor, raw: Tensor | None) -> Tensor:
        """log σ².

        Args:
            log_beta: the upper bound.
            log_tilde: the lower one.
            raw: the network's output, if it is learned.
        """


class FixedLarge(Variance):
    """β; samples of fewer steps are better with it, likelihoods worse."""

    name = "fixed_large"

    def log(self, log_beta: Tensor, log_tilde: Tensor, raw: Tensor | None) -> Tensor:
        """log β."""
        return log_beta


class FixedSmall(Variance):
    """β̃."""

    name = "fixed_small"

    def log(self, log_beta: Tensor, log_tilde: Tensor, raw: Tensor | None) -> Tensor:
        """log β̃."""
        return log_tilde


class Learned(Variance):
    """By value between the two: v log β + (1 − v) log β̃ (Nichol & Dhariwal 2021, eq. 15). Needs a loss that sees it."""

    name = "learned"
    learned = True

    def log(self, log_beta: Tensor, log_tilde: Tensor, raw: Tensor | None) -> Tensor:
        """v = (raw + 1) / 2; an output of −1 is v = 0, 1 is v = 1, and nothing keeps it between them."""
        assert raw is not None
        v = (raw + 1) / 2
        return v * log_beta + (1 - v) * log_tilde
