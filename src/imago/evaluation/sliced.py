"""Monge Inception distance: how far the clouds of features are in random directions, one at a time.

Berthet et al. 2026, "MIND: Monge Inception Distance for Generative Models Evaluation" (arXiv 2605.06797): in one
dimension optimal transport is sorting, so a mean over directions needs no covariance, and a tenth of the samples. The
paper could not be read here; the definition is that of two independent public implementations, which agree.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from imago.evaluation.feature_metric import SetMetric

MOST = 5000  # vectors of each side


def sliced_wasserstein(
    x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], directions: int = 1000, block: int = 100
) -> Float64[Tensor, ""]:
    """Squared 2-Wasserstein distance of two equally large samples, averaged over random directions of length 1.

    Mean over directions u of Σᵢ (x₍ᵢ₎ᵤ − y₍ᵢ₎ᵤ)² / n, of the sorted products with u. The directions are the same every
    time.

    Args:
        x: a sample.
        y: another one, of as many vectors.
        directions: how many.
        block: directions at a time; changes no number beyond rounding.
    """
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    chosen = torch.randn(directions, x.shape[1], generator=generator)
    for part in nn.functional.normalize(chosen).to(x).split(block):
        apart = (part @ x.T).sort(1).values - (part @ y.T).sort(1).values
        total += apart.double().square().mean(1).sum()
    return total / directions


class MongeDistance(SetMetric):
    """3 d times :func:`sliced_wasserstein` of the features; lower is better, and 0 for equal samples.

    A mean of squares over directions of a d-dimensional space is 1/d of what it is over all d axes together: the factor
    d gives the size of a Fréchet distance, and 3 is the paper's. As many of both sides take part, 5,000 at most: the
    first generated ones and a fixed random choice of the real ones. Like the Fréchet distance it is larger for fewer
    samples: compare at equal counts only.

    Args:
        network: see :class:`FeatureMetric`.
        options: see :class:`FeatureMetric`.
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def compute(self) -> Float64[Tensor, ""]:
        """Return the distance."""
        fake, real = self.both()
        count = min(len(fake), len(real), MOST)
        chosen = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:count]
        return 3 * fake.shape[1] * sliced_wasserstein(fake[:count], real[chosen.to(real.device)])
