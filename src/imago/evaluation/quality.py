"""The evaluator: how far are a model's samples from the training images?"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from imago.data import ImageDataModule
from imago.errors import UserError
from imago.evaluation.cache import Cache
from imago.evaluation.choices import ExtractorChoice
from imago.evaluation.extractors import FeatureExtractor
from imago.evaluation.frechet import Moments, frechet_distance
from imago.evaluation.inception_score import inception_score
from imago.evaluation.kernel import kernel_distance
from imago.evaluation.manifold import FEW, FEWEST, NEIGHBOURS, NEIGHBOURS_DENSITY, manifold_measures
from imago.evaluation.neighbours import among, authentic
from imago.evaluation.network import Progress
from imago.evaluation.progress import progress_bar
from imago.evaluation.reference import KnownFeatures, ReferenceStatistics
from imago.images import ImageSpec, to_bytes
from imago.measures import Measurement, Protocol

Sampler = Callable[[int, int], Tensor]
_SPLITS = 10  # of the Inception score, as in its paper


class Evaluator(ABC):
    """What measures samples during and after training.

    Attributes:
        notices: what the user has to be told at the start of the run; complete after :meth:`prepare`.
    """

    notices: list[str]

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Names of what :meth:`measure` will return, the headline first; known after :meth:`prepare`."""

    @abstractmethod
    def prepare(self, data: ImageDataModule, device: torch.device) -> None:
        """Get ready before training starts: extractor and statistics of the training split.

        Args:
            data: prepared.
            device: where features are computed.

        Raises:
            UserError: these data cannot be measured in the way that was asked for.
        """

    @abstractmethod
    def measure(self, sample: Sampler, progress: Progress | None = None) -> list[Measurement]:
        """Draw samples and compare them with the training split.

        The global random generators are left as they were.

        Args:
            sample: ``sample(n, first)`` gives the images first..first+n-1, uint8 (n, C, H, W) with values 0..levels-1.
            progress: called with (samples so far, samples in all).
        """


class NoMetrics(Evaluator):
    """Measures nothing.

    Args:
        settings: of :class:`SampleQuality`; a sweep sets some of them whatever is chosen, and here they mean nothing.

    Raises:
        UserError: it has no such setting.
    """

    def __init__(self, **settings: object) -> None:
        unknown = sorted(settings.keys() - inspect.signature(SampleQuality).parameters.keys())
        if unknown:
            raise UserError(f"metrics.{unknown[0]}: no such setting; metrics=none measures nothing and needs none")
        self.notices = []

    @property
    def names(self) -> list[str]:
        """None."""
        return []

    def prepare(self, data: ImageDataModule, device: torch.device) -> None:
        """Nothing to do."""

    def measure(self, sample: Sampler, progress: Progress | None = None) -> list[Measurement]:
        """No samples are drawn."""
        return []


