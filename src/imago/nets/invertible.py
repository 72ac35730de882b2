"""Invertible layers: bijections of R^D whose inverse and whose Jacobian's determinant are cheap.

A flow is a chain of them (:mod:`imago.models.flow`, equation 1). Every layer is a module with

    forward(x) → y, log|det ∂y/∂x|        inverse(y) → x

and what makes both cheap is that the Jacobian is triangular, or a small matrix for each pixel:

    layer               y                                        log|det|                   source
    ActNorm             (x + b) ⊙ exp(s), b and s by channel      h w Σ_c s_c                Kingma & Dhariwal 2018, 3.1
    InvertibleConv      W x at every pixel, W = P L (U + D)       h w Σ_c log|D_cc|          the same, 3.2, eq. 9-11
    AffineCoupling      x_a, x_b ⊙ exp(s(x_a)) + t(x_a)          Σ s(x_a)                   Dinh et al. 2017, eq. 4-8
    MixtureCoupling     x_a, σ⁻¹(F(x_b; x_a)) ⊙ exp(s) + t       Σ log F'/(F(1 − F)) + s    Ho et al. 2019, eq. 14-16
    Squeeze, Permute    the same numbers in another place        0                          the same, 3.6

The log-determinant is a tensor of no dimension where it is the same for all images, and (n,) elsewhere. What a layer is
conditioned on (*given*) are class labels (n,), or maps (n, context, height, width) of the same sides as x.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Given = Tensor | None
Maps = Float[Tensor, "n channels height width"]
Said = Float[Tensor, "n said height width"]
LogDet = Float[Tensor, ""] | Float[Tensor, " n"]

SMALL = 0.1  # last layers of coupling nets at first, in units of LeCun's weights: every coupling is nearly the identity
NARROWEST = 5.0  # |log width| of a mixture's component stays below
LARGEST = 1.5  # |log scale| of a layer stays below: with 3, images that the nets have not met yet blew up on MNIST


class Invertible(nn.Module, ABC):
    """A bijection."""

    @abstractmethod
    def forward(self, x: Tensor, given: Given = None) -> tuple[Tensor, LogDet]:
        """x → y and log|det ∂y/∂x| in nats."""

    @abstractmethod
    def inverse(self, y: Tensor, given: Given = None) -> Tensor:
        """y → x."""


def log_normal(z: Tensor) -> Float[Tensor, " n"]:
    """Log-density of independent standard normal numbers, (n, ...) → (n,), in nats."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)


class Chain(Invertible):
    """One after the other."""

    def __init__(self, layers: Iterable[Invertible]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, given: Given = None) -> tuple[Tensor, LogDet]:
        """Log-determinants of a chain add up."""
        total: Tensor = x.new_zeros(())
        for layer in self.layers:
            x, log_det = layer(x, given)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor, given: Given = None) -> Tensor:
        """The inverses in reverse order."""
        for layer in reversed(self.layers):
            assert isinstance(layer, Invertible)
            y = layer.inverse(y, given)
        return y


# --- layers without a network -----------------------------------------------------------------------------------------


class ActNorm(Invertible):
    """A shift and a scale of each channel, at first such that a batch comes out with mean 0 and variance 1.

    Which batch: the one that passes inside :func:`initialising`, of all processes together. RealNVP and MAF have batch
    normalisation in this place, whose map depends on the other images of a batch, and in evaluation is another one than
    in training; here it is the same map always, and the log-likelihood that is trained is the one that is measured.

    Args:
        channels: of x, its second dimension.
        narrowest: what a standard deviation is at least taken to be, in units of that of all channels together: a
            channel may be constant in the first batch, and not in others.
    """

    def __init__(self, channels: int, narrowest: float = 0.1) -> None:
        super().__init__()
        self.narrowest = narrowest
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.mean_over_processes: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor, given: Given = None) -> tuple[Tensor, LogDet]:
        """(x + b) exp(s)."""
        if self.mean_over_processes is not None:
            self._initialise(x, self.mean_over_processes)
        shape = (1, -1, *[1] * (x.ndim - 2))
        y = (x + self.shift.view(shape)) * self.log_scale.exp().view(shape)
        return y, self.log_scale.sum() * math.prod(x.shape[2:])

    def inverse(self, y: Tensor, given: Given = None) -> Tensor:
        """The way back: y exp(−s) − b."""
        shape = (1, -1, *[1] * (y.ndim - 2))
        return y * (-self.log_scale).exp().view(shape) - self.shift.view(shape)

    @torch.no_grad()
    def _initialise(self, x: Tensor, mean: Callable[[Tensor], Tensor]) -> None:
        others = [0, *range(2, x.ndim)]
        centre = mean(x.mean(others))
        variance = mean((x - centre.view(1, -1, *[1] * (x.ndim - 2))).square().mean(others))
        variance = variance + self.narrowest**2 * variance.mean() + 1e-12
        self.shift.copy_(-centre)
        self.log_scale.copy_(-0.5 * variance.log())


