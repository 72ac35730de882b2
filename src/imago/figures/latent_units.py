"""Which dimensions of z a model uses."""

from dataclasses import dataclass

import matplotlib.axes
import torch
from jaxtyping import Float
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from imago.data.base import Dataset, drawn
from imago.figures.base import Figure, Trained, held_out
from imago.figures.latents import AT_ONCE, codes_of, variances
from imago.images import normalize
from imago.models.latent import EncodingModel
from imago.models.variational import Variational
from imago.progress import Progress
from imago.rng import PerImageGenerator

ACTIVE = 0.01


@dataclass
class LatentUnits(Figure[EncodingModel]):
    """Each dimension's KL(q(z|x) ‖ p(z)) and activity, over test images, each sorted.

    A unit is *active* if Var_x(E_q[z]) > 0.01 (Burda et al. 2016, section 5.2). Of a model without a prior there are
    the variances of its codes alone; they have no scale, so none of its units is called active.

    Args:
        images: test images; all, if there are fewer. Labels are told to a conditional model.
        seed: of the draws from q(z|x), where the KL of some units depends on the values of others.
    """

    images: PositiveInt = 1000
    seed: NonNegativeInt = 0

    @torch.no_grad()
    def draw(self, trained: Trained[EncodingModel], progress: Progress) -> Drawing:
        """See :meth:`Figure.draw`."""
        model, data = trained.model, trained.data()
        part = drawn(held_out(model, data, "test"), "test", self.images)
        activity = variances(codes_of(model, part))
        name = f"{type(model).__name__}, {len(part):,} test images of {data.name}"
        drawing = Drawing(figsize=(9, 3.6) if isinstance(model, Variational) else (5.5, 3.6), layout="constrained")
        if isinstance(model, Variational):
            kl = kl_of_units(model, part, self.seed, progress)
            left, right = drawing.subplots(1, 2)
            _bars(left, kl, "tab:blue")
            left.set_ylabel("KL(q(z|x) ‖ p(z)), nats")
            left.set_title(f"{kl.sum():.1f} nats in all", fontsize=10)
            right.set_yscale("log")
            right.axhline(ACTIVE, color="tomato", linewidth=1, label=f"active above {ACTIVE}")
            right.legend(fontsize=8)
            active = int((activity > ACTIVE).sum())
            drawing.suptitle(f"{name}: {active} active units of {len(activity)}", fontsize=11)
        else:
            right = drawing.subplots()
            drawing.suptitle(name, fontsize=11)
        _bars(right, activity, "tab:gray")
        right.set_ylabel("variance of E[z|x] over images")
        return drawing


def kl_of_units(model: Variational, part: Dataset, seed: int, progress: Progress) -> Float[Tensor, " units"]:
    """The mean KL of each dimension in nats, float64."""
    total = torch.zeros((), dtype=torch.float64)
    for first in range(0, len(part), AT_ONCE):
        few = part.part(slice(first, first + AT_ONCE))
        generator = PerImageGenerator(seed, first, model.device)
        images, labels = model.checked(few.images, few.labels if model.conditional else None)

        def normal(n: int, *shape: int, generator: PerImageGenerator = generator) -> Tensor:
            return generator.normal(n, *shape).to(model.device)

        draw = model.rsample(model.encoder_features(normalize(images, model.spec.levels), labels), labels, normal)
        total = total + draw.kl.cpu().double().sum(0)  # in this order: not every device has float64
        progress(first + len(images), len(part))
    return total / len(part)


def _bars(axes: matplotlib.axes.Axes, values: Float[Tensor, " units"], color: str) -> None:
    """One bar for each unit, the highest first: stairs, because there may be thousands."""
    ordered = values.sort(descending=True).values.clamp(min=1e-12)  # a logarithm shows no zero
    axes.stairs(ordered.numpy(), torch.arange(len(ordered) + 1).numpy(), fill=True, color=color)
    axes.set_xlim(0, len(ordered))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("units, sorted")
    axes.grid(alpha=0.3)
