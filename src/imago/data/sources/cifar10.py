"""CIFAR-10: 60,000 photographs, 32x32 RGB, ten classes.

Reference: A. Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". The archive
cifar-10-binary.tar.gz unpacks to cifar-10-batches-bin/ with data_batch_1.bin ... data_batch_5.bin and test_batch.bin,
each of 10,000 records of 3,073 bytes: one label 0..9, then 1,024 red, 1,024 green and 1,024 blue values, row by row.
The python version, which torchvision downloads, has cifar-10-batches-py/ with data_batch_1 ... test_batch: pickles of a
dictionary of ``data``, uint8 (10000, 3072) in the same order, and ``labels``.
"""

import pickle
import shutil
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imago.data.base import ImageSet, Source, Splits, check_file, damaged, data_directory, fixed_permutation
from imago.data.download import Download, fetch
from imago.files import one_at_a_time, remove_litter, replacing
from imago.paths import writing_to

RECORDS = 10_000
_RECORD = 1 + 3 * 32 * 32
_FOLDER = "cifar-10-batches-bin"
_PYTHON_FOLDER = "cifar-10-batches-py"
_BATCHES = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
_BINARY = tuple(f"{name}.bin" for name in _BATCHES)
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
        """Reads the files of either version in DIRECTORY; fetches and unpacks the binary one if neither is complete."""
        folder, pickled = data_directory(directory) / _FOLDER, directory / _PYTHON_FOLDER
        if not _complete(folder, _BINARY) and _complete(pickled, _BATCHES):
            *batches, test = [_read_pickle(pickled / name) for name in _BATCHES]
        else:
            if not _complete(folder, _BINARY):
                self._unpack(folder)
            *batches, test = [_read(folder / name) for name in _BINARY]
        records = np.concatenate(batches)
        return Splits(
            train=_image_set(records[fixed_permutation(len(records))]),
            val=len(records) // 10,
            test=_image_set(test),
            classes=self.classes,
            description="images of a fixed permutation of data_batch_1..5, test = test_batch",
        )

    def _unpack(self, folder: Path) -> None:
        waiting = f"{folder}: another process unpacks it; waiting"
        with writing_to(folder, "data.dir"), one_at_a_time(folder, waiting):
            folder.mkdir(exist_ok=True)
            if _complete(folder, _BINARY):
                return
            remove_litter(folder)
            instead = f"or unpack it there, so that {folder / _BINARY[0]} exists"
            archive = fetch(self.archive, folder.parent, instead=instead)
            try:
                with tarfile.open(archive) as tar:
                    for member in tar:
                        if (content := tar.extractfile(member)) is not None:  # of a folder
                            with replacing(folder / Path(member.name).name) as file:
                                shutil.copyfileobj(content, file)
            except (tarfile.TarError, zlib.error, EOFError) as error:
                raise damaged(archive, f"cannot be unpacked ({error})") from None
            archive.unlink()


def _complete(folder: Path, names: Iterable[str]) -> bool:
    return all((folder / name).exists() for name in names)


def _read(file: Path) -> np.ndarray:
    """The records of one batch file, uint8 (10000, 3073)."""
    check_file(file)
    content, expected = np.fromfile(file, np.uint8), RECORDS * _RECORD
    largest = content[::_RECORD].max(initial=0)
    if len(content) != expected or largest > 9:
        raise damaged(
            file,
            f"has {len(content):,} bytes and labels up to {largest}, expected {expected:,} ({RECORDS:,} records of "
            f"{_RECORD:,}) and 0..9",
        )
    return content.reshape(RECORDS, _RECORD)


class _Unpickler(pickle.Unpickler):
    """Reads arrays and plain data, and constructs nothing else: pickles may run code."""

    def find_class(self, module: str, name: str) -> Any:
        found = _ARRAYS.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return found


_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def _read_pickle(file: Path) -> np.ndarray:
    """The records of one batch file of the python version, as of the binary one."""
    check_file(file)
    try:
        with file.open("rb") as stream:
            content = _Unpickler(stream, encoding="latin1").load()
        data, labels = content["data"], np.array(content["labels"])
        fits = data.dtype == np.uint8 and data.shape == (RECORDS, _RECORD - 1) and labels.shape == (RECORDS,)
        if not fits or labels.dtype.kind != "i" or not 0 <= labels.min() <= labels.max() <= 9:
            raise ValueError(f"data {data.dtype} {data.shape}, labels {labels.dtype} {labels.shape}")
    except Exception as error:  # whatever the bytes of a pickle lead to
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        what = f"is no batch of CIFAR-10's python version ({reason:.200}), data uint8 ({RECORDS}, 3072) and labels 0..9"
        raise damaged(file, what, "Delete it to have the binary version fetched") from None
    return np.column_stack([labels.astype(np.uint8), data])


def _image_set(records: np.ndarray) -> ImageSet:
    images = records[:, 1:].reshape(-1, 3, 32, 32)
    return ImageSet(torch.from_numpy(images), torch.from_numpy(records[:, 0].astype(np.int64)))