@contextmanager
def initialising(net: nn.Module, mean: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, every :class:`ActNorm` of a network sets itself by what passes through it.

    Args:
        net: with such layers.
        mean: over all processes, of a tensor that each has one of.
    """
    layers = [module for module in net.modules() if isinstance(module, ActNorm)]
    for layer in layers:
        layer.mean_over_processes = mean
    try:
        yield
    finally:
        for layer in layers:
            layer.mean_over_processes = None


class InvertibleConv(Invertible):
    """A 1x1 convolution: the channels of every pixel times one matrix, W = P L (U + diag(d)).

    P is a fixed permutation, L lower triangular with ones on its diagonal, U strictly upper triangular, and of d the
    signs are fixed and the logarithms learned: W can become any matrix that the rotation at first leads to without
    passing a singular one, and its determinant is a sum.

    Args:
        channels: of x.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation.argmax(1))  # of L's rows: W[i] = (L U)[permutation[i]]
        self.register_buffer("sign", diagonal.sign())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(diagonal.abs().log())

    def factors(self) -> tuple[Tensor, Tensor]:
        """L and U + diag(d)."""
        unit = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + unit, self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())

    def forward(self, x: Maps, given: Given = None) -> tuple[Maps, LogDet]:
        """W x."""
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would make another map of it than the inverse's
            lower, upper = self.factors()
            weight = (lower @ upper)[self.permutation]
            y = F.conv2d(x, weight[:, :, None, None])
        return y, self.log_diagonal.sum() * (x.shape[2] * x.shape[3])

    def inverse(self, y: Maps, given: Given = None) -> Maps:
        """W⁻¹ y, by two triangular systems."""
        with torch.autocast(y.device.type, enabled=False):
            lower, upper = self.factors()
            unit = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
            rows = unit[self.permutation].t()  # P⁻¹
            half = torch.linalg.solve_triangular(lower, rows, upper=False, unitriangular=True)
            weight = torch.linalg.solve_triangular(upper, half, upper=True)
            return F.conv2d(y, weight[:, :, None, None])


class Permute(Invertible):
    """The channels in another order.

    Args:
        order: y's channel k is x's channel order[k].
    """

    order: Tensor
    back: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        index = torch.tensor(list(order))
        self.register_buffer("order", index, persistent=False)
        self.register_buffer("back", index.argsort(), persistent=False)

    def forward(self, x: Tensor, given: Given = None) -> tuple[Tensor, LogDet]:
        """Volumes stay."""
        return x.index_select(1, self.order), x.new_zeros(())

    def inverse(self, y: Tensor, given: Given = None) -> Tensor:
        """Back."""
        return y.index_select(1, self.back)


