"""Your own images: a folder, a zip or tar file of any of the usual formats, sizes and modes.

Labels come from ``dataset.json`` as NVlabs' StyleGAN tools write it, {"labels": [["00000/img00000000.png", 3], ...]} or
{"labels": null} (https://github.com/NVlabs/stylegan3, dataset_tool.py); without it from a number beside each image,
img7.cls for img7.jpg, as WebDataset has it; or from the names of the class folders, in natural order. Images that all
lie in one folder have none.

Images are decoded once, see :mod:`imago.data.decoded`, into a file of DIRECTORY/cache, under a name made of the
folder's and of a hash over the settings, the decoder, the folder's place, and every file's name, size and dates. (A
hash over all content would read everything at each start: a minute for 100,000 files, where their dates take a second.)
"""

import hashlib
import json
import os
import posixpath
import sys
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import PIL
import torch
from annotated_types import Len
from pydantic import BaseModel, Field, StrictInt, StrictStr, ValidationError

from imago.data.base import ImageSet, Source, Splits, data_directory, fixed_permutation
from imago.data.decode import DECODER, Fit
from imago.data.decoded import Decoder, bad_files
from imago.data.listing import (
    Container,
    FolderFiles,
    TarFiles,
    ZipFiles,
    displayable,
    natural,
    of_a_system,
    pictures_of,
)
from imago.errors import UserError, printable
from imago.paths import images_place

Pixels = Annotated[int, Field(gt=0, le=8192)]
Size = Pixels | Annotated[Sequence[Pixels], Len(2, 2)]

_TRAINING_NAMES = {"train", "training"}
_SPLIT_NAMES = _TRAINING_NAMES | {"val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class _Labels:
    """What is said of the classes.

    Args:
        of: number of the class of every image by its name; empty for unlabelled data.
        classes: names of the classes in the order of their numbers.
        origin: where they come from, in words.
        notices: what is worth a line.
    """

    of: dict[str, int]
    classes: tuple[str, ...]
    origin: str
    notices: tuple[str, ...] = ()


def sides_of(size: Size | None) -> tuple[int, int] | None:
    """Height and width that a setting means: of one number a square."""
    return None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])


