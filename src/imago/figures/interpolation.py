"""On the way from one image to another, on two ways."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field, NonNegativeInt
from torch import Tensor

from imago.capacity import Cells
from imago.errors import UserError
from imago.figures.base import Figure, Trained
from imago.figures.latents import class_of, codes_of, decoded, first_of, labelled, of_class, prior_draws
from imago.images import to_bytes
from imago.models.latent import EncodingModel, LatentModel
from imago.progress import Progress


@dataclass
class Interpolation(Figure[LatentModel]):
    """Two rows for each pair: the straight line between two latent vectors, and the arc between them.

    Vectors from N(0, I) in many dimensions have lengths close to √latent. On a straight line they become shorter than
    any that training has seen; on an arc they do not (White 2016).

    Of a model with an encoder the ends are codes of test images, which stand at both sides; of a GAN they are drawn
    from the prior.

    Args:
        pairs: 2k and 2k+1, of the first test images (of the class, for a conditional model) or of the prior's draws.
        steps: vectors on each way, with its ends.
        seed: of the draws.
        label: the class, conditional models only; ``None`` is its first.
    """

    pairs: Cells = 5
    steps: Annotated[int, Field(ge=2, le=256)] = 11
    seed: NonNegativeInt = 0
    label: NonNegativeInt | None = None

    @torch.no_grad()
    def draw(self, trained: Trained[LatentModel], progress: Progress) -> Image.Image:
        """See :meth:`Figure.draw`."""
        model = trained.model
        label = class_of(model, self.label)
        ends = None
        if isinstance(model, EncodingModel):
            data = trained.data()
            part = first_of(data.test, label, 2 * self.pairs)
            if len(part) < 2 * self.pairs:
                raise UserError(
                    f"figure.pairs={self.pairs}: {data.name} test has {len(part)} images"
                    f"{of_class(model, label)}; give fewer pairs"
                )
            z = codes_of(model, part)
            ends = to_bytes(part.images, model.spec.levels).unflatten(0, (self.pairs, 2))
        else:
            z = prior_draws(model, 2 * self.pairs, self.seed)
        t = torch.linspace(0, 1, self.steps)
        ways = torch.stack([torch.stack([lerp(a, b, t), slerp(a, b, t)]) for a, b in z.unflatten(0, (self.pairs, 2))])
        images = decoded(model, ways.flatten(0, 2), label, progress).unflatten(0, ways.shape[:3])
        columns = [f"{value:.2g}" for value in t.tolist()]
        if ends is not None:
            first, last = (ends[:, k, None, None].expand(-1, 2, 1, -1, -1, -1) for k in (0, 1))
            images = torch.cat([first, images, last], 2)
            columns = ["image", *columns, "image"]
        return labelled(
            images.flatten(0, 2),
            len(columns),
            title=of_class(model, label, ""),
            column_names=columns,
            row_names=["linear", "spherical"] * self.pairs,
        )


def lerp(a: Float[Tensor, " d"], b: Float[Tensor, " d"], t: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """The straight line from a (t = 0) to b (t = 1)."""
    return torch.lerp(a, b, t[:, None])


def slerp(a: Float[Tensor, " d"], b: Float[Tensor, " d"], t: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """The arc from a (t = 0) to b (t = 1): the direction turns evenly, the length changes evenly.

    With equal lengths that is Shoemake's slerp, which White 2016 (arXiv 1609.04468) proposes for latent vectors.
    Between opposite directions, where every arc is as short, one is chosen; a zero vector takes the other's direction.
    """
    a64, b64, t64 = a.double(), b.double(), t.double()[:, None]
    length_a, length_b = a64.norm(), b64.norm()
    from_a = a64 / length_a if length_a else b64 / length_b if length_b else a64
    from_b = b64 / length_b if length_b else from_a
    cosine = from_a @ from_b
    aside = from_b - cosine * from_a
    sine = aside.norm()
    if sine < 1e-7 and cosine < 0:
        # Opposite: aside is rounding noise. The coordinate axis most across from_a gives another direction to turn to.
        aside = torch.eye(len(a), dtype=torch.float64, device=a.device)[from_a.abs().argmin()]
        aside = aside - (aside @ from_a) * from_a
    elif sine < 1e-7:
        aside = torch.zeros_like(aside)
    length = aside.norm()
    angle = t64 * torch.atan2(sine, cosine)
    direction = torch.cos(angle) * from_a + torch.sin(angle) * (aside / length if length else aside)
    arc = torch.lerp(length_a, length_b, t64) * direction
    arc[t == 0], arc[t == 1] = a64, b64  # exactly
    return arc.to(a.dtype)
