"""Train a model: ``python src/train.py model=gan data=cifar10``; ``--help`` lists what can be chosen."""

from imago.start import start

if __name__ == "__main__":
    start("train")
