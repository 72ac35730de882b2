"""One image file to one uint8 array, whatever the file's mode, depth, size and orientation."""

import re
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from imago.data.metadata import ImageFile, UnreadableError, check_rows, orientation, stripped

Box = tuple[float, float, float, float]
Fit = Literal["crop", "stretch"]

# Read by Pillow without loss of meaning, and recognised by their first bytes. Not among them: what needs programs
# (EPS), what any bytes may be taken for (TGA, PCX), and layers, textures, films and measurements.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI", "ICO", "ICNS")

DECODER = 2  # raised whenever a file comes to other pixels than before: images decoded by another are decoded anew

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_GRAY = ("1", "L", "LA", "La", *_SIXTEEN_BIT)
_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # of TIFF
# Pixels of a JPEG, and more behind each restart marker.
_FURTHER = b"".join(bytes(range(254, 0, -1)) + bytes([0xFF, marker]) for marker in range(0xD0, 0xD8))
_CODESTREAM = re.compile(rb"(?:\A|jp2c|jp2c.{8})\xff\x4f\xff\x51", re.DOTALL)  # of JPEG 2000
_MARKER = re.compile(rb"\xff[^\0\x01\xd0-\xd8\xff]", re.DOTALL)  # of JPEG: an end, or a segment with its length
_SPREAD = {"L;2": 85, "L;4": 17}  # what Pillow multiplies a PNG's grays of 2 and 4 bits by


@dataclass(frozen=True)
class Header:
    """What can be known of an image without decoding it; width and height are those after rotation."""

    height: int
    width: int
    gray: bool


def read_header(file: ImageFile) -> Header:
    """Size and colour of an image file. Gray is what is stored as gray: an RGB file of gray pixels is RGB.

    Raises:
        Exception: whatever the file's bytes lead its decoder to.
    """
    image, turn, _ = _open(file, header=True)
    with image:
        width, height = image.size[::-1] if turn in _SIDEWAYS else image.size
        return Header(height, width, image.mode in _GRAY or _raw_mode(image) == "LA;16B")


def centre_crop(width: int, height: int, to_width: int, to_height: int) -> Box:
    """The largest box in the middle that has the proportions asked for: nothing is distorted, the margins are lost."""
    scale = min(width / to_width, height / to_height)
    box_width, box_height = to_width * scale, to_height * scale
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


