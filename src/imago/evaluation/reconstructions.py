"""Images beside what a model makes of their codes."""

import torch

from imago.data.base import Dataset
from imago.images import Images, Normalized, quantize, to_bytes
from imago.models.base import evaluating
from imago.models.latent import EncodingModel


@torch.no_grad()
def reconstruct(model: EncodingModel, part: Dataset) -> Normalized:
    """Images decoded from their codes, in [-1, 1], in evaluation mode, on the CPU; conditional models get labels."""
    labels = part.labels if model.conditional else None
    with evaluating(model):
        z = model.encode(part.images, labels)
        return model.decode(z, None if labels is None else labels.to(model.device)).float().cpu()


def pairs(model: EncodingModel, part: Dataset, rows: int, columns: int) -> tuple[Images, int]:
    """The first images of a split in rows, each row followed by its reconstructions.

    Returns:
        images with values 0..255, and the number of columns; both smaller where the split is.
    """
    columns = min(columns, len(part))
    few = part.part(slice(min(rows, len(part) // columns) * columns))
    both = torch.stack([to_bytes(few.images, model.spec.levels), quantize(reconstruct(model, few), 256)])
    return both.unflatten(1, (-1, columns)).transpose(0, 1).flatten(0, 2), columns
