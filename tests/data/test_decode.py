"""Every mode, depth and orientation of image file, against what the picture is known to be."""

import io

import numpy as np
import pytest
from PIL import Image

from imago.data.decode import Header, centre_crop, decode, read_header

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
    buffer = file(image, kind, **options)
    header = read_header(buffer)
    buffer.seek(0)
    pixels = decode(buffer, channels, header.height, header.width, "crop")
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


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    picture = np.zeros((16, 32), np.uint8)
    picture[:8, :8] = 255  # upper left, in a picture wider than high
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](picture)))
    found = decoded(stored, 1, kind, exif=exif)
    assert found.shape == (16, 32)
    assert abs(found.astype(int) - picture).max() < 8


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
