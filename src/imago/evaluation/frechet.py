"""Fréchet distance between two clouds of features, each described by its mean and covariance.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6 (after Dowson & Landau 1982):

    d²((m₁, C₁), (m₂, C₂)) = |m₁ − m₂|² + Tr(C₁ + C₂ − 2 (C₁ C₂)^½).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_cat

from imago.evaluation.feature_metric import FeatureMetric


class FrechetDistance(FeatureMetric):
    """Squared Fréchet distance between the features of real and of generated images; lower is better.

    The number of torchmetrics' ``FrechetInceptionDistance``, exact also for fewer images than features. A batch is
    centred before it is squared, and batches and processes are merged by Chan, Golub & LeVeque 1983 (equation 1.5), in
    float64: features with a large mean and a small spread lose no digits.

    Args:
        network: see :class:`FeatureMetric`.
        num_features: length d of a feature vector; by default the network's ``num_features``.
        options: see :class:`FeatureMetric`.

    Raises:
        ValueError: neither says how many features there are.
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    real: Tensor
    fake: Tensor

    def __init__(self, network: nn.Module | None = None, *, num_features: int | None = None, **options: Any) -> None:
        super().__init__(network, **options)
        d = getattr(network, "num_features", None) if num_features is None else num_features
        if not isinstance(d, int):
            raise ValueError("num_features: give the length of a feature vector, which the network does not tell")
        for side in ("real", "fake"):  # count, mean and scatter in one matrix, so that one reduction merges them
            self.add_state(side, torch.zeros(d + 1, d + 1, dtype=torch.float64), dist_reduce_fx=merged)

    def update(self, images: Tensor, real: bool) -> None:
        """See :meth:`FeatureMetric.update`."""
        state = self.real if real else self.fake
        batch = self.features(images).to(state)
        if not len(batch):
            return
        mean, scatter = state[0, 1:], state[1:, 1:]
        before, total = float(state[0, 0]), float(state[0, 0]) + len(batch)
        batch_mean = batch.mean(0)
        shift = batch_mean - mean
        centred = batch - batch_mean
        scatter.addmm_(centred.T, centred)
        scatter.addr_(shift, shift, alpha=before * len(batch) / total)
        mean += shift * (len(batch) / total)
        state[0, 0] = total

    def moments(self, real: bool) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]]:
        """Return mean and unbiased covariance of one side.

        Raises:
            ValueError: it has fewer than 2 images.
        """
        state = self.real if real else self.fake
        if state[0, 0] < 2:
            side = "real" if real else "generated"
            raise ValueError(f"a covariance needs at least 2 feature vectors, got {int(state[0, 0])} of {side} images")
        return state[0, 1:], state[1:, 1:] / (state[0, 0] - 1)

    def set_real(self, mean: Float64[Tensor, " d"], covariance: Float64[Tensor, "d d"], count: int) -> None:
        """Replace the real images by their statistics, such as published ones, of ``count`` images."""
        self.real[0, 0] = count
        self.real[0, 1:] = mean
        self.real[1:, 1:] = covariance * (count - 1)

    def compute(self) -> Float64[Tensor, ""]:
        """Return the distance."""
        (mean, covariance), (mean_real, covariance_real) = self.moments(real=False), self.moments(real=True)
        distance = frechet_distance(mean.cpu(), covariance.cpu(), mean_real.cpu(), covariance_real.cpu())
        return torch.tensor(distance, dtype=torch.float64, device=mean.device)


PARTS = 5  # of the samples, each with a distance of its own


