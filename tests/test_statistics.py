"""The share of a variance that groups explain: against sums over all pairs, and where it is known."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from imago.statistics import (
    Difference,
    above,
    all_above,
    explained_share,
    holm,
    jackknife,
    mean_of,
    on_the_same_images,
    welch,
)


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


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = np.array([1.0, 4.0, 9.0, 16.0])
    without = (x.sum() - x) / 3
    assert jackknife(without) == pytest.approx(x.std(ddof=1) / 2)


def test_tests_of_means_are_those_of_scipy() -> None:
    random = np.random.default_rng(2)
    first, second = random.normal(1, 1, 5), random.normal(0, 4, 9)
    ours, theirs = welch(first.tolist(), second.tolist()), stats.ttest_ind(second, first, equal_var=False)
    assert (ours.value / ours.error, ours.freedom, ours.p) == pytest.approx(
        (theirs.statistic, theirs.df, theirs.pvalue)
    )
    assert mean_of(first.tolist()).p == pytest.approx(stats.ttest_1samp(first, 0).pvalue)
    same, more = [3.0] * 5, [4.0] * 5
    assert (welch(same, same).p, welch(same, more).p) == (1, 1), "without any spread nothing is known"
    assert all_above([welch(same, more), Difference(math.nan, math.nan, 4)]).p == 1


def test_a_level_has_an_error_of_its_own() -> None:
    values = [1.0, 2.0, 3.0, 2.5, 1.5]
    assert above(values, 1.0, 0.0, 99) == mean_of([v - 1 for v in values])
    assert above(values, 1.0, 0.5, 99).error == pytest.approx(math.hypot(mean_of(values).error, 0.5))


def test_pairs_of_images_take_out_what_is_hard_for_all() -> None:
    """Images differ by 10, runs by 0.1: with one value a run it is Welch's test, and more images add their noise."""
    random = np.random.default_rng(3)
    hard = random.normal(0, 10, 1000)
    first, second = (mean + random.normal(0, 0.1, (5, 1)) + hard for mean in (0.0, 1.0))
    found = on_the_same_images(first, second)
    plain = welch(first.mean(1).tolist(), second.mean(1).tolist())
    assert (found.value, found.error) == (pytest.approx(plain.value), pytest.approx(plain.error, rel=1e-6))
    noisy = on_the_same_images(first, second + random.normal(0, 20, (5, 1000)))
    assert noisy.error == pytest.approx(np.hypot(20 / np.sqrt(5) / np.sqrt(1000), plain.error), rel=0.2)


def test_the_error_of_pairs_holds_over_runs_and_images() -> None:
    """Where the truth is 0, p is below 5% in 5% of all draws of runs and images together."""
    random, below = np.random.default_rng(4), 0
    for _ in range(1500):
        hard = random.normal(0, 5, 40)
        first, second = (
            random.normal(0, 0.5, (5, 1)) + hard + random.normal(0, 2, 40) + random.normal(0, 0.5, (5, 40))
            for _ in range(2)
        )
        below += on_the_same_images(first, second).p < 0.05
    assert 0.03 < below / 1500 < 0.065


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


def test_all_are_above_or_one_is_below() -> None:
    def at(value: float, p: float) -> Difference:
        return Difference(value, abs(value) / stats.t.isf(p / 2, 8), 8)

    found = all_above([at(1, 0.01), at(2, 0.2)])
    assert (found.holds, found.p) == (True, pytest.approx(0.2))
    found = all_above([at(1, 0.001), at(-2, 0.02), at(-1, 0.5)])
    assert (found.holds, found.p) == (False, pytest.approx(0.06))
