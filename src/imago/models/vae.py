"""The variational autoencoder (Kingma & Welling 2014; Rezende et al. 2014; lecture chapter 3).

    prior      p(z) = N(0, I)
    decoder    p(x|z): every value of the image has a distribution whose parameters a network computes from z
    posterior  q(z|x) = N(μ(x), diag σ²(x)), computed by the encoder

p(x) = ∫ p(z) p(x|z) dz cannot be computed; the bound of :class:`~imago.models.variational.Variational` (equation 1)
can: its regularisation term is known between Gaussians,

    KL(q(z|x) ‖ N(0, I)) = ½ Σ_j (σ_j² + μ_j² − 1 − log σ_j²)                                    (appendix B)

and its gradient with respect to q passes through z = μ + σ ε, ε ~ N(0, I), the reparameterisation (section 2.4).
To sample: z ~ N(0, I), then x ~ p(x|z).

Of points in R^d, p(x|z) is a normal density with learned mean and variance, and so the bound is of log p(x), a density.
"""

from collections.abc import Callable
from functools import partial
from typing import Unpack

import torch
from torch import Tensor, nn

from imago.capacity import Width
from imago.distributions import Parameters
from imago.images import ImagesLike, ImageSpec, Labels, LabelsLike, Normalized, normalize
from imago.models.base import Normal
from imago.models.latent import Latents
from imago.models.variational import Choose, PosteriorSample, Variational, VariationalSettings, gaussian_kl
from imago.nets.mlp import MLPDecoder, MLPEncoder

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
        settings: see :class:`VariationalSettings`.
    """

    kinds = ("pixels", "points")

    def __init__(
        self,
        spec: ImageSpec,
        *,
        latent: Width = 20,
        encoder: Callable[..., nn.Module] = partial(MLPEncoder, hidden=(400,)),
        decoder: Callable[..., nn.Module] = partial(MLPDecoder, hidden=(400,)),
        **settings: Unpack[VariationalSettings],
    ) -> None:
        super().__init__(spec, **settings)
        self.latent = latent
        self.net = nn.ModuleDict(
            {
                "encoder": encoder(spec=spec, outputs=2 * latent, classes=self.classes),
                "decoder": decoder(
                    spec=spec, latent=latent, parameters=self.distribution.parameters, classes=self.classes
                ),
            }
        )

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

    def infer(self, observed: list[Tensor], labels: Labels | None, choose: Choose) -> None:
        """All of z at once."""
        choose(*observed)

    def parameters_at(self, z: Latents, labels: Labels | None) -> Parameters:
        """The decoder."""
        return self.net["decoder"](z, labels)

    def encode(self, images: ImagesLike, labels: LabelsLike | None = None) -> Latents:
        """The mean of q(z|x), (n, latent)."""
        images, labels = self.checked(images, labels)
        return self.encoder_features(normalize(images, self.spec.levels), labels)[0]
