"""Points in the plane or on the line from a distribution whose density is known (:mod:`imago.data.shapes`).

Drawn with a fixed seed, so that they are the same in every run. With ``levels`` the points are quantised to pixels, for
models of integers: a point becomes a picture of d pixels in a row, and the probability of each is known by integration.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from imago.data.base import ImageSet, Source, Splits
from imago.data.shapes import RANGE, SHAPES, Points, Shape
from imago.images import Images, Labels

Levels = Annotated[int, Field(ge=2, le=256)]
InPlane = Literal["eight_gaussians", "two_moons", "checkerboard", "rings", "spiral", "pinwheel"]
OnLine = Literal["mixture", "gap", "skewed"]
TRAIN, HELD_OUT = 60_000, 10_000  # points to train on, of which the last 10,000 are held out; points of the test


class Toy(Source):
    """Points of a shape; the modes are their classes, where there are several.

    Args:
        shape: its name.
        levels: quantise [-3, 3] to so many values; what lies outside goes to the first and the last. ``None``: points.

    Attributes:
        shape: where the points come from.
    """

    def __init__(self, shape: InPlane | OnLine, levels: Levels | None = None) -> None:
        self.shape: Shape = SHAPES[shape]()
        self.levels = levels
        self.name = shape if levels is None else f"{shape}-{levels}"

    def load(self, directory: Path) -> Splits:
        """The points are computed; ``directory`` is not looked at."""
        # RandomState, because its stream is frozen for good (NEP 19).
        random, modes = np.random.RandomState(0), self.shape.modes
        labels = random.randint(0, modes, TRAIN + HELD_OUT)
        points = torch.from_numpy(self.shape.draw(labels, random))
        images = points.float()[:, :, None, None] if self.levels is None else self.quantised(points)
        whole = ImageSet(images, torch.from_numpy(labels) if modes > 1 else None)
        return Splits(
            whole.part(slice(TRAIN)),
            HELD_OUT,
            whole.part(slice(TRAIN, None)),
            classes=[str(mode) for mode in range(modes)] if modes > 1 else (),
            description=f"of {TRAIN:,} points drawn with a fixed seed, test = {HELD_OUT:,} more",
            levels=self.levels or 0,
        )

    def quantised(self, points: Points) -> Images:
        """Points (n, d) as pictures uint8 (n, 1, 1, d)."""
        assert self.levels is not None
        cells = ((points + RANGE) * (self.levels / (2 * RANGE))).floor().clamp(0, self.levels - 1)
        return cells.to(torch.uint8)[:, None, None]

    def points(self, images: Images) -> Points:
        """The points (n, d), float64; of pictures the middles of their cells."""
        values = images.flatten(1).double()
        return values if self.levels is None else (values + 0.5) * (2 * RANGE / self.levels) - RANGE

    @cached_property
    def _cells(self) -> Float64[Tensor, "modes *cells"]:
        """log P(cell | mode); the outermost cells have what lies beyond them."""
        assert self.levels is not None
        edges = torch.linspace(-RANGE, RANGE, self.levels + 1, dtype=torch.float64)
        if self.shape.dimensions == 1:  # in the plane there is next to nothing
            edges[0], edges[-1] = -math.inf, math.inf
        inside = self.shape.boxes(edges)
        return (inside / inside.flatten(1).sum(1).view(-1, *[1] * self.shape.dimensions)).log()

    def log_prob(self, images: Images, labels: Labels | None = None) -> Float64[Tensor, " n"]:
        """log p(x), or log p(x | label), in nats: of points the density, of pictures the probability."""
        if self.levels is None:
            modes = self.shape.log_modes(self.points(images.cpu()))
        else:
            modes = self._cells[(slice(None), *images.cpu().flatten(1).long().T)].T
        if labels is None:
            return modes.logsumexp(1) - math.log(self.shape.modes)
        return modes.gather(1, labels.cpu()[:, None]).squeeze(1)
