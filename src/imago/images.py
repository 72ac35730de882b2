"""What an image is, said once: its specification, its two representations and bits per dimension.

Outside a model images are integers of shape ``(n, channels, height, width)`` with values ``0..levels-1``: ``uint8``,
or ``int32`` for the tokens of a codebook of more than 256 entries. Inside a model they may be *normalised*: floating
point in [-1, 1]. :func:`normalize` and :func:`quantize` are the only way across. Points in R^d are float32 of shape
``(n, d, 1, 1)`` on both sides.
"""

import difflib
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int32, UInt8
from PIL import Image
from torch import Tensor

from imago.errors import UserError

_LONGEST_NAME = 40  # letters of a class's name, where it is shown or becomes part of a file's

Images = (
    UInt8[Tensor, "n channels height width"]
    | Int32[Tensor, "n channels height width"]
    | Float32[Tensor, "n channels height width"]
)
Labels = Int[Tensor, " n"]
Condition = Int[Tensor, " n"] | Float[Tensor, "n features"]
Normalized = Float[Tensor, "n channels height width"]
Kind = Literal["pixels", "tokens", "points"]  # of data
Learned = Literal["pixels", "binary", "tokens", "points"]  # by a model; binary are pixels of two levels
ImagesLike = Images | np.ndarray | Sequence[Image.Image]  # what people have: tensors, arrays, PIL's
LabelsLike = Tensor | Sequence[int | str]


class Batch(NamedTuple):
    """Images and what they are conditioned on.

    Attributes:
        images: (n, channels, height, width) of :attr:`ImageSpec.dtype`.
        condition: ``None``, class labels (n,) int64, or embeddings (n, features) floating point, as
            :attr:`ImageSpec.condition` says.
    """

    images: Tensor
    condition: Tensor | None = None

    @property
    def labels(self) -> Tensor | None:
        """The condition where it is a class, int64 (n,); otherwise ``None``."""
        return None if self.condition is None or self.condition.is_floating_point() else self.condition


