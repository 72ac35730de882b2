"""Imago: every classic image generator side by side, under one contract and on one board."""

import importlib

__version__ = "0.2.0"

# What `imago` offers, by the module that defines it: loaded when it is asked for, because most of it needs torch.
EXPORTS = {
    "compose": "imago.training.compose",
    "estimate": "imago.training.estimate",
    "load": "imago.checkpoints",
    "Batch": "imago.images",
    "ImageSpec": "imago.images",
    "BatchGenerator": "imago.rng",
    "PerImageGenerator": "imago.rng",
    "ExplicitModel": "imago.models.base",
    "GenerativeModel": "imago.models.base",
    "Loss": "imago.models.base",
    "ImageDataModule": "imago.data",
    "Measurement": "imago.measures",
    "Protocol": "imago.measures",
}

__all__ = ["__version__", *EXPORTS]


def __getattr__(name: str) -> object:
    if name not in EXPORTS:
        raise AttributeError(f"module 'imago' has no attribute {name!r}")
    return getattr(importlib.import_module(EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
