"""PixelRNN as one would first write it: maps are NCHW, every cell is computed by itself, autograd does the rest.

The reference for :mod:`imago.models.pixelrnn`, in values and in speed. It shares that module's parameters and the
masked convolutions of :mod:`imago.nets.causal`, and nothing of its recurrence.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from imago.models.pixelrnn import DiagonalBiLSTM, PixelRNNNet, RowLSTM


def plain(net: PixelRNNNet, x: Tensor, labels: Tensor | None = None) -> Tensor:
    """What ``net(x, labels)`` is, (n, channels, height, width, parameters)."""
    h = net.first(x, labels)
    outputs = []
    for layer, widen in net.pairs():
        gates = layer.input(h, labels)
        states = row_lstm(layer, gates) if isinstance(layer, RowLSTM) else diagonal_bilstm(layer, gates, x)
        outputs.append(states)
        h = h + widen(states) if net.residual else widen(states)
    for skip, states in zip(net.skips, outputs, strict=False):
        h = h + skip(states)
    return net.head(h, labels)


def cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the gates (n, 4h) and the memory carried on (n, h) → the state and the memory."""
    i, f, o, g = gates.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def row_lstm(layer: RowLSTM, gates: Tensor) -> Tensor:
    """(n, 4h, height, width) → (n, h, height, width): section 3.1."""
    n, features, height, width = gates.shape
    taps = layer.state.shape[1]
    zero = gates.new_zeros(n, features // 4)
    above = [(zero, zero)] * width
    rows = []
    for row in range(height):
        here = []
        for column in range(width):
            sums = gates[:, :, row, column]
            for k in range(taps):
                neighbour = column + k - taps // 2
                if 0 <= neighbour < width:
                    sums = sums + above[neighbour][0] @ layer.state[0, k]
            here.append(cell(sums, above[column][1]))
        above = here
        rows.append(torch.stack([h for h, _ in here], -1))
    return torch.stack(rows, -2)


def diagonal_lstm(gates: Tensor, left: Tensor, up: Tensor) -> Tensor:
    """(n, 4h, height, width) → (n, h, height, width): section 3.2, from the left."""
    n, features, height, width = gates.shape
    zero = gates.new_zeros(n, features // 4)
    above = [zero] * width
    rows = []
    for row in range(height):
        h, c = zero, zero
        here = []
        for column in range(width):
            h, c = cell(gates[:, :, row, column] + h @ left + above[column] @ up, c)
            here.append(h)
        above = here
        rows.append(torch.stack(here, -1))
    return torch.stack(rows, -2)


def diagonal_bilstm(layer: DiagonalBiLSTM, gates: Tensor, image: Tensor) -> Tensor:
    """(n, 8h, height, width) → (n, h, height, width): both directions, the second one moved down by a row."""
    first, second = gates.chunk(2, 1)
    weight = (layer.input.weight * layer.input.visible).flatten(1).chunk(2)[1]
    second = second + torch.einsum("nchw,cf,gf->nghw", image, layer.reveal, weight)
    from_left = diagonal_lstm(first, *layer.state[0])
    from_right = diagonal_lstm(second.flip(3), *layer.state[1]).flip(3)
    return from_left + F.pad(from_right, (0, 0, 1, 0))[:, :, :-1]
