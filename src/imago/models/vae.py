"""The variational autoencoder (Kingma & Welling 2014; Rezende et al. 2014; lecture chapter 3).

    prior      p(z) = N(0, I)
    decoder    p(x|z): every value of the image has a distribution whose parameters a network computes from z
    posterior  q(z|x) = N(μ(x), diag σ²(x)), computed by the encoder

p(x) = ∫ p(z) p(x|z) dz cannot be computed; the bound of :class:`~imago.models.latent.Variational` (equation 1) can: its
regularisation term is known between Gaussians,

    KL(q(z|x) ‖ N(0, I)) = ½ Σ_j (σ_j² + μ_j² − 1 − log σ_j²)                                    (appendix B)

and its gradient with respect to q passes through z = μ + σ ε, ε ~ N(0, I), the reparameterisation (section 2.4).
To sample: z ~ N(0, I), then x ~ p(x|z).
"""

from collections.abc import Callable, Mapping

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from imago.capacity import Width
from imago.distributions import DistributionFactory, Parameters
from imago.images import Images, ImageSpec, Labels, Normalized, normalize
from imago.models.base import Normal, OptimizerFactory
from imago.models.latent import Latents, PosteriorSample, Variational, gaussian_kl
from imago.schedules import Schedule

LARGE = 3.0  # a log σ beyond anything that a posterior of use has


def not_huge(log_scale: Latents) -> Latents:
    """log σ itself up to LARGE, beyond that growing as a logarithm.

    The prior has σ = 1, so q never needs more than that. But a step too long may leave an encoder that asks for
    σ = e¹⁰⁰: then σ² is infinite, and the gradient not a number. A bend, unlike a limit, lets it find back.
    """
    return torch.where(log_scale > LARGE, LARGE + torch.log1p((log_scale - LARGE).clamp(min=0)), log_scale)


class VAE(Variational):
    """One layer of latent variables.

    Args:
        spec: the images; the only place where their shape comes from.
        latent: length of z.
        encoder: builds the encoder from ``spec``, ``outputs`` (2 ``latent``: μ and log σ) and ``classes``.
        decoder: builds the decoder from ``spec``, ``latent``, ``parameters`` (for each value) and ``classes``.
        distribution, optimizer, beta, kl_warmup, free_bits, observation_noise, conditional, schedule, gradient_clip:
            see :class:`Variational`.
    """

    averaged = ("net",)

    def __init__(
        self,
        spec: ImageSpec,
        *,
        latent: Width,
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        distribution: DistributionFactory,
        optimizer: Mapping[str, OptimizerFactory],
        beta: NonNegativeFloat = 1.0,
        kl_warmup: NonNegativeInt = 0,
        free_bits: NonNegativeFloat = 0.0,
        observation_noise: bool = True,
        conditional: bool = False,
        schedule: Schedule | None = None,
        gradient_clip: PositiveFloat | None = None,
    ) -> None:
        super().__init__(
            spec,
            distribution=distribution,
            optimizer=optimizer,
            beta=beta,
            kl_warmup=kl_warmup,
            free_bits=free_bits,
            observation_noise=observation_noise,
            conditional=conditional,
            schedule=schedule,
            gradient_clip=gradient_clip,
        )
        self.latent = latent
        self.net = nn.ModuleDict(
            {
                "encoder": encoder(spec=spec, outputs=2 * latent, classes=self.classes),
                "decoder": decoder(
                    spec=spec, latent=latent, parameters=self.distribution.parameters, classes=self.classes
                ),
            }
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Encoder and decoder, optimised together."""
        return {"net": self.net}

    def encoder_features(self, signal: Normalized, labels: Labels | None) -> list[Tensor]:
        """μ and log σ of q(z|x), (n, latent) each."""
        mean, log_scale = self.net["encoder"](signal, labels).float().chunk(2, 1)
        return [mean, not_huge(log_scale)]

    def rsample(self, observed: list[Tensor], labels: Labels | None, normal: Normal) -> PosteriorSample:
        """z = μ + σ ε (section 2.4), and the KL of appendix B."""
        mean, log_scale = observed
        epsilon = normal(len(mean), self.latent)
        z = mean + torch.exp(log_scale) * epsilon
        # log q − log p: the constants of the two normal densities cancel.
        log_ratio = (0.5 * (z.square() - epsilon.square()) - log_scale).sum(1)
        return PosteriorSample(self.parameters_at(z, labels), gaussian_kl(mean, log_scale), log_ratio)

    def parameters_at(self, z: Latents, labels: Labels | None) -> Parameters:
        """The decoder."""
        return self.net["decoder"](z, labels)

    def encode(self, images: Images, labels: Labels | None = None) -> Latents:
        """The mean of q(z|x), (n, latent)."""
        images, labels = self.checked(images, labels)
        return self.encoder_features(normalize(images, self.spec.levels), labels)[0]
