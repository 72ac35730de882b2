"""Images that ``prepare`` has written as shards: more of them than the memory holds."""

from pathlib import Path

import torch

from imago.data.base import Source, Splits, fixed_permutation
from imago.data.shards import ShardedImages
from imago.paths import images_place


class Shards(Source):
    """A folder of shards, see :mod:`imago.data.shards`.

    The splits are those of the same images where they came from: of a folder, slices of a fixed permutation; of
    ImageNet, the publisher's.

    Args:
        path: the folder.

    Raises:
        UserError: there is no such path.
    """

    def __init__(self, path: str) -> None:
        self.path = images_place(path)
        self.name = self.path.resolve().name

    def load(self, directory: Path) -> Splits:
        """Opens the shards; images stay where they are."""
        everything = ShardedImages(self.path)
        index, n = everything.index, len(everything)
        lost = f"{index.lost:,} unreadable ones left out, " if index.lost else ""
        shuffled = everything.part(torch.from_numpy(fixed_permutation(n - index.test)))
        if index.test:
            test, among = everything.part(slice(n - index.test, None)), f"{n - index.test:,} images for training"
            return Splits(
                shuffled,
                index.test if index.val is None else index.val,
                test,
                index.classes,
                f"of a fixed permutation of the {among} in {self.path}, test = the publisher's, {lost}{index.labels}",
            )
        return Splits.of_own_images(shuffled, index.classes, self.path, f"{lost}{index.labels}")
