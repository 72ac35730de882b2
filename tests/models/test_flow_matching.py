"""Flow matching against closed forms: pairs, times, the field that is learned, and the paths that follow it."""

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imago.diffusion.ode import log_density
from imago.diffusion.predictions import X0, FlowVelocity
from imago.diffusion.samplers import DDIM, Dopri5, Euler, Heun, Sampler
from imago.diffusion.schedules import DiscreteSchedule, Linear, NoiseSchedule, StraightLines, column
from imago.errors import UserError
from imago.images import Batch, ImageSpec
from imago.models.denoiser import Denoiser
from imago.models.diffusion import Diffusion
from imago.models.flow_matching import FlowMatching, nearest_pairs
from imago.nets.timed import TimedMLP
from imago.rng import BatchGenerator, PerImageGenerator

POINT, PLANE = ImageSpec(1, 1, 1, levels=0), ImageSpec(2, 1, 1, levels=0)
MEAN, SCALE = 0.7, 0.3


class Field(nn.Module):
    """The velocity of equation 2 for points of N(MEAN, SCALE²); counts how often it is asked."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule, self.calls = schedule, 0

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        self.calls += 1
        alpha, sigma = self.schedule(column(t))
        image = MEAN + alpha * SCALE**2 / (alpha**2 * SCALE**2 + sigma**2) * (x - alpha * MEAN)
        return ((x - (alpha + sigma) * image) / sigma)[:, None]


def told(sampler: Sampler, schedule: NoiseSchedule | None = None) -> Denoiser:
    schedule = schedule or StraightLines()
    field = Field(schedule)
    return Denoiser(
        POINT, noise_schedule=schedule, network=lambda *_: field, prediction=FlowVelocity(), sampler=sampler
    )


def end_of_path(noise: Tensor) -> Tensor:
    """Normal distributions move along x_t = m_t + s_t z with the same z."""
    return MEAN + SCALE * noise


# --- paths -----------------------------------------------------------------------------------------------------------


def errors_of(kind: type[Sampler], *steps: int) -> list[float]:
    noise = PerImageGenerator(0).normal(500)
    return [
        float((told(kind(s)).sample(500, generator=PerImageGenerator(0)).flatten() - end_of_path(noise)).abs().mean())
        for s in steps
    ]


def test_the_orders_of_the_samplers() -> None:
    """Errors against the path itself fall with the number of steps, and with its square."""
    first, second = errors_of(Euler, 20, 40, 80), errors_of(Heun, 20, 40, 80)
    assert all(1.7 < a / b < 2.3 for a, b in itertools.pairwise(first))
    assert all(a / b > 3 for a, b in itertools.pairwise(second))
    assert second[0] < 0.3 * first[0]


def test_an_adaptive_path_is_as_close_as_asked_and_of_each_image_alone() -> None:
    noise = PerImageGenerator(0).normal(200)
    model = told(Dopri5(1e-5, 1e-5))
    together = model.sample(200, generator=PerImageGenerator(0)).flatten()
    errors = (together - end_of_path(noise)).abs()
    assert float(errors.mean()) < 5e-5
    assert float(errors.max()) < 1e-3  # both orders may err alike in a single number
    asked = model.nfe
    assert 10 < asked < 200
    assert model.net.calls >= asked
    alone = model.sample(1, generator=PerImageGenerator(0, first=7))
    torch.testing.assert_close(alone.flatten(), together[7:8], atol=1e-5, rtol=0)
    assert str(model.sampler) == "Dopri5, rtol 1e-05, atol 1e-05"
    with pytest.raises(UserError, match=r"model.sampler: Dopri5 stops anywhere in time, .* model.steps=100 steps only"):
        told(Dopri5(), DiscreteSchedule(Linear(), 100))


@pytest.mark.parametrize("schedule", [StraightLines(), DiscreteSchedule(Linear(), 1000)], ids=["lines", "chain"])
def test_euler_is_ddim_on_every_schedule_and_heun_is_counted(schedule: NoiseSchedule) -> None:
    euler, ddim = (told(kind(8), schedule).sample(50) for kind in (Euler, DDIM))
    torch.testing.assert_close(euler, ddim, atol=1e-5, rtol=1e-5)
    model = told(Heun(8), schedule)
    model.sample(50)
    assert model.net.calls == model.nfe == 15


def test_heun_walks_a_chain_too() -> None:
    x = told(Heun(50), DiscreteSchedule(Linear(), 1000)).sample(20_000).flatten()
    assert (float(x.mean()), float(x.std())) == pytest.approx((MEAN, SCALE), abs=0.01)


def test_a_velocity_names_the_image_on_every_schedule() -> None:
    draws = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(6, 1, 1, 1, generator=draws) for _ in range(2))
    for alpha, sigma in ((0.6, 0.4), (0.6, 0.8)):
        at = torch.tensor(alpha), torch.tensor(sigma)
        target = FlowVelocity().target(x, noise, *at)
        torch.testing.assert_close(FlowVelocity().image(target, alpha * x + sigma * noise, *at), x)


# --- training --------------------------------------------------------------------------------------------------------


def test_pairs_are_the_nearest_of_all() -> None:
    draws = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(6, 2, 1, 1, generator=draws) for _ in range(2))

    def cost(order: Any) -> float:
        return float((x - noise[list(order)]).square().sum())

    best = min(itertools.permutations(range(6)), key=cost)
    assert nearest_pairs(x, noise).tolist() == list(best)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    within = [p for p in itertools.permutations(range(6)) if torch.equal(labels[list(p)], labels)]
    assert nearest_pairs(x, noise, labels).tolist() == list(min(within, key=cost))


def test_coupling_leaves_the_noise_as_it_is_and_shortens_its_way() -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(64, 2, 1, 1, generator=draws)
    found = {}
    for coupling in ("independent", "optimal_transport"):
        model = FlowMatching(PLANE, network=TimedMLP, coupling=coupling)  # type: ignore[arg-type]
        rng = BatchGenerator(generator=torch.Generator().manual_seed(1))
        found[coupling] = model.training_noise(x, None, rng)
    one, other = (noise.flatten(1) for noise in found.values())
    assert torch.equal(one[one[:, 0].argsort()], other[other[:, 0].argsort()])
    assert float((x.flatten(1) - other).square().sum()) < 0.5 * float((x.flatten(1) - one).square().sum())


def test_times() -> None:
    rng = BatchGenerator(generator=torch.Generator().manual_seed(0))
    for times, above in (("uniform", 1 - 1 / (1 + math.exp(-1))), ("logit_normal", 0.1587)):
        t = FlowMatching(POINT, network=TimedMLP, times=times).training_times(40_000, rng)  # type: ignore[arg-type]
        assert float(t.median()) == pytest.approx(0.5, abs=0.01)
        assert float((t > 1 / (1 + math.exp(-1))).float().mean()) == pytest.approx(above, abs=0.01)


def test_points_of_a_correlated_normal_distribution_are_learned() -> None:
    torch.manual_seed(0)
    network = partial(TimedMLP, width=64, blocks=2)
    model = FlowMatching(PLANE, network=network, coupling="optimal_transport", times="logit_normal")
    (optimizer,) = model.configure_optimizers()
    draws = torch.Generator().manual_seed(0)
    root, updates = torch.tensor([[0.5, 0.0], [0.3, 0.2]]), 300
    for k in range(updates):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - k / updates)
        points = torch.randn(128, 2, generator=draws) @ root.T + torch.tensor([0.3, -0.2])
        for loss in model.losses(Batch(points.view(-1, 2, 1, 1)), BatchGenerator(generator=draws)):
            optimizer.zero_grad()
            loss.value.backward()
            optimizer.step()
    x = model.sample(5000, generator=PerImageGenerator(0)).flatten(1)
    torch.testing.assert_close(x.mean(0), torch.tensor([0.3, -0.2]), atol=0.06, rtol=0)
    torch.testing.assert_close(x.T.cov(), root @ root.T, atol=0.04, rtol=0)


# --- likelihood ------------------------------------------------------------------------------------------------------


def learned(spec: ImageSpec, mean: float = MEAN, scale: float = SCALE, prediction: Any = None) -> FlowMatching:
    """The exact field of values that are independent, of N(mean, scale²)."""

    def answer(x: Tensor, t: Tensor) -> Tensor:
        t = column(t)
        total = (1 - t) ** 2 * scale**2 + t**2
        return (t - (1 - t) * scale**2) / total * (x - (1 - t) * mean) - mean

    class Answer(nn.Module):
        def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            found = answer(x, t)
            return (found if prediction is None else x - column(t) * found)[:, None]

    return FlowMatching(spec, network=lambda *_: Answer(), prediction=prediction)


@pytest.mark.parametrize("prediction", [None, X0()], ids=["velocity", "image"])
@pytest.mark.parametrize("dimensions", [2, 30], ids=["exact", "hutchinson"])
def test_the_density_of_a_normal_distribution(dimensions: int, prediction: Any) -> None:
    """Of a field whose derivative is diagonal Hutchinson's estimate is exact."""
    model = learned(ImageSpec(dimensions, 1, 1, levels=0), prediction=prediction)
    x = MEAN + SCALE * torch.randn(20, dimensions, 1, 1, generator=torch.Generator().manual_seed(0))
    known = torch.distributions.Normal(MEAN, SCALE).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(model.log_likelihood(x), known, atol=0.01 * dimensions, rtol=0)
    assert model.estimator.startswith("probability flow, tolerance 0.0001, ")
    assert ("exact" in model.estimator) == (dimensions == 2)


