"""Kernel distance between two clouds of features (KID, for Inception's features).

Bińkowski et al. 2018, "Demystifying MMD GANs", section 4: the squared maximum mean discrepancy under the cubic
polynomial kernel k(x, y) = (x·y / d + 1)³, by the unbiased estimator (their equation 4), averaged over random subsets.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from imago.evaluation.feature_metric import SetMetric


def squared_mmd(x: Float[Tensor, "m d"], y: Float[Tensor, "m d"]) -> Float64[Tensor, ""]:
    """Unbiased squared maximum mean discrepancy of two equally large samples, in float64; may be slightly negative."""
    x, y = x.double(), y.double()
    m = len(x)
    return (_pairs(x) + _pairs(y)) / (m * (m - 1)) - 2 * _kernel(x, y).mean()


def _kernel(x: Float64[Tensor, "m d"], y: Float64[Tensor, "n d"]) -> Float64[Tensor, "m n"]:
    base = (x @ y.T).div_(x.shape[1]).add_(1)
    return base.square().mul_(base)  # a power would be ten times as slow


def _pairs(x: Float64[Tensor, "m d"], block: int = 250) -> Float64[Tensor, ""]:
    """The sum of k(xᵢ, xⱼ) over i ≠ j, from the blocks of one triangle: k is symmetric."""
    total = x.new_zeros(())
    for start in range(0, len(x), block):
        strip = _kernel(x[start : start + block], x[start:])
        within = strip[:, :block]
        total += 2 * strip.sum() - within.sum() - within.trace()
    return total


class KernelDistance(SetMetric):
    """Mean of :func:`squared_mmd` over random pairs of equally large subsets; around 0 for equal distributions.

    The subsets are the same every time, and those of torch-fidelity with its default seed, so that equal features give
    its number.

    Args:
        network: see :class:`FeatureMetric`.
        subsets: number of pairs.
        subset_size: vectors in each.
        options: see :class:`FeatureMetric`.
    """

    higher_is_better = False

    def __init__(
        self, network: nn.Module | None = None, *, subsets: int = 100, subset_size: int = 1000, **options: Any
    ) -> None:
        super().__init__(network, **options)
        self.subsets = subsets
        self.subset_size = subset_size

    def compute(self) -> Float64[Tensor, ""]:
        """Return the distance.

        Raises:
            ValueError: a subset is larger than one of the sides, or smaller than 2.
        """
        fake, real = self.both()
        if not 2 <= self.subset_size <= min(len(fake), len(real)):
            raise ValueError(f"subset_size={self.subset_size}: must lie in 2..{min(len(fake), len(real))}")
        rng = np.random.RandomState(2020)  # torch-fidelity's generator and seed
        total = torch.zeros((), dtype=torch.float64, device=fake.device)
        for _ in range(self.subsets):
            chosen, chosen_real = (
                torch.from_numpy(rng.choice(len(side), self.subset_size, replace=False)) for side in (fake, real)
            )
            total += squared_mmd(fake[chosen], real[chosen_real])
        return total / self.subsets
