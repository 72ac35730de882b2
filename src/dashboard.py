"""Build the W&B dashboard of a project: ``python src/dashboard.py project=imago``."""

from imago.start import start

if __name__ == "__main__":
    start("dashboard")
