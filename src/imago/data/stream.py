"""The order of training: an endless stream of batches that can start anywhere.

Batch b of the stream is a function of (data, seed, b): the permutation and the flips of its epoch come from (seed,
epoch), its binarisation from (seed, b). Nothing is carried from one batch to the next, so a stream started at b gives
the batches that a stream which went there would have given, and a run continues exactly, in the middle of an epoch too.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor

from imago.data.base import Dataset, sent
from imago.errors import UserError
from imago.images import Batch

# The three uses of random numbers get streams of their own, so that turning one on does not change another.
_ORDER, _FLIP, _BINARIZE = 0, 1, 2


def black_and_white(images: Tensor, below: np.ndarray) -> Tensor:
    """Black and white images whose pixels are white where the intensity exceeds ``below``.

    With ``below`` uniform on the integers 0..254, intensity x exceeds exactly x of the 255 values: a pixel is white
    with probability x / 255, without rounding. A new draw every time an image is seen is "dynamic" binarisation, the
    usual reading of MNIST's gray values as probabilities since Salakhutdinov & Murray 2008, "On the quantitative
    analysis of deep belief networks", section 5. With ``below`` = 127 it is a threshold.

    Args:
        images: uint8 (n, C, H, W), 0..255.
        below: uint8, of the same shape or broadcast to it.

    Returns:
        uint8 (n, C, H, W), 0 or 1, on the device of ``images``.
    """
    return (images > sent(below, images.device)).to(torch.uint8)


def check_batch_size(batch_size: int, n_images: int, processes: int = 1) -> None:
    """Refuse a batch, over all processes, that the data cannot fill or the processes cannot share evenly.

    Raises:
        UserError: with the numbers and the nearest size that would do.
    """
    if batch_size > n_images:
        raise UserError(
            f"data.batch_size={batch_size}: the training split has only {n_images:,} images. "
            f"Set data.batch_size to {n_images} or less."
        )
    if batch_size % processes:
        nearest = max(processes, batch_size // processes * processes)
        raise UserError(
            f"data.batch_size={batch_size}: is the size over all processes and cannot be divided between "
            f"{processes} of them. Set data.batch_size to a multiple of {processes}, such as {nearest}."
        )


@dataclass
class BatchStream:
    """An endless iterable of :class:`imago.images.Batch`: numbers ``start``, ``start + 1``, ... of the training.

    An epoch has n // batch_size batches; what is left over at its end is dropped (the next epoch drops other images).
    Of data that are slow to read, the next batches are prepared by a thread. The global random generators are not
    touched.

    Args:
        data: what the batches are taken from; they are made where it lies.
        batch_size: images per batch over *all* processes.
        seed: of the order, the flips and the binarisation; 0 or more.
        start: global number of the first batch, the number of batches seen before.
        flip: mirror every image left to right with probability 1/2.
        binarize: draw every pixel anew, white (1) with probability intensity / 255, else black (0).
        rank: number of this process; it gets the rank-th of ``world_size`` consecutive slices of every batch.
        world_size: number of processes.

    Raises:
        UserError: the batch size is larger than the data, or not divisible by the number of processes.
    """

    data: Dataset
    _: KW_ONLY
    batch_size: int
    seed: int
    start: int = 0
    flip: bool = False
    binarize: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size, len(self.data), self.world_size)
        ends = (k * self.batch_size // self.world_size for k in (self.rank, self.rank + 1))
        self.share = slice(*ends)
        self.batches_per_epoch = len(self.data) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Batches of batch_size / world_size images, for ever."""
        return _ahead(self._batches(), self.data.prefetch) if self.data.prefetch else self._batches()

    def _batches(self) -> Iterator[Batch]:
        number, epoch = self.start, -1
        while True:
            if number // self.batches_per_epoch != epoch:
                epoch = number // self.batches_per_epoch
                order = self._random(_ORDER, epoch).permutation(len(self.data))
                mirrored = self._random(_FLIP, epoch).integers(0, 2, len(order), dtype=np.uint8)
            first = number % self.batches_per_epoch * self.batch_size
            part = slice(first + self.share.start, first + self.share.stop)
            yield self._batch(number, order[part], mirrored[part])
            number += 1

    def _random(self, use: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, use, number])

    def _batch(self, number: int, indices: np.ndarray, mirrored: np.ndarray) -> Batch:
        """This process's share of batch ``number``. Everything random is drawn on the CPU, whatever the device."""
        images, condition = self.data.take(indices)
        if self.flip:
            chosen = sent(np.flatnonzero(mirrored), images.device)
            flipped = images.index_select(0, chosen).flip(-1)
            _words(images).index_copy_(0, chosen, _words(flipped))
        if self.binarize:
            shape = self.batch_size, *images.shape[1:]  # drawn for all processes, then cut
            below = self._random(_BINARIZE, number).integers(0, 255, shape, dtype=np.uint8)
            images = black_and_white(images, below[self.share])
        return Batch(images, condition)


def _ahead(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """The same batches, of which a thread prepares ``count`` while the last one is used."""
    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        coming = deque(pool.submit(next, batches) for _ in range(count))
        while True:
            batch = coming.popleft().result()
            coming.append(pool.submit(next, batches))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _words(images: Tensor) -> Tensor:
    """A view of uint8 (n, C, H, W) as rows, of 8-byte words where they fit: index_copy_ goes element by element."""
    rows = images.flatten(1)
    return rows.view(torch.int64) if rows.shape[1] % 8 == 0 else rows
