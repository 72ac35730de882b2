"""What a model that draws an image step by step can do besides: show the steps."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor

from imago.diffusion.samplers import State
from imago.models.base import GenerativeModel
from imago.rng import PerImageGenerator


class Stepwise(GenerativeModel, ABC):
    """A model whose samples are the end of a trajectory of images."""

    @property
    @abstractmethod
    def moments(self) -> int:
        """How many states a trajectory has."""

    @abstractmethod
    def trajectory(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Iterator[State]:
        """Yield the states of ``n`` samples, the last of which has the samples, in the present mode.

        Args:
            n: number of samples.
            labels: of each on the model's device, conditional models only.
            generator: the random stream of each.
        """
