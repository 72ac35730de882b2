"""Masked diffusion against its formulas, by enumeration of tiny images, of what is hidden, and of all orders."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imago.distributions import Gaussian
from imago.errors import UserError
from imago.images import Batch, ImageSpec
from imago.models.masked_diffusion import MaskedDiffusion, Masking
from imago.rng import BatchGenerator, PerImageGenerator

SPEC = ImageSpec(1, 2, 2, levels=2)
RGB = ImageSpec(3, 1, 1, levels=3)
MASKINGS: list[Masking] = ["linear", "cosine"]
SEVERAL = 20_000


class Perceptron(nn.Module):
    """A small network whose answers to different questions are of no single distribution."""

    def __init__(self, spec: ImageSpec, parameters: int, classes: int, *, inputs: int) -> None:
        super().__init__()
        pixels = spec.height * spec.width
        self.layers = nn.Sequential(
            nn.Linear(pixels * inputs + 1, 32), nn.Tanh(), nn.Linear(32, spec.dimensions * parameters)
        )
        self.shape = (parameters, *spec.shape)

    def forward(self, inputs: Tensor, share: Tensor, labels: Tensor | None) -> Tensor:
        return 3 * self.layers(torch.cat([inputs.flatten(1), share[:, None]], 1)).view(len(inputs), *self.shape)


def lively(spec: ImageSpec, **settings: Any) -> MaskedDiffusion:
    torch.manual_seed(3)
    return MaskedDiffusion(spec, network=Perceptron, **settings).eval()


def every_image(spec: ImageSpec) -> Tensor:
    values = list(itertools.product(range(spec.levels), repeat=spec.dimensions))
    return torch.tensor(values, dtype=torch.uint8).view(-1, *spec.shape)


@torch.no_grad()
def said(model: MaskedDiffusion, images: Tensor, seen: Any, labels: Tensor | None = None) -> Tensor:
    """log μ_θ,i(x_t)[x_i] of every value, (n, values), with the values in ``seen`` shown."""
    shown = torch.zeros(model.spec.dimensions, dtype=torch.bool)
    shown[list(seen)] = True
    parameters = model.net(images, shown.view(model.spec.shape).expand(images.shape), labels)
    return model.distribution.log_prob(parameters, images).flatten(1).double()


def in_order(model: MaskedDiffusion, images: Tensor, order: Any, before: Any = ()) -> Tensor:
    """Σ_j log p(x_σ(j) | x_σ(1), …, x_σ(j−1)), the chain rule by hand, (n,)."""
    return torch.stack([said(model, images, (*before, *order[:j]))[:, value] for j, value in enumerate(order)]).sum(0)


def in_all_orders(model: MaskedDiffusion, images: Tensor) -> Tensor:
    """log p(x | σ) for every order, (orders, n)."""
    orders = itertools.permutations(range(model.spec.dimensions))
    return torch.stack([in_order(model, images, order) for order in orders])


def assert_frequencies(samples: Tensor, images: Tensor, expected: Tensor) -> None:
    """Each of these images is drawn as often as it should be, within five standard errors."""
    matches = (samples[:, None] == images[None]).flatten(2).all(2).double()
    assert bool((matches.sum(1) == 1).all())
    error = (expected * (1 - expected) / len(samples)).sqrt() + 1e-6
    assert float(((matches.mean(0) - expected).abs() / error).max()) < 5


# --- the bound -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, RGB], ids=["binary", "rgb"])
@pytest.mark.parametrize("masking", MASKINGS)
def test_the_integral_over_time_is_the_mean_over_all_orders(masking: Masking, spec: ImageSpec) -> None:
    """Equation 2 by quadrature over t and a sum over all that may be hidden, whatever the schedule; equation 3."""
    model, images, values = lively(spec), every_image(spec), spec.dimensions
    points = 20_000
    t = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    if masking == "linear":
        alpha, slope = 1 - t, -torch.ones_like(t)
    else:
        alpha, slope = 1 - torch.cos(math.pi / 2 * (1 - t)), -math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))
    bound = torch.zeros(len(images), dtype=torch.float64)
    for size in range(values):
        weight = (slope / (1 - alpha) * alpha**size * (1 - alpha) ** (values - size)).mean()
        for seen in itertools.combinations(range(values), size):
            hidden = [i for i in range(values) if i not in seen]
            bound += weight * said(model, images, seen)[:, hidden].sum(1)  # the weight is negative, so is log p
    orders = in_all_orders(model, images)
    torch.testing.assert_close(-bound, orders.mean(0), atol=1e-5, rtol=1e-5)
    assert float(orders.std(0).min()) > 0.01  # orders differ
    streams = images.repeat_interleave(500, 0)
    found = model.log_likelihood(streams).double().view(len(images), -1)
    error = found.std(1) / math.sqrt(500)
    assert bool(((found.mean(1) - orders.mean(0)).abs() < 5 * error + 1e-6).all())


def test_every_order_has_a_distribution_and_the_bound_has_less() -> None:
    model = lively(SPEC)
    orders = in_all_orders(model, every_image(SPEC))
    torch.testing.assert_close(orders.exp().sum(1), torch.ones(24, dtype=torch.float64), atol=1e-5, rtol=0)
    exact, bound = orders.exp().mean(0).log(), orders.mean(0)
    assert bool((bound < exact).all())
    assert 0.5 < float(bound.exp().sum()) < 1


@pytest.mark.parametrize("masking", MASKINGS)
def test_the_loss_is_the_bound_on_average(masking: Masking) -> None:
    model, image = lively(SPEC, masking=masking), every_image(SPEC)[6:7]
    expected = -float(in_all_orders(model, image).mean())
    rng = BatchGenerator(generator=torch.Generator().manual_seed(0))
    (loss,) = model.losses(Batch(image.expand(SEVERAL, 1, 2, 2)), rng)
    assert float(loss.logs["nats"].detach()) == pytest.approx(expected, rel=0.02)
    assert float(loss.value.detach()) == pytest.approx(expected / 4, rel=0.02)


def test_a_batch_hides_as_many_values_as_there_are_in_equal_shares() -> None:
    model, asked = lively(SPEC), []
    model.net.body.register_forward_hook(lambda net, given, answer: asked.append(given[1]))
    list(model.losses(Batch(every_image(SPEC)), BatchGenerator()))
    assert sorted((4 * asked[0]).round().tolist()) == [k for k in (1, 2, 3, 4) for _ in range(4)]


def test_a_random_part_of_the_terms_is_right_on_average() -> None:
    model = lively(ImageSpec(1, 4, 4, levels=3))
    image = torch.randint(3, (1, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    many = image.expand(2000, 1, 4, 4)
    every = model.log_likelihood(many)
    assert model.bound_terms == 16
    for count in (1, 5):
        with model.visiting(count):
            assert model.bound_terms == count
            part = model.log_likelihood(many, generator=PerImageGenerator(1))
        error = math.sqrt(float(part.var() + every.var()) / 2000)
        assert float(part.mean()) == pytest.approx(float(every.mean()), abs=4 * error)
    with model.visiting(99):
        torch.testing.assert_close(model.log_likelihood(many[:4]), every[:4])


# --- samples ---------------------------------------------------------------------------------------------------------


def test_one_value_a_step_draws_from_the_mean_over_all_orders() -> None:
    model, images = lively(SPEC, steps=None), every_image(SPEC)
    assert (model.nfe, model.sampling) == (4, "one value a step")
    samples = model.sample(SEVERAL, generator=PerImageGenerator(0))
    assert_frequencies(samples, images, in_all_orders(model, images).exp().mean(0))


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_draw_what_equation_1_says(masking: Masking, steps: int) -> None:
    """Each value comes back in the first of two steps with probability α(1/2), beside others that do not know of it."""
    model, images = lively(SPEC, masking=masking, steps=steps), every_image(SPEC)
    first = 0.0 if steps == 1 else 0.5 if masking == "linear" else 1 - math.cos(math.pi / 4)
    expected = torch.zeros(len(images), dtype=torch.float64)
    for size in range(5):
        for early in itertools.combinations(range(4), size):
            late = [i for i in range(4) if i not in early]
            log = said(model, images, ())[:, list(early)].sum(1) + said(model, images, early)[:, late].sum(1)
            expected += first**size * (1 - first) ** (4 - size) * log.exp()
    assert float(expected.sum()) == pytest.approx(1, abs=1e-5)
    assert_frequencies(model.sample(SEVERAL, generator=PerImageGenerator(1)), images, expected)


def test_images_are_completed_from_any_part_of_them() -> None:
    """What is hidden first in raster order hangs on what is known after it."""
    model = lively(SPEC, steps=None)
    known = torch.tensor([[[False, False], [True, True]]])
    images = every_image(SPEC)
    for last in (0, 3):  # the two known values: both 0, both 1
        of_those = images[(images.flatten(1)[:, 2] * 2 + images.flatten(1)[:, 3]) == last]
        orders = [in_order(model, of_those, order, (2, 3)) for order in ((0, 1), (1, 0))]
        drawn = model.complete(of_those[:1].expand(SEVERAL, 1, 2, 2), known, generator=PerImageGenerator(2))
        assert_frequencies(drawn, of_those, torch.stack(orders).exp().mean(0))
    with pytest.raises(UserError, match=r"mask is torch.float32: give torch.bool"):
        model.complete(images, known.float(), generator=PerImageGenerator(0))


def test_colder_samples_are_likelier() -> None:
    model = lively(SPEC, steps=None)
    warm = model.log_likelihood(model.sample(500, generator=PerImageGenerator(0))).mean()
    model.temperature = 0.2
    assert model.log_likelihood(model.sample(500, generator=PerImageGenerator(0))).mean() > warm + 0.2


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [False, True])
def test_hidden_values_are_not_read_and_seen_ones_are(tokens: bool) -> None:
    spec = ImageSpec(2, 3, 3, levels=5, tokens=tokens)
    model = lively(spec)
    draws = torch.Generator().manual_seed(0)
    images, other = (torch.randint(5, (6, *spec.shape), generator=draws, dtype=torch.uint8) for _ in range(2))
    seen = torch.rand(images.shape, generator=draws) < 0.5
    with torch.no_grad():
        answer = model.net(images, seen)
        assert torch.equal(answer, model.net(torch.where(seen, images, other), seen))
        assert not torch.allclose(answer, model.net(torch.where(seen, other, images), seen))


class Exact(nn.Module):
    """The conditionals of a distribution over all images, from those that agree with what is seen."""

    def __init__(self, images: Tensor, probabilities: Tensor) -> None:
        super().__init__()
        self.images, self.probabilities = images.double(), probabilities
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor, share: Tensor, labels: Tensor | None) -> Tensor:
        shown, seen = inputs.double().chunk(2, 1)
        agrees = ((2 * self.images[None] - 1 == shown[:, None]) | (seen[:, None] == 0)).flatten(2).all(2)
        weights = agrees * self.probabilities
        white = (weights / weights.sum(1, keepdim=True)) @ self.images.flatten(1)
        return torch.logit(white, 1e-12).view(inputs.shape[0], 1, *self.images.shape[1:]) + 0 * self.weight


def test_with_the_exact_conditionals_the_bound_is_the_likelihood() -> None:
    images = every_image(SPEC)
    p = torch.rand(len(images), generator=torch.Generator().manual_seed(0), dtype=torch.float64).square()
    p /= p.sum()
    model = MaskedDiffusion(SPEC, network=lambda *_, **__: Exact(images, p), steps=None)
    torch.testing.assert_close(model.log_likelihood(images).double(), p.log(), atol=1e-4, rtol=1e-4)
    assert_frequencies(model.sample(SEVERAL, generator=PerImageGenerator(0)), images, p)


def test_a_bound_of_a_value_is_refused() -> None:
    with pytest.raises(UserError, match=r"distribution=Gaussian: has a bound .* choose model/distribution=softmax"):
        MaskedDiffusion(ImageSpec(1, 2, 2), distribution=Gaussian)