def decode(file: ImageFile, channels: int, height: int, width: int, fit: Fit) -> np.ndarray:
    """Decode an image file, first frame only.

    Orientation is applied, from EXIF or XMP. Grays of 10 to 16 bits are rounded to 8, colours of 16 bits keep the
    upper 8; black is 0, whatever the file calls it. Transparency is laid on white. Colour becomes gray by the luma of
    ITU-R 601 (Pillow's "L"), CMYK, Lab and palettes become RGB. Images of another size are resized with Lanczos
    filtering, the largest box in the middle or, with ``fit="stretch"``, as a whole.

    Returns:
        uint8 (channels, height, width), 0..255.

    Raises:
        UnreadableError: the format is none of :data:`FORMATS`; or black and white are anyone's guess: floating point,
            32-bit integers, signed numbers, CMYK in a JPEG that does not say which way round.
        Exception: whatever the file's bytes lead its decoder to.
    """
    opened, turn, source = _open(file)
    with opened:
        _check_meaning(opened)
        image = _on_white(opened, source)
        _check_completeness(opened, source)
        image = image.convert("RGB").convert("L") if channels == 1 and image.mode == "LAB" else image
        image = image.convert("L" if channels == 1 else "RGB")
        if turn in _TURN:
            image = image.transpose(_TURN[turn])
        if image.size != (width, height):
            box = centre_crop(*image.size, width, height) if fit == "crop" else None
            image = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
        pixels = np.asarray(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _open(file: ImageFile, header: bool = False) -> tuple[Image.Image, int, ImageFile]:
    """The image, not yet decoded, its orientation, 1..8, and what it is decoded from."""
    pixels, turn = stripped(file, header)
    try:
        image = Image.open(pixels, formats=FORMATS)
    except UnidentifiedImageError:
        raise UnreadableError(
            f"is damaged, or in no form that is read here ({', '.join(FORMATS)}); convert it to PNG"
        ) from None
    return image, turn or orientation(image), pixels


def _check_completeness(image: Image.Image, source: ImageFile) -> None:
    """Refuse a decoded image whose file has an end but lacks pixels, which Pillow fills without a word.

    Missing rows of a PNG are black, missing blocks of a JPEG gray, the last one first: where the end looks so, it is
    looked into. A JPEG that has all its blocks ignores further bytes before its end; another takes them for pixels.
    """
    if image.format == "PNG":
        last_row = image.crop((0, image.height - 1, image.width, image.height))
        if image.info.get("interlace") or not np.asarray(last_row).any():
            check_rows(source)
    elif isinstance(image, JpegImageFile):
        last = np.asarray(image.crop((image.width - 1, image.height - 1, image.width, image.height)))
        if set(last.ravel()) <= {127, 128}:  # 127: of an inverted CMYK
            source.seek(0)
            content = source.read()
            end = _end_of_jpeg(content)
            with Image.open(BytesIO(content[:end] + _FURTHER + content[end:])) as longer:
                if longer.tobytes() != image.tobytes():
                    raise UnreadableError("its pixels end before those of its last row")


def _end_of_jpeg(content: bytes) -> int:
    """Where the end marker of the picture is, whatever was appended behind it; the length where there is none."""
    at = 2
    while found := _MARKER.search(content, at):
        at = found.start()
        if content[at + 1] == 0xD9:
            return at
        at += 2 + int.from_bytes(content[at + 2 : at + 4])
    return len(content)


def _raw_mode(image: Image.Image) -> str:
    """How the samples lie in the file, in Pillow's words."""
    arguments = image.tile[0].args if image.tile else ""  # type: ignore[attr-defined]
    return str(arguments if isinstance(arguments, str) else arguments[0] if arguments else "")


def _check_meaning(image: Image.Image) -> None:
    """Refuse numbers whose black and white are unknown."""
    unknown = ""
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F":
        unknown = "floating point"
    elif image.mode == "I" and image.format != "PPM":  # of which Pillow makes 16 bits, whatever its white
        unknown = "signed numbers" if "16" in _raw_mode(image) else "32-bit integers"
    elif 2 in tags.get(_SAMPLE_FORMAT, ()):
        unknown = "signed numbers"
    elif image.mode == "CMYK" and isinstance(image, JpegImageFile) and "adobe" not in image.info:
        unknown = "CMYK without Adobe's marker"
    if unknown:
        raise UnreadableError(
            f"holds {unknown}, whose black and white are unknown; convert it to RGB or gray of 8 bits"
        )


def _spread_out(image: Image.Image, source: ImageFile) -> Image.Image:
    """A JPEG 2000 of 1 to 7 bits with white at 255; Pillow puts the bits of a sample uppermost."""
    source.seek(0)
    start = _CODESTREAM.search(content := source.read())
    if start is None or image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        return image
    first = start.end() + 38  # of three bytes a component: depth and spacing
    depths = [min(8, (content[first + 3 * band] & 127) + 1) for band in range(len(image.getbands()))]
    if min(depths) == 8:
        return image
    return image.point([round((v >> 8 - bits) * 255 / (2**bits - 1)) for bits in depths for v in range(256)])


def _transparent_colour(image: Image.Image, source: ImageFile, colour: tuple[int, ...]) -> np.ndarray:
    """Where a PNG of 16-bit colours has this one, bool (height, width)."""
    source.seek(0)
    with Image.open(source, formats=("PNG",)) as lower:
        lower.tile = [lower.tile[0]._replace(args="RGB;16L")]  # the lower bytes
        lows = np.asarray(lower.convert("RGB"))
    wanted = np.array(colour)
    return ((np.asarray(image) == wanted >> 8) & (lows == wanted & 255)).all(2)


def _on_white(image: Image.Image, source: ImageFile) -> Image.Image:
    """The image in 8 bits, without transparency."""
    transparent = image.info.get("transparency")
    tags = getattr(image, "tag_v2", {})
    spread = _SPREAD.get(_raw_mode(image), 1)  # the mode is gone when the image is loaded
    if image.mode in _SIXTEEN_BIT:
        values, white = np.asarray(image).astype(np.int64), 65535
        if image.format == "TIFF":
            white = 2 ** tags.get(_BITS, (16,))[0] - 1
            values = white - values if tags.get(_PHOTOMETRIC) == 0 else values
        if transparent is not None:
            values[values == transparent] = white
        return Image.fromarray(((values * 255 + white // 2) // white).clip(0, 255).astype(np.uint8))
    if image.mode == "La":  # premultiplied, which Pillow has no conversion for
        gray, alpha = np.moveaxis(np.asarray(image).astype(np.int64), 2, 0)
        return Image.fromarray((gray + 255 - alpha).clip(0, 255).astype(np.uint8))
    if isinstance(transparent, int) and image.mode == "L":
        image.info["transparency"] = transparent * spread
    if isinstance(transparent, tuple) and _raw_mode(image) == "RGB;16B":
        pixels = np.array(image)
        pixels[_transparent_colour(image, source, transparent)] = 255
        return Image.fromarray(pixels)
    if image.format == "JPEG2000":
        image = _spread_out(image, source)
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas
