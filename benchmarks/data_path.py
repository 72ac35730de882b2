"""The data path against torchvision's, side by side in one process: training images per second.

Ours cuts batches out of one uint8 tensor by index and mirrors them whole (:class:`imago.data.BatchStream`). The peer is
what a torchvision user writes: ``DataLoader(dataset, 128, shuffle=True, drop_last=True)`` over the item-by-item
datasets of torchvision (PIL image, ``RandomHorizontalFlip`` for CIFAR-10, ``ToTensor``), with no workers, like ours.
``ToTensor`` gives floating point, so the rows "as float" time ours with the conversion of the batch to a signal.

    make bench BENCHMARKS=benchmarks/data_path.py

The last two rows set batches that a thread prepares ahead beside batches made when they are asked for, during a step of
some milliseconds: in memory, where that is off because it gains nothing, and where every batch takes 5 ms to arrive.

With IMAGO_DATA_DIR set the images are those of MNIST and CIFAR-10, else noise of the same sizes, at the same cost.
"""

import os
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, RandomHorizontalFlip, ToTensor

from imago.data import BatchStream, Dataset, ImageSet
from imago.data.sources import CIFAR10, MNIST
from imago.images import Batch, normalize
from side_by_side import Row, alternate, report

BATCH = 128
PER_STEP = 20  # batches of ours for each of theirs: both sides run for about as long


class ItemByItem(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """``torchvision.datasets.CIFAR10`` and ``MNIST`` without their files: the lines of their ``__getitem__``.

    CIFAR10 holds a numpy array (n, 32, 32, 3) and a list of labels, MNIST tensors (n, 28, 28) and (n,).
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        self.gray = images.shape[1] == 1
        self.data: Any = images[:, 0].clone() if self.gray else images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets: Any = labels if self.gray else labels.tolist()
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.gray:
            image, target = self.data[index], int(self.targets[index])
            return self.transform(Image.fromarray(image.numpy())), target
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]

    def __len__(self) -> int:
        return len(self.data)


def training_split(source: CIFAR10 | MNIST, folder: str, shape: tuple[int, ...]) -> Dataset:
    """The real images where they are, else noise."""
    directory = Path(os.environ.get("IMAGO_DATA_DIR", "data"))
    if (directory / folder).exists():
        return source.load(directory).cut(source.name, None)[0]
    return ImageSet(torch.randint(0, 256, shape, dtype=torch.uint8), torch.randint(0, 10, shape[:1]))


def compare(name: str, train: Dataset, flip: bool) -> list[Row]:
    """Two rows: ours as signal and ours as uint8, both against torchvision."""
    assert train.labels is not None
    augmentation = [RandomHorizontalFlip()] if flip else []
    dataset = ItemByItem(train.images, train.labels, Compose([*augmentation, ToTensor()]))
    loader = iter(torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, drop_last=True))
    stream = iter(BatchStream(train, batch_size=BATCH, seed=0, flip=flip))
    sides: dict[str, Callable[[], object]] = {
        "as float": lambda: deque((normalize(batch.images, 256) for batch in islice(stream, PER_STEP)), maxlen=1),
        "as uint8": lambda: deque(islice(stream, PER_STEP), maxlen=1),
        "torchvision": lambda: next(loader),
    }
    timings = alternate(sides, steps=20, rounds=7)
    theirs = timings.pop("torchvision")
    return [
        Row(
            f"{name} batches {kind}",
            "images/s",
            PER_STEP * BATCH / ours.seconds,
            ours.threads,
            "torchvision item by item",
            BATCH / theirs.seconds,
            theirs.threads,
            20,
        )
        for kind, ours in timings.items()
    ]


class Distant(ImageSet):
    """Images that one has to wait for, as on a network drive."""

    def take(self, indices: np.ndarray) -> Batch:
        time.sleep(0.005)
        return super().take(indices)


def prefetching(name: str, kind: type[ImageSet], train: Dataset, target: float | None) -> Row:
    """Batches prepared ahead against batches made when they are asked for, with a step in between."""

    def side(prefetch: int) -> Callable[[], object]:
        data = kind(train.images, train.condition, prefetch)
        stream = iter(BatchStream(data, batch_size=BATCH, seed=0, flip=True))
        weights = torch.randn(train.images[0].numel(), 512)
        return lambda: normalize(next(stream).images, 256).flatten(1) @ weights

    timings = alternate({"ahead": side(2), "asked for": side(0)}, steps=20, rounds=15)
    ahead, asked = timings.values()
    others = BATCH / asked.seconds, asked.threads
    return Row(name, "images/s", BATCH / ahead.seconds, ahead.threads, "when asked for", *others, target)


if __name__ == "__main__":
    cifar10 = training_split(CIFAR10(), "cifar-10-batches-bin", (45_000, 3, 32, 32))
    report(
        "data_path",
        [
            *compare("MNIST", training_split(MNIST(), "MNIST", (50_000, 1, 28, 28)), flip=False),
            *compare("CIFAR-10", cifar10, flip=True),
            prefetching("CIFAR-10 in memory, prepared ahead", ImageSet, cifar10, None),
            prefetching("5 ms away, prepared ahead", Distant, cifar10, 1.2),
        ],
    )
