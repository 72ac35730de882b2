"""Draw a figure of a model: ``python src/figure.py figure=completion checkpoint=logs/pixelcnn-mnist/<time>``."""

from imago.cli.figure import command

if __name__ == "__main__":
    command()
