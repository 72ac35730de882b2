"""Every mode, depth and orientation of image file, against what the picture is known to be."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagefiles import XMP, adam7, chunk, exif, packed, png, segment, tiff, without
from imago.data.decode import Header, centre_crop, decode, read_header
from imago.data.metadata import UnreadableError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), np.uint8)
GRAY = RNG.integers(0, 256, (6, 9), np.uint8)


def file(image: Image.Image, kind: str = "png", **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def decoded(image: Image.Image, channels: int = 3, kind: str = "png", **options: object) -> np.ndarray:
    """(H, W) for gray, (H, W, 3) for RGB, at the image's own size."""
    return shown(file(image, kind, **options).getvalue(), channels)


def shown(content: bytes, channels: int = 3) -> np.ndarray:
    header = read_header(io.BytesIO(content))
    pixels = decode(io.BytesIO(content), channels, header.height, header.width, "crop")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (channels, header.height, header.width)
    return pixels[0] if channels == 1 else pixels.transpose(1, 2, 0)


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm", "webp", "gif"])
def test_rgb_is_kept_by_lossless_formats(kind: str) -> None:
    options = {"lossless": True} if kind == "webp" else {}
    source = RGB // 255 * 255 if kind == "gif" else RGB  # eight colours fit a palette
    assert (decoded(Image.fromarray(source), kind=kind, **options) == source).all()


def test_gray_is_kept_and_is_the_same_in_every_channel_of_rgb() -> None:
    assert (decoded(Image.fromarray(GRAY), 1) == GRAY).all()
    assert (decoded(Image.fromarray(GRAY), 3) == GRAY[..., None]).all()
    assert (decoded(Image.fromarray(np.repeat(GRAY[..., None], 3, 2)), 1) == GRAY).all()


@pytest.mark.parametrize("colour", [(0, 0, 200), (0, 0, 51200), (0, 0, 0), (65535, 0, 1)])
def test_a_transparent_colour_of_sixteen_bits_is_compared_whole(colour: tuple[int, ...]) -> None:
    row = np.array([[(0, 0, 200), (0, 0, 51200), (0, 0, 0), (65535, 0, 0)]])
    expected = np.where((row == colour).all(2, keepdims=True), 255, row >> 8)
    assert (shown(png(row, 16, 2, chunk(b"tRNS", struct.pack(">3H", *colour)))) == expected).all()


@pytest.mark.parametrize("boxed", [True, False])
@pytest.mark.parametrize("bands", [1, 3])
def test_white_is_white_in_jpeg_2000_of_few_bits(bands: int, boxed: bool) -> None:
    for bits in range(1, 9):
        samples = (np.arange(16 * 16 * bands) % 2**bits).astype(np.uint8).reshape(16, 16, bands)
        shifted = samples + (128 - 2 ** (bits - 1))  # the middle is stored as 0, whatever the depth
        image = Image.fromarray(shifted.astype(np.uint8).squeeze())
        content = bytearray(written(np.asarray(image), "jpeg2000", no_jp2=not boxed, irreversible=False, mct=0))
        first = content.index(b"\xff\x51") + 40
        for band in range(bands):
            assert content[first + 3 * band] == 7
            content[first + 3 * band] = bits - 1
        if boxed:
            content[content.index(b"ihdr") + 14] = bits - 1
        expected = np.rint(samples * 255.0 / (2**bits - 1))
        assert (shown(bytes(content), bands).reshape(16, 16, bands) == expected).all(), bits