class Squeeze(Invertible):
    """Blocks of pixels become pixels of more channels: (n, c, h, w) → (n, c·rows·columns, h/rows, w/columns).

    Channel (c·rows + i)·columns + j of y is pixel (i, j) of each block of channel c.

    Args:
        rows: of a block.
        columns: of a block.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Maps, given: Given = None) -> tuple[Tensor, LogDet]:
        """Volumes stay."""
        n, c, h, w = x.shape
        blocks = x.reshape(n, c, h // self.rows, self.rows, w // self.columns, self.columns).permute(0, 1, 3, 5, 2, 4)
        y = blocks.reshape(n, c * self.rows * self.columns, h // self.rows, w // self.columns)
        return y.contiguous(memory_format=torch.channels_last), x.new_zeros(())

    def inverse(self, y: Maps, given: Given = None) -> Tensor:
        """Back."""
        n, c, h, w = y.shape
        c //= self.rows * self.columns
        blocks = y.reshape(n, c, self.rows, self.columns, h, w).permute(0, 1, 4, 2, 5, 3)
        return blocks.reshape(n, c, h * self.rows, w * self.columns)


# --- layers with a network --------------------------------------------------------------------------------------------


class NetSettings(NamedTuple):
    """Of the networks of couplings.

    Attributes:
        width: features of the hidden layers.
        classes: that labels are of, 0 for none.
        context: channels of the maps that the network reads beside its input, 0 for none.
        components: logistics that a coupling mixes, 0 for an affine coupling.
    """

    width: int
    classes: int = 0
    context: int = 0
    components: int = 0


class CouplingNet(nn.Module):
    """3x3, ReLU, 1x1, ReLU, 3x3 (Kingma & Dhariwal 2018, section 3.3), 1x1 alone on maps of one pixel.

    What is given is added to the first hidden layer: a vector of each class, or the maps through a 1x1 convolution.

    Args:
        inputs: channels.
        outputs: channels.
        sides: height and width of the maps.
        settings: of its hidden layers and of what is given.
    """

    def __init__(self, inputs: int, outputs: int, sides: tuple[int, int], settings: NetSettings) -> None:
        super().__init__()
        width = settings.width
        self.first = convolution(inputs, width, sides)
        self.embed = nn.Embedding(settings.classes, width) if settings.classes else None
        self.read = nn.Conv2d(settings.context, width, 1, bias=False) if settings.context else None
        self.middle = convolution(width, width, (1, 1), 2**0.5)
        self.last = convolution(width, outputs, sides, SMALL)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Maps, given: Given = None) -> Tensor:
        """(n, inputs, height, width) → (n, outputs, height, width), float32."""
        h = self.first(x)
        if self.embed is not None:
            h = h + self.embed(given)[:, :, None, None]
        if self.read is not None:
            h = h + self.read(given)
        h = F.relu(self.middle(F.relu(h, inplace=True)), inplace=True)
        return self.last(h).to(x.dtype)


def convolution(inputs: int, outputs: int, sides: tuple[int, int], gain: float = 1.0) -> nn.Conv2d:
    """A convolution whose kernel is 3 along sides of more than one pixel; outputs vary as inputs do, times ``gain``."""
    height, width = (3 if side > 1 else 1 for side in sides)
    layer = nn.Conv2d(inputs, outputs, (height, width), padding=(height // 2, width // 2))
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(inputs * height * width))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def bounded(raw: Tensor) -> Tensor:
    """Log-scales of what a network says: the same near 0, within ±:data:`LARGEST` everywhere."""
    return LARGEST * torch.tanh(raw / LARGEST)


class Coupling(Invertible):
    """A part of the channels changes value by value, by a map that a network says of the other part, which stays.

    As what stays is known from y, so is the map, however complicated the network is, and the Jacobian is triangular
    with the map's slopes on its diagonal.

    Args:
        channels: of x, two or more.
        sides: height and width of the maps.
        settings: of the network.
        numbers: that the network says of each value.
        swapped: the first part changes and not the second.
    """

    def __init__(
        self, channels: int, sides: tuple[int, int], settings: NetSettings, numbers: int, swapped: bool = False
    ) -> None:
        super().__init__()
        self.sizes = [channels - channels // 2, channels // 2]
        self.swapped = swapped
        stays, changes = reversed(self.sizes) if swapped else self.sizes
        self.net = CouplingNet(stays, numbers * changes, sides, settings)

    @abstractmethod
    def change(self, x: Maps, said: Said) -> tuple[Maps, Maps]:
        """x and what the network says, (n, numbers · channels, height, width) → y and the logarithms of the slopes."""

    @abstractmethod
    def change_back(self, y: Maps, said: Said) -> Maps:
        """The inverse of :meth:`change`."""

    def forward(self, x: Maps, given: Given = None) -> tuple[Maps, LogDet]:
        """See the class."""
        stays, changes = self._parts(x)
        changed, log_slope = self.change(changes, self.net(stays, given))
        return self._whole(stays, changed), log_slope.flatten(1).sum(1)

    def inverse(self, y: Maps, given: Given = None) -> Maps:
        """The inverse map, by what the network says of the same part."""
        stays, changes = self._parts(y)
        return self._whole(stays, self.change_back(changes, self.net(stays, given)))

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.split(self.sizes, 1)
        return (second, first) if self.swapped else (first, second)

    def _whole(self, stays: Tensor, changes: Tensor) -> Tensor:
        return torch.cat([changes, stays] if self.swapped else [stays, changes], 1)


class AffineCoupling(Coupling):
    """The map is a scale and a shift: y_b = x_b ⊙ exp(s(x_a)) + t(x_a).

    Args:
        channels: of x, two or more.
        sides: height and width of the maps.
        settings: of the network.
        swapped: the first part changes and not the second.
    """

    def __init__(self, channels: int, sides: tuple[int, int], settings: NetSettings, swapped: bool = False) -> None:
        super().__init__(channels, sides, settings, 2, swapped)

    def change(self, x: Maps, said: Said) -> tuple[Maps, Maps]:
        """x exp(s) + t."""
        raw, shift = said.chunk(2, 1)
        log_scale = bounded(raw)
        return x * log_scale.exp() + shift, log_scale

    def change_back(self, y: Maps, said: Said) -> Maps:
        """(y − t) exp(−s)."""
        raw, shift = said.chunk(2, 1)
        return (y - shift) * (-bounded(raw)).exp()


class MixtureCoupling(Coupling):
    """The map is the distribution function of a mixture of logistics, unrolled again to the whole line.

    y_b = σ⁻¹(F(x_b)) ⊙ exp(s) + t with F(x) = Σ_k π_k σ((x − μ_k) exp(−r_k)) (Ho et al. 2019, "Flow++", eq. 14-16; s,
    t, π, μ and r are said of x_a). A value that is black or anything else, each with some probability, is a spike and a
    plain beside it; F spreads the spike over as much of (0, 1) as it has probability. An affine map only moves both.
    One component is an affine map. The inverse halves an interval that holds x until it is as small as rounding: x
    lies between the smallest and the largest of the components' own answers.

    Args:
        channels: of x, two or more.
        sides: height and width of the maps.
        settings: of the network, and the number of components.
        swapped: the first part changes and not the second.
    """

    def __init__(self, channels: int, sides: tuple[int, int], settings: NetSettings, swapped: bool = False) -> None:
        super().__init__(channels, sides, settings, 2 + 3 * settings.components, swapped)
        self.components = settings.components
        bias = self.net.last.bias
        assert bias is not None
        with torch.no_grad():  # components in different places, or all would learn the same
            centres = torch.linspace(-1, 1, self.components + 2)[1:-1]
            bias.view(2 + 3 * self.components, -1)[2 + self.components : 2 + 2 * self.components] = centres[:, None]

    def _said(self, said: Said) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """s and t (n, channels, height, width), log π, μ and r (n, components, channels, height, width)."""
        k = self.components
        raw, shift, logits, centre, log_width = said.unflatten(1, (2 + 3 * k, -1)).split([1, 1, k, k, k], 1)
        narrow = NARROWEST * torch.tanh(log_width / NARROWEST)
        return bounded(raw.squeeze(1)), shift.squeeze(1), logits.log_softmax(1), centre, narrow

    def change(self, x: Maps, said: Said) -> tuple[Maps, Maps]:
        """σ⁻¹(F(x)) exp(s) + t; slope F'/(F (1 − F)) exp(s)."""
        log_scale, shift, log_weight, centre, log_width = self._said(said)
        u = (x.unsqueeze(1) - centre) * (-log_width).exp()
        below, above = F.logsigmoid(u), F.logsigmoid(-u)
        log_below, log_above = (log_weight + below).logsumexp(1), (log_weight + above).logsumexp(1)
        log_density = (log_weight - log_width + below + above).logsumexp(1)
        y = (log_below - log_above) * log_scale.exp() + shift
        return y, log_density - log_below - log_above + log_scale

    def change_back(self, y: Maps, said: Said) -> Maps:
        """F⁻¹(σ((y − t) exp(−s)))."""
        log_scale, shift, log_weight, centre, log_width = self._said(said)
        wanted = (y - shift) * (-log_scale).exp()
        answers = centre + wanted.unsqueeze(1) * log_width.exp()
        low, high = answers.amin(1), answers.amax(1)
        for _ in range(8 - round(math.log2(torch.finfo(y.dtype).eps))):
            x = (low + high) / 2
            u = (x.unsqueeze(1) - centre) * (-log_width).exp()
            below, above = (log_weight + F.logsigmoid(u)).logsumexp(1), (log_weight + F.logsigmoid(-u)).logsumexp(1)
            small = below - above < wanted
            low, high = torch.where(small, x, low), torch.where(small, high, x)
        return (low + high) / 2


