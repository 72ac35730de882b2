"""Names of earlier versions and what they are called today, so that old checkpoints and runs stay readable."""

import re
from collections.abc import Mapping
from typing import Any

# Settings, entries of protocols and summaries, and parts of checkpoints.
KEYS = {
    "network_calls": "nfe",
    "drop_labels": "p_uncond",
    "thorough": "full",
    "ruler": "comparison_key",
    "WeightAveraging": "EMA",
}

# Beginnings of the names of classes, the most special first.
TARGETS = {
    "imago.callbacks.averaging.WeightAveraging": "imago.training.callbacks.ema.EMA",
    "imago.callbacks.": "imago.training.callbacks.",
    "imago.metrics.": "imago.evaluation.",
    "imago.likelihoods.": "imago.distributions.",
    "imago.dashboards.": "imago.loggers.",
    "imago.diffusion.losses.FullBound": "imago.diffusion.losses.VLB",
    "imago.diffusion.predictions.Noise": "imago.diffusion.predictions.Epsilon",
    "imago.diffusion.predictions.CleanImage": "imago.diffusion.predictions.X0",
    "imago.diffusion.predictions.Velocity": "imago.diffusion.predictions.V",
    "imago.diffusion.variances.Small": "imago.diffusion.variances.FixedSmall",
    "imago.diffusion.variances.Large": "imago.diffusion.variances.FixedLarge",
}
_OLD = re.compile("|".join(f"{re.escape(old)}{'' if old.endswith('.') else '$'}" for old in TARGETS))

# Arguments of a class, by its name of today, and what they are called now; ``None``: there is none any more.
ARGUMENTS: dict[str, dict[str, str | None]] = {
    "imago.models.diffusion.Diffusion": {"noise": "noise_schedule", "compile": None}
}


def today(content: Any) -> Any:
    """Plain content of a file of any version, with today's names; what is not a mapping, a list or a text stays.

    Args:
        content: nested dictionaries and lists of a sane size, as they come from a checkpoint, JSON or YAML.
    """
    if isinstance(content, str) and content.startswith("imago."):
        return _OLD.sub(lambda found: TARGETS[found[0]], content, count=1)
    if isinstance(content, list):
        return [today(value) for value in content]
    if not isinstance(content, Mapping):
        return content
    renamed = {KEYS.get(name, name) if isinstance(name, str) else name: today(item) for name, item in content.items()}
    kind = renamed.get("_target_")
    for old, new in ARGUMENTS.get(kind, {}).items() if isinstance(kind, str) else ():
        if old in renamed:
            value = renamed.pop(old)
            renamed |= {} if new is None else {new: value}
    return renamed
