"""Which earlier pixels a prediction can depend on, and which ones it is blind to.

By the chain rule a pixel may depend on every pixel before it in raster order; whether it does is a matter of the
network. Here the central pixel is looked at: a pixel is *seen* if the derivative of the central pixel's predicted
distribution with respect to it is not zero, and *blind* if it comes earlier and is not seen.

As in van den Oord et al. 2016, "Pixel recurrent neural networks" (PMLR 48), figure 4, and "Conditional image generation
with PixelCNN decoders" (arXiv 1606.05328), figure 1, but computed, of the networks as they are.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Patch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from imago.errors import UserError
from imago.figures.base import Figure, Trained
from imago.images import ImageSpec, normalize
from imago.models.autoregressive import Autoregressive
from imago.progress import Progress

ModelFactory = Callable[..., Autoregressive]
COLUMNS = 3
COLORS = {"the pixel itself": "black", "earlier, not seen": "tomato", "later": "gainsboro"}
FAINTEST = 1e-5  # of the strongest; what is fainter has the same colour


@dataclass
class ReceptiveField(Figure[Autoregressive]):
    """The central pixel's predecessors, coloured by how strongly they move its prediction.

    Of a checkpoint's model; without a checkpoint of several untrained models side by side.

    Args:
        models: untrained models by their titles.
        shape: channels, height and width of their images.
        inputs: random images over which derivatives are averaged; an inactive unit of one is active in another.
        seed: of these images, and of the untrained models' weights.
    """

    needs_checkpoint = False

    models: Annotated[Mapping[str, ModelFactory], Field(min_length=1)]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=3, max_length=3)]
    inputs: PositiveInt = 16
    seed: NonNegativeInt = 0

    def draw(self, trained: Trained[Autoregressive] | None, progress: Progress) -> Drawing:
        """See :meth:`Figure.draw`."""
        if trained is not None:
            title = f"{type(trained.model).__name__}, {trained.model.state.images:,} images seen"
            strength = influence(trained.model, self.inputs, self.seed)
            progress(1, 1)
            return draw_influences({title: strength})
        influences = {}
        for k, (name, model) in enumerate(self.untrained().items()):
            influences[name] = influence(model, self.inputs, self.seed)
            progress(k + 1, len(self.models))
        return draw_influences(influences)

    def untrained(self) -> dict[str, Autoregressive]:
        """The models, with random weights.

        Raises:
            UserError: one of them is not autoregressive, or cannot be built for these images.
        """
        channels, height, width = self.shape
        spec = ImageSpec(channels, height, width, levels=2)  # which pixels are seen does not depend on their levels
        made = {}
        for name, model in self.models.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                made[name] = model(spec=spec)
            if not isinstance(made[name], Autoregressive):
                raise UserError(
                    f"figure.models.{name}: no autoregressive model; take it out with ~figure.models.{name}"
                )
        return made


def influence(model: Autoregressive, inputs: int, seed: int) -> Float[Tensor, "height width"]:
    """How strongly each pixel moves the prediction of the central one, at (height // 2, width // 2).

    The mean over random images of Σ |∂(w · θ) / ∂x| over the pixel's channels, where θ are the parameters of the
    distributions of all channels of the central pixel and w a random direction, another one for each image. Computed in
    float64, so that a weak influence is told from none: exactly zero is none.
    """
    spec = model.spec
    net = copy.deepcopy(model.net).to("cpu", torch.float64).eval()
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(spec.levels, (inputs, *spec.shape), generator=generator, dtype=torch.uint8)
    trained = torch.tensor(spec.trained)
    labels = trained[torch.randint(len(trained), (inputs,), generator=generator)] if model.conditional else None
    signal = normalize(images, spec.levels, torch.float64).requires_grad_()
    parameters = net(signal, labels)[:, :, spec.height // 2, spec.width // 2]
    direction = torch.randn(parameters.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((parameters * direction).sum(), signal)
    return gradient.abs().sum(1).mean(0)


def draw_influences(influences: Mapping[str, Float[Tensor, "height width"]]) -> Drawing:
    """One panel for each :func:`influence`, with its title."""
    columns = min(COLUMNS, len(influences))
    rows = -(-len(influences) // columns)
    drawing = Drawing(figsize=(max(3 * columns, 4) + 0.8, 3.4 * rows + 0.4), layout="constrained")
    panels = drawing.subplots(rows, columns, squeeze=False)
    scale = ScalarMappable(LogNorm(FAINTEST, 1), "viridis")
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, (title, strength) in zip(panels.flat, influences.items(), strict=False):
        height, width = strength.shape
        place = torch.arange(height * width).view(height, width)
        centre = height // 2 * width + width // 2
        seen = (place < centre) & (strength > 0)
        relative = strength / strength[seen].max() if seen.any() else strength
        panel.imshow(relative.where(seen, torch.nan).numpy(), cmap=scale.cmap, norm=scale.norm)
        others = zip(COLORS.values(), (place == centre, (place < centre) & ~seen, place > centre), strict=True)
        for color, where in others:
            layer = torch.tensor([*to_rgb(color), 1.0]).expand(height, width, 4)
            panel.imshow((layer * where[..., None]).numpy())
        panel.set_title(f"{title}\nsees {int(seen.sum())} of {centre} earlier pixels", fontsize=9)
    drawing.colorbar(scale, ax=panels, extend="min", shrink=0.6, label="derivative, relative to the largest")
    patches = [Patch(color=color, label=name) for name, color in COLORS.items()]
    drawing.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=9)
    return drawing