@pytest.mark.parametrize("behind", [b"", b"a film\xff\xd9\xff\xda of a telephone"])
def test_the_end_of_a_cut_jpeg_is_found_before_what_was_appended(behind: bytes) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    noise[-8:, -8:] = 128  # the gray of missing blocks
    whole = written(noise, "jpeg", restart_marker_rows=1)
    assert abs(shown(whole + behind, 1).astype(int) - noise).mean() < 20
    with pytest.raises(UnreadableError, match="pixels end before"):
        shown(whole[: len(whole) // 2] + b"\xff\xd9" + behind, 1)


def test_one_bit_is_black_and_white() -> None:
    assert (decoded(Image.fromarray(GRAY > 127), 1) == (GRAY > 127) * 255).all()


def test_palette_becomes_its_colours() -> None:
    image = Image.fromarray(RGB).quantize(16)
    assert (decoded(image) == np.asarray(image.convert("RGB"))).all()


def test_jpeg_and_cmyk_come_near() -> None:
    smooth = np.linspace(0, 255, 16 * 24 * 3).reshape(16, 24, 3).astype(np.uint8)
    plain = decoded(Image.fromarray(smooth), kind="jpeg", quality=95).astype(int)
    assert abs(plain - smooth).max() < 16
    cmyk = decoded(Image.fromarray(smooth).convert("CMYK"), kind="tiff").astype(int)
    assert abs(cmyk - smooth).max() <= 1
    assert (
        abs(decoded(Image.fromarray(smooth).convert("CMYK"), kind="jpeg", quality=95).astype(int) - smooth).max() < 24
    )


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_rounded_to_eight(kind: str) -> None:
    deep = RNG.integers(0, 65536, (6, 9)).astype(np.uint16)
    deep[0, :3] = 0, 65535, 257 * 100
    found = decoded(Image.fromarray(deep), 1, kind)
    assert (found == np.rint(deep / 257)).all()
    assert found[0, :3].tolist() == [0, 255, 100]
    assert read_header(file(Image.fromarray(deep), kind)).gray


def test_transparency_lies_on_white() -> None:
    alpha = RNG.integers(0, 256, (6, 9, 1), np.uint8)
    alpha[0, :2, 0] = 0, 255
    found = decoded(Image.fromarray(np.concatenate([RGB, alpha], 2)))
    assert abs(found - (255 + (RGB.astype(float) - 255) * alpha / 255)).max() <= 1
    assert found[0, 0].tolist() == [255, 255, 255]
    assert (found[0, 1] == RGB[0, 1]).all()
    gray = decoded(Image.fromarray(np.stack([GRAY, alpha[..., 0]], 2)), 1)
    assert abs(gray - (255 + (GRAY.astype(float) - 255) * alpha[..., 0] / 255)).max() <= 1


def test_a_transparent_palette_colour_is_white() -> None:
    image = Image.fromarray(GRAY % 4).convert("L")
    image = image.convert("P")
    index = int(np.asarray(image)[0, 0])
    found = decoded(image, transparency=index)
    assert (found[np.asarray(image) == index] == 255).all()
    assert (found[np.asarray(image) != index] < 255).all()


PICTURE = np.zeros((16, 32), np.uint8)
PICTURE[:8, :8] = 255  # upper left, in a picture wider than high
STORED = {  # what is stored under an orientation, so that PICTURE is seen
    1: PICTURE,
    2: PICTURE[:, ::-1],
    3: PICTURE[::-1, ::-1],
    4: PICTURE[::-1],
    5: PICTURE.T,
    6: np.rot90(PICTURE),
    7: PICTURE[::-1, ::-1].T,
    8: np.rot90(PICTURE, -1),
}


def written(stored: np.ndarray, kind: str, **options: object) -> bytes:
    return file(Image.fromarray(np.ascontiguousarray(stored)), kind, **options).getvalue()


def raw_profile(name: bytes, content: bytes) -> bytes:
    """As ImageMagick writes metadata into texts of a PNG."""
    return b"\n" + name + b"\n%8d\n" % len(content) + content.hex().encode() + b"\n"


def oriented(where: str, k: int) -> bytes:
    """PICTURE in a file that says orientation ``k`` there alone."""
    stored, tag = np.ascontiguousarray(STORED[k]), Image.Exif()
    tag[274] = k
    xmp, gray = XMP % k, stored[..., None]
    late = where.startswith("late")
    texts = {
        "eXIf": chunk(b"eXIf", exif(k, ">" if k % 2 else "<")),
        "eXIf with its name": chunk(b"eXIf", b"Exif\0\0" + exif(k)),
        "late eXIf": chunk(b"eXIf", exif(k)),
        "iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "late iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0en\0\0" + xmp),
        "iTXt compressed": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
        "zTXt": chunk(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw_profile(b"exif", b"Exif\0\0" + exif(k)))
        ),
        "late tEXt": chunk(b"tEXt", b"Raw profile type APP1\0" + raw_profile(b"APP1", b"Exif\0\0" + exif(k))),
        "zTXt xmp": chunk(b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(raw_profile(b"xmp", xmp))),
    }
    if where in texts:
        return png(gray, 8, 0, b"" if late else texts[where], texts[where] if late else b"")
    namespace = b"http://ns.adobe.com/xap/1.0/\0"
    return {
        "jpeg": lambda: written(stored, "jpeg", exif=tag),
        "jpeg xmp": lambda: segment(written(stored, "jpeg"), 0xE1, namespace + xmp),
        "jpeg xmp element": lambda: segment(
            written(stored, "jpeg"), 0xE1, namespace + b"<tiff:Orientation>%d</tiff:Orientation>" % k
        ),
        "jpeg xmp of another prefix": lambda: segment(
            written(stored, "jpeg"), 0xE1, namespace + xmp.replace(b"tiff:", b"t:").replace(b":tiff", b":t")
        ),
        "jpeg xmp in UTF-16": lambda: segment(written(stored, "jpeg"), 0xE1, namespace + xmp.decode().encode("utf-16")),
        "jpeg second exif": lambda: segment(
            segment(written(stored, "jpeg"), 0xE1, b"Exif\0\0" + exif(k)), 0xE1, b"Exif\0\0" + exif(0)
        ),
        "jpeg both": lambda: segment(written(stored, "jpeg", exif=tag), 0xE1, namespace + XMP % (9 - k)),
        "webp": lambda: written(stored, "webp", exif=tag, lossless=True),
        "webp xmp": lambda: written(stored, "webp", xmp=xmp, lossless=True),
        "avif": lambda: written(stored, "avif", exif=tag, quality=100),
        "tiff": lambda: tiff(gray, 8, 1, t274=(k,)),
        "tiff mm": lambda: tiff(gray, 8, 1, ">", t274=(k,)),
        "tiff big": lambda: tiff(gray, 8, 1, big=True, t274=(k,)),
        "tiff lzw": lambda: written(stored, "tiff", exif=tag, compression="tiff_lzw"),
        "tiff xmp": lambda: tiff(gray, 8, 1, t700=xmp),
    }[where]()


PLACES = (
    "eXIf, eXIf with its name, late eXIf, iTXt, late iTXt, iTXt compressed, zTXt, late tEXt, zTXt xmp, jpeg, jpeg xmp, "
    "jpeg xmp element, jpeg xmp of another prefix, jpeg xmp in UTF-16, jpeg second exif, jpeg both, webp, webp xmp, "
    "avif, tiff, tiff mm, tiff big, tiff lzw, tiff xmp"
)


@pytest.mark.parametrize("where", PLACES.split(", "))
def test_orientation_is_applied_wherever_it_is_written(where: str, tmp_path: Path) -> None:
    for k in range(1, 9):
        found = shown(oriented(where, k), 1)
        assert found.shape == (16, 32), k
        assert abs(found.astype(int) - PICTURE).max() < 12, k
    (tmp_path / "x").write_bytes(oriented(where, 6))  # a file on a disk is looked at without reading its pixels
    with (tmp_path / "x").open("rb") as opened:
        assert read_header(opened) == Header(16, 32, gray=where not in ("webp", "webp xmp"))


def test_the_header_of_a_png_is_had_without_its_pixels(tmp_path: Path) -> None:
    noise = RNG.integers(0, 256, (600, 600, 3), np.uint8)
    content = png(noise, 8, 2, after=chunk(b"eXIf", exif(6)))
    (tmp_path / "x.png").write_bytes(content)
    with (tmp_path / "x.png").open("rb") as opened:
        read: list[int] = []
        assert read_header(io.BufferedReader(Counting(opened.raw, read))) == Header(600, 600, gray=False)
    assert sum(read) < 20_000 < len(content)


class Counting(io.FileIO):
    """Counts the bytes that are read."""

    def __init__(self, raw: io.FileIO, read: list[int]) -> None:
        super().__init__(raw.fileno(), closefd=False)
        self.counts = read

    def read(self, size: int = -1) -> bytes:
        content = super().read(size)
        self.counts.append(len(content))
        return content

    def readinto(self, buffer: object) -> int:
        count = super().readinto(buffer)
        self.counts.append(count)
        return count


def test_floating_point_and_deep_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="holds floating point"):
        decoded(Image.fromarray(GRAY.astype(np.float32)), 1, "tiff")
    with pytest.raises(ValueError, match="holds 32-bit integers"):
        decoded(Image.fromarray(GRAY.astype(np.int32) * 100_000), 1, "tiff")


