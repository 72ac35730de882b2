"""Images as files for people and other programs: grids, arrays, folders."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from imago.errors import UserError
from imago.images import Images, Labels


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


def to_pillow(image: UInt8[Tensor, "channels H W"]) -> Image.Image:
    """One image with values 0..255, gray or RGB, as a Pillow image."""
    array = image.cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array)


def write_grid(path: Path, images: Images, labels: Labels | None) -> None:
    """One picture, about square, of all images."""
    picture_of(images, columns=math.ceil(math.sqrt(len(images)))).save(path)


def write_arrays(path: Path, images: Images, labels: Labels | None) -> None:
    """A NumPy archive: ``images`` uint8 (n, height, width, channels) and, for a conditional model, ``labels`` (n,)."""
    arrays = {"images": images.cpu().permute(0, 2, 3, 1).contiguous().numpy()}
    if labels is not None:
        arrays["labels"] = labels.cpu().numpy()
    np.savez(path, **arrays)  # type: ignore[arg-type]  # NumPy's stubs take the names for flags


def write_folder(path: Path, images: Images, labels: Labels | None) -> None:
    """A PNG for each image, named by its number and, for a conditional model, in a subfolder of its class."""
    for k, image in enumerate(images):
        folder = path if labels is None else path / str(int(labels[k]))
        folder.mkdir(parents=True, exist_ok=True)
        to_pillow(image).save(folder / f"{k:06d}.png")


WRITERS = {".png": write_grid, ".npz": write_arrays, "": write_folder}


def writer_for(path: Path) -> Callable[[Path, Images, Labels | None], None]:
    """How images, uint8 (n, C, H, W) with values 0..255, are written to a path of this suffix.

    Raises:
        UserError: the suffix is none of the known ones, there is no folder to write into, or the folder is in use.
    """
    if path.suffix not in WRITERS:
        raise UserError(
            f"out={path}: cannot write {path.suffix} files; give a name ending in .png (one picture of all images) or "
            ".npz (arrays), or a name without a suffix (a folder of PNG files)"
        )
    if not path.parent.is_dir():
        raise UserError(f"out={path}: there is no folder {path.parent}; create it, or choose another place")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"out={path}: a folder with files in it, which would be mixed up with the new ones; empty it")
    return WRITERS[path.suffix]
