"""The other side of every distance: features of the training split, computed once per data set and extractor."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from imago.data import Dataset, ImageDataModule
from imago.evaluation.cache import Cache, check_tensors
from imago.evaluation.extractors import FeatureExtractor
from imago.evaluation.frechet import FrechetDistance
from imago.images import to_bytes
from imago.progress import Progress, progress_bar

_KEPT = 10_000  # feature vectors kept for the kernel distance
_AT_ONCE = 256  # images
_HELD_OUT = 10_000  # validation images that samples are compared with
_AFFORDABLE = 2**28  # numbers, of 4 bytes, in the features of a training split that are kept whole


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
    def of(cls, batches: Iterable[Tensor], count: int) -> "ReferenceStatistics":
        """The statistics of ``count`` feature vectors that come in batches, float32 (b, d)."""
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:_KEPT].sort().values
        metric, kept, first = None, torch.empty(0), 0
        for features in batches:
            if metric is None:
                d = features.shape[1]
                metric, kept = FrechetDistance(num_features=d), torch.empty(len(chosen), d)
            metric.update(features, real=True)
            start, end = torch.searchsorted(chosen, torch.tensor([first, first + len(features)])).tolist()
            kept[start:end] = features[chosen[start:end] - first]
            first += len(features)
        assert metric is not None
        return cls(*metric.moments(real=True), kept, count)

    @classmethod
    def load(cls, cache: Cache, data_fingerprint: str, extractor: FeatureExtractor) -> "ReferenceStatistics | None":
        """The statistics of these data under this extractor, if the cache has them undamaged."""

        def check(found: dict[str, Any]) -> None:
            count, d = found.get("count"), extractor.dimensions
            if type(count) is not int or count < 1:
                raise ValueError("count is no number of images")
            expected = {"mean": (torch.float64, (d,)), "covariance": (torch.float64, (d, d))}
            check_tensors(found, {**expected, "features": (torch.float32, (min(count, _KEPT), d))})

        content = cache.load(_file_name(data_fingerprint, extractor), check)
        return None if content is None else cls(**{field.name: content[field.name] for field in fields(cls)})

    @staticmethod
    def missing(data: ImageDataModule, extractor: FeatureExtractor) -> int:
        """Of how many images the features are not kept yet."""
        name = _file_name(data.fingerprint, extractor)
        return 0 if Cache(data.directory).find(name) else len(data.train)

    def save(self, cache: Cache, data_fingerprint: str, extractor: FeatureExtractor) -> None:
        """Keep the statistics for the next run."""
        cache.save(_file_name(data_fingerprint, extractor), asdict(self))


@dataclass(frozen=True)
class KnownFeatures:
    """The features of all training images, and of held-out ones: what tells copies from samples.

    Args:
        training: float32 (n, d), in the order of the split; of more than 2²⁸ numbers the first ones that are less.
        held_out: float32 (h, d), of the first validation images, 10,000 at most.
    """

    training: Float32[Tensor, "n d"]
    held_out: Float32[Tensor, "h d"]

    @classmethod
    def of(
        cls, data: ImageDataModule, extractor: FeatureExtractor, batch_size: int, device: torch.device
    ) -> "KnownFeatures":
        """From the cache, or computed and kept there."""
        training, held_out, name = cls._images(data, extractor)
        cache, d = Cache(data.directory), extractor.dimensions
        shapes = {"training": (len(training), d), "held_out": (len(held_out), d)}
        content = cache.load(name, partial(check_tensors, expected={k: (torch.float32, v) for k, v in shapes.items()}))
        if content is None:
            batches, done = [torch.empty(0, d)], 0
            with progress_bar(f"Features of all {data.name} images ({extractor.name}), once") as progress:
                for images in (training, held_out):
                    for batch in batches_of_features(images, data.spec.levels, extractor, batch_size, device):
                        batches.append(batch)
                        done += len(batch)
                        progress(done, len(training) + len(held_out))
            both = torch.cat(batches)
            content = {"training": both[: len(training)], "held_out": both[len(training) :]}
            cache.save(name, content)
        return cls(content["training"], content["held_out"])

    @staticmethod
    def _images(data: ImageDataModule, extractor: FeatureExtractor) -> tuple[Dataset, Dataset, str]:
        """Those of training and the held-out ones, and the name of the file of their features."""
        training = data.split("train").part(slice(max(2, _AFFORDABLE // extractor.dimensions)))
        held_out = data.val.part(slice(_HELD_OUT))
        seen = hashlib.sha256()  # the fingerprint is of training
        for part in held_out.batches(_AT_ONCE):
            seen.update(part.images.contiguous().numpy().data)
        return training, held_out, _file_name(data.fingerprint, extractor, f"features-{seen.hexdigest()[:8]}")

    @classmethod
    def missing(cls, data: ImageDataModule, extractor: FeatureExtractor) -> int:
        """Of how many images the features are not kept yet."""
        training, held_out, name = cls._images(data, extractor)
        return 0 if Cache(data.directory).find(name) else len(training) + len(held_out)


def batches_of_features(
    images: Dataset,
    levels: int,
    extractor: FeatureExtractor,
    batch_size: int,
    device: torch.device,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """The features (b, d) of images with values 0..levels-1, on the CPU, batch by batch."""
    done = 0
    for batch in images.batches(batch_size):
        features = extractor(to_bytes(batch.images.to(device), levels)).cpu()
        yield features
        done += len(features)
        if progress is not None:
            progress(done, len(images))


def _file_name(data_fingerprint: str, extractor: FeatureExtractor, what: str = "statistics") -> str:
    return f"{what}-{data_fingerprint[:16]}-{extractor.fingerprint[:16]}.pt"
