"""Imago: every classic image generator side by side, under one contract and on one board."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """:func:`imago.checkpoints.load` and :func:`imago.training.compose.compose`, which need torch, when asked for."""
    if name == "load":
        from imago.checkpoints import load

        return load
    if name == "compose":
        from imago.training.compose import compose

        return compose
    raise AttributeError(f"module 'imago' has no attribute {name!r}")
