"""Gated PixelCNN: two stacks of masked convolutions without a blind spot, and multiplicative gates.

The *vertical* stack sees all rows above the pixel and nothing of its row, so that its kernels need no mask; the
*horizontal* stack sees the pixels to the left in the same row, and is fed by the vertical one. Together they see every
earlier pixel within reach. In each layer k, with * a (masked) convolution,

    y = tanh(W_{k,f} * x + V_{k,f} s) ⊙ σ(W_{k,g} * x + V_{k,g} s)                                        (2), (4)

where V s is a bias of the class s of a conditional model.

Van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders" (arXiv 1606.05328), section 2, figure 2.
"""

from collections.abc import Sequence
from functools import partial
from typing import Unpack

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from imago.capacity import Width
from imago.images import ImageSpec, Labels, Normalized
from imago.models.autoregressive import Autoregressive, AutoregressiveSettings
from imago.models.pixelcnn import FirstKernel, OddInt
from imago.nets.causal import (
    AutoregressiveNet,
    CausalConv2d,
    Head,
    Map,
    check_features,
    from_above,
    grouped_order,
    scaled_uniform,
)
from imago.nets.incremental import Operation, Row, RowProgram


class GatedPixelCNN(Autoregressive):
    """The gated PixelCNN of van den Oord et al. 2016.

    Args:
        spec: the images.
        features: p, of both stacks.
        layers: number of layers, the first one included.
        kernel: n of the n x n vertical and 1 x n horizontal convolutions.
        first_kernel: the same of the first layer.
        head: features of the 1x1 convolutions between the last layer and the output.
        settings: see :class:`AutoregressiveSettings`; a conditional model is p(x | label), equation 4.
    """

    def __init__(
        self,
        spec: ImageSpec,
        *,
        features: Width = 32,
        layers: PositiveInt = 7,
        kernel: OddInt = 3,
        first_kernel: FirstKernel = 7,
        head: Sequence[Width] = (64,),
        **settings: Unpack[AutoregressiveSettings],
    ) -> None:
        super().__init__(spec, **settings)
        check_features(spec, features=features, head=min(head, default=features))
        self.net = GatedPixelCNNNet(
            spec,
            self.distribution.parameters,
            features=features,
            kernels=[first_kernel] + [kernel] * (layers - 1),
            head=list(head),
            classes=self.classes,
        )


class GatedPixelCNNNet(AutoregressiveNet):
    """Layers of two stacks, and 1x1 convolutions on the horizontal one.

    Args:
        spec: the images.
        parameters: of the distribution of one value.
        features: p.
        kernels: n of each layer.
        head: features of the 1x1 convolutions before the output.
        classes: number of classes, 0 for an unconditional model.
    """

    def __init__(
        self, spec: ImageSpec, parameters: int, *, features: int, kernels: list[int], head: list[int], classes: int
    ) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(
            GatedLayer(features, kernel, spec=spec, classes=classes, first=k == 0, last=k == len(kernels) - 1)
            for k, kernel in enumerate(kernels)
        )
        self.head = Head(spec.channels, features, head, parameters, classes)

    def forward(self, x: Normalized, labels: Labels | None = None) -> Tensor:
        """(n, channels, height, width) → (n, channels, height, width, parameters)."""
        v: Map | None = x
        h = x
        for layer in self.layers:
            v, h = layer(v, h, labels)
        return self.head(h, labels)

    def incremental(self, blank: Normalized, labels: Labels | None) -> RowProgram:
        """The same layers on row buffers."""
        program = RowProgram.of(self, self.spec, len(blank), labels)
        v, h = program.image, program.image
        for layer in self.layers:
            assert isinstance(layer, GatedLayer)
            v, h = layer.unroll(program, v, h)
        program.output = self.head.unroll(program, h)
        return program


