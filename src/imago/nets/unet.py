"""The U-Net of diffusion models (Ho et al. 2020, appendix B), for any image size.

An image goes down a ladder of maps, each with half the sides and more channels, and up again; on the way up every block
reads what the block of the same size on the way down has left. Residual blocks throughout, with group normalisation;
the time t (and the class) enters every one of them; at chosen sizes pixels attend to each other.

Sides follow ``ceil(side / 2^k)``: 28 goes 14, 7, 4, and what is enlarged from 4 to 8 is cut to 7.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from imago.capacity import Width
from imago.errors import UserError
from imago.images import ImageSpec, Labels
from imago.nets.dcgan import size_ladder
from imago.nets.together import Dropout

Maps = Float[Tensor, "n channels height width"]
NewMaps = Float[Tensor, "n new_channels height width"]
Vector = Float[Tensor, "rows numbers"]

# Last layers of blocks at first, in units of LeCun's weights. Ho et al. have 0; then what stands before learns nothing.
SMALL = 0.1
SLOWEST = 1e-4  # lowest frequency of the time's code, in radians for a step of T = 1000


def groups_of(channels: int) -> int:
    """The largest divisor of a number of channels that leaves four or more in a group, as the paper's 32 of 128 do.

    At most 32; fewer channels in a group would leave a map of one pixel with nothing but its sign.
    """
    return max(k for k in range(1, max(1, min(32, channels // 4)) + 1) if channels % k == 0)


def convolution(inputs: int, outputs: int, kernel: int, scale: float = 1.0, stride: int = 1) -> nn.Conv2d:
    """Weights such that outputs vary as much as inputs, times ``scale``."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
    nn.init.normal_(layer.weight, 0.0, scale / math.sqrt(inputs * kernel**2))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def time_code(position: Float[Tensor, " rows"], length: int) -> Vector:
    """Sines and cosines of t / T at geometrically spaced frequencies (Vaswani et al. 2017, section 3.5).

    Args:
        position: t / T, in (0, 1].
        length: numbers in the code; one that is odd has a zero at its end.
    """
    half = length // 2
    frequencies = torch.exp(torch.arange(half, device=position.device) * (math.log(SLOWEST) / max(1, half - 1)))
    angles = 1000 * position[:, None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, length - 2 * half))


def _layout(x: Tensor) -> torch.memory_format:
    """In which the normalisation takes ``x``; on a GPU that is channels first."""
    last = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class _NormSiLU(torch.autograd.Function):
    """SiLU of group normalisation that keeps its input alone for the way back, and not what lies between the two.

    Its gradient has none of its own: torch refuses to differentiate it again.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """Of (n, channels, height, width)."""
        n, channels, height, width = x.shape
        # Under autocast what is kept is half as long, what is computed is not.
        full = x.to(weight.dtype).contiguous(memory_format=_layout(x))
        normed, mean, rstd = torch.native_group_norm(full, weight, bias, n, channels, height * width, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.eps = groups, eps  # type: ignore[attr-defined]
        return F.silu(normed, inplace=True).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """The normalisation once more, which costs less than the memory it would have taken."""
        x, weight, bias, mean, rstd = ctx.saved_tensors
        n, channels, height, width = x.shape
        shape = (n, channels, height * width, ctx.groups)
        layout = _layout(x)
        full = x.to(weight.dtype).contiguous(memory_format=layout)
        normed = torch.native_group_norm(full, weight, bias, *shape, ctx.eps)[0]
        gradient = torch.ops.aten.silu_backward(gradient.to(weight.dtype).contiguous(memory_format=layout), normed)
        of_x, of_weight, of_bias = torch.ops.aten.native_group_norm_backward(
            gradient, full, mean, rstd, weight, *shape, [True, True, True]
        )
        return of_x.to(x.dtype), of_weight, of_bias, None, None


class NormSiLU(nn.GroupNorm):
    """Group normalisation and SiLU: y ↦ y · sigmoid(y)."""

    def __init__(self, channels: int) -> None:
        super().__init__(groups_of(channels), channels)

    def forward(self, input: Maps) -> Maps:
        """See the class."""
        if not torch.is_grad_enabled():
            return F.silu(super().forward(input), inplace=True)
        return _NormSiLU.apply(input, self.weight, self.bias, self.num_groups, self.eps)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3, plus what t and the class say, norm, SiLU, dropout, 3x3; added to the input.

    Args:
        inputs: channels.
        outputs: channels.
        dropout: share of values set to 0 in training.
    """

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.outputs = outputs
        self.norm_in = NormSiLU(inputs)
        self.conv_in = convolution(inputs, outputs, 3)
        self.norm_out = NormSiLU(outputs)
        self.dropout = Dropout(dropout)
        self.conv_out = convolution(outputs, outputs, 3, SMALL)
        self.skip = convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Maps, shift: Vector) -> NewMaps:
        """``shift`` (n or 1, outputs) is added to every pixel."""
        h = self.conv_in(self.norm_in(x))
        h += shift[:, :, None, None]
        h = self.conv_out(self.dropout(self.norm_out(h)))
        h += self.skip(x)
        return h


