"""What only the ladder of latents promises; the laws of all models are in test_laws.py."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from imago.errors import UserError
from imago.images import ImageSpec, normalize
from imago.models.base import Normal, evaluating
from imago.models.hvae import HierarchicalVAE, bounded
from imago.rng import PerImageGenerator
from test_laws import Tensors, fit, images_of, make

BINARY = ImageSpec(1, 2, 2, levels=2, classes=2)
SMALL = ("model.width=8", "model.widest=16", "model.zdim=2", "model.blocks=[2,1]")


def hvae(spec: ImageSpec, *overrides: str) -> HierarchicalVAE:
    model = make("hvae", spec, *SMALL, *overrides)
    assert isinstance(model, HierarchicalVAE)
    return model


def stirred(spec: ImageSpec, *overrides: str) -> HierarchicalVAE:
    """Weights away from their small beginnings, so that every group's prior and posterior differ."""
    model = hvae(spec, *overrides)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def normal(seed: int) -> Normal:
    generator = torch.Generator().manual_seed(seed)
    return lambda n, *shape: torch.randn(n, *shape, generator=generator)


def all_images() -> Tensor:
    """The 16 binary images of 2x2 pixels."""
    return torch.tensor(list(itertools.product([0, 1], repeat=4)), dtype=torch.uint8).view(16, 1, 2, 2)


def test_z_holds_the_groups_of_every_map() -> None:
    spec = ImageSpec(1, 28, 20, levels=2)  # maps of 7x5, 14x10 and 28x20
    model = hvae(spec, "model.blocks=[2,1]")
    assert model.latent == 2 * (2 * 35 + 140)
    images = images_of(spec, 3)
    z = model.encode(images)
    assert z.shape == (3, model.latent)
    assert model.decode(z).shape == images.shape
    assert model.decode(z).abs().max() <= 1
    assert hvae(spec, "model.blocks=[2,1,1,5,5]").latent == 2 * (2 * 35 + 140 + 560)
    with pytest.raises(UserError, match=r"blocks=\[0, 0, 3\]: no latents .* \[\(1, 1\), \(2, 2\)\]"):
        hvae(BINARY, "model.blocks=[0,0,3]")


def test_samples_are_decoded_draws_of_the_prior() -> None:
    model = stirred(ImageSpec(1, 7, 5, levels=2), "model.observation_noise=false")
    z = model.draw_latents(6, PerImageGenerator(3))
    with evaluating(model):
        decoded = model.decode(z)
    assert torch.equal(model.sample(6, generator=PerImageGenerator(3)), ((decoded + 1) / 2).round().to(torch.uint8))


def test_inference_and_decoding_are_one_path() -> None:
    """The parameters found for the z drawn by the posterior are those that decoding this z gives."""
    model = stirred(ImageSpec(3, 7, 5, levels=4))
    images = images_of(model.spec, 4)
    observed = model.encoder_features(normalize(images, 4), None)
    silent = model.rsample(observed, None, lambda n, *shape: torch.zeros(n, *shape))
    assert torch.allclose(silent.parameters, model.parameters_at(model.encode(images), None), atol=1e-5)


def test_the_closed_form_is_the_mean_of_the_log_ratio() -> None:
    """E_q[log q(z|x) − log p(z)] = E_q[Σ KL_l]; the difference has mean 0, within four standard errors."""
    model = stirred(BINARY)
    observed = model.encoder_features(normalize(all_images()[5:6], 2), None)
    draw = model.rsample([t.expand(20000, -1, -1, -1) for t in observed], None, normal(1))
    assert draw.kl.shape == (20000, model.latent)
    assert (draw.kl >= -1e-6).all()
    difference = draw.log_ratio - draw.kl.sum(1)
    assert draw.kl.sum(1).mean() > 0.1
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(len(difference))


def test_log_ratio_is_that_of_the_unwhitened_densities() -> None:
    """With one group, μ and σ of prior and posterior written out: log N(z; m, s²) − log N(z; μ, σ²)."""
    model = stirred(BINARY, "model.blocks=[1]")
    top_down = model.net["top_down"]
    images = all_images()
    (features,) = model.encoder_features(normalize(images, 2), None)
    noise = normal(2)(16, model.latent)
    h = top_down.places[0].expand(16, -1, -1, -1)
    block = top_down.blocks[0][0]
    mean, raw, _ = block.prior(h).split([2, 2, h.shape[1]], 1)
    delta, factor = block.posterior(torch.cat([h, features], 1)).chunk(2, 1)
    prior = torch.distributions.Normal(mean, torch.exp(6 * torch.tanh(raw / 6)))
    posterior = torch.distributions.Normal(
        mean + prior.scale * delta, prior.scale * torch.exp(6 * torch.tanh(factor / 6))
    )
    z = posterior.mean + posterior.scale * noise.view(16, 2, 1, 1)
    draw = model.rsample([features], None, lambda n, *shape: noise)
    ratio = (posterior.log_prob(z) - prior.log_prob(z)).flatten(1).sum(1)
    assert torch.allclose(draw.log_ratio, ratio, atol=1e-4)
    divergence = torch.distributions.kl_divergence(posterior, prior).flatten(1)
    assert torch.allclose(draw.kl, divergence, atol=1e-4)


