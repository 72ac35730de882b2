"""Precision, recall, density and coverage: their definitions, and what they say of known clouds."""

from types import SimpleNamespace

import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from imago.evaluation import PRDC
from imago.evaluation.manifold import equivalent_share


def cloud(n: int, seed: int, shift: float = 0.0, scale: float = 1.0, d: int = 8) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale + shift


def prdc(samples: torch.Tensor, reference: torch.Tensor, block: int = 500) -> SimpleNamespace:
    metric = PRDC(block=block)
    for part in samples.split(17):
        metric.update(part, real=False)
    for part in reference.split(23):
        metric.update(part, real=True)
    return SimpleNamespace(**{name: float(value) for name, value in metric.compute().items()})


def naive(samples: torch.Tensor, reference: torch.Tensor, k: int = 5) -> tuple[float, float]:
    """Density and coverage as their definitions are written, one pair at a time."""

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() - b.double()).square().sum().sqrt())

    balls = []
    for i, x in enumerate(reference):
        balls.append(sorted(distance(x, y) for j, y in enumerate(reference) if j != i)[k - 1])
    inside = [[distance(y, x) <= r for x, r in zip(reference, balls, strict=True)] for y in samples]
    density = sum(map(sum, inside)) / (k * len(samples))
    coverage = sum(any(column) for column in zip(*inside, strict=True)) / len(reference)
    return density, coverage


