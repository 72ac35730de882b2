"""Fidelity and diversity apart: which samples look real, and which real images the samples cover.

A cloud of features is described by balls around its points, each reaching to the point's k-th nearest neighbour in the
same cloud; a vector lies in the cloud if it lies in one of the balls.
"""

import math
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from imago.evaluation.feature_metric import SetMetric

NEIGHBOURS = {  # k as in the three papers
    "precision": 3, "recall": 3, "density": 5, "coverage": 5, "clipped_density": 5, "clipped_coverage": 5,
}  # fmt: skip
FEWEST = max(NEIGHBOURS.values()) + 1  # vectors on each side, so that each has that many neighbours
FEW = 200  # below, balls are so wide that noise lies in them


class PRDC(SetMetric):
    """Precision and recall (Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric", section 2), density and
    coverage (Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics", section 3), and these two clipped (Salvy et
    al. 2025, "Enhanced Generative Model Evaluation with Clipped Density and Coverage").

    Equally many images of both sides take part: the first generated ones, and a fixed random choice of real ones.
    Compare results at equal counts only.

    - ``precision``: share of the generated images inside the real cloud, 0..1.
    - ``recall``: share of the real images inside the generated cloud, 0..1.
    - ``density``: in how many real balls a generated image lies, over k; around 1 for equal distributions, or more.
    - ``coverage``: share of the real balls with a generated image inside, 0..1.
    - ``clipped_density``: in how many real balls a generated image lies, over k and 1 at most, where no ball is larger
      than half of them are; over what real images have, and 1 at most. So outliers, and images that lie in many balls,
      do not make up for others.
    - ``clipped_coverage``: the share of good images that would fill the real balls as the generated ones do, where a
      ball is full with k of them; see :func:`equivalent_share`, 0..1.

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
        """Return the six numbers.

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
        k = NEIGHBOURS["clipped_density"]
        clipped = wide.clamp(max=wide.median())
        zero = torch.zeros((), dtype=torch.int64, device=real.device)
        inside, hits, few, real_few = (zero.clone() for _ in range(4))
        within = torch.zeros(count, dtype=torch.int64, device=real.device)
        recalled = torch.zeros(count, dtype=torch.bool, device=real.device)
        for part, radii in zip(fake.split(self.block), own.split(self.block), strict=True):
            distances = torch.cdist(part, real)
            inside += (distances <= narrow).any(1).sum()
            recalled |= (distances <= radii[:, None]).any(0)
            in_ball = distances <= wide
            hits += in_ball.sum()
            within += in_ball.sum(0)
            few += (distances <= clipped).sum(1).clamp(max=k).sum()
        for part in real.split(self.block):  # every real image lies in its own ball, which does not count
            real_few += ((torch.cdist(part, real) <= clipped).sum(1) - 1).clamp(max=k).sum()
        return {
            "precision": inside.double() / count,
            "recall": recalled.double().mean(),
            "density": hits.double() / (NEIGHBOURS["density"] * count),
            "coverage": (within > 0).double().mean(),
            "clipped_density": (few.double() / real_few).clamp(max=1),
            "clipped_coverage": equivalent_share(within.clamp(max=k).double().mean() / k, count, k),
        }


def equivalent_share(filling: Float64[Tensor, ""], count: int, k: int) -> Float64[Tensor, ""]:
    """Which share of as many images as real ones must be good for the real balls to be filled so far, 0..1.

    The filling of ``count`` real balls is the mean of min(images inside, k) / k. Of m good images, which are
    distributed as the real ones, the ball around a real image that reaches to its k-th neighbour holds J. The
    probability of such a ball is distributed as Beta(k, count − k) (order statistics), J as beta-binomial, and the
    filling has the mean f(m) = E min(J, k) / k = 1 − Σ_{j<k} (1 − j/k) P(J = j). The answer is the smallest m with
    f(m) ≥ filling, over count.
    """
    m = torch.arange(count + 1, dtype=torch.float64)
    log_beta = _log_beta(torch.tensor(k).double(), torch.tensor(count - k).double())
    expected = torch.ones_like(m)
    for j in range(k):
        choices = torch.lgamma(m + 1) - torch.lgamma((m - j).clamp(min=0) + 1) - math.lgamma(j + 1)
        log_p = choices + _log_beta(torch.full_like(m, k + j), count - k + (m - j).clamp(min=0)) - log_beta
        expected -= (1 - j / k) * torch.where(m >= j, log_p.exp(), 0)
    reached = torch.searchsorted(expected, filling.cpu().double() - 1e-9)  # rounding is no image more
    return (reached.clamp(max=count).double() / count).to(filling.device)


def _log_beta(a: Float64[Tensor, "..."], b: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def _radii(cloud: Float64[Tensor, "n d"], block: int) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """The distances of every vector to its neighbours that the two pairs of measures ask for."""
    nearest = []
    for part in cloud.split(block):
        # the nearest one, at distance 0, is the vector itself
        nearest.append(torch.cdist(part, cloud).topk(FEWEST, largest=False, sorted=True).values)
    distances = torch.cat(nearest)
    return distances[:, NEIGHBOURS["precision"]], distances[:, NEIGHBOURS["density"]]
