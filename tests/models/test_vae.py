"""The VAE against the evidence of probabilistic PCA (Tipping & Bishop 1999), and the autoencoder's codes."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imago.distributions import Gaussian
from imago.images import ImageSpec, normalize
from imago.models.autoencoder import Autoencoder
from imago.models.vae import VAE, not_huge
from imago.models.variational import gaussian_kl
from imago.rng import PerImageGenerator
from test_laws import Tensors, fit, images_of, make
from test_variational import WithoutDoubles

SPEC = ImageSpec(1, 2, 3, levels=256)
SIGMA = 0.4
# Orthogonal columns: the posterior of probabilistic PCA is then a product of normal distributions, as q(z|x) is.
LOADINGS = torch.tensor([[1.0, 1, 1, 1, 0, 0], [1, -1, 0, 0, 1, -1]]).T * torch.tensor([0.5, 0.9])
MEAN = torch.linspace(-0.3, 0.4, 6)


class LinearDecoder(nn.Module):
    """p(x|z) = N(W z + b, σ²)."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        mean = (z @ LOADINGS.T + MEAN).view(-1, *SPEC.shape)
        return torch.stack([mean, torch.full_like(mean, math.log(SIGMA))], -1)


class LinearEncoder(nn.Module):
    """The posterior of probabilistic PCA, with its mean moved and its scales multiplied."""

    def __init__(self, shift: float, factor: float) -> None:
        super().__init__()
        precision = 1 + LOADINGS.square().sum(0) / SIGMA**2
        self.gain = LOADINGS / SIGMA**2 / precision
        self.log_scale = -0.5 * precision.log() + math.log(factor)
        self.shift = shift

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        mean = (x.flatten(1) - MEAN) @ self.gain + self.shift
        return torch.cat([mean, self.log_scale.expand_as(mean)], 1)


def linear(shift: float = 0.0, factor: float = 1.0) -> VAE:
    def encoder(**_: Any) -> nn.Module:
        return LinearEncoder(shift, factor)

    def decoder(**_: Any) -> nn.Module:
        return LinearDecoder()

    optimizer: Callable[..., Any] = torch.optim.Adam
    density = partial(Gaussian, smallest_scale=1e-12)  # SIGMA is far above this limit: it stays as it is
    return VAE(SPEC, latent=2, encoder=encoder, decoder=decoder, distribution=density, optimizer={"net": optimizer})


def evidence(images: Tensor) -> Tensor:
    """log N(x; b, W Wᵀ + σ² I), and what uniform dequantisation within a level adds to the model's density."""
    covariance = LOADINGS @ LOADINGS.T + SIGMA**2 * torch.eye(6)
    density = torch.distributions.MultivariateNormal(MEAN, covariance)
    width = 2 / 255
    return density.log_prob(normalize(images, 256).flatten(1)) + 6 * (math.log(width) - width**2 / (24 * SIGMA**2))


def test_with_the_true_posterior_every_draw_weighs_the_evidence() -> None:
    model, images = linear(), images_of(SPEC, 20)
    for k in (1, 7):
        found = model.importance_weighted(images, k=k, generator=PerImageGenerator(k))
        torch.testing.assert_close(found, evidence(images), atol=2e-4, rtol=1e-5)
    draws = [model.log_likelihood(images, generator=PerImageGenerator(k)) for k in range(1000)]
    torch.testing.assert_close(torch.stack(draws).mean(0), evidence(images), atol=0.15, rtol=0)


def test_with_another_posterior_the_gap_is_its_divergence() -> None:
    """Equation 1: log p(x) − ELBO = KL(q(z|x) ‖ p(z|x)), and the weighted bound closes it."""
    shift, factor = 0.2, 1.4
    model, images = linear(shift, factor), images_of(SPEC, 20)
    precision = 1 + LOADINGS.square().sum(0) / SIGMA**2
    divergence = (0.5 * (factor**2 + shift**2 * precision - 1) - math.log(factor)).sum()
    draws = [model.log_likelihood(images, generator=PerImageGenerator(k)) for k in range(1000)]
    gap = evidence(images) - torch.stack(draws).mean(0)
    torch.testing.assert_close(gap, divergence.expand(20), atol=0.25, rtol=0)
    tight = model.importance_weighted(images, k=3000, generator=PerImageGenerator(0))
    torch.testing.assert_close(tight, evidence(images), atol=0.1, rtol=0)


def test_however_many_draws_at_a_time_the_estimate_is_the_same() -> None:
    model, images = linear(0.3, 1.5), images_of(SPEC, 4)
    found = [
        model.importance_weighted(images, k=50, generator=PerImageGenerator(0), rows=rows) for rows in (1, 12, 999)
    ]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


