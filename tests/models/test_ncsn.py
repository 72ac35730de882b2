"""Noise conditional score networks on data whose scores are known in closed form."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imago.diffusion.samplers import AnnealedLangevin, Context, Estimate, length_of_steps
from imago.diffusion.schedules import DiscreteSchedule, GeometricNoise, Linear, NoiseSchedule, StraightLines
from imago.diffusion.variances import FixedSmall
from imago.errors import UserError
from imago.images import Batch, ImageSpec
from imago.models.ncsn import NCSN, ratio_of
from imago.nets.timed import TimedMLP

LINE = ImageSpec(1, 1, 1, levels=0)
WEIGHTS, MEANS, SCALES = torch.tensor([0.7, 0.3]), torch.tensor([-1.0, 1.0]), torch.tensor([0.1, 0.3])


def expected(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x_0 | α x_0 + σ ε = x] of the mixture."""
    variance, away = (alpha * SCALES) ** 2 + sigma**2, x[..., None] - alpha * MEANS
    log_joint = WEIGHTS.log() - 0.5 * (away**2 / variance + variance.log())
    posterior = MEANS + alpha * SCALES**2 / variance * away
    return (log_joint.softmax(-1) * posterior).sum(-1)


def walked(schedule: NoiseSchedule, walk: int, n: int, **sampler: Any) -> tuple[Tensor, int]:
    """Samples by the exact scores of the mixture, and how often these were asked for."""
    generator, calls = torch.Generator().manual_seed(0), []

    def draw() -> Tensor:
        return torch.randn(n, 1, 1, 1, generator=generator)

    def predict(x: Tensor, t: float | Tensor) -> Estimate:
        assert isinstance(t, float)
        calls.append(t)
        return Estimate(expected(x, *schedule.at(t)))

    context = Context(schedule, predict, draw, FixedSmall())
    *_, last = AnnealedLangevin(walk=walk, **sampler).trajectory(math.hypot(*schedule.at(1.0)) * draw(), context)
    return last.noisy.flatten(), len(calls)


@pytest.mark.parametrize("schedule", [GeometricNoise(0.02, 3.0, 30), DiscreteSchedule(Linear(), 60)])
def test_the_walk_ends_in_the_weights_and_variances_of_the_modes(schedule: NoiseSchedule) -> None:
    """Of a mixture whose modes no walk at the last level would leave; also where the image shrinks on the way."""
    x, _ = walked(schedule, 20, 5_000)
    of_modes = (x < 0, x > 0)
    for k, mode in enumerate(of_modes):
        assert float(mode.float().mean()) == pytest.approx(float(WEIGHTS[k]), abs=0.04)
        assert float(x[mode].mean()) == pytest.approx(float(MEANS[k]), abs=0.02)
        assert float(x[mode].std()) == pytest.approx(float(SCALES[k]), rel=0.15)


@pytest.mark.parametrize(("levels", "walk", "steps"), [(7, 3, None), (7, 2, 4), (1, 5, None)])
def test_calls_are_counted(levels: int, walk: int, steps: int | None) -> None:
    _, calls = walked(GeometricNoise(0.02, 3.0, levels), walk, 2, steps=steps)
    assert calls == AnnealedLangevin(walk=walk, steps=steps).nfe(levels)


@pytest.mark.parametrize(("ratio", "steps"), [(1.05, 1), (1.2, 3), (1.7, 100)])
def test_steps_have_the_length_that_leaves_the_variance_nearest_to_one(ratio: float, steps: int) -> None:
    def after(r: float) -> float:
        variance = ratio**2
        for _ in range(steps):
            variance = (1 - r) ** 2 * variance + 2 * r
        return variance

    r = length_of_steps(ratio, steps)
    assert 1 < after(r) < ratio**2
    assert all(after(r) < after(r * factor) for factor in (0.8, 0.97, 1.03, 1.2))


class ExactScore(nn.Module):
    """f of equation 4 times a factor of each level, for the data N(0, s²)."""

    def __init__(self, schedule: GeometricNoise, s: float, off: float) -> None:
        super().__init__()
        self.schedule, self.s, self.off = schedule, s, off

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        _, sigma = self.schedule(t.view(-1, 1, 1, 1))
        scale = (1 + sigma**2).sqrt()
        epsilon = self.off * sigma / (self.s**2 + sigma**2) * (x * scale)  # −σ times the score of N(0, s² + σ²)
        return ((epsilon - sigma / scale * x) * scale)[:, None]


