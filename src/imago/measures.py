"""What the numbers mean that models are measured by: which way is better, and which of them compare."""

import math
from collections.abc import Mapping
from typing import Any, Literal

Better = Literal["low", "high"] | None

# By the beginnings of the names, which an extractor's may follow. Of the last ones neither way is better: held-out
# images say what is right, and the protocol has theirs. Parts of a bound have no direction either.
BETTER: dict[str, Better] = {
    "nats": "low",
    "bpd": "low",
    "fid": "low",
    "fd_": "low",
    "kid": "low",
    "kd_": "low",
    "precision": "high",
    "recall": "high",
    "density": "high",
    "coverage": "high",
    "inception_score": "high",
    "authenticity": None,
    "copies": None,
}

# What makes two numbers of one name comparable: the protocol's entries about the comparison_key, not about the model.
COMPARISON_KEYS = (
    "data",
    "data_fingerprint",
    "images",
    "binarization",
    "conditional",
    "classes",
    "draws",
    "extractor",
    "extractor_fingerprint",
    "reference",
    "reference_fingerprint",
    "reference_images",
    "samples",
    "subsets",
    "subset_size",
    "neighbours",
    "splits",
    "repeats",
    "threads",
    "batch_size",
)


def better(name: str) -> Better:
    """Which numbers of a name are better, such as "val/fd_classifier" or "nats"; ``None`` where neither are."""
    bare = name.rsplit("/", 1)[-1]
    return next((way for beginning, way in BETTER.items() if bare.startswith(beginning)), None)


def is_better(name: str, value: float, best: float | None) -> bool:
    """Whether a number is better than the best so far, ``None`` where there is none yet; nan and inf never are."""
    way = better(name)
    if way is None or not math.isfinite(value):
        return False
    return best is None or (value < best if way == "low" else value > best)


def comparison_key(protocol: Mapping[str, Any]) -> str:
    """The part of a protocol that two numbers of one name must share to be compared."""
    return "; ".join(f"{key} {protocol[key]}" for key in COMPARISON_KEYS if key in protocol)
