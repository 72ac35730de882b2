"""Write a trained model as a folder: ``python src/export.py checkpoint=logs/vae-mnist/<time> out=my-vae``."""

from imago.start import start

if __name__ == "__main__":
    start("export")
