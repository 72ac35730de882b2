"""Plain convolutional encoder and decoder: strided convolutions with batch norm, for any image shape.

The networks that pythae (Chadebec, Vincent & Allassonnière 2022, "Pythae: unifying generative autoencoders in Python")
benchmarks its autoencoders with; for MNIST 128-256-512-1024 channels down and 1024-512-256 up. The encoder's maps have
sides ``max(1, side // 2)``, 28 → 14 → 7 → 3 → 1; the decoder's follow the ladder ``ceil(side / 2^k)``, 4 → 7 → 14 → 28.
A convolution before a batch norm has no bias: the norm subtracts it.

Many channels on small maps are where CPU convolutions spend their time rearranging weights. There both directions are
written as one matrix product: a convolution is the product of its windows with the weight, a transposed convolution the
overlapping sum of the windows that a product makes. In channels-last memory neither the map nor the weight is moved for
it. Forwards and backwards on one thread of a busy Xeon the products were 2.6 to 7 times as fast as torch's convolutions
for maps of 3x3 to 7x7 pixels, and 1.0 (16x16) to 2.8 times (4x4) as fast as its transposed convolutions.
"""

import math
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, channels_last, nn
from torch.nn import functional as F

from imago.errors import UserError
from imago.images import ImageSpec, Labels, Normalized
from imago.nets.dcgan import folded, size_ladder
from imago.nets.mlp import Widths

Map = Float[Tensor, "n _ _ _"]
Size = tuple[int, int]

_SMALL = 64  # pixels of a map up to which a convolution is faster as a matrix product, on a CPU
_FOLD = 32  # fold a batch norm into weights that are no more than the values of so many images' maps


def _gather(x: Tensor, kernel: int, stride: int, before: int, out: Size) -> Tensor:
    """Windows (n, *out, kernel, kernel, c) of a map (n, h, w, c) with ``before`` rows and columns of zeros ahead."""
    n, height, width, c = x.shape
    below, right = ((o - 1) * stride + kernel - before for o in out)
    x = F.pad(x, (0, 0, before, right - width, before, below - height))
    image, row, column, channel = x.stride()
    strides = (image, stride * row, stride * column, row, column, channel)
    return x.as_strided((n, *out, kernel, kernel, c), strides).contiguous()


