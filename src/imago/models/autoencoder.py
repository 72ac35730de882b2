"""The autoencoder: the lecture's motivation for the VAE (chapter 3).

An encoder maps an image to a short code z, a decoder maps it back, and both learn to lose little on the way:

    min E_x ‖x − decoder(encoder(x))‖².

Nothing says where the codes lie, so the model is not generative: a z drawn from N(0, I) is in general no code of any
image, and decodes to none. Two ways to draw are offered, to measure how much that matters: from N(0, I), and from the
normal distribution with the mean and covariance of the codes that training has seen, which are kept as running means.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from imago.images import Batch, Images, ImageSpec, Labels, Signal, to_images, to_signal
from imago.models.base import OptimizerFactory
from imago.models.latent import EncodingModel, Latents
from imago.noise import PerImageGenerator
from imago.schedules import Schedule


class Autoencoder(EncodingModel):
    """An encoder and a decoder without a prior.

    Args:
        spec: the images; the only place where their shape comes from.
        latent: length of z.
        encoder: builds the encoder from ``spec``, ``outputs`` (``latent``) and ``classes``.
        decoder: builds the decoder from ``spec``, ``latent``, ``parameters`` (1) and ``classes``.
        optimizer: of the player ``net``.
        fitted: :meth:`sample` draws codes from the normal distribution fitted to the codes; ``False``: from N(0, I).
        memory: half-life of the codes' running moments, in training images.
        conditional: both networks are told the label; the codes' moments are over all classes.
        schedule: see :class:`GenerativeModel`.
        gradient_clip: see :class:`GenerativeModel`.
    """

    likelihood: ClassVar[Literal["exact", "lower_bound", "none"]] = "none"
    averaged: ClassVar[tuple[str, ...]] = ("net",)
    code_mean: Tensor
    code_square: Tensor
    code_weight: Tensor

    def __init__(
        self,
        spec: ImageSpec,
        *,
        latent: PositiveInt,
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        optimizer: Mapping[str, OptimizerFactory],
        fitted: bool = True,
        memory: PositiveInt = 5000,
        conditional: bool = False,
        schedule: Schedule | None = None,
        gradient_clip: PositiveFloat | None = None,
    ) -> None:
        super().__init__(
            spec, optimizer=optimizer, conditional=conditional, schedule=schedule, gradient_clip=gradient_clip
        )
        self.latent = latent
        self.fitted = fitted
        self.memory = memory
        self.net = nn.ModuleDict(
            {
                "encoder": encoder(spec=spec, outputs=latent, classes=self.classes),
                "decoder": decoder(spec=spec, latent=latent, parameters=1, classes=self.classes),
            }
        )
        self.register_buffer("code_mean", torch.zeros(latent, dtype=torch.float64))
        self.register_buffer("code_square", torch.zeros(latent, latent, dtype=torch.float64))
        self.register_buffer("code_weight", torch.zeros((), dtype=torch.float64))

    @property
    def players(self) -> dict[str, nn.Module]:
        """Encoder and decoder, optimised together."""
        return {"net": self.net}

    def learn(self, batch: Batch) -> None:
        """Minimise the squared error of the signal, per dimension."""
        labels = batch.labels if self.conditional else None
        signal = to_signal(batch.images, self.spec.levels)
        z = self.net["encoder"](signal, labels)
        error = (self.decode(z, labels) - signal).square().mean()
        self.record("reconstruction_error", error)
        self._remember(z.detach())
        self.descend("net", error)
        self.updates += 1

    def _remember(self, z: Latents) -> None:
        """Running means of z and z zᵀ over about the last ``memory`` images, of all devices."""
        z = z.double()
        moments = torch.cat([z.mean(0)[None], z.T @ z / len(z)])
        if self.trainer.world_size > 1:
            moments = self.trainer.strategy.reduce(moments, reduce_op="mean")
        kept = 0.5 ** (len(z) * self.trainer.world_size / self.memory)
        for running, new in (
            (self.code_mean, moments[0]),
            (self.code_square, moments[1:]),
            (self.code_weight, torch.ones_like(self.code_weight)),
        ):
            running.lerp_(new, 1 - kept)

    def code_moments(self) -> tuple[Float[Tensor, " latent"], Float[Tensor, "latent latent"]]:
        """Mean and covariance of the codes, float64; those of N(0, I) before training."""
        if not self.code_weight:
            return torch.zeros_like(self.code_mean), torch.eye(self.latent).to(self.code_square)
        mean = self.code_mean / self.code_weight
        return mean, self.code_square / self.code_weight - torch.outer(mean, mean)

    def decode(self, z: Latents, labels: Labels | None = None) -> Signal:
        """The decoder's output in [-1, 1]; see :meth:`LatentModel.decode`."""
        return torch.tanh(self.net["decoder"](z.to(self.device), labels).squeeze(-1))

    def encode(self, images: Images, labels: Labels | None = None) -> Latents:
        """The code of each image, (n, latent)."""
        images, labels = self.checked(images, labels)
        return self.net["encoder"](to_signal(images, self.spec.levels), labels)

    def draw_latents(self, n: int, generator: PerImageGenerator) -> Latents:
        """From the normal distribution fitted to the codes, or from N(0, I)."""
        z = super().draw_latents(n, generator)
        if not self.fitted:
            return z
        mean, covariance = self.code_moments()
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        return (mean + z.double() @ root).float()

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        """Decoded draws of z."""
        return to_images(self.decode(self.draw_latents(n, generator), labels), self.spec.levels)
