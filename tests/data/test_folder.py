"""Folders and zip files of images: labels, sizes, bad files, and the decoded cache."""

import errno
import io
import json
import os
import re
import resource
import signal
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import at_once
from imago.data import ImageDataModule, folder_data
from imago.data import decoded as decoded_module
from imago.data.base import fixed_permutation
from imago.data.decoded import Decoder
from imago.data.listing import natural
from imago.errors import UserError
from imago.images import ImageSpec

RNG = np.random.default_rng(0)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "cachehome").mkdir()
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


def paint(file: Path, height: int = 6, width: int = 9, channels: int = 3) -> np.ndarray:
    """A file of noise; returns (C, H, W)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (height, width, channels), np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file)
    return pixels.transpose(2, 0, 1)


def load(path: Path, **settings: object) -> ImageDataModule:
    data = folder_data(str(path), dir=str(path.parent / "cachehome"), batch_size=2, **settings)
    data.prepare()
    return data


def everything(data: ImageDataModule) -> tuple[torch.Tensor, list[int] | None]:
    parts = data.train, data.val, data.test
    labels = None if data.train.labels is None else [int(label) for part in parts for label in part.labels]
    return torch.cat([part.images for part in parts]), labels


def zipped(folder: Path, inside: str = "") -> Path:
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, inside + file.relative_to(folder).as_posix())
    return target


def test_class_folders_label_their_images(pictures: Path) -> None:
    painted = {}
    for k in range(12):
        name = f"{'cat' if k % 3 else 'dog'}/sub{k % 2}/{k}.png"
        painted[name] = paint(pictures / name)
    (pictures / "readme.txt").write_text("not an image")
    (pictures / "cat" / ".hidden.png").write_text("not an image either")
    data = load(pictures)
    dogs = sum(names.startswith("dog") for names in [sorted(painted)[k] for k in fixed_permutation(12)[:10]])
    assert data.spec == ImageSpec(3, 6, 9, 256, 2, ("cat", "dog"), (10 - dogs, dogs))
    assert (len(data.train), len(data.val), len(data.test)) == (10, 1, 1)
    images, labels = everything(data)
    names = sorted(painted)
    for row, k in enumerate(fixed_permutation(12)):
        assert (images[row].numpy() == painted[names[k]]).all()
        assert labels[row] == (0 if names[k].startswith("cat") else 1)
    assert data.name == "pictures"
    assert "labelled by subfolder" in data.description


def test_images_in_one_folder_have_no_labels(pictures: Path) -> None:
    for k in range(4):
        paint(pictures / "all" / f"{k}.png", channels=1)
    data = load(pictures)
    assert data.spec == ImageSpec(1, 6, 9, 256, classes=0)
    assert data.train.labels is None
    paint(pictures / "more" / "x.png", channels=1)
    paint(pictures / "y.png", channels=1)
    mixed = load(pictures)
    assert mixed.spec.classes == 0
    assert "unlabelled because some images lie beside the subfolders" in mixed.description


@pytest.mark.parametrize("inside", ["", "outer/"])
def test_a_zip_is_the_folder(pictures: Path, inside: str) -> None:
    for k in range(9):
        paint(pictures / f"class{k % 2}" / f"{k}.png")
    from_folder, from_zip = load(pictures), load(zipped(pictures, inside))
    assert everything(from_folder)[1] == everything(from_zip)[1]
    assert torch.equal(everything(from_folder)[0], everything(from_zip)[0])
    assert from_folder.spec == from_zip.spec
    assert from_folder.fingerprint == from_zip.fingerprint


@pytest.mark.parametrize("packed", [False, True])
def test_dataset_json_labels_win(pictures: Path, packed: bool) -> None:
    names = [f"0000{k % 2}/img{k}.png" for k in range(8)]
    for name in names:
        paint(pictures / name)
    (pictures / "dataset.json").write_text(json.dumps({"labels": [[name, k % 5] for k, name in enumerate(names)]}))
    data = load(zipped(pictures) if packed else pictures)
    order = fixed_permutation(8)
    ordered = sorted(names)
    assert everything(data)[1] == [names.index(ordered[k]) % 5 for k in order]
    assert data.spec.classes == 5
    (pictures / "dataset.json").write_text('{"labels": null}')
    assert load(pictures).spec.classes == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"labels": [["a.png", 0]]}', r"dataset\.json has no label for 3 of 4 images, such as b\.png"),
        (
            '{"labels": [["a.png",0],["b.png",-1],["c.png",0],["d.png",0]]}',
            r"labels\.1\.1=-1: ",
        ),
        (
            '{"labels": [["a.png",[0.5]],["b.png",1],["c.png",0],["d.png",0]]}',
            r"labels\.0\.1=\[0\.5\]: ",
        ),
        ('{"labels": [["a.png"]]}', r"is not of the form"),
        ("[1]", r"is not of the form"),
        ("nonsense", r"is not of the form"),
    ],
)
def test_a_wrong_dataset_json_is_refused(pictures: Path, content: str, message: str) -> None:
    for name in "abcd":
        paint(pictures / f"{name}.png")
    (pictures / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load(pictures)


def test_folders_of_splits_are_not_classes(pictures: Path) -> None:
    for k in range(4):
        paint(pictures / ("train" if k % 2 else "test") / f"{k}.png")
    with pytest.raises(UserError, match=r"subfolders test, train are splits.*data\.path=.*pictures/test"):
        load(pictures)
    paint(pictures / "another" / "x.png")
    with pytest.raises(UserError, match=r"subfolders test, train are splits.*data\.path=.*pictures/test"):
        load(pictures)
    (pictures / "test").rename(pictures / "bus")  # a train alone is a vehicle
    assert load(pictures).spec.class_names == ("another", "bus", "train")


def test_mixed_sizes_need_a_size(pictures: Path) -> None:
    for k in range(5):
        paint(pictures / f"{k}.png", height=6 + k)
    with pytest.raises(
        UserError, match=r"data\.size=null: .* have 5 sizes \(.*\d\.png is \d+x9.*data\.size=\[HEIGHT,WIDTH\]"
    ):
        load(pictures)
    assert load(pictures, size=[8, 5]).spec.shape == (3, 8, 5)
    assert load(pictures, size=7, channels=1).spec.shape == (1, 7, 7)
    crop, stretch = (everything(load(pictures, size=[6, 6], fit=fit))[0] for fit in ("crop", "stretch"))
    assert not torch.equal(crop, stretch)


def test_mixed_modes_become_rgb_unless_all_are_gray(pictures: Path) -> None:
    for k in range(4):
        paint(pictures / f"{k}.png", channels=1)
    assert load(pictures).spec.channels == 1
    assert load(pictures, channels=3).spec.channels == 3
    paint(pictures / "colour.png")
    assert load(pictures).spec.channels == 3


def damage(pictures: Path, truncated: int, empty: int) -> None:
    for k in range(truncated):
        paint(pictures / f"cut{k}.png", 40, 40)
        content = (pictures / f"cut{k}.png").read_bytes()
        (pictures / f"cut{k}.png").write_bytes(content[: len(content) // 2])
    for k in range(empty):
        (pictures / f"empty{k}.jpg").touch()
    (pictures / "dangling.png").symlink_to(pictures / "nowhere.png")


def test_all_bad_files_are_counted_and_ten_are_shown(pictures: Path) -> None:
    good = {f"ok{k}.png": paint(pictures / f"ok{k}.png", 40, 40) for k in range(5)}
    damage(pictures, truncated=3, empty=9)
    for _ in range(2):  # decoding, then from the cache
        with pytest.raises(UserError) as caught:
            load(pictures)
        message = str(caught.value)
        assert "13 unreadable image files" in message
        assert "cut2.png: the file ends inside its IDAT chunk" in message
        assert "dangling.png: a link that leads nowhere" in message
        assert "and 3 more" in message
        assert "data.on_bad=skip" in message
    listed = next((pictures.parent / "cachehome" / "cache").glob("*.json"))
    assert str(listed) in message
    assert len(json.loads(listed.read_text())["unreadable"]) == 13
    assert len(good) == 5


def test_bad_files_are_skipped_on_request_with_their_number(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {}
    for k in range(8):
        good[f"{'ab'[k % 2]}/ok{k}.png"] = paint(pictures / f"{'ab'[k % 2]}/ok{k}.png", 40, 40)
    damage(pictures / "a", truncated=2, empty=1)
    for _ in range(2):
        data = load(pictures, on_bad="skip")
        assert "data.on_bad=skip: leaving out 4 unreadable image files" in capsys.readouterr().err
    images, labels = everything(data)
    found = {image.numpy().tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert found == {pixels.tobytes(): "ab".index(name[0]) for name, pixels in good.items()}
    assert "4 unreadable ones left out" in data.description


def test_bad_members_of_a_zip_are_bad_files(pictures: Path) -> None:
    for k in range(4):
        paint(pictures / f"{k}.png", 40, 40)
    archive = zipped(pictures)
    content = bytearray(archive.read_bytes())
    content[300] ^= 255  # inside the first member, whose checksum no longer fits
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"1 unreadable image file:\n  0\.png: BadZipFile: Bad CRC-32"):
        load(archive)


def test_nothing_readable_is_refused_either_way(pictures: Path) -> None:
    damage(pictures, truncated=0, empty=2)
    with pytest.raises(UserError, match="3 unreadable image files"):
        load(pictures, on_bad="skip")


def test_too_few_images_and_no_images_are_refused(pictures: Path) -> None:
    (pictures / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds no images \(found: 1 \.txt\)\. Give a folder"):
        load(pictures)
    paint(pictures / "1.png")
    paint(pictures / "2.png")
    with pytest.raises(UserError, match="2 images; training, validation and test need one each"):
        load(pictures)


def test_wrong_paths_are_refused(pictures: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path=.*nowhere: there is no such folder, zip or tar file"):
        load(pictures / "nowhere")
    (pictures / "x.zip").write_text("no zip")
    with pytest.raises(UserError, match=r"data\.path=.*x\.zip: is neither a folder nor a zip file"):
        load(pictures / "x.zip")
    for k in range(3):
        paint(pictures / f"{k}.png")
    with pytest.raises(UserError, match=r"data\.dir=.*gone: there is no such folder"):
        folder_data(str(pictures), dir=str(pictures.parent / "gone")).prepare()


def test_an_unchanged_folder_is_not_decoded_again(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(6):
        paint(pictures / f"{k}.png")
    first = everything(load(pictures))[0].clone()
    decoded = []
    monkeypatch.setattr(
        decoded_module, "decode", lambda file, **_: decoded.append(file) or np.zeros((3, 6, 9), np.uint8)
    )
    assert torch.equal(everything(load(pictures))[0], first)
    assert decoded == []
    paint(pictures / "5.png")
    load(pictures)
    assert len(decoded) == 6
    load(pictures, size=[6, 9], fit="stretch")
    assert len(decoded) == 12


def test_the_images_are_a_memory_map_that_training_cannot_spoil(pictures: Path) -> None:
    for k in range(10):
        paint(pictures / f"{k}.png")
    data = load(pictures, flip=True)
    cache = next((pictures.parent / "cachehome" / "cache").glob("pictures-*.npy"))
    content = cache.read_bytes()
    raw = np.load(cache)
    assert (everything(data)[0].numpy() == raw).all()
    in_memory = ImageDataModule(data.source, batch_size=2, flip=True)
    in_memory.train = type(data.train)(torch.from_numpy(raw)[: len(data.train)], None)
    for mapped, held, _ in zip(data.train_dataloader(), in_memory.train_dataloader(), range(9), strict=False):
        assert torch.equal(mapped.images, held.images)
    data.train.images.zero_()
    assert cache.read_bytes() == content


def test_a_full_or_closed_disk_is_told_before_decoding(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(3):
        paint(pictures / f"{k}.png")
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(decoded_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        UserError,
        match=r"data\.dir=.*cache: cannot be written \([\d,]+ bytes, and [\d,]+ are free\); choose another",
    ):
        load(pictures)
    monkeypatch.undo()
    (pictures.parent / "cachehome" / "cache").rmdir()
    (pictures.parent / "cachehome" / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"data\.dir=.*cache: cannot be written \(File exists\); choose another place"):
        load(pictures)


def test_a_disk_that_fills_while_decoding_is_one_line_and_leaves_nothing(pictures: Path) -> None:
    for k in range(5):
        paint(pictures / f"{k}.png", 100, 100)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(UserError, match=r"data\.dir=.*cache: cannot be written \(File too large"):
            load(pictures)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert list((pictures.parent / "cachehome" / "cache").iterdir()) == []
    assert len(everything(load(pictures))[0]) == 5


def flat(file: Path, gray: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), gray, np.uint8)).save(file)


def classes_of(data: ImageDataModule) -> dict[int, str]:
    """The name of the class of every image by its gray."""
    images, labels = everything(data)
    return {int(image.max()): data.spec.class_names[label] for image, label in zip(images, labels, strict=True)}


def test_classes_are_in_natural_order_and_named(pictures: Path) -> None:
    for number in range(12):
        for k in range(4):
            flat(pictures / f"{number}" / f"{k}.png", 20 * number + k)
    data = load(pictures)
    assert data.spec.class_names == tuple(map(str, range(12)))
    assert classes_of(data) == {20 * number + k: str(number) for number in range(12) for k in range(4)}
    assert [int(label) for label in everything(data)[1]] == [int(i.max()) // 20 for i in everything(data)[0]]


def test_natural_order() -> None:
    ordered = "0 00 1 2 10 img img0 img9 img10 img10a img11 img11b9 img11b10 zebra".split()  # noqa: SIM905
    assert sorted(RNG.permutation(ordered).tolist(), key=natural) == ordered
    assert sorted(["9" * 5000, "1" + "0" * 5000, "8"], key=natural)[0] == "8"


def test_names_of_classes_are_compared_without_their_encoding(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k, name in enumerate(["caf\u00e9", "cafe\u0301", "Caf\u00e9", os.fsdecode(b"\xff\xfe")]):
        for j in range(3):
            flat(pictures / name / f"{j}.png", 20 * k + j)
    data = load(pictures)
    assert data.spec.class_names == ("Caf\u00e9", "caf\u00e9", "\\xff\\xfe")
    found = classes_of(data)
    assert found[0] == found[20] == "caf\u00e9"
    assert "differ in the encoding of their accents alone are one class" in capsys.readouterr().err


@pytest.mark.parametrize("links", ["cat/up -> ..", "a -> . b -> .", "cat/x -> ../.. y -> /", "self -> self"])
def test_links_in_circles_and_to_what_holds_the_folder_add_nothing(
    links: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(4):
        flat(pictures / "cat" / f"{k}.png", k)
        flat(pictures / "dog" / f"{k}.png", 20 + k)
    flat(pictures.parent / "beside.png", 99)
    for link, target in re.findall(r"(\S+) -> (\S+)", links):
        (pictures / link).symlink_to(target)
    data = load(pictures)
    assert sorted(everything(data)[1]) == [0] * 4 + [1] * 4
    if links != "self -> self":
        assert "links and names lead to what is counted already, such as" in capsys.readouterr().err


def test_each_real_file_counts_once_under_its_own_class(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(4):
        flat(pictures / "b" / f"{k}.png", k)
        flat(pictures / "c" / f"{k}.png", 20 + k)
        flat(pictures.parent / "elsewhere" / f"{k}.png", 40 + k)
    (pictures / "a").mkdir()
    for k in range(4):
        (pictures / "a" / f"{k}.png").symlink_to(pictures / "c" / f"{k}.png")
    (pictures / "b" / "same.png").hardlink_to(pictures / "b" / "0.png")
    (pictures / "d").symlink_to(pictures.parent / "elsewhere")
    (pictures / "e").symlink_to(pictures.parent / "elsewhere")
    data = load(pictures)
    assert classes_of(data) == {20 * number + k: "bcd"[number] for number in range(3) for k in range(4)}
    said = capsys.readouterr().err
    assert "6 links and names lead to what is counted already, such as b/same.png" in said
    assert "without images, so no classes: a" in said


def test_pipes_and_dangling_links_are_named_and_never_opened(pictures: Path) -> None:
    for k in range(4):
        flat(pictures / f"{k}.png", k)
    os.mkfifo(pictures / "pipe.png")
    os.mkfifo(pictures / "no picture")
    (pictures / "nowhere.png").symlink_to("gone.png")
    with pytest.raises(UserError) as caught:
        load(pictures)
    assert "2 unreadable image files" in str(caught.value)
    assert "pipe.png: a pipe, socket or device instead of a file" in str(caught.value)
    assert "nowhere.png: a link that leads nowhere (No such file or directory)" in str(caught.value)
    assert len(everything(load(pictures, on_bad="skip"))[0]) == 4
    with pytest.raises(UserError, match="is neither a folder nor a zip file"):
        load(pictures / "pipe.png")


SYSTEM_FILES = (
    ".DS_Store ._0.png __MACOSX/0.png Thumbs.db THUMBS.DB desktop.ini @eaDir/0.png/S_M.jpg #recycle/0.png "
    ".Trash-1000/files/0.png $RECYCLE.BIN/0.png System~Volume~Information/0.png lost+found/0.png .thumbnails/0.png "
    "ehthumbs.db 0.png:Zone.Identifier 0.png.zone.identifier .@__thumb/0.png @Recycle/0.png"
)


@pytest.mark.parametrize("packed", [False, True])
def test_files_of_systems_are_passed_over_and_others_are_counted(
    packed: bool, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(4):
        flat(pictures / "cat" / f"{k}.png", k)
        flat(pictures / "dog" / f"{k}.png", 20 + k)
    for name in SYSTEM_FILES.split():
        for folder in ("", "cat"):
            flat(pictures / folder / "x.png", 99)
            place = pictures / folder / name.replace("~", " ")
            place.parent.mkdir(parents=True, exist_ok=True)
            (pictures / folder / "x.png").rename(place)
    quiet = load(zipped(pictures) if packed else pictures)
    assert capsys.readouterr().err == ""
    assert sorted(classes_of(quiet)) == [0, 1, 2, 3, 20, 21, 22, 23]
    for name in ("cat/0.txt", "cat/1.txt", "dog/b.json", "list.csv", "noise", "fox/notes.txt", "film.mp4"):
        (pictures / name).parent.mkdir(exist_ok=True)
        (pictures / name).write_text("text")
    flat(pictures / "dog" / ".hidden.png", 99)
    said = load(zipped(pictures) if packed else pictures)
    assert sorted(classes_of(said)) == [0, 1, 2, 3, 20, 21, 22, 23]
    error = capsys.readouterr().err
    assert "not images: 3 .txt, 1 .json, 1 .mp4, 1 .csv, 1 without a suffix" in error or packed
    assert "hidden, so left out: 1 image such as dog/.hidden.png" in error
    assert "without images, so no classes: fox" in error


def test_formats_beyond_the_usual_are_read_and_others_named(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {"avif": "avif", "jp2": "jpeg2000", "jpe": "jpeg", "qoi": "qoi", "ico": "ico", "dib": "bmp", "JPG": "jpeg"}
    for suffix, kind in (kinds | {"jpg?w=200": "jpeg", "": "png", "jpg_large": "jpeg", "dat": "webp"}).items():
        Image.new("RGB", (16, 16), (200, 0, 0)).save(pictures / "picture", kind)
        (pictures / "picture").rename(pictures / (f"x{len(suffix)}.{suffix}" if suffix else "00001"))
    data = load(pictures)
    assert len(everything(data)[0]) == 11
    assert abs(everything(data)[0].float().mean((2, 3)) - torch.tensor([200.0, 0, 0])).max() < 8
    assert capsys.readouterr().err == ""
    for name in ("IMG_1.HEIC", "raw.dng", "logo.svg", "layers.psd", "x.tga"):
        (pictures / name).write_bytes(b"whatever is in there")
    (pictures / "without a suffix").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(UserError, match=r"6 unreadable image files:\n  IMG_1\.HEIC: .*no form that is read here.*PNG"):
        load(pictures)


def test_a_class_of_which_nothing_can_be_read_is_named(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(4):
        flat(pictures / "ant" / f"{k}.png", k)
        flat(pictures / "cat" / f"{k}.png", 20 + k)
        (pictures / "bee").mkdir(exist_ok=True)
        (pictures / "bee" / f"{k}.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"4 unreadable image files(.|\n)*No image is left of the classes: bee"):
        load(pictures)
    data = load(pictures, on_bad="skip")
    assert data.spec.class_names == ("ant", "cat")
    assert classes_of(data)[23] == "cat"
    assert "No image is left of the classes: bee" in capsys.readouterr().err


def packed(path: Path, *entries: tuple[str, int | bytes], **settings: object) -> Path:
    """A zip of flat gray images, or of bytes, under any names."""
    with zipfile.ZipFile(path, "w", **settings) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that stand there twice
        for name, content in entries:
            if isinstance(content, int):
                buffer = io.BytesIO()
                Image.fromarray(np.full((4, 4), content, np.uint8)).save(buffer, "png")
                content = buffer.getvalue()
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def test_zips_written_on_other_systems(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = pictures.parent / "x.zip"
    names = [(f"{c}{{}}{k}.png", 20 * n + k) for n, c in enumerate(("cat", "dog")) for k in range(4)]
    expected = {20 * n + k: c for n, c in enumerate(("cat", "dog")) for k in range(4)}
    for start in ("", "outer/", "/", "C:/data/", "../../", "./", "a/../"):
        data = load(packed(archive, *((start + name.format("/"), gray) for name, gray in names)))
        assert classes_of(data) == expected, start
    windows = [("cat\\", b""), *((name.format("\\"), gray) for name, gray in names)]
    assert classes_of(load(packed(archive, *windows))) == expected
    listing = json.dumps({"labels": [[name.format("\\"), gray // 20] for name, gray in names]}).encode()
    assert classes_of(load(packed(archive, *windows, ("dataset.json", listing)))) == {
        gray: str(gray // 20) for _, gray in names
    }
    capsys.readouterr()
    twice = load(packed(archive, *((n.format("/"), 99) for n, _ in names), *((n.format("/"), g) for n, g in names)))
    assert classes_of(twice) == expected
    assert "8 names stand there twice, such as cat/0.png: the last one counts" in capsys.readouterr().err


def test_names_of_a_zip_in_utf_8_without_saying_so(pictures: Path) -> None:
    archive = packed(pictures.parent / "x.zip", *((f"{c}/{k}.png", k) for c in ("k\u00fche", "cat") for k in range(4)))
    content = bytearray(archive.read_bytes())
    for found in re.finditer(b"PK\x01\x02|PK\x03\x04", bytes(content)):
        at = found.start() + (8 if found[0] == b"PK\x01\x02" else 6)
        content[at + 1] &= ~8  # the flag that names are UTF-8
    archive.write_bytes(content)
    assert zipfile.ZipFile(archive).namelist()[0] != "k\u00fche/0.png"
    assert load(archive).spec.class_names == ("cat", "k\u00fche")


def test_members_that_cannot_be_unpacked_are_named(pictures: Path) -> None:
    archive = packed(pictures.parent / "x.zip", *((f"{k}.png", k) for k in range(5)), compression=zipfile.ZIP_DEFLATED)
    content = archive.read_bytes()
    at = [found.start() for found in re.finditer(b"PK\x01\x02", content)]
    changed = bytearray(content)
    changed[at[0] + 8] |= 1  # encrypted
    changed[at[1] + 10] = 9  # deflate64
    changed[at[2] + 24 : at[2] + 28] = (2**31).to_bytes(4, "little")  # unpacks to more than any picture has
    archive.write_bytes(changed)
    with pytest.raises(UserError) as caught:
        load(archive)
    message = str(caught.value)
    assert "3 unreadable image files" in message
    assert "0.png: RuntimeError: File" in message
    assert "is encrypted" in message
    assert "1.png: NotImplementedError" in message
    assert "2.png: would unpack to 2,147,483,648 bytes" in message


@pytest.mark.parametrize("kind", ["tar", "half a zip", "empty", "an image"])
def test_what_is_no_zip_is_refused_with_what_to_do(kind: str, pictures: Path) -> None:
    for k in range(4):
        flat(pictures / f"{k}.png", k)
    file = pictures.parent / "archive"
    whole = zipped(pictures).read_bytes()
    with tarfile.open(file, "w") as tar:
        tar.add(pictures)
    file.write_bytes(
        {
            "tar": file.read_bytes(),
            "half a zip": whole[: len(whole) // 2],
            "empty": b"",
            "an image": (pictures / "0.png").read_bytes(),
        }[kind]
    )
    with pytest.raises(
        UserError, match=r"data\.path=.*archive: is neither a folder nor a zip file.*Unpack other archives"
    ):
        load(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "is not of the form"),
        (b"[" * 100_000, "is not of the form"),
        (b'{"labels": [["0.png", 1e400]]}', r"labels\.0\.1=inf: Input should be"),
        (
            b'{"labels": [["0.png",true],["1.png",0],["2.png",0],["3.png",0]]}',
            r"labels\.0\.1=True: ",
        ),
        (
            b'{"labels": [["0.png","0"],["1.png",0],["2.png",0],["3.png",0]]}',
            r"labels\.0\.1='0': ",
        ),
        (
            b'{"labels": [["0.png",0.0],["1.png",0],["2.png",0],["3.png",0]]}',
            r"labels\.0\.1=0\.0: ",
        ),
        (b'{"labels": [["0.png",4],["1.png",0],["2.png",0],["3.png",0]]}', r"the label 4, but 4 images cannot be"),
        (b'{"labels": [["0.png",1000000000],["1.png",0],["2.png",0],["3.png",0]]}', r"label 1000000000, but 4 images"),
        (b'{"labels": [["0.png",1],["0.png",0],["1.png",0],["2.png",0],["3.png",0]]}', r"0\.png two labels, 1 and 0"),
        (b'{"labels": [[7,1]]}', "is not of the form"),
        (b'{"labels": 7}', "is not of the form"),
    ],
)
def test_any_unusable_dataset_json_is_one_line(content: bytes, message: str, pictures: Path) -> None:
    for k in range(4):
        flat(pictures / f"{k}.png", k)
    (pictures / "dataset.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load(pictures)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["encrypted", "deflate64", "damaged"])
def test_a_dataset_json_that_cannot_be_unpacked_is_one_line(how: str, pictures: Path) -> None:
    listing = b'{"labels": [["0.png",0],["1.png",0],["2.png",0],["3.png",1]]}'
    archive = packed(pictures.parent / "x.zip", *((f"{k}.png", k) for k in range(4)), ("dataset.json", listing))
    content = bytearray(archive.read_bytes())
    entry = content.rindex(b"dataset.json") - 46
    if how == "damaged":
        content[content.index(b'"3.png",1') + 8] ^= 1
    else:
        content[entry + (8 if how == "encrypted" else 10)] |= 1 if how == "encrypted" else 9
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.zip: dataset\.json cannot be read \(.*\)\. Repair or remove it"):
        load(archive)


def test_a_dataset_json_may_name_images_that_are_gone_and_leave_numbers_out(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(4):
        flat(pictures / f"{k}.png", k)
    labels = [[f"./{k}.png", 3 * (k % 2)] for k in range(4)] + [["gone.png", 1]]
    (pictures / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8-sig")
    data = load(pictures)
    assert data.spec.class_names == ("0", "1", "2", "3")
    assert classes_of(data) == {0: "0", 1: "3", 2: "0", 3: "3"}
    assert "dataset.json labels 1 images that are not there, such as gone.png" in capsys.readouterr().err


def test_a_picture_replaced_by_one_of_its_size_and_date_is_seen(pictures: Path) -> None:
    for k in range(4):
        Image.fromarray(RNG.integers(0, 256, (4, 4), np.uint8)).save(pictures / f"{k}.bmp")
    load(pictures)
    status = (pictures / "2.bmp").stat()
    Image.fromarray(np.full((4, 4), 77, np.uint8)).save(pictures / "2.bmp")
    os.utime(pictures / "2.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (pictures / "2.bmp").stat().st_size == status.st_size
    assert sum(bool((image == 77).all()) for image in everything(load(pictures))[0]) == 1


def test_a_picture_that_pillow_warns_of_is_read(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(4):
        paint(pictures / f"{k}.png", 10, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # a warning up to twice of it, and warnings are errors here
    assert len(everything(load(pictures))[0]) == 4


def test_a_name_as_long_as_names_may_be(pictures: Path) -> None:
    named = pictures.parent / ("\u00fc" * 127)
    pictures.rename(named)
    for k in range(4):
        flat(named / f"{k}.png", k)
    assert len(everything(load(named))[0]) == 4


DAMAGE = {
    "json empty": lambda npy, report: report.write_text(""),
    "json gone": lambda npy, report: report.unlink(),
    "json of another form": lambda npy, report: report.write_text("[]"),
    "json a folder": lambda npy, report: (report.unlink(), report.mkdir()),
    "json with a stranger": lambda npy, report: report.write_text('{"unreadable": {"x": "y"}}'),
    "npy cut": lambda npy, report: npy.write_bytes(npy.read_bytes()[:-7]),
    "npy empty": lambda npy, report: npy.write_bytes(b""),
    "npy nonsense": lambda npy, report: npy.write_bytes(b"x" * 1000),
    "npy a pipe": lambda npy, report: (npy.unlink(), os.mkfifo(npy)),
    "npy of too few": lambda npy, report: np.save(npy, np.load(npy)[:-1]),
    "npy of another type": lambda npy, report: np.save(npy, np.load(npy).astype(np.int8)),
    "npy of another shape": lambda npy, report: np.save(npy, np.load(npy)[:, 0]),
    "npy of objects": lambda npy, report: np.save(npy, np.array([{}] * 6), allow_pickle=True),
    "npy zeroed behind its header": lambda npy, report: npy.write_bytes(npy.read_bytes()[:128] + bytes(6 * 16)),
    "npy with one other bit": lambda npy, report: npy.write_bytes(npy.read_bytes()[:-1] + b"\1"),
    "json without a checksum": lambda npy, report: report.write_text('{"unreadable": {}}'),
    "npy a zip": lambda npy, report: packed(npy, ("a", 1)),
}


@pytest.mark.parametrize("how", [*DAMAGE, "a link"])
def test_a_damaged_cache_is_made_anew_with_one_line(
    how: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(6):
        flat(pictures / f"{k}.png", k)
    expected = everything(load(pictures))[0].clone()
    (npy,) = (pictures.parent / "cachehome" / "cache").glob("*.npy")
    victim = pictures.parent / "victim"
    victim.write_text("mine")
    if how == "a link":
        npy.unlink()
        npy.symlink_to(victim)
    elif how == "json a folder":
        DAMAGE[how](npy, npy.with_suffix(".json"))
        with pytest.raises(UserError, match="cannot be written"):
            load(pictures)
        return
    else:
        DAMAGE[how](npy, npy.with_suffix(".json"))
    assert torch.equal(everything(load(pictures))[0], expected)
    assert capsys.readouterr().err.splitlines() == [
        f"{npy}: is damaged, or closed to this user; the images are decoded anew"
    ]
    assert victim.read_text() == "mine"
    assert sorted(path.suffix for path in npy.parent.iterdir()) == [".json", ".npy"]


def test_of_large_caches_evenly_spaced_images_are_checked(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoded_module, "_CHECKED_BYTES", 3 * 16)
    monkeypatch.setattr(decoded_module, "_CHUNK", 2)
    for k in range(7):
        flat(pictures / f"{k}.png", k)
    (pictures / "bad.png").write_bytes(b"no")
    expected = everything(load(pictures, on_bad="skip"))[0].clone()
    (npy,) = (pictures.parent / "cachehome" / "cache").glob("*.npy")
    content = npy.read_bytes()
    assert json.loads(npy.with_suffix(".json").read_text())["every"] == 3
    for row, seen in ((1, False), (6, True)):
        capsys.readouterr()
        npy.write_bytes(content[: 128 + 16 * row] + bytes([99] * 16) + content[128 + 16 * (row + 1) :])
        assert torch.equal(everything(load(pictures, on_bad="skip"))[0], expected) == seen
        assert ("images are decoded anew" in capsys.readouterr().err) == seen


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "Input/output error"), OSError(errno.EMFILE, "x"), MemoryError()])
def test_a_fault_that_passes_ends_the_command_and_is_not_kept(
    fault: Exception, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(6):
        flat(pictures / f"{k}.png", k)
    opened = Path.open

    def failing(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "3.png":
            raise fault
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(UserError, match=rf"3\.png could not be read \({type(fault).__name__}.*Try again"):
        load(pictures, on_bad="skip")
    monkeypatch.undo()
    assert list((pictures.parent / "cachehome" / "cache").iterdir()) == []
    assert sorted(everything(load(pictures, on_bad="skip"))[0][:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("what", ["imago.data.sources.folder.DECODER", "PIL.__version__"])
def test_another_decoder_decodes_anew(what: str, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(6):
        flat(pictures / f"{k}.png", k)
    load(pictures)
    monkeypatch.setattr(what, "99")
    load(pictures)
    assert len(list((pictures.parent / "cachehome" / "cache").glob("*.npy"))) == 2


def test_names_of_files_do_not_steer_the_terminal(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(6):
        flat(pictures / f"{k}.png", k)
    (pictures / "notes.\x1b[2j").write_bytes(b"hello")
    (pictures / "\x1b[2Jbad.png").write_bytes(b"no")
    load(pictures, on_bad="skip")
    said = capsys.readouterr().err
    assert "not images: 1 .\\x1b[2j" in said
    assert "\\x1b[2Jbad.png: " in said
    assert "\x1b" not in said


def test_ten_processes_decode_once(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(6):
        flat(pictures / f"{k}.png", k)
    counts, inner = pictures.parent / "counts", Decoder._decode_into

    def counted(self: Decoder, cache: Path, names: list[str]) -> None:
        with counts.open("a") as file:
            file.write("x")
        inner(self, cache, names)

    monkeypatch.setattr(Decoder, "_decode_into", counted)
    assert at_once(10, lambda: everything(load(pictures))[0].shape == (6, 1, 4, 4)) == [True] * 10
    assert counts.read_text() == "x"
    cache = pictures.parent / "cachehome" / "cache"
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]
