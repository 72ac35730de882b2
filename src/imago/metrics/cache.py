"""Where results that take long are kept between runs."""

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch

from imago.errors import UserError


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

    def load(self, name: str) -> dict[str, Any] | None:
        """What was saved under ``name``, on the CPU; ``None`` when there is nothing or only a damaged file."""
        path = self.find(name)
        if path is None:
            return None
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError):
            return None  # damaged: the caller computes it again and replaces it
        return content if isinstance(content, dict) else None

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write tensors and plain values."""
        save_atomically(self.place(name), content)


def save_atomically(path: Path, content: dict[str, Any]) -> None:
    """``torch.save`` to a temporary file beside ``path``, then rename: readers see the old file or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(content, file)
        Path(temporary).chmod(0o644)  # mkstemp's files are private, a cache is to be shared
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
