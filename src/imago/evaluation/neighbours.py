"""Are samples copies of training images? Nearest neighbours, and how to judge their distances.

A sample near a training image need not be a copy: where the data are dense, everything is near. Alaa et al. 2022, "How
Faithful is your Synthetic Data?", section 4.3, therefore compare the distance with that of the training image to its
own nearest other one: a sample is *authentic* if it is farther. Held-out images tell what share of them a model
has that generalises; one that memorises is below.
"""

import hashlib

import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

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
    centre = points.double().mean(0)
    best = torch.full((len(queries), kept), torch.inf, dtype=torch.float64)
    which = torch.zeros(len(queries), kept, dtype=torch.int64)
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


def among(images: UInt8[Tensor, "n c h w"], known: UInt8[Tensor, "m c h w"]) -> Bool[Tensor, " n"]:
    """Which images are one of the known ones, value by value."""
    seen = {_digest(image) for image in known}
    return torch.tensor([_digest(image) in seen for image in images], dtype=torch.bool)


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


def _digest(image: UInt8[Tensor, "c h w"]) -> bytes:
    return hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest()