def test_gray_is_what_is_stored_as_gray() -> None:
    assert read_header(file(Image.fromarray(GRAY))) == Header(6, 9, gray=True)
    assert read_header(file(Image.fromarray(RGB))) == Header(6, 9, gray=False)
    assert not read_header(file(Image.fromarray(np.repeat(GRAY[..., None], 3, 2)))).gray
    assert not read_header(file(Image.fromarray(GRAY).convert("P"))).gray


@pytest.mark.parametrize(
    ("size", "to", "box"),
    [
        ((100, 50), (10, 10), (25, 0, 75, 50)),
        ((50, 100), (10, 10), (0, 25, 50, 75)),
        ((50, 100), (20, 10), (0, 37.5, 50, 62.5)),
        ((40, 20), (20, 10), (0, 0, 40, 20)),
        ((5, 5), (20, 10), (0, 1.25, 5, 3.75)),
    ],
)
def test_the_crop_is_the_largest_centred_box_of_the_right_proportions(size: tuple, to: tuple, box: tuple) -> None:
    assert centre_crop(*size, *to) == pytest.approx(box)


def test_crop_loses_the_margins_and_stretch_keeps_them() -> None:
    picture = np.zeros((20, 60), np.uint8)
    picture[:, 20:40] = 255
    crop = decode(file(Image.fromarray(picture)), 1, 10, 10, "crop")
    stretch = decode(file(Image.fromarray(picture)), 1, 10, 12, "stretch")
    assert crop.shape == (1, 10, 10)
    assert (crop > 235).all()  # the filter reaches a little beyond the box
    assert (stretch[:, :, [0, -1]] == 0).all()
    assert (stretch[:, :, 5:7] > 250).all()


