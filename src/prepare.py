"""Images as shards, for data larger than the memory: ``python src/prepare.py data.path=FOLDER out=SHARDS``."""

from imago.start import start

if __name__ == "__main__":
    start("prepare")