class Folder(Source):
    """Any folder, zip file or tar file of images, or folder of tar files.

    A tenth of the images, at least one, is test, and as many are validation unless ``data.val`` says otherwise; the
    three are slices of a fixed permutation of the sorted names.

    Args:
        path: the folder or file.
        size: height and width, or one number for both; ``None`` takes images as they are, all of one size.
        fit: how an image of other proportions comes to ``size``: ``crop`` cuts about the centre, ``stretch`` distorts.
        channels: 1 for gray, 3 for RGB; ``None`` is 1 if all files are stored as gray, else 3.
        on_bad: what to do about files that cannot be read: ``refuse`` stops and lists them, ``skip`` leaves them out.

    Raises:
        UserError: there is no such path.
    """

    def __init__(
        self,
        path: str,
        size: Size | None = None,
        fit: Fit = "crop",
        channels: Literal[1, 3] | None = None,
        on_bad: Literal["refuse", "skip"] = "refuse",
    ) -> None:
        self.path = images_place(path)
        self.size = sides_of(size)
        self.fit: Fit = fit
        self.channels = channels
        self.on_bad = on_bad
        self.name = self.path.resolve().stem if self.path.is_file() else self.path.resolve().name

    def load(self, directory: Path) -> Splits:
        """Lists the images, decodes them into DIRECTORY/cache unless that was done before, and maps the result."""
        everything, classes, lost, origin = self.read(directory)
        return Splits.of_own_images(everything, classes, self.path, f"{lost}{origin}")

    def read(self, directory: Path) -> tuple[ImageSet, tuple[str, ...], str, str]:
        """All images, in the order of the permutation.

        Returns:
            the images with their labels, the names of the classes, in words how many could not be read, and where the
            labels come from.

        Raises:
            UserError: there are none, or some cannot be read.
        """
        container, names, labels = self._listed()
        # In the order of the permutation, so that the splits of the decoded file are slices, which stay memory-mapped.
        names = [names[k] for k in fixed_permutation(len(names))]
        settings = {"size": self.size, "fit": self.fit, "channels": self.channels}
        stamps = [(name, container.stamps[name]) for name in names]
        told = json.dumps([settings, DECODER, PIL.__version__, container.place, stamps])
        key = hashlib.sha256(told.encode()).hexdigest()[:12]
        name = os.fsdecode(os.fsencode(self.name)[:150])  # room for the rest of a file's name
        cache = data_directory(directory) / "cache" / f"{name}-{key}.npy"
        images, bad = Decoder(container, self.size, self.fit, self.channels).images(names, cache)
        lost = self._without_images(labels, set(names) - set(bad))
        if bad and self.on_bad == "refuse":
            raise UserError(
                f"data.path={self.path}: {bad_files(bad)}{lost}\nAll of them are listed in "
                f"{cache.with_suffix('.json')}. Repair, convert or remove them, or set data.on_bad=skip."
            )
        if bad:
            print(printable(f"data.on_bad=skip: leaving out {bad_files(bad)}{lost}"), file=sys.stderr)
        names = [name for name in names if name not in bad]
        numbers, classes = self._numbered(labels, names)
        lost = f"{len(bad):,} unreadable ones left out, " if bad else ""
        everything = ImageSet(torch.from_numpy(images), numbers, prefetch=2)
        return everything, displayable(classes), lost, labels.origin

    def listed(self) -> "Listed":
        """The images in the order of their names, not yet decoded.

        Raises:
            UserError: there are none, or what is said of their classes makes no sense.
        """
        container, names, labels = self._listed()
        numbers, classes = self._numbered(labels, names)
        return Listed(container, names, numbers, displayable(classes), labels.origin)

    def _listed(self) -> tuple[Container, list[str], _Labels]:
        container = self._container()
        names, notices = pictures_of(container)
        labels = self._labels(container, names)
        if notices := [*notices, *labels.notices]:
            print(printable(f"data.path={self.path}: {'; '.join(notices)}"), file=sys.stderr)
        return container, names, labels

    def _container(self) -> Container:
        if not self.path.is_dir():
            return TarFiles(self.path, [self.path]) if self.path.suffix.lower() == ".tar" else ZipFiles(self.path)
        files = FolderFiles(self.path)
        tars = [name for name in files.stamps if name.lower().endswith(".tar")]
        if not tars:
            return files
        with suppress(UserError):  # pictures beside archives: those count, and the archives are told of
            pictures_of(files)
            return files
        return TarFiles(self.path, [self.path / name for name in sorted(tars, key=natural)])

    @staticmethod
    def _without_images(labels: _Labels, readable: set[str]) -> str:
        """In words, the classes all of whose pictures are unreadable."""
        had, have = set(labels.of.values()), {number for name, number in labels.of.items() if name in readable}
        lost = ", ".join(labels.classes[number] for number in sorted(had - have))
        return f"\n  No image is left of the classes: {lost}" if lost else ""

    @staticmethod
    def _numbered(labels: _Labels, names: list[str]) -> tuple[torch.Tensor | None, tuple[str, ...]]:
        """Labels and classes of these images; a folder without images is no class, a number of dataset.json stays."""
        if not labels.of:
            return None, ()
        numbers, classes = [labels.of[name] for name in names], labels.classes
        if labels.origin == _BY_FOLDER:
            used = sorted(set(numbers))
            if len(used) == 1:
                return None, ()
            place = {number: k for k, number in enumerate(used)}
            numbers, classes = [place[number] for number in numbers], tuple(classes[number] for number in used)
        return torch.tensor(numbers), classes

    def _labels(self, container: Container, names: list[str]) -> _Labels:
        """The label of every image, the classes' names, and in words where they come from."""
        folders = [PurePosixPath(name).parent for name in names]
        top = PurePosixPath(posixpath.commonpath(folders))  # zip files often hold one folder that holds everything
        for parent in (top, *top.parents):
            if (listing := (parent / "dataset.json").as_posix()) in container.stamps:
                return self._labels_from_json(container, listing, names)
        beside = {
            name: folder / f"{PurePosixPath(name).name.partition('.')[0]}.cls"
            for name, folder in zip(names, folders, strict=True)
        }
        if any(file.as_posix() in container.stamps for file in beside.values()):
            return self._labels_beside(container, {name: file.as_posix() for name, file in beside.items()})
        inside = [folder.relative_to(top).parts[:1] for folder in folders]
        if len(set(inside)) == 1:
            return _Labels({}, (), "unlabelled")
        if () in inside:
            return _Labels({}, (), "unlabelled because some images lie beside the subfolders")
        found = {part for (part,) in inside}
        # One name can be written in two ways, with an accent or with a letter and an accent.
        same = {part: unicodedata.normalize("NFC", part) for part in found}
        classes = tuple(sorted(set(same.values()), key=natural))
        splits = [name for name in classes if name.lower() in _SPLIT_NAMES]
        trained = {name for name in splits if name.lower() in _TRAINING_NAMES}  # alone it may be a class of vehicles
        if len(splits) == len(classes) or trained not in (set(), set(splits)):
            raise UserError(
                f"data.path={self.path}: its subfolders {', '.join(splits)} are splits, not classes. The splits are "
                f"made here: point data.path at one of them, for instance data.path={self.path / top / splits[0]}."
            )
        empty = {
            folder.relative_to(top).parts[0]
            for folder in map(PurePosixPath, container.folders)
            if folder != top and folder.is_relative_to(top)
        } - found
        empty = {name for name in empty if not name.startswith(".") and not of_a_system(name)}
        notices = [f"without images, so no classes: {', '.join(sorted(empty, key=natural)[:10])}"] if empty else []
        if len(classes) < len(found):
            notices.append("subfolders whose names differ in the encoding of their accents alone are one class")
        number = {name: k for k, name in enumerate(classes)}
        of = {name: number[same[part]] for name, (part,) in zip(names, inside, strict=True)}
        return _Labels(of, classes, _BY_FOLDER, tuple(notices))

    def _labels_beside(self, container: Container, files: dict[str, str]) -> _Labels:
        """From the file beside each image that holds its class as a number."""
        of = {}
        for name, file in files.items():
            try:
                with container.open(file) as opened:
                    of[name] = int(opened.read(64))
                if not 0 <= of[name] < len(files):
                    raise ValueError(f"class {of[name]}")
            except Exception as error:  # it is missing, or whatever a container raises
                raise UserError(
                    f"data.path={self.path}: the class of {name} is to be had from {file}: a number, 0, 1, ... without "
                    f"gaps ({error}). Mend that file, or remove the .cls files."
                ) from None
        return _Labels(of, tuple(map(str, range(max(of.values()) + 1))), "labelled by .cls files")

    def _labels_from_json(self, container: Container, listing: str, names: list[str]) -> _Labels:
        where = f"data.path={self.path}: {listing}"
        parent = PurePosixPath(listing).parent
        try:
            with container.open(listing) as file:
                content = file.read()
        except Exception as error:  # a zip's password, compression, checksum; permissions
            raise UserError(f"{where} cannot be read ({error}). Repair or remove it.") from None
        given: dict[str, int] = {}
        try:
            pairs = _Listing.model_validate(json.loads(content)).labels or []
        except (ValueError, RecursionError) as error:
            reason = str(error)
            if isinstance(error, ValidationError):
                wrong = error.errors()[0]
                reason = f"{'.'.join(map(str, wrong['loc']))}={wrong['input']!r:.80}: {wrong['msg']}"
            raise UserError(
                f"{where} is not of the form {{'labels': [['name', class], ...]}} with classes 0, 1, ... ({reason}). "
                "Repair or remove it."
            ) from None
        for name, label in pairs:
            key = _same_name((parent / name.replace("\\", "/")).as_posix())
            if given.setdefault(key, label) != label:
                raise UserError(f"{where} gives {key} two labels, {given[key]} and {label}. Leave one.")
        if not given:
            return _Labels({}, (), f"unlabelled as {listing} says")
        missing = [name for name in names if _same_name(name) not in given]
        if missing:
            raise UserError(
                f"{where} has no label for {len(missing):,} of {len(names):,} images, such as {missing[0]}. "
                "Add them, or remove the images."
            )
        of = {name: given[_same_name(name)] for name in names}
        largest = max(of, key=lambda name: of[name])
        if of[largest] >= len(names):
            raise UserError(
                f"{where} gives {largest} the label {of[largest]}, but {len(names):,} images cannot be of more classes "
                "than that. Number the classes 0, 1, ... without gaps."
            )
        gone = list(given.keys() - map(_same_name, names))
        notices = [f"{listing} labels {len(gone):,} images that are not there, such as {min(gone)}"] if gone else []
        return _Labels(of, tuple(map(str, range(of[largest] + 1))), f"labelled by {listing}", tuple(notices))


@dataclass(frozen=True)
class Listed:
    """Images that are not decoded yet.

    Args:
        container: their bytes.
        names: theirs, sorted.
        labels: int64 (n,), or ``None``.
        classes: their names.
        origin: in words, where the labels come from.
    """

    container: Container
    names: list[str]
    labels: torch.Tensor | None
    classes: tuple[str, ...]
    origin: str


class _Listing(BaseModel):
    """The content of a dataset.json."""

    labels: list[tuple[StrictStr, Annotated[StrictInt, Field(ge=0)]]] | None


_BY_FOLDER = "labelled by subfolder"


def _same_name(name: str) -> str:
    """A name as it is compared: macOS and others write accents differently."""
    return unicodedata.normalize("NFC", posixpath.normpath(name))
