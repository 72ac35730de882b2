"""Fully visible belief networks: the chain rule, said once for all models that use it.

Order the values x_1, …, x_D of an image: top to bottom, left to right, within a pixel R, G, B. Then without any
assumption (lecture, chapter "Fully visible belief network")

    p(x) = ∏_i p(x_i | x_1, …, x_{i-1}).                                                                      (1)

A network with masked connections gives the distribution of every x_i from the values before it, all at once: training
sees every pixel's true predecessors ("teacher forcing"), needs one forward pass, and maximises log p(x) itself. To
sample, the values must be drawn one after the other. The models differ only in the network: which of the earlier values
reach x_i, and by what computation.

Frey 1998, "Graphical models for machine learning and digital communication"; van den Oord et al. 2016, "Pixel recurrent
neural networks" (PMLR 48), equation 1.
"""

from abc import ABC
from collections.abc import Iterator
from typing import Unpack

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from imago.distributions import Categorical, DistributionFactory, Parameters, distribution_of, sampling_dtype
from imago.errors import UserError
from imago.images import Batch, Images, ImagesLike, ImageSpec, Labels, LabelsLike, bits_per_dim, normalize
from imago.models.base import Common, ExplicitModel, Loss
from imago.models.completing import Completing
from imago.nets.causal import AutoregressiveNet
from imago.nets.incremental import Incremental, Recomputed
from imago.rng import BatchGenerator, PerImageGenerator
from imago.threads import suitable_threads


class AutoregressiveSettings(Common, total=False):
    """Settings of autoregressive models.

    Attributes:
        distribution: of a value given those before it, for a number of levels; two levels are always Bernoulli.
    """

    distribution: DistributionFactory


class Autoregressive(Completing, ExplicitModel, ABC):
    """A model by equation 1; a subclass sets :attr:`net`.

    Args:
        spec: the images.
        distribution: see :class:`AutoregressiveSettings`.
        common: see :class:`Common`.

    Attributes:
        net: the network.
        incremental: draw with kept activations; ``False`` repeats the whole network for every value, as a reference.
    """

    likelihood = "exact"
    leaf = "chain_rule"
    ema = ("net",)
    any_order = False
    net: AutoregressiveNet

    def __init__(
        self, spec: ImageSpec, *, distribution: DistributionFactory = Categorical, **common: Unpack[Common]
    ) -> None:
        super().__init__(spec, **common)
        self.distribution = distribution_of(distribution, spec.levels)
        if not self.distribution.exact:
            raise UserError(
                f"distribution={type(self.distribution).__name__}: has a bound of the likelihood only, these models "
                "have an exact one; choose model/distribution=softmax or logistic_mixture"
            )
        self.incremental = True

    @property
    def networks(self) -> dict[str, nn.Module]:
        """One network."""
        return {"net": self.net}

    @property
    def nfe(self) -> int:
        """One for each value, one after the other."""
        return self.spec.dimensions

    # --- likelihood ---------------------------------------------------------------------------------------------------

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        """−log p(x), per dimension."""
        nats = -self.log_prob(batch.images, batch.labels).mean()
        yield Loss("net", nats / self.spec.dimensions, {"nats": nats, "bpd": bits_per_dim(nats, self.spec)})

    def log_prob(self, images: Images, labels: Labels | None) -> Float[Tensor, " n"]:
        """Equation 1: Σ_i log p(x_i | x_1, …, x_{i-1}), in nats."""
        parameters = self.net(normalize(images, self.spec.levels), labels)
        return self.distribution.log_prob(parameters, images).flatten(1).sum(1)

    @torch.no_grad()
    def logits(
        self, images: ImagesLike, labels: LabelsLike | None = None
    ) -> Float[Tensor, "n channels height width levels"]:
        """Log-probability of every level at every position given the values before it, up to a constant.

        In the mode that the model is in (training or evaluation).

        Args:
            images: uint8 (n, channels, height, width).
            labels: int64 (n,), conditional models only.

        Raises:
            UserError: images or labels that the model was not made for.
        """
        images, labels = self.checked(images, labels)
        return self.distribution.logits(self.net(normalize(images, self.spec.levels), labels))

    # --- sampling -----------------------------------------------------------------------------------------------------

    def draw_values(
        self,
        n: int,
        labels: Tensor | None,
        generator: PerImageGenerator,
        given: Images | None,
        known: Tensor | None,
    ) -> Images:
        """Value after value from its distribution given the ones before it, drawn or kept."""
        height, device, on_gpu = self.spec.height, self.device, next(self.net.parameters()).is_cuda
        with torch.inference_mode(), suitable_threads(device):
            uniform = generator.uniform(n, *self.spec.shape).to(device, sampling_dtype(device))
            images = torch.zeros(n, *self.spec.shape, dtype=torch.long, device=device)
            state = self.begin(n, labels)
            # One row of everything, on the same memory for every row.
            u, drawn = uniform[:, :, 0].clone(), images[:, :, 0].clone()
            kept = None if known is None or given is None else (known[:, :, 0].clone(), drawn.clone())

            def draw(row: int) -> None:
                for column, channel, parameters in self.visit(state, row, drawn):
                    value = self.distribution.sample(parameters, u[:, channel, column], self.temperature)
                    if kept is not None:
                        value = torch.where(kept[0][:, channel, column], kept[1][:, channel, column], value)
                    drawn[:, channel, column] = value

            graph: torch.cuda.CUDAGraph | None = None
            for row in range(height):
                u.copy_(uniform[:, :, row])
                if kept is not None and known is not None and given is not None:
                    kept[0].copy_(known[:, :, row])
                    kept[1].copy_(given[:, :, row])
                if on_gpu and state.same_rows and row > 0:
                    # Hundreds of small kernels a pixel: launched one by one, the launches would take the time.
                    if graph is None:  # after the first row, which has initialised the libraries
                        graph = torch.cuda.CUDAGraph()
                        with torch.cuda.graph(graph):
                            draw(row)
                    graph.replay()
                else:
                    draw(row)
                images[:, :, row] = drawn
                self.report((row + 1) * self.spec.dimensions // height, self.spec.dimensions)
        return images.to(self.spec.dtype)

    def begin(self, n: int, labels: Tensor | None) -> Incremental:
        """The state of visiting the values of ``n`` images, for :meth:`visit`."""
        blank = next(self.net.parameters()).new_zeros(n, *self.spec.shape)
        return self.net.incremental(blank, labels) if self.incremental else Recomputed(self.net, blank, labels)

    def visit(
        self, state: Incremental, row: int, values: Int64[Tensor, "n channels width"]
    ) -> Iterator[tuple[int, int, Parameters]]:
        """Column, channel and parameters of the distribution of each value of a row, given the values before it.

        Rows are visited from the first on. The parameters may be a view of memory that is written again.

        Args:
            state: of :meth:`begin`.
            row: its number.
            values: of the row; each is read when the next is asked for, and has to be there by then.
        """
        scale = 2 / (self.spec.levels - 1)
        state.begin_row(row)
        for column in range(self.spec.width):
            for channel in range(self.spec.channels):
                yield column, channel, state.predict(row, column, channel)
                state.set(row, column, channel, values[:, channel, column] * scale - 1)
