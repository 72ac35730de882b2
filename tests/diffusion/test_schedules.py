"""The forward process against its definition: iterated steps, and Bayes' rule by quadrature."""

import math

import pytest
import torch

from imago.diffusion.schedules import BetaSchedule, CosineNoise, DiscreteSchedule, Linear, Quadratic, Sigmoid

SCHEDULES = [Linear(), Quadratic(), Sigmoid(), CosineNoise()]
NAMED = pytest.mark.parametrize("betas", SCHEDULES, ids=lambda s: type(s).__name__)


@NAMED
@pytest.mark.parametrize("steps", [1, 2, 7, 100, 1000])
def test_betas_are_variances_and_what_is_left_of_an_image_falls(betas: BetaSchedule, steps: int) -> None:
    beta = betas(steps)
    assert beta.dtype == torch.float64
    assert beta.shape == (steps,)
    assert 0 < float(beta.min()) <= float(beta.max()) <= 0.999
    assert bool((DiscreteSchedule(betas, steps).alpha_bar.diff() < 0).all())


@NAMED
def test_nothing_of_the_image_is_left_at_the_end_whatever_the_number_of_steps(betas: BetaSchedule) -> None:
    for steps in (50, 200, 1000, 4000):
        assert float(DiscreteSchedule(betas, steps).alpha_bar[-1]) < 0.01
    half = [float(DiscreteSchedule(betas, steps).alpha_bar[steps // 2]) for steps in (200, 1000, 4000)]
    assert max(half) - min(half) < 0.01


def test_the_papers_values() -> None:
    assert Linear()(1000)[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    assert float(DiscreteSchedule(Linear(), 1000).alpha_bar[-1]) == pytest.approx(
        4.0358e-5, rel=1e-3
    )  # computed by hand
    # Eq. 17 at t = T/2: cos² of (0.5 + s) / (1 + s) · π/2 over cos² of s / (1 + s) · π/2.
    expected = math.cos(0.508 / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert float(DiscreteSchedule(CosineNoise(), 1000).alpha_bar[500]) == pytest.approx(expected)
    quadratic, sigmoid = Quadratic()(1000), Sigmoid()(1000)
    assert float(quadratic[500]) == pytest.approx((0.01 + (math.sqrt(0.02) - 0.01) * 500 / 999) ** 2)
    assert float((sigmoid[499] + sigmoid[500]) / 2) == pytest.approx((1e-4 + 0.02) / 2)


@NAMED
def test_iterated_steps_have_the_closed_form(betas: BetaSchedule) -> None:
    """Mean and variance of x_t follow from those of x_{t−1} by equation 2; equation 4 gives them at once."""
    schedule = DiscreteSchedule(betas, 40)
    mean, variance = 1.0, 0.0
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    for t in range(1, 41):
        ends = (t - 1) / 40, t / 40
        factor = float(schedule.step(one, *ends, zero))
        spread = float(schedule.step(zero, *ends, one))
        assert factor**2 + spread**2 == pytest.approx(1, abs=1e-6)
        mean, variance = factor * mean, factor**2 * variance + spread**2
        at = torch.tensor([t / 40])
        assert float(schedule.diffuse(one, at, zero)) == pytest.approx(mean, rel=1e-5)
        assert float(schedule.diffuse(zero, at, one)) == pytest.approx(math.sqrt(variance), rel=1e-5)


@NAMED
@pytest.mark.parametrize(("s", "t"), [(1, 2), (4, 5), (3, 9), (19, 20), (2, 20)])
def test_the_posterior_is_bayes_rule(betas: BetaSchedule, s: int, t: int) -> None:
    """q(x_s | x_t, x_0) ∝ q(x_t | x_s) q(x_s | x_0), on a grid of x_s."""
    schedule = DiscreteSchedule(betas, 20)
    x_0, x_t = 0.4, -0.7
    before, now = float(schedule.alpha_bar[s]), float(schedule.alpha_bar[t])
    x_s = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    alpha = now / before
    log = -((x_s - math.sqrt(before) * x_0) ** 2) / (2 * (1 - before))
    log = log - (x_t - math.sqrt(alpha) * x_s) ** 2 / (2 * (1 - alpha))
    weight = log.softmax(0)
    mean = float((weight * x_s).sum())
    variance = float((weight * (x_s - mean) ** 2).sum())
    q = schedule.posterior(s / 20, t / 20)
    assert q.image * x_0 + q.noisy * x_t == pytest.approx(mean, abs=1e-6)
    assert q.variance == pytest.approx(variance, rel=1e-4)
    assert q.beta == pytest.approx(1 - alpha)


def test_tables_hold_the_posterior_of_every_step() -> None:
    schedule = DiscreteSchedule(Linear(), 30)
    steps = torch.tensor([2, 17, 30])
    table = schedule.last_step(steps / 30)
    for k, at in enumerate(steps.tolist()):
        q = schedule.posterior((at - 1) / 30, at / 30)
        assert float(table.image[k]) == pytest.approx(q.image, rel=1e-6)
        assert float(table.noisy[k]) == pytest.approx(q.noisy, rel=1e-6)
        assert float(table.variance[k]) == pytest.approx(math.log(q.variance), rel=1e-6)
        assert float(table.beta[k]) == pytest.approx(math.log(q.beta), rel=1e-6)
    first = schedule.last_step(torch.tensor([1 / 30]))
    assert (float(first.image), float(first.noisy)) == (1.0, 0.0)
    assert first.variance == table.variance[0]
    assert not schedule.state_dict()
