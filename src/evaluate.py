"""Measure trained models: ``python src/evaluate.py checkpoint=logs/gan-digits/<time>``."""

from imago.start import start

if __name__ == "__main__":
    start("evaluate")
