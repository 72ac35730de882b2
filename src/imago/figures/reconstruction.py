"""Test images and what is left of them after encoding and decoding."""

from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from pydantic import PositiveInt

from imago.capacity import Cells
from imago.data.base import drawn
from imago.evaluation.reconstructions import pairs, reconstruct
from imago.figures.base import Figure, Trained, held_out
from imago.figures.latents import AT_ONCE, labelled
from imago.images import normalize
from imago.models.latent import EncodingModel
from imago.progress import Progress


@dataclass
class Reconstruction(Figure[EncodingModel]):
    """Rows of images, each above the row of their reconstructions; a conditional model is told the labels.

    The title has the mean squared error per value of signals in [-1, 1].

    Args:
        rows: pairs of rows.
        columns: images in a row.
        measured: images of the split that the error is computed of; all, if there are fewer.
        split: of the data that the model was trained on.
    """

    rows: Cells = 4
    columns: Cells = 10
    measured: PositiveInt = 1000
    split: Literal["val", "test"] = "test"

    @torch.no_grad()
    def draw(self, trained: Trained[EncodingModel], progress: Progress) -> Image.Image:
        """See :meth:`Figure.draw`."""
        model, data = trained.model, trained.data()
        part = held_out(model, data, self.split)
        measured = drawn(part, self.split, self.measured)
        total = 0.0
        for first in range(0, len(measured), AT_ONCE):
            few = measured.part(slice(first, first + AT_ONCE))
            signal = normalize(few.images, model.spec.levels)
            total += float((reconstruct(model, few) - signal).double().square().sum())
            progress(first + len(few), len(measured))
        error = total / (len(measured) * model.spec.dimensions)
        images, columns = pairs(model, measured, self.rows, self.columns)
        return labelled(
            images,
            columns,
            title=f"{len(measured):,} {self.split} images: mean squared error {error:.4f} of values in [−1, 1]",
            row_names=["image", "decoded"] * (len(images) // columns // 2),
        )