def naive_clipped(samples: torch.Tensor, reference: torch.Tensor, k: int = 5) -> tuple[float, float]:
    """Clipped density, and what clipped coverage is calibrated from, one pair at a time."""

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() - b.double()).square().sum().sqrt())

    balls = [sorted(distance(x, y) for y in reference)[k] for x in reference]  # itself is the nearest
    clipped = [min(r, sorted(balls)[(len(balls) - 1) // 2]) for r in balls]

    def density(points: torch.Tensor, own: bool) -> float:
        hits = [
            sum(
                distance(y, x) <= r
                for j, (x, r) in enumerate(zip(reference, clipped, strict=True))
                if not own or j != i
            )
            for i, y in enumerate(points)
        ]
        return sum(min(1, h / k) for h in hits) / len(points)

    inside = [sum(distance(y, x) <= r for y in samples) for x, r in zip(reference, balls, strict=True)]
    filling = sum(min(k, n) for n in inside) / (k * len(reference))
    return min(1, density(samples, False) / density(reference, True)), filling


CLOUDS = [
    (cloud(90, 1), cloud(90, 2)),
    (cloud(70, 1, shift=0.6), cloud(70, 2)),
    (cloud(110, 1, scale=0.4), cloud(110, 2)),
    (cloud(60, 1, scale=2.0), cloud(60, 2)),
]


@pytest.mark.parametrize(("samples", "reference"), CLOUDS)
def test_precision_and_recall_equal_torch_fidelitys(samples: torch.Tensor, reference: torch.Tensor) -> None:
    """Not swapped: its first argument is the samples since 0.4.0, and narrow samples are precise without recall."""
    theirs = prc_features_to_metric(samples.double(), reference.double(), prc_neighborhood=3, verbose=False)
    ours = prdc(samples, reference)
    assert ours.precision == pytest.approx(theirs["precision"], abs=1e-6)  # theirs are float32
    assert ours.recall == pytest.approx(theirs["recall"], abs=1e-6)


@pytest.mark.parametrize(("samples", "reference"), CLOUDS)
def test_density_and_coverage_are_their_definitions(samples: torch.Tensor, reference: torch.Tensor) -> None:
    ours = prdc(samples, reference)
    assert (ours.density, ours.coverage) == pytest.approx(naive(samples, reference), rel=1e-12)


@pytest.mark.parametrize(("samples", "reference"), CLOUDS)
def test_clipped_density_and_coverage_are_their_definitions(samples: torch.Tensor, reference: torch.Tensor) -> None:
    samples, reference = samples[:60], reference[:60]
    ours = prdc(samples, reference, block=13)
    density, filling = naive_clipped(samples, reference)
    assert ours.clipped_density == pytest.approx(density, rel=1e-12)
    share = float(equivalent_share(torch.tensor(filling, dtype=torch.float64), 60, 5))
    assert ours.clipped_coverage == pytest.approx(share, abs=1e-12)


def test_filling_of_one_ball_has_a_closed_form() -> None:
    """With k = 1 it is 1 − E (1 − p)^m = m / (n − 1 + m), with p distributed as Beta(1, n − 1)."""
    for m in (0, 1, 7, 40, 50):
        assert float(equivalent_share(torch.tensor(m / (49 + m), dtype=torch.float64), 50, 1)) == pytest.approx(m / 50)
    assert float(equivalent_share(torch.tensor(0.99, dtype=torch.float64), 50, 1)) == 1


def test_filling_is_what_simulated_balls_have() -> None:
    """300 real points on a line and 120 good samples among others far away: 120 / 300."""
    generator, fillings = torch.Generator().manual_seed(0), []
    for _ in range(40):
        real, good = torch.rand(300, 1, generator=generator).double(), torch.rand(120, 1, generator=generator).double()
        radii = torch.cdist(real, real).sort(1).values[:, 5:6]
        fillings.append((torch.cdist(real, good) <= radii).sum(1).clamp(max=5).double().mean() / 5)
    share = float(equivalent_share(torch.stack(fillings).mean(), 300, 5))
    assert share == pytest.approx(120 / 300, abs=0.01)


@pytest.mark.parametrize("bad", [0.25, 0.5, 0.75])
def test_clipped_ones_fall_with_the_share_of_bad_samples(bad: float) -> None:
    """As the paper promises: in proportion."""
    count = int(800 * bad)
    measures = prdc(torch.cat([cloud(800 - count, 1, d=4), cloud(count, 3, shift=40, d=4)]), cloud(800, 2, d=4))
    assert measures.clipped_density == pytest.approx(1 - bad, abs=0.06)
    assert measures.clipped_coverage == pytest.approx(1 - bad, abs=0.06)


def test_an_outlier_among_the_real_images_raises_no_clipped_density() -> None:
    """All samples lie far from the data, in the large ball of a real image that lies there too."""
    outlier = torch.full((1, 8), 20.0)
    samples, real = cloud(100, 3, shift=25), torch.cat([cloud(99, 1), outlier])
    measures = prdc(samples, real)
    assert measures.precision > 0.99
    assert measures.clipped_density == 0


def test_blocks_change_nothing() -> None:
    samples, reference = cloud(95, 1, shift=0.3), cloud(95, 2)
    assert prdc(samples, reference, block=7) == prdc(samples, reference, block=1000)


def test_narrow_samples_are_precise_and_wide_ones_recall() -> None:
    reference = cloud(500, 1)
    narrow, wide = (prdc(cloud(500, 2, scale=scale), reference) for scale in (0.2, 3.0))
    assert narrow.precision > 0.99 > 0.1 > narrow.recall
    assert wide.recall > 0.99 > 0.1 > wide.precision
    assert narrow.coverage < 0.5
    assert narrow.density > 1.5  # an estimate of how dense the data are there: not bounded by 1
    assert wide.density < 0.1


def test_equal_distributions_agree_and_distant_ones_do_not() -> None:
    same = prdc(cloud(800, 1), cloud(800, 2))
    assert same.density == pytest.approx(1, abs=0.1)
    assert same.coverage == pytest.approx(1 - 2**-5, abs=0.02)  # its expectation for many images
    far = prdc(cloud(100, 1, shift=50), cloud(100, 2))
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_the_reference_itself_is_all_within() -> None:
    """Copies, of large features too: distances are not lost in rounding."""
    reference = cloud(60, 1, shift=1000)
    copies = prdc(reference, reference)
    assert (copies.precision, copies.recall, copies.coverage) == (1, 1, 1)
    assert copies.density >= 1


def test_the_border_of_a_ball_belongs_to_it() -> None:
    """Only the balls around 0, of radii 3 and 5, and the one around 1, of radius 4, reach below -2."""
    grid = torch.arange(10.0)[:, None]
    points = torch.tensor([-3.0, -5, -6, -100, -200, -300, -400, -500, -600, -700])[:, None]
    measures = prdc(points, grid)
    assert measures.precision == pytest.approx(1 / 10), "-3, in the small ball"
    assert measures.density == pytest.approx(3 / (5 * 10)), "-3 and -5 in the large one, and -3 in the one around 1"
    assert measures.coverage == pytest.approx(2 / 10)
    assert prdc(grid, points).recall == pytest.approx(1 / 10)


def test_equally_many_take_part_the_real_ones_at_random() -> None:
    real = torch.cat([cloud(60, 1), cloud(60, 2, shift=50)])
    assert prdc(cloud(60, 3), real[:60]).recall > 0.8
    assert prdc(cloud(60, 3), real).recall == pytest.approx(0.5, abs=0.15), "not the first 60"
    assert prdc(torch.cat([cloud(60, 3), cloud(200, 4, shift=90)]), cloud(60, 2)).precision > 0.9, "the first samples"


def test_too_few_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="5 generated and 60 real vectors: 6 of each"):
        prdc(cloud(5, 1), cloud(60, 2))
