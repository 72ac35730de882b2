"""Inception score: how certain a classifier is of each sample, and how varied its answers are.

Salimans et al. 2016, "Improved Techniques for Training GANs", section 4: exp E_x KL(p(y | x) ‖ p(y)), from 1 (all
answers alike) to the number of classes (each certain, all classes equally frequent). It never sees real images.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def inception_score(logits: Float[Tensor, "n classes"], splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation of the score over consecutive splits, in float64; higher is better.

    Raises:
        ValueError: a split would be empty.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits={splits}: must lie in 1..{len(logits)}, the number of samples")
    scores = []
    borders = [k * len(logits) // splits for k in range(1, splits)]  # as in the paper's code, which may split unevenly
    for part in logits.double().tensor_split(borders):
        log_p = part.log_softmax(1)
        marginal = log_p.logsumexp(0) - torch.tensor(len(part), dtype=torch.float64, device=part.device).log()
        scores.append((log_p.exp() * (log_p - marginal)).sum(1).mean().exp())
    values = torch.stack(scores)
    return float(values.mean()), float(values.std(correction=0))  # as in the paper's code
