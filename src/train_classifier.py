"""Train the classifier behind ``metrics=classifier``: ``python src/train_classifier.py data=cifar10 out=FILE``."""

from imago.cli.train_classifier import command

if __name__ == "__main__":
    command()
