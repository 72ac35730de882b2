"""What the pictures of a run tell as numbers: the images are cut out of grids again."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from imago.board.pictures import LARGEST_FILE, picture_of
from imago.statistics import Estimate, explained_share
from imago.untrusted import read_bytes

Shape = tuple[int, int, int, int]
Tiles = Float[np.ndarray, "rows columns height width"]
# How grids are drawn: the side to which small images are enlarged, the margin, and the gray of what is hidden.
SMALLEST_SIDE = 64
MARGIN = 1
BACKGROUND = 255
HIDDEN = 128


@dataclass(frozen=True)
class Steering:
    """How much of the variance of completions is explained by what was shown.

    Args:
        images: rows of the picture.
        completions: of each.
        shown: share of the rows of an image.
        whole: of all that was hidden.
        near: of its third next to what was shown.
        far: of its last third.
    """

    images: int
    completions: int
    shown: float
    whole: Estimate
    near: Estimate
    far: Estimate


def factor_of(size: tuple[int, ...], shape: Shape) -> int:
    """How many times larger the pixels of a grid are: the largest number, up to what grids are drawn with, that fits.

    Args:
        size: width and height of the picture.
        shape: of the images: channels, height and width in their own pixels, levels.
    """
    _, height, width, _ = shape
    usual = max(1, round(SMALLEST_SIDE / max(height, width)))
    sides = list(zip(size, (width + MARGIN, height + MARGIN), strict=True))
    fitting = (
        k
        for k in range(usual, 0, -1)
        if all(whole % k == 0 and (whole // k) % tile == MARGIN % tile for whole, tile in sides)
    )
    return next(fitting, usual)


def tiles(path: Path | None, shape: Shape | None) -> Tiles | None:
    """Images of a grid as gray values in 0..255, in its rows and columns; ``None`` if it is no grid of such images.

    A last row that is not full is left out.

    Args:
        path: of the picture.
        shape: of the images: channels, height and width in their own pixels, levels.
    """
    if path is None or shape is None:
        return None
    try:
        with picture_of(read_bytes(path, LARGEST_FILE)) as picture:
            pixels = np.asarray(picture.convert("L"), dtype=np.float64)
    except Exception:  # Pillow raises whatever a damaged picture leads it to
        return None
    _, height, width, _ = shape
    factor = factor_of(pixels.shape[::-1], shape)
    pixels = pixels[::factor, ::factor][MARGIN:, MARGIN:]
    high, wide = height + MARGIN, width + MARGIN
    rows, columns = pixels.shape[0] // high, pixels.shape[1] // wide
    if not rows or not columns or pixels.shape != (rows * high, columns * wide):
        return None
    cut = pixels.reshape(rows, high, columns, wide).swapaxes(1, 2)[:, :, :-MARGIN, :-MARGIN]
    full = not (cut[-1, -1] == BACKGROUND).all() or rows == 1
    return cut if full else cut[:-1]


def steering(path: Path, shape: Shape | None) -> Steering | None:
    """How much what was shown steers completions: of a picture with rows of image, what is shown, completions.

    ``None`` if it is no such picture, if anything but rows at the bottom is hidden, or if there are fewer than 3 images
    or 2 completions.
    """
    cut = tiles(path, shape)
    if cut is None or cut.shape[0] < 3 or cut.shape[1] < 4:
        return None
    hidden: Bool[np.ndarray, " height"] = (cut[:, 1] == HIDDEN).all((0, 2))
    start = int(hidden.argmax())
    if not start or not hidden[start:].all():
        return None
    completed = cut[:, 2:, start:]
    height = completed.shape[2]
    third = max(1, height // 3)
    parts = [
        explained_share(completed[:, :, rows].reshape(*completed.shape[:2], -1))
        for rows in (slice(None), slice(third), slice(height - third, None))
    ]
    return Steering(len(cut), cut.shape[1] - 2, start / cut.shape[2], *parts)
