"""What is estimated from few images or few runs, with the error of the estimate, and tests of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.error:.2f}"


def jackknife(without: Float[np.ndarray, " n"]) -> float:
    """The standard error of an estimate, from its values with one of n independent observations left out in turn."""
    n = len(without)
    return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())) if n > 1 else 0.0


def explained_share(outcomes: Float[np.ndarray, "groups repeats values"]) -> Estimate:
    """The share of a variance, summed over the values, that is explained by which group an outcome belongs to.

    By the law of total variance it is 1 - E[Var(x | group)] / Var(x): 0 if the outcomes of all groups are distributed
    alike, 1 if those of one are equal. Both variances are half the mean squared distance of two outcomes: of one group,
    or of two groups. So the estimates of both are unbiased; the share may come out below 0. It is 0 where nothing
    varies.

    Args:
        outcomes: 2 or more of each of 3 or more groups.

    Returns:
        The share, and its standard error from leaving out one group at a time.
    """
    n = len(outcomes)
    means = outcomes.mean(1)
    within = outcomes.var(1, ddof=1).sum(-1)
    squares = (outcomes**2).sum(-1).mean(1)
    across = (squares[:, None] + squares[None, :]) / 2 - means @ means.T
    np.fill_diagonal(across, 0)

    def share(within: float, across: float, groups: int) -> float:
        total = across / (groups * (groups - 1))
        return 1 - within / groups / total if total > 0 else 0.0

    whole = share(within.sum(), across.sum(), n)
    without = np.array([share(within.sum() - within[k], across.sum() - 2 * across[k].sum(), n - 1) for k in range(n)])
    return Estimate(whole, jackknife(without))


@dataclass(frozen=True)
class Difference:
    """A mean or a difference of means, with what Student's t needs to test it against 0.

    Args:
        value: the estimate.
        error: its standard error.
        freedom: degrees of freedom of that error.
    """

    value: float
    error: float
    freedom: float

    @property
    def p(self) -> float:
        """The probability of a value as far from 0, to either side, where the truth is 0.

        1 without an error: values without any spread are of something else than independent draws.
        """
        if not self.error or not math.isfinite(self.value / self.error):
            return 1.0
        return float(2 * student.sf(abs(self.value) / self.error, self.freedom))


def combined(value: float, parts: Sequence[tuple[float, float]]) -> Difference:
    """A sum of independent estimates, with the degrees of freedom of Welch (1947) and Satterthwaite (1946).

    Args:
        value: the sum.
        parts: of each the square of its standard error, and the degrees of freedom of that.
    """
    total = sum(square for square, _ in parts)
    spread = sum(square**2 / freedom for square, freedom in parts if square)
    return Difference(value, math.sqrt(total), total**2 / spread if spread else math.inf)


def mean_of(values: Sequence[float]) -> Difference:
    """The mean of two or more independent values."""
    return combined(float(np.mean(values)), [_mean_square(values)])


def above(values: Sequence[float], level: float, error: float, freedom: float) -> Difference:
    """The mean of two or more independent values less a level that has an error of its own."""
    return combined(float(np.mean(values)) - level, [_mean_square(values), (error**2, freedom)])


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The mean of the second less that of the first, of two or more independent values each, of unequal variances."""
    return combined(float(np.mean(second) - np.mean(first)), [_mean_square(first), _mean_square(second)])


def on_the_same_images(
    first: Float[np.ndarray, "runs images"], second: Float[np.ndarray, "other images"]
) -> Difference:
    """The mean of the second less that of the first, of two or more runs each, all measured on the same images.

    What is unknown is how other runs would come out, and how other images would: the variances of the runs' means, and
    that of the images' differences of the means over the runs. Images are paired, which takes out that some are hard
    for every model.
    """
    of_images = second.mean(0) - first.mean(0)
    parts = [_mean_square(first.mean(1)), _mean_square(second.mean(1)), _mean_square(of_images)]
    return combined(float(of_images.mean()), parts)


def _mean_square(values: Sequence[float] | Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The square of the standard error of a mean, and its degrees of freedom."""
    return float(np.var(values, ddof=1)) / len(values), len(values) - 1


def holm(p: Sequence[float]) -> list[float]:
    """Raise p-values so that a false rejection among them all is as rare as the level says (Holm 1979).

    The smallest is multiplied by their number, the next by one less, and none comes out below a smaller one.
    """
    found, least = [0.0] * len(p), 0.0
    for rank, k in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[k]))
        found[k] = least
    return found


@dataclass(frozen=True)
class Finding:
    """Which way several differences together speak.

    Args:
        holds: whether they are all above 0; if not, that one is below.
        p: of that, before what else is tested is counted in.
    """

    holds: bool
    p: float


def all_above(differences: Sequence[Difference]) -> Finding:
    """Whether every difference is above 0, or one is below.

    That all are, is as doubtful as the most doubtful one (an intersection-union test; Berger 1982), which needs no
    correction for their number; that one is below is chosen among them, and its p is multiplied by that.
    """
    below = [d.p for d in differences if d.value <= 0]
    if not below:
        return Finding(True, max(d.p for d in differences))
    return Finding(False, min(1.0, len(differences) * min(below)))
