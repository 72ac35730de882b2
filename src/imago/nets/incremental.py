"""Drawing an image value by value without computing anything twice.

An autoregressive network predicts each value from the ones before it. The plain way to sample repeats the whole network
for every value; but only one position of every layer is new each time, so what was computed is kept (Ramachandran et
al. 2017, "Fast generation for convolutional autoregressive models"). :class:`Incremental` is what a sampler talks to;
:class:`Recomputed` is the plain way, kept as the reference; :class:`RowProgram` is the fast one of all networks that
work on pixel maps.

A row program is a list of tensor operations on fixed buffers that hold one image row of every layer:

- at the start of a row, every layer adds up what the rows above contribute, for all columns at once;
- at each pixel, every layer adds what lies to the left in the same row, and the pixel's own channels so far.

The first part is most of the arithmetic and runs at matrix speed; the second is one small product a layer. The buffers
are the same for every row, so that a row can be captured as one CUDA graph and replayed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from imago.images import ImageSpec

Operation = Callable[[], Any]


def _relu(x: Tensor, out: Tensor) -> Tensor:
    return torch.clamp_min(x, 0, out=out)


class Incremental(ABC):
    """The state of drawing ``n`` images in raster order, channel by channel within a pixel."""

    #: Whether every row is the same computation on the same memory.
    same_rows: bool = False

    @abstractmethod
    def begin_row(self, row: int) -> None:
        """All rows above are set."""

    @abstractmethod
    def predict(self, row: int, column: int, channel: int) -> Tensor:
        """Parameters (n, parameters) of the next value; all values before it are set."""

    @abstractmethod
    def set(self, row: int, column: int, channel: int, signal: Tensor) -> None:
        """Set a value, as a signal in [-1, 1], (n,)."""


class Recomputed(Incremental):
    """The plain way: the whole network for every value.

    Args:
        net: (n, channels, height, width) and labels → (n, channels, height, width, parameters).
        signal: (n, channels, height, width), any values.
        labels: (n,) or ``None``.
    """

    def __init__(self, net: nn.Module, signal: Tensor, labels: Tensor | None) -> None:
        self.net = net
        self.signal = signal
        self.labels = labels

    def begin_row(self, row: int) -> None:
        """Nothing is kept."""

    def predict(self, row: int, column: int, channel: int) -> Tensor:
        """One forward pass over the images so far."""
        return self.net(self.signal, self.labels)[:, channel, row, column]

    def set(self, row: int, column: int, channel: int, signal: Tensor) -> None:
        """Write into the images."""
        self.signal[:, channel, row, column] = signal


def parts_of(features: int, groups: int) -> list[tuple[int, int]]:
    """Features split into ``groups`` runs as equal as possible, as (start, end); one group for each image channel."""
    bounds = [-(-features * g // groups) for g in range(groups + 1)]
    return [(bounds[g], bounds[g + 1]) for g in range(groups)]


class Row:
    """One image row of some layer's features: (n, margin + width + margin, features), the margins zero.

    Args:
        n: images.
        width: columns.
        bounds: (start, end) of each channel group's features.
        margin: columns of zeros at either side.
        like: a tensor of the wanted type and device.
    """

    def __init__(self, n: int, width: int, bounds: list[tuple[int, int]], margin: int, like: Tensor) -> None:
        self.width = width
        self.bounds = bounds
        self.margin = margin
        self.features = bounds[-1][1]
        self.data = like.new_zeros(n, 2 * margin + width, self.features)
        self.flat = self.data.view(n, -1)

    def at(self, column: int, group: int) -> Tensor:
        """View (n, features of the group) of one pixel's features of one channel group."""
        start, end = self.bounds[group]
        return self.data[:, self.margin + column, start:end]

    def up_to(self, column: int, group: int, left: int, inclusive: bool) -> Tensor:
        """View (n, left * features + …): ``left`` columns before the pixel, and its own groups up to this one."""
        start, end = self.bounds[group]
        here = (self.margin + column) * self.features
        return self.flat[:, here - left * self.features : here + (end if inclusive else start)]

    @property
    def inner(self) -> Tensor:
        """View (n, width, features) without the margins."""
        return self.data[:, self.margin : self.margin + self.width]