RAMP = np.linspace(0, 1, 54).reshape(6, 9)


def test_grays_of_every_depth_are_brought_to_eight_bits() -> None:
    levels = lambda white: np.rint(RAMP * white).astype(np.uint32)  # noqa: E731
    samples = lambda white: levels(white)[..., None]  # noqa: E731
    pgm = lambda white: b"P5\n9 6\n%d\n" % white + packed(levels(white), 8 if white < 256 else 16)  # noqa: E731
    plain = " ".join(map(str, levels(1023).ravel())).encode()
    files = {
        (4095, "tiff 12"): tiff(samples(4095), 12, 1),
        (65535, "tiff 16"): tiff(samples(65535), 16, 1),
        (65535, "tiff 16 big-endian"): tiff(samples(65535), 16, 1, ">"),
        (65535, "tiff 16 big"): tiff(samples(65535), 16, 1, big=True),
        (65535, "tiff 16 lzw"): file(
            Image.fromarray(levels(65535).astype(np.uint16)), "tiff", compression="tiff_lzw"
        ).getvalue(),
        (15, "tiff 4"): tiff(samples(15), 4, 1),
        (1, "tiff 1"): tiff(samples(1), 1, 1),
        (15, "pgm"): pgm(15),
        (1023, "pgm"): pgm(1023),
        (4095, "pgm"): pgm(4095),
        (65535, "pgm"): pgm(65535),
        (1023, "pgm as text"): b"P2\n9 6\n1023\n" + plain,
        (1, "png"): png(samples(1), 1, 0),
        (3, "png"): png(samples(3), 2, 0),
        (15, "png"): png(samples(15), 4, 0),
        (65535, "png"): png(samples(65535), 16, 0),
        (65535, "jpeg 2000"): file(Image.fromarray(levels(65535).astype(np.uint16)), "jpeg2000").getvalue(),
    }
    for (white, name), content in files.items():
        expected = levels(white) * 255 / white
        assert abs(shown(content, 1) - expected).max() <= 0.51, (white, name)
        assert read_header(io.BytesIO(content)).gray, name
    for bits in (1, 4, 8, 16):  # white is zero
        found = shown(tiff((2**bits - 1 - samples(2**bits - 1)), bits, 0), 1)
        assert abs(found - levels(2**bits - 1) * 255 / (2**bits - 1)).max() <= 0.51, bits
    inverted = [tiff(4095 - samples(4095), 12, 0), tiff(65535 - samples(65535), 16, 0, ">")]
    for content in inverted:  # not known here, so nothing wrong is made of them
        with pytest.raises(UnreadableError, match="is damaged, or in no form that is read here"):
            shown(content, 1)


