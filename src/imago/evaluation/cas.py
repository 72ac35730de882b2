"""Do samples show their classes as real images do? A classifier that learns from them alone is asked about real ones.

The classification accuracy score of Ravuri & Vinyals 2019, "Classification Accuracy Score for Conditional Generative
Models", section 3.1: train on samples with their classes, test on the test split. It sees what a distance of all
samples together does not: classes that are missing, mixed up, or shown in one way only.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from imago.data import ImageDataModule
from imago.data.base import Dataset, affordable, seen_in_training
from imago.errors import UserError
from imago.evaluation.network import ClassifierNetwork, accuracy, train_classifier
from imago.images import to_bytes
from imago.measures import Measurement, Protocol
from imago.models.base import GenerativeModel
from imago.progress import Progress
from imago.rng import PerImageGenerator

IMAGES_SEEN = 60_000  # length of both trainings


def measure_cas(
    model: GenerativeModel,
    data: ImageDataModule,
    *,
    samples: int,
    seed: int,
    averaged: bool,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Train a classifier on samples and one on as many real images, and test both on the test split.

    Args:
        model: conditional on classes, with the weights to be judged.
        data: prepared, with labels.
        samples: how many are drawn, their classes as frequent as in training.
        seed: of the random streams of the samples, and of both classifiers.
        averaged: whether the model has averaged weights; for the protocol.
        batch_size: images drawn at a time; changes no number.
        progress: called with (images drawn or learned from, of all).

    Returns:
        ``cas``, the share of test images whose class the first names rightly, 0..1, with its standard error over the
        test images; ``held_out_value`` of the protocol is that of the second, which learned from training images.

    Raises:
        UserError: the model is not conditional on classes, or the test split has none of them.
    """
    test = affordable(seen_in_training(data.spec, data.split("test")))
    if not model.conditional or not data.spec.classes:
        raise UserError("cas: asks whether samples show their classes; train with conditional=true, on labelled data")
    if not len(test) or test.labels is None:
        raise UserError(f"cas: no image of {data.name} test is of a class that has training images; leave cas out")
    whole = samples + 2 * IMAGES_SEEN

    def tell(before: int, done: int, _: int = 0) -> None:
        if progress is not None:
            progress(before + done, whole)

    images, labels = [], []
    for first in range(0, samples, batch_size):
        size = min(batch_size, samples - first)
        generator = PerImageGenerator(seed, first, device=model.device)
        given = model.labels_for(size, None, generator)
        assert given is not None
        images.append(to_bytes(model.sample(size, labels=given, generator=generator), data.spec.levels).cpu())
        labels.append(given.cpu())
        tell(first, size)
    real = data.split("train").part(slice(samples))
    assert real.labels is not None
    learned = partial(_accuracy, data, test, seed=seed, device=model.device)
    found = learned(torch.cat(images), torch.cat(labels), progress=partial(tell, samples))
    bytes_of_real = to_bytes(real.images, data.spec.levels)
    beside = learned(bytes_of_real, real.labels, progress=partial(tell, samples + IMAGES_SEEN))
    protocol = Protocol(
        data=f"{data.name} test",
        data_fingerprint=data.fingerprint,
        images=len(test),
        samples=samples,
        conditional=True,
        classes="as in training" if model.spec.class_counts else "uniform",
        held_out=f"{data.name} train",
        held_out_images=len(real),
        held_out_value=beside,
        weights="averaged" if averaged else "last",
        standard_error=math.sqrt(found * (1 - found) / len(test)),
        seed=seed,
        caveat="none",
    )
    return [Measurement("cas", found, protocol)]


def _accuracy(
    data: ImageDataModule,
    test: Dataset,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> float:
    """The share of test images that a classifier names rightly which learned from these images, values 0..255."""
    spec = data.spec
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ClassifierNetwork.for_images(*spec.shape, classes=spec.classes)
    rng = torch.Generator().manual_seed(seed)
    train_classifier(
        network,
        images,
        labels,
        images_seen=IMAGES_SEEN,
        flip=data.flip,
        generator=rng,
        device=device,
        progress=progress,
    )
    assert test.labels is not None
    return accuracy(network, to_bytes(test.images, spec.levels), test.labels, device)
