"""Normalizing flows: a density by a change of variables.

Let f be a bijection of R^D and z = f(x) standard normal. Probability is neither lost nor made where x becomes z, so

    log p(x) = log N(f(x); 0, I) + log|det ∂f(x)/∂x|,                                                         (1)

exactly, for any f whose determinant can be computed (Rippel & Adams 2013; Dinh et al. 2015, "NICE", eq. 1). Training
maximises (1) itself, as the autoregressive models do, and sampling is x = f⁻¹(z) with z ~ N(0, I): tractable density by
a change of variables. f is a chain f_K ∘ … ∘ f_1 of simple layers, whose log-determinants add up
(:mod:`imago.nets.invertible`); what it is made of tells the models apart (:mod:`imago.models.realnvp`,
:mod:`imago.models.glow`, :mod:`imago.models.maf`). Its price: f keeps the dimension, z is as large as x, and every
layer has to be invertible.

Points in R^d are what (1) is about. Pixels are integers, and a density has no probability of an integer: noise u fills
the unit cube at every integer image (:mod:`imago.nets.dequantization`), and (1) bounds the image's probability,

    log P(x) ≥ E_q[log p(x + u) − log q(u|x)],                                                                (2)

or better, with several draws of u (:mod:`imago.models.importance`). Where p is a density of y = (x + u) / levels − ½,
log p(x + u) = log p(y) − D log levels. Samples are rounded down.
"""

import math
from abc import ABC
from collections.abc import Callable, Iterator
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imago.errors import UserError
from imago.images import Batch, Images, ImageSpec, Normalized, bits_per_dim
from imago.measures import Likelihood
from imago.models.base import Common, Loss, Normal, Terms, sum_of
from imago.models.importance import ImportanceWeighted, LogWeights
from imago.nets.dequantization import Dequantization, Uniform
from imago.nets.invertible import Invertible, initialising, log_normal
from imago.rng import BatchGenerator, PerImageGenerator

DequantizationFactory = Callable[[ImageSpec], Dequantization]


class FlowSettings(Common, total=False):
    """Settings of flows.

    Attributes:
        dequantization: of the spec, the noise q(u|x) of equation 2; points have none.
    """

    dequantization: DequantizationFactory


class NormalizingFlow(ImportanceWeighted, ABC):
    """A model by equation 1.

    Args:
        spec: pixels or points.
        dequantization: see :class:`FlowSettings`.
        common: see :class:`Common`; a conditional model is p(x | label).

    Attributes:
        net: ``flow``, the map from y (n, channels, height, width) to z (n, values), and ``dequantization`` for pixels.
    """

    likelihood: Likelihood = "lower_bound"  # of pixels; of points exact
    leaf = "change_of_variables"
    ema = ("net",)
    kinds = ("pixels", "points")

    def __init__(
        self, spec: ImageSpec, *, dequantization: DequantizationFactory = Uniform, **common: Unpack[Common]
    ) -> None:
        common.setdefault("gradient_clip", 1.0)
        super().__init__(spec, **common)
        self.net = nn.ModuleDict({})
        if spec.kind == "points":
            self.likelihood = "exact"
        else:
            self.net["dequantization"] = dequantization(spec)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All that is learned, optimised together."""
        return {"net": self.net}

    @property
    def flow(self) -> Invertible:
        """The map from y to z; subclasses put it into :attr:`net`."""
        flow = self.net["flow"]
        assert isinstance(flow, Invertible)
        return flow

    @property
    def dequantization_name(self) -> str | None:
        """For the protocol of what is measured; ``None`` for points."""
        return None if self.spec.kind == "points" else str(self.net["dequantization"].name)

    # --- likelihood ---------------------------------------------------------------------------------------------------

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        """−log p(x) or its bound, per dimension. The first batch of a training also sets the scales of ActNorm."""
        if not self.state.batches:
            with initialising(self.net, rng.mean), torch.no_grad():
                self.nll_terms(batch.images, batch.labels, rng.normal)
        terms = self.nll_terms(batch.images, batch.labels, rng.normal)
        nats = sum_of(terms).mean()
        parts = {name: values.mean() for name, values in terms.items()} if len(terms) > 1 else {}
        logs = parts | {"nats": nats, "bpd": bits_per_dim(nats, self.spec)}
        yield Loss("net", nats / self.spec.dimensions, logs)

    def log_density(self, y: Normalized, labels: Tensor | None) -> Float[Tensor, " n"]:
        """Equation 1: log p of real-valued y, in nats."""
        z, log_det = self.flow(y, labels)
        return log_normal(z) + log_det

    def nll_terms(self, images: Images, labels: Tensor | None, normal: Normal) -> Terms:
        """Of points −log p(x); of pixels the bound (2) with one draw of u, in two parts if q is learned."""
        if self.spec.kind == "points":
            return {"nats": -self.log_density(images, labels)}
        noise, log_q = self.net["dequantization"](images, normal)
        density = -self._log_density_of(images, noise, labels)
        return (
            {"nats": density}
            if self.dequantization_name == "uniform"
            else {"elbo/density": density, "elbo/dequantization": log_q}
        )

    def _log_density_of(self, images: Images, noise: Normalized, labels: Tensor | None) -> Float[Tensor, " n"]:
        """log p(x + u), of x in 0..levels-1."""
        levels = self.spec.levels
        return self.log_density((images + noise) / levels - 0.5, labels) - self.spec.dimensions * math.log(levels)

    def log_weights(self, images: Images, labels: Tensor | None) -> LogWeights:
        """log p(x + u) − log q(u|x)."""
        if self.spec.kind == "points":
            raise UserError(
                f"importance: the likelihood of points under a {type(self).__name__} is exact; leave importance=null"
            )

        def draw(count: int, normal: Normal) -> Tensor:
            repeated = images.repeat_interleave(count, 0)
            given = None if labels is None else labels.repeat_interleave(count, 0)
            return -sum_of(self.nll_terms(repeated, given, normal))

        return draw

    # --- samples ------------------------------------------------------------------------------------------------------

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        """z ~ N(0, I), then x = f⁻¹(z), for pixels rounded down."""
        y = self.flow.inverse(generator.normal(n, self.spec.dimensions).to(self.device), labels)
        if self.spec.kind == "points":
            return y
        levels = self.spec.levels
        return ((y + 0.5) * levels).floor().clamp(0, levels - 1).to(torch.uint8)
