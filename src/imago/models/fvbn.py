"""Fully visible belief network: a regression of every value on all values before it.

The chain rule (:mod:`imago.models.autoregressive`, equation 1) leaves open how a value's distribution depends on the
values before it. The simplest dependence is linear. For binary pixels (Frey, Hinton & Dayan 1996, equation 3 with
σ(a) = 1/(1 + exp(-a)))

    p(x_i = 1 | x_1, …, x_{i-1}) = σ(b_i + Σ_{j<i} W_ij x_j),                                                  (1)

a logistic regression for every pixel. Nothing is hidden, hence the name. For more levels the regression is a softmax,
or gives the parameters of a mixture of logistic distributions: K numbers for each value instead of one.

All regressions together are one linear layer whose matrix W is strictly lower triangular, so that all of log p(x) is
one product of matrices. It is concave in W and b for binary pixels and for the softmax: there is one optimum, and how
far a deeper model of this family gets beyond it is what depth is worth.

Frey, Hinton & Dayan 1996, "Does the wake-sleep algorithm produce good density estimators?" (NIPS 8); Frey 1998,
"Graphical models for machine learning and digital communication". Called a fully visible sigmoid belief network by Neal
1992, "Connectionist learning of belief networks".
"""

from functools import partial
from typing import Unpack

from torch import Tensor

from imago.distributions import DistributionFactory, LogisticMixture
from imago.images import ImageSpec, Labels, Normalized
from imago.models.autoregressive import Autoregressive
from imago.models.base import Common
from imago.nets.masked import MaskedLinear, OrderedIncremental, OrderedNet, check_size, stripes_of


class FVBN(Autoregressive):
    """A fully visible belief network.

    Args:
        spec: the images.
        distribution: of a value given those before it, see :class:`AutoregressiveSettings`.
        common: see :class:`Common`; a conditional model is p(x | label), by a bias of each class.

    Raises:
        UserError: more than 500 million weights.
    """

    def __init__(
        self,
        spec: ImageSpec,
        *,
        distribution: DistributionFactory = partial(LogisticMixture, components=2),
        **common: Unpack[Common],
    ) -> None:
        super().__init__(spec, distribution=distribution, **common)
        self.net = FVBNNet(spec, self.distribution.parameters, classes=self.classes)


class FVBNNet(OrderedNet):
    """One strictly lower triangular linear layer.

    Args:
        spec: the images.
        parameters: of the distribution of one value.
        classes: number of classes, 0 for an unconditional model.
    """

    def __init__(self, spec: ImageSpec, parameters: int, *, classes: int) -> None:
        super().__init__(spec, parameters)
        reach = reach_of_values(spec.dimensions, parameters)
        weights = sum(stripe.weights for stripe in stripes_of(reach, spec.dimensions))
        check_size(spec, parameters, weights + classes * len(reach))
        self.regression = MaskedLinear(spec.dimensions, reach, classes=classes, gain=0.1)

    def forward(self, x: Normalized, labels: Labels | None = None) -> Tensor:
        """(n, channels, height, width) → (n, channels, height, width, parameters): the a of σ(a) in equation 1."""
        return self.as_image(self.regression(self.ordered(x), labels))

    def incremental(self, blank: Normalized, labels: Labels | None) -> "_Rows":
        """One row of W (one for each parameter) at a time."""
        return _Rows(self, len(blank), labels)


class _Rows(OrderedIncremental):
    def __init__(self, net: FVBNNet, n: int, labels: Labels | None) -> None:
        super().__init__(net, n)
        self.net = net
        self.regression = net.regression.some(labels)

    def predict(self, row: int, column: int, channel: int) -> Tensor:
        """Equation 1 for one value."""
        start, end = self.net.outputs(self.value(row, column, channel))
        return self.regression(self.values, start, end)


def reach_of_values(values: int, parameters: int) -> list[int]:
    """How many values each output sees: all before its own."""
    return [value for value in range(values) for _ in range(parameters)]
