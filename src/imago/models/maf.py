"""Masked autoregressive flow: a chain of autoregressive maps, each by MADE's masks.

Take a value's distribution given those before it to be normal, x_i = μ_i + exp(α_i) z_i with μ_i and α_i functions of
x_1, …, x_{i−1}. Read from x to z, this is a map with a triangular Jacobian (Papamakarios et al. 2017, eq. 3-5)

    z_i = (x_i − μ_i) exp(−α_i),    log|det| = −Σ α_i,                                                         (1)

and one pass through :class:`~imago.models.made.MADENet` gives all μ_i and α_i: an autoregressive model is a flow. Its z
need not look normal, so z is modelled by another one in the reverse order, and so on; between them stands ActNorm
instead of the paper's batch normalisation (:class:`~imago.nets.invertible.ActNorm` says why).

A density costs one pass through each layer. Sampling has to invert (1) value by value, x_1 first, layer after layer: as
many steps as there are values, times layers. A hidden unit of MADE is computed once, when the last value that it may
know is known. Couplings (:mod:`imago.models.realnvp`) are the special case of which the inverse takes one step.

Papamakarios, Pavlakou & Murray 2017, "Masked autoregressive flow for density estimation" (NIPS 30).
"""

from collections.abc import Sequence
from typing import Annotated, Unpack

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor

from imago.capacity import Width
from imago.images import Images, ImageSpec, Normalized
from imago.models.flow import FlowSettings, NormalizingFlow
from imago.models.made import MADENet
from imago.nets.invertible import ActNorm, Chain, Given, Invertible, LogDet, Permute, bounded
from imago.rng import PerImageGenerator
from imago.threads import suitable_threads

Values = Float[Tensor, "n values"]


class MAF(NormalizingFlow):
    """A masked autoregressive flow.

    Args:
        spec: the images; their values are in raster order.
        layers: autoregressive maps, each in the reverse order of the one before.
        hidden: width of each hidden layer of each map's network.
        settings: see :class:`FlowSettings`; a conditional model has a bias of each class in every layer.

    Raises:
        UserError: a map of more than 500 million weights.
    """

    def __init__(
        self,
        spec: ImageSpec,
        *,
        layers: PositiveInt = 3,
        hidden: Annotated[Sequence[Width], Field(min_length=1)] = (256,),
        **settings: Unpack[FlowSettings],
    ) -> None:
        super().__init__(spec, **settings)
        parts: list[Invertible] = [Raster(spec)]
        # A channel of ActNorm is one value here, of which a batch shows few: pixels at the border are seldom lit.
        narrowest = 0.1 if spec.kind == "points" else 1.0
        for k in range(layers):
            if k:
                parts.append(Permute(range(spec.dimensions - 1, -1, -1)))
            parts += [ActNorm(spec.dimensions, narrowest), MaskedAffine(spec, list(hidden), self.classes)]
        self.layers = layers
        self.net["flow"] = Chain(parts)

    @property
    def nfe(self) -> int:
        """One for each value in each layer, one after the other."""
        return self.layers * self.spec.dimensions

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        """z ~ N(0, I), then the inverse of every layer, value by value."""
        with suitable_threads(self.device):
            return super().generate(n, labels, generator)


class Raster(Invertible):
    """Images as values in raster order, with the channels inside a pixel.

    Args:
        spec: the images.
    """

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Normalized, given: Given = None) -> tuple[Values, LogDet]:
        """(n, channels, height, width) → (n, values)."""
        return x.permute(0, 2, 3, 1).flatten(1), x.new_zeros(())

    def inverse(self, y: Values, given: Given = None) -> Normalized:
        """Back."""
        channels, height, width = self.spec.shape
        return y.reshape(len(y), height, width, channels).permute(0, 3, 1, 2)


class MaskedAffine(Invertible):
    """Equation 1.

    Args:
        spec: the images.
        hidden: width of each hidden layer.
        classes: number of classes, 0 for an unconditional model.
    """

    def __init__(self, spec: ImageSpec, hidden: list[int], classes: int) -> None:
        super().__init__()
        self.made = MADENet(spec, 2, hidden=hidden, direct=True, classes=classes)

    def forward(self, x: Values, given: Given = None) -> tuple[Values, LogDet]:
        """All values at once."""
        mean, raw = self.made.of_values(x, given).to(x.dtype).unflatten(1, (-1, 2)).unbind(2)
        log_scale = bounded(raw)
        return (x - mean) * (-log_scale).exp(), -log_scale.sum(1)

    @torch.no_grad()
    def inverse(self, y: Values, given: Given = None) -> Values:
        """One value after the other, without a gradient."""
        units = self.made.incremental(y, given)
        for i in range(y.shape[1]):
            mean, raw = units.after(i).unbind(1)
            units.values[:, i] = mean + y[:, i] * bounded(raw).exp()
        return units.values
