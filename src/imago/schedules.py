"""Learning-rate schedules: a factor on the configured rates as a function of the training images seen.

Counted in images, a schedule means the same at any batch size; being a function and not a state, it continues exactly.
A run that ends by the clock or by updates has no such number: without an ``end``, schedules fall with the share of the
run that is done (as Geiping & Goldstein 2022, "Cramming", do with a budget of hours). By the clock two runs are then no
longer equal bit for bit.
"""

import math
from abc import ABC, abstractmethod

from pydantic import NonNegativeInt, PositiveInt


class Schedule(ABC):
    """A function from images seen to a factor in [0, 1]."""

    @abstractmethod
    def __call__(self, images_seen: int, done: float) -> float:
        """The factor after ``images_seen`` images, with a share ``done`` of the run behind, in [0, 1]."""


class Warmup(Schedule):
    """A linear rise from 0 to 1 over the first ``images`` images, then 1."""

    def __init__(self, images: PositiveInt) -> None:
        self.images = images

    def __call__(self, images_seen: int, done: float) -> float:
        """min(1, seen / images)."""
        return min(1.0, images_seen / self.images)


class LinearDecay(Schedule):
    """A linear fall from 1 at image ``start`` to 0 at image ``end`` (as WGAN-GP does from 0; Gulrajani et al. 2017).

    Args:
        end: images; ``None`` is the end of the run, whatever ends it.
        start: images; 0 where there is no ``end``.

    Raises:
        ValueError: an end that is not behind the start.
    """

    def __init__(self, end: PositiveInt | None, start: NonNegativeInt = 0) -> None:
        if end is None and start:
            raise ValueError(f"start={start}: needs an end in images; give max_images, or model.schedule.start=0")
        if end is not None and end <= start:
            raise ValueError(
                f"end={end}: must be larger than start={start}; raise max_images above it or lower model.schedule.start"
            )
        self.start = start
        self.end = end

    def __call__(self, images_seen: int, done: float) -> float:
        """1 before start, 0 after end."""
        if self.end is None:
            return 1.0 - done
        return min(1.0, max(0.0, (self.end - images_seen) / (self.end - self.start)))


class Cosine(Schedule):
    """A linear rise over ``warmup`` images, then half a cosine to 0 at image ``end`` (Loshchilov & Hutter 2017).

    Args:
        end: images; ``None`` is the end of the run, whatever ends it: then the rise is a factor on half a cosine over
            all of the run.
        warmup: images.

    Raises:
        ValueError: an end that is not behind the rise.
    """

    def __init__(self, end: PositiveInt | None, warmup: NonNegativeInt = 0) -> None:
        if end is not None and end <= warmup:
            raise ValueError(
                f"end={end}: must be larger than warmup={warmup}; raise max_images above it or lower "
                "model.schedule.warmup"
            )
        self.warmup = warmup
        self.end = end

    def __call__(self, images_seen: int, done: float) -> float:
        """The factor."""
        rise = images_seen / self.warmup if images_seen < self.warmup else 1.0
        if self.end is None:
            return rise * _half_a_cosine(done)
        return rise if rise < 1 else _half_a_cosine((images_seen - self.warmup) / (self.end - self.warmup))


def _half_a_cosine(position: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, position)))
