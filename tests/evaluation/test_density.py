"""KL divergences from a known distribution: of densities point by point, of samples by histograms; and modes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from imago.data import ImageDataModule
from imago.data.shapes import SHAPES
from imago.data.sources import Toy
from imago.evaluation import Auto, Classifier, SampleQuality, measure_likelihood
from imago.evaluation.density import BINS, HistogramKL, ModeCoverage, bin_of, probabilities
from imago.images import ImageSpec
from imago.measures import better
from imago.models.base import ExplicitModel

CPU = torch.device("cpu")


def toy(shape: Any, levels: int | None = None) -> ImageDataModule:
    data = ImageDataModule(Toy(shape, levels), dir="nothing-here")
    data.prepare()
    return data


class Known(ExplicitModel):
    """Says what a function of the points says."""

    likelihood = "exact"
    ema = ()
    kinds = ("pixels", "points")

    def __init__(self, spec: ImageSpec, says: Any, **common: Any) -> None:
        super().__init__(spec, **common)
        self.says = says

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {}

    def batch_losses(self, batch: Any, rng: Any) -> Any:
        raise NotImplementedError

    def generate(self, n: int, condition: Any, generator: Any, /) -> Tensor:
        raise NotImplementedError

    def log_prob(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return self.says(images, labels)


def measured(model: ExplicitModel, data: ImageDataModule, **more: Any) -> dict[str, Any]:
    return {m.name: m for m in measure_likelihood(model, data, "test", averaged=False, batch_size=5000, **more)}


@pytest.mark.parametrize("levels", [None, 40])
@pytest.mark.parametrize("conditional", [False, True])
def test_the_divergence_of_the_data_from_themselves_is_zero(levels: int | None, conditional: bool) -> None:
    data = toy("two_moons", levels)
    model = Known(data.spec, lambda x, y: data.source.log_prob(x, y), conditional=conditional)
    found = measured(model, data)
    assert found["kl"].value == pytest.approx(0, abs=1e-9)
    assert found["kl"].protocol.likelihood == "exact"
    assert found["kl"].protocol.relation == "="
    assert "kl_bpd" not in found


@pytest.mark.parametrize("levels", [None, 60])
def test_the_divergence_from_another_density_is_its_integral(levels: int | None) -> None:
    """Of the line's mixture from a normal distribution, by sums over a fine grid or over all values."""
    data = toy("mixture", levels)
    if levels is None:

        def says(x: Tensor, _: Any) -> Tensor:
            return -0.5 * (x.flatten() / 1.5).square() - math.log(1.5 * math.sqrt(2 * math.pi))

        axis = torch.linspace(-8, 8, 32_001, dtype=torch.float64)
        log_p = SHAPES["mixture"]().log_density(axis[:, None])
        expected = float((log_p.exp() * (log_p - says(axis, None))).sum() * (axis[1] - axis[0]))
    else:

        def says(x: Tensor, _: Any) -> Tensor:
            return torch.full((len(x),), -math.log(levels))

        log_p = data.source.log_prob(torch.arange(levels, dtype=torch.uint8).view(-1, 1, 1, 1))
        expected = float(torch.special.xlogy(log_p.exp(), log_p.exp()).sum()) + math.log(levels)
    kl = measured(Known(data.spec, says), data)["kl"]
    assert 0.2 < expected < 1.5
    assert kl.protocol.standard_error < 0.02
    assert kl.value == pytest.approx(expected, abs=4 * kl.protocol.standard_error)


def test_a_model_without_mass_where_data_are_is_infinitely_far() -> None:
    data = toy("gap")
    model = Known(data.spec, lambda x, _: torch.where(x.flatten() > 0, -math.log(1.2), -math.inf))
    assert measured(model, data)["kl"].value == math.inf


def test_bounds_and_estimates_say_what_the_divergence_is() -> None:
    data = toy("gap")
    model = Known(data.spec, lambda x, y: data.source.log_prob(x, y))
    model.likelihood = "lower_bound"
    assert measured(model, data)["kl"].protocol.relation == "≤"
    assert "lower bound" in measured(model, data)["kl"].protocol.caveat


def test_which_way_is_better() -> None:
    assert [better(f"val/{name}") for name in ("kl", "kl_histogram", "modes", "high_quality")] == [
        "low",
        "low",
        "high",
        "high",
    ]
    assert better("val/elbo/kl") is None


@pytest.mark.parametrize(("shape", "levels"), [(name, None) for name in SHAPES] + [("spiral", 50), ("skewed", 7)])
def test_bins_have_the_probabilities_that_points_have(shape: Any, levels: int | None) -> None:
    source = toy(shape, levels).source
    assert isinstance(source, Toy)
    bins = 12
    p = probabilities(source, bins)
    points = source.points(toy(shape, levels).train.images)
    found = torch.bincount(bin_of(points, bins), minlength=len(p)).numpy()
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert found[p.numpy() == 0].sum() == 0
    kept = p.numpy() * len(points) >= 5
    expected = p.numpy()[kept]
    assert stats.chisquare(found[kept], expected / expected.sum() * found[kept].sum()).pvalue > 1e-5


def test_bins() -> None:
    x = torch.tensor([[-3.0, -3.0], [-3.0, 2.999], [2.999, -3.0], [3.0, 0.0], [0.0, -3.01], [math.nan, 0.0]])
    assert bin_of(x.double(), 10).tolist() == [0, 9, 90, 100, 100, 100]


