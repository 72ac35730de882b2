"""What the numbers mean that models are measured by: which way is better, how they were obtained, which compare."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

Better = Literal["low", "high"] | None
# What a model can say about p(x), and how its −log p(x) is read: = is the value, ≤ an upper bound of it, ≈ an estimate
# that may err to either side.
Likelihood = Literal["exact", "lower_bound", "estimate", "none"]
RELATIONS = {"exact": "=", "lower_bound": "≤", "estimate": "≈"}

# Where a run keeps what was measured of every image.
EACH = "each"

# What is measured, in the order of a board's columns: by the beginnings of the names, which an extractor's may follow,
# which way is better, a title, and what the number is. Of the last ones neither way is better: held-out images say what
# is right, and the protocol has theirs. Parts of a bound have no direction either.
MEASURES: dict[str, tuple[Better, str, str]] = {
    "nats": ("low", "nats", "Negative log-likelihood of an image"),
    "bpd": ("low", "bits/dim", "The same in bits per dimension"),
    "kl_histogram": ("low", "KL of histograms", "KL divergence of the data's distribution from samples, over bins"),
    "kl": ("low", "KL", "KL divergence of the data's distribution from the model's, in nats"),
    "modes": ("high", "Modes", "Modes of the data's distribution that samples hit"),
    "high_quality": ("high", "High quality", "Share of the samples where the data's density is not unusually low"),
    "fid": ("low", "FID", "Fréchet distance of samples to the training images"),
    "fd_infinity": ("low", "FD∞", "Fréchet distance that infinitely many samples would have, by extrapolation"),
    "fd_": ("low", "FD", "Fréchet distance of samples to the training images"),
    "kid": ("low", "KID", "Kernel distance of samples to the training images"),
    "kd_": ("low", "KD", "Kernel distance of samples to the training images"),
    "mind": ("low", "MIND", "Sliced Wasserstein distance of samples to the training images"),
    "precision": ("high", "Precision", "Share of the samples that lie among the training images"),
    "recall": ("high", "Recall", "Share of the training images that lie among the samples"),
    "density": (
        "high",
        "Density",
        "How many samples lie in neighbourhoods of training images, over those expected",
    ),
    "coverage": ("high", "Coverage", "Share of the training images that have a sample in their neighbourhood"),
    "clipped_density": ("high", "Density, clipped", "Density that no outlier and no crowded place can raise, 0..1"),
    "clipped_coverage": ("high", "Coverage, clipped", "Share of good samples that would cover as much, 0..1"),
    "inception_score": ("high", "IS", "How certain and how varied a classifier finds the samples"),
    "cas": ("high", "CAS", "Accuracy on real test images of a classifier that learned from samples and their classes"),
    "authenticity": (
        None,
        "Authentic",
        "Share of samples that are no near copies; as that of held-out images is best",
    ),
    "edge_width": (None, "Edges", "Width of edges in pixels; as that of held-out images is best"),
    "copies": (None, "Copies", "Share of the samples that are a training image, pixel by pixel"),
}


def _compared() -> Any:
    """An entry that two numbers of one name must share to be compared."""
    return field(default=None, metadata={"role": "compared"})


def _outcome() -> Any:
    """What came out of a measurement, or in what time on which machine: no part of the question that was asked."""
    return field(default=None, metadata={"role": "outcome"})


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a number was obtained; ``None`` where an entry does not apply.

    Args:
        data: data set and split that a likelihood is of, such as "mnist test".
        data_fingerprint: digest of that data set's training images.
        images: number of images that a likelihood is the mean of.
        selection: "drawn" where they are some of a test split, drawn at random and the same every time; versions before
            0.2 took the first.
        likelihood: "exact", "lower_bound", "estimate", which compares with estimates alone, or "part" for a part of a
            bound.
        estimator: how an estimate was made, such as "AIS, 100 chains, 10,000 temperatures".
        binarization: how the images were binarised; "none" for gray and colours.
        conditional: whether a likelihood is log p(x | label).
        classes: from which distribution the classes of conditional samples were drawn.
        bound_terms: how many terms of a diffusion's bound were evaluated for each image.
        draws: draws of what an image does not show, per image, of an importance-weighted bound.
        dequantization: which noise makes real numbers of integers, of a flow's bound: "uniform" or "variational".
        extractor: name of the feature extractor.
        extractor_fingerprint: digest of its weights.
        dimensions: length of a feature vector.
        reference: data set and split that samples are compared with, such as "mnist train".
        reference_fingerprint: digest of that data set's training images.
        reference_images: number of reference images that take part.
        samples: number of samples.
        subsets: number of subsets of the kernel distance.
        subset_size: images in each.
        neighbours: k of precision, recall, density and coverage.
        splits: of the Inception score.
        bins: of a histogram.
        repeats: number of seeds that the number is the mean over.
        deviation: standard deviation over seeds, or over the splits of the Inception score.
        held_out: data set and split of the held-out images that are judged like samples.
        held_out_images: their number.
        held_out_value: the metric's value for them.
        held_out_error: its standard error, where that is known.
        weights: "averaged" or "last".
        standard_error: of the mean over images; of an estimate with the error that all images share.
        common_error: of an estimate the standard error of what all images share, in the unit of the number: of log Z.
        seed: of the random streams of the samples.
        nfe: network evaluations that drawing one sample takes.
        sampler: how samples were drawn, where there is a choice.
        seconds_per_sample: time to draw one sample, in batches.
        seconds_alone: time to draw one image alone.
        device: what that time depends on.
        caveat: what to beware of; "none" for nothing.
        other: entries of other versions, and those whose value has not the type it should have.
    """

    data: str | None = _compared()
    data_fingerprint: str | None = _compared()
    images: int | None = _compared()
    selection: str | None = _compared()
    likelihood: str | None = None
    estimator: str | None = None
    binarization: str | None = _compared()
    conditional: bool | None = _compared()
    classes: str | None = _compared()
    bound_terms: int | None = None
    draws: int | None = _compared()
    dequantization: str | None = None
    extractor: str | None = _compared()
    extractor_fingerprint: str | None = _compared()
    dimensions: int | None = None
    reference: str | None = _compared()
    reference_fingerprint: str | None = _compared()
    reference_images: int | None = _compared()
    samples: int | None = _compared()
    subsets: int | None = _compared()
    subset_size: int | None = _compared()
    neighbours: int | None = _compared()
    splits: int | None = _compared()
    bins: int | None = _compared()
    repeats: int | None = _compared()
    deviation: float | None = _outcome()
    held_out: str | None = None
    held_out_images: int | None = None
    held_out_value: float | None = _outcome()
    held_out_error: float | None = _outcome()
    weights: str | None = None
    standard_error: float | None = _outcome()
    common_error: float | None = _outcome()
    seed: int | None = None
    nfe: int | None = None
    sampler: str | None = None
    seconds_per_sample: float | None = _outcome()
    seconds_alone: float | None = _outcome()
    device: str | None = _outcome()
    caveat: str | None = _outcome()
    other: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Protocol":
        """Read a stored protocol of any version, with today's names."""
        types = {entry.name: entry.type for entry in fields(cls) if entry.name != "other"}
        known = {name: value for name, value in stored.items() if name in types and _is_a(value, types[name])}
        return cls(**known, other={name: value for name, value in stored.items() if name not in known})

    def as_dict(self) -> dict[str, Any]:
        """Return the entries that apply, as they are stored."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "other"}
        return {name: value for name, value in own.items() if value is not None} | dict(self.other)

    def _entries(self, *roles: str | None) -> dict[str, Any]:
        told = self.as_dict()
        return {
            entry.name: told[entry.name]
            for entry in fields(self)
            if entry.metadata.get("role") in roles and entry.name in told
        }

    @property
    def compared(self) -> dict[str, Any]:
        """The entries that two numbers of one name must share to be compared.

        That it is an estimate is one of them: exact values and bounds rank together, because a bound that leads is
        better whatever its true value; of an estimate nobody knows on which side of the truth it lies.
        """
        estimate = {"likelihood": "estimate"} if self.likelihood == "estimate" else {}
        return self._entries("compared") | estimate

    @property
    def comparison_key(self) -> str:
        """:attr:`compared` as one line, which checkpoints keep."""
        return "; ".join(f"{name} {value}" for name, value in self.compared.items())

    @property
    def question(self) -> dict[str, Any]:
        """All entries but what came out: measuring with the same ones again replaces a number."""
        return self._entries("compared", None) | dict(self.other)

    @property
    def relation(self) -> str:
        """``=`` for an exact likelihood, ``≤`` for a bound, ``≈`` for an estimate, else nothing."""
        return RELATIONS.get(self.likelihood or "", "")

    @property
    def error(self) -> float | None:
        """The standard error of the mean over images, seeds or splits; ``None`` where none is known."""
        count = max(self.repeats or self.splits or 1, 1)
        deviation = None if self.deviation is None else self.deviation / math.sqrt(count)
        errors = (self.standard_error, deviation)
        return next((float(error) for error in errors if error is not None and abs(error) < math.inf), None)

    @property
    def doubtful(self) -> bool:
        """Whether there is a caveat."""
        return self.caveat not in (None, "none")


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a stored value may stand in a field of type ``X | None``; whole numbers are floats too."""
    types = get_args(kind)
    return value is not None and (type(value) in types or (type(value) is int and float in types))


