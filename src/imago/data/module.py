"""The data of a run: a source, how its images are treated, and the batches that training and evaluation take."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import lightning
import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from imago.data.base import DEFAULT_DIRECTORY, ImageSet, Source
from imago.data.decode import Fit
from imago.data.sources.folder import Folder, Size
from imago.data.stream import BatchStream, black_and_white, check_batch_size
from imago.errors import UserError
from imago.images import Batch, ImageSpec

_HASHED_BYTES = 2**28  # about a fifth of a second of SHA-256


class ImageDataModule(lightning.LightningDataModule):
    """A data set, ready for training and evaluation.

    After :meth:`prepare` the attributes ``spec``, ``train``, ``val``, ``test`` and ``description`` exist.

    Args:
        source: the data set, in its publisher's format.
        batch_size: images per training batch, over all processes together.
        dir: the folder that holds all data sets.
        binarize: makes black and white images of ``levels=2``, RGB channel by channel. ``threshold``: white above 127.
            ``dynamic``: white with probability intensity / 255; drawn anew whenever an image is trained on, while
            validation, test and the references of metrics are one fixed draw, the same in every run.
        flip: mirror training images left to right with probability 1/2.
        seed: of the order of training, the flips and the dynamic binarisation. The splits do not depend on it.
        on_device: keep the training images on the accelerator and cut batches there.
    """

    spec: ImageSpec
    train: ImageSet
    val: ImageSet
    test: ImageSet
    description: str

    def __init__(
        self,
        source: Source,
        *,
        batch_size: PositiveInt = 64,
        dir: str = DEFAULT_DIRECTORY,
        binarize: Literal["dynamic", "threshold"] | None = None,
        flip: bool = False,
        seed: NonNegativeInt = 0,
        on_device: bool = False,
    ) -> None:
        super().__init__()
        self.source = source
        self.batch_size = batch_size
        self.directory = Path(dir).expanduser()
        self.binarize = binarize
        self.flip = flip
        self.seed = seed
        self.on_device = on_device
        self.name = source.name

    def prepare(self) -> None:
        """Read the data, downloading it first where it is missing; a second call does nothing.

        Raises:
            UserError: the data cannot be had, is damaged, or cannot be treated as asked.
        """
        if hasattr(self, "spec"):
            return
        try:
            splits = self.source.load(self.directory)
        except OSError as error:
            raise UserError(
                f"data={self.name}: its files cannot be read ({error}). Change their permissions, or give "
                "another place as data.dir or data.path."
            ) from None
        if self.binarize and splits.levels != 256:
            raise UserError(
                f"data.binarize={self.binarize}: {self.name} has {splits.levels} levels already. "
                "Set data.binarize=null."
            )
        check_batch_size(self.batch_size, len(splits.train))  # here, long before the first batch is asked for
        self.train, self.val, self.test = splits.train, splits.val, splits.test
        self.description, levels = splits.description, splits.levels
        if self.binarize == "threshold":
            self.train, self.val, self.test = map(_thresholded, (self.train, self.val, self.test))
            self.description += "; white above 127, else black"
        elif self.binarize == "dynamic":
            self.val, self.test = _drawn_once(self.val, seed=1), _drawn_once(self.test, seed=2)
            self.description += "; white with probability intensity / 255, val and test in one fixed draw"
        if self.binarize:
            levels = 2
        channels, height, width = self.train.images.shape[1:]
        labels, classes = self.train.labels, splits.classes
        counts = [] if labels is None else torch.bincount(labels, minlength=len(classes)).tolist()
        self.spec = ImageSpec(channels, height, width, levels, len(classes), classes, counts)

    def prepare_data(self) -> None:
        """Lightning's name for :meth:`prepare`."""
        self.prepare()

    def setup(self, stage: str) -> None:
        """Lightning's hook before each stage: :meth:`prepare`, whatever the stage."""
        self.prepare()

    @cached_property
    def fingerprint(self) -> str:
        """12 hexadecimal digits that change with the training split or its treatment: the key of cached statistics.

        The first digits of the SHA-256 of the spec, the labels and the images; of more than 256 MB of images, of evenly
        spaced ones.
        """
        return self._fingerprint_of(self.train)

    def _fingerprint_of(self, part: ImageSet) -> str:
        digest = hashlib.sha256(f"{self.spec} {self.binarize} {tuple(part.images.shape)}".encode())
        every = max(1, -(-part.images.nbytes // _HASHED_BYTES))
        digest.update(part.images[::every].contiguous().numpy().data)
        if part.labels is not None:
            digest.update(part.labels.numpy().data)
        return digest.hexdigest()[:12]

    @cached_property
    def splits(self) -> dict[str, dict[str, Any]]:
        """Of train, val and test the number of ``images`` and the ``fingerprint``, in plain types."""
        parts = {"val": self.val, "test": self.test}
        prints = {"train": self.fingerprint} | {name: self._fingerprint_of(part) for name, part in parts.items()}
        counts = {"train": len(self.train), "val": len(self.val), "test": len(self.test)}
        return {name: {"images": count, "fingerprint": prints[name]} for name, count in counts.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """What checkpoints keep, so that nobody goes on with other data or measures on other held-out images."""
        return {"name": self.name, "splits": self.splits}

    @property
    def places(self) -> list[Path]:
        """Where it is read from: the folder of all data sets, and that of the images where they are the user's own."""
        return [self.directory, *([self.source.path] if isinstance(self.source, Folder) else [])]

    def training_images(self) -> Tensor:
        """The training split as models see it, uint8 (n, C, H, W), 0..levels-1; a dynamic one in one fixed draw."""
        return self._fixed_train.images

    @cached_property
    def _fixed_train(self) -> ImageSet:
        return _drawn_once(self.train, seed=0) if self.binarize == "dynamic" else self.train

    def split(self, name: str) -> ImageSet:
        """The train, val or test split as models see it; a dynamic one in one fixed draw."""
        return self._fixed_train if name == "train" else {"val": self.val, "test": self.test}[name]

    def train_dataloader(self) -> BatchStream:
        """The batches of training, from the one on that the model has reached (``batches_seen``), for this process.

        Raises:
            UserError: see :class:`BatchStream`; or the images do not fit on the accelerator.
        """
        start, rank, world_size, device = 0, 0, 1, None
        if self.trainer is not None:
            start = cast(int, self.trainer.lightning_module.batches_seen)
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            device = self.trainer.strategy.root_device if self.on_device else None
        try:
            return BatchStream(
                self.train.images,
                self.train.labels,
                batch_size=self.batch_size,
                seed=self.seed,
                start=start,
                flip=self.flip,
                binarize=self.binarize == "dynamic",
                rank=rank,
                world_size=world_size,
                device=device,
            )
        except torch.OutOfMemoryError:
            raise UserError(
                f"data.on_device=true: the training images, {self.train.images.nbytes / 1e9:.1f} GB, do not fit on "
                f"{device}. Set data.on_device=false."
            ) from None

    def batches(self, split: Literal["train", "val", "test"], batch_size: int) -> Iterator[Batch]:
        """One pass over a split in its fixed order, without flips; the last batch may be smaller.

        The tensors are views of the data: do not change them in place.
        """
        chosen = self.split(split)
        for first in range(0, len(chosen), batch_size):
            part = chosen.part(slice(first, first + batch_size))
            yield Batch(part.images, part.labels)


def folder_data(
    path: str | None,
    *,
    size: Size | None = None,
    fit: Fit = "crop",
    channels: Literal[1, 3] | None = None,
    on_bad: Literal["refuse", "skip"] = "refuse",
    batch_size: PositiveInt = 64,
    dir: str = DEFAULT_DIRECTORY,
    binarize: Literal["dynamic", "threshold"] | None = None,
    flip: bool = False,
    seed: NonNegativeInt = 0,
    on_device: bool = False,
) -> ImageDataModule:
    """An :class:`ImageDataModule` over your own images, with the settings of both on one level.

    Args:
        path, size, fit, channels, on_bad: see :class:`imago.data.sources.Folder`.
        batch_size, dir, binarize, flip, seed, on_device: see :class:`ImageDataModule`; dir/cache keeps decoded images.

    Raises:
        UserError: there is no path, or nothing at it.
    """
    if path is None:
        raise UserError(
            "data.path is missing: data=folder needs data.path=FOLDER or data.path=FILE.zip, your own images."
        )
    return ImageDataModule(
        Folder(path, size, fit, channels, on_bad),
        batch_size=batch_size,
        dir=dir,
        binarize=binarize,
        flip=flip,
        seed=seed,
        on_device=on_device,
    )


def _thresholded(part: ImageSet) -> ImageSet:
    return ImageSet(black_and_white(part.images, np.array(127, np.uint8)), part.labels)


def _drawn_once(part: ImageSet, seed: int) -> ImageSet:
    # RandomState, because its stream is frozen (NEP 19): every run on every machine evaluates on the same draw.
    below = np.random.RandomState(seed).randint(0, 255, part.images.shape, dtype=np.uint8)
    return ImageSet(black_and_white(part.images, below), part.labels)
