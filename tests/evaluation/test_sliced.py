"""The Monge Inception distance: closed forms, the definition, and which vectors take part."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from imago.evaluation import MongeDistance
from imago.evaluation.sliced import sliced_wasserstein


def cloud(n: int, seed: int, shift: float = 0.0, d: int = 6) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def monge(samples: Tensor, reference: Tensor) -> float:
    metric = MongeDistance()
    for part in samples.split(17):
        metric.update(part, real=False)
    metric.update(reference, real=True)
    return float(metric.compute())


def test_a_shift_is_three_times_its_square():
    """In every direction u both sides differ by u·s; the mean of (u·s)² over directions is |s|²/d."""
    x = cloud(50, 1)
    shift = torch.tensor([1.0, -2, 0, 0.5, 0, 3])
    assert monge(x + shift, x) == pytest.approx(3 * float(shift.square().sum()), rel=0.1), "1,000 directions"
    assert monge(x, x) == 0


def test_a_scale_is_three_times_the_squared_difference_of_deviations():
    """Σ (s xᵢ − xᵢ)² / n in a direction is (s − 1)² times the second moment there; its mean is that of |x|²/d."""
    x = cloud(400, 1)
    expected = 3 * 0.5**2 * float(x.square().sum(1).mean())
    assert monge(1.5 * x, x) == pytest.approx(expected, rel=0.05)


def test_in_one_dimension_it_is_optimal_transport():
    """There the directions are 1 and -1; the cheapest of all pairings is the sorted one."""
    x, y = cloud(6, 1, d=1).double(), cloud(6, 2, d=1).double()
    cheapest = min(float((x - y[list(order)]).square().mean()) for order in permutations(range(6)))
    assert float(sliced_wasserstein(x, y)) == pytest.approx(cheapest, rel=1e-12)


def test_blocks_and_the_random_state():
    x, y = cloud(50, 1).double(), cloud(50, 2).double()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert float(sliced_wasserstein(x, y, block=7)) == pytest.approx(float(sliced_wasserstein(x, y)), rel=1e-12)
    assert torch.equal(torch.get_rng_state(), before)


def test_as_many_of_both_sides_take_part():
    real = torch.cat([cloud(60, 1), cloud(60, 2, shift=50)])
    assert monge(cloud(60, 3), real[:60]) < 10 < 1000 < monge(cloud(60, 3), real), "a random half, not the first 60"
    assert monge(torch.cat([cloud(60, 3), cloud(90, 4, shift=90)]), cloud(60, 1)) < 10, "the first samples"
