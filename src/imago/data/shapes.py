"""Distributions of points in the plane and on the line whose density is known: a model's can be held against it.

Every one is a mixture of equally likely modes, p(x) = 1/K Σ_k p(x | k): blobs, squares, rings, arms. That gives
classes to conditional models and says which modes a generator has missed. Lengths are such that a coordinate has about
unit variance and all but a millionth of the planar shapes lies in the :data:`RANGE`.

Most of them are known from papers on flows (Grathwohl et al. 2019, "FFJORD"; Johnson et al. 2016 for the pinwheel);
sizes and the pinwheel's twist are ours, so that the density is a formula, or an integral along a curve.
"""

import math
from abc import ABC, abstractmethod
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

RANGE = 3.0  # of each coordinate in pictures, bins and quantised points: [-RANGE, RANGE]
NODES = 200  # of the quadrature along a curve: nearer to each other than the noise is wide, which is enough
INSIDE = (1e-6, 1 - 1e-6)  # of an interval where points are drawn: in float32 they are still inside
_AT_ONCE = 2**16  # points whose integrals are taken together
Points = Float64[Tensor, "n d"]
Numbers = Float64[Tensor, " n"]
Modes = Float64[Tensor, "n modes"]


class Shape(ABC):
    """A distribution of points in R^d.

    Attributes:
        dimensions: d.
        modes: their number K; all are equally likely.
    """

    dimensions: ClassVar[int] = 2
    modes: ClassVar[int]

    @abstractmethod
    def draw(self, modes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        """A point of each of the given modes, int (n,): float64 (n, d)."""

    @abstractmethod
    def log_modes(self, x: Points) -> Modes:
        """log p(x | k) of every point and mode, in nats; −inf where there is nothing."""

    def log_density(self, x: Points) -> Numbers:
        """log p(x) in nats."""
        return self.log_modes(x).logsumexp(1) - math.log(self.modes)

    def boxes(self, edges: Float64[Tensor, " e"]) -> Float64[Tensor, "modes *boxes"]:
        """The probability of each mode's points to lie in the boxes between the edges, the same in each coordinate.

        Args:
            edges: rising, (e,).

        Returns:
            (modes, e − 1) or (modes, e − 1, e − 1), by Gauss-Legendre quadrature in each box.
        """
        count = len(edges) - 1
        t, weight = legendre(max(2, 192 // count))
        width = edges.diff()
        nodes = (edges[:-1, None] + width[:, None] * (t + 1) / 2).flatten()
        weights = (width[:, None] / 2 * weight).flatten()
        x = torch.cartesian_prod(*[nodes] * self.dimensions).view(-1, self.dimensions)
        density = torch.cat([self.log_modes(part).exp() for part in x.split(_AT_ONCE)]).T
        for _ in range(self.dimensions):  # the last coordinate first
            density = (density.reshape(-1, count, len(t)) * weights.view(count, len(t))).sum(-1)
            density = density.view(self.modes, -1, count).movedim(2, 1) if self.dimensions == 2 else density
        return density.reshape(self.modes, *[count] * self.dimensions)


@cache
def legendre(count: int) -> tuple[Numbers, Numbers]:
    """Nodes in [-1, 1] and weights of Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def log_normal(distance: Tensor, scale: float) -> Tensor:
    """log N(distance; 0, scale²)."""
    return -0.5 * (distance / scale).square() - math.log(scale * math.sqrt(2 * math.pi))


def turned(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Points (n, 2) turned about the origin by angles (n,)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], 1)


class EightGaussians(Shape):
    """Normal distributions with σ = 0.15 around eight points on a circle of radius 1.4."""

    modes = 8
    radius, scale = 1.4, 0.15

    def centres(self) -> np.ndarray:
        """(8, 2)."""
        angle = 2 * np.pi * np.arange(8) / 8
        return self.radius * np.stack([np.cos(angle), np.sin(angle)], 1)

    def draw(self, modes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        """See :meth:`Shape.draw`."""
        return self.centres()[modes] + self.scale * random.randn(len(modes), 2)

    def log_modes(self, x: Points) -> Modes:
        """The normal densities."""
        return log_normal(x[:, None] - torch.from_numpy(self.centres()), self.scale).sum(2)


class Checkerboard(Shape):
    """Uniform on eight of sixteen squares with sides of 0.75."""

    modes = 8
    side = 0.75

    def corners(self) -> np.ndarray:
        """The lower left ones, (8, 2)."""
        row, column = np.divmod(np.arange(8), 2)
        return self.side * (np.stack([2 * column + row % 2, row], 1) - 2)

    def draw(self, modes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        """See :meth:`Shape.draw`."""
        return self.corners()[modes] + self.side * random.uniform(*INSIDE, size=(len(modes), 2))

    def log_modes(self, x: Points) -> Modes:
        """−2 log side inside, −inf outside."""
        offset = (x[:, None] - torch.from_numpy(self.corners())) / self.side
        inside = ((offset >= 0) & (offset < 1)).all(2)
        return x.new_full(inside.shape, -2 * math.log(self.side)).masked_fill(~inside, -math.inf)

    def boxes(self, edges: Float64[Tensor, " e"]) -> Float64[Tensor, "modes *boxes"]:
        """The shares of the squares, which no quadrature would find."""
        reached = ((edges[None, None] - torch.from_numpy(self.corners())[:, :, None]) / self.side).clamp(0, 1)
        share = reached.diff(dim=2)
        return share[:, 0, :, None] * share[:, 1, None, :]


class Rings(Shape):
    """Three circles of radius 0.6, 1.2 and 1.8 in normal noise with σ = 0.08."""

    modes = 3
    scale = 0.08

    def radii(self) -> np.ndarray:
        """(3,)."""
        return np.array([0.6, 1.2, 1.8])

    def draw(self, modes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        """See :meth:`Shape.draw`."""
        angle = random.uniform(0, 2 * np.pi, len(modes))
        circle = self.radii()[modes, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        return circle + self.scale * random.randn(len(modes), 2)

    def log_modes(self, x: Points) -> Modes:
        """exp(−(ρ² + r²) / 2σ²) I_0(ρ r / σ²) / 2πσ² at the distance ρ from the origin (Rice 1945)."""
        distance, radius = x.norm(dim=1, keepdim=True), torch.from_numpy(self.radii())
        bessel = torch.special.i0e(distance * radius / self.scale**2)  # without its growth, which the square has
        return -0.5 * ((distance - radius) / self.scale).square() + bessel.log() - math.log(2 * math.pi * self.scale**2)


class Curves(Shape):
    """Curves in normal noise: p(x | k) = ∫ N(x; c_k(t), σ²) w(t) dt, by quadrature.

    Attributes:
        scale: σ.
        length: of t: from 0 to this.
    """

    scale: ClassVar[float]
    length: ClassVar[float]

    @abstractmethod
    def at(self, modes: np.ndarray, t: np.ndarray) -> np.ndarray:
        """c_k(t), (n, 2), of modes (n,) and times (n,)."""

    def times(self, uniform: np.ndarray) -> np.ndarray:
        """The t below which a share of the points lies."""
        return self.length * uniform

    def weight(self, t: np.ndarray) -> np.ndarray:
        """w(t), of which the integral is 1."""
        return np.full_like(t, 1 / self.length)

    def draw(self, modes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        """See :meth:`Shape.draw`."""
        t = self.times(random.uniform(size=len(modes)))
        return self.at(modes, t) + self.scale * random.randn(len(modes), 2)

    def log_modes(self, x: Points) -> Modes:
        """The logarithm of the integral."""
        nodes, weights = (part.numpy() for part in legendre(NODES))
        t = self.length * (nodes + 1) / 2
        log_weight, variance = torch.from_numpy(np.log(weights * self.length / 2 * self.weight(t))), self.scale**2
        found = []
        for k in range(self.modes):
            curve = torch.from_numpy(self.at(np.full(NODES, k), t))
            terms = torch.addmm(log_weight - curve.square().sum(1) / 2 / variance, x, curve.T, alpha=1 / variance)
            largest = terms.amax(1, keepdim=True)  # as logsumexp, in a third of its time
            found.append(terms.sub_(largest).exp_().sum(1).log_() + largest[:, 0])
        return torch.stack(found, 1) - x.square().sum(1, keepdim=True) / 2 / variance - math.log(2 * math.pi * variance)


class TwoMoons(Curves):
    """Two half circles of radius 1.4 that reach into each other, in normal noise with σ = 0.12."""

    modes = 2
    scale = 0.12
    length = math.pi

    def at(self, modes: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The upper one, and the lower one, half a radius to the right."""
        side = 1.0 - 2.0 * modes
        return 1.4 * np.stack([side * np.cos(t) + modes - 0.5, side * np.sin(t) + 0.5 * modes - 0.25], 1)


class Spiral(Curves):
    """Two arms that wind one and a half times around the origin, in normal noise with σ = 0.08."""

    modes = 2
    scale = 0.08
    length = 3 * math.pi

    def at(self, modes: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The radius grows with the angle, up to 2."""
        side = (1.0 - 2.0 * modes) * 2 / self.length
        return np.stack([side * t * np.cos(t), side * t * np.sin(t)], 1)

    def times(self, uniform: np.ndarray) -> np.ndarray:
        """About evenly along the arm."""
        return self.length * np.sqrt(uniform)

    def weight(self, t: np.ndarray) -> np.ndarray:
        """In proportion to the radius."""
        return 2 * t / self.length**2


class Pinwheel(Shape):
    """Five normal distributions, long in the direction of the radius, turned by an angle that grows with the radius.

    Turning each circle about the origin moves no area, so the density is that of the points turned back.
    """

    modes = 5
    distance, along, across, twist = 1.3, 0.35, 0.12, 1.0

    def draw(self, modes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        """See :meth:`Shape.draw`."""
        x = random.randn(len(modes), 2) * [self.along, self.across] + [self.distance, 0]
        return turned(x, 2 * np.pi * modes / 5 + self.twist * np.linalg.norm(x, axis=1))

    def log_modes(self, x: Points) -> Modes:
        """The normal density of the point turned back."""
        back = x.norm(dim=1, keepdim=True) * self.twist + 2 * math.pi * torch.arange(5, dtype=x.dtype) / 5
        cos, sin = back.cos(), back.sin()
        along = cos * x[:, :1] + sin * x[:, 1:]
        across = cos * x[:, 1:] - sin * x[:, :1]
        return log_normal(along - self.distance, self.along) + log_normal(across, self.across)


class OnLine(Shape):
    """A distribution of numbers whose cumulative distribution is a formula."""

    dimensions = 1

    @abstractmethod
    def cumulative(self, x: Numbers) -> Modes:
        """P(X ≤ x | k) of finite and infinite x."""

    def boxes(self, edges: Float64[Tensor, " e"]) -> Float64[Tensor, "modes *boxes"]:
        """Differences of the cumulative distribution."""
        return self.cumulative(edges).T.diff(dim=1)


class Mixture(OnLine):
    """Three normal distributions: N(−1.5, 0.3²), N(0, 0.1²) and N(1.2, 0.5²)."""

    modes = 3

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Means and scales, (3,) each."""
        return np.array([-1.5, 0.0, 1.2]), np.array([0.3, 0.1, 0.5])

    def draw(self, modes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        """See :meth:`Shape.draw`."""
        mean, scale = self.parts()
        return (mean[modes] + scale[modes] * random.randn(len(modes)))[:, None]

    def log_modes(self, x: Points) -> Modes:
        """The normal densities."""
        mean, scale = map(torch.from_numpy, self.parts())
        return -0.5 * ((x - mean) / scale).square() - (scale * math.sqrt(2 * math.pi)).log()

    def cumulative(self, x: Numbers) -> Modes:
        """The normal ones."""
        mean, scale = map(torch.from_numpy, self.parts())
        return torch.special.ndtr((x[:, None] - mean) / scale)


class Gap(OnLine):
    """Uniform on [−1.8, −0.6] and on [0.6, 1.8], with nothing in between."""

    modes = 2
    width = 1.2

    def starts(self) -> np.ndarray:
        """(2,)."""
        return np.array([-1.8, 0.6])

    def draw(self, modes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        """See :meth:`Shape.draw`."""
        return (self.starts()[modes] + self.width * random.uniform(*INSIDE, size=len(modes)))[:, None]

    def log_modes(self, x: Points) -> Modes:
        """−log width inside, −inf outside."""
        offset = (x - torch.from_numpy(self.starts())) / self.width
        inside = (offset >= 0) & (offset < 1)
        return x.new_full(inside.shape, -math.log(self.width)).masked_fill(~inside, -math.inf)

    def cumulative(self, x: Numbers) -> Modes:
        """Straight lines."""
        return ((x[:, None] - torch.from_numpy(self.starts())) / self.width).clamp(0, 1)


class Skewed(OnLine):
    """Gumbel's distribution with mean 0 and variance 1: steep on the left, a long tail on the right."""

    modes = 1
    scale = math.sqrt(6) / math.pi
    location = -float(np.euler_gamma) * scale

    def draw(self, modes: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        """The inverse of the cumulative distribution."""
        return (self.location - self.scale * np.log(-np.log(random.uniform(size=len(modes)))))[:, None]

    def log_modes(self, x: Points) -> Modes:
        """−z − exp(−z) − log scale at z = (x − location) / scale."""
        z = (x - self.location) / self.scale
        return -z - torch.exp(-z) - math.log(self.scale)

    def cumulative(self, x: Numbers) -> Modes:
        """exp(−exp(−z))."""
        return torch.exp(-torch.exp(-(x[:, None] - self.location) / self.scale))


SHAPES: dict[str, type[Shape]] = {
    "eight_gaussians": EightGaussians,
    "two_moons": TwoMoons,
    "checkerboard": Checkerboard,
    "rings": Rings,
    "spiral": Spiral,
    "pinwheel": Pinwheel,
    "mixture": Mixture,
    "gap": Gap,
    "skewed": Skewed,
}
