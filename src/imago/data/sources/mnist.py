"""MNIST and Fashion-MNIST: 70,000 gray 28x28 images in ten classes, as idx files.

References: Y. LeCun, L. Bottou, Y. Bengio & P. Haffner 1998, "Gradient-based learning applied to document
recognition"; H. Xiao, K. Rasul & R. Vollgraf 2017, "Fashion-MNIST: a novel image dataset for benchmarking machine
learning algorithms".

An idx file is a big-endian header and then bytes: two zeros, 8 (for uint8), the number of dimensions d, d 32-bit
lengths, the values in C order. The four files lie in DIRECTORY/MNIST/raw (or FashionMNIST/raw), as .gz or unpacked.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from imago.data.base import ImageSet, Source, Splits, check_file, damaged, data_directory, fixed_permutation
from imago.data.download import Download, fetch

COUNTS = 60_000, 10_000  # images of the training files and of the t10k files


class _Idx(Source):
    """What the two data sets share; a subclass says where they lie and what their files are."""

    folder: str
    classes: tuple[str, ...]
    urls: tuple[str, ...]
    files: tuple[tuple[str, int, str], ...]  # name, bytes and MD5 of the four .gz files

    def __init__(self, url: str | None = None) -> None:
        self.bases = (url,) if url else self.urls

    def load(self, directory: Path) -> Splits:
        """Reads the four idx files of DIRECTORY; fetches those that are missing."""
        raw = data_directory(directory) / self.folder / "raw"
        self._fetch_missing(directory, raw)
        shapes = [shape for count in COUNTS for shape in ((count, 28, 28), (count,))]
        arrays = [_read(raw / name, shape) for (name, _, _), shape in zip(self.files, shapes, strict=True)]
        whole = _image_set(raw, *arrays[:2])
        return Splits(
            train=whole.part(torch.from_numpy(fixed_permutation(len(whole)))),
            val=len(whole) // 6,
            test=_image_set(raw, *arrays[2:]),
            classes=self.classes,
            description="images of a fixed permutation of the training files, test = the t10k files",
        )

    def _fetch_missing(self, directory: Path, raw: Path) -> None:
        places = {file: raw / file[0] for file in self.files}
        missing = [file for file, place in places.items() if not place.exists() and not _unpacked(place).exists()]
        for k, (name, size, md5) in enumerate(missing):
            urls = tuple(f"{base.rstrip('/')}/{name}" for base in self.bases)
            others = "".join(f", and likewise {other}" for other, _, _ in missing[k + 1 :])
            fetch(Download(f"{self.folder}/raw/{name}", urls, size, md5), directory, instead=f"or unpacked{others}")


class MNIST(_Idx):
    """1x28x28 handwritten digits; 60,000 images for training, of which 10,000 are validation, and 10,000 for test.

    Args:
        url: folder to fetch the four files from, instead of the known mirrors.
    """

    name = "mnist"
    folder = "MNIST"
    classes = tuple("0123456789")
    urls = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
    files = (
        ("train-images-idx3-ubyte.gz", 9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        ("train-labels-idx1-ubyte.gz", 28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
        ("t10k-images-idx3-ubyte.gz", 1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
        ("t10k-labels-idx1-ubyte.gz", 4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
    )


class FashionMNIST(_Idx):
    """1x28x28 pictures of clothes; 60,000 images for training, of which 10,000 are validation, and 10,000 for test.

    Args:
        url: folder to fetch the four files from, instead of the publisher's.
    """

    name = "fashion_mnist"
    folder = "FashionMNIST"
    classes = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    urls = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
    files = (
        ("train-images-idx3-ubyte.gz", 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        ("train-labels-idx1-ubyte.gz", 29_515, "25c81989df183df01b3e8a0aad5dffbe"),
        ("t10k-images-idx3-ubyte.gz", 4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
        ("t10k-labels-idx1-ubyte.gz", 5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
    )


def _unpacked(file: Path) -> Path:
    return file.with_suffix("")


def _read(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The array in an idx file, given the name of its compressed form: uint8 of a shape."""
    found = _unpacked(file) if _unpacked(file).exists() else file
    check_file(found)
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
    expected = len(header) + math.prod(shape)
    try:
        with found.open("rb") if found != file else gzip.open(file) as stream:
            content = stream.read(expected + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise damaged(found, f"cannot be unpacked ({error})") from None
    if not content.startswith(header) or len(content) != expected:
        raise damaged(
            found,
            f"is no idx file of uint8 {shape}, {header.hex()} and {expected:,} bytes in all: begins with "
            f"{content[: len(header)].hex()} and has {len(content):,} or more; train and t10k may be swapped",
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _image_set(raw: Path, images: np.ndarray, labels: np.ndarray) -> ImageSet:
    if labels.max() > 9:
        found = f"has a file of labels up to {labels.max()}, expected 0..9"
        raise damaged(raw, found, "Delete its files to have them fetched again")
    return ImageSet(torch.from_numpy(images[:, None].copy()), torch.from_numpy(labels.astype(np.int64)))