def test_colours_of_sixteen_bits_keep_the_upper_eight() -> None:
    deep = RNG.integers(0, 65536, (6, 9, 3)).astype(np.uint16)
    for content in (png(deep, 16, 2), tiff(deep, 16, 2), tiff(deep, 16, 2, ">")):
        assert (shown(content) == deep >> 8).all()
    ppm = b"P6\n9 6\n1023\n" + packed(deep >> 6, 16)
    assert abs(shown(ppm) - (deep >> 6).astype(float) * 255 / 1023).max() <= 0.51
    alpha = np.where(RAMP > 0.5, 65535, 0)[..., None]
    with_alpha = shown(png(np.concatenate([deep, alpha], 2), 16, 6))
    assert (with_alpha == np.where(alpha, deep >> 8, 255)).all()
    gray = shown(png(np.concatenate([deep[..., :1], alpha], 2), 16, 4), 1)
    assert (gray == np.where(alpha, deep[..., :1] >> 8, 255)[..., 0]).all()
    assert read_header(io.BytesIO(png(np.concatenate([deep[..., :1], alpha], 2), 16, 4))).gray


def test_numbers_whose_black_and_white_are_unknown_are_refused() -> None:
    ints = GRAY[..., None].astype(int) - 100
    jpeg = file(Image.fromarray(RGB).convert("CMYK"), "jpeg").getvalue()
    files = {
        "signed numbers": [
            tiff(ints.astype(np.int8), 8, 1, t339=(2,)),
            tiff(ints.astype(np.int16), 16, 1, t339=(2,)),
            tiff(ints.astype(np.int16), 16, 1, ">", t339=(2,)),
        ],
        "32-bit integers": [
            tiff(ints.astype(np.int32), 32, 1, t339=(2,)),
            tiff(GRAY[..., None].astype(np.uint32), 32, 1),
        ],
        "floating point": [
            tiff(ints.astype(np.float32), 32, 1, t339=(3,)),
            b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5),
        ],
        "CMYK without Adobe's marker": [without(jpeg, 0xEE)],
        "no form that is read here": [
            tiff(GRAY[..., None].astype(np.uint32), 10, 1),
            tiff(GRAY[..., None].astype(np.uint32), 14, 1),
            tiff(ints.astype(np.float16), 16, 1, t339=(3,)),
            tiff(ints.astype(np.float64), 64, 1, t339=(3,)),
        ],
    }
    for what, contents in files.items():
        for content in contents:
            with pytest.raises(UnreadableError, match=f"{what}.*convert it to"):
                shown(content, 1)


