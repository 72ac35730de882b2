"""What only flows promise: a change of variables that is one, densities that integrate to one, bounds of integers.

The laws of all models are in test_laws.py, those of single layers in tests/nets/test_invertible.py.
"""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import TINY
from imago.config import choices_of
from imago.data.module import ImageDataModule
from imago.data.sources.digits import Digits
from imago.errors import UserError
from imago.evaluation.likelihood import measure_likelihood
from imago.images import Batch, ImageSpec
from imago.models.base import sum_of
from imago.models.flow import NormalizingFlow
from imago.models.glow import Glow
from imago.models.maf import MAF, MaskedAffine
from imago.models.realnvp import RealNVP
from imago.nets.dequantization import Uniform, Variational
from imago.nets.invertible import AffineCoupling, MixtureCoupling, Permute, Squeeze, log_normal
from imago.rng import BatchGenerator, PerImageGenerator
from test_laws import images_of, make

FLOWS = choices_of("model", NormalizingFlow)
BINARY = ImageSpec(1, 2, 2, levels=2, classes=2)
POINTS = ImageSpec(2, 1, 1, levels=0, classes=2)


def flow(name: str, spec: ImageSpec, *overrides: str) -> NormalizingFlow:
    model = make(name, spec, *TINY[name], *overrides)
    assert isinstance(model, NormalizingFlow)
    return model


def stirred(name: str, spec: ImageSpec, *overrides: str, scale: float = 0.2) -> NormalizingFlow:
    """Weights away from their beginnings, so that no layer is nearly the identity."""
    model = flow(name, spec, *overrides)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def trained(model: NormalizingFlow, images: Tensor, labels: Tensor | None, updates: int) -> NormalizingFlow:
    torch.manual_seed(0)
    [optimizer] = model.configure_optimizers()
    for _ in range(updates):
        for loss in model.losses(Batch(images, labels)):
            optimizer.zero_grad()
            loss.value.backward()
            optimizer.step()
    return model


def every_image(spec: ImageSpec) -> Tensor:
    values = list(itertools.product(range(spec.levels), repeat=spec.dimensions))
    return torch.tensor(values, dtype=torch.uint8).view(-1, *spec.shape)


# --- the map ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 6), (1, 5, 3), (5, 1, 1)])
@pytest.mark.parametrize(
    ("name", "overrides"),
    [*((name, []) for name in FLOWS), *((name, ["model.components=3"]) for name in ("glow", "realnvp"))],
)
def test_the_flow_is_a_bijection_whose_determinant_it_knows(
    name: str, overrides: list[str], shape: tuple[int, int, int]
) -> None:
    model = stirred(name, ImageSpec(*shape, classes=2), "conditional=true", *overrides, scale=0.1).double()
    assert any(isinstance(layer, MixtureCoupling) for layer in model.modules()) == bool(overrides)
    y = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1)).double()
    labels = torch.tensor([1])
    z, log_det = model.flow(y, labels)
    assert z.shape == (1, math.prod(shape))
    torch.testing.assert_close(model.flow.inverse(z, labels), y, atol=1e-8, rtol=0)
    jacobian = torch.autograd.functional.jacobian(lambda y: model.flow(y, labels)[0].flatten(), y)
    expected = torch.linalg.slogdet(jacobian.reshape(y.numel(), y.numel())).logabsdet
    torch.testing.assert_close(log_det.reshape(()), expected, atol=1e-8, rtol=0)
    other, _ = model.flow(y, 1 - labels)
    assert (other - z).abs().max() > 1e-3


def test_a_masked_map_keeps_the_order() -> None:
    """∂z_i/∂x_j = 0 for j > i, in the first map; in the second, which goes the other way round, for j < i."""
    model = stirred("maf", ImageSpec(1, 3, 2)).double()
    assert isinstance(model, MAF)
    x = torch.randn(1, 6).double()
    maps = [layer for layer in model.flow.modules() if isinstance(layer, MaskedAffine)]
    jacobian = torch.autograd.functional.jacobian(lambda x: maps[0](x)[0], x).view(6, 6)
    assert torch.equal(jacobian, jacobian.tril())
    assert (jacobian.tril(-1).abs().sum() > 0).item()
    assert model.nfe == 2 * 6


def test_couplings_of_realnvp_change_one_colour_of_the_checkerboard() -> None:
    model = stirred("realnvp", ImageSpec(1, 4, 4), "model.levels=1").double()
    parts = [layer for layer in model.flow.modules() if isinstance(layer, Squeeze | Permute | AffineCoupling)]
    squeeze, permute, coupling = parts[:3]
    x = torch.randn(1, 1, 4, 4).double()
    y = x
    for layer in (squeeze, permute, coupling):
        y = layer(y)[0]
    y = squeeze.inverse(permute.inverse(y))
    changed = (y - x)[0, 0].abs() > 1e-6
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 1
    assert torch.equal(changed, board)


