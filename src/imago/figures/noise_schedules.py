"""How the schedules of the forward process destroy an image."""

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure as Drawing

from imago.capacity import Steps
from imago.diffusion.schedules import BetaSchedule, CosineNoise, DiscreteSchedule, Linear, Quadratic, Sigmoid
from imago.figures.base import Figure, Trained
from imago.models.diffusion import Diffusion
from imago.progress import Progress

SCHEDULES: dict[str, type[BetaSchedule]] = {
    "linear": Linear,
    "quadratic": Quadratic,
    "sigmoid": Sigmoid,
    "cosine": CosineNoise,
}


@dataclass
class NoiseSchedules(Figure[Diffusion]):
    """β_t, what is left of the image's variance ᾱ_t, and the signal-to-noise ratio, for all four with their defaults.

    With a checkpoint its own schedule is drawn over them, black.

    Args:
        steps: T; of a checkpoint's own schedule it is the model's.
    """

    needs_checkpoint = False

    steps: Steps = 1000

    def draw(self, trained: Trained[Diffusion] | None, progress: Progress) -> Drawing:
        """See :meth:`Figure.draw`."""
        drawing = Drawing(figsize=(11, 3.4), layout="constrained")
        axes = drawing.subplots(1, 3)
        curves: list[tuple[str, DiscreteSchedule, dict[str, str]]] = [
            (name, DiscreteSchedule(kind(), self.steps), {}) for name, kind in SCHEDULES.items()
        ]
        if trained is not None:
            curves.append(("the model's", trained.model.noise_schedule, {"color": "black", "linestyle": ":"}))
        for name, schedule, style in curves:
            left = schedule.alpha_bar[1:]
            position = torch.arange(1, schedule.steps + 1) / schedule.steps
            beta = 1 - left / schedule.alpha_bar[:-1]
            for at, values in zip(axes, (beta, left, left / (1 - left)), strict=True):
                at.plot(position.numpy(), values.numpy(), label=name, **style)
        for at, title in zip(axes, ("β_t", "ᾱ_t, what is left of the image", "ᾱ_t / (1 − ᾱ_t)"), strict=True):
            at.set_title(title, fontsize=10)
            at.set_xlabel("t / T")
            at.grid(alpha=0.3)
        axes[0].set_yscale("log")
        axes[2].set_yscale("log")
        axes[1].legend(fontsize=8)
        return drawing
