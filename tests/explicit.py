"""The smallest model with a likelihood: a categorical distribution for each pixel, uniform before training."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from imago.images import Batch, Images, ImageSpec
from imago.models.base import ExplicitModel, Loss
from imago.rng import BatchGenerator, PerImageGenerator


class Pixels(ExplicitModel):
    """Independent pixels, with a table of logits for each class of a conditional model.

    Args:
        lr: of plain gradient descent on the mean negative log-likelihood.
    """

    likelihood = "exact"
    ema = ("table",)

    def __init__(self, spec: ImageSpec, conditional: bool = False, lr: float = 0.5) -> None:
        optimizer = {"table": lambda parameters: torch.optim.SGD(parameters, lr=lr)}
        super().__init__(spec, optimizer=optimizer, conditional=conditional)
        self.table = nn.Embedding(max(1, self.classes), spec.dimensions * spec.levels)
        nn.init.zeros_(self.table.weight)
        self.modes: list[bool] = []

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"table": self.table}

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        loss = -self.log_prob(batch.images, batch.labels).mean()
        yield Loss("table", loss, {"nats": loss})

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        logits = self._logits(n, labels)
        u = generator.uniform(n, self.spec.dimensions, 1).to(logits)
        values = (logits.softmax(-1).cumsum(-1) < u).sum(-1)
        return values.clamp(max=self.spec.levels - 1).byte().reshape(n, *self.spec.shape)

    def log_prob(self, images: Images, labels: Tensor | None) -> Tensor:
        self.modes.append(self.training)
        logs = self._logits(len(images), labels).log_softmax(-1)
        return logs.gather(-1, images.flatten(1).long()[..., None])[..., 0].sum(1)

    def _logits(self, n: int, labels: Tensor | None) -> Tensor:
        rows = torch.zeros(n, dtype=torch.int64) if labels is None else labels
        return self.table(rows).reshape(n, self.spec.dimensions, self.spec.levels)
