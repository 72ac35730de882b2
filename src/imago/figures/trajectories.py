"""The paths of points from noise to data."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure as Drawing
from PIL import Image
from pydantic import NonNegativeInt
from torch import Tensor

from imago.capacity import Cells
from imago.data.shapes import RANGE
from imago.data.sources import Toy
from imago.errors import UserError
from imago.figures.base import MOST_FRAMES, Animated, Trained, spread
from imago.figures.latents import class_of, of_class, repeated
from imago.figures.plane import Plane, masses, noisy_density, plane_of
from imago.models.stepwise import Stepwise
from imago.progress import Progress
from imago.rng import PerImageGenerator

CELLS = 80  # of the data's density, in each coordinate
SHARP = 1e-6  # noise of that density
Paths = Float64[Tensor, "samples states 2"]
FEWEST = 3  # states, without which no path can be bent


class Walked(NamedTuple):
    """Paths, and what is drawn with them: the data's density and source, and a title."""

    paths: Paths
    density: Plane
    source: Toy
    title: str


@dataclass
class Trajectories(Animated[Stepwise]):
    """Samples of points in the plane on their way through the sampler's states, over the density of the data.

    Of denoisers the states are x_t; of other chains what the network is asked about. A path has the colour of the mode
    where it ends, and the title says how many times longer than the straight way they are, all together: 1 is straight
    (Liu et al. 2023, "Flow straight and fast").

    Args:
        samples: paths.
        seed: of the noise.
        label: the class, conditional models only; ``None`` is its first.
    """

    samples: Cells = 100
    seed: NonNegativeInt = 0
    label: NonNegativeInt | None = None

    def draw(self, trained: Trained[Stepwise], progress: Progress) -> Drawing:
        """See :meth:`Figure.draw`."""
        return self._drawing(*self._walked(trained, progress))

    def frames(self, trained: Trained[Stepwise], progress: Progress) -> list[Image.Image]:
        """See :meth:`Animated.frames`."""
        walked = self._walked(trained, progress)
        moments = spread(walked.paths.shape[1], MOST_FRAMES)
        return [_pixels(self._drawing(*walked, moment)) for moment in moments]

    @torch.no_grad()
    def _walked(self, trained: Trained[Stepwise], progress: Progress) -> Walked:
        model, data = trained.model, trained.data()
        source = plane_of(data, "trajectories")
        label = class_of(model, self.label)
        paths = self.paths(model, label, progress)
        title = (
            f"{type(model).__name__}, {data.name}{of_class(model, label, ', class ')}\n{model.sampling}\n"
            f"paths {detour(paths):.2f} times as long as straight ones"
        )
        return Walked(paths, noisy_density(masses(source, CELLS, label), 1.0, SHARP), source, title)

    def _drawing(self, paths: Paths, density: Plane, source: Toy, title: str, moment: int = -1) -> Drawing:
        """The paths up to a moment."""
        drawing = Drawing(figsize=(6, 6.4), layout="constrained")
        ax = drawing.subplots()
        extent = (-RANGE, RANGE, -RANGE, RANGE)
        ax.imshow(density.T.numpy(), origin="lower", extent=extent, cmap="Greys", alpha=0.6)
        ax.set_aspect("equal")
        start, end, colours = paths[:, 0].numpy(), paths[:, moment].numpy(), colours_of(source, paths[:, -1])
        ax.add_collection(
            LineCollection(
                list(paths[:, : moment % paths.shape[1] + 1].numpy()), colors=colours, linewidths=0.8, alpha=0.8
            )
        )
        ax.scatter(start[:, 0], start[:, 1], s=6, color="black", linewidths=0)
        ax.scatter(end[:, 0], end[:, 1], s=14, c=colours, edgecolors="black", linewidths=0.4, zorder=3)
        reach = max(RANGE, float(paths.abs().max()) + 0.1)
        ax.set_xlim(-reach, reach)
        ax.set_ylim(-reach, reach)
        ax.set_title(title, fontsize=10)
        return drawing

    def paths(self, model: Stepwise, label: int | None, progress: Progress) -> Paths:
        """The states and the samples.

        Raises:
            UserError: the sampler shows the ends of its paths alone.
        """
        if model.moments < FEWEST:
            raise UserError(
                f"figure=trajectories: the sampler ({model.sampling}) shows the ends of its paths alone; choose "
                "model/sampler=heun"
            )
        generator = PerImageGenerator(self.seed, device=model.device)
        labels = model.labels_for(self.samples, repeated(label, self.samples), generator)
        states = []
        for state in model.trajectory(self.samples, labels, generator):
            states.append(state.noisy)
            progress(len(states), model.moments)
        states.append(state.image)
        return torch.stack([x.flatten(1).cpu().double() for x in states], 1)


def _pixels(drawing: Drawing) -> Image.Image:
    canvas = FigureCanvasAgg(drawing)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def colours_of(source: Toy, ends: Float64[Tensor, "n 2"]) -> list[str]:
    """Of points, by the mode that is the likeliest."""
    return [f"C{mode}" for mode in source.shape.log_modes(ends).argmax(1).tolist()]


def detour(paths: Paths) -> float:
    """The length of all paths over the distances of their ends."""
    return float(paths.diff(dim=1).norm(dim=2).sum() / (paths[:, -1] - paths[:, 0]).norm(dim=1).sum())
