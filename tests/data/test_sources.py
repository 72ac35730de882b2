"""Every published format, written as a tiny file here, and the real files where they are."""

import gzip
import io
import math
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from imago.data import ImageDataModule, Source
from imago.data.sources import CIFAR10, MNIST, Bars, Digits, FashionMNIST, ImageNet32, cifar10, imagenet32, mnist
from imago.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The published files hold more images than a test should write."""
    if "real" not in request.node.name:
        monkeypatch.setattr(mnist, "COUNTS", (60, 10))
        monkeypatch.setattr(imagenet32, "COUNTS", (50, 10))


def prepared(source: Source, directory: Path) -> ImageDataModule:
    data = ImageDataModule(source, batch_size=1, dir=str(directory))
    data.prepare()
    return data


def assert_partition(splits: ImageDataModule, images: np.ndarray, labels: np.ndarray) -> None:
    """Training and validation together are the given images with their labels, each once."""
    found = torch.cat([splits.train.images, splits.val.images])
    found_labels = torch.cat([splits.train.labels, splits.val.labels])
    pairs = lambda x, y: sorted(zip((row.tobytes() for row in x), y.tolist(), strict=True))  # noqa: E731
    assert pairs(found.numpy(), found_labels) == pairs(images, labels)
    for part in (splits.train, splits.val, splits.test):
        assert part.images.dtype == torch.uint8
        assert part.labels.dtype == torch.int64


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(raw: Path, packed: bool = False) -> dict[str, np.ndarray]:
    raw.mkdir(parents=True)
    arrays = {
        "train-images-idx3-ubyte": RNG.integers(0, 256, (60, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": RNG.integers(0, 10, 60, np.uint8),
        "t10k-images-idx3-ubyte": RNG.integers(0, 256, (10, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": RNG.integers(0, 10, 10, np.uint8),
    }
    for name, array in arrays.items():
        if packed:
            (raw / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (raw / name).write_bytes(idx(array))
    return arrays


@pytest.mark.parametrize(("source", "folder"), [(MNIST(), "MNIST"), (FashionMNIST(), "FashionMNIST")])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_plain_and_compressed(source: Source, folder: str, packed: bool, tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path / folder / "raw", packed)
    splits = prepared(source, tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (50, 10, 10)
    assert_partition(splits, arrays["train-images-idx3-ubyte"][:, None], arrays["train-labels-idx1-ubyte"])
    assert (splits.test.images[:, 0].numpy() == arrays["t10k-images-idx3-ubyte"]).all()
    assert splits.test.labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert splits.spec.classes == 10
    assert source.name in splits.description


def test_idx_files_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    write_mnist(raw := tmp_path / "MNIST" / "raw")
    found = MNIST().load(tmp_path).test
    assert torch.equal(found.images[:, 0], read_image_file(str(raw / "t10k-images-idx3-ubyte")))
    assert torch.equal(found.labels, read_label_file(str(raw / "t10k-labels-idx1-ubyte")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "train-images-idx3-ubyte",
            b"\x00\x00\x08\x03" + bytes(12) + b"x",
            r"train-images-idx3-ubyte: is no idx file of uint8 \(60, 28, 28\).*has 17 or more",
        ),
        ("train-images-idx3-ubyte", b"<html>", r"is no idx file"),
        ("train-images-idx3-ubyte", b"", r"is no idx file"),
        (
            "train-labels-idx1-ubyte",
            idx(np.zeros(59, np.uint8)),
            r"000008010000003c and 68 bytes",
        ),
        ("t10k-labels-idx1-ubyte", idx(np.full(10, 12, np.uint8)), r"labels up to 12, expected 0\.\.9"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((10, 27, 28), np.uint8)), r"is no idx file of uint8 \(10, 28, 28\)"),
    ],
)
def test_damaged_idx_files_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        MNIST().load(tmp_path)


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(bytes(1000))[:-9]], ids=["no gzip", "cut short"])
def test_damaged_gzip_files_are_refused(content: bytes, tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw", packed=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: cannot be unpacked .*Delete it"):
        MNIST().load(tmp_path)


def write_cifar10(folder: Path, records: int) -> np.ndarray:
    """Six batch files; returns all their records, uint8 (6 * records, 3073), the last file being the test batch."""
    folder.mkdir()
    every = np.random.default_rng(0).integers(0, 256, (6 * records, 3073), np.uint8)
    every[:, 0] = np.arange(6 * records) % 10  # every class in every file, whichever tests ran before
    for k, name in enumerate((*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin")):
        (folder / name).write_bytes(every[k * records : (k + 1) * records].tobytes())
    return every


def test_cifar10_binary_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "RECORDS", 20)
    every = write_cifar10(tmp_path / "cifar-10-batches-bin", 20)
    splits = prepared(CIFAR10(), tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (90, 10, 20)
    assert_partition(splits, every[:100, 1:].reshape(-1, 3, 32, 32), every[:100, 0])
    assert splits.test.images[3, 2, 31, 30] == every[103, 1 + 2 * 1024 + 31 * 32 + 30]
    assert splits.spec.class_names[splits.test.labels[0]] == CIFAR10.classes[every[100, 0]]


def test_cifar10_of_the_wrong_size_or_with_impossible_labels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar10(folder, 20)
    with pytest.raises(UserError, match=r"data_batch_1\.bin: has 61,460 bytes and labels up to 9, expected 30,730,000"):
        CIFAR10().load(tmp_path)
    monkeypatch.setattr(cifar10, "RECORDS", 20)
    (folder / "test_batch.bin").write_bytes(bytes([10] * 61_460))
    with pytest.raises(UserError, match=r"test_batch\.bin: has .* and labels up to 10, expected .* and 0\.\.9"):
        CIFAR10().load(tmp_path)


class Python2(pickle._Pickler):  # type: ignore[name-defined]
    """Writes texts and bytes as Python 2 did, in which the published files were made."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]  # noqa: RUF012

    def save_text(self, text: str | bytes) -> None:
        raw = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(b"T" + struct.pack("<I", len(raw)) + raw)

    dispatch[str] = dispatch[bytes] = save_text


