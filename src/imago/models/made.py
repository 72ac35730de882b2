"""MADE: an autoencoder whose masked weights make it a fully visible belief network with hidden layers.

An autoencoder sees all of x and gives back all of x. Give every unit a *degree*: a value's is its place in the order,
m = d for x_d; a hidden unit's is a number m(k) in 1..D-1 and says that the unit may know x_1, …, x_m(k). A connection
is kept where it carries nothing that its target must not know (Germain et al. 2015, equations 8, 9 and 12):

    between layers      kept if  m(target) ≥ m(source),                                                        (1)
    into the output     kept if  d > m(source),                                                                (2)
    direct, x_d' → x_d  kept if  d > d'   (strictly lower triangular; section 4.1).                            (3)

Along any path degrees never fall, and into the output they rise: the output for x_d depends on x_1, …, x_{d-1} only,
and one forward pass gives all D conditional distributions. With M of 0 and 1 by these rules, for one hidden layer

    h = g(b + (W ∘ M) x),    a = c + (V ∘ M) h + (A ∘ M) x,    p(x_d = 1 | x_1, …, x_{d-1}) = σ(a_d).           (4)

The paper draws degrees at random. Here they are spread evenly and *sorted* over the units, which changes the model only
by the names of its units (and by its luck), but makes every mask a staircase (:mod:`imago.nets.masked`): half the work
in training, and in sampling a hidden unit is computed once, when the last value that it may know has been drawn. The
order is the image's raster order; the paper's training over many orders and masks at once is left out.

Germain, Gregor, Murray & Larochelle 2015, "MADE: Masked autoencoder for distribution estimation" (PMLR 37).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Unpack, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from imago.capacity import Width
from imago.distributions import DistributionFactory, LogisticMixture
from imago.images import ImageSpec, Labels, Normalized
from imago.models.autoregressive import Autoregressive
from imago.models.base import Common
from imago.models.fvbn import reach_of_values
from imago.nets.masked import MaskedLinear, Ordered, OrderedIncremental, OrderedNet, check_size, stripes_of

Widths = Annotated[Sequence[Width], Field(min_length=1)]


class MADE(Autoregressive):
    """A masked autoencoder.

    Args:
        spec: the images.
        hidden: width of each hidden layer.
        direct: connect the values to the outputs beside the hidden layers (equation 3).
        distribution: of a value given those before it, see :class:`AutoregressiveSettings`.
        common: see :class:`Common`; a conditional model is p(x | label), by a bias of each class in every layer.

    Raises:
        UserError: more than 500 million weights.
    """

    def __init__(
        self,
        spec: ImageSpec,
        *,
        hidden: Widths = (1000,),
        direct: bool = False,
        distribution: DistributionFactory = partial(LogisticMixture, components=2),
        **common: Unpack[Common],
    ) -> None:
        super().__init__(spec, distribution=distribution, **common)
        self.net = MADENet(spec, self.distribution.parameters, hidden=list(hidden), direct=direct, classes=self.classes)


def degrees_of(width: int, values: int) -> list[int]:
    """Degrees 1..values-1, each as often as any other (or spread evenly, if there are fewer units), sorted."""
    return [1 + unit * (values - 1) // width for unit in range(width)]


class MADENet(OrderedNet):
    """Masked layers with ReLU between them (equation 4).

    Args:
        spec: the images.
        parameters: of the distribution of one value.
        hidden: width of each hidden layer.
        direct: connect the values to the outputs.
        classes: number of classes, 0 for an unconditional model.
    """

    def __init__(self, spec: ImageSpec, parameters: int, *, hidden: list[int], direct: bool, classes: int) -> None:
        super().__init__(spec, parameters)
        values = spec.dimensions
        self.degrees = [list(range(1, values + 1)), *(degrees_of(width, values) for width in hidden)]
        # Sources are sorted by degree, so those that a unit may see are a run from the first on.
        reaches = [
            [bisect_right(sources, degree) for degree in targets] for sources, targets in pairwise(self.degrees)
        ]  # equation 1
        reaches.append([bisect_right(self.degrees[-1], before) for before in reach_of_values(values, parameters)])  # 2
        widths = [values, *hidden]
        layouts = list(zip(widths, reaches, strict=True))
        if direct:
            layouts.append((values, reach_of_values(values, parameters)))  # equation 3
        weights = sum(stripe.weights for inputs, reach in layouts for stripe in stripes_of(reach, inputs))
        check_size(spec, parameters, weights + classes * (sum(hidden) + values * parameters))
        self.hidden = nn.ModuleList(
            MaskedLinear(inputs, reach, classes=classes, gain=2**0.5)
            for inputs, reach in zip(widths[:-1], reaches[:-1], strict=True)
        )
        self.output = MaskedLinear(widths[-1], reaches[-1], classes=classes, gain=0.1)
        self.direct = MaskedLinear(*layouts[-1], gain=0.1, bias=False) if direct else None

    def forward(self, x: Normalized, labels: Labels | None = None) -> Tensor:
        """(n, channels, height, width) → (n, channels, height, width, parameters)."""
        return self.as_image(self.of_values(self.ordered(x), labels))

    def of_values(self, values: Ordered, labels: Labels | None = None) -> Float[Tensor, "n outputs"]:
        """The same of any real numbers in order, (n, values) → (n, values * parameters)."""
        h = values
        for layer in self.hidden:
            h = F.relu(layer(h, labels), inplace=True)
        y = self.output(h, labels)
        return y if self.direct is None else y + self.direct(values)

    def incremental(self, blank: Tensor, labels: Labels | None) -> "Units":
        """Every hidden unit once, as soon as all that it may know is known."""
        return Units(self, len(blank), labels)


class Units(OrderedIncremental):
    """Activations so far: with i values known, the units of degree up to i are final, and all that x_{i+1} needs."""

    def __init__(self, net: MADENet, n: int, labels: Labels | None) -> None:
        super().__init__(net, n)
        self.net = net
        layers = cast("list[MaskedLinear]", list(net.hidden))
        self.hidden = [layer.some(labels) for layer in layers]
        self.output = net.output.some(labels)
        self.direct = None if net.direct is None else net.direct.some(None)
        self.activations = [self.values.new_empty(n, len(layer.reach)) for layer in layers]

    def predict(self, row: int, column: int, channel: int) -> Tensor:
        """The units of one degree in every layer, then one value's outputs."""
        return self.after(self.value(row, column, channel))

    def after(self, known: int) -> Tensor:
        """The outputs for the value that so many come before."""
        source = self.values
        for layer, into, degrees in zip(self.hidden, self.activations, self.net.degrees[1:], strict=True):
            start, end = bisect_left(degrees, known), bisect_right(degrees, known)
            if end > start:
                torch.clamp_min(layer(source, start, end), 0, out=into[:, start:end])
            source = into
        start, end = self.net.outputs(known)
        y = self.output(source, start, end)
        return y if self.direct is None else y + self.direct(self.values, start, end)
