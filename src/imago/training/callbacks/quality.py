"""Sample quality during training: the metrics of the ``metrics`` group, every so many images."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lightning import Trainer
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from imago.evaluation import SampleQuality
from imago.measures import Measurement
from imago.models.base import GenerativeModel
from imago.models.variational import Variational
from imago.rng import PerImageGenerator
from imago.runs import Run
from imago.training.callbacks.common import Halvings
from imago.training.callbacks.measuring import Measuring
from imago.training.callbacks.pace import Share, amounts_up_to, seconds_of

FEWEST = 500  # samples that a distance is worth something of


class MeasureQuality(Measuring):
    """Measures samples against the training split and logs ``val/<metric>``.

    Args:
        every: number of images between two measurements.
        run: the run directory.
        metrics: what is measured, prepared for the data.
        at_start: measure the untrained model too, for comparison.
        seed: of the random streams of the samples; another one than the grids'.
        halvings, share: see :class:`~imago.training.callbacks.pace.Paced`.
    """

    doing = "measuring samples"
    portion = 0.4

    def __init__(
        self,
        every: PositiveInt,
        run: Run,
        metrics: SampleQuality,
        at_start: bool = True,
        seed: NonNegativeInt = 1,
        halvings: Halvings = 0,
        share: Share | None = None,
    ) -> None:
        super().__init__(every, run, at_start, halvings, share)
        self.metrics = metrics
        self.seed = seed

    def headline(self, model: GenerativeModel) -> str | None:
        """The first metric."""
        return f"val/{self.metrics.names[0]}" if self.metrics.names else None

    def amounts(self, trainer: Trainer, model: GenerativeModel) -> list[int]:
        """Of the number of samples that is configured, or fewer."""
        return amounts_up_to(self.metrics.samples, FEWEST)

    def seconds_each(self, trainer: Trainer, model: GenerativeModel) -> float:
        """Draw a few samples and extract their features."""

        def work(images: int) -> None:
            generator = PerImageGenerator(self.seed, device=model.device)
            self.metrics.features(model.sample(images, generator=generator))

        return seconds_of(work, self.metrics.batch_size)

    def measure(
        self,
        trainer: Trainer,
        model: GenerativeModel,
        amount: int,
        averaged: bool,
        progress: Callable[[int, int], None] | None,
        before_batch: Callable[[], None],
    ) -> list[Measurement]:
        """See :meth:`Measuring.measure`."""
        self.metrics.take(amount)
        return measure(self.metrics, model, self.seed, averaged, progress, before_batch)


def measure(
    metrics: SampleQuality,
    model: GenerativeModel,
    seed: int,
    averaged: bool,
    progress: Callable[[int, int], None] | None = None,
    before_batch: Callable[[], None] = lambda: None,
    alone: bool = False,
) -> list[Measurement]:
    """Measure a model's samples; the protocols say with which weights and seed, and how long drawing took, on what.

    Args:
        metrics: what is measured, prepared for the data.
        model: with the weights to be judged.
        seed: of the random streams of the samples.
        averaged: whether these are averaged weights.
        progress: called with (samples so far, samples in all).
        before_batch: called before each batch of samples, and at each step of a model that draws them step by step;
            may raise to abandon the measurement.
        alone: also time single images, a few of them.
    """

    def sample(n: int, first: int) -> Tensor:
        before_batch()
        generator = PerImageGenerator(seed, first, device=model.device)
        began = time.perf_counter()
        images = model.sample(n, generator=generator, progress=lambda done, total: before_batch())
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        spent[0] += time.perf_counter() - began
        spent[1] += n
        return images

    def means(n: int, first: int) -> Tensor:
        assert isinstance(model, Variational)
        with model.without_observation_noise():
            return model.sample(n, generator=PerImageGenerator(seed, first, device=model.device))

    noisy = isinstance(model, Variational) and model.observation_noise
    seconds_alone = seconds_of_one(model, seed) if alone else None
    spent = [0.0, 0.0]  # seconds of sampling, and images
    measurements = metrics.measure(sample, progress, means=means if noisy else None)
    classes = "as in training" if model.spec.class_counts else "uniform"
    told: dict[str, Any] = {
        "classes": classes if model.conditional else None,
        "weights": "averaged" if averaged else "last",
        "seed": seed,
        "nfe": model.nfe,
        "sampler": model.sampling or None,
        "seconds_per_sample": spent[0] / spent[1] if spent[1] else None,
        "seconds_alone": seconds_alone,
        "device": machine_of(model.device) if spent[1] else None,
    }
    found = [replace(m, protocol=replace(m.protocol, **told)) for m in measurements]
    if noisy:
        seen = "of the means of p(x|z): draws of it have noise in every pixel"
        found = [replace(m, protocol=replace(m.protocol, caveat=seen)) if m.name == "edge_width" else m for m in found]
    return found


def seconds_of_one(model: GenerativeModel, seed: int) -> float:
    """The median seconds that an image takes that is drawn alone, of as many as two seconds allow, five at most."""
    seconds: list[float] = []
    while len(seconds) < 5 and sum(seconds) < 2:
        began = time.perf_counter()
        model.sample(1, generator=PerImageGenerator(seed, len(seconds), device=model.device))
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def machine_of(device: torch.device) -> str:
    """What the seconds of a measurement depend on: "NVIDIA H200", or "CPU, 2 cores, 1 thread"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    return f"CPU, {cores} core{'s' * (cores != 1)}, {threads} thread{'s' * (threads != 1)}"
