import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import _compute_fid

from imago.evaluation import ExtrapolatedFrechetDistance, FrechetDistance, frechet_distance
from imago.evaluation.frechet import merged


def features(n: int, d: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(99))
    return scale * torch.randn(n, d, generator=generator) @ mixing + 3 + seed


def seen(x: torch.Tensor, y: torch.Tensor, batch: int = 7) -> FrechetDistance:
    metric = FrechetDistance(num_features=x.shape[1])
    for part in x.split(batch):
        metric.update(part, real=False)
    for part in y.split(batch):
        metric.update(part, real=True)
    return metric


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(seen(x, y).compute())


def test_moments_are_those_of_the_whole_in_float64():
    x = 1e6 + features(100, 5, seed=1)  # a mean a million times the spread: float32 sums would lose the covariance
    for real, metric in ((False, seen(x, x[:2])), (True, seen(x[:2], x))):
        mean, covariance = metric.moments(real)
        np.testing.assert_allclose(mean, x.double().mean(0), rtol=1e-14)
        np.testing.assert_allclose(covariance, np.cov(x.double().numpy(), rowvar=False), rtol=1e-9)


def test_states_of_several_processes_are_merged_without_losing_digits():
    x = 1e6 + features(100, 5, seed=1)
    parts = [seen(part, x).fake for part in x.split([60, 37, 3])]
    torch.testing.assert_close(merged(torch.stack([*parts, torch.zeros(6, 6, dtype=torch.float64)])), seen(x, x).fake)
    assert not merged(torch.zeros(2, 6, 6, dtype=torch.float64)).any(), "of none"


def test_covariance_of_one_vector_is_refused():
    for x, y, side in ((1, 2, "generated"), (2, 1, "real")):
        with pytest.raises(ValueError, match=f"at least 2 feature vectors, got 1 of {side} images"):
            distance(torch.ones(x, 3), torch.ones(y, 3))


def test_statistics_take_the_place_of_real_images():
    x, y = features(40, 8, seed=1), features(50, 8, seed=2)
    metric = seen(x, x)
    metric.set_real(y.double().mean(0), torch.cov(y.double().T), 50)
    assert float(metric.compute()) == pytest.approx(distance(x, y), rel=1e-12)
    metric.update(x[:20], real=True)
    assert float(metric.compute()) == pytest.approx(distance(x, torch.cat([y, x[:20]])), rel=1e-12), "and more follow"


def test_commuting_gaussians_have_a_closed_form():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    s, t = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    means = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    found = frechet_distance(means[0], basis @ s.diag() @ basis.T, means[1], basis @ t.diag() @ basis.T)
    # Equal eigenvectors: |m1 - m2|² + Σ (√s - √t)²
    expected = (means[0] - means[1]).square().sum() + (s.sqrt() - t.sqrt()).square().sum()
    assert found == pytest.approx(float(expected), rel=1e-12)


def test_two_dimensional_gaussians_have_a_closed_form():
    a = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
    b = torch.tensor([[0.5, -0.2], [-0.2, 3.0]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    # For 2x2 matrices Tr √M = √(Tr M + 2 √det M); these two do not commute
    trace_root = torch.sqrt((a @ b).trace() + 2 * torch.sqrt(torch.det(a @ b)))
    expected = a.trace() + b.trace() - 2 * trace_root
    assert frechet_distance(zero, a, zero, b) == pytest.approx(float(expected), rel=1e-12)


def test_equal_clouds_have_distance_zero():
    x = features(40, 64, seed=1)  # singular covariance too
    assert distance(x, x) == pytest.approx(0, abs=1e-9 * float(x.double().T.cov().trace()))
    assert min(distance(x, x) for x in (features(40, 8, seed=k) for k in range(20))) >= 0, "and never less by rounding"


@pytest.mark.parametrize("n", [40, 500])
def test_equals_torch_fidelity_and_torchmetrics(n):
    x, y = features(n, 64, seed=1), features(n, 64, seed=2, scale=1.5)
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(x.double()), fid_features_to_statistics(y.double()), verbose=False
    )["frechet_inception_distance"]
    assert distance(x, y) == pytest.approx(theirs, rel=1e-6)
    given = [moment for z in (x.double(), y.double()) for moment in (z.mean(0), z.T.cov())]
    assert distance(x, y) == pytest.approx(float(_compute_fid(*given)), rel=1e-6)


def spectrum(n: int, decay: float, seed: int, d: int = 96) -> torch.Tensor:
    """Features whose standard deviations along hidden axes are 1, 2^-decay, 3^-decay, …"""
    axes = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).Q
    scales = torch.arange(1, d + 1, dtype=torch.float64) ** -decay
    return (torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scales) @ axes


