"""Masked convolutions: every output sees only what comes before it in raster order, channel by channel.

Raster order is top to bottom, left to right, and within a pixel R, then G, then B (van den Oord et al. 2016,
"Pixel recurrent neural networks", section 2.2). Feature maps are split into as many groups as the image has channels;
group g may know the channels before g (mask A), or up to g (mask B), of its own pixel. A mask A stands where the input
is the image, a mask B everywhere above.

Rows below the centre are never seen, so their weights do not exist: a 5x5 kernel is stored and computed as 3x5.
"""

import math
from abc import ABC, abstractmethod
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from imago.errors import UserError
from imago.images import ImageSpec, Labels, Normalized
from imago.nets.incremental import Incremental, Operation, Recomputed, Row, RowProgram, parts_of

Map = Float[Tensor, "n _ height width"]


class AutoregressiveNet(nn.Module, ABC):
    """A network that predicts every value of an image from the values before it."""

    @abstractmethod
    def forward(
        self, x: Normalized, labels: Labels | None = None
    ) -> Float[Tensor, "n channels height width parameters"]:
        """Parameters of the distribution of every value; those of a value depend on earlier values only."""

    def incremental(self, blank: Normalized, labels: Labels | None) -> Incremental:
        """A state in which images are drawn value by value; override it to do one position's work for each value.

        Args:
            blank: zeros (n, channels, height, width) on the network's device, to be written into.
            labels: (n,) or ``None``.
        """
        return Recomputed(self, blank, labels)


def scaled_uniform(*shape: int, fan_in: float | None = None) -> nn.Parameter:
    """A convolution's weight with which unit inputs give unit outputs: variance 1 / fan-in; channels last in memory."""
    fan_in = math.prod(shape[1:]) if fan_in is None else fan_in
    weight = torch.empty(shape).uniform_(-1, 1) * math.sqrt(3 / max(fan_in, 1))
    return nn.Parameter(weight.contiguous(memory_format=torch.channels_last))


def groups_of(features: int, groups: int, parts: int = 1) -> Tensor:
    """The channel group of every feature, (parts * features,): ``parts`` maps one after the other, each split alike."""
    index = torch.cat([torch.full((end - start,), g) for g, (start, end) in enumerate(parts_of(features, groups))])
    return index.repeat(parts)


class CausalConv2d(nn.Module):
    """A convolution whose output at a pixel sees earlier pixels, and of its own pixel what the mask allows.

    Args:
        in_features: features of the input; image channels for mask A.
        out_features: features of the output, for each of its ``parts``.
        kernel: (rows, columns) of the full kernel, both odd. One row: the pixel and those to its left.
        mask: ``A`` hides the own channel group, ``B`` shows it.
        channels: image channels, the groups that features are split into.
        parts: output maps of ``out_features`` each, one after the other: the gates of one layer.
        classes: number of classes whose bias is added to the output, 0 for none.
        bias: add a bias.
    """

    visible: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel: tuple[int, int],
        *,
        mask: Literal["A", "B"],
        channels: int,
        parts: int = 1,
        classes: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        rows, columns = kernel[0] // 2 + 1, kernel[1]
        self.left = columns // 2
        self.above = rows - 1
        self.right = self.left if rows > 1 else 0  # without rows above there is nothing to see at the right
        self.in_features, self.features, self.parts, self.channels = in_features, out_features, parts, channels
        self.inclusive = mask == "B"
        out = groups_of(out_features, channels, parts)[:, None]
        into = groups_of(in_features, channels)[None, :]
        visible = torch.ones(parts * out_features, in_features, rows, self.left + 1 + self.right)
        visible[:, :, -1, self.left] = (into <= out) if self.inclusive else (into < out)
        visible[:, :, -1, self.left + 1 :] = 0
        visible = visible.contiguous(memory_format=torch.channels_last)
        self.register_buffer("visible", visible, persistent=False)
        self.weight = scaled_uniform(*visible.shape, fan_in=float(visible.sum()) / len(out))
        self.bias = nn.Parameter(torch.zeros(parts * out_features)) if bias else None
        self.class_bias = nn.Embedding(classes, parts * out_features) if classes else None
        if self.class_bias is not None:
            nn.init.normal_(self.class_bias.weight, std=0.05)

    @property
    def always_zero(self) -> int:
        """How many of the stored weights a mask hides."""
        return int((self.visible == 0).sum())

    def forward(self, x: Map, labels: Labels | None = None) -> Map:
        """(n, in_features, height, width) → (n, parts * out_features, height, width)."""
        y = F.conv2d(
            F.pad(x, (self.left, self.right, self.above, 0)) if self.left or self.above else x,
            self.weight * self.visible,
            self.bias,
        )
        if self.class_bias is not None:
            y = y + self.class_bias(labels)[:, :, None, None]
        return y.contiguous(memory_format=torch.channels_last)  # small convolutions take two thirds of the time so

    def constant(self, program: RowProgram) -> Tensor:
        """What is added at every pixel, bias and class bias, (1 or n, 1, outputs) in the order of :meth:`unroll`."""
        order = grouped_order(self.features, self.channels, self.parts, self.weight.device)
        constant = program.like.new_zeros(1, 1, len(order)) if self.bias is None else self.bias[order].view(1, 1, -1)
        if self.class_bias is not None:
            assert program.labels is not None
            constant = constant + self.class_bias(program.labels)[:, None, order]
        return constant.detach()

    def unroll(self, program: RowProgram, source: Row, before: Tensor | None = None) -> Row:
        """Append this layer to a row program; ``parts`` of the output lie side by side within each channel group.

        Args:
            program: the program.
            source: the input.
            before: (n, width, outputs) to add instead of :meth:`constant`, set by an operation for each row.
        """
        target = program.row(self.features, self.parts)
        order = grouped_order(self.features, self.channels, self.parts, self.weight.device)
        weight = (self.weight * self.visible)[order].detach()
        upper, centre = weight[:, :, :-1], weight[:, :, -1, : self.left + 1]
        if before is None:
            constant = self.constant(program)
            before = constant.expand(program.n, program.width, -1).clone()
            if self.above:
                program.each_row(from_above(source, upper, constant, before, self.above, self.left))
        weights = centre.permute(2, 1, 0).reshape(-1, len(order))  # (column, input) x output

        def operations(column: int, group: int) -> list[Operation]:
            start, end = target.bounds[group]
            window = source.up_to(column, group, self.left, self.inclusive)
            rest = before[:, column, start:end]
            if not window.shape[1]:
                return [partial(target.at(column, group).copy_, rest)]
            chosen = weights[: window.shape[1], start:end].contiguous() if column == 0 else kept[group]
            kept[group] = chosen
            return [partial(torch.addmm, rest, window, chosen, out=target.at(column, group))]

        kept: dict[int, Tensor] = {}
        program.each_pixel(operations)
        return target


