"""Learning-rate schedules: a factor on the configured rates as a function of the training images seen.

Counted in images, a schedule means the same at any batch size; being a function and not a state, it continues exactly.
"""

import math
from abc import ABC, abstractmethod

from pydantic import NonNegativeInt, PositiveInt


class Schedule(ABC):
    """A function from images seen to a factor in [0, 1]."""

    @abstractmethod
    def __call__(self, images_seen: int) -> float:
        """The factor after ``images_seen`` images."""


class Warmup(Schedule):
    """A linear rise from 0 to 1 over the first ``images`` images, then 1."""

    def __init__(self, images: PositiveInt) -> None:
        self.images = images

    def __call__(self, images_seen: int) -> float:
        """min(1, seen / images)."""
        return min(1.0, images_seen / self.images)


class LinearDecay(Schedule):
    """A linear fall from 1 at image ``start`` to 0 at image ``end`` (as WGAN-GP does from 0; Gulrajani et al. 2017)."""

    def __init__(self, end: PositiveInt, start: NonNegativeInt = 0) -> None:
        if end <= start:
            raise ValueError(
                f"end={end}: must be larger than start={start}; raise max_images above it or lower model.schedule.start"
            )
        self.start = start
        self.end = end

    def __call__(self, images_seen: int) -> float:
        """1 before start, 0 after end."""
        return min(1.0, max(0.0, (self.end - images_seen) / (self.end - self.start)))


class Cosine(Schedule):
    """A linear rise over ``warmup`` images, then half a cosine to 0 at image ``end`` (Loshchilov & Hutter 2017)."""

    def __init__(self, end: PositiveInt, warmup: NonNegativeInt = 0) -> None:
        if end <= warmup:
            raise ValueError(
                f"end={end}: must be larger than warmup={warmup}; raise max_images above it or lower "
                "model.schedule.warmup"
            )
        self.warmup = warmup
        self.end = end

    def __call__(self, images_seen: int) -> float:
        """The factor after ``images_seen`` images."""
        if images_seen < self.warmup:
            return images_seen / self.warmup
        position = min(1.0, (images_seen - self.warmup) / (self.end - self.warmup))
        return 0.5 * (1 + math.cos(math.pi * position))
