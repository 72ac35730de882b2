"""Small data sets for the metrics: squares whose brightness says their class, in any shape."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from imago.data import ImageDataModule, ImageSet, Source, Splits


@dataclass
class Squares(Source):
    """Noisy squares; class 1 is brighter than class 0."""

    channels: int = 1
    height: int = 28
    width: int = 20
    labelled: bool = True
    levels: int = 256
    count: int = 300
    name: str = "squares"

    def load(self, directory: Path) -> Splits:
        generator = torch.Generator().manual_seed(0)
        parts = []
        for n in (self.count, 40, 40):
            labels = torch.randint(0, 2, (n,), generator=generator)
            shape = (n, self.channels, self.height, self.width)
            images = torch.randint(0, 100, shape, generator=generator)
            images[:, :, self.height // 4 : -(self.height // 4) or None] += 100 * labels[:, None, None, None]
            images = (images * (self.levels - 1) // 255).to(torch.uint8)
            parts.append(ImageSet(images, labels if self.labelled else None))
        return Splits(*parts, classes=("dark", "bright") if self.labelled else (), description="", levels=self.levels)


@pytest.fixture
def squares(tmp_path, monkeypatch):
    """Builds prepared data; the working directory and the data directory are empty folders."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()

    def build(**options) -> ImageDataModule:
        module_options = {name: options.pop(name) for name in ("binarize", "batch_size") if name in options}
        data = ImageDataModule(Squares(**options), dir=str(tmp_path / "data"), **module_options)
        data.prepare()
        return data

    return build
