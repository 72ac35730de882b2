"""Images as pictures for people: grids, and Pillow's images."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from imago.files import replacing
from imago.images import Images

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def grid(images: Images, columns: int, margin: int = 1, background: int = 255) -> UInt8[Tensor, "channels H W"]:
    """Images (n, C, H, W) with values 0..255 as one picture, row by row, ``columns`` in a row."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    shape = (channels, rows * (height + margin) + margin, columns * (width + margin) + margin)
    picture = torch.full(shape, background, dtype=torch.uint8)
    for k, image in enumerate(images.cpu()):
        top = margin + (k // columns) * (height + margin)
        left = margin + (k % columns) * (width + margin)
        picture[:, top : top + height, left : left + width] = image
    return picture


def picture_of(images: Images, columns: int, smallest_side: int = 64) -> Image.Image:
    """A grid as a Pillow image; small images are enlarged by a whole factor, pixel by pixel, to be seen."""
    factor = max(1, round(smallest_side / max(images.shape[2:])))
    return to_pillow(grid(images, columns).repeat_interleave(factor, 1).repeat_interleave(factor, 2))


def scatter_of(drawn: Float[Tensor, "n d"], real: Float[Tensor, "m d"]) -> Image.Image:
    """Points beside those that they should be like, in the same frame, as a Pillow image.

    Of points in more than two dimensions the first two are seen; numbers on a line are counted.

    Args:
        drawn: samples.
        real: of the data.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    low, high = float(real.min()), float(real.max())
    margin = 0.1 * (high - low)
    picture = Figure(figsize=(6, 3.2), dpi=100, layout="constrained")
    axes = picture.subplots(1, 2, sharex=True, sharey=True)
    for ax, points, title, colour in ((axes[0], real, "data", "gray"), (axes[1], drawn, "samples", "C0")):
        ax.set_title(f"{title}, {len(points):,} points", fontsize=9)
        ax.set_xlim(low - margin, high + margin)
        if points.shape[1] == 1:
            ax.hist(points[:, 0].cpu().numpy(), 60, (low - margin, high + margin), density=True, color=colour)
        else:
            ax.scatter(*points[:, :2].cpu().T.numpy(), s=3, color=colour, alpha=0.5, linewidths=0)
            ax.set_ylim(low - margin, high + margin)
            ax.set_aspect("equal")
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def to_pillow(image: UInt8[Tensor, "channels H W"]) -> Image.Image:
    """One image with values 0..255, gray or RGB, as a Pillow image."""
    array = image.cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)


def write_png(picture: "Image.Image | Figure", path: Path, dpi: int = 100) -> None:
    """Write a picture as PNG; an older one stays until the new one is complete.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as file:
        if isinstance(picture, Image.Image):
            picture.save(file, "PNG")
        else:
            picture.savefig(file, dpi=dpi, format="png")
