"""The diffusion model's bound: against quadrature, against the entropy of known data, and as a law of tiny images."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from helpers import configuration
from imago.diffusion.losses import VLB, Hybrid, Simple
from imago.diffusion.predictions import X0, Epsilon, V
from imago.diffusion.samplers import DDIM, Ancestral
from imago.diffusion.schedules import Linear, column
from imago.diffusion.variances import FixedLarge, FixedSmall, Learned
from imago.distributions import discretised_normal
from imago.errors import UserError
from imago.images import Batch, ImageSpec
from imago.models.base import sum_of
from imago.models.diffusion import Diffusion
from imago.rng import BatchGenerator, PerImageGenerator
from imago.training.run import build_model


def make(spec: ImageSpec, *overrides: str) -> Diffusion:
    torch.manual_seed(0)
    small = ["model.network.width=8", "model.network.multipliers=[1,2]", "model.network.head=4"]
    if any(o.startswith("model.steps") for o in overrides):
        small.append("model.sampler.steps=null")
    model = build_model(configuration("model=ddpm", "data=digits", *small, *overrides), spec)
    assert isinstance(model, Diffusion)
    return model


class Told(nn.Module):
    """A network that knows the data: the answer is a function of x_t and t."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.answer(x, t) + 0 * self.weight


def images_of(spec: ImageSpec, n: int) -> torch.Tensor:
    return torch.randint(spec.levels, (n, *spec.shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def told(spec: ImageSpec, steps: int, answer: Any, variance: Any = None, **more: Any) -> Diffusion:
    return Diffusion(
        spec,
        network=lambda *_: Told(answer),
        steps=steps,
        noise_schedule=more.get("noise", Linear()),
        prediction=X0(),
        variance=variance or FixedSmall(),
        loss=VLB(),
        sampler=more.get("sampler", Ancestral()),
        optimizer={"net": torch.optim.SGD},
    )


# --- the decoder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 256])
def test_the_decoder_is_normalised_over_levels(levels: int) -> None:
    mean = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.9, 4.0]).double()[:, None]
    log_scale = torch.tensor([-6.0, -3.0, -1.0, 0.5, 2.0]).double()
    total = torch.zeros(6, 5, dtype=torch.float64)
    for level in range(levels):
        log = discretised_normal(mean.expand(6, 5), log_scale.expand(6, 5), torch.full((6, 5), level), levels)
        total += log.exp()
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-9, rtol=0)


def test_the_decoder_is_the_integral_of_the_density_and_has_gradients_far_away() -> None:
    level, levels, mean, scale = 100, 256, -0.3, 0.05
    x = torch.linspace(2 * 99.5 / 255 - 1, 2 * 100.5 / 255 - 1, 10_001, dtype=torch.float64)
    density = torch.exp(-((x - mean) ** 2) / (2 * scale**2)) / (scale * math.sqrt(2 * math.pi))
    expected = float(torch.trapezoid(density, x))
    args = (torch.tensor([mean]), torch.tensor([math.log(scale)]), torch.tensor([level]), levels)
    assert float(discretised_normal(*args).exp()) == pytest.approx(expected, rel=1e-4)
    mean_far = torch.tensor([-1.0, 1.0, 0.2, 1.0], requires_grad=True)
    log_scale = torch.full((4,), -5.0, requires_grad=True)
    found = discretised_normal(mean_far, log_scale, torch.tensor([255, 0, 30, 255]), 256)
    assert bool((found[:3] < -1000).all())
    found.sum().backward()
    for gradient in (mean_far.grad, log_scale.grad):
        assert bool(torch.isfinite(gradient).all())
        assert bool((gradient[:3] != 0).all())


