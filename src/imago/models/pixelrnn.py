"""PixelRNN: a two-dimensional recurrence carries what is known of the image so far.

A hidden state travels over the image with the order of the pixels. Two ways to let it travel, both of them layers of
long short-term memory (LSTM) whose steps compute many pixels at once:

**Row LSTM**: top to bottom, a row at a step. The state of a pixel reads the states of the three pixels above it (a
convolution along the row), and the layer's input at the pixel and left of it. What reaches a pixel is a triangle above
it: not all earlier pixels.

**Diagonal BiLSTM**: diagonal by diagonal, from the top left corner, and once more from the top right one. The state
reads its neighbours at the left (right) and above. Together the two directions reach every earlier pixel; the second
one's output is moved down by a row, for it has seen what lies at the right of the pixel.

    x x x x x x x x x      x x x x x x x x x      Row LSTM (left) and Diagonal BiLSTM: the pixels x on which the
    x x x x x x x x .      x x x x x x x x x      prediction of the pixel ? depends, with one layer and a first kernel
    x x x x x x x . .      x x x x x x x x x      of 3
    . x x x x x . . .      x x x x x x x x x
    . . x x ? . . . .      x x x x ? . . . .

A layer has the width h inside and 2h between layers, where a residual connection leads around it (figure 5, right).
In RGB images, every map is split among the channels: the input-to-state part is masked as in a PixelCNN, the
state-to-state part is not, since the states that it reads belong to earlier pixels.

Van den Oord et al. 2016, "Pixel recurrent neural networks" (PMLR 48), sections 3.1 to 3.6, table 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Unpack, cast

import torch
from jaxtyping import Float
from pydantic import NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional as F

from imago.capacity import Width
from imago.images import ImageSpec, Labels, Normalized
from imago.kernels.recurrence import diagonal_sweep, row_sweep, sweep_lstm
from imago.models.autoregressive import Autoregressive, AutoregressiveSettings
from imago.models.pixelcnn import FirstKernel, OddInt
from imago.nets.causal import AutoregressiveNet, CausalConv2d, Head, check_features, from_above, grouped_order
from imago.nets.incremental import Operation, Row, RowProgram

#: A map with the pixels in raster order in front, so that the pixels of a step lie together.
PixelMap = Float[Tensor, "pixels n _"]


class PixelRNN(Autoregressive):
    """The PixelRNN of van den Oord et al. 2016.

    Args:
        spec: the images.
        features: of the states of a layer, h; there are 2h between layers.
        layers: number of recurrent layers.
        layer: a layer for (features, spec, classes): :class:`RowLSTM` or :class:`DiagonalBiLSTM`.
        first_kernel: side of the first convolution, mask A.
        head: features of the 1x1 convolutions between the last layer and the output.
        residual: add every layer's output to its input.
        skip: also lead every layer's states to the head.
        settings: see :class:`AutoregressiveSettings`; a conditional model is p(x | label),
            by a bias of each class in the first convolution, all layers and the head.
    """

    net: "PixelRNNNet"

    def __init__(
        self,
        spec: ImageSpec,
        *,
        features: Width = 32,
        layers: NonNegativeInt = 2,
        layer: "Callable[..., RecurrentLayer] | None" = None,
        first_kernel: FirstKernel = 7,
        head: Sequence[Width] = (64,),
        residual: bool = True,
        skip: bool = False,
        **settings: Unpack[AutoregressiveSettings],
    ) -> None:
        super().__init__(spec, **settings)
        check_features(spec, features=features, head=min(head, default=features))
        self.net = PixelRNNNet(
            spec,
            self.distribution.parameters,
            features=features,
            layers=[(layer or DiagonalBiLSTM)(features, spec=spec, classes=self.classes) for _ in range(layers)],
            first_kernel=first_kernel,
            head=list(head),
            residual=residual,
            skip=skip,
            classes=self.classes,
        )

    def compile_networks(self, backend: str = "inductor") -> None:
        """See :meth:`GenerativeModel.compile_networks`; the recurrences stay, which would be unrolled line by line."""
        for layer in self.net.layers:
            layer.forward = torch.compiler.disable(layer.forward)
        super().compile_networks(backend)


class PixelRNNNet(AutoregressiveNet):
    """Mask A convolution, recurrent layers, 1x1 convolutions.

    Args:
        spec: the images.
        parameters: of the distribution of one value.
        features: of the states of a layer.
        layers: the recurrent layers.
        first_kernel: side of the first convolution.
        head: features of the 1x1 convolutions before the output.
        residual: add every layer's output to its input.
        skip: also lead every layer's states to the head.
        classes: number of classes, 0 for an unconditional model.
    """

    def __init__(
        self,
        spec: ImageSpec,
        parameters: int,
        *,
        features: int,
        layers: "list[RecurrentLayer]",
        first_kernel: int,
        head: list[int],
        residual: bool,
        skip: bool,
        classes: int,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.residual = residual
        channels = spec.channels
        self.first = CausalConv2d(
            channels, 2 * features, (first_kernel, first_kernel), mask="A", channels=channels, classes=classes
        )
        self.layers = nn.ModuleList(layers)

        def widen(bias: bool) -> CausalConv2d:
            return CausalConv2d(features, 2 * features, (1, 1), mask="B", channels=channels, bias=bias)

        # Where a product is added to a map that has a bias already, another would say the same.
        self.widen = nn.ModuleList(widen(bias=not residual) for _ in layers)
        self.skips = nn.ModuleList(widen(bias=False) for _ in (layers if skip else []))
        self.head = Head(channels, 2 * features, head, parameters, classes)

    def forward(self, x: Normalized, labels: Labels | None = None) -> Tensor:
        """(n, channels, height, width) → (n, channels, height, width, parameters)."""
        n, channels, height, width = x.shape
        image = x.permute(2, 3, 0, 1).reshape(height * width, n, channels)
        h = windowed(self.first, x, labels)
        states: list[PixelMap] = []
        for layer, widen in self.pairs():
            states.append(layer(h, image, labels))
            wide = pointwise(widen, states[-1])
            h = h + wide if self.residual else wide
        for y, skip in zip(states, convolutions(self.skips), strict=False):  # without skip connections there are none
            h = h + pointwise(skip, y)
        for convolution in convolutions(self.head.layers):
            h = pointwise(convolution, F.relu(h), labels)
        return h.unflatten(-1, (channels, -1)).unflatten(0, (height, width)).permute(2, 3, 0, 1, 4)

    def incremental(self, blank: Normalized, labels: Labels | None) -> RowProgram:
        """The same layers on row buffers."""
        program = RowProgram.of(self, self.spec, len(blank), labels)
        h = self.first.unroll(program, program.image)
        states: list[Row] = []
        for layer, widen in self.pairs():
            states.append(layer.unroll(program, h))
            wide = program.row_like(h)
            onto = h if widen.bias is None else widen.bias
            unroll_product(program, states[-1], matrix_of(widen), wide, onto)
            h = wide
        for row, skip in zip(states, convolutions(self.skips), strict=False):
            unroll_product(program, row, matrix_of(skip), h, h)
        program.output = self.head.unroll(program, h)
        return program

    def pairs(self) -> "Iterable[tuple[RecurrentLayer, CausalConv2d]]":
        """Every layer and the convolution that widens its states."""
        return zip(cast("Iterable[RecurrentLayer]", self.layers), convolutions(self.widen), strict=True)


def convolutions(modules: nn.ModuleList) -> Iterable[CausalConv2d]:
    """The same, for the type checker."""
    return cast("Iterable[CausalConv2d]", modules)


# The convolutions of nets/causal.py on a PixelMap, each as one matrix product: they themselves would copy every map
# from one order of dimensions to another and back.


def masked(layer: CausalConv2d) -> Float[Tensor, "outputs inputs rows columns"]:
    """The weights, zero where the mask hides the input."""
    return layer.weight * layer.get_buffer("visible")


def matrix_of(layer: CausalConv2d) -> Float[Tensor, "inputs outputs"]:
    """The masked weights of a 1x1 convolution, transposed."""
    return masked(layer)[:, :, 0, 0].t()


def pointwise(layer: CausalConv2d, x: PixelMap, labels: Labels | None = None) -> PixelMap:
    """A 1x1 convolution of a map."""
    y = F.linear(x, matrix_of(layer).t(), layer.bias)
    return y if layer.class_bias is None else y + layer.class_bias(labels)


def windowed(layer: CausalConv2d, x: Normalized, labels: Labels | None = None) -> PixelMap:
    """A convolution of an image, (n, channels, height, width) → (height * width, n, features)."""
    rows, columns = layer.weight.shape[2:]
    padded = F.pad(x, (layer.left, layer.right, layer.above, 0))
    windows = padded.unfold(2, rows, 1).unfold(3, columns, 1).permute(2, 3, 0, 1, 4, 5)
    y = F.linear(windows.flatten(3).flatten(0, 1), masked(layer).flatten(1), layer.bias)
    return y if layer.class_bias is None else y + layer.class_bias(labels)


def unroll_product(
    program: RowProgram, source: Row, matrix: Tensor, target: Row, onto: Row | Tensor, left: int = 0
) -> None:
    """Append target = onto + window x matrix to a row program.

    Args:
        program: the program.
        source: the row whose window is multiplied: ``left`` pixels before the own one, and its channel groups so far.
        matrix: ((left + 1) * features of the source, features of the target), masked.
        target: the row that is written.
        onto: a row like the target (or the target itself), or (n or 1, width or 1, features) or (features,).
        left: pixels before the own one.
    """
    kept: dict[int, Tensor] = {}  # by group, contiguous
    if isinstance(onto, Tensor):
        onto = onto.expand(program.n, program.width, target.features)

    def operations(column: int, group: int) -> list[Operation]:
        start, end = target.bounds[group]
        window = source.up_to(column, group, left, inclusive=True)
        if column == 0:
            kept[group] = matrix[: window.shape[1], start:end].contiguous()
        rest = onto[:, column, start:end] if isinstance(onto, Tensor) else onto.at(column, group)
        return [partial(torch.addmm, rest, window, kept[group], out=target.at(column, group))]

    program.each_pixel(operations)


def cell(gates: Tensor, memory: Tensor, state: Tensor) -> list[Operation]:
    """Operations for equations 1 (its nonlinearities) to 3 of :mod:`imago.kernels.recurrence` on fixed buffers.

    Args:
        gates: (n, 4 * features), the sums of i, f, o, g; overwritten.
        memory: (n, features), of the cell whose memory is carried on; becomes that of this one.
        state: (n, features), written.
    """
    size = memory.shape[1]
    squashed, g = gates[:, : 3 * size], gates[:, 3 * size :]
    i, f, o = squashed.split(size, 1)
    return [
        squashed.sigmoid_,
        g.tanh_,
        partial(memory.mul_, f),
        partial(memory.addcmul_, i, g),
        partial(torch.tanh, memory, out=state),
        partial(state.mul_, o),
    ]


class RecurrentLayer(nn.Module, ABC):
    """A layer of long short-term memory over a map: 2 * features in, features out.

    Args:
        features: of the states, h.
        spec: the images.
        classes: number of classes whose bias is added to the gates, 0 for none.
        kernel: (1, columns) of the input-to-state convolution.
        directions: how many states, with weights of their own, sweep over the map.
        taps: how many earlier states a state reads.
        recurrent: whether the map is large enough that states are read at all.
    """

    state: Tensor

    def __init__(
        self,
        features: int,
        spec: ImageSpec,
        classes: int,
        *,
        kernel: int,
        directions: int,
        taps: int,
        recurrent: bool = True,
    ) -> None:
        super().__init__()
        self.features = features
        self.directions = directions
        self.input = CausalConv2d(
            2 * features,
            features,
            (1, kernel),
            mask="B",
            channels=spec.channels,
            parts=4 * directions,
            classes=classes,
        )
        assert self.input.bias is not None
        with torch.no_grad():  # gates i, f, o, g of each direction: at first the memory is kept
            self.input.bias.view(directions, 4, features)[:, 1] = 1
        state = torch.empty(directions, taps, features, 4 * features).uniform_(-1, 1) * (taps * features) ** -0.5
        if recurrent:
            self.state = nn.Parameter(state)
        else:
            self.register_buffer("state", state)

    def weights(self, labels: Labels | None) -> tuple[Tensor, Tensor]:
        """Input-to-state weights (directions, taps, 2 features, 4 features) and bias (directions, images, 4 features).

        ``images`` is 1 for an unconditional layer.
        """
        weight = masked(self.input)[:, :, 0]  # (outputs, inputs, taps)
        weight = weight.unflatten(0, (self.directions, -1)).permute(0, 3, 2, 1).contiguous()
        assert self.input.bias is not None
        bias = self.input.bias[None]
        if self.input.class_bias is not None:
            bias = bias + self.input.class_bias(labels)
        return weight, bias.unflatten(1, (self.directions, -1)).transpose(0, 1)

    @abstractmethod
    def forward(self, x: PixelMap, image: PixelMap, labels: Labels | None) -> PixelMap:
        """(height * width, n, 2 * features) and the image itself → (height * width, n, features)."""

    @abstractmethod
    def unroll(self, program: RowProgram, source: Row) -> Row:
        """Append this layer to a row program."""


class RowLSTM(RecurrentLayer):
    """Row by row (section 3.1, equation 3).

    Args:
        features: of the states.
        spec: the images.
        classes: number of classes, 0 for an unconditional layer.
        kernel: columns of both convolutions; the input-to-state one is masked to the pixel and those at its left.
    """

    def __init__(self, features: int, spec: ImageSpec, classes: int, kernel: OddInt = 3) -> None:
        # An image of one row has no row above, and state weights that never act.
        super().__init__(features, spec, classes, kernel=kernel, directions=1, taps=kernel, recurrent=spec.height > 1)
        self.sweep = row_sweep(spec.height, spec.width, kernel)

    def forward(self, x: PixelMap, image: PixelMap, labels: Labels | None) -> PixelMap:
        """(height * width, n, 2 * features) → (height * width, n, features)."""
        weight, bias = self.weights(labels)
        return sweep_lstm(x[None], weight, bias, self.state, self.sweep)[0]

    def unroll(self, program: RowProgram, source: Row) -> Row:
        """Row by row, the states of the row above are in the buffer until they are overwritten."""
        weight, bias = self.weights(program.labels)
        order = grouped_order(self.features, program.channels, 4, weight.device)
        gates, states, memory = program.row(self.features, 4), program.row(self.features), program.row(self.features)
        before = program.like.new_zeros(program.n, program.width, 4 * self.features)
        above = self.state[0][:, :, order].permute(2, 1, 0)[:, :, None]
        program.each_row(from_above(states, above, bias[0][:, None, order], before, 1, self.input.left))
        unroll_product(program, source, weight[0].flatten(0, 1)[:, order], gates, before, self.input.left)
        program.each_pixel(
            lambda column, group: cell(gates.at(column, group), memory.at(column, group), states.at(column, group))
        )
        return states


class DiagonalBiLSTM(RecurrentLayer):
    """Diagonal by diagonal, from the left and from the right (section 3.2).

    In one point more than the paper's. Mask A hides every pixel from the features at its own place, so the last pixel
    of the row above would be in no feature that a pixel further left may read. The second direction works a row behind
    and may see the image itself; with it every earlier pixel is seen.

    Args:
        features: of the states.
        spec: the images.
        classes: number of classes, 0 for an unconditional layer.
    """

    orders: Tensor
    place: Tensor
    above: Tensor
    reveal: Tensor

    def __init__(self, features: int, spec: ImageSpec, classes: int) -> None:
        super().__init__(features, spec, classes, kernel=1, directions=2, taps=2)
        self.sweep = diagonal_sweep(spec.height, spec.width)
        order = torch.tensor(self.sweep.order)
        mirrored = order // spec.width * spec.width + (spec.width - 1 - order % spec.width)
        place = torch.argsort(order)
        # At its own pixel the second direction knows all of the row: what it says counts for the pixel below.
        above = place.view(spec.height, spec.width).flip(1)[:-1].reshape(-1)
        reveal = torch.empty(spec.channels, 2 * features).uniform_(-1, 1) * spec.channels**-0.5
        if spec.height > 1:
            self.reveal = nn.Parameter(reveal)
        else:
            self.register_buffer("reveal", reveal)
        self.register_buffer("orders", torch.cat([order, mirrored]), persistent=False)
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("above", above, persistent=False)

    def forward(self, x: PixelMap, image: PixelMap, labels: Labels | None) -> PixelMap:
        """(height * width, n, 2 * features) → (height * width, n, features)."""
        weight, bias = self.weights(labels)
        both = x.index_select(0, self.orders).view(2, -1, x.shape[-1])
        shown = image.index_select(0, self.orders[len(x) :]).view(1, -1, image.shape[-1])
        both = torch.baddbmm(both, torch.cat([torch.zeros_like(shown), shown]), self.reveal.expand(2, -1, -1))
        both = both.view(2, *x.shape)
        from_left, from_right = sweep_lstm(both, weight, bias, self.state, self.sweep).unbind()
        y = from_left.index_select(0, self.place)
        seen = len(y) - len(self.above)  # the first row has none above
        return torch.cat([y[:seen], y[seen:] + from_right.index_select(0, self.above)])

    def unroll(self, program: RowProgram, source: Row) -> Row:
        """The first direction pixel by pixel, the second one over the finished row above at the start of every row."""
        weight, bias = self.weights(program.labels)
        order = grouped_order(self.features, program.channels, 4, weight.device)
        gates, states, output = program.row(self.features, 4), program.row(self.features), program.row(self.features)
        memory = program.like.new_zeros(program.n, self.features)
        before = program.like.new_zeros(program.n, program.width, 4 * self.features)
        left, above = self.state[0][:, :, order]
        program.each_row(from_above(states, above.t()[:, :, None, None], bias[0][:, None, order], before, 1, 0))
        program.each_row(memory.zero_)
        second = self._unroll_second(program, source, weight[1, 0], bias[1])
        unroll_product(program, source, weight[0, 0][:, order], gates, before)

        def operations(column: int, group: int) -> list[Operation]:
            start, end = states.bounds[group]
            a, state = gates.at(column, group), states.at(column, group)
            beside = states.data[:, states.margin + column - 1]
            return [
                *([partial(a.addmm_, beside, left[:, 4 * start : 4 * end].contiguous())] if column else []),
                *cell(a, memory[:, start:end], state),
                partial(torch.add, state, second[column, :, start:end], out=output.at(column, group)),
            ]

        program.each_pixel(operations)
        return output

    def _unroll_second(
        self, program: RowProgram, source: Row, weight: Tensor, bias: Tensor
    ) -> Float[Tensor, "width n features"]:
        """Append the second direction; gives the buffer of its states of the row above, zero in the first row."""
        n, width = program.n, program.width
        states = program.like.new_zeros(width, n, self.features)
        gates = program.like.new_zeros(width, n, 4 * self.features)
        memory = program.like.new_zeros(n, self.features)
        begun = program.like.new_zeros(())  # 0 until the first row is drawn
        beside, above = self.state[1]
        seen = torch.cat([self.reveal @ weight, weight])
        steps: list[Operation] = [memory.zero_]
        for column in reversed(range(width)):
            if column < width - 1:
                steps.append(partial(gates[column].addmm_, states[column + 1], beside))
            steps += cell(gates[column], memory, states[column])

        def operation() -> None:
            features = torch.cat([program.image.inner, source.inner], -1).transpose(0, 1)
            torch.matmul(features, seen, out=gates)
            gates.add_(bias).add_(states @ above)
            for step in steps:
                step()
            states.mul_(begun)
            begun.fill_(1)

        program.each_row(operation)
        return states
