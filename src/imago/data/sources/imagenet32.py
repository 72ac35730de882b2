"""ImageNet at 32x32: 1,281,167 training and 50,000 validation images, RGB, 1,000 classes.

Reference: P. Chrabaszcz, I. Loshchilov & F. Hutter 2017, "A Downsampled Variant of ImageNet as an Alternative to the
CIFAR datasets". Two data sets go by this name. This is the one of 2017, resized with box filtering and published as
numpy archives on image-net.org; the one of van den Oord et al. 2016 ("Pixel Recurrent Neural Networks") was resized
differently and has other bits/dim, so numbers on the two must not be compared.

train_data_batch_1.npz ... train_data_batch_10.npz and val_data.npz hold ``data``, uint8 (n, 3072): 1,024 red, 1,024
green and 1,024 blue values, row by row; and ``labels``, 1..1000, here 0..999. (The training files also hold ``mean``,
which is not used.)
"""

from pathlib import Path

import numpy as np
import torch

from imago.data.base import ImageSet, Source, Splits, check_file, damaged, data_directory, fixed_permutation
from imago.errors import UserError

TRAIN = tuple(f"train_data_batch_{k}.npz" for k in range(1, 11))
TEST = "val_data.npz"
CLASSES = 1000
COUNTS = 1_281_167, 50_000  # images of the training files together and of val_data


class ImageNet32(Source):
    """3x32x32, 1,000 classes; 1/25 of the training files is validation, the publisher's val_data is test.

    Held in memory as one tensor, 3.9 GB. The publisher asks for an account, so nothing is downloaded.
    """

    name = "imagenet32"

    def load(self, directory: Path) -> Splits:
        """Reads DIRECTORY/imagenet32/*.npz."""
        folder = data_directory(directory) / "imagenet32"
        missing = [name for name in (*TRAIN, TEST) if not (folder / name).exists()]
        if missing:
            raise UserError(
                f"data.dir={directory}: {folder} lacks {', '.join(missing)}. Sign in at "
                "https://image-net.org/download-images, get the downsampled images 'Train(32x32)' and 'Val(32x32)' in "
                f"npz format (about 3.5 GB together) and unzip both in {folder}; or set data.dir to the folder that "
                "holds imagenet32."
            )
        *labels, test_labels = (read_labels(folder / name) for name in (*TRAIN, TEST))
        n = sum(map(len, labels))
        if (n, len(test_labels)) != COUNTS:
            found = f"the training files hold {n:,} images and {TEST} {len(test_labels):,}, expected {COUNTS}"
            raise damaged(folder, found, "Get them again")
        order = fixed_permutation(n)
        # Every file is scattered to where the permutation wants it: the splits are slices, and nothing is held twice.
        place = np.empty_like(order)
        place[order] = np.arange(n)
        images = np.empty((n, 3 * 32 * 32), np.uint8)
        first = 0
        for name, batch_labels in zip(TRAIN, labels, strict=True):
            images[place[first : first + len(batch_labels)]] = read_images(folder / name, batch_labels)
            first += len(batch_labels)
        all_labels = np.concatenate(labels)[order]
        return Splits(
            train=_image_set(images, all_labels),
            val=n // 25,
            test=_image_set(read_images(folder / TEST, test_labels), test_labels),
            classes=tuple(str(k) for k in range(1, CLASSES + 1)),
            description="images of a fixed permutation of the training files, test = val_data (of Chrabaszcz et al. "
            "2017, box-downsampled; not the version of van den Oord et al. 2016)",
        )


def read_array(file: Path, key: str) -> np.ndarray:
    """One array of an npz archive, which reads no others."""
    check_file(file)
    try:
        # Opened here, because numpy leaves a file open that turns out to be damaged.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return archive[key]
    except Exception as error:  # a dozen types, none documented
        raise damaged(file, f"cannot read its array '{key}' ({error})", "Get it again") from None


def read_labels(file: Path) -> np.ndarray:
    """Integers (n,), 1..1000."""
    labels = read_array(file, "labels")
    fits = labels.ndim == 1 and labels.dtype.kind in "iu"
    if not fits or not 1 <= labels.min(initial=1) <= labels.max(initial=1) <= CLASSES:
        found = f"has labels {labels.dtype} {labels.shape}, expected integers (n,), 1..{CLASSES}"
        raise damaged(file, found, "Get it again")
    return labels


def read_images(file: Path, labels: np.ndarray, side: int = 32) -> np.ndarray:
    """uint8 (n, 3 * side²), checked against the labels of the same file."""
    data, numbers = read_array(file, "data"), 3 * side * side
    if data.dtype != np.uint8 or data.shape != (len(labels), numbers):
        found = (
            f"has data {data.dtype} {data.shape} and {len(labels):,} labels, expected uint8 (n, {numbers}) and n labels"
        )
        raise damaged(file, found, "Get it again")
    return data


def _image_set(images: np.ndarray, labels: np.ndarray) -> ImageSet:
    return ImageSet(torch.from_numpy(images.reshape(-1, 3, 32, 32)), torch.from_numpy(labels.astype(np.int64) - 1))
