"""How far two sets of images are from each other: ``python src/distance.py samples.npz cifar10``."""

from imago.start import start

if __name__ == "__main__":
    start("distance")
