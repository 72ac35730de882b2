"""Convolutional generator and discriminator (Radford, Metz & Chintala 2016, section 3 and figure 1).

The generator starts from a small map and doubles it with strided transposed convolutions; the discriminator mirrors it
with strided convolutions. Batch norm everywhere but at the generator's output and the discriminator's input.

Any image size: the map's sides follow the ladder ``ceil(side / 2^k)``, so that 28 goes 4 → 7 → 14 → 28. Where a doubled
map is one pixel too large it is cropped; where a map to be halved is odd it is padded by one.
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from imago.capacity import Width
from imago.errors import UserError
from imago.images import ImageSpec, Labels, Normalized
from imago.nets.mlp import normalise_spectrally


def size_ladder(spec: ImageSpec, depth: int | None, key: str = "depth") -> list[tuple[int, int]]:
    """(height, width) of the maps from the smallest to the image itself, ``depth`` doublings apart.

    ``depth=None`` chooses the number of doublings that leaves about four pixels on the shorter side.

    Args:
        spec: the images.
        depth: number of doublings.
        key: the setting that it comes from, for messages.

    Raises:
        UserError: more doublings than the shorter side has halvings.
    """
    side = min(spec.height, spec.width)
    if depth is None:
        depth = max(1, round(math.log2(side / 4)))
    if depth > (deepest := max(1, math.ceil(math.log2(side)))):
        raise UserError(
            f"{key}: {depth} halvings do not fit into images of {spec.height}x{spec.width} pixels; "
            f"give at most {deepest}"
        )
    return [(-(-spec.height // 2**k), -(-spec.width // 2**k)) for k in range(depth, -1, -1)]


def _initialise(net: nn.Module) -> None:
    """Weights from N(0, 0.02²) (Radford et al. 2016, section 4), batch-norm scales from N(1, 0.02²), as coded."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)


def folded(conv: Any, norm: Any, transpose: bool) -> tuple[Tensor, Tensor]:
    """Weight and bias of a (transposed) convolution that does what ``norm(conv(x))`` does in evaluation mode.

    A batch norm with fixed statistics only scales and shifts channels; folding saves a pass over the maps.
    """
    return fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias, transpose
    )


class DCGANGenerator(nn.Module):
    """z → small map → transposed convolutions → image.

    Args:
        spec: the images to make.
        latent: length of z.
        classes: number of classes, 0 for an unconditional generator.
        width: channels of the largest hidden map; every halving of the map doubles them.
        depth: number of doublings, ``None`` to choose it from the image size.
    """

    def __init__(
        self,
        spec: ImageSpec,
        latent: int,
        classes: int,
        width: Width = 64,
        depth: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        spec.require_picture("DCGANGenerator", "model=gan, which is fully connected")
        self.sizes = size_ladder(spec, depth)
        channels = [width * 2**k for k in reversed(range(len(self.sizes) - 1))]
        height, base_width = self.sizes[0]
        # A transposed convolution of a 1x1 map is a matrix product. Its output is laid out as (height, width,
        # channels), the channels-last order in which the convolutions below are fastest.
        self.project = nn.Linear(latent, height * base_width * channels[0], bias=False)
        self.embed = nn.Embedding(classes, height * base_width * channels[0]) if classes else None
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels)
        self.doublings = nn.ModuleList(
            nn.ConvTranspose2d(c, d, 4, stride=2, padding=1, bias=k == len(channels) - 1)
            for k, (c, d) in enumerate(pairwise([*channels, spec.channels]))
        )
        _initialise(self)
        if self.embed is not None:  # a label says as much as z does at first
            nn.init.normal_(self.embed.weight, 0.0, 0.02 * math.sqrt(latent))
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Float[Tensor, "n latent"], labels: Labels | None = None) -> Normalized:
        """Signals in [-1, 1], (n, channels, height, width)."""
        h = self.project(z)
        if self.embed is not None:
            h = h + self.embed(labels)
        h = h.view(len(z), *self.sizes[0], -1).permute(0, 3, 1, 2)
        h = self.norms[0](h)
        for k, (double, (height, width)) in enumerate(zip(self.doublings, self.sizes[1:], strict=True)):
            h = h.relu_()  # in place: neither batch norm nor convolution needs its output to go backwards
            norm = self.norms[k + 1] if k + 1 < len(self.norms) else None
            if norm is None or self.training:
                h = double(h)[..., :height, :width]
                h = h if norm is None else norm(h)
            else:
                weight, bias = folded(double, norm, transpose=True)
                h = F.conv_transpose2d(h, weight, bias, stride=2, padding=1)[..., :height, :width]
        return torch.tanh(h)


class DCGANDiscriminator(nn.Module):
    """Image → strided convolutions → one logit.

    Args:
        spec: the images to judge.
        classes: number of classes, 0 for an unconditional discriminator; a label enters as one more image plane.
        width: channels after the first convolution; every halving of the map doubles them.
        depth: number of halvings, ``None`` to choose it from the image size.
        batch_norm: normalise every map but the first and the last. Penalties on single images' gradients need it off.
        spectral_norm: divide every weight by its largest singular value (Miyato et al. 2018).
    """

    def __init__(
        self,
        spec: ImageSpec,
        classes: int,
        width: Width = 64,
        depth: PositiveInt | None = None,
        batch_norm: bool = True,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        spec.require_picture("DCGANDiscriminator", "model=gan, which is fully connected")
        sizes = size_ladder(spec, depth)
        channels = [width * 2**k for k in range(len(sizes) - 1)]
        self.plane = nn.Embedding(classes, spec.height * spec.width) if classes else None
        first = spec.channels + bool(classes)
        self.halvings = nn.ModuleList(
            nn.Conv2d(c, d, 4, stride=2, padding=1, bias=k == 0 or not batch_norm)
            for k, (c, d) in enumerate(pairwise([first, *channels]))
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(d) if batch_norm and k > 0 else nn.Identity() for k, d in enumerate(channels)
        )
        self.judge = nn.Conv2d(channels[-1], 1, sizes[0])
        _initialise(self)
        if spectral_norm:
            normalise_spectrally(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Normalized, labels: Labels | None = None) -> Float[Tensor, " n"]:
        """Logits (n,): large for images taken to be real."""
        if self.plane is not None:
            x = torch.cat([x, self.plane(labels).view(-1, 1, *x.shape[2:])], dim=1)
        h = x.contiguous(memory_format=torch.channels_last)
        for halve, norm in zip(self.halvings, self.norms, strict=True):
            height, width = h.shape[2:]
            if height % 2 or width % 2:
                h = F.pad(h, (0, width % 2, 0, height % 2))
            h = F.leaky_relu(norm(halve(h)), 0.2, inplace=True)
        return self.judge(h).flatten()