def pickled(content: object) -> bytes:
    file = io.BytesIO()
    Python2(file, 2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


def write_python_cifar10(folder: Path, every: np.ndarray) -> None:
    folder.mkdir()
    names = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
    for name, part in zip(names, np.split(every, 6), strict=True):
        batch = {"batch_label": name, "labels": part[:, 0].tolist(), "data": np.ascontiguousarray(part[:, 1:])}
        (folder / name).write_bytes(pickled(batch))


def test_cifar10_as_torchvision_downloads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "RECORDS", 20)
    (tmp_path / "binary").mkdir()
    (tmp_path / "python").mkdir()
    every = write_cifar10(tmp_path / "binary" / "cifar-10-batches-bin", 20)
    write_python_cifar10(tmp_path / "python" / "cifar-10-batches-py", every)
    binary, python = (prepared(CIFAR10(), tmp_path / version) for version in ("binary", "python"))
    assert python.identity == binary.identity
    assert torch.equal(python.test.images, binary.test.images)
    with (tmp_path / "python" / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        theirs = pickle.load(file, encoding="latin1")  # the line of torchvision.datasets.CIFAR10
    assert (theirs["data"].reshape(-1, 3, 32, 32) == python.test.images.numpy()).all()
    assert theirs["labels"] == python.test.labels.tolist()


class Mine:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch it-ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickled(Mine()), r"test_batch: is no batch of CIFAR-10's python version \(UnpicklingError: it asks for "),
        (pickled({"data": Mine()}), "it asks for posix.system"),
        (b"no pickle", "UnpicklingError"),
        (b"", "EOFError: Ran out of input"),
        (pickled({"data": np.zeros((20, 3072), np.uint8)})[:-999], r"is no batch .* Delete it to have the binary"),
        (pickled({"data": np.zeros((20, 3072), np.uint8)}), "KeyError: 'labels'"),
        (pickled({"data": np.zeros((20, 3072), np.uint8), "labels": [10] * 20}), r"labels int64 \(20,\)\), data uint8"),
        (pickled({"data": np.zeros((20, 3072), np.uint8), "labels": [0.5] * 20}), r"labels float64 \(20,\)\)"),
        (pickled({"data": np.zeros((20, 3072), np.uint8), "labels": [0] * 19}), r"labels int64 \(19,\)\)"),
        (pickled({"data": np.zeros((20, 3071), np.uint8), "labels": [0] * 20}), r"data uint8 \(20, 3071\)"),
    ],
)
def test_damaged_and_hostile_pickles_are_refused(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cifar10, "RECORDS", 20)
    write_python_cifar10(tmp_path / "cifar-10-batches-py", RNG.integers(0, 10, (120, 3073), np.uint8))
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match=message):
        CIFAR10().load(tmp_path)
    assert not (tmp_path / "it-ran").exists()


