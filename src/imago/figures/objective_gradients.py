"""What a GAN's objectives give the generator to learn from (Goodfellow et al. 2014, section 3).

A generated image moves the generator through the derivative of its loss with respect to the discriminator's logit a,
D(G(z)) = sigmoid(a). For log(1 − D(G(z))) that is −D(G(z)), nothing where samples are bad; for −log D(G(z)) it is
−(1 − D(G(z))), most where they are. Here both come from the objectives that are trained with, by differentiation.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from imago.figures.base import Figure, Trained
from imago.models.gan import GAN, Logits, Objective
from imago.progress import Progress
from imago.rng import PerImageGenerator

POINTS = 399  # of a curve; an odd number has D(G(z)) = 1/2 among them
BINS = 25


@dataclass(frozen=True)
class Measured:
    """What a discriminator makes of samples.

    Attributes:
        fooled: D(G(z)) = sigmoid(logit) of every sample, whether or not the model's own game calls that a probability.
        norms: Euclidean length of the gradient of the mean loss with respect to all of the generator's parameters, for
            each batch, by the names of the objectives.
    """

    fooled: Float[Tensor, " n"]
    norms: dict[str, Float[Tensor, " batches"]]


@dataclass
class ObjectiveGradients(Figure[GAN]):
    """The generator's loss and its derivative over D(G(z)); of a checkpoint also samples on that axis, and gradients.

    The networks of a checkpoint are in training mode (batch norm of the batch, dropout), as when the generator learns.

    Args:
        objectives: by their titles.
        batches: of samples, over which the length of the gradient has a mean and a standard deviation.
        batch_size: samples in each.
        seed: of the samples, and of dropout.
    """

    needs_checkpoint = False

    objectives: Annotated[Mapping[str, Objective], Field(min_length=1)]
    batches: Annotated[int, Field(ge=2)] = 32
    batch_size: PositiveInt = 64
    seed: NonNegativeInt = 0

    def draw(self, trained: Trained[GAN] | None, progress: Progress) -> Drawing:
        """See :meth:`Figure.draw`."""
        drawing = Drawing(figsize=(8 if trained is None else 12, 3.8), layout="constrained")
        axes = drawing.subplots(1, 2 if trained is None else 3)
        probability = torch.linspace(0, 1, POINTS + 2, dtype=torch.float64)[1:-1]
        for name, objective in self.objectives.items():
            loss, slope = generator_loss(objective, torch.logit(probability))
            for at, values in zip(axes, (loss, slope), strict=False):
                at.plot(probability.numpy(), values.numpy(), label=name.replace("_", " "))
        for at, title in zip(axes, ("the generator's loss", "|∂ loss / ∂ logit|"), strict=False):
            at.set_title(title, fontsize=10)
            at.set_xlabel("D(G(z)): samples look bad … real")
            at.set_xlim(0, 1)
            at.grid(alpha=0.3)
        axes[1].set_ylim(bottom=0)
        axes[0].legend(fontsize=8)
        if trained is not None:
            measured = self.measure(trained.model, progress)
            self._show(measured, axes[1], axes[2])
            fooled = measured.fooled.double()
            low, middle, high = fooled.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
            drawing.suptitle(
                f"{type(trained.model).__name__}, {trained.model.state.images:,} images seen: D(G(z)) of "
                f"{len(fooled):,} samples has median {middle:.2g}, 80% in {low:.2g} … {high:.2g}",
                fontsize=10,
            )
        return drawing

    def _show(self, measured: Measured, slopes: Axes, bars: Axes) -> None:
        shares = slopes.twinx()
        each = torch.full_like(measured.fooled, 1 / len(measured.fooled))
        shares.hist(measured.fooled.numpy(), bins=BINS, range=(0, 1), weights=each.numpy(), color="gray", alpha=0.35)
        shares.set_ylim(0, 1.05)
        shares.tick_params(axis="y", colors="gray", labelsize=8)
        slopes.set_title(f"{slopes.get_title()}\ngray, right: share of the samples", fontsize=10)
        for k, (name, norms) in enumerate(measured.norms.items()):
            mean, deviation = float(norms.mean()), float(norms.std())
            bars.bar(name.replace("_", " "), mean, yerr=deviation, color=f"C{k}", capsize=4)
            bars.text(k, mean + deviation, f"{mean:.3g}", ha="center", va="bottom", fontsize=9)
        bars.margins(y=0.12)
        bars.set_title(f"‖∂ mean loss / ∂ generator‖\n± standard deviation of {self.batches} batches", fontsize=10)
        bars.grid(alpha=0.3, axis="y")

    def measure(self, model: GAN, progress: Progress) -> Measured:
        """What the discriminator makes of samples, and how each objective would move the generator for the same ones.

        The model and torch's random generators stay as they were.
        """
        source = PerImageGenerator(self.seed, device=model.device)
        labels = model.draw_labels(self.size, source).to(model.device) if model.conditional else None
        z = model.draw_latents(self.size, source, labels)
        player, judge = (copy.deepcopy(part).train() for part in (model.generator, model.discriminator))
        parameters = list(player.parameters())
        logits: list[Tensor] = []
        norms: dict[str, list[Tensor]] = {name: [] for name in self.objectives}
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(self.seed)
            for batch in range(self.batches):
                part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
                given = None if labels is None else labels[part]
                logits.append(judge(player(z[part], given), given).float())
                for name, objective in self.objectives.items():
                    loss = objective.generator(logits[-1]).mean()
                    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
                    norms[name].append(torch.nn.utils.get_total_norm(gradients))
                logits[-1] = logits[-1].detach().cpu()
                progress(batch + 1, self.batches)
        return Measured(torch.cat(logits).sigmoid(), {name: torch.stack(n).cpu() for name, n in norms.items()})

    @property
    def size(self) -> int:
        """Samples in all."""
        return self.batches * self.batch_size


def generator_loss(objective: Objective, logits: Logits) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The generator's loss at each logit, and the magnitude of its derivative there."""
    with torch.enable_grad():
        logits = logits.detach().requires_grad_(True)
        loss = objective.generator(logits)
        (slope,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), slope.abs()