def coupling(channels: int, sides: tuple[int, int], settings: NetSettings, swapped: bool = False) -> Coupling:
    """The coupling of these settings: of mixtures where they have components, otherwise affine."""
    made = MixtureCoupling if settings.components else AffineCoupling
    return made(channels, sides, settings, swapped)


class AffineOfGiven(Invertible):
    """Every value is scaled and shifted by as much as a convolution says of what is given.

    Args:
        channels: of x.
        sides: height and width of the maps.
        context: channels of the maps that are given.
    """

    def __init__(self, channels: int, sides: tuple[int, int], context: int) -> None:
        super().__init__()
        self.net = convolution(context, 2 * channels, sides, SMALL)

    def forward(self, x: Maps, given: Given = None) -> tuple[Maps, LogDet]:
        """The map: x ⊙ exp(s) + t."""
        raw, shift = self.net(given).to(x.dtype).chunk(2, 1)
        log_scale = bounded(raw)
        return x * log_scale.exp() + shift, log_scale.flatten(1).sum(1)

    def inverse(self, y: Maps, given: Given = None) -> Maps:
        """(y − t) ⊙ exp(−s)."""
        raw, shift = self.net(given).to(y.dtype).chunk(2, 1)
        return (y - shift) * (-bounded(raw)).exp()


