"""Flow matching, EDM and consistency models of one's own: the promises of every model, and samples of known data.

The data of the second part are points of N(MEAN, SCALE²), of which the optimal denoiser is known.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imago.diffusion.predictions import X0
from imago.diffusion.samplers import DDIM, Ancestral, DPMSolver, Sampler
from imago.diffusion.schedules import DiscreteSchedule, Linear, NoiseSchedule, column
from imago.images import Batch, ImageSpec
from imago.models.denoiser import Denoiser
from imago.rng import BatchGenerator, PerImageGenerator
from models.test_laws import *  # noqa: F403
from my_models.consistency import Anchored, ConsistencyModel, Multistep
from my_models.edm import EDM, Heun, Preconditioned, VarianceExploding
from my_models.flow import Euler, RectifiedFlow, Velocity

MODELS = ["flow"]
SPECS = {"binary-2x2": ImageSpec(1, 2, 2, levels=2, classes=2), "rgb-6x5": ImageSpec(3, 6, 5, classes=2)}
GRAY = ImageSpec(1, 8, 8, classes=3)

POINT = ImageSpec(1, 1, 1, levels=0)
MEAN, SCALE = 0.7, 0.3
Answer = Callable[[Tensor, Tensor, Tensor], Tensor]  # x_t, α, σ → x̂


class Told(nn.Module):
    """A network that knows the data."""

    def __init__(self, schedule: NoiseSchedule, answer: Answer) -> None:
        super().__init__()
        self.schedule, self.answer = schedule, answer

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.answer(x, *self.schedule(column(t)))[:, None]


def optimal(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_t]."""
    return MEAN + alpha * SCALE**2 / (alpha**2 * SCALE**2 + sigma**2) * (x - alpha * MEAN)


def samples_of(schedule: NoiseSchedule, sampler: Sampler, answer: Answer = optimal, n: int = 20_000) -> Tensor:
    model = Denoiser(
        POINT, noise_schedule=schedule, network=lambda *_: Told(schedule, answer), prediction=X0(), sampler=sampler
    )
    return model.sample(n, generator=PerImageGenerator(0)).flatten()


@pytest.mark.parametrize(
    ("schedule", "sampler"),
    [
        (RectifiedFlow(), Euler(200)),
        (RectifiedFlow(), DDIM(200)),
        (RectifiedFlow(), DDIM(400, eta=1.0)),
        (RectifiedFlow(), Ancestral(400)),
        (RectifiedFlow(), DPMSolver(40)),
        (VarianceExploding(), DDIM(200)),
        (VarianceExploding(), DPMSolver(40)),
        (VarianceExploding(), Heun(36)),
        (DiscreteSchedule(Linear(), 1000), DPMSolver(40, "quadratic")),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_samples_of_the_optimal_denoiser_have_the_distribution_of_the_data(
    schedule: NoiseSchedule, sampler: Sampler
) -> None:
    x = samples_of(schedule, sampler)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.std()) == pytest.approx(SCALE, rel=0.03)
    tails = [float((x < MEAN + k * SCALE).float().mean()) for k in (-1, 0, 1)]
    assert tails == pytest.approx([0.159, 0.5, 0.841], abs=0.015)


def test_euler_along_straight_lines_is_ddim() -> None:
    euler, ddim = (samples_of(RectifiedFlow(), kind(7), n=100) for kind in (Euler, DDIM))
    torch.testing.assert_close(euler, ddim, atol=1e-5, rtol=1e-5)


def test_a_sampler_may_ask_twice() -> None:
    """Its error falls with the square of the number of steps, and its calls are counted."""
    exact = samples_of(VarianceExploding(), DPMSolver(400), n=1000)
    errors = [float((samples_of(VarianceExploding(), Heun(s), n=1000) - exact).abs().mean()) for s in (9, 18, 36)]
    assert errors[0] > 3 * errors[1] > 3**2 * errors[2]
    calls = []

    def counted(*given: Tensor) -> Tensor:
        calls.append(given)
        return optimal(*given)

    samples_of(VarianceExploding(), Heun(9), counted, n=2)
    assert len(calls) == Heun(9).nfe(None) == 17


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_perfect_consistency_model_makes_the_data_in_any_number_of_steps(steps: int) -> None:
    def end(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:  # of the path through x_t
        return MEAN + SCALE / (alpha**2 * SCALE**2 + sigma**2).sqrt() * (x - alpha * MEAN)

    x = samples_of(VarianceExploding(), Multistep(steps), end)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.std()) == pytest.approx(SCALE, rel=0.03)


class Perceptron(nn.Module):
    """A small network for points."""

    def __init__(self, spec: ImageSpec, outputs: int, labels: int) -> None:
        super().__init__()
        d = spec.channels
        self.layers = nn.Sequential(nn.Linear(d + 1, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, d))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.layers(torch.cat([x.flatten(1), t[:, None].expand(len(x), 1)], 1)).view(len(x), 1, *x.shape[1:])


@pytest.mark.parametrize(
    ("kind", "schedule", "prediction", "sampler", "updates"),
    [
        (Denoiser, RectifiedFlow(), Velocity(), Euler(50), 500),
        (EDM, VarianceExploding(), Preconditioned(), Heun(20), 500),
        (ConsistencyModel, VarianceExploding(), Anchored(), Multistep(1), 2500),
    ],
    ids=["flow", "edm", "consistency"],
)
def test_points_of_a_correlated_normal_distribution_are_learned(
    kind: type[Denoiser], schedule: NoiseSchedule, prediction: Any, sampler: Sampler, updates: int
) -> None:
    torch.manual_seed(0)
    spec = ImageSpec(2, 1, 1, levels=0)
    model = kind(spec, network=Perceptron, noise_schedule=schedule, prediction=prediction, sampler=sampler)
    (optimizer,) = model.configure_optimizers()
    draws = torch.Generator().manual_seed(0)
    root = torch.tensor([[0.5, 0.0], [0.3, 0.2]])
    for k in range(updates):
        optimizer.param_groups[0]["lr"] = 6e-3 * (1 - k / updates)
        points = torch.randn(256, 2, generator=draws) @ root.T + torch.tensor([0.3, -0.2])
        for loss in model.losses(Batch(points.view(-1, 2, 1, 1)), BatchGenerator(generator=draws)):
            optimizer.zero_grad()
            loss.value.backward()
            optimizer.step()
    x = model.sample(5000, generator=PerImageGenerator(0)).flatten(1)
    torch.testing.assert_close(x.mean(0), torch.tensor([0.3, -0.2]), atol=0.05, rtol=0)
    torch.testing.assert_close(x.T.cov(), root @ root.T, atol=0.03, rtol=0)