def test_one_latent_is_below_the_evidence_by_quadrature() -> None:
    """One group of one number is a VAE: p(x) = ∫ p(z) p(x|z) dz on a grid; the bounds of all images are below it."""
    model = stirred(BINARY, "model.blocks=[1]", "model.zdim=1")
    assert model.latent == 1
    grid = torch.linspace(-8, 8, 2001)
    images = all_images()
    with torch.no_grad():
        parameters = model.parameters_at(grid[:, None], None)
        given = model.distribution.log_prob(
            parameters[:, None].expand(-1, 16, -1, -1, -1, -1), images.expand(2001, 16, 1, 2, 2)
        )
        given = given.flatten(2).sum(2)
        density = (-0.5 * grid.square()).exp() / math.sqrt(2 * math.pi)
        evidence = (density[:, None] * given.exp()).sum(0) * (grid[1] - grid[0])
    assert evidence.sum() == pytest.approx(1, abs=1e-4)
    many = images.repeat_interleave(2000, 0)
    elbo = model.log_likelihood(many, generator=PerImageGenerator(1)).view(16, 2000).mean(1)
    weighted = model.importance_weighted(images, k=2000, generator=PerImageGenerator(2))
    assert (elbo < evidence.log() + 0.02).all()
    assert (elbo < evidence.log()).float().mean() > 0.8
    assert torch.allclose(weighted, evidence.log(), atol=0.1)


def test_bounds_of_all_images_sum_to_less_than_one() -> None:
    model = stirred(BINARY)
    images = all_images()
    elbo = model.log_likelihood(images.repeat_interleave(500, 0), generator=PerImageGenerator(1)).view(16, 500).mean(1)
    weighted = model.importance_weighted(images, k=500, generator=PerImageGenerator(2))
    assert elbo.exp().sum() < 1
    assert weighted.exp().sum() == pytest.approx(1, abs=0.05)
    assert weighted.mean() > elbo.mean()


def test_a_long_gradient_is_not_followed() -> None:
    data = Tensors(images_of(BINARY, 8), torch.arange(8) % 2, 8)
    for skip, skipped in (("1e-9", 1.0), ("1e9", 0.0)):
        model = hvae(BINARY, f"model.gradient_skip={skip}")
        before = [p.detach().clone() for p in model.parameters()]
        fit(model, data, 3)
        assert model.mean_logs()["skipped/net"] == skipped
        assert all(map(torch.equal, before, model.parameters())) is bool(skipped)


def test_by_default_first_steps_are_taken_and_explosions_are_not() -> None:
    """Flat black images and a few batches: the longest gradients come first. A hundred thousand times them explode."""
    images = images_of(ImageSpec(1, 8, 8), 32)
    images[:, :, :4] = 0
    for factor, skipped in ((1.0, 0.0), (1e5, 1.0)):
        model = hvae(ImageSpec(1, 8, 8))
        for parameter in model.net.parameters():
            parameter.register_hook(lambda gradient, factor=factor: factor * gradient)
        fit(model, Tensors(images, torch.zeros(32, dtype=torch.long), 8), 20)
        assert model.mean_logs()["skipped/net"] == skipped


def test_a_gradient_that_is_no_number_is_not_followed_and_does_not_stop_the_run() -> None:
    model = hvae(BINARY, "model.gradient_skip=1e6")
    spoiled = next(model.net.parameters())
    spoiled.register_hook(lambda gradient: gradient * math.nan)
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, Tensors(images_of(BINARY, 8), torch.arange(8) % 2, 8), 2)
    records = model.mean_logs()
    assert records["skipped/net"] == 1.0
    assert all(math.isfinite(value) for value in records.values())  # the log stops a run at a number that is none
    assert all(map(torch.equal, before, model.parameters()))


def test_labels_reach_samples_and_posteriors() -> None:
    model = stirred(BINARY, "conditional=true")
    zeros, ones = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)
    z = model.draw_latents(4, PerImageGenerator(0))
    assert not torch.allclose(model.decode(z, zeros), model.decode(z, ones))
    features = [model.encoder_features(normalize(all_images()[:4], 2), labels)[0] for labels in (zeros, ones)]
    assert not torch.allclose(*features)


def test_scales_are_bounded_whatever_the_network_says() -> None:
    raw = torch.tensor([0.0, 0.1, -0.1, 1e30, -1e30]).view(5, 1, 1, 1).requires_grad_()
    log_scale = bounded(raw)
    log_scale.sum().backward()
    assert log_scale.flatten().tolist() == pytest.approx([0, 0.1, -0.1, 6, -6], abs=1e-4)
    assert torch.isfinite(raw.grad).all()


def test_training_on_256_levels_stays_finite() -> None:
    """Noise images and a high learning rate."""
    spec = ImageSpec(1, 4, 4)
    model = hvae(spec, "model.optimizer.net.lr=0.003")
    fit(model, Tensors(images_of(spec, 32), torch.zeros(32, dtype=torch.long), 8), 100)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert math.isfinite(model.mean_logs()["nats"])


def test_the_divergence_is_float32_under_bfloat16() -> None:
    model = stirred(BINARY)
    images = all_images()
    with torch.autocast("cpu", torch.bfloat16):
        draw = model.rsample(model.encoder_features(normalize(images, 2), None), None, normal(3))
    assert draw.kl.dtype == draw.log_ratio.dtype == torch.float32
