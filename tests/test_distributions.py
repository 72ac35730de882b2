"""Distributions of a value: probabilities against formulas in float64, samples against probabilities.

Samples are functions of a uniform number. On an even grid of such numbers their frequencies are the probabilities up to
the width of the grid, without any chance.
"""

import math

import pytest
import torch
from torch import Tensor

from imago.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Gaussian,
    LogisticMixture,
    Normal,
    distribution_of,
    sampling_dtype,
)

GRID = 20_000
MIXTURES = {  # weights, means, logarithms of the scales
    "one": [0.0, 0.13, -2.0],
    "narrow": [0.0, -0.9, -5.0],
    "outside": [0.0, 1.3, -1.5],
    "two": [0.4, -0.8, -0.7, 0.5, -2.5, -1.0],
}
UNLIMITED = 1e-12  # a smallest scale that no other scale is near
NORMALS = {"wide": (0.2, -0.5), "narrow": (-0.3, -3.0), "certain": (0.41, -20.0), "outside": (-1.4, -1.0)}


def frequencies(distribution: Distribution, parameters: Tensor, temperature: float) -> Tensor:
    """Of the levels, (levels,), over an even grid of uniform numbers."""
    uniform = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    values = distribution.sample(parameters.expand(GRID, -1), uniform, temperature)
    assert values.dtype == torch.int64
    return torch.bincount(values, minlength=distribution.levels).double() / GRID


def mixture_probabilities(parameters: Tensor, levels: int) -> Tensor:
    """Differences of sigmoids in float64, (levels,)."""
    weight, mean, log_scale = parameters.double().chunk(3)
    edges = torch.linspace(-1, 1, levels, dtype=torch.float64)[:-1] + 1 / (levels - 1)
    below = torch.sigmoid((edges[:, None] - mean) / log_scale.exp())  # (edges, components)
    zero, one = torch.zeros(1, len(mean)).double(), torch.ones(1, len(mean)).double()
    return torch.diff(torch.cat([zero, below, one]), dim=0) @ weight.softmax(0)


def normal_probabilities(mean: float, scale: float, levels: int) -> Tensor:
    """Integrals of a normal density over the levels, the outermost reaching to infinity; float64."""
    edges = (torch.arange(1, levels, dtype=torch.float64) * 2 - 1) / (levels - 1) - 1
    below = torch.special.ndtr((edges - mean) / scale)
    return torch.diff(torch.cat([torch.zeros(1).double(), below, torch.ones(1).double()]))


