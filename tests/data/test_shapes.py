"""Points whose density is known: the density integrates to one, and the points are drawn from it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from imago.data import ImageDataModule
from imago.data.shapes import RANGE, SHAPES, Rings, Shape
from imago.data.sources import Toy
from imago.images import ImageSpec

LONG = 8.0  # far beyond everything


def edges(count: int) -> torch.Tensor:
    return torch.linspace(-RANGE, RANGE, count + 1, dtype=torch.float64)


@pytest.fixture(params=SHAPES, name="name")
def _name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(name="shape")
def _shape(name: str) -> Shape:
    return SHAPES[name]()


def drawn(shape: Shape, count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.RandomState(seed)
    modes = random.randint(0, shape.modes, count)
    return torch.from_numpy(shape.draw(modes, random)), torch.from_numpy(modes)


def test_the_density_of_every_mode_integrates_to_one(shape: Shape) -> None:
    """By the plain sum over an even grid, of which no edge of a square or interval is a point."""
    step = 0.02 if shape.dimensions == 2 else 0.002
    axis = torch.arange(-LONG if shape.dimensions == 1 else -RANGE, LONG, step, dtype=torch.float64) + step / 2
    axis = axis[axis < (LONG if shape.dimensions == 1 else RANGE)]
    x = torch.cartesian_prod(*[axis] * shape.dimensions).view(-1, shape.dimensions)
    total = shape.log_modes(x).exp().sum(0) * step**shape.dimensions
    # Of a jump the sum misses up to half a step on either side; Gumbel's tail beyond 8 is 2e-5.
    bound = 0.06 if type(shape).__name__ == "Checkerboard" else 2e-3 if type(shape).__name__ == "Gap" else 3e-5
    assert (total - 1).abs().max() < bound


def test_points_are_drawn_from_the_density(shape: Shape) -> None:
    """Of every mode a chi-square test against the integrals over boxes; at 1 in 100,000 it is no accident."""
    count = 12 if shape.dimensions == 2 else 40
    boxes, (x, modes) = shape.boxes(edges(count)), drawn(shape, 40_000)
    for k in range(shape.modes):
        expected, found = boxes[k].flatten() * (modes == k).sum(), counted(x[modes == k], count)
        assert int(found[expected <= 0].sum()) == 0
        assert agreement(found, expected) > 1e-5


def counted(x: torch.Tensor, count: int) -> torch.Tensor:
    """How many points lie in each box; of those outside none."""
    cells = ((x[x.abs().amax(1) < RANGE] + RANGE) * (count / (2 * RANGE))).floor().long()
    flat = cells[:, 0] * count + cells[:, 1] if x.shape[1] == 2 else cells[:, 0]
    return torch.bincount(flat, minlength=count ** x.shape[1])


def agreement(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The p-value of a chi-square test; boxes where less than five are expected are one."""
    often = expected >= 5
    many = [torch.cat([counts[often], counts[~often].sum()[None]]).double() for counts in (found, expected)]
    kept = many[1] >= 5
    seen, awaited = many[0][kept], many[1][kept]
    return float(stats.chisquare(seen.numpy(), (awaited * (seen.sum() / awaited.sum())).numpy()).pvalue)


def test_a_wrong_density_is_noticed() -> None:
    """The chi-square test above can fail: rings whose noise is a tenth wider."""
    shape = Rings()
    expected = shape.boxes(edges(40)).mean(0).flatten() * 40_000
    shape.scale *= 1.1  # type: ignore[misc]
    assert agreement(counted(drawn(shape, 40_000)[0], 40), expected) < 1e-5


def test_the_mean_of_the_log_density_is_minus_the_entropy(shape: Shape) -> None:
    """∫ p log p by sums over boxes, each as fine as the density varies, against the mean over points."""
    count = 240 if shape.dimensions == 2 else 6000
    axis = edges(count)[:-1] + RANGE / count
    x = torch.cartesian_prod(*[axis] * shape.dimensions).view(-1, shape.dimensions)
    log_p = torch.cat([shape.log_density(part) for part in x.split(2**16)])
    p = log_p.exp() * (2 * RANGE / count) ** shape.dimensions
    integral = float((p * log_p.clamp(min=-1e6)).sum())
    points = shape.log_density(drawn(shape, 20_000)[0])
    points = points[drawn(shape, 20_000)[0].abs().amax(1) < RANGE]
    error = float(points.std()) / math.sqrt(len(points))
    beyond = 1 - float(p.sum())  # of the mass, with nats of its own
    assert float(points.mean()) == pytest.approx(integral, abs=5 * error + 5 * beyond + 1e-3)