@pytest.mark.parametrize("conditional", [False, True])
def test_the_codes_of_an_autoencoder_are_remembered(conditional: bool) -> None:
    spec = ImageSpec(1, 4, 4, classes=2)
    model = make(
        "autoencoder", spec, "model.latent=3", f"conditional={str(conditional).lower()}", "model.memory=1000000"
    )
    assert isinstance(model, Autoencoder)
    means, covariance = model.code_moments()
    assert (means.abs().max(), torch.equal(covariance, torch.eye(3).double())) == (0, True)
    images, labels = images_of(spec, 40), torch.arange(40) % 2
    model.net.requires_grad_(False)
    for parameter in model.net.parameters():
        parameter.grad = None
    model.net["encoder"].first.bias.requires_grad_(True)
    for group in model.configure_optimizers()[0].param_groups:
        group["lr"] = 0.0
    codes = []
    encode = model.net["encoder"].forward
    model.net["encoder"].forward = lambda *a: codes.append(encode(*a)) or codes[-1]  # type: ignore[func-returns-value]
    data = Tensors(images, labels, 40)
    seen = []
    for batch in data.train_dataloader():
        seen.append(batch.labels)
        if len(seen) == 5:
            break
    fit(model, data, 5)
    z, of = torch.cat(codes).detach().double(), torch.cat(seen)
    means, covariance = model.code_moments()
    groups = [of == k for k in range(2)] if conditional else [of >= 0]
    torch.testing.assert_close(means, torch.stack([z[group].mean(0) for group in groups]), atol=1e-3, rtol=0)
    centred = torch.cat([z[group] - z[group].mean(0) for group in groups])
    torch.testing.assert_close(covariance, centred.T @ centred / len(z), atol=1e-3, rtol=0)


def test_an_autoencoder_draws_from_the_fit_or_from_the_standard_normal() -> None:
    spec = ImageSpec(1, 4, 4)
    model = make("autoencoder", spec, "model.latent=2")
    assert isinstance(model, Autoencoder)
    mean, root = torch.tensor([3.0, -1.0]).double(), torch.tensor([[0.5, 0.2], [0.2, 0.9]]).double()
    model.code_sums.copy_(torch.cat([torch.ones(1), mean])[None] * 7)
    model.code_square.copy_(7 * (root @ root + torch.outer(mean, mean)))
    z = model.draw_latents(20_000, PerImageGenerator(0)).double()
    torch.testing.assert_close(z.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(z.T.cov(), root @ root, atol=0.03, rtol=0)
    for found, expected in zip(model.latent_marginals(), (z.mean(0), z.std(0)), strict=True):
        torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0)
    model.fitted = False
    z = model.draw_latents(20_000, PerImageGenerator(0)).double()
    torch.testing.assert_close(z.T.cov(), torch.eye(2).double(), atol=0.03, rtol=0)
    assert [x.tolist() for x in model.latent_marginals()] == [[0, 0], [1, 1]]


def test_an_autoencoder_needs_no_doubles_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its codes are remembered, and drawn from, where float64 is on the CPU only; with the same numbers."""
    spec = ImageSpec(1, 4, 4, classes=2)
    options = ("conditional=true", "model.latent=3", "model.memory=300")
    data, labels = Tensors(images_of(spec, 40), torch.arange(40) % 2, 16), torch.tensor([1, 0])
    plain, apple = (make("autoencoder", spec, *options) for _ in range(2))
    assert isinstance(plain, Autoencoder)
    assert isinstance(apple, Autoencoder)
    fit(plain, data, 20)
    monkeypatch.setattr("imago.models.autoencoder.sampling_dtype", lambda device: torch.float32)
    encode = apple.net["encoder"].forward
    monkeypatch.setattr(apple.net["encoder"], "forward", lambda *a: encode(*a).as_subclass(WithoutDoubles))
    fit(apple, data, 20)
    assert not any(value.dtype == torch.float64 for value in apple.state_dict().values())
    for found, expected in zip(apple.code_moments(), plain.code_moments(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)

    class Noise(PerImageGenerator):
        def normal(self, n: int, *shape: int) -> Tensor:
            return super().normal(n, *shape).as_subclass(WithoutDoubles)

    drawn = apple.draw_latents(2, Noise(0), labels)
    torch.testing.assert_close(drawn, plain.draw_latents(2, PerImageGenerator(0), labels), atol=1e-4, rtol=1e-4)


def test_a_runaway_encoder_leaves_terms_and_gradients_finite() -> None:
    """An encoder that asks for σ = e¹²⁰ would end in NaN; up to e³ its word counts."""
    raw = torch.tensor([[-90.0, 0.0, 2.9, 3.0, 3.1, 120.0]], requires_grad=True)
    log_scale = not_huge(raw)
    assert torch.equal(log_scale[:, :4], raw[:, :4])
    assert 3.09 < log_scale[0, 4].item() < 3.1
    assert log_scale[0, 5].item() == pytest.approx(3 + math.log(118))
    gaussian_kl(torch.full_like(raw, 100.0), log_scale).sum().backward()
    assert bool(torch.isfinite(raw.grad).all())
    assert float(raw.grad[0, 5]) > 0, "it is told to come back"

    spec = ImageSpec(1, 8, 8, levels=256)
    model = make("vae", spec)
    with torch.no_grad():
        for parameter in model.net["encoder"].parameters():
            parameter.mul_(50)
    observed = model.encoder_features(normalize(images_of(spec, 4), 256), None)
    assert observed[1].max().item() > 3
    inference = model.rsample(observed, None, lambda n, *shape: torch.randn(n, *shape))
    (inference.kl.sum() + inference.parameters.square().mean()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
