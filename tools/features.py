"""Do the features of a network see what is in an image? ``python tools/features.py [--images N]`` prints tables.

Of CIFAR-10 in ``IMAGO_DATA_DIR``, for EfficientNet-lite0 (``metrics=efficientnet``):

- the share of test images of which a ridge regression on the features of 4,000 training images names the right class,
  by the side that images are resized to, with images a second of one core; and the same on pixels;
- Fréchet and kernel distance to the training images of others of them and of test images, by their number;
- the distances of test images that were tampered with.

Training images are a random choice of --images, and as many others; its default takes about ten minutes of one core.
"""

import argparse
import os
import time
from collections.abc import Sequence

import torch
from sklearn.linear_model import RidgeClassifierCV
from torch import Tensor
from torch.nn.functional import avg_pool2d

from imago.data import Dataset, ImageDataModule
from imago.data.sources import CIFAR10
from imago.evaluation import EfficientNet, EfficientNetExtractor, FrechetDistance, KernelDistance
from imago.progress import progress_bar

PROBE = (4000, 1000)  # training and test images of the probe
TAMPERED = 1000


def features(extractor: EfficientNetExtractor, images: Tensor, doing: str) -> Tensor:
    """Of uint8 images, float32 (n, d), with a progress bar."""
    found, done = [], 0
    with progress_bar(doing) as progress:
        for batch in images.split(64):
            found.append(extractor(batch))
            progress(done := done + len(batch), len(images))
    return torch.cat(found)


def probe(training: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> float:
    """Share of test vectors whose class a ridge regression of classes names; its penalty by leaving one out."""
    mean, deviation = training.mean(0), training.std(0) + 1e-6
    known, asked = ((x - mean) / deviation for x in (training, test))
    ridge = RidgeClassifierCV(alphas=[10.0**k for k in range(7)]).fit(known.numpy(), labels.numpy())
    return float((torch.from_numpy(ridge.predict(asked.numpy())) == truth).float().mean())


def distances(real: Tensor, samples: Tensor) -> tuple[float, float]:
    """Fréchet and kernel distance."""
    metrics = FrechetDistance(num_features=real.shape[1]), KernelDistance(subsets=20, subset_size=500)
    for metric in metrics:
        metric.update(real, real=True)
        metric.update(samples, real=False)
    return tuple(float(metric.compute()) for metric in metrics)


def row(*cells: object) -> None:
    """Print a line of a table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def table(*heads: str) -> None:
    """Print the head of a table."""
    print()
    row(*heads)
    row(*["---"] * len(heads))


def chosen(images: Dataset, count: int, seed: int) -> Dataset:
    """A random choice, the same every time."""
    return images.take(torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count].numpy())


def tampered(pool: Tensor, labels: Tensor, count: int) -> dict[str, Tensor]:
    """Variants of so many test images, by what was done to them."""
    images, generator = pool[:count], torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, images.shape, generator=generator, dtype=torch.uint8)
    blurred = {size: avg_pool2d(images.float(), size, 1, size // 2, count_include_pad=False) for size in (3, 5)}
    tenth, half = (torch.rand(len(images), 1, *images.shape[2:], generator=generator) < share for share in (0.1, 0.5))
    return {
        "nothing": images,
        "mirrored": images.flip(3),
        "blurred 3x3": blurred[3].round().byte(),
        "blurred 5x5": blurred[5].round().byte(),
        "a tenth of the pixels noise": torch.where(tenth, noise, images),
        "half of the pixels noise": torch.where(half, noise, images),
        "gray": images.float().mean(1, keepdim=True).round().byte().expand_as(images),
        "halves of different images": torch.cat([images[..., :16], images.roll(1, 0)[..., 16:]], 3),
        "without two of the ten classes": pool[labels < 8][:count],
        "one class": pool[labels == 3][:count],
        "uniform noise": noise,
    }


def main(sides: Sequence[int], count: int) -> None:
    """Print the tables."""
    data = ImageDataModule(CIFAR10(), dir=os.environ.get("IMAGO_DATA_DIR", "data"))
    data.prepare()
    extractor = EfficientNet().build(data, torch.device("cpu"), None, lambda notice: None)
    assert isinstance(extractor, EfficientNetExtractor)
    both = chosen(data.split("train"), 2 * count, 0)
    test = chosen(data.test, len(data.test), 1)
    assert both.labels is not None
    assert test.labels is not None
    known, asked = PROBE

    table("seen at", "named rightly", "images a second of one core")
    pixels = [images[:n].flatten(1).float() for images, n in ((both.images, known), (test.images, asked))]
    row("pixels", f"{probe(pixels[0], both.labels[:known], pixels[1], test.labels[:asked]):.1%}", "")
    usual = extractor.side
    for side in sides:
        extractor.side = side
        began = time.process_time()
        training, held_out = (
            features(extractor, images[:n], f"{side} pixels")
            for images, n in ((both.images, known), (test.images, asked))
        )
        pace = (len(training) + len(held_out)) / (time.process_time() - began)
        named = probe(training, both.labels[:known], held_out, test.labels[:asked])
        row(f"{side}x{side}", f"{named:.1%}", f"{pace:.0f}")
    extractor.side = usual

    found = features(extractor, both.images, "training images")
    real, others = found[:count], found[count:]
    held_out = features(extractor, test.images[:count], "test images")
    table("images", "FD of training images", "KD", "FD of test images", "KD")
    for n in (500, 1000, 2000, 5000, 10_000):
        if n <= count:
            cells = [value for samples in (others[:n], held_out[:n]) for value in distances(real, samples)]
            row(f"{n:,}", *(f"{value:.{digits}f}" for value, digits in zip(cells, (0, 3, 0, 3), strict=True)))

    table("test images", "FD", "KD")
    for name, images in tampered(test.images, test.labels, TAMPERED).items():
        frechet, kernel = distances(real, features(extractor, images, name))
        row(name, f"{frechet:.0f}", f"{kernel:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sides", type=int, nargs="*", default=[64, 96, 128], help="of the probe, in pixels")
    parser.add_argument("--images", type=int, default=5000, help="training images, and as many others and test images")
    arguments = parser.parse_args()
    main(arguments.sides, arguments.images)
