"""``python -m imago COMMAND``, the same as ``imago COMMAND``."""

from imago.start import main

if __name__ == "__main__":
    main()
