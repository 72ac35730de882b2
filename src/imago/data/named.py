"""Sets of images as a command names them: a folder, a zip file or an .npz of images, or a split of a data set."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import is_zipfile

import numpy as np
import torch
from omegaconf import OmegaConf

from imago.config import CONF, build, check_node, composed, searched
from imago.data.base import DEFAULT_DIRECTORY, Dataset, ImageSet, Source, Splits, fixed_permutation
from imago.data.decode import Fit
from imago.data.module import ImageDataModule, folder_data
from imago.data.shards import INDEX, ShardedImages
from imago.data.sources.folder import Folder, Size
from imago.data.sources.shards import Shards
from imago.errors import UserError, reason_of
from imago.images import ImageSpec
from imago.untrusted import first_line

SPLITS = ("train", "val", "test")
_OWN = ("folder", "stream")  # of conf/data: the user's own images, which a path names
_NAME = re.compile(r"(\w+)(?::(\w+))?")


@dataclass(frozen=True)
class NamedImages:
    """Images and what is known of them.

    Args:
        name: what they are called, such as "cifar10 test", or their path.
        module: prepared data whose training split they are.
        origin: prepared data that they are of, whose training split a classifier can learn.
    """

    name: str
    module: ImageDataModule
    origin: ImageDataModule

    @property
    def images(self) -> Dataset:
        """All of them."""
        return self.module.train

    @property
    def spec(self) -> ImageSpec:
        """Their shape."""
        return self.module.spec


class Whole(Source):
    """Images as a training split.

    Args:
        name: what they are called.
        images: all of them.
        classes: names of the classes.
        levels, tokens: as in :class:`ImageSpec`.
        val: how many of them, the last ones, are held out.
    """

    def __init__(
        self,
        name: str,
        images: Dataset,
        classes: Sequence[str] = (),
        levels: int = 256,
        tokens: bool = False,
        val: int = 0,
    ) -> None:
        self.name, self.splits = name, Splits(images, val, images.part(slice(0)), classes, "", levels, tokens)

    def load(self, directory: Path) -> Splits:
        """What was given."""
        return self.splits


def named_images(
    text: str,
    directory: str | None = None,
    *,
    size: Size | None = None,
    fit: Fit = "crop",
    channels: Literal[1, 3] | None = None,
    on_bad: Literal["refuse", "skip"] = "refuse",
    configurations: Sequence[Path] = (),
) -> NamedImages:
    """The images that a text names, prepared.

    Args:
        text: a folder, a zip file, an .npz file, a folder of shards, or a data set of ``conf/data``, of which a split
            other than the training split is named behind a colon: ``cifar10:test``. A data set comes before a folder
            of its name.
        directory: the folder that holds the data sets; ``None``: where it is by default.
        size, fit, channels, on_bad: of folders and zip files, see :class:`imago.data.sources.Folder`.
        configurations: folders beside ``conf/`` whose ``data/`` is looked into.

    Raises:
        UserError: there is no such thing, or its images cannot be had.
    """
    place = directory or DEFAULT_DIRECTORY
    found = _NAME.fullmatch(text)
    known = sorted({file.stem for folder in (CONF, *configurations) for file in (folder / "data").glob("*.yaml")})
    if found and found[1] in known and found[1] not in _OWN:
        return _split_of(found[1], found[2] or "train", directory, configurations)
    path = Path(text).expanduser()
    try:
        path.stat()
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise UserError(
            f"{text}: no such folder or file ({reason}), and no data set, which are "
            f"{', '.join(name for name in known if name not in _OWN)}, or one of their splits: NAME:test"
        ) from None
    if path.suffix.lower() == ".npz":
        images, classes = read_npz(path)
        images = images.part(torch.from_numpy(fixed_permutation(len(images))))
        whole = prepared(Whole(text, images, classes), place)
        held_out = len(images) // 10
        return NamedImages(text, whole, prepared(Whole(path.stem, images, classes, val=held_out), place))
    if (path / INDEX).is_file():
        sharded = ShardedImages(path)
        shuffled = sharded.part(torch.from_numpy(fixed_permutation(len(sharded))))
        whole = prepared(Whole(text, shuffled, sharded.index.classes), place)
        return NamedImages(text, whole, whole if len(sharded) < 3 else prepared(Shards(text), place))
    folder = Folder(text, size, fit, channels, on_bad)
    images, classes, _, _ = folder.read(Path(place).expanduser())
    whole = prepared(Whole(text, images, classes), place)
    if len(images) < 3:
        return NamedImages(text, whole, whole)
    origin = folder_data(text, size=size, fit=fit, channels=channels, on_bad=on_bad, dir=place, batch_size=1)
    origin.prepare()
    return NamedImages(text, whole, origin)


def prepared(source: Source, directory: str) -> ImageDataModule:
    """Data of a source, read."""
    module = ImageDataModule(source, dir=directory, batch_size=1)
    module.prepare()
    return module


def _split_of(name: str, split: str, directory: str | None, configurations: Sequence[Path]) -> NamedImages:
    if split not in SPLITS:
        raise UserError(f"{name}:{split}: no such split; they are {', '.join(f'{name}:{known}' for known in SPLITS)}")
    given = [*searched(configurations), f"data={name}"]
    node: Any = OmegaConf.to_container(composed("train_classifier", given).data, resolve=True)
    if directory is not None:
        node["dir"] = directory
    check_node(node, "data")
    data: ImageDataModule = build(node, "data")
    data.prepare()
    called = f"{name} {split}"
    if split == "train":
        return NamedImages(called, data, data)
    spec = data.spec
    whole = Whole(called, data.split(split), spec.class_names, spec.levels, spec.tokens)
    return NamedImages(called, prepared(whole, str(data.directory)), data)


def read_npz(path: Path) -> tuple[ImageSet, tuple[str, ...]]:
    """The images of an .npz file and the names of their classes.

    Args:
        path: of a file with ``images``, or with a single array, or ``arr_0``: uint8 (n, height, width, channels),
            (n, height, width) or (n, channels, height, width); beside ``images`` there may be ``labels`` (n,) and the
            names of all ``classes``, as sample.py writes them.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        if not is_zipfile(path):
            raise ValueError("it is no archive")  # NumPy would speak of pickles
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = list(archive.files)
            key = next((key for key in ("images", "arr_0") if key in names), names[0] if len(names) == 1 else None)
            if key is None:
                raise ValueError(f"it holds {', '.join(names[:5]) or 'nothing'}, and no array called images")
            images = archive[key]
            labels = archive["labels"] if key == "images" and "labels" in names else None
            classes = archive["classes"] if labels is not None and "classes" in names else None
        given = f"{images.dtype} {images.shape}"
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim == 4 and images.shape[3] in (1, 3):
            images = images.transpose(0, 3, 1, 2)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size:
            raise ValueError(f"its {key} are {given}; expected uint8 (n, height, width, 1 or 3), values 0..255")
        if labels is None:
            return ImageSet(torch.from_numpy(np.ascontiguousarray(images))), ()
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ValueError(f"its labels are {labels.dtype} {labels.shape}; expected classes 0, 1, ... of each image")
        count = int(labels.max()) + 1 if classes is None else len(classes)
        if labels.max() >= count or (classes is None and count > len(images)):
            raise ValueError(f"its labels go up to {labels.max()}; expected classes 0, 1, ... without gaps")
        called = tuple(map(str, range(count) if classes is None else classes))
        numbers = torch.from_numpy(labels.astype(np.int64))
        return ImageSet(torch.from_numpy(np.ascontiguousarray(images)), numbers), called
    except Exception as error:  # a dozen types, none documented
        reason = first_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path}: no .npz file of images that can be read ({reason})") from None