# --- the bound -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_the_bound_and_the_likelihood_of_one_pixel_by_quadrature(variance: str) -> None:
    """T = 2, one binary pixel: p(x_0) and every term of equation 2 by integrals over a grid."""
    spec = ImageSpec(1, 1, 1, levels=2)
    model = make(spec, "model.steps=2", f"model/variance={variance}", "model/loss=vlb").eval()
    for p in model.net.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    schedule = model.noise_schedule
    first, second = (schedule.last_step(torch.tensor([t])) for t in (0.5, 1.0))
    grid = torch.linspace(-9, 9, 3001)
    width = 18 / 3000

    def normal(x: torch.Tensor, mean: torch.Tensor | float, log_variance: torch.Tensor | float) -> torch.Tensor:
        log_variance = torch.as_tensor(log_variance)
        return torch.exp(-0.5 * ((x - mean) ** 2 / log_variance.exp() + log_variance + math.log(2 * math.pi)))

    def back(t: float) -> tuple[torch.Tensor, torch.Tensor]:  # mean and log-variance of the step back from x_t = grid
        with torch.no_grad():
            estimate = model.predict(grid.view(-1, 1, 1, 1), torch.tensor([t]))
        raw = None if estimate.raw_variance is None else estimate.raw_variance.flatten()
        q = second if t == 1 else first
        log_beta = (q.beta if t == 1 or variance == "learned" else q.variance).flatten()
        mean = q.image.flatten() * estimate.image.flatten() + q.noisy.flatten() * grid
        return mean, model.variance.log(log_beta, q.variance.flatten(), raw).expand(len(grid))

    mean_1, log_1 = back(1.0)
    mean_0, log_0 = back(0.5)
    p_2 = normal(grid, 0.0, 0.0)
    p_1 = (normal(grid[:, None], mean_1[None], log_1[None]) * p_2[None]).sum(1) * width
    total, bounds = 0.0, []
    for level in (0, 1):
        x_0 = 2.0 * level - 1
        decoder = discretised_normal(mean_0, 0.5 * log_0, torch.full((len(grid),), level), 2)
        likelihood = float((p_1 * decoder.exp()).sum() * width)
        total += likelihood
        alpha, sigma = schedule(torch.tensor([0.5, 1.0]))
        q_1, q_2 = (normal(grid, alpha[k] * x_0, 2 * sigma[k].log()) for k in (0, 1))
        reconstruction = -float((q_1 * decoder).sum() * width)
        tilde = second.variance.flatten()
        tilde_mean = second.image.flatten() * x_0 + second.noisy.flatten() * grid
        kl = 0.5 * (log_1 - tilde + ((tilde_mean - mean_1) ** 2 + tilde.exp()) * (-log_1).exp() - 1)
        expected = {
            "elbo/regularisation": float((q_2 * (q_2.clamp(min=1e-38) / p_2.clamp(min=1e-38)).log()).sum() * width),
            "elbo/denoising": float((q_2 * kl).sum() * width),
            "elbo/reconstruction": reconstruction,
        }
        images = torch.full((40_000, 1, 1, 1), level, dtype=torch.uint8)
        terms = model.measured_nll_terms(images, generator=PerImageGenerator(level))
        for name, value in expected.items():
            error = float(terms[name].std()) / 200 + 1e-3
            assert float(terms[name].mean()) == pytest.approx(value, abs=4 * error), name
        bounds.append(-sum(expected.values()))
        assert bounds[-1] <= math.log(likelihood) + 1e-6
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("levels", [2, 4])
def test_probabilities_of_all_tiny_images_sum_to_at_most_one(levels: int) -> None:
    """Σ exp(bound) over all 1x2 images after some training, each bound a mean over many draws."""
    spec = ImageSpec(1, 1, 2, levels=levels)
    learned = ("model/variance=learned", "model/loss=vlb")
    model = make(spec, "model.steps=5", "model/prediction=v", *learned)
    every = torch.tensor(list(itertools.product(range(levels), repeat=2)), dtype=torch.uint8).view(-1, 1, 1, 2)
    optimizer = torch.optim.Adam(model.net.parameters(), 3e-3)
    draws = torch.Generator().manual_seed(0)
    for _ in range(100):
        images = every[torch.randint(len(every), (32,), generator=draws)]
        optimizer.zero_grad()
        terms = model.nll_terms(images, None, lambda n, *shape: torch.randn(n, *shape, generator=draws))
        sum_of(terms).mean().backward()
        optimizer.step()
    many = every.repeat_interleave(100, 0)
    bound = model.log_likelihood(many).view(len(every), -1).double().mean(1)
    total = float(bound.exp().sum())
    assert 0.05 < total < 1.01  # it has learned something, and not too much


