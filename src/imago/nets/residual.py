"""Residual convolutional encoder and decoder for any image shape.

The maps' sides follow the ladder ``ceil(side / 2^k)`` down to about 4 pixels. At each size residual blocks without
normalisation; between sizes strided convolutions on the way down and sub-pixel convolutions on the way up. Labels shift
every channel of the smallest map.
"""

import math
from itertools import pairwise

from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, channels_last, nn
from torch.nn import functional as F

from imago.capacity import Width
from imago.images import ImageSpec, Labels, Normalized
from imago.nets.dcgan import size_ladder


class Block(nn.Module):
    """h + convolution(ELU(convolution(ELU(h)))), the second convolution small at first (Zhang et al. 2019, Fixup)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.normal_(self.second.weight, 0.0, 0.1 / math.sqrt(9 * channels))

    def forward(self, h: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """See the class."""
        return h + self.second(F.elu(self.first(F.elu(h))))


def channels_of(width: int, widest: int, sizes: int) -> list[int]:
    """Channels from the largest map to the smallest: doubled with each halving, up to ``widest``."""
    return [min(width * 2**k, max(width, widest)) for k in range(sizes)]


class ResidualEncoder(nn.Module):
    """Image → residual blocks at each size → a vector.

    Args:
        spec: the images.
        outputs: length of the vector.
        classes: number of classes, 0 for an unconditional model.
        width: channels at the image's own size; every halving doubles them.
        widest: at most so many channels.
        blocks: residual blocks at each size but the image's own.
        depth: number of halvings, ``None`` to choose it from the image size.
    """

    def __init__(
        self,
        spec: ImageSpec,
        outputs: int,
        classes: int,
        width: Width = 32,
        widest: Width = 128,
        blocks: NonNegativeInt = 1,
        depth: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        spec.require_picture("ResidualEncoder", "model=vae or model/energy=mlp, which are fully connected")
        sizes = size_ladder(spec, depth)[::-1]
        channels = channels_of(width, widest, len(sizes))
        self.first = nn.Conv2d(spec.channels, channels[0], 3, padding=1)
        self.halvings = nn.ModuleList(nn.Conv2d(c, d, 3, stride=2, padding=1) for c, d in pairwise(channels))
        self.blocks = nn.ModuleList(nn.Sequential(*(Block(c) for _ in range(blocks))) for c in channels[1:])
        self.embed = nn.Embedding(classes, channels[-1]) if classes else None
        self.last = nn.Linear(channels[-1] * math.prod(sizes[-1]), outputs)
        self.to(memory_format=channels_last)

    def forward(self, x: Normalized, labels: Labels | None = None) -> Float[Tensor, "n outputs"]:
        """The vectors."""
        h = self.first(x).contiguous(memory_format=channels_last)
        for halve, blocks in zip(self.halvings, self.blocks, strict=True):
            h = blocks(halve(F.elu(h)))
        if self.embed is not None:
            h = h + self.embed(labels)[:, :, None, None]
        return self.last(F.elu(h).permute(0, 2, 3, 1).flatten(1))


class ResidualDecoder(nn.Module):
    """A vector → residual blocks at each size → the parameters of every value's distribution.

    Args:
        spec: the images.
        latent: length of the vector.
        parameters: how many numbers describe the distribution of a value.
        classes: number of classes, 0 for an unconditional model.
        width: channels at the image's own size; every halving doubles them.
        widest: at most so many channels.
        blocks: residual blocks at each size but the image's own.
        depth: number of doublings, ``None`` to choose it from the image size.
    """

    def __init__(
        self,
        spec: ImageSpec,
        latent: int,
        parameters: int,
        classes: int,
        width: Width = 32,
        widest: Width = 128,
        blocks: NonNegativeInt = 1,
        depth: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        spec.require_picture("ResidualDecoder", "model=vae, which is fully connected")
        self.sizes = size_ladder(spec, depth)
        self.spec = spec
        channels = channels_of(width, widest, len(self.sizes))[::-1]
        self.first = nn.Linear(latent, channels[0] * math.prod(self.sizes[0]))
        self.embed = nn.Embedding(classes, channels[0]) if classes else None
        self.blocks = nn.ModuleList(nn.Sequential(*(Block(c) for _ in range(blocks))) for c in channels[:-1])
        # Sub-pixel convolution (Shi et al. 2016): four times the channels, and each group of four becomes a 2x2 square.
        self.doublings = nn.ModuleList(nn.Conv2d(c, 4 * d, 3, padding=1) for c, d in pairwise(channels))
        self.last = nn.Conv2d(channels[-1], spec.channels * parameters, 3, padding=1)
        self.to(memory_format=channels_last)

    def forward(
        self, z: Float[Tensor, "n latent"], labels: Labels | None = None
    ) -> Float[Tensor, "n channels height width parameters"]:
        """The parameters."""
        h = self.first(z).view(len(z), *self.sizes[0], -1).permute(0, 3, 1, 2)
        if self.embed is not None:
            h = h + self.embed(labels)[:, :, None, None]
        for blocks, double, (height, width) in zip(self.blocks, self.doublings, self.sizes[1:], strict=True):
            h = F.pixel_shuffle(double(F.elu(blocks(h))), 2)[:, :, :height, :width]
            h = h.contiguous(memory_format=channels_last)
        out = self.last(F.elu(h)).permute(0, 2, 3, 1)
        return out.unflatten(3, (self.spec.channels, -1)).permute(0, 3, 1, 2, 4)
