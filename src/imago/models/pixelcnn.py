"""PixelCNN: masked convolutions instead of a recurrence.

Each value is predicted from a neighbourhood of earlier pixels. In training all pixels are known, so all predictions are
computed in parallel by convolutions whose kernels are masked: what lies to the right in the same row, and below, is
hidden. The first layer also hides the pixel itself (mask A); later layers see the features at the pixel (mask B), which
know only what came before it.

    mask A, 5x5      mask B, 5x5
    1 1 1 1 1        1 1 1 1 1
    1 1 1 1 1        1 1 1 1 1
    1 1 0 0 0        1 1 1 0 0      within the centre: R sees nothing (B: R), G sees R (R, G), B sees R, G (R, G, B)
    0 0 0 0 0        0 0 0 0 0
    0 0 0 0 0        0 0 0 0 0

The receptive field of stacked masked convolutions has a *blind spot*: pixels up and to the right of a diagonal are
never seen, however deep the network. :mod:`imago.models.gated_pixelcnn` has none.

Van den Oord et al. 2016, "Pixel recurrent neural networks" (PMLR 48), sections 3.3 to 3.6, figures 2, 4, 5, table 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Unpack

from pydantic import AfterValidator, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from imago.capacity import Width
from imago.images import ImageSpec, Labels, Normalized
from imago.models.autoregressive import Autoregressive, AutoregressiveSettings
from imago.nets.causal import AutoregressiveNet, CausalConv2d, Head, Map, check_features
from imago.nets.incremental import Row, RowProgram


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd, so that a kernel has a centre")
    return value


def _sees_a_neighbour(value: int) -> int:
    if value < 3:
        raise ValueError("must be at least 3: the first layer hides the pixel itself, and would see nothing")
    return value


OddInt = Annotated[PositiveInt, AfterValidator(_odd)]
FirstKernel = Annotated[OddInt, AfterValidator(_sees_a_neighbour)]


class PixelCNN(Autoregressive):
    """The PixelCNN of van den Oord et al. 2016.

    Args:
        spec: the images.
        features: of the maps between blocks; 2h in the paper.
        blocks: number of blocks.
        block: a block for (features, channels): :class:`ResidualBlock` or :class:`PlainBlock`.
        first_kernel: side of the first convolution, mask A.
        head: features of the 1x1 convolutions between the blocks and the output.
        settings: see :class:`AutoregressiveSettings`; a conditional model is p(x | label),
            by a bias of each class in the first layer and the head.
    """

    def __init__(
        self,
        spec: ImageSpec,
        *,
        features: Width = 64,
        blocks: NonNegativeInt = 8,
        block: "Callable[..., Block] | None" = None,
        first_kernel: FirstKernel = 7,
        head: Sequence[Width] = (64,),
        **settings: Unpack[AutoregressiveSettings],
    ) -> None:
        super().__init__(spec, **settings)
        check_features(spec, features=features, head=min(head, default=features))
        self.net = PixelCNNNet(
            spec,
            self.distribution.parameters,
            features=features,
            blocks=[(block or ResidualBlock)(features, channels=spec.channels) for _ in range(blocks)],
            first_kernel=first_kernel,
            head=list(head),
            classes=self.classes,
        )


class PixelCNNNet(AutoregressiveNet):
    """Mask A convolution, blocks, 1x1 convolutions.

    Args:
        spec: the images.
        parameters: of the distribution of one value.
        features: of the maps between blocks.
        blocks: the blocks.
        first_kernel: side of the first convolution.
        head: features of the 1x1 convolutions before the output.
        classes: number of classes, 0 for an unconditional model.
    """

    def __init__(
        self,
        spec: ImageSpec,
        parameters: int,
        *,
        features: int,
        blocks: "list[Block]",
        first_kernel: int,
        head: list[int],
        classes: int,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.first = CausalConv2d(
            spec.channels,
            features,
            (first_kernel, first_kernel),
            mask="A",
            channels=spec.channels,
            classes=classes,
        )
        self.blocks = nn.ModuleList(blocks)
        self.head = Head(spec.channels, features, head, parameters, classes)

    def forward(self, x: Normalized, labels: Labels | None = None) -> Tensor:
        """(n, channels, height, width) → (n, channels, height, width, parameters)."""
        h = self.first(x, labels)
        for block in self.blocks:
            h = block(h)
        return self.head(h, labels)

    def incremental(self, blank: Normalized, labels: Labels | None) -> RowProgram:
        """The same layers on row buffers."""
        program = RowProgram.of(self, self.spec, len(blank), labels)
        h = self.first.unroll(program, program.image)
        for block in self.blocks:
            assert isinstance(block, Block)
            h = block.unroll(program, h)
        program.output = self.head.unroll(program, h)
        return program


class Block(nn.Module, ABC):
    """A causal piece of the network: (n, features, height, width) → the same shape."""

    @abstractmethod
    def unroll(self, program: RowProgram, source: Row) -> Row:
        """The same computation on row buffers; ``source`` is read by nobody else, unless the block does."""


class ResidualBlock(Block):
    """x + 1x1(ReLU(k x k(ReLU(1x1(ReLU(x)))))) with h = features / 2 inside (figure 5, left).

    Args:
        features: 2h, of input and output.
        channels: image channels.
        kernel: side of the masked convolution in the middle.
    """

    def __init__(self, features: int, channels: int, kernel: OddInt = 3) -> None:
        super().__init__()
        h = max(features // 2, channels)
        self.reduce = CausalConv2d(features, h, (1, 1), mask="B", channels=channels)
        self.spread = CausalConv2d(h, h, (kernel, kernel), mask="B", channels=channels)
        self.expand = CausalConv2d(h, features, (1, 1), mask="B", channels=channels)

    def forward(self, x: Map) -> Map:
        """(n, features, height, width) → the same shape."""
        h = self.reduce(F.relu(x))
        h = self.spread(F.relu(h, inplace=True))
        return x + self.expand(F.relu(h, inplace=True))

    def unroll(self, program: RowProgram, source: Row) -> Row:
        """The same on row buffers."""
        h = self.reduce.unroll(program, program.relu(source))
        h = self.spread.unroll(program, program.relu_(h))
        h = self.expand.unroll(program, program.relu_(h))
        return program.add_(h, source)


class PlainBlock(Block):
    """k x k(ReLU(x)), without a shortcut.

    Args:
        features: of input and output.
        channels: image channels.
        kernel: side of the masked convolution.
    """

    def __init__(self, features: int, channels: int, kernel: OddInt = 5) -> None:
        super().__init__()
        self.conv = CausalConv2d(features, features, (kernel, kernel), mask="B", channels=channels)

    def forward(self, x: Map) -> Map:
        """(n, features, height, width) → the same shape."""
        return self.conv(F.relu(x))

    def unroll(self, program: RowProgram, source: Row) -> Row:
        """The same on row buffers."""
        return self.conv.unroll(program, program.relu_(source))
