"""Shards: what is prepared comes back, bit for bit, in bounded memory; what is damaged is named and mended."""

import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import Command
from imago.data import BatchStream, ImageDataModule, folder_data, stream_data
from imago.data import prepare as preparing
from imago.data.base import ImageSet, affordable
from imago.data.named import named_images
from imago.data.prepare import prepare
from imago.data.shards import ShardedImages
from imago.data.sources import ImageNet32, imagenet32
from imago.errors import UserError
from imago.images import Batch

pyarrow = pytest.importorskip("pyarrow")


def picture(k: int) -> np.ndarray:
    """Noise (8, 6, 3)."""
    return np.random.default_rng(k).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def png(k: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(k)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 40 pictures in two classes; the first by name are 0, 2, 4, ..."""
    for k in range(40):
        file = tmp_path / "pictures" / "ab"[k % 2] / f"{k:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(k))
    return tmp_path / "pictures"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 7 pictures, written 3 at a time."""
    monkeypatch.setattr(preparing, "_SHARD", 7 * 144)
    monkeypatch.setattr(preparing, "_BATCH", 3 * 144)


@pytest.fixture
def shards(small: None, pictures: Path, tmp_path: Path) -> Path:
    prepare(str(pictures), tmp_path / "shards")
    return tmp_path / "shards"


def load(path: Path, **settings: Any) -> ImageDataModule:
    data = stream_data(str(path), batch_size=8, **settings)
    data.prepare()
    return data


def all_of(folder: Path) -> Batch:
    whole = ShardedImages(folder)
    return whole.take(np.arange(len(whole)))


def assert_same(ours: Batch, other: Batch) -> None:
    assert torch.equal(ours.images, other.images)
    assert ours.labels is not None
    assert other.labels is not None
    assert torch.equal(ours.labels, other.labels)


def test_shards_have_the_splits_and_fingerprints_of_their_folder(shards: Path, pictures: Path, tmp_path: Path) -> None:
    data, folder = load(shards), folder_data(str(pictures), batch_size=8, dir=str(tmp_path))
    folder.prepare()
    assert data.splits == folder.splits
    assert [len(part) for part in (data.train, data.val, data.test)] == [32, 4, 4]
    assert data.spec == folder.spec
    assert data.spec.class_names == ("a", "b")
    assert sorted(file.name for file in shards.glob("*.arrow")) == [f"{k:05d}.arrow" for k in range(6)]
    assert load(shards, val=0).splits == folder_splits(pictures, tmp_path, val=0)


def folder_splits(pictures: Path, tmp_path: Path, **settings: Any) -> dict[str, Any]:
    folder = folder_data(str(pictures), batch_size=8, dir=str(tmp_path), **settings)
    folder.prepare()
    return folder.splits


def test_batches_are_the_same_for_every_number_of_processes_and_every_start(shards: Path) -> None:
    train = load(shards).train

    def batches(start: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        own = pickle.loads(pickle.dumps(train))  # as another process has them: its own descriptors
        placed = {"start": start, "rank": rank, "world_size": world_size}
        return islice(BatchStream(own, batch_size=8, seed=3, flip=True, **placed), 9 - start)

    never_stopped = list(batches(0))  # four batches an epoch, so the third has begun
    memory = ImageSet(train.images, train.condition)
    for batch, in_memory in zip(never_stopped, BatchStream(memory, batch_size=8, seed=3, flip=True), strict=False):
        assert_same(batch, in_memory)
    for world_size in (1, 2, 4):
        ranks = [list(batches(6, rank, world_size)) for rank in range(world_size)]
        for whole, parts in zip(never_stopped[6:], zip(*ranks, strict=True), strict=True):
            images = torch.cat([part.images for part in parts])
            assert_same(Batch(images, torch.cat([part.condition for part in parts])), whole)  # type: ignore[misc]


BOUNDED = """
import resource, sys
from itertools import islice
from pathlib import Path
from imago.cli import lazy_imports
lazy_imports.install()
from imago.data import BatchStream, stream_data

def memory(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)

data = stream_data(sys.argv[1], batch_size=64)
allowed = 64_000  # kilobytes
before = memory("VmRSS:")
resource.setrlimit(resource.RLIMIT_DATA, ((memory("VmData:") + allowed) * 1024,) * 2)
data.prepare()
stream = BatchStream(data.train, batch_size=64, seed=0, flip=True)
for batch in islice(stream, stream.batches_per_epoch + 5):
    assert batch.images.shape == (64, 3, 64, 64)
assert data.fingerprint and sum(len(batch.images) for batch in data.batches("val", 128)) == len(data.val)
assert memory("VmHWM:") - before < 100_000, memory("VmHWM:") - before
try:
    data.train.images
except (MemoryError, RuntimeError):
    print("the whole would not fit")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for its memory")
def test_memory_stays_bounded_where_the_images_exceed_it(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10_000, 3, 64, 64), dtype=np.uint8)  # 123 MB
    np.savez(tmp_path / "images.npz", images=images)
    prepare(str(tmp_path / "images.npz"), tmp_path / "shards")
    command = [sys.executable, "-W", "ignore", "-c", BOUNDED, str(tmp_path / "shards")]
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"PYTHONPATH": str(source), "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "the whole would not fit" in found.stdout


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    at = bytes(content).index(np.ascontiguousarray(picture(14).transpose(2, 0, 1)).tobytes())  # the first of the second
    content[at + 70] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "changed": (flip_a_byte, r"shard 00001\.arrow is damaged: image 7 does not fit its checksum"),
    "short": (lambda file: os.truncate(file, 1000), r"shard 00001\.arrow has 1,000 bytes instead of [\d,]+"),
    "missing": (Path.unlink, r"shard 00001\.arrow is missing"),
    "folder": (lambda file: (file.unlink(), file.mkdir()), r"shard 00001\.arrow .*bytes"),
    "garbage": (lambda file: file.write_bytes(b"x" * file.stat().st_size), r"shard 00001\.arrow is damaged \("),
    "another's": (lambda file: file.write_bytes(file.with_name("00002.arrow").read_bytes()), None),
}


@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind not in ("folder", "another's")])
def test_a_damaged_shard_is_named_and_prepare_mends_it(shards: Path, pictures: Path, kind: str) -> None:
    before, index = all_of(shards), (shards / "index.json").read_text()
    damage, said = DAMAGE[kind]
    damage(shards / "00001.arrow")  # type: ignore[operator]
    with pytest.raises(
        UserError, match=f"^data\\.path=.*: {said}.*Run prepare again.*data.path={pictures} out={shards}"
    ):
        all_of(shards)
    kept = (shards / "00000.arrow").stat().st_mtime_ns
    prepare(str(pictures), shards)
    assert_same(all_of(shards), before)
    assert (shards / "index.json").read_text() == index
    assert (shards / "00000.arrow").stat().st_mtime_ns == kept, "what is whole is left alone"


def test_a_shard_of_other_images_is_refused(shards: Path, tmp_path: Path, pictures: Path) -> None:
    (pictures / "a" / "00.png").write_bytes(png(99))
    prepare(str(pictures), tmp_path / "others")
    (shards / "00000.arrow").write_bytes((tmp_path / "others" / "00000.arrow").read_bytes())
    with pytest.raises(UserError, match=r"shard 00000\.arrow is of other images, or of another preparation\."):
        load(shards)


def test_what_becomes_shorter_during_training_is_named(shards: Path) -> None:
    whole = ShardedImages(shards)
    os.truncate(shards / "00002.arrow", 100)
    with pytest.raises(UserError, match=r"shard 00002\.arrow has become shorter"):
        whole.take(np.array([15]))


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version": 2}', b"\xff\xfe"])
def test_a_damaged_index_is_told_and_mended(shards: Path, pictures: Path, content: bytes) -> None:
    (shards / "index.json").write_bytes(content)
    with pytest.raises(UserError, match=r"index\.json is damaged \(.*\)\. Run prepare again"):
        load(shards)
    prepare(str(pictures), shards)
    assert len(ShardedImages(shards)) == 40


def test_a_preparation_that_was_killed_looks_unfinished_and_goes_on(
    small: None, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, written = tmp_path / "shards", []

    def killed(file: Path, shape: Any, key: str, batches: Iterator[Any]) -> None:
        def until() -> Iterator[Any]:
            yield next(batches)
            if file.name == "00003.arrow":
                os.kill(os.getpid(), signal.SIGKILL)
            yield from batches

        write(file, shape, key, until())
        written.append(file.name)

    write = preparing.write_shard
    monkeypatch.setattr(preparing, "write_shard", killed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if not child:
        prepare(str(pictures), out)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert any(file.name.endswith(".unfinished") for file in out.iterdir())
    with pytest.raises(UserError, match=r"these shards are not finished\. Run prepare again: it goes on"):
        load(out)
    monkeypatch.setattr(preparing, "write_shard", lambda file, *rest: (written.append(file.name), write(file, *rest)))
    capsys.readouterr()
    prepare(str(pictures), out)
    assert written == ["00003.arrow", "00004.arrow", "00005.arrow"]
    assert re.search(
        r"40 images of 3x8x6, .* in 6 shards, of which 3 are there already: about \d+ s", capsys.readouterr().out
    )
    assert sorted(file.name for file in out.iterdir()) == [
        *(f"{k:05d}.arrow" for k in range(6)),
        "index.json",
        "plan.json",
    ]
    prepare(str(pictures), tmp_path / "at_once")
    assert_same(all_of(out), all_of(tmp_path / "at_once"))


def test_nothing_else_is_overwritten(shards: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out=.*pictures: a folder with files in it that are no shards, such as a"):
        prepare(str(pictures), pictures)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"out=.*file: .* is no folder"):
        prepare(str(pictures), tmp_path / "file")
    before = {file.name: file.read_bytes() for file in shards.iterdir()}
    (pictures / "a" / "00.png").write_bytes(png(99))
    with pytest.raises(UserError, match=r"out=.*shards: holds shards of other images, or of these before they"):
        prepare(str(pictures), shards)
    assert {file.name: file.read_bytes() for file in shards.iterdir()} == before
    with pytest.raises(UserError, match=r"out=.*shards: holds shards of other images"):
        prepare(str(pictures), shards, size=4)


def as_zip(pictures: Path, out: Path) -> Path:
    with zipfile.ZipFile(out / "pictures.zip", "w") as archive:
        for file in sorted(pictures.rglob("*.png")):
            archive.write(file, file.relative_to(pictures))
    return out / "pictures.zip"


def as_tar(pictures: Path, out: Path) -> Path:
    with tarfile.open(out / "pictures.tar", "w") as archive:
        archive.add(pictures, ".")
    return out / "pictures.tar"


def as_webdataset(pictures: Path, out: Path) -> Path:
    (out / "tars").mkdir()
    files = sorted(pictures.rglob("*.png"))
    for part in range(2):
        with tarfile.open(out / "tars" / f"train-{part:06d}.tar", "w") as archive:
            for k in range(part * 20, part * 20 + 20):
                for name, content in ((f"{k:05d}.png", files[k].read_bytes()), (f"{k:05d}.cls", b"01"[k // 20 :][:1])):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return out / "tars"


def as_parquet(pictures: Path, out: Path) -> Path:
    import pyarrow.parquet

    files = sorted(pictures.rglob("*.png"))
    features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    (out / "parquet").mkdir()
    for part in range(2):
        chosen = files[part * 20 : part * 20 + 20]
        table = pyarrow.table(
            {
                "image": [{"bytes": file.read_bytes(), "path": file.name} for file in chosen],
                "label": ["ab".index(file.parent.name) for file in chosen],
            }
        ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pyarrow.parquet.write_table(table, out / "parquet" / f"train-{part:05d}-of-00002.parquet", row_group_size=6)
    return out / "parquet"


def as_npz(pictures: Path, out: Path) -> Path:
    files = sorted(pictures.rglob("*.png"))
    labels = ["ab".index(file.parent.name) for file in files]
    images = np.stack([np.asarray(Image.open(file)) for file in files])
    np.savez(out / "pictures.npz", images=images, labels=labels, classes=["a", "b"])
    return out / "pictures.npz"


@pytest.mark.parametrize("form", [as_zip, as_tar, as_webdataset, as_parquet, as_npz], ids=lambda form: form.__name__)
def test_every_form_gives_the_same_images_and_classes(shards: Path, pictures: Path, tmp_path: Path, form: Any) -> None:
    prepare(str(form(pictures, tmp_path)), tmp_path / "others")
    assert_same(all_of(tmp_path / "others"), all_of(shards))
    names = ("0", "1") if form is as_webdataset else ("a", "b")
    assert load(tmp_path / "others").spec.class_names == names


def test_a_tar_file_is_data_of_its_own(pictures: Path, tmp_path: Path) -> None:
    data = folder_data(str(as_tar(pictures, tmp_path)), batch_size=8, dir=str(tmp_path))
    data.prepare()
    assert data.splits == folder_splits(pictures, tmp_path)


def test_imagenet_keeps_the_publishers_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet32, "COUNTS", (100, 7))
    folder, random = tmp_path / "imagenet32", np.random.default_rng(0)
    folder.mkdir()
    for name, n in [*((f"train_data_batch_{k}.npz", 10) for k in range(1, 11)), ("val_data.npz", 7)]:
        images = random.integers(0, 256, (n, 3072), dtype=np.uint8)
        np.savez(folder / name, data=images, labels=random.integers(1, 1001, n))
    published = ImageDataModule(ImageNet32(), dir=str(tmp_path), batch_size=8)
    published.prepare()
    prepare(str(folder), tmp_path / "shards")
    data = load(tmp_path / "shards")
    assert data.splits == published.splits
    assert (len(data.val), len(data.test)) == (4, 7)
    assert data.spec == published.spec
    (folder / "train_data_batch_3.npz").unlink()
    with pytest.raises(UserError, match=r"data\.path=.*: lacks train_data_batch_3\.npz of the downsampled ImageNet"):
        prepare(str(folder), tmp_path / "others")


@pytest.mark.parametrize("form", [lambda pictures, out: pictures, as_parquet], ids=["folder", "parquet"])
def test_unreadable_images_are_refused_or_left_out(
    small: None, pictures: Path, tmp_path: Path, form: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(14, 28, 2):  # all of the second shard
        (pictures / "a" / f"{k:02d}.png").write_bytes(png(k)[:-30])
    (pictures / "a" / "02.png").write_bytes(b"no picture")
    place = str(form(pictures, tmp_path))
    with pytest.raises(UserError, match=r"data\.path=.*unreadable image file(.|\n)*set data\.on_bad=skip"):
        prepare(place, tmp_path / "shards")
    index = prepare(place, tmp_path / "shards", on_bad="skip")
    assert "data.on_bad=skip: leaving out" in capsys.readouterr().err
    assert index.lost == 8
    whole = ShardedImages(tmp_path / "shards")
    assert len(whole) == 32
    kept = [k for k in [*range(0, 40, 2), *range(1, 40, 2)] if k != 2 and k not in range(14, 28, 2)]
    expected = torch.from_numpy(np.stack([picture(k) for k in kept])).permute(0, 3, 1, 2)
    assert torch.equal(whole.images, expected)
    assert whole.labels is not None
    assert whole.labels.tolist() == [k % 2 for k in kept]
    assert "8 unreadable ones left out" in load(tmp_path / "shards").description


def test_images_are_brought_to_a_size(pictures: Path, tmp_path: Path) -> None:
    prepare(str(pictures), tmp_path / "shards", size=(4, 5), channels=1)
    data = folder_data(str(pictures), size=(4, 5), channels=1, batch_size=8, dir=str(tmp_path))
    data.prepare()
    assert load(tmp_path / "shards").splits == data.splits


def test_parquet_of_several_sizes_or_splits_is_refused(tmp_path: Path) -> None:
    import pyarrow.parquet

    (tmp_path / "parquet").mkdir()
    table = pyarrow.table({"picture": [png(0), png(1)], "label": [0, 1]})
    pyarrow.parquet.write_table(table, tmp_path / "parquet" / "train-0.parquet")
    pyarrow.parquet.write_table(table, tmp_path / "parquet" / "test-0.parquet")
    with pytest.raises(UserError, match="several splits, test, train"):
        prepare(str(tmp_path / "parquet"), tmp_path / "shards")
    buffer = io.BytesIO()
    Image.fromarray(picture(0)[:4]).save(buffer, "png")
    table = pyarrow.table({"picture": [png(0), buffer.getvalue()]})
    pyarrow.parquet.write_table(table, tmp_path / "two.parquet")
    with pytest.raises(UserError, match=r"row 1: is 4x6, the first 8x6; set data\.size"):
        prepare(str(tmp_path / "two.parquet"), tmp_path / "shards")
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "none.parquet")
    with pytest.raises(UserError, match=r"none\.parquet: no Parquet file of images that can be read \(0 columns of"):
        prepare(str(tmp_path / "none.parquet"), tmp_path / "shards")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"bad\.parquet: no Parquet file of images"):
        prepare(str(tmp_path / "bad.parquet"), tmp_path / "shards")


def test_without_pyarrow_one_line_says_what_to_install(
    shards: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.ipc", None)
    for action in (lambda: load(shards), lambda: prepare(str(pictures), tmp_path / "others")):
        with pytest.raises(UserError, match=r"need pyarrow: pip install pyarrow$"):
            action()


def test_no_shards_no_path_and_a_full_disk_are_told(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"data\.path=.*pictures: holds no index\.json, so it is no folder of shards"):
        load(pictures)
    with pytest.raises(UserError, match=r"data\.path is missing: .*data=stream the folder of shards"):
        stream_data(None)
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match=r"out=.*shards: cannot be written \(6,240 bytes, and 100 are free\)"):
        prepare(str(pictures), tmp_path / "shards")


def test_a_distance_can_name_shards(shards: Path, tmp_path: Path) -> None:
    named = named_images(str(shards), str(tmp_path))
    assert len(named.images) == 40
    assert named.spec.class_names == ("a", "b")


def test_what_learns_from_all_images_takes_as_many_as_memory_affords(shards: Path) -> None:
    train = load(shards).train
    few = affordable(train, most=1000)  # bytes, of images of 144
    assert [len(few), len(affordable(train, most=10_000))] == [7, 32]
    assert torch.equal(few.take(np.arange(7)).images, train.take(np.arange(0, 32, 5)).images)
    memory = ImageSet(train.images)
    assert affordable(memory, most=1000) is memory


def test_commands_know_shards(script: Command, pictures: Path, tmp_path: Path) -> None:
    code, out, err = script("prepare", f"data.path={pictures}", "out=shards")
    assert code == 0, err
    assert re.search(r"40 images of 3x8x6, 0\.000 GB in 1 shard: about \d+ s\n", out)
    assert "shards: 40 images of 3x8x6 in 1 shard, labelled by subfolder; train on them with data=stream" in out
    few = ["metrics=none", "logger=none", "callbacks=minimal", "trainer=cpu", "data.batch_size=8", "model.hidden=[8]"]
    code, _, err = script("train", "model=made", "data=stream", "data.path=shards", *few, "max_images=32")
    assert code == 0, err
    code, out, err = script("evaluate", "checkpoint=logs/made-stream", "metrics=none")
    assert code == 0, err
    assert "bpd" in out
    code, _, err = script("sample", "checkpoint=logs/made-stream", "n=4")
    assert code == 0, err
    (tmp_path / "shards").rename(tmp_path / "moved")
    (pictures / "b" / "01.png").write_bytes(png(99))
    code, _, err = script("prepare", f"data.path={pictures}", "out=shards")
    assert code == 0, err
    code, _, err = script(
        "train", "model=made", "data=stream", "data.path=shards", *few, "max_images=64", "resume=auto"
    )
    assert code == 2
    assert re.search(r"data: .* is not what the run was trained on: as many images, but other ones", err)
    code, _, err = script("evaluate", "checkpoint=logs/made-stream", "metrics=none", "path=moved")
    assert code == 0, err
