"""RealNVP: affine couplings under fixed masks, on several scales.

A coupling scales and shifts one half of the values by what a network says of the other half (Dinh et al. 2017, eq. 4-8)

    y_a = x_a,    y_b = x_b ⊙ exp(s(x_a)) + t(x_a),    log|det| = Σ s(x_a).                                     (1)

One that leaves x_a alone is followed by one that changes it. The halves are those of a *checkerboard* of pixels, or of
the *channels* (section 3.4). A level has couplings with checkerboards, a squeeze of 2x2 pixels to four channels, and
couplings with halves of channels; then half of the channels leave for z, and the rest goes on at half the sides
(section 3.6).

Here the squeeze comes first. Pixels (0, 0) and (1, 1) of each block are one colour of the checkerboard and (0, 1) and
(1, 0) the other: the same partition, and a convolution over blocks with four times the channels can be any convolution
of the same reach over pixels. It has a quarter of the places to go to, and no half of its input is zeros. The halves of
channels are then the upper and the lower pixels of each block. In place of batch normalisation stands ActNorm
(:class:`~imago.nets.invertible.ActNorm` says why). With ``components`` the couplings are mixtures of logistics in place
of affine maps (:class:`~imago.nets.invertible.MixtureCoupling`).

Dinh, Sohl-Dickstein & Bengio 2017, "Density estimation using Real NVP".
"""

from collections.abc import Iterator
from typing import Unpack

from pydantic import NonNegativeInt, PositiveInt

from imago.capacity import Width
from imago.images import ImageSpec
from imago.models.flow import FlowSettings, NormalizingFlow
from imago.models.glow import check_coupled
from imago.nets.invertible import (
    ActNorm,
    Invertible,
    MultiScale,
    NetSettings,
    Permute,
    Scale,
    coupling,
    scales_of,
)


class RealNVP(NormalizingFlow):
    """A multi-scale flow with fixed masks.

    Args:
        spec: the images.
        levels: of which each halves the sides; fewer where these are odd.
        couplings: of each level with either mask, two or more for every value to change.
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
        couplings: PositiveInt = 3,
        width: Width = 32,
        components: NonNegativeInt = 0,
        **settings: Unpack[FlowSettings],
    ) -> None:
        super().__init__(spec, **settings)
        check_coupled(spec, type(self).__name__)
        nets = NetSettings(width, self.classes, components=components)

        def layers(scale: Scale) -> Iterator[Invertible]:
            before = list(range(scale.channels))
            for order in (checkerboard(scale), halves(scale)):
                yield Permute([before.index(k) for k in order])
                before = order
                for k in range(couplings):
                    yield ActNorm(scale.channels)
                    yield coupling(scale.channels, scale.sides, nets, swapped=bool(k % 2))

        self.net["flow"] = MultiScale(scales_of(spec.shape, levels), layers)


def checkerboard(scale: Scale) -> list[int]:
    """Channels of a squeezed map, first those of pixels (i, j) of a block with i + j even, then the others.

    Where a level has no blocks, the channels take the place of pixels.
    """
    rows, columns = scale.block
    places = range(rows * columns)

    def colour(channel: int) -> int:
        place = channel % (rows * columns)
        return (place // columns + place % columns) % 2 if len(places) > 1 else channel % 2

    return sorted(range(scale.channels), key=colour)


def halves(scale: Scale) -> list[int]:
    """Channels of a squeezed map by their place in the block: the first half are its upper pixels."""
    pixels = scale.block[0] * scale.block[1]
    return sorted(range(scale.channels), key=lambda channel: channel % pixels)
