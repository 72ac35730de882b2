"""What the network is asked for.

Given x_t = a x_0 + s ε with a = √ᾱ_t and s = √(1 − ᾱ_t), any one of these gives the rest.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from imago.images import Normalized


class Prediction(ABC):
    """A quantity that the network estimates from x_t and t; a and s are tensors that broadcast against images."""

    @abstractmethod
    def target(self, x: Normalized, noise: Normalized, a: Tensor, s: Tensor) -> Normalized:
        """What the network should have said of x_t = a x + s noise."""

    @abstractmethod
    def image(self, output: Normalized, noisy: Normalized, a: Tensor, s: Tensor) -> Normalized:
        """The estimate of x_0 that an output stands for."""


class Epsilon(Prediction):
    """ε itself (Ho et al. 2020, section 3.2): how well x_0 is known from it falls with ᾱ_t."""

    def target(self, x: Normalized, noise: Normalized, a: Tensor, s: Tensor) -> Normalized:
        """ε."""
        return noise

    def image(self, output: Normalized, noisy: Normalized, a: Tensor, s: Tensor) -> Normalized:
        """(x_t − s ε) / a; Ho et al., eq. 15."""
        return (noisy - s * output) / a


class X0(Prediction):
    """x_0 itself."""

    def target(self, x: Normalized, noise: Normalized, a: Tensor, s: Tensor) -> Normalized:
        """x_0."""
        return x

    def image(self, output: Normalized, noisy: Normalized, a: Tensor, s: Tensor) -> Normalized:
        """The output."""
        return output


class V(Prediction):
    """v = a ε − s x_0, how x_t moves as a²+s²=1 turns (Salimans & Ho 2022, section 4): good at both ends."""

    def target(self, x: Normalized, noise: Normalized, a: Tensor, s: Tensor) -> Normalized:
        """a ε − s x_0."""
        return a * noise - s * x

    def image(self, output: Normalized, noisy: Normalized, a: Tensor, s: Tensor) -> Normalized:
        """a x_t − s v."""
        return a * noisy - s * output
