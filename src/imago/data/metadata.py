"""A picture without its metadata: the bytes that Pillow is to see, and how the picture is to be turned.

Metadata is where writers err: EXIF that cannot be parsed or written back, text and colour profiles that unpack to
gigabytes, directories that point nowhere. None of it is needed for pixels but the orientation, which may stand in EXIF,
before the pixels or after them, or in XMP. So of PNG, JPEG and TIFF files, which nearly all pictures are, only what
makes pixels is handed on, and the orientation is looked for here.

References: PNG specification, 3rd edition, 4.7 and 11.3; ITU-T T.81, annex B; TIFF 6.0, section 2; Exif 2.32, 4.6.4.
"""

import re
import struct
import zlib
from io import BufferedReader, BytesIO, FileIO
from typing import cast

ImageFile = BufferedReader | BytesIO

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_XMP_KEYWORDS = (b"XML:com.adobe.xmp", b"Raw profile type xmp")
_EXIF_KEYWORDS = (b"Raw profile type exif", b"Raw profile type APP1")  # as ImageMagick writes it
# First column and row of each pass of an interlaced one, and the steps between them.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_MOST_TEXT = 2**23  # bytes of a text chunk that are unpacked
_JPEG_KEPT = (0xE0, 0xEE)  # JFIF and Adobe: what the components mean
_JPEG_BARE = (0x01, *range(0xD0, 0xD9))  # markers without a length
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
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
    if start[:3] == b"\xff\xd8\xff":
        return _jpeg(file, header)
    if start[:2] in (b"II", b"MM"):
        return _tiff(file.read())
    return file, None


def orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """How a picture with this metadata is to be turned: EXIF's number 1..8, 1 where nothing is said."""
    found = _in_exif(exif.removeprefix(_EXIF)) if exif else None
    if found is None and xmp:
        xmp = xmp.replace(b"\0", b"")  # of UTF-16 and UTF-32, as everything looked for is ASCII
        for prefix in (b"tiff", *_XMP_PREFIX.findall(xmp)):
            match = re.search(_XMP_ORIENTATION % re.escape(prefix), xmp)
            found = found or (int(match[1]) if match else None)
    return found or 1


def _in_exif(tiff: bytes) -> int | None:
    """The orientation in the first directory of a TIFF structure, however damaged the rest is."""
    try:
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, offset)
        for entry in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == _ORIENTATION:
                return _value(tiff, order, kind, entry + 8)
    except (KeyError, struct.error):
        pass
    return None


def _value(tiff: bytes | bytearray, order: str, kind: int, at: int) -> int | None:
    form = {1: "B", 3: "H", 4: "I"}.get(kind, "H")
    (value,) = struct.unpack_from(order + form, tiff, at)
    return value if 1 <= value <= 8 else None


def _png(buffered: ImageFile, header: bool) -> tuple[ImageFile, int]:
    """Chunk by chunk; the file stands behind the signature."""
    # A header is read without a buffer: pixels are stepped over, and a buffer would read them.
    file = cast(FileIO, buffered.raw) if header and isinstance(buffered, BufferedReader) else buffered
    end = file.seek(0, 2)
    file.seek(len(_PNG))
    kept, exif, xmp = [_PNG], b"", b""
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
            new_exif, new_xmp = (body, b"") if kind == b"eXIf" else _text(kind, body)
            exif, xmp = (exif if _in_exif(exif.removeprefix(_EXIF)) else new_exif or exif), xmp or new_xmp
        else:
            if kind == b"IDAT" and kept[-1][4:] != b"IDAT":
                kept.append(head)
            file.seek(length + 4, 1)
        if kind == b"IEND":
            break
    return BytesIO(b"".join(kept)), orientation(exif, xmp)


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


def _text(kind: bytes, body: bytes) -> tuple[bytes, bytes]:
    """EXIF and XMP in a text chunk of a PNG; empty where it holds something else, or nothing that can be unpacked."""
    keyword, _, rest = body.partition(b"\0")
    if keyword not in _EXIF_KEYWORDS + _XMP_KEYWORDS:
        return b"", b""
    if kind == b"iTXt":
        packed, (_, _, text) = rest[:1] == b"\1", [*rest[2:].split(b"\0", 2), b"", b""][:3]
    else:
        packed, text = kind == b"zTXt", rest[1:] if kind == b"zTXt" else rest
    try:
        if packed:
            text = zlib.decompressobj().decompress(text, _MOST_TEXT)
        if keyword.startswith(b"Raw"):  # its name, its length, then hexadecimal digits
            text = bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:]))
    except (zlib.error, ValueError):
        return b"", b""
    if keyword in _XMP_KEYWORDS or text.startswith(_XMP):
        return b"", text
    return text, b""


def _jpeg(file: ImageFile, header: bool) -> tuple[ImageFile, int | None]:
    """Segment by segment up to the first scan. What is no such sequence is handed on as it is."""
    kept, exif, xmp = [file.read(2)], b"", b""
    while True:
        start = file.read(2)
        while start == b"\xff\xff":  # fill bytes
            start = b"\xff" + file.read(1)
        marker = start[1] if len(start) == 2 and start[0] == 0xFF else 0
        if marker in _JPEG_BARE:
            kept.append(start)
            continue
        size = file.read(2)
        length = int.from_bytes(size) - 2
        body = file.read(length) if length >= 0 else b""
        if not marker or len(size) < 2 or len(body) != length:
            file.seek(0)
            return file, None
        if marker == 0xE1 and body.startswith(_EXIF):
            exif = exif if _in_exif(exif.removeprefix(_EXIF)) else body
        elif marker == 0xE1 and body.startswith(_XMP):
            xmp += body
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker in _JPEG_KEPT:
            kept += [start, size, body]
        if marker == 0xDA:
            break
    if not header:
        kept.append(file.read())
    return BytesIO(b"".join(kept)), orientation(exif, xmp)


def _tiff(content: bytes) -> tuple[ImageFile, int | None]:
    """The first page; entries of its directory that say nothing of pixels are overwritten in place."""
    patched, exif_value, xmp = bytearray(content), None, b""
    order = "<" if content[:2] == b"II" else ">"
    try:
        (version,) = struct.unpack_from(f"{order}H", content, 2)
        if version == 42:
            size, count_form, first, entry_form = 12, "H", struct.unpack_from(f"{order}I", content, 4)[0], "HHII"
        elif version == 43:
            size, count_form, first, entry_form = 20, "Q", struct.unpack_from(f"{order}Q", content, 8)[0], "HHQQ"
        else:
            return BytesIO(content), None
        (count,) = struct.unpack_from(order + count_form, content, first)
        first += struct.calcsize(count_form)
        for entry in range(first, first + size * count, size):
            tag, kind, length, value = struct.unpack_from(order + entry_form, content, entry)
            if tag in _TIFF_PIXELS:
                continue
            if tag == _ORIENTATION:
                exif_value = _value(content, order, kind, entry + size - struct.calcsize(entry_form[-1]))
            elif tag == _XMP_TAG:
                xmp = content[value : value + length]
            struct.pack_into(order + entry_form, patched, entry, _NO_TAG, 1, 1, 0)
        after = first + size * count  # where the next page's directory would be named
        patched[after : after + struct.calcsize(entry_form[-1])] = bytes(struct.calcsize(entry_form[-1]))
    except struct.error:
        return BytesIO(content), None
    return BytesIO(bytes(patched)), exif_value or orientation(None, xmp)
