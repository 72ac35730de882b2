"""Imago: every classic image generator side by side, under one contract and on one board."""

__version__ = "0.1.0"
