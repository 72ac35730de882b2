"""The field that moves points from noise to data: a denoiser's velocity, or its score."""

from dataclasses import dataclass
from typing import Annotated, Literal

import matplotlib.axes
import torch
from matplotlib.figure import Figure as Drawing
from pydantic import Field, NonNegativeInt

from imago.data.shapes import RANGE
from imago.diffusion.samplers import straight
from imago.figures.base import Figure, Trained
from imago.figures.density import in_plane
from imago.figures.latents import class_of, of_class, repeated
from imago.figures.plane import Plane, masses, middles, noisy_density, plane_of
from imago.models.denoiser import Denoiser
from imago.progress import Progress

CELLS = 80  # of the density, in each coordinate
LAST = 0.02  # in continuous time, for t = 0, where nothing was learned
NOWHERE = 1e-4  # of the highest density: no point is there, and no arrow
OUTSTANDING = 0.95  # of the arrows are drawn in proportion, longer ones as long as these


@dataclass
class VectorField(Figure[Denoiser]):
    """Arrows at several times, from t = 1 to t = 0, over the density of the noisy data there.

    All schedules are drawn as the straight one, in y = x_t / (α + σ) = (1 − τ) x_0 + τ ε with τ = σ / (α + σ). There
    the probability flow goes towards the data with the velocity −dy/dτ = x̂_0 − ε̂ (Song et al. 2021, "Score-based
    generative modeling through stochastic differential equations", eq. 13; Lipman et al. 2023, eq. 8), and the score is
    ∇ log p(y) = −ε̂ / τ. Arrows are as long as each time's longest ones allow; there are none where the density is
    lower than a ten-thousandth of its maximum.

    Args:
        field: which of the two.
        panels: times.
        arrows: in each coordinate.
        label: the class, conditional models only; ``None`` is its first.
    """

    field: Literal["velocity", "score"] = "velocity"
    panels: Annotated[int, Field(ge=2, le=12)] = 5
    arrows: Annotated[int, Field(ge=2, le=CELLS)] = 20
    label: NonNegativeInt | None = None

    @torch.no_grad()
    def draw(self, trained: Trained[Denoiser], progress: Progress) -> Drawing:
        """See :meth:`Figure.draw`."""
        model, data = trained.model, trained.data()
        source = plane_of(data, "vector_field")
        label = class_of(model, self.label)
        steps, mass = model.noise_schedule.steps, masses(source, CELLS, label)
        drawing = Drawing(figsize=(2.6 * self.panels, 3.1), layout="constrained")
        for k, ax in enumerate(drawing.subplots(1, self.panels)):
            t = max(1 - k / (self.panels - 1), 1 / steps if steps else LAST)
            t = round(t * steps) / steps if steps else t
            scale, tau = straight(model.noise_schedule, t)
            density = noisy_density(mass, 1 - tau, tau)
            name = f"t = {round(t * steps)} of {steps}" if steps else f"t = {t:.3g}"
            in_plane(ax, density, name, float(density.max()))
            self._arrows(ax, model, t, scale, tau, label, density)
            progress(k + 1, self.panels)
        drawing.suptitle(
            f"{type(model).__name__}, {data.name}{of_class(model, label, ', class ')}: "
            + ("x̂ − ε̂, where samples go" if self.field == "velocity" else "−ε̂ / τ, the score of the noisy data"),
            fontsize=11,
        )
        return drawing

    def _arrows(
        self,
        ax: matplotlib.axes.Axes,
        model: Denoiser,
        t: float,
        scale: float,
        tau: float,
        label: int | None,
        density: Plane,
    ) -> None:
        places = middles(self.arrows)
        cell = ((places + RANGE) * (CELLS / (2 * RANGE))).long()
        met = density[cell][:, cell].flatten() >= NOWHERE * density.max()
        y = torch.cartesian_prod(places, places)[met]
        labels = repeated(label, len(y))
        image = model.predict(
            (scale * y).float().view(-1, 2, 1, 1).to(model.device),
            torch.full((1,), t, device=model.device),
            None if labels is None else labels.to(model.device),
            model.guidance,
        ).image
        x = image.flatten(1).cpu().double()
        noise = (y - (1 - tau) * x) / tau
        towards = x - noise if self.field == "velocity" else -noise / tau
        length = towards.norm(dim=1, keepdim=True)
        longest = float(length.quantile(OUTSTANDING))
        towards = towards * (longest / length).clamp(max=1) / longest
        reach = 1.5 * float(places[1] - places[0])  # of the longest, in units of the picture
        ax.quiver(
            *y.T.numpy(),
            *(reach * towards).T.numpy(),
            angles="xy",
            scale_units="xy",
            scale=1,
            color="deepskyblue",
            width=0.007,
            headwidth=4,
        )
        ax.set_xticks([-2, 0, 2])
        ax.set_yticks([-2, 0, 2])