@dataclass(frozen=True)
class Measurement:
    """One number and how it was obtained.

    Args:
        name: "fid", "precision_classifier", "nats", ...; :func:`better` says which way is better.
        value: the number.
        protocol: how it was obtained.
        each: of a likelihood the value of every image, in the order in which they were measured, so that two models'
            can be compared image by image.
    """

    name: str
    value: float
    protocol: Protocol
    each: Sequence[float] | None = field(default=None, repr=False, compare=False)


def kind_of(name: str) -> str:
    """The key of :data:`MEASURES` that a name without its split begins with; the name itself where none does.

    Not every ``fd_...`` is a distance of the samples that were drawn: ``fd_infinity_classifier`` is of another kind.
    """
    return next((beginning for beginning in MEASURES if name.startswith(beginning)), name)


def better(name: str) -> Better:
    """Which numbers of a name are better, such as "val/fd_classifier" or "nats"; ``None`` where neither are."""
    if "elbo/" in name:
        return None
    kind = kind_of(name.rsplit("/", 1)[-1])
    return MEASURES[kind][0] if kind in MEASURES else None


def is_better(name: str, value: float, best: float | None) -> bool:
    """Whether a number is better than the best so far, ``None`` where there is none yet; nan and inf never are."""
    way = better(name)
    if way is None or not math.isfinite(value):
        return False
    return best is None or (value < best if way == "low" else value > best)