class Head(nn.Module):
    """ReLU and 1x1 convolutions (mask B) to the parameters of every value's distribution (table 1, last rows).

    Args:
        channels: image channels.
        features: of the input.
        hidden: features of the convolutions before the last one.
        parameters: of the distribution of one value.
        classes: number of classes whose bias is added in the first convolution, 0 for none.
    """

    def __init__(self, channels: int, features: int, hidden: list[int], parameters: int, classes: int) -> None:
        super().__init__()
        self.channels = channels
        widths = [features, *hidden, channels * parameters]
        layers = [
            CausalConv2d(a, b, (1, 1), mask="B", channels=channels, classes=0 if k else classes)
            for k, (a, b) in enumerate(pairwise(widths))
        ]
        with torch.no_grad():
            layers[-1].weight.mul_(0.1)  # start near the uniform distribution
        self.layers = nn.ModuleList(layers)

    def forward(self, h: Map, labels: Labels | None = None) -> Float[Tensor, "n channels height width parameters"]:
        """(n, features, height, width) → (n, channels, height, width, parameters)."""
        for layer in self.layers:
            h = layer(F.relu(h), labels)
        return h.unflatten(1, (self.channels, -1)).permute(0, 1, 3, 4, 2)

    def unroll(self, program: RowProgram, source: Row) -> Row:
        """The same on row buffers."""
        for layer in self.layers:
            assert isinstance(layer, CausalConv2d)
            source = layer.unroll(program, program.relu(source))
        return source


def check_features(spec: ImageSpec, **features: int) -> None:
    """Refuse feature maps that cannot be split among the image channels.

    Raises:
        UserError: fewer features than channels.
    """
    for name, value in features.items():
        if value < spec.channels:
            raise UserError(
                f"model.{name}={value}: {spec.channels} image channels need at least as many features; give more"
            )


def grouped_order(features: int, channels: int, parts: int, device: torch.device) -> Tensor:
    """The order of ``parts`` maps of features in which each channel group has those of all parts side by side."""
    index = torch.arange(parts * features, device=device).view(parts, features)
    return torch.cat([index[:, start:end].reshape(-1) for start, end in parts_of(features, channels)])


def from_above(source: Row, weight: Tensor, bias: Tensor, into: Tensor, rows: int, left: int) -> Operation:
    """An operation for the start of a row: the contribution of the rows above, for all columns at once.

    Args:
        source: the input; still holds the row above when the operation runs.
        weight: (outputs, inputs, rows, 2 * left + 1).
        bias: broadcasts to (n, width, outputs), added.
        into: (n, width, outputs), written.
        rows: how many rows above are seen.
        left: columns seen on either side.
    """
    n, _, features = source.data.shape
    # (rows, n, columns, features): one row is one matrix, so a kernel row is a product of (n columns) x features.
    columns = source.width + 2 * left
    history = source.data.new_zeros(n, rows, columns, features)
    kernel = weight.contiguous(memory_format=torch.channels_last)
    inner = source.data[:, source.margin - left : source.margin + source.width + left]

    def operation() -> None:
        for k in range(rows - 1):
            history[:, k] = history[:, k + 1]
        history[:, -1] = inner
        y = F.conv2d(history.permute(0, 3, 1, 2), kernel)
        torch.add(y[:, :, 0].transpose(1, 2), bias, out=into)

    return operation
