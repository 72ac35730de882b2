"""Code images as bytes with a trained model, and back: ``python src/compress.py checkpoint=logs/made-mnist/<time>``."""

from imago.start import start

if __name__ == "__main__":
    start("compress")
