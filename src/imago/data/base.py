"""What every data source hands over: splits of images, and how a split gives its images out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.utils.data import default_collate

from imago.data.shapes import Shape
from imago.errors import UserError
from imago.images import Batch, Images, ImageSpec, Labels
from imago.models.base import GenerativeModel

DEFAULT_DIRECTORY = "data"
_AT_ONCE = 1024  # images taken at a time where all are wanted


class Dataset(ABC):
    """One split of a data set: images by their numbers, the same ones every time.

    A subclass writes :meth:`take` and ``__len__``; all else follows from them.

    Attributes:
        prefetch: training batches that a thread prepares ahead; 0 where images are in memory.
    """

    prefetch: int = 2

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, indices: np.ndarray) -> Batch:
        """The images of these numbers, in their order, and their condition: copies, which may be changed in place.

        Args:
            indices: int64 (n,), values 0..len-1; n is at least 1.

        Returns:
            Images (n, channels, height, width), uint8 or what else :attr:`imago.images.ImageSpec.dtype` says; class
            labels int64 (n,), embeddings float32 (n, features) or ``None``.
        """

    def batches(self, size: int) -> Iterator[Batch]:
        """One pass in order; the last batch may be smaller."""
        for first in range(0, len(self), size):
            yield self.take(np.arange(first, min(first + size, len(self))))

    def part(self, index: slice | Tensor) -> "Dataset":
        """The images at ``index``: a slice, or int64 (n,). Nothing is read."""
        return _Part(self, np.arange(len(self))[index if isinstance(index, slice) else index.numpy()])

    @cached_property
    def images(self) -> Tensor:
        """All images as one tensor, which stays in memory: read here, in pieces, where they are not."""
        like = self._like()
        images = like.new_empty(len(self), *like.shape[1:])
        done = 0
        for batch in self.batches(_AT_ONCE):
            images[done : done + len(batch.images)] = batch.images
            done += len(batch.images)
        return images

    @cached_property
    def condition(self) -> Tensor | None:
        """Class labels int64 (n,) or embeddings (n, features) of all images; override it where they are known."""
        found = [batch.condition for batch in self.batches(_AT_ONCE)]
        return torch.cat([part for part in found if part is not None]) if found and found[0] is not None else None

    @property
    def labels(self) -> Tensor | None:
        """Class labels of all images, int64 (n,); ``None`` where there are none."""
        return Batch(torch.empty(0), self.condition).labels

    def _like(self) -> Tensor:
        return self.take(np.arange(1)).images


class ImageSet(Dataset):
    """A split that is one tensor, in memory or a memory map.

    Args:
        images: (n, channels, height, width); may be a memory map, so index it, do not copy it.
        condition: class labels, int64 (n,) with values 0..classes-1; embeddings (n, features); or ``None``.
        prefetch: see :class:`Dataset`; worth its 30 µs a batch for a map of more than the memory holds.
    """

    def __init__(self, images: Tensor, condition: Tensor | None = None, prefetch: int = 0) -> None:
        self.images = images
        self.condition = condition
        self.prefetch = prefetch

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> Batch:
        """See :meth:`Dataset.take`; on the device of the images."""
        wanted = sent(indices, self.images.device)
        # index_select is 20 times as fast on uint8 as images[indices].
        images = self.images.index_select(0, wanted)
        return Batch(images, None if self.condition is None else self.condition.index_select(0, wanted))

    def part(self, index: slice | Tensor) -> "ImageSet":
        """The images at ``index``: a view for a slice, a copy for a tensor of numbers."""
        condition = None if self.condition is None else self.condition[index]
        return ImageSet(self.images[index], condition, self.prefetch)

    def to(self, device: torch.device) -> "ImageSet":
        """The same images on a device."""
        return ImageSet(self.images.to(device), None if self.condition is None else self.condition.to(device))


def sent(numbers: np.ndarray, device: torch.device) -> Tensor:
    """Numbers on a device. A GPU is sent them from pinned memory: the processor does not wait until it has them."""
    tensor = torch.from_numpy(numbers)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class MapStyle(Dataset):
    """A split that is a map-style dataset of PyTorch, such as torchvision's without a transform.

    Its items are images, or pairs of an image and a class label or an embedding. Images are PIL pictures, arrays
    (height, width) or (height, width, channels), or tensors (channels, height, width); uint8, and the same every time.

    Args:
        dataset: with ``__len__`` and ``__getitem__``.
        columns: of items that are dictionaries, as those of Hugging Face's datasets, the name of the image, or the
            names of the image and its condition.
    """

    def __init__(self, dataset: Any, columns: Sequence[str] = ()) -> None:
        self.dataset = dataset
        self.columns = (columns,) if isinstance(columns, str) else tuple(columns)

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, indices: np.ndarray) -> Batch:
        """See :meth:`Dataset.take`."""
        items = [self.dataset[int(k)] for k in indices]
        if self.columns:
            items = [tuple(item[name] for name in self.columns) for item in items]
        pairs = [(*item, None)[:2] if isinstance(item, tuple | list) else (item, None) for item in items]
        images = torch.stack([_channels_first(image) for image, _ in pairs])
        return Batch(images, None if pairs[0][1] is None else default_collate([condition for _, condition in pairs]))

    @cached_property
    def condition(self) -> Tensor | None:
        """The dataset's ``targets`` where it has them, as torchvision's have, or the column, as Hugging Face's have."""
        targets = getattr(self.dataset, "targets", None)
        if len(self.columns) == 2 and hasattr(self.dataset, "column_names"):
            targets = self.dataset[self.columns[1]][:]
        return super().condition if targets is None else torch.as_tensor(targets)


