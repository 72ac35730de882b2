"""Glow: couplings between learned mixtures of channels.

A step of the flow is (Kingma & Dhariwal 2018, figure 2a; :mod:`imago.nets.invertible` has the formulas)

    ActNorm → invertible 1x1 convolution → affine coupling.                                                    (1)

A coupling changes half of the channels given the other half. Which half is which is for the convolution to say: a
matrix W of the channels, the same at every pixel, learned as W = P L (U + diag(d)) so that its determinant is a
product. A *level* is a squeeze, which makes four channels of each block of 2x2 pixels, and K steps; after it half of
the channels leave for z and the other half goes on at half the sides (figure 2b). What leaves is given a normal
distribution by what stays, which is one more coupling with the same formulas: scaled and shifted, it is standard normal
like all of z.

Kingma & Dhariwal 2018, "Glow: Generative flow with invertible 1x1 convolutions".
"""

from collections.abc import Iterator
from typing import Unpack

from pydantic import NonNegativeInt, PositiveInt

from imago.capacity import Width
from imago.errors import UserError
from imago.images import ImageSpec
from imago.models.flow import FlowSettings, NormalizingFlow
from imago.nets.invertible import (
    ActNorm,
    AffineCoupling,
    Invertible,
    InvertibleConv,
    MultiScale,
    NetSettings,
    Scale,
    coupling,
    scales_of,
)


class Glow(NormalizingFlow):
    """A multi-scale flow with invertible 1x1 convolutions.

    Args:
        spec: the images.
        levels: of which each halves the sides; fewer where these are odd.
        steps: K of each level.
        width: features of the couplings' networks.
        components: logistics in :class:`~imago.nets.invertible.MixtureCoupling`, 0 for affine couplings.
        settings: see :class:`FlowSettings`; a conditional model's labels enter every coupling's network.

    Raises:
        UserError: data of a single value, of which nothing is left to be given.
    """

    def __init__(
        self,
        spec: ImageSpec,
        *,
        levels: PositiveInt = 2,
        steps: PositiveInt = 4,
        width: Width = 32,
        components: NonNegativeInt = 0,
        **settings: Unpack[FlowSettings],
    ) -> None:
        super().__init__(spec, **settings)
        check_coupled(spec, type(self).__name__)
        nets = NetSettings(width, self.classes, components=components)

        def layers(scale: Scale) -> Iterator[Invertible]:
            for _ in range(steps):
                yield ActNorm(scale.channels)
                yield InvertibleConv(scale.channels)
                yield coupling(scale.channels, scale.sides, nets)

        def leaving(scale: Scale) -> Invertible:
            return AffineCoupling(scale.channels, scale.sides, nets)

        self.net["flow"] = MultiScale(scales_of(spec.shape, levels), layers, leaving)


def check_coupled(spec: ImageSpec, model: str) -> None:
    """Refuse data of a single value, which has no other half.

    Raises:
        UserError: naming what can learn it.
    """
    if spec.dimensions == 1:
        raise UserError(f"data: a {model} couples values, and these have one ({spec}); choose model=maf or other data")
