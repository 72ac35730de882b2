"""Are samples copies of training images? Nearest neighbours, and how to judge their distances.

A sample near a training image need not be a copy: where the data are dense, everything is near. Alaa et al. 2022, "How
Faithful is your Synthetic Data?", section 4.3, therefore compare the distance with that of the training image to its
own nearest other one: a sample is *authentic* if it is farther. Held-out images tell what share of them a model
has that generalises; one that memorises is below.
"""

import hashlib
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_cat

from imago.data import Dataset
from imago.evaluation.feature_metric import SetMetric

_AT_ONCE = 1024  # images
_SPARE = 2  # candidates more than asked for, whose order the fast form of the distance may confuse


def nearest(
    queries: Float[Tensor, "n d"],
    points: Float[Tensor, "m d"],
    k: int = 1,
    *,
    itself: Int64[Tensor, " n"] | None = None,
    block: int = 2000,
) -> tuple[Float64[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Euclidean distances of each query to its k nearest points, in rising order, and which points these are.

    All pairs are compared, in float64, ``block`` by ``block``: memory grows with n + m. Candidates come from
    |x|² + |y|² − 2xy; their distances are computed again from x − y, so that equal vectors have distance 0.

    Args:
        queries: the vectors that neighbours are looked for.
        points: the vectors among which they are.
        k: number of neighbours.
        itself: for each query the number of the point that it is, and which is not its neighbour.
        block: vectors of either side that are compared at a time.

    Raises:
        ValueError: there are fewer points, other than the query itself, than neighbours asked for.
    """
    others = len(points) - (itself is not None)
    if not 1 <= k <= others:
        raise ValueError(f"k={k}: {others} points to choose neighbours from")
    kept = min(k + _SPARE, others)
    centre = points.mean(0, dtype=torch.float64)
    best = torch.full((len(queries), kept), torch.inf, dtype=torch.float64, device=points.device)
    which = torch.zeros(len(queries), kept, dtype=torch.int64, device=points.device)
    for start in range(0, len(points), block):
        part = points[start : start + block].double() - centre
        norms = part.square().sum(1)
        for first in range(0, len(queries), block):
            rows = slice(first, first + block)
            few = queries[rows].double() - centre
            squares = torch.addmm(norms.expand(len(few), -1), few, part.T, alpha=-2)
            squares += few.square().sum(1, keepdim=True)
            if itself is not None:
                place = itself[rows] - start
                inside = ((place >= 0) & (place < len(part))).nonzero().flatten()
                squares[inside, place[inside]] = torch.inf
            found = squares.topk(min(kept, len(part)), largest=False)
            values = torch.cat([best[rows], found.values], 1)
            numbers = torch.cat([which[rows], found.indices + start], 1)
            best[rows], order = values.topk(kept, largest=False)
            which[rows] = numbers.gather(1, order)
    exact = torch.empty_like(best)
    for first in range(0, len(queries), 100):
        rows = slice(first, first + 100)
        exact[rows] = (queries[rows, None].double() - points[which[rows]].double()).square().sum(2).sqrt()
    distances, order = exact.sort(stable=True, dim=1)
    return distances[:, :k], which.gather(1, order)[:, :k]


def digests(images: Tensor | Dataset) -> Int64[Tensor, " n"]:
    """Digests of images, or of feature vectors, value by value, on their device."""
    if isinstance(images, Dataset):
        return torch.cat([torch.empty(0).long(), *(digests(batch.images) for batch in images.batches(_AT_ONCE))])
    each = [hashlib.blake2b(image.numpy().data, digest_size=8).digest() for image in images.detach().cpu().contiguous()]
    return torch.tensor([int.from_bytes(digest, signed=True) for digest in each], dtype=torch.int64).to(images.device)


def among(images: UInt8[Tensor, "n c h w"], known: UInt8[Tensor, "m c h w"] | Dataset) -> Bool[Tensor, " n"]:
    """Return which images are one of the known ones, value by value."""
    return torch.isin(digests(images), digests(known))


def authentic(
    samples: Float[Tensor, "n d"], training: Float[Tensor, "m d"], copies: Bool[Tensor, " n"], block: int = 2000
) -> Bool[Tensor, " n"]:
    """Which samples are farther from their nearest training image than that is from its nearest other one.

    Args:
        samples: feature vectors.
        training: feature vectors of at least two images.
        copies: samples known to be training images: not authentic, even if these exist twice.
        block: see :func:`nearest`.
    """
    distances, neighbours = nearest(samples, training, block=block)
    met, which = neighbours[:, 0].unique(return_inverse=True)
    apart, _ = nearest(training[met], training, itself=met, block=block)
    return (distances[:, 0] > apart[which, 0]) & ~copies


class Authenticity(SetMetric):
    """Which shares of the generated images are authentic, and copies of real images, 0..1.

    Neither way is better: a model that generalises has the shares of held-out images.

    Args:
        network: see :class:`FeatureMetric`.
        options: see :class:`FeatureMetric`.
    """

    real_digests: list[Tensor]
    fake_digests: list[Tensor]

    def __init__(self, network: nn.Module | None = None, **options: Any) -> None:
        super().__init__(network, **options)
        for side in ("real", "fake"):
            self.add_state(f"{side}_digests", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool, originals: Tensor | Dataset | None = None) -> None:
        """Add a batch.

        Args:
            images: see :meth:`FeatureMetric.update`.
            real: whether they are real images.
            originals: the images (n, ...) behind feature vectors, whose values tell copies; by default ``images``.
        """
        super().update(images, real)
        found = digests(images if originals is None else originals)
        (self.real_digests if real else self.fake_digests).append(found.to(images.device))

    def compute(self) -> dict[str, Float64[Tensor, ""]]:
        """Return ``authenticity`` and ``copies``."""
        fake, real = self.both()
        copies = torch.isin(dim_zero_cat(self.fake_digests), dim_zero_cat(self.real_digests))
        return {"authenticity": authentic(fake, real, copies).double().mean(), "copies": copies.double().mean()}
