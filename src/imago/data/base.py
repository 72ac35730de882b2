"""What every data source hands over: three splits of raw uint8 images."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imago.errors import UserError
from imago.images import ImageSpec
from imago.models.base import GenerativeModel

DEFAULT_DIRECTORY = "data"


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set, whole.

    Args:
        images: uint8 (n, channels, height, width); may be a memory map, so index it, do not copy it.
        labels: int64 (n,) with values 0..classes-1, or ``None`` for unlabelled data.
    """

    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def part(self, index: slice | Tensor) -> "ImageSet":
        """The images at ``index`` with their labels: a view for a slice, a copy for a tensor of numbers."""
        return ImageSet(self.images[index], None if self.labels is None else self.labels[index])


def seen_by(model: GenerativeModel, part: ImageSet) -> ImageSet:
    """The images that a model can be asked about: for a conditional one, those of classes with training images."""
    return seen_in_training(model.spec, part) if model.conditional else part


def seen_in_training(spec: ImageSpec, part: ImageSet) -> ImageSet:
    """The images of classes that have training images; all, where there are no labels."""
    known = torch.ones(0) if part.labels is None else torch.isin(part.labels, torch.tensor(spec.trained))
    return part if known.all() else part.part(known.nonzero().flatten())


@dataclass(frozen=True)
class Splits:
    """All that a source knows of its data.

    Args:
        train, val, test: the three splits; validation is carved from the training set, the test set is the publisher's.
        classes: names of the classes, in the order of the labels; empty for unlabelled data.
        description: one sentence that says which images are in which split; it goes into the run's summary.
        levels: the number of values of a pixel.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    description: str
    levels: int = 256


class Source(ABC):
    """A data set in its publisher's format. One file per format in :mod:`imago.data.sources`.

    ``name`` is how tables and run directories call it.
    """

    name: str

    @abstractmethod
    def load(self, directory: Path) -> Splits:
        """Read (downloading first, where that is allowed) everything into memory or a memory map.

        Args:
            directory: the folder that holds all data sets, ``data.dir``; sources that need no files ignore it.

        Raises:
            UserError: files are missing and cannot be had, or are not what they should be.
        """


def fixed_permutation(n: int) -> np.ndarray:
    """The permutation of 0..n-1 that every split is cut from: the same in every run, on every machine.

    ``RandomState`` and not numpy's newer ``Generator``, because only the former's stream is frozen for good (NEP 19).
    """
    return np.random.RandomState(0).permutation(n)


def data_directory(directory: Path) -> Path:
    """The folder ``data.dir`` itself. Only the default is created: any other name that is not there is a typing error.

    Raises:
        UserError: the folder does not exist, or is no folder.
    """
    if directory == Path(DEFAULT_DIRECTORY):
        directory.mkdir(exist_ok=True)
    if not directory.is_dir():
        raise UserError(
            f"data.dir={directory}: there is no such folder. Give an existing folder as data.dir=FOLDER or in the "
            "environment variable IMAGO_DATA_DIR; data sets that are missing from it are downloaded into it."
        )
    return directory


def check_file(file: Path) -> None:
    """Refuse what is in a file's place and no file: a folder, or a pipe, which would never end.

    Raises:
        UserError: naming it.
    """
    if not file.is_file():
        raise UserError(
            f"{file}: is a folder, pipe or device instead of a file. Move it away to have it fetched again."
        )
