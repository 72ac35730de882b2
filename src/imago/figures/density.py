"""The density of points whose distribution is known, and what a model makes of it."""

import math
from dataclasses import dataclass

import matplotlib.axes
import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.figure import Figure as Drawing
from pydantic import NonNegativeInt
from torch import Tensor

from imago.capacity import Cells, Drawn
from imago.data import ImageDataModule
from imago.data.shapes import RANGE, SHAPES
from imago.data.sources import Toy
from imago.errors import UserError
from imago.figures.base import Figure, Trained
from imago.images import Images
from imago.models.base import ExplicitModel, GenerativeModel, knows_likelihood
from imago.progress import Progress
from imago.rng import PerImageGenerator

AT_ONCE = 1000


def toy_of(data: ImageDataModule, figure: str) -> Toy:
    """The source of points whose density is known.

    Raises:
        UserError: the data are others.
    """
    if not isinstance(data.source, Toy):
        raise UserError(
            f"figure={figure}: nobody knows the density of {data.name}; give a checkpoint of data=toy2d or data=toy1d"
        )
    return data.source


def samples_of(model: GenerativeModel, count: int, seed: int, progress: Progress) -> Images:
    """Samples on the CPU, drawn in parts."""
    parts = []
    for first in range(0, count, AT_ONCE):
        n = min(AT_ONCE, count - first)
        parts.append(model.sample(n, generator=PerImageGenerator(seed, first, model.device)).cpu())
        progress(first + n, count)
    return torch.cat(parts)


@dataclass
class Density(Figure[GenerativeModel]):
    """The data's density, the model's where it knows one, and a histogram of samples; without a checkpoint all shapes.

    A bound is drawn as it is: below the density, by more in some places than in others, and where it is estimated with
    noise, one estimate for each point, so it looks grainy. A conditional model is drawn
    as the mixture of its classes.

    Args:
        cells: in each coordinate, of points; quantised ones have cells of their own.
        samples: in the histogram.
        seed: of the samples.
    """

    needs_checkpoint = False

    cells: Cells = 80
    samples: Drawn = 20_000
    seed: NonNegativeInt = 0

    @torch.no_grad()
    def draw(self, trained: Trained[GenerativeModel] | None, progress: Progress) -> Drawing:
        """See :meth:`Figure.draw`."""
        if trained is None:
            return self.shapes()
        model, data = trained.model, trained.data()
        source = toy_of(data, "density")
        count, d = source.levels or self.cells, source.shape.dimensions
        middles = (torch.arange(count, dtype=torch.float64) + 0.5) * (2 * RANGE / count) - RANGE
        if source.levels:
            grid = torch.cartesian_prod(*[torch.arange(count, dtype=torch.uint8)] * d).view(-1, 1, 1, d)
        else:
            grid = torch.cartesian_prod(*[middles] * d).view(-1, d, 1, 1).float()
        volume = (2 * RANGE / count) ** d
        scale = 1 / volume if source.levels else 1.0  # of probabilities of cells a density
        panels = {f"{data.name}: its density": source.log_prob(grid).exp() * scale}
        if knows_likelihood(model):
            what = {"exact": "density", "lower_bound": "bound of the density", "estimate": "estimated density"}
            name = f"{type(model).__name__}: {what[model.likelihood]}"
            panels[name] = self.model_density(model, grid, progress) * scale
        drawn = source.points(samples_of(model, self.samples, self.seed, progress)).numpy()
        counts, _ = np.histogramdd(drawn, bins=[np.linspace(-RANGE, RANGE, count + 1)] * d)
        name = f"{type(model).__name__}: {self.samples:,} samples"
        panels[name] = torch.from_numpy(counts.flatten()) / self.samples / volume
        if d == 1:
            return on_line(middles, panels)
        drawing = Drawing(figsize=(3.2 * len(panels), 3.5), layout="constrained")
        highest = float(next(iter(panels.values())).max())
        for ax, (title, values) in zip(drawing.subplots(1, len(panels)), panels.items(), strict=True):
            in_plane(ax, values.view(count, count), title, highest)
        return drawing

    def model_density(self, model: ExplicitModel, grid: Images, progress: Progress) -> Float64[Tensor, " n"]:
        """p(x) of every point; of a conditional model 1/K Σ_k p(x | k)."""
        classes = [*model.spec.trained] if model.conditional else [None]
        found = []
        for done, part in enumerate(grid.split(AT_ONCE), 1):
            of_classes = [
                model.log_likelihood(part, None if k is None else torch.full((len(part),), k)).cpu().double()
                for k in classes
            ]
            found.append(torch.stack(of_classes).logsumexp(0) - math.log(len(classes)))
            progress(done, -(-len(grid) // AT_ONCE))
        return torch.cat(found).exp()

    def shapes(self) -> Drawing:
        """All of them: those in the plane as pictures, those on the line as curves."""
        drawing = Drawing(figsize=(9, 9), layout="constrained")
        axis = torch.linspace(-RANGE, RANGE, 240, dtype=torch.float64)
        for ax, (name, kind) in zip(drawing.subplots(3, 3).flat, SHAPES.items(), strict=True):
            shape = kind()
            x = torch.cartesian_prod(*[axis] * shape.dimensions).view(-1, shape.dimensions)
            density = shape.log_density(x).exp()
            title = f"{name}, {shape.modes} mode{'s' * (shape.modes > 1)}"
            if shape.dimensions == 2:
                in_plane(ax, density.view(len(axis), len(axis)), title, float(density.max()))
            else:
                ax.fill_between(axis.numpy(), density.numpy(), color="C0", alpha=0.4)
                ax.plot(axis.numpy(), density.numpy(), color="C0")
                ax.set_title(title, fontsize=10)
                ax.set_ylim(0)
        return drawing


def in_plane(ax: matplotlib.axes.Axes, density: Float64[Tensor, "x y"], title: str, highest: float) -> None:
    """A density as a picture; x to the right, y upwards, dark where nothing is."""
    extent = (-RANGE, RANGE, -RANGE, RANGE)
    ax.imshow(density.T.numpy(), origin="lower", extent=extent, vmin=0, vmax=highest, cmap="magma")
    ax.set_title(title, fontsize=10)


def on_line(x: Float64[Tensor, " n"], panels: dict[str, Float64[Tensor, " n"]]) -> Drawing:
    """Densities as curves in one frame; the last one, of samples, as steps."""
    drawing = Drawing(figsize=(7, 3.5), layout="constrained")
    ax = drawing.subplots()
    *known, (samples, counted) = panels.items()
    ax.stairs(counted.numpy(), np.linspace(-RANGE, RANGE, len(x) + 1), fill=True, color="0.85", label=samples)
    for colour, (title, values) in zip(("black", "C0"), known, strict=False):
        ax.plot(x.numpy(), values.numpy(), color=colour, label=title, linestyle="--" if colour == "black" else "-")
    ax.legend(fontsize=8)
    ax.set_ylim(0)
    return drawing
