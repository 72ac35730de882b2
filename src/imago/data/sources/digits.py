"""The embedded data set: 1,797 handwritten digits, 8x8 gray, that come with scikit-learn.

Reference: E. Alpaydin & C. Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI machine learning repository;
these are its 1,797 test images. Each of the 64 pixels counts the inked points in a 4x4 block of a 32x32 bitmap, hence
17 gray levels 0..16, here spread over 0..255 by rounding 255/16 times the count.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from imago.data.base import ImageSet, Source, Splits, fixed_permutation

_HELD_OUT = 180  # images of test, and of validation unless data.val says otherwise: a tenth each


class Digits(Source):
    """1x8x8, ten classes; training, validation and test are 1,437, 180 and 180 images. Needs no files."""

    name = "digits"

    def load(self, directory: Path) -> Splits:
        """The data is inside scikit-learn; ``directory`` is not looked at."""
        package = find_spec("sklearn")  # its file alone, because importing it takes as long as torch
        assert package is not None
        assert package.origin is not None
        rows = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",", dtype=np.int64)
        counts = rows[:, :-1].reshape(-1, 1, 8, 8)
        whole = ImageSet(
            torch.from_numpy(np.rint(counts * (255 / 16)).astype(np.uint8)), torch.from_numpy(rows[:, -1].copy())
        )
        whole = whole.part(torch.from_numpy(fixed_permutation(len(whole))))
        return Splits(
            train=whole.part(slice(-_HELD_OUT)),
            val=_HELD_OUT,
            test=whole.part(slice(-_HELD_OUT, None)),
            classes=tuple("0123456789"),
            description="images of a fixed permutation of scikit-learn's 1,797 without its last "
            f"{_HELD_OUT}, test = those",
        )
