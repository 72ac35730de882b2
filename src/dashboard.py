"""Build the W&B dashboard of a project: ``python src/dashboard.py project=imago``."""

from imago.cli.dashboard import command

if __name__ == "__main__":
    command()