def test_a_wrong_field_has_another_density_and_the_estimate_follows_its_jacobian() -> None:
    """With derivatives across values, y' = A y, log p_0(y) = log N(exp(A) y) + tr A; probes are right on average."""
    draws = torch.Generator().manual_seed(0)
    matrix = 0.4 * torch.randn(3, 3, generator=draws)
    y = torch.randn(4000, 3, generator=draws)
    known = torch.distributions.Normal(0, 1).log_prob(y @ torch.linalg.matrix_exp(matrix).T).sum(1) + matrix.trace()

    def slope(y: Tensor, t: Tensor) -> Tensor:
        return y @ matrix.T

    torch.testing.assert_close(log_density(slope, y, None), known, atol=1e-3, rtol=1e-3)
    signs = torch.where(torch.rand(y.shape, generator=draws) < 0.5, -1.0, 1.0)
    differences = log_density(slope, y, signs) - known
    assert float(differences.std()) > 0.1
    assert float(differences.mean()) == pytest.approx(0, abs=4 * float(differences.std()) / math.sqrt(4000))


def test_integer_images_have_probabilities() -> None:
    """Of four levels in one value: the mean log-density over the width of a level, and the width."""
    model = learned(ImageSpec(1, 1, 1, levels=4), mean=0.1, scale=0.6)
    levels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    found = model.log_likelihood(levels.repeat_interleave(500, 0)).view(4, 500).double()
    normal = torch.distributions.Normal(0.1, 0.6)
    u = ((torch.arange(1000) + 0.5) / 1000 - 0.5) * (2 / 3)
    places = torch.linspace(-1, 1, 4)[:, None] + u
    expected = (normal.log_prob(places) + math.log(2 / 3)).mean(1)
    error = found.std(1) / math.sqrt(500)
    assert bool(((found.mean(1) - expected).abs() < 4 * error + 0.005).all())


