"""How far are samples from a distribution that is known (:mod:`imago.data.shapes`), of models that know no density?

A model that knows p(x) is compared point by point (``kl`` of :func:`imago.evaluation.measure_likelihood`). Of a
generator there are samples alone: they are counted in bins, and held against the bins' probabilities.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torchmetrics import Metric

from imago.data.shapes import RANGE, Points, Shape
from imago.data.sources import Toy
from imago.evaluation.extractors import FeatureExtractor

BINS = {1: 100, 2: 32}  # in each coordinate, by the number of coordinates
SMOOTHING = 0.5  # samples that every bin has before any is drawn (Krichevsky & Trofimov 1981)
OUTLYING = 0.01  # share of the data that a sample of high quality may not be less likely than
COVERED = 0.1  # share of its samples with which a mode counts


class Coordinates(FeatureExtractor):
    """What is looked at of points: they themselves; of quantised ones the middles of their cells.

    Args:
        source: of the points.
    """

    name, metric_names, suffix, fingerprint = "coordinates", ("", ""), "", ""

    def __init__(self, source: Toy) -> None:
        super().__init__()
        self.source = source
        self.dimensions = source.shape.dimensions

    def features(self, images: Tensor) -> Float[Tensor, "n d"]:
        """The points."""
        return self.source.points(images.cpu())

    def forward(self, images: Tensor) -> Float[Tensor, "n d"]:
        """Points as they are: nothing has a scale to check."""
        return self.features(images)


def bin_of(x: Points, count: int) -> Int64[Tensor, " n"]:
    """The number of each point's bin, of ``count`` in each coordinate over the range; the last is all that is outside.

    What is no number is outside too.
    """
    cells = ((x + RANGE) * (count / (2 * RANGE))).floor()
    inside = ((cells >= 0) & (cells < count)).all(1)
    strides = count ** torch.arange(x.shape[1] - 1, -1, -1)
    flat = (cells.nan_to_num(0, 0, 0).clamp(0, count - 1).long() * strides).sum(1)
    return torch.where(inside, flat, count ** x.shape[1])


def probabilities(source: Toy, count: int) -> Float64[Tensor, " bins"]:
    """Those of the bins of :func:`bin_of`, by integration."""
    d, levels = source.shape.dimensions, source.levels
    bins = torch.zeros(count**d + 1, dtype=torch.float64)
    if levels is None:
        bins[:-1] = source.shape.boxes(torch.linspace(-RANGE, RANGE, count + 1, dtype=torch.float64)).mean(0).flatten()
        bins[-1] = (1 - bins.sum()).clamp(min=0)
        return bins
    cells = torch.cartesian_prod(*[torch.arange(levels, dtype=torch.uint8)] * d).view(-1, 1, 1, d)
    return bins.index_add_(0, bin_of(source.points(cells), count), source.log_prob(cells).exp())


class HistogramKL(Metric):
    """KL(p ‖ q) over bins, in nats, from samples of q: Σ_b p_b log(p_b / q_b), q_b = (n_b + ½) / (n + bins / 2).

    Half a sample in every bin, so that an empty one does not cost infinitely much. Even samples of p itself have not 0:
    about half the number of bins where p is, divided by the number of samples. So compare at equal counts, and with
    what held-out points have.

    Args:
        probabilities: of the bins, exact.
        bins: in each coordinate.
        options: of ``torchmetrics.Metric``.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, probabilities: Float64[Tensor, " bins"], bins: int, **options: Any) -> None:
        super().__init__(**options)
        self.bins, self.probabilities = bins, probabilities
        self.add_state("counts", torch.zeros(len(probabilities), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Points) -> None:
        """Add samples, (n, d)."""
        self.counts += torch.bincount(bin_of(images, self.bins), minlength=len(self.counts))

    def compute(self) -> Float64[Tensor, ""]:
        """See the class."""
        counts = self.counts.double() + SMOOTHING
        p = self.probabilities
        return (torch.special.xlogy(p, p) - p * (counts / counts.sum()).log()).sum()


class ModeCoverage(Metric):
    """How many modes are hit, and the share of samples of high quality (as Srivastava et al. 2017 ask, "VEEGAN").

    A sample is of high quality if the data's density there is no less than at 99% of the data; such a sample is of the
    mode that is likeliest there. A mode is hit by a tenth of the samples that it should have, or more.

    Args:
        shape: with its modes.
        data: points of it, from which the density that is exceeded by 99% of them is known.
        options: of ``torchmetrics.Metric``.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, shape: Shape, data: Points, **options: Any) -> None:
        super().__init__(**options)
        self.shape = shape
        self.least = float(shape.log_density(data).quantile(OUTLYING)) - 1e-6  # some densities are all the same
        self.add_state("counts", torch.zeros(shape.modes + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Points) -> None:
        """Add samples, (n, d)."""
        of_modes = self.shape.log_modes(images)
        good = of_modes.logsumexp(1) - math.log(self.shape.modes) >= self.least
        mode = torch.where(good, of_modes.argmax(1), self.shape.modes)
        self.counts += torch.bincount(mode, minlength=len(self.counts))

    def compute(self) -> dict[str, Float64[Tensor, ""]]:
        """``modes``, their number, and ``high_quality``, a share."""
        n, of_modes = int(self.counts.sum()), self.counts[:-1].double()
        return {
            "modes": (of_modes >= COVERED * n / self.shape.modes).sum().double() if n else of_modes.sum(),
            "high_quality": of_modes.sum() / max(n, 1),
        }
