"""Which modes of the data a model's samples hit."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing
from pydantic import NonNegativeInt

from imago.capacity import Drawn
from imago.errors import UserError
from imago.evaluation.density import COVERED, ModeCoverage
from imago.figures.base import Figure, Trained
from imago.figures.density import samples_of, toy_of
from imago.models.base import GenerativeModel
from imago.progress import Progress


@dataclass
class ModeShares(Figure[GenerativeModel]):
    """The share of samples at each mode of the data, and of those that are of none, beside what it should be.

    See :class:`imago.evaluation.density.ModeCoverage`: what is at no mode is where the data's density is lower than at
    99% of the data.

    Args:
        samples: how many are drawn.
        seed: of the samples.
    """

    samples: Drawn = 10_000
    seed: NonNegativeInt = 0

    @torch.no_grad()
    def draw(self, trained: Trained[GenerativeModel], progress: Progress) -> Drawing:
        """See :meth:`Figure.draw`."""
        model, data = trained.model, trained.data()
        source = toy_of(data, "mode_coverage")
        modes = source.shape.modes
        if modes == 1:
            raise UserError(f"figure=mode_coverage: {data.name} has one mode; give a checkpoint of data with several")
        coverage = ModeCoverage(source.shape, source.points(data.test.images))
        drawn = source.points(samples_of(model, self.samples, self.seed, progress))
        coverage.update(drawn)
        numbers = coverage.compute()
        share = coverage.counts.double() / self.samples
        drawing = Drawing(figsize=(9, 3.6), layout="constrained")
        left, right = drawing.subplots(1, 2, width_ratios=(1, 1.3))
        density = source.shape.log_density(drawn)
        if source.shape.dimensions == 2:
            colour = np.where(density.numpy() >= coverage.least, "C0", "tomato")
            left.scatter(*drawn.T.numpy(), s=1, c=colour, linewidths=0)
            left.set_aspect("equal")
        else:
            left.hist(drawn[:, 0].numpy(), 100, color="C0")
        left.set_title(f"{self.samples:,} samples", fontsize=10)
        names = [*map(str, range(modes)), "none"]
        right.bar(names, share.numpy(), color=[*["C0"] * modes, "tomato"])
        right.axhline(1 / modes, color="black", linestyle="--", linewidth=1, label="of the data")
        right.axhline(COVERED / modes, color="gray", linestyle=":", linewidth=1, label="hit above")
        right.set_ylim(0, 1.25 * max(float(share.max()), 1 / modes))  # room for the legend
        right.set_xlabel("mode")
        right.set_ylabel("share of the samples")
        right.legend(fontsize=8)
        drawing.suptitle(
            f"{type(model).__name__}, {data.name}: {int(numbers['modes'])} of {modes} modes hit, "
            f"{float(numbers['high_quality']):.1%} of high quality",
            fontsize=11,
        )
        return drawing
