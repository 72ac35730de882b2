"""Distributions of one pixel value given the rest: what the last layer of an explicit model parametrises.

A *value* is an integer 0..levels-1 of one channel of one pixel. A distribution object says how many numbers a network
must put out for each value, and turns them into log-probabilities and samples. All but the :class:`Gaussian`, which has
a bound, are normalised over the levels: log-likelihoods are of the integer image whichever is chosen. Coordinates of
points have no levels, and one distribution: :class:`Normal`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float, Integer
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from imago.capacity import Width

Parameters = Float[Tensor, "*shape parameters"]
LevelLogits = Float[Tensor, "*shape levels"]
Values = Integer[Tensor, "*shape"]

LARGEST_LOG_SCALE = 30.0  # of a logistic distribution: beyond it the probability of an inner level rounds to zero
COLDEST = 1e-30  # a temperature of less is zero: the quotient of two small numbers has to stay a number


def sampling_dtype(device: torch.device) -> torch.dtype:
    """The precision of what samples are drawn with and sums are kept in: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


class Distribution(ABC):
    """A distribution over the integers 0..levels-1.

    Attributes:
        levels: number of values.
        parameters: how many real numbers describe it.
        exact: whether :meth:`log_prob` is the log-probability; if not, a lower bound of it.
    """

    levels: int
    parameters: int
    exact: ClassVar[bool] = True

    @abstractmethod
    def logits(self, parameters: Parameters) -> LevelLogits:
        """Log-probability of every level, up to a constant that is the same for all levels."""

    @abstractmethod
    def log_prob(self, parameters: Parameters, values: Values) -> Float[Tensor, "*shape"]:
        """Log-probability of the given values, in nats."""

    def probabilities(self, parameters: Parameters) -> LevelLogits:
        """Probability of every level, up to rounding; of the precision of :func:`sampling_dtype`."""
        return self.logits(parameters).to(sampling_dtype(parameters.device)).softmax(-1)

    def mean(self, parameters: Parameters) -> Float[Tensor, "*shape"]:
        """The expected value, in 0..levels-1."""
        values = torch.arange(self.levels, device=parameters.device, dtype=torch.float32)
        return self.logits(parameters).float().softmax(-1) @ values

    def sample(
        self, parameters: Parameters, uniform: Float[Tensor, "*shape"], temperature: float = 1.0
    ) -> Integer[Tensor, "*shape"]:
        """The value at which the cumulative distribution passes ``uniform``; int64.

        ``temperature`` divides the log-probabilities: below 1 likely values become likelier. Sums are of the precision
        of ``uniform``: in float64 the rounding of two ways to the same parameters seldom crosses a boundary.
        """
        logits = self.logits(parameters).to(uniform.dtype)
        if temperature != 1:  # the largest becomes 0, so that it stays finite however cold it is
            logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, COLDEST)
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

    def mean(self, parameters: Parameters) -> Float[Tensor, "*shape"]:
        """The probability of 1."""
        return torch.sigmoid(parameters.squeeze(-1).float())

    def sample(
        self, parameters: Parameters, uniform: Float[Tensor, "*shape"], temperature: float = 1.0
    ) -> Integer[Tensor, "*shape"]:
        """1 where ``uniform`` exceeds the probability of 0."""
        return (uniform > torch.sigmoid(parameters.squeeze(-1) * (-1 / max(temperature, COLDEST)))).long()


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
        largest_scale: that a component's scale approaches and never passes, in signal units (an image spans [-1, 1]).
            Black or white at random, whatever the context, is a single logistic of unlimited scale: a trap for models
            whose context is still to be learned. ``None`` for no limit; a mixture needs none.
    """

    def __init__(self, levels: int, components: Width = 5, largest_scale: PositiveFloat | None = None) -> None:
        self.levels = levels
        self.components = components
        self.largest = None if largest_scale is None else math.log(largest_scale)
        self.parameters = 3 * components

    def logits(self, parameters: Parameters) -> LevelLogits:
        """Normalised log-probabilities of all levels."""
        values = torch.arange(self.levels, device=parameters.device)
        wide = parameters.unsqueeze(-2).expand(*parameters.shape[:-1], self.levels, self.parameters)
        return self.log_prob(wide, values.expand(wide.shape[:-1]))

    def probabilities(self, parameters: Parameters) -> LevelLogits:
        """Differences of the cumulative distribution at the levels' edges: what is far below rounding is 0."""
        weight, mean, inverse = (x.to(sampling_dtype(x.device)) for x in self.components_of(parameters))
        edges = torch.arange(1, self.levels, device=mean.device).to(mean.dtype).mul(2).sub(1) / (self.levels - 1) - 1
        below = torch.sigmoid((edges - mean[..., None]) * inverse[..., None])
        cumulative = (weight.softmax(-1)[..., None] * below).sum(-2)
        return F.pad(F.pad(cumulative, (1, 0)), (0, 1), value=1.0).diff(dim=-1).clamp(min=0)

    def components_of(self, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (up to a constant), means and inverse scales of the components, (*shape, components) each."""
        weight, mean, log_scale = parameters.float().chunk(3, -1)
        if self.largest is not None:
            log_scale = self.largest - F.softplus(self.largest - log_scale)
        return weight, mean, torch.exp(-log_scale.clamp(-7.0, LARGEST_LOG_SCALE))

    def mean(self, parameters: Parameters) -> Float[Tensor, "*shape"]:
        """The expected value, Σ_v P(value > v): edge by edge, so that no tensor has all levels of all values."""
        weight, mean, inverse = self.components_of(parameters)
        total = torch.zeros_like(mean)
        for level in range(self.levels - 1):
            edge = (2 * level + 1) / (self.levels - 1) - 1
            total += torch.sigmoid((mean - edge) * inverse)
        return (weight.softmax(-1) * total).sum(-1)

    def sample(
        self, parameters: Parameters, uniform: Float[Tensor, "*shape"], temperature: float = 1.0
    ) -> Integer[Tensor, "*shape"]:
        """As for every distribution, without a tensor that has all levels of all values (but at a temperature).

        The cumulative distribution is known at the levels' edges: whether it has passed ``uniform`` in the middle
        halves the levels in question. Of a single logistic the quantile is known: μ + s log(u / (1 − u)), rounded.
        """
        if temperature != 1:
            return super().sample(parameters, uniform, temperature)
        weight, mean, inverse = (x.to(uniform.dtype) for x in self.components_of(parameters))
        if self.components == 1:
            quantile = (mean + 1).squeeze(-1) + torch.logit(uniform) / inverse.squeeze(-1)
            return (quantile * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1).long()
        weight, slope, offset = weight.softmax(-1), inverse * (2 / (self.levels - 1)), (mean + 1) * inverse
        level = torch.zeros_like(uniform)
        step = 2 ** (self.levels - 1).bit_length()
        while step > 1:
            step //= 2
            higher = level + step
            below = (weight * torch.sigmoid((higher - 0.5).unsqueeze(-1) * slope - offset)).sum(-1)
            level = torch.where((below < uniform) & (higher < self.levels), higher, level)
        return level.long()

    def log_prob(self, parameters: Parameters, values: Values) -> Float[Tensor, "*shape"]:
        """log Σ_k w_k [F_k(upper edge) - F_k(lower edge)], without differences of nearly equal numbers.

        With u = (upper - μ)/s and l = (lower - μ)/s, σ(u) - σ(l) = σ(u) σ(-l) (1 - exp(l - u)).
        """
        weight, mean, inverse = self.components_of(parameters)
        half = 1 / (self.levels - 1)  # half the distance of two levels' signals
        signal = (values.to(mean.dtype) * (2 * half) - 1).unsqueeze(-1)
        upper, lower = (signal + half - mean) * inverse, (signal - half - mean) * inverse
        first, last = (values == 0).unsqueeze(-1), (values == self.levels - 1).unsqueeze(-1)
        inner = torch.log(-torch.expm1(-2 * half * inverse)).expand_as(upper)
        inside = (
            torch.where(last, 0.0, F.logsigmoid(upper))
            + torch.where(first, 0.0, F.logsigmoid(-lower))
            + torch.where(first | last, 0.0, inner)
        )
        return torch.logsumexp(F.log_softmax(weight, -1) + inside, -1)


class Gaussian(Distribution):
    """A normal distribution with learned mean and variance; its density is of values dequantised with uniform noise.

    A density has no probability of an integer. With u uniform over the width of a level, log P(v) = log ∫ p(v + u) du
    ≥ E_u[log p(v + u)] + log(width) (Theis et al. 2016, section 3.1), and for a normal density the expectation is
    known: E_u[(v + u − μ)²] = (v − μ)² + width²/12. :meth:`log_prob` is that bound, without noise. Samples are normal
    numbers, rounded to the nearest level and clipped.

    Args:
        levels: number of values.
        smallest_scale: that the standard deviation approaches and never falls below, in signal units (an image spans
            [-1, 1]): a network that may call itself certain gains without end.
    """

    parameters = 2
    exact = False

    def __init__(self, levels: int, smallest_scale: PositiveFloat = 1e-3) -> None:
        self.levels = levels
        self.smallest = math.log(smallest_scale)

    def _normal(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        mean, log_scale = parameters.float().unbind(-1)
        return mean, self.smallest + F.softplus(log_scale - self.smallest)

    def logits(self, parameters: Parameters) -> LevelLogits:
        """Logarithms of the normal distribution's integrals over the levels, the outermost reaching to infinity."""
        dtype = sampling_dtype(parameters.device)
        mean, log_scale = (x.to(dtype)[..., None] for x in self._normal(parameters))
        edges = torch.arange(1, self.levels, device=mean.device).to(dtype).mul(2).sub(1) / (self.levels - 1) - 1
        z = (edges - mean) * torch.exp(-log_scale)
        infinity = torch.full_like(z[..., :1], math.inf)
        left, right = torch.cat([-infinity, z], -1), torch.cat([z, infinity], -1)
        # Φ(right) - Φ(left) = Φ(-left) - Φ(-right): with both in the lower tail nothing is rounded to one.
        mirrored = left + right > 0
        left, right = torch.where(mirrored, -right, left), torch.where(mirrored, -left, right)
        whole, rest = torch.special.log_ndtr(right), torch.special.log_ndtr(left)
        return (whole + torch.log(-torch.expm1(rest - whole))).float()

    def log_prob(self, parameters: Parameters, values: Values) -> Float[Tensor, "*shape"]:
        """E_u[log N(v + u; μ, σ²)] + log(width)."""
        mean, log_scale = self._normal(parameters)
        width = 2 / (self.levels - 1)
        distance = (values.to(mean.dtype) * width - 1 - mean).square() + width**2 / 12
        return math.log(width) - 0.5 * math.log(2 * math.pi) - log_scale - 0.5 * distance * torch.exp(-2 * log_scale)

    def mean(self, parameters: Parameters) -> Float[Tensor, "*shape"]:
        """μ as a level, clipped to what an image can hold."""
        mean, _ = self._normal(parameters)
        return ((mean + 1) * ((self.levels - 1) / 2)).clamp(0, self.levels - 1)

    def sample(
        self, parameters: Parameters, uniform: Float[Tensor, "*shape"], temperature: float = 1.0
    ) -> Integer[Tensor, "*shape"]:
        """The nearest level to μ + σ √temperature Φ⁻¹(uniform)."""
        mean, log_scale = self._normal(parameters)
        z = mean + torch.exp(log_scale) * math.sqrt(temperature) * torch.special.ndtri(uniform)
        return ((z + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1).long()


class Normal(Distribution):
    """A normal density with learned mean and variance: of a coordinate of points in R^d, where log p is of a density.

    Its log-probabilities may be positive, and grow without end around a point that is a certain one; so the standard
    deviation has a smallest value, as that of :class:`Gaussian`.
    """

    levels = 0
    parameters = 2
    smallest = math.log(1e-3)

    def _normal(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        mean, log_scale = parameters.float().unbind(-1)
        return mean, self.smallest + F.softplus(log_scale - self.smallest)

    def logits(self, parameters: Parameters) -> LevelLogits:
        """There are no levels."""
        raise NotImplementedError("a density has no levels")

    def log_prob(self, parameters: Parameters, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """log N(value; μ, σ²)."""
        return log_normal(*self._normal(parameters), values)

    def mean(self, parameters: Parameters) -> Float[Tensor, "*shape"]:
        """μ."""
        return self._normal(parameters)[0]

    def sample(
        self, parameters: Parameters, uniform: Float[Tensor, "*shape"], temperature: float = 1.0
    ) -> Float[Tensor, "*shape"]:
        """μ + σ √temperature Φ⁻¹(uniform)."""
        mean, log_scale = self._normal(parameters)
        return (mean + torch.exp(log_scale) * math.sqrt(temperature) * torch.special.ndtri(uniform)).float()


DistributionFactory = Callable[..., Distribution]


def distribution_of(factory: DistributionFactory, levels: int) -> Distribution:
    """The chosen distribution for so many levels; two are a :class:`Bernoulli`, none a :class:`Normal`, in any case."""
    return Normal() if not levels else Bernoulli() if levels == 2 else factory(levels=levels)


def log_normal(
    mean: Float[Tensor, "*shape"], log_scale: Float[Tensor, "*shape"], values: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """log N(values; mean, scale²), in nats."""
    return -0.5 * ((values - mean) * torch.exp(-log_scale)).square() - log_scale - 0.5 * math.log(2 * math.pi)


def discretised_normal(
    mean: Float[Tensor, "*shape"], log_scale: Float[Tensor, "*shape"], values: Values, levels: int
) -> Float[Tensor, "*shape"]:
    """log of a normal density's integral over the level of each value (Ho et al. 2020, eq. 13), in nats.

    The outermost levels reach to infinity, so the probabilities of all levels sum to one.

    Args:
        mean: in signal units: an image spans [-1, 1].
        log_scale: logarithm of the standard deviation, in the same units.
        values: 0..levels-1.
        levels: number of values.
    """
    half = 1 / (levels - 1)
    signal = values.to(mean.dtype) * (2 * half) - 1
    inverse = torch.exp(-log_scale)
    # Finite stand-ins for infinity: there the gradients are zero, and not the product of zero and infinity.
    left = torch.where(values == 0, -1e4, (signal - half - mean) * inverse)
    right = torch.where(values == levels - 1, 1e4, (signal + half - mean) * inverse)
    # Φ(right) - Φ(left) = Φ(-left) - Φ(-right): with both in the lower tail nothing is rounded to one.
    mirrored = left + right > 0
    left, right = torch.where(mirrored, -right, left), torch.where(mirrored, -left, right)
    whole, rest = torch.special.log_ndtr(right), torch.special.log_ndtr(left)
    return whole + torch.log(-torch.expm1((rest - whole).clamp(max=-1e-7)))
