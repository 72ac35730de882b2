"""What models with an approximate posterior promise, checked for every one of them by its yaml."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import configuration
from imago.config import choices_of
from imago.data import ImageDataModule
from imago.data.sources import Digits
from imago.errors import UserError
from imago.evaluation import measure_likelihood
from imago.figures.latent_units import kl_of_units
from imago.images import ImageSpec
from imago.models.autoregressive import Autoregressive
from imago.models.base import sum_of
from imago.models.variational import Variational
from imago.rng import PerImageGenerator
from test_laws import Tensors, fit, images_of, make

VARIATIONAL = choices_of("model", Variational)
SPECS = {"binary-2x2": ImageSpec(1, 2, 2, levels=2, classes=2), "rgb-1x1": ImageSpec(3, 1, 1, levels=3, classes=2)}
CASES = [(model, spec) for model in VARIATIONAL for spec in SPECS]


class WithoutDoubles(Tensor):
    """As if on a device that has no float64 (Apple's): until it is on the CPU, nothing of that type comes of it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if func is Tensor.cpu:
            return result.as_subclass(Tensor)
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            raise TypeError("the device has no float64")
        return result


def every_image(spec: ImageSpec) -> Tensor:
    values = list(itertools.product(range(spec.levels), repeat=spec.dimensions))
    return torch.tensor(values, dtype=torch.uint8).view(-1, *spec.shape)


def little(name: str) -> list[str]:
    """Few latents: the variance of importance weights grows exponentially with their number."""
    settings = configuration(f"model={name}")["model"]
    wanted = {"latent": 2, "zdim": 2, "blocks": [1, 1], "width": 8, "widest": 8}
    return [f"model.{key}={value}".replace(" ", "") for key, value in wanted.items() if key in settings]


def trained(name: str, spec: ImageSpec, *overrides: str) -> Variational:
    """Fifty steps on three images: q(z|x) is no longer the prior."""
    model = make(name, spec, "model.kl_warmup=0", *little(name), *overrides)
    assert isinstance(model, Variational)
    images = every_image(spec)[[0, 5, 14]]
    fit(model, Tensors(images, torch.arange(3) % 2, 32), 50)
    return model


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_the_bounds_are_bounds_of_a_distribution(name: str, spec: str) -> None:
    """exp of the weighted estimate is p(x) in expectation: over all images it sums to one, exp(ELBO) to at most one."""
    model = trained(name, SPECS[spec])
    images = every_image(SPECS[spec])
    estimate = model.importance_weighted(images, k=2000, generator=PerImageGenerator(0), rows=8192).double()
    assert float(estimate.exp().sum()) == pytest.approx(1, abs=0.03)
    draws = [model.log_likelihood(images, generator=PerImageGenerator(k)).double() for k in range(100)]
    bound = torch.stack(draws).mean(0)
    assert float(bound.exp().sum()) < 1.005
    assert (bound < estimate + 0.5).all()
    assert bound.std() > 0.1  # what was trained on is likelier


@pytest.mark.parametrize("name", VARIATIONAL)
def test_probabilities_of_every_class_sum_to_one(name: str) -> None:
    spec = SPECS["binary-2x2"]
    model = trained(name, spec, "conditional=true")
    images = every_image(spec)
    of_class = []
    for k in range(2):
        labels = torch.full((16,), k)
        of_class.append(model.importance_weighted(images, labels, k=2000, generator=PerImageGenerator(0), rows=8192))
        assert float(of_class[k].double().exp().sum()) == pytest.approx(1, abs=0.03)
    assert (of_class[0] - of_class[1]).abs().max() > 0.05


@pytest.mark.parametrize("name", VARIATIONAL)
def test_the_weighted_bound_grows_with_the_number_of_draws(name: str) -> None:
    model = trained(name, SPECS["binary-2x2"])
    images = every_image(SPECS["binary-2x2"]).repeat(60, 1, 1, 1)
    elbo = model.log_likelihood(images, generator=PerImageGenerator(0)).mean()
    means = [model.importance_weighted(images, k=k, generator=PerImageGenerator(1)).mean() for k in (1, 4, 32)]
    assert float(means[0]) == pytest.approx(float(elbo), abs=0.15)  # both are the ELBO, estimated
    assert means[0] < means[1] < means[2]


@pytest.mark.parametrize("name", VARIATIONAL)
def test_samples_occur_as_often_as_their_probability_says(name: str) -> None:
    spec = SPECS["binary-2x2"]
    model = trained(name, spec)
    probability = model.importance_weighted(every_image(spec), k=4000, generator=PerImageGenerator(0), rows=8192).exp()
    samples = model.sample(4000, generator=PerImageGenerator(2)).flatten(1).long()
    counts = torch.bincount(samples @ torch.tensor([8, 4, 2, 1]), minlength=16)
    expected = 4000 * probability / probability.sum()
    chi_square = ((counts - expected).square() / expected.clamp(min=1)).sum()
    assert float(chi_square) < 50  # 15 degrees of freedom, and the expectations are estimates


@pytest.mark.parametrize("name", VARIATIONAL)
def test_terms_are_named_and_their_sum_is_the_bound(name: str) -> None:
    spec = ImageSpec(1, 6, 5, levels=4)
    model = make(name, spec)
    images = images_of(spec, 7)
    terms = model.measured_nll_terms(images)
    assert list(terms) == ["elbo/reconstruction", "elbo/kl"]
    assert all((values > 0).all() for values in terms.values())
    assert torch.equal(sum_of(terms), -model.log_likelihood(images))


@pytest.mark.parametrize("name", VARIATIONAL)
def test_codes_decode_and_draws_are_samples(name: str) -> None:
    spec = ImageSpec(1, 7, 6, levels=4)
    model = make(name, spec, "model.observation_noise=false")
    assert isinstance(model, Variational)
    images = images_of(spec, 5)
    with torch.no_grad():
        z = model.encode(images)
        assert z.shape == (5, model.latent)
        picture = model.decode(model.draw_latents(5, PerImageGenerator(3)))
    assert picture.shape == images.shape
    assert picture.abs().max() <= 1
    levels = ((picture + 1) * 1.5).round().byte()
    assert torch.equal(levels, model.sample(5, generator=PerImageGenerator(3)))
    with pytest.raises(UserError, match="images of 1x8x6 for a model of 1x7x6"):
        model.encode(images_of(ImageSpec(1, 8, 6, levels=4), 2))


@pytest.mark.parametrize("name", VARIATIONAL)
@pytest.mark.parametrize("distribution", ["softmax", "logistic_mixture", "gaussian"])
def test_every_distribution_of_values(name: str, distribution: str) -> None:
    spec = ImageSpec(1, 1, 2, levels=3)
    model = make(name, spec, f"model/distribution={distribution}", *little(name))
    assert isinstance(model, Variational)
    images = every_image(spec)
    total = model.importance_weighted(images, k=500, generator=PerImageGenerator(0)).double().exp().sum()
    if distribution == "gaussian":  # a bound of the probability of the integers
        assert 0.2 < float(total) < 1.02
    else:
        assert float(total) == pytest.approx(1, abs=0.05)
    assert model.sample(5, generator=PerImageGenerator(0)).max() <= 2


def test_a_measurement_has_the_parts_and_the_gap() -> None:
    data = ImageDataModule(Digits(), binarize="threshold")
    data.prepare()
    model = make("vae", data.spec, "model.latent=3")
    found = {m.name: m for m in measure_likelihood(model, data, "test", averaged=False, images=60, importance=20)}
    other = measure_likelihood(model, data, "test", averaged=False, images=60, importance=20, batch_size=25)
    assert {m.name: pytest.approx(m.value, rel=1e-5) for m in other} == {m.name: m.value for m in found.values()}
    nats = {name: m.value for name, m in found.items() if not name.endswith("bpd")}
    assert nats["nats"] == pytest.approx(nats["elbo/reconstruction"] + nats["elbo/kl"], rel=1e-5)
    assert nats["elbo/gap"] == pytest.approx(nats["nats"] - nats["iw/nats"], abs=1e-4)
    assert nats["elbo/gap"] > 0
    assert found["iw/bpd"].value == pytest.approx(nats["iw/nats"] / (64 * math.log(2)), rel=1e-6)
    assert (found["iw/nats"].protocol.draws, found["nats"].protocol.draws) == (20, None)
    exact = make(choices_of("model", Autoregressive)[0], data.spec)
    with pytest.raises(UserError, match=r"importance=20: a \w+ has no importance-weighted bound; .* are .*vae"):
        measure_likelihood(exact, data, "test", averaged=False, importance=20)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", VARIATIONAL)
def test_measurements_need_no_doubles_on_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ImageDataModule(Digits(), binarize="threshold")
    data.prepare()
    model = make(name, data.spec, *little(name))
    assert isinstance(model, Variational)

    def measured() -> list[float]:
        kl = kl_of_units(model, data.test.part(slice(7)), 0, lambda *_: None)
        found = measure_likelihood(model, data, "test", averaged=False, images=7, importance=3)
        return [*kl.tolist(), *(m.value for m in found)]

    expected, checked = measured(), model.checked
    monkeypatch.setattr(model, "checked", lambda *a: (checked(*a)[0].as_subclass(WithoutDoubles), None))
    with pytest.raises(TypeError, match="no float64"):
        model.encode(data.test.images[:7]).double()
    assert measured() == expected
    assert not any(value.dtype == torch.float64 for value in model.state_dict().values())


def test_warm_up_and_weight_change_training_and_no_measurement() -> None:
    spec = SPECS["binary-2x2"]
    model = make("vae", spec, "model.beta=4", "model.kl_warmup=100")
    assert isinstance(model, Variational)
    weights = []
    for model.state.images in (0, 50, 100, 1000):
        weights.append(model.kl_weight)
    assert weights == [0, 2, 4, 4]
    plain = make("vae", spec)
    assert torch.equal(model.log_likelihood(every_image(spec)), plain.log_likelihood(every_image(spec)))


def test_training_weighs_the_divergence() -> None:
    """With the decoder cut off, the divergence alone moves the encoder: by its weight, and not while that is 0."""
    spec = SPECS["binary-2x2"]

    def moved(*overrides: str) -> float:
        model = make("vae", spec, "model/optimizer/net=sgd", *overrides)
        with torch.no_grad():
            model.net["decoder"].first.weight.zero_()  # type: ignore[union-attr,operator]
        first = model.net["encoder"].first.weight  # type: ignore[union-attr]
        before = first.detach().clone()
        fit(model, Tensors(every_image(spec), torch.zeros(16, dtype=torch.long), 16), 1)
        return float((first.detach() - before).norm())  # type: ignore[operator]

    assert moved("model.kl_warmup=100") == 0
    one = moved("model.kl_warmup=0")
    assert one > 0
    assert moved("model.kl_warmup=0", "model.beta=4") == pytest.approx(4 * one, rel=1e-3)


def test_free_bits_are_left_alone() -> None:
    """Below the free nats the KL has no gradient: with the decoder cut off, the encoder does not move."""
    spec = SPECS["binary-2x2"]

    def moved(free_bits: float) -> float:
        model = make("vae", spec, f"model.free_bits={free_bits}", "model.kl_warmup=0")
        assert isinstance(model, Variational)
        with torch.no_grad():
            model.net["decoder"].first.weight.zero_()
            model.net["encoder"].rest[-1].weight.mul_(0.01)
        model.net["decoder"].first.weight.requires_grad_(False)
        before = model.net["encoder"].first.weight.detach().clone()
        fit(model, Tensors(every_image(spec), torch.zeros(16, dtype=torch.long), 16), 2)
        return float((model.net["encoder"].first.weight.detach() - before).abs().max())

    assert moved(free_bits=10.0) == 0
    assert moved(free_bits=0.0) > 0
