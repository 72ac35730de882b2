"""What formats of pictures, which know no data set, make of the same images without a loss."""

import io
import math
from typing import Any

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from imago.images import Images, to_bytes
from imago.models.base import Progress
from imago.pictures import grid, to_pillow

LONGEST_SIDE = 16_383  # pixels, of WebP
# As small as each gets: Pillow's name and options.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {"optimize": True}),
    "WebP": ("WEBP", {"lossless": True, "quality": 100, "method": 6}),
    "JPEG XL": ("JXL", {"lossless": True, "effort": 9}),
}


def formats() -> list[str]:
    """Those that this machine can write."""
    try:
        import pillow_jxl  # noqa: F401 - tells Pillow
    except ImportError:
        return [name for name in FORMATS if name != "JPEG XL"]
    return list(FORMATS)


def sizes(images: Images, levels: int, progress: Progress) -> dict[str, int]:
    """Bytes that images take in each format, side by side in as few pictures as can be, and as a PNG each.

    Args:
        images: uint8 (n, 1 or 3 channels, height, width), of 0..levels-1. Two levels are written as black and white.
        levels: number of them.
        progress: called with (done, total).
    """
    most = max(1, LONGEST_SIDE // images.shape[2]) * max(1, LONGEST_SIDE // images.shape[3])
    sheets = [_sheet(to_bytes(part, levels)) for part in images.split(most)]
    names, found = formats(), {}
    for k, name in enumerate(names):
        found[f"{name}, one picture of all"] = sum(_size(sheet, name, levels) for sheet in sheets)
        progress(k + 1, len(names) + 1)
    found["PNG, a file for each"] = sum(_size(image, "PNG", levels) for image in to_bytes(images, levels))
    return found


def _sheet(images: UInt8[Tensor, "n channels height width"]) -> UInt8[Tensor, "channels H W"]:
    """Side by side, as a picture about square."""
    columns = math.ceil(math.sqrt(len(images) * images.shape[2] / images.shape[3]))
    return grid(images, columns, margin=0, background=0)


def _size(image: UInt8[Tensor, "channels H W"], name: str, levels: int) -> int:
    how, options = FORMATS[name]
    picture = to_pillow(image)
    if levels == 2 and len(image) == 1 and how == "PNG":  # which has a kind of one bit for a pixel
        picture = picture.convert("1", dither=Image.Dither.NONE)
    file = io.BytesIO()
    picture.save(file, how, **options)
    return len(file.getvalue())