@pytest.mark.parametrize("decay", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("n", "m"), [(300, 200), (40, 300), (300, 40), (30, 60), (60, 30), (2, 2)])
def test_is_exact_whatever_the_ranks_and_the_spectra(n: int, m: int, decay: float) -> None:
    """Tr (C₁C₂)^½ is the sum of the singular values of X Yᵀ, of centred features: no root of a rounding error there."""
    x, y = spectrum(n, decay, 1), 1.1 * spectrum(m, decay, 2)
    spreads = [(part - part.mean(0)) / (len(part) - 1) ** 0.5 for part in (x, y)]
    exact = (x.mean(0) - y.mean(0)).square().sum() + sum(s.square().sum() for s in spreads)
    exact -= 2 * torch.linalg.svdvals(spreads[0] @ spreads[1].T).sum()
    assert distance(x, y) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize("size", [1.0, 0.1, 1e-2])
def test_singular_covariances_of_equal_rank_that_share_a_part_of_their_support(size: float) -> None:
    """Different features are constant in each; neither rank is the lower one, and zeros are among the eigenvalues."""
    d, dead = 120, 20
    axes = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).Q
    x, y = (torch.randn(600, d, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (1, 2))
    x[:, :dead], y[:, -dead:] = 0, 0
    x[:, -dead:] *= size
    y[:, :dead] *= size
    x, y = x @ axes, y @ axes
    spreads = [(part - part.mean(0)) / (len(part) - 1) ** 0.5 for part in (x, y)]
    exact = (x.mean(0) - y.mean(0)).square().sum() + sum(s.square().sum() for s in spreads)
    exact -= 2 * torch.linalg.svdvals(spreads[0] @ spreads[1].T).sum()
    assert distance(x, y) == pytest.approx(float(exact), rel=1e-11)


def test_clouds_without_extent_and_apart() -> None:
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert frechet_distance(zero, zero.diag(), one, zero.diag()) == 3, "two points"
    assert frechet_distance(zero, zero.diag(), one, one.diag()) == 6
    low, high = torch.tensor([2.0, 0, 0], dtype=torch.float64), torch.tensor([0, 3.0, 1], dtype=torch.float64)
    assert frechet_distance(zero, low.diag(), zero, high.diag()) == 6, "in directions that are not shared"


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_has_no_distance(broken: float) -> None:
    good, bad = torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    bad[1, 1] = broken
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match="not finite"):
            frechet_distance(good[0], pair[0], good[0], pair[1])


def extrapolated(x: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> tuple[float, float]:
    metric = ExtrapolatedFrechetDistance(num_features=x.shape[1])
    metric.set_real(mean, covariance, 10**6)
    for part in x.split(100):
        metric.update(part, real=False)
    found = metric.compute()
    return float(found["fd_infinity"]), float(found["fd_infinity_error"])


def test_infinitely_many_samples_have_the_closed_form_and_the_stated_error():
    """Of N(m, s² I) and N(0, I) it is d (s − 1)² + |m|²; the distance of 400 samples is larger by several errors."""
    d, mean, deviation = 20, 0.1, 1.2
    truth = d * ((deviation - 1) ** 2 + mean**2)
    standard = torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    found, errors, plain = [], [], []
    for seed in range(40):
        x = mean + deviation * torch.randn(400, d, generator=torch.Generator().manual_seed(seed)).double()
        value, error = extrapolated(x, *standard)
        found.append(value)
        errors.append(error)
        plain.append(frechet_distance(x.mean(0), x.T.cov(), *standard))
    off = torch.tensor(found).double() - truth
    spread = float(off.std())
    assert abs(float(off.mean())) < 4 * spread / 40**0.5
    assert float(torch.tensor(errors).square().mean().sqrt()) == pytest.approx(spread, rel=0.4)
    assert float((torch.tensor(plain).double() - truth).mean()) > 4 * abs(float(off.mean())), "without extrapolation"


def test_the_bias_of_equal_distributions_goes_away():
    standard = torch.zeros(10, dtype=torch.float64), torch.eye(10, dtype=torch.float64)
    clouds = [torch.randn(2000, 10, generator=torch.Generator().manual_seed(k)).double() for k in range(20)]
    plain = sum(frechet_distance(x.mean(0), x.T.cov(), *standard) for x in clouds)
    assert abs(sum(extrapolated(x, *standard)[0] for x in clouds)) < 0.1 * plain


def test_extrapolation_needs_parts_and_forgets_its_samples():
    metric = ExtrapolatedFrechetDistance(num_features=3, reset_real_features=False)
    metric.update(features(50, 3, 1), real=True)
    for n, raises in ((9, True), (10, False), (9, True)):
        metric.reset()
        metric.update(features(n, 3, 2), real=False)
        if raises:
            with pytest.raises(ValueError, match="9 generated images: 10 are needed"):
                metric.compute()
        else:
            assert metric.compute()["fd_infinity_error"] > 0
