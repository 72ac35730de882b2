"""Folders and zip files of images: labels, sizes, bad files, and the decoded cache."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imago.data import ImageDataModule, folder_data
from imago.data import decoded as decoded_module
from imago.data.base import fixed_permutation
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
        ('{"labels": [["a.png",0],["b.png",-1],["c.png",0],["d.png",0]]}', r"gives b\.png the label -1"),
        ('{"labels": [["a.png",[0.5]],["b.png",1],["c.png",0],["d.png",0]]}', r"gives a\.png the label \[0\.5\]"),
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
    with pytest.raises(UserError, match=r"data\.path=.*nowhere: there is no such folder or zip file"):
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
        decoded_module, "decode", lambda file, *a: decoded.append(file) or np.zeros((3, 6, 9), np.uint8)
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
    with pytest.raises(UserError, match=r"data\.dir: .*cannot take the decoded images.*free.*data\.size smaller"):
        load(pictures)
    monkeypatch.undo()
    (pictures.parent / "cachehome" / "cache").rmdir()
    (pictures.parent / "cachehome" / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot take the decoded images.*Set data\.dir"):
        load(pictures)
