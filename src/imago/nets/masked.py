"""Linear layers for values in a fixed order: an output sees a run of inputs from the first one on, and nothing else.

Where both the inputs and the outputs of a layer are sorted by what they may know, its mask is a staircase:

    reach = 0 1 1 3 4         output 0   . . . . .
                              output 1   w . . . .
                              output 2   w . . . .         w: a weight, .: always zero
                              output 3   w w w . .
                              output 4   w w w w .

Nearly half of a fully visible model's weights would be zeros. They are neither stored nor multiplied: the outputs are
cut into stripes, and a stripe is a matrix over the inputs that any of its outputs sees. Only where a stripe's outputs
differ, at its right end, is there still something to hide. So no weight connects a value to a later one, whatever the
parameters are set to.

The order of values is raster order with the channels inside a pixel: value i = (row * width + column) * channels +
channel.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from imago.errors import UserError
from imago.images import ImageSpec, Labels, Normalized
from imago.nets.causal import AutoregressiveNet
from imago.nets.incremental import Incremental

LARGEST = 500_000_000  # weights; Adam keeps four numbers for each: 8 GB
CLASS_FACTOR = 8.0  # on class biases: Adam moves all parameters at one speed, and the label is one input among hundreds
Ordered = Float[Tensor, "n values"]


class Stripe(NamedTuple):
    """Outputs start..end-1, which all see inputs 0..common-1, and some of them inputs up to reach-1."""

    start: int
    end: int
    common: int
    reach: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of its weights."""
        return self.end - self.start, self.reach

    @property
    def hidden(self) -> tuple[int, int]:
        """Shape of the part in which a mask hides something."""
        return self.end - self.start, self.reach - self.common

    @property
    def weights(self) -> int:
        """How many weights are stored."""
        return (self.end - self.start) * self.reach