@dataclass(frozen=True)
class ImageSpec:
    """The shape of the data: known by the data set, handed to the model when it is built.

    Args:
        channels: 1 for gray, 3 for RGB; the dimension d of points in R^d, whose height and width are 1.
        height: pixels from top to bottom.
        width: pixels from left to right; images need not be square.
        levels: number of values a pixel can take: 256, or 2 for binarised data; the size of a codebook; 0 for points
            in R^d.
        classes: number of classes, 0 for unlabelled data.
        class_names: of each class, in the order of the labels; empty where they are not known.
        class_counts: training images of each class; empty where they are not known, then all count the same.
        tokens: the values are entries of a codebook, without an order among them.
        embedding: features of the vector that each image is conditioned on, of a text for instance; 0 for none.

    Raises:
        ValueError: nothing can be of that shape.
    """

    channels: int
    height: int
    width: int
    levels: int = 256
    classes: int = 0
    class_names: Sequence[str] = ()
    class_counts: Sequence[int] = ()
    tokens: bool = False
    embedding: int = 0

    def __post_init__(self) -> None:
        for name, least in {"channels": 1, "height": 1, "width": 1, "classes": 0, "embedding": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"ImageSpec.{name}={getattr(self, name)}: must be at least {least}")
        most = 2**24 if self.tokens else 256
        if not 2 <= self.levels <= most and (self.levels or self.tokens or self.height * self.width > 1):
            raise ValueError(
                f"ImageSpec.levels={self.levels}: must lie in 2..{most}"
                + ("" if self.tokens else ", or be 0 for points (d, 1, 1); more are tokens of a codebook, tokens=True")
            )
        if self.classes and self.embedding:
            raise ValueError(
                f"ImageSpec.embedding={self.embedding}: the condition is a class already; give one of them"
            )
        for name in ("class_names", "class_counts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists come from files
            if len(getattr(self, name)) not in (0, self.classes):
                raise ValueError(f"ImageSpec.{name} has {len(getattr(self, name))} entries for {self.classes} classes")
        if self.class_counts and (min(self.class_counts) < 0 or not any(self.class_counts)):
            raise ValueError(f"ImageSpec.class_counts={self.class_counts}: must be 0 or more, one of them more")

    @property
    def kind(self) -> Kind:
        """What one value is: an intensity, the number of a codebook's entry, or a coordinate."""
        return "tokens" if self.tokens else "pixels" if self.levels else "points"

    @property
    def condition(self) -> Literal["none", "class", "embedding"]:
        """What the data offer a model to be conditioned on."""
        return "class" if self.classes else "embedding" if self.embedding else "none"

    @property
    def dtype(self) -> torch.dtype:
        """The type of images outside a model: uint8; int32 for more than 256 tokens, float32 for points."""
        return torch.float32 if not self.levels else torch.uint8 if self.levels <= 256 else torch.int32

    def learned_as(self, kinds: Collection[Learned]) -> bool:
        """Whether a model of such kinds can learn the data."""
        return self.kind in kinds or ("binary" in kinds and self.kind == "pixels" and self.levels == 2)

    def require(self, kinds: Collection[Learned], model: str) -> None:
        """Refuse data of another kind than a model can learn.

        Args:
            kinds: those that it can.
            model: its name.

        Raises:
            UserError: naming both.
        """
        if not self.learned_as(kinds):
            able = " or ".join("binary pixels" if kind == "binary" else kind for kind in kinds)
            binarize = "binary" in kinds and self.kind == "pixels"
            fitting = " (those of points: docs/data.md)" if self.kind == "points" else ""
            remedy = "add data.binarize=dynamic" if binarize else f"choose other data or another model{fitting}"
            raise UserError(f"data: {model} is a model of {able}, these are {self.kind} ({self}); {remedy}")

    def require_picture(self, network: str, instead: str) -> None:
        """Refuse points in R^d, which have no neighbours, for a convolutional network.

        Args:
            network: what it is called.
            instead: what to choose.

        Raises:
            UserError: naming both.
        """
        if self.kind == "points":
            raise UserError(f"model: {network} is convolutional, and these are {self}; choose {instead}")

    def check(self, images: Tensor) -> None:
        """Refuse images that are not of this specification.

        Raises:
            UserError: another shape, type or range; the message has both.
        """
        if images.dtype != self.dtype or images.dim() != 4:
            expected = f"{self.dtype} (n, channels, height, width)".removeprefix("torch.")
            raise UserError(f"images are {images.dtype} of shape {tuple(images.shape)}: give {expected}")
        if tuple(images.shape[1:]) != self.shape:
            found = "x".join(map(str, images.shape[1:]))
            raise UserError(f"images of {found} for a model of {self}: give images of the model's shape")
        if not self.levels or not len(images):
            return
        if images.dtype != torch.uint8 and int(images.min()) < 0:
            raise UserError(f"tokens down to {int(images.min())}: give values 0..{self.levels - 1}")
        if int(images.max()) >= self.levels:
            raise UserError(
                f"pixel values up to {int(images.max())} for a model of {self.levels} levels: "
                f"give values 0..{self.levels - 1}" + " (binarise the images as in training)" * (self.levels == 2)
            )

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
        values = f"{self.channels}x{self.height}x{self.width}, {self.levels} {'tokens' if self.tokens else 'levels'}"
        text = values if self.levels else f"points in R^{self.channels}"
        text += f", {self.classes} classes" * (self.classes > 0)
        return text + f", embeddings of {self.embedding}" * (self.embedding > 0)


def normalize(images: Images, levels: int, dtype: torch.dtype = torch.float32) -> Normalized:
    """Integers 0..levels-1 to floating point in [-1, 1]; 0 goes to -1 and levels-1 to 1. Points (0 levels) stay."""
    if not levels:
        return images.to(dtype)
    return images.to(dtype).mul_(2 / (levels - 1)).sub_(1)


def quantize(signal: Normalized, levels: int) -> Images:
    """The inverse of :func:`normalize`, rounding to the nearest level and clipping what lies outside [-1, 1]."""
    if not levels:
        return signal.float()
    integers = signal.float().add(1).mul_((levels - 1) / 2).round_().clamp_(0, levels - 1)
    return integers.to(torch.uint8 if levels <= 256 else torch.int32)


def to_bytes(images: Images, levels: int) -> Images:
    """Integers 0..levels-1 to the full range 0..255, for pictures and feature extractors; of points, [-1, 1]."""
    if levels == 256:
        return images
    if not levels:
        return quantize(images, 256)
    return images.float().mul_(255 / (levels - 1)).round_().to(torch.uint8)


def bits_per_dim(nats: Tensor, spec: ImageSpec) -> Tensor:
    """Negative log-likelihood in bits per dimension from nats per image: nats / (dimensions * ln 2)."""
    return nats / (spec.dimensions * math.log(2))


def as_images(images: ImagesLike, spec: ImageSpec) -> Images:
    """Images of people's usual kinds as a uint8 tensor (n, channels, height, width), values as they are.

    Args:
        images: such a tensor; an array (n, channels, height, width), (n, height, width, channels) or, of gray images,
            (n, height, width); or PIL images, which become gray or RGB as the spec says.
        spec: what they should be.

    Raises:
        UserError: something else.
    """
    if isinstance(images, Tensor):
        return images
    if not isinstance(images, np.ndarray):
        if not all(isinstance(image, Image.Image) for image in images):
            raise UserError("images: give a uint8 tensor, a NumPy array or a list of PIL images")
        mode = "L" if spec.channels == 1 else "RGB"
        arrays = [np.asarray(image.convert(mode)) for image in images]
        if len({array.shape for array in arrays}) > 1:
            raise UserError(f"images of several sizes: give images of {spec.height}x{spec.width} pixels")
        images = np.stack(arrays) if arrays else np.zeros((0, *spec.shape), np.uint8)
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1:] != spec.shape and images.shape[-1] == spec.channels:
        images = images.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(images))


def as_labels(labels: LabelsLike, spec: ImageSpec) -> Tensor:
    """Classes, given by number or by name, as an int64 tensor (n,); embeddings as they are.

    Raises:
        UserError: a name that no class has.
    """
    if isinstance(labels, Tensor):
        return labels
    numbers = []
    for label in labels:
        if isinstance(label, str):
            if label not in spec.class_names:
                close = difflib.get_close_matches(label, spec.class_names, 1)
                known = ", ".join(spec.class_names[:20]) or "none that have a name"
                remedy = f"did you mean {close[0]}?" if close else f"there are {known}"
                raise UserError(f"labels={label}: no such class; {remedy}")
            label = spec.class_names.index(label)
        numbers.append(int(label))
    return torch.tensor(numbers, dtype=torch.long)