class ExtrapolatedFrechetDistance(FrechetDistance):
    """What :class:`FrechetDistance` would be of infinitely many generated images, with its standard error.

    Chong & Forsyth 2020, "Effectively Unbiased FID and Inception Score and Where to Find Them", section 3: for n
    samples the distance is F(n) = F(∞) + b/n, and the line through several n gives F(∞). Theirs goes through 15 random
    subsets of falling size. Here it goes through all N samples and the mean of :data:`PARTS` disjoint parts of them,
    F(∞) = F(N) − (mean F(N/5) − F(N)) / 4: no sample counts more than another, and the scatter of the parts gives the
    error, since what a sample adds to F(N) it adds to a part's five times as much. The bias of the real images stays.

    Args:
        network: see :class:`FeatureMetric`.
        num_features: see :class:`FrechetDistance`.
        options: see :class:`FeatureMetric`.
    """

    fake_features: list[Tensor]

    def __init__(self, network: nn.Module | None = None, *, num_features: int | None = None, **options: Any) -> None:
        super().__init__(network, num_features=num_features, **options)
        self.add_state("fake_features", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool) -> None:
        """See :meth:`FeatureMetric.update`."""
        if real:
            super().update(images, real)
        else:
            self.fake_features.append(self.features(images))

    def compute(self) -> dict[str, Float64[Tensor, ""]]:  # type: ignore[override]
        """Return ``fd_infinity`` and ``fd_infinity_error``.

        Raises:
            ValueError: a part would have fewer than 2 images.
        """
        real = [moment.cpu() for moment in self.moments(real=True)]
        fake = dim_zero_cat(self.fake_features).cpu().double() if self.fake_features else torch.empty(0, 1)
        if len(fake) < 2 * PARTS:
            raise ValueError(f"{len(fake)} generated images: {2 * PARTS} are needed")
        order = torch.randperm(len(fake), generator=torch.Generator().manual_seed(0))
        parts = [fake[chosen] for chosen in order[: len(fake) // PARTS * PARTS].view(PARTS, -1)]
        whole, *few = (frechet_distance(x.mean(0), x.T.cov(), *real) for x in (torch.cat(parts), *parts))
        distances = torch.tensor(few, dtype=torch.float64)
        value = whole - (distances.mean() - whole) / (PARTS - 1)
        return {"fd_infinity": value, "fd_infinity_error": distances.std() / PARTS**0.5}


def merged(parts: Float64[Tensor, "k e e"]) -> Float64[Tensor, "e e"]:
    """Merge the states of k processes, each [[count, mean], [0, scatter]], into that of all images."""
    counts, means = parts[:, 0, 0], parts[:, 0, 1:]
    result = parts.sum(0)
    mean = counts @ means / result[0, 0].clamp(min=1)
    shifts = means - mean
    result[0, 1:] = mean
    result[1:, 1:] += (shifts.T * counts) @ shifts
    return result


def frechet_distance(
    mean_1: Float64[Tensor, " d"],
    covariance_1: Float64[Tensor, "d d"],
    mean_2: Float64[Tensor, " d"],
    covariance_2: Float64[Tensor, "d d"],
) -> float:
    """Squared Fréchet distance between two Gaussians: non-negative, 0 when they are equal.

    With C₁ = RᵀR, Tr (C₁C₂)^½ comes from the symmetric R C₂ Rᵀ, which has the eigenvalues of C₁C₂ that are not 0: they
    are real and non-negative there, so that no complex square root has to be repaired, and no eigenvector is needed.
    Covariances may be singular (fewer samples than features): where eigenvalues come out that may be zeros, whose roots
    would be a hundred million times their rounding errors, the covariance of lower rank is the one taken apart; where
    both are singular and that does not help, both are, since Tr (C₁C₂)^½ is the sum of the singular values of R₁R₂ᵀ:
    slower, and no root is drawn.

    Raises:
        ValueError: something is infinite or not a number.
    """
    if not all(bool(x.sum().isfinite()) for x in (mean_1, covariance_1, mean_2, covariance_2)):
        raise ValueError("a mean or a covariance is not finite: there is no distance")
    root = _triangular_root(covariance_1)
    values = torch.linalg.eigvalsh(_congruence(root, covariance_2))
    trace_root = values.clamp(min=0).sqrt().sum()
    if _has_zeros(values):
        other = _triangular_root(covariance_2)
        if len(other.factor) < len(root.factor):
            values = torch.linalg.eigvalsh(_congruence(other, covariance_1))
            trace_root = values.clamp(min=0).sqrt().sum()
        if _has_zeros(values) and max(len(root.factor), len(other.factor)) < len(covariance_1):
            trace_root = torch.linalg.svdvals(root.in_order() @ other.in_order().T).sum()
    distance = (mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2 * trace_root
    return max(0.0, float(distance))


class _Root(NamedTuple):
    """R, zero below its diagonal, and the order of the features in which a covariance is RᵀR."""

    factor: Float64[Tensor, "r d"]
    order: Int64[Tensor, " d"]

    def in_order(self) -> Float64[Tensor, "r d"]:
        """R for the features as they are numbered, no longer triangular."""
        return self.factor[:, self.order.argsort()]


def _has_zeros(values: Float64[Tensor, " r"]) -> bool:
    """Whether the smallest of ascending eigenvalues may be nothing but rounding."""
    return len(values) > 0 and bool(values[0] < values[-1] * len(values) * torch.finfo(values.dtype).eps)


def _triangular_root(covariance: Float64[Tensor, "d d"]) -> _Root:
    """R of a covariance.

    Cholesky's decomposition with complete pivoting (LAPACK's dpstrf; Higham 2002, "Accuracy and Stability of Numerical
    Algorithms", section 10.3): it finds the rank r, and stops where rounding begins. Rows come in falling size, which
    keeps small eigenvalues accurate.
    """
    from scipy.linalg.lapack import dpstrf  # here, because it takes half a second

    # column-major, as LAPACK has it, so that its lower triangle is the upper one of what torch sees
    columns, pivots, rank, _ = dpstrf(covariance.numpy().T, lower=1)
    return _Root(torch.from_numpy(columns.T)[:rank].triu(), torch.from_numpy(pivots).long() - 1)


def _congruence(root: _Root, covariance: Float64[Tensor, "d d"], block: int = 256) -> Float64[Tensor, "r r"]:
    """The lower triangle of R C Rᵀ, by blocks that leave out R's zeros: a third of the work."""
    factor, symmetric = root.factor, covariance[root.order][:, root.order]
    result = factor.new_zeros(len(factor), len(factor))
    for start in range(0, len(factor), block):
        rows = slice(start, start + block)
        half = symmetric[start:, start:] @ factor[rows, start:].T
        for below in range(start, len(factor), block):
            part = slice(below, below + block)
            result[part, rows] = factor[part, below:] @ half[below - start :]
    return result
