"""What restricted Boltzmann machines promise, held against sums over all states of tiny ones."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from imago.data import ImageDataModule
from imago.data.sources import Digits
from imago.errors import UserError
from imago.evaluation import measure_likelihood
from imago.images import Batch, ImageSpec
from imago.models import rbm
from imago.models.rbm import RBM, RBMNet, annealed, partition_from
from imago.rng import BatchGenerator, PerImageGenerator


def machine(visible: int, hidden: int, scale: float = 1.0, **settings: Any) -> RBM:
    """Weights and biases that are far from zero."""
    torch.manual_seed(0)
    model = RBM(ImageSpec(1, 1, visible, levels=2), hidden=hidden, **settings)
    for parameter in model.net.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return model


def states(units: int) -> Tensor:
    """All of them, (2^units, units)."""
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * units).view(-1, units)


def energies(net: RBMNet) -> Tensor:
    """E(v, h) of all states (equation 1), float64."""
    v, h = states(len(net.visible)).double(), states(len(net.hidden)).double()
    weight, b, c = (p.detach().double() for p in (net.weight, net.visible, net.hidden))
    return -(v @ b)[:, None] - (h @ c)[None] - v @ weight @ h.T


def log_z(net: RBMNet) -> float:
    return float(torch.logsumexp(-energies(net).flatten(), 0))


def images_of(model: RBM) -> Tensor:
    return states(model.spec.width).byte().view(-1, *model.spec.shape)


@pytest.mark.parametrize(("visible", "hidden"), [(5, 3), (3, 5), (1, 1)])
def test_the_free_energy_and_log_z_are_sums_over_states(visible: int, hidden: int) -> None:
    """Whichever layer is smaller."""
    model = machine(visible, hidden)
    wanted = -torch.logsumexp(-energies(model.net), 1)
    torch.testing.assert_close(model.net(states(visible)).double(), wanted, rtol=1e-5, atol=1e-5)
    assert model.net.log_partition().item() == pytest.approx(log_z(model.net), abs=1e-5)
    assert model.likelihood == "exact"
    assert float(model.log_likelihood(images_of(model)).exp().sum()) == pytest.approx(1, abs=1e-5)


def test_log_z_is_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = machine(6, 7)
    monkeypatch.setattr(rbm, "TOGETHER", 24)
    assert model.net.log_partition().item() == pytest.approx(log_z(model.net), abs=1e-5)


@torch.no_grad()
def test_gibbs_steps_are_in_detailed_balance() -> None:
    """p(v) T(v, v') = p(v') T(v', v) for the exact matrix, which the frequencies of drawn steps have."""
    net = machine(3, 2).net
    v, h = states(3), states(2)

    def probabilities(units: Tensor, wanted: Tensor) -> Tensor:
        return (units[:, None] * wanted + (1 - units[:, None]) * (1 - wanted)).prod(-1)

    matrix = probabilities(net.hidden_given(v), h) @ probabilities(net.visible_given(h), v)
    p = (-net(v)).softmax(0)
    flow = p[:, None] * matrix
    torch.testing.assert_close(flow, flow.T, rtol=1e-4, atol=1e-7)
    n = 20_000
    generator = torch.Generator().manual_seed(0)
    drawn = net.gibbs(v.repeat_interleave(n, 0), 1, lambda *shape: torch.rand(*shape, generator=generator))
    found = (drawn[:, None] == v).all(-1).float().view(8, n, 8).mean(1)
    assert ((found - matrix).abs() < 4.5 * (matrix * (1 - matrix) / n).sqrt() + 1e-6).all()


@pytest.mark.parametrize("persistent", [False, True])
def test_the_gradient_becomes_that_of_the_likelihood(persistent: bool) -> None:
    """CD-1 is biased; after many steps, or with chains that have gone on for long, the bias is gone."""
    n = 100_000
    model = machine(3, 2, 1.5, persistent=persistent, chains=n)
    torch.manual_seed(1)
    data = torch.multinomial(torch.tensor([1.0, 5, 2, 0, 4, 1, 1, 2]), n, replacement=True)
    images = images_of(model)[data]
    exact = torch.autograd.grad(-model.log_prob(images, None).mean(), list(model.net.parameters()))

    def error(k: int) -> float:
        model.k = k
        (loss,) = model.losses(Batch(images))
        found = torch.autograd.grad(loss.value, list(model.net.parameters()))
        return max(float((one - other).abs().max()) for one, other in zip(found, exact, strict=True))

    assert persistent or error(1) > 0.03
    assert error(50) < 5 / math.sqrt(n)


def test_annealing_is_right_on_average() -> None:
    """E[w] = Z / Z_0 for any number of temperatures, here few: one wrong factor and it is not."""
    model = machine(4, 3, 0.7)
    odds = torch.tensor([0.5, -1.0, 0.0, 2.0])
    for temperatures in (1, 3):
        log_w = annealed(model.net, odds, 100_000, temperatures, seed=0)
        found = partition_from(log_w, odds, 3)
        assert 0 < found.error < 0.01
        assert float(found.log_z) == pytest.approx(log_z(model.net), abs=4 * found.error)


def test_the_error_of_log_z_is_what_it_says() -> None:
    """Of 30 independent estimates: their deviations from the truth, in units of the errors that they claim."""
    model = machine(8, 6, 0.8)
    odds, truth = torch.zeros(8), log_z(model.net)
    found = [partition_from(annealed(model.net, odds, 100, 200, seed), odds, 6) for seed in range(30)]
    deviations = torch.tensor([(float(estimate.log_z) - truth) / estimate.error for estimate in found])
    assert deviations.abs().max() < 4
    assert 0.6 < float(deviations.square().mean().sqrt()) < 1.5
    assert abs(float(deviations.mean())) < 3 / math.sqrt(30)


def test_an_estimated_likelihood_is_the_exact_one_within_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ImageDataModule(Digits(), binarize="threshold")
    data.prepare()
    torch.manual_seed(0)
    model = RBM(data.spec, hidden=12)
    torch.nn.init.normal_(model.net.weight, std=0.2)
    exact = measure_likelihood(model, data, "val", averaged=False)[1]
    monkeypatch.setattr(rbm, "EXACT", 10)
    estimated = RBM(data.spec, hidden=12, ais_temperatures=200)
    estimated.load_state_dict(model.state_dict())
    found = measure_likelihood(estimated, data, "val", averaged=False)[1]
    assert (exact.protocol.relation, found.protocol.relation) == ("=", "≈")
    assert (exact.protocol.estimator, found.protocol.estimator) == (None, "AIS, 100 chains, 200 temperatures")
    assert found.protocol.common_error is not None
    assert found.value == pytest.approx(exact.value, abs=4 * found.protocol.common_error)
    errors = exact.protocol.standard_error, found.protocol.common_error
    assert found.protocol.standard_error == pytest.approx(math.hypot(*errors), rel=1e-3)
    with torch.no_grad():  # other weights have another log Z
        estimated.net.visible += 1
    again = measure_likelihood(estimated, data, "val", averaged=False)[1]
    assert again.protocol.common_error != found.protocol.common_error


@pytest.mark.parametrize("persistent", [False, True])
def test_samples_have_the_models_probabilities(persistent: bool) -> None:
    model = machine(4, 3, persistent=persistent, steps=30)
    drawn = model.sample(20_000, generator=PerImageGenerator(0)).flatten(1).long()
    found = torch.bincount(drawn @ torch.tensor([8, 4, 2, 1]), minlength=16) / 20_000
    p = model.log_likelihood(images_of(model)).exp()
    assert ((found - p).abs() < 4.5 * (p * (1 - p) / 20_000).sqrt()).all()


def test_pixels_of_the_base_have_the_frequencies_of_all_batches() -> None:
    model = machine(3, 2)
    batches = torch.randint(2, (4, 8, 1, 1, 3), dtype=torch.uint8)
    for batch in batches:
        list(model.losses(Batch(batch)))
    torch.testing.assert_close(model.frequencies, batches.float().flatten(0, 1).mean(0).flatten())


def test_what_it_cannot_learn_is_told() -> None:
    told = r"RBM is a model of binary pixels, these are pixels .*8 levels.*add data\.binarize=dynamic"
    with pytest.raises(UserError, match=told):
        RBM(ImageSpec(1, 2, 2, levels=8))
    with pytest.raises(UserError, match=r"binary pixels, these are tokens .*choose other data"):
        RBM(ImageSpec(1, 2, 2, levels=2, tokens=True))
    model = machine(3, 2, persistent=True, chains=4)
    with pytest.raises(UserError, match=r"model\.chains=4: .* among 3 devices; choose a multiple"):
        model.negative(torch.zeros(2, 3), BatchGenerator(rank=0, world_size=3))
