"""What is estimated from few images, with the error of the estimate."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    error: float

    def over(self, other: "Estimate") -> "Estimate":
        """In units of another one, whose error is independent."""
        value = self.value / other.value
        return Estimate(value, float(np.hypot(self.error, value * other.error)) / abs(other.value))

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
