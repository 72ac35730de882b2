"""Measure trained models: ``python src/evaluate.py checkpoint=logs/gan-digits/<time>``."""

from imago.cli.evaluate import command

if __name__ == "__main__":
    command()
