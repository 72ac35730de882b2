"""Which errors of the network count how much in training. What is reported is the bound, whichever is chosen."""

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor


class DiffusionLoss(ABC):
    """A function of two errors of an image at a random t.

    Attributes:
        needs_bound: whether ``bits`` is used; computing it takes a little time.
        bound_trains_mean: whether the gradient of ``bits`` reaches the mean; if not, only a learned variance.
    """

    needs_bound: ClassVar[bool] = True
    bound_trains_mean: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, squared: Tensor, bits: Tensor) -> Tensor:
        """The loss of each image, (n,).

        Args:
            squared: mean squared error of the prediction.
            bits: T times the term of the bound that belongs to t, in bits per dimension: on average over t the bound,
                up to the constant L_T, of estimates that are not clipped to what an image can be, as the reported
                one's are, so that gradients reach them all.
        """


class Simple(DiffusionLoss):
    """‖ε − ε_θ‖², or whatever the network predicts: the bound without its weights (Ho et al. 2020, eq. 14)."""

    needs_bound = False

    def __call__(self, squared: Tensor, bits: Tensor) -> Tensor:
        """The squared error."""
        return squared


class VLB(DiffusionLoss):
    """The bound (Ho et al. 2020, eq. 5): best likelihood, worse samples, noisier gradient."""

    def __call__(self, squared: Tensor, bits: Tensor) -> Tensor:
        """The bits."""
        return bits


class Hybrid(DiffusionLoss):
    """L_simple + λ L_vlb, where L_vlb moves the variance only (Nichol & Dhariwal 2021, eq. 16).

    Args:
        weight: λ.
    """

    bound_trains_mean = False

    def __init__(self, weight: PositiveFloat = 0.001) -> None:
        self.weight = weight

    def __call__(self, squared: Tensor, bits: Tensor) -> Tensor:
        """Both."""
        return squared + self.weight * bits
