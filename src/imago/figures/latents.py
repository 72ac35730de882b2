"""What the figures of latent spaces share: vectors in, labelled pictures out."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from imago.data.base import Dataset
from imago.errors import UserError
from imago.images import Images, Labels, quantize
from imago.models.base import GenerativeModel
from imago.models.latent import EncodingModel, LatentModel, Latents
from imago.pictures import picture_of
from imago.progress import Progress
from imago.rng import PerImageGenerator

AT_ONCE = 250  # vectors or images that pass through a network together
LETTERS = 13  # pixels
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def class_of(model: GenerativeModel, label: int | None) -> int | None:
    """The class that a figure shows: of a conditional model ``label``, by default its first; ``None`` of another one.

    Raises:
        UserError: a label for an unconditional model, or no class that the model has seen.
    """
    if not model.conditional:
        if label is not None:
            raise UserError(f"figure.label={label}: the model is unconditional, it has no classes; leave label=null")
        return None
    if label is not None and label >= model.classes:
        raise UserError(f"figure.label={label}: the model has classes 0..{model.classes - 1}; give one of them")
    if label is None:
        return model.spec.trained[0]
    if label not in model.spec.trained:
        raise UserError(
            f"figure.label={label}: class {model.spec.class_name(label)} has no training images, so the model never "
            "saw it; give another one"
        )
    return label


def of_class(model: GenerativeModel, label: int | None, before: str = " of ") -> str:
    """The class in words, for titles and messages; nothing for no class."""
    return "" if label is None else f"{before}class {model.spec.class_name(label)}"


def repeated(label: int | None, n: int) -> Labels | None:
    """Labels (n,) of one class; none for no class."""
    return None if label is None else torch.full((n,), label)


def decoded(model: LatentModel, z: Latents, label: int | None, progress: Progress | None = None) -> Images:
    """The images of latent vectors, all of one class, with 256 levels whatever those of the data are, on the CPU."""
    images = []
    for first in range(0, len(z), AT_ONCE):
        part = z[first : first + AT_ONCE].to(model.device)
        labels = repeated(label, len(part))
        signal = model.decode(part, None if labels is None else labels.to(model.device))
        images.append(quantize(signal, 256).cpu())
        if progress is not None:
            progress(first + len(part), len(z))
    return torch.cat(images)


def codes_of(model: EncodingModel, part: Dataset) -> Latents:
    """The vectors (n, latent) of images, on the CPU; a conditional model is told their labels."""
    codes = [torch.empty(0, model.latent)]
    for first in range(0, len(part), AT_ONCE):
        few = part.part(slice(first, first + AT_ONCE))
        codes.append(model.encode(few.images, few.labels if model.conditional else None).float().cpu())
    return torch.cat(codes)


def prior_draws(model: LatentModel, n: int, seed: int, label: int | None = None) -> Latents:
    """Vectors as they occur in the model's samples, of one class of a conditional model, (n, latent), on the CPU."""
    return model.draw_latents(n, PerImageGenerator(seed, device=model.device), repeated(label, n)).float().cpu()


def first_of(part: Dataset, label: int | None, n: int) -> Dataset:
    """The first ``n`` images, of class ``label`` if there is one; fewer where there are no more."""
    if label is None:
        return part.part(slice(n))
    assert part.labels is not None
    return part.part((part.labels == label).nonzero().flatten()[:n])


def variances(codes: Latents) -> Float[Tensor, " latent"]:
    """Var_x of each dimension of the codes (n, latent), float64: how active it is (Burda et al. 2016, section 5.2)."""
    return codes.double().var(0, correction=0)


def labelled(
    images: Images,
    columns: int,
    *,
    title: str = "",
    column_names: Sequence[str] = (),
    row_names: Sequence[str] = (),
    smallest_side: int = 64,
    beside: str = "",
) -> Image.Image:
    """:func:`imago.pictures.picture_of` with words around: the grid is at the bottom right, as it is.

    Args:
        images: values 0..255.
        columns: of the grid.
        title: above everything, in lines.
        column_names: above the columns; where they are wider than the columns, above every second one or fewer.
        row_names: beside the rows.
        smallest_side: of an image, in pixels.
        beside: a name for which there is room beside the rows, as another picture of the sheet has it.
    """
    grid = picture_of(images, columns, smallest_side)
    font, line = ImageFont.truetype(str(FONT), LETTERS), LETTERS + 5

    def width(text: str) -> int:
        return max((int(font.getlength(part)) + 1 for part in text.split("\n")), default=0)

    rows = -(-len(images) // columns)
    left = max((width(name) + 10 for name in [*row_names, beside] if name), default=0)
    head = line * (title.count("\n") + 1) + 6 if title else 0
    top = head + (line if column_names else 0)
    left += max(0, width(title) + 8 - grid.width - left)
    picture = Image.new(grid.mode, (left + grid.width, top + grid.height), "white")
    picture.paste(grid, (left, top))
    pen = ImageDraw.Draw(picture)
    pen.multiline_text((4, 3), title, fill="black", font=font, spacing=line - LETTERS)
    wide, high = grid.width / columns, grid.height / rows
    every = -(-max((width(name) + 4 for name in column_names), default=1) // int(wide))
    for k, name in list(enumerate(column_names))[::every]:
        pen.text((left + (k + 0.5) * wide, head + line / 2), name, fill="black", font=font, anchor="mm")
    for k, name in list(enumerate(row_names))[:: -(-line // int(high))]:
        pen.text((left - 5, top + (k + 0.5) * high), name, fill="black", font=font, anchor="rm")
    return picture


def stacked(pictures: Sequence[Image.Image], gap: int = 12) -> Image.Image:
    """Pictures of one mode below each other."""
    sheet = Image.new(
        pictures[0].mode,
        (max(p.width for p in pictures), sum(p.height for p in pictures) + gap * (len(pictures) - 1)),
        "white",
    )
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + gap
    return sheet
