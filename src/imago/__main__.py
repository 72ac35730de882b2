"""``python -m imago COMMAND``, the same as ``imago COMMAND``."""

from imago.cli.main import main

if __name__ == "__main__":
    main()
