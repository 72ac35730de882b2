"""Annealed importance sampling over z: against closed forms, quadrature, and itself from the other side."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from helpers import configuration
from imago.data import ImageDataModule
from imago.data.base import fixed_permutation
from imago.data.sources.digits import Digits
from imago.errors import UserError
from imago.evaluation.ais import (
    decoder_log_prob,
    estimated_log_prob,
    hamiltonian_step,
    inverse_temperatures,
    measure_by_ais,
    observed,
)
from imago.images import ImageSpec
from imago.models.base import evaluating
from imago.models.gan import GAN
from imago.models.vae import VAE
from imago.nets.mlp import MLPDecoder, MLPEncoder, MLPGenerator
from imago.rng import PerImageGenerator
from imago.training.run import build_model


class Affine(nn.Module):
    """x = z Wᵀ + b."""

    def __init__(self, spec: ImageSpec, latent: int, classes: int) -> None:
        super().__init__()
        self.shape = spec.shape
        self.layer = nn.Linear(latent, spec.dimensions)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.layer(z).view(len(z), *self.shape)


def affine(spec: ImageSpec, latent: int) -> GAN:
    torch.manual_seed(0)
    return GAN(spec, latent=latent, generator=Affine)


def test_a_linear_gaussian_decoder_has_the_closed_form() -> None:
    """x = W z + b + σ ε is N(b, W Wᵀ + σ² I), and the estimates from below and above lie about it."""
    model, sigma = affine(ImageSpec(4, 1, 1, levels=0), 3), 0.4
    weight, bias = model.generator.layer.weight.detach(), model.generator.layer.bias.detach()
    z = PerImageGenerator(1).normal(12, 3)
    points = observed(model, z, None, sigma, PerImageGenerator(2))
    covariance = weight @ weight.T + sigma**2 * torch.eye(4)
    expected = torch.distributions.MultivariateNormal(bias, covariance).log_prob(points.flatten(1))
    settings = {"chains": 32, "temperatures": 60, "sigma": sigma}
    below, above = estimated_log_prob(model, points, None, PerImageGenerator(3), **settings, posterior=z)  # type: ignore[arg-type]
    assert above is not None
    # Of 32 chains with log w that deviate by about 1; twelve images.
    assert (below - expected).abs().max() < 4 / math.sqrt(32)
    assert (above - expected).abs().max() < 4 / math.sqrt(32)
    assert abs((above - below).mean()) < 4 * math.sqrt(2 / 32 / 12)


def test_the_likelihood_of_integers_is_that_of_quadrature() -> None:
    """Of images of one latent dimension the integral over z is a sum on a grid."""
    spec = ImageSpec(1, 2, 2, levels=4)
    model, sigma = affine(spec, 1), 0.3
    images = torch.tensor([[[[0, 1], [2, 3]]], [[[1, 1], [2, 2]]]], dtype=torch.uint8)
    grid = torch.linspace(-8, 8, 4001)[:, None]
    step, prior = 16 / 4000, -0.5 * grid[:, 0] ** 2 - 0.5 * math.log(2 * math.pi)
    expected = []
    for image in images:
        with torch.no_grad():
            each = decoder_log_prob(model, grid, image[None].expand(len(grid), -1, -1, -1), None, sigma)
        expected.append((prior + each).double().logsumexp(0) + math.log(step))
    below, _ = estimated_log_prob(model, images, None, PerImageGenerator(0), chains=256, temperatures=40, sigma=sigma)
    assert below.double() == pytest.approx(torch.stack(expected), abs=4 * 0.7 / math.sqrt(256))


def test_what_a_model_makes_has_the_probabilities_that_it_is_measured_by() -> None:
    """Of one pixel of four levels the shares of drawn values are the integrals over their levels."""
    model = affine(ImageSpec(1, 1, 1, levels=4), 2)
    z = torch.zeros(1, 2)
    shown = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    with torch.no_grad():
        probabilities = decoder_log_prob(model, z.expand(4, -1), shown, None, 0.8).exp()
        drawn = observed(model, z.expand(20_000, -1), None, 0.8, PerImageGenerator(0)).flatten().long()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert (shares - probabilities).abs().max() < 4 * 0.5 / math.sqrt(len(drawn))


def test_a_step_keeps_its_density() -> None:
    """Chains that are where p(z) p(x|z)^β says stay so: here a normal density, narrower and moved."""
    beta, generator = 0.5, torch.Generator().manual_seed(0)
    rows = 20_000
    mean, deviation = beta * 4 * 1.5 / (1 + beta * 4), 1 / math.sqrt(1 + beta * 4)  # p(x|z) = N(1.5; z, 1/2²)
    z = mean + deviation * torch.randn(rows, 1, generator=generator)
    for _ in range(3):
        normal, uniform = torch.randn(rows, 1, generator=generator), torch.rand(rows, generator=generator)
        z, accepted = hamiltonian_step(
            z, lambda z: -2 * (z[:, 0] - 1.5) ** 2, beta, torch.full((rows,), 0.6), normal, uniform
        )
    assert 0.3 < float(accepted.mean()) < 0.97, "steps this long must be refused at times, or the test tells nothing"
    assert float(z.mean()) == pytest.approx(mean, abs=4 * deviation / math.sqrt(rows))
    assert float(z.std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * rows))


def test_temperatures_rise_from_prior_to_posterior() -> None:
    betas = inverse_temperatures(10)
    assert (betas[0], betas[-1], len(betas)) == (0, 1, 11)
    assert betas == sorted(betas)


@pytest.fixture(scope="module")
def digits() -> ImageDataModule:
    data = ImageDataModule(Digits())
    data.prepare()
    return data


def test_the_estimate_of_a_vae_lies_above_its_bound(digits: ImageDataModule) -> None:
    torch.manual_seed(0)
    encoder, decoder = partial(MLPEncoder, hidden=(8,)), partial(MLPDecoder, hidden=(8,))
    model = VAE(digits.spec, latent=2, conditional=True, encoder=encoder, decoder=decoder)
    found = measure_by_ais(model, digits, "test", averaged=False, images=2, chains=4, temperatures=30)
    assert [m.name for m in found] == ["ais/bpd", "ais/nats", "ais/gap"]
    shown = digits.test.part(torch.from_numpy(fixed_permutation(len(digits.test))[:2]))
    with evaluating(model):
        bound = model.importance_weighted(shown.images, shown.labels, k=2000, generator=PerImageGenerator(0))
    assert found[1].value == pytest.approx(-float(bound.mean()), abs=0.5)
    told = found[1].protocol
    assert (told.relation, told.images, told.estimator) == ("≈", 2, "AIS, 4 chains, 30 temperatures")


def test_a_gan_has_an_estimate_with_a_stated_observation_model(digits: ImageDataModule) -> None:
    torch.manual_seed(0)
    model = GAN(digits.spec, latent=2, generator=partial(MLPGenerator, hidden=(8,)))
    found = measure_by_ais(model, digits, "test", averaged=False, images=2, chains=2, temperatures=10, sigma=0.4)
    assert [m.name for m in found] == ["bpd", "nats", "ais/gap"]
    assert "normal about G(z) with deviation 0.4" in str(found[0].protocol.estimator)
    again = measure_by_ais(model, digits, "test", averaged=False, images=2, chains=2, temperatures=10, sigma=0.4)
    assert [m.value for m in again] == [m.value for m in found]
    assert found[1].value == pytest.approx(found[0].value * 64 * math.log(2), rel=1e-5)


def test_mistakes(digits: ImageDataModule) -> None:
    model = build_model(configuration("model=made", "data=digits"), digits.spec)
    with pytest.raises(UserError, match=r"^ais=true: MADE has no decoder .* are .*gan.*vae"):
        measure_by_ais(model, digits, "test", averaged=False)
    with pytest.raises(UserError, match=r"^ais_sigma=0.1: VAE has a p\(x\|z\) of its own"):
        measure_by_ais(VAE(digits.spec), digits, "test", averaged=False, sigma=0.1)