def _scatter(windows: Tensor, bias: Tensor | None, stride: int, before: int, out: Size) -> Tensor:
    """The adjoint of :func:`_gather`: a map (n, *out, c), the sum of windows where they overlap, plus ``bias``."""
    n, height, width, kernel, _, c = windows.shape
    y = windows.new_zeros(n, *out, c) if bias is None else bias.expand(n, *out, c).contiguous()

    def overlap(k: int, inside: int, outside: int) -> tuple[slice, slice]:
        """The windows whose k-th row lies in the map, and these rows of it."""
        first = max(0, -((k - before) // stride))
        last = min(inside - 1, (outside - 1 + before - k) // stride)
        start = stride * first + k - before
        return slice(first, last + 1), slice(start, start + stride * (last - first) + 1, stride)

    for i in range(kernel):
        rows, rows_out = overlap(i, height, out[0])
        for j in range(kernel):
            columns, columns_out = overlap(j, width, out[1])
            if rows.start < rows.stop and columns.start < columns.stop:
                y[:, rows_out, columns_out] += windows[:, rows, columns, i, j]
    return y


class _Gather(torch.autograd.Function):
    """:func:`_gather` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int, before: int, out: Size) -> Tensor:
        ctx.arguments = stride, before, tuple(x.shape[1:3])
        return _gather(x, kernel, stride, before, out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Scatter.apply(gradient, None, *ctx.arguments), None, None, None, None


class _Scatter(torch.autograd.Function):
    """:func:`_scatter` with its gradient."""

    @staticmethod
    def forward(ctx: Any, windows: Tensor, bias: Tensor | None, stride: int, before: int, out: Size) -> Tensor:
        ctx.arguments = windows.shape[3], stride, before, tuple(windows.shape[1:3])
        return _scatter(windows, bias, stride, before, out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        of_bias = gradient.sum((0, 1, 2)) if ctx.needs_input_grad[1] else None
        return _Gather.apply(gradient, *ctx.arguments), of_bias, None, None, None


def _by_products(x: Map) -> bool:
    """Whether matrix products are to be considered: GPU libraries have convolutions for small maps too."""
    return x.device.type == "cpu"


def _matrix(weight: Tensor) -> Tensor:
    """(a, b, k, k) as the matrix (a, k k b): a view of a weight in channels-last memory."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def convolve(x: Map, weight: Tensor, bias: Tensor | None) -> Map:
    """A convolution of kernel 4 and stride 2, sides to ``max(1, side // 2)``."""
    height, width = x.shape[2:]
    if height * width > _SMALL or not _by_products(x):
        if min(height, width) == 1:
            x = F.pad(x, (0, int(width == 1), 0, int(height == 1)))
        return F.conv2d(x, weight, bias, stride=2, padding=1)
    out = max(1, height // 2), max(1, width // 2)
    windows = _Gather.apply(x.permute(0, 2, 3, 1), 4, 2, 1, out)
    return F.linear(windows.flatten(3), _matrix(weight), bias).permute(0, 3, 1, 2)


def spread(x: Map, weight: Tensor, bias: Tensor | None, stride: int, out: Size) -> Map:
    """A transposed convolution of kernel 3 or 4 to a map of size ``out``: (about) doubled, or kept with stride 1."""
    kernel = weight.shape[-1]
    before = 1 if stride == 2 else kernel // 2
    if _by_products(x):
        windows = (x.permute(0, 2, 3, 1) @ _matrix(weight)).unflatten(3, (kernel, kernel, -1))
        return _Scatter.apply(windows, bias, stride, before, out).permute(0, 3, 1, 2)
    more = [max(0, o - (stride * (side - 1) - 2 * before + kernel)) for o, side in zip(out, x.shape[2:], strict=True)]
    y = F.conv_transpose2d(x, weight, bias, stride=stride, padding=before, output_padding=more)
    return y[:, :, : out[0], : out[1]]


def _folds(norm: nn.BatchNorm2d, weight: Tensor, out: Size) -> bool:
    """Whether a fixed batch norm is cheaper applied to the weight than to the maps; the same for every batch size."""
    return not norm.training and weight.numel() <= _FOLD * norm.num_features * math.prod(out)


class StridedEncoder(nn.Module):
    """Image → strided convolutions → a vector.

    A class label shifts the channels of the last map.

    Args:
        spec: the images.
        outputs: length of the vector.
        classes: number of classes, 0 for an unconditional model.
        hidden: channels after each convolution; each halves the map.

    Raises:
        UserError: more convolutions than the image has halvings.
    """

    def __init__(self, spec: ImageSpec, outputs: int, classes: int, hidden: Widths) -> None:
        super().__init__()
        size_ladder(spec, len(hidden), "hidden")  # refuses more than the image has halvings
        self.halvings = nn.ModuleList(
            nn.Conv2d(c, d, 4, stride=2, padding=1, bias=False) for c, d in pairwise([spec.channels, *hidden])
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in hidden)
        self.embed = nn.Embedding(classes, hidden[-1]) if classes else None
        height, width = (max(1, side >> len(hidden)) for side in spec.shape[1:])
        self.last = nn.Linear(hidden[-1] * height * width, outputs)
        self.to(memory_format=channels_last)

    def forward(self, x: Normalized, labels: Labels | None = None) -> Float[Tensor, "n outputs"]:
        """The vectors.

        Raises:
            UserError: training on a single image whose last map is a single pixel.
        """
        h = x.contiguous(memory_format=channels_last)
        halve: Any
        norm: Any
        for k, (halve, norm) in enumerate(zip(self.halvings, self.norms, strict=True)):
            out = max(1, h.shape[2] // 2), max(1, h.shape[3] // 2)
            if _folds(norm, halve.weight, out):
                h = convolve(h, *folded(halve, norm, transpose=False))
            else:
                h = convolve(h, halve.weight, None)
                if norm.training and h.numel() == h.shape[1]:
                    raise UserError(
                        "data.batch_size=1: batch norm has one value to normalise where a map is one pixel; "
                        "train on batches of at least 2, or shorten model.encoder.hidden"
                    )
                h = norm(h)
            if self.embed is not None and k == len(self.norms) - 1:
                h = h + self.embed(labels)[:, :, None, None]
            h = h.relu_()  # in place: batch norm's gradient needs its input, a convolution's only the result
        return self.last(h.permute(0, 2, 3, 1).flatten(1))


class StridedDecoder(nn.Module):
    """A vector → small map → transposed convolutions → the parameters of every value's distribution.

    A class label shifts the channels of the first map.

    Args:
        spec: the images.
        latent: length of the vector.
        parameters: how many numbers describe the distribution of a value.
        classes: number of classes, 0 for an unconditional model.
        hidden: channels before each transposed convolution; each doubles the map.
        kernel: of the transposed convolutions.
        last_stride: 1: the last transposed convolution keeps the size of the map, which starts at twice the size.

    Raises:
        UserError: more convolutions than the image has halvings.
    """

    def __init__(
        self,
        spec: ImageSpec,
        latent: int,
        parameters: int,
        classes: int,
        hidden: Widths,
        kernel: Literal[3, 4] = 4,
        last_stride: Literal[1, 2] = 2,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.strides = [2] * (len(hidden) - 1) + [last_stride]
        doublings = sum(stride == 2 for stride in self.strides)
        self.sizes = size_ladder(spec, doublings, "hidden")
        if last_stride == 1:
            more = 1 - kernel % 2  # an even kernel of stride 1 takes one pixel off
            self.sizes = [*self.sizes[:-1], (spec.height + more, spec.width + more), (spec.height, spec.width)]
        self.first = nn.Linear(latent, hidden[0] * math.prod(self.sizes[0]))
        self.embed = nn.Embedding(classes, hidden[0]) if classes else None
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(c, d, kernel, bias=k == len(hidden) - 1)
            for k, (c, d) in enumerate(pairwise([*hidden, spec.channels * parameters]))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in hidden[1:])
        self.to(memory_format=channels_last)

    def forward(
        self, z: Float[Tensor, "n latent"], labels: Labels | None = None
    ) -> Float[Tensor, "n channels height width parameters"]:
        """The parameters."""
        h = self.first(z).view(len(z), *self.sizes[0], -1).permute(0, 3, 1, 2)
        if self.embed is not None:
            h = h + self.embed(labels)[:, :, None, None]
        *inner, last = zip(self.convolutions, self.strides, self.sizes[1:], strict=True)
        conv: Any
        norm: Any
        for (conv, stride, out), norm in zip(inner, self.norms, strict=True):
            if _folds(norm, conv.weight, out):
                h = spread(h, *folded(conv, norm, transpose=True), stride, out)
            else:
                h = norm(spread(h, conv.weight, None, stride, out))
            h = h.relu_()
        conv, stride, out = last
        h = spread(h, conv.weight, conv.bias, stride, out).permute(0, 2, 3, 1)
        return h.unflatten(3, (self.spec.channels, -1)).permute(0, 3, 1, 2, 4)