def test_every_meaning_of_the_samples() -> None:
    lab = np.zeros((6, 9, 3), np.uint8)
    lab[..., 0] = np.rint(RAMP * 255)  # lightness; a and b are signed, 0 is gray
    for channels in (1, 3):
        gray = shown(tiff(lab, 8, 8), channels)
        assert gray.min() < 5
        assert gray.max() > 250
    assert (np.ptp(shown(tiff(lab, 8, 8)).astype(int), axis=2) <= 3).all()
    cmyk = np.stack([GRAY, 255 - GRAY, GRAY // 2, np.zeros_like(GRAY)], 2)  # ink, so 255 is none of that colour
    assert abs(shown(tiff(cmyk, 8, 5)) - (255 - cmyk[..., :3].astype(int))).max() <= 1
    alpha = RNG.integers(0, 256, (6, 9, 1)).astype(np.uint8)
    on_white = lambda colour: 255 + (colour.astype(float) - 255) * alpha / 255  # noqa: E731
    straight = np.concatenate([RGB, alpha], 2)
    premultiplied = np.concatenate([np.rint(RGB * (alpha / 255)).astype(np.uint8), alpha], 2)
    assert abs(shown(tiff(straight, 8, 2, t338=(2,))) - on_white(RGB)).max() <= 1
    assert abs(shown(tiff(premultiplied, 8, 2, t338=(1,))) - on_white(RGB)).max() <= 1.5
    assert (shown(tiff(straight, 8, 2, t338=(0,))) == RGB).all()  # a fourth sample that is no transparency
    gray = GRAY[..., None]
    straight, premultiplied = np.concatenate([gray, alpha], 2), np.concatenate([gray * (alpha / 255), alpha], 2)
    for channels in (1, 3):
        for content in (
            tiff(straight, 8, 1, t338=(2,)),
            tiff(np.rint(premultiplied).astype(np.uint8), 8, 1, t338=(1,)),
        ):
            found = shown(content, channels)
            assert abs((found if channels == 1 else found[..., 0]) - on_white(gray)[..., 0]).max() <= 1.5


def test_a_colour_that_is_named_transparent_is_white() -> None:
    for depth, value in ((1, 1), (1, 0), (2, 1), (4, 7), (8, 100), (16, 1000)):
        samples = np.arange(54).reshape(6, 9, 1) % min(2**depth, 54)
        samples[0, 0] = value
        found = shown(png(samples, depth, 0, chunk(b"tRNS", struct.pack(">H", value))), 1)
        expected = np.where(samples == value, 255, samples * 255 // (2**depth - 1))[..., 0]
        assert abs(found.astype(int) - expected).max() <= 1, depth
    for depth in (8, 16):
        samples = RNG.integers(0, 2**depth, (6, 9, 3))
        found = shown(png(samples, depth, 2, chunk(b"tRNS", struct.pack(">3H", *samples[2, 3]))))
        assert found[2, 3].tolist() == [255, 255, 255]
        assert (found != 255).any(2).sum() >= 50
    palette = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0, 0, 0, 255])) + chunk(b"tRNS", bytes([255, 0, 128]))
    found = shown(png(np.arange(54).reshape(6, 9, 1) % 3, 8, 3, palette))
    assert found[0, :3].tolist() == [[255, 0, 0], [255, 255, 255], [127, 127, 255]]


