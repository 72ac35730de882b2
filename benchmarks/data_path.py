"""The data path against torchvision's, side by side in one process: images per second of training batches.

Ours cuts batches out of one uint8 tensor by index and flips them whole (:class:`imago.data.BatchStream`). The peer is
what a torchvision user writes: ``DataLoader(dataset, batch_size, shuffle=True, drop_last=True)`` over
``torchvision.datasets``' item-by-item ``__getitem__`` (PIL image, ``RandomHorizontalFlip`` for CIFAR-10, ``ToTensor``),
with no workers, like ours. Ours is timed twice: as uint8 batches, and including the conversion of the batch to floating
point, which ``ToTensor`` does too; the second is the ratio to quote. Rounds alternate; figures are medians.

    python benchmarks/data_path.py [--out FILE.json]

With IMAGO_DATA_DIR set the images are those of MNIST and CIFAR-10, else random ones of the same size (at the same cost).
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, RandomHorizontalFlip, ToTensor

from imago.data import BatchStream
from imago.data.sources import CIFAR10, MNIST
from imago.images import to_signal


class ItemByItem(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """``torchvision.datasets.CIFAR10`` and ``MNIST`` without their files: the lines of their ``__getitem__``.

    CIFAR10 holds a numpy array (n, 32, 32, 3) and a list of labels, MNIST tensors (n, 28, 28) and (n,).
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        self.gray = images.shape[1] == 1
        self.data: Any = images[:, 0].clone() if self.gray else images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets: Any = labels if self.gray else labels.tolist()
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.gray:
            image, target = self.data[index], int(self.targets[index])
            return self.transform(Image.fromarray(image.numpy())), target
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]

    def __len__(self) -> int:
        return len(self.data)


def load(name: str) -> tuple[Tensor, Tensor]:
    """The training split of a data set, uint8 (n, C, H, W) and int64 (n,): the real one where it is, else noise."""
    source, folder, shape, n = {
        "mnist": (MNIST(), "MNIST", (1, 28, 28), 50_000),
        "cifar10": (CIFAR10(), "cifar-10-batches-bin", (3, 32, 32), 45_000),
    }[name]
    directory = Path(os.environ.get("IMAGO_DATA_DIR", "data"))
    if (directory / folder).exists():
        train = source.load(directory).train
        assert train.labels is not None
        return train.images, train.labels
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (n, *shape), np.uint8)), torch.from_numpy(rng.integers(0, 10, n))


def seconds(batches: Iterator[Any], n: int, finish: Callable[[Tensor], Tensor] | None = None) -> float:
    """Wall-clock seconds for n batches, after two for warming up."""
    for _ in islice(batches, 2):
        pass
    begin = time.perf_counter()
    for images, _ in islice(batches, n):
        if finish is not None:
            finish(images)
    return time.perf_counter() - begin


def compare(name: str, batch_size: int, rounds: int, ours_batches: int, theirs_batches: int) -> dict[str, Any]:
    """Medians of images per second of the three, and of the ratios within each round."""
    images, labels = load(name)
    flip = name == "cifar10"
    transform = Compose([RandomHorizontalFlip(), ToTensor()]) if flip else Compose([ToTensor()])
    stream = iter(BatchStream(images, labels, batch_size=batch_size, seed=0, flip=flip))
    dataset = ItemByItem(images, labels, transform)
    peer = iter(torch.utils.data.DataLoader(dataset, batch_size, shuffle=True, drop_last=True))
    rates: dict[str, list[float]] = {"uint8": [], "float": [], "torchvision": []}
    for _ in range(rounds):
        rates["uint8"].append(batch_size * ours_batches / seconds(stream, ours_batches))
        taken = seconds(stream, ours_batches, lambda batch: to_signal(batch, 256))
        rates["float"].append(batch_size * ours_batches / taken)
        rates["torchvision"].append(batch_size * theirs_batches / seconds(peer, theirs_batches))
    ratios = {
        kind: statistics.median(a / b for a, b in zip(rates[kind], rates["torchvision"], strict=True))
        for kind in ("uint8", "float")
    }
    return {
        "data": name,
        "batch_size": batch_size,
        "rounds": rounds,
        "images_per_second": {kind: statistics.median(values) for kind, values in rates.items()},
        "ratio": ratios,
        "all_images_per_second": rates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    print(f"{torch.get_num_threads()} thread(s), {platform.machine()}, {versions}")
    print("| data | torchvision images/s | ours, uint8 | ours, as float | ratio uint8 | ratio float |")
    print("|---|---|---|---|---|---|")
    results = []
    for name in ("mnist", "cifar10"):
        result = compare(name, arguments.batch_size, arguments.rounds, ours_batches=300, theirs_batches=30)
        rate, ratio = result["images_per_second"], result["ratio"]
        print(
            f"| {name} | {rate['torchvision']:,.0f} | {rate['uint8']:,.0f} | {rate['float']:,.0f} "
            f"| {ratio['uint8']:.1f}x | {ratio['float']:.1f}x |"
        )
        results.append(result)
    if arguments.out:
        report = {"threads": torch.get_num_threads(), "versions": versions, "results": results}
        arguments.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
