"""Latent-variable models with an approximate posterior q(z|x), and so with a bound of the likelihood.

For every x and every q (lecture, chapter "Variational autoencoder"; Kingma & Welling 2014, eq. 1-3)

    log p(x) = E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)) + KL(q(z|x) ‖ p(z|x)).                                     (1)

The first term is the *reconstruction*, the second the *regularisation*; the third is unknown and never negative, so the
first two are a lower bound of log p(x), the ELBO. With k draws from q a tighter one is

    log p(x) ≥ E[log 1/k Σ_i w_i],   w_i = p(x, z_i) / q(z_i|x)                                              (2)

(Burda et al. 2016, eq. 8; :mod:`imago.models.importance`), which grows to log p(x) with k: its distance to the ELBO
estimates the third term, from below. Where a lower bound b(x, z) stands for log p(x|z), as for the dequantised values
of a :class:`~imago.distributions.Gaussian`, both are bounds of log ∫ p(z) exp b(x, z) dz: that is where (2) grows to,
and it stays below log p(x) however many draws there are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Unpack

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn

from imago.distributions import DistributionFactory, LogisticMixture, Parameters, distribution_of, sampling_dtype
from imago.images import Batch, Images, ImageSpec, Labels, Normalized, bits_per_dim, normalize
from imago.models.base import Common, Loss, Normal, Terms, sum_of
from imago.models.importance import ImportanceWeighted, LogWeights
from imago.models.latent import EncodingModel, Latents
from imago.rng import BatchGenerator, PerImageGenerator

Choose = Callable[[Latents, Latents], Latents]


@dataclass(frozen=True)
class PosteriorSample:
    """One draw of z ~ q(z|x) for each image, and what it says.

    Attributes:
        parameters: of p(x|z), for each value of the image.
        kl: KL(q(z|x) ‖ p(z)) in nats for each dimension of z, in closed form (a conditional one where p(z) has parts).
        log_ratio: log q(z|x) − log p(z) at the z drawn.
    """

    parameters: Parameters
    kl: Float[Tensor, "n units"]
    log_ratio: Float[Tensor, " n"]


class VariationalSettings(Common, total=False):
    """Settings of models with a bound by an approximate posterior.

    Attributes:
        distribution: p(x|z) of a value, for a number of levels; two levels are always Bernoulli.
        beta: weight of the KL term in training (Higgins et al. 2017); what is reported is the ELBO, beta = 1.
        kl_warmup: training images over which that weight rises from 0 (Sønderby et al. 2016, section 2.3); 0 for none.
        free_bits: nats of every dimension of z, in the batch's mean, that are free (Kingma et al. 2016, eq. 15).
        observation_noise: :meth:`sample` draws x ~ p(x|z); without it, samples are means, as many papers print them.
    """

    distribution: DistributionFactory
    beta: NonNegativeFloat
    kl_warmup: NonNegativeInt
    free_bits: NonNegativeFloat
    observation_noise: bool


class Variational(ImportanceWeighted, EncodingModel, ABC):
    """A model with an approximate posterior: the ELBO, its importance-weighted refinement, the training objective.

    Its settings are those of :class:`VariationalSettings`.

    Args:
        spec: the images.
        common: see :class:`Common`.
    """

    net: nn.ModuleDict

    likelihood = "lower_bound"
    leaf = "variational"
    ema = ("net",)
    inference_settings = ("observation_noise",)

    def __init__(
        self,
        spec: ImageSpec,
        *,
        distribution: DistributionFactory = partial(LogisticMixture, components=1, largest_scale=0.5),
        beta: NonNegativeFloat = 1.0,
        kl_warmup: NonNegativeInt = 0,
        free_bits: NonNegativeFloat = 0.0,
        observation_noise: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(spec, **common)
        self.distribution = distribution_of(distribution, spec.levels)
        self.beta = beta
        self.kl_warmup = kl_warmup
        self.free_bits = free_bits
        self.observation_noise = observation_noise

    # --- what a model writes ------------------------------------------------------------------------------------------

    @abstractmethod
    def encoder_features(self, signal: Normalized, labels: Labels | None) -> list[Tensor]:
        """What q(z|x) needs to know of the images: tensors (n, ...), computed once however many z are drawn."""

    @abstractmethod
    def rsample(self, observed: list[Tensor], labels: Labels | None, normal: Normal) -> PosteriorSample:
        """Draw z ~ q(z|x) with noise from ``normal``."""

    @abstractmethod
    def infer(self, observed: list[Tensor], labels: Labels | None, choose: Choose) -> None:
        """Let somebody else than chance choose z, a part after the other where q(z|x) has parts.

        ``choose`` is called with mean and log-scale (n, part) of q(part | parts before it, x), in units in which
        the prior of every part is N(0, I) whatever the others are, and returns the part, (n, part). All parts one after
        the other are the z of :meth:`parameters_at`.
        """

    @abstractmethod
    def parameters_at(self, z: Latents, labels: Labels | None) -> Parameters:
        """The parameters of p(x|z), (n, channels, height, width, parameters)."""

    # --- likelihood ---------------------------------------------------------------------------------------------------

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All that is learned, optimised together."""
        return {"net": self.net}

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        """−ELBO, per dimension, with the KL term weighted as the settings say."""
        labels = batch.labels
        draw = self._posterior_sample(batch.images, labels, rng.normal)
        terms = self._elbo(draw, batch.images)
        nats = sum_of(terms).mean()
        kl = self._beyond_free_bits(draw.kl.mean(0), rng).sum() if self.free_bits else terms["elbo/kl"].mean()
        loss = terms["elbo/reconstruction"].mean() + self.kl_weight * kl
        logs = {name: values.mean() for name, values in terms.items()}
        logs |= {"nats": nats, "bpd": bits_per_dim(nats, self.spec)}
        yield Loss("net", loss / self.spec.dimensions, logs)

    def _posterior_sample(self, images: Images, labels: Labels | None, normal: Normal) -> PosteriorSample:
        return self.rsample(self.encoder_features(normalize(images, self.spec.levels), labels), labels, normal)

    def _beyond_free_bits(self, kl: Float[Tensor, " units"], rng: BatchGenerator) -> Float[Tensor, " units"]:
        """max(free_bits, kl), where the mean over the batch of all devices decides which of the two is larger.

        The gradient is that of this device's part where the dimension costs something, and 0 where it is free; the mean
        of the devices' gradients is then the gradient of the whole batch's maximum.
        """
        return torch.where(rng.mean(kl) < self.free_bits, self.free_bits, kl)  # what is not a number stays so

    @property
    def kl_weight(self) -> float:
        """beta, or the part of it that the warm-up has reached."""
        return self.beta * (min(1.0, self.state.images / self.kl_warmup) if self.kl_warmup else 1.0)

    def _elbo(self, draw: PosteriorSample, images: Images) -> Terms:
        log_prob = self.distribution.log_prob(draw.parameters, images).flatten(1).sum(1)
        return {"elbo/reconstruction": -log_prob, "elbo/kl": draw.kl.sum(1)}

    def nll_terms(self, images: Images, labels: Tensor | None, normal: Normal) -> Terms:
        """−ELBO in its two parts (equation 1), with one z for each image and the KL in closed form."""
        return self._elbo(self._posterior_sample(images, labels, normal), images)

    def log_weights(self, images: Images, labels: Tensor | None) -> LogWeights:
        """Weights of equation 2: log p(x|z) + log p(z) − log q(z|x)."""
        observed = self.encoder_features(normalize(images, self.spec.levels), labels)

        def draw(count: int, normal: Normal) -> Tensor:
            def repeated(tensor: Tensor) -> Tensor:
                return tensor.repeat_interleave(count, 0)

            sample = self.rsample([repeated(t) for t in observed], None if labels is None else repeated(labels), normal)
            log_prob = self.distribution.log_prob(sample.parameters, repeated(images)).flatten(1).sum(1)
            return log_prob - sample.log_ratio

        return draw

    # --- samples ------------------------------------------------------------------------------------------------------

    def decode(self, z: Latents, labels: Labels | None = None) -> Normalized:
        """The mean of p(x|z); see :meth:`LatentModel.decode`."""
        mean, levels = self.distribution.mean(self.parameters_at(z.to(self.device), labels)), self.spec.levels
        return mean * (2 / (levels - 1)) - 1 if levels else mean

    @contextmanager
    def without_observation_noise(self) -> Iterator[None]:
        """Inside, samples are the means of p(x|z)."""
        before, self.observation_noise = self.observation_noise, False
        try:
            yield
        finally:
            self.observation_noise = before

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        """z ~ p(z), then x ~ p(x|z), or its mean without observation noise."""
        parameters = self.parameters_at(self.draw_latents(n, generator, labels), labels)
        if not self.observation_noise:
            mean = self.distribution.mean(parameters)
            return mean.round().to(torch.uint8) if self.spec.levels else mean
        uniform = generator.uniform(n, *self.spec.shape).to(self.device, sampling_dtype(self.device))
        return self.distribution.sample(parameters, uniform).to(self.spec.dtype)


def gaussian_kl(mean: Tensor, log_scale: Tensor) -> Tensor:
    """KL(N(mean, scale²) ‖ N(0, 1)) in nats, element by element (appendix B of Kingma & Welling 2014)."""
    return 0.5 * (torch.exp(2 * log_scale) + mean.square() - 1) - log_scale
