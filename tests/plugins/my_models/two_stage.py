"""A codebook and a prior over its entries, one after the other (van den Oord et al. 2017, "Neural discrete
representation learning")."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from imago.images import Batch, Images, ImageSpec, normalize, quantize
from imago.models.autoregressive import Autoregressive
from imago.models.base import Common, GenerativeModel, Loss
from imago.rng import BatchGenerator, PerImageGenerator
from my_models.transformer import Transformer


class TwoStage(GenerativeModel):
    """A VQ-VAE, then p(codes)."""

    likelihood = "none"
    ema = ("autoencoder", "prior.net")
    stages: ClassVar = {"autoencoder": ("autoencoder",), "prior": ("prior",)}

    def __init__(
        self,
        spec: ImageSpec,
        *,
        codes: PositiveInt = 512,
        width: PositiveInt = 32,
        autoencoder_images: PositiveInt = 1_000_000,
        prior: Callable[..., Autoregressive] = Transformer,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(spec, **common)
        self.stage_images = (autoencoder_images,)
        self.autoencoder = VQVAE(spec, codes, width)
        height, width = -(-spec.height // 2), -(-spec.width // 2)
        of_codes = replace(spec, channels=1, height=height, width=width, levels=codes, tokens=True)
        self.prior = prior(of_codes, conditional=self.conditional)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """One for each stage."""
        return {"autoencoder": self.autoencoder, "prior": self.prior.net}

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        """Equation 3; then −log p(codes)."""
        x = normalize(batch.images, self.spec.levels)
        if self.stage == "autoencoder":
            loss = self.autoencoder(x)
            yield Loss("autoencoder", loss, {"loss": loss})
        else:
            with torch.no_grad():
                codes = self.autoencoder.encode(x)
            for loss in self.prior.batch_losses(Batch(codes, batch.condition), rng):
                yield loss._replace(network="prior")

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        """Codes from the prior, decoded."""
        return quantize(self.autoencoder.decode(self.prior.generate(n, labels, generator)), self.spec.levels)


class VQVAE(nn.Module):
    """An autoencoder whose code is one entry of a codebook for every 2x2 pixels."""

    def __init__(self, spec: ImageSpec, codes: int, width: int) -> None:
        super().__init__()
        self.size = spec.height, spec.width
        self.codebook = nn.Embedding(codes, width)
        self.encoder = nn.Sequential(
            nn.Conv2d(spec.channels, width, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(width, spec.channels, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Error of the reconstruction, of the codebook, and a quarter of the encoder's (equation 3)."""
        z = self.encoder(x)
        e = self.codebook(self.nearest(z)).permute(0, 3, 1, 2)
        passed_on = z + (e - z).detach()  # the decoder's gradient goes straight to the encoder
        return F.mse_loss(self.draw(passed_on), x) + F.mse_loss(e, z.detach()) + 0.25 * F.mse_loss(z, e.detach())

    def encode(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) → tokens int32 (n, 1, height / 2, width / 2)."""
        return self.nearest(self.encoder(x))[:, None].int()

    def decode(self, codes: Tensor) -> Tensor:
        """The images of tokens."""
        return self.draw(self.codebook(codes[:, 0].long()).permute(0, 3, 1, 2))

    def nearest(self, z: Tensor) -> Tensor:
        distance = torch.cdist(z.detach().movedim(1, -1).flatten(0, 2), self.codebook.weight)
        return distance.argmin(-1).view(len(z), *z.shape[2:])

    def draw(self, z: Tensor) -> Tensor:
        return self.decoder(z)[:, :, : self.size[0], : self.size[1]].tanh()
