"""What an image is, said once: its specification, its two representations and bits per dimension.

Outside a model images are ``uint8`` tensors of shape ``(n, channels, height, width)`` with values ``0..levels-1``.
Inside a model they may become a *signal*: floating point in [-1, 1]. The two functions below are the only way across.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

_LONGEST_NAME = 40  # letters of a class's name, where it is shown or becomes part of a file's

Images = UInt8[Tensor, "n channels height width"]
Labels = Int[Tensor, " n"]
Normalized = Float[Tensor, "n channels height width"]


class Batch(NamedTuple):
    """Images and, where the data set has them, their labels; ``labels`` is ``None`` for unlabelled data."""

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class ImageSpec:
    """The shape of the data: known by the data set, handed to the model when it is built.

    Args:
        channels: 1 for gray, 3 for RGB.
        height: pixels from top to bottom.
        width: pixels from left to right; images need not be square.
        levels: number of values a pixel can take: 256, or 2 for binarised data.
        classes: number of classes, 0 for unlabelled data.
        class_names: of each class, in the order of the labels; empty where they are not known.
        class_counts: training images of each class; empty where they are not known, then all count the same.
    """

    channels: int
    height: int
    width: int
    levels: int = 256
    classes: int = 0
    class_names: Sequence[str] = ()
    class_counts: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"ImageSpec.{name}={getattr(self, name)}: must be at least 1")
        if not 2 <= self.levels <= 256:
            raise ValueError(f"ImageSpec.levels={self.levels}: must lie in 2..256")
        if self.classes < 0:
            raise ValueError(f"ImageSpec.classes={self.classes}: must be 0 (unlabelled) or more")
        for name in ("class_names", "class_counts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists come from files
            if len(getattr(self, name)) not in (0, self.classes):
                raise ValueError(f"ImageSpec.{name} has {len(getattr(self, name))} entries for {self.classes} classes")
        if self.class_counts and (min(self.class_counts) < 0 or not any(self.class_counts)):
            raise ValueError(f"ImageSpec.class_counts={self.class_counts}: must be 0 or more, one of them more")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width

    @property
    def dimensions(self) -> int:
        """Number of values in one image: channels * height * width."""
        return math.prod(self.shape)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, texts and lists of them, as stored in checkpoints and summaries."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def trained(self) -> tuple[int, ...]:
        """The classes that have training images, rising; all, where the counts are not known."""
        return tuple(k for k in range(self.classes) if not self.class_counts or self.class_counts[k])

    def class_name(self, label: int) -> str:
        """What a class is called, in one short line that prints anywhere; its number where there is no name."""
        name = self.class_names[label] if self.class_names else str(label)
        return "".join(letter if letter.isprintable() else "?" for letter in name[:_LONGEST_NAME])

    def class_folder(self, label: int) -> str:
        """The name of a folder for a class: its number, by which folders are in order, and what can be of its name."""
        name = re.sub(r"[^\w ()+,-]+", "_", self.class_names[label][:_LONGEST_NAME] if self.class_names else "").strip()
        return f"{label}-{name}" if name not in ("", "_", str(label)) else str(label)

    def __str__(self) -> str:
        labels = f", {self.classes} classes" if self.classes else ""
        return f"{self.channels}x{self.height}x{self.width}, {self.levels} levels{labels}"


def normalize(images: Images, levels: int, dtype: torch.dtype = torch.float32) -> Normalized:
    """Integers 0..levels-1 to floating point in [-1, 1]; 0 goes to -1 and levels-1 to 1."""
    return images.to(dtype).mul_(2 / (levels - 1)).sub_(1)


def quantize(signal: Normalized, levels: int) -> Images:
    """The inverse of :func:`normalize`, rounding to the nearest level and clipping what lies outside [-1, 1]."""
    return signal.float().add(1).mul_((levels - 1) / 2).round_().clamp_(0, levels - 1).to(torch.uint8)


def to_bytes(images: Images, levels: int) -> Images:
    """Integers 0..levels-1 to the full range 0..255, for pictures and feature extractors."""
    if levels == 256:
        return images
    return images.float().mul_(255 / (levels - 1)).round_().to(torch.uint8)


def bits_per_dim(nats: Tensor, spec: ImageSpec) -> Tensor:
    """Negative log-likelihood in bits per dimension from nats per image: nats / (dimensions * ln 2)."""
    return nats / (spec.dimensions * math.log(2))
