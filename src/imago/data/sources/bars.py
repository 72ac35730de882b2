"""Bars and stripes, 4x4: a data set whose entropy is known exactly.

Reference: D. MacKay 2003, "Information Theory, Inference, and Learning Algorithms", chapter 43. Every row is black or
white (stripes), or every column is (bars): 2 * 2^4 pictures, of which all-black and all-white are counted twice, so 30
equally likely ones and an entropy of log2(30) = 4.907 bits, 0.3067 bits per dimension. No model can have a lower
expected bits/dim.
"""

import math
from itertools import product
from pathlib import Path

import torch

from imago.data.base import ImageSet, Source, Splits

_REPEATS = 100  # of every image in the training split: 3,000 images, so that batches of usual sizes fit in an epoch


class Bars(Source):
    """1x4x4, two levels, unlabelled. Training holds every image 100 times; validation and test hold every image once.

    A mean over validation or test is therefore the exact expectation under the data's distribution.
    """

    name = "bars"
    entropy_bits_per_dim = math.log2(30) / 16

    def load(self, directory: Path) -> Splits:
        """The data is computed; ``directory`` is not looked at."""
        rows = torch.tensor(list(product((0, 1), repeat=4)), dtype=torch.uint8)
        stripes = rows[:, :, None].expand(16, 4, 4)
        images = torch.cat([stripes, stripes.mT]).unique(dim=0)[:, None]
        every = ImageSet(images, None)
        return Splits(
            train=ImageSet(images.repeat(_REPEATS, 1, 1, 1), None),
            val=every,
            test=every,
            classes=(),
            description=f"train = the 30 images {_REPEATS} times, val = test = the 30 images",
            levels=2,
        )
