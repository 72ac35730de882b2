"""Bounds of log p(x) by importance sampling: several draws of what the image does not show, weighted.

Where p(x) = E_q[w] for weights w = p(x, h) / q(h|x) of a hidden h ~ q(h|x), for every number k of draws

    log p(x) ≥ E[log 1/k Σ_i w_i],                                                                            (1)

which grows to log p(x) with k (Burda et al. 2016, "Importance weighted autoencoders", eq. 8 and theorem 1). Of a VAE h
is the latent vector, of a flow the part of a value that makes a real number of an integer.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from imago.images import Images, ImagesLike, LabelsLike
from imago.models.base import ExplicitModel, Normal, evaluating
from imago.rng import PerImageGenerator

LogWeights = Callable[[int, Normal], Float[Tensor, " rows"]]


class ImportanceWeighted(ExplicitModel, ABC):
    """A model whose likelihood is the mean of weights that it can draw."""

    @abstractmethod
    def log_weights(self, images: Images, labels: Tensor | None) -> LogWeights:
        """A function that draws log w, in nats, ``count`` for each image: (count, normal) → (n * count,).

        Those of an image lie beside each other. What depends on the images alone is computed once, here.

        Raises:
            UserError: the likelihood is known, and there is nothing to draw.
        """

    @torch.no_grad()
    def importance_weighted(
        self,
        images: ImagesLike,
        labels: LabelsLike | None = None,
        *,
        k: int,
        generator: PerImageGenerator,
        rows: int = 512,
        progress: Callable[[int, int], None] | None = None,
    ) -> Float[Tensor, " n"]:
        """Equation 1: log 1/k Σ_i w_i, a bound of log p(x) in nats, in evaluation mode.

        Args:
            images: uint8 (n, channels, height, width).
            labels: int64 (n,), for conditional models.
            k: draws for each image.
            generator: their noise.
            rows: how many draws are decoded at a time; the memory needed does not depend on k.
            progress: called with (draws so far, draws in all).

        Raises:
            UserError: images or labels that the model was not made for.
        """
        images, labels = self.checked(images, labels)
        n = len(images)
        total = torch.full((n,), -math.inf, dtype=torch.float64)  # on the CPU: not every device has float64
        with evaluating(self):
            draw = self.log_weights(images, labels)
            at_once = max(1, rows // max(1, n))
            for first in range(0, k, at_once):
                count = min(at_once, k - first)

                def normal(m: int, *shape: int, count: int = count) -> Tensor:
                    return generator.normal(m // count, count, *shape).flatten(0, 1).to(self.device)

                weights = draw(count, normal).cpu().double().view(n, count)
                total = torch.logaddexp(total, weights.logsumexp(1))
                if progress is not None:
                    progress(first + count, k)
        return (total - math.log(k)).float().to(self.device)
