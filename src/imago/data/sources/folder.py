"""Your own images: a folder or a zip file of any of the usual formats, sizes and modes.

Labels come from ``dataset.json`` as NVlabs' StyleGAN tools write it, {"labels": [["00000/img00000000.png", 3], ...]} or
{"labels": null}; without it from the names of the class folders; images that all lie in one folder have none.
(https://github.com/NVlabs/stylegan3, dataset_tool.py.)

Images are decoded once, by a pool of threads, into one file of uint8 that is memory-mapped from then on: data larger
than the memory streams, and an unchanged folder is never decoded again. The file lies in DIRECTORY/cache, under a name
made of the folder's and of a hash over every file's name, size and date and over the settings.
"""

import hashlib
import json
import math
import os
import posixpath
import shutil
import sys
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Len
from pydantic import PositiveInt
from rich.console import Console
from rich.progress import track

from imago.data.base import ImageSet, Source, Splits, data_directory, fixed_permutation
from imago.data.decode import Fit, Header, ImageFile, decode, read_header
from imago.errors import UserError

Size = PositiveInt | Annotated[Sequence[PositiveInt], Len(2, 2)]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
_SHOWN = 10  # of a list of bad files
_CHUNK = 1024  # files handed to the threads at a time, which bounds what waits in memory
_LONG = 2000  # files from which on a progress bar is worth its lines


class _Container(ABC):
    """The files of a folder or of a zip: their names, what tells that they changed, and their bytes."""

    stamps: dict[str, str]  # name relative to the container, with forward slashes -> size and date or checksum

    @abstractmethod
    def open(self, name: str) -> ImageFile:
        """The file's bytes."""


class _FolderFiles(_Container):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.stamps = {}
        for parent, _, names in os.walk(path, followlinks=True, onerror=self._refuse):
            for name in names:
                file = Path(parent, name)
                status = file.stat() if file.exists() else file.lstat()  # a dangling link is an unreadable file
                self.stamps[file.relative_to(path).as_posix()] = f"{status.st_size} {status.st_mtime_ns}"

    def _refuse(self, error: OSError) -> None:
        raise UserError(f"data.path={self.path}: a folder cannot be read ({error}). Change its permissions.")

    def open(self, name: str) -> ImageFile:
        return (self.path / name).open("rb")


class _ZipFiles(_Container):
    def __init__(self, path: Path) -> None:
        try:
            self.archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UserError(f"data.path={path}: is neither a folder nor a zip file ({error}).") from None
        entries = [entry for entry in self.archive.infolist() if not entry.is_dir()]
        self.stamps = {entry.filename: f"{entry.file_size} {entry.CRC:08x}" for entry in entries}

    def open(self, name: str) -> ImageFile:
        return BytesIO(self.archive.read(name))


