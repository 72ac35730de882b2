"""What energy models promise: chains with the distribution of their energy, and an exact likelihood of points."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imago.data import toy2d_data
from imago.errors import UserError
from imago.evaluation import measure_likelihood
from imago.images import Batch, ImageSpec
from imago.models.base import knows_likelihood
from imago.models.ebm import EBM, MLPEnergy
from imago.rng import BatchGenerator, PerImageGenerator

LINE, PLANE = ImageSpec(1, 1, 1, levels=0), ImageSpec(2, 1, 1, levels=0)


class Known(nn.Module):
    """f with which p is a mixture of two normal distributions on the line, of the given weights, or one of them."""

    weights, means, deviation = (0.3, 0.7), (-1.0, 1.0), 0.6

    def __init__(self, reference: float) -> None:
        super().__init__()
        self.reference = reference
        self.parameter = nn.Parameter(torch.zeros(()))

    def log_density(self, x: Tensor) -> Tensor:
        z = (x - torch.tensor(self.means)) / self.deviation
        each = torch.tensor(self.weights).log() - z.square() / 2 - math.log(self.deviation * math.sqrt(2 * math.pi))
        return each.logsumexp(1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return -self.log_density(x)[:, None] - x.square() / (2 * self.reference**2)


class Normal(Known):
    weights, means, deviation = (1.0,), (0.0,), 0.6


def known(kind: type[Known] = Known, **settings: Any) -> EBM:
    torch.manual_seed(0)
    chains = {"noise": None, "buffer": 20_000} | settings
    return EBM(LINE, energy=lambda spec, outputs, classes: kind(2.0), **chains)


def moments(x: Tensor) -> tuple[float, float]:
    return float(x.mean()), float(x.var())


@pytest.mark.parametrize(("metropolis", "step_size"), [(True, 0.5), (False, 0.02)])
def test_chains_have_the_distribution_of_the_energy(metropolis: bool, step_size: float) -> None:
    """A mixture's mean, variance and weights: by large steps that may be refused, or nearly so by small ones."""
    model = known(metropolis=metropolis, step_size=step_size, sampling_steps=100 if metropolis else 400)
    n = 20_000
    x = model.sample(n, generator=PerImageGenerator(1)).flatten()
    mean, deviation, right = 0.4, Known.deviation, 0.7
    variance = deviation**2 + 1 - mean**2
    share = right * normal_cdf(1 / deviation) + (1 - right) * normal_cdf(-1 / deviation)
    fourth = float((x - x.mean()).pow(4).mean())
    found = moments(x)
    assert found[0] == pytest.approx(mean, abs=4 * math.sqrt(variance / n))
    assert found[1] == pytest.approx(variance, abs=4 * math.sqrt((fourth - variance**2) / n) + 0.02)
    assert float((x > 0).float().mean()) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))


def normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("metropolis", [False, True])
def test_large_steps_widen_a_normal_distribution_as_told_and_adjusted_ones_do_not(metropolis: bool) -> None:
    v, eta, n = Normal.deviation**2, 0.3, 20_000
    model = known(Normal, step_size=eta, metropolis=metropolis, sampling_steps=40)
    expected = v if metropolis else v / (1 - eta / (2 * v))
    _, variance = moments(model.sample(n, generator=PerImageGenerator(0)))
    assert variance == pytest.approx(expected, rel=4 * math.sqrt(2 / n))


def test_an_adjusted_step_is_in_detailed_balance() -> None:
    """From states of the distribution as many go from one region to another as come back, for any noise.

    An unadjusted step does not keep it, and one weighed without the density of its way back would not.
    """
    n, generator = 400_000, torch.Generator().manual_seed(0)
    which = torch.rand(n, generator=generator) < Known.weights[1]
    x = torch.where(which, 1.0, -1.0) + Known.deviation * torch.randn(n, generator=generator)

    def flow(model: EBM) -> Tensor:
        rng = BatchGenerator(generator=torch.Generator().manual_seed(1))
        y = model.langevin(x.view(n, 1, 1, 1), 1, rng.normal, rng.uniform).flatten()
        regions = [torch.bucketize(values, torch.tensor([-0.5, 0.8])) for values in (x, y)]
        return torch.bincount(3 * regions[0] + regions[1], minlength=9).view(3, 3).double()

    for noise in (None, 1.0):
        flows = flow(known(step_size=0.3, noise=noise, metropolis=True))
        excess = (flows - flows.T).abs() / (flows + flows.T).sqrt().clamp(min=1)
        assert (flows + flows.T)[[0, 1], [1, 2]].min() > 400
        assert excess.max() < 4
        flows = flow(known(step_size=0.3, noise=noise))
        assert ((flows - flows.T).abs() / (flows + flows.T).sqrt().clamp(min=1)).max() > 10


