"""Fidelity and diversity apart: which samples look real, and which real images the samples cover.

A cloud of features is described by balls around its points, each reaching to the point's k-th nearest neighbour in the
same cloud; a vector lies in the cloud if it lies in one of the balls.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

NEIGHBOURS = 3  # of precision and recall, as in their paper
NEIGHBOURS_DENSITY = 5  # of density and coverage, as in theirs
FEWEST = NEIGHBOURS_DENSITY + 1  # vectors on each side, so that each has that many neighbours
FEW = 200  # below, balls are so wide that noise lies in them


@dataclass(frozen=True)
class ManifoldMeasures:
    """Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric" (section 2); Naeem et al. 2020, "Reliable
    Fidelity and Diversity Metrics" (section 3).

    Args:
        precision: share of the samples inside the reference's cloud, 0..1.
        recall: share of the reference inside the samples' cloud, 0..1.
        density: in how many of the reference's balls a sample lies, over k; around 1 for equal distributions, or more.
        coverage: share of the reference's balls with a sample inside, 0..1.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_measures(
    samples: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], block: int = 500
) -> ManifoldMeasures:
    """Compare two clouds of feature vectors; compare results at equal counts only.

    Distances are float64 and computed for ``block`` vectors at a time, so that memory grows with n + m and not with
    n · m; the border of a ball belongs to it.

    Raises:
        ValueError: one of the clouds has fewer than 6 vectors.
    """
    if min(len(samples), len(reference)) < FEWEST:
        raise ValueError(f"{len(samples)} samples and {len(reference)} reference vectors: {FEWEST} of each are needed")
    samples, reference = samples.double(), reference.double()
    own, _ = _radii(samples, block)
    narrow, wide = _radii(reference, block)
    inside = hits = 0
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    covered = recalled.clone()
    for part, radii in zip(samples.split(block), own.split(block), strict=True):
        distances = torch.cdist(part, reference)
        inside += int((distances <= narrow).any(1).sum())
        recalled |= (distances <= radii[:, None]).any(0)
        in_ball = distances <= wide
        hits += int(in_ball.sum())
        covered |= in_ball.any(0)
    return ManifoldMeasures(
        precision=inside / len(samples),
        recall=float(recalled.double().mean()),
        density=hits / (NEIGHBOURS_DENSITY * len(samples)),
        coverage=float(covered.double().mean()),
    )


def _radii(cloud: Float64[Tensor, "n d"], block: int) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """The distances of every vector to its neighbours that the two pairs of measures ask for."""
    nearest = []
    for part in cloud.split(block):
        # the nearest one, at distance 0, is the vector itself
        nearest.append(torch.cdist(part, cloud).topk(FEWEST, largest=False, sorted=True).values)
    distances = torch.cat(nearest)
    return distances[:, NEIGHBOURS], distances[:, NEIGHBOURS_DENSITY]
