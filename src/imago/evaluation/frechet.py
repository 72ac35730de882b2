"""Fréchet distance between two clouds of features, each described by its mean and covariance.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6 (after Dowson & Landau 1982):

    d²((m₁, C₁), (m₂, C₂)) = |m₁ − m₂|² + Tr(C₁ + C₂ − 2 (C₁ C₂)^½).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from scipy.linalg.lapack import dpstrf
from torch import Tensor


class Moments:
    """Mean and covariance of a stream of feature batches, summed in float64.

    Batches are centred before they are squared and merged by Chan, Golub & LeVeque 1983 (equation 1.5), so that
    features with a large mean and a small spread lose no digits.

    Args:
        dimensions: number of features d.
    """

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dimensions, dtype=torch.float64)
        self._scatter = torch.zeros(dimensions, dimensions, dtype=torch.float64)

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Add n feature vectors."""
        batch = features.detach().to("cpu", torch.float64)
        total = self.count + len(batch)
        batch_mean = batch.mean(0)
        shift = batch_mean - self.mean
        centred = batch - batch_mean
        self._scatter.addmm_(centred.T, centred)
        self._scatter.addr_(shift, shift, alpha=self.count * len(batch) / total)
        self.mean = self.mean + shift * (len(batch) / total)
        self.count = total

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """The unbiased estimate, divided by count − 1."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, got {self.count}")
        return self._scatter / (self.count - 1)


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
