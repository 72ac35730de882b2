"""Draw images from a trained model: ``python src/sample.py checkpoint=logs/gan-digits/<time> n=64``."""

from imago.start import start

if __name__ == "__main__":
    start("sample")
