"""Distributions of one pixel value given the rest: what the last layer of an explicit model parametrises.

A *value* is an integer 0..levels-1 of one channel of one pixel. A distribution object says how many numbers a network
must put out for each value, and turns them into log-probabilities and samples. All of them are normalised over the
levels, so log-likelihoods are of the integer image whichever is chosen.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float, Integer
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

Parameters = Float[Tensor, "*shape parameters"]
LevelLogits = Float[Tensor, "*shape levels"]
Values = Integer[Tensor, "*shape"]


class Distribution(ABC):
    """A distribution over the integers 0..levels-1.

    Attributes:
        levels: number of values.
        parameters: how many real numbers describe it.
    """

    levels: int
    parameters: int

    @abstractmethod
    def logits(self, parameters: Parameters) -> LevelLogits:
        """Log-probability of every level, up to a constant that is the same for all levels."""

    @abstractmethod
    def log_prob(self, parameters: Parameters, values: Values) -> Float[Tensor, "*shape"]:
        """Log-probability of the given values, in nats."""

    def sample(
        self, parameters: Parameters, uniform: Float[Tensor, "*shape"], temperature: float = 1.0
    ) -> Integer[Tensor, "*shape"]:
        """The value at which the cumulative distribution passes ``uniform``; int64.

        ``temperature`` divides the log-probabilities: below 1 likely values become likelier. Sums are of the precision
        of ``uniform``: in float64 the rounding of two ways to the same parameters seldom crosses a boundary.
        """
        logits = self.logits(parameters).to(uniform.dtype)
        if temperature != 1:
            logits = logits / temperature
        cumulative = logits.softmax(-1).cumsum(-1)
        return (cumulative[..., :-1] < uniform[..., None]).sum(-1)


class Bernoulli(Distribution):
    """Two levels: the logistic function of one logit is the probability of 1."""

    levels = 2
    parameters = 1

    def logits(self, parameters: Parameters) -> LevelLogits:
        """0 for level 0, the logit for level 1."""
        return torch.cat([torch.zeros_like(parameters), parameters], -1)

    def log_prob(self, parameters: Parameters, values: Values) -> Float[Tensor, "*shape"]:
        """log σ(a) for 1 and log σ(-a) for 0, with the logit a."""
        logit = parameters.squeeze(-1).float()
        return -F.binary_cross_entropy_with_logits(logit, values.to(logit.dtype), reduction="none")

    def sample(
        self, parameters: Parameters, uniform: Float[Tensor, "*shape"], temperature: float = 1.0
    ) -> Integer[Tensor, "*shape"]:
        """1 where ``uniform`` exceeds the probability of 0."""
        return (uniform > torch.sigmoid(parameters.squeeze(-1) * (-1 / temperature))).long()


class Categorical(Distribution):
    """A softmax over the levels (van den Oord et al. 2016, section 3.4): no shape is assumed.

    Args:
        levels: number of values.
    """

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.parameters = levels

    def logits(self, parameters: Parameters) -> LevelLogits:
        """The parameters themselves."""
        return parameters

    def log_prob(self, parameters: Parameters, values: Values) -> Float[Tensor, "*shape"]:
        """Log-softmax at the value."""
        flat = parameters.reshape(-1, self.levels).float()
        return -F.cross_entropy(flat, values.reshape(-1).long(), reduction="none").view(values.shape)


class LogisticMixture(Distribution):
    """A mixture of logistic distributions, integrated over each level (Salimans et al. 2017, section 2.1).

    The line is cut into ``levels`` intervals around the levels' signals in [-1, 1]; the outermost reach to infinity, so
    the probabilities sum to one. Each component has a weight, a mean and the logarithm of a scale.

    Args:
        levels: number of values.
        components: logistic distributions in the mixture.
    """

    def __init__(self, levels: int, components: PositiveInt = 5) -> None:
        self.levels = levels
        self.components = components
        self.parameters = 3 * components

    def logits(self, parameters: Parameters) -> LevelLogits:
        """Normalised log-probabilities of all levels."""
        values = torch.arange(self.levels, device=parameters.device)
        wide = parameters.unsqueeze(-2).expand(*parameters.shape[:-1], self.levels, self.parameters)
        return self.log_prob(wide, values.expand(wide.shape[:-1]))

    def log_prob(self, parameters: Parameters, values: Values) -> Float[Tensor, "*shape"]:
        """log Σ_k w_k [F_k(upper edge) - F_k(lower edge)], without differences of nearly equal numbers.

        With u = (upper - μ)/s and l = (lower - μ)/s, σ(u) - σ(l) = σ(u) σ(-l) (1 - exp(l - u)).
        """
        weight, mean, log_scale = parameters.float().chunk(3, -1)
        half = 1 / (self.levels - 1)  # half the distance of two levels' signals
        signal = (values.to(mean.dtype) * (2 * half) - 1).unsqueeze(-1)
        inverse = torch.exp(-log_scale.clamp(min=-7.0))
        upper, lower = (signal + half - mean) * inverse, (signal - half - mean) * inverse
        first, last = (values == 0).unsqueeze(-1), (values == self.levels - 1).unsqueeze(-1)
        inner = torch.log(-torch.expm1(-2 * half * inverse)).expand_as(upper)
        inside = (
            torch.where(last, 0.0, F.logsigmoid(upper))
            + torch.where(first, 0.0, F.logsigmoid(-lower))
            + torch.where(first | last, 0.0, inner)
        )
        return torch.logsumexp(F.log_softmax(weight, -1) + inside, -1)


DistributionFactory = Callable[..., Distribution]


def distribution_of(factory: DistributionFactory, levels: int) -> Distribution:
    """The chosen distribution for so many levels; two levels are a :class:`Bernoulli` whatever was chosen."""
    return Bernoulli() if levels == 2 else factory(levels=levels)
