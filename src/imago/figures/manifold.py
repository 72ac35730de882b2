"""What a plane of latent vectors decodes to (Kingma & Welling 2014, figure 4)."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from imago.capacity import Cells
from imago.config import choices_of
from imago.errors import UserError
from imago.figures.base import Figure, Trained
from imago.figures.latents import class_of, codes_of, decoded, first_of, labelled, of_class, prior_draws
from imago.models.latent import EncodingModel, LatentModel, Latents
from imago.progress import Progress


@dataclass
class Manifold(Figure[LatentModel]):
    """A square of decoded vectors over the quantiles of the distribution that the model draws z from.

    Standard normal, or fitted to an autoencoder's codes: each value of a coordinate is as likely as the others. The
    horizontal one grows to the right, the vertical one upwards.

    Args:
        side: images in a row, and rows.
        plane: ``axes``: the coordinates are two dimensions of z. ``principal``: along the two leading principal
            components of the codes of test images, in standard deviations from their mean. ``None``: ``axes``
            where ``axes`` or ``base`` are given, z has two dimensions or the model cannot encode images.
        axes: the two dimensions, horizontal and vertical; for ``axes``; ``None`` are the first two.
        base: the other dimensions, for ``axes``: ``None``: their mean, 0 but for a fit; a number: those of the prior
            draw of that seed.
        images: how many test images the components are computed of (of the class, for a conditional model).
        label: the class, conditional models only; ``None`` is its first.
    """

    side: Cells = 20
    plane: Literal["axes", "principal"] | None = None
    axes: Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)] | None = None
    base: NonNegativeInt | None = None
    images: PositiveInt = 1000
    label: NonNegativeInt | None = None

    @torch.no_grad()
    def draw(self, trained: Trained[LatentModel], progress: Progress) -> Image.Image:
        """See :meth:`Figure.draw`."""
        model = trained.model
        label = class_of(model, self.label)
        quantiles = normal_quantiles(self.side)
        many = model.latent > 2
        along_axes = self.axes is not None or self.base is not None or not many or not isinstance(model, EncodingModel)
        if self.plane == "axes" or (self.plane is None and along_axes):
            axes = self.axes or [0, 1]
            z, values = self._along_axes(model, label, axes, quantiles)
            across, up = (f"z[{axis}]" for axis in axes)
        else:
            z, values = self._along_components(trained, label, quantiles), (quantiles, quantiles)
            across, up = "first", "second principal component of the codes"
        if many:
            up += f", of {model.latent} dimensions"
        columns, rows = ([f"{round(value, 1) + 0.0:+.1f}" for value in axis.tolist()] for axis in values)
        return labelled(
            decoded(model, z, label, progress),
            self.side,
            title=f"right: {across}, up: {up}{of_class(model, label, '; ')}",
            column_names=columns,
            row_names=rows[::-1],
        )

    def _along_axes(
        self, model: LatentModel, label: int | None, axes: list[int], quantiles: Float[Tensor, " side"]
    ) -> tuple[Latents, tuple[Float[Tensor, " side"], Float[Tensor, " side"]]]:
        """The vectors, and the values of the two dimensions, in growing order."""
        across, up = axes
        if across == up or max(axes) >= model.latent:
            raise UserError(
                f"figure.axes={axes}: z has {model.latent} dimensions; give two different ones of 0..{model.latent - 1}"
            )
        mean, scale = model.latent_marginals(label)
        base = mean if self.base is None else prior_draws(model, 1, self.base, label)[0]
        right, upwards = (mean[axis] + scale[axis] * quantiles for axis in axes)
        z = base.repeat(self.side, self.side, 1)
        z[:, :, across] = right
        z[:, :, up] = upwards.flip(0)[:, None]
        return z.flatten(0, 1), (right, upwards)

    def _along_components(
        self, trained: Trained[LatentModel], label: int | None, quantiles: Float[Tensor, " side"]
    ) -> Latents:
        model = trained.model
        if not isinstance(model, EncodingModel):
            able = ", ".join(choices_of("model", EncodingModel))
            raise UserError(
                f"figure.plane=principal: a {type(model).__name__} cannot encode images; set figure.plane=axes, or "
                f"give a checkpoint of one of {able}"
            )
        codes = codes_of(model, first_of(trained.data().test, label, self.images))
        if min(codes.shape) < 2:
            raise UserError(
                f"figure.plane=principal: {len(codes)} images with z of {model.latent} dimensions have no two "
                "principal components; raise figure.images, or give another checkpoint"
            )
        mean, (first, second) = principal_plane(codes)
        z = mean + quantiles[None, :, None] * first + quantiles.flip(0)[:, None, None] * second
        return z.flatten(0, 1)


def normal_quantiles(n: int) -> Float[Tensor, " n"]:
    """The standard normal distribution's quantiles in the middles of n equally likely parts; the inverse CDF."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n).float()


def principal_plane(codes: Latents) -> tuple[Float[Tensor, " latent"], Float[Tensor, "2 latent"]]:
    """The mean of codes (n, latent) and their two leading principal components, each one standard deviation long."""
    codes = codes.double()
    mean = codes.mean(0)
    _, lengths, components = torch.linalg.svd(codes - mean, full_matrices=False)
    components = components[:2]
    # A component has no sign of its own: its largest entry is made positive.
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    scaled = components * torch.where(largest < 0, -1.0, 1.0) * (lengths[:2, None] / len(codes) ** 0.5)
    return mean.float(), scaled.float()