def test_rings_are_rices_distribution() -> None:
    shape = Rings()
    x = torch.linspace(0.05, 3, 50, dtype=torch.float64)
    found = shape.log_modes(torch.stack([x, torch.zeros_like(x)], 1)).exp() * (2 * math.pi * x)[:, None]
    for k, radius in enumerate(shape.radii()):
        expected = stats.rice.pdf(x.numpy(), radius / shape.scale, scale=shape.scale)
        assert found[:, k].numpy() == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", ["two_moons", "spiral"])
def test_curves_are_integrated_as_scipy_does(name: str) -> None:
    shape = SHAPES[name]()
    x, _ = drawn(shape, 5, seed=3)
    found = shape.log_modes(x).exp()
    for point, densities in zip(x.numpy(), found.numpy(), strict=True):
        for k in range(shape.modes):

            def integrand(t: float, k: int = k, point: np.ndarray = point) -> float:
                where = shape.at(np.array([k]), np.array([t]))[0]  # type: ignore[attr-defined]
                density = stats.multivariate_normal.pdf(point, where, shape.scale**2)  # type: ignore[attr-defined]
                return float(density * shape.weight(np.array([t]))[0])  # type: ignore[attr-defined]

            expected, _ = integrate.quad(integrand, 0, shape.length, limit=500, epsabs=1e-9)  # type: ignore[attr-defined]
            assert densities[k] == pytest.approx(expected, rel=1e-5, abs=1e-7)


def module(source: Toy, tmp_path: Path) -> ImageDataModule:
    data = ImageDataModule(source, dir=str(tmp_path))
    data.prepare()
    return data


def test_points_and_their_classes(name: str, tmp_path: Path) -> None:
    data = module(Toy(name), tmp_path)  # type: ignore[arg-type]
    shape = SHAPES[name]()
    assert (len(data.train), len(data.val), len(data.test)) == (50_000, 10_000, 10_000)
    assert data.name == name
    assert (data.spec.kind, data.spec.shape) == ("points", (shape.dimensions, 1, 1))
    assert data.spec.classes == (shape.modes if shape.modes > 1 else 0)
    assert 0.4 < float(data.train.images.var()) < 1.6
    points = data.test.images
    assert points.dtype == torch.float32
    of_points = data.source.log_prob(points)
    assert of_points is not None
    assert of_points.isfinite().all()
    if shape.modes > 1:
        labels = data.test.labels
        of_class = data.source.log_prob(points, labels)
        assert of_class is not None
        assert of_class.mean() > of_points.mean() + 0.1
    again = module(Toy(name), tmp_path)  # type: ignore[arg-type]
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize("name", ["two_moons", "checkerboard", "skewed"])
def test_the_probability_of_a_quantised_point(name: str, tmp_path: Path) -> None:
    """All probabilities sum to one, and a cell is as frequent as its probability says."""
    levels = 20
    data = module(Toy(name, levels=levels), tmp_path)  # type: ignore[arg-type]
    d = SHAPES[name]().dimensions
    assert data.spec == ImageSpec(1, 1, d, levels, data.spec.classes, data.spec.class_names, data.spec.class_counts)
    assert data.name == f"{name}-20"
    every = torch.cartesian_prod(*[torch.arange(levels, dtype=torch.uint8)] * d).view(-1, 1, 1, d)
    log_p = data.source.log_prob(every)
    assert log_p is not None
    assert log_p.exp().sum() == pytest.approx(1, abs=1e-9)
    flat = data.train.images.flatten(1).long()
    found = torch.bincount(flat[:, 0] * levels + flat[:, 1] if d == 2 else flat[:, 0], minlength=levels**d)
    expected = log_p.exp() * len(flat)
    assert int(found[expected <= 0].sum()) == 0
    assert agreement(found, expected) > 1e-5


def test_other_data_do_not_know_their_distribution(tmp_path: Path) -> None:
    from imago.data.sources import Digits

    data = ImageDataModule(Digits(), dir=str(tmp_path))
    data.prepare()
    assert data.source.log_prob(data.test.images) is None
    assert data.source.shape is None