class Folder(Source):
    """Any folder or zip file of images.

    A tenth of the images each, at least one, is validation and test; the three are slices of a fixed permutation of the
    sorted names.

    Args:
        path: the folder or zip file.
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
        self.path = Path(path).expanduser()
        if not self.path.exists():
            raise UserError(f"data.path={path}: there is no such folder or zip file.")
        height, width = (size, size) if size is None or isinstance(size, int) else size
        self.size = None if height is None or width is None else (height, width)
        self.fit: Fit = fit
        self.channels = channels
        self.on_bad = on_bad
        self.name = self.path.resolve().stem if self.path.is_file() else self.path.resolve().name

    def load(self, directory: Path) -> Splits:
        """Lists the images, decodes them into DIRECTORY/cache unless that was done before, and maps the result."""
        container = _FolderFiles(self.path) if self.path.is_dir() else _ZipFiles(self.path)
        names = self._image_names(container)
        labels, classes, origin = self._labels(container, names)
        # In the order of the permutation, so that the splits of the decoded file are slices, which stay memory-mapped.
        names = [names[k] for k in fixed_permutation(len(names))]
        settings = {"size": self.size, "fit": self.fit, "channels": self.channels}
        key = hashlib.sha256(json.dumps([settings, [(name, container.stamps[name]) for name in names]]).encode())
        cache = data_directory(directory) / "cache" / f"{self.name}-{key.hexdigest()[:12]}.npy"
        if not cache.exists():
            self._decode_into(cache, container, names)
        bad = json.loads(cache.with_suffix(".json").read_text())["unreadable"]
        if bad and self.on_bad == "refuse":
            raise UserError(
                f"data.path={self.path}: {_bad_files(bad)}\nAll of them are listed in {cache.with_suffix('.json')}. "
                "Repair or remove them, or set data.on_bad=skip."
            )
        if bad:
            print(f"data.on_bad=skip: leaving out {_bad_files(bad)}", file=sys.stderr)
        names = [name for name in names if name not in bad]
        if len(names) < 3:
            raise UserError(f"data.path={self.path}: {len(names)} images; training, validation and test need one each.")
        images = torch.from_numpy(np.load(cache, mmap_mode="c")[: len(names)])  # "c": a read-only map warns in torch
        everything = ImageSet(images, None if labels is None else torch.tensor([labels[name] for name in names]))
        n_held = max(1, len(names) // 10)
        train, val, test = map(everything.part, (slice(-2 * n_held), slice(-2 * n_held, -n_held), slice(-n_held, None)))
        return Splits(
            train,
            val,
            test,
            classes,
            description=f"{self.name}: train, val, test = the first {len(train):,}, the next {len(val):,} and the last "
            f"{len(test):,} of a fixed permutation of the {len(names):,} images of {self.path}, "
            f"{f'{len(bad):,} unreadable ones left out, ' if bad else ''}{origin}",
        )

    def _image_names(self, container: _Container) -> list[str]:
        names = sorted(
            name
            for name in container.stamps
            if PurePosixPath(name).suffix.lower() in _SUFFIXES
            and not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
        )
        if not names:
            found = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in container.stamps)
            listed = ", ".join(f"{count} {suffix}" for suffix, count in found.most_common(5)) or "nothing"
            raise UserError(
                f"data.path={self.path}: holds no images (found: {listed}). "
                f"Image files are those named {' '.join(_SUFFIXES)}."
            )
        return names

    def _labels(self, container: _Container, names: list[str]) -> tuple[dict[str, int] | None, tuple[str, ...], str]:
        """The label of every image or ``None``, the classes' names, and in words where they come from."""
        folders = [PurePosixPath(name).parent for name in names]
        top = PurePosixPath(posixpath.commonpath(folders))  # zip files often hold one folder that holds everything
        for parent in (top, *top.parents):
            if (listing := (parent / "dataset.json").as_posix()) in container.stamps:
                return self._labels_from_json(container, listing, names)
        inside = [folder.relative_to(top).parts[:1] for folder in folders]
        if len(set(inside)) == 1:
            return None, (), "unlabelled"
        if () in inside:
            return None, (), "unlabelled because some images lie beside the subfolders"
        classes = tuple(sorted({part for (part,) in inside}))
        if {name.lower() for name in classes} <= _SPLIT_NAMES:
            raise UserError(
                f"data.path={self.path}: its subfolders {', '.join(classes)} are splits, not classes. The splits are "
                f"made here: point data.path at one of them, for instance data.path={self.path / top / classes[0]}."
            )
        number = {name: k for k, name in enumerate(classes)}
        return (
            {name: number[part] for name, (part,) in zip(names, inside, strict=True)},
            classes,
            "labelled by subfolder",
        )

    def _labels_from_json(
        self, container: _Container, listing: str, names: list[str]
    ) -> tuple[dict[str, int] | None, tuple[str, ...], str]:
        where = f"data.path={self.path}: {listing}"
        try:
            with container.open(listing) as file:
                pairs = json.loads(file.read())["labels"]
            parent = PurePosixPath(listing).parent
            labels = {(parent / name).as_posix(): label for name, label in pairs or ()}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where} is not of the form {{'labels': [['name', class], ...]}} ({error!r}).") from None
        if not labels:
            return None, (), f"unlabelled as {listing} says"
        missing = [name for name in names if name not in labels]
        if missing:
            raise UserError(
                f"{where} has no label for {len(missing):,} of {len(names):,} images, such as {missing[0]}. "
                "Add them, or remove the images."
            )
        wrong = [name for name in names if type(labels[name]) is not int or labels[name] < 0]
        if wrong:
            raise UserError(
                f"{where} gives {wrong[0]} the label {labels[wrong[0]]!r}; expected a class number 0, 1, ..."
            )
        classes = tuple(str(k) for k in range(max(labels[name] for name in names) + 1))
        return {name: labels[name] for name in names}, classes, f"labelled by {listing}"

    def _decode_into(self, cache: Path, container: _Container, names: list[str]) -> None:
        """Decode all images into the .npy file ``cache``; the unreadable ones go into a .json beside it."""
        headers = dict(_in_threads(lambda name: _attempt(read_header, container, name), names, "Looking at images"))
        bad = {name: header for name, header in headers.items() if isinstance(header, str)}
        good = {name: header for name, header in headers.items() if isinstance(header, Header)}
        if not good:
            raise UserError(f"data.path={self.path}: {_bad_files(bad)}")
        height, width = self.size or self._common_size(good)
        channels = self.channels or (1 if all(header.gray for header in good.values()) else 3)

        def read(file: ImageFile) -> np.ndarray:
            return decode(file, channels, height, width, self.fit)

        partial = cache.with_suffix(f".{os.getpid()}.part")
        rows = _new_array(partial, (len(good), channels, height, width))
        try:
            row = 0
            for name, pixels in _in_threads(lambda name: _attempt(read, container, name), list(good), "Decoding"):
                if isinstance(pixels, str):
                    bad[name] = pixels
                else:
                    rows[row] = pixels
                    row += 1
            rows.flush()
            cache.with_suffix(".json").write_text(json.dumps({"path": str(self.path), "unreadable": bad}, indent=1))
            partial.replace(cache)
        finally:
            partial.unlink(missing_ok=True)

    def _common_size(self, headers: dict[str, Header]) -> tuple[int, int]:
        first: dict[tuple[int, int], str] = {}
        for name, header in headers.items():
            first.setdefault((header.height, header.width), name)
        if len(first) > 1:
            examples = ", ".join(f"{name} is {height}x{width}" for (height, width), name in list(first.items())[:3])
            raise UserError(
                f"data.size=null: the images of {self.path} have {len(first)} sizes ({examples}; height x width). "
                "Set data.size=[HEIGHT,WIDTH], and data.fit to crop or stretch."
            )
        return next(iter(first))


