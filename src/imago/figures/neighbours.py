"""Samples beside the training images nearest to them: what a model has learned by heart."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from PIL import Image
from pydantic import Field, NonNegativeInt
from torch import Tensor

from imago.capacity import Cells, Drawn
from imago.data import ImageDataModule
from imago.errors import UserError
from imago.evaluation.choices import Auto
from imago.evaluation.neighbours import among, nearest
from imago.evaluation.reference import KnownFeatures
from imago.figures.base import Figure, Trained
from imago.figures.latents import labelled
from imago.images import to_bytes
from imago.models.base import GenerativeModel
from imago.progress import Progress
from imago.rng import PerImageGenerator

AT_ONCE = 100  # images drawn together


@dataclass
class Neighbours(Figure[GenerativeModel]):
    """A row for each sample: the sample and its nearest training images; the most suspicious samples come first.

    Beside a row stand the distance d between the sample and its nearest training image and, in brackets, how far that
    is from its own nearest other one, r: a sample with d ≤ r is not authentic (Alaa et al. 2022;
    :mod:`imago.evaluation.neighbours`). Copies come first, value by value, then what ``order`` says. The title has the
    share of authentic ones among all samples drawn. Labels, where the model draws them, play no part.

    Args:
        samples: drawn from the model.
        rows: samples shown.
        neighbours: of each of them.
        order: by d, or by d / r (``relative``): where the data are dense, as among the ones of MNIST, everything is
            near, and a small d means little.
        space: where distances are taken: in the ``features`` that ``metrics=auto`` measures these data with, in
            ``pixels`` from 0 to 1, or ``auto``: features where there are some.
        weights: path of the feature extractor's weights, as ``metrics.weights``.
        seed: of the random streams of the samples; 1 is what evaluate.py measures.
    """

    samples: Drawn = 500
    rows: Cells = 8
    neighbours: Annotated[int, Field(ge=1, le=50)] = 6
    order: Literal["relative", "distance"] = "relative"
    space: Literal["auto", "features", "pixels"] = "auto"
    weights: str | None = None
    seed: NonNegativeInt = 1

    @torch.no_grad()
    def draw(self, trained: Trained[GenerativeModel], progress: Progress) -> Image.Image:
        """See :meth:`Figure.draw`."""
        model, data = trained.model, trained.data()
        if self.neighbours >= len(data.train):
            raise UserError(
                f"figure.neighbours={self.neighbours}: {data.name} has {len(data.train)} training images; give fewer"
            )
        parts = []
        for first in range(0, self.samples, AT_ONCE):
            count = min(AT_ONCE, self.samples - first)
            parts.append(model.sample(count, generator=PerImageGenerator(self.seed, first, device=model.device)).cpu())
            progress(first + count, self.samples)
        samples, training = torch.cat(parts), data.training_images()
        vectors, known, space = self._vectors(samples, data, model)
        known = known[: len(training)]
        distances, which = nearest(vectors, known, self.neighbours)
        met, place = which[:, 0].unique(return_inverse=True)
        apart = nearest(known[met], known, itself=met)[0][place, 0]
        copies = among(samples, training)
        authentic = (distances[:, 0] > apart) & ~copies
        suspicion = distances[:, 0] / apart if self.order == "relative" else distances[:, 0]
        order = suspicion.masked_fill(copies, -1).argsort(stable=True)[: self.rows]
        rows = torch.cat([samples[order, None], training[which[order]]], 1).flatten(0, 1)
        return labelled(
            to_bytes(rows, model.spec.levels),
            columns=1 + self.neighbours,
            title=(
                f"The {len(order)} of {self.samples:,} samples nearest to {len(known):,} {data.name} training images"
                f"{', relative to theirs' * (self.order == 'relative')}\n{space}\n"
                f"authentic: {float(authentic.double().mean()):.1%} of the samples; copies: {int(copies.sum())}"
            ),
            column_names=["sample", *(str(k + 1) for k in range(self.neighbours))],
            row_names=[
                f"copy ({apart[k]:.3g})" if copies[k] else f"{distances[k, 0]:.3g} ({apart[k]:.3g})" for k in order
            ],
        )

    def _vectors(self, samples: Tensor, data: ImageDataModule, model: GenerativeModel) -> tuple[Tensor, Tensor, str]:
        """Vectors of the samples and of the training images, and what they are."""
        levels = data.spec.levels
        told: list[str] = []
        if self.space != "pixels":
            extractor = Auto().build(data, model.device, self.weights, told.append)
            if extractor is not None:
                extractor.to(model.device)
                known = KnownFeatures.of(data, extractor, AT_ONCE, model.device).training
                parts = to_bytes(samples, levels).split(AT_ONCE)
                vectors = torch.cat([extractor(part.to(model.device)).cpu() for part in parts])
                return vectors, known, f"distances between features: {extractor.name}"
            if self.space == "features":
                raise UserError(f"figure.space=features: {told[-1]} Here, figure.space=pixels")
        vectors, known = (images.flatten(1).float() / (levels - 1) for images in (samples, data.training_images()))
        return vectors, known, "distances between pixels, 0 to 1"
