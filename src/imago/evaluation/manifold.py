"""Fidelity and diversity apart: which samples look real, and which real images the samples cover.

A cloud of features is described by balls around its points, each reaching to the point's k-th nearest neighbour in the
same cloud; a vector lies in the cloud if it lies in one of the balls.
"""

from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from imago.evaluation.feature_metric import SetMetric

NEIGHBOURS = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}  # k as in the two papers
FEWEST = max(NEIGHBOURS.values()) + 1  # vectors on each side, so that each has that many neighbours
FEW = 200  # below, balls are so wide that noise lies in them


class PRDC(SetMetric):
    """Precision and recall (Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric", section 2), density and
    coverage (Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics", section 3).

    Equally many images of both sides take part: the first generated ones, and a fixed random choice of real ones.
    Compare results at equal counts only.

    - ``precision``: share of the generated images inside the real cloud, 0..1.
    - ``recall``: share of the real images inside the generated cloud, 0..1.
    - ``density``: in how many real balls a generated image lies, over k; around 1 for equal distributions, or more.
    - ``coverage``: share of the real balls with a generated image inside, 0..1.

    Args:
        network: see :class:`FeatureMetric`.
        block: vectors that are compared at a time; changes no number.
        options: see :class:`FeatureMetric`.
    """

    higher_is_better = True

    def __init__(self, network: nn.Module | None = None, *, block: int = 500, **options: Any) -> None:
        super().__init__(network, **options)
        self.block = block

    def compute(self) -> dict[str, Float64[Tensor, ""]]:
        """Return the four numbers.

        Distances are float64 and computed for ``block`` vectors at a time, so that memory grows with the count and not
        with its square; the border of a ball belongs to it.

        Raises:
            ValueError: one of the sides has fewer than 6 vectors.
        """
        fake, real = self.both()
        count = min(len(fake), len(real))
        if count < FEWEST:
            raise ValueError(f"{len(fake)} generated and {len(real)} real vectors: {FEWEST} of each are needed")
        chosen = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:count]
        fake, real = fake[:count].double(), real[chosen.to(real.device)].double()
        own, _ = _radii(fake, self.block)
        narrow, wide = _radii(real, self.block)
        zero = torch.zeros((), dtype=torch.int64, device=real.device)
        inside, hits = zero.clone(), zero.clone()
        recalled = torch.zeros(count, dtype=torch.bool, device=real.device)
        covered = recalled.clone()
        for part, radii in zip(fake.split(self.block), own.split(self.block), strict=True):
            distances = torch.cdist(part, real)
            inside += (distances <= narrow).any(1).sum()
            recalled |= (distances <= radii[:, None]).any(0)
            in_ball = distances <= wide
            hits += in_ball.sum()
            covered |= in_ball.any(0)
        return {
            "precision": inside.double() / count,
            "recall": recalled.double().mean(),
            "density": hits.double() / (NEIGHBOURS["density"] * count),
            "coverage": covered.double().mean(),
        }


def _radii(cloud: Float64[Tensor, "n d"], block: int) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """The distances of every vector to its neighbours that the two pairs of measures ask for."""
    nearest = []
    for part in cloud.split(block):
        # the nearest one, at distance 0, is the vector itself
        nearest.append(torch.cdist(part, cloud).topk(FEWEST, largest=False, sorted=True).values)
    distances = torch.cat(nearest)
    return distances[:, NEIGHBOURS["precision"]], distances[:, NEIGHBOURS["density"]]