# --- points -----------------------------------------------------------------------------------------------------------


def moons(n: int) -> tuple[Tensor, Tensor]:
    """Two half circles with noise of 0.1, and which of them each point is of."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    angle = math.pi * torch.rand(n, generator=generator)
    x = torch.where(labels == 0, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(labels == 0, angle.sin(), 0.5 - angle.sin()) - 0.25
    noise = 0.1 * torch.randn(n, 2, generator=generator)
    return (torch.stack([x, y], 1) + noise).view(n, 2, 1, 1), labels


def on_a_grid(model: NormalizingFlow, side: int = 121, reach: float = 6.0) -> tuple[Tensor, Tensor]:
    """Density (side, side) on a grid, and the places of its rows and columns."""
    at = torch.linspace(-reach, reach, side)
    grid = torch.cartesian_prod(at, at).view(-1, 2, 1, 1)
    return model.log_likelihood(grid).double().exp().view(side, side), at


@pytest.mark.parametrize("name", FLOWS)
def test_densities_of_points_integrate_to_one_and_samples_follow_them(name: str) -> None:
    """By quadrature on a grid of 0.1; 4,000 samples in 12 x 12 cells against the density's integrals over them (χ²)."""
    points, _ = moons(256)
    model = trained(flow(name, POINTS), points, None, 80)
    before = -trained(flow(name, POINTS), points, None, 1).log_likelihood(points).mean()
    assert -model.log_likelihood(points).mean() < before - 0.02
    density, at = on_a_grid(model)
    step = float(at[1] - at[0])
    assert float(density.sum()) * step**2 == pytest.approx(1, abs=0.01)
    samples = model.sample(4000).view(-1, 2)
    assert samples.dtype == torch.float32
    cells = density[:-1, :-1].view(12, 10, 12, 10).sum((1, 3)) * step**2
    at_cell = ((samples.double() + 6 + step / 2) / (10 * step)).floor().long().clamp(0, 11)
    counts = torch.zeros(12, 12).index_put((at_cell[:, 0], at_cell[:, 1]), torch.ones(()), accumulate=True)
    expected = 4000 * cells
    often = expected > 5
    chi_square = ((counts - expected)[often].square() / expected[often]).sum()
    assert float(chi_square) < 2 * int(often.sum())  # the number of cells, give or take its square root


def test_what_is_known_of_points_is_exact() -> None:
    assert flow("maf", POINTS).likelihood == "exact"
    assert flow("maf", BINARY).likelihood == "lower_bound"


def test_density_of_an_untrained_map_is_the_change_of_variables_by_hand() -> None:
    """MAF with one layer of one coordinate is an affine map, and its density normal."""
    model = stirred("maf", ImageSpec(1, 1, 1, levels=0), "model.layers=1")
    x = torch.tensor([-1.0, 0.2, 3.0]).view(3, 1, 1, 1)
    z, _ = model.flow(x)
    slope = (z[1] - z[0]) / (x[1] - x[0]).flatten()
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z.flatten()) + slope.abs().log()
    torch.testing.assert_close(model.log_likelihood(x), expected.detach(), atol=1e-5, rtol=0)
    for name in ("glow", "realnvp"):
        with pytest.raises(UserError, match=r"couples values, and these have one .*choose model=maf"):
            flow(name, ImageSpec(1, 1, 1, levels=0))


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
@pytest.mark.parametrize("name", FLOWS)
def test_the_bound_of_all_images_sums_to_less_than_one(name: str, dequantization: str) -> None:
    """The 16 binary images of 2x2. log P(x) is the density's integral over a cube, by 2,000 points spread evenly.

    Over all images P sums to the share of samples that lie in a cube before they are clipped, exp(bound) to less.
    """
    images = every_image(BINARY)
    model = trained(flow(name, BINARY, f"model/dequantization={dequantization}"), images[[0, 5, 14]], None, 60)
    many = images.repeat_interleave(300, 0)
    bound = model.log_likelihood(many, generator=PerImageGenerator(1)).view(16, 300).mean(1)
    model.net["dequantization"] = Uniform(BINARY)
    exact = model.importance_weighted(images, k=2000, generator=PerImageGenerator(2), rows=8192).double()
    inside = float(exact.exp().sum())
    assert (bound < exact + 0.02).all()
    assert float(bound.double().exp().sum()) < inside
    with torch.no_grad():
        y = model.flow.inverse(PerImageGenerator(3).normal(8000, 4))
    share = float(((y > -0.5) & (y < 0.5)).flatten(1).all(1).float().mean())
    assert inside == pytest.approx(share, abs=0.04)
    assert exact[[0, 5, 14]].mean() > exact.mean() + 0.5  # what was trained on is likelier


