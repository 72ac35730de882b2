"""Noise that makes real numbers of integers, so that a density can be trained on them.

A density p on R^D gives every integer image x a probability, its integral over the cube of side 1 at x. With any
density q(u|x) on the cube (Ho et al. 2019, "Flow++", eq. 11-12; Theis et al. 2016, section 3.1 for the uniform one)

    log P(x) = log ∫ p(x + u) du ≥ E_q[log p(x + u) − log q(u|x)],    u in [0, 1)^D.                            (1)

The distance is KL(q(u|x) ‖ p(u|x)), where p(u|x) ∝ p(x + u): with uniform noise p has to fill every cube evenly to be
near its bound, and what it is made of, Gaussians bent a little, fills no cube evenly. A q that is learned becomes what
p is inside of the cubes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from imago.capacity import Width
from imago.images import Images, ImageSpec, Normalized, normalize
from imago.nets.invertible import (
    AffineCoupling,
    AffineOfGiven,
    Chain,
    Invertible,
    NetSettings,
    Permute,
    Squeeze,
    convolution,
    log_normal,
    scales_of,
)

Normal = Callable[..., Tensor]
AS_LOGISTIC = 1.7  # the standard deviation of a normal distribution nearest to the logistic, which a sigmoid makes even


class Dequantization(nn.Module, ABC):
    """A density q(u|x) on the cube.

    Attributes:
        name: for the protocol of what is measured.
    """

    name: ClassVar[str]

    @abstractmethod
    def forward(self, images: Images, normal: Normal) -> tuple[Normalized, Float[Tensor, " n"]]:
        """Draw u ~ q(u|x).

        Args:
            images: uint8 (n, channels, height, width).
            normal: source of standard normal numbers that belong to images.

        Returns:
            u in [0, 1], of the images' shape, and log q(u|x) in nats, (n,).
        """


class Uniform(Dequantization):
    """Uniform noise: nothing is learned, log q = 0.

    Args:
        spec: the images.
    """

    name = "uniform"

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, images: Images, normal: Normal) -> tuple[Normalized, Float[Tensor, " n"]]:
        """See the base class."""
        noise = torch.special.ndtr(normal(len(images), *self.spec.shape))
        return noise, noise.new_zeros(len(images))


class Variational(Dequantization):
    """A conditional flow from normal noise to the cube (Ho et al. 2019, section 3.1.1).

    u = sigmoid(f(ε; h(x))): an affine map of every ε by what a network says of x, and couplings that read it too, on
    blocks of 2x2 pixels.

    Args:
        spec: the images.
        width: features of h and of the couplings' networks.
        couplings: how many.
    """

    name = "variational"

    def __init__(self, spec: ImageSpec, *, width: Width = 16, couplings: PositiveInt = 2) -> None:
        super().__init__()
        self.spec = spec
        scale = scales_of(spec.shape, 1)[0]
        channels, sides = scale.channels, scale.sides
        self.squeeze = Squeeze(*scale.block)
        self.first = convolution(channels, width, sides)
        self.second = convolution(width, width, sides, 2**0.5)
        settings = NetSettings(width, context=width)
        order = [*range(0, channels, 2), *range(1, channels, 2)]
        layers: list[Invertible] = [AffineOfGiven(channels, sides, width), Permute(order)]
        if channels > 1:
            layers += [AffineCoupling(channels, sides, settings, swapped=bool(k % 2)) for k in range(couplings)]
        self.flow = Chain([*layers, Permute([order.index(k) for k in range(channels)])])
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Images, normal: Normal) -> tuple[Normalized, Float[Tensor, " n"]]:
        """See the base class."""
        seen, _ = self.squeeze(normalize(images, self.spec.levels, self.first.weight.dtype))
        context = F.relu(self.second(F.relu(self.first(seen), inplace=True)), inplace=True)
        noise = normal(len(images), *self.spec.shape)
        y, log_det = self.flow(self.squeeze(noise)[0] * AS_LOGISTIC, context)
        # of u = sigmoid(y(1.7 ε)): log σ'(y) = log σ(y) + log σ(−y)
        log_slope = (F.logsigmoid(y) + F.logsigmoid(-y)).flatten(1).sum(1) + self.spec.dimensions * math.log(
            AS_LOGISTIC
        )
        return self.squeeze.inverse(torch.sigmoid(y)), log_normal(noise) - log_det - log_slope
