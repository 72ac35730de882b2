"""The likelihood of a split of the data under a model that knows it: exactly, by a bound, or by an estimate."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from imago.config import check_has
from imago.data import ImageDataModule
from imago.data.base import Dataset, drawn, seen_by
from imago.errors import UserError
from imago.measures import Likelihood, Measurement, Protocol
from imago.models.base import ExplicitModel, evaluating, sum_of
from imago.models.denoiser import Denoiser
from imago.models.flow import NormalizingFlow
from imago.models.importance import ImportanceWeighted
from imago.models.probability_flow import ProbabilityFlow
from imago.models.summed import SummedBound
from imago.processes import shared
from imago.progress import Progress
from imago.rng import PerImageGenerator


class NegativeLogLikelihood(Metric):
    """Mean negative log-likelihood of images, in nats and in bits per dimension, with standard errors; lower is better.

    Args:
        dimensions: number of values of an image, channels · height · width.
        options: of ``torchmetrics.Metric``.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    values: list[Tensor]

    def __init__(self, dimensions: int, **options: Any) -> None:
        super().__init__(**options)
        self.dimensions = dimensions
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, nats: Float[Tensor, " n"]) -> None:
        """Add −log p(x) of a batch, in nats per image."""
        self.values.append(nats.detach())

    @property
    def each(self) -> list[float]:
        """The nats of every image so far, in the order in which they were added."""
        return dim_zero_cat(self.values).double().tolist()

    def compute(self) -> dict[str, Float64[Tensor, ""]]:
        """Return ``nats`` and ``bpd``, and their standard errors over the images, nan for a single one.

        The sums are float64; ``bpd`` = nats / (dimensions ln 2).
        """
        nats = dim_zero_cat(self.values).double()
        error = nats.std() / math.sqrt(len(nats)) if len(nats) > 1 else nats.new_tensor(math.nan)
        bits = self.dimensions * math.log(2)
        return {"nats": nats.mean(), "nats_error": error, "bpd": nats.mean() / bits, "bpd_error": error / bits}


@torch.no_grad()
def measure_likelihood(
    model: ExplicitModel,
    data: ImageDataModule,
    split: Literal["train", "val", "test"],
    *,
    averaged: bool,
    batch_size: int = 128,
    images: int | None = None,
    importance: int | None = None,
    bound_steps: int | None = None,
    probability_flow: float | None = None,
    progress: Progress | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> list[Measurement]:
    """The mean negative log-likelihood of images that are what training saw: the same levels, the same binarisation.

    A group of processes calls it together: each measures a share, and all get the numbers of one. The global random
    generators are left as they were; a bound that is estimated with noise gets the same noise for an
    image every time.

    Args:
        model: with the weights to be judged. A conditional one is given the labels: log p(x | label). Of a class
            without training images it knows nothing, so images of it are left out, which the caveat says.
        data: prepared.
        split: its images in their fixed order, a dynamically binarised split in its one fixed draw.
        averaged: whether the model has averaged weights; for the protocol.
        batch_size: images at a time; changes no number beyond rounding.
        images: only so many, drawn at random and the same every time; ``None`` takes all.
        importance: also the importance-weighted bound with so many draws for each image: of z, or of the noise that
            makes real numbers of integers.
        bound_steps: of a diffusion's bound only so many terms for each image, drawn at random; ``None`` for all.
        probability_flow: also the likelihood by the differential equation that a denoiser's samples can follow, to
            this tolerance.
        progress: called with (images so far, images in all).
        before_batch: called before each batch; may raise to abandon the measurement.

    Returns:
        ``bpd``, bits per dimension, nats / (dimensions ln 2), and ``nats`` per image; lower is better. Where a bound
        has parts, each in nats, and as ``<name>_bpd``. With ``importance`` also ``iw/bpd``, ``iw/nats`` and
        ``elbo/gap``, the nats between the two bounds; with ``probability_flow`` ``flow/bpd`` and ``flow/nats``. Where
        the distribution of the data is known (:meth:`imago.data.ImageDataModule.log_prob`) also ``kl``,
        KL(p_data ‖ p_model) in nats. Protocols have the standard error of the mean over the images, those of an
        estimate with what all images share (:attr:`imago.models.base.ExplicitModel.common_error`). Nats have those of
        each image.

    Raises:
        UserError: images or labels that the model was not made for, none that it knows the class of, or importance
            weights of a model without them.
    """
    check_has(model, ImportanceWeighted, "importance", importance, "importance-weighted bound")
    check_has(model, ProbabilityFlow, "probability_flow", probability_flow, "likelihood by its probability flow")
    whole = data.split(split)
    part = seen_by(model, whole)
    if not len(part):
        raise UserError(
            f"{data.name} {split}: no image is of a class that has training images; measure another split, or train "
            "with conditional=false"
        )
    available = len(part)
    count = available if images is None else min(images, available)
    part = drawn(part, split, count)
    bound_terms = None
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []))
        if isinstance(model, SummedBound):
            stack.enter_context(model.visiting(bound_steps))
            bound_terms = model.bound_terms
        torch.manual_seed(0)
        metrics = _nats_of_all(model, data, part, batch_size, importance, probability_flow, progress, before_batch)
    seen = (data, count, available, len(whole) - available)
    protocol = Protocol(
        data=f"{data.name} {split}",
        data_fingerprint=data.fingerprint,
        images=count,
        selection="drawn" if split == "test" and count < available else None,
        likelihood=model.likelihood,
        estimator=model.estimator or None,
        binarization=BINARIZATION[data.binarize],
        conditional=model.conditional,
        bound_terms=bound_terms,
        dequantization=model.dequantization_name if isinstance(model, NormalizingFlow) else None,
        weights="averaged" if averaged else "last",
        caveat=_caveat(model, model.likelihood, *seen),
    )
    measured: list[Measurement] = []
    for name, metric in metrics.items():
        told = replace(protocol, draws=importance) if name.startswith("iw/") or name == "elbo/gap" else protocol
        if name == "flow/nats" and isinstance(model, ProbabilityFlow) and probability_flow is not None:
            how, doubt = model.flow_estimator(probability_flow), _caveat(model, "estimate", *seen)
            told = replace(told, likelihood="estimate", estimator=how, bound_terms=None, caveat=doubt)
        elif name not in ("nats", "iw/nats", "kl"):
            told = replace(told, likelihood="part", caveat=PARTS.get(name, "none"))
        measured += _measurements(name, metric, told, model)
    return measured


