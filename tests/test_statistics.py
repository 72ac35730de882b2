"""The share of a variance that groups explain: against sums over all pairs, and where it is known."""

from itertools import combinations, product

import numpy as np
import pytest

from imago.statistics import Estimate, explained_share, jackknife


def test_it_is_one_minus_the_ratio_of_squared_distances() -> None:
    outcomes = np.random.default_rng(0).normal(size=(5, 4, 3)) + np.arange(5)[:, None, None] / 2
    within = [((a - b) ** 2).sum() for group in outcomes for a, b in combinations(group, 2)]
    across = [((a - b) ** 2).sum() for one, other in combinations(outcomes, 2) for a, b in product(one, other)]
    assert explained_share(outcomes).value == pytest.approx(1 - np.mean(within) / np.mean(across))


@pytest.mark.parametrize("between", [0.0, 0.5, 2.0])
def test_value_and_error_are_right_on_average(between: float) -> None:
    """Groups of variance ``between`` around which outcomes have variance 1: the share is between / (1 + between)."""
    random = np.random.default_rng(1)
    means = between**0.5 * random.normal(size=(400, 25, 1, 6))
    found = [explained_share(outcomes) for outcomes in means + random.normal(size=(400, 25, 4, 6))]
    values = np.array([estimate.value for estimate in found])
    assert values.mean() == pytest.approx(between / (1 + between), abs=0.01)
    assert np.mean([estimate.error for estimate in found]) == pytest.approx(values.std(), rel=0.15)


def test_all_nothing_and_no_variance() -> None:
    groups = np.arange(4.0)[:, None, None] + np.zeros((4, 3, 2))
    one, none = explained_share(groups), explained_share(np.ones((4, 3, 2)))
    assert (one.value, one.error, none.value, none.error) == (1, 0, 0, 0)


@pytest.mark.parametrize(
    ("above", "below", "value", "error"),
    [
        (Estimate(6.0, 0.3), Estimate(3.0, 0.0), 2.0, 0.1),
        (Estimate(6.0, 0.0), Estimate(3.0, 0.3), 2.0, 0.2),
        (Estimate(6.0, 0.3), Estimate(3.0, 0.3), 2.0, 0.05**0.5),
        (Estimate(0.0, 0.3), Estimate(-3.0, 0.3), 0.0, 0.1),
    ],
)
def test_a_ratio_has_the_errors_of_both(above: Estimate, below: Estimate, value: float, error: float) -> None:
    ratio = above.over(below)
    assert (ratio.value, ratio.error) == (pytest.approx(value), pytest.approx(error))


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = np.array([1.0, 4.0, 9.0, 16.0])
    without = (x.sum() - x) / 3
    assert jackknife(without) == pytest.approx(x.std(ddof=1) / 2)