def chain(spec: ImageSpec, mean: float, scale: float, last: float) -> Diffusion:
    """A chain that knows the noise in values of N(mean, scale²), at its steps and between them."""
    betas = Linear(last=last)
    log_alpha_bar = torch.cat([torch.ones(1), (1 - betas(1000)).cumprod(0)]).log()

    class Noise(nn.Module):
        def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            place = t * 1000
            low = place.floor().long().clamp(max=999)
            kept = column(torch.lerp(log_alpha_bar[low], log_alpha_bar[low + 1], (place - low).double()).exp().float())
            alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
            image = mean + alpha * scale**2 / (alpha**2 * scale**2 + sigma**2) * (x - alpha * mean)
            return ((x - alpha * image) / sigma)[:, None]

    return Diffusion(spec, noise_schedule=betas, network=lambda *_: Noise())


@pytest.mark.parametrize("last", [0.02, 0.002])
def test_a_chain_has_the_density_of_its_flow(last: float) -> None:
    """Also where the noise at the end is no wider than the data: N(0, 1) stays what it is on every schedule."""
    x = torch.randn(20, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    nats = chain(PLANE, 0.0, 1.0, last).flow_nats(x, None, PerImageGenerator(0).normal, 1e-5)
    known = torch.distributions.Normal(0, 1).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(-nats, known, atol=2e-3, rtol=0)


def test_a_chain_has_probabilities_of_integer_images() -> None:
    """As a field along straight lines has; the first step of the chain adds a little noise to the density."""
    levels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).repeat_interleave(100, 0)
    spec, draws = ImageSpec(1, 1, 1, levels=4), PerImageGenerator(0)
    nats = chain(spec, 0.1, 0.6, 0.02).flow_nats(levels, None, draws.normal, 1e-5)
    other = learned(spec, 0.1, 0.6).flow_nats(levels, None, PerImageGenerator(0).normal, 1e-5)
    torch.testing.assert_close(nats, other, atol=0.02, rtol=0)
