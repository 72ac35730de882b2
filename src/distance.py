"""How far two sets of images are from each other: ``python src/distance.py samples.npz cifar10``."""

from imago.cli.distance import command

if __name__ == "__main__":
    command()
