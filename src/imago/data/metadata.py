"""A picture without its metadata: the bytes that Pillow is to see, and how the picture is to be turned.

Metadata is where writers err: EXIF that cannot be parsed or written back, text and colour profiles that unpack to
gigabytes, directories that point nowhere. None of it is needed for pixels but the orientation, which may stand in EXIF,
before the pixels or after them, or in XMP. So of PNG and TIFF files only what makes pixels is handed on, and the
orientation is looked for here, in all formats.

References: PNG specification, 3rd edition, 4.7 and 11.3; TIFF 6.0, section 2; Exif 2.32, 4.6.4.
"""

import re
import struct
import zlib
from io import BufferedReader, BytesIO, FileIO
from typing import cast

from PIL import Image

ImageFile = BufferedReader | BytesIO

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_KEYWORDS = (  # of EXIF and XMP in texts; those of raw profiles as ImageMagick writes them
    b"XML:com.adobe.xmp", b"Raw profile type xmp", b"Raw profile type exif", b"Raw profile type APP1"
)  # fmt: skip
# First column and row of each pass of an interlaced one, and the steps between them.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_MOST_TEXT = 2**23  # bytes of a text chunk that are unpacked
_XMP_PREFIX = re.compile(rb"xmlns:([\w.-]+)\s*=\s*[\"']http://ns\.adobe\.com/tiff/1\.0/[\"']")
_XMP_ORIENTATION = rb"\b%b:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])\b"
_ORIENTATION, _XMP_TAG, _NO_TAG = 274, 700, 65535
# Sizes, layout, compression and meaning of the samples; what the compressions add.
_TIFF_PIXELS = {254, 255, *range(256, 260), 262, 263, 266, 273, 277, 278, 279, 284, *range(290, 294), 317, 320}
_TIFF_PIXELS |= {*range(322, 326), 332, 334, 336, 338, 339, 347, *range(512, 522), *range(529, 533), 50674}


class UnreadableError(ValueError):
    """The file's pixels cannot be had, or not be understood; the text says why."""


def stripped(file: ImageFile, header: bool = False) -> tuple[ImageFile, int | None]:
    """What makes the pixels of an image file, and its orientation.

    Args:
        file: at its beginning.
        header: leave the pixels out; what is left is enough for :func:`PIL.Image.open`.

    Returns:
        A file, and EXIF's number 1..8; ``None`` where another format is handed on as it is and Pillow has to find it.

    Raises:
        UnreadableError: a PNG's pixels are cut short or do not fit their checksums.
    """
    start = file.read(len(_PNG))
    if start == _PNG:
        return _png(file, header)
    file.seek(0)
    return _tiff(file.read()) if start[:2] in (b"II", b"MM") else (file, None)


def orientation(image: Image.Image) -> int:
    """How an opened picture is to be turned by the metadata that Pillow found: EXIF's number, 1 where nothing is said.

    In AVIF the container's own rotation counts, which Pillow writes into the EXIF.
    """
    segments = [body for name, body in getattr(image, "applist", ()) if name == "APP1"]  # of a JPEG
    xmp = b"" if image.format == "AVIF" else image.info.get("xmp", b"")
    found = [*segments, image.info.get("exif", b""), xmp]
    return next(filter(None, (*map(_in_exif, found), *map(_in_xmp, found))), 1)


def _in_xmp(xmp: bytes) -> int | None:
    xmp = xmp.replace(b"\0", b"")  # of UTF-16 and UTF-32, as everything looked for is ASCII
    prefixes = (b"tiff", *_XMP_PREFIX.findall(xmp))
    found = (re.search(_XMP_ORIENTATION % re.escape(prefix), xmp) for prefix in prefixes)
    return next((int(match[1]) for match in found if match), None)


def _in_exif(exif: bytes) -> int | None:
    """The orientation in the first directory of a TIFF structure, however damaged the rest is."""
    tiff = exif.removeprefix(b"Exif\0\0")
    try:
        form, entries = _directory(tiff)
        for entry in entries:
            tag, kind = struct.unpack_from(form[:3], tiff, entry)
            if tag == _ORIENTATION:
                place = entry + entries.step - struct.calcsize(form[-1])
                (value,) = struct.unpack_from(form[0] + {1: "B", 4: "I"}.get(kind, "H"), tiff, place)
                return value if 1 <= value <= 8 else None
    except (KeyError, struct.error):
        pass
    return None


