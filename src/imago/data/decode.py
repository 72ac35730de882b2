"""One image file to one uint8 array, whatever the file's mode, depth, size and orientation."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

Box = tuple[float, float, float, float]
Fit = Literal["crop", "stretch"]
ImageFile = BufferedReader | BytesIO

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_GRAY = ("1", "L", "LA", "La", *_SIXTEEN_BIT)
_SIDEWAYS = (5, 6, 7, 8)  # values of EXIF's orientation that swap width and height


@dataclass(frozen=True)
class Header:
    """What can be known of an image without decoding it; width and height are those after EXIF rotation."""

    height: int
    width: int
    gray: bool


def read_header(file: ImageFile) -> Header:
    """Size and colour of an image file. Gray is what is stored as gray: an RGB file of gray pixels is RGB.

    Raises:
        Exception: whatever the file's bytes lead its decoder to.
    """
    with Image.open(file) as image:
        if image.format == "TIFF":
            image.load()  # versions of Pillow differ in whether a TIFF's size is the rotated one before that
        # Pillow would decode a whole PNG in search of an orientation after the pixels, where hardly any writer puts it.
        known = image.format != "PNG" or "exif" in image.info
        sideways = known and image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
        width, height = image.size[::-1] if sideways else image.size
        return Header(height, width, image.mode in _GRAY)


def centre_crop(width: int, height: int, to_width: int, to_height: int) -> Box:
    """The largest box in the middle that has the proportions asked for: nothing is distorted, the margins are lost."""
    scale = min(width / to_width, height / to_height)
    box_width, box_height = to_width * scale, to_height * scale
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


def whole(width: int, height: int, to_width: int, to_height: int) -> Box:
    """The whole image: nothing is lost, other proportions are stretched."""
    return 0, 0, width, height


FITS: dict[Fit, Callable[[int, int, int, int], Box]] = {"crop": centre_crop, "stretch": whole}


def decode(file: ImageFile, channels: int, height: int, width: int, fit: Fit) -> np.ndarray:
    """Decode an image file, first frame only.

    EXIF orientation is applied. 16-bit grays are rounded to 8 bits. Transparency is laid on white. Colour becomes gray
    by the luma of ITU-R 601 (Pillow's "L"), CMYK and palettes become RGB. Images of another size are resized with
    Lanczos filtering, in the box that ``fit`` chooses.

    Returns:
        uint8 (channels, height, width), 0..255.

    Raises:
        ValueError: the file holds floating point or 32-bit integers, whose black and white are anyone's guess.
        Exception: whatever the file's bytes lead its decoder to.
    """
    with Image.open(file) as opened:
        image = _to_eight_bit(ImageOps.exif_transpose(opened))
        if image.has_transparency_data:
            canvas = Image.new("RGBA", image.size, "white")
            canvas.alpha_composite(image.convert("RGBA"))
            image = canvas
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            box = FITS[fit](*image.size, width, height)
            image = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
        pixels = np.asarray(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _to_eight_bit(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("holds floating point, whose black and white are unknown; convert it to 8 or 16 bits")
    if image.mode not in _SIXTEEN_BIT:
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("holds 32-bit integers, whose black and white are unknown; convert it to 8 or 16 bits")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