class SampleQuality(Evaluator):
    """Fréchet and kernel distance between the features of samples and of the training split, and more on request.

    Args:
        extractor: the choice of features.
        samples: number of samples that a measurement draws.
        batch_size: images per batch of sampling and of feature extraction; changes no number beyond rounding.
        weights: path of the extractor's weights, instead of the place where they are looked for.
        subsets: number of random subsets of the kernel distance.
        subset_size: images in each of them; fewer are used, and the protocol says so, where there are not so many.
        full: measure precision, recall, density, coverage, authenticity, copies and, where the extractor knows
            classes, the Inception score too; ``None`` leaves that to who measures: not during training, but in
            evaluate.py.
    """

    def __init__(
        self,
        extractor: ExtractorChoice,
        samples: Annotated[int, Field(ge=2, le=1_000_000)] = 10_000,
        batch_size: PositiveInt = 128,
        weights: str | None = None,
        subsets: Annotated[int, Field(gt=0, le=10_000)] = 100,
        subset_size: Annotated[int, Field(ge=2)] = 1000,
        full: bool | None = None,
    ) -> None:
        self.choice = extractor
        self.samples = samples
        self.batch_size = batch_size
        self.weights = weights
        self.subsets = subsets
        self.subset_size = subset_size
        self.full = bool(full)
        self.notices = []
        self._extractor: FeatureExtractor | None = None

    @property
    def names(self) -> list[str]:
        """Fréchet distance, kernel distance, and what ``full`` adds; empty where nothing can be measured."""
        if self._extractor is None:
            return []
        more = ["precision", "recall", "density", "coverage"] if self._enough else []
        if self._extractor.logits(torch.zeros(1, self._extractor.dimensions, device=self._device)) is not None:
            more.append("inception_score")
        more = [*(name + self._extractor.suffix for name in [*more, "authenticity"]), "copies"]
        return [*self._extractor.metric_names, *(more if self.full else [])]

    @property
    def _enough(self) -> bool:
        return min(self.samples, len(self._reference.features)) >= FEWEST

    def prepare(self, data: ImageDataModule, device: torch.device) -> None:
        """See :meth:`Evaluator.prepare`."""
        if len(data.train) < 2:
            raise UserError(f"{data.name} has {len(data.train)} training images: metrics need 2. Set metrics=none.")
        self.notices = []
        self._extractor = self.choice.build(data, device, self.weights, self.notices.append)
        if self._extractor is None:
            return
        self._device, self._spec = device, data.spec
        self._extractor.to(device)
        cache = Cache(data.directory)
        if self.full:
            self._data = data
            self._known = KnownFeatures.of(data, self._extractor, self.batch_size, device)
        reference = ReferenceStatistics.load(cache, data.fingerprint, self._extractor)
        if reference is None and self.full and len(self._known.training) == len(data.train):
            reference = ReferenceStatistics.of(self._known.training.split(self.batch_size), len(data.train))
            reference.save(cache, data.fingerprint, self._extractor)
        if reference is None:
            with progress_bar(f"Features of {data.name} ({self._extractor.name}), once") as progress:
                reference = ReferenceStatistics.compute(
                    data.training_images(), data.spec.levels, self._extractor, self.batch_size, device, progress
                )
            reference.save(cache, data.fingerprint, self._extractor)
        self._reference = reference
        if self.full and not self._enough:
            self.notices.append(
                f"metrics.samples={self.samples}: precision, recall, density and coverage are left out; they need "
                f"{FEWEST} samples and as many training images"
            )
        self._protocol = Protocol(
            extractor=self._extractor.name,
            extractor_fingerprint=self._extractor.fingerprint[:16],
            dimensions=self._extractor.dimensions,
            reference=f"{data.name} train",
            reference_fingerprint=data.fingerprint,
            reference_images=reference.count,
            samples=self.samples,
        )

    def measure(self, sample: Sampler, progress: Progress | None = None) -> list[Measurement]:
        """See :meth:`Evaluator.measure`; call :meth:`prepare` first."""
        if self._extractor is None:
            return []
        cuda = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            features, copies = self._features(self._extractor, sample, progress)
        moments = Moments(self._extractor.dimensions)
        for batch in features.split(1000):
            moments.update(batch)
        reference = self._reference
        distance = frechet_distance(moments.mean, moments.covariance, reference.mean, reference.covariance)
        size = min(self.subset_size, len(features), len(reference.features))
        kernel = kernel_distance(features, reference.features, self.subsets, size)
        frechet_name, kernel_name = self._extractor.metric_names
        measurements = [
            self._measured(frechet_name, distance, caveat=self._frechet_caveat()),
            self._measured(
                kernel_name, kernel, subsets=self.subsets, subset_size=size, caveat=self._kernel_caveat(size)
            ),
        ]
        if self.full and self._enough:
            measurements += self._manifold(features, self._extractor.suffix)
        if self.full:
            measurements += self._score(features, self._extractor)
            measurements += self._authenticity(features, copies, self._extractor.suffix)
        return measurements

    def _measured(self, name: str, value: float, *, caveat: str = "", **entries: Any) -> Measurement:
        """A number with its protocol; ``entries`` are those of its own."""
        doubt = self._extractor.doubt if self._extractor is not None and name != "copies" else ""
        told = "; ".join(filter(None, [doubt, caveat])) or "none"
        return Measurement(name, value, replace(self._protocol, caveat=told, **entries))

    def _manifold(self, features: Tensor, suffix: str) -> list[Measurement]:
        """Precision, recall, density and coverage, of equally many samples and training images."""
        known = self._reference.features
        count = min(len(features), len(known))
        chosen = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:count]
        found = manifold_measures(features[:count], known[chosen])
        caveat = (
            f"unreliable: the balls of {count} images are wide enough for noise; {FEW} or more" if count < FEW else ""
        )
        neighbours = {
            "precision": NEIGHBOURS,
            "recall": NEIGHBOURS,
            "density": NEIGHBOURS_DENSITY,
            "coverage": NEIGHBOURS_DENSITY,
        }
        return [
            self._measured(
                f"{name}{suffix}",
                getattr(found, name),
                samples=count,
                reference_images=count,
                neighbours=k,
                caveat=caveat,
            )
            for name, k in neighbours.items()
        ]

    def _score(self, features: Tensor, extractor: FeatureExtractor) -> list[Measurement]:
        """The Inception score, where the extractor knows classes."""
        logits = extractor.logits(features.to(self._device))
        if logits is None:
            return []
        splits = min(_SPLITS, len(features))
        score, deviation = inception_score(logits.cpu(), splits)
        size, classes = len(features) // splits, logits.shape[1]
        caveat = "" if size > classes else f"unreliable: splits of {size} images for {classes} classes"
        name = f"inception_score{extractor.suffix}"
        return [self._measured(name, score, splits=splits, deviation=deviation, caveat=caveat)]

    def _authenticity(self, features: Tensor, copies: Tensor, suffix: str) -> list[Measurement]:
        """Which shares of the samples are authentic and copies; the protocols say the same of held-out images."""
        known, data = self._known, self._data
        shares = {"authenticity" + suffix: authentic(features, known.training, copies), "copies": copies}
        references = {"authenticity" + suffix: len(known.training), "copies": len(data.train)}
        doubts = ["of the training images in one draw of their binarisation"] if data.binarize == "dynamic" else []
        few = min(len(features), len(known.held_out))
        doubts += [f"unreliable beside {few} held-out images; {FEW} or more"] if few < FEW else []
        told: dict[str, dict[str, Any]] = {name: {"reference_images": references[name]} for name in shares}
        images, vectors = data.val.images[: len(features)], known.held_out[: len(features)]
        if len(vectors):
            images = images[: len(vectors)]
            same = self._copies(images)
            held_out = {"authenticity" + suffix: authentic(vectors, known.training, same), "copies": same}
            for name, which in held_out.items():
                told[name] |= {"held_out": f"{data.name} val", "held_out_images": len(images)}
                told[name]["held_out_value"] = float(which.double().mean())
        return [
            self._measured(name, float(which.double().mean()), caveat="; ".join(doubts), **told[name])
            for name, which in shares.items()
        ]

    def _copies(self, images: Tensor) -> Tensor:
        """Which images are training images, value by value."""
        return among(images.cpu(), self._data.training_images())

    @torch.no_grad()
    def _features(
        self, extractor: FeatureExtractor, sample: Sampler, progress: Progress | None
    ) -> tuple[Tensor, Tensor]:
        """The features of samples and, of full measurements, which are copies of training images."""
        features, drawn = torch.empty(self.samples, extractor.dimensions), []
        for first in range(0, self.samples, self.batch_size):
            n = min(self.batch_size, self.samples - first)
            images = sample(n, first)
            _check_samples(images, n, self._spec)
            features[first : first + n] = extractor(to_bytes(images.to(self._device), self._spec.levels)).cpu()
            drawn += [images.cpu()] if self.full else []
            if progress is not None:
                progress(first + n, self.samples)
        return features, self._copies(torch.cat(drawn)) if drawn else torch.empty(0)

    def _frechet_caveat(self) -> str:
        fewest, dimensions = min(self.samples, self._reference.count), self._reference.features.shape[1]
        if fewest > dimensions:
            return ""
        return f"unreliable: {fewest} images for covariances of {dimensions} features; compare at equal counts only"

    def _kernel_caveat(self, size: int) -> str:
        return "" if size == self.subset_size else f"subsets of {size} instead of {self.subset_size}: too few images"


def _check_samples(images: Tensor, n: int, spec: ImageSpec) -> None:
    """Refuse whatever is not n uint8 images of the data's shape and range: a metric must not guess."""
    if images.dtype != torch.uint8 or images.shape != (n, *spec.shape):
        raise ValueError(f"samples are {images.dtype} {tuple(images.shape)}: expected uint8 {(n, *spec.shape)}")
    if spec.levels < 256 and int(images.max()) >= spec.levels:
        raise ValueError(f"samples reach {int(images.max())}: the largest of {spec.levels} levels is {spec.levels - 1}")
