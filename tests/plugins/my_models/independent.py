"""Values that are independent of each other: given an embedding of the image, or of nothing at all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor, nn

from imago.data.base import ImageSet, Source, Splits
from imago.data.sources.digits import Digits
from imago.distributions import Categorical, distribution_of, sampling_dtype
from imago.images import Batch, Images, ImageSpec
from imago.models.base import Common, ExplicitModel, Loss
from imago.rng import BatchGenerator, PerImageGenerator


class Described(ExplicitModel):
    """log p(x | e) = Σ_i log p(x_i | e), with logits linear in e."""

    likelihood = "exact"
    ema = ("net",)
    kinds = ("pixels", "tokens")
    conditions = ("embedding",)

    def __init__(self, spec: ImageSpec, **common: Unpack[Common]) -> None:
        super().__init__(spec, **common)
        self.distribution = distribution_of(Categorical, spec.levels)
        inputs = spec.embedding if self.conditional else 1
        self.net = nn.Linear(inputs, spec.dimensions * self.distribution.parameters)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        nats = -self.log_prob(batch.images, batch.condition).mean()
        yield Loss("net", nats, {"nats": nats})

    def generate(self, n: int, condition: Tensor | None, generator: PerImageGenerator) -> Images:
        uniform = generator.uniform(n, *self.spec.shape).to(self.device, sampling_dtype(self.device))
        return self.distribution.sample(self.parameters_for(n, condition), uniform).to(self.spec.dtype)

    def log_prob(self, images: Images, condition: Tensor | None) -> Tensor:
        return self.distribution.log_prob(self.parameters_for(len(images), condition), images).flatten(1).sum(1)

    def parameters_for(self, n: int, condition: Tensor | None) -> Tensor:
        given = torch.ones(n, 1, device=self.device) if condition is None else condition
        return self.net(given).view(n, *self.spec.shape, -1)


class Independent(Described):
    """p(x) = Π_i p(x_i)."""

    conditions = ()


class DescribedDigits(Source):
    """Digits with three numbers that say of each image how dark it is: as a whole, above, at the left."""

    name = "described"

    def load(self, directory: Path) -> Splits:
        splits = Digits().load(directory)
        return Splits(described(splits.train.images), splits.val, described(splits.test.images), (), "of digits")


def described(images: Tensor) -> ImageSet:
    x = images.float().div(255)
    means = [x.mean((1, 2, 3)), x[:, :, :4].mean((1, 2, 3)), x[..., :4].mean((1, 2, 3))]
    return ImageSet(images, torch.stack(means, 1))