def stripes_of(reach: Sequence[int], inputs: int) -> list[Stripe]:
    """Outputs of non-decreasing reach, cut where the reach passes a multiple of a step; equal reach stays together.

    A stripe costs a fixed time, a wide stripe stores and multiplies zeros: 8 stripes for 784 inputs, 16 at most.
    """
    count = min(max(inputs // 96, 1), 16)
    cuts = {bisect_right(reach, -(-inputs * k // count)) for k in range(1, count)}
    cuts -= {0, bisect_right(reach, 0)}  # outputs that see nothing belong to the first stripe
    ends = sorted(cuts | {len(reach)})
    return [Stripe(start, end, reach[start], reach[end - 1]) for start, end in pairwise([0, *ends])]


def _cut(flat: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Views of a vector as matrices that lie one after the other in it."""
    return [part.view(shape) for part, shape in zip(flat.split([a * b for a, b in shapes]), shapes, strict=True)]


class _Product(torch.autograd.Function):
    """x W^T stripe by stripe, without the copies and zero-filled gradients that slices of x and W would cost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mask: Tensor, stripes: list[Stripe]) -> Tensor:
        y = x.new_empty(len(x), stripes[-1].end)
        for stripe, w in zip(stripes, _cut(weight, [stripe.shape for stripe in stripes]), strict=True):
            torch.mm(x[:, : stripe.reach], w.t(), out=y[:, stripe.start : stripe.end])
        ctx.stripes = stripes
        ctx.save_for_backward(x, weight, mask)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        x, weight, mask = ctx.saved_tensors
        stripes: list[Stripe] = ctx.stripes
        shapes = [stripe.shape for stripe in stripes]
        of_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        of_weight = torch.empty_like(weight)
        masks = _cut(mask, [stripe.hidden for stripe in stripes])
        for stripe, w, of_w, m in zip(stripes, _cut(weight, shapes), _cut(of_weight, shapes), masks, strict=True):
            g = gradient[:, stripe.start : stripe.end]
            torch.mm(g.t(), x[:, : stripe.reach], out=of_w)
            of_w[:, stripe.common :].mul_(m)
            if of_x is not None:
                of_x[:, : stripe.reach].addmm_(g, w)
        return of_x, of_weight, None, None


class MaskedLinear(nn.Module):
    """y_k = b_k + Σ_{j < reach_k} W_kj x_j, with a bias of each class beside b.

    Args:
        inputs: length of x.
        reach: how many inputs each output sees, never decreasing.
        classes: number of classes, 0 for none.
        gain: factor on the initial weights, which otherwise keep the variance of their inputs.
        bias: add b.

    Attributes:
        weight: the stripes' matrices one after the other, as a vector. What a mask hides in them is zero at the start
            and gets no gradient; should somebody set it to something else, it is zero again before it is used.
    """

    mask: Tensor

    def __init__(
        self, inputs: int, reach: Sequence[int], *, classes: int = 0, gain: float = 1.0, bias: bool = True
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.reach = list(reach)
        self.stripes = stripes_of(self.reach, inputs)
        self.weight = nn.Parameter(torch.empty(sum(stripe.weights for stripe in self.stripes)).uniform_(-1, 1))
        seen = torch.tensor(self.reach)[:, None]
        masks = [torch.arange(s.common, s.reach) < seen[s.start : s.end] for s in self.stripes]
        self.register_buffer("mask", torch.cat([mask.flatten() for mask in masks]).float(), persistent=False)
        bound = gain * (3 / seen.clamp(min=1)).sqrt()
        for stripe, w in zip(self.stripes, self.matrices(), strict=True):
            w.mul_(bound[stripe.start : stripe.end])
        self.bias = nn.Parameter(torch.zeros(len(self.reach))) if bias else None
        self.class_bias = nn.Embedding(classes, len(self.reach)) if classes else None
        if self.class_bias is not None:
            nn.init.normal_(self.class_bias.weight, std=0.05 / CLASS_FACTOR)

    @property
    def always_zero(self) -> int:
        """How many of the stored weights a mask hides."""
        return int((self.mask == 0).sum())

    def matrices(self) -> list[Tensor]:
        """The weight of every stripe, (outputs, reach): views without gradient, hidden entries set to zero."""
        views = _cut(self.weight.data, [stripe.shape for stripe in self.stripes])  # .data: not a change to autograd
        for stripe, w, mask in zip(
            self.stripes, views, _cut(self.mask, [stripe.hidden for stripe in self.stripes]), strict=True
        ):
            w[:, stripe.common :].mul_(mask)
        return views

    def forward(self, x: Ordered, labels: Labels | None = None) -> Float[Tensor, "n outputs"]:
        """(n, inputs) → (n, outputs)."""
        self.matrices()
        y = _Product.apply(x, self.weight, self.mask, self.stripes)
        biases = self.biases(labels)
        return y if biases is None else y + biases

    def biases(self, labels: Labels | None) -> Tensor | None:
        """(outputs,), or (n, outputs) with classes; ``None`` without biases."""
        return self.bias if self.class_bias is None else self.bias + CLASS_FACTOR * self.class_bias(labels)

    def some(self, labels: Labels | None) -> Callable[[Ordered, int, int], Tensor]:
        """A function of (x, start, end): outputs start..end-1, all of one reach, from the inputs that they see.

        x beyond the reach is not looked at. The function works on the weights as they are when it is made.
        """
        matrices, biases = self.matrices(), self.biases(labels)

        def outputs(x: Tensor, start: int, end: int) -> Tensor:
            k = bisect_right(self.stripes, start, key=attrgetter("start")) - 1
            first, reach = self.stripes[k].start, self.reach[start]
            transposed = matrices[k][start - first : end - first, :reach].t()
            if biases is None:
                return torch.mm(x[:, :reach], transposed)
            return torch.addmm(biases[..., start:end], x[:, :reach], transposed)

        return outputs

    def matrix(self) -> Float[Tensor, "outputs inputs"]:
        """A copy of the weights as one matrix with its zeros, for looking at."""
        dense = self.weight.data.new_zeros(len(self.reach), self.inputs)
        for stripe, w in zip(self.stripes, self.matrices(), strict=True):
            dense[stripe.start : stripe.end, : stripe.reach] = w
        return dense


class OrderedNet(AutoregressiveNet):
    """A network on the values of an image in order, as numbers in [0, 1].

    Args:
        spec: the images.
        parameters: of the distribution of one value.
    """

    def __init__(self, spec: ImageSpec, parameters: int) -> None:
        super().__init__()
        self.spec = spec
        self.parameters_of_value = parameters

    def ordered(self, x: Normalized) -> Ordered:
        """Signals (n, channels, height, width) in [-1, 1] → values in order (n, values) in [0, 1].

        Most pixels are black in many data sets; as zeros they leave their weights alone, so training is faster.
        """
        return x.permute(0, 2, 3, 1).flatten(1).add(1).div(2)

    def as_image(self, y: Float[Tensor, "n outputs"]) -> Float[Tensor, "n channels height width parameters"]:
        """(n, values * parameters) → (n, channels, height, width, parameters)."""
        channels, height, width = self.spec.shape
        return y.view(len(y), height, width, channels, self.parameters_of_value).permute(0, 3, 1, 2, 4)

    def outputs(self, value: int) -> tuple[int, int]:
        """(start, end) of the outputs that are the parameters of a value."""
        return value * self.parameters_of_value, (value + 1) * self.parameters_of_value


class OrderedIncremental(Incremental):
    """The values so far, in order.

    Args:
        net: the network.
        n: images.

    Attributes:
        values: (n, values) in [0, 1]; what comes after the value in question is not looked at.
    """

    def __init__(self, net: OrderedNet, n: int) -> None:
        self.spec = net.spec
        self.values = next(net.parameters()).new_zeros(n, net.spec.dimensions)

    def value(self, row: int, column: int, channel: int) -> int:
        """The place of a value in the order."""
        return (row * self.spec.width + column) * self.spec.channels + channel

    def begin_row(self, row: int) -> None:
        """Rows mean nothing here."""

    def set(self, row: int, column: int, channel: int, signal: Tensor) -> None:
        """Write among the values."""
        self.values[:, self.value(row, column, channel)] = (signal + 1) / 2


def check_size(spec: ImageSpec, parameters: int, weights: int) -> None:
    """Refuse a model that is too large to train, before it takes the memory.

    Args:
        spec: the images.
        parameters: of the distribution of one value.
        weights: of the whole network.

    Raises:
        UserError: more than 500 million weights.
    """
    if weights > LARGEST:
        raise UserError(
            f"{weights / 1e6:,.0f} million weights for images of {spec} with {parameters} parameters for each value "
            f"(at most {LARGEST / 1e6:,.0f} million): choose model/distribution=logistic_mixture with few "
            f"components, smaller layers or smaller images"
        )
