"""Likelihood: values that are known from theory, and what the protocol says of them."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from explicit import Pixels
from imago.data import ImageDataModule
from imago.data.base import ImageSet
from imago.data.sources import Bars, Digits
from imago.errors import UserError
from imago.evaluation import measure_likelihood
from imago.images import Images, ImageSpec
from imago.measures import Likelihood
from imago.models.diffusion import Diffusion
from imago.nets.timed import TimedMLP
from imago.rng import PerImageGenerator


class Noisy(Pixels):
    """Estimates a bound with a random number."""

    likelihood: Likelihood = "lower_bound"

    def log_prob(self, images: Images, labels: Tensor | None) -> Tensor:
        return super().log_prob(images, labels) - torch.rand(len(images))


def digits(**options: Any) -> ImageDataModule:
    data = ImageDataModule(Digits(), **options)
    data.prepare()
    return data


@pytest.mark.parametrize(("binarize", "bits"), [(None, 8.0), ("threshold", 1.0), ("dynamic", 1.0)])
def test_a_uniform_model_needs_the_bits_of_the_pixel(binarize: Any, bits: float) -> None:
    data = digits(binarize=binarize)
    bpd, nats = measure_likelihood(Pixels(data.spec), data, "test", averaged=False)
    assert (bpd.name, nats.name) == ("bpd", "nats")
    assert bpd.value == pytest.approx(bits, abs=1e-6)
    assert nats.value == pytest.approx(64 * bits * math.log(2), abs=1e-4)
    assert bpd.protocol.standard_error == pytest.approx(0, abs=1e-6)


def test_the_mean_and_its_standard_error_are_those_of_the_definition() -> None:
    """Levels with probabilities of their own: the mean is a count of levels, the error that of single images."""
    data = digits(binarize="threshold")
    model = Pixels(data.spec)
    with torch.no_grad():  # white with probability 0.2 everywhere
        model.table.weight.view(64, 2)[:] = torch.tensor([0.8, 0.2]).log()
    white = data.val.images.double().flatten(1).sum(1)
    expected = -(white * math.log(0.2) + (64 - white) * math.log(0.8))
    bpd, nats = measure_likelihood(model, data, "val", averaged=False)
    assert nats.value == pytest.approx(float(expected.mean()), rel=1e-6)
    assert nats.protocol.standard_error == pytest.approx(float(expected.std()) / math.sqrt(180), rel=1e-5)
    assert bpd.value == pytest.approx(nats.value / 64 / math.log(2), rel=1e-9)
    assert bpd.protocol.standard_error == pytest.approx(nats.protocol.standard_error / 64 / math.log(2))


def test_batches_of_any_size_and_order_of_magnitude_give_the_same_number() -> None:
    data = digits()
    model = Pixels(data.spec)
    nn.init.normal_(model.table.weight)
    values = [measure_likelihood(model, data, "val", averaged=False, batch_size=b)[1].value for b in (1, 7, 64, 500)]
    assert values == pytest.approx([values[0]] * 4, rel=1e-7)


def test_many_images_are_summed_in_double_precision() -> None:
    """Single precision loses the second image after 2^24 of them; here they differ by less than it can add."""
    data = digits()
    model = Pixels(data.spec)
    values = torch.tensor([1e8, 1.0]).repeat(90)
    model.log_prob = lambda images, labels: -values[: len(images)]  # type: ignore[method-assign]
    assert measure_likelihood(model, data, "val", averaged=False, batch_size=180)[1].value == 50000000.5


def test_labels_are_for_conditional_models() -> None:
    """A model that is certain of class 3 and uniform otherwise."""
    data = digits(binarize="threshold")
    conditional = Pixels(data.spec, conditional=True)
    with torch.no_grad():
        conditional.table.weight.view(10, 64, 2)[3] = torch.tensor([0.9, 0.1]).log()
    threes = data.val.images[data.val.labels == 3].double().flatten(1).sum(1)
    exact = -(threes * math.log(0.1) + (64 - threes) * math.log(0.9)).sum() + (180 - len(threes)) * 64 * math.log(2)
    (_, nats) = measure_likelihood(conditional, data, "val", averaged=False)
    assert nats.value == pytest.approx(float(exact) / 180, rel=1e-6)
    assert nats.protocol.conditional is True
    plain = Pixels(data.spec)
    assert measure_likelihood(plain, data, "val", averaged=False)[1].protocol.conditional is False


def test_the_protocol_says_how() -> None:
    data = digits(binarize="dynamic")
    bpd, nats = measure_likelihood(Noisy(data.spec), data, "val", averaged=True, images=100, batch_size=64)
    bits, told = bpd.protocol.as_dict(), nats.protocol.as_dict()
    assert 0 < bits.pop("standard_error") < told.pop("standard_error") < 0.1
    assert bits == told
    assert told == {
        "data": "digits val",
        "data_fingerprint": data.fingerprint,
        "images": 100,
        "likelihood": "lower_bound",
        "binarization": "white with probability intensity / 255, one fixed draw",
        "conditional": False,
        "weights": "averaged",
        "caveat": "from a lower bound of the likelihood: the true value is smaller or equal; of 100 of 180 "
        "images; compares with the same binarisation only",
    }
    data = digits()
    protocol = measure_likelihood(Pixels(data.spec), data, "test", averaged=False, images=999)[0].protocol
    assert (protocol.images, protocol.caveat, protocol.binarization) == (180, "none", "none")


class Weighed(Pixels):
    """Knows p(x) but for a factor, whose logarithm it estimates with an error of 3 nats."""

    likelihood: Likelihood = "estimate"
    estimator = "AIS, 2 chains"
    common_error = 3.0


def test_what_the_estimates_of_all_images_share_is_part_of_their_error() -> None:
    """Var(mean of (a_i + c)) = Var(a)/n + Var(c): no number of images takes the error of log Z away."""
    data = digits()
    exact, model = Pixels(data.spec), Weighed(data.spec)
    nn.init.normal_(exact.table.weight)
    model.load_state_dict(exact.state_dict())
    alone = measure_likelihood(exact, data, "val", averaged=False)
    shared = measure_likelihood(model, data, "val", averaged=False)
    for single, told, unit in zip(alone, shared, (64 * math.log(2), 1), strict=True):
        protocol, error = told.protocol, single.protocol.standard_error
        assert told.value == single.value
        assert error is not None
        assert error > 0
        assert protocol.standard_error == pytest.approx(math.hypot(error, 3 / unit))
        assert (protocol.likelihood, protocol.estimator) == ("estimate", "AIS, 2 chains")
        assert protocol.common_error == pytest.approx(3 / unit)
        assert protocol.caveat == "an estimate of the likelihood: the true value may be smaller or larger"
        assert protocol.comparison_key == f"{single.protocol.comparison_key}; likelihood estimate"


def test_a_part_is_the_first_images() -> None:
    data = digits()
    model = Pixels(data.spec)
    nn.init.normal_(model.table.weight)
    expected = -model.log_likelihood(data.val.images[:70]).double().mean()
    (_, nats) = measure_likelihood(model, data, "val", averaged=False, images=70, batch_size=32)
    assert nats.value == pytest.approx(float(expected), rel=1e-7)


def test_measuring_leaves_no_trace_and_repeats_itself() -> None:
    data = digits(binarize="dynamic")
    model = Noisy(data.spec).train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = measure_likelihood(model, data, "val", averaged=False)[0].value
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert measure_likelihood(model, digits(binarize="dynamic", seed=9), "val", averaged=False)[0].value == first
    assert model.training
    assert not any(model.modes), "measured in evaluation mode"
    assert all(p.grad is None for p in model.parameters())


def test_progress_and_abandonment() -> None:
    data = digits()
    seen: list[tuple[int, int]] = []
    asked: list[int] = []
    measure_likelihood(
        Pixels(data.spec), data, "val", averaged=False, batch_size=64, images=130,
        progress=lambda done, total: seen.append((done, total)), before_batch=lambda: asked.append(len(seen)),
    )  # fmt: skip
    assert seen == [(64, 130), (128, 130), (130, 130)]
    assert asked == [0, 1, 2]

    def stop() -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        measure_likelihood(Pixels(data.spec), data, "val", averaged=False, before_batch=stop)


def test_one_image_has_no_standard_error() -> None:
    data = digits()
    data.test = ImageSet(data.test.images[:1], None)
    (bpd, _) = measure_likelihood(Pixels(data.spec), data, "test", averaged=False)
    assert bpd.value == pytest.approx(8)
    assert math.isnan(float(bpd.protocol.standard_error))


def test_images_of_another_kind_are_refused() -> None:
    data = digits()
    with pytest.raises(UserError, match=r"pixel values up to 255 for a model of 2 levels"):
        measure_likelihood(Pixels(ImageSpec(1, 8, 8, levels=2)), data, "val", averaged=False)
    with pytest.raises(UserError, match=r"1x8x8 for a model of 1x4x4"):
        measure_likelihood(Pixels(ImageSpec(1, 4, 4)), data, "val", averaged=False)
    bars = ImageDataModule(Bars())
    bars.prepare()
    model = Pixels(ImageSpec(*bars.spec.shape, levels=bars.spec.levels, classes=2), conditional=True)
    with pytest.raises(UserError, match="give the labels"):
        measure_likelihood(model, bars, "val", averaged=False)


def test_a_chain_has_a_bound_and_an_estimate_without_noise() -> None:
    data = digits()
    torch.manual_seed(0)
    model = Diffusion(data.spec, steps=20, network=partial(TimedMLP, width=8, blocks=1))
    found = {
        m.name: m
        for m in measure_likelihood(model, data, "val", averaged=False, images=4, bound_steps=2, probability_flow=1e-3)
    }
    bound, flow = found["nats"].protocol, found["flow/nats"].protocol
    assert (bound.likelihood, bound.bound_terms, bound.estimator) == ("lower_bound", 4, None)
    assert (flow.likelihood, flow.bound_terms) == ("estimate", None)
    assert flow.estimator == "probability flow, tolerance 0.001, Hutchinson's divergence, uniform dequantisation"
    assert str(flow.caveat).startswith("an estimate of the likelihood: ")
    images = data.val.images[:4]
    nats = model.flow_nats(images, None, PerImageGenerator(2).normal, 1e-3)
    assert found["flow/nats"].value == pytest.approx(float(nats.mean()), abs=1e-4)
    assert found["flow/bpd"].value == pytest.approx(found["flow/nats"].value / 64 / math.log(2))
