"""The data of a run: a source, how its images are treated, and the batches that training and evaluation take."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import lightning
import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from imago.data.base import DEFAULT_DIRECTORY, Dataset, ImageSet, Source
from imago.data.decode import Fit
from imago.data.loaders import Epoch, OnePass
from imago.data.sources.folder import Folder, Size
from imago.data.sources.shards import Shards
from imago.data.sources.toy import InPlane, Levels, OnLine, Toy
from imago.data.stream import BatchStream, black_and_white, check_batch_size
from imago.errors import UserError
from imago.images import Batch, ImageSpec
from imago.models.base import GenerativeModel
from imago.paths import images_place

_HASHED_AT_ONCE = 2**22  # bytes
_HASHED_BYTES = 2**28  # about a fifth of a second of SHA-256


class ImageDataModule(lightning.LightningDataModule):
    """A data set, ready for training and evaluation.

    After :meth:`prepare` the attributes ``spec``, ``train``, ``val``, ``test`` and ``description`` exist. ``endless``
    is set by runs that count images instead of epochs.

    Args:
        source: the data set, in its publisher's format.
        batch_size: images per training batch, over all processes together.
        train: train on only so many images, the first; ``None``: on all. Metrics compare with all of them.
        val: images of the training set that are held out for validation; 0 trains on all, ``None`` is the source's own
            number. The test split is another.
        dir: the folder that holds all data sets.
        binarize: makes black and white images of ``levels=2``, RGB channel by channel. ``threshold``: white above 127.
            ``dynamic``: white with probability intensity / 255; drawn anew whenever an image is trained on, while
            validation, test and the references of metrics are one fixed draw, the same in every run.
        flip: mirror training images left to right with probability 1/2.
        seed: of the order of training, the flips and the dynamic binarisation. The splits do not depend on it.
        on_device: keep the training images on the accelerator and cut batches there.
    """

    spec: ImageSpec
    train: Dataset
    val: Dataset
    test: Dataset
    description: str

    def __init__(
        self,
        source: Source,
        *,
        batch_size: PositiveInt = 64,
        train: PositiveInt | None = None,
        val: NonNegativeInt | None = None,
        dir: str = DEFAULT_DIRECTORY,
        binarize: Literal["dynamic", "threshold"] | None = None,
        flip: bool = False,
        seed: NonNegativeInt = 0,
        on_device: bool = False,
    ) -> None:
        super().__init__()
        self.source = source
        self.batch_size = batch_size
        self.train_images = train
        self.val_images = val
        self.directory = Path(dir).expanduser()
        self.binarize = binarize
        self.flip = flip
        self.seed = seed
        self.on_device = on_device
        self.name = source.name
        self.endless = False

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
        kind = "tokens" if splits.tokens else f"{splits.levels} levels already" if splits.levels else "points"
        if self.binarize and (splits.levels != 256 or splits.tokens):
            raise UserError(f"data.binarize={self.binarize}: {self.name} has {kind}. Set data.binarize=null.")
        if self.flip and (splits.tokens or not splits.levels):
            raise UserError(f"data.flip=true: {self.name} has {kind}, which have no mirror image. Set data.flip=false.")
        self.train, self.val, self.description = splits.cut(self.source.name, self.val_images)
        self.test, levels = splits.test, splits.levels
        if self.train_images is not None and self.train_images < len(self.train):
            self.description += f"; trained on the first {self.train_images:,}"
        check_batch_size(self.batch_size, len(self._trained_on))  # here, long before the first batch is asked for
        if self.binarize == "threshold":
            below = np.array(127, np.uint8)
            self.train, self.val, self.test = (_binarized(part, below) for part in (self.train, self.val, self.test))
            self.description += "; white above 127, else black"
        elif self.binarize == "dynamic":
            self.val, self.test = _drawn_once(self.val, seed=1), _drawn_once(self.test, seed=2)
            self.description += "; white with probability intensity / 255, val and test in one fixed draw"
        if self.binarize:
            levels = 2
        images, condition = self.train.take(np.arange(1))
        labels, classes = self.train.labels, splits.classes
        channels, height, width = images.shape[1:]
        self.spec = ImageSpec(
            channels,
            height,
            width,
            levels,
            len(classes),
            classes,
            [] if labels is None else torch.bincount(labels, minlength=len(classes)).tolist(),
            tokens=splits.tokens,
            embedding=0 if condition is None or labels is not None else condition.shape[1],
        )
        if self.binarize != "dynamic":
            self.spec.check(images)

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

    def _fingerprint_of(self, part: Dataset) -> str:
        shape = (len(part), *self.spec.shape)
        digest = hashlib.sha256(f"{self.spec} {self.binarize} {shape}".encode())
        each = math.prod(self.spec.shape) * self.spec.dtype.itemsize
        every = max(1, -(-len(part) * each // _HASHED_BYTES))
        for batch in part.part(slice(None, None, every)).batches(max(1, _HASHED_AT_ONCE // each)):
            digest.update(batch.images.numpy().data)
        if part.condition is not None:
            digest.update(part.condition.numpy().data)
        return digest.hexdigest()[:12]

    @cached_property
    def splits(self) -> dict[str, dict[str, Any]]:
        """Of train, val and test the number of ``images`` and the ``fingerprint``, in plain types."""
        parts = {"val": self.val, "test": self.test}
        found = {name: {"images": len(part), "fingerprint": self._fingerprint_of(part)} for name, part in parts.items()}
        return {"train": {"images": len(self.train), "fingerprint": self.fingerprint}} | found

    @property
    def identity(self) -> dict[str, Any]:
        """What checkpoints keep, so that nobody goes on with other data or measures on other held-out images."""
        return {"name": self.name, "splits": self.splits}

    def log_prob(self, images: Tensor, labels: Tensor | None = None) -> Tensor | None:
        """log p(x), or log p(x | label), of the distribution that the images are drawn from, in nats, float64.

        ``None`` where nobody knows it.
        """
        return None if self.binarize or self.flip else self.source.log_prob(images, labels)

    @property
    def places(self) -> list[Path]:
        """Where it is read from: the folder of all data sets, and that of the images where they are the user's own."""
        return [self.directory, *([self.source.path] if isinstance(self.source, Folder | Shards) else [])]

    def training_images(self) -> Tensor:
        """The training split as models see it, uint8 (n, C, H, W), 0..levels-1; a dynamic one in one fixed draw."""
        return self._fixed_train.images

    @cached_property
    def _fixed_train(self) -> Dataset:
        return _drawn_once(self.train, seed=0) if self.binarize == "dynamic" else self.train

    def split(self, name: str) -> Dataset:
        """The train, val or test split as models see it; a dynamic one in one fixed draw.

        Raises:
            UserError: no images are held out.
        """
        part = self._fixed_train if name == "train" else {"val": self.val, "test": self.test}[name]
        if not len(part):
            raise UserError(f"data.val=0: no images of {self.name} are held out for validation; take the test split")
        return part

    def train_dataloader(self) -> BatchStream | Epoch:
        """The batches of training for this process, from the one on that the model has reached (``state.batches``).

        An endless stream where a run asks for one (``endless``), else one epoch after the other.

        Raises:
            UserError: see :class:`BatchStream`; or the images do not fit on the accelerator.
        """
        model: Any = None if self.trainer is None else self.trainer.lightning_module
        data, rank, world_size = self._trained_on, 0, 1
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            if self.on_device:
                data = self._on(self.trainer.strategy.root_device)

        stream = BatchStream(
            data,
            batch_size=self.batch_size,
            seed=self.seed,
            flip=self.flip,
            binarize=self.binarize == "dynamic",
            rank=rank,
            world_size=world_size,
        )
        seen = (lambda: model.state.batches) if isinstance(model, GenerativeModel) else None
        return replace(stream, start=seen() if seen else 0) if self.endless else Epoch(stream, seen)

    @property
    def _trained_on(self) -> Dataset:
        return self.train if self.train_images is None else self.train.part(slice(self.train_images))

    def _on(self, device: torch.device) -> ImageSet:
        images = self._trained_on.images
        try:
            return ImageSet(images, self._trained_on.condition).to(device)
        except torch.OutOfMemoryError:
            raise UserError(
                f"data.on_device=true: the training images, {images.nbytes / 1e9:.1f} GB, do not fit on {device}. "
                "Set data.on_device=false."
            ) from None

    def val_dataloader(self) -> OnePass | list[OnePass]:
        """The validation split, once; nothing, where no images are held out (Lightning's hook)."""
        return self._one_pass("val") if len(self.val) else []

    def test_dataloader(self) -> OnePass:
        """The test split, once (Lightning's hook)."""
        return self._one_pass("test")

    def predict_dataloader(self) -> OnePass:
        """The numbers of as many samples as there are test images, for ``trainer.predict`` (Lightning's hook)."""
        numbers = torch.arange(len(self.test)).split(self.batch_size)
        return OnePass(lambda: iter(numbers), len(numbers))

    def _one_pass(self, split: Literal["val", "test"]) -> OnePass:
        size = max(self.batch_size, 128)
        return OnePass(lambda: self.batches(split, size), -(-len(self.split(split)) // size))

    def batches(self, split: Literal["train", "val", "test"], batch_size: int) -> Iterator[Batch]:
        """One pass over a split in its fixed order, without flips; the last batch may be smaller."""
        return self.split(split).batches(batch_size)


class Settings(TypedDict, total=False):
    """What :class:`ImageDataModule` takes beside its source."""

    batch_size: PositiveInt
    train: PositiveInt | None
    val: NonNegativeInt | None
    dir: str
    binarize: Literal["dynamic", "threshold"] | None
    flip: bool
    seed: NonNegativeInt
    on_device: bool


def folder_data(
    path: str | None,
    *,
    size: Size | None = None,
    fit: Fit = "crop",
    channels: Literal[1, 3] | None = None,
    on_bad: Literal["refuse", "skip"] = "refuse",
    **settings: Unpack[Settings],
) -> ImageDataModule:
    """An :class:`ImageDataModule` over your own images, with the settings of both on one level.

    What is not of :class:`ImageDataModule` is of :class:`imago.data.sources.Folder`.

    Args:
        settings: see :class:`ImageDataModule`; decoded images are kept in dir/cache.

    Raises:
        UserError: there is no path, or nothing at it.
    """
    return ImageDataModule(Folder(str(images_place(path)), size, fit, channels, on_bad), **settings)


def stream_data(path: str | None, **settings: Unpack[Settings]) -> ImageDataModule:
    """An :class:`ImageDataModule` over shards, with the settings of both on one level.

    Args:
        path: the folder that ``prepare`` has written, see :class:`imago.data.sources.Shards`.
        settings: see :class:`ImageDataModule`.

    Raises:
        UserError: there is no path, or nothing at it.
    """
    return ImageDataModule(Shards(str(images_place(path))), **settings)


def toy2d_data(shape: InPlane, *, levels: Levels | None = None, **settings: Unpack[Settings]) -> ImageDataModule:
    """An :class:`ImageDataModule` over points in the plane, with the settings of both on one level.

    Args:
        shape: see :class:`imago.data.sources.Toy`.
        levels: see there.
        settings: see :class:`ImageDataModule`.
    """
    return ImageDataModule(Toy(shape, levels), **settings)


def toy1d_data(shape: OnLine, *, levels: Levels | None = None, **settings: Unpack[Settings]) -> ImageDataModule:
    """As :func:`toy2d_data`, of points on the line."""
    return ImageDataModule(Toy(shape, levels), **settings)


def _binarized(part: Dataset, below: np.ndarray) -> ImageSet:
    return ImageSet(black_and_white(part.images, below), part.condition)


def _drawn_once(part: Dataset, seed: int) -> ImageSet:
    # RandomState, because its stream is frozen (NEP 19): every run on every machine evaluates on the same draw.
    return _binarized(part, np.random.RandomState(seed).randint(0, 255, part.images.shape, dtype=np.uint8))
