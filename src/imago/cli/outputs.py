"""Images as files for people and other programs: grids, arrays, folders that can be continued."""

import io
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from imago.errors import UserError
from imago.files import remove_litter, replacing, write_text
from imago.images import Images, ImageSpec, Labels
from imago.legacy import today
from imago.paths import SETTINGS, writing_to
from imago.pictures import picture_of, to_pillow
from imago.runs import differences
from imago.untrusted import read_bytes, read_json


class File:
    """One file of all images, which are kept in memory until the end.

    Args:
        path: of the file, which :func:`~imago.paths.check_sample_place` has seen. A PNG is one picture, about square,
            of all images, those of labels that were asked for in columns of their own. A NumPy archive holds ``images``
            uint8 (n, height, width, channels), or ``tokens`` in this shape, or ``points`` float32 (n, d); of a
            conditional model also ``labels`` (n,) and, where they are known, the names of all ``classes``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: list[Images] = []

    def begin(self, settings: Mapping[str, Any], spec: ImageSpec, n: int, labels: Labels | None) -> list[int]:
        """See :meth:`Folder.begin`; a file is always written anew."""
        self.spec, chosen = spec, settings.get("labels")
        self.in_turn = len(chosen) if isinstance(chosen, list) else 1  # labels that the images take in turn
        self.arrays = {} if labels is None else {"labels": labels.cpu().numpy()}
        if labels is not None and spec.class_names:
            self.arrays["classes"] = np.array(spec.class_names)
        return list(range(n))

    def add(self, numbers: list[int], images: Images) -> None:
        """See :meth:`Folder.add`."""
        self.images.append(images.cpu())

    def end(self) -> None:
        """Write the file; an older one stays until the new one is complete."""
        images = torch.cat(self.images)
        with writing_to(self.path), replacing(self.path) as file:
            if self.path.suffix == ".png":
                picture_of(*side_by_side(images, self.in_turn)).save(file, "PNG")
            else:
                name = {"pixels": "images"}.get(self.spec.kind, self.spec.kind)
                drawn = images.flatten(1) if name == "points" else images.permute(0, 2, 3, 1)
                arrays = {name: drawn.contiguous().numpy(), **self.arrays}
                np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy's stubs take the names for flags


def side_by_side(
    images: UInt8[Tensor, "n channels height width"], in_turn: int
) -> tuple[UInt8[Tensor, "cells channels height width"], int]:
    """Images that take classes in turn, as cells of a grid about square in which each class has columns of its own.

    Args:
        images: (n, C, H, W), the first of the first class, the second of the second, and so on.
        in_turn: number of classes.

    Returns:
        the cells in rows, white where there is no image, and the number of columns.
    """
    n = len(images)
    each = math.ceil(n / in_turn)
    width = math.ceil(math.sqrt(n)) if in_turn == 1 else max(1, round(math.sqrt(n) / in_turn))
    number = torch.arange(n)
    which, place = number % in_turn, number // in_turn
    cells = images.new_full((math.ceil(each / width) * in_turn * width, *images.shape[1:]), 255)
    cells[place // width * in_turn * width + which * width + place % width] = images
    return cells, in_turn * width


class Folder:
    """A PNG for each image, named by its number and, for a conditional model, in a subfolder of its class,
    ``3-cat``: read as a folder of images, classes have the labels that they have here, if none is missing.

    Every image is written when it is added, whole or not at all. ``settings.json`` says what the images depend on; a
    folder is continued with the same settings only, and what is there is not drawn again.

    Args:
        path: of the folder, which :func:`~imago.paths.check_sample_place` has seen.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.labels: Labels | None = None
        self.class_folders: dict[int, str] = {}

    def begin(self, settings: Mapping[str, Any], spec: ImageSpec, n: int, labels: Labels | None) -> list[int]:
        """Say what is coming.

        Args:
            settings: all that the images depend on, beside their numbers; plain types.
            spec: their shape.
            n: number of images in the end.
            labels: the class of each, (n,), of a conditional model.

        Returns:
            The numbers of the images that are not there yet, rising.

        Raises:
            UserError: images of other settings or of another shape are there.
        """
        self.labels = labels
        self.class_folders = {
            label: spec.class_folder(label) for label in set([] if labels is None else labels.tolist())
        }
        file, new = self.path / SETTINGS, json.loads(json.dumps(settings))
        if file.exists():
            try:
                old = today(read_json(file))
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
        with writing_to(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(new, indent=2) + "\n")
            remove_litter(self.path)
            for name in self.class_folders.values():
                (self.path / name).mkdir(exist_ok=True)
                remove_litter(self.path / name)
        return [number for number in range(n) if not self._is_there(number, spec)]

    def add(self, numbers: list[int], images: Images) -> None:
        """Take images, uint8 (n, C, H, W) with values 0..255, which are numbered as :meth:`begin` said."""
        with writing_to(self.path):
            for number, image in zip(numbers, images.cpu(), strict=True):
                with replacing(self._file(number), durable=False) as file:
                    to_pillow(image).save(file, "PNG")

    def end(self) -> None:
        """Every image is there already."""

    def _is_there(self, number: int, spec: ImageSpec) -> bool:
        """Whether an image has been drawn: damaged ones are drawn again, somebody's other pictures are not touched."""
        path = self._file(number)
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            what = "a folder" if path.is_dir() else "a pipe or a device"
            raise UserError(
                f"out={self.path}: {path.relative_to(self.path)} is {what}; move it away, or choose another folder"
            )
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
        folder = self.path if self.labels is None else self.path / self.class_folders[int(self.labels[number])]
        return folder / f"{number:06d}.png"


def _whole(path: Path) -> tuple[tuple[int, int], str] | None:
    """Of a PNG with all its parts and their check sums: (width, height) and Pillow's mode; else ``None``."""
    try:
        content = read_bytes(path)
        with Image.open(io.BytesIO(content)) as picture:
            found = picture.size, picture.mode
            picture.verify()
    except (OSError, SyntaxError, ValueError, struct.error):  # Pillow says the latter of damaged files
        return None
    return found if content.endswith(b"IEND\xaeB`\x82") else None  # its check sum is not looked at


# By the ending of the path; :data:`imago.paths.ENDINGS` are these.
OUTPUTS: dict[str, type[File | Folder]] = {".png": File, ".npz": File, "": Folder}
