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
from imago.images import Images, ImageSpec, Labels
from imago.paths import SETTINGS, unwritable
from imago.pictures import picture_of, to_pillow
from imago.runs import differences, write_atomically


class Output(ABC):
    """Where numbered images go.

    Args:
        path: of the file or folder, which :func:`~imago.paths.check_sample_place` has seen.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def begin(self, settings: Mapping[str, Any], spec: ImageSpec, n: int, labels: Labels | None) -> list[int]:
        """Say what is coming.

        Args:
            settings: all that the images depend on, beside their numbers; plain types.
            spec: their shape.
            n: how many images there shall be.
            labels: the class of each, (n,), of a conditional model.

        Returns:
            The numbers of the images that are not there yet, rising.

        Raises:
            UserError: images of other settings or of another shape are there.
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
        self.images: list[Images] = []
        self.labels: Labels | None = None

    def begin(self, settings: Mapping[str, Any], spec: ImageSpec, n: int, labels: Labels | None) -> list[int]:
        """See :meth:`Output.begin`; a file is always written anew."""
        self.labels = labels
        return list(range(n))

    def add(self, numbers: list[int], images: Images) -> None:
        """See :meth:`Output.add`."""
        self.images.append(images.cpu())

    def end(self) -> None:
        """Write the file; an older one stays until the new one is complete."""
        try:
            with _replacing(self.path) as unfinished:
                self.write(unfinished, torch.cat(self.images))
        except OSError as error:
            raise unwritable(self.path, error) from None

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

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.labels: Labels | None = None

    def begin(self, settings: Mapping[str, Any], spec: ImageSpec, n: int, labels: Labels | None) -> list[int]:
        """See :meth:`Output.begin`."""
        self.labels = labels
        file, new = self.path / SETTINGS, json.loads(json.dumps(settings))
        if file.exists():
            try:
                old = json.loads(file.read_text())
            except (ValueError, OSError):
                old = None
            if not isinstance(old, dict):
                raise UserError(f"out={self.path}: its {SETTINGS} cannot be read; choose another folder")
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
            raise unwritable(self.path, error) from None
        return [number for number in range(n) if not self._is_there(number, spec)]

    def add(self, numbers: list[int], images: Images) -> None:
        """See :meth:`Output.add`."""
        unfinished = self.path / f".unfinished.{os.getpid()}"  # of this process alone: another may draw the same
        try:
            for number, image in zip(numbers, images.cpu(), strict=True):
                to_pillow(image).save(unfinished, "PNG")
                unfinished.replace(self._file(number))
        except OSError as error:
            raise unwritable(self.path, error) from None

    def end(self) -> None:
        """Every image is there already."""

    def _is_there(self, number: int, spec: ImageSpec) -> bool:
        """Whether an image has been drawn: damaged ones are drawn again, somebody's other pictures are not touched."""
        path = self._file(number)
        found = _whole(path)
        expected = (spec.width, spec.height), "L" if spec.channels == 1 else "RGB"
        if found is not None and found != expected:
            there, wanted = (f"{w}x{h} pixels, {mode}" for (w, h), mode in (found, expected))
            raise UserError(
                f"out={self.path}: {path.relative_to(self.path)} is another picture ({there}) than the model's images "
                f"({wanted}); move it away, or choose another folder"
            )
        return found is not None

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
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _whole(path: Path) -> tuple[tuple[int, int], str] | None:
    """Of a PNG with all its parts and their check sums: (width, height) and Pillow's mode; else ``None``."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            found = picture.size, picture.mode
            picture.verify()
    except (OSError, SyntaxError, ValueError, struct.error):  # Pillow says the latter of damaged files
        return None
    return found if content.endswith(b"IEND\xaeB`\x82") else None  # its check sum is not looked at


# By the ending of the path; :data:`imago.paths.ENDINGS` are these.
OUTPUTS: dict[str, type[Output]] = {".png": Grid, ".npz": Arrays, "": Folder}
