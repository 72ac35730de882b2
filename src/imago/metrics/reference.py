"""The other side of every distance: features of the training split, computed once per data set and extractor."""

from dataclasses import asdict, dataclass, fields

import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor

from imago.images import to_bytes
from imago.metrics.cache import Cache
from imago.metrics.extractors import FeatureExtractor
from imago.metrics.frechet import Moments
from imago.metrics.network import Progress

_KEPT = 10_000  # feature vectors kept for the kernel distance


@dataclass(frozen=True)
class ReferenceStatistics:
    """Mean and covariance of the features of a set of images, and some of the features themselves.

    Args:
        mean: float64 (d,).
        covariance: float64 (d, d).
        features: float32 (k, d), a fixed random choice of at most 10,000 of the feature vectors.
        count: number of images.
    """

    mean: Float64[Tensor, " d"]
    covariance: Float64[Tensor, "d d"]
    features: Float32[Tensor, "k d"]
    count: int

    @classmethod
    def compute(
        cls,
        images: UInt8[Tensor, "n c h w"],
        levels: int,
        extractor: FeatureExtractor,
        batch_size: int,
        device: torch.device,
        progress: Progress | None = None,
    ) -> "ReferenceStatistics":
        """Run all images, with values 0..levels-1, through the extractor; ``progress`` is called with (done, total)."""
        moments = Moments(extractor.dimensions)
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:_KEPT].sort().values
        kept = torch.empty(len(chosen), extractor.dimensions)
        for first in range(0, len(images), batch_size):
            features = extractor(to_bytes(images[first : first + batch_size].to(device), levels)).cpu()
            moments.update(features)
            start, end = torch.searchsorted(chosen, torch.tensor([first, first + len(features)])).tolist()
            kept[start:end] = features[chosen[start:end] - first]
            if progress is not None:
                progress(first + len(features), len(images))
        return cls(moments.mean, moments.covariance, kept, len(images))

    @classmethod
    def load(cls, cache: Cache, data_fingerprint: str, extractor: FeatureExtractor) -> "ReferenceStatistics | None":
        """The statistics of these data under this extractor, if the cache has them undamaged."""
        content = cache.load(_file_name(data_fingerprint, extractor))
        if content is None or set(content) != {field.name for field in fields(cls)}:
            return None
        return cls(**content)

    def save(self, cache: Cache, data_fingerprint: str, extractor: FeatureExtractor) -> None:
        """Keep the statistics for the next run."""
        cache.save(_file_name(data_fingerprint, extractor), asdict(self))


def _file_name(data_fingerprint: str, extractor: FeatureExtractor) -> str:
    return f"statistics-{data_fingerprint[:16]}-{extractor.fingerprint[:16]}.pt"