def known(steps: int, variance: Any, scale: float = 0.25, levels: int = 256) -> Diffusion:
    """The optimal denoiser of 256-level pixels from N(0, scale²); with a learned variance, the exact one."""
    spec = ImageSpec(1, 1, 1, levels)

    def answer(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = model.noise_schedule(column(t))
        total = alpha**2 * scale**2 + sigma**2
        image = alpha * scale**2 / total * x
        if not model.variance.learned:
            return image[:, None]
        q = model.noise_schedule.last_step(t)
        own = torch.where(column(t) * steps > 1.5, q.variance.exp(), 0.0)
        exact = (own + q.image**2 * scale**2 * sigma**2 / total).log()
        v = (exact - q.variance) / torch.where(q.beta == q.variance, 1.0, q.beta - q.variance)
        return torch.stack([image, (2 * v - 1).expand_as(image)], 1)

    model = told(spec, steps, answer, variance).eval()
    return model


def entropy(scale: float = 0.25) -> float:
    logs = discretised_normal(torch.zeros(256), torch.full((256,), math.log(scale)), torch.arange(256), 256).double()
    return float(-(logs.exp() * logs).sum())


def bound_of(model: Diffusion, n: int, scale: float = 0.25) -> tuple[float, float]:
    draws = torch.Generator().manual_seed(2)
    x = (torch.randn(n, 1, 1, 1, generator=draws) * scale + 1) * 127.5
    nats = -model.log_likelihood(x.round().clamp(0, 255).to(torch.uint8))
    return float(nats.mean()), float(nats.std()) / math.sqrt(n)


def test_with_the_optimal_denoiser_and_variance_the_bound_is_the_entropy() -> None:
    """Every step back is then a normal distribution as assumed, with any number of steps."""
    for steps in (10, 60):
        nats, error = bound_of(known(steps, Learned()), 20_000)
        assert nats == pytest.approx(entropy(), abs=4 * error + 0.01)


def test_of_points_the_bound_is_of_a_density() -> None:
    """With the optimal denoiser and variance that of the normal distribution itself, point by point on average."""
    scale, draws = 0.25, torch.Generator().manual_seed(2)
    x = scale * torch.randn(20_000, 1, 1, 1, generator=draws)
    true = -0.5 * (x.flatten() / scale).square() - math.log(scale * math.sqrt(2 * math.pi))
    for steps in (10, 60):
        gap = true - known(steps, Learned(), levels=0).log_likelihood(x)
        assert float(gap.mean()) == pytest.approx(0, abs=4 * float(gap.std()) / math.sqrt(len(x)))
    assert float((true - known(60, FixedLarge(), levels=0).log_likelihood(x)).mean()) > 0.05


def test_with_a_fixed_variance_the_bound_approaches_the_entropy_with_the_number_of_steps() -> None:
    """β̃ is too small near the image, where it is t − 1 against t: its gap closes slowly. β is nearly right there."""
    small = [bound_of(known(steps, FixedSmall()), 1000)[0] - entropy() for steps in (10, 200, 1000)]
    large = [bound_of(known(steps, FixedLarge()), 2000)[0] - entropy() for steps in (10, 200)]
    assert small[0] > 1.5 * small[1] > 1.5 * 1.2 * small[2] > 0
    assert large[0] > 0.3 > 0.12 > large[1] > 0


def test_a_random_part_of_the_terms_is_right_on_average() -> None:
    model = make(ImageSpec(1, 4, 4), "model.steps=30").eval()
    image = torch.randint(256, (1, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    many = image.expand(3000, 1, 4, 4).contiguous()
    every = model.measured_nll_terms(many)["elbo/denoising"]
    assert model.bound_terms == 31
    for count in (1, 4):
        model.bound_steps = count
        assert model.bound_terms == count + 2
        part = model.measured_nll_terms(many, generator=PerImageGenerator(1))["elbo/denoising"]
        error = math.sqrt(float(part.var() + every.var()) / 3000)
        assert float(part.mean()) == pytest.approx(float(every.mean()), abs=4 * error)


# --- training --------------------------------------------------------------------------------------------------------


def learned_with(model: Diffusion, images: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
    """The loss of a batch, with its graph, and what the network was asked for it."""
    asked: dict[str, Any] = {}

    def spy(net: nn.Module, given: Any, answer: torch.Tensor) -> None:
        asked.update(zip(("noisy", "t", "labels"), given, strict=True), answer=answer)
        answer.retain_grad()

    model.net.register_forward_hook(spy)
    (loss,) = model.losses(Batch(images, labels), BatchGenerator(generator=torch.Generator().manual_seed(5)))
    return asked | {"loss": loss.value}


def test_the_full_loss_is_the_bound_on_average() -> None:
    """The loss is the reported bound, in bits per dimension, without L_T.

    The network knows one image that all images are, so that no estimate has to be clipped.
    """
    spec, target = ImageSpec(1, 2, 2), 0.1

    def answer(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, target)[:, None]

    model = told(spec, 5, answer)
    images = torch.full((30_000, 1, 2, 2), 160, dtype=torch.uint8)
    loss = float(learned_with(model, images)["loss"].detach())
    terms = told(spec, 5, answer).measured_nll_terms(images[:3000])
    bits = (terms["elbo/denoising"] + terms["elbo/reconstruction"]).mean() / (4 * math.log(2))
    assert loss == pytest.approx(float(bits), rel=0.05)


def test_training_draws_every_time_and_hides_labels() -> None:
    spec = ImageSpec(1, 2, 2, classes=3)
    model = make(spec, "model.steps=4", "conditional=true", "model.p_uncond=0.25")
    labels = torch.arange(4000) % 3
    asked = learned_with(model, images_of(spec, 4000), labels)
    steps = (4 * asked["t"]).round().long()
    assert torch.bincount(steps, minlength=5).tolist() == pytest.approx([0, 1000, 1000, 1000, 1000], abs=120)
    hidden = asked["labels"] == 3
    assert float(hidden.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(asked["labels"][~hidden], labels[~hidden])
    # Which labels are hidden has nothing to do with t.
    assert float(hidden[steps == 1].float().mean()) == pytest.approx(0.25, abs=0.06)
    with pytest.raises(UserError, match=r"model.p_uncond=0.1: .* conditional=true, or p_uncond=0"):
        make(spec, "model.p_uncond=0.1")


def test_the_hybrid_moves_means_by_the_simple_loss_and_variances_by_the_bound() -> None:
    spec = ImageSpec(1, 2, 2)
    learned = ("model.steps=6", "model/variance=learned")
    images = images_of(spec, 64)
    gradients = {}
    for name in ("hybrid", "vlb"):
        asked = learned_with(make(spec, *learned, f"model/loss={name}"), images)
        asked["loss"].backward()
        gradients[name] = asked["answer"].grad.unbind(1)
    model = make(spec, *learned, "model/loss=hybrid")
    model.weighting = Simple()
    asked = learned_with(model, images)
    asked["loss"].backward()
    mean, variance = gradients["hybrid"]
    torch.testing.assert_close(mean, asked["answer"].grad[:, 0])
    assert not bool(asked["answer"].grad[:, 1].any())
    torch.testing.assert_close(variance, 0.001 * gradients["vlb"][1])
    assert bool((variance != 0).all())


def test_losses() -> None:
    squared, bits = torch.tensor([1.0, 2.0]), torch.tensor([100.0, 300.0])
    assert Simple()(squared, bits).tolist() == [1.0, 2.0]
    assert VLB()(squared, bits).tolist() == [100.0, 300.0]
    assert Hybrid(0.01)(squared, bits).tolist() == [2.0, 5.0]


def test_variances() -> None:
    high, low = torch.tensor(-1.0), torch.tensor(-3.0)
    assert float(FixedLarge().log(high, low, None)) == -1
    assert float(FixedSmall().log(high, low, None)) == -3
    assert Learned().log(high, low, torch.tensor([-1.0, 0.0, 1.0])).tolist() == [-3, -2, -1]


def test_settings_that_do_not_go_together_are_refused() -> None:
    spec = ImageSpec(1, 8, 8, classes=3)
    with pytest.raises(UserError, match=r"model.guidance=1.0: .* conditional=true and model.p_uncond=0.1"):
        make(spec, "model.guidance=1.0")
    with pytest.raises(UserError, match=r"model.variance: .* no gradient from the loss Simple; .*=hybrid or vlb"):
        make(spec, "model/variance=learned")
    with pytest.raises(UserError, match=r"model.sampler.steps=50: the process has model.steps=20"):
        make(spec, "model.steps=20", "model.sampler.steps=50")


# --- guidance and chains ---------------------------------------------------------------------------------------------


def test_guidance_moves_away_from_what_is_said_without_a_label() -> None:
    spec = ImageSpec(1, 6, 6, classes=3)
    options = ("conditional=true", "model.p_uncond=0.2", "model/prediction=x0")
    plain, guided = make(spec, *options).eval(), make(spec, *options, "model.guidance=2.0").eval()
    x, t, labels = 0.1 * torch.randn(4, 1, 6, 6), torch.tensor([0.7]), torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        known, unknown = (plain.predict(x, t, y).image for y in (labels, torch.full((4,), 3)))
        found = guided.predict(x, t, labels, guidance=2.0).image
    assert not torch.allclose(known, unknown)
    torch.testing.assert_close(found, (3 * known - 2 * unknown).clamp(-1, 1), atol=1e-5, rtol=1e-5)
    assert (plain.nfe, guided.nfe) == (50, 100)
    assert guided.sampling == "DDIM, 50 steps, uniform, eta 0, guidance 2"


def test_noise_prediction_guides_the_noise() -> None:
    """Ho & Salimans, eq. 6: (1 + w) ε(x, label) − w ε(x), from which the image follows."""
    spec = ImageSpec(1, 6, 6, classes=2)
    model = make(spec, "conditional=true", "model.p_uncond=0.2", "model.guidance=1.5").eval()
    x, labels, t = 0.1 * torch.randn(3, 1, 6, 6), torch.tensor([0, 1, 1]), torch.tensor([0.3])
    with torch.no_grad():
        noise = 2.5 * model(x, t, labels)[:, 0] - 1.5 * model(x, t, torch.full((3,), 2))[:, 0]
        alpha, sigma = model.noise_schedule.at(0.3)
        found = model.predict(x, t, labels, guidance=1.5).image
        torch.testing.assert_close(found, ((x - sigma * noise) / alpha).clamp(-1, 1))


def test_a_trajectory_ends_with_the_sample() -> None:
    spec = ImageSpec(1, 6, 6, classes=2)
    for options in (
        ("model/sampler=ancestral", "model.steps=30"),
        ("conditional=true", "model.p_uncond=0.2", "model.guidance=1.0"),
    ):
        model = make(spec, *options).eval()
        labels = torch.tensor([1, 0, 1]) if model.conditional else None
        with torch.no_grad():
            states = list(model.trajectory(3, labels, PerImageGenerator(4)))
            noise = PerImageGenerator(4).normal(3, 1, 6, 6)
            first = model.predict(noise, torch.tensor([1.0]), labels, model.guidance).image
        assert [s.t for s in states] == model.sampler.times(model.steps)
        assert torch.equal(states[0].noisy, noise)
        torch.testing.assert_close(states[0].image, first)
        assert torch.equal(states[-1].image, states[-1].noisy)
        images = model.sample(3, generator=PerImageGenerator(4), labels=labels)
        assert torch.equal(((states[-1].noisy + 1) * 127.5).round().to(torch.uint8), images)


def test_an_image_is_the_same_in_any_batch_when_noise_is_drawn_on_the_way() -> None:
    spec = ImageSpec(1, 6, 6, classes=2)
    ancestral = ("model/sampler=ancestral", "model.steps=20")
    for options in (ancestral, (*ancestral, "conditional=true", "model.p_uncond=0.1", "model.guidance=1.0")):
        model = make(spec, *options)
        together = model.sample(4, generator=PerImageGenerator(9)).int()
        alone = [model.sample(1, generator=PerImageGenerator(9, first=k)).int() for k in range(4)]
        assert int((together - torch.cat(alone)).abs().max()) <= 1
        assert model.sampling.startswith("Ancestral, all steps, uniform, variance fixed_small")


@pytest.mark.parametrize("prediction", [Epsilon(), X0(), V()], ids=lambda p: type(p).__name__)
def test_ddim_of_a_perfect_denoiser_finds_the_image(prediction: Any) -> None:
    """If all images are one, every sampler ends there, whatever the network is asked for."""
    spec = ImageSpec(1, 3, 3)
    target = torch.linspace(-1, 1, 9).view(1, 1, 3, 3)

    def answer(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = model.noise_schedule(column(t))
        return prediction.target(target.expand_as(x), (x - alpha * target) / sigma, alpha, sigma)[:, None]

    for sampler in (Ancestral(), DDIM(7)):
        model = told(spec, 100, answer, sampler=sampler)
        model.prediction = prediction
        images = model.sample(2, generator=PerImageGenerator(0))
        assert torch.equal(images, ((target + 1) * 127.5).round().to(torch.uint8).expand(2, 1, 3, 3))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_a_process_of_one_step_has_two_terms_and_learns(variance: str) -> None:
    spec = ImageSpec(1, 2, 2, levels=4)
    more = ("model/loss=hybrid",) if variance == "learned" else ()
    model = make(spec, "model.steps=1", "model/noise_schedule=cosine", f"model/variance={variance}", *more)
    images = images_of(spec, 6)
    terms = model.nll_terms(images, None, lambda *shape: torch.randn(shape))
    assert not bool(terms["elbo/denoising"].any())
    assert bool(torch.isfinite(sum_of(terms)).all())
    assert bool((terms["elbo/reconstruction"] > 0).all())
    assert (model.bound_terms, model.nfe) == (2, 1)
    assert model.sample(3, generator=PerImageGenerator(0)).shape == (3, 1, 2, 2)
    for loss in model.losses(Batch(images, None)):
        loss.value.backward()
    assert bool(model.net.last.weight.grad.any())
