"""Draw a figure of a model: ``python src/figure.py figure=completion checkpoint=logs/pixelcnn-mnist/<time>``."""

from imago.start import start

if __name__ == "__main__":
    start("figure")
