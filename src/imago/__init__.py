"""Imago: every classic image generator side by side, under one contract and on one board."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """``imago.load(path)``: the model of a checkpoint. Imported when asked for: torch takes seconds."""
    if name == "load":
        from imago.checkpoints import load

        return load
    raise AttributeError(f"module 'imago' has no attribute {name!r}")