CASES = {
    "bernoulli": (Bernoulli(), torch.tensor([0.8]), torch.tensor([0.0, 0.8]).double().softmax(0)),
    "categorical": (
        Categorical(5),
        torch.tensor([0.3, -1.0, 2.0, 0.0, 1.1]),
        torch.tensor([0.3, -1.0, 2.0, 0.0, 1.1]).double().softmax(0),
    ),
} | {
    f"mixture-{name}": (
        LogisticMixture(9, len(p) // 3),
        torch.tensor(p),
        mixture_probabilities(torch.tensor(p), 9),
    )
    for name, p in MIXTURES.items()
}


@pytest.mark.parametrize("case", CASES)
def test_all_levels_together_have_the_probability_one(case: str) -> None:
    distribution, parameters, expected = CASES[case]
    found = distribution.probabilities(parameters)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)
    bent = LogisticMixture(9, 1, largest_scale=0.5)
    wide = torch.tensor([[0.0, 0.2, 4.0]])
    torch.testing.assert_close(bent.probabilities(wide), bent.logits(wide).double().exp(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("case", CASES)
def test_samples_have_the_probabilities_at_every_temperature(case: str, temperature: float) -> None:
    """softmax(logits / T) is p^(1/T), normalised."""
    distribution, parameters, probability = CASES[case]
    expected = probability ** (1 / temperature)
    found = frequencies(distribution, parameters, temperature)
    assert float((found - expected / expected.sum()).abs().max()) < 1.5 / GRID


@pytest.mark.parametrize("case", CASES)
def test_logits_log_prob_and_mean_say_the_same(case: str) -> None:
    distribution, parameters, probability = CASES[case]
    levels = distribution.levels
    values = torch.arange(levels)
    log_prob = distribution.log_prob(parameters.expand(levels, -1), values).double()
    assert log_prob.exp().tolist() == pytest.approx(probability.tolist(), rel=1e-4, abs=1e-9)
    assert distribution.logits(parameters).double().softmax(0).tolist() == pytest.approx(
        probability.tolist(), rel=1e-4, abs=1e-9
    )
    assert float(distribution.mean(parameters)) == pytest.approx(float(probability @ values.double()), rel=1e-4)


@pytest.mark.parametrize("levels", [3, 256])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_of_logistic_distributions_is_its_integral(name: str, levels: int) -> None:
    """Also at the outermost levels, and to one; where the reference itself rounds to nothing it says nothing."""
    parameters = torch.tensor(MIXTURES[name])
    components = len(parameters) // 3
    expected = mixture_probabilities(parameters, levels)
    found = LogisticMixture(levels, components).log_prob(parameters.expand(levels, -1), torch.arange(levels)).double()
    sure = expected > 1e-10
    assert bool(sure[[0, -1]].any())
    assert float((found[sure] - expected[sure].log()).abs().max()) < 2e-4
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("log_scale", [-1000.0, -7.0, 0.0, 30.0, 88.0, 1000.0])
def test_a_logistic_distribution_of_any_scale_has_finite_gradients(log_scale: float) -> None:
    parameters = torch.tensor([0.1, -0.3, 0.2, 0.4, log_scale, log_scale]).expand(256, -1).clone().requires_grad_()
    log_prob = LogisticMixture(256, 2).log_prob(parameters, torch.arange(256))
    (gradient,) = torch.autograd.grad(log_prob.sum(), parameters)
    assert bool(log_prob.isfinite().all())
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("temperature", [1e-310, 1e-40, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_the_coldest_samples_are_the_likeliest_value(case: str, dtype: torch.dtype, temperature: float) -> None:
    distribution, parameters, probability = CASES[case]
    for uniform in (1e-7, 0.5, 1 - 1e-7):
        value = distribution.sample(parameters[None], torch.tensor([uniform], dtype=dtype), temperature)
        assert int(value) == int(probability.argmax())


def test_coordinates_have_a_normal_density() -> None:
    distribution = distribution_of(LogisticMixture, 0)
    assert isinstance(distribution, Normal)
    parameters = torch.tensor([[0.3, -1.0], [-2.0, 0.5], [0.0, -50.0]])
    x, mean = torch.tensor([0.1, -3.0, 0.001]), parameters[:, 0]
    assert torch.equal(distribution.mean(parameters), mean)
    scale = distribution.sample(parameters, torch.special.ndtr(torch.ones(3, dtype=torch.float64))) - mean
    # exp of the second number, but never below a thousandth
    assert scale.tolist() == pytest.approx([math.exp(-1) * 1.0027, math.exp(0.5) * 1.0006, 1e-3], rel=1e-3)
    expected = torch.distributions.Normal(mean, scale).log_prob(x)
    torch.testing.assert_close(distribution.log_prob(parameters, x), expected, rtol=1e-4, atol=1e-4)
    cold = distribution.sample(parameters, torch.full((3,), 0.9), temperature=0.0)
    torch.testing.assert_close(cold, mean)


def test_two_levels_are_always_bernoulli() -> None:
    assert isinstance(distribution_of(LogisticMixture, 2), Bernoulli)
    assert isinstance(distribution_of(Categorical, 3), Categorical)


def test_uniform_numbers_are_as_precise_as_the_device_allows() -> None:
    """Apple's devices refuse float64."""
    assert sampling_dtype(torch.device("cpu")) == sampling_dtype(torch.device("cuda", 0)) == torch.float64
    assert sampling_dtype(torch.device("mps")) == torch.float32


@pytest.mark.parametrize("components", [1, 2, 10])
@pytest.mark.parametrize("levels", [3, 9, 16, 100, 256])
def test_samples_of_a_mixture_are_those_of_its_table(levels: int, components: int) -> None:
    """For the same uniform number the value at which the cumulated probabilities of the levels pass it."""
    generator = torch.Generator().manual_seed(levels + components)
    scale = torch.tensor([1.0, 0.8, 2.0]).repeat_interleave(components)
    shift = torch.tensor([0.0, 0.0, -3.0]).repeat_interleave(components)
    parameters = torch.randn(40, 25, 3 * components, generator=generator) * scale + shift
    uniform = torch.rand(40, 25, generator=generator, dtype=torch.float64)
    uniform[0, :2] = torch.tensor([1e-15, 1 - 1e-15])
    distribution = LogisticMixture(levels, components)
    expected = Distribution.sample(distribution, parameters, uniform)
    assert len(expected.unique()) > 0.9 * levels
    for dtype in (torch.float64, torch.float32):
        found = distribution.sample(parameters, uniform.to(dtype))
        assert found.dtype == torch.int64
        assert (found != expected).float().mean() < 0.003, "but where rounding crosses an edge"
        assert (found - expected).abs().float().quantile(0.999) <= 1


def test_samples_of_a_mixture_need_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor with all levels of all values of a batch of colour images is gigabytes."""
    distribution = LogisticMixture(256, 5)
    monkeypatch.setattr(distribution, "logits", None)
    assert distribution.sample(torch.zeros(4, 15), torch.tensor([0.1, 0.5, 0.6, 0.9])).diff().min() > 0


# --- the normal distribution ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [3, 16, 256])
@pytest.mark.parametrize("name", NORMALS)
def test_the_bound_is_one(name: str, levels: int) -> None:
    """log_prob is at most the logarithm of the integral, so that the probabilities it allows sum to at most one."""
    distribution = Gaussian(levels)
    parameters = torch.tensor(NORMALS[name])
    log_prob = distribution.log_prob(parameters.expand(levels, -1), torch.arange(levels)).double()
    assert float(log_prob.exp().sum()) <= 1
    logits = distribution.logits(parameters).double()
    assert bool((log_prob <= logits + 1e-6 * logits.abs() + 1e-6).all())


@pytest.mark.parametrize("name", ["wide", "narrow", "outside"])
def test_the_bound_is_the_expectation_over_the_noise(name: str) -> None:
    """E_u[log p(v + u)] + log(width) with the noise on an even grid."""
    levels = 16
    mean, log_scale = NORMALS[name]
    width = 2 / (levels - 1)
    noise = ((torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID - 0.5) * width
    signals = torch.linspace(-1, 1, levels, dtype=torch.float64)
    density = torch.distributions.Normal(mean, math.exp(log_scale))
    expected = density.log_prob(signals[:, None] + noise).mean(1) + math.log(width)
    found = Gaussian(levels, UNLIMITED).log_prob(torch.tensor(NORMALS[name]).expand(levels, -1), torch.arange(levels))
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.parametrize("name", ["wide", "narrow", "outside"])
def test_logits_of_a_normal_distribution_are_its_integrals(name: str) -> None:
    mean, log_scale = NORMALS[name]
    for levels in (3, 16, 256):
        logits = Gaussian(levels, UNLIMITED).logits(torch.tensor(NORMALS[name])).double()
        expected = normal_probabilities(mean, math.exp(log_scale), levels)
        assert logits.exp().tolist() == pytest.approx(expected.tolist(), abs=1e-7)
        assert float(logits.exp().sum()) == pytest.approx(1, abs=1e-6)


def test_logits_of_a_normal_distribution_where_there_is_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Gaussian(256).logits(torch.tensor(NORMALS["narrow"]))
    monkeypatch.setattr("imago.distributions.sampling_dtype", lambda device: torch.float32)
    monkeypatch.setattr(Tensor, "double", None)
    found = Gaussian(256).logits(torch.tensor(NORMALS["narrow"]))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_logits_of_a_normal_distribution_are_accurate_in_both_tails() -> None:
    """Mirrored means give mirrored logits; far out, log Φ(−z) ≈ −z²/2 − log(z√2π)."""
    distribution = Gaussian(256, UNLIMITED)
    for mean, log_scale in ((0.3, -1.5), (0.9, -4.0), (-0.2, -6.0)):
        logits = distribution.logits(torch.tensor([mean, log_scale]))
        mirrored = distribution.logits(torch.tensor([-mean, log_scale])).flip(0)
        assert bool(logits.isfinite().all())
        torch.testing.assert_close(logits, mirrored, rtol=1e-4, atol=1e-4)
    z = (1 - 1 / 255 - -0.9) / math.exp(-4)  # the lower edge of the last level: 104 standard deviations away
    expected = -z * z / 2 - math.log(z * math.sqrt(2 * math.pi))
    assert float(distribution.logits(torch.tensor([-0.9, -4.0]))[-1]) == pytest.approx(expected, rel=1e-6)
    assert float(distribution.logits(torch.tensor([0.9, -4.0]))[0]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", ["wide", "narrow", "outside"])
def test_samples_of_a_normal_distribution_are_rounded(name: str, temperature: float) -> None:
    """Dividing the logarithm of a normal density by T multiplies its variance by T."""
    mean, log_scale = NORMALS[name]
    expected = normal_probabilities(mean, math.exp(log_scale) * math.sqrt(temperature), 16)
    found = frequencies(Gaussian(16, UNLIMITED), torch.tensor(NORMALS[name]), temperature)
    assert float((found - expected).abs().max()) < 1.5 / GRID


def test_the_mean_of_a_normal_distribution_stays_in_the_image() -> None:
    distribution = Gaussian(256)
    inside = torch.tensor([0.13, -4.0])
    values = torch.arange(256).double()
    expected = float(distribution.logits(inside).double().exp() @ values)
    assert float(distribution.mean(inside)) == pytest.approx(expected, abs=1e-3)
    assert distribution.mean(torch.tensor([[1.5, -1.0], [-1.5, -1.0]])).tolist() == [255, 0]


def test_a_limited_scale_is_approached_and_not_passed() -> None:
    limited, free = LogisticMixture(256, components=1, largest_scale=0.5), LogisticMixture(256, components=1)
    values = torch.tensor([0, 100, 128, 255])
    narrow = torch.tensor([0.0, 0.1, -6.5]).expand(4, 3)  # far below the limit nothing changes
    torch.testing.assert_close(limited.log_prob(narrow, values), free.log_prob(narrow, values), atol=0.1, rtol=1e-2)
    wide = torch.tensor([0.0, 0.0, 50.0]).expand(4, 3)
    at_limit = torch.tensor([0.0, 0.0, math.log(0.5)]).expand(4, 3)
    torch.testing.assert_close(limited.log_prob(wide, values), free.log_prob(at_limit, values))
    raw = torch.tensor([[0.0, 0.3, 3.0]], requires_grad=True)
    limited.log_prob(raw, torch.tensor([200])).sum().backward()
    assert raw.grad is not None
    assert raw.grad[0, 2] != 0, "the way back stays open"


def test_a_normal_scale_approaches_its_limit_and_does_not_pass_it() -> None:
    limit, width = 1e-2, 2 / 255
    limited, free = Gaussian(256, limit), Gaussian(256, UNLIMITED)
    values = torch.tensor([100, 128, 129])
    wide = torch.tensor([0.0, -0.5]).expand(3, 2)  # far above the limit nothing changes
    torch.testing.assert_close(limited.log_prob(wide, values), free.log_prob(wide, values), atol=0.05, rtol=1e-2)
    certain = torch.tensor([0.0, -50.0]).expand(3, 2)
    at_limit = torch.tensor([0.0, math.log(limit)]).expand(3, 2)
    torch.testing.assert_close(limited.log_prob(certain, values), free.log_prob(at_limit, values), rtol=1e-4, atol=0)
    raw = torch.tensor([[0.0, math.log(limit) - 3]], requires_grad=True)
    for value, sign in ((100, 1), (128, -1)):  # far from the mean a larger scale is better, at the mean a smaller one
        assert (abs(value * width - 1) > limit) == (sign > 0)
        (gradient,) = torch.autograd.grad(limited.log_prob(raw, torch.tensor([value])).sum(), raw)
        assert sign * gradient[0, 1] > 0.01, "the way back stays open"