def _new_array(file: Path, shape: tuple[int, int, int, int]) -> np.memmap:
    """A writable .npy file of uint8, mapped into memory."""
    needed = math.prod(shape)
    try:
        file.parent.mkdir(exist_ok=True)
        free = shutil.disk_usage(file.parent).free
        if needed < free:  # asked before, because a map that outgrows its disk kills the process
            return np.lib.format.open_memmap(file, "w+", np.uint8, shape)
        reason = f"it has {free / 1e9:.1f} GB free"
    except OSError as error:
        reason = str(error)
    raise UserError(
        f"data.dir: {file.parent} cannot take the decoded images, {needed / 1e9:.1f} GB ({reason}). "
        "Set data.dir to a folder that can be written and has the room, or make data.size smaller."
    )


def _attempt(read: Callable[[Any], Any], container: _Container, name: str) -> Any:
    """What ``read`` makes of a file, or in words why it could not."""
    try:
        with container.open(name) as file:
            return read(file)
    except Exception as error:  # decoders raise whatever a file's bytes lead them to: a dozen types, none documented
        return f"{type(error).__name__}: {error}"


def _in_threads(work: Callable[[str], Any], names: list[str], title: str) -> Iterator[tuple[str, Any]]:
    """(name, work(name)) in order. Threads suffice: decoders release the interpreter's lock."""
    chunks = [names[first : first + _CHUNK] for first in range(0, len(names), _CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = (pair for chunk in chunks for pair in zip(chunk, pool.map(work, chunk), strict=True))
        yield from track(
            done, title, total=len(names), console=Console(stderr=True), transient=True, disable=len(names) < _LONG
        )


def _bad_files(bad: dict[str, str]) -> str:
    shown = "".join(f"\n  {name}: {fault}" for name, fault in sorted(bad.items())[:_SHOWN])
    more = f"\n  and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
    return f"{len(bad):,} unreadable image file{'s' if len(bad) > 1 else ''}:{shown}{more}"