def _nats_of_all(
    model: ExplicitModel,
    data: ImageDataModule,
    part: Dataset,
    batch_size: int,
    importance: int | None,
    probability_flow: float | None,
    progress: Progress | None,
    before_batch: Callable[[], None],
) -> dict[str, NegativeLogLikelihood]:
    """The nats of all images by name, those of :func:`_nats` and ``kl``; a group of processes shares the batches.

    Arguments as in :func:`measure_likelihood`, but for ``part``, the images that are measured.
    """
    count, done = len(part), 0
    metrics: dict[str, NegativeLogLikelihood] = {}

    def measured_from(first: int) -> dict[str, Tensor]:
        few = part.part(slice(first, min(first + batch_size, count)))

        def tell(share: float) -> None:
            if progress is not None:
                progress(first + int(share * len(few)), count)
            before_batch()

        before_batch()
        nats = _nats(model, few, first, importance, probability_flow, tell)
        found = {name: values.cpu() for name, values in nats.items()}  # not every device has float64
        known = data.log_prob(few.images, few.labels if model.conditional else None)
        return found if known is None else found | {"kl": known + found["nats"]}

    for found in shared(measured_from, range(0, count, batch_size)):
        for name, nats in found.items():
            metric = metrics.setdefault(name, NegativeLogLikelihood(model.spec.dimensions, sync_on_compute=False))
            metric.update(nats)
        done += len(found["nats"])
        if progress is not None:
            progress(done, count)
    return metrics


def _measurements(name: str, metric: NegativeLogLikelihood, told: Protocol, model: ExplicitModel) -> list[Measurement]:
    """A number in bits per dimension and in nats, with its standard errors; the nats with those of each image."""
    values = {key: float(value) for key, value in metric.compute().items()}
    bits = name.removesuffix("nats") + "bpd" if name.endswith("nats") else f"{name}_bpd"
    found = []
    for key, measure in ((name, "nats"),) if name == "kl" else ((bits, "bpd"), (name, "nats")):
        error, common = values[f"{measure}_error"], None
        if told.likelihood == "estimate":
            common = model.common_error / (model.spec.dimensions * math.log(2) if measure == "bpd" else 1)
            error = math.hypot(error, common)
        each = metric.each if key.endswith("nats") else None
        found.append(Measurement(key, values[measure], replace(told, standard_error=error, common_error=common), each))
    return found


def _nats(
    model: ExplicitModel,
    part: Dataset,
    first: int,
    importance: int | None,
    probability_flow: float | None,
    tell: Callable[[float], None],
) -> dict[str, Float[Tensor, " n"]]:
    """Nats of each image, the parts of its bound where there are several, and with ``importance`` the tighter bound.

    ``tell`` is called with the share of the work that is done, and may raise.
    """
    labels, steps = part.condition if model.conditional else None, 1 + (importance or 0)
    terms = model.measured_nll_terms(
        part.images,
        labels,
        PerImageGenerator(0, first=first, device=model.device),
        progress=lambda done, total: tell(done / total / steps),
    )
    values = {"nats": sum_of(terms)} | (terms if len(terms) > 1 else {})
    if importance is not None and isinstance(model, ImportanceWeighted):
        bound = model.importance_weighted(
            part.images,
            labels,
            k=importance,
            generator=PerImageGenerator(1, first=first, device=model.device),
            progress=lambda draws, _: tell((1 + draws) / steps),
        )
        values |= {"iw/nats": -bound, "elbo/gap": values["nats"] + bound}
    if probability_flow is not None and isinstance(model, ProbabilityFlow):
        images, labels = model.checked(part.images, labels)
        noise = PerImageGenerator(2, first=first, device=model.device)
        with evaluating(model):
            values["flow/nats"] = model.flow_nats(images, labels, noise.normal, probability_flow)
    return values


PARTS = {"elbo/gap": "the distance of two bounds: KL(q || p) of what is drawn for an image is as large or larger"}
BINARIZATION = {
    None: "none",
    "threshold": "white above 127",
    "dynamic": "white with probability intensity / 255, one fixed draw",
}


def _caveat(
    model: ExplicitModel, likelihood: Likelihood, data: ImageDataModule, count: int, available: int, unknown: int
) -> str:
    said = []
    if likelihood == "lower_bound":
        said.append("from a lower bound of the likelihood: the true value is smaller or equal")
    if likelihood == "estimate":
        said.append("an estimate of the likelihood: the true value may be smaller or larger")
    if isinstance(model, Denoiser) and model.guidance:
        said.append("of the model without guidance, which samples have")
    if count < available:
        said.append(f"of {count} of {available} images")
    if unknown:
        said.append(f"without {unknown} images of classes that have no training images")
    if data.binarize:
        said.append("compares with the same binarisation only")
    return "; ".join(said) or "none"