class VerticalConv2d(nn.Module):
    """A convolution over rows above, without any mask.

    Args:
        in_features: features of the input.
        out_features: features of the output.
        kernel: n of the full n x n kernel.
        shifted: see the n // 2 rows above only; otherwise the own row too, for inputs that are shifted already.
        height: of the images: with a single row, there is nothing above to learn from.
    """

    weight: Tensor

    def __init__(self, in_features: int, out_features: int, kernel: int, *, shifted: bool, height: int) -> None:
        super().__init__()
        self.left = kernel // 2
        self.shifted = shifted
        self.rows = kernel // 2 + (0 if shifted else 1)
        weight = scaled_uniform(out_features, in_features, self.rows, kernel)
        if shifted and height == 1:
            self.register_buffer("weight", weight.detach())
        else:
            self.weight = weight
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Map) -> Map:
        """(n, in_features, height, width) → (n, out_features, height, width)."""
        if self.shifted:
            x = F.pad(x, (self.left, self.left, self.rows, -1))
        else:
            x = F.pad(x, (self.left, self.left, self.rows - 1, 0))
        return F.conv2d(x, self.weight, self.bias).contiguous(memory_format=torch.channels_last)


class GatedLayer(nn.Module):
    """One layer of both stacks (figure 2).

    Args:
        features: p.
        kernel: n.
        spec: the images.
        classes: number of classes, 0 for none.
        first: the inputs are the image: the horizontal convolution has mask A and no shortcut, and the vertical one
            sees only the rows above.
        last: no vertical output is needed.
    """

    def __init__(self, features: int, kernel: int, *, spec: ImageSpec, classes: int, first: bool, last: bool) -> None:
        super().__init__()
        channels = spec.channels
        inputs = channels if first else features
        self.features, self.channels, self.first, self.last = features, channels, first, last
        self.vertical = VerticalConv2d(inputs, 2 * features, kernel, shifted=first, height=spec.height)
        self.link = nn.Conv2d(2 * features, 2 * features, 1, bias=False)  # its bias is the horizontal one
        self.horizontal = CausalConv2d(
            inputs, features, (1, kernel), mask="A" if first else "B", channels=channels, parts=2, classes=classes
        )
        self.class_bias = nn.Embedding(classes, 2 * features) if classes and not last else None
        if self.class_bias is not None:
            nn.init.normal_(self.class_bias.weight, std=0.05)
        self.out = CausalConv2d(features, features, (1, 1), mask="B", channels=channels)

    def forward(self, v: Map, h: Map, labels: Labels | None) -> tuple[Map, Map]:
        """Vertical and horizontal maps (n, p, height, width) → the same; the images, for the first layer."""
        above = self.vertical(v)
        y = self.out(gate(self.horizontal(h, labels) + self.link(above)))
        if not self.first:
            y = y + h
        if self.last:
            return above, y
        if self.class_bias is not None:
            above = above + self.class_bias(labels)[:, :, None, None]
        return gate(above), y

    def unroll(self, program: RowProgram, v: Row, h: Row) -> tuple[Row, Row]:
        """The same on row buffers: the vertical stack a row at a time, the horizontal one a pixel at a time."""
        above = program.like.new_zeros(program.n, program.width, 2 * self.features)
        conv = self.vertical
        weight, bias = conv.weight.detach(), conv.bias.detach()
        program.each_row(from_above(v, weight, bias, above, conv.rows, conv.left))
        order = grouped_order(self.features, self.channels, 2, program.like.device)
        link = self.link.weight.detach()[order, :, 0, 0].t().contiguous()
        beside = self.horizontal.constant(program)
        before = torch.zeros_like(above)
        program.each_row(lambda: torch.add(above @ link, beside, out=before))
        next_v = Row(program.n, program.width, [(0, self.features)], program.margin, program.like)
        if not self.last:
            of_class = None if self.class_bias is None else self.class_bias(program.labels)[:, None].detach()
            program.each_row(lambda: next_v.inner.copy_(gate(above if of_class is None else above + of_class, dim=2)))
        gates = self.horizontal.unroll(program, h, before)
        gated = program.row(self.features)

        def operations(column: int, group: int) -> list[Operation]:
            pair, result = gates.at(column, group), gated.at(column, group)
            filters = pair[:, : result.shape[1]]
            return [filters.tanh_, partial(torch.ops.aten.glu.out, pair, 1, out=result)]

        program.each_pixel(operations)
        y = self.out.unroll(program, gated)
        return next_v, y if self.first else program.add_(y, h)


def gate(x: Tensor, dim: int = 1) -> Tensor:
    """tanh of the first half times σ of the second half of the features (equation 2)."""
    filters, gates = x.chunk(2, dim)
    return filters.tanh() * gates.sigmoid()