@pytest.mark.filterwarnings("ignore")  # as whoever decodes does
def test_whole_pixels_under_broken_or_huge_metadata_are_read() -> None:
    plain = png(RGB, 8, 2)
    broken = struct.pack("<HHII", 0x11A, 10, 1, 2**31), struct.pack("<HHIhh", 0x100, 8, 1, -5, 0)
    bomb = zlib.compress(bytes(2**26))
    chunks = {
        "eXIf of nothing": chunk(b"eXIf", b"garbage"),
        "eXIf in a circle": chunk(b"eXIf", exif(1, "<", struct.pack("<HHII", 0x8769, 4, 1, 8))),
        "eXIf that ends too early": chunk(b"eXIf", exif(1)[:-9]),
        "eXIf with a wrong checksum": chunk(b"eXIf", exif(1), crc=1),
        "text that unpacks to 64 MB": chunk(b"zTXt", b"Comment\0\0" + bomb),
        "XMP that unpacks to 64 MB": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
        "profile that unpacks to 64 MB": chunk(b"iCCP", b"x\0\0" + bomb),
        "text that is no zlib": chunk(b"zTXt", b"Raw profile type exif\0\0nonsense"),
        "text that is no hexadecimal": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzz"),
        "unknown chunks": chunk(b"prIv", b"x" * 70_000) + chunk(b"gAMA", b"") + chunk(b"cHRM", b"1"),
        "pHYs of nothing": chunk(b"pHYs", b""),
    }
    for what, data in chunks.items():
        for content in (png(RGB, 8, 2, before=data), png(RGB, 8, 2, after=data)):
            assert (shown(content) == RGB).all(), what
    assert (shown(plain[:-12]) == RGB).all(), "without its end"
    assert (shown(plain + b"trailing bytes") == RGB).all()
    jpeg = written(PICTURE, "jpeg", quality=95)
    pixels = shown(jpeg, 1)
    segments = {
        "rational": segment(jpeg, 0xE1, b"Exif\0\0" + exif(1, "<", *broken)),
        "nothing": segment(jpeg, 0xE1, b"Exif\0\0garbage"),
        "profile": segment(jpeg, 0xE2, b"ICC_PROFILE\0\x09\x01" + b"x" * 60_000),
        "several pictures": segment(jpeg, 0xE2, b"MPF\0II*\0\x08\0\0\0garbage"),
        "photoshop": segment(jpeg, 0xED, b"Photoshop 3.0\08BIM\x04\x04\0\0\0\0\xff\xff"),
        "comment": segment(jpeg, 0xFE, b"\xff" * 1000),
    }
    for what, content in segments.items():
        assert (shown(content, 1) == pixels).all(), what
    turned = segment(written(STORED[6], "jpeg", quality=95), 0xE1, b"Exif\0\0" + exif(6, "<", *broken))
    assert shown(turned, 1).shape == PICTURE.shape
    page = tiff(GRAY[..., None], 8, 1, t305=(1, 2, 3), t34665=(60_000,), t34853=(2,), t33723=(7,), t700=b"\xff" * 50)
    assert (shown(page, 1) == GRAY).all()
    again = struct.pack("<I", struct.unpack_from("<I", page, 4)[0])  # the next page is the first one
    assert (shown(page.replace(bytes(4) + b"\xff" * 50, again + b"\xff" * 50), 1) == GRAY).all()


def test_incomplete_pixels_are_never_read(capfd: pytest.CaptureFixture[str]) -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8))
    for kind in ("png", "jpeg", "webp", "bmp", "tiff", "ppm", "gif", "avif", "jpeg2000", "qoi", "ico"):
        content = file(noise, kind).getvalue()
        assert shown(content).shape == (64, 64, 3)
        for share in (0.05, 0.5, 0.95):
            with pytest.raises(Exception, match=r".+"):
                print(kind, share, shown(content[: int(len(content) * share)]).shape)
    content = bytearray(file(noise, "png").getvalue())
    content[len(content) // 2] ^= 1
    for depth, colour in ((1, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 6), (4, 3)):  # rows that were never written
        samples = RNG.integers(0, 2, (9, 13, {0: 1, 2: 3, 3: 1, 6: 4}[colour]))
        palette = chunk(b"PLTE", bytes(48))
        whole, short = png(samples, depth, colour, palette), png(samples[:-1], depth, colour, palette)
        assert shown(whole).shape[:2] == (9, 13)
        with pytest.raises(UnreadableError, match=r"its pixels unpack to [0-9,]+ bytes instead of"):
            shown(whole[:33] + short[33:])
    for size in ((1, 1), (3, 2), (5, 9), (64, 64)):  # an interlaced one
        samples = np.zeros((*size, 3), np.uint8)
        assert shown(adam7(samples)).shape == (*size, 3)
        with pytest.raises((UnreadableError, OSError), match=r"its pixels unpack to|image file is truncated"):
            shown(adam7(samples, cut=1))
    with pytest.raises(UnreadableError, match="the checksum of its IDAT chunk does not fit"):
        shown(bytes(content))
    assert capfd.readouterr().err == ""


def test_a_jpeg_that_was_cut_and_given_an_end_is_refused() -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8))
    gray = Image.new("RGB", (64, 64), (128, 128, 128))  # looks as if pixels were missing
    for image in (noise, noise.convert("L"), noise.convert("CMYK")):
        for options in ({}, {"restart_marker_rows": 1}, {"subsampling": 0}):
            content = file(image, "jpeg", **options).getvalue()
            assert shown(content).shape == (64, 64, 3)
            for share in (0.4, 0.7, 0.9):
                with pytest.raises(UnreadableError, match="its pixels end before those of its last row"):
                    shown(content[: int(len(content) * share)] + b"\xff\xd9")
            taller = content.index(b"\xff\xc0") + 5
            with pytest.raises(UnreadableError, match="its pixels end before those of its last row"):
                shown(content[:taller] + struct.pack(">H", 160) + content[taller + 2 :])
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
        assert (shown(file(gray, "jpeg", **options).getvalue()) == 128).all()


