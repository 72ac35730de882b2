"""How far are a model's samples from the training images?"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torchmetrics import MetricCollection

from imago.data import ImageDataModule
from imago.data.sources import Toy
from imago.errors import UserError, printable
from imago.evaluation.cache import Cache
from imago.evaluation.choices import Auto, ExtractorChoice
from imago.evaluation.density import BINS, Coordinates, HistogramKL, ModeCoverage, probabilities
from imago.evaluation.extractors import FeatureExtractor
from imago.evaluation.frechet import PARTS, ExtrapolatedFrechetDistance, FrechetDistance
from imago.evaluation.inception_score import InceptionScore
from imago.evaluation.kernel import KernelDistance
from imago.evaluation.manifold import FEW, FEWEST, NEIGHBOURS, PRDC
from imago.evaluation.neighbours import Authenticity
from imago.evaluation.reference import KnownFeatures, ReferenceStatistics, batches_of_features
from imago.evaluation.sharpness import EdgeWidth
from imago.evaluation.sliced import MOST, MongeDistance
from imago.images import ImageSpec, to_bytes
from imago.measures import Measurement, Protocol
from imago.processes import by_first, launched_rank, shared
from imago.progress import Progress, progress_bar

Sampler = Callable[[int, int], Tensor]
LONG = 60.0  # seconds that are said before they pass
_TIMED = 16  # images whose features tell how long others take
_OPTIONS: dict[str, Any] = {"reset_real_features": False, "sync_on_compute": False}  # one process measures


class SampleQuality:
    """Fréchet and kernel distance between the features of samples and of the training split, and more on request.

    Of points whose density is known, and of quantised ones, ``metrics=auto`` compares with that instead: the KL
    divergence of histograms, the modes that are hit, and the share of samples of high quality.

    Args:
        extractor: the choice of features; ``None``: nothing is measured.
        samples: number of samples that a measurement draws.
        batch_size: images per batch of sampling and of feature extraction; changes no number beyond rounding.
        weights: path of the extractor's weights, instead of the place where they are looked for.
        subsets: number of random subsets of the kernel distance.
        subset_size: images in each of them; fewer are used, and the protocol says so, where there are not so many.
        full: measure the Fréchet distance of infinitely many samples, the Monge distance, precision, recall, density,
            coverage, authenticity, copies, the width of edges and, where the extractor knows classes, the Inception
            score too, and held-out images beside the samples, where there are as many; ``None`` leaves that to who
            measures: not during training, but in evaluate.py.

    Attributes:
        notices: what the user has to be told at the start of the run; complete after :meth:`prepare`.
    """

    def __init__(
        self,
        extractor: ExtractorChoice | None,
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
        self.notices: list[str] = []
        self._extractor: FeatureExtractor | None = None
        self._edges: EdgeWidth | None = None
        self._protocols: dict[str, Protocol] = {}

    @property
    def names(self) -> list[str]:
        """Names of what :meth:`measure` will return, the headline first; known after :meth:`prepare`."""
        return list(self._protocols)

    @property
    def extractor(self) -> FeatureExtractor | None:
        """What is measured with; known after :meth:`prepare`, ``None`` where nothing is measured."""
        return self._extractor

    def prepare(
        self,
        data: ImageDataModule,
        device: torch.device,
        *,
        called: str | None = None,
        chosen_for: ImageDataModule | None = None,
    ) -> None:
        """Get ready before training starts: extractor and statistics of the training split.

        Args:
            data: prepared.
            device: where features are computed.
            called: what protocols call the training split; ``None``: by the name of the data.
            chosen_for: prepared data that the extractor is chosen by, instead of these.

        Raises:
            UserError: these data cannot be measured in the way that was asked for.
        """
        self.notices, self._protocols, self._extractor, self._edges = [], {}, None, None
        if self.choice is None:
            return
        if len(data.train) < 2:
            raise UserError(f"{data.name} has {len(data.train)} training images: metrics need 2. Set metrics=none.")
        if isinstance(self.choice, Auto) and isinstance(data.source, Toy):
            self._device, self._spec, self._called = device, data.spec, data.name
            self._extractor = Coordinates(data.source)
            self._data = data
            self._set_up()
            return
        if data.spec.kind != "pixels":
            self.notices.append(f"the quality of samples is not measured: features are of pictures, not of {data.spec}")
            return
        chosen = self.choice.build(chosen_for or data, device, self.weights, self.notices.append)
        self._extractor = extractor = chosen
        if extractor is None:
            return
        self._device, self._spec, self._called = device, data.spec, called or f"{data.name} train"
        extractor.to(device)
        seconds = self._seconds(data, extractor)
        if seconds > LONG and not launched_rank():
            told = f"note: {extractor.name}: the features of the training images of {data.name} take about"
            print(printable(f"{told} {seconds / 60:.0f} minutes, once"), file=sys.stderr, flush=True)
        cache = Cache(data.directory)
        known = KnownFeatures.of(data, extractor, self.batch_size, device) if self.full else None
        reference = ReferenceStatistics.load(cache, data.fingerprint, extractor)
        if reference is None:
            if known is not None and len(known.training) == len(data.train):
                reference = ReferenceStatistics.of(known.training.split(self.batch_size), len(data.train))
            else:
                with progress_bar(f"Features of {data.name} ({extractor.name}), once") as progress:
                    train, levels = data.split("train"), data.spec.levels
                    batches = batches_of_features(train, levels, extractor, self.batch_size, device, progress)
                    reference = ReferenceStatistics.of(batches, len(train))
            reference.save(cache, data.fingerprint, extractor)
        self._data, self._compared = data, (extractor, reference, known)
        self._set_up()

    def first_use(self, data: ImageDataModule, device: torch.device) -> tuple[str, float]:
        """Whose features of the training images have to be computed first, and in how many seconds, about.

        0 where they are kept already, and where that cannot be told without a network or training.

        Args:
            data: prepared.
            device: where features would be computed.
        """
        if self.choice is None or data.spec.kind != "pixels" or len(data.train) < 2:
            return "", 0.0
        extractor = self.choice.at_hand(data, device, self.weights)
        if extractor is None:
            return "", 0.0
        extractor.to(device)
        self._device = device
        return extractor.name, self._seconds(data, extractor)

    def _seconds(self, data: ImageDataModule, extractor: FeatureExtractor) -> float:
        """How long the features take that are not kept yet, from those of a few images."""
        missing = [KnownFeatures.missing(data, extractor)] * self.full + [ReferenceStatistics.missing(data, extractor)]
        if not max(missing):
            return 0.0
        few = data.split("train").part(slice(_TIMED))
        times = []
        for _ in range(2):  # the first one is of a cold start
            began = time.perf_counter()
            for _ in batches_of_features(few, data.spec.levels, extractor, self.batch_size, self._device):
                pass
            times.append(time.perf_counter() - began)
        return max(missing) * min(times) / len(few)

    def _set_up(self) -> None:
        """Set up the metrics and their protocols for the number of samples."""
        data, self._protocols = self._data, {}
        self._metrics = MetricCollection({}, compute_groups=False)
        if isinstance(self._extractor, Coordinates):
            self._add_density(self._extractor)
            return
        extractor, reference, known = self._compared
        self._protocol = Protocol(
            extractor=extractor.name,
            extractor_fingerprint=extractor.fingerprint[:16],
            dimensions=extractor.dimensions,
            reference=self._called,
            reference_fingerprint=data.fingerprint,
            reference_images=reference.count,
            samples=self.samples,
        )
        self._add_distances(extractor, reference)
        if known is not None:
            self._add_infinity(extractor, reference)
            self._add_monge(extractor, reference)
            self._add_prdc(extractor, reference)
            self._add_score(extractor)
            self._add_authenticity(extractor, known, data)
            self._judge_held_out(extractor, known, data)
            self._add_edges(data)

    def take(self, samples: int) -> None:
        """Draw so many samples from now on; call :meth:`prepare` first."""
        if samples != self.samples and self._extractor is not None:
            self.samples = samples
            self._set_up()

    @torch.no_grad()
    def features(self, images: Tensor, levels: int | None = None) -> Tensor:
        """What is looked at of samples, (n, dimensions), on the CPU; call :meth:`prepare` first.

        Args:
            images: uint8 (n, C, H, W) with values 0..levels-1.
            levels: ``None``: those of the training images.
        """
        assert self._extractor is not None
        if isinstance(self._extractor, Coordinates):
            return self._extractor(images)
        return self._extractor(to_bytes(images.to(self._device), levels or self._spec.levels)).cpu()

    def _tell(self, name: str, extractor: FeatureExtractor, caveat: str, **entries: Any) -> None:
        """Say how a number will be obtained."""
        doubt = extractor.doubt if name != "copies" else ""
        caveat = "; ".join(filter(None, [doubt, caveat])) or "none"
        self._protocols[_suffixed(name, extractor)] = replace(self._protocol, caveat=caveat, **entries)

    def _add_distances(self, extractor: FeatureExtractor, reference: ReferenceStatistics) -> None:
        fewest, d = min(self.samples, reference.count), extractor.dimensions
        size = min(self.subset_size, self.samples, len(reference.features))
        frechet = FrechetDistance(num_features=d, **_OPTIONS)
        frechet.set_real(reference.mean, reference.covariance, reference.count)
        kernel = KernelDistance(subsets=self.subsets, subset_size=size, **_OPTIONS)
        kernel.update(reference.features, real=True)
        names = extractor.metric_names
        self._metrics.add_metrics(dict(zip(names, (frechet, kernel), strict=True)))
        few = f"unreliable: {fewest} images for covariances of {d} features; compare at equal counts only"
        self._tell(names[0], extractor, few if fewest <= d else "")
        smaller = f"subsets of {size} instead of {self.subset_size}: too few images" if size < self.subset_size else ""
        self._tell(names[1], extractor, smaller, subsets=self.subsets, subset_size=size)

    def _add_infinity(self, extractor: FeatureExtractor, reference: ReferenceStatistics) -> None:
        """Of samples that are enough for parts of them."""
        size = self.samples // PARTS
        if size < 2:
            return
        metric = ExtrapolatedFrechetDistance(num_features=extractor.dimensions, **_OPTIONS)
        metric.set_real(reference.mean, reference.covariance, reference.count)
        self._metrics["infinity"] = metric
        few = f"unreliable: parts of {size} images for covariances of {extractor.dimensions} features"
        self._tell("fd_infinity", extractor, few if size <= extractor.dimensions else "")

    def _add_monge(self, extractor: FeatureExtractor, reference: ReferenceStatistics) -> None:
        """Of as many samples as images."""
        count = min(self.samples, len(reference.features), MOST)
        self._metrics["mind"] = metric = MongeDistance(**_OPTIONS)
        metric.update(reference.features, real=True)
        self._tell("mind", extractor, "", samples=count, reference_images=count)

    def _add_density(self, extractor: Coordinates) -> None:
        """Of points whose density is known, with what as many test points have."""
        source, test = extractor.source, extractor(self._data.test.images)
        bins = BINS[source.shape.dimensions]
        self._metrics["kl_histogram"] = HistogramKL(probabilities(source, bins), bins, sync_on_compute=False)
        if source.shape.modes > 1:
            self._metrics["coverage"] = ModeCoverage(source.shape, test, sync_on_compute=False)
        self._metrics.update(test[: self.samples])
        held_out = self._metrics.compute()
        self._metrics.reset()
        protocol = Protocol(
            reference=f"{self._data.name}, its density",
            reference_fingerprint=self._data.fingerprint,
            samples=self.samples,
            held_out=f"{self._data.name} test",
            held_out_images=min(self.samples, len(test)),
            caveat="none",
        )
        for name, value in held_out.items():
            told = {"bins": bins**source.shape.dimensions + 1} if name == "kl_histogram" else {}
            self._protocols[name] = replace(protocol, held_out_value=float(value), **told)

    def _add_prdc(self, extractor: FeatureExtractor, reference: ReferenceStatistics) -> None:
        """Of as many samples as images."""
        count = min(self.samples, len(reference.features))
        if count < FEWEST:
            self.notices.append(
                f"metrics.samples={self.samples}: precision, recall, density and coverage are left out; they need "
                f"{FEWEST} samples and as many training images"
            )
            return
        self._metrics["prdc"] = prdc = PRDC(**_OPTIONS)
        prdc.update(reference.features, real=True)
        wide = f"unreliable: the balls of {count} images are wide enough for noise; {FEW} or more"
        for name, k in NEIGHBOURS.items():
            caveat = wide if count < FEW else ""
            self._tell(name, extractor, caveat, samples=count, reference_images=count, neighbours=k)

    def _add_score(self, extractor: FeatureExtractor) -> None:
        """Of an extractor that knows classes."""
        logits = extractor.logits(torch.zeros(1, extractor.dimensions, device=self._device))
        if logits is None:
            return

        def head(features: Tensor) -> Tensor:
            return extractor.logits(features.to(self._device)).cpu()  # type: ignore[union-attr]

        splits, classes = min(10, self.samples), logits.shape[1]  # 10 as in the paper
        self._metrics["score"] = InceptionScore(head=head, splits=splits, **_OPTIONS)
        size = self.samples // splits
        caveat = f"unreliable: splits of {size} images for {classes} classes" if size <= classes else ""
        self._tell("inception_score", extractor, caveat, splits=splits)

    def _add_authenticity(self, extractor: FeatureExtractor, known: KnownFeatures, data: ImageDataModule) -> None:
        """Beside the shares of held-out images, however few there are."""
        metric = Authenticity(**_OPTIONS)
        metric.update(known.training, real=True, originals=data.split("train"))
        held_out = known.held_out[: self.samples]
        doubts = ["of the training images in one draw of their binarisation"] if data.binarize == "dynamic" else []
        doubts += [f"unreliable beside {len(held_out)} held-out images; {FEW} or more"] if len(held_out) < FEW else []
        shares, told = {}, {}
        if len(held_out):
            metric.update(held_out, real=False, originals=data.val.part(slice(len(held_out))))
            shares = {name: float(share) for name, share in metric.compute().items()}
            told = {"held_out": f"{data.name} val", "held_out_images": len(held_out)}
            metric.reset()
        self._metrics["authenticity"] = metric
        for name, count in (("authenticity", len(known.training)), ("copies", len(data.train))):
            entries = {"reference_images": count, "held_out_value": shares.get(name), **told}
            self._tell(name, extractor, "; ".join(doubts), **entries)

    def _judge_held_out(self, extractor: FeatureExtractor, known: KnownFeatures, data: ImageDataModule) -> None:
        """What every number is of as many held-out images as there will be samples: of fewer it would not compare."""
        if len(known.held_out) < self.samples:
            return
        part = data.val.part(slice(self.samples))
        self._metrics.update(known.held_out[: self.samples], real=False, originals=part)
        for name, value in self._metrics.compute().items():
            suffixed = _suffixed(name, extractor)
            if suffixed in self._protocols:
                self._protocols[suffixed] = replace(
                    self._protocols[suffixed],
                    held_out=f"{data.name} val",
                    held_out_images=self.samples,
                    held_out_value=float(value),
                )
        self._metrics.reset()

    def _add_edges(self, data: ImageDataModule) -> None:
        """Of images that have more than two values: the edges of others are one pixel wide."""
        if data.spec.levels == 2 or data.spec.tokens:
            return
        self._edges = EdgeWidth(sync_on_compute=False)
        part = data.val.part(slice(self.samples))
        told: dict[str, Any] = {}
        if len(part):
            for batch in part.batches(self.batch_size):
                self._edges.update(batch.images)
            found = {name: float(value) for name, value in self._edges.compute().items()}
            told = {"held_out": f"{data.name} val", "held_out_images": len(part)}
            told |= {"held_out_value": found["edge_width"], "held_out_error": found["edge_width_error"]}
            self._edges.reset()
        self._protocols["edge_width"] = Protocol(
            reference=self._called,
            reference_fingerprint=data.fingerprint,
            samples=self.samples,
            caveat="none",
            **told,
        )

    @torch.no_grad()
    def measure(
        self,
        sample: Sampler,
        progress: Progress | None = None,
        *,
        spec: ImageSpec | None = None,
        means: Sampler | None = None,
    ) -> list[Measurement]:
        """Draw samples and compare them with the training split; the global random generators are left as they were.

        A group of processes calls it together: each draws a share, and all get the numbers of one.

        Args:
            sample: ``sample(n, first)`` gives the images first..first+n-1, uint8 (n, C, H, W) with values 0..levels-1.
            progress: called with (samples so far, samples in all).
            spec: of the samples; ``None``: that of the training images.
            means: of what the samples are draws, called alike: pixel noise would hide how wide edges are.
        """
        extractor = self._extractor
        if extractor is None:
            return []
        spec = spec or self._spec

        def drawn(first: int) -> tuple[Tensor, Tensor, Tensor]:
            """The images from this one on that make a batch, their features, and where edges are looked for."""
            n = min(self.batch_size, self.samples - first)
            images = sample(n, first)
            spec.check(images)
            if len(images) != n:
                raise ValueError(f"{len(images)} samples where {n} were asked for")
            sharp = images if means is None or self._edges is None else means(n, first)
            return images.cpu(), self.features(images, spec.levels), sharp.cpu()

        try:
            with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
                done = 0
                for images, features, sharp in shared(drawn, range(0, self.samples, self.batch_size)):
                    if isinstance(extractor, Coordinates):
                        self._metrics.update(features)
                    else:
                        self._metrics.update(features, real=False, originals=images)
                    if self._edges is not None:
                        self._edges.update(sharp)
                    done += len(images)
                    if progress is not None:
                        progress(done, self.samples)
            numbers = by_first(lambda: {name: float(value) for name, value in self._metrics.compute().items()})
            if (metric := self._edges) is not None:
                numbers |= by_first(lambda: {name: float(value) for name, value in metric.compute().items()})
        finally:
            self._metrics.reset()
            if self._edges is not None:
                self._edges.reset()
        outcomes: dict[str, dict[str, Any]] = {
            "inception_score": {"deviation": numbers.pop("inception_score_std", None)},
            "fd_infinity": {"standard_error": numbers.pop("fd_infinity_error", None)},
            "edge_width": {"standard_error": numbers.pop("edge_width_error", None)},
        }
        found = {_suffixed(name, extractor): (value, outcomes.get(name, {})) for name, value in numbers.items()}
        return [
            Measurement(name, found[name][0], replace(protocol, **found[name][1]))
            for name, protocol in self._protocols.items()
        ]


def _suffixed(name: str, extractor: FeatureExtractor) -> str:
    """The name of a metric, with the extractor's suffix where its features play a part."""
    return name if name in (*extractor.metric_names, "copies", "edge_width") else name + extractor.suffix