def test_the_histogram_has_the_bias_that_is_said_and_sees_what_is_missing() -> None:
    """Samples of p itself: about half the occupied bins over the samples; without half of p: log 2 and more."""
    shape = SHAPES["gap"]()
    source = toy("gap").source
    assert isinstance(source, Toy)
    bins = BINS[1]
    p = probabilities(source, bins)
    random, found = np.random.RandomState(3), []
    for n in (500, 2000):
        values = []
        for _ in range(40):
            metric = HistogramKL(p, bins)
            metric.update(torch.from_numpy(shape.draw(random.randint(0, 2, n), random)))
            values.append(float(metric.compute()))
        occupied = int((p > 0).sum())
        error = np.std(values) / math.sqrt(40)
        # Half a sample in each of 61 empty bins takes its share of q away from the others.
        bias = (occupied - 1) / (2 * n) + math.log1p(SMOOTHED * len(p) / n) - SMOOTHED * occupied / n
        assert np.mean(values) == pytest.approx(bias, abs=4 * error + 2 * bias**2)
        found.append(np.mean(values))
    assert found[1] < 0.5 * found[0]
    half = HistogramKL(p, bins)
    half.update(torch.from_numpy(shape.draw(np.zeros(2000, int), random)))
    assert float(half.compute()) > math.log(2) + 1
    exact = HistogramKL(p, bins)
    exact.update(torch.zeros(1, 1, dtype=torch.float64))
    exact.counts += (p * 10**12).long()
    assert float(exact.compute()) == pytest.approx(0, abs=1e-6)


SMOOTHED = 0.5


def test_modes_and_quality() -> None:
    shape = SHAPES["eight_gaussians"]()
    random = np.random.RandomState(0)

    def points(modes: Any) -> Tensor:
        return torch.from_numpy(shape.draw(np.asarray(modes), random))

    coverage = ModeCoverage(shape, points(random.randint(0, 8, 10_000)))

    def found(x: Tensor) -> tuple[float, float]:
        coverage.reset()
        coverage.update(x)
        numbers = coverage.compute()
        return float(numbers["modes"]), float(numbers["high_quality"])

    modes, quality = found(points(random.randint(0, 8, 10_000)))
    assert modes == 8
    assert quality == pytest.approx(0.99, abs=4 * math.sqrt(0.01 * 0.99 / 10_000) + 0.003)
    assert found(points(np.full(1000, 3)))[0] == 1
    assert found(points([3] * 985 + [4] * 15))[0] == 2  # 1000 / 8 / 10 = 12.5 are enough
    assert found(points([3] * 990 + [4] * 10))[0] == 1
    assert found(torch.zeros(1000, 2, dtype=torch.float64)) == (0, 0)
    # Three standard deviations of a mode, log(0.01) = −r² / 2: a ring at r = 3.2 σ is not good any more, one at 2.8 is.
    angle = torch.linspace(0, 6, 100, dtype=torch.float64)
    ring = torch.stack([angle.cos(), angle.sin()], 1) * shape.scale  # type: ignore[attr-defined]
    centre = torch.tensor([shape.radius, 0.0], dtype=torch.float64)  # type: ignore[attr-defined]
    assert [found(centre + r * ring)[1] for r in (2.8, 3.2)] == [1.0, 0.0]


def test_points_are_measured_against_their_density() -> None:
    data = toy("eight_gaussians")
    metrics = SampleQuality(Auto(), samples=2000, batch_size=700)
    metrics.prepare(data, CPU)
    assert metrics.names == ["kl_histogram", "modes", "high_quality"]
    assert metrics.notices == []
    train = data.train.images
    found = {m.name: m for m in metrics.measure(lambda n, first: train[first : first + n])}
    kl = found["kl_histogram"]
    assert kl.protocol.held_out_value == pytest.approx(kl.value, rel=0.3)
    assert (kl.protocol.samples, kl.protocol.held_out_images, kl.protocol.bins) == (2000, 2000, 1025)
    assert found["modes"].value == 8
    assert found["high_quality"].value == pytest.approx(0.99, abs=0.01)
    noise = torch.randn(2000, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    far = {m.name: m.value for m in metrics.measure(lambda n, first: noise[first : first + n])}
    assert far["kl_histogram"] > kl.value + 0.5
    assert far["high_quality"] < 0.5
    metrics.take(500)
    fewer = metrics.measure(lambda n, first: train[first : first + n])[0]
    assert fewer.protocol.held_out_value > 1.3 * kl.protocol.held_out_value


def test_quantised_points_are_measured_too_and_other_choices_as_before(tmp_path: Path) -> None:
    data = toy("mixture", levels=64)
    metrics = SampleQuality(Auto(), samples=1000)
    metrics.prepare(data, CPU)
    found = {m.name: m for m in metrics.measure(lambda n, first: data.train.images[first : first + n])}
    assert found["kl_histogram"].value < 0.2
    assert found["modes"].value == 3
    features = SampleQuality(Classifier(), samples=1000)
    features.prepare(toy("mixture"), CPU)
    assert features.names == []
    assert "features are of pictures" in features.notices[0]


def test_a_shape_without_modes_is_measured_by_its_histogram() -> None:
    metrics = SampleQuality(Auto(), samples=1000)
    metrics.prepare(toy("skewed"), CPU)
    assert metrics.names == ["kl_histogram"]
