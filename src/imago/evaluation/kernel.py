"""Kernel distance between two clouds of features (KID, for Inception's features).

Bińkowski et al. 2018, "Demystifying MMD GANs", section 4: the squared maximum mean discrepancy under the cubic
polynomial kernel k(x, y) = (x·y / d + 1)³, by the unbiased estimator (their equation 4), averaged over random subsets.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def squared_mmd(x: Float[Tensor, "m d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Unbiased squared maximum mean discrepancy of two equally large samples, in float64; may be slightly negative."""
    x, y = x.double(), y.double()
    m, d = x.shape
    bases = ((a @ b.T).div_(d).add_(1) for a, b in ((x, x), (y, y), (x, y)))
    within_x, within_y, between = (base * base * base for base in bases)  # a power would be ten times as slow
    pairs = within_x.sum() - within_x.trace() + within_y.sum() - within_y.trace()
    return pairs / (m * (m - 1)) - 2 * between.mean()


def kernel_distance(
    features: Float[Tensor, "n d"], reference: Float[Tensor, "k d"], subsets: int = 100, subset_size: int = 1000
) -> float:
    """Mean of :func:`squared_mmd` over ``subsets`` random pairs of subsets of ``subset_size`` feature vectors each.

    The subsets are the same every time, and those of torch-fidelity with its default seed, so that equal features give
    its number.

    Raises:
        ValueError: a subset is larger than one of the samples, or smaller than 2.
    """
    if not 2 <= subset_size <= min(len(features), len(reference)):
        raise ValueError(f"subset_size={subset_size}: must lie in 2..{min(len(features), len(reference))}")
    rng = np.random.RandomState(2020)  # torch-fidelity's generator and seed
    total = torch.zeros((), dtype=torch.float64)
    for _ in range(subsets):
        chosen = torch.from_numpy(rng.choice(len(features), subset_size, replace=False))
        chosen_reference = torch.from_numpy(rng.choice(len(reference), subset_size, replace=False))
        total += squared_mmd(features[chosen], reference[chosen_reference])
    return float(total / subsets)