def _channels_first(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        return image
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


class _Part(Dataset):
    """Some images of a data set, in an order of their own."""

    def __init__(self, whole: Dataset, numbers: np.ndarray) -> None:
        self.whole, self.numbers, self.prefetch = whole, numbers, whole.prefetch

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, indices: np.ndarray) -> Batch:
        return self.whole.take(self.numbers[indices])

    @cached_property
    def condition(self) -> Tensor | None:
        return None if self.whole.condition is None else self.whole.condition[torch.from_numpy(self.numbers)]

    def _like(self) -> Tensor:
        return self.whole._like()


def seen_by(model: GenerativeModel, part: Dataset) -> Dataset:
    """The images that a model can be asked about: for a conditional one, those of classes with training images."""
    return seen_in_training(model.spec, part) if model.conditional else part


def seen_in_training(spec: ImageSpec, part: Dataset) -> Dataset:
    """The images of classes that have training images; all, where there are no labels."""
    known = torch.ones(0) if part.labels is None else torch.isin(part.labels, torch.tensor(spec.trained))
    return part if known.all() else part.part(known.nonzero().flatten())


def drawn(part: Dataset, split: str, count: int) -> Dataset:
    """So many images of a split at random, the same every time; all of them in their own order.

    Of a test split they are drawn, because the order of files means something: the first half of MNIST's is easier than
    the second. The others are cut from a permutation, so their first are random.

    Args:
        part: of the split.
        split: its name.
        count: how many; more of them keep those that fewer have.
    """
    if count >= len(part):
        return part
    return part.part(torch.from_numpy(fixed_permutation(len(part))[:count]) if split == "test" else slice(count))


def affordable(part: Dataset, most: int = 2**30) -> Dataset:
    """A split whose images can all be held at once: itself, or evenly spaced images of one that is not in memory.

    Args:
        part: the split.
        most: bytes that its images may take; of a tensor or memory map any number.
    """
    if isinstance(part, ImageSet) or not len(part):
        return part
    return part.part(slice(None, None, max(1, -(-len(part) * part._like().nbytes // most))))


@dataclass(frozen=True)
class Splits:
    """All that a source knows of its data.

    Args:
        train: all that may be trained on, in the order from whose end validation images are held out.
        val: how many are held out unless ``data.val`` says otherwise; or validation images that are not of ``train``.
        test: the publisher's.
        classes: names of the classes, in the order of the labels; empty for unlabelled data.
        description: which images these are, to be read behind "train, val = the first 50,000 and the last 10,000"; a
            whole sentence where ``val`` is a data set. It goes into the run's summary.
        levels: the number of values of a pixel; see :class:`imago.images.ImageSpec`, as for ``tokens``.
    """

    train: Dataset
    val: int | Dataset
    test: Dataset
    classes: Sequence[str]
    description: str
    levels: int = 256
    tokens: bool = False

    @classmethod
    def of_own_images(cls, shuffled: Dataset, classes: Sequence[str], place: Path, told: str) -> "Splits":
        """Splits of images that no publisher has split: the last tenth is for the test, as many before it are held out.

        Args:
            shuffled: all images, in the order of the fixed permutation.
            classes: names of the classes.
            place: where the images are.
            told: more of the description.

        Raises:
            UserError: there are too few.
        """
        n = len(shuffled)
        if n < 3:
            raise UserError(f"data.path={place}: {n} images; training, validation and test need one each. Add some.")
        held = max(1, n // 10)
        description = (
            f"of a fixed permutation of the {n:,} images of {place} without its last {held:,}, test = those, {told}"
        )
        return cls(shuffled.part(slice(-held)), held, shuffled.part(slice(-held, None)), classes, description)

    def cut(self, name: str, val: int | None) -> tuple[Dataset, Dataset, str]:
        """Training and validation images, and a sentence that says which they are.

        Args:
            name: of the data.
            val: how many images to hold out; ``None`` for as many as the source does.

        Raises:
            UserError: none would be left to train on, or validation images of their own were given.
        """
        if isinstance(self.val, Dataset):
            if val is not None:
                raise UserError(f"data.val={val}: {name} has validation images of its own; leave data.val=null")
            return self.train, self.val, f"{name}: {self.description}"
        held_out, n = self.val if val is None else val, len(self.train)
        if held_out >= n:
            raise UserError(f"data.val={held_out}: {name} has {n:,} images to train on; hold out fewer")
        train, val_split = self.train.part(slice(n - held_out)), self.train.part(slice(n - held_out, None))
        which = (
            f"train, val = the first {n - held_out:,} and the last {held_out:,}" if held_out else f"train = all {n:,}"
        )
        return train, val_split, f"{name}: {which} {self.description}"


class Source(ABC):
    """A data set in its publisher's format. One file per format in :mod:`imago.data.sources`.

    ``name`` is how tables and run directories call it. ``shape`` is the distribution that points are drawn from, where
    it is known.
    """

    name: str
    shape: Shape | None = None

    def log_prob(self, images: Images, labels: Labels | None = None) -> Float64[Tensor, " n"] | None:
        """log p(x), or log p(x | label), of the distribution that the data are drawn from, in nats.

        ``None`` where nobody knows it, as of all data that were not made.
        """
        return None

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


def damaged(file: Path, found: str, remedy: str = "Delete it to have it fetched again") -> UserError:
    """What to say of a published file that is not what it should be.

    Args:
        file: where it is.
        found: what is wrong with it, and what was expected.
        remedy: what to do.
    """
    return UserError(f"{file}: {found}. It is damaged or another file. {remedy}.")


def check_file(file: Path) -> None:
    """Refuse what is in a file's place and no file: a folder, or a pipe, which would never end.

    Raises:
        UserError: naming it.
    """
    if not file.is_file():
        raise UserError(
            f"{file}: is a folder, pipe or device instead of a file. Move it away to have it fetched again."
        )
