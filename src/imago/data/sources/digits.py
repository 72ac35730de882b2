"""The embedded data set: 1,797 handwritten digits, 8x8 gray, that come with scikit-learn.

Reference: E. Alpaydin & C. Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI machine learning repository;
these are its 1,797 test images. Each of the 64 pixels counts the inked points in a 4x4 block of a 32x32 bitmap, hence
17 gray levels 0..16, here spread over 0..255 by rounding 255/16 times the count.
"""

from pathlib import Path

import numpy as np
import torch

from imago.data.base import ImageSet, Source, Splits, fixed_permutation

_HELD_OUT = 180  # images of validation and of test, a tenth each


class Digits(Source):
    """1x8x8, ten classes; training, validation and test are 1,437, 180 and 180 images. Needs no files."""

    name = "digits"

    def load(self, directory: Path) -> Splits:
        """The data is inside scikit-learn; ``directory`` is not looked at."""
        from sklearn.datasets import load_digits  # here, because it takes a second that no other data set should pay

        digits = load_digits()
        images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None])
        whole = ImageSet(images, torch.from_numpy(digits.target.astype(np.int64)))
        order = torch.from_numpy(fixed_permutation(len(whole)))
        train, val, test = map(whole.part, order.split([len(order) - 2 * _HELD_OUT, _HELD_OUT, _HELD_OUT]))
        return Splits(
            train,
            val,
            test,
            classes=tuple("0123456789"),
            description=f"digits: train, val, test = the first {len(train):,}, the next {len(val)} and the last "
            f"{len(test)} images of a fixed permutation of scikit-learn's 1,797",
        )
