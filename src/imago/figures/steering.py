"""How much the first pixels steer the rest of an autoregressive sample.

Given the first pixels x_{≤k}, the others still vary. By the law of total variance, summed over the pixels behind k,

    Var(x_{>k}) = E[Var(x_{>k} | x_{≤k})] + Var(E[x_{>k} | x_{≤k}]),

and the share of the second term is what the first pixels decide: 0 if the rest does not depend on them, 1 if nothing is
left to chance. Completions of several images give both: the first term from completions of one image, the whole from
completions of two.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure as Drawing
from pydantic import Field, NonNegativeInt
from torch import Tensor

from imago.capacity import Cells
from imago.figures.base import Figure, Trained, held_out
from imago.figures.completion import GRAY, completed
from imago.images import Images, Labels, to_bytes
from imago.models.autoregressive import Autoregressive
from imago.pictures import grid
from imago.progress import Progress
from imago.rng import PerImageGenerator
from imago.statistics import Estimate, explained_share

Depth = Annotated[float, Field(ge=0, lt=1)]
PARTS = ("all that is left", "the third that comes next", "the last third")


@dataclass(frozen=True)
class Steered:
    """What was drawn with the first pixels held.

    Attributes:
        shown: how many pixels.
        completed: values 0..255, image by image.
        explained: the share of the variance that the first pixels explain, with its standard error, in each of PARTS.
    """

    shown: int
    completed: UInt8[Tensor, "images completions channels height width"]
    explained: tuple[Estimate, ...]


@dataclass
class Steering(Figure[Autoregressive]):
    """The share of the variance explained by the first pixels, over their number; beside it completions.

    Errors are standard errors, from leaving out one image at a time. A conditional model is given the labels, which
    explain a share of their own: that at depth 0, which is otherwise 0 but for chance.

    Args:
        depths: shares of the pixels that are shown, in raster order.
        images: whose first pixels are shown: the first ones of the source.
        completions: of each, at every depth, from the same random numbers at all depths.
        source: a split of the data that the model was trained on, or samples of the model itself.
        examples: how many of the images are drawn beside the numbers.
        seed: of the random streams.
    """

    depths: Annotated[list[Depth], Field(min_length=1)]
    images: Annotated[int, Field(ge=3, le=256)] = 32
    completions: Annotated[int, Field(ge=2, le=256)] = 6
    source: Literal["test", "val", "samples"] = "test"
    examples: Cells = 2
    seed: NonNegativeInt = 0

    def draw(self, trained: Trained[Autoregressive], progress: Progress) -> Drawing:
        """See :meth:`Figure.draw`."""
        model = trained.model
        pixels = model.spec.height * model.spec.width
        originals, labels = self._originals(trained, model)
        steered = []
        depths = sorted(set(self.depths))
        for k, depth in enumerate(depths):

            def report(done: int, total: int, k: int = k) -> None:
                progress(k * total + done, len(depths) * total)

            steered.append(self._steered(model, originals, labels, min(round(depth * pixels), pixels - 1), report))

        examples = min(self.examples, self.images)
        drawing = Drawing(figsize=(4.6 + 4.2 * examples, 3.9), layout="constrained")
        curve, *blocks = drawing.subplots(1, 1 + examples, width_ratios=[4.6, *[4.2] * examples])
        shares = [s.shown / pixels for s in steered]
        for name, ratios in zip(PARTS, zip(*(s.explained for s in steered), strict=True), strict=True):
            values, errors = [r.value for r in ratios], [r.error for r in ratios]
            curve.errorbar(shares, values, errors, marker="o", markersize=4, capsize=3, label=name)
        curve.set_xlabel("share of the pixels shown, from the top left")
        curve.set_title("share of the variance that they explain", fontsize=10)
        curve.set_xlim(-0.03, 1)
        curve.set_ylim(min(-0.05, curve.get_ylim()[0]), 1)
        curve.grid(alpha=0.3)
        curve.legend(fontsize=8, loc="upper left")
        black_and_white = {"cmap": "gray", "vmin": 0, "vmax": 255}
        for k, block in enumerate(blocks):
            rows = [
                torch.cat([held(to_bytes(originals[k : k + 1], model.spec.levels).cpu(), s.shown), s.completed[k]])
                for s in steered
            ]
            sheet = grid(torch.cat(rows), columns=1 + self.completions)
            block.imshow(sheet.permute(1, 2, 0).numpy(), interpolation="nearest", **black_and_white)
            block.set_xticks([])
            high = sheet.shape[1] / len(rows)
            block.set_yticks([(r + 0.5) * high for r in range(len(rows))], [f"{s:.3g}" for s in shares], fontsize=8)
            block.set_title("what is shown, and completions", fontsize=10)
        first = "samples" if self.source == "samples" else f"{self.source} images"
        drawing.suptitle(
            f"{type(model).__name__}: the first pixels of {self.images} {first}, {self.completions} completions each",
            fontsize=10,
        )
        return drawing

    def _originals(self, trained: Trained[Autoregressive], model: Autoregressive) -> tuple[Images, Labels | None]:
        if self.source == "samples":
            source = PerImageGenerator(self.seed, device=model.device)
            labels = model.draw_labels(self.images, source) if model.conditional else None
            return model.sample(self.images, labels=labels, generator=source), labels
        part = held_out(model, trained.data(), self.source, self.images)
        return part.images, part.labels if model.conditional else None

    def _steered(
        self, model: Autoregressive, originals: Images, labels: Labels | None, shown: int, progress: Progress
    ) -> Steered:
        height, width = model.spec.height, model.spec.width
        # Streams behind those of the samples: with a sample's own numbers its completion would be the sample.
        generator = PerImageGenerator(self.seed, first=self.images, device=model.device)
        known = first_pixels(height, width, shown)
        drawn = completed(model, originals, labels, known, self.completions, generator, progress)
        pixels = drawn.movedim(2, -1).flatten(2, 3).double()  # image, completion, pixel in raster order, channel
        left = pixels[:, :, shown:].numpy()
        third = max(1, left.shape[2] // 3)
        parts = (left, left[:, :, :third], left[:, :, -third:])
        explained = tuple(explained_share(part.reshape(*part.shape[:2], -1)) for part in parts)
        return Steered(shown, drawn, explained)


def first_pixels(height: int, width: int, shown: int) -> Tensor:
    """True at the first ``shown`` pixels in raster order, (height, width)."""
    return (torch.arange(height * width) < shown).view(height, width)


def held(images: Images, shown: int) -> Images:
    """Images (n, channels, height, width), values 0..255, gray behind the first ``shown`` pixels."""
    height, width = images.shape[2:]
    return images.where(first_pixels(height, width, shown), torch.tensor(GRAY, dtype=torch.uint8))
