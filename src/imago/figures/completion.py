"""Half-hidden images of the data, and how a model continues them."""

import textwrap
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor

from imago.capacity import Cells
from imago.figures.base import Figure, Trained, held_out
from imago.figures.latents import labelled
from imago.images import Images, Labels, to_bytes
from imago.models.completing import Completing
from imago.progress import Progress
from imago.rng import PerImageGenerator

Side = Literal["bottom", "right", "top", "left"]
GRAY = 128
NOT_EXACT = (
    "Image, what is shown, completions. Each value is drawn given those before it, row by row: what is shown further "
    "on has no influence, so these are no samples given all that is shown."
)


@dataclass
class Completion(Figure[Completing]):
    """A row for each image: the image, what the model is shown of it, and several completions.

    A model of any order draws the hidden values given all that is known, wherever it is. Others draw them given the
    values before them. Hidden at the bottom, all that is known comes before: the completions are exact samples given
    it. Hidden elsewhere, what is known further on is kept, and has no influence on the hidden values before it: a title
    says so.

    Args:
        images: rows of the figure: the first images of the split.
        completions: of each image.
        hide: the side that is hidden.
        fraction: of the image that is hidden.
        split: of the data that the model was trained on; a conditional model is given the labels.
        temperature: divides the log-probabilities; 1 draws from the model itself.
        seed: of the random streams of the completions.
    """

    images: Cells = 6
    completions: Cells = 5
    hide: Side = "bottom"
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    split: Literal["val", "test"] = "test"
    temperature: PositiveFloat = 1.0
    seed: NonNegativeInt = 0

    def draw(self, trained: Trained[Completing], progress: Progress) -> Image.Image:
        """See :meth:`Figure.draw`."""
        model, data = trained.model, trained.data()
        part = held_out(model, data, self.split, self.images)
        known = known_part(model.spec.height, model.spec.width, self.hide, self.fraction)
        model.temperature = self.temperature
        generator = PerImageGenerator(self.seed, device=model.device)
        labels = part.labels if model.conditional else None
        drawn = completed(model, part.images, labels, known, self.completions, generator, progress)
        originals = to_bytes(part.images, model.spec.levels)
        masked = originals.where(known, torch.tensor(GRAY, dtype=torch.uint8))
        rows = torch.cat([originals[:, None], masked[:, None], drawn], 1)
        columns = 2 + self.completions
        exact = self.hide == "bottom" or model.any_order
        title = "" if exact else textwrap.fill(NOT_EXACT, 9 * columns)  # letters as wide as the grid
        names = ["original", "given", *(f"drawn {k + 1}" for k in range(self.completions))]
        return labelled(rows.flatten(0, 1), columns, title=title, column_names=names)


def completed(
    model: Completing,
    images: Images,
    labels: Labels | None,
    known: Bool[Tensor, "height width"],
    count: int,
    generator: PerImageGenerator,
    progress: Progress,
) -> UInt8[Tensor, "images completions channels height width"]:
    """So many completions of each image, values 0..255; see :meth:`Completing.complete`."""
    drawn = model.complete(
        images.repeat_interleave(count, 0),
        known,
        labels=None if labels is None else labels.repeat_interleave(count),
        generator=generator,
        progress=progress,
    )
    return to_bytes(drawn, model.spec.levels).cpu().unflatten(0, (len(images), count))


def known_part(height: int, width: int, hide: Side, fraction: float) -> Bool[Tensor, "height width"]:
    """True where a pixel is shown; at least one row or column is hidden."""
    known = torch.ones(height, width, dtype=torch.bool)
    lines = known if hide in ("bottom", "top") else known.t()
    hidden = max(1, round(fraction * len(lines)))
    if hide in ("bottom", "right"):
        lines[len(lines) - hidden :] = False
    else:
        lines[:hidden] = False
    return known
