"""Sample grids as data that a page can carry with it."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageChops

from imago.untrusted import read_bytes

# A hundred pictures stay below 20 MB of text, which is four thirds of their bytes.
LARGEST = 140_000
AS_IT_IS = 64_000
WIDEST = 720
# Bytes and pixels of a picture that is read: a grid of ten thousand images of 64 pixels squared has 41 million.
LARGEST_FILE = 2**26
MOST_PIXELS = 60_000_000
# Pillow has readers of other formats, one of which starts programs.
FORMATS = ("PNG", "JPEG")


def picture_of(content: bytes) -> Image.Image:
    """The picture that a file holds.

    Raises:
        Exception: of many kinds; it is no picture of a sane size.
    """
    picture = Image.open(io.BytesIO(content), formats=FORMATS)
    if picture.width * picture.height > MOST_PIXELS:
        raise ValueError(f"{picture.width}x{picture.height} pixels are more than a grid has")
    picture.load()
    return picture


def embedded(path: Path, widest: int = WIDEST) -> str:
    """A picture as a ``data:`` address: small ones as they are; of large ones the pixels that tell something, as JPEG.

    Of one that is more than twice as high as wide, the uppermost square: of a grid of many rows the first ones.

    Args:
        path: of the picture.
        widest: pixels that a page has for it.

    Raises:
        Exception: of many kinds; it cannot be read as a picture of a sane size.
    """
    content = read_bytes(path, LARGEST_FILE)
    with picture_of(content) as picture:
        if picture.height > 2 * picture.width:
            uppermost = io.BytesIO()
            picture.crop((0, 0, picture.width, picture.width)).save(uppermost, "PNG")
            content = uppermost.getvalue()
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        if len(content) <= AS_IT_IS and picture.width <= widest and picture.format in ("PNG", "JPEG"):
            return _address(content, picture.format)
        smaller = _shrunk(picture.convert("L" if picture.mode in ("1", "L") else "RGB"), widest)
    while True:
        for quality in (90, 75, 60):
            written = io.BytesIO()
            smaller.save(written, "JPEG", quality=quality, subsampling=0)
            if written.tell() <= LARGEST:
                return _address(written.getvalue(), "JPEG")
        smaller = smaller.reduce(2)


def _shrunk(picture: Image.Image, widest: int) -> Image.Image:
    """Without the enlargement in which grids of small images are written, and no wider than a page needs."""
    while picture.width % 2 == 0 and picture.height % 2 == 0:
        half = picture.reduce(2)  # means of 2x2 pixels: equal to each of them in an enlarged picture
        if ImageChops.difference(half.resize(picture.size, Image.Resampling.NEAREST), picture).getbbox():
            break
        picture = half
    return picture.reduce(-(-picture.width // widest))


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
