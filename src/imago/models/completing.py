"""What a model that draws value after value can do besides: complete images of which a part is known."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from imago.errors import UserError
from imago.images import Images, ImagesLike, LabelsLike
from imago.models.base import GenerativeModel, evaluating
from imago.rng import PerImageGenerator


class Completing(GenerativeModel, ABC):
    """A model that draws the values of an image from distributions given other values, so that some may be given.

    Attributes:
        any_order: whether all that is known counts, wherever it is; if not, only what stands before a hidden value.
        temperature: divides the log-probabilities of :meth:`sample` and :meth:`complete`; 1 samples the model itself.
    """

    any_order: ClassVar[bool]

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.temperature = 1.0

    @abstractmethod
    def draw_values(
        self,
        n: int,
        labels: Tensor | None,
        generator: PerImageGenerator,
        given: Images | None,
        known: Tensor | None,
    ) -> Images:
        """Draw ``n`` images in the present mode.

        Args:
            n: number of images.
            labels: int64 (n,), conditional models only.
            generator: the random stream of each image.
            given: (n, channels, height, width), of which some values are kept; ``None`` keeps none.
            known: bool of the same shape, true where a value is kept.
        """

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        """Value after value from its distribution given others."""
        return self.draw_values(n, labels, generator, None, None)

    @torch.no_grad()
    def complete(
        self,
        images: ImagesLike,
        mask: Tensor,
        *,
        labels: LabelsLike | None = None,
        generator: PerImageGenerator,
        progress: Callable[[int, int], None] | None = None,
    ) -> Images:
        """Keep the known values and draw the others.

        Each is drawn given what is known, and drawn already, where :attr:`any_order`; else given all values before it:
        what is known *below* a hidden value then has no influence on it, and only images that are hidden from some
        point on are completed exactly.

        Args:
            images: (n, channels, height, width) of the data's type.
            mask: bool, true where the value is known; any shape that broadcasts to the images'.
            labels: int64 (n,), for conditional models.
            generator: the random stream of each image.
            progress: called with (steps so far, steps in all).

        Returns:
            Images of the same shape and type.

        Raises:
            UserError: images, labels or a mask that the model was not made for.
        """
        images, labels = self.checked(images, labels)
        if mask.dtype != torch.bool:
            raise UserError(f"mask is {mask.dtype}: give torch.bool, true where a value is known")
        try:
            known = mask.to(self.device).expand(images.shape)
        except RuntimeError:
            raise UserError(
                f"mask of shape {tuple(mask.shape)} for images of {tuple(images.shape)}: give one that broadcasts"
            ) from None
        if not len(images):
            return images
        self._progress = progress
        try:
            with evaluating(self):
                return self.draw_values(len(images), labels, generator, images, known)
        finally:
            self._progress = None
