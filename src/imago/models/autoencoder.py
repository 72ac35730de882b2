"""The autoencoder: the lecture's motivation for the VAE (chapter 3).

An encoder maps an image to a short code z, a decoder maps it back, and both learn to lose little on the way:

    min E_x ‖x − decoder(encoder(x))‖².

Nothing says where the codes lie, so the model is not generative: a z drawn from N(0, I) is in general no code of any
image, and decodes to none. Two ways to draw are offered, to measure how much that matters: from N(0, I), and from the
normal distribution with the mean and covariance of the codes that training has seen last.
"""

from collections.abc import Callable, Iterator
from typing import Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from imago.capacity import Width
from imago.distributions import sampling_dtype
from imago.images import Batch, Images, ImagesLike, ImageSpec, Labels, LabelsLike, Normalized, normalize, quantize
from imago.models.base import Common, Loss
from imago.models.latent import EncodingModel, Latents
from imago.nets.residual import ResidualDecoder, ResidualEncoder
from imago.rng import BatchGenerator, PerImageGenerator


class Autoencoder(EncodingModel):
    """An encoder and a decoder without a prior.

    Args:
        spec: the images; the only place where their shape comes from.
        latent: length of z.
        encoder: builds the encoder from ``spec``, ``outputs`` (``latent``) and ``classes``.
        decoder: builds the decoder from ``spec``, ``latent``, ``parameters`` (1) and ``classes``.
        fitted: :meth:`sample` draws codes from the normal distribution fitted to the codes; ``False``: from N(0, I).
        memory: half-life of the codes' running moments, in training images.
        common: see :class:`Common`; in a conditional model both networks are told the label, and the codes of each
            class have a mean of their own.
    """

    likelihood = "none"
    leaf = "none"
    ema = ("net",)
    inference_settings = ("fitted",)
    code_sums: Tensor
    code_square: Tensor

    def __init__(
        self,
        spec: ImageSpec,
        *,
        latent: Width = 32,
        encoder: Callable[..., nn.Module] = ResidualEncoder,
        decoder: Callable[..., nn.Module] = ResidualDecoder,
        fitted: bool = True,
        memory: PositiveInt = 5000,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(spec, **common)
        self.latent = latent
        self.fitted = fitted
        self.memory = memory
        self.net = nn.ModuleDict(
            {
                "encoder": encoder(spec=spec, outputs=latent, classes=self.classes),
                "decoder": decoder(spec=spec, latent=latent, parameters=1, classes=self.classes),
            }
        )
        self.register_buffer("code_sums", torch.zeros(max(1, self.classes), 1 + latent))
        self.register_buffer("code_square", torch.zeros(latent, latent))

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Encoder and decoder, optimised together."""
        return {"net": self.net}

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        """The squared error of the normalised image, per dimension."""
        labels = batch.labels
        x = normalize(batch.images, self.spec.levels)
        z = self.net["encoder"](x, labels)
        # Of the decoder as it is: clipped to the range of an image, outputs at its ends would no longer learn.
        error = (self.net["decoder"](z, labels).squeeze(-1) - x).square().mean()
        self._remember(z.detach(), labels, rng)
        yield Loss("net", error, {"reconstruction_error": error})

    def _remember(self, z: Latents, labels: Labels | None, rng: BatchGenerator) -> None:
        """Running sums of 1, z for each class, and of z zᵀ, over about the last ``memory`` images, of all devices."""
        z = z.to(sampling_dtype(z.device))
        member = z.new_ones(len(z), 1) if labels is None else F.one_hot(labels, self.classes).to(z)
        sums = torch.cat([(member.T @ torch.cat([member.new_ones(len(z), 1), z], 1)).flatten(), (z.T @ z).flatten()])
        sums = rng.mean(sums) * rng.world_size
        of_classes, square = sums.split([self.code_sums.numel(), self.code_square.numel()])
        kept = 0.5 ** (len(z) * rng.world_size / self.memory)
        self.code_sums.mul_(kept).add_(of_classes.view_as(self.code_sums))
        self.code_square.mul_(kept).add_(square.view_as(self.code_square))

    def code_moments(self) -> tuple[Float[Tensor, "classes latent"], Float[Tensor, "latent latent"]]:
        """Mean of the codes of each class (one row if unconditional) and their covariance around these.

        Float64, on the CPU. Those of N(0, I) before training; a class that has not been seen has the mean of all.
        """
        counts, sums = self.code_sums.cpu().double().split([1, self.latent], 1)
        n = counts.sum()
        if not n:
            return torch.zeros_like(sums), torch.eye(self.latent).to(sums)
        means = torch.where(counts > 0, sums / counts.clamp(min=1e-300), sums.sum(0) / n)
        return means, (self.code_square.cpu().double() - means.T @ (counts * means)) / n

    def decode(self, z: Latents, labels: Labels | None = None) -> Normalized:
        """The decoder's output, clipped to [-1, 1]; see :meth:`LatentModel.decode`."""
        return self.net["decoder"](z.to(self.device), labels).squeeze(-1).clamp(-1, 1)

    def encode(self, images: ImagesLike, labels: LabelsLike | None = None) -> Latents:
        """The code of each image, (n, latent)."""
        images, labels = self.checked(images, labels)
        return self.net["encoder"](normalize(images, self.spec.levels), labels)

    def draw_latents(self, n: int, generator: PerImageGenerator, labels: Labels | None = None) -> Latents:
        """From the normal distribution fitted to the codes, or from N(0, I)."""
        z = super().draw_latents(n, generator)
        if not self.fitted:
            return z
        means, covariance = self.code_moments()
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        of_images = means[torch.zeros(n, dtype=torch.long) if labels is None else labels.cpu()]
        return (of_images + z.cpu().double() @ root).float().to(self.device)

    def latent_marginals(self, label: int | None = None) -> tuple[Float[Tensor, " latent"], Float[Tensor, " latent"]]:
        """Those of the fit, or of N(0, I)."""
        if not self.fitted:
            return super().latent_marginals(label)
        means, covariance = self.code_moments()
        return means[label or 0].float(), covariance.diagonal().clamp(min=0).sqrt().float()

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        """Decoded draws of z."""
        return quantize(self.decode(self.draw_latents(n, generator, labels), labels), self.spec.levels)
