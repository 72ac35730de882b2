"""Inception score: how certain a classifier is of each image, and how varied its answers are."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_cat

from imago.evaluation.extractors import FeatureExtractor
from imago.evaluation.feature_metric import FeatureMetric


class InceptionScore(FeatureMetric):
    """exp E_x KL(p(y | x) ‖ p(y)), from 1 (all answers alike) to the number of classes; higher is better.

    Salimans et al. 2016, "Improved Techniques for Training GANs", section 4: the largest value means that each answer
    is certain and all classes are equally frequent. Real images play no part.

    Args:
        network: see :class:`FeatureMetric`.
        head: features to class logits; by default those of a :class:`FeatureExtractor`, or the features themselves.
        splits: number of consecutive parts whose scores are averaged.
        options: see :class:`FeatureMetric`.
    """

    higher_is_better = True
    plot_lower_bound = 1.0

    fake_logits: list[Tensor]

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        head: Callable[[Tensor], Tensor | None] | None = None,
        splits: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        self.splits = splits
        self.head = network.logits if head is None and isinstance(network, FeatureExtractor) else head
        self.add_state("fake_logits", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool = False) -> None:
        """See :meth:`FeatureMetric.update`; real images are ignored.

        Raises:
            ValueError: the extractor knows no classes.
        """
        if real:
            return
        logits = self.features(images) if self.head is None else self.head(self.features(images))
        if logits is None:
            raise ValueError("an extractor that knows no classes gives no Inception score")
        self.fake_logits.append(logits)

    def compute(self) -> dict[str, Float64[Tensor, ""]]:
        """Return mean and standard deviation over the splits, ``inception_score`` and ``inception_score_std``.

        Raises:
            ValueError: a split would be empty.
        """
        logits = dim_zero_cat(self.fake_logits)
        if not 1 <= self.splits <= len(logits):
            raise ValueError(f"splits={self.splits}: must lie in 1..{len(logits)}, the number of samples")
        scores = []
        # as in the paper's code, which may split unevenly
        borders = [k * len(logits) // self.splits for k in range(1, self.splits)]
        for part in logits.double().tensor_split(borders):
            log_p = part.log_softmax(1)
            marginal = log_p.logsumexp(0) - torch.tensor(len(part), dtype=torch.float64, device=part.device).log()
            scores.append((log_p.exp() * (log_p - marginal)).sum(1).mean().exp())
        values = torch.stack(scores)
        # the paper's code divides the variance by the number of splits
        return {"inception_score": values.mean(), "inception_score_std": values.std(correction=0)}
