"""What every figure is: a class with settings that draws one picture of a model.

A new figure is a file beside this one and a yaml in ``conf/figure/``; :class:`Figure` says what it promises.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar, get_args

import matplotlib.figure
import torch
from PIL import Image

from imago.data import ImageDataModule
from imago.data.base import Dataset, drawn, seen_by
from imago.errors import UserError
from imago.figures.styles import STYLES, restyle
from imago.files import replacing
from imago.models.base import GenerativeModel
from imago.paths import writing_to
from imago.pictures import write_png
from imago.progress import Progress

Picture = Image.Image | matplotlib.figure.Figure
M = TypeVar("M", bound=GenerativeModel)
MOST_FRAMES = 60
LONGEST_SIDE = 800  # pixels of an animation
MILLISECONDS, SHORTEST, END = 5000, 80, 1500  # of an animation, at least of each frame, of the last one


@dataclass(frozen=True)
class Trained(Generic[M]):
    """What a checkpoint holds.

    Attributes:
        model: in evaluation mode, on the device of choice.
        data: reads the data that the model was trained on; raises UserError where they cannot be had.
        folder: of the run, with the samples that it kept.
    """

    model: M
    data: Callable[[], ImageDataModule]
    folder: Path = Path()


class Figure(ABC, Generic[M]):
    """A picture of a model; a dataclass, whose fields are its settings.

    Attributes:
        family: the models that it can be drawn of: GAN for a ``Figure[GAN]``.
        needs_checkpoint: whether there is nothing to draw without one.
        pixels: whether it draws pixels, and no lines and letters of any size.
    """

    family: ClassVar[type[GenerativeModel]]
    needs_checkpoint: ClassVar[bool] = True
    pixels: ClassVar[bool]

    def __init_subclass__(cls) -> None:
        (cls.family,) = get_args(getattr(cls, "__orig_bases__")[0])  # noqa: B009 - no attribute of classes in general
        cls.pixels = cls.draw.__annotations__["return"] is Image.Image

    @abstractmethod
    def draw(self, trained: Trained[M], progress: Progress) -> Picture:
        """Draw.

        Args:
            trained: the model of a checkpoint, a ``family``; where none is needed, ``None`` if none was named.
            progress: called with (steps done, steps in all).

        Raises:
            UserError: the settings do not fit the model or its data.
        """


class Animated(Figure[M]):
    """A figure of something that takes its course, which an animation shows."""

    @abstractmethod
    def frames(self, trained: Trained[M], progress: Progress) -> list[Image.Image]:
        """Draw the moments of an animation, one or more and at most :data:`MOST_FRAMES`, of one size.

        Arguments and errors are those of :meth:`draw`.
        """


def spread(count: int, most: int) -> list[int]:
    """The numbers of ``count`` things, or of ``most`` of them from the first to the last."""
    return torch.linspace(0, count - 1, min(most, count)).round().long().tolist()


def held_out(model: GenerativeModel, data: ImageDataModule, split: str, wanted: int = 0) -> Dataset:
    """The images of a split that a model can be asked about, see :func:`imago.data.base.seen_by`.

    Args:
        wanted: that many of them, as ``figure.images`` says, drawn at random and the same every time; 0 for all.

    Raises:
        UserError: there is none, or there are fewer.
    """
    part = seen_by(model, data.split(split))
    if not len(part):
        raise UserError(
            f"{data.name} {split}: no image is of a class that has training images; give a checkpoint of an "
            "unconditional model"
        )
    if wanted > len(part):
        raise UserError(f"figure.images={wanted}: {data.name} {split} has {len(part)}; give fewer")
    return drawn(part, split, wanted) if wanted else part


def write(picture: Picture, path: Path, style: str | None = None) -> None:
    """Write a figure as PNG, or a drawing as SVG or PDF, as the name ends.

    Args:
        picture: the figure.
        path: the file.
        style: of drawings, one of :data:`imago.figures.styles.STYLES`; ``None`` for the figure's own.

    Raises:
        UserError: it cannot be written.
    """
    dpi = 100
    if style is not None and not isinstance(picture, Image.Image):
        restyle(picture, STYLES[style])
        dpi = STYLES[style].dpi
    with writing_to(path):
        if path.suffix == ".png" or isinstance(picture, Image.Image):
            write_png(picture, path, dpi)
        else:
            with replacing(path) as file, matplotlib.rc_context({"pdf.fonttype": 42}):  # letters stay letters
                picture.savefig(file, format=path.suffix[1:], dpi=300)


def write_animation(frames: list[Image.Image], path: Path) -> None:
    """Write frames as an endless GIF or WebP, as the name ends; the last one is shown longer.

    Raises:
        UserError: it cannot be written.
    """
    scale = min(1, LONGEST_SIDE / max(frames[0].size))
    size = (round(scale * frames[0].width), round(scale * frames[0].height))
    first, *rest = (frame.convert("RGB").resize(size, Image.Resampling.LANCZOS) for frame in frames)
    pause = max(MILLISECONDS // len(frames), SHORTEST)
    durations = [pause] * len(rest) + [END]
    with writing_to(path), replacing(path) as file:
        first.save(file, path.suffix[1:], save_all=True, append_images=rest, duration=durations, loop=0)