def _directory(tiff: bytes) -> tuple[str, range]:
    """Of a TIFF structure's first directory, the form of an entry (tag, kind, length, value) and their places.

    Raises:
        KeyError, struct.error: there is none.
    """
    order, big = {b"II": "<", b"MM": ">"}[tiff[:2]], 43 in tiff[2:4]
    (place,) = struct.unpack_from(order + "IQ"[big], tiff, 8 if big else 4)
    (count,) = struct.unpack_from(order + "HQ"[big], tiff, place)
    form = order + ("HHQQ" if big else "HHII")
    first, size = place + (8 if big else 2), struct.calcsize(form)
    return form, range(first, first + size * count, size)


def _png(buffered: ImageFile, header: bool) -> tuple[ImageFile, int]:
    """Chunk by chunk; the file stands behind the signature."""
    # A header is read without a buffer: pixels are stepped over, and a buffer would read them.
    file = cast(FileIO, buffered.raw) if header and isinstance(buffered, BufferedReader) else buffered
    end = file.seek(0, 2)
    file.seek(len(_PNG))
    kept, in_exif, in_xmp = [_PNG], None, None
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        whole = length + 4 <= end - file.tell()
        if kind in _PNG_PIXELS and not (header and kind == b"IDAT"):
            if not whole and kind != b"IEND":
                raise UnreadableError(f"the file ends inside its {kind.decode()} chunk")
            body = file.read(length + 4) if whole else b""
            if whole and zlib.crc32(kind + body[:length]) != int.from_bytes(body[length:]):
                raise UnreadableError(f"the checksum of its {kind.decode()} chunk does not fit")
            kept += [head, body]
        elif kind in (b"eXIf", b"iTXt", b"zTXt", b"tEXt") and whole and length <= _MOST_TEXT:
            body = file.read(length + 4)[:length]
            text = body if kind == b"eXIf" else _text(kind, body)
            in_exif, in_xmp = in_exif or _in_exif(text), in_xmp or _in_xmp(text)
        else:
            if kind == b"IDAT" and kept[-1][4:] != b"IDAT":
                kept.append(head)
            file.seek(length + 4, 1)
        if kind == b"IEND":
            break
    return BytesIO(b"".join(kept)), in_exif or in_xmp or 1


def check_rows(pixels: ImageFile) -> None:
    """Refuse a PNG whose pixels unpack to fewer rows than it has, which Pillow leaves black.

    Args:
        pixels: as :func:`stripped` gave it.

    Raises:
        UnreadableError: rows are missing.
    """
    pixels.seek(len(_PNG))
    unpacker, unpacked, data = zlib.decompressobj(), 0, b""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">8xIIBBBBB4x", pixels.read(25))
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-((x - width) // across), -((y - height) // down)) for x, y, across, down in passes]
    expected = sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0)
    while unpacked < expected and len(head := pixels.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        data = pixels.read(length + 4)[:length]
        while data and kind == b"IDAT" and not unpacker.eof:
            unpacked += len(unpacker.decompress(data, 2**20))
            data = unpacker.unconsumed_tail
    if unpacked < expected:
        raise UnreadableError(f"its pixels unpack to {unpacked:,} bytes instead of {expected:,}")


def _text(kind: bytes, body: bytes) -> bytes:
    """EXIF or XMP in a text chunk of a PNG; empty where it holds something else, or nothing that can be unpacked."""
    keyword, _, rest = body.partition(b"\0")
    if keyword not in _KEYWORDS:
        return b""
    if kind == b"iTXt":
        packed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    else:
        packed, text = kind == b"zTXt", rest[1:] if kind == b"zTXt" else rest
    try:
        if packed:
            text = zlib.decompressobj().decompress(text, _MOST_TEXT)
        if keyword.startswith(b"Raw"):  # its name, its length, then hexadecimal digits
            text = bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:]))
    except (zlib.error, ValueError):
        return b""
    return text


def _tiff(content: bytes) -> tuple[ImageFile, int | None]:
    """The first page; entries of its directory that say nothing of pixels are overwritten in place."""
    patched, xmp = bytearray(content), b""
    try:
        form, entries = _directory(content)
        for entry in entries:
            tag, _, length, value = struct.unpack_from(form, content, entry)
            if tag == _XMP_TAG:
                xmp = content[value : value + length]
            if tag not in _TIFF_PIXELS:
                struct.pack_into(form, patched, entry, _NO_TAG, 1, 1, 0)
        struct.pack_into(form[0] + form[-1], patched, entries.stop, 0)  # where the next page's directory is named
    except struct.error:
        return BytesIO(content), None
    return BytesIO(patched), _in_exif(content) or _in_xmp(xmp) or 1