def test_ordinary_files_are_what_pillow_makes_of_them() -> None:
    """Nothing that makes pixels is left out with the metadata."""
    rgb = Image.fromarray(np.linspace(0, 255, 40 * 56 * 3).reshape(40, 56, 3).astype(np.uint8))
    turned, few = rgb.rotate(180), rgb.quantize(16)
    several = {"save_all": True, "append_images": [turned]}
    files: list[tuple[str, Image.Image, dict[str, object]]] = [
        *(
            ("tiff", rgb, {"compression": c})
            for c in ("jpeg", "tiff_deflate", "packbits", "tiff_lzw", "zstd", "lzma", "lerc")
        ),
        *(("tiff", rgb.convert("1"), {"compression": c}) for c in ("group3", "group4", "tiff_ccitt")),
        *(("tiff", rgb.convert(mode), {}) for mode in ("1", "LA", "RGBA", "CMYK", "YCbCr", "P")),
        ("tiff", rgb, {"compression": "tiff_lzw", "tiffinfo": {317: 2}}),
        ("tiff", rgb.convert("YCbCr"), {"compression": "jpeg"}),
        ("tiff", rgb, several),
        ("tiff", rgb, {"dpi": (300, 300), "icc_profile": b"x" * 500}),
        *(("jpeg", rgb, {o: True}) for o in ("progressive", "keep_rgb", "optimize", "restart_marker_rows")),
        *(("jpeg", rgb.convert(mode), {}) for mode in ("L", "CMYK", "YCbCr")),
        ("jpeg", rgb, {"icc_profile": b"x" * 70_000, "comment": b"hello", "dpi": (72, 72), "xmp": b"<x/>"}),
        *((kind, rgb, several) for kind in ("mpo", "webp", "png", "avif")),
        ("png", rgb, several | {"default_image": True}),
        ("gif", few, {"save_all": True, "append_images": [turned.quantize(16)]}),
        *(("png", few, {"transparency": t}) for t in (3, bytes(range(0, 256, 16)))),
        ("png", rgb.quantize(4), {"bits": 2}),
        ("png", rgb, {"icc_profile": b"abc" * 1000, "dpi": (72, 72)}),
        *((kind, rgb.convert("RGBA"), {}) for kind in ("bmp", "ico", "icns", "jpeg2000", "qoi", "webp")),
        *((kind, rgb.convert("1"), {}) for kind in ("bmp", "ppm", "png")),
        ("jpeg2000", rgb.convert("YCbCr"), {"no_jp2": True}),
    ]
    for kind, image, options in files:
        content = file(image, kind, **options).getvalue()
        expected = Image.open(io.BytesIO(content))
        if expected.has_transparency_data:
            white = Image.new("RGBA", expected.size, "white")
            white.alpha_composite(expected.convert("RGBA"))
            expected = white
        assert (shown(content) == np.asarray(expected.convert("RGB"))).all(), (kind, image.mode, options)


def test_a_picture_too_large_for_any_memory_is_refused_in_a_line() -> None:
    huge = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    plain = png(RGB, 8, 2)
    with pytest.raises(Image.DecompressionBombError, match="exceeds limit"):
        shown(plain[:8] + huge + plain[33:])
    with pytest.raises(Image.DecompressionBombError, match="exceeds limit"):
        shown(b"P6\n100000 100000\n255\n" + bytes(100))