def write_imagenet32(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir()
    images, labels = RNG.integers(0, 256, (60, 3072), np.uint8), RNG.integers(1, 1001, 60)
    for k in range(10):
        part = slice(5 * k, 5 * k + 5)
        np.savez(folder / f"train_data_batch_{k + 1}.npz", data=images[part], labels=labels[part], mean=np.zeros(3072))
    np.savez(folder / "val_data.npz", data=images[50:], labels=labels[50:])
    return images, labels


def test_imagenet32_npz_batches(tmp_path: Path) -> None:
    images, labels = write_imagenet32(tmp_path / "imagenet32")
    splits = prepared(ImageNet32(), tmp_path)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (48, 2, 10)
    assert_partition(splits, images[:50].reshape(-1, 3, 32, 32), labels[:50] - 1)
    assert (splits.test.images.flatten(1).numpy() == images[50:]).all()
    assert splits.spec.classes == 1000
    assert "Chrabaszcz et al. 2017" in splits.description


def test_imagenet32_says_what_is_missing_and_what_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"imagenet32 lacks train_data_batch_1\.npz, .*val_data\.npz.*image-net\.org"):
        ImageNet32().load(tmp_path)
    folder = tmp_path / "imagenet32"
    write_imagenet32(folder)
    (folder / "train_data_batch_4.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UserError, match=r"train_data_batch_4\.npz: cannot read its array 'labels'"):
        ImageNet32().load(tmp_path)
    np.savez(folder / "train_data_batch_4.npz", data=np.zeros((5, 3072), np.uint8), labels=np.arange(5))
    with pytest.raises(UserError, match=r"train_data_batch_4\.npz: has labels int64 \(5,\), expected .*1\.\.1000"):
        ImageNet32().load(tmp_path)


def test_digits_are_embedded(tmp_path: Path) -> None:
    splits = prepared(Digits(), tmp_path / "nothing-here")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1437, 180, 180)
    assert splits.train.images.shape[1:] == (1, 8, 8)
    assert len(splits.train.images.unique()) == 17
    assert (splits.train.images.min(), splits.train.images.max()) == (0, 255)
    assert splits.train.labels.unique().tolist() == list(range(10))
    everything = torch.cat([part.images for part in (splits.train, splits.val, splits.test)])
    assert len(everything.unique(dim=0)) == 1797  # no image is in two splits


def test_bars_are_the_thirty_images_with_the_entropy_they_claim(tmp_path: Path) -> None:
    splits = prepared(Bars(), tmp_path / "nothing-here")
    images = splits.val.images
    assert images.shape == (30, 1, 4, 4)
    assert splits.spec.levels == 2
    constant_rows = (images == images[..., :1]).flatten(1).all(1)
    constant_columns = (images == images[..., :1, :]).flatten(1).all(1)
    assert (constant_rows | constant_columns).all()
    assert int((constant_rows & constant_columns).sum()) == 2
    _, counts = splits.train.images.unique(dim=0, return_counts=True)
    p = counts / counts.sum()
    assert -(p * p.log2()).sum() / 16 == pytest.approx(Bars.entropy_bits_per_dim)
    assert Bars.entropy_bits_per_dim == pytest.approx(math.log2(30) / 16)


@pytest.mark.parametrize("source", [MNIST(), FashionMNIST(), CIFAR10(), ImageNet32()])
def test_a_mistyped_data_directory_is_refused_and_not_created(source: Source, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.dir=.*dtaa: there is no such folder.*IMAGO_DATA_DIR"):
        source.load(tmp_path / "dtaa")
    assert not (tmp_path / "dtaa").exists()


REAL = Path(os.environ.get("IMAGO_DATA_DIR", "/nonexistent"))


@pytest.mark.skipif(not (REAL / "MNIST").exists(), reason="needs IMAGO_DATA_DIR with MNIST")
def test_real_mnist() -> None:
    splits = prepared(MNIST(), REAL)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (50_000, 10_000, 10_000)
    assert splits.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    counts = torch.cat([splits.train.labels, splits.val.labels]).bincount()
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert splits.train.images.float().mean().item() / 255 == pytest.approx(0.1307, abs=0.0005)  # the published mean


@pytest.mark.skipif(
    not (REAL / "cifar-10-batches-bin").exists(), reason="needs IMAGO_DATA_DIR with cifar-10-batches-bin"
)
def test_real_cifar10() -> None:
    splits = prepared(CIFAR10(), REAL)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (45_000, 5_000, 10_000)
    assert torch.cat([splits.train.labels, splits.val.labels]).bincount().tolist() == [5000] * 10
    means = splits.train.images[::9].float().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.005)  # the published means, in R, G, B order
    names = (REAL / "cifar-10-batches-bin" / "batches.meta.txt").read_text().split()
    assert tuple(names) == splits.spec.class_names