class Attention(nn.Module):
    """Every pixel reads from all pixels (Vaswani et al. 2017), added to the input.

    Args:
        channels: of the map.
        head: channels of each head; the number of heads is what they make.
    """

    def __init__(self, channels: int, head: int) -> None:
        super().__init__()
        self.heads = max(1, channels // head)
        while channels % self.heads:
            self.heads -= 1
        self.norm = nn.GroupNorm(groups_of(channels), channels)
        self.qkv = convolution(channels, 3 * channels, 1)
        self.out = convolution(channels, channels, 1, SMALL)

    def forward(self, x: Maps) -> Maps:
        """See the class."""
        n, c, height, width = x.shape
        # (n, height, width, 3, heads, channels of a head) → three of (n, heads, pixels, channels of a head)
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(n, height * width, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.transpose(1, 2).reshape(n, height, width, c).permute(0, 3, 1, 2)
        h = self.out(h)
        h += x
        return h


class Block(nn.Module):
    """A residual block, with attention after it where the size asks for it."""

    def __init__(self, inputs: int, outputs: int, dropout: float, head: int | None) -> None:
        super().__init__()
        self.residual = ResidualBlock(inputs, outputs, dropout)
        self.attention = Attention(outputs, head) if head is not None else None

    @property
    def outputs(self) -> int:
        """Channels."""
        return self.residual.outputs

    def forward(self, x: Maps, shift: Vector) -> NewMaps:
        """See the class."""
        h = self.residual(x, shift)
        return h if self.attention is None else self.attention(h)


class UNet(nn.Module):
    """(x_t, t, label) → one or more numbers for each value of the image.

    Args:
        spec: the images.
        outputs: numbers for each value: 1, or 2 with a learned variance.
        classes: number of labels, 0 for an unconditional model.
        width: channels at the largest map.
        multipliers: channels of each map in units of ``width``, from the largest. With ``depth=null`` there are as many
            maps as multipliers, or fewer where the smallest would have less than about 4 pixels on its shorter side.
        blocks: residual blocks at each map on the way down, one more on the way up.
        attention: maps that have attention, by the number of halvings: [1] is at half the largest map's sides. The
            smallest map always has it, between the ways.
        head: channels of an attention head.
        dropout: in the residual blocks, in training.
        patch: pixels of the largest map stand for squares of so many pixels a side; 2 is four times less work.
        depth: number of halvings, ``None`` to choose it from multipliers and size.
        inputs: numbers for each pixel that come in, ``None`` for as many as the images have channels.

    Raises:
        UserError: more halvings than the image has, or than there are multipliers.
    """

    def __init__(
        self,
        spec: ImageSpec,
        outputs: int,
        classes: int,
        *,
        width: Width = 32,
        multipliers: Annotated[Sequence[Width], Field(min_length=1)] = (1, 2, 2, 2),
        blocks: PositiveInt = 1,
        attention: Sequence[NonNegativeInt] = (),
        head: Width = 32,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        patch: PositiveInt = 1,
        depth: NonNegativeInt | None = None,
        inputs: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        spec.require_picture("UNet", "model/network=mlp")
        height, breadth = -(-spec.height // patch), -(-spec.width // patch)
        if depth is None:
            depth = min(len(multipliers) - 1, max(0, round(math.log2(min(height, breadth) / 4))))
        elif depth >= len(multipliers):
            raise UserError(
                f"depth={depth}: {depth + 1} map sizes, and multipliers={list(multipliers)} are {len(multipliers)}; "
                f"give one for each, or a depth of at most {len(multipliers) - 1}"
            )
        if depth:
            size_ladder(ImageSpec(1, height, breadth), depth)  # refuses what has no so many halvings
        self.spec, self.outputs, self.patch, self.width = spec, outputs, patch, width
        self.padding = (0, breadth * patch - spec.width, 0, height * patch - spec.height)
        channels = [width * m for m in multipliers[: depth + 1]]
        heads = [head if k in attention else None for k in range(depth + 1)]

        code = 4 * width
        self.embed_time = nn.Sequential(nn.Linear(width, code), nn.SiLU(), nn.Linear(code, code))
        self.embed_class = nn.Embedding(classes, code) if classes else None
        if self.embed_class is not None:  # what the time says varies by as much at first
            nn.init.normal_(self.embed_class.weight, 0.0, 0.1)
        self.first = convolution((inputs or spec.channels) * patch**2, channels[0], 3)
        self.down = nn.ModuleList()
        self.halvings = nn.ModuleList()
        left = [channels[0]]  # channels of what the way down leaves for the way up
        for k, c in enumerate(channels):
            stack = nn.ModuleList(Block(left[-1] if j == 0 else c, c, dropout, heads[k]) for j in range(blocks))
            self.down.append(stack)
            left += [c] * blocks
            if k < depth:
                self.halvings.append(convolution(c, c, 3, stride=2))
                left.append(c)
        c = channels[-1]
        self.middle = nn.ModuleList([Block(c, c, dropout, head), Block(c, c, dropout, None)])
        self.up = nn.ModuleList()
        self.doublings = nn.ModuleList()
        below = c
        for k, c in reversed(list(enumerate(channels))):
            stack = nn.ModuleList()
            for _ in range(blocks + 1):
                stack.append(Block(below + left.pop(), c, dropout, heads[k]))
                below = c
            self.up.append(stack)
            if k > 0:
                self.doublings.append(convolution(c, c, 3))
        self.norm = NormSiLU(below)
        self.last = convolution(below, spec.channels * outputs * patch**2, 3, SMALL)
        # What t and the class say to each block: one matrix product for all of them.
        self.shares = [b.outputs for b in self._blocks()]
        self.shift = nn.Linear(code, sum(self.shares))
        self.to(memory_format=torch.channels_last)

    def _blocks(self) -> list[Block]:
        return [b for stack in [*self.down, self.middle, *self.up] for b in stack]

    def forward(
        self, x: Float[Tensor, "n inputs height width"], position: Float[Tensor, " #n"], labels: Labels | None = None
    ) -> Float[Tensor, "n outputs channels height width"]:
        """The network's answer.

        Args:
            x: noisy images (n, channels, height, width), or other ``inputs`` of that size.
            position: t / T of each image (n,), or of all (1,).
            labels: int64 (n,), 0..classes-1.
        """
        code = self.embed_time(time_code(position, self.width))
        if self.embed_class is not None:
            code = code + self.embed_class(labels)
        shifts = iter(self.shift(F.silu(code)).split(self.shares, 1))
        if any(self.padding):
            x = F.pad(x, self.padding)
        if self.patch > 1:
            x = F.pixel_unshuffle(x, self.patch)
        h = self.first(x.contiguous(memory_format=torch.channels_last))
        left = [h]
        for k, stack in enumerate(self.down):
            for block in stack:  # type: ignore[attr-defined]
                h = block(h, next(shifts))
                left.append(h)
            if k < len(self.halvings):
                h = self.halvings[k](h)
                left.append(h)
        for block in self.middle:
            h = block(h, next(shifts))
        for k, stack in enumerate(self.up):
            for block in stack:  # type: ignore[attr-defined]
                h = block(torch.cat([h, left.pop()], 1), next(shifts))
            if k < len(self.doublings):
                height, breadth = left[-1].shape[2:]
                h = self.doublings[k](F.interpolate(h, scale_factor=2)[:, :, :height, :breadth])
        out = self.last(self.norm(h))
        if self.patch > 1:
            out = F.pixel_shuffle(out, self.patch)
        out = out[:, :, : self.spec.height, : self.spec.width]
        return out.unflatten(1, (self.outputs, self.spec.channels))
