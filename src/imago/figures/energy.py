"""The energy that a model learned, and the chains that walk down it."""

from dataclasses import dataclass

import matplotlib.axes
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure as Drawing
from pydantic import NonNegativeInt
from torch import Tensor

from imago.capacity import Cells, Drawn, Steps
from imago.data import ImageDataModule
from imago.data.shapes import RANGE
from imago.data.sources import Toy
from imago.figures.base import Figure, Trained, held_out
from imago.figures.density import AT_ONCE, samples_of
from imago.images import normalize
from imago.models.ebm import EBM
from imago.progress import Progress
from imago.rng import PerImageGenerator

DEPTH = 8.0  # nats below the data's highest density that are drawn


@dataclass
class EnergyFigure(Figure[EBM]):
    """In the plane log p of the data and of the model, with its samples, and with chains that begin at q.

    Of other data a histogram of E(x): of images of the training and the test split as training sees them, of samples,
    and of noise, states of q. A model of the data gives both splits the same energies, noise much more; samples that
    have less than the data are of a colder distribution.

    Args:
        cells: in each coordinate, of points in the plane.
        chains: how many are drawn, of points in the plane.
        steps: Langevin steps of each.
        samples: drawn, and as many images of each split, at most all, and of noise.
        seed: of the samples, the chains and the noise.
    """

    cells: Cells = 200
    chains: Cells = 6
    steps: Steps = 200
    samples: Drawn = 1000
    seed: NonNegativeInt = 0

    @torch.no_grad()
    def draw(self, trained: Trained[EBM], progress: Progress) -> Drawing:
        """See :meth:`Figure.draw`."""
        model, data = trained.model, trained.data()
        if isinstance(data.source, Toy) and model.points and model.spec.dimensions == 2:
            return self._in_plane(model, data.source, data.name, progress)
        return self._histogram(model, data, progress)

    def _in_plane(self, model: EBM, source: Toy, name: str | None, progress: Progress) -> Drawing:
        grid, _ = model.grid(self.cells, RANGE)
        true = source.log_prob(grid.cpu())
        learned = torch.cat([model.log_prob(part, None) for part in grid.split(AT_ONCE)]).cpu().double()
        drawn = source.points(samples_of(model, self.samples, self.seed, progress))
        drawing = Drawing(figsize=(12.6, 3.5), layout="constrained")
        data_panel, of_samples, of_chains = drawing.subplots(1, 3)
        for ax, values, title in (
            (data_panel, true, f"{name}: its log density"),
            (of_samples, learned, f"EBM: −E(x) − log Z, and {self.samples:,} samples"),
            (of_chains, learned, f"and {self.chains} chains of {self.steps:,} steps from q"),
        ):
            _surface(ax, values.view(self.cells, self.cells), float(true.max()), title)
        of_samples.scatter(*drawn.T.numpy(), s=1, color="white", linewidths=0)
        for path in self.paths(model).cpu().numpy():
            of_chains.plot(*path.T, linewidth=0.6)
            of_chains.plot(*path[-1], "o", color="white", markersize=3)
        drawing.colorbar(of_chains.images[0], ax=[data_panel, of_samples, of_chains], label="nats")
        return drawing

    def paths(self, model: EBM) -> Float[Tensor, "chains states 2"]:
        """The states of chains that begin at q."""
        normal, uniform = model.noise_of(PerImageGenerator(self.seed, device=model.device))
        states = [model.begin(self.chains, normal)]
        for _ in range(self.steps):
            states.append(model.langevin(states[-1], 1, normal, uniform))
        return torch.stack(states, 1).flatten(2)

    def _histogram(self, model: EBM, data: ImageDataModule, progress: Progress) -> Drawing:
        normal, uniform = model.noise_of(PerImageGenerator(self.seed, device=model.device))
        found = {"noise": model.begin(self.samples, normal if model.points else uniform)}
        for split in ("train", "test"):
            images = held_out(model, data, split).part(slice(self.samples)).images.to(model.device)
            found[split] = model.noisy(images, normal)
        samples = samples_of(model, self.samples, self.seed, progress).to(model.device)
        found["samples"] = normalize(samples, model.spec.levels)
        energies = {
            name: torch.cat([model.energy(part) for part in x.split(AT_ONCE)]).cpu().numpy()
            for name, x in found.items()
        }
        drawing = Drawing(figsize=(7, 3.5), layout="constrained")
        ax = drawing.subplots()
        edges = np.linspace(*_ends(list(energies.values())), 61)
        for name, values in energies.items():
            told = f"{name}: {values.mean():.3g} ± {values.std():.2g}"
            ax.hist(values.clip(edges[0], edges[-1]), bins=edges.tolist(), histtype="step", label=told)
        ax.set_xlabel("E(x)")
        ax.set_title(f"{data.name}: energies of {self.samples:,} images each, mean ± deviation", fontsize=10)
        ax.legend(fontsize=8)
        return drawing


def _surface(ax: matplotlib.axes.Axes, log_density: Float[Tensor, "x y"], highest: float, title: str) -> None:
    extent = (-RANGE, RANGE, -RANGE, RANGE)
    shown = log_density.clamp(min=highest - DEPTH)
    ax.imshow(shown.T.numpy(), origin="lower", extent=extent, vmin=highest - DEPTH, vmax=highest, cmap="viridis")
    ax.set_xlim(-RANGE, RANGE)
    ax.set_ylim(-RANGE, RANGE)
    ax.set_title(title, fontsize=10)


def _ends(energies: list[np.ndarray]) -> tuple[float, float]:
    """The range of a histogram, a little wider than all of the energies."""
    low, high = min(values.min() for values in energies), max(values.max() for values in energies)
    margin = 0.02 * (high - low) or 1.0
    return float(low - margin), float(high + margin)