def test_the_loss_has_its_minimum_at_the_true_score() -> None:
    """Of N(0, s²) it is the mean over the levels of Var(ε | x̃) = s² / (s² + σ²)."""
    s, n = 0.5, 200_000
    model = NCSN(LINE, steps=12, network=lambda *_: nn.Identity())
    _, sigma = model.noise_schedule(torch.arange(1, 13) / 12)
    truth = float((s**2 / (s**2 + sigma**2)).mean())
    found = {}
    for off in (0.9, 1.0, 1.1):
        torch.manual_seed(0)
        model.net = ExactScore(model.noise_schedule, s, off)
        (loss,) = model.losses(Batch(s * torch.randn(n, 1, 1, 1)))
        found[off] = loss.value.item()
    assert found[1.0] == pytest.approx(truth, abs=5 / math.sqrt(n))
    assert min(found[0.9], found[1.1]) > found[1.0] + 0.002


def test_a_network_learns_the_scores_of_a_mixture() -> None:
    """By training: what it expects of x_0, near the data, is the closed form."""
    torch.manual_seed(0)
    model = NCSN(LINE, steps=10, network=lambda *given: TimedMLP(*given, width=32, blocks=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for update in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - update / 200)
        k = torch.multinomial(WEIGHTS, 1024, replacement=True)
        (loss,) = model.losses(Batch((MEANS[k] + SCALES[k] * torch.randn(1024)).view(-1, 1, 1, 1)))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    for level in (3, 5, 7):
        _, sigma = model.noise_schedule.at(level / 10)
        k = torch.multinomial(WEIGHTS, 2000, replacement=True)
        x = (MEANS[k] + SCALES[k] * torch.randn(2000) + sigma * torch.randn(2000)).view(-1, 1, 1, 1)
        truth = expected(x, 1.0, sigma)
        with torch.no_grad():
            error = (model.predict(x, torch.tensor([level / 10])).image - truth).square().mean().sqrt()
        before = (x / (1 + sigma**2) - truth).square().mean().sqrt()  # that of f = 0
        assert float(error) < 0.5 * float(before), level


def test_levels_are_geometric_between_their_ends() -> None:
    model = NCSN(ImageSpec(1, 4, 4), steps=5, network=lambda *_: nn.Linear(1, 1))
    sigma = [model.noise_schedule.at(k / 5)[1] for k in range(6)]
    assert sigma[0] == 0
    assert sigma[1] == pytest.approx(0.02)
    assert sigma[5] == pytest.approx(2 * 4)
    assert all(b / a == pytest.approx(400**0.25) for a, b in pairwise(sigma[1:]))


@pytest.mark.parametrize("dimensions", [64, 784, 3072])
def test_neighbouring_levels_overlap_by_half(dimensions: int) -> None:
    """Technique 2, whose formula stands in the paper; of 32x32 RGB it gives 232 levels from 50 to 0.01."""
    ratio, root = ratio_of(dimensions), math.sqrt(2 * dimensions)
    ends = torch.tensor([root * (ratio - 1) + 3 * ratio, root * (ratio - 1) - 3 * ratio], dtype=torch.float64)
    whole, rest = torch.special.ndtr(ends)
    assert float(whole - rest) == pytest.approx(0.5, abs=1e-6)
    assert dimensions != 3072 or math.log(5000) / math.log(ratio) == pytest.approx(232, rel=0.07)


def test_so_many_levels_as_overlap() -> None:
    model = NCSN(ImageSpec(3, 32, 32), steps=None, smallest=0.02, largest=100, network=lambda *_: nn.Linear(1, 1))
    assert model.noise_schedule.steps == pytest.approx(220, abs=1)
    assert NCSN(LINE, steps=None, network=lambda *_: nn.Linear(1, 1)).noise_schedule.steps == 13


def test_what_cannot_be_walked_is_told() -> None:
    with pytest.raises(UserError, match=r"model\.smallest=3: must lie below model\.largest=2"):
        NCSN(LINE, smallest=3)
    context = Context(StraightLines(), lambda x, t: Estimate(x), lambda: torch.zeros(1, 1, 1, 1), FixedSmall())
    with pytest.raises(UserError, match=r"AnnealedLangevin walks .*; choose model/sampler=heun or dopri5"):
        list(AnnealedLangevin(steps=3).trajectory(torch.zeros(1, 1, 1, 1), context))
