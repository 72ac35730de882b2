"""What the network is asked for.

Given x_t = α x_0 + σ ε, any one of these gives the rest.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from imago.images import Normalized


class Prediction(ABC):
    """A quantity that the network estimates from x_t and t; alpha and sigma broadcast against images."""

    @abstractmethod
    def target(self, x: Normalized, noise: Normalized, alpha: Tensor, sigma: Tensor) -> Normalized:
        """What the network should have said of x_t = α x + σ noise."""

    @abstractmethod
    def image(self, output: Normalized, noisy: Normalized, alpha: Tensor, sigma: Tensor) -> Normalized:
        """The estimate of x_0 that an output stands for."""


class Epsilon(Prediction):
    """ε itself (Ho et al. 2020, section 3.2): how well x_0 is known from it falls with α."""

    def target(self, x: Normalized, noise: Normalized, alpha: Tensor, sigma: Tensor) -> Normalized:
        """ε."""
        return noise

    def image(self, output: Normalized, noisy: Normalized, alpha: Tensor, sigma: Tensor) -> Normalized:
        """(x_t − σ ε) / α; Ho et al., eq. 15."""
        return (noisy - sigma * output) / alpha


class X0(Prediction):
    """x_0 itself."""

    def target(self, x: Normalized, noise: Normalized, alpha: Tensor, sigma: Tensor) -> Normalized:
        """x_0."""
        return x

    def image(self, output: Normalized, noisy: Normalized, alpha: Tensor, sigma: Tensor) -> Normalized:
        """The output."""
        return output


class FlowVelocity(Prediction):
    """ε − x_0, how x_t / (α + σ) moves along the straight line between them (Lipman et al. 2023, eq. 23)."""

    def target(self, x: Normalized, noise: Normalized, alpha: Tensor, sigma: Tensor) -> Normalized:
        """ε − x_0."""
        return noise - x

    def image(self, output: Normalized, noisy: Normalized, alpha: Tensor, sigma: Tensor) -> Normalized:
        """(x_t − σ (ε − x_0)) / (α + σ)."""
        return (noisy - sigma * output) / (alpha + sigma)


class V(Prediction):
    """v = α ε − σ x_0, how x_t moves as α² + σ² = 1 turns (Salimans & Ho 2022, section 4): good at both ends."""

    def target(self, x: Normalized, noise: Normalized, alpha: Tensor, sigma: Tensor) -> Normalized:
        """α ε − σ x_0."""
        return alpha * noise - sigma * x

    def image(self, output: Normalized, noisy: Normalized, alpha: Tensor, sigma: Tensor) -> Normalized:
        """(α x_t − σ v) / (α² + σ²)."""
        return (alpha * noisy - sigma * output) / (alpha**2 + sigma**2)
