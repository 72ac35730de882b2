"""Where results that take long are kept between runs."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from imago.errors import UserError
from imago.files import remove_litter, replacing
from imago.paths import check_whole
from imago.untrusted import first_line


class Cache:
    """A folder of files, each written whole or not at all, inside the data directory.

    A data directory may be read-only, or not exist for data that need no files: then ``logs/.cache`` takes its place.
    Files are looked for in both.

    Args:
        directory: the data directory; never created.
        name: of the folder in it.
    """

    def __init__(self, directory: Path, name: str = "cache") -> None:
        self.folders = (directory / name, Path("logs") / ".cache")

    def find(self, name: str) -> Path | None:
        """The file of this name, if there is one."""
        return next((folder / name for folder in self.folders if (folder / name).is_file()), None)

    def place(self, name: str) -> Path:
        """Where a file of this name is to be written: in the first folder that can be written to.

        Raises:
            UserError: there is none.
        """
        for folder in self.folders:
            if folder.parent.is_dir() or folder is self.folders[-1]:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError:
                    continue  # read-only, so the next one
                if os.access(folder, os.W_OK):
                    return folder / name
        folders = " nor ".join(str(folder) for folder in self.folders)
        raise UserError(
            f"data.dir={self.folders[0].parent}: neither {folders} can be written to. Make one of them writable."
        )

    def load(self, name: str, check: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any] | None:
        """What was saved under ``name``, on the CPU; ``None`` when there is nothing or only a damaged file.

        Args:
            name: of the file.
            check: raises an error for content that cannot be used.
        """
        path = self.find(name)
        if path is None:
            return None
        try:
            check_whole(path)
            content = torch.load(path, weights_only=True, map_location="cpu")
            if not isinstance(content, dict):
                raise ValueError("no table")
            if check is not None:
                check(content)
        except Exception as error:  # whatever the bytes lead the unpickler to
            reason = first_line(error) if isinstance(error, ValueError) else type(error).__name__
            print(f"{path}: is damaged ({reason}); computed anew", file=sys.stderr)
            return None
        return content

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write tensors and plain values; where they cannot be kept, that is said and they are computed again."""
        try:
            path = self.place(name)
            remove_litter(path.parent)
            save_atomically(path, content)
        except (OSError, UserError) as error:
            print(f"{name} cannot be kept for the next run: {error}", file=sys.stderr)


def check_tensors(content: Mapping[str, Any], expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    """Refuse whatever is not the tensors that are expected, by their names, or holds numbers that are not finite.

    Raises:
        ValueError: naming the tensor.
    """
    for name, (dtype, shape) in expected.items():
        tensor = content.get(name)
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype or tensor.shape != shape:
            raise ValueError(f"{name} is no {dtype} of shape {shape}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")


def save_atomically(path: Path, content: dict[str, Any]) -> None:
    """``torch.save`` in the place of ``path``: readers see the old file or the new one."""
    with replacing(path) as file:
        torch.save(content, file)
