"""What every figure is: a class with settings that draws one picture of a model.

A new figure is a file beside this one and a yaml in ``conf/figure/``; :class:`Figure` says what it promises.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar, get_args

import matplotlib.figure
from PIL import Image

from imago.data import ImageDataModule
from imago.data.base import Dataset, drawn, seen_by
from imago.errors import UserError
from imago.models.base import GenerativeModel
from imago.paths import writing_to
from imago.pictures import write_png
from imago.progress import Progress

Picture = Image.Image | matplotlib.figure.Figure
M = TypeVar("M", bound=GenerativeModel)


@dataclass(frozen=True)
class Trained(Generic[M]):
    """What a checkpoint holds.

    Attributes:
        model: in evaluation mode, on the device of choice.
        data: reads the data that the model was trained on; raises UserError where they cannot be had.
    """

    model: M
    data: Callable[[], ImageDataModule]


class Figure(ABC, Generic[M]):
    """A picture of a model; a dataclass, whose fields are its settings.

    Attributes:
        family: the models that it can be drawn of: GAN for a ``Figure[GAN]``.
        needs_checkpoint: whether there is nothing to draw without one.
    """

    family: ClassVar[type[GenerativeModel]]
    needs_checkpoint: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        (cls.family,) = get_args(getattr(cls, "__orig_bases__")[0])  # noqa: B009 - no attribute of classes in general

    @abstractmethod
    def draw(self, trained: Trained[M], progress: Progress) -> Picture:
        """Draw.

        Args:
            trained: the model of a checkpoint, a ``family``; where none is needed, ``None`` if none was named.
            progress: called with (steps done, steps in all).

        Raises:
            UserError: the settings do not fit the model or its data.
        """


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


def write(picture: Picture, path: Path) -> None:
    """Write a figure as PNG.

    Raises:
        UserError: it cannot be written.
    """
    with writing_to(path):
        write_png(picture, path)
