"""Arithmetic with mean codes: smiling woman − neutral woman + neutral man (Radford et al. 2016, section 6.3.2)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field, NonNegativeInt
from torch import Tensor

from imago.capacity import Cells, Drawn
from imago.data import ImageDataModule
from imago.data.base import Dataset
from imago.errors import UserError
from imago.evaluation import Classifier
from imago.figures.base import Figure, Trained
from imago.figures.latents import AT_ONCE, class_of, codes_of, decoded, first_of, labelled, stacked
from imago.images import to_bytes
from imago.models.latent import EncodingModel, LatentModel
from imago.progress import Progress
from imago.rng import PerImageGenerator

Vectors = dict[int, Float[Tensor, "_ latent"]]  # of each class; of rare ones there may be fewer


@dataclass
class Arithmetic(Figure[LatentModel]):
    """z(a) − z(b) + z(c) for the mean vectors z of three classes; below, the same step from single vectors of class c.

    Of a model with an encoder a class's vectors are the codes of its training images. Of a GAN they are the draws from
    the prior whose images the data's classifier (that of ``metrics=classifier``) assigns to the class.

    A conditional model is told the class, and z has the rest: everything is decoded as one class, to see what the step
    changes there.

    Args:
        classes: a, b and c, numbers of classes.
        images: vectors of each class: training images, or draws, of which there may be fewer for rare classes.
        examples: single vectors.
        seed: of the draws.
        label: the class that everything is decoded as, conditional models only; ``None`` is its first.
    """

    draws_per_image = 40  # a GAN draws this many vectors for each one wanted before a class counts as rare

    classes: Annotated[list[NonNegativeInt], Field(min_length=3, max_length=3)]
    images: Drawn = 500
    examples: Cells = 10
    seed: NonNegativeInt = 0
    label: NonNegativeInt | None = None

    @torch.no_grad()
    def draw(self, trained: Trained[LatentModel], progress: Progress) -> Image.Image:
        """See :meth:`Figure.draw`."""
        model = trained.model
        label = class_of(model, self.label)
        if not isinstance(model, EncodingModel) and model.conditional:
            raise UserError(
                f"figure=arithmetic: a conditional {type(model).__name__} draws z whatever the class, so classes have "
                "no mean vectors; give a checkpoint of an unconditional model"
            )
        data = trained.data()
        known = data.spec.classes
        if not known:
            raise UserError(
                f"figure=arithmetic: {data.name} has no labels to tell classes by; give a checkpoint trained on "
                "labelled data"
            )
        if max(self.classes) >= known:
            raise UserError(
                f"figure.classes={self.classes}: {data.name} has classes 0..{known - 1}; give three of them"
            )
        if isinstance(model, EncodingModel):
            parts = self._training_images(data)
            vectors = {k: codes_of(model, part) for k, part in parts.items()}
            c = self.classes[2]
            singles = to_bytes(parts[c].images[: self.examples], model.spec.levels)
            return self._sheet(model, label, vectors, {f"images of {c}": singles})
        return self._sheet(model, label, self._drawn(model, data, progress), {})

    def _training_images(self, data: ImageDataModule) -> dict[int, Dataset]:
        train = data.split("train")
        parts = {k: first_of(train, k, self.images) for k in self.classes}
        for k, part in parts.items():
            if not len(part):
                raise UserError(f"figure.classes={self.classes}: {data.name} train has no image of class {k}")
        return parts

    def _drawn(self, model: LatentModel, data: ImageDataModule, progress: Progress) -> Vectors:
        """Prior draws by the classes of what they decode to."""
        network = Classifier().build(data, model.device, None, lambda notice: None).network.to(model.device)
        found: dict[int, list[Tensor]] = {k: [] for k in self.classes}
        most = self.draws_per_image * self.images

        def count(k: int) -> int:
            return sum(map(len, found[k]))

        for first in range(0, most, AT_ONCE):
            generator = PerImageGenerator(self.seed, first, model.device)
            z = model.draw_latents(min(AT_ONCE, most - first), generator).float().cpu()
            assigned = network(decoded(model, z, None).to(model.device)).argmax(1).cpu()
            for k in found:
                found[k].append(z[assigned == k])
            fewest = min(map(count, found))
            progress(max(first + len(z), most * min(fewest, self.images) // self.images), most)
            if fewest >= self.images:
                break
        for k in found:
            if not count(k):
                raise UserError(
                    f"figure.classes={self.classes}: the classifier assigns none of {most:,} samples to class {k}; "
                    "choose other classes, or raise figure.images to draw more"
                )
        return {k: torch.cat(parts)[: self.images] for k, parts in found.items()}

    def _sheet(self, model: LatentModel, label: int | None, vectors: Vectors, above: dict[str, Tensor]) -> Image.Image:
        """The means and their sum; below the examples, and what ``above`` says of them by its names."""
        a, b, c = self.classes
        mean = {k: z.double().mean(0).float() for k, z in vectors.items()}
        step = mean[a] - mean[b]
        upper = decoded(model, torch.stack([mean[a], mean[b], mean[c], mean[c] + step]), label)
        singles = vectors[c][: self.examples]
        rows = {
            **above,
            f"z of {c}": decoded(model, singles, label),
            f"z + ({a} − {b})": decoded(model, singles + step, label),
        }
        names = {k: model.spec.class_name(k) for k in vectors}
        counts = ", ".join(
            f"{len(vectors[k]):,} of {k}" + f" {names[k]}" * (names[k] != str(k)) for k in dict.fromkeys(self.classes)
        )
        return stacked(
            [
                labelled(
                    upper,
                    4,
                    title=f"mean z of each class ({counts}):",
                    column_names=[f"{a}", f"− {b}", f"+ {c}", f"= {a} − {b} + {c}"],
                    smallest_side=112,
                ),
                labelled(
                    torch.cat(list(rows.values())), len(singles), title=f"single z of class {c}:", row_names=list(rows)
                ),
            ]
        )