class RowProgram(Incremental):
    """Operations on row buffers, appended by the layers of a network in the order of its forward pass.

    Args:
        n: images.
        width: columns.
        channels: image channels, the groups of every feature map.
        margin: columns of zeros that the widest convolution needs at either side.
        like: a tensor of the wanted type and device.
        labels: (n,) or ``None``; at hand for layers that see the class.

    Attributes:
        image: the row of the image that is being drawn.
        output: the row that the last layer writes; its groups hold the parameters of each channel.
    """

    same_rows = True
    output: Row

    def __init__(
        self, n: int, width: int, channels: int, margin: int, like: Tensor, labels: Tensor | None = None
    ) -> None:
        self.n, self.width, self.channels, self.margin, self.like = n, width, channels, margin, like
        self.labels = labels
        self.image = self.row(channels)
        self._row_operations: list[Operation] = []
        self._operations: list[list[list[Operation]]] = [[[] for _ in range(channels)] for _ in range(width)]

    @classmethod
    def of(cls, net: nn.Module, spec: ImageSpec, n: int, labels: Tensor | None) -> "RowProgram":
        """An empty program for a network on images of a shape."""
        like = next(net.parameters())
        reaches = (getattr(module, "left", 0) for module in net.modules())  # of its convolutions to the left
        margin = max(reach for reach in reaches if isinstance(reach, int))
        return cls(n, spec.width, spec.channels, margin, like.detach(), labels)

    def row(self, features: int, parts: int = 1) -> Row:
        """A buffer of zeros; ``parts`` maps of ``features`` each lie side by side *within* each channel group."""
        bounds = [(parts * start, parts * end) for start, end in parts_of(features, self.channels)]
        return Row(self.n, self.width, bounds, self.margin, self.like)

    def each_row(self, operation: Operation) -> None:
        """Append an operation for the start of every row."""
        self._row_operations.append(operation)

    def each_pixel(self, make: Callable[[int, int], Iterable[Operation]]) -> None:
        """Append operations for every pixel: ``make(column, group)`` gives them."""
        for column in range(self.width):
            for group in range(self.channels):
                self._operations[column][group].extend(make(column, group))

    def map(self, function: Callable[..., Any], *sources: Row, into: Row | None = None) -> Row:
        """Append a position-wise ``function(*tensors, out=…)``; gives the row that it writes."""
        target = self.row_like(sources[0]) if into is None else into
        self.each_pixel(
            lambda column, group: [
                partial(function, *(s.at(column, group) for s in sources), out=target.at(column, group))
            ]
        )
        return target

    def relu(self, source: Row) -> Row:
        """Append max(x, 0) into a new row."""
        return self.map(_relu, source)

    def relu_(self, source: Row) -> Row:
        """Append max(x, 0) in place; for rows that nothing else reads."""
        self.each_pixel(lambda column, group: [partial(torch.relu_, source.at(column, group))])
        return source

    def add_(self, target: Row, other: Row) -> Row:
        """Append target += other."""
        self.each_pixel(lambda column, group: [partial(target.at(column, group).add_, other.at(column, group))])
        return target

    def row_like(self, other: Row) -> Row:
        """A buffer of zeros of the same features."""
        return Row(self.n, self.width, other.bounds, self.margin, self.like)

    def begin_row(self, row: int) -> None:
        """Add up what the rows above contribute."""
        for operation in self._row_operations:
            operation()

    def predict(self, row: int, column: int, channel: int) -> Tensor:
        """Run one position of every layer."""
        for operation in self._operations[column][channel]:
            operation()
        return self.output.at(column, channel)

    def set(self, row: int, column: int, channel: int, signal: Tensor) -> None:
        """Write into the image row."""
        self.image.data[:, self.margin + column, channel] = signal
