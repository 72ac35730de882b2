"""Latent-variable models: an image is what a short vector z decodes to.

:class:`LatentModel` is all that the figures of latent spaces need: the GAN is one as much as the VAE. Models that also
find the z of a given image are :class:`EncodingModel`.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from imago.images import ImagesLike, Labels, LabelsLike, Normalized
from imago.models.base import GenerativeModel
from imago.rng import PerImageGenerator

Latents = Float[Tensor, "n latent"]


class LatentModel(GenerativeModel, ABC):
    """A model whose images are functions of a vector.

    Attributes:
        latent: length of z.
    """

    latent: int

    @abstractmethod
    def decode(self, z: Latents, labels: Labels | None = None) -> Normalized:
        """The images (n, channels, height, width) in [-1, 1] that latent vectors stand for, in the networks' mode.

        Where p(x|z) is a distribution, its mean.
        """

    def draw_latents(self, n: int, generator: PerImageGenerator, labels: Labels | None = None) -> Latents:
        """Vectors (n, latent) as they occur when the model samples: from N(0, I) unless it says otherwise."""
        return generator.normal(n, self.latent).to(self.device)

    def latent_marginals(self, label: int | None = None) -> tuple[Float[Tensor, " latent"], Float[Tensor, " latent"]]:
        """Mean and standard deviation of each dimension of :meth:`draw_latents`, for one class of a conditional model.

        Float32, on the CPU: 0 and 1 unless the model says otherwise. Each dimension alone is normally distributed.
        """
        return torch.zeros(self.latent), torch.ones(self.latent)


class EncodingModel(LatentModel, ABC):
    """A latent model that also knows the way back."""

    @abstractmethod
    def encode(self, images: ImagesLike, labels: LabelsLike | None = None) -> Latents:
        """The vectors (n, latent) of uint8 images; where q(z|x) is a distribution, its mean. In the networks' mode."""
