"""Put runs side by side: ``python src/compare.py runs=logs``. Needs their directories alone, and no torch."""

from imago.start import start

if __name__ == "__main__":
    start("compare")
