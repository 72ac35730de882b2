"""Code images as bytes with a trained model, and back: ``python src/compress.py checkpoint=logs/made-mnist/<time>``."""

from imago.cli.compress import command

if __name__ == "__main__":
    command()
