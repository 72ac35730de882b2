"""CIFAR-10, binary version: 60,000 photographs, 32x32 RGB, ten classes.

Reference: A. Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". The archive
cifar-10-binary.tar.gz unpacks to cifar-10-batches-bin/ with data_batch_1.bin ... data_batch_5.bin and test_batch.bin,
each of 10,000 records of 3,073 bytes: one label 0..9, then 1,024 red, 1,024 green and 1,024 blue values, row by row.
"""

import shutil
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from imago.data.base import ImageSet, Source, Splits, check_file, data_directory, fixed_permutation
from imago.data.download import Download, fetch, writing
from imago.errors import UserError
from imago.files import one_at_a_time

RECORDS = 10_000
_RECORD = 1 + 3 * 32 * 32
_FOLDER = "cifar-10-batches-bin"
_TRAIN = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
_TEST = "test_batch.bin"
_ARCHIVE = Download(
    name="cifar-10-binary.tar.gz",
    urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    size=170_052_171,
    md5="c32a1d4ab5d03f1284b67883e8d87530",
)


class CIFAR10(Source):
    """3x32x32, ten classes; 50,000 images for training, of which 5,000 are validation, and 10,000 for test.

    Args:
        url: where to fetch the archive from, instead of its publisher.
    """

    name = "cifar10"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(self, url: str | None = None) -> None:
        self.archive = replace(_ARCHIVE, urls=(url,)) if url else _ARCHIVE

    def load(self, directory: Path) -> Splits:
        """Reads DIRECTORY/cifar-10-batches-bin/*.bin; fetches and unpacks the archive if one of them is missing."""
        folder = data_directory(directory) / _FOLDER
        if not _complete(folder):
            self._unpack(folder)
        records = np.concatenate([_read(folder / name) for name in _TRAIN])
        return Splits(
            train=_image_set(records[fixed_permutation(len(records))]),
            val=len(records) // 10,
            test=_image_set(_read(folder / _TEST)),
            classes=self.classes,
            description="images of a fixed permutation of data_batch_1..5, test = test_batch",
        )

    def _unpack(self, folder: Path) -> None:
        # Unpacked aside and moved file by file: an interruption leaves no half-written file under a final name.
        aside, waiting = (
            folder.with_name(f".{folder.name}.unfinished"),
            f"{folder}: another process unpacks it; waiting",
        )
        with writing(folder.parent, folder.parent), one_at_a_time(folder, waiting):
            if _complete(folder):
                return
            shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
            archive = fetch(
                self.archive, folder.parent, instead=f"or unpack it there, so that {folder / _TRAIN[0]} exists"
            )
            try:
                aside.mkdir()
                with tarfile.open(archive) as tar:
                    tar.extractall(aside, filter="data")
                folder.mkdir(exist_ok=True)
                for file in (aside / _FOLDER).iterdir():
                    file.replace(folder / file.name)
            except (tarfile.TarError, zlib.error, EOFError) as error:
                raise UserError(f"{archive}: is damaged ({error}). Delete it to have it fetched again.") from None
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            archive.unlink()


def _complete(folder: Path) -> bool:
    return all((folder / name).exists() for name in (*_TRAIN, _TEST))


def _read(file: Path) -> np.ndarray:
    """The records of one batch file, uint8 (10000, 3073)."""
    expected = RECORDS * _RECORD
    check_file(file)
    content = np.fromfile(file, np.uint8)
    found = len(content)
    if found != expected:
        raise UserError(
            f"{file}: has {found:,} bytes, expected {expected:,} ({RECORDS:,} records of {_RECORD:,}): it is damaged. "
            "Delete it to have it fetched again."
        )
    records = content.reshape(RECORDS, _RECORD)
    if records[:, 0].max() > 9:
        raise UserError(
            f"{file}: holds the label {records[:, 0].max()}, expected 0..9: it is damaged. "
            "Delete it to have it fetched again."
        )
    return records


def _image_set(records: np.ndarray) -> ImageSet:
    images = records[:, 1:].reshape(-1, 3, 32, 32)
    return ImageSet(torch.from_numpy(images), torch.from_numpy(records[:, 0].astype(np.int64)))