def test_log_z_is_that_of_a_known_energy_and_has_its_gradient() -> None:
    """Known's density integrates to one; and adding a constant to f changes nothing."""
    model = known()
    x = torch.linspace(-3, 3, 50).view(-1, 1, 1, 1)
    torch.testing.assert_close(model.log_prob(x, None), model.net.log_density(x.flatten(1)), rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)
    plane = EBM(PLANE, energy=partial(MLPEnergy, hidden=[8]))
    points = torch.randn(5, 2, 1, 1)
    plane.log_prob(points, None).sum().backward()
    last = plane.net.layers[-1]
    assert float(last.bias.grad) == pytest.approx(0, abs=1e-5)
    assert last.weight.grad.abs().max() > 1e-2


def test_contrastive_divergence_has_the_gradient_of_the_likelihood() -> None:
    """With many chains that have gone on for long, in the plane, at random weights."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"steps": 40, "step_size": 0.5, "noise": None, "regularizer": 0.0, "fresh": 0.0}
    model = EBM(PLANE, energy=partial(MLPEnergy, hidden=[8]), metropolis=True, buffer=20_000, **settings)
    for parameter in model.net.parameters():
        nn.init.normal_(parameter, std=0.5)
    points = torch.randn(20_000, 2, 1, 1) * torch.tensor([1.0, 0.3]).view(2, 1, 1) + 1
    weights = list(model.net.parameters())
    exact = torch.autograd.grad(-model.log_prob(points, None).mean(), weights)
    (loss,) = model.losses(Batch(points))
    found = torch.autograd.grad(loss.value, weights)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.1)
    assert max(float(part.abs().max()) for part in exact) > 0.5


def test_points_in_the_plane_are_learned() -> None:
    """KL(p_data ‖ p_model) falls to a fraction, in 300 updates; the number is exact."""
    data = toy2d_data(shape="two_moons")
    data.prepare()
    torch.manual_seed(0)
    chains: dict[str, Any] = {"steps": 5, "step_size": 0.05, "noise": None, "metropolis": True, "buffer": 1000}
    model = EBM(data.spec, energy=partial(MLPEnergy, hidden=[32, 32]), regularizer=0.003, **chains)

    def kl() -> float:
        measured = {m.name: m for m in measure_likelihood(model, data, "val", averaged=False, images=2000)}
        assert measured["kl"].protocol.relation == "="
        return measured["kl"].value

    untrained = kl()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for k in range(300):
        (loss,) = model.losses(Batch(data.train.images[100 * k : 100 * (k + 1)]))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert kl() < untrained / 2


def test_chains_take_turns_and_some_begin_anew() -> None:
    model = known(Normal, steps=1, step_size=1e-12, noise=0.0, buffer=5, fresh=0.0)
    model.chain[:] = torch.arange(5.0).view(5, 1, 1, 1)
    rng = BatchGenerator()
    assert [model.advance(2, rng).flatten().round().tolist() for _ in range(3)] == [[0, 1], [2, 3], [4, 0]]
    model.fresh = 1.0
    drawn = model.advance(3, rng).flatten()
    assert not torch.isin(drawn.round(), torch.arange(5.0)).all() or drawn.frac().abs().max() > 1e-3
    torch.testing.assert_close(model.chain.flatten()[1:4], drawn)


def test_what_goes_on_is_in_the_checkpoint() -> None:
    """Chains, and whose turn it is: a model with the state of another goes on as that one does."""
    spec, images = ImageSpec(1, 4, 4), torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(EBM(spec, buffer=7, steps=2))
    list(models[0].losses(Batch(images)))
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        rng = BatchGenerator(generator=torch.Generator().manual_seed(0))
        for _ in range(2):
            list(model.losses(Batch(images), rng))
    assert torch.equal(models[0].chain, models[1].chain)
    assert int(models[1].visited) == 9


def test_pixels_have_no_likelihood_and_stay_between_black_and_white() -> None:
    spec = ImageSpec(1, 8, 8)
    model = EBM(spec, step_size=10.0, noise=1.0, steps=3)
    assert not knows_likelihood(model)
    assert knows_likelihood(EBM(LINE, energy=MLPEnergy))
    assert not knows_likelihood(EBM(ImageSpec(3, 1, 1, levels=0), energy=MLPEnergy))
    with pytest.raises(UserError, match=r"knows no likelihood, because log Z is an integral"):
        model.log_likelihood(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    list(model.losses(Batch(torch.zeros(16, 1, 8, 8, dtype=torch.uint8))))
    assert model.chain.abs().max() == 1


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(UserError, match=r"metropolis=true: chains of pixels stop at black and white; choose false"):
        EBM(ImageSpec(1, 8, 8), metropolis=True)
    with pytest.raises(UserError, match=r"metropolis=true: steps without noise .* choose model\.noise=null"):
        known(metropolis=True, noise=0.0)
    with pytest.raises(UserError, match=r"ResidualEncoder is convolutional.*model/energy=mlp"):
        EBM(PLANE)
    with pytest.raises(UserError, match=r"model\.buffer=5: fewer chains than a batch of 6 takes; choose more"):
        known(buffer=5).advance(3, BatchGenerator(world_size=2))
