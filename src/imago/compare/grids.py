"""What the pictures of a run tell as numbers: the images are cut out of grids again."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

Tiles = Float[np.ndarray, "rows columns height width"]
# How grids are drawn: the side to which small images are enlarged, the margin, and the gray of what is hidden.
SMALLEST_SIDE = 64
MARGIN = 1
BACKGROUND = 255
HIDDEN = 128


@dataclass(frozen=True)
class Layout:
    """Sides of the images of a grid in their own pixels, before they were enlarged."""

    height: int
    width: int


@dataclass(frozen=True)
class Ratio:
    """A number and its standard error, from leaving out one image at a time."""

    value: float
    error: float

    def over(self, other: "Ratio") -> "Ratio":
        """In units of another one, whose error is independent."""
        value = self.value / other.value
        return Ratio(value, abs(value) * float(np.hypot(self.error / self.value, other.error / other.value)))

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.error:.2f}"


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
    whole: Ratio
    near: Ratio
    far: Ratio


def tiles(path: Path | None, layout: Layout | None) -> Tiles | None:
    """Images of a grid as gray values in 0..255, in its rows and columns; ``None`` if it is no grid of such images.

    A last row that is not full is left out.
    """
    if path is None or layout is None:
        return None
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"), dtype=np.float64)
    except (OSError, ValueError, SyntaxError):  # Pillow says the last of a damaged PNG
        return None
    factor = max(1, round(SMALLEST_SIDE / max(layout.height, layout.width)))
    pixels = pixels[::factor, ::factor][MARGIN:, MARGIN:]
    high, wide = layout.height + MARGIN, layout.width + MARGIN
    rows, columns = pixels.shape[0] // high, pixels.shape[1] // wide
    if not rows or not columns or pixels.shape != (rows * high, columns * wide):
        return None
    cut = pixels.reshape(rows, high, columns, wide).swapaxes(1, 2)[:, :, :-MARGIN, :-MARGIN]
    full = not (cut[-1, -1] == BACKGROUND).all() or rows == 1
    return cut if full else cut[:-1]


def of_originals(path: Path | None, layout: Layout | None, reconstructed: bool = False) -> Tiles | None:
    """Of a grid of reconstructions the real images, every other row from the first; or what lies below them."""
    cut = tiles(path, layout)
    return None if cut is None or len(cut) < 2 else cut[int(reconstructed) :: 2]


def roughness(images: Tiles) -> Ratio | None:
    """Mean squared difference of neighbouring pixels over twice the variance of pixels.

    1 for white noise, near 0 for smooth images; scaling the contrast does not change it. ``None`` of images that are
    all one gray.
    """
    each = images.reshape(-1, *images.shape[2:])
    across, down = np.diff(each, axis=2), np.diff(each, axis=1)
    energy = ((across**2).mean((1, 2)) + (down**2).mean((1, 2))) / 2
    variance = 2 * ((each - each.mean()) ** 2).mean((1, 2))
    if not variance.sum():
        return None
    without = (energy.sum() - energy) / np.maximum(variance.sum() - variance, 1e-12)
    return Ratio(float(energy.sum() / variance.sum()), _jackknife(without))


def steering(path: Path, layout: Layout | None) -> Steering | None:
    """How much what was shown steers completions: of a picture with rows of image, what is shown, completions.

    ``None`` if it is no such picture, if anything but rows at the bottom is hidden, or if there are fewer than 3 images
    or 2 completions.
    """
    cut = tiles(path, layout)
    if cut is None or cut.shape[0] < 3 or cut.shape[1] < 4:
        return None
    hidden: Bool[np.ndarray, " height"] = (cut[:, 1] == HIDDEN).all((0, 2))
    start = int(hidden.argmax())
    if not start or not hidden[start:].all():
        return None
    completed = cut[:, 2:, start:]
    height = completed.shape[2]
    third = max(1, height // 3)
    parts = [_explained(completed[:, :, rows]) for rows in (slice(None), slice(third), slice(height - third, None))]
    return Steering(len(cut), cut.shape[1] - 2, start / cut.shape[2], *parts)


def _explained(completed: Float[np.ndarray, "images completions height width"]) -> Ratio:
    """1 - half the squared distance of two completions of one image over that of completions of two images."""
    flat = completed.reshape(*completed.shape[:2], -1)
    n = len(flat)
    within = flat.var(1, ddof=1).sum(-1)
    means, squares = flat.mean(1), (flat**2).sum(-1).mean(1)
    between = (squares[:, None] + squares[None, :]) / 2 - means @ means.T
    np.fill_diagonal(between, 0)

    def share(within_sum: float, between_sum: float, count: int) -> float:
        distance = between_sum / (count * (count - 1))
        return 1 - within_sum / count / distance if distance > 0 else 0.0

    without = [
        share(within.sum() - within[k], between.sum() - between[k].sum() - between[:, k].sum(), n - 1) for k in range(n)
    ]
    return Ratio(share(within.sum(), between.sum(), n), _jackknife(np.array(without)))


def _jackknife(without: Float[np.ndarray, " n"]) -> float:
    n = len(without)
    return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())) if n > 1 else 0.0
