"""A fully connected network that knows the time: what a denoiser asks where its data are points and not pictures.

It has the interface of :class:`~imago.nets.unet.UNet`, and takes anything: values are a vector, whatever they mean. As
in the U-Net, residual blocks are told the time (and the class) by a shift of their inner layer.
"""

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from imago.capacity import Width
from imago.images import ImageSpec, Labels, Normalized
from imago.nets.unet import SMALL, Vector, time_code


class TimedBlock(nn.Module):
    """SiLU, linear, plus what t and the class say, SiLU, linear; added to the input.

    Args:
        width: of the layers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Float[Tensor, "n width"], shift: Vector) -> Float[Tensor, "n width"]:
        """``shift``, (n or 1, width), is added to the inner layer."""
        return h + self.leave(F.silu(self.enter(F.silu(h)) + shift))


class TimedMLP(nn.Module):
    """(x_t, t, label) → one or more numbers for each value.

    Args:
        spec: the points or images.
        outputs: numbers for each value: 1, or 2 with a learned variance.
        classes: number of labels, 0 for an unconditional model.
        width: of every layer.
        blocks: residual blocks, of two layers each.
        inputs: numbers for each pixel that come in, ``None`` for as many as there are channels.
    """

    def __init__(
        self,
        spec: ImageSpec,
        outputs: int,
        classes: int,
        *,
        width: Width = 128,
        blocks: PositiveInt = 3,
        inputs: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.width = (outputs, *spec.shape), width
        self.embed_time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_class = nn.Embedding(classes, width) if classes else None
        if self.embed_class is not None:  # what the time says varies by as much at first
            nn.init.normal_(self.embed_class.weight, 0.0, 0.1)
        self.first = nn.Linear((inputs or spec.channels) * spec.height * spec.width, width)
        self.shift = nn.Linear(width, blocks * width)  # one product for all blocks
        self.blocks = nn.ModuleList(TimedBlock(width) for _ in range(blocks))
        self.last = nn.Linear(width, outputs * spec.dimensions)
        nn.init.normal_(self.last.weight, 0.0, SMALL / width**0.5)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Normalized, position: Float[Tensor, " #n"], labels: Labels | None = None
    ) -> Float[Tensor, "n outputs channels height width"]:
        """The network's answer.

        Args:
            x: noisy points or images (n, channels, height, width).
            position: t / T of each (n,), or of all (1,).
            labels: int64 (n,), 0..classes-1.
        """
        code = self.embed_time(time_code(position, self.width))
        if self.embed_class is not None:
            code = code + self.embed_class(labels)
        h = self.first(x.flatten(1))
        for block, shift in zip(self.blocks, self.shift(F.silu(code)).chunk(len(self.blocks), 1), strict=True):
            h = block(h, shift)
        return self.last(F.silu(h)).view(-1, *self.shape)
