"""A run knows its images: whoever goes on or measures with others is stopped, wherever they lie."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import Command, configuration
from imago.board.records import read_record
from imago.checkpoints import read
from imago.data import ImageDataModule, folder_data
from imago.data.base import ImageSet, Splits
from imago.data.identity import check_same_data
from imago.data.sources import Digits
from imago.errors import UserError
from imago.runs import Run
from imago.training.run import announce_start, train

SETTINGS = ["model=made", "model.hidden=[8]", "data=folder", "data.batch_size=16", "metrics=none", "trainer=cpu"]


def draw(folder: Path, *numbers: int) -> None:
    """Pictures of noise, in two classes."""
    for k in numbers:
        file = folder / "ab"[k % 2] / f"{k:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (4, 4), dtype=np.uint8)).save(file)


def load(folder: Path | str, **settings: Any) -> ImageDataModule:
    data = folder_data(str(folder), batch_size=8, dir=".", **settings)
    data.prepare()
    return data


def kept(data: ImageDataModule) -> dict[str, Any]:
    """What a checkpoint has of the data, as a file gives it back."""
    return json.loads(json.dumps({"data": data.identity, "spec": data.spec.as_dict()}))


def test_fingerprints_of_published_numbers_stay() -> None:
    data = ImageDataModule(Digits())
    data.prepare()
    assert data.fingerprint == "3107ad3a54e3"
    assert data.splits["train"] == {"images": 1437, "fingerprint": data.fingerprint}
    assert len({part["fingerprint"] for part in data.splits.values()}) == 3


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 30 pictures."""
    monkeypatch.chdir(tmp_path)
    draw(Path("pics"), *range(30))
    return Path("pics")


def renamed(folder: Path) -> None:
    (folder / "b").rename(folder / "c")


def repainted(folder: Path) -> None:
    draw(folder.with_name("x"), 98)
    (folder.with_name("x") / "a" / "098.png").rename(folder / "a" / "004.png")


def swapped(folder: Path) -> None:
    for k in (4, 5):
        (folder / "ab"[k % 2] / f"{k:03d}.png").rename(folder / "ab"[1 - k % 2] / f"{k:03d}.png")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: draw(folder, 30), "31 images now, 30 then, so others are held out"),
        (lambda folder: (folder / "a" / "004.png").unlink(), "29 images now, 30 then"),
        (repainted, "as many images, but other ones, or other labels, in "),
        (swapped, "as many images, but other ones, or other labels, in "),
        (renamed, "class c was called b then"),
        (lambda folder: draw(folder / "d", 98), "3 classes now, .* 2 classes then"),
    ],
)
def test_other_data_are_refused_with_what_differs(there: Path, change: Callable[[Path], Any], said: str) -> None:
    checkpoint = kept(load(there))
    check_same_data(checkpoint, load(there), "put those back")
    change(there)
    with pytest.raises(UserError, match=rf"data: pics is not what the run was trained on: .*{said}.*; put those back"):
        check_same_data(checkpoint, load(there), "put those back")


def test_images_are_the_same_wherever_they_lie(there: Path) -> None:
    checkpoint = kept(load(there))
    shutil.make_archive("packed", "zip", there)
    there.rename("elsewhere")
    for place in ("elsewhere", "packed.zip"):
        data = load(place)
        check_same_data(checkpoint, data, "")
        assert data.name == "pics", "numbers are known by the run's name for the data"
    for name in ("../pics", "a/b", "", 3, "x" * 300, "a\x1b[2J"):
        data = load("elsewhere")
        check_same_data(checkpoint | {"data": checkpoint["data"] | {"name": name}}, data, "")
        assert data.name == "elsewhere"


@pytest.mark.parametrize("damaged", [3, {}, {"splits": 1}, {"splits": {"train": 1, "val": {}, "test": {}}}])
def test_a_damaged_note_is_no_agreement(there: Path, damaged: Any) -> None:
    data = load(there)
    with pytest.raises(UserError, match="is damaged"):
        check_same_data(kept(data) | {"data": damaged}, data, "")


def test_held_out_images_belong_to_the_data() -> None:
    class Moved(Digits):
        def load(self, directory: Path) -> Splits:
            splits = super().load(directory)
            return replace(splits, test=ImageSet(splits.test.images.flip(0), splits.test.labels))

    data, moved = ImageDataModule(Digits()), ImageDataModule(Moved())
    data.prepare(), moved.prepare()
    with pytest.raises(UserError, match="in test;"):
        check_same_data(kept(data), moved, "")


