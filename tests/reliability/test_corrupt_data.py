"""Promise 6: whatever is in the data, it is read right or refused in one message that says what to do.

Every line of the table is an input: a file of some format and what happened to it. It ends as the right pixels or as
one UserError with a remedy, within seconds; never as another exception, and never as fewer images without a word.
"""

import gzip
import io
import json
import os
import re
import shutil
import signal
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagefiles import chunk, png, tiff
from imago.data import ImageDataModule, Source, folder_data
from imago.data.sources import CIFAR10, MNIST, ImageNet32, cifar10, imagenet32, mnist
from imago.errors import UserError

RNG = np.random.default_rng(0)
DEAD = "http://127.0.0.1:9"  # nobody listens there
REMEDY = re.compile(r"\b(Delete|delete|Repair|Get|Give|Set|set|Move|Change|Add|Unpack|Leave|Number|expected|convert)\b")
SECONDS = 30

Damage = Callable[[bytes], bytes]
Make = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published files of as few images as a test can write."""
    monkeypatch.setattr(mnist, "COUNTS", (60, 10))
    monkeypatch.setattr(cifar10, "RECORDS", 5)
    monkeypatch.setattr(imagenet32, "COUNTS", (30, 3))


# --- pictures -------------------------------------------------------------------------------------------------------

PICTURE = np.zeros((8, 8, 3), np.uint8)
PICTURE[:4] = 250  # flat areas, which lossy formats keep


def encoded(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, kind, **options)
    return buffer.getvalue()


FORMATS = {
    "png": lambda: encoded("png"),
    "jpg": lambda: encoded("jpeg", quality=100, subsampling=0),
    "webp": lambda: encoded("webp", lossless=True),
    "bmp": lambda: encoded("bmp"),
    "tif": lambda: encoded("tiff"),
    "tiff": lambda: encoded("tiff", compression="tiff_lzw"),
    "ppm": lambda: encoded("ppm"),
    "gif": lambda: encoded("gif"),
    "avif": lambda: encoded("avif", quality=100, subsampling="4:4:4"),
    "jp2": lambda: encoded("jpeg2000"),
    "qoi": lambda: encoded("qoi"),
    "ico": lambda: encoded("ico", sizes=[(8, 8)]),
}
SPOILT: dict[str, Damage] = {
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "cut in the header": lambda content: content[:14],
    "cut in the middle": lambda content: content[: len(content) // 2],
    "another magic": lambda content: b"\0\0\0\0" + content[4:],
    "a page of a server": lambda content: b"<html><body>404 not found</body></html>",
    "zeros behind the header": lambda content: content[:12] + bytes(len(content) - 12),
    "a pointer of git": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
}
UNHURT: dict[str, Damage] = {
    "as it was": lambda content: content,
    "of another format": lambda content: encoded("png"),
    "with bytes behind": lambda content: content + b"trailing" * 20,
}
SPECIAL: dict[str, Make] = {
    "a pipe": os.mkfifo,
    "a link to nowhere": lambda file: file.symlink_to("nowhere"),
    "a link to itself": lambda file: file.symlink_to(file.name),
}


def beside_good_ones(folder: Path) -> None:
    """Five pictures of two classes."""
    for k in range(5):
        place = folder / "pictures" / "ab"[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 40 * k, np.uint8)).save(place / f"{k}.png")


def load(folder: Path, **settings: Any) -> list[np.ndarray]:
    os.makedirs(folder / "data", exist_ok=True)  # noqa: PTH103 - a test takes Path apart
    name = "pictures.zip" if (folder / "pictures.zip").exists() else "pictures"
    data = folder_data(str(folder / name), dir=str(folder / "data"), batch_size=1, **settings)
    data.prepare()
    return images_of(data)


def images_of(data: ImageDataModule) -> list[np.ndarray]:
    return [image.numpy() for part in (data.train, data.val, data.test) for image in part.images]


def grays(images: list[np.ndarray]) -> list[int]:
    """The gray of each flat image, -1 for another."""
    return sorted(int(image.max()) if np.ptp(image) == 0 else -1 for image in images)


def refused(work: Callable[[], object]) -> str:
    """The message that the work ends with: one, with a remedy."""
    with pytest.raises(UserError) as caught:
        work()
    message = str(caught.value)
    assert REMEDY.search(message), message
    assert "Traceback" not in message
    return message


PICTURES = [(suffix, how) for suffix in FORMATS for how in (*SPOILT, *UNHURT, *SPECIAL)]
PICTURES.remove(("ppm", "zeros behind the header"))  # a black picture


@pytest.mark.parametrize(("suffix", "damage"), PICTURES)
def test_a_picture(suffix: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside_good_ones(tmp_path)
    file = tmp_path / "pictures" / "a" / f"x.{suffix}"
    if damage in SPECIAL:
        SPECIAL[damage](file)
    else:
        file.write_bytes((SPOILT | UNHURT)[damage](FORMATS[suffix]()))
    if damage in UNHURT:
        images = load(tmp_path)
        assert grays(images) == [-1, 0, 40, 80, 120, 160]
        (found,) = (image for image in images if np.ptp(image))
        assert abs(found.transpose(1, 2, 0).astype(int) - PICTURE).max() <= 6
        return
    message = refused(lambda: load(tmp_path))
    assert f"1 unreadable image file:\n  a/x.{suffix}: " in message
    assert grays(load(tmp_path, on_bad="skip")) == [0, 40, 80, 120, 160]
    assert f"leaving out 1 unreadable image file:\n  a/x.{suffix}: " in capsys.readouterr().err


def with_size(width: int, height: int) -> bytes:
    plain = png(PICTURE, 8, 2)
    return plain[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + plain[33:]


DECLARED = {
    "a PNG of 10^5 by 10^5": with_size(100_000, 100_000),
    "a PNG of no width": with_size(0, 8),
    "a PNG of more rows than it has": with_size(8, 9),
    "a PPM of 10^5 by 10^5": b"P6\n100000 100000\n255\n" + bytes(300),
    "a PPM of negative size": b"P6\n-8 8\n255\n" + bytes(300),
    "a PGM as text without numbers": b"P2\n8 8\n255\n" + b"x " * 64,
    "a PPM without a maximum": b"P6\n8 8\n0\n" + bytes(300),
    "a BMP of 10^5 by 10^5": b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 10**5, 10**5, 1, 24, 0, 0, 0, 0, 0, 0),
    "a GIF without frames": b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b";",
    "a TIFF that points behind its end": b"II*\0" + struct.pack("<I", 10**9),
    "a TIFF without entries": b"II*\0" + struct.pack("<IHI", 8, 0, 0),
    "a TIFF in a circle": b"II*\0" + struct.pack("<IHI", 8, 0, 8),
    "a TIFF of 65535 entries": b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(100),
    "a TIFF of 2^31 rows": tiff(PICTURE, 8, 2, t257=(2**16 - 1,), t256=(2**16 - 1,)),
    "a TIFF without rows in a strip": tiff(PICTURE, 8, 2, t278=(0,)),
    "a TIFF of 64 samples": tiff(PICTURE, 8, 2, t277=(64,)),
    "a QOI of 2^31 rows": b"qoif" + struct.pack(">IIBB", 8, 2**31, 3, 0) + bytes(20),
    "a JPEG without a table": b"\xff\xd8\xff\xc0\0\x0b\x08\0\x08\0\x08\1\1\x11\0\xff\xda\0\x08\1\1\0\0?\0",
    "a WebP of nothing": b"RIFF\x0c\0\0\0WEBPVP8 \0\0\0\0",
    "an ICO of itself": b"\0\0\1\0\1\0\x08\x08\0\0\1\0\x18\0\x16\0\0\0\0\0\0\0",
    "an ICO of 65535 pictures": b"\0\0\1\0\xff\xff" + bytes(100),
    "a PNG whose palette is missing": png(PICTURE[..., :1], 8, 3),
    "a PNG of an unknown depth": png(PICTURE, 8, 5),
    "a PNG without pixels": png(PICTURE, 8, 2)[:33] + chunk(b"IEND", b""),
    "a PNG whose pixels are no zlib": png(PICTURE, 8, 2)[:33] + chunk(b"IDAT", b"x" * 99) + chunk(b"IEND", b""),
    "a PNG with a wrong checksum": png(PICTURE, 8, 2)[:33] + chunk(b"IDAT", b"x" * 99, crc=1),
}


@pytest.mark.parametrize("what", DECLARED)
def test_a_header_that_lies(what: str, tmp_path: Path) -> None:
    beside_good_ones(tmp_path)
    (tmp_path / "pictures" / "b" / "x.png").write_bytes(DECLARED[what])
    assert "1 unreadable image file:\n  b/x.png: " in refused(lambda: load(tmp_path, size=8))
    assert grays(load(tmp_path, size=8, on_bad="skip")) == [0, 40, 80, 120, 160]


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside_good_ones(tmp_path)
    load(tmp_path)
    opened = Path.open

    def closed(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "3.png":
            raise PermissionError(13, "Permission denied")  # a superuser may read everything
        return opened(self, *arguments, **options)

    shutil.rmtree(tmp_path / "data" / "cache")
    monkeypatch.setattr(Path, "open", closed)
    assert "b/3.png: PermissionError: [Errno 13] Permission denied" in refused(lambda: load(tmp_path))
    monkeypatch.undo()
    monkeypatch.setattr(os, "scandir", lambda path: closed(Path("3.png")))
    assert "a folder cannot be read" in refused(lambda: load(tmp_path))
    monkeypatch.setattr(Path, "stat", lambda self, **options: closed(Path("3.png")))
    assert "there is no such folder, zip or tar file (Permission denied)" in refused(
        lambda: folder_data(str(tmp_path / "pictures"))
    )


# --- archives -------------------------------------------------------------------------------------------------------


def swap(old: bytes, new: bytes) -> Damage:
    return lambda content: content.replace(old, new)


def flip(place: int) -> Damage:
    return lambda content: content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]


ARCHIVES: dict[str, Damage] = {
    **{name: SPOILT[name] for name in ("empty", "one byte", "cut in the middle", "a page of a server")},
    "without its directory": lambda content: content[: content.index(b"PK\x01\x02")],
    "without its end": lambda content: content[:-22],
    "the second half": lambda content: content[len(content) // 2 :],
    "members encrypted": swap(b"PK\x01\x02\x14\x03\x14\0\0", b"PK\x01\x02\x14\x03\x14\0\1"),
    "members of an unknown compression": swap(
        b"PK\x01\x02\x14\x03\x14\0\0\0\0\0", b"PK\x01\x02\x14\x03\x14\0\0\0\x63\0"
    ),
    "members of deflate64": swap(b"PK\x01\x02\x14\x03\x14\0\0\0\0\0", b"PK\x01\x02\x14\x03\x14\0\0\0\x09\0"),
    "pixels changed": flip(80),
    "names changed in one place": swap(b"PK\x03\x04\x14\0\0\0\0\0\0\0!\0\0\0", b"PK\x03\x04\x14\0\0\0\0\0\0\0!\0\0\0"),
    "a comment that never ends": lambda content: content[:-2] + b"\xff\xff",
    "of a later version": swap(b"PK\x01\x02\x14\x03\x14\0", b"PK\x01\x02\x14\x03\xff\0"),
}


@pytest.mark.parametrize("how", ARCHIVES)
def test_an_archive(how: str, tmp_path: Path) -> None:
    beside_good_ones(tmp_path)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for file in sorted((tmp_path / "pictures").rglob("*.png")):
            archive.writestr(zipfile.ZipInfo(file.relative_to(tmp_path / "pictures").as_posix()), file.read_bytes())
    content = (tmp_path / "pictures.zip").read_bytes()
    (tmp_path / "pictures.zip").write_bytes(ARCHIVES[how](content))
    if how in ("names changed in one place", "a comment that never ends"):
        assert grays(load(tmp_path)) == [0, 40, 80, 120, 160]
    else:
        refused(lambda: load(tmp_path))


LISTINGS = {
    "empty": b"",
    "not JSON": b"labels: []",
    "deep": b"[" * 99_999,
    "a list": b"[]",
    "without labels": b"{}",
    "in UTF-16 by half": b"\xff\xfe{\0",
    "of a number": b'{"labels": 1}',
    "of zero": b'{"labels": 0}',
    "of false": b'{"labels": false}',
    "of an empty text": b'{"labels": ""}',
    "of texts": b'{"labels": ["a/0.png"]}',
    "of triples": b'{"labels": [["a/0.png", 0, 1]]}',
    "for one image": b'{"labels": [["a/0.png", 0]]}',
    **{
        f"with the label {label}": json.dumps({"labels": [[f"{'ab'[k % 2]}/{k}.png", 0] for k in range(5)]})
        .replace("0]]", f"{label}]]")
        .encode()
        for label in ("-1", "5", "1000000000", "1e999", "NaN", "true", "null", '"0"', "0.0", "[0]", "{}", "9" * 5000)
    },
}


@pytest.mark.parametrize("how", [*LISTINGS, "a pipe"])
def test_a_list_of_labels(how: str, tmp_path: Path) -> None:
    beside_good_ones(tmp_path)
    if how == "a pipe":
        os.mkfifo(tmp_path / "pictures" / "dataset.json")
    else:
        (tmp_path / "pictures" / "dataset.json").write_bytes(LISTINGS[how])
    assert "dataset.json" in refused(lambda: load(tmp_path))


# --- published data -------------------------------------------------------------------------------------------------


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path) -> Source:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 60), ("t10k", 10)):
        images, labels = RNG.integers(0, 256, (count, 28, 28), np.uint8), RNG.integers(0, 10, count).astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return MNIST(url=DEAD)


def write_cifar10(folder: Path) -> Source:
    (folder / "cifar-10-batches-bin").mkdir()
    for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
        records = RNG.integers(0, 256, (5, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / "cifar-10-batches-bin" / name).write_bytes(records.tobytes())
    return CIFAR10(url=f"{DEAD}/cifar-10-binary.tar.gz")


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **arrays)
    return buffer.getvalue()


def write_imagenet32(folder: Path) -> Source:
    (folder / "imagenet32").mkdir()
    for name in (*(f"train_data_batch_{k}" for k in range(1, 11)), "val_data"):
        content = npz(data=RNG.integers(0, 256, (3, 3072), np.uint8), labels=RNG.integers(1, 1001, 3))
        (folder / "imagenet32" / f"{name}.npz").write_bytes(content)
    return ImageNet32()


ANY = {
    **{name: SPOILT[name] for name in ("empty", "one byte", "cut in the header", "cut in the middle", "another magic")},
    "a page of a server": SPOILT["a page of a server"],
    "one byte less": lambda content: content[:-1],
}
IDX = {
    "one byte more": lambda content: content + b"x",
    "a header cut short": lambda content: content[:9],
    "of floating point": lambda content: content[:2] + b"\x0d" + content[3:],
    "of no dimension": lambda content: content[:3] + b"\0" + content[4:],
    "of 255 dimensions": lambda content: content[:3] + b"\xff" + content[4:],
    "of 2^32 images": lambda content: content[:4] + b"\xff" * 12 + content[16:],
    "of other sizes": lambda content: content[:8] + struct.pack(">II", 14, 56) + content[16:],
    "of fewer images": lambda content: idx(np.zeros((59, 28, 28), np.uint8)),
    "labels instead": lambda content: idx(np.zeros(60, np.uint8)),
    "compressed under the plain name": gzip.compress,
}
GZ = {
    "not compressed": gzip.decompress,
    "compressed twice": gzip.compress,
    "a wrong checksum": flip(-6),
    "changed inside": flip(20),
    "of fewer labels": lambda content: gzip.compress(idx(np.zeros(59, np.uint8))),
    "of a label 10": lambda content: gzip.compress(idx(np.full(60, 10, np.uint8))),
    "images instead": lambda content: gzip.compress(idx(np.zeros((60, 28, 28), np.uint8))),
    "bytes behind": lambda content: content + b"trailing",
    "a bomb": lambda content: gzip.compress(bytes(2**28), 1),
}
RECORDS = {
    "one byte more": lambda content: content + b"x",
    "one record less": lambda content: content[:-3073],
    "a label 10": lambda content: b"\x0a" + content[1:],
    "shifted by a byte": lambda content: b"\xff" + content[:-1],
}
IMAGES, LABELS = np.zeros((3, 3072), np.uint8), np.ones(3, np.int64)
NPZ = {
    "an array of images alone": lambda content: npz(data=IMAGES),
    "labels alone": lambda content: npz(labels=LABELS),
    "a label 0": lambda content: npz(data=IMAGES, labels=LABELS - 1),
    "a label 1001": lambda content: npz(data=IMAGES, labels=LABELS + 1000),
    "labels with fractions": lambda content: npz(data=IMAGES, labels=LABELS + 0.5),
    "labels of texts": lambda content: npz(data=IMAGES, labels=np.array(["a", "b", "c"])),
    "labels of objects": lambda content: npz(data=IMAGES, labels=np.array([1, None, {}], object)),
    "labels in a table": lambda content: npz(data=IMAGES, labels=LABELS[None]),
    "one label less": lambda content: npz(data=IMAGES, labels=LABELS[:2]),
    "one image less": lambda content: npz(data=IMAGES[:2], labels=LABELS[:2]),
    "no images": lambda content: npz(data=IMAGES[:0], labels=LABELS[:0]),
    "images of floating point": lambda content: npz(data=IMAGES / 255, labels=LABELS),
    "images of another size": lambda content: npz(data=np.zeros((3, 64 * 64 * 3), np.uint8), labels=LABELS),
    "pixels changed": flip(1000),
    "an array of 2^60 numbers": swap(b"(3, 3072)", b"(2**60,) "),
    "a header that is no table": swap(b"{'descr'", b"[descr':"),
}


def other_things(file: Path) -> dict[str, Callable[[], object]]:
    return {"a folder": file.mkdir, "a pipe": lambda: os.mkfifo(file), "missing": lambda: None}


TABLE = [
    *((write_mnist, "MNIST/raw/train-images-idx3-ubyte", how) for how in (*ANY, *IDX, "a folder", "a pipe", "missing")),
    *((write_mnist, "MNIST/raw/t10k-images-idx3-ubyte", how) for how in (*ANY, "a folder", "a pipe", "missing")),
    *((write_mnist, "MNIST/raw/train-labels-idx1-ubyte.gz", how)
      for how in (*ANY, *GZ, "a folder", "a pipe", "missing")),
    *((write_cifar10, f"cifar-10-batches-bin/{name}.bin", how) for name in ("data_batch_3", "test_batch")
      for how in (*ANY, *RECORDS, "a folder", "a pipe", "missing")),
    *((write_imagenet32, f"imagenet32/{name}.npz", how) for name in ("train_data_batch_7", "val_data") for how in
      (*ANY, *NPZ, "a folder", "a pipe", "missing")),
]  # fmt: skip


def damages_of(name: str) -> dict[str, Damage]:
    kind = {"yte": IDX, ".gz": GZ, "bin": RECORDS, "npz": NPZ}[name[-3:]]
    return ANY | kind


@pytest.mark.parametrize(("write", "name", "how"), TABLE, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_published_file(write: Callable[[Path], Source], name: str, how: str, tmp_path: Path) -> None:
    source = write(tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    if how == "another magic" and name.endswith(".bin"):
        content = b"\xff" + content[1:]  # a file of records has none
        file.write_bytes(content)
    else:
        damages = damages_of(name)
        file.unlink()
        if how in damages:
            file.write_bytes(damages[how](content))
        else:
            other_things(file)[how]()
    message = refused(lambda: source.load(tmp_path))
    assert file.name in message or file.parent.name in message
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("write", "one", "other"),
    [
        (write_mnist, "MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/t10k-images-idx3-ubyte"),
        (write_mnist, "MNIST/raw/train-labels-idx1-ubyte.gz", "MNIST/raw/t10k-labels-idx1-ubyte.gz"),
    ],
)
def test_swapped_files(write: Callable[[Path], Source], one: str, other: str, tmp_path: Path) -> None:
    source = write(tmp_path)
    (tmp_path / one).rename(tmp_path / "aside")
    (tmp_path / other).rename(tmp_path / one)
    (tmp_path / "aside").rename(tmp_path / other)
    assert "swapped" in refused(lambda: source.load(tmp_path))


def test_train_and_test_swapped_alike(tmp_path: Path) -> None:
    """Images and labels fit each other then: only their number tells."""
    source, raw = write_mnist(tmp_path), tmp_path / "MNIST" / "raw"
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte.gz"):
        (raw / f"train-{kind}").rename(raw / "aside")
        (raw / f"t10k-{kind}").rename(raw / f"train-{kind}")
        (raw / "aside").rename(raw / f"t10k-{kind}")
    assert "swapped" in refused(lambda: source.load(tmp_path))


def test_a_folder_that_may_not_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    for write in (write_mnist, write_cifar10, write_imagenet32):
        data = ImageDataModule(write(tmp_path), batch_size=1, dir=str(tmp_path))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "exists", denied)
            assert "Permission denied" in refused(data.prepare)


def test_the_undamaged_files_are_read(tmp_path: Path) -> None:
    for write, count in ((write_mnist, 70), (write_cifar10, 30), (write_imagenet32, 33)):
        splits = write(tmp_path).load(tmp_path)
        assert len(splits.train) + len(splits.test) == count


# --- flips ----------------------------------------------------------------------------------------------------------


def fuzz(folder: Path, flips: int) -> None:
    """Pictures with one to four changed bytes each, all formats in turn."""
    kinds = list(FORMATS)
    (folder / "pictures").mkdir(parents=True)
    for k in range(flips):
        content = bytearray(FORMATS[kinds[k % len(kinds)]]())
        for place in RNG.integers(0, len(content), RNG.integers(1, 5)):
            content[place] ^= int(RNG.integers(1, 256))
        (folder / "pictures" / f"{k}.{kinds[k % len(kinds)]}").write_bytes(content)
    for k in range(3):
        (folder / "pictures" / f"whole{k}.png").write_bytes(encoded("png"))
    with pytest.raises(UserError) as caught:
        load(folder, size=8)
    said = int(str(caught.value).split("unreadable")[0].split(": ")[-1].replace(",", ""))
    assert len(load(folder, size=8, on_bad="skip")) == flips + 3 - said
    (report,) = (folder / "data" / "cache").glob("*.json")
    bad = json.loads(report.read_text())["unreadable"]
    assert len(bad) == said
    # What has checksums is read right or not at all.
    shutil.rmtree(folder / "data")
    for file in (folder / "pictures").iterdir():
        if file.suffix != ".png" or file.name in bad:
            file.unlink()
    assert all((image.transpose(1, 2, 0) == PICTURE).all() for image in load(folder, size=8))


def fuzz_published(folder: Path, flips: int) -> None:
    """Changed bytes where there are checksums: the right numbers, or a refusal."""
    for write, name in (
        (write_mnist, "MNIST/raw/train-labels-idx1-ubyte.gz"),
        (write_imagenet32, "imagenet32/val_data.npz"),
    ):
        here = folder / write.__name__
        here.mkdir()
        source = write(here)
        content, right = (here / name).read_bytes(), source.load(here)
        for _ in range(flips):
            place = int(RNG.integers(0, len(content)))
            (here / name).write_bytes(flip(place)(content))
            try:
                found = source.load(here)
            except UserError:
                continue
            assert (found.train.labels == right.train.labels).all()
            assert (found.test.images == right.test.images).all()


def fuzz_archives(folder: Path, flips: int) -> None:
    """Changed bytes anywhere in a zip: all images, or a refusal."""
    beside_good_ones(folder)
    with zipfile.ZipFile(folder / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((folder / "pictures").rglob("*.png")):
            archive.write(file, file.relative_to(folder / "pictures").as_posix())
    content = (folder / "pictures.zip").read_bytes()
    for _ in range(flips):
        (folder / "pictures.zip").write_bytes(flip(int(RNG.integers(0, len(content))))(content))
        try:
            found = grays(load(folder))
        except UserError:
            continue
        assert found == [0, 40, 80, 120, 160]


def test_changed_bytes(tmp_path: Path) -> None:
    fuzz(tmp_path / "pictures", 240)
    fuzz_published(tmp_path, 40)
    fuzz_archives(tmp_path / "zip", 60)


@pytest.mark.slow
def test_changed_bytes_of_thousands_of_files(tmp_path: Path) -> None:
    signal.alarm(600)
    fuzz(tmp_path / "pictures", 2000)
    fuzz_published(tmp_path, 500)
    fuzz_archives(tmp_path / "zip", 1000)
