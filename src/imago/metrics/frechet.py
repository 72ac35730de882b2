"""Fréchet distance between two clouds of features, each described by its mean and covariance.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6 (after Dowson & Landau 1982):

    d²((m₁, C₁), (m₂, C₂)) = |m₁ − m₂|² + Tr(C₁ + C₂ − 2 (C₁ C₂)^½).
"""

import torch
from jaxtyping import Float, Float64
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

    Tr (C₁C₂)^½ is computed from the symmetric C₁^½ C₂ C₁^½, which has the eigenvalues of C₁C₂: they are real and
    non-negative there, so that no complex square root has to be repaired. Covariances may be singular (fewer samples
    than features): what rounding puts in place of a zero eigenvalue is taken for zero before its root is drawn.
    """
    values, vectors = torch.linalg.eigh(covariance_1)
    root = (vectors * _without_rounding(values).sqrt()) @ vectors.T
    trace_root = _without_rounding(torch.linalg.eigvalsh(root @ covariance_2 @ root)).sqrt().sum()
    distance = (mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2 * trace_root
    return max(0.0, float(distance))


def _without_rounding(eigenvalues: Float64[Tensor, " d"]) -> Float64[Tensor, " d"]:
    """Eigenvalues of a positive semi-definite matrix, those within its rounding error set to zero."""
    error = eigenvalues.abs().amax() * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    return torch.where(eigenvalues > error, eigenvalues, 0.0)
