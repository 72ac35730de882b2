"""One latent dimension at a time (Higgins et al. 2017, figure 4)."""

from dataclasses import dataclass

import torch
from PIL import Image
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from imago.capacity import Cells
from imago.errors import UserError
from imago.figures.base import Figure, Trained
from imago.figures.latents import class_of, codes_of, decoded, first_of, labelled, of_class, prior_draws, variances
from imago.images import to_bytes
from imago.models.latent import EncodingModel, LatentModel
from imago.models.variational import Variational
from imago.progress import Progress


@dataclass
class Traversal(Figure[LatentModel]):
    """A row for each of several dimensions: its value goes from −``reach`` to ``reach``, the others stay.

    Of a model with an encoder the dimensions are the most active ones, those whose codes of test images vary most, and
    the others stay at the code of a test image, which is shown first. Of a GAN they are the first dimensions, around a
    draw from the prior. An autoencoder's codes follow no N(0, I): there the values are standard deviations from the
    codes' mean.

    Args:
        dimensions: rows; all, if z has fewer.
        steps: values of each.
        reach: the largest value.
        image: number of the test image (of the class, for a conditional model), for models with an encoder.
        images: test images (of the class) whose codes say which dimensions are active.
        seed: of the draw from the prior, for models without one.
        label: the class, conditional models only; ``None`` is its first.
    """

    dimensions: Cells = 10
    steps: Cells = 11
    reach: PositiveFloat = 3.0
    image: NonNegativeInt = 0
    images: PositiveInt = 1000
    seed: NonNegativeInt = 0
    label: NonNegativeInt | None = None

    @torch.no_grad()
    def draw(self, trained: Trained[LatentModel], progress: Progress) -> Image.Image:
        """See :meth:`Figure.draw`."""
        model = trained.model
        label = class_of(model, self.label)
        count = min(self.dimensions, model.latent)
        mean, spread = torch.zeros(model.latent), torch.ones(model.latent)
        shown = None
        if isinstance(model, EncodingModel):
            data = trained.data()
            part = first_of(data.test, label, max(self.images, self.image + 1))
            if self.image >= len(part):
                raise UserError(
                    f"figure.image={self.image}: {data.name} test has {len(part)} images"
                    f"{of_class(model, label)}; give a smaller one"
                )
            codes = codes_of(model, part)
            activity = variances(codes[: self.images])
            order = activity.argsort(descending=True, stable=True)[:count].tolist()
            if not isinstance(model, Variational):
                mean, spread = codes[: self.images].mean(0), activity.sqrt().float()
            start = codes[self.image]
            shown = to_bytes(part.images[self.image][None], model.spec.levels)
            rows = [f"z[{d}], variance {activity[d]:.3g}" for d in order]
            title = "columns: the test image, its reconstruction, then with one dimension of z changed"
        else:
            order = list(range(count))
            start = prior_draws(model, 1, self.seed)[0]
            rows = [f"z[{d}]" for d in order]
            title = "columns: a draw from the prior, then with one dimension of z changed"
        values = torch.linspace(-self.reach, self.reach, self.steps)
        z = start.repeat(count, 1 + self.steps, 1)
        for row, d in zip(z, order, strict=True):
            row[1:, d] = mean[d] + spread[d] * values
        title += of_class(model, label, "; ")
        images = decoded(model, z.flatten(0, 1), label, progress).unflatten(0, z.shape[:2])
        if shown is not None:
            images = torch.cat([shown.expand(count, 1, -1, -1, -1), images], 1)
        columns = [
            *([] if shown is None else ["image"]),
            "z",
            *(f"{round(value, 1) + 0.0:+.1f}" for value in values.tolist()),
        ]
        return labelled(
            images.flatten(0, 1),
            len(columns),
            title=title,
            column_names=columns,
            row_names=rows,
        )
