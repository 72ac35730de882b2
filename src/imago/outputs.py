"""Images as files for people and other programs: grids, arrays, folders that can be continued."""

import io
import json
import math
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imago.errors import UserError
from imago.images import Images, Labels
from imago.pictures import picture_of, to_pillow
from imago.runs import differences, write_atomically


class Output(ABC):
    """Where numbered images go; made before the first is drawn, so that a bad place costs nobody an image.

    Args:
        path: of the file or folder.

    Raises:
        UserError: something else is there.
        OSError: nothing can be written there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def begin(self, settings: Mapping[str, Any], n: int, labels: Labels | None) -> list[int]:
        """Say what is coming.

        Args:
            settings: all that the images depend on, beside their numbers; plain types.
            n: how many images there shall be.
            labels: the class of each, (n,), of a conditional model.

        Returns:
            The numbers of the images that are not there yet, rising.

        Raises:
            UserError: images of other settings are there.
        """

    @abstractmethod
    def add(self, numbers: list[int], images: Images) -> None:
        """Take images, uint8 (n, C, H, W) with values 0..255, which are numbered as :meth:`begin` said."""

    @abstractmethod
    def end(self) -> None:
        """All have been added."""


class File(Output):
    """One file of all images, which are kept in memory until the end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if path.is_dir():
            raise UserError(f"out={path}: is a folder; give another name")
        with _replacing(path):  # nothing is written, the file stays what it was
            pass
        self.images: list[Images] = []
        self.labels: Labels | None = None

    def begin(self, settings: Mapping[str, Any], n: int, labels: Labels | None) -> list[int]:
        """See :meth:`Output.begin`; a file is always written anew."""
        self.labels = labels
        return list(range(n))

    def add(self, numbers: list[int], images: Images) -> None:
        """See :meth:`Output.add`."""
        self.images.append(images.cpu())

    def end(self) -> None:
        """Write the file; an older one stays until the new one is complete."""
        with _replacing(self.path) as unfinished:
            self.write(unfinished, torch.cat(self.images))

    @abstractmethod
    def write(self, path: Path, images: Images) -> None:
        """Write all images, (n, C, H, W), to a path without a suffix."""


class Grid(File):
    """One picture, about square, of all images."""

    def write(self, path: Path, images: Images) -> None:
        """See :meth:`File.write`."""
        picture_of(images, columns=math.ceil(math.sqrt(len(images)))).save(path, "PNG")


class Arrays(File):
    """A NumPy archive: ``images`` uint8 (n, height, width, channels) and, for a conditional model, ``labels`` (n,)."""

    def write(self, path: Path, images: Images) -> None:
        """See :meth:`File.write`."""
        arrays = {"images": images.permute(0, 2, 3, 1).contiguous().numpy()}
        if self.labels is not None:
            arrays["labels"] = self.labels.cpu().numpy()
        with path.open("wb") as file:  # a path would be given a suffix
            np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy's stubs take the names for flags


class Folder(Output):
    """A PNG for each image, named by its number and, for a conditional model, in a subfolder of its class.

    Every image is written when it is added, whole or not at all. ``settings.json`` says what the images depend on; a
    folder is continued with the same settings only, and what is there is not drawn again.
    """

    SETTINGS = "settings.json"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if path.exists() and not path.is_dir():
            raise UserError(
                f"out={path}: is a file, and a name without a suffix means a folder; give another name, .png or .npz"
            )
        others = path.is_dir() and any(not file.name.startswith(".") for file in path.iterdir())
        if others and not (path / self.SETTINGS).is_file():
            raise UserError(
                f"out={path}: a folder with files in it and no {self.SETTINGS}, so nothing says what they are samples "
                "of; choose another folder, or empty it"
            )
        self.labels: Labels | None = None

    def begin(self, settings: Mapping[str, Any], n: int, labels: Labels | None) -> list[int]:
        """See :meth:`Output.begin`."""
        self.labels = labels
        file, new = self.path / self.SETTINGS, json.loads(json.dumps(settings))
        if file.exists():
            try:
                old = json.loads(file.read_text())
            except (ValueError, OSError):
                old = None
            if not isinstance(old, dict):
                raise UserError(f"out={self.path}: its {self.SETTINGS} cannot be read; choose another folder")
            changed = differences(old, new)
            if changed:
                raise UserError(
                    f"out={self.path}: its images were drawn with other settings ({'; '.join(changed[:5])}); give "
                    "those to continue there, or choose another folder"
                )
        try:
            for left in self.path.glob(".unfinished.*"):  # by a kill
                if not _is_running(left.suffix[1:]):
                    left.unlink(missing_ok=True)
            write_atomically(file, json.dumps(new, indent=2) + "\n")
            for label in set() if labels is None else set(labels.tolist()):
                (self.path / str(label)).mkdir(exist_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        return [number for number in range(n) if not _is_whole(self._file(number))]

    def add(self, numbers: list[int], images: Images) -> None:
        """See :meth:`Output.add`."""
        unfinished = self.path / f".unfinished.{os.getpid()}"  # of this process alone: another may draw the same
        try:
            for number, image in zip(numbers, images.cpu(), strict=True):
                to_pillow(image).save(unfinished, "PNG")
                unfinished.replace(self._file(number))
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def end(self) -> None:
        """Every image is there already."""

    def _file(self, number: int) -> Path:
        folder = self.path if self.labels is None else self.path / str(int(self.labels[number]))
        return folder / f"{number:06d}.png"


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name to write to, which takes the place of ``path`` once something has been written there."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.touch()
        yield unfinished
        if unfinished.stat().st_size:
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"out={path}: cannot be written ({error.strerror}); choose another place")


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _is_whole(path: Path) -> bool:
    """Whether a PNG is there, with all its parts and their check sums."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError, struct.error):  # Pillow says the latter of damaged files
        return False
    return content.endswith(b"IEND\xaeB`\x82")  # its check sum is not looked at


OUTPUTS: dict[str, type[Output]] = {".png": Grid, ".npz": Arrays, "": Folder}


def output_for(path: Path) -> Output:
    """What images are given to that shall end up at a path of this suffix.

    Raises:
        UserError: the suffix is none of the known ones, something else is there, or nothing can be written.
    """
    if path.suffix not in OUTPUTS:
        raise UserError(
            f"out={path}: cannot write {path.suffix} files; give a name ending in .png (one picture of all images) or "
            ".npz (arrays), or a name without a suffix (a folder of PNG files)"
        )
    try:
        if not path.parent.is_dir():
            raise UserError(f"out={path}: there is no folder {path.parent}; create it, or choose another place")
        return OUTPUTS[path.suffix](path)
    except OSError as error:
        raise _unwritable(path, error) from None