# --- several scales ---------------------------------------------------------------------------------------------------


class Scale(NamedTuple):
    """One level of a multi-scale flow.

    Attributes:
        block: rows and columns of the blocks of pixels that become channels.
        image_channels: before that.
        channels: after it.
        sides: height and width of the maps after it.
    """

    block: tuple[int, int]
    image_channels: int
    channels: int
    sides: tuple[int, int]


def scales_of(shape: tuple[int, int, int], levels: int) -> list[Scale]:
    """The levels that an image has: each halves the sides that are even, and keeps half of the channels for the next.

    Fewer than asked for where no side can be halved any more. A coupling needs two channels: of a single one with odd
    sides the first level takes larger blocks, down to one number of them.

    Args:
        shape: channels, height and width.
        levels: at most.
    """
    channels, height, width = shape
    scales: list[Scale] = []
    for level in range(levels):
        rows, columns = (2 if side % 2 == 0 else 1 for side in (height, width))
        if rows == columns == 1:
            if level:
                break
            if channels == 1:
                rows, columns = (next((k for k in range(2, side) if side % k == 0), side) for side in (height, width))
        if level:
            channels -= channels // 2
        before = channels
        channels, height, width = channels * rows * columns, height // rows, width // columns
        scales.append(Scale((rows, columns), before, channels, (height, width)))
    return scales


class MultiScale(Invertible):
    """Levels of layers; after each but the last half of the channels leave, as a part of z (Dinh et al. 2017, 3.6).

    Args:
        scales: of :func:`scales_of`.
        layers: of a level.
        leaving: of a level that is not the last, what the channels that leave pass through, given those that stay: it
            scales and shifts the second part of the channels; ``None`` for nothing.
    """

    def __init__(
        self,
        scales: Sequence[Scale],
        layers: Callable[[Scale], Iterable[Invertible]],
        leaving: Callable[[Scale], Invertible] | None = None,
    ) -> None:
        super().__init__()
        self.scales = list(scales)
        levels = []
        for k, scale in enumerate(self.scales):
            last = [leaving(scale)] if leaving is not None and k < len(self.scales) - 1 else []
            levels.append(Chain([Squeeze(*scale.block), *layers(scale), *last]))
        self.levels = nn.ModuleList(levels)
        # Channels that leave after each level; all after the last one.
        self.left = [scale.channels // 2 for scale in self.scales[:-1]] + [self.scales[-1].channels]

    def forward(self, x: Maps, given: Given = None) -> tuple[Float[Tensor, "n values"], LogDet]:
        """(n, channels, height, width) → (n, values), what left first at first."""
        parts = []
        total: Tensor = x.new_zeros(())
        for level, left in zip(self.levels, self.left, strict=True):
            x, log_det = level(x, given)
            total = total + log_det
            x, leaving = x.split([x.shape[1] - left, left], 1)
            parts.append(leaving.flatten(1))
        return torch.cat(parts, 1), total

    def inverse(self, y: Float[Tensor, "n values"], given: Given = None) -> Maps:
        """Back."""
        sizes = [left * math.prod(scale.sides) for left, scale in zip(self.left, self.scales, strict=True)]
        parts = list(y.split(sizes, 1))
        x = y.new_zeros(len(y), 0, *self.scales[-1].sides)
        for level, scale, left in zip(reversed(self.levels), reversed(self.scales), reversed(self.left), strict=True):
            assert isinstance(level, Invertible)
            leaving = parts.pop().view(len(y), left, *scale.sides)
            x = level.inverse(torch.cat([x, leaving], 1).contiguous(memory_format=torch.channels_last), given)
        return x