def test_a_run_says_at_its_start_which_classes_have_no_training_images(
    there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = load(there), Run(tmp_path / "run")
    run.update(notices=[], name="m", parameters={"total": 3}, device="x")
    announce_start(run, data, None)
    assert "note" not in capsys.readouterr().out
    data.spec = replace(data.spec, classes=3, class_names=("a", "b", "never"), class_counts=(12, 12, 0))
    announce_start(run, data, None)
    assert (
        "note: no training images of 1 of the classes, which are never drawn or counted: never\n"
        in capsys.readouterr().out
    )


def test_of_older_checkpoints_it_is_said(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load(there)
    spec = {name: value for name, value in data.spec.as_dict().items() if not name.startswith("class_")}
    check_same_data({"spec": spec}, data, "")
    assert capsys.readouterr().err.startswith("note: the checkpoint does not say what its data were")
    with pytest.raises(UserError, match="its images are 1x4x4, 256 levels, 2 classes now, 3x4x4"):
        check_same_data({"spec": spec | {"channels": 3}}, data, "")


def test_a_run_goes_on_and_is_measured_with_its_own_images_alone(
    script: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMAGO_DATA_DIR", raising=False)

    def settings(*more: str) -> dict[str, Any]:
        return configuration(
            *SETTINGS, f"data.dir={tmp_path}", "name=m", f"logs={tmp_path / 'logs'}", "logger=none", *more
        )

    draw(Path("pics"), *range(40))
    run = train(settings("data.path=pics", "max_updates=2"), "m", tmp_path / "logs" / "run")
    assert read(run.last)["data"]["splits"] == run.summary["splits"]
    assert run.summary["spec"]["class_names"] == ["a", "b"]
    given = ["evaluate", f"checkpoint={run.path}", "metrics=none"]
    assert script(*given)[0] == 0
    before = json.loads((run.path / "evaluation.json").read_text())

    Path("pics").rename("moved")
    code, _, err = script(*given)
    assert (code, bool(re.search(r"error: .*pics.*If the images were moved, .*path=FOLDER", err))) == (2, True)
    assert script(*given, "path=moved")[0] == 0
    assert json.loads((run.path / "evaluation.json").read_text()) == before, "the same numbers, the same names"
    for k, resume in enumerate((run.path, "auto")):
        again = train(settings("data.path=moved", f"max_updates={3 + k}", f"resume={resume}"), "m", tmp_path / "new")
        assert (again.path, again.summary["data"], again.summary["updates"]) == (run.path, "pics", 3 + k)
    shutil.copytree("moved", "other")
    draw(Path("other"), 98)
    elsewhere = train(settings("data.path=other", "max_updates=1", "resume=auto"), "m", tmp_path / "logs" / "other")
    assert elsewhere.path != run.path, "another folder with other images is another experiment"

    draw(Path("moved"), 99)
    code, out, err = script(*given, "path=moved")
    assert (code, "test/bpd" in out) == (2, False)
    assert re.search(r"error: data: moved is not .*: 41 images now, 40 then.*as path=FOLDER", err)
    for resume in (run.path, "auto"):
        with pytest.raises(UserError, match=r"41 images now, 40 then.*leave resume out"):
            train(settings("data.path=moved", "max_updates=9", f"resume={resume}"), "m", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    weights = read(run.last)["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_run_may_hold_no_images_out(script: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["model=made", "model.hidden=[8]", "data=digits", "metrics=none", "trainer=cpu", "logger=none"]
    settings += [f"logs={tmp_path}", "max_updates=2"]
    run = train(configuration(*settings, "data.val=0"), "m", tmp_path / "run")
    assert "the likelihood is not measured during training: data.val=0 holds no images out" in capsys.readouterr().err
    assert {name: part["images"] for name, part in run.summary["splits"].items()} == {
        "train": 1617,
        "val": 0,
        "test": 180,
    }
    assert not run.best.exists()
    assert not [name for name in run.summary.get("metrics", {}) if name.startswith("val/")]
    assert "digits: train = all 1,617 images" in run.summary["split"]
    code, out, _ = script("evaluate", f"checkpoint={run.path}", "metrics=none")
    assert (code, "test/bpd" in out) == (0, True)
    code, _, err = script("evaluate", f"checkpoint={run.path}", "metrics=none", "split=val")
    assert (code, "error: data.val=0: no images of digits are held out for validation; take the test" in err) == (
        2,
        True,
    )
    assert str(read_record(run.path).data) == "digits, 8×8 gray, no images held out"
    with pytest.raises(UserError, match=r"that run is another experiment \(data\.val: 0 there, None now\)"):
        train(configuration(*settings, f"resume={run.path}"), "m", tmp_path / "other")
