"""Draw images from a trained model: ``python src/sample.py checkpoint=logs/gan-digits/<time> n=64``."""

from imago.cli.sample import command

if __name__ == "__main__":
    command()
