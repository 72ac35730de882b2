"""Data of one's own, in a class that says what they are."""

from pathlib import Path

import torch

from imago.data import ImageSet, Source, Splits


class Halves(Source):
    """4x4 images, gray, of two classes: the left or the right half is bright.

    Args:
        images: number of images.
        tokens: make them entries of a codebook of 300, without labels.
    """

    name = "halves"

    def __init__(self, images: int = 200, tokens: bool = False) -> None:
        self.images, self.tokens = images, tokens

    def load(self, directory: Path) -> Splits:
        """Drawn with a seed; no files."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(0, 2, (self.images,), generator=generator)
        images = torch.randint(0, 50, (self.images, 1, 4, 4), generator=generator)
        images[labels == 0, :, :, :2] += 200
        images[labels == 1, :, :, 2:] += 200
        whole = ImageSet(images.int(), None) if self.tokens else ImageSet(images.to(torch.uint8), labels)
        held_out = self.images // 10
        train, test = whole.part(slice(-held_out)), whole.part(slice(-held_out, None))
        if self.tokens:
            return Splits(train, held_out, test, (), "drawn tokens", levels=300, tokens=True)
        return Splits(train, held_out, test, ["left", "right"], "drawn images")
