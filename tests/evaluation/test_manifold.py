"""Precision, recall, density and coverage: their definitions, and what they say of known clouds."""

from types import SimpleNamespace

import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from imago.evaluation import PRDC


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
