"""Train the classifier behind ``metrics=classifier``: ``python src/train_classifier.py data=cifar10 out=FILE``."""

from imago.start import start

if __name__ == "__main__":
    start("train_classifier")