def test_rounding_gains_nothing() -> None:
    """q that shrinks to what single precision takes for one number would let p be as dense there as it likes."""
    spec = ImageSpec(1, 4, 4)
    images = torch.zeros(64, *spec.shape, dtype=torch.uint8)  # the same every time: the narrowest p and q there are
    model = trained(flow("realnvp", spec, "model/dequantization=variational", "model.components=2"), images, None, 200)
    noise = torch.randn(64, *spec.shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        single = sum_of(model.nll_terms(images, None, lambda *_: noise.float())).double()
        double = sum_of(model.double().nll_terms(images, None, lambda *_: noise))
    assert double.mean() < 16 * math.log(256) / 4, "p has become narrow"
    torch.testing.assert_close(single, double, atol=1e-2, rtol=0)


def test_noise_that_is_learned_has_the_density_that_it_says() -> None:
    """log q(u|x) = log N(ε) − log|det ∂u/∂ε|, by autograd's Jacobian in float64."""
    for spec in (ImageSpec(1, 4, 2, levels=4), ImageSpec(3, 1, 1), ImageSpec(1, 1, 1)):
        torch.manual_seed(0)
        noise = Variational(spec, width=4)
        with torch.no_grad():
            for parameter in noise.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
        noise = noise.double()
        images, normal = images_of(spec, 1), torch.randn(1, *spec.shape).double()
        u, log_q = noise(images, lambda n, *shape, drawn=normal: drawn)
        jacobian = torch.autograd.functional.jacobian(
            lambda e, noise=noise, images=images: noise(images, lambda n, *shape: e)[0].flatten(), normal
        )
        slope = torch.linalg.slogdet(jacobian.reshape(u.numel(), u.numel())).logabsdet
        torch.testing.assert_close(log_q.reshape(()), log_normal(normal).reshape(()) - slope, atol=1e-9, rtol=0)
        assert ((u > 0) & (u < 1)).all()


def test_learned_noise_starts_as_uniform_noise_nearly() -> None:
    model = flow("glow", ImageSpec(1, 4, 4), "model/dequantization=variational")
    images = images_of(model.spec, 200)
    terms = model.measured_nll_terms(images)
    assert set(terms) == {"elbo/density", "elbo/dequantization"}
    assert 0 <= float(terms["elbo/dequantization"].mean()) / 16 < 0.1  # nats of a value; uniform noise has 0


def test_a_measurement_says_how_it_was_dequantised() -> None:
    data = ImageDataModule(Digits(), binarize="threshold")
    data.prepare()
    for name in ("uniform", "variational"):
        model = flow("realnvp", data.spec, f"model/dequantization={name}")
        found = {m.name: m for m in measure_likelihood(model, data, "test", averaged=False, images=20, importance=4)}
        assert {m.protocol.dequantization for m in found.values()} == {name}
        assert found["iw/nats"].protocol.draws == 4
        assert found["nats"].protocol.likelihood == "lower_bound"


def test_there_is_nothing_to_draw_for_points() -> None:
    model = flow("maf", POINTS)
    with pytest.raises(UserError, match="points under a MAF is exact; leave importance=null"):
        model.importance_weighted(moons(4)[0], k=3, generator=PerImageGenerator(0))


@pytest.mark.parametrize("kind", [Glow, RealNVP, MAF])
def test_the_first_batch_alone_sets_actnorm(kind: Any, tmp_path: Path) -> None:
    """A continued training does not set it anew: the counters that a checkpoint keeps say that it is begun."""
    spec = ImageSpec(1, 4, 4)
    images = images_of(spec, 16)
    model = kind(spec)
    norms = [m for m in model.modules() if type(m).__name__ == "ActNorm"]
    torch.manual_seed(0)
    for _ in model.losses(Batch(images)):
        pass
    first = [norm.log_scale.clone() for norm in norms]
    assert all((scale != 0).all() for scale in first)
    for _ in model.losses(Batch(images // 2)):
        pass
    assert all(map(torch.equal, first, (norm.log_scale for norm in norms)))
    again = kind(spec)
    again.load_state_dict(model.state_dict())
    again.state = model.state
    for _ in again.losses(Batch(images // 2), BatchGenerator()):
        pass
    norms = [m for m in again.modules() if type(m).__name__ == "ActNorm"]
    assert all(map(torch.equal, first, (norm.log_scale for norm in norms)))
