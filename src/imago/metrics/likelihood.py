"""The likelihood of a split of the data under a model that knows it, exactly or by a bound."""

import math
from collections.abc import Callable
from typing import Literal

import torch

from imago.data import ImageDataModule
from imago.images import bits_per_dim
from imago.metrics.network import Progress
from imago.metrics.quality import Measurement, Protocol
from imago.models.base import ExplicitModel


@torch.no_grad()
def measure_likelihood(
    model: ExplicitModel,
    data: ImageDataModule,
    split: Literal["train", "val", "test"],
    *,
    averaged: bool,
    batch_size: int = 128,
    images: int | None = None,
    progress: Progress | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> list[Measurement]:
    """The mean negative log-likelihood of images that are what training saw: the same levels, the same binarisation.

    The global random generators are left as they were; a bound that is estimated with noise gets the same noise
    every time.

    Args:
        model: with the weights to be judged. A conditional one is given the labels: log p(x | label).
        data: prepared.
        split: its images in their fixed order, a dynamically binarised split in its one fixed draw.
        averaged: whether the model has averaged weights; for the protocol.
        batch_size: images at a time; changes no number beyond rounding.
        images: take the first ones only; ``None`` takes all. (Splits are cut from a permutation: the first are random.)
        progress: called with (images so far, images in all).
        before_batch: called before each batch; may raise to abandon the measurement.

    Returns:
        ``bpd``, bits per dimension, nats / (dimensions ln 2), and ``nats`` per image; lower is better. Their protocols
        have the standard error of the mean over the images.

    Raises:
        UserError: images or labels that the model was not made for.
    """
    available = len({"train": data.train, "val": data.val, "test": data.test}[split])
    count = available if images is None else min(images, available)
    parts: list[torch.Tensor] = []
    done = 0
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(0)
        for batch in data.batches(split, batch_size):
            before_batch()
            shown = batch.images[: count - done]
            labels = batch.labels[: count - done] if model.conditional and batch.labels is not None else None
            parts.append(-model.log_likelihood(shown, labels).double().cpu())
            done += len(shown)
            if progress is not None:
                progress(done, count)
            if done == count:
                break
    nats = torch.cat(parts)
    protocol: Protocol = {
        "data": f"{data.name} {split}",
        "data_fingerprint": data.fingerprint,
        "images": count,
        "likelihood": model.likelihood,
        "binarization": _BINARIZATION[data.binarize],
        "conditional": model.conditional,
        "weights": "averaged" if averaged else "last",
        "caveat": _caveat(model, data, count, available),
    }
    return [_mean(name, x, protocol) for name, x in (("bpd", bits_per_dim(nats, model.spec)), ("nats", nats))]


_BINARIZATION = {
    None: "none",
    "threshold": "white above 127",
    "dynamic": "white with probability intensity / 255, one fixed draw",
}


def _mean(name: str, values: torch.Tensor, protocol: Protocol) -> Measurement:
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Measurement(name, float(values.mean()), protocol | {"standard_error": error})


def _caveat(model: ExplicitModel, data: ImageDataModule, count: int, available: int) -> str:
    said = []
    if model.likelihood == "lower_bound":
        said.append("from a lower bound of the likelihood: the true value is smaller or equal")
    if count < available:
        said.append(f"of the first {count} of {available} images")
    if data.binarize:
        said.append("compares with the same binarisation only")
    return "; ".join(said) or "none"
