"""Image files byte by byte: what no library writes, or not in that place."""

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
)


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """One chunk of a PNG."""
    right = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", right if crc is None else crc)


def png(samples: np.ndarray, depth: int, colour: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of samples (h, w, bands), with chunks before and after its pixels.

    Args:
        samples: numbers below 2^depth.
        depth: bits of a sample.
        colour: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA.
        before: further chunks.
        after: further chunks.
    """
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + packed(row.reshape(-1), depth) for row in samples)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return SIGNATURE + chunk(b"IHDR", header) + before + pixels + after + chunk(b"IEND", b"")


def adam7(samples: np.ndarray, cut: int = 0) -> bytes:
    """An interlaced PNG of RGB samples (h, w, 3), whose pixels may lack some bytes."""
    height, width = samples.shape[:2]
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(
        b"\0" + row.tobytes()
        for x, y, across, down in passes
        if samples[y::down, x::across].size
        for row in samples[y::down, x::across]
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    pixels = chunk(b"IDAT", zlib.compress(rows[: len(rows) - cut]))
    return SIGNATURE + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def packed(values: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Numbers of so many bits one behind the other, the last byte filled up; 8, 16 and 32 bits in this byte order."""
    if bits in (8, 16, 32):
        return values.astype(f"{order}u{bits // 8}").tobytes()
    text = "".join(f"{int(value):0{bits}b}" for value in values.ravel())
    text += "0" * (-len(text) % 8)
    return bytes(int(text[k : k + 8], 2) for k in range(0, len(text), 8))


def exif(orientation: int, order: str = "<", *more: bytes) -> bytes:
    """A TIFF structure that says an orientation, and further entries of 12 bytes."""
    entries = [struct.pack(f"{order}HHIHH", 274, 3, 1, orientation, 0), *more]
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return start + b"".join(entries) + bytes(4)


def tiff(
    samples: np.ndarray, bits: int, photometric: int, order: str = "<", big: bool = False, **tags: tuple[int, ...]
) -> bytes:
    """An uncompressed TIFF of samples (h, w, bands); further tags by name, ``t339=(2,)``, or ``t700=b"..."``."""
    height, width, bands = samples.shape
    if samples.dtype.kind in "if":
        data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    else:
        data = b"".join(packed(row.reshape(-1), bits, order) for row in samples)
    start = 16 if big else 8
    values: dict[int, tuple[int, ...] | bytes] = {
        256: (width,),
        257: (height,),
        258: (bits,) * bands,
        259: (1,),
        262: (photometric,),
        273: (start,),
        277: (bands,),
        278: (height,),
        279: (len(data),),
    }
    values |= {int(name[1:]): value for name, value in tags.items()}
    entry_form, room = ("HHQ8s", 8) if big else ("HHI4s", 4)
    directory = start + len(data)
    after = directory + (8 if big else 2) + len(values) * (20 if big else 12) + room
    entries, extra = b"", b""
    for tag, value in sorted(values.items()):
        kind, length = (1, len(value)) if isinstance(value, bytes) else (4 if tag in (273, 279) else 3, len(value))
        content = (
            value if isinstance(value, bytes) else struct.pack(f"{order}{length}{'H' if kind == 3 else 'I'}", *value)
        )
        if len(content) > room:
            place, extra = after + len(extra), extra + content
            content = struct.pack(f"{order}{'Q' if big else 'I'}", place)
        entries += struct.pack(f"{order}{entry_form}", tag, kind, length, content)
    head = (b"II" if order == "<" else b"MM") + (
        struct.pack(f"{order}HHHQ", 43, 8, 0, directory) if big else struct.pack(f"{order}HI", 42, directory)
    )
    count = struct.pack(f"{order}{'Q' if big else 'H'}", len(values))
    return head + data + count + entries + bytes(room) + extra


def segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    """A JPEG with one more segment in front."""
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


def without(jpeg: bytes, marker: int) -> bytes:
    """A JPEG without its segments of this kind."""
    at, kept = 2, jpeg[:2]
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        kept += jpeg[at:end] if jpeg[at + 1] != marker else b""
        at = end
    return kept + jpeg[at:]
